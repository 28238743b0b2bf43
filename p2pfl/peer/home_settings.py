"""The contents of home.toml: what a home's owner sets, its limits, and how it is written."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

PASSWORD_LIMIT = 4096  # bytes of a TURN password file; a password has at most a few hundred


class WebRtcSettings(BaseModel):
    """The table ``[webrtc]``: links to hospitals that no open port leads to. All of it may be left out."""

    model_config = ConfigDict(extra="forbid")

    enabled: bool = True
    stun: str | None = None  # "stun:host:3478"; no server is contacted unless it is named here
    turn: str | None = None  # "turn:host:3478", "turn:host:3478?transport=tcp" or "turns:host:5349"
    turn_username: str | None = None
    turn_password_file: str | None = None  # a file beside home.toml or an absolute path, mode 0600
    relay_only: bool = False  # tell nobody an address of this machine; everything goes through the TURN server
    interfaces: list[str] | None = Field(default=None, max_length=16)  # names or addresses; absent: see docs/webrtc.md
    introduce: bool = True  # carry the signalling of two neighbours


class KeepSettings(BaseModel):
    """The table ``[keep]``: whether deltas stay on this disk after the round, to replay the mixing later.

    They are parameters of this site's and its partners' models, in clear: who reads them can attack what they were
    trained on. Off by default.
    """

    model_config = ConfigDict(extra="forbid")

    deltas: bool = False
    limit: int = Field(default=10 * 2**30, ge=1)  # bytes; then the oldest run that is over is deleted


class HomeSettings(BaseModel):
    """The contents of home.toml."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1, max_length=64)
    listen: str | None = None  # a multiaddr such as /ip4/10.1.2.3/tcp/4101; absent: no listening port
    tell: list[str] | None = Field(default=None, max_length=8)  # addresses for partners: a forwarded port, a name
    discover: str | None = None  # IPv4 of the interface for zeroconf; absent: no discovery
    local_steps: int | None = Field(default=None, ge=1, le=1_000_000_000)  # in asynchronous runs whose plan allows it
    webrtc: WebRtcSettings = WebRtcSettings()
    keep: KeepSettings = KeepSettings()

    def to_toml(self) -> str:
        """The file's text; what has its default value is left out."""
        top = {key: value for key, value in self.model_dump(exclude={"webrtc", "keep"}).items() if value is not None}
        lines = [f"{key} = {_toml(value)}" for key, value in top.items()]
        for name, part in (("webrtc", self.webrtc), ("keep", self.keep)):
            table = part.model_dump(exclude_defaults=True)
            if table:
                lines += ["", f"[{name}]", *(f"{key} = {_toml(value)}" for key, value in table.items())]
        return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    escaped = str(value).replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(letter if letter.isprintable() else f"\\u{ord(letter):04x}" for letter in escaped) + '"'
