"""The mixing of a run once more, from kept deltas and verified logs; with no key, on any machine.

Every number that goes in is checked first: the log's entry names a core by its digest, the core is signed by its
origin and names the digest of the vector that its delta rebuilds to. What comes out is compared with the digest in the
entry of the mixing. A round with two mixings that was left between them counts as one with the first alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from p2pfl.audit import LogFacts, Mixing, RunFacts
from p2pfl.errors import ConfigError, IllegalStep, RemoteError
from p2pfl.governance import Plan, accelerated
from p2pfl.peer.kept_files import ALTERED, Kept, Message, Missing, Which

if TYPE_CHECKING:
    from p2pfl.train.replay import Apart, SiteReplay

Verdict = Literal["reproduced", "departs", "not replayed"]


@dataclass(frozen=True, slots=True)
class Replayed:
    """One mixing: what became of it. ``delta`` is the one that ``why`` speaks of; ``tensor`` None: not known."""

    peer: str
    round: int
    step: int
    entry: int
    verdict: Verdict
    why: str = ""
    delta: Which | None = None
    tensor: str | None = None
    index: int | None = None  # within that tensor, counted flat
    logged: float | None = None
    replayed: float | None = None


@dataclass(slots=True)
class RunReplay:
    """A whole run; ``problem``: why nothing of it is replayed. ``model`` speaks of the model's own parameters."""

    run: str
    problem: str | None = None
    rows: list[Replayed] = field(default_factory=list)
    model: Verdict = "not replayed"

    @property
    def departs(self) -> bool:
        """Whether anything did not come out as the logs say."""
        return self.model == "departs" or any(row.verdict == "departs" for row in self.rows)


def replay_run(logs: Sequence[LogFacts], run: str, folders: Sequence[Path], owner: str, digest: str) -> RunReplay:
    """Replay every mixing of a run in these logs, each of which was verified before. Loads torch; runs no plan code.

    ``owner`` and ``digest`` are those of the model that is asked about.
    """
    from p2pfl.train.replay import why_not

    found = RunReplay(run)
    facts = {log.peer: log.runs[run] for log in logs if run in log.runs}
    try:
        kept = Kept(run, folders, facts)
        found.problem = why_not(kept.plan.session_settings(), accelerated=accelerated(kept.proposal.topology))
        if found.problem is None:
            for peer in sorted(facts):
                found.rows += _Site(kept, peer, facts[peer]).rows()
            found.model = _model(found.rows, facts[owner], owner, digest, kept.plan)
    except (RemoteError, ConfigError) as error:
        found.problem = str(error)
    return found


def _model(rows: Sequence[Replayed], facts: RunFacts, owner: str, digest: str, plan: Plan) -> Verdict:
    """The model is the end of its owner's mixings; where some parameters stay private, no digest can be compared."""
    own = [row for row in rows if row.peer == owner]
    if not own or own[-1].verdict != "reproduced":
        return "not replayed"
    if facts.mixings[-1].digest == digest:
        return "reproduced"
    private = plan.session_settings().get("batch_norm") == "private"
    return "not replayed" if private or any(row[0] > own[-1].entry for row in facts.caught_up) else "departs"


class _Site:
    """One site's log, from its first mixing to its last."""

    def __init__(self, kept: Kept, peer: str, facts: RunFacts) -> None:
        from p2pfl.train.replay import SiteReplay

        self._kept = kept
        self._peer = peer
        self._facts = facts
        self._replay: SiteReplay = SiteReplay(kept.plan.session_settings(), kept.base)
        self._received: dict[Which, dict[str, str]] = defaultdict(dict)
        for delta in facts.received.values():
            self._received[delta.peers[0], *delta.place][delta.channel] = delta.core
        self._sent: dict[tuple[int, int], dict[str, str]] = defaultdict(dict)
        for (round_, step, channel), core in facts.sent_at.items():
            self._sent[round_, step][channel] = core
        self._steps: dict[int, list[int]] = defaultdict(list)
        for mixing in facts.mixings:
            self._steps[mixing.round].append(mixing.step)
        own = [ranges for who, ranges in facts.contributed if who == peer]
        self._trained = own[0] if own else None  # None: it has not closed, so that is not known
        self._before: Mixing | None = None

    def rows(self) -> list[Replayed]:
        """One row for each mixing."""
        found = []
        for mixing in self._facts.mixings:
            since = -1 if self._before is None else self._before.entry
            if any(since < entry < mixing.entry for entry, *_ in self._facts.caught_up):
                self._replay.go_on(None)  # it had taken in others' states, which is not replayed
            row = self._row(mixing)
            if row.verdict != "reproduced":
                self._replay.go_on(self._kept.left(mixing.digest))
            found.append(row)
            self._before = mixing
        return found

    def _row(self, mixing: Mixing) -> Replayed:
        where = (self._peer, mixing.round, mixing.step, mixing.entry)
        try:
            apart = self._own(mixing)
            if apart is not None:
                return self._departs(mixing, apart, "its own message is not what its mixing before has left")
            digest = self._mix(mixing)
        except Missing as missing:
            return Replayed(*where, "not replayed", self._reason(missing, mixing.entry), missing.delta)
        except (RemoteError, IllegalStep) as error:
            return Replayed(*where, "not replayed", str(error))
        if mixing.digest is None:
            return Replayed(*where, "not replayed", "the log is older than digests of mixings: nothing to compare with")
        if digest == mixing.digest:
            return Replayed(*where, "reproduced")
        left = self._kept.left(mixing.digest) if mixing.step == self._steps[mixing.round][-1] else None
        apart = self._replay.compare(left) if left is not None else None
        return self._departs(mixing, apart, f"{digest[:16]} comes out, the log has {mixing.digest[:16]}")

    def _departs(self, mixing: Mixing, apart: Apart | None, why: str) -> Replayed:
        where = (self._peer, mixing.round, mixing.step, mixing.entry)
        if apart is None:
            return Replayed(*where, "departs", why)
        tensor, index = self._kept.name(apart.index)
        return Replayed(*where, "departs", why, None, tensor, index, apart.there, apart.replayed)

    def _reason(self, missing: Missing, entry: int) -> str:
        """Why a delta is not here, as far as this log says."""
        said = [what for position, what in self._facts.keeping if what == "deleted" or position < entry]
        if missing.why != "no delta" or not said or said[-1] == "begun":
            return missing.why
        return "no delta, deleted to make room" if said[-1] == "deleted" else "no delta, no more were kept by then"

    def _own(self, mixing: Mixing) -> Apart | None:
        """Take the own messages of this step, which are checked to follow from what was before where they must."""
        round_, step = place = mixing.round, mixing.step
        first = self._steps[round_][0] == step
        if round_ not in self._facts.begun:  # the last corrections, at the end of the run: nothing was sent
            if not self._replay.begun:
                raise Missing("what it started from is not known")
            return None
        if not self._sent[place]:
            raise Missing("it sent nothing in this round: its own message is not known")
        if not first and not self._replay.begun:
            raise Missing("the mixing before it in this round was not replayed")
        for channel, core in self._sent[place].items():
            self._take(core, (self._peer, *place), channel, partial(self._replay.send, channel))
        return self._replay.own(first=first, follows=self._follows(mixing, first))

    def _take(self, core: str, which: Which, channel: str, use: Callable[[Message], None]) -> None:
        """The first copy that rebuilds to what its origin has signed."""
        for message in self._kept.deltas(core, which, channel):
            try:
                use(message)
            except RemoteError:
                continue
            return
        raise Missing(ALTERED, which)

    def _follows(self, mixing: Mixing, first: bool) -> bool:
        """Whether nothing was trained since the mixing before."""
        if not first:
            return True
        if self._trained is None or self._before is None:
            return False
        last = self._before.round
        between = any(last < number < mixing.round for number in self._facts.begun)
        return not between and not any(start <= mixing.round <= end for start, end in self._trained)

    def _mix(self, mixing: Mixing) -> str:
        tags = [(peer, *place) for peer, _, place in mixing.edges]
        edges = []
        for tag, (peer, weight, _) in zip(tags, mixing.edges, strict=True):
            if not self._received[tag]:
                raise Missing("the log has no entry that it was received", tag)
            for channel, core in self._received[tag].items():
                self._take(core, tag, channel, partial(self._replay.receive, core, channel))
            edges.append((peer, weight, self._received[tag]))
        last = mixing.step == self._steps[mixing.round][-1]
        digest = self._replay.mix(tags, edges, mixing.taken_back, (mixing.round, mixing.step), last=last)
        self._replay.forget([tag for tag in tags if tag not in self._facts.taken_back])
        return digest
