"""Runs a command: the event loop, signals, and what becomes of errors.

Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted (128 and the number of the signal).
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from types import FrameType
from typing import Final

from ice.punch import events
from ice.punch.link import Connect, PunchError, Work, hang_up
from ice.punch.output import Output
from ice.punch.pipe import OutputClosed

DONE: Final = 0
FAILED: Final = 1
WRONG_USAGE: Final = 2
SIGNALLED: Final = 128

_SIGNALS: Final = [
    number
    for name in ("SIGINT", "SIGTERM", "SIGHUP")
    if (number := getattr(signal, name, None)) is not None
]


def run(connect: Connect, code: str | None, work: Work, output: Output) -> int:
    """Connect, do the work, and return the exit code."""
    return asyncio.run(_run(connect, code, work, output))


async def _run(connect: Connect, code: str | None, work: Work, output: Output) -> int:
    task = asyncio.create_task(_connected(connect, code, work, output))
    caught: list[int] = []
    with _Signals(task, caught):
        try:
            await asyncio.wait({task})
        finally:
            output.end()
    if task.cancelled():
        number = caught[0] if caught else signal.SIGINT
        output.tell(events.Error("interrupted", _INTERRUPTED.get(number, "ended by a signal")))
        return SIGNALLED + number
    error = task.exception()
    if error is None or isinstance(error, OutputClosed):
        output.summary()
        return DONE
    told = explain(error, verbose=output.verbose)
    if told is None:
        raise error
    output.summary()
    exit_code, event = told
    output.tell(event)
    return exit_code


_INTERRUPTED: Final[dict[int, str]] = {signal.SIGINT: "interrupted"}


async def _connected(connect: Connect, code: str | None, work: Work, output: Output) -> None:
    async with connect(code, output.on_link) as stream:
        try:
            await work(stream)
        except asyncio.CancelledError:
            hang_up(stream, "interrupted by its user")
            raise
        except PunchError as error:
            hang_up(stream, str(error))
            raise


class _Signals:
    """Lets the first signal end the command in an orderly way, and a second one at once."""

    def __init__(self, task: asyncio.Task[None], caught: list[int]) -> None:
        self._task = task
        self._caught = caught
        self._loop = asyncio.get_running_loop()
        self._before: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}

    def __enter__(self) -> None:
        for number in _SIGNALS:
            # What `nohup` or a shell has made us ignore stays ignored.
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._on_signal)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        if self._caught:
            os._exit(SIGNALLED + number)
        self._caught.append(number)
        self._loop.call_soon_threadsafe(self._task.cancel)


def explain(error: BaseException, *, verbose: bool) -> tuple[int, events.Error] | None:
    """Return the exit code and the words for an error, or None: it is a fault in the program."""
    from ice.errors import ConnectionFailed, IceError
    from ice.link.carrier import CarrierFailed
    from ice.rendezvous.errors import RendezvousError
    from stun.errors import StunError, UsageError

    match error:
        case PunchError():
            return FAILED, events.Error(error.code, str(error))
        case RendezvousError():
            return FAILED, events.Error(error.code, str(error))
        case ConnectionFailed():
            text = str(error) if verbose else error.why
            return FAILED, events.Error(_code_of(error), text)
        case UsageError():
            return WRONG_USAGE, events.Error("usage", str(error))
        case IceError() | CarrierFailed() | StunError() | ConnectionError():
            return FAILED, events.Error(_code_of(error), str(error) or type(error).__name__)
        case TimeoutError() | OSError():
            return FAILED, events.Error("system", str(error) or type(error).__name__)
        case _:
            return None


def _code_of(error: BaseException) -> str:
    """Return the class's name in the manner of codes: ConnectionLost is ``connection-lost``."""
    name = type(error).__name__
    return "".join(f"-{c.lower()}" if c.isupper() else c for c in name).lstrip("-")


__all__ = ["DONE", "FAILED", "SIGNALLED", "WRONG_USAGE", "explain", "run"]
