"""What kind of NAT lies between here and a server (RFC 4787): run in two namespaces of the lab.

``serve A B`` answers on three sockets until its standard input ends: (A, PORT), (A, PORT + 1), (B, PORT).
``probe A B`` prints one JSON object: the own port as each of the three sees it, and who could send to a socket that
has spoken to (A, PORT) alone.
"""

from __future__ import annotations

import json
import select
import socket
import sys

PORT = 7000
PATIENCE = 2.0  # seconds until an answer counts as lost


def endpoints(first: str, second: str) -> dict[str, tuple[str, int]]:
    """The three, by what they are for a socket that has spoken to the first."""
    return {"known": (first, PORT), "other port": (first, PORT + 1), "other address": (second, PORT)}


def serve(first: str, second: str) -> None:
    """``where`` is answered with the sender's port; ``knock`` by all three, the known one last."""
    sockets = []
    for address in endpoints(first, second).values():
        opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        opened.bind(address)
        sockets.append(opened)
    print("ready", flush=True)
    while True:
        for ready in select.select([*sockets, sys.stdin], [], [])[0]:
            if ready is sys.stdin:
                return
            data, sender = ready.recvfrom(64)
            if data == b"where":
                ready.sendto(str(sender[1]).encode(), sender)
            elif data == b"knock":
                for stranger in reversed(sockets):
                    stranger.sendto(b"knock", sender)


def own_ports(first: str, second: str) -> dict[str, int]:
    """The port of one socket as seen by those of the three that answer."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(PATIENCE)
        found = {}
        for name, address in endpoints(first, second).items():
            client.sendto(b"where", address)
            try:
                found[name] = int(client.recvfrom(64)[0])
            except TimeoutError:
                break
    return found


def let_in(first: str, second: str) -> list[str]:
    """Whose packets reach a socket that has spoken to the first one alone."""
    places = endpoints(first, second)
    names = {address: name for name, address in places.items()}
    came: set[str] = set()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(PATIENCE)
        for _ in range(2):  # when the known one's second word is here, the strangers' first ones are, or never come
            client.sendto(b"knock", places["known"])
            while True:
                name = names[client.recvfrom(64)[1]]
                came.add(name)
                if name == "known":
                    break
    return sorted(came - {"known"})


if __name__ == "__main__":
    verb, *addresses = sys.argv[1:]
    if verb == "serve":
        serve(*addresses)
    else:
        ports = own_ports(*addresses)
        print(json.dumps({"ports": ports, "let in": let_in(*addresses) if ports else []}))
