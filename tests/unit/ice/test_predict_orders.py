"""A step as an agent takes it."""

from __future__ import annotations

from ice.candidate import Candidate, CandidateType, TcpType
from ice.config import Config, Tell
from ice.predict.orders import QUICK, config_for, ports_for, remotes_for, spread_for
from ice.predict.steps import Move, Step, Strategy
from ice.predict.summary import PathSummary
from ice.spread.order import Role
from nattype.model import Allocation
from stun.sansio import SECOND, Address


def step(mine: Move, theirs: Move | None = None, seconds: float = 5.0) -> Step:
    return Step(mine, theirs or Move(mine.strategy.counterpart), seconds, "a test")


def candidate(
    host: str,
    port: int,
    kind: CandidateType = CandidateType.SERVER_REFLEXIVE,
    transport: str = "udp",
    tcptype: TcpType | None = None,
) -> Candidate:
    return Candidate("1", 1, transport, 100, host, port, kind, tcptype=tcptype)


COUNTS = PathSummary(allocation=Allocation.SEQUENTIAL, delta=2)


def test_plain_checks_need_nothing_special() -> None:
    base = Config(ta=50_000_000)
    config = config_for(step(Move(Strategy.PLAIN)), "udp", base)
    assert (config.udp, config.tcp, config.ta, config.tell) == (True, False, base.ta, Tell.ALL)
    assert config_for(step(Move(Strategy.PLAIN)), "tcp", base).tcp
    assert spread_for(step(Move(Strategy.PLAIN)), "udp") is None


def test_a_low_ttl_is_an_opening() -> None:
    assert config_for(step(Move(Strategy.LOW_TTL, ttl=3)), "udp", Config()).opening_ttl == 3
    assert config_for(step(Move(Strategy.LOW_TTL)), "udp", Config()).opening_ttl is None


def test_who_is_predicted_tells_nothing_but_the_predicted_ports() -> None:
    config = config_for(step(Move(Strategy.PREDICT, (1, 2))), "udp", Config())
    assert (config.tell, config.ta) == (Tell.PREDICTED, QUICK)
    assert config_for(step(Move(Strategy.PREDICT)), "udp", Config()).tell is Tell.PUBLIC


def test_ports_are_counted_from_the_latest_that_a_server_saw() -> None:
    predicted = step(Move(Strategy.PREDICT, (2, 4, 6)))
    seen = [candidate("192.0.2.1", port) for port in (40004, 40000, 40002)]
    assert ports_for(predicted, "udp", seen, COUNTS) == (40006, 40008, 40010)
    assert ports_for(predicted, "udp", [candidate("192.0.2.1", 65532)], COUNTS) == (
        65534,
        1024,
        1026,
    )


def test_ports_that_say_nothing_are_not_counted_from() -> None:
    predicted = step(Move(Strategy.PREDICT, (1,)))
    tcp = [
        candidate("192.0.2.1", 9, transport="tcp", tcptype=TcpType.ACTIVE),
        candidate("192.0.2.1", 5000, transport="tcp", tcptype=TcpType.SIMULTANEOUS_OPEN),
        candidate("192.0.2.1", 7000),
    ]
    one = PathSummary(allocation=Allocation.SEQUENTIAL, delta=1)
    assert ports_for(predicted, "tcp", tcp, one) == (5001,)
    assert ports_for(predicted, "udp", [], one) == ()
    assert ports_for(step(Move(Strategy.PLAIN)), "udp", tcp, one) == ()


def test_a_spread_is_what_the_move_says() -> None:
    sockets = Move(Strategy.BIRTHDAY_SOCKETS, sockets=256, rate=250, packets=1536, ttl=2)
    probes = Move(
        Strategy.BIRTHDAY_PROBES, probes=1000, ports=(2048, 4095), rate=250, packets=1000, after=1.0
    )
    both = step(sockets, probes, seconds=11.0)
    order = spread_for(both, "tcp")
    assert order is not None
    assert (order.role, order.sockets, order.packets, order.rate, order.ttl) == (
        Role.SOCKETS,
        256,
        1536,
        250,
        2,
    )
    assert order.duration == 11 * SECOND
    aim = (Address("192.0.2.1", 1000),)
    there = spread_for(both.mirrored(), "udp", aim)
    assert there is not None
    assert (there.role, there.ports, there.packets) == (Role.PROBES, (2048, 4095), 1000)
    assert (there.remotes, there.duration) == (aim, 10 * SECOND)


def test_a_spread_aims_at_where_servers_see_the_peer() -> None:
    told = [
        candidate("10.0.0.5", 5000, CandidateType.HOST),
        candidate("192.0.2.1", 6000),
        candidate("192.0.2.1", 6000),
        candidate("192.0.2.1", 7000, transport="tcp", tcptype=TcpType.SIMULTANEOUS_OPEN),
        candidate("192.0.2.1", 9, transport="tcp", tcptype=TcpType.ACTIVE),
    ]
    plain = step(Move(Strategy.BIRTHDAY_SOCKETS, sockets=1))
    assert remotes_for(plain, "udp", told) == (Address("192.0.2.1", 6000),)
    assert remotes_for(plain, "tcp", told) == (Address("192.0.2.1", 7000),)


def test_a_spread_aims_at_a_public_address_behind_a_firewall() -> None:
    told = [
        candidate("10.0.0.5", 5000, CandidateType.HOST),
        candidate("a.local", 5000, CandidateType.HOST),
        candidate("8.8.4.4", 5000, CandidateType.HOST),
    ]
    plain = step(Move(Strategy.BIRTHDAY_SOCKETS, sockets=1))
    assert remotes_for(plain, "udp", told) == (Address("8.8.4.4", 5000),)
    assert remotes_for(plain, "tcp", told) == ()
