"""What a run's end says at one site: the report that is stored beside the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from p2pfl.gossip import Machine
from p2pfl.peer.runner import Runner
from p2pfl.types import PeerId, Roster


def completion(machine: Machine, roster: Roster) -> dict[str, Any]:
    """What all sites' closing statements say together; it grows while statements come in."""
    names = {member.peer_id: member.name for member in roster.members}
    closing = machine.closing
    rows = [{"peer": peer, "name": names.get(peer, ""), **row} for peer, row in closing.record().items()]
    return {"outcome": closing.outcome(), "completion": rows, "agreement": closing.agreement()}


def report_of(
    runner: Runner, me: PeerId, name: str, roster: Roster, home_metrics: Mapping[str, float], bytes_sent: int
) -> dict[str, Any]:
    """The report of a run whose own part is over; ``home_metrics`` are of the test rows at home."""
    machine = runner.machine
    closing, rounds = machine.closing, machine.rounds
    names = {member.peer_id: member.name for member in roster.members}
    start, law = machine.context.running, machine.context.law
    own = closing.statement or closing.statements.get(me)  # the second: after a restart
    missing = {peer: (since, why) for peer, since, why in (own.missing if own else ())}
    # a site that was cut off names its neighbours, who know better
    there = {peer for peer, said in closing.statements.items() if said.rounds_done == rounds.rounds_done}
    there.add(me)
    missing = {**{peer: row for peer, row in closing.named_missing.items() if peer not in there}, **missing}
    return {
        "run": start.run,
        "plan": start.plan,
        "charter": start.charter,
        "initial": start.initial,
        "peer": me,
        "name": name,
        "participants": [
            {
                "peer": item.peer_id,
                "name": names.get(item.peer_id, ""),
                "samples": item.samples,
                "share": item.share,
                "counts": law[item.peer_id],
                "joined": machine.context.joined.get(item.peer_id),
            }
            for item in start.participants
        ],
        "rounds_done": rounds.rounds_done,
        "finished": own is not None and own.finished,
        "away": None if own is not None and own.finished else machine.context.away_for_good,
        "digest": own.digest if own is not None and own.finished else None,
        **completion(machine, roster),
        "consensus_distance": rounds.distance,
        "loss": rounds.loss,
        "unsettled": rounds.edges.biased,
        "missing": [
            {"peer": peer, "name": names.get(peer, ""), "from_round": since, "reason": why}
            for peer, (since, why) in sorted(missing.items())
        ],
        "at_home": dict(home_metrics),
        "bytes_sent": bytes_sent,
        "timings": {name: getattr(runner.timings, name) for name in runner.timings.__slots__},
        "counters": dict(machine.context.counters),
    }
