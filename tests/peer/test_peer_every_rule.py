"""Every rule and every topology through four processes over tcp, and the same in memory: the same bits."""

from __future__ import annotations

from pathlib import Path

import pytest
from four_processes import (
    Recorded,
    begin,
    one_thread,  # noqa: F401 a fixture
    processes,
    reports,
    write_plan,
)

from p2pfl.topology import KINDS
from p2pfl.train.rules import RULES

ROUNDS, CLOSING = 5, 3
RULE_CASES = {
    "dpsgd": {},
    "fedprox": {},
    "kgt": {},
    "quasi_global": {},
    "exact_diffusion": {"steps": 1},
    "gradient_tracking": {"steps": 1},
    "relaysgd": {"topology": 'kind = "chain"'},
    "sgp": {"topology": 'kind = "epidemic"\ndegree = 2\nseed = 1\nchoice = "local"'},
    "cyclic": {"topology": 'kind = "cyclic"'},
}
WEIGHTS = {
    "metropolis": '"metropolis"',
    "uniform": '"uniform"',
    "listed": "[[0, 1, 0.25, 0.5], [2, 1, 0.125, 0.25], [3, 1, 0.5, 0.125]]",
}
"""For each choice of weights what the plan of a star around the second site says."""
"""For each rule what its plan says besides."""
TOPOLOGIES = {
    "ring": "",
    "full": "",
    "star": "",
    "chain": "",
    "hypercube": "",
    "hierarchical": "clusters = 2",
    "edges": "edges = [[0, 1], [1, 2], [2, 3], [1, 3]]",
    "torus": "rows = 2\ncolumns = 2",
    "regular": "degree = 3\nseed = 1",
    "erdos_renyi": "probability = 0.6\nseed = 1",
    "small_world": "degree = 2\nprobability = 0.2\nseed = 1",
    "two_clusters": "bridges = 1",
    "tree": "arity = 2",
    "double_tree": "",
    "base": 'k = 1\nweights = "metropolis"',
    "matching": "seed = 1",
    "epidemic": "degree = 2\nseed = 1",
    "exponential": "",
    "exponential in all hops": 'hops = "all"',
    "cyclic": "",
    "hierarchical with a period": "clusters = 2\nperiod = 2",
    "chain with accelerated closing rounds": 'closing = "chebyshev"',
}
"""For each kind of topology the other lines of its table, for four sites."""


def test_no_rule_and_no_topology_is_left_out() -> None:
    assert set(RULE_CASES) == set(RULES)
    assert {kind.partition(" ")[0] for kind in TOPOLOGIES} == set(KINDS)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("what", ["rules", "topologies", "weights"])
async def test_processes_and_memory_end_with_the_same_bits(tmp_path: Path, what: str) -> None:
    """One run after the other in the same four processes."""
    cases = {
        name: {
            "rule": {"exponential": "sgp", "cyclic": "cyclic"}.get(name.partition(" ")[0], "dpsgd"),
            "topology": f'kind = "{name.partition(" ")[0]}"\n{rest}',
        }
        for name, rest in TOPOLOGIES.items()
    }
    if what == "rules":
        cases = {name: {"rule": name, **case} for name, case in RULE_CASES.items()}
    if what == "weights":
        star = 'kind = "edges"\nedges = [[0, 1], [2, 1], [3, 1]]\nweights = '
        cases = {name: {"rule": "kgt", "topology": star + weights} for name, weights in WEIGHTS.items()}
    runs, told = {}, {}
    async with processes(tmp_path) as sites:
        for name, case in cases.items():
            plan = write_plan(tmp_path / name, rounds=ROUNDS, closing=CLOSING, deadline=60.0, **case)
            runs[name] = await begin(sites, plan)
            told[name] = {report["peer"]: report for report in await reports(sites, runs[name])}
    for name, run in runs.items():
        assert all(report["finished"] and report["rounds_done"] == ROUNDS + CLOSING for report in told[name].values())
        assert not any(report["missing"] or report["unsettled"] for report in told[name].values()), name
        world = Recorded.read(sites, run).bottle()
        world.begin()
        world.run()
        digests = {site.peer_id: site.session.digest() for site in world.sites.values()}
        assert digests == {peer: report["digest"] for peer, report in told[name].items()}, f"{name}: not the same bits"
    assert len({report["digest"] for reports in told.values() for report in reports.values()}) > len(cases)
