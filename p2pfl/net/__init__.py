"""Links between peers: hosts, transports, limits. See docs/links.md.

A :class:`Host` joins transports (``TcpTransport``, ``MemoryTransport``) and gives the other rooms
requests, notifications and bulk fetches to proven members. Nothing here interprets what it carries.
"""

from __future__ import annotations

from p2pfl.net.connection import Accept, Connection, Refused, Transport, certificate_binding
from p2pfl.net.discovery import Discovery
from p2pfl.net.handlers import NotifyHandler, RequestHandler
from p2pfl.net.host import Host, OnLink, OnRefused
from p2pfl.net.interfaces import usable_addresses
from p2pfl.net.introductions import Introductions
from p2pfl.net.limits import CHUNK_LIMIT, DEFAULT, FRAME_LIMIT, Limits
from p2pfl.net.link import LinkInfo
from p2pfl.net.memory import MemoryNetwork, MemoryTransport
from p2pfl.net.multiaddrs import Address, parse_address
from p2pfl.net.pulls import ContentProvider
from p2pfl.net.tcp import TcpTransport
from p2pfl.net.wire import PAYLOAD_LIMIT

__all__ = [
    "CHUNK_LIMIT",
    "DEFAULT",
    "FRAME_LIMIT",
    "PAYLOAD_LIMIT",
    "Accept",
    "Address",
    "Connection",
    "ContentProvider",
    "Discovery",
    "Host",
    "Introductions",
    "Limits",
    "LinkInfo",
    "MemoryNetwork",
    "MemoryTransport",
    "NotifyHandler",
    "OnLink",
    "OnRefused",
    "Refused",
    "RequestHandler",
    "TcpTransport",
    "Transport",
    "certificate_binding",
    "parse_address",
    "usable_addresses",
]
