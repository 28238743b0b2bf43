"""Plans: settings, hash, bundle. One sentence for each bad value."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest
from governance_worlds import assert_one_sentence

from p2pfl.crypto import pack
from p2pfl.errors import ConfigError, LimitExceeded, MalformedMessage, PlanError, RemoteError
from p2pfl.governance import BUNDLE_LIMIT, plan_from_bundle, plan_from_files, read_plan

SOURCE = b"def model(): ...\ndef loss(model, batch): ...\ndef load(path): ...\n"
TOML = """
[plan]
name = "heart"
description = "Disease from eight values."

[data]
tag = "heart"

[topology]
kind = "hierarchical"
clusters = 2

[training]
rule = "kgt"
optimiser = { name = "sgd" }
learning_rate = 0.1
local_steps = 5
batch_size = 32
rounds = 20
"""


def test_settings_and_their_defaults() -> None:
    settings = plan_from_files(SOURCE, TOML.encode()).settings
    assert settings.plan.name == "heart"
    assert settings.data.tag == "heart"
    assert settings.topology_spec() == {"kind": "hierarchical", "clusters": 2}
    training = settings.training
    assert (training.rounds, training.closing_rounds, training.deadline) == (20, 5, 30.0)
    assert training.catch_up_rounds == 16
    assert settings.session_settings() == {
        "rule": "kgt",
        "optimiser": {"name": "sgd"},
        "learning_rate": 0.1,
        "local_steps": 5,
        "batch_size": 32,
        "dtype": "float32",
    }


def test_optional_settings_reach_the_session() -> None:
    toml = TOML.replace('{ name = "sgd" }', '{ name = "adam", beta1 = 0, epsilon = 1e-7 }').replace("0.1", "1")
    toml = toml.replace('"kgt"', '"dpsgd"')
    toml += 'dtype = "float64"\nbatch_norm = "private"\nbuffers = "share"\ndeadline = 5\n'
    plan = plan_from_files(SOURCE, toml.encode())
    values = plan.session_settings()
    assert values["optimiser"] == {"name": "adam", "beta1": 0.0, "epsilon": 1e-7}
    assert values["learning_rate"] == 1.0 and isinstance(values["learning_rate"], float)
    assert (values["dtype"], values["batch_norm"], values["buffers"]) == ("float64", "private", "share")
    assert plan.settings.training.deadline == 5.0


def test_without_a_topology_a_plan_asks_for_a_ring() -> None:
    toml = TOML.replace('[topology]\nkind = "hierarchical"\nclusters = 2\n', "")
    settings = plan_from_files(SOURCE, toml.encode()).settings
    assert settings.topology is None
    assert settings.topology_spec() == {"kind": "ring"}


def test_the_training_room_understands_these_settings() -> None:
    settings = pytest.importorskip("p2pfl.train.settings")
    for optimiser in ('{ name = "sgd" }', '{ name = "momentum", beta = 0.5 }', '{ name = "adam" }'):
        toml = TOML.replace('{ name = "sgd" }', optimiser).replace('"kgt"', '"dpsgd"')
        settings.read_settings(plan_from_files(SOURCE, toml.encode()).session_settings())


BAD = [
    ('name = "heart"', "", ["plan.name is missing"]),
    ('name = "heart"', 'name = ""', ["plan.name is ''", "at least one character"]),
    ('name = "heart"', "name = 7", ["plan.name is 7", "a text in quotes"]),
    ('name = "heart"', f'name = "{"x" * 65}"', ["plan.name", "at most 64 characters"]),
    ('name = "heart"', 'name = "a\\nb"', ["plan.name", "plain name"]),
    ('tag = "heart"', 'tag = "../heart"', ["data.tag is '../heart'", "1 to 64 of a-z"]),
    ('tag = "heart"', 'tags = "heart"', ["data.tag is missing"]),
    ('tag = "heart"', 'tag = "heart"\nfile = "x"', ["data.file is not a known key", "are tag"]),
    (
        'kind = "hierarchical"',
        'kind = "moon"',
        ["topology kind is 'moon'", "ring, full, hierarchical, edges"],
    ),
    ('kind = "hierarchical"', "", ["topology kind is missing"]),
    ("clusters = 2", "clusters = 0", ["topology clusters is 0", "their number"]),
    ("clusters = 2", "clusters = [[0, 1], [true]]", ["topology clusters"]),
    ("clusters = 2", "size = 3", ["the keys kind, size", "exactly clusters, kind"]),
    ('kind = "hierarchical"\nclusters = 2', 'kind = "edges"\nedges = [[0]]', ["edges is [[0]]", "pairs"]),
    ('rule = "kgt"', 'rule = "fedavg"', ["training.rule is 'fedavg'", "'dpsgd', 'fedprox'", "'sgp' or 'cyclic'"]),
    ('rule = "kgt"', "", ["training.rule is missing"]),
    ('{ name = "sgd" }', '"sgd"', ["training.optimiser is 'sgd'", "a table"]),
    ('{ name = "sgd" }', '{ name = "lion" }', ["training.optimiser.name is 'lion'", "'adam'"]),
    ('{ name = "sgd" }', '{ name = "sgd", beta = 0.9 }', ["sgd has no option beta", "none"]),
    ('{ name = "sgd" }', '{ name = "momentum", beta = 1 }', ["optimiser.beta is 1", "below 1"]),
    ('{ name = "sgd" }', '{ name = "adam", betas = [0.9] }', ["optimiser.betas is not a known key", "beta1"]),
    ("0.1", "0", ["training.learning_rate is 0", "above 0"]),
    ("0.1", "nan", ["training.learning_rate is nan", "a finite number"]),
    ("0.1", "inf", ["training.learning_rate is inf", "a finite number"]),
    ("0.1", "true", ["training.learning_rate is True", "a number"]),
    ("0.1", '"0.1"', ["training.learning_rate is '0.1'", "a number"]),
    ("local_steps = 5", "local_steps = 0", ["training.local_steps is 0", "1 or more"]),
    ("local_steps = 5", "local_steps = 5.0", ["training.local_steps is 5.0", "a whole number"]),
    ("local_steps = 5", "local_steps = true", ["training.local_steps is True", "a whole number"]),
    ("batch_size = 32", "batch_size = -1", ["training.batch_size is -1", "1 or more"]),
    ("rounds = 20", "rounds = 1000000", ["training.rounds is 1000000", "100000 or less"]),
    ("rounds = 20", "rounds = 20\nclosing_rounds = -1", ["training.closing_rounds is -1", "0 or more"]),
    ("rounds = 20", "rounds = 20\ncatch_up_rounds = 0", ["training.catch_up_rounds is 0", "1 or more"]),
    ("rounds = 20", "rounds = 20\ncatch_up_rounds = 1001", ["training.catch_up_rounds is 1001", "1000 or less"]),
    ("rounds = 20", "rounds = 20\ndeadline = 0", ["training.deadline is 0", "above 0"]),
    ("rounds = 20", "rounds = 20\ndeadline = 1e6", ["training.deadline", "86400.0 or less"]),
    (
        "rounds = 20",
        'rounds = 20\ndtype = "float16"',
        ["training.dtype is 'float16'", "'float32' or 'float64'"],
    ),
    ("rounds = 20", "rounds = 20\nmomentum = 0.9", ["training.momentum is not a known key", "deadline"]),
    ("rounds = 20", "rounds = 20\n[privacy]\nepsilon = 1", ["privacy is not a known key", "plan, data"]),
    ("rounds = 20", "rounds = 20\nrounds = 21", ["not valid TOML"]),
    ("rounds = 20", "rounds = ", ["not valid TOML", "line"]),
    ("rounds = 20", "rounds = " + "9" * 5000, ["not valid TOML"]),
    ("rounds = 20", "rounds = " + "[" * 30000, ["not valid TOML"]),
    ("rounds = 20", "rounds = 20 #" + "x" * 70000, ["shorten it to 65536"]),
    ('[plan]\nname = "heart"', 'plan = "heart"\n[extra]\nname = ""', ["plan is 'heart'", "a table"]),
]


@pytest.mark.parametrize(("old", "new", "words"), BAD)
def test_each_bad_value_ends_in_one_sentence(old: str, new: str, words: list[str]) -> None:
    assert old in TOML
    toml = TOML.replace(old, new, 1).encode()
    with pytest.raises(PlanError) as caught:
        plan_from_files(SOURCE, toml)
    assert_one_sentence(caught.value)
    assert str(caught.value).startswith("plan.toml")
    for word in words:
        assert word in str(caught.value)
    with pytest.raises(MalformedMessage):
        plan_from_bundle(pack({"plan.py": SOURCE, "plan.toml": toml}))


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (b"", "no function model"),
        (
            b"def model(): ...\nclass Other:\n    def loss(self): ...\n    def load(self): ...\n",
            "no function loss",
        ),
        (b"def model(:\n", "plan.py, line 1 is not Python"),
        (SOURCE + b"return 1\n", "plan.py, line 4 is not Python"),
        (SOURCE + b"\0", "not Python"),
        (SOURCE + b"x = " + b"(" * 5000, "not Python"),
        (b"\xff\xfe", "not UTF-8"),
    ],
)
def test_code_that_cannot_be_a_plan_is_refused(source: bytes, words: str) -> None:
    with pytest.raises(PlanError, match=words) as caught:
        plan_from_files(source, TOML.encode())
    assert_one_sentence(caught.value)


def test_any_way_to_define_the_functions_counts() -> None:
    plan_from_files(b"from x import model\nclass loss: ...\nload = print\n", TOML.encode())


def test_reading_never_runs_the_code(tmp_path: Path) -> None:
    trap = SOURCE + f"open({str(tmp_path / 'trap')!r}, 'w')\n".encode()
    plan = plan_from_files(trap, TOML.encode())
    plan_from_bundle(plan.bundle())
    assert not (tmp_path / "trap").exists()


def test_a_plan_folder_is_read(tmp_path: Path) -> None:
    (tmp_path / "plan.py").write_bytes(SOURCE)
    (tmp_path / "plan.toml").write_text(TOML)
    plan = read_plan(tmp_path)
    assert (plan.source, plan.toml) == (SOURCE, TOML.encode())


def _pipe(folder: Path) -> None:
    os.mkfifo(folder / "plan.py")


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (lambda folder: folder.rmdir(), "not a folder"),
        (lambda folder: None, "plan.py"),
        (lambda folder: (folder / "plan.py").write_bytes(SOURCE), "plan.toml"),
        (lambda folder: (folder / "plan.py").mkdir(), "not a regular file"),
        (_pipe, "not a regular file"),
        (lambda folder: (folder / "plan.py").write_bytes(b"#" * (BUNDLE_LIMIT + 1)), "larger than"),
    ],
)
def test_a_folder_without_a_plan_is_refused(tmp_path: Path, prepare: Any, words: str) -> None:
    folder = tmp_path / "plan"
    folder.mkdir()
    prepare(folder)
    with pytest.raises(ConfigError, match=words) as caught:
        read_plan(folder)
    assert_one_sentence(caught.value)


def test_the_hash_is_framed_as_documented() -> None:
    plan = plan_from_files(SOURCE, b"#\n" + TOML.encode())
    parts = [b"p2pfl/1/plan", b"plan.py", plan.source, b"plan.toml", plan.toml]
    framed = b""
    for part in parts:
        length = len(part)
        framed += bytes([length]) if length < 128 else bytes([length & 0x7F | 0x80, length >> 7])
        framed += part
    assert plan.digest == hashlib.sha256(framed).hexdigest()


def test_the_hash_covers_both_files_and_where_one_ends() -> None:
    plans = [
        plan_from_files(SOURCE, TOML.encode()),
        plan_from_files(SOURCE + b"\n", TOML.encode()),
        plan_from_files(SOURCE, b"\n" + TOML.encode()),
        plan_from_files(SOURCE, TOML.encode() + b" "),
    ]
    assert len({plan.digest for plan in plans}) == 4


def test_a_bundle_carries_the_exact_bytes() -> None:
    plan = plan_from_files(SOURCE, TOML.encode())
    assert plan_from_bundle(plan.bundle()) == plan
    assert plan_from_bundle(plan.bundle()).digest == plan.digest


def test_a_bundle_over_the_limit_is_refused_at_both_ends() -> None:
    with pytest.raises(PlanError, match="shorten it"):
        plan_from_files(SOURCE + b"#" * BUNDLE_LIMIT, TOML.encode())
    with pytest.raises(LimitExceeded):
        plan_from_bundle(pack({"plan.py": b"#" * BUNDLE_LIMIT, "plan.toml": TOML.encode()}))


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {"plan.py": SOURCE},
        {"plan.py": SOURCE, "plan.toml": TOML},
        {"plan.py": SOURCE, "plan.toml": TOML.encode(), "more": b""},
        {"plan.py": b"\xff", "plan.toml": TOML.encode()},
        {"plan.py": SOURCE, "plan.toml": b"\xff"},
        {"plan.py": SOURCE, "plan.toml": b""},
    ],
)
def test_other_bundles_are_refused(value: Any) -> None:
    with pytest.raises(RemoteError) as caught:
        plan_from_bundle(pack(value))
    assert_one_sentence(caught.value)


def test_another_members_code_is_not_parsed_here() -> None:
    # deep nesting can exhaust the parser's stack; the worker process takes that risk, not the peer's
    hostile = b"x = " + b"-" * 100_000 + b"1\n"
    assert plan_from_bundle(pack({"plan.py": hostile, "plan.toml": TOML.encode()})).source == hostile
