"""What goes wrong in a simulation, and when: crashes, pauses, cuts, wrong clocks, full disks, noise, users' commands.

A fault is a value; `VirtualConsortium.inject` has it strike at a time, or when a machine enters a state.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from p2pfl.errors import ConfigError
from p2pfl.gossip import events

if TYPE_CHECKING:
    from p2pfl.sim.site import Site
    from p2pfl.sim.world import VirtualConsortium

ASK_AGAIN = 1.0  # seconds until a user tries again whose peer is not running


class Fault(ABC):
    """Something that happens once."""

    def prepare(self, world: VirtualConsortium) -> None:  # noqa: B027 most faults have nothing to prepare
        """What must be done beforehand; called when the fault is injected."""

    @abstractmethod
    def strike(self, world: VirtualConsortium) -> None:
        """It happens now."""


@dataclass(frozen=True)
class Crash(Fault):
    """The process of a site is killed, and comes back after a while (None: never).

    ``disk``: "kept"; "lost", it comes back with an empty one; "backup", with a copy of the time ``backup_at``.
    ``silently``: the whole machine loses power, so nobody closes its connections.
    """

    site: int
    back_after: float | None = None
    disk: Literal["kept", "lost", "backup"] = "kept"
    backup_at: float | None = None
    silently: bool = False

    def prepare(self, world: VirtualConsortium) -> None:
        """Plan the backup."""
        if (self.disk == "backup") != (self.backup_at is not None):
            raise ConfigError("a crash with a backup needs the time of the backup, and no other one does")
        if self.backup_at is not None:
            world.clock.at(self.backup_at, lambda: world.take_backup(self.site))

    def strike(self, world: VirtualConsortium) -> None:
        """Kill it."""
        site = world.sites[self.site]
        if not site.alive:
            return
        site.stop(silently=self.silently)
        if self.disk != "kept":
            world.put_back(self.site, empty=self.disk == "lost")
        if self.back_after is not None:
            site.coming_back += 1
            world.clock.after(self.back_after, lambda: _start(site))


@dataclass(frozen=True)
class Pause(Fault):
    """The process is stopped for so many seconds; then it handles what came and was due meanwhile."""

    site: int
    seconds: float

    def strike(self, world: VirtualConsortium) -> None:
        """Stop it."""
        site = world.sites[self.site]
        if site.alive and not site.frozen:
            life = site.life
            site.freeze()
            world.clock.after(self.seconds, lambda: site.thaw() if site.life == life else None)


@dataclass(frozen=True)
class Partition(Fault):
    """No wire passes between the groups any more; sites in no group are one more group."""

    groups: tuple[tuple[int, ...], ...]
    heal_after: float | None = None

    def strike(self, world: VirtualConsortium) -> None:
        """Cut."""
        group = {site: number for number, members in enumerate(self.groups) for site in members}
        numbers = range(len(world.sites))
        cuts = [(one, other) for one in numbers for other in numbers if group.get(one, -1) != group.get(other, -1)]
        _cut(world, cuts, self.heal_after)


@dataclass(frozen=True)
class OneWayCut(Fault):
    """Nothing passes from ``source`` to ``target`` any more; the other direction is open."""

    source: int
    target: int
    heal_after: float | None = None

    def strike(self, world: VirtualConsortium) -> None:
        """Cut."""
        _cut(world, [(self.source, self.target)], self.heal_after)


@dataclass(frozen=True)
class ClockSkew(Fault):
    """From now on the site's own clock runs at ``rate``, after a jump by ``offset`` seconds (never back)."""

    site: int
    rate: float = 1.0
    offset: float = 0.0

    def strike(self, world: VirtualConsortium) -> None:
        """Skew."""
        world.sites[self.site].skew(self.rate, self.offset)


@dataclass(frozen=True)
class SlowSite(Fault):
    """Local work takes ``factor`` times as long, for so many seconds (None: from now on)."""

    site: int
    factor: float
    seconds: float | None = None

    def strike(self, world: VirtualConsortium) -> None:
        """Slow down."""
        site, factor = world.sites[self.site], self.factor
        site.slow *= factor

        def recover() -> None:
            site.slow /= factor

        if self.seconds is not None:
            world.clock.after(self.seconds, recover)


@dataclass(frozen=True)
class FullDisk(Fault):
    """Nothing can be written: the next commit ends the process, as in the real peer; it starts again when there is
    space."""

    site: int
    free_after: float | None = None

    def strike(self, world: VirtualConsortium) -> None:
        """Fill it."""
        site = world.sites[self.site]
        site.disk.full = True
        if self.free_after is None:
            return
        site.coming_back += 1

        def free() -> None:
            site.disk.full = False
            _start(site)

        world.clock.after(self.free_after, free)


@dataclass(frozen=True)
class Loss(Fault):
    """Each message is lost with this probability, for so many seconds (None: from now on)."""

    probability: float
    seconds: float | None = None
    kind = "loss"

    def strike(self, world: VirtualConsortium) -> None:
        """Begin; afterwards the probability is what it was before."""
        network, kind = world.network, self.kind
        before = getattr(network, kind)
        setattr(network, kind, self.probability)
        if self.seconds is not None:
            world.clock.after(self.seconds, lambda: setattr(network, kind, before))


@dataclass(frozen=True)
class Duplicate(Loss):
    """Each message comes twice with this probability."""

    kind = "duplicate"


@dataclass(frozen=True)
class Reorder(Loss):
    """Each message is overtaken by later ones with this probability."""

    kind = "reorder"


@dataclass(frozen=True)
class UserPause(Fault):
    """The user pauses the run (it stops before the next round), and resumes it after a while (None: never)."""

    site: int
    resume_after: float | None

    def strike(self, world: VirtualConsortium) -> None:
        """Ask for the pause."""
        _command(world, self.site, events.Pause)
        if self.resume_after is not None:
            world.clock.after(self.resume_after, lambda: _command(world, self.site, events.Resume))


@dataclass(frozen=True)
class UserResume(Fault):
    """The user resumes the run where it was paused."""

    site: int

    def strike(self, world: VirtualConsortium) -> None:
        """Ask for it."""
        _command(world, self.site, events.Resume)


@dataclass(frozen=True)
class FailTraining(Fault):
    """The next local trainings of the site fail, so many of them; it is absent then."""

    site: int
    times: int = 1

    def strike(self, world: VirtualConsortium) -> None:
        """From the next one on."""
        world.sites[self.site].failing += self.times


@dataclass(frozen=True)
class Leave(Fault):
    """The user takes no further part in the run."""

    site: int
    reason: str = "left by the user"

    def strike(self, world: VirtualConsortium) -> None:
        """Leave."""
        _command(world, self.site, lambda now: events.Leave(now, self.reason))


def _start(site: Site) -> None:
    site.coming_back -= 1
    if not site.alive:
        site.start()


def _cut(world: VirtualConsortium, ways: Collection[tuple[int, int]], heal_after: float | None) -> None:
    for way in ways:
        world.network.cut(*way)

    def heal() -> None:
        for way in ways:
            world.network.heal(*way)

    if heal_after is not None:
        world.clock.after(heal_after, heal)


def _command(world: VirtualConsortium, number: int, make: Callable[[float], events.Event]) -> None:
    site = world.sites[number]

    def ask() -> None:
        event = make(site.now)
        world.commands.append((number, event, site.command(event)))

    if site.alive:
        site.enter(ask)
    elif site.coming_back:
        world.clock.after(ASK_AGAIN, lambda: _command(world, number, make))
