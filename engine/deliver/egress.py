"""Outgoing connections that cannot be led astray (FAULTS A1): the address connected to is the address checked.

A name is resolved once, every address it has must be allowed, and the connection goes to one of those addresses
itself, so that a second, different answer of the name server changes nothing. Odd spellings of addresses
(2852039166, 0xA9FEA9FE, 0251.0376.0251.0376) are resolved by the same call and judged by what they mean.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Iterable, Sequence
from typing import Any

import httpcore

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class ForbiddenAddress(httpcore.ConnectError):
    """The name leads to an address that may not be connected to. Nothing was sent."""


def is_allowed(text: str, exceptions: Sequence[Network] = ()) -> bool:
    """Say whether an address is public, or inside one of the networks the deployment allows besides."""
    address: Address = ipaddress.ip_address(text.split("%")[0])
    carried = list(_carried(address))
    if any(one in network for one in (address, *carried) for network in exceptions if one.version == network.version):
        return True
    return all(one.is_global and not one.is_multicast and not one.is_reserved for one in (address, *carried))


def is_from(peer: str, networks: Sequence[Network]) -> bool:
    """Say whether a caller's address lies in one of the networks; one that cannot be read does not."""
    try:
        address: Address = ipaddress.ip_address(peer.split("%")[0])
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return any(address in network for network in networks if network.version == address.version)


def _carried(address: Address) -> Iterable[Address]:
    """Yield the IPv4 addresses that an IPv6 address stands for."""
    if isinstance(address, ipaddress.IPv4Address):
        return
    if address.ipv4_mapped is not None:
        yield address.ipv4_mapped
    if address.sixtofour is not None:
        yield address.sixtofour
    if address.teredo is not None:
        yield from address.teredo
    if address in ipaddress.ip_network("64:ff9b::/96") or int(address) < 1 << 32:
        yield ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)


class GuardedBackend(httpcore.AsyncNetworkBackend):
    """A network backend that connects to allowed addresses only."""

    def __init__(self, exceptions: Sequence[Network] = (), inner: httpcore.AsyncNetworkBackend | None = None) -> None:
        self._exceptions = exceptions
        self._inner = inner or httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Any = None,
    ) -> httpcore.AsyncNetworkStream:
        addresses = await self.resolve(host, port)
        forbidden = [one for one in addresses if not is_allowed(one, self._exceptions)]
        if forbidden or not addresses:
            raise ForbiddenAddress(f"{host} leads to an address that is not public; allow its network if that is meant")
        failure: Exception | None = None
        for address in addresses:
            try:
                stream = await self._inner.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
                continue
            peer = stream.get_extra_info("server_addr")
            if peer is not None and not is_allowed(str(peer[0]), self._exceptions):
                await stream.aclose()
                raise ForbiddenAddress(f"{host} connected to an address that is not public")
            return stream
        assert failure is not None
        raise failure

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Any = None
    ) -> httpcore.AsyncNetworkStream:
        raise ForbiddenAddress("unix sockets are no gateways")

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def resolve(self, host: str, port: int) -> list[str]:
        """Return every address of a name, in the resolver's order."""
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise httpcore.ConnectError(f"{host} cannot be resolved") from error
        return list(dict.fromkeys(str(one[4][0]) for one in found))
