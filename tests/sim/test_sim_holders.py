"""Neighbours' states from whoever holds them, under the virtual clock: the origin is gone when a site comes back."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_sim_states import NAMES, TOPOLOGIES, jumps, moved

from p2pfl.gossip import State
from p2pfl.gossip.adopting import PATIENCE
from p2pfl.gossip.deliveries import Content
from p2pfl.gossip.messages import decode_announcement, open_core
from p2pfl.gossip.offers import Offer, decode_offer
from p2pfl.sim import At, ComputeModel, Crash, InState, LinkModel, Loss, VirtualConsortium
from p2pfl.sim.members import Equivocate, Member
from p2pfl.sim.site import Site
from p2pfl.types import Digest

AWAY, DEAD = 2, 1  # neighbours of each other in all graphs, with a third that mixes with both
SITES = {"ring": 4, "full": 4, "hierarchical": 6}
AWAY_FROM, DEAD_FROM = 8, 40
ROUNDS, BACK_AFTER = 60, 400.0


def consortium(
    topology: Any = "ring", seed: int = 1, back_after: float = BACK_AFTER, dies: State = State.TRAINING, **options: Any
) -> VirtualConsortium:
    """Rounds of some 10 s; one site is off from round 8 to about 48, a neighbour of its from round 40 on for good."""
    sites = SITES[topology if isinstance(topology, str) else topology["kind"]]
    world = VirtualConsortium(
        sites,
        topology=topology,
        rounds=ROUNDS,
        closing_rounds=4,
        seed=seed,
        compute=ComputeModel(seconds=10.0),
        **options,
    )
    world.inject(Crash(AWAY, back_after=back_after), InState(AWAY, State.TRAINING, round=AWAY_FROM, after=3.0))
    world.inject(
        Crash(DEAD, back_after=None), InState(DEAD, dies, round=None if dies is State.DONE else DEAD_FROM, after=3.0)
    )
    world.begin()
    return world


def returned(world: VirtualConsortium) -> dict[str, Any]:
    """What the site wrote down when it had taken states."""
    assert world.run(lambda: bool(world.entries(AWAY, "caught_up")), limit_seconds=3000.0)
    (body,) = world.entries(AWAY, "caught_up")
    return dict(body)


def of_dead(world: VirtualConsortium, body: dict[str, Any]) -> list[list[Any]]:
    return [row for row in body["states"] if row[0] == world.peers[DEAD]]


@pytest.mark.parametrize("topology", TOPOLOGIES, ids=NAMES)
@pytest.mark.parametrize("content_bytes", [0, 200_000], ids=["inline", "pulled"])
def test_a_neighbour_that_died_meanwhile_is_stood_in_for(topology: Any, content_bytes: int) -> None:
    world = consortium(topology, content_bytes=content_bytes)
    body = returned(world)
    (row,) = of_dead(world, body)
    assert row[4] not in (world.peers[DEAD], world.peers[AWAY]), "from another holder"
    signed = [core.round for core in world.cores(DEAD)]
    assert row[2] == max(signed) == DEAD_FROM - 1, "the state of its last round"
    sent = {entry["core"]: entry["to"] for entry in world.entries(DEAD, "delta_sent")}
    assert world.peers[AWAY] in sent[row[3]]
    holder = world.numbers[row[4]]
    offered = [entry for entry in world.entries(holder, "state_offered") if entry["core"] == row[3]]
    assert [(entry["peer"], entry["origin"]) for entry in offered] == [(world.peers[AWAY], world.peers[DEAD])]
    assert all(other[4] == other[0] for other in body["states"] if other[0] != world.peers[DEAD]), "by themselves"
    assert world.run(lambda: all(world.sites[number].result for number in range(len(world.sites)) if number != DEAD))
    share = world.machines[0].context.running.shares[world.peers[AWAY]]
    assert body["moved"] == pytest.approx(share * float(np.linalg.norm(jumps(world, AWAY))), rel=1e-12)
    assert world.contradictions() == [] and not any(
        world.entries(number, "refused") for number in range(len(world.sites))
    )


@pytest.mark.slow
def test_equal_seeds_are_equal_runs() -> None:
    def digest(seed: int) -> str:
        world = consortium("full", seed)
        returned(world)
        return world.trace.digest()

    assert digest(5) == digest(5) != digest(6)


def test_after_the_others_have_finished_the_dead_one_s_last_state_is_there() -> None:
    """The run is over for them, and their processes still have it: so long they hold what they have."""
    world = consortium("ring", back_after=900.0, dies=State.DONE)
    assert world.run(lambda: all(world.sites[number].finished for number in (0, 1, 3)), limit_seconds=3000.0)
    assert world.run(lambda: not world.sites[DEAD].alive, limit_seconds=900.0) and not world.sites[AWAY].alive
    body = returned(world)
    (row,) = of_dead(world, body)
    assert body["round"] == ROUNDS + 4 and row[2] == ROUNDS + 3 == world.cores(DEAD)[-1].round
    assert world.run(world.done, limit_seconds=3000.0)
    world.run(limit_seconds=200.0)
    assert [world.sites[number].disk.over for number in (0, 3)] == [True] * 2
    for number in (0, 3):
        assert len(world.sites[number].disk.holdings) == 2
        world.sites[number].stop()
        world.sites[number].start()
        assert not world.sites[number].disk.holdings, "a new process does not take up what is over"


def test_what_is_held_is_the_newest_of_each_neighbour_and_outlives_a_restart() -> None:
    world = consortium("ring")
    world.inject(Crash(0, back_after=5.0), InState(0, State.TRAINING, round=DEAD_FROM + 3, after=3.0))
    assert world.run(lambda: world.sites[0].coming_back == 1, limit_seconds=3000.0)
    assert world.run(lambda: world.sites[0].coming_back == 0, limit_seconds=3000.0)
    held = world.sites[0].disk.holdings
    assert {open_core(decode_announcement(item.announcement).core, world.kit.verify)[0].signer for item in held.values()} == {
        world.peers[1], world.peers[3]
    }  # fmt: skip
    assert len(held) == 2
    (row,) = of_dead(world, returned(world))
    assert (row[2], row[4]) == (DEAD_FROM - 1, world.peers[0])


@pytest.mark.parametrize("seed", range(4))
def test_while_messages_are_lost_the_wait_is_bounded_and_only_the_jump_moves_the_sum(seed: int) -> None:
    world = consortium("full", seed)
    world.inject(Loss(0.25, seconds=60.0), At(480.0))
    body = returned(world)
    began = [time for time, round_ in world.sites[AWAY].round_times if round_ >= body["round"]]
    back = world.triggers.struck[0][0] + BACK_AFTER
    assert world.run(lambda: world.sites[AWAY].result is not None, limit_seconds=3000.0)
    assert not began or min(began) - back < 3 * PATIENCE + 40.0
    assert body["states"]


@dataclass
class LyingHolder(Member):
    """Of the dead one's state it serves other bytes, or offers an old one, its own words, or nothing at all."""

    lie: str
    old: bytes = b""  # the first offer that could have been made within the window
    lies: int = 0
    _own: list[bytes] = field(default_factory=list)

    def sends(self, site: Site, target: int, kind: str, data: bytes) -> list[bytes]:
        if kind == "announcement":
            self._own = [data]
        if kind != "offer" or not decode_offer(data).announcement:
            return [data]
        self.lies += 1
        offer = decode_offer(data)
        return {
            "other bytes": [data],
            "old": [Offer(offer.run, offer.origin, self.old).encode()],
            "own words": [Offer(offer.run, offer.origin, announcement).encode() for announcement in self._own],
            "of another": [Offer(offer.run, site.peer_id, announcement).encode() for announcement in self._own],
            "nothing": [],
        }[self.lie]

    def serving(self, site: Site, core: Digest, chunks: list[bytes] | None) -> list[bytes] | None:
        if self.lie != "other bytes" or core in site.disk.contents or not chunks:
            return chunks
        return [bytes([chunks[0][0] ^ 1]) + chunks[0][1:], *chunks[1:]]


@pytest.mark.parametrize(("lie", "refused"), [("other bytes", True), ("old", False), ("own words", True), ("nothing", False)])  # fmt: skip
def test_one_holder_lies_and_the_other_one_is_taken(lie: str, refused: bool) -> None:
    world = consortium("full", content_bytes=200_000)
    liar = min((0, 3), key=lambda number: world.peers[number])  # the one that is tried first
    member = LyingHolder(lie)
    whole = world.sites[liar].receive

    def receive(source: int, kind: str, data: bytes) -> None:
        if kind == "announcement" and source == DEAD and not member.old:
            core = open_core(decode_announcement(data).core, world.kit.verify)[1]
            member.old = data if core.round == DEAD_FROM - 4 else b""
        whole(source, kind, data)

    world.sites[liar].receive = receive  # type: ignore[method-assign]
    world.corrupt(liar, member)
    (row,) = of_dead(world, returned(world))
    assert member.lies
    assert row[2] == DEAD_FROM - 1 and row[4] == world.peers[3 - liar]
    accused = {entry["peer"] for entry in world.entries(AWAY, "refused")}
    assert accused == ({world.peers[liar]} if refused else set())


@pytest.mark.parametrize("lie", ["other bytes", "own words", "of another", "nothing"])
def test_the_only_holder_lies_and_the_site_goes_on_without(lie: str) -> None:
    world = consortium("ring", content_bytes=200_000)
    world.corrupt(0, LyingHolder(lie))
    body = returned(world)
    assert of_dead(world, body) == [] and len(body["states"]) == 1
    assert world.peers[DEAD] not in {entry["peer"] for entry in world.entries(AWAY, "refused")}


def test_a_holder_that_is_killed_in_the_middle_of_the_transfer_is_followed_by_another() -> None:
    """At 100 kB/s its state takes 2 s, and the others' rounds some 17 s."""
    world = consortium("full", back_after=600.0, content_bytes=200_000, links=LinkModel(bandwidth=1e5))
    taken = world.sites[AWAY]

    def pulling() -> bool:
        sources = taken.machine.adopting.taken if taken.machine else {}
        source = sources.get(world.peers[DEAD])
        return source is not None and source.held.content is Content.FETCHING

    assert world.run(pulling, limit_seconds=3000.0)
    first = world.site_of(taken.running.adopting.taken[world.peers[DEAD]].holder)
    assert first.number in (0, 3)
    first.stop()
    (row,) = of_dead(world, returned(world))
    assert row[4] not in (first.peer_id, world.peers[DEAD])
    assert row[2] == DEAD_FROM - 1


def test_a_held_state_that_is_replaced_is_still_served_to_whom_it_was_offered() -> None:
    """The origin lives, and cannot be reached: it signs newer ones while its state is pulled over a slow line."""
    world = VirtualConsortium(
        4, topology="ring", rounds=ROUNDS, closing_rounds=4, seed=1, compute=ComputeModel(seconds=10.0),
        content_bytes=100_000, links=LinkModel(uplinks={0: 1e4}), deadline=120.0, catch_up_rounds=3,
    )  # fmt: skip
    world.inject(Crash(AWAY, back_after=BACK_AFTER), InState(AWAY, State.TRAINING, round=AWAY_FROM, after=3.0))
    world.begin()
    assert world.run(lambda: world.sites[AWAY].coming_back == 1, limit_seconds=3000.0)
    world.network.cut(DEAD, AWAY)
    (row,) = of_dead(world, returned(world))
    assert row[4] == world.peers[0]
    now = max(core.round for core in world.cores(DEAD))
    assert row[2] < now, "a newer one was signed meanwhile"


def test_two_holders_show_two_cores_of_one_place_and_both_are_evidence() -> None:
    world = consortium("full")
    world.corrupt(DEAD, Equivocate([3], rounds=[DEAD_FROM - 1]))
    returned(world)
    (entry,) = world.entries(AWAY, "equivocation")
    assert (entry["peer"], entry["round"]) == (world.peers[DEAD], DEAD_FROM - 1)
    assert {body["peer"] for body in world.entries(AWAY, "refused")} == {world.peers[DEAD]}


def test_the_conserved_sum_moves_by_the_jump_alone() -> None:
    """The dead site comes back as well, with what it had: nothing of the exchange over a holder counts twice."""
    world = consortium("ring")
    body = returned(world)
    assert of_dead(world, body)
    world.sites[DEAD].start()
    assert world.run(world.done, limit_seconds=3000.0)
    world.run(limit_seconds=200.0)
    share = world.machines[0].context.running.shares[world.peers[AWAY]]
    np.testing.assert_allclose(moved(world), share * jumps(world, AWAY), rtol=0, atol=1e-6)
    records = [machine.closing.record() for machine in world.machines]
    assert all(record == records[0] for record in records)


def test_with_real_signatures_seals_and_logs(tmp_path: Path) -> None:
    world = consortium("ring", signatures="real", content_bytes=200_000, folder=tmp_path, audited=True)
    (row,) = of_dead(world, returned(world))
    assert row[4] == world.peers[0]
    assert all(verification.ok for verification in world.verify_logs())
    world.close()
