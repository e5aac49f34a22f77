"""Server-reflexive candidates over TCP (RFC 6544 section 5.2): Binding from the port that listens.

Theory of operation.  A connection to a STUN server is dialled from the very port that is to be
found by the peer, so that a NAT gives the peer's connections the mapping that the server saw.  The
connection stays open until ICE has concluded ("connections to servers used for relayed and server
reflexive candidates are kept open during ICE processing", section 3): its FIN may end the mapping.
A Binding request now and then keeps it alive and notices when the mapping has changed.

Servers are asked in parallel.  Of those that tell the same address of the same port one is kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from typing import Final

from ice.config import Config, Server
from ice.gather.book import Source
from ice.gather.pacer import Pacer
from ice.gather.patience import NEAR, Patience
from ice.gather.reach import can_reach, is_plausible
from ice.tcp.ports import Port
from ice.tcp.switchboard import Switchboard
from stun.client import Client
from stun.client import Config as StunConfig
from stun.discovery import Target, Transport
from stun.errors import Dropped, DropReason
from stun.outcome import Failed, Indication, Reply, mapped_address
from stun.sansio import (
    SECOND,
    Address,
    Arrived,
    Closed,
    Connected,
    Entropy,
    Handle,
    Instant,
    SocketEvent,
    Timers,
    Write,
)
from stun.transaction import Schedule

MOST_TARGETS: Final = 4
"""Addresses of one server that are asked."""
AGAIN: Final = 10 * SECOND
"""How long the answer to a keepalive, or the connection for it, may take."""
REDIAL: Final = SECOND
"""Before a connection that the server has closed is opened again; doubled each time."""
REDIALS: Final = 3
"""How often in a row, without an answer in between."""


class Query:
    """One port of ours and one address of a server."""

    __slots__ = (
        "_all", "handle", "mapped", "port", "redials", "request", "source", "target",
    )  # fmt: skip

    def __init__(self, mappings: Mappings, port: Port, source: Source, target: Target) -> None:
        self._all = mappings
        self.port = port
        self.source = source
        self.target = target
        self.handle: Handle | None = None
        self.request: bytes | None = None
        """The request that is under way."""
        self.mapped: Address | None = None
        """What the server has told last; ``None`` until it has answered."""
        self.redials = 0

    @property
    def what(self) -> str:
        """What it seeks, in words."""
        local = self.port.base.address if self.port.base else self.port.place.interface.host
        return f"server-reflexive of TCP {local} at {self.source.name} ({self.target.address})"

    def on_socket(self, event: SocketEvent, now: Instant) -> None:
        """Take what happened to its connection."""
        self._all.on_socket(self, event, now)


class Mappings:
    """The connections to STUN servers.

    ``found`` is told of each address that a port has outside, ``not_found`` what was asked in vain.
    """

    __slots__ = (
        "_board", "_client", "_config", "_drops", "_enough", "_found", "_not_found", "_pacer",
        "_patience", "_queries", "_requests", "_timers",
    )  # fmt: skip

    def __init__(
        self,
        config: Config,
        board: Switchboard,
        pacer: Pacer,
        patience: Patience,
        *,
        found: Callable[[Query, Address], None],
        not_found: Callable[[Query, str], None],
        drops: Counter[DropReason],
        entropy: Entropy,
    ) -> None:
        self._config = config
        self._board = board
        self._pacer = pacer
        self._patience = patience
        self._found = found
        self._not_found = not_found
        self._drops = drops
        self._client = Client(StunConfig(software=config.software), entropy=entropy)
        self._queries: set[Query] = set()
        self._requests: dict[bytes, Query] = {}
        self._timers: Timers[Query] = Timers()
        self._enough: Timers[Port] = Timers()
        """When other servers are waited for no more, because one has answered."""

    @property
    def is_busy(self) -> bool:
        """Whether a candidate may still come."""
        return any(query.mapped is None for query in self._queries)

    # Commands. ------------------------------------------------------------------------------------

    def ask(self, port: Port, servers: Iterable[tuple[int, Server]]) -> None:
        """Ask each of these servers, which have a rank each, about a port that is open."""
        known: set[Address] = {q.target.address for q in self._queries if q.port is port}
        for rank, server in servers:
            for target in _targets(server, port.place.interface.host):
                if target.address not in known:
                    known.add(target.address)
                    source = Source(server.name, target.address.host, rank)
                    query = Query(self, port, source, target)
                    self._queries.add(query)
                    self._pacer.add(partial(self._start, query))

    def forget(self, port: Port) -> None:
        """Close the connections of a port."""
        self._enough.cancel(port)
        for query in [query for query in self._queries if query.port is port]:
            self._drop(query)

    def give_up(self, why: str) -> None:
        """Wait for no more candidates."""
        self._give_up([q for q in self._queries if q.mapped is None], why)
        self._enough = Timers()

    def conclude(self) -> None:
        """Close every connection: "once ICE processing has completed" (RFC 6544 section 11.2)."""
        for query in [*self._queries]:
            self._drop(query)
        self._enough = Timers()

    def _give_up(self, queries: list[Query], why: str) -> None:
        for query in queries:
            self._not_found(query, why)
            self._drop(query)

    def _start(self, query: Query, now: Instant) -> bool:
        if query not in self._queries or query.port.base is None:
            return False
        self._dial(query)
        self._timers.set(query, now + self._config.gather_timeout)
        return True

    def _dial(self, query: Query) -> None:
        assert query.port.base is not None
        target = query.target
        name = target.name if target.transport is Transport.TLS else None
        query.handle = self._board.dial(
            query, query.port.base.address, target.address, server_name=name
        )

    # What happens. --------------------------------------------------------------------------------

    def on_socket(self, query: Query, event: SocketEvent, now: Instant) -> None:
        """Take what happened to a connection."""
        match event:
            case Connected():
                self._client.on_socket(event, now)
                self._request(query, now)
            case Arrived():
                self._client.on_socket(event, now)
            case Closed(handle, cause, detail):
                self._board.owners.pop(handle, None)
                query.handle = None
                # The end of a request that is under way is told as its failure.
                was_asked = query.request is not None
                self._client.on_socket(event, now)
                if not was_asked:
                    self._ended(query, detail or cause.value, now)
            case _:
                pass  # the other events are not of such connections
        self._drain(now)

    def _request(self, query: Query, now: Instant) -> None:
        assert query.handle is not None
        schedule = Schedule.reliable(self._config.gather_timeout)
        request = self._client.request_over(query.handle, now=now, schedule=schedule)
        self._requests[request] = query
        query.request = request
        self._drain(now)

    def _drain(self, now: Instant) -> None:
        while (output := self._client.poll()) is not None:
            match output:
                case Write():
                    self._board.queue.append(output)
                case Reply(name, message):
                    self._answered(self._requests.pop(name), mapped_address(message), now)
                case Failed(name, _, error):
                    query = self._requests.pop(name)
                    query.request = None
                    self._ended(query, str(error), now)
                case Dropped(reason):
                    self._drops[reason] += 1
                case Indication():
                    self._drops[DropReason.UNEXPECTED_CLASS] += 1
                case _:
                    pass  # nothing is sent over UDP

    def _answered(self, query: Query, mapped: Address | None, now: Instant) -> None:
        query.request = None
        query.redials = 0
        self._patience.answered(now)
        if mapped is None or not is_plausible(mapped):
            self._ended(query, f"its answer has no usable address ({mapped})", now)
            return
        before, query.mapped = query.mapped, mapped
        if mapped != before:
            self._found(query, mapped)
        of_port = [other for other in self._queries if other.port is query.port]
        if any(other is not query and other.mapped == mapped for other in of_port):
            self._drop(query)  # it would tell the same again and again
        else:
            self._timers.set(query, now + self._config.keepalive)
        if before is None and query.port not in self._enough:
            self._enough.set(query.port, now + NEAR)

    def _ended(self, query: Query, why: str, now: Instant) -> None:
        """Take note that a connection is of no use, or gone."""
        if query.mapped is None:
            self._not_found(query, why)
            self._drop(query)
        elif query.redials >= REDIALS:
            self._drop(query)
        else:
            # What it told may still be true, and it is to be kept so.
            self._hang_up(query)
            self._timers.set(query, now + (REDIAL << query.redials))
            query.redials += 1

    def _hang_up(self, query: Query) -> None:
        if query.request is not None:
            self._requests.pop(query.request, None)
            self._client.cancel(query.request)
            query.request = None
        if query.handle is not None:
            self._client.forget(query.handle)
            # A FIN would leave the addresses in TIME-WAIT, and they are to be used again.
            self._board.shut(query.handle, reset=True)
            query.handle = None

    def _drop(self, query: Query) -> None:
        self._hang_up(query)
        self._timers.cancel(query)
        self._queries.discard(query)

    # Time. ----------------------------------------------------------------------------------------

    def on_deadline(self, now: Instant) -> None:
        """Keep connections alive, give up servers that are late."""
        self._client.on_deadline(now)
        self._drain(now)
        for port in self._enough.expired(now):
            late = [q for q in self._queries if q.port is port and q.mapped is None]
            self._give_up(late, "no answer, long after another server's")
        for query in self._timers.expired(now):
            if query.mapped is None:
                self._give_up([query], "no answer")
            elif query.handle is None:
                self._dial(query)
                self._timers.set(query, now + AGAIN)
            elif query.request is None and query.redials == 0:
                self._request(query, now)
                self._timers.set(query, now + AGAIN)
            else:
                self._ended(query, "no answer", now)

    def deadline(self) -> Instant | None:
        """Say when :meth:`on_deadline` is to be called."""
        times = (self._timers.next(), self._enough.next(), self._client.deadline())
        return min((at for at in times if at is not None), default=None)


def _targets(server: Server, host: str) -> list[Target]:
    """Return where a server may be asked over TCP.

    A ``stun:`` URI means UDP (RFC 7064 section 3.2), yet a STUN server "MUST support UDP and TCP"
    (RFC 8489 section 13).  TLS tells the same two round trips later, so it is asked only where
    there is nothing else; DTLS has no counterpart.
    """
    targets = [
        target
        for target in server.targets
        if can_reach(host, target.address) and target.transport is not Transport.DTLS
    ]
    plain = [target for target in targets if target.transport is not Transport.TLS]
    return (plain or targets)[:MOST_TARGETS]
