"""The K local steps of n sites: compiled, traced, eager, or one site after the other; measured on the real plan.

A chunk is so many sites that their parameters, gradients and activations stay in the processor's cache; the more a way
spends on each call, the more. Recording ("traced") takes a second or so, compiling 10 to 30 s, once per number of
steps; on the CPU, vmapped convolutions are grouped convolutions, which are faster than a loop for some sizes and slower
for others. So "auto" tries each way on a chunk and takes the one that needs least time for all the rounds to come.
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
from p2pfl.train.chunk_paths import Chunk, Done, EagerPath, LoopPath, Path
from p2pfl.train.keyed_dropout import has_dropout
from p2pfl.train.layout import Layout
from p2pfl.train.plan_code import Batch, PlanCode
from p2pfl.train.rules import Context, Rule
from p2pfl.train.small_products import KERNEL_SECONDS
from p2pfl.train.threads import dealt, on_threads
from p2pfl.train.traced_paths import CompiledPath, TracedPath, give_back

WAYS = ("compiled", "traced", "eager", "loop")
CHUNK_NUMBERS = 520_000  # parameters and inputs of a chunk: 85 sites of the MLP 64-64-10; up to 128 none is faster, and
# 128 take half as much memory again (a small CNN: 9 in place of 6 times all its parameters at 256 sites)
COMPILED_NUMBERS = 130_000  # what costs less per call may take less at once: 21 sites, the fastest of 16 to 48
DEVICE_NUMBERS = 1 << 25  # on other devices: one call for thousands of small sites, and some GB with what lies between
BLOCK_NUMBERS = 8_000_000  # parameters, and inputs of all steps, of a block: where they are copied, and drawn for
BLOCK_SITES = 512  # at most; for chunks of few sites torch's calls would cost more than the draws
COMPILE_SECONDS = 30.0  # what compiling is expected to take, before it is known
TRACE_SECONDS = 0.5  # what recording is expected to take per local step, and what it saves has to make up for
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
    kernel: bool = True  # whether recorded small products are compiled, where they can be

    def __str__(self) -> str:
        return "; ".join((f"{self.chosen} ({self.why})", *self.fell_back))


class Sites(Protocol):
    """Where chunks come from and go to; rows are int64, sorted, and on the CPU."""

    def quicken(self) -> str | None: ...

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
        kernel: bool = True,
    ) -> None:
        """``way``: "auto" or one of `WAYS`. ``inputs``: numbers in one site's batch. ``deployed``:
        dropout as at deployed sites. ``kernel``: compile small products of a way that is asked for and recorded.

        ConfigError for another way, or a chunk of no sites.
        """
        if way not in (*WAYS, "auto"):
            raise ConfigError(f'execution {way!r} is unknown; choose "auto", {", ".join(map(repr, WAYS))}')
        if chunk is not None and chunk < 1:
            raise ConfigError(f"chunks of {chunk} sites; choose 1 or more, or leave it open")
        self._plan, self._module, self._layout, self._rule = plan, module, layout, rule
        self._way, self._deployed = way, deployed
        self._on_cpu = torch.device(device).type == "cpu"
        self._chunk, self._parameters, self._inputs = chunk, layout.size, inputs
        self._threads = torch.get_num_threads() if self._on_cpu else 1
        self._kernel = kernel
        self._paths: list[Path] = []
        self.execution = Execution("none", "nothing was trained yet", 0, self._threads)

    def run(self, sites: Sites, rows: Tensor, data: Batch, context: Context, rounds: int) -> None:
        """Train these sites; ``rounds`` like this one are to come, with this one. PlanError from the plan's code."""
        if not len(rows):
            return
        if not self._paths:
            trial = _Trial(sites, rows, data, context)
            self._run_all([lambda: self._choose(trial, len(rows) * rounds)])
            if len(self.execution.seconds) > 2:  # ways that are recorded were among them
                give_back()
        size = self.execution.chunk
        most = min(BLOCK_SITES, BLOCK_NUMBERS // (self._parameters + self._inputs * context.steps))
        per_block = max(1, min(most // size, math.ceil(len(rows) / len(self._paths) / size))) * size
        blocks = [rows[start : start + per_block] for start in range(0, len(rows), per_block)]

        def share(path: Path, part: range) -> None:
            for at in part:
                block = sites.take(blocks[at])
                for start in range(0, len(blocks[at]), size):
                    piece = slice(start, start + size)
                    sites.put(blocks[at][piece], path.compute(block.part(piece), data, context))

        parts = zip(self._paths, dealt(len(blocks), len(self._paths)), strict=False)
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
            self._take("loop", "one site after the other draws dropout as deployed sites do", {}, trial)
            return
        if self._way != "auto" and (seconds := self._try(self._way, trial)) is not None:
            self._take(self._way, "asked for", {self._way: seconds}, trial)
            return
        found = {way: self._try(way, trial) for way in ("loop", "eager") if way != self._way}
        measured = {way: seconds for way, seconds in found.items() if seconds is not None}
        if self._way != "auto":
            why = f"{self._way} is not possible"
        elif "eager" not in measured:
            why = "the plan does not run for many sites at once"
        else:
            why = self._faster(trial, site_rounds, measured)
        self._take(min(measured, key=lambda way: measured[way]), why, measured, trial)

    def _faster(self, trial: _Trial, site_rounds: int, measured: dict[str, float]) -> str:
        """Try what costs time to prepare, where enough is to come that it may pay."""
        for way, cost in (("traced", TRACE_SECONDS * trial.context.steps), ("compiled", COMPILE_SECONDS)):
            rest = min(measured.values()) * site_rounds / self._threads
            self._kernel = rest >= KERNEL_SECONDS
            if rest < cost:
                verb = "recording" if way == "traced" else "compiling"
                return f"about {math.ceil(rest)} s in all, and {verb} takes up to {math.ceil(cost)} s"
            if (seconds := self._try(way, trial)) is not None:
                measured[way] = seconds
        return "measured to be the fastest"

    def _take(self, way: str, why: str, seconds: Mapping[str, float], trial: _Trial) -> None:
        size = self._size(way, len(trial.rows))
        self.execution = replace(
            self.execution, chosen=way, why=why, chunk=size, seconds=seconds, kernel=self._kernel
        )  # fmt: skip
        kept = [path for path in self._paths if type(path) is _KINDS[way]]
        count = 1 if way == "loop" else self._threads
        if way in ("compiled", "traced"):
            self._paths = kept * count  # what is recorded serves all threads
            if self._kernel and self._on_cpu and (why_not := trial.sites.quicken()):
                self._say(why_not)
        else:
            self._paths = kept + [self._path(way, size) for _ in range(count - len(kept))]

    def _size(self, way: str, sites: int) -> int:
        numbers = COMPILED_NUMBERS if way == "compiled" else CHUNK_NUMBERS
        if not self._on_cpu and way != "loop":
            numbers = DEVICE_NUMBERS
        return self._chunk or even(sites, self._threads, max(1, numbers // (self._parameters + self._inputs)))

    def _path(self, way: str, size: int) -> Path:
        parts = self._plan, copy.deepcopy(self._module), self._layout, self._rule
        keyed = not self._deployed
        if way == "compiled":
            return CompiledPath(*parts, keyed=keyed, size=size)
        if way == "traced":
            return TracedPath(*parts, keyed=keyed, size=size, kernel=self._kernel)
        return (LoopPath if way == "loop" else EagerPath)(*parts, keyed=keyed)

    def _try(self, way: str, trial: _Trial) -> float | None:
        """Seconds per site and round on one thread; None if it does not work, which is said; the loop raises."""
        size = self._size(way, len(trial.rows))
        path = self._path(way, size)
        try:
            first = trial.seconds(path, size)
            seconds = min(trial.seconds(path, size) for _ in range(TRIALS))
        except Exception as error:
            if way == "loop":
                raise
            reason = " ".join(str(error).split())[:REASON_LIMIT]
            self._say(f"{way} is not possible ({type(error).__name__}: {reason})")
            return None
        for note in path.notes if isinstance(path, TracedPath) else ():
            self._say(note)
        if way == "compiled":
            self.execution = replace(self.execution, compile_seconds=first - seconds)
        self._paths.append(path)
        return seconds / min(size, len(trial.rows))

    def _say(self, what: str) -> None:
        if what not in self.execution.fell_back:
            warnings.warn(f"{what}; a slower way is used", ExecutionWarning, stacklevel=2)
            self.execution = replace(self.execution, fell_back=(*self.execution.fell_back, what))


def await_device(device: torch.device) -> None:
    """Until all that was begun there is done: CUDA's calls return before."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def even(sites: int, threads: int, most: int) -> int:
    """Sites of a chunk: at most ``most``, and such that all threads have as many full chunks."""
    own = math.ceil(sites / threads)
    return math.ceil(own / math.ceil(own / most))


_KINDS = {"compiled": CompiledPath, "traced": TracedPath, "eager": EagerPath, "loop": LoopPath}


@dataclass(frozen=True)
class _Trial:
    """The first chunk, to measure with; its results are thrown away."""

    sites: Sites
    rows: Tensor
    data: Batch
    context: Context

    def seconds(self, path: Path, size: int) -> float:
        """Of one call."""
        chunk = self.sites.take(self.rows[:size])
        await_device(chunk.x.device)  # or taking, which is the same for all ways, would count
        began = time.perf_counter()
        path.compute(chunk, self.data, self.context)
        await_device(chunk.x.device)
        return time.perf_counter() - began
