"""The rivals' benchmark: what a rival leaves behind is ended, and one that fails has a row with the reason."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "rival_rounds.py"
pytestmark = pytest.mark.skipif(
    not Path("/proc/self/environ").exists(), reason="reads processes' environments on Linux"
)

DAEMON = """
import json, os, signal, subprocess, sys
code = "import signal; print('up', flush=True); signal.pause()"
child = subprocess.Popen([sys.executable, "-c", code], start_new_session=True, stdout=subprocess.PIPE)
child.stdout.readline()  # in the middle of execve(2) a process has no environment to be read
"""
RESULT = 'print(json.dumps({"peer_rounds_per_second": float(os.environ["SPEED"]), "child": child.pid}), flush=True)\n'


@pytest.fixture
def rivals(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module, which is a program's and no part of the package."""
    spec = importlib.util.spec_from_file_location("rival_rounds", PROGRAM)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "rival_rounds", module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def measured(rivals: ModuleType, folder: Path, script: str, ways: dict[str, dict[str, str]]) -> dict[str, Any]:
    """The row of a rival whose environment is there already: this interpreter."""
    python = folder / "some-1" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    (folder / "some-1" / ".complete").touch()
    (folder / "script.py").write_text(script)
    row: dict[str, Any] = rivals.measure(rivals.Rival("some 1", (), str(folder / "script.py"), 1, ways=ways), folder)
    return row


def environment_of(process: int) -> bytes:
    """Empty once the process has ended, though nobody may have asked for its status yet."""
    try:
        return Path(f"/proc/{process}/environ").read_bytes()
    except OSError:
        return b""


def test_the_quickest_way_counts_and_what_it_started_has_ended(rivals: ModuleType, tmp_path: Path) -> None:
    """The child has a session of its own, as Ray's daemons have, and would stay."""
    row = measured(rivals, tmp_path, DAEMON + RESULT + "os._exit(0)\n", {"a": {"SPEED": "2"}, "b": {"SPEED": "3"}})
    assert (row["peer_rounds"], row["way"]) == (3.0, "b")
    assert [environment_of(run["child"]) for run in row["runs"]] == [b"", b""]


def test_a_measurement_is_ended_with_its_children(rivals: ModuleType) -> None:
    """While it still runs."""
    script = DAEMON + "print(child.pid, flush=True)\nsignal.pause()\n"
    variables = {**os.environ, rivals.MARK: "here"}
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=variables)
    with process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        before = environment_of(child)
        rivals.end(process, "here")
        assert before and environment_of(child) == environment_of(process.pid) == b""


def test_a_rival_that_takes_too_long_says_so(
    rivals: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With no time at all."""
    monkeypatch.setattr(rivals, "LIMIT", 0)
    assert measured(rivals, tmp_path, "import signal\nsignal.pause()\n", {"a": {}})["failed"] == "not done after 0 s"


def test_a_rival_that_fails_has_a_row_with_the_reason(rivals: ModuleType, tmp_path: Path) -> None:
    """One way of two is enough for a figure; none gives the reason."""
    script = "import json, os\nprint(json.dumps({'peer_rounds_per_second': float(os.environ['SPEED'])}))\n"
    row = measured(rivals, tmp_path / "one", script, {"a": {"SPEED": "fast"}, "b": {"SPEED": "3"}})
    assert row["peer_rounds"] == 3.0 and "fast" in row["runs"][0]["failed"]
    row = measured(rivals, tmp_path / "none", script, {"a": {"SPEED": "fast"}})
    assert row["failed"] == "ValueError: could not convert string to float: 'fast'" and "peer_rounds" not in row


@pytest.mark.slow
def test_a_package_that_cannot_be_installed_is_a_reason(rivals: ModuleType, tmp_path: Path) -> None:
    """A file that is not there; pip asks no index for it."""
    package = f"--no-index {tmp_path / 'missing-1-py3-none-any.whl'}"
    row = rivals.measure(rivals.Rival("some 1", (package,), "none.py", 1), tmp_path)
    assert row["failed"].startswith("not installed: ERROR") and "missing" in row["failed"]
