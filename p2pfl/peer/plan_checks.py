"""Trying a plan in a worker before anything is said about it: its code, its model, its loss on the granted data."""

from __future__ import annotations

from typing import Any

from p2pfl.errors import PlanError
from p2pfl.governance import Plan
from p2pfl.peer.home import Home
from p2pfl.peer.worker import START_LIMIT, Worker

LOAD_LIMIT = 3600.0  # seconds to read the granted data and to try the plan on them


async def ready_worker(plan: Plan, home: Home) -> tuple[Worker, dict[str, int]]:
    """A worker that has the plan and the home's granted data loaded and checked. Raises PlanError or DataError."""
    dataset = home.registry.resolve(plan.settings.data.tag)
    worker = Worker()
    try:
        await worker.call("open", timeout=START_LIMIT, source=plan.source, settings=plan.session_settings())
        facts = await worker.call("load_data", timeout=LOAD_LIMIT, path=str(dataset.path))
        problems = await worker.call("check", timeout=LOAD_LIMIT)
        if problems:
            raise PlanError("the plan does not run on this site's data: " + "; ".join(problems))
    except BaseException:
        await worker.stop()
        raise
    return worker, facts


async def check_plan(plan: Plan, home: Home | None) -> dict[str, Any]:
    """Try a plan in a worker: its model, and with a home its loader and loss on the granted data.

    Returns parameters, dtype, channels and examples. Raises PlanError, DataError or ConfigError.
    """
    plan.bundle()
    if home is not None:
        worker, examples = await ready_worker(plan, home)
    else:
        worker, examples = Worker(), None
    try:
        if home is None:
            await worker.call("open", timeout=START_LIMIT, source=plan.source, settings=plan.session_settings())
        facts: dict[str, Any] = await worker.call("describe", timeout=START_LIMIT)
    finally:
        await worker.stop()
    return {**facts, "examples": examples}
