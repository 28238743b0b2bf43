"""The proposer's word reaches everybody, holds from one round on, and survives what else goes wrong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from p2pfl.crypto import sha256, sign_envelope
from p2pfl.errors import ConfigError, IllegalStep, P2PFLError, PolicyRefusal
from p2pfl.gossip import State, events
from p2pfl.gossip.direct import Standing
from p2pfl.gossip.directives import Change, Directive
from p2pfl.gossip.heartbeat import Heartbeat
from p2pfl.sim import At, Crash, LinkModel, Loss, Partition, Pause, SlowSite, StubTraining, VirtualConsortium

TWO_CLUSTERS = {"kind": "hierarchical", "clusters": 2}
PROPOSER = 0


def direct(
    world: VirtualConsortium, at: float, word: Any, refused: list[P2PFLError] | None = None, **more: Any
) -> None:
    """At this time the proposer's user speaks."""
    site = world.sites[more.pop("site", PROPOSER)]

    def speak() -> None:
        try:
            site.post(events.Direct(site.now, word, **more))
        except P2PFLError as error:
            if refused is None:
                raise
            refused.append(error)

    world.clock.at(at, speak)


def ended(world: VirtualConsortium, seconds: float = 2000.0) -> VirtualConsortium:
    world.begin()
    assert world.run(world.done, limit_seconds=seconds), world.states()
    assert world.run()
    assert set(world.states()) == {State.DONE}
    assert not world.contradictions()
    assert not any(site.disk.rows("refused") for site in world.sites)
    records = [machine.closing.record() for machine in world.machines]
    assert all(machine.closing.complete for machine in world.machines) and all(row == records[0] for row in records)
    return world


def versions(world: VirtualConsortium) -> dict[int, set[int]]:
    """The argument versions of the cores of each round, over all sites."""
    found: dict[int, set[int]] = {}
    for number in range(len(world.sites)):
        for core in world.cores(number):
            found.setdefault(core.round, set()).add(core.arguments)
    return found


def steps(world: VirtualConsortium, number: int) -> Mapping[int, Any]:
    result = world.sites[number].result
    assert isinstance(result, StubTraining)
    return result.displacements


@pytest.mark.parametrize("topology", ["ring", "full", TWO_CLUSTERS])
def test_a_change_holds_at_all_sites_from_the_same_round(topology: Any) -> None:
    plain = ended(VirtualConsortium(6, topology=topology, rounds=20))
    world = VirtualConsortium(6, topology=topology, rounds=20)
    direct(world, 8.0, "change", arguments={"learning_rate": 0.5})
    direct(world, 12.0, "change", arguments={"learning_rate": 0.25, "local_steps": 2})
    ended(world)
    (first, _), (second, _) = world.entries(3, "directive_heard")[-1]["changes"]
    assert 3 < first < second < 20
    by_round = [0] * first + [1] * (second - first) + [2] * (20 - second)
    assert versions(world) == {round_: {version} for round_, version in enumerate(by_round)}
    for number in range(6):
        assert [row["arguments"] for row in world.entries(number, "round_started")] == by_round
        for round_, version in enumerate(by_round):
            assert steps(world, number)[round_].tolist() == pytest.approx(
                (steps(plain, number)[round_] * (1.0, 0.5, 0.25)[version]).tolist()
            )
    assert world.settled() and world.imbalance() < 1e-12
    assert all(machine.closing.outcome() == "finished" for machine in world.machines), "nobody missed a round for it"


def test_all_pause_before_the_same_round_and_go_on_together() -> None:
    world = VirtualConsortium(6, rounds=20)
    direct(world, 8.0, "pause")
    direct(world, 300.0, "resume")
    world.begin()
    assert world.run(lambda: all(state is State.PAUSED for state in world.states()), limit_seconds=60)
    at = {machine.context.position for machine in world.machines}
    assert len(at) == 1
    said = world.machines[4].status()
    assert "the proposer paused the run from round" in said["paused_because"]
    assert said["directive"]["paused_from"] == at.pop()[0]
    assert world.run(world.done, limit_seconds=2000) and world.run()
    assert world.now > 300 and world.settled() and world.imbalance() < 1e-12
    assert all(machine.closing.outcome() == "finished" for machine in world.machines)


def test_a_stop_leads_to_the_closing_rounds() -> None:
    world = VirtualConsortium(6, topology="full", rounds=200, closing_rounds=3)
    direct(world, 10.0, "stop")
    ended(world)
    stop = world.entries(2, "directive_heard")[-1]["stop_at"]
    assert 3 < stop < 30
    assert sorted(versions(world)) == list(range(stop + 3)), "training rounds to the stop, then the closing ones"
    for site, machine in zip(world.sites, world.machines, strict=True):
        assert sorted(steps(world, site.number)) == list(range(stop))
        assert machine.closing.outcome() == f"stopped by the proposer after {stop} of 200 rounds; finished"
        assert machine.rounds.distance < 1e-6, "closing rounds bring all together"
        assert machine.status()["of"] == stop + 3
    assert world.settled() and world.imbalance() < 1e-12


def test_a_site_that_was_away_hears_the_word_before_it_contributes() -> None:
    world = VirtualConsortium(6, topology="full", rounds=60)
    world.inject(Crash(3, back_after=11.0), At(9.0))
    direct(world, 12.0, "change", arguments={"learning_rate": 0.5})
    ended(world)
    first = world.entries(1, "directive_heard")[-1]["changes"][0][0]
    later = [core for core in world.cores(3) if core.round >= first]
    assert later, "it came back in time"
    assert all(core.arguments == 1 for core in later)
    assert world.settled() and world.imbalance() < 1e-9


def test_two_arguments_in_one_round_are_never_mixed() -> None:
    """The word comes too late for the round that it names: who heard it in time does not mix with who did not."""
    world = VirtualConsortium(8, rounds=20, links=LinkModel(latency=0.6), linked="graph")
    proposer = world.sites[PROPOSER]

    def speak() -> None:
        next_round = proposer.running.presence.run_round() + 1
        proposer.post(events.Direct(proposer.now, "change", {"learning_rate": 0.5}, next_round))

    world.clock.at(20.0, speak)
    ended(world)
    mixed = versions(world)
    split = [round_ for round_, found in mixed.items() if len(found) == 2]
    assert split, "the word must have come in the middle of a round"
    version = {(number, core.round): core.arguments for number in range(8) for core in world.cores(number)}
    kept_apart = 0
    for number in range(8):
        for row in world.entries(number, "mixed"):
            for peer, _ in row["edges"]:
                other = world.numbers[peer]
                assert version[(number, row["round"])] == version[(other, row["round"])]
        kept_apart += sum(
            row["reason"] == "made under other arguments" for row in world.entries(number, "delta_ignored")
        )
    assert kept_apart
    assert world.settled() and world.imbalance() < 1e-9


@pytest.mark.parametrize("seed", range(8))
def test_words_survive_loss_kills_and_pauses(seed: int) -> None:
    world = VirtualConsortium(5, topology="full", rounds=40, closing_rounds=3, seed=seed)
    world.inject(Loss(0.1, 60.0), At(0.0))
    world.inject(Crash(seed % 5, back_after=6.0), At(9.0 + 0.13 * seed))
    world.inject(Pause((seed + 2) % 5, 9.0), At(14.0))
    direct(world, 8.9, "change", refused=[], arguments={"learning_rate": 0.5})
    direct(world, 17.0, "pause", refused=[])
    direct(world, 40.0, "resume", refused=[])
    direct(world, 47.0, "stop", refused=[])
    world.begin()
    assert world.run(world.done, limit_seconds=4000), world.states()
    assert world.run()
    assert not world.contradictions()
    assert not any(site.disk.rows("equivocation") for site in world.sites)
    records = [machine.closing.record() for machine in world.machines]
    assert all(machine.closing.complete for machine in world.machines) and all(row == records[0] for row in records)
    assert world.imbalance() < 1e-9 or not world.settled()
    heard = [world.entries(number, "directive_heard")[-1] for number in range(5)]
    assert all(row == heard[0] for row in heard)


@pytest.mark.slow
def test_the_proposer_killed_after_its_commit_says_the_same_word_again() -> None:
    """The commit is durable, the word has left for nobody yet: the restart tells it, under the same version."""
    told = 0
    for late in range(12):
        world = VirtualConsortium(4, rounds=30)
        direct(world, 8.0, "change", refused=[], arguments={"learning_rate": 0.5})
        world.inject(Crash(PROPOSER, back_after=3.0), At(8.0 + 0.002 * late))
        ended(world)
        signed = world.entries(PROPOSER, "directive_signed")
        heard = [world.entries(number, "directive_heard") for number in range(4)]
        assert len(signed) <= 1
        assert all([row["version"] for row in rows][:1] == [row["version"] for row in signed] for rows in heard)
        told += len(signed)
    assert 0 < told < 12, "one kill at least before the commit, and one after it"


def test_only_the_proposer_directs_and_within_the_plan() -> None:
    said: list[P2PFLError] = []
    world = VirtualConsortium(4, rounds=12, argument_problem=lambda arguments: "outside the approved range of 0 to 1")
    direct(world, 8.0, "pause", site=2, refused=said)
    direct(world, 8.0, "change", arguments={"learning_rate": 7.0}, refused=said)
    direct(world, 8.0, "resume", refused=said)
    direct(world, 8.0, "stop", from_round=12, refused=said)
    ended(world)
    assert isinstance(said[0], PolicyRefusal) and "only the run's proposer" in str(said[0])
    assert [type(error) for error in said[1:]] == [ConfigError] * 3
    assert "approved range" in str(said[1]) and "not paused" in str(said[2]) and "ends by itself" in str(said[3])
    assert not world.entries(0, "directive_signed") and not world.entries(0, "directive_heard")


def test_a_pause_that_nobody_ends_does_not_last_for_ever() -> None:
    """A week after the pause each site leaves; the heartbeats of that week need not be simulated."""
    world = VirtualConsortium(4, rounds=12)
    direct(world, 8.0, "pause")
    world.begin()
    assert world.run(lambda: all(state is State.PAUSED for state in world.states()), limit_seconds=60)
    for site in world.sites:
        assert site._timers["few"][0] > world.now + 6.9 * 24 * 3600
        site.post(events.TimerFired(site.now, "few"))
    assert world.run(world.done, limit_seconds=60)
    for machine in world.machines:
        assert "the proposer paused" in (machine.context.away_for_good or "")


def test_a_proposer_that_contradicts_itself_is_caught_and_splits_nobody() -> None:
    """Two different words of one version, each shown to one half first: all keep both, and all heed the same one."""
    world = VirtualConsortium(6, topology="ring", rounds=20)
    run, liar = world.proposal.run, world.sites[PROPOSER]
    words = [Directive(run, 1, changes=(Change(8, (("learning_rate", rate),)),)) for rate in (0.5, 0.25)]

    def lie() -> None:
        for number in range(1, 6):
            data = sign_envelope(liar.identity, "directive", words[number % 2].encode()).encode()
            world.sites[number].receive(PROPOSER, "flood", data)

    world.clock.at(8.0, lie)
    world.begin()
    assert world.run(world.done, limit_seconds=2000), world.states()
    assert world.run()
    newest = {machine.directives.newest for machine in world.machines}
    assert newest == {max(words, key=lambda word: word.encode())}
    for number in range(1, 6):
        (caught,) = world.entries(number, "equivocation")
        assert caught["peer"] == liar.peer_id and caught["channel"] == "directive"
    records = [machine.closing.record() for machine in world.machines]
    assert all(machine.closing.complete for machine in world.machines) and all(row == records[0] for row in records)
    assert not world.contradictions()


def test_a_proposer_from_a_backup_does_not_say_two_words_of_one_version() -> None:
    """It hears its own newest word from a neighbour before it may speak again."""
    refused: list[P2PFLError] = []
    world = VirtualConsortium(4, rounds=40)
    world.inject(Crash(PROPOSER, back_after=2.0, disk="backup", backup_at=8.0), At(14.0))
    direct(world, 9.0, "change", arguments={"learning_rate": 0.5})
    for at in (16.001, 17.0, 18.0, 24.0):
        direct(world, at, "change", refused=refused, arguments={"learning_rate": 0.1 + at / 1000})
    world.begin()
    assert world.run(world.done, limit_seconds=2000), world.states()
    assert world.run()
    assert not any(site.disk.rows("equivocation") for site in world.sites)
    assert any(isinstance(error, IllegalStep) for error in refused), "it was asked while it did not know"
    versions = [row["version"] for row in world.entries(2, "directive_heard")]
    assert versions == sorted(set(versions)) and len(versions) >= 2


def test_a_stop_in_the_past_of_some_harms_nobody() -> None:
    """A site that was cut off while the others stopped trains on, comes back, and all close; the record is one."""
    for seed in range(4):
        world = VirtualConsortium(6, rounds=40, closing_rounds=3, seed=seed)
        world.inject(Partition(((0, 1, 2, 4, 5), (3,)), heal_after=25.0), At(8.0))
        direct(world, 10.0, "stop")
        world.begin()
        assert world.run(world.done, limit_seconds=4000), world.states()
        assert world.run()
        records = [machine.closing.record() for machine in world.machines]
        assert all(row == records[0] for row in records)
        assert len({machine.closing.outcome() for machine in world.machines}) == 1
        stop = world.entries(PROPOSER, "directive_signed")[0]["stop_at"]
        assert (world.machines[3].closing.outcome() or "").startswith(
            f"stopped by the proposer after {stop} of 40 rounds"
        )
        assert not world.contradictions()
        assert not any(site.disk.rows("refused") for site in world.sites)


@pytest.mark.slow
def test_a_stop_ends_an_asynchronous_run_with_its_sum_conserved() -> None:
    for seed in range(6):
        world = VirtualConsortium(6, topology="full", rounds=60, closing_rounds=3, seed=seed, staleness=2)
        world.inject(Loss(0.2, 40.0), At(0.0))
        world.inject(SlowSite(5, 6.0), At(4.0))
        direct(world, 15.0, "stop")
        world.begin()
        assert world.run(world.done, limit_seconds=4000), world.states()
        assert world.run()
        assert world.imbalance() < 1e-9 or not world.settled()
        records = [machine.closing.record() for machine in world.machines]
        assert all(row == records[0] for row in records)
        assert not world.contradictions()


def test_nobody_is_called_missing_at_the_end_of_an_undisturbed_asynchronous_run() -> None:
    """Sites that were a round or two behind the fastest skip those, and close with all."""
    for seed in range(4):
        world = ended(VirtualConsortium(4, rounds=20, closing_rounds=3, seed=seed, staleness=2))
        assert all(machine.closing.finished_here for machine in world.machines)
        assert "from round" not in (world.machines[0].closing.outcome() or "from round")
        assert all(row["rounds"] >= 17 for row in world.machines[0].closing.record().values())


def test_a_member_that_takes_no_part_may_restart() -> None:
    world = VirtualConsortium(5, rounds=20)
    world.inject(Crash(4, back_after=3.0), At(9.0))
    world.begin(approving=[0, 1, 2, 3])
    assert world.run(lambda: all(site.finished for site in world.sites[:4]), limit_seconds=2000)
    assert world.run()
    assert [site.problems for site in world.sites] == [[]] * 5
    assert world.machines[4].state is State.DONE


def test_a_neighbour_that_forges_a_directive_is_blamed_itself() -> None:
    world = VirtualConsortium(4, rounds=12)
    forger = world.sites[2]
    word = Directive(world.proposal.run, 1, stop_at=3)

    def forge() -> None:
        forged = sign_envelope(forger.identity, "directive", word.encode()).encode()
        standing = Standing(world.proposal.run, world.peers[1], (3, 0), b"", b"", sha256(b""), forged)
        data = sign_envelope(forger.identity, "standing", standing.encode()).encode()
        world.sites[1].receive(2, "direct", data)

    world.clock.at(8.0, forge)
    world.begin()
    assert world.run(world.done, limit_seconds=2000) and world.run()
    assert {row["peer"] for row in world.entries(1, "refused")} == {forger.peer_id}
    assert world.machines[1].directives.newest is None


def test_one_liar_does_not_take_the_word_away_from_the_proposer() -> None:
    """A heartbeat of round 5000 neither moves what is directed now nor refuses it."""
    world = VirtualConsortium(5, rounds=30)
    liar = world.sites[3]

    def lie() -> None:
        beat = Heartbeat(world.proposal.run, 10**6, (5000, 0), True, ())
        data = sign_envelope(liar.identity, "heartbeat", beat.encode()).encode()
        world.sites[PROPOSER].receive(3, "flood", data)

    world.clock.at(9.9, lie)
    direct(world, 10.0, "change", arguments={"learning_rate": 0.5})
    world.begin()
    assert world.run(world.done, limit_seconds=2000) and world.run()
    assert world.entries(1, "directive_heard")[0]["changes"][0][0] < 20
