"""What does a site's long absence cost, and does its old model drag the others back? UCI heart disease, 60 rounds.

Real protocol machines and real training under a virtual clock: four hospitals on the demo's ring; in round 10 one of
them is switched off for thirty minutes, which are thirty rounds. For each seed: the run undisturbed, and with the
plan's ``catch_up_rounds`` at 16 (the default: the returning site gives its own parameters 16 / 30 of the weight) and at
1000 (it keeps all it had). AUC on everybody's test patients; for the others' models also right after the return.

    python sims/site_away.py --data DIR [--seeds 8] [--json]

DIR is the folder with processed.cleveland.data and the other three; without --data: P2PFL_DATA/heart. Writes
sims/site_away.md (not with --json).
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
from statistics import mean, stdev
from tempfile import TemporaryDirectory
from typing import Any

import torch

from p2pfl.demo.evaluation import EVERYBODY, Evaluator
from p2pfl.demo.hospitals import charter_order, heart_hospitals
from p2pfl.demo.in_memory import PLANS
from p2pfl.errors import P2PFLError
from p2pfl.gossip import State
from p2pfl.governance import read_plan
from p2pfl.sim import ComputeModel, Crash, InState, VirtualConsortium
from p2pfl.train.session import Session

TABLE = Path(__file__).with_suffix(".md")
ROUNDS, CLOSING_ROUNDS = 60, 6
ROUND_SECONDS = 60.0
AWAY_SECONDS = 1800.0
AWAY_IN_ROUND = 10
SHARED, KEPT = 16, 1000  # catch_up_rounds


@dataclass(frozen=True)
class Return:
    """One run with an absence."""

    auc: float  # at the end, mean over the hospitals' models
    others: float  # mean over the others' models, two rounds after the return
    returned: float  # of the model of the one that was away, then
    away: int  # rounds that it did not take part in
    own: float  # weight of its own parameters
    jump: float  # Euclidean norm of what its parameters moved by
    moved: float  # of what the conserved sum moved by


@dataclass(frozen=True)
class Outcome:
    """One seed."""

    seed: int
    site: str
    undisturbed: float
    shared: Return
    kept: Return


class Study:
    """The runs of one seed. The hospital that is away takes turns."""

    def __init__(self, folder: Path, seed: int, place: Path) -> None:
        self.plan, self.seed, self.place = read_plan(PLANS / "heart"), seed, place
        self.hospitals = charter_order(heart_hospitals(folder, seed))
        self.evaluator = Evaluator(self.plan, self.hospitals, place)
        self.files = [self.evaluator.files[hospital.name] for hospital in self.hospitals]
        self.victim = seed % len(self.hospitals)

    def trainer(self, number: int) -> Session:
        """A site's session with its data."""
        session = Session(self.plan.source, self.plan.session_settings())
        session.load_data(str(self.files[number]))
        return session

    def world(self, name: str, catch_up_rounds: int) -> VirtualConsortium:
        """A consortium that has begun."""
        samples = [len(self.trainer(number)._data["train"][0]) for number in range(len(self.files))]
        return VirtualConsortium(
            len(self.files), topology=self.plan.settings.topology_spec(), rounds=ROUNDS,
            closing_rounds=CLOSING_ROUNDS, seed=self.seed, compute=ComputeModel(seconds=ROUND_SECONDS),
            training=self.trainer, samples=samples, local_steps=self.plan.settings.training.local_steps,
            deadline=600.0, catch_up_rounds=catch_up_rounds, folder=self.place / name,
        )  # fmt: skip

    def aucs(self, trainers: Sequence[Any]) -> list[float]:
        """AUC of each site's present model."""
        return [self.evaluator.auc(trainer.result(), EVERYBODY) for trainer in trainers]

    def finished(self, world: VirtualConsortium) -> float:
        """Mean AUC at the end."""
        if not world.run(world.done, limit_seconds=24 * 3600.0):
            raise P2PFLError(f"seed {self.seed}: the run did not end; report it")
        world.run(limit_seconds=300.0)  # the last statements travel
        return mean(self.aucs([site.result for site in world.sites]))

    def undisturbed(self) -> float:
        """Nobody is away."""
        world = self.world("whole", SHARED)
        world.begin()
        return self.finished(world)

    def away(self, catch_up_rounds: int) -> Return:
        """One is switched off, and on again."""
        world = self.world(f"away-{catch_up_rounds}", catch_up_rounds)
        moment = InState(self.victim, State.TRAINING, round=AWAY_IN_ROUND, after=ROUND_SECONDS / 2)
        world.inject(Crash(self.victim, back_after=AWAY_SECONDS), moment)
        world.begin()
        site = world.sites[self.victim]

        def back() -> bool:
            """The second round after its return has begun there."""
            rounds = [round_ for _, round_ in site.round_times]
            gaps = [index for index in range(1, len(rounds)) if rounds[index] > rounds[index - 1] + 5]
            return bool(gaps) and len(rounds) > gaps[0] + 2

        world.run(back, limit_seconds=24 * 3600.0)
        aucs = self.aucs([one.trainer for one in world.sites])
        returned = aucs.pop(self.victim)
        rows = world.entries(self.victim, "caught_up")
        skipped = max(body["until"] - body["round"] for body in world.entries(self.victim, "absent") if "until" in body)
        row: Any = rows[0] if rows else {"away": skipped, "own": 1.0, "distance": 0.0, "moved": 0.0}
        auc = self.finished(world)
        return Return(auc, mean(aucs), returned, row["away"], row["own"], row["distance"], row["moved"])


def outcome(folder: Path, seed: int) -> Outcome:
    """All runs of one seed."""
    with TemporaryDirectory(prefix="p2pfl-away-") as name:
        study = Study(folder, seed, Path(name))
        hospital = study.hospitals[study.victim].name
        return Outcome(seed, hospital, study.undisturbed(), study.away(SHARED), study.away(KEPT))


def claims(found: Sequence[Outcome]) -> list[str]:
    """What the figures say."""

    def spread(values: Sequence[float]) -> str:
        return f"{mean(values):+.4f} (standard deviation {stdev(values) if len(values) > 1 else 0.0:.4f})"

    return [
        f"- At the end, {SHARED} less {KEPT}: {spread([item.shared.auc - item.kept.auc for item in found])}.",
        f"- The others two rounds after the return, {SHARED} less {KEPT}: "
        f"{spread([item.shared.others - item.kept.others for item in found])}.",
        f"- The returned one two rounds after its return, {SHARED} less {KEPT}: "
        f"{spread([item.shared.returned - item.kept.returned for item in found])}.",
        f"- At the end against the undisturbed run: {SHARED}: "
        f"{spread([item.shared.auc - item.undisturbed for item in found])}; {KEPT}: "
        f"{spread([item.kept.auc - item.undisturbed for item in found])}.",
    ]


def report(found: Sequence[Outcome]) -> str:
    """The page."""
    rows = [
        f"| {item.seed} | {item.site} | {item.shared.away} | {item.shared.own:.2f} | {item.shared.jump:.3f} | "
        f"{item.shared.moved:.4f} | {item.undisturbed:.4f} | {item.shared.auc:.4f} | {item.kept.auc:.4f} | "
        f"{item.shared.others:.4f} | {item.kept.others:.4f} | {item.shared.returned:.4f} | {item.kept.returned:.4f} |"
        for item in found
    ]
    head = (
        "seed", "away", "rounds", "own weight", "jump", "sum moved", "undisturbed", "16", "1000", "others, 16",
        "others, 1000", "returned, 16", "returned, 1000",
    )  # fmt: skip
    return "\n".join(
        [
            "# Half an hour away: one of four hospitals misses thirty of sixty rounds",
            "",
            f"UCI heart disease, the demo's plan, {ROUNDS} rounds of about a minute on the ring; one hospital switched",
            f"off for {AWAY_SECONDS / 60:.0f} minutes in round {AWAY_IN_ROUND}. Real protocol machines and training,",
            "virtual time. AUC: mean over the hospitals' models, on everybody's test patients, at the end; for the",
            "others and the returned one also two rounds after the return. 16 and 1000 are the plan's",
            "`catch_up_rounds`: at 1000 the returning site keeps all it had.",
            "",
            *claims(found),
            "",
            f"| {' | '.join(head)} |",
            f"|{'---|' * len(head)}",
            *rows,
            "",
            f"`python sims/site_away.py --data DIR --seeds {len(found)}`; {os.cpu_count()} cores "
            f"({platform.machine()}), CPython {platform.python_version()}, torch {torch.__version__.split('+')[0]}.",
            "",
        ]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study; exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of the UCI heart disease files")
    parser.add_argument("--seeds", type=int, default=8, help="seeds 0 to this, less one (8)")
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
        print(f"site_away: {error}", file=sys.stderr)
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
