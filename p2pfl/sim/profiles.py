"""Kinds of sites by name: what their links and their work are like.

| name           | means |
|----------------|-------|
| "fast"         | local work takes half the time |
| "slow"         | local work takes five times as long |
| "uplink-10mbit"| 10 Mbit/s from the site to the others, shared by all that it sends |
| "office-hours" | trains from 8 to 18 o'clock only; the run begins at 8 |

A mixture says for each name which sites have it: ``{"slow": 1}`` is site number 1, ``{"slow": [1, 4]}`` two of them,
``{"office-hours": 0.25}`` a quarter of all sites, drawn with the seed. A site may have several: factors multiply, and
of two uplinks or calendars the one named last holds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from p2pfl.errors import ConfigError
from p2pfl.sim.calendar import Calendar
from p2pfl.sim.compute import ComputeModel
from p2pfl.sim.draws import uniform
from p2pfl.sim.links import LinkModel

MEGABIT = 125_000.0  # bytes
Which = int | float | Sequence[int]


@dataclass(frozen=True, slots=True)
class Profile:
    """What is different at a site."""

    factor: float = 1.0  # on the seconds of local work
    uplink: float | None = None  # bytes per second; None: as all others
    calendar: Calendar | None = None  # None: works day and night


PROFILES: Mapping[str, Profile] = {
    "fast": Profile(factor=0.5),
    "slow": Profile(factor=5.0),
    "uplink-10mbit": Profile(uplink=10 * MEGABIT),
    "office-hours": Profile(calendar=Calendar()),
}


def sites_with(name: str, which: Which, peers: int, seed: int = 0) -> tuple[int, ...]:
    """The numbers of the sites that have a profile, rising. ConfigError for a name or numbers that do not exist.

    A share is rounded to whole sites, half up, at least one; the same seed and name choose the same ones.
    """
    if name not in PROFILES:
        raise ConfigError(f"unknown site profile {name[:40]!r}; choose one of {', '.join(PROFILES)}")
    if isinstance(which, float):
        if not 0.0 < which <= 1.0:
            raise ConfigError(f"{which:g} of all sites have the profile {name!r}; give a share above 0 and at most 1")
        order = sorted(range(peers), key=lambda site: (uniform(seed, "profile", name, site), site))
        return tuple(sorted(order[: max(1, int(which * peers + 0.5))]))
    numbers = [which] if isinstance(which, int) else list(which)
    wrong = [item for item in numbers if isinstance(item, bool) or not isinstance(item, int) or not 0 <= item < peers]
    if wrong or len(set(numbers)) < len(numbers):
        raise ConfigError(
            f"sites {numbers} with the profile {name!r}: give numbers from 0 to {peers - 1}, each once, or a share "
            "such as 0.25"
        )
    return tuple(sorted(numbers))


def with_profiles(
    mixture: Mapping[str, Which],
    peers: int,
    seed: int = 0,
    links: LinkModel | None = None,
    compute: ComputeModel | None = None,
) -> tuple[LinkModel, ComputeModel]:
    """Link and compute models of ``peers`` sites with this mixture, on top of those given. ConfigError, see above."""
    links, compute = links or LinkModel(), compute or ComputeModel()
    factors, uplinks, calendars = dict(compute.factors), dict(links.uplinks), dict(compute.calendars)
    for name, which in mixture.items():
        for site in sites_with(name, which, peers, seed):
            profile = PROFILES[name]
            factors[site] = factors.get(site, 1.0) * profile.factor
            if profile.uplink is not None:
                uplinks[site] = profile.uplink
            if profile.calendar is not None:
                calendars[site] = profile.calendar
    return replace(links, uplinks=uplinks), replace(compute, factors=factors, calendars=calendars)
