"""The plan hashes this site has approved. A damaged file means: nothing is approved."""

from __future__ import annotations

import json
from pathlib import Path

from p2pfl.errors import ConfigError
from p2pfl.governance.files import replace_file
from p2pfl.types import Digest

BOOK_LIMIT = 1 << 20  # bytes


class ApprovalBook:
    """A JSON file of plan hash -> Unix seconds of the approval."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def approve(self, plan: Digest, at: int) -> None:
        """Remember an approval durably; a second one of the same plan changes nothing."""
        known = self.list()
        if plan not in known:
            replace_file(self._path, json.dumps({**known, plan: at}, indent=1, sort_keys=True).encode())

    def is_approved(self, plan: Digest) -> bool:
        """Whether this site approved exactly this plan hash."""
        return plan in self.list()

    def list(self) -> dict[str, int]:
        """All approved plan hashes. Raises ConfigError for a damaged file."""
        try:
            raw = self._path.read_bytes()
        except FileNotFoundError:
            return {}
        try:
            value = json.loads(raw) if len(raw) <= BOOK_LIMIT else None
        except ValueError:
            value = None
        if not isinstance(value, dict) or not all(
            len(plan) == 64 and isinstance(at, int) for plan, at in value.items()
        ):
            raise ConfigError(f"{self._path} is damaged, so nothing is approved; move it away and approve again")
        return value
