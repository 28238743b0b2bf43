"""Entries for people and for programs: one plain line each, or a dict for JSON. Reads no file.

Names and reasons in a body may come from another site. Everything printed is freed of control characters
and of characters that change the direction of writing, so that an entry cannot draw over the terminal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any

from p2pfl.audit.format import Entry
from p2pfl.audit.kinds import Kind
from p2pfl.audit.texts import MARK

SHOWN_CHARACTERS = 200
"""Of one value in a line: a reason has at most 400, a line should stay readable."""

SHOWN_ITEMS = 8
"""Of a list in a line; more are counted. --json shows all."""

SHORT_ID = 12
"""Characters shown of a digest or of a peer id's end: enough to tell 50 sites and their deltas apart."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def describe(entry: Entry, names: Mapping[str, str] | None = None) -> str:
    """One line: position, time (UTC), what happened. ``names`` maps peer ids to the charter's names."""
    words = _Words(entry.body, names or {})
    template = _LINES.get(entry.kind)
    text = template(words) if template is not None else f"{_safe(entry.kind)}: {words.everything()}"
    run = entry.body.get("run")
    prefix = f"run {_short(run)}: " if isinstance(run, str) else ""
    return f"{entry.position:>6}  {time_text(entry.time)}  {prefix}{text}"


def time_text(milliseconds: int) -> str:
    """Unix milliseconds as UTC text, or the bare number when it is beyond the calendar."""
    try:
        moment = _EPOCH + timedelta(milliseconds=milliseconds)
    except OverflowError:
        return f"{milliseconds} ms"
    return f"{moment:%Y-%m-%d %H:%M:%S}.{moment.microsecond // 1000:03d}Z"


def as_dict(entry: Entry) -> dict[str, Any]:
    """The entry with nothing left out, for JSON: bytes as hexadecimal digits."""
    return {
        "position": entry.position,
        "time": entry.time,
        "kind": entry.kind,
        "body": _plain(entry.body),
        "hash": entry.hash.hex(),
        "documents": [{"role": role, "digest": digest} for role, digest in entry.documents],
    }


class _Words:
    """Body fields as safe text; a field that is missing or of an unexpected type never raises."""

    def __init__(self, body: Mapping[str, Any], names: Mapping[str, str]) -> None:
        self._body = body
        self._names = names

    def __getitem__(self, field: str) -> str:
        value = self._body.get(field)
        return "?" if value is None else self._text(value)

    def has(self, field: str) -> bool:
        return self._body.get(field) not in (None, "", [], ())

    def short(self, field: str) -> str:
        """A digest, cut."""
        return _short(self._body.get(field))

    def peer(self, field: str = "peer") -> str:
        return self._peer(self._body.get(field))

    def peers(self, field: str) -> str:
        """A list of peers, or of rows that begin with a peer."""
        rows = self._body.get(field)
        if not isinstance(rows, list) or not rows:
            return "nobody"
        found = [self._peer(row[0] if isinstance(row, list) and row else row) for row in rows[:SHOWN_ITEMS]]
        return ", ".join(found) + (f" and {len(rows) - SHOWN_ITEMS} more" if len(rows) > SHOWN_ITEMS else "")

    def count(self, field: str) -> str:
        value = self._body.get(field)
        return str(len(value)) if isinstance(value, list | dict) else self[field]

    def place(self) -> str:
        """Round, step (when it is not the first) and channel of a delta."""
        parts = [f"round {self['round']}"]
        if self._body.get("step"):
            parts.append(f"step {self['step']}")
        if self.has("channel"):
            parts.append(f"channel {self['channel']}")
        return ", ".join(parts)

    def changes(self) -> list[str]:
        """Changed arguments with the round each holds from; what is not of that form is left out."""
        rows = self._body.get("changes")
        parts = []
        for row in rows[:SHOWN_ITEMS] if isinstance(rows, list) else ():
            if isinstance(row, list) and len(row) == 2 and isinstance(row[1], dict):
                values = ", ".join(f"{_safe(str(name))} = {self._text(value)}" for name, value in row[1].items())
                parts.append(f"{values} from round {self._text(row[0])}")
        return parts

    def sizes(self, field: str) -> str:
        """Of a list of heads [epoch, size, root]: size and epoch of each."""
        rows = self._body.get(field)
        full = [row for row in rows if isinstance(row, list) and len(row) == 3] if isinstance(rows, list) else []
        found = [f"size {self._text(row[1])} of epoch {self._text(row[0])}" for row in full[:SHOWN_ITEMS]]
        return ", ".join(found) or "nobody knows where"

    def held_by_others(self) -> str:
        """Of a list of states those that another peer than their origin had; entries of before have no holder."""
        rows = self._body.get("states")
        full = [row for row in rows if isinstance(row, list) and len(row) == 5] if isinstance(rows, list) else []
        found = [f"{self._peer(row[0])}'s was held by {self._peer(row[4])}" for row in full if row[4] != row[0]]
        return "".join(f"; {part}" for part in found[:SHOWN_ITEMS])

    def joined(self) -> list[str]:
        """Members admitted after the start, with the round and their samples; what is not of that form is left out."""
        rows = self._body.get("joined")
        parts = []
        for row in rows[:SHOWN_ITEMS] if isinstance(rows, list) else ():
            if isinstance(row, list) and len(row) == 3:
                parts.append(
                    f"{self._peer(row[1])} takes part from round {self._text(row[0])} ({self._text(row[2])} samples)"
                )
        return parts

    def directed(self) -> list[str]:
        """What a run's proposer directed, a line each; empty: the run goes on."""
        lines = [*self.changes(), *self.joined()]
        lines += [f"pause from round {self['paused_from']}"] if self.has("paused_from") else []
        return lines + ([f"stop at round {self['stop_at']}"] if self.has("stop_at") else [])

    def because(self, field: str = "reason") -> str:
        return f": {self[field]}" if self.has(field) else ""

    def everything(self) -> str:
        shown = [f"{_safe(str(name))}={self._text(value)}" for name, value in list(self._body.items())[:SHOWN_ITEMS]]
        return ", ".join(shown) or "no details"

    def _peer(self, value: Any) -> str:
        if not isinstance(value, str):
            return "?"
        return _safe(self._names[value]) if value in self._names else f"…{_safe(value[-SHORT_ID:])}"

    def _text(self, value: Any) -> str:
        if isinstance(value, bytes):
            value = value.hex()
        if isinstance(value, dict) and list(value) == [MARK]:
            return "(text not at hand)"
        if isinstance(value, list | dict):
            value = f"[{len(value)} items]"
        return _safe(str(value))


def _safe(text: str) -> str:
    cut = text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "…"
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in cut)


def _short(value: Any) -> str:
    text = value.hex() if isinstance(value, bytes) else value
    return _safe(text[:SHORT_ID]) if isinstance(text, str) else "?"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value.hex() if isinstance(value, bytes) else value


def _absent(words: _Words) -> str:
    who = words.peer() if words.has("peer") else "this site"
    if words.has("paused"):
        return f"{who} pauses before round {words['round']}{words.because()}"
    until = f" until round {words['until']}" if words.has("until") else ""
    return f"{who} absent from round {words['round']}{until}{words.because()}"


def _mixed(words: _Words) -> str:
    taken = f", {words.count('taken_back')} displacements taken back" if words.has("taken_back") else ""
    return f"mixed {words.place()} with {words.peers('edges')}{taken}"


def directive_lines(body: Mapping[str, Any], names: Mapping[str, str] = MappingProxyType({})) -> list[str]:
    """What a run's proposer directed, from an entry's body or a run's status; none of it: the run goes on."""
    return _Words(body, names).directed()


def _directed(words: _Words) -> str:
    return f"directive {words['version']}: {'; '.join(words.directed()) or 'the run goes on'}"


def _closed(words: _Words) -> str:
    missing = f", missing: {words.peers('missing')}" if words.has("missing") else ""
    finished = "finished" if words["finished"] == "True" else "not finished"
    rounds, model = words["rounds_done"], words.short("digest")
    return f"run closed, {finished}, {rounds} rounds, model {model}{missing}{words.because()}"


_LINES: Mapping[str, Callable[[_Words], str]] = MappingProxyType(
    {
        Kind.LOG_CREATED: lambda w: f"log of {w['log']} created, format {w['format']}",
        Kind.PEER_STARTED: lambda w: f"peer started{': ' + w['name'] if w.has('name') else ''}",
        Kind.RECOVERED: lambda w: f"recovered after a crash{w.because('what')}",
        Kind.CHARTER_ACCEPTED: lambda w: (
            f"charter {w.short('charter')} accepted" + (f", version {w['version']}" if w.has("version") else "")
        ),
        Kind.MEMBER_RECORD: lambda w: f"member record of {w.peer()}, number {w['sequence']}, told by {w.peer('from')}",
        Kind.DATA_REGISTERED: lambda w: f"data registered: tag {w['tag']}, {w['rows']} rows",
        Kind.LINK_UP: lambda w: f"link up with {w.peer()} over {w['kind']}",
        Kind.LINK_CHANGED: lambda w: f"link with {w.peer()} went over from {w['was']} to {w['kind']}",
        Kind.LINK_DOWN: lambda w: f"link down with {w.peer()}{w.because()}",
        Kind.PLAN_PROPOSED: lambda w: f"plan {w.short('plan')} proposed",
        Kind.PLAN_APPROVED: lambda w: f"plan {w.short('plan')} approved, {w['samples']} samples",
        Kind.START_SIGNED: lambda w: f"start record {w.short('record')} signed",
        Kind.RUN_STARTED: lambda w: (
            f"run started with {w.peers('participants')}; signed by {w.peers('signers')}, plan {w.short('plan')}"
        ),
        Kind.ROUND_STARTED: lambda w: f"round {w['round']} started{'' if w['active'] != 'False' else ', not active'}",
        Kind.DELTA_SENT: lambda w: (
            f"delta allowed out: {w.place()}, {w['bytes']} bytes to {w.peers('to')}, core {w.short('core')}"
        ),
        Kind.DELTA_RECEIVED: lambda w: f"delta received from {w.peer()}: {w.place()}, core {w.short('core')}",
        Kind.DELTA_IGNORED: lambda w: f"delta of {w.peer('origin')} ignored, round {w['round']}{w.because()}",
        Kind.REFUSED: lambda w: f"refused from {w.peer()}{w.because()}",
        Kind.EQUIVOCATION: lambda w: (
            f"{w.peer()} signed two different deltas for {w.place()}; both are kept as evidence"
        ),
        Kind.MIXED: _mixed,
        Kind.EDGE_UNSETTLED: lambda w: f"edge with {w.peer()} stays unsettled, {w.place()}",
        Kind.CAUGHT_UP: lambda w: (
            f"took in {w.count('states')} neighbours' states after {w['away']} rounds away, {w.place()}; "
            f"own weight {w['own']}{w.held_by_others()}"
        ),
        Kind.STATE_OFFERED: lambda w: (
            f"state of {w.peer('origin')} held here offered to {w.peer()}: {w.place()}, core {w.short('core')}"
        ),
        Kind.ABSENT: _absent,
        Kind.PAUSE_ASKED: lambda w: f"pause asked for, {w.place()}",
        Kind.PAUSE_ENDED: lambda w: f"pause ended, {w.place()}",
        Kind.ACKNOWLEDGED: lambda w: f"{w.peer()} acknowledged {w.count('cores')} deltas",
        Kind.STATE_STORED: lambda w: f"state stored for a restart ({w['stage']}), {w.place()}",
        Kind.DIRECTIVE_SIGNED: lambda w: f"signed {_directed(w)}",
        Kind.DIRECTIVE_HEARD: lambda w: f"the proposer's {_directed(w)}",
        Kind.RUN_CLOSED: _closed,
        Kind.CLOSING_HEARD: lambda w: (
            f"{w.peer()} closed the run, {'finished' if w['finished'] == 'True' else 'not finished'}, "
            f"{w['rounds_done']} rounds, model {w.short('digest')}"
        ),
        Kind.EPOCH_OPENED: lambda w: (
            f"epoch {w['epoch']} of this log opened: {w['kept']} entries kept, "
            f"lost up to {w.sizes('lost')}{w.because()}"
        ),
        Kind.LOSS_DECLARED: lambda w: f"lost as well, up to {w.sizes('lost')}{w.because()}",
        Kind.LOSS_WITNESSED: lambda w: (
            f"{w.peer()} declared a loss: of {w['held']} entries checked here it says to have kept {w['kept']}; "
            f"its log is in epoch {w['epoch']}"
        ),
        Kind.LOG_MISBEHAVIOUR: lambda w: (
            f"ALARM: the log of {w.peer()} contradicts itself ({w['claim']}); evidence in {w['file']}"
        ),
        Kind.HEAD_WITHHELD: lambda w: (
            f"{w.peer()} withholds its log: asked {w['asked']} times for its growth from size {w['size']}{w.because()}"
        ),
        Kind.KEEPING_BEGUN: lambda w: f"deltas of this run are kept from here on; {w['limit']} bytes for all runs",
        Kind.KEEPING_ENDED: lambda w: (
            f"kept deltas of the run {w.short('run')}, {w['bytes']} bytes, "
            f"{'are deleted' if w['deleted'] == 'True' else 'end here'}: {w['why']}"
        ),
        Kind.MODEL_WRITTEN: lambda w: f"model {w.short('digest')} written, file {w.short('file')}",
        Kind.TEXT_ERASED: lambda w: f"free text of {w.count('entries')} entries erased",
    }
)
