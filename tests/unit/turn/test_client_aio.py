"""The asyncio relay against a server of our own, on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import turn
from stun.credentials import LongTerm
from stun.discovery import Target, Transport
from stun.errors import StunError, UsageError
from stun.nonce import NonceMaker
from stun.sansio import Address
from stun.tls import ClientTls, ServerTls
from stun.users import StaticUsers
from tools.certificate import write_self_signed
from turn.aio import RelayDriver
from turn.client.errors import Forbidden, NotAuthenticated, PeerNotReached, ServerUnreachable
from turn.client.events import ClientEvent, Data, Lost, PeerUnreachable
from turn.server.config import ListenAt, RelayAddress, ServerConfig
from turn.server.events import Serving
from turn.server.machine import Server
from turn.server.policy import PeerPolicy

HOST, NAME, REALM = "127.0.0.1", "relay.example", "example.org"
USER = LongTerm("user", "pass")


class Running:
    """A server in this loop."""

    def __init__(self, server: Server, driver: RelayDriver, certificate: Path) -> None:
        self.server, self.driver, self.certificate = server, driver, certificate
        self.ports: dict[Transport, int] = {}

    def target(self, transport: Transport = Transport.UDP) -> Target:
        plain = Transport.UDP if transport.protocol == "udp" else Transport.TCP
        name = NAME if transport.is_secure else None
        return Target(Address(HOST, self.ports[plain]), transport, name)

    def connect(self, transport: Transport = Transport.UDP, **options: Any) -> Any:
        options.setdefault("credentials", USER)
        options.setdefault("tls", ClientTls(self.certificate))
        return turn.connect(self.target(transport), **options)

    @property
    def sessions(self) -> int:
        return len([*self.server.sessions()])


@asynccontextmanager
async def server(tmp_path: Path, **options: Any) -> AsyncIterator[Running]:
    certificate = write_self_signed(tmp_path / "certificate.pem", NAME)
    options.setdefault("policy", PeerPolicy(allow=["127.0.0.0/8"]))
    listeners = tuple(
        ListenAt(transport, Address(HOST, 0), detect=True)
        for transport in (Transport.UDP, Transport.TCP)
    )
    config = ServerConfig(listeners, (RelayAddress(HOST, HOST),), REALM, **options)
    users = StaticUsers({"user": "pass"}, REALM)
    machine = Server(config, users, NonceMaker((os.urandom(16),)), entropy=os.urandom)
    events: list[Any] = []
    tls = ServerTls(certificate, certificate)
    async with RelayDriver(machine, on_event=events.append, server_tls=tls) as driver:
        machine.start(driver.now())
        driver.flush()
        running = Running(machine, driver, certificate)
        for event in events:
            if isinstance(event, Serving):
                running.ports[event.transport] = event.local.port
        assert len(running.ports) == 2
        yield running


class Echo(asyncio.DatagramProtocol):
    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, source: Any) -> None:
        self.transport.sendto(data.upper(), source)


@asynccontextmanager
async def echo() -> AsyncIterator[Address]:
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(Echo, local_addr=(HOST, 0))
    try:
        yield Address(*transport.get_extra_info("sockname"))
    finally:
        transport.close()
        await asyncio.sleep(0)


@asynccontextmanager
async def tcp_peer(
    serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[Address]:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            await serve(reader, writer)
        writer.close()

    listening = await asyncio.start_server(handle, HOST, 0)
    try:
        yield Address(*listening.sockets[0].getsockname())
    finally:
        listening.close()
        await listening.wait_closed()


def run(main: Callable[[], Awaitable[None]]) -> None:
    async def within() -> None:
        async with asyncio.timeout(20):
            await main()
        # Nothing is left running, whatever happened.
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, left

    asyncio.run(within())


async def eventually(what: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not what():  # noqa: ASYNC110  (the other side is a machine that tells nobody)
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("transport", [*Transport])
def test_a_conversation(tmp_path: Path, transport: Transport) -> None:
    async def main() -> None:
        async with server(tmp_path) as running, echo() as peer:
            async with running.connect(transport) as relay:
                assert relay.server == running.target(transport)
                assert relay.relayed_addresses == (relay.relayed_address,)
                assert relay.mapped_address.host == HOST
                assert relay.local_address.port
                for number in range(10):
                    relay.send(b"word %d" % number, peer)
                    assert await relay.recv() == (b"WORD %d" % number, peer)
                relay.send(b"last", tuple(peer))
                async for data, source in relay:
                    assert (data, source) == (b"LAST", peer)
                    break
                assert relay.recv_nowait() is None
                assert running.sessions == 1
                assert await relay.refresh(1000) == 1000
                assert relay.lifetime == 1000
            # Leaving gives it back.
            assert running.sessions == 0
            with pytest.raises(turn.RelayClosed):
                relay.send(b"late", peer)
            with pytest.raises(turn.RelayClosed):
                await relay.recv()

    run(main)


def test_await_instead_of_a_context(tmp_path: Path) -> None:
    async def main() -> None:
        async with server(tmp_path) as running:
            relay = await running.connect()
            assert running.sessions == 1
            await relay.aclose()
            await relay.aclose()
            assert running.sessions == 0
            async with await running.connect() as relay:
                assert running.sessions == 1
            assert running.sessions == 0

    run(main)


def test_permissions(tmp_path: Path) -> None:
    async def main() -> None:
        async with server(tmp_path) as running, running.connect() as relay:
            await relay.permit(HOST, ("127.0.0.2", 9), "127.0.0.3")
            await relay.permit(HOST)
            await relay.permit()
            with pytest.raises(Forbidden, match="policy does not allow"):
                await relay.permit("10.0.0.1", HOST)
            assert await relay.bind((HOST, 9)) == await relay.bind((HOST, 9))
            for wrong in (("localhost", 9), (HOST, 1 << 16), (HOST,), 5):
                with pytest.raises(UsageError):
                    relay.send(b"data", wrong)
            relay.forget((HOST, 9))

    run(main)


def test_errors(tmp_path: Path) -> None:
    async def main() -> None:
        async with server(tmp_path) as running:
            with pytest.raises(NotAuthenticated, match="check the username"):
                await running.connect(credentials=LongTerm("user", "wrong"))
            with pytest.raises(ServerUnreachable, match="self-signed"):
                await running.connect(Transport.TLS, tls=ClientTls())
            with pytest.raises(UsageError, match="a username and a password"):
                turn.connect("turn:127.0.0.1", username="user")
            with pytest.raises(UsageError, match="does not relay"):
                await turn.connect("stun:127.0.0.1")
            with pytest.raises(UsageError, match="another address family"):
                await running.connect(local=Address("::1", 0))
            async with running.connect() as relay:
                with pytest.raises(UsageError, match='connect with protocol="tcp"'):
                    await relay.open_connection((HOST, 9))
                with pytest.raises(UsageError, match="protocol="):
                    async for _ in relay.accept():
                        pass
                with pytest.raises(UsageError, match="no ticket"):
                    await relay.move()

    run(main)


def test_nobody_answers() -> None:
    async def main() -> None:
        with socket.socket(type=socket.SOCK_DGRAM) as silent:
            silent.bind((HOST, 0))
            uri = f"turn:{HOST}:{silent.getsockname()[1]}?transport=udp"
            with pytest.raises(StunError, match=r"no relayed address within 0\.1 s"):
                await turn.connect(uri, credentials=USER, timeout=0.1)

    run(main)


def test_another_transport_answers(tmp_path: Path) -> None:
    async def main() -> None:
        async with server(tmp_path) as running:
            port = running.ports[Transport.TCP]
            with socket.socket(type=socket.SOCK_DGRAM) as silent:
                silent.bind((HOST, port))
                # A URI without a transport: UDP first, and what else there is when it is silent.
                async with turn.connect(f"turn:{HOST}:{port}", credentials=USER) as relay:
                    assert relay.server.transport is Transport.TCP
            assert running.sessions == 0

    run(main)


def test_cancelling(tmp_path: Path) -> None:
    async def cancelled(waiting: Awaitable[Any]) -> None:
        task = asyncio.ensure_future(waiting)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    async def main() -> None:
        async with server(tmp_path) as running, echo() as peer:

            async def connecting() -> None:
                await running.connect()

            await cancelled(connecting())
            await eventually(lambda: running.sessions == 0)
            async with running.connect() as relay:
                await cancelled(relay.recv())
                await cancelled(relay.permit(peer))
                await cancelled(relay.refresh())
                await cancelled(relay.bind(peer))
                assert not relay._waits
                relay.send(b"all is well", peer)
                assert (await relay.recv())[0] == b"ALL IS WELL"

    run(main)


@pytest.mark.parametrize("transport", [Transport.UDP, Transport.TCP])
def test_cancelling_at_any_moment_leaves_nothing(
    tmp_path: Path, transport: Transport, rng: random.Random
) -> None:
    """Whatever the server was asked for in that moment, it is given back, granted or not."""

    async def main() -> None:
        async with server(tmp_path) as running, echo() as peer:

            async def work() -> None:
                async with running.connect(transport) as relay:
                    await relay.permit(peer)
                    await relay.bind(peer)
                    await relay.refresh()

            before = len(asyncio.all_tasks())
            for _ in range(60):
                task = asyncio.ensure_future(work())
                for _ in range(rng.randrange(40)):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.wait([task])
                assert task.cancelled() or task.exception() is None
            if transport is Transport.TCP:  # over UDP the last packet may be lost
                await eventually(lambda: running.sessions == 0)
            assert len(asyncio.all_tasks()) == before

    run(main)


def test_a_command_that_is_refused_at_once_leaves_no_one_waiting(tmp_path: Path) -> None:
    async def main() -> None:
        async with server(tmp_path) as running, running.connect() as relay:
            with pytest.raises(UsageError, match="ask for mobility"):
                await relay.move()
            with pytest.raises(TypeError, match="str is not octets"):
                relay.send("text", (HOST, 9))
            with pytest.raises(UsageError, match="65536 octets are no datagram"):
                relay.send(bytes(65536), (HOST, 9))
            assert not relay._waits
            assert repr(relay).startswith(f"<turn.client.aio.Relay {relay.relayed_address} at")

    run(main)


def test_a_datagram_is_not_lost_with_a_cancelled_receiver(tmp_path: Path) -> None:
    async def main() -> None:
        async with server(tmp_path) as running, echo() as peer, running.connect() as relay:
            first, second = asyncio.ensure_future(relay.recv()), asyncio.ensure_future(relay.recv())
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            relay.take(Data(peer, b"one"))  # the first one's turn, and then not any more
            first.cancel()
            assert await second == (b"one", peer)
            with pytest.raises(asyncio.CancelledError):
                await first

    run(main)


def test_the_queue_is_bounded(tmp_path: Path) -> None:
    async def main() -> None:
        async with (
            server(tmp_path) as running,
            echo() as peer,
            running.connect(receive_limit=5) as relay,
        ):
            await relay.bind(peer)
            for number in range(9):
                relay.send(b"%d" % number, peer)
            dropped = "received and dropped: nobody took the ones before"
            await eventually(lambda: relay.counters.get(dropped, 0) == 4)
            assert [(await relay.recv())[0] for _ in range(5)] == [b"0", b"1", b"2", b"3", b"4"]

    run(main)


def test_the_server_ends_it(tmp_path: Path) -> None:
    async def main() -> None:
        async with server(tmp_path) as running, echo() as peer:
            events: list[ClientEvent] = []
            async with running.connect(on_event=events.append) as relay:
                waiting = asyncio.ensure_future(relay.recv())
                await asyncio.sleep(0)
                running.server.disconnect(running.driver.now(), username="user")
                running.driver.flush()
                with pytest.raises(turn.AllocationLost):
                    await relay.refresh()
                with pytest.raises(turn.AllocationLost, match="allocate again"):
                    await waiting
                with pytest.raises(turn.AllocationLost):
                    relay.send(b"late", peer)
            assert any(isinstance(event, Lost) for event in events)

    run(main)


def test_icmp_errors_are_told(tmp_path: Path) -> None:
    async def main() -> None:
        with socket.socket(type=socket.SOCK_DGRAM) as gone:
            gone.bind((HOST, 0))
            peer = gone.getsockname()
        async with server(tmp_path) as running:
            events: list[ClientEvent] = []
            async with running.connect(on_event=events.append) as relay:
                relay.send(b"anybody there?", peer)
                await eventually(lambda: any(isinstance(e, PeerUnreachable) for e in events))
            (told,) = [e for e in events if isinstance(e, PeerUnreachable)]
            assert (told.peer, told.icmp_type, told.icmp_code) == (Address(*peer), 3, 3)

    run(main)


def test_moving(tmp_path: Path) -> None:
    async def main() -> None:
        async with (
            server(tmp_path) as running,
            echo() as peer,
            running.connect(mobility=True) as relay,
        ):
            await relay.bind(peer)
            before = relay.local_address
            assert await relay.move((HOST, 0)) != before
            relay.send(b"moved", peer)
            assert (await relay.recv())[0] == b"MOVED"
            assert running.sessions == 1

    run(main)


# RFC 6062. ----------------------------------------------------------------------------------------


async def shout(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data.upper())
        await writer.drain()


@pytest.mark.parametrize("transport", [Transport.TCP, Transport.TLS])
def test_connections(tmp_path: Path, transport: Transport) -> None:
    async def main() -> None:
        async with (
            server(tmp_path) as running,
            tcp_peer(shout) as peer,
            running.connect(transport, protocol="tcp") as relay,
        ):
            reader, writer = await relay.open_connection(peer)
            assert writer.get_extra_info("peername") == peer
            assert writer.get_extra_info("sockname") == relay.relayed_address
            payload = b"abc\n" * 100_000
            writer.write(payload)
            assert await reader.readexactly(len(payload)) == payload.upper()
            await writer.drain()
            writer.close()
            await writer.wait_closed()
            with pytest.raises(PeerNotReached):
                await relay.open_connection((HOST, 1))

    run(main)


def test_a_peer_that_closes(tmp_path: Path) -> None:
    async def goodbye(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"goodbye")
        await writer.drain()

    async def main() -> None:
        async with (
            server(tmp_path) as running,
            tcp_peer(goodbye) as peer,
            running.connect(Transport.TCP, protocol="tcp") as relay,
        ):
            reader, writer = await relay.open_connection(peer)
            assert await reader.read() == b"goodbye"
            writer.close()

    run(main)


def test_the_relay_ends_under_a_connection(tmp_path: Path) -> None:
    async def main() -> None:
        async with server(tmp_path) as running, tcp_peer(shout) as peer:
            async with running.connect(Transport.TCP, protocol="tcp") as relay:
                reader, writer = await relay.open_connection(peer)
            with pytest.raises(ConnectionError):
                await reader.read()
            writer.close()

    run(main)


TOTAL = 32 << 20
"""Octets: more than the buffers of three sockets can hold."""


def test_back_pressure(tmp_path: Path) -> None:
    go_on = asyncio.Event()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await go_on.wait()
        total = 0
        while total < TOTAL:
            total += len(await reader.read(1 << 20))
        writer.write(b"%d" % total)
        await writer.drain()

    async def main() -> None:
        async with (
            server(tmp_path) as running,
            tcp_peer(slow) as peer,
            running.connect(Transport.TCP, protocol="tcp") as relay,
        ):
            reader, writer = await relay.open_connection(peer)
            sent = 0

            async def pour() -> None:
                nonlocal sent
                for _ in range(TOTAL >> 16):
                    writer.write(bytes(1 << 16))
                    await writer.drain()
                    sent += 1 << 16

            pouring = asyncio.create_task(pour())
            await asyncio.sleep(0.3)
            # Nobody reads, so what is on the way is what buffers hold.
            assert not pouring.done()
            assert sent < TOTAL
            go_on.set()
            await pouring
            assert await reader.read() == b"%d" % TOTAL
            writer.close()

    run(main)


def test_connections_of_peers(tmp_path: Path) -> None:
    async def knock(relayed: Address) -> bytes:
        reader, writer = await asyncio.open_connection(*relayed)
        writer.write(b"knock\n")
        answer = await reader.readline()
        writer.close()
        await writer.wait_closed()
        return answer

    async def main() -> None:
        async with (
            server(tmp_path) as running,
            running.connect(Transport.TCP, protocol="tcp") as relay,
        ):
            await relay.permit(HOST)
            knocking = [asyncio.create_task(knock(relay.relayed_address)) for _ in range(3)]
            count = 0
            async for reader, writer, peer in relay.accept():
                assert peer.host == HOST
                assert await reader.readline() == b"knock\n"
                writer.write(b"come in\n")
                await writer.drain()
                writer.close()
                count += 1
                if count == 3:
                    break
            assert await asyncio.gather(*knocking) == [b"come in\n"] * 3

    run(main)


def test_cancelling_a_connection(tmp_path: Path) -> None:
    async def main() -> None:
        async with (
            server(tmp_path) as running,
            tcp_peer(shout) as peer,
            running.connect(Transport.TCP, protocol="tcp") as relay,
        ):
            task = asyncio.create_task(relay.open_connection(peer))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert not relay._streams
            reader, writer = await relay.open_connection(peer)
            writer.write(b"hello")
            assert await reader.readexactly(5) == b"HELLO"
            writer.close()

    run(main)
