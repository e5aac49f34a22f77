"""The honest clients of a soak: they come, talk to peers that echo, and give their allocation back.

What is sent must come back unchanged.  Datagrams may be lost, even on loopback, so one that has not
come back is sent again, and only its third loss is a failure.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Sequence
from contextlib import AsyncExitStack
from itertools import count
from typing import Any, Final

import turn
from stun.discovery import Transport
from stun.errors import StunError
from stun.sansio import Address
from tools.soak_worker import PASSWORD, USERS, Job, Tally

ATTEMPTS: Final = 3
PATIENCE: Final = 4.0
"""Seconds that an echo may take, on a machine that has other things to do."""
PREFIXES: Final = 50
"""Networks that honest clients come from: 127.10.0.0/24 and so on."""
HOSTS: Final = 20
"""Addresses in each.  There are a thousand in all, so that whatever the server keeps by address, in
tables of some thousand entries, it has soon kept for all of them."""
SIZES: Final = (8, 9, 10, 11, 60, 160, 160, 1200, 1400)
BURST: Final = 48
"""Datagrams at once now and then: enough for a flow to get a socket of its own in the server."""

_serials = count()


class Echoes:
    """Sends to peers and compares what comes back."""

    def __init__(self, relay: turn.Relay, rng: random.Random, tally: Tally) -> None:
        self._relay = relay
        self._rng = rng
        self._tally = tally
        self._said: set[tuple[bytes, Address]] = set()

    def word(self) -> bytes:
        """Make octets that nobody else says."""
        size = self._rng.choice(SIZES)
        return next(_serials).to_bytes(8) + self._rng.randbytes(size - 8)

    async def exchange(self, number: int, peer: Address, **options: Any) -> None:
        """Say ``number`` words to a peer and wait for all of them."""
        words = {self.word() for _ in range(number)}
        self._said.update((word, peer) for word in words)
        for attempt in range(ATTEMPTS):
            if attempt:
                self._tally.counts["echoes that were lost or late"] += len(words)
            for word in words:
                self._relay.send(word, peer, **options)
            await self._relay.drain()
            try:
                async with asyncio.timeout(PATIENCE):
                    while words:
                        words.discard(await self.hear())
            except TimeoutError:
                continue
            self._tally.counts["echoes"] += number
            return
        self._tally.failed(f"{len(words)} of {number} datagrams to {peer} never came back")

    async def hear(self) -> bytes:
        """Return the next datagram, after a look at whether it is one that was said."""
        data, source = await self._relay.recv()
        if (data, source) not in self._said:
            self._tally.failed(f"{len(data)} octets from {source} are not what was said to it")
        return data


class Client:
    """One client after another, in one place."""

    def __init__(self, job: Job, tally: Tally, rng: random.Random, place: int) -> None:
        self._job = job
        self._tally = tally
        self._rng = rng
        self._place = place
        self._tls = job.tls()

    async def live(self, stopping: asyncio.Event) -> None:
        """Come and go until the end."""
        rng, loop = self._rng, asyncio.get_running_loop()
        await _rest(rng.random() * min(self._job.longest, 10), stopping)
        while not stopping.is_set():
            stay = rng.uniform(0.02, 1) * self._job.longest
            if rng.random() < 0.1:
                stay *= 5
            kind = rng.choice(
                (self._datagrams,) * 7 + (self._connections,) * 2 + (self._each_other,)
            )
            self._tally.counts["clients that came"] += 1
            try:
                await kind(loop.time() + stay, stopping)
            except (StunError, OSError, asyncio.IncompleteReadError, TimeoutError) as error:
                self._tally.failed(f"{kind.__name__}: {type(error).__name__}: {error}")
            else:
                self._tally.counts["clients that left"] += 1
            await _rest(rng.expovariate(1 / self._job.pace), stopping)

    def _connect(self, transport: Transport, *, ipv6: bool, **options: Any) -> Any:
        rng = self._rng
        if not ipv6:
            options.setdefault("local", Address(self._host(), 0))
        if rng.random() < 0.2:
            options.setdefault("lifetime", rng.choice(self._job.lifetimes))
        self._tally.counts[f"allocations over {transport.value}"] += 1
        return turn.connect(
            self._job.target(transport, ipv6=ipv6),
            username=rng.choice(USERS),
            password=PASSWORD,
            tls=self._tls,
            timeout=30,
            **options,
        )

    def _host(self) -> str:
        # By prefix, as the server's budgets for strangers are.
        return f"127.10.{self._place % PREFIXES}.{self._rng.randrange(1, HOSTS + 1)}"

    def _transport(self) -> Transport:
        common = (Transport.UDP, Transport.UDP, Transport.TCP)
        return self._rng.choice((*common, Transport.TLS, Transport.DTLS))

    # What clients do. -----------------------------------------------------------------------------

    async def _datagrams(self, end: float, stopping: asyncio.Event) -> None:
        rng, job = self._rng, self._job
        transport, ipv6 = self._transport(), rng.random() < 0.15
        options: dict[str, Any] = rng.choice(
            (
                {},
                {},
                {"family": "dual"},
                {"family": 6},
                {"even_port": True},
                {"even_port": True, "reserve_next": True},
                {"mobility": True},
                {"dont_fragment": True},
                {"bind_after": 0},
            )
        )
        async with AsyncExitStack() as stack:
            relay = await stack.enter_async_context(self._connect(transport, ipv6=ipv6, **options))
            if relay.reservation_token is not None and (not job.reserve or rng.random() < 0.7):
                # The next port; its allocation must be another client's.
                await stack.enter_async_context(
                    self._connect(transport, ipv6=ipv6, reservation_token=relay.reservation_token)
                )
            families = {address.is_ipv6 for address in relay.relayed_addresses}
            peers = [peer for family in families for peer in job.peers(ipv6=family)]
            echoes = Echoes(relay, rng, self._tally)
            if rng.random() < 0.3:
                await relay.bind(rng.choice(peers))
            said = {"dont_fragment": True} if "dont_fragment" in options else {}
            async for _ in self._sentences(end, stopping):
                number, peer = rng.choice((1, 1, 1, 4)), rng.choice(peers)
                if rng.random() < 0.03:
                    # The client keeps few datagrams that wait for a permission.
                    number = BURST
                    await relay.permit(peer)
                await echoes.exchange(number, peer, **said)
                if "mobility" in options and not ipv6 and rng.random() < 0.2:
                    await relay.move((self._host(), 0))
                    self._tally.counts["moves"] += 1
                elif rng.random() < 0.02:
                    await relay.refresh()

    async def _connections(self, end: float, stopping: asyncio.Event) -> None:
        rng, job = self._rng, self._job
        transport = rng.choice((Transport.TCP, Transport.TLS))
        ipv6 = rng.random() < 0.15
        family = 6 if rng.random() < 0.2 else None
        relay: turn.Relay
        async with self._connect(transport, ipv6=ipv6, protocol="tcp", family=family) as relay:
            peer = rng.choice(job.peers(ipv6=family == 6, tcp=True))
            async for _ in self._sentences(end, stopping):
                if rng.random() < 0.7:
                    # 446 where one to this peer is open; the server may still be at closing it.
                    await self._stream(*await relay.open_connection(peer))
                else:
                    await self._called(relay)
                if rng.random() < 0.5:
                    break

    async def _called(self, relay: turn.Relay) -> None:
        """Have a peer open a connection to the relayed address."""
        address = relay.relayed_address
        await relay.permit(address.host)
        caller = asyncio.create_task(self._call(address))
        try:
            async with asyncio.timeout(10):
                async for reader, writer, _ in relay.accept():
                    await self._echo_back(reader, writer)
                    break
            await caller
        finally:
            caller.cancel()

    async def _call(self, address: Address) -> None:
        await self._stream(*await asyncio.open_connection(*address))

    async def _echo_back(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while octets := await reader.read(1 << 16):
            writer.write(octets)
            await writer.drain()
        writer.close()

    async def _stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Send octets to an echo, more than the buffers between hold, and compare."""
        size = self._rng.choice((10, 1000, 50_000, 300_000))
        sent, heard = self._rng.randbytes(size), hashlib.sha256()
        sender = asyncio.create_task(_pour(writer, sent))
        try:
            async with asyncio.timeout(20):
                left = size
                while left and (octets := await reader.read(min(left, 1 << 16))):
                    heard.update(octets)
                    left -= len(octets)
                await sender
        finally:
            sender.cancel()
            writer.close()
        if left or heard.digest() != hashlib.sha256(sent).digest():
            self._tally.failed(f"of {size} octets on a stream {left} did not come, or others did")
        else:
            self._tally.counts["streams"] += 1
            self._tally.counts["octets on streams"] += size

    async def _each_other(self, end: float, stopping: asyncio.Event) -> None:
        """Two clients who talk to one another's relayed addresses."""
        rng = self._rng
        ipv6 = rng.random() < 0.15
        async with (
            self._connect(self._transport(), ipv6=ipv6) as one,
            self._connect(self._transport(), ipv6=ipv6) as other,
        ):
            await one.permit(other.relayed_address)
            await other.permit(one.relayed_address)
            echo = asyncio.create_task(_repeat(other))
            try:
                echoes = Echoes(one, rng, self._tally)
                async for _ in self._sentences(end, stopping):
                    await echoes.exchange(rng.choice((1, 4)), other.relayed_address)
            finally:
                echo.cancel()

    async def _sentences(self, end: float, stopping: asyncio.Event) -> Any:
        """Yield once, and again in the rhythm of the job until the end."""
        loop = asyncio.get_running_loop()
        while True:
            yield
            await _rest(self._rng.uniform(0.5, 1.5) * self._job.pace, stopping)
            if loop.time() >= end or stopping.is_set():
                return


async def _repeat(relay: turn.Relay) -> None:
    async for data, source in relay:
        relay.send(data, source)


async def _pour(writer: asyncio.StreamWriter, octets: bytes) -> None:
    for at in range(0, len(octets), 1 << 14):
        writer.write(octets[at : at + (1 << 14)])
        await writer.drain()


async def _rest(seconds: float, stopping: asyncio.Event) -> None:
    try:
        async with asyncio.timeout(seconds):
            await stopping.wait()
    except TimeoutError:
        pass


async def body(job: Job, tally: Tally, rng: random.Random, stopping: asyncio.Event) -> None:
    """Run the clients of a job."""
    seeds: Sequence[float] = [rng.random() for _ in range(job.clients)]
    await asyncio.gather(
        *(
            Client(job, tally, random.Random(seed), place).live(stopping)
            for place, seed in enumerate(seeds)
        )
    )
