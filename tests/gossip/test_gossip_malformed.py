"""Validly signed nonsense: a member signs whatever it likes, and no field of any message may crash the machine."""

from __future__ import annotations

import copy
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgpack
import pytest
from bottle import QUADRATIC_PLAN, Bottle, Quadratic

from p2pfl.crypto import Identity, sha256, sign_envelope
from p2pfl.errors import MalformedMessage
from p2pfl.gossip import Flood, State, effects, events
from p2pfl.gossip.closing_statement import Closing
from p2pfl.gossip.direct import Acknowledgement, Away, Settle
from p2pfl.gossip.messages import Cover, EdgeList, decode_announcement, open_core, open_cover
from p2pfl.gossip.statements import Approval, Start, StartSignature
from p2pfl.sim.memory_log import lone_proof
from p2pfl.types import PeerId

SETTINGS = {
    "rule": "dpsgd", "optimiser": {"name": "sgd"}, "learning_rate": 0.2, "local_steps": 1, "batch_size": 1000,
    "dtype": "float64",
}  # fmt: skip
LEFT, ME, HOSTILE = 0, 1, 2
ROUND = 2
MESSAGES = 500  # per state
NONSENSE: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 3, 2**31, 2**53, 2**63, 2**64 - 1, -(2**63), 1.5, float("nan"), float("inf"), "", "x",
    "all", "x" * 500, "0" * 64, b"", b"x" * 32, b"y" * 70_000, [], {}, [[]], [1, 2], [[1, 2], []], {"a": 1}, {b"a": 1},
)  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from places(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from places(inner, (*path, index))


def altered(draw: random.Random, value: Any) -> bytes:
    """The value with one to three places replaced, removed or added to, packed."""
    value = copy.deepcopy(value)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        *path, last = draw.choice([place for place in places(value) if place] or [(None,)])
        inner, new = value, copy.deepcopy(draw.choice(NONSENSE))
        for key in path:
            inner = inner[key]
        if last is None or draw.random() < 0.05:
            value = new
        elif draw.random() < 0.7:
            inner[last] = new
        elif draw.random() < 0.5:
            del inner[last]
        elif isinstance(inner, list):
            inner.append(new)
        else:
            inner["one more"] = new
    return bytes(msgpack.packb(value, use_bin_type=True))


def statements(world: Bottle) -> dict[str, tuple[Identity, bytes]]:
    """One good example of each kind."""
    run, order, hostile = world.proposal.run, world.order, world[HOSTILE].identity

    def yes(number: int) -> Approval:
        return Approval(run, world.proposal.plan, 10, world[number].prekey.public)

    signed = tuple(
        sign_envelope(world[number].identity, "approval", yes(number).encode()).encode() for number in range(4)
    )
    total = world.proposal.rounds + world.proposal.closing_rounds
    edges = EdgeList((0, 0), ((0, 0, True, True), (1, 0, False, False)))
    return {
        "approval": (hostile, yes(HOSTILE).encode()),
        "start": (world[LEFT].identity, Start(run, signed).encode()),
        "start-signature": (hostile, StartSignature(run, sha256(b"record")).encode()),
        "closing": (hostile, Closing(run, True, 6, sha256(b"d"), ((order[LEFT], 3, "gone"),), 0).encode()),
        "settle": (hostile, Settle(run, order[ME], (total, 0), edges, True).encode()),
        "acknowledgement": (hostile, Acknowledgement(run, (sha256(b"core"),)).encode()),
        "away": (hostile, Away(run, ROUND, "tired").encode()),
    }


def announcement(world: Bottle, draw: random.Random, example: bytes, round_: int) -> bytes:
    """HOSTILE's announcement with nonsense in its core, in its cover or around them."""
    hostile, part = world[HOSTILE].identity, draw.choice(("core", "cover", "whole"))
    whole = decode_announcement(example)
    core = msgpack.unpackb(replace(open_core(whole.core)[1], round=round_).encode())
    signed = sign_envelope(hostile, "core", altered(draw, core) if part == "core" else msgpack.packb(core))
    proof = lone_proof(hostile, {"run": whole.run, "core": signed.digest}).encode()
    cover = Cover(signed.digest, open_cover(whole.cover)[1].keys, proof).encode()
    covered = sign_envelope(hostile, "cover", altered(draw, msgpack.unpackb(cover)) if part == "cover" else cover)
    parts = [whole.run, signed.encode(), covered.encode(), whole.inline]
    return altered(draw, parts) if part == "whole" else bytes(msgpack.packb(parts, use_bin_type=True))


def reached(folder: Path, state: State) -> tuple[Bottle, bytes]:
    """A world in which ME stands in this state, and an announcement of HOSTILE to it (empty before the start)."""
    files = Quadratic.make((40, 30, 20, 10)).write(folder)
    examples: list[bytes] = []

    def look(kind: str, source: PeerId, target: PeerId, data: bytes) -> bool:
        if kind == "announcement" and (source, target) == (world.order[HOSTILE], world.order[ME]):
            examples.append(data)
        return False

    world = Bottle(files, QUADRATIC_PLAN, SETTINGS, rounds=6, closing_rounds=1, lost=look)
    if state is State.PROPOSING:
        for site in world.sites.values():
            site.post(events.Proposed(0.0))
        world.link_all()
        return world, b""
    machine = world.machine(ME)
    late = state in (State.CLOSING, State.DONE)
    world.begin()
    world.run(lambda: machine.state is state and (late or machine.context.position[0] == ROUND))
    return world, examples[0]


@pytest.mark.parametrize("state", [State.PROPOSING, State.TRAINING, State.COLLECTING, State.MIXING, State.DONE])
@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (2, 3, 4))])
def test_no_signed_nonsense_crashes_the_machine(tmp_path: Path, state: State, seed: int) -> None:
    world, example = reached(tmp_path, state)
    draw, good, seen = random.Random(seed), statements(world), Counter[tuple[str, bool]]()
    sender, now = world.order[HOSTILE], world.now
    for number in range(MESSAGES):
        if number % 40 == 0:  # what was accepted piles up, but not without end
            machine = copy.deepcopy(world.machine(ME))
        kind = draw.choice([*good, *(["announcement"] * 4 if example else [])])
        if kind == "announcement":
            data = announcement(world, draw, example, draw.choice((ROUND, ROUND + 1, ROUND + 2)))
            event: events.Event = events.AnnouncementReceived(now, sender, data)
        else:
            signer, payload = good[kind]
            data = sign_envelope(signer, kind, altered(draw, msgpack.unpackb(payload))).encode()
            event = events.StatementReceived(now, sender, data)
        done = machine.handle(event)  # raises for what it does not expect
        machine.status()
        seen[kind, any(isinstance(effect, effects.Tell) and effect.topic == "refused" for effect in done)] += 1
    assert all(seen[kind, True] for kind in good), "every kind was refused at least once"


def test_nobody_can_have_another_members_statement_forgotten(tmp_path: Path) -> None:
    """In the frame of another run it is refused before it is remembered or counted."""
    files = Quadratic.make((40, 30)).write(tmp_path)
    world = Bottle(files, QUADRATIC_PLAN, SETTINGS)
    run, other = world.proposal.run, sha256(b"another run")
    flood = Flood(world.roster)
    said = Approval(run, world.proposal.plan, 10, world[0].prekey.public)
    good = {
        "approval": sign_envelope(world[0].identity, "approval", said.encode()),
        "proposal": sign_envelope(world[0].identity, "proposal", world.proposal.encode()),
        "closing": sign_envelope(world[0].identity, "closing", Closing(run, True, 1, sha256(b"d"), (), 0).encode()),
    }
    for kind, envelope in good.items():
        for _ in range(5):
            with pytest.raises(MalformedMessage, match="frame of another run"):
                flood.hear(other, envelope.encode())
        heard = flood.hear(run, envelope.encode())
        assert heard is not None and heard.kind == kind
        assert flood.hear(run, envelope.encode()) is None


def test_displacements_are_forgotten_also_when_a_neighbour_is_ahead(tmp_path: Path) -> None:
    """A faster neighbour has settled an edge before we mix it; the worker must not keep that displacement for ever."""
    files = Quadratic.make((40, 30, 20, 10)).write(tmp_path)
    world = Bottle(files, QUADRATIC_PLAN, SETTINGS, rounds=30, closing_rounds=2)
    usual = world.after

    def slower(seconds: float, site: Any, action: Any) -> None:
        usual(seconds + 0.05 * world.order.index(site.peer_id) if seconds == 1.0 else seconds, site, action)

    world.after = slower  # type: ignore[method-assign]
    world.begin()
    world.run()
    assert world.done()
    for site in world.sites.values():
        assert site.session._exchange is not None and not site.session._exchange._kept
