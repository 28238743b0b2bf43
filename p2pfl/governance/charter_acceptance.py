"""Owns when a charter is in force, and how a home accepts it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from p2pfl.errors import ConfigError, PolicyRefusal
from p2pfl.files import read_bounded, write_atomic
from p2pfl.governance.charter import Charter, fingerprint
from p2pfl.governance.charter_files import CHARTER_TEXT_LIMIT, charter_to_text, parse_charter
from p2pfl.governance.charter_rules import check_document
from p2pfl.governance.charter_signatures import missing_signatures, with_signatures
from p2pfl.types import Member, PeerId, Roster


def check_charter(charter: Charter, now: int, newer: Mapping[PeerId, Member] | None = None) -> Roster:
    """The members under a charter in force at ``now`` (Unix seconds), as the charter itself describes them.

    Version 1 needs the signatures of all founders; names, peer ids and certificates must be unique, records
    not expired, the quorum more than half. ``newer`` are members whose own newer record is known: its expiry counts
    for them. Raises ConfigError: one sentence that names who or what is wrong.
    """
    roster = _check_agreed(charter)
    for founder in charter.members:
        member = (newer or {}).get(founder.peer_id, founder)
        if member.expires <= now:
            when = datetime.fromtimestamp(member.expires, UTC).strftime("%Y-%m-%d")
            raise ConfigError(
                f"the member record of {member.name} expired on {when}; "
                f"ask {member.name} for a new record and take it with `p2pfl address HOME --take RECORD`, "
                "or make a new charter with it"
            )
    return roster


def accept_charter(home_file: Path, charter: Charter, fingerprint_heard: str, now: int | None = None) -> None:
    """Make ``charter`` the one that this home runs under, if its fingerprint is the one that was read out.

    ``now`` in Unix seconds also refuses expired records. Accepting the same charter again is harmless. Raises
    PolicyRefusal for another fingerprint or if another charter is accepted already, ConfigError for a charter
    that is not in force or an accepted one that is damaged, StoreError if it cannot be written.
    """
    heard = re.sub(r"[\s:-]", "", fingerprint_heard).lower()
    if heard != charter.digest:
        raise PolicyRefusal(
            "the fingerprint given is not that of this charter; "
            "compare both by telephone with the member who made it, and accept nothing until they agree"
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
    return Roster(
        charter.digest,
        charter.members,
        charter.quorum,
        minimum_participants=charter.limits.get("minimum_participants", 2),
        minimum_contributors=charter.limits.get("minimum_contributors", 1),
        max_parameters_bytes=charter.limits.get("max_parameters_bytes"),
        consortium=charter.name,
    )
