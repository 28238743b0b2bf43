"""The two processes of the link benchmark: what a peer does with one delta, and plain TLS beside it."""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
import time
from collections.abc import Awaitable, Callable
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
    seal_off_loop,
    sha256,
    sign_envelope,
    wrap_key,
)
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
from p2pfl.gossip.statements import Acknowledgement, open_acknowledgement
from p2pfl.governance import check_charter
from p2pfl.net import Host, TcpTransport
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


class Site:
    """One of the two processes: a home, a host and a store of ciphertexts, joined as a peer joins them."""

    def __init__(self, path: Path) -> None:
        home = open_home(path)
        self.identity: Identity = home.identity(None)
        self.me = self.identity.peer_id
        self.roster = check_charter(home.charter(), now=int(time.time()))
        self.other = next(peer for peer in self.roster.peer_ids if peer != self.me)
        self.contents = Contents(home.path)
        self.transport = transport(home, self.identity)
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


# --- the receiving process


async def receive(folder: Path, ports: tuple[int, int], profile: Profile | None) -> dict[str, Any]:
    """Serve until standard input ends; returns this process's costs."""
    site = Site(folder / "receiver")
    await site.host.start([f"/ip4/127.0.0.1/tcp/{ports[0]}"])

    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.read(8):
            left = int.from_bytes(head, "big")
            while left:
                left -= len(await reader.read(min(READ, left)))
            writer.write(b".")
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(plain, "127.0.0.1", ports[1], ssl=site.transport._server_context, limit=READ)
    if profile is not None:
        profile.start()
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    if profile is not None:
        profile.stop()
    server.close()
    await site.host.stop()
    return {}


# --- the sending process


async def send(folder: Path, ports: tuple[int, int], size: int, profile: Profile | None) -> dict[str, Any]:
    """All measurements of one event loop."""
    site = Site(folder / "sender")
    payload = os.urandom(size)
    await site.host.start([])
    site.host.want([site.other])
    async with asyncio.timeout(LINK_LIMIT):
        await site.linked.wait()
    if profile is not None:
        profile.start()
    cpu = time.process_time()
    product = await best_async(lambda: site.send(payload), BEST_OF if profile is None else PROFILED)
    result = {"product": product, "cpu": time.process_time() - cpu}
    if profile is not None:
        profile.stop()
    else:
        result["tls"] = await plain_tls(site, ports[1], payload)
        result["left_over"] = len(list((folder / "sender" / "outbox").iterdir()))
    await site.host.stop()
    return result


async def plain_tls(site: Site, port: int, payload: bytes) -> float:
    """The ciphertext's bytes over asyncio's streams with the same contexts, 64 KiB at a time; seconds."""
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", port, ssl=site.transport._client_context, server_hostname="", limit=READ
    )
    view = memoryview(payload)

    async def once() -> None:
        writer.write(len(view).to_bytes(8, "big"))
        for start in range(0, len(view), WRITE):
            writer.write(view[start : start + WRITE])
            await writer.drain()
        await reader.readexactly(1)

    seconds = await best_async(once, BEST_OF)
    writer.close()
    return seconds


async def best_async(work: Callable[[], Awaitable[None]], times: int) -> float:
    """Seconds of the quickest of ``times``."""
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        await work()
        seconds.append(time.perf_counter() - started)
    return min(seconds)
