"""`p2pfl doctor`: what facts mean, what partners answer over real links, and the command line."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

import p2pfl
from p2pfl.audit import read_entries
from p2pfl.cli.app import run
from p2pfl.crypto import pack
from p2pfl.errors import MalformedMessage, Refusal
from p2pfl.net import TcpTransport
from p2pfl.net.interfaces import LocalAddress
from p2pfl.net.probes import Probe
from p2pfl.net.webrtc.offers import SKEW
from p2pfl.peer import ControlServer, HomeSettings, WebRtcSettings, found_consortium, init_home
from p2pfl.peer.findings import (
    SKEW_BROKEN,
    Finding,
    address_findings,
    expiry_findings,
    firewall_letter,
    loop_finding,
    partner_findings,
    port_finding,
    probed,
)
from p2pfl.peer.partner_checks import ASKS, CLOCK, REACH, _read_reach
from p2pfl.types import PeerId

pytestmark = pytest.mark.timeout(120)

BOUND = 40.0  # seconds for each thing that is waited for
DAY = 24 * 3600
LISTEN = "/ip4/10.1.2.3/tcp/4101"
THERE = [LocalAddress("lo", "127.0.0.1", "loopback"), LocalAddress("eth0", "10.1.2.3", "lan")]


def settings(listen: str | None = None, **webrtc: Any) -> HomeSettings:
    return HomeSettings(name="lille", listen=listen, webrtc=WebRtcSettings(**webrtc))


def partner(**facts: Any) -> dict[str, Any]:
    return {"name": "caen", "offset": None, "uncertainty": 0.0, "reach": [], "problem": None, **facts}


def peer_facts(*partners: dict[str, Any], **facts: Any) -> dict[str, Any]:
    return {
        "event_loop": "uvloop", "addresses": [], "discovery_problem": None,
        "partners": list(partners), "unlinked": [], **facts,
    }  # fmt: skip


# --- facts -> findings

LISTENING = peer_facts(addresses=[LISTEN, "/webrtc/p2p/x"])
NOT_LISTENING = peer_facts(addresses=["/webrtc/p2p/x"])

CASES: list[tuple[str, Callable[[], list[Finding]], list[tuple[str, str, str]]]] = [
    (
        "addresses",
        lambda: address_findings(THERE, ["10.1.2.3"], settings()),
        [("addresses", "ok", "10.1.2.3 (eth0, lan)"), ("webrtc", "ok", "links use and tell 10.1.2.3")],
    ),
    (
        "no address",
        lambda: address_findings([], [], settings()),
        [("addresses", "broken", "has none"), ("webrtc", "look", "no address for WebRTC links; name an interface")],
    ),
    (
        "webrtc off",
        lambda: address_findings(THERE, [], settings(enabled=False)),
        [("addresses", "ok", ""), ("webrtc", "ok", "off: enabled = false")],
    ),
    (
        "relay only",
        lambda: address_findings(THERE, ["10.1.2.3"], settings(relay_only=True)),
        [("addresses", "ok", ""), ("webrtc", "ok", "no address of this machine is used or told")],
    ),
    (
        "expiry far off",
        lambda: expiry_findings(365 * DAY, 30 * DAY, 0),
        [("record", "ok", "holds for 365 days"), ("certificate", "ok", "holds for 30 days")],
    ),
    (
        "expiry near and past",
        lambda: expiry_findings(30 * DAY - 1, 0, 0),
        [
            ("record", "look", "holds for 29 days; a running peer renews it"),
            ("certificate", "broken", "start the peer"),
        ],
    ),
    ("uvloop", lambda: [loop_finding("uvloop", running=True)], [("event loop", "ok", "the running peer uses uvloop")]),
    (
        "asyncio",
        lambda: [loop_finding("asyncio", running=False)],
        [("event loop", "look", "`p2pfl up` would use asyncio's own loop, on which WebRTC links carry about half")],
    ),
    ("portless", lambda: [port_finding(None, "free", None, silent=False)], [("port", "ok", "has no port")]),
    ("free", lambda: [port_finding(LISTEN, "free", None, silent=False)], [("port", "ok", "is free; `p2pfl up`")]),
    (
        "taken",
        lambda: [port_finding(LISTEN, "taken", None, silent=False)],
        [("port", "broken", "is held by another program")],
    ),
    (
        "taken by a silent peer",
        lambda: [port_finding(LISTEN, "taken", None, silent=True)],
        [("port", "look", "probably by our peer")],
    ),
    (
        "wrong address",
        lambda: [port_finding(LISTEN, "no such address", None, silent=False)],
        [("port", "broken", "an address that this machine does not have")],
    ),
    (
        "low port",
        lambda: [port_finding(LISTEN, "not allowed", None, silent=False)],
        [("port", "broken", "choose a port above 1023")],
    ),
    (
        "own peer",
        lambda: [port_finding(LISTEN, "taken", LISTENING, silent=False)],
        [("port", "ok", f"our running peer listens at {LISTEN}")],
    ),
    (
        "own peer without",
        lambda: [port_finding(LISTEN, "free", NOT_LISTENING, silent=False)],
        [("port", "broken", "does not listen at")],
    ),
    ("probe", lambda: [probed("stun", Probe(False, "no answer"))], [("stun", "broken", "no answer")]),
    ("multicast", lambda: [probed("multicast", Probe(False, "deaf"), "look")], [("multicast", "look", "deaf")]),
    (
        "clock right",
        lambda: partner_findings(peer_facts(partner(offset=-0.02, uncertainty=0.001))),
        [("clock", "ok", "caen's clock is 0.020 s behind ours, give or take 0.001 s")],
    ),
    (
        "clock off",
        lambda: partner_findings(peer_facts(partner(offset=5.2, uncertainty=0.1))),
        [("clock", "look", "caen's clock is 5.200 s ahead of ours")],
    ),
    (
        "clock perhaps off",
        lambda: partner_findings(peer_facts(partner(offset=5.2, uncertainty=0.3))),
        [("clock", "ok", "")],
    ),
    (
        "clock broken",
        lambda: partner_findings(peer_facts(partner(offset=-300.2, uncertainty=0.1))),
        [("clock", "broken", "offers for WebRTC links are refused")],
    ),
    (
        "reach",
        lambda: partner_findings(
            peer_facts(partner(reach=[[LISTEN, "open"], [LISTEN, "refused"], [LISTEN, "no answer"]]))
        ),
        [
            ("reach", "ok", f"caen reaches our port at {LISTEN}"),
            ("reach", "broken", "refused: it is forwarded to the wrong machine"),
            ("reach", "broken", "no answer: a firewall drops it"),
        ],
    ),
    (
        "a partner's problem, and others",
        lambda: partner_findings(
            peer_facts(
                partner(problem="no answer within 8 s"),
                unlinked=[{"name": "metz", "why": "refused"}, {"name": "brest", "why": ""}],
                discovery_problem="no multicast",
            )
        ),
        [
            ("partner", "look", "caen did not answer everything: no answer within 8 s"),
            ("partner", "look", "metz is not linked: refused"),
            ("partner", "ok", "brest is no neighbour of ours"),
            ("multicast", "look", "no multicast"),
        ],
    ),
]


@pytest.mark.parametrize(("name", "work", "expected"), CASES, ids=[case[0] for case in CASES])
def test_what_facts_mean(name: str, work: Callable[[], list[Finding]], expected: list[tuple[str, str, str]]) -> None:
    found = work()
    assert [(item.check, item.verdict) for item in found] == [(check, verdict) for check, verdict, _ in expected]
    for item, (_, _, words) in zip(found, expected, strict=True):
        assert words in item.text


def test_the_skew_is_the_one_of_offers() -> None:
    assert SKEW_BROKEN == SKEW


# --- the letter

CAEN = {"name": "caen", "addresses": ["/dns4/p2pfl.caen.example/tcp/443"], "listens": True}
METZ = {"name": "metz", "addresses": [], "listens": True}  # found by multicast
BREST = {"name": "brest", "addresses": [], "listens": False}

NOTHING = "nothing incoming is needed: this site dials out"
TO_CAEN = "outgoing: TCP to p2pfl.caen.example port 443 (caen)"
UDP_TO_BREST = "outgoing: UDP to any port above 1023 (none is fixed), and the answers: WebRTC with brest"
FROM_CAEN = "incoming: TCP port 4101 of this machine (10.1.2.3), from p2pfl.caen.example"
FROM_BREST = (
    "incoming: TCP port 4101 of this machine (10.1.2.3), from p2pfl.caen.example, "
    "the public addresses of brest (ask them)"
)
SERVERS = {"stun": "stun:s.example", "turn": "turns:t.example", "turn_username": "u", "turn_password_file": "p"}
TO_SERVERS = ["outgoing: UDP to s.example port 3478 (STUN)", "outgoing: TCP to t.example port 5349 (TURN, TLS)"]


@pytest.mark.parametrize(
    ("listen", "webrtc", "own", "partners", "lines"),
    [
        (None, {}, [], [CAEN], [NOTHING, TO_CAEN]),
        (None, {}, [], [CAEN, BREST], [NOTHING, TO_CAEN, UDP_TO_BREST]),
        (None, {"enabled": False, **SERVERS}, [], [CAEN, BREST], [NOTHING, TO_CAEN]),
        (None, {"relay_only": True, **SERVERS}, [], [BREST], [NOTHING, *TO_SERVERS]),
        (LISTEN, SERVERS, [LISTEN], [CAEN], [FROM_CAEN, TO_CAEN, *TO_SERVERS]),
        (LISTEN, {}, [LISTEN], [CAEN, BREST], [FROM_BREST, TO_CAEN, UDP_TO_BREST]),
        (
            LISTEN, {}, ["/ip4/203.0.113.5/tcp/443"], [CAEN],
            [FROM_CAEN, "incoming: partners are told 203.0.113.5 port 443; it must lead to the line above", TO_CAEN],
        ),
        (
            "/ip4/0.0.0.0/tcp/0", {}, [], [METZ],
            [
                "incoming: TCP the port that is chosen at each start (better: fix one in home.toml) of this machine "
                "(0.0.0.0), from the public addresses of metz (ask them)",
                "outgoing: TCP to metz, whose address is found on the local network (multicast)",
            ],
        ),
    ],
)  # fmt: skip
def test_the_letter(
    listen: str | None, webrtc: dict[str, Any], own: list[str], partners: list[dict[str, Any]], lines: list[str]
) -> None:
    assert firewall_letter(settings(listen, **webrtc), own, partners) == lines


# --- partners over real links


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
async def peers(tmp_path: Path) -> AsyncIterator[dict[str, p2pfl.Peer]]:
    """Lille listens where it says; caen listens elsewhere than it tells, so that its port is dead from outside."""
    told = {name: f"/ip4/127.0.0.1/tcp/{free_port()}" for name in ("lille", "caen")}
    found_consortium(
        {tmp_path / name: None for name in told}, "north", {"kind": "ring"},
        listen={tmp_path / name: at for name, at in told.items()}, names=tuple(told),
    )  # fmt: skip
    home = tmp_path / "caen" / "home.toml"
    real = f"/ip4/127.0.0.1/tcp/{free_port()}"
    home.write_text(home.read_text().replace(f'"{told["caen"]}"', f'"{real}"\ntell = ["{told["caen"]}"]'))
    async with AsyncExitStack() as stack:
        running = {name: await stack.enter_async_context(p2pfl.Peer(tmp_path / name)) for name in told}
        async with asyncio.timeout(BOUND):
            while not all(peer.links() for peer in running.values()):
                await asyncio.sleep(0.01)
        yield running


async def asked(peers: dict[str, p2pfl.Peer], asker: str, other: str) -> dict[str, Any]:
    return await peers[asker].partner_checks.ask(peers[other].peer_id)


async def test_a_shifted_clock_is_measured(peers: dict[str, p2pfl.Peer]) -> None:
    peers["caen"].partner_checks.clock = lambda: time.time() + 400
    facts = await asked(peers, "lille", "caen")
    assert facts["problem"] is None
    assert abs(facts["offset"] - 400) <= facts["uncertainty"] + 0.001
    other = await asked(peers, "caen", "lille")
    assert abs(other["offset"] + 400) <= other["uncertainty"] + 0.001


async def test_a_port_is_tried_from_outside(peers: dict[str, p2pfl.Peer], tmp_path: Path) -> None:
    roster = {member.name: member for member in peers["lille"].roster.members}
    assert (await asked(peers, "lille", "caen"))["reach"] == [[roster["lille"].addresses[0], "open"]]
    assert (await asked(peers, "caen", "lille"))["reach"] == [[roster["caen"].addresses[0], "refused"]]
    transport = peers["lille"]._host._transports[0]
    assert isinstance(transport, TcpTransport)
    async with asyncio.timeout(BOUND):
        while transport._half_open:  # until the knock that said nothing is dealt with
            await asyncio.sleep(0.01)
    assert peers["lille"]._host.refused == 0
    kinds = [entry.kind for entry in read_entries(tmp_path / "lille" / "audit.db")]
    assert "refused" not in kinds  # a partner that only knocks is nobody's fault


async def test_only_so_many_ports_are_tried(peers: dict[str, p2pfl.Peer]) -> None:
    for _ in range(ASKS):
        assert (await asked(peers, "lille", "caen"))["problem"] is None
    facts = await asked(peers, "lille", "caen")
    assert "refused: only 6 questions about a port are answered in 10 minutes" in facts["problem"]
    assert facts["reach"] == [] and facts["offset"] is not None
    assert (await asked(peers, "caen", "lille"))["problem"] is None  # counted for each asker by itself


async def test_questions_name_nothing(peers: dict[str, p2pfl.Peer]) -> None:
    host = peers["lille"]._host
    for protocol in (CLOCK, REACH):
        with pytest.raises(Refusal, match="it has none"):
            await host.request(peers["caen"].peer_id, protocol, pack([f"/ip4/127.0.0.1/tcp/{free_port()}"]))


async def test_a_partner_that_does_not_answer(peers: dict[str, p2pfl.Peer], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2pfl.peer.partner_checks.PARTNER_SECONDS", 0.2)

    async def never(peer: PeerId, payload: bytes) -> bytes:
        return await asyncio.get_running_loop().create_future()

    peers["caen"]._host.handle(REACH, never)
    facts = await asked(peers, "lille", "caen")
    assert facts["offset"] is not None and facts["problem"]
    monkeypatch.setattr("p2pfl.peer.partner_checks.PARTNER_SECONDS", 8.0)

    async def strange(peer: PeerId, payload: bytes) -> bytes:
        return b"noon"

    peers["caen"]._host.handle(CLOCK, strange)
    assert "its time in 4 bytes" in (await asked(peers, "lille", "caen"))["problem"]


@pytest.mark.parametrize("value", [7, [7], [["a"]], [["a", 1]], [["a", "perhaps"]], [["a", "open"]] * 17])
def test_a_strange_answer_about_a_port(value: Any) -> None:
    with pytest.raises(MalformedMessage):
        _read_reach(PeerId("x"), pack(value))


# --- the command line


async def doctor(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """In a thread with an event loop of its own, as it would be in a process."""
    capsys.readouterr()
    code = await asyncio.to_thread(run, ["doctor", *arguments])
    said = capsys.readouterr()
    return code, said.out, said.err


async def test_a_running_home(peers: dict[str, p2pfl.Peer], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with ControlServer(peers["lille"]), ControlServer(peers["caen"]):
        code, out, _ = await doctor(capsys, str(tmp_path / "lille"), "--json")
        report = json.loads(out)
        assert code == 0 and report.keys() == {"findings", "firewall"}
        assert all(row.keys() == {"check", "verdict", "text"} for row in report["findings"])
        checks = {row["check"]: row for row in report["findings"]}
        assert checks["clock"]["verdict"] == checks["reach"]["verdict"] == checks["port"]["verdict"] == "ok"
        assert checks["event loop"]["text"].startswith("the running peer uses ")
        code, out, _ = await doctor(capsys, str(tmp_path / "caen"))
    assert code == 1
    assert "broken  reach       lille tried our port at /ip4/127.0.0.1/tcp/" in out
    assert "for the firewall team:\n  incoming: TCP port " in out
    assert "it must lead to the line above" in out


async def test_a_home_whose_peer_does_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    port = free_port()
    home = tmp_path / "lille"
    init_home(home, name="lille", listen=f"/ip4/127.0.0.1/tcp/{port}", passphrase=None)
    capsys.readouterr()
    code, out, _ = await doctor(capsys, str(home))
    assert code == 0
    assert f"/ip4/127.0.0.1/tcp/{port} is free; `p2pfl up` opens it" in out
    assert f"start it with `p2pfl up {home}`" in out and "the letter names no partners" in out
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        code, out, _ = await doctor(capsys, str(home), "--json")
    findings = {row["check"]: row for row in json.loads(out)["findings"]}
    assert code == 1 and findings["port"]["verdict"] == "broken"
    assert "held by another program" in findings["port"]["text"]


async def test_servers_that_are_not_there_and_the_password(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home, dead = tmp_path / "caen", free_port()
    init_home(home, name="caen", listen=None, passphrase=None)
    (home / "turn.password").touch(0o600)
    (home / "turn.password").write_text("swordfish\n")
    (home / "home.toml").write_text(
        f'name = "caen"\n[webrtc]\nstun = "stun:127.0.0.1:{dead}"\nturn = "turn:127.0.0.1:{dead}"\n'
        'turn_username = "caen"\nturn_password_file = "turn.password"\n'
    )
    for form in ((), ("--json",)):
        code, out, err = await doctor(capsys, str(home), *form)
        assert code == 1 and "swordfish" not in out + err
        assert out.count("refused: nothing listens") == 2
    assert json.loads(out)["firewall"][-1] == f"outgoing: UDP to 127.0.0.1 port {dead} (TURN)"
    (home / "turn.password").chmod(0o644)
    code, out, _ = await doctor(capsys, str(home))
    assert code == 1 and "can be read by other users" in out


async def test_no_home(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = await doctor(capsys, str(tmp_path))
    assert code == 1 and out == "" and "p2pfl: error: " in err and str(tmp_path) in err
    assert (await doctor(capsys))[0] == 2
    code, out, _ = await doctor(capsys, "--help")
    assert code == 0 and "Example: p2pfl doctor homes/lille" in out
