"""Punching on real sockets, on this machine: what the drivers hand over."""

from __future__ import annotations

import asyncio
import random
import socket
import threading
from typing import Any

import pytest

import ice.tcp
from ice.config import Credentials
from ice.errors import ConnectionFailed
from ice.tcp import blocking
from ice.tcp.driving import addresses_of, host_towards
from stun.aio import Driver
from stun.errors import UsageError
from stun.sansio import SECOND, Address
from stun.server import Server, ServerConfig

SECRET = "not for use outside of these tests"
HOST = "127.0.0.1"
MUCH = bytes(range(256)) * 4096


async def two(**options: Any) -> tuple[ice.tcp.Punched, ice.tcp.Punched]:
    a, b = [await ice.tcp.map_ports(host=HOST, count=2) for _ in range(2)]
    async with a, b:
        return await asyncio.gather(
            a.punch(b.addresses, secret=SECRET, controlling=True, **options),
            b.punch(a.addresses, secret=SECRET, controlling=False, **options),
        )


class TestAsyncio:
    async def test_streams(self) -> None:
        """Both sides write as soon as they may; nothing of it is lost or comes twice."""
        one, two_ = await two()
        assert one.local == two_.remote
        ends = [await hole.streams() for hole in (one, two_)]
        for _, writer in ends:
            writer.write(MUCH)
        got = await asyncio.gather(*(reader.readexactly(len(MUCH)) for reader, _ in ends))
        assert got == [MUCH, MUCH]
        for _, writer in ends:
            writer.write_eof()
        for reader, _ in ends:
            assert await reader.read() == b""
        for _, writer in ends:
            writer.close()
            await writer.wait_closed()

    async def test_what_came_with_the_last_check_comes_first(self) -> None:
        """One side writes in the same moment in which it has the socket."""
        for _ in range(20):
            a, b = [await ice.tcp.map_ports(host=HOST, count=1) for _ in range(2)]

            async def speak(hole: Any) -> ice.tcp.Punched:
                punched: ice.tcp.Punched = await hole
                punched.socket.send(b"first")
                return punched

            one, other = await asyncio.gather(
                speak(a.punch(b.addresses, secret=SECRET, controlling=True)),
                speak(b.punch(a.addresses, secret=SECRET, controlling=False)),
            )
            for hole in (one, other):
                reader, writer = await hole.streams()
                assert await reader.readexactly(5) == b"first"
                writer.close()
                await writer.wait_closed()

    async def test_the_raw_socket(self) -> None:
        one, other = await two()
        assert one.socket.getpeername() == other.socket.getsockname()
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(one.socket, b"hello")
        got = other.data or await loop.sock_recv(other.socket, 5)
        assert got == b"hello"
        one.close()
        other.close()

    async def test_with_ice_credentials_from_known_ports(self) -> None:
        ports = free_ports(2)
        a, b = Credentials("aaaa", "a" * 22), Credentials("bbbb", "b" * 22)
        one, other = await asyncio.gather(
            *(
                ice.tcp.punch(
                    [(HOST, ports[1 - n])],
                    ports=[ports[n]],
                    local_credentials=(a, b)[n],
                    remote_credentials=(b, a)[n],
                    controlling=n == 0,
                )
                for n in range(2)
            )
        )
        assert one.local == Address(HOST, ports[0])
        assert other.local == Address(HOST, ports[1])
        one.close()
        other.close()

    async def test_in_step(self) -> None:
        a, b = [await ice.tcp.map_ports(host=HOST) for _ in range(2)]
        at = a.now() + SECOND // 5
        one, other = await asyncio.gather(
            a.punch(b.addresses, secret=SECRET, controlling=True, start_at=at),
            b.punch(a.addresses, secret=SECRET, controlling=False, start_at=at),
        )
        assert a.now() >= at
        assert one.seconds < 5
        one.close()
        other.close()

    async def test_nobody_is_there(self) -> None:
        (port,) = free_ports(1)
        with pytest.raises(ConnectionFailed, match=r"no connection within 0\.3 s\n.*refused"):
            await ice.tcp.punch([(HOST, port)], secret=SECRET, controlling=True, timeout=0.3)

    async def test_another_secret(self) -> None:
        a, b = [await ice.tcp.map_ports(host=HOST, count=1) for _ in range(2)]
        found = await asyncio.gather(
            a.punch(b.addresses, secret=SECRET, controlling=True, timeout=1),
            b.punch(a.addresses, secret=SECRET[::-1], controlling=False, timeout=1),
            return_exceptions=True,
        )
        assert all(isinstance(each, ConnectionFailed) for each in found), found
        assert a.counters["its username is not of this session"]

    async def test_a_stun_server_tells_the_ports(self) -> None:
        (port,) = free_ports(1)
        server = Server(ServerConfig(Address(HOST, port)), entropy=random.Random(1).randbytes)
        async with Driver(server) as driver:
            server.start(driver.now())
            driver.flush()
            async with await ice.tcp.map_ports([f"{HOST}:{port}"], count=3) as mapped:
                assert not mapped.missing
                assert len(mapped.ports) == 3
                # There is no NAT on the way.
                assert all(port.external == (port.local,) for port in mapped.ports)

    async def test_a_server_that_is_not_there(self) -> None:
        (port,) = free_ports(1)
        async with await ice.tcp.map_ports([f"{HOST}:{port}"], count=2) as mapped:
            assert len(mapped.ports) == 2
            assert all("refused" in each for each in mapped.missing)
            assert mapped.addresses == tuple(port.local for port in mapped.ports)

    async def test_cancelled_it_leaves_nothing_open(self) -> None:
        mapped = await ice.tcp.map_ports(host=HOST, count=1)
        local = mapped.ports[0].local
        (port,) = free_ports(1)
        task = asyncio.create_task(
            mapped.punch([(HOST, port)], secret=SECRET, controlling=True, timeout=60)
        )
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert is_free(local.port)

    async def test_the_ports_are_free_afterwards(self) -> None:
        mapped = await ice.tcp.map_ports(host=HOST, count=3)
        ports = [port.local.port for port in mapped.ports]
        assert not any(map(is_free, ports))
        mapped.close()
        mapped.close()
        assert all(map(is_free, ports))

    async def test_what_is_wrong(self) -> None:
        async with await ice.tcp.map_ports(host=HOST, count=1) as mapped:
            there = [(HOST, 1)]
            with pytest.raises(UsageError, match="both sides prove themselves"):
                await mapped.punch(there, controlling=True)
            with pytest.raises(UsageError, match="can be guessed"):
                await mapped.punch(there, controlling=True, secret="short")
            with pytest.raises(UsageError, match="is not an address"):
                await mapped.punch([("example.org", 1)], controlling=True, secret=SECRET)

    async def test_a_port_that_another_program_has(self) -> None:
        with socket.socket() as other:
            other.bind((HOST, 0))
            other.listen()
            with pytest.raises(ConnectionFailed, match="no TCP port of"):
                await ice.tcp.map_ports(host=HOST, ports=[other.getsockname()[1]])


class TestBlocking:
    def test_a_socket(self) -> None:
        with blocking.map_ports(host=HOST) as a, blocking.map_ports(host=HOST) as b:
            found: list[blocking.Punched] = []
            to_a = a.addresses
            thread = threading.Thread(
                target=lambda: found.append(b.punch(to_a, secret=SECRET, controlling=False))
            )
            thread.start()
            one = a.punch(b.addresses, secret=SECRET, controlling=True)
            thread.join()
        (other,) = found
        assert one.socket.gettimeout() is None
        one.socket.sendall(b"hello")
        got = b""
        while len(got) < 5:
            got += other.recv(2)
        assert got == b"hello"
        one.close()
        assert other.recv(1) == b""
        other.close()

    def test_nobody_is_there(self) -> None:
        (port,) = free_ports(1)
        with pytest.raises(ConnectionFailed, match="no connection within"):
            blocking.punch([(HOST, port)], secret=SECRET, controlling=True, timeout=0.2)

    def test_time_passes(self) -> None:
        with blocking.map_ports(host=HOST) as mapped:
            before = mapped.now()
            mapped.wait(0.05)
            assert mapped.now() - before >= SECOND // 20
            assert not mapped.counters
            assert len(mapped.ports) == 3
            assert not mapped.missing

    def test_octets_that_were_read_already_come_first(self) -> None:
        left, right = socket.socketpair()
        with left, right:
            hole = blocking.Punched(
                left, bytearray(b"abc"), Address(HOST, 1), Address(HOST, 2), 0.0
            )
            right.sendall(b"def")
            assert [hole.recv(2) for _ in range(3)] == [b"ab", b"c", b"de"]

    def test_a_port_that_another_program_has(self) -> None:
        with socket.socket() as other:
            other.bind((HOST, 0))
            other.listen()
            with pytest.raises(ConnectionFailed, match="no TCP port of"):
                blocking.map_ports(host=HOST, ports=[other.getsockname()[1]])


class TestArguments:
    def test_addresses_as_json_gives_them(self) -> None:
        assert addresses_of([["192.0.2.1", 5]]) == [Address("192.0.2.1", 5)]
        for wrong in (["192.0.2.1"], ["192.0.2.1", "x"], [None, 5], 7):
            with pytest.raises(UsageError, match="is not an address"):
                addresses_of([wrong])  # type: ignore[list-item]

    def test_the_address_towards_somebody(self) -> None:
        assert host_towards([Address(HOST, 9)]) == HOST
        with pytest.raises(UsageError, match="give host="):
            host_towards([])


def free_ports(count: int) -> list[int]:
    """Return ports that nobody has."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind((HOST, 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True
