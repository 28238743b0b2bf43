"""Whether anybody listens where a Ray cluster should be: Ray itself tries for more than a minute before it says no."""

from __future__ import annotations

import os
import socket
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

from p2pfl.errors import LocalError

PROBE_SECONDS = 5.0  # a handshake takes a tenth of a second around the world
CLIENT_PORT = 10001  # of ray://host (docs.ray.io, "Ray Client")
CURRENT = "ray/ray_current_cluster"  # where ray start leaves the address that "auto" means, below RAY_TMPDIR


def check_listening(address: str, seconds: float = PROBE_SECONDS) -> None:
    """Connect to the address of a Ray cluster and hang up; "auto" is what Ray takes for it. Raises LocalError.

    Addresses of another form, and "auto" where nothing says what it is, are left to Ray.
    """
    place = _told() if address == "auto" else address
    parts = _host_and_port(place)
    if parts is None:
        return
    try:
        socket.create_connection(parts, timeout=seconds).close()
    except OSError as error:
        named = place if place == address else f"{place}, which {address} means here"
        raise LocalError(
            f"no Ray cluster answers at {named} ({error.strerror or error}); begin one with ray start, or check --ray"
        ) from error


def _told() -> str:
    """What "auto" means: RAY_ADDRESS, or the address of the cluster begun last on this machine."""
    given = os.environ.get("RAY_ADDRESS")
    if given:
        return given
    folder = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir())
    try:
        return (folder / CURRENT).read_text().strip()
    except (OSError, ValueError):
        return ""


def _host_and_port(address: str) -> tuple[str, int] | None:
    try:
        parts = urlsplit(address if "://" in address else f"//{address}")
        host, port = parts.hostname, parts.port
    except ValueError:
        return None
    if port is None and parts.scheme == "ray":
        port = CLIENT_PORT
    return None if not host or port is None or parts.scheme not in ("", "ray") else (host, port)
