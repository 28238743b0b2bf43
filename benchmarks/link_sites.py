"""The two processes of the link benchmark: what a peer does with one delta, and plain TLS beside it."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from figures import BEST_OF
from profiling import Profile

from p2pfl.crypto import (
    Certificate,
    Identity,
    Opener,
    Prekey,
    Sealed,
    ciphertext_size,
    seal_off_loop,
    sha256,
    sign_envelope,
    wrap_key,
)
from p2pfl.gossip.direct import Acknowledgement, open_acknowledgement
from p2pfl.gossip.messages import (
    TO_ALL,
    Announcement,
    Core,
    Cover,
    decode_announcement,
    open_core,
    open_cover,
    sealing_context,
)
from p2pfl.governance import check_charter
from p2pfl.net import Host, TcpTransport, Transport
from p2pfl.peer import open_home
from p2pfl.peer.contents import Contents, pull_sealed
from p2pfl.peer.home import Home, tls_password
from p2pfl.peer.runner import ANNOUNCE, DIRECT
from p2pfl.types import Digest, PeerId, RunId

WRITE = 64 * 1024  # bytes per write of the plain TLS stream
READ = 256 * 1024  # bytes asyncio's TLS hands over at most
RUN = RunId("00" * 32)  # the benchmark is in no run; every message needs the name of one
LINK_LIMIT = 30.0  # seconds until the link is up
TRANSFER_LIMIT = 120.0  # seconds for one delta
PROFILED = 3  # transfers under the profiler, apart from those that are timed
_RECEIPT = struct.Struct(">QQ")  # bytes received, nanoseconds of the receiver's CPU


class Site:
    """One of the two processes: a home, a host and a store of ciphertexts, joined as a peer joins them."""

    def __init__(self, path: Path, make: Callable[[Identity, PeerId], Transport] | None = None) -> None:
        """``make`` gives another transport than tcp, for this identity and the other peer."""
        home = open_home(path)
        self.identity: Identity = home.identity(None)
        self.me = self.identity.peer_id
        self.roster = check_charter(home.charter(), now=int(time.time()))
        self.other = next(peer for peer in self.roster.peer_ids if peer != self.me)
        self.contents = Contents(home.path)
        self.transport: Any = make(self.identity, self.other) if make else transport(home, self.identity)
        self.linked = asyncio.Event()
        self.acknowledged: asyncio.Future[Digest] | None = None
        # the receiver's prekey travels in its approval; here both sides derive it from a word
        self.prekey = Prekey.from_secret(hashlib.sha256(b"benchmark").digest())
        self.host = Host(self.identity, self.roster, [self.transport], on_link=self._on_link)
        self.host.serve(self.contents.chunk)
        self.host.handle_notify(ANNOUNCE, self._on_announcement)
        self.host.handle_notify(DIRECT, self._on_direct)
        self._tasks: set[asyncio.Task[None]] = set()

    def _on_link(self, peer: PeerId, up: bool, detail: str) -> None:
        if up:
            self.linked.set()

    def _on_announcement(self, peer: PeerId, data: bytes) -> None:
        task = asyncio.get_running_loop().create_task(self._receive(peer, data))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _on_direct(self, peer: PeerId, data: bytes) -> None:
        _, acknowledgement = open_acknowledgement(data)
        if self.acknowledged is not None and not self.acknowledged.done():
            self.acknowledged.set_result(acknowledgement.cores[0])

    async def send(self, payload: bytes) -> None:
        """One delta, from plaintext to acknowledgement, as `p2pfl.peer.runner` does it."""
        result = await asyncio.to_thread(sha256, payload)
        position = (0, 0)
        context = sealing_context(RUN, self.me, position, "x", TO_ALL)
        sealed = await seal_off_loop(payload, context)
        announcement, digest = self.announce(sealed, result, context)
        await self.contents.put_ciphertext(digest, sealed.chunks, frozenset([self.other]))
        self.acknowledged = asyncio.get_running_loop().create_future()
        await self.host.notify(self.other, ANNOUNCE, announcement)
        async with asyncio.timeout(TRANSFER_LIMIT):
            if await self.acknowledged != digest:
                raise SystemExit("the receiver acknowledged another delta")
        self.contents.release(digest)

    def announce(self, sealed: Sealed, result: Digest, context: bytes) -> tuple[bytes, Digest]:
        """The announcement and the digest of its core."""
        core = Core(
            RUN, 0, 0, 0, "x", TO_ALL, Digest("00" * 32), result, "raw", sealed.manifest, 0, {}
        )  # fmt: skip
        signed = sign_envelope(self.identity, "core", core.encode())
        keys = {self.other: wrap_key(sealed.key, self.prekey.public, context)}
        cover = sign_envelope(self.identity, "cover", Cover(signed.digest, keys, 0, Digest("00" * 32)).encode())
        return Announcement(RUN, signed.encode(), cover.encode(), b"").encode(), signed.digest

    async def _receive(self, peer: PeerId, data: bytes) -> None:
        announcement = decode_announcement(data)
        envelope, core = open_core(announcement.core)
        _, cover = open_cover(announcement.cover)
        context = sealing_context(RUN, peer, core.position, core.channel, core.recipient)
        opener = Opener(core.manifest, self.prekey.unwrap(cover.keys[self.me], context), context)
        payload = await pull_sealed(self.host, peer, envelope.digest, opener)
        if await asyncio.to_thread(sha256, payload) != core.result:
            raise SystemExit("the delta does not have the digest that was signed")
        receipt = sign_envelope(self.identity, "acknowledgement", Acknowledgement(RUN, (envelope.digest,)).encode())
        await self.host.notify(peer, DIRECT, receipt.encode())


def transport(home: Home, identity: Identity) -> TcpTransport:
    """The peer's tcp transport."""
    member = home.member()
    certificate = Certificate(member.certificates[0], (home.path / "tls.key").read_bytes())
    return TcpTransport(certificate, tls_password(identity))


async def receive(folder: Path, ports: tuple[int, int], profile: Profile | None) -> dict[str, Any]:
    """Serve until standard input ends."""
    site = Site(folder / "receiver")
    await site.host.start([f"/ip4/127.0.0.1/tcp/{ports[0]}"])
    server = await asyncio.start_server(
        take_plain, "127.0.0.1", ports[1], ssl=site.transport._server_context, limit=READ
    )
    if profile is not None:
        profile.start()
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    if profile is not None:
        profile.stop()
    server.close()
    await site.host.stop()
    return {}


async def deltas(site: Site, size: int, transfers: int) -> dict[str, Any]:
    """Send the other process, which is linked, so many deltas; the seconds of each, and CPU seconds of all."""
    payload, before = os.urandom(size), time.process_time()
    seconds = []
    for _ in range(transfers):
        started = time.perf_counter()
        await site.send(payload)
        seconds.append(time.perf_counter() - started)
    return {"seconds": seconds, "cpu_seconds": time.process_time() - before}


async def take_plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The plain stream's receiving end: count every byte, and answer with the count once all are here."""
    with contextlib.suppress(asyncio.IncompleteReadError):  # the sender closes after its last
        while True:
            wanted = int.from_bytes(await reader.readexactly(8), "big")
            cpu, count = time.process_time_ns(), 0
            while count < wanted:
                data = await reader.read(min(READ, wanted - count))
                if not data:
                    raise SystemExit("the plain stream ended early")
                count += len(data)
            writer.write(_RECEIPT.pack(count, time.process_time_ns() - cpu))
            await writer.drain()
    writer.close()


async def send(folder: Path, ports: tuple[int, int], size: int, profile: Profile | None) -> dict[str, Any]:
    """All measurements of one event loop. Both kinds of transfer take turns, so that they see the same machine."""
    site = Site(folder / "sender")
    payload = os.urandom(size)
    await site.host.start([])
    site.host.want([site.other])
    async with asyncio.timeout(LINK_LIMIT):
        await site.linked.wait()
    if profile is not None:
        profile.start()
        for _ in range(PROFILED):
            await site.send(payload)
        profile.stop()
        await site.host.stop()
        return {}
    plain = PlainTls(site, ports[1], ciphertext_size(size))
    await plain.open()
    product, tls = [], []
    for _ in range(BEST_OF):
        tls.append(await plain.send())
        started = time.perf_counter()
        await site.send(payload)
        product.append(time.perf_counter() - started)
    plain.close()
    left_over = len(list((folder / "sender" / "outbox").iterdir()))
    await site.host.stop()
    return {"product": product, "tls": tls, "tls_receiver_cpu": plain.receiver_cpu, "left_over": left_over}


class PlainTls:
    """As many bytes as the ciphertext has over asyncio's streams with the same contexts, 64 KiB at a time."""

    def __init__(self, site: Site, port: int, size: int, address: str = "127.0.0.1") -> None:
        self._context = site.transport._client_context
        self._address = address
        self._port = port
        self._view = memoryview(os.urandom(size))
        self.receiver_cpu: list[float] = []

    async def open(self) -> None:
        """Connect."""
        self._reader, self._writer = await asyncio.open_connection(
            self._address, self._port, ssl=self._context, server_hostname="", limit=READ
        )

    async def send(self) -> float:
        """Seconds until the receiver has said that it has all of them."""
        started = time.perf_counter()
        self._writer.write(len(self._view).to_bytes(8, "big"))
        for start in range(0, len(self._view), WRITE):
            self._writer.write(self._view[start : start + WRITE])
            await self._writer.drain()
        count, cpu = _RECEIPT.unpack(await self._reader.readexactly(_RECEIPT.size))
        seconds = time.perf_counter() - started
        if count != len(self._view):
            raise SystemExit(f"the plain stream carried {count} of {len(self._view)} bytes")
        self.receiver_cpu.append(cpu / 1e9)
        return seconds

    def close(self) -> None:
        """Disconnect."""
        self._writer.close()
