"""Owns the shape of topology specs in charters and plans; topology/ knows if one fits the sites."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

WEIGHTS: Mapping[str, str] = {
    "shares": "each site counts with its share of all samples",
    "metropolis": "each site counts alike, however many samples it has",
    "uniform": "each site counts by its number of neighbours and one more, however many samples it has",
}
"""The named choices of weights, and what each means."""

CLOSINGS: Mapping[str, str] = {
    "plain": "closing rounds mix as training rounds do",
    "chebyshev": "closing rounds are accelerated by Chebyshev's weights",
}
"""How closing rounds mix, and what each means."""

DEFAULT_TOPOLOGY: Mapping[str, Any] = {"kind": "ring"}

MAX_EDGES = 2016  # of a full graph of 64 sites
MAX_SITES = 64
MAX_PERIOD = 1000  # rounds; heads that meet more seldom hardly mix
CHANGING = frozenset({"hierarchical", "base", "matching", "epidemic", "exponential", "cyclic"})
"""The kinds that have not one mixing on the same graph in all rounds."""


def topology_problem(spec: Any) -> str | None:
    """What is wrong with a spec and what to write instead, as part of a sentence; None if nothing."""
    known = ", ".join(_KINDS)
    kind = spec.get("kind") if isinstance(spec, Mapping) else None
    if not isinstance(kind, str) or kind not in _KINDS:
        return f"topology kind is {_shown(kind)}; write one of {known}"
    options, more = _KINDS[kind], _OPTIONAL.get(kind, {})
    expected = {"kind", *options}
    if not expected <= set(spec) <= expected | set(more):
        names = ", ".join(sorted(map(str, spec)))
        if_you_like = f", and if you like {', '.join(sorted(more))}" if more else ""
        return f"topology {kind} has the keys {names[:80]}; write exactly {', '.join(sorted(expected))}{if_you_like}"
    for option, (check, wanted) in {**options, **more}.items():
        if option in spec and not check(spec[option]):
            return f"topology {option} is {_shown(spec[option])}; write {wanted}"
    return None


def by_shares(spec: Mapping[str, Any]) -> bool:
    """Whether each site counts with its share of all samples."""
    return bool(spec.get("weights", "shares") == "shares")


def accelerated(spec: Mapping[str, Any]) -> bool:
    """Whether closing rounds are accelerated."""
    return bool(spec.get("closing", "plain") == "chebyshev")


def closing_in_words(spec: Mapping[str, Any]) -> str:
    """What a checked spec says of closing rounds."""
    choice = spec.get("closing", "plain")
    return f"{choice}: {CLOSINGS[choice]}"


def directed(spec: Mapping[str, Any]) -> bool:
    """Whether sites give other amounts over an edge than they take, which push-sum alone goes with."""
    return bool(spec.get("kind") in ("cyclic", "exponential") or spec.get("choice", "common") == "local")


def walks(spec: Mapping[str, Any]) -> bool:
    """Whether one model walks from site to site, which the rule cyclic alone goes with."""
    return bool(spec.get("kind") == "cyclic")


def weights_in_words(spec: Mapping[str, Any]) -> str:
    """What the weights of a checked spec mean for its sites."""
    choice = spec.get("weights", "shares")
    if isinstance(choice, str):
        return f"{choice}: {WEIGHTS[choice]}"
    return "listed: each site counts as the weights of the edges say, however many samples it has"


def _position(value: Any) -> bool:
    return type(value) is int and 0 <= value < MAX_SITES


def _clusters(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return 1 <= len(value) <= MAX_SITES and all(
            isinstance(cluster, (list, tuple)) and 1 <= len(cluster) <= MAX_SITES and all(map(_position, cluster))
            for cluster in value
        )
    return type(value) is int and 1 <= value <= MAX_SITES


def _edges(value: Any) -> bool:
    return (
        isinstance(value, (list, tuple))
        and 1 <= len(value) <= MAX_EDGES
        and all(isinstance(e, (list, tuple)) and len(e) == 2 and all(map(_position, e)) for e in value)
    )


def _weights(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return 1 <= len(value) <= MAX_EDGES and all(
            isinstance(row, (list, tuple))
            and len(row) == 4
            and all(map(_position, row[:2]))
            and all(type(weight) is float and 0.0 < weight < 1.0 for weight in row[2:])
            for row in value
        )
    return _named_weights(value)


def _of_any_round(value: Any) -> bool:
    return isinstance(value, str) and value in ("shares", "metropolis")


def _named_weights(value: Any) -> bool:
    return isinstance(value, str) and value in WEIGHTS


def _closing(value: Any) -> bool:
    return isinstance(value, str) and value in CLOSINGS


def _plain(value: Any) -> bool:
    return isinstance(value, str) and value == "plain"


def _whole(least: int, limit: int) -> tuple[Callable[[Any], bool], str]:
    return lambda value: type(value) is int and least <= value < limit, f"a whole number from {least} to {limit - 1}"


def _probability(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= 1


def _word(*known: str) -> tuple[Callable[[Any], bool], str]:
    return lambda value: isinstance(value, str) and value in known, f"one of {', '.join(known)}"


_OF_ANY_ROUND = (_of_any_round, "one of shares, metropolis")
_PROBABLE = "a number from 0 to 1"
_KINDS: Mapping[str, Mapping[str, tuple[Callable[[Any], bool], str]]] = {
    "ring": {},
    "full": {},
    "hierarchical": {
        "clusters": (_clusters, "their number, or the positions of the sites in each, such as [[0, 2], [1, 3]]")
    },
    "edges": {"edges": (_edges, "pairs of positions of sites, such as [[0, 1], [1, 2]]")},
    "star": {},
    "chain": {},
    "torus": {"rows": _whole(2, MAX_SITES), "columns": _whole(2, MAX_SITES)},
    "hypercube": {},
    "regular": {"degree": _whole(1, MAX_SITES), "seed": _whole(0, 2**32)},
    "erdos_renyi": {"probability": (_probability, _PROBABLE), "seed": _whole(0, 2**32)},
    "small_world": {
        "degree": _whole(2, MAX_SITES),
        "probability": (_probability, _PROBABLE),
        "seed": _whole(0, 2**32),
    },
    "two_clusters": {"bridges": _whole(1, MAX_EDGES)},
    "tree": {"arity": _whole(1, MAX_SITES)},
    "double_tree": {},
    "base": {"k": _whole(1, MAX_SITES)},
    "matching": {"seed": _whole(0, 2**32)},
    "epidemic": {"degree": _whole(1, MAX_SITES), "seed": _whole(0, 2**32)},
    "exponential": {},
    "cyclic": {},
}
_NAMES = ", ".join(WEIGHTS)
_PLAIN = {"closing": (_plain, "plain: chebyshev is for graphs on which all rounds mix by one matrix")}
_OPTIONAL: Mapping[str, Mapping[str, tuple[Callable[[Any], bool], str]]] = {
    **{
        kind: {
            "closing": (_closing, f"one of {', '.join(CLOSINGS)}"),
            "weights": (_weights, f"{_NAMES}, or of each edge i, j, w_ij, w_ji, such as [[0, 1, 0.25, 0.5]]"),
        }
        for kind in _KINDS
        if kind not in CHANGING
    },
    **{kind: {**_PLAIN, "weights": _OF_ANY_ROUND} for kind in CHANGING - {"hierarchical"}},
    "epidemic": {**_PLAIN, "choice": _word("common", "local"), "weights": _OF_ANY_ROUND},
    "exponential": {**_PLAIN, "hops": _word("one", "all"), "weights": _OF_ANY_ROUND},
    "hierarchical": {**_PLAIN, "period": _whole(1, MAX_PERIOD + 1), "weights": (_named_weights, f"one of {_NAMES}")},
}


def _shown(value: Any) -> str:
    return "missing" if value is None else repr(value)[:60]
