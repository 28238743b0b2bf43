"""Which sites a scenario's faults are at, and when."""

from __future__ import annotations

import numpy as np
import pytest

from p2pfl.errors import ConfigError
from p2pfl.sim.absences import absences_of, check_trained
from p2pfl.sim.fault_sites import sites_of_fault
from p2pfl.sim.profiles import chosen_sites
from p2pfl.sim.scenario import FaultTable


def absent(sites: object, first: int = 0, last: int | None = None) -> FaultTable:
    return FaultTable.model_validate({"kind": "absent", "sites": sites, "first": first, "last": last})


def all_of(sites: int) -> np.ndarray:
    return np.ones(sites, dtype=bool)


def remarks(faults: list[FaultTable], training: np.ndarray) -> tuple[str, ...]:
    """Of a run of ten training rounds."""
    return check_trained(absences_of(faults, len(training), 0), training, 10)


def test_two_faults_of_one_kind_are_at_sites_of_their_own() -> None:
    drawn = [sites_of_fault(absent(0.25), place, 40, 3) for place in range(3)]
    assert len(set(drawn)) == 3 and all(len(sites) == 10 for sites in drawn)
    assert drawn[0] == chosen_sites("fault absent", 0.25, 40, 3), "one fault alone is where it always was"
    assert sites_of_fault(absent([1, 2]), 2, 40, 3) == (1, 2)


def test_rounds_without_anybody_are_told() -> None:
    everybody = [absent([0, 1], 0, 4), absent([2, 3], 3)]
    assert remarks(everybody, all_of(4)) == ("all sites are absent in round 3: nobody trains in it",)
    assert remarks(everybody, all_of(5)) == ()
    assert remarks([absent([0, 1], 0, 4), absent([2, 3], 5)], all_of(4)) == ()
    assert remarks([absent([0, 1, 2, 3], 10)], all_of(4)) == (), "closing rounds train nobody"
    assert remarks([], all_of(4)) == ()


def test_who_has_no_local_steps_does_not_count_as_there() -> None:
    only_two = np.array([True, True, False, False])
    said = ("all sites that have local steps are absent in round 4: nobody trains in it",)
    assert remarks([absent([0, 1], 4, 5)], only_two) == said
    assert remarks([absent([1, 2, 3], 4)], only_two) == ()
    with pytest.raises(ConfigError, match="all sites that have local steps are absent in every training round"):
        remarks([absent([0, 1])], only_two)
