"""The update rules by name, and which combinations are refused before a run starts."""

from __future__ import annotations

from collections.abc import Mapping

from p2pfl.errors import ConfigError
from p2pfl.train.optimisers import Optimiser
from p2pfl.train.rules.dpsgd import DPSGD
from p2pfl.train.rules.interface import (
    Channel,
    Context,
    Gradient,
    Graph,
    Inbox,
    Messages,
    Needs,
    Oracle,
    Rule,
    State,
)
from p2pfl.train.rules.kgt import KGT
from p2pfl.train.rules.relaysgd import RelaySGD

__all__ = [
    "DPSGD",
    "KGT",
    "RULES",
    "Channel",
    "Context",
    "Gradient",
    "Graph",
    "Inbox",
    "Messages",
    "Needs",
    "Oracle",
    "RelaySGD",
    "Rule",
    "State",
    "check_combination",
    "rule_named",
]

RULES: Mapping[str, type[DPSGD] | type[KGT] | type[RelaySGD]] = {
    "dpsgd": DPSGD,
    "kgt": KGT,
    "relaysgd": RelaySGD,
}


def rule_named(name: str, optimiser: Optimiser) -> Rule:
    """The rule with this name; ConfigError if it is unknown or does not go with the optimiser."""
    _known(name)
    check_combination(name, optimiser.name)
    return RULES[name](optimiser)


def check_combination(
    rule: str,
    optimiser: str,
    *,
    sites: int | None = None,
    edges: int | None = None,
    changes: bool = False,
    staleness: int = 0,
) -> None:
    """Refuse what does not go together; ConfigError gives the reason.

    ``sites`` and ``edges`` (undirected) of the connected graph are checked where they are known, and whether it
    ``changes`` from round to round. ``staleness`` above 0 is an asynchronous run, whose edges may be mixed so many own
    rounds late.
    """
    needs = _known(rule).needs
    if optimiser not in needs.optimisers:
        allowed = " or ".join(sorted(needs.optimisers))
        why = f": {needs.reason}" if needs.reason else ""
        raise ConfigError(f"rule {rule} does not go with optimiser {optimiser}{why}; choose {allowed}")
    if needs.mixing == "tree" and changes:
        raise ConfigError(
            f"rule {rule} needs the same tree in each round, and this topology changes; choose chain, star or another "
            "tree, or another rule"
        )
    if needs.mixing == "tree" and sites is not None and edges is not None and edges != sites - 1:
        raise ConfigError(
            f"rule {rule} needs a tree, and {edges} edges between {sites} sites make cycles; "
            f"choose a spanning tree of the graph, or another rule"
        )
    if staleness and not needs.delays:
        why = f": {needs.delays_reason}" if needs.delays_reason else ""
        raise ConfigError(
            f"rule {rule} does not go with the asynchronous policy{why}; choose the synchronous policy or "
            f"{' or '.join(name for name, kind in RULES.items() if kind.needs.delays)}"
        )


def _known(name: str) -> type[DPSGD] | type[KGT] | type[RelaySGD]:
    if name not in RULES:
        raise ConfigError(f"unknown update rule {name!r}; choose one of {', '.join(RULES)}")
    return RULES[name]
