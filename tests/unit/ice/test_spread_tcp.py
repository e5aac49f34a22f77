"""Birthday probing over TCP: an agent led by hand."""

from __future__ import annotations

from typing import Any

import pytest

from ice.candidate import TcpType
from ice.events import AgentState, LocalCandidate
from ice.spread.order import Ended, Progress, Role, Spread
from ice.spread.tcp import MOST_FOUND
from stun.attributes import XOR_MAPPED_ADDRESS
from stun.codec import decode, encode
from stun.errors import DropReason
from stun.message import Message
from stun.registry import Class
from stun.sansio import (
    MILLISECOND,
    SECOND,
    Accepted,
    Address,
    Arrived,
    Cause,
    Closed,
    Connected,
    Dial,
    Listen,
    Write,
)
from tools.agentdesk import HOST, MAPPED, OUTSIDE, SERVER, STUN, AgentDesk

SO = TcpType.SIMULTANEOUS_OPEN
HIT = Address("198.51.100.7", 31_337)
ACCEPTED = -7


def framed(data: bytes) -> bytes:
    return len(data).to_bytes(2) + data


class TcpDesk(AgentDesk):
    """An agent over TCP with one mapped port."""

    def __init__(self, **options: Any) -> None:
        super().__init__(udp=False, tcp=True, **options)
        self.gather(SERVER)
        self.wait(100)
        for dial in self.dials():
            self.tell(Connected(dial.handle, dial.local, dial.remote))
        for order in [o for o in self.orders if isinstance(o, Write)]:
            reply = Message.success(decode(order.data)).add(XOR_MAPPED_ADDRESS, MAPPED)
            self.tell(Arrived(order.handle, encode(reply)))
        self.meet()
        self.port = next(base.address for base in self.agent.bases if base.tcptype is SO)
        self.orders.clear()

    def begin(self, role: Role, **order: Any) -> Progress:
        progress = self.agent.spread(Spread(role, "tcp", **order), self.now)
        self.pump()
        return progress

    def probes(self) -> list[Dial]:
        """Return the dials that are the spread's: not to the candidate itself."""
        return [dial for dial in self.dials() if dial.remote not in (STUN, OUTSIDE)]

    def knocks(self) -> list[Dial]:
        """Return the dials to the candidate that leave from ports of their own."""
        return [d for d in self.dials() if d.remote == OUTSIDE and d.local != self.port]

    def finish(self, handle: int) -> None:
        """Play the peer on a connection until the pair is proved."""
        self.tell(Arrived(handle, framed(self.check())))
        self.wait(200)
        for written in self.writes(handle):
            message = decode(written[2:])
            if message.message_class is Class.REQUEST:
                self.tell(Arrived(handle, framed(self.response(written[2:], MAPPED))))


class TestSockets:
    def test_each_dials_from_a_port_of_its_own(self) -> None:
        desk = TcpDesk()
        desk.remote(tcptype=SO)
        progress = desk.begin(Role.SOCKETS, sockets=20)
        desk.wait(100)
        assert [dial.local for dial in desk.knocks()] == [Address(HOST, 0)] * 20
        assert (progress.sent, progress.opened) == (20, 20)

    def test_passive_and_active_candidates_are_not_what_is_met(self) -> None:
        desk = TcpDesk()
        desk.remote(Address(OUTSIDE.host, 8000), tcptype=TcpType.PASSIVE)
        progress = desk.begin(Role.SOCKETS)
        desk.wait(100)
        assert progress.began is None

    def test_one_that_is_refused_is_dialled_again(self) -> None:
        desk = TcpDesk()
        desk.remote(tcptype=SO)
        progress = desk.begin(Role.SOCKETS, sockets=3, packets=5)
        desk.wait(50)
        for dial in desk.knocks():
            desk.failed(dial, Cause.REFUSED)
        desk.wait(1000)
        assert len(desk.knocks()) == 5, "and no more than the budget"
        assert (progress.sent, progress.refused) == (5, 3)

    def test_a_connection_makes_its_port_a_base(self) -> None:
        desk = TcpDesk()
        desk.remote(tcptype=SO)
        progress = desk.begin(Role.SOCKETS, sockets=3)
        desk.wait(50)
        before = len(desk.told(LocalCandidate))
        dial = desk.knocks()[1]
        desk.established(dial)
        assert progress.hits == 1
        assert len(desk.told(LocalCandidate)) == before
        (knock,) = [w for w in desk.writes(dial.handle) if desk.knows(w[2:])][:1]
        assert decode(knock[2:]).message_class is Class.REQUEST
        desk.finish(dial.handle)
        pair = desk.agent.pair()
        assert desk.agent.state in (AgentState.CONNECTED, AgentState.COMPLETED)
        assert pair is not None
        assert pair.remote_address == OUTSIDE
        assert pair.base.tcptype is SO
        assert progress.ended is Ended.FOUND
        assert {dial.handle for dial in desk.knocks()} - set(desk.shut()) == {dial.handle}

    def test_another_one_is_given_up_when_the_agents_have_agreed(self) -> None:
        desk = TcpDesk()
        desk.remote(tcptype=SO)
        desk.begin(Role.SOCKETS, sockets=3)
        desk.wait(50)
        used, spare, _ = desk.knocks()
        desk.established(used, Address(HOST, 45_001))
        desk.established(spare, Address(HOST, 45_002))
        desk.finish(used.handle)
        desk.finish(used.handle)  # this time it is the nomination that is answered
        assert desk.agent.state is AgentState.COMPLETED
        desk.wait(4000)
        assert [base.address for base in desk.agent.bases] == [Address(HOST, 45_001)]
        assert spare.handle in desk.shut()

    def test_no_candidate_is_needed_for_an_explicit_endpoint(self) -> None:
        """Both sides may open sockets; what comes up is no pair of either side's."""
        desk = TcpDesk()
        desk.begin(Role.SOCKETS, sockets=1, remotes=(HIT,))
        (dial,) = desk.probes()
        desk.established(dial)
        assert len(desk.writes(dial.handle)) >= 1
        desk.finish(dial.handle)
        assert desk.agent.pair() is not None

    def test_they_are_closed_when_the_time_is_up(self) -> None:
        desk = TcpDesk()
        desk.remote(tcptype=SO)
        progress = desk.begin(Role.SOCKETS, sockets=3, duration=SECOND)
        desk.wait(1500)
        assert progress.ended is Ended.EXPIRED
        assert {dial.handle for dial in desk.knocks()} <= set(desk.shut())

    def test_how_many_connections_are_taken_is_bounded(self) -> None:
        desk = TcpDesk()
        desk.remote(tcptype=SO)
        progress = desk.begin(Role.SOCKETS, sockets=MOST_FOUND + 2)
        desk.wait(100)
        for dial in desk.knocks():
            desk.established(dial)
        assert progress.hits == MOST_FOUND
        assert desk.agent.drops[DropReason.NO_ROOM] == 2


class TestPortsThatListen:
    def ready(self, **order: Any) -> tuple[TcpDesk, Progress]:
        desk = TcpDesk()
        desk.remote(tcptype=SO)
        progress = desk.begin(Role.SOCKETS, **{"sockets": 3, "ttl": 2, **order})
        desk.wait(50)
        return desk, progress

    def test_a_short_syn_opens_the_nat_and_the_port_listens(self) -> None:
        desk, progress = self.ready()
        listens = [o for o in desk.orders if isinstance(o, Listen)]
        assert len(listens) == progress.opened == 3
        assert [dial.ttl for dial in desk.knocks()] == [2, 2, 2]
        assert len({dial.local.port for dial in desk.knocks()}) == 3

    def test_the_dial_is_over_before_the_kernel_sends_again(self) -> None:
        desk, _ = self.ready(again=3 * SECOND)
        desk.wait(950)
        assert {dial.handle for dial in desk.knocks()} <= set(desk.shut())
        assert len(desk.listening) >= 3
        desk.wait(3000)
        assert len(desk.knocks()) == 6, "and follows again"

    def test_what_a_router_says_of_it_changes_nothing(self) -> None:
        desk, progress = self.ready()
        for dial in desk.knocks():
            desk.failed(dial, Cause.UNREACHABLE)
        desk.wait(500)
        assert len(desk.knocks()) == 3
        assert progress.refused == 3

    def test_the_peers_syn_makes_a_base(self) -> None:
        desk, progress = self.ready()
        local = desk.knocks()[0].local
        listener = next(handle for handle, at in desk.listening.items() if at == local)
        desk.tell(Accepted(listener, ACCEPTED, local, OUTSIDE))
        assert progress.hits == 1
        desk.finish(ACCEPTED)
        pair = desk.agent.pair()
        assert pair is not None
        assert pair.base.address == local
        assert progress.ended is Ended.FOUND

    def test_a_stranger_is_refused(self) -> None:
        desk, progress = self.ready()
        local = desk.knocks()[0].local
        listener = next(handle for handle, at in desk.listening.items() if at == local)
        desk.tell(Accepted(listener, ACCEPTED, local, Address("192.0.2.99", 1)))
        assert ACCEPTED in desk.shut()
        assert progress.hits == 0
        assert desk.agent.drops[DropReason.UNEXPECTED_SOURCE] == 1

    def test_several_endpoints_are_dialled_from_each_port(self) -> None:
        aims = tuple(Address(OUTSIDE.host, 9000 + n) for n in range(3))
        desk = TcpDesk()
        progress = desk.begin(Role.SOCKETS, sockets=2, remotes=aims)
        desk.wait(100)
        dialled = {(dial.local.port, dial.remote.port) for dial in desk.probes()}
        assert len(dialled) == progress.sent == 6
        assert len({local for local, _ in dialled}) == 2

    def test_descriptors_are_bounded(self) -> None:
        aims = tuple(Address(OUTSIDE.host, 9000 + n) for n in range(8))
        desk = TcpDesk()
        desk.begin(Role.SOCKETS, sockets=2, remotes=aims)
        desk.wait(100)
        open_dials = {dial.handle for dial in desk.probes()} - set(desk.shut())
        assert len(open_dials) <= 2

    def test_all_of_it_is_shut_in_the_end(self) -> None:
        desk, _ = self.ready()
        before = len(desk.listening) - 3
        desk.agent.stop_spreads(desk.now)
        desk.pump()
        assert len(desk.listening) == before

    def test_a_port_that_cannot_be_had_is_passed_over(self) -> None:
        desk, progress = self.ready()
        handle = next(iter(h for h, at in desk.listening.items() if at == desk.knocks()[0].local))
        desk.tell(Closed(handle, Cause.OTHER))
        assert progress.refused == 1


class TestProbes:
    def test_they_are_dialled_from_the_mapped_port(self) -> None:
        desk = TcpDesk()
        desk.remote(tcptype=SO)
        progress = desk.begin(Role.PROBES, packets=30)
        desk.wait(500)
        probes = desk.probes()
        assert {dial.local for dial in probes} == {desk.port}
        assert len({dial.remote for dial in probes}) == progress.sent == 30

    def test_no_more_at_a_time_than_was_asked_for(self) -> None:
        desk = TcpDesk()
        desk.remote(tcptype=SO)
        desk.begin(Role.PROBES, packets=100, sockets=10)
        desk.wait(480)
        assert len(desk.probes()) == 10, "the answers to the first may be on their way"
        desk.wait(5000)
        handles = [dial.handle for dial in desk.probes()]
        assert len(handles) == 100
        assert [handle for handle in handles if handle not in desk.shut()] == handles[-10:]

    def test_what_fails_makes_room(self) -> None:
        desk = TcpDesk()
        desk.remote(tcptype=SO)
        progress = desk.begin(Role.PROBES, packets=20, sockets=10, rate=1000)
        desk.wait(11)
        for dial in desk.probes():
            desk.failed(dial, Cause.REFUSED)
        refused = progress.refused
        desk.wait(500)
        assert progress.sent == 20
        assert refused == progress.refused
        assert len(set(desk.shut()) & {dial.handle for dial in desk.probes()}) < 10

    def test_the_last_ones_have_their_time(self) -> None:
        desk = TcpDesk()
        desk.remote(tcptype=SO)
        progress = desk.begin(Role.PROBES, packets=5, duration=3 * SECOND)
        desk.wait(1000)
        assert (progress.sent, progress.ended) == (5, None)
        desk.wait(3000)
        assert progress.ended is Ended.EXPIRED

    def test_a_connection_is_a_path_of_the_port(self) -> None:
        desk = TcpDesk()
        desk.remote(tcptype=SO)
        progress = desk.begin(Role.PROBES, packets=5)
        desk.wait(100)
        dial = desk.probes()[2]
        desk.established(dial)
        assert progress.hits == 1
        desk.finish(dial.handle)
        pair = desk.agent.pair()
        assert pair is not None
        assert (pair.base.address, pair.remote_address) == (desk.port, dial.remote)
        assert progress.ended is Ended.FOUND

    def test_whoever_answers_there_has_to_prove_itself(self) -> None:
        """A port of that address may be somebody else's."""
        desk = TcpDesk()
        desk.remote(tcptype=SO)
        desk.begin(Role.PROBES, packets=5, duration=60 * SECOND)
        desk.wait(100)
        dial = desk.probes()[0]
        desk.established(dial)
        desk.tell(Arrived(dial.handle, b"SSH-2.0-OpenSSH\r\n"))
        assert dial.handle in desk.shut()
        other = desk.probes()[1]
        desk.established(other)
        desk.wait(11_000)
        assert other.handle in desk.shut()
        assert desk.agent.pair() is None

    def test_without_simultaneous_open_there_is_no_port_for_it(self) -> None:
        desk = AgentDesk(udp=False, tcp=True, simultaneous_open=0)
        desk.gather()
        desk.meet()
        desk.remote(tcptype=SO)
        progress = desk.agent.spread(Spread(Role.PROBES, "tcp"), desk.now)
        assert progress.ended is Ended.NO_BASE


@pytest.mark.parametrize("role", Role)
def test_closing_the_agent_leaves_nothing(role: Role) -> None:
    desk = TcpDesk()
    desk.remote(tcptype=SO)
    progress = desk.begin(role, sockets=4, again=200 * MILLISECOND)
    desk.wait(100)
    dial = (desk.knocks() if role is Role.SOCKETS else desk.probes())[0]
    desk.established(dial)
    desk.agent.close(desk.now)
    desk.pump()
    assert progress.ended is Ended.STOPPED
    assert {each.handle for each in desk.dials()} <= set(desk.shut())
    assert desk.listening == {}
