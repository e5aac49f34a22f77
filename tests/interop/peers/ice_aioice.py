"""aioice as a peer of tools/icepeers.py."""

from __future__ import annotations

import asyncio
from typing import Any

import aioice
from ice_asyncio import Peer, tell


def end_of(candidate: aioice.Candidate) -> dict[str, Any]:
    return {
        "type": candidate.type,
        "transport": candidate.transport.lower(),
        "address": candidate.host,
        "port": candidate.port,
        "tcptype": candidate.tcptype,
    }


def connection_for(setup: dict[str, Any]) -> aioice.Connection:
    options: dict[str, Any] = {}
    if setup["stun"]:
        options["stun_server"] = tuple(setup["stun"])
    if relay := setup["relay"]:
        address, _, query = relay["url"].partition("?")
        scheme, host, port = address.split(":")
        options["turn_server"] = (host, int(port))
        options["turn_username"], options["turn_password"] = relay["username"], relay["password"]
        options["turn_transport"] = query.removeprefix("transport=") or "udp"
        options["turn_ssl"] = scheme == "turns"
    if setup["relay_only"]:
        options["transport_policy"] = aioice.TransportPolicy.RELAY
    return aioice.Connection(ice_controlling=setup["controlling"], **options)


class AioicePeer(Peer):
    async def start(self, setup: dict[str, Any]) -> None:
        self.gathered = asyncio.Event()
        self.connection = connection_for(setup)
        tell(
            "credentials", ufrag=self.connection.local_username, pwd=self.connection.local_password
        )
        self.spawn(self.gather())

    async def gather(self) -> None:
        await self.connection.gather_candidates()
        for candidate in self.connection.local_candidates:
            tell("candidate", candidate=f"candidate:{candidate.to_sdp()}")
        tell("candidate", candidate=None)
        self.gathered.set()

    async def connect(self, ufrag: str, pwd: str, *, lite: bool) -> None:
        self.connection.remote_is_lite = lite
        self.connection.remote_username, self.connection.remote_password = ufrag, pwd
        # Its connect() comes after its gathering.
        await self.gathered.wait()
        await self.connection.connect()
        tell("connected")
        while True:
            tell("data", text=(await self.connection.recv()).decode())

    async def add(self, candidate: str | None) -> None:
        if candidate is None:
            await self.connection.add_remote_candidate(None)
            return
        parsed = aioice.Candidate.from_sdp(candidate.removeprefix("candidate:"))
        # It knows UDP alone and leaves it to its caller to see to that.
        if parsed.transport.lower() == "udp":
            await self.connection.add_remote_candidate(parsed)

    async def send(self, message: bytes) -> None:
        await self.connection.send(message)

    def pair(self) -> dict[str, Any]:
        pair = self.connection._nominated[1]
        return {"local": end_of(pair.local_candidate), "remote": end_of(pair.remote_candidate)}

    async def close(self) -> None:
        await self.connection.close()


if __name__ == "__main__":
    asyncio.run(AioicePeer().run())
