"""One delta over webrtc and tcp beside raw aiortc, at 0, 20 and 100 ms of round trip; `link.py` prints the table."""

from __future__ import annotations

import argparse
import contextlib
import json
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import raw_aiortc
from delay import ADDRESSES, DelayedPath, why_not
from distance_sites import PARTS, TRANSFERS
from figures import table
from neighbours import Others
from sampling import OTHER

from p2pfl.peer import found_consortium

ROUND_TRIPS = (0.0, 0.02, 0.1)  # seconds
SIZES = {0.0: 44_000_000, 0.02: 22_000_000, 0.1: 11_000_000}  # bytes; two seconds or more each
VARIANTS = (
    "raw aiortc, asyncio",
    "webrtc, asyncio",
    "raw aiortc, uvloop",
    "webrtc, uvloop",
    "raw aiortc, uvloop, larger chunks",
    "plain TLS, uvloop",
    "tcp, uvloop",
)
TURNS = 3
LIMIT = 240.0  # seconds for one pair of processes
ENDING = 20.0  # seconds until the receiver has ended
DATA_CHUNK = 1160  # user bytes per packet, unless larger chunks are asked for
LOOPBACK = ("127.0.0.1", "127.0.0.1")
SITES = Path(__file__).with_name("distance_sites.py")
SAMPLED = ("raw aiortc, asyncio", "webrtc, asyncio", "webrtc, uvloop")


def pair(variant: str, size: int, folder: Path, port: int, path: DelayedPath | None, *options: str) -> Any:
    """The sender's figures of one pair of processes, with both ends' CPU time."""
    addresses = ADDRESSES if path else LOOPBACK
    folder = folder / str(port)
    folder.mkdir()
    homes = [folder / "sender", folder / "receiver"]
    listen = {homes[1]: f"/ip4/{addresses[1]}/tcp/{port}"} if variant.startswith("tcp") else {}
    found_consortium(dict.fromkeys(homes), "benchmark", {"kind": "full"}, listen=listen)
    processes = []
    try:
        for end, name in ((1, "receiver"), (0, "sender")):
            command = [
                *(path.inside(end) if path else ()), sys.executable, str(SITES), "--role", name, "--variant", variant,
                "--size", str(size), "--folder", str(folder), "--own", addresses[end], "--meet", addresses[1],
                "--port", str(port), *options,
            ]  # fmt: skip
            processes.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
            if name == "receiver":
                assert processes[0].stdout is not None
                if processes[0].stdout.readline() != "ready\n":
                    raise SystemExit(f"{variant}: the receiving process did not start")
        told, _ = processes[1].communicate(timeout=LIMIT)
        if processes[1].returncode:
            raise SystemExit(f"{variant}: the sending process failed")
        heard, _ = processes[0].communicate(timeout=ENDING)
        result = json.loads(told)
        packets = TRANSFERS * size / (raw_aiortc.LARGER_CHUNK if variant.endswith("larger chunks") else DATA_CHUNK)
        ends = (result, json.loads(heard))
        result["cpu_microseconds_per_packet"] = [end["cpu_seconds"] / packets * 1e6 for end in ends]
        if "--parts" in options:
            result["parts"] = [end["parts"] for end in ends]
        return result
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
        found["parts"] = _parts(folder, say)
        for round_trip in round_trips:
            if round_trip and reason:
                continue
            with contextlib.ExitStack() as stack:
                path = stack.enter_context(DelayedPath(round_trip)) if round_trip else None
                rows = _turns(round_trip, turns, folder, path, say)
            found["round_trips"][str(round_trip)] = rows
            found["carrying"][str(round_trip)] = path.busy if path else 0.0
    return found


def _parts(folder: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Variant -> the shares of the sender's and the receiver's CPU time by part, at 0 ms."""
    found = {}
    for variant in SAMPLED:
        say(f"sampled: {variant}")
        found[variant] = pair(variant, SIZES[0.0] // 2, folder, _free_port(), None, "--parts")["parts"]
    return found


def _turns(
    round_trip: float, turns: int, folder: Path, path: DelayedPath | None, say: Callable[[str], None]
) -> dict[str, Any]:
    rows: dict[str, Any] = {
        variant: {"megabytes_per_second": [], "first": [], "others": [], "cpu": []} for variant in VARIANTS
    }
    others = Others(path.process_id if path else None)
    for turn in range(turns):
        for variant in VARIANTS:
            say(f"{round_trip * 1e3:.0f} ms, turn {turn + 1} of {turns}: {variant}")
            told = others.quietest(lambda kind=variant: pair(kind, SIZES[round_trip], folder, _free_port(), path))
            row = rows[variant]
            row["megabytes_per_second"] += [SIZES[round_trip] / 1e6 / seconds for seconds in told["seconds"][1:]]
            row["first"].append(SIZES[round_trip] / 1e6 / told["seconds"][0])
            row["others"].append(told["others"])
            row["cpu"].append(told["cpu_microseconds_per_packet"])
            row["windows"] = told.get("windows", [])
            say(f"    {row['megabytes_per_second'][1 - TRANSFERS :]} MB/s, others {told['others']:.2f} of a core")
    return rows


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def text(found: dict[str, Any]) -> str:
    """Megabytes per second and the share of raw aiortc on the same loop; CPU time per packet; the congestion window."""
    head, rows, costs = ["what"], [], []
    for round_trip in found["round_trips"]:
        head += [f"{float(round_trip) * 1e3:.0f} ms MB/s", "of raw"]
    for variant in VARIANTS:
        row: list[Any] = [variant if variant.startswith(("raw", "plain")) else f"{variant}: signed, sealed, hashed"]
        cost: list[Any] = [variant]
        for figures in found["round_trips"].values():
            rate = median(figures[variant]["megabytes_per_second"])
            beside = next(name for name in VARIANTS if name.startswith("raw") and name.split(", ")[1] in variant)
            raw_rate = median(figures[beside]["megabytes_per_second"])
            row += [rate, "" if variant == beside else f"{rate / raw_rate:.0%}"]
            cost += [median(ends[end] for ends in figures[variant]["cpu"]) for end in (0, 1)]
            cost.append(_windows(figures[variant]["windows"]))
        rows.append(row)
        costs.append(cost)
    sizes = ", ".join(f"{SIZES[float(key)] / 1e6:.0f} MB at {float(key) * 1e3:.0f} ms" for key in found["round_trips"])
    cost_head = ["what", *["sender us", "receiver us", "window KiB"] * len(found["round_trips"])]
    samples = min(
        len(row["megabytes_per_second"]) for figures in found["round_trips"].values() for row in figures.values()
    )
    noise = max(load for figures in found["round_trips"].values() for row in figures.values() for load in row["others"])
    head_parts = ["part", *(f"{kind}, {end}" for kind in SAMPLED for end in ("sender", "receiver"))]
    sides = [side for kind in SAMPLED for side in found["parts"][kind]]
    parts = [[part, *(f"{side.get(part, 0.0):.0%}" for side in sides)] for part in [*PARTS, OTHER]]
    lines = [
        table(f"one delta between two processes ({sizes}), median of {samples}", head, rows),
        table(
            "CPU per 1,160 bytes (1,404 for larger chunks), and the congestion window's 10th and 90th percentile",
            cost_head,
            costs,
        ),
        table(
            "CPU time of the event loop's thread by part, at 0 ms",
            head_parts,
            parts,
        ),
        f"other work took at most {noise:.2f} of a core beside",
    ]
    if found["left_out"]:
        lines.append(f"without delayed paths: {found['left_out']}")
    else:
        shares = ", ".join(f"{float(rtt) * 1e3:.0f} ms {busy:.0%}" for rtt, busy in found["carrying"].items() if busy)
        lines.append(f"carrying the packets took of one core: {shares}")
    return "\n\n".join(lines)


def _windows(samples: Sequence[tuple[float, int]]) -> str:
    """From the second half, after the first climb."""
    found = sorted(window for _, window in samples[len(samples) // 2 :])
    return f"{found[len(found) // 10] >> 10} to {found[len(found) * 9 // 10] >> 10}" if found else ""


def main() -> None:
    """Command line of this table alone."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--turns", type=int, default=TURNS, help="pairs of processes for each figure")
    parser.add_argument(
        "--round-trips", type=float, nargs="+", default=ROUND_TRIPS, choices=ROUND_TRIPS, help="seconds"
    )
    options = parser.parse_args()
    found = measure(lambda words: print(words, file=sys.stderr, flush=True), options.turns, options.round_trips)
    print(json.dumps(found, indent=1) if options.json else text(found))


if __name__ == "__main__":
    main()
