"""Edges of one run in two logs: both ends mixed a place, or neither did, and by amounts that keep the mean."""

from __future__ import annotations

from math import inf

from p2pfl.audit.closings import Closings
from p2pfl.audit.facts import WEIGHT_TOLERANCE, Mixed, Place
from p2pfl.audit.findings import Sort
from p2pfl.audit.losses import WINDOW


class Edges(Closings):
    """What the logs say of each edge."""

    def compare_edges(self, one: str, other: str) -> None:
        """Both ends mixed a place, or neither in the end; and their weights keep the mean over all samples."""
        here, there = self.facts[one], self.facts[other]
        places = {(round_, step) for peer, round_, step in here.mixed if peer == other}
        places |= {(round_, step) for peer, round_, step in there.mixed if peer == one}
        for place in sorted(places):
            mine, theirs = here.mixed.get((other, *place)), there.mixed.get((one, *place))
            if here.net(other, place) == there.net(one, place):
                self._agree("edges")
            elif not {one, other} <= self.whole:
                self.outcome.not_judged[other if one in self.whole else one] += 1
            else:
                self._unequal(one, other, place)
            if mine is not None and theirs is not None:
                self._amounts(one, other, place, mine, theirs)

    def _unequal(self, one: str, other: str, place: Place) -> None:
        mixer, idle = (one, other) if self.facts[one].net(other, place) else (other, one)
        mixed = self.facts[mixer].mixed[(idle, *place)]
        why = self._why_unequal(mixer, idle, place)
        if why is not None:
            self._explain("edges mixed at one end", why)
            return
        said = "took it back" if (mixer, *place) in self.facts[idle].mixed else "did not mix it"
        text = f"mixed this edge and kept it; it {said}, and no bias is recorded, says the log of"
        self._find(Sort.CONTRADICTORY, place[0], mixer, text, idle, (mixer, mixed.entry))

    def _why_unequal(self, mixer: str, idle: str, place: Place) -> str | None:
        if (idle, *place) in self.facts[mixer].unsettled or (mixer, *place) in self.facts[idle].unsettled:
            return "recorded as bias"
        for peer in (mixer, idle):
            if self.facts[peer].loss_of_received(place[0]):
                self.outcome.excused[peer].add((self.run, "mixed", place))
                return "the log of an end declares the loss of entries"
            # what lies further back than the window was settled, or written down as bias, while both were there
            if not self.finished(peer) and place[0] >= self.facts[peer].last_round - 2 * WINDOW:
                return "an end has not closed the run with a model"
        return None

    def _amounts(self, one: str, other: str, place: Place, mine: Mixed, theirs: Mixed) -> None:
        """What each end took is what the other gave; an end that does not say what it gave has given what it took."""
        if mine.directed != theirs.directed:
            says, silent, entry = (one, other, mine.entry) if mine.directed else (other, one, theirs.entry)
            text = "says what it gave up for this edge, as in a directed mixing; it was undirected, says the log of"
            self._find(Sort.CONTRADICTORY, place[0], says, text, silent, (says, entry))
        self._weights(one, other, place, mine.weight, theirs.gave)
        if mine.directed or theirs.directed:
            self._weights(other, one, place, theirs.weight, mine.gave)

    def _weights(self, one: str, other: str, place: Place, mine: float, theirs: float) -> None:
        """pi_i w_ij = pi_j w_ji, or pi_i w_ij = pi_j g_ji, with the law that the run began with."""
        started = self.facts[one].started or self.facts[other].started
        if started is None or not {one, other} <= set(started.law):
            return
        left, right = started.law[one] * mine, started.law[other] * theirs
        if abs(left - right) <= WEIGHT_TOLERANCE * max(left, right):
            self._agree("weights")
            return
        entries = ((one, self.facts[one].mixed[(other, *place)].entry),
                   (other, self.facts[other].mixed[(one, *place)].entry))  # fmt: skip
        text = f"mixed with the weight {mine:.9g}, which does not fit the {theirs:.9g} of"
        self._find(Sort.CONTRADICTORY, place[0], one, text, other, *entries)

    def _heavier(self, peer: str, other: str) -> float:
        """How many times as much as ``peer`` the other one counts; infinite where the start of the run does not say."""
        started = self.facts[peer].started
        law = started.law if started is not None else {}
        return law[other] / law[peer] if other in law and law.get(peer, 0) > 0 else inf
