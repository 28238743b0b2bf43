"""The example of docs/data-partitions.md runs and prints what it says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "data-partitions.md"


def test_the_example_of_the_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    [code] = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    exec(compile(code, str(PAGE), "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split() == ["peer", "examples", *"0123456789"]
    assert sum(int(line.split()[1]) for line in printed[1:5]) == 1438
    assert "examples of peer 0" in printed[5]
