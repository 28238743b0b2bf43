"""Local control of a running peer over its Unix socket (mode 0600): one JSON line in, one or more out.

Only the home's owner can open the socket; file rights are the whole authentication. Requests are small and bounded.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

from p2pfl.errors import (
    ConfigError,
    DataError,
    IllegalStep,
    LinkError,
    P2PFLError,
    PlanError,
    PolicyRefusal,
    RemoteError,
    StoreError,
)
from p2pfl.governance import read_plan
from p2pfl.peer.disk import disk_problem
from p2pfl.peer.hand_links import accept_text, make_offer
from p2pfl.peer.home import open_home
from p2pfl.peer.partner_checks import partner_facts
from p2pfl.peer.peer import Peer
from p2pfl.peer.run import Run

REQUEST_LIMIT = 64 * 1024  # bytes of one request line
REQUEST_TIME = 10.0  # seconds until the request line must be there
ANSWER_LIMIT = 16 * 2**20  # bytes of one answer line; a plan's code and a long status fit
CONNECTIONS = 32
OVER = "over"  # the topic of the last event of a followed run
PROBE_TIME = 2.0  # seconds; a socket on this machine answers at once

Handler = Callable[[Peer, dict[str, Any]], Awaitable[Any]]


async def _status(peer: Peer, request: dict[str, Any]) -> Any:
    return peer.status()


async def _propose(peer: Peer, request: dict[str, Any]) -> Any:
    options = {
        name: request[name] for name in ("seed", "patience", "topology", "rounds") if request.get(name) is not None
    }
    run = await peer.propose(read_plan(Path(str(request["plan"]))), **options)
    return {"run": run.id, "plan": run.plan.digest}


async def _list(peer: Peer, request: dict[str, Any]) -> Any:
    names = {member.peer_id: member.name for member in peer.roster.members}
    return [
        {**run.status(), "name": run.plan.settings.plan.name, "proposer": names.get(run.proposer, "?")}
        for run in peer.runs.values()
    ]


async def _show(peer: Peer, request: dict[str, Any]) -> Any:
    run = peer.run(str(request["run"]))
    return {
        "run": run.id,
        "plan": run.plan.digest,
        "status": run.status(),
        "topology": dict(run.topology),
        "plan.toml": run.plan.toml.decode(),
        "plan.py": run.plan.source.decode(),
    }


async def _approve(peer: Peer, request: dict[str, Any]) -> Any:
    run = peer.run(str(request["run"]))
    expected = request.get("plan")
    if expected and not run.plan.digest.startswith(str(expected)):
        raise ConfigError(
            f"run {run.id[:12]} carries plan {run.plan.digest[:12]}, not {str(expected)[:12]}; read it again"
        )
    await peer.join(run.id)
    proposer = peer.roster.member(run.proposer)
    late = run.status()["joining"]
    known = {"run": run.id, "plan": run.plan.digest}
    return (
        {**known, "joining": {**late, "approved": True}, "proposer": proposer.name if proposer else "?"}
        if late
        else known
    )


async def _pause(peer: Peer, request: dict[str, Any]) -> Any:
    run = peer.run(str(request["run"]))
    try:
        run.pause()
    except IllegalStep as error:
        raise IllegalStep(f"run {run.id[:12]} is {run.state}; only a run that trains can be paused") from error
    return _pausing(run)


async def _resume(peer: Peer, request: dict[str, Any]) -> Any:
    run = peer.run(str(request["run"]))
    try:
        run.resume()
    except IllegalStep as error:
        raise IllegalStep(f"run {run.id[:12]} is {run.state}; only a paused run can be resumed") from error
    return _pausing(run)


def _pausing(run: Run) -> dict[str, Any]:
    """Where the run stands after a word of this site's user, and what still holds it."""
    status = run.status()
    return {name: status[name] for name in ("run", "state", "round", "paused_because")}


async def _direct(peer: Peer, request: dict[str, Any]) -> Any:
    run, word, arguments = peer.run(str(request["run"])), request["word"], request.get("arguments") or {}
    if word not in ("pause", "resume", "stop", "change"):
        raise ConfigError(f"unknown word {word!r}; a run is told to pause, resume, stop or change")
    return run.direct(word, dict(arguments), from_round=request.get("from_round"))


async def _link_offer(peer: Peer, request: dict[str, Any]) -> Any:
    return await make_offer(peer, str(request["member"]))


async def _link_accept(peer: Peer, request: dict[str, Any]) -> Any:
    return await accept_text(peer, str(request["text"]))


async def _doctor(peer: Peer, request: dict[str, Any]) -> Any:
    return await partner_facts(peer)


HANDLERS: dict[str, Handler] = {
    "doctor": _doctor,
    "link_offer": _link_offer,
    "link_accept": _link_accept,
    "status": _status,
    "propose": _propose,
    "list": _list,
    "show": _show,
    "approve": _approve,
    "pause": _pause,
    "resume": _resume,
    "direct": _direct,
}


class ControlServer:
    """Serves a peer's control socket. Use as an async context manager around a running peer."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._path = peer.home.socket
        self._server: asyncio.Server | None = None
        self._open = 0

    async def __aenter__(self) -> ControlServer:
        with short_path(self._path) as path:
            _refuse_second(self._path, path)
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                listener.bind(path)
                # before it listens, which start_unix_server does: nobody connects to the socket in between,
                # and no umask, which is the whole process's, changes under the threads that write files
                os.chmod(path, 0o600)
            except OSError as error:
                listener.close()
                raise StoreError(f"couldn't make {self._path}: {error.strerror}; check the folder") from error
        self._server = await asyncio.start_unix_server(self._serve, sock=listener, limit=REQUEST_LIMIT)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self._path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        try:
            if self._open > CONNECTIONS:
                _answer(writer, {"ok": False, "error": "too many control connections; try again"})
                return
            async with asyncio.timeout(REQUEST_TIME):
                line = await reader.readline()
            request = json.loads(line)
            if request.get("verb") == "follow":
                await self._follow(request, writer)
            else:
                _answer(writer, {"ok": True, "value": await self._carry_out(request)})
        except P2PFLError as error:
            _answer(writer, {"ok": False, "error": str(error), "fault": type(error).__name__})
        except (TimeoutError, ConnectionError):
            pass
        # RecursionError: json descends into nested lists; the owner's own request must not go unanswered
        except Exception as error:
            why = f"not a request of this version: {error!r}"[:400]
            _answer(writer, {"ok": False, "error": f"{why}; use the same p2pfl as the peer", "fault": "ConfigError"})
        finally:
            self._open -= 1
            with contextlib.suppress(ConnectionError, TimeoutError):
                async with asyncio.timeout(REQUEST_TIME):
                    await writer.drain()
            writer.close()

    async def _carry_out(self, request: dict[str, Any]) -> Any:
        handler = HANDLERS.get(str(request.get("verb")))
        if handler is None:
            raise ConfigError(f"unknown verb {request.get('verb')!r}; known: {', '.join(sorted(HANDLERS))}, follow")
        return await handler(self._peer, request)

    async def _follow(self, request: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        run = self._peer.run(str(request["run"]))
        async for event in run.events():
            _answer(writer, {"ok": True, "topic": event.topic, "facts": dict(event.facts)})
            async with asyncio.timeout(REQUEST_TIME):
                await writer.drain()
        _answer(writer, {"ok": True, "topic": OVER, "facts": run.status()})


def _answer(writer: asyncio.StreamWriter, value: dict[str, Any]) -> None:
    writer.write(json.dumps(value, default=str).encode() + b"\n")


def _refuse_second(shown: Path, path: str) -> None:
    """A socket that answers belongs to a running peer; one that does not was left by a crash."""
    if not shown.exists():
        return
    if not stat.S_ISSOCK(shown.stat().st_mode):
        raise ConfigError(f"{shown} is not a socket; move it away")
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    probe.settimeout(PROBE_TIME)  # a paused peer with a full queue would keep us waiting for ever
    try:
        probe.connect(path)
    except ConnectionRefusedError:
        shown.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(f"{shown} is in use ({error}); end the process that holds it, then try again") from error
    else:
        raise ConfigError(f"a peer is already running on {shown.parent}; stop it first")
    finally:
        probe.close()


@contextlib.contextmanager
def short_path(path: Path) -> Iterator[str]:
    """A name for a socket that fits into the 108 bytes of sockaddr_un however deep the home lies."""
    if len(os.fsencode(path)) < 100:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


async def ask(home: Path, verb: str, timeout: float = 3700.0, **arguments: Any) -> Any:
    """Ask a running peer. Raises ConfigError when none runs on this home, or what the peer answered."""
    try:
        async with asyncio.timeout(timeout):
            async for answer in _conversation(home, {"verb": verb, **arguments}):
                return answer.get("value")
    except TimeoutError as error:
        raise LinkError(
            f"the peer on {home} did not answer within {timeout:g} s; see whether its process is paused or overloaded"
        ) from error
    raise ConfigError(f"the peer on {home} gave no answer; look at its output")


async def follow(home: Path, run: str) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    """All events of a run at a running peer, until its part is over; the last one's topic is "over".

    Raises LinkError when the peer ends before.
    """
    async for answer in _conversation(home, {"verb": "follow", "run": run}):
        yield str(answer["topic"]), answer["facts"]
        if answer["topic"] == OVER:
            return
    raise LinkError(f"the peer on {home} ended before the run was over; start it again with `p2pfl up {home}`")


async def _conversation(home: Path, request: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
    opened = open_home(home)  # a wrong folder is told from a peer that does not run
    try:
        with short_path(home / "control.sock") as path:
            reader, writer = await asyncio.open_unix_connection(path, limit=ANSWER_LIMIT)
    except PermissionError as error:
        raise ConfigError(f"{home} belongs to another user; use the account that started its peer") from error
    except (OSError, ValueError) as error:
        problem = disk_problem(opened)
        first = f"; first see to this: {problem}" if problem else ""
        raise ConfigError(f"no peer is running on {home}; start it with `p2pfl up {home}`{first}") from error
    try:
        writer.write(json.dumps(request).encode() + b"\n")
        await writer.drain()
        while line := await reader.readline():
            answer = json.loads(line)
            if not answer.get("ok"):
                raise _FAULTS.get(answer.get("fault"), ConfigError)(answer.get("error"))
            yield answer
    except ConnectionError as error:
        raise LinkError(f"the peer on {home} ended while it was asked; look at its output") from error
    except ValueError as error:
        raise ConfigError(f"the peer on {home} gave an answer that cannot be read ({error}); restart it") from error
    finally:
        writer.close()


_FAULTS: dict[Any, type[P2PFLError]] = {
    kind.__name__: kind
    for kind in (ConfigError, DataError, IllegalStep, LinkError, PlanError, PolicyRefusal, RemoteError, StoreError)
}
