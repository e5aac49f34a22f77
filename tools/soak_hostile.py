"""What a soak does to the server beside honest clients, and what the server has to count for it.

Every kind of attack runs by itself, in the rhythm of the job.  What is sent with a sure fate
(:mod:`tools.soak_shots`) is tallied as ``must drop: <reason>``; the server's own counters are held
against it at the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import turn
from stun import attributes as attrs
from stun.codec import encode
from stun.discovery import Transport
from stun.errors import DropReason, StunError
from stun.framing import channel_data
from stun.message import Message
from stun.registry import Method
from stun.sansio import Address
from tools.bench.rawturn import RawTurn, Refused
from tools.soak_shots import Shots, fate, stream_fate, stream_fates
from tools.soak_worker import USERS, Job, Tally

ABORT: Final = struct.pack("ii", 1, 0)
"""SO_LINGER: a close is a reset."""
DTLS_HELLO: Final = bytes.fromhex("16feff0000000000000000")


class Hostile:
    """The attacks."""

    def __init__(self, job: Job, tally: Tally, rng: random.Random, stopping: asyncio.Event) -> None:
        self._job = job
        self._tally = tally
        self._rng = rng
        self._stopping = stopping
        self._shots = Shots(rng, Path(job.corpus) if job.corpus else None)
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._tls.check_hostname = False
        self._tls.verify_mode = ssl.CERT_NONE

    async def run(self) -> None:
        """Attack until the end."""
        pace = self._job.pace
        attacks: tuple[tuple[Callable[[], Awaitable[None]], float, int], ...] = (
            # What, seconds between two of one kind, and how many at a time.
            (self.datagrams, 0.1, 1),
            (self.flood, 4, 1),
            (self.peers, 0.5, 1),
            (self.broken_stream, 0.7, 2),
            (self.half_a_message, 0.7, 2),
            (self.slowly, 1, 6),
            (self.tls, 1, 1),
            (self.dtls, 0.5, 1),
            (self.wrong_password, 2, 1),
            (self.rude, 0.7, 3),
        )
        await asyncio.gather(
            *(
                self._again(attack, seconds * pace)
                for attack, seconds, number in attacks
                for _ in range(number)
            )
        )

    async def _again(self, attack: Callable[[], Awaitable[None]], seconds: float) -> None:
        while not self._stopping.is_set():
            await self._rest(self._rng.expovariate(1 / seconds))
            if self._stopping.is_set():
                return
            self._tally.counts[f"attacks: {attack.__name__}"] += 1
            try:
                await attack()
            except (OSError, StunError, asyncio.IncompleteReadError):
                # The server is free to hang up on any of these.
                self._tally.counts["attacks that were cut off"] += 1

    async def _rest(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()

    # Where from. ----------------------------------------------------------------------------------

    def _source(self) -> str:
        # From prefixes that no honest client is in.
        return f"127.66.{self._rng.randrange(20)}.{self._rng.randrange(1, 21)}"

    def _socket(self, kind: socket.SocketKind, *, ipv6: bool = False) -> socket.socket:
        sock = socket.socket(socket.AF_INET6 if ipv6 else socket.AF_INET, kind)
        sock.setblocking(False)
        sock.bind(("::1" if ipv6 else self._source(), 0))
        return sock

    @asynccontextmanager
    async def _stream(
        self, *, secure: bool = False
    ) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter, socket.socket]]:
        ipv6 = self._rng.random() < 0.2
        sock = self._socket(socket.SOCK_STREAM, ipv6=ipv6)
        port = self._job.tls_port if secure else self._job.port
        loop = asyncio.get_running_loop()
        try:
            await loop.sock_connect(sock, ("::1" if ipv6 else "127.0.0.1", port))
        except OSError:
            sock.close()
            raise
        reader, writer = await asyncio.open_connection(sock=sock)
        try:
            yield reader, writer, sock
        finally:
            writer.transport.abort()

    # Datagrams. -----------------------------------------------------------------------------------

    async def datagrams(self) -> None:
        """Send malformed messages and requests without proof."""
        rng = self._rng
        ipv6 = rng.random() < 0.2
        host = "::1" if ipv6 else "127.0.0.1"
        with self._socket(socket.SOCK_DGRAM, ipv6=ipv6) as sock:
            for _ in range(rng.randrange(1, 40)):
                # Honest clients share the one address that IPv6 has here, the octets that a prefix
                # may be answered, and, with those who vanished, the ports: only what draws no
                # answer in any case comes from there.
                octets = self._shots.dropped() if ipv6 else self._shots.any()
                sock.sendto(octets, (host, self._job.port))
                self._tally.counts["datagrams sent"] += 1
                must_drop(self._tally, fate(octets))

    async def flood(self) -> None:
        """Send requests from one source, faster than it may be answered."""
        with self._socket(socket.SOCK_DGRAM) as sock:
            for at in range(600):
                octets = self._shots.allocate() if at % 2 else self._shots.message()
                sock.sendto(octets, ("127.0.0.1", self._job.port))
                must_drop(self._tally, fate(octets))
                if at % 20 == 0:
                    await asyncio.sleep(0.005)
            self._tally.counts["datagrams sent"] += 600

    async def peers(self) -> None:
        """Send datagrams to relayed addresses, whoever has them, without a permission."""
        low, high = self._job.relay_ports
        with self._socket(socket.SOCK_DGRAM) as sock:
            for _ in range(20):
                with contextlib.suppress(ConnectionError):
                    port = self._rng.randrange(low, high + 1)
                    sock.sendto(self._shots.any(), ("127.0.0.1", port))

    async def dtls(self) -> None:
        """Send what looks like DTLS."""
        rng = self._rng
        with self._socket(socket.SOCK_DGRAM) as sock:
            for port in (self._job.port, self._job.tls_port):
                sock.sendto(bytes([rng.randrange(20, 64)]), ("127.0.0.1", port))
                sock.sendto(DTLS_HELLO + rng.randbytes(rng.randrange(200)), ("127.0.0.1", port))
                hello = _client_hello(rng)
                for _ in range(3):
                    sock.sendto(hello, ("127.0.0.1", port))
                sock.sendto(hello[: rng.randrange(1, len(hello))], ("127.0.0.1", port))
            # On the port for DTLS only.
            sock.sendto(self._shots.message(), ("127.0.0.1", self._job.tls_port))

    # Streams. -------------------------------------------------------------------------------------

    async def broken_stream(self) -> None:
        """Break the framing of a connection; the server has to close it."""
        octets = self._shots.broken_stream()
        fates, _ = stream_fates(octets)
        async with self._stream() as (reader, writer, _):
            try:
                async with asyncio.timeout(20):
                    await self._in_pieces(writer, octets)
                    while await reader.read(4096):
                        pass
            except ConnectionError:
                pass  # closed by the server before it had read all that it did not want
            except TimeoutError:
                self._tally.failed(f"a stream that breaks its framing stays open: {octets.hex()}")
                return
        for reason, times in fates.items():
            must_drop(self._tally, reason, times)

    async def _in_pieces(self, writer: asyncio.StreamWriter, octets: bytes) -> None:
        at = 0
        while at < len(octets):
            size = self._rng.choice((1, 7, 4096))
            writer.write(octets[at : at + size])
            await writer.drain()
            at += size
            await asyncio.sleep(0.002)

    async def half_a_message(self) -> None:
        """Begin a message and close, reset, or say nothing more."""
        rng = self._rng
        async with self._stream() as (reader, writer, sock):
            for _ in range(rng.randrange(3)):
                octets = self._shots.message()
                writer.write(octets)
                async with asyncio.timeout(15):
                    await reader.read(4096)
                must_drop(self._tally, stream_fate(octets))
            writer.write(self._shots.half())
            await writer.drain()
            end = rng.randrange(4)
            if end == 0:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABORT)
            elif end == 1:
                await self._rest(rng.uniform(0, 15))
            elif end == 2:
                writer.write_eof()
                await self._rest(1)

    async def slowly(self) -> None:
        """Keep connections busy with very little: none of them may stay for long."""
        rng = self._rng
        secure = rng.random() < 0.5
        octets = b"" if rng.random() < 0.2 else self._shots.allocate()
        if secure:
            octets = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + rng.randbytes(500)
        async with self._stream(secure=secure) as (reader, writer, _):
            for at in range(len(octets) or 60):
                writer.write(octets[at : at + 1])
                await writer.drain()
                await self._rest(1)
                if reader.at_eof() or self._stopping.is_set():
                    break

    async def tls(self) -> None:
        """Shake hands and send garbage, or leave in the middle of it."""
        rng = self._rng
        async with self._stream(secure=True) as (reader, writer, _):
            if rng.random() < 0.4:
                writer.write(rng.choice((rng.randbytes(100), b"\x16\x03\x01\x00\x05" + bytes(9))))
                async with asyncio.timeout(15):
                    await reader.read(100)
                return
            await writer.start_tls(self._tls)
            octets = self._shots.broken_stream()
            fates, _ = stream_fates(octets)
            async with asyncio.timeout(20):
                with contextlib.suppress(ConnectionError, ssl.SSLError):
                    writer.write(octets)
                    while await reader.read(4096):
                        pass
            for reason, times in fates.items():
                must_drop(self._tally, reason, times)

    # Those who know a password, or pretend to. ----------------------------------------------------

    async def wrong_password(self) -> None:
        """Come with credentials that are not good."""
        rng = self._rng
        user = rng.choice((*USERS, "nobody", "x" * 500))
        transport = rng.choice((*Transport,))
        local = Address(self._source(), 0)
        target = self._job.target(transport, ipv6=False)
        try:
            relay = await turn.connect(
                target, username=user, password="wrong", local=local, tls=self._job.tls()
            )
        except turn.NotAuthenticated:
            return
        self._tally.failed(f"{relay.relayed_address} given to {user} with a wrong password")
        await relay.aclose()

    async def rude(self) -> None:
        """Have an allocation, ask for what is not allowed, and vanish."""
        # A tally of its own, since it is in another thread.
        tally = Tally()
        try:
            await asyncio.to_thread(self._rude, random.Random(self._rng.random()), tally)
        finally:
            self._tally.counts.update(tally.counts)
            self._tally.failures += tally.failures

    def _rude(self, rng: random.Random, tally: Tally) -> None:
        transport = rng.choice(("udp", "tcp", "tls"))
        port = self._job.tls_port if transport == "tls" else self._job.port
        client = RawTurn(Address("127.0.0.1", port), transport, patience=5)
        try:
            try:
                client.allocate(lifetime=1)
            except Refused as refusal:
                if transport != "udp" or "437" not in str(refusal):
                    raise
                # From the port of one that vanished a moment ago, whose allocation lives on.
                return
            self._misbehave(client, rng, tally)
            self._vanish(client, rng)
        except Refused as refusal:
            tally.failed(f"a rude client over {transport}: {refusal}")
        finally:
            client.close()

    def _misbehave(self, client: RawTurn, rng: random.Random, tally: Tally) -> None:
        echo = rng.choice(self._job.peers(ipv6=False))
        client.bind(0x4001, echo)
        pad = client.transport != "udp"
        for _ in range(rng.randrange(4)):
            client.sock.sendall(channel_data(0x4002, rng.randbytes(30), pad=pad))
            must_drop(tally, DropReason.NO_CHANNEL)
        stranger = Address("192.175.48.20", 7)
        indication = Message.indication(Method.SEND, rng.randbytes(12))
        client.sock.sendall(
            encode(indication.add(attrs.XOR_PEER_ADDRESS, stranger).add(attrs.DATA, b"unasked"))
        )
        forbidden = Message.request(Method.CREATE_PERMISSION, bytes(12))
        forbidden.add(attrs.XOR_PEER_ADDRESS, Address("10.1.2.3", 7))
        channel = Message.request(Method.CHANNEL_BIND, bytes(12))
        channel.add(attrs.CHANNEL_NUMBER, 0x7FFF).add(attrs.XOR_PEER_ADDRESS, echo)
        twice = Message.request(Method.ALLOCATE, bytes(12)).add(attrs.REQUESTED_TRANSPORT, 17)
        unknown = Message.request(Method.REFRESH, bytes(12))
        unknown.attributes.append((0x7ABC, b"what"))
        for request, code in ((forbidden, 403), (channel, 400), (twice, 437), (unknown, 420)):
            try:
                client.request(request)
            except Refused as refusal:
                if str(code) not in str(refusal):
                    tally.failed(f"instead of {code}: {refusal}")
            else:
                tally.failed(f"{request} was granted, instead of {code}")

    def _vanish(self, client: RawTurn, rng: random.Random) -> None:
        end = rng.randrange(4)
        if end == 0:
            client.delete()
        elif end == 1 and client.transport != "udp":
            client.sock.sendall(self._shots.half())
        elif end == 2 and client.transport != "udp":
            client.sock.sendall(b"\x40\x01\x04\x00 half of what was announced")
            client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABORT)
        elif end == 3:
            # An answer to what is on its way finds nobody.
            client.sock.sendall(channel_data(0x4001, bytes(20), pad=True))


def must_drop(tally: Tally, reason: DropReason | None, times: int = 1) -> None:
    """Take note of what the server has to count."""
    if reason is not None:
        tally.counts[f"must drop: {reason.name.lower()}"] += times


def _client_hello(rng: random.Random) -> bytes:
    """Make a ClientHello of DTLS 1.2 (RFC 6347 section 4.2.2) from a client that never answers."""
    body = b"\xfe\xfd" + rng.randbytes(32) + b"\x00\x00" + b"\x00\x02\xc0\x2b" + b"\x01\x00"
    body += bytes(2)
    length = len(body).to_bytes(3)
    message = b"\x01" + length + bytes(2) + bytes(3) + length + body
    return b"\x16\xfe\xff" + bytes(8) + len(message).to_bytes(2) + message


async def body(job: Job, tally: Tally, rng: random.Random, stopping: asyncio.Event) -> None:
    """Run the attacks of a job."""
    await Hostile(job, tally, rng, stopping).run()
