"""The mixings of one round of n sites, a block of columns at a time, so that memory stays a few times [n, P].

Rules that are linear add pulls and nothing else, each entry by itself: a block of columns is sent, mixed and merged
before the next one, in place, and stays in the cache while it is. A kernel makes rounds that only add the pull.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from p2pfl.sim.plain_merges import only_adds
from p2pfl.sim.vector_faults import Sending, VectorFault
from p2pfl.topology import Mixing
from p2pfl.train.add_product import Addition, addition
from p2pfl.train.mixing import PeerInbox
from p2pfl.train.push_weights import most_told, quotient, told
from p2pfl.train.rules import Context, Graph, Messages, Rule, State
from p2pfl.train.sparse import SparseProduct, displacements
from p2pfl.train.threads import dealt, on_threads
from p2pfl.types import WEIGHT

BLOCK = 1 << 17  # numbers of a block: what stays in a core's cache
DEVICE_BLOCK = 1 << 26  # on other devices: it only bounds the memory
NARROWEST = 64  # columns: 256 bytes of each row; the product is fastest there for 10,000 sites
LINE = 16  # columns: a line of the cache; of narrow models, so that blocks are a small part of all
PRODUCTS_KEPT = 64  # sparse products in memory; rotating heads have as many in a schedule


class Pull(Protocol):
    """One mixing: the displacements [n, p] of messages [n, p]; ``own`` are those of the sites themselves.

    They differ where a site sends something else than it has.
    """

    def __call__(self, sent: Tensor, own: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Kept:
    """Messages of some sites of one place that later rounds need again."""

    rows: Tensor  # [r] sites
    channels: Mapping[str, Tensor]  # [r, P] each; [r, 1] of the weight


Further = Callable[[int, str, slice], Tensor | None]
"""Displacements of a step, a channel and a block of columns."""


def nothing_further(step: int, channel: str, columns: slice) -> Tensor | None:
    """There are none."""
    return None


class LinearMixing:
    """Sends, mixes and merges in place; keeps the flow [n, P] of accelerated closing rounds (`p2pfl.train.inertia`)."""

    def __init__(self, rule: Rule, graph: Graph, shared: Tensor | None) -> None:
        """``shared`` [P]: 1 at entries that travel, 0 at others; None if all do."""
        self._rule, self._graph, self._shared = rule, graph, shared
        self.model = next(channel.name for channel in rule.channels if channel.base == "model")
        self.flow: Tensor | None = None  # none before the first accelerated round
        self._places = {channel.name: place for place, channel in enumerate(rule.channels)}
        self._most = most_told(graph.share) if WEIGHT in self._places else None
        self._addition: Addition | None = None

    def quicken(self) -> str | None:
        """Compile the kernel of rounds that only add; why that is not possible, in words. Changes no bit."""
        self._addition, why_not = addition()
        return why_not

    def round(
        self,
        x: Tensor,
        state: State,
        context: Context,
        pulls: Sequence[Pull],
        *,
        closing: bool,
        lying: Sequence[tuple[VectorFault, Tensor]] = (),
        keep: Mapping[int, Kept] | None = None,
        more: Further = nothing_further,
        inertia: float | None = None,
        lost: Further = nothing_further,
    ) -> None:
        """``keep``: by step, where the messages as sent are copied to. ``more``: further displacements of a step.

        ``inertia`` of an accelerated closing round; ``lost``: what leaves the flow with what ``more`` takes back.
        """
        if inertia is not None and self.flow is None:
            self.flow = torch.zeros_like(x)
        as_it_is = not lying and not keep and inertia is None and more is nothing_further
        if as_it_is and self._added(x, state, context, pulls, closing):
            return
        size = x.shape[-1]
        on_cpu = x.device.type == "cpu"
        narrowest = max(LINE, min(NARROWEST, size // 16))
        most = (BLOCK if on_cpu else DEVICE_BLOCK) // max(1, len(x))
        width = max(narrowest, most // LINE * LINE)  # rows that begin in the middle of a line are slower
        blocks = [slice(first, min(first + width, size)) for first in range(0, size, width)]
        whole: State = {}

        def share(part: range) -> None:
            for at in part:
                columns = blocks[at]
                parts = {n: v[:, columns] if v.shape == x.shape else v for n, v in state.items()}
                block = x[:, columns].contiguous()
                after, merged = self._block(
                    block, parts, context, pulls, closing, lying, keep or {}, more, columns, inertia, lost
                )
                for name, value in after.items():
                    if value is not parts[name] and state[name].shape == x.shape:
                        state[name][:, columns] = value
                    elif value is not parts[name]:
                        whole[name] = value  # the same of every block
                x[:, columns] = merged

        shares = [partial(share, part) for part in dealt(len(blocks), torch.get_num_threads())]
        if on_cpu:
            on_threads(shares)
        else:
            share(range(len(blocks)))
        state.update(whole)

    def _added(self, x: Tensor, state: State, context: Context, pulls: Sequence[Pull], closing: bool) -> bool:
        """Mix by the kernel, if that is the same."""
        quick, pull = self._addition, pulls[0] if len(pulls) == 1 else None
        if quick is None or not isinstance(pull, Honest) or not quick.fits(pull.product, x):
            return False
        if self._shared is not None or WEIGHT in self._places or self._rule.needs.adds_pulls:
            return False
        if not only_adds(self._rule, state, context, self._graph, self.model, closing=closing):
            return False
        quick(pull.product, x)
        return True

    def _block(
        self, x: Tensor, state: State, context: Context, pulls: Sequence[Pull], closing: bool,
        lying: Sequence[tuple[VectorFault, Tensor]], keep: Mapping[int, Kept],
        more: Further, columns: slice, inertia: float | None, lost: Further,
    ) -> tuple[State, Tensor]:  # fmt: skip
        messages: Messages = {self.model: x}
        if not closing or WEIGHT in self._places:
            state, messages = self._rule.send(state, x, context, self._graph)
        totals: Messages = {}
        for step, pull in enumerate(pulls):
            moved: Messages = {}
            for name, own in messages.items():
                sent = self._sent(name, own, Sending(context.round, step, self._places[name], columns.start), lying)
                if step in keep:
                    keep[step].channels[name][:, _of(name, columns)] = sent[keep[step].rows]
                if WEIGHT in messages and name != WEIGHT:
                    lies, own = sent is not own, own * messages[WEIGHT]
                    sent = sent * messages[WEIGHT] if lies else own
                displacement = self._displacement(pull, name, sent, own)
                if inertia is not None:
                    displacement = self._flowing(displacement, inertia, lost(step, name, columns), columns)
                extra = more(step, name, columns)
                if extra is not None:
                    displacement = displacement + extra
                if self._shared is not None:
                    displacement = displacement * self._shared[columns]
                totals[name] = totals[name] + displacement if step else displacement
                moved[name] = displacement
            if step < len(pulls) - 1:
                messages = _as_mixed(messages, moved, self._most)
        for name in [name for name in self._places if name not in totals]:
            taken_back = more(len(pulls) - 1, name, columns)  # in closing rounds; of entries that travel alone
            totals[name] = torch.zeros_like(x) if taken_back is None else taken_back
        return self._rule.merge(state, x, context, PeerInbox(totals))

    def _flowing(self, displacement: Tensor, inertia: float, lost: Tensor | None, columns: slice) -> Tensor:
        """The round's displacements and those before, ever weaker; accelerated closing rounds mix once."""
        assert self.flow is not None
        flow = displacement + inertia * self.flow[:, columns]
        self.flow[:, columns] = flow if lost is None else flow + lost
        return flow

    def _sent(self, name: str, own: Tensor, sending: Sending, lying: Sequence[tuple[VectorFault, Tensor]]) -> Tensor:
        """What goes out in place of the honest message; weights are told as they are."""
        sent = own
        for fault, sites in lying if name != WEIGHT else ():
            sent = sent.index_copy(0, sites, fault.sent(own[sites], sites, sending))
        return sent

    def _displacement(self, pull: Pull, channel: str, sent: Tensor, own: Tensor) -> Tensor:
        if channel != self.model or not self._rule.needs.adds_pulls:
            return pull(sent, own)
        # less one site's vector: (W - I) 1 = 0, and what is left rounds with the sites' distance, not with x
        middle = own[:1]
        centred = own - middle
        return pull(centred if sent is own else sent - middle, centred)


def weighed(messages: Mapping[str, Tensor], name: str, columns: slice) -> Tensor:
    """What is mixed of a block of a message [s, P]: that, times the weight if there is one."""
    message = messages[name][:, _of(name, columns)]
    return message * messages[WEIGHT] if WEIGHT in messages and name != WEIGHT else message


def _of(name: str, columns: slice) -> slice:
    """Each block of columns has the whole weight with it."""
    return slice(None) if name == WEIGHT else columns


def _as_mixed(messages: Messages, moved: Messages, most: Tensor | None) -> Messages:
    """The messages of the next mixing of a round; ``most`` [n, 1] is told of weights."""
    if WEIGHT not in messages:
        return {name: own + moved[name] for name, own in messages.items()}
    weight = messages[WEIGHT] + moved[WEIGHT]
    found = {name: quotient(own * messages[WEIGHT] + moved[name], weight, own) for name, own in messages.items()}
    return {**found, WEIGHT: told(weight, most)}


class Honest:
    """The mixing of a sparse product (W - I), all of whose diagonal is -sum of the row's weights."""

    def __init__(self, product: SparseProduct) -> None:
        self.product = product

    def __call__(self, sent: Tensor, own: Tensor) -> Tensor:
        """See `Pull`."""
        moved = self.product(sent)
        return moved if sent is own else moved + self.product.diagonal(own.dtype) * (own - sent)


class ScheduledPulls:
    """The sparse products of a schedule's mixings, without those who are away: what they weigh stays where it is."""

    def __init__(self, sites: int, device: torch.device) -> None:
        self._sites, self._device = sites, device
        self._kept: dict[Any, tuple[Mixing, Pull]] = {}

    def of(self, mixing: Mixing, absent: Any) -> Pull:
        """Of one mixing; ``absent`` int64, sorted."""
        key = (id(mixing), absent.tobytes())
        if key not in self._kept:
            if len(self._kept) >= PRODUCTS_KEPT:
                self._kept.clear()
            rows, columns, weights, given = mixing.entries
            here = ~(np.isin(rows, absent) | np.isin(columns, absent))
            product = displacements(rows[here], columns[here], weights[here], self._sites, self._device, given[here])
            self._kept[key] = mixing, Honest(product)  # with the mixing, so that its id is nobody else's
        return self._kept[key][1]
