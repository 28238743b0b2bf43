"""Weights that no honest site tells: each is refused at once, blames its sender, and nobody divides by it."""

from __future__ import annotations

from math import inf, nan
from typing import Any

import pytest
import torch
from session_worlds import RUN, Pushing, key_of, settings_of
from torch import Tensor
from train_worlds import QUADRATIC_PLAN

from p2pfl.errors import IllegalStep, MalformedMessage, PlanError
from p2pfl.topology import Schedule
from p2pfl.train import deltas
from p2pfl.train.exchange import Exchange
from p2pfl.train.model_files import vector_digest
from p2pfl.train.push_weights import LEAST, check_received, most_told, quotient
from p2pfl.train.rules import WEIGHT
from p2pfl.train.session import Session
from p2pfl.types import PeerId

SITES = 4
LIES = [-50.0, -1e-9, 8.1, 1e6, 1e308]  # of a site that counts 1/4: at most 8 is told
HIERARCHICAL = {"kind": "hierarchical", "clusters": 2}


class Site(Pushing):
    """Begins as one of four, and may lie about its weight."""

    def __init__(self, number: int, lie: float | None, share: float = 1 / SITES) -> None:
        super().__init__()
        self.load_data(f"{number}")
        self.begin(self.initial(seed=5), RUN, key_of(number), share)
        self.first, self.lie, self.share = self.vector, lie, share

    def encode(self, *args: Any, **named: Any) -> Any:
        answers = super().encode(*args, **named)
        for answer in answers:
            if answer["channel"] == WEIGHT and self.lie is not None:
                payload, _, digest = deltas.encode(torch.tensor([self.lie], dtype=torch.float64), None)
                answer.update(payload=payload, result=digest)
        return answers


def played(sites: list[Site], spec: dict[str, Any], rounds: int) -> int:
    """How many messages were refused; who refuses one mixes without its sender, who mixes with nobody then."""
    nodes = [PeerId(str(number)) for number in range(SITES)]
    schedule = Schedule(spec, nodes, {node: site.share for node, site in zip(nodes, sites, strict=True)}, rounds, 0)
    refused = 0
    for t in range(rounds):
        for site in sites:
            site.train(t, 3)
        for step, mixing in enumerate(schedule.round(t).mixings):
            sent = [site.encode(t, step, closing=False) for site in sites]
            for number, site in enumerate(sites):
                given, rows = mixing.given(nodes[number]), []
                for other, weight in mixing.neighbours(nodes[number]):
                    keys = {m["channel"]: f"{other}/{m['channel']}" for m in sent[int(other)]}
                    try:
                        for m in sent[int(other)]:
                            site.receive(
                                keys[m["channel"]], m["channel"], m["payload"], m["result"], sites[int(other)].share
                            )
                    except MalformedMessage:
                        refused += 1
                        continue
                    if site.lie is None:
                        rows.append((other, weight, keys, t, step, *([given[other]] if given else [])))
                site.mix(t, step, rows, [], step == len(schedule.round(t).mixings) - 1, False)
                site.forget([(row[0], t, step) for row in rows])
    return refused


@pytest.mark.parametrize("lie", LIES, ids=str)
@pytest.mark.parametrize("spec", [{"kind": "exponential"}, {"kind": "full"}, HIERARCHICAL], ids=lambda s: s["kind"])
def test_honest_sites_train_on_beside_a_liar(spec: dict[str, Any], lie: float) -> None:
    sites = [Site(number, lie if number == 2 else None) for number in range(SITES)]
    refused = played(sites, spec, 12)
    honest = [site for site in sites if site.lie is None]
    weights = torch.stack([site.state["weight"] for site in honest])
    numerators = torch.stack([site.numerator - site.put for site in honest])
    assert refused > 5 and float(weights.sum()) == pytest.approx(3.0, abs=1e-13)
    assert float((numerators.sum(0) - 3 * honest[0].first).abs().max()) < 1e-12
    assert max(float(site.vector.abs().max()) for site in honest) < 20.0


def test_nobody_makes_an_honest_site_tell_a_weight_that_is_refused() -> None:
    """The most that a light site may tell, told in each round: what a heavy one tells in the round's second mixing."""
    shares = [100 / 103, 1 / 103, 1 / 103, 1 / 103]
    sites = [Site(number, 2 / share if number == 1 else None, share) for number, share in enumerate(shares)]
    assert played(sites, HIERARCHICAL, 12) == 0
    assert float(sites[0].state["weight"]) > 2 / shares[0], "or nothing was held back"


def exchange(dtype: torch.dtype = torch.float64) -> Exchange:
    return Exchange({"x": None, WEIGHT: None}, 3, dtype)


def received(found: Exchange, channel: str, value: Tensor, share: float | None) -> None:
    payload = value.numpy().astype("<f4" if value.dtype == torch.float32 else "<f8").tobytes()
    found.receive("key", channel, payload, vector_digest(value), share)


@pytest.mark.parametrize("weight", [*LIES, inf, nan])
def test_a_lie_is_refused_and_leaves_nothing(weight: float) -> None:
    found = exchange()
    with pytest.raises(MalformedMessage, match="refused, ask its sender"):
        received(found, WEIGHT, torch.tensor([weight], dtype=torch.float64), 0.25)
    with pytest.raises(IllegalStep, match="receive it first"):
        found.take([(WEIGHT, "key")])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("share", [1.0, 0.3, 1e-3, None])
def test_what_honest_sites_tell_is_taken(dtype: torch.dtype, share: float | None) -> None:
    most = most_told(torch.tensor([1e-9 if share is None else share], dtype=dtype))
    for weight in (torch.zeros(1, dtype=dtype), most / 2, most):
        received(exchange(dtype), WEIGHT, weight, share)
    with pytest.raises(MalformedMessage, match="a weight of"):
        check_received(WEIGHT, 1.01 * most, share)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_model_has_a_finite_product_with_every_weight(dtype: torch.dtype) -> None:
    """Else a huge model beside a huge weight would be refused by nobody and be infinite in the mixing."""
    most = torch.finfo(dtype).max ** 0.5
    good = torch.tensor([1.0, -most, 0.9 * most], dtype=dtype)
    received(exchange(dtype), "x", good, None)
    assert bool(torch.isfinite(good * most_told(1e-9) * 1e9).all())
    bad = torch.tensor([1.0, 2.0, -3 * most], dtype=dtype)
    with pytest.raises(MalformedMessage, match="too large to be weighed"):
        received(exchange(dtype), "x", bad, None)
    with pytest.raises(PlanError, match="too large to be weighed; lower learning_rate"):
        exchange(dtype).encode({"x": bad})
    Exchange({"x": None}, 3, dtype).encode({"x": bad})


def test_light_weights_are_not_divided_by() -> None:
    weights = torch.tensor([[0.0], [-1.0], [LEAST / 2], [0.5]], dtype=torch.float64)
    z = torch.full((4, 2), 7.0, dtype=torch.float64)
    found = quotient(torch.ones(4, 2, dtype=torch.float64), weights, z)
    assert found.tolist() == [[7.0, 7.0]] * 3 + [[2.0, 2.0]]


def test_a_weight_below_0_goes_through_two_mixings() -> None:
    """Told as 0, and what it takes brings it to no division by 0 in between; both sums are kept."""
    sites = [Site(number, None) for number in range(SITES)]
    for number, weight in enumerate((-1.0, 0.0, 2.5, 2.5)):
        sites[number].state["weight"].fill_(weight)
    before = torch.stack([site.numerator for site in sites]).sum(0)
    assert played(sites, HIERARCHICAL, 6) == 0
    after = torch.stack([site.numerator - site.put for site in sites]).sum(0)
    assert float(sum(site.state["weight"] for site in sites)) == pytest.approx(4.0, abs=1e-13)
    assert float((after - before).abs().max()) < 1e-12
    assert all(bool(torch.isfinite(site.vector).all()) for site in sites)


def test_the_base_of_the_weight_is_one_zero() -> None:
    found = Session(QUADRATIC_PLAN, settings_of("sgp"))
    found.load_data("0")
    rows = {row["name"]: row for row in found.begin(found.initial(seed=5), RUN, key_of(0), 0.5)}
    assert rows[WEIGHT]["base"] == vector_digest(torch.zeros(1, dtype=torch.float64)) and rows[WEIGHT]["size"] == 8
    assert rows["x"]["base"] == vector_digest(found.vector)
