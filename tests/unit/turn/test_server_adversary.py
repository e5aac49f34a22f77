"""What somebody tries who means ill, or who comes at the worst moment."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from stun import attributes as a
from stun.codec import decode, encode
from stun.credentials import LongTerm
from stun.discovery import Transport
from stun.errors import DropReason
from stun.message import Message
from stun.nonce import NonceMaker
from stun.registry import Class, ErrorCode, Family, Method
from stun.sansio import (
    SECOND,
    Address,
    Cause,
    Closed,
    Connected,
    Handle,
    Listen,
    Opened,
    OpenUdp,
    Received,
)
from stun.tcp import READ_MOST
from stun.users import Gap, Password, StaticUsers
from tools.turndesk import (
    HOST,
    HOST6,
    PEER,
    PEER6,
    REALM,
    TCP,
    UDP,
    UNLIMITED,
    Caller,
    Desk,
    code,
    configuration,
)
from turn.server.config import Limits, ListenAt, RelayAddress
from turn.server.core import LONGEST_REQUEST
from turn.server.events import Drained, LookUp, Started
from turn.server.gate import MOST_OF_A_CLIENT
from turn.server.machine import Server
from turn.server.policy import tunnel_of

OTHER = Address("192.52.193.9", 40_001)
TRANSPORT = (a.REQUESTED_TRANSPORT, UDP)
ALTERNATE6 = "2620:4f:8000:a::11"


def _datagram_relay(desk: Desk) -> tuple[Caller, Address]:
    caller = desk.caller()
    return caller, caller.relayed()


def _stream_relay(desk: Desk) -> tuple[Caller, Address]:
    caller = desk.caller(address=OTHER, transport=Transport.TCP)
    relayed = caller.allocate(transport=TCP).get(a.XOR_RELAYED_ADDRESS)
    assert relayed is not None
    return caller, relayed


# Services of the server's own host. ---------------------------------------------------------------


def test_a_udp_relay_opens_no_way_to_the_tcp_port_of_its_number() -> None:
    desk = Desk(limits=UNLIMITED)
    _, own = _datagram_relay(desk)
    stranger, _ = _stream_relay(desk)
    assert code(stranger.permit(own)) == 0  # other clients are on this host, and have ports on it
    assert code(stranger.ask(Method.CONNECT, (a.XOR_PEER_ADDRESS, own))) == ErrorCode.FORBIDDEN
    assert not desk.dialled


def test_a_tcp_relay_opens_no_way_to_the_udp_port_of_its_number() -> None:
    desk = Desk(limits=UNLIMITED)
    _, own = _stream_relay(desk)
    caller, _ = _datagram_relay(desk)
    assert code(caller.permit(own)) == 0
    assert code(caller.bind(0x4000, own)) == ErrorCode.FORBIDDEN
    caller.indicate(own, b"to a resolver, say")
    assert not desk.sent
    assert desk.server.drops[DropReason.REFUSED_BY_POLICY] == 1


def test_tcp_relays_reach_each_other() -> None:
    desk = Desk(limits=UNLIMITED)
    _, there = _stream_relay(desk)
    caller = desk.caller(transport=Transport.TCP)
    caller.allocate(transport=TCP)
    caller.ask(Method.CONNECT, (a.XOR_PEER_ADDRESS, there))
    assert [dial.remote for dial in desk.dialled] == [there]


def test_a_tcp_relay_does_not_take_the_place_of_a_udp_listener() -> None:
    """Both may be ports 50000."""
    at = Address(HOST, 50_000)
    desk = Desk(
        limits=UNLIMITED,
        ports=(at.port, at.port),
        listeners=(ListenAt(Transport.UDP, at), ListenAt(Transport.TCP, Address(HOST, 3478))),
    )
    caller = desk.caller(transport=Transport.TCP)
    assert caller.allocate(transport=TCP).get(a.XOR_RELAYED_ADDRESS) == at
    binding = encode(Message.request(Method.BINDING, bytes(12)))
    assert desk.receive(binding, OTHER, at)
    caller.refresh(0)
    assert desk.receive(binding, OTHER, at)


@pytest.mark.parametrize("offload", [False, True])
def test_a_channel_does_not_outlive_the_relay_it_leads_to(offload: bool) -> None:
    desk = Desk(limits=UNLIMITED, offload=offload)
    gone, relayed = _datagram_relay(desk)
    caller = desk.caller(address=OTHER)
    caller.relayed()
    assert code(caller.bind(0x4000, relayed)) == 0
    caller.push(0x4000, b"while it is there")
    assert [sent.destination for sent in desk.sent] == [relayed]
    assert len(desk.routes) == offload
    gone.refresh(0)
    assert not desk.routes
    caller.push(0x4000, b"whoever has the port now")
    assert len(desk.sent) == 1
    assert code(caller.permit(relayed)) == 0
    assert not desk.routes


def test_a_route_to_another_client_is_forgotten_with_its_channel() -> None:
    desk = Desk(limits=UNLIMITED, offload=True)
    _, relayed = _datagram_relay(desk)
    relay = desk.server._core.relayed[relayed]
    caller = desk.caller(address=OTHER)
    caller.relayed()
    caller.bind(0x4000, relayed)
    assert len(relay.visitors or ()) == 1
    caller.refresh(0)
    assert not relay.visitors


# Tunnels. -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["2002:c01f:c40a::1", "2001:0:c01f:c40a::1", "2001::1"])
def test_tunnelled_clients_are_refused(host: str) -> None:
    """RFC 8656 section 21.4: "a TURN server MUST NOT accept Teredo or 6to4 addresses"."""
    desk = Desk()
    caller = desk.caller(address=Address(host, 4000))
    assert code(caller.ask(Method.ALLOCATE, TRANSPORT)) == ErrorCode.FORBIDDEN


def test_tunnelled_clients_do_not_move_in() -> None:
    desk = Desk(limits=UNLIMITED)
    ticket = desk.caller().allocate((a.MOBILITY_TICKET, b"")).get(a.MOBILITY_TICKET)
    moved = desk.caller(address=Address("2002:c01f:c40a::1", 4000))
    assert code(moved.refresh(600, (a.MOBILITY_TICKET, ticket))) == ErrorCode.FORBIDDEN


def test_other_addresses_are_no_tunnels() -> None:
    hosts = ["192.52.193.5", "2001:4:112::1", "2001:db8::1", "2620:4f:8000::1", "20.2.0.1"]
    assert not any(map(tunnel_of, hosts))


# What one message may cost. -----------------------------------------------------------------------


def _sizes(caller: Caller) -> list[int]:
    data = [indication.get(a.DATA) for indication in caller.indications]
    return [len(octets) for octets in data if octets is not None]


def test_a_datagram_that_fits_no_indication_is_dropped() -> None:
    """IPv6 carries up to 65,527 octets in a datagram; a STUN message has not room for them."""
    desk = Desk(limits=UNLIMITED, fingerprint=True)
    caller = desk.caller(transport=Transport.TCP)
    relayed = caller.relayed((a.REQUESTED_ADDRESS_FAMILY, Family.IPV6))
    caller.permit(PEER6)
    for size in (65_496, 65_497, 65_527):
        desk.receive(bytes(size), PEER6, relayed)
    caller.fetch()
    assert _sizes(caller) == [65_496]
    assert desk.server.drops[DropReason.TOO_LONG] == 2
    caller.bind(0x4000, PEER6)
    desk.receive(bytes(65_527), PEER6, relayed)
    caller.fetch()
    assert [len(data) for _, data in caller.channels] == [65_527]


def test_the_longest_datagram_of_ipv4_fits_an_indication() -> None:
    desk = Desk(limits=UNLIMITED, fingerprint=True)
    caller = desk.caller(transport=Transport.TCP)
    relayed = caller.relayed()
    caller.permit(PEER)
    desk.receive(bytes(65_507), PEER, relayed)
    caller.fetch()
    assert _sizes(caller) == [65_507]


@pytest.mark.parametrize("method", [Method.ALLOCATE, Method.BINDING])
def test_strangers_messages_are_not_read_however_long(method: int) -> None:
    desk = Desk(limits=UNLIMITED)
    for attributes, answers in ((1014, 1), (1020, 0), (16_000, 0)):
        request = Message.request(method, bytes(12))
        request.attributes = [(0x8FFF, b"")] * attributes
        octets = encode(request)
        assert (len(octets) <= LONGEST_REQUEST) is bool(answers)
        assert len(desk.receive(octets, OTHER, Address(HOST, 3478))) == answers
    assert desk.server.drops[DropReason.TOO_LONG] == 2


def test_clients_may_send_what_a_datagram_holds() -> None:
    desk = Desk(limits=UNLIMITED)
    caller, _ = _datagram_relay(desk)
    caller.permit(PEER)
    caller.indicate(PEER, bytes(60_000))
    assert [len(sent.data) for sent in desk.sent] == [60_000]


def test_whoever_moves_to_a_connection_may_send_long_messages_there() -> None:
    desk = Desk(limits=UNLIMITED)
    caller = desk.caller()
    ticket = caller.allocate((a.MOBILITY_TICKET, b"")).get(a.MOBILITY_TICKET)
    caller.bind(0x4000, PEER)
    moved = desk.caller(address=OTHER, transport=Transport.TCP)
    assert code(moved.refresh(600, (a.MOBILITY_TICKET, ticket))) == 0
    moved.push(0x4000, bytes(5000))
    assert [len(sent.data) for sent in desk.sent] == [5000]


def test_thousands_of_peers_are_refused_without_asking_the_policy() -> None:
    desk = Desk(limits=UNLIMITED)
    caller, _ = _datagram_relay(desk)
    before = len(desk.config.policy._cache)
    peers = [Address(f"20.{n >> 8}.{n & 255}.1", 0) for n in range(5000)]
    assert code(caller.permit(*peers)) == ErrorCode.INSUFFICIENT_CAPACITY
    assert len(desk.config.policy._cache) == before
    assert code(caller.permit(*[PEER] * 500)) == 0


class _Slow:
    """A store that must ask."""

    def secrets(self, username: str, unix_time: int) -> Sequence[Gap | Password]:
        del unix_time
        return (Password("secret"),) if username == "alice" else (Gap.NOT_YET,)

    def by_userhash(self, value: bytes, unix_time: int) -> None:
        del value, unix_time


def test_one_client_does_not_fill_the_line_before_the_user_store() -> None:
    desk = Desk(users=_Slow())
    caller = desk.caller()
    caller.relayed()
    for number in range(3 * MOST_OF_A_CLIENT):
        caller.credentials = LongTerm(f"guess {number}", "x")
        caller.refresh()
    gate = desk.server._gate
    assert len(gate._line) == MOST_OF_A_CLIENT
    other = desk.caller(address=Address("192.31.196.77", 4000), username="bob", password="hidden")
    other.refresh()
    assert len(gate._line) == MOST_OF_A_CLIENT + 1
    desk.wait(4)
    assert not gate._line
    assert not gate._crowd
    caller.refresh()
    assert len(gate._line) == 1


def test_coming_and_going_makes_no_room_for_more_questions() -> None:
    """The user store is still busy with those of who has left."""
    desk = Desk(users=_Slow(), limits=UNLIMITED)
    for number in range(2 * MOST_OF_A_CLIENT):
        caller = desk.caller(transport=Transport.TCP, username=f"guess {number}")
        caller.refresh()
        desk.tell(Closed(caller.handle, Cause.RESET))
    assert len(desk.told(LookUp)) == MOST_OF_A_CLIENT
    desk.wait(4)
    assert desk.server.drops == {DropReason.NOBODY_ANSWERED: MOST_OF_A_CLIENT}
    assert desk.server.deadline() is None


def test_a_stream_that_waits_keeps_what_was_read_and_no_more() -> None:
    desk = Desk(users=_Slow())
    caller = desk.caller(transport=Transport.TCP, username="bob")
    caller.refresh()
    assert caller.handle in desk.unread
    connection = desk.server._core.connections[caller.handle]
    assert connection.stream is not None
    caller.send(b"\0" * READ_MOST)
    assert connection.stream.pending == READ_MOST
    desk.wait(4)
    assert connection.stream.pending == 0
    assert caller.handle in desk.shut


def test_a_request_that_waited_is_counted_once() -> None:
    desk = Desk(users=_Slow())
    caller = desk.caller(username="bob", password="hidden")
    caller.refresh()
    requests = desk.server.metrics.requests[Method.REFRESH]
    (lookup,) = desk.server._gate._waiting
    desk.server.found(lookup, desk.now)
    assert desk.server.metrics.requests[Method.REFRESH] == requests == 2


# Reservations and quotas. -------------------------------------------------------------------------


def _pair(caller: Caller) -> tuple[Address, bytes]:
    response = caller.allocate((a.EVEN_PORT, True))
    relayed, token = response.get(a.XOR_RELAYED_ADDRESS), response.get(a.RESERVATION_TOKEN)
    assert relayed is not None
    assert token is not None
    return relayed, token


@pytest.mark.parametrize("address", [Address("192.52.193.5", 40_009), OTHER])
def test_a_reserved_port_is_paid_for_once(address: Address) -> None:
    desk = Desk(limits=Limits(allocations_per_user=2))
    relayed, token = _pair(desk.caller())
    second = desk.caller(address=address)
    assert second.relayed((a.RESERVATION_TOKEN, token)).port == relayed.port + 1
    assert desk.server._core.quotas.allocations == 2
    third = desk.caller(address=Address("192.52.193.5", 40_010))
    assert code(third.ask(Method.ALLOCATE, TRANSPORT)) == ErrorCode.ALLOCATION_QUOTA_REACHED
    desk.server.disconnect(desk.now, username="alice")
    assert desk.server._core.quotas.allocations == desk.server._core.quotas.accounts == 0


def test_a_token_does_not_get_another_user_over_the_quota() -> None:
    desk = Desk(limits=Limits(allocations_per_user=2))
    _, token = _pair(desk.caller())
    bob = {"username": "bob", "password": "hidden"}
    for port in (1000, 1001):
        desk.caller(address=Address(OTHER.host, port), **bob).relayed()
    late = desk.caller(address=OTHER, **bob)
    wanted = (TRANSPORT, (a.RESERVATION_TOKEN, token))
    assert code(late.ask(Method.ALLOCATE, *wanted)) == ErrorCode.ALLOCATION_QUOTA_REACHED
    assert desk.server._core.quotas.of_users() == {"alice": 2, "bob": 2}
    desk.wait(31)
    assert desk.server._core.quotas.of_users() == {"alice": 1, "bob": 2}


def test_a_reserved_port_that_is_lost_is_not_given_away() -> None:
    desk = Desk(limits=UNLIMITED)
    relayed, token = _pair(desk.caller())
    handle = next(h for h, at in desk.open.items() if at.port == relayed.port + 1)
    desk.tell(Closed(handle, Cause.OTHER))
    second = desk.caller(address=OTHER)
    wanted = (TRANSPORT, (a.RESERVATION_TOKEN, token))
    assert code(second.ask(Method.ALLOCATE, *wanted)) == ErrorCode.INSUFFICIENT_CAPACITY
    assert desk.server._core.quotas.allocations == 1


def test_one_of_a_pair_is_lost_while_the_other_is_being_opened() -> None:
    desk = Desk(limits=UNLIMITED)
    desk.holding = True
    caller = desk.caller()
    caller.ask(Method.ALLOCATE, TRANSPORT, (a.EVEN_PORT, True))
    first, desk.held = desk.held[0], desk.held[1:]
    desk.tell(desk._open(first))
    desk.tell(Closed(first.handle, Cause.OTHER))
    caller.fetch()
    answer = decode(_last(desk))
    assert code(answer) == ErrorCode.INSUFFICIENT_CAPACITY
    assert desk.server._core.quotas.allocations == 0
    assert not desk.held


def _last(desk: Desk) -> bytes:
    (kept,) = desk.server._core.replay._responses.values()
    return kept


def test_both_hosts_of_both_families_are_used_in_turn() -> None:
    hosts = (HOST, "192.31.196.11", HOST6, ALTERNATE6)
    desk = Desk(limits=UNLIMITED, relays=tuple(RelayAddress(host, host) for host in hosts))
    used: Counter[str] = Counter()
    for port in range(4000, 4010):
        caller = desk.caller(address=Address(OTHER.host, port))
        response = caller.allocate((a.ADDITIONAL_ADDRESS_FAMILY, Family.IPV6))
        used.update(relayed.host for relayed in response.all(a.XOR_RELAYED_ADDRESS))
    assert used == dict.fromkeys(hosts, 5)


# The worst moment. --------------------------------------------------------------------------------


def _opening(desk: Desk, **options: Any) -> Caller:
    """Return a client whose Allocate request is under way."""
    desk.holding = True
    caller = desk.caller(**options)
    assert caller.ask(Method.ALLOCATE, TRANSPORT) is None
    assert desk.held
    return caller


def _release(desk: Desk) -> None:
    desk.holding = False
    desk.release()


def test_drained_while_an_allocate_is_under_way() -> None:
    desk = Desk(limits=UNLIMITED)
    caller = _opening(desk)
    desk.server.drain(desk.now)
    desk.pump()
    assert len(desk.told(Drained)) == 1
    caller.fetch()
    assert code(decode(_last(desk))) == ErrorCode.INSUFFICIENT_CAPACITY
    _release(desk)
    assert not desk.created
    assert len(desk.open) == len(desk.config.listeners)


def test_a_listener_goes_while_an_allocate_is_under_way() -> None:
    desk = Desk(limits=UNLIMITED)
    _opening(desk)
    stays = tuple(at for at in desk.config.listeners if at.transport is Transport.TCP)
    config = dataclasses.replace(desk.config, listeners=stays)
    desk.server.reconfigure(config, desk.server._users, desk.now)
    desk.pump()
    _release(desk)
    assert not desk.created
    assert len(desk.open) == len(stays)
    assert desk.server._core.quotas.allocations == 0


def test_a_listener_is_shut_before_it_was_open() -> None:
    config = configuration()
    users = StaticUsers({}, REALM)
    rng = random.Random(1)
    server = Server(config, users, NonceMaker([bytes(16)]), entropy=rng.randbytes)
    server.start(0)
    orders = []
    while isinstance(order := server.poll(), OpenUdp | Listen):
        orders.append(order)
    config = dataclasses.replace(config, listeners=config.listeners[1:])
    server.reconfigure(config, users, 0)
    for order in orders:
        server.on_socket(Opened(order.handle, order.local), 0)
    events = []
    while (output := server.poll()) is not None:
        events.append(output)
    assert [one for one in events if isinstance(one, Started)] == [Started(len(orders) - 1, 0)]


def test_nobody_moves_to_where_an_allocate_is_under_way() -> None:
    desk = Desk(limits=UNLIMITED)
    mobile = desk.caller()
    ticket = mobile.allocate((a.MOBILITY_TICKET, b"")).get(a.MOBILITY_TICKET)
    other = _opening(desk, address=OTHER)
    moved = other.refresh(600, (a.MOBILITY_TICKET, ticket))
    assert code(moved) == ErrorCode.ALLOCATION_MISMATCH
    _release(desk)
    other.fetch()
    mobile.refresh(0)
    assert [session.client for session in desk.server.sessions()] == [OTHER]
    assert code(other.refresh(0)) == 0


def test_a_connection_is_not_bound_where_an_allocate_is_under_way() -> None:
    desk = Desk(limits=UNLIMITED)
    caller, relayed = _stream_relay(desk)
    caller.ask(Method.CONNECT, (a.XOR_PEER_ADDRESS, PEER))
    desk.tell(Connected(desk.dialled[-1].handle, relayed, PEER))
    (answer,) = (decode(octets) for octets in caller.fetch())
    identifier = answer.get(a.CONNECTION_ID)
    other = _opening(desk, address=Address(OTHER.host, 2), transport=Transport.TCP)
    bind = (a.CONNECTION_ID, identifier)
    assert code(other.ask(Method.CONNECTION_BIND, bind)) == ErrorCode.ALLOCATION_MISMATCH
    _release(desk)
    assert [decode(octets).message_class for octets in other.fetch()] == [Class.SUCCESS]
    desk.tell(Closed(other.handle, Cause.RESET))
    assert [session.client for session in desk.server.sessions()] == [OTHER]


@pytest.mark.parametrize("offset", [-1, 0, 1])
def test_one_of_two_addresses_that_is_over_is_not_refreshed(offset: int) -> None:
    """However late the driver is."""
    desk = Desk(limits=UNLIMITED)
    caller = desk.caller()
    caller.allocate((a.ADDITIONAL_ADDRESS_FAMILY, Family.IPV6))
    caller.refresh(3600, (a.REQUESTED_ADDRESS_FAMILY, Family.IPV4))
    desk.now = 600 * SECOND + offset
    assert code(caller.refresh()) == 0
    (session,) = desk.server.sessions()
    assert len(session.relayed) == (2 if offset < 0 else 1)
    gone = code(caller.refresh(None, (a.REQUESTED_ADDRESS_FAMILY, Family.IPV6)))
    assert gone == (0 if offset < 0 else ErrorCode.PEER_ADDRESS_FAMILY_MISMATCH)


def test_what_comes_after_the_end_gets_no_answer() -> None:
    desk = Desk(users=_Slow())
    _datagram_relay(desk)
    waiting = desk.caller(address=OTHER, username="bob", password="hidden")
    waiting.refresh()
    (lookup,) = desk.server._gate._waiting
    desk.server.stop(desk.now)
    desk.pump()
    assert not desk.open
    request = encode(Message.request(Method.ALLOCATE, bytes(12)))
    for local in (Address(HOST, 3478), Address(HOST6, 3478)):
        desk.server.receive(Received(request, OTHER, local), desk.now)
    desk.server.found(lookup, desk.now)
    assert desk.server.poll() is None
    assert desk.server.deadline() is None


def test_a_port_is_open_after_its_client_has_gone() -> None:
    desk = Desk(limits=UNLIMITED)
    caller = _opening(desk, transport=Transport.TCP)
    orders: list[Handle] = [order.handle for order in desk.held]
    desk.tell(Closed(caller.handle, Cause.RESET))
    for handle in orders:
        assert handle in desk.shut
        desk.tell(Opened(handle, Address(HOST, 50_000)))
    assert not desk.created
    assert not desk.server._core.relays
    assert desk.server._core.quotas.allocations == 0
    assert desk.server._core.quotas.connections == 0
