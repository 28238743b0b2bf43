"""Hostile members: honest machines whose shell rewrites what leaves the site, signed with the site's own key."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from p2pfl.crypto import sign_envelope, unpack
from p2pfl.gossip.anchors import Outbound
from p2pfl.gossip.direct import open_settle
from p2pfl.gossip.messages import (
    FLOOD_LIMIT,
    INLINE_LIMIT,
    TO_ALL,
    Announcement,
    Core,
    EdgeList,
    decode_announcement,
    open_core,
    open_cover,
    sealing_context,
)
from p2pfl.sim.draws import stream
from p2pfl.sim.memory_log import lone_proof
from p2pfl.train.exchange import Exchange
from p2pfl.train.model_files import vector_digest
from p2pfl.types import Digest

if TYPE_CHECKING:
    from p2pfl.sim.site import Site


class Member:
    """An honest one. Each hook gets the site it sits in."""

    def sealed(self, site: Site, core: tuple[tuple[int, int], str], payload: bytes) -> None:
        """A message of the site is being sealed: its position and channel."""

    def core(self, site: Site, core: Core) -> Core:
        """What is signed in place of ``core``."""
        return core

    def sends(self, site: Site, target: int, kind: str, data: bytes) -> list[bytes]:
        """What leaves in place of ``data``; ``kind`` is "announcement", "direct", "flood" or "offer"."""
        return [data]

    def hears(self, site: Site, source: int, kind: str, data: bytes) -> None:
        """What comes in."""

    def serves(self, site: Site, asker: int, core: Digest) -> bool:
        """Whether the content of a core is given to a neighbour."""
        return True

    def serving(self, site: Site, core: Digest, chunks: list[bytes] | None) -> list[bytes] | None:
        """What is served in place of the chunks of a core."""
        return chunks


@dataclass
class Equivocate(Member):
    """Two different cores for one round: ``victims`` get another one than the others, with another content.

    ``both``: they get the right one as well, so that they hold the proof.
    """

    victims: Collection[int]
    rounds: Collection[int] | None = None
    both: bool = False
    other_cores: list[Digest] = field(default_factory=list)  # what was signed beside the truth
    _payloads: dict[tuple[tuple[int, int], str], bytes] = field(default_factory=dict)
    _others: dict[Digest, bytes] = field(default_factory=dict)

    def sealed(self, site: Site, core: tuple[tuple[int, int], str], payload: bytes) -> None:
        """Keep the payload: a lie begins with the truth."""
        self._payloads[core] = payload

    def sends(self, site: Site, target: int, kind: str, data: bytes) -> list[bytes]:
        """The other core to the victims."""
        if kind != "announcement" or target not in self.victims:
            return [data]
        parts = decode_announcement(data)
        envelope, core = open_core(parts.core, site.world.kit.verify)
        if (core.position, core.channel) not in self._payloads:
            return [data]
        if self.rounds is not None and core.round not in self.rounds:
            return [data]
        if envelope.digest not in self._others:
            self._others[envelope.digest] = self._other(site, core, parts)
        other = self._others[envelope.digest]
        return [data, other] if self.both else [other]

    def _other(self, site: Site, core: Core, parts: Announcement) -> bytes:
        exchange: Exchange = site.trainer._exchange  # type: ignore[attr-defined]  # ours: the lie must be a valid delta
        base = exchange._bases[core.channel]
        delta = torch.from_numpy(
            np.frombuffer(
                bytearray(self._payloads[core.position, core.channel]),
                dtype=np.float32 if exchange._dtype == torch.float32 else np.float64,
            )
        )
        delta[0] += 1.0
        kit = site.world.kit
        context = sealing_context(core.run, site.peer_id, core.position, core.channel, TO_ALL)
        sealed = kit.seal(delta.numpy().tobytes(), context)
        result = vector_digest(delta if base is None else base + delta)
        signed = sign_envelope(site.identity, "core", replace(core, manifest=sealed.manifest, result=result).encode())
        prekeys = site.running.context.prekeys
        old = open_cover(parts.cover, kit.verify)[1]
        keys = {peer: kit.wrap(sealed.key, prekeys[peer], context) for peer in old.keys}
        proof = lone_proof(site.identity, {"run": core.run, "core": signed.digest})
        site.disk.contents[signed.digest] = sealed.chunks
        self.other_cores.append(signed.digest)
        inline = sealed.chunks[0] if parts.inline and len(sealed.chunks[0]) <= INLINE_LIMIT + 16 else b""
        outbound = Outbound(parts.run, signed.encode(), keys)
        return outbound.announce(signed.digest, site.identity, proof.encode(), inline).encode()


@dataclass
class Withhold(Member):
    """Sends nothing but floods to ``silent_to``; announces to ``no_content_for`` and never delivers the content."""

    silent_to: Collection[int] = ()
    no_content_for: Collection[int] = ()

    def sends(self, site: Site, target: int, kind: str, data: bytes) -> list[bytes]:
        """Nothing, or an announcement without its content."""
        if target in self.silent_to and kind != "flood":
            return []
        if target in self.no_content_for and kind == "announcement":
            parts = decode_announcement(data)
            return [Announcement(parts.run, parts.core, parts.cover, b"").encode()]
        return [data]

    def serves(self, site: Site, asker: int, core: Digest) -> bool:
        """Not to those."""
        return asker not in self.no_content_for


@dataclass
class Replay(Member):
    """With each message up to ``copies`` older ones of its kind, own and foreign."""

    copies: int = 2
    replayed: int = 0
    _kept: dict[str, list[bytes]] = field(default_factory=dict)

    def sends(self, site: Site, target: int, kind: str, data: bytes) -> list[bytes]:
        """The message, and old ones."""
        kept = self._kept.setdefault(kind, [])
        draws = stream(site.world.seed, "replay", site.number, self.replayed)
        old = [draws.choice(kept) for _ in range(min(self.copies, len(kept)))]
        self.replayed += len(old)
        kept.append(data)
        return [data, *old]

    def hears(self, site: Site, source: int, kind: str, data: bytes) -> None:
        """Keep what others said."""
        self._kept.setdefault(kind, []).append(data)


@dataclass
class LieAboutEdges(Member):
    """Its lists claim for every edge that it mixed (``claim`` true), or that it did not."""

    claim: bool
    lies: int = 0

    def core(self, site: Site, core: Core) -> Core:
        """Other lists."""
        return replace(core, lists={peer: self._lie(edges) for peer, edges in core.lists.items()})

    def sends(self, site: Site, target: int, kind: str, data: bytes) -> list[bytes]:
        """Other settle messages."""
        if kind != "direct" or unpack(data, what="envelope", limit=FLOOD_LIMIT)[1] != "settle":
            return [data]
        settle = open_settle(data, site.world.kit.verify)[1]
        payload = replace(settle, edges=self._lie(settle.edges)).encode()
        return [sign_envelope(site.identity, "settle", payload).encode()]

    def _lie(self, edges: EdgeList) -> EdgeList:
        rows = tuple((round_, step, self.claim, seen) for round_, step, _, seen in edges.items)
        self.lies += sum(row != other for row, other in zip(rows, edges.items, strict=True))
        return EdgeList(edges.floor, rows)
