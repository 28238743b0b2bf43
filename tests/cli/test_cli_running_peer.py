"""The verbs that speak to a running peer, its control socket, and who may read what lies in a home."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import stat
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from cli_worlds import DATA, PLAN_PY, PLAN_TOML, Done, do

from p2pfl.errors import ConfigError, LinkError
from p2pfl.governance import read_plan
from p2pfl.net import MemoryNetwork
from p2pfl.peer import ControlServer, Peer, ask, follow, found_consortium, init_home, open_home
from p2pfl.peer.control import CONNECTIONS, REQUEST_LIMIT


@pytest.fixture
async def peers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[list[Peer]]:
    """Lille and Rouen, linked in memory, with control sockets; the plan and the data lie beside their homes."""
    monkeypatch.chdir(tmp_path)
    names = ("lille", "rouen")
    found_consortium({tmp_path / name: None for name in names}, "north", {"kind": "ring"})
    (tmp_path / "toy.csv").write_text(DATA)
    (tmp_path / "plan").mkdir()
    (tmp_path / "plan" / "plan.py").write_text(PLAN_PY)
    (tmp_path / "plan" / "plan.toml").write_text(PLAN_TOML)
    network = MemoryNetwork()
    async with AsyncExitStack() as stack:
        running = []
        for name in names:
            open_home(tmp_path / name).registry.add("toy", tmp_path / "toy.csv", now=int(time.time()))
            peer = await stack.enter_async_context(Peer(tmp_path / name, network=network))
            await stack.enter_async_context(ControlServer(peer))
            running.append(peer)
        await until(lambda: all(peer.links() for peer in running))
        yield running


async def until(condition: Callable[[], Any], seconds: float = 60.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.02)


async def cli(capsys: pytest.CaptureFixture[str], *arguments: object) -> Done:
    """The verb runs in a thread with an event loop of its own, as it would in a process."""
    return await asyncio.to_thread(do, capsys, *arguments)


async def test_from_proposal_to_result(peers: list[Peer], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The whole way, with everything that can be asked wrongly at each of its stations."""
    for line, pattern in (
        ("plan show lille ffff", "no single run is called 'ffff'; known runs: none"),
        ("plan propose lille nowhere", "nowhere is not a folder"),
        ("plan propose lille plan --topology moon", "moon.*ring"),
        ("plan propose lille plan --topology hierarchical", "clusters"),
        ("plan propose lille plan --patience nan", "patience"),
        ("plan propose lille plan --patience -1", "patience"),
        ("result lille -o m", "no run is known"),
    ):
        assert re.search(pattern, (await cli(capsys, *line.split())).sentence()), line
        assert not (tmp_path / "m").exists()
    assert not list((tmp_path / "lille").glob("runs/*")) and not peers[0].runs

    proposed = await cli(capsys, "plan", "propose", "lille", "plan", "--json")
    run = json.loads(proposed.out)["run"]
    await until(lambda: run in peers[1].runs)
    plan = read_plan(tmp_path / "plan").digest

    listed = await cli(capsys, "plan", "list", "rouen")
    assert run[:12] in listed.out and "toy" in listed.out and "lille" in listed.out
    shown = await cli(capsys, "plan", "show", "rouen", run[:8])
    assert "def loss(model, batch):" in shown.out and plan in shown.out
    for line, pattern in (
        (f"plan approve lille {run[:8]} --yes", "already approved here"),
        (f"plan approve rouen {run[:8]}", "no terminal to ask.*--yes"),
        (f"plan approve rouen {run[:8]} --yes --plan ffff", "carries the plan"),
        (f"plan approve rouen {run[:8]} --yes --plan=", "carries the plan"),
        ("plan approve rouen ffff --yes", "no single run"),
        ("result rouen -o m", "not over yet"),
    ):
        assert re.search(pattern, (await cli(capsys, *line.split())).sentence()), line
    assert peers[1].runs[run].status()["approvals"] == [peers[0].peer_id]

    approved = await cli(capsys, "plan", "approve", "rouen", run[:8], "--yes", "--plan", plan[:9], "--json")
    assert approved.code == 0 and json.loads(approved.out) == {"run": run, "plan": plan}
    followed = await cli(capsys, "plan", "follow", "rouen", run[:8], "--json")
    events = [json.loads(line) for line in followed.out.splitlines()]
    assert followed.code == 0 and followed.err == "" and events[-1]["topic"] == "over"
    await asyncio.gather(*(peer.runs[run].finished() for peer in peers))

    done = await cli(capsys, "result", "lille", "-o", "m", "--run", run[:6], "--json")
    assert done.code == 0 and json.loads(done.out)["rounds_done"] == 4 and (tmp_path / "m").stat().st_size > 0
    assert (await cli(capsys, "result", "lille", "-o", "no/m")).sentence().startswith("p2pfl: error: couldn't write")
    assert "No space left" in (await cli(capsys, "result", "lille", "-o", "/dev/full")).sentence()
    again = await cli(capsys, "plan", "approve", "rouen", run, "--yes")
    assert "only an open proposal" in again.sentence()
    for verb in ("status lille", "plan list lille", "audit show lille", "audit verify lille"):
        value = await cli(capsys, *verb.split(), "--json")
        assert value.code == 0 and json.loads(value.out) and value.err == ""
        assert (await cli(capsys, *verb.split())).code == 0
    assert_private(tmp_path / "lille")
    assert_private(tmp_path / "rouen")


def assert_private(home: Path) -> None:
    """Nobody but the owner reads anything in a home; what a library made with its own default mode is seen here."""
    modes = {path: stat.S_IMODE(path.lstat().st_mode) for path in (home, *home.rglob("*"))}
    assert len(modes) > 12
    assert {path.name: oct(mode) for path, mode in modes.items() if mode & 0o077} == {}


async def test_the_other_verbs_of_a_run(peers: list[Peer], capsys: pytest.CaptureFixture[str]) -> None:
    proposed = await cli(capsys, "plan", "propose", "lille", "plan", "--patience", "60")
    assert re.fullmatch(r"proposed run [0-9a-f]{64}\n", proposed.out)
    run = proposed.out.split()[-1]
    for verb in ("pause", "resume"):
        said = (await cli(capsys, "plan", verb, "lille", run[:12])).sentence()
        assert f"run {run[:12]} is proposing; only a" in said
    dry = await cli(capsys, "plan", "propose", "lille", "plan", "--dry-run", "--json")
    assert json.loads(dry.out)["examples"]["train"] == 12 and len(peers[0].runs) == 1


async def test_data_that_changed_while_the_proposal_lay_there(
    peers: list[Peer], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    proposed = await cli(capsys, "plan", "propose", "lille", "plan", "--json")
    run = json.loads(proposed.out)["run"]
    await until(lambda: run in peers[1].runs)
    (tmp_path / "toy.csv").write_text(DATA + "1,1\n")
    said = (await cli(capsys, "plan", "approve", "rouen", run, "--yes")).sentence()
    assert "has changed since it was registered" in said
    assert peers[1].runs[run].status()["approvals"] == [peers[0].peer_id]
    assert open_home(tmp_path / "rouen").approvals.list() == ()


async def test_a_peer_that_ends_while_it_is_followed(
    peers: list[Peer], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = await peers[0].propose("plan")
    topics: list[str] = []

    async def watch() -> None:
        async for topic, _ in follow(Path("lille"), run.id):
            topics.append(topic)

    watching = asyncio.create_task(watch())
    await until(lambda: topics)
    # as when the process is killed: the connection ends without the last event
    for server in [task for task in asyncio.all_tasks() if "ControlServer._serve" in repr(task)]:
        server.cancel()
    with pytest.raises(LinkError, match="ended before the run was over; start it again"):
        await watching


# --- the home


@pytest.mark.parametrize("run", ["", ".", "..", "../../etc", "a/b", "A" * 64, "a" * 63, "a" * 64 + "\n", "é" * 64])
def test_a_run_id_leads_nowhere_else(world: Path, run: str) -> None:
    home = open_home(world / "lille")
    with pytest.raises(ConfigError, match="is no run id"):
        home.run_folder(run)
    assert not (world / "lille" / "runs").exists()


def test_the_folders_of_a_run_are_the_owners_alone(world: Path) -> None:
    folder = open_home(world / "lille").run_folder("ab" * 32)
    assert [stat.S_IMODE(path.stat().st_mode) for path in (folder, folder.parent, world / "lille")] == [0o700] * 3


@pytest.mark.parametrize("passphrase", [None, "correct horse"])
def test_a_new_home_is_the_owners_alone(tmp_path: Path, passphrase: str | None) -> None:
    (tmp_path / "home").mkdir(mode=0o777)
    init_home(tmp_path / "home", name="a", listen=None, passphrase=passphrase)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "home").iterdir()}
    assert modes == dict.fromkeys(("identity.key", "tls.key", "member.record", "home.toml"), 0o600)
    assert stat.S_IMODE((tmp_path / "home").stat().st_mode) == 0o700


@pytest.mark.parametrize("name", ["Évreux 東京 😀", 'quo"te', "back\\slash", "[bold]", "= # ]"])
def test_names_survive_the_settings_file(tmp_path: Path, name: str) -> None:
    init_home(tmp_path / "home", name=name, listen=None, passphrase=None)
    assert open_home(tmp_path / "home").settings.name == open_home(tmp_path / "home").member().name == name


# --- the socket


async def test_the_socket_is_the_owners_alone(peers: list[Peer], tmp_path: Path) -> None:
    mode = (tmp_path / "lille" / "control.sock").stat().st_mode
    assert stat.S_ISSOCK(mode) and stat.S_IMODE(mode) == 0o600


async def test_the_socket_is_never_open_to_others(
    tmp_path: Path, peers: list[Peer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its making and its mode nobody can connect, whatever the umask says, and the umask stays as it is."""
    server = ControlServer(peers[0])
    monkeypatch.setattr(server, "_path", tmp_path / "second.sock")
    real, seen = os.chmod, []

    def chmod(path: Any, mode: int, **options: Any) -> None:
        with socket.socket(socket.AF_UNIX) as probe, pytest.raises(ConnectionRefusedError):
            probe.connect(str(path))
        seen.append(mode)
        real(path, mode, **options)

    with monkeypatch.context() as patched:
        patched.setattr(os, "chmod", chmod)
        patched.setattr(os, "umask", lambda mask: pytest.fail("umask is the whole process's"))
        await server.__aenter__()
    try:
        assert seen == [0o600] and stat.S_IMODE((tmp_path / "second.sock").stat().st_mode) == 0o600
    finally:
        await server.__aexit__()
    assert not (tmp_path / "second.sock").exists()


async def say(home: Path, data: bytes) -> bytes:
    reader, writer = await asyncio.open_unix_connection(str(home / "control.sock"), limit=2**20)
    try:
        writer.write(data)
        async with asyncio.timeout(30):
            return await reader.readline()
    finally:
        writer.close()


REQUESTS = [
    b"\n",
    b"not json\n",
    b"[]\n",
    b"3\n",
    b"{}\n",
    b'{"verb": "launch"}\n',
    b'{"verb": ["status"]}\n',
    b'{"verb": "show"}\n',
    b'{"verb": "show", "run": "../../etc"}\n',
    b'{"verb": "show", "run": {"a": 1}}\n',
    b'{"verb": "follow"}\n',
    b'{"verb": "propose", "plan": "/dev/zero"}\n',
    b'{"verb": "propose", "plan": "/proc/self/mem\\u0000"}\n',
    b'{"verb": "propose", "plan": "plan", "topology": 7}\n',
    b'{"verb": "propose", "plan": "plan", "rounds": "many"}\n',
    b'{"verb": "propose", "plan": "plan", "patience": "long"}\n',
    b'{"verb": "propose", "plan": "plan", "seed": []}\n',
    b"[" * 60_000 + b"\n",
    b'{"verb": "status", "more": "' + b"x" * (2 * REQUEST_LIMIT) + b'"}\n',
    b"\xff\xfe\x00\n",
]


async def test_every_bad_request_gets_an_answer_and_the_peer_goes_on(peers: list[Peer], tmp_path: Path) -> None:
    for request in REQUESTS:
        answer = json.loads(await say(tmp_path / "lille", request))
        assert answer["ok"] is False and 0 < len(answer["error"]) < 1000, request[:80]
        assert "\n" not in answer["error"] and "Traceback" not in answer["error"]
    assert (await ask(tmp_path / "lille", "status", timeout=30))["name"] == "lille"
    assert not peers[0].runs and peers[0].failure is None


async def test_connections_are_bounded_and_come_back(peers: list[Peer], tmp_path: Path) -> None:
    home = tmp_path / "lille"
    writers = []
    for _ in range(CONNECTIONS):
        _, writer = await asyncio.open_unix_connection(str(home / "control.sock"))
        writers.append(writer)
    answer = json.loads(await say(home, b'{"verb": "status"}\n'))
    assert answer["ok"] is False and "too many" in answer["error"]
    for writer in writers:
        writer.close()

    async def answers() -> bool:
        return bool(json.loads(await say(home, b'{"verb": "status"}\n'))["ok"])

    async with asyncio.timeout(30):
        while not await answers():
            await asyncio.sleep(0.02)


async def test_a_client_that_leaves_early_disturbs_nobody(peers: list[Peer], tmp_path: Path) -> None:
    for request in (b"", b'{"verb": "sta', b'{"verb": "status"}\n'):
        _, writer = await asyncio.open_unix_connection(str(tmp_path / "lille" / "control.sock"))
        writer.write(request)
        writer.transport.abort()
    assert (await ask(tmp_path / "lille", "status", timeout=30))["name"] == "lille"


async def test_a_peer_that_does_not_answer(peers: list[Peer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A paused process accepts connections, as the kernel does it, and says nothing."""
    (tmp_path / "rouen" / "control.sock").unlink()
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "rouen" / "control.sock"))
        silent.listen()
        with pytest.raises(LinkError, match=r"did not answer within 0\.2 s; see whether its process is paused"):
            await ask(tmp_path / "rouen", "status", timeout=0.2)


@pytest.mark.parametrize(
    ("answer", "error", "pattern"),
    [
        (b"", ConfigError, "gave no answer"),
        (b"not json\n", ConfigError, "cannot be read"),
        (b"x" * (17 * 2**20) + b"\n", ConfigError, "cannot be read"),
        (b'{"ok": false, "error": "no", "fault": "os.system"}\n', ConfigError, "no"),
    ],
    ids=["nothing", "no JSON", "too long", "unknown fault"],
)
async def test_answers_that_make_no_sense(tmp_path: Path, answer: bytes, error: type[Exception], pattern: str) -> None:
    (tmp_path / "home.toml").write_text('name = "a"\n')

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(answer)
        try:
            await writer.drain()
        except ConnectionError:
            pass
        writer.close()

    server = await asyncio.start_unix_server(serve, str(tmp_path / "control.sock"))
    async with server:
        with pytest.raises(error, match=pattern):
            await ask(tmp_path, "status", timeout=30)


async def test_a_home_deep_down_has_a_socket_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket's address has 108 bytes (unix(7)); homes may lie deeper."""
    deep = tmp_path.joinpath(*["a-folder-with-a-long-name"] * 6)
    deep.mkdir(parents=True)
    found_consortium({deep / name: None for name in ("lille", "rouen")}, "north", {"kind": "ring"})
    async with Peer(deep / "lille", network=MemoryNetwork()) as peer, ControlServer(peer):
        assert (await ask(deep / "lille", "status", timeout=30))["name"] == "lille"
    assert not (deep / "lille" / "control.sock").exists()


async def test_a_socket_left_by_a_crash_is_replaced(tmp_path: Path) -> None:
    found_consortium({tmp_path / name: None for name in ("lille", "rouen")}, "north", {"kind": "ring"})
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / "lille" / "control.sock"))
    async with Peer(tmp_path / "lille", network=MemoryNetwork()) as peer, ControlServer(peer):
        assert (await ask(tmp_path / "lille", "status", timeout=30))["name"] == "lille"
