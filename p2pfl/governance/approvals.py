"""Owns the site's record of which plan hashes it approved: a small JSON file, closed by default."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from p2pfl.crypto import parse_digest
from p2pfl.errors import ConfigError, LimitExceeded, MalformedMessage
from p2pfl.files import read_bounded, write_atomic
from p2pfl.types import Digest

BOOK_LIMIT = 2**20  # bytes: some 10,000 approvals, decades of them
_FORMAT = "p2pfl approvals v1"


@dataclass(frozen=True, slots=True)
class Approval:
    """One approved plan."""

    plan: Digest
    at: int  # Unix seconds of the first approval


class ApprovalBook:
    """The approvals of one home. Every call reads the file anew, so that a change by hand acts at once.

    A missing file approves nothing. A damaged one approves nothing either: every call raises ConfigError, and
    the file is not overwritten.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def approve(self, plan: Digest, at: int) -> None:
        """Write the approval down durably; a second one changes nothing. Raises ConfigError or StoreError."""
        try:
            parse_digest(plan, "the plan hash")
        except MalformedMessage as error:
            raise ConfigError(f"couldn't approve: {error}") from error
        known = self.list()
        if any(approval.plan == plan for approval in known):
            return
        rows = [{"plan": one.plan, "at": one.at} for one in (*known, Approval(plan, at))]
        data = json.dumps({"format": _FORMAT, "approved": rows}, indent=1).encode()
        if len(data) > BOOK_LIMIT:
            raise ConfigError(f"{self._path} would grow over {BOOK_LIMIT} bytes; remove approvals no longer needed")
        write_atomic(self._path, data)

    def is_approved(self, plan: Digest) -> bool:
        """Whether this site approved the plan with this hash."""
        return any(approval.plan == plan for approval in self.list())

    def list(self) -> tuple[Approval, ...]:
        """All approvals, oldest first."""
        if not self._path.exists():
            return ()
        data = read_bounded(self._path, BOOK_LIMIT)
        try:
            return tuple(_approval(row) for row in _rows(json.loads(data)))
        # RecursionError: json descends into nested lists
        except (ValueError, RecursionError, MalformedMessage, LimitExceeded) as error:
            raise ConfigError(
                f"{self._path} is damaged, so no plan counts as approved; restore it, or delete it and approve anew"
            ) from error


def _rows(value: Any) -> Any:
    if not isinstance(value, dict) or set(value) != {"format", "approved"} or value["format"] != _FORMAT:
        raise ValueError("no approval book")
    if not isinstance(value["approved"], list):
        raise ValueError("approvals are not a list")
    return value["approved"]


def _approval(row: Any) -> Approval:
    if not isinstance(row, dict) or set(row) != {"plan", "at"} or type(row["at"]) is not int:
        raise ValueError("a row has wrong fields")
    return Approval(parse_digest(row["plan"], "an approved plan"), row["at"])
