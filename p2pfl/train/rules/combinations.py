"""What a rule is asked to go with, and the sentence for what it does not go with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from p2pfl.train.rules.interface import Needs

WALKS = "one site at a time has the model there, and trains it"
NO_WALK = "on all other topologies no site would ever have all of it"
PRIVATE_NORM = 'batch_norm = "private" and buffers = "exclude", or GroupNorm'
WITHOUT_NORM = 'GroupNorm in place of batch norm and buffers = "exclude"'


@dataclass(frozen=True, slots=True)
class Combination:
    """The surroundings of a rule as far as they are known; what is not is not checked."""

    optimiser: str
    sites: int | None = None
    edges: int | None = None  # undirected, of the connected graph
    staleness: int = 0  # above 0: an asynchronous run, whose edges may be mixed so many own rounds late
    steps: int = 1  # the most local steps of any site in a round
    varying: bool = False  # several mixings in a round, or others from round to round
    directed: bool = False  # sites give other amounts over an edge than they take
    walks: bool | None = None  # one model walks from site to site; None: not known
    weighted: bool = False  # the topology has weights of its own, by which sites count otherwise than by their samples
    accelerated: bool = False  # the topology's closing rounds are
    statistics: bool = False  # running statistics travel as entries of x


@dataclass(frozen=True, slots=True)
class Problem:
    """Why not, and what to change other than the rule."""

    why: str
    remedy: str


def problem_of(rule: str, needs: Needs, asked: Combination) -> Problem | None:
    """The first thing that a rule with these needs does not go with; None if it goes with all."""
    for what, reason, remedy in _refusals(rule, needs, asked):
        return Problem(what + (f": {reason}" if reason else ""), remedy)
    return None


def choice(problem: Problem, others: Sequence[str]) -> str:
    """The whole sentence; ``others`` are the rules that go with all that was asked."""
    rules = f", or the rule {_or(others)}" if others else ""
    return f"{problem.why}; choose {problem.remedy}{rules}"


def keeps_nothing(rule: str, needs: Needs) -> str:
    """Why a rule refuses models of which something stays with its site."""
    fits = "share batch norm too, or use GroupNorm" if needs.statistics else "use GroupNorm, or a rule such as dpsgd"
    return f"rule {rule} shares all parameters; {fits}"


def _refusals(rule: str, needs: Needs, asked: Combination) -> list[tuple[str, str, str]]:
    found = []
    if asked.optimiser not in needs.optimisers:
        allowed = _or(sorted(needs.optimisers))
        found.append((f"rule {rule} does not go with optimiser {asked.optimiser}", needs.reason, allowed))
    if needs.mixing == "tree" and None not in (asked.sites, asked.edges) and asked.edges != (asked.sites or 0) - 1:
        found.append(
            (
                f"rule {rule} needs a tree, and {asked.edges} edges between {asked.sites} sites make cycles",
                "it would count a site once for each path to it",
                "a spanning tree of the graph",
            )
        )
    if asked.staleness and not needs.delays:
        found.append(
            (f"rule {rule} does not go with the asynchronous policy", needs.delays_reason, "the synchronous policy")
        )
    if needs.most_steps is not None and asked.steps > needs.most_steps:
        what = f"rule {rule} takes at most {needs.most_steps} local step a round, not {asked.steps}"
        found.append((what, needs.steps_reason, f"local_steps = {needs.most_steps}"))
    if asked.walks is False and needs.mixing == "walk":
        found.append((f"rule {rule} needs a model that walks", NO_WALK, "the topology cyclic"))
    if asked.walks and needs.mixing != "walk":
        what = f"rule {rule} does not go with the topology cyclic"
        found.append((what, WALKS, "another topology, such as ring"))
    elif asked.directed and needs.mixing not in ("columns", "walk"):
        what = f"rule {rule} does not go with a directed topology"
        found.append((what, needs.unweighed_reason, "a topology that is not, such as ring or matching"))
    if needs.static and asked.varying:
        what = f"rule {rule} needs one and the same mixing in every round"
        found.append((what, needs.static_reason, "a topology that stays the same, such as ring or chain"))
    if needs.by_shares and asked.weighted:
        what = f"rule {rule} does not go with a topology that has weights of its own"
        found.append((what, needs.by_shares_reason, 'weights = "shares"'))
    if asked.accelerated and not needs.accelerated:
        what = f"rule {rule} does not go with accelerated closing rounds"
        found.append((what, needs.closing_reason, 'closing = "plain"'))
    if asked.statistics and not needs.statistics:
        what = f"rule {rule} does not go with running statistics that travel"
        whole = needs.mixing in ("columns", "walk")  # nothing stays with its site, so neither may batch norm
        found.append((what, needs.statistics_reason, WITHOUT_NORM if whole else PRIVATE_NORM))
    return found


def _or(names: Sequence[str]) -> str:
    return " or ".join((", ".join(names[:-1]), names[-1])) if len(names) > 1 else "".join(names)
