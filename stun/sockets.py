"""The part of a driver that no runtime changes: it owns the sockets and speaks with the machine.

A runtime gives a :class:`Reactor`: which descriptors to watch, when to wake up, what time it is.
:class:`Sockets` does the rest: it carries out what the machine asks for, and tells the machine what
became of it.  :mod:`stun.aio` and :mod:`stun.blocking` are reactors and little else.
"""

from __future__ import annotations

import ssl
from collections import Counter, deque
from collections.abc import Callable, Hashable, Mapping
from contextlib import suppress
from typing import Any, Final, Generic, Protocol, TypeVar

from stun.errors import UsageError
from stun.sansio import (
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
    Shut,
    SocketEvent,
    SocketMachine,
    Timers,
    Transmit,
    Write,
)
from stun.sockaddr import cause_of_bind, detail_of
from stun.tcp import ACCEPTS, Listener, State, Stream, StreamEnded
from stun.udp import UdpSocket

Event = TypeVar("Event")
Callback = Callable[[], None]

LINGER: Final = 5 * SECOND
"""How long a stream that the machine shut may still need to get rid of its last bytes."""
HANDSHAKE: Final = 10 * SECOND
"""How long an accepted connection may take for its TLS handshake."""
HANDSHAKES: Final = 256
"""TLS handshakes of accepted connections at once: for one more the oldest gives way."""
ACCEPT_PAUSE: Final = SECOND // 5
"""How long a listener rests when the system has no descriptor or memory for another connection."""
EVENT_LIMIT: Final = 65536
"""Events that are kept when nobody takes them; the oldest go first."""


class Reactor(Protocol):
    """What a runtime gives."""

    def now(self) -> Instant:
        """Return the monotonic time in nanoseconds."""
        ...

    def watch(self, fd: int, readable: Callback | None, writable: Callback | None) -> None:
        """Call back while ``fd`` is ready, level-triggered, in place of what was watched before."""
        ...

    def unwatch(self, fd: int) -> None:
        """Watch ``fd`` no longer; nothing happens when it is not watched."""
        ...

    def wake_at(self, at: Instant | None) -> None:
        """Call :meth:`Sockets.on_time` at ``at``, in place of any earlier order.  May be early."""
        ...


class Sockets(Generic[Event]):
    """The sockets of one machine.

    ``on_event`` is given everything the machine polls that is not an order to the driver; without
    one it is put into ``kept``, the newest :data:`EVENT_LIMIT` of it.  A stream dialled with a
    ``server_name`` is verified by ``tls``, the system's trust store by default.  A
    :class:`stun.sansio.Listen` for a port in ``tls_ports`` accepts TLS with that context.
    """

    def __init__(
        self,
        machine: SocketMachine[Event],
        reactor: Reactor,
        on_event: Callable[[Event], None] | None,
        *,
        tls: ssl.SSLContext | None = None,
        tls_ports: Mapping[int, ssl.SSLContext] | None = None,
    ) -> None:
        self.machine = machine
        self._reactor = reactor
        self._on_event = on_event or self.keep
        self.kept: deque[Event] = deque(maxlen=EVENT_LIMIT)
        self._tls = tls
        self._tls_ports = dict(tls_ports or {})
        self._udp: dict[Handle, UdpSocket] = {}
        self._from: dict[Address, UdpSocket] = {}
        self._listeners: dict[Handle, Listener] = {}
        self._streams: dict[Handle, Stream] = {}
        # Streams that the machine has let go of and whose last bytes are still on their way.
        self._leaving: set[Stream] = set()
        # Accepted streams whose TLS handshake goes on, the oldest first.
        self._handshakes: dict[Stream, None] = {}
        self._timers: Timers[Hashable] = Timers()
        self._news: deque[SocketEvent] = deque()
        self._accepted = 0
        self._pumping = False
        self._closed = False
        self._counts: Counter[str] = Counter()
        self._perform: dict[type, Callable[[Any], None]] = {
            OpenUdp: self._open_udp,
            Listen: self._listen,
            Dial: self._dial,
            Write: self._write,
            Shut: self._shut,
        }

    # Between the machine and the driver. ----------------------------------------------------------

    def flush(self) -> None:
        """Carry out what the machine has queued, then order the next wake-up."""
        self._pump()
        self._arm()

    def on_time(self) -> None:
        """Let the machine, and the sockets' own timers, notice the time."""
        now = self._reactor.now()
        for key in self._timers.expired(now):
            self._on_timer(key)
        due = self.machine.deadline()
        if due is not None and due <= now:
            self.machine.on_deadline(now)
        self.flush()

    def _arm(self) -> None:
        if self._closed:
            return
        at = self.machine.deadline()
        if self._timers:
            own = self._timers.next()
            at = own if at is None or (own is not None and own < at) else at
        self._reactor.wake_at(at)

    def _pump(self) -> None:
        if self._pumping:  # a command given from within on_event: the loop below goes on with it
            return
        self._pumping = True
        try:
            poll = self.machine.poll
            while not self._closed:
                output = poll()
                if type(output) is Transmit:
                    port = self._from.get(output.source) or self._wildcard_for(output.source)
                    if port is None:
                        self._counts["not sent: no socket has this source address"] += 1
                    else:
                        port.send(output.data, output.destination, output.source)
                elif output is None:
                    # Only now, with its queue drained, is the machine told what became of orders.
                    if not self._news:
                        break
                    self.machine.on_socket(self._news.popleft(), self._reactor.now())
                elif (perform := self._perform.get(type(output))) is not None:
                    perform(output)
                else:
                    self._on_event(output)  # type: ignore[arg-type]
        finally:
            self._pumping = False

    def keep(self, event: Event) -> None:
        """Put an event into ``kept``."""
        if len(self.kept) == EVENT_LIMIT:
            self._counts["events that nobody took"] += 1
        self.kept.append(event)

    def _tell(self, event: SocketEvent) -> None:
        self._news.append(event)
        self._pump()

    def _wildcard_for(self, source: Address) -> UdpSocket | None:
        host = "::" if source.is_ipv6 else "0.0.0.0"  # noqa: S104  (a lookup, not a bind)
        return self._from.get(Address(host, source.port))

    @property
    def counters(self) -> Mapping[str, int]:
        """Counts since the start, by what they count, in words for a person."""
        counts = Counter(self._counts)
        for port in self._udp.values():
            _count_udp(counts, port)
        return counts

    def _check_free(self, handle: Handle) -> None:
        if handle in self._udp or handle in self._listeners or handle in self._streams:
            raise UsageError(f"socket {handle} is open already")

    # UDP. -----------------------------------------------------------------------------------------

    def _open_udp(self, order: OpenUdp) -> None:
        self._check_free(order.handle)
        try:
            port = UdpSocket(order.handle, order.local)
        except OSError as error:
            self._tell(Closed(order.handle, cause_of_bind(error), detail_of(error)))
            return
        self._udp[order.handle] = port
        self._from[port.local] = port
        self._reactor.watch(port.sock.fileno(), lambda: self._udp_readable(port), None)
        self._tell(Opened(order.handle, port.local))

    def _udp_readable(self, port: UdpSocket) -> None:
        packets, errors = port.drain()
        now = self._reactor.now()
        receive, pump, handle, ours = self.machine.receive, self._pump, port.handle, self._udp
        for packet in packets:
            if handle not in ours:  # shut because of the packet before: nothing follows
                break
            receive(packet, now)
            pump()
        else:
            for error in errors:
                self._tell(error)
        self._arm()

    # TCP listeners. -------------------------------------------------------------------------------

    def _listen(self, order: Listen) -> None:
        self._check_free(order.handle)
        tls = None if order.silent else self._tls_ports.get(order.local.port)
        try:
            listener = Listener(order.handle, order.local, silent=order.silent, tls=tls)
        except OSError as error:
            self._tell(Closed(order.handle, cause_of_bind(error), detail_of(error)))
            return
        self._listeners[order.handle] = listener
        if not order.silent:
            self._watch_listener(listener)
        self._tell(Opened(order.handle, listener.local))

    def _watch_listener(self, listener: Listener) -> None:
        self._reactor.watch(listener.sock.fileno(), lambda: self._acceptable(listener), None)

    def _acceptable(self, listener: Listener) -> None:
        for _ in range(ACCEPTS):
            if self._listeners.get(listener.handle) is not listener:
                break
            try:
                connection = listener.accept()
            except OSError as error:
                # EMFILE and its like leave the connection in the queue, so the listener stays
                # ready: without a pause the driver would do nothing but this.
                self._counts[f"not accepted: {detail_of(error)}"] += 1
                self._reactor.unwatch(listener.sock.fileno())
                self._timers.set(listener, self._reactor.now() + ACCEPT_PAUSE)
                break
            if connection is None:
                break
            sock, local, remote = connection
            self._accepted += 1
            stream = Stream(-self._accepted, sock, local, remote, listener=listener.handle)
            self._streams[stream.handle] = stream
            if listener.tls is None:
                self._watch_stream(stream)
                self._tell(Accepted(listener.handle, stream.handle, local, remote))
            else:
                if len(self._handshakes) >= HANDSHAKES:
                    oldest = next(iter(self._handshakes))
                    self._ended(oldest, StreamEnded(Cause.OTHER, "gave way to a newer one"))
                stream.use_tls(listener.tls)
                self._handshakes[stream] = None
                self._timers.set(stream, self._reactor.now() + HANDSHAKE)
                self._watch_stream(stream)
        self._arm()

    # TCP streams. ---------------------------------------------------------------------------------

    def _dial(self, order: Dial) -> None:
        self._check_free(order.handle)
        try:
            stream = Stream.dial(order.handle, order.local, order.remote)
        except StreamEnded as end:
            self._tell(Closed(order.handle, end.cause, end.detail))
            return
        except OSError as error:
            self._tell(Closed(order.handle, cause_of_bind(error), detail_of(error)))
            return
        if order.server_name is not None:
            try:
                if self._tls is None:
                    self._tls = ssl.create_default_context()
                stream.use_tls(self._tls, server_name=order.server_name)
            except (ssl.SSLError, ValueError) as error:
                stream.close(reset=True)
                self._tell(Closed(order.handle, Cause.TLS_FAILED, str(error)))
                return
        self._streams[order.handle] = stream
        self._watch_stream(stream)

    def _watch_stream(self, stream: Stream) -> None:
        deaf = stream.state is State.CONNECTING or _is_held_back(stream)
        self._reactor.watch(
            stream.sock.fileno(),
            None if deaf else lambda: self._stream_readable(stream),
            (lambda: self._stream_writable(stream)) if stream.wants_write else None,
        )

    def _stream_writable(self, stream: Stream) -> None:
        try:
            if stream.state is State.CONNECTING:
                if stream.connected():
                    self._tell(Connected(stream.handle, stream.local, stream.remote))
            else:
                stream.flush()
        except StreamEnded as end:
            self._ended(stream, end)
        else:
            if stream in self._leaving and not stream.wants_write:
                self._let_go(stream)
            elif stream.state is not State.CLOSED and stream not in self._leaving:
                self._watch_stream(stream)
        self._arm()

    def _stream_readable(self, stream: Stream) -> None:
        waited = stream.wants_write
        try:
            if stream.state is State.HANDSHAKE and stream.handshake():
                self._timers.cancel(stream)
                self._handshakes.pop(stream, None)
                local, remote = stream.local, stream.remote
                if stream.listener is None:
                    self._tell(Connected(stream.handle, local, remote))
                else:
                    self._tell(Accepted(stream.listener, stream.handle, local, remote))
            # What the machine does about one piece may shut the stream.
            while stream.state is State.OPEN and (data := stream.read()) is not None:
                if stream not in self._leaving:  # nobody is left to tell otherwise
                    self._tell(Arrived(stream.handle, data))
                if stream.end is None:
                    break  # one read a wake-up, so that others get their turn
        except StreamEnded as end:
            self._ended(stream, end)
        else:
            left = stream.state is State.CLOSED or stream in self._leaving
            if not left and stream.wants_write != waited:
                self._watch_stream(stream)
        self._arm()

    def _write(self, order: Write) -> None:
        stream = self._streams.get(order.handle)
        if stream is None or stream.state is not State.OPEN:
            # Not the machine's fault: the stream may have ended while the order was queued.
            self._counts["not written: the stream is not open"] += 1
            return
        waited = stream.wants_write
        try:
            stream.write(order.data)
        except StreamEnded as end:
            self._ended(stream, end)
        else:
            if stream.wants_write and not waited:
                self._watch_stream(stream)

    def _ended(self, stream: Stream, end: StreamEnded) -> None:
        """Take the end of a stream, and tell the machine if the stream is still its own."""
        known = self._streams.get(stream.handle) is stream
        announced = stream.state is not State.HANDSHAKE or stream.listener is None
        if not known:
            self._let_go(stream)
            return
        del self._streams[stream.handle]
        if end.cause is Cause.END_OF_STREAM and stream.wants_write:
            # The peer has said all it wants to say and may still listen.
            self._leave(stream)
        else:
            self._let_go(stream)
        if announced:
            self._tell(Closed(stream.handle, end.cause, end.detail))
        else:
            self._counts[f"TLS handshake failed: {end.detail or end.cause.value}"] += 1

    def _leave(self, stream: Stream) -> None:
        self._leaving.add(stream)
        self._timers.set(stream, self._reactor.now() + LINGER)
        self._reactor.watch(stream.sock.fileno(), None, lambda: self._stream_writable(stream))

    def _let_go(self, stream: Stream, *, reset: bool = False) -> None:
        self._leaving.discard(stream)
        self._handshakes.pop(stream, None)
        self._timers.cancel(stream)
        if stream.state is not State.CLOSED:
            self._reactor.unwatch(stream.sock.fileno())
            stream.close(reset=reset)

    # Closing. -------------------------------------------------------------------------------------

    def _shut(self, order: Shut) -> None:
        handle = order.handle
        if self._news:  # "no event follows", also none that is known already
            self._news = deque(e for e in self._news if getattr(e, "handle", None) != handle)
        if (stream := self._streams.pop(handle, None)) is not None:
            stream.farewell()
            if stream.state is State.OPEN and stream.wants_write and not order.reset:
                self._leave(stream)
            else:
                self._let_go(stream, reset=order.reset)
        elif (port := self._udp.pop(handle, None)) is not None:
            del self._from[port.local]
            self._reactor.unwatch(port.sock.fileno())
            port.close()
            _count_udp(self._counts, port)
        elif (listener := self._listeners.pop(handle, None)) is not None:
            self._timers.cancel(listener)
            self._reactor.unwatch(listener.sock.fileno())
            listener.close()

    def _on_timer(self, key: Hashable) -> None:
        if isinstance(key, Listener):
            self._watch_listener(key)
        elif isinstance(key, Stream):
            if key in self._leaving:
                self._let_go(key, reset=True)
            else:
                self._ended(key, StreamEnded(Cause.TIMED_OUT, "took too long"))

    def close(self) -> None:
        """Close every descriptor.  The machine is told nothing any more."""
        if self._closed:
            return
        self._closed = True
        self._reactor.wake_at(None)
        for stream in {*self._streams.values(), *self._leaving}:
            stream.farewell()
            self._let_go(stream)
        for handle in [*self._udp, *self._listeners]:
            with suppress(OSError):
                self._shut(Shut(handle))
        self._streams.clear()


def _is_held_back(stream: Stream) -> bool:
    """Whether nothing is read until the peer has read what waits for it.

    Or a client that asks without end and takes no answer would fill the memory; TCP's window holds
    it back instead.  Only where it was the peer that connected: two ends that both did so might
    wait for each other.
    """
    return stream.listener is not None and stream.wants_write


def _count_udp(counts: Counter[str], port: UdpSocket) -> None:
    counts["datagrams received"] += port.received
    counts["datagrams sent"] += port.sent
    for reason, count in port.refused.items():
        counts[f"not sent: {reason}"] += count


__all__ = ["EVENT_LIMIT", "HANDSHAKE", "HANDSHAKES", "LINGER", "Reactor", "Sockets"]
