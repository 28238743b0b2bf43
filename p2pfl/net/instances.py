"""One key, one process: whether a neighbour's earlier process still lives when another one says hello with its key.

Each process of a host has a number of its own, drawn at random when it starts and signed in every hello. If a hello
names another process than the live link, either the neighbour was restarted, and nobody answers on the old link; or a
second process uses the same key, and the first one answers. The one that was here first stays.
"""

from __future__ import annotations

import asyncio

from p2pfl.net.limits import Limits
from p2pfl.net.link import Link
from p2pfl.net.outcomes import AlreadyLinkedError, SecondInstanceError
from p2pfl.net.table import LinkTable
from p2pfl.types import PeerId

ALIVE = "/p2pfl/alive/1"
"""An empty question to a link whose peer has another process saying hello; any answer will do."""


class Instances:
    """Asks on the links of ``table``."""

    def __init__(self, table: LinkTable, limits: Limits) -> None:
        self._table = table
        self._patience = min(limits.alive, limits.hello / 2)  # the hello that waits for it must not run out
        self._asked: dict[Link, asyncio.Task[bool | None]] = {}

    def other(self, peer: PeerId, process: bytes) -> Link | None:
        """The link to another process of ``peer``, where there is one."""
        link = self._table.get(peer)
        return None if link is None or link.greeting.process == process else link

    async def make_way(self, peer: PeerId, process: bytes, who: str) -> None:
        """Return once no other process of ``peer`` is linked: there is none, or it has stopped answering.

        Raises SecondInstanceError, which calls the newcomer ``who``, if the other one lives; AlreadyLinkedError if
        that cannot be told yet.
        """
        while (link := self.other(peer, process)) is not None:
            lives = await self._lives(link)
            if lives is None:
                raise AlreadyLinkedError(peer)
            if lives:
                raise SecondInstanceError(
                    f"{who} is a second process with the key of a member that is linked and answers; refused. Stop one "
                    "of the two; if one of them is not that hospital's own, its key was copied: replace it",
                    peer=peer,
                )
            if self._table.get(peer) is link:
                self._table.close(peer, "it has restarted")

    async def stop(self) -> None:
        """Ask no more; whoever waits for an answer is cancelled."""
        tasks = list(self._asked.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _lives(self, link: Link) -> bool | None:
        """One question however many wait for its answer: a flood of hellos is no flood of questions."""
        task = self._asked.get(link)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._ask(link))
            self._asked[link] = task
            task.add_done_callback(lambda done: self._asked.pop(link, None))
        return await asyncio.shield(task)

    async def _ask(self, link: Link) -> bool | None:
        """Whether the link answers. None: it does not, but still brings bytes after half the patience.

        They may be the last words of a dead process that we read slowly, or its answer may wait behind them: nobody
        is let in, and nobody named, before that is known.
        """
        question = asyncio.get_running_loop().create_task(link.request(ALIVE, b"", 4 * self._patience))
        try:
            done, _ = await asyncio.wait([question], timeout=self._patience / 2)
            before = link.connection.bytes_in
            if not done:
                done, _ = await asyncio.wait([question], timeout=self._patience / 2)
            if done:
                question.exception()  # seen; an older program says that it does not know the question: it lives
                return not link.ended
            return None if not link.ended and link.connection.bytes_in > before else False
        finally:
            question.cancel()
