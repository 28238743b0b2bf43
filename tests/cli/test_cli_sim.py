"""`p2pfl sim` as a new user would use it: right, wrong, interrupted, twice."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cli_worlds import do
from sim_worlds import SCENARIO, write_scenario

from p2pfl.sim.checkpoints import Checkpoints


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_scenario(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_run_show_and_run_again(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = do(capsys, "sim", "run", "blobs.toml")
    assert done.code == 0, done.err
    assert "blobs" in done.out and "accuracy, mean model" in done.out
    assert "results and report.html are in results/blobs" in done.err
    assert (folder / "results" / "blobs" / "report.html").is_file()
    again = do(capsys, "sim", "run", "blobs.toml")
    assert again.code == 1 and "--resume" in again.sentence()
    assert do(capsys, "sim", "run", "blobs.toml", "--resume").out == done.out
    shown = do(capsys, "sim", "show", "results/blobs")
    assert (shown.code, shown.out) == (0, done.out)
    values = json.loads(do(capsys, "sim", "show", "results/blobs", "--json").out)
    assert [value["seed"] for value in values] == [0, 1]
    assert values[0]["final"]["mean_model_accuracy"] > 0.5


def test_sweep_compare_and_compare_results(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = do(
        capsys, "sim", "sweep", "blobs.toml", "--vary", "topology=ring,full", "--seeds", 1, "--out", "s", "--json"
    )
    assert done.code == 0, done.err
    assert [value["topology"]["kind"] for value in json.loads(done.out)] == ["ring", "full"]
    (folder / "full.toml").write_text(SCENARIO.replace("ring", "full").replace('"blobs"', '"all-to-all"', 1))
    done = do(capsys, "sim", "compare", "blobs.toml", "full.toml", "--seeds", 1, "--out", "c")
    assert done.code == 0 and "all-to-all" in done.out, done.err
    done = do(capsys, "sim", "compare", "s", "c", "--out", "page")
    assert done.code == 0 and (folder / "page" / "report.html").is_file()
    for place in ("page", "s"):  # a page of before, and a sweep's own
        before = (folder / place / "report.html").read_bytes()
        again = do(capsys, "sim", "compare", "s", "c", "--out", place)
        assert again.code == 1 and "report.html is there already" in again.sentence()
        assert (folder / place / "report.html").read_bytes() == before
    mixed = do(capsys, "sim", "compare", "blobs.toml", "s")
    assert mixed.code == 1 and "not both" in mixed.sentence()


def test_dry_run_trains_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = do(capsys, "sim", "sweep", "blobs.toml", "--vary", "peers=2,4", "--dry-run")
    assert done.code == 0 and done.out.startswith("4 runs into results/blobs")
    assert not (folder / "results").exists()


def test_unequal_local_steps_in_a_sweep(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "unequal.toml").write_text(SCENARIO + "[[steps]]\nsites = 1\nlocal_steps = 1\n")
    vary = ("--vary", "local_steps=2,4", "--seeds", 1, "--out", "s", "--json")
    done = do(capsys, "sim", "sweep", "unequal.toml", *vary)
    assert done.code == 0, done.err
    values = json.loads(done.out)
    assert [value["local_steps"] for value in values] == [2, 4]
    assert [value["steps"] for value in values] == [[{"sites": 1, "local_steps": 1}]] * 2
    assert json.loads(do(capsys, "sim", "sweep", "unequal.toml", *vary, "--resume").out) == values
    other = do(capsys, "sim", "sweep", "blobs.toml", *vary, "--resume")
    assert other.code == 1 and "results of other runs" in other.sentence()
    refused = do(capsys, "sim", "sweep", "unequal.toml", "--vary", "steps.sites=1,2", "--dry-run")
    assert refused.code == 1 and "there may be several [[steps]]" in refused.sentence()


@pytest.mark.parametrize("library", ["pyarrow", "matplotlib"])
def test_a_missing_library_is_told_before_anything_is_read(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    done = do(capsys, "sim", "run", "blobs.toml", "--dry-run")
    assert done.code == 1 and f"{library} is not installed" in done.sentence()


def test_folders_of_one_name_stay_two_rows(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for place in ("x1/ring", "x2/ring", "x2/full"):
        assert do(capsys, "sim", "run", "blobs.toml", "--seeds", 1, "--out", place).code == 0
    done = do(capsys, "sim", "compare", "x1/ring", "x2/ring", "x2/full", "--out", "page")
    assert done.code == 0, done.err
    for told in ("x1/ring: blobs", "x2/ring: blobs", "full: blobs"):
        assert told in done.out
    assert "x2/full" not in done.out
    twice = do(capsys, "sim", "compare", "x1/ring", "x2/../x1/ring", "--out", "other")
    assert twice.code == 1 and "given twice" in twice.sentence()
    for option in (["--resume"], ["--seeds", "3"], ["--dry-run"], ["--backend", "ray"], ["--workers", "3"]):
        refused = do(capsys, "sim", "compare", "x1/ring", "x2/ring", *option)
        assert refused.code == 1 and option[0] in refused.sentence()


def test_varied_paths_count_from_the_scenario(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "elsewhere").mkdir()
    (folder / "plan").rename(folder / "one")
    shutil.copytree(folder / "one", folder / "two")
    monkeypatch.chdir(folder / "elsewhere")
    done = do(capsys, "sim", "sweep", "../blobs.toml", "--vary", "plan=one,two", "--vary", "data.path=blobs.csv",
              "--seeds", 1, "--dry-run")  # fmt: skip
    assert done.code == 0, done.err
    assert "plan=two, data.path=blobs.csv, seed 0" in done.out


def test_data(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = do(capsys, "sim", "data", "blobs.toml", "--plot", "holdings.svg")
    assert done.code == 0 and done.out.split()[:2] == ["peer", "examples"], done.err
    assert (folder / "holdings.svg").read_text().startswith("<?xml")
    counts = json.loads(do(capsys, "sim", "data", "blobs.toml", "--json").out)
    assert sum(map(sum, counts["examples"])) == 144


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["run", "none.toml"], "none.toml"),
        (["run", "plan"], "is a folder"),
        (["sweep", "blobs.toml", "--vary", "colour=red,blue"], "cannot be varied"),
        (["sweep", "blobs.toml", "--vary", "topology"], "varies nothing"),
        (["sweep", "blobs.toml", "--vary", "peers=2", "--vary", "peers=4"], "twice"),
        (["sweep", "blobs.toml", "--vary", "peers=2,1000"], "1000 peers"),
        (["run", "blobs.toml", "--backend", "spark"], "unknown backend"),
        (["run", "blobs.toml", "--ray", "auto"], "are for --backend ray"),
        (["run", "blobs.toml", "--workers", "3"], "are for --backend ray"),
        (["run", "blobs.toml", "--backend", "ray", "--ray", "auto", "--workers", "3"], "leave one out"),
        (["sweep", "blobs.toml", "--vary", "fault=flip,noise"], "fault=flip changes nothing"),
        (["sweep", "blobs.toml", "--vary", "topology=ring,regular"], 'topology={ kind = "regular", degree = 4'),
        (["compare", "blobs.toml", "blobs.toml"], "a name of its own"),
        (["compare", "blobs.toml", "full.toml", "full.toml"], "called all-to-all"),
        (["run", "x" * 300 + ".toml"], "name too long"),
        (["compare", "x" * 300], "name too long"),
        (["show", "x" * 300], "no results"),
        (["run", "blobs.toml", "--dry-run", "--out", "x" * 300], "name too long"),
        (["run", "blobs.toml", "--dry-run", "--out", "blobs.csv/deep/er"], "cannot hold results"),
        (["sweep", "blobs.toml", "--vary", f"plan={'x' * 300}"], "is not a folder"),
        (["run", "blobs.toml", "--seeds", "100000000000"], "100000000000 seeds are more than 1000"),
        (["show", "plan"], "no results"),
        (["show", "none"], "no results"),
        (["data", "blobs.toml", "--plot", "."], "is a folder; give a file's name"),
    ],
)
def test_wrong_input_is_one_sentence_and_leaves_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], wanted: str
) -> None:
    (folder / "full.toml").write_text(SCENARIO.replace('"blobs"', '"all-to-all"', 1))
    done = do(capsys, "sim", *arguments)
    assert done.code == 1 and wanted in done.sentence()
    assert not (folder / "results").exists()


def test_help_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in ("run", "sweep", "compare", "data", "show"):
        assert f"Example: p2pfl sim {verb}" in do(capsys, "sim", verb, "--help").out


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_ctrl_c_leaves_a_usable_result(folder: Path, number: int) -> None:
    # in a way that is named: "auto" would compile the plan first, as so many rounds are to come
    (folder / "long.toml").write_text(SCENARIO.replace("rounds = 6", 'rounds = 1000000\nexecution = "eager"'))
    child = subprocess.Popen(
        [sys.executable, "-u", "-X", "faulthandler", "-c", INTERRUPTED, "sim", "run", "long.toml"],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert child.stderr is not None
    try:
        assert child.stderr.readline() == "training\n"
        child.send_signal(number)
        out, err = child.communicate(timeout=60)
    finally:
        child.kill()
    assert child.returncode == 130, err
    assert "Traceback" not in err and "--resume makes the others" in err
    assert "accuracy, mean model" in out
    assert "Interrupted" in (folder / "results" / "blobs" / "report.html").read_text()
    (kept,) = folder.glob("results/blobs/cells/*/checkpoint.npz")
    found = Checkpoints(kept).load(tensors=False)
    assert found is not None and found.round >= 3


def test_what_a_plan_prints_is_no_part_of_the_result(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = folder / "plan" / "plan.py"
    plan.write_text(plan.read_text().replace("def model():", "def model():\n    print('a model')"))
    done = do(capsys, "sim", "run", "blobs.toml", "--seeds", "1", "--json")
    assert done.code == 0 and "a model" in done.err
    assert len(json.loads(done.out)) == 1
    planned = do(capsys, "sim", "run", "blobs.toml", "--dry-run", "--json")
    assert planned.code == 0 and len(json.loads(planned.out)) == 2


def test_show_names_runs_that_are_not_there(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert do(capsys, "sim", "run", "blobs.toml").code == 0
    (cell,) = [
        place.parent for place in folder.glob("results/blobs/cells/*/*.json") if b'"seed": 1' in place.read_bytes()
    ]
    shutil.rmtree(cell)
    shown = do(capsys, "sim", "show", "results/blobs")
    assert shown.code == 0 and "blobs, seed 1: not complete" in shown.err and "seed 0" not in shown.err


def test_show_says_why_nothing_is_there(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "far.toml").write_text(SCENARIO + "\n[training]\nlearning_rate = 1e38\n")
    assert do(capsys, "sim", "run", "far.toml").code == 1
    shown = do(capsys, "sim", "show", "results/blobs")
    assert shown.code == 1 and "2 failed" in shown.sentence() and "lower learning_rate" in shown.sentence()


def test_what_holds_for_many_runs_is_said_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vary = ("--vary", "learning_rate=0.1,1e38,2e38", "--vary", 'topology=ring,{ kind = "hierarchical", clusters = 2 }')
    done = do(capsys, "sim", "sweep", "blobs.toml", *vary, "--vary", "execution=eager", "--seeds", "2")
    errors = [line for line in done.err.splitlines() if "error: " in line]
    assert done.code == 1 and 0 < len(errors) < 8
    assert "learning_rate=0.1, topology=hierarchical (clusters=2), execution=eager" in done.out
    named = sum(int(more) for more in re.findall(r" and (\d+) other runs?: training diverged", done.err)) + len(errors)
    assert named == 8, "each run is one that is named, or one of the others"
    shown = do(capsys, "sim", "show", "results/blobs")
    assert [line for line in shown.err.splitlines() if "error: " in line] == errors


def test_a_run_that_was_killed_begins_again_and_says_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """SIGKILL in the second of two runs: the first is kept, the second is named, as is a lock that nobody holds."""
    arguments = ("sim", "sweep", "blobs.toml", "--vary", "rounds=2,6", "--vary", "execution=loop", "--seeds", "1")
    child = subprocess.Popen(
        [sys.executable, "-u", "-c", INTERRUPTED, *arguments],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert child.stderr is not None
    try:
        assert child.stderr.readline() == "training\n"
    finally:
        child.kill()
        child.communicate()
    done = do(capsys, *arguments, "--resume")
    assert done.code == 0, done.err
    assert "rounds=6, execution=loop, seed 0, was cut off: it begins again from round 0" in done.err
    assert "rounds=2" not in done.err and not list(folder.glob("results/blobs/cells/*/begun"))
    assert "was cut off" not in do(capsys, *arguments, "--resume").err


INTERRUPTED = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell in the background has it ignored
from p2pfl.sim import vectorised
step = vectorised.VectorisedRun.step
def told(self):
    if self.round == 3:
        print("training", file=sys.stderr, flush=True)
    return step(self)
vectorised.VectorisedRun.step = told
from p2pfl.cli import main
sys.exit(main())
"""
