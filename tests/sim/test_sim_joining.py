"""A member that approves late joins the run under way: it is admitted by the proposer's word, and the sum stays."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest

from p2pfl.crypto import sign_envelope
from p2pfl.errors import ConfigError, P2PFLError
from p2pfl.gossip import State, events
from p2pfl.gossip.directives import Change, Directive
from p2pfl.gossip.messages import Cover, decode_announcement, open_cover
from p2pfl.gossip.statements import Approval
from p2pfl.sim import (
    At,
    Crash,
    Pause,
    SlowSite,
    StubTraining,
    VirtualConsortium,
)
from p2pfl.sim.members import Member
from p2pfl.sim.site import Site

TWO_CLUSTERS = {"kind": "hierarchical", "clusters": 2}
PROPOSER = 0
START = 60.0  # seconds: the proposer's patience, after which the run begins with those who approved


def world_with(
    late: Iterable[int] = (4,), at: float = 75.0, sites: int = 5, rounds: int = 40, **more: Any
) -> VirtualConsortium:
    """All but these members approve at once; these do at that time."""
    more.setdefault("closing_rounds", 3)
    world = VirtualConsortium(sites, rounds=rounds, **more)
    world.approving = [number for number in range(sites) if number not in late]
    for number in late:
        approve(world, number, at)
    return world


def approve(world: VirtualConsortium, number: int, at: float) -> None:
    """Unless the run cannot take it in any more: whoever needs it to be admitted asserts that."""

    def say() -> None:
        with contextlib.suppress(P2PFLError):
            world.sites[number].approve_late()

    world.clock.at(at, say)


def ended(world: VirtualConsortium, *, seconds: float = 4000.0, refusals: bool = False) -> VirtualConsortium:
    """It ran to its end, all know the same of it, and nobody was wronged."""
    world.begin()
    assert world.run(world.done, limit_seconds=seconds), world.states()
    assert world.run(limit_seconds=100_000.0)
    same_end(world)
    if not refusals:
        assert not [row for site in world.sites for row in site.disk.rows("refused")]
        assert not [row for site in world.sites for row in site.disk.rows("equivocation")]
        assert not world.refused
    return world


def same_end(world: VirtualConsortium) -> None:
    machines = [site.machine for site in world.sites if site.machine is not None and site.alive]
    assert all(machine.state is State.DONE for machine in machines), world.states()
    assert not world.contradictions()
    records = [machine.closing.record() for machine in machines]
    assert all(machine.closing.complete for machine in machines) and all(row == records[0] for row in records)
    assert len({machine.closing.outcome() for machine in machines if machine.closing.stated}) <= 1


def joined(world: VirtualConsortium, number: int = 4) -> int:
    """The round that this member takes part from, as all see it."""
    rounds = {machine.context.joined.get(world.peers[number]) for machine in world.machines}
    assert len(rounds) == 1
    (round_,) = rounds
    assert round_ is not None
    return round_


def contributed(world: VirtualConsortium, number: int = 4) -> set[int]:
    row = world.machines[PROPOSER].closing.record()[world.peers[number]]
    return {round_ for first, last in row["contributed"] for round_ in range(first, last + 1)}


# --- nothing goes wrong


@pytest.mark.parametrize("seed", [0, 1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("topology", "sites"),
    [
        *[("ring", 5), ("full", 4), (TWO_CLUSTERS, 6), ("ring", 3), ({"kind": "matching", "seed": 1}, 6)],
        *[({"kind": "exponential"}, 6), ({"kind": "epidemic", "degree": 2, "seed": 1, "choice": "local"}, 6)],
    ],
    ids=["ring", "full", "two", "3", "matching", "exponential", "local choice"],
)
def test_it_contributes_from_the_round_it_was_admitted_to(topology: Any, sites: int, seed: int) -> None:
    newcomer = sites - 1 if seed % 2 else 1  # at the end of the charter's order, or between the others
    world = ended(world_with([newcomer], sites=sites, topology=topology, seed=seed))
    since = joined(world, newcomer)
    assert 10 < since < 25
    assert contributed(world, newcomer) == set(range(since, 40))
    for site, machine in zip(world.sites, world.machines, strict=True):
        assert machine.closing.outcome() == f"finished with site-{newcomer} from round {since}"
        shares = machine.context.running.shares
        assert sum(shares.values()) == pytest.approx(1) and set(shares) == set(world.peers)
        assert shares[world.peers[newcomer]] == pytest.approx(
            world.sites[newcomer].samples / sum(site.samples for site in world.sites)
        )
        assert not site.disk.rows("edge_unsettled")
    (entry,) = world.entries(newcomer, "caught_up")
    assert entry["round"] == since and entry["own"] == 0.0 and entry["states"]
    assert all(row[2] == since - 1 for row in entry["states"]), "sealed for it from the round before"
    assert world.settled() and world.imbalance() < 1e-12


def test_all_sites_have_the_newcomers_data_in_one_model() -> None:
    world = ended(world_with(topology="full", closing_rounds=4))
    digests = {str(site.result.digest()) for site in world.sites if site.result is not None}
    distances = [machine.rounds.distance for machine in world.machines]
    assert max(distances) < 1e-12 and len(digests) <= 2, "equal but for the rounding of the last bits"
    trainer = world.sites[4].result
    assert isinstance(trainer, StubTraining)
    assert sorted(trainer.displacements) == list(range(joined(world), 40))


def test_a_core_names_who_takes_part_in_its_round() -> None:
    world = ended(world_with())
    since = joined(world)
    versions = {(core.round >= since, core.arguments) for number in range(5) for core in world.cores(number)}
    assert versions == {(False, 0), (True, 1)}


def test_two_at_once_are_admitted_together_and_one_after_the_other_too() -> None:
    for second in (75.0, 75.05, 77.0, 90.0):
        world = world_with([4], sites=6)
        world.approving = range(4)
        approve(world, 5, second)
        ended(world)
        assert contributed(world, 4) == set(range(joined(world, 4), 40))
        assert contributed(world, 5) == set(range(joined(world, 5), 40))
        assert world.settled() and world.imbalance() < 1e-12
        word = world.machines[2].directives.newest
        assert word is not None and len(word.changes) == 2


def test_nobody_waits_for_a_newcomer_that_never_comes() -> None:
    """Its approval is its last word; the others lose no time over it, and close without it."""
    plain = VirtualConsortium(5, rounds=40, closing_rounds=3)
    plain.approving = range(4)
    ended(plain)
    world = world_with()
    world.inject(Crash(4), At(75.4))
    world.begin()
    assert world.run(world.done, limit_seconds=4000)
    world.run(limit_seconds=60.0)  # for the last statements; nobody waits a day for the newcomer's
    assert joined(world)
    for number in range(4):
        ours, theirs = (
            [site.round_times[-1][0] - site.round_times[0][0] for site in (each.sites[number],)]
            for each in (world, plain)
        )
        assert ours[0] <= theirs[0] + 1.0
        machine = world.machines[number]
        assert machine.closing.complete
        assert machine.closing.outcome() == f"finished without site-4 from round {joined(world)}"
    assert world.imbalance() < 1e-9


def test_a_run_that_needs_its_contributors_is_not_held_up_by_one_more() -> None:
    world = world_with(minimum_contributors=5)
    world.inject(Crash(4), At(75.4))
    world.begin()
    assert world.run(world.done, limit_seconds=4000), world.states()


@pytest.mark.parametrize("staleness", [1, 3])
def test_it_joins_an_asynchronous_run(staleness: int) -> None:
    for seed in range(3):
        world = world_with(seed=seed, staleness=staleness, topology="full", rounds=60)
        world.inject(SlowSite(2, 5.0), At(62.0))
        ended(world)
        assert len(contributed(world)) > 20
        assert world.settled() and world.imbalance() < 1e-9


# --- what cannot be


@pytest.mark.parametrize(
    ("topology", "at", "word", "why"),
    [
        ({"kind": "edges", "edges": [[0, 1], [1, 2], [2, 3]]}, 10, None, "graph cannot be built"),
        ({"kind": "hierarchical", "clusters": [[0, 1], [2, 3]]}, 10, None, "graph cannot be built"),
        ("ring", 39, None, "last rounds"),
        ("ring", 10, "stop", "stopped it"),
    ],
    ids=["edges", "clusters", "last rounds", "stopped"],
)
def test_it_is_told_why_it_cannot_join(topology: Any, at: int, word: Any, why: str) -> None:
    world = (
        VirtualConsortium(5, topology="ring", rounds=40, closing_rounds=3) if topology == "ring" else small(topology)
    )
    world.begin(approving=range(4))
    late, proposer = world.sites[4], world.sites[PROPOSER]
    assert world.run(lambda: late.running.context.start is not None and late.running.presence.run_round() >= at)
    if word is not None:
        proposer.post(events.Direct(proposer.now, word))
        assert world.run(lambda: late.running.directives.newest is not None)
    late.armed = True
    with pytest.raises(ConfigError, match=why):
        late.post(events.Approve(late.now, late.samples, late.prekey[1]))
    assert world.run(world.done, limit_seconds=2000) and world.run()
    same_end(world)
    assert not world.entries(4, "plan_approved") and not world.machines[PROPOSER].context.joined


def small(topology: dict[str, Any]) -> VirtualConsortium:
    """A graph that fits the four that begin, in a consortium of five."""
    world = VirtualConsortium(5, topology="ring", rounds=40, closing_rounds=3)
    world.proposal = replace(world.proposal, topology=topology)
    return world


def test_the_proposer_does_not_admit_what_the_graph_cannot_take() -> None:
    """Also if the late member's own peer let it approve."""
    world = small({"kind": "edges", "edges": [[0, 1], [1, 2], [2, 3]]})
    world.approving = range(4)
    late = world.sites[4]
    approval = Approval(world.proposal.run, world.proposal.plan, 10, late.prekey[1])
    data = sign_envelope(late.identity, "approval", approval.encode()).encode()
    world.clock.at(75.0, lambda: world.sites[PROPOSER].receive(4, "flood", data))
    ended(world)
    assert [facts["peer"] for topic, facts in world.sites[PROPOSER].told if topic == "not admitted"] == [late.peer_id]
    assert not world.entries(PROPOSER, "directive_signed")


def test_a_plan_whose_rule_cannot_begin_in_the_middle_takes_nobody_in() -> None:
    """Neither the late member's own peer lets it approve, nor does the proposer admit it, nor the others agree."""
    world = VirtualConsortium(5, rounds=40, closing_rounds=3)
    world.begin(approving=range(4))
    late, why = world.sites[4], "its rule cannot"
    assert world.run(lambda: late.running.context.start is not None and late.running.presence.run_round() >= 5)
    for machine in world.machines:
        machine.context.newcomer_problem = why
    with pytest.raises(ConfigError, match=why):
        late.post(events.Approve(late.now, late.samples, late.prekey[1]))
    approval = Approval(world.proposal.run, world.proposal.plan, 10, late.prekey[1])
    data = sign_envelope(late.identity, "approval", approval.encode()).encode()
    world.sites[PROPOSER].receive(4, "flood", data)
    word = Directive(world.proposal.run, 1, changes=(Change(20, approval=data),))
    signed = sign_envelope(world.sites[PROPOSER].identity, "directive", word.encode()).encode()
    world.sites[2].receive(PROPOSER, "flood", signed)
    assert world.run(world.done, limit_seconds=2000)
    assert [facts["reason"] for topic, facts in world.sites[PROPOSER].told if topic == "not admitted"] == [why]
    assert not world.entries(PROPOSER, "directive_signed")
    assert [why in row["reason"] for row in world.entries(2, "refused")] == [True]


def test_an_approval_behind_the_proposers_patience_makes_no_second_start_record() -> None:
    for seed in range(4):
        world = world_with([3], 61.0, 4, rounds=6, seed=seed)
        world.inject(Pause(PROPOSER, 4.0), At(58.0))
        world.begin()
        assert world.run(world.done, limit_seconds=2000.0), world.states()
        assert not [row for site in world.sites for row in site.disk.rows("refused")]


class WithoutProof(Member):
    """Covers for one site that prove nothing about the sender's log."""

    def sends(self, site: Site, target: int, kind: str, data: bytes) -> list[bytes]:
        if kind != "announcement" or target != 4:
            return [data]
        announcement = decode_announcement(data)
        cover = open_cover(announcement.cover, site.world.kit.verify)[1]
        bare = sign_envelope(site.identity, "cover", Cover(cover.core, cover.keys, b"garbage").encode()).encode()
        return [replace(announcement, cover=bare).encode()]


def test_a_newcomer_takes_no_state_that_its_senders_log_does_not_prove() -> None:
    world = world_with(rounds=20, topology="full")
    for number in range(3):
        world.corrupt(number, WithoutProof())
    world.begin()
    assert world.run(lambda: bool(world.entries(4, "caught_up")), limit_seconds=400.0), world.states()
    rows = [row for body in world.entries(4, "caught_up") for row in body["states"]]
    straight = {world.numbers[origin] for origin, _, _, _, holder in rows if origin == holder}
    assert straight == {3}, "the others' states come from whoever was shown a proof"
    assert {world.numbers[row["peer"]] for row in world.entries(4, "refused")} <= {0, 1, 2}
    assert world.entries(4, "refused")


def test_while_too_few_contribute_nobody_is_admitted() -> None:
    """No round comes in which neighbours could seal their parameters for it; it comes in when the run goes on."""
    world = world_with([3], 125.0, 4, rounds=40, topology="full", minimum_contributors=3)
    world.inject(Crash(2, back_after=60.0), At(80.0))
    world.begin()
    assert world.run(lambda: world.now > 135.0)
    assert not world.entries(PROPOSER, "directive_signed") and world.states()[PROPOSER] is State.PAUSED
    assert world.run(world.done, limit_seconds=2000.0), world.states()
    assert world.entries(3, "caught_up") and world.machines[3].rounds.rounds_done > 0
