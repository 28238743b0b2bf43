"""One digest over all that the machines of a world were told and asked for, in order.

Two runs with the same digest were the same run. With real cryptography content keys are random, so only what does not
depend on them is hashed: kinds, times, places.
"""

from __future__ import annotations

import hashlib
import struct
from typing import Any

from p2pfl.gossip import effects, events

_HEAD = struct.Struct("<Hd")


class Trace:
    """Grows by every event and effect; ``items`` counts them."""

    def __init__(self, *, whole: bool) -> None:
        self.items = 0
        self._whole = whole
        self._hash = hashlib.sha256()

    def event(self, site: int, now: float, event: events.Event) -> None:
        """A machine was told this."""
        self._add(site, now, event)

    def effects(self, site: int, now: float, todo: list[effects.Effect]) -> None:
        """And asked for this."""
        for effect in todo:
            self._add(site, now, effect)

    def digest(self) -> str:
        """SHA-256 of everything so far."""
        return self._hash.copy().hexdigest()

    def _add(self, site: int, now: float, item: Any) -> None:
        self.items += 1
        self._hash.update(_HEAD.pack(site, now))
        self._hash.update(type(item).__name__.encode())
        if self._whole:
            self._hash.update(_content(item))


def _content(item: Any) -> bytes:
    match item:
        case (
            events.AnnouncementReceived(peer=peer, data=data)
            | events.StatementReceived(peer=peer, data=data)
            | events.OfferReceived(peer=peer, data=data)
        ):
            return peer.encode() + data
        case effects.Fetch(digest=digest):
            return digest.encode()
        case effects.Hold(core=core, announcement=announcement, recipients=recipients):
            return b"".join([core.encode(), announcement, *(peer.encode() for peer in sorted(recipients))])
        case effects.Commit(token=token, entries=entries, cores=cores):
            parts = [repr((token, [(entry.kind, entry.body) for entry in entries])).encode()]
            parts += [core.encode() for core in cores]
            return b"".join([*parts, item.state])
        case effects.Begin(start=start):
            return start.run.encode()
        case effects.Restore(digest=digest):
            return digest.encode()
        case effects.StoreStatement(data=data):
            return data
        case effects.Tell(topic=topic):
            return topic.encode()
        case _:
            return repr(item).encode()
