"""What a simulated site trains with: a real session, or a stub that is cheap and whose sums can be checked.

The stub's local step adds a displacement that depends on (seed, site, round) alone; all mixing goes through the real
`p2pfl.train.exchange.Exchange`. So with x_0 the common start and d_i(t) the displacements,

    sum_i share_i x_i = sum_i share_i (x_0 + sum_t d_i(t))

holds after every settled round, and fails if and only if two ends of an edge counted different rounds.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from p2pfl.crypto import pack, sha256, unpack
from p2pfl.errors import IllegalStep, MalformedMessage
from p2pfl.sim.draws import raw
from p2pfl.train.adopting import adopt, read_states
from p2pfl.train.exchange import Exchange, read_edges, tag_of
from p2pfl.train.inertia import Inertia, most_weight, read_betas
from p2pfl.train.model_files import vector_digest

CHANNEL = "model"
SAVED_LIMIT = 1 << 26  # bytes of a stub's checkpoint


class Trainer(Protocol):
    """What a site uses of `p2pfl.train.session.Session`; `StubTraining` is another one."""

    def initial(self, seed: int) -> bytes:
        """The first parameters of a run."""
        ...

    def begin(
        self, initial: bytes, run: bytes, key: bytes, share: float, first_weight: float = 1.0
    ) -> list[dict[str, Any]]:
        """Take them; the channels."""
        ...

    def train(
        self, round: int, steps: int, learning_rate: float | None = None, batch_size: int | None = None
    ) -> Mapping[str, float | int]:
        """The local steps of one round; "loss"."""
        ...

    def encode(
        self, round: int, step: int, closing: bool, inertia: Sequence[Sequence[float]] = ()
    ) -> list[dict[str, Any]]:
        """Channel, payload and result digest of each message."""
        ...

    def receive(self, key: str, channel: str, payload: bytes, result: str, share: float | None = None) -> None:
        """Take a neighbour's message in."""
        ...

    def drop(self, keys: Sequence[str]) -> None:
        """Forget received messages."""
        ...

    def forget(self, pairs: Sequence[Sequence[Any]]) -> None:
        """Forget settled displacements."""
        ...

    def mix(
        self, round: int, step: int, edges: Sequence[Sequence[Any]], corrections: Sequence[Sequence[Any]],
        last: bool, closing: bool, inertia: Sequence[Sequence[float]] = (),
    ) -> dict[str, Any]:  # fmt: skip
        """Mix; "digest" and "distance"."""
        ...

    def adopt(
        self, round: int, own: float, states: Sequence[Sequence[Any]], inertia: Sequence[Sequence[float]] = ()
    ) -> dict[str, Any]:
        """Take neighbours' states in; "digest" and "distance"."""
        ...

    def digest(self) -> str:
        """SHA-256 of the own parameters."""
        ...


def checkpoint(trainer: Trainer, folder: Path | None) -> tuple[str, bytes]:
    """A trainer's checkpoint and its digest: in memory where it can, else through a file in ``folder``."""
    if isinstance(trainer, StubTraining):
        data = trainer.save_bytes()
        return sha256(data), data
    path = _place(folder) / "saved"
    digest = str(trainer.save(str(path)))  # type: ignore[attr-defined]  # a Session's; others have none
    return digest, path.read_bytes()


def restore(
    trainer: Trainer,
    folder: Path | None,
    saved: tuple[str, bytes],
    initial: bytes,
    run: bytes,
    key: bytes,
    share: float,
) -> None:
    """Set a fresh trainer to a checkpoint. Raises what the trainer raises for a damaged one."""
    digest, data = saved
    if isinstance(trainer, StubTraining):
        trainer.restore_bytes(data, initial, run, key, share, digest)
        return
    path = _place(folder) / "restored"
    path.write_bytes(data)
    trainer.restore(str(path), initial, run, key, share, digest)  # type: ignore[attr-defined]


def _place(folder: Path | None) -> Path:
    if folder is None:
        raise IllegalStep("real sessions are saved to files; give the world a folder")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


class StubTraining:
    """Small vectors in place of a model. Same calls as a Session; ``displacements`` is the ledger of its own steps."""

    def __init__(self, seed: int, site: int, size: int = 4, staleness: int = 0) -> None:
        self.seed, self.site, self.size, self.staleness = seed, site, size, staleness
        self.displacements: dict[int, Tensor] = {}  # round -> what the local step added, as far as it is in x
        self.start = torch.zeros(size, dtype=torch.float64)
        self.jumped = torch.zeros(size, dtype=torch.float64)  # what catching up moved x by, measured
        self._x: Tensor | None = None
        self._run = b""
        self._exchange = self._new_exchange()
        self._trained: int | None = None
        self._encoded: tuple[int, int] | None = None

    @property
    def vector(self) -> Tensor:
        """The own parameters [size]."""
        if self._x is None:
            raise IllegalStep("the training has no run yet; call begin first")
        return self._x

    @property
    def pending(self) -> int:
        """Displacements of edges that may still be taken back."""
        return len(self._exchange._kept)

    def expected(self) -> Tensor:
        """x_0 plus the own displacements and jumps: what this site put into the sum."""
        total = self.start + self.jumped
        for _, value in sorted(self.displacements.items()):
            total += value
        return total

    def initial(self, seed: int) -> bytes:
        """The common start."""
        return _doubles(self.size, seed, "start").numpy().tobytes()

    def begin(
        self, initial: bytes, run: bytes, key: bytes, share: float, first_weight: float = 1.0
    ) -> list[dict[str, Any]]:
        """Take the run's start."""
        if len(initial) != 8 * self.size:
            raise MalformedMessage(f"initial vector of {len(initial)} bytes where {8 * self.size} were agreed")
        self.start = _vector(initial)
        self._x, self._run = self.start.clone(), run
        self.displacements, self.jumped = {}, torch.zeros_like(self.start)
        self._exchange = self._new_exchange()
        self._trained, self._encoded = None, None
        return [{"name": CHANNEL, "size": 8 * self.size, "base": vector_digest(self.start)}]

    def train(
        self, round: int, steps: int, learning_rate: float | None = None, batch_size: int | None = None
    ) -> dict[str, float | int]:
        """Add the displacement of (seed, site, round), times the learning rate where the proposer changed it."""
        if self._trained == round:
            raise IllegalStep(f"round {round} is trained already; encode and mix it")
        step = self.displacement(round) * (learning_rate or 1.0)
        self._x = self.vector + step
        self.displacements[round] = step
        self._trained = round
        return {"loss": 1.0 / (1 + round), "examples": steps}

    def displacement(self, round: int) -> Tensor:
        """What the local step of a round adds [size], at learning rate 1."""
        return _doubles(self.size, self.seed, "step", self.site, round)

    def encode(
        self, round: int, step: int, closing: bool, inertia: Sequence[Sequence[float]] = ()
    ) -> list[dict[str, Any]]:
        """The own vector, or as it is mixed so far; a second encoding of one step is refused."""
        if self._encoded == (round, step):
            raise IllegalStep(f"round {round}, step {step} is encoded already; send what was encoded then")
        if self._encoded is None or self._encoded[0] != round:
            self._exchange.start_round()
        first = not self._exchange.own
        x = self._coast(inertia, round) if first else self.vector
        answers = self._exchange.encode({CHANNEL: x} if first else dict(self._exchange.own))
        if first:
            self._x = self._exchange.own[CHANNEL]
        if closing:
            self._exchange.drop_past()
        else:
            self._exchange.keep_own((round, step))
        self._encoded = (round, step)
        return answers

    def receive(self, key: str, channel: str, payload: bytes, result: str, share: float | None = None) -> None:
        """Check and rebuild a neighbour's message."""
        self._exchange.receive(key, channel, payload, result)

    def drop(self, keys: Sequence[str]) -> None:
        """Forget received messages."""
        self._exchange.drop(keys)

    def forget(self, pairs: Sequence[Sequence[Any]]) -> None:
        """Forget settled displacements."""
        self._exchange.forget([(str(peer), int(round_), int(step)) for peer, round_, step in pairs])

    def mix(
        self, round: int, step: int, edges: Sequence[Sequence[Any]], corrections: Sequence[Sequence[Any]],
        last: bool, closing: bool, inertia: Sequence[Sequence[float]] = (),
    ) -> dict[str, Any]:  # fmt: skip
        """As Session.mix."""
        tags, named = read_edges(edges, (round, step))
        taken_back = [(str(peer), int(round_), int(step_)) for peer, round_, step_ in corrections]
        if taken_back and not last:
            raise IllegalStep(f"corrections in step {step} of round {round}; give them with the round's last mixing")
        if tags and self._encoded != (round, step):
            raise IllegalStep(f"round {round}, step {step} is mixed before it is encoded; encode first")
        self._exchange.check(tags, named, taken_back, most_weight(inertia))
        distance = self._exchange.mix(tags, named)
        if last:
            self._x = self.vector + self._exchange.finish(taken_back, round, read_betas(inertia))[CHANNEL]
            self._trained = None
        return {"digest": self.digest(), "distance": distance}

    def adopt(
        self, round: int, own: float, states: Sequence[Sequence[Any]], inertia: Sequence[Sequence[float]] = ()
    ) -> dict[str, Any]:
        """As Session.adopt."""
        named = read_states(states, float(own), CHANNEL)
        found = self._exchange.take([(state.channel, state.key) for state in named])
        before = self._coast(inertia, round)
        self._x = adopt(before, float(own), [(state.weight, m) for state, m in zip(named, found, strict=True)])
        self.jumped = self.jumped + (self._x - before)
        self._exchange.start_round()
        self._trained = None
        return {"digest": self.digest(), "distance": float(torch.linalg.vector_norm(self._x - before))}

    def _coast(self, inertia: Sequence[Sequence[float]], before: int) -> Tensor:
        moved = self._exchange.inertia.coast(read_betas(inertia), before)
        if moved:
            self._x = self.vector + moved[CHANNEL]
        return self.vector

    def digest(self) -> str:
        """SHA-256 of the own vector."""
        return vector_digest(self.vector)

    # --- checkpoints

    def save_bytes(self) -> bytes:
        """Everything that later steps depend on."""
        exchange = self._exchange
        return pack(
            {
                "run": self._run,
                "x": _bytes(self.vector),
                "start": _bytes(self.start),
                "jumped": _bytes(self.jumped),
                "steps": [[round_, _bytes(value)] for round_, value in self.displacements.items()],
                "kept": [[*tag, [[name, _bytes(v)] for name, v in row.items()]] for tag, row in exchange._kept.items()],
                "own": [[name, _bytes(value)] for name, value in exchange._own.items()],
                "total": [[name, _bytes(value)] for name, value in exchange._total.items()],
                "past": [
                    [*place, [[name, _bytes(v)] for name, v in row.items()]] for place, row in exchange.past.items()
                ],
                "trained": self._trained,
                "encoded": self._encoded,
                **({"inertia": _inertia_row(exchange.inertia)} if exchange.inertia.until >= 0 else {}),
            }
        )

    def restore_bytes(self, data: bytes, initial: bytes, run: bytes, key: bytes, share: float, digest: str) -> None:
        """Begin, and go on from a checkpoint. Raises MalformedMessage for a damaged one or another run's."""
        if sha256(data) != digest:
            raise MalformedMessage("a checkpoint is not the one that was stored; it cannot be used")
        value = unpack(data, what="checkpoint", limit=SAVED_LIMIT, max_items=1 << 20)
        if value["run"] != run:
            raise MalformedMessage("a checkpoint belongs to another run; it cannot be used")
        self.begin(initial, run, key, share)
        self._x, self.start, self.jumped = (_vector(value[name]) for name in ("x", "start", "jumped"))
        self.displacements = {round_: _vector(row) for round_, row in value["steps"]}
        exchange = self._exchange
        exchange._kept = {
            (peer, round_, step): {name: _vector(row) for name, row in rows}
            for peer, round_, step, rows in value["kept"]
        }
        exchange._own = {name: _vector(row) for name, row in value["own"]}
        exchange._total = {name: _vector(row) for name, row in value["total"]}
        exchange._past = {
            (round_, step): {name: _vector(row) for name, row in rows} for round_, step, rows in value["past"]
        }
        exchange.inertia = _inertia_of(value["inertia"]) if "inertia" in value else Inertia()
        self._trained = value["trained"]
        self._encoded = None if value["encoded"] is None else (value["encoded"][0], value["encoded"][1])

    def save(self, path: str) -> str:
        """As Session.save: to a file; its SHA-256."""
        data = self.save_bytes()
        Path(path).write_bytes(data)
        return sha256(data)

    def restore(self, path: str, initial: bytes, run: bytes, key: bytes, share: float, digest: str) -> None:
        """As Session.restore: from a file."""
        self.restore_bytes(Path(path).read_bytes(), initial, run, key, share, digest)

    def _new_exchange(self) -> Exchange:
        return Exchange({CHANNEL: self.start}, self.size, torch.float64, self.staleness)


def _doubles(size: int, seed: int, *place: object) -> Tensor:
    """Numbers in [-1, 1) that depend on seed and place alone."""
    words = b"".join(raw(64, seed, *place, block) for block in range(-(-size // 8)))
    return torch.tensor([word / 2**63 for word in struct.unpack(f"<{size}q", words[: 8 * size])], dtype=torch.float64)


def _inertia_row(inertia: Inertia) -> list[Any]:
    flow = [[name, _bytes(value)] for name, value in inertia.flow.items()]
    return [flow, inertia.until, [[*tag, *factors] for tag, factors in inertia.factors.items()]]


def _inertia_of(row: Sequence[Any]) -> Inertia:
    flow, until, factors = row
    tags = {tag_of(item[:3]): (item[3], item[4]) for item in factors}
    return Inertia({name: _vector(value) for name, value in flow}, until, tags)


def _bytes(vector: Tensor) -> bytes:
    return vector.numpy().tobytes()


def _vector(data: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(bytearray(data), dtype=np.float64))
