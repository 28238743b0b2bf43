"""One large delta between two processes over tcp, with signing, sealing and hashing, beside what it could be at best.

The sender hashes and seals the delta, writes the ciphertext to a synced file, signs core and cover, wraps the key and
announces; the receiver pulls the chunks over a link, opens them, checks root and digest and acknowledges; the sender
prunes the file. The clock runs at the sender, from the plaintext to the acknowledgement. Beside it, in the same
processes: plain asyncio TLS with the same contexts, and each part alone, best of five. Nothing that is done for one
delta runs in parallel in the bound

    bytes / (t_TLS + t_seal + t_hash)

so it is no physical limit but what a transfer without any overhead of its own would reach one step after the other.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import hashlib
import json
import os
import pstats
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from figures import BEST_OF, best, machine, show, sync_rate, table

from p2pfl.crypto import (
    Certificate,
    Identity,
    Opener,
    Prekey,
    Sealed,
    open_all,
    open_envelope,
    seal,
    seal_off_loop,
    sha256,
    sign_envelope,
    wrap_key,
)
from p2pfl.files import write_atomic
from p2pfl.governance import check_charter
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
from p2pfl.net import Host, TcpTransport
from p2pfl.peer import found_consortium, open_home
from p2pfl.peer.contents import Contents, pull_sealed
from p2pfl.peer.home import Home, tls_password
from p2pfl.peer.runner import ANNOUNCE, DIRECT
from p2pfl.types import Digest, PeerId, RunId

SIZE = 44_000_000  # bytes: 11 million float32 parameters, a ResNet-18
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


async def receive(folder: Path, ports: tuple[int, int]) -> dict[str, Any]:
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

    server = await asyncio.start_server(
        plain, "127.0.0.1", ports[1], ssl=site.transport._server_context, limit=READ
    )
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    server.close()
    await site.host.stop()
    return {}


# --- the sending process


async def send(folder: Path, ports: tuple[int, int], size: int, profiled: bool) -> dict[str, Any]:
    """All measurements of one event loop."""
    site = Site(folder / "sender")
    payload = os.urandom(size)
    await site.host.start([])
    site.host.want([site.other])
    async with asyncio.timeout(LINK_LIMIT):
        await site.linked.wait()
    times = PROFILED if profiled else BEST_OF
    product = await best_async(lambda: site.send(payload), times)
    result = {"product": product}
    if not profiled:
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


# --- each part alone


def parts(folder: Path, size: int) -> dict[str, float]:
    """Seconds of each part with nothing beside it, best of five."""
    payload = os.urandom(size)
    context = sealing_context(RUN, "me", (0, 0), "x", TO_ALL)
    sealed = seal(payload, context)
    joined = b"".join(sealed.chunks)
    identity = Identity.generate()
    core = Core(RUN, 0, 0, 0, "x", TO_ALL, Digest("00" * 32), sha256(b""), "raw", sealed.manifest, 0, {})
    signed = sign_envelope(identity, "core", core.encode()).encode()
    path = folder / "ciphertext"
    return {
        "seal": best(lambda: seal(payload, context)),
        "open": best(lambda: open_all(sealed.manifest, sealed.key, context, sealed.chunks)),
        "hash": best(lambda: sha256(payload)),
        "write": best(lambda: write_atomic(path, joined)),
        "read": best(path.read_bytes),
        "join": best(lambda: b"".join(sealed.chunks)),
        "sign": best(lambda: sign_envelope(identity, "core", core.encode())),
        "verify": best(lambda: open_envelope(signed, kinds=("core",), limit=1 << 16)),
    }


# --- profiles: CPU time per function, in every thread


class Profile:
    """cProfile in all threads of a process; its clock is the thread's CPU time, so waiting costs nothing."""

    def __init__(self) -> None:
        self._profiles: list[cProfile.Profile] = []

    def enable(self) -> None:
        """Profile the calling thread from now on."""
        profile = cProfile.Profile(time.thread_time)
        self._profiles.append(profile)
        profile.enable()

    def costs(self) -> dict[str, float]:
        """Function -> its own CPU seconds."""
        found: dict[str, float] = {}
        for profile in self._profiles:
            profile.disable()
            for (file, _, name), (_, _, own, _, _) in pstats.Stats(profile).stats.items():
                key = name if file == "~" else f"{Path(file).parent.name}/{Path(file).name}: {name}"
                found[key] = found.get(key, 0.0) + own
        return found


KINDS = {
    "encrypt and open (XChaCha20-Poly1305)": ("xchacha20poly1305",),
    "TLS: encrypt, decrypt": ("_ssl._SSLSocket", "_ssl.MemoryBIO"),
    "SHA-256 (digests, Merkle leaves)": ("sha256", "HASH"),
    "socket": ("_socket.socket", "posix.sendmsg"),
    "ciphertext file: write, sync, read": ("posix.", "_io.", "BufferedReader"),
    "copies: join, bytes": ("'join'", "'extend'", "bytearray"),
    "thread hops": ("_thread.", "concurrent/", "_queue", "threading", "asyncio/threads"),
    "event loop": ("asyncio/", "select.epoll", "_asyncio", "selectors"),
    "framing and pulls": ("net/",),
}


def kind_of(name: str) -> str:
    """The plain name of a profiled function's group; itself where it has none."""
    return next((kind for kind, marks in KINDS.items() if any(mark in name for mark in marks)), "other Python")


# --- the two processes


def start(role: str, folder: Path, arguments: argparse.Namespace, loop: str, profiled: bool) -> subprocess.Popen[str]:
    """One of the two processes."""
    command = [
        sys.executable, __file__, "--role", role, "--folder", str(folder), "--size", str(arguments.size),
        "--loop", loop, *(["--profile"] if profiled else []), "--ports", *map(str, arguments.ports),
    ]  # fmt: skip
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def pair(folder: Path, arguments: argparse.Namespace, loop: str, profiled: bool) -> list[dict[str, Any]]:
    """Both processes' figures on one event loop."""
    receiver = start("receiver", folder, arguments, loop, profiled)
    try:
        assert receiver.stdout is not None
        if receiver.stdout.readline() != "ready\n":
            raise SystemExit("the receiving process did not start")
        sender = start("sender", folder, arguments, loop, profiled)
        answer, _ = sender.communicate(timeout=10 * TRANSFER_LIMIT)
        if sender.returncode:
            raise SystemExit("the sending process failed")
        rest, _ = receiver.communicate(timeout=LINK_LIMIT)
    finally:
        receiver.kill()
        receiver.wait()
    return [json.loads(answer), json.loads(rest)]


def role(arguments: argparse.Namespace) -> None:
    """What one of the two processes does; prints its figures."""
    profile = Profile() if arguments.profile else None

    async def work() -> dict[str, Any]:
        if profile is not None:
            executor = ThreadPoolExecutor(initializer=profile.enable)
            asyncio.get_running_loop().set_default_executor(executor)
            profile.enable()
        ports = (arguments.ports[0], arguments.ports[1])
        if arguments.role == "receiver":
            return await receive(arguments.folder, ports)
        return await send(arguments.folder, ports, arguments.size, profile is not None)

    result = run(arguments.loop, work())
    usage = resource.getrusage(resource.RUSAGE_SELF)
    result["cpu"] = usage.ru_utime + usage.ru_stime
    result["peak_bytes"] = usage.ru_maxrss * 1024
    if profile is not None:
        result["costs"] = profile.costs()
    print(json.dumps(result))


def run(loop: str, work: Coroutine[Any, Any, dict[str, Any]]) -> dict[str, Any]:
    """On asyncio's own loop or on uvloop."""
    if loop == "asyncio":
        return asyncio.run(work)
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Everything, on both event loops."""
    facts = machine()
    homes = [folder / "sender", folder / "receiver"]
    listen = {homes[1]: f"/ip4/127.0.0.1/tcp/{arguments.ports[0]}"}
    found_consortium(dict.fromkeys(homes), "benchmark", {"kind": "full"}, listen=listen)
    alone = parts(folder, arguments.size)
    loops = {}
    for loop in ["asyncio", *(["uvloop"] if facts["uvloop"] else [])]:
        sender, receiver = pair(folder, arguments, loop, profiled=False)
        bound = sender["tls"] + alone["seal"] + alone["hash"]
        loops[loop] = {
            "tls_seconds": sender["tls"],
            "product_seconds": sender["product"],
            "bound_seconds": bound,
            "share_of_bound": bound / sender["product"],
            "left_over_files": sender["left_over"],
            "peak_bytes": [sender["peak_bytes"], receiver["peak_bytes"]],
        }
    costs: dict[str, float] = {}
    for side in pair(folder, arguments, "asyncio", profiled=True):
        for name, seconds in side["costs"].items():
            kind = kind_of(name)
            costs[kind] = costs.get(kind, 0.0) + seconds / PROFILED
    return {
        "machine": facts,
        "size": arguments.size,
        "syncs_per_second": sync_rate(folder),
        "alone_seconds": alone,
        "loops": loops,
        "costs_seconds": dict(sorted(costs.items(), key=lambda item: -item[1])),
    }


MEANINGS = {
    "seal": "seal: encrypt 64 KiB chunks, hash each, Merkle root",
    "open": "open: decrypt, hash, check the root",
    "hash": "hash: SHA-256 of the delta",
    "write": "ciphertext file written and synced",
    "read": "ciphertext file read (from the page cache)",
    "join": "chunks joined in memory",
    "sign": "sign one core",
    "verify": "verify one core",
}


def tables(result: dict[str, Any]) -> str:
    """The figures as text."""
    size = result["size"] / 1e6
    transfer = []
    for loop, row in result["loops"].items():
        transfer += [
            [f"plain TLS, {loop}", row["tls_seconds"] * 1e3, size / row["tls_seconds"], ""],
            [f"bound, {loop}: TLS + seal + hash", row["bound_seconds"] * 1e3, size / row["bound_seconds"], "100%"],
            [
                f"signed, sealed, hashed, {loop}",
                row["product_seconds"] * 1e3,
                size / row["product_seconds"],
                f"{row['share_of_bound']:.0%}",
            ],
        ]
    alone = [
        [MEANINGS[name], value * 1e3, size / value if value > 1e-3 else ""]
        for name, value in result["alone_seconds"].items()
    ]
    whole = sum(result["costs_seconds"].values())
    costs = [
        [name, value * 1e3, f"{value / whole:.0%}"] for name, value in list(result["costs_seconds"].items())[:6]
    ]
    facts = result["machine"]
    head = f"{size:.0f} MB between two processes over tcp, best of {BEST_OF}"
    return "\n\n".join(
        [
            table(head, ["what", "ms", "MB/s", "of bound"], transfer),
            table("each part alone", ["part", "ms", "MB/s"], alone),
            table(
                "largest costs of one transfer (CPU time of both processes, profiled on asyncio)",
                ["cost", "ms", "share"],
                costs,
            ),
            f"{facts['cores']} cores, {facts['interpreter']}, uvloop {facts['uvloop'] or 'not installed'}; "
            f"{result['syncs_per_second']:.0f} synced 4 KiB appends per second",
        ]
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--size", type=int, default=SIZE, help="bytes of the delta")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--folder", type=Path, default=None, help="where the homes go; the disk measured")
    for option in ("--role", "--loop"):
        parser.add_argument(option, help=argparse.SUPPRESS)
    parser.add_argument("--profile", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--ports", type=int, nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.role:
        role(arguments)
        return
    with tempfile.TemporaryDirectory(prefix="p2pfl-link-", dir=arguments.folder) as name:
        arguments.ports = free_ports()
        result = measure(arguments, Path(name))
    show(result, tables(result), arguments.json)


def free_ports() -> list[int]:
    """Two ports nobody listens on now."""
    import socket

    with socket.socket() as one, socket.socket() as other:
        for probe in (one, other):
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in (one, other)]


if __name__ == "__main__":
    main()
