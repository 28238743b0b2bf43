"""Who mixes with whom, and with which weight: graphs, mixing matrices, schedules over rounds, spectral facts.

Everything here is a pure function of the topology's spec, the order of the sites, their sample shares and the
round number, so all peers compute the same numbers from the start record alone. No addresses, no tensors.
The page with the equations is docs/topology.md.
"""

from __future__ import annotations

from p2pfl.topology.advice import Absences, Advice, Candidate, advise
from p2pfl.topology.chebyshev import chebyshev_factors, chebyshev_weights
from p2pfl.topology.effective import effective_neighbours, gap_of_cycle, rounds_to_consensus
from p2pfl.topology.files import graph_from_text, is_graph_file, sites_in_file, spec_from_text
from p2pfl.topology.finite import finite_time
from p2pfl.topology.graphs import KINDS, build_graph, check_spec, spec_from_graph
from p2pfl.topology.mixing import Mixing, metropolis_hastings, stationary_weights, uniform_weights
from p2pfl.topology.plotting import graph_figure, graph_layout
from p2pfl.topology.resilience import absences_that_disconnect
from p2pfl.topology.schedule import Round, Schedule
from p2pfl.topology.spectral import closing_rounds_for, spectral_gap
from p2pfl.topology.speed import Speed, speed_of

__all__ = [
    "KINDS",
    "Absences",
    "Advice",
    "Candidate",
    "Mixing",
    "Round",
    "Schedule",
    "Speed",
    "absences_that_disconnect",
    "advise",
    "build_graph",
    "chebyshev_factors",
    "chebyshev_weights",
    "check_spec",
    "closing_rounds_for",
    "effective_neighbours",
    "finite_time",
    "gap_of_cycle",
    "graph_figure",
    "graph_from_text",
    "graph_layout",
    "is_graph_file",
    "metropolis_hastings",
    "rounds_to_consensus",
    "sites_in_file",
    "spec_from_graph",
    "spec_from_text",
    "spectral_gap",
    "speed_of",
    "stationary_weights",
    "uniform_weights",
]
