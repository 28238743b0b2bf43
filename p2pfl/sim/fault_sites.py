"""The sites of a scenario's faults, and whether the faults fit the run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from p2pfl.errors import ConfigError
from p2pfl.sim.profiles import chosen_sites
from p2pfl.sim.scenario import FaultTable


def sites_of_fault(fault: FaultTable, place: int, peers: int, seed: int) -> tuple[int, ...]:
    """The sites of the fault at this place of the list, rising; ConfigError for sites that do not exist.

    Shares are drawn anew for each place, so that two faults of one kind are not at the same sites.
    """
    return chosen_sites(f"fault {fault.kind}" + (f" {place}" if place else ""), fault.sites, peers, seed)


def check_fault_times(
    faults: Sequence[FaultTable], training: np.ndarray, seed: int, rounds: int, total: int
) -> tuple[str, ...]:
    """Remarks on ``faults`` in a run of so many training rounds and rounds in all.

    ``training`` bool [n]: which sites have any local steps. ConfigError for a fault that begins after the last round,
    or where none of these is there in any training round.
    """
    peers, train = len(training), set(np.flatnonzero(training).tolist())
    away: list[tuple[range, tuple[int, ...]]] = []
    for place, fault in enumerate(faults):
        sites = sites_of_fault(fault, place, peers, seed)
        if fault.first >= total:
            raise ConfigError(f"a fault begins in round {fault.first}, but the last round is {total - 1}; mend it")
        if fault.kind == "absent":
            away.append((range(fault.first, total if fault.last is None else fault.last + 1), sites))
    # who is away changes only where an absence begins or ends
    changes = sorted({0} | {when for span, _ in away for when in (span.start, span.stop) if when < rounds})
    empty = [when for when in changes if train <= {s for span, sites in away if when in span for s in sites}]
    who = "all sites" if len(train) == peers else "all sites that have local steps"
    if len(empty) == len(changes):
        raise ConfigError(f"{who} are absent in every training round, so nobody trains; leave some")
    return (f"{who} are absent in round {empty[0]}: nobody trains in it",) if empty else ()
