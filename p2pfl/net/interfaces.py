"""The addresses of this machine, and which of them may be told to partners.

Container bridges and VPNs lead nowhere for a partner and tell him about this house: they are left out unless the owner
names them. Kinds are read off the interfaces' names, as the tools that make them choose these.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ifaddr

from p2pfl.errors import ConfigError

_CONTAINER = re.compile(r"(docker|br-|veth|virbr|vnet|cni|flannel|cali|podman|lxc|lxd|kube|vmnet|vboxnet)")
_VPN = re.compile(r"(tun|tap|wg|ppp|tailscale|zt|utun|ipsec|nordlynx|proton|gpd)")


@dataclass(frozen=True, slots=True)
class LocalAddress:
    """One address of one interface. ``kind`` is lan, loopback, link-local, container or vpn."""

    interface: str
    address: str
    kind: str


def local_addresses() -> list[LocalAddress]:
    """All addresses of this machine, IPv4 before IPv6, in the system's order."""
    found = []
    for adapter in ifaddr.get_adapters():
        name = str(adapter.nice_name or adapter.name)
        for entry in adapter.ips:
            address = _text(entry.ip)
            found.append(LocalAddress(name, address, kind_of(name, address)))
    return sorted(found, key=lambda item: ":" in item.address)


def kind_of(interface: str, address: str) -> str:
    """What an address of an interface is good for."""
    number = ipaddress.ip_address(address)
    if number.is_loopback:
        return "loopback"
    if number.is_link_local:
        return "link-local"
    if _CONTAINER.match(interface):
        return "container"
    return "vpn" if _VPN.match(interface) else "lan"


def usable_addresses(chosen: Sequence[str] | None) -> list[str]:
    """Addresses that links may use: those of the local network, or of the ``chosen`` interfaces (names or addresses).

    Raises ConfigError for a chosen one that this machine does not have.
    """
    there = local_addresses()
    if chosen is None:
        return [item.address for item in there if item.kind == "lan"]
    found: list[str] = []
    for name in chosen:
        matching = [item.address for item in there if name in (item.interface, item.address)]
        if not matching:
            known = ", ".join(sorted({item.interface for item in there}))
            raise ConfigError(
                f"interfaces names {name!r}, which this machine does not have; its interfaces are: {known}"
            )
        found += [address for address in matching if address not in found]
    return found


def _text(address: Any) -> str:
    """ifaddr gives IPv6 addresses as (text, flow, scope)."""
    return str(address if isinstance(address, str) else address[0])
