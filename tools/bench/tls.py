"""What TLS and DTLS cost a server here: CPU of the serving process, a client process beside it.

    python tools/bench/tls.py

Streams are read (``sink``) and echoed; datagrams are echoed.  Each figure is CPU time of the server
alone, so that a busy machine does not matter much.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import socket
import ssl
import tempfile
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stun import aio
from stun.blocking import Driver
from stun.sansio import (
    Accepted,
    Address,
    Arrived,
    Connected,
    Dial,
    Instant,
    Listen,
    Opened,
    OpenUdp,
    Output,
    Received,
    Security,
    SocketEvent,
    Transmit,
    Write,
)
from stun.tls import ClientTls, ServerTls
from tools.certificate import write_self_signed

NAME = "stun.example"
SECONDS = 4.0


class Server:
    """Counts what comes, and sends it back if so told."""

    def __init__(self, *, echoes: bool) -> None:
        local = Address("127.0.0.1", 0)
        self.queue: deque[Output] = deque(
            [Listen(1, local, security=Security.DETECT), OpenUdp(2, local, Security.DETECT)]
        )
        self.echoes = echoes
        self.opened: list[Address] = []
        self.accepted = self.octets = self.pieces = 0

    def receive(self, packet: Received, _: Instant) -> None:
        self.pieces += 1
        self.octets += len(packet.data)
        if self.echoes:
            self.queue.append(Transmit(packet.data, packet.source, packet.local))

    def on_socket(self, event: SocketEvent, _: Instant) -> None:
        if isinstance(event, Arrived):
            self.pieces += 1
            self.octets += len(event.data)
            if self.echoes:
                self.queue.append(Write(event.handle, event.data))
        elif isinstance(event, Accepted):
            self.accepted += 1
        elif isinstance(event, Opened):
            self.opened.append(event.local)

    def on_deadline(self, now: Instant) -> None: ...

    def poll(self) -> Output | None:
        return self.queue.popleft() if self.queue else None

    def deadline(self) -> Instant | None:
        return None


def serve(pipe: Any, certificate: Path, echoes: bool) -> None:
    """Serve until told to stop; say how much CPU that took."""
    import asyncio

    async def run() -> None:
        machine = Server(echoes=echoes)
        async with aio.Driver(machine, server_tls=ServerTls(certificate)) as driver:
            pipe.send(machine.opened)
            loop = asyncio.get_running_loop()
            stop = asyncio.Event()
            loop.add_reader(pipe.fileno(), stop.set)
            began = time.process_time()
            await stop.wait()
            spent = time.process_time() - began
            loop.remove_reader(pipe.fileno())
            assert driver
            pipe.send((spent, machine.accepted, machine.octets, machine.pieces))

    asyncio.run(run())


def measure(
    certificate: Path, client: Callable[[list[Address], ssl.SSLContext], None], *, echoes: bool
) -> tuple[float, int, int, int]:
    """Run a client against a server of its own process."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.Process(target=serve, args=(theirs, certificate, echoes))
    process.start()
    try:
        client(ours.recv(), ClientTls(certificate).streams)
        ours.send("stop")
        result: tuple[float, int, int, int] = ours.recv()
    finally:
        process.join()
    return result


def handshakes(version: ssl.TLSVersion) -> Callable[[list[Address], ssl.SSLContext], None]:
    def client(at: list[Address], context: ssl.SSLContext) -> None:
        context.maximum_version = version
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            with socket.create_connection(at[0]) as sock:
                tls = context.wrap_socket(sock, server_hostname=NAME)
                tls.sendall(b"x")
                with contextlib.suppress(OSError):
                    tls.unwrap()
                tls.close()

    return client


def bulk(encrypted: bool, size: int) -> Callable[[list[Address], ssl.SSLContext], None]:
    def client(at: list[Address], context: ssl.SSLContext) -> None:
        data = bytes(size)
        with socket.create_connection(at[0]) as plain:
            sock = context.wrap_socket(plain, server_hostname=NAME) if encrypted else plain
            end = time.monotonic() + SECONDS
            while time.monotonic() < end:
                sock.sendall(data)
            sock.close()

    return client


def ping(encrypted: bool, size: int) -> Callable[[list[Address], ssl.SSLContext], None]:
    def client(at: list[Address], context: ssl.SSLContext) -> None:
        data = bytes(size)
        with socket.create_connection(at[0]) as plain:
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock = context.wrap_socket(plain, server_hostname=NAME) if encrypted else plain
            end = time.monotonic() + SECONDS
            while time.monotonic() < end:
                sock.sendall(data)
                left = size
                while left:
                    left -= len(sock.recv(left))
            sock.close()

    return client


class DtlsClient(Server):
    """Keeps so many datagrams on their way and counts those that come back."""

    def __init__(self, to: Address, size: int, window: int) -> None:
        super().__init__(echoes=True)
        self.window = window
        self.data = bytes(size)
        self.queue = deque([Dial(1, Address("127.0.0.1", 0), to, NAME, datagrams=True)])

    def on_socket(self, event: SocketEvent, now: Instant) -> None:
        super().on_socket(event, now)
        if isinstance(event, Connected):
            self.queue.extend(Write(1, self.data) for _ in range(self.window))


def datagrams(certificate: Path, size: int) -> Callable[[list[Address], ssl.SSLContext], None]:
    def client(at: list[Address], _: ssl.SSLContext) -> None:
        machine = DtlsClient(at[1], size, 16)
        with Driver(machine, tls=ClientTls(certificate)) as driver:
            driver.run_until(lambda: False, SECONDS)

    return client


def dtls_handshakes(certificate: Path) -> Callable[[list[Address], ssl.SSLContext], None]:
    def client(at: list[Address], _: ssl.SSLContext) -> None:
        tls = ClientTls(certificate)
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            machine = DtlsClient(at[1], 1, 1)
            with Driver(machine, tls=tls) as driver:
                driver.run_until(lambda m=machine: m.pieces > 0, 2)  # type: ignore[misc]

    return client


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        certificate = write_self_signed(Path(folder) / "certificate.pem", NAME)
        print(f"CPU of the serving process, {os.cpu_count()} CPUs")
        for version in (ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_2):
            spent, accepted, _, _ = measure(certificate, handshakes(version), echoes=False)
            print(
                f"{version.name} handshakes  {accepted / spent:8.0f} /s   "
                f"{spent / accepted * 1e6:6.0f} us"
            )
        spent, accepted, _, _ = measure(certificate, dtls_handshakes(certificate), echoes=True)
        print(f"DTLSv1.2 handshakes {accepted / spent:8.0f} /s   {spent / accepted * 1e6:6.0f} us")
        for encrypted in (False, True):
            name = "TLS" if encrypted else "TCP"
            for echoes in (False, True):
                what = "echo" if echoes else "sink"
                client = ping if echoes else bulk
                for size in (160, 1200, 16384) if echoes else (1200, 65536):
                    spent, _, octets, pieces = measure(
                        certificate, client(encrypted, size), echoes=echoes
                    )
                    print(
                        f"{name} {what} {size:6} octets  {octets / spent / 1e6:8.1f} MB/s   "
                        f"{octets / size / spent:8.0f} /s   {spent / (octets / size) * 1e6:6.1f} us"
                        f"   {octets / pieces:7.0f} octets a read"
                    )
        for size in (160, 1200):
            spent, _, octets, pieces = measure(
                certificate, datagrams(certificate, size), echoes=True
            )
            print(
                f"DTLS echo {size:6} octets  {octets / spent / 1e6:8.1f} MB/s   "
                f"{pieces / spent:8.0f} /s   {spent / pieces * 1e6:6.1f} us"
            )


if __name__ == "__main__":
    main()
