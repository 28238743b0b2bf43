"""What a peer's log says of a run it knew before a restart: one reading, for the peer and for simulations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from p2pfl.crypto import Verify, verify_signature
from p2pfl.gossip.anchors import decode_outbound
from p2pfl.gossip.closing_statement import closing_from_entry
from p2pfl.gossip.memory import Restored
from p2pfl.gossip.messages import Core, open_core
from p2pfl.gossip.starting import record_from_payload
from p2pfl.gossip.statements import Proposal, StartSignature
from p2pfl.types import Digest, PeerId, Roster, StartRecord

Entry = tuple[str, Mapping[str, Any], Callable[[], bytes]]
"""Kind, body, and how to get the entry's first document."""


@dataclass(slots=True)
class FromLog:
    """What the entries of one run say, oldest first."""

    signed: Digest | None = None
    start: StartRecord | None = None
    sequence: int = 0  # of the next core
    rounds_done: int = 0
    closed: bool = False
    state_digest: Digest | None = None  # of the newest stored state that a commit names
    paused: bool | None = None  # by the user; None: never
    approved: tuple[Digest, int] | None = None  # plan and samples
    statements: list[tuple[str, bytes]] = field(default_factory=list)  # (kind, payload) of own ones it vouches for
    directive: bytes = b""  # payload of the newest own one
    waiting: dict[Digest, tuple[Core, set[PeerId], bytes]] = field(default_factory=dict)  # core, who lacks it, stored

    def restored(self, kept: Callable[[Digest, frozenset[PeerId]], bool], state: bytes) -> Restored:
        """For the machine: of the unacknowledged cores those whose content is ``kept``, and the stored state."""
        rows = [(digest, core, frozenset(peers)) for digest, (core, peers, _) in self.waiting.items() if peers]
        outgoing = tuple(row for row in rows if kept(row[0], row[2]))
        begun = self.start is not None and not self.closed
        untouched = begun and self.sequence == 0 and self.state_digest is None
        return Restored(self.signed, self.start, self.rounds_done, outgoing, self.closed, state, self.paused, untouched)


def read_log(
    entries: Iterable[Entry], proposal: Proposal, roster: Roster, verify: Verify = verify_signature
) -> FromLog:
    """What was signed, whether the run had begun or was closed, what is unacknowledged; all entries are of this run."""
    found = FromLog()
    for kind, body, document in entries:
        match kind:
            case "plan_approved":
                found.approved = Digest(body["plan"]), body["samples"]
            case "start_signed":
                found.signed = Digest(body["record"])
                found.statements.append(("start-signature", StartSignature(proposal.run, found.signed).encode()))
            case "run_started":
                found.start = record_from_payload(proposal, document(), roster.peer_ids, verify)
            case "delta_sent":
                found.sequence = body["sequence"] + 1
                stored = document()
                core = open_core(decode_outbound(stored).core, verify)[1]
                found.waiting[Digest(body["core"])] = (core, set(body["to"]), stored)
            case "acknowledged":
                for digest in body["cores"]:
                    if digest in found.waiting:
                        found.waiting[digest][1].discard(body["peer"])
            case "state_stored":
                found.state_digest = Digest(body["digest"])
            case "mixed" if body["edges"]:
                found.rounds_done = max(found.rounds_done, body["round"] + 1)
            case "pause_asked" | "pause_ended":
                found.paused = kind == "pause_asked"
            case "directive_signed":
                found.directive = document()
            case "run_closed":
                found.closed = True
                found.statements.append(("closing", closing_from_entry(proposal.run, body).encode()))
    if found.directive:
        found.statements.append(("directive", found.directive))
    return found
