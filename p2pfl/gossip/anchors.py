"""How a delta is anchored in its origin's log: what the outbox keeps, what the cover carries, what a receiver checks.

The core is signed before its entry is committed, and the proof exists only afterwards. So the entry's document holds
the core and the wrapped keys; the cover is made and signed when the announcement is sent, with the log's newest
checkpoint and the proof of the entry that names the core. A resend has a newer cover over the same
core: no contradiction.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from p2pfl.crypto import Signer, Verify, log_origin, pack, read_log_proof, sign_envelope, unpack
from p2pfl.errors import MalformedMessage, RemoteError, SignatureRefused
from p2pfl.gossip.messages import ANNOUNCEMENT_LIMIT, Announcement, Cover, check_keys
from p2pfl.types import Digest, PeerId, RunId

SENT = "delta_sent"
"""Kind of the entry that lets a delta out."""


@dataclass(frozen=True, slots=True)
class Outbound:
    """What may leave once its entry is committed: the core's envelope, and the content key for each recipient."""

    run: RunId
    core: bytes
    keys: Mapping[PeerId, bytes]

    def encode(self) -> bytes:
        """The document with role outbox."""
        fields: list[object] = [self.run, self.core, dict(self.keys)]
        return pack(fields)

    def announce(
        self, digest: Digest, identity: Signer, proof: bytes, inline: bytes = b"", witnessed: bytes = b""
    ) -> Announcement:
        """The announcement of the core with this digest under a fresh cover.

        ``proof`` is a `p2pfl.crypto.LogProof`, encoded, of the entry that names the core; ``witnessed`` the
        newest checkpoint with cosignatures, or empty.
        """
        cover = sign_envelope(identity, "cover", Cover(digest, self.keys, proof, witnessed).encode())
        return Announcement(self.run, self.core, cover.encode(), inline)


def decode_outbound(data: bytes) -> Outbound:
    """What `Outbound.encode` gave. Raises MalformedMessage or LimitExceeded."""
    match unpack(data, what="outbox document", limit=ANNOUNCEMENT_LIMIT):
        case [str(run), bytes(core), dict(keys)]:
            check_keys(keys, "outbox document")
            return Outbound(RunId(run), core, keys)
    raise MalformedMessage("an outbox document is not run, core and keys; it is from another version")


def check_anchor(cover: Cover, origin: PeerId, run: RunId, consortium: str, verify: Verify) -> None:
    """Return if the origin's log has the entry that lets this cover's core out, under a checkpoint that it signed.

    The cover's own signature must have been verified: then whatever is wrong here is its origin's fault. Raises
    SignatureRefused with ``peer`` set.
    """
    try:
        entry, _ = read_log_proof(cover.proof).open(log_origin(consortium, origin), origin, verify)
        body = unpack(entry.body, what="a log entry's body", limit=ANNOUNCEMENT_LIMIT)
    except RemoteError as error:
        raise SignatureRefused(f"cover whose log proof does not hold ({error})", peer=origin) from error
    named = (body.get("run"), body.get("core")) if isinstance(body, dict) else None
    if entry.kind != SENT or named != (run, cover.core):
        raise SignatureRefused("cover whose log entry does not name its core", peer=origin)
