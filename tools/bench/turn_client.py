"""natkit's TURN client beside aioice's, through one coturn, in alternating rounds.

Each round keeps a window of datagrams on their way to an echo and back, over a channel.  What
counts is the client's CPU time a datagram (sent and received); the datagrams a second depend on the
relay and on how many cores there are.

    python -m tools.bench.turn_client [--rounds 6] [--size 160] [--seconds 2] [--window 64]
"""

from __future__ import annotations

import argparse
import asyncio
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HOST = "127.0.0.1"

ECHO = """
import socket
s = socket.socket(type=socket.SOCK_DGRAM)
s.bind(("127.0.0.1", 0))
print(s.getsockname()[1], flush=True)
while True:
    data, source = s.recvfrom(65535)
    s.sendto(data, source)
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


@contextmanager
def servers() -> Iterator[tuple[int, int]]:
    """Run coturn and an echo; their ports."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        command = (
            f"turnserver -n --no-cli --log-file {folder}/log --simple-log -L {HOST} -p {port}"
            f" --no-tls --no-dtls -r example.org --lt-cred-mech -u user:pass"
            f" --allow-loopback-peers --pidfile {folder}/pid --userdb {folder}/db"
        )
        relay = subprocess.Popen(
            command.split(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder
        )
        echo = subprocess.Popen([sys.executable, "-c", ECHO], stdout=subprocess.PIPE, text=True)
        try:
            assert echo.stdout is not None
            there = int(echo.stdout.readline())
            for _ in range(100):
                try:
                    socket.create_connection((HOST, port), 1).close()
                    break
                except OSError:
                    time.sleep(0.05)
            yield port, there
        finally:
            for process in (relay, echo):
                process.terminate()
                process.wait()
            if echo.stdout is not None:
                echo.stdout.close()
            assert Path(folder).exists()


async def natkit(port: int, echo: int, size: int, seconds: float, window: int) -> tuple[int, float]:
    import turn

    peer, payload = (HOST, echo), bytes(size)
    uri = f"turn:{HOST}:{port}?transport=udp"
    async with turn.connect(uri, username="user", password="pass") as relay:
        await relay.bind(peer)
        count, began, end = 0, time.process_time(), time.monotonic() + seconds
        for _ in range(window):
            relay.send(payload, peer)
        while time.monotonic() < end:
            try:
                async with asyncio.timeout(0.2):
                    await relay.recv()
            except TimeoutError:  # the window was lost; begin again
                for _ in range(window):
                    relay.send(payload, peer)
                continue
            count += 1
            relay.send(payload, peer)
            while relay.recv_nowait() is not None:
                count += 1
                relay.send(payload, peer)
        return count, time.process_time() - began


async def aioice(port: int, echo: int, size: int, seconds: float, window: int) -> tuple[int, float]:
    from aioice import turn

    peer, payload = (HOST, echo), bytes(size)

    first = asyncio.Event()

    class Client(asyncio.DatagramProtocol):
        count = 0

        def connection_made(self, transport: Any) -> None:
            self.transport = transport

        def datagram_received(self, _data: bytes, _source: Any) -> None:
            self.count += 1
            first.set()
            self.transport.sendto(payload, peer)

    transport, protocol = await turn.create_turn_endpoint(
        Client, server_addr=(HOST, port), username="user", password="pass"
    )
    try:
        transport.sendto(payload, peer)
        await first.wait()
        before, began = protocol.count, time.process_time()
        for _ in range(window - 1):
            transport.sendto(payload, peer)
        await asyncio.sleep(seconds)
        return protocol.count - before, time.process_time() - began
    finally:
        transport.close()
        await asyncio.sleep(0.2)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--rounds", type=int, default=6)
    options.add_argument("--size", type=int, default=160)
    options.add_argument("--seconds", type=float, default=2.0)
    options.add_argument("--window", type=int, default=64)
    given = options.parse_args()
    rates: dict[str, list[tuple[float, float]]] = {"natkit": [], "aioice": []}
    with servers() as (port, echo):
        for number in range(given.rounds + 1):
            for name, talk in (("natkit", natkit), ("aioice", aioice)):
                count, cpu = asyncio.run(talk(port, echo, given.size, given.seconds, given.window))
                if number:  # the first round warms up
                    rates[name].append((count / given.seconds, cpu / max(count, 1) * 1e6))
    for name, figures in rates.items():
        rate = statistics.median(figure[0] for figure in figures)
        cost = statistics.median(figure[1] for figure in figures)
        print(f"{name:8} {rate:9.0f} round trips/s   {cost:6.1f} us of client CPU each")


if __name__ == "__main__":
    main()
