"""Each axis of the model, by what a box does to packets and not by what is in its tables."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from nattype.lab.sim import (
    SERVER_A,
    SERVER_A6,
    SERVER_B,
    SERVER_B6,
    Fate,
    Pooling,
    Refresh,
    Scenario,
    SimOptions,
    behind,
)
from nattype.lab.sim.machines import Puppet
from nattype.lab.sim.options import LIKE_LINUX
from nattype.lab.sim.wire import IcmpError, Packet
from nattype.model import Allocation, Filtering, Kind, Lifetimes, Mapping, NatModel, Unsolicited
from stun.sansio import SECOND, Address, Arrived, Cause, Undeliverable

A1, A2 = Address(SERVER_A, 3478), Address(SERVER_A, 3479)
B1, B2 = Address(SERVER_B, 3478), Address(SERVER_B, 3479)
GRID4 = (A1, A2, B1, B2)
EIM, ADM, APDM = (
    Mapping.ENDPOINT_INDEPENDENT,
    Mapping.ADDRESS_DEPENDENT,
    Mapping.ADDRESS_AND_PORT_DEPENDENT,
)
EIF, ADF, APDF = (
    Filtering.ENDPOINT_INDEPENDENT,
    Filtering.ADDRESS_DEPENDENT,
    Filtering.ADDRESS_AND_PORT_DEPENDENT,
)
RANDOM, SEQUENTIAL, PRESERVED = Allocation.RANDOM, Allocation.SEQUENTIAL, Allocation.PRESERVED


class Bench:
    """A client behind one box and a server with two addresses and two ports, both led by hand."""

    def __init__(
        self,
        *models: NatModel,
        seed: int = 0,
        options: SimOptions = LIKE_LINUX,
        server: tuple[Address, ...] = GRID4,
        ipv6: bool = False,
    ) -> None:
        self.scenario: Scenario = behind(
            Kind("bench", "", models), seed=seed, options=options, trace=True
        )
        self.world = self.scenario.world
        self.client, self.server = Puppet(), Puppet()
        self.world.attach(self.client, self.scenario.host)
        self.world.attach(self.server, self.scenario.server)
        for address in server:
            self.server.bind(address)
        self.local = Address(self.scenario.host.address(ipv6=ipv6), 5000)
        self.client.bind(self.local)
        self.world.run()

    def out(self, to: Address, local: Address | None = None) -> Address | None:
        """Send a datagram to the server; return the source that the server saw."""
        before = len(self.server.received())
        self.client.send(local or self.local, to, b"out")
        self.world.run(max_time=1)
        fresh = self.server.received()[before:]
        assert len(fresh) <= 1
        return fresh[0].source if fresh else None

    def into(self, mapped: Address, by: Address) -> bool:
        """Send a datagram from a server endpoint; return whether the client got it."""
        before = len(self.client.received())
        self.server.send(by, mapped, b"in")
        self.world.run(max_time=1)
        fresh = self.client.received()[before:]
        assert all(packet.source == by for packet in fresh)
        return bool(fresh)

    def wait(self, seconds: float) -> None:
        self.world.run(until=self.world.now + round(seconds * SECOND))


@pytest.mark.parametrize("allocation", [RANDOM, SEQUENTIAL])
@pytest.mark.parametrize(
    ("mapping", "distinct"), [(EIM, [0, 0, 0, 0]), (ADM, [0, 0, 1, 1]), (APDM, [0, 1, 2, 3])]
)
def test_mapping(mapping: Mapping, distinct: list[int], allocation: Allocation, seed: int) -> None:
    bench = Bench(NatModel(mapping, APDF, allocation), seed=seed)
    seen = [bench.out(to) for to in GRID4]
    order = list(dict.fromkeys(seen))
    assert [order.index(source) for source in seen] == distinct
    assert [bench.out(to) for to in GRID4] == seen, "the mapping changed between two rounds"


def test_mapping_over_ipv6(seed: int) -> None:
    server = tuple(Address(h, p) for h in (SERVER_A6, SERVER_B6) for p in (3478, 3479))
    bench = Bench(NatModel(ADM, APDF, RANDOM), seed=seed, server=server, ipv6=True)
    seen = [bench.out(to) for to in server]
    assert seen[0] == seen[1] != seen[2] == seen[3]
    assert seen[0] is not None
    assert seen[0].host == bench.scenario.boxes[0].external_addresses(ipv6=True)[0]


@pytest.mark.parametrize("mapping", [EIM, ADM, APDM])
@pytest.mark.parametrize(
    ("filtering", "passes"),
    [
        (EIF, {A1, A2, B1, B2}),
        (Filtering.NONE, {A1, A2, B1, B2}),
        (ADF, {A1, A2}),
        (APDF, {A1}),
    ],
)
def test_filtering(mapping: Mapping, filtering: Filtering, passes: set[Address], seed: int) -> None:
    for by in GRID4:  # a fresh box for each, since what is let in may open the filter further
        bench = Bench(NatModel(mapping, filtering, RANDOM), seed=seed)
        mapped = bench.out(A1)
        assert mapped is not None
        assert bench.into(mapped, by) == (by in passes), by


def test_the_answer_to_a_stranger_leaves_by_the_mapping_that_was_addressed(seed: int) -> None:
    bench = Bench(NatModel(APDM, EIF, RANDOM), seed=seed)
    mapped = bench.out(A1)
    assert mapped is not None
    assert bench.into(mapped, B2)
    assert bench.out(B2) == mapped


@pytest.mark.parametrize("delta", [1, 2, -3])
def test_sequential_allocation_steps_by_delta(delta: int, seed: int) -> None:
    bench = Bench(NatModel(APDM, APDF, SEQUENTIAL, delta=delta), seed=seed)
    ports = [source.port for to in GRID4 if (source := bench.out(to))]
    assert [b - a for a, b in pairwise(ports)] == [delta] * 3


def test_preserved_allocation_falls_back_when_the_port_is_taken(seed: int) -> None:
    bench = Bench(NatModel(), seed=seed)
    neighbour = bench.scenario.neighbour()
    other = Puppet()
    bench.world.attach(other, neighbour)
    local = Address(neighbour.address(), 5000)
    other.bind(local)
    first = bench.out(A1)
    other.send(local, A1)
    bench.world.run(max_time=1)
    second = bench.server.received()[-1].source
    assert first is not None
    assert first.port == 5000
    assert second.host == first.host
    assert second.port != 5000
    other.log.clear()
    bench.server.send(A1, second, b"for the neighbour")
    bench.world.run(max_time=1)
    assert [packet.data for packet in other.received()] == [b"for the neighbour"]


def test_random_ports_have_no_pattern(seed: int) -> None:
    bench = Bench(NatModel(APDM, APDF, RANDOM), seed=seed)
    ports = [source.port for to in GRID4 if (source := bench.out(to))]
    assert len({b - a for a, b in pairwise(ports)}) > 1


class TestLifetimes:
    MODEL = NatModel(ADM, APDF, RANDOM, lifetimes=Lifetimes(udp_one_shot=30, udp_stream=120))

    def test_one_shot(self, seed: int) -> None:
        bench = Bench(self.MODEL, seed=seed)
        mapped = bench.out(A1)
        assert mapped is not None
        bench.wait(28)
        assert bench.into(mapped, A1)
        bench.wait(31)
        assert not bench.into(mapped, A1)
        assert bench.out(A1) != mapped

    def test_packets_both_ways_for_over_two_seconds_make_a_stream(self, seed: int) -> None:
        bench = Bench(self.MODEL, seed=seed)
        mapped = bench.out(A1)
        assert mapped is not None
        assert bench.into(mapped, A1)
        bench.wait(3)
        assert bench.out(A1) == mapped
        bench.wait(110)
        assert bench.into(mapped, A1)
        bench.wait(121)
        assert not bench.into(mapped, A1)

    @pytest.mark.parametrize(
        ("refresh", "outbound", "inbound"),
        [
            (Refresh.BOTH, True, True),
            (Refresh.OUTBOUND, True, False),
            (Refresh.INBOUND, False, True),
            (Refresh.NEVER, False, False),
        ],
    )
    def test_refresh(self, refresh: Refresh, outbound: bool, inbound: bool, seed: int) -> None:
        lifetimes = Lifetimes(udp_one_shot=30, udp_stream=30)
        model = replace(self.MODEL, lifetimes=lifetimes)
        for outward, lives in ((True, outbound), (False, inbound)):
            bench = Bench(model, seed=seed, options=SimOptions(refresh=refresh))
            mapped = bench.out(A1)
            assert mapped is not None
            bench.wait(20)
            if outward:
                assert bench.out(A1) == mapped
            else:
                assert bench.into(mapped, A1)
            bench.wait(20)
            assert bench.into(mapped, A1) == lives, (refresh, outward)

    def test_a_stranger_who_gets_no_answer_keeps_nothing_alive(self, seed: int) -> None:
        bench = Bench(NatModel(ADM, EIF, RANDOM, lifetimes=Lifetimes(30, 120)), seed=seed)
        mapped = bench.out(A1)
        assert mapped is not None
        bench.wait(20)
        assert bench.into(mapped, B2)
        bench.wait(20)
        assert not bench.into(mapped, B1)

    def test_restart_forgets_everything(self, seed: int) -> None:
        bench = Bench(NatModel(EIM, APDF, RANDOM), seed=seed)
        mapped = bench.out(A1)
        assert mapped is not None
        bench.scenario.boxes[0].forget()
        assert not bench.into(mapped, A1)
        assert bench.out(A1) != mapped


class TestFirewall:
    def test_addresses_are_unchanged_and_strangers_stay_out(self, seed: int) -> None:
        bench = Bench(NatModel(Mapping.NONE, APDF), seed=seed)
        assert bench.out(A1) == bench.local
        assert bench.into(bench.local, A1)
        assert not bench.into(bench.local, A2)
        assert bench.world.dropped[Fate.NOT_INVITED] == 1

    def test_one_without_a_filter_lets_everybody_in_unasked(self, seed: int) -> None:
        bench = Bench(NatModel(Mapping.NONE, Filtering.NONE), seed=seed)
        assert bench.into(bench.local, B2)
        assert bench.out(B2) == bench.local


class TestPoison:
    MODEL = NatModel(remaps_after_inbound=True, unsolicited_tcp=Unsolicited.RST)

    def test_who_knocked_first_costs_the_mapping_towards_him_alone(self, seed: int) -> None:
        bench = Bench(self.MODEL, seed=seed)
        mapped = bench.out(A1)
        assert mapped is not None
        assert not bench.into(mapped, B2)
        assert bench.out(B1) == mapped
        poisoned = bench.out(B2)
        assert poisoned is not None
        assert poisoned != mapped
        assert bench.into(poisoned, B2)
        assert bench.out(B2) == poisoned

    def test_it_passes_with_time(self, seed: int) -> None:
        bench = Bench(self.MODEL, seed=seed)
        mapped = bench.out(A1)
        assert mapped is not None
        bench.into(mapped, B2)
        bench.wait(31)
        assert bench.out(B2) == bench.out(A1)

    def test_the_router_says_port_unreachable(self, seed: int) -> None:
        bench = Bench(self.MODEL, seed=seed)
        mapped = bench.out(A1)
        assert mapped is not None
        bench.into(mapped, B2)
        assert Undeliverable(B2, mapped, 3, 3) in bench.server.told()

    def test_without_it_nobody_is_remembered(self, seed: int) -> None:
        bench = Bench(NatModel(), seed=seed)
        mapped = bench.out(A1)
        assert mapped is not None
        assert not bench.into(mapped, B2)
        assert bench.out(B2) == mapped
        assert not [e for e in bench.server.told() if isinstance(e, Undeliverable)]


class TestHairpin:
    def turn(self, model: NatModel, seed: int, **options: bool) -> list[Address]:
        """Have the host reach its neighbour's mapping; return the sources the neighbour saw."""
        bench = Bench(model, seed=seed, options=SimOptions(**options))  # type: ignore[arg-type]
        host = bench.scenario.neighbour()
        other = Puppet()
        bench.world.attach(other, host)
        local = Address(host.address(), 6000)
        other.bind(local)
        other.send(local, A1)
        bench.world.run(max_time=1)
        mine = bench.out(A1)
        theirs = next(p.source for p in bench.server.received() if p.source != mine)
        assert mine is not None
        other.send(local, mine, b"opens the filter")
        bench.world.run(max_time=1)
        bench.client.send(bench.local, theirs, b"turned")
        bench.world.run(max_time=1)
        self.mine, self.inner = mine, bench.local
        return [p.source for p in other.received() if p.data == b"turned"]

    @pytest.mark.parametrize("filtering", [EIF, ADF, APDF])
    def test_source_is_external(self, filtering: Filtering, seed: int) -> None:
        # RFC 4787 REQ-9: "A NAT that supports hairpinning MUST be of type 'External source IP
        # address and port'".
        seen = self.turn(NatModel(EIM, filtering, RANDOM, hairpin=True), seed)
        assert seen == [self.mine]

    def test_source_is_internal_when_asked_for(self, seed: int) -> None:
        model = NatModel(EIM, EIF, RANDOM, hairpin=True)
        assert self.turn(model, seed, hairpin_internal_source=True) == [self.inner]

    def test_none(self, seed: int) -> None:
        assert self.turn(NatModel(EIM, EIF, RANDOM), seed) == []


@pytest.mark.parametrize(
    ("model", "udp", "tcp"),
    [
        (NatModel(udp_blocked=True), False, True),
        (NatModel(tcp_blocked=True), True, False),
    ],
)
def test_blocked_protocols(model: NatModel, udp: bool, tcp: bool, seed: int) -> None:
    bench = Bench(model, seed=seed)
    bench.server.listen(A1)
    assert (bench.out(A1) is not None) == udp
    handle = bench.client.dial(bench.local, A1)
    bench.world.run(max_time=30)
    assert bench.client.connected(handle) == tcp


class TestTcp:
    def mapped(self, bench: Bench) -> Address:
        bench.server.listen(A1)
        handle = bench.client.dial(bench.local, A1)
        bench.client.listen(bench.local)
        bench.world.run(max_time=5)
        assert bench.client.connected(handle)
        return bench.server.accepted()[-1].remote

    def knock(self, bench: Bench, mapped: Address, by: Address) -> Cause | None:
        """Dial the mapping from a server endpoint; return why that failed, else ``None``."""
        handle = bench.server.dial(by, mapped)
        bench.world.run(max_time=200)
        assert bench.server.connected(handle) != (bench.server.closed(handle) is not None)
        return bench.server.closed(handle)

    @pytest.mark.parametrize("mapping", [EIM, ADM, APDM])
    @pytest.mark.parametrize(
        ("filtering", "passes"), [(EIF, {A2, B1, B2}), (ADF, {A2}), (APDF, set())]
    )
    def test_filtering(
        self, mapping: Mapping, filtering: Filtering, passes: set[Address], seed: int
    ) -> None:
        for by in (A2, B1, B2):
            bench = Bench(NatModel(mapping, filtering, RANDOM), seed=seed)
            cause = self.knock(bench, self.mapped(bench), by)
            assert cause == (None if by in passes else Cause.TIMED_OUT), by

    @pytest.mark.parametrize(
        ("unsolicited", "cause"),
        [
            (Unsolicited.DROP, Cause.TIMED_OUT),
            (Unsolicited.RST, Cause.REFUSED),
            (Unsolicited.ICMP, Cause.UNREACHABLE),
            (Unsolicited.OPEN, None),
        ],
    )
    def test_unsolicited(self, unsolicited: Unsolicited, cause: Cause | None, seed: int) -> None:
        bench = Bench(NatModel(unsolicited_tcp=unsolicited), seed=seed)
        assert self.knock(bench, self.mapped(bench), B2) == cause

    def test_mapping_is_one_for_all_destinations(self, seed: int) -> None:
        bench = Bench(NatModel(EIM, APDF, RANDOM), seed=seed)
        for address in GRID4:
            bench.server.listen(address)
            bench.client.dial(bench.local, address)
        bench.world.run(max_time=10)
        assert len(bench.server.accepted()) == 4
        assert len({event.remote for event in bench.server.accepted()}) == 1

    def test_a_refused_connection_does_not_cost_the_mapping(self, seed: int) -> None:
        bench = Bench(NatModel(EIM, APDF, RANDOM), seed=seed)
        bench.server.listen(A2)
        first = bench.client.dial(bench.local, A1)
        bench.world.run(max_time=1)
        assert bench.client.closed(first) is Cause.REFUSED
        [(_, _, external)] = [t for t in bench.scenario.boxes[0].translations() if t[0] == 6]
        bench.client.dial(bench.local, A2)
        bench.world.run(max_time=1)
        assert bench.server.accepted()[-1].remote == external

    def test_an_established_connection_outlives_the_transitory_time(self, seed: int) -> None:
        bench = Bench(NatModel(lifetimes=Lifetimes(tcp_established=7440)), seed=seed)
        self.mapped(bench)
        accepted = bench.server.accepted()[-1]
        bench.wait(7000)
        bench.server.write(accepted.handle, b"still there")
        bench.world.run(max_time=5)
        assert [e.data for e in bench.client.told() if isinstance(e, Arrived)] == [b"still there"]
        bench.wait(8000)
        bench.server.write(accepted.handle, b"anybody?")
        bench.world.run()
        assert bench.server.closed(accepted.handle) is Cause.TIMED_OUT

    def test_after_a_reset_the_peer_is_a_stranger(self, seed: int) -> None:
        bench = Bench(NatModel(unsolicited_tcp=Unsolicited.RST), seed=seed)
        mapped = self.mapped(bench)
        accepted = bench.server.accepted()[-1]
        bench.server.shut(accepted.handle, reset=True)
        bench.world.run(max_time=1)
        assert self.knock(bench, mapped, A1) is Cause.REFUSED
        assert bench.world.dropped[Fate.NOT_INVITED] == 1, "the box refused it, not the host"

    def test_a_mapping_outlives_a_reset_connection_by_the_transitory_time(self, seed: int) -> None:
        bench = Bench(NatModel(), seed=seed)
        self.mapped(bench)
        bench.server.shut(bench.server.accepted()[-1].handle, reset=True)
        bench.wait(239)
        assert len(bench.scenario.boxes[0].translations()) == 1
        bench.wait(2)
        assert bench.scenario.boxes[0].translations() == []

    def test_a_connection_closed_on_both_sides_is_forgotten_soon(self, seed: int) -> None:
        for sides, remembered in ((1, True), (2, False)):
            bench = Bench(NatModel(), seed=seed)
            self.mapped(bench)
            if sides == 2:
                bench.server.shut(bench.server.accepted()[-1].handle)
            bench.wait(300)
            assert bool(bench.scenario.boxes[0].translations()) == remembered

    def test_a_connection_may_be_dialled_again_after_its_end(self, seed: int) -> None:
        bench = Bench(NatModel(lifetimes=Lifetimes(tcp_established=600)), seed=seed)
        self.mapped(bench)
        bench.server.shut(bench.server.accepted()[-1].handle, reset=True)
        bench.world.run(max_time=1)
        bench.client.dial(bench.local, A1)
        bench.world.run(max_time=1)
        accepted = bench.server.accepted()
        assert len(accepted) == 2
        # The second connection has the established lifetime, not what was left of the first.
        bench.wait(500)
        bench.server.write(accepted[-1].handle, b"still there")
        bench.world.run(max_time=1)
        assert any(isinstance(e, Arrived) for e in bench.client.told())

    def test_six_second_hold_answers_late(self, seed: int) -> None:
        bench = Bench(
            NatModel(unsolicited_tcp=Unsolicited.RST), seed=seed, options=SimOptions(syn_hold=6)
        )
        mapped = self.mapped(bench)
        handle = bench.server.dial(B2, mapped)
        bench.world.run(max_time=5.9)
        assert bench.server.closed(handle) is None
        bench.world.run(max_time=0.2)
        assert bench.server.closed(handle) is Cause.UNREACHABLE

    def test_six_second_hold_keeps_quiet_when_our_syn_follows(self, seed: int) -> None:
        bench = Bench(NatModel(), seed=seed, options=SimOptions(syn_hold=6))
        mapped = self.mapped(bench)
        theirs = bench.server.dial(B2, mapped)
        bench.world.run(max_time=0.5)
        ours = bench.client.dial(bench.local, B2)
        bench.world.run(max_time=20)
        assert bench.client.connected(ours)
        assert bench.server.connected(theirs)


class TestOptions:
    @pytest.mark.parametrize("allocation", [RANDOM, SEQUENTIAL])
    def test_port_parity(self, allocation: Allocation, seed: int) -> None:
        bench = Bench(
            NatModel(APDM, APDF, allocation), seed=seed, options=SimOptions(port_parity=True)
        )
        for port in (5000, 5001):
            local = Address(bench.local.host, port)
            if port != 5000:
                bench.client.bind(local)
            for to in GRID4:
                source = bench.out(to, local)
                assert source is not None
                assert source.port % 2 == port % 2

    def test_a_chunked_carrier_nat_serves_each_subscriber_from_a_block(self, seed: int) -> None:
        options = SimOptions(port_block=4)
        bench = Bench(NatModel(APDM, APDF, RANDOM), seed=seed, options=options)
        ports = {source.port for to in GRID4 if (source := bench.out(to))}
        assert len(ports) == 4
        assert len({port // 4 for port in ports}) == 1
        more = Address(bench.local.host, 5001)
        bench.client.bind(more)
        assert bench.out(A1, more) is None
        assert bench.world.dropped[Fate.NO_PORT] == 1

    def test_pooling(self, seed: int) -> None:
        for pooling, hosts in ((Pooling.PAIRED, 1), (Pooling.ARBITRARY, 2)):
            options = SimOptions(external_addresses=2, pooling=pooling)
            bench = Bench(NatModel(EIM, APDF, RANDOM), seed=seed, options=options)
            seen = set()
            for port in range(6000, 6016):
                local = Address(bench.local.host, port)
                bench.client.bind(local)
                source = bench.out(A1, local)
                assert source is not None
                seen.add(source.host)
            assert len(seen) == hosts, pooling

    def test_remapping_in_mid_session(self, seed: int) -> None:
        options = SimOptions(remap_after=60)
        bench = Bench(NatModel(EIM, APDF, RANDOM), seed=seed, options=options)
        first = bench.out(A1)
        for _ in range(2):
            bench.wait(20)
            assert bench.out(A1) == first
        bench.wait(20)
        assert bench.out(A1) != first

    def test_alg_rewrites_addresses_in_payloads(self, seed: int) -> None:
        bench = Bench(NatModel(), seed=seed, options=SimOptions(alg=True))
        inner = bytes(int(part) for part in bench.local.host.split("."))
        bench.client.send(bench.local, A1, b"I am " + inner)
        bench.world.run(max_time=1)
        packet = bench.server.received()[-1]
        outer = bytes(int(part) for part in packet.source.host.split("."))
        assert packet.data == b"I am " + outer
        bench.server.send(A1, packet.source, b"you are " + outer)
        bench.world.run(max_time=1)
        assert bench.client.received()[-1].data == b"you are " + inner

    def test_fragments_may_be_dropped(self, seed: int) -> None:
        for drops in (False, True):
            bench = Bench(NatModel(), seed=seed, options=SimOptions(drop_fragments=drops))
            bench.client.send(bench.local, A1, bytes(4000))
            bench.world.run(max_time=1)
            assert len(bench.server.received()) == (not drops)


def test_a_chain_has_the_sum_of_its_boxes(seed: int) -> None:
    bench = Bench(NatModel(), NatModel(EIM, EIF, RANDOM), seed=seed)
    mapped = bench.out(A1)
    assert mapped is not None
    assert mapped.port != bench.local.port
    assert bench.out(B1) == mapped
    assert bench.into(mapped, A1)
    assert not bench.into(mapped, A2), "the inner box filters"
    assert [box.name for box in bench.scenario.boxes] == ["box1", "box2"]


def test_an_error_from_outside_finds_its_way_in(seed: int) -> None:
    bench = Bench(NatModel(EIM, APDF, RANDOM), NatModel(EIM, APDF, RANDOM), seed=seed)
    closed = Address(SERVER_A, 9)
    bench.client.send(bench.local, closed)
    bench.world.run()
    assert bench.client.told()[-1] == Undeliverable(bench.local, closed, 3, 3)


def test_an_error_about_nothing_that_was_sent_stays_outside(seed: int) -> None:
    """RFC 5508 REQ-4: a forged error must not reach an inside host."""
    bench = Bench(NatModel(), seed=seed)
    mapped = bench.out(A1)
    assert mapped is not None
    forged = IcmpError(SERVER_B, Packet(mapped, B2), 3, 3)
    interface = bench.scenario.server.interface(SERVER_B)
    bench.world.ledger.send(forged, "server")
    interface.network.carry(forged, interface)
    bench.world.run()
    assert not [e for e in bench.client.told() if isinstance(e, Undeliverable)]
    assert bench.world.dropped[Fate.INVALID] == 1


def test_an_error_from_inside_finds_its_way_out(seed: int) -> None:
    bench = Bench(NatModel(EIM, APDF, RANDOM), NatModel(EIM, APDF, RANDOM), seed=seed)
    mapped = bench.out(A1)
    assert mapped is not None
    bench.client.shut(1)
    assert not bench.into(mapped, A1)
    assert bench.server.told()[-1] == Undeliverable(A1, mapped, 3, 3)


def test_nothing_listens_on_the_router_itself(seed: int) -> None:
    bench = Bench(NatModel(), seed=seed)
    gateway = Address(bench.local.host.rsplit(".", 1)[0] + ".1", 5351)
    bench.client.send(bench.local, gateway)
    handle = bench.client.dial(bench.local, gateway)
    bench.world.run(max_time=1)
    assert Undeliverable(bench.local, gateway, 3, 3) in bench.client.told()
    assert bench.client.closed(handle) is Cause.REFUSED


def test_a_stray_segment_opens_nothing(seed: int) -> None:
    bench = Bench(NatModel(unsolicited_tcp=Unsolicited.RST), seed=seed)
    bench.server.listen(A1)
    handle = bench.client.dial(bench.local, A1)
    bench.world.run(max_time=1)
    bench.scenario.boxes[0].forget()
    bench.client.shut(handle)  # its FIN belongs to no session now
    bench.world.run(max_time=0.1)
    assert bench.world.dropped[Fate.INVALID] == 1
    assert bench.scenario.boxes[0].translations() == []
