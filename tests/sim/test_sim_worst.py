"""The table of the worst runs: every row is a cell of the matrix whose fault strikes, and what the ranking counts."""

from __future__ import annotations

from collections import Counter

from matrix import TOPOLOGIES, Case, play
from worst import AT_MOST, SITES, TABLE, TEN, Bad, candidates, measure, rows, ten_worst

from p2pfl.gossip import State


def test_the_table_has_ten_cells_of_the_matrix_in_which_the_fault_strikes() -> None:
    cases = rows()
    assert len(cases) == len(set(cases)) == TEN
    assert {case.topology for case in cases} == set(TOPOLOGIES)
    assert len({case.fault for case in cases}) >= 4
    assert set(cases) <= set(candidates(range(100, 104))), TABLE.read_text()
    for case in cases:
        played = play(case)
        assert played.struck and not played.problems, str(case)


def test_a_pause_costs_time_and_rounds_and_a_crash_counts_a_restart() -> None:
    pause = measure(Case("pause", State.MIXING, "full", 103))
    crash = measure(Case("crash", State.MIXING, "ring", 100))
    assert pause is not None and crash is not None
    assert pause.stretch > 1 and pause.restarts == 0 and pause.sites <= SITES
    assert crash.restarts == 1 and crash.missed > 0 and pause.score > crash.score


def test_the_ten_are_of_several_kinds_and_the_worst_come_first() -> None:
    many = [
        Bad(fault, state, topology, seed, 4, stretch=10.0 - number, missed=0, unsettled=0, restarts=0)
        for seed in range(3)
        for number, fault in enumerate(("crash", "pause", "full-disk", "crash-backup", "crash-for-good"))
        for state in ("training", "mixing", "closing", "done", "paused")
        for topology in TOPOLOGIES
    ]
    chosen = ten_worst(many)
    assert len(chosen) == TEN
    assert [bad.score for bad in chosen] == sorted((bad.score for bad in chosen), reverse=True)
    for kind, most in AT_MOST.items():
        assert max(Counter(getattr(bad, kind) for bad in chosen).values()) <= most
