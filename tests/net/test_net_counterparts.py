"""Programs that are not ours at the other end: libdatachannel, js-libp2p, multicast-dns, avahi and openssl."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, replace
from typing import Any

import pytest
from counterparts import BOUND, Counterpart, why_not
from net_peers import sites
from webrtc_sites import LOOPBACK

from p2pfl.crypto.identity import Identity, verify_signature
from p2pfl.crypto.peer_ids import parse_peer_id, peer_id_to_cid, public_key_from_peer_id
from p2pfl.errors import LinkError, SignatureRefused
from p2pfl.net.discovery import SERVICE, Discovery
from p2pfl.net.limits import FRAME_LIMIT
from p2pfl.net.webrtc import WebRtcConnection
from p2pfl.net.webrtc.channel import WINDOW
from p2pfl.net.webrtc.offers import Candidate, Description
from p2pfl.net.webrtc.stack import MESSAGE_LIMIT, Stack
from p2pfl.types import PeerId


NODE_REASON = why_not()

pytestmark = pytest.mark.timeout(60)
needs_node = pytest.mark.skipif(NODE_REASON is not None, reason=NODE_REASON or "")

WE_OFFER, THEY_OFFER = "we offer", "they offer"
SIZES = [0, 1, MESSAGE_LIMIT - 1, MESSAGE_LIMIT, 300_000, 1 << 20]


# --- the data channel, against libdatachannel


def told(description: Description) -> dict[str, Any]:
    fields = asdict(description)
    return {**fields, "fingerprint": description.fingerprint.hex(), "message_limit": MESSAGE_LIMIT}


def understood(local: dict[str, Any]) -> Description:
    candidates = tuple(Candidate(**item) for item in local["candidates"])
    return Description(bytes.fromhex(local["fingerprint"]), local["username"], local["password"], candidates)


def altered(description: Description) -> Description:
    """With the fingerprint of another certificate."""
    return replace(description, fingerprint=bytes(byte ^ 1 for byte in description.fingerprint))


async def meet(stack: Stack, other: Counterpart, *, we_offer: bool, wrong_for: str = "") -> None:
    """Exchange the descriptions and connect; ``wrong_for`` "us" or "them" gets a fingerprint that is not true."""
    own = await stack.gather(BOUND)
    for_them = told(altered(own) if wrong_for == "them" else own)
    if we_offer:
        other.tell("answer", remote=for_them)
        remote = understood(await other.hear("local"))
    else:
        other.tell("offer")
        remote = understood(await other.hear("local"))
        other.tell("take_answer", remote=for_them)
    await stack.connect(altered(remote) if wrong_for == "us" else remote, BOUND)


@asynccontextmanager
async def linked(way: str) -> AsyncIterator[tuple[WebRtcConnection, Counterpart]]:
    we_offer = way == WE_OFFER
    async with Counterpart("data_channel.mjs") as other:
        stack = Stack(LOOPBACK, ["127.0.0.1"], controlling=we_offer)
        try:
            await meet(stack, other, we_offer=we_offer)
            connection = WebRtcConnection(
                stack, PeerId("a program"), dialled=we_offer, introducer=None, close_seconds=BOUND
            )
            connection.allow(FRAME_LIMIT)
            assert await other.hear("open") == MESSAGE_LIMIT
            yield connection, other
        finally:
            await stack.close()


@needs_node
@pytest.mark.parametrize("way", [WE_OFFER, THEY_OFFER])
async def test_frames_of_every_size_come_back_from_another_stack(way: str) -> None:
    async with linked(way) as (connection, other), asyncio.timeout(BOUND):
        assert (connection.path, connection.candidates) == ("direct", "host-host")
        for size in SIZES:
            frame = os.urandom(size)
            await connection.send(frame)
            assert await connection.receive() == frame
        await asyncio.gather(*(connection.send(bytes([number]) * 5000) for number in range(100)))
        assert [await connection.receive() for _ in range(100)] == [bytes([number]) * 5000 for number in range(100)]
        other.tell("figures")
        assert (await other.hear("figures"))["longest"] == MESSAGE_LIMIT
