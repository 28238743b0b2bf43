"""What a restarted peer reads from its log about a run it had begun."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from p2pfl.audit import AuditLog, Entry
from p2pfl.gossip import Proposal, Restored, read_log
from p2pfl.gossip.anchors import SENT
from p2pfl.types import Digest, PeerId, Roster


@dataclass(frozen=True, slots=True)
class RestoredRun:
    """The machine's part and what may have to be sent again."""

    state: Restored
    sequence: int
    outbox: tuple[tuple[Digest, bytes, int], ...]  # core, stored document, position of its entry
    state_digest: Digest | None = None  # of the newest stored state that a commit names
    approved: tuple[Digest, int] | None = None  # plan and samples, while the run has not begun, or began without us
    statements: tuple[tuple[str, bytes], ...] = ()  # (kind, payload) of own statements that the log vouches for


def restored_run(log: AuditLog, proposal: Proposal, roster: Roster, me: PeerId) -> RestoredRun:
    """Rebuild from the log: what was signed, whether the run had begun or was closed, what is unacknowledged."""

    def document(entry: Entry) -> bytes:
        stored = log.document(entry.documents[0][1])
        assert stored is not None
        return stored

    rows = [entry for entry in log.entries() if entry.body.get("run") == proposal.run]
    found = read_log([(row.kind, row.body, partial(document, row)) for row in rows], proposal, roster)
    state = found.restored(lambda digest, peers: True, b"")
    positions = {row.body["core"]: row.position for row in rows if row.kind == SENT}
    outbox = tuple((digest, found.waiting[digest][2], positions[digest]) for digest, _, _ in state.outgoing)
    approved = None if found.start and me in found.start.shares else found.approved
    return RestoredRun(state, found.sequence, outbox, found.state_digest, approved, tuple(found.statements))
