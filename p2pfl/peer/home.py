"""A peer's home folder: where everything one hospital owns lies, and how it is made.

home.toml       name, listening address, discovery interface (made by `p2pfl init`)
identity.key    Ed25519 key, sealed under a passphrase, or bare with mode 0600
tls.key         the certificate's own key, sealed under a key derived from the identity
tls.next.key    the key of the next certificate, or of the one before (see own_record.py)
member.record   the newest own member record
records/        the other members' newer records, and ours
charter         the accepted charter
ways.json       how each member was reached last
data.json       registered datasets           approvals.json   approved plan hashes
audit.db        log and outbox                outbox/          ciphertexts, until acknowledged
witness.db      checkpoints of others' logs   evidence/        against logs that contradict themselves
kept/<run>/     deltas in clear, only where home.toml says so (see keeping.py)
runs/<run>/     proposal, statements, prekey, model and report of one run
contents/       files named by their SHA-256
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import time
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from p2pfl.crypto import Identity, create_certificate, read_key, write_key
from p2pfl.data import Registry
from p2pfl.errors import ConfigError, StoreError
from p2pfl.files import write_atomic
from p2pfl.governance import (
    ApprovalBook,
    Charter,
    make_record,
    open_record,
    parse_charter,
    record_from_text,
    record_to_text,
)
from p2pfl.net import parse_address, usable_addresses
from p2pfl.peer.home_settings import HomeSettings, WebRtcSettings
from p2pfl.types import Member

TOLD_LIMIT = 8  # addresses of one record, as governance takes them
RECORD_LIFETIME = 366 * 24 * 3600  # seconds; a record and its certificate are renewed within a year

_RUN_ID = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Home:
    """Paths and settings of one home; holds no secret."""

    path: Path
    settings: HomeSettings

    @property
    def audit(self) -> Path:
        """The audit database."""
        return self.path / "audit.db"

    @property
    def witness_store(self) -> Path:
        """What this peer has witnessed, and who has witnessed it."""
        return self.path / "witness.db"

    @property
    def evidence(self) -> Path:
        """The folder of evidence files."""
        return self.path / "evidence"

    @property
    def kept(self) -> Path:
        """The folder of kept deltas."""
        return self.path / "kept"

    @property
    def charter_file(self) -> Path:
        """The accepted charter."""
        return self.path / "charter"

    @property
    def socket(self) -> Path:
        """The control socket of a running `p2pfl up`."""
        return self.path / "control.sock"

    @property
    def ways(self) -> Path:
        """The ways by which members were reached last."""
        return self.path / "ways.json"

    @property
    def registry(self) -> Registry:
        """The registered datasets."""
        return Registry(self.path / "data.json")

    @property
    def approvals(self) -> ApprovalBook:
        """The approved plan hashes."""
        return ApprovalBook(self.path / "approvals.json")

    def run_folder(self, run: str) -> Path:
        """The folder of one run; made when first asked for. Raises ConfigError for what is no run id: no way out."""
        if not _RUN_ID.fullmatch(run):
            raise ConfigError(f"{run[:80]!r} is no run id; give its 64 hexadecimal digits")
        folder = self.path / "runs" / run
        folder.parent.mkdir(exist_ok=True, mode=0o700)  # parents=True would make it with the default mode
        folder.mkdir(exist_ok=True, mode=0o700)
        return folder

    def identity(self, passphrase: str | None) -> Identity:
        """The identity key. Raises ConfigError for a missing or wrong passphrase."""
        return read_key(self.path / "identity.key", passphrase)

    def record(self) -> bytes:
        """The newest own member record."""
        path = self.path / "member.record"
        if not path.exists():
            raise ConfigError(f"{self.path}: no member.record; restore it from a backup, or make a new home")
        return record_from_text(read_text(path))

    def tls_key(self) -> bytes:
        """The sealed key of the certificate, PEM."""
        return read_text(self.path / "tls.key").encode()

    def member(self) -> Member:
        """The own member record, opened."""
        return open_record(self.record())

    def charter(self) -> Charter:
        """The accepted charter. Raises ConfigError when none is accepted."""
        if not self.charter_file.exists():
            raise ConfigError(
                f"{self.path}: no charter accepted yet; run `p2pfl charter accept {self.path} CHARTER "
                "--fingerprint ...` with the fingerprint you were told"
            )
        return parse_charter(read_text(self.charter_file))


def check_new_home(
    path: Path,
    *,
    name: str,
    listen: str | None,
    tell: Sequence[str] | None = None,
    discover: str | None = None,
    webrtc: WebRtcSettings | None = None,
    keep_deltas: bool = False,
) -> HomeSettings:
    """The settings of a home that could be made at ``path``; makes nothing. Raises ConfigError."""
    try:
        if path.exists() and any(path.iterdir() if path.is_dir() else [path]):
            raise ConfigError(f"{path} already exists and is not empty; choose another folder for the new home")
    except OSError as error:
        raise ConfigError(f"couldn't look into {path}: {error.strerror}; choose another folder") from error
    table = {} if webrtc is None else webrtc.model_dump()
    told = list(tell) if tell else None
    raw: dict[str, object] = {"name": name, "listen": listen, "tell": told, "discover": discover, "webrtc": table}
    raw["keep"] = {"deltas": keep_deltas}
    return _checked_settings(path, raw)


def init_home(
    path: Path,
    *,
    name: str,
    listen: str | None,
    tell: Sequence[str] | None = None,
    discover: str | None = None,
    webrtc: WebRtcSettings | None = None,
    keep_deltas: bool = False,
    passphrase: str | None,
) -> str:
    """Make a home: key, certificate, member record, settings. Returns the record's text.

    ``passphrase`` None keeps the key bare with mode 0600. Raises ConfigError or StoreError; an existing home is
    never touched, and a home that could not be made whole is taken away again.
    """
    settings = check_new_home(
        path, name=name, listen=listen, tell=tell, discover=discover, webrtc=webrtc, keep_deltas=keep_deltas
    )
    identity = Identity.generate()
    files, text = _new_files(identity, settings)
    there = path.exists()
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.chmod(0o700)
    except OSError as error:
        raise StoreError(f"couldn't make {path}: {error.strerror}; choose a folder you may write to") from error
    try:
        write_key(path / "identity.key", identity, passphrase)
        for called, data in files.items():
            write_atomic(path / called, data)
    except BaseException:
        with contextlib.suppress(OSError):
            for called in ("identity.key", *files):
                (path / called).unlink(missing_ok=True)
            if not there:
                path.rmdir()
        raise
    return text


def _new_files(identity: Identity, settings: HomeSettings) -> tuple[dict[str, bytes], str]:
    """What a new home holds beside its key, home.toml last: a folder without it is no home. And the record's text."""
    now = int(time.time())
    expires = now + RECORD_LIFETIME
    certificate = create_certificate(
        identity.peer_id[-12:], not_before=now - 3600, not_after=expires, password=tls_password(identity)
    )
    listen = settings.listen
    record = make_record(
        identity,
        name=settings.name,
        addresses=told_addresses(settings),
        listens=listen is not None,
        certificates=[certificate.der],
        sequence=now,
        expires=expires,
    )
    text = record_to_text(record)
    return {
        "tls.key": certificate.key_pem,
        "member.record": text.encode(),
        "home.toml": settings.to_toml().encode(),
    }, text


def open_home(path: Path) -> Home:
    """Read a home's settings. Raises ConfigError when this is no home."""
    file = path / "home.toml"
    if not os.path.lexists(file):
        raise ConfigError(f"{path} is no p2pfl home; make one with `p2pfl init {path} --name NAME`")
    try:
        raw = tomllib.loads(read_text(file))
    # RecursionError: nested brackets
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{file} is not valid TOML: {error}; mend the file") from error
    return Home(path, _checked_settings(path, raw))


def _checked_settings(path: Path, raw: dict[str, object]) -> HomeSettings:
    try:
        settings = HomeSettings.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{path / 'home.toml'}: {where}: {first['msg']}; mend this setting") from error
    if settings.listen is not None:
        needs_discovery(settings.listen)
    if settings.discover is not None:
        _check_interface(path, settings.discover)
    if settings.tell is not None:
        if settings.listen is None:
            raise ConfigError(f"{path / 'home.toml'}: tell needs listen; a home without a port has no address to tell")
        for address in settings.tell:
            if parse_address(address).port == 0:
                raise ConfigError(f"{path / 'home.toml'}: tell has port 0 in {address!r}; write the port partners use")
    return settings


def _check_interface(path: Path, text: str) -> None:
    try:
        ipaddress.IPv4Address(text)
    except ValueError as error:
        raise ConfigError(
            f"{path / 'home.toml'}: discover is {text!r}; write the IPv4 address of this machine's interface, "
            "such as 10.1.2.3"
        ) from error


def needs_discovery(listen: str) -> bool:
    """Whether an address has port 0: it is known only once bound, so discovery must tell it. Raises ConfigError."""
    return not listen.startswith("/memory/") and parse_address(listen).port == 0


def told_addresses(settings: HomeSettings) -> list[str]:
    """The addresses of the member record: what the owner says, else where the home listens. Raises ConfigError.

    All interfaces (0.0.0.0, ::) are no address for a partner: those of the local network stand for them.
    """
    listen = settings.listen
    if listen is None:
        return []
    if settings.tell is not None:
        return list(settings.tell)
    if needs_discovery(listen):
        return []
    if listen.startswith("/memory/"):
        return [listen]
    at = parse_address(listen)
    if at.host not in ("0.0.0.0", "::"):  # noqa: S104 - compared, not bound
        return [listen]
    usable = [host for host in usable_addresses(None) if (":" in host) == (at.kind == "ip6")]
    return [f"/{at.kind}/{host}/tcp/{at.port}" for host in usable[:TOLD_LIMIT]]


def tls_password(identity: Identity) -> bytes:
    """The password of tls.key: derived, so that the certificate's key is sealed wherever the identity is."""
    return identity.derive("p2pfl tls key").hex().encode()


def read_text(path: Path, limit: int = 4 * 2**20) -> str:
    """Read a text file of bounded size. Raises ConfigError in plain words."""
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise ConfigError(f"couldn't read {path}: {error.strerror}; check the name and the rights") from error
    if len(data) > limit:
        raise ConfigError(f"{path} is larger than {limit} bytes; this is not the file meant here")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not a text file; check the name") from error
