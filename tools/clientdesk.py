"""A TURN client machine on a table: its sockets and its server are played by hand, time is virtual.

:class:`Desk` opens what the client asks to be opened, and answers requests as a server would that
is always content, unless :meth:`Desk.script` has other answers waiting.  Everything the client did
stays visible: :attr:`Desk.sent`, :attr:`Desk.orders`, :attr:`Desk.events`.
"""

from __future__ import annotations

import random
from collections import defaultdict, deque
from collections.abc import Callable
from typing import Any, TypeVar

from stun.attributes import (
    CONNECTION_ID,
    ERROR_CODE,
    LIFETIME,
    MESSAGE_INTEGRITY,
    MOBILITY_TICKET,
    NONCE,
    REALM,
    XOR_MAPPED_ADDRESS,
    XOR_RELAYED_ADDRESS,
    ErrorValue,
)
from stun.codec import decode, encode
from stun.credentials import LongTerm, Profile, long_term_key
from stun.discovery import Target, Transport
from stun.framing import StunStream
from stun.integrity import check_integrity
from stun.message import Message
from stun.registry import Class, Method
from stun.sansio import (
    SECOND,
    Address,
    Arrived,
    Cause,
    Closed,
    Connected,
    Dial,
    Handle,
    Instant,
    Opened,
    OpenUdp,
    Received,
    Shut,
    SocketEvent,
    Transmit,
    Write,
)
from turn.client.config import ClientConfig
from turn.client.machine import Client

SERVER = Address("192.0.2.1", 3478)
LOCAL = "198.51.100.7"
RELAYED = Address("192.0.2.1", 50000)
USER = LongTerm("user", "secret")
REALM_NAME = "example.org"
KEY = long_term_key("user", REALM_NAME, "secret", profile=Profile.SASLPREP)

Answer = Callable[[Message], Message | bytes | None]
E = TypeVar("E")


def error(code: int, *, prove: bool = True, **more: Any) -> Answer:
    """Answer with an error; ``more`` are attributes by their lower-case names."""

    def answer(request: Message) -> Message:
        message = Message.success(request)
        message.message_class = Class.ERROR
        message.add(ERROR_CODE, ErrorValue(code, ""))
        message.wire = b"prove" if prove else b""
        for attribute, value in more.get("attributes", ()):
            message.add(attribute, value)
        return message

    return answer


def success(*attributes: tuple[Any, Any]) -> Answer:
    """Answer with a success that has these attributes."""

    def answer(request: Message) -> Message:
        message = Message.success(request)
        for attribute, value in attributes:
            message.add(attribute, value)
        return message

    return answer


def silence(_: Message) -> None:
    """Do not answer."""


class Desk:
    """One client, and everything around it."""

    def __init__(
        self,
        rng: random.Random,
        *,
        transport: Transport = Transport.UDP,
        machine: Any = None,
        **options: Any,
    ) -> None:
        name = "relay.example" if transport.is_secure else None
        options.setdefault("credentials", USER)
        self.now: Instant = 1_000 * SECOND
        config = ClientConfig(Target(SERVER, transport, name), **options)
        self.client: Any = machine or Client(config, entropy=rng.randbytes)
        self.events: list[Any] = []
        self.sent: list[Message | bytes] = []
        """Requests and indications decoded; ChannelData and the octets of peers as they are."""
        self.orders: list[Any] = []
        self.open: dict[Handle, Address] = {}
        self.refused: dict[str, Cause] = {}
        """Hosts that connections to fail for, and how."""
        self.scripts: dict[int, deque[Answer]] = defaultdict(deque)
        self.nonce = b"first nonce"
        self.realm = REALM_NAME
        self.key = KEY
        self.lifetime = 600
        self.ticket: bytes | None = None
        self.relayed: tuple[Address, ...] = (RELAYED,)
        self.reset_by_answer = False
        self._ports = iter(range(40000, 60000))
        self._where: dict[Handle, tuple[Address, StunStream | None]] = {}
        self._bound: set[Handle] = set()
        self._datagrams: set[Handle] = set()

    def script(self, method: Method, *answers: Answer) -> None:
        """Answer the next requests of a method so; challenges for credentials come before."""
        self.scripts[int(method)].extend(answers)

    # Running. -------------------------------------------------------------------------------------

    def run(self) -> None:
        """Let everything happen that happens without time passing."""
        while (output := self.client.poll()) is not None:
            match output:
                case OpenUdp(handle, local):
                    self.orders.append(output)
                    at = Address(local.host if local.host != "0.0.0.0" else LOCAL, self._port())
                    self.open[handle] = at
                    self._tell(Opened(handle, at))
                case Dial(handle, local, remote):
                    self.orders.append(output)
                    if remote.host in self.refused:
                        self._tell(Closed(handle, self.refused[remote.host]))
                        continue
                    at = Address(LOCAL, self._port())
                    self.open[handle] = at
                    datagrams = output.datagrams
                    self._where[handle] = (
                        remote,
                        None if datagrams else StunStream(channel_data=True),
                    )
                    self._tell(Connected(handle, at, remote))
                case Shut(handle):
                    self.orders.append(output)
                    self.open.pop(handle, None)
                case Transmit(data, destination, source):
                    self._take(data, destination, source, None)
                case Write(handle, data):
                    self._written(handle, data)
                case _:
                    self.events.append(output)

    def _port(self) -> int:
        return next(self._ports)

    def _tell(self, event: SocketEvent) -> None:
        self.client.on_socket(event, self.now)

    def tell(self, event: SocketEvent) -> None:
        """Tell the client what happened to a socket, and let it act."""
        self._tell(event)
        self.run()

    def pass_time(self, seconds: float) -> None:
        """Let time pass, deadline by deadline."""
        end = self.now + int(seconds * SECOND)
        self.run()
        while (due := self.client.deadline()) is not None and due <= end:
            self.now = max(self.now, due)
            self.client.on_deadline(self.now)
            self.run()
        self.now = end
        self.client.on_deadline(self.now)
        self.run()

    def _written(self, handle: Handle, data: bytes) -> None:
        if handle in self._bound:
            self.sent.append(data)
            return
        remote, splitter = self._where[handle]
        messages = [data] if splitter is None else splitter.feed(data)
        assert splitter is None or splitter.error is None
        for message in messages:
            self._take(message, remote, self.open[handle], handle)

    def _take(
        self, data: bytes, destination: Address, source: Address, handle: Handle | None
    ) -> None:
        if data[0] >= 0x40:
            self.sent.append(data)
            return
        message = decode(data)
        self.sent.append(message)
        if message.message_class is Class.REQUEST:
            answer = self._answer(message)
            if answer is not None:
                self._deliver(answer, destination, source, handle)
                if message.method == Method.CONNECTION_BIND and answer[0] == 1:
                    assert handle is not None
                    self._bound.add(handle)

    def _deliver(self, data: bytes, server: Address, local: Address, handle: Handle | None) -> None:
        if handle is None:
            self.client.receive(Received(data, server, local), self.now)
        else:
            self._tell(Arrived(handle, data))

    # The server. ----------------------------------------------------------------------------------

    def _answer(self, request: Message) -> bytes | None:
        if self.key and (challenge := self._challenge(request)) is not None:
            return encode(challenge)
        scripted = self.scripts[request.method]
        answer = (scripted.popleft() if scripted else self._content)(request)
        if answer is None or isinstance(answer, bytes):
            return answer
        proven = answer.message_class is not Class.ERROR or answer.wire == b"prove"
        answer.wire = b""
        return encode(answer, key=self.key if proven and self.key else None)

    def _challenge(self, request: Message) -> Message | None:
        if not request.has(MESSAGE_INTEGRITY):
            code = 401
        elif request.get(NONCE) != self.nonce or request.get(REALM) != self.realm:
            code = 438 if request.get(REALM) == self.realm else 401
        elif not check_integrity(request, self.key):
            code = 401
        else:
            return None
        message = Message.success(request)
        message.message_class = Class.ERROR
        message.add(ERROR_CODE, ErrorValue(code, ""))
        return message.add(REALM, self.realm).add(NONCE, self.nonce)

    def _content(self, request: Message) -> Message:
        message = Message.success(request)
        lifetime = request.get(LIFETIME)
        match request.method:
            case Method.ALLOCATE:
                for address in self.relayed:
                    message.add(XOR_RELAYED_ADDRESS, address)
                message.add(XOR_MAPPED_ADDRESS, Address("203.0.113.9", 1234))
                message.add(LIFETIME, self.lifetime)
                if request.has(MOBILITY_TICKET) and self.ticket is not None:
                    message.add(MOBILITY_TICKET, self.ticket)
            case Method.REFRESH:
                message.add(LIFETIME, self.lifetime if lifetime is None else lifetime)
                if request.has(MOBILITY_TICKET):
                    self.ticket = b"another ticket"
                    message.add(MOBILITY_TICKET, self.ticket)
            case Method.CONNECT:
                message.add(CONNECTION_ID, 4711)
        return message

    def say(self, data: bytes | Message, *, handle: Handle | None = None) -> None:
        """Let the server send something by itself, over UDP or over a stream."""
        octets = encode(data) if isinstance(data, Message) else data
        if handle is not None:
            self._tell(Arrived(handle, octets))
        else:
            local = list(self.open.values())[-1]
            self.client.receive(Received(octets, SERVER, local), self.now)
        self.run()

    # What was said. -------------------------------------------------------------------------------

    def requests(self, method: Method) -> list[Message]:
        """Return the messages of a method that the client sent, those with credentials only."""
        return [
            message
            for message in self.sent
            if isinstance(message, Message)
            and message.method == method
            and (message.has(MESSAGE_INTEGRITY) or message.message_class is Class.INDICATION)
        ]

    def told(self, kind: type[E]) -> list[E]:
        """Return the events of a kind so far."""
        return [event for event in self.events if isinstance(event, kind)]

    def last(self, kind: type[E]) -> E:
        """Return the newest event of a kind."""
        return self.told(kind)[-1]

    def allocate(self) -> Desk:
        """Get an allocation."""
        self.client.allocate(self.now)
        self.run()
        return self
