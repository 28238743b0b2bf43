"""The outbox: covers under the newest checkpoint, the same after a restart, nothing from a damaged log."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from p2pfl.audit import AuditLog, NewEntry
from p2pfl.crypto import (
    Envelope,
    Identity,
    Manifest,
    expected_chunks,
    log_origin,
    read_log_proof,
    sha256,
    sign_envelope,
    verify_signature,
)
from p2pfl.errors import SignatureRefused, StoreError
from p2pfl.gossip.anchors import SENT, Outbound, check_anchor, decode_outbound
from p2pfl.gossip.messages import (
    ANNOUNCEMENT_LIMIT,
    INLINE_LIMIT,
    SETTLING_WINDOW,
    TO_ALL,
    Announcement,
    Core,
    Cover,
    EdgeList,
    decode_announcement,
    open_core,
    open_cover,
)
from p2pfl.peer.journal import Journal
from p2pfl.peer.outbox import Outbox
from p2pfl.types import Digest, PeerId, RunId

OWNER = Identity.from_seed(bytes(range(32)))
RUN = RunId(sha256(b"run"))
LAST = 999_999
NOTE = NewEntry("link_up", {"peer": "x"})


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    made = Journal(AuditLog.create(tmp_path / "audit.db", OWNER, 1, "North"), lambda error: None)
    yield made
    made.close()


def letting_out(number: int = 0) -> tuple[Envelope, Outbound, NewEntry]:
    """A core (its payload does not matter here), what may leave, and the entry that says so."""
    core = sign_envelope(OWNER, "core", b"core %d" % number)
    outbound = Outbound(RUN, core.encode(), {OWNER.peer_id: bytes(112)})
    body = {"run": RUN, "core": core.digest, "to": [OWNER.peer_id]}
    return core, outbound, NewEntry(SENT, body, (("outbox", outbound.encode()),))


def size_of(announcement: Announcement | None) -> int:
    """Entries under the checkpoint of the cover, after checking it as a receiver does."""
    assert announcement is not None
    cover = open_cover(announcement.cover)[1]
    check_anchor(cover, OWNER.peer_id, RUN, "North", verify_signature)
    origin = log_origin("North", OWNER.peer_id)
    return read_log_proof(cover.proof).open(origin, OWNER.peer_id)[1].size


async def test_a_cover_has_the_newest_checkpoint_and_is_made_once_for_each(journal: Journal) -> None:
    outbox, (core, outbound, entry) = Outbox(OWNER, journal), letting_out()
    outbox.add(core.digest, outbound, await journal.commit([NOTE, entry]) + 1)
    first = await outbox.announcement(core.digest)
    assert size_of(first) == 3
    assert await outbox.announcement(core.digest) is first
    await journal.commit([NOTE])
    again = await outbox.announcement(core.digest)
    assert again is not None and first is not None
    assert size_of(again) == 4
    assert (again.core, open_cover(again.cover)[1].keys) == (first.core, open_cover(first.cover)[1].keys)
    outbox.release(core.digest)
    assert await outbox.announcement(core.digest) is None


async def test_after_a_restart_the_document_in_the_log_is_enough(journal: Journal) -> None:
    core, outbound, entry = letting_out()
    await journal.commit([entry, NOTE])
    (position, _, document), *others = journal.log.documents("outbox")
    assert others == [] and decode_outbound(document) == outbound
    outbox = Outbox(OWNER, journal)
    outbox.restore(core.digest, document, position)
    assert size_of(await outbox.announcement(core.digest)) == 3


async def test_nothing_leaves_before_its_commit_or_from_a_log_that_does_not_hold(
    journal: Journal, tmp_path: Path
) -> None:
    outbox, (core, outbound, entry) = Outbox(OWNER, journal), letting_out()
    assert await outbox.announcement(core.digest) is None
    position = await journal.commit([entry, NOTE, NOTE])
    connection = journal.log._connection
    connection.execute("DROP TRIGGER entries_no_update")
    connection.execute("UPDATE entries SET hash = zeroblob(32) WHERE position = 0")
    outbox.add(core.digest, outbound, position)
    with pytest.raises(StoreError, match="audit verify"):
        await outbox.announcement(core.digest)


async def test_the_entry_of_one_core_vouches_for_no_other(journal: Journal) -> None:
    outbox, (core, outbound, entry), (other, _, _) = Outbox(OWNER, journal), letting_out(), letting_out(1)
    outbox.add(core.digest, outbound, await journal.commit([entry]))
    announcement = await outbox.announcement(core.digest)
    assert announcement is not None
    proof = open_cover(announcement.cover)[1].proof
    for cover, run in ((Cover(other.digest, {}, proof), RUN), (Cover(core.digest, {}, proof), RunId("another"))):
        with pytest.raises(SignatureRefused, match="does not name its core") as refused:
            check_anchor(cover, OWNER.peer_id, run, "North", verify_signature)
        assert refused.value.peer == OWNER.peer_id


async def test_the_largest_announcement_stays_within_its_limit(journal: Journal) -> None:
    """63 neighbours, full edge lists of late rounds, a delta that would just fit inline, a log of 2,000 entries."""
    neighbours = [Identity.from_seed(bytes([number]) * 32).peer_id for number in range(63)]
    rounds = [(LAST - number, 15, True, True) for number in range(SETTLING_WINDOW)]
    lists = dict.fromkeys(neighbours, EdgeList((LAST, 15), tuple(rounds), (LAST, 15)))
    signed = sign_envelope(OWNER, "core", _core(lists, sha256(b"")).encode())
    keys: dict[PeerId, bytes] = dict.fromkeys(neighbours, bytes(112))
    outbound = Outbound(RUN, signed.encode(), keys)
    body = {
        "run": RUN, "sequence": LAST, "round": LAST, "step": 15, "channel": "c" * 32, "core": signed.digest,
        "to": neighbours, "bytes": 2**36,
    }  # fmt: skip
    entry = NewEntry(SENT, body, (("outbox", outbound.encode()),))
    outbox = Outbox(OWNER, journal)
    outbox.add(signed.digest, outbound, await journal.commit([entry]))
    await journal.commit([NOTE] * 1000)
    await journal.commit([NOTE] * 1000)
    announcement = await outbox.announcement(signed.digest)
    assert announcement is not None and size_of(announcement) == 2002
    inside, beside = announcement.encode_with(bytes(100)), announcement.encode_with(bytes(INLINE_LIMIT + 16))
    assert max(len(inside), len(beside)) <= ANNOUNCEMENT_LIMIT
    assert len(decode_announcement(inside).inline) == 100
    assert decode_announcement(announcement.encode_with(bytes(INLINE_LIMIT + 17))).inline == b""
    assert len(announcement.encode()) < ANNOUNCEMENT_LIMIT - INLINE_LIMIT // 2, "room for what is to come"
    assert open_core(decode_announcement(beside).core)[1].lists == lists


def _core(lists: dict[PeerId, EdgeList], digest: Digest) -> Core:
    return Core(
        RUN,
        LAST,
        LAST,
        15,
        "c" * 32,
        TO_ALL,
        digest,
        digest,
        "raw",
        Manifest(2**36, expected_chunks(2**36), digest, digest),
        32,
        lists,
    )
