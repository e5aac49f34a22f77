"""The server on the simulated network, under a judge: clients that lose packets, and come and go.

Every request is a real transaction of the client machine with its retransmissions, over links that
lose and reorder packets, for hours of virtual time.  The judge (``tools/turnoracle.py``) checks
each datagram that the server sends.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import pytest

from nattype.lab.sim import SERVER_A, SERVER_A6, behind
from nattype.lab.sim.driver import Attachment
from nattype.model import Link
from stun import attributes as a
from stun.client import Client, Config
from stun.codec import encode
from stun.credentials import LongTerm
from stun.discovery import Transport
from stun.framing import channel_data
from stun.message import Message
from stun.nonce import NonceMaker
from stun.outcome import Failed, Reply
from stun.registry import Method
from stun.sansio import (
    SECOND,
    Address,
    Entropy,
    Instant,
    Opened,
    OpenUdp,
    Received,
    SocketEvent,
    Transmit,
)
from stun.users import StaticUsers
from tools.turnoracle import Oracle
from turn.server.config import ListenAt, RelayAddress, ServerConfig
from turn.server.events import EndReason
from turn.server.machine import Server
from turn.server.policy import PeerPolicy

PORT = 3478
PEER_PORTS = (7000, 7001)


@dataclass
class Shared:
    """What the clients and peers of one run know of each other."""

    relayed: list[Address] = field(default_factory=list)
    peers: list[Address] = field(default_factory=list)


class Peer:
    """Sends back what it gets, and something unasked-for to the relayed addresses of late."""

    def __init__(self, host: str, shared: Shared, rng: random.Random) -> None:
        self.mine = [Address(host, port) for port in PEER_PORTS]
        self.shared = shared
        self.rng = rng
        self.queue: deque[Any] = deque(OpenUdp(n + 1, at) for n, at in enumerate(self.mine))
        self.due: Instant = 0

    def receive(self, packet: Received, now: Instant) -> None:
        self.queue.append(Transmit(packet.data, packet.source, packet.local))

    def on_socket(self, event: SocketEvent, now: Instant) -> None:
        pass

    def on_deadline(self, now: Instant) -> None:
        if now >= self.due:
            self.due = now + self.rng.randint(1, 20) * SECOND
            for relayed in self.shared.relayed[-8:]:
                data = self.rng.randbytes(self.rng.randrange(40))
                self.queue.append(Transmit(data, relayed, self.rng.choice(self.mine)))

    def poll(self) -> Any:
        return self.queue.popleft() if self.queue else None

    def deadline(self) -> Instant | None:
        return self.due


class Talker:
    """Allocates, refreshes, binds and talks at random; sometimes for long it does nothing."""

    def __init__(
        self, host: str, server: Address, shared: Shared, rng: random.Random, entropy: Entropy
    ) -> None:
        self.local = Address(host, 40_000)
        self.server = server
        self.shared = shared
        self.rng = rng
        self.client = Client(Config(), entropy=entropy)
        self.queue: deque[Any] = deque([OpenUdp(1, self.local)])
        self.credentials = LongTerm(rng.choice(("alice", "bob")), "secret")
        self.asked: dict[bytes, Message] = {}
        self.has_allocation = False
        self.channels: list[int] = []
        self.friends: list[Address] = []
        self.heard = 0
        self.answered = 0
        self.failed: list[str] = []
        self.due: Instant = 0
        self.numbers = count(0x4000)

    # The shape of a machine. ----------------------------------------------------------------------

    def receive(self, packet: Received, now: Instant) -> None:
        if packet.data[:1] >= b"\x40":
            self.heard += 1
        else:
            self.client.receive(packet, now)

    def on_socket(self, event: SocketEvent, now: Instant) -> None:
        if not isinstance(event, Opened):
            self.client.on_socket(event, now)

    def on_deadline(self, now: Instant) -> None:
        self.client.on_deadline(now)
        if now >= self.due:
            self.act(now)

    def poll(self) -> Any:
        if self.queue:
            return self.queue.popleft()
        while (event := self.client.poll()) is not None:
            if isinstance(event, Transmit):
                return event
            self.learn(event)
        return None

    def deadline(self) -> Instant | None:
        due = self.client.deadline()
        return self.due if due is None else min(due, self.due)

    # What it does. --------------------------------------------------------------------------------

    def ask(self, method: Method, *attributes: tuple[Any, Any], now: Instant) -> None:
        message = Message.request(method, self.rng.randbytes(12))
        for attribute, value in attributes:
            message.add(attribute, value)
        name = self.client.request(
            message,
            destination=self.server,
            source=self.local,
            credentials=self.credentials,
            now=now,
        )
        self.asked[name] = message

    def act(self, now: Instant) -> None:
        rng = self.rng
        self.due = now + rng.choice((1, 1, 2, 5, 20, 100, 290)) * SECOND
        peer = rng.choice(self.shared.peers + self.shared.relayed[-3:])
        if self.friends and rng.random() < 0.7:
            peer = rng.choice(self.friends)
        if not self.has_allocation:
            lifetime = rng.choice((0, 600, 900, 3600))
            self.ask(
                Method.ALLOCATE, (a.REQUESTED_TRANSPORT, 17), (a.LIFETIME, lifetime),
                *rng.choice(((), ((a.EVEN_PORT, True),), ((a.ADDITIONAL_ADDRESS_FAMILY, 2),))),
                now=now,
            )  # fmt: skip
            return
        match rng.randrange(8):
            case 0:
                self.ask(Method.REFRESH, (a.LIFETIME, rng.choice((0, 600, 3600))), now=now)
            case 1:
                self.ask(Method.CREATE_PERMISSION, (a.XOR_PEER_ADDRESS, peer), now=now)
            case 2:
                number = next(self.numbers)
                self.channels.append(number)
                self.ask(
                    Method.CHANNEL_BIND,
                    (a.CHANNEL_NUMBER, number), (a.XOR_PEER_ADDRESS, peer), now=now,
                )  # fmt: skip
            case 3 | 4 | 5 if self.channels:
                data = rng.randbytes(rng.randrange(50))
                number = rng.choice(self.channels)
                octets = channel_data(number, data, pad=False)
                self.queue.append(Transmit(octets, self.server, self.local))
            case _:
                message = Message.indication(Method.SEND, rng.randbytes(12))
                message.add(a.XOR_PEER_ADDRESS, peer).add(a.DATA, rng.randbytes(20))
                self.queue.append(Transmit(encode(message), self.server, self.local))

    def learn(self, event: Any) -> None:
        if isinstance(event, Reply):
            self.answered += 1
            request = self.asked.pop(event.transaction_id)
            self.friends += request.all(a.XOR_PEER_ADDRESS)
            if request.method == Method.ALLOCATE:
                self.has_allocation = True
                self.shared.relayed += event.message.all(a.XOR_RELAYED_ADDRESS)
            elif request.method == Method.REFRESH and request.get(a.LIFETIME) == 0:
                self.has_allocation = False
                self.channels.clear()
        elif isinstance(event, Failed):
            request = self.asked.pop(event.transaction_id)
            code = getattr(event.error, "code", 0)
            self.failed.append(f"{Method.make(request.method).label} {code or event.error}")
            if code == 437:
                self.has_allocation = request.method == Method.ALLOCATE
                self.channels.clear()
        else:
            self.heard += 1


@pytest.mark.parametrize("loss", [0.0, 0.15])
@pytest.mark.parametrize("run", range(3))
def test_nothing_outlives_its_lifetime_and_nothing_passes_without_permission(
    seed: int, run: int, loss: float
) -> None:
    link = Link(loss=loss, delay=0.02, jitter=0.03)
    scenario = behind("symmetric", seed=seed, link=link)
    world, rng = scenario.world, random.Random(seed)
    listeners = (Address(SERVER_A, PORT), Address(SERVER_A6, PORT))
    config = ServerConfig(
        tuple(ListenAt(Transport.UDP, at) for at in listeners),
        (RelayAddress(SERVER_A, SERVER_A), RelayAddress(SERVER_A6, SERVER_A6)),
        "example.org",
        PeerPolicy(own=(SERVER_A, SERVER_A6)),
        spares=2 * (run % 2),
    )
    server = Server(
        config,
        StaticUsers({"alice": "secret", "bob": "secret"}, "example.org"),
        NonceMaker([world.entropy("nonces")(16)]),
        entropy=world.entropy("server"),
    )
    oracle = Oracle(server, set(listeners))
    world.attach(oracle, scenario.server)
    server.start(world.now)
    shared = Shared()
    for n in range(3):
        host = scenario.public_host(f"peer {n}", link=link)
        for address in host.addresses:
            peer = Peer(address, shared, random.Random(rng.random()))
            world.attach(peer, host)
            shared.peers += peer.mine
    hosts = [scenario.host, *(scenario.public_host(f"client {n}", link=link) for n in range(3))]
    talkers: list[Talker] = []
    attached: list[Attachment[Any]] = []
    for host in hosts:
        for address, at in zip((host.address(), host.address(ipv6=True)), listeners, strict=True):
            talker = Talker(
                address, at, shared, random.Random(rng.random()), world.entropy(f"{host.name} {at}")
            )
            talkers.append(talker)
            attached.append(world.attach(talker, host))
    world.run(max_time=2 * 3600)
    assert sum(talker.answered for talker in talkers) > 100
    assert oracle.relayed["peer"] > 50
    assert oracle.relayed["client"] > 50
    assert server.metrics.repeated > 0 or not loss
    # Then everybody is gone.
    for one in attached:
        one.detach()
    world.run(max_time=3601)
    assert list(server.sessions()) == []
    assert len(oracle.beyond()) == 2 * config.spares  # of each family
    metrics = server.metrics
    assert (metrics.allocations, metrics.permissions, metrics.channels) == (0, 0, 0)
    assert metrics.allocations_ended[EndReason.EXPIRED] > 0
    assert server._core.allocations == {}
    assert server._core.quotas.allocations == 0
