"""The vocabulary of the audit log: what kinds of entries exist, what each means, which fields its body has.

The log itself takes any well-formed kind (it never decides what must be logged), and verification does not
look at kinds, so a newer peer's log can still be checked by an older program.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType


class Kind(StrEnum):
    """Name of an entry kind; the value is what stands in the file."""

    LOG_CREATED = "log_created"
    PEER_STARTED = "peer_started"
    RECOVERED = "recovered"
    CHARTER_ACCEPTED = "charter_accepted"
    MEMBER_RECORD = "member_record"
    DATA_REGISTERED = "data_registered"
    LINK_UP = "link_up"
    LINK_CHANGED = "link_changed"
    LINK_DOWN = "link_down"
    PLAN_PROPOSED = "plan_proposed"
    PLAN_APPROVED = "plan_approved"
    START_SIGNED = "start_signed"
    RUN_STARTED = "run_started"
    ROUND_STARTED = "round_started"
    DELTA_SENT = "delta_sent"
    DELTA_RECEIVED = "delta_received"
    DELTA_IGNORED = "delta_ignored"
    REFUSED = "refused"
    EQUIVOCATION = "equivocation"
    MIXED = "mixed"
    EDGE_UNSETTLED = "edge_unsettled"
    CAUGHT_UP = "caught_up"
    STATE_OFFERED = "state_offered"
    ABSENT = "absent"
    PAUSE_ASKED = "pause_asked"
    PAUSE_ENDED = "pause_ended"
    ACKNOWLEDGED = "acknowledged"
    STATE_STORED = "state_stored"
    DIRECTIVE_SIGNED = "directive_signed"
    DIRECTIVE_HEARD = "directive_heard"
    RUN_CLOSED = "run_closed"
    CLOSING_HEARD = "closing_heard"
    KEEPING_BEGUN = "keeping_begun"
    KEEPING_ENDED = "keeping_ended"
    EPOCH_OPENED = "epoch_opened"
    LOSS_DECLARED = "loss_declared"
    LOSS_WITNESSED = "loss_witnessed"
    LOG_MISBEHAVIOUR = "log_misbehaviour"
    HEAD_WITHHELD = "head_withheld"
    MODEL_WRITTEN = "model_written"
    TEXT_ERASED = "text_erased"


@dataclass(frozen=True, slots=True)
class KindNote:
    """What a kind means and the body fields it may have (digests are 64 hexadecimal digits)."""

    meaning: str
    fields: tuple[str, ...]


NOTES: Mapping[Kind, KindNote] = MappingProxyType(
    {
        Kind.LOG_CREATED: KindNote("the first entry; binds the log's identity", ("format", "log", "origin", "created")),
        Kind.PEER_STARTED: KindNote("the peer process came up", ("peer", "name")),
        Kind.RECOVERED: KindNote("the peer found what a crash had left: rolled forward, or dropped", ("what",)),
        Kind.CHARTER_ACCEPTED: KindNote("this site accepted a charter version", ("charter", "version")),
        Kind.MEMBER_RECORD: KindNote(
            "a newer record of a member was taken (from: who told it) or of this site was made",
            ("peer", "sequence", "from"),
        ),
        Kind.DATA_REGISTERED: KindNote("a dataset was registered for a run", ("tag", "fingerprint", "rows", "run")),
        Kind.LINK_UP: KindNote("an authenticated link to a member came up", ("peer", "kind")),
        Kind.LINK_CHANGED: KindNote("a live link went over to another kind", ("peer", "was", "kind")),
        Kind.LINK_DOWN: KindNote("a link went down", ("peer", "reason")),
        Kind.PLAN_PROPOSED: KindNote("this site proposed a run of a plan", ("run", "plan", "seed")),
        Kind.PLAN_APPROVED: KindNote("this site approved a plan for a run", ("run", "plan", "samples")),
        Kind.START_SIGNED: KindNote("this site signed the run's start record", ("run", "record")),
        Kind.RUN_STARTED: KindNote(
            "the start record is valid; the run begins; law, where the topology has weights of its own: what each site "
            "counts",
            ("run", "record", "plan", "charter", "initial", "participants", "signers", "staleness", "law"),
        ),
        Kind.ROUND_STARTED: KindNote("a round began here", ("run", "round", "active", "arguments")),
        Kind.DELTA_SENT: KindNote(
            "a delta may leave; its core and wrapped keys are the document with role outbox",
            ("run", "sequence", "round", "step", "channel", "core", "to", "bytes"),
        ),
        Kind.DELTA_RECEIVED: KindNote(
            "a member's delta was opened, checked and taken",
            ("run", "peer", "round", "step", "channel", "core"),
        ),
        Kind.DELTA_IGNORED: KindNote("a late or repeated delta had no effect", ("run", "origin", "round", "reason")),
        Kind.REFUSED: KindNote("a message or a stranger was refused", ("run", "peer", "reason")),
        Kind.EQUIVOCATION: KindNote(
            "a member signed two different cores for one place; both are kept as evidence",
            ("run", "peer", "round", "step", "channel"),
        ),
        Kind.MIXED: KindNote(
            "the model was mixed over these edges; digest is that of the parameters that travel, afterwards (between "
            "two mixings of one round: of the message as mixed so far); inertia, in accelerated closing rounds: which "
            "part of the displacement of the round before was added once more",
            ("run", "round", "step", "edges", "taken_back", "digest", "inertia"),
        ),
        Kind.EDGE_UNSETTLED: KindNote(
            "an edge left the window unsettled: recorded bias", ("run", "peer", "round", "step")
        ),
        Kind.CAUGHT_UP: KindNote(
            "before round, after away rounds without this site: own parameters times own, the rest from states [peer, "
            "weight, round, core, holder it came from]; distance is the norm of the jump, moved that times the site's "
            "share",
            ("run", "round", "away", "own", "states", "distance", "moved"),
        ),
        Kind.STATE_OFFERED: KindNote(
            "origin's sealed delta, held here, may be pulled by peer, whom origin had named as a recipient",
            ("run", "peer", "origin", "round", "step", "core"),
        ),
        Kind.ABSENT: KindNote(
            "a site (without the field peer: this one) takes no part; paused: it waits, and goes on from there",
            ("run", "peer", "round", "until", "reason", "paused"),
        ),
        Kind.PAUSE_ASKED: KindNote("this site's user pauses its part, from the end of this round on", ("run", "round")),
        Kind.PAUSE_ENDED: KindNote("this site's user lets it take part again", ("run", "round")),
        Kind.ACKNOWLEDGED: KindNote("a member has these cores in its own log", ("run", "peer", "cores")),
        Kind.STATE_STORED: KindNote(
            "what a restart goes on from; digest is SHA-256 of the machine's state",
            ("run", "round", "step", "stage", "digest"),
        ),
        Kind.DIRECTIVE_SIGNED: KindNote(
            "this site, the run's proposer, directs it (as signed: the document with role directive)",
            ("run", "version", "paused_from", "stop_at", "changes", "joined"),
        ),
        Kind.DIRECTIVE_HEARD: KindNote(
            "the proposer's word, as it signed it (the document with role directive)",
            ("run", "version", "paused_from", "stop_at", "changes", "joined"),
        ),
        Kind.EPOCH_OPENED: KindNote(
            "this site's log was behind what witnesses hold of it: it goes on from its first kept entries under a new "
            "epoch; lost are the entries from there up to each size in lost, [epoch, size, root], heads are the notes",
            ("epoch", "kept", "lost", "heads", "reason"),
        ),
        Kind.LOSS_DECLARED: KindNote(
            "later in the epoch another witness turned out to hold more of what was lost",
            ("epoch", "kept", "lost", "heads", "reason"),
        ),
        Kind.LOSS_WITNESSED: KindNote(
            "a member declared a loss in its log, whose first held entries had been checked here; kept is its own word",
            ("peer", "epoch", "kept", "held"),
        ),
        Kind.LOG_MISBEHAVIOUR: KindNote(
            "a member's log contradicts what its key has signed; the evidence is kept, as a document and as a file",
            ("peer", "claim", "sizes", "file"),
        ),
        Kind.HEAD_WITHHELD: KindNote(
            "a linked member did not show that its log still holds what it had signed; a finding, no proof",
            ("peer", "asked", "size", "reason"),
        ),
        Kind.RUN_CLOSED: KindNote(
            "this site closed the run",
            (
                "run",
                "finished",
                "rounds_done",
                "digest",
                "missing",
                "unsettled",
                "samples",
                "distance",
                "contributed",
                "reason",
            ),
        ),
        Kind.CLOSING_HEARD: KindNote(
            "another site's closing statement, as it signed it (the document with role closing); contributed "
            "is SHA-256 of that list",
            ("run", "peer", "finished", "rounds_done", "digest", "unsettled", "samples", "distance", "contributed"),
        ),
        Kind.KEEPING_BEGUN: KindNote(
            "from here on this site keeps what it sends and mixes in this run, in clear; limit: bytes of all runs",
            ("run", "limit"),
        ),
        Kind.KEEPING_ENDED: KindNote(
            "from here on nothing more of this run is kept; deleted: nor is what had been, of so many bytes",
            ("run", "deleted", "bytes", "why"),
        ),
        Kind.MODEL_WRITTEN: KindNote(
            "the run's model was written to a file with this SHA-256; digest is that of its parameters",
            ("run", "digest", "file"),
        ),
        Kind.TEXT_ERASED: KindNote("free text of these entries was erased from beside the log", ("entries",)),
    }
)
