"""The virtual driver keeps the rules of stun.sansio."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import pytest

from nattype.lab.sim import SERVER_A, Scenario, behind
from nattype.lab.sim.machines import Puppet, Reflector
from nattype.lab.sim.tcp import TIME_WAIT
from stun.sansio import (
    SECOND,
    Accepted,
    Address,
    Cause,
    Closed,
    Connected,
    Instant,
    Listen,
    Opened,
    OpenUdp,
    Output,
    Received,
    Shut,
    SocketEvent,
    Transmit,
)

A = Address(SERVER_A, 3478)


@dataclass
class Tick:
    at: Instant


class Ticker:
    """Tells the instant of each of its deadlines, and checks the driver's manners."""

    def __init__(self, *deadlines: Instant) -> None:
        self.deadlines = sorted(deadlines)
        self.queue: deque[Output | Tick] = deque()
        self.now: Instant = 0
        self.early = 0

    def _check(self, now: Instant) -> None:
        assert now >= self.now, "now decreased"
        assert not self.queue, "a call came before poll had given None"
        self.now = now

    def receive(self, packet: Received, now: Instant) -> None:
        self._check(now)

    def on_socket(self, event: SocketEvent, now: Instant) -> None:
        self._check(now)

    def on_deadline(self, now: Instant) -> None:
        self._check(now)
        self.early += not (self.deadlines and self.deadlines[0] <= now)
        while self.deadlines and self.deadlines[0] <= now:
            self.deadlines.pop(0)
            self.queue.append(Tick(now))

    def poll(self) -> Output | Tick | None:
        return self.queue.popleft() if self.queue else None

    def deadline(self) -> Instant | None:
        return self.deadlines[0] if self.deadlines else None


@pytest.fixture
def scenario(seed: int) -> Scenario:
    return behind("open", seed=seed)


def test_deadlines_are_met_to_the_nanosecond(scenario: Scenario) -> None:
    machine = Ticker(5, 7, 7, 3 * SECOND)
    attachment = scenario.world.attach(machine, scenario.host)
    assert scenario.world.run()
    assert attachment.events == [Tick(5), Tick(7), Tick(7), Tick(3 * SECOND)]
    assert scenario.world.now == 3 * SECOND
    assert machine.early == 0


def test_a_deadline_that_was_moved_away_does_not_ring(scenario: Scenario) -> None:
    machine = Ticker(SECOND)
    attachment = scenario.world.attach(machine, scenario.host)
    attachment.pump()
    machine.deadlines = [2 * SECOND]
    attachment.pump()
    machine.deadlines = []
    attachment.pump()
    assert scenario.world.run()
    assert (attachment.events, machine.early, scenario.world.now) == ([], 0, 0)


def test_a_deadline_in_the_past_rings_now(scenario: Scenario) -> None:
    scenario.world.run(until=SECOND)
    attachment = scenario.world.attach(Ticker(1), scenario.host)
    scenario.world.run()
    assert attachment.events == [Tick(SECOND)]


def test_a_machine_that_never_moves_its_deadline_is_found_out(scenario: Scenario) -> None:
    class Stuck(Ticker):
        def on_deadline(self, now: Instant) -> None:
            return

    scenario.world.attach(Stuck(5), scenario.host)
    with pytest.raises(RuntimeError, match="Stuck on host does not move its deadline past 5 ns"):
        scenario.world.run()


def test_events_go_to_the_callback_when_there_is_one(scenario: Scenario) -> None:
    seen: list[Tick] = []
    attachment = scenario.world.attach(Ticker(5), scenario.host, on_event=seen.append)
    scenario.world.run()
    assert (seen, attachment.events) == ([Tick(5)], [])


def test_a_command_in_a_callback_is_carried_out(scenario: Scenario) -> None:
    """What a callback queues is polled in the same round, without a nested one."""
    scenario.world.attach(Reflector(A), scenario.server)
    machine = Puppet()
    local = Address(scenario.host.address(), 5000)
    answers: list[bytes] = []

    def on_event(event: object) -> None:
        if isinstance(event, Opened):
            machine.send(local, A)
            attachment.pump()
        elif isinstance(event, Received):
            answers.append(event.data)

    attachment = scenario.world.attach(machine, scenario.host, on_event)
    machine.bind(local)
    scenario.world.run()
    assert answers == [f"{local.host} 5000".encode()]


def test_outputs_keep_their_order_across_sockets(scenario: Scenario) -> None:
    server, client = Puppet(), Puppet()
    scenario.world.attach(server, scenario.server)
    scenario.world.attach(client, scenario.host)
    server.bind(A)
    one, two = (Address(scenario.host.address(), port) for port in (5000, 5001))
    client.do(OpenUdp(1, one), Transmit(b"1", A, one), OpenUdp(2, two), Transmit(b"2", A, two))
    client.do(Shut(1), Transmit(b"lost", A, one), Transmit(b"3", A, two))
    scenario.world.run()
    assert [packet.data for packet in server.received()] == [b"1", b"2", b"3"]


def test_nothing_is_told_about_a_socket_after_shut(scenario: Scenario) -> None:
    client = Puppet()
    scenario.world.attach(client, scenario.host)
    local = Address(scenario.host.address(), 5000)
    client.do(OpenUdp(1, local), Shut(1), Listen(2, local), Shut(2))
    client.do(Shut(3), OpenUdp(4, Address("192.0.2.1", 1)))
    scenario.world.run()
    assert client.told() == [Closed(4, Cause.ADDRESS_NOT_AVAILABLE)]


def test_handles_of_accepted_connections_count_down(scenario: Scenario) -> None:
    server, client = Puppet(), Puppet()
    scenario.world.attach(server, scenario.server)
    scenario.world.attach(client, scenario.host)
    server.listen(A)
    for port in (5000, 5001, 5002):
        client.dial(Address(scenario.host.address(), port), A)
    scenario.world.run()
    assert [(e.listener, e.handle) for e in server.accepted()] == [(1, -1), (1, -2), (1, -3)]


def test_a_detached_machine_hears_nothing_and_its_ports_are_free(scenario: Scenario) -> None:
    world = scenario.world
    first, second = Puppet(), Puppet()
    attachment = world.attach(first, scenario.server)
    first.bind(A)
    first.listen(A)
    client = Puppet()
    world.attach(client, scenario.host)
    local = Address(scenario.host.address(), 5000)
    client.bind(local)
    handle = client.dial(local, A)
    world.run()
    attachment.detach()
    client.send(local, A, b"too late")
    world.run()
    assert first.received() == []
    assert client.closed(handle) is Cause.END_OF_STREAM
    world.attach(second, scenario.server)
    second.bind(A)
    second.listen(A)
    world.run(until=world.now + TIME_WAIT)
    again = client.dial(local, A)
    world.run()
    assert [type(e) for e in second.told()] == [Opened, Opened, Accepted]
    assert Connected(again, local, A) in client.told()
