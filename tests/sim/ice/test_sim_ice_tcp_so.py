"""TCP simultaneous open and relayed TCP between two NATs of the simulated network."""

from __future__ import annotations

import pytest

from ice.base import (
    BaseLost,
    CandidateFound,
    CandidateNotFound,
    GatheringDone,
    PathClosed,
    PathOpened,
)
from ice.config import Server
from nattype.lab.sim import SERVER_A, SimOptions
from nattype.model import Link
from stun.credentials import LongTerm
from stun.sansio import SECOND, Address, Cause, Instant
from tools.icetcpnet import (
    ACTIVE,
    DROPS,
    FAR,
    FAST,
    HOST,
    ICMP,
    OUTSIDE_B,
    PASSIVE,
    REFLEXIVE,
    RELAYED,
    RESETS,
    SO,
    STUN,
    TURN,
    Net,
)

# Simultaneous open. -------------------------------------------------------------------------------


def open_simultaneously(net: Net, skew: float) -> Instant:
    """Have both ends dial, one ``skew`` seconds after the other; return when both had data."""
    net.gathered(STUN)
    for end in (net.a, net.b):
        for _ in range(3):
            if end.told(CandidateNotFound):  # its SYNs were lost
                end.events[:] = end.told(CandidateFound)
                end.gather(STUN)
                net.until_told(GatheringDone, 1, end)
    found = {end: end.candidate(REFLEXIVE, SO) for end in (net.a, net.b)}
    began = net.world.now
    net.a.open(found[net.a].base, found[net.b].candidate.address)
    net.wait(skew)
    net.b.open(found[net.b].base, found[net.a].candidate.address)
    net.until(lambda: net.a.told(PathOpened) and net.b.told(PathOpened), 40)
    for end, other in ((net.a, net.b), (net.b, net.a)):
        path = found[end].base, found[other].candidate.address
        end.check(*path)
        net.wait(0.5)
        end.send(*path, b"\xc8hello")
    net.until(lambda: net.a.data == net.b.data == [b"\xc8hello"])
    for end in (net.a, net.b):
        assert len(end.told(PathOpened)) == 1
        assert not end.told(PathClosed)
    return net.world.now - began


class TestSimultaneousOpen:
    """Through two NATs, whatever they do with a SYN that nobody asked for."""

    @pytest.mark.parametrize("link", [FAST, FAR], ids=["fast", "far"])
    @pytest.mark.parametrize("skew", [0, 0.05, 0.1, 0.2, 0.4, 1, 8])
    @pytest.mark.parametrize(
        ("a", "b"),
        [
            (DROPS, DROPS),
            (RESETS, RESETS),
            (ICMP, ICMP),
            (DROPS, RESETS),
            (RESETS, DROPS),
            (RESETS, ICMP),
            ("restricted-cone", RESETS),
            ("full-cone", ICMP),
            ("open", RESETS),
            ("firewall", DROPS),
        ],
    )
    def test_it_takes_little_longer_than_the_later_one(
        self, a: str, b: str, skew: float, link: Link, seed: int
    ) -> None:
        net = Net(seed, a, b, link=link)
        if "open" in (a, b) or "firewall" in (a, b):
            # One has no reflexive candidate: its own address is the one to dial.
            net.a.stands_for_reflexive = HOST
        took = open_simultaneously(net, skew)
        assert took < (skew + 3) * SECOND

    @pytest.mark.parametrize("nat", [DROPS, RESETS, ICMP])
    def test_with_loss(self, nat: str, seed: int) -> None:
        for n in range(10):
            net = Net(seed + n, nat, nat, link=Link(delay=0.02, jitter=0.005, loss=0.1))
            open_simultaneously(net, 0.1 * (n % 4))

    def test_a_nat_that_holds_the_syn(self, seed: int) -> None:
        """RFC 5382 REQ-4: an uninvited SYN is held for 6 s, in case ours comes."""
        net = Net(seed, ICMP, ICMP, options=SimOptions(syn_hold=6))
        assert open_simultaneously(net, 1) < 4 * SECOND

    def test_dials_are_bounded(self, seed: int) -> None:
        """One that is refused for ever costs no more than the bounds say."""
        net = Net(seed, "open", "open", link=FAST)
        net.gathered()
        base = net.a.candidate(HOST, SO).base
        before = net.world.sent
        net.a.open(base, Address(net.b.host.address(), 1))
        net.until(lambda: net.a.told(PathClosed), 45)
        syns = (net.world.sent - before) / 2
        assert 100 + 20 * 30 < syns < 1.2 * (100 + 20 * 40)
        closed = net.a.told(PathClosed)[0]
        assert closed.cause is Cause.TIMED_OUT
        assert "connection refused" in closed.detail

    def test_the_path_is_dialled_from_the_port_that_listens(self, seed: int) -> None:
        """One side is late for good: the other is found listening."""
        net = Net(seed, "open", "open")
        net.gathered()
        a, b = net.a.candidate(HOST, SO), net.b.candidate(HOST, SO)
        net.a.open(a.base, b.candidate.address)
        net.until(lambda: net.b.told(PathOpened))
        assert net.b.told(PathOpened) == [PathOpened(b.base, a.candidate.address)]
        net.b.open(b.base, a.candidate.address)
        assert len(net.b.told(PathOpened)) == 2


# Relays. ------------------------------------------------------------------------------------------


class TestRelayed:
    """RFC 6062: a passive and an active candidate of one allocation."""

    def test_a_peer_connects_to_the_relay(self, seed: int) -> None:
        net = Net(seed, "symmetric", "symmetric", relay_tcp=True)
        net.gathered(TURN)
        relayed = net.a.candidate(RELAYED, PASSIVE)
        assert relayed.base.is_relayed
        assert relayed.candidate.host == SERVER_A
        named = net.b.candidate(REFLEXIVE, ACTIVE).candidate.address
        net.a.hub.expect(named, net.world.now)
        net.a.attached.pump()
        net.wait(1)
        base = net.b.candidate(HOST, ACTIVE).base
        remote = relayed.candidate.address
        net.b.open(base, remote)
        net.until(lambda: net.a.told(PathOpened) and net.b.told(PathOpened))
        at_a = net.a.told(PathOpened)[0]
        assert at_a.base is relayed.base
        assert at_a.remote.host == named.host == OUTSIDE_B
        net.b.check(base, remote)
        net.wait(1)
        net.b.send(base, remote, b"\xc8to the relay")
        net.a.send(at_a.base, at_a.remote, b"\xc8from the relay")
        net.until(lambda: net.a.data and net.b.data)
        assert net.a.data == [b"\xc8to the relay"]
        assert net.b.data == [b"\xc8from the relay"]
        net.b.hub.close_path(base, remote, net.world.now)
        net.b.attached.pump()
        net.until(lambda: net.a.told(PathClosed))

    def test_who_was_not_expected_does_not_get_in(self, seed: int) -> None:
        net = Net(seed, relay_tcp=True)
        net.gathered(TURN)
        relayed = net.a.candidate(RELAYED, PASSIVE)
        net.b.open(net.b.candidate(HOST, ACTIVE).base, relayed.candidate.address)
        net.wait(5)
        assert not net.a.told(PathOpened)

    def test_the_relay_connects_to_a_peer(self, seed: int) -> None:
        net = Net(seed, DROPS, "open", relay_tcp=True)
        net.gathered(TURN)
        active = net.a.candidate(RELAYED, ACTIVE)
        assert active.candidate.address == Address(SERVER_A, 9)
        remote = net.b.candidate(HOST, PASSIVE).candidate.address
        net.a.open(active.base, remote)
        net.until(lambda: net.a.told(PathOpened) and net.b.told(PathOpened))
        at_b = net.b.told(PathOpened)[0]
        assert at_b.remote.host == SERVER_A
        net.a.check(active.base, remote)
        net.wait(1)
        net.b.send(at_b.base, at_b.remote, b"\xc8" * 3000)
        net.until(lambda: net.a.data)
        assert net.a.data == [b"\xc8" * 3000]

    def test_a_peer_that_the_relay_does_not_reach(self, seed: int) -> None:
        net = Net(seed, DROPS, "open", relay_tcp=True)
        net.gathered(TURN)
        active = net.a.candidate(RELAYED, ACTIVE)
        net.a.open(active.base, Address(net.b.host.address(), 1))
        net.until(lambda: net.a.told(PathClosed))
        assert "447" in net.a.told(PathClosed)[0].detail

    def test_a_wrong_password(self, seed: int) -> None:
        net = Net(seed, relay_tcp=True)
        wrong = Server(TURN.name, TURN.targets, turn=True, credentials=LongTerm("alice", "wrong"))
        net.a.gather(wrong)
        net.until(lambda: net.a.told(GatheringDone))
        assert any("401" in missing.why for missing in net.a.told(CandidateNotFound))

    def test_a_server_that_is_gone(self, seed: int) -> None:
        net = Net(seed, relay_tcp=True)
        net.gathered(TURN)
        net.server_attached.detach()
        net.until(lambda: len(net.a.told(BaseLost)) == 2)
        assert all(lost.base.is_relayed for lost in net.a.told(BaseLost))

    def test_it_is_given_back(self, seed: int) -> None:
        net = Net(seed, relay_tcp=True)
        net.gathered(TURN)
        host = [base for base in net.a.hub.bases if not base.is_relayed]
        net.a.hub.retain(host, net.world.now)
        net.a.attached.pump()
        net.wait(2)
        assert not any(base.is_relayed for base in net.a.hub.bases)
        assert not net.a.told(BaseLost)
