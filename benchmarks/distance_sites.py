"""The two processes of one figure in `distances.py`: raw aiortc, plain TLS, or the product over webrtc or tcp."""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import sys
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import aiortc  # noqa: F401 - loading it is no part of what is measured
import raw_aiortc
from link_sites import LINK_LIMIT, READ, PlainTls, Site, deltas, take_plain
from sampling import Sampler

from p2pfl.crypto import Identity, ciphertext_size
from p2pfl.net import DEFAULT
from p2pfl.net.webrtc import IceSettings, WebRtcTransport
from p2pfl.types import PeerId

TRANSFERS = 3  # in one pair of processes; the first one warms up and opens the window, and does not count
PARTS = {
    "sockets and event loop": ("ice.py:send_data", "asyncio/", "selectors.py", "uvloop/", "pyee/"),
    "DTLS": ("OpenSSL/", "rtcdtlstransport"),
    "SCTP": ("rtcsctptransport", "association.py", "rtcdatachannel", "aiortc/utils"),
    "ICE": ("aioice/", "rtcicetransport", "webrtc/ice.py"),
    "framing, pulls": ("net/", "webrtc/", "peer/"),
    "seal, open, hash": ("crypto/", "nacl/", "bindings/"),
}
"""Where CPU time goes: part -> marks of its functions."""


class Telephone:
    """Signalling between exactly two processes, over a plain local connection: who introduces is not measured."""

    def __init__(self, other: PeerId) -> None:
        self._other = other
        self.on_offer: Any = None
        self.place: tuple[str, int] = ("", 0)

    def introducers(self, to: PeerId) -> list[PeerId]:
        return [to]

    async def carry(self, introducer: PeerId, to: PeerId, box: bytes) -> bytes:
        reader, writer = await asyncio.open_connection(*self.place)
        writer.write(len(box).to_bytes(4, "big") + box)
        answer = await reader.readexactly(int.from_bytes(await reader.readexactly(4), "big"))
        writer.close()
        return answer

    def worked(self, introducer: PeerId, to: PeerId) -> None:
        pass

    async def serve(self) -> None:
        """Answer the other process."""

        async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            box = await reader.readexactly(int.from_bytes(await reader.readexactly(4), "big"))
            answer = await self.on_offer(self._other, self._other, box)
            writer.write(len(answer).to_bytes(4, "big") + answer)
            await writer.drain()

        await asyncio.start_server(take, *self.place)


async def product(options: argparse.Namespace) -> dict[str, Any]:
    """Hash, seal, store, sign, announce, pull, open, verify, acknowledge: as `link.py` does over tcp."""
    telephones: list[Telephone] = []

    def webrtc(identity: Identity, other: PeerId) -> WebRtcTransport:
        telephones.append(Telephone(other))
        return WebRtcTransport(identity, telephones[0], IceSettings(interfaces=(options.own,)), DEFAULT)

    over_webrtc = options.variant.startswith("webrtc")
    listens = options.role == "receiver"
    site = Site(options.folder / options.role, webrtc if over_webrtc else None)
    place = (options.meet, options.port)
    if over_webrtc:
        telephones[0].place = place
        await site.host.start(["/webrtc"])
        if listens:
            await telephones[0].serve()
    else:
        await site.host.start([f"/ip4/{options.meet}/tcp/{options.port}"] if listens else [])
    if listens:
        print("ready", flush=True)
        await site.linked.wait()
        used = await metered(asyncio.to_thread(sys.stdin.read))
        await site.host.stop()
        return {"cpu_seconds": used}
    site.host.want([site.other])
    async with asyncio.timeout(LINK_LIMIT):
        await site.linked.wait()
    (stack,) = site.transport._stacks if over_webrtc else (None,)
    async with raw_aiortc.Watch(stack.sctp if stack else None) as watch:
        result = await deltas(site, options.size, TRANSFERS)
    kinds = {info.kind for info in site.host.links.values()}
    assert kinds == {options.variant.split(",")[0]}, kinds
    await site.host.stop()
    return result | {"windows": watch.windows}


async def plain_tls(options: argparse.Namespace) -> dict[str, Any]:
    """As many bytes over asyncio's TLS streams."""
    site = Site(options.folder / options.role)
    await site.host.start([])  # makes the contexts
    if options.role == "receiver":
        await asyncio.start_server(
            take_plain, options.meet, options.port, ssl=site.transport._server_context, limit=READ
        )
        print("ready", flush=True)
        return {"cpu_seconds": await metered(asyncio.to_thread(sys.stdin.read))}
    plain = PlainTls(site, options.port, ciphertext_size(options.size), options.meet)
    await plain.open()
    before = time.process_time()
    seconds = [await plain.send() for _ in range(TRANSFERS)]
    plain.close()
    return {"seconds": seconds, "cpu_seconds": time.process_time() - before}


async def metered(work: Coroutine[Any, Any, Any]) -> float:
    """CPU seconds that this process takes while ``work`` is done."""
    before = time.process_time()
    await work
    return time.process_time() - before


async def raw(options: argparse.Namespace) -> dict[str, Any]:
    """One of the two processes of raw aiortc."""
    listens = options.role == "receiver"
    place = (options.meet, options.port)
    larger = options.variant.endswith("larger chunks")
    association, channel = await raw_aiortc.open_channel(options.own, place, listens, larger)
    if listens:
        return {"cpu_seconds": await metered(raw_aiortc.receive(channel, TRANSFERS))}
    async with raw_aiortc.Watch(association) as watch:
        result = await raw_aiortc.send(channel, options.size, TRANSFERS)
    return result | {"windows": watch.windows}


def role(options: argparse.Namespace) -> None:
    """What one of the two processes does; prints its figures."""
    kinds = {"raw aiortc": raw, "plain TLS": plain_tls}
    work = kinds.get(options.variant.split(",")[0], product)(options)
    sampler = Sampler(PARTS)
    if options.parts:
        sampler.start()
    if "uvloop" in options.variant:
        import uvloop

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            result = runner.run(work)
    else:
        result = asyncio.run(work)
    if options.parts:
        result["parts"] = sampler.shares()
    result["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps(result))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    for option in ("--role", "--variant", "--own", "--meet"):
        parser.add_argument(option, required=True)
    for option in ("--size", "--port"):
        parser.add_argument(option, type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--parts", action="store_true")
    role(parser.parse_args())


if __name__ == "__main__":
    main()
