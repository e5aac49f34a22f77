"""A host's sockets: who may bind what, and who gets which datagram."""

from __future__ import annotations

import pytest

from nattype.lab.sim import SERVER_A, SERVER_A6, SERVER_B, Fate, Scenario, behind
from nattype.lab.sim.host import EPHEMERAL
from nattype.lab.sim.machines import Puppet, Reflector
from stun.sansio import Address, Cause, Closed, Opened, Transmit, Undeliverable

A = Address(SERVER_A, 3478)


@pytest.fixture
def scenario(seed: int) -> Scenario:
    return behind("open", seed=seed)


def puppet(scenario: Scenario) -> Puppet:
    machine = Puppet()
    scenario.world.attach(machine, scenario.host)
    return machine


def test_binding(scenario: Scenario) -> None:
    mine = scenario.host.address()
    client, other = puppet(scenario), puppet(scenario)
    client.bind(Address(mine, 5000))
    client.bind(Address(mine, 0))
    client.bind(Address("192.0.2.1", 5000))
    other.bind(Address(mine, 5000))
    other.bind(Address("0.0.0.0", 5000))
    other.bind(Address(scenario.host.address(ipv6=True), 5000))
    scenario.world.run()
    first, second, third = client.told()
    assert first == Opened(1, Address(mine, 5000))
    assert isinstance(second, Opened)
    assert second.local.port in EPHEMERAL
    assert third == Closed(3, Cause.ADDRESS_NOT_AVAILABLE)
    assert other.told() == [
        Closed(1, Cause.ADDRESS_IN_USE),
        Closed(2, Cause.ADDRESS_IN_USE),
        Opened(3, Address(scenario.host.address(ipv6=True), 5000)),
    ]


def test_a_shut_socket_frees_its_port(scenario: Scenario) -> None:
    local = Address(scenario.host.address(), 5000)
    client = puppet(scenario)
    client.shut(client.bind(local))
    again = client.bind(local)
    scenario.world.run()
    assert client.told() == [Opened(again, local)]


def test_each_machine_gets_its_own_datagrams(scenario: Scenario) -> None:
    scenario.world.attach(Reflector(A), scenario.server)
    machines = [puppet(scenario) for _ in range(3)]
    for number, machine in enumerate(machines):
        local = Address(scenario.host.address(), 5000 + number)
        machine.bind(local)
        machine.send(local, A)
    scenario.world.run()
    for number, machine in enumerate(machines):
        [packet] = machine.received()
        assert packet.local.port == 5000 + number
        assert packet.data == f"{scenario.host.address()} {5000 + number}".encode()


@pytest.mark.parametrize("ipv6", [False, True])
def test_a_wildcard_socket_hears_every_address_and_says_which(ipv6: bool, seed: int) -> None:
    scenario = behind("open", seed=seed)
    server = Puppet()
    scenario.world.attach(server, scenario.server)
    server.bind(Address("::" if ipv6 else "0.0.0.0", 3478))
    client = puppet(scenario)
    local = Address(scenario.host.address(ipv6=ipv6), 5000)
    client.bind(local)
    hosts = [host for host in scenario.server.addresses if (":" in host) == ipv6]
    for host in hosts:
        client.send(local, Address(host, 3478))
    scenario.world.run()
    assert [packet.local.host for packet in server.received()] == hosts
    server.do(Transmit(b"", local, Address(hosts[1], 3478)))
    scenario.world.run()
    assert client.received()[-1].source == Address(hosts[1], 3478)


def test_a_wildcard_source_is_the_address_that_routing_chooses(scenario: Scenario) -> None:
    server, client = Puppet(), puppet(scenario)
    scenario.world.attach(server, scenario.server)
    server.bind(A)
    client.bind(Address("0.0.0.0", 5000))
    client.send(Address("0.0.0.0", 5000), A)
    scenario.world.run()
    assert server.received()[0].source == Address(scenario.host.address(), 5000)


def test_a_closed_port_is_told(scenario: Scenario) -> None:
    client = puppet(scenario)
    local = Address(scenario.host.address(), 5000)
    client.bind(local)
    client.send(local, A)
    scenario.world.run()
    assert client.told()[-1] == Undeliverable(local, A, 3, 3)


def test_nothing_leaves_a_socket_that_is_not_open(scenario: Scenario) -> None:
    mine = scenario.host.address()
    client, other = puppet(scenario), puppet(scenario)
    other.bind(Address(mine, 5001))
    client.send(Address(mine, 5000), A)
    client.send(Address(mine, 5001), A)  # open, but another machine's
    scenario.world.run()
    assert scenario.world.dropped == {Fate.NOT_OPEN: 2}


def test_families_do_not_mix(scenario: Scenario) -> None:
    client = puppet(scenario)
    local = Address(scenario.host.address(), 5000)
    client.bind(local)
    client.send(local, Address(SERVER_A6, 3478))
    scenario.world.run()
    assert scenario.world.dropped == {Fate.NO_ROUTE: 1}


def test_loopback_and_own_addresses_never_touch_the_wire(seed: int) -> None:
    scenario = behind("udp-blocked", seed=seed)
    client = puppet(scenario)
    mine = Address(scenario.host.address(), 5000)
    loopback = Address("127.0.0.1", 5001)
    client.bind(mine)
    client.bind(loopback)
    client.send(mine, mine, b"to myself")
    client.send(loopback, loopback, b"round the loop")
    handle = client.dial(Address("127.0.0.1", 0), Address("127.0.0.1", 6000))
    scenario.world.run()
    assert [packet.data for packet in client.received()] == [b"to myself", b"round the loop"]
    assert client.closed(handle) is Cause.REFUSED


def test_a_host_on_two_networks_answers_from_the_right_one(seed: int) -> None:
    scenario = behind("port-restricted-cone", seed=seed)
    world = scenario.world
    world.plug(scenario.host, world.internet, "192.52.193.200")
    server = Puppet()
    world.attach(server, scenario.server)
    server.bind(A)
    client = puppet(scenario)
    for host in scenario.host.addresses:
        if ":" not in host:
            client.bind(Address(host, 5000))
            client.send(Address(host, 5000), A)
    world.run()
    assert sorted(packet.source.host for packet in server.received()) == [
        "192.52.193.2",
        "192.52.193.200",
    ]


def test_an_address_that_a_host_does_not_have(scenario: Scenario) -> None:
    bare = scenario.world.host("bare")
    with pytest.raises(LookupError, match="bare has no IPv6 address"):
        bare.address(ipv6=True)
    assert SERVER_B in scenario.server.addresses
