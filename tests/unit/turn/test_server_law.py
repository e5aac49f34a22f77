"""Whatever clients, peers and time do: the law holds, and a repeated request changes nothing."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
)

from stun import attributes as a
from stun.registry import Family, Method
from stun.sansio import SECOND, Address
from tools.turndesk import HOST, HOST6, UDP, UNLIMITED, Caller, Desk, code
from tools.turnoracle import Oracle

CLIENTS = [Address("192.52.193.5", 40_000), Address("192.52.193.6", 40_000)]
PEERS = [Address("192.175.48.20", port) for port in (1, 2)] + [
    Address("192.175.48.21", 1),
    Address("2620:4f:8000:b::20", 1),
]
LISTENERS = {Address(HOST, 3478), Address(HOST6, 3478)}
KEPT = 40 * SECOND

peers = st.sampled_from(PEERS)
clients = st.integers(0, len(CLIENTS) - 1)
numbers = st.integers(0x4000, 0x4003)
families = st.sampled_from((None, Family.IPV4, Family.IPV6))


class Law(RuleBasedStateMachine):
    """The judge raises where the server does what it may not; here is what happens to it."""

    sent = Bundle("requests that were sent")

    @initialize(spares=st.sampled_from((0, 2)))
    def begin(self, spares: int) -> None:
        self.oracle: Oracle

        def wrap(server: Any) -> Oracle:
            self.oracle = Oracle(server, LISTENERS)
            return self.oracle

        self.desk = Desk(wrap=wrap, limits=UNLIMITED, spares=spares)
        self.oracle.listeners = set(self.desk.open.values())
        self.callers = [self.desk.caller(address=address) for address in CLIENTS]

    def _sent(self, caller: Caller) -> Any:
        return multiple((caller, caller.requested, self.desk.now))

    @rule(
        target=sent,
        client=clients,
        lifetime=st.sampled_from((None, 0, 900, 3600)),
        dual=st.booleans(),
    )
    def allocate(self, client: int, lifetime: int | None, dual: bool) -> Any:
        caller = self.callers[client]
        attributes: list[Any] = [(a.REQUESTED_TRANSPORT, UDP)]
        if lifetime is not None:
            attributes.append((a.LIFETIME, lifetime))
        if dual:
            attributes.append((a.ADDITIONAL_ADDRESS_FAMILY, Family.IPV6))
        assert code(caller.ask(Method.ALLOCATE, *attributes)) in (0, 437)
        return self._sent(caller)

    @rule(
        target=sent,
        client=clients,
        lifetime=st.sampled_from((None, 0, 700, 3600)),
        family=families,
    )
    def refresh(self, client: int, lifetime: int | None, family: Family | None) -> Any:
        caller = self.callers[client]
        asked = () if family is None else ((a.REQUESTED_ADDRESS_FAMILY, family),)
        assert code(caller.refresh(lifetime, *asked)) in (0, 437, 443)
        return self._sent(caller)

    @rule(target=sent, client=clients, who=st.lists(peers, min_size=1, max_size=3))
    def permit(self, client: int, who: list[Address]) -> Any:
        caller = self.callers[client]
        assert code(caller.permit(*who)) in (0, 437, 443)
        return self._sent(caller)

    @rule(target=sent, client=clients, number=numbers, peer=peers)
    def bind(self, client: int, number: int, peer: Address) -> Any:
        caller = self.callers[client]
        assert code(caller.bind(number, peer)) in (0, 400, 437, 443)
        return self._sent(caller)

    @rule(request=consumes(sent))
    def repeat(self, request: tuple[Caller, bytes, int]) -> None:
        caller, octets, at = request
        if self.desk.now - at >= KEPT:
            return
        before = snapshot(self.desk)
        caller.say(octets)
        assert snapshot(self.desk) == before

    @rule(client=clients, number=numbers, data=st.binary(max_size=8))
    def push(self, client: int, number: int, data: bytes) -> None:
        self.callers[client].push(number, data)

    @rule(client=clients, peer=peers, data=st.binary(max_size=8))
    def indicate(self, client: int, peer: Address, data: bytes) -> None:
        self.callers[client].indicate(peer, data)

    @rule(peer=peers, data=st.binary(max_size=8), pick=st.integers(0, 9))
    def from_peer(self, peer: Address, data: bytes, pick: int) -> None:
        relayed = [address for created in self.desk.created[-3:] for address in created.relayed]
        relayed = [address for address in relayed if address.is_ipv6 == peer.is_ipv6]
        if relayed:
            self.desk.receive(data, peer, relayed[pick % len(relayed)])

    @rule(seconds=st.sampled_from((0.001, 1, 39, 40, 100, 299.999, 300, 500, 600, 3600)))
    def wait(self, seconds: float) -> None:
        self.desk.wait(seconds)

    @rule(seconds=st.sampled_from((1, 300, 600)))
    def the_driver_is_late(self, seconds: int) -> None:
        self.desk.now += seconds * SECOND

    def _only_spares_are_beyond(self) -> None:
        beyond = self.oracle.beyond()
        for host in (HOST, HOST6):
            assert sum(one.host == host for one in beyond) <= self.desk.config.spares

    @invariant()
    def nothing_is_left_over(self) -> None:
        desk = self.desk
        due = desk.server.deadline()
        if due is None or due > desk.now:
            self.oracle._now = desk.now
            self.oracle.inspect()
            self._only_spares_are_beyond()

    def teardown(self) -> None:
        if hasattr(self, "desk"):
            self.desk.wait(4000)
            assert list(self.desk.server.sessions()) == []
            self._only_spares_are_beyond()
            assert self.desk.server._core.quotas.allocations == 0
            assert len(self.desk.server._core.expiry) == 0


def snapshot(desk: Desk) -> Any:
    """Return everything that a request may change."""
    core = desk.server._core
    return (
        [
            (
                one.session,
                one.flow,
                one.expires,
                dict(one.permissions),
                {number: (c.peer, c.expires) for number, c in one.channels.items()},
            )
            for one in core.sessions.values()
        ],
        dict(desk.open),
        core.quotas.allocations,
        len(core.expiry),
    )


Law.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestLaw = Law.TestCase


@pytest.mark.parametrize("run", range(10))
def test_two_servers_of_which_one_gets_everything_several_times(seed: int, run: int) -> None:
    """The same requests to both; to the second each comes again, up to forty seconds later."""
    desks = Desk(seed, limits=UNLIMITED), Desk(seed, limits=UNLIMITED)
    callers = [[desk.caller(address=address) for address in CLIENTS] for desk in desks]
    rng = random.Random(seed)
    late: list[tuple[float, int, bytes]] = []
    for _ in range(300):
        client, peer = rng.randrange(len(CLIENTS)), rng.choice(PEERS[:3])
        choice, lifetime, number = rng.randrange(6), rng.choice((0, 600, 900)), rng.randrange(4)
        for mine in callers:
            caller = mine[client]
            match choice:
                case 0:
                    caller.ask(Method.ALLOCATE, (a.REQUESTED_TRANSPORT, UDP))
                case 1:
                    caller.refresh(lifetime)
                case 2 | 3:
                    caller.permit(peer)
                case _:
                    caller.bind(0x4000 + number, peer)
        assert callers[0][client].requested == callers[1][client].requested
        for _ in range(rng.randrange(3)):
            at = desks[1].now + rng.random() * 39 * SECOND
            late.append((at, client, callers[1][client].requested))
        pause = rng.choice((0.1, 1, 5, 30, 200))
        desks[0].wait(pause)
        until = desks[1].now + pause * SECOND
        for at, who, octets in sorted(entry for entry in late if entry[0] <= until):
            desks[1].wait((at - desks[1].now) / SECOND)
            callers[1][who].say(octets)
        late = [entry for entry in late if entry[0] > until]
        desks[1].wait((until - desks[1].now) / SECOND)
        desks[1].now = desks[0].now
        assert snapshot(desks[1]) == snapshot(desks[0])
    assert desks[1].server.metrics.repeated > 50
    assert desks[0].server.metrics.repeated == 0
