"""What the peers of tools/icepeers.py that run on asyncio have in common."""

from __future__ import annotations

import asyncio
import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Coroutine
from typing import Any


def tell(event: str, **fields: Any) -> None:
    print(json.dumps({"event": event, **fields}), flush=True)


class Peer(ABC):
    """Obeys commands until it is told to close, or the commands end."""

    def __init__(self) -> None:
        self.name = ""
        self._tasks: set[asyncio.Task[None]] = set()

    @abstractmethod
    async def start(self, setup: dict[str, Any]) -> None: ...

    @abstractmethod
    async def connect(self, ufrag: str, pwd: str, *, lite: bool) -> None: ...

    @abstractmethod
    async def add(self, candidate: str | None) -> None: ...

    @abstractmethod
    async def send(self, message: bytes) -> None: ...

    @abstractmethod
    def pair(self) -> dict[str, Any]: ...

    async def restart(self) -> None:
        raise NotImplementedError

    def explain(self) -> None:
        """Write to standard error why it is as it is; not every agent knows."""
        return

    @abstractmethod
    async def close(self) -> None: ...

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something besides, and tell if it goes wrong."""

        async def watched() -> None:
            try:
                await work
            except Exception as error:
                tell("failed", why=f"{type(error).__name__}: {error}")

        task = asyncio.create_task(watched())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def run(self) -> None:
        reader = asyncio.StreamReader(limit=1 << 20)
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
        )
        while line := await reader.readline():
            command = json.loads(line)
            match command.pop("do"):
                case "start":
                    self.name = command["name"]
                    await self.start(command)
                case "remote":
                    self.spawn(self.connect(**command))
                case "candidate":
                    await self.add(command["candidate"])
                case "send":
                    for n in range(command["count"]):
                        await self.send(f"{self.name} {n} {'x' * (n * 50)}".encode())
                case "pair":
                    tell("pair", **self.pair())
                case "restart":
                    await self.restart()
                case "explain":
                    self.explain()
                case "close":
                    break
        for task in self._tasks:
            task.cancel()
        await self.close()
