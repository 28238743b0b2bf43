"""What logs say of losses, and of each other's histories: told with every comparison, and compared where both are here.

A witness's entry about another log is its word; the evidence is a file of its own (`p2pfl audit check-evidence`).
"""

from __future__ import annotations

from collections.abc import Mapping

from p2pfl.audit.facts import LogFacts
from p2pfl.audit.findings import Finding, Notice, Reconciliation, Sort
from p2pfl.audit.kinds import Kind


def say_of_logs(logs: Mapping[str, LogFacts], outcome: Reconciliation) -> None:
    """Put into ``outcome`` what each log declares of itself, accuses others of, and has witnessed."""
    for peer, log in sorted(logs.items()):
        if log.damaged:
            text = f"has {log.damaged} damaged rows in its witness.db, which were left out"
            outcome.notices.append(Notice(peer, None, text, None))
        for loss in log.losses:
            others = sorted(other for other in logs if _witnessed(logs[other], peer, loss.epoch, loss.kept))
            by = (
                f"; {len(others)} of the given logs witnessed it" if others else "; none of the given logs witnessed it"
            )
            text = f"declares the loss of its entries {loss.kept} to {loss.size - 1}, epoch {loss.epoch}{by}"
            outcome.notices.append(Notice(peer, None, text, loss.entry))
            if log.epoch is not None and loss.epoch > log.epoch:
                text = f"declares a loss under epoch {loss.epoch}, and signs its checkpoints under epoch {log.epoch}"
                outcome.findings.append(Finding(Sort.CONTRADICTORY, "", None, peer, None, text, ((peer, loss.entry),)))
        for entry, kind, body in log.said:
            if kind == Kind.LOG_MISBEHAVIOUR:
                text = f"keeps evidence ({str(body['claim'])[:20]}) against the log of"
                outcome.findings.append(
                    Finding(Sort.CONTRADICTORY, "", None, peer, body["peer"], text, ((peer, entry),))
                )
            elif kind == Kind.HEAD_WITHHELD:
                text = f"asked {body['asked']} times in vain for the growth from size {body['size']} of the log of"
                outcome.notices.append(Notice(peer, body["peer"], text, entry))
            else:
                _loss_witnessed(logs, outcome, peer, entry, (body["peer"], body["epoch"], body["kept"]))


def _loss_witnessed(
    logs: Mapping[str, LogFacts], outcome: Reconciliation, peer: str, entry: int, said: tuple[str, int, int]
) -> None:
    other, epoch, kept = said
    outcome.notices.append(
        Notice(peer, other, f"witnessed a loss, {kept} entries kept, epoch {epoch}, of the log of", entry)
    )
    log = logs.get(other)
    if log is None or (log.part is not None and not log.losses):
        outcome.not_judged[other] += 1
    elif not any((loss.epoch, loss.kept) == (epoch, kept) for loss in log.losses):
        text = f"witnessed the loss of all but {kept} entries, epoch {epoch}, which is not, or not so, in the log of"
        outcome.findings.append(Finding(Sort.MISSING, "", None, peer, other, text, ((peer, entry),)))


def _witnessed(log: LogFacts, peer: str, epoch: int, kept: int) -> bool:
    rows = [body for _, kind, body in log.said if kind == Kind.LOSS_WITNESSED]
    return any((body["peer"], body["epoch"], body["kept"]) == (peer, epoch, kept) for body in rows)
