"""What the asyncio and the blocking relay share: events come in, whoever waits is told.

:class:`Relaying` takes the events of a :class:`turn.client.race.Race`.  It keeps what arrived in
bounded queues and settles *waits*: objects with ``set_result``, ``set_exception`` and ``done``, as
:class:`asyncio.Future` has them.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Hashable, Mapping
from typing import Any, Final, Generic, Protocol, TypeVar

from stun.discovery import Target
from stun.errors import Dropped, StunError, UsageError
from stun.registry import Method
from stun.sansio import Address
from turn.client.errors import server_text
from turn.client.events import (
    Allocated,
    Bound,
    ClientEvent,
    Connection,
    Data,
    Failed,
    Lost,
    Moved,
    NotMoved,
    PeerClosed,
    PeerCongested,
    PeerConnected,
    PeerRefused,
    PeerStream,
    PeerUnreachable,
    Permitted,
    Redirected,
    Refreshed,
    Released,
    ServerCongested,
)
from turn.client.machine import Client
from turn.client.race import Race

RECEIVE_LIMIT: Final = 1024
"""Datagrams that are kept when nobody takes them; more are dropped and counted, as a socket does
with what does not fit its buffer."""


class Wait(Protocol):
    """What somebody waits on."""

    def set_result(self, result: Any, /) -> None:
        """End it well."""

    def set_exception(self, exception: BaseException, /) -> None:
        """End it with an error."""

    def done(self) -> bool:
        """Whether it has ended."""


W = TypeVar("W", bound=Wait)


class RelayClosed(UsageError):
    """The relay was closed: nothing is sent or received through it any more."""


class Relaying(Generic[W]):
    """The state of one relay, whatever drives it."""

    def __init__(
        self, race: Race, *, receive_limit: int, on_event: Callable[[ClientEvent], None] | None
    ) -> None:
        self._race = race
        self._told = on_event
        self._receive_limit = receive_limit
        self._arrived: deque[tuple[bytes, Address]] = deque()
        self._waits: dict[Hashable, list[W]] = {}
        self._counts: Counter[str] = Counter()
        self._allocated: Allocated | None = None
        self._lifetime = 0
        self._congested = False
        self._end: StunError | None = None
        self._handlers: dict[type, Callable[[Any], None]] = {
            Data: self._data,
            Allocated: self._on_allocated,
            Refreshed: self._on_refreshed,
            Permitted: lambda e: self._settle(("permit", e.host)),
            Bound: lambda e: self._settle(("bind", e.peer), e.channel),
            PeerRefused: self._on_refused,
            Moved: lambda e: self._settle("move", e.local),
            NotMoved: lambda e: self._settle("move", error=e.error),
            ServerCongested: self._on_congested,
            PeerConnected: self._peer_connected,
            PeerStream: self._peer_stream,
            PeerCongested: self._peer_congested,
            PeerClosed: self._peer_closed,
            Lost: self._on_lost,
            Failed: lambda e: self._on_end(e.error),
            Released: lambda _: self._on_end(RelayClosed("the relay is closed")),
            PeerUnreachable: lambda _: None,
            Redirected: lambda _: None,
            Dropped: lambda _: None,
        }

    # What a person asks. --------------------------------------------------------------------------

    @property
    def relayed_address(self) -> Address:
        """Where peers send to: the first relayed transport address."""
        return self._known().relayed[0]

    @property
    def relayed_addresses(self) -> tuple[Address, ...]:
        """All of them: two of a dual allocation."""
        return self._known().relayed

    @property
    def mapped_address(self) -> Address:
        """What the server sees of this machine: its server-reflexive address."""
        return self._known().mapped

    @property
    def local_address(self) -> Address:
        """What the socket to the server is bound to."""
        return self._known().local

    @property
    def server(self) -> Target:
        """The server that gave the allocation, after all redirections."""
        return self._known().server

    @property
    def lifetime(self) -> int:
        """Seconds that the server gave when it was last asked."""
        return self._lifetime

    @property
    def allocation(self) -> Allocated:
        """All that the server said about the allocation."""
        return self._known()

    @property
    def reservation_token(self) -> bytes | None:
        """What another allocation gets the reserved port with."""
        return self._known().reservation_token

    def _known(self) -> Allocated:
        if self._allocated is None:
            raise UsageError("there is no allocation yet")
        return self._allocated

    @property
    def _client(self) -> Client:
        if self._end is not None:
            raise self._end
        if self._race.client is None:
            raise UsageError("there is no allocation yet")
        return self._race.client

    def __repr__(self) -> str:
        name = f"{type(self).__module__}.{type(self).__qualname__}"
        if self._end is not None:
            return f"<{name}: {self._end}>"
        if self._allocated is None:
            return f"<{name} without an allocation yet>"
        return f"<{name} {self.relayed_address} at {server_text(self.server)}>"

    def _must_relay_tcp(self, what: str) -> None:
        if not self._race.relays_tcp:
            raise UsageError(f'{what}: connect with protocol="tcp" for connections')

    def _counters(self, driver: Mapping[str, int]) -> Mapping[str, int]:
        counts = Counter(self._counts)
        counts.update(driver)
        for reason, number in self._race.drops.items():
            counts[f"received and dropped: {reason.value}"] += number
        client = self._race.client
        if client is not None:
            counts["not sent: the connection to the server is congested"] += client.congestion_drops
            counts["not sent: no permission in time"] += client.not_permitted
        return +counts

    # Events. --------------------------------------------------------------------------------------

    def take(self, event: ClientEvent) -> None:
        """Take what the machine tells."""
        self._handlers[type(event)](event)
        if self._told is not None and type(event) is not Data:
            self._told(event)

    def _data(self, event: Data) -> None:
        if len(self._arrived) >= self._receive_limit:
            self._counts["received and dropped: nobody took the ones before"] += 1
        else:
            self._arrived.append((event.data, event.peer))
            if "receive" in self._waits:
                self._wake("receive")

    def _on_allocated(self, event: Allocated) -> None:
        self._allocated = event
        self._lifetime = event.lifetime
        self._settle("allocate")

    def _on_refreshed(self, event: Refreshed) -> None:
        self._lifetime = event.lifetime
        self._settle("refresh", event.lifetime)

    def _on_refused(self, event: PeerRefused) -> None:
        match event.method:
            case Method.CREATE_PERMISSION:
                self._settle(("permit", event.peer.host), error=event.error)
            case Method.CHANNEL_BIND:
                self._settle(("bind", event.peer), error=event.error)
            case _:
                self._settle(("connect", event.connection), error=event.error)

    def _on_congested(self, event: ServerCongested) -> None:
        self._congested = not event.relieved
        if event.relieved:
            self._settle("drain")

    def _on_lost(self, event: Lost) -> None:
        if event.again:
            # What was asked of the old allocation is not answered; the rest goes on with the next.
            for key in [key for key in self._waits if key not in ("receive", "accept", "drain")]:
                self._settle(key, error=event.error)

    def _on_end(self, error: StunError) -> None:
        if self._end is None:
            self._end = error
        self._settle("release")
        for key in [*self._waits]:
            self._settle(key, error=self._end)
        self._ended()

    # Waiting. -------------------------------------------------------------------------------------

    def _settle(
        self, key: Hashable, result: object = None, *, error: BaseException | None = None
    ) -> None:
        for wait in self._waits.pop(key, ()):
            if wait.done():
                continue
            if error is not None:
                wait.set_exception(error)
            else:
                wait.set_result(result)

    def _leave(self, wait: W) -> None:
        """Wait no more."""
        for key, waits in [*self._waits.items()]:
            if wait in waits:
                waits.remove(wait)
                if not waits:
                    del self._waits[key]

    def _wake(self, key: Hashable) -> None:
        """Let one of those go on who wait for a queue."""
        waits = self._waits.get(key, [])
        while waits:
            wait = waits.pop(0)
            if not wait.done():
                wait.set_result(None)
                break
        if not waits:
            self._waits.pop(key, None)

    # For the two kinds of driver. -----------------------------------------------------------------

    def _ended(self) -> None:
        """Nothing more will be told."""

    def _peer_connected(self, event: PeerConnected) -> None:
        raise NotImplementedError

    def _peer_stream(self, event: PeerStream) -> None:
        raise NotImplementedError

    def _peer_congested(self, event: PeerCongested) -> None:
        raise NotImplementedError

    def _peer_closed(self, event: PeerClosed) -> None:
        raise NotImplementedError


__all__ = ["RECEIVE_LIMIT", "Connection", "RelayClosed", "Relaying", "Wait"]
