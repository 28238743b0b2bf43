"""Figures without a screen: matplotlib's object interface, so that no global state changes, and SVG as text."""

from __future__ import annotations

import io
from functools import partial
from typing import Any

from p2pfl.extras import optional


def new_figure(width: float, height: float) -> Any:
    """An empty matplotlib Figure of so many inches. ConfigError where matplotlib is missing."""
    figure = optional("matplotlib.figure", "sim").Figure(figsize=(width, height), layout="constrained")
    # a notebook asks for it; matplotlib's own hook is there only once somebody has imported pyplot
    figure._repr_png_ = partial(to_png, figure)
    return figure


def to_png(figure: Any) -> bytes:
    """The figure as a PNG image."""
    image = io.BytesIO()
    figure.savefig(image, format="png")
    return image.getvalue()


def literal(text: str) -> str:
    """A text as matplotlib draws it as it is: $ would begin a formula."""
    return text.replace("$", r"\$")


def to_svg(figure: Any) -> str:
    """The figure as SVG text, the same bytes each time: no date, no random names."""
    text = io.StringIO()
    with optional("matplotlib", "sim").rc_context({"svg.hashsalt": "p2pfl"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()
