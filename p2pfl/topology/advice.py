"""Which graph for so many peers with at most so many neighbours each: candidates compared, one recommended.

Shares are equal. The gap says how fast sites agree without training, the effective number of neighbours how much they
help each other while they train (effective.py), so the recommendation goes by the latter, among the graphs that
stay connected without any single site.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import combinations
from math import isqrt, lcm
from typing import Any

import networkx as nx
import numpy as np
from scipy import sparse

from p2pfl.errors import ConfigError
from p2pfl.keyed_stream import KeyedStream
from p2pfl.topology.changing import CHANGING, changing_of
from p2pfl.topology.effective import MOST_SITES_OF_CYCLES, effective_neighbours, gap_of_cycle, rounds_to_consensus
from p2pfl.topology.graphs import build_graph, clusters_of
from p2pfl.topology.resilience import absences_that_disconnect
from p2pfl.topology.schedule import Schedule
from p2pfl.types import PeerId

MOST_PEERS = 1000  # the absences of larger graphs take minutes
MOST_PEERS_FOR_PAIRS = 200
REGULAR_SEEDS = 8  # random graphs tried, the best of them is the candidate
ABSENCES = 10_000  # sites x sets of absent sites whose rest is computed; of more sets a fair sample is
ABSENCES_OF_CYCLES = 200_000  # sites^2 x sets: products and their eigenvalues cost more
LEAST_ABSENCES = 20
DIGITS = 9  # that differences by rounding do not reach
NEARLY = 0.99  # of the best effective number of neighbours counts as much, and messages decide
CONSENSUS = 0.01
ALIKE = ("ring", "full", "torus", "hypercube")  # every site sees the same graph: one absent site stands for all
DRAWN = 8  # rounds of a random schedule, taken as a cycle; products of many more are nothing but rounding
Rounds = list[list[Any]]


@dataclass(frozen=True)
class Absences:
    """What so many absent sites do to a graph."""

    sets: int  # of absent sites, all that there are
    disconnecting: int  # of these
    gap: float  # of what is left in the worst case that was computed: 0 if it is disconnected
    worst: tuple[int, ...]  # that case: positions of the absent sites
    computed: int  # sets whose rest was computed, or stands for others that are alike


@dataclass(frozen=True)
class Candidate:
    """A graph and what is known of it."""

    name: str
    spec: Mapping[str, Any]
    degree: int  # most neighbours of a site in one round
    gap: float  # 1 - factor by which disagreement shrinks per round, in the long run
    effective_neighbours: float
    rounds: int  # until disagreement is at most 1 % of what it was, without training
    messages_per_round: float  # models sent by all sites together; the mean over a cycle
    messages: float  # until those 1 %
    one_absent: Absences
    two_absent: Absences | None  # None for more than 200 peers


@dataclass(frozen=True)
class Advice:
    """Candidates, best first; the first one is recommended."""

    peers: int
    degree: int
    gamma: float
    candidates: tuple[Candidate, ...]
    reason: str  # one sentence

    @property
    def recommended(self) -> Candidate:
        """The first of the candidates."""
        return self.candidates[0]

    def as_json(self) -> dict[str, Any]:
        """Everything as plain values."""
        return {**asdict(self), "recommended": dict(self.recommended.spec)}


def advise(peers: int, degree: int, *, gamma: float = 0.95, changing: bool = False) -> Advice:
    """Compare graphs of ``peers`` sites with at most ``degree`` neighbours each and recommend one.

    Candidates: full, hypercube, torus, random regular, hierarchical, ring, star, chain, each where it fits; where
    ``changing``, up to 300 peers, also graphs that are others in each round, with so many neighbours in one round: base
    and epidemic, the latter by 8 drawn rounds. ``gamma``: see ``effective_neighbours``. ConfigError for fewer than 2 or
    more than 1,000 peers, a degree that is not from 1 to peers - 1, or one that connects no graph.
    """
    if not 2 <= peers <= MOST_PEERS:
        raise ConfigError(f"advice is for 2 to {MOST_PEERS} peers, not {peers}; choose such a number")
    if not 1 <= degree < peers:
        raise ConfigError(f"among {peers} peers the most neighbours are 1 to {peers - 1}, not {degree}; choose one")
    if degree == 1 and peers > 2 and not (changing and peers <= MOST_SITES_OF_CYCLES):
        raise ConfigError("with one neighbour each only two peers are connected; allow 2 or more")
    specs = _without_twins(_specs(peers, degree, gamma, changing), peers)
    found = _ranked([_candidate(spec, peers, gamma) for spec in specs])
    return Advice(peers, degree, gamma, tuple(found), _reason(found, peers, degree, gamma))


def _specs(peers: int, degree: int, gamma: float, changing: bool) -> list[dict[str, Any]]:
    specs: list[dict[str, Any]] = []
    if degree == peers - 1:
        specs.append({"kind": "full"})
    if not peers & (peers - 1):
        specs.append({"kind": "hypercube"})
    rows = next((rows for rows in range(isqrt(peers), 1, -1) if peers % rows == 0), None)
    if rows is not None:
        specs.append({"kind": "torus", "rows": rows, "columns": peers // rows})
    most = degree if peers % 2 == 0 or degree % 2 == 0 else degree - 1
    if 3 <= most < peers - 1:
        specs.append(_best_regular(peers, most, gamma))
    if peers <= MOST_SITES_OF_CYCLES:
        sizes = [size for size in range(2, peers // 2 + 1) if peers % size == 0]
        hierarchical = [{"kind": "hierarchical", "clusters": peers // size} for size in reversed(sizes)]
        specs += [spec for spec in hierarchical if _largest_degree(spec, peers) <= degree][:1]
    if changing and degree < peers - 1 and peers <= MOST_SITES_OF_CYCLES:
        specs.append({"kind": "base", "k": degree})
        specs += [{"kind": "epidemic", "degree": most, "seed": 0}] if most else []
    specs += [{"kind": "ring"}, {"kind": "star"}, {"kind": "chain"}]
    return [spec for spec in specs if _largest_degree(spec, peers) <= degree]


def _best_regular(peers: int, degree: int, gamma: float) -> dict[str, Any]:
    seeds = range(REGULAR_SEEDS if peers <= MOST_PEERS_FOR_PAIRS else 1)
    specs = [{"kind": "regular", "degree": degree, "seed": seed} for seed in seeds]
    if len(specs) == 1:
        return specs[0]
    # of graphs that are equally good but for rounding the first, so that every machine gives the same advice
    return max(specs, key=lambda spec: round(effective_neighbours(_left(_rounds(spec, peers)), gamma), DIGITS))


def _candidate(spec: dict[str, Any], peers: int, gamma: float) -> Candidate:
    graph, rounds = _graph(spec, peers), _rounds(spec, peers)
    whole = _left(rounds)
    needed = rounds_to_consensus(whole, CONSENSUS)
    if needed is None:
        raise ConfigError(f"couldn't compare the topology {spec['kind']}: it does not come to consensus")
    sent = float(np.mean([sum(matrix.nnz - np.count_nonzero(matrix.diagonal()) for matrix in one) for one in rounds]))
    return Candidate(
        name=_name(spec),
        spec=spec,
        degree=_largest_degree(spec, peers),
        gap=gap_of_cycle(whole),
        effective_neighbours=effective_neighbours(whole, gamma),
        rounds=needed,
        messages_per_round=sent,
        messages=sent * needed,
        one_absent=_absences(spec, graph, rounds, 1),
        two_absent=_absences(spec, graph, rounds, 2) if peers <= MOST_PEERS_FOR_PAIRS else None,
    )


def _absences(spec: Mapping[str, Any], graph: nx.Graph, rounds: Rounds, size: int) -> Absences:
    peers = len(graph)
    sets = peers if size == 1 else peers * (peers - 1) // 2
    places = {node: place for place, node in enumerate(graph)}
    splitting = absences_that_disconnect(graph, size)
    if splitting:
        worst = tuple(sorted(places[node] for node in splitting[0]))
        return Absences(sets, len(splitting), 0.0, worst, sets)
    if peers - size < 2:
        return Absences(sets, 0, 1.0, tuple(range(size)), sets)  # one site alone, or none, agrees with itself
    if spec["kind"] in ALIKE:
        cases: list[tuple[int, ...]] = [(0,)] if size == 1 else [(0, other) for other in range(1, peers)]
        computed = sets
    else:
        cases = list(combinations(range(peers), size))
        most = max(ABSENCES // peers if len(rounds) == 1 else ABSENCES_OF_CYCLES // peers**2, LEAST_ABSENCES)
        if len(cases) > most:
            drawn = KeyedStream("p2pfl absences", peers, size).permutation(len(cases))[:most]
            cases = [cases[place] for place in np.sort(drawn)]
        computed = len(cases)
    gap, worst = min((round(gap_of_cycle(_left(rounds, case)), DIGITS), case) for case in cases)
    return Absences(sets, 0, max(0.0, gap), worst, computed)


def _left(rounds: Rounds, gone: tuple[int, ...] = ()) -> list[Any]:
    """Each round as one matrix of the sites that are there: an absent neighbour's weight stays with the site itself."""
    left = []
    for mixings in rounds:
        product: Any = None
        for matrix in mixings:
            here = matrix
            if gone:
                kept = np.delete(np.arange(matrix.shape[0]), gone)
                here = matrix[kept][:, kept]
                here = here + sparse.diags_array(1.0 - here.sum(axis=1))
            product = here if product is None else sparse.csr_array(here @ product)
        left.append(sparse.csr_array(product))
    return left


def _rounds(spec: Mapping[str, Any], peers: int) -> Rounds:
    """The mixings of each round, over one cycle; of a random schedule over the first few rounds."""
    nodes, changes = _nodes(peers), changing_of(spec, peers)
    cycle = 1 if changes is None else changes.cycle or DRAWN
    if spec["kind"] == "hierarchical":
        cycle = lcm(*(len(cluster) for cluster in clusters_of(spec, peers)))
    schedule = Schedule(spec, nodes, dict.fromkeys(nodes, 1 / peers), cycle, 0, linked_over=MOST_PEERS)
    return [[mixing.matrix for mixing in schedule.round(t).mixings] for t in range(cycle)]


def _without_twins(specs: list[dict[str, Any]], peers: int) -> list[dict[str, Any]]:
    """Of specs that give one and the same graph the first; those that mix otherwise in each round stay."""
    kept: dict[Any, dict[str, Any]] = {}
    for spec in specs:
        edges = frozenset(frozenset(edge) for edge in _graph(spec, peers).edges)
        kept.setdefault((spec["kind"] if spec["kind"] in ("hierarchical", *CHANGING) else None, edges), spec)
    return list(kept.values())


def _ranked(found: list[Candidate]) -> list[Candidate]:
    """By the effective number of neighbours, those that one absence splits last.

    Of the nearly best ones the cheapest comes first.
    """
    ranked = sorted(found, key=lambda one: (one.one_absent.disconnecting > 0, -round(one.effective_neighbours, DIGITS)))
    enough = NEARLY * ranked[0].effective_neighbours
    splits = ranked[0].one_absent.disconnecting > 0
    rivals = [
        one for one in ranked if one.effective_neighbours >= enough and (one.one_absent.disconnecting > 0) == splits
    ]
    best = min(rivals, key=lambda one: one.messages)
    return [best, *(one for one in ranked if one is not best)]


def _reason(found: list[Candidate], peers: int, degree: int, gamma: float) -> str:
    best = found[0]
    whole = best.one_absent.disconnecting == 0
    among = f"of the graphs with at most {degree} neighbour{'s' if degree > 1 else ''}"
    holds = " that no single absent site splits" if whole else ""
    effective = f"{best.effective_neighbours:.1f} of {peers} at gamma {gamma:g}"
    most = max(one.effective_neighbours for one in found if not (whole and one.one_absent.disconnecting))
    if best.effective_neighbours == most:
        merit = f"it has the most effective neighbours ({effective})"
    else:
        merit = f"its effective neighbours ({effective}) are within 1 % of the most, for fewer messages"
    pairs = best.two_absent
    but = (
        f"; {pairs.disconnecting} of {pairs.sets} pairs of absent sites split it"
        if pairs and pairs.disconnecting
        else ""
    )
    return f"Take {best.name}: {among}{holds}, {merit}{but}."


def _name(spec: Mapping[str, Any]) -> str:
    kind = str(spec["kind"])
    if kind == "torus":
        return f"torus {spec['rows']} x {spec['columns']}"
    if kind == "base":
        return f"base, k {spec['k']}"
    if kind in ("regular", "epidemic"):
        return f"{kind}, degree {spec['degree']}, seed {spec['seed']}"
    return f"hierarchical, {spec['clusters']} clusters" if kind == "hierarchical" else kind


def _largest_degree(spec: Mapping[str, Any], peers: int) -> int:
    if spec["kind"] in CHANGING:
        return max(int(np.diff(matrix.indptr).max()) - 1 for (matrix,) in _rounds(spec, peers))
    return max(int(degree) for _, degree in _graph(spec, peers).degree)


def _graph(spec: Mapping[str, Any], peers: int) -> nx.Graph:
    return build_graph(spec, _nodes(peers))


def _nodes(peers: int) -> list[PeerId]:
    return [PeerId(f"{place:04d}") for place in range(peers)]
