"""Kept deltas replayed: a real run, its real logs, and what is said of what was changed, lost or never kept."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from bottle import QUADRATIC_PLAN, Quadratic

from p2pfl.audit import LogFacts, gather_source, lineage, read_entries, reconcile
from p2pfl.cli.app import run
from p2pfl.governance import read_plan
from p2pfl.net import MemoryNetwork
from p2pfl.peer import Peer, Replayed, Run, RunReplay, found_consortium, kept_folders, open_home, replay_run
from p2pfl.peer.keeping import unframed
from p2pfl.peer.local import LocalPeers

NAMES = ("lille", "caen", "rouen")
KEEPS = ("lille", "caen")  # rouen does not: what it sends and mixes is kept by its two neighbours
ROUNDS, CLOSING = 3, 2
SETTINGS = """
[plan]
name = "points"
[data]
tag = "points"
[training]
rule = "{rule}"
learning_rate = 0.1
local_steps = 2
batch_size = 1000
rounds = {rounds}
closing_rounds = 2
dtype = "float64"
deadline = {deadline}
"""


@dataclass
class World:
    """A run that is over, and its homes."""

    run: str
    homes: dict[str, Path]

    @property
    def logs(self) -> list[LogFacts]:
        return [gather_source(home / "audit.db") for home in self.homes.values()]

    def peer(self, name: str) -> str:
        return open_home(self.homes[name]).member().peer_id

    def kept(self, name: str) -> Path:
        return self.homes[name] / "kept" / self.run

    def replay(self, logs: Sequence[LogFacts] | None = None, places: Sequence[Path] | None = None) -> RunReplay:
        told = self.logs if logs is None else logs
        closed = told[0].runs[self.run].closed
        assert closed is not None
        folders = kept_folders(list(self.homes.values()) if places is None else places, self.run)
        return replay_run(told, self.run, folders, told[0].peer, closed["digest"])

    def copy(self, folder: Path) -> World:
        shutil.copytree(next(iter(self.homes.values())).parent, folder, symlinks=True)
        return World(self.run, {name: folder / name for name in self.homes})


def make_homes(folder: Path, keeps: Sequence[str], limit: int, **plan: object) -> dict[str, Path]:
    (folder / "plan").mkdir()
    (folder / "plan" / "plan.py").write_text(QUADRATIC_PLAN)
    (folder / "plan" / "plan.toml").write_text(SETTINGS.format(**plan))
    homes = {name: folder / name for name in NAMES}
    found_consortium(dict.fromkeys(homes.values()), "replay", {"kind": "full"})
    for name in keeps:
        with (homes[name] / "home.toml").open("a") as file:
            file.write(f"\n[keep]\ndeltas = true\nlimit = {limit}\n")
    for home, data in zip(homes.values(), Quadratic.make((40, 30, 20)).write(folder), strict=True):
        open_home(home).registry.add("points", data, now=0)
    return homes


def train(
    folder: Path, *, keeps: Sequence[str] = KEEPS, limit: int = 2**20, rule: str = "dpsgd", **options: Any
) -> World:
    homes = make_homes(folder, keeps, limit, rule=rule, rounds=ROUNDS, deadline=20)

    async def whole() -> str:
        network = MemoryNetwork()
        async with contextlib.AsyncExitStack() as stack:
            peers = [await stack.enter_async_context(Peer(home, network=network)) for home in homes.values()]
            runs = await LocalPeers(peers, read_plan(folder / "plan")).run(seed=3, **options)
            assert peers[0].status()["kept"] is None or peers[0].status()["kept"]["limit"] == limit
            return runs[0].id

    return World(asyncio.run(whole()), homes)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return train(tmp_path_factory.mktemp("homes"), rule="kgt")


def others(found: RunReplay, *not_these: Replayed) -> set[str]:
    return {row.verdict for row in found.rows if row not in not_these}


# --- one run, looked at from all sides


def test_every_mixing_of_all_sites_is_reproduced(world: World) -> None:
    found = world.replay()
    assert found.problem is None and found.model == "reproduced" and not found.departs
    assert [(row.round, row.verdict) for row in found.rows] == [
        (number, "reproduced") for _ in NAMES for number in range(ROUNDS + CLOSING)
    ]


def test_what_is_kept_is_what_the_log_names_and_only_where_it_was_asked_for(world: World) -> None:
    assert not (world.homes["rouen"] / "kept").exists()
    kinds = {name: {entry.kind for entry in read_entries(home / "audit.db")} for name, home in world.homes.items()}
    assert {name for name in NAMES if "keeping_begun" in kinds[name]} == set(KEEPS)
    for log in world.logs:
        if log.name not in KEEPS:
            continue
        facts, kept = log.runs[world.run], list(world.kept(log.name).iterdir())
        cores = {*facts.sent, *facts.received}
        assert len(cores) == len(NAMES) * (2 * ROUNDS + CLOSING), "K-GT has two channels while it trains"
        named = {f"{core}.delta" for core in cores} | {f"{mixing.digest}.mixed" for mixing in facts.mixings}
        assert {path.name for path in kept} == named | {"base", "names", "proposal"}
        assert all(path.stat().st_mode & 0o077 == 0 for path in kept)


def test_one_site_alone_replays_its_own_mixings(world: World) -> None:
    found = world.replay([log for log in world.logs if log.peer == world.peer("lille")], [world.homes["lille"]])
    assert len(found.rows) == ROUNDS + CLOSING and others(found) == {"reproduced"}


def test_an_altered_kept_delta_is_named_and_the_rest_is_reproduced(world: World, tmp_path: Path) -> None:
    """Its last byte, in every folder that has it: no mixing that takes it in can be replayed."""
    there = world.copy(tmp_path / "copy")
    caen = world.peer("caen")
    facts = next(log for log in world.logs if log.peer == caen).runs[world.run]
    file = f"{facts.sent_at[(1, 0, 'z')]}.delta"
    for name in KEEPS:
        path = there.kept(name) / file
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    found = there.replay()
    bad = [row for row in found.rows if row.round == 1]
    assert [(row.verdict, row.why, row.delta) for row in bad] == [("not replayed", "altered", (caen, 1, 0))] * 3
    assert others(found, *bad) == {"reproduced"}
    shutil.copy(world.kept("caen") / file, there.kept("caen") / file)
    assert others(there.replay()) == {"reproduced"}, "a good copy in one folder is enough"


@pytest.mark.parametrize("what", ["signature", "core", "another's"])
def test_a_core_that_its_origin_did_not_sign_counts_for_nothing(world: World, tmp_path: Path, what: str) -> None:
    there = world.copy(tmp_path / "copy")
    facts = next(log for log in world.logs if log.peer == world.peer("caen")).runs[world.run]
    core, second = facts.sent_at[(0, 0, "x")], facts.sent_at[(1, 0, "x")]
    for name in KEEPS:
        path = there.kept(name) / f"{core}.delta"
        data = bytearray(path.read_bytes())
        signed, _ = unframed(bytes(data))
        if what == "another's":
            data = bytearray((there.kept(name) / f"{second}.delta").read_bytes())
        else:
            data[4 + (len(signed) - 1 if what == "signature" else 100)] ^= 1
        path.write_bytes(data)
    found = there.replay()
    assert {(row.verdict, row.why) for row in found.rows if row.round == 0} == {("not replayed", "altered")}
    assert others(found, *(row for row in found.rows if row.round == 0)) == {"reproduced"}


def test_a_delta_that_is_gone_is_named(world: World, tmp_path: Path) -> None:
    there = world.copy(tmp_path / "copy")
    rouen = world.peer("rouen")
    facts = next(log for log in world.logs if log.peer == rouen).runs[world.run]
    for name in KEEPS:
        (there.kept(name) / f"{facts.sent_at[(ROUNDS, 0, 'x')]}.delta").unlink()
    found = there.replay()
    bad = [row for row in found.rows if row.round == ROUNDS]
    assert {(row.verdict, row.why, row.delta) for row in bad} == {("not replayed", "no delta", (rouen, ROUNDS, 0))}
    assert others(found, *bad) == {"reproduced"}, "the next rounds go on from what the log says was left"


@pytest.mark.parametrize("core", ["../../../evil", "/etc/evil", "x" * 5000, "\x00"])
def test_a_log_that_names_other_files_leads_nowhere(world: World, tmp_path: Path, core: str) -> None:
    (tmp_path / "evil.delta").write_bytes(b"not to be opened")
    logs = world.logs
    facts = logs[0].runs[world.run]
    facts.sent_at[(1, 0, "x")] = core
    facts.mixings[2] = replace(facts.mixings[2], digest=core)
    rows = [row for row in world.replay(logs).rows if row.verdict != "reproduced"]
    assert [(row.round, row.verdict) for row in rows] == [(1, "not replayed"), (2, "departs")]
    assert rows[0].why == "no delta" and rows[1].index is None


def test_another_weight_departs_at_its_place_and_nowhere_else(world: World) -> None:
    """Such a log would have to be signed by its owner: it says something else than what was computed."""
    logs = world.logs
    facts = logs[1].runs[world.run]
    mixing = facts.mixings[2]
    peer, weight, place = mixing.edges[0]
    facts.mixings[2] = replace(mixing, edges=((peer, weight * (1 - 2**-40), place), *mixing.edges[1:]))
    found = world.replay(logs)
    departed = [row for row in found.rows if row.verdict != "reproduced"]
    assert [(row.peer, row.round, row.verdict) for row in departed] == [(logs[1].peer, 2, "departs")]
    assert departed[0].tensor == "x" and departed[0].index == 0 and found.departs
    assert departed[0].logged != departed[0].replayed and departed[0].logged == pytest.approx(departed[0].replayed)


def test_a_message_that_does_not_follow_from_the_mixing_before_departs(world: World) -> None:
    """A closing round trains nothing: who sends something else than it had mixed is found by its own signed core."""
    logs = world.logs
    facts = logs[0].runs[world.run]
    place = ROUNDS + 1
    facts.sent_at[(place, 0, "x")], facts.sent_at[(ROUNDS, 0, "x")] = (
        facts.sent_at[(ROUNDS, 0, "x")], facts.sent_at[(place, 0, "x")],
    )  # fmt: skip
    moved = [row for row in world.replay(logs).rows if row.verdict != "reproduced"]
    assert {(row.peer, row.round, row.why) for row in moved} == {
        (logs[0].peer, number, "signed for another place") for number in (ROUNDS, place)
    }
    logs = world.logs
    facts = logs[0].runs[world.run]
    facts.contributed = [(peer, [(0, ROUNDS - 2)]) for peer, _ in facts.contributed]  # as if it had not trained
    moved = [row for row in world.replay(logs).rows if row.verdict != "reproduced"]
    assert [(row.peer, row.round, row.verdict) for row in moved] == [(logs[0].peer, ROUNDS - 1, "departs")]
    assert "its own message is not what its mixing before has left" in moved[0].why and moved[0].tensor == "x"


def test_another_model_departs_and_another_runs_files_are_refused(world: World, tmp_path: Path) -> None:
    logs = world.logs
    folders = kept_folders(world.homes.values(), world.run)
    assert replay_run(logs, world.run, folders, logs[0].peer, "ab" * 32).model == "departs"
    there = world.copy(tmp_path / "copy")
    for name in KEEPS:
        (there.kept(name) / "base").write_bytes(bytes(24))
    assert not there.replay().problem, "this model's first parameters are zeros"
    for name in KEEPS:
        (there.kept(name) / "base").write_bytes(bytes(23) + b"1")
    assert "first parameters" in str(there.replay().problem)
    for name in KEEPS:
        (there.kept(name) / "proposal").unlink()
    assert "no whole proposal of this run" in str(there.replay().problem)


def test_the_command_line_with_homes_and_with_copies(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exports and copied folders on another machine say the same as the homes; no key is there."""
    model = str(next((world.homes["lille"] / "runs").glob("*/model.safetensors")))
    homes = [str(home) for home in world.homes.values()]
    exports, copies = [], []
    for name, home in world.homes.items():
        assert run(["audit", "export", str(home), "-o", str(tmp_path / f"{name}.jsonl")]) == 0
        exports.append(str(tmp_path / f"{name}.jsonl"))
    for name in KEEPS:
        shutil.copytree(world.kept(name), tmp_path / f"{name}-kept")
        copies += ["--deltas", str(tmp_path / f"{name}-kept")]
    capsys.readouterr()
    assert run(["audit", "lineage", model, *homes]) == 0
    text = capsys.readouterr().out
    for name in NAMES:
        assert f"replayed     {name}: round 0 to {ROUNDS + CLOSING - 1} reproduced" in text
    assert "model        reproduced" in text
    said = []
    for words in (homes, [*exports, *copies]):
        assert run(["audit", "lineage", model, *words, "--json"]) == 0
        said.append(json.loads(capsys.readouterr().out))
    assert said[0] == said[1] and {row["verdict"] for row in said[0]["replay"]["rows"]} == {"reproduced"}
    assert run(["audit", "lineage", model, *exports, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["replay"] is None
    assert run(["audit", "lineage", model, *exports, "--deltas", str(tmp_path)]) == 1
    assert "nothing is kept of run" in capsys.readouterr().err
    (tmp_path / "lille-kept" / "proposal").write_bytes(b"no")
    (tmp_path / "caen-kept" / "proposal").unlink()
    assert run(["audit", "lineage", model, *exports, *copies]) == 0
    assert "replay       not done: " in capsys.readouterr().out


# --- runs that do not go smoothly


@pytest.mark.slow
@pytest.mark.timeout(200)
@pytest.mark.parametrize("rule", ["dpsgd", "kgt"])
def test_a_site_that_was_away_and_those_who_went_on(tmp_path: Path, rule: str) -> None:
    """Rouen stops in the middle and comes back: what each mixed with whom is in its log, and comes out again."""
    homes = make_homes(tmp_path, NAMES, 2**20, rule=rule, rounds=40, deadline=1.0)

    async def whole() -> str:
        network, plan = MemoryNetwork(), read_plan(tmp_path / "plan")
        async with contextlib.AsyncExitStack() as stack:
            staying = [await stack.enter_async_context(Peer(homes[name], network=network)) for name in NAMES[:2]]
            async with Peer(homes["rouen"], network=network) as away:
                first = await staying[0].propose(plan, seed=3)
                joined = await asyncio.gather(*(peer.next_proposal() for peer in (staying[1], away)))
                await asyncio.gather(staying[1].join(joined[0].id), away.join(joined[1].id))
                await until_round(away.run(first.id), 5)
            await until_round(first, 9)
            back = await stack.enter_async_context(Peer(homes["rouen"], network=network))
            await asyncio.gather(first.finished(), staying[1].run(first.id).finished(), back.run(first.id).finished())
            return first.id

    world = World(asyncio.run(whole()), homes)
    found = world.replay()
    facts = {log.name: log.runs[world.run] for log in world.logs}
    alone = [mixing for mixing in facts["lille"].mixings if len(mixing.edges) < 2]
    assert alone and any(row.first for row in facts["rouen"].away), "nobody was ever away"
    assert found.problem is None and found.model == "reproduced", found
    assert {row.verdict for row in found.rows} == {"reproduced"}, [
        row for row in found.rows if row.verdict != "reproduced"
    ]
    assert len(found.rows) == sum(len(item.mixings) for item in facts.values())


async def until_round(handle: Run, number: int) -> None:
    async for event in handle.events():
        if event.topic == "round" and event.facts["round"] >= number:
            return
    raise AssertionError(f"the run was over before round {number}")


@pytest.mark.slow
def test_a_full_shelf_is_said_in_the_log_and_by_the_replay(tmp_path: Path) -> None:
    world = train(tmp_path, keeps=("lille",), limit=7000)
    kinds = [entry.kind for entry in read_entries(world.homes["lille"] / "audit.db")]
    assert kinds.count("keeping_begun") == kinds.count("keeping_ended") == 1
    assert sum(path.stat().st_size for path in world.kept("lille").iterdir()) <= 7000
    own = [row for row in world.replay().rows if row.peer == world.peer("lille")]
    assert {row.verdict for row in own} == {"reproduced", "not replayed"}
    lost = [row for row in own if row.verdict == "not replayed"]
    assert {row.why for row in lost} == {"no delta, no more were kept by then"} and own[0].verdict == "reproduced"
    assert world.replay().model == "not replayed" and not world.replay().departs


def test_accelerated_closing_rounds_are_in_the_logs_and_not_replayed(tmp_path: Path) -> None:
    world = train(tmp_path, topology={"kind": "chain", "closing": "chebyshev"})
    found = world.replay()
    assert found.problem is not None and "its closing rounds are accelerated" in found.problem and not found.rows
    logs = world.logs
    assert not reconcile(logs).findings
    for log in logs:
        mixings = log.runs[world.run].mixings
        inertias = [mixing.inertia for mixing in mixings]
        assert inertias[: ROUNDS + 1] == [None] * ROUNDS + [0.0] and inertias[-1] is not None and inertias[-1] > 0.1
        heavier = {edge[1] for edge in mixings[-1].edges}, {edge[1] for edge in mixings[0].edges}
        assert max(heavier[0]) == pytest.approx((1 + inertias[-1]) * max(heavier[1]), rel=1e-12)
    closed = logs[0].runs[world.run].closed
    assert closed is not None
    came = lineage(logs, closed["digest"])
    assert not came.linear and len(came.steps) > ROUNDS and not any(row.weights for row in came.contributors)
