"""A participant's heartbeat: its payload schema. It is flooded every few seconds."""

from __future__ import annotations

from dataclasses import dataclass

from p2pfl.crypto import Envelope, Verify, open_envelope, pack, verify_signature
from p2pfl.errors import MalformedMessage
from p2pfl.gossip.messages import DIRECT_LIMIT, Position, check_digest
from p2pfl.gossip.schema import read_position, read_statement
from p2pfl.types import Digest, RunId

MAX_CORES_TOLD = 64  # in one heartbeat


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """Flooded every few seconds: where the author stands, if it takes part, and the digests of its newest cores."""

    run: RunId
    count: int  # rises with every heartbeat, also over restarts
    position: Position
    taking_part: bool
    cores: tuple[tuple[int, int, str, str, Digest], ...]  # (round, step, channel, recipient, digest)

    def encode(self) -> bytes:
        """The payload to sign."""
        return pack(
            {
                "run": self.run,
                "count": self.count,
                "position": list(self.position),
                "taking_part": self.taking_part,
                "cores": [list(row) for row in self.cores],
            }
        )


def open_heartbeat(data: bytes, verify: Verify = verify_signature) -> tuple[Envelope, Heartbeat]:
    """Verify and decode a heartbeat."""
    envelope = open_envelope(data, kinds=("heartbeat",), limit=DIRECT_LIMIT, verify=verify)
    spec: dict[str, type | tuple[type, ...]] = {
        "run": str, "count": int, "position": list, "taking_part": bool, "cores": list,
    }  # fmt: skip
    fields = read_statement(envelope, "heartbeat", spec, DIRECT_LIMIT)
    rows = fields["cores"]
    if not 0 <= fields["count"] < 2**53 or len(rows) > MAX_CORES_TOLD:
        raise MalformedMessage("heartbeat: count or number of cores out of range", peer=envelope.signer)
    for row in rows:
        if not isinstance(row, list) or [type(part) for part in row] != [int, int, str, str, str]:
            raise MalformedMessage("heartbeat: a core is not round, step, channel, recipient, digest")
        check_digest(row[4], "heartbeat: core")
    cores = tuple((row[0], row[1], row[2], row[3], Digest(row[4])) for row in rows)
    position = read_position(fields["position"], envelope)
    return envelope, Heartbeat(RunId(fields["run"]), fields["count"], position, fields["taking_part"], cores)
