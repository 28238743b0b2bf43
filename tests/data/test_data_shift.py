"""Feature shift and the views of a division: what each peer sees, and what people see of it."""

from __future__ import annotations

import numpy as np
import pytest

from p2pfl.data import Examples, Shift, dirichlet, feature_shift, holdings_figure, holdings_table, iid
from p2pfl.errors import DataError
from p2pfl.figures import to_svg

INPUTS = np.linspace(-1, 1, 4000, dtype=np.float32).reshape(1000, 4)


def test_a_peer_sees_its_own_scale_and_offset() -> None:
    shift = Shift(3, scale=0.5, offset=2.0)
    seen = [shift.apply(peer, INPUTS) for peer in range(3)]
    for peer, values in enumerate(seen):
        factor, offset, noise, turns = shift.of_peer(peer)
        assert 0.5 <= factor <= 1.5 and -2 <= offset <= 2 and noise == 0 and turns == 0
        assert values.dtype == np.float32
        assert np.abs(values - (factor * INPUTS + offset)).max() < 1e-6
    assert not np.array_equal(seen[0], seen[1])
    assert np.array_equal(shift.apply(1, INPUTS), seen[1])
    assert not np.array_equal(Shift(4, scale=0.5, offset=2.0).apply(1, INPUTS), seen[1])


def test_the_draws_are_pinned() -> None:
    factor, offset, noise, turns = Shift(3, scale=0.5, offset=2.0, noise=1.0, quarter_turns=True).of_peer(2)
    assert (factor, offset, noise, turns) == PINNED
    noisy = Shift(3, noise=1.0).apply(2, np.zeros((1, 3)))
    assert noisy.ravel().tolist() == pytest.approx(PINNED_NOISE, abs=1e-12)


PINNED = (1.3635923769669382, 0.39119123244260656, 0.16264571603866462, 2)
PINNED_NOISE = [0.19197014156065936, -0.1128266998676809, -0.07702560985801234]


def test_noise_is_normal_with_the_peers_own_spread() -> None:
    shift = Shift(0, noise=2.0)
    zeros = np.zeros((5000, 20))
    for peer in range(3):
        spread = shift.of_peer(peer)[2]
        values = shift.apply(peer, zeros) / spread
        assert values.mean() == pytest.approx(0, abs=0.02)
        assert values.std() == pytest.approx(1, abs=0.02)
        assert (np.abs(values) > 1.959964).mean() == pytest.approx(0.05, abs=0.005)


def test_quarter_turns_of_images() -> None:
    images = np.arange(2 * 9, dtype=np.uint8).reshape(2, 1, 3, 3)
    shift = Shift(1, quarter_turns=True)
    turned = {shift.of_peer(peer)[3]: shift.apply(peer, images) for peer in range(40)}
    assert sorted(turned) == [0, 1, 2, 3]
    for turns, seen in turned.items():
        assert np.array_equal(seen, np.rot90(images, turns, axes=(2, 3)))
    with pytest.raises(DataError, match="floats, not uint8"):
        Shift(1, scale=0.1).apply(0, images)


def some(count: int, classes: int) -> Examples:
    return Examples((INPUTS[:count], np.arange(count) % classes))


def test_the_table_says_who_holds_what() -> None:
    examples = Examples((INPUTS[:6], np.array(["ill", "well", "ill", "ill", "well", "well"])))
    table = holdings_table(feature_shift(scale=0.5)(examples, 3, 0), examples).splitlines()
    assert table[0].split() == ["peer", "examples", "ill", "well"]
    assert len(table) == 1 + 3 + 3
    numbers = np.array([line.split() for line in table[1:4]], dtype=int)
    assert (numbers[:, 1] == 2).all() and numbers[:, 2:].sum(axis=0).tolist() == [3, 3]
    assert table[4].startswith("peer 0 sees ")


def test_the_table_of_many_peers_is_a_summary() -> None:
    examples = some(1000, 10)
    table = holdings_table(dirichlet(0.1)(examples, 100, 0), examples).splitlines()
    assert table[0] == "100 peers, 1000 examples, 10 classes"
    assert table[1] == "examples per peer: least 10, median 10, most 10"
    assert len(table) == 4


def test_labels_that_are_no_classes_count_as_one() -> None:
    examples = Examples((INPUTS[:10], np.linspace(0, 1, 10)))
    assert holdings_table(iid()(examples, 2, 0), examples).splitlines()[0].split() == ["peer", "examples", "all"]


@pytest.mark.parametrize(("peers", "classes"), [(1, 1), (4, 3), (4, 15), (50, 10), (10, 100)])
def test_the_figure_is_the_same_svg_each_time(peers: int, classes: int) -> None:
    pytest.importorskip("matplotlib", reason="figures need the extra sim")
    examples = some(1000, classes)
    parts = iid()(examples, peers, 0)
    svg = to_svg(holdings_figure(parts, examples))
    assert svg.startswith("<?xml") and "</svg>" in svg
    assert svg == to_svg(holdings_figure(parts, examples))
