"""The UDP sockets of an agent: data of a proven path goes straight to whoever reads it.

Theory of operation.  A packet of a path that a check has proved, and that is no STUN message,
concerns no machine: which pair it belongs to does not change from one packet to the next.  So each
socket remembers, by the source address as the system gives it, the :class:`ice.pair.Pair` that the
machine named once (:meth:`ice.machine.AgentMachine.proved`); such a packet costs one system call, a
dict lookup and the reader's queue.  A pair says itself when it is no longer valid.  Everything else
passes through the machine.

A socket that is drained until it is empty costs a failed system call each time, which for a packet
that comes alone doubles the price.  How many packets are read in one wake-up therefore follows what
came before: see :meth:`Lane.full`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from ice.pair import Pair
from stun.datagrams import Core, UdpDatagrams
from stun.demux import MAGIC_COOKIE
from stun.icmp import read_errors
from stun.sansio import Address, Closed, Handle, Opened, OpenUdp, Received, Undeliverable
from stun.sockaddr import from_sockaddr
from stun.udp import BATCH, UdpSocket

LARGEST: Final = 65535
MOST_CALM: Final = 32
"""Lone packets in a row, at most, before it is seen whether another one waits."""


class Proves(Protocol):
    """What is asked of the machine."""

    def proved(self, local: Address, remote: Address) -> Pair | None:
        """Return the pair that data of this UDP path belongs to, if a check has proved it."""
        ...


Feed = Callable[[bytes], None]
FeedOf = Callable[[int, int], Feed]
"""Where the data of a stream and a component goes."""


class Lane:
    """What is remembered of one socket."""

    __slots__ = ("_calm", "_wait", "burst", "feed", "pairs")

    def __init__(self) -> None:
        self.pairs: dict[tuple[str, int] | tuple[str, int, int, int], Pair] = {}
        self.feed: Feed | None = None
        self.burst = 1
        self._calm = self._wait = 1

    def full(self) -> None:
        """As many packets came as were asked for: perhaps there are more.

        From one to more than one it goes on trial: if nothing more comes, twice as many lone
        packets pass before the next trial.
        """
        if self.burst > 1:
            self.burst = min(self.burst * 2, BATCH)
            self._wait = 1
        else:
            self._calm -= 1
            if self._calm <= 0:
                self.burst = 2

    def empty(self, taken: int) -> None:
        """No more than ``taken`` packets were there."""
        if taken <= 1:
            self.burst = 1
            self._wait = min(self._wait * 2, MOST_CALM)
            self._calm = self._wait
        else:
            self.burst = min(taken + 1, BATCH)


class AgentDatagrams(UdpDatagrams):
    """:class:`stun.datagrams.UdpDatagrams` with the short way for data."""

    def __init__(self, core: Core, machine: Proves, feed_of: FeedOf) -> None:
        super().__init__(core)
        self._machine = machine
        self._feed_of = feed_of
        self._lanes: dict[Handle, Lane] = {}

    def open(self, order: OpenUdp) -> Opened | Closed:
        """Bind a socket and start to read it."""
        self._lanes[order.handle] = Lane()
        return super().open(order)

    def shut(self, handle: Handle) -> bool:
        """Close a socket; say whether there was one."""
        self._lanes.pop(handle, None)
        return super().shut(handle)

    def forget(self) -> None:
        """Ask the machine anew which pair the data of each path belongs to."""
        for lane in self._lanes.values():
            lane.pairs.clear()

    def socket_of(self, local: Address) -> UdpSocket | None:
        """Return the socket that is bound to this address."""
        return self._from.get(local)

    def _readable(self, port: UdpSocket) -> None:
        lane = self._lanes[port.handle]
        pairs, feed, recvfrom = lane.pairs, lane.feed, port.sock.recvfrom
        errors: list[Undeliverable] = []
        slow = False
        taken = 0
        for taken in range(lane.burst):
            try:
                data, source = recvfrom(LARGEST)
            except BlockingIOError:
                lane.empty(taken)
                break
            except OSError:
                errors += _errors(port)
                continue
            pair = pairs.get(source)
            if (
                pair is not None
                and pair.valid
                and (not data or data[0] > 3 or data[4:8] != MAGIC_COOKIE)
            ):
                pair.packets_received += 1
                pair.octets_received += len(data)
                feed(data)  # type: ignore[misc]  # where there is a pair, there is this
            else:
                slow = True
                if not self._through_the_machine(port, lane, data, source):
                    self._core.settle()
                    return
                feed = lane.feed
        else:
            taken += 1
            lane.full()
        port.received += taken
        if taken == 0 or errors:
            # A failed send may have taken the pending error while the queue still holds its entry,
            # which keeps the socket ready for reading.
            errors += _errors(port)
            for error in errors:
                self._core.tell(error)
            slow = True
        if slow:
            self._core.settle()

    def _through_the_machine(
        self,
        port: UdpSocket,
        lane: Lane,
        data: bytes,
        source: tuple[str, int] | tuple[str, int, int, int],
    ) -> bool:
        """Let the machine have a packet; whether the socket is still there afterwards."""
        core, remote = self._core, from_sockaddr(source)
        core.machine.receive(Received(data, remote, port.local), core.reactor.now())
        core.pump()
        if self._lanes.get(port.handle) is not lane:
            return False
        if not data or data[0] > 3:
            pair = self._machine.proved(port.local, remote)
            if pair is not None:
                lane.pairs[source] = pair
                lane.feed = self._feed_of(pair.stream, pair.component)
        return True


def _errors(port: UdpSocket) -> list[Undeliverable]:
    return [Undeliverable(port.local, *error) for error in read_errors(port.sock)]
