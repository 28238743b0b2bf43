"""What a hostile member or a stranger may try inside a run: refused by name, one entry, no effect on the model.

A real machine, real signatures and seals, joined in memory. The hostile message takes the place of the honest one;
the receiving model must then be, bit for bit, what it is when the honest message was simply lost.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bottle import QUADRATIC_PLAN, Bottle, Quadratic, Site

from p2pfl.crypto import (
    Envelope,
    Identity,
    LogProof,
    Manifest,
    Opener,
    Prekey,
    seal,
    sha256,
    sign_envelope,
    wrap_key,
)
from p2pfl.errors import RemoteError
from p2pfl.gossip import Machine, State, effects, events
from p2pfl.gossip.anchors import Outbound
from p2pfl.gossip.closing_statement import Closing
from p2pfl.gossip.context import REFUSALS_LOGGED
from p2pfl.gossip.deliveries import EVIDENCE_LOGGED, SMALL_LEAD
from p2pfl.gossip.direct import Acknowledgement, Settle
from p2pfl.gossip.messages import (
    ANNOUNCEMENT_LIMIT,
    SETTLING_WINDOW,
    Announcement,
    Core,
    Cover,
    EdgeList,
    decode_announcement,
    open_core,
    open_cover,
    sealing_context,
)
from p2pfl.gossip.statements import Approval, Start, StartSignature
from p2pfl.sim.memory_log import lone_proof
from p2pfl.types import PeerId, RunId

SETTINGS = {
    "rule": "dpsgd", "optimiser": {"name": "sgd"}, "learning_rate": 0.2, "local_steps": 1, "batch_size": 1000,
    "dtype": "float64",
}  # fmt: skip
LEFT, ME, HOSTILE, OPPOSITE = 0, 1, 2, 3  # on a ring of four
ROUND = 2
STRANGER = Identity.from_seed(b"s" * 32)


@dataclass
class Scene:
    """A run in which what HOSTILE announces to ME in one round is caught on its way."""

    world: Bottle
    round: int = ROUND
    steal: bool = True  # whether the caught message is lost to ME
    seen: dict[tuple[int, int], bytes] = field(default_factory=dict)  # (origin, round) -> announcement to ME

    def __post_init__(self) -> None:
        self.world.lost = self._lost

    def _lost(self, kind: str, source: PeerId, target: PeerId, data: bytes) -> bool:
        if kind != "announcement" or target != self.world.order[ME]:
            return False
        round_ = open_core(decode_announcement(data).core)[1].round
        origin = self.world.order.index(source)
        self.seen.setdefault((origin, round_), data)
        return self.steal and (origin, round_) == (HOSTILE, self.round)

    @property
    def me(self) -> Site:
        return self.world[ME]

    @property
    def machine(self) -> Machine:
        return self.world.machine(ME)

    def until_caught(self) -> None:
        """HOSTILE has announced the round; ME collects (or will)."""
        self.world.begin()
        self.world.run(lambda: (HOSTILE, self.round) in self.seen and self.machine.state is State.COLLECTING)
        assert self.machine.context.position == (self.round, 0)

    def send(self, data: bytes, over: int = HOSTILE) -> None:
        """Bring ME these bytes now, over the link of a member."""
        self.me.post(events.AnnouncementReceived(self.world.now, self.world.order[over], data))

    def until_mixed(self) -> np.ndarray:
        """ME's model after the round in question."""
        self.world.run(lambda: self.machine.rounds.rounds_done == self.round + 1)
        return self.me.session.vector.numpy().copy()

    def parts(self, origin: int = HOSTILE, round_: int | None = None) -> tuple[Announcement, Core, Cover]:
        announcement = decode_announcement(self.seen[origin, self.round if round_ is None else round_])
        return announcement, open_core(announcement.core)[1], open_cover(announcement.cover)[1]

    def payload(self) -> bytes:
        """The honest plaintext of the round."""
        announcement, core, cover = self.parts()
        context = self.context(core)
        opener = Opener(core.manifest, self.me.prekey.unwrap(cover.keys[self.me.peer_id], context), context)
        return opener.open(0, announcement.inline)

    def context(self, core: Core, origin: PeerId | None = None) -> bytes:
        return sealing_context(
            core.run, origin or self.world.order[HOSTILE], core.position, core.channel, core.recipient
        )

    def forge(self, payload: bytes | None = None, **changes: Any) -> bytes:
        """What HOSTILE itself can sign and seal: the honest core with other fields, or another content."""
        return self.sealed(self.world[HOSTILE].identity, payload, **changes)

    def sealed(self, signer: Identity, payload: bytes | None = None, **changes: Any) -> bytes:
        core = replace(self.parts()[1], **changes)
        context = self.context(core, signer.peer_id)
        sealed = seal(self.payload() if payload is None else payload, context)
        core = core if "manifest" in changes else replace(core, manifest=sealed.manifest)
        signed = sign_envelope(signer, "core", core.encode())
        keys = {self.me.peer_id: wrap_key(sealed.key, self.me.prekey.public, context)}
        return announced(signer, self.world.proposal.run, signed, keys, sealed.chunks[0])

    def covered(
        self, signer: int = HOSTILE, core: str | None = None, keys: Mapping[PeerId, bytes] | None = None
    ) -> bytes:
        """The honest core and content under another cover."""
        announcement, _, cover = self.parts()
        changed = replace(cover, core=core or cover.core, keys=cover.keys if keys is None else keys)
        envelope = sign_envelope(self.world[signer].identity, "cover", changed.encode())
        return replace(announcement, cover=envelope.encode()).encode()

    def proved(self, proof: bytes) -> bytes:
        """The honest core, content and keys with another log proof."""
        announcement, _, cover = self.parts()
        envelope = sign_envelope(self.world[HOSTILE].identity, "cover", replace(cover, proof=proof).encode())
        return replace(announcement, cover=envelope.encode()).encode()


def scene(folder: Path, *, round_: int = ROUND, rounds: int = 4, steal: bool = True) -> Scene:
    files = Quadratic.make((40, 30, 20, 10)).write(folder)
    return Scene(Bottle(files, QUADRATIC_PLAN, SETTINGS, rounds=rounds, deadline=5.0), round_, steal)


@pytest.fixture(scope="module")
def lost_model(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """ME's model after ROUND when HOSTILE's message of that round never came."""
    run = scene(tmp_path_factory.mktemp("lost"))
    run.until_caught()
    return run.until_mixed()


@pytest.fixture(scope="module")
def honest_model(tmp_path_factory: pytest.TempPathFactory, lost_model: np.ndarray) -> np.ndarray:
    run = scene(tmp_path_factory.mktemp("honest"), steal=False)
    run.until_caught()
    vector = run.until_mixed()
    assert not np.array_equal(vector, lost_model), "the message matters, or these tests show nothing"
    return vector


def refusals(site: Site) -> list[Mapping[str, Any]]:
    return site.entries("refused")


def others_went_on(run: Scene) -> None:
    """The run ends everywhere; nobody but ME refused anything."""
    run.world.run()
    assert run.world.done()
    for number, site in enumerate(run.world.sites.values()):
        assert site.machine is not None and site.machine.rounds.rounds_done >= 3
        assert number == ME or not refusals(site)
        assert site.machine.closing.complete


# --- the table of announcements


def flip(data: bytes, place: int) -> bytes:
    place %= len(data)
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def flipped(part: str) -> Callable[[Scene], bytes]:
    def make(run: Scene) -> bytes:
        announcement, _, _ = run.parts()
        value = getattr(announcement, part)
        return replace(announcement, **{part: flip(value, len(value) // 2)}).encode()

    return make


def floats(*values: float) -> bytes:
    return np.array(values, dtype="<f8").tobytes()


def announced(signer: Identity, run: str, signed: Envelope, keys: Mapping[PeerId, bytes], inline: bytes) -> bytes:
    """Under a cover with a sound log proof, so that what is refused is something else."""
    proof = lone_proof(signer, {"run": run, "core": signed.digest}).encode()
    return Outbound(RunId(run), signed.encode(), keys).announce(signed.digest, signer, proof, inline).encode()


def anchored(
    change: Callable[[LogProof], LogProof] = lambda proof: proof,
    signer: int = HOSTILE,
    consortium: str = "",
    **fields: Any,
) -> Callable[[Scene], bytes]:
    """The honest core and keys, signed by HOSTILE together with another log proof."""

    def make(run: Scene) -> bytes:
        announcement, core, cover = run.parts()
        body = {"run": core.run, "core": cover.core} | fields
        proof = change(lone_proof(run.world[signer].identity, body, consortium))
        changed = replace(cover, proof=proof.encode())
        envelope = sign_envelope(run.world[HOSTILE].identity, "cover", changed.encode())
        return replace(announcement, cover=envelope.encode()).encode()

    return make


def other_kind(proof: LogProof) -> LogProof:
    return replace(proof, entry=proof.entry.replace(b"delta_sent", b"delta_lost"))


def reframed(run: Scene) -> bytes:
    """A new core for this round that points at the content of the round before."""
    old, old_core, _ = run.parts(round_=ROUND - 1)
    _, core, _ = run.parts()
    signed = sign_envelope(run.world[HOSTILE].identity, "core", replace(core, manifest=old_core.manifest).encode())
    key = run.me.prekey.unwrap(run.parts(round_=ROUND - 1)[2].keys[run.me.peer_id], run.context(old_core))
    keys = {run.me.peer_id: wrap_key(key, run.me.prekey.public, run.context(core))}
    return announced(run.world[HOSTILE].identity, run.world.proposal.run, signed, keys, old.inline)


def wrong_context_key(run: Scene) -> bytes:
    _, core, cover = run.parts()
    key = run.me.prekey.unwrap(cover.keys[run.me.peer_id], run.context(core))
    elsewhere = run.context(replace(core, round=core.round + 1))
    return run.covered(keys={run.me.peer_id: wrap_key(key, run.me.prekey.public, elsewhere)})


def chunk_count(run: Scene) -> bytes:
    _, core, _ = run.parts()
    return run.forge(manifest=replace(core.manifest, chunks=2))


def size_field(run: Scene) -> bytes:
    _, core, _ = run.parts()
    return run.forge(manifest=replace(core.manifest, size=core.manifest.size + 8))


def padded(run: Scene) -> bytes:
    announcement, _, _ = run.parts()
    return replace(announcement, inline=bytes(ANNOUNCEMENT_LIMIT)).encode()


def short_ciphertext(run: Scene) -> bytes:
    """The size field says what the plan says; the sealed bytes are fewer."""
    _, core, _ = run.parts()
    context = run.context(core)
    sealed = seal(floats(1.0, 2.0), context)
    manifest = Manifest(24, 1, sealed.manifest.root, sealed.manifest.commitment)
    signed = sign_envelope(run.world[HOSTILE].identity, "core", replace(core, manifest=manifest).encode())
    keys = {run.me.peer_id: wrap_key(sealed.key, run.me.prekey.public, context)}
    return announced(run.world[HOSTILE].identity, core.run, signed, keys, sealed.chunks[0])


REPLACING: dict[str, tuple[Callable[[Scene], bytes], str]] = {
    "core altered in one byte": (flipped("core"), "signature|decoded|envelope"),
    "cover altered in one byte": (flipped("cover"), "signature|decoded|envelope"),
    "chunk altered in one byte": (flipped("inline"), "chunk"),
    "garbage": (lambda run: b"\xc1 garbage", "announcement cannot be decoded"),
    "the content of another round": (reframed, "commit"),
    "the cover of another round": (
        lambda run: replace(run.parts()[0], cover=run.parts(round_=ROUND - 1)[0].cover).encode(),
        "cover that does not belong to its core",
    ),
    "signed by another member": (
        lambda run: run.sealed(run.world[LEFT].identity), "signed by .*, not by the peer that sent it",
    ),
    "another member's own message": (
        lambda run: run.seen[LEFT, ROUND], "signed by .*, not by the peer that sent it",
    ),
    "signed by a stranger": (lambda run: run.sealed(STRANGER), "signed by .*, not by the peer that sent it"),
    "size field too large": (size_field, "delta of 32 bytes where the plan's channel x has 24"),
    "more chunks than the size has": (chunk_count, "number of chunks does not fit"),
    "announcement too long": (padded, f"more than the {ANNOUNCEMENT_LIMIT}"),
    "unknown channel": (lambda run: run.forge(channel="y"), "no channel named 'y'"),
    "another base": (lambda run: run.forge(base=sha256(b"elsewhere")), "another base"),
    "another codec": (lambda run: run.forge(codec="top-k"), "codec"),
    "codec arguments": (lambda run: run.forge(arguments=98), "codec or arguments"),
    "for another peer": (lambda run: run.forge(recipient=run.world.order[LEFT]), "for one peer only"),
    "for this peer alone": (lambda run: run.forge(recipient=run.world.order[ME]), "for one peer only"),
    "core of another run": (lambda run: run.forge(run=sha256(b"another run")), "core of another run"),
    "frame of another run": (
        lambda run: replace(run.parts()[0], run=sha256(b"another run")).encode(), "frame of another run",
    ),
    "a step that is not scheduled": (lambda run: run.forge(step=1), "no mixing with this peer is scheduled"),
    "after the end of the run": (lambda run: run.forge(round=4), "after the end of the run"),
    "cover for another core": (lambda run: run.covered(core=sha256(b"core")), "cover that does not belong"),
    "cover by another member": (lambda run: run.covered(signer=LEFT), "cover that does not belong"),
    "no key for this peer": (lambda run: run.covered(keys={}), "no key for this peer"),
    "no log proof": (lambda run: run.proved(b""), "log proof does not hold .*no log proof"),
    "a log proof that is cut": (lambda run: run.proved(run.parts()[2].proof[:-1]), "log proof does not hold"),
    "a log proof of another core": (anchored(core=sha256(b"core")), "log entry does not name its core"),
    "a log proof of another run": (anchored(run=sha256(b"run")), "log entry does not name its core"),
    "another member's log": (anchored(signer=LEFT), "log proof does not hold .*no signature of a key that counts"),
    "the log of another consortium": (anchored(consortium="Others"), "log proof does not hold .*no signature"),
    "an entry that is not in the tree": (anchored(other_kind), "log proof does not hold .*inclusion proof"),
    "an entry at another place": (anchored(lambda proof: replace(proof, index=1)), "log proof .*inclusion proof"),
    "a hash too many": (anchored(lambda proof: replace(proof, path=(bytes(32),))), "log proof .*inclusion proof"),
    "a key of wrong length": (lambda run: run.covered(keys={run.me.peer_id: b"k" * 31}), "wrapped key has 31 bytes"),
    "a key for another context": (wrong_context_key, "wrapped key belongs to another message"),
    "a key for another peer": (
        lambda run: run.covered(
            keys={run.me.peer_id: wrap_key(bytes(32), Prekey.generate().public, run.context(run.parts()[1]))}
        ),
        "does not open with our prekey",
    ),
    "another content key": (
        lambda run: run.covered(
            keys={run.me.peer_id: wrap_key(bytes(32), run.me.prekey.public, run.context(run.parts()[1]))}
        ),
        "commit",
    ),
    "shorter payload": (lambda run: run.forge(floats(1, 2)), "delta of 16 bytes where .* has 24"),
    "longer payload": (lambda run: run.forge(floats(1, 2, 3, 4)), "delta of 32 bytes where .* has 24"),
    "no payload": (lambda run: run.forge(b""), "delta of 0 bytes where .* has 24"),
    "fewer sealed bytes than the size field says": (short_ciphertext, "chunk"),
    "not a number": (lambda run: run.forge(floats(1, float("nan"), 3)), "NaN or infinite"),
    "infinity": (lambda run: run.forge(floats(1, float("inf"), 3)), "NaN or infinite"),
    "minus infinity": (lambda run: run.forge(floats(1, float("-inf"), 3)), "NaN or infinite"),
    "another result than signed": (lambda run: run.forge(floats(1, 2, 3)), "its sender signed"),
    "a result digest that fits nothing": (lambda run: run.forge(result=sha256(b"result")), "its sender signed"),
    "a malformed edge list": (
        lambda run: run.forge(lists={run.me.peer_id: EdgeList((0, 0), ((0, 0, 1, 0),))}),  # type: ignore[arg-type]
        "verdict is not true or false",
    ),
    "too long an edge list": (
        lambda run: run.forge(lists={run.me.peer_id: EdgeList((0, 0), ((0, 0, True, True),) * 300)}), "too many rows",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REPLACING)
def test_a_hostile_message_is_refused_and_changes_nothing(tmp_path: Path, name: str, lost_model: np.ndarray) -> None:
    make, reason = REPLACING[name]
    run = scene(tmp_path)
    run.until_caught()
    run.send(make(run))
    np.testing.assert_array_equal(run.until_mixed(), lost_model)
    others_went_on(run)
    assert [entry["peer"] for entry in refusals(run.me)] == [run.world.order[HOSTILE]]
    told = [facts for topic, facts in run.me.told if topic == "refused"]
    assert [facts["peer"] for facts in told] == [run.world.order[HOSTILE]]
    for said in (refusals(run.me)[0]["reason"], told[0]["reason"]):
        assert re.search(reason, said), said
    assert run.machine.context.counters["refused"] == 1
    assert not run.me.entries("equivocation")


def test_every_altered_byte_is_refused(tmp_path: Path) -> None:
    """Each 7th byte of a whole announcement, one at a time, each against a copy of the same machine."""
    run = scene(tmp_path)
    run.until_caught()
    whole = run.seen[HOSTILE, ROUND]
    untouched = heard(run, whole)
    assert untouched.deliveries.ready(run.world.order[HOSTILE], (ROUND, 0)), "unaltered it is accepted"
    parts = decode_announcement(whole)
    sevens = set(range(0, len(whole), 7))
    for part in (parts.core, parts.cover, parts.inline):
        start = whole.index(part)
        assert len(sevens & set(range(start, start + len(part)))) >= len(part) // 7
    for place in sorted(sevens):
        tried = heard(run, flip(whole, place))
        assert tried.context.counters["refused"] == 1, f"byte {place} of {len(whole)}"
        assert tried.context.refusals == {run.world.order[HOSTILE]: 1}
        assert tried.deliveries.ready(run.world.order[HOSTILE], (ROUND, 0)) is None


def heard(run: Scene, data: bytes) -> Machine:
    """A copy of ME's machine that was brought these bytes; its fetches are carried out and then undone."""
    tried = copy.deepcopy(run.machine)
    pending = tried.handle(events.AnnouncementReceived(run.world.now, run.world.order[HOSTILE], data))
    logged = 0
    while pending:
        effect = pending.pop(0)
        if isinstance(effect, effects.Fetch):
            pending += tried.handle(events.Received(run.world.now, effect.digest, opened(run, effect)))
        elif isinstance(effect, effects.Commit):
            logged += sum(entry.kind == "refused" for entry in effect.entries)
    assert logged == tried.context.counters["refused"]
    return tried


def opened(run: Scene, effect: effects.Fetch) -> str | None:
    core = effect.core
    try:
        opener = Opener(core.manifest, run.me.prekey.unwrap(effect.wrapped_key, run.context(core)), run.context(core))
        payload = opener.open(0, effect.inline)
        opener.finish()
        run.me.session.receive("trial", core.channel, payload, core.result)
        run.me.session.drop(["trial"])
    except RemoteError as error:
        return str(error)
    return None


# --- messages that come beside the honest ones


def test_copies_are_ignored_and_written_down_once(tmp_path: Path, honest_model: np.ndarray) -> None:
    run = scene(tmp_path, steal=False)
    run.until_caught()
    for _ in range(50):
        run.send(run.seen[HOSTILE, ROUND])
        run.send(run.seen[HOSTILE, ROUND - 1])
    np.testing.assert_array_equal(run.until_mixed(), honest_model)
    others_went_on(run)
    assert not refusals(run.me)
    ignored = [(entry["round"], entry["reason"]) for entry in run.me.entries("delta_ignored")]
    assert sorted(ignored) == [(ROUND - 1, "duplicate"), (ROUND, "duplicate")]
    assert run.machine.context.counters["duplicate"] >= 100


def test_a_message_after_its_round_is_ignored(tmp_path: Path, lost_model: np.ndarray) -> None:
    run = scene(tmp_path)
    run.until_caught()
    np.testing.assert_array_equal(run.until_mixed(), lost_model)
    before = run.me.session.digest()
    run.send(run.seen[HOSTILE, ROUND])
    run.send(run.seen[HOSTILE, ROUND])
    assert run.me.session.digest() == before
    others_went_on(run)
    entries = [entry for entry in run.me.entries("delta_ignored") if entry["round"] == ROUND]
    assert [entry["origin"] for entry in entries] == [run.world.order[HOSTILE]]
    assert not refusals(run.me)


@pytest.mark.parametrize(("round_", "claimed"), [(ROUND, ROUND + SETTLING_WINDOW + 1), (2 * SETTLING_WINDOW + 3, 2)])
def test_a_round_outside_the_window_changes_nothing(tmp_path: Path, round_: int, claimed: int) -> None:
    """An honest peer that was stopped for long sends and gets such messages: counted, no offence."""
    clean = scene(tmp_path, round_=round_, rounds=40, steal=False)
    run = scene(tmp_path, round_=round_, rounds=40, steal=False)
    clean.until_caught()
    run.until_caught()
    run.send(run.seen[HOSTILE, claimed] if claimed < round_ else run.forge(round=claimed))
    np.testing.assert_array_equal(run.until_mixed(), clean.until_mixed())
    assert refusals(run.me) == []
    assert run.me.machine is not None and run.me.machine.context.counters["outside the window"] == 1
    others_went_on(run)
    for site in run.world.sites.values():  # a lie about its own round may cost the others a small lead once, no more
        assert site.machine is not None and site.machine.rounds.rounds_done >= 40 - SMALL_LEAD


def test_a_message_for_a_coming_round_waits_for_it(tmp_path: Path, honest_model: np.ndarray) -> None:
    """Inside the window: held, and found to be the first of two cores when the honest one comes."""
    run = scene(tmp_path, steal=False)
    run.until_caught()
    run.send(run.forge(round=ROUND + 1))
    np.testing.assert_array_equal(run.until_mixed(), honest_model)
    run.world.run()
    assert [entry["round"] for entry in run.me.entries("equivocation")] == [ROUND + 1]


def test_two_cores_for_one_round_are_kept_as_evidence(tmp_path: Path, honest_model: np.ndarray) -> None:
    run = scene(tmp_path, steal=False)
    run.until_caught()
    hostile = run.world.order[HOSTILE]
    run.world.run(lambda: (hostile, (ROUND, 0, "x", "all")) in run.machine.deliveries.signed)
    first = run.parts()[0].core
    lies = [run.forge(floats(number, 0, 0)) for number in range(100)]
    for lie in lies:
        run.send(lie)
    np.testing.assert_array_equal(run.until_mixed(), honest_model)  # the first one counts
    others_went_on(run)
    found = [(body, documents) for kind, body, documents in run.me.log if kind == "equivocation"]
    assert len(found) == 1, "one proof is enough, however often the lie is repeated"
    body, documents = found[0]
    assert (body["peer"], body["round"], body["channel"]) == (hostile, ROUND, "x")
    assert [role for role, _ in documents] == ["evidence", "evidence"]
    assert [content for _, content in documents] == [first, decode_announcement(lies[0]).core]
    assert {open_core(content)[0].signer for _, content in documents} == {hostile}
    assert run.machine.context.counters["equivocation"] == 100
    assert len(refusals(run.me)) == REFUSALS_LOGGED


def test_evidence_and_refusals_are_bounded_per_peer(tmp_path: Path) -> None:
    run = scene(tmp_path, rounds=24, steal=False)
    run.until_caught()
    for number in range(ROUND + 1, 24):  # two cores each for many rounds
        run.send(run.forge(floats(1, 0, 0), round=number))
        run.send(run.forge(floats(2, 0, 0), round=number))
    for _ in range(100):
        run.send(b"garbage")
        run.send(b"garbage", over=LEFT)
    limit = min(EVIDENCE_LOGGED, SETTLING_WINDOW)
    assert len(run.me.entries("equivocation")) <= limit
    blamed = [entry["peer"] for entry in refusals(run.me)]
    # commits are answered a moment later: look at what the machine asked to be written
    run.world.run(lambda: len(refusals(run.me)) == 2 * REFUSALS_LOGGED)
    blamed = [entry["peer"] for entry in refusals(run.me)]
    assert {blamed.count(run.world.order[number]) for number in (LEFT, HOSTILE)} == {REFUSALS_LOGGED}
    assert len(run.me.entries("equivocation")) == limit
    held = [item for item in run.machine.deliveries.incoming.values() if item.origin == run.world.order[HOSTILE]]
    assert len(held) <= SETTLING_WINDOW + 1


# --- statements


def known(machine: Machine) -> tuple[Any, ...]:
    """Everything that statements may change."""
    starting, closing = machine.starting, machine.closing
    ledgers = {
        peer: (ledger.heard, ledger.floor, ledger.unsettled, dict(ledger._early), copy.deepcopy(ledger._verdicts))
        for peer, ledger in machine.rounds.edges.ledgers.items()
    }
    return (
        machine.state, dict(starting.approvals), starting.record_digest, starting.signed, dict(starting.signatures),
        dict(closing.statements), dict(closing.named_missing), ledgers, list(machine.rounds.edges.corrections),
        dict(machine.deliveries.reached), dict(machine.context.missing),
        {core: set(item.waiting) for core, item in machine.deliveries.outgoing.items()},
    )  # fmt: skip


def brought(run: Bottle, data: bytes, over: int) -> tuple[Machine, list[effects.LogEntry]]:
    """A copy of ME's machine after a statement, and what it wants written down; nothing else may come of it."""
    tried = copy.deepcopy(run.machine(ME))
    done = tried.handle(events.StatementReceived(run.now, run.order[over], data))
    entries = [entry for effect in done if isinstance(effect, effects.Commit) for entry in effect.entries]
    assert {type(effect) for effect in done} <= {effects.Commit, effects.Tell}
    return tried, [entry for entry in entries if entry.kind == "refused"]


def envelope(identity: Identity, kind: str, payload: bytes) -> bytes:
    return sign_envelope(identity, kind, payload).encode()


def approval(run: Bottle, number: int, /, **changes: Any) -> Approval:
    prekey = run[number].prekey.public
    return replace(Approval(run.proposal.run, run.proposal.plan, 10, prekey), **changes)


def start(run: Bottle, *approvals: bytes) -> bytes:
    return envelope(run[LEFT].identity, "start", Start(run.proposal.run, approvals).encode())  # LEFT has proposed


def yes(run: Bottle, number: int, /, **changes: Any) -> bytes:
    return envelope(run[number].identity, "approval", approval(run, number, **changes).encode())


def by_stranger(run: Bottle) -> bytes:
    return envelope(STRANGER, "approval", approval(run, HOSTILE).encode())


Make = Callable[[Bottle], bytes]
BEFORE: dict[str, tuple[Make, str, int]] = {  # bytes that HOSTILE brings, the reason, and who is blamed
    "approval by a stranger": (by_stranger, "a key that the charter does not name", HOSTILE),
    "approval of another run": (lambda run: yes(run, OPPOSITE, run=sha256(b"x")), "about another run", HOSTILE),
    "approval of another plan": (lambda run: yes(run, OPPOSITE, plan=sha256(b"x")), "another plan", OPPOSITE),
    "approval of no samples": (lambda run: yes(run, OPPOSITE, samples=0), "sample count out of range", OPPOSITE),
    "approval with a useless prekey": (
        lambda run: yes(run, OPPOSITE, prekey=bytes(32)), "no usable X25519 key", OPPOSITE,
    ),
    "a second, different approval": (lambda run: yes(run, LEFT, samples=11), "two different approvals", LEFT),
    "start record by a non-proposer": (
        lambda run: envelope(
            run[HOSTILE].identity, "start", Start(run.proposal.run, (yes(run, LEFT), yes(run, HOSTILE))).encode()
        ),
        "not signed by its proposer",
        HOSTILE,
    ),
    "start record with a forged approval": (
        lambda run: start(run, yes(run, LEFT), flip(yes(run, HOSTILE), -1)), "signature", LEFT,
    ),
    "start record with an altered approval": (
        lambda run: start(run, yes(run, LEFT), flip(yes(run, HOSTILE), 60)), "signature|decoded|envelope|kind", LEFT,
    ),
    "start record with a stranger": (
        lambda run: start(run, yes(run, LEFT), by_stranger(run)), "the charter does not name", LEFT,
    ),
    "start record with one approval twice": (
        lambda run: start(run, yes(run, LEFT), yes(run, LEFT)), "two approvals of one member", LEFT,
    ),
    "start record with another run's approval": (
        lambda run: start(run, yes(run, LEFT), yes(run, HOSTILE, run=sha256(b"x"))), "approval of another run", LEFT,
    ),
    "start record of one": (lambda run: start(run, yes(run, LEFT)), "1 participants", LEFT),
    "start record of nobody": (lambda run: start(run), "not a short list", LEFT),
    "a second start signature": (
        lambda run: envelope(
            run[OPPOSITE].identity, "start-signature", StartSignature(run.proposal.run, sha256(b"second")).encode()
        ),
        "two different start records",
        OPPOSITE,
    ),
    "start signature by a stranger": (
        lambda run: envelope(STRANGER, "start-signature", StartSignature(run.proposal.run, sha256(b"r")).encode()),
        "the charter does not name",
        HOSTILE,
    ),
    "an unknown kind": (lambda run: envelope(run[HOSTILE].identity, "gossip", b""), "not expected here", HOSTILE),
    "no map": (lambda run: envelope(run[HOSTILE].identity, "approval", b"\x01"), "names no run", HOSTILE),
    "a field too many": (
        lambda run: envelope(
            run[OPPOSITE].identity, "approval", b"\x85\xa1x\x01" + approval(run, OPPOSITE).encode()[1:]
        ),
        "wrong fields",
        OPPOSITE,
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def proposed(tmp_path_factory: pytest.TempPathFactory) -> Bottle:
    """LEFT's proposal is known everywhere; ME has heard LEFT's approval and OPPOSITE's start signature."""
    files = Quadratic.make((40, 30, 20, 10)).write(tmp_path_factory.mktemp("proposed"))
    run = Bottle(files, QUADRATIC_PLAN, SETTINGS, rounds=4, closing_rounds=1)
    for site in run.sites.values():
        site.post(events.Proposed(run.now))
    run.link_all()
    signature = StartSignature(run.proposal.run, sha256(b"first"))
    for number, data in (
        (LEFT, yes(run, LEFT)),
        (OPPOSITE, envelope(run[OPPOSITE].identity, "start-signature", signature.encode())),
    ):
        run[ME].post(events.StatementReceived(run.now, run.order[number], data))
    assert len(run.machine(ME).starting.approvals) == len(run.machine(ME).starting.signatures) == 1
    return run


@pytest.mark.parametrize("name", BEFORE)
def test_a_hostile_statement_before_the_start_changes_nothing(proposed: Bottle, name: str) -> None:
    make, reason, blamed = BEFORE[name]
    refused_and_unchanged(proposed, make(proposed), reason, blamed)


def refused_and_unchanged(run: Bottle, data: bytes, reason: str, blamed: int) -> None:
    before = known(run.machine(ME))
    tried, entries = brought(run, data, HOSTILE)
    assert known(tried) == before
    assert [entry.body["peer"] for entry in entries] == [run.order[blamed]]
    assert re.search(reason, entries[0].body["reason"]), entries[0].body["reason"]
    assert tried.context.counters["refused"] == 1


@pytest.mark.parametrize("kind", ["approval", "start", "closing"])
def test_every_altered_byte_of_a_statement_is_refused(proposed: Bottle, kind: str) -> None:
    payloads = {
        "approval": (OPPOSITE, approval(proposed, OPPOSITE).encode()),
        "start": (LEFT, Start(proposed.proposal.run, (yes(proposed, LEFT), yes(proposed, HOSTILE))).encode()),
        "closing": (OPPOSITE, Closing(proposed.proposal.run, True, 5, sha256(b"d"), (), 0).encode()),
    }
    signer, payload = payloads[kind]
    data = envelope(proposed[signer].identity, kind, payload)
    before = known(proposed.machine(ME))
    for place in range(0, len(data), 7 if kind == "start" else 3):
        tried, entries = brought(proposed, flip(data, place), HOSTILE)
        assert known(tried) == before and len(entries) == 1, f"byte {place} of {len(data)}"
        assert entries[0].body["peer"] == proposed.order[HOSTILE]


@pytest.fixture(scope="module")
def under_way(tmp_path_factory: pytest.TempPathFactory) -> Bottle:
    """Three of four take part (OPPOSITE has not approved); ME collects in round 2, with an edge that is not settled."""
    files = Quadratic.make((40, 30, 20, 10)).write(tmp_path_factory.mktemp("running"))
    run = Bottle(files, QUADRATIC_PLAN, SETTINGS, rounds=6)
    run.begin(approving=[LEFT, ME, HOSTILE])
    run.run(lambda: run.machine(ME).state is State.COLLECTING and run.machine(ME).context.position[0] == ROUND)
    closing = Closing(run.proposal.run, True, 6, sha256(b"first"), (), 0)
    run[ME].post(
        events.StatementReceived(run.now, run.order[LEFT], envelope(run[LEFT].identity, "closing", closing.encode()))
    )
    machine = run.machine(ME)
    assert machine.deliveries.outgoing and run.order[LEFT] in machine.closing.statements
    assert any(ledger._verdicts for ledger in machine.rounds.edges.ledgers.values())
    return run


def closing(run: Bottle, identity: Identity, /, **changes: Any) -> bytes:
    statement = replace(Closing(run.proposal.run, True, 6, sha256(b"d"), (), 0), **changes)
    return envelope(identity, "closing", statement.encode())


def settle(run: Bottle, number: int, signer: Identity | None = None, /, **changes: Any) -> bytes:
    everything = EdgeList((0, 0), tuple((round_, 0, False, True) for round_ in range(ROUND)))
    statement = replace(Settle(run.proposal.run, run.order[ME], (6, 0), everything, False), **changes)
    return envelope(signer or run[number].identity, "settle", statement.encode())


def acknowledgement(run: Bottle, identity: Identity) -> bytes:
    cores = tuple(run.machine(ME).deliveries.outgoing)
    return envelope(identity, "acknowledgement", Acknowledgement(run.proposal.run, cores).encode())


DURING: dict[str, tuple[Make, str, int]] = {
    "closing by a stranger": (lambda run: closing(run, STRANGER), "the charter does not name", HOSTILE),
    "a second, different closing": (
        lambda run: closing(run, run[LEFT].identity), "two different closing statements", LEFT,
    ),
    "closing of another run": (
        lambda run: closing(run, run[HOSTILE].identity, run=sha256(b"x")), "about another run", HOSTILE,
    ),
    "settle for another edge": (
        lambda run: settle(run, HOSTILE, recipient=run.order[LEFT]), "another edge", HOSTILE,
    ),
    "settle signed by another member": (
        lambda run: settle(run, LEFT), "settle signed by .*, not by the peer that sent it", HOSTILE,
    ),
    "settle by a stranger": (lambda run: settle(run, HOSTILE, STRANGER), "the charter does not name", HOSTILE),
    "settle of another run": (lambda run: settle(run, HOSTILE, run=sha256(b"x")), "about another run", HOSTILE),
    "settle from the beginning of the run": (
        lambda run: settle(run, HOSTILE, position=(0, 0)), "not written at an end", HOSTILE,
    ),
    "settle from the middle of a round": (
        lambda run: settle(run, HOSTILE, position=(5, 1)), "not written at an end", HOSTILE,
    ),
    "settle from after the end": (
        lambda run: settle(run, HOSTILE, position=(2_000_000, 2**60)), "not written at an end", HOSTILE,
    ),
    "acknowledgement by another member": (
        lambda run: acknowledgement(run, run[LEFT].identity), "not by the peer that sent it", HOSTILE,
    ),
    "acknowledgement by a stranger": (
        lambda run: acknowledgement(run, STRANGER), "the charter does not name", HOSTILE,
    ),
    "a second start record": (lambda run: start(run, yes(run, LEFT), yes(run, HOSTILE)), "second, different", LEFT),
    "a start signature for another record": (
        lambda run: envelope(
            run[LEFT].identity, "start-signature", StartSignature(run.proposal.run, sha256(b"other")).encode()
        ),
        "two different start records",
        LEFT,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DURING)
def test_a_hostile_statement_during_the_run_changes_nothing(under_way: Bottle, name: str) -> None:
    make, reason, blamed = DURING[name]
    refused_and_unchanged(under_way, make(under_way), reason, blamed)


def test_the_honest_statements_of_these_tables_do_change_something(proposed: Bottle, under_way: Bottle) -> None:
    """Else the tables above would pass for a machine that hears nothing."""
    for run, data in (
        (proposed, yes(proposed, HOSTILE)),
        (under_way, closing(under_way, under_way[HOSTILE].identity)),
        (under_way, settle(under_way, HOSTILE)),
        (under_way, acknowledgement(under_way, under_way[HOSTILE].identity)),
    ):
        tried = copy.deepcopy(run.machine(ME))
        tried.handle(events.StatementReceived(run.now, run.order[HOSTILE], data))
        assert known(tried) != known(run.machine(ME))
        assert tried.context.counters["refused"] == 0


def test_a_closing_by_a_member_who_takes_no_part_is_kept_for_later_and_counts_for_nothing(under_way: Bottle) -> None:
    """The proposer may have admitted it, and the word of that may still be on its way."""
    tried = copy.deepcopy(under_way.machine(ME))
    data = closing(under_way, under_way[OPPOSITE].identity)
    tried.handle(events.StatementReceived(under_way.now, under_way.order[OPPOSITE], data))
    assert tried.context.counters["refused"] == 0
    assert tried.closing.record() == under_way.machine(ME).closing.record()


def test_an_approval_with_a_useless_prekey_keeps_nobody_from_training(tmp_path: Path) -> None:
    """Encrypting to a key of small order fails; the site that names one is left out, the others run."""
    files = Quadratic.make((40, 30, 20, 10)).write(tmp_path)
    run = Bottle(files, QUADRATIC_PLAN, SETTINGS, rounds=3)
    run.begin(approving=[0, 1, 2])
    data = yes(run, OPPOSITE, prekey=bytes(32))
    for site in run.sites.values():
        site.post(events.StatementReceived(run.now, run.order[OPPOSITE], data))
    run.run()
    for number in range(3):
        assert run.machine(number).state is State.DONE and run.machine(number).rounds.rounds_done == 3
        assert [entry["peer"] for entry in run[number].entries("refused")] == [run.order[OPPOSITE]]


def test_strangers_statements_are_bounded_by_who_brings_them(under_way: Bottle) -> None:
    """A new key for every statement: the entries count for the member that passes them on."""
    tried, entries = copy.deepcopy(under_way.machine(ME)), 0
    for number in range(50):
        stranger = Identity.from_seed(number.to_bytes(32, "big"))
        data = closing(under_way, stranger)
        for effect in tried.handle(events.StatementReceived(under_way.now, under_way.order[HOSTILE], data)):
            entries += isinstance(effect, effects.Commit)
    assert entries == REFUSALS_LOGGED
    assert tried.context.refusals == {under_way.order[HOSTILE]: 50}
