"""All tensor work of one peer in one run. No network, no keys but the site's sampling key, no clock.

A round is ``train`` -> ``encode`` -> ``receive`` (per message) -> ``mix``; a schedule with several mixings
in one round repeats the last three with step 1, 2, ...; closing rounds have no ``train`` and send parameters
only.
Used by the worker process, by simulations and by tests; it takes and gives plain values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from p2pfl.errors import ConfigError, DataError, IllegalStep, MalformedMessage, PlanError
from p2pfl.train import checkpoints, model_files
from p2pfl.train.adopting import adopt, keep_walking, read_states
from p2pfl.train.checkpoints import Checkpoint
from p2pfl.train.checks import plan_problems
from p2pfl.train.exchange import Exchange, read_edges, relayed_edges, tag_of
from p2pfl.train.inertia import Betas, most_weight, read_betas
from p2pfl.train.mixing import PeerGraph, PeerInbox
from p2pfl.train.oracle import ModuleOracle, put
from p2pfl.train.plan_code import Batch, PlanCode
from p2pfl.train.push_weights import most_told
from p2pfl.train.relays import Relays, message_size, relay_size, relay_tag
from p2pfl.train.rules import Context, Messages, State, keeps_nothing
from p2pfl.train.rules.cyclic import holds
from p2pfl.train.sampling import batch_indices, noise_seed
from p2pfl.train.settings import read_settings
from p2pfl.types import WEIGHT


class Session:
    """One plan, one site's data, one run. Not thread-safe; dropout draws from torch's global generator."""

    def __init__(self, plan_source: bytes, settings: Mapping[str, Any]) -> None:
        """Load the plan and build its model. Raises PlanError, or ConfigError for a wrong setting."""
        self._settings = read_settings(settings)
        self._plan = PlanCode(bytes(plan_source))
        self._identity = checkpoints.plan_identity(bytes(plan_source), settings)
        self._module = self._new_module(seed=0)
        self._layout = self._settings.layout(self._module)
        self._rule = self._settings.rule
        self._relayed = next((channel.name for channel in self._rule.channels if channel.relayed), None)
        self._weighed = any(channel.name == WEIGHT for channel in self._rule.channels)
        if (self._relayed is not None or self._weighed) and self._layout.shared_size != self._layout.size:
            raise ConfigError(keeps_nothing(self._rule.name, self._rule.needs))
        self._data: dict[str, Batch] = {}
        self._x: Tensor | None = None
        self._state: State = {}
        self._exchange: Exchange | None = None
        self._relays: Relays | None = None
        self._run, self._key = b"", b""
        self._origin: Mapping[str, str] = {}
        self._trained: Context | None = None
        self._encoded: tuple[int, int] | None = None
        self._last_loss = 0.0

    def describe(self) -> dict[str, Any]:
        """Number of parameters P, dtype, and each channel's name, size in bytes and kind of base."""
        size, width = self._layout.shared_size, self._settings.dtype.itemsize
        channels = [{"name": c.name, "size": message_size(c, size, width), "base": c.base} for c in self._rule.channels]
        dtype = str(self._settings.dtype).removeprefix("torch.")
        return {"parameters": self._layout.size, "dtype": dtype, "channels": channels}

    def initial(self, seed: int) -> bytes:
        """The model's first parameters and buffers as a safetensors file, drawn with ``seed``."""
        return model_files.initial_file(self._new_module(seed))

    def load_data(self, path: str) -> dict[str, int]:
        """Read the granted file through the plan's loader; number of examples of "train" and "test"."""
        self._data = self._plan.load(path, self._settings.dtype)
        return {part: len(self._data[part][0]) if part in self._data else 0 for part in ("train", "test")}

    def check(self) -> list[str]:
        """What is wrong with plan and data, in plain words; empty if a run can start. Changes nothing."""
        if "train" not in self._data:
            return ["no data are loaded; register a file for the plan's tag"]
        parts = {part: self._data[part] for part in self._data}
        return plan_problems(self._plan, self._new_module(seed=0), self._layout, parts, self._settings.batch_size)

    def begin(
        self, initial: bytes, run: bytes, key: bytes, share: float, first_weight: float = 1.0
    ) -> list[dict[str, Any]]:
        """Take the run's initial parameters; the channels with size in bytes and digest of their base.

        ``key`` is the site's secret for this run (16 to 64 bytes), ``share`` its part of the mean, at most 1,
        ``first_weight`` push-sum's weight that it begins with. Raises MalformedMessage for a file that does not fit the
        model.
        """
        noise_seed(key, run, 0, 0)  # refuses a key of a wrong size before anything changes
        self._x = model_files.load(initial, self._module, self._layout)
        self._run, self._key = run, key
        self._origin = self._origin_of(initial, run)
        graph = PeerGraph(share, dtype=self._settings.dtype, first_weight=first_weight)
        self._state = self._rule.init(self._x, graph)
        base = self._layout.select_shared(self._x)
        bases = {c.name: base if c.base == "model" else None for c in self._rule.channels if not c.relayed}
        self._relays = self._new_relays(run, key)
        most = most_told(share).to(self._x).reshape(1) if self._weighed else None
        shared = self._layout.shared_size
        self._exchange = Exchange(bases, shared, self._settings.dtype, self._settings.staleness, most)
        self._trained, self._encoded = None, None
        exchange = self._exchange
        digests = {name: model_files.vector_digest(exchange.base(name)) for name in bases}
        zero = model_files.vector_digest(torch.zeros_like(base))  # a relayed channel's, which has no base
        return [{**channel, "base": digests.get(channel["name"], zero)} for channel in self.describe()["channels"]]

    def save(self, path: str) -> str:
        """Write everything that later steps depend on to a file, whole or not at all; SHA-256 of its bytes.

        Not in it: received messages, the site's key, its data. Raises StoreError; an older file stands then.
        """
        x, exchange = self._begun()
        facts, relays = (None, {}) if self._relays is None else self._relays.remember()
        now = Checkpoint(
            self._origin, x, self._state, dict(self._module.named_buffers()),
            exchange.own, exchange.total, exchange.kept, self._trained, self._encoded, exchange.past, relays, facts,
            exchange.inertia,
        )  # fmt: skip
        return checkpoints.write(path, now)

    def restore(
        self, path: str, initial: bytes, run: bytes, key: bytes, share: float, digest: str
    ) -> list[dict[str, Any]]:
        """`begin`, then go on from the file of this digest that `save` wrote; later results have the same bits.

        Answers as `begin`. Raises DataError for a file that is missing, damaged, or of another run, plan or
        initial file, and what `begin` raises; nothing has changed then.
        """
        x = self._layout.flatten(self._module)
        shared, state = self._layout.select_shared(x), self._rule.init(x, PeerGraph(share, dtype=self._settings.dtype))
        own = {c.name: x[:1] if c.name == WEIGHT else shared for c in self._rule.channels if not c.relayed}
        like = Checkpoint(self._origin_of(initial, run), x, state, dict(self._module.named_buffers()), own)
        found = checkpoints.read(path, digest, like)
        relays = self._recalled(found, path, run, key)
        channels = self.begin(initial, run, key, share)
        self._relays = relays
        self._begun()[1].restore(found.own, found.total, found.kept, found.past, found.inertia)
        with torch.no_grad():
            for name, buffer in self._module.named_buffers():
                buffer.copy_(found.buffers[name])
        self._x, self._state = found.x, dict(found.state)
        self._trained, self._encoded = found.trained, found.encoded
        return channels

    def train(
        self, round: int, steps: int, learning_rate: float | None = None, batch_size: int | None = None
    ) -> dict[str, float | int]:
        """The rule's local steps of one round; mean loss over them, and examples seen.

        ``learning_rate`` and ``batch_size`` stand in for the plan's, where the proposer changed them.
        Where one model walks and is elsewhere, no step is taken, and the loss is that of the last visit. With
        ``steps=0`` the rule says what a site does that takes part and takes no step (of most rules' parameters
        nothing changes), and the loss is 0 over 0 examples. Raises PlanError if the loss
        is no longer finite; then nothing has changed either, but for private buffers.
        """
        x, _ = self._begun()
        if self._trained is not None and self._trained.round == round:
            raise IllegalStep(f"round {round} is trained already; encode and mix it")
        if steps > (self._rule.needs.most_steps or steps):
            raise IllegalStep(
                f"{steps} local steps: {self._rule.needs.steps_reason}; take {self._rule.needs.most_steps}"
            )
        data = self._part("train")
        elsewhere = self._rule.needs.mixing == "walk" and not bool(holds(self._state))
        if elsewhere:
            steps = 0  # the rule would change nothing
        context = Context(round, learning_rate or self._settings.learning_rate, steps)
        count, size = len(data[0]), batch_size or self._settings.batch_size

        def batch(step: int) -> Batch:
            torch.default_generator.manual_seed(noise_seed(self._key, self._run, round, step))
            chosen = batch_indices(self._key, self._run, round, step, count, size)
            return tuple(tensor.index_select(0, chosen) for tensor in data)

        self._module.train()
        oracle = ModuleOracle(self._plan, self._module, self._layout, batch)
        before = torch.get_rng_state()
        try:
            state, trained = self._rule.local(self._state, x, context, oracle)
        finally:
            torch.set_rng_state(before)
        loss = self._last_loss if elsewhere else 0.0
        if oracle.losses:
            loss = float(torch.stack(oracle.losses).mean())
        if not bool(torch.isfinite(trained).all()):
            raise PlanError(f"training diverged in round {round} (loss {loss}); lower learning_rate in the plan")
        self._state, self._x, self._trained, self._last_loss = state, trained, context, loss
        return {"loss": loss, "examples": oracle.examples}

    def encode(
        self, round: int, step: int, closing: bool, inertia: Sequence[Sequence[float]] = ()
    ) -> list[dict[str, Any]]:
        """Each channel's name, payload bytes and result digest; the session adopts what receivers rebuild.

        Step 0 sends what the rule says; a later step the messages as mixed so far. Closing rounds send the
        model channel only, and its weight if it has one. ``inertia`` (round, b): of the accelerated closing rounds
        before this one; those that this site missed are made up for first. Raises IllegalStep for a second encoding of
        one step, and a second step with relays.
        """
        exchange = self._begun()[1]
        if self._encoded == (round, step):
            raise IllegalStep(f"round {round}, step {step} is encoded already; send what was encoded then")
        if self._encoded is None or self._encoded[0] != round:
            exchange.start_round()
        first = not exchange.own
        if self._relayed is not None and step and not closing:
            raise IllegalStep(f"{self._rule.name} mixes once per round; there is no step {step}")
        if first and inertia:
            self._coast(read_betas(inertia), round)
        messages = self._first_messages(round, closing) if first else dict(exchange.own)
        relay = None if self._relayed is None else messages.pop(self._relayed, None)
        answers = exchange.encode(messages)
        if self._relays is not None and relay is not None:
            answers.append(self._relays.encode(round, relay))
        if first:
            name = self._model_channel
            self._x = self._layout.replace_shared(self._begun()[0], exchange.own[name])
        if closing:
            exchange.drop_past()
        else:
            exchange.keep_own((round, step))
        self._encoded = (round, step)
        return answers

    def receive(self, key: str, channel: str, payload: bytes, result: str, share: float | None = None) -> None:
        """Rebuild a partner's message and store it under ``key``; ``share``: what that partner counts, if known.

        Raises MalformedMessage (size, NaN, infinity, a weight that none tells) or SignatureRefused (digest); nothing
        is stored then.
        """
        _, exchange = self._begun()
        if self._relays is not None and channel == self._relays.channel:
            self._relays.receive(key, payload, result)
        else:
            exchange.receive(key, channel, payload, result, share)

    def drop(self, keys: Sequence[str]) -> None:
        """Forget received messages that will not be mixed; mixed ones are gone already."""
        self._begun()[1].drop(keys)
        if self._relays is not None:
            self._relays.drop(keys)

    def forget(self, pairs: Sequence[Sequence[Any]]) -> None:
        """These (origin, round, step) are settled: their displacements stay for good."""
        self._begun()[1].forget([tag_of(pair) for pair in pairs])

    def mix(
        self,
        round: int,
        step: int,
        edges: Sequence[Sequence[Any]],
        corrections: Sequence[Sequence[Any]],
        last: bool,
        closing: bool,
        inertia: Sequence[Sequence[float]] = (),
    ) -> dict[str, Any]:
        """m_i + sum_j w_ij (m_j - m_i) per channel, over ``edges`` (origin, weight, {channel: key}).

        A row may go on with a round and step of its own, in asynchronous runs: both ends' messages are of that one; and
        after those with what is given up of the own message, where that is another amount (a directed mixing).
        ``corrections`` (origin, round, step) are taken back with the round's last mixing. On the last one the
        rule merges; in a closing round its state moves by corrections only. ``inertia`` (round, b): of the accelerated
        closing rounds up to this one (`p2pfl.train.inertia`). A mix with corrections alone, and
        no training or encoding before it, is allowed. Returns the digest of the own parameters, "shared" of
        those that travel (before the last mixing: of the message as mixed so far), and the root mean square distance
        to the mixed neighbours. Raises IllegalStep, with nothing changed, for an unknown key or correction.
        """
        x, exchange = self._begun()
        tags, named = read_edges(edges, (round, step))
        taken_back = [tag_of(pair) for pair in corrections]
        if taken_back and not last:
            raise IllegalStep(f"corrections in step {step} of round {round}; give them with the round's last mixing")
        if tags and self._encoded != (round, step):
            raise IllegalStep(f"round {round}, step {step} is mixed before it is encoded; encode first")
        relays = None if closing else self._relays
        named, arrived = (named, []) if relays is None else relayed_edges(named, relays.channel)
        exchange.check(tags, named, taken_back, most_weight(inertia))
        if relays is not None:
            relays.check([key for _, key in arrived])
        distance = exchange.mix(tags, named, moves=relays is None)
        totals = {} if relays is None else {relays.channel: relays.take(round, arrived)}
        if last:
            moved = exchange.finish(taken_back, round, read_betas(inertia))
            pulls = {c: self._spread(c, pull) for c, pull in moved.items()}
            context = self._context(round, closing)
            self._state, self._x = self._rule.merge(self._state, x, context, PeerInbox(pulls, totals))
            self._trained = None
        digest = self.digest()
        return {"digest": digest, "shared": self._shared_digest(digest, last), "distance": distance}

    def adopt(
        self, round: int, own: float, states: Sequence[Sequence[Any]], inertia: Sequence[Sequence[float]] = ()
    ) -> dict[str, Any]:
        """Before ``round``, after rounds without this site: own x + (1 - own) sum_j weight_j m_j.

        ``states`` (origin, weight, {channel: key}) name received messages of the model channel; their weights sum to
        1. Private buffers and the rule's state stay; a local training that was not mixed stays in x. Returns the
        digest of the own parameters and the Euclidean norm of what they moved by. Raises IllegalStep, with nothing
        changed, for an unknown key, weights out of range, or a rule whose state does not allow it. ``inertia`` as in
        `encode`; what it moves is no part of the norm.
        """
        x, exchange = self._begun()
        if not self._rule.needs.adopts:
            raise IllegalStep(f"{self._rule.name} cannot go on from other sites' parameters; start a new run")
        named = read_states(states, float(own), self._model_channel)
        found = exchange.take([(state.channel, state.key) for state in named])
        x = self._coast(read_betas(inertia), round)
        before = self._layout.select_shared(x)
        moved = adopt(before, float(own), [(state.weight, m) for state, m in zip(named, found, strict=True)])
        if self._rule.needs.mixing == "walk":
            self._state, moved = keep_walking(self._state, before, moved)
        self._x = self._layout.replace_shared(x, moved)
        exchange.start_round()
        self._trained = None
        return {"digest": self.digest(), "distance": float(torch.linalg.vector_norm(moved - before))}

    def base(self) -> dict[str, Any]:
        """The run's first parameters as far as they travel: "vector", raw little-endian bytes [S], and "names" [name,
        count of entries] in its order. For a site that keeps its deltas."""
        _, exchange = self._begun()
        names = [[entry.name, entry.stop - entry.start] for entry in self._layout.entries if not entry.private]
        return {"vector": bytes(model_files.vector_bytes(exchange.base(self._model_channel))), "names": names}

    def shared(self) -> bytes:
        """What travels of the current parameters, raw little-endian bytes [S]."""
        return bytes(model_files.vector_bytes(self._layout.select_shared(self._begun()[0])))

    def evaluate(self, part: str) -> dict[str, float]:
        """The plan's metrics of the current model on "train" or "test", with "loss" and "examples"."""
        x, _ = self._begun()
        data = self._part(part)
        put(x, self._module, self._layout)
        self._module.eval()
        return self._plan.evaluate(self._module, data)

    def result(self) -> bytes:
        """The current model as a safetensors file of its ``state_dict``, buffers included."""
        put(self._begun()[0], self._module, self._layout)
        return model_files.state_file(self._module)

    def digest(self) -> str:
        """SHA-256 of the current vector [P], as hexadecimal digits."""
        return model_files.vector_digest(self._begun()[0])

    @property
    def vector(self) -> Tensor:
        """The current vector [P]; not to be changed in place."""
        return self._begun()[0]

    @property
    def state(self) -> Mapping[str, Tensor]:
        """The rule's state, for tests of its invariants."""
        return self._state

    def _coast(self, betas: Betas, before: int) -> Tensor:
        """The parameters [P], moved by what is left of the displacements in closing rounds that this site missed."""
        x, exchange = self._begun()
        moved = exchange.inertia.coast(betas, before)
        if moved:
            self._x = x = x + self._layout.spread_shared(moved[self._model_channel])
        return x

    def _spread(self, channel: str, pull: Tensor) -> Tensor:
        return pull if channel == WEIGHT else self._layout.spread_shared(pull)

    def _shared_digest(self, digest: str, last: bool) -> str:
        """Of what a receiver of the next message would see, if nothing was trained; ``digest`` is that of [P]."""
        x, exchange = self._begun()
        if not last and self._model_channel in exchange.own:
            return model_files.vector_digest(exchange.own[self._model_channel])
        if self._layout.shared_size == self._layout.size:
            return digest
        return model_files.vector_digest(self._layout.select_shared(x))

    @property
    def _model_channel(self) -> str:
        return next(channel.name for channel in self._rule.channels if channel.base == "model")

    def _begun(self) -> tuple[Tensor, Exchange]:
        if self._x is None or self._exchange is None:
            raise IllegalStep("the session has no run yet; call begin first")
        return self._x, self._exchange

    def _origin_of(self, initial: bytes, run: bytes) -> dict[str, str]:
        return {"run": run.hex(), "plan": self._identity, "initial file": model_files.file_digest(initial)}

    def _part(self, part: str) -> Batch:
        if part not in self._data or len(self._data[part][0]) == 0:
            raise DataError(f'there are no "{part}" examples; let the plan\'s load() return some')
        return self._data[part]

    def _context(self, round: int, closing: bool) -> Context:
        if self._trained is not None and self._trained.round == round and not closing:
            return self._trained
        return Context(round, self._settings.learning_rate, 0, closing=closing)

    def _new_relays(self, run: bytes, key: bytes) -> Relays | None:
        if self._relayed is None:
            return None
        return Relays(self._relayed, relay_size(self._layout.shared_size), self._settings.dtype, relay_tag(key, run))

    def _recalled(self, found: Checkpoint, path: str, run: bytes, key: bytes) -> Relays | None:
        """The relays of a checkpoint. Raises DataError where it has some that do not fit, or none and should."""
        noise_seed(key, run, 0, 0)  # refuses a key of a wrong size
        relays = self._new_relays(run, key)
        if (relays is None) != (found.relay_facts is None) or (relays is None and found.relays):
            raise DataError(f"the checkpoint {path} does not fit the plan's rule; this run cannot be resumed here")
        if relays is not None and found.relay_facts is not None:
            try:
                relays.recall(found.relay_facts, found.relays)
            except MalformedMessage as error:
                raise DataError(f"the checkpoint {path}: {error}; this run cannot be resumed here") from error
        return relays

    def _first_messages(self, round: int, closing: bool) -> Messages:
        if closing and not self._weighed:
            return {self._model_channel: self._layout.select_shared(self._begun()[0])}
        if not closing and (self._trained is None or self._trained.round != round):
            self.train(round, 0)  # a site that did not train takes part without a step
        x = self._begun()[0]
        graph = PeerGraph(1.0, dtype=self._settings.dtype)
        if self._relays is not None:  # what is too old by now counts no more
            self._state = {**self._state, self._relays.channel: self._relays.total(round)}
        self._state, messages = self._rule.send(self._state, x, self._context(round, closing), graph)
        return {
            channel: message if channel in (self._relayed, WEIGHT) else self._layout.select_shared(message)
            for channel, message in messages.items()
        }

    def _new_module(self, seed: int) -> torch.nn.Module:
        if not 0 <= seed < 2**63:
            raise ConfigError(f"seed {seed} is not in 0 to 2^63 - 1; choose another")
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return self._plan.model().to(self._settings.dtype)
