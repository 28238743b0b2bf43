"""What a restarted peer reads from its log about a run it had begun."""

from __future__ import annotations

from dataclasses import dataclass

from p2pfl.audit import AuditLog
from p2pfl.gossip import Proposal, Restored
from p2pfl.gossip.messages import Core, decode_announcement, open_core
from p2pfl.gossip.starting import record_from_payload
from p2pfl.gossip.statements import StartSignature, closing_from_entry
from p2pfl.types import Digest, PeerId, Roster, StartRecord


@dataclass(frozen=True, slots=True)
class RestoredRun:
    """The machine's part and the stored announcements that may have to be sent again."""

    state: Restored
    sequence: int
    announcements: tuple[tuple[Digest, bytes], ...]
    state_digest: Digest | None = None  # of the newest stored state that a commit names
    approved: tuple[Digest, int] | None = None  # plan and samples, while the run has not begun
    statements: tuple[tuple[str, bytes], ...] = ()  # (kind, payload) of own statements that the log vouches for


def restored_run(log: AuditLog, proposal: Proposal, roster: Roster) -> RestoredRun:
    """Rebuild from the log: what was signed, whether the run had begun or was closed, what is unacknowledged."""
    signed: Digest | None = None
    start: StartRecord | None = None
    sequence = rounds_done = 0
    closed = False
    state_digest: Digest | None = None
    approved: tuple[Digest, int] | None = None
    statements: list[tuple[str, bytes]] = []
    waiting: dict[Digest, tuple[Core, set[PeerId], bytes]] = {}
    for entry in log.entries():
        body = entry.body
        if body.get("run") != proposal.run:
            continue
        if entry.kind == "plan_approved":
            approved = Digest(body["plan"]), body["samples"]
        elif entry.kind == "start_signed":
            signed = Digest(body["record"])
            statements.append(("start-signature", StartSignature(proposal.run, signed).encode()))
        elif entry.kind == "run_started":
            payload = log.document(entry.documents[0][1])
            assert payload is not None
            start = record_from_payload(proposal, payload, roster.peer_ids)
        elif entry.kind == "delta_sent":
            sequence = body["sequence"] + 1
            stored = log.document(entry.documents[0][1])
            assert stored is not None
            _, core = open_core(decode_announcement(stored).core)
            waiting[Digest(body["core"])] = (core, set(body["to"]), stored)
        elif entry.kind == "acknowledged":
            for core_digest in body["cores"]:
                if core_digest in waiting:
                    waiting[core_digest][1].discard(body["peer"])
        elif entry.kind == "state_stored":
            state_digest = Digest(body["digest"])
        elif entry.kind == "mixed":
            rounds_done = max(rounds_done, body["round"] + 1) if body["edges"] else rounds_done
        elif entry.kind == "run_closed":
            closed = True
            statements.append(("closing", closing_from_entry(proposal.run, body).encode()))
    outgoing = tuple((digest, core, frozenset(peers)) for digest, (core, peers, _) in waiting.items() if peers)
    untouched = start is not None and sequence == 0 and state_digest is None and not closed
    state = Restored(signed, start, rounds_done, outgoing, closed, untouched=untouched)
    stored_now = tuple((digest, waiting[digest][2]) for digest, _, _ in outgoing)
    return RestoredRun(state, sequence, stored_now, state_digest, None if start else approved, tuple(statements))
