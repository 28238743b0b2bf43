"""Links without an open port, over aiortc. Importing this package imports aiortc; see docs/webrtc.md."""

from __future__ import annotations

from p2pfl.net.webrtc.channel import WebRtcConnection
from p2pfl.net.webrtc.settings import IceSettings
from p2pfl.net.webrtc.transport import Signaller, WebRtcTransport

__all__ = ["IceSettings", "Signaller", "WebRtcConnection", "WebRtcTransport"]
