"""Weights for mixing on arrival: smaller ones, since displacements that come late can swing.

An edge between i and j that is applied k rounds late adds a (x_j(t-k) - x_i(t-k)). Already x(t+1) = x(t) - a x(t-k) is
stable only for 0 < a < 2 cos(k pi / (2k + 1)) (Levin and May, "A note on difference-delay equations", 1976): for k = 1
below 1, where the eigenvalues of I - W reach up to 2. For delays that vary within 0 to k it is enough that

    a (k + 1) < 3/2 + 1 / (2k + 2)        (Erbe, Xia and Yu, "Global stability of a linear nonautonomous delay
                                           difference equation", 1995)

With all w_ij (i != j) times 3 / (4 (S + 1)), the eigenvalues of I - W stay below 3 / (2 (S + 1)), so that the bound
holds for every mode. Both results are for one equation; that whole graphs with a delay of its own at each end of each
edge follow them is measured (tests/topology/test_topology_delays.py), not proved here.
"""

from __future__ import annotations

from math import fsum

import numpy as np
from scipy import sparse

from p2pfl.topology.mixing import Mixing


def delay_factor(staleness: int) -> float:
    """What the weights between sites are multiplied by when an edge may be applied up to ``staleness`` rounds late."""
    return 1.0 if staleness == 0 else 3.0 / (4.0 * (staleness + 1))


def with_delays(mixing: Mixing, staleness: int) -> Mixing:
    """The same mixing with smaller steps: I + factor (W - I). pi_i w_ij stays symmetric in i and j."""
    if staleness == 0:
        return mixing
    factor = delay_factor(staleness)
    places = {node: place for place, node in enumerate(mixing.nodes)}
    matrix = sparse.dok_array((len(places), len(places)), dtype=np.float64)
    for node, place in places.items():
        weights = {places[other]: factor * weight for other, weight in mixing.neighbours(node)}
        matrix[place, place] = 1.0 - fsum(weights.values())
        for other, weight in weights.items():
            matrix[place, other] = weight
    return Mixing(mixing.nodes, matrix.tocsr())
