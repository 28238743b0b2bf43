"""What a site has configured for its WebRTC links. Nothing is contacted that does not stand here."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from p2pfl.errors import ConfigError

_STUN = re.compile(r"stun:(?P<host>[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(:(?P<port>[0-9]{1,5}))?")
_TURN = re.compile(
    r"turns?:(?P<host>[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(:(?P<port>[0-9]{1,5}))?"
    r"(\?transport=(?P<transport>udp|tcp))?"
)


@dataclass(frozen=True, slots=True)
class IceSettings:
    """STUN and TURN servers (RFC 7064, RFC 7065 URIs) and what may be told of this machine.

    Raises ConfigError for a setting that cannot work, naming it.
    """

    stun: str | None = None
    turn: str | None = None
    turn_username: str | None = None
    turn_password: str | None = field(default=None, repr=False)
    relay_only: bool = False  # no address of this machine is told or used; everything goes through TURN
    interfaces: tuple[str, ...] | None = None  # names or addresses; None: those of the local network

    def __post_init__(self) -> None:
        if self.stun is not None:
            _check(self.stun, _STUN, "stun", "stun:stun.hospital.example:3478")
        if self.turn is not None:
            _check(self.turn, _TURN, "turn", "turn:turn.hospital.example:3478")
            if self.turn.startswith("turns:") and self.turn.endswith("transport=udp"):
                raise ConfigError(
                    f"turn is {self.turn!r}: TURN over DTLS is not spoken here; use turn: with udp, or turns: with tcp"
                )
            if not self.turn_username or not self.turn_password:
                raise ConfigError("turn needs turn_username and turn_password_file; add both to [webrtc]")
        if self.relay_only and self.turn is None:
            raise ConfigError("relay_only needs a TURN server; add turn to [webrtc], or take relay_only out")


def _check(uri: str, shape: re.Pattern[str], name: str, example: str) -> None:
    match = shape.fullmatch(uri)
    if match is None or int(match["port"] or 1) not in range(1, 65536):
        raise ConfigError(f"{name} is {uri[:80]!r}; write it like {example}")
