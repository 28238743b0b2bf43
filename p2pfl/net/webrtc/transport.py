"""The webrtc transport: connections without any open port, brought about by a neighbour or by hand.

An address is ``/webrtc/p2p/PEER``; listening on ``/webrtc`` means taking offers. The dialler makes an offer, any
common neighbour carries it (:mod:`p2pfl.net.introductions`), the target answers, and both sides open ICE, DTLS and a
data channel (:mod:`stack`, :mod:`channel`). The identity signs the DTLS fingerprint, so nobody in between can be
either end; the hello then runs over the connection as over any other.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

from p2pfl.crypto.identity import Identity
from p2pfl.crypto.peer_ids import parse_peer_id
from p2pfl.errors import ConfigError, IllegalStep, LinkError, NotAMember, P2PFLError, Refusal, RemoteError
from p2pfl.net.connection import Accept, Refused
from p2pfl.net.interfaces import usable_addresses
from p2pfl.net.limits import DEFAULT, Limits
from p2pfl.net.outcomes import AlreadyLinkedError, name_of
from p2pfl.net.webrtc.answering import GLARE, Answers
from p2pfl.net.webrtc.by_hand import HandCarried
from p2pfl.net.webrtc.channel import WebRtcConnection
from p2pfl.net.webrtc.offers import NONCE, Description, Opened, blame, open_offer, seal_offer
from p2pfl.net.webrtc.settings import IceSettings
from p2pfl.net.webrtc.stack import Stack
from p2pfl.types import Member, PeerId, Roster

LISTEN = "/webrtc"
PREFIX = "/webrtc/p2p/"


class Signaller(Protocol):
    """Carries boxes to members; :class:`p2pfl.net.introductions.Introductions` in a host."""

    on_offer: Callable[[PeerId, PeerId, bytes], Awaitable[bytes]] | None

    def introducers(self, to: PeerId) -> list[PeerId]:
        """Who may be asked to carry, best first."""

    async def carry(self, introducer: PeerId, to: PeerId, box: bytes) -> bytes:
        """The answer's box. LinkError or Refusal says why there is none."""

    def worked(self, introducer: PeerId, to: PeerId) -> None:
        """This one brought a connection about."""


class WebRtcTransport:
    """Dials and answers through a signaller. ``clock`` gives Unix seconds."""

    kind = "webrtc"
    cost = 1

    def __init__(
        self,
        identity: Identity,
        signaller: Signaller,
        settings: IceSettings | None = None,
        limits: Limits = DEFAULT,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.identity = identity
        self._own = identity.peer_id
        self._signaller = signaller
        self._settings = settings or IceSettings()
        self.limits = limits
        self.clock = clock
        self._roster: Roster | None = None
        self._accept: Accept | None = None
        self.refused: Refused = lambda who, error: None
        self.dialling: set[PeerId] = set()
        self._stacks: set[Stack] = set()
        self.closed = False
        self.answers = Answers(self)
        self.by_hand = HandCarried(self)

    # --- the contract

    def handles(self, address: str) -> bool:
        """``/webrtc`` and ``/webrtc/p2p/PEER``."""
        return address == LISTEN or address.startswith(PREFIX)

    def ways(self, member: Member) -> list[str]:
        """One: through whoever is a neighbour of both."""
        return [] if member.peer_id == self._own else [PREFIX + member.peer_id]

    def trust(self, roster: Roster) -> None:
        """From now on only these members may offer and be offered to."""
        self._roster = roster

    async def listen(self, address: str, accept: Accept, refused: Refused) -> str:
        """Take offers; returns the own ``/webrtc/p2p/PEER``.

        ConfigError for anything but ``/webrtc``, or where no address of this machine can be used.
        """
        if address != LISTEN:
            raise ConfigError(f"cannot listen on {address}; WebRTC listens on {LISTEN} alone")
        usable_addresses(self._settings.interfaces)  # a wrong setting is told now, not at the first dial
        self._accept, self.refused = accept, refused
        self.closed = False
        self._signaller.on_offer = self.answers.answer
        return PREFIX + self._own

    async def dial(self, address: str) -> WebRtcConnection:
        """Connect to the member that the address names.

        Raises LinkError naming every neighbour that was asked and what came of it.
        """
        member = self.other_member(PeerId(parse_peer_id(address.removeprefix(PREFIX))))
        peer = member.peer_id
        if peer in self.dialling:
            raise LinkError(f"{name_of(member)} is being dialled over WebRTC already")
        self.dialling.add(peer)
        try:
            return await self._dial(member)
        finally:
            self.dialling.discard(peer)

    async def close(self) -> None:
        """Take no more offers, end what is half-open and wait for what is being torn down."""
        self._accept = None
        self._signaller.on_offer = None
        self.closed = True
        self.by_hand.close()
        await self.answers.close()
        for stack in list(self._stacks):
            if not stack.handed_over:  # a live connection's stack belongs to the host, which says goodbye first
                stack.close()
        closing = [stack.closing for stack in self._stacks if stack.closing is not None]
        await asyncio.gather(*closing, return_exceptions=True)

    @property
    def listening(self) -> bool:
        """Whether offers are taken."""
        return self._accept is not None

    # --- dialling

    async def _dial(self, member: Member) -> WebRtcConnection:
        introducers = self._signaller.introducers(member.peer_id)
        if not introducers:
            raise LinkError(
                f"nobody can introduce us to {name_of(member)} yet: no other member is linked; a link to any common "
                "neighbour is needed, or carry an offer by hand (p2pfl link offer)"
            )
        stack = self.new_stack(controlling=True)
        try:
            own = await stack.gather(self.limits.gather)
            if self.closed:
                raise LinkError("we stopped while we dialled")
            introducer, answer = await self._introduced(member, introducers, own)
            await stack.connect(answer.description, self.limits.webrtc)
        except BaseException:
            stack.close()
            raise
        self._signaller.worked(introducer, member.peer_id)
        return self.connection(stack, member.peer_id, dialled=True, introducer=introducer)

    async def _introduced(self, member: Member, introducers: list[PeerId], own: Description) -> tuple[PeerId, Opened]:
        """An answer that holds, through the first neighbour that brings one."""
        faults, glares = [], 0
        for introducer in introducers:
            try:
                return introducer, await self._ask(member, introducer, own)
            except AlreadyLinkedError:  # an introducer's word, no more: a liar must not keep us from asking the others
                glares += 1
                faults.append(f"through {self.name(introducer)}: it says that {member.name} is dialling us")
            except P2PFLError as error:
                if isinstance(error, RemoteError):
                    self.refused(error.peer or introducer, error)
                faults.append(f"through {self.name(introducer)}: {error}")
        if glares == len(introducers):
            raise AlreadyLinkedError(member.peer_id)  # its connection is on the way
        raise LinkError("; ".join(faults))

    async def _ask(self, member: Member, introducer: PeerId, own: Description) -> Opened:
        roster, now = self.known(), int(self.clock())
        box, digest = seal_offer(
            self.identity, roster.charter, member.peer_id, own, nonce=secrets.token_bytes(NONCE), now=now
        )
        try:
            reply = await self._signaller.carry(introducer, member.peer_id, box)
        except Refusal as error:
            if GLARE in str(error):
                raise AlreadyLinkedError(member.peer_id) from None
            raise
        try:
            return open_offer(self.identity, roster, member.peer_id, reply, now=int(self.clock()), offer=digest)
        except RemoteError as error:
            raise blame(introducer, self.name(introducer), error) from None

    # --- answering

    async def hand_over(self, connection: WebRtcConnection) -> None:
        """Give an open connection to the host, which runs the hello; returns once it is proven or refused."""
        if self._accept is None:
            connection.abort()
        else:
            await self._accept(connection)

    # --- parts

    def known(self) -> Roster:
        """The roster in force. IllegalStep before the first ``trust``."""
        if self._roster is None:
            raise IllegalStep("the webrtc transport was told no roster; call trust first")
        return self._roster

    def other_member(self, peer: PeerId) -> Member:
        """A member that is not we. NotAMember otherwise."""
        member = self.known().member(peer)
        if member is None or peer == self._own:
            raise NotAMember(f"{peer} is no other member of this charter; nobody to dial", peer=peer)
        return member

    def name(self, peer: PeerId) -> str:
        """A member for people."""
        member = self.known().member(peer)
        return name_of(member) if member else str(peer)

    def new_stack(self, *, controlling: bool) -> Stack:
        """A stack that ``close`` waits for."""
        stack = Stack(self._settings, usable_addresses(self._settings.interfaces), controlling=controlling)
        self._stacks.add(stack)
        stack.on_closed = lambda: self._stacks.discard(stack)
        return stack

    def connection(self, stack: Stack, peer: PeerId, *, dialled: bool, introducer: PeerId | None) -> WebRtcConnection:
        """The connection over a stack that stands."""
        stack.handed_over = True
        return WebRtcConnection(stack, peer, dialled=dialled, introducer=introducer, close_seconds=self.limits.close)
