"""How often heartbeats are looked at: before anything is verified, by the signer they name and the link they came over.

Heartbeats are due every five seconds. A linked member could send them as fast as the link carries them, each with a
signature to check. Counted per link, so that nobody uses up what another member's link may bring of the same signer.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from p2pfl.crypto import claimed
from p2pfl.gossip.messages import FLOOD_LIMIT
from p2pfl.types import PeerId

RATE = 1.0  # heartbeats per second, signer and link
BURST = 16.0  # those of more than a minute, which come at once after this process was stopped for so long


@dataclass(slots=True)
class BeatRate:
    """One allowance for each link and signer; at most ``signers`` of them per link, as many as there are members."""

    signers: int
    left: dict[PeerId, dict[bytes, tuple[float, float]]] = field(default_factory=dict)  # (allowance, when) by key

    def exceeded(self, link: PeerId, data: bytes, now: float) -> bool:
        """Whether ``data`` is a heartbeat beyond what its signer may send over this link; counts it if it is not."""
        named = claimed(data, FLOOD_LIMIT)
        if named is None or named[1] != "heartbeat":
            return False  # no envelope at all is refused with its reason where it is opened
        key = named[0]
        known = self.left.setdefault(link, {})
        if key not in known and len(known) >= self.signers:
            return True  # more signers than the charter has members: some are made up
        left, since = known.get(key, (BURST, now))
        left = min(BURST, left + RATE * max(0.0, now - since))
        known[key] = (left - 1.0 if left >= 1.0 else left, now)
        return left < 1.0
