"""Whether the histories that are compared are those that the witnesses saw at the time."""

from __future__ import annotations

from collections.abc import Mapping

from p2pfl.audit.facts import LogFacts
from p2pfl.audit.findings import Finding, Notice, Reconciliation, Sort
from p2pfl.audit.held import HeldNote


def compare_histories(logs: Mapping[str, LogFacts], outcome: Reconciliation) -> None:
    """Compare each log's roots with the checkpoints of it that the others hold, signed by its owner."""
    for peer, log in sorted(logs.items()):
        for held in log.held:
            other = logs.get(held.log)
            if other is None or other.origin != held.origin or other.part is not None:
                outcome.not_judged[held.log] += 1
            else:
                _compare(peer, held, other, outcome)


def _compare(peer: str, held: HeldNote, other: LogFacts, outcome: Reconciliation) -> None:
    root = other.roots.get(held.size)
    if root == held.root:
        outcome.agreed["checkpoints that witnesses hold"] += 1
    elif any(loss.epoch > held.epoch and held.size > loss.kept for loss in other.losses):
        outcome.explained[("checkpoints of another end of a log", "it declared the loss of that end")] += 1
    elif held.size > other.entries:
        text = f"holds a checkpoint of {held.size} entries, and {other.entries} were given: copy again, of the log of"
        outcome.notices.append(Notice(peer, held.log, text, None))
        outcome.not_judged[held.log] += 1
    elif root is None:
        outcome.not_judged[held.log] += 1
    else:
        text = f"holds a signed checkpoint of {held.size} entries, which are not the first ones of the log given of"
        outcome.findings.append(Finding(Sort.CONTRADICTORY, "", None, peer, held.log, text))
