"""A session's whole state as one safetensors file, so that a killed peer goes on with the same bits.

Tensors: ``x`` [P]; ``state/NAME`` of the update rule and its optimiser; ``buffer/NAME`` of the module; ``own/CHANNEL``
and ``total/CHANNEL`` [S] of the round in work; ``kept/NUMBER/CHANNEL`` [S], the displacements that may have to be taken
back; ``past/NUMBER/CHANNEL`` [S], in asynchronous runs, the own messages that may still be mixed with;
``relay/NUMBER`` [p] of a relayed channel (`p2pfl.train.relays` says which is which); ``inertia/CHANNEL`` [S], in
accelerated closing rounds. The facts are JSON under one
metadata key: a file has one order of bytes for one state. Neither received messages (whoever wants them
mixed gives them again) nor the site's sampling key are in it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from p2pfl.errors import DataError
from p2pfl.files import write_atomic
from p2pfl.train.exchange import Place, Tag, tag_of
from p2pfl.train.inertia import Inertia
from p2pfl.train.rules import Context
from p2pfl.types import Digest

FACTS = "p2pfl checkpoint 1"  # the metadata key; its number is the format's
# what reading arbitrary bytes as a checkpoint ends in
UNREADABLE = (
    safetensors.SafetensorError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError,
)  # fmt: skip
_LENGTH_SIZE = 8  # bytes before a safetensors header, little-endian


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a session's later steps depend on. ``origin`` names the run, plan, settings and initial file it is of."""

    origin: Mapping[str, str]
    x: Tensor
    state: Mapping[str, Tensor]
    buffers: Mapping[str, Tensor]
    own: Mapping[str, Tensor]
    total: Mapping[str, Tensor] = field(default_factory=dict)
    kept: Mapping[Tag, Mapping[str, Tensor]] = field(default_factory=dict)
    trained: Context | None = None
    encoded: tuple[int, int] | None = None
    past: Mapping[Place, Mapping[str, Tensor]] = field(default_factory=dict)
    relays: Mapping[str, Tensor] = field(default_factory=dict)
    relay_facts: Mapping[str, Any] | None = None  # None: the rule relays nothing
    inertia: Inertia = field(default_factory=Inertia)

    def vectors(self) -> Iterator[Mapping[str, Tensor]]:
        """Every group of tensors [S] by channel."""
        yield from (self.own, self.total, *self.kept.values(), *self.past.values(), self.inertia.flow)


def plan_identity(plan_source: bytes, settings: Mapping[str, Any]) -> Digest:
    """SHA-256 over a plan's code and its settings as they were written."""
    text = json.dumps(dict(settings), sort_keys=True, default=str)
    return Digest(hashlib.sha256(hashlib.sha256(plan_source).digest() + text.encode()).hexdigest())


def write(path: str, checkpoint: Checkpoint) -> Digest:
    """Replace the file (mode 0600), whole or not at all, durably; SHA-256 of its bytes. Raises StoreError."""
    data = safetensors.torch.save(_apart(_tensors(checkpoint)), {FACTS: json.dumps(_facts(checkpoint))})
    write_atomic(Path(path), data)
    return Digest(hashlib.sha256(data).hexdigest())


def read(path: str, digest: str, like: Checkpoint) -> Checkpoint:
    """The checkpoint of this digest, of the origin and with the shapes of ``like``.

    ``like.own`` has one tensor for every channel. Raises DataError for a missing, damaged or foreign file.
    """
    try:
        data = Path(path).read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"couldn't read the checkpoint {path}: {reason}; this run cannot be resumed here") from error
    if hashlib.sha256(data).hexdigest() != digest:
        raise DataError(f"the checkpoint {path} is not the one that was written; this run cannot be resumed here")
    try:
        found = _parse(data)
    except UNREADABLE as error:
        raise DataError(f"{path} is no checkpoint of this version; this run cannot be resumed here") from error
    for name, value in like.origin.items():
        if found.origin.get(name) != value:
            raise DataError(f"the checkpoint {path} is of another {name}; this run cannot be resumed here")
    if not _fits(found, like):
        raise DataError(f"the checkpoint {path} does not fit the plan's model; this run cannot be resumed here")
    return found


def _tensors(checkpoint: Checkpoint) -> dict[str, Tensor]:
    tensors = {"x": checkpoint.x}
    groups = {"state": checkpoint.state, "buffer": checkpoint.buffers, "own": checkpoint.own, "total": checkpoint.total}
    groups |= {"relay": checkpoint.relays, "inertia": checkpoint.inertia.flow}
    groups |= {f"kept/{number}": values for number, values in enumerate(checkpoint.kept.values())}
    groups |= {f"past/{number}": values for number, values in enumerate(checkpoint.past.values())}
    for group, values in groups.items():
        tensors |= {f"{group}/{name}": value for name, value in values.items()}
    return tensors


def _facts(checkpoint: Checkpoint) -> dict[str, Any]:
    trained = checkpoint.trained
    facts: dict[str, Any] = {
        "origin": dict(checkpoint.origin),
        "kept": [list(tag) for tag in checkpoint.kept],
        "trained": None if trained is None else [trained.round, trained.lr, trained.steps],
        "encoded": None if checkpoint.encoded is None else list(checkpoint.encoded),
        "past": [list(place) for place in checkpoint.past],
    }
    if checkpoint.relay_facts is not None:
        facts["relays"] = dict(checkpoint.relay_facts)
    inertia = checkpoint.inertia
    if inertia.until >= 0:
        facts["inertia"] = [inertia.until, [[*tag, *factors] for tag, factors in inertia.factors.items()]]
    return facts


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors in memory of their own where two share it, as x and the own message do: the format's rule."""
    seen: set[int] = set()
    apart = {}
    for name, tensor in tensors.items():
        value = tensor.detach().contiguous()
        place = value.untyped_storage().data_ptr()
        apart[name] = value.clone() if place in seen else value
        seen.add(place)
    return apart


def _parse(data: bytes) -> Checkpoint:
    tensors = safetensors.torch.load(data)
    # load has checked the header; it does not give its metadata away
    length = int.from_bytes(data[:_LENGTH_SIZE], "little")
    header = json.loads(data[_LENGTH_SIZE : _LENGTH_SIZE + length])
    facts = json.loads(header["__metadata__"][FACTS])

    def part(group: str) -> dict[str, Tensor]:
        head = f"{group}/"
        return {name.removeprefix(head): value for name, value in tensors.items() if name.startswith(head)}

    tags = [tag_of(row) for row in facts["kept"]]
    trained, encoded = facts["trained"], facts["encoded"]
    found = Checkpoint(
        origin=dict(facts["origin"]),
        x=tensors["x"],
        state=part("state"),
        buffers=part("buffer"),
        own=part("own"),
        total=part("total"),
        kept={tag: part(f"kept/{number}") for number, tag in enumerate(tags)},
        trained=None if trained is None else Context(int(trained[0]), float(trained[1]), int(trained[2])),
        encoded=None if encoded is None else (int(encoded[0]), int(encoded[1])),
        past={(int(row[0]), int(row[1])): part(f"past/{number}") for number, row in enumerate(facts.get("past", ()))},
        relays=part("relay"),
        relay_facts=facts.get("relays"),
        inertia=_inertia(facts.get("inertia", (-1, ())), part("inertia")),
    )
    if _tensors(found).keys() != tensors.keys():
        raise ValueError("tensors that no fact names")
    return found


def _inertia(facts: Sequence[Any], flow: dict[str, Tensor]) -> Inertia:
    until, rows = facts
    factors = {tag_of(row[:3]): (float(row[3]), float(row[4])) for row in rows}
    return Inertia(flow, int(until), factors)


def _fits(found: Checkpoint, like: Checkpoint) -> bool:
    """Whether a session like ``like`` can take every tensor; a round in work may have fewer channels."""
    pairs = ((found.state, like.state), (found.buffers, like.buffers), ({"x": found.x}, {"x": like.x}))
    if any(have.keys() != want.keys() for have, want in pairs):
        return False
    if any(values.keys() - like.own.keys() for values in found.vectors()):
        return False
    groups = (*pairs, *((values, like.own) for values in found.vectors()))
    return all(
        value.shape == want[name].shape and value.dtype == want[name].dtype
        for have, want in groups
        for name, value in have.items()
    )
