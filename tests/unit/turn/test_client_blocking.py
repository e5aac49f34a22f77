"""The blocking relay against a server of our own, which runs in a thread."""

from __future__ import annotations

import asyncio
import os
import select
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import turn
from stun.credentials import LongTerm
from stun.discovery import Target, Transport
from stun.errors import StunError, UsageError
from stun.nonce import NonceMaker
from stun.sansio import Address
from stun.users import StaticUsers
from turn import blocking
from turn.aio import RelayDriver
from turn.client.errors import Forbidden, NotAuthenticated, PeerNotReached
from turn.server.config import ListenAt, RelayAddress, ServerConfig
from turn.server.events import Serving
from turn.server.machine import Server
from turn.server.policy import PeerPolicy

HOST, REALM = "127.0.0.1", "example.org"
USER = LongTerm("user", "pass")


@pytest.fixture
def targets() -> Iterator[dict[Transport, Target]]:
    """A server in a thread, by the transports that it has."""
    listeners = tuple(
        ListenAt(transport, Address(HOST, 0)) for transport in (Transport.UDP, Transport.TCP)
    )
    policy = PeerPolicy(allow=["127.0.0.0/8"])
    config = ServerConfig(listeners, (RelayAddress(HOST, HOST),), REALM, policy)
    users = StaticUsers({"user": "pass"}, REALM)
    machine = Server(config, users, NonceMaker((os.urandom(16),)), entropy=os.urandom)
    found: dict[Transport, Target] = {}
    ready, stop = threading.Event(), threading.Event()
    closing: list[Any] = []

    def on_event(event: object) -> None:
        if isinstance(event, Serving):
            found[event.transport] = Target(event.local, event.transport)

    async def serve() -> None:
        loop = asyncio.get_running_loop()
        async with RelayDriver(machine, on_event=on_event) as driver:
            closing.append(lambda: loop.call_soon_threadsafe(driver.close))
            machine.start(driver.now())
            driver.flush()
            ready.set()
            await driver.run()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), name="relay server")
    thread.start()
    try:
        assert ready.wait(10)
        yield found
    finally:
        stop.set()
        closing[0]()
        thread.join(10)


@contextmanager
def udp() -> Iterator[socket.socket]:
    with socket.socket(type=socket.SOCK_DGRAM) as peer:
        peer.bind((HOST, 0))
        peer.settimeout(5)
        yield peer


def arrival(relay: blocking.Relay, peer: socket.socket) -> tuple[bytes, tuple[str, int]]:
    """Run the relay until something reaches the peer: the first datagram waits for a permission."""
    for _ in range(500):
        relay.run(0.01)
        if select.select([peer], [], [], 0)[0]:
            return peer.recvfrom(100)
    raise AssertionError("nothing reached the peer")


@pytest.mark.parametrize("transport", [Transport.UDP, Transport.TCP])
def test_datagrams(targets: dict[Transport, Target], transport: Transport) -> None:
    with udp() as peer, blocking.connect(targets[transport], credentials=USER) as relay:
        there = peer.getsockname()
        for number in range(8):
            relay.send(b"%d" % number, there)
            assert arrival(relay, peer) == (b"%d" % number, tuple(relay.relayed_address))
            peer.sendto(b"re: %d" % number, relay.relayed_address)
            assert relay.recv(5) == (b"re: %d" % number, there)
        with pytest.raises(TimeoutError, match=r"within 0\.01 s"):
            relay.recv(0.01)
        peer.sendto(b"last", relay.relayed_address)
        for data, source in relay:
            assert (data, source) == (b"last", there)
            break
        assert relay.bind(there) == 0x4000
        assert relay.refresh(900) == 900
        relay.forget(there)
    with pytest.raises(turn.RelayClosed):
        relay.send(b"late", there)
    with pytest.raises(turn.RelayClosed):
        relay.recv(1)


def test_errors(targets: dict[Transport, Target]) -> None:
    with pytest.raises(NotAuthenticated):
        blocking.connect(targets[Transport.UDP], username="user", password="wrong")
    with blocking.connect(targets[Transport.UDP], credentials=USER) as relay:
        with pytest.raises(Forbidden):
            relay.permit(HOST, "10.0.0.1")
        with pytest.raises(UsageError, match="protocol="):
            relay.accept()
        with pytest.raises(UsageError, match='connect with protocol="tcp"'):
            relay.open_connection((HOST, 9))


def test_nobody_answers() -> None:
    with udp() as silent:
        target = Target(Address(*silent.getsockname()), Transport.UDP)
        with pytest.raises(StunError, match=r"no relayed address within 0\.1 s"):
            blocking.connect(target, credentials=USER, timeout=0.1)


def test_moving(targets: dict[Transport, Target]) -> None:
    with blocking.connect(targets[Transport.UDP], credentials=USER, mobility=True) as relay:
        assert relay.move() != relay.local_address
        assert relay.refresh() == 600


def test_connections(targets: dict[Transport, Target]) -> None:
    with (
        socket.create_server((HOST, 0)) as listener,
        blocking.connect(targets[Transport.TCP], credentials=USER, protocol="tcp") as relay,
    ):
        listener.settimeout(5)
        with relay.open_connection(listener.getsockname()) as stream:
            peer, _ = listener.accept()
            with peer:
                stream.sendall(b"hello")
                assert peer.recv(100) == b"hello"
                peer.sendall(b"there you are")
                assert stream.recv(5, timeout=5) == b"there"
                assert stream.recv(timeout=5) == b" you are"
                with pytest.raises(TimeoutError):
                    stream.recv(timeout=0.01)
            assert stream.recv(timeout=5) == b""
            with pytest.raises(ConnectionError):
                stream.sendall(b"late")
        with pytest.raises(PeerNotReached):
            relay.open_connection((HOST, 1))
        relay.permit(HOST)
        with socket.create_connection(relay.relayed_address) as knocking:
            knocking.sendall(b"knock")
            with relay.accept(5) as stream:
                assert stream.peer.host == HOST
                assert stream.recv(timeout=5) == b"knock"
        with pytest.raises(TimeoutError, match="nobody connected"):
            relay.accept(0.01)


def test_more_than_one_reads_at_once(targets: dict[Transport, Target]) -> None:
    total = 4 << 20
    with (
        socket.create_server((HOST, 0)) as listener,
        blocking.connect(targets[Transport.TCP], credentials=USER, protocol="tcp") as relay,
        relay.open_connection(listener.getsockname()) as stream,
    ):
        peer, _ = listener.accept()

        def pour() -> None:
            with peer:
                peer.sendall(bytes(total))

        thread = threading.Thread(target=pour)
        thread.start()
        relay.run(0.2)
        # What nobody reads is kept only so far; then the peer is held back.
        assert len(stream._buffer) < total
        got = 0
        while data := stream.recv(timeout=5):
            got += len(data)
        thread.join()
        assert got == total
