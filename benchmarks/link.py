"""One large delta between two processes over tcp, with signing, sealing and hashing, beside what it could be at best.

The sender hashes and seals the delta, writes the ciphertext to a synced file, signs core and cover, wraps the key and
announces; the receiver pulls the chunks over a link, opens them, checks root and digest and acknowledges; the sender
prunes the file. The clock runs at the sender, from the plaintext to the acknowledgement. Beside it, in the same
processes and taking turns with it: plain asyncio TLS with the same contexts. Before it: each part alone, best of five.

    bound = bytes / (t_TLS + t_seal + t_hash)

with the best time of each. It leaves out what the product must do too (open, store durably, hash at the other end).
Then the same delta over webrtc and tcp at 0, 20 and 100 ms of round trip, beside raw aiortc (:mod:`distances`).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import socket
import subprocess
import sys
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from statistics import median
from typing import Any

import distances
from figures import BEST_OF, best, machine, show, sync_rate, table
from link_sites import LINK_LIMIT, PROFILED, RUN, TRANSFER_LIMIT, receive, send
from profiling import OTHER, Profile

from p2pfl.crypto import Identity, open_all, open_envelope, seal, sha256, sign_envelope
from p2pfl.files import write_atomic
from p2pfl.gossip.messages import TO_ALL, Core, sealing_context
from p2pfl.peer import found_consortium
from p2pfl.types import Digest

SIZE = 44_000_000  # bytes: 11 million float32 parameters, a ResNet-18
SHOWN = 3  # largest costs in the table; all of them are in the JSON


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
        ports = (arguments.ports[0], arguments.ports[1])
        if arguments.role == "receiver":
            return await receive(arguments.folder, ports, profile)
        return await send(arguments.folder, ports, arguments.size, profile)

    result = run(arguments.loop, work())
    result["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
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
        loops[loop] = {
            "tls_seconds": sender["tls"],
            "tls_receiver_cpu_seconds": sender["tls_receiver_cpu"],
            "product_seconds": sender["product"],
            "bound_seconds": min(sender["tls"]) + alone["seal"] + alone["hash"],
            "left_over_files": sender["left_over"],
            "peak_bytes": [sender["peak_bytes"], receiver["peak_bytes"]],
        }
        loops[loop]["share_of_bound"] = loops[loop]["bound_seconds"] / min(sender["product"])
    costs: dict[str, float] = {}
    for side in pair(folder, arguments, "asyncio", profiled=True):
        for kind, seconds in side["costs"].items():
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
        tls, product, bound = row["tls_seconds"], row["product_seconds"], row["bound_seconds"]
        name = f"signed, sealed, hashed, {loop}"
        share = f"{row['share_of_bound']:.0%}"
        transfer += [
            [f"plain TLS, {loop}", min(tls) * 1e3, median(tls) * 1e3, size / min(tls), ""],
            [f"bound, {loop}: TLS + seal + hash", bound * 1e3, "", size / bound, "100%"],
            [name, min(product) * 1e3, median(product) * 1e3, size / min(product), share],
        ]
    alone = [
        [MEANINGS[name], value * 1e3, size / value if value > 1e-3 else ""]
        for name, value in result["alone_seconds"].items()
    ]
    whole = sum(result["costs_seconds"].values())
    named = [(name, value) for name, value in result["costs_seconds"].items() if name != OTHER]
    costs = [[name, value * 1e3, f"{value / whole:.0%}"] for name, value in named[:SHOWN]]
    facts = result["machine"]
    head = f"{size:.0f} MB between two processes over tcp, best of {BEST_OF}"
    return "\n\n".join(
        [
            table(head, ["what", "best ms", "median ms", "best MB/s", "of bound"], transfer),
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
    parser.add_argument("--tcp-only", action="store_true", help="leave out webrtc and the delayed paths (8 minutes)")
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
    text = tables(result)
    if not arguments.tcp_only:
        result["distances"] = distances.measure(lambda words: print(words, file=sys.stderr, flush=True))
        text += "\n\n" + distances.text(result["distances"])
    show(result, text, arguments.json)


def free_ports() -> list[int]:
    """Two ports nobody listens on now."""
    with socket.socket() as one, socket.socket() as other:
        for probe in (one, other):
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in (one, other)]


if __name__ == "__main__":
    main()
