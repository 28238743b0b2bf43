"""Bad input in every place where people type: one clear sentence, exit code 1, nothing lost, nothing half-made."""

from __future__ import annotations

import importlib
import os
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_worlds import DATA, PLAN_PY, PLAN_TOML, build_world, do, full_disk, snapshot, told

Prepare = Callable[[Path], Any]


def text(name: str, content: str | bytes) -> Prepare:
    """Write a file of the world."""

    def prepare(world: Path) -> None:
        (world / name).parent.mkdir(parents=True, exist_ok=True)
        (world / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return prepare


def change(name: str, old: str, new: str) -> Prepare:
    """Replace text in a file of the world; it must be there."""

    def prepare(world: Path) -> None:
        before = (world / name).read_text()
        assert old in before
        (world / name).write_text(before.replace(old, new))

    return prepare


def cut(name: str, share: float) -> Prepare:
    """Keep the first part of a file."""

    def prepare(world: Path) -> None:
        data = (world / name).read_bytes()
        (world / name).write_bytes(data[: int(len(data) * share)])

    return prepare


def forge(name: str) -> Prepare:
    """Change one letter of the last signature in a charter file."""

    def prepare(world: Path) -> None:
        lines = (world / name).read_text().splitlines()
        place = max(number for number, line in enumerate(lines) if line.startswith("signature "))
        word = lines[place].split()
        letter = "A" if word[2][10] != "A" else "B"
        word[2] = word[2][:10] + letter + word[2][11:]
        lines[place] = " ".join(word)
        (world / name).write_text("\n".join(lines) + "\n")

    return prepare


def foreign(name: str) -> Prepare:
    """Say that the last signature is the stranger's."""

    def prepare(world: Path) -> None:
        stranger = re.search(r"12D3Koo\w+", (world / "stranger.record").read_text())
        assert stranger is not None
        lines = (world / name).read_text().splitlines()
        place = max(number for number, line in enumerate(lines) if line.startswith("signature "))
        word = lines[place].split()
        word[1] = stranger.group()
        lines[place] = " ".join(word)
        (world / name).write_text("\n".join(lines) + "\n")

    return prepare


def moded(name: str, mode: int) -> Prepare:
    return lambda world: (world / name).chmod(mode)


def gone(name: str) -> Prepare:
    return lambda world: (world / name).unlink()


def pipe(name: str) -> Prepare:
    return lambda world: os.mkfifo(world / name)


def steps(*prepares: Prepare) -> Prepare:
    def prepare(world: Path) -> None:
        for one in prepares:
            one(world)

    return prepare


def nothing(world: Path) -> None:
    """The pristine world."""


LONG = "x" * 300

CHARTER = [
    ("sign missing", nothing, "charter sign lille nowhere", "couldn't read nowhere: No such file"),
    ("sign folder", nothing, "charter sign lille plan", "couldn't read plan: Is a directory"),
    ("sign empty", text("c", ""), "charter sign lille c", "charter file"),
    ("sign binary", text("c", bytes(range(256))), "charter sign lille c", "not a text file"),
    ("sign random text", text("c", "hello\nworld\n"), "charter sign lille c", "charter file"),
    ("sign a record", nothing, "charter sign lille lille.record", "charter file"),
    ("sign too large", text("c", "x" * (5 * 2**20)), "charter sign lille c", "larger than"),
    ("sign truncated", cut("mine.charter", 0.5), "charter sign rouen mine.charter", "charter"),
    ("sign truncated by a line", cut("mine.charter", 0.98), "charter sign rouen mine.charter", "charter"),
    ("sign by no member", nothing, "charter sign stranger fresh.charter", "not .*member"),
    ("sign with no home", nothing, "charter sign plan fresh.charter", "plan is no p2pfl home"),
    ("sign forged", forge("mine.charter"), "charter sign rouen mine.charter", "signature"),
    ("sign into other", nothing, "charter sign lille fresh.charter -o other.charter", "another charter"),
    ("show missing", nothing, "charter show nowhere", "couldn't read nowhere"),
    ("merge different", nothing, "charter merge mine.charter other.charter -o all", "different|differ|another"),
    ("merge into other", nothing, "charter merge mine.charter fresh.charter -o other.charter", "another charter"),
    ("merge into no charter", nothing, "charter merge mine.charter fresh.charter -o toy.csv", "toy.csv exists"),
    ("merge loses", nothing, "charter merge fresh.charter -o mine.charter", "signatures that would be lost"),
    ("accept no fingerprint", nothing, "charter accept rouen signed.charter", "give --fingerprint"),
    ("accept wrong fingerprint", nothing, "charter accept rouen signed.charter --fingerprint 1a2b", "fingerprint"),
    ("accept empty fingerprint", nothing, "charter accept rouen signed.charter --fingerprint ''", "fingerprint"),
    ("accept unsigned", nothing, "charter accept rouen fresh.charter --fingerprint FRESH", "lille, rouen"),
    ("accept half signed", nothing, "charter accept rouen mine.charter --fingerprint FRESH", "signature of rouen"),
    (
        "accept forged",
        forge("signed.charter"),
        "charter accept rouen signed.charter --fingerprint FRESH",
        "signature",
    ),
    (
        "accept foreign signature",
        foreign("signed.charter"),
        "charter accept rouen signed.charter --fingerprint FRESH",
        "not .*member|signature",
    ),
    ("accept by no member", nothing, "charter accept stranger signed.charter --fingerprint FRESH", "not among"),
    ("accept another", nothing, "charter accept lille other.charter --fingerprint OTHER", "already accepted"),
    (
        "accept over damaged",
        cut("lille/charter", 0.7),
        "charter accept lille signed.charter --fingerprint FRESH",
        "damaged",
    ),
    ("new one record", nothing, "charter new --name n -o c lille.record", "needs 2"),
    ("new twice the same", nothing, "charter new --name n -o c lille.record lille.record", "twice"),
    ("new missing record", nothing, "charter new --name n -o c lille.record nowhere", "couldn't read nowhere"),
    (
        "new damaged record",
        cut("rouen.record", 0.6),
        "charter new --name n -o c lille.record rouen.record",
        "record",
    ),
    ("new moon", nothing, "charter new --name n -o c lille.record rouen.record --topology moon", "moon.*ring"),
    (
        "new clusters",
        nothing,
        "charter new --name n -o c lille.record rouen.record --topology hierarchical --clusters 9",
        "cluster",
    ),
    (
        "new clusters missing",
        nothing,
        "charter new --name n -o c lille.record rouen.record --topology hierarchical",
        "clusters",
    ),
    (
        "new clusters for ring",
        nothing,
        "charter new --name n -o c lille.record rouen.record --clusters 2",
        "clusters",
    ),
    ("new quorum low", nothing, "charter new --name n -o c lille.record rouen.record --quorum 1", "quorum"),
    ("new quorum high", nothing, "charter new --name n -o c lille.record rouen.record --quorum 3", "quorum"),
    ("new empty name", nothing, "charter new --name '' -o c lille.record rouen.record", "name"),
    ("new over other", nothing, "charter new --name n -o other.charter lille.record rouen.record", "another charter"),
    ("new into nowhere", nothing, "charter new --name n -o no/c lille.record rouen.record", "couldn't write no/c"),
    ("new into folder", nothing, "charter new --name n -o plan lille.record rouen.record", "couldn't write plan"),
]

HOME = [
    ("init over home", nothing, "init lille --name a --no-listen --bare", "already exists and is not empty"),
    ("init over folder", nothing, "init plan --name a --no-listen --bare", "already exists and is not empty"),
    ("init over file", nothing, "init toy.csv --name a --no-listen --bare", "already exists"),
    ("init under file", nothing, "init toy.csv/home --name a --no-listen --bare", "toy.csv/home: Not a directory"),
    ("init long path", nothing, f"init {LONG} --name a --no-listen --bare", "File name too long"),
    ("init no address", nothing, "init new --name a --bare", "either --listen"),
    ("init both", nothing, "init new --name a --bare --no-listen --listen /ip4/1.2.3.4/tcp/1", "either --listen"),
    ("init address words", nothing, "init new --name a --bare --listen here:80", "is not of the form"),
    ("init address host", nothing, "init new --name a --bare --listen /ip4/1.2.3/tcp/1", "not an ip4 address"),
    ("init address port", nothing, "init new --name a --bare --listen /ip4/1.2.3.4/tcp/99999", "not a port"),
    ("init address udp", nothing, "init new --name a --bare --listen /ip4/1.2.3.4/udp/99", "is not of the form"),
    ("init discover", nothing, "init new --name a --bare --no-listen --discover eth0", "IPv4 address"),
    ("init long name", nothing, f"init new --name {LONG} --no-listen --bare", "name"),
    ("init empty name", nothing, "init new --name '' --no-listen --bare", "name"),
    ("init name escapes", nothing, "init new --name 'a\x1b[2Jb' --no-listen --bare", "name"),
    ("init name bidi", nothing, "init new --name 'a\u202eb' --no-listen --bare", "name"),
    ("init no passphrase", nothing, "init new --name a --no-listen", "no terminal.*--passphrase-file"),
    ("init empty passphrase", text("p", "\n"), "init new --name a --no-listen --passphrase-file p", "p is empty"),
    ("init passphrase gone", nothing, "init new --name a --no-listen --passphrase-file no", "couldn't read no"),
    (
        "init bare and passphrase",
        text("p", "secret\n"),
        "init new --name a --no-listen --bare --passphrase-file p",
        "either --bare or",
    ),
    ("up no home", nothing, "up plan", "plan is no p2pfl home"),
    ("up nowhere", nothing, "up nowhere", "nowhere is no p2pfl home; make one with `p2pfl init nowhere"),
    ("up file", nothing, "up toy.csv", "toy.csv is no p2pfl home"),
    ("up no charter", nothing, "up rouen", "no charter accepted yet"),
    (
        "up not a member",
        lambda world: (world / "stranger" / "charter").write_text((world / "signed.charter").read_text()),
        "up stranger",
        "does not name this peer",
    ),
    ("up charter damaged", cut("lille/charter", 0.6), "up lille", "charter"),
    ("up broken TOML", text("lille/home.toml", "name = [\n"), "up lille", "home.toml is not valid TOML"),
    ("up nested TOML", text("lille/home.toml", "a=" + "[" * 9999), "up lille", "home.toml is not valid TOML"),
    ("up binary TOML", text("lille/home.toml", b"\xff\xfe\x00"), "up lille", "home.toml is not a text file"),
    ("up unknown key", text("lille/home.toml", 'name="lille"\nport=1\n'), "up lille", "port.*mend"),
    ("up no name", text("lille/home.toml", ""), "up lille", "name.*mend"),
    ("up wrong type", text("lille/home.toml", "name = 3\n"), "up lille", "name.*mend"),
    ("up bad address", text("lille/home.toml", 'name="l"\nlisten="x"\n'), "up lille", "not of the form"),
    ("up bad interface", text("lille/home.toml", 'name="l"\ndiscover="lo"\n'), "up lille", "IPv4 address"),
    ("up no key", gone("lille/identity.key"), "up lille", "identity.key"),
    ("up open key", moded("lille/identity.key", 0o644), "up lille", "chmod 600"),
    ("up damaged key", cut("lille/identity.key", 0.5), "up lille", "damaged"),
    ("up foreign key", text("lille/identity.key", "hello"), "up lille", "not a p2pfl key file|mode"),
    ("up no tls key", gone("lille/tls.key"), "up lille", "tls.key"),
    ("up damaged tls key", text("lille/tls.key", "-----BEGIN\n"), "up lille", "certificate|key"),
    ("up no record", gone("lille/member.record"), "up lille", "no member.record"),
    ("up binary record", text("lille/member.record", b"\xff\x00"), "up lille", "not a text file"),
    ("up damaged record", cut("lille/member.record", 0.5), "up lille", "record"),
    ("up sealed, no terminal", nothing, "up sealed", "no terminal.*P2PFL_PASSPHRASE"),
    ("up wrong passphrase", text("p", "wrong\n"), "up sealed --passphrase-file p", "passphrase"),
    ("up damaged log", text("lille/audit.db", "not a database, but long enough to look at" * 99), "up lille", "audit"),
    ("up socket is a file", text("lille/control.sock", "x"), "up lille", "control.sock is not a socket"),
    ("status no home", nothing, "status plan", "plan is no p2pfl home"),
    ("status no peer", nothing, "status lille", "no peer is running on lille; start it with `p2pfl up lille`"),
    ("list no peer", nothing, "plan list lille", "no peer is running"),
    ("show no peer", nothing, "plan show lille 12", "no peer is running"),
    ("approve no peer", nothing, "plan approve lille 12 --yes", "no peer is running"),
    ("follow no peer", nothing, "plan follow lille 12", "no peer is running"),
    ("pause no peer", nothing, "plan pause lille 12", "no peer is running"),
    ("resume no peer", nothing, "plan resume lille 12", "no peer is running"),
    ("pause all, no peer", nothing, "plan pause lille 12 --everybody", "no peer is running"),
    ("pause own part from a round", nothing, "plan pause lille 12 --from-round 3", "give --everybody too"),
    ("stop no terminal", nothing, "plan stop lille 12", "a stop is final.*--yes"),
    ("stop no peer", nothing, "plan stop lille 12 --yes", "no peer is running"),
    ("change no peer", nothing, "plan change lille 12 learning_rate=0.1", "no peer is running"),
    ("change no value", nothing, "plan change lille 12 learning_rate", "not an argument and its value"),
    ("change no number", nothing, "plan change lille 12 learning_rate=nan", "not an argument and its value"),
    ("change twice", nothing, "plan change lille 12 a=1 a=2", "given twice"),
    ("change no name", nothing, "plan change lille 12 =3", "not an argument and its value"),
    ("propose no peer", nothing, "plan propose lille plan", "no peer is running"),
    ("result no run", nothing, "result lille -o m", "no run is known in lille"),
    ("result unknown run", nothing, "result lille -o m --run ffff", "no run begins with 'ffff'"),
    ("result up and out", nothing, "result lille -o m --run ../..", "no run begins with"),
    ("result not over", text("lille/runs/abcdef/proposal", "x"), "result lille -o m", "not over yet"),
    (
        "result ambiguous",
        steps(text("lille/runs/abcd/proposal", "x"), text("lille/runs/abce/proposal", "x")),
        "result lille -o m --run abc",
        "2 runs begin with 'abc'",
    ),
    (
        "result damaged report",
        steps(text("lille/runs/abcd/proposal", "x"), text("lille/runs/abcd/report.json", "{")),
        "result lille -o m",
        "damaged",
    ),
    (
        "result short report",
        steps(text("lille/runs/abcd/proposal", "x"), text("lille/runs/abcd/report.json", "{}")),
        "result lille -o m",
        "damaged",
    ),
    ("audit no home", nothing, "audit verify plan", "plan is no p2pfl home"),
    ("audit no log", nothing, "audit verify lille", "audit"),
    ("audit show no log", nothing, "audit show lille", "audit"),
    ("audit show no database", nothing, "audit show toy.csv", "toy.csv"),
    ("audit show kind", nothing, "audit show lille --kind nonsense", "the kinds are .*mixed"),
    ("audit erase nothing", nothing, "audit erase lille", "say what to erase"),
    ("audit erase two things", nothing, "audit erase lille 3 --all", "say what to erase"),
    ("audit erase no log", nothing, "audit erase lille --all", "there is no audit log"),
    ("audit export no log", nothing, "audit export lille", "there is no audit log"),
    ("audit export no database", nothing, "audit export toy.csv", "toy.csv"),
    ("audit reconcile no database", nothing, "audit reconcile toy.csv lille", "toy.csv"),
    ("audit lineage no log", nothing, "audit lineage abcd lille", "there is no audit log"),
    (
        "audit verify cut export",
        text("cut.jsonl", '{"p2pfl_audit_export": 1, "log": "x"'),
        "audit reconcile cut.jsonl",
        "cut off",
    ),
    ("audit show from", nothing, "audit show lille --from -1", "--from must be 0 or more"),
]

DATA_CASES = [
    ("missing", nothing, "data add lille --tag t nowhere.csv", "there is no file .*nowhere.csv"),
    ("folder", nothing, "data add lille --tag t plan", "is a folder"),
    ("pipe", pipe("p.csv"), "data add lille --tag t p.csv", "not a regular file"),
    ("empty", text("e.csv", ""), "data add lille --tag t e.csv", "is empty"),
    ("header only", text("e.csv", "a,b\n"), "data add lille --tag t e.csv", "no records"),
    ("no header", text("e.csv", "1,2\n3,4\n"), "data add lille --tag t e.csv", "header"),
    ("ragged", text("e.csv", "a,b\n1,2\n3\n"), "data add lille --tag t e.csv", "line 3 has 1 values"),
    ("binary", text("e.csv", bytes(range(256)) * 4), "data add lille --tag t e.csv", "not a text file|UTF-8|zero"),
    ("latin 1", text("e.csv", "näme,b\n1,2\n".encode("latin-1")), "data add lille --tag t e.csv", "UTF-8"),
    ("bad tag", nothing, "data add lille --tag 'My Data' toy.csv", "is not a tag"),
    ("tag in use", nothing, "data add lille --tag toy more.csv", "already stands for"),
    ("no home", nothing, "data add plan --tag t toy.csv", "no p2pfl home"),
    ("registry damaged", text("lille/data.json", "{"), "data list lille", "data.json is damaged"),
    ("registry damaged, add", text("lille/data.json", "[]"), "data add lille --tag t toy.csv", "damaged"),
]

PLAN_CASES = [
    ("no folder", nothing, "plan check nowhere", "nowhere is not a folder"),
    ("a file", nothing, "plan check toy.csv", "toy.csv is not a folder"),
    ("no code", gone("plan/plan.py"), "plan check plan", "plan.py"),
    ("no settings", gone("plan/plan.toml"), "plan check plan", "plan.toml"),
    ("code is a pipe", steps(gone("plan/plan.py"), pipe("plan/plan.py")), "plan check plan", "not a regular file"),
    ("broken TOML", text("plan/plan.toml", "[plan\n"), "plan check plan", "plan.toml is not valid TOML"),
    ("binary TOML", text("plan/plan.toml", b"\xff\x00"), "plan check plan", "plan.toml"),
    ("unknown table", text("plan/plan.toml", PLAN_TOML + "[more]\n"), "plan check plan", "more is not a known key"),
    ("unknown key", change("plan/plan.toml", "local_steps", "steps"), "plan check plan", "steps|local_steps"),
    ("unknown rule", change("plan/plan.toml", "dpsgd", "fedavg"), "plan check plan", "rule is 'fedavg'.*'dpsgd'"),
    ("wrong type", change("plan/plan.toml", "rounds = 3", 'rounds = "3"'), "plan check plan", "whole number"),
    ("no rounds", change("plan/plan.toml", "rounds = 3", "rounds = 0"), "plan check plan", "1 or more"),
    ("bad rate", change("plan/plan.toml", "0.1", "nan"), "plan check plan", "learning_rate"),
    ("bad tag", change("plan/plan.toml", 'tag = "toy"', 'tag = "../x"'), "plan check plan", "data.tag"),
    (
        "unknown topology",
        change("plan/plan.toml", "[training]", '[topology]\nkind = "moon"\n[training]'),
        "plan check plan",
        "moon",
    ),
    ("syntax error", text("plan/plan.py", "def model(:\n"), "plan check plan", "plan.py, line 1 is not Python"),
    ("no model", change("plan/plan.py", "def model", "def modell"), "plan check plan", "no function model"),
    ("binary code", text("plan/plan.py", b"\xff\xfe"), "plan check plan", "not UTF-8"),
    ("propose broken", text("plan/plan.py", "("), "plan propose lille plan", "not Python"),
    ("no such tag", change("plan/plan.toml", '"toy"\n\n[tr', '"x"\n\n[tr'), "plan check plan --home lille", "tag x"),
    ("changed data", text("toy.csv", DATA + "1,1\n"), "plan check plan --home lille", "has changed since"),
    ("data gone", gone("toy.csv"), "plan check plan --home lille", "there is no file .*toy.csv"),
    ("no such home", nothing, "plan check plan --home plan", "no p2pfl home"),
]

TOPOLOGY = [
    ("unknown", nothing, "topology show moon", "moon.*ring"),
    ("clusters", nothing, "topology show hierarchical --sites 4 --clusters 9", "cluster"),
    ("no clusters", nothing, "topology show hierarchical --sites 4", "clusters"),
    ("one site", nothing, "topology show ring --sites 1 --shares 1,2", "sample counts"),
    ("words", nothing, "topology show ring --shares a,b", "sample counts"),
    ("zero", nothing, "topology show ring --shares 1,0,2", "positive"),
    ("not a number", nothing, "topology show ring --shares 1,nan,2", "positive"),
    ("infinite", nothing, "topology show ring --shares 1,inf,2", "positive"),
    ("other number", nothing, "topology show ring --sites 3 --shares 1,2", "2 sample counts for 3 sites"),
    (
        "graph of others",
        text("g.edges", "lille brest\n"),
        "plan propose lille plan --topology g.edges",
        "names 'brest'",
    ),
    ("no graph file", nothing, "plan propose lille plan --topology nowhere.graphml", "couldn't read nowhere.graphml"),
    ("directed", text("g.edges", "a b\nb a\n"), "topology show g.edges", "again"),
    ("no file", nothing, "topology show nowhere.json", "couldn't read nowhere.json"),
    ("broken JSON", text("g.json", "{"), "topology show g.json", "not valid JSON"),
    ("nested JSON", text("g.json", "[" * 99999), "topology show g.json", "not valid JSON"),
    ("list", text("g.json", "[1]"), "topology show g.json", "must hold a spec"),
    (
        "disconnected",
        text("g.json", '{"kind": "edges", "edges": [[0, 1], [2, 3]]}'),
        "topology show g.json --sites 4",
        "connect",
    ),
    ("bad charter", nothing, "topology show ring --charter toy.csv", "charter"),
    ("regular without a degree", nothing, "topology show regular --sites 6", "give it exactly degree, kind, seed"),
    ("odd", nothing, "topology show regular --sites 5 --degree 3", "every edge has two ends"),
    ("a torus of other size", nothing, "topology show torus --sites 5 --rows 2 --columns 2", "has 4 sites, not 5"),
    ("no hypercube", nothing, "topology show hypercube --sites 6", "not 6"),
    ("a star with rows", nothing, "topology show star --sites 6 --rows 2", "give it exactly kind"),
    ("plot nowhere", nothing, "topology show star --plot nowhere/g.svg", "couldn't write nowhere"),
    ("no peers", nothing, "topology advise --peers 0 --degree 1", "2 to 1000 peers, not 0"),
    ("one peer", nothing, "topology advise --peers 1 --degree 1", "2 to 1000 peers, not 1"),
    ("too many", nothing, "topology advise --peers 1001 --degree 3", "not 1001"),
    ("no neighbours", nothing, "topology advise --peers 4 --degree 0", "1 to 3, not 0"),
    ("itself", nothing, "topology advise --peers 4 --degree 4", "1 to 3, not 4"),
    ("pairs", nothing, "topology advise --peers 4 --degree 1", "allow 2 or more"),
    ("gamma", nothing, "topology advise --peers 4 --degree 2 --gamma 1", "gamma is 1.0"),
    ("gamma nan", nothing, "topology advise --peers 4 --degree 2 --gamma nan", "gamma is nan"),
]

DEMO = [
    ("nobody", nothing, "demo --kill nobody@5", "NAME@ROUND with one of Lille"),
    ("no round", nothing, "demo --kill amiens", "NAME@ROUND"),
    ("superscript", nothing, "demo --kill amiens@²", "NAME@ROUND"),
    ("late", nothing, "demo --kill amiens@40", "rounds 0 to 39"),
    ("late of few", nothing, "demo --kill amiens@6 --rounds 6", "rounds 0 to 5"),
    ("moon", nothing, "demo --topology moon --home d", "moon.*ring"),
    ("no files", nothing, "demo --data plan --home d", "plan lacks processed.cleveland.data"),
    ("no folder", nothing, "demo --data nowhere --home d", "no folder nowhere"),
    ("home full", nothing, "demo --home plan", "plan already exists and is not empty"),
    ("home a file", nothing, "demo --home toy.csv", "toy.csv already exists"),
    ("home under a file", nothing, "demo --home toy.csv/d", "toy.csv"),
]

TABLES = {
    "charter": CHARTER, "home": HOME, "data": DATA_CASES, "plan": PLAN_CASES, "topology": TOPOLOGY, "demo": DEMO,
}  # fmt: skip
CASES = [
    pytest.param(prepare, line, pattern, id=f"{table}: {name}")
    for table, rows in TABLES.items()
    for name, prepare, line, pattern in rows
]


def words(world: Path, line: str) -> list[str]:
    """The arguments of a line; '' is an empty one, and quoted ones may hold spaces."""
    parts = [a or b or c for a, b, c in re.findall(r"'([^']+)'|(\S+(?<!'))(?=\s|$)|('')", line)]
    known = {"FRESH": told(world, "fresh"), "OTHER": told(world, "other"), "''": ""}
    return [known.get(part, part) for part in parts]


@pytest.mark.parametrize(("prepare", "line", "pattern"), CASES)
def test_one_clear_sentence_and_nothing_changed(
    world: Path, capsys: pytest.CaptureFixture[str], prepare: Prepare, line: str, pattern: str
) -> None:
    prepare(world)
    before = snapshot(world)
    done = do(capsys, *words(world, line))
    assert re.search(pattern, done.sentence()), done.err
    assert done.out == ""
    after = {name: value for name, value in snapshot(world).items() if name not in _HARMLESS}
    assert after == {name: value for name, value in before.items() if name not in _HARMLESS}


# A peer that could not start has begun its log, and made the folders that every running peer has.
_HARMLESS = {
    f"lille/{name}"
    for name in (
        "audit.db",
        "audit.db-wal",
        "audit.db-shm",
        "audit.db.lock",
        "audit.db.head",
        "audit.db.new",
        "witness.db",
        "contents",
        "outbox",
    )
}

USAGE = [
    ("demo --rounds 0", "--rounds.*1"),
    ("demo --seed -1", "--seed"),
    ("demo --rounds many", "--rounds"),
    ("topology show ring --sites 0", "--sites"),
    ("topology advise --peers many --degree 3", "--peers"),
    ("topology advise --peers 12", "--degree"),
    ("topology show ring --sites 1000000", "--sites"),
    ("plan propose lille plan --rounds 0", "--rounds"),
    ("plan propose lille plan --rounds 999999999", "--rounds"),
    ("plan propose lille plan --patience soon", "--patience"),
    ("init", "HOME"),
    ("init new --bogus", "--bogus"),
    ("charter new --name n lille.record", "--output"),
    ("nonsense", "nonsense"),
    ("plan nonsense", "nonsense"),
]


@pytest.mark.parametrize(("line", "pattern"), USAGE)
def test_wrong_usage(world: Path, capsys: pytest.CaptureFixture[str], line: str, pattern: str) -> None:
    before = snapshot(world)
    done = do(capsys, *words(world, line))
    assert re.search(pattern, done.wrong_usage())
    assert "--help`" in done.err and done.out == ""
    assert snapshot(world) == before


WORKER = [
    ("raises at import", text("plan/plan.py", PLAN_PY + '\nraise RuntimeError("no\\nluck")\n'), "luck"),
    ("imports what is not there", change("plan/plan.py", "import csv\n", "import csv\nimport nowhere\n"), "nowhere"),
    ("model raises", change("plan/plan.py", "return nn.Linear(1, 1)", "return 1 / 0"), "model"),
    ("model is none", change("plan/plan.py", "return nn.Linear(1, 1)", "return 3"), "model"),
    ("loss of wrong shape", change("plan/plan.py", "** 2", ".mean()"), "loss"),
    ("loader raises", change("plan/plan.py", '"x"', '"z"'), "load|z"),
    ("writes escapes", text("plan/plan.py", PLAN_PY + '\nraise RuntimeError("\\x1b[2J\\u202egood")\n'), "good"),
]


@pytest.mark.parametrize(("prepare", "pattern"), [pytest.param(p, w, id=n) for n, p, w in WORKER])
def test_a_plan_that_fails_in_the_worker(
    world: Path, capsys: pytest.CaptureFixture[str], prepare: Prepare, pattern: str
) -> None:
    prepare(world)
    done = do(capsys, "plan", "check", "plan", "--home", "lille")
    assert re.search(pattern, done.sentence()), done.err


def test_accepting_the_same_charter_again_is_harmless(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (world / "lille" / "charter").read_bytes()
    done = do(capsys, "charter", "accept", "lille", "signed.charter", "--fingerprint", told(world, "signed"))
    assert done.code == 0
    assert (world / "lille" / "charter").read_bytes() == before


def test_signing_twice_is_harmless(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (world / "mine.charter").read_bytes()
    assert do(capsys, "charter", "sign", "lille", "mine.charter").code == 0
    assert (world / "mine.charter").read_bytes() == before


FULL = [
    ("init", "init new --name a --no-listen --bare", 0),
    ("init, key fits", "init new --name a --no-listen --bare", 200),
    ("charter new", "charter new --name n -o c lille.record rouen.record", 10),
    ("charter sign", "charter sign rouen mine.charter", 100),
    ("charter merge", "charter merge mine.charter fresh.charter -o mine.charter", 100),
    ("charter accept", "charter accept rouen signed.charter --fingerprint FRESH", 100),
    ("data add", "data add lille --tag more more.csv", 10),
    ("up", "up lille", 10),
    ("demo", "demo --home d", 10),
]


@pytest.mark.parametrize(("line", "room"), [pytest.param(line, room, id=name) for name, line, room in FULL])
def test_a_full_disk(world: Path, capsys: pytest.CaptureFixture[str], line: str, room: int) -> None:
    """Signatures, keys and registries are there whole or not at all; nothing half-made stays."""
    importlib.import_module("joblib")  # the demo's data need it: its first import tries a semaphore, a file in itself
    arguments = words(world, line)
    before = snapshot(world)
    with full_disk(room):
        done = do(capsys, *arguments)
    assert "write" in done.sentence() or "written" in done.err or "log" in done.err, done.err
    after = {
        name: value for name, value in snapshot(world).items() if name not in _HARMLESS and not name.startswith("d/")
    }
    assert after.keys() - before.keys() <= {"d"}
    assert all(after[name] == value for name, value in before.items())


READ_ONLY = [
    "init /proc/nowhere --name a --no-listen --bare",
    "charter new --name n -o /proc/c lille.record rouen.record",
]


@pytest.mark.parametrize("line", READ_ONLY)
def test_a_place_nobody_may_write_to(world: Path, capsys: pytest.CaptureFixture[str], line: str) -> None:
    """/proc refuses new files to root as well, who ignores the modes of a read-only folder."""
    assert "/proc/" in do(capsys, *words(world, line)).sentence()


def test_a_folder_without_rights(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere; run the tests as another user for this one")
    (world / "locked").mkdir(mode=0o500)
    assert "Permission denied" in do(capsys, "init", "locked/h", "--name", "a", "--no-listen", "--bare").sentence()


def _listen_at(world: Path, address: str) -> None:
    (world / "lille" / "home.toml").write_text(f'name = "lille"\nlisten = "{address}"\n')


def test_a_port_in_use(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        _listen_at(world, f"/ip4/127.0.0.1/tcp/{port}")
        said = do(capsys, "up", "lille").sentence()
    assert str(port) in said and "in use" in said


def test_an_address_of_another_machine(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _listen_at(world, "/ip4/203.0.113.7/tcp/4101")  # TEST-NET-3 of RFC 5737: nobody's
    said = do(capsys, "up", "lille").sentence()
    assert "203.0.113.7" in said


def test_the_charter_of_people_who_are_not_here_is_shown_whole(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = do(capsys, "charter", "show", "mine.charter")
    assert done.code == 0 and "NOT signed" in done.out and "rouen" in done.out


def test_the_world_itself_is_sound(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The cases fail for what they change, and for nothing else."""
    build_world(tmp_path)
    arguments = ["--fingerprint", told(tmp_path, "signed")]
    assert do(capsys, "charter", "accept", tmp_path / "rouen", tmp_path / "signed.charter", *arguments).code == 0
    assert do(capsys, "plan", "check", tmp_path / "plan", "--home", tmp_path / "lille").code == 0
    assert do(capsys, "data", "add", tmp_path / "rouen", "--tag", "toy", tmp_path / "more.csv").code == 0
