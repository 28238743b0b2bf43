"""Round times without machines against those of recorded machines; all of it virtual seconds, so all of it repeats.

Agreed on, up to the first round in which somebody's patience ends, and on that round: the end of every round of every
site within 3 % (and the latency with which a run begins), bytes of content exactly, all bytes within 10 %. Other
tolerances where the test says so.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytest
from sim_worlds import blobs, write_plan

from p2pfl.errors import ConfigError, IllegalStep
from p2pfl.sim import ComputeModel, LinkModel, simulate
from p2pfl.sim.draws import uniform
from p2pfl.sim.recording import Recording, record
from p2pfl.sim.timing import RoundTimes, Timing, _shares
from p2pfl.sim.unequal_steps import with_steps
from p2pfl.sim.uplinks import Uplinks, ends
from p2pfl.sim.vector_setup import own_steps
from p2pfl.topology import Schedule
from p2pfl.types import PeerId

HIERARCHICAL = {"kind": "hierarchical", "clusters": 2}
TOPOLOGIES = ["ring", "full", HIERARCHICAL]
NAMES = ["ring", "full", "hierarchical"]
DEADLINE = 1e6

LONG = ComputeModel(seconds=24.0)
WIDE = """

def model():
    return nn.Sequential(nn.Linear(2, 2000), nn.ReLU(), nn.Linear(2000, 3))
"""
CASES: dict[str, tuple[int, LinkModel, ComputeModel]] = {
    "links without limit": (100_000, LinkModel(), ComputeModel()),
    "equal uplinks": (2_000_000, LinkModel(bandwidth=1.25e6), ComputeModel(seconds=10.0)),
    "one slow uplink": (2_000_000, LinkModel(bandwidth=5e6, uplinks={2: 5e5}), LONG),
    "two slow uplinks": (2_000_000, LinkModel(uplinks={2: 1.25e6, 5: 6e5}), LONG),
    "slow site": (1_000_000, LinkModel(bandwidth=1.25e6), ComputeModel(seconds=5.0, factors={3: 2.5})),
    "long way": (1_000_000, LinkModel(bandwidth=1.25e6, latency=0.3), ComputeModel(seconds=5.0)),
}


def both(
    topology: Any, content: int, links: LinkModel, compute: ComputeModel, sites: int = 6, rounds: int = 10
) -> tuple[Recording, list[RoundTimes]]:
    recorded = record(
        sites, topology=topology, rounds=rounds, closing_rounds=2, seed=1, content_bytes=content, links=links,
        compute=compute, deadline=DEADLINE,
    )  # fmt: skip
    own = with_steps(compute, own_steps(None, recorded.schedule, 1), 1)  # those of a visit, where one model walks
    timed = Timing(recorded.schedule, links, own, content, seed=1, deadline=DEADLINE)
    return recorded, list(timed)


def seconds_of(recorded: Recording, timed: list[RoundTimes]) -> tuple[Any, Any]:
    machines = np.array([facts.seconds for facts in recorded.decisions.rounds[: len(timed)]])
    return machines, np.array([facts.seconds for facts in timed])


def first_missed(recorded: Recording) -> int | None:
    told = [facts["round"] for site in recorded.world.sites for topic, facts in site.told if topic == "missing"]
    return min(told, default=None)


def first_impatient(timed: list[RoundTimes]) -> int | None:
    return next((facts.round for facts in timed if facts.missed), None)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("topology", TOPOLOGIES, ids=NAMES)
def test_seconds_and_bytes_are_those_of_machines(topology: Any, case: str) -> None:
    content, links, compute = CASES[case]
    recorded, timed = both(topology, content, links, compute)
    together = first_missed(recorded)
    assert together == first_impatient(timed)
    assert together in (None, 9), "the rounds before, at least, are compared"
    machines, estimated = seconds_of(recorded, timed)
    np.testing.assert_allclose(estimated[:together], machines[:together], rtol=0.03, atol=links.latency)
    if together is not None:
        return
    np.testing.assert_array_equal(sum(facts.content for facts in timed), recorded.sent["content"])
    sent = sum(facts.bytes for facts in recorded.decisions.rounds[: len(timed)])
    np.testing.assert_allclose(sum(facts.bytes for facts in timed), sent, rtol=0.1)
    said = recorded.sent["announcement"].sum() + recorded.sent["direct"].sum()
    assert sum(facts.announcements.sum() for facts in timed) == pytest.approx(said, rel=0.15)


@pytest.mark.parametrize("case", ["links without limit", "equal uplinks", "one slow uplink"])
@pytest.mark.parametrize(
    "kind",
    [
        *[{"kind": "matching", "seed": 3}, {"kind": "epidemic", "degree": 2, "seed": 3}, {"kind": "exponential"}],
        {"kind": "cyclic"},
        {"kind": "epidemic", "degree": 2, "seed": 3, "choice": "local"},
    ],
    ids=str,
)
def test_graphs_that_change(kind: dict[str, Any], case: str) -> None:
    """Whoever mixes with a site in some round hears of all its rounds, and is waited for."""
    recorded, timed = both(kind, *CASES[case])
    machines, model = seconds_of(recorded, timed)
    np.testing.assert_allclose(model, machines, rtol=0.03, atol=0.05)
    assert sum(row.content.sum() for row in timed) == recorded.sent["content"].sum()
    said = recorded.sent["announcement"].sum() + recorded.sent["direct"].sum()
    assert sum(facts.announcements.sum() for facts in timed) == pytest.approx(said, rel=0.15)


@pytest.mark.parametrize("topology", TOPOLOGIES, ids=NAMES)
def test_rounds_that_overlap_on_the_uplinks(topology: Any) -> None:
    """Uploads take many times the training: neighbours fetch the next round's content beside this one's."""
    recorded, timed = both(topology, 5_000_000, LinkModel(bandwidth=1.25e6), ComputeModel(seconds=1.0))
    machines, estimated = seconds_of(recorded, timed)
    together = first_missed(recorded)
    assert together == first_impatient(timed)
    np.testing.assert_allclose(estimated[:together], machines[:together], rtol=0.03)
    alone = 5_000_000 / 1.25e6
    assert np.diff(estimated[:5], axis=0).mean() > 2 * alone, "or nothing overlapped"


@pytest.mark.parametrize("topology", ["ring", "full"])
def test_the_round_in_which_patience_ends_is_known(topology: Any) -> None:
    """Short work, and one uplink that is ten times slower: from round 5 on machines go on without each other."""
    links = LinkModel(bandwidth=1.25e7, uplinks={2: 1.25e6})
    recorded, timed = both(topology, 5_000_000, links, ComputeModel())
    assert first_missed(recorded) == first_impatient(timed) == 5
    machines, estimated = seconds_of(recorded, timed)
    np.testing.assert_allclose(estimated[:5], machines[:5], rtol=0.01)


@pytest.mark.parametrize("topology", TOPOLOGIES, ids=NAMES)
def test_small_messages_inside_announcements_on_a_narrow_line(topology: Any) -> None:
    """1 Mbit/s and 20 kB: announcements, acknowledgements and heartbeats are half of it, and only estimated: 10 %."""
    recorded, timed = both(topology, 20_000, LinkModel(bandwidth=1.25e5), ComputeModel())
    machines, estimated = seconds_of(recorded, timed)
    np.testing.assert_allclose(estimated, machines, rtol=0.1)
    np.testing.assert_allclose(
        sum(facts.bytes for facts in timed), sum(facts.bytes for facts in recorded.decisions.rounds), rtol=0.1
    )


@pytest.mark.parametrize("topology", TOPOLOGIES, ids=NAMES)
def test_jitter_is_drawn_otherwise_but_alike(topology: Any) -> None:
    links, compute = LinkModel(bandwidth=1.25e6, jitter=0.2), ComputeModel(seconds=5.0, factors={3: 2.5})
    recorded, timed = both(topology, 1_000_000, links, compute)
    machines, estimated = seconds_of(recorded, timed)
    np.testing.assert_allclose(estimated, machines, rtol=0.05)
    calm = Timing(recorded.schedule, LinkModel(bandwidth=1.25e6), compute, 1_000_000, seed=1, deadline=DEADLINE)
    assert timed[-1].seconds.tolist() != list(calm)[-1].seconds.tolist()


def test_groups_share_an_uplink_as_flows_do() -> None:
    """Two flows of 100 bytes at 10 bytes/s, and two more 10 s later: 50 bytes each alone, then all at a quarter."""
    left = ends(np.array([[0.0], [10.0]]), np.array([[2.0], [2.0]]), 100.0, np.array([10.0]))
    np.testing.assert_allclose(left[:, 0], [30.0, 40.0])
    apart = ends(np.array([[0.0], [50.0]]), np.array([[2.0], [1.0]]), 100.0, np.array([10.0]))
    np.testing.assert_allclose(apart[:, 0], [20.0, 60.0])
    never = ends(np.array([[0.0], [np.inf]]), np.array([[2.0], [1.0]]), 100.0, np.array([10.0]))
    assert never[0, 0] == 20.0 and np.isinf(never[1, 0])
    uplinks = Uplinks(np.array([10.0, np.inf]), kept=1)
    one = np.array([1.0, 1.0])
    assert uplinks.leave(5 * one, 2 * one, np.inf * one, one, 100.0, 100.0).tolist() == [25.0, 5.0]
    sizes = np.array([[100.0], [10.0]])
    less = ends(np.array([[0.0], [10.0]]), np.array([[1.0], [1.0]]), sizes, np.array([10.0]))
    np.testing.assert_allclose(less[:, 0], [10.0, 11.0])
    behind = ends(np.array([[0.0], [5.0]]), np.array([[1.0], [1.0]]), sizes, np.array([10.0]))
    assert behind[1, 0] >= behind[0, 0] == 15.0, "a smaller one behind a larger one waits for it"


def test_a_calm_uplink_ends_as_the_closed_form_says() -> None:
    draw = np.random.default_rng(0)
    begins, flows, rates = (
        draw.uniform(0, 5, (3, 50)).cumsum(axis=0),
        draw.integers(1, 5, (3, 50)),
        draw.uniform(5, 9, 50),
    )
    left = ends(begins, flows.astype(float), 30.0, rates)
    assert (np.diff(left, axis=0) >= 0).all(), "equal flows end in the order they began in"
    busy = np.maximum.accumulate(begins + 0 * left, axis=0)
    last = begins[0]
    for group in range(3):  # a processor that shares fairly does as much work as one that does one after the other
        last = np.maximum(busy[group], last) + flows[group] * 30.0 / rates
    np.testing.assert_allclose(left[-1], last)


def test_work_is_keyed_as_at_the_machines() -> None:
    assert _shares(7, 20, 3).tolist() == [uniform(7, "training time", site, 3) for site in range(20)]


def test_thousands_of_sites() -> None:
    """Every site of a regular graph waits for its slowest neighbour, so the run drifts towards the slowest of all."""
    sites = 2_000
    nodes = [PeerId(f"site {number:04d}") for number in range(sites)]
    edges = [list(edge) for edge in nx.random_regular_graph(8, sites, seed=1).edges]
    schedule = Schedule({"kind": "edges", "edges": edges}, nodes, dict.fromkeys(nodes, 1 / sites), 20, 0)
    links, compute = LinkModel(bandwidth=1.25e6), ComputeModel(seconds=10.0, spread=0.1)
    with pytest.raises(ConfigError, match="heartbeats = false"):
        Timing(schedule, links, compute, 100_000)
    timed = list(Timing(schedule, links, compute, 100_000, heartbeats=False, deadline=600.0))
    upload = 8 * 100_000 / 1.25e6
    lasted = np.diff([facts.seconds for facts in timed], axis=0)
    assert (lasted.mean(axis=0) > 10.0 + upload).all() and (lasted.mean(axis=0) < 11.0 + 2 * upload).all()
    assert all((facts.content == 800_000).all() and facts.missed == 0 for facts in timed)
    assert all((facts.waited >= 0).all() and facts.waited.max() >= upload for facts in timed)


def test_what_only_machines_can_say_is_refused() -> None:
    nodes = [PeerId(name) for name in "abcd"]
    schedule = Schedule({"kind": "ring"}, nodes, dict.fromkeys(nodes, 0.25), 1, 0)
    for links in (LinkModel(loss=0.1), LinkModel(reorder=0.1), LinkModel(duplicate=0.1)):
        with pytest.raises(ConfigError, match="record the run"):
            Timing(schedule, links, ComputeModel(), 1000)
    timing = Timing(schedule, LinkModel(), ComputeModel(), 1000)
    timing.step()
    with pytest.raises(IllegalStep):
        timing.step()


CLOSING: dict[str, tuple[int, int]] = {"pulled": (2_000_000, 1_000_000), "closing inside": (200_000, 20_000)}


@pytest.mark.parametrize("content", list(CLOSING.values()), ids=list(CLOSING))
def test_closing_rounds_of_several_channels_send_the_model_alone(content: tuple[int, int]) -> None:
    """As the sizes say, per edge; at machines what slower neighbours fetch after the last round is told apart."""
    training, closing = content
    links, compute = LinkModel(bandwidth=1.25e6), ComputeModel(seconds=5.0)
    recorded = record(
        6, rounds=4, closing_rounds=3, seed=1, content_bytes=training, closing_bytes=closing, links=links,
        compute=compute, deadline=DEADLINE,
    )  # fmt: skip
    timed = list(Timing(recorded.schedule, links, compute, training, seed=1, deadline=DEADLINE, closing_bytes=closing))
    assert [facts.content.tolist() for facts in timed] == [[2.0 * training] * 6] * 4 + [[2.0 * closing] * 6] * 3
    assert recorded.sent["content"].tolist() == [2.0 * (4 * training + 3 * closing)] * 6
    assert (recorded.late >= 0).all() and (recorded.late <= recorded.after).all() and recorded.late.sum() % closing == 0
    machines, estimated = seconds_of(recorded, timed)
    np.testing.assert_allclose(estimated[:4], machines[:4], rtol=0.03)
    np.testing.assert_allclose(estimated, machines, rtol=0.03)


def test_all_that_is_fetched_is_in_the_bytes_of_a_simulation(tmp_path: Path) -> None:
    """Also what slower neighbours fetch when a site has ended its last round; closing rounds of K-GT send one channel."""
    plan = write_plan(tmp_path / "plan")
    (plan / "plan.py").write_text((plan / "plan.py").read_text() + WIDE)
    found = {}
    for rule in ("dpsgd", "kgt"):
        for clock in ("model", "machines"):
            result = simulate(
                plan, blobs(), peers=4, rounds=4, closing_rounds=3, topology="ring", rule=rule, execution="loop",
                time={"clock": clock, "seconds": 5.0, "bandwidth": 1e6}, evaluate={"sites": "none", "every": 100},
                training={"dtype": "float64"},
            )  # fmt: skip
            found[rule, clock] = np.diff(result.frame["bytes"].to_numpy())
            parameters = result.facts["parameters"]
    for rule in ("dpsgd", "kgt"):
        np.testing.assert_allclose(found[rule, "model"].sum(), found[rule, "machines"].sum(), rtol=0.03)
    more = found["kgt", "model"] - found["dpsgd", "model"]
    np.testing.assert_allclose(more[:4], 4 * 2 * parameters * 8, rtol=0.01)
    np.testing.assert_allclose(more[4:], 0.0, atol=1e-3 * more[0])
