"""What a machine remembers over a restart: the stored state of a run, written and read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from p2pfl.crypto import pack, sha256, unpack
from p2pfl.errors import RemoteError, StoreError
from p2pfl.gossip.closing import ClosingPart
from p2pfl.gossip.context import Context
from p2pfl.gossip.deliveries import Deliveries, Outgoing
from p2pfl.gossip.directives import Directives
from p2pfl.gossip.joining import OUTSIDE
from p2pfl.gossip.messages import Core, position_of
from p2pfl.gossip.presence import Presence
from p2pfl.gossip.returning import Returning
from p2pfl.gossip.rounds import Rounds
from p2pfl.gossip.starting import Starting, schedule_of
from p2pfl.gossip.table import State
from p2pfl.types import Digest, PeerId, RunId, StartRecord

STATE_FORMAT = 4
STATE_LIMIT = 64 << 20  # bytes; what 50 neighbours signed within the window is some 2 MB
STATE_ITEMS = 1 << 20
WITHOUT_STATE = "this peer was restarted without its stored state"


@dataclass(frozen=True, slots=True)
class Restored:
    """What a restarted peer knows of a run from its log: it stays absent for the rest of a run it had begun."""

    signed: Digest | None = None
    start: StartRecord | None = None
    rounds_done: int = 0
    outgoing: tuple[tuple[Digest, Core, frozenset[PeerId]], ...] = ()
    closed: bool = False
    state: bytes = b""  # what the machine remembered with its last commit; without it, it stays absent
    paused: bool | None = None  # by the user, as the log has it; None: as the stored state has it
    untouched: bool = False  # the run had begun, but nothing was stored or sent: it begins again
    holdings: tuple[bytes, ...] = ()  # announcements of the states held for others, whose contents are still here


@dataclass(slots=True)
class Memory:
    """The parts of one machine that outlive its process."""

    context: Context
    starting: Starting
    deliveries: Deliveries
    rounds: Rounds
    closing: ClosingPart
    returning: Returning
    presence: Presence
    directives: Directives
    digest: Digest | None = None  # of the state that was taken up

    def restore(self, restored: Restored) -> None:
        """The machine as the log, and the stored state if there is one, leave it."""
        self.starting.signed = restored.signed
        if restored.start is None:
            return
        context = self.context
        context.begin(restored.start, schedule_of(restored.start))
        context.pause_wanted = bool(restored.paused)
        context.asked = False
        kept = _read_state(restored.state, context.proposal.run) if restored.state else None
        if restored.state and kept is None:
            raise StoreError("the stored state of a run was written by another version; the peer stays absent from it")
        if kept is not None and kept["directive"]:
            self.directives.recall(kept["directive"])  # who takes part is as it was when the state was stored
        self.rounds.edges.prepare()
        self.rounds.rounds_done = restored.rounds_done
        for digest, core, waiting in restored.outgoing:
            self.deliveries.outgoing[digest] = Outgoing(core, set(waiting))
        self.deliveries.holding.recall(restored.holdings)
        takes_part = context.me in context.running.shares
        goes_on = takes_part and (bool(restored.state) or restored.untouched)
        why_not = WITHOUT_STATE if takes_part else OUTSIDE
        if not takes_part and not restored.untouched:
            context.barred = WITHOUT_STATE
        context.away_for_good = None if goes_on else why_not
        self.presence.listen(context.now)
        context.state = State.DONE if restored.closed else State.CATCHING_UP if goes_on else State.ABSENT
        self.closing.begun = self.closing.stated = restored.closed
        if kept is not None and takes_part:
            self._recall(kept)
            if context.state is State.CATCHING_UP:
                self.returning.stage, self.digest = kept["stage"], sha256(restored.state)
            if restored.paused is not None:
                context.pause_wanted = restored.paused
        elif restored.untouched and takes_part:
            self.returning.stage = "begun"

    def remember(self, stage: str) -> bytes:
        """All that a restart needs, as bytes; ``stage``: after which step."""
        context = self.context
        return pack(
            {
                "format": STATE_FORMAT,
                "run": context.proposal.run,
                "stage": stage,
                "position": list(context.position),
                "missing": {peer: list(row) for peer, row in context.missing.items()},
                "gone": sorted(context.gone),
                "arguments": [[round_, version] for round_, version in context.versions.items()],
                "training_rounds": context.running_schedule.rounds,
                "pause_wanted": context.pause_wanted,
                "directive": self.directives.envelope,
                "rounds": self.rounds.remember(),
                "deliveries": self.deliveries.remember(),
                "presence": self.presence.remember(),
            }
        )

    def _recall(self, kept: Mapping[str, Any]) -> None:
        context = self.context
        context.position = position_of(kept["position"])
        context.missing = {PeerId(peer): (row[0], row[1]) for peer, row in kept["missing"].items()}
        context.gone = {PeerId(peer) for peer in kept["gone"]}
        context.versions = dict(kept["arguments"])
        context.arguments = next(reversed(context.versions.values()), 0)
        if kept["training_rounds"] < context.running.rounds:
            context.stop_after(kept["training_rounds"])
        context.pause_wanted = kept["pause_wanted"]
        self.rounds.recall(kept["rounds"])
        self.deliveries.recall(kept["deliveries"])
        self.presence.recall(kept["presence"])


def readable_state(data: bytes, run: RunId) -> bool:
    """Whether stored bytes are a state of this run that this version can take up; if not, the peer stays absent."""
    return _read_state(data, run) is not None


def _read_state(data: bytes, run: RunId) -> dict[str, Any] | None:
    try:
        kept = unpack(data, what="stored state", limit=STATE_LIMIT, max_items=STATE_ITEMS)
    except RemoteError:
        return None
    readable = isinstance(kept, dict) and kept.get("format") == STATE_FORMAT and kept.get("run") == run
    return kept if readable else None
