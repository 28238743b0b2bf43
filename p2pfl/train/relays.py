"""One site's relayed channel: what it sends to all neighbours at once, and what each of them reads from it.

A site signs one message per channel and round for all its neighbours. So it sends everything it knows,

    known_i = own_i + sum of the m_(k->i) that it last took in, over its neighbours k
    m_(i->j) = known_i - m_(j->i), the one that known_i holds          computed by j

and says in a table behind the numbers which message of which neighbour each of those relays is from. j made
m_(j->i) itself from what it sent in that round less what it then held of i, as i did: both have the same bits. So
nothing is counted twice, whichever messages were lost. What j cannot read (it has lost its own message, as after a
restored backup) it does not take in, and says so by what its next table names.

A relay counts until the next one of its neighbour, at most ``KEPT_ROUNDS`` rounds.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from p2pfl.errors import IllegalStep, LimitExceeded, MalformedMessage, PlanError, SignatureRefused
from p2pfl.train import deltas
from p2pfl.train.exchange import RECEIVED_LIMIT
from p2pfl.train.model_files import vector_bytes
from p2pfl.train.rules.interface import Channel
from p2pfl.types import WEIGHT, Digest

KEPT_ROUNDS = 16  # as long as edges may be unsettled (DESIGN.md, "Flows settle")
MAX_NEIGHBOURS = 63  # of a charter's 64 sites
SHARE_ERROR = 1e-3  # of a sum of shares in float32
_TAG_SIZE = 16
_ROW = struct.Struct(f"<{_TAG_SIZE}sQ")  # a site's tag for this run, a round
_ROUND_LIMIT = 2**40
TABLE_SIZE = _ROW.size * (1 + MAX_NEIGHBOURS)  # the own row, then one per relay held, then zeros
_PERSON = b"p2pfl/relay"

Place = tuple[str, int]  # origin, its round


def relay_tag(key: bytes, run: bytes) -> bytes:
    """What a site is called in its neighbours' tables: the same after every restart, and nothing of its key."""
    return hashlib.blake2b(run, key=key, digest_size=_TAG_SIZE, person=_PERSON).digest()


def relay_size(shared: int) -> int:
    """Entries of a relayed message: the parameters that travel, and the share that they stand for."""
    return shared + 1


def message_size(channel: Channel, shared: int, width: int) -> int:
    """Bytes of one message of a channel: ``shared`` parameters that travel, of ``width`` bytes each."""
    if channel.name == WEIGHT:
        return width
    return relay_size(shared) * width + TABLE_SIZE if channel.relayed else shared * width


@dataclass(frozen=True, slots=True)
class _Message:
    """A message as it came: the numbers [p], who signs itself how for which round, and what it holds."""

    value: Tensor
    tag: bytes
    round: int
    holds: tuple[tuple[bytes, int], ...]


class Relays:
    """``channel``'s messages of ``size`` numbers of one site, called ``tag``."""

    def __init__(self, channel: str, size: int, dtype: torch.dtype, tag: bytes) -> None:
        self.channel = channel
        self._size, self._dtype, self._tag = size, dtype, tag
        self._received: dict[str, _Message] = {}
        self._own: dict[int, Tensor] = {}  # own messages by round, oldest first
        self._holds: dict[int, dict[str, int]] = {}  # by own round: which round of which neighbour is in it
        self._relays: dict[Place, Tensor] = {}  # what was taken in; older ones while a neighbour may name them
        self._held: dict[str, int] = {}  # the round of each neighbour whose relay counts now
        self._named: dict[str, int] = {}  # each neighbour's table names none of our rounds before this one
        self._tags: dict[str, bytes] = {}

    def encode(self, round: int, value: Tensor) -> dict[str, Any]:
        """Channel, payload and result digest of the message [size] to all neighbours.

        Raises PlanError for numbers that are not finite, LimitExceeded for more neighbours than a table has rows.
        """
        if len(self._held) > MAX_NEIGHBOURS:
            raise LimitExceeded(f"relays of {len(self._held)} neighbours; at most {MAX_NEIGHBOURS} fit into a table")
        if not bool(torch.isfinite(value).all()):
            raise PlanError("the own parameters are no longer finite; lower learning_rate in the plan")
        rows = [(self._tag, round), *((self._tags[origin], held) for origin, held in sorted(self._held.items()))]
        table = b"".join(_ROW.pack(*row) for row in rows).ljust(TABLE_SIZE, b"\0")
        payload = bytes(vector_bytes(value)) + table
        self._own[round], self._holds[round] = value, dict(self._held)
        for old in list(self._own)[: -(KEPT_ROUNDS + 1)]:
            del self._own[old], self._holds[old]
        return {"channel": self.channel, "payload": payload, "result": Digest(hashlib.sha256(payload).hexdigest())}

    def receive(self, key: str, payload: bytes, result: str) -> None:
        """Check and store a neighbour's message under ``key``; a refused one leaves nothing behind.

        Raises MalformedMessage, SignatureRefused or LimitExceeded.
        """
        if key not in self._received and len(self._received) >= RECEIVED_LIMIT:
            raise LimitExceeded(f"{RECEIVED_LIMIT} received messages are waiting; mix or drop some first")
        value = deltas.vector(payload[:-TABLE_SIZE], self._size, self._dtype)
        if hashlib.sha256(payload).hexdigest() != result:
            raise SignatureRefused(f"delta is not what its sender signed, {result[:12]}…; refused, ask its sender")
        (tag, round), *holds = _rows(payload[-TABLE_SIZE:])
        self._received[key] = _Message(value, tag, round, tuple(holds))

    def drop(self, keys: Sequence[str]) -> None:
        """Forget received messages; unknown keys are nothing to forget."""
        for key in keys:
            self._received.pop(key, None)

    def check(self, keys: Sequence[str]) -> None:
        """IllegalStep, before anything changes, unless all these messages are here, each named once."""
        for place, key in enumerate(keys):
            if key not in self._received or key in keys[:place]:
                raise IllegalStep(f"no message of channel {self.channel} under {key!r}; receive it first, take it once")

    def take(self, round: int, messages: Sequence[tuple[str, str]]) -> Tensor:
        """Take in this round's messages (origin, key), which are gone then; the sum [size] of all relays that count.

        One that cannot be read is left out, and the last one of its origin counts on. If it names a message that is
        not known here, one of the two was restored from an older disk: neither could read the other as long as both
        name what they held then, so nothing of it counts, and its next message can be read.
        """
        for origin, key in messages:
            message = self._received.pop(key)
            relay = self._read(origin, message, round)
            names = [held for tag, held in message.holds if tag == self._tag]
            self._named[origin] = max(names, default=round)
            if relay is not None:
                self._relays[origin, round] = relay
                self._held[origin], self._tags[origin] = round, message.tag
            elif len(names) == 1 and self._sent(origin, names[0]) is None:
                self._held.pop(origin, None)
        total = self.total(round)
        self._prune()
        return total

    def total(self, round: int) -> Tensor:
        """The sum of the relays that count in this round, [size], in the order of their origins' names."""
        for origin, held in list(self._held.items()):
            if round - held > KEPT_ROUNDS:
                del self._held[origin]
                self._named.pop(origin, None)
        total = torch.zeros(self._size, dtype=self._dtype)
        for place in sorted(self._held.items()):
            total = total + self._relays[place]
        return total

    def _read(self, origin: str, message: _Message, round: int) -> Tensor | None:
        """The message less what its sender has from here; None if that is not known, or no sum of shares is left."""
        names = [held for tag, held in message.holds if tag == self._tag]
        others = {tag for other, tag in self._tags.items() if other != origin}
        if message.round != round or message.tag in {self._tag, *others} or len(names) > 1:
            return None
        relay = message.value
        for held in names:
            sent = self._sent(origin, held)
            if sent is None:
                return None
            relay = relay - sent
        share = float(relay[-1])
        return relay if -SHARE_ERROR <= share <= 1.0 + SHARE_ERROR else None

    def _sent(self, to: str, round: int) -> Tensor | None:
        """The relay that a neighbour read from our message of this round; None if it is not known any more."""
        if round not in self._own:
            return None
        held = self._holds[round].get(to)
        if held is None:
            return self._own[round]
        relay = self._relays.get((to, held))
        return None if relay is None else self._own[round] - relay

    def _prune(self) -> None:
        """Keep the own messages that a neighbour may still name, and the relays that those hold or that count."""
        newest = next(reversed(self._own), 0)
        needed = min([newest, *(self._named[origin] for origin in self._held)])
        for old in [old for old in self._own if old < needed]:
            del self._own[old], self._holds[old]
        places = set(self._held.items())
        for round, holds in self._holds.items():
            places |= {(origin, held) for origin, held in holds.items() if round >= self._named.get(origin, 0)}
        self._relays = {place: relay for place, relay in self._relays.items() if place in places}

    # --- checkpoints

    def remember(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """For a checkpoint: facts as plain values, and the tensors by number. Received messages are not in it."""
        places = sorted(self._relays)
        tensors = [*self._own.values(), *(self._relays[place] for place in places)]
        facts = {
            "own": [[round, sorted(map(list, self._holds[round].items()))] for round in self._own],
            "relays": [list(place) for place in places],
            "held": sorted(map(list, self._held.items())),
            "named": sorted(map(list, self._named.items())),
            "tags": sorted([origin, tag.hex()] for origin, tag in self._tags.items()),
        }
        return facts, {str(number): tensor for number, tensor in enumerate(tensors)}

    def recall(self, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """What `remember` gave. Raises MalformedMessage, with nothing changed, for what it cannot have given."""
        try:
            own = {int(round): {str(name): int(held) for name, held in holds} for round, holds in facts["own"]}
            places = [(str(origin), int(round)) for origin, round in facts["relays"]]
            held, named = ({str(name): int(round) for name, round in facts[kind]} for kind in ("held", "named"))
            tags = {str(origin): bytes.fromhex(tag) for origin, tag in facts["tags"]}
            values = [tensors[str(number)] for number in range(len(own) + len(places))]
        except (LookupError, ValueError, TypeError, AttributeError) as error:
            raise MalformedMessage("relays of a checkpoint that cannot be read; it cannot be used") from error
        fits = all(value.shape == (self._size,) and value.dtype == self._dtype for value in values)
        if not fits or len(tensors) != len(values) or set(held.items()) - set(places) or set(held) - set(tags):
            raise MalformedMessage("relays of a checkpoint that do not fit each other; it cannot be used")
        if set(held) - set(named) or any(len(tag) != _TAG_SIZE for tag in tags.values()):
            raise MalformedMessage("relays of a checkpoint that do not fit each other; it cannot be used")
        self._own, self._holds = dict(zip(own, values, strict=False)), own
        self._relays = dict(zip(places, values[len(own) :], strict=True))
        self._held, self._named, self._tags, self._received = held, named, tags, {}


def _rows(table: bytes) -> list[tuple[bytes, int]]:
    """The rows of a table, the sender's own first. Raises MalformedMessage."""
    rows: list[tuple[bytes, int]] = list(_ROW.iter_unpack(table))
    used = max((number + 1 for number, (tag, round) in enumerate(rows) if any(tag) or round), default=0)
    if not used or any(not any(tag) or round >= _ROUND_LIMIT for tag, round in rows[:used]):
        raise MalformedMessage("relay whose table names no site or no round of a run; refused, ask its sender")
    return rows[:used]
