"""Data: a site's own files, granted to plans by tag (docs/data.md); examples for simulations, from files and libraries,
and their division over peers (docs/data-partitions.md)."""

from __future__ import annotations

from p2pfl.data.csv_files import Table, fingerprint_file, read_table
from p2pfl.data.examples import Examples, from_arrays
from p2pfl.data.libsvm import from_libsvm
from p2pfl.data.mnist import from_mnist
from p2pfl.data.named_partitions import PARTITIONS, partition_named
from p2pfl.data.partition import (
    Partition,
    Parts,
    by_column,
    dirichlet,
    feature_shift,
    iid,
    labels_per_peer,
    quantity,
)
from p2pfl.data.python_sets import from_scikit_learn, from_torch
from p2pfl.data.registry import RegisteredDataset, Registry
from p2pfl.data.shift import Shift
from p2pfl.data.sources import SOURCES, load_examples
from p2pfl.data.tables import from_csv, from_parquet
from p2pfl.data.who_holds_what import holdings, holdings_figure, holdings_table

__all__ = [
    "PARTITIONS",
    "SOURCES",
    "Examples",
    "Partition",
    "Parts",
    "RegisteredDataset",
    "Registry",
    "Shift",
    "Table",
    "by_column",
    "dirichlet",
    "feature_shift",
    "fingerprint_file",
    "from_arrays",
    "from_csv",
    "from_libsvm",
    "from_mnist",
    "from_parquet",
    "from_scikit_learn",
    "from_torch",
    "holdings",
    "holdings_figure",
    "holdings_table",
    "iid",
    "labels_per_peer",
    "load_examples",
    "partition_named",
    "quantity",
    "read_table",
]
