"""A TURN server machine on a desk: a driver that a test leads by hand, and clients who ask.

Nothing here has a socket or a clock: :attr:`Desk.now` is what the test says it is.  A client is a
few lines around :mod:`stun.auth_client`; the project's own client is not used, so that a mistake
made in both would show.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

from stun import attributes as a
from stun.auth_client import Retry, Sessions
from stun.codec import decode, encode
from stun.credentials import LongTerm
from stun.discovery import Transport
from stun.framing import StunStream, channel_data
from stun.message import Message
from stun.nonce import NonceMaker
from stun.registry import Class, Method
from stun.sansio import (
    SECOND,
    Accepted,
    Address,
    Arrived,
    Cause,
    Closed,
    Dial,
    Handle,
    Hold,
    Instant,
    Listen,
    Opened,
    OpenUdp,
    Received,
    Shut,
    Transmit,
    Write,
)
from stun.users import StaticUsers, UserStore
from turn.dataplane.base import InstallRoute, RemoveRoute
from turn.server.config import Limits, ListenAt, RelayAddress, ServerConfig
from turn.server.events import AllocationCreated, AllocationEnded
from turn.server.machine import Server
from turn.server.policy import PeerPolicy

HOST, HOST6 = "192.31.196.10", "2620:4f:8000:a::10"
UDP, TCP = 17, 6
PEER = Address("192.175.48.20", 7000)
PEER6 = Address("2620:4f:8000:b::20", 7000)
REALM = "example.org"
UNLIMITED = Limits(
    requests_per_second_per_client=0, unverified_burst=0, allocations_per_user=0,
    allocations_per_client=0,
)  # fmt: skip

Attribute = tuple[Any, Any]
"""An attribute of a request and its value, or a type and octets that go as they are."""


def configuration(**changes: Any) -> ServerConfig:
    """Return a configuration with every listener, two families of relays and nothing special."""
    values: dict[str, Any] = {
        "listeners": tuple(
            ListenAt(transport, Address(host, port))
            for host in (HOST, HOST6)
            for transport, port in (
                (Transport.UDP, 3478),
                (Transport.TCP, 3478),
                (Transport.TLS, 5349),
                (Transport.DTLS, 5349),
            )
        ),
        "relays": (RelayAddress(HOST, HOST), RelayAddress(HOST6, HOST6)),
        "realm": REALM,
        "policy": PeerPolicy(own=(HOST, HOST6)),
    }
    return ServerConfig(**(values | changes))


class Desk:
    """The server and its driver.

    ``refuse`` says why a socket cannot be had, if it cannot; with ``holding`` orders to open wait
    until :meth:`release`.  ``wrap`` puts something between the server and the driver,
    ``make`` makes the server.
    """

    def __init__(
        self,
        seed: int = 1,
        users: Mapping[str, str] | UserStore | None = None,
        wrap: Callable[[Server], Any] = lambda server: server,
        make: Callable[..., Server] = Server,
        **changes: Any,
    ) -> None:
        self.rng = random.Random(seed)
        self.now: Instant = 0
        self.config = configuration(**changes)
        if users is None:
            users = {"alice": "secret", "bob": "hidden"}
        store = StaticUsers(users, self.config.realm) if isinstance(users, Mapping) else users
        self.server = make(
            self.config,
            store,
            NonceMaker([self.rng.randbytes(16)]),
            entropy=self.rng.randbytes,
            unix_epoch=1_800_000_000,
        )
        self.machine = wrap(self.server)
        self.refuse: Callable[[OpenUdp | Listen], Cause | None] = lambda _: None
        self.holding = False
        self.held: list[OpenUdp | Listen] = []
        self.open: dict[Handle, Address] = {}
        self.kinds: dict[Handle, type] = {}
        self.sent: list[Transmit] = []
        self.written: dict[Handle, bytes] = {}
        self.shut: list[Handle] = []
        self.dialled: list[Dial] = []
        self.unread: set[Handle] = set()
        """Streams that are not to be read from."""
        self.holds = 0
        self.events: list[Any] = []
        self.routes: dict[Any, InstallRoute] = {}
        self.orders: list[InstallRoute | RemoveRoute] = []
        self._accepted = 0
        self.server.start(self.now)
        self.pump()

    # Driving. -------------------------------------------------------------------------------------

    def pump(self) -> None:
        """Carry out what the server wants."""
        pending: list[Any] = []
        while True:
            while (output := self.machine.poll()) is not None:
                self._carry_out(output, pending)
            if not pending:
                return
            self.machine.on_socket(pending.pop(0), self.now)

    def _carry_out(self, output: Any, pending: list[Any]) -> None:
        match output:
            case Transmit():
                assert output.source in self.open.values(), f"nothing is bound to {output.source}"
                self.sent.append(output)
            case OpenUdp() | Listen():
                if self.holding:
                    self.held.append(output)
                else:
                    pending.append(self._open(output))
            case Write(handle, data):
                self.written[handle] = self.written.get(handle, b"") + data
            case Shut(handle):
                self.open.pop(handle, None)
                self.held = [order for order in self.held if order.handle != handle]
                self.shut.append(handle)
            case Dial():
                self.dialled.append(output)
            case Hold(handle, held):
                (self.unread.add if held else self.unread.discard)(handle)
                self.holds += 1
            case InstallRoute(route):
                self.routes[route.key] = output
                self.orders.append(output)
            case RemoveRoute(key):
                self.routes.pop(key, None)
                self.orders.append(output)
            case _:
                self.events.append(output)

    def _open(self, order: OpenUdp | Listen) -> Opened | Closed:
        cause = self.refuse(order)
        taken = {(self.kinds[handle], local) for handle, local in self.open.items()}
        if cause is None and (type(order), order.local) in taken:
            cause = Cause.ADDRESS_IN_USE
        if cause is not None:
            return Closed(order.handle, cause)
        self.open[order.handle] = order.local
        self.kinds[order.handle] = type(order)
        return Opened(order.handle, order.local)

    def release(self) -> None:
        """Open what was held back."""
        held, self.held = self.held, []
        for order in held:
            self.machine.on_socket(self._open(order), self.now)
        self.pump()

    def tell(self, event: Any) -> None:
        """Report what happened to a socket."""
        self.machine.on_socket(event, self.now)
        self.pump()

    def receive(self, data: bytes, source: Address, local: Address) -> list[Transmit]:
        """Let a datagram arrive; return what the server sends for it."""
        before = len(self.sent)
        self.machine.receive(Received(data, source, local), self.now)
        self.pump()
        return self.sent[before:]

    def wait(self, seconds: float) -> None:
        """Let time pass, with every deadline met."""
        until = self.now + int(seconds * SECOND)
        while (due := self.machine.deadline()) is not None and due <= until:
            self.now = max(self.now, due)
            self.machine.on_deadline(self.now)
            self.pump()
        self.now = until

    # Looking. -------------------------------------------------------------------------------------

    def told(self, kind: type) -> list[Any]:
        """Return the events of a kind."""
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def created(self) -> list[AllocationCreated]:
        """The allocations that were made."""
        return self.told(AllocationCreated)

    @property
    def ended(self) -> list[AllocationEnded]:
        """The allocations that ended."""
        return self.told(AllocationEnded)

    def caller(self, **options: Any) -> Caller:
        """Return a client."""
        return Caller(self, **options)

    def next_accepted(self) -> Handle:
        """Return the handle of the next connection."""
        self._accepted -= 1
        return self._accepted


class Caller:
    """A client: asks, answers challenges, and gives back the response."""

    def __init__(
        self,
        desk: Desk,
        *,
        address: Address = Address("192.52.193.5", 40_000),  # noqa: B008
        transport: Transport = Transport.UDP,
        username: str = "alice",
        password: str = "secret",
        server: Address | None = None,
        fingerprint: bool = False,
    ) -> None:
        self.desk = desk
        self.address = address
        self.transport = transport
        host = HOST6 if address.is_ipv6 else HOST
        self.server = server or Address(host, 5349 if transport.is_secure else 3478)
        self.fingerprint = fingerprint
        self.sessions = Sessions()
        self.credentials = LongTerm(username, password)
        self.requested = b""
        """The last request as it was sent."""
        self.answer = b""
        """The last response as it came."""
        self.indications: list[Message] = []
        self.channels: list[tuple[int, bytes]] = []
        self.handle: Handle = 0
        self._stream = StunStream(channel_data=True)
        self._seen = 0
        if transport is not Transport.UDP:
            self.connect()

    def connect(self) -> None:
        """Come by a connection."""
        desk = self.desk
        self.handle = desk.next_accepted()
        listener = next(
            handle
            for handle, one in desk.server._core.listeners.items()
            if one.local == self.server and one.at.transport is self.transport
        )
        desk.tell(
            Accepted(
                listener, self.handle, self.server, self.address, secure=self.transport.is_secure
            )
        )

    # Asking. --------------------------------------------------------------------------------------

    def ask(
        self, method: int, *attributes: Attribute, follow: bool = True, tid: bytes | None = None
    ) -> Message | None:
        """Send a request; return its response, after challenges if they are to be followed."""
        guard = self.sessions.guard(self.server, self.credentials)
        while True:
            request = Message.request(method, tid or self.desk.rng.randbytes(12))
            for attribute, value in attributes:
                if isinstance(attribute, int):
                    request.attributes.append((attribute, value))
                else:
                    request.add(attribute, value)
            self.requested = guard.dress(request, fingerprint=self.fingerprint)
            response = self.say(self.requested)
            if response is None:
                return None
            verdict = guard.judge(response)
            if not (follow and isinstance(verdict, Retry)):
                return response

    def say(self, octets: bytes) -> Message | None:
        """Send octets as they are; return the response to them, if any comes at once."""
        for sent in self.send(octets):
            if not 0x40 <= sent[0] <= 0x7F:
                message = decode(sent)
                if message.message_class in (Class.SUCCESS, Class.ERROR):
                    self.answer = sent
                    return message
        return None

    def send(self, octets: bytes) -> list[bytes]:
        """Send a message; return the messages that come back, data put aside."""
        desk = self.desk
        if self.handle:
            desk.tell(Arrived(self.handle, octets))
        else:
            desk.machine.receive(Received(octets, self.address, self.server), desk.now)
            desk.pump()
        return self.fetch()

    def fetch(self) -> list[bytes]:
        """Return what has come since the last time; keep the data."""
        came: list[bytes] = []
        if self.handle and self.transport is not Transport.DTLS:
            came = self._stream.feed(self.desk.written.pop(self.handle, b""))
        elif self.handle:
            data = self.desk.written.pop(self.handle, b"")
            came = [data] if data else []
        else:
            mine = [s for s in self.desk.sent if s.destination == self.address]
            came = [sent.data for sent in mine]
            self.desk.sent = [s for s in self.desk.sent if s.destination != self.address]
        for octets in came:
            if 0x40 <= octets[0] <= 0x7F:
                length = int.from_bytes(octets[2:4])
                self.channels.append((int.from_bytes(octets[:2]), octets[4 : 4 + length]))
            elif (message := decode(octets)).message_class is Class.INDICATION:
                self.indications.append(message)
        return came

    # The methods of TURN. -------------------------------------------------------------------------

    def allocate(self, *attributes: Attribute, transport: int = UDP) -> Message:
        """Allocate, and see that it succeeds."""
        response = self.ask(Method.ALLOCATE, (a.REQUESTED_TRANSPORT, transport), *attributes)
        assert response is not None
        assert response.message_class is Class.SUCCESS, response.get(a.ERROR_CODE)
        return response

    def relayed(self, *attributes: Attribute) -> Address:
        """Allocate, and return the relayed transport address."""
        address = self.allocate(*attributes).get(a.XOR_RELAYED_ADDRESS)
        assert address is not None
        return address

    def permit(self, *peers: Address) -> Message | None:
        """Ask for permissions."""
        return self.ask(Method.CREATE_PERMISSION, *((a.XOR_PEER_ADDRESS, peer) for peer in peers))

    def bind(self, number: int, peer: Address) -> Message | None:
        """Ask for a channel."""
        return self.ask(Method.CHANNEL_BIND, (a.CHANNEL_NUMBER, number), (a.XOR_PEER_ADDRESS, peer))

    def refresh(self, lifetime: int | None = None, *attributes: Attribute) -> Message | None:
        """Ask for more time, or for the end."""
        asked = () if lifetime is None else ((a.LIFETIME, lifetime),)
        return self.ask(Method.REFRESH, *asked, *attributes)

    def indicate(self, peer: Address, data: bytes, *attributes: Attribute) -> None:
        """Send data to a peer by a Send indication."""
        message = Message.indication(Method.SEND, self.desk.rng.randbytes(12))
        message.add(a.XOR_PEER_ADDRESS, peer).add(a.DATA, data)
        for attribute, value in attributes:
            message.add(attribute, value)
        self.send(encode(message))

    def push(self, number: int, data: bytes) -> None:
        """Send data to a peer over a channel."""
        padded = self.transport in (Transport.TCP, Transport.TLS)
        self.send(channel_data(number, data, pad=padded))


def code(response: Message | None) -> int:
    """Return the error code of a response, 0 for success, -1 for silence."""
    if response is None:
        return -1
    error = response.get(a.ERROR_CODE)
    return 0 if error is None else error.code
