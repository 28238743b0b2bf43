"""The address book: the newest valid member record of each member, on top of those in the charter.

A record counts because its owner signed it, whoever told it. The newest one is the whole truth about its owner:
certificates that it no longer lists are no longer trusted. One file per member, so that a restart forgets nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path

from cryptography import x509

from p2pfl.crypto import sha256
from p2pfl.errors import ConfigError, Equivocation, LimitExceeded, NotAMember, RemoteError, StoreError
from p2pfl.files import read_bounded, write_atomic
from p2pfl.governance.charter import Charter
from p2pfl.governance.records import RECORD_LIMIT, open_record, record_from_text, record_to_text
from p2pfl.types import Member, PeerId, Roster

RECORDS_PER_HOUR = 12  # taken per member; a hospital's address changes a few times a year, a restart makes one record
FURTHEST_EXPIRY = 400 * 24 * 3600  # seconds from now; our own records live 366 days, the rest is clock skew
NOTES = 16  # kept at most; a folder full of foreign files must not fill the log

_HOUR = 3600
_SUFFIX = ".record"
_FILE_LIMIT = 4 * RECORD_LIMIT  # bytes of a record's text form


class StaleRecord(RemoteError):
    """An older record than the one known; the sender may not have heard of the newer one yet."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What `AddressBook.take` found: whose record it is, and whether it is news."""

    member: Member
    new: bool


@dataclass(slots=True)
class Pace:
    """At most ``limit`` events in any hour; remembers no more than that many times."""

    limit: int
    times: deque[int] = field(default_factory=deque)

    def allows(self, now: int) -> bool:
        """Whether one more fits at ``now`` (Unix seconds)."""
        while self.times and not now - _HOUR < self.times[0] <= now:  # a clock set back must not block for long
            self.times.popleft()
        return len(self.times) < self.limit

    def count(self, now: int) -> None:
        """One more has happened."""
        self.times.append(now)


class AddressBook:
    """Records of members only, at most one per member in memory and on disk.

    ``folder`` is made with the first record. What is damaged or foreign in it is ignored and said in ``notes``.
    """

    def __init__(self, folder: Path, charter: Charter, now: int) -> None:
        self._folder = folder
        self._base = {member.peer_id: member for member in charter.members}
        self._base_records = dict(zip(self._base, charter.records, strict=True))
        self._records = dict(self._base_records)
        self._newest: dict[PeerId, Member] = dict(self._base)
        self._expired: dict[PeerId, int] = {}  # sequence of a record that expired: no older one comes after it
        self._paces = {peer: Pace(RECORDS_PER_HOUR) for peer in self._base}
        self.notes: list[str] = []
        self._restore(now)

    # --- what it knows

    def roster(self, base: Roster) -> Roster:
        """``base`` with the newest records; charter, order and rules are unchanged."""
        return replace(base, members=tuple(self._newest.get(member.peer_id, member) for member in base.members))

    @property
    def newer(self) -> dict[PeerId, Member]:
        """Members whose newest record is not the charter's."""
        return {peer: member for peer, member in self._newest.items() if member is not self._base[peer]}

    def member(self, peer: str) -> Member | None:
        """The newest record of a member; None for a stranger."""
        return self._newest.get(PeerId(peer))

    def record(self, peer: PeerId) -> bytes:
        """The newest record's bytes, as its owner signed them."""
        return self._records[peer]

    def summary(self, now: int) -> dict[str, int]:
        """Peer id -> number of the newest record, those that still hold."""
        return {peer: member.sequence for peer, member in self._newest.items() if member.expires > now}

    # --- what it takes

    def take(self, record: bytes, now: int) -> Verdict:
        """Check a record and keep it if it is news; the same one again has no effect. ``now``: Unix seconds.

        Raises RemoteError for what no member, or not this one, could honestly say (MalformedMessage,
        SignatureRefused, NotAMember, Equivocation, LimitExceeded, StaleRecord); StoreError when it cannot be written.
        The book is unchanged then.
        """
        member = open_record(record)
        if not self._is_news(member, record, now):
            return Verdict(member, new=False)
        pace = self._paces[member.peer_id]
        if not pace.allows(now):
            raise LimitExceeded(
                f"{_whose(member)}: {RECORDS_PER_HOUR} were taken within an hour, this is too many; refused for now, "
                "it is taken later if it is still the newest",
                peer=member.peer_id,
            )
        try:
            self._folder.mkdir(exist_ok=True, mode=0o700)
        except OSError as error:
            raise StoreError(f"couldn't make {self._folder}: {error.strerror}; check space and rights") from error
        write_atomic(self._path(member.peer_id), record_to_text(record).encode())
        pace.count(now)
        self._keep(member, record)
        return Verdict(member, new=True)

    def drop_expired(self, now: int) -> bool:
        """Go back to the charter's record where a newer one has expired; whether that was so anywhere."""
        gone = [peer for peer, member in self.newer.items() if member.expires <= now]
        for peer in gone:
            self._expired[peer] = self._newest[peer].sequence
            self._newest[peer] = self._base[peer]
            self._records[peer] = self._base_records[peer]
        return bool(gone)

    def _keep(self, member: Member, record: bytes) -> None:
        self._newest[member.peer_id] = member
        self._records[member.peer_id] = record

    def _is_news(self, member: Member, record: bytes, now: int) -> bool:
        """False if just this is known already. Raises RemoteError."""
        base = self._base.get(member.peer_id)
        if base is None:
            raise NotAMember(
                f"a member record signed by {member.peer_id}, whom the charter does not name; refused, only members' "
                "records are taken"
            )
        whose = _whose(replace(member, name=base.name))
        if member.name != base.name:
            raise RemoteError(
                f"{whose} gives the name {member.name!r}; refused, a new name needs a new version of the charter"
            )
        known = self._newest[member.peer_id]
        if member == known:
            return False
        if member.expires <= now:
            raise LimitExceeded(f"{whose} expired on {_day(member.expires)}; refused, ask {base.name} for a new one")
        if member.expires > now + FURTHEST_EXPIRY:
            raise LimitExceeded(
                f"{whose} would hold until {_day(member.expires)}, more than {FURTHEST_EXPIRY // 86400} days; refused, "
                "compare the clocks of the two sites"
            )
        newest = max(known.sequence, self._expired.get(member.peer_id, 0))
        if member.sequence < newest:
            raise StaleRecord(f"{whose} is stale; refused, number {newest} is known here")
        if member.sequence == newest:
            raise self._twin(whose, member, record)
        self._check_unlike_others(whose, member)
        return True

    def _twin(self, whose: str, member: Member, record: bytes) -> RemoteError:
        same = self._newest[member.peer_id].sequence == member.sequence
        known = sha256(self._records[member.peer_id])[:16] if same else "another, which has expired"
        return Equivocation(
            f"{whose} was signed twice with different contents: {sha256(record)[:16]} was told now, {known} is known; "
            f"the first is kept, ask {member.name} which one is right",
            peer=member.peer_id,
        )

    def _check_unlike_others(self, whose: str, member: Member) -> None:
        """OpenSSL picks a trust anchor by subject: a copied certificate or subject would shut its owner out."""
        own = {_subject(certificate) for certificate in member.certificates}
        for other in (*self._base.values(), *self.newer.values()):
            if other.peer_id != member.peer_id and not own.isdisjoint(map(_subject, other.certificates)):
                raise RemoteError(
                    f"{whose} has a certificate that TLS cannot tell from one of {_called(other)}; refused, ask "
                    f"{member.name} for a record with a new certificate",
                    peer=member.peer_id,
                )

    # --- files

    def _path(self, peer: PeerId) -> Path:
        return self._folder / f"{peer}{_SUFFIX}"

    def _files(self) -> Iterator[Path]:
        try:
            yield from sorted(self._folder.iterdir())
        except FileNotFoundError:
            pass
        except OSError as error:
            self._note(
                f"{self._folder} cannot be read ({error.strerror}), the charter's records are used; move it away"
            )

    def _restore(self, now: int) -> None:
        for path in self._files():
            if path.name.endswith(".new"):
                continue  # half-written when a peer ended, or a running one is just writing it
            peer = PeerId(path.name.removesuffix(_SUFFIX))
            if peer not in self._base or path != self._path(peer):
                self._note(f"{path} is no record of a member and was ignored; move it away")
                continue
            try:
                self._restore_one(path, peer, now)
            except (ConfigError, RemoteError, UnicodeDecodeError) as error:
                self._note(f"{path} was ignored ({error}); it comes again from the neighbours")

    def _restore_one(self, path: Path, peer: PeerId, now: int) -> None:
        record = record_from_text(read_bounded(path, _FILE_LIMIT).decode("utf-8"))
        said = open_record(record)
        if said.peer_id != peer:
            raise ConfigError(f"it is the record of {said.peer_id}; move it away")
        if said.sequence < self._base[peer].sequence:
            return  # the charter has a newer one
        if said.expires <= now:
            self._expired[peer] = said.sequence
            return
        if self._is_news(said, record, now):
            self._keep(said, record)

    def _note(self, text: str) -> None:
        if len(self.notes) < NOTES:
            self.notes.append(text)


@lru_cache(maxsize=1024)  # certificates of 64 members, three each, and their successors
def _subject(certificate: bytes) -> bytes:
    return x509.load_der_x509_certificate(certificate).subject.public_bytes()


def _called(member: Member) -> str:
    return f"{member.name} ({member.peer_id})"


def _whose(member: Member) -> str:
    return f"the member record number {member.sequence} of {_called(member)}"


def _day(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d")
