"""A run that was cut off goes on where it was, to the same bits; a checkpoint that cannot be used is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sim_worlds import SCENARIO, write_scenario

from p2pfl.errors import ConfigError
from p2pfl.sim import Cell, Inputs, SimResult, backend_named, cells_of, read_scenario, sweep
from p2pfl.sim.checkpoints import Checkpoint, Checkpoints
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
    assert f"cut off after round {round_} and gone on with" in again.facts["remarks"][-1]
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
    file.save(Checkpoint(1, "eager", {"training": 0.5}, rows, {"x": np.arange(6.0)}))
    found = file.load()
    assert found is not None and list(found.rows) == ["round", "loss"]
    np.testing.assert_array_equal(found.rows["loss"], rows["loss"])
    assert found.cost == {"training": 0.5} and found.tensors["x"].tolist() == list(range(6))
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        assert file.load() is None, length
    for wrong in (
        whole.replace(b'"format":"1"', b'"format":"2"'),
        whole.replace(b"eager", b'\xff"ger'),
        whole[:-1] + b"xx",
    ):
        assert wrong != whole
        path.write_bytes(wrong)
        assert file.load() is None
    (tmp_path / "checkpoint.17.new").write_bytes(whole)  # killed while it wrote
    file.remove(), file.remove()
    assert list(tmp_path.iterdir()) == []


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
    assert cut.waiting == 0 and said == [] and (out / CELLS / cell.key / "checkpoint.safetensors").is_file()
    made = sweep([cell], out, here, resume=True, tell=said.append)
    assert said == ["blobs, seed 0, was cut off: it goes on after round 5"]
    ((result,),) = made.groups.values()
    whole = prepared(cell, inputs).run()
    np.testing.assert_array_equal(result.rounds["train_loss"], whole.rounds["train_loss"])
    assert not result.interrupted and not (out / CELLS / cell.key / "checkpoint.safetensors").exists()


def test_a_checkpoint_of_another_run_ends_one_run_and_is_removed(tmp_path: Path) -> None:
    cell, inputs = cell_of(tmp_path)
    here, out = backend_named("here", inputs, address=None), tmp_path / "out"
    sweep([cell], out, here, resume=False, watch=Interrupting(5))
    checkpoints_of(out, cell.key).save(
        Checkpoint(2, "eager", {"evaluation": 0.0}, {"round": np.arange(3)}, {"x": np.ones((2, 3))})
    )
    made = sweep([cell], out, here, resume=True)
    assert "is of another run" in made.failed["blobs, seed 0"]
    made = sweep([cell], out, here, resume=True)
    assert not made.failed and made.waiting == 0
