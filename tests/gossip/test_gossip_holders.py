"""Joined machines: a state from another holder than its origin, what is offered to whom, and hostile offers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from bottle import Bottle
from test_gossip_adopting import AWAY, asked, bottle, hanging

from p2pfl.crypto import open_envelope, sha256, sign_envelope
from p2pfl.gossip import Machine, Restored, effects, events
from p2pfl.gossip.adopting import ASK_AGAIN, PATIENCE
from p2pfl.gossip.deliveries import OFFERS_REMEMBERED
from p2pfl.gossip.holders import NOT_ASKED_FOR, TRIES
from p2pfl.gossip.holding import ANSWER_AGAIN
from p2pfl.gossip.messages import (
    ANNOUNCEMENT_LIMIT,
    SETTLING_WINDOW,
    Announcement,
    Core,
    decode_announcement,
    open_core,
    open_cover,
)
from p2pfl.gossip.offers import OFFER_LIMIT, Offer, Wanted, decode_offer
from p2pfl.types import PeerId

DEAD, HOLDER, OTHER = 0, 1, 2  # on the ring: AWAY is between DEAD and OTHER, HOLDER too


def waiting(folder: Path, *, keep_offers: bool = False) -> tuple[Bottle, list[bytes]]:
    """The site wants states; one neighbour is dead, and the offers of whoever holds its state are on their way.

    Unless they are kept: then they are lost, and returned.
    """
    world, kept = bottle(folder), []
    hanging(world, 40)
    world.kill(DEAD)
    until = world.now + 0.1
    world.run(lambda: world.now > until)  # what was on its way is here
    world.machine(AWAY).deliveries.states.pop(world.order[DEAD])  # as after a restart

    def lost(kind: str, source: PeerId, target: PeerId, data: bytes) -> bool:
        if kind == "offer" and keep_offers:
            kept.append(data)
        return kind == "offer" and keep_offers

    world.lost = lost
    world.after(0.0, world[AWAY], lambda: world[AWAY].train(6))
    world.run(lambda: world.machine(AWAY).adopting.waiting)
    if keep_offers:
        world.run(lambda: bool(kept))
    return world, kept


def test_a_dead_neighbour_s_state_comes_from_the_holder(tmp_path: Path) -> None:
    world, _ = waiting(tmp_path)
    found = asked(world)
    began = world.now
    world.run(lambda: bool(world[AWAY].entries("caught_up")))
    assert world.now - began < 1.0, "nobody's patience was needed"
    (body,), (adopt,) = world[AWAY].entries("caught_up"), found
    rows = {row[0]: row for row in body["states"]}
    assert rows[world.order[DEAD]][4] == world.order[HOLDER] and rows[world.order[OTHER]][4] == world.order[OTHER]
    shares = world.machine(AWAY).context.running.shares
    total = shares[world.order[DEAD]] + shares[world.order[OTHER]]
    assert [edge.weight for edge in adopt.states] == pytest.approx([shares[edge.peer] / total for edge in adopt.states])
    (offered,) = world[HOLDER].entries("state_offered")
    assert (offered["peer"], offered["origin"]) == (world.order[AWAY], world.order[DEAD])
    assert offered["core"] == rows[world.order[DEAD]][3]
    assert world[OTHER].entries("state_offered") == [], "it is no neighbour of the dead one"
    world.run()
    assert world.done()


def test_without_an_answer_the_wait_ends_and_it_is_asked_again_meanwhile(tmp_path: Path) -> None:
    world, kept = waiting(tmp_path, keep_offers=True)
    began = world.machine(AWAY).adopting.began
    world.run(lambda: bool(world[AWAY].entries("caught_up")))
    (body,) = world[AWAY].entries("caught_up")
    assert began is not None and PATIENCE <= world.now - began < PATIENCE + 1.0
    assert [row[0] for row in body["states"]] == [world.order[OTHER]]
    assert len(kept) == 1 + (PATIENCE - 0.1) // ASK_AGAIN
    assert len(world[HOLDER].entries("state_offered")) == 1, "the same offer again is no news for the log"


# --- hostile offers

Change = Callable[[Bottle, Offer], bytes]


def parts(offer: Offer) -> Announcement:
    return decode_announcement(offer.announcement)


def signed_by_origin(world: Bottle, offer: Offer, change: Callable[[Core], Core]) -> bytes:
    """The origin itself signed another core, with a cover for it."""
    whole, identity = parts(offer), world[DEAD].identity
    core = sign_envelope(identity, "core", change(open_core(whole.core)[1]).encode())
    cover = sign_envelope(identity, "cover", replace(open_cover(whole.cover)[1], core=core.digest).encode())
    return replace(offer, announcement=replace(whole, core=core.encode(), cover=cover.encode()).encode()).encode()


def covered(world: Bottle, offer: Offer, *, signer: int = DEAD, keys: bool = True, core: bool = True) -> bytes:
    whole = parts(offer)
    cover = open_cover(whole.cover)[1]
    cover = cover if keys else replace(cover, keys={world.order[HOLDER]: cover.keys[world.order[AWAY]]})
    cover = cover if core else replace(cover, core=sha256(b"another"))
    envelope = sign_envelope(world[signer].identity, "cover", cover.encode()).encode()
    return replace(offer, announcement=replace(whole, cover=envelope).encode()).encode()


def other_channel(world: Bottle, offer: Offer) -> bytes:
    cores = {open_core(item.core)[1].channel: item for item, _ in world[DEAD].outbox.values()}
    cores.pop(world.proposal.channels[0].name)
    (found,) = cores.values()
    return replace(offer, announcement=found.encode()).encode()


def own_words(world: Bottle, offer: Offer) -> bytes:
    found = [item for item, _ in world[HOLDER].outbox.values()]
    return replace(offer, announcement=found[-1].encode()).encode()


def spoilt(world: Bottle, offer: Offer) -> bytes:
    whole = parts(offer)
    return replace(
        offer, announcement=replace(whole, core=whole.core[:-1] + bytes([whole.core[-1] ^ 1])).encode()
    ).encode()


HOSTILE: dict[str, tuple[Change, int | None]] = {
    "garbage": (lambda world, offer: b"\xc1garbage", HOLDER),
    "too long": (lambda world, offer: replace(offer, announcement=bytes(ANNOUNCEMENT_LIMIT + 1)).encode(), HOLDER),
    "far too long": (lambda world, offer: replace(offer, announcement=bytes(2 * OFFER_LIMIT)).encode(), HOLDER),
    "garbage inside": (lambda world, offer: replace(offer, announcement=b"\xc1").encode(), HOLDER),
    "another run": (lambda world, offer: replace(offer, run="0" * 64).encode(), HOLDER),
    "no signature": (spoilt, HOLDER),
    "the holder's own core": (own_words, HOLDER),
    "a cover that the holder signed": (lambda world, offer: covered(world, offer, signer=HOLDER), HOLDER),
    "a cover of another core": (lambda world, offer: covered(world, offer, core=False), HOLDER),
    "a cover without our key": (lambda world, offer: covered(world, offer, keys=False), HOLDER),
    "another channel": (other_channel, HOLDER),
    "nothing": (lambda world, offer: replace(offer, announcement=b"").encode(), None),
    "of a peer that was not asked for": (lambda world, offer: replace(offer, origin=world.order[HOLDER]).encode(), None),
    "not in its origin's log": (lambda w, o: signed_by_origin(w, o, lambda core: replace(core, round=core.round - 1)), DEAD),
    "after the end": (lambda w, o: signed_by_origin(w, o, lambda core: replace(core, round=4000)), DEAD),
    "for one peer alone": (lambda w, o: signed_by_origin(w, o, lambda core: replace(core, recipient="x")), DEAD),
    "another base": (lambda w, o: signed_by_origin(w, o, lambda core: replace(core, base=sha256(b"b"))), DEAD),
    "another size": (
        lambda w, o: signed_by_origin(w, o, lambda core: replace(core, manifest=replace(core.manifest, size=8))), DEAD
    ),
}  # fmt: skip


def test_hostile_offers_cost_only_whoever_said_what_is_wrong(tmp_path: Path) -> None:
    """One by one to copies of the machine: who is refused, and that nothing of it is fetched."""
    world, kept = waiting(tmp_path, keep_offers=True)
    offer = decode_offer(kept[0])
    for name, (change, blamed) in HOSTILE.items():
        machine = copy.deepcopy(world.machine(AWAY))
        before = dict(machine.context.refusals)
        todo = machine.handle(events.OfferReceived(world.now, world.order[HOLDER], change(world, offer)))
        refused = {peer for peer, count in machine.context.refusals.items() if count > before.get(peer, 0)}
        assert refused == (set() if blamed is None else {world.order[blamed]}), name
        fetched = [effect for effect in todo if isinstance(effect, effects.Fetch)]
        assert not fetched, name
        assert machine.status()["state"] == "catching up", name


def test_a_state_older_than_the_window_is_no_offence_and_of_no_use(tmp_path: Path) -> None:
    world, kept = waiting(tmp_path, keep_offers=True)
    machine = copy.deepcopy(world.machine(AWAY))
    core = open_core(parts(decode_offer(kept[0])).core)[1]
    machine.context.position = (core.round + SETTLING_WINDOW + 1, 0)
    todo = machine.handle(events.OfferReceived(world.now, world.order[HOLDER], kept[0]))
    assert not machine.context.refusals
    assert not any(isinstance(effect, effects.Fetch) and effect.peer == world.order[DEAD] for effect in todo)


def test_an_offer_is_taken_once_and_from_whom_it_was_asked(tmp_path: Path) -> None:
    world, kept = waiting(tmp_path, keep_offers=True)
    machine = copy.deepcopy(world.machine(AWAY))
    machine.handle(events.OfferReceived(world.now, world.order[OTHER], kept[0]))
    assert machine.context.counters[NOT_ASKED_FOR] == 1 and world.order[DEAD] not in machine.adopting.taken
    (fetch,) = machine.handle(events.OfferReceived(world.now, world.order[HOLDER], kept[0]))
    assert isinstance(fetch, effects.Fetch)
    assert (fetch.peer, fetch.source, fetch.keep) == (world.order[DEAD], world.order[HOLDER], False)
    assert machine.handle(events.OfferReceived(world.now, world.order[HOLDER], kept[0])) == []
    assert machine.context.counters[NOT_ASKED_FOR] == 2


@pytest.mark.parametrize(("altered", "blamed"), [(True, HOLDER), (False, DEAD)])
def test_wrong_bytes_are_the_holder_s_fault_and_a_wrong_result_the_origin_s(
    tmp_path: Path, altered: bool, blamed: int
) -> None:
    world, kept = waiting(tmp_path, keep_offers=True)
    machine = copy.deepcopy(world.machine(AWAY))
    (fetch,) = machine.handle(events.OfferReceived(world.now, world.order[HOLDER], kept[0]))
    assert isinstance(fetch, effects.Fetch)
    todo = machine.handle(events.Received(world.now, fetch.name, "wrong", altered=altered))
    assert set(machine.context.refusals) == {world.order[blamed]}
    (adopt,) = [effect for effect in todo if isinstance(effect, effects.Adopt)]
    assert [edge.peer for edge in adopt.states] == [world.order[OTHER]], "nobody else can have it"


def test_a_content_that_the_holder_has_no_more_is_asked_for_anew(tmp_path: Path) -> None:
    """Three tries, since the link may be to blame; then the holder is asked what it has now."""
    world, kept = waiting(tmp_path, keep_offers=True)
    machine = copy.deepcopy(world.machine(AWAY))
    (fetch,) = machine.handle(events.OfferReceived(world.now, world.order[HOLDER], kept[0]))
    for _ in range(TRIES):
        assert isinstance(fetch, effects.Fetch)
        (fetch,) = machine.handle(events.Received(world.now, fetch.name, "not here", again=True))
    assert isinstance(fetch, effects.SendStatement)
    assert (fetch.peer, fetch.kind) == (world.order[HOLDER], "wanted")
    assert machine.adopting.waiting and not machine.context.refusals


@pytest.mark.parametrize("first_offer", [True, False])
def test_two_cores_of_one_place_are_evidence_whichever_comes_first(tmp_path: Path, first_offer: bool) -> None:
    world, kept = waiting(tmp_path, keep_offers=True)
    machine, dead = copy.deepcopy(world.machine(AWAY)), world.order[DEAD]
    truth = decode_offer(kept[0])
    lie = decode_offer(signed_by_origin(world, truth, lambda core: replace(core, result=sha256(b"another"))))
    offer, announced = (truth, lie) if first_offer else (lie, truth)
    steps: list[events.Event] = [
        events.OfferReceived(world.now, world.order[HOLDER], offer.encode()),
        events.AnnouncementReceived(world.now, dead, announced.announcement),
    ]
    logged = [
        entry
        for event in (steps if first_offer else reversed(steps))
        for effect in machine.handle(event)
        if isinstance(effect, effects.Commit)
        for entry in effect.entries
        if entry.kind == "equivocation"
    ]
    assert [(entry.body["peer"], len(entry.documents)) for entry in logged] == [(dead, 2)]
    assert set(machine.context.refusals) == {dead}
    assert len(machine.deliveries.offered.get(dead, ())) <= OFFERS_REMEMBERED


# --- what is offered


def question(world: Bottle, asker: int, *origins: int, floor: int = 0, recipient: int = HOLDER) -> events.Event:
    payload = Wanted(
        world.proposal.run, world.order[recipient], floor, tuple(world.order[number] for number in origins)
    )
    data = sign_envelope(world[asker].identity, "wanted", payload.encode()).encode()
    return events.StatementReceived(world.now, world.order[asker], data)


def offers_of(machine: Machine, event: events.Event) -> list[effects.SendOffer]:
    """What leaves at last: what is on the record first leaves with the answer to its commit."""
    todo = machine.handle(event)
    for commit in [effect for effect in todo if isinstance(effect, effects.Commit)]:
        assert not any(isinstance(effect, effects.SendOffer) for effect in todo)
        todo += machine.handle(events.Committed(event.now, commit.token))
    return [effect for effect in todo if isinstance(effect, effects.SendOffer)]


def test_only_the_recipients_that_the_origin_named_are_offered_anything(tmp_path: Path) -> None:
    world, _ = waiting(tmp_path, keep_offers=True)
    machine, order = world.machine(HOLDER), world.order
    held = {place[0]: item for place, item in machine.deliveries.holding.held.items()}
    assert set(held) == {order[DEAD], order[OTHER]} and len(machine.deliveries.holding.held) == 2
    assert all(item.recipients == {order[AWAY]} for item in held.values()), "it is between the same two"
    world.now += ANSWER_AGAIN
    (offer,) = offers_of(copy.deepcopy(machine), question(world, AWAY, DEAD))
    assert offer == effects.SendOffer(order[AWAY], order[DEAD], held[order[DEAD]].digest)
    (offer,) = offers_of(copy.deepcopy(machine), question(world, OTHER, DEAD))
    assert offer.core is None, "no neighbour of that origin"
    (offer,) = offers_of(copy.deepcopy(machine), question(world, AWAY, DEAD, floor=1000))
    assert offer.core is None, "nothing so new"
    both = offers_of(copy.deepcopy(machine), question(world, AWAY, DEAD, OTHER, DEAD))
    assert [(item.origin, item.core) for item in both] == [
        (order[number], held[order[number]].digest) for number in (DEAD, OTHER)
    ], "each once"


def test_questions_are_answered_so_often_and_those_to_others_not_at_all(tmp_path: Path) -> None:
    world, _ = waiting(tmp_path, keep_offers=True)
    machine = copy.deepcopy(world.machine(HOLDER))
    world.now += ANSWER_AGAIN
    assert len(offers_of(machine, question(world, AWAY, DEAD))) == 1
    assert offers_of(machine, question(world, AWAY, DEAD)) == []
    world.now += ANSWER_AGAIN
    assert len(offers_of(machine, question(world, AWAY, DEAD))) == 1
    assert offers_of(machine, question(world, AWAY, DEAD, recipient=OTHER)) == []
    assert set(machine.context.refusals) == {world.order[AWAY]}


def test_what_is_held_is_known_after_a_restart(tmp_path: Path) -> None:
    """The newest of each origin that is still on the disk; an older one beside it goes."""
    world, _ = waiting(tmp_path, keep_offers=True)
    site, machine = world[HOLDER], world.machine(HOLDER)
    announcements = [announcement for announcement, _ in site.holdings.values()]
    newest = next(data for data in announcements if signer(data) == world.order[DEAD])
    offer = Offer(world.proposal.run, world.order[DEAD], newest)
    older = decode_offer(signed_by_origin(world, offer, lambda core: replace(core, sequence=1, round=1))).announcement
    foreign = decode_offer(signed_by_origin(world, offer, lambda core: replace(core, run="0" * 64))).announcement
    start = machine.context.start
    for rows in (newest, older, foreign), (foreign, older, newest):
        restored = Restored(None, start, 0, (), False, site.state, holdings=(*rows, b"\xc1damaged"))
        again = Machine(site.peer_id, world.roster, world.proposal, restored=restored)
        todo = again.handle(events.LinkUp(world.now, world.order[AWAY]))
        holding = again.deliveries.holding
        assert list(holding.held) == [(world.order[DEAD], 0)]
        (kept,) = holding.held.values()
        let_go = {effect.core for effect in todo if isinstance(effect, effects.LetGo)}
        assert let_go == {digest(older), digest(foreign)}
        assert digest(newest) == kept.digest not in let_go
        (sent,) = offers_of(again, question(world, AWAY, DEAD))
        assert sent.core == kept.digest


def signer(announcement: bytes) -> PeerId:
    return open_core(decode_announcement(announcement).core)[0].signer


def digest(announcement: bytes) -> str:
    return open_envelope(decode_announcement(announcement).core, kinds=("core",), limit=ANNOUNCEMENT_LIMIT).digest
