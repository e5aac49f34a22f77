"""Priorities and foundations.  The figures of the RFCs are in rfc-vectors/ice."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ice.candidate import Candidate, CandidateType, TcpType
from ice.priority import (
    HIGHEST,
    MOST_ADDRESSES,
    SERVERS,
    candidate_priority,
    foundation,
    local_preference,
    pair_priority,
    peer_reflexive_priority,
)

KINDS = list(CandidateType)
TCPTYPES = (None, *TcpType)
PRIORITIES = st.integers(0, 2**32 - 1)


@given(
    st.sampled_from(KINDS),
    st.integers(1, 256),
    st.integers(0, HIGHEST),
    st.sampled_from(TCPTYPES),
)
def test_every_priority_is_allowed(
    kind: CandidateType, component: int, preference: int, tcptype: TcpType | None
) -> None:
    assert 1 <= candidate_priority(kind, component, preference, tcptype) < 2**31


def test_priorities_of_a_stream_are_unique() -> None:
    """As many addresses and servers as can be told apart, every kind, two components."""
    addresses = [HIGHEST - SERVERS * n for n in range(MOST_ADDRESSES)]
    seen = set()
    count = 0
    for kind, tcptype, component in itertools.product(KINDS, TCPTYPES, (1, 2)):
        servers = 1 if kind in ("host", "prflx") else SERVERS
        for interface, server in itertools.product(addresses, range(servers)):
            preference = local_preference(interface, server)
            seen.add(candidate_priority(kind, component, preference, tcptype))
            count += 1
    assert len(seen) == count


def test_local_preferences_end_at_nothing() -> None:
    assert local_preference(HIGHEST) == HIGHEST
    assert local_preference(HIGHEST, SERVERS - 1) == local_preference(HIGHEST, 10_000)
    assert local_preference(3, 10) == 0


@pytest.mark.parametrize("kind", [k for k in KINDS if k is not CandidateType.RELAYED])
def test_udp_before_tcp_and_kinds_in_order(kind: CandidateType) -> None:
    udp = candidate_priority(kind, 1, 0)
    tcp = [candidate_priority(kind, 1, HIGHEST, tcptype) for tcptype in TcpType]
    assert all(udp > other for other in tcp)
    assert all(other > candidate_priority(CandidateType.RELAYED, 1, HIGHEST) for other in tcp)


def test_directions_are_ordered_as_rfc_6544_recommends() -> None:
    def ranked(kind: CandidateType) -> list[TcpType]:
        return sorted(TcpType, key=lambda t: -candidate_priority(kind, 1, HIGHEST, t))

    active, passive, so = TcpType
    assert ranked(CandidateType.HOST) == ranked(CandidateType.RELAYED) == [active, passive, so]
    assert ranked(CandidateType.SERVER_REFLEXIVE) == [so, active, passive]


def test_one_address_has_the_highest_other_preference() -> None:
    value = candidate_priority(CandidateType.HOST, 1, HIGHEST, TcpType.ACTIVE)
    assert value >> 8 & 0x1FFF == 8191


@pytest.mark.parametrize("tcptype", TCPTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_priority_in_a_check(kind: CandidateType, tcptype: TcpType | None) -> None:
    transport = "udp" if tcptype is None else "tcp"
    own = candidate_priority(kind, 2, HIGHEST - 5, tcptype)
    candidate = Candidate("f", 2, transport, own, "192.0.2.1", 1, kind, tcptype=tcptype)
    told = peer_reflexive_priority(candidate)
    assert told >> 24 == (110 if tcptype is None else 109)
    assert told & 0xFFFFFF == own & 0xFFFFFF


@given(PRIORITIES, PRIORITIES)
def test_pair_priority_is_the_formula(controlling: int, controlled: int) -> None:
    low, high = sorted((controlling, controlled))
    assert pair_priority(controlling, controlled) == (
        2**32 * low + 2 * high + (controlling > controlled)
    )


@given(PRIORITIES, PRIORITIES, PRIORITIES, PRIORITIES)
def test_both_agents_order_pairs_alike(a: int, b: int, c: int, d: int) -> None:
    if (a, b) != (c, d) and max(a, b, c, d) < 2**31:
        assert pair_priority(a, b) != pair_priority(c, d)


def test_foundations_differ_exactly_in_what_counts() -> None:
    given = list(
        itertools.product(
            KINDS, ("192.0.2.1", "192.0.2.2", "fe80::1%a"), ("", "192.0.2.9"), ("udp", "tcp")
        )
    )
    made = {foundation(*parts) for parts in given}
    assert len(made) == len(given)
    assert made == {foundation(*parts) for parts in given}
    assert made.isdisjoint(foundation(*parts, secret=b"s") for parts in given)
    assert all(len(text) == 8 for text in made)
    for text in made:
        parsed = Candidate.from_sdp(f"{text} 1 udp 1 192.0.2.1 1 typ host")
        assert parsed.foundation == text
        assert set(text) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/")
