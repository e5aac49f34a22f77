"""The blocking driver: gives real sockets and time to any machine, in a plain loop on a selector.

with Driver(machine) as driver:
    machine.some_command(driver.now())
    for event in driver.events(timeout=5):
        ...
"""

from __future__ import annotations

import os
import selectors
import ssl
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Generic, Self, TypeVar

from stun.sansio import SECOND, Address, Handle, Instant, SocketMachine
from stun.sockets import Callback, Sockets

if TYPE_CHECKING:
    import socket

    from stun.discovery import Transport
    from stun.resolver import Family
    from stun.tls import ClientTls, ServerTls
    from stun.uri import StunUri

Event = TypeVar("Event")


class Driver(Generic[Event]):
    """Runs one :class:`stun.sansio.SocketMachine` in the calling thread.

    Use it as a context manager: on leaving every descriptor is closed.  What the machine tells goes
    to ``on_event``, or is kept for :meth:`events` without one.  Time passes for the machine only
    within :meth:`step`, :meth:`run_until` and :meth:`events`; each begins by carrying out what
    commands have queued.

    ``tls``, ``tls_ports``, ``server_tls`` and ``proxies`` as for :class:`stun.aio.Driver`.
    An exception of the machine or of ``on_event`` comes out of the call it happened in.
    """

    def __init__(
        self,
        machine: SocketMachine[Event],
        *,
        on_event: Callable[[Event], None] | None = None,
        tls: ssl.SSLContext | ClientTls | None = None,
        tls_ports: Mapping[int, ssl.SSLContext] | None = None,
        server_tls: ServerTls | None = None,
        proxies: Mapping[int, Iterable[str]] | None = None,
    ) -> None:
        self.machine = machine
        self._reactor = _SelectorReactor()
        self._sockets: Sockets[Event] = Sockets(
            machine,
            self._reactor,
            on_event,
            tls=tls,
            tls_ports=tls_ports,
            server_tls=server_tls,
            proxies=proxies,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def now(self) -> Instant:
        """Return the time that commands to the machine take, in nanoseconds."""
        return self._reactor.now()

    def flush(self) -> None:
        """Carry out what the machine has queued."""
        self._sockets.flush()

    def detach(self, handle: Handle) -> tuple[socket.socket, bytes]:
        """Give up a stream of the machine: its socket, and the octets still to be sent on it.

        Raises :class:`stun.errors.UsageError` for what is not an open stream without TLS.
        """
        return self._sockets.streams.detach(handle)

    @property
    def counters(self) -> Mapping[str, int]:
        """What was sent, received and refused, in words for a person."""
        return self._sockets.counters

    def step(self, timeout: float | None = None) -> None:
        """Let happen what is ready; wait for it, at most ``timeout`` seconds unless ``None``."""
        self._sockets.flush()
        self._wait(timeout)

    def _wait(self, timeout: float | None) -> None:
        if self._reactor.wait(timeout):
            self._sockets.on_time()

    def run_until(self, done: Callable[[], bool], timeout: float | None = None) -> bool:
        """Run until ``done()``, at most ``timeout`` seconds and not after :meth:`close`.

        Returns what ``done()`` said last.
        """
        end = None if timeout is None else time.monotonic() + timeout
        self._sockets.flush()
        while not done():
            self._sockets.flush()
            if done():  # by what was queued: then there may be nothing to wait for
                break
            left = None if end is None else end - time.monotonic()
            if self._reactor.is_closed or (left is not None and left <= 0):
                return False
            self._wait(left)
        return True

    def events(self, timeout: float | None = None) -> Iterator[Event]:
        """Yield what the machine tells, for ``timeout`` seconds in all (``None``: until closed)."""
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            left = None if end is None else max(0.0, end - time.monotonic())
            if not self.run_until(lambda: bool(self._sockets.kept), left):
                return
            yield self._sockets.kept.popleft()

    def close(self) -> None:
        """Close every descriptor; also within ``on_event``."""
        self._sockets.close()
        self._reactor.close()


def binding(
    server: str | StunUri,
    *,
    transport: Transport | None = None,
    family: Family = None,
    timeout: float = 10.0,
    tls: ssl.SSLContext | None = None,
) -> Address:
    """Return the transport address that a STUN server sees this machine as.

    Everything as in :func:`stun.aio.binding`.
    """
    # Not at the top: who drives machines of his own needs neither the resolver nor the client.
    from stun.binding import Answered, BindingQuery, NotAnswered
    from stun.resolver import resolve

    targets = resolve(server, transport=transport, family=family)
    query = BindingQuery(targets, patience=int(timeout * SECOND), entropy=os.urandom)
    driver: Driver[Answered | NotAnswered] = Driver(query, tls=tls)
    with driver:
        query.start(driver.now())
        for event in driver.events():
            if isinstance(event, NotAnswered):
                raise event.error
            return event.mapped
    raise AssertionError("a query always ends with an event")


class _SelectorReactor:
    """A :class:`stun.sockets.Reactor` on the best selector of the platform."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self.is_closed = False
        self._at: Instant | None = None

    def now(self) -> Instant:
        return time.monotonic_ns()

    def watch(self, fd: int, readable: Callback | None, writable: Callback | None) -> None:
        interest = (selectors.EVENT_READ if readable else 0) | (
            selectors.EVENT_WRITE if writable else 0
        )
        known = fd in self._selector.get_map()
        if not interest:
            if known:
                self._selector.unregister(fd)
        elif known:
            self._selector.modify(fd, interest, (readable, writable))
        else:
            self._selector.register(fd, interest, (readable, writable))

    def unwatch(self, fd: int) -> None:
        self.watch(fd, None, None)

    def wake_at(self, at: Instant | None) -> None:
        self._at = at

    def wait(self, timeout: float | None) -> bool:
        """Wait, call back what is ready, and say whether the ordered time has come."""
        if self.is_closed:
            return False
        if self._at is not None:
            until_due = max(0.0, (self._at - self.now()) / SECOND)
            timeout = until_due if timeout is None else min(timeout, until_due)
        for key, ready in self._selector.select(timeout):
            for flag, which in ((selectors.EVENT_READ, 0), (selectors.EVENT_WRITE, 1)):
                # An earlier callback of this round may have closed the descriptor, and another
                # socket may have got its number; or everything, and then there is no map.
                registered = (self._selector.get_map() or {}).get(key.fd)
                if registered is None or registered.data is not key.data:
                    break
                if ready & flag and (callback := key.data[which]) is not None:
                    callback()
        return self._at is not None and self._at <= self.now()

    def close(self) -> None:
        self.is_closed = True
        self._selector.close()
