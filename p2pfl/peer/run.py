"""The public handle of one run at one peer."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from p2pfl.errors import ConfigError, IllegalStep, P2PFLError
from p2pfl.gossip import State, events
from p2pfl.peer.runner import Runner
from p2pfl.types import PeerId

if TYPE_CHECKING:
    from torch import nn

    from p2pfl.governance import Plan

EVENTS_KEPT = 1024  # for a reader that is slower than the run; the oldest are dropped


@dataclass(frozen=True, slots=True)
class RunEvent:
    """Something that happened in a run: a topic ("round", "mixed", "missing", "closed", ...) and its facts."""

    topic: str
    facts: Mapping[str, Any]


class Run:
    """One run, as this peer sees it. Got from `Peer.propose`, `Peer.join` or `Peer.run`."""

    def __init__(self, runner: Runner, plan: Plan) -> None:
        self._runner = runner
        self.plan = plan
        self.id: str = runner.machine.context.proposal.run
        self._readers: list[tuple[deque[RunEvent], asyncio.Event]] = []
        self._history: deque[RunEvent] = deque(maxlen=EVENTS_KEPT)
        self._over = asyncio.Event()
        self._failure: P2PFLError | None = None
        self._model: bytes | None = None
        self._report: dict[str, Any] | None = None

    @property
    def proposer(self) -> PeerId:
        """Who proposed the run."""
        return self._runner.machine.context.proposal.proposer

    @property
    def topology(self) -> Mapping[str, Any]:
        """The spec of the graph and of its weights, as proposed."""
        return self._runner.machine.context.proposal.topology

    @property
    def state(self) -> State:
        """Where this peer stands in the run."""
        return self._runner.machine.state

    def status(self) -> dict[str, Any]:
        """State, round, who is missing and why, counters."""
        return dict(self._runner.machine.status())

    async def events(self) -> AsyncIterator[RunEvent]:
        """All events from the beginning (the newest 1,024) until this peer's part is over."""
        queue, wake = deque(self._history, maxlen=EVENTS_KEPT), asyncio.Event()
        entry = (queue, wake)
        self._readers.append(entry)
        try:
            while True:
                while queue:
                    yield queue.popleft()
                if self._over.is_set():
                    return
                wake.clear()
                await wake.wait()
        finally:
            self._readers.remove(entry)

    async def finished(self) -> None:
        """Wait until this peer's part is over and its result is stored. Raises what stopped it, if anything did."""
        await self._over.wait()
        if self._failure is not None:
            raise self._failure

    async def result(self) -> nn.Module:
        """The trained model as a torch module, once the run is over. The plan's code runs in this process."""
        await self.finished()
        from p2pfl.train.loading import load_model

        return load_model(self.plan.source, await self.model_file())

    async def model_file(self) -> bytes:
        """The trained model as safetensors bytes, once the run is over.

        Raises ConfigError when this peer has no model, because it was absent for the rest of the run.
        """
        await self.finished()
        if self._model is None:
            problem = self._report and self._report.get("problem")
            away = problem or self._runner.machine.context.away_for_good or "it did not take part"
            raise ConfigError(f"this peer has no model of run {self.id[:12]}: {away}; ask a partner for theirs")
        return self._model

    def report(self) -> dict[str, Any]:
        """Who contributed, who was missing and since when, the digest, the consensus distance, metrics at home."""
        if self._report is None:
            raise ConfigError(f"run {self.id[:12]} is not over yet; wait for it with `await run.finished()`")
        return self._report

    def pause(self) -> None:
        """Stop before the next round; the others go on."""
        self._runner.do(events.Pause(self._runner.now()))

    def resume(self) -> None:
        """Go on after a pause."""
        self._runner.do(events.Resume(self._runner.now()))

    def direct(
        self,
        word: Literal["pause", "resume", "stop", "change"],
        arguments: Mapping[str, int | float] | None = None,
        *,
        from_round: int | None = None,
    ) -> dict[str, Any]:
        """Direct the whole run, as its proposer: pause or resume it for everybody, stop it, or change arguments.

        It holds from ``from_round``, by default two after the one most sites are in, so that all hear of it in time.
        It is signed, written down and told to all members. Returns what was directed. Raises PolicyRefusal at any
        other site, IllegalStep while the run is not under way, ConfigError for what the plan or an earlier stop does
        not allow.
        """
        if self.state is State.PROPOSING:
            raise IllegalStep(f"run {self.id[:12]} is {self.state}; only a run that is under way can be directed")
        self._runner.do(events.Direct(self._runner.now(), word, arguments or {}, from_round))
        directives = self._runner.machine.directives
        assert directives.waiting is not None
        return {"run": self.id, "version": directives.waiting.version, **directives.facts(directives.waiting)}

    def leave(self, reason: str = "left by the user") -> None:
        """Take no further part in this run."""
        self._runner.do(events.Leave(self._runner.now(), reason))

    # --- called by the peer

    def tell(self, topic: str, facts: Mapping[str, Any]) -> None:
        """Hand an event to all readers."""
        event = RunEvent(topic, facts)
        self._history.append(event)
        for queue, wake in self._readers:
            queue.append(event)
            wake.set()

    def renew(self, report: dict[str, Any]) -> None:
        """A statement came in after the end: the completion record has grown."""
        if self._report is not None:
            self._report = report

    def end(self, model: bytes | None, report: dict[str, Any], failure: P2PFLError | None = None) -> None:
        """This peer's part is over."""
        if self._over.is_set():
            return
        self._model, self._report, self._failure = model, report, failure
        self._over.set()
        for _, wake in self._readers:
            wake.set()
