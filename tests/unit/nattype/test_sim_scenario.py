"""The ready-made networks: who has which address, and what is in between."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from nattype.lab.sim import (
    SERVER_A,
    SERVER_A6,
    SERVER_B,
    SERVER_B6,
    Scenario,
    SimOptions,
    behind,
    pair,
)
from nattype.lab.sim.machines import Puppet, Reflector
from nattype.model import NAMED_KINDS, Kind, Link, Mapping, NatModel, grid, kind
from stun.sansio import MILLISECOND, Address

FIREWALL, NAT = NatModel(mapping=Mapping.NONE), NatModel()
EVERY_KIND = (
    *NAMED_KINDS,
    *grid(),
    Kind("firewall-nat", "", (FIREWALL, NAT)),
    Kind("nat-firewall", "", (NAT, FIREWALL)),
    Kind("firewall-firewall", "", (FIREWALL, FIREWALL)),
    Kind("nat-nat-nat", "", (NAT, NAT, NAT)),
)


def ask(scenario: Scenario, *, ipv6: bool) -> str | None:
    """Return the address that the server sees the host at."""
    server = Address(SERVER_A6 if ipv6 else SERVER_A, 3478)
    scenario.world.attach(Reflector(server), scenario.server)
    client = Puppet()
    scenario.world.attach(client, scenario.host)
    local = Address(scenario.host.address(ipv6=ipv6), 5000)
    client.bind(local)
    client.send(local, server)
    scenario.world.run()
    answers = client.received()
    return answers[0].data.split()[0].decode() if answers else None


@pytest.mark.parametrize("ipv6", [False, True])
@pytest.mark.parametrize("which", EVERY_KIND, ids=lambda k: k.name)
def test_every_kind_reaches_the_server(which: Kind, ipv6: bool, seed: int) -> None:
    scenario = behind(which, seed=seed)
    seen = ask(scenario, ipv6=ipv6)
    if any(box.udp_blocked for box in which.boxes):
        assert seen is None
    elif all(box.mapping is Mapping.NONE for box in which.boxes):
        assert seen == scenario.host.address(ipv6=ipv6)
    else:
        outermost = next(
            box for box in reversed(scenario.boxes) if box.model.mapping is not Mapping.NONE
        )
        assert seen == outermost.external_addresses(ipv6=ipv6)[0]
    if seen is not None:
        assert ip_address(seen).is_global


def test_addresses() -> None:
    scenario = behind("cgnat")
    assert scenario.server.addresses == (SERVER_A, SERVER_A6, SERVER_B, SERVER_B6)
    assert scenario.host.addresses == ("192.168.1.10", "fd00:192:168:1::10")
    assert [box.external_addresses()[0] for box in scenario.boxes] == ["100.64.1.2", "192.52.193.2"]
    assert behind("open").host.addresses == ("192.52.193.2", "2620:4f:8000:1::2")
    assert behind("firewall").host.address() == "192.52.193.10"


def test_a_link_is_between_the_site_and_the_internet(seed: int) -> None:
    for name in ("open", "firewall", "cgnat"):
        scenario = behind(name, seed=seed, link=Link(delay=0.1))
        ask(scenario, ipv6=False)
        assert 200 * MILLISECOND <= scenario.world.now < 201 * MILLISECOND, name


def test_a_pair_meets_through_endpoint_independent_nats(seed: int) -> None:
    scenario = pair("full-cone", "port-restricted-cone", seed=seed)
    world = scenario.world
    server = Address(SERVER_A, 3478)
    world.attach(Reflector(server), scenario.server)
    hands = []
    for host in (scenario.host, scenario.peer):
        machine = Puppet()
        world.attach(machine, host)
        local = Address(host.address(), 5000)
        machine.bind(local)
        machine.send(local, server)
        hands.append((machine, local))
    world.run()
    mapped = []
    for machine, _ in hands:
        host_text, port = machine.received()[0].data.decode().split()
        mapped.append(Address(host_text, int(port)))
    (a, a_local), (b, b_local) = hands
    b.send(b_local, mapped[0], b"from b")
    world.run()
    a.send(a_local, mapped[1], b"from a")
    world.run()
    assert [packet.data for packet in a.received()[1:]] == [b"from b"]
    assert [packet.data for packet in b.received()[1:]] == [b"from a"]


def test_strangers_and_neighbours(seed: int) -> None:
    scenario = behind("port-restricted-cone", seed=seed)
    stranger, neighbour = scenario.public_host(), scenario.neighbour()
    assert ip_address(stranger.address()).is_global
    assert neighbour.addresses == ("192.168.1.11", "fd00:192:168:1::11")
    mine, theirs = Puppet(), Puppet()
    scenario.world.attach(mine, scenario.host)
    scenario.world.attach(theirs, neighbour)
    local, other = Address(scenario.host.address(), 5000), Address(neighbour.address(), 5000)
    mine.bind(local)
    theirs.bind(other)
    mine.send(local, other, b"over the LAN")
    scenario.world.run()
    assert theirs.received()[0].source == local


def test_options_are_for_all_boxes_or_for_each(seed: int) -> None:
    some = SimOptions(port_parity=True)
    assert [box.options for box in behind("cgnat", options=some).boxes] == [some, some]
    each = (SimOptions(), some)
    assert tuple(box.options for box in behind("cgnat", options=each).boxes) == each
    with pytest.raises(ValueError, match="cgnat has 2 boxes, but there are options for 1"):
        behind("cgnat", seed=seed, options=(some,))


def test_kinds_go_by_name_too() -> None:
    assert behind("symmetric").sites[0].kind is kind("symmetric")
    with pytest.raises(ValueError, match="unknown kind 'nonsense'"):
        behind("nonsense")
