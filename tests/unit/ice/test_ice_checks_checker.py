"""The checker as a whole: what may be told when, restarts, paths, limits of what is taken."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ice.base import Base
from ice.candidate import TcpType
from ice.checks import ChecklistState, Nominated, PairValid
from ice.checks.checker import LINGER
from ice.config import Config, Credentials
from ice.pair import PairState
from stun.errors import DropReason, UsageError
from stun.registry import Class
from stun.sansio import MILLISECOND, SECOND, Address, Cause
from tools.icestub import LOCAL, REMOTE, Bench, make_candidate

MS = MILLISECOND
NEW_LOCAL = Credentials("newl", "new-local-password-012345")
NEW_REMOTE = Credentials("newr", "new-remote-password-01234")
NEW_KEY = NEW_REMOTE.password.encode()


# Commands. ----------------------------------------------------------------------------------------


def test_what_is_told_is_known() -> None:
    bench = Bench()
    checker = bench.checker
    assert (checker.local, checker.remote, checker.controlling) == (LOCAL, None, True)
    assert 0 <= checker.tie_breaker < 1 << 64
    bench.know_peer()
    assert checker.remote == REMOTE
    assert checker.state(0) is ChecklistState.RUNNING
    assert checker.selected(0, 1) is None
    assert checker.valid_pairs(0, 1) == []


def test_credentials_change_by_a_restart_only() -> None:
    bench = Bench()
    bench.know_peer()
    bench.know_peer()
    with pytest.raises(UsageError, match="restart"):
        bench.know_peer(NEW_REMOTE)
    with pytest.raises(UsageError, match="restart"):
        bench.checker.set_local(NEW_LOCAL)
    with pytest.raises(UsageError, match="changes the username fragment"):
        bench.checker.restart(LOCAL, bench.now)


def test_the_peer_of_a_lite_agent_that_controls_goes_on_controlling() -> None:
    bench = Bench()
    bench.know_peer(lite=True)
    assert bench.checker.controlling
    assert bench.events == []


def test_commands_without_this_sides_credentials_are_refused() -> None:
    from ice.checks import Checker

    checker = Checker(
        Config(),
        controlling=True,
        entropy=bytes,
        send=lambda *_: None,
        open_path=lambda *_: None,
    )
    base = Base(1, 0, 1, "udp", Address("10.0.0.1", 5000))
    assert (checker.local, checker.remote, checker.deadline(), checker.poll()) == (None,) * 4
    assert checker.pair_of(base, Address("10.0.0.2", 1)) is None
    assert checker.state(0) is ChecklistState.RUNNING
    assert checker.selected(0, 1) is None
    assert list(checker.pairs()) == []
    checker.stun(base, Address("10.0.0.2", 1), Bench().request(), 0)
    assert checker.drops == {DropReason.UNKNOWN_USERNAME: 1}
    checker.path_opened(base, Address("10.0.0.2", 1), 0)
    checker.base_lost(base, 0)
    checker.on_deadline(0)
    with pytest.raises(UsageError, match="set_local comes first"):
        checker.set_remote(REMOTE, False, 0)
    with pytest.raises(UsageError, match="set_local comes first"):
        checker.add_local(make_candidate("10.0.0.1", 5000), base, 0)
    with pytest.raises(UsageError, match="set_local comes first"):
        checker.add_remote(make_candidate("10.0.0.2", 6000), 0, 0)


def test_streams_and_components_that_are_not_there_are_refused() -> None:
    bench = Bench()
    with pytest.raises(UsageError, match="component 1 of stream 1"):
        bench.host(stream=1)
    with pytest.raises(UsageError, match="component 2 of stream 0"):
        bench.host(component=2)
    with pytest.raises(UsageError, match="stream 5"):
        bench.candidate(stream=5)


@pytest.mark.parametrize(
    "candidate",
    [
        make_candidate("peer.local", 6000),
        make_candidate("example.org", 6000),
        make_candidate("", 6000),
        make_candidate("10.0.0.256", 6000),
        make_candidate("0.0.0.0", 6000),
        make_candidate("::", 6000),
        make_candidate("224.0.0.1", 6000),
        make_candidate("255.255.255.255", 6000),
        make_candidate("ff02::1", 6000),
        make_candidate("10.0.0.2", 0),
        make_candidate("10.0.0.2", 65536),
        make_candidate("10.0.0.2", 6000, component=2),
        make_candidate("10.0.0.2", 6000, component=0),
        replace(make_candidate("10.0.0.2", 6000), transport="sctp"),
    ],
)
def test_candidates_that_no_check_can_be_sent_to_are_counted(candidate: object) -> None:
    bench = Bench()
    bench.host()
    bench.know_peer()
    bench.checker.add_remote(candidate, 0, bench.now)  # type: ignore[arg-type]
    assert bench.checker.drops == {DropReason.UNUSABLE_CANDIDATE: 1}
    assert bench.advance(SECOND) == []


def test_an_address_is_the_same_however_it_is_written() -> None:
    bench = Bench()
    base = bench.host("2001:db8::1")
    bench.know_peer()
    bench.candidate("2001:DB8:0:0::00b")
    (check,) = bench.advance()
    assert check.remote == Address("2001:db8::b", 6000)
    bench.answer(check)
    assert bench.checker.pair_of(base, Address("2001:db8::b", 6000)) is bench.pair()


def test_a_tcp_candidate_without_a_type_is_passive() -> None:
    bench = Bench()
    bench.host(tcptype=TcpType.ACTIVE)
    bench.know_peer()
    candidate = replace(make_candidate("10.0.0.2", 6000), transport="tcp")
    bench.checker.add_remote(candidate, 0, bench.now)
    bench.advance()
    assert len(bench.opened) == 1


def test_after_the_end_of_candidates_none_is_taken() -> None:
    bench = Bench(Config(streams=2))
    bench.host()
    bench.host(stream=1, port=5001)
    bench.know_peer()
    bench.checker.end_of_remote(bench.now, 1)
    bench.candidate()
    bench.candidate(stream=1)
    assert bench.checker.drops == {DropReason.LATE_CANDIDATE: 1}
    assert [pair.stream for pair in bench.checker.pairs()] == [0]


def test_ten_thousand_candidates_neither_grow_nor_slow_anything() -> None:
    bench = Bench(Config(most_remote=64, most_pairs=40))
    bench.host()
    bench.know_peer()
    for number in range(10_000):
        bench.candidate(f"198.18.{number >> 8}.{number & 255}", 1 + number)
    assert len(list(bench.checker.pairs())) == 40
    assert bench.checker.drops == {DropReason.NO_ROOM: 10_000 - 40}
    sent = bench.advance(120 * SECOND)
    # Each of 40 checks at most seven times.
    assert len(sent) <= 280
    assert len(bench.checker._core.outstanding) == 0


def test_pairs_can_be_asked_for_by_stream_and_component() -> None:
    bench = Bench(Config(streams=2, components=2))
    for stream in (0, 1):
        for component in (1, 2):
            bench.host(port=5000 + 10 * stream + component, stream=stream, component=component)
            bench.candidate(port=6000, stream=stream, component=component)
    assert len(list(bench.checker.pairs())) == 4
    assert [p.component for p in bench.checker.pairs(1)] == [1, 2]
    bench.know_peer()
    (check,) = bench.advance()
    bench.answer(check)
    assert bench.checker.valid_pairs(0, 1) == [bench.pair()]
    assert bench.checker.valid_pairs(0, 2) == []


# Paths. -------------------------------------------------------------------------------------------


def test_pair_of_finds_the_pair_of_a_path() -> None:
    bench = Bench()
    base, pair = bench.connected()
    assert bench.checker.pair_of(base, pair.remote_address) is pair
    assert bench.checker.pair_of(base, Address("10.0.0.2", 6001)) is None
    other = replace(base, id=9)
    assert bench.checker.pair_of(other, pair.remote_address) is None


def test_what_leaves_from_a_lost_base_is_lost() -> None:
    bench = Bench()
    base, pair = bench.connected()
    kept = bench.host("10.0.1.1", 5001)
    bench.checker.probe(pair, bench.now)
    bench.checker.base_lost(base, bench.now)
    assert (pair.valid, pair.nominated, pair.state) == (False, False, PairState.FAILED)
    assert [p.base for p in bench.checker.pairs()] == [kept]
    assert bench.checker.pair_of(base, pair.remote_address) is None
    assert bench.checker.selected(0, 1) is None
    assert len(bench.checker._core.outstanding) == 0
    # It is checked from what is left.
    (check,) = [s for s in bench.advance(50 * MS) if s.message.message_class is Class.REQUEST]
    assert check.base is kept


def test_events_of_paths_that_nobody_knows_are_nothing() -> None:
    bench = Bench()
    base = bench.host()
    stranger = Address("203.0.113.9", 9)
    bench.checker.path_opened(base, stranger, bench.now)
    bench.checker.path_closed(base, stranger, Cause.RESET, bench.now)
    bench.checker.path_unreachable(base, stranger, bench.now)
    assert bench.events == []
    assert bench.checker._core.connections == set()


# Restarts. ----------------------------------------------------------------------------------------


def restarted(*, controlling: bool = True) -> tuple[Bench, Base]:
    bench = Bench(controlling=controlling)
    base, _ = bench.connected()
    bench.checker.restart(NEW_LOCAL, bench.now)
    bench.events.clear()
    bench.sent.clear()
    return bench, base


def readd(bench: Bench, base: Base) -> None:
    bench.checker.add_local(make_candidate(*base.address), base, bench.now)
    bench.know_peer(NEW_REMOTE)
    bench.candidate()


def test_a_restart_flushes_all_but_the_role_and_what_was_valid() -> None:
    bench, base = restarted(controlling=False)
    assert (bench.checker.local, bench.checker.remote) == (NEW_LOCAL, None)
    assert not bench.checker.controlling
    (old,) = bench.checker.pairs()
    assert old.valid
    assert bench.checker.valid_pairs(0, 1) == [old]
    assert bench.checker.pair_of(base, old.remote_address) is old
    assert bench.checker.selected(0, 1) is None
    assert bench.advance(SECOND) == []


def test_the_new_generation_is_checked_with_the_new_credentials() -> None:
    bench, base = restarted()
    readd(bench, base)
    old = list(bench.checker.pairs())[-1]
    (check,) = bench.advance(50 * MS)
    assert check.message.attributes[0][1] == b"newr:newl"
    # Data still belongs to the pair that is proved.
    assert bench.checker.pair_of(base, old.remote_address) is old
    bench.answer(check, key=NEW_KEY)
    new = bench.pair()
    assert new is not old
    assert new.valid
    assert bench.checker.pair_of(base, new.remote_address) is new
    bench.answer(bench.sent[-1], key=NEW_KEY)
    assert bench.told(Nominated) == [Nominated(new)]
    assert list(bench.checker.pairs()) == [new, old]
    bench.advance(LINGER)
    assert list(bench.checker.pairs()) == [new]
    assert bench.checker.deadline() is None


def test_answers_with_the_password_of_before_do_not_count() -> None:
    bench, base = restarted()
    readd(bench, base)
    (check,) = bench.advance(50 * MS)
    bench.answer(check)
    assert bench.told(PairValid) == []
    assert bench.checker.drops == {DropReason.BAD_INTEGRITY: 1}


def test_answers_to_checks_of_before_the_restart_do_not_count() -> None:
    bench = Bench()
    bench.host()
    bench.know_peer()
    bench.candidate()
    (check,) = bench.advance()
    bench.checker.restart(NEW_LOCAL, bench.now)
    bench.answer(check)
    assert bench.checker.drops == {DropReason.UNKNOWN_TRANSACTION: 1}
    assert bench.advance(60 * SECOND) == []


def test_the_old_pair_can_be_probed_and_not_be_nominated() -> None:
    bench, _ = restarted()
    old = bench.pair()
    bench.checker.nominate(old, bench.now)
    assert bench.sent == []
    bench.checker.probe(old, bench.now)
    assert bench.sent[0].message.attributes[0][1] == b"remo:locl"


def test_a_request_of_the_new_generation_may_come_before_the_peers_credentials() -> None:
    bench, base = restarted(controlling=False)
    bench.checker.add_local(make_candidate(*base.address), base, bench.now)
    key = NEW_LOCAL.password.encode()
    bench.ask(base, Address("10.0.0.2", 6000), username="newl:newr", key=key)
    assert bench.sent[-1].message.message_class is Class.SUCCESS
    bench.know_peer(NEW_REMOTE)
    (check,) = bench.advance(50 * MS)
    bench.answer(check, key=NEW_KEY)
    assert bench.pair().valid


def test_checks_of_before_are_answered_after_the_old_pairs_are_forgotten() -> None:
    bench, base = restarted()
    readd(bench, base)
    (check,) = bench.advance(50 * MS)
    bench.answer(check, key=NEW_KEY)
    bench.answer(bench.sent[-1], key=NEW_KEY)
    bench.advance(60 * SECOND)
    bench.ask(base, check.remote)
    assert bench.sent[-1].message.message_class is Class.SUCCESS
    assert len(list(bench.checker.pairs())) == 1


def test_a_second_restart_forgets_the_first_generation() -> None:
    bench, base = restarted()
    first = bench.pair()
    bench.checker.restart(Credentials("thrd", "t" * 24), bench.now)
    assert list(bench.checker.pairs()) == []
    bench.ask(base, first.remote_address)
    assert bench.checker.drops == {DropReason.UNKNOWN_USERNAME: 1}


def test_a_connection_outlives_a_restart() -> None:
    # RFC 6544 section 9.2: "that existing connection is reused, and STUN checks are performed".
    bench = Bench()
    base = bench.host(tcptype=TcpType.SIMULTANEOUS_OPEN)
    bench.know_peer()
    bench.candidate(tcptype=TcpType.SIMULTANEOUS_OPEN)
    bench.advance()
    bench.checker.path_opened(base, Address("10.0.0.2", 6000), bench.now)
    bench.answer(bench.sent[0])
    bench.answer(bench.sent[1])
    bench.checker.restart(NEW_LOCAL, bench.now)
    so = TcpType.SIMULTANEOUS_OPEN
    bench.checker.add_local(make_candidate(*base.address, tcptype=so), base, bench.now)
    bench.know_peer(NEW_REMOTE)
    bench.candidate(tcptype=so)
    (check,) = bench.advance(50 * MS)
    assert len(bench.opened) == 1
    bench.answer(check, key=NEW_KEY)
    assert bench.pair().valid
    # And when it ends, the pairs of both generations do.
    bench.checker.path_closed(base, check.remote, Cause.END_OF_STREAM, bench.now)
    assert bench.checker.valid_pairs(0, 1) == []


# Numbers. -----------------------------------------------------------------------------------------


def test_a_connected_pair_has_its_counts_and_its_history() -> None:
    bench = Bench()
    base, pair = bench.connected()
    bench.ask(base, pair.remote_address)
    assert (pair.requests_sent, pair.responses_received) == (2, 2)
    assert (pair.requests_received, pair.responses_sent) == (1, 1)
    assert [note.what for note in pair.notes] == [
        "valid: the peer sees 10.0.0.1:5000",
        "nominated",
    ]


def test_the_round_trip_time_is_smoothed() -> None:
    bench = Bench()
    _, pair = bench.connected()
    assert pair.rtt == 10 * MS
    bench.checker.probe(pair, bench.now)
    bench.answer(bench.sent[-1], after=90 * MS)
    assert pair.rtt == 20 * MS
