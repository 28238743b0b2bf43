"""Thousands of seeded runs with faults: the invariants hold in every one. A failing case prints how to play it again.

Invariants: nobody waits without bound; no honest site signs two cores for one place; conserved sums hold once edges
have settled; after healing all live peers hold the same completion record; no honest peer loses standing.
"""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import matrix
import pytest
import torch
from matrix import FAULTS, TOPOLOGIES, Case, Played, cases, play, world_of

from p2pfl.crypto import sha256
from p2pfl.gossip import State
from p2pfl.gossip.edges import Edges
from p2pfl.gossip.rounds import Rounds

WORKERS = min(2, os.cpu_count() or 1)


def _one_thread() -> None:
    torch.set_num_threads(1)


def played(these: list[Case]) -> list[Played]:
    with ProcessPoolExecutor(WORKERS, initializer=_one_thread) as pool:
        return list(pool.map(play, these, chunksize=8))


def told(results: list[Played]) -> str:
    bad = [result for result in results if result.problems]
    lines = [
        f"{problem}\n    again: python tests/sim/matrix.py {result.case}"
        for result in bad
        for problem in result.problems
    ]
    return f"{len(bad)} of {len(results)} runs failed\n" + "\n".join(lines[:20])


def _all_good(results: list[Played]) -> None:
    assert not any(result.problems for result in results), told(results)
    struck = {(result.case.fault, result.case.state) for result in results if result.struck}
    assert {fault for fault, _ in struck} == set(FAULTS), "every fault must have struck"
    assert {state for _, state in struck} == set(State), "in every state"
    # or the check of the conserved sums would hold for want of a case
    assert sum(result.settled for result in results) > len(results) / 2


@pytest.mark.timeout(400)
def test_every_fault_in_some_states() -> None:
    """One graph for every third pair of fault and state, taking turns; the slow set plays all pairs on all graphs."""
    chosen = [case for number, case in enumerate(cases(range(1))) if (number // 3 + number) % 9 == 0]
    assert {case.fault for case in chosen} == {case.fault for case in cases(range(1))}
    _all_good(played(chosen))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", range(100, 104))  # each by itself, so that a busy machine ends none
def test_every_fault_in_every_state_on_every_graph(seed: int) -> None:
    """The whole product with four seeds: 2,160 runs."""
    results = played(cases(range(seed, seed + 1)))
    assert len(results) == len(FAULTS) * len(State) * len(TOPOLOGIES) >= 540
    _all_good(results)


def play_audited(arguments: tuple[Case, str]) -> Played:
    """With Ed25519, real seals, and an audit log on disk at each site, verified at the end."""
    case, folder = arguments
    return play(case, signatures="real", audited=True, folder=Path(folder))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_real_signatures_and_logs(tmp_path: Path) -> None:
    every = cases(range(200, 201))
    chosen = every[:: len(every) // 100][:100]
    assert len(chosen) == 100
    work = [(case, str(tmp_path / str(number))) for number, case in enumerate(chosen)]
    with ProcessPoolExecutor(WORKERS, initializer=_one_thread) as pool:
        results = list(pool.map(play_audited, work, chunksize=2))
    assert not any(result.problems for result in results), told(results)
    assert sum(result.logs for result in results) >= 4 * len(results), "every log was verified"


def test_a_failing_case_says_how_to_play_it_again() -> None:
    case = Case("crash", State.CATCHING_UP, "ring", 7)
    text = told([Played(case, True, problems=["something broke"])])
    assert "python tests/sim/matrix.py crash catching-up ring 7" in text


def test_a_case_is_the_same_run_each_time() -> None:
    for topology in TOPOLOGIES:
        case = Case("crash", State.MIXING, topology, 5)
        digests = set()
        for _ in range(2):
            world, _, _ = world_of(case)
            world.begin()
            world.run(world.done, limit_seconds=60.0)
            digests.add(world.trace.digest())
        assert len(digests) == 1


def broken(fault: str, seeds: int) -> list[str]:
    """What the matrix finds in runs on a ring, with whatever the test broke."""
    states = (State.MIXING, State.COLLECTING)
    return [
        problem
        for seed in range(seeds)
        for state in states
        for problem in play(Case(fault, state, "ring", seed)).problems
    ]


def test_the_matrix_notices_a_round_that_is_signed_twice() -> None:
    """A matrix that finds nothing shows nothing. Here a core is signed a second time, with another content."""
    world, victim, _ = world_of(Case("crash", State.MIXING, "ring", 0))
    world.begin()
    world.run(world.done, limit_seconds=60.0)
    assert world.contradictions() == []
    first = world.cores(victim)[3]
    world.cores(victim).append(replace(first, sequence=99, result=sha256(b"another")))
    ((number, one, other),) = world.contradictions()
    assert number == victim and one == first and other.sequence == 99


def test_the_matrix_notices_edges_that_do_not_settle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here nobody takes a one-sided displacement back."""
    monkeypatch.setattr(Edges, "take_corrections", lambda self: ())
    assert any("conserved sum" in problem for problem in broken("loss", 8))


@pytest.mark.slow
def test_the_matrix_notices_an_endless_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here a round has no deadline, and a neighbour says nothing."""
    monkeypatch.setattr(Rounds, "deadline", lambda self: None)
    monkeypatch.setattr(matrix, "LIMIT", 60.0)
    assert any("unbounded wait" in problem for problem in broken("withhold", 1))
