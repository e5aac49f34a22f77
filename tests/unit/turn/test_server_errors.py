"""Every wrong request and its error: a table, and what the errors have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from stun import attributes as a
from stun.attributes import AccessToken
from stun.discovery import Transport
from stun.integrity import check_integrity_sha256
from stun.message import Message
from stun.registry import ErrorCode, Family, Method
from stun.sansio import Address, Cause
from tools.turndesk import (
    HOST,
    PEER,
    PEER6,
    TCP,
    UDP,
    UNLIMITED,
    Attribute,
    Caller,
    Desk,
    code,
)
from turn.server.config import Limits, RelayAddress
from turn.server.events import RequestRefused

V4, V6 = Family.IPV4, Family.IPV6
TRANSPORT = (a.REQUESTED_TRANSPORT, UDP)
PRIVATE = Address("10.0.0.1", 80)
UNKNOWN_TYPE = 0x7777
OVER_TCP = Transport.TCP

ALLOCATE: list[tuple[str, int, list[Attribute]]] = [
    ("no transport", 400, []),
    ("transport cut short", 400, [(a.REQUESTED_TRANSPORT.code, b"\x11")]),
    ("SCTP", 442, [(a.REQUESTED_TRANSPORT, 132)]),
    ("TCP over UDP", 400, [(a.REQUESTED_TRANSPORT, TCP)]),
    ("no such family", 440, [TRANSPORT, (a.REQUESTED_ADDRESS_FAMILY.code, b"\3\0\0\0")]),
    ("family cut short", 400, [TRANSPORT, (a.REQUESTED_ADDRESS_FAMILY.code, b"\2")]),
    ("even port cut short", 400, [TRANSPORT, (a.EVEN_PORT.code, b"")]),
    ("token of 7 octets", 400, [TRANSPORT, (a.RESERVATION_TOKEN.code, bytes(7))]),
    ("unknown token", 508, [TRANSPORT, (a.RESERVATION_TOKEN, bytes(8))]),
    ("token and family", 400,
     [TRANSPORT, (a.RESERVATION_TOKEN, bytes(8)), (a.REQUESTED_ADDRESS_FAMILY, V4)]),
    ("token and even port", 400,
     [TRANSPORT, (a.RESERVATION_TOKEN, bytes(8)), (a.EVEN_PORT, False)]),
    ("token and both families", 400,
     [TRANSPORT, (a.RESERVATION_TOKEN, bytes(8)), (a.ADDITIONAL_ADDRESS_FAMILY, V6)]),
    ("family twice over", 400,
     [TRANSPORT, (a.REQUESTED_ADDRESS_FAMILY, V4), (a.ADDITIONAL_ADDRESS_FAMILY, V6)]),
    ("additional IPv4", 400, [TRANSPORT, (a.ADDITIONAL_ADDRESS_FAMILY, V4)]),
    ("both families and a pair", 400,
     [TRANSPORT, (a.ADDITIONAL_ADDRESS_FAMILY, V6), (a.EVEN_PORT, True)]),
    ("ticket with a value", 400, [TRANSPORT, (a.MOBILITY_TICKET, b"x")]),
    ("lifetime cut short", 400, [TRANSPORT, (a.LIFETIME.code, b"\0\0")]),
    ("DONT-FRAGMENT with a value", 400, [TRANSPORT, (a.DONT_FRAGMENT.code, b"\0\0\0\0")]),
    ("unknown attribute", 420, [TRANSPORT, (UNKNOWN_TYPE, b"")]),
    ("access token", 420, [TRANSPORT, (a.ACCESS_TOKEN, AccessToken(bytes(12), bytes(40)))]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("what", "wanted", "attributes"), ALLOCATE, ids=[row[0] for row in ALLOCATE]
)
def test_wrong_allocate(what: str, wanted: int, attributes: list[Attribute]) -> None:
    desk = Desk()
    assert code(desk.caller().ask(Method.ALLOCATE, *attributes)) == wanted
    assert not desk.created
    assert len(desk.open) == len(desk.config.listeners)
    assert desk.server._core.quotas.allocations == 0


TCP_ALLOCATE: list[tuple[str, int, list[Attribute]]] = [
    ("even port", 400, [(a.EVEN_PORT, False)]),
    ("token", 400, [(a.RESERVATION_TOKEN, bytes(8))]),
    ("DONT-FRAGMENT", 400, [(a.DONT_FRAGMENT, True)]),
    ("both families", 400, [(a.ADDITIONAL_ADDRESS_FAMILY, V6)]),
]


@pytest.mark.parametrize(
    ("what", "wanted", "attributes"), TCP_ALLOCATE, ids=[row[0] for row in TCP_ALLOCATE]
)
def test_wrong_allocate_of_a_tcp_relay(what: str, wanted: int, attributes: list[Attribute]) -> None:
    caller = Desk().caller(transport=OVER_TCP)
    response = caller.ask(Method.ALLOCATE, (a.REQUESTED_TRANSPORT, TCP), *attributes)
    assert code(response) == wanted


def test_a_tcp_relay_that_is_off() -> None:
    caller = Desk(tcp_relay=False).caller(transport=OVER_TCP)
    assert code(caller.ask(Method.ALLOCATE, (a.REQUESTED_TRANSPORT, TCP))) == 442


def test_a_family_that_the_server_does_not_have() -> None:
    desk = Desk(relays=(RelayAddress(HOST, HOST),))
    response = desk.caller().ask(Method.ALLOCATE, TRANSPORT, (a.REQUESTED_ADDRESS_FAMILY, V6))
    assert code(response) == 440


def test_ipv4_is_what_is_meant_without_a_family() -> None:
    """Section 7.2: absent, and "the server does not support the IPv4 address family": 440."""
    desk = Desk(relays=(RelayAddress("2620:4f:8000:a::10", "2620:4f:8000:a::10"),))
    assert code(desk.caller().ask(Method.ALLOCATE, TRANSPORT)) == 440


def test_mobility_that_is_off() -> None:
    caller = Desk(mobility=False).caller()
    assert code(caller.ask(Method.ALLOCATE, TRANSPORT, (a.MOBILITY_TICKET, b""))) == 405
    assert code(caller.refresh(None, (a.MOBILITY_TICKET, bytes(32)))) == 405


@pytest.mark.parametrize(
    "method", [Method.REFRESH, Method.CREATE_PERMISSION, Method.CHANNEL_BIND, Method.CONNECT]
)
def test_no_allocation_is_437_never_silence(method: Method) -> None:
    assert code(Desk().caller().ask(method, (a.XOR_PEER_ADDRESS, PEER))) == 437


@pytest.mark.parametrize(
    "method", [Method.REFRESH, Method.CREATE_PERMISSION, Method.CHANNEL_BIND, Method.CONNECT]
)
def test_another_user_is_441(method: Method) -> None:
    desk = Desk()
    desk.caller().relayed()
    thief = desk.caller(username="bob", password="hidden")
    assert code(thief.ask(method, (a.XOR_PEER_ADDRESS, PEER), (a.CHANNEL_NUMBER, 0x4000))) == 441
    assert not desk.ended


def test_a_second_allocate_is_437() -> None:
    desk = Desk()
    caller = desk.caller()
    caller.relayed()
    assert code(caller.ask(Method.ALLOCATE, TRANSPORT)) == 437
    assert len(desk.created) == 1


def _ask(method: Method, *attributes: Attribute) -> Callable[[Caller], Message | None]:
    return lambda caller: caller.ask(method, *attributes)


MAPPED = Address("::ffff:192.175.48.20", 80)
WITH_ALLOCATION: list[tuple[str, int, Callable[[Caller], Message | None]]] = [
    ("permission for nobody", 400, _ask(Method.CREATE_PERMISSION)),
    ("permission for half an address", 400,
     _ask(Method.CREATE_PERMISSION, (a.XOR_PEER_ADDRESS.code, b"\0\1"))),
    ("permission for one and for half an address", 400,
     _ask(Method.CREATE_PERMISSION, (a.XOR_PEER_ADDRESS, PEER), (a.XOR_PEER_ADDRESS.code, b""))),
    ("permission for a private address", 403, lambda c: c.permit(PRIVATE)),
    ("permission for a private address, too", 403, lambda c: c.permit(PEER, PRIVATE)),
    ("permission for loopback", 403, lambda c: c.permit(Address("127.0.0.1", 1))),
    ("permission for any", 403, lambda c: c.permit(Address("0.0.0.0", 1))),
    ("permission for IPv6", 443, lambda c: c.permit(PEER6)),
    ("permission for a mapped address", 443, lambda c: c.permit(MAPPED)),
    ("channel for a private address", 403, lambda c: c.bind(0x4000, PRIVATE)),
    ("channel for the server itself", 403, lambda c: c.bind(0x4000, Address(HOST, 3478))),
    ("channel for IPv6", 443, lambda c: c.bind(0x4000, PEER6)),
    ("channel 0x3FFF", 400, lambda c: c.bind(0x3FFF, PEER)),
    ("channel to port 0", 400, lambda c: c.bind(0x4000, Address(PEER.host, 0))),
    ("channel 0x8000", 400, lambda c: c.bind(0x8000, PEER)),
    ("channel without a number", 400, _ask(Method.CHANNEL_BIND, (a.XOR_PEER_ADDRESS, PEER))),
    ("channel without a peer", 400, _ask(Method.CHANNEL_BIND, (a.CHANNEL_NUMBER, 0x4000))),
    ("channel with half a number", 400,
     _ask(Method.CHANNEL_BIND, (a.CHANNEL_NUMBER.code, b"\x40"), (a.XOR_PEER_ADDRESS, PEER))),
    ("refresh of IPv6", 443, lambda c: c.refresh(600, (a.REQUESTED_ADDRESS_FAMILY, V6))),
    ("refresh of no family", 443,
     lambda c: c.refresh(600, (a.REQUESTED_ADDRESS_FAMILY.code, b"\7\0\0\0"))),
    ("refresh with half a lifetime", 400, lambda c: c.refresh(None, (a.LIFETIME.code, b"\0"))),
    ("refresh with a forged ticket", 400,
     lambda c: c.refresh(None, (a.MOBILITY_TICKET, bytes(32)))),
    ("connect without TCP", 437, _ask(Method.CONNECT, (a.XOR_PEER_ADDRESS, PEER))),
    ("connection bind over UDP", 400, _ask(Method.CONNECTION_BIND, (a.CONNECTION_ID, 1))),
    ("unknown attribute", 420, lambda c: c.refresh(None, (UNKNOWN_TYPE, b"abcd"))),
]  # fmt: skip


@pytest.mark.parametrize(
    ("what", "wanted", "ask"), WITH_ALLOCATION, ids=[row[0] for row in WITH_ALLOCATION]
)
def test_wrong_requests_with_an_allocation(
    what: str, wanted: int, ask: Callable[[Caller], Message | None]
) -> None:
    desk = Desk()
    caller = desk.caller()
    caller.relayed()
    assert code(ask(caller)) == wanted
    (session,) = desk.server.sessions()
    assert (session.permissions, session.channels) == ((), ())
    # Errors are proved like successes, so that nobody on the path can make them up.
    from stun.codec import decode

    key = caller.credentials.key("example.org", 2)
    assert check_integrity_sha256(decode(caller.answer), key)


def test_420_names_the_attributes() -> None:
    response = Desk().caller().ask(Method.ALLOCATE, TRANSPORT, (UNKNOWN_TYPE, b""), (0x7778, b""))
    assert response is not None
    assert response.get(a.UNKNOWN_ATTRIBUTES) == (UNKNOWN_TYPE, 0x7778)


def test_attributes_that_may_be_ignored_are() -> None:
    desk = Desk()
    desk.caller().relayed((0xFFFF, b"whatever"))
    assert len(desk.created) == 1


def test_channels_are_one_to_one() -> None:
    caller = Desk().caller()
    caller.relayed()
    other = Address(PEER.host, PEER.port + 1)
    assert code(caller.bind(0x4001, PEER)) == 0
    assert code(caller.bind(0x4001, other)) == 400
    assert code(caller.bind(0x4002, PEER)) == 400
    assert code(caller.bind(0x4001, PEER)) == 0
    assert code(caller.bind(0x7FFF, other)) == 0


# Limits. ------------------------------------------------------------------------------------------


def test_486_when_the_user_has_too_many() -> None:
    desk = Desk(limits=Limits(allocations_per_user=2))
    callers = [desk.caller(address=Address("192.52.193.5", port)) for port in (1, 2, 3)]
    assert [code(c.ask(Method.ALLOCATE, TRANSPORT)) for c in callers] == [0, 0, 486]
    callers[0].refresh(0)
    assert code(callers[2].ask(Method.ALLOCATE, TRANSPORT)) == 0


def test_486_when_others_of_the_fleet_have_them() -> None:
    desk = Desk(limits=Limits(allocations_per_user=2))
    desk.server.set_elsewhere({"alice": 2})
    assert code(desk.caller().ask(Method.ALLOCATE, TRANSPORT)) == 486


def test_508_when_the_server_is_full() -> None:
    desk = Desk(limits=Limits(allocations=1))
    desk.caller().relayed()
    other = desk.caller(address=Address("192.52.193.6", 1), username="bob", password="hidden")
    assert code(other.ask(Method.ALLOCATE, TRANSPORT)) == 508


def test_486_when_a_pair_would_be_one_too_many() -> None:
    desk = Desk(limits=Limits(allocations_per_user=1))
    caller = desk.caller()
    assert code(caller.ask(Method.ALLOCATE, TRANSPORT, (a.EVEN_PORT, True))) == 486
    assert desk.server._core.quotas.allocations == 0
    caller.relayed((a.EVEN_PORT, False))


def test_508_when_no_port_is_free() -> None:
    desk = Desk(ports=(50_000, 50_001), limits=UNLIMITED)
    callers = [desk.caller(address=Address("192.52.193.5", port)) for port in (1, 2, 3)]
    assert [code(c.ask(Method.ALLOCATE, TRANSPORT)) for c in callers] == [0, 0, 508]
    callers[1].refresh(0)
    assert code(callers[2].ask(Method.ALLOCATE, TRANSPORT)) == 0


def test_508_when_ports_are_somebody_elses() -> None:
    desk = Desk()
    tried: list[int] = []

    def refuse(order: Any) -> Cause:
        tried.append(order.local.port)
        return Cause.ADDRESS_IN_USE

    desk.refuse = refuse
    assert code(desk.caller().ask(Method.ALLOCATE, TRANSPORT)) == 508
    assert len(set(tried)) == 8
    desk.refuse = lambda _: None
    assert code(desk.caller().ask(Method.ALLOCATE, TRANSPORT)) == 0


def test_508_tells_the_operator_what_is_wrong_with_the_address() -> None:
    desk = Desk()
    tried: list[Any] = []

    def refuse(order: Any) -> Cause:
        tried.append(order)
        return Cause.ADDRESS_NOT_AVAILABLE

    desk.refuse = refuse
    assert code(desk.caller().ask(Method.ALLOCATE, TRANSPORT)) == 508
    assert len(tried) == 1, "no other port of that host would do better"
    (told,) = desk.told(RequestRefused)
    assert "not one of this machine" in told.detail


def test_508_for_too_many_permissions_and_channels() -> None:
    limits = Limits(permissions_per_allocation=3, channels_per_allocation=2)
    desk = Desk(limits=limits)
    caller = desk.caller()
    caller.relayed()
    hosts = [Address(f"192.175.48.{n}", 1000) for n in range(20, 25)]
    assert code(caller.permit(*hosts[:4])) == 508, "all of them or none"
    assert code(caller.permit(*hosts[:2])) == 0
    assert code(caller.bind(0x4000, hosts[2])) == 0
    assert code(caller.bind(0x4001, hosts[3])) == 508
    assert code(caller.bind(0x4001, hosts[0])) == 0
    assert code(caller.bind(0x4002, hosts[1])) == 508
    assert code(caller.permit(hosts[0])) == 0, "those that are there may be refreshed"
    desk.wait(301)
    assert code(caller.permit(hosts[3])) == 0, "those that are over make room"


# Elsewhere. ---------------------------------------------------------------------------------------


def test_300_names_servers_in_turn_and_of_the_clients_family() -> None:
    v4 = [Address("192.175.48.1", 3478), Address("192.175.48.2", 3478)]
    v6 = Address("2620:4f:8000:b::1", 3478)
    desk = Desk(alternates=(*v4, v6))
    named = []
    for port in (1, 2):  # each time another one, and the one of the other family after it
        response = desk.caller(address=Address("192.52.193.5", port)).ask(
            Method.ALLOCATE, TRANSPORT
        )
        assert response is not None
        assert code(response) == ErrorCode.TRY_ALTERNATE
        first, second = response.all(a.ALTERNATE_SERVER)
        named.append(first)
        assert second == v6
    assert sorted(named) == v4
    caller = desk.caller(address=Address("2620:4f:8000:1:ffff::5", 1))
    response = caller.ask(Method.ALLOCATE, TRANSPORT)
    assert response is not None
    first, second = response.all(a.ALTERNATE_SERVER)
    assert first == v6
    assert second in v4


def test_draining_refuses_new_allocations_only() -> None:
    desk = Desk()
    caller = desk.caller()
    caller.relayed()
    desk.server.drain(desk.now)
    other = desk.caller(address=Address("192.52.193.6", 1))
    assert code(other.ask(Method.ALLOCATE, TRANSPORT)) == 508
    assert code(caller.refresh()) == 0
