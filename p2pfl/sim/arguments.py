"""What callers of `simulate` write, as the plain checked values that everything else works with."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import networkx as nx
import numpy as np

from p2pfl.data import PARTITIONS, Partition, iid, partition_named
from p2pfl.errors import ConfigError
from p2pfl.files import read_bounded
from p2pfl.settings_files import SHOWN, Table, check_tables
from p2pfl.sim.scenario import PAGE, FaultTable, StepsTable
from p2pfl.topology import is_graph_file, spec_from_graph, spec_from_text

LIMIT = 4 * 2**20  # bytes of a graph file
AnyTable = TypeVar("AnyTable", bound=Table)


def whole(name: str, value: Any) -> int:
    """A whole number of Python or NumPy as an int. ConfigError for others, truth values among them."""
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise ConfigError(f"{name} is {_shown(value)}; give a whole number") from None


def text(name: str, value: Any) -> str:
    """A text. ConfigError."""
    if not isinstance(value, str):
        raise ConfigError(f"{name} is {_shown(value)}; give a text")
    return value


def path_of(name: str, value: Any) -> Path:
    """A path, or a text that is one. ConfigError."""
    if not isinstance(value, str | Path):
        raise ConfigError(f"{name} is {_shown(value)}; give a path")
    return Path(value)


def plain(value: Any) -> Any:
    """The value with NumPy's numbers and arrays in it as Python's."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def partition_of(value: Any) -> Partition:
    """A partition, its name, or its table such as {"kind": "dirichlet", "alpha": 0.1}; None: iid. ConfigError."""
    if value is None:
        return iid()
    if isinstance(value, str):
        return partition_named(value, {})
    if isinstance(value, Mapping):
        options = plain(value)
        return partition_named(text("the partition's kind", options.pop("kind", None)), options)
    if not callable(value):
        raise ConfigError(f'the partition is {_shown(value)}; give one of p2pfl.data, such as dirichlet(0.1), or "iid"')
    if value in PARTITIONS.values():
        raise ConfigError(f"the partition is {value.__name__} itself; call it, such as dirichlet(0.1) or iid()")
    found: Partition = value
    return found


def spec_of(value: Any, peers: int) -> Mapping[str, Any] | None:
    """A topology's kind, its spec, or a networkx graph on the positions 0 to peers - 1; None stays. ConfigError.

    Also the name of a file with such a graph.
    """
    if value is None:
        return None
    if isinstance(value, str) and is_graph_file(value):
        content = read_bounded(Path(value), LIMIT).decode("utf-8", "replace")
        return spec_from_text(Path(value).name, content, [str(place) for place in range(peers)])
    if isinstance(value, str):
        return {"kind": value}
    if isinstance(value, nx.Graph):
        return spec_from_graph(value, range(peers))
    if not isinstance(value, Mapping):
        raise ConfigError(f'the topology is {_shown(value)}; give a kind such as "ring", a spec, or a networkx graph')
    spec: Mapping[str, Any] = plain(value)
    return spec


def table_of(kind: type[AnyTable], name: str, value: Any) -> AnyTable:
    """A scenario's table, or a mapping that becomes one. ConfigError."""
    if isinstance(value, kind):
        return value
    return check_tables(mapping_of(name, value), kind, name=name, page=PAGE, error=ConfigError)


def faults_of(value: Any) -> list[FaultTable]:
    """All faults. ConfigError."""
    return _tables_of(FaultTable, "faults", "fault", value, '[{"kind": "lying", "sites": 1}]')


def steps_of(value: Any) -> list[StepsTable]:
    """All tables of local steps. ConfigError."""
    return _tables_of(StepsTable, "steps", "steps", value, '[{"sites": 1, "local_steps": 2}]')


def _tables_of(kind: type[AnyTable], names: str, name: str, value: Any, example: str) -> list[AnyTable]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise ConfigError(f"{names} are {_shown(value)}; give a list, such as {example}")
    return [table_of(kind, f"{name} {place}", table) for place, table in enumerate(value)]


def mapping_of(name: str, value: Any) -> dict[str, Any]:
    """A mapping with plain values. ConfigError."""
    if not isinstance(value, Mapping):
        raise ConfigError(f"{name} is {_shown(value)}; give a table of keys and values ({PAGE} lists all keys)")
    found: dict[str, Any] = plain(value)
    return found


def _shown(value: Any) -> str:
    return " ".join(repr(value).split())[:SHOWN]
