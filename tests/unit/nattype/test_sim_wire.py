"""What links do to packets, and that the ledger misses none."""

from __future__ import annotations

import pytest

from nattype.lab.sim import SERVER_A, Entry, Fate, Happening, Scenario, behind
from nattype.lab.sim.machines import Puppet
from nattype.lab.sim.wire import (
    ACK,
    PORT_UNREACHABLE,
    SYN,
    IcmpError,
    Packet,
    Segment,
    icmp_error,
)
from nattype.model import Link
from stun.sansio import MILLISECOND, Address, Received, Undeliverable

A = Address(SERVER_A, 3478)
COUNT = 400


def flood(seed: int, link: Link, *, count: int = COUNT, size: int = 8) -> tuple[Scenario, Puppet]:
    """Send numbered datagrams 1 ms apart over a link; return what became of them."""
    scenario = behind("open", seed=seed, link=link, trace=True)
    world = scenario.world
    client, server = Puppet(), Puppet()
    world.attach(client, scenario.host)
    world.attach(server, scenario.server)
    local = Address(scenario.host.address(), 5000)
    client.bind(local)
    server.bind(A)
    world.run()
    for number in range(count):
        client.send(local, A, number.to_bytes(size, "big"))
        world.run(until=world.now + MILLISECOND)
    world.run()
    return scenario, server


def numbers(server: Puppet) -> list[int]:
    return [int.from_bytes(packet.data, "big") for packet in server.received()]


def test_a_perfect_link_keeps_everything_in_order(seed: int) -> None:
    _, server = flood(seed, Link())
    assert numbers(server) == list(range(COUNT))


def test_loss_is_what_the_link_says(seed: int) -> None:
    scenario, server = flood(seed, Link(loss=0.25))
    lost = scenario.world.dropped[Fate.LOST]
    assert lost + len(server.received()) == COUNT
    # Six standard deviations of a binomial distribution: one false alarm in 500 million.
    assert abs(lost - COUNT / 4) < 6 * (COUNT * 0.25 * 0.75) ** 0.5
    assert numbers(server) == sorted(numbers(server)), "loss does not reorder"


def test_total_loss(seed: int) -> None:
    _, server = flood(seed, Link(loss=1.0), count=20)
    assert server.received() == []


def test_delay(seed: int) -> None:
    scenario, server = flood(seed, Link(delay=0.3), count=1)
    [(at, _)] = [entry for entry in server.log if isinstance(entry[1], Received)]
    [sent] = [entry.at for entry in scenario.world.trace if entry.happening == Happening.SENT]
    assert 300 * MILLISECOND <= at - sent < 301 * MILLISECOND


def test_jitter_reorders_and_loses_nothing(seed: int) -> None:
    _, server = flood(seed, Link(delay=0.01, jitter=0.05))
    assert sorted(numbers(server)) == list(range(COUNT))
    assert numbers(server) != list(range(COUNT))


class TestFragments:
    def test_a_large_datagram_arrives_whole(self, seed: int) -> None:
        scenario, server = flood(seed, Link(mtu=1280), count=5, size=5000)
        assert [len(packet.data) for packet in server.received()] == [5000] * 5
        assert scenario.world.sent == 5

    def test_it_is_lost_with_any_of_its_fragments(self, seed: int) -> None:
        # 5000 octets over an MTU of 1500 are four fragments: 0.9 ** 4 is 0.656.
        scenario, server = flood(seed, Link(loss=0.1), size=5000)
        arrived = len(server.received())
        assert abs(arrived - COUNT * 0.9**4) < 6 * (COUNT * 0.656 * 0.344) ** 0.5
        assert scenario.world.dropped[Fate.FRAGMENT_LOST] == COUNT - arrived

    @pytest.mark.parametrize(("octets", "fragments"), [(1472, 1), (1473, 2), (2952, 2), (2953, 3)])
    def test_their_number(self, octets: int, fragments: int, seed: int) -> None:
        """RFC 791: an MTU of 1500 leaves 1480 octets of payload a fragment, 8 of them UDP's."""
        scenario = behind("open", seed=seed)
        packet = Packet(Address(scenario.host.address(), 1), A, bytes(octets))
        interface = scenario.host.interface(scenario.host.address())
        interface.network.carry(packet, interface)
        assert packet.fragments == fragments

    def test_it_arrives_with_the_slowest_of_its_fragments(self, seed: int) -> None:
        scenario, server = flood(seed, Link(jitter=0.1), count=1, size=65_000)
        # That each of 44 fragments is in the faster half has probability 2 ** -44.
        assert len(server.received()) == 1
        assert scenario.world.now > 50 * MILLISECOND

    def test_nothing_is_longer_than_a_datagram(self, seed: int) -> None:
        scenario, server = flood(seed, Link(), count=1, size=65_508)
        assert server.received() == []
        assert scenario.world.dropped[Fate.TOO_LONG] == 1


class TestIcmp:
    def test_no_error_about_an_error(self) -> None:
        error = icmp_error("192.0.2.1", Packet(A, Address("192.0.2.9", 1)), PORT_UNREACHABLE)
        assert error is not None
        assert icmp_error("192.0.2.2", error, PORT_UNREACHABLE) is None

    @pytest.mark.parametrize(
        ("source", "numbers"), [(A, (3, 3)), (Address("2001:db8::1", 1), (1, 4))]
    )
    def test_numbers_of_both_families(self, source: Address, numbers: tuple[int, int]) -> None:
        error = icmp_error("x", Packet(source, source), PORT_UNREACHABLE)
        assert error is not None
        assert (error.icmp_type, error.code) == numbers

    def test_no_route(self, seed: int) -> None:
        scenario = behind("port-restricted-cone", seed=seed)
        client = Puppet()
        scenario.world.attach(client, scenario.host)
        local, nowhere = Address(scenario.host.address(), 5000), Address("192.0.2.1", 9)
        client.bind(local)
        client.send(local, nowhere)
        scenario.world.run()
        assert client.told()[-1] == Undeliverable(local, nowhere, 3, 0)
        assert scenario.world.dropped[Fate.NO_ROUTE] == 1


def test_a_trace_follows_a_packet_through_its_translations(seed: int) -> None:
    scenario = behind("cgnat", seed=seed, trace=True)
    client, server = Puppet(), Puppet()
    scenario.world.attach(client, scenario.host)
    scenario.world.attach(server, scenario.server)
    local = Address(scenario.host.address(), 5000)
    client.bind(local)
    server.bind(A)
    client.send(local, A, b"hello")
    scenario.world.run()
    steps = [(e.place, e.happening, e.source.host) for e in scenario.world.trace]
    mapped = server.received()[0].source.host
    assert steps == [
        ("host", "sent", "192.168.1.10"),
        ("net1", "forwarded", "192.168.1.10"),
        ("net2", "forwarded", "100.64.1.2"),
        ("internet", "forwarded", mapped),
        ("server", "delivered", mapped),
    ]
    assert {entry.serial for entry in scenario.world.trace} == {1}
    # One hop at each box and one at the public network's router.
    assert [entry.ttl for entry in scenario.world.trace] == [64, 64, 63, 61, 61]


def test_a_trace_entry_can_be_read() -> None:
    entry = Entry(
        1_500_000, 7, "box1", Happening.DROPPED, Fate.NOT_INVITED, 17, A, A, 60, 33, "", b"hello"
    )
    text = str(entry)
    for part in ("0.001500", "#7", "box1", "dropped", "udp", str(A), "ttl=60", "not invited"):
        assert part in text
    segment = Segment(A, A, SYN | ACK, 5, acknowledgment=6)
    assert segment.detail == "SYN+ACK seq=5 ack=6"
    assert "udp" in IcmpError("x", Packet(A, A), 3, 3).detail


def test_no_trace_is_kept_unasked(seed: int) -> None:
    scenario = behind("open", seed=seed)
    assert scenario.world.trace == []
    client = Puppet()
    scenario.world.attach(client, scenario.host)
    client.bind(Address(scenario.host.address(), 5000))
    client.send(Address(scenario.host.address(), 5000), A)
    scenario.world.run()
    assert scenario.world.sent == 2, "the datagram and its ICMP error"
    assert scenario.world.trace == []


def test_an_address_belongs_to_one_interface(seed: int) -> None:
    scenario = behind("open", seed=seed)
    other = scenario.world.host("impostor")
    with pytest.raises(ValueError, match="already server's"):
        scenario.world.plug(other, scenario.world.internet, SERVER_A)
