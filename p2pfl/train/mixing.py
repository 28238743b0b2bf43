"""Graphs and inboxes in both forms: one peer with its neighbours, and n sites as rows of [n, P]."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from p2pfl.errors import IllegalStep
from p2pfl.train.sparse import SparseProduct, displacements
from p2pfl.types import WEIGHT


class PeerGraph:
    """What one site knows of the graph; tensors are [P]."""

    def __init__(self, share: float, dtype: torch.dtype = torch.float64, *, first_weight: float = 1.0) -> None:
        self.share = torch.tensor([share], dtype=dtype)
        self.first_weight = torch.tensor([first_weight], dtype=dtype)


class PeerInbox:
    """One site's arrivals: displacements [p] and, of relayed channels, the sums [p]."""

    def __init__(self, pulls: Mapping[str, Tensor], totals: Mapping[str, Tensor] | None = None) -> None:
        self._pulls = pulls
        self._totals = totals or {}

    def pull(self, channel: str) -> Tensor:
        """The displacement of this channel."""
        return self._pulls[channel]

    def total(self, channel: str) -> Tensor:
        """The sum of this relayed channel."""
        return self._totals[channel]


class SparseMatrix(Protocol):
    """What is used of a scipy sparse array; ``topology`` makes them."""

    def tocoo(self) -> SparseMatrix: ...

    @property
    def row(self) -> Any: ...

    @property
    def col(self) -> Any: ...

    @property
    def data(self) -> Any: ...


class VectorGraph:
    """n sites; one directed edge for each non-zero w_ij with i != j; tensors are [n, P], edges [E, p].

    ``edges`` holds (receiver, sender, weight), in both directions for every pair. Raises IllegalStep for an
    edge without its opposite, or a loop. Sums run over each receiver's edges in the order of the senders.
    """

    def __init__(
        self,
        sites: int,
        edges: Sequence[tuple[int, int, float]],
        shares: Tensor | Sequence[float],
        device: str | torch.device = "cpu",
    ) -> None:
        columns = np.array([tuple(edge) for edge in edges], dtype=np.float64).reshape(-1, 3)
        self._set(sites, columns[:, 0].astype(np.int64), columns[:, 1].astype(np.int64), columns[:, 2], shares, device)

    def _set(
        self, sites: int, receiver: Any, sender: Any, weight: Any, shares: Any, device: str | torch.device
    ) -> None:
        order = np.lexsort((sender, receiver))
        receiver, sender, weight = receiver[order], sender[order], weight[order]
        place = receiver * sites + sender
        opposite = np.searchsorted(place, sender * sites + receiver)
        found = place[np.minimum(opposite, len(place) - 1)] == sender * sites + receiver if len(place) else place
        wrong = (receiver == sender) | (found == 0)
        if wrong.any():
            bad = int(np.argmax(wrong))
            edge = (int(receiver[bad]), int(sender[bad]))
            raise IllegalStep(f"edge {edge} is a loop or has no opposite; list every pair both ways")
        self.sites = sites
        share = shares if isinstance(shares, Tensor) else torch.as_tensor(shares, dtype=torch.float64)
        self.share = share.to(device).reshape(sites, 1)
        self.first_weight = torch.ones_like(self.share)
        self.receiver, self.sender = (torch.from_numpy(ends).to(device) for ends in (receiver, sender))
        self.weight = torch.from_numpy(weight).to(device)
        self._opposite = torch.from_numpy(opposite).to(device)

    @classmethod
    def from_matrix(
        cls, matrix: SparseMatrix, shares: Tensor | Sequence[float], device: str | torch.device = "cpu"
    ) -> VectorGraph:
        """From a mixing matrix W [n, n], row = receiver; its diagonal is what is left over."""
        coo = matrix.tocoo()
        keep = (coo.row != coo.col) & (coo.data != 0.0)
        graph = cls.__new__(cls)
        graph._set(
            len(shares), coo.row[keep].astype(np.int64), coo.col[keep].astype(np.int64), coo.data[keep], shares, device
        )
        return graph

    @cached_property
    def _arrive(self) -> SparseProduct:
        receiver, edges = self.receiver.cpu().numpy(), np.arange(len(self.receiver))
        return SparseProduct((receiver, edges, np.ones(len(edges))), (self.sites, len(edges)), self.receiver.device)

    @cached_property
    def _mix(self) -> SparseProduct:
        receiver, sender, weight = (ends.cpu().numpy() for ends in (self.receiver, self.sender, self.weight))
        return displacements(receiver, sender, weight, self.sites, self.receiver.device)

    def at_sender(self, x: Tensor) -> Tensor:
        """[n, p] -> [E, p]."""
        return x.index_select(0, self.sender)

    def rev(self, m: Tensor) -> Tensor:
        """[E, p] -> [E, p], each edge's opposite."""
        return m.index_select(0, self._opposite)

    def total(self, m: Tensor) -> Tensor:
        """[E, p] -> [n, p] at the receivers."""
        return self._arrive(m)

    def pull(self, m: Tensor) -> Tensor:
        """sum_j w_ij (m_j - m_i), [n, p], as one sparse product (W - I) m."""
        return self._mix(m)


class VectorRelays:
    """The relays of n sites without losses: each edge's last one, [E, p], at first 0."""

    def __init__(self, graph: VectorGraph) -> None:
        self._graph = graph
        self.last: Tensor | None = None

    def take(self, known: Tensor) -> Tensor:
        """One round: what all sites know, [n, p], less what came along each edge; the sums at the receivers, [n, p]."""
        sent = self._graph.at_sender(known)
        self.last = sent if self.last is None else sent - self._graph.rev(self.last)
        return self._graph.total(self.last)


class VectorInbox:
    """What n sites received of each other's ``messages`` in one round without losses."""

    def __init__(self, graph: VectorGraph, messages: Mapping[str, Tensor], relays: VectorRelays | None = None) -> None:
        self._graph = graph
        self._messages = messages
        self._relays = relays or VectorRelays(graph)

    def pull(self, channel: str) -> Tensor:
        """Displacements [n, p]."""
        message = self._messages[channel]
        weighed = WEIGHT in self._messages and channel != WEIGHT
        return self._graph.pull(message * self._messages[WEIGHT] if weighed else message)

    def total(self, channel: str) -> Tensor:
        """Takes this round's relays in; their sums at the receivers, [n, p]."""
        return self._relays.take(self._messages[channel])
