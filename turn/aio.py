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
"""

from __future__ import annotations

import asyncio
import ssl
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from mmap import mmap
from typing import Self, cast

from stun.aio import Driver
from stun.datagrams import Core
from stun.errors import DropReason
from stun.registry import Method
from stun.sansio import Instant, SocketMachine
from stun.tls import ClientTls, ServerTls
from turn.dataplane.base import InstallRoute, RemoveRoute
from turn.dataplane.sockets import SocketPlane
from turn.server.events import ServerEvent
from turn.server.machine import Server

_BINDING = int(Method.BINDING)


class RelayDriver(Driver[ServerEvent]):
    """Runs one :class:`turn.server.machine.Server`; used as :class:`stun.aio.Driver` is.

    ``observe`` is given, in nanoseconds, how long each datagram took that the server had to look
    at.
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
    ) -> None:
        self._server = machine
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
        return await super().__aenter__()

    def _fail(self, error: BaseException) -> None:
        def throw() -> None:
            raise error

        self._guarded(throw)

    def _make_plane(self, core: Core) -> SocketPlane:
        self.plane = SocketPlane(core, bindings=_Bindings(self._server), observe=self._observe)
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
