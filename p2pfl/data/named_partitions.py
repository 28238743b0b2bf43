"""Partitions by name, as scenarios write them: {name = "dirichlet", alpha = 0.1}."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from p2pfl.data.partition import Partition, by_column, dirichlet, feature_shift, iid, labels_per_peer, quantity
from p2pfl.errors import ConfigError

PARTITIONS: Mapping[str, Callable[..., Partition]] = {
    "iid": iid,
    "dirichlet": dirichlet,
    "labels_per_peer": labels_per_peer,
    "quantity": quantity,
    "feature_shift": feature_shift,
    "by_column": by_column,
}
"""The known partitions by name, as scenarios write them; a new one is a new row here and in SETTINGS."""

SETTINGS: Mapping[str, Mapping[str, tuple[type, ...]]] = {
    "iid": {},
    "dirichlet": {"alpha": (int, float)},
    "labels_per_peer": {"labels": (int,)},
    "quantity": {"alpha": (int, float)},
    "feature_shift": {"scale": (int, float), "offset": (int, float), "noise": (int, float), "quarter_turns": (bool,)},
    "by_column": {"column": (str,)},
}
"""The settings of each partition and their types; all but those of feature_shift must be given."""


def partition_named(name: str, settings: Mapping[str, Any]) -> Partition:
    """The partition of a scenario's table, such as ("dirichlet", {"alpha": 0.1}). ConfigError for whatever is wrong."""
    if name not in PARTITIONS:
        raise ConfigError(f"unknown partition {str(name)[:40]!r}; choose one of {', '.join(PARTITIONS)}")
    known = SETTINGS[name]
    for key, value in settings.items():
        if key not in known:
            listed = ", ".join(known) or "none"
            raise ConfigError(f"the partition {name} has no setting {str(key)[:40]!r}; its settings: {listed}")
        if not isinstance(value, known[key]) or (isinstance(value, bool) and bool not in known[key]):
            wanted = " or ".join(kind.__name__ for kind in known[key])
            raise ConfigError(f"{key} = {str(value)[:40]!r} of the partition {name} is no {wanted}; write one")
    missing = [] if name == "feature_shift" else [key for key in known if key not in settings]
    if missing:
        raise ConfigError(f"the partition {name} needs {', '.join(missing)}; write it")
    return PARTITIONS[name](**settings)
