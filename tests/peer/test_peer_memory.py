"""A peer's memory stays flat over a thousand rounds: its own process and its worker."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from thousand_rounds import ROUNDS, WARM

GROWTH = 6 << 20  # bytes in 700 rounds of three peers: 3 kB for each round and peer, of an allocator that fragments


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_memory_stays_flat_over_a_thousand_rounds(tmp_path: Path) -> None:
    script = Path(__file__).with_name("thousand_rounds.py")
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)},
        capture_output=True,
        text=True,
        timeout=380,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    grown = json.loads(done.stdout.splitlines()[-1])
    print(f"grown over {ROUNDS - WARM} rounds, in bytes: {grown}")
    assert grown["rounds_done"] == ROUNDS + 2
    assert grown["own"] < GROWTH
    assert len(grown["workers"]) == 3
    assert max(grown["workers"]) < GROWTH
