"""The charter: the consortium's constitution, one document signed by all founders.

Its bytes are msgpack and never re-encoded to be verified; signatures are Ed25519 over the domain label and those
bytes. Each founder signs its own copy of the file, and copies merge: the union of the signature lines, in peer-id
order, so every order of merging gives the same file.
"""

from __future__ import annotations

import base64
import binascii
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from p2pfl.crypto import Identity, pack, read_fields, sha256, unpack, verify_signature
from p2pfl.errors import ConfigError, PolicyRefusal, RemoteError
from p2pfl.governance.files import replace_file
from p2pfl.governance.records import open_record
from p2pfl.types import Digest, Member, PeerId, Roster

HEADER = "p2pfl charter v1"
SIGNING_DOMAIN = b"p2pfl charter v1\n"
CHARTER_LIMIT = 1 << 20  # bytes of the document; 64 members with four certificates each fit
MAX_MEMBERS = 64
DEFAULT_LIMITS: Mapping[str, int] = {"minimum_participants": 2, "maximum_parameter_bytes": 2**33}


@dataclass(frozen=True)
class Charter:
    """One version of the charter with the signatures it has so far."""

    document: bytes
    version: int
    name: str
    records: tuple[bytes, ...]
    members: tuple[Member, ...]
    quorum: int
    topology: dict[str, Any]
    limits: dict[str, int]
    previous: Digest | None
    signatures: tuple[tuple[PeerId, bytes], ...] = ()

    @property
    def digest(self) -> Digest:
        """SHA-256 of the document: the consortium's name on the network."""
        return sha256(self.document)


def fingerprint(charter: Charter) -> str:
    """The digest in 16 groups of four digits, to be read out by telephone."""
    return " ".join(charter.digest[start : start + 4] for start in range(0, 64, 4))


def new_charter(
    name: str,
    records: Sequence[bytes],
    *,
    quorum: int | None = None,
    topology: Mapping[str, Any] | None = None,
    limits: Mapping[str, int] | None = None,
) -> Charter:
    """Version 1 over the founders' records, in their order. ``quorum`` is a majority unless given. Raises ConfigError."""
    document = pack(
        {
            "version": 1,
            "name": name,
            "records": list(records),
            "quorum": len(records) // 2 + 1 if quorum is None else quorum,
            "topology": dict(topology or {"kind": "ring"}),
            "limits": {**DEFAULT_LIMITS, **(limits or {})},
            "previous": "",
        }
    )
    charter = _decode(document)
    _check_members(charter)
    return charter


def _decode(document: bytes) -> Charter:
    spec: dict[str, type | tuple[type, ...]] = {
        "version": int,
        "name": str,
        "records": list,
        "quorum": int,
        "topology": dict,
        "limits": dict,
        "previous": str,
    }
    try:
        fields = read_fields(unpack(document, what="charter", limit=CHARTER_LIMIT), "charter", spec)
        if not all(isinstance(record, bytes) for record in fields["records"]):
            raise ConfigError("charter: a member record is not bytes; make the charter again")
        if len(fields["records"]) > MAX_MEMBERS:
            raise ConfigError(f"charter: {len(fields['records'])} members, at most {MAX_MEMBERS} are supported")
        members = tuple(open_record(record) for record in fields["records"])
    except RemoteError as error:
        raise ConfigError(f"charter is damaged: {error}; ask a founder for the file again") from error
    return Charter(
        document, fields["version"], fields["name"], tuple(fields["records"]), members, fields["quorum"],
        fields["topology"], fields["limits"], Digest(fields["previous"]) if fields["previous"] else None,
    )  # fmt: skip


def sign_charter(charter: Charter, identity: Identity) -> Charter:
    """The charter with this founder's signature added. Raises ConfigError for a key that is no member."""
    if identity.peer_id not in {member.peer_id for member in charter.members}:
        raise ConfigError("this home is not among the charter's members; use the home whose record was given")
    signature = identity.sign(SIGNING_DOMAIN + charter.document)
    others = [row for row in charter.signatures if row[0] != identity.peer_id]
    return replace(charter, signatures=tuple(sorted([*others, (identity.peer_id, signature)])))


def merge_charters(charters: Iterable[Charter]) -> Charter:
    """One charter with the signatures of all copies. Raises ConfigError for copies of different documents."""
    copies = list(charters)
    if not copies:
        raise ConfigError("nothing to merge; name at least one charter file")
    if len({copy.document for copy in copies}) > 1:
        prints = ", ".join(sorted({fingerprint(copy)[:19] for copy in copies}))
        raise ConfigError(f"these are different charters (fingerprints {prints} ...); all must sign the same file")
    merged: dict[PeerId, bytes] = {}
    for copy in copies:
        for peer, signature in copy.signatures:
            if merged.setdefault(peer, signature) != signature:
                raise ConfigError(f"two different signatures of {peer}; ask this founder to sign again")
    return replace(copies[0], signatures=tuple(sorted(merged.items())))


def missing_signatures(charter: Charter) -> list[Member]:
    """Members whose signature is not there yet."""
    have = {peer for peer, _ in charter.signatures}
    return [member for member in charter.members if member.peer_id not in have]


def check_charter(charter: Charter, now: int) -> Roster:
    """The roster of a valid charter. ``now`` in Unix seconds. Raises ConfigError naming who or what is wrong."""
    _check_members(charter)
    names = {member.peer_id: member.name for member in charter.members}
    for peer, signature in charter.signatures:
        if peer not in names:
            raise ConfigError(f"charter: signature by {peer}, who is no member; remove that line")
        try:
            verify_signature(peer, SIGNING_DOMAIN + charter.document, signature)
        except RemoteError as error:
            raise ConfigError(
                f"charter: the signature of {names[peer]} does not hold; ask {names[peer]} to sign the file again"
            ) from error
    missing = missing_signatures(charter)
    if missing:
        who = ", ".join(member.name for member in missing)
        raise ConfigError(f"charter: not signed by {who}; collect the signatures and merge the files")
    for member in charter.members:
        if member.expires <= now:
            raise ConfigError(f"charter: the record of {member.name} has expired; a new charter version is needed")
    return Roster(charter.digest, charter.members, charter.quorum)


def _check_members(charter: Charter) -> None:
    members = charter.members
    if charter.version != 1 or charter.previous is not None:
        raise ConfigError(f"charter version {charter.version} is not supported by this release; update p2pfl")
    if not 2 <= len(members) <= MAX_MEMBERS:
        raise ConfigError(f"a charter needs 2 to {MAX_MEMBERS} members, not {len(members)}; add member records")
    for what, values in (
        ("name", [member.name for member in members]),
        ("peer id", [str(member.peer_id) for member in members]),
        ("certificate", [sha256(der)[:16] for member in members for der in member.certificates]),
    ):
        if len(set(values)) != len(values):
            double = next(value for value in values if values.count(value) > 1)
            raise ConfigError(f"charter: two members share the {what} {double}; every member needs its own")
    if not len(members) // 2 < charter.quorum <= len(members):
        raise ConfigError(
            f"charter: quorum {charter.quorum} of {len(members)} members; it must be more than half of them"
        )
    if not 1 <= len(charter.name) <= 128 or not charter.name.isprintable():
        raise ConfigError("charter: the consortium's name must be 1 to 128 printable characters")


def charter_to_text(charter: Charter) -> str:
    """The charter file. Lines with # are for people and made anew each time; document and signatures count."""
    body = base64.b64encode(charter.document).decode()
    lines = [HEADER, f"# consortium   {charter.name}", f"# fingerprint  {fingerprint(charter)}"]
    lines += [f"# member       {member.name}  {member.peer_id}" for member in charter.members]
    lines.append(f"# quorum       {charter.quorum} of {len(charter.members)}")
    lines.append(f"# topology     {charter.topology.get('kind')}")
    lines += [body[start : start + 76] for start in range(0, len(body), 76)]
    lines += [f"signature {peer} {base64.b64encode(signature).decode()}" for peer, signature in charter.signatures]
    return "\n".join(lines) + "\n"


def parse_charter(text: str) -> Charter:
    """A charter from its file's text; signatures are checked by `check_charter`. Raises ConfigError."""
    if len(text) > 2 * CHARTER_LIMIT:
        raise ConfigError("charter file is too large; this is not the file meant here")
    lines = [line.strip() for line in text.splitlines()]
    if not lines or lines[0] != HEADER:
        raise ConfigError(f"not a charter: its first line must be {HEADER!r}; ask a founder for the file")
    body, signatures = [], []
    try:
        for line in lines[1:]:
            if line.startswith("signature "):
                _, peer, value = line.split(" ")
                signatures.append((PeerId(peer), base64.b64decode(value, validate=True)))
            elif line and not line.startswith("#"):
                body.append(line)
        document = base64.b64decode("".join(body), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ConfigError(f"charter file is damaged: {error}; ask a founder for the file again") from error
    if len(signatures) > MAX_MEMBERS or len({peer for peer, _ in signatures}) < len(signatures):
        raise ConfigError("charter file has double signature lines; merge the files with `p2pfl charter merge`")
    return replace(_decode(document), signatures=tuple(sorted(signatures)))


def accept_charter(path: Path, charter: Charter, told: str, now: int | None = None) -> Roster:
    """Store a charter whose fingerprint somebody read out. Raises PolicyRefusal when it is another one."""
    import time

    if "".join(told.split()).lower() != charter.digest:
        raise PolicyRefusal(
            f"the fingerprint you were told is not this charter's ({fingerprint(charter)}); "
            "do not accept it, and call the founder who sent it"
        )
    roster = check_charter(charter, int(time.time()) if now is None else now)
    if path.exists():
        known = parse_charter(path.read_text(encoding="utf-8"))
        if known.digest != charter.digest:
            raise PolicyRefusal("this home has accepted another charter; a home belongs to one consortium")
    replace_file(path, charter_to_text(charter).encode())
    return roster
