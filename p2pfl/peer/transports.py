"""Which transports a home's peer uses, built from its settings; and the ways that worked, kept over restarts."""

from __future__ import annotations

import json
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from p2pfl.crypto import Certificate, Identity
from p2pfl.errors import ConfigError
from p2pfl.files import read_bounded, write_atomic
from p2pfl.net import DEFAULT, Introductions, MemoryNetwork, TcpTransport, Transport
from p2pfl.peer.home import Home, tls_password
from p2pfl.peer.home_settings import PASSWORD_LIMIT
from p2pfl.types import PeerId

if TYPE_CHECKING:
    from p2pfl.net.webrtc import IceSettings, WebRtcTransport

WAYS_LIMIT = 256 * 1024  # bytes; one address for each of at most some hundred members


@dataclass(frozen=True, slots=True)
class Wires:
    """A peer's transports. ``introductions`` answers on its links in any case: it may carry for others."""

    transports: tuple[Transport, ...]
    listen: tuple[str, ...]
    introductions: Introductions
    webrtc: WebRtcTransport | None


def build_wires(
    home: Home, identity: Identity, name: str, network: MemoryNetwork | None, certificate: Certificate
) -> Wires:
    """The transports of this home, which show ``certificate``. Raises ConfigError for settings that cannot work."""
    settings = home.settings.webrtc
    introductions = Introductions(DEFAULT, willing=settings.introduce)
    listen = [home.settings.listen] if home.settings.listen else []
    if network is not None:
        return Wires((network.transport(name, certificate.der),), tuple(listen), introductions, None)
    tcp = TcpTransport(certificate, tls_password(identity))
    if not settings.enabled:
        return Wires((tcp,), tuple(listen), introductions, None)
    from p2pfl.net.webrtc import WebRtcTransport  # aiortc takes a while to import

    webrtc = WebRtcTransport(identity, introductions, ice_settings(home))
    return Wires((tcp, webrtc), (*listen, "/webrtc"), introductions, webrtc)


def ice_settings(home: Home) -> IceSettings:
    """STUN, TURN and interfaces of this home. Raises ConfigError, never naming the password."""
    from p2pfl.net.webrtc import IceSettings

    settings = home.settings.webrtc
    return IceSettings(
        stun=settings.stun,
        turn=settings.turn,
        turn_username=settings.turn_username,
        turn_password=_password(home.path, settings.turn_password_file),
        relay_only=settings.relay_only,
        interfaces=None if settings.interfaces is None else tuple(settings.interfaces),
    )


def _password(folder: Path, name: str | None) -> str | None:
    if name is None:
        return None
    path = folder / name  # an absolute name stays as it is
    try:
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise ConfigError(f"{path} can be read by other users; run `chmod 600 {path}`")
        text = read_bounded(path, PASSWORD_LIMIT).decode().strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text"
        raise ConfigError(f"couldn't read the TURN password in {path}: {reason}; correct turn_password_file") from None
    if not text or not text.isprintable():
        raise ConfigError(f"{path} holds no password on one line; write the TURN password into it")
    return text


def read_ways(path: Path) -> dict[PeerId, str]:
    """The ways that worked before the restart; a missing or damaged file is no loss: they are found again."""
    try:
        value = json.loads(read_bounded(path, WAYS_LIMIT))
    except (ConfigError, ValueError, RecursionError):
        return {}
    if not isinstance(value, dict):
        return {}
    return {PeerId(peer): way for peer, way in value.items() if isinstance(way, str)}


def write_ways(path: Path, ways: Mapping[PeerId, str]) -> None:
    """Keep the ways that worked. Raises StoreError."""
    write_atomic(path, json.dumps(dict(ways), indent=1).encode())
