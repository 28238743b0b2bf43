"""`p2pfl topology show`: a graph's weights, its speed, and which absences it survives."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any

import typer

from p2pfl.cli.home import AsJson
from p2pfl.cli.output import show
from p2pfl.errors import ConfigError
from p2pfl.governance import parse_charter
from p2pfl.peer import read_text
from p2pfl.topology import absences_that_disconnect, build_graph, spectral_gap, stationary_weights
from p2pfl.types import PeerId

app = typer.Typer(no_args_is_help=True)
MOST_SITES = 1000  # the table of weights has a column for each
MOST_PAIRS = 200  # sites up to which all pairs of absences are tried


@app.callback()
def group() -> None:
    """Look at graphs before a run."""


@app.command("show")
def show_topology(
    kind: Annotated[str, typer.Argument(help="ring, full, hierarchical, or a JSON file with a spec.", metavar="KIND")],
    sites: Annotated[int | None, typer.Option("--sites", help="Number of equal sites.", min=1, max=MOST_SITES)] = None,
    charter: Annotated[Path | None, typer.Option("--charter", help="Take the sites from this charter.")] = None,
    clusters: Annotated[int | None, typer.Option("--clusters", help="Number of clusters, for hierarchical.")] = None,
    shares: Annotated[str | None, typer.Option("--shares", help="Sample counts, such as 303,294,123,200.")] = None,
    as_json: AsJson = False,
) -> None:
    """Print who mixes with whom and with which weight, the spectral gap, and which absences disconnect the graph.

    Example: p2pfl topology show ring --sites 4 --shares 40,30,20,10
    """
    counts = _counts(shares)
    if charter is not None:
        names = [member.name for member in parse_charter(read_text(charter)).members]
    else:
        names = [f"site-{number}" for number in range(sites or len(counts) or 4)]
    counts = counts or [1.0] * len(names)
    if len(counts) != len(names):
        raise ConfigError(f"{len(counts)} sample counts for {len(names)} sites; give one per site")
    nodes = [PeerId(name) for name in names]
    graph = build_graph(_spec(kind, clusters), nodes)
    pi = [count / sum(counts) for count in counts]
    matrix = stationary_weights(graph, dict(zip(nodes, pi, strict=True)))
    gap = spectral_gap(matrix, pi)
    alone = absences_that_disconnect(graph, 1)
    pairs = absences_that_disconnect(graph, 2) if len(nodes) <= MOST_PAIRS else []
    dense = matrix.toarray()
    value = {
        "sites": names,
        "edges": [list(edge) for edge in graph.edges],
        "weights": [[float(cell) for cell in row] for row in dense],
        "spectral_gap": gap,
        "disconnecting": [sorted(gone) for gone in alone],
        "disconnecting_pairs": [sorted(gone) for gone in pairs],
    }
    lines = [f"sites {len(names)}, edges {graph.number_of_edges()}, spectral gap {gap:.6f}"]
    for row, name in enumerate(names):
        others = [f"{names[column]} {dense[row, column]:.4f}" for column in range(len(names)) if dense[row, column] > 0]
        lines.append(f"{name:<16} {', '.join(others)}")
    lines.append(f"one absence that disconnects: {_list(alone)}")
    lines.append(f"two absences that disconnect: {_list(pairs)}" if len(nodes) <= MOST_PAIRS else "pairs not tried")
    show(value, as_json, lines)


def _list(absences: list[frozenset[PeerId]]) -> str:
    return "; ".join(" and ".join(sorted(gone)) for gone in absences) or "none"


def _counts(text: str | None) -> list[float]:
    try:
        counts = [float(part) for part in text.split(",")] if text else []
    except ValueError as error:
        raise ConfigError(f"--shares {text!r}: write sample counts such as 303,294,123,200") from error
    if any(not 0 < count < math.inf for count in counts):
        raise ConfigError(f"--shares {text!r}: every site has patients; write positive sample counts")
    return counts


def _spec(kind: str, clusters: int | None) -> dict[str, Any]:
    if kind.endswith(".json"):
        try:
            spec = json.loads(read_text(Path(kind)))
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{kind} is not valid JSON: {error}; mend it") from error
        if not isinstance(spec, dict):
            raise ConfigError(f'{kind} must hold a spec such as {{"kind": "edges", "edges": [[0, 1]]}}')
        return spec
    return {"kind": kind, **({"clusters": clusters} if clusters is not None else {})}
