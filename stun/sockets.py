"""The part of a driver that no runtime changes: it owns the sockets and speaks with the machine.

A runtime gives a :class:`Reactor`: which descriptors to watch, when to wake up, what time it is.
:class:`Sockets` does the rest: it carries out what the machine asks for, and tells the machine what
became of it.  :mod:`stun.aio` and :mod:`stun.blocking` are reactors and little else.

Datagrams are behind the seam of :mod:`stun.datagrams`, streams in :mod:`stun.streams`.
"""

from __future__ import annotations

import ssl
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from stun.datagrams import (
    Callback,
    Core,
    Datagrams,
    DatagramsFactory,
    Reactor,
    UdpDatagrams,
    is_encrypted,
)
from stun.errors import UsageError
from stun.sansio import (
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
    Security,
    Shut,
    SocketEvent,
    SocketMachine,
    Transmit,
    Undeliverable,
    Write,
)
from stun.streams import NO_CERTIFICATE, Streams
from stun.tls import CertificateProblem, ClientTls, ServerTls

if TYPE_CHECKING:
    from stun.dtls import Dtls

Event = TypeVar("Event")

EVENT_LIMIT: Final = 65536
"""Events that are kept when nobody takes them; the oldest go first."""


class Sockets(Generic[Event]):
    """The sockets of one machine.

    ``on_event`` is given everything the machine polls that is not an order to the driver; without
    one it is put into ``kept``, the newest :data:`EVENT_LIMIT` of it.  A stream dialled with a
    ``server_name`` is verified by ``tls``, the system's trust store by default.  A
    :class:`stun.sansio.Listen` for a port in ``tls_ports`` accepts TLS with that context.
    ``server_tls`` is the certificate for what asks for :class:`stun.sansio.Security`.  The PROXY
    protocol is required on the ports of ``proxies`` and allowed from the networks given there only.
    ``datagrams`` makes what carries UDP.
    """

    def __init__(
        self,
        machine: SocketMachine[Event],
        reactor: Reactor,
        on_event: Callable[[Event], None] | None,
        *,
        tls: ssl.SSLContext | ClientTls | None = None,
        tls_ports: Mapping[int, ssl.SSLContext] | None = None,
        server_tls: ServerTls | None = None,
        proxies: Mapping[int, Iterable[str]] | None = None,
        datagrams: DatagramsFactory = UdpDatagrams,
    ) -> None:
        self.machine = machine
        self.reactor = reactor
        self._on_event = on_event or self.keep
        self.kept: deque[Event] = deque(maxlen=EVENT_LIMIT)
        self._news: deque[SocketEvent] = deque()
        self._pumping = False
        self._closed = False
        self._counts: Counter[str] = Counter()
        self._accepted = 0
        self._tls, self._server_tls = tls, server_tls
        self._udp: set[Handle] = set()
        self.streams = Streams(
            self,
            number=self._number,
            tls=tls.streams if isinstance(tls, ClientTls) else tls,
            tls_ports=tls_ports,
            server_tls=server_tls,
            proxies=proxies,
        )
        self.datagrams: Datagrams = datagrams(self)
        self._dtls: Dtls | None = None
        self._perform: dict[type, Callable[[Any], None]] = {
            OpenUdp: self._open_udp,
            Listen: self._listen,
            Dial: self._dial,
            Write: self._write,
            Hold: self.streams.hold,
            Shut: self._shut,
        }

    def take(self, kind: type, perform: Callable[[Any], None]) -> None:
        """Give what the machine polls of this type to ``perform``, in order with everything else.

        For orders that are not in :data:`stun.sansio.Output`: those of a relay to its data plane.
        """
        self._perform[kind] = perform

    def serve_with(
        self,
        server_tls: ServerTls | None,
        proxies: Mapping[int, Iterable[str]],
        tls_ports: Mapping[int, ssl.SSLContext] | None = None,
    ) -> None:
        """Use another certificate and trust other proxies, for what connects from now on.

        Whether a port is encrypted, or for proxies, is settled when it is opened.
        """
        self._server_tls = server_tls
        self.streams.serve_with(server_tls, proxies, tls_ports)
        if self._dtls is not None:
            self._dtls.serve_with(server_tls)

    # Between the machine and the driver. ----------------------------------------------------------

    def flush(self) -> None:
        """Carry out what the machine has queued, then order the next wake-up."""
        self.pump()
        self.settle()

    def on_time(self) -> None:
        """Let the machine, and the sockets' own timers, notice the time."""
        now = self.reactor.now()
        self.streams.on_time(now)
        if self._dtls is not None:
            self._dtls.on_time(now)
        due = self.machine.deadline()
        if due is not None and due <= now:
            self.machine.on_deadline(now)
        self.flush()

    def settle(self) -> None:
        """End a wake-up: flush the datagrams, order the next wake-up."""
        if self._closed:
            return
        self.datagrams.flush()
        at = _earlier(self.machine.deadline(), self.streams.deadline())
        if self._dtls is not None:
            at = _earlier(at, self._dtls.deadline())
        self.reactor.wake_at(at)

    def pump(self) -> None:
        """Carry out what the machine has queued."""
        if self._pumping:  # a command given from within on_event: the loop below goes on with it
            return
        self._pumping = True
        send = self.datagrams.send
        try:
            poll = self.machine.poll
            while not self._closed:
                output = poll()
                if type(output) is Transmit:
                    send(output)
                elif output is None:
                    # Only now, with its queue drained, is the machine told what became of orders.
                    if not self._news:
                        break
                    self.machine.on_socket(self._news.popleft(), self.reactor.now())
                elif (perform := self._perform.get(type(output))) is not None:
                    perform(output)
                else:
                    self._on_event(output)  # type: ignore[arg-type]
        finally:
            self._pumping = False

    def send(self, handle: Handle, *parts: bytes | memoryview) -> bool:
        """Send bytes on an open stream without an order; whether that was possible.

        It is not while orders are carried out, for it would overtake them.
        """
        return not self._pumping and self.streams.send(handle, *parts)

    def keep(self, event: Event) -> None:
        """Put an event into ``kept``."""
        if len(self.kept) == EVENT_LIMIT:
            self._counts["events that nobody took"] += 1
        self.kept.append(event)

    def tell(self, event: SocketEvent) -> None:
        """Tell the machine, now or as soon as its queue is drained."""
        if (
            self._dtls is not None
            and type(event) is Undeliverable
            and self._dtls.undeliverable(event)
        ):
            return
        self._news.append(event)
        self.pump()

    def encrypted(self, packet: Received, handle: Handle) -> None:
        """Take a packet of a socket that serves DTLS."""
        self._serve_dtls().packet(packet, handle)

    def _serve_dtls(self) -> Dtls:
        if self._dtls is None:
            # OpenSSL by way of cffi takes as long to load as everything else a driver needs.
            from stun.dtls import Dtls

            self._dtls = Dtls(
                self,
                self.datagrams,
                number=self._number,
                server_tls=self._server_tls,
                tls=self._tls,
            )
        return self._dtls

    def _number(self) -> Handle:
        self._accepted += 1
        return -self._accepted

    @property
    def counters(self) -> Mapping[str, int]:
        """Counts since the start, by what they count, in words for a person."""
        counts = Counter(self._counts)
        counts.update(self.streams.counts)
        counts.update(self.datagrams.counters())
        if self._dtls is not None:
            counts.update(self._dtls.counts)
        return counts

    # Orders. --------------------------------------------------------------------------------------

    def _check_free(self, handle: Handle) -> None:
        if handle in self._udp or handle in self.streams or self._is_dtls(handle):
            raise UsageError(f"socket {handle} is open already")

    def _is_dtls(self, handle: Handle) -> bool:
        return self._dtls is not None and handle in self._dtls

    def _open_udp(self, order: OpenUdp) -> None:
        self._check_free(order.handle)
        if order.security is not Security.NONE and (problem := self._dtls_problem()):
            self.tell(Closed(order.handle, Cause.TLS_FAILED, problem))
            return
        outcome = self.datagrams.open(order)
        if type(outcome) is Opened:
            self._udp.add(order.handle)
        self.tell(outcome)

    def _dtls_problem(self) -> str:
        """Say why DTLS cannot be served: better now than to the first client."""
        if self._server_tls is None:
            return NO_CERTIFICATE
        try:
            _ = self._server_tls.datagrams
        except CertificateProblem as error:
            return str(error)
        return ""

    def _listen(self, order: Listen) -> None:
        self._check_free(order.handle)
        self.streams.listen(order)

    def _dial(self, order: Dial) -> None:
        self._check_free(order.handle)
        if order.datagrams:
            self._serve_dtls().dial(order)
        else:
            self.streams.dial(order)

    def _write(self, order: Write) -> None:
        if self._dtls is not None and order.handle in self._dtls:
            self._dtls.write(order)
        else:
            self.streams.write(order)

    def _shut(self, order: Shut) -> None:
        handle = order.handle
        if self._news:  # "no event follows", also none that is known already
            self._news = deque(e for e in self._news if getattr(e, "handle", None) != handle)
        if self._dtls is not None and handle in self._dtls:
            self._dtls.shut(order)
        elif handle in self._udp:
            self._udp.discard(handle)
            if self._dtls is not None:
                self._dtls.shut_port(handle)
            self.datagrams.flush()
            self.datagrams.shut(handle)
        else:
            self.streams.shut(order)

    def close(self) -> None:
        """Close every descriptor.  The machine is told nothing any more."""
        if self._closed:
            return
        self._closed = True
        self.reactor.wake_at(None)
        self.streams.close()
        if self._dtls is not None:
            self._dtls.close()
        self.datagrams.flush()
        self.datagrams.close()


def _earlier(one: Instant | None, other: Instant | None) -> Instant | None:
    return other if one is None or (other is not None and other < one) else one


__all__ = [
    "EVENT_LIMIT",
    "Callback",
    "Core",
    "Datagrams",
    "DatagramsFactory",
    "Reactor",
    "Sockets",
    "UdpDatagrams",
    "is_encrypted",
]
