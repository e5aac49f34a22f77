"""Octets through the TCP relay arrive exactly once and in order, whatever happens on the way.

Around the relay stands a driver with kernels that hold little, and two programs that write and read
as a seed has it: pieces are cut anywhere, a side stops reading, the rate is used up, the bind comes
early or late, and either side closes at any time.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable

import pytest

from stun.attributes import CONNECTION_ID, XOR_PEER_ADDRESS
from stun.auth_server import Accepted as Authentic
from stun.credentials import Integrity
from stun.discovery import Transport
from stun.errors import DropReason
from stun.message import Message
from stun.registry import Method, PasswordAlgorithm
from stun.sansio import (
    MILLISECOND,
    SECOND,
    Address,
    Arrived,
    Cause,
    Closed,
    Congested,
    Connected,
    Dial,
    Handle,
    Hold,
    Instant,
    Output,
    Relieved,
    Shut,
    Write,
)
from turn.meter import Bucket, Meter
from turn.server.allocation import Allocation, Flow, Relay
from turn.server.config import RelayAddress, ServerConfig
from turn.server.hosting import Request
from turn.server.policy import PeerPolicy, Verdict
from turn.server.tcp_relay import EARLY, PATIENCE, TcpRelay

SERVER = Address("192.31.196.10", 3478)
CLIENT = Address("192.52.193.5", 40_000)
RELAYED = Address("192.31.196.10", 50_000)
PEER = Address("192.175.48.20", 8080)
PIECE = 3000
"""The most that the driver reads at once."""
MARK = 8000
"""Octets kept for a stream at which the driver tells of congestion."""


class Socket:
    """One stream, as the driver and the program at its far end have it."""

    def __init__(self, rng: random.Random, size: int) -> None:
        self.sent = rng.randbytes(size)
        self.unread = deque([self.sent])
        """What the program has sent and the driver has not read."""
        self.kept = bytearray()
        """What the relay has written and the program has not read."""
        self.received = bytearray()
        self.held = self.congested = self.finished = self.shut = False
        self.most_kept = 0

    def read(self, octets: int) -> bytes:
        """Take what arrived from the kernel, as the driver does."""
        data = self.unread.popleft()
        piece, rest = data[:octets], data[octets:]
        if rest:
            self.unread.appendleft(rest)
        return piece


class World:
    """The relay with one connection, a driver, two programs and a clock."""

    def __init__(self, seed: int, *, rate: int = 0, size: int = 40_000) -> None:
        self.rng = random.Random(seed)
        self.now: Instant = SECOND
        self.config = ServerConfig((), (), "example.org", PeerPolicy())
        self.entropy = self.rng.randbytes
        self.orders: deque[Output] = deque()
        self.identifier = 0
        self.behind = b""
        self.sockets = self.connections = {1: Socket(self.rng, size), -1: Socket(self.rng, size)}
        self.news: deque[tuple[Handle, Arrived]] = deque()
        self.relay = TcpRelay(self)
        self.meter = Meter(Bucket(rate, 0, burst=0.1))
        flow = Flow(Transport.TCP, CLIENT, SERVER, -9)
        relays = (Relay(2, RELAYED, RelayAddress(RELAYED.host, RELAYED.host)),)
        self.allocation = Allocation(
            session="a" * 12, username="alice", account="alice", flow=flow, relays=relays, tcp=True,
            meter=self.meter, created=0,
        )  # fmt: skip
        self.relay.connect(self.request(Method.CONNECT, flow, self.allocation), self.now)
        assert self.orders.popleft() == Dial(1, RELAYED, PEER)
        self.relay.on_socket(Connected(1, RELAYED, PEER), self.now)
        self.bound = False

    def request(self, method: Method, flow: Flow, allocation: Allocation | None) -> Request:
        message = Message.request(method, bytes(12)).add(XOR_PEER_ADDRESS, PEER)
        message.add(CONNECTION_ID, self.identifier)
        authentic = Authentic("alice", b"key", PasswordAlgorithm.MD5, Integrity.SHA1)
        return Request(message, flow, flow.key, authentic, allocation)

    # What a machine does for the relay. -----------------------------------------------------------

    def queue(self, output: Output) -> None:
        self.orders.append(output)

    def next_handle(self) -> Handle:
        return 1

    def verdict(self, peer: Address) -> Verdict:
        return self.config.policy.check(peer.host)

    def located(self, peer: Address) -> Address:
        return peer

    def announced(self, source: Address) -> Address:
        return source

    def answer(self, request: Request, response: Message, now: Instant) -> None:
        self.identifier = response.get(CONNECTION_ID) or 0

    def refuse(
        self,
        request: Request,
        code: int,
        detail: str,
        now: Instant,
        attributes: Iterable[tuple[int, bytes]] = (),
    ) -> None:
        raise AssertionError(f"{code} {detail}")

    def indicate(self, allocation: Allocation, indication: Message) -> None:
        raise AssertionError(indication)

    def drop(self, reason: DropReason) -> None:
        raise AssertionError(reason)

    def take_over(self, handle: Handle) -> bytes | None:
        return self.behind

    # What a driver and the programs do. -----------------------------------------------------------

    def bind(self) -> None:
        self.bound = True
        client = self.sockets[-1]
        if client.unread and self.rng.random() < 0.7:
            self.behind = client.read(self.rng.randint(1, PIECE))
        flow = Flow(Transport.TCP, Address(CLIENT.host, 41_000), SERVER, -1)
        self.relay.connection_bind(self.request(Method.CONNECTION_BIND, flow, None), self.now)
        self.obey()

    def tell(self, event: Arrived | Closed | Congested | Relieved) -> None:
        self.relay.on_socket(event, self.now)
        self.obey()

    def obey(self) -> None:
        """Carry out the orders; what the driver then has to tell, it tells in its turn."""
        while self.orders:
            match self.orders.popleft():
                case Write(handle, data):
                    socket = self.sockets[handle]
                    assert not socket.shut
                    socket.kept += data
                    socket.most_kept = max(socket.most_kept, len(socket.kept))
                    if len(socket.kept) > MARK and not socket.congested:
                        socket.congested = True
                        self.tell(Congested(handle))
                case Hold(handle, held):
                    self.sockets[handle].held = held
                case Shut(handle):
                    self.sockets[handle].shut = True
                    self.news = deque(n for n in self.news if n[0] != handle)
                case order:
                    raise AssertionError(order)

    def step(self) -> None:
        """Let one thing happen."""
        rng = self.rng
        handle = rng.choice(list(self.sockets))
        socket = self.sockets[handle]
        known = handle == 1 or self.bound
        match rng.randrange(5):
            case 0 | 1 if known and socket.unread and not socket.held and not socket.finished:
                # Read now, told now or a little later: a driver may be in the middle of a batch.
                if not socket.shut:
                    data = socket.read(rng.randint(1, PIECE))
                    self.news.append((handle, Arrived(handle, data)))
            case 2 if socket.kept and rng.random() < 0.5:
                taken = rng.randint(1, len(socket.kept))
                socket.received += socket.kept[:taken]
                del socket.kept[:taken]
                if socket.congested and not socket.kept:
                    socket.congested = False
                    if not socket.shut and not socket.finished:
                        self.tell(Relieved(handle))
            case 3 if self.news:
                self.tell(self.news.popleft()[1])
            case _:
                self.pass_time(rng.randrange(20) * MILLISECOND)

    def pass_time(self, duration: int) -> None:
        self.now += duration
        due = self.relay.deadline()
        if due is not None and due <= self.now:
            self.relay.on_deadline(self.now)
            self.obey()

    def close(self, handle: Handle, cause: Cause) -> None:
        """Let a program close: what the driver has read before is told before."""
        while self.news:
            self.tell(self.news.popleft()[1])
        if not self.sockets[handle].shut:
            self.sockets[handle].finished = True
            self.tell(Closed(handle, cause))

    def check(self) -> None:
        for handle, socket in self.sockets.items():
            source = self.sockets[-handle]
            arrived = bytes(socket.received + socket.kept)
            assert source.sent.startswith(arrived)
            # Bounded: what is kept is the mark, the piece that passed it, and what the driver had
            # read by then; or all that came before the bind.
            assert socket.most_kept <= max(MARK, EARLY) + 10 * PIECE

    @property
    def idle(self) -> bool:
        sockets = self.sockets.values()
        return not self.news and not any(s.unread or s.kept for s in sockets)


@pytest.mark.parametrize("rate", [0, 200_000], ids=["no limit", "a rate"])
@pytest.mark.parametrize("run", range(30))
def test_all_octets_arrive_once_and_in_order(seed: int, run: int, rate: int) -> None:
    world = World(seed + run, rate=rate)
    bind_at = world.rng.randrange(200)
    started = world.now
    for turn in range(100_000):
        if turn == bind_at:
            world.bind()
        world.step()
        if world.idle and world.bound:
            break
    world.check()
    for handle, socket in world.sockets.items():
        assert bytes(socket.received) == world.sockets[-handle].sent
    usage = world.meter.usage
    relayed = usage.octets_from_client + usage.octets_to_client
    assert relayed == 80_000
    assert usage.dropped == 0
    assert world.relay.octets_lost == 0
    if rate:
        elapsed = (world.now - started) / SECOND
        # A tenth of a second's worth at once, and what was on its way when it was used up.
        assert relayed <= rate * (elapsed + 0.1) + EARLY + 10 * PIECE
        assert elapsed > 0.1
    world.check()


@pytest.mark.parametrize("cause", [Cause.END_OF_STREAM, Cause.RESET])
@pytest.mark.parametrize("run", range(30))
def test_what_was_read_before_a_side_closed_is_delivered_before_the_other_is_shut(
    seed: int, run: int, cause: Cause
) -> None:
    world = World(seed + run, size=20_000, rate=world_rate(run))
    rng = world.rng
    bind_at, close_at = rng.randrange(50), rng.randrange(50, 400)
    for turn in range(close_at):
        if turn == bind_at:
            world.bind()
        world.step()
    handle = rng.choice([1, -1])
    closer, other = world.sockets[handle], world.sockets[-handle]
    world.close(handle, cause)
    unread = sum(map(len, closer.unread))
    for _ in range(20_000):
        world.step()
        if other.shut and not other.kept:
            break
    world.check()
    assert other.shut
    assert bytes(other.received) == closer.sent[: len(closer.sent) - unread]
    assert world.relay.connections(world.allocation) == 0
    assert world.relay.deadline() is None


def world_rate(run: int) -> int:
    """Every third world has a rate."""
    return 100_000 if run % 3 == 0 else 0


@pytest.mark.parametrize("run", range(10))
def test_before_the_bind_little_is_read(seed: int, run: int) -> None:
    world = World(seed + run, size=1_000_000)
    while world.now < SECOND + PATIENCE - 20 * MILLISECOND:
        world.step()
    taken = 1_000_000 - sum(map(len, world.sockets[1].unread))
    assert EARLY <= taken <= EARLY + 10 * PIECE
    world.bind()
    for _ in range(100_000):
        world.step()
        if world.idle:
            break
    assert bytes(world.sockets[-1].received) == world.sockets[1].sent
