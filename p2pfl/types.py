"""Small value types that every room shares. No logic lives here (see the rooms in docs/architecture.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NewType

PeerId = NewType("PeerId", str)
"""A libp2p peer id in its base58btc text form, ``12D3KooW…``."""

Digest = NewType("Digest", str)
"""A SHA-256 digest as 64 lower-case hexadecimal digits."""

RunId = NewType("RunId", str)
"""The digest that names a run: over charter, plan, proposer and nonce."""

WEIGHT = "weight"
"""The channel of one number that all other channels of a message are mixed with; closing rounds send it, too."""

CATCH_UP_ROUNDS = 16  # a plan's default: the window in which edges settle exactly


@dataclass(frozen=True, slots=True)
class Member:
    """One hospital as its own signed record describes it."""

    peer_id: PeerId
    name: str
    addresses: tuple[str, ...]  # multiaddrs without the /p2p part; may be empty
    listens: bool
    certificates: tuple[bytes, ...]  # DER; the current one first, then those still valid in a rotation
    sequence: int
    expires: int  # Unix seconds


@dataclass(frozen=True, slots=True)
class Roster:
    """Who belongs to the consortium under one charter version, in the charter's order."""

    charter: Digest
    members: tuple[Member, ...]
    quorum: int  # signatures needed, more than half of the members
    minimum_participants: int = 2  # of a run
    minimum_contributors: int = 1  # heard of lately, for a round to begin; fewer: the run pauses
    max_parameters_bytes: int | None = None  # of the model channel; None: no limit in the charter
    consortium: str = ""  # its name, which is part of each log's origin

    def member(self, peer_id: str) -> Member | None:
        """The member with this peer id, or None for a stranger."""
        return next((member for member in self.members if member.peer_id == peer_id), None)

    @property
    def peer_ids(self) -> tuple[PeerId, ...]:
        """All members' peer ids in the charter's order."""
        return tuple(member.peer_id for member in self.members)


@dataclass(frozen=True, slots=True)
class Participant:
    """One site that takes part in a run."""

    peer_id: PeerId
    samples: int
    share: float  # of all samples; all shares sum to 1
    prekey: bytes  # X25519 public key of this run, 32 bytes


@dataclass(frozen=True, slots=True)
class ChannelSpec:
    """One named message of an update rule."""

    name: str
    size: int  # plaintext bytes
    base: Digest  # digest of the base vector; of zeros for all but the model channel


@dataclass(frozen=True, slots=True)
class StartRecord:
    """What every participant of a run agrees on before the first round."""

    run: RunId
    charter: Digest
    plan: Digest
    proposer: PeerId
    nonce: bytes
    participants: tuple[Participant, ...]  # in the charter's order
    seed: int
    initial: Digest  # of the safetensors file with the initial parameters
    channels: tuple[ChannelSpec, ...]
    topology: Mapping[str, Any]
    rounds: int
    closing_rounds: int
    deadline: float  # seconds a round waits for a neighbour at most
    staleness: int = 0  # own rounds that an edge may be mixed late; 0: synchronous rounds
    catch_up_rounds: int = CATCH_UP_ROUNDS  # missed rounds after which a peer keeps its own parameters whole

    @property
    def shares(self) -> dict[PeerId, float]:
        """Sample share of each participant."""
        return {participant.peer_id: participant.share for participant in self.participants}
