"""Who holds what after a division: counts, a table for people, a figure."""

from __future__ import annotations

from typing import Any

import numpy as np

from p2pfl.data.examples import Array, Examples, classes_of, is_classes
from p2pfl.data.partition import Parts
from p2pfl.extras import optional
from p2pfl.figures import literal, new_figure

MOST_PEERS = 20  # a longer table is not read but scrolled past
MOST_CLASSES = 20


def holdings(parts: Parts, examples: Examples) -> tuple[Array, Array]:
    """(the classes, counts [peers, classes] int64). Labels that are no classes count as one class, "all"."""
    if not is_classes(examples.labels):
        return np.array(["all"]), np.array([[len(rows)] for rows in parts.rows], dtype=np.int64)
    classes, codes = classes_of(examples.labels)
    counts = [np.bincount(codes[rows], minlength=len(classes)) for rows in parts.rows]
    return classes, np.array(counts, dtype=np.int64)


def holdings_table(parts: Parts, examples: Examples) -> str:
    """One line per peer with its examples of each class; beyond 20 peers or 20 classes a summary."""
    classes, counts = holdings(parts, examples)
    lines = []
    if parts.peers <= MOST_PEERS and len(classes) <= MOST_CLASSES:
        head = ["peer", "examples", *map(str, classes)]
        rows = [[str(peer), str(row.sum()), *map(str, row)] for peer, row in enumerate(counts)]
        widths = [max(len(row[place]) for row in [head, *rows]) for place in range(len(head))]
        for row in [head, *rows]:
            lines.append("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
    else:
        sizes, held = counts.sum(axis=1), (counts > 0).sum(axis=1)
        largest = counts.max(axis=1) / sizes
        lines = [
            f"{parts.peers} peers, {counts.sum()} examples, {len(classes)} classes",
            f"examples per peer: {_spread(sizes)}",
            f"classes per peer: {_spread(held)}",
            f"share of a peer's most frequent class: {_spread(largest)}",
        ]
    if parts.shift is not None and parts.peers <= MOST_PEERS:
        for peer in range(parts.peers):
            factor, offset, noise, turns = parts.shift.of_peer(peer)
            turned = f", turned by {90 * turns} degrees" if parts.shift.quarter_turns else ""
            lines.append(f"peer {peer} sees {factor:.3f} x {offset:+.3f}, noise {noise:.3f}{turned}")
    return "\n".join(lines)


def holdings_figure(parts: Parts, examples: Examples) -> Any:
    """A matplotlib Figure: stacked bars for up to 20 peers and classes, beyond a map of counts. Needs matplotlib."""
    classes, counts = holdings(parts, examples)
    figure = new_figure(max(4.0, min(10.0, 1.5 + 0.4 * parts.peers)), 4.0)
    axes = figure.add_subplot()
    if parts.peers <= MOST_PEERS and len(classes) <= MOST_CLASSES:
        below = np.zeros(parts.peers, dtype=np.int64)
        colours = optional("matplotlib", "sim").colormaps["tab10" if len(classes) <= 10 else "tab20"]
        for place, name in enumerate(classes):
            axes.bar(range(parts.peers), counts[:, place], bottom=below, label=literal(str(name)), color=colours(place))
            below += counts[:, place]
        axes.set_xticks(range(parts.peers))
        axes.set_ylabel("examples")
        if len(classes) > 1:
            axes.legend(title="label", fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0))
    else:
        drawn = axes.imshow(counts.T, aspect="auto", interpolation="nearest", cmap="viridis")
        figure.colorbar(drawn, ax=axes, label="examples")
        if len(classes) <= MOST_CLASSES:
            axes.set_yticks(range(len(classes)), [literal(str(name)) for name in classes])
        axes.set_ylabel("label")
    axes.set_xlabel("peer")
    return figure


def _spread(values: Array) -> str:
    least, middle, most = np.quantile(values, [0, 0.5, 1]).tolist()
    return f"least {least:.4g}, median {middle:.4g}, most {most:.4g}"
