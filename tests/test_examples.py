"""Every example runs as a process, as a reader would run it, and says what it should."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
LIMIT = 100  # seconds; each takes under 15 on two idle cores

CASES = {
    "run_own_plan.py": ("peer-0: 16 rounds", "peer-2: 16 rounds", "the model has 33 parameters"),
    "embedded_peer.py": (
        "lille is linked to {'rouen': 'tcp'}",
        "rouen was asked to run readmission",
        "round 9:",
        "contributed: lille, rouen",
        "missing: nobody",
        "log of rouen:",
    ),
    "own_graph.py": ("'kind': 'edges'", "0 of one site", "peer-0: 3 neighbours", "peer-3: 2 neighbours"),
    "power_cut.py": ("site-0: finished without site-2 in rounds 4 to 10, 24 rounds", "edges settled: True"),
    "in_a_notebook.py": ("training goes on: True", "round 9:", "Sequential("),
}


def test_every_example_is_run() -> None:
    scripts = {path.name for path in EXAMPLES.glob("*.py")} - {"patients.py"}
    assert scripts == set(CASES)


@pytest.mark.timeout(LIMIT + 20)
@pytest.mark.parametrize("name", CASES)
def test_example(name: str, tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONWARNINGS": "error"}
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for words in CASES[name]:
        assert words in done.stdout
    assert done.stderr == ""
    assert list(tmp_path.iterdir()) == []  # nothing is left behind
