"""Two small machines: one that is led by hand, one that tells everybody how it sees them.

They know nothing of the simulator, so they run on real sockets just as well; the calibration of the
simulator against the kernel's NATs rests on that.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from stun.sansio import (
    Accepted,
    Address,
    Arrived,
    Cause,
    Closed,
    Connected,
    Dial,
    Handle,
    Hold,
    Instant,
    Listen,
    OpenUdp,
    Output,
    Received,
    Shut,
    SocketEvent,
    Transmit,
    Write,
)


class Puppet:
    """Does what it is told and tells what it is given.

    :meth:`do` queues any output, the methods after it the usual ones; the driver takes them when it
    next polls.  Each datagram and socket event comes out as an event and stays in :attr:`log` with
    its instant.
    """

    def __init__(self) -> None:
        self._handle = 0
        self.log: list[tuple[Instant, Received | SocketEvent]] = []
        self._queue: deque[Output | Received | SocketEvent] = deque()

    def do(self, *outputs: Output) -> None:
        """Queue what the driver is to carry out."""
        self._queue.extend(outputs)

    def bind(self, local: Address) -> Handle:
        """Open a UDP socket."""
        self._handle += 1
        self.do(OpenUdp(self._handle, local))
        return self._handle

    def send(self, source: Address, destination: Address, data: bytes = b"") -> None:
        """Send a datagram."""
        self.do(Transmit(data, destination, source))

    def listen(self, local: Address, *, silent: bool = False) -> Handle:
        """Listen on a TCP port."""
        self._handle += 1
        self.do(Listen(self._handle, local, silent))
        return self._handle

    def dial(self, local: Address, remote: Address) -> Handle:
        """Open a TCP connection."""
        self._handle += 1
        self.do(Dial(self._handle, local, remote))
        return self._handle

    def write(self, handle: Handle, data: bytes) -> None:
        """Send bytes on a stream."""
        self.do(Write(handle, data))

    def hold(self, handle: Handle, *, held: bool = True) -> None:
        """Read nothing from a stream, or go on."""
        self.do(Hold(handle, held))

    def shut(self, handle: Handle, *, reset: bool = False) -> None:
        """Close a socket."""
        self.do(Shut(handle, reset))

    def stream(self, handle: Handle) -> bytes:
        """Return all bytes that arrived on a stream."""
        return b"".join(
            e.data for e in self.told() if isinstance(e, Arrived) and e.handle == handle
        )

    def closed(self, handle: Handle) -> Cause | None:
        """Return why a handle was closed, the last time, if it was."""
        causes = [e.cause for e in self.told() if isinstance(e, Closed) and e.handle == handle]
        return causes[-1] if causes else None

    def connected(self, handle: Handle) -> bool:
        """Whether a dial was established."""
        return any(isinstance(e, Connected) and e.handle == handle for e in self.told())

    def accepted(self) -> list[Accepted]:
        """Return the connections that listeners took."""
        return [e for e in self.told() if isinstance(e, Accepted)]

    def received(self) -> list[Received]:
        """Return the datagrams that arrived, oldest first."""
        return [what for _, what in self.log if isinstance(what, Received)]

    def told(self) -> list[SocketEvent]:
        """Return the socket events, oldest first."""
        return [what for _, what in self.log if not isinstance(what, Received)]

    def receive(self, packet: Received, now: Instant) -> None:
        """Keep a datagram."""
        self.log.append((now, packet))
        self._queue.append(packet)

    def on_socket(self, event: SocketEvent, now: Instant) -> None:
        """Keep a socket event.

        An :class:`~stun.sansio.Accepted` connection lives on until it is shut.
        """
        self.log.append((now, event))
        self._queue.append(event)

    def on_deadline(self, now: Instant) -> None:
        """Do nothing: a puppet waits for nobody."""

    def poll(self) -> Output | Received | SocketEvent | None:
        """Give the next output or event."""
        return self._queue.popleft() if self._queue else None

    def deadline(self) -> Instant | None:
        """Return ``None``."""
        return None


class Reflector:
    """Answers each datagram and each piece of a stream with the sender's address as text.

    A datagram ``via HOST PORT`` is answered from that local address instead of the one it came to,
    ``to HOST PORT`` is answered to that address: what RFC 5780 does with CHANGE-REQUEST and
    RESPONSE-PORT, without STUN.
    """

    ANSWER: Final = "{host} {port}"

    def __init__(self, *local: Address) -> None:
        self._queue: deque[Output] = deque()
        self._peers: dict[Handle, Address] = {}
        handle = 0
        for address in local:
            self._queue.append(OpenUdp(handle + 1, address))
            self._queue.append(Listen(handle + 2, address))
            handle += 2

    def receive(self, packet: Received, now: Instant) -> None:  # noqa: ARG002 - the shape
        """Answer a datagram."""
        source, destination = packet.local, packet.source
        match packet.data.split():
            case [b"via", host, port] if port.isdigit():
                source = Address(host.decode("ascii", "replace"), int(port))
            case [b"to", host, port] if port.isdigit():
                destination = Address(host.decode("ascii", "replace"), int(port))
            case _:
                pass
        self._queue.append(Transmit(self._answer(packet.source), destination, source))

    def on_socket(self, event: SocketEvent, now: Instant) -> None:  # noqa: ARG002 - the shape
        """Answer what comes over a stream; close when the peer does."""
        match event:
            case Accepted():
                self._peers[event.handle] = event.remote
            case Arrived() if event.handle in self._peers:
                self._queue.append(Write(event.handle, self._answer(self._peers[event.handle])))
            case Closed():
                self._peers.pop(event.handle, None)
            case _:
                pass

    def close(self, handle: Handle) -> None:
        """Close a stream from this side."""
        self._queue.append(Shut(handle))

    def on_deadline(self, now: Instant) -> None:
        """Do nothing."""

    def poll(self) -> Output | None:
        """Give the next output."""
        return self._queue.popleft() if self._queue else None

    def deadline(self) -> Instant | None:
        """Return ``None``."""
        return None

    def _answer(self, peer: Address) -> bytes:
        return self.ANSWER.format(host=peer.host, port=peer.port).encode()
