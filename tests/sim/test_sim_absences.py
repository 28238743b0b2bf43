"""Sites that are away, in seconds and bytes: cases by hand, and machines whose users pause.

Of machines with small contents agreed on: who is away when, the end of every round of every site within 3 %, all bytes
within 10 %; and bytes of content exactly where nobody comes back. What a pause costs besides is in
docs/simulated-time.md.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sim_worlds import blobs, write_plan

from p2pfl.errors import ConfigError
from p2pfl.sim import ComputeModel, LinkModel, simulate, warnings_of
from p2pfl.sim.absences import Absences, Nearest, Span, check_kept, pauses
from p2pfl.sim.recording import record
from p2pfl.sim.timing import RoundTimes, Timing
from p2pfl.topology import Schedule
from p2pfl.types import PeerId

CONTENT = 1000


def schedule_of(topology: Any, sites: int, rounds: int, closing: int = 0) -> Schedule:
    nodes = [PeerId(f"{number:03d}") for number in range(sites)]
    spec = {"kind": topology} if isinstance(topology, str) else topology
    return Schedule(spec, nodes, dict.fromkeys(nodes, 1 / sites), rounds, closing)


def by_hand(rounds: int, *spans: Span) -> list[RoundTimes]:
    """Three sites in a row, 10, 10 and 20 s of work, 1 s of latency, and nothing else takes any time."""
    compute = ComputeModel(seconds=10.0, spread=0.0, factors={2: 2.0}, handling=0.0, commit=0.0)
    schedule, links = schedule_of("chain", 3, rounds), LinkModel(latency=1.0)
    return list(Timing(schedule, links, compute, CONTENT, deadline=1e6, absences=Absences(spans)))


def test_nobody_waits_for_who_is_away_and_it_comes_back_with_its_neighbour() -> None:
    timed = by_hand(5, Span((2,), 1, 3))
    assert [facts.seconds.tolist() for facts in timed] == [
        [11, 21, 20],  # the middle waits for the slow one
        [32, 31, 20],  # it is away: begun at 11 and 21, sent at 21 and 31
        [42, 43, 20],
        [54, 64, 63],  # it is back, and begins at 43 as its neighbour does
        [75, 84, 83],
    ]
    degrees = [[1, 2, 1], [1, 1, 0], [1, 1, 0], [1, 2, 1], [1, 2, 1]]
    assert [(facts.content / CONTENT).tolist() for facts in timed] == degrees
    assert [(facts.announcements > 0).tolist() for facts in timed] == [[bool(d) for d in row] for row in degrees]
    assert [facts.waited.tolist() for facts in timed][1] == [11, 0, 0]
    told = sum(facts.floods for facts in timed)
    assert timed[1].floods[2] == timed[2].floods[2] == 0 < timed[3].floods[2], "heartbeats of the time away come then"
    assert told[2] == pytest.approx(told[0], rel=0.2)


def test_who_comes_back_among_others_begins_with_the_nearest_who_were_there() -> None:
    timed = by_hand(3, Span((1, 2), 1, 2))
    assert [facts.seconds.tolist() for facts in timed] == [[11, 21, 20], [21, 21, 20], [32, 42, 41]]
    assert timed[1].content.tolist() == timed[1].announcements.tolist() == [0, 0, 0], "who is left alone mixes alone"
    schedule = schedule_of("chain", 5, 1)
    assert Nearest(schedule).there(4, {2, 3}) == [1] and Nearest(schedule).there(2, {2}) == [1, 3]
    assert Nearest(schedule).there(0, {0, 1, 2, 3, 4}) == []


def test_a_round_of_nobody_takes_no_time() -> None:
    timed = by_hand(3, Span((0, 1), 1, 2), Span((1, 2), 1, 2))
    assert [facts.seconds.tolist() for facts in timed][:2] == [[11, 21, 20]] * 2
    assert timed[2].seconds.tolist() == by_hand(2)[1].seconds.tolist()


def test_who_is_away_from_the_beginning_or_to_the_end() -> None:
    timed = by_hand(3, Span((2,), 0, 1))
    assert [facts.seconds[2] for facts in timed] == [0, 31, 51], "begins at 11, as the middle does"
    timed = by_hand(3, Span((2,), 1))
    assert [facts.seconds.tolist() for facts in timed] == [[11, 21, 20], [32, 31, 20], [42, 43, 20]]


def test_absences_that_touch_are_one() -> None:
    absences = Absences([Span((1,), 1, 3), Span((1, 2), 3, 4), Span((1,), 2, 5), Span((3,), 6)])
    assert absences.periods(8) == [(2, 3, 4), (1, 1, 5), (3, 6, 8)]
    assert absences.of(3).tolist() == [1, 2] and absences.back(4) == [2] and absences.back(5) == [1]
    assert not Absences() and not len(Absences().of(0))


SPANS = {
    "one": [Span((2,), 3, 6)],
    "two together": [Span((2, 3), 1, 4)],
    "one after the other": [Span((1,), 2, 5), Span((4,), 3, 8)],
    "for good": [Span((2,), 4)],
}


@pytest.mark.parametrize("spans", SPANS)
@pytest.mark.parametrize(
    "topology", ["ring", "full", {"kind": "hierarchical", "clusters": 2}], ids=["ring", "full", "h"]
)
def test_seconds_and_bytes_are_those_of_machines_whose_users_pause(topology: Any, spans: str) -> None:
    """The sites that pause are slower than the others: so nobody still waits when a neighbour says that it pauses."""
    absences, away = Absences(SPANS[spans]), {site for span in SPANS[spans] for site in span.sites}
    links, compute = LinkModel(), ComputeModel(seconds=10.0, factors=dict.fromkeys(away, 1.6))
    faults = pauses(absences, schedule_of(topology, 6, 10, 2))
    recorded = record(
        6, topology=topology, rounds=10, closing_rounds=2, seed=1, content_bytes=100_000, links=links, compute=compute,
        deadline=60.0, faults=faults,
    )  # fmt: skip
    assert len(recorded.world.triggers.struck) == len(faults)
    timed = list(Timing(recorded.schedule, links, compute, 100_000, seed=1, deadline=60.0, absences=absences))
    rounds = recorded.decisions.rounds[:12]
    assert [np.flatnonzero(~facts.active).tolist() for facts in rounds[:10]] == [
        absences.of(t).tolist() for t in range(10)
    ]
    for t, facts in enumerate(rounds):
        mixed = {int(site) for rows in facts.edges for site in rows[rows["round"] == t]["receiver"]}
        assert not mixed & {*absences.of(t).tolist()}, "nobody mixes with who is away"
    np.testing.assert_allclose([f.seconds for f in timed], [f.seconds for f in rounds], rtol=0.03, atol=links.latency)
    sent = sum(facts.bytes.sum() for facts in rounds)
    assert sum(facts.bytes.sum() for facts in timed) == pytest.approx(sent, rel=0.1)
    if spans == "for good":
        np.testing.assert_array_equal(sum(facts.content for facts in timed), recorded.sent["content"])


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_plan(tmp_path_factory.mktemp("plan") / "plan")


AWAY = [{"kind": "absent", "sites": [1, 3], "first": 2, "last": 3}, {"kind": "absent", "sites": 4, "first": 4}]


def test_the_timing_model_changes_nothing_that_is_learnt(plan: Path) -> None:
    values: dict[str, Any] = {"peers": 6, "rounds": 6, "execution": "eager", "faults": AWAY}
    plain, timed = simulate(plan, blobs(), **values), simulate(plan, blobs(), time={"seconds": 30.0}, **values)
    np.testing.assert_array_equal(plain.parameters, timed.parameters)
    rounds = timed.rounds
    assert (np.diff(rounds["seconds"]) > 0).all() and (np.diff(rounds["bytes"]) > 0).all()
    assert np.diff(rounds["bytes"])[2] < np.diff(rounds["bytes"])[1], "fewer are there"
    assert timed.sites["seconds"][4] < 0.8 * np.delete(timed.sites["seconds"], 4).min(), "as it was last"


def test_machines_decide_beside_liars(plan: Path) -> None:
    """The absences are in what was recorded; the lies are not, and count as they do without machines."""
    time = {"clock": "machines", "seconds": 2.0, "profiles": {"slow": 4}}
    values: dict[str, Any] = {"peers": 6, "rounds": 6, "execution": "eager", "time": time}
    away, lie = {"kind": "absent", "sites": 4, "first": 3}, {"kind": "lying", "sites": 0, "size": 1.0}
    one, two = (simulate(plan, blobs(), faults=faults, **values) for faults in ([away], [away, lie]))
    assert one.facts["clock"] == "machines" and 0.9 < one.facts["edges_mixed"] <= 1
    one.facts["edges_mixed"] = 0.5
    assert ["users pause" in said for said in warnings_of({"away": [one]})] == [True], "not the plan's deadline"
    alone = replace(one, facts={**one.facts, "faults": []})
    assert ["raise the plan's deadline" in said for said in warnings_of({"late": [alone]})] == [True]
    alone.facts["time"] = {**alone.facts["time"], "staleness": 2}
    assert ["overtaken" in said for said in warnings_of({"late": [alone]})] == [True], (
        "nobody waits for a deadline there"
    )
    assert one.sites["seconds"].tolist() == two.sites["seconds"].tolist()
    assert not np.array_equal(one.parameters, two.parameters)
    assert one.sites["seconds"][4] < 0.9 * np.delete(one.sites["seconds"], 4).min()


def test_fast_neighbours_that_mix_the_last_message_after_the_word_of_the_pause_keep_to_it(plan: Path) -> None:
    """They do not wait for who has left; else site 3 would come to round 2, and the run be refused."""
    time = {"clock": "machines", "seconds": 5.0}
    result = simulate(plan, blobs(), peers=6, rounds=6, closing_rounds=1, time=time, faults=AWAY)
    assert result.facts["clock"] == "machines" and result.rounds["round"][-1] == 7


def test_machines_that_do_not_keep_to_absences_are_told() -> None:
    """The same run read against other absences than its own."""
    absences, schedule = Absences([Span((2,), 1, 3)]), schedule_of("ring", 4, 5)
    compute = ComputeModel(seconds=10.0, factors={2: 1.6})
    recorded = record(4, rounds=5, closing_rounds=0, compute=compute, faults=pauses(absences, schedule))
    check_kept(absences, recorded.decisions, 5)
    with pytest.raises(ConfigError, match="site 2 took part in round 3"):
        check_kept(Absences([Span((2,), 1, 4)]), recorded.decisions, 5)


@pytest.mark.parametrize(
    ("time", "fault", "wanted"),
    [
        ({}, {"sites": 1, "first": 0}, "begin in round 1 or later"),
        ({"staleness": 2}, {"sites": 1, "first": 1}, "in asynchronous rounds nobody can say"),
        ({}, {"sites": 1.0, "first": 2}, "all sites are absent in round 2"),
        ({}, {"sites": 1.0, "first": 6, "last": 6}, "all sites are absent in round 6"),
    ],
)
def test_what_machines_cannot_be_made_to_do_is_refused(
    plan: Path, time: dict[str, Any], fault: dict[str, Any], wanted: str
) -> None:
    fault = {"kind": "absent", "last": 3} | fault
    with pytest.raises(ConfigError, match=wanted) as refused:
        simulate(plan, blobs(), peers=4, time={"clock": "machines", **time}, faults=[fault])
    assert "\n" not in str(refused.value)
