"""Which addresses may be connected to: public ones, and those of networks that the configuration names.

The name of a host says nothing: it may resolve to an address of the machine itself or of its network, and to another one a
second later. So a name is resolved once, all its addresses are checked, and the connection is made to one of those.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final

from cas.errors import Code
from cas.fetch_failure import FetchFailed

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Resolve = Callable[[str, int], Coroutine[Any, Any, Sequence[str]]]
"""The addresses of a host, as text; raises OSError if there are none."""

MAX_ADDRESSES: Final = 16
"""Addresses of one name that are tried."""

RESOLVER_THREADS: Final = 8
"""Names resolved at once."""

_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")
_UNICAST: Final = ipaddress.IPv6Network("2000::/3")
"""All that IANA has given out as global unicast IPv6 so far."""
_TUNNELS: Final = (ipaddress.IPv6Network("2001::/32"), ipaddress.IPv6Network("2002::/16"))
"""Teredo and 6to4: each holds IPv4 addresses, private ones too."""
_SPECIAL: Final = tuple(map(ipaddress.IPv4Network, ("192.0.0.0/24", "192.88.99.0/24", "168.63.129.16/32")))
"""IETF protocol assignments (RFC 6890) and the relays of 6to4 (RFC 7526), which older Pythons count as global. In the first
and at the last address clouds serve their machines' metadata."""


def is_public(address: Address) -> bool:
    """Whether the address belongs to the Internet and to no special network (IANA's special-purpose registries)."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return is_public(address.ipv4_mapped)
        if address in _NAT64:
            return is_public(ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF))
        if address not in _UNICAST or any(address in network for network in _TUNNELS):
            return False
    elif any(address in network for network in _SPECIAL):
        return False
    return address.is_global and not (address.is_multicast or address.is_reserved or address.is_unspecified)


def system_resolver(threads: int = RESOLVER_THREADS) -> Resolve:
    """Resolves as the system does, in threads of its own.

    A name server that is slow on purpose holds a thread for as long as it likes; the stores and everyone else share the
    event loop's own threads, and would wait for it.
    """
    executor = ThreadPoolExecutor(threads, thread_name_prefix="resolve")

    async def resolve(host: str, port: int) -> Sequence[str]:
        ask = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
        found = await asyncio.get_running_loop().run_in_executor(executor, ask)
        return [str(address[0]) for *_, address in found]

    return resolve


class Guard:
    """Decides what a host may be connected at."""

    def __init__(self, private_networks: Sequence[Network] = (), resolve: Resolve | None = None) -> None:
        """Without `resolve` the system's resolver is asked."""
        self._private_networks = private_networks
        self._resolve = resolve or system_resolver()

    def may_connect(self, address: Address) -> bool:
        """Whether the address is public or of a network that is allowed."""
        plain = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
        return is_public(address) or any((plain or address) in network for network in self._private_networks)

    async def addresses_of(self, host: str, port: int) -> tuple[str, ...]:
        """The addresses of `host`, all of them allowed.

        Raises FetchFailed: UNAVAILABLE if there are none, PERMISSION_DENIED if one is not allowed. One is enough: a name that
        leads outside and inside at once is no mistake.
        """
        try:
            texts = await self._resolve(host, port)
            addresses = [ipaddress.ip_address(text) for text in texts]
        except (OSError, ValueError, UnicodeError):
            raise FetchFailed(Code.UNAVAILABLE, f"host {host[:200]!r} cannot be resolved") from None
        if not addresses:
            raise FetchFailed(Code.UNAVAILABLE, f"host {host[:200]!r} has no address")
        # The address is not named: it would tell a stranger about the network here.
        if not all(map(self.may_connect, addresses)):
            raise FetchFailed(
                Code.PERMISSION_DENIED,
                f"host {host[:200]!r} is in a network that this server may not fetch from (see [assets] private_networks)",
            )
        return tuple(dict.fromkeys(map(str, addresses)))[:MAX_ADDRESSES]
