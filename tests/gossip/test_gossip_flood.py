"""What a member passes on: statements once, heartbeats now and then, and neither fills its memory."""

from __future__ import annotations

import pytest

from p2pfl.crypto import Envelope, Identity, sha256, sign_envelope
from p2pfl.errors import LimitExceeded, NotAMember
from p2pfl.gossip.flood import BEATS, OFTEN, SAME_KIND, SEEN_LIMIT, Flood
from p2pfl.gossip.heartbeat import Heartbeat
from p2pfl.gossip.statements import StartSignature
from p2pfl.types import Member, Roster, RunId

RUN = RunId(sha256(b"run"))
ONE, TWO, STRANGER = (Identity.from_seed(bytes([number]) * 32) for number in (1, 2, 9))
ROSTER = Roster(sha256(b"charter"), tuple(Member(who.peer_id, "site", (), True, (), 1, 2**40) for who in (ONE, TWO)), 2)


def beat(count: int, by: Identity = ONE) -> Envelope:
    return sign_envelope(by, "heartbeat", Heartbeat(RUN, count, (0, 0), True, ()).encode())


def test_a_heartbeat_is_passed_on_once_and_not_too_often() -> None:
    flood = Flood(ROSTER)
    first = beat(0).encode()
    assert flood.hear(RUN, first, 10.0) is not None
    assert flood.hear(RUN, first, 10.0 + 2 * OFTEN) is None, "it comes round in circles"
    assert flood.hear(RUN, beat(1).encode(), 10.0 + OFTEN / 2) is None, "a member that beats too fast"
    assert flood.hear(RUN, beat(2).encode(), 10.0 + OFTEN) is not None
    assert flood.hear(RUN, beat(0, TWO).encode(), 10.0 + OFTEN) is not None, "each member by itself"


def test_an_own_heartbeat_is_no_news_when_it_comes_back() -> None:
    flood = Flood(ROSTER)
    own = beat(7)
    flood.own(RUN, own, 0.0)
    assert flood.hear(RUN, own.encode(), 60.0) is None


def test_heartbeats_do_not_push_statements_out_of_the_memory() -> None:
    """Else a statement that is sent again after some minutes would count as another one, and its signer as a liar."""
    flood = Flood(ROSTER)
    signature = sign_envelope(TWO, "start-signature", StartSignature(RUN, sha256(b"record")).encode()).encode()
    assert flood.hear(RUN, signature, 0.0) is not None
    for count in range(200):
        assert flood.hear(RUN, beat(count).encode(), count * 5.0) is not None
    assert len(flood.seen) == 1 and len(flood.beats[RUN, ONE.peer_id].newest) == BEATS
    assert SEEN_LIMIT > 1000
    for _ in range(3 * SAME_KIND):
        assert flood.hear(RUN, signature, 2000.0) is None
    flood.forget(RUN)
    assert not flood.beats and not flood.counts


def test_a_stranger_s_heartbeat_and_a_third_kind_of_signature_are_refused() -> None:
    flood = Flood(ROSTER)
    with pytest.raises(NotAMember):
        flood.hear(RUN, beat(0, STRANGER).encode(), 0.0)
    with pytest.raises(LimitExceeded):
        for number in range(SAME_KIND + 1):
            record = sha256(bytes([number]))
            flood.hear(RUN, sign_envelope(ONE, "start-signature", StartSignature(RUN, record).encode()).encode(), 0.0)
