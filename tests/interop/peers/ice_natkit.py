"""natkit's agent as a peer of tools/icepeers.py."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from ice_asyncio import Peer, tell

import ice
from stun.tls import ClientTls


def end_of(candidate: ice.Candidate) -> dict[str, Any]:
    return {
        "type": candidate.type,
        "transport": candidate.transport,
        "address": candidate.host,
        "port": candidate.port,
        "tcptype": candidate.tcptype,
    }


def agent_for(setup: dict[str, Any]) -> ice.Agent:
    servers: list[str] = []
    options: dict[str, Any] = {}
    if setup["stun"]:
        host, port = setup["stun"]
        servers.append(f"stun:{host}:{port}")
    if relay := setup["relay"]:
        servers.append(relay["url"])
        options = {"username": relay["username"], "password": relay["password"]}
        if relay["authorities"]:
            options["tls"] = ClientTls(relay["authorities"])
    config = ice.Config(
        policy=ice.Policy.RELAY if setup["relay_only"] else ice.Policy.ALL,
        udp="udp" in setup["transports"],
        tcp="tcp" in setup["transports"],
        lite=setup["lite"],
        mdns=ice.Mdns.PUBLISH if setup["hide"] else ice.Mdns.RESOLVE,
    )
    return ice.Agent(controlling=setup["controlling"], servers=servers, config=config, **options)


class NatkitPeer(Peer):
    async def start(self, setup: dict[str, Any]) -> None:
        self.agent = agent_for(setup)
        self.reading = False
        tell("credentials", ufrag=self.agent.local_ufrag, pwd=self.agent.local_pwd)
        self.spawn(self.gather())

    async def gather(self) -> None:
        async for candidate in self.agent.gather():
            tell("candidate", candidate=candidate.to_sdp())
        tell("candidate", candidate=None)

    async def connect(self, ufrag: str, pwd: str, *, lite: bool) -> None:
        self.agent.set_remote_credentials(ufrag, pwd, lite=lite)
        self.connection = await self.agent.connect(timeout=30)
        tell("connected")
        if not self.reading:
            self.reading = True
            while True:
                tell("data", text=(await self.connection.recv()).decode())

    async def restart(self) -> None:
        await self.agent.restart()
        tell("credentials", ufrag=self.agent.local_ufrag, pwd=self.agent.local_pwd)
        self.spawn(self.gather())

    async def add(self, candidate: str | None) -> None:
        parsed = None if candidate is None else ice.Candidate.from_sdp(candidate)
        await self.agent.add_remote_candidate(parsed)

    async def send(self, message: bytes) -> None:
        await self.connection.send(message)

    def explain(self) -> None:
        print(self.agent.explain().text(), file=sys.stderr, flush=True)

    def pair(self) -> dict[str, Any]:
        pair = self.connection.selected_pair
        assert pair is not None
        return {"local": end_of(pair.local), "remote": end_of(pair.remote)}

    async def close(self) -> None:
        await self.agent.close()


if __name__ == "__main__":
    asyncio.run(NatkitPeer().run())
