"""Sequential procedures inside a machine that reads no clock: a deterministic coroutine scheduler.

Theory of operation.  A NAT test is a procedure: ask, wait, ask again from a fresh socket, decide.
Written as states and transitions it cannot be read; written as ``async def`` it can.  A
:class:`Strand` is such a coroutine.  It may await only what this module gives it: a :class:`Wait`
(a value that comes once), another strand, or :meth:`Strands.any_of`.  Nothing here knows asyncio, a
thread or a clock: the machine that owns the :class:`Strands` calls :meth:`Strands.run` with the
time whenever something has happened, and everything that can go on goes on, in the order in which
it became able to.  The same inputs therefore always give the same outputs.

Concurrency is structured: :meth:`Strands.gather` ends its strands when it is itself ended, and
:meth:`Strand.cancel` closes the coroutine, so that ``finally`` blocks and ``with`` statements run.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Coroutine, Generator, Sequence
from typing import Any, Generic, TypeAlias, TypeVar, cast

from stun.sansio import Instant

T = TypeVar("T")
Yielded: TypeAlias = "tuple[Wait[Any], ...]"


class Cancelled(BaseException):
    """Raised where a cancelled strand is awaited.  Not an :class:`Exception`, as in asyncio."""


class Wait(Generic[T]):
    """A value that comes once.  Awaiting it any number of times gives that value."""

    __slots__ = ("_done", "_value", "_waiting")

    def __init__(self) -> None:
        self._done = False
        self._value: T | None = None
        self._waiting: list[Strand[Any]] = []

    @property
    def done(self) -> bool:
        """Whether the value is there."""
        return self._done

    @property
    def value(self) -> T | None:
        """The value, or ``None`` while there is none."""
        return self._value

    def set(self, value: T) -> None:
        """Give the value; the first one stays."""
        if not self._done:
            self._done = True
            self._value = value
            waiting, self._waiting = self._waiting, []
            for strand in waiting:
                strand.wake()

    def join(self, strand: Strand[Any]) -> None:
        """Wake ``strand`` when the value comes."""
        self._waiting.append(strand)

    def leave(self, strand: Strand[Any]) -> None:
        """Forget ``strand``."""
        if strand in self._waiting:
            self._waiting.remove(strand)

    def __await__(self) -> Generator[Yielded, None, T]:
        while not self._done:
            yield (self,)
        return cast("T", self._value)


class Strand(Generic[T]):
    """A running coroutine.  Awaiting it gives what it returns."""

    __slots__ = (
        "_awaited",
        "_coroutine",
        "_end",
        "_error",
        "_queued",
        "_strands",
        "_waits_for",
        "cancelled",
    )

    def __init__(
        self, strands: Strands, coroutine: Coroutine[Yielded, None, T], *, awaited: bool
    ) -> None:
        self._awaited = awaited
        self._error: Exception | None = None
        self._strands = strands
        self._coroutine = coroutine
        self._end: Wait[T | None] = Wait()
        self._waits_for: Yielded = ()
        self._queued = False
        self.cancelled = False

    @property
    def done(self) -> bool:
        """Whether it returned or was cancelled."""
        return self._end.done

    @property
    def ended(self) -> Wait[T | None]:
        """What :meth:`Strands.any_of` may wait for."""
        return self._end

    def wake(self) -> None:
        """Queue it to go on in this or the next :meth:`Strands.run`."""
        if not self._queued and not self._end.done:
            self._queued = True
            self._strands.ready.append(self)

    def resume(self) -> None:
        """Go on until the next await that has no value yet."""
        self._queued = False
        if self._end.done:
            return
        self._leave()
        try:
            self._waits_for = self._coroutine.send(None)
        except StopIteration as stop:
            self._end.set(stop.value)
        except Cancelled:
            self.cancelled = True
            self._end.set(None)
        except Exception as error:
            if not self._awaited:
                raise
            self._error = error
            self._end.set(None)
        else:
            for wait in self._waits_for:
                wait.join(self)

    def cancel(self) -> None:
        """End it where it stands.  Nothing happens when it has ended."""
        if not self._end.done:
            self._leave()
            self.cancelled = True
            self._coroutine.close()
            self._end.set(None)

    def _leave(self) -> None:
        for wait in self._waits_for:
            wait.leave(self)
        self._waits_for = ()

    def __await__(self) -> Generator[Yielded, None, T]:
        while not self._end.done:
            yield (self._end,)
        if self._error is not None:
            raise self._error
        if self.cancelled:
            raise Cancelled
        return cast("T", self._end.value)


class _AnyOf:
    __slots__ = ("_waits",)

    def __init__(self, waits: Yielded) -> None:
        self._waits = waits

    def __await__(self) -> Generator[Yielded, None, None]:
        while not any(wait.done for wait in self._waits):
            yield self._waits


class Strands:
    """The scheduler: strands that are able to go on, and timers."""

    def __init__(self) -> None:
        self.now: Instant = 0
        self.ready: deque[Strand[Any]] = deque()
        self._timers: list[tuple[Instant, int, Wait[None]]] = []
        self._count = 0

    def spawn(self, coroutine: Coroutine[Yielded, None, T], *, awaited: bool = False) -> Strand[T]:
        """Start a coroutine; it takes its first step within this or the next :meth:`run`.

        ``awaited`` promises that somebody will await it: an exception is then raised there.
        Otherwise it comes out of :meth:`run`, so that no mistake is lost.
        """
        strand = Strand(self, coroutine, awaited=awaited)
        strand.wake()
        return strand

    def run(self, now: Instant) -> None:
        """Let everything go on that can, timers that are due included."""
        self.now = max(self.now, now)
        while True:
            while self.ready:
                self.ready.popleft().resume()
            if not self._timers or self._timers[0][0] > self.now:
                return
            heapq.heappop(self._timers)[2].set(None)

    def deadline(self) -> Instant | None:
        """Return when :meth:`run` is to be called though nothing else happens."""
        while self._timers and self._timers[0][2].done:
            heapq.heappop(self._timers)
        return self._timers[0][0] if self._timers else None

    def timer(self, duration: int) -> Wait[None]:
        """Return a wait that ends after ``duration`` ns.  Setting it earlier disarms it."""
        wait: Wait[None] = Wait()
        self._count += 1
        heapq.heappush(self._timers, (self.now + max(duration, 0), self._count, wait))
        return wait

    async def sleep(self, duration: int) -> None:
        """Wait ``duration`` ns."""
        await self.timer(duration)

    async def any_of(self, *waits: Wait[Any], within: int | None = None) -> bool:
        """Wait until one of ``waits`` is done; ``False`` when ``within`` ns went by first."""
        if any(wait.done for wait in waits):
            return True
        if within is None:
            await _AnyOf(waits)
            return True
        timer = self.timer(within)
        try:
            await _AnyOf((*waits, timer))
        finally:
            timer.set(None)
        return any(wait.done for wait in waits)

    async def gather(self, coroutines: Sequence[Coroutine[Yielded, None, T]]) -> list[T]:
        """Run all side by side and return their results in the order given."""
        strands = [self.spawn(coroutine, awaited=True) for coroutine in coroutines]
        try:
            return [await strand for strand in strands]
        finally:
            for strand in strands:
                strand.cancel()
