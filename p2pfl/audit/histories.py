"""Whether the histories that are compared are those that the witnesses saw at the time.

Each given log brings checkpoints: of other members' logs, as their owners showed them, and of its own. Two of one size
that differ are a fork by the owner's own signatures, whoever's log is here. Against a whole log each of them is held as
well: it must be its beginning, or be declared lost, by the rule that its witnesses judge by (`p2pfl.audit.growth`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from p2pfl.audit.cosigned import split_origin
from p2pfl.audit.facts import LogFacts
from p2pfl.audit.findings import Finding, Fork, History, Reconciliation, Sort
from p2pfl.audit.held import HeldNote
from p2pfl.audit.kinds import Kind
from p2pfl.audit.losses import Loss
from p2pfl.errors import ConfigError

Held = tuple[str, HeldNote]
"""Who has a checkpoint, and the checkpoint."""


def one_consortium(logs: Iterable[LogFacts]) -> None:
    """Raises ConfigError for logs of two: nothing in one of them is about the other."""
    names = sorted({split_origin(log.origin)[0] for log in logs if log.origin})
    if len(names) > 1:
        raise ConfigError(f"the logs are of different consortia ({', '.join(names)[:200]}); give those of one")


def compare_histories(logs: Mapping[str, LogFacts], outcome: Reconciliation) -> None:
    """Compare all checkpoints with each other, and each log with those of it that the others hold."""
    held: defaultdict[str, list[Held]] = defaultdict(list)
    for holder, brought in sorted(logs.items()):
        # one checkpoint counts once, whatever else is written on its note
        for note in {(note.origin, note.epoch, note.size, note.root): note for note in brought.held}.values():
            if note.log != holder:  # nobody is a witness of itself
                held[note.log].append((holder, note))
    for owner in sorted({*held, *logs}):
        log = logs.get(owner)
        _forks([*held[owner], *((owner, note) for note in (log.shown if log is not None else ()))], outcome)
        if log is None or log.part is not None:
            if held[owner]:
                outcome.not_judged[owner] += len(held[owner])
        elif log.origin:  # else the caller compares entries alone
            _History(log, logs, outcome).compare([row for row in held[owner] if row[1].size])


def _forks(rows: Iterable[Held], outcome: Reconciliation) -> None:
    """Of each log and epoch the first size at which two signed checkpoints differ, if there is any."""
    places: defaultdict[tuple[str, int], defaultdict[int, dict[bytes, Held]]]
    places = defaultdict(lambda: defaultdict(dict))
    for holder, note in rows:
        places[(note.origin, note.epoch)][note.size].setdefault(note.root, (holder, note))
    for _, sizes in sorted(places.items()):
        size = min((size for size, roots in sizes.items() if len(roots) > 1), default=None)
        if size is None:
            continue
        (one, first), (other, second) = list(sizes[size].values())[:2]
        text = f"has another signed checkpoint of {size} entries than"
        if one == other:
            text = f"has two different signed checkpoints of {size} entries"
        than = None if one == other else other
        outcome.findings.append(Finding(Sort.CONTRADICTORY, "", None, one, than, text, about=first.log))
        outcome.forks.append(Fork(first.log, first.origin, (first.note, second.note)))


class _History:
    """One whole log against the checkpoints of it that others hold."""

    def __init__(self, log: LogFacts, logs: Mapping[str, LogFacts], outcome: Reconciliation) -> None:
        self._log, self._logs, self._outcome = log, logs, outcome
        self._history = History(log.entries)
        self._beyond: dict[str, int] = {}  # holder: the largest size that was not given
        self._found: set[str] = set()  # holders of what does not fit

    def compare(self, rows: list[Held]) -> None:
        """Of each holder the smallest checkpoint that does not fit is told."""
        peer, outcome = self._log.peer, self._outcome
        for holder, note in sorted(rows, key=lambda row: (row[0], row[1].epoch, row[1].size)):
            if note.origin != self._log.origin:
                outcome.not_judged[note.log] += 1
            else:
                self._compare(holder, note)
        outcome.histories[peer] = self._history
        if self._beyond:
            outcome.parts[peer] = (0, self._log.entries - 1, max(self._beyond.values()))
            outcome.cut[peer] = tuple(self._beyond)
        elif not self._history.agreed and not self._found:
            outcome.unwitnessed.append(peer)

    def _compare(self, holder: str, note: HeldNote) -> None:
        log = self._log
        later = [loss for loss in log.losses if loss.epoch > note.epoch]
        covering = [loss for loss in later if loss.covers(note.epoch, note.size, note.root)]
        if log.roots.get(note.size) == note.root:
            self._history.agree(holder, note.size)
        elif note.size <= log.entries and note.size not in log.roots:  # the caller gave no roots: `gather_sources` does
            self._outcome.not_judged[note.log] += 1
        elif covering:
            self._outcome.explained[("checkpoints of another end of a log", "it declared the loss of that end")] += 1
            place = (log.peer, covering[0].entry)
            if place not in self._outcome.unseen and not any(map(self._was_seen, covering)):
                self._outcome.unseen.append(place)
        elif later:
            text = (
                f"holds a signed checkpoint of {note.size} entries, epoch {note.epoch}, that is neither in the log "
                "given nor covered by the loss it declares (link both sites, then copy again: who has lost it "
                "declares it, who has not leaves evidence); it is of the log of"
            )
            self._find(holder, Sort.UNEXPLAINED, text, (log.peer, later[-1].entry))
        elif (note.epoch, note.size) > (log.epoch or 0, log.entries):  # a later epoch begins with a declared loss
            self._beyond[holder] = max(note.size, self._beyond.get(holder, 0))
        else:
            text = f"holds a signed checkpoint of {note.size} entries, which are not the first ones of the log given of"
            self._find(holder, Sort.CONTRADICTORY, text)

    def _was_seen(self, loss: Loss) -> bool:
        """Whether a given log wrote down that it was shown this declaration, or one of its epoch that keeps less."""
        said = [body for peer, log in self._logs.items() if peer != self._log.peer for _, kind, body in log.said
                if kind == Kind.LOSS_WITNESSED and body["peer"] == self._log.peer]  # fmt: skip
        return any(body["epoch"] == loss.epoch and body["kept"] <= loss.kept for body in said)

    def _find(self, holder: str, sort: Sort, text: str, *entries: tuple[str, int]) -> None:
        if holder not in self._found:
            self._outcome.findings.append(Finding(sort, "", None, holder, self._log.peer, text, entries))
        self._found.add(holder)
