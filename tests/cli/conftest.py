"""The world of cli_worlds, built once and copied for every test."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_worlds import build_world


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cli") / "world"
    root.mkdir()
    build_world(root)
    return root


@pytest.fixture
def world(pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy that a test may spoil; the working directory is there."""
    target = tmp_path / "w"
    shutil.copytree(pristine, target)
    registry = target / "lille" / "data.json"
    registry.write_text(registry.read_text().replace(str(pristine), str(target)))
    monkeypatch.chdir(target)
    return target


@pytest.fixture(autouse=True)
def _own_process_state(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Some verbs change the umask, and what stands in the environment would answer questions."""
    monkeypatch.delenv("P2PFL_PASSPHRASE", raising=False)
    before = os.umask(0o022)
    yield
    os.umask(before)
