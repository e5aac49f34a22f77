"""A soak of turnd: clients that come, talk and vanish, and malformed traffic beside them.

    python tools/soak.py [--seconds 600] [--clients 200] [--seed N] [--json FILE] [--corpus DIR]

turnd serves UDP, TCP, TLS and DTLS on both loopback addresses.  Most clients live in a process that
lets each finish (:mod:`tools.soak_clients`), the others in processes that are killed in the middle
of what they do and started again; attackers (:mod:`tools.soak_hostile`) do everything that is
wrong.  turnd reloads its configuration a few times meanwhile.  After the last client everything
must be as it was before the first (:mod:`tools.soak_report` says what that means).

The exit code is 0 if every check holds.  The load is that of about half a core.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import secrets
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rich.console import Console

from tools.soak_report import Findings, checks, render, to_json
from tools.soak_turnd import HOSTS, RELAY_PORTS, Turnd
from tools.soak_worker import Job, Role, Worker

INTERVAL: Final = 5.0
"""Seconds between two samples."""
SHORT: Final = 120
"""Seconds: in a shorter soak everything has shorter times."""
CRASHING: Final = 0.3
"""The part of the clients that end with their process."""
UDP_PEERS, TCP_PEERS = 3, 1
RELOADS: Final = 6


class _Echo(asyncio.DatagramProtocol):
    def connection_made(self, transport: Any) -> None:
        self._transport: asyncio.DatagramTransport = transport

    def datagram_received(self, data: bytes, source: Any) -> None:
        self._transport.sendto(data, source)

    def error_received(self, exc: Exception) -> None:
        """Do nothing: a relayed address that is gone, as many are meant to be."""


async def _echo_stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while octets := await reader.read(1 << 16):
            writer.write(octets)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


@asynccontextmanager
async def echo_peers() -> AsyncIterator[tuple[list[tuple[str, int]], list[tuple[str, int]]]]:
    """Have peers that say everything back; yields where, for UDP and for TCP."""
    loop = asyncio.get_running_loop()
    transports: list[asyncio.DatagramTransport] = []
    servers: list[asyncio.Server] = []
    try:
        for host in HOSTS:
            for _ in range(UDP_PEERS):
                transport, _ = await loop.create_datagram_endpoint(_Echo, local_addr=(host, 0))
                transports.append(transport)
            for _ in range(TCP_PEERS):
                servers.append(await asyncio.start_server(_echo_stream, host, 0))
        udp = [transport.get_extra_info("sockname")[:2] for transport in transports]
        tcp = [server.sockets[0].getsockname()[:2] for server in servers]
        yield udp, tcp
    finally:
        for transport in transports:
            transport.close()
        for server in servers:
            server.close()
        await asyncio.sleep(0)


class Soak:
    """One soak."""

    def __init__(
        self, seconds: float, clients: int, seed: int, *, corpus: Path | None, console: Console
    ) -> None:
        self.seconds = seconds
        self.found = Findings(seed, seconds, clients)
        self._rng = random.Random(seed)
        self._corpus = corpus
        self._console = console
        self._short = seconds < SHORT
        # Times of the server, in seconds: what vanishes must expire while the soak goes on.
        self._lifetime, self._idle = (4, 3) if self._short else (30, 15)
        self._numbers = iter(range(1 << 30))

    async def run(self) -> Findings:
        """Do everything; return what was seen."""
        found = self.found
        with tempfile.TemporaryDirectory(prefix="soak-") as place:
            turnd = Turnd(Path(place), lifetime=self._lifetime, idle=self._idle)
            await asyncio.to_thread(turnd.start)
            try:
                await asyncio.sleep(1)
                found.idle, _ = await asyncio.to_thread(turnd.sample)
                idle_descriptors = turnd.descriptors()
                async with echo_peers() as peers:
                    await self._traffic(turnd, *peers)
                await self._wait_for_the_end(turnd)
                left = turnd.descriptors()
                for descriptor in idle_descriptors:
                    if descriptor in left:
                        left.remove(descriptor)
                found.descriptors_left = left
                found.lost_in_the_kernel = turnd.lost_in_the_kernel()
            finally:
                found.status = await asyncio.to_thread(turnd.stop)
                found.read_log(turnd)
        return found

    def _job(
        self,
        role: Role,
        clients: int,
        turnd: Turnd,
        udp: list[tuple[str, int]],
        tcp: list[tuple[str, int]],
    ) -> Job:
        return Job(
            role=role,
            # By number: a worker that takes the place of another is not to do the same again.
            seed=f"{self.found.seed}/{role}/{next(self._numbers)}",
            clients=clients,
            pace=0.5 if self._short else 1.0,
            longest=4 if self._short else 30,
            port=turnd.port,
            tls_port=turnd.tls_port,
            certificate=str(turnd.certificate),
            relay_ports=RELAY_PORTS,
            udp_peers=udp,
            tcp_peers=tcp,
            lifetimes=(1, self._lifetime + 1, 2 * self._lifetime),
            reserve=not self._short,
            corpus=None if self._corpus is None else str(self._corpus),
        )

    def _heard(self, told: dict[str, Any]) -> None:
        self.found.tally.update(told.get("counts", {}))
        if "failure" in told:
            self.found.failures.append(told["failure"])
            self._console.print(f"[red]failure[/red]: {told['failure']}", highlight=False)

    # Traffic. -------------------------------------------------------------------------------------

    async def _traffic(
        self, turnd: Turnd, udp: list[tuple[str, int]], tcp: list[tuple[str, int]]
    ) -> None:
        crashing = round(self.found.clients * CRASHING)
        regular = self.found.clients - crashing
        end = time.monotonic() + self.seconds
        workers = [
            Worker(self._job("regular", regular, turnd, udp, tcp), self._heard),
            Worker(self._job("hostile", 0, turnd, udp, tcp), self._heard),
        ]
        # Two halves take turns, so that some of them are always there.
        crashes = [
            asyncio.create_task(self._crash_again(half, end, turnd, udp, tcp))
            for half in (crashing // 2, crashing - crashing // 2)
            if half
        ]
        reloads = asyncio.create_task(self._reload(turnd))
        try:
            for worker in workers:
                await worker.start()
            await self._watch(turnd, end)
            await asyncio.gather(*crashes)
        finally:
            reloads.cancel()
            for crash in crashes:
                crash.cancel()
            await asyncio.gather(*crashes, reloads, return_exceptions=True)
            self.found.worker_statuses += await asyncio.gather(
                *(worker.stop() for worker in workers)
            )

    async def _crash_again(
        self,
        clients: int,
        end: float,
        turnd: Turnd,
        udp: list[tuple[str, int]],
        tcp: list[tuple[str, int]],
    ) -> None:
        longest = 6.0 if self._short else 50.0
        while (left := end - time.monotonic()) > 1:
            worker = Worker(self._job("crashing", clients, turnd, udp, tcp), self._heard)
            await worker.start()
            try:
                await asyncio.sleep(min(left, longest * self._rng.uniform(0.4, 1)))
            finally:
                await worker.kill()
            self.found.tally["processes killed"] += 1

    async def _reload(self, turnd: Turnd) -> None:
        while True:
            await asyncio.sleep(self.seconds / (RELOADS + 1))
            turnd.reload()
            self.found.tally["reloads"] += 1

    async def _watch(self, turnd: Turnd, end: float) -> None:
        interval = min(INTERVAL, self.seconds / 12)
        while (left := end - time.monotonic()) > 0 and not turnd.has_ended:
            await asyncio.sleep(min(interval, left))
            sample, _ = await asyncio.to_thread(turnd.sample)
            self.found.samples.append(sample)
            self._console.print(
                f"{sample.second:6.1f} s  {sample.rss / (1 << 20):6.2f} MiB  "
                f"{sample.descriptors} descriptors  {sample.allocations} allocations  "
                f"{sample.permissions} permissions  {sample.channels} channels  "
                f"{sample.connections} connections  {sample.relayed} relayed  "
                f"{sample.dropped} dropped  {self.found.tally['echoes']} echoes  "
                f"{len(self.found.failures)} failures",
                highlight=False,
            )

    async def _wait_for_the_end(self, turnd: Turnd) -> None:
        """Wait until whatever was left behind has expired."""
        # The longest lifetime, or a reservation; then a connection without an allocation; a
        # handshake takes 10 s at most.
        patience = max(2 * self._lifetime, 30 if not self._short else 0) + self._idle + 12
        end = time.monotonic() + patience
        assert self.found.idle is not None
        idle = self.found.idle.descriptors
        while not turnd.has_ended:
            sample, metrics = await asyncio.to_thread(turnd.sample)
            self.found.end, self.found.metrics = sample, metrics
            gone = not (sample.allocations or sample.connections)
            if (gone and sample.descriptors - sample.spares <= idle) or time.monotonic() > end:
                return
            await asyncio.sleep(0.5)


def main() -> int:
    """Run a soak as the command line says."""
    parser = argparse.ArgumentParser(description="Let turnd live through ten minutes of clients.")
    parser.add_argument("--seconds", type=float, default=600, help="of traffic (600)")
    parser.add_argument("--clients", type=int, default=200, help="at once (200)")
    parser.add_argument("--seed", type=int, help="to do the same again")
    parser.add_argument("--json", type=Path, help="where to write the samples and the checks")
    parser.add_argument("--corpus", type=Path, help="a folder with octets to mutate")
    options = parser.parse_args()
    # Whoever ends this one early ends turnd and the workers with it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    console = Console(soft_wrap=True)
    seed = secrets.randbelow(1 << 32) if options.seed is None else options.seed
    console.print(f"seed {seed}: --seed {seed} does the same again", highlight=False)
    soak = Soak(options.seconds, options.clients, seed, corpus=options.corpus, console=console)
    found = asyncio.run(soak.run())
    render(found, console)
    if options.json is not None:
        options.json.write_text(json.dumps(to_json(found), indent=1) + "\n")
    return 0 if all(check.passed for check in checks(found)) else 1


if __name__ == "__main__":
    sys.exit(main())
