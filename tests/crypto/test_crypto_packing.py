"""msgpack within limits: what comes back, and what is refused."""

from __future__ import annotations

import random
from typing import Any

import msgpack
import pytest

from p2pfl.crypto import pack, parse_digest, read_fields, sha256, unpack
from p2pfl.crypto.packing import MAX_DEPTH, packer, unpack_short_map
from p2pfl.errors import IllegalStep, LimitExceeded, MalformedMessage


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        -1,
        2**64 - 1,
        1.5,
        "é",
        b"\x00\xff",
        [],
        [1, [2]],
        {"a": {b"b": [None]}},
        nested(MAX_DEPTH),
    ],
)
def test_values_come_back_as_they_were(value: Any) -> None:
    data = pack(value)
    assert unpack(data, what="a value", limit=len(data)) == value


def test_tuples_come_back_as_lists() -> None:
    assert unpack(pack((1, (2,))), what="a value", limit=100) == [1, [2]]


@pytest.mark.parametrize("value", [object(), {1, 2}, 2**64, "\ud800", lambda: None, 1j])
def test_values_that_cannot_be_packed(value: Any) -> None:
    with pytest.raises(IllegalStep, match="convert"):
        pack(value)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("empty", b""),
        ("truncated text", pack("hello")[:-1]),
        ("truncated list", pack([1, 2])[:-1]),
        ("trailing byte", pack(1) + b"\x00"),
        ("duplicate key", b"\x82\xa1a\x01\xa1a\x02"),
        ("duplicate key in two spellings", b"\x82\xa1a\x01\xd9\x01a\x02"),
        ("duplicate key inside", b"\x91\x82\xa1a\x01\xa1a\x02"),
        ("number as key", b"\x81\x01\x02"),
        ("list as key", b"\x81\x90\x02"),
        ("extension", msgpack.packb(msgpack.ExtType(5, b"x"))),
        ("empty extension", b"\xc7\x00\x05"),
        ("timestamp of 4 bytes", msgpack.packb(msgpack.Timestamp(1, 0))),
        ("timestamp of 12 bytes", msgpack.packb(msgpack.Timestamp(2**40, 5))),
        ("empty timestamp", b"\xc7\x00\xff"),
        ("byte that msgpack never uses", b"\xc1"),
        ("invalid UTF-8", b"\xa1\xff"),
        ("surrogate in UTF-8", b"\xa3\xed\xa0\x80"),
        ("list header without items", b"\xdd\xff\xff\xff\xff"),
        ("map header without items", b"\xdf\xff\xff\xff\xff"),
        ("too many items", pack([0] * 11)),
        ("too many keys", pack({str(number): 0 for number in range(11)})),
        ("too deep", pack(nested(MAX_DEPTH + 1))),
        ("deeper than the decoder goes", b"\x91" * 5000),
    ],
)
def test_bad_bytes_are_malformed(name: str, data: bytes) -> None:
    with pytest.raises(MalformedMessage, match=r"^the letter .*; ask"):
        unpack(data, what="the letter", limit=10_000, max_items=10)
    for inside in (data, b"\x81\xa1a" + data, b"\x81\xa1a\x91" + data):
        assert unpack_short_map(inside, limit=10_000, max_items=10) is None


def test_too_long_is_told_apart_from_malformed() -> None:
    data = pack(b"x" * 100)
    assert unpack(data, what="a letter", limit=len(data))
    with pytest.raises(LimitExceeded, match="a letter has 102 bytes, more than the 101"):
        unpack(data, what="a letter", limit=len(data) - 1)


def test_random_bytes_raise_nothing_else() -> None:
    source = random.Random(7)
    for _ in range(3000):
        data = source.randbytes(source.randrange(40))
        try:
            unpack(data, what="noise", limit=32, max_items=8)
        except (MalformedMessage, LimitExceeded):
            pass


def some_value(draw: random.Random, depth: int) -> Any:
    """Any value that can be packed, NaN and long integers included; small, so that changed bytes hit its structure."""
    kind = draw.randrange(9 if depth else 6)
    if kind < 6:
        texts = (draw.choice(("", "a", "b", "é\U0001f600")), draw.randbytes(draw.randrange(3)))
        numbers = (
            draw.choice((0, -1, 127, 2**63, 2**64 - 1, -(2**63))),
            draw.choice((0.5, float("nan"), float("inf"))),
        )
        return (None, draw.random() < 0.5, *numbers, *texts)[kind]
    inner = [some_value(draw, depth - 1) for _ in range(draw.choice((0, 1, 2, 3, 16)))]
    if kind == 8:
        return {draw.choice(("a", "b", "c", b"a", f"{place}")): item for place, item in enumerate(inner)}
    return inner


def read(data: bytes) -> str | None:
    """What `unpack` reads, with the types of all numbers; None for what it refuses."""
    try:
        return repr(unpack(data, what="a map", limit=200, max_items=12))
    except (MalformedMessage, LimitExceeded):
        return None


def test_the_quick_way_of_short_maps_reads_what_the_long_way_reads() -> None:
    """Also of changed bytes: whatever the long way refuses, the quick way does not take."""
    draw, taken, refused, encode = random.Random(11), 0, 0, packer()
    for _ in range(20_000):
        fields = {draw.choice(("a", "b", "run", b"a", "peer")): some_value(draw, 3) for _ in range(draw.randrange(4))}
        data = encode(fields)
        assert data == pack(fields)
        if draw.random() < 0.5:
            changed = bytearray(data)
            changed[draw.randrange(len(changed))] = draw.choice((draw.randrange(256), 0x81, 0x82, 0xA1, 0xC7, 0xD4))
            data = bytes(changed[: draw.choice((len(changed), len(changed), draw.randrange(len(changed) + 1)))])
        found = unpack_short_map(data, limit=200, max_items=12)
        if found is not None:
            assert repr(found) == read(data)
            taken += 1
        else:
            refused += read(data) is None
    assert taken > 5000 and refused > 2000


def test_the_quick_way_takes_what_logs_are_made_of_and_leaves_the_rest() -> None:
    for usual in ({}, {"run": "ab", "round": 3, "edges": [["x", 0.5], ["y", None]], "core": b"x", "to": ["x"]}):
        assert unpack_short_map(pack(usual), limit=100) == usual
    many = {f"{number}": number for number in range(16)}
    for unusual in ({"a": {"b": 1}}, {"a": [[[1]]]}, {"a": [{}]}, many, ["a"], None):
        assert unpack_short_map(pack(unusual), limit=1000) is None
    assert unpack_short_map(pack({"a": [0] * 4097}), limit=5000) is None
    assert unpack_short_map(pack({"a": "x" * 100}), limit=102) is None


def test_a_packer_goes_on_after_a_value_that_it_cannot_take() -> None:
    encode = packer()
    with pytest.raises(IllegalStep, match="convert"):
        encode({"a": "text", "b": [1, object()]})
    assert encode({"a": 1}) == pack({"a": 1})


def test_fields_come_back_in_the_order_of_the_specification() -> None:
    spec = {"round": int, "loss": (int, float), "note": (str, type(None))}
    fields = read_fields({"note": None, "loss": 1, "round": 3}, "a report", spec)
    assert list(fields.items()) == [("round", 3), ("loss", 1), ("note", None)]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ([], "not a map"),
        ({}, "missing: 'done', 'round'; unknown: none"),
        ({"round": 1, "done": True, "more": 0}, "missing: none; unknown: 'more'"),
        ({b"round": 1, "done": True}, "missing: 'round'; unknown: b'round'"),
        ({"round": True, "done": True}, "field round is bool, not int"),
        ({"round": 1, "done": 1}, "field done is int, not bool"),
        ({"round": 1.0, "done": True}, "field round is float, not int"),
        ({"round": None, "done": True}, "field round is NoneType, not int"),
    ],
)
def test_wrong_fields_are_refused(value: Any, reason: str) -> None:
    with pytest.raises(MalformedMessage) as caught:
        read_fields(value, "a report", {"round": int, "done": bool})
    assert reason in str(caught.value)


def test_messages_repeat_little_of_what_strangers_sent() -> None:
    with pytest.raises(MalformedMessage) as caught:
        read_fields({f"{number}" * 5000: 0 for number in range(50)}, "a report", {"round": int})
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("value", [None, 5, "", "a" * 63, "a" * 65, "A" * 64, "g" * 64, "a" * 64 + "\n", b"a" * 64])
def test_texts_that_are_no_digest(value: Any) -> None:
    with pytest.raises(MalformedMessage, match="the base"):
        parse_digest(value, "the base")


def test_digest_of_the_empty_text() -> None:
    # FIPS 180-4 / NIST CAVP: SHA-256 of no bytes
    digest = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert sha256(b"") == sha256(memoryview(bytearray())) == parse_digest(digest, "a digest") == digest
