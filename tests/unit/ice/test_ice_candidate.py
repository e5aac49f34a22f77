"""Candidates and their text.  The vectors in rfc-vectors/ice have the grammar, line by line."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ice.candidate import (
    MOST_CHARACTERS,
    Candidate,
    CandidateError,
    CandidateType,
    TcpType,
    UnsupportedCandidate,
    is_name,
    parse_host,
)
from stun.errors import UsageError
from stun.sansio import Address

HOST = Candidate("1", 1, "udp", 2130706431, "192.0.2.1", 5000, CandidateType.HOST)

WORDS = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=12)
HOSTS = (
    st.ip_addresses(v=4).map(str)
    | st.ip_addresses(v=6).map(lambda ip: parse_host(ip.compressed))
    | st.uuids().map(lambda uuid: f"{uuid}.local")
)
PORTS = st.integers(1, 0xFFFF)


@st.composite
def candidates(draw: st.DrawFn) -> Candidate:
    transport = draw(st.sampled_from(["udp", "tcp"]))
    tcptype = draw(st.sampled_from(TcpType)) if transport == "tcp" else None
    kind = draw(st.sampled_from(CandidateType))
    related = kind is not CandidateType.HOST
    return Candidate(
        foundation=draw(st.text("abcXYZ019+/", min_size=1, max_size=32)),
        component=draw(st.integers(1, 256)),
        transport=transport,
        priority=draw(st.integers(1, 2**31 - 1)),
        host=draw(HOSTS),
        port=9 if tcptype is TcpType.ACTIVE else draw(PORTS),
        type=kind,
        related_address=draw(HOSTS) if related else None,
        related_port=draw(PORTS) if related else None,
        tcptype=tcptype,
        extensions=tuple(
            draw(st.lists(st.tuples(WORDS.map(lambda word: f"x-{word}"), WORDS), max_size=4))
        ),
    )


@given(candidates())
def test_what_is_written_is_read(candidate: Candidate) -> None:
    assert Candidate.from_sdp(candidate.to_sdp()) == candidate
    assert Candidate.from_sdp(f"a={candidate.to_sdp()}\r\n") == candidate
    assert Candidate.from_sdp(candidate.to_sdp().removeprefix("candidate:")) == candidate


def test_a_complaint_says_what_and_where() -> None:
    with pytest.raises(CandidateError) as caught:
        Candidate.from_sdp("candidate:1 1 udp 1 192.0.2.1 70000 typ host")
    assert str(caught.value) == (
        "'candidate:1 1 udp 1 192.0.2.1 70000 typ host': a number from 0 to 65535 expected "
        "(at character 31)"
    )
    assert caught.value.problem == "a number from 0 to 65535 expected"
    assert isinstance(caught.value, UsageError)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("1 1 sctp 1 192.0.2.1 1 typ host", "unknown transport 'sctp'"),
        ("1 1 udp 1 192.0.2.1 1 typ future", "unknown type 'future'"),
        ("1 1 tcp 1 192.0.2.1 1 typ host tcptype x", "unknown tcptype 'x'"),
        (f"1 1 {'x' * 999} 1 192.0.2.1 1 typ host", f"unknown transport '{'x' * 32}'"),
    ],
)
def test_what_is_not_known_is_told_apart(text: str, problem: str) -> None:
    with pytest.raises(UnsupportedCandidate) as caught:
        Candidate.from_sdp(text)
    assert caught.value.problem == problem


@pytest.mark.parametrize("length", [MOST_CHARACTERS, MOST_CHARACTERS + 1, 1_000_000])
def test_length_is_bounded(length: int) -> None:
    text = f"{HOST.to_sdp()} x ".ljust(length, "y")
    if length <= MOST_CHARACTERS:
        assert len(Candidate.from_sdp(text).extensions[0][1]) > 1900
        return
    with pytest.raises(CandidateError, match=f"{length} characters are more than") as caught:
        Candidate.from_sdp(text)
    assert len(str(caught.value)) < 300
    assert len(caught.value.text) <= MOST_CHARACTERS


def test_every_octet_in_every_place_is_taken_or_refused() -> None:
    text = "candidate:1 1 tcp 5 fe80::1%e 50 typ srflx raddr 10.0.0.1 rport 7 tcptype so a b"
    for where in range(len(text) - 1):
        for octet in range(256):
            wrong = f"{text[:where]}{chr(octet)}{text[where + 1 :]}"
            refused = None
            try:
                taken = Candidate.from_sdp(wrong)
            except CandidateError as error:
                refused = error
            if refused is not None:
                assert 0 <= refused.position <= len(wrong)
            else:
                assert 0x20 <= octet < 0x7F
                assert Candidate.from_sdp(taken.to_sdp()).to_sdp() == taken.to_sdp()


def test_every_beginning_is_taken_or_refused() -> None:
    text = "candidate:1 1 udp 5 192.0.2.1 50 typ host"
    for end in range(len(text)):
        with pytest.raises(CandidateError) as caught:
            Candidate.from_sdp(text[:end])
        assert caught.value.position <= end
    assert Candidate.from_sdp(text).port == 50


def test_addresses_are_those_of_sockets() -> None:
    text = "candidate:1 1 udp 5 2001:DB8::0:1 50 typ srflx raddr FE80::0:2%eth0 rport 0"
    candidate = Candidate.from_sdp(text)
    assert candidate.address == Address("2001:db8::1", 50)
    assert candidate.related_address == "fe80::2%eth0"
    assert candidate.to_sdp().endswith("2001:db8::1 50 typ srflx raddr fe80::2 rport 0")


@pytest.mark.parametrize(
    ("host", "name", "mdns"),
    [
        ("192.0.2.1", False, False),
        ("2001:db8::1", False, False),
        ("fe80::1%eth0.local", False, False),
        ("host.example.org", True, False),
        ("1.2.3.4.example", True, False),
        ("5d1c2f0e-6a0c-4f0b-9a86-0f1a2b3c4d5e.local", True, True),
        ("X.LOCAL", True, True),
        ("x.local.", True, False),
        ("printer.office.local", True, False),
        ("local", True, False),
    ],
)
def test_names(host: str, name: bool, mdns: bool) -> None:
    candidate = replace(HOST, host=host)
    assert (candidate.is_name, candidate.is_mdns) == (name, mdns)
    assert is_name(parse_host(host)) is name


@pytest.mark.parametrize(
    "text", ["", ".", "-x", "x-", "a b", "[::1]", "1.2.3", "1.2.3.4.", "::1%", "::g", "x" * 256]
)
def test_what_is_no_host(text: str) -> None:
    with pytest.raises(ValueError, match=r"address|zone"):
        parse_host(text)


def test_extensions() -> None:
    candidate = Candidate.from_sdp(f"{HOST.to_sdp()} ufrag abcd generation 0 ufrag efgh")
    assert candidate.extension("ufrag") == "abcd"
    assert candidate.extension("generation") == "0"
    assert candidate.extension("network-id") is None


@pytest.mark.parametrize("tcptype", TcpType)
def test_counterparts_are_mutual(tcptype: TcpType) -> None:
    assert tcptype.counterpart.counterpart is tcptype
    assert (tcptype.counterpart is tcptype) is (tcptype is TcpType.SIMULTANEOUS_OPEN)
