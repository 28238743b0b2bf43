"""Examples by what a scenario's ``[data]`` table says: which loader, and its settings."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from p2pfl.data.examples import Examples
from p2pfl.data.libsvm import from_libsvm
from p2pfl.data.mnist import from_mnist
from p2pfl.data.python_sets import from_scikit_learn
from p2pfl.data.tables import from_csv, from_parquet
from p2pfl.errors import ConfigError

VARIABLE = "P2PFL_DATA"
HELD_OUT_SEED = 0  # which examples are held out is the same for every seed of a study


@dataclass(frozen=True)
class Source:
    """One loader, its settings with their types, and which of them must be given."""

    load: Callable[..., Examples]
    settings: Mapping[str, tuple[type, ...]]
    needed: tuple[str, ...]


_TABLE: Mapping[str, tuple[type, ...]] = {
    "path": (str,), "label": (str,), "drop": (list,), "columns": (list,), "missing": (int, float, str)
}  # fmt: skip

SOURCES: Mapping[str, Source] = {
    "csv": Source(from_csv, _TABLE, ("path", "label")),
    "libsvm": Source(from_libsvm, {"path": (str,), "test_path": (str,), "features": (int,)}, ("path",)),
    "mnist": Source(from_mnist, {"path": (str,), "images": (bool,)}, ("path",)),
    "parquet": Source(from_parquet, _TABLE, ("path", "label")),
    "scikit-learn": Source(from_scikit_learn, {"name": (str,)}, ("name",)),
}
"""The known kinds; a new one is a new row here. All take ``test_share`` where there are no test examples."""

_RENAMED = {"libsvm": {"path": "train", "test_path": "test"}, "mnist": {"path": "folder"}}


def load_examples(table: Mapping[str, Any]) -> Examples:
    """The examples of a ``[data]`` table, such as {"kind": "scikit-learn", "name": "digits", "test_share": 0.2}.

    A path may begin with ``$P2PFL_DATA``. Raises ConfigError for the table, DataError for the files.
    """
    kind = table.get("kind")
    if kind not in SOURCES:
        known = ", ".join([*SOURCES, "plan"])
        raise ConfigError(f"unknown kind of data {str(kind)[:40]!r}; choose one of {known}")
    source = SOURCES[str(kind)]
    settings = {name: value for name, value in table.items() if name not in ("kind", "test_share")}
    _check(str(kind), source, settings)
    for name in ("path", "test_path"):
        if name in settings:
            settings[name] = expanded(settings[name])
    renamed = _RENAMED.get(str(kind), {})
    examples = source.load(**{renamed.get(name, name): value for name, value in settings.items()})
    share = table.get("test_share")
    if share is None:
        return examples
    if isinstance(share, bool) or not isinstance(share, int | float):
        raise ConfigError(f"test_share is {str(share)[:40]!r}; write a number between 0 and 1, such as 0.2")
    return examples.holding_out(float(share), HELD_OUT_SEED)


def expanded(path: str) -> Path:
    """The path with ``$P2PFL_DATA`` replaced. Raises ConfigError if that is not set."""
    if f"${VARIABLE}" not in path:
        return Path(path)
    place = path.index(f"${VARIABLE}")
    rest = path[place + len(VARIABLE) + 1 :].lstrip("/")
    folder = os.environ.get(VARIABLE)
    if not folder:
        raise ConfigError(f"the scenario reads {path[place:]}, and {VARIABLE} is not set; set it to the data's folder")
    return Path(folder) / rest


def _check(kind: str, source: Source, settings: Mapping[str, Any]) -> None:
    for name, value in settings.items():
        if name not in source.settings:
            known = ", ".join([*source.settings, "test_share"])
            raise ConfigError(f"data of kind {kind} have no setting {str(name)[:40]!r}; their settings: {known}")
        kinds = source.settings[name]
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            wanted = " or ".join(one.__name__ for one in kinds)
            raise ConfigError(f"{name} = {str(value)[:40]!r} of the data is no {wanted}; write one")
    missing = [name for name in source.needed if name not in settings]
    if missing:
        raise ConfigError(f"data of kind {kind} need {', '.join(missing)}; write it")
