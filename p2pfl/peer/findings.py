"""What the facts about a home's network mean, in plain words: pure functions, for `p2pfl doctor`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from p2pfl.net import parse_address
from p2pfl.net.interfaces import LocalAddress
from p2pfl.net.probes import Probe, parse_server
from p2pfl.peer.home_settings import HomeSettings

OK, LOOK, BROKEN = "ok", "look", "broken"

SKEW_LOOK = 5.0  # seconds; the logs of two sites become hard to compare
SKEW_BROKEN = 300.0  # seconds; the SKEW of net/webrtc/offers.py, beyond which offers are refused (aiortc loads slowly)
RENEWAL_DAYS = 30  # a running peer renews record and certificate when fewer remain
_DAY = 24 * 3600


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report: ``verdict`` is ok, look or broken."""

    check: str
    verdict: str
    text: str


def probed(check: str, probe: Probe, bad: str = BROKEN) -> Finding:
    """A probe's words as a finding."""
    return Finding(check, OK if probe.ok else bad, probe.text)


def address_findings(there: Sequence[LocalAddress], used: Sequence[str], settings: HomeSettings) -> list[Finding]:
    """The addresses of this machine, and those that WebRTC links use and tell (``used``)."""
    seen = ", ".join(f"{item.address} ({item.interface}, {item.kind})" for item in there) or "none"
    found = [Finding("addresses", OK if there else BROKEN, f"this machine has {seen}")]
    if not settings.webrtc.enabled:
        return [*found, Finding("webrtc", OK, "off: enabled = false in [webrtc] of home.toml")]
    if settings.webrtc.relay_only:
        return [*found, Finding("webrtc", OK, "relay_only: no address of this machine is used or told")]
    if not used:
        text = "no address for WebRTC links; name an interface: interfaces = [...] in [webrtc] of home.toml"
        return [*found, Finding("webrtc", LOOK, text)]
    return [*found, Finding("webrtc", OK, f"links use and tell {', '.join(used)}")]


def expiry_findings(record_ends: int, certificate_ends: int, now: int) -> list[Finding]:
    """How long the own record and the certificate in use hold; all times in Unix seconds."""
    found = []
    for check, ends in (("record", record_ends), ("certificate", certificate_ends)):
        days = (ends - now) // _DAY
        if ends <= now:
            text, verdict = f"has expired {-days} days ago; start the peer (`p2pfl up`), which makes a new one", BROKEN
        elif days < RENEWAL_DAYS:
            text, verdict = f"holds for {days} days; a running peer renews it, partners must hear of it in time", LOOK
        else:
            text, verdict = f"holds for {days} days", OK
        found.append(Finding(check, verdict, f"our own {check} {text}"))
    return found


def loop_finding(loop: str, *, running: bool) -> Finding:
    """What the event loop means: ``loop`` is uvloop or asyncio."""
    whose = "the running peer uses" if running else "`p2pfl up` would use"
    if loop == "uvloop":
        return Finding("event loop", OK, f"{whose} uvloop, the fast one")
    text = f"{whose} asyncio's own loop, on which WebRTC links carry about half as much; `pip install uvloop`"
    return Finding("event loop", LOOK, text)


def port_finding(listen: str | None, bound: str, peer: Mapping[str, Any] | None, *, silent: bool) -> Finding:
    """The listening port as seen from here.

    ``bound`` is what an attempt to open it gave: free, taken, no such address, not allowed. ``peer`` has the running
    peer's facts; ``silent``: one runs but does not answer.
    """
    if listen is None:
        return Finding("port", OK, "this site has no port: it dials out, and is introduced to others without one")
    if peer is not None:
        at = [address for address in peer["addresses"] if not address.startswith("/webrtc")]
        if at:
            return Finding("port", OK, f"our running peer listens at {', '.join(at)}")
        return Finding("port", BROKEN, f"our running peer does not listen at {listen}; restart it to follow home.toml")
    if bound == "free":
        return Finding("port", OK, f"{listen} is free; `p2pfl up` opens it")
    if bound == "taken" and silent:
        return Finding("port", LOOK, f"{listen} is held, probably by our peer, which does not answer")
    words = {
        "taken": "is held by another program; stop that one, or choose another port with `p2pfl address`",
        "no such address": "names an address that this machine does not have; correct it with `p2pfl address`",
    }
    why = words.get(bound, "may not be opened by this user; choose a port above 1023 with `p2pfl address`")
    return Finding("port", BROKEN, f"{listen} {why}")


def partner_findings(peer: Mapping[str, Any]) -> list[Finding]:
    """What the linked partners said, and why the others are not linked."""
    found: list[Finding] = []
    for partner in peer["partners"]:
        found += _clock_finding(partner)
        found += [_reach_finding(partner["name"], address, word) for address, word in partner["reach"]]
        if partner["problem"]:
            found.append(Finding("partner", LOOK, f"{partner['name']} did not answer everything: {partner['problem']}"))
    for row in peer["unlinked"]:
        why = f"is not linked: {row['why']}" if row["why"] else "is no neighbour of ours; no link is wanted"
        found.append(Finding("partner", LOOK if row["why"] else OK, f"{row['name']} {why}"))
    if peer["discovery_problem"]:
        found.append(Finding("multicast", LOOK, f"at its start the running peer found: {peer['discovery_problem']}"))
    return found


def _clock_finding(partner: Mapping[str, Any]) -> Iterable[Finding]:
    offset, uncertainty = partner["offset"], partner["uncertainty"]
    if offset is None:
        return
    way = "ahead of" if offset > 0 else "behind"
    text = f"{partner['name']}'s clock is {abs(offset):.3f} s {way} ours, give or take {uncertainty:.3f} s"
    surely = abs(offset) - uncertainty
    if surely > SKEW_BROKEN:
        yield Finding("clock", BROKEN, f"{text}: offers for WebRTC links are refused; set both clocks by NTP")
    elif surely > SKEW_LOOK:
        yield Finding("clock", LOOK, f"{text}; set both clocks by NTP")
    else:
        yield Finding("clock", OK, text)


def _reach_finding(name: str, address: str, word: str) -> Finding:
    if word == "open":
        return Finding("reach", OK, f"{name} reaches our port at {address}")
    why = {
        "refused": "refused: it is forwarded to the wrong machine or port, or home.toml tells the wrong one (tell)",
        "no answer": "no answer: a firewall drops it on the way (see the lines below), or the address is wrong",
    }
    return Finding("reach", BROKEN, f"{name} tried our port at {address}: {why[word]}")


# --- the letter


def firewall_letter(
    settings: HomeSettings, own_addresses: Sequence[str], partners: Sequence[Mapping[str, Any]]
) -> list[str]:
    """What to ask the firewall team for. ``partners``: name, addresses and listens of the other members' records."""
    lines = _incoming(settings.listen, own_addresses, partners)
    for partner in partners:
        lines += [f"outgoing: TCP to {_endpoint(at)} ({partner['name']})" for at in partner["addresses"] if _is_tcp(at)]
        if partner["listens"] and not partner["addresses"]:
            lines.append(f"outgoing: TCP to {partner['name']}, whose address is found on the local network (multicast)")
    ice = settings.webrtc
    portless = [partner["name"] for partner in partners if not partner["listens"]]
    if ice.enabled and portless and not ice.relay_only:
        whom = ", ".join(portless)
        lines.append(f"outgoing: UDP to any port above 1023 (none is fixed), and the answers: WebRTC with {whom}")
    if ice.enabled:
        lines += [f"outgoing: {_server(uri)}" for uri in (ice.stun, ice.turn) if uri is not None]
    return lines


def _incoming(listen: str | None, own_addresses: Sequence[str], partners: Sequence[Mapping[str, Any]]) -> list[str]:
    if listen is None or not _is_tcp(listen):
        return ["nothing incoming is needed: this site dials out"]
    here = parse_address(listen)
    port = f"port {here.port}" if here.port else "the port that is chosen at each start (better: fix one in home.toml)"
    known = sorted({parse_address(at).host for partner in partners for at in partner["addresses"] if _is_tcp(at)})
    others = [partner["name"] for partner in partners if not partner["addresses"]]
    sources = [*known, *([f"the public addresses of {', '.join(others)} (ask them)"] if others else [])]
    lines = [f"incoming: TCP {port} of this machine ({here.host}), from {', '.join(sources) or 'the partners'}"]
    for address in own_addresses:
        told = parse_address(address) if _is_tcp(address) else None
        if told is not None and (told.host, told.port) != (here.host, here.port):
            lines.append(f"incoming: partners are told {told.host} port {told.port}; it must lead to the line above")
    return lines


def _is_tcp(address: str) -> bool:
    return address.startswith(("/ip4/", "/ip6/", "/dns4/"))


def _endpoint(address: str) -> str:
    at = parse_address(address)
    return f"{at.host} port {at.port}"


def _server(uri: str) -> str:
    at = parse_server(uri)
    tls = ", TLS" if at.scheme == "turns" else ""
    return f"{at.transport.upper()} to {at.host} port {at.port} ({at.scheme.removesuffix('s').upper()}{tls})"
