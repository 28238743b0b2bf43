"""The K local steps of n sites: compiled, eager, or one site after the other; which is measured on the real plan.

A chunk is so many sites that their parameters, gradients and activations stay in the processor's cache. Compiling
takes 10 to 30 s once per number of steps; on the CPU, vmapped convolutions are grouped convolutions, which are no
faster than a loop. So "auto" tries each way on a chunk and takes the one that needs least time for all the rounds
that are to come.
"""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn

from p2pfl.errors import ConfigError
from p2pfl.train.chunk_paths import Chunk, CompiledPath, Done, EagerPath, LoopPath, Path
from p2pfl.train.keyed_dropout import has_dropout
from p2pfl.train.layout import Layout
from p2pfl.train.plan_code import Batch, PlanCode
from p2pfl.train.rules import Context, Rule
from p2pfl.train.threads import dealt, on_threads

WAYS = ("compiled", "eager", "loop")
CHUNK_NUMBERS = 780_000  # parameters and inputs of a chunk: 128 sites of the MLP 64-64-10, the fastest of 64 to 1,000
COMPILE_SECONDS = 30.0  # what compiling is expected to take, before it is known
TRIALS = 2  # measured calls per way, after one that warms up; the faster one counts
REASON_LIMIT = 200  # characters of an error that are passed on


class ExecutionWarning(UserWarning):
    """A way of execution is not possible, and a slower one is used."""


@dataclass(frozen=True)
class Execution:
    """How the local steps are computed, and why."""

    chosen: str
    why: str
    chunk: int
    threads: int
    seconds: Mapping[str, float] = field(default_factory=dict)  # per site and round on one thread, as measured
    compile_seconds: float = 0.0
    fell_back: tuple[str, ...] = ()  # what is not possible, in words

    def __str__(self) -> str:
        return "; ".join((f"{self.chosen} ({self.why})", *self.fell_back))


class Sites(Protocol):
    """Where chunks come from and go to; rows are int64, sorted."""

    def take(self, rows: Tensor) -> Chunk: ...

    def put(self, rows: Tensor, done: Done) -> None: ...


class LocalPhase:
    """The rule's local steps on chunks of sites, chunks spread over the threads that torch may use."""

    def __init__(
        self,
        plan: PlanCode,
        module: nn.Module,
        layout: Layout,
        rule: Rule,
        *,
        way: str = "auto",
        chunk: int | None = None,
        inputs: int = 0,
        device: str | torch.device = "cpu",
        deployed: bool = False,
    ) -> None:
        """``way``: "auto", "compiled", "eager" or "loop". ``inputs``: numbers in one site's batch. ``deployed``:
        dropout as at deployed sites.

        ConfigError for another way, or a chunk of no sites.
        """
        if way not in (*WAYS, "auto"):
            raise ConfigError(f'execution {way!r} is unknown; choose "auto", {", ".join(map(repr, WAYS))}')
        if chunk is not None and chunk < 1:
            raise ConfigError(f"chunks of {chunk} sites; choose 1 or more, or leave it open")
        self._plan, self._module, self._layout, self._rule = plan, module, layout, rule
        self._way, self._deployed = way, deployed
        self._on_cpu = torch.device(device).type == "cpu"
        self._size = chunk or max(1, CHUNK_NUMBERS // (layout.size + inputs))
        self._threads = torch.get_num_threads() if self._on_cpu else 1
        self._paths: list[Path] = []
        self.execution = Execution("none", "nothing was trained yet", self._size, self._threads)

    def run(self, sites: Sites, rows: Tensor, data: Batch, context: Context, rounds: int) -> None:
        """Train these sites; ``rounds`` like this one are to come, with this one. PlanError from the plan's code."""
        if not len(rows):
            return
        chunks = [rows[start : start + self._size] for start in range(0, len(rows), self._size)]
        if not self._paths:
            trial = _Trial(sites.take(chunks[0]), data, context)
            self._run_all([lambda: self._choose(trial, len(rows) * rounds)])

        def share(path: Path, part: range) -> None:
            for at in part:
                sites.put(chunks[at], path.compute(sites.take(chunks[at]), data, context))

        parts = zip(self._paths, dealt(len(chunks), len(self._paths)), strict=False)
        self._run_all([partial(share, path, part) for path, part in parts])

    def _run_all(self, jobs: Sequence[Callable[[], None]]) -> None:
        if self._on_cpu:
            on_threads(jobs)
        else:
            for job in jobs:
                job()

    # --- which way

    def _choose(self, trial: _Trial, site_rounds: int) -> None:
        """Measure the possible ways and take one."""
        if self._deployed and has_dropout(self._module):
            self._take("loop", "one site after the other draws dropout as deployed sites do", {})
            return
        if self._way != "auto" and (seconds := self._try(self._way, trial)) is not None:
            self._take(self._way, "asked for", {self._way: seconds})
            return
        found = {way: self._try(way, trial) for way in ("loop", "eager") if way != self._way}
        measured = {way: seconds for way, seconds in found.items() if seconds is not None}
        best = min(measured, key=lambda way: measured[way])
        rest = measured[best] * site_rounds / self._threads
        if self._way != "auto":
            why = f"{self._way} is not possible"
        elif "eager" not in measured:
            why = "the plan does not run for many sites at once"
        elif rest < COMPILE_SECONDS:
            why = f"about {math.ceil(rest)} s in all, and compiling takes up to {COMPILE_SECONDS:.0f} s"
        else:
            why = "measured to be the fastest"
            if (compiled := self._try("compiled", trial)) is not None:
                measured["compiled"] = compiled
            best = min(measured, key=lambda way: measured[way])
        self._take(best, why, measured)

    def _take(self, way: str, why: str, seconds: Mapping[str, float]) -> None:
        self.execution = replace(self.execution, chosen=way, why=why, seconds=seconds)
        kept = [path for path in self._paths if isinstance(path, _KINDS[way])]
        count = 1 if way == "loop" else self._threads
        if way == "compiled":
            self._paths = kept * count  # what is compiled serves all threads
        else:
            self._paths = kept + [self._path(way) for _ in range(count - len(kept))]

    def _path(self, way: str) -> Path:
        parts = self._plan, copy.deepcopy(self._module), self._layout, self._rule
        if way == "compiled":
            return CompiledPath(*parts, keyed=not self._deployed, size=self._size)
        kind = LoopPath if way == "loop" else EagerPath
        return kind(*parts, keyed=not self._deployed)

    def _try(self, way: str, trial: _Trial) -> float | None:
        """Seconds per site and round on one thread; None if it does not work, which is said; the loop raises."""
        path = self._path(way)
        try:
            first = trial.seconds(path)
            seconds = min(trial.seconds(path) for _ in range(TRIALS))
        except Exception as error:
            if way == "loop":
                raise
            reason = " ".join(str(error).split())[:REASON_LIMIT]
            said = f"{way} is not possible ({type(error).__name__}: {reason})"
            warnings.warn(f"{said}; a slower way is used", ExecutionWarning, stacklevel=2)
            self.execution = replace(self.execution, fell_back=(*self.execution.fell_back, said))
            return None
        if way == "compiled":
            self.execution = replace(self.execution, compile_seconds=first - seconds)
        self._paths.append(path)
        return seconds / len(trial.chunk.x)


_KINDS = {"compiled": CompiledPath, "eager": EagerPath, "loop": LoopPath}


@dataclass(frozen=True)
class _Trial:
    """A chunk to measure with; its results are thrown away."""

    chunk: Chunk
    data: Batch
    context: Context

    def seconds(self, path: Path) -> float:
        """Of one call."""
        began = time.perf_counter()
        path.compute(self.chunk, self.data, self.context)
        if self.chunk.x.device.type == "cuda":
            torch.cuda.synchronize(self.chunk.x.device)
        return time.perf_counter() - began
