"""A hub led by hand: no network, each order answered as a test wants it answered.

A UDP socket that is asked for is open at once, unless its port is said to be in use or its address
to be gone; everything else waits in :attr:`Desk.orders` until a test looks at it.
"""

from __future__ import annotations

from itertools import count
from random import Random
from typing import Any, TypeVar

from ice.base import Base, BaseLost, CandidateFound, CandidateNotFound, GatheringDone
from ice.candidate import Candidate, CandidateType
from ice.config import Config, Interface, Server
from ice.hub import Hub
from stun.attributes import LIFETIME, XOR_MAPPED_ADDRESS, XOR_RELAYED_ADDRESS
from stun.codec import decode, encode
from stun.credentials import LongTerm
from stun.discovery import Target, Transport
from stun.message import Message
from stun.registry import Class, Method
from stun.sansio import (
    MILLISECOND,
    Address,
    Arrived,
    Cause,
    Closed,
    Instant,
    Opened,
    OpenUdp,
    Received,
    Shut,
    Transmit,
    Write,
)

T = TypeVar("T")

HOST = "10.0.0.1"
ETH = Interface(HOST, "eth0", 65535)
PEER = Address("198.51.100.7", 7000)


def stun_server(*hosts: str, name: str = "", port: int = 3478) -> Server:
    """Return a STUN server at these hosts."""
    targets = tuple(Target(Address(host, port), Transport.UDP) for host in hosts)
    return Server(name or f"stun:{hosts[0]}", targets)


def turn_server(
    *targets: Target, name: str = "turn:relay", credentials: LongTerm | None = None
) -> Server:
    """Return a TURN server at these targets."""
    return Server(name, targets, turn=True, credentials=credentials)


class Desk:
    """A hub, everything it has asked for and told, and the sockets that it believes to have."""

    def __init__(self, seed: int = 0, **options: Any) -> None:
        options.setdefault("tcp", False)
        self.now: Instant = 1_000_000_000
        self.arrived: list[tuple[Base, Address, bytes]] = []
        self.orders: list[Any] = []
        self.events: list[Any] = []
        self.open: dict[int, Address] = {}
        self.in_use: set[int] = set()
        """Ports that somebody else has."""
        self.gone: set[str] = set()
        """Addresses that are not this host's."""
        self._ports = count(40_000)
        self._answers: list[Opened | Closed] = []
        self.hub = Hub(
            Config(**options),
            entropy=Random(seed).randbytes,
            deliver=lambda base, remote, data, _: self.arrived.append((base, remote, data)),
        )

    # Leading it. ----------------------------------------------------------------------------------

    def gather(self, *servers: Server, interfaces: tuple[Interface, ...] = (ETH,)) -> None:
        """Have it gather."""
        self.hub.gather(interfaces, servers, self.now)
        self.pump()

    def pump(self) -> None:
        """Take what it asks for and tells, until there is nothing left."""
        while True:
            while (output := self.hub.poll()) is not None:
                self._take(output)
            if not self._answers:
                return
            self.hub.on_socket(self._answers.pop(0), self.now)

    def _take(self, output: Any) -> None:
        if isinstance(output, OpenUdp):
            self.orders.append(output)
            self._answers.append(self._opened(output))
        elif isinstance(output, Shut):
            self.orders.append(output)
            self.open.pop(output.handle, None)
        elif type(output).__module__ == "stun.sansio":
            self.orders.append(output)
        else:
            self.events.append(output)

    def _opened(self, order: OpenUdp) -> Opened | Closed:
        assert order.handle not in self.open, "a handle was used twice"
        host, port = order.local
        if host in self.gone:
            return Closed(order.handle, Cause.ADDRESS_NOT_AVAILABLE, "Cannot assign address")
        if port in self.in_use or order.local in self.open.values():
            return Closed(order.handle, Cause.ADDRESS_IN_USE, "Address already in use")
        local = Address(host, port or next(self._ports))
        self.open[order.handle] = local
        return Opened(order.handle, local)

    def arrive(self, data: bytes, source: Address, local: Address) -> None:
        """Hand a datagram in."""
        self.hub.receive(Received(data, source, local), self.now)
        self.pump()

    def tell(self, event: Any) -> None:
        """Hand a socket event in."""
        self.hub.on_socket(event, self.now)
        self.pump()

    def wait(self, milliseconds: float) -> None:
        """Let time pass, waking the hub whenever it wants to be woken."""
        end = self.now + int(milliseconds * MILLISECOND)
        for _ in range(10_000):
            due = self.hub.deadline()
            if due is None or due > end:
                break
            self.now = max(self.now, due)
            self.hub.on_deadline(self.now)
            self.pump()
        else:
            raise AssertionError("the hub does not move its deadline")
        self.now = end

    # Playing the servers. -------------------------------------------------------------------------

    def requests(self, method: Method = Method.BINDING) -> list[tuple[Any, Message]]:
        """Take the requests of a method that were sent since the last time, and how."""
        found = []
        for order in [*self.orders]:
            if isinstance(order, Transmit | Write):
                message = decode(order.data)
                if message.method == method and message.message_class is Class.REQUEST:
                    found.append((order, message))
                    self.orders.remove(order)
        return found

    def answer(self, mapped: Address, *, at: Address | None = None) -> int:
        """Answer the Binding requests that were sent (``at``: to this server); how many."""
        answered = 0
        for order, request in self.requests():
            if at is None or order.destination == at:
                self.reply(order, Message.success(request).add(XOR_MAPPED_ADDRESS, mapped))
                answered += 1
        return answered

    def grant(self, mapped: Address, *relayed: Address) -> int:
        """Grant the Allocate requests that were sent; how many."""
        granted = 0
        for order, request in self.requests(Method.ALLOCATE):
            reply = Message.success(request)
            for address in relayed:
                reply.add(XOR_RELAYED_ADDRESS, address)
            reply.add(XOR_MAPPED_ADDRESS, mapped).add(LIFETIME, 600)
            self.reply(order, reply)
            granted += 1
        return granted

    def reply(self, order: Transmit | Write, reply: Message) -> None:
        """Answer something that was sent."""
        if isinstance(order, Write):
            self.tell(Arrived(order.handle, encode(reply)))
        else:
            self.arrive(encode(reply), order.destination, order.source)

    # Looking. -------------------------------------------------------------------------------------

    def told(self, kind: type[T]) -> list[T]:
        """Return the events of a kind, oldest first."""
        return [event for event in self.events if isinstance(event, kind)]

    def ordered(self, kind: type[T]) -> list[T]:
        """Return the orders of a kind, oldest first."""
        return [order for order in self.orders if isinstance(order, kind)]

    @property
    def candidates(self) -> list[Candidate]:
        """The candidates that were told."""
        return [found.candidate for found in self.told(CandidateFound)]

    def candidate(self, kind: CandidateType) -> Candidate:
        """Return the only candidate of a type."""
        (found,) = [candidate for candidate in self.candidates if candidate.type is kind]
        return found

    @property
    def missing(self) -> list[CandidateNotFound]:
        """What was told not to be had."""
        return self.told(CandidateNotFound)

    @property
    def lost(self) -> list[Base]:
        """The bases that were told to be lost."""
        return [event.base for event in self.told(BaseLost)]

    def is_done(self) -> bool:
        """Whether gathering was told to be done, and nothing after it."""
        return bool(self.events) and self.events[-1] == GatheringDone()
