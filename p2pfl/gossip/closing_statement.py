"""One site's closing statement: its payload schema. It is flooded; the completion record is the union of all."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from p2pfl.crypto import Envelope, Verify, open_envelope, pack, sha256, verify_signature
from p2pfl.errors import MalformedMessage
from p2pfl.gossip.contributions import RANGES, Range
from p2pfl.gossip.messages import DIRECT_LIMIT, MAX_PARTICIPANTS, MAX_ROUNDS, MAX_TEXT, check_digest
from p2pfl.gossip.schema import read_statement, shown
from p2pfl.types import Digest, PeerId, RunId

MAX_NUMBER = 2**40  # of rounds, edges or samples in a statement: it must fit a log entry


@dataclass(frozen=True, slots=True)
class Closing:
    """One site's closing statement, or its signed absence (``finished`` false)."""

    run: RunId
    finished: bool
    rounds_done: int
    digest: Digest
    missing: tuple[tuple[PeerId, int, str], ...]  # (peer, from round, reason) among the author's neighbours
    unsettled: int  # displacements that stay in the author's model as recorded bias
    samples: int = 0
    distance: float = 0.0  # root mean square distance to the neighbours that were mixed last, in parameter units
    contributed: tuple[tuple[PeerId, tuple[Range, ...]], ...] = ()  # rounds by site, as the author mixed them

    def encode(self) -> bytes:
        """The payload to sign."""
        return pack(
            {
                "run": self.run,
                "finished": self.finished,
                "rounds_done": self.rounds_done,
                "digest": self.digest,
                "missing": [list(row) for row in self.missing],
                "unsettled": self.unsettled,
                "samples": self.samples,
                "distance": self.distance,
                "contributed": [[peer, [list(item) for item in ranges]] for peer, ranges in self.contributed],
            }
        )


def heard_facts(signer: PeerId, statement: Closing) -> dict[str, Any]:
    """The body of the entry "closing_heard"; short and bounded, whatever the other site wrote."""
    return {
        "peer": signer,
        "finished": statement.finished,
        "rounds_done": statement.rounds_done,
        "digest": statement.digest,
        "unsettled": statement.unsettled,
        "samples": statement.samples,
        "distance": statement.distance,
        "contributed": sha256(
            pack([[peer, [list(item) for item in ranges]] for peer, ranges in statement.contributed])
        ),
    }


def closing_from_entry(run: RunId, body: Mapping[str, Any]) -> Closing:
    """The own closing statement as the log entry "run_closed" vouches for it; for a restart."""
    missing = tuple((PeerId(peer), since, reason) for peer, since, reason in body["missing"])
    contributed = tuple(
        (PeerId(peer), tuple((row[0], row[1]) for row in ranges)) for peer, ranges in body["contributed"]
    )
    return Closing(
        run, body["finished"], body["rounds_done"], Digest(body["digest"]), missing, body["unsettled"],
        body["samples"], body["distance"], contributed,
    )  # fmt: skip


def open_closing(data: bytes, verify: Verify = verify_signature) -> tuple[Envelope, Closing]:
    """Verify and decode a closing statement."""
    envelope = open_envelope(data, kinds=("closing",), limit=DIRECT_LIMIT, verify=verify)
    spec: dict[str, type | tuple[type, ...]] = {
        "run": str,
        "finished": bool,
        "rounds_done": int,
        "digest": str,
        "missing": list,
        "unsettled": int,
        "samples": int,
        "distance": float,
        "contributed": list,
    }
    fields = read_statement(envelope, "closing statement", spec, DIRECT_LIMIT)
    rows = fields["missing"]
    if len(rows) > MAX_PARTICIPANTS or not all(
        isinstance(row, list) and [type(part) for part in row] == [str, int, str] and len(row[2]) <= MAX_TEXT
        for row in rows
    ):
        raise MalformedMessage("closing statement: missing is not a short list", peer=envelope.signer)
    check_digest(fields["digest"], "closing statement: digest")
    fields["missing"] = tuple((PeerId(row[0]), row[1], shown(row[2])) for row in rows)
    if not (math.isfinite(fields["distance"]) and fields["distance"] >= 0 and fields["samples"] >= 0):
        raise MalformedMessage("closing statement: distance or samples out of range", peer=envelope.signer)
    numbers = (fields["rounds_done"], fields["unsettled"], fields["samples"])
    if not all(0 <= number <= MAX_NUMBER for number in numbers):
        raise MalformedMessage("closing statement: a number out of range", peer=envelope.signer)
    fields["contributed"] = read_contributions(fields["contributed"], envelope.signer)
    return envelope, Closing(**fields)


def read_contributions(value: Any, signer: PeerId) -> tuple[tuple[PeerId, tuple[Range, ...]], ...]:
    """Ranges of rounds by site, from decoded msgpack. Raises MalformedMessage."""
    problem = MalformedMessage("closing statement: contributions are not short lists of ranges", peer=signer)
    if not isinstance(value, list) or len(value) > MAX_PARTICIPANTS:
        raise problem
    found = []
    for row in value:
        if not (isinstance(row, list) and len(row) == 2 and isinstance(row[0], str) and isinstance(row[1], list)):
            raise problem
        ranges = []
        for item in row[1]:
            if not (isinstance(item, list) and [type(part) for part in item] == [int, int]):
                raise problem
            if not 0 <= item[0] <= item[1] <= MAX_ROUNDS or len(row[1]) > RANGES:
                raise problem
            ranges.append((item[0], item[1]))
        found.append((PeerId(row[0]), tuple(ranges)))
    return tuple(found)
