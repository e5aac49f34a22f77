"""Predicted ports as candidates, and which candidates the peer is told."""

from __future__ import annotations

from itertools import pairwise

import pytest

from ice.candidate import Candidate, CandidateType, TcpType
from ice.config import Interface, Tell
from ice.events import LocalCandidate
from ice.gather.book import MOST_PREDICTED
from ice.spreading import is_public
from stun.codec import decode
from stun.errors import UsageError
from stun.registry import Class
from stun.sansio import MILLISECOND, Address
from tools.agentdesk import ETH, HOST, MAPPED, SERVER, AgentDesk

REFLEXIVE = CandidateType.SERVER_REFLEXIVE


def predicted(desk: AgentDesk, *offsets: int, ports: tuple[int, ...] = ()) -> list[Candidate]:
    made = desk.agent.predict(offsets, desk.now, ports=ports)
    desk.pump()
    return made


class TestPrediction:
    def test_ports_are_counted_from_the_one_that_was_seen(self) -> None:
        desk = AgentDesk()
        desk.ready()
        made = predicted(desk, 1, 2, -3)
        assert [candidate.address for candidate in made] == [
            Address(MAPPED.host, MAPPED.port + offset) for offset in (1, 2, -3)
        ]
        assert {candidate.type for candidate in made} == {REFLEXIVE}
        assert {candidate.related_address for candidate in made} == {HOST}
        assert made == [event.candidate for event in desk.told(LocalCandidate)][-3:]

    def test_they_come_behind_what_is_known_and_before_relays(self) -> None:
        desk = AgentDesk()
        desk.ready()
        made = predicted(desk, *range(1, 21))
        known = [c.priority for c in desk.signalled() if c not in made]
        assert min(known) > made[0].priority
        assert made[-1].priority > 0xFFFFFF, "a relay's type preference is 0"
        assert all(one.priority > other.priority for one, other in pairwise(made))

    def test_each_is_checked_without_waiting_for_the_others(self) -> None:
        """Their foundations differ, or all but one would be frozen (RFC 8445 section 6.1.2.6)."""
        desk = AgentDesk()
        desk.ready()
        made = predicted(desk, *range(1, 21))
        assert len({candidate.foundation for candidate in desk.signalled()}) == len(
            desk.signalled()
        )
        assert all(len(candidate.foundation) <= 32 for candidate in made)

    def test_they_survive_their_way_to_the_peer(self) -> None:
        desk = AgentDesk()
        desk.ready()
        for candidate in predicted(desk, 1, 2):
            assert Candidate.from_sdp(candidate.to_sdp()) == candidate

    def test_the_peer_checks_them_in_order(self) -> None:
        """20 candidates of another agent's are checked one in Ta, the first one first."""
        there = AgentDesk(1)
        there.ready()
        desk = AgentDesk(ta=5 * MILLISECOND)
        desk.ready()
        desk.orders.clear()
        made = predicted(there, *range(1, 21))
        for candidate in reversed(made):
            desk.agent.add_remote(candidate, desk.now)
        desk.pump()
        desk.wait(110)
        checks = [
            s.destination
            for s in desk.sent()
            if s.destination.host == MAPPED.host and decode(s.data).message_class is Class.REQUEST
        ]
        assert checks == [candidate.address for candidate in made]

    def test_ports_as_they_are(self) -> None:
        desk = AgentDesk()
        desk.ready()
        assert [c.port for c in predicted(desk, ports=(7001, 7003))] == [7001, 7003]

    def test_what_is_known_or_no_port_is_passed_over(self) -> None:
        desk = AgentDesk()
        desk.ready()
        predicted(desk, 1)
        assert [c.port for c in predicted(desk, 0, 1, -MAPPED.port, 65_000, 2)] == [MAPPED.port + 2]

    def test_how_many_there_are_is_bounded(self) -> None:
        desk = AgentDesk()
        desk.ready()
        assert len(predicted(desk, *range(1, 500))) == MOST_PREDICTED

    def test_without_a_mapping_there_is_nothing_to_count_from(self) -> None:
        desk = AgentDesk()
        desk.gather()
        assert predicted(desk, 1, 2, ports=(9000,)) == []

    def test_a_port_that_was_predicted_is_no_new_one_when_it_comes_true(self) -> None:
        """The peer sees the packet come from there: it is the candidate that it was told."""
        desk = AgentDesk()
        desk.ready()
        (candidate,) = predicted(desk, 1)
        desk.remote()
        desk.wait(60)
        check = desk.sent(Address("198.51.100.7", 7000))[0]
        desk.arrive(desk.response(check.data, candidate.address), check.destination, check.source)
        pair = desk.agent.pair()
        assert pair is not None
        assert pair.mapped == candidate

    def test_a_restart_forgets_them(self) -> None:
        """Other ports are next by then; what is predicted anew is told anew."""
        desk = AgentDesk()
        desk.ready()
        made = predicted(desk, *range(1, MOST_PREDICTED + 1))
        told = len(desk.signalled())
        desk.agent.restart(desk.now)
        desk.pump()
        assert [c.type for c in desk.signalled()[told:]] == [CandidateType.HOST, REFLEXIVE]
        assert [c.port for c in predicted(desk, 1)] == [made[0].port]

    def test_a_closed_agent_predicts_nothing(self) -> None:
        desk = AgentDesk()
        desk.agent.close(desk.now)
        with pytest.raises(UsageError, match="closed"):
            desk.agent.predict((1,), desk.now)


class TestWhatIsTold:
    def test_all(self) -> None:
        desk = AgentDesk()
        desk.ready()
        assert {c.type for c in desk.signalled()} == {CandidateType.HOST, REFLEXIVE}

    def test_public_ones(self) -> None:
        desk = AgentDesk(tell=Tell.PUBLIC)
        desk.ready()
        assert [c.address for c in desk.signalled()] == [MAPPED]
        predicted(desk, 1)
        assert len(desk.signalled()) == 2

    def test_a_public_host_has_no_other(self) -> None:
        desk = AgentDesk(tell=Tell.PUBLIC)
        desk.gather(interfaces=(Interface("203.0.113.9", "eth0", 65535),))
        assert [c.type for c in desk.signalled()] == [CandidateType.HOST]

    def test_predicted_ones(self) -> None:
        desk = AgentDesk(tell=Tell.PREDICTED)
        desk.ready()
        assert desk.signalled() == []
        made = predicted(desk, 1, 2)
        assert desk.signalled() == made

    def test_checks_are_sent_all_the_same(self) -> None:
        desk = AgentDesk(tell=Tell.PREDICTED)
        desk.ready()
        desk.remote()
        desk.wait(60)
        assert len(desk.sent(Address("198.51.100.7", 7000))) == 1

    def test_what_servers_have_seen_is_known_here(self) -> None:
        desk = AgentDesk(tell=Tell.PREDICTED)
        desk.ready()
        predicted(desk, 1)
        assert [candidate.address for candidate in desk.agent.mapped()] == [MAPPED]

    @pytest.mark.parametrize(
        "host",
        ["10.1.2.3", "172.31.0.1", "192.168.1.1", "100.64.0.1", "169.254.1.1", "127.0.0.1",
         "fd00::1", "fe80::1%eth0", "::1", "f81d4fae.local"],
    )  # fmt: skip
    def test_private_hosts(self, host: str) -> None:
        assert not is_public(host)

    @pytest.mark.parametrize("host", ["192.0.2.1", "100.128.0.1", "2001:db8::1", "172.32.0.1"])
    def test_public_hosts(self, host: str) -> None:
        assert is_public(host)


def test_over_tcp_only_what_dials_and_listens_is_predicted() -> None:
    desk = AgentDesk(udp=False, tcp=True)
    desk.gather(SERVER, interfaces=(ETH,))
    desk.wait(100)
    from stun.attributes import XOR_MAPPED_ADDRESS
    from stun.codec import encode
    from stun.message import Message
    from stun.sansio import Arrived, Connected, Write

    for dial in desk.dials():
        desk.tell(Connected(dial.handle, dial.local, dial.remote))
    for order in [o for o in desk.orders if isinstance(o, Write)]:
        reply = Message.success(decode(order.data)).add(XOR_MAPPED_ADDRESS, MAPPED)
        desk.tell(Arrived(order.handle, encode(reply)))
    made = predicted(desk, 1, 2)
    assert {candidate.tcptype for candidate in made} == {TcpType.SIMULTANEOUS_OPEN}
    assert [candidate.port for candidate in made] == [MAPPED.port + 1, MAPPED.port + 2]
