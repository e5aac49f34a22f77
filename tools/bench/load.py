"""The load for a relay: clients and peers in one lean process, on a core of its own.

Two ways to load it.  *Closed*: a fixed number of packets is on its way, a new one for each that
arrives, so the relay is always busy and hardly anything is lost: what arrives a second is what it
can do.  *Paced*: so many a second, whatever becomes of them: what it costs when it is not the
limit, and what is lost.

Packets leave singly, or in bursts of one flow as video does.
"""

from __future__ import annotations

import resource
import select
import socket
import struct
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from stun.sansio import Address
from turn.dataplane.mmsg import Destination, Inbox, Outbox
from turn.dataplane.names import pack_name

CHANNEL = struct.Struct("!HH")
PATIENCE = 0.2
"""Seconds without an arrival after which what is on its way is taken for lost."""
DRAIN = 0.05
"""The same at the end of a measurement."""


@dataclass
class Pair:
    """A client with a bound channel, and its peer."""

    client: socket.socket
    peer: socket.socket
    channel: int = 0x4000
    relayed: Address = field(default_factory=lambda: Address("127.0.0.1", 0))


@dataclass
class Result:
    """What one measurement saw.  ``cpu``: seconds that the server used, system time included."""

    received: int
    sent: int
    elapsed: float
    cpu: float

    @property
    def rate(self) -> float:
        """Packets received a second."""
        return self.received / self.elapsed

    @property
    def microseconds(self) -> float:
        """Server CPU for each packet received."""
        return self.cpu / max(self.received, 1) * 1e6

    @property
    def loss(self) -> float:
        """The share of what was sent that never came."""
        return max(0.0, 1 - self.received / max(self.sent, 1))


def cpu_of(pid: int) -> float:
    """Return the CPU time of a process and its threads, user and system, in seconds."""
    # In nanoseconds, where the more usual /proc/PID/stat has hundredths of a second.
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


def many_descriptors() -> None:
    """Let this process open as many sockets as it may."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def resident(pid: int) -> int:
    """Return the resident memory of a process in octets."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


class Sender:
    """Sends on one socket: a packet, or a burst of equal ones with one call.

    ``segment``: as one datagram that is cut on the way, which is how video leaves a browser.
    """

    def __init__(
        self,
        sock: socket.socket,
        to: Address,
        payload: bytes,
        burst: int = 1,
        *,
        segment: bool = True,
    ) -> None:
        self._payload, self._burst = payload, burst
        self._send = sock.send
        if burst > 1:
            self._outbox = Outbox(sock, segment=segment)
            self._to = Destination(pack_name(to))
            # An inbox as the place where the octets are.
            self._memory = Inbox(1)
            self._memory.views[0][: len(payload)] = payload
            self._waiting = [self._memory.addresses[0], len(payload)] * burst

    def __call__(self) -> None:
        if self._burst == 1:
            self._send(self._payload)
        else:
            self._to.waiting += self._waiting
            self._outbox.destinations.append(self._to)
            self._outbox.flush()


class StreamSender:
    """Writes one frame at a time on a connection."""

    def __init__(self, sock: socket.socket, frame: bytes) -> None:
        self._send, self._frame = sock.sendall, frame

    def __call__(self) -> None:
        self._send(self._frame)


def senders(pairs: Sequence[Pair], size: int, burst: int, *, to_peer: bool) -> list[Sender]:
    """Return what sends payloads of ``size`` octets from the clients, or from the peers."""
    made = []
    for pair in pairs:
        if to_peer:
            header = CHANNEL.pack(pair.channel, size)
            server = Address(*pair.client.getpeername()[:2])
            made.append(Sender(pair.client, server, header + bytes(size), burst))
        else:
            made.append(Sender(pair.peer, pair.relayed, bytes(size), burst))
    return made


class Receivers:
    """The sockets where packets arrive."""

    def __init__(self, socks: Sequence[socket.socket], burst: int) -> None:
        self._epoll = select.epoll()
        self._by_fd = {sock.fileno(): sock for sock in socks}
        for fd in self._by_fd:
            self._epoll.register(fd, select.EPOLLIN)
        self._room = memoryview(bytearray(65536))
        self._inbox = Inbox(64, named=False) if burst > 1 else None

    def take(self, timeout: float) -> int:
        """Read what has arrived; return how many packets that is."""
        got = 0
        by_fd, room, inbox = self._by_fd, self._room, self._inbox
        for fd, _ in self._epoll.poll(timeout, 512):
            if inbox is not None:
                got += len(inbox.receive(by_fd[fd]))
            else:
                try:
                    by_fd[fd].recv_into(room)
                except OSError:
                    continue
                got += 1
        return got

    def close(self) -> None:
        """Let go of the sockets."""
        self._epoll.close()


def closed(
    pid: int,
    send: Sequence[Callable[[], None]],
    into: Receivers,
    seconds: float,
    *,
    burst: int,
    window: int,
) -> Result:
    """Keep ``window`` packets on their way."""
    on_the_way = received = sent = n = 0
    count = len(send)
    cpu, begin = cpu_of(pid), time.monotonic()
    end = begin + seconds
    while time.monotonic() < end:
        while on_the_way + burst <= window:
            send[n]()
            n = (n + 1) % count
            sent += burst
            on_the_way += burst
        got = into.take(PATIENCE)
        received += got
        on_the_way = on_the_way - got if got else 0
    elapsed = time.monotonic() - begin
    spent = cpu_of(pid) - cpu
    while last := into.take(DRAIN):
        sent -= last  # on their way at the end: neither received in time nor lost
    return Result(received, sent, elapsed, spent)


def paced(
    pid: int,
    send: Sequence[Callable[[], None]],
    into: Receivers,
    seconds: float,
    *,
    burst: int,
    rate: float,
) -> Result:
    """Send ``rate`` packets a second."""
    received = sent = n = 0
    count = len(send)
    cpu, begin = cpu_of(pid), time.monotonic()
    while (elapsed := time.monotonic() - begin) < seconds:
        due = int(elapsed * rate) - sent
        for _ in range(min(due // burst, 32)):
            send[n]()
            n = (n + 1) % count
            sent += burst
        received += into.take(0)
    spent = cpu_of(pid) - cpu
    while last := into.take(DRAIN):
        received += last
    return Result(received, sent, elapsed, spent)
