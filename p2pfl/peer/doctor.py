"""`p2pfl doctor`: collects the facts about one home's network, each with a limit in time.

What they mean is decided in :mod:`p2pfl.peer.findings`. Only servers that home.toml names are contacted from here;
partners are asked by the running peer, over its links.
"""

from __future__ import annotations

import asyncio
import errno
import importlib.util
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from p2pfl.crypto import certificate_expiry
from p2pfl.errors import ConfigError, LinkError, P2PFLError
from p2pfl.net import parse_address, usable_addresses
from p2pfl.net.interfaces import local_addresses
from p2pfl.net.probes import multicast_probe, stun_probe, turn_probe
from p2pfl.peer.control import ask
from p2pfl.peer.disk import disk_finding
from p2pfl.peer.findings import (
    BROKEN,
    LOOK,
    OK,
    Finding,
    address_findings,
    expiry_findings,
    firewall_letter,
    loop_finding,
    partner_findings,
    port_finding,
    probed,
)
from p2pfl.peer.home import Home, open_home
from p2pfl.peer.log_findings import keeping_findings, log_findings
from p2pfl.peer.own_record import known_records
from p2pfl.peer.transports import ice_settings

PEER_SECONDS = 15.0  # for the running peer, which gives each partner 8 s, all at one time
DOCTOR_SECONDS = 40.0  # for everything; each part ends long before

_BIND_FAULTS = {errno.EADDRINUSE: "taken", errno.EADDRNOTAVAIL: "no such address"}


async def examine(path: Path, say: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """All findings of a home, and the lines for its firewall team. ``say`` hears what is being done.

    Raises ConfigError for a folder that is no home, LinkError if it took more than `DOCTOR_SECONDS`.
    """
    home = open_home(path)
    say("asking the running peer, its partners, and the servers that home.toml names; up to 40 seconds")
    try:
        async with asyncio.timeout(DOCTOR_SECONDS):
            return await _examine(home)
    except TimeoutError:
        raise LinkError(f"not finished within {DOCTOR_SECONDS:.0f} s; is this machine overloaded?") from None


async def _examine(home: Home) -> dict[str, Any]:
    settings = home.settings
    (peer, problem), multicast, servers = await asyncio.gather(_running(home), _multicast(home), _servers(home))
    findings = [*_local(home), *keeping_findings(home)]
    installed = "uvloop" if importlib.util.find_spec("uvloop") else "asyncio"
    findings.append(loop_finding(peer["event_loop"] if peer else installed, running=peer is not None))
    bound = "taken" if peer is not None else await asyncio.to_thread(_try_port, settings.listen)
    silent = peer is None and home.socket.exists()
    findings += [port_finding(settings.listen, bound, peer, silent=silent), *multicast, *servers]
    if peer is None:
        findings.append(Finding("partner", LOOK, f"no clock and no port was tried with partners: {problem}"))
    else:
        findings += partner_findings(peer)
    partners, own = _members(home, findings)
    names = {row["peer"]: row["name"] for row in partners}
    findings += await asyncio.to_thread(_logs, home, names)
    findings.append(await asyncio.to_thread(disk_finding, home))
    letter = firewall_letter(settings, own, partners)
    return {"findings": [asdict(finding) for finding in findings], "firewall": letter}


def _local(home: Home) -> list[Finding]:
    """What is read off this machine and the home's files."""
    settings = home.settings
    chosen = settings.webrtc.interfaces
    try:
        used: Sequence[str] = usable_addresses(chosen) if settings.webrtc.enabled else ()
        found = address_findings(local_addresses(), used, settings)
    except ConfigError as error:
        found = [Finding("addresses", BROKEN, str(error))]
    try:
        own = home.member()
        shown = certificate_expiry(own.certificates[0])
    except P2PFLError as error:
        return [*found, Finding("record", BROKEN, str(error))]
    return [*found, *expiry_findings(own.expires, shown, int(time.time()))]


def _logs(home: Home, names: Mapping[str, str]) -> list[Finding]:
    try:
        return log_findings(home, names, int(time.time()))
    except P2PFLError as error:
        return [Finding("witnesses", BROKEN, str(error))]


def _members(home: Home, findings: list[Finding]) -> tuple[list[Mapping[str, Any]], list[str]]:
    """The other members' newest records and our own addresses, as known here; without a charter there are none."""
    try:
        rows = known_records(home.path)
        own = home.member()
    except P2PFLError as error:
        findings.append(Finding("charter", LOOK, f"the letter names no partners: {error}"))
        return [], []
    return [row for row in rows if row["peer"] != own.peer_id], list(own.addresses)


async def _running(home: Home) -> tuple[Mapping[str, Any] | None, str]:
    """What the running peer says; or None, and why nothing is known from it."""
    try:
        return await ask(home.path, "doctor", timeout=PEER_SECONDS), ""
    except P2PFLError as error:
        return None, str(error)


def _try_port(listen: str | None) -> str:
    """free, taken, no such address, or not allowed. Listens for a moment and takes nobody."""
    if listen is None or listen.startswith("/memory/"):
        return "free"
    at = parse_address(listen)
    with socket.socket(socket.AF_INET6 if at.kind == "ip6" else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the peer does: a port just left is free
        try:
            probe.bind((at.host, at.port))
            probe.listen(1)  # two sockets may be bound to one port, but only one may listen
        except OSError as error:
            return _BIND_FAULTS.get(error.errno or 0, "not allowed")
    return "free"


async def _multicast(home: Home) -> list[Finding]:
    interface = home.settings.discover
    if interface is None:
        return [Finding("multicast", OK, "not used: no discover in home.toml")]
    # partners are found by their recorded addresses as well
    return [probed("multicast", await multicast_probe(interface), LOOK)]


async def _servers(home: Home) -> list[Finding]:
    """STUN and TURN, as far as they are configured and used."""
    if not home.settings.webrtc.enabled:
        return []
    try:
        settings = await asyncio.to_thread(ice_settings, home)  # aiortc takes a while to import
    except P2PFLError as error:
        return [Finding("webrtc", BROKEN, str(error))]
    if settings.stun is None and settings.turn is None:
        text = "neither STUN nor TURN is configured; WebRTC links need them unless one of the two sites has no NAT"
        return [Finding("stun", LOOK if home.settings.listen is None else OK, text)]
    probes = []
    if settings.stun is not None:
        probes.append(("stun", stun_probe(settings.stun)))
    if settings.turn is not None:
        probes.append(("turn", turn_probe(settings.turn, settings.turn_username, settings.turn_password)))
    said = await asyncio.gather(*(probe for _, probe in probes))
    return [probed(check, probe) for (check, _), probe in zip(probes, said, strict=True)]
