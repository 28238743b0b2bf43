"""A session that goes on from its checkpoint has the same bits, wherever it was killed."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from test_train_session import RUN, Consortium, key_of, settings_of
from test_train_worker import Process, value
from train_worlds import CLASSIFIER_PLAN, QUADRATIC_PLAN

from p2pfl.errors import DataError, IllegalStep, MalformedMessage, StoreError
from p2pfl.train.checkpoints import FACTS
from p2pfl.train.session import Session

NORM_PLAN = CLASSIFIER_PLAN.replace(
    b"nn.Linear(6, 5), nn.Tanh()", b"nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Tanh()"
)
OPERATIONS = {
    "train": ("round", "steps"),
    "encode": ("round", "step", "closing"),
    "receive": ("key", "channel", "payload", "result"),
    "mix": ("round", "step", "edges", "corrections", "last", "closing"),
    "forget": ("pairs",),
}
CASES = {
    "dpsgd, sgd": (QUADRATIC_PLAN, {"rule": "dpsgd"}),
    "dpsgd, momentum": (QUADRATIC_PLAN, {"rule": "dpsgd", "optimiser": {"name": "momentum"}}),
    "dpsgd, adam, float32": (CLASSIFIER_PLAN, {"optimiser": {"name": "adam"}, "dtype": "float32"}),
    "kgt": (QUADRATIC_PLAN, {"rule": "kgt"}),
    "kgt, float32": (CLASSIFIER_PLAN, {"rule": "kgt", "dtype": "float32"}),
    "relaysgd": (QUADRATIC_PLAN, {"rule": "relaysgd"}),
    "relaysgd, adam, float32": (
        CLASSIFIER_PLAN,
        {"rule": "relaysgd", "optimiser": {"name": "adam"}, "dtype": "float32"},
    ),
    "quasi_global": (QUADRATIC_PLAN, {"rule": "quasi_global"}),
    "fedprox, adam": (QUADRATIC_PLAN, {"rule": "fedprox", "optimiser": {"name": "adam"}}),
    "exact_diffusion, private norms": (
        NORM_PLAN,
        {"rule": "exact_diffusion", "local_steps": 1, "batch_norm": "private", "dtype": "float32"},
    ),
    "gradient_tracking": (QUADRATIC_PLAN, {"rule": "gradient_tracking", "local_steps": 1}),
    "private norms and dropout": (NORM_PLAN, {"batch_norm": "private", "optimiser": {"name": "adam"}}),
    "shared norms and dropout": (NORM_PLAN, {"rule": "kgt", "batch_norm": "shared", "dtype": "float32"}),
}
Operation = tuple[str, dict[str, Any], Any]


def recording(session: Session, done: list[Operation]) -> None:
    """Append every operation of the session, with its answer."""
    for name, names in OPERATIONS.items():
        setattr(session, name, partial(_record, done, name, names, getattr(session, name)))


def _record(done: list[Operation], name: str, names: tuple[str, ...], method: Any, *values: Any) -> Any:
    arguments = dict(zip(names, values, strict=True))
    answer = method(**arguments)
    done.append((name, arguments, answer))
    return answer


def history(plan: bytes, settings: dict[str, Any]) -> tuple[list[Operation], Consortium]:
    """What site 0 of 3 does; displacements stay unsettled from round 0 to the end."""
    if settings.get("rule") == "relaysgd":
        return relayed_history(plan, settings)
    world = Consortium(plan, 3, "full", **settings)
    done: list[Operation] = []
    first = world.sessions[0]
    recording(first, done)
    world.round(0)
    first.forget([("1", 0, 0)])
    for session in world.sessions:  # two mixings in one round
        session.train(1, world.steps)
    world.mix(1, lost={(1, 0)}, steps=2)
    first.train(2, world.steps)  # left after its first of two mixings
    first.encode(2, 0, False)
    arrived = world.sessions[1].encode(2, 0, False)
    for message in arrived:
        first.receive(f"left/{message['channel']}", *message.values())
    first.mix(2, 0, [("1", 0.25, {m["channel"]: f"left/{m['channel']}" for m in arrived})], [], False, False)
    world.round(3, corrections=[[("2", 0, 0), ("1", 1, 0)], [], []])
    world.mix(4, corrections=[[("1", 1, 1)], [], []])  # a site that trained nothing
    world.mix(5, closing=True, steps=2)
    first.mix(6, 0, [], [("2", 1, 1), ("1", 5, 0)], True, True)  # corrections alone
    return done, world


def relayed_history(plan: bytes, settings: dict[str, Any]) -> tuple[list[Operation], Consortium]:
    """The same on a tree, with one mixing in each training round; messages are lost both ways."""
    world = Consortium(plan, 3, "tree", **settings)
    done: list[Operation] = []
    first = world.sessions[0]
    recording(first, done)
    world.round(0)
    first.forget([("1", 0, 0)])
    world.round(1, lost={(1, 0), (0, 2)})
    first.train(2, world.steps)  # left after its message was made
    first.encode(2, 0, False)
    for message in world.sessions[1].encode(2, 0, False):
        first.receive(f"left/{message['channel']}", *message.values())
    world.round(3, lost={(0, 1)}, corrections=[[("2", 0, 0), ("1", 1, 0)], [], []])
    world.mix(4)  # a site that trained nothing
    world.round(5, lost={(0, 1), (0, 2)})
    world.round(6)
    world.mix(7, closing=True, steps=2)
    world.mix(8, lost={(2, 0)}, closing=True)
    first.mix(9, 0, [], [("1", 7, 1), ("2", 6, 0)], True, True)  # corrections alone
    return done, world


def begun(plan: bytes = QUADRATIC_PLAN, **settings: Any) -> tuple[Session, dict[str, Any]]:
    """A session before its first round, and what it was begun with."""
    session = Session(plan, settings_of(**settings))
    session.load_data("0")
    beginning = {"initial": session.initial(seed=5), "run": RUN, "key": key_of(0), "share": 1 / 6}
    session.begin(**beginning)
    return session, beginning


def replay(session: Session, done: list[Operation]) -> None:
    for name, arguments, answer in done:
        assert getattr(session, name)(**arguments) == answer, (name, arguments)


def same(one: Session, other: Session) -> None:
    assert one.digest() == other.digest()
    assert one.result() == other.result()  # buffers included
    assert one.state.keys() == other.state.keys()
    assert all(torch.equal(one.state[name], other.state[name]) for name in other.state)


@pytest.mark.parametrize("case", CASES)
def test_killed_after_any_operation_it_goes_on_with_the_same_bits(case: str, tmp_path: Path) -> None:
    plan, settings = CASES[case]
    done, world = history(plan, settings)
    assert [name for name, _, _ in done].count("mix") in (9, 10)
    going, beginning = begun(plan, **settings)
    saved = []
    for operation in [None, *done]:
        if operation is not None:
            replay(going, [operation])  # saving before changed nothing
        saved.append(going.save(str(tmp_path / f"{len(saved)}")))
    same(going, world.sessions[0])
    for killed, digest in enumerate(saved):
        path = tmp_path / f"{killed}"
        resumed = Session(plan, settings_of(**settings))
        resumed.load_data("0")
        begins = resumed.begin(**beginning)
        resumed.train(0, 1)  # whatever it did before is gone
        assert resumed.restore(str(path), **beginning, digest=digest) == begins
        assert resumed.save(str(tmp_path / "again")) == digest
        # what was received and not mixed comes again
        mixed = max((n for n in range(killed) if done[n][0] == "mix"), default=-1)
        replay(resumed, [row for row in done[mixed + 1 : killed] if row[0] == "receive"])
        replay(resumed, done[killed:])
        same(resumed, world.sessions[0])


def test_integer_and_unsaved_buffers_come_back(tmp_path: Path) -> None:
    plan = QUADRATIC_PLAN.replace(
        b"    curvature, centre = batch\n",
        b"    curvature, centre = batch\n    if model.training:\n        model.count += 1\n        model.hidden += model.count\n",
    ).replace(
        b"        self.place =",
        b"        self.register_buffer('count', torch.tensor(0))\n"
        b"        self.register_buffer('none', torch.zeros(0))\n"
        b"        self.register_buffer('hidden', torch.zeros(2), persistent=False)\n"
        b"        self.place =",
    )
    session, beginning = begun(plan)
    session.train(0, 3)
    digest = session.save(str(tmp_path / "kept"))
    other, _ = begun(plan)
    other.restore(str(tmp_path / "kept"), **beginning, digest=digest)
    assert other._module.count == 3
    assert torch.equal(other._module.hidden, torch.full((2,), 6.0, dtype=torch.float64))


def worked(path: Path, **settings: Any) -> tuple[Session, dict[str, Any], str]:
    """A session in the middle of round 1, with one unsettled displacement, saved."""
    session, beginning = begun(**settings)
    done, _ = history(QUADRATIC_PLAN, settings)
    replay(session, done[: next(n for n, row in enumerate(done) if row[0] == "mix" and row[1]["round"] == 1) + 1])
    return session, beginning, session.save(str(path))


@pytest.mark.parametrize("kind", ["flip", "cut", "more"])
def test_a_damaged_file_is_refused_and_nothing_changes(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "kept"
    session, beginning, digest = worked(path, rule="kgt")
    whole = path.read_bytes()
    before = session.digest(), session.save(str(tmp_path / "before"))
    for place in range(0, len(whole), 41):
        damaged = {
            "flip": whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :],
            "cut": whole[:place],
            "more": whole + bytes(place + 1),
        }[kind]
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="not the one that was written"):
            session.restore(str(path), **beginning, digest=digest)
        # as if somebody had signed for the damaged bytes: refused, or whole tensors with other numbers
        fresh, _ = begun(rule="kgt")
        at_start = fresh.save(str(tmp_path / "start"))
        try:
            fresh.restore(str(path), **beginning, digest=hashlib.sha256(damaged).hexdigest())
        except DataError:
            assert fresh.save(str(tmp_path / "start")) == at_start
        else:
            assert kind == "flip"
    assert (session.digest(), session.save(str(tmp_path / "after"))) == before


def rewritten(path: Path, change: Callable[[dict[str, Any], dict[str, Any]], Any]) -> str:
    """The file with other tensors or facts, and its digest."""
    data = path.read_bytes()
    tensors: dict[str, Any] = safetensors.torch.load(data)
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    facts = json.loads(header["__metadata__"][FACTS])
    change(tensors, facts)
    key = facts.pop("format", FACTS)
    path.write_bytes(safetensors.torch.save(tensors, {key: json.dumps(facts.pop("instead", facts))}))
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors, facts: facts.pop("relays"),
        lambda tensors, facts: facts["relays"]["held"].append(["9", 1]),
        lambda tensors, facts: tensors.pop("relay/0"),
        lambda tensors, facts: tensors.update({"relay/0": torch.zeros(4, dtype=torch.float64)}),
        lambda tensors, facts: tensors.pop("state/relay"),
    ],
)
def test_a_file_with_other_relays_is_refused_and_nothing_changes(change: Any, tmp_path: Path) -> None:
    path = tmp_path / "kept"
    session, beginning, digest = worked(path, rule="relaysgd")
    wrong = rewritten(path, change)
    with pytest.raises(DataError, match="cannot be resumed here"):
        session.restore(str(path), **beginning, digest=wrong)
    assert session.save(str(path)) == digest


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors, facts: tensors.pop("x"),
        lambda tensors, facts: tensors.update(x=torch.zeros(5, dtype=torch.float64)),
        lambda tensors, facts: tensors.update(x=torch.zeros(4)),
        lambda tensors, facts: tensors.pop("state/correction"),
        lambda tensors, facts: tensors.update({"state/more": torch.zeros(1)}),
        lambda tensors, facts: tensors.update({"buffer/more": torch.zeros(1)}),
        lambda tensors, facts: tensors.update({"own/y": torch.zeros(4, dtype=torch.float64)}),
        lambda tensors, facts: tensors.update({"own/z": torch.zeros(1, dtype=torch.float64)}),
        lambda tensors, facts: tensors.update({"kept/0/x": torch.zeros(4)}),
        lambda tensors, facts: tensors.update({"kept/99/x": torch.zeros(4, dtype=torch.float64)}),
        lambda tensors, facts: tensors.update(other=torch.zeros(1)),
        lambda tensors, facts: facts["kept"].pop(),
        lambda tensors, facts: facts["kept"].append(facts["kept"][0]),
        lambda tensors, facts: facts["kept"].append(["b"]),
        lambda tensors, facts: facts.update(trained=[1]),
        lambda tensors, facts: facts.update(encoded="x"),
        lambda tensors, facts: facts.update(origin=None),
        lambda tensors, facts: facts.update(relays={}),
        lambda tensors, facts: tensors.update({"relay/0": torch.zeros(5, dtype=torch.float64)}),
        lambda tensors, facts: facts.update(format="p2pfl checkpoint 0"),
        lambda tensors, facts: facts.update(instead=[]),
    ],
)
def test_a_file_of_another_shape_is_refused_and_nothing_changes(change: Any, tmp_path: Path) -> None:
    path = tmp_path / "kept"
    session, beginning, digest = worked(path, rule="kgt")
    assert rewritten(path, lambda tensors, facts: None) == digest
    wrong = rewritten(path, change)
    with pytest.raises(DataError, match="cannot be resumed here"):
        session.restore(str(path), **beginning, digest=wrong)
    assert session.save(str(path)) == digest


def test_a_checkpoint_of_something_else_is_refused_and_nothing_changes(tmp_path: Path) -> None:
    path = tmp_path / "kept"
    session, beginning, digest = worked(path)
    elsewhere = safetensors.torch.save({"place": torch.ones(4, dtype=torch.float64)})
    for other, change, match in (
        (session, {"path": str(tmp_path / "none")}, "couldn't read"),
        (session, {"path": str(tmp_path)}, "couldn't read"),
        (session, {"run": b"another"}, "another run"),
        (session, {"initial": elsewhere}, "another initial file"),
        (begun(learning_rate=0.05)[0], {}, "another plan"),
        (begun(QUADRATIC_PLAN + b"\n")[0], {}, "another plan"),
        (begun(rule="kgt")[0], {}, "another plan"),
    ):
        before = other.save(str(tmp_path / "before"))
        with pytest.raises(DataError, match=match):
            other.restore(**{"path": str(path), "digest": digest, **beginning, **change})
        assert other.save(str(tmp_path / "before")) == before
    with pytest.raises(IllegalStep, match="site key"):
        session.restore(**{"path": str(path), "digest": digest, **beginning, "key": b"short"})
    assert session.save(str(path)) == digest
    with pytest.raises(IllegalStep, match="call begin first"):
        Session(QUADRATIC_PLAN, settings_of()).save(str(path))


def test_neither_the_key_nor_a_received_message_is_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "kept"
    session, beginning, digest = worked(path)
    done, _ = history(QUADRATIC_PLAN, {})
    waiting = next(arguments for name, arguments, _ in done if name == "receive")
    session.receive(**waiting)
    assert session.save(str(path)) == digest
    data = path.read_bytes()
    assert beginning["key"] not in data and beginning["key"].hex().encode() not in data
    assert path.stat().st_mode & 0o777 == 0o600
    session.restore(str(path), **beginning, digest=digest)
    session.encode(1, 1, False)
    with pytest.raises(IllegalStep, match="no message"):
        session.mix(1, 1, [("9", 0.1, {"x": waiting["key"]})], [], True, False)


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_save_that_fails_leaves_the_older_file(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "kept"
    session, beginning = begun()
    digest, before = session.save(str(path)), session.digest()
    session.train(0, 3)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(StoreError, match="No space left"):
        patch.setattr(*{"fsync": (os, "fsync"), "replace": (Path, "replace")}[call], full)
        session.save(str(path))
    assert [entry.name for entry in tmp_path.iterdir()] == ["kept"]
    session.restore(str(path), **beginning, digest=digest)
    assert session.digest() == before


KILLED = """
import os, resource, signal, torch
from pathlib import Path
from p2pfl.train.session import Session
torch.set_num_threads(1)
session = Session(Path("plan.py").read_bytes(), SETTINGS)
session.begin(session.initial(5), b"run", b"k" * 32, 0.5)

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def die_next_time(_):
    os.fsync = die

for place in ("write", "file_sync", "rename", "folder_sync"):
    print(place, session.save(place), flush=True)
    session._x = session._x + 1
    if os.fork() == 0:
        if place == "write":
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
        elif place == "rename":
            Path.replace = die
        else:
            os.fsync = die if place == "file_sync" else die_next_time
        session.save(place)
        os._exit(0)
    print(os.WTERMSIG(os.wait()[1]), flush=True)
"""


def test_killed_while_it_saves_a_whole_file_stands(tmp_path: Path) -> None:
    plan = QUADRATIC_PLAN.replace(b"torch.zeros(SIZE))", b"torch.zeros(300_000))")
    (tmp_path / "plan.py").write_bytes(plan)
    code = KILLED.replace("SETTINGS", repr(settings_of()))
    ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert ended.returncode == 0, ended.stderr
    rows = ended.stdout.splitlines()
    assert [int(row) for row in rows[1::2]] == [signal.SIGXFSZ, *[signal.SIGKILL] * 3]
    session = Session(plan, settings_of())
    beginning = {"initial": session.initial(5), "run": RUN, "key": b"k" * 32, "share": 0.5}
    for number, (place, answered) in enumerate(row.split() for row in rows[::2]):
        path = tmp_path / place
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        renamed = place == "folder_sync"
        assert (digest == answered) is not renamed
        session.restore(str(path), **beginning, digest=digest)
        assert bool((session.vector == number + renamed).all())
        halves = list(tmp_path.glob(f"{place}.*"))
        assert len(halves) == (not renamed)
        for half in halves:  # even under its own digest only a whole one is taken
            if place == "write":
                with pytest.raises(DataError, match="no checkpoint"):
                    session.restore(str(half), **beginning, digest=hashlib.sha256(half.read_bytes()).hexdigest())


def test_the_worker_process_is_killed_and_another_goes_on(tmp_path: Path) -> None:
    settings = settings_of(rule="kgt")
    done, _ = history(QUADRATIC_PLAN, {"rule": "kgt"})
    _, beginning = begun(rule="kgt")
    path = str(tmp_path / "kept")

    def opened() -> Process:
        process = Process()
        value(process.ask("open", source=QUADRATIC_PLAN, settings=settings))
        value(process.ask("load_data", path="0"))
        return process

    def go_on(process: Process, rows: list[Operation]) -> None:
        for name, arguments, answer in rows:
            assert value(process.ask(name, **arguments)) == answer

    middle = next(n for n, row in enumerate(done) if row[0] == "mix" and row[1]["round"] == 1) + 1
    first = opened()
    channels = value(first.ask("begin", **beginning))
    go_on(first, done[:middle])
    digest = value(first.ask("save", path=path))
    assert first.ask("save", path=str(tmp_path / "no folder" / "kept"))["fault"] == "store"
    first.child.kill()
    first.close()
    second = opened()
    assert second.ask("save", path=path)["fault"] == "internal"
    for change, fault in (
        ({"digest": "0" * 64}, "data"),
        ({"run": b"another"}, "data"),
        ({"path": str(tmp_path / "none")}, "data"),
    ):
        reply = second.ask("restore", **{"path": path, "digest": digest, **beginning, **change})
        assert (reply["ok"], reply["fault"]) == (False, fault)
    assert "call begin first" in second.ask("digest")["error"]  # nothing has begun
    assert value(second.ask("restore", path=path, **beginning, digest=digest)) == channels
    go_on(second, done[middle:])
    assert second.close()[0] == 0


def test_a_damaged_initial_file_is_refused_before_anything_changes(tmp_path: Path) -> None:
    session, beginning, digest = worked(tmp_path / "kept")
    wrong = rewritten(
        tmp_path / "kept",
        lambda tensors, facts: facts["origin"].update({"initial file": hashlib.sha256(b"no model").hexdigest()}),
    )
    with pytest.raises(MalformedMessage, match="not a safetensors file"):
        session.restore(str(tmp_path / "kept"), **{**beginning, "initial": b"no model"}, digest=wrong)
    assert session.save(str(tmp_path / "kept")) == digest
