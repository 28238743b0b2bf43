"""What the verbs print: help with an example, JSON that is JSON, and names that stay names."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from cli_worlds import PLAN_PY, PLAN_TOML, do

from p2pfl.cli.app import app, run
from p2pfl.cli.output import show_table, to_json, visible
from p2pfl.cli.plan import _code
from p2pfl.crypto import Identity
from p2pfl.governance import charter_to_text, new_charter, record_from_text
from p2pfl.peer import init_home


def verbs(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if not hasattr(command, "commands"):
        yield path
        return
    for name, inner in command.commands.items():
        yield from verbs(inner, (*path, name))


VERBS = sorted(verbs(typer.main.get_command(app)))


def test_all_verbs_of_the_issue_are_there() -> None:
    known = {" ".join(verb) for verb in VERBS}
    wanted = (
        "init,up,status,result,demo,charter new,charter sign,charter merge,charter accept,charter show,data add,"
        "data list,plan check,plan propose,plan list,plan show,plan approve,audit verify,audit show,topology show"
    )
    assert set(wanted.split(",")) <= known


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_help_has_an_example_that_names_the_verb(verb: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    done = do(capsys, *verb, "--help")
    assert done.code == 0 and done.err == ""
    text = " ".join(done.out.split())
    assert f"Example: p2pfl {' '.join(verb)}" in text


def test_groups_without_a_verb_print_their_help(capsys: pytest.CaptureFixture[str]) -> None:
    for group in ([], ["plan"], ["charter"]):
        done = do(capsys, *group)
        assert done.code == 2 and "Usage: p2pfl" in done.err and done.out == ""


JSON_VERBS = [
    ("charter show mine.charter", dict),
    ("data list lille", list),
    ("data add lille --tag more more.csv", dict),
    ("plan check plan", dict),
    ("plan propose lille plan --dry-run", dict),
    ("topology show ring --sites 5", dict),
    ("topology show full --sites 1", dict),
    ("topology show regular --sites 6 --degree 3", dict),
    ("topology advise --peers 5 --degree 2", dict),
]


@pytest.mark.parametrize(("line", "kind"), JSON_VERBS, ids=[line for line, _ in JSON_VERBS])
def test_json_is_one_json_value(world: Path, capsys: pytest.CaptureFixture[str], line: str, kind: type) -> None:
    done = do(capsys, *line.split(), "--json")
    assert done.code == 0, done
    assert isinstance(strict(done.out), kind)


def strict(text: str) -> Any:
    """JSON as other programs read it: no NaN, and nothing after it."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_json_has_null_for_what_is_no_number() -> None:
    value = {"loss": float("nan"), "row": [float("inf"), 1.5], "pair": (float("-inf"), "x"), "path": Path("a")}
    assert strict(to_json(value)) == {"loss": None, "row": [None, 1.5], "pair": [None, "x"], "path": "a"}


HOSTILE = [
    ("plain", "plain"),
    ("Évreux-Saint-Étienne 東京 😀", "Évreux-Saint-Étienne 東京 😀"),
    ("[bold]Lille[/bold] [/nope] :heart:", "[bold]Lille[/bold] [/nope] :heart:"),
    ("a\x1b[2Jb", r"a\x1b[2Jb"),
    ("a\rb\nc\td", r"a\rb\nc\td"),
    ("a\x00\x07\x08b\x7f\x9b", r"a\x00\x07\x08b\x7f\x9b"),
    ("a\u202eb\u2066c\u200fd\u061c", r"a\u202eb\u2066c\u200fd\u061c"),  # bidirectional: Trojan Source, CVE-2021-42574
    ("a\u200bb\u200d\ufeff\u2060", r"a\u200bb\u200d\ufeff\u2060"),  # without width
    ("a\u2028b\u2029\u0085", r"a\u2028b\u2029\x85"),  # lines for some programs
    ("a\u3164b\u115f\ufe0f\u034f\U000e0101", r"a\u3164b\u115f\ufe0f\u034f\U000e0101"),  # drawn as nothing
    ("a\udc80b", r"a\udc80b"),  # a file name that is not UTF-8
    ("a\u00a0b", r"a\xa0b"),  # no Python space, and looks like one
]


@pytest.mark.parametrize(("text", "shown"), HOSTILE)
def test_visible(text: str, shown: str) -> None:
    assert visible(text) == shown
    shown.encode("utf-8")


@pytest.mark.parametrize("text", [text for text, _ in HOSTILE if "\udc80" not in text])
def test_a_table_keeps_foreign_text_as_it_is(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    show_table(None, False, ("tag", "file"), [(text, "last"), (None, 3)])
    lines = capsys.readouterr().out.split("\n")
    assert len(lines) == 4 and lines[1].startswith(visible(text)) and lines[1].endswith("  last")


@pytest.mark.parametrize("name", ["[bold]Lille[/bold]", "a[/nope]", ":heart: x[:b:]", "Évreux 東京"])
def test_hospitals_with_odd_names(
    name: str, world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = init_home(world / "odd", name=name, listen=None, passphrase=None)
    charter = new_charter(name, [record_from_text(text), record_from_text((world / "lille.record").read_text())])
    (world / "odd.charter").write_text(charter_to_text(charter))
    done = do(capsys, "charter", "show", "odd.charter")
    assert done.code == 0 and f"consortium   {name}" in done.out
    assert re.search(rf"member +{re.escape(name)} +NOT signed", done.out)
    assert strict(do(capsys, "charter", "show", "odd.charter", "--json").out)["name"] == name
    shown = do(capsys, "topology", "show", "ring", "--charter", "odd.charter")
    assert name in shown.out
    signed = do(capsys, "charter", "sign", "odd", "odd.charter")
    assert signed.code == 0 and signed.err == "p2pfl: still to sign: lille\n"


def test_errors_keep_foreign_text_as_it_is(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "[bold]no[/bold]\\x1b[2J\\u202e" in do(capsys, "charter", "show", "[bold]no[/bold]\x1b[2J\u202e").sentence()
    assert r"nonsense\x1b[2J" in do(capsys, "nonsense\x1b[2J").wrong_usage()


def test_an_unknown_fault_is_one_line_without_a_traceback(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fault(path: Path) -> None:
        raise RuntimeError("two\nlines")

    monkeypatch.setattr("p2pfl.cli.data.open_home", fault)
    done = do(capsys, "data", "list", "lille")
    assert done.code == 1 and done.err.count("\n") == 1 and "please report it" in done.err and done.out == ""


# --- the code of a proposal


def proposal(source: str, toml: str = PLAN_TOML, **topology: Any) -> dict[str, Any]:
    spec = {"kind": "ring", **topology}
    return {"run": "ab" * 32, "plan": "cd" * 32, "topology": spec, "plan.toml": toml, "plan.py": source}


def test_every_line_of_a_proposal_is_numbered_and_escaped() -> None:
    source = (
        "x = 1\r\ny = 2\n\tif a:\n" + "evil()  # \u202e gnihton seod siht\u2066\n" + "a = 1\rb = 2\n\x1b[1A\x1b[2Kok\n"
    )
    shown = [visible(line) for line in _code(proposal(source))]
    start = shown.index("plan.py, 6 lines:")
    assert shown[start + 1 : start + 7] == [
        "    1 | x = 1",
        "    2 | y = 2",
        "    3 |     if a:",
        r"    4 | evil()  # \u202e gnihton seod siht\u2066",
        r"    5 | a = 1\rb = 2",
        r"    6 | \x1b[1A\x1b[2Kok",
    ]
    assert shown[-1].startswith("note: 3 lines hold invisible or control characters")
    assert all(line.isprintable() for line in shown)


@pytest.mark.parametrize(
    ("topology", "says"),
    [
        ({}, "shares: each site counts with its share of all samples"),
        ({"kind": "star", "weights": "metropolis"}, "metropolis: each site counts alike, however many samples it has"),
        ({"weights": "uniform"}, "uniform: each site counts by its number of neighbours and one more, however many"),
        ({"weights": [[0, 1, 0.5, 0.25]]}, "listed: each site counts as the weights of the edges say"),
    ],
)
def test_who_is_asked_to_approve_reads_what_each_site_counts(topology: dict[str, Any], says: str) -> None:
    """Of the proposal's own topology, which may be another one than the plan's."""
    shown = _code(proposal(PLAN_PY, **topology))
    assert shown[2] == f"topology     {topology.get('kind', 'ring')}"
    assert shown[3].startswith(f"weights      {says}")
    assert not any(line.startswith("closing ") for line in shown)


def test_who_is_asked_to_approve_reads_how_the_run_closes() -> None:
    shown = _code(proposal(PLAN_PY, closing="chebyshev"))
    assert shown[4] == "closing      chebyshev: closing rounds are accelerated by Chebyshev's weights"


def test_a_proposer_cannot_write_our_own_lines() -> None:
    """Settings that end in what looks like a harmless plan.py, followed by the real one far below."""
    toml = PLAN_TOML + "# \n# plan.py, 1 lines:\n#    1 | x = 1\n" + "\n" * 500
    shown = _code(proposal(PLAN_PY, toml))
    assert [line for line in shown if re.match(r"plan\.(py|toml), ", line)] == [
        f"plan.toml, {toml.count(chr(10))} lines:",
        f"plan.py, {PLAN_PY.count(chr(10))} lines:",
    ]
    assert "note" not in shown[-1]


# --- pipes and encodings


def p2pfl(*arguments: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([sys.executable, "-m", "p2pfl", *arguments], timeout=60, **options)


@pytest.mark.parametrize(
    "line", ["topology show ring --sites 50", "topology show ring --json", "charter show mine.charter", "--help"]
)
def test_a_reader_that_has_gone(world: Path, line: str) -> None:
    """As in `p2pfl audit show HOME | head`: no traceback, not even Python's last words about a closed stream."""
    read, write = os.pipe()
    os.close(read)
    try:
        done = p2pfl(*line.split(), stdout=write, stderr=subprocess.PIPE)
    finally:
        os.close(write)
    assert done.returncode == 1
    assert done.stderr == b""


def test_output_to_a_full_device(world: Path) -> None:
    with open("/dev/full", "wb") as full:
        done = p2pfl("charter", "show", "mine.charter", stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 1 and done.stderr.startswith(b"p2pfl: error: ")
    assert b"No space left" in done.stderr and b"Traceback" not in done.stderr


def test_a_terminal_without_unicode(world: Path) -> None:
    text = init_home(world / "odd", name="Évreux 東京", listen=None, passphrase=None)
    charter = new_charter("n", [record_from_text(text), record_from_text((world / "lille.record").read_text())])
    (world / "odd.charter").write_text(charter_to_text(charter), encoding="utf-8")
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = p2pfl("charter", "show", "odd.charter", capture_output=True, env=environment)
    assert done.returncode == 0 and rb"\xc9vreux \u6771\u4eac" in done.stdout


def test_no_secret_in_what_is_printed(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    secret = "correct horse battery staple"
    (world / "p").write_text(secret + "\n")
    done = do(capsys, "init", "new", "--name", "a", "--no-listen", "--passphrase-file", "p")
    assert done.code == 0
    assert secret not in done.out + done.err
    wrong = do(capsys, "charter", "sign", "new", "mine.charter", "--passphrase-file", "toy.csv")
    assert wrong.code == 1 and secret not in wrong.err and "x,y" not in wrong.err


def test_the_record_is_all_that_init_prints(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`p2pfl init ... > lille.record` makes a file that `charter new` takes."""
    done = do(capsys, "init", "new", "--name", "neu", "--no-listen", "--bare")
    assert record_from_text(done.out) and done.out == (world / "new" / "member.record").read_text()


def test_run_is_quiet_about_identities(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    assert Identity.from_seed(bytes(32)).seed.hex() not in repr(Identity.from_seed(bytes(32)))


def test_interrupted_while_the_modules_load(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import builtins

    from p2pfl.cli import main

    real = builtins.__import__

    def interrupted(name: str, *rest: Any, **options: Any) -> Any:
        if name == "p2pfl.cli.app":
            raise KeyboardInterrupt
        return real(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", interrupted)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 130 and capsys.readouterr().err == ""
