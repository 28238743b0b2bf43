"""The answering half of the webrtc transport: offers that neighbours or people bring."""

from __future__ import annotations

import asyncio
import logging
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING

from p2pfl.errors import LinkError, NotAMember, Refusal, RemoteError
from p2pfl.net.webrtc.offers import NONCE, Description, Opened, SeenOffers, blame, open_offer, seal_offer
from p2pfl.types import PeerId

if TYPE_CHECKING:
    from p2pfl.net.webrtc.stack import Stack
    from p2pfl.net.webrtc.transport import WebRtcTransport

INCOMING = 16
"""Offers being answered at one time: each holds a few sockets."""

GLARE = "both sites dial each other; yours is to wait for ours"

_log = logging.getLogger("p2pfl.net")


@dataclass(slots=True)
class _Attempt:
    """One connection on its way: the offer's description, and ours once it is known."""

    made: int
    description: Description
    introducer: PeerId | None  # who brought it last
    own: Description | None = None
    task: asyncio.Task[None] | None = None


class Answers:
    """At most one attempt for each member and way (brought by a neighbour, by hand), INCOMING in all."""

    def __init__(self, transport: WebRtcTransport) -> None:
        self._transport = transport
        self._seen = SeenOffers()
        self._attempts: dict[tuple[PeerId, bool], _Attempt] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def answer(self, asker: PeerId, introducer: PeerId, box: bytes) -> bytes:
        """The answer to an offer that a neighbour brought; the connection is then made in the background.

        Raises RemoteError (also told to the owner) or Refusal.
        """
        transport = self._transport
        try:
            opened = self.open_new(asker, box)
            if opened.signer in transport.dialling and transport.identity.peer_id < opened.signer:
                raise Refusal(GLARE)
            return await self.reply(opened, introducer)
        except RemoteError as error:
            fault = blame(introducer, transport.name(introducer), error)
            transport.refused(fault.peer or introducer, fault)
            raise fault from None

    def open_new(self, asker: PeerId | None, box: bytes) -> Opened:
        """An offer that holds and was not taken before. RemoteError otherwise."""
        transport = self._transport
        now = int(transport.clock())
        opened = open_offer(transport.identity, transport.known(), asker, box, now=now)
        if opened.signer == transport.identity.peer_id:
            raise NotAMember("the offer is our own, or made by a copy of our identity")
        self._seen.check(opened, now)
        return opened

    async def reply(self, opened: Opened, introducer: PeerId | None, *, seconds: float | None = None) -> bytes:
        """The answer's box; the connection is made in the background, within ``seconds`` where people carry it."""
        key = (opened.signer, seconds is not None)
        there = self._attempts.get(key)
        if there is not None and there.own is not None and there.description == opened.description:
            there.introducer = introducer  # the same dial, through another neighbour: one connection is enough
            return self._box(opened, there.own)
        self._make_room(key, opened)
        attempt = self._attempts[key] = _Attempt(opened.made, opened.description, introducer)
        stack = self._transport.new_stack(controlling=False)
        try:
            attempt.own = await stack.gather(self._transport.limits.gather)
            if self._transport.closed or self._attempts.get(key) is not attempt:
                raise Refusal("this site stopped, or heard a newer offer, while it answered")
            box = self._box(opened, attempt.own)
        except BaseException:
            stack.close()
            self._forget(key, attempt)
            raise
        attempt.task = asyncio.get_running_loop().create_task(self._finish(stack, opened, attempt, seconds))
        self._tasks.add(attempt.task)
        attempt.task.add_done_callback(self._tasks.discard)
        attempt.task.add_done_callback(lambda done: self._forget(key, attempt))
        return box

    def _make_room(self, key: tuple[PeerId, bool], opened: Opened) -> None:
        if not self._transport.listening:
            raise Refusal("this site takes no WebRTC connections now")
        there = self._attempts.get(key)
        if there is not None:
            if there.own is None:
                raise Refusal("your last offer is still being answered; wait for it")
            if opened.made < there.made:
                raise Refusal("this offer is older than the one being answered")
            self._forget(key, there)
            if there.task is not None:
                there.task.cancel()  # its asker has given up on it
        if len(self._attempts) >= INCOMING:
            raise Refusal(f"{INCOMING} WebRTC connections are being made here; try again in some seconds")

    def _box(self, opened: Opened, own: Description) -> bytes:
        transport = self._transport
        now = int(transport.clock())
        self._seen.take(opened, now)
        box, _ = seal_offer(
            transport.identity, transport.known().charter, opened.signer, own,
            nonce=secrets.token_bytes(NONCE), now=now, offer=opened.digest,
        )  # fmt: skip
        return box

    def _forget(self, key: tuple[PeerId, bool], attempt: _Attempt) -> None:
        if self._attempts.get(key) is attempt:
            del self._attempts[key]

    async def _finish(self, stack: Stack, opened: Opened, attempt: _Attempt, seconds: float | None) -> None:
        """The answering end of one connection, until it is proven or refused."""
        transport = self._transport
        try:
            patience = transport.limits.webrtc if seconds is None else seconds
            await stack.connect(opened.description, patience, patient=seconds is not None)
            connection = transport.connection(stack, opened.signer, dialled=False, introducer=attempt.introducer)
        except LinkError:
            stack.close()  # the dialler says why; to us nobody came
        except RemoteError as error:
            stack.close()
            transport.refused(opened.signer, error)
        except asyncio.CancelledError:
            stack.close()
            raise
        except Exception:
            stack.close()
            _log.exception("answering a WebRTC offer failed")
        else:
            await transport.hand_over(connection)

    @property
    def idle(self) -> bool:
        """Whether nothing is on its way."""
        return not (self._attempts or self._tasks)

    async def close(self) -> None:
        """Give up what is on its way."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
