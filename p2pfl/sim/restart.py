"""From a disk to a machine: what a peer that starts reads from its log, by the same reading as `p2pfl.peer`."""

from __future__ import annotations

from dataclasses import dataclass, replace

from p2pfl.crypto import Verify
from p2pfl.gossip import ArgumentProblem, Machine, Proposal, read_log
from p2pfl.gossip.statements import Approval
from p2pfl.sim.disk import Disk
from p2pfl.types import PeerId, Roster


@dataclass(frozen=True, slots=True)
class Start:
    """A machine as its disk leaves it, and what it has to be shown first."""

    machine: Machine
    own: tuple[tuple[str, bytes], ...]  # own statements that the log vouches for: kind and payload
    armed: bool  # whether the run was approved here, so that a worker may train for it


def start_machine(
    disk: Disk,
    me: PeerId,
    roster: Roster,
    proposal: Proposal,
    prekey: bytes,
    verify: Verify,
    argument_problem: ArgumentProblem,
    tolerance: float | None,
) -> Start:
    """The machine for this disk; a fresh one if the disk is empty."""
    entries = ((row.kind, row.body, lambda row=row: row.documents[0][1]) for row in disk.entries)
    found = read_log(entries, proposal, roster, verify)
    name = disk.newest_state()
    state = disk.states[name] if name is not None else b""
    restored = found.restored(lambda digest, peers: digest in disk.contents, state)
    restored = replace(restored, holdings=tuple(held.announcement for held in disk.holdings.values()))
    machine = Machine(
        me,
        roster,
        proposal,
        sequence=found.sequence,
        restored=None if disk.proposed_at is None else restored,  # the proposal has only just come
        verify=verify,
        argument_problem=argument_problem,
        tolerance=tolerance,
    )
    own = list(found.statements)
    if found.approved is not None and (found.start is None or me not in found.start.shares):
        plan, samples = found.approved
        own.insert(0, ("approval", Approval(proposal.run, plan, samples, prekey).encode()))
    return Start(machine, tuple(own), found.approved is not None)
