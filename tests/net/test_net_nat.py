"""Sites behind NATs: the lab's NATs are what they claim to be, and real hospitals behind them link up."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nat_probe
import pytest
from coturn import Coturn
from hospitals import Hospital, all_up, approve, propose, until, verified, write_plan
from namespaces import run
from nat_lab import KINDS, SERVER_ADDRESSES, SERVERS, NatLab, why_not
from nat_pairs import Outcome, Pair, Pairing, pair

REASON = why_not(turn=True)
PROBE_TIME = 30.0  # seconds; coturn's own probe waits 6 for an answer that a NAT drops

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(REASON is not None, reason=REASON or ""),
    pytest.mark.timeout(180),
]

# RFC 4787: mapping (4.1), filtering (5)
BEHAVIOUR = {
    "none": ("endpoint independent", "endpoint independent"),
    "full-cone": ("endpoint independent", "endpoint independent"),
    "port-restricted": ("endpoint independent", "address and port dependent"),
    "symmetric": ("address and port dependent", "address and port dependent"),
}


@pytest.fixture(scope="module")
def lab() -> Iterator[NatLab]:
    with NatLab({kind: kind for kind in KINDS}) as lab:
        yield lab


@pytest.fixture(scope="module")
def turn(lab: NatLab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Coturn]:
    with Coturn(lab, tmp_path_factory.mktemp("turn")) as turn:
        yield turn


def carry_out(lab: NatLab, where: str, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*lab.inside(where), *command], capture_output=True, text=True, timeout=PROBE_TIME)


def probed(lab: NatLab, site: str) -> dict[str, Any]:
    """What tests/nat_probe.py sees from there."""
    command = [sys.executable, nat_probe.__file__]
    server = subprocess.Popen(
        [*lab.inside(SERVERS), *command, "serve", *SERVER_ADDRESSES], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with server:
        assert server.stdin is not None and server.stdout is not None
        assert server.stdout.readline() == b"ready\n"
        done = carry_out(lab, site, *command, "probe", *SERVER_ADDRESSES)
        server.stdin.close()
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def mapping(ports: dict[str, int]) -> str:
    if len(set(ports.values())) == 1:
        return "endpoint independent"
    return "address dependent" if ports["known"] == ports["other port"] else "address and port dependent"


def filtering(let_in: list[str]) -> str:
    names = {(): "address and port dependent", ("other port",): "address dependent"}
    return names.get(tuple(let_in), "endpoint independent")


# --- the lab


@pytest.mark.parametrize("kind", BEHAVIOUR)
def test_a_nat_maps_and_filters_as_its_name_says(lab: NatLab, kind: str) -> None:
    found = probed(lab, kind)
    assert (mapping(found["ports"]), filtering(found["let in"])) == BEHAVIOUR[kind]


def test_where_udp_is_blocked_tcp_goes_out(lab: NatLab, turn: Coturn) -> None:
    assert probed(lab, "udp-blocked") == {"ports": {}, "let in": []}
    connect = f"import socket; socket.create_connection(({turn.address!r}, 3478), 5).close()"
    assert carry_out(lab, "udp-blocked", sys.executable, "-c", connect).returncode == 0
    sent = lab.sent("udp-blocked")
    assert sent[turn.address, "udp"] > 0 and sent[turn.address, "tcp"] > 0


@pytest.mark.parametrize("kind", BEHAVIOUR)
def test_coturn_sees_the_same_mapping(lab: NatLab, turn: Coturn, kind: str) -> None:
    said = carry_out(lab, kind, "turnutils_natdiscovery", "-m", turn.address).stdout.lower()
    assert f"nat with {BEHAVIOUR[kind][0]} mapping!" in said
    assert f"udp reflexive addr: {lab.public_address(kind)}:" in said


@pytest.mark.slow
def test_coturn_sees_the_same_filtering(lab: NatLab, turn: Coturn) -> None:
    def discover(kind: str) -> str:
        return carry_out(lab, kind, "turnutils_natdiscovery", "-f", turn.address).stdout.lower()

    with ThreadPoolExecutor(len(BEHAVIOUR)) as pool:  # they only wait
        for kind, said in zip(BEHAVIOUR, pool.map(discover, BEHAVIOUR), strict=True):
            assert f"nat with {BEHAVIOUR[kind][1]} filtering!" in said, kind


def test_coturn_refuses_a_wrong_password(lab: NatLab, turn: Coturn) -> None:
    done = carry_out(lab, "symmetric", "turnutils_uclient", "-u", turn.username, "-w", "wrong", "-y", turn.address)
    assert done.returncode != 0 and "Cannot complete Allocation" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("transport", ["udp", "tcp", "tls"])
def test_coturn_relays(lab: NatLab, turn: Coturn, transport: str) -> None:
    how = {"udp": [], "tcp": ["-t"], "tls": ["-t", "-S", "-E", str(turn.certificate)]}[transport]
    user = ["-u", turn.username, "-w", turn.password]
    done = carry_out(lab, "symmetric", "turnutils_uclient", *how, *user, "-y", "-c", "-n", "1", turn.address)
    assert done.returncode == 0 and "Total lost packets 0 " in done.stdout


def test_nothing_of_a_lab_stays_behind(tmp_path: Path) -> None:
    lab, before = NatLab({"lille": "symmetric"}), run("ip", "link")
    turn = Coturn(lab, tmp_path)

    class Interrupted(Exception):
        pass

    with pytest.raises(Interrupted), lab, turn:
        sleeper = subprocess.Popen([*lab.inside("lille"), "sleep", "60"])
        assert lab.space("lille") in run("ip", "netns", "list")
        raise Interrupted
    assert sleeper.wait(5) < 0
    assert turn.stopped
    assert lab.space("") not in run("ip", "netns", "list")
    assert run("ip", "link") == before


# --- hospitals behind it


def check(outcome: Outcome, pairing: Pairing) -> None:
    assert (outcome.link, outcome.path, outcome.carried) == ("webrtc", pairing.expected, pairing.expected)
    assert outcome.introducer == "rouen"


def contains(hospital: Hospital, word: str) -> list[str]:
    """The hospital's files and output in which a word stands."""
    files = [hospital.log_file, *(path for path in hospital.home.rglob("*") if path.is_file())]
    return [path.name for path in files if word.encode() in path.read_bytes()]


@pytest.mark.slow
def test_two_port_restricted_nats_are_crossed_directly(tmp_path: Path) -> None:
    pairing = Pairing("port-restricted", "port-restricted")
    with pair(tmp_path, pairing) as hospitals:
        with hospitals.up() as outcome:
            check(outcome, pairing)
        seen = hospitals.lab.sent("caen")  # so every address that was offered is tried
    assert {(address, "udp") for address in addresses(hospitals)} <= seen.keys()
    both = (hospitals.first, hospitals.second)
    assert [site.entries("refused") for site in both] == [[], []]  # nobody is blamed for dialling at the same time


def test_two_symmetric_nats_are_crossed_through_turn(tmp_path: Path) -> None:
    pairing = Pairing("symmetric", "symmetric")
    with pair(tmp_path, pairing) as hospitals, hospitals.up() as outcome:
        check(outcome, pairing)


def addresses(hospitals: Pair) -> set[str]:
    """Where the first site's host can be reached, as it would say."""
    site = hospitals.first.name
    return {hospitals.lab.address(site), hospitals.lab.public_address(site)}


@pytest.mark.slow
def test_relay_only_tells_nobody_an_address(tmp_path: Path) -> None:
    pairing = Pairing("full-cone", "full-cone", relay_only=True)
    with pair(tmp_path, pairing) as hospitals:
        with hospitals.up() as outcome:
            check(outcome, pairing)
            shown = json.dumps(hospitals.second.status())
        lab, introducer = hospitals.lab, hospitals.introducer.name
        assert {address for address, _ in lab.sent("lille")} == {hospitals.turn.address, lab.address(introducer)}
        for address in addresses(hospitals):
            assert (address, "udp") not in lab.sent("caen")  # it would have tried what it was told
            assert address not in shown
            assert contains(hospitals.second, address) == []


REST = [
    "none:full-cone",
    "none:port-restricted",
    "none:symmetric",
    "full-cone:full-cone",
    "full-cone:port-restricted",
    "full-cone:symmetric",
    "port-restricted:symmetric",
    "symmetric:symmetric:relay-only",
    "symmetric:symmetric:tcp",
    "symmetric:symmetric:tls",
    "udp-blocked:udp-blocked:tcp",
]


@pytest.mark.slow
@pytest.mark.parametrize("text", REST)
def test_every_pair_of_nats_connects(tmp_path: Path, text: str) -> None:
    pairing = Pairing.parse(text)
    with pair(tmp_path, pairing) as hospitals, hospitals.up() as outcome:
        check(outcome, pairing)


@pytest.mark.slow
def test_a_turn_server_with_an_unknown_certificate_is_not_used(tmp_path: Path) -> None:
    pairing = Pairing("symmetric", "symmetric", turn="tls")
    with pair(tmp_path, pairing, trust_certificate=False) as hospitals:
        hospitals.patience = 30.0
        with pytest.raises(AssertionError, match=r"turns:.* gave no address"), hospitals.up():
            pass


@pytest.mark.slow
def test_a_plan_runs_through_turn(tmp_path: Path) -> None:
    pairing = Pairing("symmetric", "symmetric")
    with pair(tmp_path, pairing) as hospitals:
        hospitals.give_data()
        plan = write_plan(tmp_path / "plan", rounds=6)
        with hospitals.up() as outcome:
            check(outcome, pairing)
            run_id = propose(hospitals.first, plan)
            for hospital in (hospitals.second, hospitals.introducer):
                approve(hospital, run_id)
            for hospital in hospitals.hospitals:
                report = until(hospital.report, 60, hospital.last_words)
                assert report["finished"] and report["missing"] == []
        for hospital in hospitals.hospitals:
            verified(hospital)


@pytest.mark.slow
def test_blocks_that_people_carry_outlive_what_the_nats_remember(tmp_path: Path) -> None:
    """Both NATs filter by port and forget an unanswered flow after 2 s; the blocks take 7 s each way."""
    with pair(tmp_path, Pairing("port-restricted", "port-restricted")) as hospitals:
        one, two = hospitals.first, hospitals.second
        for site in (one.name, two.name):
            run(*hospitals.lab.inside(f"{site}-router"), "sysctl", "-qw", "net.netfilter.nf_conntrack_udp_timeout=2")
        with all_up([one, two]):  # the introducer is down
            offer, answer = tmp_path / "offer.txt", tmp_path / "answer.txt"
            offer.write_text(one.p2pfl("link", "offer", str(one.home), two.name))
            time.sleep(7.0)  # somebody walks: the scenario itself
            answer.write_text(two.p2pfl("link", "accept", str(two.home), str(offer)))
            time.sleep(7.0)
            value = json.loads(one.p2pfl("link", "accept", str(one.home), str(answer), "--json"))
            assert value["link"] == "webrtc"
            until(lambda: one.peer_id in {e.body["peer"] for e in two.entries("link_up")}, 20, hospitals.last_words)
            row = hospitals.member(one.ask("status"), two)
            assert (row["link"], row["path"], row["introducer"]) == ("webrtc", "direct", None)
