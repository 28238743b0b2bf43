"""`p2pfl init`, `up`, `status` and `result`: a hospital's home and its running peer."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from p2pfl.audit import directive_lines
from p2pfl.cli.output import note, passphrase, show, write_result
from p2pfl.cli.printing import Printer, joining, keeping, plain
from p2pfl.crypto import is_sealed
from p2pfl.errors import ConfigError
from p2pfl.peer import ControlServer, Home, Peer, Run, ask, check_new_home, init_home, open_home, read_text

HomePath = Annotated[Path, typer.Argument(help="The peer's home folder.", metavar="HOME")]
PassphraseFile = Annotated[
    Path | None, typer.Option("--passphrase-file", help="File whose first line is the key's passphrase.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

PRIVATE = 0o077  # umask: whatever a home gets, by whatever library, is the owner's alone


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
    tell: Annotated[
        list[str] | None,
        typer.Option("--tell", help="Address for partners, where it differs: a forwarded port, a name. Repeatable."),
    ] = None,
    discover: Annotated[
        str | None,
        typer.Option("--discover", help="IPv4 of the interface for zeroconf discovery; off by default."),
    ] = None,
    keep_deltas: Annotated[
        bool,
        typer.Option(
            "--keep-deltas", help="Keep what is sent and mixed, partners' parameters too, in clear: for replays."
        ),
    ] = False,
    bare: Annotated[bool, typer.Option("--bare", help="Keep the key unsealed, readable by this user only.")] = False,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Make a home: key, certificate, member record. Prints the record that `p2pfl charter new` takes.

    Example: p2pfl init homes/lille --name lille --listen /ip4/10.1.2.3/tcp/4101 > lille.record
    """
    if (listen is None) == (not no_listen):
        raise ConfigError("say either --listen ADDRESS (such as /ip4/10.1.2.3/tcp/4101) or --no-listen")
    if bare and passphrase_file is not None:
        raise ConfigError("say either --bare or --passphrase-file; a bare key has no passphrase")
    check_new_home(home, name=name, listen=listen, tell=tell, discover=discover)  # before anybody types a passphrase
    secret = passphrase(passphrase_file, sealed=not bare, new=True)
    os.umask(PRIVATE)
    text = init_home(
        home, name=name, listen=listen, tell=tell, discover=discover, keep_deltas=keep_deltas, passphrase=secret
    )
    if keep_deltas:
        note(f"parameters of this site and its partners will be kept in clear in {home / 'kept'}; tell your partners")
    note(f"made {home}; give the record below (or {home / 'member.record'}) to whoever makes the charter")
    typer.echo(text, nl=False)


def up(
    home: HomePath,
    passphrase_file: PassphraseFile = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print events as JSON lines.")] = False,
) -> int:
    """Run the peer until Ctrl-C or SIGTERM: links, runs, log. The other verbs reach it over its socket.

    A peer that was stopped so gives exit code 0; it takes up its open runs at the next start.

    Example: p2pfl up homes/lille
    """
    secret = passphrase(passphrase_file, is_sealed(open_home(home).path / "identity.key"))
    os.umask(PRIVATE)
    return run_loop(lambda: _up(home, secret, as_json))


def run_loop(work: Callable[[], Coroutine[Any, Any, int]]) -> int:
    """Run on uvloop where it is installed, on asyncio's own loop elsewhere."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(work())
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.get_loop().set_exception_handler(unless_closed)
        return runner.run(work())


def unless_closed(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Report what the loop met, but not TLS bytes for a link that is closed already.

    uvloop calls those a fatal error, with a traceback, where a process stood still while its links ended; that they
    ended is told as an event.
    """
    transport = context.get("transport")
    closed = transport is not None and transport.is_closing()
    if not (closed and context.get("message") == "Fatal error on SSL protocol"):
        loop.default_exception_handler(context)


async def _up(home: Path, secret: str | None, as_json: bool) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stop.set)
    with Printer(as_json) as printer:
        async with Peer(home, passphrase=secret) as peer, ControlServer(peer):
            printer.event("up", {"name": peer.name, "peer": peer.peer_id, "addresses": peer.addresses})
            if peer.discovery_problem:
                printer.event("discovery", {"problem": peer.discovery_problem})
            watcher = asyncio.create_task(_watch(peer, printer))
            waits = [asyncio.create_task(event.wait()) for event in (stop, peer.failed, printer.closed)]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for task in (*waits, watcher):
                task.cancel()
            await asyncio.gather(*waits, watcher, return_exceptions=True)
            if peer.failure is not None:
                raise peer.failure
        printer.event("down", {})
    if printer.closed.is_set():
        raise BrokenPipeError
    return 0


async def _watch(peer: Peer, printer: Printer) -> None:
    """Print what happens in every run, as it becomes known."""
    followed: dict[str, asyncio.Task[None]] = {}
    links: dict[str, str] = {}
    news = 0
    try:
        while True:
            for run in peer.runs.values():
                if run.id not in followed:
                    followed[run.id] = asyncio.create_task(_follow(peer, run, printer))
            now = peer.links()
            if now != links:
                links = now
                printer.event("links", dict(links))
            for topic, facts in peer.log_news[news:]:
                printer.event(topic, facts)
            news = len(peer.log_news)
            await peer.changed()
    finally:
        for task in followed.values():
            task.cancel()


async def _follow(peer: Peer, run: Run, printer: Printer) -> None:
    async for event in run.events():
        printer.event(event.topic, {"run": run.id[:12], **event.facts})
        if event.topic == "proposal" and event.facts.get("proposer") != peer.peer_id:
            printer.hint(f"read it with `p2pfl plan show {peer.home.path} {run.id[:12]}` before you approve it")


def status(home: HomePath, as_json: AsJson = False) -> None:
    """What a running peer is doing: links, runs, log, and why a link is missing.

    Example: p2pfl status homes/lille
    """
    value = asyncio.run(ask(home, "status", timeout=30))
    lines = [
        f"{value['name']}  {value['peer']}",
        f"listens      {', '.join(at for at in value['addresses'] if not at.startswith('/webrtc/')) or 'no port'}",
    ]
    if value["discovery_problem"]:
        lines.append(f"discovery    {value['discovery_problem']}")
    names = {member["peer"]: member["name"] for member in value["members"]}
    for member in value["members"]:
        lines.append(f"member       {member['name']:<16} {_link(member)}")
    for run in value["runs"]:
        lines.append(f"run          {run['run'][:12]}  {run['state']}, round {run['round']} of {run['of']}")
        if run["outcome"]:
            lines.append(f"  outcome    {run['outcome']}")
        if run["joining"] and not run["outcome"]:
            lines.append(f"  joining    {joining(run['joining'])}")
        if run["directive"]:
            lines += [f"  directed   {line}" for line in directive_lines(run["directive"], names)]
        if run["paused_because"]:
            lines.append(f"  paused     {run['paused_because']}")
        lines += [
            f"  missing    {names.get(gone['peer'], plain(gone['peer']))} since round "
            f"{gone['from_round']}: {gone['reason']}"
            for gone in run["missing"]
        ]
    epoch = f", epoch {value['epoch']}" if value["epoch"] else ""
    lines.append(f"log          {value['log']['entries']} entries, head {value['log']['head'][:16]}{epoch}")
    if value["kept"] is not None:
        lines.append(f"keeps        {keeping(value['kept'])}")
    lines += [f"witness      {names[item['peer']]:<16} {_witness(item)}" for item in value["witnesses"]]
    met = [(value["name"], value), *((member["name"], member) for member in value["members"])]
    lines += [_second(name, row["second_instance"]) for name, row in met if row["second_instance"]]
    show(value, as_json, lines)


def _second(name: str, met: dict[str, Any]) -> str:
    """That a key is in use twice, for people."""
    return f"ALARM        {name:<16} at {_clock(met['at'])}: {plain(met['reason'])}"


def _witness(row: dict[str, Any]) -> str:
    """What a member and this site know of each other's log, for people."""
    if row["alarm"]:
        return f"ALARM: its log contradicts itself ({row['alarm']}); the evidence is in the home's folder evidence"
    cosigned = f"cosigned our first {row['holds']} entries at {_clock(row['cosigned'])}" if row["cosigned"] else ""
    checked = f"we checked its first {row['held']} at {_clock(row['checked'])}" if row["checked"] else ""
    withheld = f"WITHHOLDS its log: {plain(row['withheld'])}" if row["withheld"] else ""
    return "; ".join(part for part in (withheld, cosigned, checked) if part) or "nothing witnessed yet"


def _clock(seconds: int) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%SZ}"


def _link(member: dict[str, Any]) -> str:
    """One member's link for people: its kind, how it goes, and who introduced it; or why there is none."""
    if not member["link"]:
        return f"no link: {member['why_not'] or 'not wanted'}"
    if member["link"] != "webrtc":
        return str(member["link"])
    by = f"introduced by {member['introducer']}" if member["introducer"] else "linked by hand"
    return f"webrtc, {'through a TURN server' if member['path'] == 'relayed' else 'direct'}, {by}"


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
    folder = _finished_run(open_home(home), run)
    report = _report(folder / "report.json")
    model = folder / "model.safetensors"
    if not model.exists():
        raise ConfigError(
            f"this peer has no model of run {folder.name[:12]}: {_why_none(report)}; ask a partner for theirs"
        )
    write_result(output, model.read_bytes())
    at_home = [f"{name} {value:.4g}" for name, value in report["at_home"].items()]
    lines = [
        f"run          {report['run'][:12]}  {report['rounds_done']} rounds",
        *([f"outcome      {report['outcome']}"] if report.get("outcome") else []),
        f"digest       {report['digest']}",
        f"at home      {plain(at_home)}",
        *(f"contributed  {_contribution(site, report)}" for site in report["participants"]),
        *(
            f"missing      {gone['name']:<16} from round {gone['from_round']}: {gone['reason']}"
            for gone in report["missing"]
        ),
        f"written      {output}",
    ]
    show(report, as_json, lines)


def _contribution(site: dict[str, Any], report: dict[str, Any]) -> str:
    """One participant's share and, where the completion record says so, its rounds."""
    row = next((row for row in report.get("completion", ()) if row["peer"] == site["peer"]), None)
    rounds = f", {row['rounds']} rounds" if row is not None else ""
    since = f", joined at round {site['joined']}" if site.get("joined") is not None else ""
    counts = site.get("counts", site["share"])  # absent: from before topologies had weights of their own
    counted = f" of all samples, counts {counts:.3f}" if counts != site["share"] else ""
    return f"{site['name']:<16} share {site['share']:.3f}{counted}{rounds}{since}"


def _report(path: Path) -> dict[str, Any]:
    try:
        report: dict[str, Any] = json.loads(read_text(path))
        missing = {"run", "rounds_done", "digest", "at_home", "participants", "missing", "away"} - set(report)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{path} is damaged; ask a partner for the model") from error
    if missing:
        raise ConfigError(f"{path} is damaged: it lacks {min(missing)}; ask a partner for the model")
    return report


def _finished_run(home: Home, run: str | None) -> Path:
    known = [path.parent for path in sorted(home.path.glob("runs/*/proposal"))]
    begun = [folder for folder in known if run is None or folder.name.startswith(run)]
    done = [folder for folder in begun if (folder / "report.json").exists()]
    if run is not None and len(begun) > 1:
        raise ConfigError(f"{len(begun)} runs begin with {run!r}; write more of the run's id")
    if done:
        return max(done, key=lambda folder: (folder / "report.json").stat().st_mtime)
    if begun:
        names = ", ".join(folder.name[:12] for folder in begun[:8])
        raise ConfigError(f"{names}: not over yet; look at `p2pfl status {home.path}`, and try again when it is")
    which = f"begins with {run!r}" if run else "is known"
    raise ConfigError(f"no run {which} in {home.path}; look at `p2pfl plan list {home.path}`")


def _why_none(report: dict[str, Any]) -> str:
    return str(report.get("away") or report.get("problem") or "it did not take part")
