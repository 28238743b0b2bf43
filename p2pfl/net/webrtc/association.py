"""aiortc's SCTP association, with the bounds and the speed that it lacks."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Iterator
from typing import Any

from aiortc import RTCDtlsTransport, RTCSctpTransport

ASSEMBLY_LIMIT = 3 << 20  # bytes of one stream waiting behind a lost packet; the credit window is 2 MiB

_log = logging.getLogger("p2pfl.net")


class _SentQueue(deque[Any]):
    """The chunks in flight. ``quiet``: none waits to be sent again, so a search for such finds nothing at once."""

    quiet = False

    def __iter__(self) -> Iterator[Any]:
        return iter(()) if self.quiet else super().__iter__()


class Association(RTCSctpTransport):
    """aiortc's SCTP with bounds on what a peer may leave half-sent, and without a search through all chunks in flight.

    aiortc looks at every chunk in flight for one to send again, each time it may send: 30 us for 1,000 chunks, as much
    as everything else together. Only a gap in an acknowledgement or a timeout marks chunks so.
    """

    def __init__(self, transport: RTCDtlsTransport, port: int) -> None:
        super().__init__(transport, port)
        self._sent_queue: _SentQueue = _SentQueue()
        self._to_repeat = False
        self._unanswered = 0  # packets with data since the last acknowledgement
        self._datagrams: asyncio.Queue[Any] = transport.transport._connection._queue

    async def _send_sack(self) -> None:
        """Acknowledge every second packet while more of them wait to be read (RFC 9260 section 6.2).

        aiortc acknowledges each one, which costs both ends as much as the packet. No timer is needed: whatever waits
        is handled next, and brings us here again.
        """
        self._unanswered += 1
        if self._unanswered < 2 and not (self._datagrams.empty() or self._sack_misordered or self._sack_duplicates):
            return
        self._unanswered = 0
        await super()._send_sack()

    async def _handle_data(self, data: bytes) -> None:
        await super()._handle_data(data)
        held = sum(len(stream.reassembly) for stream in self._inbound_streams.values())
        if len(self._inbound_streams) > 1 or len(self._data_channels) > 1 or held * 1160 > ASSEMBLY_LIMIT:
            _log.warning("a WebRTC peer opened further streams or sent an endless message; closing")
            await self.stop()

    async def _receive_sack_chunk(self, chunk: Any) -> None:
        self._to_repeat = self._to_repeat or bool(chunk.gaps)
        self._sent_queue.quiet = False
        await super()._receive_sack_chunk(chunk)

    def _t3_expired(self) -> None:
        self._to_repeat = True
        super()._t3_expired()

    async def _transmit(self) -> None:
        self._sent_queue.quiet = not self._to_repeat
        try:
            await super()._transmit()
        finally:
            self._sent_queue.quiet = False
        if self._to_repeat:
            self._to_repeat = any(chunk._retransmit for chunk in self._sent_queue)
