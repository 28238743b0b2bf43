"""Where a model came from: who contributed in which round with what weight, under which plan, charter and data.

The newest closing entry (or the file's own entry) with the model's digest names its run and its owner. From there the
mixings are followed backwards through all given logs. With v the weight of a site's parameters in the model, a mixing
x_i <- x_i + sum_j w_ij (m_j - x_i) gives

    v_j += w_ij v_i,    v_i *= 1 - sum_j w_ij,

so v_j before the mixing of round r is the weight of what j learnt in round r. That holds for synchronous runs in which
the model's channel is mixed linearly and nobody took states in; else (also where sums are relayed, or closing rounds
accelerated) only the edges' own weights are given.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from p2pfl.audit.facts import LogFacts, Place, RunFacts
from p2pfl.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Cited:
    """An entry that says what is listed."""

    peer: str
    position: int


@dataclass(slots=True)
class Contributor:
    """One member's part in the model; ``weights`` by round, empty where they cannot be told."""

    peer: str
    samples: int | None
    rounds: list[int] = field(default_factory=list)
    weights: dict[int, float] = field(default_factory=dict)
    data: list[tuple[str, str, int, Cited]] = field(default_factory=list)  # tag, fingerprint, rows
    approved: Cited | None = None
    has_log: bool = False


@dataclass(frozen=True, slots=True)
class Step:
    """One mixing that the model went through: ``edges`` are (member, weight)."""

    round: int
    step: int
    peer: str
    edges: tuple[tuple[str, float], ...]
    cited: Cited


@dataclass(slots=True)
class Lineage:
    """What the logs say of one model."""

    digest: str
    file: str | None
    owner: str
    run: str
    plan: str
    charter: str
    version: int | None
    record: str
    initial: str
    cited: list[Cited]
    contributors: list[Contributor]
    steps: list[Step]
    linear: bool
    not_here: list[str]


def lineage(logs: Sequence[LogFacts], digest: str) -> Lineage:
    """The lineage of the model with this digest, of its parameters or of its file; each log was verified before.

    Raises ConfigError if no given log knows it.
    """
    owner, run, parameters, file, cited = _find(logs, digest)
    facts = {log.peer: log.runs[run] for log in logs if run in log.runs}
    started = facts[owner].started
    if started is None:
        raise ConfigError("the log that knows this model does not say how its run began; give the whole log")
    log = next(item for item in logs if item.peer == owner)
    cited.append(Cited(owner, started.entry))
    if started.charter in log.charters:
        cited.append(Cited(owner, log.charters[started.charter]))
    plain = not started.staleness and not any(item.relayed() or item.accelerated for item in facts.values())
    plain = plain and all(edge.given is None for item in facts.values() for edge in item.mixed.values())
    linear = plain and not any(item.caught_up for item in facts.values())
    steps, weights, rounds = _backwards(facts, owner)
    known = sorted({owner, *rounds, *started.participants})
    contributors = [
        _contributor(peer, facts.get(peer), started.participants.get(peer), rounds, weights if linear else {})
        for peer in known
    ]
    return Lineage(
        parameters, file, owner, run, started.plan, started.charter, log.versions.get(started.charter), started.record,
        started.initial, cited, contributors, steps, linear, [peer for peer in known if peer not in facts],
    )  # fmt: skip


def _find(logs: Iterable[LogFacts], digest: str) -> tuple[str, str, str, str | None, list[Cited]]:
    """Owner, run, digest of the parameters, of the file if known, and the entries that say so."""
    for log in logs:
        for run, facts in log.runs.items():
            closed = None if facts.closed is None else facts.closed["digest"]
            written = [row for row in facts.models if digest in (row[1], row[2])]
            if not written and digest != closed:
                continue
            cited = [Cited(log.peer, row[0]) for row in written]
            if closed is not None:
                cited.append(Cited(log.peer, facts.closed_entry))
            parameters = written[0][1] if written else digest
            return log.peer, run, parameters, written[0][2] if written else None, cited
    raise ConfigError(f"none of these logs knows a model {digest[:16]}; give the log of the hospital that made it")


Edges = tuple[tuple[str, float], ...]
Weights = dict[str, dict[int, float]]


def _backwards(facts: dict[str, RunFacts], owner: str) -> tuple[list[Step], Weights, dict[str, set[int]]]:
    """The mixings on the way into the model, oldest first; weights and rounds by member."""
    kept = {peer: _edges_of(item) for peer, item in facts.items()}
    sent = {peer: {delta.round for delta in item.sent.values()} for peer, item in facts.items()}
    places = sorted({place for edges in kept.values() for place in edges}, reverse=True)
    present: dict[str, float] = {owner: 1.0}
    steps: list[Step] = []
    weights: Weights = defaultdict(dict)
    rounds: dict[str, set[int]] = defaultdict(set)
    for place in places:
        before = dict(present)
        for peer in sorted(present):
            edges = kept.get(peer, {}).get(place, ())
            if not edges:
                continue
            for other, weight in edges:
                before[other] = before.get(other, 0.0) + weight * present[peer]
                rounds[other].add(place[0])
            before[peer] -= present[peer] * sum(weight for _, weight in edges)
            entry = facts[peer].mixed[(edges[0][0], *place)].entry
            steps.append(Step(*place, peer, edges, Cited(peer, entry)))
        present = before
        for peer, weight in present.items():
            if place[0] in sent.get(peer, ()):
                rounds[peer].add(place[0])
            if place[0] in rounds[peer]:
                weights[peer][place[0]] = weight
    return steps[::-1], weights, rounds


def _edges_of(facts: RunFacts) -> dict[Place, Edges]:
    """The edges that stayed in a site's model, by the place of the messages; in peer-id order."""
    found: dict[Place, list[tuple[str, float]]] = defaultdict(list)
    relayed = facts.relayed()
    for (peer, round_, step), mixed in sorted(facts.mixed.items()):
        if (round_, step) in relayed or facts.net(peer, (round_, step)):
            found[(round_, step)].append((peer, mixed.weight))
    return {place: tuple(rows) for place, rows in found.items()}


def _contributor(
    peer: str, facts: RunFacts | None, samples: int | None, rounds: dict[str, set[int]], weights: Weights
) -> Contributor:
    trained = rounds.get(peer, set())
    own = [] if facts is None else [ranges for who, ranges in facts.contributed if who == peer]
    if own:  # its own closing says in which of these rounds it trained: the last ones only mix
        trained = {number for number in trained if any(first <= number <= last for first, last in own[0])}
    told = {number: weight for number, weight in sorted(weights.get(peer, {}).items()) if number in trained}
    found = Contributor(peer, samples, sorted(trained), told)
    if facts is not None:
        found.has_log = True
        found.data = [(tag, fingerprint, rows, Cited(peer, entry)) for entry, tag, fingerprint, rows in facts.data]
        found.approved = Cited(peer, facts.approved_entry) if facts.approved is not None else None
    return found
