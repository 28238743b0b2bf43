"""How a log's owner shows that its log has grown out of what a witness holds, and what that answer is worth.

The owner signs its answer, the held checkpoint included. So a proof that does not hold, a smaller log, and an epoch
that hides what was lost are the owner's own signed words: whoever has them can show them to anybody.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from p2pfl.audit.kinds import Kind
from p2pfl.crypto.checkpoints import Checkpoint, epoch_of, open_checkpoint, plain_checkpoint
from p2pfl.crypto.envelope import Signer, open_envelope, sign_envelope
from p2pfl.crypto.log_entries import DATA_LIMIT
from p2pfl.crypto.log_proofs import PROOF_LIMIT, read_log_proof
from p2pfl.crypto.notes import NOTE_LIMIT
from p2pfl.crypto.packing import pack, read_fields, unpack
from p2pfl.crypto.proofs import MAX_PROOF, check_consistency
from p2pfl.errors import MalformedMessage, RemoteError, SignatureRefused

ANSWER = "log-growth"
ANSWER_LIMIT = 2 * NOTE_LIMIT + PROOF_LIMIT + 64 * MAX_PROOF
MAX_LOST = 64
"""Heads that one declaration names: one per witness."""

ROLLBACK, GROWTH, FORK = "rollback", "growth", "fork"
CLAIMS = {
    FORK: "two checkpoints of one size and epoch, both signed, have different roots",
    GROWTH: "the signed answer says that the newer log holds the older one, and its proof does not hold",
    ROLLBACK: "the signed answer gives a log that is smaller than what the same key had signed, or in an epoch before "
    "that, and does not declare the loss",
}


@dataclass(frozen=True, slots=True)
class Answer:
    """The owner's words: from the ``held`` note to its ``newest``, by a consistency proof, or by a declared loss.

    ``loss`` is a tlog-proof, under the newest note, of the entry that declares what of ``held`` was lost; or empty.
    """

    held: bytes
    newest: bytes
    proof: tuple[bytes, ...] = ()
    loss: bytes = b""

    def sign(self, owner: Signer) -> bytes:
        """The envelope."""
        fields: dict[str, object] = {
            "held": self.held, "newest": self.newest, "proof": list(self.proof), "loss": self.loss
        }  # fmt: skip
        return sign_envelope(owner, ANSWER, pack(fields)).encode()


@dataclass(frozen=True, slots=True)
class Judged:
    """A newest checkpoint that follows from the held one.

    ``kept`` and ``declared`` (the epoch of that entry) are set where a loss was declared on the way.
    """

    newest: Checkpoint
    note: bytes
    epoch: int
    kept: int | None = None
    declared: int = 0


class LogMisbehaviour(RemoteError):
    """A log contradicts what its owner has signed; ``claim`` is one of `CLAIMS`, ``notes`` and ``answer`` prove it."""

    def __init__(self, claim: str, peer: str, notes: tuple[bytes, bytes], answer: bytes = b"") -> None:
        super().__init__(f"the log of {peer} contradicts itself: {CLAIMS[claim]}; keep the evidence", peer=peer)
        self.claim = claim
        self.notes = notes
        self.answer = answer


def open_answer(data: bytes, owner: str) -> Answer:
    """The answer in an envelope of the log's owner. Raises MalformedMessage, LimitExceeded or SignatureRefused."""
    envelope = open_envelope(data, kinds=(ANSWER,), limit=ANSWER_LIMIT)
    if envelope.signer != owner:
        raise SignatureRefused(f"an answer about the log of {owner} is signed by {envelope.signer}; drop it")
    spec: dict[str, type | tuple[type, ...]] = {"held": bytes, "newest": bytes, "proof": list, "loss": bytes}
    fields = read_fields(unpack(envelope.payload, what="a log's growth", limit=ANSWER_LIMIT), "a log's growth", spec)
    proof = fields["proof"]
    if len(proof) > MAX_PROOF or not all(isinstance(item, bytes) for item in proof):
        raise MalformedMessage("a log's growth has no list of hashes as its proof; ask its owner again")
    return Answer(fields["held"], fields["newest"], tuple(proof), fields["loss"])


def compare_notes(first: bytes, second: bytes, origin: str, owner: str) -> None:
    """Return unless two notes of one log contradict each other by themselves.

    Raises LogMisbehaviour where they do; other RemoteErrors for what is no checkpoint of this log.
    """
    one, other = open_checkpoint(first, origin, owner), open_checkpoint(second, origin, owner)
    if (one.origin, one.size) == (other.origin, other.size) and one.root != other.root:
        raise LogMisbehaviour(FORK, owner, (first, second))


def judge(data: bytes, held: bytes, origin: str, owner: str) -> Judged:
    """What an answer about the log named ``origin`` shows to whoever holds the note ``held`` (empty: no note yet).

    Raises LogMisbehaviour for what is evidence against the owner; other RemoteErrors for what is merely of no use.
    """
    answer = open_answer(data, owner)
    if answer.held != held:
        raise SignatureRefused(f"{owner} answers for another checkpoint than it was asked about; ask again", peer=owner)
    newest, plain = plain_checkpoint(answer.newest, origin, owner)
    if plain != answer.newest:
        raise MalformedMessage(f"{owner} answers with more than its own line on its checkpoint; ask again", peer=owner)
    epoch = epoch_of(newest.origin, origin) or 0
    grown = Judged(newest, answer.newest, epoch)
    if not held:
        return grown
    compare_notes(held, answer.newest, origin, owner)
    old = open_checkpoint(held, origin, owner)
    before, notes = epoch_of(old.origin, origin) or 0, (held, answer.newest)
    if epoch > before and answer.loss:
        return _declared(answer, old, before, grown, origin, owner, data)
    if epoch < before or newest.size < old.size:
        raise LogMisbehaviour(ROLLBACK, owner, notes, data)
    if old.size:
        try:
            check_consistency(old.size, newest.size, answer.proof, old.root, newest.root)
        except SignatureRefused:
            raise LogMisbehaviour(GROWTH, owner, notes, data) from None
    return grown


def _declared(
    answer: Answer, old: Checkpoint, before: int, grown: Judged, origin: str, owner: str, data: bytes
) -> Judged:
    """The loss that the answer shows must be in the newest log, and cover what is held."""
    hidden = LogMisbehaviour(ROLLBACK, owner, (answer.held, answer.newest), data)
    try:
        entry, under = read_log_proof(answer.loss).open(origin, owner)
        body = unpack(entry.body, what="a declared loss", limit=DATA_LIMIT)
        if under != grown.newest or entry.kind not in (Kind.EPOCH_OPENED, Kind.LOSS_DECLARED):
            raise hidden
        kept, declared, lost = _lost(body)
    except LogMisbehaviour:
        raise
    except RemoteError:
        raise hidden from None
    covered = any(
        epoch == before and (size > old.size or (size == old.size and root == old.root)) for epoch, size, root in lost
    )
    if not covered or old.size <= kept:  # what it says to have kept it must prove, not declare lost
        raise hidden
    return Judged(grown.newest, grown.note, grown.epoch, kept, declared)


def _lost(body: Any) -> tuple[int, int, list[tuple[int, int, bytes]]]:
    """How many entries were kept, the epoch since, and the heads (epoch, size, root) that were lost.

    Raises MalformedMessage.
    """
    kept, since, rows = (body.get(name) if isinstance(body, dict) else None for name in ("kept", "epoch", "lost"))
    if type(kept) is not int or type(since) is not int or not isinstance(rows, list) or len(rows) > MAX_LOST:
        raise MalformedMessage("a declared loss does not say what was kept and lost; ask the log's owner")
    found = []
    for row in rows:
        match row:
            case [int(epoch), int(size), bytes(root)]:
                found.append((epoch, size, root))
            case _:
                raise MalformedMessage("a declared loss names a head in no form we know; ask the log's owner")
    return kept, since, found
