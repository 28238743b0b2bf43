"""Keeping wanted links up: addresses, back-off, and candidates heard by discovery."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass

from p2pfl.errors import LinkError, P2PFLError
from p2pfl.net.limits import Limits
from p2pfl.net.outcomes import AlreadyLinkedError, name_of
from p2pfl.types import PeerId, Roster

Connect = Callable[[str, PeerId | None], Awaitable[PeerId]]
"""(address, expected member or None) -> who answered, with the link up. P2PFLError says why not."""

_JITTER = 0.25
_DUPLICATE_TRIES = 5  # 3 s in all with the default back-off: several round trips for a close to be noticed


@dataclass(slots=True)
class _Candidate:
    """An address heard by discovery. ``owner`` is known after the first hello over it."""

    failures: int = 0
    next_try: float = 0.0  # loop time
    owner: PeerId | None = None


class Dialler:
    """Dials what is wanted until it is linked. One attempt per peer at a time, however many ask for it."""

    def __init__(
        self,
        connect: Connect,
        is_linked: Callable[[PeerId], bool],
        roster: Callable[[], Roster],
        handles: Callable[[str], bool],
        limits: Limits,
    ) -> None:
        self._connect = connect
        self._is_linked = is_linked
        self._roster = roster
        self._handles = handles
        self._limits = limits
        self._keepers: dict[PeerId, asyncio.Task[None]] = {}
        self._attempts: dict[PeerId, asyncio.Task[None]] = {}
        self._wakes: dict[PeerId, asyncio.Event] = {}
        self._failures: dict[PeerId, str] = {}
        self._candidates: dict[str, _Candidate] = {}
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
        if address in self._candidates or not self._handles(address):
            return
        while len(self._candidates) >= self._limits.candidates:
            del self._candidates[next(iter(self._candidates))]
        self._candidates[address] = _Candidate()
        self._explore_wake.set()

    def changed(self, peer: PeerId) -> None:
        """The link to ``peer`` came up or went down, or its record changed."""
        self._wake(peer).set()
        self._explore_wake.set()

    def why_not(self, peer: PeerId) -> str:
        """The last failure to reach ``peer``, or what is being waited for."""
        if peer in self._failures:
            return self._failures[peer]
        return self._cannot_dial(peer) or "not tried yet"

    async def dial(self, peer: PeerId) -> None:
        """One attempt over all known addresses, shared with others who ask. LinkError says why it failed."""
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
            if await self._until_down(peer) > longest:
                delay = 0.0
            await self._pause(self._wake(peer), delay * (1 + self._jitter.uniform(0, _JITTER)))
            delay = min(max(2 * delay, self._limits.redial_first), longest)
            try:
                await self.dial(peer)
            except P2PFLError:
                pass  # kept for why_not

    async def _until_down(self, peer: PeerId) -> float:
        """How many seconds the link was up from now on; 0 when it is down."""
        loop, wake = asyncio.get_running_loop(), self._wake(peer)
        start = loop.time()
        while self._is_linked(peer):
            wake.clear()
            await wake.wait()
        return loop.time() - start

    async def _pause(self, wake: asyncio.Event, seconds: float) -> None:
        wake.clear()
        try:
            async with asyncio.timeout(seconds):
                await wake.wait()
        except TimeoutError:
            pass

    def _addresses(self, peer: PeerId) -> list[str]:
        """The member record's own addresses first, then heard ones that proved to be its."""
        member = self._roster().member(peer)
        known = [address for address in member.addresses if self._handles(address)] if member else []
        heard = [address for address, candidate in self._candidates.items() if candidate.owner == peer]
        return list(dict.fromkeys(known + heard))

    def _cannot_dial(self, peer: PeerId) -> str | None:
        member = self._roster().member(peer)
        if member is None:
            return f"{peer} is not a member of this charter"
        if self._addresses(peer):
            return None
        if not member.listens:
            return f"{name_of(member)} has no listening port: it dials us; is it up, and our port reachable?"
        return (
            f"no address of {name_of(member)} is known: its member record has none and discovery heard none; "
            "put its address into its member record"
        )

    async def _attempt(self, peer: PeerId) -> None:
        problem = self._cannot_dial(peer)
        faults: list[str] = []
        for address in [] if problem else self._addresses(peer):
            try:
                await self._connect_or_wait(address, peer)
            except P2PFLError as error:
                faults.append(str(error))
                self._count_failure(address)
            if self._is_linked(peer):
                self._failures.pop(peer, None)
                return
        self._failures[peer] = problem or "; ".join(faults) or "the link closed again at once"
        raise LinkError(f"cannot reach {peer}: {self._failures[peer]}")

    async def _connect_or_wait(self, address: str, peer: PeerId) -> None:
        """The other side may say that a link stands: its welcome is on the way over another connection.

        Or it has not noticed yet that the old link has gone: then the next try finds that out.
        """
        wake = self._wake(peer)
        for number in range(1, _DUPLICATE_TRIES + 1):
            try:
                await self._connect(address, peer)
                return
            except AlreadyLinkedError:
                if not self._is_linked(peer):
                    await self._pause(wake, number * self._limits.redial_first)
            if self._is_linked(peer):
                return
        raise LinkError(f"{address} still holds an earlier link to us; it notices within seconds, try again")

    async def _explore(self) -> None:
        """Try heard addresses of unknown owners while some wanted listening member is not linked."""
        loop = asyncio.get_running_loop()
        while True:
            self._explore_wake.clear()
            due = [
                (candidate.next_try, address)
                for address, candidate in self._candidates.items()
                if candidate.owner is None
            ]
            if not due or not self._missing():
                await self._explore_wake.wait()
                continue
            next_try, address = min(due)
            if next_try > loop.time():
                await self._pause(self._explore_wake, next_try - loop.time())
                continue
            await self._explore_one(address)

    def _missing(self) -> list[PeerId]:
        members = [self._roster().member(peer) for peer in self._keepers]
        return [
            member.peer_id
            for member in members
            if member is not None and member.listens and not self._is_linked(member.peer_id)
        ]

    async def _explore_one(self, address: str) -> None:
        try:
            owner = await self._connect(address, None)
        except AlreadyLinkedError as found:
            owner = found.peer
        except P2PFLError:
            self._count_failure(address)
            return
        if address in self._candidates:
            self._candidates[address].owner = owner
            self._candidates[address].failures = 0
        self._wake(owner).set()

    def _count_failure(self, address: str) -> None:
        candidate = self._candidates.get(address)
        if candidate is None:
            return
        candidate.failures += 1
        limits = self._limits
        pause = min(limits.redial_first * 2**candidate.failures, limits.redial_longest)
        candidate.next_try = asyncio.get_running_loop().time() + pause
        if candidate.failures >= limits.candidate_failures:
            del self._candidates[address]
