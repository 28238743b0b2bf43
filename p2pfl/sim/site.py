"""One simulated site: a process that lives and dies, its machine, its disk, and what reaches it.

The shell's side of the protocol, as in `p2pfl.peer.runner` and `p2pfl.peer.runs`, at virtual time. What is on the disk
survives the process; all else here is gone with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from p2pfl.crypto import Sealed, sign_envelope
from p2pfl.errors import IllegalStep, P2PFLError
from p2pfl.gossip import Machine, State, events
from p2pfl.gossip.anchors import decode_outbound
from p2pfl.gossip.messages import Announcement, Core, Position
from p2pfl.sim.audit_file import AuditFile
from p2pfl.sim.commits import Commits
from p2pfl.sim.disk import Disk, Row
from p2pfl.sim.draws import raw
from p2pfl.sim.hands import perform
from p2pfl.sim.holdings import Holdings
from p2pfl.sim.memory_log import MemoryLog
from p2pfl.sim.process import Process
from p2pfl.sim.restart import start_machine
from p2pfl.sim.spreading import Spreading
from p2pfl.sim.training import Trainer
from p2pfl.types import Digest, PeerId

if TYPE_CHECKING:
    from p2pfl.sim.members import Member
    from p2pfl.sim.world import VirtualConsortium


class Site(Process):
    """A member of the consortium, by its ``number`` in the charter's order."""

    def __init__(self, world: VirtualConsortium, number: int, samples: int, folder: Path | None) -> None:
        super().__init__(world.clock)
        self.world, self.number, self.samples, self.folder = world, number, samples, folder
        self.identity = world.kit.identity(world.seed, number)
        self.peer_id: PeerId = self.identity.peer_id
        self.prekey = world.kit.prekey(world.seed, number)
        self.key = raw(32, world.seed, "sampling key", number)
        self.disk = Disk()
        self.audit = AuditFile(folder, self.identity, world.clock) if world.audited and folder else None
        self.memory_log = MemoryLog(self.identity)
        self.machine: Machine | None = None
        self.member: Member | None = None  # hostile: rewrites what this site sends
        self.armed = False  # whether the run was approved on this disk, so that a worker may train for it
        self.approved = False  # whether the user ever approved it
        self.coming_back = 0  # restarts that are planned
        self.slow = 1.0  # factor on the time of local work
        self.failing = 0  # trainings that shall fail
        self.failure: P2PFLError | None = None  # what ended the process by itself
        self.problems: list[str] = []  # what the worker refused
        self.told: list[tuple[str, Mapping[str, Any]]] = []
        self.round_times: list[tuple[float, int]] = []  # when each round began here
        self.cores: list[Core] = []  # all cores ever signed here
        self.result: Trainer | None = None  # what holds the model at the end of the own part
        self._new_process()

    def _new_process(self) -> None:
        self.sealed: dict[tuple[Position, str], Sealed] = {}
        self._covered: dict[Digest, tuple[int, Announcement]] = {}  # and how many entries the checkpoint had
        self.commits = Commits(self)
        self.spreading = Spreading(self)
        self.holdings = Holdings(self)
        self._trainer: Trainer | None = None
        self.begun = False  # whether the trainer holds the run

    # --- what others ask

    @property
    def running(self) -> Machine:
        """The machine; the site must have been started."""
        assert self.machine is not None
        return self.machine

    @property
    def state(self) -> State | None:
        """The machine's state; None before the first start, and when the run is over and the process a new one."""
        return self.machine.state if self.machine is not None else None

    @property
    def trainer(self) -> Trainer:
        """What trains here; after the end of the process, its last one."""
        if self._trainer is None:
            self._trainer = self.world.new_trainer(self.number)
        return self._trainer

    @property
    def finished(self) -> bool:
        """Nothing more is expected of this site: its part is done, or it is gone for good."""
        if not self.alive:
            return self.coming_back == 0
        return self.disk.over or (self.machine is not None and self.machine.state is State.DONE)

    def training_time(self, round_: int) -> float:
        """Seconds of the local steps of a round that begin now."""
        compute = self.world.compute
        usual = self.world.local_steps[self.number]
        longer = self.running.context.running_schedule.steps_of(self.peer_id, usual) / max(1, usual)
        seconds = compute.training(self.world.seed, self.number, round_) * self.slow * longer
        return compute.lasting(self.number, self.world.now, seconds)

    # --- the process

    def start(self) -> None:
        """A process starts on this disk."""
        self.begin_life()
        self.failure = None
        self._new_process()
        world, life = self.world, self.life
        world.network.started(self.number)
        if self.disk.over:
            self.machine = None
            self.disk.holdings.clear()
            return
        begun = start_machine(
            self.disk,
            self.peer_id,
            world.roster,
            world.proposal,
            self.prekey[1],
            world.kit.verify,
            world.argument_problem,
            world.tolerance,
        )
        self.machine, self.armed = begun.machine, begun.armed
        if self.machine.state is State.PROPOSING:
            if self.disk.proposed_at is None:
                self.disk.proposed_at = world.now
            self.post(events.Proposed(self.now, world.now - self.disk.proposed_at))
        elif self.machine.state is State.CATCHING_UP:
            self.post(events.Resumed(self.now))
        own = [sign_envelope(self.identity, kind, payload).encode() for kind, payload in begun.own]
        for data in [*self.disk.statements, *(data for data in own if data not in self.disk.statements)]:
            if self.life == life:
                self.post(events.StatementReceived(self.now, self.peer_id, data))
        if self.life == life and self.number in world.approving and not self.approved:
            self.later(world.approve_after, self._approve)

    def _approve(self) -> None:
        machine = self.running
        open_ = machine.state is State.PROPOSING or machine.joining.outside
        if open_ and machine.starting.own_approval is None and self.peer_id not in machine.starting.approvals:
            self.armed = True
            self.post(events.Approve(self.now, self.samples, self.prekey[1]))

    def approve_late(self) -> None:
        """The user approves now, be the run under way or not; also again if that was lost with the disk."""
        self.enter(self._approve)

    def stop(self, *, silently: bool = False) -> None:
        """The process ends at once; what it had not made durable is gone. ``silently``: the whole machine did."""
        if self.alive:
            self.end_life()
            self.world.network.stopped(self.number, silently=silently)

    def fail(self, error: P2PFLError) -> None:
        """The process ends by itself, as the real peer does when its log cannot be written."""
        self.stop()
        self.failure = error

    def freeze(self) -> None:
        """The process is stopped; the others notice when it has been silent for too long."""
        if self.alive and not self.frozen:
            self.hold()
            self.world.network.froze(self.number)

    def thaw(self) -> None:
        """It goes on."""
        if self.alive and self.frozen:
            self.release()
            if self.alive:
                self.world.network.thawed(self.number)

    def fire(self, name: str) -> None:
        """A timer of the machine is due."""
        self.post(events.TimerFired(self.now, name))

    # --- the machine

    def post(self, event: events.Event) -> None:
        """Show the machine an event and begin what it asks for."""
        machine = self.machine
        if machine is None:
            return
        world, life = self.world, self.life
        world.trace.event(self.number, world.clock.now, event)
        try:
            todo = machine.handle(event)
        except Exception as error:
            error.add_note(f"site {self.number} at {world.clock.now!r} s of seed {world.seed}, {type(event).__name__}")
            raise
        world.trace.effects(self.number, world.clock.now, todo)
        for effect in todo:
            if self.life != life:
                return
            perform(self, effect)
        world.triggers.handled(self)

    def command(self, event: events.Event) -> bool:
        """A user's command; False if the machine refuses it in this state."""
        try:
            self.post(event)
        except IllegalStep:
            return False
        return True

    def tell(self, topic: str, facts: Mapping[str, Any]) -> None:
        """What a user would see."""
        self.told.append((topic, facts))
        if topic == "round":
            self.round_times.append((self.world.clock.now, facts["round"]))
        if topic == "closed" and facts.get("finished"):
            self.result = self._trainer  # the real peer writes the model down now
        if topic in ("complete", "expired"):
            self.disk.over = True

    def write(self, rows: list[Row]) -> None:
        """One transaction of the log, durable now."""
        self.disk.entries.extend(rows)
        self.approved = self.approved or any(row.kind == "plan_approved" for row in rows)
        if self.audit is not None:
            self.audit.append(rows)

    def announcement(self, core: Digest) -> Announcement:
        """The announcement of a committed core, without its content, under the log's newest checkpoint."""
        rows = self.disk.entries
        known = self._covered.get(core)
        if known is None or known[0] != len(rows):
            if self.audit is not None:
                proof = self.audit.prove(rows, core)
            else:
                proof = self.memory_log.prove(rows, core)
            outbound = decode_outbound(self.disk.outbox[core])
            known = self._covered[core] = len(rows), outbound.announce(core, self.identity, proof.encode())
        return known[1]

    def chunks_for(self, peer: PeerId, core: Digest) -> list[bytes]:
        """A committed core's content for whoever has a key to it; nothing for those who are only told of it."""
        return self.disk.contents[core] if peer in decode_outbound(self.disk.outbox[core]).keys else []

    def let_go(self, core: Digest) -> None:
        """Nobody needs its content any more."""
        self.disk.outbox.pop(core, None)
        self.disk.contents.pop(core, None)
        self._covered.pop(core, None)

    # --- links

    def link_up(self, other: int) -> None:
        """A link came up."""
        self.enter(lambda: self._link_up(other))

    def _link_up(self, other: int) -> None:
        life = self.life
        self.post(events.LinkUp(self.now, self.world.peers[other]))
        if self.life == life:
            self.spreading.linked(other)

    def link_down(self, other: int, reason: str) -> None:
        """The link to a neighbour has ended."""
        self.enter(lambda: self.post(events.LinkDown(self.now, self.world.peers[other], reason)))

    def receive(self, source: int, kind: str, data: bytes) -> None:
        """A message came in."""
        peer = self.world.peers[source]
        if self.member is not None:
            self.member.hears(self, source, kind, data)
        match kind:
            case "announcement":
                self.enter(lambda: self.post(events.AnnouncementReceived(self.now, peer, data)))
            case "offer":
                self.enter(lambda: self.post(events.OfferReceived(self.now, peer, data)))
            case "direct":
                if self.machine is None:
                    self.enter(lambda: self.spreading.hear_of_over(source))
                self.enter(lambda: self.post(events.StatementReceived(self.now, peer, data)))
            case _:
                self.enter(lambda: self.spreading.hear(source, data))

    def send(self, peer: PeerId, kind: str, data: bytes) -> None:
        """Send a message, or what a hostile member makes of it."""
        target = self.world.numbers[peer]
        messages = [data] if self.member is None else self.member.sends(self, target, kind, data)
        for message in messages:
            if not self.world.network.send(self.number, target, kind, message) and self.machine is not None:
                self.machine.context.counters["not sent"] += 1

    def serve(self, asker: int, core: Digest) -> list[bytes] | None:
        """The chunks of an own delta, or of a held state; None if there are none for this member."""
        if not self.alive or (self.member is not None and not self.member.serves(self, asker, core)):
            return None
        chunks = self.disk.contents.get(core) or self.holdings.serve(asker, core)
        return chunks if self.member is None else self.member.serving(self, core, chunks)
