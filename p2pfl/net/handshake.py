"""The hello in both directions, over any transport, before a link counts as up.

Both ends send a hello (version, network, peer id, fresh nonce, process nonce, protocols), then an
identity-signed proof over network, both ids, both nonces, the signer's role, the channel binding and a
hash of both hellos. A proof is therefore worth nothing on any other connection. The end with the smaller
peer id, the *decider*, then orders the pair's connections:

    dialler                        listener
      HELLO  ----->        <-----  HELLO
      PROOF  ----->        <-----  PROOF        each checks: member, certificate, network, signature

    the other end                  decider
      OK     ----->                       "I checked you; no link of mine makes this one needless,
                                           and no other process with your key is linked here and lives"
                           <-----  WELCOME n    only now is the link up; the highest n is the link

A refused end gets REFUSED with the reason, or silence: it never sees WELCOME or OK, so it never believes
it is connected.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, NoReturn

from p2pfl.crypto.envelope import open_envelope, sign_envelope
from p2pfl.crypto.identity import Identity
from p2pfl.crypto.packing import pack, read_fields, unpack
from p2pfl.errors import LinkError, MalformedMessage, NotAMember, RemoteError, SignatureRefused
from p2pfl.net.connection import Connection
from p2pfl.net.limits import (
    FRAME_LIMIT,
    HELLO_LIMIT,
    OFFERED_PROTOCOLS,
    PROTOCOL_NAME_LIMIT,
    REASON_LIMIT,
    Limits,
)
from p2pfl.net.outcomes import DUPLICATE, AlreadyLinkedError, SelfConnectionError, name_of, printable
from p2pfl.types import Member, PeerId, Roster

VERSION = 1
NONCE = 32  # bytes; no collision in the lifetime of any key
PROCESS = 16  # bytes; tells a restarted peer from a second connection of the same process

_KIND = "/p2pfl/hello/1"
_HELLO, _PROOF, _OK, _WELCOME, _REFUSED = b"H", b"P", b"O", b"W", b"R"

_HELLO_FIELDS: dict[str, type | tuple[type, ...]] = {
    "version": int,
    "network": str,
    "peer": str,
    "nonce": bytes,
    "process": bytes,
    "protocols": list,
}
_PROOF_FIELDS: dict[str, type | tuple[type, ...]] = {
    "network": str,
    "role": str,
    "dialler": str,
    "listener": str,
    "dialler_nonce": bytes,
    "listener_nonce": bytes,
    "binding": bytes,
    "hellos": bytes,
}


@dataclass(frozen=True, slots=True)
class Greeting:
    """What a completed hello has established about the other end."""

    peer: PeerId
    process: bytes
    number: int  # given by the decider, rising over its process's life
    protocols: frozenset[str]


@dataclass(slots=True)
class Greeter:
    """What this end says of itself. ``needless`` tells whether a connection (peer, process, kind) is of no use
    beside the link that stands; ``make_way`` (peer, process, its name for people) returns once no other process of
    that peer is linked, or raises SecondInstanceError.
    """

    identity: Identity
    roster: Callable[[], Roster]
    protocols: Callable[[], Iterable[str]]
    needless: Callable[[PeerId, bytes, str], bool]
    make_way: Callable[[PeerId, bytes, str], Awaitable[None]]
    next_number: Callable[[], int]
    limits: Limits
    process: bytes

    async def greet(self, connection: Connection, expected: PeerId | None) -> Greeting:
        """Run the hello. The connection is closed on every failure.

        ``expected`` is the member dialled; None for an incoming connection or an address heard by
        discovery. Raises NotAMember, SignatureRefused or MalformedMessage when we refuse, LinkError when
        the other end does or is silent.
        """
        try:
            async with asyncio.timeout(self.limits.hello):
                return await _Exchange(self, connection, expected).run()
        except TimeoutError:
            connection.abort()
            raise LinkError(
                f"{connection.address} did not finish the hello in {self.limits.hello:g} s; try again"
            ) from None
        except (RemoteError, AlreadyLinkedError) as error:
            await self._refuse(connection, error)
            raise
        except BaseException:
            connection.abort()
            raise

    async def _refuse(self, connection: Connection, error: Exception) -> None:
        """Say why, best effort, and close."""
        text = DUPLICATE if isinstance(error, AlreadyLinkedError) else str(error)[:REASON_LIMIT]
        try:
            async with asyncio.timeout(self.limits.close):
                await connection.send(_REFUSED, text.encode())
        except (LinkError, RemoteError, TimeoutError):
            pass  # it is refused all the same
        finally:
            await connection.close()


class _Exchange:
    """One run of the hello over one connection."""

    def __init__(self, greeter: Greeter, connection: Connection, expected: PeerId | None) -> None:
        self._greeter = greeter
        self._connection = connection
        self._expected = expected
        self._own = greeter.identity.peer_id
        self._roster = greeter.roster()  # one roster for the whole hello
        self._nonce = secrets.token_bytes(NONCE)
        self._address = connection.address
        self._peer: PeerId | None = None  # once hello and certificate agree

    async def run(self) -> Greeting:
        """Hello, proof, OK or WELCOME."""
        own_hello = self._hello()
        await self._send(_HELLO, own_hello)
        other_hello = await self._receive(_HELLO)
        hello = self._read_hello(other_hello)
        peer = self._peer = self._check_member(hello)
        if self._connection.dialled and self._expected is None and self._needless(peer, b""):
            raise AlreadyLinkedError(peer)  # an address heard by discovery leads to a neighbour we have
        hellos = (own_hello, other_hello) if self._connection.dialled else (other_hello, own_hello)
        proofs = self._proof_fields(peer, hello["nonce"], hashlib.sha256(b"".join(map(_sized, hellos))).digest())
        await self._send(_PROOF, sign_envelope(self._greeter.identity, _KIND, pack(proofs["own"])).encode())
        self._check_proof(await self._receive(_PROOF), peer, proofs["other"])
        self._connection.allow(FRAME_LIMIT)  # before our OK or WELCOME: the other end may use the link at once
        number = await self._settle(peer, hello["process"])
        return Greeting(peer, hello["process"], number, frozenset(hello["protocols"]))

    async def _settle(self, peer: PeerId, process: bytes) -> int:
        """OK and WELCOME; returns the connection's number."""
        if self._needless(peer, process):
            raise AlreadyLinkedError(peer)
        member = self._roster.member(peer)
        await self._greeter.make_way(peer, process, f"{name_of(member) if member else peer} at {self._address}")
        if self._own > peer:
            await self._send(_OK)
            return int.from_bytes(await self._receive(_WELCOME, 8), "big")
        await self._receive(_OK, 0)
        if self._needless(peer, process):  # another connection may have come up while we waited
            raise AlreadyLinkedError(peer)
        number = self._greeter.next_number()
        await self._send(_WELCOME, number.to_bytes(8, "big"))
        return number

    def _needless(self, peer: PeerId, process: bytes) -> bool:
        return self._greeter.needless(peer, process, self._connection.kind)

    async def _send(self, *parts: bytes) -> None:
        """Where the other end has closed, its reason may have arrived before."""
        try:
            await self._connection.send(*parts)
        except LinkError:
            while True:  # ends with the LinkError of the last frame's successor
                frame = await self._connection.receive()
                if frame[:1] == _REFUSED:
                    self._refused(frame[1:])

    async def _receive(self, kind: bytes, size: int | None = None) -> bytes:
        """The body of the next frame, which must be of this kind."""
        frame = await self._connection.receive()
        found, body = frame[:1], frame[1:]
        if found == _REFUSED:
            self._refused(body)
        if found != kind or (size is not None and len(body) != size):
            raise MalformedMessage(f"{self._address} sent an unexpected frame during the hello; refused")
        return body

    def _refused(self, body: bytes) -> NoReturn:
        text = printable(body)
        if text == DUPLICATE and self._peer is not None:
            raise AlreadyLinkedError(self._peer)
        raise LinkError(f"{self._address} refused us: {text}")

    def _hello(self) -> bytes:
        greeter = self._greeter
        return pack(
            {
                "version": VERSION,
                "network": self._roster.charter,
                "peer": self._own,
                "nonce": self._nonce,
                "process": greeter.process,
                "protocols": sorted(greeter.protocols())[:OFFERED_PROTOCOLS],
            }
        )

    def _read_hello(self, data: bytes) -> dict[str, Any]:
        hello = read_fields(unpack(data, what="hello", limit=HELLO_LIMIT), "hello", _HELLO_FIELDS)
        names = hello["protocols"]
        if (
            len(hello["nonce"]) != NONCE
            or len(hello["process"]) != PROCESS
            or len(names) > OFFERED_PROTOCOLS
            or not all(isinstance(name, str) and len(name) <= PROTOCOL_NAME_LIMIT for name in names)
        ):
            raise MalformedMessage(f"{self._address} sent a hello with fields of a wrong size; refused")
        return hello

    def _check_member(self, hello: dict[str, Any]) -> PeerId:
        """The member that this hello and this certificate belong to."""
        address, claimed = self._address, str(hello["peer"])[:80]
        if hello["version"] != VERSION:
            raise MalformedMessage(
                f"{claimed} at {address} speaks link version {hello['version']}, we {VERSION}; update one"
            )
        if hello["network"] != self._roster.charter:
            raise NotAMember(
                f"{claimed} at {address} follows another charter ({str(hello['network'])[:16]}…, ours is "
                f"{self._roster.charter[:16]}…); compare fingerprints with that site",
                peer=claimed,
            )
        if claimed == self._own:
            raise SelfConnectionError(
                f"{address} is our own address, or a copy of our identity runs there; remove it", peer=claimed
            )
        member = self._roster.member(claimed)
        if member is None:
            raise NotAMember(f"{claimed} at {address} is not a member of this charter; refused", peer=claimed)
        self._check_certificate(member)
        if self._expected is not None and member.peer_id != self._expected:
            wanted = self._roster.member(self._expected)
            label = name_of(wanted) if wanted else self._expected
            raise SignatureRefused(
                f"{address} belongs to {name_of(member)}, not to {label}; correct the address of one of them",
                peer=claimed,
            )
        return member.peer_id

    def _check_certificate(self, member: Member) -> None:
        """The certificate must be this member's: by its record, or by its signature in the transport's signalling."""
        connection, address = self._connection, self._address
        if connection.pinned is None:
            if connection.remote_certificate not in member.certificates:
                raise SignatureRefused(
                    f"{name_of(member)} at {address} came with a certificate that is not in its record; refused",
                    peer=member.peer_id,
                )
        elif connection.pinned != member.peer_id:
            signer = self._roster.member(connection.pinned)
            label = name_of(signer) if signer else connection.pinned
            raise SignatureRefused(
                f"{name_of(member)} says hello over a connection that {label} has signed for ({address}); refused",
                peer=connection.pinned,
            )

    def _proof_fields(self, peer: PeerId, nonce: bytes, hellos: bytes) -> dict[str, dict[str, Any]]:
        """What each end signs; the two differ in the role alone."""
        ends = ((self._own, self._nonce), (peer, nonce))
        dialler, listener = ends if self._connection.dialled else ends[::-1]
        common = {
            "network": self._roster.charter,
            "dialler": dialler[0],
            "listener": listener[0],
            "dialler_nonce": dialler[1],
            "listener_nonce": listener[1],
            "binding": self._connection.binding,
            "hellos": hellos,
        }
        roles = ("dialler", "listener") if self._connection.dialled else ("listener", "dialler")
        return {"own": {**common, "role": roles[0]}, "other": {**common, "role": roles[1]}}

    def _check_proof(self, data: bytes, peer: PeerId, fields: dict[str, Any]) -> None:
        envelope = open_envelope(data, kinds={_KIND}, limit=HELLO_LIMIT)
        if envelope.signer != peer:
            raise SignatureRefused(
                f"{self._address} claims to be {peer} but signed as {envelope.signer}; refused", peer=peer
            )
        signed = read_fields(unpack(envelope.payload, what="proof", limit=HELLO_LIMIT), "proof", _PROOF_FIELDS)
        for name, value in fields.items():
            if signed[name] != value:
                raise SignatureRefused(
                    f"{peer} at {self._address} signed another connection's hello ({name} differs); refused",
                    peer=peer,
                )


def _sized(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data
