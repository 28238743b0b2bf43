"""Every state of the machine with every event: what happens. `python tests/gossip/outcomes.py` prints the table.

The committed table is tests/gossip/outcomes.txt; the test compares. A change of behaviour shows as a changed line.
"""

from __future__ import annotations

import copy
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from bottle import QUADRATIC_PLAN, Bottle, Quadratic

from p2pfl.crypto import Identity, Manifest, Prekey, sha256, sign_envelope, wrap_key
from p2pfl.errors import IllegalStep, PolicyRefusal
from p2pfl.gossip import Machine, State, events
from p2pfl.gossip.anchors import Outbound
from p2pfl.gossip.closing_statement import Closing
from p2pfl.gossip.direct import Acknowledgement, Away, Settle, Standing
from p2pfl.gossip.directives import Change, Directive
from p2pfl.gossip.heartbeat import Heartbeat
from p2pfl.gossip.messages import Core, EdgeList, decode_announcement, sealing_context
from p2pfl.gossip.offers import Offer, Wanted
from p2pfl.gossip.statements import Approval, StartSignature
from p2pfl.sim.memory_log import lone_proof
from p2pfl.types import PeerId

TABLE = Path(__file__).with_name("outcomes.txt")
ME, LEFT, RIGHT, OPPOSITE = 1, 0, 2, 3  # on a ring of four
PROPOSER = 0
ROUND = 3
SETTINGS = {
    "rule": "dpsgd", "optimiser": {"name": "sgd"}, "learning_rate": 0.2, "local_steps": 1, "batch_size": 1000,
    "dtype": "float64",
}  # fmt: skip


def new_world() -> Bottle:
    folder = Path(tempfile.mkdtemp(prefix="p2pfl-outcomes-"))
    files = Quadratic.make((40, 30, 20, 10)).write(folder)
    return Bottle(files, QUADRATIC_PLAN, SETTINGS, rounds=6, closing_rounds=1, deadline=10.0)


def reached(state: State) -> Callable[[Bottle], None]:
    """Run until the machine is in this state in round ROUND (or at all, for states outside the rounds)."""

    def go(world: Bottle) -> None:
        machine = world.machine(ME)
        late = state in (State.CLOSING, State.DONE)
        world.begin()
        world.run(lambda: machine.state is state and (late or machine.context.position[0] == ROUND))

    return go


def proposing(world: Bottle) -> None:
    world.link_all()
    world[ME].post(events.Proposed(0.0))


def in_training_then(*then: Callable[[float], events.Event]) -> Callable[[Bottle], None]:
    def go(world: Bottle) -> None:
        reached(State.TRAINING)(world)
        for make in then:
            world.machine(ME).handle(make(world.now))

    return go


def paused(world: Bottle) -> None:
    machine = world.machine(ME)
    reached(State.TRAINING)(world)
    world[ME].post(events.Pause(world.now))
    world.run(lambda: machine.state is State.PAUSED)


def held(world: Bottle) -> None:
    """Paused by the proposer."""
    machine = world.machine(ME)
    reached(State.TRAINING)(world)
    word = Directive(world.proposal.run, 3, paused_from=ROUND + 1)
    data = sign_envelope(world[PROPOSER].identity, "directive", word.encode()).encode()
    world[ME].post(events.StatementReceived(world.now, world.order[PROPOSER], data))
    world.run(lambda: machine.state is State.PAUSED)


def outside(world: Bottle) -> None:
    """The run is under way without this member."""
    machine = world.machine(ME)
    world.begin(approving=[LEFT, RIGHT, OPPOSITE])
    world.run(lambda: machine.state is State.ABSENT and world.machine(LEFT).context.position[0] == ROUND)


def admission(world: Bottle, version: int, round_: int) -> bytes:
    approval = Approval(world.proposal.run, world.proposal.plan, 30, world[ME].prekey.public)
    signed = sign_envelope(world[ME].identity, "approval", approval.encode()).encode()
    return Directive(world.proposal.run, version, changes=(Change(round_, approval=signed),)).encode()


def joining(world: Bottle) -> None:
    """Admitted, and without a neighbour's state."""
    outside(world)
    data = sign_envelope(world[PROPOSER].identity, "directive", admission(world, 3, ROUND + 1)).encode()
    world.machine(ME).handle(events.StatementReceived(world.now, world.order[PROPOSER], data))


def returning(world: Bottle) -> None:
    """Back from a restart, before any neighbour has told its standing."""
    reached(State.COLLECTING)(world)
    world[ME].machine = world.remade(ME)
    world.machine(ME).handle(events.Resumed(world.now))


SCENARIOS: dict[str, Callable[[Bottle], None]] = {
    "proposing": proposing,
    "training": reached(State.TRAINING),
    "announcing": reached(State.ANNOUNCING),
    "collecting": reached(State.COLLECTING),
    "mixing": reached(State.MIXING),
    "absent": in_training_then(lambda now: events.TrainingFailed(now, ROUND, "no")),
    "absent for good": in_training_then(lambda now: events.Leave(now, "enough")),
    "catching up": in_training_then(
        lambda now: events.TrainingFailed(now, ROUND, "no"), lambda now: events.TimerFired(now, "absent")
    ),
    "returning": returning,
    "outside": outside,
    "joining": joining,
    "paused": paused,
    "held": held,
    "closing": reached(State.CLOSING),
    "done": reached(State.DONE),
}


def announcement(world: Bottle, origin: int, round_: int, signer: Identity | None = None, salt: str = "") -> bytes:
    """A validly signed announcement by a site of the ring (or by ``signer``)."""
    site, run = world[origin], world.proposal.run
    identity = signer or site.identity
    channel = world.proposal.channels[0]
    manifest = Manifest(channel.size, 1, sha256(f"root{salt}".encode()), sha256(b"commitment"))
    core = Core(
        run, 90 + round_, round_, 0, channel.name, "all", channel.base, sha256(b"result"), "raw", manifest, 0,
        {world.order[ME]: EdgeList((0, 0), ())},
    )  # fmt: skip
    signed = sign_envelope(identity, "core", core.encode())
    context = sealing_context(run, identity.peer_id, (round_, 0), channel.name, "all")
    keys = {world.order[ME]: wrap_key(bytes(32), world[ME].prekey.public, context)}
    proof = lone_proof(identity, {"run": run, "core": signed.digest}).encode()
    return Outbound(run, signed.encode(), keys).announce(signed.digest, identity, proof, b"x" * 40).encode()


def cases(world: Bottle, machine: Machine) -> Iterator[tuple[str, events.Event]]:
    now, order, run = world.now + 0.001, world.order, world.proposal.run
    position = machine.context.position
    stranger = Identity.from_seed(b"s" * 32)
    own = next(iter(machine.deliveries.outgoing), sha256(b"own"))
    fetching = next(
        (key for key, item in machine.deliveries.incoming.items() if item.content.value == "fetching"), None
    )

    def by(number: int, kind: str, payload: bytes, signer: Identity | None = None) -> events.Event:
        data = sign_envelope(signer or world[number].identity, kind, payload).encode()
        return events.StatementReceived(now, order[number], data)

    def heard(origin: int, data: bytes) -> events.Event:
        return events.AnnouncementReceived(now, order[origin], data)

    here = position[0] if machine.context.start else 0
    yield "proposed", events.Proposed(now)
    yield "resumed", events.Resumed(now)
    yield "link up", events.LinkUp(now, order[RIGHT])
    yield "link down", events.LinkDown(now, order[RIGHT], "gone")
    for timer in (
        "approvals",
        "deadline",
        "states",
        "holders",
        "nudge",
        "absent",
        "ask",
        "closing",
        "standing",
        "heartbeat",
        "few",
        "share",
        "hope",
        "completion",
    ):
        yield f"timer {timer}", events.TimerFired(now, timer)
    yield "trained", events.Trained(now, here, 0.5)
    yield "trained, other round", events.Trained(now, here + 7, 0.5)
    yield "training failed", events.TrainingFailed(now, here, "no")
    parcel = events.Parcel("x", Manifest(24, 1, sha256(b"r"), sha256(b"c")), sha256(b"d"))
    yield "encoded", events.Encoded(now, here, 0, (parcel,))
    yield "encoded, other round", events.Encoded(now, here + 7, 0, (parcel,))
    yield "received, unknown core", events.Received(now, sha256(b"?"))
    if fetching is not None:
        yield "received", events.Received(now, fetching)
        yield "received, refused", events.Received(now, fetching, "NaN in it")
        yield "received, world failed", events.Received(now, fetching, "link lost", again=True)
    yield "mixed", events.Mixed(now, here, 0, sha256(b"m"), 0.1)
    yield "mixed, other round", events.Mixed(now, here + 7, 0, sha256(b"m"), 0.1)
    yield "adopted", events.Adopted(now, here, sha256(b"a"), 0.1)
    for token in (
        "approved",
        "start-signed",
        "run-started",
        "sent",
        "mixed",
        "caught-up",
        "closed",
        "settling",
        "note",
    ):
        if token in _possible(machine):
            yield f"committed {token}", events.Committed(now, f"{token}:0:0", ())
    yield "approve", events.Approve(now, 10, bytes(range(32)))
    yield "pause", events.Pause(now)
    yield "resume", events.Resume(now)
    yield "leave", events.Leave(now, "enough")
    yield "direct, at another site", events.Direct(now, "pause")
    pause = Directive(run, 4, paused_from=here)
    yield "directive to pause", by(PROPOSER, "directive", pause.encode())
    yield "directive to go on", by(PROPOSER, "directive", replace(pause, paused_from=None).encode())
    yield "directive to stop", by(PROPOSER, "directive", replace(pause, paused_from=None, stop_at=here + 1).encode())
    change = replace(pause, paused_from=None, changes=(Change(here + 1, (("learning_rate", 0.1),)),))
    yield "directive outside the plan", by(PROPOSER, "directive", change.encode())
    yield "directive to admit this site", by(PROPOSER, "directive", admission(world, 4, here + 1))
    yield "directive, old", by(PROPOSER, "directive", replace(pause, version=1).encode())
    yield "directive, another of its version", by(PROPOSER, "directive", replace(pause, version=3, stop_at=2).encode())
    yield "directive, not the proposer", by(RIGHT, "directive", pause.encode())
    yield (
        "directive, passed on",
        events.StatementReceived(
            now, order[RIGHT], sign_envelope(world[PROPOSER].identity, "directive", pause.encode()).encode()
        ),
    )
    yield "announcement, this round", heard(RIGHT, announcement(world, RIGHT, here))
    yield "announcement, next round", heard(RIGHT, announcement(world, RIGHT, here + 1))
    yield "announcement, late", heard(RIGHT, announcement(world, RIGHT, max(0, here - 1), salt="late"))
    yield "announcement, after the end", heard(RIGHT, announcement(world, RIGHT, 4000))
    yield "announcement, not a neighbour", heard(OPPOSITE, announcement(world, OPPOSITE, here))
    yield (
        "announcement, signed by another",
        heard(RIGHT, announcement(world, RIGHT, here, world[LEFT].identity)),
    )
    yield "announcement, stranger", heard(RIGHT, announcement(world, RIGHT, here, stranger))
    yield "announcement, garbage", heard(RIGHT, b"\xc1garbage")
    yield (
        "offer, nobody asked",
        events.OfferReceived(now, order[OPPOSITE], Offer(run, order[RIGHT], announcement(world, RIGHT, here)).encode()),
    )
    yield "offer, garbage", events.OfferReceived(now, order[OPPOSITE], b"\xc1garbage")
    wanted = Wanted(run, order[ME], max(0, here - 16), (order[RIGHT],))
    yield "wanted", by(OPPOSITE, "wanted", replace(wanted, origins=(order[LEFT],)).encode())
    yield "wanted, of oneself", by(RIGHT, "wanted", wanted.encode())
    yield "wanted, for another", by(RIGHT, "wanted", replace(wanted, recipient=order[LEFT]).encode())
    yield "wanted, stranger", by(RIGHT, "wanted", wanted.encode(), stranger)
    prekey = Prekey.from_secret(bytes(range(32))).public
    yield "approval", by(RIGHT, "approval", Approval(run, world.proposal.plan, 10, prekey).encode())
    yield (
        "approval, other run",
        by(RIGHT, "approval", Approval("0" * 64, world.proposal.plan, 10, prekey).encode()),
    )
    yield (
        "approval, stranger",
        by(RIGHT, "approval", Approval(run, world.proposal.plan, 10, prekey).encode(), stranger),
    )
    yield "start, not the proposer", by(RIGHT, "start", b"\x82\xa3run\xa1x\xa9approvals\x90")
    yield "start signature", by(RIGHT, "start-signature", StartSignature(run, sha256(b"record")).encode())
    statement = Closing(run, True, 6, sha256(b"d"), (), 0)
    yield "closing statement", by(RIGHT, "closing", statement.encode())
    yield "closing statement, stranger", by(RIGHT, "closing", statement.encode(), stranger)
    total = world.proposal.rounds + world.proposal.closing_rounds
    settle = Settle(run, order[ME], (total, 0), EdgeList((0, 0), ()), True)
    yield "settle", by(RIGHT, "settle", settle.encode())
    wrong = Settle(run, order[LEFT], (total, 0), EdgeList((0, 0), ()), True)
    yield "settle, for another", by(RIGHT, "settle", wrong.encode())
    standing = Standing(run, order[ME], (here, 0), b"", b"", sha256(b""))
    yield "standing", by(RIGHT, "standing", standing.encode())
    yield "standing, for another", by(RIGHT, "standing", replace(standing, recipient=order[LEFT]).encode())
    forged = replace(standing, newest=decode_announcement(announcement(world, RIGHT, here)).core)
    yield "standing, core of another", by(RIGHT, "standing", forged.encode())
    elsewhere = replace(standing, newest=decode_announcement(announcement(world, ME, here)).core)
    yield "standing, own key elsewhere", by(RIGHT, "standing", elsewhere.encode())
    beat = Heartbeat(run, 7, (here, 0), True, ((here, 0, "x", "all", sha256(b"core")),))
    yield "heartbeat", by(RIGHT, "heartbeat", beat.encode())
    yield "heartbeat, stranger", by(RIGHT, "heartbeat", beat.encode(), stranger)
    yield "away", by(RIGHT, "away", Away(run, here, "paused").encode())
    yield "away, of long ago", by(RIGHT, "away", Away(run, 0, "paused").encode())
    absent = Closing(run, False, 2, sha256(b""), (), 0)
    yield "signed absence", by(RIGHT, "closing", absent.encode())
    yield "acknowledgement", by(RIGHT, "acknowledgement", Acknowledgement(run, (own,)).encode())
    yield "statement, garbage", events.StatementReceived(now, PeerId(order[RIGHT]), b"\xc1garbage")


def _possible(machine: Machine) -> set[str]:
    """Commits whose answer can come in this state: the shell answers only what the machine asked for."""
    state = machine.state
    found = {"note"}
    if state is State.PROPOSING:
        return found
    return found | {
        State.ANNOUNCING: {"sent", "mixed"},
        State.CATCHING_UP: {"caught-up", "mixed"},
        State.CLOSING: {"mixed"},
    }.get(state, {"mixed"})


def outcome(machine: Machine, event: events.Event) -> str:
    """The state afterwards and the effects, in words; a copy of the machine takes the event."""
    tried = copy.deepcopy(machine)
    try:
        effects = tried.handle(event)
    except (IllegalStep, PolicyRefusal) as error:
        assert tried.state is machine.state
        assert not tried.context.effects
        return "illegal" if isinstance(error, IllegalStep) else "refused"
    names = []
    for effect in effects:
        name = type(effect).__name__
        topic = getattr(effect, "topic", None) or getattr(effect, "kind", None)
        names.append(f"{name}({topic})" if topic else name)
    return f"{tried.state} | {' '.join(names) or '-'}"


def table() -> list[str]:
    lines = []
    for name, go in SCENARIOS.items():
        world = new_world()
        go(world)
        machine = world.machine(ME)
        for label, event in cases(world, machine):
            lines.append(f"{name:<16} {label:<34} {outcome(machine, event)}")
    return lines


if __name__ == "__main__":
    sys.stdout.write("\n".join(table()) + "\n")
