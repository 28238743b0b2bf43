"""`p2pfl init`, `up`, `status` and `result`: a hospital's home and its running peer."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any

import typer

from p2pfl.cli.output import note, out, passphrase, show, write_result
from p2pfl.crypto import is_sealed
from p2pfl.errors import ConfigError
from p2pfl.peer import ControlServer, Peer, Run, ask, init_home, open_home, read_text

HomePath = Annotated[Path, typer.Argument(help="The peer's home folder.", metavar="HOME")]
PassphraseFile = Annotated[
    Path | None, typer.Option("--passphrase-file", help="File whose first line is the key's passphrase.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def register(app: typer.Typer) -> None:
    """Add the verbs to the root."""
    app.command("init")(init)
    app.command("up")(up)
    app.command("status")(status)
    app.command("result")(result)


def init(
    home: HomePath,
    name: Annotated[str, typer.Option("--name", help="The hospital's name in the charter.")],
    listen: Annotated[str | None, typer.Option("--listen", help="Address to listen on: a multiaddr.")] = None,
    no_listen: Annotated[bool, typer.Option("--no-listen", help="No listening port; this peer dials out.")] = False,
    discover: Annotated[
        str | None,
        typer.Option("--discover", help="IPv4 of the interface for zeroconf discovery; off by default."),
    ] = None,
    bare: Annotated[bool, typer.Option("--bare", help="Keep the key unsealed, readable by this user only.")] = False,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Make a home: key, certificate, member record. Prints the record that `p2pfl charter new` takes.

    Example: p2pfl init homes/lille --name lille --listen /ip4/10.1.2.3/tcp/4101 > lille.record
    """
    if (listen is None) == (not no_listen):
        raise ConfigError("say either --listen ADDRESS (such as /ip4/10.1.2.3/tcp/4101) or --no-listen")
    secret = passphrase(passphrase_file, sealed=not bare, new=True)
    text = init_home(home, name=name, listen=listen, discover=discover, passphrase=secret)
    note(f"made {home}; give the record below (or {home / 'member.record'}) to whoever makes the charter")
    typer.echo(text, nl=False)


def up(
    home: HomePath,
    passphrase_file: PassphraseFile = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print events as JSON lines.")] = False,
) -> int:
    """Run the peer until Ctrl-C or SIGTERM: links, runs, log. The other verbs reach it over its socket.

    Example: p2pfl up homes/lille
    """
    secret = passphrase(passphrase_file, is_sealed(open_home(home).path / "identity.key"))
    return run_loop(lambda: _up(home, secret, as_json))


def run_loop(work: Callable[[], Coroutine[Any, Any, int]]) -> int:
    """Run on uvloop where it is installed, on asyncio's own loop elsewhere."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(work())
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work())


async def _up(home: Path, secret: str | None, as_json: bool) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with Peer(home, passphrase=secret) as peer, ControlServer(peer):
        _say(as_json, "up", {"name": peer.name, "peer": peer.peer_id, "addresses": peer.addresses})
        if peer.discovery_problem:
            _say(as_json, "discovery", {"problem": peer.discovery_problem})
        watcher = asyncio.create_task(_watch(peer, as_json))
        waits = [asyncio.create_task(stop.wait()), asyncio.create_task(peer.failed.wait())]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for task in (*waits, watcher):
            task.cancel()
        await asyncio.gather(*waits, watcher, return_exceptions=True)
        if peer.failure is not None:
            raise peer.failure
    _say(as_json, "down", {})
    return 0


async def _watch(peer: Peer, as_json: bool) -> None:
    """Print what happens in every run, as it becomes known."""
    followed: dict[str, asyncio.Task[None]] = {}
    links: dict[str, str] = {}
    try:
        while True:
            for run in peer.runs.values():
                if run.id not in followed:
                    followed[run.id] = asyncio.create_task(_follow(peer, run, as_json))
            now = peer.links()
            if now != links:
                links = now
                _say(as_json, "links", links)
            await peer.changed()
    finally:
        for task in followed.values():
            task.cancel()


async def _follow(peer: Peer, run: Run, as_json: bool) -> None:
    async for event in run.events():
        _say(as_json, event.topic, {"run": run.id[:12], **event.facts})
        if event.topic == "proposal" and event.facts.get("proposer") != peer.peer_id and not as_json:
            note(f"read it with `p2pfl plan show {peer.home.path} {run.id[:12]}` before you approve it")


def _say(as_json: bool, topic: str, facts: dict[str, Any]) -> None:
    if as_json:
        out.print(json.dumps({"topic": topic, **facts}, default=str), markup=False)
        return
    parts = "  ".join(f"{name} {_plain(value)}" for name, value in facts.items())
    out.print(f"{topic:<12} {parts}", markup=False)


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(_plain(item) for item in value) or "none"
    text = str(value)
    return "…" + text[-6:] if text.startswith("12D3Koo") else text


def status(home: HomePath, as_json: AsJson = False) -> None:
    """What a running peer is doing: links, runs, log, and why a link is missing.

    Example: p2pfl status homes/lille
    """
    value = asyncio.run(ask(home, "status", timeout=30))
    lines = [
        f"{value['name']}  {value['peer']}",
        f"listens      {', '.join(value['addresses']) or 'no port'}",
    ]
    if value["discovery_problem"]:
        lines.append(f"discovery    {value['discovery_problem']}")
    for member in value["members"]:
        state = member["link"] or f"no link: {member['why_not'] or 'not wanted'}"
        lines.append(f"member       {member['name']:<16} {state}")
    for run in value["runs"]:
        lines.append(f"run          {run['run'][:12]}  {run['state']}, round {run['round']} of {run['of']}")
        lines += [
            f"  missing    {_plain(gone['peer'])} since round {gone['from_round']}: {gone['reason']}"
            for gone in run["missing"]
        ]
    lines.append(f"log          {value['log']['entries']} entries, head {value['log']['head'][:16]}")
    show(value, as_json, lines)


def result(
    home: HomePath,
    output: Annotated[Path, typer.Option("-o", "--output", help="Where to write the model (safetensors).")],
    run: Annotated[
        str | None, typer.Option("--run", help="Run id or its beginning; the newest finished one if absent.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write the trained model of a finished run, and print its report.

    Example: p2pfl result homes/lille -o model.safetensors
    """
    folder = _finished_run(open_home(home).path / "runs", run)
    report = json.loads(read_text(folder / "report.json"))
    model = folder / "model.safetensors"
    if not model.exists():
        raise ConfigError(
            f"this peer has no model of run {folder.name[:12]}: {report.get('away') or 'it did not take part'}; "
            "ask a partner for theirs"
        )
    write_result(output, model.read_bytes())
    lines = [
        f"run          {report['run'][:12]}  {report['rounds_done']} rounds",
        f"digest       {report['digest']}",
        f"at home      {_plain([f'{name} {value:.4g}' for name, value in report['at_home'].items()])}",
        *(f"contributed  {site['name']:<16} share {site['share']:.3f}" for site in report["participants"]),
        *(
            f"missing      {gone['name']:<16} from round {gone['from_round']}: {gone['reason']}"
            for gone in report["missing"]
        ),
        f"written      {output}",
    ]
    show(report, as_json, lines)


def _finished_run(folder: Path, run: str | None) -> Path:
    done = sorted(folder.glob("*/report.json"), key=lambda path: path.stat().st_mtime) if folder.is_dir() else []
    chosen = [path.parent for path in done if run is None or path.parent.name.startswith(run)]
    if not chosen:
        which = f" that begins with {run!r}" if run else ""
        raise ConfigError(f"no finished run{which} in {folder}; look at `p2pfl status` for its state")
    return chosen[-1]
