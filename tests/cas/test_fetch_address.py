"""No address of a private network is connected to, however it is written or named."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import threading
from collections.abc import Sequence

import pytest

from cas.errors import Code
from cas.fetch_address import MAX_ADDRESSES, Guard, is_public, system_resolver
from cas.fetch_failure import FetchFailed

PRIVATE = [
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "100.64.0.1",
    "127.0.0.1",
    "127.255.255.254",
    "169.254.169.254",  # the metadata of a cloud machine
    "172.16.0.1",
    "172.31.255.255",
    "168.63.129.16",  # that of another cloud, at an address that looks public
    "192.0.0.1",
    "192.0.0.192",  # and of a third
    "192.0.2.1",
    "192.88.99.1",
    "192.168.1.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::ffff:169.254.169.254",
    "64:ff9b::127.0.0.1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::1",
    "100::1",
    "2001::1",
    "2001:db8::1",
    "2002:7f00:1::",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "ff02::1",
    "4000::1",
]

PUBLIC = ["1.1.1.1", "8.8.8.8", "140.82.112.3", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]


@pytest.mark.parametrize("text", PRIVATE)
def test_special_addresses_are_not_public(text: str) -> None:
    assert not is_public(ipaddress.ip_address(text))


@pytest.mark.parametrize("text", PUBLIC)
def test_addresses_of_the_internet_are_public(text: str) -> None:
    assert is_public(ipaddress.ip_address(text))


def resolving(*addresses: str) -> Guard:
    async def resolve(_host: str, _port: int) -> Sequence[str]:
        return addresses

    return Guard([ipaddress.ip_network("10.1.0.0/16"), ipaddress.ip_network("fd00:1::/32")], resolve)


async def refused(guard: Guard, host: str = "host.test") -> FetchFailed:
    with pytest.raises(FetchFailed) as caught:
        await guard.addresses_of(host, 443)
    return caught.value


async def test_a_name_that_leads_to_a_private_address_is_refused_without_naming_it() -> None:
    failure = await refused(resolving("192.168.77.1"))
    assert failure.code is Code.PERMISSION_DENIED
    assert "host.test" in str(failure)
    assert "192.168" not in str(failure)


async def test_one_private_address_among_public_ones_is_enough() -> None:
    assert (await refused(resolving("1.1.1.1", "127.0.0.1"))).code is Code.PERMISSION_DENIED
    assert (await refused(resolving("1.1.1.1", "::1"))).code is Code.PERMISSION_DENIED


async def test_networks_that_are_configured_may_be_reached_and_their_neighbours_not() -> None:
    assert await resolving("10.1.255.1", "fd00:1::5", "1.1.1.1").addresses_of("host.test", 80) == (
        "10.1.255.1",
        "fd00:1::5",
        "1.1.1.1",
    )
    assert await resolving("::ffff:10.1.0.1").addresses_of("host.test", 80)
    assert (await refused(resolving("10.2.0.1"))).code is Code.PERMISSION_DENIED


async def test_an_endless_list_of_addresses_is_cut() -> None:
    many = [f"1.1.{number // 256}.{number % 256}" for number in range(1000)]
    assert len(await resolving(*many).addresses_of("host.test", 80)) == MAX_ADDRESSES


@pytest.mark.parametrize("addresses", [[], ["not an address"], ["1.1.1.1.1"]])
async def test_a_resolver_that_gives_nothing_of_use_is_a_failure_of_the_fetch(addresses: list[str]) -> None:
    assert (await refused(resolving(*addresses))).code is Code.UNAVAILABLE


async def test_a_name_that_does_not_resolve_is_unavailable() -> None:
    async def resolve(_host: str, _port: int) -> Sequence[str]:
        raise OSError("no such host")

    assert (await refused(Guard((), resolve))).code is Code.UNAVAILABLE


@pytest.mark.parametrize(
    "host",
    ["localhost", "127.0.0.1", "127.1", "2130706433", "0x7f000001", "0x7f.1", "0177.0.0.1", "::1", "0"],
)
async def test_whatever_the_systems_resolver_takes_for_this_machine_is_refused(host: str) -> None:
    """Numbers without dots, in octal or hexadecimal, are addresses to it."""
    assert (await refused(Guard(), host)).code is Code.PERMISSION_DENIED


async def test_a_name_with_a_dot_at_its_end_is_no_way_around() -> None:
    """Some resolvers know `localhost.`, others do not."""
    assert (await refused(Guard(), "localhost.")).code in (Code.PERMISSION_DENIED, Code.UNAVAILABLE)


async def test_slow_names_do_not_hold_the_threads_that_others_need(monkeypatch: pytest.MonkeyPatch) -> None:
    answered = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_arguments, **_options: answered.wait(20) and [])
    resolve = system_resolver(threads=2)
    try:
        async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
            for number in range(50):
                tasks.create_task(resolve(f"host{number}.test", 80))
            for _ in range(50):
                await asyncio.to_thread(len, "")
            answered.set()
    finally:
        answered.set()
