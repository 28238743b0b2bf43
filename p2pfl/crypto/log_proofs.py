"""Owns the proof that an entry stands in a log, in one text that is checked offline (c2sp.org/tlog-proof, version 1).

The entry's data rides along as ``extra``: it is the leaf, so the checkpoint's signature vouches for it by the path.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from p2pfl.crypto.base64_text import from_base64, to_base64
from p2pfl.crypto.checkpoints import Checkpoint, open_checkpoint
from p2pfl.crypto.digests import DIGEST_BYTES
from p2pfl.crypto.envelope import Verify
from p2pfl.crypto.identity import verify_signature
from p2pfl.crypto.log_entries import DATA_LIMIT, EntryData, read_entry_data
from p2pfl.crypto.merkle import leaf_hash
from p2pfl.crypto.notes import NOTE_LIMIT
from p2pfl.crypto.proofs import MAX_PROOF, check_inclusion
from p2pfl.errors import LimitExceeded, MalformedMessage, SignatureRefused

TITLE = "c2sp.org/tlog-proof@v1"

PROOF_LIMIT = NOTE_LIMIT + 2 * DATA_LIMIT
"""Bytes of one proof: a note, an entry in base64, and 63 hashes of 45 characters."""

_INDEX = re.compile(r"index (0|[1-9][0-9]{0,18})")


@dataclass(frozen=True, slots=True)
class LogProof:
    """An entry's data (`p2pfl.crypto.log_entries`), its place, the path to the root, and the checkpoint's note."""

    entry: bytes
    index: int
    path: tuple[bytes, ...]
    checkpoint: bytes

    def encode(self) -> bytes:
        """The text; a proof has one spelling."""
        lines = [TITLE, f"extra {to_base64(self.entry)}", f"index {self.index}", *map(to_base64, self.path)]
        return "\n".join([*lines, "", ""]).encode() + self.checkpoint

    def open(self, origin: str, peer_id: str, verify: Verify = verify_signature) -> tuple[EntryData, Checkpoint]:
        """The entry, after checking that the log with this origin and owner holds it.

        Raises MalformedMessage, LimitExceeded or SignatureRefused.
        """
        checkpoint = open_checkpoint(self.checkpoint, origin, peer_id, verify)
        check_inclusion(leaf_hash(self.entry), self.index, checkpoint.size, self.path, checkpoint.root)
        entry = read_entry_data(self.entry)
        if entry.position != self.index:
            raise SignatureRefused(f"an entry of the log of {peer_id} says another place than it stands at; drop it")
        return entry, checkpoint


def read_log_proof(data: bytes) -> LogProof:
    """Take a proof apart; nothing is verified. Raises MalformedMessage or LimitExceeded."""
    if len(data) > PROOF_LIMIT:
        raise LimitExceeded(f"a log proof has {len(data)} bytes, more than {PROOF_LIMIT}; drop it")
    head, gap, checkpoint = data.partition(b"\n\n")
    try:
        lines = head.decode("ascii").split("\n")
    except UnicodeDecodeError:
        raise _malformed() from None
    if not gap or len(lines) < len((TITLE, "extra", "index")) or lines[0] != TITLE:
        raise _malformed()
    entry = from_base64(lines[1].removeprefix("extra "))
    index = _INDEX.fullmatch(lines[2])
    path = tuple(from_base64(line) or b"" for line in lines[3:])
    if not lines[1].startswith("extra ") or entry is None or index is None or len(path) > MAX_PROOF:
        raise _malformed()
    if any(len(item) != DIGEST_BYTES for item in path):
        raise _malformed()
    return LogProof(entry, int(index[1]), path, checkpoint)


def _malformed() -> MalformedMessage:
    return MalformedMessage(f"this is no log proof of the form {TITLE} with its entry; ask for it again")
