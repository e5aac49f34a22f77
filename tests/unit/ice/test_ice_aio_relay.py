"""Two agents and a STUN and TURN server of our own, on loopback."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import ice
from ice.config import Server
from stun.credentials import LongTerm
from stun.discovery import Target, Transport
from stun.nonce import NonceMaker
from stun.sansio import Address
from stun.tls import ClientTls, ServerTls
from stun.users import StaticUsers
from tools.certificate import write_self_signed
from turn.aio import RelayDriver
from turn.server.config import ListenAt, RelayAddress, ServerConfig
from turn.server.events import Serving
from turn.server.machine import Server as TurnServer
from turn.server.policy import PeerPolicy

HOST, NAME, REALM = "127.0.0.1", "relay.example", "example.org"
CONFIG = ice.Config(
    loopback=True, ipv6=False, tcp=False, addresses=("127.0.0.0/8",), watch_network=0
)


class Running:
    """A server in this loop."""

    def __init__(self, server: TurnServer, certificate: Path, ports: dict[Transport, int]) -> None:
        self.server, self.certificate, self.ports = server, certificate, ports

    def at(self, transport: Transport) -> Server:
        port = self.ports[Transport.UDP if transport.protocol == "udp" else Transport.TCP]
        name = NAME if transport.is_secure else None
        target = Target(Address(HOST, port), transport, name)
        return Server(f"{transport} relay", (target,), True, LongTerm("user", "pass"))

    @property
    def sessions(self) -> int:
        return len([*self.server.sessions()])


@asynccontextmanager
async def serving(tmp_path: Path) -> AsyncIterator[Running]:
    certificate = write_self_signed(tmp_path / "certificate.pem", NAME)
    config = ServerConfig(
        tuple(
            ListenAt(transport, Address(HOST, 0), detect=True)
            for transport in (Transport.UDP, Transport.TCP)
        ),
        (RelayAddress(HOST, HOST),),
        REALM,
        policy=PeerPolicy(allow=["127.0.0.0/8"]),
    )
    users = StaticUsers({"user": "pass"}, REALM)
    machine = TurnServer(config, users, NonceMaker((os.urandom(16),)), entropy=os.urandom)
    events: list[Any] = []
    tls = ServerTls(certificate, certificate)
    async with RelayDriver(machine, on_event=events.append, server_tls=tls) as driver:
        machine.start(driver.now())
        driver.flush()
        ports = {e.transport: e.local.port for e in events if isinstance(e, Serving)}
        yield Running(machine, certificate, ports)


async def tell(one: ice.Agent, other: ice.Agent) -> None:
    other.set_remote_credentials(one.local_ufrag, one.local_pwd)
    async for candidate in one.gather():
        await other.add_remote_candidate(candidate)
    await other.add_remote_candidate(None)


async def connected(one: ice.Agent, other: ice.Agent) -> tuple[ice.Connection, ice.Connection]:
    both = await asyncio.gather(one.connect(), other.connect(), tell(one, other), tell(other, one))
    return both[0], both[1]


@pytest.mark.parametrize("transport", [*Transport])
async def test_through_a_relay(tmp_path: Path, transport: Transport) -> None:
    config = replace(CONFIG, policy=ice.Policy.RELAY)
    async with serving(tmp_path) as running:
        async with (
            ice.Agent(
                controlling=True,
                config=config,
                servers=[running.at(transport)],
                tls=ClientTls(running.certificate),
            ) as one,
            ice.Agent(controlling=False, config=CONFIG) as other,
        ):
            a, b = await connected(one, other)
            assert {each.type for each in one.local_candidates} == {ice.CandidateType.RELAYED}
            for number in range(20):
                await a.send(b"word %d" % number)
                assert await b.recv() == b"word %d" % number
                await b.send(b"answer %d" % number)
                assert await a.recv() == b"answer %d" % number
            assert a.selected_pair is not None
            assert a.selected_pair.base.is_relayed
            assert running.sessions == 1
        async with asyncio.timeout(5):
            while running.sessions:  # noqa: ASYNC110  (closing gives the allocation back)
                await asyncio.sleep(0.005)


async def test_a_uri_and_a_wrong_password(tmp_path: Path) -> None:
    async with serving(tmp_path) as running:
        uri = f"turn:{HOST}:{running.ports[Transport.UDP]}?transport=udp"
        async with ice.Agent(
            controlling=True, config=CONFIG, servers=[uri], username="user", password="pass"
        ) as agent:
            found = await agent.gather()
            assert ice.CandidateType.RELAYED in {each.type for each in found}
        async with ice.Agent(
            controlling=True, config=CONFIG, servers=[uri], username="user", password="wrong"
        ) as agent:
            found = await agent.gather()
            assert {each.type for each in found} == {ice.CandidateType.HOST}
            assert "check the username" in agent.explain().text()


async def test_cancelling_while_a_relay_is_asked_for(tmp_path: Path) -> None:
    async with serving(tmp_path) as running:
        tasks = len(asyncio.all_tasks())
        for turns in range(0, 40, 2):

            async def work() -> None:
                async with ice.Agent(
                    controlling=True, config=CONFIG, servers=[running.at(Transport.UDP)]
                ) as agent:
                    await agent.connect()

            working = asyncio.create_task(work())
            for _ in range(turns):
                await asyncio.sleep(0)
            working.cancel()
            await asyncio.wait([working])
            assert working.cancelled()
        assert len(asyncio.all_tasks()) == tasks
        async with asyncio.timeout(5):
            while running.sessions:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
