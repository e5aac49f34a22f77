"""Data both ways: what passes, what does not, and what is counted."""

from __future__ import annotations

import pytest

from stun import attributes as a
from stun.attributes import Icmp
from stun.discovery import Transport
from stun.errors import DropReason
from stun.registry import Family, Method
from stun.sansio import Address, Congested, Relieved, Undeliverable
from tools.turndesk import HOST, HOST6, PEER, PEER6, Caller, Desk, code
from turn.server.config import Limits, RelayAddress
from turn.server.policy import PeerPolicy

EVERY = [Transport.UDP, Transport.TCP, Transport.TLS, Transport.DTLS]
OTHER_PORT = Address(PEER.host, 9)
STRANGER = Address("192.175.48.99", 7000)


def _ready(desk: Desk, transport: Transport = Transport.UDP) -> tuple[Caller, Address]:
    caller = desk.caller(transport=transport)
    return caller, caller.relayed()


def _data(caller: Caller) -> list[tuple[Address | None, bytes | None]]:
    caller.fetch()
    assert all(message.method == Method.DATA for message in caller.indications)
    return [(m.get(a.XOR_PEER_ADDRESS), m.get(a.DATA)) for m in caller.indications]


@pytest.mark.parametrize("transport", EVERY)
@pytest.mark.parametrize("octets", [b"", b"a", b"abc", b"abcd", bytes(1200)])
def test_send_and_data_indications(transport: Transport, octets: bytes) -> None:
    desk = Desk()
    caller, relayed = _ready(desk, transport)
    caller.permit(PEER)
    caller.indicate(PEER, octets)
    assert [(s.data, s.destination, s.source) for s in desk.sent] == [(octets, PEER, relayed)]
    desk.receive(octets, PEER, relayed)
    assert _data(caller) == [(PEER, octets)]
    usage = next(desk.server.sessions()).usage
    assert (usage.packets_from_client, usage.octets_from_client) == (1, len(octets))
    assert (usage.packets_to_client, usage.octets_to_client) == (1, len(octets))


@pytest.mark.parametrize("transport", EVERY)
@pytest.mark.parametrize("octets", [b"", b"a", b"abc", b"abcd", bytes(1201)])
def test_channel_data(transport: Transport, octets: bytes) -> None:
    desk = Desk()
    caller, relayed = _ready(desk, transport)
    assert code(caller.bind(0x4001, PEER)) == 0
    caller.push(0x4001, octets)
    assert [(s.data, s.destination, s.source) for s in desk.sent] == [(octets, PEER, relayed)]
    desk.receive(octets, PEER, relayed)
    caller.fetch()
    assert caller.channels == [(0x4001, octets)]
    assert not caller.indications


def test_channel_data_with_padding_over_udp() -> None:
    desk = Desk()
    caller, _ = _ready(desk)
    caller.bind(0x4001, PEER)
    caller.send(b"\x40\x01\0\1a\0\0\0")
    assert [sent.data for sent in desk.sent] == [b"a"]


@pytest.mark.parametrize(
    ("octets", "reason"),
    [
        (b"\x40\x01", DropReason.TOO_SHORT),
        (b"\x40\x01\0\5abcd", DropReason.LENGTH_MISMATCH),
        (b"\x40\x02\0\1a", DropReason.NO_CHANNEL),
        (b"\x7f\xff\0\1a", DropReason.NO_CHANNEL),
        (b"\x80" + bytes(19), DropReason.NOT_STUN),
        (b"", DropReason.TOO_SHORT),
        (b"\x16\xfe\xfd", DropReason.TOO_SHORT),
    ],
)
def test_what_is_no_message_is_dropped_and_counted(octets: bytes, reason: DropReason) -> None:
    desk = Desk()
    caller, _ = _ready(desk)
    caller.bind(0x4001, PEER)
    assert caller.send(octets) == []
    assert desk.sent == []
    assert desk.server.drops == {reason: 1}


def test_nothing_passes_without_a_permission() -> None:
    desk = Desk()
    caller, relayed = _ready(desk)
    caller.indicate(PEER, b"x")
    assert desk.receive(b"x", PEER, relayed) == []
    caller.permit(PEER)
    caller.indicate(STRANGER, b"x")
    assert desk.receive(b"x", STRANGER, relayed) == []
    assert desk.sent == []
    assert desk.server.drops == {DropReason.NO_PERMISSION: 4}


def test_a_permission_is_for_every_port_of_a_host() -> None:
    desk = Desk()
    caller, relayed = _ready(desk)
    caller.permit(PEER)
    caller.indicate(OTHER_PORT, b"x")
    assert [sent.destination for sent in desk.sent] == [OTHER_PORT]
    desk.receive(b"y", OTHER_PORT, relayed)
    assert _data(caller) == [(OTHER_PORT, b"y")]


def test_a_channel_is_for_one_port() -> None:
    desk = Desk()
    caller, relayed = _ready(desk)
    caller.bind(0x4000, PEER)
    desk.receive(b"y", OTHER_PORT, relayed)
    assert _data(caller) == [(OTHER_PORT, b"y")]
    assert caller.channels == []


def test_a_permission_lasts_300_seconds_and_data_does_not_prolong_it() -> None:
    desk = Desk()
    caller, relayed = _ready(desk)
    caller.permit(PEER)
    desk.wait(299.999)
    caller.indicate(PEER, b"x")
    desk.receive(b"x", PEER, relayed)
    assert len(desk.sent) == 2
    desk.wait(0.001)
    desk.sent.clear()
    caller.indicate(PEER, b"x")
    desk.receive(b"x", PEER, relayed)
    assert desk.sent == []
    assert next(desk.server.sessions()).permissions == ()


def test_the_time_of_a_packet_counts_even_if_no_deadline_was_met() -> None:
    desk = Desk()
    caller, relayed = _ready(desk)
    caller.permit(PEER)
    caller.bind(0x4000, Address("192.175.48.21", 1))
    desk.now = 300 * 10**9
    caller.indicate(PEER, b"x")
    assert desk.receive(b"x", PEER, relayed) == []
    desk.now = 600 * 10**9
    caller.push(0x4000, b"x")
    assert desk.receive(b"x", Address("192.175.48.21", 1), relayed) == []
    assert desk.sent == []


def test_a_channel_and_its_permission_last_600_seconds() -> None:
    """Clients bind once in ten minutes and create no permission beside it."""
    desk = Desk()
    caller, relayed = _ready(desk)
    caller.bind(0x4000, PEER)
    desk.wait(500)
    caller.refresh()
    caller.push(0x4000, b"x")
    caller.permit(PEER)
    desk.receive(b"y", PEER, relayed)
    caller.fetch()
    assert caller.channels == [(0x4000, b"y")]
    desk.wait(100)
    desk.sent.clear()
    caller.push(0x4000, b"x")
    assert desk.sent == []
    desk.receive(b"z", PEER, relayed)
    assert _data(caller) == [(PEER, b"z")], "the permission of its own goes on"
    caller.bind(0x4005, PEER)
    assert next(desk.server.sessions()).channels == ((0x4005, PEER),)


def test_indications_that_say_too_little() -> None:
    desk = Desk()
    caller, _ = _ready(desk)
    caller.permit(PEER)
    from stun.codec import encode
    from stun.message import Message

    def send(*attributes: tuple[int, bytes]) -> None:
        message = Message.indication(Method.SEND, bytes(12))
        message.attributes.extend(attributes)
        caller.send(encode(message))

    peer = (a.XOR_PEER_ADDRESS.code, a.XOR_PEER_ADDRESS.pack(PEER, bytes(12)))
    send(peer)
    send((a.DATA.code, b"x"))
    send((a.XOR_PEER_ADDRESS.code, b"\0\1"), (a.DATA.code, b"x"))
    send(peer, (a.DATA.code, b"x"), (a.DONT_FRAGMENT.code, b"x"))
    send(peer, (a.DATA.code, b"x"), (0x7777, b""))
    assert desk.sent == []
    assert desk.server.drops == {
        DropReason.BAD_ATTRIBUTE_VALUE: 4,
        DropReason.UNKNOWN_COMPREHENSION_REQUIRED: 1,
    }


def test_without_an_allocation_nothing_passes() -> None:
    desk = Desk()
    caller = desk.caller()
    caller.indicate(PEER, b"x")
    caller.push(0x4000, b"x")
    assert desk.sent == []
    assert desk.server.drops == {DropReason.NO_ALLOCATION: 2}


def test_dont_fragment() -> None:
    desk = Desk()
    caller, _ = _ready(desk)
    caller.permit(PEER)
    caller.indicate(PEER, b"x", (a.DONT_FRAGMENT, True))
    caller.indicate(PEER, b"x")
    assert [sent.dont_fragment for sent in desk.sent] == [True, False]


def test_a_denied_peer_is_denied_in_indications_too() -> None:
    desk = Desk(policy=PeerPolicy(own=(HOST,), allow=("10.0.0.0/8",)))
    caller, _ = _ready(desk)
    caller.permit(Address("10.0.0.1", 1))
    caller.indicate(Address("10.0.0.1", 1), b"x")
    assert len(desk.sent) == 1
    words = desk.server.reconfigure(desk.config, desk.server._users, desk.now)
    assert words == []
    from dataclasses import replace

    closed = replace(desk.config, policy=PeerPolicy(own=(HOST,)))
    words = desk.server.reconfigure(closed, desk.server._users, desk.now)
    assert any("1 permission withdrawn" in word for word in words)
    caller.indicate(Address("10.0.0.1", 1), b"x")
    assert len(desk.sent) == 1


def test_ipv6_peers_through_an_ipv6_relay() -> None:
    desk = Desk()
    caller = desk.caller(address=Address("2620:4f:8000:1:ffff::5", 4000))
    relayed = caller.relayed((a.REQUESTED_ADDRESS_FAMILY, Family.IPV6))
    assert code(caller.permit(PEER6)) == 0
    caller.indicate(PEER6, b"x")
    assert [(s.destination, s.source) for s in desk.sent] == [(PEER6, relayed)]
    desk.receive(b"y", PEER6, relayed)
    assert _data(caller) == [(PEER6, b"y")]


def test_a_dual_allocation_sends_from_the_right_family() -> None:
    desk = Desk()
    caller = desk.caller()
    caller.allocate((a.ADDITIONAL_ADDRESS_FAMILY, Family.IPV6))
    caller.bind(0x4000, PEER)
    caller.bind(0x4001, PEER6)
    for number in (0x4000, 0x4001):
        caller.push(number, b"x")
    assert [(s.source.host, s.destination) for s in desk.sent] == [(HOST, PEER), (HOST6, PEER6)]


# Rates and congestion. ----------------------------------------------------------------------------


def test_data_over_the_rate_is_dropped_and_counted() -> None:
    desk = Desk(limits=Limits(packets_per_second_per_user=10))
    caller, relayed = _ready(desk)
    caller.bind(0x4000, PEER)
    for _ in range(30):
        caller.push(0x4000, b"x")
    assert len(desk.sent) == 10
    assert desk.server.drops == {DropReason.RATE_LIMITED: 20}
    assert next(desk.server.sessions()).usage.dropped == 20
    desk.wait(1)
    assert len(desk.receive(b"y", PEER, relayed)) == 1


def test_a_client_that_reads_too_slowly_loses_data_and_gets_answers() -> None:
    desk = Desk()
    caller, relayed = _ready(desk, Transport.TCP)
    caller.permit(PEER)
    desk.tell(Congested(caller.handle))
    desk.receive(b"x", PEER, relayed)
    assert desk.server.drops == {DropReason.CONGESTED: 1}
    assert code(caller.refresh()) == 0
    desk.tell(Relieved(caller.handle))
    desk.receive(b"y", PEER, relayed)
    assert _data(caller) == [(PEER, b"y")]


# ICMP. --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "number", "info", "told"),
    [
        (3, 3, 0, Icmp(3, 3, 0)),
        (3, 4, 1280, Icmp(3, 4, 1280)),
        (3, 1, 99, Icmp(3, 1, 0)),
        (11, 0, 0, Icmp(11, 0, 0)),
        (5, 0, 0, None),
        (4, 0, 0, None),
    ],
)
def test_icmp(kind: int, number: int, info: int, told: Icmp | None) -> None:
    desk = Desk()
    caller, relayed = _ready(desk)
    caller.permit(PEER)
    desk.tell(Undeliverable(relayed, PEER, kind, number, info))
    caller.fetch()
    seen = [(m.get(a.XOR_PEER_ADDRESS), m.get(a.ICMP)) for m in caller.indications]
    assert seen == ([] if told is None else [(PEER, told)])
    assert not any(message.has(a.DATA) for message in caller.indications)


def test_icmpv6_packet_too_big() -> None:
    desk = Desk()
    caller = desk.caller()
    relayed = caller.relayed((a.REQUESTED_ADDRESS_FAMILY, Family.IPV6))
    caller.permit(PEER6)
    for kind in (1, 2, 3, 4, 11):
        desk.tell(Undeliverable(relayed, PEER6, kind, 0, 1280))
    caller.fetch()
    assert [m.get(a.ICMP) for m in caller.indications] == [
        Icmp(1, 0, 0), Icmp(2, 0, 1280), Icmp(3, 0, 0),
    ]  # fmt: skip


def test_icmp_for_a_peer_without_permission_is_not_told() -> None:
    desk = Desk()
    caller, relayed = _ready(desk)
    caller.permit(PEER)
    desk.tell(Undeliverable(relayed, STRANGER, 3, 3))
    desk.tell(Undeliverable(caller.server, caller.address, 3, 3))
    desk.tell(Undeliverable(Address(HOST, 1), PEER, 3, 3))
    assert caller.fetch() == []


# From one client to another, through the same server. ---------------------------------------------


@pytest.mark.parametrize("advertised", [HOST, "192.175.48.77", "10.0.0.7"])
def test_two_clients_of_one_server_reach_each_other(advertised: str) -> None:
    """As two browsers do that are told to use relays alone, behind a NAT that does not turn round
    what the server sends to itself."""
    own = (HOST, advertised)
    desk = Desk(relays=(RelayAddress(HOST, advertised),), policy=PeerPolicy(own=own))
    one = desk.caller()
    two = desk.caller(address=Address("192.52.193.6", 4000), username="bob", password="hidden")
    at_one, at_two = one.relayed(), two.relayed()
    assert at_one.host == advertised
    assert code(one.bind(0x4000, at_two)) == 0
    assert code(two.permit(at_one)) == 0
    one.push(0x4000, b"hello")
    (sent,) = desk.sent
    assert sent.destination == Address(HOST, at_two.port)
    desk.receive(sent.data, sent.source, sent.destination)
    assert _data(two) == [(at_one, b"hello")]
    two.indicate(at_one, b"back")
    sent = desk.sent[-1]
    desk.receive(sent.data, sent.source, sent.destination)
    one.fetch()
    assert one.channels == [(0x4000, b"back")]


def test_unless_the_operator_denies_it() -> None:
    desk = Desk(policy=PeerPolicy(own=(HOST,), deny=("192.31.196.0/24",)))
    one = desk.caller()
    two = desk.caller(address=Address("192.52.193.6", 4000))
    assert code(one.permit(two.relayed())) == 437
    at_one = one.relayed()
    assert code(two.permit(at_one)) == 403
    assert code(two.bind(0x4000, at_one)) == 403


def test_the_servers_other_ports_are_out_of_reach() -> None:
    desk = Desk()
    caller, relayed = _ready(desk)
    assert code(caller.permit(relayed)) == 0, "a permission has no port"
    for port in (3478, 22, relayed.port ^ 1):
        caller.indicate(Address(HOST, port), b"x")
        assert code(caller.bind(0x4000, Address(HOST, port))) == 403
    assert desk.sent == []
    assert desk.server.drops[DropReason.REFUSED_BY_POLICY] == 3
