"""Logs compared with each other: honest runs agree under every fault, and each tampering is found and named."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from matrix import FAULTS, GONE, HOSTILE, LIMIT, QUIET, TOPOLOGIES, Case, under_way

from p2pfl.audit import (
    AuditLog,
    Entry,
    LogFacts,
    NewEntry,
    Reconciliation,
    Sort,
    gather,
    gather_source,
    json_lines,
    open_part,
    read_entries,
    reconcile,
    verify_log,
)
from p2pfl.crypto import Identity
from p2pfl.errors import ConfigError
from p2pfl.gossip import State
from p2pfl.gossip.events import Direct, Resume
from p2pfl.sim import At, Crash, Equivocate, InState, LieAboutEdges, Loss, Member, VirtualConsortium

HONEST = [fault for fault in FAULTS if fault not in HOSTILE]
LOST = "crash-disk-lost"
NOW = 1_700_000_000_000


@dataclass
class Compared:
    """What came of one case; findings as plain values, so that they travel between processes."""

    case: Case
    victim: str
    entries: int
    outcome: Reconciliation


def logs_of(world: VirtualConsortium) -> list[LogFacts]:
    return [gather(world.peers[site.number], read_entries(site.audit.path)) for site in world.sites if site.audit]


def compare(arguments: tuple[Case, str]) -> Compared:
    """Play one case with real signatures and logs on disk, to its end, and compare the logs."""
    case, folder = arguments
    torch.set_num_threads(1)
    world, victim = under_way(case, signatures="real", audited=True, folder=Path(folder))
    ended = world.run(world.done, limit_seconds=LIMIT)
    if not ended and world.states()[victim] is State.PAUSED:
        world.sites[victim].command(Resume(world.sites[victim].now))
        world.run(world.done, limit_seconds=LIMIT)
    world.run(limit_seconds=QUIET)
    logs = logs_of(world)
    world.close()
    return Compared(case, world.peers[victim], sum(log.entries for log in logs), reconcile(logs))


def told(rows: list[Compared]) -> str:
    return "\n".join(
        f"{row.case}: {finding.sort}, round {finding.round}: {finding.peer[-6:]} {finding.text} {finding.other}"
        for row in rows
        for finding in row.outcome.findings[:3]
    )


def compared(cases: list[Case], folder: Path) -> list[Compared]:
    work = [(case, str(folder / str(number))) for number, case in enumerate(cases)]
    with ProcessPoolExecutor(min(2, os.cpu_count() or 1)) as pool:
        return list(pool.map(compare, work))


def judge(rows: list[Compared]) -> None:
    """Nothing to ask about; where a disk was lost or put back, its owner's declaration explains what is missing."""
    unclean = [row for row in rows if not row.outcome.clean]
    assert not unclean, told(unclean)
    for row in rows:
        assert row.outcome.agreed["start records"] or row.case.state is State.PROPOSING, row.case
        declares = [notice.peer for notice in row.outcome.notices if "declares the loss" in notice.text]
        assert row.case.fault != LOST or row.victim in declares, row.case
    edges = sum(row.outcome.agreed["edges"] for row in rows)
    deltas = sum(row.outcome.agreed["deltas received as sent"] for row in rows)
    assert edges > 40 * len(rows) and deltas > 80 * len(rows), "or they agree for want of anything to compare"


@pytest.mark.slow
def test_honest_logs_agree_whatever_happens(tmp_path: Path) -> None:
    """Every fault of the matrix once, states and graphs taking turns."""
    states = list(State)
    cases = [
        Case(fault, states[(3 * number) % len(states)], TOPOLOGIES[number % 3], 500)
        for number, fault in enumerate(HONEST)
    ]
    judge(compared(cases, tmp_path))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_honest_logs_agree_under_every_fault_in_every_state(tmp_path: Path) -> None:
    cases = [
        Case(fault, state, TOPOLOGIES[(number + place) % 3], 510)
        for number, fault in enumerate(HONEST)
        for place, state in enumerate(State)
    ]
    judge(compared(cases, tmp_path))


@pytest.mark.parametrize("policy", [{"staleness": 2}, {"catch_up_rounds": 1}], ids=["asynchronous", "states"])
def test_other_policies_agree_too(tmp_path: Path, policy: dict[str, Any]) -> None:
    """Late mixing, and a site that comes back with its neighbours' states."""

    world = VirtualConsortium(
        4, topology="ring", rounds=24, closing_rounds=2, seed=7, signatures="real", audited=True, folder=tmp_path,
        **policy,
    )  # fmt: skip
    world.inject(Crash(2, back_after=15.0), InState(2, State.TRAINING, round=3))
    world.begin()
    assert world.run(world.done, limit_seconds=900.0)
    world.run(limit_seconds=QUIET)
    outcome = reconcile(logs_of(world))
    world.close()
    assert outcome.clean, told([Compared(Case("crash", State.TRAINING, "ring", 7), "", 0, outcome)])
    assert outcome.agreed["edges"] > 20
    assert "catch_up_rounds" not in policy or outcome.agreed["states taken"] > 0


@pytest.mark.parametrize(
    "topology",
    [{"kind": "cyclic"}, {"kind": "exponential"}, {"kind": "epidemic", "degree": 2, "seed": 3, "choice": "local"}],
    ids=str,
)
def test_what_one_end_takes_is_compared_with_what_the_other_gave(tmp_path: Path, topology: dict[str, Any]) -> None:
    world = VirtualConsortium(
        5, topology=topology, rounds=12, seed=3, deadline=10.0, signatures="real", audited=True, folder=tmp_path
    )
    world.inject(Loss(0.1), At(1.5))
    world.begin()
    assert world.run(world.done, limit_seconds=LIMIT)
    world.run(limit_seconds=QUIET)
    logs = logs_of(world)
    world.close()
    outcome = reconcile(logs)
    assert outcome.clean, [(finding.text, finding.round) for finding in outcome.findings]
    assert outcome.agreed["weights"] >= 2 * outcome.agreed["edges"] * 0.8
    (facts,) = logs[2].runs.values()
    key, edge = next((key, edge) for key, edge in facts.mixed.items() if edge.given and key[1] > 4)
    facts.mixed[key] = replace(edge, given=0.9 * edge.given)
    found = [finding for finding in reconcile(logs).findings if "does not fit" in finding.text]
    assert len(found) == 1 and {found[0].peer, found[0].other} == {logs[2].peer, key[0]} and found[0].round == key[1]


@pytest.mark.parametrize(
    "weights",
    ["metropolis", "uniform", [[0, 1, 0.25, 0.5], [1, 2, 0.5, 0.25], [2, 3, 0.25, 0.5]]],
    ids=["metropolis", "uniform", "listed"],
)
def test_weights_of_its_own_are_held_against_their_law(weights: Any, tmp_path: Path) -> None:
    """And not against the samples, which are others here; a weight that does not fit is still found."""
    world = VirtualConsortium(
        4, topology={"kind": "chain", "weights": weights}, samples=[10, 20, 50, 20], rounds=5, closing_rounds=2, seed=3,
        signatures="real", audited=True, folder=tmp_path,
    )  # fmt: skip
    world.begin()
    assert world.run(world.done, limit_seconds=900.0)
    world.run(limit_seconds=QUIET)
    logs = logs_of(world)
    world.close()
    outcome = reconcile(logs)
    assert outcome.clean, told([Compared(Case("crash", State.TRAINING, "chain", 3), "", 0, outcome)])
    assert outcome.agreed["weights"] == 3 * 7
    run = next(iter(logs[0].runs.values()))
    (key, mixed) = next(iter(run.mixed.items()))
    run.mixed[key] = replace(mixed, weight=0.9 * mixed.weight)
    (found,) = reconcile(logs).findings
    assert found.sort is Sort.CONTRADICTORY and "which does not fit" in found.text


def test_a_late_member_agrees_too(tmp_path: Path) -> None:
    """It is admitted by the proposer's word, and begins with its neighbours' states."""
    world = VirtualConsortium(5, rounds=40, closing_rounds=3, seed=1, signatures="real", audited=True, folder=tmp_path)
    world.approving = range(4)
    world.clock.at(75.0, world.sites[4].approve_late)
    world.begin()
    assert world.run(world.done, limit_seconds=4000.0)
    world.run(limit_seconds=QUIET)
    outcome = reconcile(logs_of(world))
    world.close()
    assert outcome.clean and outcome.agreed["states taken"] > 0 and outcome.agreed["directives"] == 5


@pytest.mark.parametrize(("backup_at", "approved"), [(0.1, False), (1.0, True)])
def test_a_restored_site_is_not_accused(tmp_path: Path, backup_at: float, approved: bool) -> None:
    """Its backup is of before its approval, or of after: whatever went with it is explained by the one declared loss."""
    world = VirtualConsortium(
        4, topology="ring", rounds=6, closing_rounds=1, seed=3, signatures="real", audited=True, folder=tmp_path
    )
    world.inject(Crash(2, 1.0, disk="backup", backup_at=backup_at), InState(2, State.COLLECTING, round=2))
    world.begin()
    assert world.run(world.done, limit_seconds=900.0)
    world.run(limit_seconds=QUIET)
    outcome = reconcile(logs_of(world))
    world.close()
    assert outcome.clean, told([Compared(Case("crash", State.COLLECTING, "ring", 3), "", 0, outcome)])
    lost = {what for what, why in outcome.explained if why == "that log declares the loss of entries"}
    assert ("approvals that their log lacks" in lost) is not approved and "deltas that their origin's log lost" in lost


@pytest.mark.parametrize("lie", [Equivocate([0, 1]), LieAboutEdges(False)], ids=["equivocation", "edges"])
def test_a_liar_is_named(tmp_path: Path, lie: Member) -> None:
    world = VirtualConsortium(4, rounds=6, seed=9, signatures="real", audited=True, folder=tmp_path)
    world.corrupt(2, lie)
    world.begin()
    assert world.run(world.done, limit_seconds=900.0)
    world.run(limit_seconds=QUIET)
    outcome = reconcile(logs_of(world))
    world.close()
    assert outcome.findings
    assert all(world.peers[2] in (finding.peer, finding.other) for finding in outcome.findings)


# --- tampering with a log, signed anew with its owner's own key: each log alone still verifies


@dataclass
class Consortium:
    """The logs of one undisturbed run with a directive in it."""

    folder: Path
    keys: list[Identity]
    paths: list[Path]
    run: str
    peers: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.peers = [str(key.peer_id) for key in self.keys]

    def forged(self, number: int, change: Callable[[list[Entry]], None], folder: Path) -> Reconciliation:
        """Compare all logs, one of them rewritten by its owner."""
        entries = list(read_entries(self.paths[number]))[1:]
        change(entries)
        folder.mkdir(exist_ok=True)
        path = folder / "forged.db"
        with AuditLog.create(path, self.keys[number], NOW) as log:
            log.append([NewEntry(entry.kind, entry.body) for entry in entries], NOW)
        assert verify_log(path, self.peers[number]).ok
        paths = [*self.paths[:number], path, *self.paths[number + 1 :]]
        return reconcile([gather(peer, read_entries(log)) for peer, log in zip(self.peers, paths, strict=True)])


@pytest.fixture(scope="module")
def consortium(tmp_path_factory: pytest.TempPathFactory) -> Consortium:
    folder = tmp_path_factory.mktemp("logs")
    world = VirtualConsortium(
        4, topology="ring", rounds=6, closing_rounds=1, seed=3, signatures="real", audited=True, folder=folder
    )
    world.begin()
    assert world.run(lambda: world.states()[0] is State.COLLECTING, limit_seconds=60.0)
    world.sites[0].post(Direct(world.sites[0].now, "stop", {}, 4))
    assert world.run(world.done, limit_seconds=300.0)
    world.run(limit_seconds=QUIET)
    keys = [world.kit.identity(world.seed, number) for number in range(4)]
    assert all(isinstance(key, Identity) for key in keys)
    paths = [site.audit.path for site in world.sites if site.audit is not None]
    world.close()
    return Consortium(folder, [key for key in keys if isinstance(key, Identity)], paths, world.proposal.run)


def test_the_untouched_logs_agree(consortium: Consortium, tmp_path: Path) -> None:
    outcome = consortium.forged(1, lambda entries: None, tmp_path)
    assert outcome.clean and outcome.runs == [consortium.run] and not outcome.not_judged and not outcome.explained
    # a ring of four: 4 edges, 4 rounds and a closing round
    assert outcome.agreed["edges"] == outcome.agreed["weights"] == 20
    assert outcome.agreed["deltas received as sent"] == 40
    assert outcome.agreed["start records"] == outcome.agreed["approvals"] == 4
    assert outcome.agreed["directives"] == 4 and outcome.agreed["contributions"] == 8
    assert outcome.agreed["closing statements"] == 12 and outcome.verdict == "clean"


@pytest.mark.parametrize(
    ("place", "kept", "found"),
    [
        (None, 0, False),  # lost and declared behind the run: a delta may have been among it
        (None, None, True),  # ... but the run had been closed in what was kept
        (0, 0, True),  # declared before the run began: what was sent later was not lost then
    ],
)
def test_a_declared_loss_explains_what_it_can_have_taken(
    consortium: Consortium, tmp_path: Path, place: int | None, kept: int | None, found: bool
) -> None:
    """By the entry alone: reasons, which can be erased or left out of an export, are not read."""

    def change(entries: list[Entry]) -> None:
        drop("delta_sent", 1)(entries)
        for entry in entries:
            if "reason" in entry.body:
                entry.body["reason"] = "(erased)"
        body = {
            "epoch": 1,
            "kept": len(entries) if kept is None else kept,
            "lost": [[0, 900, bytes(32)]],
            "reason": "x",
        }
        entries.insert(len(entries) if place is None else place, Entry(0, 0, "epoch_opened", body, b""))

    outcome = consortium.forged(1, change, tmp_path)
    assert any("never sent" in finding.text for finding in outcome.findings) is found
    explained = [why for _, why in outcome.explained if why == "that log declares the loss of entries"]
    assert bool(explained) is not found


def test_a_declared_loss_excuses_only_what_it_can_have_taken(consortium: Consortium, tmp_path: Path) -> None:
    """Declared in round 3 with all kept that was there: a delta of round 1 had been in what was kept."""

    def change(kept_from: str, round_: int) -> Callable[[list[Entry]], None]:
        def forge(entries: list[Entry]) -> None:
            drop("delta_sent", 1)(entries)
            place = entries.index(first(entries, "round_started", 3))
            kept = entries.index(first(entries, kept_from, round_)) + 1  # before them: the log's own first entry
            body = {"epoch": 1, "kept": kept, "lost": [[0, 900, bytes(32)]], "reason": "x"}
            entries.insert(place, Entry(0, 0, "epoch_opened", body, b""))

        return forge

    for kept_from, round_, found in [("round_started", 3, True), ("round_started", 2, False)]:
        outcome = consortium.forged(1, change(kept_from, round_), tmp_path / f"{round_}")
        assert any("never sent" in finding.text for finding in outcome.findings) is found
        (notice,) = outcome.notices
        assert notice.peer == consortium.peers[1] and "declares the loss of its entries" in notice.text
        assert notice.text.endswith("to 899, epoch 1; none of the given logs witnessed it")


def test_a_loss_is_told_with_its_witnesses(consortium: Consortium, tmp_path: Path) -> None:
    facts = [gather(peer, read_entries(path)) for peer, path in zip(consortium.peers, consortium.paths, strict=True)]
    loss = {"epoch": 1, "kept": 5, "lost": [[0, 9, bytes(32)]], "reason": "x"}
    facts[0] = gather(facts[0].peer, [*read_entries(consortium.paths[0]), Entry(999, 0, "epoch_opened", loss, b"")])
    witnessed = {"peer": facts[0].peer, "epoch": 1, "kept": 5, "held": 9}
    withheld = {"peer": facts[0].peer, "asked": 3, "size": 9, "reason": "x"}
    more = [Entry(990, 0, "loss_witnessed", witnessed, b""), Entry(991, 0, "head_withheld", withheld, b"")]
    facts[1] = gather(facts[1].peer, [*read_entries(consortium.paths[1]), *more])
    outcome = reconcile(facts)
    assert outcome.clean and outcome.verdict == "clean"
    told = {row.entry: row for row in outcome.notices}
    assert [told[entry].peer for entry in (999, 990, 991)] == [facts[0].peer, facts[1].peer, facts[1].peer]
    assert "; 1 of the given logs witnessed it" in told[999].text
    assert "asked 3 times in vain" in told[991].text and told[991].other == facts[0].peer


def test_a_part_of_a_log_is_never_clean(consortium: Consortium, tmp_path: Path) -> None:
    """One entry excuses its owner from nothing: what it lacks was not asked for, and that is said."""
    logs = [gather(peer, read_entries(path)) for peer, path in zip(consortium.peers, consortium.paths, strict=True)]
    for start, end in [(5, 5), (0, 40), (40, None)]:
        with open_part(consortium.paths[1], str(start), None if end is None else str(end)) as part:
            (tmp_path / "part.jsonl").write_text("".join(json_lines(part)))
            size = part.size
        given = gather_source(tmp_path / "part.jsonl")
        outcome = reconcile([logs[0], given, *logs[2:]])
        assert not outcome.findings and not outcome.clean
        assert outcome.parts == {given.peer: (start, size - 1 if end is None else end, size)}
        assert outcome.verdict.startswith("NOT JUDGED   1 logs") and outcome.not_judged[given.peer] > 0


def first(entries: list[Entry], kind: str, round_: int | None = None) -> Entry:
    return next(item for item in entries if item.kind == kind and round_ in (None, item.body.get("round")))


def drop(kind: str, round_: int) -> Callable[[list[Entry]], None]:
    return lambda entries: entries.remove(first(entries, kind, round_))


def edit(kind: str, round_: int | None, change: Callable[[dict[str, Any]], None]) -> Callable[[list[Entry]], None]:
    return lambda entries: change(first(entries, kind, round_).body)


def add(kind: str, body: dict[str, Any]) -> Callable[[list[Entry]], None]:
    def change(entries: list[Entry]) -> None:
        run = first(entries, "run_started").body["run"]
        neighbour = first(entries, "mixed", 1).body["edges"][0][0]
        filled = {name: neighbour if value == "NEIGHBOUR" else value for name, value in body.items()}
        entries.append(Entry(0, 0, kind, {"run": run, **filled}, b""))

    return change


def take_edge_away(entries: list[Entry]) -> None:
    """As if a neighbour's message of round 2 had never come: no receipt, no edge."""
    mixed = first(entries, "mixed", 2)
    neighbour = mixed.body["edges"].pop(0)[0]
    entries.remove(
        next(e for e in entries if e.kind == "delta_received" and (e.body["peer"], e.body["round"]) == (neighbour, 2))
    )


def invent_state(entries: list[Entry]) -> None:
    neighbour = first(entries, "mixed", 1).body["edges"][0][0]
    add("caught_up", {"round": 3, "away": 9, "own": 0.5, "states": [[neighbour, 1.0, 2, "ab" * 32]], "distance": 1.0})(
        entries
    )


def weigh(body: dict[str, Any]) -> None:
    body["edges"][0][1] *= 1.01


def claim(body: dict[str, Any]) -> None:
    body["core"] = "cd" * 32


def more_samples(body: dict[str, Any]) -> None:
    body["participants"][0][1] += 1000


def contribute(body: dict[str, Any]) -> None:
    body["contributed"][0][1] = body["contributed"][1][1] = [[0, 5]]


def cut(kind: str, round_: int | None) -> Callable[[list[Entry]], None]:
    """The end of the log, from this entry on."""

    def change(entries: list[Entry]) -> None:
        del entries[entries.index(first(entries, kind, round_)) :]

    return change


def never_close(entries: list[Entry]) -> None:
    """No closing, and nothing mixed from round 2 on: as if it had crashed, only without an end."""
    drop("run_closed", None)(entries)
    for entry in entries:
        if entry.kind == "mixed" and entry.body["round"] > 1:
            entry.body["edges"] = []


def less_of_its_own(forger: int) -> Callable[[list[Entry]], None]:
    """The contribution of the owner itself, whose place in the list is that of its peer id."""

    def change(entries: list[Entry]) -> None:
        own = first(entries, "run_closed").body["contributed"][forger]
        assert own[1] == [[0, 3]]
        own[1] = [[0, 0]]

    return change


TAMPERINGS: dict[str, tuple[Callable[[list[Entry]], None], Sort, int | None, str]] = {
    "a receipt taken away": (drop("delta_received", 2), Sort.MISSING, 2, "was not received"),
    "a receipt taken away, the edge kept": (drop("delta_received", 2), Sort.CONTRADICTORY, 2, "not say was received"),
    "a receipt and its edge taken away": (take_edge_away, Sort.CONTRADICTORY, 2, "did not mix it"),
    "a delta that left, taken away": (drop("delta_sent", 1), Sort.MISSING, 1, "never sent"),
    "a delta invented": (edit("delta_received", 3, claim), Sort.CONTRADICTORY, 3, "another message"),
    "a delta received in another round": (edit("delta_received", 3, lambda body: body.update(round=2)), Sort.CONTRADICTORY, 2, "another place"),
    "a sent delta renamed": (edit("delta_sent", 3, claim), Sort.CONTRADICTORY, 3, "another message"),
    "a delta for nobody": (edit("delta_sent", 3, lambda body: body["to"].pop()), Sort.CONTRADICTORY, 3, "not for it"),
    "a weight": (edit("mixed", 2, weigh), Sort.CONTRADICTORY, 2, "does not fit"),
    "a weight above one": (edit("mixed", 2, lambda body: body["edges"][0].__setitem__(1, 1.5)), Sort.CONTRADICTORY, 2, "which no mixing has"),
    "a weight below zero": (edit("mixed", 2, lambda body: body["edges"][0].__setitem__(1, -0.5)), Sort.CONTRADICTORY, 2, "which no mixing has"),
    "a mixing taken away": (drop("mixed", 3), Sort.CONTRADICTORY, 3, "did not mix it"),
    "a displacement taken back": (edit("mixed", 3, lambda body: body["taken_back"].append([body["edges"][0][0], 2, 0])), Sort.CONTRADICTORY, 2, "took it back"),
    "taken back what was never mixed": (edit("mixed", 3, lambda body: body["taken_back"].append([body["edges"][0][0], 77, 0])), Sort.CONTRADICTORY, 77, "had not mixed"),
    "an edge mixed twice": (edit("mixed", 3, lambda body: body["edges"].append([*body["edges"][0][:2], 2, 0])), Sort.CONTRADICTORY, None, "two times"),
    "samples": (edit("run_started", None, more_samples), Sort.CONTRADICTORY, None, "another participants"),
    "another plan": (edit("run_started", None, lambda body: body.update(plan="ef" * 32)), Sort.CONTRADICTORY, None, "another plan"),
    "another approval": (edit("plan_approved", None, lambda body: body.update(samples=7)), Sort.CONTRADICTORY, None, "number of samples"),
    "an approval taken away": (lambda entries: entries.remove(first(entries, "plan_approved")), Sort.MISSING, None, "approval that is not"),
    "another start record": (edit("start_signed", None, lambda body: body.update(record="ef" * 32)), Sort.CONTRADICTORY, None, "another record was signed"),
    "a state invented": (invent_state, Sort.CONTRADICTORY, 3, "a state that was never sent"),
    "a directive invented": (add("directive_heard", {"version": 9, "paused_from": None, "stop_at": 3, "changes": []}), Sort.CONTRADICTORY, None, "directive 9"),
    "a directive of one who may not": (add("directive_signed", {"version": 2, "paused_from": None, "stop_at": 3, "changes": []}), Sort.CONTRADICTORY, None, "so did"),
    "contributions invented": (edit("run_closed", None, contribute), Sort.CONTRADICTORY, 5, "never mixed"),
    "bias denied": (add("edge_unsettled", {"peer": "NEIGHBOUR", "round": 1, "step": 0}), Sort.CONTRADICTORY, None, "unsettled edges"),
    "an acknowledgement invented": (add("acknowledged", {"peer": "NEIGHBOUR", "cores": ["cd" * 32]}), Sort.MISSING, None, "acknowledgement"),
    "an accusation": (add("equivocation", {"peer": "NEIGHBOUR", "round": 1, "step": 0, "channel": "model"}), Sort.CONTRADICTORY, 1, "evidence"),
    "a body that no version writes": (edit("mixed", 2, lambda body: body.update(edges="all of them")), Sort.UNEXPLAINED, None, "no version writes"),
    "the closing taken away": (drop("run_closed", None), Sort.MISSING, None, "heard a closing statement, of which nothing"),
    "the end cut off": (cut("run_closed", None), Sort.MISSING, None, "heard a closing statement, of which nothing"),
    "most of the log cut off": (cut("round_started", 2), Sort.MISSING, 2, "has an acknowledgement of a message that it had received"),
    "neither closed nor mixed": (never_close, Sort.CONTRADICTORY, 2, "did not mix it"),
    "another model at the end": (edit("run_closed", None, lambda body: body.update(digest="ab" * 32)), Sort.CONTRADICTORY, None, "with another digest than"),
    "fewer rounds at the end": (edit("run_closed", None, lambda body: body.update(rounds_done=1)), Sort.CONTRADICTORY, None, "with another rounds_done than"),
    "other samples at the end": (edit("run_closed", None, lambda body: body.update(samples=3)), Sort.CONTRADICTORY, None, "closed with 3 samples"),
    "less of its own at the end": (less_of_its_own(1), Sort.CONTRADICTORY, None, "with another contributed than"),
    "more of its own than it sent": (edit("run_closed", None, lambda body: body["contributed"][1].__setitem__(1, [[0, 9]])), Sort.CONTRADICTORY, 5, "that it never sent"),
    "another closing heard": (edit("closing_heard", None, lambda body: body.update(samples=3)), Sort.CONTRADICTORY, None, "another closing statement than"),
    "another model written": (add("model_written", {"digest": "ab" * 32, "file": "cd" * 32}), Sort.CONTRADICTORY, None, "is not the one it closed"),
    "evidence against a log": (add("log_misbehaviour", {"peer": "NEIGHBOUR", "claim": "fork", "sizes": [5, 5], "file": "x"}), Sort.CONTRADICTORY, None, "keeps evidence (fork) against the log of"),
    "a loss that nobody had": (add("loss_witnessed", {"peer": "NEIGHBOUR", "epoch": 1, "kept": 5, "held": 9}), Sort.MISSING, None, "witnessed the loss of all but 5"),
    "everything of the run": (lambda entries: entries.__setitem__(slice(0, None), [Entry(0, 0, "link_down", {}, b"")]), Sort.MISSING, None, "nothing stands in the log"),
}  # fmt: skip


@pytest.mark.parametrize("what", TAMPERINGS)
def test_tampering_is_found_and_named(consortium: Consortium, tmp_path: Path, what: str) -> None:
    change, sort, round_, words = TAMPERINGS[what]
    outcome = consortium.forged(1, change, tmp_path)
    forger = consortium.peers[1]
    found = [item for item in outcome.findings if item.sort is sort and item.round == round_ and words in item.text]
    assert found, [(item.sort, item.round, item.text) for item in outcome.findings]
    assert all(forger in (item.peer, item.other) for item in outcome.findings), (
        "the others' logs agree among themselves"
    )
    assert all(item.run in ("", consortium.run) for item in outcome.findings)


def say_given(factor: float, every: bool) -> Callable[[list[Entry]], None]:
    """As in a directed mixing: a heavier weight, beside as much given as the neighbour took."""

    def change(entries: list[Entry]) -> None:
        for entry in entries:
            if entry.kind == "mixed" and (every or entry.body["round"] == 2):
                for edge in entry.body["edges"]:
                    edge[1:] = [edge[1] * factor, entry.body["round"], entry.body["step"], edge[1]]

    return change


@pytest.mark.parametrize("every", [False, True], ids=["in one round", "in all rounds"])
@pytest.mark.parametrize("factor", [1.0, 1.9, 37.0])
def test_an_undirected_run_knows_no_other_amount_given(
    consortium: Consortium, tmp_path: Path, factor: float, every: bool
) -> None:
    """Both neighbours' logs contradict it, whichever of the two is compared with the other; so does its own."""
    outcome, forger = consortium.forged(1, say_given(factor, every), tmp_path), consortium.peers[1]
    assert all(forger in (item.peer, item.other) for item in outcome.findings)
    found = [item for item in outcome.findings if item.sort is Sort.CONTRADICTORY and item.round == 2]
    says = [item.other for item in found if item.peer == forger and "it was undirected, says" in item.text]
    assert len(says) == len(set(says)) == 2
    weights = [{item.peer, item.other} for item in found if "does not fit" in item.text]
    assert weights == ([] if factor == 1.0 else [{forger, other} for other in says])
    assert any("of others not" in item.text for item in outcome.findings) is not every
    assert any("which no mixing has" in item.text for item in outcome.findings) is (factor > 10)


def test_a_part_of_the_logs_says_what_it_cannot_judge(consortium: Consortium) -> None:
    """Whoever has two of four logs learns that they agree, and whose are wanting for the rest."""
    logs = [gather(peer, read_entries(path)) for peer, path in zip(consortium.peers, consortium.paths, strict=True)]
    for numbers in [(0,), (0, 1), (1, 3), (0, 1, 2)]:
        outcome = reconcile([logs[number] for number in numbers])
        assert outcome.clean and outcome.verdict == "clean, as far as the given logs go"
        assert set(outcome.not_judged) == {peer for n, peer in enumerate(consortium.peers) if n not in numbers}


def test_two_logs_of_one_hospital_are_refused(consortium: Consortium) -> None:
    log = gather(consortium.peers[0], read_entries(consortium.paths[0]))
    with pytest.raises(ConfigError, match="two of the given logs"):
        reconcile([log, log])


def test_a_killed_site_is_explained_by_its_neighbours(tmp_path: Path) -> None:
    (fault,) = GONE
    outcome = compare((Case(fault, State.TRAINING, "ring", 530), str(tmp_path))).outcome
    whys = Counter({why: times for (_, why), times in outcome.explained.items()})
    assert outcome.clean and whys["the receiver's log of this run ends there, without a closing entry"] > 0
