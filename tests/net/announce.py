"""Announces a port until its standard input ends: network tag, interface address and port are its arguments."""

from __future__ import annotations

import asyncio
import sys

from p2pfl.net.discovery import Discovery


async def main(tag: str, address: str, port: str) -> None:
    discovery = Discovery(tag, address, int(port), print)
    await discovery.start()
    print("announced", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await discovery.stop()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
