"""The update-rule interface: what a rule is given and what it answers. Owns no algorithm.

Tensors are ``[..., P]``: ``...`` is empty in a peer and ``(n,)`` in a simulator; scalars are ``[..., 1]``.
A rule reduces over ``dim=-1`` only, never branches on values, and never changes a tensor in place,
so the same lines serve both worlds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from torch import Tensor

from p2pfl.ranges import Range
from p2pfl.types import WEIGHT as WEIGHT

State = dict[str, Tensor]
Messages = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Needs:
    """What a rule asks of its surroundings; :func:`p2pfl.train.rules.check_combination` refuses the rest.

    Each limit has a reason beside it, part of the sentence that people read. What compression, robust merging,
    privacy and personal parts ask of a rule are further fields here, once they exist.
    """

    mixing: Literal["doubly", "tree", "columns", "walk"]
    """"doubly": pi_i w_ij = pi_j w_ji; "tree": and a graph without cycles; "columns": pi W = pi is enough; "walk": a
    schedule in which one model walks from site to site."""
    optimisers: frozenset[str]
    linear: bool  # ``merge`` adds multiples of pulls to x and the state: a displacement can be taken back later
    delays: bool = False  # whether edges may be mixed late; ``delays_reason``: why not
    delays_reason: str = ""
    adopts: bool = True  # the state stays right when x moves to what other sites have (catching up)
    reason: str = ""  # why an optimiser outside ``optimisers`` is refused
    most_steps: int | None = None  # local steps of a round; None: any number; ``steps_reason``: why not more
    steps_reason: str = ""
    static: bool = False  # one mixing per round, the same in every round; ``static_reason``: why
    static_reason: str = ""
    by_shares: bool = False  # sites count by their samples in it, whatever W; ``by_shares_reason``: why W must agree
    by_shares_reason: str = ""
    statistics: bool = True  # whether running statistics may travel as entries of x; ``statistics_reason``: why not
    statistics_reason: str = ""
    unweighed_reason: str = "without push-sum's weights its models would lose their scale"  # why not "columns"
    halved: bool = False  # it mixes with (I + W) / 2, also in closing rounds
    accelerated: bool = True  # whether it goes with accelerated closing rounds; ``closing_reason``: why not
    closing_reason: str = ""
    adds_pulls: bool = False  # of x to its state, so they must round with the sites' distance and not with x


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting(Range):
    """A number of a rule's own that a plan may set."""

    default: float
    meaning: str = ""


@dataclass(frozen=True, slots=True)
class Channel:
    """One named message. ``base`` says what a delta of it is taken against.

    ``relayed``: a message [..., P+1] to all neighbours, from which each takes off what the sender has from itself
    (`p2pfl.train.relays`). The rule's state holds under the channel's name the sum of what was taken in.
    The name `WEIGHT` is that of a message [..., 1], with which the other ones are multiplied where they are mixed.
    """

    name: str
    base: Literal["model", "zero"]
    relayed: bool = False


@dataclass(frozen=True, slots=True)
class Context:
    """Facts of one round: its number, the learning rate, the number K of local steps, whether it only averages."""

    round: int
    lr: float
    steps: int
    each: Tensor | None = None  # [..., 1]: the sites' own numbers where they differ; ``steps`` is then the most
    closing: bool = False


class Gradient(NamedTuple):
    """What the oracle found in local step k."""

    grad: Tensor  # [..., P]
    loss: Tensor  # [...], mean over the batch
    buffers: Tensor | None = None  # [..., B]: new values of the last B entries of the vector
    active: Tensor | None = None  # [..., 1] bool: sites that take step k, where some have fewer; None: all


class Oracle(Protocol):
    """Gradient of the mean loss of the batch of local step ``k`` at ``x`` [..., P]."""

    def __call__(self, x: Tensor, k: int) -> Gradient: ...


class Graph(Protocol):
    """The sites of one round as a rule sees them."""

    @property
    def share(self) -> Tensor:
        """What each site counts in the mean: its sample share, or as the weights say, [..., 1]; all sum to 1."""
        ...

    @property
    def first_weight(self) -> Tensor:
        """The `WEIGHT` that each site begins with, [..., 1]: 1, but where one model walks."""
        ...


class Inbox(Protocol):
    """What arrived in one round."""

    def pull(self, channel: str) -> Tensor:
        """Displacement sum_j w_ij (m_j - m_i), [..., p]; in a directed mixing sum_j (w_ij m_j - g_ij m_i).

        Of rules with a `WEIGHT` m is there the message times the weight.
        """
        ...

    def total(self, channel: str) -> Tensor:
        """Sum over a site's neighbours of what was last taken in of a relayed channel, [..., P+1]."""
        ...


class Rule(Protocol):
    """One update rule. A round is local -> send -> merge."""

    name: str
    needs: Needs
    channels: tuple[Channel, ...]
    settings: Mapping[str, Setting]  # by the names of the constructor's arguments

    def init(self, x: Tensor, graph: Graph) -> State:
        """State before the first round."""
        ...

    def local(self, state: State, x: Tensor, ctx: Context, oracle: Oracle) -> tuple[State, Tensor]:
        """All ``ctx.steps`` local steps; also of a site that takes part in the round with 0 of them."""
        ...

    def send(self, state: State, x: Tensor, ctx: Context, graph: Graph) -> tuple[State, Messages]:
        """One message per channel: [..., P], or [..., P+1] for a relayed channel."""
        ...

    def merge(self, state: State, x: Tensor, ctx: Context, inbox: Inbox) -> tuple[State, Tensor]:
        """The parameters and state after the round's messages."""
        ...
