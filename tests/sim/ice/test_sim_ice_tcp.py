"""ICE over TCP on the simulated network: candidates, mappings and connections."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from ice.base import (
    Base,
    BaseLost,
    CandidateFound,
    CandidateNotFound,
    GatheringDone,
    PathClosed,
    PathCongested,
    PathOpened,
)
from ice.candidate import TcpType
from ice.config import Policy
from ice.tcp.connections import MOST_ACCEPTED, MOST_STRANGERS, PROOF
from nattype.lab.sim.machines import Puppet
from nattype.lab.sim.tcp import Connection
from stun.codec import encode
from stun.errors import DropReason
from stun.framing import rfc4571_frame
from stun.message import Message
from stun.registry import Method
from stun.sansio import SECOND, Address, Cause
from tools.icetcpnet import (
    ACTIVE,
    HOST,
    ID,
    OUTSIDE_A,
    PASSIVE,
    REFLEXIVE,
    SILENT,
    SO,
    STUN,
    Hangup,
    Net,
)

# What is gathered. --------------------------------------------------------------------------------


class TestGathering:
    """RFC 6544 sections 4.1 and 5."""

    def test_candidates_behind_a_nat(self, seed: int) -> None:
        net = Net(seed)
        net.gathered(STUN)
        host = net.a.host.address()
        outside = OUTSIDE_A
        found = {
            (found.candidate.type, found.candidate.tcptype): found.candidate
            for found in net.a.told(CandidateFound)
        }
        assert len(found) == len(net.a.told(CandidateFound)) == 6
        for kind, address in ((HOST, host), (REFLEXIVE, outside)):
            for tcptype in TcpType:
                candidate = found[kind, tcptype]
                assert candidate.transport == "tcp"
                assert candidate.host == address
                # "the port(s) MUST be set to 9" (section 4.5)
                assert (candidate.port == 9) is (tcptype is ACTIVE)
        for tcptype in TcpType:
            reflexive, own = found[REFLEXIVE, tcptype], found[HOST, tcptype]
            assert (reflexive.related_address, reflexive.related_port) == (own.host, own.port)
        # "two host candidates (each on a different port)" (section 5.1)
        assert found[HOST, PASSIVE].port != found[HOST, SO].port
        order = sorted(found, key=lambda key: found[key].priority, reverse=True)
        assert order == [
            (HOST, ACTIVE),
            (HOST, PASSIVE),
            (HOST, SO),
            (REFLEXIVE, SO),
            (REFLEXIVE, ACTIVE),
            (REFLEXIVE, PASSIVE),
        ]

    def test_without_a_nat_there_is_nothing_reflexive(self, seed: int) -> None:
        net = Net(seed, "open", "open")
        net.gathered(STUN)
        assert {found.candidate.type for found in net.a.told(CandidateFound)} == {HOST}
        assert len(net.a.told(CandidateFound)) == 3

    def test_a_dead_server_is_told_of_and_delays_no_candidate(self, seed: int) -> None:
        net = Net(seed)
        began = net.world.now
        net.a.gather(SILENT, STUN)
        net.until(lambda: len(net.a.told(CandidateFound)) == 6)
        assert net.world.now - began < SECOND // 2
        net.until(lambda: net.a.told(GatheringDone))
        missing = net.a.told(CandidateNotFound)
        assert len(missing) == 2
        assert all("stun:nobody" in each.what for each in missing)
        assert net.world.now - began < 2 * SECOND

    def test_lite_is_passive(self, seed: int) -> None:
        net = Net(seed, lite=True)
        net.gathered(STUN)
        assert [f.candidate.tcptype for f in net.a.told(CandidateFound)] == [PASSIVE]

    def test_a_policy_of_relays_opens_no_port(self, seed: int) -> None:
        net = Net(seed, policy=Policy.RELAY)
        net.gathered(STUN)
        assert not net.a.told(CandidateFound)

    def test_several_ports_for_simultaneous_open(self, seed: int) -> None:
        net = Net(seed, simultaneous_open=3)
        net.gathered(STUN)
        ports = [
            found.candidate.port
            for found in net.a.told(CandidateFound)
            if found.candidate.tcptype is SO and found.candidate.type is REFLEXIVE
        ]
        assert len(set(ports)) == 3

    def test_ports_of_a_range_are_nobody_elses(self, seed: int) -> None:
        net = Net(seed, "open", "open", ports=(5000, 5003))
        puppet = Puppet()
        attached = net.world.attach(puppet, net.a.host)
        puppet.listen(Address(net.a.host.address(), 5001))
        attached.pump()
        net.gathered()
        ports = {
            f.candidate.port
            for f in net.a.told(CandidateFound)
            if f.candidate.tcptype is not ACTIVE
        }
        assert len(ports) == 2
        assert ports < {5000, 5002, 5003}

    def test_a_range_that_is_used_up(self, seed: int) -> None:
        net = Net(seed, "open", "open", ports=(5000, 5000))
        net.gathered()
        assert len(net.a.told(CandidateFound)) == 2
        assert len(net.a.told(CandidateNotFound)) == 1

    def test_again_it_tells_only_what_is_new(self, seed: int) -> None:
        net = Net(seed)
        net.gathered(STUN)
        before = len(net.a.told(CandidateFound))
        net.a.gather(STUN)
        net.until(lambda: len(net.a.told(GatheringDone)) == 2)
        assert len(net.a.told(CandidateFound)) == before

    def test_an_address_that_is_gone(self, seed: int) -> None:
        net = Net(seed)
        net.gathered(STUN)
        net.a.hub.gather([], [STUN], net.world.now)
        net.a.attached.pump()
        assert {lost.base.tcptype for lost in net.a.told(BaseLost)} == set(TcpType)
        assert not net.a.hub.bases


class TestMapping:
    """The connection to the STUN server stays, and with it the mapping."""

    def test_a_server_that_hangs_up_is_asked_again(self, seed: int) -> None:
        net = Net(seed)
        reflector = Hangup(net)
        net.a.gather(reflector.server)
        net.until(lambda: net.a.told(GatheringDone))
        assert reflector.accepted == 2
        reflector.hang_up()
        net.until(lambda: reflector.accepted == 4, 20)
        assert len(net.a.told(CandidateFound)) == 6

    def test_a_server_that_always_hangs_up_is_left_alone(self, seed: int) -> None:
        net = Net(seed)
        reflector = Hangup(net)
        net.a.gather(reflector.server)
        net.until(lambda: net.a.told(GatheringDone))
        reflector.is_rude = True
        reflector.hang_up()
        net.wait(120)
        assert reflector.accepted == 2 + 2 * 3

    def test_it_is_kept_alive_and_left_after_conclusion(self, seed: int) -> None:
        net = Net(seed)
        reflector = Hangup(net)
        net.a.gather(reflector.server)
        net.until(lambda: net.a.told(GatheringDone))
        asked = reflector.asked
        net.wait(31)
        assert reflector.asked - asked == 4  # each of two ports, each 15 s
        net.a.hub.retain(net.a.hub.bases, net.world.now)
        net.a.attached.pump()
        net.wait(31)
        assert reflector.asked - asked == 4
        assert not reflector.open


# Connections. -------------------------------------------------------------------------------------


def silent(net: Net, ports: Iterable[int]) -> list[Address]:
    """Return addresses of a host where nothing ever answers."""
    puppet, attached = net.stranger()
    found = [Address(attached.host.address(), port) for port in ports]
    for address in found:
        puppet.listen(address, silent=True)
    attached.pump()
    return found


def connect(net: Net) -> tuple[Base, Address, Base, Address]:
    """Connect a's active candidate with b's passive one; return both ends of the path."""
    base = net.a.candidate(HOST, ACTIVE).base
    passive = net.b.candidate(HOST, PASSIVE)
    remote = passive.candidate.address
    net.a.open(base, remote)
    net.until(lambda: net.a.told(PathOpened) and net.b.told(PathOpened))
    at_b = net.b.told(PathOpened)[-1]
    assert at_b.base is passive.base
    return base, remote, at_b.base, at_b.remote


class TestConnections:
    """Active to passive, framing (RFC 4571), and who may connect."""

    @pytest.fixture
    def net(self, seed: int) -> Net:
        net = Net(seed, "open", "open")
        net.gathered()
        return net

    def test_packets_both_ways(self, net: Net) -> None:
        base, remote, base_b, remote_b = connect(net)
        assert remote_b.host == net.a.host.address()
        assert remote_b.port != 9
        net.a.check(base, remote)
        net.b.check(base_b, remote_b)
        net.wait(1)
        packets = [bytes([200]) * size for size in (1, 1200, 40_000, 65_535)]
        for packet in packets:
            net.a.send(base, remote, packet)
            net.b.send(base_b, remote_b, packet[::-1])
        net.until(lambda: len(net.a.data) == len(net.b.data) == len(packets))
        assert net.b.data == packets
        assert net.a.data == packets

    def test_what_is_too_long_is_counted(self, net: Net) -> None:
        base, remote, *_ = connect(net)
        net.a.send(base, remote, bytes(65_536))
        assert net.a.hub.drops[DropReason.TOO_LONG] == 1

    def test_a_path_that_is_there_is_told_again(self, net: Net) -> None:
        base, remote, *_ = connect(net)
        net.a.open(base, remote)
        assert len(net.a.told(PathOpened)) == 2
        net.wait(1)
        assert len(net.b.told(PathOpened)) == 1

    def test_the_end_is_told(self, net: Net) -> None:
        base, remote, base_b, remote_b = connect(net)
        net.a.hub.close_path(base, remote, net.world.now)
        net.a.attached.pump()
        net.until(lambda: net.b.told(PathClosed))
        assert net.b.told(PathClosed)[0] == PathClosed(base_b, remote_b, Cause.RESET)
        assert not net.a.told(PathClosed)
        net.a.send(base, remote, b"\xc8")
        assert net.a.hub.drops[DropReason.UNKNOWN_STREAM] == 1

    def test_what_was_sent_last_arrives(self, net: Net) -> None:
        base, remote, base_b, remote_b = connect(net)
        net.a.check(base, remote)
        net.wait(1)
        net.a.send(base, remote, b"\xc8farewell")
        net.a.hub.close(net.world.now)
        net.a.attached.pump()
        net.until(lambda: net.b.told(PathClosed))
        assert net.b.told(PathClosed)[0] == PathClosed(base_b, remote_b, Cause.END_OF_STREAM)
        assert net.b.data == [b"\xc8farewell"]

    def test_a_path_can_be_opened_again(self, net: Net) -> None:
        """Between the same two ports, as for simultaneous open there are no others."""
        a, b = net.a.candidate(HOST, SO), net.b.candidate(HOST, SO)
        for n in range(1, 4):
            net.a.open(a.base, b.candidate.address)
            net.b.open(b.base, a.candidate.address)
            net.until_told(PathOpened, n, net.a, net.b)
            net.a.hub.close_path(a.base, b.candidate.address, net.world.now)
            net.a.attached.pump()
            net.until_told(PathClosed, n, net.b)

    def test_nobody_there(self, net: Net) -> None:
        base = net.a.candidate(HOST, ACTIVE).base
        remote = Address(net.b.host.address(), 1)
        net.a.open(base, remote)
        net.until(lambda: net.a.told(PathClosed))
        assert net.a.told(PathClosed)[0].cause is Cause.REFUSED

    def test_silence_is_given_up(self, net: Net) -> None:
        base = net.a.candidate(HOST, ACTIVE).base
        net.a.open(base, silent(net, [1])[0])
        net.until(lambda: net.a.told(PathClosed))
        assert net.a.told(PathClosed)[0].cause is Cause.TIMED_OUT
        assert net.world.now < 45 * SECOND

    def test_a_passive_candidate_does_not_connect(self, net: Net) -> None:
        base = net.a.candidate(HOST, PASSIVE).base
        net.a.open(base, net.b.candidate(HOST, PASSIVE).candidate.address)
        assert net.a.told(PathClosed)

    def test_few_attempts_at_once_to_one_address(self, net: Net) -> None:
        """RFC 6544 section 12: at most 5 outstanding attempts with the same IP address."""
        base = net.a.candidate(HOST, ACTIVE).base
        dials: list[Address] = []
        dial = net.a.host.dial

        def counting(*args: Any, **kwargs: Any) -> Any:
            dials.append(args[3])
            return dial(*args, **kwargs)

        net.a.host.dial = counting  # type: ignore[method-assign]
        for remote in silent(net, range(1, 13)):
            net.a.open(base, remote)
        assert len(dials) == 5
        net.wait(5.5)  # those that wait get their turn sooner than after 39.5 s
        assert len(dials) == 10
        net.until(lambda: len(net.a.told(PathClosed)) == 12)
        assert len(dials) == 12

    def test_a_stranger_that_says_nothing_is_shown_out(self, net: Net) -> None:
        passive = net.b.candidate(HOST, PASSIVE)
        puppet, attached = net.stranger()
        handle = puppet.dial(Address(attached.host.address(), 0), passive.candidate.address)
        attached.pump()
        net.until(lambda: net.b.told(PathOpened))
        net.wait(PROOF / SECOND - 1)
        assert puppet.closed(handle) is None
        net.until(lambda: puppet.closed(handle), 3)
        assert net.b.hub.drops[DropReason.MISSING_INTEGRITY] == 1
        assert net.b.told(PathClosed)

    def test_nor_does_one_that_says_something_else(self, net: Net) -> None:
        passive = net.b.candidate(HOST, PASSIVE)
        puppet, attached = net.stranger()
        handle = puppet.dial(Address(attached.host.address(), 0), passive.candidate.address)
        attached.pump()
        net.until(lambda: puppet.connected(handle))
        puppet.write(handle, b"GET / HTTP/1.1\r\n\r\n" + bytes(20_000))
        attached.pump()
        net.until(lambda: puppet.closed(handle), 2)
        assert not net.b.arrived
        assert net.b.hub.drops[DropReason.TOO_LONG] == 1

    def test_data_before_a_check_is_not_delivered(self, net: Net) -> None:
        passive = net.b.candidate(HOST, PASSIVE)
        puppet, attached = net.stranger()
        handle = puppet.dial(Address(attached.host.address(), 0), passive.candidate.address)
        attached.pump()
        net.until(lambda: puppet.connected(handle))
        puppet.write(handle, rfc4571_frame(b"\xc8data"))
        attached.pump()
        net.until(lambda: puppet.closed(handle), 2)
        assert not net.b.arrived
        assert net.b.hub.drops[DropReason.NOT_EXPECTED_PROTOCOL] == 1

    def test_a_check_that_is_not_answered_proves_nothing(self, net: Net) -> None:
        net.b.answers = False
        base, remote, *_ = connect(net)
        net.a.check(base, remote)
        net.until(lambda: net.a.told(PathClosed), PROOF / SECOND + 2)
        assert len(net.b.arrived) == 1

    def test_what_is_proven_stays(self, net: Net) -> None:
        base, remote, *_ = connect(net)
        net.a.check(base, remote)
        net.wait(2 * PROOF / SECOND)
        assert not net.a.told(PathClosed)
        assert not net.b.told(PathClosed)

    def test_one_host_cannot_crowd_out_another(self, net: Net) -> None:
        """Strangers are bounded, and the one whose host has most of them goes first."""
        passive = net.b.candidate(HOST, PASSIVE)
        base, remote, *_ = connect(net)  # unproven, too
        puppet, attached = net.stranger()
        for _ in range(3 * MOST_STRANGERS):
            puppet.dial(Address(attached.host.address(), 0), passive.candidate.address)
        attached.pump()
        net.wait(1)
        assert not net.a.told(PathClosed)
        assert net.b.hub.drops[DropReason.RATE_LIMITED] == 2 * MOST_STRANGERS + 1
        net.a.check(base, remote)
        net.until(lambda: len(net.a.arrived) == 1)

    def test_who_is_expected_comes_first(self, net: Net) -> None:
        """Many strangers of as many hosts, and then the peer, twice from one host."""
        passive = net.b.candidate(HOST, PASSIVE)
        net.b.hub.expect(Address(net.a.host.address(), 9), net.world.now)
        base, remote, *_ = connect(net)
        for _ in range(MOST_STRANGERS + 4):
            puppet, attached = net.stranger()
            puppet.dial(Address(attached.host.address(), 0), passive.candidate.address)
            attached.pump()
        net.wait(1)
        assert not net.a.told(PathClosed)
        net.a.check(base, remote)
        net.until(lambda: len(net.a.arrived) == 1)

    def test_even_a_peer_has_not_any_number_of_connections(self, net: Net) -> None:
        passive = net.b.candidate(HOST, PASSIVE)
        puppet, attached = net.stranger()
        request = rfc4571_frame(encode(Message.request(Method.BINDING, ID)))
        for _ in range(MOST_ACCEPTED + 6):
            handle = puppet.dial(Address(attached.host.address(), 0), passive.candidate.address)
            attached.pump()
            net.wait(0.2)
            puppet.write(handle, request)
            attached.pump()
            net.wait(0.2)
        assert len(net.b.told(PathOpened)) == MOST_ACCEPTED
        assert net.b.hub.drops[DropReason.RATE_LIMITED] == 6

    def test_a_peer_that_does_not_read(self, net: Net) -> None:
        base, remote, *_ = connect(net)
        net.a.check(base, remote)
        net.wait(1)
        sockets = net.b.attached._sockets.values()
        (connection,) = (each for each in sockets if isinstance(each, Connection))
        connection.hold(held=True)
        sent = 0
        while not net.a.told(PathCongested):
            net.a.send(base, remote, b"\xc8" * 10_000)
            sent += 1
            net.wait(0.2)
            assert sent < 100
        for _ in range(100):
            net.a.send(base, remote, b"\xc8" * 10_000)
        assert 70 < net.a.hub.drops[DropReason.CONGESTED] < 80
        assert not net.a.told(PathClosed)
        connection.hold(held=False)
        net.until(lambda: net.a.told(PathCongested)[-1].relieved)
        net.wait(2)
        sent += 100 - net.a.hub.drops[DropReason.CONGESTED]
        assert len(net.b.data) == sent
