"""Graphs that are others in each round, played by machines: who waits for whom, who is told what, and who can do harm."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from p2pfl.gossip.messages import Core, decode_announcement, open_core, open_cover
from p2pfl.gossip.table import State
from p2pfl.sim.compute import ComputeModel
from p2pfl.sim.faults import Crash, Loss, Partition
from p2pfl.sim.links import LinkModel
from p2pfl.sim.members import Equivocate, Member
from p2pfl.sim.site import Site
from p2pfl.sim.triggers import At, InState
from p2pfl.sim.world import VirtualConsortium
from p2pfl.topology import Schedule

ROUNDS, CLOSING = 10, 2
SPECS: list[dict[str, Any]] = [
    {"kind": "matching", "seed": 3},
    {"kind": "epidemic", "degree": 2, "seed": 1},
    {"kind": "base", "k": 1},
    {"kind": "hierarchical", "clusters": 2, "period": 3},
    {"kind": "exponential"},
    {"kind": "epidemic", "degree": 2, "seed": 1, "choice": "local"},
]
NAMES = ["matching", "epidemic", "base", "hierarchical", "exponential", "local choice"]


def consortium(spec: dict[str, Any], sites: int = 7, **options: Any) -> VirtualConsortium:
    values: dict[str, Any] = {"rounds": ROUNDS, "closing_rounds": CLOSING, "samples": [20] * sites, "seed": 2}
    return VirtualConsortium(sites, topology=spec, **{**values, **options})


def played(world: VirtualConsortium) -> VirtualConsortium:
    world.begin()
    assert world.run(world.done, limit_seconds=3000)
    world.run()
    return world


def scheduled(world: VirtualConsortium) -> Schedule:
    return world.machines[0].context.running_schedule


def edges_mixed(world: VirtualConsortium, number: int) -> set[tuple[int, int, str]]:
    rows = world.entries(number, "mixed")
    return {(row["round"], row["step"], edge[0]) for row in rows for edge in row["edges"]}


def edges_scheduled(world: VirtualConsortium, number: int) -> set[tuple[int, int, str]]:
    schedule, peer = scheduled(world), world.peers[number]
    return {
        (t, step, other)
        for t in range(schedule.total)
        for step, mixing in enumerate(schedule.round(t).mixings)
        for other, _ in mixing.neighbours(peer)
    }


def skipped(world: VirtualConsortium, number: int) -> list[Any]:
    """Rounds that this site left out because it believed that the others were further."""
    return [row for row in world.entries(number, "absent") if "peer" not in row]


@pytest.mark.parametrize("spec", SPECS, ids=NAMES)
def test_a_slow_site_takes_part_in_every_round(spec: dict[str, Any]) -> None:
    """2.5 times slower than the others: when a site was waited for by its partners alone, few of its rounds were mixed."""
    world = played(consortium(spec, compute=ComputeModel(factors={3: 2.5})))
    for number in range(7):
        assert edges_mixed(world, number) == edges_scheduled(world, number)
        assert not skipped(world, number)
        assert not world.entries(number, "run_closed")[0]["missing"]
    assert world.imbalance() < 1e-12 and world.settled()


@dataclass
class Ahead(Member):
    """Says in one round that it is in the last one."""

    round: int
    told: list[int] = field(default_factory=list)

    def core(self, site: Site, core: Core) -> Core:
        if core.round != self.round:
            return core
        self.told.append(core.round)
        return replace(core, round=ROUNDS - 1)


@pytest.mark.parametrize("spec", SPECS[:2], ids=NAMES[:2])
@pytest.mark.parametrize("round_", [1, 4])
def test_one_liar_leads_nobody_past_a_round(spec: dict[str, Any], round_: int) -> None:
    world, liar = consortium(spec), Ahead(round_)
    world.corrupt(2, liar)
    played(world)
    assert liar.told
    for number in (0, 1, 3, 4, 5, 6):
        honest = {edge for edge in edges_scheduled(world, number) if edge[2] != world.peers[2]}
        assert honest <= edges_mixed(world, number)
        assert not skipped(world, number)


@dataclass
class Watched(Member):
    """Notes what an honest site announces to whom."""

    told: list[tuple[int, int, bool, bool]] = field(default_factory=list)  # target, round, has a key, has content

    def sends(self, site: Site, target: int, kind: str, data: bytes) -> list[bytes]:
        if kind == "announcement":
            parts = decode_announcement(data)
            core = open_core(parts.core, site.world.kit.verify)[1]
            keys = open_cover(parts.cover, site.world.kit.verify)[1].keys
            self.told.append((target, core.round, site.world.peers[target] in keys, bool(parts.inline)))
        return [data]


@pytest.mark.parametrize("spec", SPECS, ids=NAMES)
def test_all_partners_are_told_of_each_round_and_only_its_own_get_the_content(spec: dict[str, Any]) -> None:
    world, noting = consortium(spec), Watched()
    world.corrupt(1, noting)
    played(world)
    schedule, me = scheduled(world), world.peers[1]
    partners = {world.peers.index(peer) for peer in schedule.graph[me]}
    for t in range(schedule.total):
        told = [row for row in noting.told if row[1] == t]
        mixing = {world.peers.index(peer) for step in schedule.round(t).mixings for peer, _ in step.neighbours(me)}
        assert {target for target, *_ in told} == partners
        assert {target for target, _, key, _ in told if key} == mixing
        assert all(key == content for _, _, key, content in told), "content without a key is of no use to anybody"
    sent = world.entries(1, "delta_sent")
    assert {(row["round"], row["step"]) for row in sent if row["to"]} == {
        edge[:2] for edge in edges_scheduled(world, 1)
    }
    received = {(row["peer"], core) for row in world.entries(1, "acknowledged") for core in row["cores"]}
    assert received == {(peer, row["core"]) for row in sent for peer in row["to"]}, "receipts of content alone are kept"
    assert not world.machines[1].deliveries.outgoing and not world.sites[1].disk.outbox


@pytest.mark.parametrize("spec", SPECS, ids=NAMES)
def test_lost_words_are_said_again_and_nobody_is_left_behind(spec: dict[str, Any]) -> None:
    world = consortium(spec, deadline=20.0)
    world.inject(Loss(0.1), At(1.5))
    played(world)
    assert world.imbalance() < 1e-12
    assert not [row for number in range(7) for row in world.entries(number, "edge_unsettled")]
    assert all(world.machines[number].rounds.rounds_done >= ROUNDS + CLOSING - 2 for number in range(7))


@pytest.mark.parametrize("spec", SPECS[:2], ids=NAMES[:2])
def test_who_dies_is_named_and_waited_for_once(spec: dict[str, Any]) -> None:
    world = consortium(spec, deadline=15.0, patience=40.0)
    world.inject(Crash(4), InState(4, State.TRAINING, round=5))
    world.begin()
    alive = [number for number in range(7) if number != 4]
    assert world.run(lambda: all(world.sites[n].machine.state is State.DONE for n in alive), limit_seconds=3000)  # type: ignore[union-attr]
    for number in alive:
        (closed,) = world.entries(number, "run_closed")
        partner = world.peers[4] in scheduled(world).graph[world.peers[number]]
        assert [row[:2] for row in closed["missing"]] == ([[world.peers[4], 5]] if partner else [])
        away = [row for row in world.entries(number, "absent") if row.get("peer") == world.peers[4]]
        assert len([row for row in away if "until" not in row]) == partner
        others = {edge for edge in edges_scheduled(world, number) if edge[2] != world.peers[4]}
        assert others <= edges_mixed(world, number)
    assert world.imbalance() < 1e-12


@pytest.mark.parametrize(
    "spec", [SPECS[0], *(pytest.param(spec, marks=pytest.mark.slow) for spec in SPECS[1:])], ids=NAMES
)
@pytest.mark.parametrize("state", [State.TRAINING, State.COLLECTING, State.MIXING], ids=lambda state: state.value)
def test_a_killed_site_comes_back_into_its_round(spec: dict[str, Any], state: State) -> None:
    world = consortium(spec, deadline=60.0)
    world.inject(Crash(2, back_after=2.0), InState(2, state, round=4))
    played(world)
    assert world.triggers.struck
    assert world.imbalance() < 1e-12 and world.settled()
    for number in range(7):
        late = {edge for edge in edges_scheduled(world, number) if edge[0] >= 8}
        assert late <= edges_mixed(world, number)
        apart = {edge for edge in edges_scheduled(world, number) if edge[2] != world.peers[2]}
        assert number == 2 or apart <= edges_mixed(world, number)


def test_words_do_not_teach_how_long_contents_take() -> None:
    """Contents take seven times the training here, and pairs meet every fifth round: whoever took the quick words for
    the measure of contents would find them all late."""
    world = played(
        consortium(
            SPECS[0], sites=6, rounds=20, deadline=300.0, content_bytes=40_000_000,
            links=LinkModel(bandwidth=2_000_000), compute=ComputeModel(seconds=3.0),
        )
    )  # fmt: skip
    for number in range(6):
        assert not [row for row in world.entries(number, "absent") if row["round"] < 20]
        trained = {edge for edge in edges_scheduled(world, number) if edge[0] < 20}
        assert trained <= edges_mixed(world, number)


@pytest.mark.parametrize("alone", [(2,), (2, 5, 6)], ids=["one", "three"])
def test_a_minority_that_went_on_by_itself_comes_back_in_step(alone: tuple[int, ...]) -> None:
    """Cut off, faster ones wait for nobody and are rounds ahead of the others when the links are back."""
    quick = ComputeModel(factors=dict.fromkeys(alone, 0.7))
    world = consortium(SPECS[0], rounds=100, deadline=60.0, compute=quick)
    others = tuple(number for number in range(7) if number not in alone)
    world.inject(Partition((others, alone), heal_after=40.0), At(20.0))
    world.begin()
    assert world.run(lambda: world.now >= 59.5, limit_seconds=100)
    rounds = [machine.context.position[0] for machine in world.machines]
    assert min(rounds[number] for number in alone) > max(rounds[number] for number in others) + 1, "or nothing is shown"
    assert world.run(world.done, limit_seconds=3000) and world.run()
    together = max(rounds) + 15
    assert together < 80
    for number in range(7):
        late = {edge for edge in edges_scheduled(world, number) if edge[0] >= together}
        assert late <= edges_mixed(world, number)


@dataclass
class WordsOnly(Member):
    """Tells all that its rounds are done, and gives nobody a content."""

    def sends(self, site: Site, target: int, kind: str, data: bytes) -> list[bytes]:
        if kind != "announcement":
            return [data]
        keys = open_cover(decode_announcement(data).cover, site.world.kit.verify)[1].keys
        return [] if site.world.peers[target] in keys else [data]


def test_words_without_contents_are_waited_for_a_few_times_in_all() -> None:
    world = consortium(SPECS[0], sites=6, rounds=60, deadline=15.0)
    world.corrupt(2, WordsOnly())
    played(world)
    waits = [
        row["round"]
        for number in (0, 1, 3, 4, 5)
        for row in world.entries(number, "absent")
        if row.get("peer") == world.peers[2] and row["reason"].startswith("no delta")
    ]
    assert waits and len(waits) <= 3 * 5, "three times at each of its partners"
    assert all(world.machines[number].rounds.attendance.missed[world.peers[2]] <= 3 for number in (0, 1, 3, 4, 5))
    assert max(waits) < 30


def test_two_cores_for_one_round_are_evidence_where_both_are_heard() -> None:
    """Also for a site that mixes with the liar in neither: what it is only told of counts as signed."""
    world, member = consortium(SPECS[0]), Equivocate(victims=[5], rounds=[3], both=True)
    world.corrupt(1, member)
    played(world)
    mixing = dict(scheduled(world).round(3).mixings[0].neighbours(world.peers[5]))
    assert world.peers[1] not in mixing, "or this seed shows another thing"
    (row,) = world.entries(5, "equivocation")
    assert (row["peer"], row["round"]) == (world.peers[1], 3)


def test_the_sum_of_all_sites_never_moves() -> None:
    world = played(consortium({"kind": "matching", "seed": 8}, sites=9, rounds=30))
    np.testing.assert_allclose(world.imbalance(), 0.0, atol=1e-12)
