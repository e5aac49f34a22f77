"""Birthday probing over UDP.

Theory of operation.  The side whose NAT gives another port to each endpoint contacted opens many
sockets and knocks from each at the one endpoint of the peer that is known: as many mappings, each
open for that endpoint.  The peer knocks from there at ports drawn at random.  The first knock that
meets a mapping arrives at one of the sockets, and since it proves itself, the socket becomes a base
like others and the knock a check on it; all else is ordinary ICE.  A knock of the sockets that
meets a port which the peer has already knocked at arrives there, is answered and checked back.

Both sides may open sockets, each aimed at one endpoint of the other that its NAT is to give out in
the course of the run.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from heapq import heappop, heappush
from itertools import count
from typing import Any, Final

from ice.base import Base, PathFound
from ice.candidate import CandidateType
from ice.gather.hostsocket import Spot
from ice.gather.sockets import HostSockets
from ice.pair import Pair
from ice.spread.knocks import Knocks
from ice.spread.order import Ended, Progress
from ice.spread.pace import Pace
from stun.errors import DropReason
from stun.sansio import (
    Address,
    Closed,
    Handle,
    Instant,
    Opened,
    OpenUdp,
    Received,
    Shut,
    SocketEvent,
    Transmit,
)

MOST_FOUND: Final = 8
"""Sockets of one spread that may become bases.  Whoever found them knows the password, and each
costs the agent pairs and a socket."""


class SocketsOverUdp:
    """Many sockets that knock at the same endpoints, again and again."""

    def __init__(
        self,
        progress: Progress,
        knocks: Knocks,
        *,
        spot: Spot,
        remotes: Sequence[Address],
        sockets: HostSockets,
        handles: Iterator[Handle],
        queue: deque[Any],
        drops: Counter[DropReason],
        now: Instant,
    ) -> None:
        self.progress = progress
        self._knocks = knocks
        self._spot = spot
        self._remotes = remotes
        self._sockets = sockets
        self._handles = handles
        self._queue = queue
        self._drops = drops
        self._pace = Pace(progress, now)
        self._open: dict[Handle, Address | None] = {}
        """The sockets, with their addresses once they are bound."""
        self._at: dict[Address, Handle] = {}
        self._left = progress.order.sockets
        """How many are still to be opened."""
        self._due: list[tuple[Instant, int, Handle, Address]] = []
        """When which socket is to knock where; a heap."""
        self._number = count()

    @property
    def hosts(self) -> set[str]:
        """The addresses of this host that it uses."""
        return {self._spot.interface.host}

    def run(self, now: Instant) -> Ended | None:
        """Send what may be sent; say if it is over."""
        over = self._pace.why_over(now)
        if over is not None:
            return over
        while (self._left or self._is_due(now)) and self._pace.take(now):
            # Another mapping is worth more than keeping one alive for longer than it needs.
            if self._left:
                self._left -= 1
                handle = next(self._handles)
                self._open[handle] = None
                self._queue.append(OpenUdp(handle, Address(self._spot.interface.host, 0)))
            else:
                _, _, handle, remote = heappop(self._due)
                self._knock(handle, remote, now)
        return None

    def _is_due(self, now: Instant) -> bool:
        due = self._due
        while due and due[0][2] not in self._open:
            heappop(due)  # it was found, or lost
        return bool(due) and due[0][0] <= now

    def _knock(self, handle: Handle, remote: Address, now: Instant) -> None:
        local = self._open[handle]
        assert local is not None
        order = self.progress.order
        wire = self._knocks.make(order.component, self._spot.interface.preference)
        self._queue.append(Transmit(wire, remote, local, ttl=order.ttl))
        heappush(self._due, (now + order.again, next(self._number), handle, remote))

    def owns(self, handle: Handle) -> bool:
        """Whether a socket is one of these."""
        return handle in self._open

    def on_socket(self, event: SocketEvent, now: Instant) -> None:
        """Take what happened to one of the sockets."""
        match event:
            case Opened(handle, local):
                self.progress.opened += 1
                self._open[handle] = local
                self._at[local] = handle
                first, *others = self._remotes
                for remote in others:
                    heappush(self._due, (now, next(self._number), handle, remote))
                # It was counted when the socket was ordered.
                self._knock(handle, first, now)
            case Closed(handle):
                self.progress.refused += 1
                at = self._open.pop(handle)
                if at is not None:
                    del self._at[at]
            case _:
                pass  # the other events are not of UDP sockets

    def receive(self, packet: Received) -> bool:
        """Take a datagram, if it is for one of these sockets; say whether it was."""
        handle = self._at.get(packet.local)
        if handle is None:
            return False
        objection = self._knocks.objection(packet.data)
        if objection is None and self.progress.hits >= MOST_FOUND:
            objection = DropReason.NO_ROOM
        if objection is not None:
            self._drops[objection] += 1
            return True
        self.progress.hits += 1
        del self._at[packet.local], self._open[handle]
        base = self._sockets.adopt(handle, self._spot, packet.local)
        self._queue.append(PathFound(base, packet.source, packet.data))
        return True

    def deadline(self, now: Instant) -> Instant:
        """Say when :meth:`run` is to be called."""
        if self._pace.is_spent:
            return self._pace.until
        if self._left:
            return min(self._pace.next(now), self._pace.until)
        if not self._due:
            return self._pace.until
        return min(max(self._due[0][0], self._pace.next(now)), self._pace.until)

    def stop(self) -> None:
        """Shut the sockets that nothing has come of."""
        for handle in self._open:
            self._queue.append(Shut(handle))
        self._open.clear()
        self._at.clear()
        self._due.clear()
        self._left = 0


class ProbesOverUdp:
    """Knocks from one base at many ports of the peer's hosts."""

    def __init__(
        self,
        progress: Progress,
        knocks: Knocks,
        *,
        base: Base,
        preference: int,
        targets: Iterator[Address],
        queue: deque[Any],
        now: Instant,
    ) -> None:
        self.progress = progress
        self._knocks = knocks
        self._base = base
        self._preference = preference
        self._queue = queue
        self._pace = Pace(progress, now)
        self._targets = targets

    @property
    def hosts(self) -> set[str]:
        """The addresses of this host that it uses."""
        return {self._base.address.host}

    def found(self, pair: Pair) -> None:
        """Take note of a pair that works, which may be to whom a probe has come."""
        if pair.base is self._base and pair.remote.type is CandidateType.PEER_REFLEXIVE:
            self.progress.hits += 1

    def run(self, now: Instant) -> Ended | None:
        """Send what may be sent; say if it is over.  What answers late is still welcome."""
        over = self._pace.why_over(now)
        if over is not None:
            return over
        while self._pace.take(now):
            target = next(self._targets, None)
            if target is None:
                return Ended.SPENT
            wire = self._knocks.make(self._base.component, self._preference)
            self._queue.append(Transmit(wire, target, self._base.address))
        return Ended.SPENT if self._pace.is_spent else None

    def deadline(self, now: Instant) -> Instant:
        """Say when :meth:`run` is to be called."""
        return min(self._pace.next(now), self._pace.until)

    def stop(self) -> None:
        """Send nothing more."""
