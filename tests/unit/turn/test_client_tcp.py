"""Relayed TCP connections (RFC 6062) of the client machine."""

from __future__ import annotations

import random

import pytest

from stun.attributes import CONNECTION_ID, MESSAGE_INTEGRITY, REQUESTED_TRANSPORT, XOR_PEER_ADDRESS
from stun.codec import encode
from stun.discovery import Transport
from stun.errors import DropReason, UsageError
from stun.message import Message
from stun.registry import Method
from stun.sansio import (
    Address,
    Arrived,
    Cause,
    Closed,
    Congested,
    Dial,
    Hold,
    Relieved,
    Shut,
)
from tools.clientdesk import LOCAL, SERVER, Desk, error, silence, success
from turn.client.errors import ConnectionExists, PeerNotReached, ServerUnreachable, TurnError
from turn.client.events import (
    Lost,
    PeerClosed,
    PeerCongested,
    PeerConnected,
    PeerRefused,
    PeerStream,
    Released,
)

PEER = Address("203.0.113.50", 5000)


def tcp_desk(rng: random.Random, transport: Transport = Transport.TCP, **options: object) -> Desk:
    desk = Desk(rng, transport=transport, tcp=True, **options)  # type: ignore[arg-type]
    return desk.allocate()


def attempt(rng: random.Random, identifier: int, peer: Address = PEER) -> Message:
    message = Message.indication(Method.CONNECTION_ATTEMPT, rng.randbytes(12))
    return message.add(CONNECTION_ID, identifier).add(XOR_PEER_ADDRESS, peer)


@pytest.mark.parametrize("transport", [Transport.TCP, Transport.TLS])
def test_a_connection(rng: random.Random, transport: Transport) -> None:
    desk = tcp_desk(rng, transport)
    assert desk.requests(Method.ALLOCATE)[0].get(REQUESTED_TRANSPORT) == 6
    number = desk.client.connect(PEER, desk.now)
    desk.run()
    assert desk.told(PeerConnected) == [PeerConnected(number, PEER, incoming=False)]
    assert desk.requests(Method.CONNECT)[0].get(XOR_PEER_ADDRESS) == PEER
    # "utilizing the same destination transport address" from "a different local transport address".
    dial = desk.orders[-1]
    name = "relay.example" if transport.is_secure else None
    assert dial == Dial(2, Address(LOCAL, 0), SERVER, name)
    # The first request on it is authenticated already.
    (bind,) = [
        m for m in desk.sent if isinstance(m, Message) and m.method == Method.CONNECTION_BIND
    ]
    assert bind.has(MESSAGE_INTEGRITY)
    assert bind.get(CONNECTION_ID) == 4711
    desk.client.write(number, b"to the peer")
    desk.run()
    assert desk.sent[-1] == b"to the peer"
    for piece in (b"\x00\x01", b"from the peer, which may look like anything"):
        desk.tell(Arrived(2, piece))
    assert desk.told(PeerStream)[0].data == b"\x00\x01"
    desk.tell(Closed(2, Cause.END_OF_STREAM))
    assert desk.last(PeerClosed) == PeerClosed(number, Cause.END_OF_STREAM)
    desk.client.write(number, b"into the void")
    desk.client.close(number)
    desk.run()
    assert desk.sent[-1] == b"to the peer"


def test_the_peers_first_octets_come_with_the_answer(rng: random.Random) -> None:
    desk = tcp_desk(rng)
    desk.script(
        Method.CONNECTION_BIND,
        lambda request: encode(Message.success(request), key=desk.key) + b"SSH-2.0",
    )
    desk.client.connect(PEER, desk.now)
    desk.run()
    assert desk.told(PeerStream) == [PeerStream(1, b"SSH-2.0")]
    kinds = [type(event) for event in desk.events]
    assert kinds.index(PeerConnected) < kinds.index(PeerStream)


def test_the_answer_may_be_cut_anywhere(rng: random.Random) -> None:
    desk = tcp_desk(rng)
    whole: list[bytes] = []

    def answer(request: Message) -> None:
        whole.append(encode(Message.success(request), key=desk.key))

    desk.script(Method.CONNECTION_BIND, answer)
    desk.client.connect(PEER, desk.now)
    desk.run()
    for octet in whole[0] + b"data":
        desk.tell(Arrived(2, bytes((octet,))))
    assert b"".join(told.data for told in desk.told(PeerStream)) == b"data"


def test_a_challenge_on_the_second_connection(rng: random.Random) -> None:
    desk = tcp_desk(rng)
    desk.script(Method.CONNECT, success((CONNECTION_ID, 1)))
    desk.client.connect(PEER, desk.now)
    desk.nonce = b"another nonce"
    desk.run()
    assert desk.told(PeerConnected)


@pytest.mark.parametrize(("code", "kind"), [(446, ConnectionExists), (447, PeerNotReached)])
def test_a_peer_that_is_not_reached(rng: random.Random, code: int, kind: type[TurnError]) -> None:
    desk = tcp_desk(rng)
    desk.script(Method.CONNECT, error(code))
    number = desk.client.connect(PEER, desk.now)
    desk.run()
    refused = desk.last(PeerRefused)
    assert (refused.peer, refused.method, refused.connection) == (PEER, Method.CONNECT, number)
    assert isinstance(refused.error, kind)
    desk.client.connect(PEER, desk.now)  # nothing is in the way of another attempt
    desk.run()
    assert desk.told(PeerConnected)


def test_two_connects_to_a_peer_are_not_sent_at_once(rng: random.Random) -> None:
    desk = tcp_desk(rng)
    desk.client.connect(PEER, desk.now)
    with pytest.raises(UsageError, match="connected to already"):
        desk.client.connect(PEER, desk.now)


@pytest.mark.parametrize("answer", [error(400), success()])
def test_a_connection_that_is_not_bound(rng: random.Random, answer: object) -> None:
    desk = tcp_desk(rng)
    is_bind = answer is not None and answer.__qualname__.startswith("error")  # type: ignore[attr-defined]
    desk.script(Method.CONNECTION_BIND if is_bind else Method.CONNECT, answer)  # type: ignore[arg-type]
    desk.client.connect(PEER, desk.now)
    desk.run()
    assert isinstance(desk.last(PeerRefused).error, TurnError)
    assert len(desk.open) == 1
    assert not desk.told(Lost)


def test_the_second_connection_fails(rng: random.Random) -> None:
    desk = tcp_desk(rng)
    desk.refused[SERVER.host] = Cause.REFUSED
    number = desk.client.connect(PEER, desk.now)
    desk.run()
    refused = desk.last(PeerRefused)
    assert (refused.method, refused.connection) == (Method.CONNECTION_BIND, number)
    assert isinstance(refused.error, ServerUnreachable)


def test_the_second_connection_takes_too_long(rng: random.Random) -> None:
    desk = tcp_desk(rng)
    desk.script(Method.CONNECTION_BIND, silence)
    desk.client.connect(PEER, desk.now)
    desk.pass_time(31)
    assert "more than 30 s" in str(desk.last(PeerRefused).error)
    assert len(desk.open) == 1


def test_the_second_connection_speaks_something_else(rng: random.Random) -> None:
    desk = tcp_desk(rng)
    desk.script(Method.CONNECTION_BIND, lambda _: b"HTTP/1.1 400 Bad Request\r\n")
    desk.client.connect(PEER, desk.now)
    desk.run()
    assert "does not speak STUN" in str(desk.last(PeerRefused).error)


def test_closing_at_any_stage(rng: random.Random) -> None:
    for silent in (Method.CONNECT, Method.CONNECTION_BIND, None):
        desk = tcp_desk(rng)
        if silent is not None:
            desk.script(silent, silence)
        number = desk.client.connect(PEER, desk.now)
        desk.run()
        desk.client.close(number, reset=True)
        desk.run()
        if silent is None:
            assert desk.orders[-1] == Shut(2, reset=True)
        desk.pass_time(60)
        assert len(desk.open) == 1
        assert not desk.told(PeerClosed)
        assert not desk.told(PeerRefused)


def test_what_is_closed_too_early_is_completed_first(rng: random.Random) -> None:
    desk = tcp_desk(rng)
    first = desk.client.connect(PEER, desk.now)
    desk.client.close(first)
    desk.run()
    # The server's connection with the peer ends with ours; it would wait 30 s for a bind.
    assert desk.requests(Method.CONNECTION_BIND)
    assert desk.orders[-1] == Shut(2, reset=True)
    assert not desk.told(PeerConnected)
    # Who changes his mind gets what is on its way.
    first = desk.client.connect(PEER, desk.now)
    desk.client.close(first)
    second = desk.client.connect(PEER, desk.now)
    desk.run()
    assert second != first
    assert desk.told(PeerConnected) == [PeerConnected(second, PEER, incoming=False)]
    assert len(desk.requests(Method.CONNECT)) == 2


def test_a_peer_connects(rng: random.Random) -> None:
    desk = tcp_desk(rng, accept_limit=2)
    desk.say(attempt(rng, 17), handle=1)
    assert desk.told(PeerConnected) == [PeerConnected(1, PEER, incoming=True)]
    assert desk.requests(Method.CONNECTION_BIND)[0].get(CONNECTION_ID) == 17
    desk.say(attempt(rng, 18, Address("203.0.113.51", 1)), handle=1)
    desk.say(attempt(rng, 19, Address("203.0.113.52", 1)), handle=1)
    assert len(desk.told(PeerConnected)) == 2
    assert desk.client.drops[DropReason.RATE_LIMITED] == 1
    desk.client.close(1)
    desk.say(attempt(rng, 20, Address("203.0.113.53", 1)), handle=1)
    assert len(desk.told(PeerConnected)) == 3
    desk.say(Message.indication(Method.CONNECTION_ATTEMPT, rng.randbytes(12)), handle=1)
    assert desk.client.drops[DropReason.BAD_ATTRIBUTE_VALUE] == 1


def test_an_attempt_at_a_relay_of_datagrams(rng: random.Random) -> None:
    desk = Desk(rng, transport=Transport.TCP).allocate()
    desk.say(attempt(rng, 17), handle=1)
    assert desk.client.drops[DropReason.UNKNOWN_METHOD] == 1
    for command in (desk.client.send, desk.client.bind):
        tcp = tcp_desk(rng)
        arguments = (PEER, b"data", tcp.now) if command == desk.client.send else (PEER, tcp.now)
        with pytest.raises(UsageError, match="relays TCP"):
            getattr(tcp.client, command.__name__)(*arguments)


def test_flow_control(rng: random.Random) -> None:
    desk = tcp_desk(rng)
    number = desk.client.connect(PEER, desk.now)
    desk.run()
    desk.client.hold(number, True)
    assert desk.client.poll() == Hold(2, held=True)
    desk.client.hold(number, False)
    assert desk.client.poll() == Hold(2, held=False)
    desk.tell(Congested(2))
    desk.tell(Relieved(2))
    assert desk.told(PeerCongested) == [
        PeerCongested(number),
        PeerCongested(number, relieved=True),
    ]


@pytest.mark.parametrize("method", [Method.CONNECT, Method.CONNECTION_BIND])
def test_an_answer_that_knows_no_allocation(rng: random.Random, method: Method) -> None:
    desk = tcp_desk(rng)
    desk.script(method, error(437))
    desk.client.connect(PEER, desk.now)
    desk.run()
    assert desk.told(PeerRefused)
    assert desk.told(Lost)
    assert not desk.open


def test_connections_end_with_the_allocation(rng: random.Random) -> None:
    desk = tcp_desk(rng)
    number = desk.client.connect(PEER, desk.now)
    desk.run()
    desk.client.release(desk.now)
    desk.run()
    assert desk.last(PeerClosed).connection == number
    assert desk.told(Released)
    assert not desk.open
