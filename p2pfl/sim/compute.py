"""How long local work takes at each site, keyed by (seed, site, round)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from p2pfl.sim.calendar import Calendar
from p2pfl.sim.draws import uniform


@dataclass(frozen=True, slots=True)
class ComputeModel:
    """Seconds of local work: ``seconds * factor(site) * (1 - spread + 2 * spread * u)`` with u uniform in [0, 1).

    ``handling`` is what one encoding or one mixing takes, ``commit`` one transaction of the log. A site that is in
    ``calendars`` trains at those hours only.
    """

    seconds: float = 1.0
    spread: float = 0.2
    factors: Mapping[int, float] = field(default_factory=dict)  # by site number; 1 for all others
    handling: float = 0.001
    commit: float = 0.005
    calendars: Mapping[int, Calendar] = field(default_factory=dict)  # by site number; all others work day and night

    def training(self, seed: int, site: int, round: int) -> float:
        """Seconds of the local steps of one round at one site."""
        share = uniform(seed, "training time", site, round)
        return self.seconds * self.factors.get(site, 1.0) * (1.0 - self.spread + 2.0 * self.spread * share)

    def lasting(self, site: int, now: float, seconds: float) -> float:
        """Seconds from ``now`` until a site has worked for so many seconds."""
        calendar = self.calendars.get(site)
        return seconds if calendar is None else float(calendar.ends(now, seconds)) - now
