"""Owns when a charter is in force: its rules, its signatures, and how a home accepts it."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509

from p2pfl.errors import ConfigError, PolicyRefusal
from p2pfl.governance.charter import Charter, fingerprint, missing_signatures, with_signatures
from p2pfl.governance.charter_files import CHARTER_TEXT_LIMIT, charter_to_text, parse_charter
from p2pfl.governance.files import read_bounded, write_atomic
from p2pfl.governance.records import name_problem
from p2pfl.governance.topologies import topology_problem
from p2pfl.types import Member, Roster

MIN_MEMBERS = 2  # one site alone needs no consortium
MAX_PARAMETER_BYTES = 2**36  # the largest channel a proposal can name

LIMITS: dict[str, tuple[int, int]] = {
    # what every site enforces at least: name -> (lowest, highest) value
    "max_parameters_bytes": (1, MAX_PARAMETER_BYTES),
    "minimum_participants": (2, 64),
}


def check_charter(charter: Charter, now: int) -> Roster:
    """The members under a charter in force at ``now`` (Unix seconds).

    Version 1 needs the signatures of all founders; names, peer ids and certificates must be unique, records not
    expired, the quorum more than half. Raises ConfigError: one sentence that names who or what is wrong.
    """
    roster = _check_agreed(charter)
    for member in charter.members:
        if member.expires <= now:
            when = datetime.fromtimestamp(member.expires, UTC).strftime("%Y-%m-%d")
            raise ConfigError(
                f"the member record of {member.name} expired on {when}; "
                f"ask {member.name} for a new record and make a new charter with it"
            )
    return roster


def check_document(charter: Charter) -> None:
    """Raise ConfigError for what is wrong with the document itself, signatures and expiry aside."""
    if charter.version != 1 or charter.previous is not None:
        raise ConfigError(
            f"this is version {charter.version} of a charter, and this p2pfl knows version 1 only; update p2pfl"
        )
    members = charter.members
    if len(members) < MIN_MEMBERS:
        raise ConfigError(
            f"the charter names {len(members)} member(s); a consortium needs at least {MIN_MEMBERS}, add records"
        )
    problem = name_problem(charter.name)
    if problem:
        raise ConfigError(f"the charter's name: {problem}")
    _check_unique(members)
    if not len(members) < 2 * charter.quorum <= 2 * len(members):
        raise ConfigError(
            f"the charter's quorum is {charter.quorum} of {len(members)} members; "
            f"choose a number from {len(members) // 2 + 1} to {len(members)}"
        )
    problem = topology_problem(charter.topology)
    if problem:
        raise ConfigError(f"the charter's {problem}")
    _check_limits(charter)


def accept_charter(home_file: Path, charter: Charter, fingerprint_heard: str, now: int | None = None) -> None:
    """Make ``charter`` the one that this home runs under, if its fingerprint is the one that was read out.

    ``now`` in Unix seconds also refuses expired records. Accepting the same charter again is harmless. Raises
    PolicyRefusal for another fingerprint or if another charter is accepted already, ConfigError for a charter
    that is not in force or an accepted one that is damaged, StoreError if it cannot be written.
    """
    heard = re.sub(r"[\s:-]", "", fingerprint_heard).lower()
    if heard != charter.digest:
        raise PolicyRefusal(
            f"the fingerprint given is not that of this charter, {fingerprint(charter)}; "
            "compare both by telephone with the member who made the charter, and accept neither until they agree"
        )
    _check_agreed(charter) if now is None else check_charter(charter, now)
    if home_file.exists():
        accepted = _accepted(home_file)
        if accepted.document != charter.document:
            raise PolicyRefusal(
                f"{home_file}: this home already accepted the charter {accepted.name!r} with the fingerprint "
                f"{fingerprint(accepted)}; make another home for another consortium"
            )
    write_atomic(home_file, charter_to_text(charter).encode("utf-8"))


def _accepted(home_file: Path) -> Charter:
    try:
        return parse_charter(read_bounded(home_file, CHARTER_TEXT_LIMIT).decode("utf-8"))
    except (ConfigError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{home_file}: the accepted charter is damaged; restore it from a backup or move it away first"
        ) from error


def _check_agreed(charter: Charter) -> Roster:
    check_document(charter)
    with_signatures(charter, charter.signatures)  # verifies: a Charter can be built without parsing
    missing = missing_signatures(charter)
    if missing:
        names = ", ".join(member.name for member in missing)
        raise ConfigError(
            f"the charter lacks the signature of {names}; "
            "let them run `p2pfl charter sign`, then merge the files with `p2pfl charter merge`"
        )
    return Roster(charter.digest, charter.members, charter.quorum)


def _check_unique(members: tuple[Member, ...]) -> None:
    repeated = _first_repeated(members, lambda member: [member.peer_id])
    if repeated:
        raise ConfigError(
            f"the charter names one peer id twice, as {repeated[0]} and {repeated[1]}; "
            "give each hospital's record once"
        )
    # names differ by more than case: they are what people type and see
    repeated = _first_repeated(members, lambda member: [member.name.casefold()])
    if repeated:
        raise ConfigError(
            f"two members of the charter are called {repeated[0]}; ask one of them for a record with another name"
        )
    repeated = _first_repeated(members, lambda member: member.certificates) or _first_repeated(members, _subjects)
    if repeated:
        raise ConfigError(
            f"{repeated[0]} and {repeated[1]} have certificates that TLS cannot tell apart; "
            f"ask {repeated[1]} for a record with a new certificate"
        )


def _first_repeated(
    members: tuple[Member, ...], keys: Callable[[Member], Iterable[Hashable]]
) -> tuple[str, str] | None:
    seen: dict[Hashable, str] = {}
    for member in members:
        for key in keys(member):
            if key in seen:
                return seen[key], member.name
            seen[key] = member.name
    return None


def _subjects(member: Member) -> list[bytes]:
    """OpenSSL picks a trust anchor by subject: a copied subject would shut its owner out."""
    loaded = (x509.load_der_x509_certificate(certificate) for certificate in member.certificates)
    return [certificate.subject.public_bytes() for certificate in loaded]


def _check_limits(charter: Charter) -> None:
    for name, value in charter.limits.items():
        if name not in LIMITS:
            raise ConfigError(
                f"the charter has the limit {str(name)[:40]!r}, which this p2pfl cannot enforce; "
                f"update p2pfl, or use {' or '.join(LIMITS)}"
            )
        lowest, highest = LIMITS[name]
        if type(value) is not int or not lowest <= value <= highest:
            raise ConfigError(
                f"the charter's limit {name} is {repr(value)[:40]}; "
                f"write a whole number from {lowest} to {highest}"
            )
    if charter.limits.get("minimum_participants", 0) > len(charter.members):
        raise ConfigError(
            f"the charter's limit minimum_participants is above its {len(charter.members)} members; lower it"
        )
