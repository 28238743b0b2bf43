"""Signalling through a common neighbour: every peer introduces two others; nobody is a server.

    dialler                    introducer                    target
      INTRODUCE {to, box} ->      OFFER {from, box} ->         opens the box, answers with a box of its own
                          <-                        <-

The introducer knows from its links who asks and who is asked; the boxes are sealed for the two ends. It can refuse,
be slow or lie: each costs one attempt, then the next neighbour is asked, and what it altered is found by the ends.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from p2pfl.crypto.packing import pack, read_fields, unpack
from p2pfl.errors import LimitExceeded, LinkError, MalformedMessage, NotAMember, PolicyRefusal, Refusal, RemoteError
from p2pfl.net.limits import REASON_LIMIT, Limits
from p2pfl.net.outcomes import name_of
from p2pfl.types import PeerId, Roster

if TYPE_CHECKING:
    from p2pfl.net.host import Host

INTRODUCE = "/p2pfl/introduce/1"
OFFER = "/p2pfl/offer/1"

BOX_LIMIT = 12 << 10  # bytes; a box with 24 candidates has about 8 KiB
PAYLOAD_LIMIT = BOX_LIMIT + 256
PER_MINUTE = 30  # introductions one neighbour may ask of us: a dial every 2 s
AT_ONCE = 8  # introductions under way for one neighbour

OnOffer = Callable[[PeerId, PeerId, bytes], Awaitable[bytes]]
"""(who wants to talk, who brings it, box) -> the answer's box. RemoteError or Refusal says why not."""


class Introductions:
    """Both halves of the signalling of one host: asking neighbours, and carrying for them.

    ``willing`` False: this site carries nothing for others, and says so.
    """

    def __init__(self, limits: Limits, *, willing: bool = True) -> None:
        self._limits = limits
        self._willing = willing
        self._host: Host | None = None
        self._roster: Callable[[], Roster] = lambda: Roster("", (), 0)  # type: ignore[arg-type]
        self._worked: dict[PeerId, PeerId] = {}
        self._asked: dict[PeerId, deque[float]] = {}
        self._brought: dict[PeerId, deque[float]] = {}
        self._under_way: Counter[PeerId] = Counter()
        self.on_offer: OnOffer | None = None
        """Takes offers for us; set by the transport while it listens."""
        self.carried = 0
        """Introductions made for others."""

    def attach(self, host: Host) -> None:
        """Use this host's links, and answer on them."""
        self._host = host
        self._roster = lambda: host.roster
        host.handle(INTRODUCE, self._introduce)
        host.handle(OFFER, self._offered)

    # --- the dialler's half

    def introducers(self, to: PeerId) -> list[PeerId]:
        """Neighbours to ask, in order: the one that worked last for ``to``, then tcp links, then others."""
        if self._host is None:
            return []
        links = {peer: info for peer, info in self._host.links.items() if peer != to}
        return sorted(links, key=lambda peer: (peer != self._worked.get(to), links[peer].kind == "webrtc", peer))

    async def carry(self, introducer: PeerId, to: PeerId, box: bytes) -> bytes:
        """The answer to a box for ``to``, through ``introducer``. LinkError or Refusal says why there is none."""
        if self._host is None:
            raise LinkError("the host is not started; nobody can be asked")
        payload = pack({"to": to, "box": box})
        return await self._host.request(introducer, INTRODUCE, payload, self._limits.introduce)

    def worked(self, introducer: PeerId, to: PeerId) -> None:
        """Remember who brought a connection about."""
        self._worked[to] = introducer

    def name(self, peer: PeerId) -> str:
        """A member for people."""
        member = self._roster().member(peer)
        return name_of(member) if member else str(peer)

    # --- the introducer's half

    async def _introduce(self, asker: PeerId, payload: bytes) -> bytes:
        if not self._willing:
            raise PolicyRefusal("this site does not introduce others (introduce = false); ask another neighbour")
        target, box = _read(payload, "to", asker)
        member = self._roster().member(target)
        if member is None or target == asker:
            raise NotAMember(f"{target[:80]} is no other member of this charter; nobody to introduce", peer=asker)
        assert self._host is not None
        if target not in self._host.links:
            raise Refusal(f"no link to {name_of(member)} here; ask another neighbour")
        self._count(self._asked, asker)
        self._under_way[asker] += 1
        try:
            # a little less than the asker's own patience, so that our words reach it in time
            seconds = 0.8 * self._limits.introduce
            answer = await self._host.request(target, OFFER, pack({"from": asker, "box": box}), seconds)
        except LinkError as error:
            raise Refusal(f"{name_of(member)} gave no answer: {str(error)[:REASON_LIMIT]}") from None
        finally:
            self._under_way[asker] -= 1
        if len(answer) > BOX_LIMIT:
            raise LimitExceeded(f"{name_of(member)} answered with {len(answer)} bytes; at most {BOX_LIMIT} are carried")
        self.carried += 1
        return answer

    def _count(self, counted: dict[PeerId, deque[float]], asker: PeerId) -> None:
        """Bounded work for each neighbour."""
        now = asyncio.get_running_loop().time()
        times = counted.setdefault(asker, deque())
        while times and now - times[0] > 60:
            times.popleft()
        if len(times) >= PER_MINUTE or self._under_way[asker] >= AT_ONCE:
            raise LimitExceeded(f"more than {PER_MINUTE} introductions a minute asked; wait, or ask another neighbour")
        times.append(now)

    # --- the target's half

    async def _offered(self, introducer: PeerId, payload: bytes) -> bytes:
        asker, box = _read(payload, "from", introducer)
        self._count(self._brought, introducer)
        if self.on_offer is None:
            raise Refusal("this site takes no WebRTC connections")
        if asker == introducer:
            raise MalformedMessage("nobody introduces itself; refused", peer=introducer)
        return await self.on_offer(asker, introducer, box)


def _read(payload: bytes, who: str, sender: PeerId) -> tuple[PeerId, bytes]:
    try:
        value = unpack(payload, what="an introduction", limit=PAYLOAD_LIMIT, max_items=2)
        fields = read_fields(value, "an introduction", {who: str, "box": bytes})
    except RemoteError as error:
        error.peer = sender
        raise
    if len(fields["box"]) > BOX_LIMIT:
        raise LimitExceeded(f"a box of {len(fields['box'])} bytes; at most {BOX_LIMIT} are carried", peer=sender)
    return PeerId(fields[who][:80]), fields["box"]
