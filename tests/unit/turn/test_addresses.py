"""This machine's addresses: wildcards, what to relay from, what has changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from stun.errors import UsageError
from turn.daemon import addresses
from turn.daemon.addresses import (
    LocalAddress,
    changes,
    choose_relays,
    expand,
    local_addresses,
    numeric_host,
    servable,
)
from turn.server.policy import PeerPolicy

LO4, LO6 = LocalAddress("127.0.0.1", "lo"), LocalAddress("::1", "lo")
PRIVATE = LocalAddress("10.0.0.5", "eth0")
GLOBAL4 = LocalAddress("198.41.0.4", "eth0")
GLOBAL6 = LocalAddress("2a00:1450::5", "eth0")
ULA = LocalAddress("fd00::5", "eth0")
LINK = LocalAddress("fe80::1%eth0", "eth0")

is_global = PeerPolicy().check


def chosen(*known: LocalAddress, route4: str | None = None, route6: str | None = None) -> object:
    return choose_relays(
        known, lambda host: is_global(host).allowed, {4: route4, 6: route6}.__getitem__
    )


def test_a_public_machine_relays_from_its_global_addresses() -> None:
    choice = chosen(LO4, GLOBAL4, PRIVATE, GLOBAL6, ULA, LINK, route4="10.0.0.5", route6="fd00::5")
    assert choice == addresses.RelayChoice(("198.41.0.4", "2a00:1450::5"), ())


def test_behind_a_nat_the_address_of_the_default_route_is_taken_and_said() -> None:
    docker = LocalAddress("172.17.0.1", "docker0")
    choice = chosen(LO4, docker, PRIVATE, route4="10.0.0.5")
    assert choice == addresses.RelayChoice(("10.0.0.5",), ("10.0.0.5",))


def test_each_family_is_chosen_by_itself() -> None:
    choice = chosen(LO4, PRIVATE, GLOBAL6, route4="10.0.0.5", route6="2a00:1450::5")
    assert choice == addresses.RelayChoice(("10.0.0.5", "2a00:1450::5"), ("10.0.0.5",))


def test_addresses_that_go_again_are_not_relayed_from() -> None:
    temporary = LocalAddress("2a00:1450::aaaa", "eth0", lasting=False)
    tentative = LocalAddress("2a00:1450::bbbb", "eth0", ready=False)
    choice = chosen(LO6, temporary, tentative, GLOBAL6, route6=temporary.host)
    assert choice == addresses.RelayChoice((GLOBAL6.host,), ())


def test_the_only_global_address_may_be_one_that_goes_again() -> None:
    temporary = LocalAddress("2a00:1450::aaaa", "eth0", lasting=False)
    assert chosen(temporary, route6=temporary.host) == addresses.RelayChoice((temporary.host,), ())


def test_without_a_route_loopback_is_for_trying() -> None:
    assert chosen(LO4, LO6) == addresses.RelayChoice(("127.0.0.1",), ("127.0.0.1",))
    assert chosen(LO6) == addresses.RelayChoice((), ())


def test_a_route_from_an_address_that_is_not_listed_is_not_taken() -> None:
    # What a namespace or a VPN may say; nothing could be bound there.
    assert chosen(LO4, route4="10.99.0.1") == addresses.RelayChoice(("127.0.0.1",), ("127.0.0.1",))


def test_wildcards_stand_for_what_clients_can_be_given() -> None:
    tentative = LocalAddress("2a00:1450::bbbb", "eth0", ready=False)
    hosts = servable([LO4, LO6, PRIVATE, GLOBAL6, LINK, tentative])
    assert hosts == ["127.0.0.1", "::1", "10.0.0.5", "2a00:1450::5"]
    assert expand("0.0.0.0", hosts) == ["127.0.0.1", "10.0.0.5"]
    assert expand("::", hosts) == ["::1", "2a00:1450::5"]
    assert expand("10.9.9.9", hosts) == ["10.9.9.9"]


@pytest.mark.parametrize(
    ("text", "host"),
    [
        (" 192.0.2.1 ", "192.0.2.1"),
        ("[2001:DB8:0::1]", "2001:db8::1"),
        ("fe80::1%eth0", "fe80::1%eth0"),
    ],
)
def test_numeric_hosts(text: str, host: str) -> None:
    assert numeric_host(text) == host


@pytest.mark.parametrize("text", ["example.org", "", "192.0.2", "::ffff:192.0.2.1", "1.2.3.4.5"])
def test_what_is_no_numeric_host(text: str) -> None:
    with pytest.raises(UsageError, match="is"):
        numeric_host(text)


def test_changes_in_words() -> None:
    assert list(changes(["a", "b"], ["b", "c"])) == [
        "the address c has appeared",
        "the address a has gone",
    ]


def test_this_machine_has_loopback() -> None:
    hosts = {one.host: one for one in local_addresses()}
    assert hosts["127.0.0.1"].ready
    assert all("%" in one.host for one in hosts.values() if one.host.startswith("fe80"))


def test_flags_of_the_kernel(tmp_path: Path) -> None:
    table = tmp_path / "if_inet6"
    table.write_text(
        "00000000000000000000000000000001 01 80 10 80       lo\n"
        "20010db8000000000000000000000001 02 40 00 40     eth0\n"
    )
    assert addresses._ipv6_flags(table) == {"::1": 0x80, "2001:db8::1": 0x40}
    assert addresses._ipv6_flags(tmp_path / "not there") == {}
