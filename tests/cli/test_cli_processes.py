"""Real processes: signals, second starts, pipes that close. Nothing may stay behind: no process, no folder, no socket."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_worlds import do

from p2pfl.cli import app

PATIENCE = 60.0  # seconds; two cores are shared, and torch takes long to import


def until(condition: Callable[[], Any], what: str) -> Any:
    """The first true value of a condition, looked at every 50 ms."""
    end = time.monotonic() + PATIENCE
    while not (value := condition()):
        assert time.monotonic() < end, f"not within {PATIENCE:.0f} s: {what}"
        time.sleep(0.05)
    return value


def running(pid: int) -> bool:
    """Whether a process runs; a zombie that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except (FileNotFoundError, ProcessLookupError):
        return False


def descendants(pid: int) -> set[int]:
    """All processes below a process."""
    found: set[int] = set()
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = {int(word) for word in task.read_text().split()}
        except (FileNotFoundError, ProcessLookupError):
            continue
        found |= children.union(*(descendants(child) for child in children))
    return found


def command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode().replace("\0", " ")
    except (FileNotFoundError, ProcessLookupError):
        return ""


class Process:
    """One `p2pfl` process with its output in files."""

    def __init__(self, folder: Path, *arguments: str, stdout: int | None = None, **environment: str) -> None:
        number = len(list(folder.glob("process-*")))
        self.out, self.err = folder / f"process-{number}.out", folder / f"process-{number}.err"
        with self.out.open("wb") as out, self.err.open("wb") as err:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", "p2pfl", *arguments],
                stdin=subprocess.DEVNULL, stdout=out if stdout is None else stdout, stderr=err,
                env={**os.environ, **environment}, cwd=folder, start_new_session=True,
            )  # fmt: skip

    @property
    def pid(self) -> int:
        return self.popen.pid

    def lines(self) -> list[dict[str, Any]]:
        """The JSON lines printed so far."""
        return [json.loads(line) for line in self.out.read_text().splitlines(keepends=True) if line.endswith("\n")]

    def topics(self) -> list[str]:
        return [line["topic"] for line in self.lines()]

    def wait(self) -> int:
        return self.popen.wait(PATIENCE)

    def end(self) -> None:
        for pid in (*descendants(self.pid), self.pid):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.popen.wait()


@pytest.fixture
def start(world: Path) -> Iterator[Callable[..., Process]]:
    """Start processes in the world; whatever still runs in the end is ended."""
    started: list[Process] = []

    def begin(*arguments: str, **options: Any) -> Process:
        started.append(Process(world, *arguments, **options))
        return started[-1]

    yield begin
    for process in started:
        process.end()


def started(process: Process) -> bool:
    assert process.popen.poll() is None, process.err.read_text()
    return "up" in process.topics()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda one: one.name)
def test_up_ends_clean(world: Path, start: Callable[..., Process], number: signal.Signals) -> None:
    peer = start("up", "lille", "--json")
    until(lambda: started(peer), "the peer is up")
    peer.popen.send_signal(number)
    assert peer.wait() == 0
    assert peer.topics()[-1] == "down" and peer.err.read_text() == ""
    assert not (world / "lille" / "control.sock").exists()


def test_up_ends_its_worker_and_a_second_up_is_refused(
    world: Path, start: Callable[..., Process], capsys: pytest.CaptureFixture[str]
) -> None:
    peer = start("up", "lille", "--json")
    until(lambda: started(peer), "the peer is up")
    assert "lille" in do(capsys, "status", "lille").out
    second = start("up", "lille")
    assert second.wait() == 1
    said = second.err.read_text()
    assert said.startswith("p2pfl: error: ") and said.count("\n") == 1 and ";" in said, said
    assert do(capsys, "status", "lille").code == 0  # and the first one goes on

    proposing = start("plan", "propose", "lille", "plan", "--wait", "--json")
    until(lambda: "proposal" in proposing.topics(), "the proposal is followed")
    assert proposing.topics()[0] == "proposed"
    proposing.popen.send_signal(signal.SIGINT)
    assert proposing.wait() == 130
    assert proposing.err.read_text() == "p2pfl: interrupted\n"
    assert json.loads(do(capsys, "plan", "list", "lille", "--json").out)[0]["state"] == "proposing"  # it goes on

    below = descendants(peer.pid)
    assert any("p2pfl.train.worker" in command(pid) for pid in below)
    peer.popen.send_signal(signal.SIGINT)
    assert peer.wait() == 0, peer.err.read_text()
    until(lambda: not any(running(pid) for pid in below), "the worker has ended")


@pytest.mark.slow
def test_a_killed_peer_leaves_no_worker_and_starts_again(
    world: Path, start: Callable[..., Process], capsys: pytest.CaptureFixture[str]
) -> None:
    peer = start("up", "lille", "--json")
    until(lambda: started(peer), "the peer is up")
    following = start("plan", "propose", "lille", "plan", "--wait", "--json")
    until(lambda: "proposal" in following.topics(), "the proposal is followed")
    below = descendants(peer.pid)
    assert below
    peer.popen.kill()
    assert following.wait() == 1
    assert "ended before the run was over; start it again" in following.err.read_text()
    until(lambda: not any(running(pid) for pid in below), "the worker has ended")
    assert "no peer is running on lille" in do(capsys, "status", "lille").sentence()
    again = start("up", "lille", "--json")  # over the socket and the lock that were left
    until(lambda: started(again), "the peer is up again")
    assert do(capsys, "audit", "verify", "lille").code == 0


def test_a_secret_is_in_no_process_list(world: Path, start: Callable[..., Process]) -> None:
    (world / "sealed" / "charter").write_text((world / "signed.charter").read_text())
    (world / "lille" / "home.toml").write_text('name = "lille"\nlisten = "/ip4/127.0.0.1/tcp/0"\n')
    peer = start("up", "lille", "--json", P2PFL_PASSPHRASE="correct horse battery")
    until(lambda: started(peer), "the peer is up")
    proposing = start("plan", "propose", "lille", "plan", "--json")
    assert proposing.wait() == 0, proposing.err.read_text()
    workers = [pid for pid in descendants(peer.pid) if "p2pfl.train.worker" in command(pid)]
    assert workers
    for pid in workers:  # the plan's code runs there, and could read its own environment
        assert b"correct horse" not in Path(f"/proc/{pid}/environ").read_bytes()
        assert "correct horse" not in command(pid)
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            target = os.readlink(descriptor)
            assert str(world / "lille") not in target, target


def test_discovery_on_an_interface_that_is_not_there(world: Path, start: Callable[..., Process]) -> None:
    """Discovery is a hint: the peer says what is wrong, and goes on with the charter's addresses."""
    (world / "lille" / "home.toml").write_text(
        'name = "lille"\nlisten = "/ip4/127.0.0.1/tcp/0"\ndiscover = "203.0.113.9"\n'
    )
    peer = start("up", "lille", "--json")
    until(lambda: "discovery" in peer.topics() or peer.popen.poll() is not None, "the peer says so")
    (problem,) = [line["problem"] for line in peer.lines() if line["topic"] == "discovery"]
    assert "203.0.113.9" in problem and ";" in problem
    peer.popen.send_signal(signal.SIGINT)
    assert peer.wait() == 0


def test_up_without_a_reader_ends_clean(world: Path, start: Callable[..., Process]) -> None:
    """`p2pfl up HOME | head -1`: the pipe closes, the peer ends, and nothing is left."""
    read, write = os.pipe()
    os.close(read)
    peer = start("up", "lille", stdout=write)
    os.close(write)
    assert peer.wait() == 1
    assert peer.err.read_text() == ""
    assert not (world / "lille" / "control.sock").exists()


def test_up_with_a_reader_that_pauses_goes_on(
    world: Path, start: Callable[..., Process], capsys: pytest.CaptureFixture[str]
) -> None:
    """A terminal stopped with Ctrl-S, or a pager: the pipe is full, the peer's loop must not wait for it."""
    read, write = os.pipe()
    try:
        os.set_blocking(write, False)
        try:
            while True:
                os.write(write, b"x" * 4096)
        except BlockingIOError:
            pass
        os.set_blocking(write, True)
        peer = start("up", "lille", stdout=write)
        os.close(write)
        until(lambda: (world / "lille" / "control.sock").exists(), "the peer is up")
        assert do(capsys, "status", "lille").code == 0
        assert do(capsys, "status", "lille").code == 0
        peer.popen.send_signal(signal.SIGTERM)
        assert peer.wait() == 0
    finally:
        os.close(read)


def test_interrupted_at_the_passphrase(world: Path) -> None:
    """Ctrl-C where a passphrase is asked for: nothing is made."""
    code = (
        "import sys, getpass\n"
        "from p2pfl.cli import output, app\n"
        "def asked(prompt): raise KeyboardInterrupt\n"
        "getpass.getpass = asked\n"
        "sys.stdin.isatty = lambda: True\n"
        "sys.exit(app.run(['init', 'new', '--name', 'a', '--no-listen']))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=world)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "p2pfl: interrupted\n")
    assert not (world / "new").exists()


# --- the demo


@pytest.mark.parametrize(
    ("moment", "times"), [("founding", 1), pytest.param("starting", 2, marks=pytest.mark.slow), ("training", 2)]
)
@pytest.mark.timeout(240)
def test_the_demo_is_interrupted(world: Path, start: Callable[..., Process], moment: str, times: int) -> None:
    """Ctrl-C, once or impatiently twice: exit code 130, no process and no folder stays behind."""
    temporary = world / "tmp"
    temporary.mkdir()
    demo = start("demo", "--json", "--rounds", "500", TMPDIR=str(temporary))
    arrived = {
        "founding": lambda: list(temporary.glob("p2pfl-demo-*")),
        "starting": lambda: len(descendants(demo.pid)) >= 4,
        "training": lambda: [pid for pid in descendants(demo.pid) if "p2pfl.train.worker" in command(pid)],
    }
    until(arrived[moment], moment)
    seen = descendants(demo.pid)
    for _ in range(times):
        demo.popen.send_signal(signal.SIGINT)
    assert demo.wait() == 130
    assert demo.err.read_text().splitlines()[-1] == "p2pfl: interrupted"
    assert "Traceback" not in demo.err.read_text() and demo.out.read_text() == ""
    until(lambda: not any(running(pid) for pid in seen), "all processes have ended")
    assert list(temporary.iterdir()) == []


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_the_demo_is_terminated(world: Path, start: Callable[..., Process]) -> None:
    """As by a closed terminal or a service manager; with --home the homes stay and their logs hold."""
    demo = start("demo", "--rounds", "500", "--home", "kept")
    until(lambda: [pid for pid in descendants(demo.pid) if "p2pfl.train.worker" in command(pid)], "training")
    seen = descendants(demo.pid)
    demo.popen.send_signal(signal.SIGTERM)
    assert demo.wait() == 130
    until(lambda: not any(running(pid) for pid in seen), "all processes have ended")
    for name in ("lille", "rouen", "caen", "amiens"):
        done = subprocess.run(
            [sys.executable, "-m", "p2pfl", "audit", "verify", f"kept/{name}"],
            capture_output=True,
            cwd=world,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr


def test_a_second_interrupt_while_the_first_one_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The exit code is that of an interrupt, and a third one no longer changes it."""

    def run(arguments: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("p2pfl.cli.app.run", run)
    before = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(SystemExit) as ended:
            app.main()
        assert ended.value.code == 130
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
