"""A cluster that is not there is told before anything is read by Ray, which would try for more than a minute."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2pfl.errors import LocalError
from p2pfl.sim import Inputs, backend_named
from p2pfl.sim.ray_address import check_listening


@pytest.fixture
def dead() -> Iterator[int]:
    """A port of this machine on which nobody listens, and nobody else can."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


@pytest.fixture
def alive() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://127.0.0.1:{}", "localhost:{}"])
def test_nobody_listens(dead: int, form: str) -> None:
    with pytest.raises(LocalError, match=f"no Ray cluster answers at {form.format(dead)} .*ray start"):
        check_listening(form.format(dead))


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://127.0.0.1:{}"])
def test_somebody_listens(alive: int, form: str) -> None:
    check_listening(form.format(alive))


@pytest.mark.parametrize("address", ["local", "no-port", "anyscale://cluster:1", "127.0.0.1:x", "127.0.0.1:99999999"])
def test_other_forms_are_left_to_ray(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "create_connection", lambda *arguments, **options: pytest.fail("connected"))
    check_listening(address)


def test_auto_is_what_ray_takes_for_it(dead: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster that was begun here and has died leaves its address behind."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    check_listening("auto")
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text(f"127.0.0.1:{dead}\n")
    with pytest.raises(LocalError, match=f"127.0.0.1:{dead}, which auto means here"):
        check_listening("auto")
    monkeypatch.setenv("RAY_ADDRESS", f"ray://127.0.0.1:{dead}")
    with pytest.raises(LocalError, match=f"ray://127.0.0.1:{dead}, which auto means here"):
        check_listening("auto")


def test_the_backend_asks_before_anything_runs(dead: int, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    monkeypatch.setattr(ray, "init", lambda *arguments, **options: pytest.fail("Ray was asked"))
    with pytest.raises(LocalError, match="no Ray cluster answers"):
        backend_named("ray", Inputs(), address=f"127.0.0.1:{dead}")
    monkeypatch.setenv("P2PFL_RAY_ADDRESS", f"127.0.0.1:{dead}")
    with pytest.raises(LocalError, match="no Ray cluster answers"):
        backend_named("ray", Inputs(), address=None)
