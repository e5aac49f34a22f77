"""The server machine: what it opens, what it says over connections, and what it limits."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import product
from typing import Any

import pytest

from stun.attributes import (
    CONNECT_BACK,
    CONNECT_BACK_RESULT,
    OTHER_ADDRESS,
    RESPONSE_ORIGIN,
    SOFTWARE,
    XOR_MAPPED_ADDRESS,
    ConnectBack,
    ConnectBackResult,
)
from stun.codec import Message, decode, encode
from stun.discovery import Transport
from stun.errors import DropReason, UsageError
from stun.integrity import check_fingerprint
from stun.registry import Class, Method
from stun.responder import Endpoint
from stun.sansio import (
    MILLISECOND,
    SECOND,
    Accepted,
    Address,
    Arrived,
    Cause,
    Closed,
    Connected,
    Dial,
    Handle,
    Instant,
    Listen,
    Opened,
    OpenUdp,
    Received,
    Shut,
    Transmit,
    Undeliverable,
    Write,
)
from stun.server import (
    CannotServe,
    Server,
    ServerConfig,
    Serving,
    Site,
    Started,
)

A, B = "192.0.2.1", "198.51.100.1"
A_P, B_Q = Address(A, 3478), Address(B, 3479)
GRID = {Address(host, port) for host, port in product((A, B), (3478, 3479))}
CLIENT = Address("203.0.113.5", 54321)
BOTH = ServerConfig(A_P, B_Q)
SILENT = 50_000


class Served:
    """A server, with the driver's part played by hand."""

    def __init__(self, config: ServerConfig, rng: random.Random) -> None:
        self.server = Server(config, entropy=rng.randbytes)
        self.now: Instant = 1000 * SECOND
        self.told: list[Any] = []
        self.places: dict[Handle, OpenUdp | Listen] = {}
        self.accepted = 0

    def drain(self) -> list[Any]:
        """Return what the server ordered and told since the last time."""
        drained = []
        while (output := self.server.poll()) is not None:
            drained.append(output)
        return drained

    def start(self, *, failing: frozenset[Address] = frozenset(), silence: bool = True) -> Served:
        self.server.start(self.now)
        silent = SILENT
        for order in self.drain():
            self.places[order.handle] = order
            local = order.local
            if local.port == 0:
                local, silent = Address(local.host, silent), silent + 1
            if order.local in failing or (isinstance(order, Listen) and order.silent > silence):
                event: Any = Closed(order.handle, Cause.ADDRESS_IN_USE, "in use")
            else:
                event = Opened(order.handle, local)
            self.server.on_socket(event, self.now)
        self.told = self.drain()
        return self

    def datagram(self, message: Message | bytes, to: Address = A_P) -> list[Any]:
        octets = message if isinstance(message, bytes) else encode(message)
        self.server.receive(Received(octets, CLIENT, to), self.now)
        return self.drain()

    def connect(self, to: Address = A_P, remote: Address = CLIENT) -> Handle:
        self.accepted += 1
        listener = next(
            handle
            for handle, order in self.places.items()
            if isinstance(order, Listen) and order.local.port == to.port
        )
        self.server.on_socket(Accepted(listener, -self.accepted, to, remote), self.now)
        return -self.accepted

    def say(self, handle: Handle, *messages: Message | bytes) -> list[Any]:
        octets = [m if isinstance(m, bytes) else encode(m) for m in messages]
        self.server.on_socket(Arrived(handle, b"".join(octets)), self.now)
        return self.drain()

    def pass_time(self, duration: Instant) -> list[Any]:
        """Let the time pass, with a stop at each deadline."""
        end, drained = self.now + duration, []
        while (due := self.server.deadline()) is not None and due <= end:
            self.now = max(self.now, due)
            self.server.on_deadline(self.now)
            drained += self.drain()
        self.now = end
        return drained


@pytest.fixture
def served(rng: random.Random) -> Served:
    return Served(BOTH, rng).start()


def binding(*attributes: tuple[Any, Any]) -> Message:
    message = Message.request(Method.BINDING, bytes(range(12)))
    for attribute, value in attributes:
        message.add(attribute, value)
    return message


def written(outputs: list[Any], handle: Handle) -> list[Message]:
    return [
        decode(output.data)
        for output in outputs
        if isinstance(output, Write) and output.handle == handle
    ]


# Opening. -----------------------------------------------------------------------------------------


def test_a_pair_of_ports_on_each_address_for_each_transport(served: Served) -> None:
    udp = {order.local for order in served.places.values() if isinstance(order, OpenUdp)}
    tcp = [order for order in served.places.values() if isinstance(order, Listen)]
    assert udp == GRID
    assert {order.local for order in tcp if not order.silent} == GRID
    assert {order.local for order in tcp if order.silent} == {Address(A, 0), Address(B, 0)}
    serving = [event for event in served.told if isinstance(event, Serving)]
    assert {(event.transport, event.local) for event in serving} == set(
        product((Transport.UDP, Transport.TCP), GRID)
    )
    assert served.told[-1] == Started()


def test_two_families_at_once(rng: random.Random) -> None:
    six = Site(Address("2001:db8:a::1", 3478), Address("2001:db8:b::1", 3479))
    served = Served(replace(BOTH, more=(six,)), rng).start()
    assert len([event for event in served.told if isinstance(event, Serving)]) == 16
    client = Address("2001:db8:c::1", 5)
    served.server.receive(Received(encode(binding()), client, six.primary), served.now)
    (sent,) = served.drain()
    response = decode(sent.data)
    assert response.get(XOR_MAPPED_ADDRESS) == client
    assert response.get(OTHER_ADDRESS) == six.alternate
    (sent,) = served.datagram(binding())
    assert decode(sent.data).get(OTHER_ADDRESS) == B_Q


def test_tls_has_ports_of_its_own(rng: random.Random) -> None:
    served = Served(replace(BOTH, tls_ports=(5349, 5350)), rng).start()
    tls = [event.local for event in served.told if getattr(event, "transport", "") == "TLS"]
    assert set(tls) == {Address(h, p) for h, p in product((A, B), (5349, 5350))}
    handle = served.connect(Address(A, 5349))
    (response,) = written(served.say(handle, binding()), handle)
    assert response.get(OTHER_ADDRESS) == Address(B, 5350)


def test_while_one_of_the_four_is_missing_no_other_address_is_told(rng: random.Random) -> None:
    # RFC 5780 section 6: "MUST NOT include an OTHER-ADDRESS attribute in any Response".
    served = Served(BOTH, rng).start(failing=frozenset({B_Q}))
    failures = [event for event in served.told if isinstance(event, CannotServe)]
    assert {(event.transport, event.local) for event in failures} == {
        (Transport.UDP, B_Q),
        (Transport.TCP, B_Q),
    }
    assert failures[0].cause is Cause.ADDRESS_IN_USE
    (sent,) = served.datagram(binding())
    assert not decode(sent.data).has(OTHER_ADDRESS)
    assert served.told[-1] == Started()


def test_each_transport_has_its_own_grid(rng: random.Random) -> None:
    served = Served(replace(BOTH, tcp=False), rng).start()
    assert not any(isinstance(order, Listen) for order in served.places.values())
    (sent,) = served.datagram(binding())
    assert decode(sent.data).get(OTHER_ADDRESS) == B_Q


@pytest.mark.parametrize(
    "config",
    [
        ServerConfig(A_P, Address(A, 3479)),
        ServerConfig(A_P, Address(B, 3478)),
        ServerConfig(A_P, Address("2001:db8::1", 3479)),
        ServerConfig(Address(A, 0), B_Q),
        ServerConfig(A_P, B_Q, more=(Site(Address("::1", 1), Address("::2", 1)),)),
        ServerConfig(A_P, B_Q, tls_ports=(3478, 5349)),
        ServerConfig(A_P, tls_ports=(5349, 5349)),
    ],
)
def test_what_cannot_be_served_is_refused(config: ServerConfig, rng: random.Random) -> None:
    with pytest.raises(UsageError):
        Server(config, entropy=rng.randbytes)


def test_it_starts_once(served: Served) -> None:
    with pytest.raises(UsageError):
        served.server.start(served.now)


def test_a_wildcard_answers_from_the_address_that_was_asked(rng: random.Random) -> None:
    served = Served(
        ServerConfig(Address("0.0.0.0", 3478), advertised={A: "192.31.196.10"}), rng
    ).start()
    (sent,) = served.datagram(binding(), to=A_P)
    assert sent.source == A_P
    assert decode(sent.data).get(RESPONSE_ORIGIN) == Address("192.31.196.10", 3478)
    assert served.datagram(binding(), to=Address(A, 9)) == []


# Datagrams. ---------------------------------------------------------------------------------------


def test_a_whole_local_prefix_behind_a_wildcard_costs_no_more_memory(
    rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stun.server.MOST_ENDPOINTS", 3)
    served = Served(ServerConfig(Address("0.0.0.0", 3478), tcp=False), rng).start()
    made: list[Address] = []

    def describe(local: Address, advertised: Address) -> Endpoint:
        made.append(local)
        return Endpoint(local, advertised)

    monkeypatch.setattr("stun.server.Endpoint", describe)
    asked = [Address(f"127.0.0.{n}", 3478) for n in (1, 2, 3, 1, 2, 3)]
    for local in asked:
        (answer,) = served.datagram(binding(), to=local)
        assert answer.source == local
    # The first two are remembered beside the wildcard; the third is made each time.
    assert [local.host for local in made] == ["127.0.0.1", "127.0.0.2", "127.0.0.3", "127.0.0.3"]


def test_discards_are_counted_and_not_queued(served: Served) -> None:
    for n in range(1000):
        assert served.datagram(bytes([0x80]) * (20 + n % 7)) == []
    assert served.server.drops == {DropReason.NOT_STUN: 1000}
    assert served.server.counters["dropped: the first two bits are not zero"] == 1000


def test_indications_and_icmp_are_counted(served: Served) -> None:
    assert served.datagram(Message.indication(Method.BINDING, bytes(12))) == []
    served.server.on_socket(Undeliverable(A_P, CLIENT, 3, 3), served.now)
    assert served.drain() == []
    assert served.server.counters["indications"] == 1


# Connections. -------------------------------------------------------------------------------------


def test_requests_over_a_connection_cut_anywhere(served: Served) -> None:
    octets = encode(binding((SOFTWARE, "x")), fingerprint=True) * 2
    for cut in range(len(octets)):
        handle = served.connect()
        outputs = served.say(handle, octets[:cut]) + served.say(handle, octets[cut:])
        responses = written(outputs, handle)
        assert len(responses) == len(outputs) == 2
        for response in responses:
            assert response.get(XOR_MAPPED_ADDRESS) == CLIENT
            assert response.get(RESPONSE_ORIGIN) == A_P
            assert check_fingerprint(response) is True
        served.server.on_socket(Closed(handle, Cause.END_OF_STREAM), served.now)
    assert served.server.counters["connections open"] == 0


def test_a_connection_that_is_no_stun_is_closed(served: Served) -> None:
    handle = served.connect()
    outputs = served.say(handle, binding(), b"GET / HTTP/1.1\r\n\r\n")
    assert len(written(outputs, handle)) == 1
    assert outputs[-1] == Shut(handle)
    assert sum(served.server.drops.values()) == 1
    assert served.say(handle, binding()) == []


def test_an_endless_message_is_not_awaited(served: Served) -> None:
    handle = served.connect()
    assert served.say(handle, b"\x00\x01\xff\xfc\x21\x12\xa4\x42" + bytes(12)) == [Shut(handle)]
    assert served.server.drops == {DropReason.TOO_LONG: 1}


def test_messages_that_ask_nothing_are_counted(served: Served) -> None:
    handle = served.connect()
    outputs = served.say(
        handle,
        Message.indication(Method.BINDING, bytes(12)),
        Message.success(binding()),
        bytes.fromhex("000100042112a442") + bytes(12) + bytes.fromhex("ffff0008"),
        binding(),
    )
    assert len(written(outputs, handle)) == len(outputs) == 1
    assert served.server.drops == {
        DropReason.UNEXPECTED_CLASS: 1,
        DropReason.ATTRIBUTE_OVERRUN: 1,
    }


def test_an_idle_connection_is_closed_and_a_busy_one_is_not(served: Served) -> None:
    busy, idle = served.connect(), served.connect()
    outputs = served.pass_time(40 * SECOND)
    served.say(busy, binding())
    outputs += served.pass_time(30 * SECOND)
    assert outputs == [Shut(idle)]
    # Octets that make no message do not keep a connection open.
    served.say(busy, b"\x00")
    outputs = served.pass_time(30 * SECOND)
    assert outputs == [Shut(busy)]
    assert served.server.deadline() is None


def test_connections_are_limited_per_source_and_in_all(rng: random.Random) -> None:
    config = replace(BOTH, connections=3, connections_per_source=2)
    served = Served(config, rng).start()
    first, second, third = (served.connect() for _ in range(3))
    assert served.drain() == [Shut(third, reset=True)]
    other = Address("203.0.113.6", 1)
    served.connect(remote=other)
    assert served.drain() == []
    full = served.connect(remote=other)
    assert served.drain() == [Shut(full, reset=True)]
    assert served.server.drops == {DropReason.REFUSED_BY_POLICY: 2}
    served.server.on_socket(Closed(first, Cause.RESET), served.now)
    served.connect()
    assert served.drain() == []
    assert served.say(second, binding())


def test_a_source_is_the_whole_64_of_an_ipv6_address(rng: random.Random) -> None:
    # Who has one address of it has them all.
    config = replace(BOTH, connections_per_source=2)
    served = Served(config, rng).start()
    first, second, third = (
        served.connect(remote=Address(f"2001:db8:1:2:{n}::9", 1000)) for n in range(3)
    )
    assert served.drain() == [Shut(third, reset=True)]
    served.connect(remote=Address("2001:db8:1:3::9", 1000))
    assert served.drain() == []
    for handle in (first, second):
        served.server.on_socket(Closed(handle, Cause.RESET), served.now)
    served.connect(remote=Address("2001:db8:1:2::9", 1000))
    assert served.drain() == []


def test_a_source_that_asks_without_end_is_cut_off(rng: random.Random) -> None:
    served = Served(replace(BOTH, message_rate=10, message_burst=5), rng).start()
    hasty, second = served.connect(), served.connect()
    other = served.connect(remote=Address("203.0.113.6", 1))
    *answers, end = served.say(hasty, *(binding() for _ in range(9)))
    assert [type(answer) for answer in answers] == [Write] * 5
    assert end == Shut(hasty, reset=True)
    assert served.server.drops == {DropReason.RATE_LIMITED: 1}
    assert len(served.say(other, binding())) == 1
    # The budget is that of the source, and what counts is messages, answered or not.
    assert served.say(second, Message.indication(Method.BINDING, bytes(12))) == [
        Shut(second, reset=True)
    ]
    third = served.connect()
    served.pass_time(SECOND // 5)
    assert len(served.say(third, binding(), binding())) == 2


# CONNECT-BACK, as a client sees it. ---------------------------------------------------------------


def ask_back(
    served: Served, handle: Handle, kind: int, count: int = 2
) -> tuple[ConnectBack, list[Any]]:
    wanted = ConnectBack(kind, count, 100, 400, 0)
    outputs = served.say(handle, binding((CONNECT_BACK, wanted)))
    (response,) = written(outputs, handle)
    assert response.has(XOR_MAPPED_ADDRESS)
    granted = response.get(CONNECT_BACK)
    assert granted is not None
    return granted, outputs


def dials(outputs: list[Any]) -> list[Dial]:
    return [output for output in outputs if isinstance(output, Dial)]


def results(outputs: list[Any], handle: Handle) -> list[ConnectBackResult]:
    found = []
    for message in written(outputs, handle):
        assert message.message_class is Class.INDICATION
        value = message.get(CONNECT_BACK_RESULT)
        assert value is not None
        found.append(value)
    return found


@pytest.mark.parametrize(
    ("kind", "local"), [(1, Address(A, 0)), (2, Address(B, 0)), (3, Address(A, SILENT))]
)
def test_dials_come_from_where_the_kind_says_and_go_to_the_source_only(
    served: Served, kind: int, local: Address
) -> None:
    handle = served.connect()
    granted, _ = ask_back(served, handle, kind)
    number = 1 if kind == 3 else 2
    assert granted == ConnectBack(kind, number, 100, 400, SILENT if kind == 3 else 0)
    dialled = dials(served.pass_time(300 * MILLISECOND))
    assert [(dial.local, dial.remote) for dial in dialled] == [(local, CLIENT)] * number


def test_dials_from_the_other_side_of_the_grid(served: Served) -> None:
    handle = served.connect(B_Q)
    ask_back(served, handle, 2, count=1)
    assert dials(served.pass_time(SECOND))[0].local == Address(A, 0)
    other = served.connect(B_Q, Address("203.0.113.9", 9))
    granted, _ = ask_back(served, other, 3)
    assert granted.port == SILENT + 1


def test_without_an_alternate_or_silence_these_kinds_are_not_granted(rng: random.Random) -> None:
    alone = Served(ServerConfig(A_P), rng).start()
    handle = alone.connect()
    assert ask_back(alone, handle, 2)[0].count == 0
    loud = Served(BOTH, rng).start(silence=False)
    handle = loud.connect()
    assert ask_back(loud, handle, 3)[0] == ConnectBack(3, 0, 100, 400, 0)
    assert ask_back(loud, handle, 1)[0].count == 2


@pytest.mark.parametrize("kind", [0, 4, 255])
def test_kinds_that_nobody_knows_are_not_granted(served: Served, kind: int) -> None:
    granted, _ = ask_back(served, served.connect(), kind)
    assert granted.count == 0
    assert served.pass_time(10 * SECOND) == []


def test_a_server_that_must_not_dial_says_nothing_of_it(rng: random.Random) -> None:
    served = Served(replace(BOTH, connect_back=False), rng).start()
    handle = served.connect()
    (response,) = written(
        served.say(handle, binding((CONNECT_BACK, ConnectBack(1, 1, 0, 0, 0)))), handle
    )
    assert response.message_class is Class.SUCCESS
    assert not response.has(CONNECT_BACK)
    assert not any(getattr(order, "silent", False) for order in served.places.values())


def test_connect_back_over_udp_is_ignored(served: Served) -> None:
    (sent,) = served.datagram(binding((CONNECT_BACK, ConnectBack(1, 8, 0, 0, 0))))
    assert isinstance(sent, Transmit)
    assert not decode(sent.data).has(CONNECT_BACK)
    assert served.pass_time(SECOND) == []


def test_a_malformed_connect_back_is_as_none(served: Served) -> None:
    handle = served.connect()
    asked = binding()
    asked.attributes.append((CONNECT_BACK.code, b"x"))
    (response,) = written(served.say(handle, asked), handle)
    assert response.message_class is Class.SUCCESS
    assert not response.has(CONNECT_BACK)


def test_the_result_comes_over_the_connection_that_asked(served: Served) -> None:
    handle = served.connect()
    ask_back(served, handle, 1)
    one, two = dials(served.pass_time(200 * MILLISECOND))
    local = Address(A, 40_001)
    served.server.on_socket(Connected(one.handle, local, CLIENT), served.now)
    (greeting,) = written(served.drain(), one.handle)
    assert greeting.message_class is Class.INDICATION
    assert greeting.get(RESPONSE_ORIGIN) == local
    served.server.on_socket(Closed(two.handle, Cause.REFUSED), served.now)
    assert results(served.drain(), handle) == [ConnectBackResult(1, 1, 1, 0, 0, 0)]


def test_when_the_connection_ends_its_dials_are_abandoned(served: Served) -> None:
    handle = served.connect()
    ask_back(served, handle, 1, count=8)
    dialled = dials(served.pass_time(220 * MILLISECOND))
    assert len(dialled) == 3
    served.server.on_socket(Closed(handle, Cause.END_OF_STREAM), served.now)
    assert set(served.drain()) == {Shut(dial.handle, reset=True) for dial in dialled}
    assert served.pass_time(60 * SECOND) == []
    assert served.server.deadline() is None
