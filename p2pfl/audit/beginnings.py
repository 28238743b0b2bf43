"""Comparing how several logs say that a run began; and what all comparisons of one run have in common."""

from __future__ import annotations

from collections.abc import Mapping

from p2pfl.audit.facts import LogFacts, RunFacts
from p2pfl.audit.findings import Finding, Reconciliation, Sort

LOSS = "that log declares the loss of entries"


class OneRun:
    """One run in all the given logs."""

    def __init__(self, run: str, logs: Mapping[str, LogFacts], outcome: Reconciliation) -> None:
        self.run = run
        self.logs = logs
        self.facts = {peer: log.runs.get(run, RunFacts()) for peer, log in sorted(logs.items())}
        self.outcome = outcome
        # what an export of some entries lacks may stand in the others
        self.whole = {peer for peer, log in logs.items() if log.whole}
        self.staleness = max((item.started.staleness for item in self.facts.values() if item.started), default=0)

    def _find(
        self, sort: Sort, round_: int | None, peer: str, text: str, other: str | None = None, *entries: tuple[str, int]
    ) -> None:
        self.outcome.findings.append(Finding(sort, self.run, round_, peer, other, text, entries))

    def _agree(self, what: str) -> None:
        self.outcome.agreed[what] += 1

    def _explain(self, what: str, why: str) -> None:
        self.outcome.explained[(what, why)] += 1

    def _explain_by_loss(self, what: str, peer: str, *entry: object) -> None:
        """One entry, named by what it is, that the log of ``peer`` lacks; how many there are is compared in the end."""
        self._explain(what, LOSS)
        self.outcome.excused[peer].add((self.run, *entry))


class Beginnings(OneRun):
    """Start records, the signatures under them, and the approvals in them."""

    def compare_beginnings(self) -> None:
        """Find what the logs do not agree on before the first round."""
        self._strangers()
        self._beginnings()

    def _strangers(self) -> None:
        """A log that should know the run and has nothing of it is one finding, not one per message."""
        for peer in [peer for peer, facts in self.facts.items() if facts.empty]:
            del self.facts[peer]
            other, entry = self._says_it_was_there(peer)
            if other is None:
                continue
            if peer not in self.whole:
                self.outcome.not_judged[peer] += 1
                continue
            if any(loss.may_have_taken(self.facts[other].time) for loss in self.logs[peer].losses):
                self._explain_by_loss("logs without the run", peer, "run")
                continue
            text = "names as taking part in the run, of which nothing stands in the log of"
            self._find(Sort.MISSING, None, other, text, peer, (other, entry))

    def _says_it_was_there(self, peer: str) -> tuple[str | None, int]:
        for other, facts in self.facts.items():
            if facts.started is not None and peer in (*facts.started.participants, *facts.started.signers):
                return other, facts.started.entry
        return None, -1

    def _beginnings(self) -> None:
        started = {peer: item.started for peer, item in self.facts.items() if item.started is not None}
        reference = next(iter(started.items()), None)
        if reference is None:
            return
        first, begun = reference
        for peer, other in started.items():
            for name in ("record", "plan", "charter", "initial", "participants", "staleness"):
                if getattr(other, name) != getattr(begun, name):
                    entries = ((peer, other.entry), (first, begun.entry))
                    self._find(
                        Sort.CONTRADICTORY, None, peer, f"began the run with another {name} than", first, *entries
                    )
            self._agree("start records")
            for signer in other.signers:
                self._signature(peer, other.record, signer, other.entry)
        for peer, samples in begun.participants.items():
            self._participant(first, begun.entry, peer, samples, begun.plan)

    def _signature(self, peer: str, record: str, signer: str, entry: int) -> None:
        facts = self.facts.get(signer)
        if facts is None:
            self.outcome.not_judged[signer] += 1
        elif facts.signed is None and facts.loss_of_beginning:
            self._explain_by_loss("signatures that their log lacks", signer, "signature")
        elif facts.signed is None and signer in self.whole:
            text = "counts a signature under the start record that is not in the log of"
            self._find(Sort.MISSING, None, peer, text, signer, (peer, entry))
        elif facts.signed not in (None, record):
            text = "counts a signature under the start record, but another record was signed by"
            self._find(Sort.CONTRADICTORY, None, peer, text, signer, (peer, entry))
        else:
            self._agree("signatures")

    def _participant(self, first: str, entry: int, peer: str, samples: int, plan: str) -> None:
        facts = self.facts.get(peer)
        if facts is None:
            self.outcome.not_judged[peer] += 1
        elif facts.approved is None:
            if facts.loss_of_beginning:
                self._explain_by_loss("approvals that their log lacks", peer, "approval")
            elif peer in self.whole:
                text = "has a start record with an approval that is not in the log of"
                self._find(Sort.MISSING, None, first, text, peer, (first, entry))
        elif facts.approved != (plan, samples):
            text = "has a start record with another plan or number of samples than approved by"
            self._find(Sort.CONTRADICTORY, None, first, text, peer, (first, entry))
        else:
            self._agree("approvals")
