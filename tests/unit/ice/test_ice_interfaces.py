"""Which addresses of a host are gathered on.  More of the order is in rfc-vectors/ice."""

from __future__ import annotations

import random
import socket
import sys
from types import SimpleNamespace

import pytest

from ice import interfaces, netlink
from ice.config import Config, Interface
from ice.interfaces import LocalAddress, filter_and_rank, local_addresses, local_interfaces
from ice.netlink import KernelAddress
from ice.priority import HIGHEST, MOST_ADDRESSES, SERVERS

WIRED = LocalAddress("192.0.2.1", "eth0", 2, 24)
WIRELESS = LocalAddress("198.51.100.1", "wlan0", 3, 24, default=True)
BRIDGE = LocalAddress("172.17.0.1", "docker0", 4, 16)
PUBLIC = LocalAddress("2001:db8::211:22ff:fe33:4455", "eth0", 2, 64)
TEMPORARY = LocalAddress("2001:db8::1234:5678:9abc:def0", "eth0", 2, 64, temporary=True)
ELSEWHERE = LocalAddress("2001:db8:1::1", "wlan0", 3, 64)
LINK = LocalAddress("fe80::1%eth0", "eth0", 2, 64)
LINK4 = LocalAddress("169.254.7.7", "eth0", 2, 16)
LOOP = LocalAddress("127.0.0.1", "lo", 1, 8, loopback=True)
LOOP6 = LocalAddress("::1", "lo", 1, 128, loopback=True)
ANYCAST = LocalAddress("203.0.113.1", "lo", 1, 32, loopback=True)
ALL = [LOOP, LOOP6, ANYCAST, WIRED, WIRELESS, BRIDGE, PUBLIC, ELSEWHERE, LINK, LINK4]


def hosts(given: list[LocalAddress], **settings: object) -> list[str]:
    return [found.host for found in filter_and_rank(given, Config(**settings))]


def test_all_at_once(rng: random.Random) -> None:
    """The system's own choice first, families in turns, the link after what reaches farther."""
    expected = [PUBLIC, WIRELESS, ELSEWHERE, WIRED, BRIDGE, LINK, LINK4]
    shuffled = list(ALL)
    for _ in range(20):
        rng.shuffle(shuffled)
        assert filter_and_rank(shuffled, Config()) == [
            Interface(local.host, local.name, HIGHEST - SERVERS * n)
            for n, local in enumerate(expected)
        ]


def test_families() -> None:
    assert all(":" not in host for host in hosts(ALL, ipv6=False))
    assert all(":" in host for host in hosts(ALL, ipv4=False))
    assert hosts(ALL, ipv4=False, ipv6=False) == []


def test_names() -> None:
    assert hosts(ALL, interfaces=("docker0",)) == [BRIDGE.host]
    assert hosts(ALL, interfaces=("dock*", "wlan0"), ipv6=False) == [WIRELESS.host, BRIDGE.host]
    assert BRIDGE.host not in hosts(ALL, exclude_interfaces=("docker*", "br-*"))
    assert hosts(ALL, interfaces=("eth0",), exclude_interfaces=("eth*",)) == []


def test_networks() -> None:
    assert hosts(ALL, addresses=("192.0.2.0/24", "2001:db8:1::/48")) == [
        ELSEWHERE.host,
        WIRED.host,
    ]
    assert BRIDGE.host not in hosts(ALL, exclude_addresses=("172.16.0.0/12",))
    assert hosts(ALL, addresses=("fe80::/10",)) == [LINK.host]


def test_loopback() -> None:
    """An address of the loopback interface is one, whatever it looks like."""
    assert not {LOOP.host, LOOP6.host, ANYCAST.host} & set(hosts(ALL))
    found = hosts(ALL, loopback=True)
    assert found[-3:] == [LOOP6.host, ANYCAST.host, LOOP.host] or found[-3:] == [
        LOOP6.host,
        LOOP.host,
        ANYCAST.host,
    ]
    assert hosts([LOOP, LOOP6], loopback=True) == [LOOP6.host, LOOP.host]


def test_link_local() -> None:
    assert {LINK.host, LINK4.host} <= set(hosts(ALL))
    assert not {LINK.host, LINK4.host} & set(hosts(ALL, link_local=False))


def test_a_temporary_address_shields_its_host() -> None:
    """RFC 8445 5.1.1.1: no other of the same interface and prefix, and no link-local ones."""
    found = hosts([*ALL, TEMPORARY], ipv4=False)
    assert TEMPORARY.host in found
    assert PUBLIC.host not in found
    assert LINK.host not in found
    assert ELSEWHERE.host in found, "another interface, another prefix"
    same_prefix = LocalAddress("2001:db8::7", "wlan0", 3, 64)
    assert same_prefix.host in hosts([same_prefix, TEMPORARY]), "another interface"
    assert LINK4.host in hosts([LINK4, TEMPORARY]), "an IPv4 address says nothing"


def test_a_temporary_address_that_is_not_used_shields_nothing() -> None:
    assert hosts([PUBLIC, TEMPORARY], exclude_addresses=(TEMPORARY.host,)) == [PUBLIC.host]
    gone = LocalAddress(TEMPORARY.host, "eth0", 2, 64, temporary=True, deprecated=True)
    assert hosts([PUBLIC, gone, LINK]) == [PUBLIC.host, LINK.host]


def test_temporary_addresses_come_first() -> None:
    other = LocalAddress("2001:db8:9::1", "eth0", 2, 64)
    assert hosts([other, TEMPORARY]) == [TEMPORARY.host, other.host]


@pytest.mark.parametrize("state", ["deprecated", "tentative", "down"])
def test_states_that_keep_an_address_out(state: str) -> None:
    assert hosts([LocalAddress("2001:db8::1", "eth0", **{state: True}), WIRED]) == [WIRED.host]


def test_a_one_to_one_nat() -> None:
    config = Config(nat_1to1={"192.0.2.1": "203.0.113.9", "2001:DB8:1::0:1": "2001:db8:ffff::1"})
    found = {one.host: one.advertised for one in filter_and_rank(ALL, config)}
    assert found[WIRED.host] == "203.0.113.9"
    assert found[ELSEWHERE.host] == "2001:db8:ffff::1"
    assert found[WIRELESS.host] is None


def test_an_address_counts_once_and_there_is_an_end() -> None:
    assert hosts([WIRED, WIRED, LocalAddress(WIRED.host, "eth1")]) == [WIRED.host]
    many = [LocalAddress(f"10.0.{n >> 8}.{n & 255}", "eth0") for n in range(1, 1000)]
    found = filter_and_rank(many, Config())
    assert len(found) == MOST_ADDRESSES
    assert found[-1].preference == HIGHEST - SERVERS * (MOST_ADDRESSES - 1) > 0


# What the operating system tells. -----------------------------------------------------------------


def told(monkeypatch: pytest.MonkeyPatch, *answers: KernelAddress) -> list[LocalAddress]:
    monkeypatch.setattr(socket, "AF_NETLINK", 16, raising=False)
    monkeypatch.setattr(netlink, "addresses", lambda: list(answers))
    monkeypatch.setattr(interfaces, "_default_source", lambda _: "192.0.2.1")
    return local_addresses()


UP = netlink.UP | netlink.RUNNING


def test_flags_of_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = (
        0,
        netlink.TEMPORARY,
        netlink.DEPRECATED,
        netlink.TENTATIVE,
        netlink.TENTATIVE | netlink.OPTIMISTIC,
        netlink.DUPLICATE | netlink.OPTIMISTIC,
    )
    found = told(
        monkeypatch,
        *(KernelAddress(f"2001:db8::{n}", 64, flag, 2, "e", UP) for n, flag in enumerate(flags)),
    )
    assert [local.temporary for local in found] == [False, True, False, False, False, False]
    assert [local.deprecated for local in found] == [False, False, True, False, False, False]
    assert [local.tentative for local in found] == [False, False, False, True, False, True]


def test_flags_of_an_ipv4_address_mean_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """IFA_F_SECONDARY has the number of IFA_F_TEMPORARY."""
    (found,) = told(monkeypatch, KernelAddress("192.0.2.1", 24, netlink.TEMPORARY, 2, "e", UP))
    assert not found.temporary
    assert found.default


@pytest.mark.parametrize("link", [0, netlink.UP, netlink.RUNNING])
def test_a_link_that_is_down(monkeypatch: pytest.MonkeyPatch, link: int) -> None:
    (found,) = told(monkeypatch, KernelAddress("192.0.2.1", 24, 0, 2, "eth0", link))
    assert found.down


def test_zones(monkeypatch: pytest.MonkeyPatch) -> None:
    found = told(
        monkeypatch,
        KernelAddress("fe80::1", 64, 0, 2, "eth0", UP),
        KernelAddress("2001:db8::1", 64, 0, 2, "eth0", UP),
    )
    assert [local.host for local in found] == ["fe80::1%eth0", "2001:db8::1"]


def test_without_netlink_a_library_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> list[KernelAddress]:
        raise PermissionError

    adapter = SimpleNamespace(
        nice_name="en0",
        index=4,
        ips=[
            SimpleNamespace(ip="192.0.2.1", network_prefix=24),
            SimpleNamespace(ip=("fe80::1%en0", 0, 4), network_prefix=64),
            SimpleNamespace(ip=("2001:db8::1", 0, 0), network_prefix=64),
        ],
    )
    monkeypatch.setattr(netlink, "addresses", refuse)
    monkeypatch.setattr(interfaces.ifaddr, "get_adapters", lambda: [adapter])
    monkeypatch.setattr(interfaces, "_default_source", lambda _: "2001:db8::1")
    assert local_addresses() == [
        LocalAddress("192.0.2.1", "en0", 4, 24),
        LocalAddress("fe80::1%en0", "en0", 4, 64),
        LocalAddress("2001:db8::1", "en0", 4, 64, default=True),
    ]


def test_this_host() -> None:
    found = local_interfaces(Config(loopback=True))
    assert "127.0.0.1" in {one.host for one in found}
    assert len({one.preference for one in found}) == len(found)
    assert "127.0.0.1" not in {one.host for one in local_interfaces(Config())}


@pytest.mark.skipif(sys.platform != "linux", reason="netlink is Linux's")
def test_both_ways_to_ask_agree() -> None:
    asked = {(a.host, a.prefix, a.name) for a in local_addresses()}
    assert asked == {(a.host, a.prefix, a.name) for a in interfaces._from_library(set())}
