"""Scenarios: read, varied, and refused in one sentence before anything is trained."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
from sim_worlds import SCENARIO, write_scenario

from p2pfl.errors import P2PFLError
from p2pfl.sim import Inputs, cells_of, prepared, read_scenario, read_variation, varied
from p2pfl.sim.profiles import chosen_sites


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    return write_scenario(tmp_path)


def test_paths_count_from_the_scenario(scenario: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir("/")
    read = read_scenario(scenario)
    assert read.scenario.plan == str(tmp_path / "plan")
    assert read.data["path"] == str(tmp_path / "blobs.csv")
    assert read.seeds == [0, 1]


BAD = {
    "unknown key": (("[scenario]", "[scenario]\npears = 6"), "scenario.pears is not a known key"),
    "no peers": (("peers = 6", "peers = 0"), "scenario.peers is 0; write a number of 1 or more"),
    "peers missing": (("peers = 6\n", ""), "scenario.peers is missing"),
    "no rounds": (("rounds = 6", "rounds = 0"), "scenario.rounds is 0"),
    "no seeds": (("seeds = 2", "seeds = []"), "number of seeds"),
    "far too many seeds": (("seeds = 2", "seeds = 100000000000"), "at most 1000"),
    "seeds in words": (("seeds = 2", 'seeds = "two"'), "seeds is 'two'; write a whole number or a list"),
    "a part of a seed": (
        ("seeds = 2", "seeds = [0.5]"), "seeds is [0.5]; write a whole number or a list, each of it a whole number"),
    "a name with umlauts": (('name = "blobs"', 'name = "Zürich"'), "name is 'Zürich'; write a text that fits ^[A-Za-z0-9]"),
    "evaluation of less than none": (
        ("[topology]", "[evaluate]\nsites = -1\n[topology]"), "sites is -1; write 'all' or 'none' or a number of 0 or more"),
    "a profile in words": (
        ("[topology]", '[time]\nprofiles = { slow = "one" }\n[topology]'), "profiles.slow is 'one'; write a number or"),
    "late edges without a clock": (
        ("[topology]", "[training]\nstaleness = 1\n[topology]"), "staleness belongs to [time]"),
    "a device that is none of ours": (("rounds = 6", 'rounds = 6\ndevice = "meta"'), "device 'meta'"),
    "far too many local steps": (
        ("[topology]", "[training]\nlocal_steps = 1000000000\n[topology]"), "1000000000 local steps are more than 100000"),
    "a seed twice": (("seeds = 2", "seeds = [1, 1]"), "different ones"),
    "data without kind": (('kind = "csv"', 'knd = "csv"'), "give it a kind"),
    "unknown data": (('kind = "csv"', 'kind = "xls"'), "unknown kind of data 'xls'; choose one of csv"),
    "unknown data setting": (('label = "cloud"', 'label = "cloud"\nlabl = 1'), "no setting 'labl'"),
    "no such file": (("blobs.csv", "none.csv"), "none.csv"),
    "no such column": (('label = "cloud"', 'label = "clod"'), "clod"),
    "no such plan": (('plan = "plan"', 'plan = "plans"'), "plans is not a folder"),
    "unknown partition": (('"dirichlet"', '"dirichlt"'), "unknown partition 'dirichlt'"),
    "alpha of the wrong type": (("alpha = 0.5", 'alpha = "small"'), "alpha"),
    "alpha not positive": (("alpha = 0.5", "alpha = 0"), "alpha is 0"),
    "more labels than classes": (
        ('kind = "dirichlet"\nalpha = 0.5', 'kind = "labels_per_peer"\nlabels = 4'), "3 classes"),
    "more peers than examples": (("peers = 6", "peers = 1000"), "1000 peers"),
    "unknown topology": (('kind = "ring"', 'kind = "rng"'), "unknown topology 'rng'"),
    "disconnected graph": (('kind = "ring"', 'kind = "edges"\nedges = [[0, 1], [2, 3]]'), "not connected"),
    "unknown rule": (("[topology]", '[training]\nrule = "sgd"\n[topology]'), "unknown update rule 'sgd'"),
    "unknown training setting": (("[topology]", "[training]\nlearning = 1\n[topology]"), "learning"),
    "rule without its optimiser": (
        ("[topology]", '[training]\nrule = "kgt"\noptimiser = { name = "adam" }\n[topology]'), "does not go with optimiser"),
    "rule without its graph": (("[topology]", '[training]\nrule = "relaysgd"\n[topology]'), "needs a tree"),
    "fault of no site": (("[topology]", '[[fault]]\nkind = "lying"\nsites = [6]\n[topology]'), "sites [6]"),
    "unknown fault": (("[topology]", '[[fault]]\nkind = "late"\nsites = 1\n[topology]'), "fault.0.kind is 'late'"),
    "staleness of the model": (("[topology]", "[time]\nstaleness = 2\n[topology]"), "machines"),
    "unknown profile": (("[topology]", '[time]\nprofiles = { fats = 1 }\n[topology]'), "fats"),
    "fault that ends before it begins": (
        ("[topology]", '[[fault]]\nkind = "lying"\nsites = [1]\nfirst = 3\nlast = 2\n[topology]'), "a fault ends in round 2"),
    "faults under a rule without them": (
        ('"ring"', '"chain"\n[training]\nrule = "relaysgd"\n[[fault]]\nkind = "lying"\nsites = [1]'), "without losses and faults"),
    "steps of no site": (("[topology]", "[[steps]]\nsites = [6]\nlocal_steps = 1\n[topology]"), "steps 0: sites [6]"),
    "steps of a share above all": (("[topology]", "[[steps]]\nsites = 1.5\nlocal_steps = 1\n[topology]"), "steps 0: 1.5"),
    "steps below none": (("[topology]", "[[steps]]\nsites = 1\nlocal_steps = -1\n[topology]"), "steps.0.local_steps is -1"),
    "far too many steps": (
        ("[topology]", "[[steps]]\nsites = 1\nlocal_steps = 100001\n[topology]"), "steps.0.local_steps is 100001"),
    "steps of a part": (("[topology]", "[[steps]]\nsites = 1\nlocal_steps = 1.5\n[topology]"), "steps.0.local_steps is 1.5"),
    "steps without a number": (("[topology]", "[[steps]]\nsites = 1\n[topology]"), "steps.0.local_steps is missing"),
    "steps as one table": (("[topology]", "[steps]\nsites = 1\nlocal_steps = 1\n[topology]"), "steps"),
    "nobody trains": (("[topology]", "[[steps]]\nsites = 1.0\nlocal_steps = 0\n[topology]"), "so nobody trains"),
    "nobody who trains is there": (
        ("[topology]", '[[steps]]\nsites = [1, 2, 3, 4, 5]\nlocal_steps = 0\n[[fault]]\nkind = "absent"\nsites = 0\n[topology]'),
        "all sites that have local steps are absent"),
    "a round of ages": (("[topology]", "[time]\nseconds = 1e308\n[topology]"), "time.seconds is 1e+308; write a number of 31536000"),
    "links of ages": (("[topology]", "[time]\nlatency = 1e308\n[topology]"), "time.latency is 1e+308; write a number of 86400"),
    "uplinks beyond all": (("[topology]", "[time]\nbandwidth = 1e308\n[topology]"), "time.bandwidth is 1e+308; write a number of 1"),
    "uplinks of nothing": (("[topology]", "[time]\nbandwidth = 1e-308\n[topology]"), "time.bandwidth is 1e-308; write a number of 1"),
    "uplinks full of heartbeats": (("[topology]", "[time]\nbandwidth = 100.0\n[topology]"), "give more bandwidth"),
    "not TOML": (("[scenario]", "[scenario"), "not valid TOML"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_scenarios_end_in_one_sentence(name: str, tmp_path: Path) -> None:
    (old, new), wanted = BAD[name]
    assert old in SCENARIO
    path = write_scenario(tmp_path, SCENARIO.replace(old, new, 1))
    with pytest.raises(P2PFLError) as refused:
        read = read_scenario(path)
        inputs = Inputs()
        for cell in cells_of(read, {}, read.seeds, inputs.digest):
            prepared(cell, inputs)
    assert wanted in str(refused.value), str(refused.value)
    assert "\n" not in str(refused.value)


def test_batch_norm_beside_few_examples_is_told_before_it_trains(tmp_path: Path) -> None:
    path = write_scenario(tmp_path, SCENARIO.replace("peers = 6", 'peers = 30\nexecution = "eager"'))
    code = tmp_path / "plan" / "plan.py"
    code.write_text(code.read_text().replace("nn.Tanh()", "nn.BatchNorm1d(8)"))
    with (tmp_path / "plan" / "plan.toml").open("a") as settings:
        settings.write('batch_norm = "private"\n')
    read, inputs = read_scenario(path), Inputs()
    (cell,) = cells_of(read, {}, [0], inputs.digest)
    with pytest.raises(P2PFLError, match="batch norm"):
        prepared(cell, inputs)


def test_variations(scenario: Path) -> None:
    read = read_scenario(scenario)
    assert read_variation("topology=ring, full") == ("topology", ["ring", "full"])
    assert read_variation("learning_rate=0.1,1") == ("learning_rate", [0.1, 1])
    full = varied(read, {"topology": "full", "peers": 4, "training.batch_size": 2})
    assert (full.topology, full.scenario.peers, full.training) == ({"kind": "full"}, 4, {"batch_size": 2})
    cells = cells_of(read, {"topology": ["ring", "full"], "peers": [4, 8]}, [0, 1, 2], lambda scenario: "same")
    assert len(cells) == 12 and len({cell.key for cell in cells}) == 12
    assert [cell.setting for cell in cells[:4]] == ["topology=ring, peers=4"] * 3 + ["topology=ring, peers=8"]


FAULT = '[[fault]]\nkind = "{}"\nsites = 1\n'


@pytest.mark.parametrize("how", ["flip", "scale", "none"])
def test_faults_are_varied_only_where_there_are_some(scenario: Path, how: str) -> None:
    with pytest.raises(P2PFLError, match=f"fault={how} changes nothing .* add a "):
        varied(read_scenario(scenario), {"fault": how})


def test_absent_sites_lie_in_no_way(scenario: Path) -> None:
    """They did in the cell's key alone: two cells with the same numbers, told apart by a setting without effect."""
    scenario.write_text(SCENARIO + FAULT.format("absent"))
    with pytest.raises(P2PFLError, match=r'fault=flip says how sites lie, but no .* has kind = "lying"'):
        varied(read_scenario(scenario), {"fault": "flip"})
    assert varied(read_scenario(scenario), {"fault": "none"}).fault == []
    scenario.write_text(SCENARIO + FAULT.format("absent") + FAULT.format("lying"))
    absent, lying = varied(read_scenario(scenario), {"fault": "scale"}).fault
    assert (absent, lying.how) == (read_scenario(scenario).fault[0], "scale")


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"topology": "regular"}, 'regular needs degree and seed, too; .*{ kind = "regular", degree = 4, seed = 0 }'),
        ({"topology": "regular", "degree": 3}, 'needs seed, .*{ kind = "regular", degree = 3, seed = 0 }'),
        ({"topology.kind": "epidemic", "topology.seed": 5}, "needs degree, .*degree = 4, seed = 5 }"),
        ({"topology": "hierarchical"}, "needs clusters, .*clusters = 2 }"),
        ({"topology": "torus"}, "needs columns and rows, .*columns = 4, rows = 4 }"),
    ],
)
def test_a_graph_that_needs_more_is_said_as_it_is_written(
    scenario: Path, changes: dict[str, object], wanted: str
) -> None:
    with pytest.raises(P2PFLError, match=wanted) as refused:
        varied(read_scenario(scenario), changes)
    name, (said,) = read_variation(re.findall(r"--vary '(.*?)'", str(refused.value))[0])
    assert varied(read_scenario(scenario), {name: said}).topology == said, "what is said can be written so"


def test_the_order_of_variations_decides_nothing(scenario: Path) -> None:
    read = read_scenario(scenario)
    changes = {"degree": 3, "topology": "regular", "topology.seed": 0}
    for names in itertools.permutations(changes):
        assert varied(read, {name: changes[name] for name in names}).topology == {
            "kind": "regular", "degree": 3, "seed": 0,
        }  # fmt: skip


def test_whole_tables_are_varied(scenario: Path) -> None:
    """Ring or full or hierarchical is one sweep, although only one of them has clusters."""
    name, values = read_variation('topology=ring,{ kind = "hierarchical", clusters = 2 },full')
    cells = cells_of(read_scenario(scenario), {name: values}, [0], lambda scenario: "same")
    assert [cell.scenario.topology for cell in cells] == [
        {"kind": "ring"}, {"kind": "hierarchical", "clusters": 2}, {"kind": "full"},
    ]  # fmt: skip
    assert read_variation("profiles={ slow = 1, fast = [2, 3] },{}") == ("profiles", [{"slow": 1, "fast": [2, 3]}, {}])
    with pytest.raises(P2PFLError, match="give it a kind"):
        varied(read_scenario(scenario), {"topology": {"clusters": 2}})


def test_no_evaluated_sites_are_none(scenario: Path) -> None:
    scenario.write_text(SCENARIO + "[evaluate]\nsites = 0\n")
    assert read_scenario(scenario).evaluate.sites == "none"


@pytest.mark.parametrize(
    ("text", "wanted"), [("topology", "varies nothing"), ("peers=", "varies nothing"), ("peers=4,4", "twice")]
)
def test_variations_refused(text: str, wanted: str) -> None:
    with pytest.raises(P2PFLError, match=wanted):
        read_variation(text)


def test_a_cell_is_known_by_what_decides_its_numbers(scenario: Path, tmp_path: Path) -> None:
    read = read_scenario(scenario)
    (one,) = cells_of(read, {}, [0], lambda scenario: "inputs")
    values = read.model_dump()
    values["scenario"] |= {"name": "other", "description": "other words", "seeds": 9}
    (renamed,) = cells_of(type(read).model_validate(values), {}, [0], lambda scenario: "inputs")
    assert renamed.key == one.key
    for changes in ({"peers": 7}, {"learning_rate": 0.1}, {"alpha": 0.4}, {"topology": "full"}, {"rounds": 7}):
        (changed,) = cells_of(varied(read, changes), {}, [0], lambda scenario: "inputs")
        assert changed.key != one.key, changes
    assert cells_of(read, {}, [1], lambda scenario: "inputs")[0].key != one.key
    assert cells_of(read, {}, [0], lambda scenario: "other inputs")[0].key != one.key


UNEQUAL = """
[[steps]]
sites = 0.5
local_steps = 1

[[steps]]
sites = [0, 3]
local_steps = 5
"""


def test_tables_of_local_steps_come_through_a_scenario(scenario: Path) -> None:
    plain = read_scenario(scenario)
    scenario.write_text(SCENARIO + UNEQUAL)
    read, inputs = read_scenario(scenario), Inputs()
    assert [table.model_dump() for table in read.steps] == [
        {"sites": 0.5, "local_steps": 1}, {"sites": [0, 3], "local_steps": 5},
    ]  # fmt: skip
    assert type(read).model_validate(read.model_dump()) == read
    assert varied(read, {"local_steps": 4}).steps == read.steps
    (cell,) = cells_of(read, {}, [0], inputs.digest)
    drawn = set(chosen_sites("steps 0", 0.5, 6, 0))
    wanted = [5 if site in (0, 3) else 1 if site in drawn else 3 for site in range(6)]
    simulation = prepared(cell, inputs)
    assert simulation.each.tolist() == wanted and len(set(wanted)) == 3, "the later table wins; 3 is the plan's"
    keys = {cells_of(one, {}, [0], inputs.digest)[0].key for one in (plain, read, varied(plain, {"local_steps": 4}))}
    assert len(keys) == 3


def test_one_of_several_tables_is_not_varied(scenario: Path) -> None:
    scenario.write_text(SCENARIO + UNEQUAL)
    for name in ("steps.local_steps", "fault.size"):
        with pytest.raises(P2PFLError, match="there may be several"):
            varied(read_scenario(scenario), {name: 2})
