"""``punch listen`` and ``punch connect``: standard input and output, joined to the other side's.

What is read here comes out there.  The end of the input ends that direction, and the command is
done when both directions have ended.  Nothing is added: the octets of a stream are the input's.
"""

from __future__ import annotations

import asyncio
from typing import Final

from ice.punch.link import PunchError, Stream, Traffic
from ice.punch.stdio import Sink, Source

READ: Final = 1 << 18
"""Octets that are taken from the stream at most at once."""


class OutputClosed(PunchError):
    """Whoever read the output has left, as ``head`` does: no failure, but the end."""

    def __init__(self) -> None:
        super().__init__("output-closed", "nobody reads the output any more")


async def join(stream: Stream, traffic: Traffic, stdin: int | None, stdout: int | None) -> None:
    """Carry both directions until both have ended.

    ``stdin`` and ``stdout`` are file descriptors, or None where there is none.  Raises
    :class:`OutputClosed`, :class:`ice.punch.link.PunchError` or what the stream raises.
    """
    source, sink = Source(stdin), Sink(stdout)
    up = asyncio.create_task(_up(source, stream, traffic))
    down = asyncio.create_task(_down(stream, sink, traffic))
    gone = asyncio.create_task(_gone(sink))
    pending = {up, down, gone}
    try:
        while not (up.done() and down.done()):
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            if down.done():
                # The output has been ended here: that its reader leaves now is as it should be.
                pending.discard(gone)
    finally:
        source.stop()
        sink.stop()
        for task in (up, down, gone):
            task.cancel()
        await asyncio.gather(up, down, gone, return_exceptions=True)


async def _up(source: Source, stream: Stream, traffic: Traffic) -> None:
    writer = stream.writer
    while True:
        try:
            data = await source.read()
        except OSError as error:
            raise PunchError("input", f"the input cannot be read: {error.strerror}") from error
        if not data:
            break
        writer.write(data)
        traffic.sent += len(data)
        await writer.drain()
    writer.write_eof()
    await writer.drain()


async def _down(stream: Stream, sink: Sink, traffic: Traffic) -> None:
    while data := await stream.reader.read(READ):
        traffic.received += len(data)
        try:
            await sink.write(data)
        except OSError as error:
            raise _unwritten(error) from error
    try:
        await sink.finish()
    except OSError as error:
        raise _unwritten(error) from error


async def _gone(sink: Sink) -> None:
    raise _unwritten(await sink.gone())


def _unwritten(error: OSError) -> PunchError:
    if isinstance(error, BrokenPipeError):
        return OutputClosed()
    return PunchError("output", f"the output cannot be written: {error.strerror}")
