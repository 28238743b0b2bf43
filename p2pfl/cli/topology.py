"""`p2pfl topology show|advise`: a graph's weights, its speed, which absences it survives; graphs compared."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import networkx as nx
import numpy as np
import typer

from p2pfl.cli.home import AsJson
from p2pfl.cli.output import show, show_table, write_result
from p2pfl.errors import ConfigError
from p2pfl.figures import to_svg
from p2pfl.governance import parse_charter, weights_in_words
from p2pfl.peer import read_text
from p2pfl.topology import (
    KINDS,
    Absences,
    Candidate,
    Schedule,
    absences_that_disconnect,
    advise,
    graph_figure,
    graph_from_text,
    is_graph_file,
    sites_in_file,
    spec_from_text,
    spectral_gap,
    speed_of,
    stationary_weights,
)
from p2pfl.types import PeerId

app = typer.Typer(no_args_is_help=True)
MOST_SITES = 1000  # the table of weights has a column for each
MOST_ROUNDS = 10_000
MOST_CLOSING = 1000  # as in plans
SEEDED = ("regular", "small_world", "erdos_renyi", "matching", "epidemic")
WALKS = "the table is of round 0: who has the model trains it, and gives it to the next site; the rule is cyclic"
DIRECTED = "directed: sites give other amounts than they take; gap and rounds are of what the rule sgp reads"
MOST_PAIRS = 200  # sites up to which all pairs of absences are tried


@app.callback()
def group() -> None:
    """Look at graphs before a run."""


@app.command("show")
def show_topology(
    kind: Annotated[
        str, typer.Argument(help=f"{', '.join(KINDS)}; or a file: JSON, GraphML, list of edges.", metavar="KIND")
    ],
    sites: Annotated[int | None, typer.Option("--sites", help="Number of equal sites.", min=1, max=MOST_SITES)] = None,
    charter: Annotated[Path | None, typer.Option("--charter", help="Take the sites from this charter.")] = None,
    clusters: Annotated[int | None, typer.Option("--clusters", help="Number of clusters, for hierarchical.")] = None,
    period: Annotated[int | None, typer.Option("--period", help="Rounds between two of the heads' mixings.")] = None,
    degree: Annotated[
        int | None, typer.Option("--degree", help="Neighbours of each site, for regular and so on.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Which random graph; 0 if left out.")] = None,
    rows: Annotated[int | None, typer.Option("--rows", help="Rows, for torus.")] = None,
    columns: Annotated[int | None, typer.Option("--columns", help="Columns, for torus.")] = None,
    k: Annotated[int | None, typer.Option("--k", help="Most neighbours in a round, for base.")] = None,
    probability: Annotated[float | None, typer.Option("--probability", help="For erdos_renyi and small_world.")] = None,
    choice: Annotated[str | None, typer.Option("--choice", help="For epidemic: common, or local.")] = None,
    hops: Annotated[str | None, typer.Option("--hops", help="For exponential: one in each round, or all.")] = None,
    arity: Annotated[int | None, typer.Option("--arity", help="Children of each site, for tree.")] = None,
    bridges: Annotated[int | None, typer.Option("--bridges", help="Edges between the clusters.")] = None,
    shares: Annotated[str | None, typer.Option("--shares", help="Sample counts, such as 303,294,123,200.")] = None,
    weights: Annotated[
        str | None, typer.Option("--weights", help="What sites count: shares (the default), metropolis, uniform.")
    ] = None,
    rounds: Annotated[
        int, typer.Option("--rounds", help="Of a run, where the graph changes.", min=1, max=MOST_ROUNDS)
    ] = 100,
    closing: Annotated[
        str | None, typer.Option("--closing", help="How closing rounds mix: plain (the default), chebyshev.")
    ] = None,
    closing_rounds: Annotated[
        int, typer.Option("--closing-rounds", help="Of a run: mixings without training.", min=1, max=MOST_CLOSING)
    ] = 5,
    plot: Annotated[Path | None, typer.Option("--plot", help="Draw the graph into this SVG file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Print who mixes with whom and with which weight, the spectral gap, and which absences disconnect the graph.

    Also what each site counts: in the mean that mixing keeps, and so in the loss that training minimises. Of a graph
    that changes from round to round: the weights of round 0, and the rest of all rounds together. Of a directed one:
    what each site takes of which, and how fast the models agree that push-sum reads. And how far closing rounds level
    what is left between the sites, plain or accelerated.

    Example: p2pfl topology show ring --sites 4 --shares 40,30,20,10

    Example: p2pfl topology show star --shares 40,30,20,10 --weights metropolis

    Example: p2pfl topology show regular --sites 12 --degree 3 --plot graph.svg

    Example: p2pfl topology show base --sites 25 --k 2

    Example: p2pfl topology show ring --sites 12 --closing-rounds 20 --closing chebyshev
    """
    counts = _counts(shares)
    text = read_text(Path(kind)) if is_graph_file(kind) else None
    if charter is not None:
        names = [member.name for member in parse_charter(read_text(charter)).members]
    elif text is not None and sites is None:
        names = sites_in_file(graph_from_text(Path(kind).name, text))
    else:
        names = [f"site-{number}" for number in range(sites or len(counts) or 4)]
    counts = counts or [1.0] * len(names)
    if len(counts) != len(names):
        raise ConfigError(f"{len(counts)} sample counts for {len(names)} sites; give one per site")
    if len(names) > MOST_SITES:
        raise ConfigError(f"{kind} has {len(names)} sites; topology show takes up to {MOST_SITES}")
    options = {
        "clusters": clusters, "period": period, "degree": degree, "seed": seed, "rows": rows, "columns": columns,
        "k": k, "probability": probability, "arity": arity, "bridges": bridges, "choice": choice, "hops": hops,
    }  # fmt: skip
    spec = _spec(kind, options) if text is None else spec_from_text(Path(kind).name, text, names)
    if weights is not None:
        spec["weights"] = weights
    if closing is not None:
        spec["closing"] = closing
    nodes = [PeerId(name) for name in names]
    pi = {node: count / sum(counts) for node, count in zip(nodes, counts, strict=True)}
    value, lines, graph = _facts(spec, nodes, pi, rounds)
    levelled, line = _closing(spec, nodes, pi, rounds, closing_rounds)
    value["closing"] = levelled
    lines.append(line)
    if plot is not None:
        write_result(plot, to_svg(graph_figure(graph, kind=kind)).encode())
        lines.append(f"drawn into {plot}")
    show(value, as_json, lines)


def _facts(
    spec: dict[str, Any], nodes: list[PeerId], pi: dict[PeerId, float], rounds: int
) -> tuple[dict[str, Any], list[str], nx.Graph]:
    """What is known of a graph, as values and as lines; and the graph."""
    schedule = Schedule(spec, nodes, pi, rounds, 0)
    graph = schedule.graph
    changes = not schedule.same_each_round and spec["kind"] != "hierarchical"
    law = dict(zip(nodes, schedule.law, strict=True))
    several = spec["kind"] == "hierarchical"  # shown as if all its edges mixed at once
    matrix = stationary_weights(graph, law) if several else schedule.round(0).mixings[0].matrix
    speed = _Speed.of(schedule, matrix, changes)
    alone = absences_that_disconnect(graph, 1)
    pairs = absences_that_disconnect(graph, 2) if len(nodes) <= MOST_PAIRS else []
    dense = matrix.toarray()
    value = {
        "sites": [str(node) for node in nodes],
        "edges": [list(edge) for edge in graph.edges],
        "directed": schedule.directed,
        "walks": schedule.walks,
        "counts": [float(law[node]) for node in nodes],
        "weights": [[float(cell) for cell in row] for row in dense],
        "spectral_gap": speed.gap,
        "measured_over_rounds": speed.measured,
        "exact_after": speed.exact_after,
        "rounds_to_consensus": speed.rounds,
        "disconnecting": [sorted(gone) for gone in alone],
        "disconnecting_pairs": [sorted(gone) for gone in pairs],
    }
    lines = [f"sites {len(nodes)}, edges {graph.number_of_edges()}, {speed.words}"]
    lines += [*_table(nodes, dense), *([WALKS] if schedule.walks else [DIRECTED] if schedule.directed else [])]
    lines.append(f"weights by {weights_in_words(spec)}")
    lines.append(f"each counts {', '.join(f'{node} {part:.4f}' for node, part in law.items())}")
    lines.append(speed.agreement)
    lines.append(f"one absence that disconnects: {_list(alone)}")
    lines.append(f"two absences that disconnect: {_list(pairs)}" if len(nodes) <= MOST_PAIRS else "pairs not tried")
    return value, lines, graph


class _Speed(NamedTuple):
    """How fast models agree, as values and in words. One that walks is with one site: there is nothing to agree on."""

    gap: float | None
    measured: int  # rounds; 0 where the gap is of one matrix
    exact_after: int | None
    rounds: int | None
    words: str
    agreement: str

    @classmethod
    def of(cls, schedule: Schedule, matrix: Any, changes: bool) -> _Speed:
        """Of a schedule, and the matrix of its rounds if that stays the same."""
        if schedule.walks:
            comes = f"the model has come to each site after: {_rounds(len(schedule.nodes))}"
            return cls(None, 0, None, None, "one model walks: no spectral gap", comes)
        speed = speed_of(schedule)
        gap = speed.gap if changes else spectral_gap(matrix, schedule.law)
        over = f" (mean over {speed.measured} rounds)" if changes else ""
        exact = "never" if speed.exact_after is None else _rounds(speed.exact_after)
        slow = "not in so many rounds" if speed.rounds is None else _rounds(speed.rounds)
        return cls(
            gap, speed.measured if changes else 0, speed.exact_after, speed.rounds, f"spectral gap {gap:.6f}{over}",
            f"disagreement is 1 % after: {slow}; exactly nothing after: {exact}",
        )  # fmt: skip


def _closing(
    spec: dict[str, Any], nodes: list[PeerId], pi: dict[PeerId, float], rounds: int, closing_rounds: int
) -> tuple[dict[str, Any], str]:
    """Which part of the disagreement so many closing rounds leave at most, and with the other way of closing."""
    schedule = Schedule(spec, nodes, pi, rounds, closing_rounds)
    own = "chebyshev" if schedule.accelerated else "plain"
    left = {own: schedule.closing_contraction()}
    if schedule.same_each_round:
        other = "plain" if schedule.accelerated else "chebyshev"
        with contextlib.suppress(ConfigError):  # hierarchical graphs have several mixings
            left[other] = Schedule({**spec, "closing": other}, nodes, pi, 1, closing_rounds).closing_contraction()
    beside = [f'; {part:.3g} with closing = "{way}"' for way, part in left.items() if way != own]
    line = f"{_rounds(closing_rounds)} of {own} closing leave at most {left[own]:.3g} of the disagreement"
    if schedule.walks:
        line = f"{_rounds(closing_rounds)} of closing: the first gives the model to all, others make good what was lost"
    return {"rounds": closing_rounds, "as": own, "leaves": left}, line + "".join(beside)


def _table(nodes: list[PeerId], weights: Any) -> list[str]:
    """Of each site, from whom it takes how much."""
    found = []
    for row, name in enumerate(nodes):
        others = [f"{nodes[column]} {weights[row, column]:.4f}" for column in np.flatnonzero(weights[row] > 0)]
        found.append(f"{name:<16} {', '.join(others)}")
    return found


def _rounds(number: int) -> str:
    return f"{number} round{'s' if number != 1 else ''}"


@app.command("advise")
def advise_topology(
    peers: Annotated[int, typer.Option("--peers", help="Number of equal sites, 2 to 1000.")],
    degree: Annotated[int, typer.Option("--degree", help="Most neighbours that a site may have.")],
    gamma: Annotated[
        float, typer.Option("--gamma", help="For the effective neighbours: nearer to 1 for slower learning.")
    ] = 0.95,
    changing: Annotated[
        bool, typer.Option("--changing", help="Also graphs that are others in each round: base, epidemic.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Compare graphs of so many sites with at most so many neighbours each, and recommend one.

    Example: p2pfl topology advise --peers 12 --degree 3
    """
    advice = advise(peers, degree, gamma=gamma, changing=changing)
    head = (
        "graph", "neighbours", "gap", "effective neighbours", "rounds to 1 %", "messages/round", "messages to 1 %",
        "one absent", "two absent",
    )  # fmt: skip
    show_table(advice.as_json(), as_json, head, [_row(candidate) for candidate in advice.candidates])
    if not as_json:
        show(None, False, ["", advice.reason, f"topology = {_toml(advice.recommended.spec)}"])


def _row(candidate: Candidate) -> list[str]:
    return [
        candidate.name,
        str(candidate.degree),
        f"{candidate.gap:.4g}",
        f"{candidate.effective_neighbours:.2f}",
        f"{candidate.rounds:,}",
        f"{candidate.messages_per_round:,.6g}",
        f"{candidate.messages:,.0f}",
        _absent(candidate.one_absent),
        _absent(candidate.two_absent),
    ]


def _absent(absences: Absences | None) -> str:
    if absences is None:
        return "not tried"
    if absences.disconnecting:
        return f"split in {absences.disconnecting} of {absences.sets}"
    sampled = "" if absences.computed == absences.sets else f" in {absences.computed} of {absences.sets}"
    return f"whole, gap {absences.gap:.4g} at worst{sampled}"


def _toml(spec: Mapping[str, Any]) -> str:
    return "{" + ", ".join(f"{key} = {json.dumps(value)}" for key, value in spec.items()) + "}"


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


def _spec(kind: str, options: Mapping[str, float | str | None]) -> dict[str, Any]:
    if kind.endswith(".json"):
        try:
            spec = json.loads(read_text(Path(kind)))
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{kind} is not valid JSON: {error}; mend it") from error
        if not isinstance(spec, dict):
            raise ConfigError(f'{kind} must hold a spec such as {{"kind": "edges", "edges": [[0, 1]]}}')
        return spec
    seeded = {"seed": 0} if kind in SEEDED else {}
    return {"kind": kind, **seeded, **{name: value for name, value in options.items() if value is not None}}
