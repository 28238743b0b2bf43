"""A site's datasets: CSV files it grants to plans by tag, checked and fingerprinted. See docs/data.md."""

from __future__ import annotations

from p2pfl.data.csv_files import Table, fingerprint_file, read_table
from p2pfl.data.registry import RegisteredDataset, Registry

__all__ = ["RegisteredDataset", "Registry", "Table", "fingerprint_file", "read_table"]
