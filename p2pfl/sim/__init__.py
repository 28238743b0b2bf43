"""Simulations: the real protocol machines under a virtual clock, with links, disks, processes and faults made up.

Everything is deterministic: the same arguments give the same run, byte for byte. Tags and seals of `p2pfl.sim.tags`
protect nothing and are for simulations alone.
"""

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
from p2pfl.sim.training import StubTraining
from p2pfl.sim.triggers import At, InState
from p2pfl.sim.world import VirtualConsortium

__all__ = [
    "At",
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
    "SlowSite",
    "StubTraining",
    "TooManyEvents",
    "UserPause",
    "VirtualConsortium",
    "Withhold",
]
