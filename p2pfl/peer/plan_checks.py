"""Trying a plan in a worker before anything is said about it: its code, its model, its loss on the granted data."""

from __future__ import annotations

from typing import Any

from p2pfl.errors import PlanError, PolicyRefusal
from p2pfl.governance import Plan
from p2pfl.peer.home import Home
from p2pfl.peer.worker import START_LIMIT, Worker

LOAD_LIMIT = 3600.0  # seconds to read the granted data and to try the plan on them


def local_steps_of(plan: Plan, home: Home) -> int:
    """The local steps this site takes in a round: the plan's, or what home.toml says. PolicyRefusal outside the range.

    Synchronous plans allow no other number: there all sites are waited for, and K-GT needs them alike.
    """
    training, own = plan.settings.training, home.settings.local_steps
    if own is None:
        return training.local_steps
    low, high = training.allowed_steps
    if not low <= own <= high:
        allowed = f"{low} to {high}" if low < high else f"exactly {low}"
        raise PolicyRefusal(
            f"local_steps in home.toml is {own}, and the plan allows {allowed}; change or remove that setting"
        )
    return own


async def ready_worker(plan: Plan, home: Home) -> tuple[Worker, dict[str, int]]:
    """A worker that has the plan and the home's granted data loaded and checked.

    Raises PlanError, DataError, or PolicyRefusal for local steps that the plan does not allow.
    """
    local_steps_of(plan, home)
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
