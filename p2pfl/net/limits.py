"""All limits of the links in one place, each with its reason or precedent.

Constants are part of the wire format: every peer must hold the same value. :class:`Limits` are a peer's own
patience; tests shorten them.
"""

from __future__ import annotations

from dataclasses import dataclass

FRAME_LIMIT = 1 << 20
"""Bytes of one frame's body. Gossipsub keeps messages <= 1 MiB; larger content is pulled in chunks."""

HELLO_LIMIT = 8 << 10
"""Bytes of one frame before the other side has proven who it is: a hello with 64 protocol names fits."""

CHUNK_LIMIT = (64 << 10) + 1024
"""Bytes of one bulk chunk: 64 KiB and a cipher's overhead. 64 KiB writes are twice as fast over asyncio's
TLS as 1 MiB writes, and a control frame never waits behind more than one of them in our own queue.
"""

INBOX_BYTES = FRAME_LIMIT
"""Received and not yet handled bytes of one connection; above it reading pauses and TCP slows the sender."""

WRITE_BUFFER = 128 << 10
"""Bytes a transport keeps unsent before a writer waits: two bulk frames, so that control stays quick."""

PROTOCOL_NAME_LIMIT = 128
"""Bytes of a protocol's name, such as ``/p2pfl/round/1``."""

CONTENT_NAME_LIMIT = 200
"""Bytes of a content's name: a 64-digit digest and a prefix."""

OFFERED_PROTOCOLS = 64
"""Protocol names in one hello."""

REASON_LIMIT = 400
"""Characters of the other side's reason that we repeat in our own messages."""

PULL_RANGE = 16
"""Chunks asked for by one pull frame (1 MiB): the request's cost vanishes beside the chunks'."""

PULL_WINDOW = 64
"""Chunks in flight per fetch (4 MiB): fills 100 Mbit/s at 300 ms and bounds the receiver's memory."""

QUEUED_RANGES = 256
"""Pull ranges one neighbour may have waiting at us: 16 fetches of 4 ranges, with room for abandoned ones."""

FETCHES_IN_FLIGHT = 16
"""Fetches at one time over one link."""

REQUESTS_IN_FLIGHT = 64
"""Own requests waiting for an answer on one link; the next caller waits for its turn."""

HANDLERS_IN_FLIGHT = 2 * REQUESTS_IN_FLIGHT
"""Handlers running for one neighbour: twice the requests, since a requester that gave up frees its own
slot first. Requests above it are dropped and counted; the requester times out.
"""


@dataclass(frozen=True, slots=True)
class Limits:
    """How long, how often and how many: a peer's own settings. All times in seconds."""

    connect: float = 5.0
    """Until a TCP connection stands; three SYN retries (1, 2 s) fall inside it."""

    handshake: float = 10.0
    """TLS handshake; against slow attackers (asyncio's own limit is 60 s)."""

    hello: float = 5.0
    """Hello, proof and welcome together."""

    alive: float = 2.0
    """Until a live link has answered whether its process still runs, while another one says hello with its key: six
    round trips at 300 ms. A restart that nobody told us of takes so much longer; never more than half of ``hello``.
    """

    ping_every: float = 4.0
    """Each side says something at least this often."""

    silent_after: float = 12.0
    """Three missed pings: the neighbour counts as silent. Must end below the promised 15 s."""

    write: float = 10.0
    """Until a written frame has left our buffer, plus one second per ``write_rate`` bytes of it."""

    write_rate: int = 64 << 10
    """Bytes per second below which a neighbour reads too slowly."""

    introduce: float = 10.0
    """Until a neighbour that was asked to introduce us has brought an answer; then the next one is asked."""

    gather: float = 6.0
    """Until the own WebRTC candidates are known; aioice gives STUN and TURN servers 5 s."""

    webrtc: float = 20.0
    """ICE, DTLS and SCTP together. ICE gives up by itself after about 10 s without any answer."""

    request: float = 30.0
    """Until an answer, where the caller names no other time."""

    stall: float = 30.0
    """Between two chunks of a fetch, where the caller names no other time."""

    resume: float = 15.0
    """A broken fetch waits this long for the link to come back; covers a silent neighbour's detection."""

    close: float = 1.0
    """Until a closed connection is torn down."""

    linger: float = 2.0
    """A replaced link still answers what was under way."""

    fresh: float = 5.0
    """A link this young is not replaced: the second connection is the other half of a simultaneous dial."""

    redial_first: float = 0.2
    redial_longest: float = 5.0
    """Back-off doubles between these two, with up to 25 % jitter on top so that peers do not dial in step."""

    stagger: float = 0.25
    """Between the starts of two ways of one cost to a member while the former is undecided (RFC 8305: 250 ms)."""

    dearer_after: float = 2.0
    """A way of higher cost waits so long for an undecided cheaper one: a round trip of TCP, TLS and hello at
    300 ms takes 1.2 s, with a lost SYN 2.2 s. Also what a member without a port gets to dial us before we go
    another way.
    """

    upgrade_first: float = 5.0
    upgrade_longest: float = 60.0
    """Cheaper ways than the live link's are tried again after these; the pause doubles between the two."""

    half_open: int = 128
    """Connections not yet proven, per listening transport (go-libp2p's order of magnitude)."""

    links: int = 256
    """Live links of one host; a consortium has 2 to 50 members."""

    candidates: int = 64
    """Addresses heard by discovery and kept."""

    candidate_failures: int = 5
    """Failures after which a heard address is forgotten."""

    refusals_per_minute: int = 60
    """Refusals told to the caller (and so to its log); more are only counted, so that a scanner cannot
    fill a disk.
    """


DEFAULT = Limits()
