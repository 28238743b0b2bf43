"""SIGKILL at any moment: the log holds, the others finish, and the one that comes back contradicts nothing it said.

Moments are chosen by what stands in the log, never by time: as soon as the n-th entry of a kind is there.
"""

from __future__ import annotations

import contextlib
import random
import signal
import sqlite3
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hospitals import (
    Hospital,
    all_up,
    found_quickly,
    free_port,
    orphans,
    until,
    verified,
    write_plan,
)

from p2pfl.errors import ConfigError, P2PFLError
from p2pfl.gossip.closing_statement import open_closing

NAMES = ("lille", "caen", "rouen", "amiens")
ROUNDS = 100  # the others are still at work when the killed one is back
QUICK = 0.002  # seconds between two looks; a round takes some 20 to 200 ms
pytestmark = pytest.mark.timeout(240)


def drawn(seed: int, count: int) -> list[tuple[str, str, int]]:
    """Moments drawn at random, the same in every session."""
    draw = random.Random(seed)
    kinds = ["round_started", "delta_sent", "delta_received", "mixed", "acknowledged"]
    return [(draw.choice(NAMES), draw.choice(kinds), draw.randint(1, 60)) for _ in range(count)]


def slow(moments: list[tuple[str, str, int]]) -> list[object]:
    return [pytest.param(*moment, marks=pytest.mark.slow) for moment in moments]


@pytest.fixture
def hospitals(tmp_path: Path) -> Iterator[list[Hospital]]:
    made = [
        Hospital(tmp_path, name, f"/ip4/127.0.0.1/tcp/{free_port()}" if number % 2 == 0 else None)
        for number, name in enumerate(NAMES)
    ]
    found_quickly(tmp_path, made)
    with all_up(made):
        yield made


def by_name(hospitals: list[Hospital], name: str) -> tuple[Hospital, list[Hospital]]:
    """The victim and the others."""
    victim = hospitals[NAMES.index(name)]
    return victim, [hospital for hospital in hospitals if hospital is not victim]


def kill_at(victim: Hospital, kind: str, number: int) -> None:
    """SIGKILL as soon as the n-th entry of a kind is in the log."""
    connection = sqlite3.connect(f"file:{victim.home / 'audit.db'}?mode=ro", uri=True)
    end = time.monotonic() + 90
    with contextlib.closing(connection):
        while connection.execute("SELECT count(*) FROM entries WHERE kind = ?", (kind,)).fetchone()[0] < number:
            assert time.monotonic() < end and victim.running(), victim.last_words()
            time.sleep(QUICK)
    victim.kill()
    verified(victim)


def start_again(victim: Hospital) -> None:
    lives = len(victim.said("up"))
    victim.up()
    until(lambda: len(victim.said("up")) > lives or not victim.running(), 60, victim.last_words)
    assert victim.running(), victim.last_words()


def agreed(hospital: Hospital, run: str) -> None:
    """Approve as soon as the proposal is known; says whether this was the first time."""
    until(lambda: any(row["run"] == run for row in hospital.ask("list")), 30, hospital.last_words)
    hospital.ask("approve", run=run)


def begin(hospitals: list[Hospital], plan: Path, pool: ThreadPoolExecutor) -> str:
    """Caen, which has no port, proposes; the others approve in the background, one of them perhaps killed."""
    run = str(hospitals[1].ask("propose", plan=str(plan), seed=1)["run"])
    for hospital in (hospitals[0], hospitals[2], hospitals[3]):
        pool.submit(agreed, hospital, run)
    return run


def one_core_for_each_place(victim: Hospital, others: list[Hospital]) -> None:
    """Over the victim's own log and all that reached the others: never a second core, none that was not logged."""
    sent = defaultdict(set)
    for entry in victim.entries("delta_sent"):
        body = entry.body
        sent[body["run"], body["round"], body["step"], body["channel"]].add(body["core"])
    assert all(len(cores) == 1 for cores in sent.values())
    for other in others:
        for entry in other.entries("delta_received"):
            body = entry.body
            if body["peer"] == victim.peer_id:
                place = body["run"], body["round"], body["step"], body["channel"]
                assert sent[place] == {body["core"]}


def all_is_well(hospitals: list[Hospital]) -> None:
    """Every log holds, nobody accused anybody, and nothing is left of the run but its results."""
    for hospital in hospitals:
        verified(hospital)
        assert hospital.entries("equivocation") == []
        assert [entry.body["reason"] for entry in hospital.entries("refused")] == []
        assert "Traceback" not in hospital.log_file.read_text()


def is_over(hospital: Hospital) -> bool:
    """The run is complete here: all statements are in, and the outbox is empty."""
    return bool(list(hospital.home.glob("runs/*/over"))) and not list((hospital.home / "outbox").iterdir())


DURING = [
    *slow(
        [
            ("amiens", "delta_sent", 7),
            ("lille", "run_started", 1),
            ("rouen", "round_started", 1),
            ("caen", "mixed", ROUNDS + 1),
        ]
    ),
    *slow(drawn(seed=2, count=5)),
]


@pytest.mark.parametrize(("name", "kind", "number"), DURING)
def test_killed_during_the_run(hospitals: list[Hospital], tmp_path: Path, name: str, kind: str, number: int) -> None:
    plan = write_plan(tmp_path / "plan", rounds=ROUNDS, deadline=4.0, local_steps=200)
    victim, others = by_name(hospitals, name)
    with ThreadPoolExecutor(4) as pool:
        begin(hospitals, plan, pool)
        kill_at(victim, kind, number)
    before = victim.entries()
    mixed = len([entry for entry in before if entry.kind == "mixed"])
    until(lambda: not orphans(), 15, "the killed peer's worker ends by itself")
    start_again(victim)
    for other in others:
        report = until(other.report, 90, other.last_words)
        assert report["finished"]
        assert {gone["name"] for gone in report["missing"]} <= {name}
    report = until(victim.report, 30, victim.last_words)
    for hospital in hospitals:
        until(lambda hospital=hospital: is_over(hospital), 30, hospital.last_words)
    assert report["finished"] and report["away"] is None, "it goes on where it was"
    trained = [entry.body["round"] for entry in victim.entries("round_started")]
    again = [round_ for round_ in set(trained) if trained.count(round_) > 1]
    assert len(again) <= 1, "at most one local round is done again"
    assert report["rounds_done"] >= mixed - 1
    one_core_for_each_place(victim, others)
    all_is_well(hospitals)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("caen", "plan_approved"),
        *[
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [("amiens", "plan_approved"), ("rouen", "start_signed")]
        ],
    ],
)
def test_killed_while_proposing_it_takes_part_all_the_same(
    hospitals: list[Hospital], tmp_path: Path, name: str, kind: str
) -> None:
    plan = write_plan(tmp_path / "plan", rounds=10, deadline=20.0)
    victim, others = by_name(hospitals, name)
    with ThreadPoolExecutor(4) as pool:
        answer = pool.submit(begin, hospitals, plan, pool)
        kill_at(victim, kind, 1)
        with contextlib.suppress(P2PFLError):
            answer.result()
        start_again(victim)  # the others may be waiting for the initial parameters, which only the victim has
    run = str(victim.ask("list")[0]["run"])
    approved = [entry.body["samples"] for entry in victim.entries("plan_approved")]
    with pytest.raises(ConfigError, match=r"already approved|only an open proposal"):
        victim.ask("approve", run=run)
    for other in others:
        with contextlib.suppress(ConfigError):  # it may have approved already
            agreed(other, run)
    for hospital in hospitals:
        report = until(hospital.report, 60, hospital.last_words)
        assert report["finished"]
        until(lambda hospital=hospital: is_over(hospital), 30, hospital.last_words)
    assert [entry.body["samples"] for entry in victim.entries("plan_approved")] == approved
    assert len(victim.entries("run_started")) == 1
    one_core_for_each_place(victim, others)
    all_is_well(hospitals)


def waiting_for(victim: Hospital) -> set[tuple[str, str]]:
    """(core, peer) of every delta that is let out and not acknowledged, from the victim's log."""
    open_pairs = set()
    for entry in victim.entries("delta_sent", "acknowledged"):
        if entry.kind == "delta_sent":
            open_pairs |= {(entry.body["core"], peer) for peer in entry.body["to"]}
        else:
            open_pairs -= {(core, entry.body["peer"]) for core in entry.body["cores"]}
    return open_pairs


@pytest.mark.slow
def test_what_nobody_has_acknowledged_is_sent_again(hospitals: list[Hospital], tmp_path: Path) -> None:
    plan = write_plan(tmp_path / "plan", rounds=30, deadline=30.0, local_steps=2000)
    victim, (lille, _, rouen) = by_name(hospitals, "amiens")
    with ThreadPoolExecutor(4) as pool:
        begin(hospitals, plan, pool)
        until(lambda: len(victim.entries("mixed")) >= 2, 60, victim.last_words)
        for neighbour in (lille, rouen):  # from now on they acknowledge nothing
            neighbour.send(signal.SIGSTOP)
        until(
            lambda: {peer for _, peer in waiting_for(victim)} == {lille.peer_id, rouen.peer_id}, 30, victim.last_words
        )
        until(lambda: victim.ask("status")["runs"][0]["state"] == "collecting", 30, victim.last_words)
        victim.kill()
        pairs = waiting_for(victim)
        assert {file.name for file in (victim.home / "outbox").iterdir()} == {core for core, _ in pairs}
        start_again(victim)
        for neighbour in (lille, rouen):
            neighbour.send(signal.SIGCONT)
    until(lambda: not waiting_for(victim) & pairs, 60, victim.last_words)
    for hospital in hospitals:
        until(hospital.report, 90, hospital.last_words)
        until(lambda hospital=hospital: is_over(hospital), 30, hospital.last_words)
    one_core_for_each_place(victim, [lille, rouen])
    all_is_well(hospitals)


@pytest.mark.slow
def test_killed_after_closing_it_has_nothing_more_to_do(hospitals: list[Hospital], tmp_path: Path) -> None:
    plan = write_plan(tmp_path / "plan", rounds=10, deadline=20.0)
    victim, others = by_name(hospitals, "lille")
    with ThreadPoolExecutor(4) as pool:
        begin(hospitals, plan, pool)
        kill_at(victim, "run_closed", 1)
    start_again(victim)

    def all_over() -> None:
        for hospital in hospitals:
            report = until(hospital.report, 60, hospital.last_words)
            assert report["finished"] and report["missing"] == [] and report["rounds_done"] == 12
            until(lambda hospital=hospital: is_over(hospital), 30, hospital.last_words)

    all_over()
    # as if it had been killed just before it heard the others: its neighbours know the run from their files alone
    neighbours = [others[0], others[2]]
    for hospital in (victim, *neighbours):
        hospital.stop()
    for file in victim.home.glob("runs/*/statements/*"):
        if _is_closing_of_another(file, victim):
            file.unlink()
    next(victim.home.glob("runs/*/over")).unlink()
    for hospital in (*neighbours, victim):
        start_again(hospital)
    all_over()
    assert [neighbour.ask("list") for neighbour in neighbours] == [[], []]  # it did not begin there a second time
    for hospital in hospitals:
        assert len(hospital.entries("run_started")) == len(hospital.entries("run_closed")) == 1
    one_core_for_each_place(victim, others)
    all_is_well(hospitals)


def _is_closing_of_another(file: Path, victim: Hospital) -> bool:
    with contextlib.suppress(P2PFLError):
        return open_closing(file.read_bytes())[0].signer != victim.peer_id
    return False
