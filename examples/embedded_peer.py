"""Peers inside an own program: make a small consortium, propose, follow the events, take the result.

    python examples/embedded_peer.py

Two sites talk over tcp on this machine. In real life each site makes its home with `p2pfl init` on its own machine
and the charter travels by mail; `found_consortium` does all of it for homes that lie side by side.
"""

from __future__ import annotations

import asyncio
import socket
import tempfile
import time
from pathlib import Path

from patients import write_patients

import p2pfl
from p2pfl.peer import found_consortium, open_home

PLAN = Path(__file__).parent / "own_plan"


async def main() -> None:
    """Lille proposes, Rouen approves; both train and keep the result."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        homes = [folder / "lille", folder / "rouen"]
        listen = {homes[0]: f"/ip4/127.0.0.1/tcp/{free_port()}"}  # one open port is enough for a pair
        found_consortium(dict.fromkeys(homes), "example", {"kind": "ring"}, listen=listen)
        for number, home in enumerate(homes):
            file = write_patients(folder / f"{home.name}.csv", 80, seed=number)
            open_home(home).registry.add("readmission", file, now=int(time.time()))

        async with p2pfl.Peer(homes[0]) as lille, p2pfl.Peer(homes[1]) as rouen:
            async with asyncio.timeout(30):
                while not lille.links():
                    await lille.changed()
            print(f"lille is linked to {lille.links()}")
            run = await lille.propose(PLAN, rounds=6, seed=1)
            await answer(rouen)
            async for event in run.events():
                if event.topic == "mixed":
                    print(f"round {event.facts['round']}: loss {event.facts['loss']:.3f}")
            report = run.report()
            print(f"contributed: {', '.join(item['name'] for item in report['participants'])}")
            print(f"missing: {report['missing'] or 'nobody'}")
            print(f"at home: {report['at_home']}")
            (folder / "model.safetensors").write_bytes(await run.model_file())
            await rouen.run(run.id).finished()

        for home in homes:
            check = p2pfl.verify_log(home / "audit.db")
            print(f"log of {home.name}: {check.entries} entries, {'verified' if check.ok else check.problem}")


async def answer(peer: p2pfl.Peer) -> None:
    """Read the next proposal and approve it: from now on this site trains."""
    proposal = await peer.next_proposal()
    print(f"{peer.name} was asked to run {proposal.plan.settings.plan.name}:")
    print(f"  {len(proposal.plan.source.splitlines())} lines of code to read, hash {proposal.plan.digest[:12]}")
    await peer.join(proposal.id)


def free_port() -> int:
    """A port nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    asyncio.run(main())
