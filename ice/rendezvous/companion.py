"""The rendezvous beside turnd, in one process: ``turnd --with-rendezvous``.

It is what turnd's entry point group ``natkit.turnd`` names ``rendezvous``.  The credentials that it
hands out are made with turnd's own secret, for turnd at the address that the client has reached.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from ice.rendezvous.access import TTL, Servers, Visitor, user_of
from ice.rendezvous.figures import HallCollector, Journal
from ice.rendezvous.machine import RendezvousEvent
from ice.rendezvous.places import Place
from ice.rendezvous.protocol import MAX_URIS, TurnAccess
from ice.rendezvous.server import RendezvousServer
from stun.credentials import RestCredential
from stun.streams import Networks
from stun.tls import ServerTls

if TYPE_CHECKING:
    from prometheus_client.core import Metric
    from structlog.typing import FilteringBoundLogger


class Surroundings(Protocol):
    """What it uses of turnd: ``turn.daemon.companion.Surroundings`` explains each."""

    @property
    def version(self) -> str: ...  # noqa: D102
    @property
    def log(self) -> Callable[[], FilteringBoundLogger]: ...  # noqa: D102
    @property
    def tls(self) -> Callable[[], ServerTls | None]: ...  # noqa: D102
    @property
    def mint(self) -> Callable[[str, int, int], RestCredential]: ...  # noqa: D102
    @property
    def uris(self) -> Callable[[str], Sequence[str]]: ...  # noqa: D102
    @property
    def spawn(self) -> Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]: ...  # noqa: D102


class Companion:
    """The rendezvous, as turnd runs it."""

    def __init__(self, turnd: Surroundings) -> None:
        self._turnd = turnd
        self._next: tuple[list[Place], Networks] = ([], Networks(()))
        self._places: list[Place] = []
        self._running: asyncio.Task[None] | None = None
        self._open = False
        self.server = RendezvousServer(
            servers=self._servers,
            tls=turnd.tls,
            software=f"natkit/{turnd.version}" if turnd.version else "natkit",
            on_event=self._tell,
            flag="--rendezvous-listen",
        )

    def _tell(self, event: RendezvousEvent) -> None:
        # turnd's log may be another one after a reload.
        Journal(self._turnd.log()).tell(event)

    def _servers(self, visitor: Visitor, unix_time: int) -> Servers:
        uris = tuple(self._turnd.uris(visitor.local.host))[:MAX_URIS]
        if not uris:
            return Servers()
        made = self._turnd.mint(user_of(visitor.client.host), TTL, unix_time)
        stun = dict.fromkeys(
            f"stun{uri.removeprefix('turn').partition('?')[0]}"
            for uri in uris
            if uri.startswith("turn:") and uri.endswith("?transport=udp")
        )
        return Servers(TurnAccess(uris, made.username, made.password, TTL), tuple(stun))

    async def prepare(self, places: Sequence[str], proxies: Sequence[str]) -> None:
        """Find out whether it can serve at these URLs.  Raises ``StunError``."""
        wanted = [Place.parse(url) for url in places]
        self.server.check(wanted)
        if not self._open:
            await self.server.__aenter__()
            self._open = True
        self._next = (wanted, Networks(proxies))

    def commit(self) -> None:
        """Serve where :meth:`prepare` was told, and nowhere else."""
        self._places, self.server.machine.proxies = self._next
        self.server.serve_at(self._places)
        if self._running is None:
            self._running = self._turnd.spawn(self.server.run())

    async def close(self) -> None:
        """Tell its clients, and end."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)
        if self._open:
            self._open = False
            await self.server.__aexit__(None, None, None)

    def collect(self) -> Iterable[Metric]:
        """Return its figures for Prometheus."""
        return HallCollector(self.server.hall).collect()

    def status(self) -> dict[str, Any]:
        """Return how it is, as JSON."""
        return {
            "places": [str(place) for place in self._places],
            "serving": [str(address) for address in sorted(self.server.serving)],
            **self.server.hall.states(),
        }
