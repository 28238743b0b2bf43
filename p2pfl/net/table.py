"""The live links of one host: exactly one per peer, however connections come and go.

The decider of a pair numbers its connections (:mod:`p2pfl.net.handshake`); both ends keep the highest
number of the cheapest kind, so both keep the same one. A replaced link lingers to answer what was under way,
without a down and an up; only a restarted neighbour is both.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from types import MappingProxyType
from typing import Any

from p2pfl.errors import RemoteError
from p2pfl.net.limits import Limits
from p2pfl.net.link import Link
from p2pfl.types import PeerId

_log = logging.getLogger("p2pfl.net")
_LINGER_STEPS = 5  # looks per linger time whether a replaced link is idle
_LINGER_LONGEST = 15  # times the linger time; then what is still under way fails


class LinkTable:
    """Owns the links' tasks. ``on_change`` is told of every change, ``on_link`` of ups and downs only,
    ``on_replaced`` (peer, old kind, new kind) when a link goes over to another kind. ``costs`` by kind.
    """

    def __init__(
        self,
        on_link: Callable[[PeerId, bool, str], None],
        limits: Limits,
        *,
        costs: Mapping[str, int] = MappingProxyType({}),
        on_replaced: Callable[[PeerId, str, str], None] | None = None,
    ) -> None:
        self._on_link = on_link
        self._on_replaced = on_replaced
        self._costs = costs
        self._limits = limits
        self._links: dict[PeerId, Link] = {}
        self._running: dict[Link, asyncio.Task[None]] = {}  # replaced ones included
        self._lingering: set[asyncio.Task[None]] = set()
        self._bytes_out_ended = 0
        self._waiters: dict[PeerId, set[asyncio.Future[None]]] = {}
        self.on_change: Callable[[PeerId], None] = lambda peer: None
        self.on_fault: Callable[[str, RemoteError], None] = lambda who, error: None

    def get(self, peer: PeerId) -> Link | None:
        """The link to use."""
        return self._links.get(peer)

    def has(self, peer: PeerId) -> bool:
        """Whether there is a link."""
        return peer in self._links

    def cost(self, peer: PeerId) -> int | None:
        """What the link to ``peer`` costs; None when there is none."""
        link = self._links.get(peer)
        return None if link is None else self._cost(link.connection.kind)

    def _cost(self, kind: str) -> int:
        return self._costs.get(kind, 0)

    def all(self) -> list[Link]:
        """One link per peer."""
        return list(self._links.values())

    @property
    def connections(self) -> int:
        """Live connections, replaced ones that linger included."""
        return len(self._running)

    @property
    def bytes_out(self) -> int:
        """Bytes sent over all links, ended ones included."""
        return self._bytes_out_ended + sum(link.info.bytes_out for link in self._running)

    def needless(self, peer: PeerId, process: bytes, kind: str) -> bool:
        """Whether a further connection of this kind with this process of ``peer`` is of no use.

        A cheaper one always is of use, a dearer one never: a neighbour that has lost the cheaper link is let in
        when our end of it has been found dead too. One of equal cost would be the other half of a simultaneous
        dial; but a link that has lived longer does not stand in the way, for the neighbour dials because it has
        lost it. An empty ``process`` asks for any link at all.
        """
        link = self._links.get(peer)
        if link is None or self._cost(kind) < self._cost(link.connection.kind):
            return False
        if not process:
            return True
        if link.greeting.process != process:
            return False
        fresh = asyncio.get_running_loop().time() - link.since < self._limits.fresh
        return fresh or self._cost(kind) > self._cost(link.connection.kind)

    def adopt(self, link: Link) -> None:
        """Take a proven connection into use."""
        old = self._links.get(link.peer)
        same = old is not None and old.greeting.process == link.greeting.process
        link.on_end = lambda reason: self._end(link, reason)
        self._running[link] = asyncio.get_running_loop().create_task(self._run(link))
        if old is not None and same and self._rank(old) > self._rank(link):
            self._retire(link)
            return
        if old is not None and not same:
            old.close("it has restarted")  # the down comes before the new up
        self._links[link.peer] = link
        if old is not None and same:
            self._retire(old)
            self._tell_replaced(link.peer, old.connection.kind, link.connection.kind)
        else:
            self._tell(link.peer, True, link.connection.kind)
        self._changed(link.peer)

    def _rank(self, link: Link) -> tuple[int, int]:
        """The highest is the link. Kinds' costs and the decider's numbers are the same at both ends."""
        return -self._cost(link.connection.kind), link.greeting.number

    def close(self, peer: PeerId, reason: str) -> None:
        """End the link to ``peer``: down at once, for the caller; the goodbye follows."""
        link = self._links.get(peer)
        if link is not None:
            link.deaf = True  # at once, not at the goodbye's first step
            self._gone(link, reason)
            self._spawn(link.say_goodbye(reason))

    async def stop(self, reason: str) -> None:
        """Say goodbye everywhere and wait for all tasks, bounded by the close time of each."""
        for task in list(self._lingering):
            task.cancel()
        await asyncio.gather(*(link.say_goodbye(reason) for link in list(self._running)))
        await asyncio.gather(*self._running.values(), *self._lingering, return_exceptions=True)

    async def wait_for(self, peer: PeerId, seconds: float) -> None:
        """Wait until something about the link to ``peer`` changes, at most ``seconds``."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.setdefault(peer, set()).add(waiter)
        try:
            await asyncio.wait([waiter], timeout=seconds)
        finally:
            self._waiters[peer].discard(waiter)

    async def _run(self, link: Link) -> None:
        try:
            await link.run()
        finally:
            self._bytes_out_ended += link.info.bytes_out
            del self._running[link]

    def _end(self, link: Link, reason: str) -> None:
        if link.fault is not None:
            self.on_fault(link.peer, link.fault)
        self._gone(link, reason)

    def _gone(self, link: Link, reason: str) -> None:
        if self._links.get(link.peer) is link:
            del self._links[link.peer]
            self._tell(link.peer, False, reason)
            self._changed(link.peer)

    def _retire(self, link: Link) -> None:
        self._spawn(self._linger(link))

    async def _linger(self, link: Link) -> None:
        """Both ends linger at least so long, so that neither breaks what the other has just asked."""
        step = self._limits.linger / _LINGER_STEPS
        await asyncio.sleep(self._limits.linger)
        for _ in range(_LINGER_STEPS * _LINGER_LONGEST):
            if link.idle:
                break
            await asyncio.sleep(step)
        await link.say_goodbye("replaced by another connection of the same two peers")

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._lingering.add(task)
        task.add_done_callback(self._lingering.discard)

    def _changed(self, peer: PeerId) -> None:
        for waiter in self._waiters.get(peer, ()):
            if not waiter.done():
                waiter.set_result(None)
        self.on_change(peer)

    def _tell(self, peer: PeerId, up: bool, text: str) -> None:
        try:
            self._on_link(peer, up, text)
        except Exception:
            _log.exception("on_link failed")

    def _tell_replaced(self, peer: PeerId, old: str, new: str) -> None:
        if old == new or self._on_replaced is None:
            return
        try:
            self._on_replaced(peer, old, new)
        except Exception:
            _log.exception("on_replaced failed")
