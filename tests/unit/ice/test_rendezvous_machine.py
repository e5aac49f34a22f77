"""The rendezvous machine without sockets: the other end is the library's client, octet by octet."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from websockets.client import ClientProtocol
from websockets.frames import CloseCode, Frame, Opcode
from websockets.uri import parse_uri

from ice.rendezvous.hall import Hall
from ice.rendezvous.machine import (
    HANDSHAKE,
    HANDSHAKES,
    SLUGGISH,
    CannotServe,
    Rendezvous,
    Serving,
)
from ice.rendezvous.names import Member, Names
from ice.rendezvous.protocol import (
    MAX_DATA,
    MAX_TEXT,
    Error,
    Gone,
    Join,
    Joined,
    Message,
    Peer,
    Welcome,
    from_server,
)
from ice.rendezvous.terms import Claim, Release, Terms
from ice.rendezvous.web import forwarded_client
from stun.sansio import (
    SECOND,
    Accepted,
    Address,
    Arrived,
    Cause,
    Closed,
    Congested,
    Hold,
    Listen,
    Opened,
    Received,
    Relieved,
    Shut,
    Write,
)
from stun.streams import Networks

LOCAL = Address("198.51.100.1", 8080)
TERMS = Terms(connects=0, joins=0, messages=0, octets=0)


class Stage:
    """A machine, its book of names, and the streams to it."""

    def __init__(self, rng: random.Random, **options: Any) -> None:
        self.now = SECOND
        self.names = Names(entropy=rng.randbytes)
        hall = Hall(TERMS, entropy=rng.randbytes)
        self.machine = Rendezvous(hall, **options)
        self.told: list[Any] = []
        self.out: dict[int, bytes] = {}
        self.shut: set[int] = set()
        self.held: list[tuple[int, bool]] = []
        self.listening: dict[int, Address] = {}
        self.last = 0

    def run(self) -> None:
        hall = self.machine.hall
        while (output := self.machine.poll()) is not None:
            match output:
                case Write(handle, data):
                    assert handle not in self.shut
                    self.out[handle] += data
                case Shut(handle):
                    self.shut.add(handle)
                    self.listening.pop(handle, None)
                case Hold(handle, held):
                    self.held.append((handle, held))
                case Listen(handle, local):
                    self.listening[handle] = local
                case Claim(client, name):
                    outcome = self.names.claim(name, Member(hall.name, client), self.now)
                    hall.claimed(client, outcome, self.now)
                case Release(client, name):
                    self.names.release(name, Member(hall.name, client), self.now)
                case _:
                    self.told.append(output)

    def tell(self, event: Any) -> None:
        self.machine.on_socket(event, self.now)
        self.run()

    def stream(self, host: str = "192.0.2.7") -> int:
        self.last -= 1
        self.out[self.last] = b""
        self.tell(Accepted(1, self.last, LOCAL, Address(host, 40000)))
        return self.last

    def put(self, handle: int, data: bytes) -> bytes:
        """Send octets; return what comes back."""
        self.tell(Arrived(handle, data))
        return self.take(handle)

    def take(self, handle: int) -> bytes:
        came, self.out[handle] = self.out[handle], b""
        return came

    def sleep(self, nanoseconds: int) -> None:
        self.now += nanoseconds
        self.machine.on_deadline(self.now)
        self.run()

    def client(self, **options: Any) -> Client:
        return Client(self, self.stream(options.pop("host", "192.0.2.7")), **options)


class Client:
    """The library's client on one stream."""

    def __init__(
        self, stage: Stage, handle: int, *, headers: dict[str, str] | None = None, bite: int = 0
    ) -> None:
        self.stage, self.handle, self.bite = stage, handle, bite
        self.web = ClientProtocol(parse_uri("ws://here/"), max_size=None)
        request = self.web.connect()
        request.headers.update(headers or {})
        self.web.send_request(request)
        self.frames: list[Frame] = []
        self.flush()

    def flush(self) -> None:
        data = b"".join(self.web.data_to_send())
        size = self.bite or len(data) or 1
        for start in range(0, len(data), size):
            self.stage.tell(Arrived(self.handle, data[start : start + size]))
        self.read()

    def read(self) -> None:
        data = self.stage.take(self.handle)
        if data:
            self.web.receive_data(data)
        self.frames += [e for e in self.web.events_received() if isinstance(e, Frame)]

    def say(self, message: Any) -> None:
        self.web.send_text((message if isinstance(message, str) else message.encode()).encode())
        self.flush()

    def hears(self) -> list[Any]:
        self.read()
        frames, self.frames = self.frames, []
        return [from_server(f.data) for f in frames if f.opcode is Opcode.TEXT]


@pytest.fixture
def stage(rng: random.Random) -> Stage:
    return Stage(rng)


@pytest.fixture
def pair(stage: Stage) -> tuple[Client, Client]:
    first, second = stage.client(), stage.client()
    first.say(Join("a", b"first"))
    second.say(Join("a", b"second"))
    first.hears(), second.hears()
    return first, second


# WebSockets. --------------------------------------------------------------------------------------


@pytest.mark.parametrize("bite", [0, 1, 7])
def test_two_meet_however_the_octets_are_cut(stage: Stage, bite: int) -> None:
    first, second = stage.client(bite=bite), stage.client(bite=bite)
    first.say(Join(None, b"first"))
    welcome, joined = first.hears()
    assert isinstance(welcome, Welcome)
    assert welcome.observed == Address("192.0.2.7", 40000)
    assert isinstance(joined, Joined)
    second.say(Join(joined.name, b"second"))
    assert first.hears() == [Peer(b"second")]
    assert second.hears()[2:] == [Peer(b"first")]
    second.say(Message(bytes(range(256))))
    assert first.hears() == [Message(bytes(range(256)))]


def test_a_message_may_come_in_pieces(stage: Stage) -> None:
    client = stage.client()
    client.hears()
    client.web.send_text(b'{"type":"jo', fin=False)
    client.web.send_continuation(b"", fin=False)
    client.web.send_ping(b"between")
    client.web.send_continuation(b'in","v":1,"name":"a","hello":"', fin=False)
    client.web.send_continuation(b'"}', fin=True)
    client.flush()
    assert client.hears() == [Joined("a", 3600.0)]


def test_a_ping_is_answered(stage: Stage) -> None:
    client = stage.client()
    client.web.send_ping(b"there?")
    client.flush()
    assert [f.data for f in client.frames if f.opcode is Opcode.PONG] == [b"there?"]


def test_who_is_silent_is_pinged_and_who_answers_stays(stage: Stage) -> None:
    client = stage.client()
    client.say(Join("a", b""))
    for _ in range(20):
        deadline = stage.machine.deadline()
        assert deadline is not None
        stage.sleep(deadline - stage.now)
        client.read()  # the library answers pings by itself
        client.flush()
    assert client.handle not in stage.shut
    assert stage.machine.hall.counts.pings > 5


def test_closing(stage: Stage, pair: tuple[Client, Client]) -> None:
    first, second = pair
    first.web.send_close(1000, "done")
    first.flush()
    assert first.handle in stage.shut
    assert second.hears() == [Gone("left")]
    assert second.web.close_rcvd is not None
    assert second.web.close_rcvd.code == 1000
    assert second.handle in stage.shut


@pytest.mark.parametrize("cause", [Cause.END_OF_STREAM, Cause.RESET])
def test_a_connection_that_breaks(stage: Stage, pair: tuple[Client, Client], cause: Cause) -> None:
    first, second = pair
    stage.tell(Closed(first.handle, cause))
    assert second.hears() == [Gone("lost")]
    assert not stage.machine._streams
    assert not stage.machine._by_client


@pytest.mark.parametrize(
    ("frame", "code", "close"),
    [
        (Frame(Opcode.TEXT, b"x" * (MAX_TEXT + 1)), "too-large", 1009),
        (Frame(Opcode.TEXT, b"x" * (MAX_TEXT - 1)), "malformed", 1008),
        (Frame(Opcode.TEXT, b"\xff"), "malformed", 1008),
        (Frame(Opcode.BINARY, b"{}"), "malformed", 1008),
        (Frame(Opcode.CONT, b"x"), "malformed", 1002),
        (Frame(Opcode.TEXT, b"x", rsv1=True), "malformed", 1002),
        (Frame(Opcode.PING, b"x" * 126), "malformed", 1002),
    ],
)
def test_what_is_no_message_is_told_and_closed(
    stage: Stage, pair: tuple[Client, Client], frame: Frame, code: str, close: int
) -> None:
    first, second = pair
    # The library's own serializer refuses some of these.
    head = bytes([0x80 | (0x40 if frame.rsv1 else 0) | frame.opcode])
    size = len(frame.data)
    length = bytes([0x80 | size]) if size < 126 else b"\xff" + size.to_bytes(8)
    length = b"\xfe" + size.to_bytes(2) if 126 <= size < 65536 else length
    stage.tell(Arrived(first.handle, head + length + bytes(4) + frame.data))
    (error,) = first.hears()
    assert isinstance(error, Error)
    assert error.code == code
    assert first.web.close_rcvd is not None
    assert first.web.close_rcvd.code == close
    assert first.handle in stage.shut
    assert second.hears() == [Gone("expelled")]
    assert stage.machine.hall.counts.refused == {code: 1}


def test_a_message_in_pieces_is_no_longer_than_another(stage: Stage) -> None:
    client = stage.client()
    client.hears()
    client.web.send_text(b"x" * 50_000, fin=False)
    client.flush()
    client.web.send_continuation(b"x" * 50_000, fin=False)
    client.flush()
    (error,) = client.hears()
    assert (error.code, client.handle in stage.shut) == ("too-large", True)


def test_unmasked_frames_are_refused(stage: Stage) -> None:
    client = stage.client()
    client.hears()
    stage.tell(Arrived(client.handle, b"\x81\x02{}"))
    assert client.web.close_rcvd is None
    assert [error.code for error in client.hears()] == ["malformed"]
    assert client.web.close_rcvd.code == CloseCode.PROTOCOL_ERROR


# HTTP. --------------------------------------------------------------------------------------------


def get(path: str, *headers: str) -> bytes:
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: here", *headers, "", ""]).encode()


def test_a_browser_is_told_what_is_here(stage: Stage) -> None:
    stream = stage.stream()
    page = stage.put(stream, get("/"))
    assert page.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"rendezvous of natkit" in page
    assert stream in stage.shut
    assert stage.put(stage.stream(), get("/other")).startswith(b"HTTP/1.1 404 ")


def test_health(rng: random.Random) -> None:
    stage = Stage(rng, health=lambda: {"more": 1})
    client = stage.client()
    client.say(Join("a", b""))
    head, _, body = stage.put(stage.stream(), get("/health?x=1")).partition(b"\r\n\r\n")
    assert b"Content-Type: application/json" in head
    assert json.loads(body) == {
        "status": "ok",
        "connected": 1,
        "waiting": 1,
        "paired": 0,
        "more": 1,
    }


@pytest.mark.parametrize(
    ("octets", "answer"),
    [
        (b"\x16\x03\x01\x02\x00" + bytes(40) + b"\r\n\r\n", b""),
        (b"SSH-2.0-OpenSSH\r\n", b""),
        (get("/", "Upgrade: h2c", "Connection: Upgrade"), b"HTTP/1.1 426 "),
        (get("/", "Upgrade: websocket", "Connection: Upgrade"), b"HTTP/1.1 400 "),
        (get("/" + "a" * 9000), b"HTTP/1.1 414 "),
        (get("/", *(f"X-{n}: 1" for n in range(200))), b"HTTP/1.1 431 "),
    ],
)
def test_what_is_no_request_is_refused(stage: Stage, octets: bytes, answer: bytes) -> None:
    stream = stage.stream()
    assert stage.put(stream, octets).startswith(answer)
    assert stream in stage.shut
    assert not stage.machine._streams


def test_who_does_not_become_a_websocket_is_let_go(stage: Stage) -> None:
    stream = stage.stream()
    stage.put(stream, b"GET / HT")
    assert stage.machine.deadline() == stage.now + HANDSHAKE
    stage.sleep(HANDSHAKE)
    assert stream in stage.shut
    assert stage.machine.deadline() is None


def test_unfinished_handshakes_are_bounded(stage: Stage) -> None:
    streams = [stage.stream() for _ in range(HANDSHAKES + 3)]
    assert stage.shut == set(streams[:3])
    assert len(stage.machine._streams) == HANDSHAKES


# Who reads slowly. --------------------------------------------------------------------------------


def test_a_sender_is_held_while_its_peer_does_not_read(
    stage: Stage, pair: tuple[Client, Client]
) -> None:
    first, second = pair
    stage.tell(Congested(second.handle))
    assert stage.held == [(second.handle, True), (first.handle, True)]
    stage.held.clear()
    stage.tell(Relieved(second.handle))
    assert stage.held == [(second.handle, False), (first.handle, False)]
    assert stage.machine.deadline() >= stage.now + 5 * SECOND


def test_who_does_not_read_for_long_is_dropped(stage: Stage, pair: tuple[Client, Client]) -> None:
    first, second = pair
    stage.tell(Congested(second.handle))
    for _ in range(20):
        stage.machine.hall.heard(1, stage.now)
        stage.machine.hall.heard(2, stage.now)
        stage.sleep(SLUGGISH // 20)
    assert second.handle in stage.shut
    assert stage.machine.hall.counts.refused == {"slow": 1}
    assert first.hears() == [Gone("expelled")]


# Listeners. ---------------------------------------------------------------------------------------


def test_listeners_come_and_go(stage: Stage) -> None:
    machine = stage.machine
    machine.listen([LOCAL, Address("::", 8080)])
    stage.run()
    one, two = stage.listening
    stage.tell(Opened(one, LOCAL))
    stage.tell(Closed(two, Cause.ADDRESS_IN_USE, "in use"))
    assert stage.told == [
        Serving(LOCAL),
        CannotServe(Address("::", 8080), Cause.ADDRESS_IN_USE, "in use"),
    ]
    assert machine.open_listeners == [LOCAL]
    client = stage.client()
    machine.stop_listening([LOCAL])
    stage.run()
    assert one in stage.shut
    assert not machine.open_listeners
    assert client.handle not in stage.shut


def test_stopping(stage: Stage, pair: tuple[Client, Client]) -> None:
    stage.machine.listen([LOCAL])
    entering = stage.stream()
    stage.machine.stop(stage.now)
    stage.run()
    for client in pair:
        assert [error.code for error in client.hears()] == ["shutting-down"]
        assert client.web.close_rcvd.code == CloseCode.GOING_AWAY
    assert stage.shut >= {entering, *(client.handle for client in pair)}
    assert not stage.machine._streams
    assert stage.machine.deadline() is None


def test_what_is_not_for_it_changes_nothing(stage: Stage) -> None:
    stage.machine.receive(Received(b"x", LOCAL, LOCAL), stage.now)
    stage.tell(Arrived(-99, b"x"))
    stage.tell(Closed(-99, Cause.RESET))
    stage.tell(Congested(-99))
    stage.tell(Opened(99, LOCAL))
    assert not stage.told


# Proxies. -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "seen"),
    [
        ([], "10.0.0.9:40000"),
        (["192.0.2.7"], "192.0.2.7:0"),
        (["192.0.2.7:1234"], "192.0.2.7:1234"),
        (["[2001:db8::7]:1234"], "[2001:db8::7]:1234"),
        (["2001:db8:0:0::7"], "[2001:db8::7]:0"),
        (["6.6.6.6, 192.0.2.7"], "192.0.2.7:0"),
        (["6.6.6.6", "192.0.2.7"], "192.0.2.7:0"),
        (["192.0.2.7, 10.1.1.1"], "192.0.2.7:0"),
        (["10.1.1.1"], "10.1.1.1:0"),
        (["unknown"], "10.0.0.9:40000"),
        (["192.0.2.7:99999"], "192.0.2.7:0"),
        (["192.0.2.7, unknown"], "10.0.0.9:40000"),
        ([", ".join(["6.6.6.6"] * 99 + ["192.0.2.7"])], "192.0.2.7:0"),
    ],
)
def test_what_proxies_say(headers: list[str], seen: str) -> None:
    remote, trusted = Address("10.0.0.9", 40000), Networks(["10.0.0.0/8"])
    assert str(forwarded_client(remote, headers, trusted)) == seen
    assert forwarded_client(remote, headers, Networks([])) == remote


def test_a_client_behind_a_proxy_is_itself(rng: random.Random) -> None:
    stage = Stage(rng, proxies=Networks(["192.0.2.0/24"]))
    (welcome,) = stage.client(headers={"X-Forwarded-For": "203.0.113.5"}).hears()
    assert welcome.observed == Address("203.0.113.5", 0)


# Anything at all. ---------------------------------------------------------------------------------


def test_noise_ends_no_one_else(rng: random.Random, stage: Stage) -> None:
    first, second = stage.client(), stage.client()
    first.say(Join("a", b""))
    second.say(Join("a", b""))
    first.hears(), second.hears()
    for _ in range(300):
        stream = stage.stream()
        start = rng.choice([b"", get("/"), get("/health"), first_words()])
        data = start + rng.randbytes(rng.randrange(300))
        for at in range(0, len(data), 97):
            if stream not in stage.shut:
                stage.tell(Arrived(stream, data[at : at + 97]))
    first.say(Message(bytes(MAX_DATA)))
    assert second.hears() == [Message(bytes(MAX_DATA))]
    assert not stage.machine.hall.counts.dropped["what the WebSocket library cannot read"]


@pytest.mark.parametrize("early", [b"\x81\x82\0\0\0\0{}", b"GET / HTTP/1.1\r\n\r\n", bytes(50)])
def test_what_follows_a_request_waits_for_its_answer(stage: Stage, early: bytes) -> None:
    assert stage.put(stage.stream(), get("/") + early).startswith(b"HTTP/1.1 200 ")
    stream = stage.stream()
    answer = stage.put(stream, first_words() + early)
    assert answer.startswith(b"HTTP/1.1 101 ")
    assert b'"code":"malformed"' in answer
    assert stream in stage.shut


def test_a_failure_of_the_library_ends_one_connection(
    stage: Stage, pair: tuple[Client, Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise AssertionError("unforeseen")

    first, second = pair
    monkeypatch.setattr(stage.machine._streams[first.handle].web._protocol, "receive_data", fail)
    stage.tell(Arrived(first.handle, b"anything"))
    assert first.handle in stage.shut
    assert second.hears() == [Gone("lost")]
    assert stage.machine.hall.counts.dropped == {"what the WebSocket library cannot read": 1}


def first_words() -> bytes:
    web = ClientProtocol(parse_uri("ws://here/"))
    web.send_request(web.connect())
    return b"".join(web.data_to_send())
