"""What a host's owner has registered to answer its neighbours."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from p2pfl.net.pulls import ContentProvider
from p2pfl.types import PeerId

RequestHandler = Callable[[PeerId, bytes], Awaitable[bytes]]
NotifyHandler = Callable[[PeerId, bytes], None]


@dataclass(slots=True)
class Handlers:
    """What the host's owner has registered; shared by all links."""

    requests: dict[str, RequestHandler] = field(default_factory=dict)
    notifications: dict[str, NotifyHandler] = field(default_factory=dict)
    provider: ContentProvider | None = None
