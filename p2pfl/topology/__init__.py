"""Graphs, mixing matrices, schedules over rounds, spectral analysis. Knows no address and no tensor."""

from p2pfl.topology.graphs import KINDS, build_graph, spec_from_graph
from p2pfl.topology.mixing import Mixing, metropolis_hastings, stationary_weights
from p2pfl.topology.resilience import absences_that_disconnect
from p2pfl.topology.schedule import Round, Schedule
from p2pfl.topology.spectral import spectral_gap

__all__ = [
    "KINDS",
    "Mixing",
    "Round",
    "Schedule",
    "absences_that_disconnect",
    "build_graph",
    "metropolis_hastings",
    "spec_from_graph",
    "spectral_gap",
    "stationary_weights",
]
