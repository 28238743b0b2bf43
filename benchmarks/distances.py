"""One delta over webrtc and tcp beside raw aiortc, at 0, 20 and 100 ms of round trip; `link.py` prints the table."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import raw_aiortc
from delay import ADDRESSES, DelayedPath, why_not
from figures import table
from link_sites import Site, deltas

from p2pfl.crypto import Identity
from p2pfl.net import DEFAULT
from p2pfl.net.webrtc import IceSettings, WebRtcTransport
from p2pfl.peer import found_consortium
from p2pfl.types import PeerId

ROUND_TRIPS = (0.0, 0.02, 0.1)  # seconds
SIZES = {0.0: 44_000_000, 0.02: 22_000_000, 0.1: 11_000_000}  # bytes; two seconds or more each
VARIANTS = (
    "raw aiortc, asyncio",
    "webrtc, asyncio",
    "raw aiortc, uvloop",
    "webrtc, uvloop",
    "raw aiortc, uvloop, larger chunks",
    "tcp, uvloop",
)
TRANSFERS = 3  # in one pair of processes; the first one warms up and opens the window, and does not count
TURNS = 3
LIMIT = 240.0  # seconds for one pair of processes
LOOPBACK = ("127.0.0.1", "127.0.0.1")


# --- the two processes


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
        await asyncio.to_thread(sys.stdin.read)
        await site.host.stop()
        return {}
    result = await deltas(site, options.size, TRANSFERS)
    kinds = {info.kind for info in site.host.links.values()}
    assert kinds == {options.variant.split(",")[0]}, kinds
    await site.host.stop()
    return result


async def raw(options: argparse.Namespace) -> dict[str, Any]:
    """One of the two processes of raw aiortc."""
    listens = options.role == "receiver"
    place = (options.meet, options.port)
    larger = options.variant.endswith("larger chunks")
    association, channel = await raw_aiortc.open_channel(options.own, place, listens, larger)
    if listens:
        await raw_aiortc.receive(channel, TRANSFERS)
        return {}
    return await raw_aiortc.send(association, channel, options.size, TRANSFERS)


def role(options: argparse.Namespace) -> None:
    """What one of the two processes does; prints its figures."""
    work = raw(options) if options.variant.startswith("raw") else product(options)
    if "uvloop" in options.variant:
        import uvloop

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            result = runner.run(work)
    else:
        result = asyncio.run(work)
    result["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    result["cpu_seconds"] = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    print(json.dumps(result))


# --- who starts them


def pair(variant: str, size: int, folder: Path, port: int, inside: Callable[[int], tuple[str, ...]] | None) -> Any:
    """The sender's figures of one pair of processes."""
    addresses = LOOPBACK if inside is None else ADDRESSES
    folder = folder / str(port)
    folder.mkdir()
    homes = [folder / "sender", folder / "receiver"]
    listen = {homes[1]: f"/ip4/{addresses[1]}/tcp/{port}"} if variant.startswith("tcp") else {}
    found_consortium(dict.fromkeys(homes), "benchmark", {"kind": "full"}, listen=listen)
    processes = []
    try:
        for end, name in ((1, "receiver"), (0, "sender")):
            command = [
                *(inside(end) if inside else ()), sys.executable, __file__, "--role", name, "--variant", variant,
                "--size", str(size), "--folder", str(folder), "--own", addresses[end], "--meet", addresses[1],
                "--port", str(port),
            ]  # fmt: skip
            processes.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
            if name == "receiver":
                assert processes[0].stdout is not None
                if processes[0].stdout.readline() != "ready\n":
                    raise SystemExit(f"{variant}: the receiving process did not start")
        told, _ = processes[1].communicate(timeout=LIMIT)
        if processes[1].returncode:
            raise SystemExit(f"{variant}: the sending process failed")
        with contextlib.suppress(subprocess.TimeoutExpired):
            processes[0].communicate(timeout=10)
        return json.loads(told)
    finally:
        for process in processes:
            process.kill()
            process.wait()


def measure(
    say: Callable[[str], None], turns: int = TURNS, round_trips: Sequence[float] = ROUND_TRIPS
) -> dict[str, Any]:
    """All variants at all distances, taking turns."""
    reason = why_not()
    found: dict[str, Any] = {"left_out": reason, "round_trips": {}, "carrying": {}}
    with tempfile.TemporaryDirectory(prefix="p2pfl-distances-") as name:
        folder = Path(name)
        found_consortium(
            dict.fromkeys([folder / "sender", folder / "receiver"]), "benchmark", {"kind": "full"}, listen={}
        )
        for round_trip in round_trips:
            if round_trip and reason:
                continue
            with contextlib.ExitStack() as stack:
                path = stack.enter_context(DelayedPath(round_trip)) if round_trip else None
                rows = _turns(round_trip, turns, folder, path, say)
            found["round_trips"][str(round_trip)] = rows
            found["carrying"][str(round_trip)] = path.busy if path else 0.0
    return found


def _turns(
    round_trip: float, turns: int, folder: Path, path: DelayedPath | None, say: Callable[[str], None]
) -> dict[str, Any]:
    rows: dict[str, Any] = {variant: {"megabytes_per_second": [], "windows": []} for variant in VARIANTS}
    size, port = SIZES[round_trip], 47_000 + int(round_trip * 10_000)
    for turn in range(turns):
        for variant in VARIANTS:
            say(f"{round_trip * 1e3:.0f} ms, turn {turn + 1} of {turns}: {variant}")
            port += 1
            told = pair(variant, size, folder, port, path.inside if path else None)
            rows[variant]["megabytes_per_second"] += [size / 1e6 / seconds for seconds in told["seconds"][1:]]
            rows[variant]["windows"] = told.get("windows", [])
            rows[variant]["cpu_seconds"] = told["cpu_seconds"]
    return rows


def text(found: dict[str, Any]) -> str:
    """One table: megabytes per second, and the share of raw aiortc on the same loop."""
    head, rows = ["what"], []
    for round_trip in found["round_trips"]:
        head += [f"{float(round_trip) * 1e3:.0f} ms MB/s", "of raw"]
    for variant in VARIANTS:
        row: list[Any] = [variant if variant.startswith("raw") else f"{variant}: signed, sealed, hashed"]
        for figures in found["round_trips"].values():
            rate = median(figures[variant]["megabytes_per_second"])
            beside = next(name for name in VARIANTS if name.startswith("raw") and name.split(", ")[1] in variant)
            raw_rate = median(figures[beside]["megabytes_per_second"])
            row += [rate, "" if variant == beside else f"{rate / raw_rate:.0%}"]
        rows.append(row)
    lines = [table(f"one delta between two processes, median of {TURNS * (TRANSFERS - 1)} or fewer", head, rows)]
    if found["left_out"]:
        lines.append(f"without delayed paths: {found['left_out']}")
    else:
        shares = ", ".join(f"{float(rtt) * 1e3:.0f} ms {busy:.0%}" for rtt, busy in found["carrying"].items() if busy)
        lines.append(f"carrying the packets took of one core: {shares}")
    return "\n\n".join(lines)


def main() -> None:
    """Command line of the two processes, and of this table alone."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--turns", type=int, default=TURNS, help="pairs of processes for each figure")
    parser.add_argument(
        "--round-trips", type=float, nargs="+", default=ROUND_TRIPS, choices=ROUND_TRIPS, help="seconds"
    )
    for option in ("--role", "--variant", "--own", "--meet"):
        parser.add_argument(option, help=argparse.SUPPRESS)
    for option in ("--size", "--port"):
        parser.add_argument(option, type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role:
        role(options)
        return
    found = measure(lambda words: print(words, file=sys.stderr, flush=True), options.turns, options.round_trips)
    print(json.dumps(found, indent=1) if options.json else text(found))


if __name__ == "__main__":
    main()
