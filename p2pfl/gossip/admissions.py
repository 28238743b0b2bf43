"""Members that approved after the start: whether they can take part, and what the schedule is with them.

An admission is one more change of a directive (`p2pfl.gossip.directives`): the approval that the member signed, and the
round it takes part from. All shares follow anew from all samples,

    pi_i = samples_i / sum_j samples_j,

so those of the sites that were there shrink by one common factor. An edge of an earlier round keeps that round's graph
and weights; pi_i w_ij = pi_j w_ji holds for it under the new shares, too, and what settles late keeps the sum. Where a
topology has weights of its own, a site by which the others would not shrink alike is not admitted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from p2pfl.errors import ConfigError, RemoteError, SignatureRefused
from p2pfl.gossip.context import Context
from p2pfl.gossip.messages import MAX_PARTICIPANTS
from p2pfl.gossip.starting import schedule_of
from p2pfl.gossip.statements import Approval, open_approval, with_shares
from p2pfl.topology import Schedule
from p2pfl.types import PeerId, StartRecord

SAME_PROPORTION = 1e-9  # rounding of a few divisions


def with_newcomers(record: StartRecord, newcomers: Mapping[PeerId, Approval], order: Sequence[PeerId]) -> StartRecord:
    """The record with these members, too: participants in ``order``, shares from all samples."""
    rows = {item.peer_id: (item.samples, item.prekey) for item in record.participants}
    rows |= {peer: (approval.samples, approval.prekey) for peer, approval in newcomers.items()}
    return replace(record, participants=with_shares(rows, order))


@dataclass(slots=True)
class Admissions:
    """The admissions of the newest directive, checked and put into the context."""

    context: Context
    opened: dict[bytes, tuple[PeerId, Approval]] = field(default_factory=dict)  # verified approvals, by their bytes

    def open(self, data: bytes) -> tuple[PeerId, Approval]:
        """Who approved, and what. Raises RemoteError unless it is a member's approval of this run."""
        if data not in self.opened:
            envelope, approval = open_approval(data, self.context.verify)
            proposal = self.context.proposal
            if approval.run != proposal.run or approval.plan != proposal.plan:
                raise SignatureRefused("approval of another run or plan", peer=envelope.signer)
            if self.context.roster.member(envelope.signer) is None:
                raise SignatureRefused("approval by a key that the charter does not name", peer=envelope.signer)
            self.opened[data] = envelope.signer, approval
        return self.opened[data]

    def problem_of(self, approvals: Sequence[bytes]) -> str | None:
        """Why a directive cannot admit these members, in this order; None if it can."""
        newcomers: dict[PeerId, Approval] = {}
        for data in approvals:
            try:
                peer, approval = self.open(data)
            except RemoteError as error:
                return f"it admits on no valid approval: {error}"
            if peer in newcomers or peer in self.context.signed.shares:
                return "it admits a site that takes part already"
            newcomers[peer] = approval
            problem = self.problem(newcomers)
            if problem is not None:
                return problem
        return None

    def problem(self, newcomers: Mapping[PeerId, Approval]) -> str | None:
        """Why the run cannot take these members in beside those it began with; None if it can."""
        context = self.context
        if context.newcomer_problem is not None:
            return context.newcomer_problem
        grown = with_newcomers(context.signed, newcomers, context.roster.peer_ids)
        if len(grown.participants) > MAX_PARTICIPANTS:
            return f"a run has at most {MAX_PARTICIPANTS} participants"
        try:
            schedule = schedule_of(grown)
            schedule.round(0)
        except ConfigError as error:
            return f"its graph cannot be built with one more site: {error}"
        if not schedule.by_shares and not self._in_proportion(schedule, newcomers):
            return "with one more site its topology's weights would count the others in other proportions than before"
        return None

    def _in_proportion(self, grown: Schedule, newcomers: Mapping[PeerId, Approval]) -> bool:
        """Whether the last newcomer leaves the others' proportions: else corrections and late edges keep no sum."""
        others = dict(list(newcomers.items())[:-1])
        before = schedule_of(with_newcomers(self.context.signed, others, self.context.roster.peer_ids))
        law = dict(zip(grown.nodes, grown.law, strict=True))
        ratios = [law[node] / part for node, part in zip(before.nodes, before.law, strict=True)]
        return max(ratios) - min(ratios) <= SAME_PROPORTION * max(ratios)

    def follow(self) -> tuple[list[PeerId], list[PeerId]]:
        """Take up what the newest directive says; who takes part now and did not before, and the reverse."""
        context = self.context
        assert context.directive is not None
        before, training = context.running.shares, context.running_schedule.rounds
        records, newcomers = [context.signed], dict[PeerId, Approval]()
        for change in context.directive.changes:
            if change.approval:
                peer, approval = self.open(change.approval)
                newcomers[peer], context.prekeys[peer] = approval, approval.prekey
                records.append(with_newcomers(context.signed, newcomers, context.roster.peer_ids))
        holding = context.directive.admissions()
        context.admitted = len(holding)
        context.start = records[context.admitted]
        context.schedules = [*context.schedules[:1], *(schedule_of(item).stopped(training) for item in records[1:])]
        context.joined = {self.open(change.approval)[0]: change.from_round for change in holding}
        after = context.running.shares
        return [peer for peer in after if peer not in before], [peer for peer in before if peer not in after]
