"""A server machine among its siblings: what belongs to another worker's allocation goes there.

Theory of operation.  :class:`MemberServer` is a :class:`turn.server.machine.Server` that looks at
what comes in before the server does.

*Datagrams.*  A request that names another worker goes to it as it came (:class:`PassDatagram`), and
so does whatever comes later from the same five-tuple: at first because it was sent there a moment
ago, which is remembered of few five-tuples and for :data:`TENTATIVE` (nobody has proved anything
yet); then because the owner claims it (:class:`Claim`), which it does as soon as an allocation has
the five-tuple.  When it has no more the owner gives the five-tuple back.  A claim may get lost, so
all of them are repeated with every :meth:`MemberServer.sweep`.  What has an allocation here is
served here, whatever it names; what another worker has handed over is never handed over again.

*Connections.*  A connection whose message names another worker, and that has no allocation, goes
there with that message and what is behind it (:class:`PassConnection`).  Of TLS and DTLS, a pipe
goes there: the connection stays here, and what arrives on one of the two is written to the other.
Through the pipe each piece has its length before it, and so stays a record of its own: those of
DTLS must not be joined, and clients are about (coturn's) that read one message from a record of TLS
and no more.  A stream is held while the other takes nothing, so a pipe keeps no more than a stream
does; what comes over DTLS and finds the pipe full is dropped.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from stun.attributes import CONNECTION_ID, MOBILITY_TICKET, RESERVATION_TOKEN
from stun.codec import decode
from stun.discovery import Transport
from stun.errors import DecodeError, DropReason
from stun.nonce import NonceMaker
from stun.oauth import Tokens
from stun.registry import Method
from stun.sansio import (
    SECOND,
    Address,
    Arrived,
    Closed,
    Congested,
    Entropy,
    Handle,
    Hold,
    Instant,
    Received,
    Relieved,
    Shut,
    SocketEvent,
    Write,
)
from stun.users import UserStore
from turn.server.allocation import Flow
from turn.server.config import ServerConfig
from turn.server.core import Listener
from turn.server.machine import Server
from turn.server.mobility import worker_of_ticket
from turn.server.siblings import Siblings

TENTATIVE: Final = 30 * SECOND
"""How long a five-tuple that nobody has claimed is taken for the worker's that it named."""
MOST_TENTATIVE: Final = 4096
MOST_IN_A_CLAIM: Final = 256
_LONGEST: Final = 65_535

_ALLOCATE = int(Method.ALLOCATE).to_bytes(2)
_REFRESH = int(Method.REFRESH).to_bytes(2)
_CONNECTION_BIND = int(Method.CONNECTION_BIND).to_bytes(2)
_NAMING: Final = frozenset({_ALLOCATE, _REFRESH})
"""What a request begins with that may name an allocation: its class is 0, so it is its method."""
_NAMING_ON_STREAMS: Final = _NAMING | {_CONNECTION_BIND}

FiveTuple: TypeAlias = tuple[Address, Address]
"""Of datagrams: client and server."""


@dataclass(frozen=True, slots=True)
class PassDatagram:
    """Hand a datagram over to a worker."""

    worker: int
    data: bytes
    client: Address
    server: Address


@dataclass(frozen=True, slots=True)
class PassConnection:
    """Hand a connection over to a worker, with what was read from it and is not answered.

    ``pipe``: instead of the connection itself, which stays, the other end of what is opened here
    with this handle.
    """

    worker: int
    flow: Flow
    listener: Address
    """Where it was accepted."""
    data: bytes
    pipe: Handle = 0


@dataclass(frozen=True, slots=True)
class Claim:
    """Tell a worker whose these five-tuples are: this one's, or (not ``mine``) its own again."""

    worker: int
    flows: tuple[FiveTuple, ...]
    mine: bool


@dataclass(frozen=True, slots=True)
class Passed:
    """What goes to the other worker of a :class:`PassConnection`, with the descriptor."""

    listener: Address
    secure: bool
    """Whether it is a pipe, through which pieces come with their lengths."""
    datagrams: bool
    """Whether these are records of DTLS."""
    local: Address
    remote: Address
    data: bytes
    unsent: bytes
    """What the client has still to be sent."""


class Records:
    """Cuts a stream into the records that were put into it by :func:`with_length`."""

    __slots__ = ("_kept",)

    def __init__(self) -> None:
        self._kept = b""

    def feed(self, data: bytes) -> list[bytes]:
        """Take octets; return the records that are complete."""
        kept, at, records = self._kept + data, 0, []
        while len(kept) - at >= 2:
            end = at + 2 + int.from_bytes(kept[at : at + 2])
            if end > len(kept):
                break
            records.append(kept[at + 2 : end])
            at = end
        self._kept = kept[at:]
        return records


def with_length(data: bytes) -> bytes:
    """Return a record as :class:`Records` takes it; what is longer than 65,535 octets, as several.

    Only streams have such.
    """
    if len(data) <= _LONGEST:
        return len(data).to_bytes(2) + data
    return b"".join(with_length(data[at : at + _LONGEST]) for at in range(0, len(data), _LONGEST))


PASSING: Final = (PassDatagram, PassConnection, Claim)
"""What a driver has to carry out beside everything else."""


def named_worker(octets: bytes) -> int:
    """Return the worker that a request names; 0 if it names none, or is no such request."""
    head = octets[:2]
    try:
        if head == _ALLOCATE:
            token = decode(octets).get(RESERVATION_TOKEN)
            return token[0] if token else 0
        if head == _REFRESH:
            return worker_of_ticket(decode(octets).get(MOBILITY_TICKET) or b"")
        if head == _CONNECTION_BIND:
            return (decode(octets).get(CONNECTION_ID) or 0) >> 24
    except DecodeError:
        pass
    return 0


class MemberServer(Server):
    """A server that is one of ``workers``; its number is that of ``siblings``."""

    def __init__(
        self,
        config: ServerConfig,
        users: UserStore,
        nonces: NonceMaker,
        *,
        entropy: Entropy,
        siblings: Siblings,
        workers: int,
        unix_epoch: int = 0,
        tokens: Tokens | None = None,
    ) -> None:
        super().__init__(
            config,
            users,
            nonces,
            entropy=entropy,
            unix_epoch=unix_epoch,
            tokens=tokens,
            siblings=siblings,
        )
        self._siblings = frozenset(range(1, workers + 1)) - {siblings.number}
        self._abroad: dict[FiveTuple, int] = {}
        """Claimed by another worker."""
        self._sent: dict[FiveTuple, tuple[int, Instant]] = {}
        """Handed over lately, the earliest first, and until when that holds."""
        self._guests: dict[FiveTuple, int] = {}
        """Claimed here, and which worker they come by way of."""
        self._arriving: dict[FiveTuple, int] = {}
        """Handed over to this worker, and not looked at since whether it is to claim them."""
        self._unsettled: dict[FiveTuple, tuple[int, bool]] = {}
        """Of them, those that have got no allocation yet, and whether a sweep has seen them: a
        request may wait for the user store."""
        self._pipes: dict[Handle, Handle] = {}
        """From a connection that was handed over to its pipe, and back."""
        self._records: dict[Handle, Records] = {}
        """Of pipes: those of :attr:`_pipes`, and connections that came so."""
        self._lossy: set[Handle] = set()
        """Pipes that are full rather than have anything wait: those of DTLS."""
        self._adopted: set[Handle] = set()
        """Connections that another worker has handed over, some of them closed by now."""
        self._full: set[Handle] = set()
        """Of them, those that take nothing at the moment."""
        self.passed = self.taken = 0
        """Datagrams and connections that were handed over, and those that came so."""

    # Datagrams. -----------------------------------------------------------------------------------

    def receive(self, packet: Received, now: Instant) -> None:
        """Take a datagram, or hand it over."""
        if self._abroad or self._sent or packet.data[:2] in _NAMING:
            flow = (packet.source, packet.local)
            worker = self._owner(packet.data, flow, now)
            if worker:
                self.passed += 1
                self._core.outbox.append(PassDatagram(worker, packet.data, *flow))  # type: ignore[arg-type]
                return
        super().receive(packet, now)

    def _owner(self, data: bytes, flow: FiveTuple, now: Instant) -> int:
        """Return the worker that a datagram is for, 0 if it is this one."""
        if type(self._core.places.get(flow[1])) is not Listener or self._is_here(flow):
            return 0
        claimed = self._abroad.get(flow)
        if claimed is not None:
            return claimed
        worker = named_worker(data) if data[:2] in _NAMING else 0
        if worker in self._siblings:
            self._sent.pop(flow, None)
            if len(self._sent) >= MOST_TENTATIVE:
                del self._sent[next(iter(self._sent))]
            self._sent[flow] = worker, now + TENTATIVE
            return worker
        sent = self._sent.get(flow)
        if sent is None:
            return 0
        if sent[1] <= now:
            del self._sent[flow]
            return 0
        return sent[0]

    def _is_here(self, flow: FiveTuple | Handle) -> bool:
        return flow in self._core.allocations or self._allocator.is_opening(flow)

    def take(self, packet: Received, worker: int, now: Instant) -> None:
        """Take a datagram that another worker has handed over."""
        self.taken += 1
        self._arriving[packet.source, packet.local] = worker
        super().receive(packet, now)

    def poll(self) -> Any:
        """Give the next thing to do or to tell."""
        output = super().poll()
        if output is None and self._arriving:
            self._claim()
            output = super().poll()
        if self._records and isinstance(output, Write | Shut):
            return self._to_pipe(output)
        return output

    def _to_pipe(self, output: Write | Shut) -> Write | Shut:
        """Give what the server says to a connection that came through a pipe its form."""
        handle = output.handle
        if handle not in self._records or handle in self._pipes:
            return output
        if isinstance(output, Write):
            return Write(handle, with_length(output.data))
        del self._records[handle]
        return output

    def _claim(self) -> None:
        """Claim the five-tuples that have got an allocation; what is being opened is to wait."""
        arriving, self._arriving = self._arriving, {}
        for flow, worker in arriving.items():
            if flow in self._core.allocations:
                if self._guests.get(flow) != worker:
                    self._guests[flow] = worker
                    self._tell(worker, [flow], mine=True)
            elif self._allocator.is_opening(flow):
                self._arriving[flow] = worker
            elif len(self._unsettled) < MOST_TENTATIVE:
                self._unsettled[flow] = worker, False

    def claimed(self, flows: Iterable[FiveTuple], worker: int, *, mine: bool) -> None:
        """Take note that another worker claims five-tuples, or gives them back."""
        for flow in flows:
            self._sent.pop(flow, None)
            if mine and not self._is_here(flow):
                self._abroad[flow] = worker
            elif self._abroad.get(flow) == worker:
                del self._abroad[flow]

    def sweep(self) -> None:
        """Give back what has no allocation any more, and repeat all other claims."""
        self._adopted &= self._core.connections.keys()
        unsettled, self._unsettled = self._unsettled, {}
        for flow, (worker, seen) in unsettled.items():
            if flow in self._core.allocations:
                self._guests[flow] = worker
            elif not seen:
                self._unsettled[flow] = worker, True
        mine: dict[int, list[FiveTuple]] = {}
        over: dict[int, list[FiveTuple]] = {}
        for flow, worker in self._guests.items():
            (mine if self._is_here(flow) else over).setdefault(worker, []).append(flow)
        for worker, flows in mine.items():
            self._tell(worker, flows, mine=True)
        for worker, flows in over.items():
            self._tell(worker, flows, mine=False)
            for flow in flows:
                del self._guests[flow]

    def _tell(self, worker: int, flows: list[FiveTuple], *, mine: bool) -> None:
        for at in range(0, len(flows), MOST_IN_A_CLAIM):
            part = tuple(flows[at : at + MOST_IN_A_CLAIM])
            self._core.outbox.append(Claim(worker, part, mine))  # type: ignore[arg-type]

    def lost(self, worker: int) -> None:
        """Take note that another worker is gone, with everything that it had."""
        self._abroad = {flow: one for flow, one in self._abroad.items() if one != worker}
        self._sent = {flow: one for flow, one in self._sent.items() if one[0] != worker}
        for local in list(self._core.visited):
            if self._core.siblings is not None and not self._core.siblings.has(local, tcp=False):
                self.left(local)

    # Connections. ---------------------------------------------------------------------------------

    def _message(self, octets: bytes, flow: Flow, now: Instant) -> None:
        naming = _NAMING_ON_STREAMS if flow.is_stream else _NAMING
        # Handed over once is enough: or a client could have its connection go round for ever, and
        # one of TLS grow by a pipe each time.
        may = flow.connection not in self._adopted and not self._is_here(flow.key)
        if may and octets[:2] in naming:
            worker = named_worker(octets)
            if worker in self._siblings and self._hand_over(worker, octets, flow):
                return
        super()._message(octets, flow, now)

    def _hand_over(self, worker: int, octets: bytes, flow: Flow) -> bool:
        core = self._core
        connection = core.connections[flow.connection]
        rest = core.take_over(flow.connection)
        if rest is None:
            return False
        pipe, data, lossy = 0, octets + rest, flow.transport is Transport.DTLS
        if flow.transport.is_secure:
            pipe, data = core.next_handle(), with_length(data)
            self._pipes[flow.connection], self._pipes[pipe] = pipe, flow.connection
            self._records[pipe] = Records()
            if lossy:
                self._lossy.add(pipe)
        self.passed += 1
        place = connection.listener.at.local
        order = PassConnection(worker, flow, place, data, pipe)
        core.outbox.append(order)  # type: ignore[arg-type]
        if pipe and not lossy:
            # From here on it is read as fast as the pipe takes what is read.
            core.queue(Hold(flow.connection, held=False))
            core.queue(Hold(pipe, held=False))
        return True

    def adopt(self, passed: Passed) -> tuple[Handle, Handle] | None:
        """Take a connection that another worker hands over: return its handle and its listener's.

        ``None``: there is no such listener any more.
        """
        protocol = "udp" if passed.datagrams else "tcp"
        for listener, one in self._core.listeners.items():
            if one.at.local == passed.listener and one.at.transport.protocol == protocol:
                self.taken += 1
                handle = self._core.next_handle()
                self._adopted.add(handle)
                if passed.secure:
                    self._records[handle] = Records()
                return handle, listener
        return None

    def stop(self, now: Instant) -> None:
        """End everything and shut every socket."""
        super().stop(now)
        for handle in self._pipes:
            self._core.queue(Shut(handle))
        self._pipes.clear()

    def on_socket(self, event: SocketEvent, now: Instant) -> None:
        """Take what happened to a socket."""
        handle = getattr(event, "handle", 0)
        if self._pipes and handle in self._pipes:
            self._on_pipe(event, self._pipes[handle])
        elif self._records and handle in self._records:
            self._on_records(event, handle, now)
        else:
            super().on_socket(event, now)

    def _on_records(self, event: SocketEvent, handle: Handle, now: Instant) -> None:
        if isinstance(event, Arrived):
            for record in self._records[handle].feed(event.data):
                super().on_socket(Arrived(handle, record), now)
                if handle not in self._records:
                    return
        else:
            if isinstance(event, Closed):
                del self._records[handle]
            super().on_socket(event, now)

    def _on_pipe(self, event: SocketEvent, other: Handle) -> None:
        core, queue = self._core, self._core.queue
        match event:
            case Arrived(handle, data):
                if handle in self._records:
                    for record in self._records[handle].feed(data):
                        queue(Write(other, record))
                elif other in self._full:
                    core.drop(DropReason.CONGESTED)
                else:
                    queue(Write(other, with_length(data)))
            case Congested(handle):
                if handle in self._lossy:
                    self._full.add(handle)
                else:
                    queue(Hold(other, held=True))
            case Relieved(handle):
                if handle in self._lossy:
                    self._full.discard(handle)
                else:
                    queue(Hold(other, held=False))
            case Closed(handle):
                del self._pipes[handle], self._pipes[other]
                for one in (handle, other):
                    self._records.pop(one, None)
                    self._full.discard(one)
                    self._lossy.discard(one)
                queue(Shut(other))
            case _:
                pass
