"""Allocate: what a success has, ports, reservations, two families, repetition."""

from __future__ import annotations

from typing import Any

import pytest

from stun import attributes as a
from stun.discovery import Transport
from stun.message import Message
from stun.registry import Class, Family, Method
from stun.sansio import SECOND, Address, Cause, Closed, OpenUdp
from tools.turndesk import HOST, HOST6, PEER, TCP, UDP, UNLIMITED, Attribute, Desk, code
from turn.server.allocate import COTURN_ADDITIONAL
from turn.server.config import RelayAddress
from turn.server.events import AllocationCreated, EndReason

DUAL: Attribute = (a.ADDITIONAL_ADDRESS_FAMILY, Family.IPV6)
TRANSPORT: Attribute = (a.REQUESTED_TRANSPORT, UDP)


def test_a_success_has_what_section_7_2_lists() -> None:
    desk = Desk()
    caller = desk.caller()
    response = caller.allocate()
    relayed = response.get(a.XOR_RELAYED_ADDRESS)
    assert relayed is not None
    assert relayed.host == HOST
    assert 49152 <= relayed.port <= 65535
    assert response.get(a.LIFETIME) == 600
    assert response.get(a.XOR_MAPPED_ADDRESS) == caller.address
    assert not response.has(a.RESERVATION_TOKEN)
    assert not response.has(a.MOBILITY_TICKET)
    (created,) = desk.created
    assert created == AllocationCreated(
        created.session, "alice", caller.address, caller.server, Transport.UDP, (relayed,),
        False, 600,
    )  # fmt: skip
    assert len(created.session) == 12


@pytest.mark.parametrize(
    ("asked", "given"),
    [(None, 600), (0, 600), (30, 600), (601, 601), (3600, 3600), (1 << 31, 3600)],
)
def test_lifetimes(asked: int | None, given: int) -> None:
    """ "the server will ignore requests to initialize the field to less than the default value" """
    desk = Desk()
    attributes = () if asked is None else ((a.LIFETIME, asked),)
    assert desk.caller().allocate(*attributes).get(a.LIFETIME) == given
    desk.wait(given - 0.001)
    assert not desk.ended
    desk.wait(0.001)
    assert [end.reason for end in desk.ended] == [EndReason.EXPIRED]
    assert desk.ended[0].duration == given * SECOND


def test_ipv6_is_given_when_it_is_asked_for() -> None:
    relayed = Desk().caller().relayed((a.REQUESTED_ADDRESS_FAMILY, Family.IPV6))
    assert relayed.host == HOST6


def test_peers_see_the_advertised_address() -> None:
    desk = Desk(relays=(RelayAddress("10.0.0.7", "203.0.113.7"),))
    relayed = desk.caller().relayed()
    assert relayed.host == "203.0.113.7"
    assert Address("10.0.0.7", relayed.port) in desk.open.values()


@pytest.mark.parametrize("transport", [Transport.TCP, Transport.TLS, Transport.DTLS])
def test_every_transport(transport: Transport) -> None:
    desk = Desk()
    desk.caller(transport=transport).relayed()
    assert desk.created[0].transport is transport


def test_hosts_of_a_family_take_turns() -> None:
    relays = (RelayAddress("192.31.196.10", HOST), RelayAddress("192.31.196.11", "192.31.196.11"))
    desk = Desk(relays=relays)
    hosts = [desk.caller(address=Address("192.52.193.5", n)).relayed().host for n in range(1, 5)]
    assert sorted(hosts) == ["192.31.196.10"] * 2 + ["192.31.196.11"] * 2


def test_another_host_is_tried_when_one_fails() -> None:
    relays = (RelayAddress("192.31.196.10", HOST), RelayAddress("192.31.196.11", "192.31.196.11"))
    desk = Desk(relays=relays)
    desk.refuse = lambda order: (
        Cause.ADDRESS_NOT_AVAILABLE if order.local.host == "192.31.196.11" else None
    )
    for port in (1, 2):
        relayed = desk.caller(address=Address("192.52.193.5", port)).relayed()
        assert relayed.host == "192.31.196.10"


def test_a_port_in_use_is_replaced() -> None:
    desk = Desk()
    tried: list[int] = []

    def refuse(order: Any) -> Cause | None:
        tried.append(order.local.port)
        return Cause.ADDRESS_IN_USE if len(tried) < 8 else None

    desk.refuse = refuse
    assert desk.caller().relayed().port == tried[-1]
    assert len(set(tried)) == 8


# Even ports and reservations. ---------------------------------------------------------------------


def test_even_port() -> None:
    desk = Desk(limits=UNLIMITED)
    for n in range(1, 20):
        caller = desk.caller(address=Address("192.52.193.5", n))
        assert caller.relayed((a.EVEN_PORT, False)).port % 2 == 0


def _reserve(desk: Desk) -> tuple[Address, bytes]:
    response = desk.caller().allocate((a.EVEN_PORT, True))
    relayed, token = response.get(a.XOR_RELAYED_ADDRESS), response.get(a.RESERVATION_TOKEN)
    assert relayed is not None
    assert token is not None
    return relayed, token


def test_the_next_port_is_reserved_for_who_has_the_token() -> None:
    desk = Desk()
    relayed, token = _reserve(desk)
    assert relayed.port % 2 == 0
    following = Address(relayed.host, relayed.port + 1)
    assert following in desk.open.values(), "the port is held open, so nobody else can take it"
    desk.wait(29)
    other = desk.caller(address=Address("192.52.193.6", 9), transport=Transport.TCP)
    assert other.relayed((a.RESERVATION_TOKEN, token)) == following
    third = desk.caller(address=Address("192.52.193.7", 9))
    response = third.ask(Method.ALLOCATE, TRANSPORT, (a.RESERVATION_TOKEN, token))
    assert code(response) == 508, "a token is good for once"
    assert desk.server._core.quotas.allocations == 2


def test_a_reservation_ends_after_thirty_seconds() -> None:
    desk = Desk()
    relayed, token = _reserve(desk)
    desk.wait(30)
    assert Address(relayed.host, relayed.port + 1) not in desk.open.values()
    other = desk.caller(address=Address("192.52.193.6", 9))
    assert code(other.ask(Method.ALLOCATE, TRANSPORT, (a.RESERVATION_TOKEN, token))) == 508
    assert desk.server._core.quotas.allocations == 1


def test_what_comes_to_a_reserved_port_goes_nowhere() -> None:
    desk = Desk()
    relayed, _ = _reserve(desk)
    assert desk.receive(b"x", PEER, Address(relayed.host, relayed.port + 1)) == []


def test_a_pair_is_had_whole_or_not_at_all() -> None:
    desk = Desk()
    tried: list[Address] = []

    def refuse(order: Any) -> Cause | None:
        tried.append(order.local)
        return Cause.ADDRESS_IN_USE if order.local.port % 2 and len(tried) < 6 else None

    desk.refuse = refuse
    relayed, _ = _reserve(desk)
    assert len(tried) == 6
    relays = {local for local in desk.open.values() if local.port >= 49152}
    assert relays == {relayed, Address(relayed.host, relayed.port + 1)}


# Two families. ------------------------------------------------------------------------------------


def test_a_dual_allocation() -> None:
    desk = Desk()
    response = desk.caller().allocate(DUAL)
    assert [relayed.host for relayed in response.all(a.XOR_RELAYED_ADDRESS)] == [HOST, HOST6]
    assert not response.has(a.ADDRESS_ERROR_CODE)


def test_coturns_clients_ask_for_a_dual_allocation_by_another_number() -> None:
    response = Desk().caller().allocate((COTURN_ADDITIONAL, b"\x02\0\0\0"))
    assert [relayed.host for relayed in response.all(a.XOR_RELAYED_ADDRESS)] == [HOST, HOST6]


@pytest.mark.parametrize(
    ("host", "family", "other"), [(HOST, Family.IPV6, HOST6), (HOST6, Family.IPV4, HOST)]
)
def test_half_of_a_dual_allocation_and_why(host: str, family: Family, other: str) -> None:
    desk = Desk(relays=(RelayAddress(host, host),))
    response = desk.caller().allocate(DUAL)
    assert [relayed.host for relayed in response.all(a.XOR_RELAYED_ADDRESS)] == [host]
    error = response.get(a.ADDRESS_ERROR_CODE)
    assert error is not None
    assert error[:2] == (family, 440)
    desk = Desk()
    desk.refuse = lambda order: Cause.ADDRESS_IN_USE if order.local.host == other else None
    response = desk.caller().allocate(DUAL)
    assert [relayed.host for relayed in response.all(a.XOR_RELAYED_ADDRESS)] == [host]
    error = response.get(a.ADDRESS_ERROR_CODE)
    assert error is not None
    assert error[:2] == (family, 508)


def test_each_family_is_refreshed_and_deleted_apart() -> None:
    desk = Desk()
    caller = desk.caller()
    caller.allocate(DUAL)
    caller.permit(PEER, Address("2620:4f:8000:b::20", 1))
    caller.bind(0x4000, PEER)
    caller.bind(0x4001, Address("2620:4f:8000:b::20", 1))
    assert code(caller.refresh(0, (a.REQUESTED_ADDRESS_FAMILY, Family.IPV4))) == 0
    assert not desk.ended
    (session,) = desk.server.sessions()
    assert [relayed.host for relayed in session.relayed] == [HOST6]
    assert session.permissions == ("2620:4f:8000:b::20",)
    assert [number for number, _ in session.channels] == [0x4001]
    assert code(caller.refresh(600, (a.REQUESTED_ADDRESS_FAMILY, Family.IPV4))) == 443
    assert code(caller.refresh(0)) == 0
    assert len(desk.ended) == 1


def test_the_families_expire_apart() -> None:
    desk = Desk()
    caller = desk.caller()
    caller.allocate(DUAL)
    desk.wait(300)
    assert code(caller.refresh(600, (a.REQUESTED_ADDRESS_FAMILY, Family.IPV6))) == 0
    desk.wait(300)
    assert [relayed.host for relayed in next(desk.server.sessions()).relayed] == [HOST6]
    desk.wait(300)
    assert len(desk.ended) == 1


# Requests that come again, and sockets that take their time. --------------------------------------


def test_a_repeated_request_gets_the_same_answer_and_does_nothing() -> None:
    desk = Desk()
    caller = desk.caller()
    caller.relayed()
    first, open_before = caller.answer, dict(desk.open)
    assert caller.say(caller.requested) is not None
    assert caller.answer == first
    assert desk.open == open_before
    assert len(desk.created) == 1
    assert desk.server.metrics.repeated == 1


def test_a_late_copy_after_the_end_makes_no_new_allocation() -> None:
    desk = Desk()
    caller = desk.caller()
    caller.relayed()
    allocate, answer = caller.requested, caller.answer
    caller.refresh(0)
    desk.wait(5)
    assert caller.say(allocate) is not None
    assert caller.answer == answer
    assert len(desk.created) == 1
    assert not list(desk.server.sessions())


def test_a_late_refresh_to_zero_does_not_end_the_next_allocation() -> None:
    desk = Desk()
    caller = desk.caller()
    caller.relayed()
    caller.refresh(0)
    ended = caller.requested
    caller.relayed()
    assert code(caller.say(ended)) == 0
    assert len(list(desk.server.sessions())) == 1


def test_a_request_repeated_while_its_port_is_being_opened() -> None:
    desk = Desk()
    caller = desk.caller()
    caller.ask(Method.ALLOCATE, TRANSPORT, follow=False)
    desk.holding = True
    guard = caller.sessions.guard(caller.server, caller.credentials)
    challenge = Message.request(Method.ALLOCATE, bytes(12)).add(a.REQUESTED_TRANSPORT, UDP)
    response = caller.say(guard.dress(challenge, fingerprint=False))
    assert response is not None
    guard.judge(response)
    octets = guard.dress(challenge, fingerprint=False)
    for _ in range(4):
        assert caller.say(octets) is None
    other = Message.request(Method.ALLOCATE, bytes(11) + b"1").add(a.REQUESTED_TRANSPORT, UDP)
    assert code(caller.say(guard.dress(other, fingerprint=False))) == 437
    assert len(desk.held) == 1
    desk.release()
    assert len(caller.fetch()) == 1
    assert len(desk.created) == 1


def test_a_client_that_leaves_while_its_port_is_being_opened() -> None:
    desk = Desk()
    caller = desk.caller(transport=Transport.TCP)
    caller.ask(Method.ALLOCATE, TRANSPORT, follow=False)
    desk.holding = True
    caller.ask(Method.ALLOCATE, TRANSPORT, (a.EVEN_PORT, True))
    assert [type(order) for order in desk.held] == [OpenUdp, OpenUdp]
    desk.tell(Closed(caller.handle, Cause.END_OF_STREAM))
    assert desk.held == []
    desk.release()
    assert not desk.created
    assert desk.server._core.quotas.allocations == 0
    assert desk.server._core.ports.available(HOST) == 65535 - 49152 + 1


def test_stopping_while_ports_are_being_opened() -> None:
    desk = Desk()
    caller = desk.caller()
    caller.ask(Method.ALLOCATE, TRANSPORT, follow=False)
    desk.holding = True
    caller.ask(Method.ALLOCATE, TRANSPORT)
    desk.server.stop(desk.now)
    desk.pump()
    assert desk.held == []
    assert desk.open == {}


def test_a_relay_socket_that_fails_ends_the_allocation() -> None:
    desk = Desk()
    relayed = desk.caller().relayed()
    handle = next(handle for handle, local in desk.open.items() if local == relayed)
    desk.tell(Closed(handle, Cause.OTHER))
    assert [end.reason for end in desk.ended] == [EndReason.RELAY_LOST]
    assert handle not in desk.shut, "it is shut already"


def test_a_tcp_allocation_listens() -> None:
    desk = Desk()
    response = desk.caller(transport=Transport.TCP).allocate(transport=TCP)
    relayed = response.get(a.XOR_RELAYED_ADDRESS)
    assert relayed in desk.open.values()
    assert desk.created[0].tcp


def test_software_and_fingerprint_as_configured() -> None:
    for wish, asked, given in (
        (None, False, False), (None, True, True), (True, False, True), (False, True, False),
    ):  # fmt: skip
        desk = Desk(software="natkit test", fingerprint=wish)
        caller = desk.caller(fingerprint=asked)
        challenge = caller.ask(Method.ALLOCATE, TRANSPORT, follow=False)
        assert challenge is not None
        assert not challenge.has(a.SOFTWARE), "nothing is told to strangers"
        response = caller.allocate()
        assert response.get(a.SOFTWARE) == "natkit test"
        assert response.has(a.FINGERPRINT) is given
        assert response.message_class is Class.SUCCESS
