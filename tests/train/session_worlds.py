"""Sessions of one small consortium, joined by hand."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from typing import Any

import torch
from train_worlds import QUADRATIC_PLAN, stationary_edges, weighted_optimum

from p2pfl.topology import Schedule
from p2pfl.train.plan_code import PlanCode
from p2pfl.train.session import Session

RUN = b"run"


def settings_of(rule: str = "dpsgd", **more) -> dict:
    return {
        "rule": rule,
        "learning_rate": 0.04,
        "local_steps": 3,
        "batch_size": 8,
        "dtype": "float64",
        **more,
    }


def key_of(site: int) -> bytes:
    return hashlib.sha256(bytes([site])).digest()


class Pushing(Session):
    """A session of push-sum that adds up what its local steps put into its numerators."""

    def __init__(self, rule: str = "sgp") -> None:
        super().__init__(QUADRATIC_PLAN, settings_of(rule))
        self.put = torch.zeros(1, dtype=torch.float64)

    @property
    def numerator(self) -> torch.Tensor:
        return self.state["weight"] * self.vector + self.state["rest"]

    def train(self, *args: Any, **named: Any) -> Any:
        before = self.numerator
        answer = super().train(*args, **named)
        self.put = self.put + self.numerator - before
        return answer


def pushing(schedule: Schedule, rule: str = "sgp") -> list[Pushing]:
    """Sessions that have begun, in the order of the schedule's sites."""
    sessions = [Pushing(rule) for _ in schedule.nodes]
    initial = sessions[0].initial(seed=5)
    for site, (session, first) in enumerate(zip(sessions, schedule.weights_before(0), strict=True)):
        session.load_data(f"{site}")
        session.begin(initial, RUN, key_of(site), schedule.law[site], first)
    return sessions


@dataclass
class Pushed:
    """What happened in rounds of push-sum."""

    one_sided: int = 0  # edges that one end alone counted, at first
    furthest: float = 0.0  # the largest entry that any model had
    light: bool = False  # whether any site kept what it could not read


def push_rounds(
    sessions: list[Pushing], schedule: Schedule, lossy: int, loss: float, seed: int = 6, *, steps: int = 3
) -> Pushed:
    """All rounds; in the first ``lossy`` ones messages are lost at one end, and taken back 1 to 4 rounds later."""
    chance, told, owed = random.Random(seed), Pushed(), dict[int, list[list[Any]]]()
    for t in range(schedule.total):
        plan = schedule.round(t)
        mixing, places = plan.mixings[0], {node: place for place, node in enumerate(schedule.nodes)}
        for site in plan.active if plan.training else ():
            sessions[places[site]].train(t, steps)
        sent = [session.encode(t, 0, closing=not plan.training) for session in sessions]
        near = [[(places[other], weight) for other, weight in mixing.neighbours(node)] for node in schedule.nodes]
        lost = {(i, j) for i, others in enumerate(near) for j, _ in others if t < lossy and chance.random() < loss}
        back = owed.pop(t, [[] for _ in sessions])
        for i, session in enumerate(sessions):
            given, rows = mixing.given(schedule.nodes[i]), []
            for j, weight in near[i]:
                if (i, j) in lost:
                    continue
                keys = {m["channel"]: f"{j}/{m['channel']}" for m in sent[j]}
                for m in sent[j]:
                    session.receive(keys[m["channel"]], m["channel"], m["payload"], m["result"], schedule.law[j])
                rows.append((f"{j}", weight, keys, t, 0, given[schedule.nodes[j]]))
                if (j, i) in lost:
                    told.one_sided += 1
                    owed.setdefault(t + chance.randint(1, 4), [[] for _ in sessions])[i].append((f"{j}", t, 0))
                else:
                    session.forget([(f"{j}", t, 0)])
            if rows or back[i]:
                session.mix(t, 0, rows, back[i], True, not plan.training)
            told.light |= bool(session.state["rest"].any())
            told.furthest = max(told.furthest, float(session.vector.abs().max()))
    return told


class Consortium:
    """Sessions joined by hand, edge by edge."""

    def __init__(self, plan: bytes, sites: int, kind: str = "ring", **settings) -> None:
        shares = 1.0 + torch.arange(sites, dtype=torch.float64)
        self.shares = shares / shares.sum()
        self.sessions = [Session(plan, settings_of(**settings)) for _ in range(sites)]
        initial = self.sessions[0].initial(seed=5)
        for i, session in enumerate(self.sessions):
            session.load_data(f"{i}")
            session.begin(initial, RUN, key_of(i), float(self.shares[i]))
        self.edges = stationary_edges(kind, self.shares)
        self.steps = settings_of(**settings)["local_steps"]

    def round(self, number: int, lost=frozenset(), corrections=None) -> None:
        for session in self.sessions:
            session.train(number, self.steps)
        self.mix(number, lost, corrections)

    def mix(self, number: int, lost=frozenset(), corrections=None, closing: bool = False, steps=1) -> None:
        """``lost`` holds (receiver, sender) that do not arrive, ``corrections`` tags per site."""
        for step in range(steps):
            sent = [session.encode(number, step, closing) for session in self.sessions]
            last = step == steps - 1
            for i, session in enumerate(self.sessions):
                edges = []
                for receiver, sender, weight in self.edges:
                    if receiver != i or (receiver, sender) in lost:
                        continue
                    keys = {m["channel"]: f"{sender}/{m['channel']}" for m in sent[sender]}
                    for message in sent[sender]:
                        key = keys[message["channel"]]
                        session.receive(key, message["channel"], message["payload"], message["result"])
                    edges.append((str(sender), weight, keys))
                owed = corrections[i] if corrections and last else []
                session.mix(number, step, edges, owed, last, closing)

    @property
    def stacked(self) -> torch.Tensor:
        return torch.stack([session.vector for session in self.sessions])

    @property
    def mean(self) -> torch.Tensor:
        return (self.shares[:, None] * self.stacked).sum(0)

    def drift(self) -> float:
        """|sum_i pi_i c_i|, 0 if every one-sided displacement has been taken back."""
        corrections = torch.stack([session.state["correction"] for session in self.sessions])
        return float((self.shares[:, None] * corrections).sum(0).abs().max())


def quadratic_optimum(shares: torch.Tensor) -> torch.Tensor:
    parts = [PlanCode(QUADRATIC_PLAN).load(f"{i}", torch.float64)["train"] for i in range(len(shares))]
    return weighted_optimum(torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts]), shares)


def lossy_rounds(world: Consortium, lossy: int, quiet: int, *, loss: float, seed: int = 0, settle: bool = True) -> int:
    """Rounds in which directed messages are lost, then rounds without; how many one-sided displacements there were.

    With ``settle`` they are taken back 1 to 4 rounds later.
    """
    chance, one_sided = random.Random(seed), 0
    directed = [(receiver, sender) for receiver, sender, _ in world.edges]
    owed: dict[int, list[list]] = {}
    for number in range(lossy + quiet):
        lost = frozenset(edge for edge in directed if number < lossy and chance.random() < loss)
        world.round(number, lost, owed.pop(number, [[] for _ in world.sessions]))
        for receiver, sender in directed:
            if (receiver, sender) in lost:
                continue
            tag = (str(sender), number, 0)
            one_sided += (sender, receiver) in lost
            if settle and (sender, receiver) in lost:
                later = owed.setdefault(number + chance.randint(1, 4), [[] for _ in world.sessions])
                later[receiver].append(tag)
            else:
                world.sessions[receiver].forget([tag])
    return one_sided
