"""A process of a soak: told what to do in one line of JSON, tells how it goes in others.

A worker may be killed at any time, as some are on purpose.  So it reports what has happened since
its last line once a second, each line written whole.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from stun.discovery import Target, Transport
from stun.sansio import Address
from stun.tls import ClientTls

ROOT: Final = Path(__file__).resolve().parents[1]
REALM: Final = "relay.example"
USERS: Final = tuple(f"user{number}" for number in range(8))
PASSWORD: Final = "lather"
NAME: Final = REALM
"""What the server's certificate is for."""
LONGEST_WORDS: Final = 400
"""Characters of a failure that are told."""

Role = Literal["regular", "crashing", "hostile"]


@dataclass(frozen=True)
class Job:
    """What a worker is to do."""

    role: Role
    seed: str
    clients: int
    pace: float
    """Seconds between two sentences of a client, on average."""
    longest: float
    """Seconds that most clients stay at most; some stay five times as long."""
    port: int
    tls_port: int
    certificate: str
    relay_ports: tuple[int, int]
    udp_peers: list[tuple[str, int]]
    tcp_peers: list[tuple[str, int]]
    lifetimes: tuple[int, ...]
    """What clients ask for, in seconds, where they do not leave it to the server."""
    reserve: bool = True
    """Whether ports may be reserved that nobody comes for, which the server holds for 30 s."""
    corpus: str | None = None

    def target(self, transport: Transport, *, ipv6: bool) -> Target:
        """Return the server, over a transport."""
        port = self.tls_port if transport.is_secure else self.port
        host = "::1" if ipv6 else "127.0.0.1"
        return Target(Address(host, port), transport, NAME if transport.is_secure else None)

    def peers(self, *, ipv6: bool, tcp: bool = False) -> list[Address]:
        """Return the echo peers of a family."""
        found = self.tcp_peers if tcp else self.udp_peers
        return [Address(*peer) for peer in found if (":" in peer[0]) is ipv6]

    def tls(self) -> ClientTls:
        """Return what verifies the server."""
        return ClientTls(self.certificate)


@dataclass
class Tally:
    """What a worker has to tell since it last did."""

    counts: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def failed(self, words: str) -> None:
        """Take note of what must not happen."""
        self.counts["failures"] += 1
        self.failures.append(words[:LONGEST_WORDS])

    def tell(self) -> None:
        """Write it."""
        if self.counts:
            _write({"counts": self.counts})
        for words in self.failures:
            _write({"failure": words})
        self.counts = Counter()
        self.failures = []


def _write(told: dict[str, Any]) -> None:
    os.write(1, json.dumps(told).encode() + b"\n")


Body = Callable[[Job, Tally, random.Random, asyncio.Event], Awaitable[None]]
"""What a role does until the event is set."""


async def _work(body: Body, job: Job) -> None:
    tally, stopping = Tally(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)

    async def report() -> None:
        try:
            while True:
                await asyncio.sleep(1)
                tally.tell()
        except BrokenPipeError:  # nobody is left to tell
            stopping.set()

    reporter = asyncio.create_task(report())
    try:
        await body(job, tally, random.Random(job.seed), stopping)
    finally:
        reporter.cancel()
        with suppress(BrokenPipeError):
            tally.tell()


def main() -> None:
    """Do the job that standard input names."""
    job = Job(**json.loads(sys.stdin.readline()))
    # Whoever else uses this machine comes first, and so does the server.
    os.nice(5)
    if job.role == "hostile":
        from tools.soak_hostile import body
    else:
        from tools.soak_clients import body
    asyncio.run(_work(body, job))


class Worker:
    """A worker as the soak sees it."""

    def __init__(self, job: Job, heard: Callable[[dict[str, Any]], None]) -> None:
        self.job = job
        self._heard = heard
        self._process: asyncio.subprocess.Process | None = None
        self._listener: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start the process."""
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tools.soak_worker",
            cwd=ROOT,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asdict(self.job)).encode() + b"\n")
        await self._process.stdin.drain()
        self._process.stdin.close()
        self._listener = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            self._heard(json.loads(line))

    async def stop(self, patience: float = 30) -> int:
        """Let it finish what it is at; return its exit status."""
        return await self._end(signal.SIGTERM, patience)

    async def kill(self) -> None:
        """End it in the middle of whatever it does."""
        await self._end(signal.SIGKILL, 10)

    async def _end(self, number: signal.Signals, patience: float) -> int:
        process, listener = self._process, self._listener
        if process is None or listener is None:
            return 0
        if process.returncode is None:
            process.send_signal(number)
        try:
            async with asyncio.timeout(patience):
                status = await process.wait()
                await listener
        except TimeoutError:
            process.kill()
            status = await process.wait()
            await listener
        return status


if __name__ == "__main__":
    main()
