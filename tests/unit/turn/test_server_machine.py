"""The server as a whole: listeners, behaviour discovery, commands, counters."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from stun import attributes as a
from stun.attributes import ChangeRequest
from stun.codec import decode, encode
from stun.discovery import Transport
from stun.errors import DropReason, UsageError
from stun.message import Message
from stun.nonce import NonceMaker
from stun.registry import Class, Method
from stun.sansio import (
    Address,
    Cause,
    Closed,
    Listen,
    Opened,
    OpenUdp,
    Received,
    Security,
    Transmit,
    Undeliverable,
)
from stun.users import StaticUsers
from tools.turndesk import HOST, PEER, TCP, UDP, UNLIMITED, Desk, code, configuration
from turn.server.config import Limits, ListenAt, RelayAddress, ServerConfig
from turn.server.events import (
    CannotServe,
    Drained,
    EndReason,
    RequestRefused,
    Serving,
    Started,
)
from turn.server.machine import Server
from turn.server.policy import PeerPolicy

CLIENT = Address("192.52.193.5", 40_000)
BINDING = encode(Message.request(Method.BINDING, bytes(12)))
TRANSPORT = (a.REQUESTED_TRANSPORT, UDP)


def _server(config: ServerConfig) -> Server:
    rng = random.Random(1)
    return Server(
        config,
        StaticUsers({"alice": "secret"}, "example.org"),
        NonceMaker([bytes(16)]),
        entropy=rng.randbytes,
    )


# Listeners. ---------------------------------------------------------------------------------------


def test_listeners_as_the_configuration_wants_them() -> None:
    at = Address(HOST, 3478)
    tls = Address(HOST, 5349)
    config = configuration(
        listeners=(
            ListenAt(Transport.UDP, at, detect=True),
            ListenAt(Transport.TCP, at),
            ListenAt(Transport.TLS, tls),
            ListenAt(Transport.DTLS, tls),
        )
    )
    server = _server(config)
    server.start(0)
    orders = [server.poll() for _ in range(4)]
    assert orders == [
        OpenUdp(1, at, Security.DETECT),
        Listen(2, at, exclusive=True),
        Listen(3, tls, security=Security.REQUIRED, exclusive=True),
        OpenUdp(4, tls, Security.REQUIRED),
    ]
    assert server.poll() is None
    with pytest.raises(UsageError):
        server.start(0)


def test_what_came_of_the_listeners_is_told() -> None:
    udp, tcp = Address("0.0.0.0", 0), Address(HOST, 3478)
    server = _server(
        configuration(listeners=(ListenAt(Transport.UDP, udp), ListenAt(Transport.TCP, tcp)))
    )
    server.start(0)
    while server.poll() is not None:
        pass
    server.on_socket(Closed(2, Cause.ADDRESS_IN_USE, "in use"), 0)
    server.on_socket(Opened(1, Address("0.0.0.0", 5000)), 0)
    assert [server.poll() for _ in range(3)] == [
        CannotServe(Transport.TCP, tcp, Cause.ADDRESS_IN_USE, "in use"),
        Serving(Transport.UDP, Address("0.0.0.0", 5000)),
        Started(1, 1),
    ]


def test_a_wildcard_stands_for_every_local_address() -> None:
    desk = Desk(listeners=(ListenAt(Transport.UDP, Address("0.0.0.0", 3478)),))
    for host in ("192.31.196.10", "192.31.196.11", "192.31.196.10"):
        desk.server.receive(Received(BINDING, CLIENT, Address(host, 3478)), 0)
        sent = desk.server.poll()
        assert isinstance(sent, Transmit)
        assert sent.source == Address(host, 3478)


def test_two_addresses_of_a_wildcard_are_two_five_tuples() -> None:
    desk = Desk(listeners=(ListenAt(Transport.UDP, Address("0.0.0.0", 3478)),))
    for handle, host in ((98, HOST), (99, "192.31.196.11")):
        desk.open[handle], desk.kinds[handle] = Address(host, 3478), OpenUdp
    one = desk.caller()
    two = desk.caller(server=Address("192.31.196.11", 3478))
    assert one.relayed() != two.relayed()


def test_datagrams_to_nobody() -> None:
    desk = Desk()
    assert desk.receive(b"x", PEER, Address(HOST, 50_000)) == []
    assert desk.server.drops == {DropReason.UNKNOWN_STREAM: 1}


# Binding and RFC 5780. ----------------------------------------------------------------------------

PRIMARY, ALTERNATE = Address("192.31.196.10", 3478), Address("192.175.48.10", 3479)


def _discovery() -> Desk:
    return Desk(
        listeners=(ListenAt(Transport.UDP, PRIMARY), ListenAt(Transport.TCP, PRIMARY)),
        discovery=((PRIMARY, ALTERNATE),),
    )


def test_a_grid_is_opened_and_named() -> None:
    desk = _discovery()
    assert len(desk.open) == 8
    (sent,) = desk.receive(BINDING, CLIENT, PRIMARY)
    answer = decode(sent.data)
    assert answer.get(a.OTHER_ADDRESS) == ALTERNATE
    assert answer.get(a.RESPONSE_ORIGIN) == PRIMARY


@pytest.mark.parametrize(
    ("change", "source"),
    [
        (ChangeRequest(True, True), ALTERNATE),
        (ChangeRequest(False, True), Address(PRIMARY.host, ALTERNATE.port)),
        (ChangeRequest(True, False), Address(ALTERNATE.host, PRIMARY.port)),
    ],
)
def test_change_request(change: ChangeRequest, source: Address) -> None:
    desk = _discovery()
    request = encode(Message.request(Method.BINDING, bytes(12)).add(a.CHANGE_REQUEST, change))
    (sent,) = desk.receive(request, CLIENT, PRIMARY)
    assert sent.source == source


def test_without_a_whole_grid_there_is_no_other_address() -> None:
    server = _server(
        configuration(
            listeners=(ListenAt(Transport.UDP, PRIMARY),), discovery=((PRIMARY, ALTERNATE),)
        )
    )
    server.start(0)
    orders = []
    while (output := server.poll()) is not None:
        orders.append(output)
    assert len(orders) == 4
    for order in orders:
        assert isinstance(order, OpenUdp)
        if order.local == ALTERNATE:
            server.on_socket(Closed(order.handle, Cause.ADDRESS_NOT_AVAILABLE), 0)
        else:
            server.on_socket(Opened(order.handle, order.local), 0)
    while server.poll() is not None:
        pass
    server.receive(Received(BINDING, CLIENT, PRIMARY), 0)
    sent = server.poll()
    assert isinstance(sent, Transmit)
    assert len(sent.data) == 32


def test_a_grid_that_is_no_longer_configured_is_no_longer_named() -> None:
    desk = _discovery()
    desk.server.reconfigure(replace(desk.config, discovery=()), desk.server._users, 0)
    desk.pump()
    assert set(desk.open.values()) == {PRIMARY}
    (sent,) = desk.receive(BINDING, CLIENT, PRIMARY)
    assert len(sent.data) == 32


def test_binding_answers_are_counted_by_code() -> None:
    desk = Desk()
    unknown = Message.request(Method.BINDING, bytes(12))
    unknown.attributes.append((0x7777, b""))
    desk.receive(BINDING, CLIENT, PRIMARY)
    desk.receive(encode(unknown), CLIENT, PRIMARY)
    caller = desk.caller(transport=Transport.TCP)
    caller.ask(Method.BINDING)
    caller.ask(Method.BINDING, (0x7777, b""))
    assert desk.server.metrics.responses == {(Method.BINDING, 0): 2, (Method.BINDING, 420): 2}


def test_binding_indications_and_foreign_messages() -> None:
    desk = Desk()
    for kind, count in ((Class.INDICATION, 0), (Class.SUCCESS, 1), (Class.ERROR, 2)):
        octets = encode(Message(Method.BINDING, kind, bytes(12)))
        assert desk.receive(octets, CLIENT, PRIMARY) == []
        assert desk.server.drops[DropReason.UNEXPECTED_CLASS] == count
    unknown = encode(Message.request(0x777, bytes(12)))
    assert desk.receive(unknown, CLIENT, PRIMARY) == []
    assert desk.server.drops[DropReason.UNKNOWN_METHOD] == 1
    forged = encode(Message.request(Method.ALLOCATE, bytes(12)), fingerprint=True)
    assert desk.receive(forged[:-1] + bytes((forged[-1] ^ 1,)), CLIENT, PRIMARY) == []
    assert desk.server.drops[DropReason.BAD_FINGERPRINT] == 1
    classic = encode(Message(Method.ALLOCATE, Class.REQUEST, bytes(12), cookie=1))
    assert desk.receive(classic, CLIENT, PRIMARY) == []
    assert desk.server.drops[DropReason.NOT_EXPECTED_PROTOCOL] == 1


def test_octets_of_every_kind_never_raise(rng: random.Random) -> None:
    desk = Desk(limits=UNLIMITED)
    caller = desk.caller()
    relayed = caller.relayed()
    caller.bind(0x4000, PEER)
    good = [caller.requested, b"\x40\0\0\4abcd", BINDING]
    for _ in range(3000):
        octets = bytearray(rng.choice(good))
        for _ in range(rng.randrange(4)):
            octets[rng.randrange(len(octets))] = rng.randrange(256)
        data = bytes(octets[: rng.randrange(len(octets) + 1)])
        local = rng.choice([PRIMARY, relayed, Address(HOST, 1)])
        source = rng.choice([caller.address, PEER, CLIENT])
        desk.server.receive(Received(data, source, local), desk.now)
        desk.tell(Undeliverable(local, source, rng.randrange(20), rng.randrange(20)))
    assert len(list(desk.server.sessions())) == 1


# Commands. ----------------------------------------------------------------------------------------


def test_sessions_say_what_there_is() -> None:
    desk = Desk()
    caller = desk.caller(transport=Transport.TLS)
    relayed = caller.relayed()
    caller.bind(0x4000, PEER)
    (session,) = desk.server.sessions()
    assert session.session == desk.created[0].session
    assert (session.username, session.client, session.transport) == (
        "alice", caller.address, Transport.TLS,
    )  # fmt: skip
    assert (session.relayed, session.permissions) == ((relayed,), (PEER.host,))
    assert session.channels == ((0x4000, PEER),)
    assert (session.tcp, session.connections) == (False, 0)
    assert session.expires - session.created == 600 * 10**9


def test_disconnect_by_session_and_by_user() -> None:
    desk = Desk()
    addresses = [Address("192.52.193.5", port) for port in range(1, 5)]
    for address in addresses[:3]:
        desk.caller(address=address).relayed()
    desk.caller(address=addresses[3], username="bob", password="hidden").relayed()
    with pytest.raises(UsageError):
        desk.server.disconnect(0)
    assert desk.server.disconnect(0, session="nobody") == 0
    first = desk.created[0].session
    assert desk.server.disconnect(0, session=first) == 1
    assert desk.server.disconnect(0, username="alice") == 2
    desk.pump()
    assert {end.reason for end in desk.ended} == {EndReason.DISCONNECTED}
    assert [session.username for session in desk.server.sessions()] == ["bob"]


def test_drained_is_told_once_the_last_allocation_is_gone() -> None:
    desk = Desk()
    caller = desk.caller()
    caller.relayed()
    desk.server.drain(desk.now)
    desk.server.drain(desk.now)
    desk.pump()
    assert desk.told(Drained) == []
    caller.refresh(0)
    assert desk.told(Drained) == [Drained()]
    empty = Desk()
    empty.server.drain(empty.now)
    empty.pump()
    assert empty.told(Drained) == [Drained()]


def test_stop_shuts_everything() -> None:
    desk = Desk()
    for transport in Transport:
        desk.caller(transport=transport).relayed((a.EVEN_PORT, True))
    desk.server.stop(desk.now)
    desk.pump()
    assert desk.open == {}
    assert {end.reason for end in desk.ended} == {EndReason.SHUTDOWN}
    assert len(desk.ended) == 4
    assert {-1, -2, -3} <= set(desk.shut)
    assert desk.server._core.quotas.allocations == 0
    assert desk.server._core.quotas.connections == 0


def test_a_tcp_allocation_is_the_tcp_relays_business() -> None:
    desk = Desk()
    caller = desk.caller(transport=Transport.TCP)
    caller.allocate(transport=TCP)
    caller.permit(PEER)
    caller.send(
        encode(Message.indication(Method.SEND, bytes(12)).add(a.XOR_PEER_ADDRESS, PEER)
               .add(a.DATA, b"x"))
    )  # fmt: skip
    assert desk.sent == []
    assert code(caller.bind(0x4000, PEER)) == 400
    assert caller.ask(Method.CONNECT, (a.XOR_PEER_ADDRESS, PEER)) is None
    (dial,) = desk.dialled
    assert dial.remote == PEER
    desk.tell(Closed(dial.handle, Cause.REFUSED))
    (answer,) = caller.fetch()
    assert code(decode(answer)) == 447


# Another configuration. ---------------------------------------------------------------------------


def test_nothing_changes_without_a_change() -> None:
    desk = Desk()
    assert desk.server.reconfigure(desk.config, desk.server._users, 0) == []


def test_listeners_come_and_go() -> None:
    desk = Desk()
    gone = desk.caller()
    gone.relayed()
    stays = desk.caller(transport=Transport.TCP, address=Address("192.52.193.6", 1))
    stays.relayed()
    rides = desk.caller(transport=Transport.DTLS, address=Address("192.52.193.8", 1))
    at = Address(HOST, 3480)
    config = replace(desk.config, listeners=(ListenAt(Transport.UDP, at),))
    words = desk.server.reconfigure(config, desk.server._users, 0)
    desk.pump()
    assert f"listening at UDP {at}" in words
    assert f"no longer listening at UDP {HOST}:3478" in words
    assert [end.reason for end in desk.ended] == [EndReason.POLICY]
    assert rides.handle in desk.shut, "a DTLS client has no socket but the listener's"
    assert stays.handle not in desk.shut
    assert code(stays.refresh()) == 0, "a connection that is there goes on"
    assert desk.caller(server=at, address=Address("192.52.193.7", 1)).relayed()


def test_users_and_realms() -> None:
    desk = Desk()
    caller = desk.caller()
    caller.relayed()
    users = StaticUsers({"bob": "hidden"}, "example.org")
    assert desk.server.reconfigure(desk.config, users, 0)
    assert code(caller.ask(Method.REFRESH, follow=False)) == 401
    other = replace(desk.config, realm="example.net")
    words = desk.server.reconfigure(other, StaticUsers({"bob": "hidden"}, "example.net"), 0)
    assert any("example.net" in word for word in words)
    fresh = desk.caller(username="bob", password="hidden", address=Address("192.52.193.6", 1))
    assert code(fresh.ask(Method.ALLOCATE, TRANSPORT)) == 0


def test_ports_and_limits() -> None:
    desk = Desk(ports=(50_000, 50_001), limits=Limits(allocations_per_user=2))
    kept = desk.caller().relayed()
    config = replace(
        desk.config, ports=(kept.port, kept.port), limits=Limits(allocations_per_user=1)
    )
    words = desk.server.reconfigure(config, desk.server._users, 0)
    assert words == [
        f"relay ports are {kept.port} to {kept.port}",
        "limit allocations_per_user is 1 (was 2)",
    ]
    other = desk.caller(address=Address("192.52.193.6", 1))
    assert code(other.ask(Method.ALLOCATE, TRANSPORT)) == 486
    bob = desk.caller(address=Address("192.52.193.7", 1), username="bob", password="hidden")
    assert code(bob.ask(Method.ALLOCATE, TRANSPORT)) == 508, "the only port is in use"


def test_what_a_new_policy_does_not_allow_ends() -> None:
    desk = Desk(offload=True)
    caller = desk.caller()
    caller.relayed()
    other = Address("192.175.49.20", 1)
    caller.bind(0x4000, PEER)
    caller.bind(0x4001, other)
    policy = PeerPolicy(own=(HOST,), deny=("192.175.48.0/24",))
    words = desk.server.reconfigure(replace(desk.config, policy=policy), desk.server._users, 0)
    desk.pump()
    assert "1 permission withdrawn that it does not allow" in words
    (session,) = desk.server.sessions()
    assert session.channels == ((0x4001, other),)
    assert [key.channel for key in desk.routes] == [0x4001]


def test_tcp_allocations_that_are_switched_off() -> None:
    desk = Desk()
    desk.caller(transport=Transport.TCP).allocate(transport=TCP)
    words = desk.server.reconfigure(replace(desk.config, tcp_relay=False), desk.server._users, 0)
    desk.pump()
    assert "1 TCP allocation ended" in words
    assert [end.reason for end in desk.ended] == [EndReason.POLICY]


def test_every_other_value_is_named() -> None:
    desk = Desk()
    config = replace(
        desk.config,
        relays=(RelayAddress("10.0.0.7", "192.175.48.77"),),
        software="natkit",
        alternates=(PRIMARY,),
        max_lifetime=1800 * 10**9,
        mobility=False,
    )
    words = desk.server.reconfigure(config, desk.server._users, 0)
    assert words == [
        "relaying from 10.0.0.7 (advertised as 192.175.48.77)",
        f"new clients are sent to {PRIMARY}",
        "max_lifetime is 1800 s",
        "software is 'natkit'",
        "mobility is False",
    ]


# Counting. ----------------------------------------------------------------------------------------


def test_counters_and_metrics() -> None:
    desk = Desk()
    caller = desk.caller()
    relayed = caller.relayed()
    caller.permit(PEER)
    caller.permit(Address("10.0.0.1", 1))
    caller.indicate(PEER, b"abc")
    desk.receive(b"defg", PEER, relayed)
    metrics = desk.server.metrics
    assert metrics.requests == {Method.ALLOCATE: 2, Method.CREATE_PERMISSION: 2}
    assert metrics.indications == {Method.SEND: 1}
    assert metrics.responses == {
        (Method.ALLOCATE, 401): 1,
        (Method.ALLOCATE, 0): 1,
        (Method.CREATE_PERMISSION, 0): 1,
        (Method.CREATE_PERMISSION, 403): 1,
    }
    assert metrics.data_indications == 1
    assert sum(metrics.allocate_latency.counts) == 1
    usage = desk.server.usage()
    assert (usage.octets_from_client, usage.octets_to_client) == (3, 4)
    caller.refresh(0)
    usage = desk.server.usage()
    assert (usage.octets_from_client, usage.octets_to_client) == (3, 4)
    counters = desk.server.counters
    assert counters["Allocate successes"] == 1
    assert counters["CreatePermission answered 403"] == 1
    assert counters["allocations"] == 0
    (refused,) = desk.told(RequestRefused)
    assert (refused.code, refused.username) == (403, "alice")
    assert refused.session == desk.created[0].session
    assert "10.0.0.0/8" in refused.detail
