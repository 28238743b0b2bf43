"""Where the cells of a sweep run: here, one after the other, or spread over a Ray cluster. The numbers are the same.

A Ray worker gets a cell as plain values, the plan's bytes and the arrays of the examples, and answers with the files of
a result; it reads no file of ours, so the machines of a cluster need the package alone.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from p2pfl.errors import ConfigError, DataError, LocalError, P2PFLError, PlanError
from p2pfl.extras import optional
from p2pfl.sim.checkpoints import Checkpoints
from p2pfl.sim.ray_address import check_listening
from p2pfl.sim.results import SimResult, write_files
from p2pfl.sim.scenario import check_scenario
from p2pfl.sim.study import Inputs, run_cell
from p2pfl.sim.sweeps import Backend, Cell, Watch

RAY_ADDRESS = "P2PFL_RAY_ADDRESS"
FAILURES = (ConfigError, DataError, PlanError)  # of one run; the others go on
Outcome = SimResult | P2PFLError

WAIT_SECONDS = 1.0  # between looks at the cluster, so that Ctrl-C is heard


class Here:
    """One cell after the other, in this process."""

    goes_on = True

    def __init__(self, inputs: Inputs) -> None:
        self._inputs = inputs

    def run(
        self, cells: Sequence[Cell], watch: Watch | None, checkpoints: Callable[[Cell], Checkpoints] | None = None
    ) -> Iterator[tuple[Cell, Outcome]]:
        """Run the cells in order; an interrupted one is the last."""
        for done, cell in enumerate(cells):
            if watch is not None:
                watch.cell(cell, done, len(cells))
            try:
                result = run_cell(cell, self._inputs, watch, checkpoints(cell) if checkpoints is not None else None)
            except FAILURES as error:
                yield cell, error
                continue
            yield cell, result
            if result.interrupted:
                return


class OnRay:
    """Each cell is one task of a Ray cluster.

    ``address``: of a running cluster ("auto", "ray://host:10001"); None starts one here with ``workers`` processes,
    which listens on this machine alone and ends with the sweep. ``threads``: of each task; as many as here if None, so
    that sums are made in the same order. Machines of a cluster have no disk in common: no checkpoints.
    """

    goes_on = False

    def __init__(
        self, inputs: Inputs, *, address: str | None = None, workers: int = 2, threads: int | None = None
    ) -> None:
        self._inputs, self._address, self._workers = inputs, address, workers
        self._threads = threads or torch.get_num_threads()

    def run(
        self, cells: Sequence[Cell], watch: Watch | None, checkpoints: Callable[[Cell], Checkpoints] | None = None
    ) -> Iterator[tuple[Cell, Outcome]]:
        """Run the cells, each as soon as there is a free place; they come back in the order in which they end."""
        ray = _ray()
        started = self._start(ray)
        try:
            check_room(ray.nodes(), self._threads)
            task = ray.remote(num_cpus=self._threads, max_retries=2)(_run_remotely)
            shipped: dict[str, Any] = {}
            waiting: dict[Any, Cell] = {}
            for cell in cells:
                if cell.inputs not in shipped:
                    shipped[cell.inputs] = ray.put(self._inputs.shipped(cell.scenario))
                reference = task.remote(_plain(cell), shipped[cell.inputs], self._threads)
                waiting[reference] = cell
            yield from self._collect(ray, waiting, watch)
        except KeyboardInterrupt:
            return  # what has ended is stored; what runs is given up with the cluster's tasks
        finally:
            if started:
                ray.shutdown()

    def _start(self, ray: Any) -> bool:
        """Whether this call began a cluster of its own."""
        if ray.is_initialized():
            return False
        # a cluster of our own reports nothing to anybody (docs.ray.io, "Usage Stats Collection")
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        try:
            if self._address is not None:
                ray.init(address=self._address, log_to_driver=False)
            else:
                ray.init(
                    address="local",  # else a cluster that was begun here once, and may be dead, is taken for it
                    num_cpus=self._workers * self._threads, include_dashboard=False, log_to_driver=False,
                    _node_ip_address="127.0.0.1",
                )  # fmt: skip
        except (ConnectionError, OSError, RuntimeError, ValueError) as error:
            raise LocalError(f"no Ray cluster at {self._address or 'this machine'} ({error}); check --ray") from error
        return True

    def _collect(self, ray: Any, waiting: dict[Any, Cell], watch: Watch | None) -> Iterator[tuple[Cell, Outcome]]:
        cells = len(waiting)
        while waiting:
            ended, _ = ray.wait(list(waiting), num_returns=1, timeout=WAIT_SECONDS)
            for reference in ended:
                cell = waiting.pop(reference)
                if watch is not None:
                    watch.cell(cell, cells - len(waiting) - 1, cells)
                yield cell, _result(ray, reference, cell)


def check_room(nodes: Sequence[Mapping[str, Any]], threads: int) -> None:
    """LocalError if no machine of the cluster has as many cores as a task wants: Ray would wait for one for ever."""
    most = max((float(node["Resources"].get("CPU", 0.0)) for node in nodes if node["Alive"]), default=0.0)
    if most < threads:
        raise LocalError(
            f"each run takes {threads} threads, as here, but no machine of the Ray cluster offers more than {most:g} "
            "cores; set OMP_NUM_THREADS to that many or fewer, or begin the machines with more --num-cpus"
        )


def backend_named(name: str, inputs: Inputs, *, address: str | None, workers: int = 2) -> Backend:
    """The backend with this name. Raises ConfigError for an unknown one, LocalError where no cluster answers."""
    if name == "here":
        return Here(inputs)
    if name == "ray":
        ray, address = _ray(), address or os.environ.get(RAY_ADDRESS)
        if address is not None and not ray.is_initialized():
            check_listening(address)
        return OnRay(inputs, address=address, workers=workers)
    raise ConfigError(f"unknown backend {name[:40]!r}; choose here or ray")


def _ray() -> Any:
    return optional("ray", "ray")


def _plain(cell: Cell) -> dict[str, Any]:
    return {
        "setting": cell.setting, "changes": dict(cell.changes), "scenario": cell.scenario.model_dump(),
        "seed": cell.seed, "inputs": cell.inputs,
    }  # fmt: skip


def _run_remotely(plain: dict[str, Any], shipped: Any, threads: int) -> dict[str, bytes]:
    """In a worker: the cell's result as files."""
    torch.set_num_threads(threads)
    scenario = check_scenario(plain["scenario"], "a scenario")
    cell = Cell(plain["setting"], plain["changes"], scenario, plain["seed"], plain["inputs"])
    return run_cell(cell, Inputs.of_shipped(scenario, shipped), None).files()


def _result(ray: Any, reference: Any, cell: Cell) -> Outcome:
    try:
        files = ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, FAILURES):
            return cause
        if isinstance(cause, P2PFLError):
            raise cause from error
        raise LocalError(f"{cell.setting}, seed {cell.seed}, failed on the cluster: {cause or error}") from error
    except ray.exceptions.RayError as error:
        raise LocalError(f"{cell.setting}, seed {cell.seed}, was lost by the cluster: {error}; --resume") from error
    with tempfile.TemporaryDirectory() as folder:
        return SimResult.load(write_files(files, Path(folder)))
