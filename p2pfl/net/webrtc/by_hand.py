"""Offers and answers that people carry, where no member is linked to both sites yet."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING

from p2pfl.errors import ConfigError, LinkError, RemoteError
from p2pfl.net.webrtc.offers import NONCE, VALID_BY_HAND, Opened, open_offer, seal_offer
from p2pfl.types import Digest, PeerId

if TYPE_CHECKING:
    from p2pfl.net.webrtc.stack import Stack
    from p2pfl.net.webrtc.transport import WebRtcTransport

WAITING = 8  # offers whose answer is still on its way; each holds a few sockets


@dataclass(slots=True)
class _Waiting:
    stack: Stack
    digest: Digest
    timer: asyncio.TimerHandle


class HandCarried:
    """Keeps the sockets of an offer open until its answer is brought, at most VALID_BY_HAND seconds."""

    def __init__(self, transport: WebRtcTransport) -> None:
        self._transport = transport
        self._waiting: dict[PeerId, _Waiting] = {}

    async def offer(self, peer: PeerId) -> bytes:
        """A box for ``peer``; an older offer to it is given up. LinkError, NotAMember or ConfigError."""
        transport = self._transport
        transport.other_member(peer)
        self._drop(peer)
        if len(self._waiting) >= WAITING:
            raise ConfigError(f"{WAITING} offers wait for their answers already; bring one of these, or wait")
        stack = transport.new_stack(controlling=True)
        try:
            own = await stack.gather(transport.limits.gather)
            box, digest = seal_offer(
                transport.identity, transport.known().charter, peer, own,
                nonce=secrets.token_bytes(NONCE), now=int(transport.clock()), valid=VALID_BY_HAND,
            )  # fmt: skip
        except BaseException:
            stack.close()
            raise
        if transport.closed:
            stack.close()
            raise LinkError("the peer stopped while it made the offer")
        self._drop(peer)  # a second call may have come meanwhile
        timer = asyncio.get_running_loop().call_later(VALID_BY_HAND, self._drop, peer)
        self._waiting[peer] = _Waiting(stack, digest, timer)
        return box

    async def take_offer(self, box: bytes) -> tuple[PeerId, bytes]:
        """Who offers, and the answer's box; the connection is made when that has been carried back.

        Raises RemoteError for an offer that does not hold, Refusal or LinkError where we cannot answer.
        """
        opened = self._transport.answers.open_new(None, box)
        return opened.signer, await self._transport.answers.reply(opened, None, seconds=VALID_BY_HAND)

    async def take_answer(self, box: bytes) -> PeerId:
        """Connect with an answer; returns once the hello is over. LinkError, RemoteError or ConfigError."""
        opened = self._matching(box)
        peer, transport = opened.signer, self._transport
        waiting = self._waiting.pop(peer)
        waiting.timer.cancel()
        try:
            await waiting.stack.connect(opened.description, transport.limits.webrtc)
            connection = transport.connection(waiting.stack, peer, dialled=True, introducer=None)
        except BaseException:
            waiting.stack.close()
            raise
        await transport.hand_over(connection)
        return peer

    def _matching(self, box: bytes) -> Opened:
        transport, fault = self._transport, None
        for peer, waiting in self._waiting.items():
            try:
                return open_offer(
                    transport.identity, transport.known(), peer, box, now=int(transport.clock()), offer=waiting.digest
                )
            except RemoteError as error:
                fault = error
        reason = f" ({fault})" if fault else ""
        raise ConfigError(
            f"this answers no offer that waits here{reason}: an offer ends after {VALID_BY_HAND // 60} minutes, when a "
            "newer one is made, and when the peer stops; make a new offer"
        )

    def _drop(self, peer: PeerId) -> None:
        waiting = self._waiting.pop(peer, None)
        if waiting is not None:
            waiting.timer.cancel()
            waiting.stack.close()

    def close(self) -> None:
        """Give all offers up."""
        for peer in list(self._waiting):
            self._drop(peer)
