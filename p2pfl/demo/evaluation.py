"""The demo's evaluator. It stands outside the protocol and sees all patients, as nobody in a consortium does.

Alone is the same plan and number of steps without mixing; pooled is the same optimiser and number of steps
on all training patients in one place. Torch is loaded at the first training or test, not at import.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from p2pfl.demo.hospitals import Hospital, write_csv, write_everybody
from p2pfl.errors import ConfigError, PlanError
from p2pfl.governance import Plan

if TYPE_CHECKING:
    from p2pfl.train.session import Session

EVERYBODY = "everybody"
"""The common test patients: those of all hospitals together."""

TEST_RUN = bytes(32)  # evaluations belong to no run
TEST_KEY = bytes(16)  # nothing is drawn in an evaluation


@dataclass(frozen=True, slots=True)
class Row:
    """One hospital's AUCs; None for a hospital that ended without a model."""

    name: str
    alone: float  # its own model on everybody's test patients
    together: float | None
    alone_home: float  # on its own test patients
    together_home: float | None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What the demo prints at its end."""

    rows: tuple[Row, ...]
    pooled: float  # on everybody's test patients
    pooled_home: Mapping[str, float]  # the pooled model on each hospital's test patients
    matrix: Mapping[str, Mapping[str, float]]  # trained alone at -> tested at -> AUC; with "everybody"

    @property
    def together(self) -> float:
        """Mean over the hospitals that have a model; not-a-number if none has."""
        return _mean([row.together for row in self.rows if row.together is not None])

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


class Evaluator:
    """Trains the two yardsticks and tests models. One session per data set; not thread-safe."""

    def __init__(self, plan: Plan, hospitals: Sequence[Hospital], folder: Path) -> None:
        """Writes the hospitals' files, and everybody's, to ``folder``. ConfigError if it can't."""
        if EVERYBODY in (names := [hospital.name for hospital in hospitals]) or len(set(names)) < len(names):
            raise ConfigError(f"two of the hospitals' names {', '.join(names)} are the same; give each its own")
        self._plan = plan
        self._sessions: dict[str, Session] = {}
        self.names = tuple(names)
        self.files = {hospital.name: folder / f"{hospital.name.lower()}.csv" for hospital in hospitals}
        for hospital in hospitals:
            write_csv(hospital, self.files[hospital.name])
        self.files[EVERYBODY] = folder / f"{EVERYBODY}.csv"
        write_everybody(list(hospitals), self.files[EVERYBODY])

    def train(self, name: str, initial: bytes, key: bytes, rounds: int, *, run: bytes = TEST_RUN) -> bytes:
        """The model file after ``rounds`` of local steps at one hospital, or EVERYBODY, without mixing."""
        session = self._session(name)
        session.begin(initial, run, key, 1.0)
        for round_ in range(rounds):
            session.train(round_, self._plan.settings.training.local_steps)
            session.encode(round_, 0, closing=False)
            session.mix(round_, 0, edges=[], corrections=[], last=True, closing=False)
        return session.result()

    def auc(self, model: bytes, name: str) -> float:
        """The AUC of a model file (safetensors) on the test patients of one hospital, or EVERYBODY.

        PlanError where the plan's metrics have no AUC for them.
        """
        session = self._session(name)
        session.begin(model, TEST_RUN, TEST_KEY, 1.0)
        figures = session.evaluate("test")
        if not math.isfinite(figures.get("auc", math.nan)):
            raise PlanError(f'the plan gives no "auc" on the test patients of {name}; let its metrics() return one')
        return figures["auc"]

    def evaluate(
        self,
        together: Mapping[str, bytes | None],
        initial: bytes,
        key: Callable[[str], bytes],
        *,
        rounds: int | None = None,
        run: bytes = TEST_RUN,
    ) -> Evaluation:
        """All figures. ``together`` has each hospital's model file or None, ``key`` gives sampling keys.

        ``initial`` is the run's file with the initial parameters, ``rounds`` its number of training rounds
        (the plan's, if None).
        """
        count = self._plan.settings.training.rounds if rounds is None else rounds
        sets = (*self.names, EVERYBODY)
        alone = {name: self.train(name, initial, key(name), count, run=run) for name in sets}
        pooled = alone.pop(EVERYBODY)
        matrix = {name: {at: self.auc(model, at) for at in sets} for name, model in alone.items()}
        rows = tuple(self._row(name, together.get(name), matrix[name]) for name in self.names)
        return Evaluation(
            rows=rows,
            pooled=self.auc(pooled, EVERYBODY),
            pooled_home={name: self.auc(pooled, name) for name in self.names},
            matrix=matrix,
        )

    def _row(self, name: str, model: bytes | None, alone: Mapping[str, float]) -> Row:
        return Row(
            name=name,
            alone=alone[EVERYBODY],
            together=None if model is None else self.auc(model, EVERYBODY),
            alone_home=alone[name],
            together_home=None if model is None else self.auc(model, name),
        )

    def _session(self, name: str) -> Session:
        if name not in self._sessions:
            from p2pfl.train.session import Session

            session = Session(self._plan.source, self._plan.session_settings())
            session.load_data(str(self.files[name]))
            self._sessions[name] = session
        return self._sessions[name]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
