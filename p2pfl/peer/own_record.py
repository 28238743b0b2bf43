"""What this home says of itself: its member record is kept true to its settings, and renewed before it expires.

Rotation with overlap. A new certificate is told first, in a record that lists it behind the one in use; it is shown
`SWITCH_BEFORE` seconds before the old one ends, when the others have known it for weeks. The two keys have two files.
"""

from __future__ import annotations

import time
import tomllib
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from p2pfl.crypto import Certificate, Identity, certificate_expiry, create_certificate
from p2pfl.errors import ConfigError
from p2pfl.files import write_atomic
from p2pfl.governance import AddressBook, Verdict, make_record, open_record, record_from_text, record_to_text
from p2pfl.peer.home import RECORD_LIFETIME, Home, needs_discovery, open_home, read_text, tls_password, told_addresses
from p2pfl.peer.home_settings import HomeSettings
from p2pfl.types import Member

DAY = 24 * 3600  # seconds
RENEW_BEFORE = 30 * DAY  # long enough that the others hear of it although a site was off for some weeks
SWITCH_BEFORE = 7 * DAY  # the old certificate is still valid then, should the switch need to be taken back

_KEYS = ("tls.key", "tls.next.key")


@dataclass(frozen=True, slots=True)
class OwnRecord:
    """A home's record as it must be now, and the certificate to show. ``new``: not yet stored."""

    home: Home
    record: bytes
    member: Member
    certificate: Certificate
    new: bool
    new_key: tuple[str, bytes] | None = None  # file name and PEM of a new certificate's key

    def store(self) -> None:
        """Write what is new, the key first: a key without its record is harmless. Raises StoreError."""
        if self.new_key is not None:
            write_atomic(self.home.path / self.new_key[0], self.new_key[1])
        if self.new:
            write_atomic(self.home.path / "member.record", record_to_text(self.record).encode())


def own_record(home: Home, identity: Identity, now: int, above: int = 0) -> OwnRecord:
    """The home's record, made anew if its settings, an expiry or a known number ``above`` asks for it.

    Stores nothing. Raises ConfigError for a record or key file that is missing, damaged or another identity's.
    """
    record = home.record()
    old = open_record(record)
    if old.peer_id != identity.peer_id:
        raise ConfigError(f"{home.path / 'member.record'} is the record of another key; restore it from a backup")
    certificates, keys, new_key = _certificates(home, identity, old, now)
    addresses = tuple(told_addresses(home.settings))
    listens = home.settings.listen is not None
    shown = Certificate(certificates[0], keys[certificates[0]])
    stands = (
        (old.addresses, old.listens, old.certificates) == (addresses, listens, certificates)
        and old.expires - now >= RENEW_BEFORE
        and old.sequence > above
    )
    if stands:
        return OwnRecord(home, record, old, shown, new=False)
    record = make_record(
        identity,
        name=old.name,
        addresses=addresses,
        listens=listens,
        certificates=certificates,
        sequence=max(now, old.sequence + 1, above + 1),
        expires=now + RECORD_LIFETIME,
    )
    return OwnRecord(home, record, open_record(record), shown, new=True, new_key=new_key)


def _certificates(
    home: Home, identity: Identity, old: Member, now: int
) -> tuple[tuple[bytes, ...], dict[bytes, bytes], tuple[str, bytes] | None]:
    """The certificates to list, the one to show first; the key of each that has one here; a new key and its file."""
    listed = [certificate for certificate in old.certificates if certificate_expiry(certificate) > now]
    lasting = [certificate for certificate in listed if certificate_expiry(certificate) - now >= RENEW_BEFORE]
    if len(lasting) == 1 == len(old.certificates) and not (home.path / _KEYS[1]).exists():
        return old.certificates, {lasting[0]: home.tls_key()}, None  # nothing to choose: TLS itself checks the key
    files = _keys(home, identity, listed)
    usable = [certificate for certificate in listed if certificate in files]
    new_key = None
    if not any(certificate in files for certificate in lasting):
        password, until = tls_password(identity), now + RECORD_LIFETIME
        new = create_certificate(identity.peer_id[-12:], not_before=now - 3600, not_after=until, password=password)
        usable = sorted(usable, key=certificate_expiry)[-1:]  # one overlaps with the new one; there are two key files
        taken = [files[certificate][0] for certificate in usable]
        new_key = (next(name for name in _KEYS if name not in taken), new.key_pem)
        usable.append(new.der)
        listed, files[new.der] = usable, new_key
    # a certificate made just now is in nobody's book yet: the old one is shown as long as it holds at all
    needed = 0 if new_key is not None else SWITCH_BEFORE
    usable = sorted(usable, key=certificate_expiry)
    shown = next(certificate for certificate in usable if certificate_expiry(certificate) - now >= needed)
    ordered = (shown, *(certificate for certificate in listed if certificate != shown))
    return ordered, {certificate: files[certificate][1] for certificate in usable}, new_key


def _keys(home: Home, identity: Identity, certificates: list[bytes]) -> dict[bytes, tuple[str, bytes]]:
    """Certificate -> file and PEM of its key. Raises ConfigError for a key file that cannot be read."""
    found: dict[bytes, tuple[str, bytes]] = {}
    publics = [(x509.load_der_x509_certificate(der).public_key(), der) for der in certificates]
    for name in _KEYS:
        path = home.path / name
        if name != _KEYS[0] and not path.exists():
            continue
        pem = read_text(path).encode()
        try:
            public = load_pem_private_key(pem, tls_password(identity)).public_key()
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{path} is damaged, or sealed by another identity; restore it from a backup") from error
        der = next((der for key, der in publics if key == public), None)
        if der is not None:
            found[der] = (name, pem)
    return found


# --- what the owner changes by hand


def change_address(path: Path, listen: str | None, identity: Identity | None, now: int | None = None) -> dict[str, Any]:
    """Let a home listen at ``listen`` (None: nowhere) from its next start on, and make its new member record.

    ``identity`` None tries it only: nothing is signed or written. Returns what becomes of it. Raises ConfigError or
    StoreError; the home is then as before, or its next start makes the record.
    """
    home = open_home(path)
    if listen is not None:
        needs_discovery(listen)
    told = home.settings.tell if listen is not None else None
    wanted = home.settings.model_copy(update={"listen": listen, "tell": told})
    text = _with_listen(read_text(path / "home.toml"), wanted)
    changed = Home(path, wanted)
    facts: dict[str, Any] = {
        "home": str(path),
        "listen": listen,
        "before": home.settings.listen,
        "addresses": told_addresses(wanted),
        "changed": wanted != home.settings,
    }
    if identity is None:
        return facts
    own = own_record(changed, identity, int(time.time()) if now is None else now)
    if wanted != home.settings:
        write_atomic(path / "home.toml", text.encode())
    own.store()
    return {**facts, "sequence": own.member.sequence, "new_record": own.new, "record": record_to_text(own.record)}


def _with_listen(text: str, wanted: HomeSettings) -> str:
    """The file with another ``listen`` (and no ``tell`` without one); other lines stay where that can be done."""
    new = [line for line in wanted.to_toml().splitlines() if line.startswith("listen = ")]
    lines = text.splitlines()
    top = next((place for place, line in enumerate(lines) if line.lstrip().startswith("[")), len(lines))
    old = next((place for place, line in enumerate(lines[:top]) if line.split("=")[0].strip() == "listen"), None)
    if old is not None:
        lines[old : old + 1] = new
    else:
        lines[top:top] = [*new, ""] if top < len(lines) else new
    edited = "\n".join(lines) + "\n"
    try:
        if HomeSettings.model_validate(tomllib.loads(edited)) == wanted:
            return edited
    except ValueError:
        pass  # an unusual spelling, such as a value over several lines: write the settings plainly
    return wanted.to_toml()


def take_record(path: Path, text: str, now: int | None = None) -> Verdict:
    """Take another member's record that came by hand into the home's address book, as if a neighbour had told it.

    Raises ConfigError for a text that is no record or a home without a charter, RemoteError for a record refused.
    """
    home = open_home(path)
    moment = int(time.time()) if now is None else now
    book = AddressBook(home.path / "records", home.charter(), moment)
    return book.take(record_from_text(text), moment)


def known_records(path: Path, now: int | None = None) -> list[dict[str, Any]]:
    """What a home knows of each member, in the charter's order: addresses, number, end. Raises ConfigError."""
    home = open_home(path)
    charter = home.charter()
    book = AddressBook(home.path / "records", charter, int(time.time()) if now is None else now)
    own = home.member()  # perhaps changed since the peer ran last
    newest = {**book.newer, own.peer_id: own}
    members = [newest.get(founder.peer_id, founder) for founder in charter.members]
    return [
        {
            "name": member.name,
            "peer": member.peer_id,
            "addresses": list(member.addresses),
            "listens": member.listens,
            "sequence": member.sequence,
            "newer": member not in charter.members,
            "expires": member.expires,
            "holds_until": datetime.fromtimestamp(member.expires, UTC).strftime("%Y-%m-%d"),
        }
        for member in members
    ]
