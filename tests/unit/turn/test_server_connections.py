"""Clients' connections: framing, limits, idling, endings."""

from __future__ import annotations

import pytest

from stun import attributes as a
from stun.codec import encode
from stun.discovery import Transport
from stun.errors import DropReason
from stun.message import Message
from stun.registry import Class, Method
from stun.sansio import Accepted, Address, Arrived, Cause, Closed, Congested, Relieved
from tools.turndesk import HOST, PEER, TCP, Desk, code
from turn.server.config import Limits
from turn.server.core import LONGEST_REQUEST
from turn.server.events import EndReason

STREAMS = [Transport.TCP, Transport.TLS]
EVERY = [*STREAMS, Transport.DTLS]


@pytest.mark.parametrize("transport", EVERY)
def test_an_allocation_ends_with_its_connection(transport: Transport) -> None:
    desk = Desk()
    caller = desk.caller(transport=transport)
    caller.relayed()
    desk.tell(Closed(caller.handle, Cause.END_OF_STREAM))
    assert [end.reason for end in desk.ended] == [EndReason.CONNECTION_CLOSED]
    assert desk.server._core.quotas.connections == 0


@pytest.mark.parametrize("transport", STREAMS)
def test_messages_cut_anywhere(transport: Transport) -> None:
    desk = Desk()
    caller = desk.caller(transport=transport)
    caller.relayed()
    caller.bind(0x4000, PEER)
    octets = b"\x40\0\0\1a\0\0\0" * 3
    for octet in octets:
        desk.tell(Arrived(caller.handle, bytes((octet,))))
    desk.tell(Arrived(caller.handle, octets))
    assert [sent.data for sent in desk.sent] == [b"a"] * 6


@pytest.mark.parametrize("transport", EVERY)
def test_one_that_idles_is_closed(transport: Transport) -> None:
    desk = Desk()
    caller = desk.caller(transport=transport)
    desk.wait(40)
    caller.ask(Method.BINDING)
    desk.wait(59)
    assert caller.handle not in desk.shut
    desk.wait(2)
    assert caller.handle in desk.shut
    assert desk.server.metrics.connections == 0


def test_one_with_an_allocation_may_idle() -> None:
    desk = Desk()
    caller = desk.caller(transport=Transport.TCP)
    caller.relayed()
    desk.wait(599)
    assert caller.handle not in desk.shut
    caller.refresh(0)
    desk.wait(61)
    assert caller.handle in desk.shut


def test_a_broken_stream_is_closed() -> None:
    desk = Desk()
    caller = desk.caller(transport=Transport.TCP)
    caller.relayed()
    desk.tell(Arrived(caller.handle, b"\xff\xff\xff\xff"))
    assert caller.handle in desk.shut
    assert len(desk.ended) == 1
    assert sum(desk.server.drops.values()) == 1


def test_strangers_may_send_short_messages_only() -> None:
    desk = Desk()
    caller = desk.caller(transport=Transport.TCP)
    message = Message.indication(Method.SEND, bytes(12))
    message.add(a.XOR_PEER_ADDRESS, PEER).add(a.DATA, bytes(LONGEST_REQUEST))
    desk.tell(Arrived(caller.handle, encode(message)[:24]))
    assert caller.handle in desk.shut
    assert desk.server.drops == {DropReason.TOO_LONG: 1}
    owner = desk.caller(transport=Transport.TCP)
    owner.relayed()
    owner.permit(PEER)
    owner.indicate(PEER, bytes(60_000))
    assert len(desk.sent[-1].data) == 60_000


def test_no_more_connections_than_allowed() -> None:
    desk = Desk(limits=Limits(connections=3, connections_per_client=2))
    one, two = (desk.caller(transport=Transport.TCP) for _ in range(2))
    three = desk.caller(transport=Transport.TCP)
    assert three.handle in desk.shut
    four = desk.caller(transport=Transport.DTLS, address=Address("192.52.193.6", 1))
    assert four.handle not in desk.shut
    five = desk.caller(transport=Transport.TCP, address=Address("192.52.193.7", 1))
    assert five.handle in desk.shut
    desk.tell(Closed(one.handle, Cause.END_OF_STREAM))
    six = desk.caller(transport=Transport.TCP)
    assert six.handle not in desk.shut
    assert two.handle not in desk.shut
    assert desk.server.drops == {DropReason.REFUSED_BY_POLICY: 2}


def test_a_datagram_listener_takes_dtls_beside_udp() -> None:
    desk = Desk()
    listener = next(handle for handle, local in desk.open.items() if local == Address(HOST, 3478))
    client = Address("192.52.193.5", 40_000)
    desk.tell(Accepted(listener, -9, Address(HOST, 3478), client, secure=True))
    desk.tell(Arrived(-9, encode(Message.request(Method.BINDING, bytes(12)))))
    assert -9 in desk.written
    assert desk.server.metrics.connections_accepted == {Transport.DTLS: 1}


def test_octets_of_a_connection_that_is_gone() -> None:
    desk = Desk()
    desk.tell(Arrived(-5, b"late"))
    desk.tell(Closed(-5, Cause.RESET))
    assert desk.server.drops == {DropReason.UNKNOWN_STREAM: 1}


def test_binding_over_a_stream() -> None:
    desk = Desk()
    caller = desk.caller(transport=Transport.TLS)
    response = caller.ask(Method.BINDING)
    assert response is not None
    assert response.message_class is Class.SUCCESS
    assert response.get(a.XOR_MAPPED_ADDRESS) == caller.address


def waiting_for_bind(desk: Desk) -> int:
    """Return the CONNECTION-ID of a connection that :data:`PEER` (handle -50) has made."""
    control = desk.caller(transport=Transport.TCP)
    relayed = control.allocate(transport=TCP).get(a.XOR_RELAYED_ADDRESS)
    control.permit(PEER)
    listener = next(handle for handle, local in desk.open.items() if local == relayed)
    assert relayed is not None
    desk.tell(Accepted(listener, -50, relayed, PEER))
    control.fetch()
    (attempt,) = control.indications
    assert attempt.method == Method.CONNECTION_ATTEMPT
    identifier = attempt.get(a.CONNECTION_ID)
    assert identifier
    return identifier


def test_data_behind_a_connection_bind_belongs_to_the_peer() -> None:
    """The client need not wait for the response before it sends."""
    desk = Desk()
    identifier = waiting_for_bind(desk)
    data = desk.caller(transport=Transport.TCP, address=Address("192.52.193.5", 40_002))
    # One exchange for the nonce, then the request with what the client sends to the peer.
    guard = data.sessions.guard(data.server, data.credentials)
    request = Message.request(Method.CONNECTION_BIND, bytes(12)).add(a.CONNECTION_ID, identifier)
    challenge = data.say(guard.dress(request, fingerprint=False))
    assert challenge is not None
    guard.judge(challenge)
    assert code(data.say(guard.dress(request, fingerprint=False) + b"\xffhello")) == 0
    assert desk.written[-50] == b"\xffhello"
    desk.tell(Arrived(-50, b"world"))
    assert desk.written[data.handle] == b"world"
    assert desk.server._core.quotas.connections == 1


def test_a_client_that_takes_no_answers_is_still_congested_when_it_is_bound() -> None:
    desk = Desk()
    identifier = waiting_for_bind(desk)
    data = desk.caller(transport=Transport.TCP, address=Address("192.52.193.5", 40_002))
    desk.tell(Congested(data.handle))
    assert code(data.ask(Method.CONNECTION_BIND, (a.CONNECTION_ID, identifier))) == 0
    assert -50 in desk.unread
    desk.tell(Relieved(data.handle))
    assert -50 not in desk.unread


def test_what_follows_a_refused_connection_bind_is_read_as_messages() -> None:
    desk = Desk()
    caller = desk.caller(transport=Transport.TCP)
    bind = encode(Message.request(Method.CONNECTION_BIND, bytes(12)))
    binding = encode(Message.request(Method.BINDING, bytes(12)))
    came = caller.send(bind + binding)
    assert len(came) == 2
