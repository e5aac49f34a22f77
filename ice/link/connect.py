"""``ice.connect``: two programs, one code, and a stream between them.

    async with ice.connect(rendezvous="wss://relay.example", on_event=print) as stream:
        ...                                   # the event Waiting has the code for the other side

    async with ice.connect("7-acorn-violin-harbor", rendezvous="wss://relay.example") as stream:
        stream.writer.write(b"hello")
        await stream.writer.drain()
        print(await stream.reader.readline())

Octets flow through the relay as soon as both are there; the direct way is found meanwhile and taken
without a word, and the relay takes over again if it breaks.  Whatever the way, the octets are
encrypted from end to end (TLS 1.3 between certificates that live as long as the link and that each
side knows by the code), in order, complete and once.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Generator, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any

from ice.link.config import LinkConfig
from ice.link.engine import Engine
from ice.link.events import LinkEvent, PathChanged
from ice.link.link import Link
from stun.errors import UsageError


class Datagrams:
    """The unreliable channel beside a stream: packets that may get lost, and are never late."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def send(self, data: bytes) -> bool:
        """Send a packet; false if there is no way for one of its length now."""
        return self._engine.send_datagram(bytes(data))

    async def recv(self) -> bytes:
        """Return the next packet.  Raises :class:`ice.ConnectionClosed` when it is over."""
        return await self._engine.datagram()

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._all()

    async def _all(self) -> AsyncIterator[bytes]:
        while True:
            try:
                yield await self.recv()
            except ConnectionError:
                return


class Stream:
    """A link that has a way.  ``reader`` and ``writer`` are asyncio's own."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def __init__(self, link: Link, engine: Engine) -> None:
        self._link = link
        self._engine = engine
        self.reader = engine.transport.reader
        self.writer = engine.transport.writer
        self.datagrams = Datagrams(engine)

    @property
    def code(self) -> str:
        """The code that both sides had."""
        return self._link.code or ""

    @property
    def path(self) -> PathChanged | None:
        """The way that is used now."""
        return self._link.path

    @property
    def counters(self) -> Mapping[str, int]:
        """What was dropped, in words for a person."""
        return self._link.counters + self._engine.counters

    async def close(self) -> None:
        """Send what was written, end both directions and wait until the peer has it all."""
        self.writer.close()
        await self._link.ended()

    def abort(self, reason: str = "aborted") -> None:
        """End at once; the peer is told ``reason`` if there is a way."""
        self._engine.abort(reason)


class Connecting:
    """What :func:`connect` gives: ``await`` it, or use it with ``async with``."""

    def __init__(self, make: Callable[[], Link]) -> None:
        self._make = make
        self._stream: Stream | None = None

    async def _open(self) -> Stream:
        if self._stream is not None:
            raise UsageError("connect: this one has been used already")
        link = self._make()
        self._stream = Stream(link, await link.open())
        return self._stream

    def __await__(self) -> Generator[Any, None, Stream]:
        return self._open().__await__()

    async def __aenter__(self) -> Stream:
        return await self._open()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._stream is not None
        if error is None:
            await self._stream.close()
            return
        self._stream.abort(f"the other side failed: {kind.__name__ if kind else error}")
        with suppress(ConnectionError):  # the first error is the one to be told
            await self._stream.close()


def connect(
    code: str | None = None,
    *,
    rendezvous: str,
    config: LinkConfig | None = None,
    on_event: Callable[[LinkEvent], None] | None = None,
    tls: ssl.SSLContext | None = None,
) -> Connecting:
    """Connect to whoever has the same code.

    ``code``: ``NAME-SECRET``; without one a code that is good once is made, and told by the event
    :class:`ice.link.events.Waiting`.  ``rendezvous``: a ``ws://`` or ``wss://`` URL; ``tls``
    verifies it, the system's trust store by default.  ``on_event`` is told what happens
    (:mod:`ice.link.events`).

    Raises, when awaited: :class:`ice.rendezvous.errors.RendezvousError` if the two do not meet,
    :class:`ice.ConnectionFailed` if there is no way, :class:`stun.errors.UsageError` for a code
    that is none.
    """
    return Connecting(
        lambda: Link(
            config or LinkConfig(),
            rendezvous=rendezvous,
            code=code,
            tls=tls,
            on_event=on_event or (lambda _: None),
        )
    )
