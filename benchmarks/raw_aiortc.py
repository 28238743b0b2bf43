"""Raw aiortc between two processes: its ORTC objects as they are, one channel, back-pressure by ``bufferedAmount``."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

SIGNAL_LIMIT = 30.0  # seconds until the two have found each other
MESSAGE = 16_240  # bytes: 14 chunks of aiortc's 1,160, the product's size too
AHEAD = 256 << 10  # bytes given to aiortc ahead of its sending; more gained nothing
LOW = 64 << 10
SAMPLE = 0.05  # seconds between two looks at the congestion window
LARGER_CHUNK = 1404
"""User bytes per packet that fill 1,500: less 20 IPv4, 8 UDP, 37 DTLS 1.2 with AES-GCM, 12 SCTP, 16 DATA, in fours."""


async def exchange(address: str, port: int, listens: bool, own: Any) -> Any:
    """Swap one JSON value with the other process over a plain local connection."""
    if listens:
        met: asyncio.Future[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = (
            asyncio.get_running_loop().create_future()
        )
        server = await asyncio.start_server(lambda *ends: met.set_result(ends), address, port)
        print("ready", flush=True)
        reader, writer = await met
        server.close()
    else:
        reader, writer = await asyncio.open_connection(address, port)
    writer.write(json.dumps(own).encode() + b"\n")
    other = json.loads(await reader.readline())
    writer.close()
    return other


async def open_channel(own_address: str, meet: tuple[str, int], listens: bool, larger: bool) -> Any:
    """(association, channel), open, over this address alone."""
    import aioice.ice
    import aiortc
    import aiortc.rtcsctptransport as sctp

    if larger:
        sctp.USERDATA_MAX_LENGTH = LARGER_CHUNK
    aioice.ice.get_host_addresses = lambda use_ipv4, use_ipv6: [own_address]
    gatherer = aiortc.RTCIceGatherer(iceServers=[])
    ice = aiortc.RTCIceTransport(gatherer)
    ice._connection.ice_controlling = not listens
    dtls = aiortc.RTCDtlsTransport(ice, [aiortc.RTCCertificate.generateCertificate()])
    association = aiortc.RTCSctpTransport(dtls)
    parameters = aiortc.RTCDataChannelParameters(label="raw", negotiated=True, id=0)
    channel = aiortc.RTCDataChannel(association, parameters)
    opened = asyncio.Event()
    channel.on("open", opened.set)
    await gatherer.gather()
    credentials = gatherer.getLocalParameters()
    own = {
        "ice": [credentials.usernameFragment, credentials.password],
        "candidates": [vars(candidate) for candidate in gatherer.getLocalCandidates()],
        "fingerprints": [vars(item) for item in dtls.getLocalParameters().fingerprints],
    }
    async with asyncio.timeout(SIGNAL_LIMIT):
        other = await exchange(*meet, listens, own)
        for fields in other["candidates"]:
            await ice.addRemoteCandidate(aiortc.RTCIceCandidate(**fields))
        await ice.addRemoteCandidate(None)
        await ice.start(aiortc.RTCIceParameters(*other["ice"]))
        fingerprints = [aiortc.RTCDtlsFingerprint(**fields) for fields in other["fingerprints"]]
        await dtls.start(aiortc.RTCDtlsParameters(fingerprints=fingerprints))
        await association.start(aiortc.RTCSctpTransport.getCapabilities(), 5000)
        await opened.wait()
    return association, channel


class Watch:
    """An association's congestion window every 50 ms: (seconds, bytes). Watches nothing where there is none."""

    def __init__(self, association: Any) -> None:
        self._association = association
        self.windows: list[tuple[float, int]] = []
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Watch:
        if self._association is not None:
            self._task = asyncio.get_running_loop().create_task(self._look())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _look(self) -> None:
        started = time.perf_counter()
        while True:
            self.windows.append((round(time.perf_counter() - started, 3), self._association._cwnd))
            await asyncio.sleep(SAMPLE)


async def send(channel: Any, size: int, transfers: int) -> dict[str, Any]:
    """Seconds of each transfer, CPU seconds of all."""
    room, done = asyncio.Event(), asyncio.Queue[bytes]()
    channel.bufferedAmountLowThreshold = LOW
    channel.on("bufferedamountlow", room.set)
    channel.on("message", done.put_nowait)
    message, seconds = bytes(MESSAGE), []
    before = time.process_time()
    for _ in range(transfers):
        started = time.perf_counter()
        for _ in range(-(-size // MESSAGE)):
            channel.send(message)
            if channel.bufferedAmount > AHEAD:
                room.clear()
                await room.wait()
        channel.send(b"end")
        await done.get()
        seconds.append(time.perf_counter() - started)
    return {"seconds": seconds, "cpu_seconds": time.process_time() - before}


async def receive(channel: Any, transfers: int) -> None:
    """Count nothing, hold nothing: the ends alone are answered."""
    ends: asyncio.Queue[bytes] = asyncio.Queue()
    channel.on("message", lambda data: ends.put_nowait(data) if data == b"end" else None)
    for _ in range(transfers):
        await ends.get()
        channel.send(b"done")
    await asyncio.sleep(1.0)  # the last answer has left
