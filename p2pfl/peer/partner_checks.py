"""What partners can tell an administrator: their clock, and whether they reach our port. Answers, and the asking.

A partner tries only the addresses of the asker's own signed record, never one that the question names: whoever wants
a hospital to try an address must first sign for it before all members.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from p2pfl.crypto import pack, unpack
from p2pfl.errors import LimitExceeded, LinkError, MalformedMessage, Refusal, RemoteError
from p2pfl.net import Host
from p2pfl.net.probes import PROBE_SECONDS, tcp_reach
from p2pfl.types import PeerId, Roster

if TYPE_CHECKING:
    from p2pfl.peer.peer import Peer

CLOCK = "/p2pfl/clock/1"
REACH = "/p2pfl/reach/1"

PARTNER_SECONDS = 8.0  # for all questions to one partner
CLOCK_TURNS = 3  # the one with the shortest round trip counts
ASKS = 6  # reach questions one member may ask in PERIOD
PERIOD = 600.0  # seconds
ANSWER_LIMIT = 8 * 1024  # bytes; eight addresses of at most 400 characters

_WORDS = ("open", "refused", "no answer")
_TCP = ("/ip4/", "/ip6/", "/dns4/")


class PartnerChecks:
    """Both sides of the two protocols at one host. ``clock`` gives Unix seconds."""

    def __init__(self, host: Host, roster: Callable[[], Roster], clock: Callable[[], float] = time.time) -> None:
        self._host = host
        self._roster = roster
        self.clock = clock
        self._asked: dict[PeerId, deque[float]] = {}  # only members get here: as many as the charter has
        host.handle(CLOCK, self._tell_clock)
        host.handle(REACH, self._try_to_reach)

    async def _tell_clock(self, peer: PeerId, payload: bytes) -> bytes:
        _check_empty(peer, payload)
        return int(self.clock() * 1e9).to_bytes(8, "big")

    async def _try_to_reach(self, peer: PeerId, payload: bytes) -> bytes:
        _check_empty(peer, payload)
        self._count(peer)
        member = self._roster().member(peer)
        addresses = [at for at in member.addresses if at.startswith(_TCP)] if member else []
        words = await asyncio.gather(*(tcp_reach(address, PROBE_SECONDS) for address in addresses))
        return pack([list(row) for row in zip(addresses, words, strict=True)])

    def _count(self, peer: PeerId) -> None:
        now = asyncio.get_running_loop().time()
        asked = self._asked.setdefault(peer, deque())
        while asked and now - asked[0] > PERIOD:
            asked.popleft()
        if len(asked) >= ASKS:
            raise LimitExceeded(f"only {ASKS} questions about a port are answered in {PERIOD / 60:.0f} minutes; wait")
        asked.append(now)

    # --- the asking side

    async def ask(self, peer: PeerId) -> dict[str, Any]:
        """What this linked neighbour says. Never raises: what went wrong is part of the answer.

        ``offset``: seconds its clock is ahead of ours, None if unknown; ``uncertainty``: seconds; ``reach``: rows of
        our address and one of open, refused, no answer; ``problem``: None, or the words for people.
        """
        facts: dict[str, Any] = {"offset": None, "uncertainty": 0.0, "reach": [], "problem": None}
        try:
            async with asyncio.timeout(PARTNER_SECONDS):
                facts["offset"], facts["uncertainty"] = await self._offset(peer)
                facts["reach"] = _read_reach(peer, await self._host.request(peer, REACH, b"", PARTNER_SECONDS))
        except TimeoutError:
            facts["problem"] = f"no answer within {PARTNER_SECONDS:.0f} s"
        except (LinkError, Refusal, RemoteError) as error:
            facts["problem"] = str(error)
        return facts

    async def _offset(self, peer: PeerId) -> tuple[float, float]:
        """Cristian's algorithm: their time less the middle of ours before and after."""
        turns: list[tuple[float, float]] = []
        for _ in range(CLOCK_TURNS):
            before = self.clock()
            answer = await self._host.request(peer, CLOCK, b"", PARTNER_SECONDS)
            after = self.clock()
            if len(answer) != 8:
                raise MalformedMessage(f"{peer} tells its time in {len(answer)} bytes, not 8", peer=peer)
            theirs = int.from_bytes(answer, "big") / 1e9
            turns.append((abs(after - before) / 2, theirs - (before + after) / 2))
        uncertainty, offset = min(turns)
        return offset, uncertainty


async def partner_facts(peer: Peer) -> dict[str, Any]:
    """What a running peer adds: its event loop and addresses, its neighbours' answers, why others are not linked."""
    status = peer.status()
    linked = [row for row in status["members"] if row["link"] is not None]
    answers = await asyncio.gather(*(peer.partner_checks.ask(row["peer"]) for row in linked))
    return {
        "event_loop": type(asyncio.get_running_loop()).__module__.split(".")[0],
        "addresses": status["addresses"],
        "discovery_problem": status["discovery_problem"],
        "partners": [{"name": row["name"], **facts} for row, facts in zip(linked, answers, strict=True)],
        "unlinked": [{"name": row["name"], "why": row["why_not"]} for row in status["members"] if row["link"] is None],
    }


def _check_empty(peer: PeerId, payload: bytes) -> None:
    if payload:
        raise MalformedMessage(f"a question of {len(payload)} bytes from {peer}; it has none", peer=peer)


def _read_reach(peer: PeerId, data: bytes) -> list[list[str]]:
    rows = unpack(data, what="an answer about our port", limit=ANSWER_LIMIT, max_items=16)
    if not isinstance(rows, list):
        raise MalformedMessage("an answer about our port is no list", peer=peer)
    for row in rows:
        if not isinstance(row, list) or [type(item) for item in row] != [str, str] or row[1] not in _WORDS:
            raise MalformedMessage("an answer about our port has wrong fields", peer=peer)
    return [[str(address)[:400], str(word)] for address, word in rows]
