"""Simulations of whole consortia, with the rules and machines of deployed ones.

`simulate` trains thousands of sites at once with the deployed update rules (docs/simulations.md). `VirtualConsortium`
drives the real protocol machines under a virtual clock, with links, disks, processes and faults made up; tags and
seals of `p2pfl.sim.tags` protect nothing and are for simulations alone. Everything is deterministic. Each name is
loaded when it is first used, since most of them need torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from p2pfl.sim.backends import backend_named
    from p2pfl.sim.checks import check_folder, check_libraries
    from p2pfl.sim.clock import Clock, TooManyEvents
    from p2pfl.sim.compute import ComputeModel
    from p2pfl.sim.faults import (
        ClockSkew,
        Crash,
        Duplicate,
        FailTraining,
        Fault,
        FullDisk,
        Leave,
        Loss,
        OneWayCut,
        Partition,
        Pause,
        Reorder,
        SlowSite,
        UserPause,
    )
    from p2pfl.sim.interrupts import ended_by_sigterm
    from p2pfl.sim.links import LinkModel
    from p2pfl.sim.members import Equivocate, LieAboutEdges, Member, Replay, Withhold
    from p2pfl.sim.report import summary_rows, warnings_of, write_report
    from p2pfl.sim.results import SimResult
    from p2pfl.sim.scenario import MOST_SEEDS, Scenario, read_scenario, read_variation, varied
    from p2pfl.sim.simulation import simulate
    from p2pfl.sim.study import Inputs, holdings_of, prepared, run_cell
    from p2pfl.sim.sweep_folder import load_failed, load_groups, load_waiting
    from p2pfl.sim.sweeps import Cell, cells_of, sweep
    from p2pfl.sim.training import StubTraining
    from p2pfl.sim.triggers import At, InState
    from p2pfl.sim.world import VirtualConsortium

_HOMES = {
    "At": "p2pfl.sim.triggers",
    "Cell": "p2pfl.sim.sweeps",
    "Clock": "p2pfl.sim.clock",
    "ClockSkew": "p2pfl.sim.faults",
    "ComputeModel": "p2pfl.sim.compute",
    "Crash": "p2pfl.sim.faults",
    "Duplicate": "p2pfl.sim.faults",
    "Equivocate": "p2pfl.sim.members",
    "FailTraining": "p2pfl.sim.faults",
    "Fault": "p2pfl.sim.faults",
    "FullDisk": "p2pfl.sim.faults",
    "InState": "p2pfl.sim.triggers",
    "Inputs": "p2pfl.sim.study",
    "Leave": "p2pfl.sim.faults",
    "LieAboutEdges": "p2pfl.sim.members",
    "MOST_SEEDS": "p2pfl.sim.scenario",
    "LinkModel": "p2pfl.sim.links",
    "Loss": "p2pfl.sim.faults",
    "Member": "p2pfl.sim.members",
    "OneWayCut": "p2pfl.sim.faults",
    "Partition": "p2pfl.sim.faults",
    "Pause": "p2pfl.sim.faults",
    "Reorder": "p2pfl.sim.faults",
    "Replay": "p2pfl.sim.members",
    "Scenario": "p2pfl.sim.scenario",
    "SimResult": "p2pfl.sim.results",
    "SlowSite": "p2pfl.sim.faults",
    "StubTraining": "p2pfl.sim.training",
    "TooManyEvents": "p2pfl.sim.clock",
    "UserPause": "p2pfl.sim.faults",
    "VirtualConsortium": "p2pfl.sim.world",
    "Withhold": "p2pfl.sim.members",
    "backend_named": "p2pfl.sim.backends",
    "cells_of": "p2pfl.sim.sweeps",
    "check_folder": "p2pfl.sim.checks",
    "check_libraries": "p2pfl.sim.checks",
    "ended_by_sigterm": "p2pfl.sim.interrupts",
    "holdings_of": "p2pfl.sim.study",
    "load_failed": "p2pfl.sim.sweep_folder",
    "load_groups": "p2pfl.sim.sweep_folder",
    "load_waiting": "p2pfl.sim.sweep_folder",
    "prepared": "p2pfl.sim.study",
    "read_scenario": "p2pfl.sim.scenario",
    "read_variation": "p2pfl.sim.scenario",
    "run_cell": "p2pfl.sim.study",
    "simulate": "p2pfl.sim.simulation",
    "summary_rows": "p2pfl.sim.report",
    "sweep": "p2pfl.sim.sweeps",
    "varied": "p2pfl.sim.scenario",
    "warnings_of": "p2pfl.sim.report",
    "write_report": "p2pfl.sim.report",
}

__all__ = [
    "MOST_SEEDS",
    "At",
    "Cell",
    "Clock",
    "ClockSkew",
    "ComputeModel",
    "Crash",
    "Duplicate",
    "Equivocate",
    "FailTraining",
    "Fault",
    "FullDisk",
    "InState",
    "Inputs",
    "Leave",
    "LieAboutEdges",
    "LinkModel",
    "Loss",
    "Member",
    "OneWayCut",
    "Partition",
    "Pause",
    "Reorder",
    "Replay",
    "Scenario",
    "SimResult",
    "SlowSite",
    "StubTraining",
    "TooManyEvents",
    "UserPause",
    "VirtualConsortium",
    "Withhold",
    "backend_named",
    "cells_of",
    "check_folder",
    "check_libraries",
    "ended_by_sigterm",
    "holdings_of",
    "load_failed",
    "load_groups",
    "load_waiting",
    "prepared",
    "read_scenario",
    "read_variation",
    "run_cell",
    "simulate",
    "summary_rows",
    "sweep",
    "varied",
    "warnings_of",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'p2pfl.sim' has no attribute {name!r}")
