"""Owns what plans may ask of each update rule: its numbers, and what it does not go with, each with its reason.

The rules themselves live in the training room, which governance does not know; a test holds the two together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from p2pfl.ranges import Range


@dataclass(frozen=True, slots=True)
class Limits:
    """What a rule does not go with; an empty reason: it does. All reasons are parts of sentences."""

    numbers: Mapping[str, Range] = field(default_factory=dict)
    no_delays: str = ""  # asynchronous runs
    sgd_only: str = ""
    one_step: str = ""  # more than one local step in a round
    static: str = ""  # mixings that differ from round to round, or several in one
    tree: str = ""  # graphs with cycles
    balanced: str = ""  # edges over which sites give other amounts than they take
    by_shares: str = ""  # weights of a topology by which sites count otherwise than by their samples
    no_newcomers: str = ""
    no_statistics: str = ""  # running statistics that travel
    halved: bool = False  # it mixes with (I + W) / 2, also in closing rounds
    plain_closing: str = ""  # accelerated closing rounds
    walks: bool = False  # it goes with one model that walks from site to site, and with nothing else


UNWEIGHED = "without push-sum's weights its models would lose their scale"
"""Why rules that mix models alone take no directed mixing."""

WALKS = "one site at a time has the model there, and trains it"
NO_WALK = "on all other topologies no site would ever have all of it"

LIMITS: Mapping[str, Limits] = {
    "dpsgd": Limits(balanced=UNWEIGHED),
    "fedprox": Limits(balanced=UNWEIGHED, numbers={"proximal": Range(0.0, 1000.0)}),
    "kgt": Limits(
        balanced=UNWEIGHED,
        no_delays="how its correction reacts to displacements that come late is neither proven nor measured",
        sgd_only="z is the mean gradient only if every local step is lr times a gradient",
    ),
    "quasi_global": Limits(
        balanced=UNWEIGHED,
        numbers={"beta": Range(0.0, 1.0, below=True), "mu": Range(0.0, 1.0, below=True)},
        no_delays="its momentum would take displacements that come late for progress, which is not measured",
        sgd_only="it is its own momentum, and a second one on top would count every gradient twice",
    ),
    "exact_diffusion": Limits(
        balanced=UNWEIGHED,
        no_delays="its convergence is proven for displacements that come in their round only",
        sgd_only="its correction cancels the bias of a step of lr times a gradient, and of no other step",
        one_step="with more steps exact diffusion stalls away from the optimum; K-GT does not",
        static="its convergence is proven for a mixing that stays the same only",
        no_statistics="its correction could push running variances below 0",
        halved=True,
        plain_closing="it mixes with (I + W) / 2, and their weights are those for W",
    ),
    "gradient_tracking": Limits(
        balanced=UNWEIGHED,
        no_delays="how its tracking reacts to displacements that come late is neither proven nor measured",
        sgd_only="y tracks the mean gradient only if every step is lr times y",
        one_step="its tracking sees one gradient per round; K-GT is the same with more steps",
    ),
    "relaysgd": Limits(
        balanced=UNWEIGHED,
        no_delays="it counts each site once per round, and a late message would be counted twice or never",
        static="its relays go round by round over the edges of one tree",
        tree="it would count a site once for each path to it",
        by_shares="its relays count each site by its samples whatever the weights",
        no_newcomers="its relays count every site from the first round on, and cannot begin in the middle of a run",
    ),
    "sgp": Limits(
        no_delays="how its weights react to displacements that come late is neither proven nor measured",
        no_statistics="a light weight could push running variances below 0",
        plain_closing="how its weights take a momentum of their own is neither proven nor measured",
    ),
    "cyclic": Limits(
        no_delays="one model is at one site at a time, so that there is nothing to mix late",
        no_newcomers="whose turn it is follows from who has begun",
        no_statistics="what two sites add at once after a loss could push running variances below 0",
        plain_closing="one closing round brings the model to all sites",
        walks=True,
    ),
}


def numbers_problem(rule: str, values: Mapping[str, float]) -> str | None:
    """What is wrong with a rule's own numbers; None if nothing."""
    known = LIMITS[rule].numbers
    for name, value in values.items():
        if name not in known:
            return f"rule {rule} has no setting {name[:60]}; its settings are: {', '.join(sorted(known)) or 'none'}"
        if not known[name].holds(value):
            return f"rule setting {name} is {value:g}; write {known[name].allowed}"
    return None


def steps_problem(rule: str, optimiser: str, most_steps: int) -> str | None:
    """Why a rule does not go with the optimiser, or with so many local steps at most; None if it does."""
    limits = LIMITS[rule]
    if limits.sgd_only and optimiser != "sgd":
        what = f"rule {rule} does not go with optimiser {optimiser}: {limits.sgd_only}"
        return _sentence(what, "sgd", lambda other: not other.sgd_only)
    if limits.one_step and most_steps > 1:
        what = f"rule {rule} takes at most 1 local step a round, not {most_steps}: {limits.one_step}"
        return _sentence(what, "local_steps = 1", lambda other: not other.one_step)
    return None


def delays_problem(rule: str) -> str | None:
    """Why a rule does not go with the asynchronous policy; None if it does."""
    reason = LIMITS[rule].no_delays
    what = f"rule {rule} needs the synchronous policy: {reason}"
    return _sentence(what, "to leave policy out", lambda other: not other.no_delays) if reason else None


def varying_problem(rule: str) -> str | None:
    """Why a rule does not go with mixings that differ from round to round; None if it does."""
    reason = LIMITS[rule].static
    what = f"rule {rule} needs one and the same mixing in every round: {reason}"
    return _sentence(what, "the topology ring or chain", lambda other: not other.static) if reason else None


def directed_problem(rule: str) -> str | None:
    """Why a rule does not go with sites that give other amounts over an edge than they take; None if it does."""
    reason = LIMITS[rule].balanced
    what = f"rule {rule} does not go with a directed topology: {reason}"
    return _sentence(what, "the topology ring or matching", lambda other: not other.balanced) if reason else None


def walking_problem(rule: str, *, walks: bool) -> str | None:
    """Why a rule does not go with a topology on which one model walks, or on which none does; None if it does."""
    if LIMITS[rule].walks == walks:
        return None
    if walks:
        what = f"rule {rule} does not go with the topology cyclic: {WALKS}"
        return _sentence(what, "another topology, such as ring", lambda other: True, walks=True)
    what = f"rule {rule} needs a model that walks: {NO_WALK}"
    return _sentence(what, "the topology cyclic", lambda other: True)


def weights_problem(rule: str) -> str | None:
    """Why a rule does not go with weights other than by sample shares; None if it does."""
    reason = LIMITS[rule].by_shares
    what = f"rule {rule} does not go with a topology that has weights of its own: {reason}"
    return _sentence(what, 'weights = "shares"', lambda other: not other.by_shares) if reason else None


def closing_problem(rule: str) -> str | None:
    """Why a rule does not go with accelerated closing rounds; None if it does."""
    reason = LIMITS[rule].plain_closing
    what = f"rule {rule} does not go with accelerated closing rounds: {reason}"
    return _sentence(what, 'closing = "plain"', lambda other: not other.plain_closing) if reason else None


def statistics_problem(rule: str) -> str | None:
    """Why a rule does not go with running statistics that travel; None if it does."""
    reason = LIMITS[rule].no_statistics
    what = f"rule {rule} does not go with running statistics that travel: {reason}"
    remedy = 'batch_norm = "private" and buffers = "exclude", or GroupNorm'
    if not LIMITS[rule].balanced:  # weights go with whole models
        remedy = 'GroupNorm in place of batch norm and buffers = "exclude"'
    return _sentence(what, remedy, lambda other: not other.no_statistics) if reason else None


def _sentence(what: str, remedy: str, fits: Callable[[Limits], bool], *, walks: bool = False) -> str:
    others = [name for name, limits in LIMITS.items() if fits(limits) and limits.walks == walks]
    return f"{what}; choose {remedy}, or the rule {' or '.join(filter(None, (', '.join(others[:-1]), others[-1])))}"
