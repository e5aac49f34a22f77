"""Carriers of a link beside what they are made of, two processes each, in one run.

    python tools/bench/link.py [--rounds 5] [--megabytes 512] [--only WORD] [--json FILE]

``tls``: :class:`ice.link.tls.TlsCarrier` over an ICE connection over TCP, beside asyncio's streams
with TLS.  ``quic``: :class:`ice.link.quic.QuicCarrier` over ICE over UDP, beside aioquic's own
client and server, whose packets have 1200 octets unless told otherwise.  Everything runs on the
loopback interface; one process writes without end, the other one reads and says when it has all.

The two take turns; the first round warms up and is dropped.  Figures are medians, megabytes (10^6)
a second; the ratio is the median of the rounds' ratios.  QUIC moves a sixteenth of ``--megabytes``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import ssl
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any, TypeAlias

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]

from aioquic.asyncio.client import connect  # noqa: E402
from aioquic.asyncio.server import serve  # noqa: E402
from aioquic.quic.configuration import QuicConfiguration  # noqa: E402

import ice  # noqa: E402
from ice.config import Config  # noqa: E402
from ice.link.certificate import Identity  # noqa: E402
from ice.link.quic import QuicCarrier  # noqa: E402
from ice.link.tls import TlsCarrier  # noqa: E402
from tools.certificate import write_self_signed  # noqa: E402

HOST = "127.0.0.1"
WINDOW = 1 << 24
CHUNK = 1 << 18
FRAME = 1 << 16

Side: TypeAlias = Callable[[Pipe, int, Path], Coroutine[Any, Any, float | None]]
"""One side of a contest: what it is told over the pipe, how many octets, a certificate.  The one
that writes returns the seconds it took."""


async def told(pipe: Pipe) -> Any:
    """Wait for what the other side says, without holding the event loop."""
    return await asyncio.to_thread(pipe.recv)


# Carriers. ----------------------------------------------------------------------------------------


async def agent_of(pipe: Pipe, *, tcp: bool, controlling: bool) -> ice.Agent:
    """Return an agent that has told its candidates and heard those of the other side."""
    config = Config(udp=not tcp, tcp=tcp, loopback=True, addresses=("127.0.0.0/8",), monitor=False)
    agent = ice.Agent(controlling=controlling, config=config)
    await agent.gather()
    own = [candidate.to_sdp() for candidate in agent.local_candidates]
    pipe.send((agent.local_ufrag, agent.local_pwd, own))
    ufrag, password, candidates = await told(pipe)
    agent.set_remote_credentials(ufrag, password)
    for candidate in candidates:
        await agent.add_remote_candidate(candidate)
    await agent.add_remote_candidate(None)
    return agent


def carrier(kind: type[TlsCarrier | QuicCarrier], *, writes: bool) -> Side:
    """Return the side of a contest that a carrier takes."""

    async def run(pipe: Pipe, octets: int, _pem: Path) -> float | None:
        async with await agent_of(pipe, tcp=kind is TlsCarrier, controlling=writes) as agent:
            connection = await agent.connect()
            identity = Identity.make()
            pipe.send(identity.fingerprint)
            fingerprint = await told(pipe)
            carrier = kind(connection, identity, fingerprint, server=not writes)
            done = asyncio.Event()
            if not writes:
                missing = octets

                def take(data: bytes) -> None:
                    nonlocal missing
                    missing -= len(data)
                    if missing <= 0:
                        done.set()

                carrier.on_data = take
                await carrier.start()
                await done.wait()
                carrier.send(b"k")
                await told(pipe)
                carrier.abort()
                return None
            relief = asyncio.Event()
            carrier.on_relief = relief.set
            carrier.on_data = lambda _: done.set()
            await carrier.start()
            began = time.perf_counter()
            data = bytes(FRAME)
            for _ in range(-(-octets // FRAME)):
                while carrier.congested:
                    relief.clear()
                    await relief.wait()
                carrier.send(data)
            await done.wait()
            taken = time.perf_counter() - began
            pipe.send("done")
            await carrier.close()
            return taken

    return run


# What they are compared with. ---------------------------------------------------------------------


async def read_all(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, octets: int) -> None:
    """Read so much, and say so."""
    while octets > 0:
        octets -= len(await reader.read(CHUNK))
    writer.write(b"k")
    await writer.drain()


async def write_all(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, octets: int
) -> float:
    """Write so much; the seconds until the other side has it."""
    began = time.perf_counter()
    data = bytes(CHUNK)
    for _ in range(-(-octets // CHUNK)):
        writer.write(data)
        await writer.drain()
    await reader.readexactly(1)
    return time.perf_counter() - began


async def streams_reader(pipe: Pipe, octets: int, pem: Path) -> None:
    """Read over asyncio's TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_all(reader, writer, octets)
        await told(pipe)
        writer.transport.abort()
        done.set()

    done = asyncio.Event()
    server = await asyncio.start_server(handle, HOST, 0, ssl=context, limit=1 << 20)
    async with server:
        pipe.send(server.sockets[0].getsockname()[1])
        await done.wait()


async def streams_writer(pipe: Pipe, octets: int, _: Path) -> float:
    """Write over asyncio's TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    port = await told(pipe)
    reader, writer = await asyncio.open_connection(HOST, port, ssl=context)
    taken = await write_all(reader, writer, octets)
    pipe.send("done")
    writer.transport.abort()
    return taken


async def aioquic_reader(pipe: Pipe, octets: int, pem: Path) -> None:
    """Read over aioquic's own server."""
    configuration = QuicConfiguration(
        is_client=False, alpn_protocols=["b"], max_data=WINDOW, max_stream_data=WINDOW
    )
    configuration.load_cert_chain(pem)
    done = asyncio.Event()
    tasks = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_all(reader, writer, octets)
        await told(pipe)
        done.set()

    server = await serve(
        HOST,
        0,
        configuration=configuration,
        stream_handler=lambda r, w: tasks.append(asyncio.ensure_future(handle(r, w))),
    )
    transport = server._transport
    assert transport is not None
    pipe.send(transport.get_extra_info("sockname")[1])
    await done.wait()
    server.close()


async def aioquic_writer(pipe: Pipe, octets: int, _: Path) -> float:
    """Write over aioquic's own client."""
    configuration = QuicConfiguration(
        is_client=True,
        alpn_protocols=["b"],
        verify_mode=ssl.CERT_NONE,
        max_data=WINDOW,
        max_stream_data=WINDOW,
    )
    port = await told(pipe)
    async with connect(HOST, port, configuration=configuration) as client:
        reader, writer = await client.create_stream()
        taken = await write_all(reader, writer, octets)
        pipe.send("done")
        return taken


# The contest. -------------------------------------------------------------------------------------

CONTESTS: dict[str, tuple[tuple[Side, Side], tuple[Side, Side], int]] = {
    "tls": (
        (carrier(TlsCarrier, writes=True), carrier(TlsCarrier, writes=False)),
        (streams_writer, streams_reader),
        1,
    ),
    "quic": (
        (carrier(QuicCarrier, writes=True), carrier(QuicCarrier, writes=False)),
        (aioquic_writer, aioquic_reader),
        16,
    ),
}


def _read(reads: Side, pipe: Pipe, octets: int, pem: Path) -> None:
    asyncio.run(reads(pipe, octets, pem))


def rate(sides: tuple[Side, Side], octets: int, pem: Path) -> float:
    """Run one contest; megabytes a second."""
    writes, reads = sides
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(
        target=_read, args=(reads, there, octets, pem)
    )
    process.start()
    try:
        taken = asyncio.run(writes(here, octets, pem))
    finally:
        process.join(10)
        if process.is_alive():
            process.kill()
    assert taken is not None
    return octets / taken / 1e6


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--megabytes", type=int, default=512)
    parser.add_argument("--only", default="")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    result = {}
    with tempfile.TemporaryDirectory() as folder:
        pem = write_self_signed(Path(folder) / "pem", HOST)
        for name, (ours, theirs, divisor) in CONTESTS.items():
            if options.only not in name:
                continue
            octets = options.megabytes * 1_000_000 // divisor
            pairs = []
            for number in range(options.rounds + 1):
                pair = rate(ours, octets, pem), rate(theirs, octets, pem)
                if number:
                    pairs.append(pair)
            figures = {
                "carrier": statistics.median(our for our, _ in pairs),
                "alone": statistics.median(their for _, their in pairs),
                "ratio": statistics.median(our / their for our, their in pairs),
                "rounds": pairs,
            }
            result[name] = figures
            print(
                f"{name:5} carrier {figures['carrier']:7.1f} MB/s   alone {figures['alone']:7.1f}"
                f" MB/s   ratio {figures['ratio']:.2f}"
            )
    if options.json:
        options.json.write_text(json.dumps({"cores": os.cpu_count(), "figures": result}, indent=1))


if __name__ == "__main__":
    main()
