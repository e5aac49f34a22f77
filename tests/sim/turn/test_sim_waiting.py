"""A user store that takes its time, on the simulated network: clients over TCP lose nothing by it.

What a client sends while its request waits is stopped by TCP's window, not kept by the server.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from nattype.lab.sim import SERVER_A, behind
from nattype.lab.sim.machines import Puppet
from nattype.lab.sim.tcp import WINDOW
from nattype.model import Link
from stun import attributes as a
from stun.codec import decode, encode
from stun.credentials import LongTerm
from stun.discovery import Transport
from stun.framing import StunStream, channel_data
from stun.message import Message
from stun.nonce import NonceMaker
from stun.registry import Class, Method
from stun.sansio import (
    MILLISECOND,
    SECOND,
    Address,
    Handle,
    Instant,
    Received,
    SocketEvent,
)
from stun.users import Gap, Password
from turn.server.config import ListenAt, RelayAddress, ServerConfig
from turn.server.core import LONGEST_REQUEST
from turn.server.events import LookUp
from turn.server.machine import Server
from turn.server.policy import PeerPolicy

REALM = "example.org"
SERVER = Address(SERVER_A, 3478)
KEY = LongTerm("alice", "secret").key(REALM)


class Service:
    """The server and its database, which answers after ``delay``; never, if that is ``None``.

    An answer is good for one request.
    """

    def __init__(self, config: ServerConfig, world: Any, delay: int | None) -> None:
        self.delay = delay
        self.due: list[tuple[Instant, LookUp]] = []
        self.now: Instant = 0
        self.ready = self.asked = self.most_kept = 0
        self.server = Server(
            config, self, NonceMaker([world.entropy("nonces")(16)]), entropy=world.entropy("server")
        )

    def secrets(self, username: str, unix_time: int) -> Sequence[Password | Gap]:
        del username, unix_time
        if not self.ready and self.delay != 0:
            return (Gap.NOT_YET,)
        self.ready = max(0, self.ready - 1)
        return (Password("secret"),)

    def by_userhash(self, value: bytes, unix_time: int) -> None:
        del value, unix_time

    def receive(self, packet: Received, now: Instant) -> None:
        self.server.receive(packet, now)

    def on_socket(self, event: SocketEvent, now: Instant) -> None:
        self.now = now
        self.server.on_socket(event, now)
        for connection in self.server._core.connections.values():
            assert connection.stream is not None
            self.most_kept = max(self.most_kept, connection.stream.pending)

    def on_deadline(self, now: Instant) -> None:
        self.now = now
        while self.due and self.due[0][0] <= now:
            self.ready += 1
            self.server.found(self.due.pop(0)[1], now)
            self.ready = 0
        self.server.on_deadline(now)

    def poll(self) -> Any:
        output = self.server.poll()
        if isinstance(output, LookUp):
            self.asked += 1
            if self.delay is not None:
                self.due.append((self.now + self.delay, output))
        return output

    def deadline(self) -> Instant | None:
        dues = [self.server.deadline(), *(due for due, _ in self.due[:1])]
        return min((due for due in dues if due is not None), default=None)


class Scene:
    """The service, a client behind a NAT, and a peer."""

    def __init__(self, seed: int, link: Link) -> None:
        scenario = behind("symmetric", seed=seed, link=link)
        self.world = world = scenario.world
        config = ServerConfig(
            (ListenAt(Transport.TCP, SERVER),),
            (RelayAddress(SERVER_A, SERVER_A),),
            REALM,
            PeerPolicy(own=(SERVER_A,)),
        )
        self.service = Service(config, world, 0)
        world.attach(self.service, scenario.server)
        self.service.server.start(world.now)
        host = scenario.public_host("peer", link=Link(delay=0.02))
        self.peer, self.peer_address = Puppet(), Address(host.address(), 7000)
        self.peer.listen(self.peer_address)
        self.peer.bind(self.peer_address)
        world.attach(self.peer, host)
        self.client = Puppet()
        self.local = Address(scenario.host.address(), 0)
        world.attach(self.client, scenario.host)
        self.rng = world.random("client")
        self.control = self.open()

    def run(self, seconds: float) -> None:
        self.world.run(until=self.world.now + int(seconds * SECOND))

    def open(self) -> Handle:
        handle = self.client.dial(self.local, SERVER)
        assert self.world.run(until=lambda: self.client.connected(handle), max_time=60)
        return handle

    def answers(self, handle: Handle) -> list[Message]:
        stream = StunStream(channel_data=True)
        return [decode(octets) for octets in stream.feed(self.client.stream(handle))]

    def request(self, handle: Handle, method: Method, *attributes: tuple[Any, Any]) -> bytes:
        """Return a request with a proof; there is a nonce from the last challenge."""
        message = Message.request(method, self.rng.randbytes(12))
        for attribute, value in attributes:
            message.add(attribute, value)
        nonce = self.answers(handle)[0].get(a.NONCE)
        assert nonce is not None
        message.add(a.USERNAME, "alice").add(a.REALM, REALM).add(a.NONCE, nonce)
        return encode(message, key=KEY)

    def greet(self, handle: Handle) -> None:
        """Get a nonce."""
        self.client.write(handle, encode(Message.request(Method.REFRESH, bytes(12))))
        assert self.world.run(until=lambda: bool(self.answers(handle)), max_time=60)

    def ask(self, handle: Handle, method: Method, *attributes: tuple[Any, Any]) -> Message:
        before = len(self.answers(handle))
        self.client.write(handle, self.request(handle, method, *attributes))
        assert self.world.run(until=lambda: len(self.answers(handle)) > before, max_time=60)
        response = self.answers(handle)[before]
        assert response.message_class is Class.SUCCESS
        return response

    def allocate(self, transport: int) -> None:
        self.greet(self.control)
        self.ask(self.control, Method.ALLOCATE, (a.REQUESTED_TRANSPORT, transport))


@pytest.mark.parametrize("loss", [0.0, 0.1])
@pytest.mark.parametrize("delay", [0.001, 0.3, 2.5])
def test_a_stream_behind_a_connection_bind_that_waits(seed: int, loss: float, delay: float) -> None:
    scene = Scene(seed, Link(loss=loss, delay=0.02, jitter=0.01))
    client, service = scene.client, scene.service
    scene.allocate(6)
    connected = scene.ask(scene.control, Method.CONNECT, (a.XOR_PEER_ADDRESS, scene.peer_address))
    data = scene.open()
    scene.greet(data)
    service.delay = int(delay * SECOND)
    identifier = connected.get(a.CONNECTION_ID)
    bind = scene.request(data, Method.CONNECTION_BIND, (a.CONNECTION_ID, identifier))
    there = scene.rng.randbytes(300_000)
    client.write(data, bind + there)
    client.shut(data)
    assert scene.world.run(until=lambda: bool(scene.peer.accepted()), max_time=60)
    (peer,) = scene.peer.accepted()
    heard_all = scene.world.run(
        until=lambda: scene.peer.closed(peer.handle) is not None, max_time=600
    )
    assert heard_all
    assert scene.peer.stream(peer.handle) == there
    assert service.asked == 1
    assert service.most_kept <= LONGEST_REQUEST + WINDOW


@pytest.mark.parametrize("loss", [0.0, 0.1])
def test_datagrams_and_requests_keep_their_order(seed: int, loss: float) -> None:
    scene = Scene(seed, Link(loss=loss, delay=0.02, jitter=0.01))
    client, service, control = scene.client, scene.service, scene.control
    scene.allocate(17)
    peer = (a.XOR_PEER_ADDRESS, scene.peer_address)
    service.delay = 400 * MILLISECOND
    before = len(scene.answers(control))
    octets, expected = b"", []
    for _ in range(3):
        octets += scene.request(control, Method.REFRESH, (a.LIFETIME, 600))
        octets += encode(Message.request(Method.BINDING, bytes(12)))
        expected += [Method.REFRESH, Method.BINDING]
    octets += scene.request(control, Method.CHANNEL_BIND, (a.CHANNEL_NUMBER, 0x4000), peer)
    # The channel is bound in front of what is sent over it.
    octets += channel_data(0x4000, b"over the channel", pad=True)
    expected.append(Method.CHANNEL_BIND)
    while octets:
        cut = scene.rng.randrange(1, 200)
        client.write(control, octets[:cut])
        octets = octets[cut:]
        scene.run(0.05)
    assert scene.world.run(until=lambda: bool(scene.peer.received()), max_time=60)
    scene.run(5)  # the last answer may still be on its way
    answers = scene.answers(control)[before:]
    assert [answer.method for answer in answers] == expected
    assert all(answer.message_class is Class.SUCCESS for answer in answers)
    assert [packet.data for packet in scene.peer.received()] == [b"over the channel"]
    assert service.asked == 4
    assert not service.server.drops


def test_a_database_that_is_silent_for_a_while(seed: int) -> None:
    scene = Scene(seed, Link(delay=0.02))
    client, service, control = scene.client, scene.service, scene.control
    scene.allocate(17)
    service.delay = None
    refresh = scene.request(control, Method.REFRESH, (a.LIFETIME, 600))
    before = len(scene.answers(control))
    client.write(control, refresh + encode(Message.request(Method.BINDING, bytes(12))) + refresh)
    scene.run(2.9)
    assert len(scene.answers(control)) == before
    scene.run(0.3)
    service.delay = SECOND
    refused, bound = scene.answers(control)[before:]
    error = refused.get(a.ERROR_CODE)
    assert error is not None
    assert error.code == 500
    assert bound.method == Method.BINDING
    scene.run(4)
    error = scene.answers(control)[-1].get(a.ERROR_CODE)
    assert error is not None, "its question was asked in the silence"
    assert error.code == 500
    assert len(scene.answers(control)) == before + 3
    assert scene.ask(control, Method.REFRESH, (a.LIFETIME, 600)).get(a.LIFETIME) == 600
    assert client.closed(control) is None
