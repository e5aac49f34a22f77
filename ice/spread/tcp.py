"""Birthday probing over TCP, with plain sockets.

Theory of operation.  As over UDP, the side behind the unpredictable NAT has many mappings, each
made by a SYN to the peer's one endpoint, and the peer dials from there to ports drawn at random.  A
SYN that meets a mapping arrives at a socket that is itself in SYN-SENT: a simultaneous open (RFC
9293 section 3.5).  If the peer was first, its SYN has opened its NAT for the other's next one, and
finds a port that listens there even when the dial is over.  A connection that comes up is a path,
and the first packet on it is a knock, since neither side need have a pair for it.

Where the peer's NAT answers a SYN that nobody asked for with RST, that RST undoes the mapping that
the SYN has made.  With ``ttl`` it goes so many hops only.  Then each port listens, and so it does
where there are several endpoints to dial: a dial is over when its SYN has made a mapping, and the
peer's SYN is what connects.

Descriptors are bounded by ``sockets`` on both sides, and by twice as many where ports listen:
probes that have waited longest are closed for new ones, which wait for that if need be.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from heapq import heappop, heappush
from itertools import count
from typing import Final

from ice.base import Base
from ice.candidate import TcpType
from ice.spread.knocks import Knocks
from ice.spread.order import Ended, Progress
from ice.spread.pace import Pace
from ice.tcp.connections import Direct
from ice.tcp.part import TcpPart
from ice.tcp.ports import Place
from stun.errors import DropReason
from stun.sansio import (
    MILLISECOND,
    Accepted,
    Address,
    Closed,
    Connected,
    Handle,
    Instant,
    Opened,
    SocketEvent,
)

MOST_FOUND: Final = 8
"""Connections of one spread that are taken."""
OPENING: Final = 900 * MILLISECOND
"""How long a dial lasts whose port listens: after a second the kernel sends its SYN again, and a
short one would go all the way."""

LEAST: Final = 500 * MILLISECOND
"""How long a probe lasts at least: the answer to its SYN must find it."""


class _Dial:
    """One connection that is being dialled."""

    __slots__ = ("_run",)

    def __init__(self, run: _Run) -> None:
        self._run = run

    def on_socket(self, event: SocketEvent, now: Instant) -> None:
        """Take what happened to it."""
        match event:
            case Connected(handle, local, remote):
                self._run.connected(handle, local, remote, now)
            case Closed(handle):
                self._run.failed(handle, now)
            case _:
                pass  # the other events are not of dials


class _Run:
    """What both roles have in common."""

    def __init__(
        self, progress: Progress, knocks: Knocks, *, tcp: TcpPart, place: Place, now: Instant
    ) -> None:
        self.progress = progress
        self._knocks = knocks
        self._tcp = tcp
        self._place = place
        self._pace = Pace(progress, now)
        self._dials: dict[Handle, Instant] = {}
        """When each began, the oldest first."""

    @property
    def hosts(self) -> set[str]:
        """The addresses of this host that it uses."""
        return {self._place.interface.host}

    def _dial(
        self, local: Address, remote: Address, now: Instant, ttl: int | None = None
    ) -> Handle:
        handle = self._tcp.board.dial(_Dial(self), local, remote, ttl=ttl)
        self._dials[handle] = now
        return handle

    def connected(self, handle: Handle, local: Address, remote: Address, now: Instant, /) -> None:
        """Take a connection that is established."""
        raise NotImplementedError

    def failed(self, handle: Handle, now: Instant, /) -> None:
        """Take note that a dial failed."""
        raise NotImplementedError

    def _make_room(self) -> None:
        """Close the dial that has waited longest, if there is no room for another one.

        What its SYN has opened stays open in the NAT, and the port listens.
        """
        if len(self._dials) >= self.progress.order.sockets:
            oldest = next(iter(self._dials))
            del self._dials[oldest]
            self._tcp.board.shut(oldest)

    def _may_take(self, handle: Handle) -> bool:
        self._dials.pop(handle, None)
        if self.progress.hits < MOST_FOUND:
            return True
        self._tcp.drops[DropReason.NO_ROOM] += 1
        self._tcp.board.shut(handle, reset=True)
        return False

    def _greet(self, base: Base, remote: Address, now: Instant) -> None:
        """Send the first packet on a connection; the peer checks back, and that makes a pair."""
        self.progress.hits += 1
        preference = self._place.interface.preference
        wire = self._knocks.make(base.component, preference, TcpType.SIMULTANEOUS_OPEN)
        self._tcp.send(base, remote, wire, now)

    def stop(self) -> None:
        """Close what nothing has come of."""
        for handle in self._dials:
            self._tcp.board.shut(handle)
        self._dials.clear()


class SocketsOverTcp(_Run):
    """Many dials to the same endpoints, each from a port of its own."""

    def __init__(
        self,
        progress: Progress,
        knocks: Knocks,
        *,
        tcp: TcpPart,
        place: Place,
        remotes: Sequence[Address],
        now: Instant,
    ) -> None:
        super().__init__(progress, knocks, tcp=tcp, place=place, now=now)
        self._remotes = remotes
        self._left = progress.order.sockets
        self._listens = progress.order.ttl is not None or len(remotes) > 1
        self._listening: dict[Handle, _Listener] = {}
        self._due: list[tuple[Instant, int, Address, Address]] = []
        """When which port is to dial where; a heap."""
        self._hang_up: deque[tuple[Instant, Handle]] = deque()
        """When the dial of a port that listens is to be closed."""
        self._number = count()

    def run(self, now: Instant) -> Ended | None:
        """Dial what may be dialled; say if it is over."""
        over = self._pace.why_over(now)
        if over is not None:
            return over
        while self._hang_up and self._hang_up[0][0] <= now:
            _, handle = self._hang_up.popleft()
            if handle in self._dials:
                del self._dials[handle]
                self._tcp.board.shut(handle)
        while (self._left or self._is_due(now)) and self._pace.take(now):
            if self._left:
                self._begin(now)
            else:
                _, _, local, remote = heappop(self._due)
                self._dial_from(local, remote, now)
        return None

    def _is_due(self, now: Instant) -> bool:
        return bool(self._due) and self._due[0][0] <= now

    def _begin(self, now: Instant) -> None:
        self._left -= 1
        local = Address(self._place.interface.host, 0)
        if self._listens:
            listener = _Listener(self)
            self._listening[self._tcp.board.listen(listener, local)] = listener
        else:
            self.progress.opened += 1
            self._dial(local, self._remotes[0], now)

    def _dial_from(self, local: Address, remote: Address, now: Instant) -> None:
        order = self.progress.order
        if self._listens:
            self._make_room()
        handle = self._dial(local, remote, now, order.ttl)
        if self._listens:
            self._hang_up.append((now + OPENING, handle))
            again = now + max(order.again, OPENING)
            heappush(self._due, (again, next(self._number), local, remote))

    def opened(self, local: Address, now: Instant) -> None:
        """Take note that a port listens: its first SYN was counted when the port was ordered."""
        self.progress.opened += 1
        first, *others = self._remotes
        for remote in others:
            heappush(self._due, (now, next(self._number), local, remote))
        self._dial_from(local, first, now)

    def deaf(self, handle: Handle) -> None:
        """Take note that a port could not be had."""
        self.progress.refused += 1
        self._tcp.board.owners.pop(handle, None)
        self._listening.pop(handle, None)

    def accepted(self, handle: Handle, local: Address, remote: Address, now: Instant) -> None:
        """Take a connection that a port has accepted."""
        if remote not in self._remotes:
            self._tcp.drops[DropReason.UNEXPECTED_SOURCE] += 1
            self._tcp.board.shut(handle, reset=True)
        elif self._may_take(handle):
            base = self._tcp.adopt(self._place, local)
            if self._tcp.connections.accepted(handle, base, remote, now, wanted=True):
                self._greet(base, remote, now)

    def connected(self, handle: Handle, local: Address, remote: Address, now: Instant) -> None:
        """Take a connection that is established: its port becomes a base."""
        if self._may_take(handle):
            base = self._tcp.adopt(self._place, local)
            connections = self._tcp.connections
            connection = Direct(
                connections, self._tcp.board, handle, base, remote, accepted=False, now=now
            )
            connections.add(connection)
            self._greet(base, remote, now)

    def failed(self, handle: Handle, now: Instant) -> None:
        """Dial once more: what made an end of it has undone the mapping, too."""
        self.progress.refused += 1
        self._tcp.board.owners.pop(handle, None)
        del self._dials[handle]
        if not self._listens:
            local = Address(self._place.interface.host, 0)
            heappush(self._due, (now, next(self._number), local, self._remotes[0]))

    def deadline(self, now: Instant) -> Instant:
        """Say when :meth:`run` is to be called."""
        at = self._pace.until
        if not self._pace.is_spent and (self._left or self._due):
            next_at = self._pace.next(now)
            at = min(at, next_at if self._left else max(next_at, self._due[0][0]))
        return min(at, self._hang_up[0][0]) if self._hang_up else at

    def stop(self) -> None:
        """Close what nothing has come of."""
        super().stop()
        for handle in self._listening:
            self._tcp.board.shut(handle)
        self._listening.clear()
        self._due.clear()
        self._hang_up.clear()
        self._left = 0


class _Listener:
    """A port that listens for the peer's SYN."""

    __slots__ = ("_local", "_run")

    def __init__(self, run: SocketsOverTcp) -> None:
        self._run = run
        self._local: Address | None = None

    def on_socket(self, event: SocketEvent, now: Instant) -> None:
        """Take what happened to it."""
        match event:
            case Opened(_, local):
                self._local = local
                self._run.opened(local, now)
            case Accepted(_, handle, _, remote):
                assert self._local is not None
                self._run.accepted(handle, self._local, remote, now)
            case Closed(handle):
                self._run.deaf(handle)
            case _:
                pass  # the other events are not of listeners


class ProbesOverTcp(_Run):
    """Dials from one port to many ports of the peer's hosts."""

    def __init__(
        self,
        progress: Progress,
        knocks: Knocks,
        *,
        tcp: TcpPart,
        place: Place,
        base: Base,
        targets: Iterator[Address],
        now: Instant,
    ) -> None:
        super().__init__(progress, knocks, tcp=tcp, place=place, now=now)
        self._base = base
        self._targets = targets

    def run(self, now: Instant) -> Ended | None:
        """Dial what may be dialled; say if it is over."""
        over = self._pace.why_over(now)
        if over is not None:
            return over
        while self._room_at(now) <= now and self._pace.take(now):
            target = next(self._targets, None)
            if target is None:
                break
            self._make_room()
            self._dial(self._base.address, target, now)
        # The last dials have their time.
        return None

    def _room_at(self, now: Instant) -> Instant:
        """Say when another dial may take the place of the oldest."""
        if len(self._dials) < self.progress.order.sockets:
            return now
        return next(iter(self._dials.values())) + LEAST

    def connected(self, handle: Handle, _: Address, remote: Address, now: Instant, /) -> None:
        """Take a connection: to whom is to be proved, for anybody may have a port there."""
        if self._may_take(handle) and self._tcp.connections.accepted(
            handle, self._base, remote, now, wanted=False
        ):
            self._greet(self._base, remote, now)

    def failed(self, handle: Handle, _: Instant, /) -> None:
        """Take note that a dial failed."""
        self.progress.refused += 1
        self._tcp.board.owners.pop(handle, None)
        del self._dials[handle]

    def deadline(self, now: Instant) -> Instant:
        """Say when :meth:`run` is to be called."""
        if self._pace.is_spent:
            return self._pace.until
        return min(max(self._pace.next(now), self._room_at(now)), self._pace.until)
