"""The rendezvous as a machine: listeners, WebSockets, and the hall behind them.

Theory of operation.  A machine of :mod:`stun.sansio` that opens sockets; :class:`stun.aio.Driver`
runs it, TLS and all.  Each accepted stream is a :class:`ice.rendezvous.web.WebConnection`; one that
has become a WebSocket is a client of the :class:`ice.rendezvous.hall.Hall`.  What the hall asks of
the book of names (:class:`Claim`, :class:`Release`, :class:`Post`) passes through to the driver,
which has it from :meth:`stun.aio.Driver.take`; what the book says comes in by the hall's own
methods, after which :meth:`Driver.flush` has to be called.

Nobody is sent more than they read: while a client's stream is congested its peer is not read from,
and a stream that stays congested is closed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeAlias

from ice.rendezvous.access import Visitor
from ice.rendezvous.hall import Hall
from ice.rendezvous.protocol import ErrorCode, ServerMessage
from ice.rendezvous.terms import Claim, End, Ping, Post, Release, Send, Told
from ice.rendezvous.web import (
    Alive,
    Broken,
    Failed,
    Hosts,
    Left,
    Text,
    Upgraded,
    WebConnection,
    WebEvent,
    forwarded_client,
)
from stun.sansio import (
    SECOND,
    Accepted,
    Address,
    Arrived,
    Cause,
    Closed,
    Congested,
    Handle,
    Hold,
    Instant,
    Listen,
    Opened,
    Received,
    Relieved,
    Shut,
    SocketEvent,
    Write,
)

HANDSHAKE: Final = 10 * SECOND
"""How long a connection may take to become a WebSocket."""
HANDSHAKES: Final = 1024
"""Connections that are about to do so at once: for one more the oldest gives way."""
SLUGGISH: Final = 20 * SECOND
"""How long a client may leave unread what it was sent."""


@dataclass(frozen=True, slots=True)
class Serving:
    """A listener is open."""

    local: Address


@dataclass(frozen=True, slots=True)
class CannotServe:
    """A listener could not be had, or is gone."""

    local: Address
    cause: Cause
    detail: str


RendezvousEvent: TypeAlias = Serving | CannotServe | Claim | Release | Post | Told
Polled: TypeAlias = Listen | Write | Hold | Shut | RendezvousEvent


class _Stream:
    __slots__ = ("client", "congested", "handle", "held", "local", "remote", "web")

    def __init__(self, handle: Handle, local: Address, remote: Address) -> None:
        self.handle = handle
        self.local = local
        self.remote = remote
        self.web = WebConnection()
        self.client: int | None = None
        self.congested = False
        self.held = False


class Rendezvous:
    """Everything that a rendezvous does, but for input, output and the book of names.

    ``proxies``: whose ``X-Forwarded-For`` is believed.  ``health`` adds to what ``/health`` says.
    """

    def __init__(
        self,
        hall: Hall,
        *,
        proxies: Hosts = (),
        health: Callable[[], dict[str, object]] = dict,
    ) -> None:
        self.hall = hall
        self.proxies = proxies
        self._more_health = health
        self._queue: deque[Polled] = deque()
        self._last: Handle = 0
        self._listeners: dict[Handle, Address] = {}
        self._streams: dict[Handle, _Stream] = {}
        self._by_client: dict[int, _Stream] = {}
        # In these two the earliest is first, as what is added waits equally long.
        self._entering: dict[Handle, Instant] = {}
        self._sluggish: dict[Handle, Instant] = {}

    # Commands. ------------------------------------------------------------------------------------

    def listen(self, places: Iterable[Address]) -> None:
        """Open listeners; each is told of by :class:`Serving` or :class:`CannotServe`."""
        for local in places:
            self._last += 1
            self._listeners[self._last] = local
            self._queue.append(Listen(self._last, local, exclusive=True))

    def stop_listening(self, places: Iterable[Address]) -> None:
        """Close listeners; their clients stay."""
        wanted = set(places)
        for handle, local in [*self._listeners.items()]:
            if local in wanted:
                del self._listeners[handle]
                self._queue.append(Shut(handle))

    def stop(self, now: Instant) -> None:
        """Close the listeners, and every connection after telling its client why."""
        self.stop_listening([*self._listeners.values()])
        self.hall.shut_down(now)
        self._take_from_hall()
        for stream in [*self._streams.values()]:
            self._shut(stream, now)

    @property
    def open_listeners(self) -> list[Address]:
        """The listeners that are open, or about to be."""
        return [*self._listeners.values()]

    # The shape of a machine. ----------------------------------------------------------------------

    def receive(self, packet: Received, now: Instant) -> None:
        """Do nothing: there are no datagrams here."""

    def on_socket(self, event: SocketEvent, now: Instant) -> None:
        """Take what happened to a socket."""
        match event:
            case Accepted():
                self._on_accepted(event, now)
            case Arrived():
                stream = self._streams.get(event.handle)
                if stream is not None:
                    self._on_octets(stream, event.data, now)
            case Congested():
                self._on_congestion(event.handle, True, now)
            case Relieved():
                self._on_congestion(event.handle, False, now)
            case Opened():
                if event.handle in self._listeners:
                    self._listeners[event.handle] = event.local
                    self._queue.append(Serving(event.local))
            case Closed():
                local = self._listeners.pop(event.handle, None)
                if local is not None:
                    self._queue.append(CannotServe(local, event.cause, event.detail))
                stream = self._streams.get(event.handle)
                if stream is not None:
                    self._forget(stream)
                    if stream.client is not None:
                        self.hall.closed(stream.client, now, cleanly=False)
            case _:
                pass
        self._take_from_hall()

    def on_deadline(self, now: Instant) -> None:
        """Take notice that time has passed."""
        self.hall.on_deadline(now)
        for table in (self._entering, self._sluggish):
            for handle in [handle for handle, at in table.items() if at <= now]:
                stream = self._streams[handle]
                if stream.client is not None:
                    self.hall.refuse(stream.client, ErrorCode.SLOW, now)
                else:
                    self._shut(stream, now)
        self._take_from_hall()

    def deadline(self) -> Instant | None:
        """Say when :meth:`on_deadline` is to be called, or ``None``."""
        found = self.hall.deadline()
        for table in (self._entering, self._sluggish):
            if table:
                first = next(iter(table.values()))
                found = first if found is None or first < found else found
        return found

    def poll(self) -> Polled | None:
        """Give the next thing to do or to tell, or ``None`` when there is none."""
        if not self._queue:
            self._take_from_hall()
        return self._queue.popleft() if self._queue else None

    # Streams. -------------------------------------------------------------------------------------

    def _on_accepted(self, event: Accepted, now: Instant) -> None:
        if len(self._entering) >= HANDSHAKES:
            self._shut(self._streams[next(iter(self._entering))], now)
        stream = _Stream(event.handle, event.local, event.remote)
        self._streams[event.handle] = stream
        self._entering[event.handle] = now + HANDSHAKE

    def _on_octets(self, stream: _Stream, data: bytes, now: Instant) -> None:
        for event in stream.web.receive(data, self._health):
            self._on_web(stream, event, now)
        if stream.handle in self._streams:
            self._flush(stream, now)

    def _health(self) -> dict[str, object]:
        return {"status": "ok", **self.hall.states(), **self._more_health()}

    def _on_web(self, stream: _Stream, event: WebEvent, now: Instant) -> None:
        match event:
            case Upgraded():
                self._entering.pop(stream.handle, None)
                client = forwarded_client(stream.remote, event.forwarded, self.proxies)
                number = self.hall.opened(Visitor(client, stream.local), now)
                stream.client = number
                self._by_client[number] = stream
                self._take_from_hall()
            case Failed():
                self.hall.counts.dropped["what the WebSocket library cannot read"] += 1
                self._shut(stream, now)
            case _ if stream.client is None:
                pass
            case Text():
                self.hall.received(stream.client, event.text, now)
            case Alive():
                self.hall.heard(stream.client, now)
            case Left():
                self.hall.closed(stream.client, now, cleanly=True)
            case Broken():
                self.hall.refuse(stream.client, event.code, now, event.text)

    def _on_congestion(self, handle: Handle, congested: bool, now: Instant) -> None:
        stream = self._streams.get(handle)
        if stream is None:
            return
        stream.congested = congested
        if congested:
            self._sluggish[handle] = now + SLUGGISH
        else:
            self._sluggish.pop(handle, None)
        self._hold(stream)
        peer = None if stream.client is None else self.hall.peer_of(stream.client)
        if peer is not None and peer in self._by_client:
            self._hold(self._by_client[peer])

    def _hold(self, stream: _Stream) -> None:
        peer = None if stream.client is None else self.hall.peer_of(stream.client)
        other = None if peer is None else self._by_client.get(peer)
        held = stream.congested or (other is not None and other.congested)
        if held is not stream.held:
            stream.held = held
            self._queue.append(Hold(stream.handle, held))

    def _flush(self, stream: _Stream, now: Instant) -> None:
        octets, ended = stream.web.take_output()
        if octets:
            self._queue.append(Write(stream.handle, octets))
        if ended:
            self._shut(stream, now)

    def _shut(self, stream: _Stream, now: Instant) -> None:
        if stream.handle in self._streams:
            self._forget(stream)
            self._queue.append(Shut(stream.handle))
            if stream.client is not None:
                self.hall.closed(stream.client, now, cleanly=False)

    def _forget(self, stream: _Stream) -> None:
        del self._streams[stream.handle]
        self._entering.pop(stream.handle, None)
        self._sluggish.pop(stream.handle, None)
        if stream.client is not None:
            self._by_client.pop(stream.client, None)

    # The hall. ------------------------------------------------------------------------------------

    def _take_from_hall(self) -> None:
        while (output := self.hall.poll()) is not None:
            match output:
                case Send():
                    self._to_web(output.client, partial(_send, output.message))
                case Ping():
                    self._to_web(output.client, WebConnection.ping)
                case End():
                    self._to_web(output.client, partial(_close, output))
                    stream = self._by_client.get(output.client)
                    if stream is not None:
                        self._forget(stream)
                        self._queue.append(Shut(stream.handle))
                case _:
                    self._queue.append(output)

    def _to_web(self, client: int, act: Callable[[WebConnection], None]) -> None:
        stream = self._by_client.get(client)
        if stream is not None:
            act(stream.web)
            octets, _ = stream.web.take_output()
            if octets:
                self._queue.append(Write(stream.handle, octets))


def _send(message: ServerMessage, web: WebConnection) -> None:
    web.send(message.encode())


def _close(end: End, web: WebConnection) -> None:
    web.close(end.code, end.reason)
