"""What the log takes and how it is encoded: kinds, bodies, documents, heads. Nothing here touches a file.

The bytes that are hashed are those of `p2pfl.crypto.log_entries`; the body is hashed as it is stored and never encoded
again (msgpack is not canonical).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from p2pfl.audit.kinds import Kind
from p2pfl.audit.texts import set_apart
from p2pfl.crypto.checkpoints import Checkpoint, sign_checkpoint
from p2pfl.crypto.envelope import Signer
from p2pfl.crypto.log_entries import DATA_LIMIT, ENTRY_OVERHEAD, EntryData, entry_leaf
from p2pfl.crypto.packing import pack, unpack, unpack_short_map
from p2pfl.errors import ConfigError, MalformedMessage, P2PFLError
from p2pfl.types import Digest

FORMAT = 2
"""Version of the file format; a reader refuses any other. Format 1 had no tree."""

HASH_SIZE = 32
START = bytes(HASH_SIZE)
"""Stands in the place of the previous hash in entry 0."""

MAX_DOCUMENT = 8 * 1024 * 1024
"""Bytes of one document: an announcement has at most 64 KiB, a charter of 50 members well below 1 MiB."""

MAX_DOCUMENTS = 64
"""Documents of one entry: evidence has two; the list must fit into a body (64 x about 60 bytes)."""

MAX_KIND = 40
"""Characters of a kind: one or two words."""

MAX_BODY = DATA_LIMIT - ENTRY_OVERHEAD - MAX_KIND
"""Bytes of one body."""

MAX_ENTRIES = 1024
"""Entries of one commit: one round of 50 neighbours with a few channels writes about 200."""

MAX_INTEGER = 2**63 - 1
"""Largest position, size or time: SQLite integers are signed 64-bit."""

DOCUMENTS = "documents"
"""Body field that binds the documents: a list of [role, SHA-256 digest]. Callers cannot use this name."""

_TEXT = frozenset({str})
_KINDS = frozenset(map(str, Kind))
_KIND = re.compile(rf"[a-z][a-z0-9_]{{0,{MAX_KIND - 1}}}")
_ROLE = re.compile(r"[a-z][a-z0-9_]{0,19}")


@dataclass(frozen=True, slots=True)
class NewEntry:
    """What a caller wants written; ``documents`` are (role, content) pairs kept beside the entry."""

    kind: str
    body: Mapping[str, Any]
    documents: tuple[tuple[str, bytes], ...] = ()


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry as it stands in the log; ``time`` is Unix milliseconds, documents are (role, digest)."""

    position: int
    time: int
    kind: str
    body: dict[str, Any]
    hash: bytes
    documents: tuple[tuple[str, Digest], ...] = ()


@dataclass(frozen=True, slots=True)
class Head:
    """What is committed: ``size`` entries under ``root``, the last with ``hash``; ``note`` is the signed checkpoint."""

    size: int
    root: bytes
    hash: bytes
    note: bytes


class Prepared(NamedTuple):
    """A new entry, checked and encoded, that only waits for its position."""

    kind: str
    body: bytes
    documents: tuple[tuple[str, bytes, bytes], ...] = ()  # role, digest, content
    texts: tuple[tuple[str, bytes, str], ...] = ()  # field, salt, what may be erased later


entry_hash = entry_leaf
"""The hash of one entry, 32 bytes: also its leaf in the tree."""


def entry_from_data(data: EntryData) -> Entry:
    """The entry in data that a proof vouches for. Raises MalformedMessage or LimitExceeded."""
    fields, documents = decode_body(data.body)
    named = tuple((role, Digest(digest.hex())) for role, digest in documents)
    digest = entry_hash(data.position, data.time, data.first, data.kind, data.body, data.previous)
    return Entry(data.position, data.time, data.kind, fields, digest, named)


def sign_head(identity: Signer, origin: str, size: int, root: bytes, last: bytes) -> Head:
    """A head with the checkpoint's note, signed by the log's owner."""
    return Head(size, root, last, sign_checkpoint(identity, Checkpoint(origin, size, root)))


def prepare(new: NewEntry, encode: Callable[[object], bytes] = pack) -> Prepared:
    """Check and encode a new entry, with ``encode`` as `pack`; raises ConfigError for what the format cannot hold."""
    if new.kind not in _KINDS and not _KIND.fullmatch(new.kind):
        raise ConfigError(
            f"an audit entry has the kind {new.kind[:60]!r}; use lower-case letters, digits and _, at most 40"
        )
    if DOCUMENTS in new.body:
        raise ConfigError(f"the body of {new.kind} has a field {DOCUMENTS!r}; that name is the log's own, use another")
    if len(new.documents) > MAX_DOCUMENTS:
        raise ConfigError(f"{new.kind} has {len(new.documents)} documents; split it, {MAX_DOCUMENTS} fit one entry")
    documents = []
    for role, content in new.documents:
        if not _ROLE.fullmatch(role):
            raise ConfigError(
                f"a document of {new.kind} has the role {role[:40]!r}; use a lower-case word of at most 20"
            )
        if len(content) > MAX_DOCUMENT:
            raise ConfigError(
                f"a document of {new.kind} has {len(content)} bytes; {MAX_DOCUMENT} fit, keep it in a file"
            )
        documents.append((role, hashlib.sha256(content).digest(), bytes(content)))
    fields = dict(new.body)
    if documents:
        fields[DOCUMENTS] = [[role, digest] for role, digest, _ in documents]
    texts = set_apart(new.kind, fields)
    return Prepared(str(new.kind), _encode_body(new.kind, fields, encode), tuple(documents), texts)


def _encode_body(kind: str, fields: dict[str, Any], encode: Callable[[object], bytes]) -> bytes:
    try:
        body = encode(fields)
        decode_body(body)
    except (TypeError, ValueError, OverflowError, P2PFLError) as error:
        # Read back before it is signed: what this program cannot read again must never enter the log.
        raise ConfigError(
            f"the body of {kind} cannot be logged ({error}); "
            f"give a map of texts to plain values, at most {MAX_BODY} bytes"
        ) from None
    return body


def decode_body(body: bytes) -> tuple[dict[str, Any], tuple[tuple[str, bytes], ...]]:
    """Split a stored body into its fields and the (role, digest) list of its documents.

    Raises MalformedMessage or LimitExceeded.
    """
    value = unpack_short_map(body, limit=MAX_BODY)
    if value is None:
        value = unpack(body, what="audit entry body", limit=MAX_BODY)
    if not isinstance(value, dict) or not _TEXT.issuperset(map(type, value)):
        raise MalformedMessage("an audit entry body is not a map of named fields")
    if DOCUMENTS not in value:
        return value, ()
    listed = value.pop(DOCUMENTS)
    if not isinstance(listed, list) or len(listed) > MAX_DOCUMENTS:
        raise MalformedMessage("an audit entry names its documents in a form that no version writes")
    documents = []
    for row in listed:
        match row:
            case [str(role), bytes(digest)] if _ROLE.fullmatch(role) and len(digest) == HASH_SIZE:
                documents.append((role, digest))
            case _:
                raise MalformedMessage("an audit entry names a document in a form that no version writes")
    return value, tuple(documents)
