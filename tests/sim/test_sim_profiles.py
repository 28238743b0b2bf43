"""Kinds of sites: who has which profile, and what it does to the two clocks."""

from __future__ import annotations

import numpy as np
import pytest

from p2pfl.errors import ConfigError
from p2pfl.sim import ComputeModel, LinkModel
from p2pfl.sim.calendar import DAY, HOUR, Calendar
from p2pfl.sim.profiles import PROFILES, sites_with, with_profiles
from p2pfl.sim.recording import Recording, record
from p2pfl.sim.timing import Timing


def test_sites_are_named_by_number_by_several_numbers_or_by_share() -> None:
    assert sites_with("slow", 1, 8) == (1,)
    assert sites_with("slow", [4, 1], 8) == (1, 4)
    assert sites_with("slow", 1.0, 3) == (0, 1, 2)
    quarter = sites_with("office-hours", 0.25, 1000, seed=3)
    assert len(quarter) == 250 and quarter == sites_with("office-hours", 0.25, 1000, seed=3)
    assert quarter != sites_with("office-hours", 0.25, 1000, seed=4)
    assert quarter != sites_with("slow", 0.25, 1000, seed=3), "each profile is drawn by itself"
    assert len(sites_with("fast", 0.01, 10)) == 1, "a share of somebody"


@pytest.mark.parametrize("which", [8, -1, [1, 1], [0, 9], 0.0, 1.5, -0.5, [0.5], True])
def test_sites_that_do_not_exist_are_refused(which: object) -> None:
    with pytest.raises(ConfigError, match="share"):
        sites_with("slow", which, 8)  # type: ignore[arg-type]


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'tortoise'; choose one of fast, slow, uplink-10mbit, office-hours"):
        with_profiles({"tortoise": 1}, 4)


def test_a_mixture_changes_only_whom_it_names() -> None:
    base = LinkModel(bandwidth=1e8), ComputeModel(seconds=60.0, factors={1: 3.0})
    links, compute = with_profiles({"slow": [0, 1], "uplink-10mbit": 1, "office-hours": [2]}, 4, 0, *base)
    assert dict(compute.factors) == {0: 5.0, 1: 15.0, 2: 1.0}
    assert [links.rate(site) for site in range(4)] == [1e8, 1.25e6, 1e8, 1e8]
    assert list(compute.calendars) == [2]
    assert compute.training(0, 0, 7) / ComputeModel(seconds=60.0).training(0, 0, 7) == pytest.approx(5.0)
    assert (base[0].uplinks, base[1].factors) == ({}, {1: 3.0}), "what was given is as it was"


def test_work_waits_for_the_morning() -> None:
    day = Calendar(opens=8.0, closes=18.0, at_start=8.0)
    assert day.ends(0.0, HOUR) == HOUR
    assert day.ends(9 * HOUR, HOUR) == 10 * HOUR, "ends just at closing time"
    assert day.ends(9 * HOUR, 2 * HOUR) == DAY + HOUR, "the second half on the next morning"
    assert day.ends(12 * HOUR, HOUR) == DAY + HOUR, "given in the evening"
    assert day.ends(22 * HOUR, HOUR) == DAY + HOUR, "given before dawn"
    assert day.ends(0.0, 25 * HOUR) == 2 * DAY + 5 * HOUR, "two days and a half"
    assert day.ends(12 * HOUR, 0.0) == 12 * HOUR, "nothing to do takes no time"
    evening = Calendar(opens=8.0, closes=18.0, at_start=20.0)
    assert evening.ends(0.0, HOUR) == 13 * HOUR
    begins = np.linspace(0, 3 * DAY, 1000)
    for work in (1.0, 3 * HOUR, 30 * HOUR):
        together = day.ends(begins, np.full(1000, work))
        assert (together == [float(day.ends(one, work)) for one in begins]).all()
        assert (np.diff(together) >= 0).all() and (together - begins >= work - 1e-6).all()
        clock = (together + day.at_start * HOUR) % DAY
        assert ((clock > day.opens * HOUR) & (clock <= day.closes * HOUR + 1e-6)).all()


@pytest.mark.parametrize(
    "hours", [(18.0, 8.0, 8.0), (8.0, 8.0, 8.0), (-1.0, 8.0, 8.0), (8.0, 25.0, 8.0), (8.0, 9.0, 24.0)]
)
def test_hours_that_no_day_has_are_refused(hours: tuple[float, float, float]) -> None:
    with pytest.raises(ConfigError, match="office hours"):
        Calendar(*hours)


@pytest.mark.parametrize("name", [name for name in PROFILES if name != "office-hours"])
def test_both_clocks_agree_on_a_site_of_another_kind(name: str) -> None:
    links, compute = with_profiles({name: 2}, 6, 0, LinkModel(bandwidth=1.25e7), ComputeModel(seconds=20.0))
    recorded = record(6, rounds=5, content_bytes=10_000_000, deadline=600.0, links=links, compute=compute)
    check_both(recorded, links, compute, 10_000_000)


def test_both_clocks_agree_on_a_site_that_rests_at_night() -> None:
    """A short night, six minutes from 23:54 on, since real machines say every five seconds that they are there."""
    compute = ComputeModel(seconds=20.0, calendars={2: Calendar(opens=0.0, closes=23.9, at_start=23.88)})
    recorded = record(4, rounds=5, content_bytes=100_000, deadline=900.0, compute=compute)
    check_both(recorded, LinkModel(), compute, 100_000)
    seconds = np.array([facts.seconds for facts in recorded.decisions.rounds])
    lasted = np.diff(seconds[:, 2])
    assert lasted.max() > 340 and np.median(lasted) < 30, "one of its rounds has the night in it"


def check_both(recorded: Recording, links: LinkModel, compute: ComputeModel, content: int) -> None:
    machines = np.array([facts.seconds for facts in recorded.decisions.rounds])
    estimated = np.array([facts.seconds for facts in Timing(recorded.schedule, links, compute, content)])
    np.testing.assert_allclose(estimated, machines, rtol=0.01)
