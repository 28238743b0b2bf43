"""One site's mixings of one synchronous run once more, from kept deltas: the session's own code, without its plan.

Of a round's messages and of what the log says was mixed, the same exchange and the same rule give the same bits. Local
training is not repeated: it needs the site's data and key. So the own message of a training round is taken as it was
signed; that of a step or round without training must be what the mixing before has left.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from p2pfl.errors import IllegalStep, MalformedMessage
from p2pfl.train import deltas
from p2pfl.train.exchange import Edge, Exchange, Tag
from p2pfl.train.mixing import PeerGraph, PeerInbox
from p2pfl.train.model_files import vector_digest
from p2pfl.train.rules import Context, State
from p2pfl.train.settings import read_settings
from p2pfl.types import WEIGHT

Message = tuple[bytes, str]
"""Payload and the digest of the result that its sender signed."""


@dataclass(frozen=True, slots=True)
class Apart:
    """The first entry of [S] in which two vectors differ."""

    index: int
    there: float
    replayed: float


def why_not(settings: Mapping[str, Any], *, accelerated: bool = False) -> str | None:
    """Why runs with these settings are not replayed; None if they are. Raises ConfigError.

    ``accelerated``: their closing rounds are.
    """
    read = read_settings(settings)
    if accelerated:
        return (
            "its closing rounds are accelerated: what a site adds in one depends on all those before it, and is not "
            'replayed; runs with closing = "plain" are'
        )
    if read.staleness:
        return "the run is asynchronous: a delta may be mixed rounds later, which is not replayed"
    if any(channel.name == WEIGHT for channel in read.rule.channels):
        return f"the rule is {read.rule.name}: what a light site trains waits in its state, which is not replayed"
    if not read.rule.needs.linear:
        return (
            f"the rule is {read.rule.name}: what a relay holds depends on all the rounds before it, and is not replayed"
        )
    return None


class SiteReplay:
    """Give each step's own messages (`send`, then `own`), then what was mixed in it, in the order of the log."""

    def __init__(self, settings: Mapping[str, Any], base: bytes) -> None:
        """``base``: raw little-endian bytes [S]. Raises ConfigError, or MalformedMessage for bytes of another size."""
        read = read_settings(settings)
        self._settings = read
        self._base = self._vector(base)
        self._bases = {c.name: self._base if c.base == "model" else None for c in read.rule.channels}
        self._model = next(c.name for c in read.rule.channels if c.base == "model")
        self._size = self._base.numel()
        self._exchange = Exchange(self._bases, self._size, read.dtype)
        self._state: State = read.rule.init(self._base, PeerGraph(1.0, dtype=read.dtype))
        self._x: Tensor | None = self._base
        self._sent: dict[str, Tensor] = {}

    def send(self, channel: str, message: Message) -> None:
        """An own message of the next step. Raises MalformedMessage or SignatureRefused if it is not what was signed."""
        if channel not in self._bases:
            raise MalformedMessage(f"no channel {channel[:32]!r} in this run")
        payload, result = message
        self._sent[channel] = deltas.rebuild(payload, self._bases[channel], self._size, self._settings.dtype, result)

    def own(self, *, first: bool, follows: bool) -> Apart | None:
        """Begin a step with the messages that were given to `send`. Raises IllegalStep without one of the model.

        ``first`` of its round; ``follows``: nothing was trained since the mixing before. Then the first difference to
        what that has left, if there is one.
        """
        values, self._sent = self._sent, {}
        if self._model not in values:
            raise IllegalStep(f"it sent no message of channel {self._model}")
        left = {self._model: self._x} if first else dict(self._exchange.own)
        apart = None
        for name, value in values.items() if follows else ():
            before = left.get(name)
            if before is not None and apart is None:
                apart = _apart(value, deltas.encode(before, self._bases[name])[1])
        self._exchange.restore(values, self._exchange.total, self._exchange.kept)
        if first:
            self._x = values[self._model]
        return apart

    def receive(self, key: str, channel: str, message: Message) -> None:
        """A neighbour's message. Raises MalformedMessage or SignatureRefused if it is not what was signed."""
        self._exchange.receive(key, channel, *message)

    def mix(
        self, tags: Sequence[Tag], edges: Sequence[tuple[str, float, Mapping[str, str]]], taken_back: Sequence[Tag],
        place: tuple[int, int], *, last: bool,
    ) -> str:  # fmt: skip
        """The digest of what comes out. Raises IllegalStep if something that it needs was not given."""
        named = [Edge(*edge) for edge in edges]
        self._exchange.check(tags, named, taken_back)
        if not last:
            self._exchange.mix(tags, named)
            return vector_digest(self._exchange.own[self._model])
        assert self._x is not None
        self._exchange.mix(tags, named)
        pulls = self._exchange.finish(taken_back)
        context = Context(place[0], self._settings.learning_rate, 0)
        self._state, self._x = self._settings.rule.merge(self._state, self._x, context, PeerInbox(pulls))
        return vector_digest(self._x)

    @property
    def begun(self) -> bool:
        """Whether the parameters are known that the next mixing starts from."""
        return self._x is not None

    def forget(self, tags: Sequence[Tag]) -> None:
        """No later mixing takes these back."""
        self._exchange.forget(tags)

    def compare(self, left: bytes) -> Apart | None:
        """The first difference of what the last mixing gave to what was kept of it, [S]."""
        assert self._x is not None
        return _apart(self._vector(left), self._x)

    def go_on(self, left: bytes | None) -> None:
        """A mixing could not be replayed, or departs: go on from what the log says it left; None: that is not known."""
        self._exchange.finish(())
        self._sent = {}
        self._x = None if left is None else self._vector(left)

    def _vector(self, data: bytes) -> Tensor:
        kind = np.dtype("<f4" if self._settings.dtype == torch.float32 else "<f8")
        if not data or len(data) % kind.itemsize:
            raise MalformedMessage(f"{len(data)} bytes are no vector of {self._settings.dtype}")
        array = np.frombuffer(bytearray(data), dtype=kind)
        return torch.from_numpy(array.astype(kind.newbyteorder("="), copy=False))


def _apart(there: Tensor, replayed: Tensor) -> Apart | None:
    if there.shape != replayed.shape:
        raise MalformedMessage("what was kept of a mixing has another size than the model")
    bits = torch.int32 if there.dtype == torch.float32 else torch.int64  # 0.0 and -0.0 have different digests
    differ = (there.view(bits) != replayed.view(bits)).nonzero()
    if not len(differ):
        return None
    index = int(differ[0])
    return Apart(index, float(there[index]), float(replayed[index]))
