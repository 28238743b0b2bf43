"""`p2pfl topology advise` and `topology show --plot`: what they print and write."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from cli_worlds import do

from p2pfl.governance import parse_charter
from p2pfl.topology import build_graph, chebyshev_factors
from p2pfl.types import PeerId


def test_advice_is_a_table_a_reason_and_a_line_for_the_plan(capsys: pytest.CaptureFixture[str]) -> None:
    done = do(capsys, "topology", "advise", "--peers", "12", "--degree", "3")
    assert done.code == 0 and done.err == ""
    lines = done.out.splitlines()
    assert lines[0].split("  ")[0] == "graph"
    assert [line.split("  ")[0].split(",")[0] for line in lines[1:5]] == ["regular", "hierarchical", "ring", "chain"]
    assert "split in 54 of 66" in lines[3] and "split in 10 of 12" in lines[4]
    assert lines[6].startswith("Take regular, degree 3") and lines[6].endswith(".")
    assert lines[7].startswith('topology = {kind = "regular", degree = 3, seed = ')


def test_advice_as_json_has_a_spec_that_can_be_used(capsys: pytest.CaptureFixture[str]) -> None:
    done = do(capsys, "topology", "advise", "--peers", "10", "--degree", "4", "--gamma", "0.9", "--json")
    value = json.loads(done.out)
    assert value["gamma"] == 0.9 and value["recommended"] == value["candidates"][0]["spec"]
    nodes = [PeerId(str(place)) for place in range(10)]
    for candidate in value["candidates"]:
        graph = build_graph(candidate["spec"], nodes)
        assert max(degree for _, degree in graph.degree) == candidate["degree"] <= 4
        assert candidate["one_absent"]["sets"] == 10 and candidate["two_absent"]["sets"] == 45


def test_show_draws_the_graph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib", reason="drawing needs the extra sim")
    monkeypatch.chdir(tmp_path)
    for kind in (
        ["regular", "--degree", "3", "--sites", "8"],
        ["torus", "--rows", "2", "--columns", "3", "--sites", "6"],
    ):
        done = do(capsys, "topology", "show", *kind, "--plot", "g.svg")
        assert done.code == 0 and "drawn into g.svg" in done.out
        first = Path("g.svg").read_text()
        assert first.startswith("<?xml") and "site-5" not in done.err
        do(capsys, "topology", "show", *kind, "--plot", "g.svg")
        assert Path("g.svg").read_text() == first


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["base", "--sites", "25", "--k", "2"], "exactly nothing after: 6 rounds"),
        (["epidemic", "--sites", "10", "--degree", "3", "--rounds", "40"], "(mean over 40 rounds)"),
        (["matching", "--sites", "6"], "sites 6, edges 15, "),
        (["hierarchical", "--sites", "6", "--clusters", "2", "--period", "3"], "sites 6, edges 9"),
        (["erdos_renyi", "--sites", "6", "--probability", "1"], "spectral gap 1.000000"),
        (["small_world", "--sites", "9", "--degree", "4", "--probability", "0.1"], "sites 9, edges 18"),
        (["two_clusters", "--sites", "8", "--bridges", "2"], "sites 8, edges 14"),
        (["tree", "--sites", "7", "--arity", "2"], "sites 7, edges 6"),
        (["double_tree", "--sites", "9"], "exactly nothing after: never"),
        (["exponential", "--sites", "8"], "disagreement is 1 % after: 3 rounds; exactly nothing after: 3 rounds"),
        (["exponential", "--sites", "8", "--hops", "all"], "sites 8, edges 20, spectral gap 0.622036 (mean over 100"),
        (["exponential", "--sites", "6"], "exactly nothing after: never"),
        (["epidemic", "--sites", "9", "--degree", "2", "--choice", "local"], "gap and rounds are of what the rule sgp"),
    ],
)
def test_show_knows_every_kind(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    done = do(capsys, "topology", "show", *arguments)
    assert done.code == 0 and says in done.out


def test_show_refuses_unknown_words_of_directed_kinds(capsys: pytest.CaptureFixture[str]) -> None:
    done = do(capsys, "topology", "show", "exponential", "--hops", "two")
    assert done.code != 0 and "hops is 'two'; give one or all" in done.err
    value = json.loads(do(capsys, "topology", "show", "exponential", "--sites", "4", "--json").out)
    assert value["directed"] is True and value["weights"][1] == [0.5, 0.5, 0.0, 0.0]
    assert json.loads(do(capsys, "topology", "show", "ring", "--json").out)["directed"] is False


def test_show_reads_graph_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("g.edges").write_text("lille paris\nparis lyon\nlyon lille\nlyon brest\n")
    done = do(capsys, "topology", "show", "g.edges", "--json")
    value = json.loads(done.out)
    assert value["sites"] == ["lille", "paris", "lyon", "brest"] and len(value["edges"]) == 4
    assert value["disconnecting"] == [["lyon"]] and value["exact_after"] is None
    wrong = do(capsys, "topology", "show", "g.edges", "--sites", "4")
    assert wrong.code != 0 and "neither a site nor a position" in wrong.err
    Path("g.graphml").write_text("<!DOCTYPE a><graphml/>")
    refused = do(capsys, "topology", "show", "g.graphml")
    assert refused.code != 0 and "declares a document type" in refused.err


def three_records(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Three homes in this folder; the files with their records."""
    for name in ("lille", "caen", "rouen"):
        made = do(capsys, "init", name, "--name", name, "--no-listen", "--bare")
        Path(f"{name}.record").write_text(made.out)
    return ["lille.record", "caen.record", "rouen.record"]


def test_a_charters_default_graph_may_come_from_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    records = three_records(capsys)
    Path("g.edges").write_text("rouen lille\nrouen caen\n")
    done = do(capsys, "charter", "new", "--name", "north", "-o", "charter", *records, "--topology", "g.edges")
    assert done.code == 0, done.err
    assert parse_charter(Path("charter").read_text()).topology == {"kind": "edges", "edges": [[0, 2], [1, 2]]}
    Path("g.edges").write_text("rouen lille\nrouen brest\n")
    wrong = do(capsys, "charter", "new", "--name", "north", "-o", "other", *records, "--topology", "g.edges")
    assert wrong.code != 0 and "names 'brest'" in wrong.err and not Path("other").exists()


@pytest.mark.parametrize(
    ("weights", "first", "counts", "means"),
    [
        ([], "site-0 0.4000, site-1 0.3000, site-2 0.2000, site-3 0.1000", [0.4, 0.3, 0.2, 0.1], "shares: "),
        (
            ["--weights", "shares"],
            "site-0 0.4000, site-1 0.3000",
            [0.4, 0.3, 0.2, 0.1],
            "with its share of all samples",
        ),
        (["--weights", "metropolis"], "site-0 0.2500, site-1 0.2500", [0.25] * 4, "metropolis: each site counts alike"),
        (["--weights", "uniform"], "site-0 0.2500, site-1 0.2500", [0.4, 0.2, 0.2, 0.2], "its number of neighbours"),
    ],
)
def test_show_tells_the_weights_and_what_each_counts(
    weights: list[str], first: str, counts: list[float], means: str, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["topology", "show", "star", "--shares", "40,30,20,10", *weights]
    lines = do(capsys, *asked).out.splitlines()
    assert lines[1].split(maxsplit=1)[1].startswith(first)
    (said,) = [line for line in lines if line.startswith("weights by ")]
    assert means in said
    (each,) = [line for line in lines if line.startswith("each counts ")]
    assert each == "each counts " + ", ".join(f"site-{k} {part:.4f}" for k, part in enumerate(counts))
    value = json.loads(do(capsys, *asked, "--json").out)
    assert value["counts"] == pytest.approx(counts, abs=1e-15)
    assert sum(a * row[1] for a, row in zip(value["counts"], value["weights"], strict=True)) == pytest.approx(counts[1])


def test_show_takes_listed_weights_from_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = {"kind": "chain", "weights": [[0, 1, 0.5, 0.25], [1, 2, 0.25, 0.5]]}
    (tmp_path / "chain.json").write_text(json.dumps(spec))
    done = do(capsys, "topology", "show", str(tmp_path / "chain.json"), "--sites", "3")
    assert "each counts site-0 0.2500, site-1 0.5000, site-2 0.2500" in done.out and "listed: " in done.out
    spec["weights"] = spec["weights"][:1]  # type: ignore[index]
    (tmp_path / "chain.json").write_text(json.dumps(spec))
    wrong = do(capsys, "topology", "show", str(tmp_path / "chain.json"), "--sites", "3")
    assert wrong.code != 0 and "leave out the edge [1, 2]" in wrong.err
    unknown = do(capsys, "topology", "show", "ring", "--weights", "degree")
    assert unknown.code != 0 and "give shares, metropolis, uniform" in unknown.err


def test_a_charter_says_what_its_weights_mean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    new = ["charter", "new", "--name", "north", *three_records(capsys)]
    assert do(capsys, *new, "-o", "plain").code == 0
    assert do(capsys, *new, "-o", "alike", "--topology", "star", "--weights", "metropolis").code == 0
    assert parse_charter(Path("plain").read_text()).topology == {"kind": "ring"}
    assert "weights" not in Path("plain").read_text()
    assert parse_charter(Path("alike").read_text()).topology == {"kind": "star", "weights": "metropolis"}
    assert "# weights: metropolis: each site counts alike, however many samples it has" in Path("alike").read_text()
    assert "weights      shares: each site counts with its share" in do(capsys, "charter", "show", "plain").out
    assert "weights      metropolis: each site counts alike" in do(capsys, "charter", "show", "alike").out
    assert "closing" not in Path("plain").read_text() + do(capsys, "charter", "show", "plain").out
    assert do(capsys, *new, "-o", "fast", "--closing", "chebyshev").code == 0
    assert "# closing: chebyshev: closing rounds are accelerated" in Path("fast").read_text()
    assert "closing      chebyshev: closing rounds are accelerated" in do(capsys, "charter", "show", "fast").out
    wrong = do(capsys, *new, "-o", "other", "--closing", "fast")
    assert wrong.code != 0 and "topology closing is 'fast'; write one of plain, chebyshev" in wrong.err
    wrong = do(capsys, *new, "-o", "other", "--weights", "degree")
    assert wrong.code != 0 and "topology weights is 'degree'; write shares, metropolis, uniform" in wrong.err


def test_show_says_how_far_closing_rounds_level(capsys: pytest.CaptureFixture[str]) -> None:
    rho = (1 + 2 * math.cos(math.pi / 6)) / 3  # of a ring of 12
    plain, fast = rho**13, chebyshev_factors(rho, 13)[-1]
    ring = ("topology", "show", "ring", "--sites", "12", "--closing-rounds", "13")
    told = json.loads(do(capsys, *ring, "--json").out)["closing"]
    assert told["leaves"] == {"plain": pytest.approx(plain, rel=1e-9), "chebyshev": pytest.approx(fast, rel=1e-3)}
    left = told["leaves"]["chebyshev"]
    says = f'13 rounds of plain closing leave at most {plain:.3g} of the disagreement; {left:.3g} with closing = "chebyshev"'
    assert says in do(capsys, *ring).out and left < 0.01
    done = do(capsys, "topology", "show", "ring", "--sites", "12", "--closing", "chebyshev", "--json")
    told = json.loads(done.out)["closing"]
    assert told["as"] == "chebyshev" and told["rounds"] == 5 and told["leaves"]["chebyshev"] < told["leaves"]["plain"]
    done = do(capsys, "topology", "show", "base", "--sites", "6", "--k", "1")
    assert "5 rounds of plain closing leave at most" in done.out and "chebyshev" not in done.out
    done = do(capsys, "topology", "show", "base", "--sites", "6", "--k", "1", "--closing", "chebyshev")
    assert done.code != 0 and 'give closing = "plain" or another kind' in done.err


def test_a_model_that_walks_has_no_gap(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is to be agreed on while it is with one site; a gap of the matrices would say how they lose it."""
    shown = do(capsys, "topology", "show", "cyclic", "--sites", "6", "--closing-rounds", "3")
    assert shown.code == 0 and "one model walks: no spectral gap" in shown.out
    assert "the model has come to each site after: 6 rounds" in shown.out
    assert "3 rounds of closing: the first gives the model to all" in shown.out and "never" not in shown.out
    value = json.loads(do(capsys, "topology", "show", "cyclic", "--sites", "6", "--json").out)
    assert value["walks"] and value["spectral_gap"] is value["rounds_to_consensus"] is value["exact_after"] is None
    assert value["closing"]["leaves"] == {"plain": 0.0}
