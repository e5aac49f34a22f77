"""The asyncio driver of a relay server: sockets, and the data plane between them.

    async def serve() -> None:
        async with RelayDriver(server, on_event=print) as driver:
            server.start(driver.now())
            driver.flush()
            await driver.run()

    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(serve())

It is :class:`stun.aio.Driver` with a :class:`turn.dataplane.sockets.SocketPlane` for the datagrams.
A server with ``ServerConfig.offload`` says by :class:`turn.dataplane.base.InstallRoute` what the
plane may forward by itself; without it everything passes through the server, only more slowly.

With a :class:`turn.dataplane.kernel.routes.KernelRoutes` the kernel forwards what it can, and the
sockets the rest.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from mmap import mmap
from typing import TYPE_CHECKING, Final, Self, cast

from stun.aio import Driver
from stun.datagrams import Core
from stun.errors import DropReason
from stun.registry import Method
from stun.sansio import Address, Instant, SocketMachine
from stun.tls import ClientTls, ServerTls
from turn.dataplane.base import InstallRoute, RemoveRoute
from turn.dataplane.sockets import SocketPlane
from turn.server.events import ServerEvent
from turn.server.machine import Server

if TYPE_CHECKING:
    from turn.dataplane.kernel.routes import KernelRoutes

CALM: Final = 0.5
"""Seconds from one look at what has changed in the network to the next."""

_BINDING = int(Method.BINDING)


class RelayDriver(Driver[ServerEvent]):
    """Runs one :class:`turn.server.machine.Server`; used as :class:`stun.aio.Driver` is.

    ``observe`` is given, in nanoseconds, how long each datagram took that the server had to look
    at.  ``kernel`` is taken over: it is closed with the driver, or by whoever made it if that is
    never entered.
    """

    plane: SocketPlane

    def __init__(
        self,
        machine: Server,
        *,
        on_event: Callable[[ServerEvent], None] | None = None,
        tls: ssl.SSLContext | ClientTls | None = None,
        server_tls: ServerTls | None = None,
        proxies: Mapping[int, Iterable[str]] | None = None,
        observe: Callable[[int], None] | None = None,
        kernel: KernelRoutes | None = None,
    ) -> None:
        self._server = machine
        self._kernel = kernel
        self._looks_at: asyncio.TimerHandle | None = None
        """When it looks next at what has changed in the network."""
        self._observe = observe
        super().__init__(
            # The orders to the plane that it polls beside events are taken below.
            cast("SocketMachine[ServerEvent]", machine),
            on_event=on_event,
            tls=tls,
            server_tls=server_tls,
            proxies=proxies,
            datagrams=self._make_plane,
        )
        self.take(InstallRoute, self._install)
        self.take(RemoveRoute, self._remove)

    async def __aenter__(self) -> Self:
        if sys.platform == "linux":
            from turn.dataplane.loop import RelayLoop

            loop = asyncio.get_running_loop()
            if isinstance(loop, RelayLoop):
                self.plane.share(loop.selector, self._fail)
        self._watch_network()
        return await super().__aenter__()

    def use_kernel(self, kernel: KernelRoutes | None) -> None:
        """Relay in the kernel from now on, or (``None``) no longer; what did before is closed.

        ``kernel`` is taken over.  Routes that there are go over.
        """
        if kernel is not self._kernel:
            # Rates are kept in one program at a time, so the one goes before the other comes.
            self._close_kernel()
            self._kernel = kernel
            self.plane.relay_beside(kernel)
            self._watch_network()

    def close(self) -> None:
        """Close what is in the kernel, and every descriptor."""
        # First: nothing is to be forwarded for a socket that is gone.
        self._close_kernel()
        super().close()

    def _close_kernel(self) -> None:
        if self._looks_at is not None:
            self._looks_at.cancel()
            self._looks_at = None
        if self._kernel is not None:
            if self._reactor.loop is not None and (fd := self._kernel.fileno()) >= 0:
                self._reactor.unwatch(fd)
            self._kernel.close()

    def _network_changed(self) -> None:
        """Look at what has changed: at once, and then again when others have had their turn.

        Changes come in swarms (a routing daemon's, say), and each look asks for every way.
        """
        kernel = self._kernel
        assert kernel is not None
        self._reactor.unwatch(kernel.fileno())
        self._look(changed=kernel.changed())

    def _look(self, *, changed: bool) -> None:
        kernel, loop = self._kernel, asyncio.get_running_loop()
        assert kernel is not None
        if changed and kernel.refresh():
            self._looks_at = loop.call_later(0, self._guarded, self._look_on)
        else:
            self._looks_at = loop.call_later(CALM, self._guarded, self._watch_network)

    def _look_on(self) -> None:
        self._look(changed=True)

    def _watch_network(self) -> None:
        self._looks_at = None
        if self._kernel is not None:
            self._reactor.watch(self._kernel.fileno(), self._network_changed, None)

    def serve_on(self, given: Callable[[str, Address], socket.socket | None]) -> None:
        """Take listening sockets, also ("udp") those of datagrams, from ``given``."""
        super().serve_on(given)
        self.plane.given = lambda local: given("udp", local)

    def _fail(self, error: BaseException) -> None:
        def throw() -> None:
            raise error

        self._guarded(throw)

    def _make_plane(self, core: Core) -> SocketPlane:
        self.plane = SocketPlane(
            core, bindings=_Bindings(self._server), observe=self._observe, fast=self._kernel
        )
        return self.plane

    def _install(self, order: InstallRoute) -> None:
        self.plane.install(order.route, order.expires)

    def _remove(self, order: RemoveRoute) -> None:
        self.plane.remove(order.key)


class _Bindings:
    """Answers bare Binding requests in a server's name, and counts them as the server would."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._metrics, self._drops = server.metrics, server.drops

    def bare(self, data: bytes, packed: bytes, now: Instant) -> bytes | None:
        # Asked for each time: another configuration brings another responder.
        server = self._server
        if server.config.discovery:  # RFC 5780: the answer depends on where it came in
            return None
        answer = server.responder.bare(data, packed, now)
        if answer is not None:
            self._count(1, 1 if answer else 0)
        return answer

    def bare_in_place(
        self, memory: mmap, starts: Sequence[int], now: Instant, *, ipv6: bool
    ) -> list[int] | None:
        server = self._server
        if server.config.discovery:
            return None
        answered = server.responder.bare_in_place(memory, starts, now, ipv6=ipv6)
        self._count(len(starts), len(answered))
        return answered

    def _count(self, requests: int, answers: int) -> None:
        self._metrics.requests[_BINDING] += requests
        if answers:
            self._metrics.responses[_BINDING, 0] += answers
        if answers < requests:
            self._drops[DropReason.RATE_LIMITED] += requests - answers


def new_event_loop() -> asyncio.AbstractEventLoop:
    """Return the event loop on which a :class:`RelayDriver` does best.

    It runs on any other as well; a packet that comes alone then costs more.
    """
    if sys.platform != "linux":
        return asyncio.new_event_loop()
    from turn.dataplane.loop import RelayLoop

    return RelayLoop()


__all__ = ["RelayDriver", "new_event_loop"]
