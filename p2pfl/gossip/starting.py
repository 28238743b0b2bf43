"""From a proposal to a run: approvals, the start record, and the signatures of more than half the members.

Safety needs no consensus: a run id belongs to one proposer and one nonce, each member signs at most one start record
per run id, and two quorums of more than half share a member. If the proposer dies, one proposes anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from p2pfl.crypto import Envelope, Verify, verify_signature
from p2pfl.errors import (
    ConfigError,
    Equivocation,
    IllegalStep,
    MalformedMessage,
    NotAMember,
    RemoteError,
    SignatureRefused,
)
from p2pfl.gossip.context import Context
from p2pfl.gossip.effects import Flood
from p2pfl.gossip.statements import (
    Approval,
    Proposal,
    Start,
    StartSignature,
    decode_start,
    open_approval,
    participants_of,
    record_digest,
)
from p2pfl.topology import Schedule
from p2pfl.types import Digest, PeerId, StartRecord

START_MARGIN = 60.0  # seconds a start record may take to the members after the proposer's patience


@dataclass(slots=True)
class Starting:
    """The collection of approvals and signatures for one proposal."""

    context: Context
    signed: Digest | None = None  # the one start record this peer has signed, durably
    approvals: dict[PeerId, tuple[Approval, bytes]] = field(default_factory=dict)
    own_approval: Approval | None = None
    start_payload: bytes | None = None
    record: StartRecord | None = None
    record_digest: Digest | None = None
    signatures: dict[PeerId, Digest] = field(default_factory=dict)
    committing: bool = False
    made: bool = False  # the proposer has sent its start record, and never makes a second one
    waited: bool = False  # the margin for the start record's signatures is under way

    def proposed(self, waited: float = 0.0) -> None:
        """The proposal is known here; the proposer waits for approvals, but not for ever, and nobody for it.

        A restart does not begin the patience anew, but leaves neighbours the time to bring what came meanwhile.
        """
        patience = self.context.proposal.patience
        margin = 0.0 if self.context.proposal.proposer == self.context.me else START_MARGIN
        least = min(patience, START_MARGIN)
        self.context.set_timer("approvals", max(patience + margin - waited, least))

    # --- approvals

    def approve(self, samples: int, prekey: bytes) -> None:
        """The user says yes: durable first, then told to everybody."""
        context = self.context
        if self.own_approval is not None or context.me in self.approvals:
            raise IllegalStep("this peer has already approved the run; nothing more is needed")
        if samples < 1:
            raise ConfigError("an approval needs at least one training example; register data for the plan's tag")
        self.own_approval = Approval(context.proposal.run, context.proposal.plan, samples, prekey)
        context.log("plan_approved", {"plan": context.proposal.plan, "samples": samples})
        context.commit("approved")

    def approved(self) -> None:
        """The own approval is durable."""
        assert self.own_approval is not None
        self.context.emit(Flood("approval", self.own_approval.encode()))

    def hear_approval(self, envelope: Envelope, approval: Approval, data: bytes) -> None:
        """A member approves. Only one approval per member counts."""
        self.take_approval(envelope, approval, data)
        self.context.tell("approval", peer=envelope.signer, have=len(self.approvals))
        if set(self.approvals) == set(self.context.roster.peer_ids):
            self.make_start()

    def take_approval(self, envelope: Envelope, approval: Approval, data: bytes) -> bool:
        """Keep it; whether it is news. Raises RemoteError."""
        if approval.plan != self.context.proposal.plan:
            raise SignatureRefused("approval of another plan under this run's name", peer=envelope.signer)
        self._require_member(envelope.signer)
        known = self.approvals.get(envelope.signer)
        if known is not None and known[0] != approval:
            raise Equivocation("two different approvals for one run", peer=envelope.signer)
        self.approvals.setdefault(envelope.signer, (approval, data))
        return known is None

    def patience_over(self) -> None:
        """The proposer has waited long enough: start with those who approved, or give up; the others give up."""
        context = self.context
        if context.proposal.proposer == context.me and self.start_payload is None:
            self.make_start()
        elif self.start_payload is None:
            context.away_for_good = "its proposer did not start it in the time it gave; ask for a new proposal"
        elif not self.waited:
            self.waited = True
            context.set_timer("approvals", START_MARGIN)
        else:
            context.away_for_good = "too few members signed its start record in time; ask for a new proposal"

    def make_start(self) -> None:
        """The proposer turns the approvals it has into the start record."""
        context = self.context
        if context.proposal.proposer != context.me or self.start_payload is not None or self.made:
            return
        if len(self.approvals) < context.roster.minimum_participants:
            context.away_for_good = (
                f"only {len(self.approvals)} of {len(context.roster.members)} members approved in time, "
                f"{context.roster.minimum_participants} are needed; "
                "ask them and propose again"
            )
            return
        context.cancel_timer("approvals")
        try:
            approvals = {peer: approval for peer, (approval, _) in self.approvals.items()}
            participants = participants_of(context.proposal, approvals, context.roster.peer_ids)
            schedule_of(context.proposal.start_record(participants))  # not every topology takes all numbers and shares
        except ConfigError as error:
            context.away_for_good = f"those who approved cannot form the graph: {error}"
            context.set_timer("approvals", 0.0)  # nobody else will approve: the end of the patience gives it up
            return
        self.made = True  # before it comes back to us: another approval may be heard first
        ordered = [self.approvals[peer][1] for peer in context.roster.peer_ids if peer in self.approvals]
        context.emit(Flood("start", Start(context.proposal.run, tuple(ordered)).encode()))

    # --- start record

    def hear_start(self, envelope: Envelope, start: Start) -> None:
        """The proposer's start record: sign it, if it is the first one and holds what the approvers signed."""
        context = self.context
        if envelope.signer != context.proposal.proposer:
            raise SignatureRefused("start record not signed by its proposer", peer=envelope.signer)
        digest = record_digest(envelope.payload)
        if self.signed is not None and self.signed != digest:
            raise Equivocation("a second, different start record for one run", peer=envelope.signer)
        if self.record is not None:
            return
        self.record = self._check_record(start)
        self.start_payload, self.record_digest = envelope.payload, digest
        if self.signed is None:
            self.signed = digest
            context.log("start_signed", {"record": digest})
        context.commit("start-signed")

    def _check_record(self, start: Start) -> StartRecord:
        approvals: dict[PeerId, Approval] = {}
        for data in start.approvals:
            envelope, approval = open_approval(data, self.context.verify)
            self._require_member(envelope.signer)
            if approval.run != self.context.proposal.run or approval.plan != self.context.proposal.plan:
                raise SignatureRefused("start record holds an approval of another run", peer=envelope.signer)
            if envelope.signer in approvals:
                raise MalformedMessage("start record holds two approvals of one member", peer=envelope.signer)
            approvals[envelope.signer] = approval
        if len(approvals) < self.context.roster.minimum_participants:
            least = self.context.roster.minimum_participants
            raise MalformedMessage(f"start record with {len(approvals)} participants, the charter asks for {least}")
        participants = participants_of(self.context.proposal, approvals, self.context.roster.peer_ids)
        record = self.context.proposal.start_record(participants)
        try:
            schedule_of(record).round(0)
        except ConfigError as error:
            raise RemoteError(f"start record whose graph cannot be used: {error}") from error
        return record

    def start_signed(self) -> None:
        """The own signature is durable: tell everybody."""
        assert self.record_digest is not None
        payload = StartSignature(self.context.proposal.run, self.record_digest).encode()
        self.context.emit(Flood("start-signature", payload))

    def hear_signature(self, signer: PeerId, signature: StartSignature) -> None:
        """A member signed a start record; each signs at most one."""
        self._require_member(signer)
        known = self.signatures.setdefault(signer, signature.record)
        if known != signature.record:
            raise Equivocation("signatures under two different start records of one run", peer=signer)

    def begin_when_valid(self) -> None:
        """More than half of the members signed the record we hold: the run begins."""
        context = self.context
        if self.record is None or self.committing:
            return
        signers = [peer for peer, digest in self.signatures.items() if digest == self.record_digest]
        context.tell("signatures", have=len(signers), need=context.roster.quorum)
        if len(signers) < context.roster.quorum:
            return
        self.committing = True
        schedule = schedule_of(self.record)
        # with weights of its own a topology keeps another law than the samples', which audits hold mixings against
        law = [list(item) for item in zip(schedule.nodes, schedule.law, strict=True)]
        context.log(
            "run_started",
            {
                "record": self.record_digest,
                "plan": self.record.plan,
                "charter": self.record.charter,
                "initial": self.record.initial,
                "participants": [[item.peer_id, item.samples] for item in self.record.participants],
                "signers": sorted(signers),
                "staleness": self.record.staleness,
                **({} if schedule.by_shares else {"law": law}),
            },
            ("record", self.start_payload or b""),
        )
        context.commit("run-started")

    def _require_member(self, peer: PeerId) -> None:
        if self.context.roster.member(peer) is None:
            raise NotAMember("statement by a key that the charter does not name", peer=peer)


def record_from_payload(
    proposal: Proposal, payload: bytes, order: Sequence[PeerId], verify: Verify = verify_signature
) -> StartRecord:
    """The start record that a payload from the own log stands for; it was checked before it was logged."""
    approvals = {}
    for data in decode_start(payload).approvals:
        envelope, approval = open_approval(data, verify)
        approvals[envelope.signer] = approval
    return proposal.start_record(participants_of(proposal, approvals, order))


def schedule_of(record: StartRecord) -> Schedule:
    """The schedule every participant computes from the start record alone. Raises ConfigError."""
    nodes = tuple(participant.peer_id for participant in record.participants)
    return Schedule(record.topology, nodes, record.shares, record.rounds, record.closing_rounds, record.staleness)
