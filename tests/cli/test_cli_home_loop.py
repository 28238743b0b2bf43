"""What the event loop meets and a user should hear of."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from p2pfl.cli.home import unless_closed


class Link(asyncio.Transport):
    """A transport that is open or closed."""

    def __init__(self, closed: bool) -> None:
        super().__init__()
        self._closed = closed

    def is_closing(self) -> bool:
        return self._closed


@pytest.mark.parametrize(
    ("context", "told"),
    [
        ({"message": "Fatal error on SSL protocol", "transport": Link(closed=True)}, False),
        ({"message": "Fatal error on SSL protocol", "transport": Link(closed=False)}, True),
        ({"message": "Fatal error on SSL protocol"}, True),
        ({"message": "Task exception was never retrieved", "transport": Link(closed=True)}, True),
    ],
)
def test_only_words_for_a_closed_link_are_left_out(
    context: dict[str, Any], told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    loop = asyncio.new_event_loop()
    try:
        with caplog.at_level(logging.ERROR, logger="asyncio"):
            unless_closed(loop, {**context, "exception": RuntimeError("the handler is closed")})
    finally:
        loop.close()
    assert bool(caplog.records) is told
