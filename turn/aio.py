"""The asyncio driver of a relay server: sockets, and the data plane between them.

    async with RelayDriver(server, on_event=print) as driver:
        server.start(driver.now())
        driver.flush()
        await driver.run()

It is :class:`stun.aio.Driver` with a :class:`turn.dataplane.sockets.SocketPlane` for the datagrams.
A server with ``ServerConfig.offload`` says by :class:`turn.dataplane.base.InstallRoute` what the
plane may forward by itself; without it everything passes through the server, only more slowly.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterable, Mapping
from typing import cast

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
        self._metrics, self._drops = machine.metrics, machine.drops
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

    def _make_plane(self, core: Core) -> SocketPlane:
        self.plane = SocketPlane(core, bare=self._bare, observe=self._observe)
        return self.plane

    def _bare(self, data: bytes, packed: bytes, now: Instant) -> bytes | None:
        # Asked for each time: another configuration brings another responder.
        server = self._server
        if server.config.discovery:  # RFC 5780: the answer depends on where it came in
            return None
        answer = server.responder.bare(data, packed, now)
        if answer is not None:
            self._metrics.requests[_BINDING] += 1
            if answer:
                self._metrics.responses[_BINDING, 0] += 1
            else:
                self._drops[DropReason.RATE_LIMITED] += 1
        return answer

    def _install(self, order: InstallRoute) -> None:
        self.plane.install(order.route, order.expires)

    def _remove(self, order: RemoveRoute) -> None:
        self.plane.remove(order.key)


__all__ = ["RelayDriver"]
