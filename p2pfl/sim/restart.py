"""From a disk to a machine: what a peer that starts reads from its log, as `p2pfl.peer.restore` does."""

from __future__ import annotations

from dataclasses import dataclass, field

from p2pfl.crypto import Verify
from p2pfl.gossip import Machine, Proposal, Restored
from p2pfl.gossip.messages import Core, decode_announcement, open_core
from p2pfl.gossip.statements import (
    Approval,
    StartSignature,
    closing_from_entry,
    decode_start,
    open_approval,
    participants_of,
)
from p2pfl.sim.disk import Disk
from p2pfl.types import Digest, PeerId, Roster, StartRecord


@dataclass(slots=True)
class _Found:
    """What the entries say."""

    signed: Digest | None = None
    start: StartRecord | None = None
    sequence: int = 0
    rounds_done: int = 0
    closed: bool = False
    approved: tuple[Digest, int] | None = None
    waiting: dict[Digest, tuple[Core, set[PeerId]]] = field(default_factory=dict)
    own: list[tuple[str, bytes]] = field(default_factory=list)  # kind and payload of own statements


@dataclass(frozen=True, slots=True)
class Start:
    """A machine as its disk leaves it, and what it has to be shown first."""

    machine: Machine
    own: tuple[tuple[str, bytes], ...]  # own statements that the log vouches for: kind and payload
    armed: bool  # whether the run was approved here, so that a worker may train for it


def start_machine(disk: Disk, me: PeerId, roster: Roster, proposal: Proposal, prekey: bytes, verify: Verify) -> Start:
    """The machine for this disk; a fresh one if the disk is empty."""
    found = _read(disk, roster, proposal, verify)
    outgoing = tuple(
        (digest, core, frozenset(peers))
        for digest, (core, peers) in found.waiting.items()
        if peers and digest in disk.contents
    )
    name = disk.newest_state()
    state = disk.states[name] if name is not None else b""
    untouched = found.start is not None and found.sequence == 0 and not disk.rows("state_stored") and not found.closed
    restored = Restored(found.signed, found.start, found.rounds_done, outgoing, found.closed, state, untouched)
    machine = Machine(me, roster, proposal, sequence=found.sequence, restored=restored, verify=verify)
    own = list(found.own)
    if found.approved is not None and found.start is None:
        plan, samples = found.approved
        own.insert(0, ("approval", Approval(proposal.run, plan, samples, prekey).encode()))
    return Start(machine, tuple(own), found.approved is not None)


def _read(disk: Disk, roster: Roster, proposal: Proposal, verify: Verify) -> _Found:
    found = _Found()
    for row in disk.entries:
        body = row.body
        match row.kind:
            case "plan_approved":
                found.approved = Digest(body["plan"]), body["samples"]
            case "start_signed":
                found.signed = Digest(body["record"])
                found.own.append(("start-signature", StartSignature(proposal.run, found.signed).encode()))
            case "run_started":
                found.start = _start_record(proposal, row.documents[0][1], roster, verify)
            case "delta_sent":
                found.sequence = body["sequence"] + 1
                core = open_core(decode_announcement(row.documents[0][1]).core, verify)[1]
                found.waiting[Digest(body["core"])] = (core, set(body["to"]))
            case "acknowledged":
                for digest in body["cores"]:
                    if digest in found.waiting:
                        found.waiting[digest][1].discard(body["peer"])
            case "mixed":
                found.rounds_done = max(found.rounds_done, body["round"] + 1) if body["edges"] else found.rounds_done
            case "run_closed":
                found.closed = True
                found.own.append(("closing", closing_from_entry(proposal.run, body).encode()))
    return found


def _start_record(proposal: Proposal, payload: bytes, roster: Roster, verify: Verify) -> StartRecord:
    approvals = {}
    for data in decode_start(payload).approvals:
        envelope, approval = open_approval(data, verify)
        approvals[envelope.signer] = approval
    return proposal.start_record(participants_of(proposal, approvals, roster.peer_ids))
