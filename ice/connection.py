"""The way to the peer, for one component, as a program uses it: send and receive.

Theory of operation.  What arrives is appended to a deque, and one future wakes whoever waits; there
is no task and no callback for a packet.  Whoever would only hand packets on can have them as they
come instead (:meth:`Connection.divert`), with no queue between.

What is sent over a UDP socket of this host goes from :meth:`Connection.send` to the system call:
the pair that data goes over says from which socket and where to, and is looked at anew only when it
is another one.  Over a TCP connection of this host it goes straight to the stream, too, once what
is sent on it would not have to be sent again.  Through a relay a packet passes through the machine.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, Self

from ice.component import Component
from ice.pair import Pair
from stun.errors import StunError, UsageError
from stun.framing import MAX_FRAME
from stun.sansio import Address
from stun.udp import UdpSocket

if TYPE_CHECKING:
    from ice.aio import Agent


class Receiver(Protocol):
    """Who is told what comes over a connection, at once and from within the event loop.

    Nothing that is told may raise: an exception ends the agent.  What is sent from within
    :meth:`packet`, or :meth:`relieved`, leaves when it has returned, so whether the connection is
    congested by it shows only afterwards.
    """

    def packet(self, data: bytes) -> None:
        """Take a packet."""
        ...

    def relieved(self) -> None:
        """Take note that the connection is congested no more."""
        ...

    def rerouted(self) -> None:
        """Take note that data goes over another pair, or none, or that this one is agreed on."""
        ...

    def ended(self, why: StunError) -> None:
        """Take note that it is over; nothing more is told, unless a pair is found after all."""
        ...


class Connection(AsyncIterator[bytes]):
    """What :meth:`ice.Agent.connect` gives: packets to and from the peer.

    Iterate over it to receive until it is over.
    """

    __slots__ = (
        "__weakref__", "_agent", "_arrived", "_component", "_congested", "_counts", "_end",
        "_is_tcp", "_limit", "_pair", "_port", "_receiver", "_remote", "_senders", "_sendto",
        "_time", "_to", "_write",
    )  # fmt: skip

    def __init__(self, agent: Agent, component: Component, limit: int) -> None:
        self._agent = agent
        self._component = component
        self._limit = limit
        self._arrived: deque[bytes] = deque()
        self._receiver: asyncio.Future[None] | None = None
        self._end: StunError | None = None
        self._congested = False
        self._senders: set[asyncio.Future[None]] = set()
        self._counts: Counter[str] | None = None
        self._pair: Pair | None = None
        self._remote = Address("", 0)
        self._port: UdpSocket | None = None
        self._sendto: Callable[[Any, Any], int] | None = None
        self._is_tcp = False
        self._write: Callable[..., bool] | None = None
        self._time: Callable[[], float] = time.monotonic
        self._to: Receiver | None = None

    @property
    def component(self) -> int:
        """The component, from 1."""
        return self._component.id

    @property
    def stream(self) -> int:
        """The data stream, from 0."""
        return self._component.stream

    @property
    def selected_pair(self) -> Pair | None:
        """The pair that data goes over now; ``None`` while there is none."""
        return self._component.pair

    @property
    def agreed(self) -> bool:
        """Whether both agents have agreed on that pair: it was nominated (RFC 8445 section 8)."""
        pair = self._component.pair
        return pair is not None and self._component.nominated is pair

    @property
    def congested(self) -> bool:
        """Whether the way, a TCP connection, takes no more for now."""
        return self._congested

    @property
    def counters(self) -> Mapping[str, int]:
        """What was not delivered, in words for a person."""
        return self._counts or {}

    # Receiving. -----------------------------------------------------------------------------------

    async def recv(self) -> bytes:
        """Return the next packet.

        Raises :class:`ice.ConnectionClosed` or :class:`ice.ConnectionLost` when it is over and
        nothing is left.  One task at a time may wait.
        """
        arrived = self._arrived
        while not arrived:
            if self._end is not None:
                raise self._end
            if self._receiver is not None:
                raise UsageError("recv: another task is waiting for the next packet already")
            self._receiver = receiver = asyncio.get_running_loop().create_future()
            try:
                await receiver
            finally:
                self._receiver = None
        return arrived.popleft()

    def recv_nowait(self) -> bytes | None:
        """Return the next packet if one is there."""
        return self._arrived.popleft() if self._arrived else None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        try:
            return await self.recv()
        except ConnectionError:
            raise StopAsyncIteration from None

    def divert(self, to: Receiver | None) -> None:
        """Have packets given to ``to`` as they come, those that wait first; ``None``: no more.

        Meanwhile :meth:`recv` gives nothing.
        """
        self._to = to
        while self._arrived and self._to is to is not None:
            to.packet(self._arrived.popleft())
        if self._end is not None and self._to is to is not None:
            to.ended(self._end)

    def feed(self, data: bytes) -> None:
        """Take a packet that has arrived."""
        if self._to is not None:
            self._to.packet(data)
            return
        if len(self._arrived) >= self._limit:
            self._count("received and dropped: nobody took the ones before")
            return
        self._arrived.append(data)
        receiver = self._receiver
        if receiver is not None and not receiver.done():
            receiver.set_result(None)

    # Sending. -------------------------------------------------------------------------------------

    async def send(self, data: bytes) -> None:
        """Send a packet; nothing tells whether it arrives.

        It has been handed to the kernel on return.  Where the way is a TCP connection that takes no
        more, this waits until it does; otherwise it never waits.  While there is no pair, packets
        are dropped and counted.
        """
        if self._congested:
            await self._relief()
        self.send_nowait(data)

    def send_nowait(self, data: bytes) -> None:
        """Send as :meth:`send` does, but never wait: a connection that is congested drops it."""
        to = self._component
        pair = to.pair
        if pair is not self._pair:
            self._route(pair)
        sendto = self._sendto
        if sendto is None:
            if self._write is None or not self._send_framed(self._write, data):
                self._write = None
                self._send_otherwise(data)
            return
        to.sent = int(self._time() * 1e9)
        try:
            sendto(data, self._remote)
        except OSError:
            # Perhaps it is only the ICMP error of an earlier packet: the socket tells them apart.
            assert self._port is not None
            self._port.send(data, self._remote, self._port.local)
        pair.packets_sent += 1  # type: ignore[union-attr]  # without a pair there is no socket
        pair.octets_sent += len(data)  # type: ignore[union-attr]

    def send_all(self, packets: Sequence[bytes | memoryview]) -> None:
        """Send packets as :meth:`send_nowait` does; over a TCP connection they go in one write."""
        to = self._component
        if to.pair is not self._pair:
            self._route(to.pair)
        pair, write = self._pair, self._write
        if pair is not None and write is not None and not self._congested:
            parts: list[bytes | memoryview] = []
            for packet in packets:
                parts += (len(packet).to_bytes(2), packet)
            if write(*parts):
                to.sent = int(self._time() * 1e9)
                pair.packets_sent += len(packets)
                pair.octets_sent += sum(map(len, packets))
                return
        for packet in packets:
            self.send_nowait(bytes(packet))

    def _send_framed(self, write: Callable[..., bool], data: bytes) -> bool:
        """Write a packet to the TCP connection; whether that was possible now."""
        size, pair = len(data), self._pair
        if self._congested or size > MAX_FRAME or not write(size.to_bytes(2) + data):
            return False
        self._component.sent = int(self._time() * 1e9)
        pair.packets_sent += 1  # type: ignore[union-attr]  # without a pair there is no connection
        pair.octets_sent += size  # type: ignore[union-attr]
        return True

    def _send_otherwise(self, data: bytes) -> None:
        if self._end is not None:
            raise self._end
        if not isinstance(data, bytes | bytearray | memoryview):
            raise TypeError(f"send: {type(data).__name__} is not octets")
        agent, to = self._agent, self._component
        agent._must_be_open()
        if not agent.machine.send(bytes(data), agent._now(), to.id, to.stream):
            if to.connected_in < 0:
                raise UsageError("send: not connected yet; await agent.connect() first")
            self._count("not sent: there is no pair at the moment")
        agent._flush()
        if self._is_tcp and self._write is None and self._pair is not None:
            self._write = agent._writer_of(self._pair)

    def _route(self, pair: Pair | None) -> None:
        """Find out how packets of this pair are sent."""
        self._pair = pair
        self._sendto = self._port = self._write = None
        self._is_tcp = False
        if pair is None or pair.base.relay:
            return
        self._time = asyncio.get_running_loop().time
        if pair.base.transport != "udp":
            self._is_tcp = True
            return
        # A zone is the machine's business.
        if "%" in pair.base.address.host:
            return
        self._port = port = self._agent._socket_of(pair.base.address)
        if port is not None:
            self._remote = pair.remote_address
            self._sendto = port.sock.sendto

    async def _relief(self) -> None:
        while self._congested and self._end is None:
            sender = asyncio.get_running_loop().create_future()
            self._senders.add(sender)
            try:
                await sender
            finally:
                self._senders.discard(sender)

    # What the agent tells. ------------------------------------------------------------------------

    def congest(self, *, congested: bool) -> None:
        """Take note that the way is congested, or no more."""
        self._congested = congested
        if not congested:
            self._relieve()
            if self._to is not None:
                self._to.relieved()

    def revive(self) -> None:
        """Take note that there is a pair."""
        self._end = None
        self._congested = False
        self._relieve()
        if self._to is not None:
            self._to.rerouted()

    def leave(self) -> None:
        """Take note that there is no pair any more, for now."""
        if self._to is not None:
            self._to.rerouted()

    def end(self, why: StunError) -> None:
        """Tell whoever waits that it is over."""
        self._end = why
        self._route(None)
        self._relieve()
        if self._receiver is not None and not self._receiver.done():
            self._receiver.set_result(None)
        if self._to is not None:
            self._to.ended(why)

    def _relieve(self) -> None:
        for sender in self._senders:
            if not sender.done():
                sender.set_result(None)

    def _count(self, what: str) -> None:
        if self._counts is None:
            self._counts = Counter()
        self._counts[what] += 1

    def __repr__(self) -> str:
        return f"<ice.Connection stream {self.stream} component {self.component} {self._pair}>"
