"""Which candidates make a pair, and what a pair is worth."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import product

import pytest

from ice.base import Base
from ice.candidate import Candidate, CandidateType, TcpType
from ice.checks.checklist import Generation
from ice.checks.pairs import MOVES, CheckedPair, PathState, can_pair, order
from ice.config import Config, Credentials
from ice.pair import PairState
from stun.sansio import Address
from tools.icestub import make_candidate

ACTIVE, PASSIVE, SO = TcpType.ACTIVE, TcpType.PASSIVE, TcpType.SIMULTANEOUS_OPEN


def base_at(host: str, tcptype: TcpType | None = None, component: int = 1) -> Base:
    transport = "udp" if tcptype is None else "tcp"
    return Base(1, 0, component, transport, Address(host, 5000), tcptype)  # type: ignore[arg-type]


def generation(*, controlling: bool = True) -> Generation:
    credentials = Credentials("abcd", "p" * 22)
    return Generation(Config(), credentials, Counter(), set(), controlling=controlling)


@pytest.mark.parametrize(
    ("local", "remote", "pairs"),
    [
        ("10.0.0.1", "192.0.2.1", True),
        ("10.0.0.1", "2001:db8::1", False),
        ("2001:db8::1", "192.0.2.1", False),
        ("2001:db8::1", "2001:db8:1::2", True),
        # RFC 8445 6.1.2.2: "IPv6 link-local addresses MUST NOT be paired with other than
        # link-local addresses."
        ("fe80::1%eth0", "fe80::2", True),
        ("fe80::1%eth0", "2001:db8::2", False),
        ("2001:db8::1", "fe80::2", False),
        ("febf::1%eth0", "fe80::2", True),
        ("fec0::1", "fe80::2", False),
        # It says nothing of IPv4 link-local ones.
        ("169.254.3.4", "10.0.0.1", True),
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.1", "10.0.0.1", False),
        ("10.0.0.1", "127.0.0.1", False),
        ("::1", "::1", True),
        ("::1", "2001:db8::2", False),
    ],
)
def test_addresses_that_are_paired(local: str, remote: str, pairs: bool) -> None:
    assert can_pair(base_at(local), make_candidate(remote, 6000)) is pairs


def test_components_and_transports_are_not_mixed() -> None:
    base = base_at("10.0.0.1")
    assert not can_pair(base, make_candidate("10.0.0.2", 6000, component=2))
    assert not can_pair(base, make_candidate("10.0.0.2", 6000, tcptype=PASSIVE))
    assert not can_pair(base_at("10.0.0.1", ACTIVE), make_candidate("10.0.0.2", 6000))


@pytest.mark.parametrize(("local", "remote"), list(product(TcpType, TcpType)))
def test_tcp_types_are_paired_by_the_table_of_rfc_6544(local: TcpType, remote: TcpType) -> None:
    # Section 6.2: so with so, active with passive, passive with active; and then "MUST also remove
    # any pair for which the local candidate is a passive TCP candidate".
    expected = (local, remote) in {(SO, SO), (ACTIVE, PASSIVE)}
    port = 9 if remote is ACTIVE else 6000
    candidate = make_candidate("10.0.0.2", port, tcptype=remote)
    assert can_pair(base_at("10.0.0.1", local), candidate) is expected


def make_pair(
    local: Candidate | None = None, remote: Candidate | None = None, *, controlling: bool = True
) -> CheckedPair:
    return CheckedPair(
        generation(controlling=controlling),
        local or make_candidate("10.0.0.1", 5000),
        base_at("10.0.0.1"),
        remote or make_candidate("10.0.0.2", 6000, CandidateType.RELAYED),
    )


def test_both_sides_give_a_pair_the_same_priority() -> None:
    one, other = make_candidate("10.0.0.1", 5000), make_candidate("10.0.0.2", 6000, preference=3)
    left = make_pair(one, other, controlling=True)
    right = make_pair(other, one, controlling=False)
    g, d = one.priority, other.priority
    assert left.priority == right.priority == 2**32 * min(g, d) + 2 * max(g, d) + 1
    assert make_pair(one, other, controlling=False).priority == left.priority - 1


def test_the_valid_pair_is_as_the_peer_sees_it() -> None:
    host, remote = make_candidate("10.0.0.1", 5000), make_candidate("192.0.2.9", 6000)
    mapped = make_candidate("198.51.100.1", 20000, CandidateType.SERVER_REFLEXIVE)
    pair = make_pair(host, remote)
    assert pair.valid_priority == pair.priority
    pair.mapped = mapped
    seen_from_there = make_pair(remote, mapped, controlling=False)
    assert pair.valid_priority == seen_from_there.priority < pair.priority


def test_pairs_are_sorted_by_priority_then_component() -> None:
    high, low = make_pair(), make_pair(remote=make_candidate("10.0.0.9", 1, preference=1))
    second = make_pair(replace(high.local, component=2))
    second.base = base_at("10.0.0.1", component=2)
    second.priority = high.priority
    low.priority = high.priority - 1
    assert sorted([low, second, high], key=order) == [high, second, low]


def test_the_moves_of_figure_6_are_allowed_and_others_are_not() -> None:
    pair = make_pair()
    assert pair.state is PairState.FROZEN
    for state in (PairState.WAITING, PairState.IN_PROGRESS, PairState.SUCCEEDED):
        pair.move(state)
        pair.move(state)
    with pytest.raises(AssertionError, match="succeeded -> waiting"):
        pair.move(PairState.WAITING)
    assert PairState.IN_PROGRESS not in MOVES[PairState.FROZEN]
    assert set(MOVES) == set(PairState)


def test_a_connection_is_to_be_opened_over_tcp_only() -> None:
    assert make_pair().path is PathState.OPEN
    tcp = CheckedPair(
        generation(),
        make_candidate("10.0.0.1", 9, tcptype=ACTIVE),
        base_at("10.0.0.1", ACTIVE),
        make_candidate("10.0.0.2", 6000, tcptype=PASSIVE),
    )
    assert tcp.path is PathState.NONE
