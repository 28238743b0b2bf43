"""A small internet for tests: sites behind NATs made by nftables, and a STUN and TURN server (coturn).

    site host -- router (NAT, packet filter) --+
    site host -- router (NAT, packet filter) --+-- bridge "internet" 198.51.100.0/24 -- servers (coturn)
    public host -------------------------------+

Everything lives in network namespaces of its own; the machine's network is never touched. The kinds of NAT, in the
terms of RFC 4787 (mapping, filtering), are asserted by tests/net/test_net_nat.py with two independent probes:

    none             no NAT: the host has a public address
    full-cone        endpoint-independent mapping, endpoint-independent filtering
    port-restricted  endpoint-independent mapping, address and port-dependent filtering
    symmetric        address and port-dependent mapping and filtering
    udp-blocked      port-restricted, but lets no UDP out: a firewall that allows TCP alone
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping

from namespaces import run

KINDS = ("none", "full-cone", "port-restricted", "symmetric", "udp-blocked")
INTERNET = "198.51.100"  # TEST-NET-2 of RFC 5737
NOWHERE = f"{INTERNET}.1"  # the default gateway: it drops what is for private addresses, as the internet does
SERVERS = "servers"
SERVER_ADDRESSES = (f"{INTERNET}.3", f"{INTERNET}.4")  # RFC 5780 needs two
_FIRST_SITE = 21
_counter = itertools.count()

# Unsolicited packets for the router itself are dropped before conntrack confirms them: a confirmed entry would take
# the very port that the host's own packet to that stranger needs, and the mapping would change.
_RULES = """
table ip lab {{
  set sent {{ type ipv4_addr . inet_proto; size 256; flags dynamic; counter; }}
  chain postrouting {{
    type nat hook postrouting priority srcnat;
    {nat}
  }}
  chain prerouting {{
    type nat hook prerouting priority dstnat;
    {inbound}
  }}
  chain account {{
    type filter hook forward priority -10;
    iifname "private" update @sent {{ ip daddr . ip protocol counter }}
  }}
  chain forward {{
    type filter hook forward priority filter; policy drop;
    {refused}
    ct state established,related accept
    iifname "private" accept
    ct status dnat accept
  }}
  chain input {{
    type filter hook input priority filter;
    iifname "public" ct state new drop
  }}
}}
"""
_MASQUERADE = 'oifname "public" masquerade'


def why_not(*, turn: bool = False) -> str | None:
    """Why there can be no lab here, or None. ``turn``: coturn is needed, too."""
    if os.geteuid() != 0:
        return "needs root to make network namespaces"
    wanted = {"ip": "iproute2", "nft": "nftables"} | ({"turnserver": "coturn"} if turn else {})
    missing = sorted(package for tool, package in wanted.items() if shutil.which(tool) is None)
    if missing:
        return f"needs {' and '.join(missing)} (make system)"
    try:
        with NatLab({"probe": "symmetric"}):
            return None
    except (RuntimeError, OSError, subprocess.TimeoutExpired) as error:
        return f"this kernel or container has no network namespaces with NAT: {error}"


class NatLab:
    """One host per site, behind the kind of NAT that ``sites`` names. A context manager; nothing stays behind."""

    def __init__(self, sites: Mapping[str, str]) -> None:
        unknown = sorted(set(sites.values()) - set(KINDS))
        if unknown:
            raise ValueError(f"unknown kind of NAT {', '.join(unknown)}; there are {', '.join(KINDS)}")
        self.sites = dict(sites)
        self._prefix = f"p2pfl-nat-{os.getpid():x}-{next(_counter)}"
        self._made: list[str] = []

    # --- what is where

    def space(self, name: str) -> str:
        """The namespace of a site's host, of ``NAME-router``, or of ``servers``."""
        return f"{self._prefix}-{name}"

    def inside(self, name: str) -> tuple[str, ...]:
        """What to write before a command that shall run there. The process id stays the command's."""
        return ("ip", "netns", "exec", self.space(name))

    def address(self, site: str) -> str:
        """The host's own address: private behind a NAT."""
        return self.public_address(site) if self.sites[site] == "none" else f"10.{self._number(site)}.0.2"

    def public_address(self, site: str) -> str:
        """The address under which the internet sees the site."""
        return f"{INTERNET}.{self._number(site)}"

    def sent(self, site: str) -> dict[tuple[str, str], int]:
        """Bytes that the host tried to send since the beginning, by destination and protocol; for sites behind a NAT.

        Counted by the router before it drops anything.
        """
        listed = run(*self.inside(f"{site}-router"), "nft", "-j", "list", "set", "ip", "lab", "sent")
        sets = [item["set"] for item in json.loads(listed)["nftables"] if "set" in item]
        entries = [entry["elem"] for entry in sets[0].get("elem", [])]
        return {tuple(entry["val"]["concat"]): entry["counter"]["bytes"] for entry in entries}

    def _number(self, site: str) -> int:
        return _FIRST_SITE + list(self.sites).index(site)

    # --- building

    def __enter__(self) -> NatLab:
        try:
            hub = self._add("hub")
            run("ip", "-n", hub, "link", "add", "internet", "type", "bridge")
            run("ip", "-n", hub, "address", "add", f"{NOWHERE}/24", "dev", "internet")
            run("ip", "-n", hub, "link", "set", "internet", "up")
            self._connect(SERVERS, "eth0", "to-servers", *SERVER_ADDRESSES)
            for site, kind in self.sites.items():
                if kind == "none":
                    self._connect(site, "eth0", f"to-{self._number(site)}", self.public_address(site))
                else:
                    self._site(site, kind)
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._remove()

    def _add(self, name: str, *, forwards: bool = False) -> str:
        space = self.space(name)
        run("ip", "netns", "add", space)
        self._made.append(space)
        run("ip", "-n", space, "link", "set", "lo", "up")
        # new namespaces inherit these from the machine
        settings = {
            "ipv4/ip_forward": int(forwards),
            "ipv4/conf/all/rp_filter": 0,
            "ipv4/conf/default/rp_filter": 0,
            "ipv6/conf/all/disable_ipv6": 1,
            "ipv6/conf/default/disable_ipv6": 1,
        }
        lines = [f"if [ -e /proc/sys/net/{key} ]; then echo {value} >/proc/sys/net/{key}; fi"
                 for key, value in settings.items()]  # fmt: skip
        run(*self.inside(name), "sh", "-e", "-c", "\n".join(lines))
        return space

    def _connect(self, name: str, device: str, port: str, *addresses: str, forwards: bool = False) -> str:
        """A namespace on the internet."""
        space, hub = self._add(name, forwards=forwards), self.space("hub")
        run("ip", "-n", hub, "link", "add", port, "type", "veth", "peer", "name", device, "netns", space)
        run("ip", "-n", hub, "link", "set", port, "master", "internet", "up")
        _configure(space, device, *(f"{address}/24" for address in addresses), gateway=NOWHERE)
        return space

    def _site(self, site: str, kind: str) -> None:
        number = self._number(site)
        public, host = self.public_address(site), self.address(site)
        router = self._connect(f"{site}-router", "public", f"to-{number}", public, forwards=True)
        space, gateway = self._add(site), f"10.{number}.0.1"
        run("ip", "-n", router, "link", "add", "private", "type", "veth", "peer", "name", "eth0", "netns", space)
        _configure(router, "private", f"{gateway}/24")
        _configure(space, "eth0", f"{host}/24", gateway=gateway)
        nat, inbound, refused = _MASQUERADE, "", ""
        if kind == "symmetric":
            nat = f"{_MASQUERADE} fully-random"
        elif kind == "full-cone":
            nat = f'oifname "public" snat to {public}'
            inbound = f'iifname "public" meta l4proto udp dnat to {host}'
        elif kind == "udp-blocked":
            refused = "meta l4proto udp drop"
        rules = _RULES.format(nat=nat, inbound=inbound, refused=refused)
        run(*self.inside(f"{site}-router"), "nft", rules)

    def _remove(self) -> None:
        for space in reversed(self._made):
            with contextlib.suppress(subprocess.TimeoutExpired):
                for pid in run("ip", "netns", "pids", space, check=False).split():  # only what a test started
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(pid), signal.SIGKILL)
                run("ip", "netns", "del", space, check=False)
        self._made.clear()


def _configure(space: str, device: str, *addresses: str, gateway: str | None = None) -> None:
    for address in addresses:
        run("ip", "-n", space, "address", "add", address, "dev", device)
    run("ip", "-n", space, "link", "set", device, "up")
    if gateway is not None:
        run("ip", "-n", space, "route", "add", "default", "via", gateway)
