"""Accelerated closing rounds: the textbook's recurrence, what is taken back late, missed rounds, checkpoints."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.polynomial.chebyshev import chebval
from session_worlds import RUN, key_of, settings_of
from train_worlds import QUADRATIC_PLAN

from p2pfl.errors import DataError, IllegalStep
from p2pfl.topology import Schedule, chebyshev_factors, spectral_gap
from p2pfl.topology.chebyshev import MOST_RHO
from p2pfl.train.exchange import Edge, Exchange
from p2pfl.train.inertia import Inertia
from p2pfl.train.model_files import vector_digest
from p2pfl.train.session import Session
from p2pfl.types import PeerId

GRAPHS: dict[str, tuple[dict[str, Any], int]] = {
    "ring": ({"kind": "ring"}, 12),
    "torus": ({"kind": "torus", "rows": 4, "columns": 5}, 20),
    "random": ({"kind": "erdos_renyi", "probability": 0.3, "seed": 2}, 14),
    "regular": ({"kind": "regular", "degree": 3, "seed": 4}, 12),
    "star by its degrees": ({"kind": "star", "weights": "uniform"}, 6),
}
SIZE = 5
FIRST = 3  # the first closing round


def schedule_of(spec: dict[str, Any], sites: int, closing: int) -> Schedule:
    nodes = [PeerId(f"{k:02d}") for k in range(sites)]
    shares = {node: 1.0 + k % 4 for k, node in enumerate(nodes)}
    return Schedule({**spec, "closing": "chebyshev"}, nodes, shares, FIRST, closing)


class Sites:
    """Exchanges joined by hand; each site's x moves by what its exchange says."""

    def __init__(self, schedule: Schedule, x: torch.Tensor) -> None:
        self.schedule, self.x = schedule, x.clone()
        self.exchanges = [Exchange({"x": None}, x.shape[1], torch.float64) for _ in x]
        self.owed: list[list[Any]] = [[] for _ in x]

    def round(self, t: int, lost: frozenset[tuple[int, int]] = frozenset(), away: frozenset[int] = frozenset()) -> None:
        """``lost`` (receiver, sender); whoever is ``away`` takes no part, and nobody mixes with it."""
        nodes, mixing = self.schedule.nodes, self.schedule.round(t).mixings[0]
        here = [i for i in range(len(nodes)) if i not in away]
        sent = {}
        for i in here:
            moved = self.exchanges[i].inertia.coast(self.schedule.inertias(t), t)
            self.x[i] += moved.get("x", torch.zeros(self.x.shape[1], dtype=torch.float64))
            self.exchanges[i].start_round()
            sent[i] = self.exchanges[i].encode({"x": self.x[i].clone()})[0]
        for i in here:
            edges = []
            for peer, weight in mixing.neighbours(nodes[i]):
                j = nodes.index(peer)
                if j in away or (i, j) in lost:
                    continue
                self.exchanges[i].receive(peer, "x", sent[j]["payload"], sent[j]["result"])
                edges.append(Edge(peer, weight, {"x": peer}))
            tags = [(peer, t, 0) for peer, *_ in edges]
            owed, self.owed[i] = self.owed[i], []
            self.exchanges[i].check(tags, edges, owed, 2.0)
            self.exchanges[i].mix(tags, edges)
            self.finish(i, t, owed)

    def finish(self, i: int, t: int, owed: list[Any]) -> None:
        inertias = self.schedule.inertias(t + 1)
        self.x[i] += self.exchanges[i].finish(owed, t, inertias)["x"]

    def mean(self) -> torch.Tensor:
        return torch.tensor(self.schedule.law, dtype=torch.float64) @ self.x / sum(self.schedule.law)


def start(sites: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(sites, SIZE)))


@pytest.mark.parametrize(("spec", "sites"), GRAPHS.values(), ids=list(GRAPHS))
def test_without_losses_it_is_the_textbook_recurrence(spec: dict[str, Any], sites: int) -> None:
    schedule = schedule_of(spec, sites, 25)
    world, x = Sites(schedule, start(sites)), start(sites).numpy()
    w = schedule.round(0).mixings[0].matrix.toarray()
    rho = min(1 - spectral_gap(w, schedule.law) + 2e-6, MOST_RHO)
    before, now, omega = x, w @ x, 1.0
    for t in range(FIRST, schedule.total):
        world.round(t)
        np.testing.assert_allclose(world.x.numpy(), now, atol=1e-12, rtol=0)
        omega = 1 / (1 - rho**2 / 2) if t == FIRST else 1 / (1 - rho**2 * omega / 4)
        beta = dict(schedule.inertias(t + 2)).get(t + 1, 0.0)
        assert t + 1 == schedule.total or omega - 3e-5 < 1 + beta <= omega + 1e-12, (
            "rho is rounded up by less than 2e-6"
        )
        before, now = now, (1 + beta) * (w @ now - before) + before


@pytest.mark.parametrize(("spec", "sites"), GRAPHS.values(), ids=list(GRAPHS))
def test_the_slowest_direction_is_left_as_the_factors_say(spec: dict[str, Any], sites: int) -> None:
    """The eigenvector of the second largest |eigenvalue|; nothing else is left more of, in D^2 = sum pi |x|^2."""
    schedule = schedule_of(spec, sites, 25)
    w, root = schedule.round(0).mixings[0].matrix.toarray(), np.sqrt(np.array(schedule.law))
    values, vectors = np.linalg.eigh((root[:, None] * w / root[None, :] + (root[:, None] * w / root[None, :]).T) / 2)
    slowest = int(np.argsort(np.abs(values))[-2])
    second = abs(float(values[slowest]))
    rho = min(second, MOST_RHO)
    factors = [chebval(second / rho, [0] * t + [1]) / chebval(1 / rho, [0] * t + [1]) for t in range(1, 26)]
    assert second > MOST_RHO or factors == pytest.approx(chebyshev_factors(second, 25), rel=1e-6)
    worst = Sites(schedule, torch.from_numpy(np.ascontiguousarray(vectors[:, [slowest]] / root[:, None])))
    other = Sites(schedule, start(sites))
    apart = float((torch.from_numpy(root)[:, None] * (other.x - other.mean())).norm())
    for t in range(FIRST, schedule.total):
        worst.round(t)
        other.round(t)
        assert float((torch.from_numpy(root)[:, None] * worst.x).norm()) == pytest.approx(factors[t - FIRST], rel=2e-3)
        left = float((torch.from_numpy(root)[:, None] * (other.x - other.mean())).norm())
        assert left <= factors[t - FIRST] * apart * (1 + 2e-3)
    assert schedule.closing_contraction() == pytest.approx(factors[-1], rel=2e-3)


@pytest.mark.parametrize("late", [0, 1, 4, 30], ids=lambda late: f"{late} rounds later")
@pytest.mark.parametrize(("spec", "sites"), list(GRAPHS.values())[:3], ids=list(GRAPHS)[:3])
def test_an_edge_that_one_end_counted_is_taken_back_as_far_as_it_went(
    spec: dict[str, Any], sites: int, late: int
) -> None:
    """5 % of the messages are lost on one side; taken back at once, later, or when all rounds are over."""
    schedule, chance = schedule_of(spec, sites, 20), random.Random(late)
    world, due = Sites(schedule, start(sites)), []
    mean, lost = world.mean(), 0
    places = {node: k for k, node in enumerate(schedule.nodes)}
    edges = [
        (i, places[peer]) for i, node in enumerate(schedule.nodes)
        for peer, _ in schedule.round(0).mixings[0].neighbours(node)
    ]  # fmt: skip
    for t in range(FIRST, schedule.total):
        gone = frozenset(edge for edge in edges if chance.random() < 0.05)
        due += [(t + late, j, (schedule.nodes[i], t, 0)) for i, j in gone if (j, i) not in gone]
        lost += len(gone)
        for _, receiver, tag in [row for row in due if row[0] <= t and row[2][1] < t]:
            world.owed[receiver].append(tag)
        due = [row for row in due if not (row[0] <= t and row[2][1] < t)]
        world.round(t, gone)
    for _, receiver, tag in due:
        world.owed[receiver].append(tag)
    for i in range(sites):
        world.finish(i, schedule.total, world.owed[i])
    assert lost > 10
    assert float((world.mean() - mean).abs().max()) < 1e-13


def test_a_site_that_misses_rounds_makes_up_for_what_it_had_begun() -> None:
    schedule = schedule_of({"kind": "ring"}, 8, 20)
    for gone in ((5, 6, 7), tuple(range(10, schedule.total))):
        world = Sites(schedule, start(8))
        mean = world.mean()
        for t in range(FIRST, schedule.total):
            world.round(t, away=frozenset({2, 5}) if t in gone else frozenset())
        between = world.mean()
        for i in range(8):
            world.finish(i, schedule.total, [])
        assert float((world.mean() - mean).abs().max()) < 1e-14
        assert (float((between - mean).abs().max()) > 1e-6) == (gone[-1] == schedule.total - 1)


def test_factors_are_the_sums_of_products() -> None:
    betas = [(4, 0.0), (5, 0.5), (6, 0.25), (7, 0.125)]
    inertia, one = Inertia(), torch.ones(1, dtype=torch.float64)
    assert inertia.round(4, betas[:1], {"x": one}, [("j", 4, 0)]) == {"x": one}
    assert inertia.factors == {("j", 4, 0): (1.0, 1.0)}
    moved = inertia.round(7, betas, {"x": torch.zeros_like(one)}, [])
    assert moved["x"].item() == 0.5 + 0.125 + 0.015625
    assert inertia.take_back(("j", 4, 0), {"x": one})["x"].item() == 1.640625 and inertia.flow["x"].item() == 0
    assert inertia.round(8, betas, {}, []) == {}, "past the end nothing moves any more"


def test_heavier_weights_are_for_accelerated_rounds_alone() -> None:
    exchange = Exchange({"x": None}, 2, torch.float64)
    (message,) = exchange.encode({"x": torch.ones(2, dtype=torch.float64)})
    exchange.receive("k", "x", message["payload"], message["result"])
    with pytest.raises(IllegalStep, match=r"weight 1\.5 for j"):
        exchange.check([("j", 0, 0)], [Edge("j", 1.5, {"x": "k"})], [])
    exchange.check([("j", 0, 0)], [Edge("j", 1.5, {"x": "k"})], [], 2.0)


# --- checkpoints


class Closing:
    """Three sessions on a full graph with one training round, then accelerated rounds with losses and one absence."""

    def __init__(self, rule: str) -> None:
        self.schedule = schedule_of({"kind": "chain"}, 3, 8)
        self.sessions = [Session(QUADRATIC_PLAN, settings_of(rule)) for _ in range(3)]
        initial = self.sessions[0].initial(seed=5)
        self.beginning = {"initial": initial, "run": RUN, "key": key_of(0), "share": 1 / 3}
        self.done: list[tuple[str, dict[str, Any]]] = []
        for i, session in enumerate(self.sessions):
            session.load_data(f"{i}")
            session.begin(**{**self.beginning, "key": key_of(i)})

    def ask(self, i: int, name: str, **arguments: Any) -> Any:
        if i == 0:
            self.done.append((name, arguments))
        return getattr(self.sessions[i], name)(**arguments)

    def play(self) -> None:
        nodes = self.schedule.nodes
        for t in range(FIRST - 1, self.schedule.total):
            training = t < FIRST
            here = [0, 1, 2] if t not in (FIRST + 2, FIRST + 3) else [1, 2]
            plan, sent = self.schedule.round(t), {}
            for i in here:
                if training:
                    self.ask(i, "train", round=t, steps=2)
                more = {"inertia": [list(row) for row in self.schedule.inertias(t)]}
                sent[i] = self.ask(i, "encode", round=t, step=0, closing=not training, **more)
            for i in here:
                edges = []
                for peer, weight in plan.mixings[0].neighbours(nodes[i]):
                    j = nodes.index(peer)
                    if j in here:
                        for m in sent[j]:
                            key = f"{j}/{m['channel']}"
                            self.ask(i, "receive", key=key, **{k: m[k] for k in ("channel", "payload", "result")})
                        edges.append((peer, weight, {m["channel"]: f"{j}/{m['channel']}" for m in sent[j]}))
                owed = [(nodes[1], FIRST + 1, 0)] if (i, t) == (0, FIRST + 5) else []
                inertia = [list(row) for row in self.schedule.inertias(t + 1)]
                self.ask(
                    i, "mix", round=t, step=0, edges=edges, corrections=owed, last=True, closing=not training,
                    inertia=inertia,
                )  # fmt: skip


@pytest.mark.parametrize("rule", ["dpsgd", "kgt"])
def test_a_session_killed_at_any_step_goes_on_with_the_same_bits(tmp_path: Path, rule: str) -> None:
    world = Closing(rule)
    world.play()
    digest = world.sessions[0].digest()
    assert world.sessions[0]._exchange.inertia.until == world.schedule.total - 1  # type: ignore[union-attr]
    for killed in range(len(world.done) + 1):
        session = Session(QUADRATIC_PLAN, settings_of(rule))
        session.load_data("0")
        session.begin(**world.beginning)
        pending: list[dict[str, Any]] = []
        for place, (name, arguments) in enumerate([*world.done, ("", {})]):
            if place == killed:
                saved = session.save(str(tmp_path / "state"))
                session = Session(QUADRATIC_PLAN, settings_of(rule))
                session.load_data("0")
                session.restore(str(tmp_path / "state"), **world.beginning, digest=saved)
                assert session.save(str(tmp_path / "again")) == saved
                for message in pending:  # what was received is not in it
                    session.receive(**message)
            pending = [*pending, arguments] if name == "receive" else [] if name == "mix" else pending
            if name:
                getattr(session, name)(**arguments)
        assert session.digest() == digest, f"killed before operation {killed}"


def test_plain_sessions_write_the_checkpoints_they_wrote_before(tmp_path: Path) -> None:
    world = Closing("dpsgd")
    first = world.sessions[0]
    first.train(0, 1)
    first.save(str(tmp_path / "state"))
    assert b"inertia" not in (tmp_path / "state").read_bytes()
    world.play()
    first.save(str(tmp_path / "state"))
    assert b"inertia" in (tmp_path / "state").read_bytes()


def test_a_checkpoint_whose_flow_does_not_fit_is_refused(tmp_path: Path) -> None:
    world = Closing("dpsgd")
    world.play()
    first = world.sessions[0]
    first._exchange.inertia.flow["x"] = torch.zeros(1, dtype=torch.float64)  # type: ignore[union-attr]
    digest = first.save(str(tmp_path / "state"))
    before = vector_digest(first.vector)
    with pytest.raises(DataError, match="does not fit the plan's model"):
        first.restore(str(tmp_path / "state"), **world.beginning, digest=digest)
    assert first.digest() == before
