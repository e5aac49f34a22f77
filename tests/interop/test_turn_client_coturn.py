"""Our TURN client relays through coturn: every transport, every kind of allocation."""

from __future__ import annotations

import asyncio
import base64
import os
import socket
import sqlite3
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import turn
import turn.blocking
from stun.codec import encode
from stun.credentials import ThirdParty, rest_credentials
from stun.discovery import Target, Transport
from stun.errors import StunError
from stun.message import Message
from stun.oauth import Contents, TokenKey, timestamp_of
from stun.registry import Method
from stun.sansio import Address
from stun.tls import ClientTls
from tools.certificate import write_self_signed
from turn.client.errors import NotAuthenticated, PeerNotReached, QuotaReached
from turn.client.events import ClientEvent, Redirected, Refreshed

HOST, NAME = "127.0.0.1", "relay.example"
SECRET = "shared with the web service"
TRANSPORTS = [Transport.UDP, Transport.TCP, Transport.TLS, Transport.DTLS]


@dataclass
class Coturn:
    """A running coturn."""

    host: str
    port: int
    tls_port: int
    certificate: Path

    def target(self, transport: Transport) -> Target:
        port = self.tls_port if transport.is_secure else self.port
        name = NAME if transport.is_secure else None
        return Target(Address(self.host, port), transport, name)

    def connect(self, transport: Transport = Transport.UDP, **options: Any) -> Any:
        options = {"username": "user", "password": "pass", "timeout": 10} | options
        tls = ClientTls(self.certificate)
        return turn.connect(self.target(transport), tls=tls, **options)


@contextmanager
def coturn(program: str, folder: Path, *options: str, host: str = HOST) -> Iterator[Coturn]:
    """Run coturn until the block ends."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    probes = socket.socket(family), socket.socket(family)
    for probe in probes:
        probe.bind((host, 0))
    port, tls_port = (probe.getsockname()[1] for probe in probes)
    for probe in probes:
        probe.close()
    certificate = write_self_signed(folder / "certificate.pem", NAME)
    command = (
        f"{program} -n --no-cli --log-file stdout --simple-log -L {host} -r example.org"
        f" -p {port} --tls-listening-port {tls_port} --cert {certificate} --pkey {certificate}"
        f" --allow-loopback-peers --pidfile {folder / 'pid'} --userdb {folder / 'db'}"
    )
    log = (folder / "log").open("wb")
    process = subprocess.Popen([*command.split(), *options], stdout=log, stderr=log)
    try:
        for _ in range(200):
            assert process.poll() is None, (folder / "log").read_text()
            try:
                for each in (port, tls_port):
                    socket.create_connection((host, each), 1).close()
                # It listens for UDP a moment later than for TCP.
                with socket.socket(family, socket.SOCK_DGRAM) as probe:
                    probe.settimeout(1)
                    probe.connect((host, port))
                    probe.send(encode(Message.request(Method.BINDING, bytes(12))))
                    probe.recv(2048)
                break
            except OSError:
                time.sleep(0.05)
        yield Coturn(host, port, tls_port, certificate)
    finally:
        process.terminate()
        process.wait(10)
        log.close()


@pytest.fixture(scope="module")
def server(
    require_peer: Callable[..., str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Coturn]:
    """coturn that knows a user, and whose nonces are stale after two seconds."""
    program = require_peer("turnserver", "coturn")
    options = ("--lt-cred-mech", "-u", "user:pass", "--mobility", "--stale-nonce=2")
    with coturn(program, tmp_path_factory.mktemp("coturn"), *options) as running:
        yield running


class Echo(asyncio.DatagramProtocol):
    """A peer that returns what it gets, in capitals."""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, source: Any) -> None:
        self.transport.sendto(data.upper(), source)


@asynccontextmanager
async def echo(host: str = HOST) -> AsyncIterator[Address]:
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(Echo, local_addr=(host, 0))
    try:
        yield Address(*transport.get_extra_info("sockname")[:2])
    finally:
        transport.close()
        await asyncio.sleep(0)


async def said(relay: turn.Relay, peer: Address, words: Sequence[bytes]) -> list[bytes]:
    """Say each word to an echo and return what came back."""
    answers = []
    for word in words:
        relay.send(word, peer)
        async with asyncio.timeout(5):
            data, source = await relay.recv()
        assert source == peer
        answers.append(data)
    return answers


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_datagrams(server: Coturn, transport: Transport) -> None:
    async def talk() -> None:
        async with echo() as peer, server.connect(transport) as relay:
            assert relay.relayed_address.host == HOST
            assert relay.mapped_address.host == HOST
            assert relay.lifetime == 600
            # The first goes in a Send indication that waits for its permission, and after some
            # more there is a channel.  The lengths need all kinds of padding.
            words = [b"a" * length for length in (1, 2, 3, 4, 5, 1200, 17, 18)]
            assert await said(relay, peer, words) == [word.upper() for word in words]
            channel = await relay.bind(peer)
            assert 0x4000 <= channel <= 0x4FFF
            assert await said(relay, peer, [b"through a channel"]) == [b"THROUGH A CHANNEL"]
            dropped = {k: v for k, v in relay.counters.items() if "drop" in k or "not" in k}
            assert dropped == {}

    asyncio.run(talk())


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_wrong_password(server: Coturn, transport: Transport) -> None:
    async def talk() -> None:
        with pytest.raises(NotAuthenticated, match="check the username and the password"):
            await server.connect(transport, password="wrong")

    asyncio.run(talk())


def test_a_uri_is_looked_up(server: Coturn) -> None:
    async def talk() -> None:
        uri = f"turn:{HOST}:{server.port}?transport=tcp"
        async with turn.connect(uri, username="user", password="pass") as relay:
            assert relay.server == server.target(Transport.TCP)

    asyncio.run(talk())


@pytest.mark.parametrize("transport", [Transport.TLS, Transport.DTLS])
def test_a_certificate_that_nobody_knows(server: Coturn, transport: Transport) -> None:
    async def talk() -> None:
        with pytest.raises(turn.ServerUnreachable, match="self-signed"):
            await turn.connect(
                server.target(transport), username="user", password="pass", tls=ClientTls()
            )

    asyncio.run(talk())


def test_stale_nonces(server: Coturn) -> None:
    async def talk() -> None:
        async with echo() as peer, server.connect() as relay:
            await relay.permit(peer)
            await asyncio.sleep(2.5)
            assert await relay.refresh(700) in range(600, 701)
            await relay.bind(peer)
            assert await said(relay, peer, [b"still here"]) == [b"STILL HERE"]

    asyncio.run(talk())


def test_an_even_port_and_its_neighbour(server: Coturn) -> None:
    async def talk() -> None:
        async with server.connect(even_port=True, reserve_next=True) as first:
            assert first.relayed_address.port % 2 == 0
            token = first.reservation_token
            assert token is not None
            async with server.connect(reservation_token=token) as second:
                assert second.relayed_address.port == first.relayed_address.port + 1

    asyncio.run(talk())


def test_dont_fragment(server: Coturn) -> None:
    async def talk() -> None:
        async with echo() as peer, server.connect(dont_fragment=True) as relay:
            await relay.permit(peer)
            relay.send(b"whole", peer, dont_fragment=True)
            assert (await relay.recv())[0] == b"WHOLE"

    asyncio.run(talk())


@pytest.mark.parametrize("family", [4, 6, "dual"])
def test_address_families(require_peer: Callable[..., str], tmp_path: Path, family: Any) -> None:
    program = require_peer("turnserver", "coturn")
    options = ("--lt-cred-mech", "-u", "user:pass", "-L", "::1")

    async def talk(server: Coturn) -> None:
        async with server.connect(family=family) as relay:
            hosts = [address.host for address in relay.relayed_addresses]
            wanted = {4: [HOST], 6: ["::1"], "dual": [HOST, "::1"]}[family]
            assert sorted(hosts) == sorted(wanted)
            for host in wanted:
                async with echo(host) as peer:
                    assert await said(relay, peer, [b"hello"]) == [b"HELLO"]

    with coturn(program, tmp_path, *options) as running:
        asyncio.run(talk(running))


def test_mobility(server: Coturn) -> None:
    async def talk() -> None:
        async with echo() as peer, server.connect(mobility=True) as relay:
            assert relay.allocation.mobile
            await relay.bind(peer)
            before = relay.relayed_address
            # coturn's first answer to a ticket is a fragment of a message, and is dropped; its
            # answer to the retransmission is good.  Over TCP the fragment would break the stream.
            assert await relay.move() != relay.allocation.local
            assert await said(relay, peer, [b"moved", b"on"]) == [b"MOVED", b"ON"]
            assert relay.relayed_address == before
            assert await relay.refresh() == 600

    asyncio.run(talk())


def test_a_quota(require_peer: Callable[..., str], tmp_path: Path) -> None:
    program = require_peer("turnserver", "coturn")

    async def talk(server: Coturn) -> None:
        async with server.connect():
            with pytest.raises(QuotaReached, match="wait a minute"):
                await server.connect()

    options = ("--lt-cred-mech", "-u", "user:pass", "--user-quota=1")
    with coturn(program, tmp_path, *options) as running:
        asyncio.run(talk(running))


def test_time_limited_credentials(require_peer: Callable[..., str], tmp_path: Path) -> None:
    program = require_peer("turnserver", "coturn")

    async def talk(server: Coturn) -> None:
        for expires, good in ((time.time() + 60, True), (time.time() - 60, False)):
            credentials = rest_credentials(SECRET, int(expires), "me")
            given = {"username": None, "password": None, "credentials": credentials}
            if good:
                async with server.connect(**given) as relay:
                    assert relay.lifetime > 0
            else:
                with pytest.raises(NotAuthenticated):
                    await server.connect(**given)

    options = ("--use-auth-secret", f"--static-auth-secret={SECRET}")
    with coturn(program, tmp_path, *options) as running:
        asyncio.run(talk(running))


def test_another_server(require_peer: Callable[..., str], tmp_path: Path) -> None:
    program = require_peer("turnserver", "coturn")
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    users = ("--lt-cred-mech", "-u", "user:pass")
    events: list[ClientEvent] = []

    async def talk(server: Coturn, other: Coturn) -> None:
        async with server.connect(on_event=events.append) as relay:
            assert relay.server == other.target(Transport.UDP)

    with coturn(program, tmp_path / "b", *users) as other:
        alternate = f"--alternate-server={HOST}:{other.port}"
        with coturn(program, tmp_path / "a", *users, alternate) as server:
            asyncio.run(talk(server, other))
    assert any(isinstance(event, Redirected) for event in events)


# RFC 6062. ----------------------------------------------------------------------------------------


@asynccontextmanager
async def tcp_echo() -> AsyncIterator[Address]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(4096):
            writer.write(data.upper())
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, HOST, 0)
    try:
        yield Address(*server.sockets[0].getsockname()[:2])
    finally:
        server.close()
        await server.wait_closed()


@pytest.mark.parametrize("transport", [Transport.TCP, Transport.TLS])
def test_connections(server: Coturn, transport: Transport) -> None:
    async def talk() -> None:
        async with tcp_echo() as peer, server.connect(transport, protocol="tcp") as relay:
            reader, writer = await relay.open_connection(peer)
            payload = os.urandom(200_000).replace(b"\n", b"") + b"\n"

            async def say() -> None:
                writer.write(payload)
                await writer.drain()

            saying = asyncio.create_task(say())
            async with asyncio.timeout(10):
                assert await reader.readexactly(len(payload)) == payload.upper()
            await saying
            assert writer.get_extra_info("peername") == peer
            writer.close()
            await writer.wait_closed()
            with pytest.raises(PeerNotReached, match="10 seconds"):
                await relay.open_connection((HOST, 1))

    asyncio.run(talk())


def test_connections_of_peers(server: Coturn) -> None:
    async def peer_says(relayed: Address) -> bytes:
        reader, writer = await asyncio.open_connection(*relayed)
        writer.write(b"knock\n")
        answer = await reader.readline()
        writer.close()
        await writer.wait_closed()
        return answer

    async def talk() -> None:
        async with server.connect(Transport.TCP, protocol="tcp") as relay:
            await relay.permit(HOST)
            peer = asyncio.create_task(peer_says(relay.relayed_address))
            async with asyncio.timeout(5):
                async for reader, writer, address in relay.accept():
                    assert address.host == HOST
                    assert await reader.readline() == b"knock\n"
                    writer.write(b"come in\n")
                    assert await peer == b"come in\n"
                    writer.close()
                    break

    asyncio.run(talk())


# The blocking relay. ------------------------------------------------------------------------------


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_blocking_datagrams(server: Coturn, transport: Transport) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as peer:
        peer.bind((HOST, 0))
        peer.settimeout(5)
        there = peer.getsockname()
        events: list[ClientEvent] = []
        with turn.blocking.connect(
            server.target(transport),
            username="user",
            password="pass",
            tls=ClientTls(server.certificate),
            on_event=events.append,
        ) as relay:
            relay.permit(there)
            for number in range(8):
                relay.send(b"%d" % number, there)
                data, source = peer.recvfrom(100)
                assert (data, source) == (b"%d" % number, tuple(relay.relayed_address))
                peer.sendto(data, relay.relayed_address)
                assert relay.recv(5) == (data, there)
            with pytest.raises(TimeoutError, match="nothing was received"):
                relay.recv(0.05)
            assert relay.refresh() == 600
        assert any(isinstance(event, Refreshed) for event in events)
        with pytest.raises(turn.RelayClosed):
            relay.recv(0)


def test_blocking_connections(server: Coturn) -> None:
    with socket.create_server((HOST, 0)) as listener:
        listener.settimeout(5)
        with turn.blocking.connect(
            server.target(Transport.TCP), username="user", password="pass", protocol="tcp"
        ) as relay:
            with relay.open_connection(listener.getsockname()) as stream:
                peer, _ = listener.accept()
                with peer:
                    stream.sendall(b"hello")
                    assert peer.recv(100) == b"hello"
                    peer.sendall(b"there")
                    assert stream.recv(100, 5) == b"there"
            relay.permit(HOST)
            with socket.create_connection(relay.relayed_address) as knocking:
                knocking.sendall(b"knock")
                with relay.accept(5) as stream:
                    assert stream.recv(100, 5) == b"knock"


def test_a_token_of_a_third_party(require_peer: Callable[..., str], tmp_path: Path) -> None:
    program = require_peer("turnserver", "coturn")
    kid, secret = "north", os.urandom(32)
    with sqlite3.connect(tmp_path / "db") as database:  # where coturn looks for its keys
        database.execute(
            "CREATE TABLE oauth_key (kid varchar(128) primary key, ikm_key varchar(256),"
            " timestamp bigint default 0, lifetime integer default 0, as_rs_alg varchar(64),"
            " realm varchar(127))"
        )
        row = (kid, base64.b64encode(secret).decode(), 0, 0, "A256GCM", "example.org")
        database.execute("INSERT INTO oauth_key VALUES (?, ?, ?, ?, ?, ?)", row)
    database.close()
    session_key = os.urandom(20)
    contents = Contents(session_key, timestamp_of(time.time()), 600)
    token = TokenKey(kid, secret).seal(contents, NAME, os.urandom(12))
    good = ThirdParty(kid, session_key, token)
    bad = ThirdParty(kid, os.urandom(20), token)

    async def talk(server: Coturn) -> None:
        given = {"username": None, "password": None}
        async with echo() as peer, server.connect(credentials=good, **given) as relay:
            await relay.bind(peer)
            assert await said(relay, peer, [b"hello"]) == [b"HELLO"]
            assert await relay.refresh() > 0
        with pytest.raises(StunError):
            await server.connect(credentials=bad, **given)

    options = ("--lt-cred-mech", "--oauth", f"--server-name={NAME}")
    with coturn(program, tmp_path, *options) as running:
        asyncio.run(talk(running))
