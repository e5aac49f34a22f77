"""The ways from client to peer that are compared: none, plain forwarding, and relays.

Each way has a laboratory to itself, so none is disturbed by another one's program in the kernel,
sockets or tables; all are up at once and take turns.  Whatever the way, the client's frames are as
long as those of ChannelData, and the peer's as those of what it carries.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import groupby

from nattype.lab.kernel.namespaces import inside
from stun.sansio import Address
from tools.bench.frames import Generator, Sink, head
from tools.bench.lab import CLIENTS, FAR, NEAR, PEERS, Lab, Side, host, laboratory
from tools.bench.load import CHANNEL
from tools.bench.measures import Traffic, drain, family
from tools.bench.rawturn import RawTurn, Refused
from tools.bench.servers import Command, Ports, serving

PORT = 5000
"""Of every client and every peer."""
PROBE_PORT = 5001
PORTS = Ports(3478, 5349, NEAR, FAR)
FIRST_CHANNEL = 0x4000
LIFETIME = 3600
REBIND = 200.0
"""Seconds after which permissions are renewed; they last 300 (RFC 8656 section 9)."""


@dataclass(frozen=True)
class Flow:
    """What goes between a client and a peer, and through which of the server's addresses."""

    client: Address
    server: Address
    channel: int
    relayed: Address
    peer: Address

    def head(self, side: Side, *, to_peer: bool, size: int, payload: bytes = b"") -> bytes:
        """Return the beginning of a frame that carries ``payload`` and ``size`` zeros."""
        if not to_peer:
            return head(side, self.peer, self.relayed, payload, size)
        begin = CHANNEL.pack(self.channel, len(payload) + size) + payload
        return head(side, self.client, self.server, begin, size)


class Way(ABC):
    """A way, once its laboratory is up."""

    in_user_space = False

    def __init__(self, name: str, lab: Lab, stack: ExitStack) -> None:
        self.name, self.lab = name, lab
        self.pids: tuple[int, ...] = ()
        self._stack = stack
        self._ready: dict[tuple[bool, int], tuple[int, Traffic]] = {}
        self._sinks: dict[tuple[int, int], Sink] = {}

    @abstractmethod
    def flows(self, count: int) -> list[Flow]:
        """Return the first flows; fewer when :meth:`grow` has not made so many."""

    def grow(self, count: int, per_client: int = 1) -> None:
        """Set so many flows up, with so many channels a client."""
        del count, per_client

    def renew(self) -> None:
        """Keep what has been set up."""
        return

    @abstractmethod
    def probe(self) -> Flow:
        """Return a flow apart from the others, with :data:`PROBE_PORT` at both ends."""

    def place(self, *, to_peer: bool) -> int:
        """Return the namespace where packets arrive."""
        return (self.lab.peer if to_peer else self.lab.client).space

    def side(self, *, to_peer: bool) -> Side:
        """Return the machine that sends."""
        return self.lab.client if to_peer else self.lab.peer

    def sink(self, *, to_peer: bool, port: int = PORT) -> Sink | None:
        """Return what receives there."""
        place = self.place(to_peer=to_peer), port
        if place not in self._sinks:
            with inside(place[0]):
                self._sinks[place] = sink = Sink(port)
            self._stack.callback(sink.close)
        return self._sinks[place]

    def traffic(self, count: int, size: int, *, to_peer: bool) -> Traffic:
        """Return a load of the first ``count`` flows, ready to go."""
        self.renew()
        made_for, traffic = self._ready.get((to_peer, size), (0, None))
        if traffic is None or made_for != count:
            side = self.side(to_peer=to_peer)
            heads = [flow.head(side, to_peer=to_peer, size=size) for flow in self.flows(count)]
            if traffic is not None:
                traffic.generator.close()
            with inside(side.space):
                generator = Generator(heads, size)
            sink = self.sink(to_peer=to_peer)
            traffic = Traffic(generator, sink, self.pids, len(heads), size, self.in_user_space)
            self._ready[to_peer, size] = count, traffic
        drain(traffic)
        return traffic

    def probes(self, count: int, size: int, *, to_peer: bool) -> list[bytes]:
        """Return frames whose datagrams end in their number, in 8 octets."""
        side, flow = self.side(to_peer=to_peer), self.probe()
        return [
            flow.head(side, to_peer=to_peer, size=0, payload=n.to_bytes(size)) for n in range(count)
        ]

    def close(self) -> None:
        """Close what sends."""
        for _, traffic in self._ready.values():
            traffic.generator.close()
        self._ready.clear()


class Passage(Way):
    """No relay: the server's machine forwards IP."""

    def flows(self, count: int) -> list[Flow]:
        """Return flows from clients' addresses to peers' addresses."""
        return [self._flow(n, PORT) for n in range(count)]

    def probe(self) -> Flow:
        """Return a flow apart from the others."""
        return self._flow(0, PROBE_PORT)

    def _flow(self, n: int, port: int) -> Flow:
        client, peer = Address(host(CLIENTS, n), port), Address(host(PEERS, n), port)
        return Flow(client, peer, FIRST_CHANNEL, client, peer)


class Next(Passage):
    """The next machine is where it ends: what generator, sink and one cable need by themselves."""

    def place(self, *, to_peer: bool) -> int:
        """Return the server's namespace."""
        del to_peer
        return self.lab.server

    def _flow(self, n: int, port: int) -> Flow:
        flow = super()._flow(n, port)
        return Flow(flow.client, Address(NEAR, port), FIRST_CHANNEL, Address(FAR, port), flow.peer)


class Nowhere(Passage):
    """Frames for another machine, which the kernel drops: what the generator needs by itself."""

    def side(self, *, to_peer: bool) -> Side:
        """Return the machine that sends, with a wrong idea of its gateway."""
        right = super().side(to_peer=to_peer)
        return Side(right.space, right.mac, bytes.fromhex("02000000ffff"))

    def sink(self, *, to_peer: bool, port: int = PORT) -> Sink | None:
        """Nothing receives."""
        del to_peer, port
        return None


class Relay(Way):
    """A TURN server."""

    def __init__(
        self,
        name: str,
        lab: Lab,
        stack: ExitStack,
        pid: int,
        *,
        in_user_space: bool,
        lifetime: int,
    ) -> None:
        super().__init__(name, lab, stack)
        self._lifetime = lifetime
        self.in_user_space = in_user_space
        self.pids = family(pid)
        self._flows: list[Flow] = []
        self.full = ""
        """Why there are no more, where there are none."""
        self._bound = time.monotonic()
        self._probe: Flow | None = None

    def flows(self, count: int) -> list[Flow]:
        """Return the first flows."""
        return self._flows[:count]

    def grow(self, count: int, per_client: int = 1) -> None:
        """Allocate and bind channels until there are ``count``, or no more can be had."""
        with inside(self.lab.client.space):
            while (have := len(self._flows)) < count and not self.full:
                try:
                    self._add(have, min(count - have, per_client - have % per_client), per_client)
                except Refused as error:
                    self.full = str(error)
                    print(f"{self.name}: no more than {have:,} channels: {error}")

    def _add(self, number: int, many: int, per_client: int) -> None:
        client = Address(host(CLIENTS, number // per_client), PORT)
        turn = RawTurn(Address(NEAR, PORTS.plain), source=client.host, port=client.port)
        inner = number % per_client
        relayed = self._flows[-1].relayed if inner else turn.allocate(self._lifetime)
        for n in range(many):
            flow = Flow(
                client,
                Address(NEAR, PORTS.plain),
                FIRST_CHANNEL + inner + n,
                relayed,
                Address(host(PEERS, number + n), PORT),
            )
            turn.bind(flow.channel, flow.peer)
            self._flows.append(flow)
        turn.close()

    def renew(self) -> None:
        """Bind all channels again before their permissions end."""
        if time.monotonic() < self._bound + REBIND:
            return
        everything = [*self._flows, self._probe] if self._probe else self._flows
        with inside(self.lab.client.space):
            for client, flows in groupby(everything, lambda flow: flow.client):
                turn = RawTurn(Address(NEAR, PORTS.plain), source=client.host, port=client.port)
                for flow in flows:
                    turn.bind(flow.channel, flow.peer)
                turn.close()
        self._bound = time.monotonic()

    def probe(self) -> Flow:
        """Return a flow of an allocation of its own."""
        if self._probe is None:
            client = Address(host(CLIENTS, 0), PROBE_PORT)
            peer = Address(host(PEERS, 0), PROBE_PORT)
            server = Address(NEAR, PORTS.plain)
            with inside(self.lab.client.space):
                turn = RawTurn(server, source=client.host, port=client.port)
                relayed = turn.allocate(self._lifetime)
                turn.bind(FIRST_CHANNEL, peer)
                turn.close()
            self._probe = Flow(client, server, FIRST_CHANNEL, relayed, peer)
        return self._probe


@contextmanager
def passing(name: str, kind: type[Passage]) -> Iterator[Way]:
    """Yield a way without a relay, in a laboratory of its own."""
    with ExitStack() as stack:
        way = kind(name, stack.enter_context(laboratory()), stack)
        stack.callback(way.close)
        yield way


@contextmanager
def relayed_by(
    name: str,
    command: Command,
    *,
    in_user_space: bool = True,
    cores: str = "0",
    lifetime: int = LIFETIME,
) -> Iterator[Relay]:
    """Yield a way through a server, in a laboratory of its own.

    ``lifetime``: seconds that allocations are asked for.
    """
    with ExitStack() as stack:
        lab = stack.enter_context(laboratory())
        with inside(lab.server):
            pid, _ = stack.enter_context(serving(command, PORTS, cores))
        way = Relay(name, lab, stack, pid, in_user_space=in_user_space, lifetime=lifetime)
        stack.callback(way.close)
        yield way
