"""When a fault strikes: at a time, or when a site's machine enters a state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from p2pfl.gossip import State
from p2pfl.gossip.messages import Position
from p2pfl.sim.faults import Fault

if TYPE_CHECKING:
    from p2pfl.sim.site import Site
    from p2pfl.sim.world import VirtualConsortium


@dataclass(frozen=True, slots=True)
class At:
    """At a virtual time in seconds."""

    time: float


@dataclass(frozen=True, slots=True)
class InState:
    """``after`` seconds after site ``site`` entered ``state`` for the ``count``-th time (in round ``round``, if given).

    A state counts as entered when a handled event left the machine in it and it was not there, or at another position,
    before. ``after`` reaches into what the state waits for, a commit under way for instance.
    """

    site: int
    state: State
    count: int = 1
    round: int | None = None
    after: float = 0.0


@dataclass(frozen=True, slots=True)
class Begun:
    """When each of these sites has begun its round here or a later one, or has nothing left to do in the run."""

    rounds: tuple[tuple[int, int], ...]  # (site, round)

    def reached(self, world: VirtualConsortium) -> bool:
        """Whether that is so now."""
        return all(_has_begun(world.sites[number], round_) for number, round_ in self.rounds)


When = At | InState | Begun


@dataclass(slots=True)
class _Waiting:
    when: InState | Begun
    fault: Fault
    seen: int = 0


class Triggers:
    """All faults of one world. ``struck`` has what happened: (virtual time, fault)."""

    def __init__(self, world: VirtualConsortium) -> None:
        self.struck: list[tuple[float, Fault]] = []
        self._world = world
        self._waiting: list[_Waiting] = []
        self._places: dict[int, tuple[State, Position]] = {}

    def add(self, fault: Fault, when: When) -> None:
        """Have it strike."""
        fault.prepare(self._world)
        if isinstance(when, At):
            self._world.clock.at(when.time, lambda: self._strike(fault))
        else:
            self._waiting.append(_Waiting(when, fault))

    @property
    def waiting(self) -> list[Fault]:
        """Faults whose state was not reached so far."""
        return [item.fault for item in self._waiting]

    def handled(self, site: Site) -> None:
        """A machine has handled an event and its effects are under way."""
        if not self._waiting or site.machine is None:
            return
        context = site.machine.context
        place = (context.state, context.position)
        if self._places.get(site.number) == place:
            return
        self._places[site.number] = place
        due = []
        for item in self._waiting:
            when = item.when
            if isinstance(when, Begun):
                if when.reached(self._world):
                    due.append(item)
            elif when.site == site.number and when.state is place[0] and when.round in (None, place[1][0]):
                item.seen += 1
                if item.seen == when.count:
                    due.append(item)
        for item in due:
            self._waiting.remove(item)  # all of them first: what strikes may come back here, and would strike them, too
        for item in due:
            after = 0.0 if isinstance(item.when, Begun) else item.when.after
            if after:
                self._world.clock.after(after, lambda fault=item.fault: self._strike(fault))  # type: ignore[misc]
            else:
                self._strike(item.fault)

    def _strike(self, fault: Fault) -> None:
        self.struck.append((self._world.clock.now, fault))
        fault.strike(self._world)


def _has_begun(site: Site, round_: int) -> bool:
    machine = site.machine
    begun = machine is not None and machine.state is not State.PROPOSING and machine.context.position[0] >= round_
    return begun or (bool(site.round_times) and site.finished)  # before it was started, it is not finished
