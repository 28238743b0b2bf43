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


@pytest.fixture(params=sorted({"memory", "tcp"} & set(TRANSPORTS)))
async def addressed(request: pytest.FixtureRequest) -> AsyncIterator[Consortium]:
    """As ``consortium``, over the transports whose members are reached at addresses and show their record's certificate.

    WebRTC knows neither: there the identity signs for each connection (test_net_webrtc_offers.py).
    """
    joined = Consortium(TRANSPORTS[request.param]())
    yield joined
    await joined.stop()
