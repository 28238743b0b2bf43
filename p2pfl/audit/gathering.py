"""Taking the facts of each run out of a log's entries. Reads no file.

A log may come from anybody, so nothing in a body is believed to have a type: an entry of a known kind that no version
writes like this is counted as unreadable, never raised.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from math import isfinite
from types import MappingProxyType
from typing import Any

from p2pfl.audit.facts import Away, Delta, LogFacts, Mixed, Mixing, RunFacts, Started
from p2pfl.audit.format import Entry
from p2pfl.audit.kinds import Kind
from p2pfl.audit.losses import lost_rounds, read_loss

MAX_ROUND = 1_000_000
"""No run has more rounds: a range in a hostile log must not fill the memory."""
MOST_WEIGHT = 2.0  # accelerated closing rounds mix with at most twice the weights of W, which are at most 1


def gather(peer: str, entries: Iterable[Entry], *, whole: bool = True) -> LogFacts:
    """The facts of one log, whose entries come in order; not ``whole`` if some are known to be left out.

    Memory grows with its deltas, not with their documents.
    """
    found = LogFacts(peer, whole=whole)
    first: dict[str, int] = {}
    for entry in entries:
        found.entries += 1
        if entry.kind == Kind.PEER_STARTED:
            name = entry.body.get("name")
            found.name = name if isinstance(name, str) else found.name
        charter, version = entry.body.get("charter"), entry.body.get("version")
        if entry.kind == Kind.CHARTER_ACCEPTED and isinstance(charter, str):
            found.charters[charter] = entry.position
            if type(version) is int:
                found.versions[charter] = version
        if entry.kind in (Kind.EPOCH_OPENED, Kind.LOSS_DECLARED):
            _lost(found, entry)
        if entry.kind in _OF_OTHER_LOGS:
            _said(found, entry)
        read, run = _READ.get(entry.kind), entry.body.get("run")
        if read is None or (run is None and entry.kind in (Kind.REFUSED, Kind.DATA_REGISTERED)):
            continue  # strangers are refused, and data may be registered, outside of any run
        if not isinstance(run, str):
            found.unreadable.append((entry.position, entry.kind))
            continue
        first.setdefault(run, entry.position)
        try:
            read(found.runs.setdefault(run, RunFacts(time=entry.time)), entry.position, _Body(entry.body))
        except _Unreadable:
            found.unreadable.append((entry.position, entry.kind))
    for name, facts in found.runs.items():
        begun, away = facts.beginnings, bool(facts.away)
        rows = [lost_rounds(loss, first[name], facts.closed_entry, away, begun) for loss in found.losses]
        facts.lost = [row for row in rows if row is not None]
    return found


def _lost(found: LogFacts, entry: Entry) -> None:
    loss = read_loss(entry.position, entry.time, entry.body, found.losses)
    if loss is None:
        found.unreadable.append((entry.position, entry.kind))
    else:
        found.losses.append(loss)


def _said(found: LogFacts, entry: Entry) -> None:
    """What the log says of another member's log; those kinds belong to no run."""
    body = entry.body
    numbers = {Kind.LOSS_WITNESSED: ("epoch", "kept", "held"), Kind.HEAD_WITHHELD: ("asked", "size")}
    sound = isinstance(body.get("peer"), str) and all(
        type(body.get(name)) is int for name in numbers.get(Kind(entry.kind), ())
    )
    if sound and (entry.kind != Kind.LOG_MISBEHAVIOUR or isinstance(body.get("claim"), str)):
        found.said.append((entry.position, entry.kind, body))
    else:
        found.unreadable.append((entry.position, entry.kind))


class _Unreadable(Exception):
    """A body has not the form that its kind has in any version."""


class _Body:
    """Fields of a body with the type that they must have."""

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self.fields = fields

    def text(self, name: str) -> str:
        return _text(self.fields.get(name))

    def number(self, name: str) -> int:
        return _number(self.fields.get(name))

    def rows(self, name: str) -> list[Any]:
        value = self.fields.get(name)
        if not isinstance(value, list):
            raise _Unreadable
        return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise _Unreadable
    return value


def _number(value: Any) -> int:
    if type(value) is not int:
        raise _Unreadable
    return value


def _weight(value: Any) -> float:
    if type(value) not in (int, float) or not isfinite(value):
        raise _Unreadable
    return float(value)


def _row(value: Any, least: int) -> list[Any]:
    if not isinstance(value, list) or len(value) < least:
        raise _Unreadable
    return value


def _proposed(run: RunFacts, entry: int, body: _Body) -> None:
    run.proposed = True


def _approved(run: RunFacts, entry: int, body: _Body) -> None:
    run.approved, run.approved_entry = (body.text("plan"), body.number("samples")), entry


def _data(run: RunFacts, entry: int, body: _Body) -> None:
    run.data.append((entry, body.text("tag"), body.text("fingerprint"), body.number("rows")))


def _model(run: RunFacts, entry: int, body: _Body) -> None:
    run.models.append((entry, body.text("digest"), body.text("file")))


def _kept(run: RunFacts, entry: int, body: _Body) -> None:
    run.keeping.append((entry, "begun"))


def _kept_no_longer(run: RunFacts, entry: int, body: _Body) -> None:
    run.keeping.append((entry, "deleted" if body.fields.get("deleted") is True else "ended"))


def _signed(run: RunFacts, entry: int, body: _Body) -> None:
    record = body.text("record")
    if run.signed not in (None, record):
        run.twice.append((entry, "a second start record signed"))
    run.signed = record


def _started(run: RunFacts, entry: int, body: _Body) -> None:
    rows = [_row(item, 2) for item in body.rows("participants")]
    staleness = body.fields.get("staleness", 0)
    samples = {_text(row[0]): _number(row[1]) for row in rows}
    told = [_row(item, 2) for item in body.rows("law")] if "law" in body.fields else []
    law = {_text(row[0]): _weight(row[1]) for row in told} or samples
    run.started = Started(
        entry, body.text("record"), body.text("plan"), body.text("charter"), body.text("initial"),
        samples, tuple(_text(item) for item in body.rows("signers")), _number(staleness), law,
    )  # fmt: skip


def _began(run: RunFacts, entry: int, body: _Body) -> None:
    round_ = body.number("round")
    run.begun.add(round_)
    run.beginnings.append((entry, round_))
    if run.away and run.away[-1].until is None:
        run.away[-1].until = max(round_, run.away[-1].first)


def _sent(run: RunFacts, entry: int, body: _Body) -> None:
    delta = Delta(
        entry, body.number("round"), body.number("step"), body.text("channel"), body.text("core"),
        tuple(_text(item) for item in body.rows("to")), body.number("sequence"),
    )  # fmt: skip
    known = run.sent_at.setdefault((delta.round, delta.step, delta.channel), delta.core)
    if known != delta.core or delta.sequence in run.sequences:
        run.twice.append((entry, f"two deltas sent for round {delta.round}, step {delta.step}, or under one number"))
    run.sequences.add(delta.sequence)
    run.sent[delta.core] = delta


def _received(run: RunFacts, entry: int, body: _Body) -> None:
    delta = Delta(
        entry, body.number("round"), body.number("step"), body.text("channel"), body.text("core"), (body.text("peer"),)
    )
    if delta.core in run.received:
        run.twice.append((entry, f"one delta received two times, round {delta.round}"))
    run.received[delta.core] = delta


def _ignored(run: RunFacts, entry: int, body: _Body) -> None:
    run.ignored[(body.text("origin"), body.number("round"))] = body.text("reason")


def _refused(run: RunFacts, entry: int, body: _Body) -> None:
    run.refused[body.text("peer")] = str(body.fields.get("reason", ""))


def _mixed(run: RunFacts, entry: int, body: _Body) -> None:
    here = body.number("round"), body.number("step")
    inertia = None if "inertia" not in body.fields else _weight(body.fields["inertia"])
    most = 1.0 if inertia is None else MOST_WEIGHT
    edges, taken = [], []
    for item in body.rows("edges"):
        row = _row(item, 2)
        place = (_number(row[2]), _number(row[3])) if len(row) > 3 else here
        key = (_text(row[0]), *place)
        if key in run.mixed:
            run.twice.append((entry, f"one edge mixed two times, round {place[0]}"))
        given = _weight(row[4]) if len(row) > 4 else None
        run.mixed[key] = Mixed(entry, _weight(row[1]), given, most)
        edges.append((key[0], _weight(row[1]), place))
    for item in body.rows("taken_back"):
        row = _row(item, 3)
        taken.append((_text(row[0]), _number(row[1]), _number(row[2])))
        run.taken_back[taken[-1]] = entry
    digest = None if "digest" not in body.fields else body.text("digest")
    run.mixings.append(Mixing(entry, *here, tuple(edges), tuple(taken), digest, inertia))


def _unsettled(run: RunFacts, entry: int, body: _Body) -> None:
    run.unsettled[(body.text("peer"), body.number("round"), body.number("step"))] = entry


def _absent(run: RunFacts, entry: int, body: _Body) -> None:
    round_, reason, until = body.number("round"), str(body.fields.get("reason", "")), body.fields.get("until")
    if "peer" in body.fields:
        if until is None:
            run.missed[body.text("peer")].append((round_, reason))
        else:
            run.passed[(body.text("peer"), round_)] = reason
        return
    run.away.append(Away(round_, None if until is None else _number(until), reason))


def _acknowledged(run: RunFacts, entry: int, body: _Body) -> None:
    for core in body.rows("cores"):
        run.acknowledged[(body.text("peer"), _text(core))] = entry


def _caught_up(run: RunFacts, entry: int, body: _Body) -> None:
    states = [_row(item, 4) for item in body.rows("states")]
    rows = tuple((_text(row[0]), _weight(row[1]), _number(row[2]), _text(row[3])) for row in states)
    run.caught_up.append((entry, body.number("round"), rows))


def _directive(body: _Body) -> tuple[int, Any]:
    return body.number("version"), [body.fields.get(name) for name in ("paused_from", "stop_at", "changes")]


def _directed(run: RunFacts, entry: int, body: _Body) -> None:
    version, facts = _directive(body)
    if version in run.directed and run.directed[version][1] != facts:
        run.twice.append((entry, f"directive {version} signed with two contents"))
    run.directed[version] = entry, facts


def _heard(run: RunFacts, entry: int, body: _Body) -> None:
    version, facts = _directive(body)
    run.heard[version] = entry, facts


def _accused(run: RunFacts, entry: int, body: _Body) -> None:
    run.accused.append((entry, body.text("peer"), body.number("round")))


def _closed(run: RunFacts, entry: int, body: _Body) -> None:
    rows = [_row(item, 2) for item in body.rows("contributed")]
    run.contributed = [(_text(row[0]), [_range(item) for item in _row(row[1], 0)]) for row in rows]
    body.number("unsettled"), body.number("rounds_done"), body.number("samples"), body.text("digest")
    run.closed, run.closed_entry = body.fields, entry


def _closing_heard(run: RunFacts, entry: int, body: _Body) -> None:
    body.number("unsettled"), body.number("rounds_done"), body.number("samples")
    body.text("digest"), body.text("contributed"), _weight(body.fields.get("distance"))
    if type(body.fields.get("finished")) is not bool:
        raise _Unreadable
    run.closings.setdefault(body.text("peer"), []).append((entry, body.fields))


def _range(value: Any) -> tuple[int, int]:
    row = _row(value, 2)
    first, last = _number(row[0]), _number(row[1])
    if not 0 <= first <= last <= MAX_ROUND:
        raise _Unreadable
    return first, last


_OF_OTHER_LOGS = (Kind.LOG_MISBEHAVIOUR, Kind.HEAD_WITHHELD, Kind.LOSS_WITNESSED)

_READ: Mapping[str, Callable[[RunFacts, int, _Body], None]] = MappingProxyType(
    {
        Kind.PLAN_PROPOSED: _proposed,
        Kind.PLAN_APPROVED: _approved,
        Kind.DATA_REGISTERED: _data,
        Kind.MODEL_WRITTEN: _model,
        Kind.KEEPING_BEGUN: _kept,
        Kind.KEEPING_ENDED: _kept_no_longer,
        Kind.START_SIGNED: _signed,
        Kind.RUN_STARTED: _started,
        Kind.ROUND_STARTED: _began,
        Kind.DELTA_SENT: _sent,
        Kind.DELTA_RECEIVED: _received,
        Kind.DELTA_IGNORED: _ignored,
        Kind.REFUSED: _refused,
        Kind.MIXED: _mixed,
        Kind.EDGE_UNSETTLED: _unsettled,
        Kind.ABSENT: _absent,
        Kind.ACKNOWLEDGED: _acknowledged,
        Kind.CAUGHT_UP: _caught_up,
        Kind.DIRECTIVE_SIGNED: _directed,
        Kind.DIRECTIVE_HEARD: _heard,
        Kind.EQUIVOCATION: _accused,
        Kind.RUN_CLOSED: _closed,
        Kind.CLOSING_HEARD: _closing_heard,
    }
)
