"""Spreads of agents on an event loop: real sockets on loopback, which has no NAT to get through."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import ice
from ice.config import Tell
from ice.events import AgentEvent, SpreadEnded
from ice.spread.order import Ended, Role, Spread
from stun.errors import StunError, UsageError
from stun.sansio import MILLISECOND, SECOND, Address

LOOPBACK: dict[str, Any] = {
    "loopback": True,
    "addresses": ("127.0.0.1/32",),
    "watch_network": 0,
    "tell": Tell.PREDICTED,
}


class Pair:
    """Two agents that know each other's credentials, and no candidates."""

    def __init__(self, **options: Any) -> None:
        config = ice.Config(**LOOPBACK, **options)
        self.events: list[AgentEvent] = []
        self.a = ice.Agent(controlling=True, config=config, on_event=self.events.append)
        self.b = ice.Agent(controlling=False, config=config)

    async def __aenter__(self) -> Pair:
        for one, other in ((self.a, self.b), (self.b, self.a)):
            await one.gather()
            one.set_remote_credentials(other.local_ufrag, other.local_pwd)
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(self.a.close(), self.b.close())

    def port(self, agent: ice.Agent, transport: str) -> Address:
        """Return where an agent can be met."""
        return next(
            base.address
            for base in agent.machine.bases
            if base.transport == transport and base.tcptype in (None, ice.TcpType.SIMULTANEOUS_OPEN)
        )

    async def talk(self) -> None:
        """Connect, and send something in each direction."""
        one, other = await asyncio.gather(self.a.connect(10), self.b.connect(10))
        await one.send(b"there")
        await other.send(b"and back")
        assert await other.recv() == b"there"
        assert await one.recv() == b"and back"


@pytest.mark.parametrize("transport", ["udp", "tcp"])
async def test_many_sockets_meet_one(transport: Any) -> None:
    udp = transport == "udp"
    async with Pair(udp=udp, tcp=not udp) as pair:
        to = pair.port(pair.b, transport)
        progress = pair.a.spread(Spread(Role.SOCKETS, transport, remotes=(to,), sockets=32))
        await pair.talk()
        assert progress.ended is Ended.FOUND
        assert 1 <= progress.hits <= 8
        assert [e.why for e in pair.events if isinstance(e, SpreadEnded)] == [Ended.FOUND.value]


async def test_one_probes_for_the_port_of_another() -> None:
    async with Pair(tcp=False) as pair:
        host, port = pair.port(pair.b, "udp")
        near = max(1024, port - 40), min(65535, port + 40)
        order = Spread(Role.PROBES, remotes=(Address(host, port),), ports=near)
        progress = pair.a.spread(order)
        await pair.talk()
        assert progress.ended in (Ended.FOUND, Ended.SPENT)
        assert progress.sent <= 81


async def test_it_ends_with_the_agent() -> None:
    pair = Pair(tcp=False)
    async with pair:
        nobody = Address("127.0.0.1", 9)
        progress = pair.a.spread(Spread(Role.SOCKETS, remotes=(nobody,), sockets=16))
        await asyncio.sleep(0)
        assert "going on" in repr(progress)
    assert progress.ended is Ended.STOPPED
    with pytest.raises(StunError):
        pair.a.spread(Spread(Role.SOCKETS))


async def test_it_can_be_stopped() -> None:
    async with Pair(tcp=False) as pair:
        nobody = Address("127.0.0.1", 9)
        order = Spread(Role.SOCKETS, remotes=(nobody,), sockets=16, duration=SECOND)
        progress = pair.a.spread(order)
        pair.a.stop_spreads()
        assert progress.ended is Ended.STOPPED
        assert "sockets over udp ended" in str(pair.a.explain().text())


async def test_prediction_needs_a_mapping_and_an_agent_that_is_open() -> None:
    async with Pair(tcp=False) as pair:
        assert pair.a.predict([1, 2]) == []
    with pytest.raises(StunError):
        pair.a.predict([1])


async def test_an_order_that_cannot_be_carried_out_is_refused() -> None:
    async with Pair(tcp=False) as pair:
        with pytest.raises(UsageError, match="TCP"):
            pair.a.spread(Spread(Role.PROBES, "tcp"))
        with pytest.raises(UsageError, match="100 ms"):
            Spread(Role.SOCKETS, again=MILLISECOND)
