"""Graphs and inboxes in both forms: one peer with its neighbours, and n sites as rows of [n, P]."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from p2pfl.errors import IllegalStep


class PeerGraph:
    """The edges between one site and its ``degree`` neighbours; tensors are [P], edges [degree, p]."""

    def __init__(self, share: float, degree: int = 0, dtype: torch.dtype = torch.float64) -> None:
        self.share = torch.tensor([share], dtype=dtype)
        self._degree = degree

    def at_sender(self, x: Tensor) -> Tensor:
        """[p] -> [degree, p]."""
        return x.expand(self._degree, x.shape[-1])

    def rev(self, m: Tensor) -> Tensor:
        """The messages that came in, in the same order as those that go out."""
        return m

    def total(self, m: Tensor) -> Tensor:
        """[degree, p] -> [p]."""
        return m.sum(dim=0)


class PeerInbox:
    """One site's arrivals: displacements [p] and, for channels per edge, single messages [degree, p]."""

    def __init__(self, pulls: Mapping[str, Tensor], edges: Mapping[str, Tensor] | None = None) -> None:
        self._pulls = pulls
        self._edges = edges or {}

    def pull(self, channel: str) -> Tensor:
        """The displacement of this channel."""
        return self._pulls[channel]

    def edges(self, channel: str) -> Tensor:
        """The single messages of this channel."""
        return self._edges[channel]

    def total(self, channel: str) -> Tensor:
        """Their sum."""
        return self._edges[channel].sum(dim=0)


class SparseMatrix(Protocol):
    """What is used of a scipy sparse array; ``topology`` makes them."""

    def tocoo(self) -> SparseMatrix: ...

    @property
    def row(self) -> Sequence[int]: ...

    @property
    def col(self) -> Sequence[int]: ...

    @property
    def data(self) -> Sequence[float]: ...


class VectorGraph:
    """n sites; one directed edge for each non-zero w_ij with i != j; tensors are [n, P], edges [E, p].

    ``edges`` holds (receiver, sender, weight), in both directions for every pair. Raises IllegalStep for an
    edge without its opposite, or a loop.
    """

    def __init__(self, sites: int, edges: Sequence[tuple[int, int, float]], shares: Tensor | Sequence[float]) -> None:
        ordered = sorted(edges)
        places = {(receiver, sender): place for place, (receiver, sender, _) in enumerate(ordered)}
        loops = [edge for edge in ordered if edge[0] == edge[1] or (edge[1], edge[0]) not in places]
        if loops:
            raise IllegalStep(f"edge {loops[0][:2]} is a loop or has no opposite; list every pair both ways")
        self.sites = sites
        self.share = torch.as_tensor(shares, dtype=torch.float64).reshape(sites, 1)
        self.receiver = torch.tensor([edge[0] for edge in ordered], dtype=torch.int64)
        self.sender = torch.tensor([edge[1] for edge in ordered], dtype=torch.int64)
        self.weight = torch.tensor([edge[2] for edge in ordered], dtype=torch.float64)
        self._opposite = torch.tensor([places[sender, receiver] for receiver, sender, _ in ordered], dtype=torch.int64)
        incidence = torch.stack((self.receiver, torch.arange(len(ordered))))
        self._arrive = torch.sparse_coo_tensor(
            incidence,
            torch.ones(len(ordered), dtype=torch.float64),
            (sites, len(ordered)),
            check_invariants=True,
        ).coalesce()
        self._mix = torch.sparse_coo_tensor(
            torch.stack((self.receiver, self.sender)), self.weight, (sites, sites), check_invariants=True
        ).coalesce()
        self._leave = torch.zeros(sites, dtype=torch.float64).index_add(0, self.receiver, self.weight).unsqueeze(-1)

    @classmethod
    def from_matrix(cls, matrix: SparseMatrix, shares: Tensor | Sequence[float]) -> VectorGraph:
        """From a mixing matrix W [n, n], row = receiver; its diagonal is what is left over."""
        coo = matrix.tocoo()
        edges = [(int(i), int(j), float(w)) for i, j, w in zip(coo.row, coo.col, coo.data, strict=True) if i != j and w]
        return cls(len(shares), edges, shares)

    def at_sender(self, x: Tensor) -> Tensor:
        """[n, p] -> [E, p]."""
        return x.index_select(0, self.sender)

    def rev(self, m: Tensor) -> Tensor:
        """[E, p] -> [E, p], each edge's opposite."""
        return m.index_select(0, self._opposite)

    def total(self, m: Tensor) -> Tensor:
        """[E, p] -> [n, p] at the receivers."""
        arrived: Tensor = torch.sparse.mm(self._arrive.to(m.dtype), m)
        return arrived

    def pull(self, m: Tensor) -> Tensor:
        """sum_j w_ij (m_j - m_i), [n, p], as one sparse product."""
        mixed: Tensor = torch.sparse.mm(self._mix.to(m.dtype), m)
        return mixed - self._leave.to(m.dtype) * m


class VectorInbox:
    """What n sites received of each other's ``messages`` in one round without losses."""

    def __init__(self, graph: VectorGraph, messages: Mapping[str, Tensor]) -> None:
        self._graph = graph
        self._messages = messages

    def pull(self, channel: str) -> Tensor:
        """Displacements [n, p]."""
        return self._graph.pull(self._messages[channel])

    def edges(self, channel: str) -> Tensor:
        """Single messages [E, p]."""
        return self._messages[channel]

    def total(self, channel: str) -> Tensor:
        """Their sums at the receivers, [n, p]."""
        return self._graph.total(self._messages[channel])
