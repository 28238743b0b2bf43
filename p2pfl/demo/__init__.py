"""The demo: real data, real processes, and an evaluator that stands outside the protocol."""

from __future__ import annotations

from pathlib import Path

from p2pfl.demo.consortium import Consortium, Options, Site, copy_plan
from p2pfl.demo.hospitals import Hospital, builtin_hospitals, heart_hospitals
from p2pfl.demo.report import gather, live_table, print_report
from p2pfl.governance import read_plan

PLANS = Path(__file__).parent / "plans"


def hospitals_for(data: Path | None, seed: int) -> tuple[list[Hospital], Path]:
    """The hospitals and the plan folder: built in, or the UCI heart-disease files of a folder."""
    if data is None:
        return builtin_hospitals(seed), PLANS / "breast_cancer"
    return heart_hospitals(data, seed), PLANS / "heart"


def plan_rounds(plan_folder: Path) -> int:
    """The training rounds a plan asks for."""
    return read_plan(plan_folder).settings.training.rounds


__all__ = [
    "PLANS",
    "Consortium",
    "Hospital",
    "Options",
    "Site",
    "builtin_hospitals",
    "copy_plan",
    "gather",
    "heart_hospitals",
    "hospitals_for",
    "live_table",
    "plan_rounds",
    "print_report",
]
