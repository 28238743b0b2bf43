"""A graph as a figure: sites as dots, coloured by a value if there is one (accuracy, say), edges as lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import networkx as nx
import numpy as np

from p2pfl.errors import ConfigError
from p2pfl.extras import optional
from p2pfl.figures import literal, new_figure

MOST_SPRINGS = 150  # sites up to which all distances are fitted (Kamada and Kawai); seconds beyond
MOST_LABELS = 60
CIRCULAR = ("ring", "full")


def graph_layout(graph: nx.Graph, kind: str = "") -> np.ndarray[Any, Any]:
    """Positions [n, 2] in the plane, in the order of the nodes; the same each time."""
    if kind in CIRCULAR or len(graph) <= 2:
        places = nx.circular_layout(graph)
    elif len(graph) <= MOST_SPRINGS:
        places = nx.kamada_kawai_layout(graph)
    else:
        places = nx.spring_layout(graph, seed=0, iterations=50)
    return np.array([places[node] for node in graph])


def graph_figure(
    graph: nx.Graph,
    *,
    kind: str = "",
    values: Sequence[float] | Mapping[Any, float] | None = None,
    title: str = "",
    value_name: str = "",
    limits: tuple[float, float] | None = None,
) -> Any:
    """A matplotlib Figure (needs the extra ``sim``). ``values``: one per node, or by node; ``limits`` of their colours.

    ConfigError for a wrong number of values, or where matplotlib is missing.
    """
    if isinstance(values, Mapping):
        values = [values[node] for node in graph if node in values]
    if values is not None and len(values) != len(graph):
        raise ConfigError(f"{len(values)} values for {len(graph)} sites; give one per site")
    places = graph_layout(graph, kind)
    of_node = dict(zip(graph, places, strict=True))
    figure = new_figure(6.0, 5.0)
    axes = figure.add_subplot()
    lines = optional("matplotlib.collections", "sim").LineCollection(
        [(of_node[one], of_node[other]) for one, other in graph.edges], colors="0.7", linewidths=0.8, zorder=1
    )
    axes.add_collection(lines)
    size = float(np.clip(4000 / len(graph), 8, 260))
    least, most = limits if limits is not None else (None, None)
    colours: dict[str, Any] = (
        {"color": "tab:blue"} if values is None else {"c": list(values), "cmap": "viridis", "vmin": least, "vmax": most}
    )
    dots = axes.scatter(places[:, 0], places[:, 1], s=size, zorder=2, **colours)
    if values is not None:
        figure.colorbar(dots, ax=axes, label=literal(value_name))
    if len(graph) <= MOST_LABELS:
        for node, place in of_node.items():
            axes.annotate(
                literal(str(node)[:24]), place, xytext=(0, 9), textcoords="offset points", ha="center", fontsize=7
            )
    axes.set_title(literal(title))
    axes.set_axis_off()
    axes.set_aspect("equal")
    axes.margins(0.1)
    return figure
