"""All states times all events against the committed table, and what must hold for every line of it."""

from __future__ import annotations

import pytest
from outcomes import TABLE as COMMITTED
from outcomes import table
from protocol_table import PAGE
from protocol_table import table as table_in_words

from p2pfl.gossip import TABLE, State, events


@pytest.fixture(scope="module")
def lines() -> list[str]:
    return table()


def test_every_state_and_event_does_what_the_committed_table_says(lines: list[str]) -> None:
    assert lines == COMMITTED.read_text().splitlines()


def test_every_state_is_driven_and_no_remote_message_is_illegal(lines: list[str]) -> None:
    seen = {line[:16].strip() for line in lines}
    assert {str(state) for state in State} <= seen
    remote = [
        line
        for line in lines
        if line[17:].startswith(
            (
                "announcement",
                "approval",
                "start",
                "closing st",
                "settle",
                "ackn",
                "away",
                "signed",
                "statement",
                "standing",
            )
        )
    ]
    assert len(remote) > 150
    assert not [line for line in remote if line.endswith("illegal")]


def test_the_table_knows_every_state_and_event() -> None:
    kinds = {
        kind
        for kind in vars(events).values()
        if isinstance(kind, type) and issubclass(kind, events.Event) and kind is not events.Event
    }
    assert set(TABLE) == set(State)
    assert {kind for row in TABLE.values() for kind in row} == kinds
    for row in TABLE.values():
        for kind in (events.AnnouncementReceived, events.StatementReceived, events.LinkUp, events.LinkDown):
            assert kind in row


def test_the_protocol_page_has_the_table_of_the_code() -> None:
    assert table_in_words() in PAGE.read_text(), "run python tests/gossip/protocol_table.py"
