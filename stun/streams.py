"""The TCP part of a driver: listeners, dials and streams of one machine."""

from __future__ import annotations

import ipaddress
import socket
import ssl
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

from stun.datagrams import Core
from stun.entrance import Entrance, Refused
from stun.errors import UsageError
from stun.sansio import (
    SECOND,
    Accepted,
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
    Listen,
    Opened,
    Relieved,
    Security,
    Shut,
    Write,
)
from stun.sockaddr import cause_of_bind, detail_of
from stun.tcp import ACCEPTS, PENDING_MARK, READ_MOST, Listener, State, Stream, StreamEnded
from stun.tls import ServerTls

LINGER: Final = 5 * SECOND
"""How long a stream that the machine shut may still need to get rid of its last bytes, and its peer
to close it, too."""
LEAVING: Final = 1024
"""Streams that may be about to do so at once: for one more the oldest is closed."""
HANDSHAKE: Final = 10 * SECOND
"""How long an accepted connection may take to say what it is, and for its TLS handshake."""
HANDSHAKES: Final = 512
"""Accepted connections that are about to do so at once: for one more the oldest gives way."""
ACCEPT_PAUSE: Final = SECOND // 5
"""How long a listener rests when the system has no descriptor or memory for another connection."""

NO_CERTIFICATE: Final = "there is no certificate to serve TLS with"

Key = TypeVar("Key")

_ENTERING = frozenset({State.ENTERING, State.HANDSHAKE})


class Networks:
    """A set of IP networks to look hosts up in."""

    def __init__(self, networks: Iterable[str]) -> None:
        self._networks = [ipaddress.ip_network(network) for network in networks]

    def __contains__(self, host: str) -> bool:
        address = ipaddress.ip_address(host)
        return any(address in network for network in self._networks)


@dataclass(slots=True, eq=False)
class _Served:
    """A listener and what it asks of the connections that come to it."""

    listener: Listener
    security: Security
    tls: ssl.SSLContext | None
    """The context given for this port alone."""
    proxies: Networks | None

    @property
    def wanted(self) -> Security:
        return Security.REQUIRED if self.tls is not None else self.security


class Streams:
    """Every listener and stream of a machine.

    ``number`` gives the handles of accepted connections; the rest is explained at
    :class:`stun.sockets.Sockets`.
    """

    def __init__(
        self,
        core: Core,
        *,
        number: Callable[[], Handle],
        tls: ssl.SSLContext | None = None,
        tls_ports: Mapping[int, ssl.SSLContext] | None = None,
        server_tls: ServerTls | None = None,
        proxies: Mapping[int, Iterable[str]] | None = None,
    ) -> None:
        self._core = core
        self._number = number
        self._reactor = core.reactor
        self._tls = tls
        self._tls_ports = dict(tls_ports or {})
        self._server_tls = server_tls
        self._proxies = {port: Networks(trusted) for port, trusted in (proxies or {}).items()}
        self.given: Callable[[Address], socket.socket | None] = lambda _: None
        """Returns the listening socket for a local address where it is not to be opened here."""
        self._listeners: dict[Handle, _Served] = {}
        self._streams: dict[Handle, Stream] = {}
        # Streams that the machine has let go of and whose ends are not both closed yet.  In this
        # table and the next two the earliest is first, as what is added waits equally long.
        self._leaving: dict[Stream, Instant] = {}
        # Accepted streams of which the machine does not know: it is not clear yet what they are, or
        # their TLS handshake goes on.
        self._entering: dict[Stream, Instant] = {}
        self._paused: dict[_Served, Instant] = {}
        self.counts: Counter[str] = Counter()
        self.read_most = READ_MOST
        """Octets read from one stream in one wake-up: more, where there are few streams."""

    def __contains__(self, handle: Handle) -> bool:
        return handle in self._streams or handle in self._listeners

    @property
    def owed(self) -> int:
        """Octets that still wait to be sent on streams which the machine has let go of."""
        return sum(stream.waiting for stream in self._leaving)

    # Time. ----------------------------------------------------------------------------------------

    def deadline(self) -> Instant | None:
        """Say when :meth:`on_time` is to be called, or ``None``."""
        if not (self._entering or self._leaving or self._paused):
            return None
        tables = (self._entering, self._leaving, self._paused)
        return min((next(iter(table.values())) for table in tables if table), default=None)

    def on_time(self, now: Instant) -> None:
        """End what took too long; accept again where there was a pause."""
        for stream in [*_due(self._entering, now)]:
            self._ended(stream, StreamEnded(Cause.TIMED_OUT, "took too long"))
        for stream in [*_due(self._leaving, now)]:
            self._let_go(stream, reset=stream.wants_write)
        for served in [*_due(self._paused, now)]:
            del self._paused[served]
            self._watch_listener(served)

    def serve_with(
        self,
        server_tls: ServerTls | None,
        proxies: Mapping[int, Iterable[str]],
        tls_ports: Mapping[int, ssl.SSLContext] | None = None,
    ) -> None:
        """Use another certificate and trust other proxies, for what connects from now on.

        ``tls_ports``, if given, is for listeners that are opened from now on.
        """
        self._server_tls = server_tls
        if tls_ports is not None:
            self._tls_ports = dict(tls_ports)
        self._proxies = {port: Networks(trusted) for port, trusted in proxies.items()}
        for served in self._listeners.values():
            if served.proxies is not None:
                served.proxies = self._proxies.get(served.listener.local.port, Networks(()))

    # TCP listeners. -------------------------------------------------------------------------------

    def listen(self, order: Listen) -> None:
        """Listen on a port."""
        if order.security is not Security.NONE and self._server_tls is None:
            self._core.tell(Closed(order.handle, Cause.TLS_FAILED, NO_CERTIFICATE))
            return
        try:
            listener = Listener(
                order.handle,
                order.local,
                silent=order.silent,
                exclusive=order.exclusive,
                # Only those for everybody: what else is listened on is this machine's alone.
                sock=self.given(order.local) if order.exclusive else None,
            )
        except OSError as error:
            self._core.tell(Closed(order.handle, cause_of_bind(error), detail_of(error)))
            return
        port = listener.local.port
        served = _Served(
            listener, order.security, self._tls_ports.get(port), self._proxies.get(port)
        )
        self._listeners[order.handle] = served
        if not order.silent:
            self._watch_listener(served)
        self._core.tell(Opened(order.handle, listener.local))

    def _watch_listener(self, served: _Served) -> None:
        self._reactor.watch(served.listener.sock.fileno(), lambda: self._acceptable(served), None)

    def _acceptable(self, served: _Served) -> None:
        listener = served.listener
        for _ in range(ACCEPTS):
            if self._listeners.get(listener.handle) is not served:
                break
            try:
                connection = listener.accept()
            except OSError as error:
                # EMFILE and its like leave the connection in the queue, so the listener stays
                # ready: without a pause the driver would do nothing but this.
                self.counts[f"not accepted: {detail_of(error)}"] += 1
                self._reactor.unwatch(listener.sock.fileno())
                self._paused[served] = self._reactor.now() + ACCEPT_PAUSE
                break
            if connection is None:
                break
            self._accept(served, *connection)
        self._core.settle()

    def _accept(
        self, served: _Served, sock: socket.socket, local: Address, remote: Address
    ) -> None:
        proxies = served.proxies
        if proxies is not None and remote.host not in proxies:
            # Whoever may say this may pass for anybody.
            self.counts["not accepted: not one of the proxies"] += 1
            sock.close()
            return
        stream = Stream(self._number(), sock, local, remote, listener=served.listener.handle)
        stream.read_most = self.read_most
        self._streams[stream.handle] = stream
        if served.tls is not None and proxies is None:
            stream.use_tls(served.tls)
        elif proxies is not None or served.security is not Security.NONE:
            stream.entrance = Entrance(served.wanted, proxied=proxies is not None)
            stream.state = State.ENTERING
        if stream.state is not State.OPEN:
            if len(self._entering) >= HANDSHAKES:
                oldest = next(iter(self._entering))
                self._ended(oldest, StreamEnded(Cause.OTHER, "gave way to a newer one"))
            self._entering[stream] = self._reactor.now() + HANDSHAKE
        self._watch_stream(stream)
        if stream.state is State.OPEN:
            self._announce(stream)

    def _announce(self, stream: Stream) -> None:
        assert stream.listener is not None
        self._entering.pop(stream, None)
        self._core.tell(
            Accepted(stream.listener, stream.handle, stream.local, stream.remote, stream.is_secure)
        )

    def _enter(self, stream: Stream, entrance: Entrance) -> None:
        """Learn what a stream is."""
        assert stream.listener is not None
        data = stream.read_first()
        decision = None if data is None else entrance.feed(data)
        if decision is None:
            return
        if isinstance(decision, Refused):
            stream.say(decision.last_words)
            cause = Cause.TLS_FAILED if decision.last_words else Cause.OTHER
            raise StreamEnded(cause, decision.reason)
        stream.entrance = None
        if decision.header is not None and decision.header.client and decision.header.server:
            stream.remote, stream.local = decision.header.client, decision.header.server
        if decision.secure:
            served = self._listeners[stream.listener]
            context = served.tls
            if context is None:
                if self._server_tls is None:  # taken away since the port was opened
                    raise StreamEnded(Cause.TLS_FAILED, NO_CERTIFICATE)
                context = self._server_tls.streams
            stream.use_tls(context, data=decision.data)
        else:
            stream.open_with(decision.data)
            self._announce(stream)

    def adopt(
        self,
        sock: socket.socket,
        local: Address,
        remote: Address,
        *,
        handle: Handle | None = None,
        listener: Handle | None = None,
        unsent: bytes = b"",
    ) -> Handle:
        """Take a connected stream socket from elsewhere; what :meth:`detach` gives, for one.

        Returns its handle; nothing is told of it.  ``listener``: the one that it would have been
        accepted by.  ``unsent`` is sent first.
        """
        sock.setblocking(False)
        stream = Stream(
            self._number() if handle is None else handle, sock, local, remote, listener=listener
        )
        stream.read_most = self.read_most
        self._streams[stream.handle] = stream
        self._watch_stream(stream)
        if unsent:
            self.send(stream.handle, unsent)
        return stream.handle

    # TCP streams. ---------------------------------------------------------------------------------

    def dial(self, order: Dial) -> None:
        """Open a connection."""
        try:
            stream = Stream.dial(order.handle, order.local, order.remote, ttl=order.ttl)
            stream.read_most = self.read_most
        except StreamEnded as end:
            self._core.tell(Closed(order.handle, end.cause, end.detail))
            return
        except OSError as error:
            self._core.tell(Closed(order.handle, cause_of_bind(error), detail_of(error)))
            return
        if order.server_name is not None:
            try:
                if self._tls is None:
                    self._tls = ssl.create_default_context()
                stream.use_tls(self._tls, server_name=order.server_name)
            except (ssl.SSLError, ValueError, TypeError) as error:  # of what is no server's name
                stream.close(reset=True)
                self._core.tell(Closed(order.handle, Cause.TLS_FAILED, str(error)))
                return
        self._streams[order.handle] = stream
        self._watch_stream(stream)

    def _watch_stream(self, stream: Stream) -> None:
        deaf = stream.state is State.CONNECTING or (
            stream.state is State.OPEN and (stream.held or _is_held_back(stream))
        )
        interest = (not deaf, stream.wants_write)
        if stream.interest != interest:
            stream.interest = interest
            self._reactor.watch(
                stream.sock.fileno(),
                None if deaf else lambda: self._stream_readable(stream),
                (lambda: self._stream_writable(stream)) if stream.wants_write else None,
            )

    def _stream_writable(self, stream: Stream) -> None:
        try:
            if stream.state is State.CONNECTING:
                if stream.connected():
                    self._core.tell(Connected(stream.handle, stream.local, stream.remote))
            else:
                stream.flush()
        except StreamEnded as end:
            self._ended(stream, end)
        else:
            if stream.congested and not stream.wants_write:
                stream.congested = False
                self._core.tell(Relieved(stream.handle))
            if self._is_ours(stream):  # still, after what the machine did about that
                self._watch_stream(stream)
        self._core.settle()

    def _stream_readable(self, stream: Stream) -> None:
        self._read(stream)
        self._core.settle()

    def _read(self, stream: Stream) -> None:
        try:
            if stream.entrance is not None:
                self._enter(stream, stream.entrance)
            if stream.state is State.HANDSHAKE and stream.handshake():
                if stream.listener is None:
                    self._core.tell(Connected(stream.handle, stream.local, stream.remote))
                else:
                    self._announce(stream)
            # What the machine does about one piece may shut the stream, or hold it.
            while stream.state is State.OPEN and not stream.held:
                data = stream.read()
                if data is None:
                    break
                self._core.tell(Arrived(stream.handle, data))
                if stream.end is None:
                    break  # one read a wake-up, so that others get their turn
        except StreamEnded as end:
            self._ended(stream, end)
        else:
            if self._is_ours(stream):
                self._watch_stream(stream)

    def _is_ours(self, stream: Stream) -> bool:
        return self._streams.get(stream.handle) is stream

    def hold(self, order: Hold) -> None:
        """Stop reading a stream, or go on."""
        stream = self._streams.get(order.handle)
        if stream is None:  # it may have ended while the order was queued
            return
        stream.held = order.held
        if stream.has_unread and not stream.held:
            # What came with the end of the handshake, or the end behind the bytes that made the
            # machine hold the stream.
            self._read(stream)
        else:
            self._watch_stream(stream)

    def write(self, order: Write) -> None:
        """Send bytes on a stream."""
        if not self.send(order.handle, order.data):
            # Not the machine's fault: the stream may have ended while the order was queued.
            self.counts["not written: the stream is not open"] += 1

    def send(self, handle: Handle, *parts: bytes | memoryview) -> bool:
        """Send bytes on a stream, if it is open; whether it is."""
        stream = self._streams.get(handle)
        if stream is None or stream.state is not State.OPEN:
            return False
        try:
            stream.write(*parts)
        except StreamEnded as end:
            self._ended(stream, end)
            return True
        if stream.wants_write:
            if not stream.congested and stream.waiting > PENDING_MARK:
                stream.congested = True
                self._core.tell(Congested(stream.handle))
            self._watch_stream(stream)
        return True

    def _ended(self, stream: Stream, end: StreamEnded) -> None:
        """Take the end of a stream, and tell the machine if the stream is still its own."""
        if not self._is_ours(stream):
            return
        was = stream.state
        entering = stream.listener is not None and was in _ENTERING
        del self._streams[stream.handle]
        heard_all = end.cause is Cause.END_OF_STREAM
        if heard_all:
            # RFC 5246 section 7.2.1: "MUST respond with a close_notify alert of its own".
            stream.farewell()
        if end.cause is Cause.TLS_FAILED or (heard_all and stream.wants_write):
            # There is an alert on its way; or the peer has said all it wants and may still listen.
            self._leave(stream)
        else:
            # What was not sent is lost, which must not look like an end to whoever reads the rest.
            self._let_go(stream, reset=stream.wants_write)
        if not entering:
            self._core.tell(Closed(stream.handle, end.cause, end.detail))
            return
        what = "TLS handshake failed" if was is State.HANDSHAKE else "not accepted"
        self.counts[f"{what}: {end.detail or end.cause.value}"] += 1

    # Streams that the machine has let go of. ------------------------------------------------------

    def _leave(self, stream: Stream) -> None:
        if len(self._leaving) >= LEAVING:
            oldest = next(iter(self._leaving))
            self._let_go(oldest, reset=oldest.wants_write)
        self._entering.pop(stream, None)
        self._leaving[stream] = self._reactor.now() + LINGER
        stream.leave()
        self._watch_leaving(stream)

    def _watch_leaving(self, stream: Stream) -> None:
        self._reactor.watch(
            stream.sock.fileno(),
            None if stream.finished else lambda: self._leaving_ready(stream, stream.discard),
            (lambda: self._leaving_ready(stream, stream.see_off)) if stream.wants_write else None,
        )

    def _leaving_ready(self, stream: Stream, go_on: Callable[[], bool]) -> None:
        before = stream.finished, stream.wants_write
        try:
            done = go_on()
        except StreamEnded:
            self._let_go(stream, reset=True)
        else:
            if done:
                self._let_go(stream)
            elif before != (stream.finished, stream.wants_write):
                self._watch_leaving(stream)
        self._core.settle()

    def _let_go(self, stream: Stream, *, reset: bool = False) -> None:
        self._leaving.pop(stream, None)
        self._entering.pop(stream, None)
        if stream.state is not State.CLOSED:
            self._reactor.unwatch(stream.sock.fileno())
            stream.close(reset=reset)

    def detach(self, handle: Handle) -> tuple[socket.socket, bytes]:
        """Give up an open stream without TLS, as it is: nothing of it is closed or told.

        Returns its socket, non-blocking, and the octets that the kernel has not taken yet.  To lose
        none that come meanwhile, a machine has it held first (:class:`stun.sansio.Hold`).
        """
        stream = self._streams.get(handle)
        if stream is None or stream.state is not State.OPEN or stream.is_secure:
            raise UsageError(f"stream {handle} is not an open stream without TLS")
        del self._streams[handle]
        self._reactor.unwatch(stream.sock.fileno())
        return stream.sock, stream.unsent

    # Closing. -------------------------------------------------------------------------------------

    def shut(self, order: Shut) -> bool:
        """Close a stream or a listener; say whether there was one."""
        handle = order.handle
        if (stream := self._streams.pop(handle, None)) is not None:
            stream.farewell()
            if stream.state is State.OPEN and not order.reset:
                self._leave(stream)
            else:
                self._let_go(stream, reset=order.reset)
        elif (served := self._listeners.pop(handle, None)) is not None:
            self._paused.pop(served, None)
            self._reactor.unwatch(served.listener.sock.fileno())
            served.listener.close()
            for entering in [s for s in self._entering if s.listener == handle]:
                del self._streams[entering.handle]
                self._let_go(entering)
        else:
            return False
        return True

    def close(self) -> None:
        """Close every descriptor."""
        for stream in [*self._streams.values(), *self._leaving]:
            stream.farewell()
            self._let_go(stream, reset=stream.wants_write)
        self._streams.clear()
        for handle in [*self._listeners]:
            self.shut(Shut(handle))


def _due(table: dict[Key, Instant], now: Instant) -> Iterator[Key]:
    for key, at in table.items():
        if at > now:
            break
        yield key


def _is_held_back(stream: Stream) -> bool:
    """Whether nothing is read because so much waits for a peer that reads slowly.

    Or a client that asks without end and takes no answer would fill the memory; TCP's window holds
    it back instead.  Only where it was the peer that connected, for two ends that both did so might
    wait for each other; and only while the machine does not decide it (:class:`stun.sansio.Hold`).
    """
    return stream.held is None and stream.listener is not None and stream.congested
