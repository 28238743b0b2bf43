"""Multiaddrs of TCP endpoints: ``/ip4|ip6|dns4/HOST/tcp/PORT[/p2p/PEER]`` (multiformats/multiaddr)."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from p2pfl.crypto.peer_ids import parse_peer_id
from p2pfl.errors import ConfigError

_EXAMPLE = "/ip4/10.1.2.3/tcp/4101"
_LONGEST = 400  # a DNS name has at most 253 characters, a peer id about 60
_DNS_LABEL = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)")


@dataclass(frozen=True, slots=True)
class Address:
    """One TCP endpoint. ``peer`` is the id behind ``/p2p/``, where the text has one."""

    kind: str  # "ip4", "ip6" or "dns4"
    host: str
    port: int
    peer: str | None = None

    def __str__(self) -> str:
        text = f"/{self.kind}/{self.host}/tcp/{self.port}"
        return f"{text}/p2p/{self.peer}" if self.peer else text


def parse_address(text: str) -> Address:
    """The endpoint a multiaddr names. Raises ConfigError in plain words."""
    shown = repr(text[:80])
    parts = text.split("/")
    if len(text) > _LONGEST or parts[0] != "" or len(parts) not in (5, 7) or parts[3] != "tcp":
        raise ConfigError(f"address {shown} is not of the form {_EXAMPLE}; write it like that")
    kind, host, port = parts[1], parts[2], parts[4]
    peer = None
    if len(parts) == 7:
        if parts[5] != "p2p":
            raise ConfigError(f"address {shown} has /{parts[5]}/ after the port; only /p2p/PEER may follow it")
        peer = parse_peer_id(parts[6])
    return Address(kind, _host(kind, host, shown), _port(port, shown), peer)


def _host(kind: str, host: str, shown: str) -> str:
    if kind == "dns4":
        labels = host.split(".")
        if len(host) > 253 or not all(_DNS_LABEL.fullmatch(label) for label in labels):
            raise ConfigError(f"address {shown}: {host!r} is not a host name; correct it or use /ip4/")
        return host
    if kind not in ("ip4", "ip6"):
        raise ConfigError(f"address {shown} begins with /{kind}/; use /ip4/, /ip6/ or /dns4/")
    try:
        number = ipaddress.IPv4Address(host) if kind == "ip4" else ipaddress.IPv6Address(host)
    except ValueError:
        raise ConfigError(f"address {shown}: {host!r} is not an {kind} address; correct it") from None
    return str(number)


def _port(port: str, shown: str) -> int:
    if not re.fullmatch(r"0|[1-9][0-9]{0,4}", port) or int(port) > 65535:
        raise ConfigError(f"address {shown}: {port!r} is not a port; use a number from 1 to 65535")
    return int(port)
