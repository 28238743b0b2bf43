"""What only the engine, the timing and the disk would refuse: asked before the first of many runs begins."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from p2pfl.errors import ConfigError
from p2pfl.extras import optional
from p2pfl.sim.vector_setup import check_run

if TYPE_CHECKING:
    from p2pfl.sim.preparing import Simulation


def check_simulation(simulation: Simulation) -> None:
    """Whether engine and timing take the run. Raises ConfigError or PlanError."""
    # both read checked simulations, which are made by who asks here
    from p2pfl.sim.conduct import vector_fault
    from p2pfl.sim.pace import check_pace

    settings, schedule = simulation.settings, simulation.schedule
    faults = [vector_fault(fault, simulation, place) for place, fault in enumerate(simulation.faults)]
    recorded = simulation.time is not None and simulation.time.clock == "machines"
    most = int(simulation.each.max())
    check_run(settings, simulation.layout, schedule, None, faults, most=most, recorded=recorded)
    check_pace(simulation)


def check_libraries() -> None:
    """The libraries that write results. Raises ConfigError where one is missing."""
    for name in ("pyarrow", "pyarrow.parquet", "matplotlib", "matplotlib.figure"):
        optional(name, "sim")


def check_folder(folder: Path) -> None:
    """Whether results can be written into a folder that may not be there yet; makes nothing. Raises ConfigError."""
    try:
        folder.stat()
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:  # a name too long, a file among its parents, a NUL
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"{str(folder)[:200]} cannot hold results: {reason}; give another folder") from error
    above = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not os.access(above, os.W_OK | os.X_OK):
        raise ConfigError(f"{folder} cannot hold results: nothing may be written in {above}; give another folder")
