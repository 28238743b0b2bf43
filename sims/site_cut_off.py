"""What does a six-minute VPN drop at one hospital cost? UCI heart disease, 20 rounds of a minute, many seeds.

Real protocol machines and real training under a virtual clock: four hospitals on the demo's ring; in round 7 one of
them is cut off for six minutes and comes back. For each seed: the same run undisturbed and cut, and the AUC of the
hospitals' models on everybody's test patients.

    python sims/site_cut_off.py --data DIR [--seeds 20] [--json]

DIR is the folder with processed.cleveland.data and the other three; without --data: P2PFL_DATA/heart. Writes
sims/site_cut_off.md (not with --json).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Any

import torch

from p2pfl.demo.evaluation import EVERYBODY, Evaluator
from p2pfl.demo.hospitals import charter_order, heart_hospitals
from p2pfl.demo.in_memory import PLANS
from p2pfl.errors import P2PFLError
from p2pfl.gossip import State
from p2pfl.governance import read_plan
from p2pfl.sim import ComputeModel, InState, Partition, VirtualConsortium
from p2pfl.train.session import Session

TABLE = Path(__file__).with_suffix(".md")
ROUNDS, CLOSING_ROUNDS = 20, 6
ROUND_SECONDS = 60.0
CUT_SECONDS = 360.0
CUT_IN_ROUND = 7
CLOSE = 0.005


@dataclass(frozen=True)
class Outcome:
    """One seed: the mean AUC over the hospitals' models, and what the cut one went through."""

    seed: int
    site: str
    undisturbed: float
    cut: float
    back_in_round: int  # the round the others were in when it was linked again
    contributes_in_round: int  # its first round after that which a neighbour mixed
    rounds_of_others: int
    contributed: int  # training rounds of the cut hospital that are in somebody's model
    minutes: float  # virtual, of the whole run
    minutes_undisturbed: float


def outcome(folder: Path, seed: int) -> Outcome:
    """Both runs of one seed. The hospital that is cut off takes turns."""
    plan = read_plan(PLANS / "heart")
    with TemporaryDirectory(prefix="p2pfl-cut-") as name:
        hospitals = charter_order(heart_hospitals(folder, seed))
        evaluator = Evaluator(plan, hospitals, Path(name))
        files = [evaluator.files[hospital.name] for hospital in hospitals]
        victim = seed % len(hospitals)

        def run(*, cut: bool) -> tuple[VirtualConsortium, float, float]:
            place = Path(name) / ("cut" if cut else "whole")

            def trainer(number: int) -> Session:
                session = Session(plan.source, plan.session_settings())
                session.load_data(str(files[number]))
                return session

            world = VirtualConsortium(
                len(files), topology=plan.settings.topology_spec(), rounds=ROUNDS, closing_rounds=CLOSING_ROUNDS,
                seed=seed, compute=ComputeModel(seconds=ROUND_SECONDS), training=trainer,
                samples=[len(trainer(number)._data["train"][0]) for number in range(len(files))],
                local_steps=plan.settings.training.local_steps, deadline=600.0, folder=place,
            )  # fmt: skip
            if cut:
                moment = InState(victim, State.TRAINING, round=CUT_IN_ROUND, after=ROUND_SECONDS / 2)
                world.inject(Partition(((victim,),), heal_after=CUT_SECONDS), moment)
            world.begin()
            if not world.run(world.done, limit_seconds=24 * 3600.0):
                raise P2PFLError(f"seed {seed}: the run did not end; report it")
            minutes = world.now / 60
            world.run(limit_seconds=300.0)  # the last statements travel
            aucs = [evaluator.auc(_model(site.result), EVERYBODY) for site in world.sites]
            return world, mean(aucs), minutes

        _, undisturbed, minutes_undisturbed = run(cut=False)
        world, cut, minutes = run(cut=True)
        back, contributes = _return(world, victim)
        done = world.machines[victim].closing.statements[world.peers[(victim + 1) % len(files)]]
        rounds = dict(done.contributed).get(world.peers[victim], ())
        others = min(machine.rounds.rounds_done for number, machine in enumerate(world.machines) if number != victim)
        return Outcome(
            seed, hospitals[victim].name, undisturbed, cut, back, contributes, others,
            sum(last - first + 1 for first, last in rounds), minutes, minutes_undisturbed,
        )  # fmt: skip


def _model(session: Any) -> bytes:
    model: bytes = session.result()
    return model


def _return(world: VirtualConsortium, victim: int) -> tuple[int, int]:
    """The round of the others when the cut one was linked again, and the first one in which it was mixed again."""
    peer = world.peers[victim]
    neighbour = next(number for number in range(len(world.sites)) if (number - victim) % len(world.sites) == 1)
    mixed = [body["round"] for body in world.entries(neighbour, "mixed") if peer in [edge[0] for edge in body["edges"]]]
    gap = next(index for index in range(1, len(mixed)) if mixed[index] - mixed[index - 1] > 1)
    struck = world.triggers.struck[0][0]
    healed = struck + CUT_SECONDS
    position = 0
    for time, round_ in world.sites[neighbour].round_times:
        if time <= healed:
            position = round_
    return position, mixed[gap]


def claims(found: Sequence[Outcome]) -> list[str]:
    """What the figures say."""
    worst = max(abs(item.cut - item.undisturbed) for item in found)
    whole = sum(item.rounds_of_others == ROUNDS + CLOSING_ROUNDS for item in found)
    late = max(item.contributes_in_round - item.back_in_round for item in found)
    close = sum(abs(item.cut - item.undisturbed) <= CLOSE for item in found)
    return [
        f"- All {ROUNDS} rounds (and the {CLOSING_ROUNDS} closing ones) completed at the other hospitals: "
        f"{whole} of {len(found)} seeds.",
        f"- The hospital contributed again at most {late} rounds after it was back.",
        f"- AUC within {CLOSE} of the undisturbed run: {close} of {len(found)} seeds, largest difference {worst:.4f}.",
    ]


def report(found: Sequence[Outcome]) -> str:
    """The page."""
    rows = [
        f"| {item.seed} | {item.site} | {item.undisturbed:.4f} | {item.cut:.4f} | {item.cut - item.undisturbed:+.4f} | "
        f"{item.contributed} of {ROUNDS} | {item.back_in_round} | {item.contributes_in_round} | {item.minutes:.1f} | "
        f"{item.minutes_undisturbed:.1f} |"
        for item in found
    ]
    return "\n".join(
        [
            "# A six-minute cut at one of four hospitals",
            "",
            f"UCI heart disease, the demo's plan, {ROUNDS} rounds of about a minute on the ring; one hospital cut off",
            f"for {CUT_SECONDS / 60:.0f} minutes in round {CUT_IN_ROUND}. Real protocol machines and training, virtual",
            "time. AUC: mean over the four hospitals' models, on everybody's test patients.",
            "",
            *claims(found),
            "",
            "| seed | cut off | AUC undisturbed | AUC cut | difference | its rounds | back in | contributes in "
            "| minutes | undisturbed |",
            "|---|---|---|---|---|---|---|---|---|---|",
            *rows,
            "",
            f"`python sims/site_cut_off.py --data DIR --seeds {len(found)}`; {os.cpu_count()} cores "
            f"({platform.machine()}), CPython {platform.python_version()}, torch {torch.__version__.split('+')[0]}.",
            "",
        ]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study; exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of the UCI heart disease files")
    parser.add_argument("--seeds", type=int, default=20, help="seeds 0 to this, less one (20)")
    parser.add_argument("--json", action="store_true", help="print all figures as JSON and write no table")
    options = parser.parse_args(arguments)
    folder = options.data or Path(os.environ.get("P2PFL_DATA", "")) / "heart"
    torch.set_num_threads(1)
    found = []
    try:
        for seed in range(options.seeds):
            found.append(outcome(folder, seed))
            print(f"seed {seed}: {found[-1]}", file=sys.stderr)
    except P2PFLError as error:
        print(f"site_cut_off: {error}", file=sys.stderr)
        return 1
    if options.json:
        print(json.dumps([asdict(item) for item in found]))
        return 0
    text = report(found)
    print(text)
    TABLE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
