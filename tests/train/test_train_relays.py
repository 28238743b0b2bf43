"""Relays of one site: each site counts once, whatever is lost, restored or made up."""

from __future__ import annotations

import hashlib
import random

import networkx as nx
import pytest
import torch

from p2pfl.errors import LimitExceeded, MalformedMessage, PlanError, SignatureRefused
from p2pfl.train.relays import KEPT_ROUNDS, TABLE_SIZE, Relays, relay_tag

SITES = 6
TREE = nx.Graph([(0, 1), (0, 2), (1, 3), (1, 4), (2, 5)])
SHARES = (0.25, 0.25, 0.125, 0.125, 0.125, 0.125)  # sums of them are exact


def relays_of(site: int) -> Relays:
    return Relays("relay", SITES + 1, torch.float64, relay_tag(bytes([site]) * 16, b"run"))


def own_of(site: int) -> torch.Tensor:
    """The site's share at its own place, and in the sum of shares."""
    own = torch.zeros(SITES + 1, dtype=torch.float64)
    own[site] = own[-1] = SHARES[site]
    return own


class Tree:
    """Sites that relay who they are; what a site has then says who is counted in it, and how often."""

    def __init__(self, graph: nx.Graph = TREE) -> None:
        self.graph = graph
        self.sites = [relays_of(site) for site in graph]
        self.totals = [torch.zeros(SITES + 1, dtype=torch.float64) for _ in graph]

    def round(self, number: int, lost: frozenset[tuple[int, int]] = frozenset(), away: frozenset[int] = frozenset()):
        """``lost``: (receiver, sender); who is ``away`` takes no part."""
        rows = {
            site: relays.encode(number, own_of(site) + relays.total(number))
            for site, relays in enumerate(self.sites)
            if site not in away
        }
        for site in rows:
            arrived = [other for other in self.graph[site] if other in rows and (site, other) not in lost]
            for other in arrived:
                self.sites[site].receive(f"{other}", rows[other]["payload"], rows[other]["result"])
            self.totals[site] = self.sites[site].take(number, [(f"{other}", f"{other}") for other in arrived])
        return rows

    def check(self) -> None:
        """Everybody else at most once, nobody itself, and the sum of shares is that of those who are counted."""
        for site, total in enumerate(self.totals):
            for other in range(len(self.sites)):
                assert float(total[other]) in ((0.0,) if other == site else (0.0, SHARES[other]))
            assert float(total[:-1].sum()) == float(total[-1])

    def complete(self) -> bool:
        return all(float(total[-1]) == 1.0 - SHARES[site] for site, total in enumerate(self.totals))


def test_after_as_many_rounds_as_the_tree_is_deep_everybody_is_counted_once() -> None:
    tree = Tree()
    for number in range(nx.diameter(TREE)):
        assert not tree.complete()
        tree.round(number)
        tree.check()
    assert tree.complete()


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("loss", [0.05, 0.5])
def test_nobody_is_counted_twice_under_losses_and_absences(loss: float, seed: int) -> None:
    chance, tree = random.Random(seed), Tree()
    edges = [(i, j) for i in TREE for j in TREE[i]]
    away: dict[int, int] = {}
    for number in range(200):
        away = {site: until for site, until in away.items() if until > number}
        if chance.random() < 0.05:
            away[chance.randrange(SITES)] = number + chance.randint(1, 2 * KEPT_ROUNDS)
        tree.round(number, frozenset(edge for edge in edges if chance.random() < loss), frozenset(away))
        tree.check()
    for number in range(200, 200 + 2 * KEPT_ROUNDS):
        tree.round(number)
        tree.check()
    assert tree.complete()


def test_little_is_kept_and_a_silent_neighbour_does_not_change_that_for_long() -> None:
    tree = Tree()
    for number in range(10):
        tree.round(number)
    usual = [len(relays.remember()[1]) for relays in tree.sites]
    assert max(usual) <= 2 + 3 * 3
    most = 0
    for number in range(10, 60):
        tree.round(number, away=frozenset({1}))
        most = max(most, *(len(relays.remember()[1]) for relays in tree.sites))
    assert 2 + 3 * 3 < most <= 1 + KEPT_ROUNDS + 3 * 3
    assert float(tree.totals[3][-1]) == 0.0 and float(tree.totals[0][-1]) == SHARES[2] + SHARES[5]
    assert all(
        len(relays.remember()[1]) <= size
        for site, (relays, size) in enumerate(zip(tree.sites, usual, strict=True))
        if site != 1
    )


@pytest.mark.parametrize("back", [1, 3, KEPT_ROUNDS + 5])
def test_a_site_with_an_older_disk_is_counted_once_again(back: int) -> None:
    tree = Tree()
    for number in range(30 - back):
        tree.round(number)
    facts, tensors = tree.sites[1].remember()
    for number in range(30 - back, 30):
        tree.round(number)
    tree.sites[1] = relays_of(1)
    tree.sites[1].recall(facts, tensors)
    for number in range(30, 36):  # from the first on, what cannot be read is left out
        tree.round(number)
        tree.check()
        if number >= 32:  # two rounds later nobody goes on with what was held before
            assert all(held == number for relays in tree.sites for held in relays._held.values())
            assert [len(relays._held) for relays in tree.sites] == [TREE.degree[site] for site in TREE]
    assert tree.complete()


def test_what_was_remembered_goes_on_with_the_same_bits() -> None:
    one, other = Tree(), Tree()
    for number in range(40):
        lost = frozenset({(0, 1)}) if number % 3 == 0 else frozenset()
        assert one.round(number, lost) == other.round(number, lost)
        facts, tensors = other.sites[0].remember()
        other.sites[0] = relays_of(0)
        other.sites[0].recall(facts, tensors)
        again, same = other.sites[0].remember()
        assert again == facts and all(torch.equal(same[name], tensors[name]) for name in tensors)


def signed(payload: bytes) -> tuple[bytes, str]:
    return payload, hashlib.sha256(payload).hexdigest()


def test_malformed_messages_are_refused_and_leave_nothing() -> None:
    good = relays_of(1).encode(0, own_of(1))
    payload, relays = good["payload"], relays_of(0)
    numbers, table = payload[:-TABLE_SIZE], payload[-TABLE_SIZE:]
    bad = [
        b"", payload[1:], payload + b"\0", table, numbers + bytes(TABLE_SIZE),
        b"\xff" * len(numbers) + table,
        numbers + table[:16] + b"\xff" * 8 + table[24:],
        numbers + table[:24] + bytes(24) + b"x" + table[49:],
    ]  # fmt: skip
    for data in bad:
        with pytest.raises(MalformedMessage):
            relays.receive("a", *signed(data))
    for data in (payload[:-1] + b"\1", bytes([payload[0] ^ 1]) + payload[1:]):
        with pytest.raises(SignatureRefused):
            relays.receive("a", data, good["result"])
    assert not relays._received
    with pytest.raises(LimitExceeded):
        for number in range(2000):
            relays.receive(f"{number}", payload, good["result"])
    relays.drop([f"{number}" for number in range(2000)])
    assert not relays._received


def lies() -> dict[str, bytes]:
    numbers = relays_of(1).encode(0, own_of(1))["payload"][:-TABLE_SIZE]

    def row(site: int, round_: int) -> bytes:
        return relay_tag(bytes([site]) * 16, b"run") + round_.to_bytes(8, "little")

    def said(*rows: bytes) -> bytes:
        return numbers + b"".join(rows).ljust(TABLE_SIZE, b"\0")

    heavy = own_of(1).clone()
    heavy[-1] = 3.0
    return {
        "of another round": said(row(1, 4)),
        "under our name": said(row(0, 5)),
        "under another neighbour's name": said(row(2, 5)),
        "holds a round that was never sent": said(row(1, 5), row(0, 77)),
        "holds two rounds of ours": said(row(1, 5), row(0, 4), row(0, 3)),
        "a share above one": relays_of(1).encode(5, heavy)["payload"],
    }


@pytest.mark.parametrize("lie", lies())
def test_a_lie_costs_the_liar_its_relay_and_nobody_else_anything(lie: str) -> None:
    tree = Tree()
    for number in range(5):
        tree.round(number)
    first = tree.sites[0]
    first.encode(5, own_of(0) + first.total(5))
    counts = first.total(5)
    if "never sent" in lie:  # as after an older disk: nothing of it counts until it names what was
        counts = counts - first._relays["1", 4]
    first.receive("1", *signed(lies()[lie]))
    assert torch.equal(first.take(5, [("1", "1")]), counts)
    tree.sites[1].encode(5, own_of(1) + tree.sites[1].total(5))
    for number in range(6, 8 + nx.diameter(TREE)):
        tree.round(number)
        tree.check()
    assert tree.complete()


def test_a_table_has_a_row_for_every_neighbour_of_the_largest_star() -> None:
    centre = Relays("relay", 3, torch.float64, relay_tag(bytes(16), b"run"))
    centre.encode(0, torch.zeros(3, dtype=torch.float64))
    for site in range(63):
        leaf = Relays("relay", 3, torch.float64, relay_tag(bytes([site + 1]) * 16, b"run"))
        row = leaf.encode(0, torch.tensor([1.0, 0.0, 1 / 64], dtype=torch.float64))
        centre.receive(f"{site}", row["payload"], row["result"])
    total = centre.take(0, [(f"{site}", f"{site}") for site in range(63)])
    assert total.tolist() == [63.0, 0.0, 63 / 64]
    assert len(centre.encode(1, total)["payload"]) == 3 * 8 + TABLE_SIZE
    with pytest.raises(PlanError):
        centre.encode(2, total * float("inf"))


@pytest.mark.parametrize(
    "change",
    [
        lambda facts, tensors: facts.pop("own"),
        lambda facts, tensors: facts["own"].append([99, []]),
        lambda facts, tensors: facts["held"].append(["9", 3]),
        lambda facts, tensors: facts["named"].clear(),
        lambda facts, tensors: facts["tags"].clear(),
        lambda facts, tensors: facts["tags"].append(["9", "zz"]),
        lambda facts, tensors: facts["tags"].append(["9", "00"]),
        lambda facts, tensors: facts.update(relays=5),
        lambda facts, tensors: tensors.pop("0"),
        lambda facts, tensors: tensors.update(more=torch.zeros(7)),
        lambda facts, tensors: tensors.update({"0": torch.zeros(7)}),
        lambda facts, tensors: tensors.update({"0": torch.zeros(8, dtype=torch.float64)}),
    ],
)
def test_relays_of_a_damaged_checkpoint_are_refused(change) -> None:
    tree = Tree()
    for number in range(5):
        tree.round(number)
    facts, tensors = tree.sites[0].remember()
    change(facts, tensors)
    fresh = relays_of(0)
    with pytest.raises(MalformedMessage, match="cannot be used"):
        fresh.recall(facts, tensors)
    assert fresh.remember()[1] == {}
