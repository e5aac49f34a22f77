"""A world is a function of its seed."""

from __future__ import annotations

import pytest

from nattype.lab.sim import World
from nattype.lab.sim.machines import Puppet
from nattype.model import NatModel
from stun.sansio import SECOND, Address


def test_streams_of_random_numbers_are_named() -> None:
    world, same, other = World(1), World(1), World(2)
    draws = world.random("x").random()
    assert draws == same.random("x").random()
    assert draws != world.random("y").random()
    assert draws != other.random("x").random()
    assert len(world.entropy("client")(12)) == 12
    assert world.entropy("client")(12) == same.entropy("client")(12)
    assert world.entropy("client")(12) != world.entropy("server")(12)


def test_successive_entropy_differs() -> None:
    entropy = World(1).entropy("client")
    assert entropy(12) != entropy(12)


def test_a_world_by_hand() -> None:
    world = World(7)
    lan = world.network("lan")
    laptop, server = world.host("laptop"), world.host("server")
    box = world.box(
        "router",
        NatModel(),
        lan,
        world.internet,
        inside_addresses=("192.168.1.1",),
        external=("192.52.193.1",),
    )
    world.plug(laptop, lan, "192.168.1.2")
    world.plug(server, world.internet, "192.31.196.10")
    client, peer = Puppet(), Puppet()
    world.attach(client, laptop)
    world.attach(peer, server)
    client.bind(Address("192.168.1.2", 5000))
    peer.bind(Address("192.31.196.10", 3478))
    client.send(Address("192.168.1.2", 5000), Address("192.31.196.10", 3478))
    assert world.run()
    assert peer.received()[0].source == Address("192.52.193.1", 5000)
    assert box.translations() == [(17, Address("192.168.1.2", 5000), Address("192.52.193.1", 5000))]
    world.run(until=31 * SECOND)
    assert box.translations() == []
    assert (world.sent, world.delivered, sum(world.dropped.values())) == (1, 1, 0)


def test_names_are_unique() -> None:
    world = World(0)
    world.host("twin")
    with pytest.raises(ValueError, match="two nodes called 'twin'"):
        world.host("twin")


def test_an_empty_world_ends_at_once() -> None:
    world = World(0)
    assert world.run()
    assert world.now == 0
    assert not world.run(until=lambda: False)
