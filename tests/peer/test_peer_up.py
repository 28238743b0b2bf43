"""`p2pfl up` where it cannot run: one clear sentence, exit code 1, no traceback, and the home as it was."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from hospitals import Hospital, all_up, free_port

from p2pfl.cli.app import run
from p2pfl.peer import found_consortium, init_home

NAMES = ("lille", "caen")


@pytest.fixture
def homes(tmp_path: Path) -> tuple[Path, Path]:
    """Lille listens on the loopback interface, Caen has no port."""
    lille, caen = (tmp_path / name for name in NAMES)
    listen = {lille: f"/ip4/127.0.0.1/tcp/{free_port()}"}
    found_consortium({lille: None, caen: None}, "north", {"kind": "ring"}, listen=listen)
    return lille, caen


def refused(capsys: pytest.CaptureFixture[str], home: Path) -> str:
    """The one sentence that `p2pfl up` prints."""
    assert run(["up", str(home)]) == 1
    printed = capsys.readouterr()
    lines = printed.err.strip().splitlines()
    assert printed.out == "" and len(lines) == 1, printed
    assert lines[0].startswith("p2pfl: error: ") and "internal" not in lines[0]
    return lines[0]


def test_a_second_up_on_a_running_home(tmp_path: Path, homes: tuple[Path, Path]) -> None:
    caen = Hospital(tmp_path, "caen", None)
    with all_up([caen]):
        second = caen.attempt("up", str(homes[1]))
        assert second.returncode == 1 and second.stdout == ""
        assert second.stderr.count("\n") == 1
        assert "stop the other peer of this home first" in second.stderr
        status = caen.status()  # the first one goes on, with its socket
        assert status is not None and status["name"] == "caen"
    assert caen.process is not None and caen.process.returncode == 0
    assert len(caen.entries("peer_started")) == 1
    assert not (homes[1] / "control.sock").exists()


def test_a_port_in_use(capsys: pytest.CaptureFixture[str], homes: tuple[Path, Path]) -> None:
    record = (homes[0] / "home.toml").read_text()
    port = int(record.split("/tcp/")[1].split('"')[0])
    with socket.create_server(("127.0.0.1", port)):
        said = refused(capsys, homes[0])
        assert f"/tcp/{port}" in said and "choose another port" in said
    assert not (homes[0] / "control.sock").exists()


def test_no_charter(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    init_home(tmp_path / "alone", name="alone", listen=None, passphrase=None)
    assert "p2pfl charter accept" in refused(capsys, tmp_path / "alone")


def test_a_charter_of_others(capsys: pytest.CaptureFixture[str], tmp_path: Path, homes: tuple[Path, Path]) -> None:
    init_home(tmp_path / "alone", name="alone", listen=None, passphrase=None)
    shutil.copyfile(homes[0] / "charter", tmp_path / "alone" / "charter")
    assert "does not name this peer" in refused(capsys, tmp_path / "alone")


def _remove(name: str) -> Callable[[Path], object]:
    return lambda home: (home / name).unlink()


def _garble(name: str) -> Callable[[Path], object]:
    return lambda home: (home / name).write_bytes(b"\xff\xfe no such thing \x00")


def _folder(name: str) -> Callable[[Path], object]:
    def replace(home: Path) -> None:
        (home / name).unlink(missing_ok=True)
        (home / name).mkdir()

    return replace


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda home: shutil.rmtree(home), "no p2pfl home"),
        (_remove("home.toml"), "no p2pfl home"),
        (_garble("home.toml"), "home.toml"),
        (_folder("home.toml"), "home.toml"),
        (lambda home: (home / "home.toml").write_text('name = "x"\nlisten = "nowhere"\n'), "nowhere"),
        (lambda home: (home / "home.toml").write_text('name = "x"\ncolour = 1\n'), "colour"),
        (_remove("identity.key"), "identity.key"),
        (_garble("identity.key"), "identity.key"),
        (lambda home: (home / "identity.key").chmod(0o644), "chmod"),
        (_remove("member.record"), "member.record"),
        (_garble("member.record"), "member.record"),
        (_remove("tls.key"), "tls.key"),
        (_garble("tls.key"), "tls.key"),
        (_garble("charter"), "charter"),
        (_garble("audit.db"), "audit.db"),
        (_folder("audit.db"), "audit.db"),
        (_folder("control.sock"), "control.sock"),
        (lambda home: (home / "outbox").write_text("no folder"), "outbox"),
        (lambda home: (home / "runs").write_text("no folder"), "runs"),
    ],
)  # fmt: skip
def test_a_broken_home(
    capsys: pytest.CaptureFixture[str], homes: tuple[Path, Path], break_it: Callable[[Path], object], said: str
) -> None:
    break_it(homes[1])
    assert said in refused(capsys, homes[1])
