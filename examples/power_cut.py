"""What happens to the others when one of six hospitals loses power in the middle of a run? In a tenth of a second.

The real protocol machines under a virtual clock; training is stubbed. Run: python examples/power_cut.py
"""

from p2pfl.gossip import State
from p2pfl.sim import ComputeModel, Crash, InState, VirtualConsortium

world = VirtualConsortium(
    6, topology="ring", rounds=20, closing_rounds=4, seed=1, compute=ComputeModel(seconds=60.0), deadline=600.0
)
world.inject(Crash(2, back_after=400.0, silently=True), InState(2, State.TRAINING, round=4, after=20.0))
world.begin()
world.run(world.done)
world.run(limit_seconds=60.0)

print(f"over after {world.now / 60:.1f} simulated minutes")
for number, machine in enumerate(world.machines):
    print(f"site-{number}: {machine.closing.outcome()}, {machine.rounds.rounds_done} rounds")
print(f"conserved mean off by {world.imbalance():.1e}, edges settled: {world.settled()}")
