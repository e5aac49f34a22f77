"""The TURN client machine against a server that is played by hand."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from stun.attributes import (
    ADDITIONAL_ADDRESS_FAMILY,
    ADDRESS_ERROR_CODE,
    CHANNEL_NUMBER,
    DATA,
    DONT_FRAGMENT,
    EVEN_PORT,
    ICMP,
    LIFETIME,
    MOBILITY_TICKET,
    NONCE,
    REQUESTED_ADDRESS_FAMILY,
    REQUESTED_TRANSPORT,
    RESERVATION_TOKEN,
    UNKNOWN_ATTRIBUTES,
    XOR_PEER_ADDRESS,
    AddressError,
    Icmp,
)
from stun.discovery import Transport
from stun.errors import Dropped, DropReason, UsageError
from stun.framing import channel_data
from stun.message import Message
from stun.registry import Family, Method
from stun.sansio import (
    SECOND,
    Address,
    Arrived,
    Cause,
    Closed,
    Congested,
    Dial,
    OpenUdp,
    Received,
    Relieved,
    Shut,
    Transmit,
    Undeliverable,
)
from tools.clientdesk import LOCAL, RELAYED, SERVER, Desk, error, silence, success
from turn.client.errors import (
    AllocationLost,
    AllocationMismatch,
    Forbidden,
    InsufficientCapacity,
    NotAuthenticated,
    NotSupported,
    QuotaReached,
    ServerUnreachable,
    TurnError,
    WrongCredentials,
)
from turn.client.events import (
    Allocated,
    Bound,
    Data,
    Failed,
    Lost,
    PeerRefused,
    PeerUnreachable,
    Permitted,
    Refreshed,
    Released,
    ServerCongested,
)
from turn.client.lifecycle import State

PEER = Address("203.0.113.50", 5000)
OTHER = Address("203.0.113.51", 5001)
TRANSPORTS = pytest.mark.parametrize("transport", [*Transport])


def data_indication(rng: random.Random, peer: Address, data: bytes | None) -> Message:
    message = Message.indication(Method.DATA, rng.randbytes(12)).add(XOR_PEER_ADDRESS, peer)
    return message if data is None else message.add(DATA, data)


# Allocating. --------------------------------------------------------------------------------------


@TRANSPORTS
def test_an_allocation(rng: random.Random, transport: Transport) -> None:
    desk = Desk(rng, transport=transport, lifetime=1200).allocate()
    assert desk.last(Allocated) == Allocated(
        (RELAYED,),
        Address("203.0.113.9", 1234),
        Address(LOCAL, 40000),
        600,
        desk.client.config.server,
    )
    (request,) = desk.requests(Method.ALLOCATE)
    assert request.get(REQUESTED_TRANSPORT) == 17
    assert request.get(LIFETIME) == 1200
    (order,) = desk.orders
    if transport is Transport.UDP:
        assert order == OpenUdp(1, Address("0.0.0.0", 0))
    else:
        name = "relay.example" if transport.is_secure else None
        datagrams = transport is Transport.DTLS
        assert order == Dial(1, Address("0.0.0.0", 0), SERVER, name, datagrams)
    assert desk.client.state is State.ALLOCATED


def test_what_is_asked_for(rng: random.Random) -> None:
    desk = Desk(rng, even_port=True, reserve_next=True, dont_fragment=True, family=6)
    desk.script(Method.ALLOCATE, error(508))
    desk.allocate()
    (request,) = desk.requests(Method.ALLOCATE)
    assert request.get(EVEN_PORT) is True
    assert request.has(DONT_FRAGMENT)
    assert request.get(REQUESTED_ADDRESS_FAMILY) == Family.IPV6
    assert not request.has(MOBILITY_TICKET)
    desk = Desk(rng, reservation_token=b"8 octets").allocate()
    assert desk.requests(Method.ALLOCATE)[0].get(RESERVATION_TOKEN) == b"8 octets"
    desk = Desk(rng, mobility=True).allocate()
    assert desk.requests(Method.ALLOCATE)[0].get(MOBILITY_TICKET) == b""
    assert not desk.last(Allocated).mobile  # a server that knows no tickets gives none


@pytest.mark.parametrize(
    "wrong",
    [
        {"reserve_next": True},
        {"reservation_token": b"short"},
        {"reservation_token": b"8 octets", "family": 4},
        {"reservation_token": b"8 octets", "even_port": True},
        {"family": "dual", "even_port": True, "reserve_next": True},
        {"tcp": True},
        {"tcp": True, "transport": Transport.DTLS},
        {"tcp": True, "transport": Transport.TCP, "dont_fragment": True},
        {"lifetime": 0},
        {"keepalive": 0},
        {"local": Address("::1", 0)},
    ],
)
def test_what_norms_do_not_allow(rng: random.Random, wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        Desk(rng, **wrong)


def test_a_dual_allocation(rng: random.Random) -> None:
    desk = Desk(rng, family="dual")
    desk.relayed = (RELAYED, Address("2001:db8::1", 50001))
    desk.allocate()
    assert desk.last(Allocated).relayed == desk.relayed
    (request,) = desk.requests(Method.ALLOCATE)
    assert request.get(ADDITIONAL_ADDRESS_FAMILY) == Family.IPV6
    # The number that coturn knows it by.
    assert (0x8032, b"\x02\0\0\0") in request.attributes


@pytest.mark.parametrize("number", [0x8001, 0x8033])
def test_a_family_that_was_refused(rng: random.Random, number: int) -> None:
    desk = Desk(rng, family="dual")

    def answer(request: Message) -> Message:
        message = desk._content(request)
        value = ADDRESS_ERROR_CODE.to_octets(AddressError(Family.IPV6, 440, "none here"))
        message.attributes.append((number, value))
        return message

    desk.script(Method.ALLOCATE, answer)
    desk.allocate()
    assert desk.last(Allocated).refused == AddressError(Family.IPV6, 440, "none here")


@pytest.mark.parametrize(
    ("code", "kind", "advice"),
    [
        (403, Forbidden, "policy"),
        (441, WrongCredentials, "other credentials"),
        (486, QuotaReached, "wait a minute"),
        (508, InsufficientCapacity, "wait a minute"),
        (500, TurnError, "500"),
    ],
)
def test_refusals(rng: random.Random, code: int, kind: type[TurnError], advice: str) -> None:
    desk = Desk(rng)
    desk.script(Method.ALLOCATE, error(code))
    desk.allocate()
    failed = desk.last(Failed)
    assert isinstance(failed.error, kind)
    text = str(failed.error)
    assert advice in text
    assert "192.0.2.1:3478 over UDP" in text
    assert str(code) in text
    assert desk.client.state is State.ENDED
    assert not desk.open
    assert desk.client.deadline() is None


def test_an_attribute_that_the_server_does_not_know(rng: random.Random) -> None:
    desk = Desk(rng, dont_fragment=True)
    unknown = [(UNKNOWN_ATTRIBUTES, (DONT_FRAGMENT.code,))]
    desk.script(Method.ALLOCATE, error(420, attributes=unknown))
    desk.allocate()
    refusal = desk.last(Failed).error
    assert isinstance(refusal, NotSupported)
    assert refusal.attributes == (DONT_FRAGMENT.code,)
    assert "DONT-FRAGMENT" in str(refusal)


def test_a_wrong_password(rng: random.Random) -> None:
    desk = Desk(rng)
    desk.key = b"another key"
    desk.allocate()
    refusal = desk.last(Failed).error
    assert isinstance(refusal, NotAuthenticated)
    assert "does not accept this username and password" in str(refusal)


def test_nobody_answers(rng: random.Random) -> None:
    desk = Desk(rng)
    desk.key = b""
    desk.script(Method.ALLOCATE, *[silence] * 10)
    desk.allocate()
    desk.pass_time(39)
    assert not desk.events
    desk.pass_time(1)
    assert isinstance(desk.last(Failed).error, ServerUnreachable)
    assert "TCP or TLS may pass" in str(desk.last(Failed).error)
    assert len(desk.sent) == 7


@pytest.mark.parametrize("cause", [Cause.REFUSED, Cause.TLS_FAILED])
def test_no_connection(rng: random.Random, cause: Cause) -> None:
    desk = Desk(rng, transport=Transport.TLS)
    desk.refused[SERVER.host] = cause
    desk.allocate()
    assert isinstance(desk.last(Failed).error, ServerUnreachable)
    assert cause.value in str(desk.last(Failed).error)
    assert "over TLS (relay.example)" in str(desk.last(Failed).error)


def test_a_connection_that_takes_too_long(rng: random.Random) -> None:
    desk = Desk(rng, transport=Transport.TCP)
    desk.client.allocate(desk.now)
    assert isinstance(desk.client.poll(), Dial)  # and nobody tells what became of it
    desk.pass_time(19)
    assert not desk.events
    desk.pass_time(1)
    assert "no connection within 20 s" in str(desk.last(Failed).error)
    assert desk.orders == [Shut(1)]


def test_a_port_that_the_server_still_knows(rng: random.Random) -> None:
    desk = Desk(rng, local=Address(LOCAL, 7000))
    desk.script(Method.ALLOCATE, error(437), error(437))
    desk.allocate()
    # Three different ports: the one that was asked for, then any.
    opened = [order.local for order in desk.orders if isinstance(order, OpenUdp)]
    assert opened == [Address(LOCAL, 7000), Address(LOCAL, 0), Address(LOCAL, 0)]
    assert len(desk.open) == 1
    assert desk.told(Allocated)
    desk = Desk(rng)
    desk.script(Method.ALLOCATE, *[error(437)] * 3)
    desk.allocate()
    assert isinstance(desk.last(Failed).error, AllocationMismatch)


def test_answers_that_are_of_no_use(rng: random.Random) -> None:
    desk = Desk(rng)
    desk.relayed = ()
    desk.allocate()
    assert "no relayed address" in str(desk.last(Failed).error)
    # RFC 8656 section 7.3: it "MUST delete the allocation".
    assert desk.requests(Method.REFRESH)[0].get(LIFETIME) == 0
    desk = Desk(rng, family=6).allocate()
    assert "where IPv6 was asked for" in str(desk.last(Failed).error)


def test_commands_out_of_season(rng: random.Random) -> None:
    desk = Desk(rng)
    for command in (
        lambda: desk.client.permit(PEER, now=desk.now),
        lambda: desk.client.bind(PEER, desk.now),
        lambda: desk.client.send(PEER, b"data", desk.now),
        lambda: desk.client.refresh(desk.now),
        lambda: desk.client.move(desk.now),
        lambda: desk.client.connect(PEER, desk.now),
    ):
        with pytest.raises(UsageError, match=r"there is no allocation \(idle\)"):
            command()
    desk.allocate()
    with pytest.raises(UsageError, match="allocated"):
        desk.client.allocate(desk.now)
    with pytest.raises(UsageError, match="no ticket"):
        desk.client.move(desk.now)
    with pytest.raises(UsageError, match="relays datagrams"):
        desk.client.connect(PEER, desk.now)


# Keeping it. --------------------------------------------------------------------------------------


def test_it_is_refreshed_a_minute_before_it_expires(rng: random.Random) -> None:
    desk = Desk(rng).allocate()
    desk.pass_time(539)
    assert not desk.told(Refreshed)
    desk.pass_time(1)
    assert desk.told(Refreshed) == [Refreshed(600)]
    desk.pass_time(3600 * 24)
    assert len(desk.told(Refreshed)) == 1 + 3600 * 24 // 540
    assert desk.client.state is State.ALLOCATED


@pytest.mark.parametrize(("lifetime", "first"), [(100, 50), (3600, 3540)])
def test_other_lifetimes(rng: random.Random, lifetime: int, first: int) -> None:
    desk = Desk(rng)
    desk.lifetime = lifetime
    desk.allocate()
    desk.pass_time(first - 1)
    assert not desk.told(Refreshed)
    desk.pass_time(1)
    assert desk.told(Refreshed)


def test_a_stale_nonce_and_another_realm(rng: random.Random) -> None:
    desk = Desk(rng).allocate()
    desk.nonce = b"second nonce"
    desk.client.permit(PEER, now=desk.now)
    desk.run()
    assert desk.told(Permitted) == [Permitted(PEER.host)]
    assert desk.requests(Method.CREATE_PERMISSION)[-1].get(NONCE) == b"second nonce"
    from stun.credentials import Profile, long_term_key

    desk.realm = "other.example"
    desk.key = long_term_key("user", "other.example", "secret", profile=Profile.SASLPREP)
    desk.client.refresh(desk.now)
    desk.run()
    assert desk.told(Refreshed) == [Refreshed(600)]


def test_a_refresh_that_is_refused(rng: random.Random) -> None:
    desk = Desk(rng).allocate()
    desk.script(Method.REFRESH, error(437))
    desk.pass_time(541)
    lost = desk.last(Lost)
    assert isinstance(lost.error, AllocationLost)
    assert isinstance(lost.error.cause, AllocationMismatch)
    assert not lost.again
    assert "allocate again" in str(lost.error)
    assert desk.last(Failed).error is lost.error
    assert not desk.open


def test_refreshes_that_nobody_answers(rng: random.Random) -> None:
    desk = Desk(rng).allocate()
    desk.script(Method.REFRESH, *[silence] * 100)
    desk.pass_time(599)
    assert desk.client.state is State.ALLOCATED
    desk.pass_time(2)
    assert "no Refresh was answered in time" in str(desk.last(Lost).error)


def test_a_server_error_while_refreshing_is_forgiven(rng: random.Random) -> None:
    desk = Desk(rng).allocate()
    desk.script(Method.REFRESH, error(500), error(508))
    desk.pass_time(560)
    assert desk.told(Refreshed) == [Refreshed(600)]
    assert not desk.told(Lost)


def test_an_icmp_error_makes_the_client_ask(rng: random.Random) -> None:
    desk = Desk(rng).allocate()
    unreachable = Undeliverable(next(iter(desk.open.values())), SERVER, 3, 3)
    desk.script(Method.REFRESH, error(437))
    desk.pass_time(1)
    desk.tell(unreachable)
    desk.pass_time(0)
    assert desk.told(Lost)


def test_it_is_made_again(rng: random.Random) -> None:
    desk = Desk(rng, allocate_again=True).allocate()
    desk.client.bind(PEER, desk.now)
    desk.client.permit(OTHER, now=desk.now)
    desk.run()
    desk.events.clear()
    desk.relayed = (Address("192.0.2.1", 60000),)
    desk.script(Method.REFRESH, error(437))
    desk.script(Method.ALLOCATE, error(508), silence, error(437))
    desk.client.refresh(desk.now)
    desk.run()
    assert desk.last(Lost).again
    desk.client.send(PEER, b"meanwhile", desk.now)  # waits for what is being made
    desk.pass_time(60)
    assert desk.last(Allocated).relayed == desk.relayed
    assert {permitted.host for permitted in desk.told(Permitted)} == {PEER.host, OTHER.host}
    assert desk.last(Bound).peer == PEER
    assert desk.requests(Method.SEND)[-1].get(DATA) == b"meanwhile"
    assert len(desk.open) == 1


def test_it_is_not_tried_for_ever(rng: random.Random) -> None:
    desk = Desk(rng, allocate_again=True).allocate()
    desk.script(Method.ALLOCATE, *[error(508)] * 100)
    desk.script(Method.REFRESH, error(437))
    desk.client.refresh(desk.now)
    desk.pass_time(300)
    assert isinstance(desk.last(Failed).error, InsufficientCapacity)
    assert len(desk.requests(Method.ALLOCATE)) == 1 + 7
    desk.scripts.clear()
    desk.allocate()  # a person may have put it right
    assert desk.client.state is State.ALLOCATED


@TRANSPORTS
def test_the_way_through_nats_is_kept_open(rng: random.Random, transport: Transport) -> None:
    desk = Desk(rng, transport=transport, keepalive=20).allocate()
    desk.client.bind(PEER, desk.now)
    desk.run()

    def kept() -> int:
        return sum(isinstance(m, Message) and m.method == Method.BINDING for m in desk.sent)

    desk.pass_time(100)
    reliable = transport in (Transport.TCP, Transport.TLS)
    assert kept() == (0 if reliable else 5)
    for _ in range(10):  # what is sent anyway does as well
        desk.client.send(PEER, b"data", desk.now)
        desk.pass_time(10)
    assert kept() == (0 if reliable else 5)
    desk.pass_time(20)
    assert kept() == (0 if reliable else 6)


# Giving it back. ----------------------------------------------------------------------------------


def test_release(rng: random.Random) -> None:
    desk = Desk(rng).allocate()
    desk.client.release(desk.now)
    desk.client.release(desk.now)
    desk.run()
    assert desk.told(Released) == [Released()]
    assert desk.requests(Method.REFRESH)[-1].get(LIFETIME) == 0
    assert not desk.open
    assert desk.client.deadline() is None


@pytest.mark.parametrize("answer", [error(437), silence])
def test_a_release_ends_whatever_the_server_says(rng: random.Random, answer: object) -> None:
    desk = Desk(rng).allocate()
    desk.script(Method.REFRESH, *[answer] * 5)  # type: ignore[list-item]
    desk.client.release(desk.now)
    desk.pass_time(2)
    assert desk.told(Released) == [Released()]


def test_a_release_before_the_answer_came(rng: random.Random) -> None:
    desk = Desk(rng)
    desk.script(Method.ALLOCATE, silence)
    desk.allocate()
    desk.client.release(desk.now)
    desk.run()
    assert not desk.told(Released)
    desk.pass_time(1)  # the retransmission is answered, and given back
    assert desk.requests(Method.REFRESH)[-1].get(LIFETIME) == 0
    assert desk.events == [Released()]
    desk = Desk(rng)
    desk.script(Method.ALLOCATE, *[silence] * 9)
    desk.allocate()
    desk.client.release(desk.now)
    desk.pass_time(2)
    assert desk.events == [Released()]


def test_abandoning(rng: random.Random) -> None:
    desk = Desk(rng).allocate()
    desk.script(Method.REFRESH, silence)
    desk.client.abandon(desk.now)
    desk.run()
    assert desk.requests(Method.REFRESH)[-1].get(LIFETIME) == 0
    assert not desk.open
    assert not desk.told(Released)
    assert desk.client.deadline() is None
    desk = Desk(rng)
    desk.client.abandon(desk.now)
    assert desk.client.poll() is None


def test_abandoning_what_the_server_may_have_granted(rng: random.Random) -> None:
    desk = Desk(rng)
    desk.script(Method.ALLOCATE, silence)  # after the challenge
    desk.allocate()
    assert not desk.events
    desk.client.abandon(desk.now)
    desk.run()
    asked, deleted = desk.requests(Method.ALLOCATE)[-1], desk.requests(Method.REFRESH)[-1]
    assert deleted.get(LIFETIME) == 0
    assert deleted.get(NONCE) == asked.get(NONCE) is not None, "it answers the challenge as well"
    assert not desk.open


# Datagrams. ---------------------------------------------------------------------------------------


@TRANSPORTS
@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 1199])
def test_datagrams_through_a_channel(rng: random.Random, transport: Transport, size: int) -> None:
    desk = Desk(rng, transport=transport).allocate()
    number = desk.client.bind(PEER, desk.now)
    desk.run()
    assert desk.last(Bound) == Bound(PEER, number)
    assert desk.told(Permitted) == [Permitted(PEER.host)]
    payload = rng.randbytes(size)
    desk.client.send(PEER, payload, desk.now)
    desk.run()
    assert desk.sent[-1] == channel_data(number, payload, pad=False)
    pad = transport in (Transport.TCP, Transport.TLS)
    handle = None if transport is Transport.UDP else 1
    desk.say(channel_data(number, payload, pad=pad), handle=handle)
    assert desk.told(Data) == [Data(PEER, payload)]


def test_channel_data_on_a_stream_is_padded(rng: random.Random) -> None:
    desk = Desk(rng, transport=Transport.TCP).allocate()
    number = desk.client.bind(PEER, desk.now)
    desk.run()
    desk.client.send(PEER, b"12345", desk.now)
    assert desk.client.poll().data == channel_data(number, b"12345", pad=True)
    desk = Desk(rng, transport=Transport.DTLS).allocate()
    number = desk.client.bind(PEER, desk.now)
    desk.run()
    desk.client.send(PEER, b"12345", desk.now)
    assert desk.client.poll().data == channel_data(number, b"12345", pad=False)


def test_a_stream_cut_anywhere(rng: random.Random) -> None:
    desk = Desk(rng, transport=Transport.TCP).allocate()
    number = desk.client.bind(PEER, desk.now)
    desk.run()
    from stun.codec import encode

    octets = channel_data(number, b"first", pad=True)
    octets += encode(data_indication(rng, PEER, b"second"))
    octets += channel_data(number, b"third", pad=True)
    for octet in octets:
        desk.say(bytes((octet,)), handle=1)
    assert [told.data for told in desk.told(Data)] == [b"first", b"second", b"third"]


@TRANSPORTS
def test_a_first_datagram_waits_for_its_permission(
    rng: random.Random, transport: Transport
) -> None:
    desk = Desk(rng, transport=transport, bind_after=3).allocate()
    desk.client.send(PEER, b"one", desk.now)
    assert desk.client.not_permitted == 0
    desk.run()
    assert [m.get(DATA) for m in desk.requests(Method.SEND)] == [b"one"]
    desk.client.send(PEER, b"two", desk.now)
    desk.client.send(PEER, b"three", desk.now)
    desk.client.send(PEER, b"four", desk.now)
    desk.run()
    # The third one (of those with a permission) asks for a channel; "four" does not wait for it.
    assert len(desk.requests(Method.SEND)) == 4
    desk.client.send(PEER, b"five", desk.now)
    desk.client.send(PEER, b"six", desk.now)
    desk.run()
    assert desk.last(Bound).peer == PEER
    assert desk.sent[-1] == channel_data(0x4000, b"six", pad=False)
    assert {message.get(XOR_PEER_ADDRESS) for message in desk.requests(Method.SEND)} == {PEER}


def test_without_a_permission(rng: random.Random) -> None:
    desk = Desk(rng, permit_on_send=False).allocate()
    with pytest.raises(UsageError, match=r"no permission for 203\.0\.113\.50"):
        desk.client.send(PEER, b"data", desk.now)
    desk = Desk(rng).allocate()
    desk.script(Method.CREATE_PERMISSION, silence)
    for number in range(20):
        desk.client.send(PEER, b"%d" % number, desk.now)
    desk.pass_time(1)
    assert [m.get(DATA) for m in desk.requests(Method.SEND)] == [b"%d" % n for n in range(4, 20)]
    assert desk.client.not_permitted == 4
    desk.script(Method.CREATE_PERMISSION, error(403))
    desk.client.send(OTHER, b"in vain", desk.now)
    desk.run()
    assert isinstance(desk.last(PeerRefused).error, Forbidden)
    assert desk.client.not_permitted == 5


def test_datagrams_that_must_not_be_fragmented(rng: random.Random) -> None:
    desk = Desk(rng, dont_fragment=True).allocate()
    desk.client.bind(PEER, desk.now)
    desk.run()
    desk.client.send(PEER, b"whole", desk.now, dont_fragment=True)
    desk.run()
    # ChannelData has no place for the flag.
    assert desk.requests(Method.SEND)[-1].has(DONT_FRAGMENT)


def test_too_long(rng: random.Random) -> None:
    desk = Desk(rng).allocate()
    desk.client.bind(PEER, desk.now)
    desk.run()
    with pytest.raises(UsageError):
        desk.client.send(PEER, bytes(1 << 16), desk.now)
    with pytest.raises(UsageError):
        desk.client.send(PEER, bytes(1 << 16), desk.now, dont_fragment=True)


def test_what_peers_send(rng: random.Random) -> None:
    desk = Desk(rng).allocate()
    desk.client.permit(PEER, now=desk.now)
    desk.run()
    desk.say(data_indication(rng, PEER, b"hello"))
    assert desk.told(Data) == [Data(PEER, b"hello")]
    desk.say(data_indication(rng, PEER, None).add(ICMP, Icmp(3, 4, 1400)))
    assert desk.told(PeerUnreachable) == [PeerUnreachable(PEER, 3, 4, 1400)]


def test_what_is_dropped(rng: random.Random) -> None:
    desk = Desk(rng).allocate()
    desk.client.bind(PEER, desk.now)
    desk.run()
    desk.events.clear()
    local = next(iter(desk.open.values()))
    stranger = Address("198.51.100.99", 3478)
    desk.client.receive(Received(channel_data(0x4000, b"x", pad=False), stranger, local), desk.now)
    for octets in (
        b"",
        b"\x40",
        b"\x40\x00\x00\x05four",
        b"\x4f\xff\x00\x00",
        b"\x80" * 30,
        b"\x00\x01\x00\x00" + bytes(16),
    ):
        desk.say(octets)
    desk.say(data_indication(rng, OTHER, b"from nobody"))
    desk.say(data_indication(rng, PEER, None))
    desk.say(Message.indication(Method.DATA, rng.randbytes(12)))
    desk.say(Message.indication(Method.BINDING, rng.randbytes(12)))
    desk.run()
    assert desk.client.drops == Counter(
        {
            DropReason.UNEXPECTED_SOURCE: 1,
            DropReason.TOO_SHORT: 2,
            DropReason.LENGTH_MISMATCH: 1,
            DropReason.UNKNOWN_STREAM: 2,
            DropReason.UNEXPECTED_CLASS: 1,
            DropReason.REFUSED_BY_POLICY: 1,
            DropReason.BAD_ATTRIBUTE_VALUE: 2,
            DropReason.UNKNOWN_METHOD: 1,
        }
    )
    assert all(isinstance(event, Dropped) for event in desk.events)
    assert desk.client.state is State.ALLOCATED


def test_a_stream_that_speaks_something_else(rng: random.Random) -> None:
    desk = Desk(rng, transport=Transport.TCP).allocate()
    desk.say(b"\x16\x03\x01\x00\x2a and so on", handle=1)
    assert isinstance(desk.last(Lost).error, AllocationLost)
    assert "does not speak STUN" in str(desk.last(Lost).error)
    assert not desk.open


def test_dtls_has_whole_datagrams(rng: random.Random) -> None:
    desk = Desk(rng, transport=Transport.DTLS).allocate()
    desk.say(bytes(10), handle=1)
    desk.say(b"\x00\x01\x00\x08" + bytes(17), handle=1)
    assert desk.client.drops[DropReason.LENGTH_MISMATCH] == 2
    # What was damaged is gone; what follows is not.
    desk.client.permit(PEER, now=desk.now)
    desk.run()
    assert desk.told(Permitted)


def test_dtls_retransmits(rng: random.Random) -> None:
    desk = Desk(rng, transport=Transport.DTLS).allocate()
    desk.script(Method.CREATE_PERMISSION, silence)
    desk.client.permit(PEER, now=desk.now)
    desk.pass_time(1)
    assert len(desk.requests(Method.CREATE_PERMISSION)) == 2
    assert desk.told(Permitted)


def test_a_congested_connection_drops(rng: random.Random) -> None:
    desk = Desk(rng, transport=Transport.TCP).allocate()
    desk.client.bind(PEER, desk.now)
    desk.run()
    before = len(desk.sent)
    desk.tell(Congested(1))
    desk.client.send(PEER, b"dropped", desk.now)
    desk.run()
    assert len(desk.sent) == before
    assert desk.client.congestion_drops == 1
    desk.tell(Relieved(1))
    desk.client.send(PEER, b"sent", desk.now)
    desk.run()
    assert len(desk.sent) == before + 1
    assert desk.told(ServerCongested) == [ServerCongested(), ServerCongested(relieved=True)]


@pytest.mark.parametrize("transport", [Transport.TCP, Transport.TLS, Transport.DTLS])
def test_a_connection_that_closes(rng: random.Random, transport: Transport) -> None:
    desk = Desk(rng, transport=transport).allocate()
    desk.tell(Closed(1, Cause.RESET))
    assert "reset by the peer" in str(desk.last(Lost).error)
    assert desk.client.state is State.ENDED


def test_the_packet_path_makes_one_order_a_packet(rng: random.Random) -> None:
    desk = Desk(rng).allocate()
    desk.client.bind(PEER, desk.now)
    desk.run()
    desk.client.send(PEER, b"data", desk.now)
    expected = Transmit(b"\x40\x00\x00\x04data", SERVER, next(iter(desk.open.values())))
    assert desk.client.poll() == expected
    assert desk.client.poll() is None


def test_an_early_deadline_does_nothing(rng: random.Random) -> None:
    desk = Desk(rng, keepalive=None).allocate()
    desk.client.permit(PEER, now=desk.now)
    desk.run()
    sent = len(desk.sent)
    for seconds in range(200):
        desk.client.on_deadline(desk.now + seconds * SECOND)
        assert desk.client.poll() is None
    assert len(desk.sent) == sent


def test_events_of_sockets_that_are_gone(rng: random.Random) -> None:
    desk = Desk(rng, transport=Transport.TCP).allocate()
    desk.client.release(desk.now)
    desk.run()
    desk.events.clear()
    for event in (Arrived(1, b"late"), Closed(1, Cause.RESET), Congested(77)):
        desk.tell(event)
    assert not desk.events


@pytest.mark.parametrize(
    ("transport", "tcp"),
    [*((one, False) for one in Transport), (Transport.TCP, True), (Transport.TLS, True)],
)
def test_whatever_comes_nothing_raises(rng: random.Random, transport: Transport, tcp: bool) -> None:
    from stun.codec import encode

    good = [
        encode(data_indication(rng, PEER, b"payload")),
        encode(data_indication(rng, PEER, None).add(ICMP, Icmp(3, 4, 1400))),
        channel_data(0x4000, b"payload", pad=True),
        encode(Message.indication(Method.CONNECTION_ATTEMPT, rng.randbytes(12))),
        encode(Message.request(Method.ALLOCATE, rng.randbytes(12))),
    ]
    for _ in range(300):
        desk = Desk(rng, transport=transport, tcp=tcp).allocate()
        handle = None if transport is Transport.UDP else 1
        if tcp:
            desk.client.connect(PEER, desk.now)
        else:
            desk.client.bind(PEER, desk.now)
        desk.run()
        octets = bytearray(rng.choice(good))
        for _ in range(rng.randrange(4)):
            octets[rng.randrange(len(octets))] = rng.randrange(256)
        desk.say(bytes(octets[: rng.randrange(len(octets) + 1)]), handle=handle)
        desk.pass_time(1)


def test_a_success_without_a_lifetime(rng: random.Random) -> None:
    desk = Desk(rng).allocate()
    desk.script(Method.REFRESH, success())
    desk.client.refresh(desk.now)
    desk.run()
    assert desk.told(Refreshed) == [Refreshed(600)]
    desk.script(Method.REFRESH, success((LIFETIME, 0)))
    desk.client.refresh(desk.now)
    desk.run()
    assert "the server ended it" in str(desk.last(Lost).error)


def test_channel_numbers_are_told_apart(rng: random.Random) -> None:
    desk = Desk(rng).allocate()
    first = desk.client.bind(PEER, desk.now)
    second = desk.client.bind(OTHER, desk.now)
    desk.run()
    assert (first, second) == (0x4000, 0x4001)
    numbers = [m.get(CHANNEL_NUMBER) for m in desk.requests(Method.CHANNEL_BIND)]
    assert numbers == [first, second]
    desk.say(channel_data(second, b"other", pad=False))
    assert desk.told(Data) == [Data(OTHER, b"other")]
