"""Candidates become pairs, and pairs become Waiting: the tables of RFC 8445 and RFC 8838."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import count

import pytest

from ice.base import Base
from ice.candidate import Candidate, CandidateType, TcpType
from ice.checks.checklist import ChecklistState, Generation
from ice.checks.pairs import CheckedPair, PathState
from ice.config import Config, Credentials, Nomination
from ice.pair import PairState
from stun.errors import DropReason
from stun.sansio import Address
from tools.icestub import make_candidate

F, W, S, P, X = (
    PairState.FROZEN,
    PairState.WAITING,
    PairState.SUCCEEDED,
    PairState.IN_PROGRESS,
    PairState.FAILED,
)
CREDENTIALS = Credentials("abcd", "p" * 22)
IDS = count(1)


def generation(**values: object) -> Generation:
    config = Config(**values)  # type: ignore[arg-type]
    return Generation(config, CREDENTIALS, Counter(), set(), controlling=True)


def base_at(
    host: str, port: int, *, component: int = 1, stream: int = 0, tcptype: TcpType | None = None
) -> Base:
    transport = "udp" if tcptype is None else "tcp"
    address = Address(host, port)
    return Base(next(IDS), stream, component, transport, address, tcptype)  # type: ignore[arg-type]


def add_host(to: Generation, host: str = "10.0.0.1", port: int = 5000, **where: int) -> Base:
    base = base_at(host, port, **where)  # type: ignore[arg-type]
    to.add_local(make_candidate(host, port, component=base.component), base)
    return base


def only(pairs: list[CheckedPair]) -> CheckedPair:
    (pair,) = pairs
    return pair


# Formation. ---------------------------------------------------------------------------------------


def test_each_local_candidate_is_paired_with_each_remote_one_whatever_comes_first() -> None:
    one, other = generation(), generation()
    locals_ = [("10.0.0.1", 5000), ("10.0.1.1", 5001), ("2001:db8::1", 5002)]
    remotes = [("10.0.0.2", 6000), ("192.0.2.2", 6001), ("2001:db8::2", 6002)]
    for host, port in locals_:
        add_host(one, host, port)
    for host, port in remotes:
        one.add_remote(make_candidate(host, port), 0)
        other.add_remote(make_candidate(host, port), 0)
    for host, port in locals_:
        add_host(other, host, port)
    for each in (one, other):
        found = {(p.base.address.host, p.remote.host) for p in each.checklists[0].pairs}
        assert found == {
            ("10.0.0.1", "10.0.0.2"),
            ("10.0.0.1", "192.0.2.2"),
            ("10.0.1.1", "10.0.0.2"),
            ("10.0.1.1", "192.0.2.2"),
            ("2001:db8::1", "2001:db8::2"),
        }
        priorities = [pair.priority for pair in each.checklists[0].pairs]
        assert priorities == sorted(priorities, reverse=True)


def test_a_reflexive_candidate_is_replaced_by_its_base() -> None:
    lists = generation()
    base = base_at("10.0.0.1", 5000)
    reflexive = make_candidate("198.51.100.1", 20000, CandidateType.SERVER_REFLEXIVE)
    host = make_candidate("10.0.0.1", 5000)
    lists.add_remote(make_candidate("192.0.2.2", 6000), 0)
    lists.add_local(reflexive, base)
    pair = only(lists.checklists[0].pairs)
    assert pair.local is reflexive
    # The base's own candidate came later: the pair is its from here on, and ranks as such.
    before = pair.priority
    lists.add_local(host, base)
    assert only(lists.checklists[0].pairs) is pair
    assert pair.local is host
    assert pair.priority > before
    assert pair.foundation[0] == host.foundation
    lists.add_local(host, base)
    assert lists.bases[base] == [reflexive, host]


def test_a_pair_that_is_under_way_keeps_its_local_candidate() -> None:
    lists = generation()
    base = base_at("10.0.0.1", 5000)
    reflexive = make_candidate("198.51.100.1", 20000, CandidateType.SERVER_REFLEXIVE)
    lists.add_remote(make_candidate("192.0.2.2", 6000), 0)
    lists.add_local(reflexive, base)
    pair = only(lists.checklists[0].pairs)
    pair.move(P)
    lists.add_local(make_candidate("10.0.0.1", 5000), base)
    assert pair.local is reflexive


def test_the_same_candidate_twice_is_one() -> None:
    lists = generation()
    add_host(lists)
    lists.add_remote(make_candidate("192.0.2.2", 6000), 0)
    lists.add_remote(make_candidate("192.0.2.2", 6000), 0)
    # RFC 8838 section 9: "redundant regardless of its priority".
    lists.add_remote(make_candidate("192.0.2.2", 6000, CandidateType.RELAYED), 0)
    assert only(lists.checklists[0].pairs).remote.type is CandidateType.HOST


def test_streams_and_components_are_kept_apart() -> None:
    lists = generation(components=2, streams=2)
    for stream in (0, 1):
        for component in (1, 2):
            add_host(lists, port=5000 + 10 * stream + component, stream=stream, component=component)
            lists.add_remote(make_candidate("10.0.0.2", 6000, component=component), stream)
    for checklist in lists.checklists:
        assert [pair.component for pair in checklist.pairs] == [1, 2]
        assert {pair.stream for pair in checklist.pairs} == {checklist.stream}


def test_a_link_local_pair_knows_its_link() -> None:
    lists = generation()
    base = base_at("fe80::1%eth7", 5000)
    lists.add_local(make_candidate("fe80::1%eth7", 5000), base)
    lists.add_remote(make_candidate("fe80::2", 6000), 0)
    pair = only(lists.checklists[0].pairs)
    assert pair.remote_address == Address("fe80::2%eth7", 6000)
    assert lists.paths[base, Address("fe80::2%eth7", 6000)] is pair
    # A request from there is no new candidate, and the peer sees this side without the zone.
    known, new = lists.learn(base, Address("fe80::2%eth7", 6000), 1)
    assert not new
    assert known.host == "fe80::2"
    assert lists.local_at(Address("fe80::1", 5000), pair, 1) is pair.local


def test_two_links_to_one_address_are_two_pairs() -> None:
    lists = generation()
    for number in (1, 2):
        host = f"fe80::{number}%eth{number}"
        lists.add_local(make_candidate(host, 5000), base_at(host, 5000))
    lists.add_remote(make_candidate("fe80::9", 6000), 0)
    assert [p.remote.host for p in lists.checklists[0].pairs] == ["fe80::9%eth1", "fe80::9%eth2"]


def test_an_open_connection_is_used_by_the_pair_that_comes_after_it() -> None:
    base = base_at("10.0.0.1", 5000, tcptype=TcpType.SIMULTANEOUS_OPEN)
    remote = make_candidate("10.0.0.2", 6000, tcptype=TcpType.SIMULTANEOUS_OPEN)
    lists = Generation(Config(), CREDENTIALS, Counter(), {(base, remote.address)}, controlling=True)
    tcptype = TcpType.SIMULTANEOUS_OPEN
    lists.add_local(make_candidate("10.0.0.1", 5000, tcptype=tcptype), base)
    lists.add_remote(remote, 0)
    assert only(lists.checklists[0].pairs).path is PathState.OPEN


# The peer sees, and is seen. ----------------------------------------------------------------------


def test_the_local_candidate_that_the_peer_sees() -> None:
    lists = generation()
    base = add_host(lists)
    told = make_candidate("198.51.100.1", 20000, CandidateType.SERVER_REFLEXIVE)
    lists.add_local(told, base)
    lists.add_remote(make_candidate("192.0.2.2", 6000), 0)
    pair = only(lists.checklists[0].pairs)
    assert lists.local_at(base.address, pair, 7) is pair.local
    assert lists.local_at(told.address, pair, 7) is told
    # RFC 8445 7.2.5.3.1: the base is the local candidate, the priority that of the check.
    new = lists.local_at(Address("198.51.100.1", 20001), pair, 7)
    assert new == Candidate(
        new.foundation,
        1,
        "udp",
        7,
        "198.51.100.1",
        20001,
        CandidateType.PEER_REFLEXIVE,
        "10.0.0.1",
        5000,
    )
    assert new.foundation not in (told.foundation, pair.local.foundation)
    pair.mapped = new
    assert lists.local_at(new.address, pair, 7) is new


def test_a_hidden_host_is_recognized_by_its_address() -> None:
    lists = generation()
    base = base_at("10.0.0.1", 5000)
    hidden = replace(make_candidate("10.0.0.1", 5000), host="7d2c.local")
    lists.add_local(hidden, base)
    lists.add_remote(make_candidate("192.0.2.2", 6000), 0)
    pair = only(lists.checklists[0].pairs)
    assert lists.local_at(base.address, pair, 7) is hidden


def test_a_remote_candidate_is_learned_once_and_paired_with_nothing_else() -> None:
    lists = generation()
    base = add_host(lists)
    add_host(lists, "10.0.1.1", 5001)
    learned, new = lists.learn(base, Address("203.0.113.1", 30000), 99)
    assert new
    assert (learned.type, learned.priority, learned.component) == (
        CandidateType.PEER_REFLEXIVE,
        99,
        1,
    )
    assert lists.learn(base, Address("203.0.113.1", 30000), 98) == (learned, False)
    # Section 7.3.1.3: "the ICE agent does not pair this candidate with any local candidates".
    assert lists.checklists[0].pairs == []
    add_host(lists, "10.0.2.1", 5002)
    assert lists.checklists[0].pairs == []
    lists.form(base, learned, proved=True)
    assert len(lists.checklists[0].pairs) == 1


def test_what_was_learned_has_a_foundation_of_its_own() -> None:
    lists = generation()
    base = add_host(lists)
    lists.add_remote(replace(make_candidate("192.0.2.2", 6000), foundation="prflx0"), 0)
    names = {lists.learn(base, Address("203.0.113.1", port), 1)[0].foundation for port in (1, 2, 3)}
    assert len(names | {"prflx0"}) == 4


def test_a_candidate_that_turns_out_to_be_a_relay_ranks_as_one() -> None:
    lists = generation()
    base = add_host(lists)
    learned, _ = lists.learn(base, Address("203.0.113.1", 30000), 0x6EFFFFFF)
    lists.form(base, learned, proved=True)
    lists.add_remote(make_candidate("203.0.113.9", 1, CandidateType.SERVER_REFLEXIVE), 0)
    assert [p.remote.host for p in lists.checklists[0].pairs] == ["203.0.113.1", "203.0.113.9"]
    lists.add_remote(make_candidate("203.0.113.1", 30000, CandidateType.RELAYED), 0)
    assert [p.remote.host for p in lists.checklists[0].pairs] == ["203.0.113.9", "203.0.113.1"]


def test_a_learned_candidate_that_is_told_later_is_the_told_one() -> None:
    lists = generation()
    base = add_host(lists)
    learned, _ = lists.learn(base, Address("203.0.113.1", 30000), 0x6EFFFFFF)
    pair = lists.form(base, learned, proved=True)
    assert pair is not None
    before = pair.priority
    lists.add_remote(make_candidate("203.0.113.9", 30000, preference=9), 0)
    other = lists.checklists[0].pairs[0]
    assert lists.checklists[0].pairs == [other, pair]
    told = make_candidate("203.0.113.1", 30000, CandidateType.SERVER_REFLEXIVE)
    lists.add_remote(told, 0)
    assert pair.remote == told
    assert pair.foundation[1] == told.foundation
    assert pair.priority < before
    assert lists.checklists[0].pairs == [other, pair]
    assert lists.learn(base, Address("203.0.113.1", 30000), 1) == (told, False)


# States. ------------------------------------------------------------------------------------------


def table(
    rows: list[str], *, streams: bool = True
) -> tuple[Generation, dict[tuple[int, int], CheckedPair]]:
    """Form the pairs of a table of RFC 8445 or 8838: rows are streams, columns foundations."""
    lists = generation(streams=len(rows) if streams else 1)
    cells: dict[tuple[int, int], CheckedPair] = {}
    for row, columns in enumerate(rows):
        base = base_at("10.0.0.1", 5000 + row, stream=row)
        lists.add_local(make_candidate("10.0.0.1", 5000 + row), base)
        for column in columns.split():
            add_cell(lists, cells, row, int(column[1:]))
    return lists, cells


def add_cell(
    lists: Generation, cells: dict[tuple[int, int], CheckedPair], row: int, column: int
) -> CheckedPair:
    remote = replace(
        make_candidate(f"192.0.2.{column}", 6000 + row, preference=60000 - column),
        foundation=f"f{column}",
    )
    lists.add_remote(remote, row)
    pair = next(p for p in lists.checklists[row].pairs if p.remote is remote)
    cells[row + 1, column] = pair
    return pair


def states(cells: dict[tuple[int, int], CheckedPair]) -> str:
    return " ".join(
        f"m{row}f{column}:{pair.state.value[0]}" for (row, column), pair in sorted(cells.items())
    )


def test_initial_states_are_those_of_table_1_of_rfc_8445() -> None:
    _, cells = table(["f1 f2 f3", "f1 f2 f3 f4", "f1 f5"])
    assert states(cells) == ("m1f1:w m1f2:w m1f3:w m2f1:f m2f2:f m2f3:f m2f4:w m3f1:f m3f5:w")


def test_trickled_pairs_have_the_states_of_rfc_8838_tables_2_to_6() -> None:
    lists, cells = table(["f1 f2 f3", "f1 f2 f3 f4", "f1", "f1"])
    assert states(cells) == "m1f1:w m1f2:w m1f3:w m2f1:f m2f2:f m2f3:f m2f4:w m3f1:f m4f1:f"
    cells[1, 1].move(P)
    cells[1, 1].move(S)
    lists.unfreeze(cells[1, 1])
    assert states(cells) == "m1f1:s m1f2:w m1f3:w m2f1:w m2f2:f m2f3:f m2f4:w m3f1:w m4f1:w"
    # Rule 1: the topmost pair of its column.
    assert add_cell(lists, cells, 0, 5).state is W
    # Rule 2: one of its foundation has succeeded.
    cells[1, 5].move(P)
    cells[1, 5].move(S)
    assert add_cell(lists, cells, 1, 5).state is W
    # Rule 3: all others.
    assert add_cell(lists, cells, 2, 3).state is F


def test_a_pair_of_a_lower_component_is_unfrozen_though_another_one_waits() -> None:
    lists = generation(components=2)
    for component in (2, 1):
        base = base_at("10.0.0.1", 5000 + component, component=component)
        lists.add_local(make_candidate("10.0.0.1", base.address.port, component=component), base)
        lists.add_remote(make_candidate("192.0.2.1", 6000 + component, component=component), 0)
    assert {p.component: p.state for p in lists.checklists[0].pairs} == {2: W, 1: W}


def test_checklists_take_turns_and_triggered_pairs_go_first() -> None:
    lists, cells = table(["f1 f2", "f3 f4"])
    order = []
    lists.checklists[0].enqueue(cells[1, 2])
    lists.checklists[0].enqueue(cells[1, 2])
    while (pair := lists.next_pair()) is not None:
        order.append(pair)
        pair.move(P)
    assert order == [cells[1, 2], cells[2, 3], cells[1, 1], cells[2, 4]]


def test_the_best_waiting_pair_goes_first() -> None:
    lists = generation()
    add_host(lists)
    for preference in (5, 9, 7):
        lists.add_remote(make_candidate("192.0.2.1", 6000 + preference, preference=preference), 0)
    ports = []
    while (pair := lists.next_pair()) is not None:
        pair.move(P)
        ports.append(pair.remote.port)
    # They are of one foundation, so the first to come was set to Waiting, and then each that was
    # better; the rest follow when those are done.
    assert ports == [6009, 6005]
    for pair in lists.checklists[0].pairs:
        if pair.state is P:
            pair.move(X)
    assert lists.next_pair() is lists.checklists[0].pairs[1]


def test_a_frozen_pair_follows_when_nothing_of_its_foundation_is_to_be_waited_for() -> None:
    lists, cells = table(["f1", "f1"])
    first, second = cells[1, 1], cells[2, 1]
    assert lists.next_pair() is first
    first.move(P)
    assert lists.next_pair() is None
    first.move(X)
    assert lists.next_pair() is second
    assert second.state is W


def test_what_was_parked_is_not_next_and_comes_back() -> None:
    lists = generation(monitor=False)
    add_host(lists)
    for number in (1, 2, 3):
        lists.add_remote(
            replace(
                make_candidate(f"192.0.2.{number}", 6000, preference=9 - number),
                foundation=str(number),
            ),
            0,
        )
    best, middle, last = lists.checklists[0].pairs
    best.move(P)
    middle.move(P)
    middle.move(S)
    middle.valid = True
    lists.checklists[0].enqueue(last)
    lists.checklists[0].selected[1] = middle
    # RFC 8445 8.1.2: "cancels the In-Progress transaction".
    assert lists.park(lists.checklists[0], middle) == [best]
    assert (best.parked, last.parked, last.state, last.queued) == (True, True, F, False)
    assert lists.next_pair() is None
    assert lists.busy() == 0
    lists.add_remote(replace(make_candidate("192.0.2.9", 6000), foundation="9"), 0)
    assert lists.next_pair() is None
    del lists.checklists[0].selected[1]
    lists.unpark(lists.checklists[0], 1)
    assert {p.remote.host: p.state for p in lists.checklists[0].pairs} == {
        "192.0.2.9": W,
        "192.0.2.1": W,
        "192.0.2.2": S,
        "192.0.2.3": W,
    }


@pytest.mark.parametrize(
    ("values", "goes_on"),
    [
        ({"monitor": True}, True),
        ({"monitor": False}, False),
        ({"monitor": False, "nomination": Nomination.AGGRESSIVE}, True),
    ],
)
def test_better_pairs_go_on_where_there_is_a_monitor(
    values: dict[str, object], goes_on: bool
) -> None:
    lists = generation(**values)
    add_host(lists)
    for preference in (3, 2, 1):
        lists.add_remote(
            replace(
                make_candidate("192.0.2.1", 6000 + preference, preference=preference),
                foundation=f"f{preference}",
            ),
            0,
        )
    better, selected, worse = lists.checklists[0].pairs
    selected.move(P)
    selected.move(S)
    lists.checklists[0].selected[1] = selected
    lists.park(lists.checklists[0], selected)
    assert (better.parked, worse.parked) == (not goes_on, True)


# Limits. ------------------------------------------------------------------------------------------


def test_ten_thousand_candidates_are_counted_drops() -> None:
    lists = generation(most_remote=50, most_pairs=20)
    add_host(lists)
    for number in range(10_000):
        host = f"198.51.{number >> 8}.{number & 255}"
        lists.add_remote(make_candidate(host, 6000, preference=number % 65536), 0)
    checklist = lists.checklists[0]
    assert len(checklist.remotes) == 50
    assert len(checklist.pairs) == len(lists.paths) == 20
    assert lists.drops == {DropReason.NO_ROOM: 10_000 - 20}
    # "discarding lower-priority candidate pairs" (6.1.2.5).
    assert [pair.remote.host for pair in checklist.pairs] == [
        f"198.51.0.{number}" for number in range(49, 29, -1)
    ]


def test_a_failed_pair_makes_room_first() -> None:
    lists = generation(most_pairs=2)
    add_host(lists)
    for number in (1, 2):
        lists.add_remote(make_candidate(f"192.0.2.{number}", 6000, preference=9 - number), 0)
    failed = lists.checklists[0].pairs[0]
    failed.move(X)
    lists.add_remote(make_candidate("192.0.2.3", 6000, preference=1), 0)
    assert failed.removed
    assert [p.remote.host for p in lists.checklists[0].pairs] == ["192.0.2.2", "192.0.2.3"]


def test_what_is_under_way_or_valid_does_not_make_room() -> None:
    lists = generation(most_pairs=2)
    base = add_host(lists)
    for number in (1, 2):
        lists.add_remote(make_candidate(f"192.0.2.{number}", 6000, preference=9 - number), 0)
    first, second = lists.checklists[0].pairs
    first.move(P)
    second.move(S)
    second.valid = True
    lists.add_remote(make_candidate("192.0.2.3", 6000), 0)
    assert lists.checklists[0].pairs == [first, second]
    # For one on which the peer has proved itself, one on which it has not goes.
    learned, _ = lists.learn(base, Address("203.0.113.1", 1), 1)
    assert lists.form(base, learned, proved=True) is not None
    assert first.removed
    other, _ = lists.learn(base, Address("203.0.113.1", 2), 1)
    for pair in lists.checklists[0].pairs:
        pair.requests_received = 1
        pair.move(P) if pair.state is W else None
    assert lists.form(base, other, proved=True) is None


def test_who_proves_himself_finds_room_among_the_candidates() -> None:
    lists = generation(most_remote=3, most_pairs=3)
    base = add_host(lists)
    for number in (1, 2, 3, 4):
        lists.add_remote(make_candidate(f"192.0.2.{number}", 6000, preference=number), 0)
    for port in range(1, 10):
        learned, new = lists.learn(base, Address("203.0.113.1", port), 1)
        assert new
        assert lists.form(base, learned, proved=True) is not None
        assert len(lists.checklists[0].remotes) == 3
        assert len(lists.checklists[0].pairs) == 3


def test_removing_leaves_nothing_behind() -> None:
    lists = generation()
    base = add_host(lists)
    learned, _ = lists.learn(base, Address("203.0.113.1", 30000), 1)
    pair = lists.form(base, learned, proved=True)
    assert pair is not None
    checklist = lists.checklists[0]
    checklist.enqueue(pair)
    checklist.selected[1] = checklist.nominating[1] = pair
    lists.forget(pair)
    assert not any((checklist.pairs, checklist.triggered, checklist.selected, lists.paths))
    assert not any((checklist.nominating, checklist.remotes, lists._groups))
    assert pair.removed


def test_clearing_keeps_the_credentials_only() -> None:
    lists = generation(streams=2)
    add_host(lists)
    lists.add_remote(make_candidate("192.0.2.1", 6000), 0)
    pair = only(lists.checklists[0].pairs)
    lists.clear()
    assert pair.removed
    assert [c.stream for c in lists.checklists] == [0, 1]
    assert not any((lists.paths, lists.bases, lists.checklists[0].pairs))
    assert not lists.checklists[0].remotes
    assert lists.keys.local is CREDENTIALS


# Components. --------------------------------------------------------------------------------------


def test_the_components_are_what_both_sides_have_once_all_is_told() -> None:
    lists = generation(components=2)
    checklist = lists.checklists[0]
    assert list(lists.components(checklist)) == [1, 2]
    lists.add_remote(make_candidate("192.0.2.1", 6000), 0)
    assert list(lists.components(checklist)) == [1, 2]
    lists.ended_remote.add(0)
    assert list(lists.components(checklist)) == [1]
    assert checklist.state is ChecklistState.RUNNING
