"""One aiortc stack: ICE, DTLS, SCTP and one data channel, through aiortc's ORTC objects.

Every step has a limit in time. Private attributes of aiortc and aioice are touched here and in :mod:`ice` and
:mod:`association` alone; the versions are pinned, and tests/net/test_net_webrtc.py fails when one of them goes.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import hashlib
import ipaddress
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from aiortc import (
    RTCCertificate,
    RTCDataChannel,
    RTCDataChannelParameters,
    RTCDtlsFingerprint,
    RTCDtlsParameters,
    RTCDtlsTransport,
    RTCIceCandidate,
    RTCIceParameters,
    RTCIceTransport,
)
from aiortc.rtcsctptransport import RTCSctpCapabilities
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from p2pfl.errors import LinkError, SignatureRefused
from p2pfl.net.webrtc.association import Association
from p2pfl.net.webrtc.ice import check_again, gather_from, make_gatherer
from p2pfl.net.webrtc.offers import CANDIDATES, Candidate, Description
from p2pfl.net.webrtc.settings import IceSettings

MESSAGE_LIMIT = 14 * 1160
"""Bytes of one SCTP message: 14 of aiortc's DATA chunks, below the 16 KiB that every WebRTC stack takes (RFC 8831)."""

CERTIFICATE_DAYS = 30  # as browsers make them (W3C WebRTC 4.10.2); ours lives as long as its connection
EARLY_MESSAGES = 64  # the hello needs one; a peer that sends more before it hears from us is no peer of ours
CLOSE_SECONDS = 5.0  # aiortc's close can hang

_EXPORTER = b"EXPORTER-p2pfl-channel-binding"
_SCTP_PORT = 5000  # the customary one; both ends of one DTLS association, nothing on the network
_BACKDATED = datetime.timedelta(days=1)

_log = logging.getLogger("p2pfl.net")


def make_certificate() -> tuple[RTCCertificate, bytes]:
    """A fresh P-256 certificate and its DER.

    Its subject is empty of meaning: DTLS 1.2 shows certificates to whoever listens on the path.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "p2pfl")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + datetime.timedelta(days=CERTIFICATE_DAYS))
        .sign(key, SHA256())
    )
    return RTCCertificate(key, certificate), certificate.public_bytes(Encoding.DER)


class Stack:
    """One end. ``gather``, ``connect``, then ``channel`` is open; ``close`` ends it from any state."""

    def __init__(self, settings: IceSettings, addresses: Sequence[str], *, controlling: bool) -> None:
        self._settings = settings
        self._addresses = tuple(addresses)
        self._certificate, self.own_certificate = make_certificate()
        self._gatherer = make_gatherer(settings, controlling=controlling)
        self._connection: Any = self._gatherer._connection
        self.ice = RTCIceTransport(self._gatherer)
        self.dtls = RTCDtlsTransport(self.ice, [self._certificate])
        self.sctp = Association(self.dtls, _SCTP_PORT)
        self.channel = RTCDataChannel(
            self.sctp, RTCDataChannelParameters(label="p2pfl", ordered=True, negotiated=True, id=0)
        )
        self._receiver: Callable[[bytes | str], None] | None = None
        self._early: list[bytes | str] = []
        self.channel.on("message", self._on_message)
        self._pair = ("", "", "", 0)
        self.remote_certificate = b""
        self.exported = b""
        self.closing: asyncio.Task[None] | None = None
        self.on_closed: Callable[[], object] = lambda: None
        self.handed_over = False
        """Whether a connection stands over it; its owner closes it."""

    async def gather(self, seconds: float) -> Description:
        """Find the own candidates. LinkError when there are none."""
        try:
            async with asyncio.timeout(seconds):
                await gather_from(self._gatherer, self._addresses)
        except TimeoutError:
            raise LinkError(
                f"no addresses for WebRTC found within {seconds:g} s; are STUN and TURN reachable?"
            ) from None
        if self.closing is not None:  # closed meanwhile: the sockets that came after that are ours to close
            await _bounded(self._connection.close())
            raise LinkError("the connection was given up while its addresses were gathered")
        parameters = self._gatherer.getLocalParameters()
        found = [
            Candidate(item.foundation, item.ip, item.port, item.priority, item.type)
            for item in self._gatherer.getLocalCandidates()
        ]
        if not found:
            raise LinkError(self._nothing_found())
        fingerprint = hashlib.sha256(self.own_certificate).digest()
        username, password = parameters.usernameFragment or "", parameters.password or ""
        return Description(fingerprint, username, password, tuple(found[:CANDIDATES]))

    def _nothing_found(self) -> str:
        if self._settings.relay_only:
            return f"the TURN server {self._settings.turn} gave no address; run `p2pfl doctor` (relay_only is set)"
        return "this machine has no network address for WebRTC; set interfaces in [webrtc], or run `p2pfl doctor`"

    @property
    def shortcomings(self) -> list[str]:
        """Configured servers that gave nothing."""
        types = {candidate.type for candidate in self._connection.local_candidates}
        found = []
        if self._settings.stun and not self._settings.relay_only and "srflx" not in types:
            found.append(f"the STUN server {self._settings.stun} gave no address")
        if self._settings.turn and "relay" not in types:
            found.append(f"the TURN server {self._settings.turn} gave no address")
        return found

    async def connect(self, remote: Description, seconds: float, *, patient: bool = False) -> None:
        """Reach the other end, prove both certificates, open the channel. LinkError or SignatureRefused.

        ``patient``: the other end begins later (people carry the answer), so failed checks are made again for the
        whole time, which also keeps the own NAT's mapping open.
        """
        try:
            async with asyncio.timeout(seconds):
                await self._connect(remote, patient)
        except TimeoutError:
            raise LinkError(f"no connection within {seconds:g} s ({self._state()}){self._hint()}") from None
        except ConnectionError as error:
            raise LinkError(f"the connection broke off while it was made ({error or self._state()})") from None

    async def _connect(self, remote: Description, patient: bool) -> None:
        for item in _reasonable(remote.candidates, self._addresses):
            await self.ice.addRemoteCandidate(
                RTCIceCandidate(1, item.foundation, item.host, item.port, item.priority, "udp", item.type)
            )
        parameters = RTCIceParameters(remote.username, remote.password)
        if patient:
            again = asyncio.get_running_loop().create_task(check_again(self._connection))
            try:
                await self.ice.start(parameters)
            finally:
                again.cancel()
        else:
            await self.ice.addRemoteCandidate(None)  # without this word a failed check never ends
            await self.ice.start(parameters)
        if self.ice.state != "completed":
            raise LinkError(f"no UDP path between the two sites{self._hint()}")
        expected = RTCDtlsFingerprint("sha-256", ":".join(f"{byte:02X}" for byte in remote.fingerprint))
        await self.dtls.start(RTCDtlsParameters(fingerprints=[expected]))
        if self.dtls.state != "connected":
            raise self._dtls_fault(remote)
        # no await in between: data that comes before sctp.start is dropped, and the handshake stalls for 3 s
        opened: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.channel.once("open", lambda: _settle(opened, True))
        self.channel.once("close", lambda: _settle(opened, False))
        await self.sctp.start(RTCSctpCapabilities(maxMessageSize=MESSAGE_LIMIT), _SCTP_PORT)
        self._note_remote(remote)
        if self.channel.readyState != "open" and not await opened:
            raise ConnectionError("the other end closed at once")

    def _dtls_fault(self, remote: Description) -> Exception:
        shown = self._shown_certificate()
        if shown and hashlib.sha256(shown).digest() != remote.fingerprint:
            return SignatureRefused(
                "the other end's certificate is not the one that its identity signed for: somebody sits between"
            )
        return LinkError("the DTLS handshake failed; the other end may run another version")

    def _shown_certificate(self) -> bytes:
        ssl = self.dtls._ssl
        certificate = ssl.get_peer_certificate(as_cryptography=True) if ssl is not None else None
        return certificate.public_bytes(Encoding.DER) if certificate is not None else b""

    def _note_remote(self, remote: Description) -> None:
        self.remote_certificate = self._shown_certificate()
        if hashlib.sha256(self.remote_certificate).digest() != remote.fingerprint:  # aiortc has looked too
            raise SignatureRefused("the other end's certificate changed during the handshake; refused")
        assert self.dtls._ssl is not None  # the handshake is over
        self.exported = bytes(self.dtls._ssl.export_keying_material(_EXPORTER, 32))

    def _on_message(self, data: bytes | str) -> None:
        """The other end may be open, and have spoken, before our own caller has heard that the channel is."""
        if self._receiver is not None:
            self._receiver(data)
        elif len(self._early) < EARLY_MESSAGES:
            self._early.append(data)
        else:
            self.close()

    def receive_with(self, receiver: Callable[[bytes | str], None]) -> None:
        """From now on messages go to ``receiver``, those that came early first."""
        self._receiver = receiver
        early, self._early = self._early, []
        for data in early:
            receiver(data)

    def _hint(self) -> str:
        if self._settings.turn is None:
            hint = "; both may sit behind NATs that need a TURN server (turn in [webrtc]), or UDP is blocked"
        else:
            hint = "; ask whether UDP to the TURN server and among its relayed addresses is allowed"
        return "".join(f"; {problem}" for problem in self.shortcomings) + hint

    def _state(self) -> str:
        return f"ICE {self.ice.state}, DTLS {self.dtls.state}, SCTP {self.sctp.state}"

    @property
    def pair(self) -> tuple[str, str, str, int]:
        """The pair in use: own candidate's type, the other's type, its host and port. The last one when it has gone."""
        nominated = self._connection._nominated.get(1)
        if nominated is not None:
            remote = nominated.remote_candidate
            self._pair = nominated.local_candidate.type, remote.type, remote.host, remote.port
        return self._pair

    def close(self) -> asyncio.Task[None]:
        """Tear down, bounded in time; the task is one and the same however often this is called."""
        if self.closing is None:
            self.closing = asyncio.get_running_loop().create_task(self._close())
            self.closing.add_done_callback(lambda task: self.on_closed())
        return self.closing

    async def _close(self) -> None:
        for part in (self.sctp.stop, self.dtls.stop, self.ice.stop, self._connection.close):
            await _bounded(part())
        for emitter in (self.channel, self.sctp, self.dtls, self.ice, self._gatherer):
            emitter.remove_all_listeners()


def _reasonable(candidates: Sequence[Candidate], own: Sequence[str]) -> list[Candidate]:
    """Without this machine's and this cable's own addresses, unless our own are such: no member makes us probe them."""
    local = any(_is_local(address) for address in own)
    return [item for item in candidates if local or not _is_local(item.host)]


def _is_local(address: str) -> bool:
    number = ipaddress.ip_address(address)
    return number.is_loopback or number.is_link_local


def _settle(opened: asyncio.Future[bool], value: bool) -> None:
    if not opened.done():
        opened.set_result(value)


async def _bounded(step: Awaitable[Any]) -> None:
    with contextlib.suppress(TimeoutError, ConnectionError, OSError):
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await step
        except (TimeoutError, ConnectionError, OSError):
            raise
        except Exception:
            _log.exception("closing a WebRTC connection failed")
