"""Who holds which examples: divisions of one dataset over peers, each a pure function of data, peers and seed.

Every division gives each training example to exactly one peer and each peer at least one example, or is refused. They
are built from a keyed stream with sums, products and comparisons alone, so all machines divide alike. Equations and
sources: docs/data-partitions.md.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from heapq import heapify, heapreplace
from itertools import accumulate
from numbers import Integral, Real
from typing import Protocol

import numpy as np

from p2pfl.data.examples import Array, Examples, classes_of
from p2pfl.data.shift import Shift
from p2pfl.errors import ConfigError, DataError
from p2pfl.keyed_stream import KeyedStream

MOST_ALPHA = 1e9  # nothing differs from equal parts long before, and products stay finite


@dataclass(frozen=True, eq=False)
class Parts:
    """Each peer's examples: positions in ``Examples.train``, int64, ascending; at least one per peer."""

    rows: tuple[Array, ...]
    shift: Shift | None = None
    """What happens to each peer's inputs before it sees them; None: nothing."""

    @property
    def peers(self) -> int:
        """Number of peers."""
        return len(self.rows)


class Partition(Protocol):
    """A way to divide examples; what the functions of this module return. Equal settings compare equal."""

    def __call__(self, examples: Examples, peers: int, seed: int) -> Parts:
        """Divide. ConfigError for peers or settings that do not fit, DataError for examples that do not."""


def iid() -> Partition:
    """At random, in parts that differ by one example at most."""
    return Iid()


def dirichlet(alpha: float) -> Partition:
    """Equal sizes, each peer with a mix of classes of its own, drawn from Dirichlet(alpha p).

    p are the classes' shares of all examples: a large ``alpha`` gives everybody p, a small one (0.1) each peer
    few classes. Source: Hsu, Qi, Brown, "Measuring the effects of non-identical data distribution for federated
    visual classification", 2019 (arXiv 1909.06335). ConfigError unless alpha is positive.
    """
    return Dirichlet(_positive("alpha", alpha))


def labels_per_peer(labels: int) -> Partition:
    """Each peer holds exactly so many classes; peers of one class share its examples evenly.

    Generalises the shards of McMahan et al., "Communication-efficient learning of deep networks from decentralized
    data", 2017: a class is cut into shards by its size, and nobody gets two of one class. ConfigError for fewer than 1.
    """
    return LabelsPerPeer(_whole("labels per peer", labels))


def quantity(alpha: float) -> Partition:
    """At random, in unequal parts: the sizes beyond one example each are Dirichlet(alpha, ..., alpha), multinomial.

    A large ``alpha`` gives equal sizes, 0.5 a few large and many small ones. ConfigError unless alpha is positive.
    """
    return Quantity(_positive("alpha", alpha))


def feature_shift(
    scale: float = 0.0, offset: float = 0.0, noise: float = 0.0, quarter_turns: bool = False
) -> Partition:
    """At random and evenly, but each peer sees its inputs otherwise: see ``Shift``. ConfigError for wrong bounds."""
    Shift(0, scale, offset, noise, quarter_turns)  # refuses bounds that cannot be before there are data
    return FeatureShift(scale, offset, noise, quarter_turns)


def by_column(column: str) -> Partition:
    """One peer for each value of a column (a hospital's id), in the order of the sorted values."""
    return ByColumn(column)


@dataclass(frozen=True)
class Iid:
    """See ``iid``."""

    def __call__(self, examples: Examples, peers: int, seed: int) -> Parts:
        """Divide."""
        _check_peers(examples, peers)
        order = KeyedStream("p2pfl iid", seed, peers).permutation(len(examples))
        return Parts(tuple(np.sort(part) for part in np.array_split(order, peers)))


@dataclass(frozen=True)
class Dirichlet:
    """See ``dirichlet``. Each peer's mix is integrated out: an urn draws from the same law.

    One peer after the other takes all its examples, in random order: were they to take one each in turn, each popular
    class would be used up for all its holders at once, and nobody would be left with little more than one. With c_k
    examples of class k so far, the next one is of class k with probability (alpha p_k + c_k) / sum over the classes
    that are not used up (Blackwell and MacQueen, 1973).
    That is the law of draws from q ~ Dirichlet(alpha p), q renormalised over the classes that are left,
    without logarithms or powers.
    """

    alpha: float

    def __call__(self, examples: Examples, peers: int, seed: int) -> Parts:
        """Divide."""
        _check_peers(examples, peers)
        classes, codes = classes_of(examples.labels)
        stream = KeyedStream("p2pfl dirichlet", seed, peers)
        pools = _pools(codes, len(classes), stream)
        left = [len(pool) for pool in pools]
        urns = [[self.alpha * size / len(examples) for size in left] for _ in range(peers)]
        gone = [size == 0 for size in left]
        rows: list[list[int]] = [[] for _ in range(peers)]
        turns = _turns(len(examples), peers, stream)
        for peer, uniform in zip(turns, stream.uniforms(len(examples)).tolist(), strict=True):
            urn = urns[peer]
            open_urn = [0.0 if used_up else weight for weight, used_up in zip(urn, gone, strict=True)]
            kind = _drawn(open_urn, left, uniform)
            urn[kind] += 1.0
            left[kind] -= 1
            gone[kind] = left[kind] == 0
            rows[peer].append(pools[kind][left[kind]])
        return Parts(tuple(np.sort(np.array(part, dtype=np.int64)) for part in rows))


@dataclass(frozen=True)
class LabelsPerPeer:
    """See ``labels_per_peer``."""

    labels: int

    def __call__(self, examples: Examples, peers: int, seed: int) -> Parts:
        """Divide."""
        _check_peers(examples, peers)
        classes, codes = classes_of(examples.labels)
        stream = KeyedStream("p2pfl labels per peer", seed, peers, self.labels)
        pools = _pools(codes, len(classes), stream)
        shards = self._shards([len(pool) for pool in pools], peers)
        rows: list[list[Array]] = [[] for _ in range(peers)]
        for pool, holders in zip(pools, self._dealt(shards, peers, stream), strict=True):
            for peer, shard in zip(holders, np.array_split(np.array(pool, dtype=np.int64), len(holders)), strict=True):
                rows[peer].append(shard)
        return Parts(tuple(np.sort(np.concatenate(part)) for part in rows))

    def _shards(self, sizes: list[int], peers: int) -> list[int]:
        """Into how many shards each class is cut: by size (D'Hondt), at most one per peer and per example."""
        if self.labels > len(sizes):
            raise ConfigError(f"{self.labels} labels per peer, but the data have {len(sizes)} classes; ask for no more")
        wanted = peers * self.labels
        if wanted < len(sizes):
            raise ConfigError(
                f"{peers} peers of {self.labels} label(s) each cannot hold all {len(sizes)} classes; "
                "take more peers or more labels per peer"
            )
        most = [min(peers, size) for size in sizes]
        if sum(most) < wanted:
            raise ConfigError(
                f"{peers} peers of {self.labels} label(s) each need {wanted} shards, the classes allow {sum(most)}; "
                "take fewer peers or fewer labels per peer"
            )
        shards = [1] * len(sizes)
        queue = [(-size / 2 if most[kind] > 1 else 1.0, kind) for kind, size in enumerate(sizes)]
        heapify(queue)
        for _ in range(wanted - len(sizes)):
            kind = queue[0][1]
            shards[kind] += 1
            full = shards[kind] == most[kind]
            heapreplace(queue, (1.0 if full else -sizes[kind] / (shards[kind] + 1), kind))
        return shards

    def _dealt(self, shards: list[int], peers: int, stream: KeyedStream) -> list[list[int]]:
        """The peers that hold each class.

        A class with as many shards left as there are peers left must be dealt now; then the rest always comes out.
        """
        holders: list[list[int]] = [[] for _ in shards]
        left = list(shards)
        order = stream.permutation(peers).tolist()
        for waiting, peer in zip(range(peers, 0, -1), order, strict=True):
            chosen = [kind for kind, count in enumerate(left) if count == waiting]
            weights = [0.0 if count == waiting else float(count) for count in left]
            for uniform in stream.uniforms(self.labels - len(chosen)).tolist():
                kind = _drawn(weights, weights, uniform)
                weights[kind] = 0.0
                chosen.append(kind)
            for kind in chosen:
                left[kind] -= 1
                holders[kind].append(peer)
        return holders


@dataclass(frozen=True)
class Quantity:
    """See ``quantity``. The sizes are drawn from an urn, as the classes in ``Dirichlet``.

    After t examples the next one goes with probability peers alpha / (peers alpha + t) to any peer, otherwise to the
    holder of one of those t, chosen at random.
    """

    alpha: float

    def __call__(self, examples: Examples, peers: int, seed: int) -> Parts:
        """Divide."""
        _check_peers(examples, peers)
        stream = KeyedStream("p2pfl quantity", seed, peers)
        order = stream.permutation(len(examples))
        free = len(examples) - peers
        fresh = (stream.uniforms(free) * (peers * self.alpha + np.arange(free)) < peers * self.alpha).tolist()
        anybody = stream.below(peers, free).tolist()
        earlier = (stream.words(free) % np.maximum(np.arange(free), 1).astype(np.uint64)).tolist()
        holders: list[int] = []
        for place in range(free):
            holders.append(anybody[place] if fresh[place] or not place else holders[earlier[place]])
        sizes = 1 + np.bincount(np.array(holders, dtype=np.int64), minlength=peers)
        return Parts(tuple(np.sort(part) for part in np.split(order, np.cumsum(sizes)[:-1])))


@dataclass(frozen=True)
class FeatureShift:
    """See ``feature_shift``."""

    scale: float = 0.0
    offset: float = 0.0
    noise: float = 0.0
    quarter_turns: bool = False

    def __call__(self, examples: Examples, peers: int, seed: int) -> Parts:
        """Divide as ``iid`` does, and say what each peer's inputs go through. DataError for inputs it does not fit."""
        shift = Shift(seed, self.scale, self.offset, self.noise, self.quarter_turns)
        shift.check(examples.train[0])
        return Parts(Iid()(examples, peers, seed).rows, shift)


@dataclass(frozen=True)
class ByColumn:
    """See ``by_column``."""

    column: str

    def __call__(self, examples: Examples, peers: int, seed: int) -> Parts:
        """Divide; ``seed`` changes nothing."""
        _check_peers(examples, peers)
        if self.column not in examples.columns:
            known = ", ".join(map(str, examples.columns)) or "none"
            raise DataError(f"the examples have no column {self.column[:60]!r}; choose one of: {known[:200]}")
        column = examples.columns[self.column]
        if column.dtype.kind == "f" and not np.isfinite(column).all():
            raise DataError(f"the column {self.column[:60]!r} has missing values; leave those examples out")
        values, codes = np.unique(column, return_inverse=True)
        if len(values) != peers:
            raise ConfigError(
                f"the column {self.column[:60]!r} has {len(values)} different values, not {peers}; "
                f"simulate {len(values)} peers"
            )
        return Parts(tuple(np.flatnonzero(codes == value).astype(np.int64) for value in range(peers)))


def _check_peers(examples: Examples, peers: int) -> None:
    if peers < 1:
        raise ConfigError(f"{peers} peers cannot hold any data; ask for one at least")
    if peers > len(examples):
        raise ConfigError(f"{len(examples)} examples are too few for {peers} peers with one each; take fewer peers")


def _positive(what: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 < value <= MOST_ALPHA:
        raise ConfigError(f"{what} is {value}; give a positive number up to {MOST_ALPHA:.0e}, such as 0.5")
    return float(value)


def _whole(what: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ConfigError(f"{what}: {value}; give a whole number, 1 or more")
    return int(value)


def _pools(codes: Array, classes: int, stream: KeyedStream) -> list[list[int]]:
    """The examples of each class in random order."""
    order = stream.permutation(len(codes))
    grouped = order[np.argsort(codes[order], kind="stable")]
    ends = np.cumsum(np.bincount(codes, minlength=classes))[:-1]
    return [pool.tolist() for pool in np.split(grouped, ends)]


def _turns(examples: int, peers: int, stream: KeyedStream) -> list[int]:
    """Whose turn it is for each example: one peer after the other, in random order, with equal sizes."""
    sizes = np.full(peers, examples // peers)
    sizes[: examples % peers] += 1
    return np.repeat(stream.permutation(peers), sizes).tolist()


def _drawn(weights: list[float], left: list[int] | list[float], uniform: float) -> int:
    """The place that ``uniform`` in [0, 1) falls on among ``weights``; always one of which something is left."""
    sums = list(accumulate(weights))
    place = bisect_right(sums, uniform * sums[-1])
    if place < len(sums) and left[place]:
        return place
    # All weights too small for float64 (alpha below 1e-300): the first that is left.
    return next(place for place, count in enumerate(left) if count)
