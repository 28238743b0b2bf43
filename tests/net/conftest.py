"""Fixtures of the link tests."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from net_peers import TRANSPORTS, Consortium


@pytest.fixture(params=sorted(TRANSPORTS))
async def consortium(request: pytest.FixtureRequest) -> AsyncIterator[Consortium]:
    """An empty consortium over each transport of the table in turn."""
    joined = Consortium(TRANSPORTS[request.param]())
    yield joined
    await joined.stop()
