"""What of a site survives the end of its process: log, stored states, checkpoints, outbox, statements, keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from p2pfl.types import Digest, PeerId


@dataclass(frozen=True, slots=True)
class Row:
    """One committed log entry."""

    kind: str
    body: Mapping[str, Any]
    documents: tuple[tuple[str, bytes], ...] = ()


@dataclass(frozen=True, slots=True)
class Holding:
    """A neighbour's newest state: its announcement without inline content, its chunks, and who may have them."""

    announcement: bytes
    chunks: list[bytes]
    recipients: frozenset[PeerId]


@dataclass(slots=True)
class Disk:
    """Only what was written at the end of a commit, or at once by the shell, is here."""

    entries: list[Row] = field(default_factory=list)
    states: dict[Digest, bytes] = field(default_factory=dict)  # machines' snapshots, by their SHA-256
    checkpoints: dict[Digest, tuple[str, bytes]] = field(default_factory=dict)  # same name: digest and bytes
    outbox: dict[Digest, bytes] = field(default_factory=dict)  # core -> what its entry lets out
    contents: dict[Digest, list[bytes]] = field(default_factory=dict)  # core -> chunks
    statements: list[bytes] = field(default_factory=list)
    holdings: dict[Digest, Holding] = field(default_factory=dict)  # neighbours' states, held for others
    over: bool = False  # the run is complete or expired here: it is not taken up again
    full: bool = False
    proposed_at: float | None = None  # when the proposal came; its file's time

    def copy(self) -> Disk:
        """A backup: later writes to this disk do not reach it."""
        return Disk(
            list(self.entries), dict(self.states), dict(self.checkpoints), dict(self.outbox),
            dict(self.contents), list(self.statements), dict(self.holdings), self.over, self.full, self.proposed_at,
        )  # fmt: skip

    def rows(self, kind: str) -> list[Mapping[str, Any]]:
        """The bodies of all entries of one kind, oldest first."""
        return [row.body for row in self.entries if row.kind == kind]

    def keep_statement(self, data: bytes) -> None:
        """Keep a verified statement, once."""
        if data not in self.statements:
            self.statements.append(data)

    def newest_state(self) -> Digest | None:
        """The name in the newest committed "state_stored", if that state is here."""
        for row in reversed(self.entries):
            if row.kind == "state_stored":
                name = Digest(row.body["digest"])
                return name if name in self.states and name in self.checkpoints else None
        return None

    def drop_states_but(self, name: Digest) -> None:
        """A newer state is committed: the older ones are no longer needed."""
        self.states = {name: self.states[name]}
        self.checkpoints = {name: self.checkpoints[name]}
