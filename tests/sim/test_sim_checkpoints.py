"""A run that was cut off goes on where it was, to the same bits; a checkpoint that cannot be used is none."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sim_worlds import PLAN_PY, PLAN_TOML, SCENARIO, blobs, write_scenario

from p2pfl.data import iid
from p2pfl.errors import ConfigError
from p2pfl.governance import read_plan
from p2pfl.sim import Cell, Inputs, SimResult, backend_named, cells_of, read_scenario, sweep
from p2pfl.sim.checkpoints import Checkpoint, Checkpoints, CheckpointWarning
from p2pfl.sim.preparing import prepare
from p2pfl.sim.scenario import EvaluateTable
from p2pfl.sim.study import prepared
from p2pfl.sim.sweep_folder import CELLS, checkpoints_of
from p2pfl.sim.vector_mixing import LinearMixing

RING = '[topology]\nkind = "ring"\n'
EVALUATED = "\n[evaluate]\nevery = 2\nsites = 3\n"
MACHINES = '[time]\nclock = "machines"\nseconds = 2.0\n'


def training(text: str, settings: str = "") -> str:
    """A scenario's tables of training."""
    return f'[training]\n{text}\ndtype = "float64"\n{settings}'


CASES = {  # what mixing, rule and optimiser keep from round to round
    "momentum": (RING, training('optimiser = {name = "momentum", beta = 0.9}')),
    "adam": (RING, training('optimiser = {name = "adam"}\nlearning_rate = 0.01')),
    "kgt": (RING, training('rule = "kgt"')),
    "gradient tracking": (RING, training('rule = "gradient_tracking"\nlocal_steps = 1')),
    "relays": ('[topology]\nkind = "chain"\n', training('rule = "relaysgd"')),
    "push-sum": ('[topology]\nkind = "exponential"\n', training('rule = "sgp"')),
    "walk": ('[topology]\nkind = "cyclic"\n', training('rule = "cyclic"')),
    "accelerated closing": (RING + 'closing = "chebyshev"\n', training('rule = "dpsgd"')),
    "changing graph": ('[topology]\nkind = "matching"\nseed = 3\n', training('rule = "quasi_global"')),
    "model of time, faults": (
        RING,
        training('rule = "dpsgd"')
        + '\n[time]\nclock = "model"\nseconds = 3.0\nprofiles = {slow = 2}\n'
        + '\n[[fault]]\nkind = "absent"\nsites = 1\nfirst = 1\nlast = 3\n'
        + '\n[[fault]]\nkind = "lying"\nsites = 1\nhow = "noise"\nsize = 0.5\n',
    ),
    "machines, asynchronous": (RING, training('rule = "dpsgd"') + f"\n{MACHINES}staleness = 2\nprofiles = {{slow = 2}}\n"),
    "machines, absent": (
        RING,
        training('rule = "kgt"') + f'\n{MACHINES}\n[[fault]]\nkind = "absent"\nsites = 1\nfirst = 2\nlast = 3\n',
    ),
}  # fmt: skip


def cell_of(folder: Path, topology: str = RING, tables: str = "", *, execution: str = "eager") -> tuple[Cell, Inputs]:
    """One run of eight rounds and four closing ones."""
    rounds = f'rounds = 8\nclosing_rounds = 4\nexecution = "{execution}"\n'
    text = SCENARIO.replace("rounds = 6\n", rounds).replace(RING, f"{topology}\n{tables}")
    inputs = Inputs()
    (cell,) = cells_of(read_scenario(write_scenario(folder, text + EVALUATED)), {}, [0], inputs.digest)
    return cell, inputs


def cut_at(round_: int) -> Any:
    """A progress that is interrupted after so many rounds."""

    def progress(done: int, rounds: int) -> None:
        if done == round_:
            raise KeyboardInterrupt

    return progress


def same(one: SimResult, other: SimResult, within: float = 0.0) -> None:
    """All that was found, to the bit if nothing else is said."""
    for table in ("rounds", "sites"):
        left, right = getattr(one, table), getattr(other, table)
        assert list(left) == list(right)
        for name, column in left.items():
            np.testing.assert_allclose(column, right[name], rtol=within, atol=within, err_msg=name)
    assert one.parameters is not None
    np.testing.assert_allclose(one.parameters, other.parameters, rtol=0.0, atol=within)
    own = ("execution", "execution_facts", "remarks", "device")
    left, right = ({name: fact for name, fact in run.facts.items() if name not in own} for run in (one, other))
    assert left == right


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("round_", [1, 5, 9])
def test_a_run_that_was_cut_off_goes_on_to_the_same_bits(tmp_path: Path, case: str, round_: int) -> None:
    cell, inputs = cell_of(tmp_path, *CASES[case])
    whole = prepared(cell, inputs).run()
    file = Checkpoints(tmp_path / "checkpoint")
    part = prepared(cell, inputs).run(cut_at(round_), file)
    assert part.interrupted and part.rounds["round"][-1] == round_ < whole.rounds["round"][-1]
    done: list[int] = []
    again = prepared(cell, inputs).run(lambda now, _: done.append(now), file)
    assert done[0] == round_ + 1 and not again.interrupted
    assert f"cut off after round {round_}, and gone on with from there" in again.facts["remarks"][-1]
    same(whole, again)


def test_a_run_that_is_cut_off_at_once_has_its_figures(tmp_path: Path) -> None:
    """Gone on with and interrupted before a round was over: the last evaluation is of the attempt before."""
    cell, inputs = cell_of(tmp_path)
    file = Checkpoints(tmp_path / "checkpoint")
    part = prepared(cell, inputs).run(cut_at(4), file)

    class Full(Checkpoints):
        @property
        def due(self) -> bool:
            raise KeyboardInterrupt

    again = prepared(cell, inputs)
    for rounds in (5, 6):
        now = again.run(None, Full(tmp_path / "checkpoint"))
        assert now.interrupted and now.rounds["round"][-1] == rounds
        assert list(now.sites) == list(part.sites) and np.isfinite(now.sites["accuracy"]).sum() == 3
        assert now.metric == part.metric == "accuracy"


def test_cut_off_in_the_last_round(tmp_path: Path) -> None:
    """All rounds are there, and what comes then is made without any."""
    cell, inputs = cell_of(tmp_path)
    whole, file = prepared(cell, inputs).run(), Checkpoints(tmp_path / "checkpoint")
    part = prepared(cell, inputs).run(cut_at(12), file)
    assert part.interrupted and len(part.rounds["round"]) == len(whole.rounds["round"])

    def none(done: int, rounds: int) -> None:
        raise AssertionError("no round is made again")

    same(whole, prepared(cell, inputs).run(none, file))


def test_the_way_is_that_of_the_first_part(tmp_path: Path) -> None:
    """Another one, other chunks or kernels may be chosen now, and each rounds in its own manner."""
    cell, inputs = cell_of(tmp_path, execution="auto")
    file = Checkpoints(tmp_path / "checkpoint")
    prepared(cell, inputs).run(cut_at(3), file)
    found = file.load()
    assert found is not None and found.execution["chunk"] > 0
    for way, kernel in (("loop", True), ("traced", False)):
        as_before = {"execution": way, "chunk": 2, "kernel": kernel}
        file.save(dataclasses.replace(found, execution=as_before))
        facts = prepared(cell, inputs).run(None, file).facts["execution_facts"]
        assert {"execution": facts["chosen"], "chunk": facts["chunk"], "kernel": facts["kernel"]} == as_before


def test_private_buffers_are_kept(tmp_path: Path) -> None:
    (tmp_path / "plan").mkdir()
    (tmp_path / "plan" / "plan.py").write_text(PLAN_PY.replace("nn.Tanh()", "nn.BatchNorm1d(8), nn.Tanh()"))
    (tmp_path / "plan" / "plan.toml").write_text(PLAN_TOML + 'batch_norm = "private"\n')
    plan, file = read_plan(tmp_path / "plan"), Checkpoints(tmp_path / "checkpoint")

    def simulation() -> Any:
        return prepare(
            plan, blobs(), partition=iid(), topology=None, peers=4, rounds=6, closing_rounds=1, seed=0, training={},
            weights="samples", time=None, faults=(), evaluate=EvaluateTable(), execution="eager",
        )  # fmt: skip

    simulation().run(cut_at(4), file)
    found = file.load()
    assert found is not None and [name for name in found.tensors if name.startswith("private/")]
    same(simulation().run(), simulation().run(None, file))


def test_a_disk_that_refuses_ends_no_run(tmp_path: Path) -> None:
    """What cannot be kept is said, and the interrupted part is there all the same."""
    cell, inputs = cell_of(tmp_path)
    whole = prepared(cell, inputs).run()
    nowhere = Checkpoints(tmp_path / "no" / "such" / "folder" / "checkpoint", every=0.0)
    with pytest.warns(CheckpointWarning, match="couldn't write .* the run goes on"):
        result = prepared(cell, inputs).run(None, nowhere)
    assert len([text for text in result.facts["remarks"] if text.startswith("no checkpoint after round")]) == 11
    same(whole, result)
    with pytest.warns(CheckpointWarning):
        part = prepared(cell, inputs).run(cut_at(3), nowhere)
    assert part.interrupted and part.rounds["round"][-1] == 3


def test_writing_takes_a_small_part_of_a_run(tmp_path: Path) -> None:
    now = [0.0]

    def clock() -> float:
        now[0] += 5.0  # each look at it
        return now[0]

    file = Checkpoints(tmp_path / "checkpoint", every=60.0, clock=clock)
    file.save(Checkpoint(1, {}, {}, {}, {}))  # took 5 seconds
    waited = 0
    while not file.due:
        waited += 1
    assert waited * 5.0 == 95.0


def test_cut_off_again_and_again(tmp_path: Path) -> None:
    """In closing rounds of accelerated mixing, after each round."""
    cell, inputs = cell_of(tmp_path, *CASES["accelerated closing"])
    whole, file = prepared(cell, inputs).run(), Checkpoints(tmp_path / "checkpoint")
    for round_ in range(1, 12):
        part = prepared(cell, inputs).run(cut_at(round_), file)
        assert part.rounds["round"][-1] == round_
    same(whole, prepared(cell, inputs).run(None, file))


def test_a_killed_run_has_what_is_due(tmp_path: Path) -> None:
    """After each round of which the clock says that the last one is long ago."""
    now, seen = [0.0], []
    cell, inputs = cell_of(tmp_path)
    file = Checkpoints(tmp_path / "checkpoint", every=10.0, clock=lambda: now[0])

    def progress(done: int, rounds: int) -> None:
        before = file.load(tensors=False)
        seen.append(None if before is None else before.round)
        now[0] += 4.0

    prepared(cell, inputs).run(progress, file)
    assert seen == [None, None, None, 3, 3, 3, 6, 6, 6, 9, 9, 9]
    found = file.load(tensors=False)
    assert found is not None and found.round == 9, "what is over has no checkpoint of its own: it is a result"


def test_a_round_that_is_half_done_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second interrupt may come between training and mixing: a state that never was is neither stored nor judged."""
    cell, inputs = cell_of(tmp_path, *CASES["momentum"])
    whole, file = prepared(cell, inputs).run(), Checkpoints(tmp_path / "checkpoint")
    prepared(cell, inputs).run(cut_at(2), file)
    mixed = LinearMixing.round

    def interrupted(self: LinearMixing, x: Any, state: Any, context: Any, *args: Any, **options: Any) -> None:
        mixed(self, x, state, context, *args, **options)
        if context.round == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(LinearMixing, "round", interrupted)
        part = prepared(cell, inputs).run(None, file)
    assert part.interrupted and part.parameters is None and part.rounds["round"][-1] == 4
    found = file.load(tensors=False)
    assert found is not None and found.round == 2
    same(whole, prepared(cell, inputs).run(None, file))


def test_a_file_that_cannot_be_used_is_none(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    file = Checkpoints(path)
    assert file.load() is None
    rows = {"round": np.arange(2), "loss": np.array([np.nan, 0.1])}
    (tmp_path / "checkpoint.17.new").write_bytes(b"killed while it wrote")
    file.save(Checkpoint(1, {"execution": "eager"}, {"training": 0.5}, rows, {"x": np.arange(6.0)}))
    assert list(tmp_path.iterdir()) == [path]
    found = file.load()
    assert found is not None and list(found.rows) == ["round", "loss"] and found.execution == {"execution": "eager"}
    np.testing.assert_array_equal(found.rows["loss"], rows["loss"])
    assert found.cost == {"training": 0.5} and found.tensors["x"].tolist() == list(range(6))
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        assert file.load() is None, length
    first = whole.index(np.arange(6.0).tobytes())
    for wrong in (whole[:first] + b"\xff" + whole[first + 1 :], whole.replace(b'"format": 1', b'"format": 2')):
        assert wrong != whole
        path.write_bytes(wrong)
        assert file.load() is None
    path.write_bytes(whole)
    (tmp_path / "checkpoint.18.new").write_bytes(whole)
    file.remove(), file.remove()
    assert list(tmp_path.iterdir()) == []


def test_what_is_pickled_is_not_read(tmp_path: Path) -> None:
    head = np.frombuffer(b'{"format": 1, "round": 1, "execution": {}, "cost": {}, "rows": []}', dtype=np.uint8)
    with (tmp_path / "checkpoint").open("wb") as file:
        np.savez(file, head=head, x=np.array([print], dtype=object))
    assert Checkpoints(tmp_path / "checkpoint").load() is None
    assert Checkpoints(tmp_path / "checkpoint").load(tensors=False) is not None


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    cell, inputs = cell_of(tmp_path, *CASES["momentum"])
    file = Checkpoints(tmp_path / "checkpoint")
    prepared(cell, inputs).run(cut_at(3), file)
    for case in ("adam", "kgt"):
        (tmp_path / case).mkdir()
        other, others = cell_of(tmp_path / case, *CASES[case])
        with pytest.raises(ConfigError, match="checkpoint is of another run"):
            prepared(other, others).run(None, file)


class Interrupting:
    """Somebody who watches, and interrupts after a round."""

    def __init__(self, round_: int) -> None:
        self._round = round_

    def cell(self, cell: Cell, done: int, cells: int) -> None:
        """See `p2pfl.sim.sweeps.Watch`."""

    def round(self, done: int, rounds: int) -> None:
        """See there."""
        if done == self._round:
            raise KeyboardInterrupt


def test_a_sweep_goes_on_inside_its_runs(tmp_path: Path) -> None:
    cell, inputs = cell_of(tmp_path)
    here, out = backend_named("here", inputs, address=None), tmp_path / "out"
    said: list[str] = []
    cut = sweep([cell], out, here, resume=False, watch=Interrupting(5), tell=said.append)
    assert cut.waiting == 0 and said == [] and (out / CELLS / cell.key / "checkpoint.npz").is_file()
    made = sweep([cell], out, here, resume=True, tell=said.append)
    assert said == ["blobs, seed 0, was cut off: it goes on after round 5"]
    ((result,),) = made.groups.values()
    whole = prepared(cell, inputs).run()
    np.testing.assert_array_equal(result.rounds["train_loss"], whole.rounds["train_loss"])
    assert not result.interrupted and not (out / CELLS / cell.key / "checkpoint.npz").exists()


def test_a_checkpoint_of_another_run_ends_one_run_and_is_removed(tmp_path: Path) -> None:
    cell, inputs = cell_of(tmp_path)
    here, out = backend_named("here", inputs, address=None), tmp_path / "out"
    sweep([cell], out, here, resume=False, watch=Interrupting(5))
    checkpoints_of(out, cell.key).save(
        Checkpoint(2, {"execution": "eager"}, {"evaluation": 0.0}, {"round": np.arange(3)}, {"x": np.ones((2, 3))})
    )
    made = sweep([cell], out, here, resume=True)
    assert "is of another run" in made.failed["blobs, seed 0"]
    made = sweep([cell], out, here, resume=True)
    assert not made.failed and made.waiting == 0


def test_no_checkpoint_stays_beside_a_result(tmp_path: Path) -> None:
    """A process was killed between writing the result and removing it."""
    cell, inputs = cell_of(tmp_path)
    here, out = backend_named("here", inputs, address=None), tmp_path / "out"
    sweep([cell], out, here, resume=False)
    checkpoints_of(out, cell.key).save(Checkpoint(2, {}, {}, {}, {}))
    sweep([cell], out, here, resume=True)
    assert checkpoints_of(out, cell.key).load() is None


def test_parts_of_runs_are_not_mixed_with_other_runs(tmp_path: Path) -> None:
    """Killed before any result: the folder is a sweep's all the same."""
    cell, inputs = cell_of(tmp_path)
    (tmp_path / "other").mkdir()
    other, others = cell_of(tmp_path / "other", *CASES["kgt"])
    here, out = backend_named("here", inputs, address=None), tmp_path / "out"
    sweep([cell], out, here, resume=False, watch=Interrupting(5))
    (out / CELLS / cell.key / "result.json").unlink()
    with pytest.raises(ConfigError, match="1 results or parts of them already; go on with --resume"):
        sweep([cell], out, here, resume=False)
    with pytest.raises(ConfigError, match="1 results of other runs"):
        sweep([other], out, backend_named("here", others, address=None), resume=True)
