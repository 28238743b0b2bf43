"""A small world for the command line: two founders, a stranger, charters in all states, a plan, data."""

from __future__ import annotations

import resource
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from p2pfl.cli.app import run
from p2pfl.governance import (
    charter_to_text,
    fingerprint,
    merge_charters,
    new_charter,
    parse_charter,
    record_from_text,
    sign_charter,
)
from p2pfl.peer import init_home, open_home

PLAN_TOML = """[plan]
name = "toy"

[data]
tag = "toy"

[training]
rule = "dpsgd"
learning_rate = 0.1
local_steps = 2
batch_size = 4
rounds = 3
closing_rounds = 1
deadline = 20.0
"""

PLAN_PY = '''"""A line through points."""

import csv

import torch
from torch import nn


def load(path):
    with path.open(newline="") as file:
        rows = [(float(row["x"]), float(row["y"])) for row in csv.DictReader(file)]
    points = torch.tensor(rows)
    return {"train": (points[:, :1], points[:, 1])}


def model():
    return nn.Linear(1, 1)


def loss(model, batch):
    x, y = batch
    return (model(x).squeeze(-1) - y) ** 2
'''

DATA = "x,y\n" + "".join(f"{x},{2 * x + 1}\n" for x in range(12))


@dataclass(frozen=True)
class Done:
    """What one command line did."""

    code: int
    out: str
    err: str

    def sentence(self) -> str:
        """The one clear sentence on standard error. Fails for anything else, a traceback above all."""
        assert self.code == 1, self
        return self.said()

    def wrong_usage(self) -> str:
        assert self.code == 2, self
        return self.said()

    def said(self) -> str:
        lines = self.err.splitlines()
        assert len(lines) == 1, self
        text = lines[0]
        assert text.startswith("p2pfl: error: "), text
        assert "Traceback" not in text and "internal error" not in text and "Error(" not in text, text
        assert text.isprintable() and len(text) < 800, text
        assert any(mark in text for mark in (";", "`", ", and", "write ", "say either", "must ")), (
            f"says not what to do: {text}"
        )
        return text


def do(capsys: pytest.CaptureFixture[str], *arguments: object) -> Done:
    """Carry out one command line in this process."""
    capsys.readouterr()
    code = run([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return Done(code, captured.out, captured.err)


def snapshot(folder: Path) -> dict[str, object]:
    """Everything under a folder: kind, mode and content."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(status.st_mode) else None
        found[str(path.relative_to(folder))] = (oct(status.st_mode), content)
    return found


@contextmanager
def full_disk(room: int = 0) -> Iterator[None]:
    """No file can grow beyond ``room`` bytes: what a full disk looks like to write(2), root included."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def build_world(root: Path) -> None:
    """Homes lille, rouen (founders, bare keys, charter accepted by lille only), stranger and sealed; see the code."""
    texts = {}
    for name in ("lille", "rouen", "stranger"):
        listen = None if name == "rouen" else "/ip4/127.0.0.1/tcp/0"
        texts[name] = init_home(root / name, name=name, listen=listen, passphrase=None)
        (root / f"{name}.record").write_text(texts[name])
    init_home(root / "sealed", name="sealed", listen=None, passphrase="correct horse")
    records = {name: record_from_text(text) for name, text in texts.items()}
    fresh = new_charter("north", [records["lille"], records["rouen"]], topology={"kind": "ring"})
    mine = sign_charter(fresh, open_home(root / "lille").identity(None))
    theirs = sign_charter(fresh, open_home(root / "rouen").identity(None))
    signed = merge_charters([mine, theirs])
    other = new_charter("south", [records["lille"], records["stranger"]], topology={"kind": "ring"})
    for name in ("lille", "stranger"):
        other = sign_charter(other, open_home(root / name).identity(None))
    for name, charter in {"fresh": fresh, "mine": mine, "signed": signed, "other": other}.items():
        (root / f"{name}.charter").write_text(charter_to_text(charter))
    (root / "lille" / "charter").write_text(charter_to_text(signed))
    (root / "plan").mkdir()
    (root / "plan" / "plan.py").write_text(PLAN_PY)
    (root / "plan" / "plan.toml").write_text(PLAN_TOML)
    (root / "toy.csv").write_text(DATA)
    (root / "more.csv").write_text(DATA + "50,101\n")
    open_home(root / "lille").registry.add("toy", root / "toy.csv", now=1)


def told(root: Path, name: str) -> str:
    """The fingerprint of a charter file, as it is read out over the telephone."""
    return fingerprint(parse_charter((root / f"{name}.charter").read_text()))
