"""Which figures are better when they are lower: a few by their name, others where the plan says so."""

from __future__ import annotations

from collections.abc import Collection

LOWER_IS_BETTER = frozenset({
    "loss", "error", "mse", "mae", "rmse", "brier", "log_loss", "nll", "ece", "perplexity", "mean_absolute_error",
    "mean_squared_error",
})  # fmt: skip


def lower_is_better(figure: str, declared: Collection[str] = ()) -> bool:
    """Whether the site with the lowest value is the best one; ``declared``: the plan's own LOWER_IS_BETTER."""
    return figure in LOWER_IS_BETTER or figure in declared
