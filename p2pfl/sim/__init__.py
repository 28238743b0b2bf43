"""Simulations of whole consortia, with the rules and machines of deployed ones.

`simulate` trains thousands of sites at once with the deployed update rules (docs/simulations.md). `VirtualConsortium`
drives the real protocol machines under a virtual clock, with links, disks, processes and faults made up; tags and
seals of `p2pfl.sim.tags` protect nothing and are for simulations alone. Everything is deterministic.
"""

from p2pfl.sim.backends import backend_named
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
from p2pfl.sim.links import LinkModel
from p2pfl.sim.members import Equivocate, LieAboutEdges, Member, Replay, Withhold
from p2pfl.sim.report import summary_rows, warnings_of, write_report
from p2pfl.sim.results import SimResult
from p2pfl.sim.scenario import Scenario, read_scenario, read_variation, varied
from p2pfl.sim.simulate import simulate
from p2pfl.sim.study import Inputs, holdings_of, prepared, run_cell
from p2pfl.sim.sweeps import Cell, cells_of, load_groups, sweep
from p2pfl.sim.training import StubTraining
from p2pfl.sim.triggers import At, InState
from p2pfl.sim.world import VirtualConsortium

__all__ = [
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
    "holdings_of",
    "load_groups",
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
