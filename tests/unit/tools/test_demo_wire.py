"""What the demo sees of two NATs: segments, followed from one to the other."""

from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools.demo_wire import ACK, FIN, INNER, OUTER, PSH, RST, SYN, Endpoint, Segment, Wire, parse
from tools.demodesk import HOST, NAT, PORT, Play, icmp, ipv4, tcp

# Packets. -----------------------------------------------------------------------------------------


def test_a_segment_is_read() -> None:
    packet = tcp(("192.0.2.1", 1), ("192.0.2.2", 65535), PSH | ACK, 0xFFFFFFFF, 7, octets=5)
    assert parse(packet) == Segment(
        Endpoint("192.0.2.1", 1), Endpoint("192.0.2.2", 65535), PSH | ACK, 0xFFFFFFFF, 7, 5
    )


@pytest.mark.parametrize(
    ("flags", "octets", "name"),
    [
        (SYN, 0, "SYN"),
        (SYN | ACK, 0, "SYN-ACK"),
        (SYN | 0xC0, 0, "SYN"),
        (RST | ACK, 0, "RST"),
        (FIN | ACK, 0, "FIN"),
        (ACK, 0, "ACK"),
        (PSH | ACK, 1, "data"),
    ],
)
def test_names(flags: int, octets: int, name: str) -> None:
    segment = parse(tcp(("192.0.2.1", 1), ("192.0.2.2", 2), flags, octets=octets))
    assert segment is not None
    assert segment.name == name


def test_an_acknowledgement_without_its_flag_is_none() -> None:
    segment = parse(tcp(("192.0.2.1", 1), ("192.0.2.2", 2), SYN, 1, 0xDEAD))
    assert segment is not None
    assert segment.acknowledged == 0


def test_an_icmp_error_is_read_as_what_it_quotes_the_other_way_round() -> None:
    syn = tcp(("192.0.2.1", 1), ("192.0.2.2", 2), SYN, 77)
    segment = parse(icmp("192.0.2.2", "192.0.2.1", syn))
    assert segment is not None
    assert (segment.name, segment.sequence) == ("ICMP", 77)
    assert (segment.source, segment.target) == (Endpoint("192.0.2.2", 2), Endpoint("192.0.2.1", 1))


SYN_PACKET = tcp(("192.0.2.1", 1), ("192.0.2.2", 2), SYN)


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        SYN_PACKET[:39],
        b"\x60" + SYN_PACKET[1:],
        b"\x41" + SYN_PACKET[1:],
        SYN_PACKET[:6] + b"\x00\x01" + SYN_PACKET[8:],
        ipv4("192.0.2.1", "192.0.2.2", socket.IPPROTO_UDP, bytes(20)),
        icmp("192.0.2.2", "192.0.2.1", SYN_PACKET, kind=8),
        icmp("192.0.2.2", "192.0.2.1", SYN_PACKET[:27]),
        icmp("192.0.2.2", "192.0.2.1", ipv4("192.0.2.1", "192.0.2.2", 17, bytes(8))),
    ],
    ids=[
        "empty", "cut short", "version 6", "a header too short", "a later fragment", "UDP",
        "an echo", "an error cut short", "an error about UDP",
    ],
)  # fmt: skip
def test_what_is_no_segment(packet: bytes) -> None:
    assert parse(packet) is None


@given(st.binary(max_size=160), st.sampled_from([6, 1]))
def test_nothing_that_comes_raises(data: bytes, protocol: int) -> None:
    parse(data)
    packet = ipv4("192.52.193.2", "192.52.193.34", protocol, data)
    wire = Wire(NAT)
    for interface in (INNER, OUTER):
        for outgoing in (True, False):
            wire.take(0, "A", interface, outgoing=outgoing, packet=packet)


# Flights. -----------------------------------------------------------------------------------------


def test_a_syn_that_is_let_in() -> None:
    play = Play()
    play.leave(0, "A", SYN)
    (flight,) = play.wire.flights
    assert (flight.side, flight.left, flight.arrived, flight.entered) == ("A", 0, None, None)
    play.arrive(20, "A", SYN)
    assert (flight.arrived, flight.entered) == (20_000_000, 20_000_000)
    assert flight.refusal is None


def test_a_syn_that_is_dropped() -> None:
    play = Play()
    play.leave(0, "A", SYN)
    play.arrive(20, "A", SYN, let_in=False)
    (flight,) = play.wire.flights
    assert (flight.arrived, flight.entered, flight.refusal) == (20_000_000, None, None)


def test_a_syn_that_a_nat_refuses_with_rst() -> None:
    play = Play()
    play.leave(0, "A", SYN)
    play.arrive(20, "A", SYN, let_in=False)
    play.refuse(20, "A")
    syn, reset = play.wire.flights
    assert syn.refusal is reset
    assert (reset.name, reset.side, reset.by_nat) == ("RST", "B", True)
    assert reset.arrived == 40_000_000
    assert syn.entered is None
    assert play.wire.established_at is None


def test_a_syn_that_a_nat_refuses_with_icmp() -> None:
    play = Play()
    play.leave(0, "A", SYN)
    play.arrive(20, "A", SYN, let_in=False)
    outside = tcp((NAT["A"], PORT["A"]), (NAT["B"], PORT["B"]), SYN)
    play.see(20, "B", OUTER, icmp(NAT["B"], NAT["A"], outside), out=True)
    play.see(40, "A", OUTER, icmp(NAT["B"], NAT["A"], outside), out=False)
    inside = tcp((HOST["A"], PORT["A"]), (NAT["B"], PORT["B"]), SYN)
    play.see(40, "A", INNER, icmp(NAT["B"], HOST["A"], inside), out=True)
    syn, error = play.wire.flights
    assert syn.refusal is error
    assert (error.name, error.arrived) == ("ICMP", 40_000_000)


def test_a_refusal_belongs_to_the_syn_that_it_answers() -> None:
    play = Play()
    for ms, sequence in ((0, 100), (5, 200)):
        play.leave(ms, "A", SYN, sequence)
        play.arrive(ms + 20, "A", SYN, sequence, let_in=False)
    play.refuse(26, "A", 100)
    first, second, reset = play.wire.flights
    assert first.refusal is reset
    assert second.refusal is None


def test_an_rst_of_a_host_is_no_refusal_of_its_nat() -> None:
    play = Play()
    play.leave(0, "A", SYN)
    play.arrive(20, "A", SYN)
    play.leave(20, "B", RST | ACK, 0, 101)
    syn, reset = play.wire.flights
    assert syn.refusal is None
    assert reset.by_nat is False


def test_the_same_segment_sent_again_is_another_flight() -> None:
    play = Play()
    play.leave(0, "A", SYN)
    play.leave(1000, "A", SYN)
    play.arrive(1020, "A", SYN)
    first, again = play.wire.flights
    # The one that left first is taken for the one that arrives first.
    assert (first.arrived, again.arrived) == (1_020_000_000, None)


def test_what_is_not_between_the_two_is_passed_over() -> None:
    play = Play()
    server = ("192.31.196.10", 3478)
    play.see(0, "A", INNER, tcp((HOST["A"], 1), server, SYN), out=False)
    play.see(0, "A", OUTER, tcp((NAT["A"], 1), server, SYN), out=True)
    # A candidate behind the other NAT, at an address that no network has.
    play.see(1, "A", OUTER, tcp((NAT["A"], 1), (HOST["B"], 2), SYN), out=True)
    play.see(2, "A", OUTER, tcp(server, (NAT["A"], 1), SYN | ACK), out=False)
    assert play.wire.flights == []


# Connections. -------------------------------------------------------------------------------------


def test_a_simultaneous_open_is_established_when_both_know() -> None:
    play = Play()
    play.simultaneous_open()
    assert play.wire.established_at == 42_000_000
    assert play.wire.ends == {Endpoint(NAT["A"], PORT["A"]), Endpoint(NAT["B"], PORT["B"])}
    assert [flight.name for flight in play.wire.flights] == ["SYN", "SYN", "SYN-ACK", "SYN-ACK"]


def test_an_ordinary_handshake_is_established_with_its_last_ack() -> None:
    play = Play()
    play.leave(0, "A", SYN, 100)
    play.arrive(20, "A", SYN, 100)
    play.leave(20, "B", SYN | ACK, 900, 101)
    play.arrive(40, "B", SYN | ACK, 900, 101)
    play.leave(40, "A", ACK, 101, 901)
    assert play.wire.established_at is None
    play.arrive(60, "A", ACK, 101, 901)
    assert play.wire.established_at == 60_000_000


def test_an_rst_acknowledges_nothing() -> None:
    play = Play()
    play.leave(0, "A", SYN, 100)
    play.arrive(20, "A", SYN, 100, let_in=False)
    play.refuse(20, "A", 100)
    play.leave(50, "B", SYN, 900)
    play.arrive(70, "B", SYN, 900)
    play.leave(70, "A", SYN | ACK, 500, 901)
    play.arrive(90, "A", SYN | ACK, 500, 901)
    assert play.wire.established_at is None


def test_sequence_numbers_go_round() -> None:
    play = Play()
    play.leave(0, "A", SYN, 0xFFFFFFFF)
    play.arrive(20, "A", SYN, 0xFFFFFFFF)
    play.leave(20, "B", SYN | ACK, 0xFFFFFFFF, 0)
    play.arrive(40, "B", SYN | ACK, 0xFFFFFFFF, 0)
    play.leave(40, "A", SYN | ACK, 0xFFFFFFFF, 0)
    play.leave(41, "B", SYN, 0xFFFFFFFF)
    play.arrive(60, "A", SYN | ACK, 0xFFFFFFFF, 0)
    assert play.wire.established_at == 60_000_000


def test_nothing_is_kept_after_that_but_refusals() -> None:
    play = Play()
    play.simultaneous_open()
    before = len(play.wire.flights)
    play.leave(50, "A", PSH | ACK, 101, 901, octets=9)
    play.leave(51, "A", SYN, 7, ports=(1, 2))
    assert len(play.wire.flights) == before
