"""Registered datasets. Knows no network."""

from p2pfl.data.registry import RegisteredDataset, Registry

__all__ = ["RegisteredDataset", "Registry"]
