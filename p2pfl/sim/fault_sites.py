"""The sites of a scenario's faults, and whether the faults fit the run."""

from __future__ import annotations

from collections.abc import Sequence

from p2pfl.errors import ConfigError
from p2pfl.sim.profiles import chosen_sites
from p2pfl.sim.scenario import FaultTable


def sites_of_fault(fault: FaultTable, place: int, peers: int, seed: int) -> tuple[int, ...]:
    """The sites of the fault at this place of the list, rising; ConfigError for sites that do not exist.

    Shares are drawn anew for each place, so that two faults of one kind are not at the same sites.
    """
    return chosen_sites(f"fault {fault.kind}" + (f" {place}" if place else ""), fault.sites, peers, seed)


def check_fault_times(faults: Sequence[FaultTable], peers: int, seed: int, total: int) -> None:
    """ConfigError for a fault at sites that do not exist, or that begins after the last of ``total`` rounds."""
    for place, fault in enumerate(faults):
        sites_of_fault(fault, place, peers, seed)
        if fault.first >= total:
            raise ConfigError(f"a fault begins in round {fault.first}, but the last round is {total - 1}; mend it")
