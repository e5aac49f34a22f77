"""One end of a link, for ``tools/linknet.py``: a stream that is led over stdin.

A line in is a command, a line out is what came of it or what happened, both JSON.  ``at`` is the
kernel's monotonic clock, which all programs of one machine share::

    {"do": "connect", "url": "ws://192.31.196.10:8080", "code": "7-acorn", "config": {}}
    {"told": "event", "event": "PathChanged", "at": 81.2, "kind": "relay", ...}
    {"told": "connected", "at": 81.2}
    {"do": "send", "octets": 1073741824, "seed": 7}
    {"told": "progress", "at": 82.0, "octets": 1048576, "gap": 0.02, "by": {"relay": 1048900}}
    {"told": "sent", "at": 99.0, "octets": 1073741824, "sha256": "..."}

``gap`` is the longest time between two reads that gave octets since the line before, ``by`` says
how many octets have come on each way, with what a carrier adds.
"""

from __future__ import annotations

import asyncio
import gc
import hashlib
import json
import os
import random
import ssl
import sys
import time
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

import ice
import ice.link.quic
import ice.link.tls
from ice.link.certificate import Identity
from ice.link.config import LinkConfig
from ice.link.connect import Connecting, Stream

CHUNK = 1 << 16
READ = 1 << 18
BLOCK = 1 << 20
EVERY = 0.1
"""Seconds between two lines of progress."""


def tell(told: str, **what: Any) -> None:
    sys.stdout.write(json.dumps({"told": told, "at": time.monotonic(), **what}) + "\n")
    sys.stdout.flush()


def chunks(octets: int, seed: int) -> Any:
    """Yield so many octets, no chunk of which is like another."""
    block = random.Random(seed).randbytes(BLOCK)
    number = 0
    while octets > 0:
        start = number * CHUNK % (BLOCK - CHUNK)
        data = number.to_bytes(8, "big") + block[start : start + CHUNK - 8]
        data = data[:octets]
        yield data
        octets -= len(data)
        number += 1


class End:
    """A stream, once there is one, and what is done with it."""

    def __init__(self) -> None:
        self.connecting: Connecting | None = None
        self.stream: Stream | None = None
        self.plain: asyncio.Future[Any]
        self.server: asyncio.Server
        self.tasks: set[asyncio.Task[None]] = set()
        self.arrived: dict[str, int] = {}
        self._before: dict[int, tuple[str, int]] = {}

    # What can be done. ----------------------------------------------------------------------------

    async def connect(self, url: str, code: str | None, config: dict[str, Any]) -> None:
        def event(happened: Any) -> None:
            fields = {name: getattr(happened, name) for name in happened.__dataclass_fields__}
            tell("event", event=type(happened).__name__, **fields)

        self.connecting = ice.connect(
            code, rendezvous=url, config=LinkConfig(**config), on_event=event
        )
        self.stream = await self.connecting
        tell("connected")

    async def send(self, octets: int, seed: int, *, eof: bool = True) -> None:
        assert self.stream is not None
        writer, digest, sent = self.stream.writer, hashlib.sha256(), 0
        for data in chunks(octets, seed):
            writer.write(data)
            digest.update(data)
            sent += len(data)
            await writer.drain()
        if eof:
            writer.write_eof()
        tell("sent", octets=sent, sha256=digest.hexdigest())

    async def receive(self) -> None:
        """Read to the end of what the peer sends."""
        assert self.stream is not None
        reader, digest = self.stream.reader, hashlib.sha256()
        clock = time.monotonic
        octets, last, gap, shown = 0, 0.0, 0.0, 0.0
        while data := await reader.read(READ):
            now = clock()
            if last:
                gap = max(gap, now - last)
            last = now
            octets += len(data)
            digest.update(data)
            if now - shown > EVERY:
                shown = now
                tell("progress", octets=octets, gap=gap, by=self.by())
                gap = 0.0
        tell("received", octets=octets, sha256=digest.hexdigest(), gap=gap, by=self.by())

    async def echo(self) -> None:
        """Send back what comes."""
        assert self.stream is not None
        while data := await self.stream.reader.read(READ):
            self.stream.writer.write(data)
            await self.stream.writer.drain()
        self.stream.writer.write_eof()
        tell("echoed")

    async def hear(self) -> None:
        """Wait for a line."""
        assert self.stream is not None
        line = await self.stream.reader.readline()
        tell("heard", text=line.decode().rstrip("\n"))

    async def ask(self, text: str) -> None:
        """Send a line and wait for the one that comes back."""
        assert self.stream is not None
        began = time.monotonic()
        self.stream.writer.write(text.encode() + b"\n")
        await self.stream.writer.drain()
        line = await self.stream.reader.readline()
        tell("answer", text=line.decode().rstrip("\n"), seconds=time.monotonic() - began)

    # Measuring, with nothing but reads and writes, and without hashing. ---------------------------

    async def serve(self, host: str, port: int) -> None:
        """Take one connection of TLS over plain TCP, with asyncio's own streams."""
        identity = Identity.make()
        file = Path("plain.pem")  # in a directory of this program's own
        file.write_bytes(
            identity.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            + identity.certificate.public_bytes(Encoding.PEM)
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(file)
        self.plain = asyncio.get_running_loop().create_future()
        self.server = await asyncio.start_server(
            lambda *streams: self.plain.set_result(streams), host, port, ssl=context
        )
        tell("serving")

    async def dial(self, host: str, port: int) -> None:
        """Connect to the one who serves."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        self.plain = asyncio.get_running_loop().create_future()
        self.plain.set_result(await asyncio.open_connection(host, port, ssl=context))
        tell("dialled")

    async def _streams(self, over: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if over == "plain":
            return await self.plain
        assert self.stream is not None
        return self.stream.reader, self.stream.writer

    async def pour(self, octets: int, over: str) -> None:
        """Send so many octets; ``over`` is ``link`` or ``plain``."""
        _, writer = await self._streams(over)
        data = os.urandom(CHUNK)
        for _ in range(octets // CHUNK):
            writer.write(data)
            await writer.drain()
        tell("poured", over=over)

    async def take(self, octets: int, over: str) -> None:
        """Read so many octets, and tell in what time, from the first read on."""
        reader, _ = await self._streams(over)
        left = octets - len(await reader.read(READ))
        began, cpu = time.monotonic(), time.process_time()
        while left > 0:
            left -= len(await reader.read(READ))
        seconds = time.monotonic() - began
        tell("took", over=over, rate=octets / seconds, cpu=time.process_time() - cpu)

    async def close(self) -> None:
        assert self.stream is not None
        await self.stream.close()
        tell("closed")

    async def state(self) -> None:
        """Tell what this process holds, once garbage is collected."""
        gc.collect()
        await asyncio.sleep(0)
        mine = self.tasks | {asyncio.current_task()}
        others = [task for task in asyncio.all_tasks() if task not in mine]
        found = []
        for fd in Path("/proc/self/fd").iterdir():
            with suppress(OSError):
                found.append(str(fd.readlink()).partition(":")[0])
        tell(
            "state",
            tasks=[str(task.get_coro()) for task in others if not _is_input(task)],
            fds=sorted(found),
            carriers=[] if self.stream is None else self.carriers(),
        )

    # Which way octets came. -----------------------------------------------------------------------

    def carriers(self) -> list[dict[str, Any]]:
        assert self.stream is not None
        engine = self.stream._engine
        return [
            {
                "way": str(engine._carriers[view.carrier_id][0].way),
                **{name: getattr(view, name) for name in view.__dataclass_fields__},
            }
            for view in engine._session.carriers()
            if view.carrier_id in engine._carriers
        ]

    def by(self) -> dict[str, int]:
        now = {each["carrier_id"]: (each["way"], each["received"]) for each in self.carriers()}
        for number, (way, received) in now.items():
            before = self._before.get(number, (way, 0))[1]
            self.arrived[way] = self.arrived.get(way, 0) + received - before
        self._before = now
        return self.arrived

    # The conversation. ----------------------------------------------------------------------------

    def begin(self, what: str, arguments: dict[str, Any]) -> None:
        task = asyncio.create_task(self._do(what, getattr(self, what)(**arguments)))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _do(self, what: str, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception as error:
            tell("failed", what=what, error=type(error).__name__, text=str(error))


def _is_input(task: asyncio.Task[Any]) -> bool:
    return getattr(task.get_coro(), "__name__", "") == "main"


async def main() -> None:
    loop = asyncio.get_running_loop()
    lines = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    end = End()
    tell("ready", pid=os.getpid())
    while line := await lines.readline():
        command = json.loads(line)
        end.begin(command.pop("do"), command)


if __name__ == "__main__":
    asyncio.run(main())
