"""Plan code: what is refused, and that the words say what to mend."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from train_worlds import CLASSIFIER_PLAN

from p2pfl.errors import DataError, LocalError, PlanError
from p2pfl.train.plan_code import PlanCode, load_plan_module
from p2pfl.train.session import Session

SETTINGS = {"rule": "dpsgd", "learning_rate": 0.1, "local_steps": 1, "batch_size": 4}
LOAD_LINE = b'    return {"train": (inputs[:40], labels[:40]), "test": (inputs[40:], labels[40:])}'
LOSS_LINE = b'    return nn.functional.cross_entropy(model(inputs), labels, reduction="none")'
METRICS_LINE = b'    return {"accuracy": (model(inputs).argmax(-1) == labels).double().mean()}'


def changed(old: bytes, new: bytes) -> bytes:
    assert old in CLASSIFIER_PLAN
    return CLASSIFIER_PLAN.replace(old, b"    " + new)


def test_the_module_is_the_approved_bytes_and_no_file(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plan.py").write_text("answer = 1")
    assert load_plan_module(b"answer = 2").answer == 2
    assert [path.name for path in tmp_path.iterdir()] == ["plan.py"]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (b"def model(:\n", "line 1: does not load: SyntaxError"),
        (b"\n\nimport nothing_of_that_name", "line 3: does not load: ModuleNotFoundError"),
        (b"raise SystemExit(3)", "line 1: does not load: SystemExit"),
        (b"\xff\xfe", "does not load"),
        (b"def model(): pass\ndef loss(m, b): pass", "no function load"),
        (CLASSIFIER_PLAN.replace(b"def loss", b"def lost"), "no function loss"),
        (CLASSIFIER_PLAN.replace(b"def model()", b"def model(size)"), r"model\(\) failed: TypeError"),
        (
            CLASSIFIER_PLAN.replace(b"    return nn.Sequential", b"    return lambda *a: nn.Sequential"),
            "return a torch.nn",
        ),
    ],
)
def test_a_broken_plan_is_refused_in_plain_words(source: bytes, words: str) -> None:
    with pytest.raises(PlanError, match=words) as caught:
        Session(source, SETTINGS)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "kind", "words"),
    [
        (b"return inputs", PlanError, 'dict with "train"'),
        (b'return {"test": (inputs,)}', PlanError, 'dict with "train"'),
        (b'return {"train": (inputs,), "valid": (inputs,)}', PlanError, 'dict with "train"'),
        (b'return {"train": inputs}', PlanError, "tuple of tensors"),
        (b'return {"train": ()}', PlanError, "tuple of tensors"),
        (b'return {"train": (inputs, 3)}', PlanError, "tuple of tensors"),
        (b'return {"train": (inputs, labels[:3])}', PlanError, "first dimension"),
        (b'return {"train": (inputs, torch.tensor(1.0))}', PlanError, "first dimension"),
        (b'return {"train": (inputs[:0], labels[:0])}', DataError, "no training examples"),
        (b'return {"train": (inputs / 0, labels)}', DataError, "missing or infinite"),
        (b"return path.read_bytes()", DataError, "FileNotFoundError"),
    ],
)
def test_a_wrong_load_is_named(line: bytes, kind: type[LocalError], words: str) -> None:
    session = Session(changed(LOAD_LINE, line), SETTINGS)
    with pytest.raises(kind, match=words):
        session.load_data("/nowhere/0.csv")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (LOSS_LINE, b"return nn.functional.cross_entropy(model(inputs), labels)", 'reduction="none"'),
        (LOSS_LINE, b"return model(inputs)", r"returned \(4, 2\) for 4 examples"),
        (LOSS_LINE, b"return 3.0", "returned float"),
        (LOSS_LINE, b"return model(labels)[:, 0]", r"loss\(\) failed: RuntimeError"),
        (LOSS_LINE, b"return inputs[:, 0]", "no gradient"),
        (LOSS_LINE, b"return model(inputs).detach()[:, 0]", "no gradient"),
        (LOSS_LINE, b"return model(inputs)[:, 0] * 0", "0 everywhere"),
        (LOSS_LINE, b"return model(inputs)[:, 0] * float('inf')", "scale the inputs"),
        (LOSS_LINE, b"return (model(inputs)[:, 0] * 0).sqrt()", "gradient is not finite"),
        (LOSS_LINE, b"return model(inputs.mul_(0.5))[:, 0]", "changes the examples"),
        (LOSS_LINE, b"return labels", "returned torch.int64"),
        (METRICS_LINE, b'inputs /= 2; return {"a": 1.0}', "changes the examples"),
        (METRICS_LINE, b'return {"loss": 1.0}', "reserved name loss"),
        (METRICS_LINE, b"return 1.0", "TypeError"),
        (METRICS_LINE, b'return {"a": "good"}', "ValueError"),
    ],
)
def test_check_names_what_a_run_would_trip_over(old: bytes, new: bytes, words: str) -> None:
    session = Session(changed(old, new), SETTINGS)
    session.load_data("0")
    problems = session.check()
    assert problems
    with pytest.raises(PlanError, match=words):
        raise PlanError("; ".join(problems))


def test_a_plan_without_metrics_and_test_part_is_good() -> None:
    source = changed(LOAD_LINE, b'return {"train": (inputs, labels)}').split(b"def metrics")[0]
    session = Session(source, SETTINGS)
    assert session.load_data("0") == {"train": 60, "test": 0}
    assert session.check() == []
    session.begin(session.initial(0), b"run", b"k" * 32, 1.0)
    assert set(session.evaluate("train")) == {"loss", "examples"}
    with pytest.raises(DataError, match='no "test" examples'):
        session.evaluate("test")


def test_layers_without_sizes_are_told() -> None:
    lazy = CLASSIFIER_PLAN.replace(b"nn.Linear(6, 5)", b"nn.LazyLinear(5)")
    with pytest.raises(PlanError, match=r"layers without sizes.*give their sizes"):
        Session(lazy, SETTINGS)


def test_frozen_parameters_do_not_move() -> None:
    frozen = CLASSIFIER_PLAN.replace(
        b"    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2))",
        b"    net = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2))\n"
        b"    net[0].requires_grad_(False)\n    return net",
    )
    session = Session(frozen, SETTINGS)
    session.load_data("0")
    session.begin(session.initial(0), b"run", b"k" * 32, 1.0)
    before = session.vector
    session.train(0, 3)
    moved = session.vector != before
    assert not bool(moved[:35].any()) and bool(moved[35:].all())


def test_floats_take_the_settings_dtype_and_labels_stay() -> None:
    data = PlanCode(CLASSIFIER_PLAN).load("0", torch.float64)
    assert [tensor.dtype for tensor in data["train"]] == [torch.float64, torch.int64]


def test_the_plan_in_the_documentation_works(tmp_path: Path) -> None:
    page = Path(__file__).parents[2] / "docs" / "plans.md"
    source = page.read_text().split("```python\n")[1].split("```")[0]
    rows = torch.randint(20, 80, (40, 10), generator=torch.Generator().manual_seed(0)).tolist()
    lines = [",".join(map(str, [*row, int(row[0] > 50)])) for row in rows]
    path = tmp_path / "patients.csv"
    path.write_text("\n".join(["header", *lines]) + "\n")
    session = Session(source.encode(), {**SETTINGS, "learning_rate": 0.3})
    assert session.load_data(str(path)) == {"train": 30, "test": 10}
    assert session.check() == []
    session.begin(session.initial(0), b"run", b"k" * 32, 1.0)
    session.train(0, 200)
    assert session.evaluate("test")["accuracy"] > 0.75
