"""What must hold for the TURN client, whatever a server, its peers and its sockets do to it.

Shared by the coverage-guided fuzzer (python -m tools.fuzz) and the short run of every test session
(tests/fuzz/test_fuzz_turn_client.py).

The input is a script.  Its first octets choose what the client is told to want; the others choose
what happens next: its requests are answered (well, wrongly, twice, by an error of any code, or
not), datagrams and streams bring what the script has, sockets open late or end, ICMP errors come,
the application gives commands, time passes.  The server has the password, so that what it says is
believed.

The judge demands that nothing but :class:`stun.errors.UsageError` comes out of a command and
nothing at all out of anything else, that sockets are used only while they are open, that no request
is repeated without end, and that at the end nothing is left open.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from stun.attributes import (
    ALTERNATE_SERVER,
    CHANNEL_NUMBER,
    CONNECTION_ID,
    DATA,
    ERROR_CODE,
    ICMP,
    LIFETIME,
    MOBILITY_TICKET,
    NONCE,
    REALM,
    RESERVATION_TOKEN,
    XOR_MAPPED_ADDRESS,
    XOR_PEER_ADDRESS,
    XOR_RELAYED_ADDRESS,
    ErrorValue,
    Icmp,
)
from stun.codec import decode, encode
from stun.credentials import LongTerm
from stun.discovery import Target, Transport
from stun.errors import UsageError
from stun.framing import StunStream, channel_data
from stun.message import Message
from stun.registry import Class, ErrorCode, Method
from stun.sansio import (
    MILLISECOND,
    SECOND,
    Address,
    Arrived,
    Cause,
    Closed,
    Congested,
    Connected,
    Dial,
    Handle,
    Hold,
    Instant,
    Opened,
    OpenUdp,
    Received,
    Relieved,
    Shut,
    SocketEvent,
    Transmit,
    Undeliverable,
    Write,
)
from turn.client.config import ClientConfig
from turn.client.events import PeerClosed, PeerConnected
from turn.client.machine import Client

REALM_NAME = "example.org"
NONCE_TEXT = b"a nonce of the server"
CREDENTIALS = LongTerm("alice", "secret")
KEY = CREDENTIALS.key(REALM_NAME)
SERVER = Address("192.31.196.10", 3478)
OTHER_SERVER = Address("192.31.196.11", 3478)
HOME = "192.168.1.2"
MAPPED = Address("192.52.193.5", 40_000)
RELAYED = (Address("192.31.196.10", 50_000), Address("2620:4f:8000:a::10", 50_000))
PEERS = (
    Address("192.175.48.20", 7000),
    Address("192.175.48.20", 7001),
    Address("192.175.48.21", 7000),
    Address("2620:4f:8000:b::20", 7000),
)
CODES = (300, 400, 401, 403, 405, 420, 437, 438, 440, 441, 442, 443, 446, 447, 486, 487, 500, 508)
CAUSES = tuple(Cause)
METHODS = tuple(Method)
TRANSPORTS = (Transport.UDP, Transport.TCP, Transport.TLS, Transport.DTLS)
MOST_STEPS = 1000
MOST_AT_ONCE = 400
"""Outputs in one call: every part of the client with all that it may have going."""


@dataclass
class Socket:
    """A socket of the client, as the driver has it."""

    local: Address
    remote: Address | None = None
    datagrams: bool = False
    is_open: bool = False
    splitter: StunStream | None = None
    raw: bool = False


class World:
    """The server, the driver and the application, led by a script."""

    def __init__(self, script: bytes) -> None:
        self.script = deque(script)
        self.now: Instant = SECOND
        wishes = self.take()
        transport = TRANSPORTS[wishes & 3]
        stream = transport in (Transport.TCP, Transport.TLS)
        self.config = ClientConfig(
            Target(SERVER, transport, "turn.example"),
            CREDENTIALS,
            tcp=bool(wishes & 4) and stream,
            family="dual" if wishes & 8 and not (wishes & 4 and stream) else None,
            mobility=bool(wishes & 16),
            allocate_again=bool(wishes & 32),
            permit_on_send=bool(wishes & 64),
            bind_after=1 if wishes & 128 else 4,
            accept_limit=3,
        )
        self.client = Client(self.config, entropy=random.Random(0).randbytes)
        self.sockets: dict[Handle, Socket] = {}
        self.handles: set[Handle] = set()
        self.pending: list[Handle] = []
        self.events: deque[SocketEvent] = deque()
        self.asked: deque[tuple[Message, Handle]] = deque(maxlen=32)
        self.connections: list[int] = []
        self.reached: set[str] = set()
        self.identifiers = 0
        self.port = 40_000

    def take(self) -> int:
        """Return the next octet of the script; zeros once it is at its end."""
        return self.script.popleft() if self.script else 0

    def some(self) -> bytes:
        return bytes(self.take() for _ in range(min(self.take(), len(self.script))))

    def peer(self) -> Address:
        return PEERS[self.take() % len(PEERS)]

    # The driver. ----------------------------------------------------------------------------------

    def drain(self) -> None:
        outputs = 0
        while True:
            output = self.client.poll()
            if output is None:
                if not self.events:
                    return
                outputs = 0
                self.client.on_socket(self.events.popleft(), self.now)
                continue
            outputs += 1
            assert outputs < MOST_AT_ONCE, "the client does not stop"
            self.reached.add(type(output).__name__)
            match output:
                case OpenUdp(handle, local):
                    self.open(handle, Socket(local, datagrams=True))
                case Dial(handle, local, remote, _, datagrams):
                    self.open(handle, Socket(local, remote, datagrams))
                case Transmit(data, _, source):
                    at = [h for h, s in self.sockets.items() if s.is_open and s.local == source]
                    assert at, "sent from where no socket is"
                    self.hear(data, at[0])
                case Write(handle, data):
                    self.written(handle, data)
                case Hold(handle):
                    assert handle in self.sockets
                case Shut(handle):
                    assert handle in self.handles, "shut what never was"
                    self.sockets.pop(handle, None)
                    self.pending = [h for h in self.pending if h != handle]
                    self.events = deque(
                        e for e in self.events if getattr(e, "handle", None) != handle
                    )
                case PeerConnected(connection):
                    self.connections.append(connection)
                case PeerClosed(connection) if connection in self.connections:
                    self.connections.remove(connection)
                case _:
                    pass  # what is told to the application

    def open(self, handle: Handle, socket: Socket) -> None:
        assert handle > 0
        assert handle not in self.handles, "a handle was used twice"
        self.handles.add(handle)
        if not socket.datagrams:
            socket.splitter = StunStream(channel_data=True)
        self.sockets[handle] = socket
        self.pending.append(handle)

    def decide(self, handle: Handle, *, well: bool = True) -> None:
        """Let a socket open, or not."""
        self.pending.remove(handle)
        socket = self.sockets[handle]
        if not well:
            del self.sockets[handle]
            self.events.append(Closed(handle, CAUSES[self.take() % len(CAUSES)]))
            return
        socket.is_open = True
        self.port += 1
        host = HOME if socket.local.host in ("0.0.0.0", "::") else socket.local.host
        socket.local = Address(host, socket.local.port or self.port)
        if socket.remote is None:
            self.events.append(Opened(handle, socket.local))
        else:
            self.events.append(Connected(handle, socket.local, socket.remote))

    def written(self, handle: Handle, data: bytes) -> None:
        socket = self.sockets.get(handle)
        assert socket is not None, "written to what is not open"
        assert socket.is_open, "written before it is connected"
        if socket.raw:
            return
        if socket.splitter is None:
            self.hear(data, handle)
            return
        for message in socket.splitter.feed(data):
            self.hear(message, handle)
        assert socket.splitter.error is None, "what the client sent is no message"

    def hear(self, data: bytes, handle: Handle) -> None:
        """Take a message as the server does."""
        if not data or data[0] >= 0x40:
            return
        message = decode(data)
        assert message.message_class in {Class.REQUEST, Class.INDICATION}
        if message.message_class is Class.REQUEST:
            self.asked.append((message, handle))

    # The server. ----------------------------------------------------------------------------------

    def say(self, octets: bytes, handle: Handle) -> None:
        """Send octets to the client's end of a socket."""
        socket = self.sockets.get(handle)
        if socket is None or not socket.is_open:
            return
        if socket.remote is None:
            server = OTHER_SERVER if self.take() == 0x77 else SERVER
            self.client.receive(Received(octets, server, socket.local), self.now)
            return
        cut = self.take() % (len(octets) + 1)
        for piece in (octets[:cut], octets[cut:]) if not socket.datagrams else (octets,):
            if piece:
                self.events.append(Arrived(handle, piece))

    def answer(self) -> None:
        """Answer a request: the newest one, or an older one once more."""
        if not self.asked:
            return
        request, handle = self.asked[-1 - self.take() % min(len(self.asked), 3)]
        choice = self.take()
        if not request.has(NONCE) and choice < 0xC0:
            response = Message.error(request, ErrorCode.UNAUTHENTICATED)
            response.add(REALM, REALM_NAME).add(NONCE, NONCE_TEXT)
            self.say(encode(response), handle)
            return
        if choice < 0xA0:
            response = self.success(request)
        else:
            code = CODES[self.take() % len(CODES)]
            response = Message(request.method, Class.ERROR, request.transaction_id)
            response.add(ERROR_CODE, ErrorValue(code, ""))
            if code in (401, 438):
                response.add(REALM, REALM_NAME).add(NONCE, self.some() or NONCE_TEXT)
            if code == 300:
                response.add(ALTERNATE_SERVER, OTHER_SERVER if choice & 1 else SERVER)
        for _ in range(self.take() & 3 if choice & 2 else 0):
            code = self.take() << 8 & 0x8000 | self.take() & 0x3F
            response.attributes.append((code, self.some()[:24]))
        proof = None if choice & 0x1C == 0x1C else KEY
        octets = encode(response, key=proof)
        if request.method == Method.CONNECTION_BIND and response.message_class is Class.SUCCESS:
            octets += self.some()
            if handle in self.sockets:
                self.sockets[handle].raw = True
        self.say(octets, handle)

    def success(self, request: Message) -> Message:
        response = Message.success(request)
        odd = self.take()
        match request.method:
            case Method.ALLOCATE:
                count = 2 if self.config.family == "dual" and not odd & 1 else 1
                for relayed in RELAYED[:count]:
                    response.add(XOR_RELAYED_ADDRESS, relayed)
                response.add(XOR_MAPPED_ADDRESS, MAPPED)
                response.add(LIFETIME, 600 if not odd & 2 else self.take() * 8)
                if request.has(MOBILITY_TICKET):
                    response.add(MOBILITY_TICKET, b"ticket")
                if odd & 4:
                    response.add(RESERVATION_TOKEN, bytes(8))
            case Method.REFRESH:
                response.add(LIFETIME, request.get(LIFETIME) or 600 if not odd & 2 else self.take())
                if request.has(MOBILITY_TICKET):
                    response.add(MOBILITY_TICKET, b"other")
            case Method.CONNECT:
                self.identifiers += 1
                response.add(CONNECTION_ID, self.identifiers)
            case _:
                pass
        if odd & 0xF0 == 0xF0:
            response.attributes = response.attributes[1:]
        return response

    def volunteer(self) -> None:
        """Send what nobody asked for."""
        handles = [h for h, s in self.sockets.items() if s.is_open]
        if not handles:
            return
        handle = handles[self.take() % len(handles)]
        if self.sockets[handle].raw:
            self.events.append(Arrived(handle, self.some() or b"data"))
            return
        message = Message.indication(Method.DATA, bytes(12)).add(XOR_PEER_ADDRESS, self.peer())
        match self.take() % 6:
            case 0:
                octets = self.some()
            case 1:
                number = 0x4000 + self.take() % 3
                octets = channel_data(number, self.some(), pad=not self.sockets[handle].datagrams)
            case 2:
                octets = encode(message.add(DATA, self.some()))
            case 3:
                octets = encode(message.add(ICMP, Icmp(3, self.take() & 7, 1400)))
            case 4:
                self.identifiers += 1
                message.method = Method.CONNECTION_ATTEMPT
                octets = encode(message.add(CONNECTION_ID, self.identifiers))
            case _:
                odd = Message(
                    METHODS[self.take() % len(METHODS)], Class(self.take() & 3), self.some()[:12]
                )
                odd.transaction_id = odd.transaction_id.ljust(12, b"\0")
                odd.attributes.append((self.take(), self.some()))
                odd.add(CHANNEL_NUMBER, 0x4000)
                octets = encode(odd)
        self.say(octets, handle)

    # What may happen. -----------------------------------------------------------------------------

    def step(self) -> None:
        """Let one thing happen."""
        handles = list(self.sockets)
        match self.take() % 12:
            case 0 if self.pending:
                handle = self.pending[self.take() % len(self.pending)]
                self.decide(handle, well=self.take() < 0xE0)
            case 1 | 2 | 3 | 4:
                self.answer()
            case 5:
                self.volunteer()
            case 6 if handles:
                handle = handles[self.take() % len(handles)]
                if self.sockets[handle].is_open and self.sockets[handle].remote is not None:
                    del self.sockets[handle]
                    self.events.append(Closed(handle, CAUSES[self.take() % len(CAUSES)]))
            case 7 if handles:
                handle = handles[self.take() % len(handles)]
                event = Congested(handle) if self.take() & 1 else Relieved(handle)
                if self.sockets[handle].is_open and self.sockets[handle].remote is not None:
                    self.events.append(event)
            case 8 if handles:
                local = self.sockets[handles[self.take() % len(handles)]].local
                kind, code = self.take() & 15, self.take() & 7
                self.events.append(Undeliverable(local, SERVER, kind, code))
            case 9 | 10:
                try:
                    self.command()
                except UsageError:
                    self.reached.add("UsageError")
            case _:
                self.pass_time(self.take() ** 2 * 10 * MILLISECOND)
        self.drain()

    def command(self) -> None:
        client, now = self.client, self.now
        connection = self.connections[-1] if self.connections else 99
        match self.take() % 14:
            case 0 | 1:
                client.allocate(now)
            case 2:
                client.permit(self.peer(), now=now)
            case 3:
                client.bind(self.peer(), now)
            case 4 | 5:
                client.send(self.peer(), self.some(), now, dont_fragment=bool(self.take() & 1))
            case 6:
                client.forget(self.peer())
            case 7:
                client.refresh(now, lifetime=self.take() * 8 or None)
            case 8:
                client.move(now)
            case 9 | 10:
                client.connect(self.peer(), now)
            case 11:
                client.write(connection, self.some())
            case 12:
                if self.take() & 1:
                    client.hold(connection, bool(self.take() & 1))
                else:
                    client.close(connection, reset=bool(self.take() & 1))
                    self.connections = [c for c in self.connections if c != connection]
            case _:
                if self.take() & 1:
                    client.release(now)
                elif self.take() & 1:
                    client.abandon(now)

    def pass_time(self, duration: int) -> None:
        """Let time pass, from one deadline to the next."""
        end = self.now + duration
        for _ in range(20_000):
            due = self.client.deadline()
            if due is None or due > end:
                self.now = end
                return
            self.now = max(self.now, due)
            self.client.on_deadline(self.now)
            self.drain()
        raise AssertionError("the deadline does not move on")

    def finish(self) -> None:
        """Let the application give up: nothing may be left open, and nothing left to do."""
        try:
            self.client.abandon(self.now)
        except UsageError:
            self.reached.add("UsageError")
        self.drain()
        self.pass_time(600 * SECOND)
        assert not self.sockets, "a socket was left open"
        assert self.client.deadline() is None, "something is left to do"


def check_script(script: bytes) -> set[str]:
    """Raise ``AssertionError``, or whatever escapes, when the client does wrong.

    Returns the names of what the client ordered and told.
    """
    world = World(script)
    for _ in range(MOST_STEPS):
        if not world.script:
            break
        world.step()
    world.finish()
    return world.reached


def scripts() -> Iterator[bytes]:
    """Yield runs that go through everything that the client has."""
    start, up = bytes((9, 0)), bytes((0, 0, 0))
    challenge, good = bytes((1, 0, 0, 0)), bytes((1, 0, 0, 0, 0))
    joined = bytes((1, 0, 0, 0, 0, 0))
    for wishes, transport in product((0, 8, 16, 32, 64, 192), range(4)):
        opened = bytes((wishes | transport,)) + start + up
        first = opened + challenge + good
        permit = bytes((9, 2, 0)) + good
        yield first + permit + bytes((9, 3, 1)) + good + bytes((5, 0, 0, 1, 0, 4)) + b"data"
        yield first + bytes((9, 4, 0, 4)) + b"data" + bytes((0,)) + good + good
        yield first + permit + bytes((5, 0, 0, 2, 4)) + b"data" + bytes((0, 11, 255)) + good
        yield first + permit + bytes((5, 0, 0, 3, 4, 0))
        yield first + bytes((9, 7, 9)) + good + bytes((9, 8)) + up + challenge + good
        for code in range(len(CODES)):
            yield first + bytes((9, 7, 9, 1, 0, 0xA0, code, 0, 0)) + up + good + good
            yield first + bytes((9, 2, 0, 1, 0, 0xA0, code, 0, 0)) + good
            yield opened + bytes((1, 0, 0xC0, code, 0, 0)) + up + challenge + good
            yield opened + challenge + bytes((1, 0, 0xA0, code, 0, 0)) + up + challenge + good
        yield first + bytes((6, 0, 0, 11, 200)) + up + challenge + good
        yield first + bytes((9, 13, 1)) + good
        yield opened + bytes((1, 0, 0xC1, 0, 0)) + up + challenge + good
        yield first + bytes((7, 0, 1, 9, 4, 0, 1, 65, 0, 7, 0, 0))
    for transport in (1, 2):
        first = bytes((4 | 64 | transport,)) + start + up + challenge + good
        join = bytes((9, 9, 0)) + good + up + joined
        yield first + join + bytes((5, 1, 4)) + b"data" + bytes((9, 11, 4)) + b"mine"
        yield first + bytes((5, 0, 0, 4, 0)) + up + joined + bytes((6, 1, 0))
        yield first + join + bytes((7, 1, 1, 7, 1, 0, 9, 12, 1, 1, 9, 12, 0, 1))
        for code in range(len(CODES)):
            yield first + bytes((9, 9, 0, 1, 0, 0xA0, code, 0, 0)) + good
            yield first + bytes((9, 9, 0)) + good + up + bytes((1, 0, 0xA0, code, 0, 0)) + joined


TARGETS = {"turn-client": (check_script, scripts)}
