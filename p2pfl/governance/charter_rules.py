"""Owns what a charter's document must satisfy, whoever signed it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable

from cryptography import x509

from p2pfl.errors import ConfigError
from p2pfl.governance.charter import Charter
from p2pfl.governance.records import name_problem
from p2pfl.governance.topologies import topology_problem
from p2pfl.types import Member

MIN_MEMBERS = 2  # one site alone needs no consortium
MAX_PARAMETER_BYTES = 2**36  # the largest channel a proposal can name

LIMITS: dict[str, tuple[int, int]] = {
    # what every site enforces at least: name -> (lowest, highest) value
    "max_parameters_bytes": (1, MAX_PARAMETER_BYTES),
    "minimum_participants": (2, 64),
    "minimum_contributors": (1, 64),
}


def check_document(charter: Charter) -> None:
    """Raise ConfigError for what is wrong with the document itself, signatures and expiry aside."""
    if charter.version != 1 or charter.previous is not None:
        raise ConfigError(
            f"this is version {charter.version} of a charter, but this p2pfl knows only version 1; update it"
        )
    members = charter.members
    if len(members) < MIN_MEMBERS:
        raise ConfigError(f"the charter names {len(members)} member(s); a consortium needs {MIN_MEMBERS}; add records")
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


def _check_unique(members: tuple[Member, ...]) -> None:
    repeated = _first_repeated(members, lambda member: [member.peer_id])
    if repeated:
        raise ConfigError(
            f"the charter names one peer id twice, as {repeated[0]} and {repeated[1]}; give each hospital's record once"
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
                f"the charter's limit {name} is {repr(value)[:40]}; write a whole number from {lowest} to {highest}"
            )
    for name in ("minimum_participants", "minimum_contributors"):
        if charter.limits.get(name, 0) > len(charter.members):
            raise ConfigError(f"the charter's limit {name} is above its {len(charter.members)} members; lower it")
