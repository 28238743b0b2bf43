"""Comparing how logs say that a run was closed: each closing statement was signed, flooded, and heard by others.

So nobody can take its own back, or write another one down, without contradicting all who heard it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from p2pfl.audit.beginnings import Beginnings
from p2pfl.audit.facts import RunFacts
from p2pfl.audit.findings import Sort
from p2pfl.crypto import pack, sha256

MOST_RANGES = 64
"""Ranges of rounds that a closing statement names per site."""

SAME = ("finished", "rounds_done", "digest", "unsettled", "samples", "distance")
"""What "closing_heard" repeats of a statement as it is."""

CONTRIBUTED = "contributed"
"""... and what it has the digest of."""


class Closings(Beginnings):
    """Closing statements: each against its own log, and against what the others heard."""

    def compare_closings(self) -> None:
        """Find what the logs do not agree on at the end."""
        for peer in self.facts:
            self._own_closing(peer)
            self._heard(peer)

    def finished(self, peer: str) -> bool:
        """Whether a site closed the run with a model, by its own log or by a statement of it that another heard."""
        said = (body for facts in self.facts.values() for _, body in facts.closings.get(peer, ()))
        return self.facts[peer].finished or any(body["finished"] is True for body in said)

    def _own_closing(self, peer: str) -> None:
        facts = self.facts[peer]
        if facts.closed is None or peer not in self.whole:
            return
        here = (peer, facts.closed_entry)
        if facts.closed["unsettled"] != len(facts.unsettled) and not facts.lost:
            text = f"closed with {facts.closed['unsettled']} unsettled edges and wrote down {len(facts.unsettled)}"
            self._find(Sort.CONTRADICTORY, None, peer, text, None, here)
        samples = None if facts.started is None else facts.started.participants.get(peer)
        if samples not in (None, facts.closed["samples"]):
            text = f"closed with {facts.closed['samples']} samples, and had begun with {samples}"
            self._find(Sort.CONTRADICTORY, None, peer, text, None, here)
        for entry, digest, _ in facts.models:
            if facts.finished and digest != facts.closed["digest"]:
                text = "wrote a model to a file that is not the one it closed the run with"
                self._find(Sort.CONTRADICTORY, None, peer, text, None, (peer, entry), here)
        for other, ranges in facts.contributed:
            self._contribution(peer, other, ranges, here)

    def _contribution(self, peer: str, other: str, ranges: list[tuple[int, int]], here: tuple[str, int]) -> None:
        facts = self.facts[peer]
        did = {round_ for who, round_, _ in facts.mixed if who == other}
        if other == peer:
            did = {delta.round for delta in facts.sent.values()}
        # a statement has so many ranges at most, and closes the shortest gaps beyond that
        whole = len(ranges) < MOST_RANGES
        claimed = {round_ for first, last in ranges for round_ in (range(first, last + 1) if whole else (first, last))}
        wrong = {round_ for round_ in claimed - did if not facts.loss_of_received(round_)}
        if wrong:
            what = "of its own that it never sent" if other == peer else "that it never mixed, of"
            text = f"closed with a contribution {what}"
            named = None if other == peer else other
            self._find(Sort.CONTRADICTORY, min(wrong), peer, text, named, here)
        elif other != peer:
            self._agree("contributions")

    def _heard(self, peer: str) -> None:
        """The statements of others that this log has."""
        for signer, rows in self.facts[peer].closings.items():
            for entry, body in rows:
                first, (there, known) = next(
                    (other, facts.closings[signer][0])
                    for other, facts in self.facts.items()
                    if signer in facts.closings
                )
                if any(body[name] != known[name] for name in (*SAME, CONTRIBUTED)):
                    text = "heard another closing statement than is in another entry, of"
                    self._find(Sort.CONTRADICTORY, None, peer, text, signer, (peer, entry), (first, there))
                elif signer not in self.facts:
                    self.outcome.not_judged[signer] += 1
                else:
                    self._closed_as_heard(peer, entry, signer, body)

    def _closed_as_heard(self, peer: str, entry: int, signer: str, body: Mapping[str, Any]) -> None:
        facts = self.facts[signer]
        if facts.closed is not None:
            own = {**facts.closed, CONTRIBUTED: _digest(facts)}
            different = [name for name in (*SAME, CONTRIBUTED) if own.get(name) != body[name]]
            if not different:
                self._agree("closing statements")
                return
            text = f"heard a closing statement with another {', '.join(different)} than stands in the log of"
            self._find(Sort.CONTRADICTORY, None, peer, text, signer, (peer, entry), (signer, facts.closed_entry))
        elif facts.loss_of_end:
            self._explain_by_loss("closing statements that their log lost", signer, "closing")
        elif signer not in self.whole:
            self.outcome.not_judged[signer] += 1
        else:
            text = "heard a closing statement, of which nothing stands in the log of"
            self._find(Sort.MISSING, None, peer, text, signer, (peer, entry))


def _digest(facts: RunFacts) -> str:
    """What "closing_heard" has of the contributions."""
    return sha256(pack([[peer, [list(item) for item in ranges]] for peer, ranges in facts.contributed]))
