"""`p2pfl address`: shows what is known, changes where a home listens, takes a record that came by hand."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import tomllib
from pathlib import Path

import pytest
from cli_worlds import do, snapshot

from p2pfl.cli.app import run as app_run
from p2pfl.governance import record_from_text
from p2pfl.net import MemoryNetwork
from p2pfl.peer import ControlServer, Peer, found_consortium, init_home, open_home

NEW = "/ip4/10.9.9.9/tcp/4200"
TOML = """# Lille's peer; ask the night shift before you change this
name = "lille"  # as in the charter
listen = "/ip4/127.0.0.1/tcp/4101" # port of the old firewall

[webrtc]
# the city's server
stun = "stun:stun.example.org:3478"
introduce = false
"""


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Homes lille and rouen with a charter, and sealed without one."""
    folder = tmp_path_factory.mktemp("address")
    listen = {folder / "lille": "/ip4/127.0.0.1/tcp/4101"}
    found_consortium({folder / name: None for name in ("lille", "rouen")}, "north", {"kind": "ring"}, listen=listen)
    (folder / "lille" / "home.toml").write_text(TOML)
    init_home(folder / "sealed", name="sealed", listen=None, passphrase="correct horse")
    (folder / "secret").write_text("correct horse\n")
    return folder


@pytest.fixture
def world(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the template to work in."""
    monkeypatch.delenv("P2PFL_PASSPHRASE", raising=False)
    folder = tmp_path / "world"
    shutil.copytree(template, folder)
    monkeypatch.chdir(folder)
    return folder


def test_a_new_address_keeps_the_other_settings(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = open_home(world / "lille")
    old = before.member()
    done = do(capsys, "address", "lille", "--listen", NEW)
    assert done.code == 0 and done.err == "" and NEW in done.out and "tcp/4101" in done.out
    after = open_home(world / "lille")
    assert after.settings == before.settings.model_copy(update={"listen": NEW})
    text = (world / "lille" / "home.toml").read_text()
    assert text == TOML.replace('listen = "/ip4/127.0.0.1/tcp/4101" # port of the old firewall', f'listen = "{NEW}"')
    new = after.member()
    assert new.addresses == (NEW,) and new.listens and new.certificates == old.certificates
    assert new.sequence > old.sequence and f"number {new.sequence}" in done.out
    assert (world / "lille" / "home.toml").stat().st_mode & 0o777 == 0o600

    again = do(capsys, "address", "lille", "--listen", NEW)
    assert "as before" in again.out and open_home(world / "lille").member() == new


@pytest.mark.parametrize(
    ("text", "line", "listen"),
    [
        (TOML, "--no-listen", None),
        ('name = "lille"\n', f"--listen {NEW}", NEW),
        ('listen = "/ip4/127.0.0.1/tcp/4101"\nname = "lille"\n', "--no-listen", None),
        ("listen = '''\n/ip4/127.0.0.1/tcp/4101'''\nname = 'lille'\n", f"--listen {NEW}", NEW),
        ('"listen" = "/ip4/127.0.0.1/tcp/4101"\nname = "lille"', f"--listen {NEW}", NEW),
        ('name = "lille"\nwebrtc = { stun = "stun:a.example:1" }\n', f"--listen {NEW}", NEW),
        ('name = "lille"\n[webrtc]\ninterfaces = [\n"eth0",\n]\n', "--listen /ip4/0.0.0.0/tcp/0", "/ip4/0.0.0.0/tcp/0"),
    ],
)
def test_every_spelling_of_the_file(
    world: Path, capsys: pytest.CaptureFixture[str], text: str, line: str, listen: str | None
) -> None:
    (world / "lille" / "home.toml").write_text(text)
    before = open_home(world / "lille").settings
    assert do(capsys, "address", "lille", *line.split()).code == 0
    after = open_home(world / "lille")
    assert after.settings == before.model_copy(update={"listen": listen})
    tomllib.loads((world / "lille" / "home.toml").read_text())
    assert after.member().listens == (listen is not None)
    assert after.member().addresses == ((NEW,) if listen == NEW else ())


def test_a_dry_run_changes_nothing(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = snapshot(world)
    done = do(capsys, "address", "lille", "--listen", NEW, "--dry-run", "--json")
    facts = json.loads(done.out)
    assert facts["changed"] and facts["addresses"] == [NEW] and "sequence" not in facts
    assert "nothing was changed" in do(capsys, "address", "sealed", "--listen", NEW, "--dry-run").out
    assert snapshot(world) == before


def test_a_sealed_key_and_a_record_by_hand(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = do(capsys, "address", "sealed", "--listen", NEW, "--passphrase-file", "secret", "--json")
    facts = json.loads(done.out)
    assert record_from_text(facts["record"]) == open_home(world / "sealed").record()

    record = json.loads(do(capsys, "address", "rouen", "--listen", NEW, "--json").out)["record"]
    (world / "rouen.record").write_text(record)
    shown = {row["name"]: row for row in json.loads(do(capsys, "address", "lille", "--json").out)}
    assert shown["rouen"]["addresses"] == [] and not shown["rouen"]["newer"]
    taken = json.loads(do(capsys, "address", "lille", "--take", "rouen.record", "--json").out)
    assert taken["name"] == "rouen" and taken["new"]
    assert not json.loads(do(capsys, "address", "lille", "--take", "rouen.record", "--json").out)["new"]
    shown = {row["name"]: row for row in json.loads(do(capsys, "address", "lille", "--json").out)}
    assert shown["rouen"]["addresses"] == [NEW] and shown["rouen"]["newer"]
    text = do(capsys, "address", "lille").out
    assert NEW in text and "newer than the charter's" in text and "from the charter" in text


def _damaged(world: Path) -> None:
    (world / "rouen.record").write_text((world / "rouen" / "member.record").read_text().replace("rouen", "Rouen", 1))


ERRORS = [
    ("address nowhere --no-listen", "no p2pfl home"),
    ("address lille --listen here", "not of the form"),
    ("address lille --listen /ip4/10.1.2.3/udp/7", "not of the form|tcp"),
    (f"address lille --listen {NEW} --no-listen", "only one of"),
    (f"address lille --listen {NEW} --take rouen.record", "only one of"),
    ("address lille --dry-run", "goes with a change"),
    ("address lille --take rouen.record", "says 'name: Rouen'"),
    ("address lille --take nowhere.record", "couldn't read nowhere.record"),
    ("address lille --take sealed/member.record", "whom the charter does not name"),
    ("address sealed --take rouen/member.record", "no charter accepted yet"),
    ("address sealed", "no charter accepted yet"),
    (f"address sealed --listen {NEW}", "sealed and there is no terminal"),
]


@pytest.mark.parametrize(("line", "pattern"), ERRORS)
def test_one_clear_sentence_and_nothing_changed(
    world: Path, capsys: pytest.CaptureFixture[str], line: str, pattern: str
) -> None:
    _damaged(world)
    before = snapshot(world)
    done = do(capsys, *line.split())
    assert re.search(pattern, done.sentence()), done.err
    assert done.out == "" and snapshot(world) == before


async def test_a_running_peer_is_told_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found_consortium({tmp_path / name: None for name in ("lille", "rouen")}, "north", {"kind": "ring"})
    async with Peer(tmp_path / "lille", network=MemoryNetwork()) as peer, ControlServer(peer):
        done = await asyncio.to_thread(do, capsys, "address", "lille", "--no-listen")
        assert done.code == 0 and "takes effect at its next start" in done.err
        assert peer.addresses == ["/memory/lille"]
        dry = await asyncio.to_thread(do, capsys, "address", "lille", "--listen", "/memory/lille", "--dry-run")
        assert dry.err == ""
    assert open_home(tmp_path / "lille").member().addresses == ()


@pytest.mark.parametrize(("options", "told"), [
    (["--listen", "/ip4/127.0.0.1/tcp/4101"], ["/ip4/127.0.0.1/tcp/4101"]),
    (["--listen", "/ip4/127.0.0.1/tcp/0"], []),
    (["--listen", "/ip4/0.0.0.0/tcp/4101"], ["/ip4/10.1.2.3/tcp/4101", "/ip4/10.9.9.9/tcp/4101"]),
    (["--listen", "/ip6/::/tcp/4101"], ["/ip6/fd00::7/tcp/4101"]),
    (
        ["--listen", "/ip4/0.0.0.0/tcp/4101", "--tell", "/dns4/p2p.example.org/tcp/443", "--tell", "/ip4/203.0.113.9/tcp/443"],
        ["/dns4/p2p.example.org/tcp/443", "/ip4/203.0.113.9/tcp/443"],
    ),
])  # fmt: skip
def test_what_partners_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], told: list[str]
) -> None:
    """Listening everywhere is no address; a forwarded port or a name is told instead of it."""
    monkeypatch.setattr("p2pfl.peer.home.usable_addresses", lambda chosen: ["10.1.2.3", "10.9.9.9", "fd00::7"])
    assert app_run(["init", str(tmp_path / "home"), "--name", "lille", "--bare", *options]) == 0
    assert list(open_home(tmp_path / "home").member().addresses) == told


@pytest.mark.parametrize(("options", "words"), [
    (["--no-listen", "--tell", "/ip4/203.0.113.9/tcp/443"], "tell needs listen"),
    (["--listen", "/ip4/10.1.2.3/tcp/4101", "--tell", "/ip4/203.0.113.9/tcp/0"], "tell has port 0"),
    (["--listen", "/ip4/10.1.2.3/tcp/4101", "--tell", "p2p.example.org:443"], "is not of the form"),
])  # fmt: skip
def test_what_cannot_be_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    assert app_run(["init", str(tmp_path / "home"), "--name", "lille", "--bare", *options]) == 1
    assert words in capsys.readouterr().err
    assert not (tmp_path / "home").exists()
