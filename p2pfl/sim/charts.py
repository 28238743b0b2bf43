"""Charts of results: figures over rounds, bytes and simulated hours with bands over seeds; the graph by accuracy.

A group is several runs of one setting that differ in their seed alone: a line is their mean, the band their range.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import networkx as nx
import numpy as np

from p2pfl.figures import literal, new_figure
from p2pfl.sim.results import SimResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Groups = Mapping[str, Sequence[SimResult]]

AXES = {
    "round": ("rounds", 1.0),
    "bytes": ("bytes sent by all sites (MB)", 1e6),
    "seconds": ("simulated hours", 3600.0),
}
MOST_DRAWN = 400  # sites of a graph that a person can still tell apart
MOST_EDGES = 4000


def overview(groups: Groups) -> Figure:
    """All charts of some groups in one figure: for a notebook."""
    figure: Figure = new_figure(12, 8)
    axes = figure.subplots(2, 3).reshape(-1)
    for axis, name in zip(axes, AXES, strict=False):
        draw_metric(axis, groups, name)
    draw_worst(axes[3], groups)
    draw_distance(axes[4], groups)
    draw_graph(axes[5], next(iter(groups.values()))[0])
    return figure


def metric_chart(groups: Groups, over: str) -> Figure:
    """The mean model's figure over "round", "bytes" or "seconds"."""
    figure: Figure = new_figure(6, 3.6)
    draw_metric(figure.subplots(), groups, over)
    return figure


def worst_chart(groups: Groups) -> Figure:
    """The worst site's figure over rounds."""
    figure: Figure = new_figure(6, 3.6)
    draw_worst(figure.subplots(), groups)
    return figure


def distance_chart(groups: Groups) -> Figure:
    """The consensus distance over rounds."""
    figure: Figure = new_figure(6, 3.6)
    draw_distance(figure.subplots(), groups)
    return figure


def graph_chart(result: SimResult) -> Figure:
    """The graph, each site coloured by its own figure at the end."""
    figure: Figure = new_figure(6, 5)
    draw_graph(figure.subplots(), result)
    return figure


def draw_metric(axis: Axes, groups: Groups, over: str) -> None:
    """Line and band of the mean model."""
    _draw(axis, groups, over, "mean_model_{}")
    axis.set_ylabel(f"{_metric(groups)} of the mean model")


def draw_worst(axis: Axes, groups: Groups) -> None:
    """Line and band of the worst site."""
    _draw(axis, groups, "round", "worst_site_{}")
    axis.set_ylabel(f"{_metric(groups)} of the worst site")


def draw_distance(axis: Axes, groups: Groups) -> None:
    """Line and band of the consensus distance; logarithmic where it is never 0."""
    _draw(axis, groups, "round", "distance")
    axis.set_ylabel("consensus distance")
    lines = [np.asarray(line.get_ydata(), dtype=np.float64)[1:] for line in axis.get_lines()]
    if lines and all((values[np.isfinite(values)] > 0).any() for values in lines):
        axis.set_yscale("log", nonpositive="mask")
        lowest = min(float(values[values > 0].min()) for values in lines)
        axis.set_ylim(bottom=lowest / 2)  # all begin alike: the start is rounding and would stretch the axis


def draw_graph(axis: Axes, result: SimResult) -> None:
    """The union graph in a spring layout, coloured by the sites' figures."""
    sites, column = len(result.sites["site"]), result.sites.get(result.metric)
    axis.set_axis_off()
    if sites > MOST_DRAWN or len(result.edges) > MOST_EDGES:
        axis.text(0.5, 0.5, f"{sites} sites, {len(result.edges)} edges:\ntoo many to draw", ha="center", va="center")
        return
    graph = nx.Graph()
    graph.add_nodes_from(range(sites))
    graph.add_edges_from(result.edges.tolist())
    places = layout(graph)
    points = np.array([places[node] for node in range(sites)])
    for one, other in result.edges.tolist():
        axis.plot(*zip(places[one], places[other], strict=True), color="0.8", linewidth=0.8, zorder=1)
    colours = np.full(sites, np.nan) if column is None else column
    drawn = axis.scatter(points[:, 0], points[:, 1], c=colours, cmap="viridis", s=40, zorder=2, plotnonfinite=True)
    if np.isfinite(colours).any():
        axis.figure.colorbar(drawn, ax=axis, label=literal(f"{result.metric} of the site"))


def layout(graph: nx.Graph) -> dict[Any, Any]:
    """Where each node is drawn: a circle for a ring or few nodes, else by springs; the same every time."""
    if len(graph) <= 12 or all(degree == 2 for _, degree in graph.degree):
        return dict(nx.circular_layout(graph))
    return dict(nx.spring_layout(graph, seed=1, iterations=60))


def _draw(axis: Axes, groups: Groups, over: str, column: str) -> None:
    label, unit = AXES[over]
    for name, results in groups.items():
        lines = [line for result in results if (line := _line(result, over, column.format(result.metric)))]
        shared = sorted(set.intersection(*map(set, lines))) if lines else []
        if not shared:
            continue
        # seeds end the same round at different times: both axes are means over the same rounds of all of them
        x = np.mean([[line[round_][0] for round_ in shared] for line in lines], axis=0) / unit
        y = np.array([[line[round_][1] for round_ in shared] for line in lines])
        (drawn,) = axis.plot(x, y.mean(axis=0), label=literal(name), marker="." if len(x) < 30 else None)
        if len(lines) > 1:
            axis.fill_between(x, y.min(axis=0), y.max(axis=0), color=drawn.get_color(), alpha=0.2, linewidth=0)
    axis.set_xlabel(label)
    axis.grid(alpha=0.3)
    if len(groups) > 1 and axis.get_lines():
        axis.legend(fontsize="small")
    if not axis.get_lines():
        axis.text(0.5, 0.5, "not simulated", ha="center", va="center", transform=axis.transAxes)


def _line(result: SimResult, over: str, column: str) -> dict[int, tuple[float, float]]:
    """The point of each round that has both."""
    if over not in result.rounds or column not in result.rounds:
        return {}
    x, y = result.rounds[over].astype(np.float64), result.rounds[column].astype(np.float64)
    known = np.flatnonzero(np.isfinite(x) & np.isfinite(y))
    return {int(result.rounds["round"][at]): (float(x[at]), float(y[at])) for at in known}


def _metric(groups: Groups) -> str:
    return literal(next(iter(groups.values()))[0].metric)
