"""Comparing the logs of several hospitals: whether what one wrote is what the others wrote.

Each log alone proves only that its owner signed it. Two logs of one run overlap in every delta, every edge and every
statement, so a lie, or an entry taken away before signing, disagrees with a partner who had no part in it.
Only the given logs are judged; what would need another one is counted as not judged. A message that never arrived is
ordinary: it is *explained* where one of the two ends wrote down why.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations

from p2pfl.audit.beginnings import LOSS
from p2pfl.audit.edges import Edges
from p2pfl.audit.facts import Delta, LogFacts, RunFacts
from p2pfl.audit.findings import Finding, Reconciliation, Sort
from p2pfl.audit.histories import compare_histories, one_consortium
from p2pfl.audit.losses import most_lost
from p2pfl.audit.sayings import say_of_logs
from p2pfl.errors import ConfigError

ENDS_THERE = "the receiver's log of this run ends there, without a closing entry"


def reconcile(logs: Iterable[LogFacts]) -> Reconciliation:
    """Compare logs, each verified before. Raises ConfigError for two logs of one peer, or of two consortia."""
    by_peer: dict[str, LogFacts] = {}
    for log in logs:
        if log.peer in by_peer:
            raise ConfigError(f"two of the given logs are of {log.peer}; give the newer one alone")
        by_peer[log.peer] = log
    one_consortium(by_peer.values())
    outcome = Reconciliation(parts={peer: log.part for peer, log in by_peer.items() if log.part is not None})
    say_of_logs(by_peer, outcome)
    compare_histories(by_peer, outcome)
    for peer, log in sorted(by_peer.items()):
        for position, kind in log.unreadable:
            text = f"entry {position} is a {kind} in a form that no version writes"
            outcome.findings.append(Finding(Sort.UNEXPLAINED, "", None, peer, None, text, ((peer, position),)))
    outcome.runs = sorted({run for log in by_peer.values() for run in log.runs})
    for run in outcome.runs:
        _Run(run, by_peer, outcome).compare()
    for peer, excused in sorted(outcome.excused.items()):
        losses = by_peer[peer].losses
        if len(excused) > most_lost(losses):
            text = f"lacks {len(excused)} entries that others mirror, which is more than its declared losses name"
            places = tuple((peer, loss.entry) for loss in losses)
            outcome.findings.append(Finding(Sort.UNEXPLAINED, "", None, peer, None, text, places))
    return outcome


class _Run(Edges):
    """One run in all the logs."""

    def compare(self) -> None:
        self.compare_beginnings()
        for peer in self.facts:
            self._own(peer)
            self._received(peer)
            self._sent(peer)
            self._states(peer)
            self._directives(peer)
        self.compare_closings()
        for one, other in combinations(self.facts, 2):
            self.compare_edges(one, other)

    # --- one log against itself

    def _own(self, peer: str) -> None:
        facts = self.facts[peer]
        for entry, text in facts.twice:
            self._find(Sort.CONTRADICTORY, None, peer, text, None, (peer, entry))
        for entry, accused, round_ in facts.accused:
            text = "keeps evidence of two different signed messages for one place, of"
            self._find(Sort.CONTRADICTORY, round_, peer, text, accused, (peer, entry))
        directed = [mixed.entry for mixed in facts.mixed.values() if mixed.directed]
        if 0 < len(directed) < len(facts.mixed):
            text = (
                "says of some edges what it gave up, as in directed mixings, and of others not, as in undirected ones"
            )
            self._find(Sort.CONTRADICTORY, None, peer, text, None, (peer, directed[0]))
        taken = {(item.peers[0], item.round, item.step) for item in facts.received.values()}
        for key, mixed in facts.mixed.items():
            if key not in taken:
                text = "mixed a message that this log does not say was received, of"
                self._find(Sort.CONTRADICTORY, key[1], peer, text, key[0], (peer, mixed.entry))
            if not mixed.sound(self._heavier(peer, key[0])):
                text = f"mixed with the weight {mixed.weight:.6g}, which no mixing has, with"
                self._find(Sort.CONTRADICTORY, key[1], peer, text, key[0], (peer, mixed.entry))
        for key, entry in facts.taken_back.items():
            if key not in facts.mixed and peer in self.whole and not facts.loss_of_received(key[1]):
                text = "took back what it had not mixed, with"
                self._find(Sort.CONTRADICTORY, key[1], peer, text, key[0], (peer, entry))
        for (other, core), entry in facts.acknowledged.items():
            if core not in facts.sent and peer in self.whole and not facts.lost:
                text = "has an acknowledgement of a message that its log does not say was sent, by"
                self._find(Sort.MISSING, None, peer, text, other, (peer, entry))

    # --- deltas

    def _received(self, peer: str) -> None:
        for delta in self.facts[peer].received.values():
            (origin,) = delta.peers
            if origin not in self.facts:
                self.outcome.not_judged[origin] += 1
                continue
            sent = self.facts[origin].sent.get(delta.core)
            here = (peer, delta.entry)
            if sent is None:
                self._never_sent(peer, origin, delta)
            elif (sent.place, sent.channel) != (delta.place, delta.channel):
                text = f"received under another place what was sent for round {sent.round}, step {sent.step} by"
                self._find(Sort.CONTRADICTORY, delta.round, peer, text, origin, here, (origin, sent.entry))
            elif peer not in sent.peers:
                text = "received a message that was not for it, of"
                self._find(Sort.CONTRADICTORY, delta.round, peer, text, origin, here, (origin, sent.entry))
            else:
                self._agree("deltas received as sent")

    def _never_sent(self, peer: str, origin: str, delta: Delta) -> None:
        if self.facts[origin].loss_of(delta.round):
            self._explain_by_loss("deltas that their origin's log lost", origin, "sent", delta.core)
            return
        if origin not in self.whole:
            self.outcome.not_judged[origin] += 1
            return
        other = self.facts[origin].sent_at.get((delta.round, delta.step, delta.channel))
        text = f"received a message (core {delta.core[:12]}) that was never sent, says the log of"
        sort = Sort.MISSING
        if other is not None:
            text, sort = "received another message for this place than the one sent by", Sort.CONTRADICTORY
        self._find(sort, delta.round, peer, text, origin, (peer, delta.entry))

    def _sent(self, peer: str) -> None:
        for delta in self.facts[peer].sent.values():
            for reader in delta.peers:
                if reader not in self.facts:
                    self.outcome.not_judged[reader] += 1
                elif delta.core in self.facts[reader].received:
                    continue
                elif reader not in self.whole:
                    self.outcome.not_judged[reader] += 1
                else:
                    self._not_received(peer, reader, delta)

    def _not_received(self, peer: str, reader: str, delta: Delta) -> None:
        states, lacking = {row[3] for _, _, rows in self.facts[reader].caught_up for row in rows}, reader
        why = "taken as a whole state instead" if delta.core in states else self._why_not(reader, peer, delta.round)
        entry = self.facts[peer].acknowledged.get((reader, delta.core))
        if why == ENDS_THERE and entry is not None:
            text = "has an acknowledgement of a message that it had received, of which nothing stands in the log of"
            self._find(Sort.MISSING, delta.round, peer, text, reader, (peer, entry))
            return
        if why is None and (peer, *delta.place) not in self.facts[reader].mixed and not self._took(peer, reader, delta):
            # it was told that the other end had not mixed, and did not mix either
            why, lacking = self._why_not(peer, reader, delta.round), peer
        if why == LOSS:
            self._explain_by_loss("deltas not taken", lacking, "received", delta.core)
            return
        if why is not None:
            self._explain("deltas not taken", why)
            return
        text = "sent a message that was not received, ignored or refused, nor an absence written, by"
        self._find(Sort.MISSING, delta.round, peer, text, reader, (peer, delta.entry))

    def _took(self, peer: str, reader: str, delta: Delta) -> bool:
        return self.facts[peer].net(reader, delta.place)

    def _why_not(self, peer: str, origin: str, round_: int) -> str | None:
        """Why ``peer`` did not take what ``origin`` made for a round, by its own log; None if that says nothing."""
        facts = self.facts[peer]
        if (origin, round_) in facts.ignored:
            return f"ignored: {facts.ignored[(origin, round_)]}"
        if (origin, round_) in facts.passed:
            return f"mixed without it: {facts.passed[(origin, round_)]}"
        if origin in facts.refused:
            return "refused"
        if any(row.first <= round_ and (row.until is None or round_ < row.until) for row in facts.away):
            return "the receiver was absent"
        if self._missed(facts, origin, round_):
            return "the receiver waited in vain, and wrote it down"
        if facts.begun and round_ < min(facts.begun):
            return "the receiver had not joined yet"
        if facts.loss_of_received(round_):
            return LOSS
        if facts.closed is None and round_ >= facts.last_round:
            return ENDS_THERE
        if facts.closed is not None and round_ > facts.last_round:
            return "the receiver had closed the run"
        if self.staleness:
            return "asynchronous run: nobody waits, and what is overtaken is not mixed"
        return None

    def _missed(self, facts: RunFacts, origin: str, round_: int) -> bool:
        """Whether the newest absence of a neighbour still held: it ends with the next delta that was mixed."""
        since = max((first for first, _ in facts.missed.get(origin, ()) if first <= round_), default=None)
        if since is None:
            return False
        back = min((row[1] for row in facts.mixed if row[0] == origin and row[1] >= since), default=round_)
        return back >= round_

    # --- states, directives, the end

    def _states(self, peer: str) -> None:
        for entry, round_, rows in self.facts[peer].caught_up:
            for origin, _, made_in, core in rows:
                if origin not in self.facts:
                    self.outcome.not_judged[origin] += 1
                    continue
                sent = self.facts[origin].sent.get(core)
                if sent is not None and sent.round == made_in:
                    self._agree("states taken")
                elif not self.facts[origin].loss_of(made_in) and origin in self.whole:
                    text = "caught up with a state that was never sent, says the log of"
                    self._find(Sort.CONTRADICTORY, round_, peer, text, origin, (peer, entry))

    def _directives(self, peer: str) -> None:
        """Only the proposer directs; a log that does not have the proposal shows itself by its directives."""
        proposed = [other for other, facts in self.facts.items() if facts.proposed]
        directors = [other for other, facts in self.facts.items() if facts.directed]
        if peer in directors and {peer} != {*(proposed or directors)}:
            other = next(item for item in (*proposed, *directors) if item != peer)
            text = "directed the run, which one site alone may do; so did, or might,"
            self._find(Sort.CONTRADICTORY, None, peer, text, other)
        for version, (entry, facts) in self.facts[peer].heard.items():
            for proposer in proposed or directors:
                own = self.facts[proposer].directed.get(version)
                if own is not None and own[1] == facts:
                    self._agree("directives")
                elif not self.facts[proposer].lost and proposer in self.whole:
                    text = f"heard a directive {version} that is not, or not so, in the log of the proposer"
                    self._find(Sort.CONTRADICTORY, None, peer, text, proposer, (peer, entry))
