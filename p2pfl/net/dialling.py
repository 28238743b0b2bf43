"""Keeping wanted links up, over the cheapest way that works: ways, back-off, candidates heard by discovery."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Collection

from p2pfl.errors import LinkError, P2PFLError
from p2pfl.net.limits import Limits
from p2pfl.net.outcomes import AlreadyLinkedError
from p2pfl.net.racing import Race
from p2pfl.net.ways import KnownWays, Way
from p2pfl.types import PeerId, Roster

Connect = Callable[[str, PeerId | None], Awaitable[PeerId]]
"""(address, expected member or None) -> who answered, with the link up. P2PFLError says why not."""

_JITTER = 0.25
_DUPLICATE_TRIES = 5  # 3 s in all with the default back-off: several round trips for a close to be noticed

_log = logging.getLogger("p2pfl.net")


class Dialler:
    """Dials what is wanted until it is linked. One attempt per peer at a time, however many ask for it.

    ``cost`` tells what the link to a peer costs, None without one; ``can_be_dialled`` whether members can be
    expected to dial us at no cost.
    """

    def __init__(
        self,
        known: KnownWays,
        connect: Connect,
        cost: Callable[[PeerId], int | None],
        roster: Callable[[], Roster],
        limits: Limits,
        *,
        can_be_dialled: Callable[[], bool],
    ) -> None:
        self._known = known
        self._connect = connect
        self._cost = cost
        self._roster = roster
        self._limits = limits
        self._can_be_dialled = can_be_dialled
        self._keepers: dict[PeerId, asyncio.Task[None]] = {}
        self._attempts: dict[PeerId, asyncio.Task[None]] = {}
        self._races: set[Race] = set()
        self._wakes: dict[PeerId, asyncio.Event] = {}
        self._failures: dict[PeerId, str] = {}
        self._tried: dict[PeerId, list[Way]] = {}  # in the last attempt
        self._explorer: asyncio.Task[None] | None = None
        self._explore_wake = asyncio.Event()
        self._jitter = random.Random()

    def want(self, peers: Collection[PeerId]) -> None:
        """From now on keep links to exactly these up; links to others stay but are not renewed."""
        loop = asyncio.get_running_loop()
        for peer in [peer for peer in self._keepers if peer not in peers]:
            self._keepers.pop(peer).cancel()
            if peer in self._attempts:
                self._attempts[peer].cancel()
        for peer in peers:
            if peer not in self._keepers:
                self._keepers[peer] = loop.create_task(self._keep(peer))
        if self._explorer is None:
            self._explorer = loop.create_task(self._explore())
        self._explore_wake.set()

    def candidate(self, address: str) -> None:
        """Remember a heard address; the oldest makes room. One that is known keeps its history."""
        if self._known.hear(address):
            self._explore_wake.set()

    def changed(self, peer: PeerId) -> None:
        """The link to ``peer`` came up or went down, or its record changed."""
        self._wake(peer).set()
        for race in self._races:
            if race.peer == peer:
                race.wake()
        self._explore_wake.set()

    def why_not(self, peer: PeerId) -> str:
        """The last failure to reach ``peer`` with every way that was tried, or what is being waited for."""
        if peer in self._failures:
            return self._failures[peer]
        ways = self._known.to(peer)
        if not ways:
            return self._known.no_address(peer)
        trying = any(race.peer == peer for race in self._races)
        return f"{'trying' if trying else 'not tried yet:'} {', '.join(map(str, ways))}"

    async def dial(self, peer: PeerId) -> None:
        """One attempt over all known ways, shared with others who ask. LinkError names each and its fault."""
        if self._is_linked(peer):
            return
        task = self._attempts.get(peer)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._attempt(peer))
            self._attempts[peer] = task
            task.add_done_callback(lambda done: self._attempt_done(peer, done))
        try:
            await asyncio.shield(task)  # one caller's cancelling must not stop the others
        except asyncio.CancelledError:
            own = asyncio.current_task()
            if not task.cancelled() or (own is not None and own.cancelling()):
                raise  # it is this caller that is cancelled
            raise LinkError(f"dialling {peer} was given up: it is no longer wanted, or we stopped") from None

    def _attempt_done(self, peer: PeerId, task: asyncio.Task[None]) -> None:
        self._attempts.pop(peer, None)
        if not task.cancelled():
            task.exception()  # seen: every caller may have been cancelled

    async def stop(self) -> None:
        """End all dialling."""
        tasks = [*self._keepers.values(), *self._attempts.values()]
        if self._explorer is not None:
            tasks.append(self._explorer)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._keepers.clear()
        self._explorer = None

    def _wake(self, peer: PeerId) -> asyncio.Event:
        return self._wakes.setdefault(peer, asyncio.Event())

    async def _keep(self, peer: PeerId) -> None:
        """Dial whenever the link is down; a link that lived only for a moment does not reset the back-off."""
        longest = self._limits.redial_longest
        delay = 0.0
        while True:
            if await self._while_up(peer) > longest:
                delay = 0.0
            await self._pause(self._wake(peer), delay * (1 + self._jitter.uniform(0, _JITTER)))
            delay = min(max(2 * delay, self._limits.redial_first), longest)
            try:
                await self.dial(peer)
            except P2PFLError:
                pass  # kept for why_not

    async def _while_up(self, peer: PeerId) -> float:
        """How many seconds the link was up from now on; 0 when it is down. Meanwhile look for cheaper ways.

        They are tried again with back-off; at once when others have become known.
        """
        loop, wake, limits = asyncio.get_running_loop(), self._wake(peer), self._limits
        start = loop.time()
        pause = limits.upgrade_first
        due, known = start + pause, self._tried.get(peer, [])
        while self._is_linked(peer):
            wake.clear()
            cheaper = self._cheaper(peer)
            if not set(cheaper) <= set(known):
                due, pause = loop.time(), limits.upgrade_first
            known = cheaper
            if not cheaper:
                await wake.wait()
            elif loop.time() < due:
                await self._pause(wake, due - loop.time())
            else:
                await self._upgrade(peer, cheaper)
                due = loop.time() + pause * (1 + self._jitter.uniform(0, _JITTER))
                pause = min(2 * pause, limits.upgrade_longest)
        return loop.time() - start

    def _cheaper(self, peer: PeerId) -> list[Way]:
        """Ways that cost less than the live link."""
        cost = self._cost(peer)
        return [] if cost is None else [way for way in self._known.to(peer) if way.cost < cost]

    async def _upgrade(self, peer: PeerId, cheaper: list[Way]) -> None:
        """Try to replace the live link; over as soon as it has been, or has gone."""
        bound = self._cost(peer)

        def over() -> bool:
            cost = self._cost(peer)
            return cost is None or bound is None or cost < bound

        race = Race(peer, cheaper, lambda way: self._try(way, peer, over), over, self._limits)
        if not await self._run(race):
            _log.debug("the link to %s stays as it is: %s", peer, "; ".join(race.faults))

    async def _pause(self, wake: asyncio.Event, seconds: float) -> None:
        wake.clear()
        try:
            async with asyncio.timeout(seconds):
                await wake.wait()
        except TimeoutError:
            pass

    def _is_linked(self, peer: PeerId) -> bool:
        return self._cost(peer) is not None

    async def _attempt(self, peer: PeerId) -> None:
        ways = self._tried[peer] = self._known.to(peer)

        def over() -> bool:
            return self._is_linked(peer)

        race = Race(
            peer, ways, lambda way: self._try(way, peer, over), over, self._limits, head_start=self._head_start(peer)
        )
        if await self._run(race):
            self._failures.pop(peer, None)
            return
        plain = any(way.cost == 0 for way in ways)
        self._failures[peer] = "; ".join([*([] if plain else [self._known.no_address(peer)]), *race.faults])
        raise LinkError(f"cannot reach {peer}: {self._failures[peer]}")

    async def _run(self, race: Race) -> bool:
        self._races.add(race)
        try:
            return await race.run()
        finally:
            self._races.discard(race)

    def _head_start(self, peer: PeerId) -> float:
        """A member without a port dials us over a plain connection, if it can: it gets the time for that."""
        member = self._roster().member(peer)
        expected = member is not None and not member.listens and self._can_be_dialled()
        return self._limits.dearer_after if expected else 0.0

    async def _try(self, way: Way, peer: PeerId, over: Callable[[], bool]) -> None:
        try:
            await self._connect_or_wait(way, peer, over)
        except P2PFLError:
            self._known.failed(way.address)
            raise
        if not over():
            raise LinkError("the link closed again at once")

    async def _connect_or_wait(self, way: Way, peer: PeerId, over: Callable[[], bool]) -> None:
        """The other side may say that a link stands: its welcome is on the way over another connection.

        Or it has not noticed yet that the old link has gone: then the next try finds that out.
        """
        wake = self._wake(peer)
        # a dearer connection takes longer to come about, and an introducer is asked for each try
        step = self._limits.redial_first if way.cost == 0 else self._limits.dearer_after / 2
        for number in range(1, _DUPLICATE_TRIES + 1):
            try:
                await self._connect(way.address, peer)
                return
            except AlreadyLinkedError:
                if not over():
                    await self._pause(wake, number * step)
            if over():
                return
        raise LinkError(f"{way.address} still holds an earlier link to us; it notices within seconds, try again")

    async def _explore(self) -> None:
        """Try heard addresses of unknown owners while one may lead to a wanted listening member that is not
        linked, or linked over a dearer way.
        """
        loop = asyncio.get_running_loop()
        while True:
            self._explore_wake.clear()
            due = [(next_try, way.address) for next_try, way in self._known.unproven() if self._may_help(way)]
            if not due:
                await self._explore_wake.wait()
                continue
            next_try, address = min(due)
            if next_try > loop.time():
                await self._pause(self._explore_wake, next_try - loop.time())
                continue
            await self._explore_one(address)

    def _may_help(self, way: Way) -> bool:
        roster = self._roster()
        for peer in self._keepers:
            member, cost = roster.member(peer), self._cost(peer)
            if member is not None and member.listens and (cost is None or way.cost < cost):
                return True
        return False

    async def _explore_one(self, address: str) -> None:
        try:
            owner = await self._connect(address, None)
        except AlreadyLinkedError as found:
            owner = found.peer
        except P2PFLError:
            self._known.failed(address)
            return
        self._known.proved(address, owner)
        self._wake(owner).set()
