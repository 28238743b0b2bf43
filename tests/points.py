"""Homes of one consortium with the points of `bottle.Quadratic` as data, and a plan over them beside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from bottle import QUADRATIC_PLAN, Quadratic

from p2pfl.peer import found_consortium, open_home


def points_homes(
    folder: Path,
    samples: Sequence[int],
    plan: str,
    *,
    topology: str = "full",
    listen: Mapping[Path, str] | None = None,
    code: str = QUADRATIC_PLAN,
) -> list[Path]:
    """Homes a, b, c ... under ``folder``, with so many points each; ``folder``/plan has this plan.toml and plan.py."""
    homes = [folder / name for name in "abcdefgh"[: len(samples)]]
    found_consortium(dict.fromkeys(homes), "test", {"kind": topology}, listen=listen)
    for home, file in zip(homes, Quadratic.make(tuple(samples)).write(folder), strict=True):
        open_home(home).registry.add("points", file, now=1)
    (folder / "plan").mkdir()
    (folder / "plan" / "plan.py").write_text(code)
    (folder / "plan" / "plan.toml").write_text(plan)
    return homes
