"""The README's example runs as it stands there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_readme_example_runs() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, cwd="/")
    assert done.returncode == 0, done.stderr
    assert "Parameter containing" in done.stdout and "share" in done.stdout


def test_every_page_the_readme_names_is_there() -> None:
    for name in re.findall(r"\]\(([a-z][^)#]*)\)", (ROOT / "README.md").read_text()):
        assert (ROOT / name).exists(), name
