"""Allocations: which sockets they go through, how a server's addresses compete, how they end."""

from __future__ import annotations

import pytest

from ice.base import Base, BaseLost, CandidateFound, PathClosed, PathUnreachable
from ice.candidate import CandidateType
from ice.config import Interface, Policy
from stun.attributes import (
    ALTERNATE_SERVER,
    DATA,
    ICMP,
    LIFETIME,
    REQUESTED_ADDRESS_FAMILY,
    XOR_PEER_ADDRESS,
    Icmp,
)
from stun.codec import encode
from stun.discovery import Target, Transport
from stun.errors import DropReason
from stun.message import Message
from stun.registry import Family, Method
from stun.sansio import (
    SECOND,
    Address,
    Cause,
    Closed,
    Connected,
    Dial,
    OpenUdp,
    Shut,
    Transmit,
    Undeliverable,
)
from tools.hubdesk import ETH, HOST, PEER, Desk, stun_server, turn_server

AT = Address("192.0.2.1", 3478)
SECURE = Address("192.0.2.1", 5349)
UDP = Target(AT, Transport.UDP)
TCP = Target(AT, Transport.TCP)
TLS = Target(SECURE, Transport.TLS, "relay.example")
DTLS = Target(SECURE, Transport.DTLS, "relay.example")
MAPPED = Address("203.0.113.5", 6000)
RELAYED = Address("192.0.2.1", 50_001)
RELAYED6 = Address("2001:db8::1", 50_002)
WLAN = Interface("10.0.0.2", "wlan0", 65503)


def allocated(desk: Desk, *relayed: Address) -> Base:
    """Have one UDP server grant one allocation; its first base."""
    desk.gather(turn_server(UDP))
    assert desk.grant(MAPPED, *(relayed or (RELAYED,))) == 1
    return desk.told(CandidateFound)[2].base


# Getting one. -------------------------------------------------------------------------------------


def test_an_allocation_over_udp_goes_through_the_hosts_socket() -> None:
    desk = Desk()
    desk.gather(turn_server(UDP, name="turn:a"))
    assert len(desk.ordered(OpenUdp)) == 1
    ((order, _),) = desk.requests(Method.ALLOCATE)
    assert order.source == desk.hub.bases[0].address
    desk.orders.append(order)
    desk.grant(MAPPED, RELAYED)
    host, reflexive, relayed = desk.told(CandidateFound)
    assert (reflexive.candidate.type, reflexive.base) == (CandidateType.SERVER_REFLEXIVE, host.base)
    assert relayed.candidate.address == relayed.base.address == RELAYED
    assert (relayed.candidate.related_address, relayed.candidate.related_port) == MAPPED
    assert (relayed.base.relay, relayed.base.network) == ("turn:a", "eth0")
    assert desk.is_done()


def test_families_are_asked_for_as_configured() -> None:
    desk = Desk(ipv4=False)
    desk.gather(turn_server(UDP))
    ((_, request),) = desk.requests(Method.ALLOCATE)
    assert request.get(REQUESTED_ADDRESS_FAMILY) == Family.IPV6


def test_of_a_dual_allocation_each_address_is_a_base() -> None:
    desk = Desk()
    desk.gather(turn_server(UDP))
    desk.grant(MAPPED, RELAYED, RELAYED6)
    *_, four, six = desk.told(CandidateFound)
    assert (four.base.address, six.base.address) == (RELAYED, RELAYED6)
    assert len({c.priority for c in desk.candidates}) == 4
    desk.hub.release(four.base, desk.now)
    desk.pump()
    assert desk.requests(Method.REFRESH) == [], "the other one is still in use"
    desk.hub.release(six.base, desk.now)
    desk.pump()
    ((_, request),) = desk.requests(Method.REFRESH)
    assert request.get(LIFETIME) == 0


def test_an_address_that_makes_no_sense_is_no_relay() -> None:
    desk = Desk()
    desk.gather(turn_server(UDP))
    desk.grant(MAPPED, RELAYED, Address("0.0.0.0", 0))
    assert desk.candidate(CandidateType.RELAYED).address == RELAYED
    assert len(desk.hub.bases) == 2


def test_connections_to_a_server_are_dialled_from_the_address() -> None:
    desk = Desk()
    desk.gather(turn_server(TLS, name="a"), turn_server(DTLS, name="b"), turn_server(TCP, name="c"))
    desk.wait(20)
    tls, dtls, tcp = desk.ordered(Dial)
    assert (tls.local, tls.remote, tls.server_name) == (Address(HOST, 0), SECURE, "relay.example")
    assert (dtls.datagrams, tcp.server_name) == (True, None)
    for n, dial in enumerate((tls, dtls, tcp)):
        desk.tell(Connected(dial.handle, Address(HOST, 41_000 + n), dial.remote))
        desk.grant(MAPPED, Address(RELAYED.host, RELAYED.port + n))
    # What a connection is seen as is no candidate for datagrams of the host's socket.
    kinds = [candidate.type for candidate in desk.candidates]
    assert kinds == [CandidateType.HOST] + [CandidateType.RELAYED] * 3
    by_relay = {f.server: f.candidate.priority for f in desk.told(CandidateFound) if f.server}
    assert by_relay["b"] > by_relay["c"] > by_relay["a"], "DTLS, TCP, TLS"


def test_a_relayed_address_that_is_a_hosts_is_given_back() -> None:
    desk = Desk()
    desk.gather(turn_server(UDP))
    desk.grant(MAPPED, desk.hub.bases[0].address)
    kinds = [candidate.type for candidate in desk.candidates]
    assert kinds == [CandidateType.HOST, CandidateType.SERVER_REFLEXIVE]
    assert "of no use" in desk.missing[0].why
    ((_, request),) = desk.requests(Method.REFRESH)
    assert request.get(LIFETIME) == 0
    assert desk.is_done()


def test_two_users_of_one_server_have_a_socket_each() -> None:
    desk = Desk()
    desk.gather(turn_server(UDP, name="a"), turn_server(UDP, name="b"))
    desk.wait(10)
    requests = desk.requests(Method.ALLOCATE)
    assert len({order.source for order, _ in requests}) == 2


# Competing. ---------------------------------------------------------------------------------------


def test_the_next_address_is_tried_when_the_first_is_silent() -> None:
    desk = Desk()
    desk.gather(turn_server(UDP, TCP))
    desk.wait(450)
    assert desk.ordered(Dial) == []
    desk.wait(60)
    (dial,) = desk.ordered(Dial)
    desk.requests(Method.ALLOCATE)
    desk.tell(Connected(dial.handle, Address(HOST, 41_000), AT))
    desk.grant(MAPPED, RELAYED)
    assert desk.is_done()
    desk.wait(60_000)
    assert desk.requests(Method.ALLOCATE) == [], "the silent one was given up"
    assert [m.what for m in desk.missing] == []


def test_the_next_address_is_tried_at_once_when_the_first_fails() -> None:
    desk = Desk()
    desk.gather(turn_server(TCP, UDP))
    (dial,) = desk.ordered(Dial)
    desk.wait(10)
    desk.tell(Closed(dial.handle, Cause.REFUSED))
    assert desk.grant(MAPPED, RELAYED) == 1
    assert desk.is_done()


def test_one_relay_is_enough_after_a_while_and_a_mapping_is_not() -> None:
    desk = Desk(components=2)
    other = Target(Address("192.0.2.2", 3478), Transport.UDP)
    desk.gather(stun_server("192.0.2.3"), turn_server(UDP), turn_server(other, name="turn:b"))
    desk.wait(40)
    desk.answer(MAPPED)
    ((order, _), *_) = desk.requests(Method.ALLOCATE)
    desk.orders.append(order)
    desk.grant(MAPPED, RELAYED)
    (first,) = [c.component for c in desk.candidates if c.type is CandidateType.RELAYED]
    desk.wait(3000)
    assert [m.component for m in desk.missing] == [first]
    assert "another relay" in desk.missing[0].why
    assert not desk.is_done(), "the other component has no relay yet"
    desk.wait(7000)
    assert desk.is_done()


def test_an_icmp_error_that_may_pass_lets_the_next_one_try() -> None:
    desk = Desk()
    desk.gather(turn_server(UDP, TCP))
    ((order, _),) = desk.requests(Method.ALLOCATE)
    desk.tell(Undeliverable(order.source, AT, 3, 0))
    desk.wait(10)
    assert len(desk.ordered(Dial)) == 1
    desk.orders.append(order)
    assert desk.grant(MAPPED, RELAYED) == 1
    assert desk.is_done()


def test_the_one_that_loses_is_given_back() -> None:
    desk = Desk()
    desk.gather(turn_server(TCP, UDP))
    (dial,) = desk.ordered(Dial)
    desk.wait(510)
    desk.grant(MAPPED, RELAYED)
    assert Shut(dial.handle) in desk.orders
    assert desk.is_done()


def test_when_all_fail_it_is_told_why_each_did() -> None:
    desk = Desk()
    desk.gather(turn_server(TCP, TLS, name="turn:a"))
    desk.tell(Closed(desk.ordered(Dial)[0].handle, Cause.REFUSED))
    desk.wait(10)
    desk.tell(Closed(desk.ordered(Dial)[1].handle, Cause.TLS_FAILED, "certificate has expired"))
    (missing,) = desk.missing
    assert missing.what == "relayed by turn:a from 10.0.0.1"
    assert "refused" in missing.why
    assert "certificate has expired" in missing.why
    assert desk.is_done()


def test_a_server_that_relays_nothing_is_asked_for_the_mapping() -> None:
    desk = Desk()
    desk.gather(turn_server(UDP))
    ((order, request),) = desk.requests(Method.ALLOCATE)
    desk.reply(order, Message.error(request, 508))
    desk.wait(10)
    assert desk.answer(MAPPED) == 1
    assert desk.candidate(CandidateType.SERVER_REFLEXIVE).address == MAPPED
    assert "508" in desk.missing[0].why
    assert desk.is_done()


def test_a_port_that_the_server_still_knows_is_left_for_another_one() -> None:
    desk = Desk()
    desk.gather(turn_server(UDP))
    ((order, request),) = desk.requests(Method.ALLOCATE)
    desk.reply(order, Message.error(request, 437))
    ((again, _),) = desk.requests(Method.ALLOCATE)
    assert again.source != order.source
    desk.orders.append(again)
    desk.grant(MAPPED, RELAYED)
    assert desk.candidate(CandidateType.RELAYED).address == RELAYED
    # It is not what the host's own socket is seen as.
    assert CandidateType.SERVER_REFLEXIVE not in {c.type for c in desk.candidates}
    desk.hub.close(desk.now)
    desk.pump()
    assert desk.open == {}


def test_a_redirection_is_followed_from_a_socket_of_its_own() -> None:
    desk = Desk()
    desk.gather(turn_server(UDP))
    ((order, request),) = desk.requests(Method.ALLOCATE)
    other = Address("192.0.2.9", 3478)
    desk.reply(order, Message.error(request, 300).add(ALTERNATE_SERVER, other))
    ((again, _),) = desk.requests(Method.ALLOCATE)
    assert again.destination == other
    desk.orders.append(again)
    desk.grant(MAPPED, RELAYED)
    assert desk.candidate(CandidateType.RELAYED).address == RELAYED
    base = desk.hub.bases[-1]
    desk.arrive(channel_of(desk, base, b"x"), other, again.source)
    assert desk.arrived[-1] == (base, PEER, b"x")


def channel_of(desk: Desk, base: Base, data: bytes) -> bytes:
    """Bind a channel to the peer; return ChannelData in it."""
    desk.hub.prefer(base, PEER, desk.now)
    desk.pump()
    ((order, request),) = desk.requests(Method.CHANNEL_BIND)
    desk.reply(order, Message.success(request))
    return b"\x40\x00" + len(data).to_bytes(2) + data


# Using one. ---------------------------------------------------------------------------------------


def permitted(desk: Desk, base: Base) -> None:
    desk.hub.open_path(base, PEER, desk.now)
    desk.pump()
    ((order, request),) = desk.requests(Method.CREATE_PERMISSION)
    desk.reply(order, Message.success(request))


def test_packets_go_out_and_in_by_indications_and_channels() -> None:
    desk = Desk()
    base = allocated(desk)
    desk.hub.send(base, PEER, b"waits", desk.now)
    desk.pump()
    ((order, request),) = desk.requests(Method.CREATE_PERMISSION)
    assert request.get(XOR_PEER_ADDRESS) == PEER
    assert desk.ordered(Transmit) == []
    desk.reply(order, Message.success(request))
    (sent,) = desk.ordered(Transmit)
    assert sent.destination == AT
    assert b"waits" in sent.data
    indication = Message.indication(Method.DATA, bytes(12))
    indication.add(XOR_PEER_ADDRESS, PEER).add(DATA, b"in")
    desk.arrive(encode(indication), AT, sent.source)
    desk.arrive(channel_of(desk, base, b"in a channel"), AT, sent.source)
    assert desk.arrived == [(base, PEER, b"in"), (base, PEER, b"in a channel")]
    desk.orders.clear()
    desk.hub.send(base, PEER, b"out", desk.now)
    desk.pump()
    assert desk.orders == [Transmit(b"\x40\x00\x00\x03out", AT, sent.source)]


def test_a_peer_of_the_other_family_is_nobodys() -> None:
    desk = Desk()
    base = allocated(desk)
    permitted(desk, base)
    six = Address("2001:db8::7", 7)
    desk.hub.open_path(base, six, desk.now)
    desk.pump()
    ((order, request),) = desk.requests(Method.CREATE_PERMISSION)
    desk.reply(order, Message.success(request))
    indication = Message.indication(Method.DATA, bytes(12))
    indication.add(XOR_PEER_ADDRESS, six).add(DATA, b"in")
    desk.arrive(encode(indication), AT, desk.hub.bases[0].address)
    assert desk.arrived == []
    assert desk.hub.drops == {DropReason.NO_ALLOCATION: 1}


def test_a_refused_peer_is_told_and_asked_for_once() -> None:
    desk = Desk()
    base = allocated(desk)
    desk.hub.send(base, PEER, b"x", desk.now)
    desk.pump()
    ((order, request),) = desk.requests(Method.CREATE_PERMISSION)
    desk.reply(order, Message.error(request, 403))
    desk.hub.send(base, PEER._replace(port=7001), b"x", desk.now)
    desk.pump()
    assert desk.requests(Method.CREATE_PERMISSION) == []
    first, second = desk.told(PathClosed)
    assert (first.remote, first.cause) == (PEER, Cause.NOT_PERMITTED)
    assert "403" in first.detail
    assert second.remote.port == 7001
    assert desk.hub.drops == {DropReason.REFUSED_BY_POLICY: 1}


def test_icmp_errors_come_through_the_relay() -> None:
    desk = Desk()
    base = allocated(desk)
    permitted(desk, base)
    indication = Message.indication(Method.DATA, bytes(12))
    indication.add(XOR_PEER_ADDRESS, PEER).add(ICMP, Icmp(3, 4, 1280))
    desk.arrive(encode(indication), AT, desk.hub.bases[0].address)
    assert desk.told(PathUnreachable) == [PathUnreachable(base, PEER, 3, 4, 1280)]


def test_a_host_and_a_relay_path_share_a_socket_but_no_packets() -> None:
    desk = Desk()
    base = allocated(desk)
    host = desk.hub.bases[0]
    desk.arrive(b"direct", PEER, host.address)
    assert desk.arrived == [(host, PEER, b"direct")]
    desk.arrive(b"\x00\x01 from the relay's own port", AT, host.address)
    assert len(desk.arrived) == 1
    assert base in desk.hub.bases


def test_stun_and_turn_at_one_address_are_told_apart() -> None:
    desk = Desk()
    desk.gather(stun_server(AT.host), turn_server(UDP))
    desk.wait(10)
    assert desk.answer(MAPPED) == 1
    assert desk.grant(MAPPED, RELAYED) == 1
    assert [c.type for c in desk.candidates] == [
        CandidateType.HOST,
        CandidateType.SERVER_REFLEXIVE,
        CandidateType.RELAYED,
    ]
    assert desk.is_done()
    assert not desk.hub.drops


# Ending. ------------------------------------------------------------------------------------------


def test_an_allocation_that_the_server_has_lost_is_told() -> None:
    desk = Desk()
    base = allocated(desk)
    desk.wait(540_100)
    ((order, request),) = desk.requests(Method.REFRESH)
    desk.reply(order, Message.error(request, 437))
    (lost,) = desk.told(BaseLost)
    assert lost.base is base
    assert "437" in lost.why
    desk.hub.send(base, PEER, b"x", desk.now)
    assert desk.hub.drops == {DropReason.NO_ALLOCATION: 1}
    # It is sought again when somebody asks.
    desk.gather(turn_server(UDP))
    desk.wait(5)
    assert desk.grant(MAPPED, RELAYED) == 1
    assert desk.hub.bases[-1].address == RELAYED


def test_an_icmp_error_of_the_server_has_the_allocation_asked_for() -> None:
    desk = Desk()
    allocated(desk)
    desk.tell(Undeliverable(desk.hub.bases[0].address, AT, 3, 3))
    desk.wait(1)
    assert len(desk.requests(Method.REFRESH)) == 1


def test_a_relay_that_is_retained_keeps_its_socket_but_not_the_hosts_candidate() -> None:
    desk = Desk()
    base = allocated(desk)
    host = desk.hub.bases[0]
    permitted(desk, base)
    desk.hub.retain([base], desk.now)
    desk.pump()
    assert desk.hub.bases == [base]
    assert desk.open == {1: host.address}
    desk.arrive(b"stranger", PEER, host.address)
    assert desk.arrived == []
    assert desk.hub.drops == {DropReason.REFUSED_BY_POLICY: 1}
    # When the relay goes as well, the socket goes once the server knows.
    desk.hub.retain([], desk.now)
    desk.pump()
    ((order, request),) = desk.requests(Method.REFRESH)
    assert desk.open == {1: host.address}
    desk.reply(order, Message.success(request).add(LIFETIME, 0))
    assert desk.open == {}
    assert desk.hub.deadline() is None


def test_a_socket_that_a_relay_kept_is_found_again() -> None:
    desk = Desk()
    base = allocated(desk)
    host = desk.hub.bases[0]
    desk.hub.retain([base], desk.now)
    desk.pump()
    desk.gather(turn_server(UDP))
    again = desk.told(CandidateFound)[-1]
    assert again.base.address == host.address
    assert again.base.id != host.id
    assert len(desk.ordered(OpenUdp)) == 1
    assert desk.hub.bases == [again.base, base]


def test_concluding_gives_up_what_is_not_needed() -> None:
    desk = Desk()
    desk.gather(turn_server(UDP), turn_server(TCP, name="turn:b"))
    desk.wait(10)
    desk.grant(MAPPED, RELAYED)
    (dial,) = desk.ordered(Dial)
    desk.hub.retain([desk.hub.bases[0]], desk.now)
    desk.pump()
    assert Shut(dial.handle) in desk.orders
    assert [request.get(LIFETIME) for _, request in desk.requests(Method.REFRESH)] == [0]
    assert desk.hub.bases == [desk.told(CandidateFound)[0].base]
    assert desk.is_done()
    desk.wait(60_000)
    assert desk.lost == []


def test_after_concluding_only_the_preferred_peer_is_kept_alive() -> None:
    desk = Desk()
    base = allocated(desk)
    other = Address("198.51.100.9", 9)
    for peer in (PEER, other):
        desk.hub.send(base, peer, b"check", desk.now)
    desk.pump()
    for order, request in desk.requests(Method.CREATE_PERMISSION):
        desk.reply(order, Message.success(request))
    channel_of(desk, base, b"")
    desk.hub.retain([base], desk.now)
    desk.pump()
    asked = set()
    for _ in range(40):
        desk.wait(15_000)
        for method in (Method.CREATE_PERMISSION, Method.CHANNEL_BIND, Method.REFRESH):
            for order, request in desk.requests(method):
                asked |= set(request.all(XOR_PEER_ADDRESS))
                desk.reply(order, Message.success(request))
    assert asked == {PEER}
    desk.hub.send(base, other, b"again", desk.now)
    desk.pump()
    ((_, request),) = desk.requests(Method.CREATE_PERMISSION)
    assert request.get(XOR_PEER_ADDRESS) == other


def test_a_path_that_is_closed_is_kept_alive_no_longer() -> None:
    desk = Desk()
    base = allocated(desk)
    permitted(desk, base)
    desk.hub.close_path(base, PEER, desk.now)
    desk.pump()
    desk.wait(320_000)
    assert desk.requests(Method.CREATE_PERMISSION) == []


def test_a_relay_goes_with_the_address_it_was_reached_from() -> None:
    desk = Desk()
    base = allocated(desk)
    host = desk.hub.bases[0]
    desk.gather(turn_server(UDP), interfaces=(WLAN,))
    assert desk.lost == [base, host]
    desk.wait(5)
    assert desk.grant(MAPPED, RELAYED._replace(port=50_009)) == 1
    assert [b.network for b in desk.hub.bases] == ["wlan0", "wlan0"]


def test_closing_gives_allocations_back_without_waiting() -> None:
    desk = Desk()
    allocated(desk)
    desk.hub.close(desk.now)
    desk.pump()
    ((_, request),) = desk.requests(Method.REFRESH)
    assert request.get(LIFETIME) == 0
    assert (desk.open, desk.hub.deadline()) == ({}, None)


def test_a_silent_relay_is_given_up() -> None:
    desk = Desk(gather_timeout=5 * SECOND)
    desk.gather(turn_server(UDP, TCP, TLS))
    desk.wait(5000)
    assert desk.is_done()
    (missing,) = desk.missing
    assert "no answer within 5 s" in missing.why
    assert list(desk.open) == [1], "of the sockets only the host's is left"
    desk.wait(60_000)
    assert len(desk.missing) == 1


@pytest.mark.parametrize("target", [UDP, TCP])
def test_the_relay_policy_hides_where_the_relay_is_reached_from(target: Target) -> None:
    desk = Desk(policy=Policy.RELAY)
    desk.gather(turn_server(target), stun_server("192.0.2.2"), interfaces=(ETH,))
    if target is TCP:
        (dial,) = desk.ordered(Dial)
        desk.tell(Connected(dial.handle, Address(HOST, 41_000), AT))
    desk.grant(MAPPED, RELAYED, RELAYED6)
    four, six = desk.candidates
    assert (four.related_address, four.related_port) == ("0.0.0.0", 9)
    assert (six.related_address, six.related_port) == ("::", 9)
    assert desk.requests() == []
    assert desk.is_done()
