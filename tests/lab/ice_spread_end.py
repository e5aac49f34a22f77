"""One agent behind a kernel NAT, for test_ice_spread.py and tools/icespread.py: led over stdin.

A line in is a command, a line out is what came of it, both JSON::

    {"do": "start", "controlling": true, "stun": ["192.31.196.10", 3478], "config": {...}}
    {"told": "gathered", "ufrag": ..., "pwd": ..., "candidates": ["candidate:..."]}
    {"do": "predict", "offsets": [1, 2, 3]}
    {"told": "predicted", "candidates": [...]}
    {"do": "connect", "ufrag": ..., "pwd": ..., "candidates": [...], "spread": {...} or null}
    {"told": "connected", "seconds": 0.2, "local": [...], "remote": [...], "transport": "udp"}
    {"told": "failed", "why": ...}

Each ``start`` begins anew with another agent.  Both ends send one packet and wait for the other's.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import ice
from ice.config import Tell
from ice.spread.order import Progress, Role, Spread
from stun.errors import StunError
from stun.sansio import Address

PATIENCE = 15.0


def tell(told: str, **what: Any) -> None:
    print(json.dumps({"told": told, **what}), flush=True)


def order_of(fields: dict[str, Any]) -> Spread:
    remotes = tuple(Address(host, port) for host, port in fields.pop("remotes", ()))
    return Spread(Role(fields.pop("role")), remotes=remotes, **fields)


class End:
    def __init__(self) -> None:
        self.agent: ice.Agent | None = None

    async def start(self, controlling: bool, stun: list[Any], config: dict[str, Any]) -> None:
        await self.close()
        tells = Tell(config.pop("tell", "all"))
        self.agent = agent = ice.Agent(
            controlling=controlling,
            servers=[f"stun:{stun[0]}:{stun[1]}"],
            config=ice.Config(tell=tells, **config),
        )
        gathered = [candidate.to_sdp() async for candidate in agent.gather()]
        mapped: dict[str, Any] = {}
        for found in agent.machine.mapped():
            mapped[found.transport] = max(mapped.get(found.transport, []), list(found.address))
        tell(
            "gathered",
            ufrag=agent.local_ufrag,
            pwd=agent.local_pwd,
            candidates=gathered,
            mapped=mapped,
        )

    def predict(self, offsets: list[int]) -> None:
        assert self.agent is not None
        made = self.agent.predict(offsets)
        tell("predicted", candidates=[candidate.to_sdp() for candidate in made])

    async def connect(
        self,
        ufrag: str,
        pwd: str,
        candidates: list[str],
        spread: dict[str, Any] | None,
        after: float = 0.0,
    ) -> None:
        agent = self.agent
        assert agent is not None
        loop = asyncio.get_running_loop()
        await asyncio.sleep(after)
        begin = loop.time()
        agent.set_remote_credentials(ufrag, pwd)
        for candidate in [*candidates, None]:
            await agent.add_remote_candidate(candidate)
        progress: Progress | None = None
        if spread is not None:
            progress = agent.spread(order_of(spread))
        counts: dict[str, Any] = {}
        try:
            connection = await agent.connect(PATIENCE)
            seconds = loop.time() - begin
            await connection.send(b"hello")
            async with asyncio.timeout(10):
                data = await connection.recv()
        except (StunError, TimeoutError) as error:
            if progress is not None:
                counts = {"sent": progress.sent, "hits": progress.hits}
            why = str(error).partition("\n")[0] or repr(error)
            tell("failed", why=why, explanation=agent.explain().text(), **counts)
            return
        if progress is not None:
            counts = {"sent": progress.sent, "hits": progress.hits, "refused": progress.refused}
        pair = connection.selected_pair
        assert pair is not None
        tell(
            "connected",
            seconds=round(seconds, 4),
            data=data.decode(),
            local=list(pair.local.address),
            remote=list(pair.remote.address),
            transport=pair.local.transport,
            **counts,
        )

    async def close(self) -> None:
        if self.agent is not None:
            await self.agent.close()
            self.agent = None


async def main() -> None:
    loop = asyncio.get_running_loop()
    end = End()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        command = json.loads(line)
        match command.pop("do"):
            case "start":
                await end.start(**command)
            case "predict":
                end.predict(**command)
            case "connect":
                await end.connect(**command)
    await end.close()


asyncio.run(main())
