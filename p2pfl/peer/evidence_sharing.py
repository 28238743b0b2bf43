"""Evidence against a log goes to every member: each one that is told checks it, sounds its own alarm, and hands it on.

A finding is nobody's private knowledge, and no one witness can keep it back. Nothing is believed but the signatures of
the log's owner, so nobody can be accused falsely; the owner is told as well, for it may be the last to know that its
key is in other hands. One message per member, accused log and link.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from p2pfl.audit import EVIDENCE_LIMIT, LogMisbehaviour, check_evidence, read_evidence
from p2pfl.crypto import log_origin
from p2pfl.errors import ConfigError, LinkError, RemoteError
from p2pfl.files import read_bounded
from p2pfl.governance import Pace
from p2pfl.net import PAYLOAD_LIMIT, Host
from p2pfl.peer.alarms import Alarms
from p2pfl.types import PeerId, Roster

EVIDENCE = "/p2pfl/evidence/1"

SIZE_LIMIT = min(EVIDENCE_LIMIT, PAYLOAD_LIMIT // 2)  # bytes; two notes and an answer have a fraction of it
CHECKED_PER_HOUR = 120  # of those that one neighbour tells; a consortium has at most 50 logs

_log = logging.getLogger("p2pfl.witness")


class EvidenceSharing:
    """Tells and hears. All calls belong to one event loop."""

    def __init__(
        self, host: Host, consortium: str, alarms: Alarms, *,
        roster: Callable[[], Roster], spawn: Callable[[Coroutine[Any, Any, None]], None],
    ) -> None:  # fmt: skip
        self._host, self._consortium, self._alarms = host, consortium, alarms
        self._roster, self._spawn = roster, spawn
        self._checked: defaultdict[PeerId, Pace] = defaultdict(lambda: Pace(CHECKED_PER_HOUR))
        alarms.on_kept = self._kept
        host.handle_notify(EVIDENCE, self._on_evidence)

    def linked(self, peer: PeerId) -> None:
        """A link came up: its other end may have been away when the alarm went off."""
        for path in self._alarms.files():
            self._spawn(self._send([peer], path))

    def _kept(self, path: Path, sender: PeerId | None) -> None:
        self._spawn(self._send([peer for peer in self._host.links if peer != sender], path))

    async def _send(self, peers: list[PeerId], path: Path) -> None:
        try:
            data = await asyncio.to_thread(read_bounded, path, SIZE_LIMIT)
        except ConfigError as error:  # moved away by people, or too long to travel
            _log.warning("the evidence %s cannot be told to others: %s", path, error)
            return
        for peer in peers:
            try:
                await self._host.notify(peer, EVIDENCE, data)
            except LinkError:
                pass  # it is told with the next link

    def _on_evidence(self, peer: PeerId, data: bytes) -> None:
        now = int(time.time())
        if len(data) <= SIZE_LIMIT and self._checked[peer].allows(now):
            self._checked[peer].count(now)
            self._spawn(self._hear(peer, data))

    async def _hear(self, sender: PeerId, data: bytes) -> None:
        try:
            evidence = read_evidence(data)
            owner = PeerId(evidence.owner)
            if self._roster().member(owner) is None or owner in self._alarms.accused:
                return
            check_evidence(evidence, log_origin(self._consortium, owner), owner)
        except RemoteError as error:
            _log.warning("evidence told by %s shows nothing: %s", sender, error)
            return
        await self._alarms.sound(LogMisbehaviour(evidence.claim, owner, evidence.notes, evidence.answer), sender)
