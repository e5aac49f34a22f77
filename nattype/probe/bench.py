"""The sockets that the tests use, and the requests that are under way on them.

Theory of operation.  A :class:`Bench` turns what the driver reports into values that strands can
await, and what strands ask for into outputs.  It differs from :class:`stun.client.Client` in what
it lets a test see: an answer that came from the wrong address, or to the wrong socket, or after the
request was given up, is nothing to a client and evidence to a diagnosis.  What protects a client
protects the bench too: an answer counts only with a transaction id of ours (96 unpredictable bits),
and where it came from is compared with where it should come from.

Sockets stay open until the diagnosis ends.  A closed port could be given to the next "fresh"
socket, and the NAT would remember it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from nattype.observations import Dialled
from nattype.probe.requests import Inquiry, UdpSocket
from nattype.probe.strand import Strands, Wait
from nattype.probe.streams import Dialling, Listener, Stream
from stun import codec
from stun.errors import DecodeError, Dropped, DropReason
from stun.registry import Class, Method
from stun.sansio import (
    Accepted,
    Address,
    Arrived,
    Cause,
    Closed,
    Connected,
    Dial,
    Entropy,
    Handle,
    Instant,
    Listen,
    Opened,
    OpenUdp,
    Output,
    Received,
    Shut,
    SocketEvent,
    Undeliverable,
)

_MOST_STRAYS = 64


@dataclass(frozen=True, slots=True)
class Progress:
    """The event that tells how far the diagnosis is: ``done`` of ``total`` steps, and which."""

    name: str
    done: int
    total: int

    def __str__(self) -> str:
        return f"{self.name} ({self.done} of {self.total})"


class SocketUnavailable(Exception):
    """The operating system did not give a socket; the test cannot be made."""

    def __init__(self, cause: Cause, detail: str) -> None:
        super().__init__(f"{cause.value}: {detail}" if detail else cause.value)
        self.cause = cause


class Hearing:
    """Datagrams from one address that are not STUN and were asked for."""

    __slots__ = ("_heard", "news")

    def __init__(self) -> None:
        self.news: Wait[None] = Wait()
        self._heard: list[bytes] = []

    def put(self, data: bytes) -> None:
        """Keep a datagram."""
        self._heard.append(data)
        self.news.set(None)

    def take(self) -> list[bytes]:
        """Return what was heard since the last time."""
        heard, self._heard = self._heard, []
        self.news = Wait()
        return heard


class Bench:
    """Sockets by handle, requests by transaction id, and the queue of outputs and events.

    ``host``: the numeric address of this host that every socket is bound to, so that "local" is an
    address that can be compared with a mapped one (0.0.0.0 cannot).
    """

    def __init__(
        self,
        strands: Strands,
        outputs: deque[object],
        host: str,
        first_handle: int,
        entropy: Entropy,
    ) -> None:
        self.strands = strands
        self.host = host
        self.entropy = entropy
        self.started: Instant = strands.now
        self.inquiries: dict[bytes, Inquiry] = {}
        self.nonces: dict[bytes, Wait[Address]] = {}
        self.strays: dict[Address, None] = {}
        """Who sent what is no answer; bounded, since anybody may."""
        self._hearings: dict[tuple[int, Address], Hearing] = {}
        self._outputs = outputs
        self._next_handle = first_handle
        self._sockets: dict[Handle, UdpSocket | Stream | Listener | Dialling] = {}
        self._ports: dict[int, UdpSocket] = {}
        self._accepted: set[Handle] = set()

    # What strands ask for.

    def put(self, output: Output) -> None:
        """Queue an output for the driver."""
        self._outputs.append(output)

    def drop(self, reason: DropReason, source: Address | None, detail: str = "") -> None:
        """Say that something was not used, and why."""
        self._outputs.append(Dropped(reason, source, detail))
        if source is not None and len(self.strays) < _MOST_STRAYS:
            self.strays[source] = None

    def shut(self, handle: Handle, *, reset: bool = False) -> None:
        """Close a socket of any kind and forget it."""
        self._sockets.pop(handle, None)
        self.put(Shut(handle, reset))

    def _handle(self) -> Handle:
        handle = self._next_handle
        self._next_handle += 1
        return handle

    async def udp(self) -> UdpSocket:
        """Bind a fresh UDP socket.  Raises :class:`SocketUnavailable`."""
        socket = UdpSocket(self, self._handle())
        self._sockets[socket.handle] = socket
        self.put(OpenUdp(socket.handle, socket.local))
        failure = await socket.opened
        if failure is not None:
            raise SocketUnavailable(failure.cause, failure.detail)
        return socket

    def hear(self, socket: UdpSocket, remote: Address) -> Hearing:
        """Hear what ``remote`` sends to ``socket``, as it is: it speaks another protocol."""
        return self._hearings.setdefault((socket.local.port, remote), Hearing())

    async def listen(self, port: int) -> Listener:
        """Listen for TCP connections on ``port``.  Raises :class:`SocketUnavailable`."""
        listener = Listener(self._handle(), Address(self.host, port))
        self._sockets[listener.handle] = listener
        self.put(Listen(listener.handle, listener.local))
        failure = await listener.opened
        if failure is not None:
            raise SocketUnavailable(failure.cause, failure.detail)
        return listener

    def start_dial(self, remote: Address, local_port: int = 0) -> Dialling:
        """Send a SYN to ``remote``, from a fresh port or a given one."""
        local = Address(self.host, local_port)
        dialling = Dialling(self._handle(), local, remote, self.strands.now)
        self._sockets[dialling.handle] = dialling
        self.put(Dial(dialling.handle, local, remote))
        return dialling

    async def finish_dial(self, dialling: Dialling, within: int) -> tuple[Stream | None, Dialled]:
        """Wait for an attempt to end, ``within`` ns at most, and say how it did."""
        try:
            await self.strands.any_of(dialling.outcome, within=within)
        finally:
            if not dialling.outcome.done:
                self.shut(dialling.handle)
        outcome = dialling.outcome.value
        took = self.strands.now - dialling.since
        at = dialling.since - self.started
        match outcome:
            case Stream():
                return outcome, Dialled(outcome.local, outcome.remote, True, took=took, at=at)
            case Closed():
                cause = outcome.cause
            case None:
                cause = Cause.TIMED_OUT
        return None, Dialled(dialling.local, dialling.remote, False, cause, took, at)

    async def dial(
        self, remote: Address, within: int, local_port: int = 0
    ) -> tuple[Stream | None, Dialled]:
        """Open a TCP connection, and say how the attempt ended."""
        return await self.finish_dial(self.start_dial(remote, local_port), within)

    def close_all(self) -> None:
        """Close everything."""
        for handle in (*self._sockets, *sorted(self._accepted)):
            self.put(Shut(handle))
        self._sockets.clear()
        self._accepted.clear()
        self._ports.clear()
        self.inquiries.clear()
        self.nonces.clear()
        self._hearings.clear()

    # What the driver reports.

    def owns(self, handle: Handle) -> bool:
        """Whether ``handle`` is a socket of this bench."""
        return handle in self._sockets or handle in self._accepted

    def receive(self, packet: Received, now: Instant) -> None:
        """Take a datagram."""
        hearing = self._hearings.get((packet.local.port, packet.source))
        if hearing is not None:
            hearing.put(packet.data)
            return
        try:
            message = codec.decode(packet.data)
        except DecodeError as wrong:
            self.drop(wrong.reason, packet.source, wrong.detail)
            return
        if message.method != Method.BINDING:
            self.drop(DropReason.UNKNOWN_METHOD, packet.source)
        elif message.message_class in (Class.SUCCESS, Class.ERROR):
            inquiry = self.inquiries.get(message.transaction_id)
            if inquiry is None:
                self.drop(DropReason.UNKNOWN_TRANSACTION, packet.source)
            elif (reason := inquiry.take(message, packet, now)) is not None:
                self.drop(reason, packet.source)
        elif (nonce := self.nonces.get(message.transaction_id)) is not None:
            nonce.set(packet.source)
        else:
            self.drop(DropReason.UNEXPECTED_CLASS, packet.source)

    def on_socket(self, event: SocketEvent) -> None:
        """Take what happened to a socket."""
        match event:
            case Opened(handle, local):
                self._on_opened(handle, local)
            case Connected(handle, local, remote):
                dialling = self._sockets.get(handle)
                if isinstance(dialling, Dialling):
                    stream = Stream(self, handle, local, remote)
                    self._sockets[handle] = stream
                    dialling.outcome.set(stream)
                else:
                    self.drop(DropReason.UNKNOWN_STREAM, remote)
            case Accepted(listener, handle, _, remote):
                owner = self._sockets.get(listener)
                if isinstance(owner, Listener):
                    owner.accepted.append(remote)
                    self._accepted.add(handle)
                else:
                    self.put(Shut(handle, reset=True))
                    self.drop(DropReason.UNKNOWN_STREAM, remote)
            case Arrived(handle, data):
                self._on_arrived(handle, data)
            case Closed():
                self._on_closed(event)
            case Undeliverable(local, destination):
                self._on_undeliverable(local, destination)

    def _on_opened(self, handle: Handle, local: Address) -> None:
        socket = self._sockets.get(handle)
        if isinstance(socket, UdpSocket | Listener):
            socket.local = local
            if isinstance(socket, UdpSocket):
                self._ports[local.port] = socket
            socket.opened.set(None)

    def _on_arrived(self, handle: Handle, data: bytes) -> None:
        stream = self._sockets.get(handle)
        if isinstance(stream, Stream):
            stream.feed(data)
        elif handle in self._accepted:
            # The server has said what it had to say; that it could connect was the test.
            self._accepted.discard(handle)
            self.put(Shut(handle))
        else:
            self.drop(DropReason.UNKNOWN_STREAM, None)

    def _on_closed(self, event: Closed) -> None:
        socket = self._sockets.pop(event.handle, None)
        match socket:
            case UdpSocket() | Listener():
                socket.opened.set(event)
            case Dialling():
                socket.outcome.set(event)
            case Stream():
                socket.ended.set(event.cause)
            case None:
                self._accepted.discard(event.handle)

    def _on_undeliverable(self, local: Address, destination: Address) -> None:
        socket = self._ports.get(local.port)
        if socket is None:
            return
        for inquiry in socket.inquiries:
            if inquiry.server == destination and inquiry.message is None:
                inquiry.icmp += 1
