"""Writing a plan from a notebook: what is saved, and what is refused."""

from __future__ import annotations

import functools
import linecache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from governance_worlds import assert_one_sentence

from p2pfl.errors import PlanError
from p2pfl.governance import read_plan, write_plan

SETTINGS: dict[str, Any] = {
    "plan": {"name": 'the "first" plan é'},
    "data": {"tag": "heart"},
    "topology": {"kind": "edges", "edges": [(0, 1), (1, 2)]},
    "training": {
        "rule": "dpsgd",
        "optimiser": {"name": "adam", "beta1": 0.5},
        "learning_rate": 1e-05,
        "local_steps": 3,
        "batch_size": 8,
        "rounds": 2,
        "batch_norm": None,
    },
}
WIDTH = 3
missing = None


class Base:
    def size(self) -> int:
        return 1


class Net(Base):
    scale = 2.0

    def __init__(self) -> None:
        super().__init__()
        self.sizes = [self.size() for _ in range(3)]

    @property
    def width(self) -> int:
        return len(self.sizes)


def squared(values: list[float]) -> list[float]:
    return [value * value for value in values]


def my_loss(model: object, batch: list[float]) -> list[float]:
    return squared(batch)


def load(path: object) -> dict[str, float]:
    import json

    return {"train": math.floor(1.5), "text": len(json.dumps(str(path)))}  # type: ignore[name-defined]  # noqa: F821


def uses_width(model: object, batch: object) -> int:
    return WIDTH


def uses_unknown(model: object, batch: object) -> object:
    return [missing for _ in range(3)]


def silenced(function: Any) -> Any:
    @functools.wraps(function)
    def wrapper(*arguments: Any) -> Any:
        return function(*arguments)

    return wrapper


@silenced
def metrics(model: object, batch: object) -> dict[str, float]:
    return {"accuracy": 1.0}


def _write(folder: Path, **changes: Any) -> Any:
    options: dict[str, Any] = {
        "model": Net,
        "loss": my_loss,
        "load": load,
        "helpers": [Base, squared],
        "imports": ["import math"],
        "settings": SETTINGS,
    }
    return write_plan(folder, **{**options, **changes})


def _run(source: bytes) -> ModuleType:
    module = ModuleType("written")
    exec(compile(source, "written.py", "exec"), module.__dict__)
    return module


def test_a_written_plan_reads_back_and_runs(tmp_path: Path) -> None:
    plan = _write(tmp_path / "new" / "plan")
    assert read_plan(tmp_path / "new" / "plan") == plan
    assert plan.settings.plan.name == 'the "first" plan é'
    assert plan.settings.topology_spec() == {"kind": "edges", "edges": [[0, 1], [1, 2]]}
    assert plan.settings.training.learning_rate == 1e-05
    module = _run(plan.source)
    assert module.model().width == 3
    assert module.loss(None, [3.0]) == [9.0]
    assert module.load("x")["train"] == 1


def test_constants_and_decorated_functions_are_written(tmp_path: Path) -> None:
    plan = _write(
        tmp_path,
        loss=uses_width,
        metrics=metrics,
        helpers=[Base, silenced],
        constants={"WIDTH": 5, "TABLE": {"a": (1, 2.5, None)}},
        imports=["import math", "import functools", "from typing import Any"],
    )
    module = _run(plan.source)
    assert module.loss(None, None) == 5
    assert module.TABLE == {"a": (1, 2.5, None)}
    assert module.metrics(None, None) == {"accuracy": 1.0}


def test_notebook_cells_are_found(tmp_path: Path) -> None:
    cells = {
        "<cell 1>": "class CellNet:\n    def __init__(self):\n        self.first = 1\n",
        "<cell 2>": "# again\n\nclass CellNet:\n    def __init__(self):\n        self.second = 2\n",
    }
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for name, text in cells.items():
        linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
        exec(compile(text, name, "exec"), namespace)
    plan = _write(tmp_path, model=namespace["CellNet"])
    assert _run(plan.source).model().second == 2


def _closure() -> Any:
    rate = 3

    def loss(model: object, batch: object) -> int:
        return rate

    return loss


def _closure_class() -> Any:
    rate = 3

    class Local:
        @staticmethod
        def forward() -> int:
            return rate

    return Local


def _other_squared() -> Any:
    def squared(values: object) -> object:
        return values

    return squared


def _without_source() -> Any:
    namespace: dict[str, Any] = {"__name__": "nowhere"}
    exec("def loss(model, batch): return 1", namespace)
    return namespace["loss"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"loss": lambda model, batch: 1}, "a lambda has no name"),
        ({"loss": _closure()}, "loss uses rate of the function around it"),
        ({"model": _closure_class()}, "Local uses rate of the function around it"),
        ({"loss": functools.partial(my_loss, None)}, "partial is neither a function nor a class"),
        ({"loss": len}, "len is neither a function nor a class"),
        ({"loss": _without_source()}, "source of loss cannot be found"),
        ({"loss": uses_unknown}, "uses_unknown uses the name missing"),
        ({"loss": uses_width}, "uses_width uses the name WIDTH"),
        ({"imports": []}, "load uses the name math"),
        ({"helpers": [squared]}, "uses the name Base"),
        ({"helpers": [Base, squared, _other_squared()]}, "two different things are called squared"),
        ({"helpers": [Base, squared, load], "load": squared}, "another thing is called load"),
        ({"imports": ["import math; print(1)"]}, "import lines only"),
        ({"imports": ["import"]}, "not Python"),
        ({"constants": {"NET": Net}}, "the constant NET is not a plain value"),
        ({"constants": {"RATE": float("inf")}}, "the constant RATE is not a plain value"),
        ({"constants": {"a b": 1}}, "the constant a b is not a plain value"),
        ({"settings": {"plan": "x"}}, "settings: plan"),
        ({"settings": {**SETTINGS, "data": {"tag": {1}}}}, "settings: tag is of type set"),
        ({"settings": {**SETTINGS, "data": {}}}, "data.tag is missing"),
        ({"settings": {**SETTINGS, "more": {}}}, "more is not a known key"),
    ],
)
def test_what_a_file_could_not_hold_is_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(PlanError, match=words) as caught:
        _write(tmp_path / "plan", **changes)
    assert_one_sentence(caught.value)
    assert not (tmp_path / "plan").exists()


def test_a_plan_is_replaced_only_when_told(tmp_path: Path) -> None:
    first = _write(tmp_path)
    with pytest.raises(PlanError, match="already holds a plan"):
        _write(tmp_path, constants={"A": 1})
    assert read_plan(tmp_path) == first
    assert _write(tmp_path, constants={"A": 1}, replace=True) == read_plan(tmp_path) != first
