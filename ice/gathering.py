"""What :meth:`ice.Agent.gather` gives: the candidates of one generation, as they are found."""

from __future__ import annotations

from collections.abc import AsyncIterator, Generator
from typing import TYPE_CHECKING, Any, Self

from ice.candidate import Candidate

if TYPE_CHECKING:
    from ice.aio import Agent


class Gathering(AsyncIterator[Candidate]):
    """The candidates of one generation: iterate, or await all of them as a list."""

    def __init__(self, agent: Agent, stream: int | None) -> None:
        self._agent = agent
        self._stream = stream
        self._generation = agent._generation
        self._next = 0

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Candidate:
        agent = self._agent
        while agent._generation == self._generation:
            while self._next < len(agent._local):
                found = agent._local[self._next]
                self._next += 1
                if self._stream in (None, found.stream):
                    return found.candidate
            agent._must_be_open()
            if agent._gathered:
                break
            await agent._news()
        raise StopAsyncIteration

    def __await__(self) -> Generator[Any, None, list[Candidate]]:
        return self._all().__await__()

    async def _all(self) -> list[Candidate]:
        return [candidate async for candidate in self]
