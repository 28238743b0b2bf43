"""Member records between peers: each side tells what it holds, sends what the other lacks, and hands news on once.

On a new link both ends send a summary (`SUMMARY`: member -> number of its newest record); each answers with the
records (`RECORD`) that the other lacks. News goes to all other links, so that members without a direct link hear it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from p2pfl.crypto import Identity, pack, unpack
from p2pfl.errors import LinkError, LocalError, MalformedMessage, P2PFLError, RemoteError, StoreError
from p2pfl.governance import MAX_MEMBERS, AddressBook, Charter, Pace, StaleRecord, open_record
from p2pfl.net import Host
from p2pfl.peer.home import Home
from p2pfl.peer.own_record import DAY, OwnRecord, own_record
from p2pfl.types import Member, PeerId, Roster

SUMMARY = "/p2pfl/records/1"
RECORD = "/p2pfl/record/1"

SUMMARY_LIMIT = MAX_MEMBERS * 80  # bytes; a peer id has 52 characters, a number 9 bytes
SUMMARIES_PER_HOUR = 60  # answered per neighbour: one for each time its link comes up
LATER_COPIES_PER_HOUR = 4  # times that a later record of our own key, which this home did not make, is outbid

Log = Callable[[str, dict[str, Any]], None]
Refuse = Callable[[PeerId, str, str | None], None]


class Records:
    """One peer's address book, its own record, and their exchange with the neighbours.

    ``log`` writes an entry (kind, body), ``refuse`` counts a refusal (sender, why, who is blamed), ``failed`` ends
    the peer. All calls belong to one event loop; ``clock`` gives Unix seconds.
    """

    def __init__(
        self, home: Home, identity: Identity, charter: Charter, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._home = home
        self._identity = identity
        self._clock = clock
        self.book = AddressBook(home.path / "records", charter, self.now)
        self.own: OwnRecord = own_record(home, identity, self.now, above=self._known_own)
        self._host: Host | None = None
        self._base: Roster | None = None
        self._waiting: dict[PeerId, dict[PeerId | None, None]] = {}  # per neighbour: whose records, None: the summary
        self._senders: dict[PeerId, asyncio.Task[None]] = {}
        self._renewing: asyncio.Task[None] | None = None
        self._summaries: dict[PeerId, Pace] = {}
        self._outbid = Pace(LATER_COPIES_PER_HOUR)

    @property
    def now(self) -> int:
        """Unix seconds."""
        return int(self._clock())

    @property
    def _known_own(self) -> int:
        """The number of our own record in the book, less one where the home's is that very one."""
        known = self.book.member(self._identity.peer_id)
        if known is None or known == self._home.member():
            return 0
        return known.sequence

    @property
    def newer(self) -> dict[PeerId, Member]:
        """Members with a newer record than the charter's, this peer's own included."""
        return {**self.book.newer, self._identity.peer_id: self.own.member}

    def roster(self, base: Roster) -> Roster:
        """``base``, the charter's roster, with the newest records."""
        return self.book.roster(base)

    # --- life

    def attach(
        self, host: Host, base: Roster, *, log: Log, refuse: Refuse, failed: Callable[[P2PFLError], None]
    ) -> None:
        """Take part through this host from now on; before it starts."""
        self._host, self._base = host, base
        self._log, self._refuse, self._failed = log, refuse, failed
        host.handle_notify(SUMMARY, self._on_summary)
        host.handle_notify(RECORD, self._on_record)

    def begin(self) -> None:
        """The host listens: what this home says of itself is true now. Raises StoreError."""
        for note in self.book.notes:
            self._log("refused", {"peer": self._identity.peer_id, "reason": note[:400]})
        self._publish()
        self._renewing = asyncio.get_running_loop().create_task(self._renew_daily())
        self._renewing.add_done_callback(self._ended)

    async def stop(self) -> None:
        """End everything under way."""
        tasks = [*self._senders.values(), *([self._renewing] if self._renewing else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _renew_daily(self) -> None:
        while True:
            await asyncio.sleep(DAY)
            self.renew()

    def renew(self, above: int = 0) -> None:
        """Make the own record anew if that is due; forget what has expired. Raises ConfigError or StoreError.

        Not over a record that `p2pfl address` has made meanwhile: it speaks of the next start.
        """
        if self._home.member().sequence > self.own.member.sequence:
            return
        self.own = own_record(self._home, self._identity, self.now, above=above)
        if self.book.drop_expired(self.now):
            self._follow()
        self._publish()

    def _publish(self) -> None:
        """Store, log and tell the own record if it is news to the book."""
        self.own.store()
        own = self.own.member
        try:
            news = self.book.take(self.own.record, self.now).new
        except RemoteError as error:  # made too often within the hour, or the clock was set back
            self._log("refused", {"peer": own.peer_id, "reason": f"our own record: {error}"[:400]})
            return
        if news:
            self._spread(own, own.peer_id)

    # --- what neighbours say

    def greet(self, peer: PeerId) -> None:
        """A link came up: tell what is held here."""
        self._queue(peer, None)

    def _on_summary(self, peer: PeerId, data: bytes) -> None:
        pace = self._summaries.setdefault(peer, Pace(SUMMARIES_PER_HOUR))
        if not pace.allows(self.now):
            return  # it gets its answer with the first link an hour later
        pace.count(self.now)
        try:
            theirs = _read_summary(data)
        except RemoteError as error:
            self._refuse(peer, str(error), None)
            return
        for member, number in self.book.summary(self.now).items():
            if number > theirs.get(member, 0):
                self._queue(peer, PeerId(member))

    def _on_record(self, peer: PeerId, data: bytes) -> None:
        try:
            if open_record(data).peer_id == self._identity.peer_id:
                self._hear_own(peer, data)
                return
            verdict = self.book.take(data, self.now)
        except RemoteError as error:
            self._refuse(peer, f"told by {self._name(peer)}: {error}", error.peer)
            if isinstance(error, StaleRecord):
                self._queue(peer, open_record(data).peer_id)
        except StoreError as error:
            self._failed(error)
        else:
            if verdict.new:
                self._spread(verdict.member, peer)

    def _hear_own(self, peer: PeerId, data: bytes) -> None:
        """Later than ours: this home was restored from a backup, or a copy of its key runs elsewhere. Outbid it."""
        told = open_record(data)
        if told.sequence <= self.own.member.sequence:
            self.book.take(data, self.now)  # the same, or refused as stale or a twin
            return
        whose = f"told by {self._name(peer)}: record number {told.sequence} of our own key, ours is older"
        self._refuse(peer, f"{whose}; does a copy of this home run elsewhere?", peer)
        if self._outbid.allows(self.now):
            self._outbid.count(self.now)
            try:
                self.renew(above=told.sequence)
            except StoreError as error:
                self._failed(error)
            except LocalError as error:
                self._refuse(peer, f"{whose}; cannot be outbid: {error}", peer)

    def _spread(self, member: Member, origin: PeerId) -> None:
        self._log("member_record", {"peer": member.peer_id, "sequence": member.sequence, "from": origin})
        self._follow()
        assert self._host is not None
        for peer in self._host.links:
            if peer != origin:
                self._queue(peer, member.peer_id)

    def _follow(self) -> None:
        assert self._host is not None and self._base is not None
        self._host.update_roster(self.roster(self._base))

    def _name(self, peer: PeerId) -> str:
        member = self.book.member(peer)
        return f"{member.name} ({peer})" if member else peer

    # --- sending

    def _queue(self, peer: PeerId, item: PeerId | None) -> None:
        """One message of each sort waits per neighbour, however slow it is; the newest record is what leaves."""
        self._waiting.setdefault(peer, {})[item] = None
        if peer not in self._senders:
            task = asyncio.get_running_loop().create_task(self._send(peer))
            self._senders[peer] = task
            task.add_done_callback(self._ended)

    async def _send(self, peer: PeerId) -> None:
        assert self._host is not None
        waiting = self._waiting[peer]
        try:
            while waiting:
                item = next(iter(waiting))
                del waiting[item]
                try:
                    if item is None:
                        await self._host.notify(peer, SUMMARY, pack(self.book.summary(self.now)))
                    else:
                        await self._host.notify(peer, RECORD, self.book.record(item))
                except LinkError:
                    if peer not in self._host.links:
                        return  # the next link begins with summaries
        finally:
            del self._waiting[peer], self._senders[peer]

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            unknown = P2PFLError(f"internal error ({error!r}); please report it")
            self._failed(error if isinstance(error, P2PFLError) else unknown)


def _read_summary(data: bytes) -> dict[str, int]:
    value = unpack(data, what="a summary of member records", limit=SUMMARY_LIMIT, max_items=MAX_MEMBERS)
    if not isinstance(value, dict) or not all(
        type(peer) is str and type(number) is int for peer, number in value.items()
    ):
        raise MalformedMessage("a summary of member records is not a map of peer ids to numbers; refused")
    return value
