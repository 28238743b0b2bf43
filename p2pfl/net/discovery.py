"""zeroconf on the local network: a hint where members may listen, never trusted.

Announced are a random instance name, an address, a port and the network's tag: no hospital's name, no
peer id, no fact about data. Everything heard is spoofable; it yields candidate addresses, and the hello
decides. mDNS does not cross VLANs or docker bridges: addresses in the member records stay first-class.
Records of crashed peers live on for 75 minutes; the host forgets what fails.
"""

from __future__ import annotations

import asyncio
import ipaddress
import secrets
import socket
from collections.abc import Callable, Coroutine
from typing import Any

from zeroconf import Error as ZeroconfError
from zeroconf import ServiceStateChange, Zeroconf
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from p2pfl.errors import ConfigError, LinkError
from p2pfl.net.multiaddrs import Address

SERVICE = "_p2pfl._tcp.local."
"""A service type of our own: a private network takes its own name (libp2p mDNS specification)."""

_TAG = b"network"
_TAG_LIMIT = 64  # characters; TXT strings are at most 255 bytes
_START_SECONDS = 10.0  # the name probe takes 1.2 s, the announcement 0.5 s
_STOP_SECONDS = 3.0  # a goodbye is sent three times within 0.4 s
_RESOLVE_SECONDS = 3.0
_RESOLVING = 32  # names resolved at one time; floods of announcements wait for the next one


class Discovery:
    """Announces our port (unless it is None) and reports each address heard with the same network tag.

    ``interface`` is the IPv4 address of the one interface to use: the default of all interfaces would
    also open every docker bridge. ``on_address`` gets multiaddrs such as ``/ip4/10.1.2.3/tcp/4101``, the
    same one possibly again.
    """

    def __init__(self, network_tag: str, interface: str, port: int | None, on_address: Callable[[str], None]) -> None:
        if not 0 < len(network_tag) <= _TAG_LIMIT or not network_tag.isascii():
            raise ConfigError(
                f"a network tag has 1 to {_TAG_LIMIT} ASCII characters; use the start of the charter digest"
            )
        try:
            self._interface = str(ipaddress.IPv4Address(interface))
        except ValueError:
            raise ConfigError(f"{interface!r} is not an IPv4 address of an interface; correct it") from None
        self._tag = network_tag.encode()
        self._port = port
        self._on_address = on_address
        self._name = f"{secrets.token_hex(16)}.{SERVICE}"  # libp2p: random, at least 32 characters
        self._zeroconf: AsyncZeroconf | None = None
        self._browser: AsyncServiceBrowser | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Browse and announce. LinkError when this interface cannot do multicast; the caller goes on
        without.
        """
        try:
            async with asyncio.timeout(_START_SECONDS):
                await self._start()
        except (OSError, TimeoutError, ZeroconfError) as error:
            await self.stop()
            raise LinkError(
                f"no discovery on interface {self._interface} ({_words(error)}); give an address of this "
                "machine whose network allows multicast, or rely on the addresses in the member records"
            ) from None
        except BaseException:
            await self.stop()
            raise

    async def _start(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind((self._interface, 0))  # fails here, where nothing is open yet, if there is no such interface
        self._zeroconf = AsyncZeroconf(interfaces=[self._interface])
        self._browser = AsyncServiceBrowser(self._zeroconf.zeroconf, SERVICE, handlers=[self._on_change])
        if self._port is not None:
            # the first await ends the name probe, the second the announcement
            await (await self._zeroconf.async_register_service(self._announcement(self._port)))

    def _announcement(self, port: int) -> AsyncServiceInfo:
        return AsyncServiceInfo(
            SERVICE,
            self._name,
            port=port,
            addresses=[socket.inet_aton(self._interface)],
            properties={_TAG: self._tag},
            server=f"{self._name.split('.')[0]}.local.",
        )

    async def stop(self) -> None:
        """Say goodbye and close the sockets, bounded in time. May be called again."""
        zeroconf, self._zeroconf = self._zeroconf, None
        browser, self._browser = self._browser, None
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        try:
            async with asyncio.timeout(_STOP_SECONDS):
                if browser is not None:
                    await browser.async_cancel()
                if zeroconf is not None:
                    await zeroconf.async_unregister_all_services()
                    await zeroconf.async_close()
        except (OSError, TimeoutError, ZeroconfError):
            pass  # a hint that fails to say goodbye expires by itself

    def _on_change(self, zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange) -> None:
        """A sync callback of the browser: look the name up in a task. Goodbyes can be forged and are
        ignored.
        """
        if name == self._name or state_change is ServiceStateChange.Removed or len(self._tasks) >= _RESOLVING:
            return
        self._spawn(self._resolve(zeroconf, service_type, name))

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _resolve(self, zeroconf: Zeroconf, service_type: str, name: str) -> None:
        info = AsyncServiceInfo(service_type, name)
        try:
            found = await info.async_request(zeroconf, _RESOLVE_SECONDS * 1000)
        except (OSError, ZeroconfError):
            return
        if not found or not info.port or info.properties.get(_TAG) != self._tag:
            return
        for address in info.parsed_addresses():
            if ":" not in address:
                self._on_address(str(Address("ip4", address, info.port)))


def _words(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
