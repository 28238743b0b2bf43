"""The committed studies can be made again, and the page about simulations runs as it stands there."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from p2pfl.sim import Inputs, cells_of, prepared, read_scenario

ROOT = Path(__file__).parents[2]


def studies() -> ModuleType:
    spec = importlib.util.spec_from_file_location("studies", ROOT / "sims" / "studies.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["studies"] = module
    spec.loader.exec_module(module)
    return module


STUDIES = studies().STUDIES


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_can_be_made_again(name: str) -> None:
    """Everything but the training; and its page names question, command and commit, with a row for each setting."""
    study, inputs = STUDIES[name], Inputs()
    scenario = read_scenario(ROOT / "sims" / "scenarios" / study.scenario)
    cells = cells_of(scenario, study.vary, [0], inputs.digest, then=study.then)
    for cell in cells:
        prepared(cell, inputs)
    page = (ROOT / "sims" / "studies" / f"{name}.md").read_text()
    assert page.startswith(f"# {study.question}\n\n{study.answer}\n")
    assert len(study.answer) > 60 and f"`python sims/studies.py {name}`" in page
    assert re.search(r"at commit [0-9a-f]{12} in \d+ s on \d+ cores", page)
    for cell in cells:
        assert f"\n| {cell.setting} |" in page
    table = [float(cell) for line in page.splitlines() for cell in re.findall(r"(?<=\| )[0-9][0-9.e+-]*(?= \|)", line)]
    said = re.findall(r"(?<![0-9.])0\.[0-9]{2}(?![0-9])", study.answer)
    assert len(said) >= 3
    assert not [figure for figure in said if not any(abs(value - float(figure)) <= 0.005 + 1e-9 for value in table)]


@pytest.mark.slow
def test_the_page_about_simulations_runs(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "simulations.md").read_text(), re.DOTALL)
    assert len(blocks) >= 2
    code = "\n".join(blocks).replace('"report.html"', repr(str(tmp_path / "report.html")))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "report.html").stat().st_size > 10_000
