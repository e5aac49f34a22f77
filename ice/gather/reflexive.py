"""Server-reflexive candidates over UDP: what STUN servers see sockets as (RFC 8445 5.1.1.2).

Each socket asks each server that it can reach.  From then on the first server that answered is
asked again now and then, for "the bindings MUST be kept alive by additional Binding requests to the
server" (section 5.1.1.4); an answer that tells of another mapping is another candidate.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from ice.config import Config, Server
from ice.gather.book import Book, Source
from ice.gather.hostsocket import HostSocket
from ice.gather.pacer import Pacer
from ice.gather.patience import NEAR, Patience
from ice.gather.reach import can_reach, is_plausible
from stun.client import Client, Failed, Reply, mapped_address
from stun.client import Config as StunConfig
from stun.discovery import Transport
from stun.errors import Dropped, DropReason
from stun.sansio import (
    MILLISECOND,
    SECOND,
    Address,
    Entropy,
    Instant,
    Received,
    Timers,
    Transmit,
    Undeliverable,
)
from stun.transaction import RTO, Schedule

AGAIN: Final = Schedule.fixed((500 * MILLISECOND, 1000 * MILLISECOND), 2 * SECOND)
"""Of a keepalive.  Its request does the work, so that a lost answer does no harm."""


@dataclass(slots=True, eq=False)
class Query:
    """One socket's question to one server.  ``again``: only to keep the mapping alive."""

    socket: HostSocket
    server: Server
    at: Address
    rank: int
    again: bool = False
    transaction: bytes | None = None
    trouble: str = ""
    """What an ICMP error said that may pass."""

    @property
    def what(self) -> str:
        """What it seeks, in words."""
        base = self.socket.base
        local = self.socket.spot.interface.host if base is None else base.address
        return f"server-reflexive of {local} at {self.server.name} ({self.at})"


class Reflexive:
    """The Binding requests of all sockets."""

    def __init__(
        self,
        config: Config,
        queue: deque[Any],
        book: Book,
        pacer: Pacer,
        patience: Patience,
        *,
        entropy: Entropy,
    ) -> None:
        self.drops: Counter[DropReason] = Counter()
        self._config = config
        self._queue = queue
        self._book = book
        self._pacer = pacer
        self._patience = patience
        self._client = Client(StunConfig(software=config.software), entropy=entropy)
        self._asking: set[Query] = set()
        """What candidates are still hoped for from: sent, or waiting for its turn."""
        self._open: dict[bytes, Query] = {}
        self._enough: Timers[HostSocket | Query] = Timers()
        """When a socket's other servers are waited for no more, because one has answered; when a
        server is that the network says cannot be reached."""
        self._kept: dict[HostSocket, Query] = {}
        self._keep: Timers[HostSocket] = Timers()

    @property
    def is_busy(self) -> bool:
        """Whether a candidate may still come."""
        return bool(self._asking)

    # Asking. --------------------------------------------------------------------------------------

    def ask(self, socket: HostSocket, server: Server, rank: int) -> None:
        """Ask each of a server's addresses that can be reached."""
        host = socket.spot.interface.host
        asked = {query.at for query in self._asking if query.socket is socket}
        for target in server.targets:
            # A TURN server answers Binding requests as well (RFC 8656 section 3.1).
            udp = target.transport is Transport.UDP and can_reach(host, target.address)
            if udp and target.address not in asked:
                query = Query(socket, server, target.address, rank)
                self._asking.add(query)
                self._pacer.add(partial(self._start, query))

    def _start(self, query: Query, now: Instant) -> bool:
        base = query.socket.base
        if base is None or not (query in self._asking or self._keeps(query)):
            return False
        if query.again:
            schedule = AGAIN
        else:
            # RFC 8445 section 14.3: "RTO = MAX (500ms, Ta * (Num-Of-Cands))".
            rto = max(RTO, self._config.ta * len(self._asking))
            schedule = _until(rto, (self._patience.until or now) - now)
        query.transaction = self._client.request(
            destination=query.at,
            source=base.address,
            now=now,
            schedule=schedule,
            credentials=query.server.credentials,
            accept_from=frozenset((query.at,)),
        )
        self._open[query.transaction] = query
        correspondent = query.socket.correspondent(query.at)
        correspondent.asked += 1
        correspondent.answers = self.receive
        self.drain(now)
        return True

    def _keeps(self, query: Query) -> bool:
        return query.again and query.socket in self._kept

    # What happens. --------------------------------------------------------------------------------

    def receive(self, packet: Received, now: Instant) -> None:
        """Take an answer to a Binding request."""
        self._client.receive(packet, now)
        self.drain(now)

    def undeliverable(self, event: Undeliverable, now: Instant) -> None:
        """Take an ICMP error for something that was sent to a server.

        A hard one ends the query.  After one that "may be only a transient condition" (RFC 1122
        section 4.2.3.9), no route for example, there is time for one retransmission.
        """
        self._client.on_socket(event, now)
        self.drain(now)
        for query in self._asking:
            base = query.socket.base
            if query.at == event.destination and base and base.address == event.local:
                query.trouble = f"ICMP type {event.icmp_type} code {event.icmp_code}"
                if query not in self._enough:
                    self._enough.set(query, now + 2 * NEAR)

    def on_deadline(self, now: Instant) -> None:
        """Send again, keep mappings alive, give up servers that are late."""
        self._client.on_deadline(now)
        self.drain(now)
        for enough in self._enough.expired(now):
            if isinstance(enough, Query):
                self._give_up([enough], "no answer")
            else:
                late = [query for query in self._asking if query.socket is enough]
                self._give_up(late, "no answer, long after another server's")
        for socket in self._keep.expired(now):
            first = self._kept[socket]
            again = Query(socket, first.server, first.at, first.rank, again=True)
            self._pacer.add(partial(self._start, again))
            self._keep.set(socket, now + self._config.keepalive)

    def deadline(self) -> Instant | None:
        """Say when :meth:`on_deadline` is to be called."""
        times = (self._client.deadline(), self._enough.next(), self._keep.next())
        return min((at for at in times if at is not None), default=None)

    def drain(self, now: Instant) -> None:
        """Send what is to be sent, take what was answered."""
        poll = self._client.poll
        while (output := poll()) is not None:
            if isinstance(output, Transmit):
                self._queue.append(output)
            elif isinstance(output, Reply):
                query = self._end(output.transaction_id)
                mapped = mapped_address(output.message)
                if mapped is not None and is_plausible(mapped):
                    self._answered(query, mapped, now)
                else:
                    self._missing(query, f"its answer has no usable address ({mapped})")
            elif isinstance(output, Failed):
                self._missing(self._end(output.transaction_id), str(output.error))
            elif isinstance(output, Dropped):
                self.drops[output.reason] += 1

    def _end(self, transaction: bytes) -> Query:
        query = self._open.pop(transaction)
        self._part(query)
        self._asking.discard(query)
        self._enough.cancel(query)
        return query

    def _part(self, query: Query) -> None:
        query.transaction = None
        query.socket.correspondent(query.at).asked -= 1
        query.socket.part_from(query.at)

    def _answered(self, query: Query, mapped: Address, now: Instant) -> None:
        socket = query.socket
        base = socket.base
        if base is None:
            return
        source = Source(query.server.name, query.at.host, query.rank)
        self._book.reflexive(base, socket.spot.interface, mapped, source)
        if socket not in self._kept:
            self._kept[socket] = query
            self._keep.set(socket, now + self._config.keepalive)
        if not query.again:
            self.told(socket, now)

    def _missing(self, query: Query, why: str) -> None:
        if not query.again:
            _, stream, component = query.socket.spot
            self._book.missing(stream, component, query.what, why)

    def told(self, socket: HostSocket, now: Instant) -> None:
        """Take note that a server has told what it sees a socket as, over STUN or TURN."""
        self._patience.answered(now)
        if self._patience.until is not None and socket not in self._enough:
            self._enough.set(socket, now + NEAR)

    # Ending. --------------------------------------------------------------------------------------

    def _cancel(self, query: Query) -> None:
        self._asking.discard(query)
        self._enough.cancel(query)
        if query.transaction is not None:
            self._client.cancel(query.transaction)
            del self._open[query.transaction]
            self._part(query)

    def _give_up(self, queries: list[Query], why: str) -> None:
        for query in queries:
            self._cancel(query)
            self._missing(query, f"{why}; {query.trouble}" if query.trouble else why)

    def give_up(self, why: str) -> None:
        """Wait for no more candidates."""
        self._give_up([*self._asking], why)
        self._enough = Timers()

    def forget(self, socket: HostSocket) -> None:
        """Take note that a socket is no more."""
        for query in {*self._asking, *self._open.values()}:
            if query.socket is socket:
                self._cancel(query)
        self._enough.cancel(socket)
        self._keep.cancel(socket)
        self._kept.pop(socket, None)

    def conclude(self) -> None:
        """Ask for nothing more, and keep no mapping alive: "until ICE processing has completed"."""
        for query in {*self._asking, *self._open.values()}:
            self._cancel(query)
        self._kept.clear()
        self._keep, self._enough = Timers(), Timers()


def _until(rto: int, left: int) -> Schedule:
    """Return a schedule that doubles from ``rto``; somebody else ends it when nothing is left."""
    intervals: list[int] = []
    step = rto
    while sum(intervals) + step < left:
        intervals.append(step)
        step *= 2
    return Schedule.fixed(intervals, step)
