"""An end that gave the model on and hears nothing says later that it did not: whatever was heard before, one end has it."""

from __future__ import annotations

import pytest

from p2pfl.gossip.settling import EdgeLedger

AT = (1, 0)


def both(*, revocable: bool = True) -> tuple[EdgeLedger, EdgeLedger]:
    """The giver and the taker; both mixed."""
    giver, taker = EdgeLedger(revocable=revocable), EdgeLedger(revocable=revocable)
    giver.decide(AT, True)
    taker.decide(AT, True)
    return giver, taker


def restarted(ledger: EdgeLedger) -> EdgeLedger:
    return EdgeLedger.recall(ledger.remember())


@pytest.mark.parametrize("again", [False, True], ids=["", "after a restart"])
def test_a_taker_that_heard_of_it_takes_back_what_is_revoked(again: bool) -> None:
    giver, taker = both()
    heard = taker.hear(giver.list(), (2, 0), (2, 0))
    assert heard.take_back == heard.keep_no_longer == (), "kept until the giver has heard of it, too"
    assert giver.revoke(giver.mixed_and_unknown).take_back == (AT,)
    if again:
        giver, taker = restarted(giver), restarted(taker)
    assert taker.hear(giver.list(), (5, 0), (5, 0)).take_back == (AT,)
    assert taker.hear(giver.list(), (6, 0), (6, 0)).take_back == (), "once"
    late = giver.hear(taker.list(), (6, 0), (6, 0))
    assert late.take_back == late.keep_no_longer == ()


def test_what_both_know_is_kept_no_longer_and_not_revoked() -> None:
    giver, taker = both()
    taker.hear(giver.list(), (2, 0), (2, 0))
    assert giver.hear(taker.list(), (2, 0), (2, 0)).keep_no_longer == (AT,), "the taker's list says that it has heard"
    assert giver.mixed_and_unknown == ()
    assert taker.counted((3, 0)) == (AT,) and taker.counted(AT) == ()
    assert taker.hear(giver.list(), (3, 0), (3, 0)).keep_no_longer == (AT,)
    assert taker.counted((3, 0)) == ()


def test_other_edges_are_settled_as_soon_as_the_other_end_is_heard() -> None:
    giver, taker = both(revocable=False)
    assert taker.hear(giver.list(), (2, 0), (2, 0)).keep_no_longer == (AT,)
    assert "revocable" not in taker.remember()
