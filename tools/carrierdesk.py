"""Two carriers with a wire between them, in time that is counted instead of waited for.

The wire stands for a connected pair of :class:`ice.Connection`.  It delays, loses and cuts packets,
has a rate and a queue, and is congested when a test says so.
"""

from __future__ import annotations

import asyncio
import selectors
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, TypeVar

from ice.connection import Receiver
from ice.link.certificate import Identity
from ice.link.quic import QuicCarrier
from ice.link.tls import TlsCarrier
from stun.errors import StunError

T = TypeVar("T")
Kind = type[TlsCarrier] | type[QuicCarrier]


class _Skipping(selectors.DefaultSelector):
    """Lets the time pass that it would have waited."""

    def __init__(self) -> None:
        super().__init__()
        self.passed = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise AssertionError("everything waits, and nothing will ever happen")
        self.passed += max(timeout, 0)
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock goes on when there is nothing else to do."""

    def __init__(self) -> None:
        self._skipping = _Skipping()
        super().__init__(self._skipping)

    def time(self) -> float:
        return 1000 + self._skipping.passed


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run it on a loop of its own, in virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(work)


@dataclass
class Way:
    """What a carrier looks at of a pair: the round trip that checks took, nanoseconds."""

    rtt: int | None = None


class End:
    """One end of the wire: what a carrier takes for its connection."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.other: End
        self.agreed = True
        self.selected_pair: Way | None = Way()
        self.congested = False
        self.sent: list[bytes] = []
        self.to: Receiver | None = None
        self._kept: deque[bytes] = deque()
        self._under_way: deque[bytes] = deque()
        self._free = 0.0
        """When the wire has sent what was given to it."""

    def divert(self, to: Receiver | None) -> None:
        self.to = to
        while self._kept and self.to is not None:
            self.to.packet(self._kept.popleft())

    def send_all(self, packets: Sequence[bytes | memoryview]) -> None:
        for packet in packets:
            self.send_nowait(bytes(packet))

    def send_nowait(self, data: bytes) -> None:
        assert len(data) <= 0xFFFF
        assert not self.congested, "sent while the connection takes no more"
        self.sent.append(data)
        for each in self.wire.change(self, data):
            self._carry(each)

    def _carry(self, data: bytes) -> None:
        wire, loop = self.wire, asyncio.get_running_loop()
        if wire.cut or len(data) > wire.mtu or wire.rng.random() < wire.loss:
            wire.lost += 1
            return
        now = loop.time()
        self._free = max(self._free, now)
        if wire.rate:
            if (self._free - now) * wire.rate + len(data) > wire.queue:
                wire.lost += 1
                return
            self._free += len(data) / wire.rate
        # What is due at the same time is called in any order.
        self._under_way.append(data)
        loop.call_at(self._free + wire.delay, self._arrived)

    def _arrived(self) -> None:
        self.other.deliver(self._under_way.popleft())

    def deliver(self, data: bytes) -> None:
        """Have it arrive here."""
        if self.to is None:
            self._kept.append(data)
        else:
            self.to.packet(data)

    def congest(self, *, congested: bool) -> None:
        self.congested = congested
        if not congested and self.to is not None:
            self.to.relieved()

    def end(self, why: str) -> None:
        if self.to is not None:
            self.to.ended(StunError(why))


class Wire:
    """``delay`` in seconds one way, ``rate`` in octets a second, ``queue`` and ``mtu`` in octets.

    ``change`` is given each packet that is sent, and gives those that are carried.
    """

    def __init__(
        self,
        rng: Random,
        *,
        delay: float = 0.02,
        loss: float = 0.0,
        rate: float = 0.0,
        queue: int = 1 << 17,
        mtu: int = 0xFFFF,
    ) -> None:
        self.rng = rng
        self.delay = delay
        self.loss = loss
        self.rate = rate
        self.queue = queue
        self.mtu = mtu
        self.cut = False
        self.lost = 0
        self.change: Callable[[End, bytes], list[bytes]] = lambda _, data: [data]
        self.left, self.right = End(self), End(self)
        self.left.other, self.right.other = self.right, self.left


class Heard:
    """What a carrier has told."""

    def __init__(self, carrier: TlsCarrier | QuicCarrier) -> None:
        self.carrier = carrier
        self.data = bytearray()
        self.datagrams: list[bytes] = []
        self.reliefs = 0
        self.lost: list[str] = []
        self._news = asyncio.Event()
        carrier.on_data = self._on_data
        carrier.on_datagram = self.datagrams.append
        carrier.on_relief = self._on_relief
        carrier.on_lost = self._on_lost

    def _on_data(self, data: bytes) -> None:
        assert not self.lost
        self.data += data
        self._news.set()

    def _on_relief(self) -> None:
        assert not self.carrier.congested
        self.reliefs += 1
        self._news.set()

    def _on_lost(self, failure: Exception) -> None:
        self.lost.append(str(failure))
        self._news.set()

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until something that was told has made it so."""
        while not condition():
            self._news.clear()
            await self._news.wait()

    async def pour(self, data: bytes, piece: int) -> None:
        """Send it all, as fast as the carrier takes it."""
        view = memoryview(data)
        for at in range(0, len(data), piece):
            await self.until(lambda: self.lost or not self.carrier.congested)
            self.carrier.send(view[at : at + piece])


class Couple:
    """A server on the left, a client on the right, who know each other's fingerprint."""

    def __init__(self, kind: Kind, wire: Wire) -> None:
        self.wire = wire
        self.ours, self.theirs = Identity.make(), Identity.make()
        left: Any = wire.left
        right: Any = wire.right
        self.server = kind(left, self.ours, self.theirs.fingerprint, server=True)
        self.client = kind(right, self.theirs, self.ours.fingerprint, server=False)
        self.at_server, self.at_client = Heard(self.server), Heard(self.client)

    async def start(self) -> None:
        await asyncio.gather(self.server.start(), self.client.start())
