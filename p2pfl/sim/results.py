"""What came of a simulation: one table over rounds, one over sites, the graph, the facts; saved as Parquet and JSON.

A result is a folder: ``rounds.parquet``, ``sites.parquet``, ``result.json`` (facts, costs, edges, written last), and
``parameters.safetensors`` where they were asked for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from p2pfl.errors import ConfigError, StoreError
from p2pfl.extras import optional
from p2pfl.files import read_bounded, write_atomic
from p2pfl.sim.directions import lower_is_better

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

FORMAT = 2
FACTS, ROUNDS, SITES, PARAMETERS = "result.json", "rounds.parquet", "sites.parquet", "parameters.safetensors"
FACTS_LIMIT = 512 * 1024 * 1024  # bytes; a full graph of 5,000 peers has 12.5 million edges

Columns = dict[str, np.ndarray]


@dataclass(repr=False)
class SimResult:
    """One simulated run.

    ``rounds``: columns over rounds: ``round`` (from 1; 0 is the start), ``training`` (closing rounds only mix),
    ``train_loss``, ``seconds`` (simulated, since the start, when the last site ended the round), ``bytes`` (sent by all
    sites since the start) and ``heartbeat_bytes`` (of heartbeats, not among them); and, in the rounds that were
    evaluated, ``distance`` (sqrt(sum_i pi_i |x_i - x_bar|^2)) and each figure of the plan for the ``mean_model``, the
    ``worst_site``, the ``best_site`` and as mean over ``sites``. Not a number where nothing was evaluated.

    ``sites``: columns over sites at the end: ``site``, ``examples``, ``neighbours``, ``local_steps``, ``seconds``,
    ``bytes``, and their figures. ``edges`` [E, 2] of the union graph. ``facts``: everything that decides the numbers.
    ``cost``: seconds on the clock by phase. ``parameters`` [n, P] at the end, not saved unless asked.
    """

    facts: dict[str, Any]
    rounds: Columns
    sites: Columns
    edges: np.ndarray
    cost: dict[str, float]
    interrupted: bool = False
    parameters: np.ndarray | None = None

    def __repr__(self) -> str:
        """One line; all columns at once say nothing."""
        final, name = self.final(), f"mean_model_{self.metric}"
        return (
            f"<SimResult {str(self.facts.get('name') or 'run')!r}: {len(self.sites['site'])} sites, "
            f"round {final['round']}{', interrupted' if self.interrupted else ''}, "
            f"{self.metric} of the mean model {final.get(name, float('nan')):.4g}>"
        )

    @property
    def metric(self) -> str:
        """The plan's first figure, by which sites are coloured and compared: "accuracy", "auc", or "loss"."""
        return str(self.facts["metric"])

    @property
    def higher_is_better(self) -> bool:
        """Whether a larger value of the metric is a better one."""
        return not lower_is_better(self.metric, self.facts.get("lower_is_better", ()))

    @property
    def frame(self) -> pandas.DataFrame:
        """``rounds`` as a data frame."""
        return data_frame(self.rounds)

    @property
    def site_frame(self) -> pandas.DataFrame:
        """``sites`` as a data frame."""
        return data_frame(self.sites)

    @property
    def evaluated(self) -> list[int]:
        """The rounds that were evaluated."""
        column = self.rounds.get(f"mean_model_{self.metric}")
        seen = np.isfinite(column) if column is not None else np.zeros(len(self.rounds["round"]), dtype=bool)
        return self.rounds["round"][seen].tolist()  # type: ignore[no-any-return]

    def final(self, round: int | None = None) -> dict[str, Any]:
        """The figures of the last evaluated round (or of this one), with its seconds, bytes and distance."""
        rounds = self.rounds["round"].tolist()
        wanted = (self.evaluated or rounds)[-1] if round is None else round
        place = rounds.index(wanted)
        return {name: values[place].item() for name, values in self.rounds.items()}

    def summary(self) -> dict[str, Any]:
        """Facts, last figures and costs as plain values."""
        return {**self.facts, "interrupted": self.interrupted, "final": self.final(), "cost": dict(self.cost)}

    def plot(self) -> Figure:
        """Figures over rounds, bytes and hours, the distance, and the graph coloured by the sites' figures."""
        from p2pfl.sim.charts import overview

        return overview({str(self.facts.get("name") or "run"): [self]})

    def to_html(self, path: Path | str) -> Path:
        """Write one page that needs nothing else; returns its path. Raises StoreError."""
        from p2pfl.sim.report import write_report

        return write_report({str(self.facts.get("name") or "run"): [self]}, Path(path))

    def files(self, *, parameters: bool = False) -> dict[str, bytes]:
        """The result as files by name. Raises ConfigError without pyarrow."""
        files = {ROUNDS: parquet_bytes(self.rounds), SITES: parquet_bytes(self.sites)}
        if parameters and self.parameters is not None:
            files[PARAMETERS] = safetensors.numpy.save({"x": np.ascontiguousarray(self.parameters)})
        head = {
            "format": FORMAT, "facts": self.facts, "cost": self.cost, "interrupted": self.interrupted,
            "edges": self.edges.tolist(),
        }  # fmt: skip
        files[FACTS] = json.dumps(head, allow_nan=False, sort_keys=True).encode()
        return files

    def save(self, folder: Path | str, *, parameters: bool = False) -> Path:
        """Write the result into a folder, which is made; what lies there under these names is replaced.

        Raises ConfigError without pyarrow, StoreError when the disk refuses.
        """
        return write_files(self.files(parameters=parameters), Path(folder))

    @classmethod
    def load(cls, folder: Path | str) -> SimResult:
        """A saved result. Raises ConfigError if there is none, or one of another format."""
        place = Path(folder)
        if not (place / FACTS).is_file():
            raise ConfigError(f"{place} holds no result of a simulation; give a folder that p2pfl sim run has written")
        try:
            head = json.loads(read_bounded(place / FACTS, FACTS_LIMIT))
            if head["format"] != FORMAT:
                raise ConfigError(f"{place} has format {head['format']!r}, this program reads {FORMAT}; simulate again")
            edges = np.array(head["edges"], dtype=np.int64).reshape(-1, 2)
            facts, cost, interrupted = dict(head["facts"]), dict(head["cost"]), bool(head["interrupted"])
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{place / FACTS} is no result of a simulation ({error}); simulate again") from error
        parameters = read_parameters(place / PARAMETERS) if (place / PARAMETERS).is_file() else None
        rounds, sites = read_parquet(place / ROUNDS), read_parquet(place / SITES)
        return cls(facts, rounds, sites, edges, cost, interrupted, parameters)


def write_files(files: Mapping[str, bytes], folder: Path) -> Path:
    """Write a result's files; the one that makes the folder a result comes last. Raises StoreError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / FACTS).unlink(missing_ok=True)  # a folder without it is no result: a cut here leaves none
        if PARAMETERS not in files:
            (folder / PARAMETERS).unlink(missing_ok=True)  # of the result that is replaced
    except OSError as error:
        raise StoreError(f"couldn't write into {folder}: {error.strerror}; check space and rights") from error
    for name in sorted(files, key=lambda name: name == FACTS):
        write_atomic(folder / name, files[name], private=False)
    return folder


def data_frame(columns: Mapping[str, np.ndarray]) -> pandas.DataFrame:
    """Columns as a data frame. Raises ConfigError without pandas."""
    return optional("pandas", "sim").DataFrame(dict(columns))


def parquet_bytes(columns: Mapping[str, np.ndarray]) -> bytes:
    """A Parquet file of these columns. Raises ConfigError without pyarrow."""
    arrow, parquet = _arrow()
    sink = arrow.BufferOutputStream()
    parquet.write_table(arrow.table({name: arrow.array(values) for name, values in columns.items()}), sink)
    return bytes(sink.getvalue().to_pybytes())


def read_parameters(path: Path) -> np.ndarray:
    """The sites' parameters [n, P]. Raises ConfigError if the file cannot be read."""
    try:
        return safetensors.numpy.load_file(path)["x"]
    except (OSError, KeyError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"couldn't read {path}: {reason}; simulate again") from error


def read_parquet(path: Path) -> Columns:
    """The columns of a Parquet file. Raises ConfigError if it cannot be read."""
    arrow, parquet = _arrow()
    try:
        table = parquet.read_table(path)
    except (OSError, arrow.ArrowException) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"couldn't read {path}: {reason}; simulate again") from error
    return {name: table.column(name).to_numpy() for name in table.column_names}


def _arrow() -> tuple[Any, Any]:
    return optional("pyarrow", "sim"), optional("pyarrow.parquet", "sim")
