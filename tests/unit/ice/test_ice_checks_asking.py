"""Checks are sent, sent again, answered, refused, lost."""

from __future__ import annotations

import pytest

from ice.candidate import CandidateType, TcpType
from ice.checks import ChecklistState, ConsentRevoked, PairValid, ProbeAnswered, RoleChanged
from ice.checks.asking import COMPLAINTS, GIVE_WAY, MOST_CONFLICTS
from ice.config import Config, Nomination
from ice.pair import PairState
from stun.attributes import ICE_CONTROLLED, ICE_CONTROLLING, PRIORITY, USE_CANDIDATE, USERNAME
from stun.codec import encode
from stun.errors import DropReason, UsageError
from stun.message import Message
from stun.registry import Class
from stun.sansio import MILLISECOND, SECOND, Address, Cause
from tools.icestub import REMOTE_KEY, Bench, Sent

MS = MILLISECOND
ACTIVE, PASSIVE, SO = TcpType.ACTIVE, TcpType.PASSIVE, TcpType.SIMULTANEOUS_OPEN


def started(**values: object) -> tuple[Bench, Sent]:
    """Begin the check of one pair."""
    bench = Bench(**values)  # type: ignore[arg-type]
    bench.host()
    bench.know_peer()
    bench.candidate()
    (check,) = bench.advance()
    return bench, check


def times(bench: Bench) -> list[float]:
    return [(sent.at - SECOND) / SECOND for sent in bench.sent]


# Sending. -----------------------------------------------------------------------------------------


def test_nothing_is_sent_before_credentials_and_a_pair_are_there() -> None:
    bench = Bench()
    bench.host()
    bench.candidate()
    assert bench.checker.deadline() is None
    assert bench.advance(SECOND) == []
    bench.know_peer()
    assert len(bench.advance()) == 1


def test_a_check_says_what_section_7_1_wants() -> None:
    _, check = started()
    message = check.message
    assert message.get(USERNAME) == "remo:locl"
    assert message.get(ICE_CONTROLLING) is not None
    # The type preference of a peer-reflexive candidate, all else as the candidate itself has it.
    assert message.get(PRIORITY) == 110 << 24 | 65535 << 8 | 255
    assert message.get(USE_CANDIDATE) is None
    assert check.remote == Address("10.0.0.2", 6000)


def test_checks_are_paced_by_ta_and_the_best_pair_goes_first() -> None:
    bench = Bench(Config(ta=20 * MS))
    bench.host()
    bench.know_peer()
    for number in range(5):
        bench.candidate(f"10.0.0.{10 + number}", preference=100 + number)
    bench.advance(0)
    bench.advance(99 * MS)
    assert times(bench) == [0, 0.02, 0.04, 0.06, 0.08]
    hosts = [sent.remote.host for sent in bench.sent]
    # Of one foundation each, so none waits for another.
    assert hosts == [f"10.0.0.{10 + number}" for number in (4, 3, 2, 1, 0)]


def test_a_pair_that_comes_when_all_was_sent_waits_for_ta_as_well() -> None:
    bench, _ = started()
    bench.advance(10 * MS)
    bench.candidate("10.0.0.3")
    bench.advance(39 * MS)
    assert times(bench) == [0]
    bench.advance(MS)
    assert times(bench) == [0, 0.05]
    bench.advance(100 * MS)
    bench.candidate("10.0.0.4")
    bench.advance()
    assert times(bench) == [0, 0.05, 0.15]


def test_one_check_is_sent_after_a_long_sleep_not_a_burst() -> None:
    bench = Bench()
    bench.host()
    bench.know_peer()
    for number in range(5):
        bench.candidate(f"10.0.0.{10 + number}")
    bench.advance()
    bench.now += 10 * SECOND
    bench.checker.on_deadline(bench.now)
    fresh = [s for s in bench.sent if s.at == bench.now]
    assert len({s.remote for s in fresh}) == len(fresh) == 2  # one again, one new


def test_an_early_deadline_does_nothing() -> None:
    bench, _ = started()
    bench.checker.on_deadline(bench.now)
    bench.checker.on_deadline(bench.now + 1)
    assert len(bench.sent) == 1


def test_a_check_is_repeated_as_stun_says_with_the_same_octets_and_fails_at_39_5_seconds() -> None:
    bench, check = started()
    bench.advance(39 * SECOND)
    assert times(bench) == [0, 0.5, 1.5, 3.5, 7.5, 15.5, 31.5]
    assert {sent.data for sent in bench.sent} == {check.data}
    assert bench.pair().state is PairState.IN_PROGRESS
    bench.advance(SECOND // 2)
    assert bench.pair().state is PairState.FAILED
    assert "no answer to 7 requests" in bench.pair().notes[-1].what
    assert bench.pair().requests_sent == 7


def test_the_rto_grows_with_the_checks_that_are_to_be_made() -> None:
    # RFC 8445 14.3: each first packet is sent before any is sent again.
    bench = Bench()
    bench.host()
    bench.know_peer()
    for number in range(30):
        bench.candidate(f"10.0.1.{number}", preference=1000 - number)
    bench.advance(1450 * MS)
    assert len({sent.remote for sent in bench.sent}) == len(bench.sent) == 30
    bench.advance(60 * SECOND)
    assert {pair.state for pair in bench.checker.pairs()} == {PairState.FAILED}
    assert max(pair.notes[-1].at for pair in bench.checker.pairs()) == (
        SECOND + 1450 * MS + 39_500 * MS
    )


# Answers. -----------------------------------------------------------------------------------------


def test_an_answer_makes_the_pair_valid() -> None:
    bench, check = started()
    bench.answer(check, after=30 * MS)
    pair = bench.pair()
    assert pair.valid
    assert pair.state is PairState.SUCCEEDED
    assert pair.rtt == 30 * MS
    assert pair.mapped is pair.local
    assert bench.told(PairValid) == [PairValid(pair)]
    assert bench.checker.drops == {}


def test_an_answer_tells_of_a_peer_reflexive_candidate() -> None:
    bench, check = started()
    bench.answer(check, mapped=Address("198.51.100.7", 40000))
    mapped = bench.pair().mapped
    assert mapped is not None
    assert mapped.type is CandidateType.PEER_REFLEXIVE
    assert mapped.priority == check.message.get(PRIORITY)
    assert (mapped.related_address, mapped.related_port) == ("10.0.0.1", 5000)


def test_the_round_trip_is_not_measured_after_a_retransmission() -> None:
    bench, check = started()
    bench.advance(600 * MS)
    bench.answer(check)
    assert bench.pair().valid
    assert bench.pair().rtt is None


def unchanged(bench: Bench, reason: DropReason) -> None:
    assert bench.checker.drops == {reason: 1}
    assert bench.pair().state is PairState.IN_PROGRESS
    assert not bench.pair().valid
    assert bench.events == []


def test_a_forged_answer_changes_nothing() -> None:
    bench, check = started()
    bench.answer(check, key=b"who knows")
    unchanged(bench, DropReason.BAD_INTEGRITY)


def test_an_answer_without_proof_changes_nothing() -> None:
    bench, check = started()
    bench.answer(check, key=None)
    unchanged(bench, DropReason.MISSING_INTEGRITY)


def test_an_error_without_proof_changes_nothing() -> None:
    bench, check = started()
    bench.refuse(check, 487, key=None)
    unchanged(bench, DropReason.MISSING_INTEGRITY)
    assert bench.checker.controlling


def test_an_answer_with_another_transaction_changes_nothing() -> None:
    bench, check = started()
    message = check.message
    message.transaction_id = bytes(12)
    bench.deliver(
        check.base,
        check.remote,
        encode(Message.success(message), key=REMOTE_KEY, fingerprint=True),
    )
    unchanged(bench, DropReason.UNKNOWN_TRANSACTION)


@pytest.mark.parametrize("ending", [b"", None])
def test_an_answer_without_or_with_a_wrong_fingerprint_changes_nothing(
    ending: bytes | None,
) -> None:
    bench, check = started()
    data = encode(Message.success(check.message), key=REMOTE_KEY, fingerprint=ending is None)
    if ending is None:
        data = data[:-1] + bytes([data[-1] ^ 1])
    bench.deliver(check.base, check.remote, data)
    unchanged(bench, DropReason.BAD_FINGERPRINT)


def test_an_answer_counts_once() -> None:
    bench, check = started()
    bench.answer(check)
    bench.answer(check)
    assert bench.checker.drops == {DropReason.UNKNOWN_TRANSACTION: 1}
    assert len(bench.told(PairValid)) == 1


@pytest.mark.parametrize("what", ["source", "base"])
def test_an_answer_on_another_way_fails_the_pair_unless_the_right_one_comes(what: str) -> None:
    for right_one_comes in (False, True):
        bench, check = started()
        if what == "source":
            bench.answer(check, source=Address("10.0.0.2", 6001))
        else:
            bench.answer(check, base=bench.host("10.0.9.1", 5009))
            bench.advance()
        unchanged(bench, DropReason.UNEXPECTED_SOURCE)
        sent = len([s for s in bench.sent if s.remote == check.remote and s.base is check.base])
        if right_one_comes:
            bench.answer(check)
            assert bench.pair().valid
        else:
            bench.advance(SECOND)
            assert bench.pair().state is PairState.FAILED
        again = [s for s in bench.sent if s.data == check.data]
        assert len(again) == sent == 1


def test_an_answer_that_cannot_be_understood_fails_the_pair() -> None:
    for attributes, reason in (
        ([], DropReason.BAD_ATTRIBUTE_VALUE),
        ([(0x0020, b"\0\1\0\1\0\0\0\0"), (0x7FFE, b"")], DropReason.UNKNOWN_COMPREHENSION_REQUIRED),
    ):
        bench, check = started()
        response = Message.success(check.message)
        response.attributes.extend(attributes)
        data = encode(response, key=REMOTE_KEY, fingerprint=True)
        bench.deliver(check.base, check.remote, data)
        assert bench.checker.drops == {reason: 1}
        assert bench.pair().state is PairState.FAILED


@pytest.mark.parametrize("code", [400, 401, 403, 420, 500, 600])
def test_an_error_fails_the_pair(code: int) -> None:
    bench, check = started()
    bench.refuse(check, code)
    assert bench.pair().state is PairState.FAILED
    assert f"refused: {code}" in bench.pair().notes[-1].what
    assert bench.told(ConsentRevoked) == []


# Role conflicts. ----------------------------------------------------------------------------------


@pytest.mark.parametrize("controlling", [True, False])
def test_487_switches_the_role_and_the_check_is_repeated(controlling: bool) -> None:
    bench, check = started(controlling=controlling)
    before, priority = bench.checker.tie_breaker, bench.pair().priority
    bench.refuse(check, 487)
    assert bench.checker.controlling is not controlling
    assert bench.told(RoleChanged) == [RoleChanged(not controlling)]
    # Section 7.2.5.1: "The agent MUST change the tiebreaker value."
    assert bench.checker.tie_breaker != before
    assert bench.pair().state is PairState.WAITING
    (again,) = bench.advance(50 * MS)
    mine = ICE_CONTROLLED if controlling else ICE_CONTROLLING
    assert again.message.get(mine) == bench.checker.tie_breaker
    assert again.message.transaction_id != check.message.transaction_id
    # Both candidates have the same priority here, but for the G>D bit nothing depends on the role.
    assert abs(bench.pair().priority - priority) <= 1


def test_487_for_a_check_of_the_role_before_does_not_switch_back() -> None:
    bench = Bench()
    bench.host()
    bench.know_peer()
    bench.candidate("10.0.0.2")
    bench.candidate("10.0.0.3")
    first, second = bench.advance(50 * MS)
    bench.refuse(first, 487)
    tie_breaker = bench.checker.tie_breaker
    bench.refuse(second, 487)
    assert not bench.checker.controlling
    assert bench.checker.tie_breaker == tie_breaker
    again = bench.advance(100 * MS)
    assert [s.remote for s in again] == [first.remote, second.remote]
    assert all(s.message.get(ICE_CONTROLLED) == tie_breaker for s in again)


def test_a_peer_that_never_has_a_role_is_given_up() -> None:
    bench, check = started()
    for _ in range(MOST_CONFLICTS):
        bench.refuse(check, 487)
        (check,) = bench.advance(50 * MS)
    bench.refuse(check, 487)
    assert bench.pair().state is PairState.FAILED
    assert bench.advance(SECOND) == []


# ICMP. --------------------------------------------------------------------------------------------


def test_hard_icmp_errors_make_a_check_fail_faster() -> None:
    bench, _ = started()
    seen = 0
    while bench.pair().state is PairState.IN_PROGRESS:
        sent = bench.sent[seen:]
        seen = len(bench.sent)
        for each in sent:
            bench.checker.path_unreachable(each.base, each.remote, bench.now)
        bench.advance(100 * MS)
    assert seen == COMPLAINTS
    assert bench.now < 4 * SECOND
    assert "ICMP" in bench.pair().notes[-1].what
    assert bench.advance(60 * SECOND) == []


def test_one_icmp_error_or_many_for_one_packet_do_not_fail_it() -> None:
    bench, check = started()
    for _ in range(10):
        bench.checker.path_unreachable(check.base, check.remote, bench.now)
    assert bench.pair().state is PairState.IN_PROGRESS
    assert [note.what for note in bench.pair().notes] == ["ICMP: unreachable"]
    bench.answer(check)
    assert bench.pair().valid
    bench.checker.path_unreachable(check.base, check.remote, bench.now)
    assert bench.pair().valid


def test_a_pair_that_icmp_failed_is_revived_by_the_peer() -> None:
    bench, check = started()
    for _ in range(COMPLAINTS):
        bench.checker.path_unreachable(check.base, check.remote, bench.now)
        bench.advance(SECOND)
    assert bench.pair().state is PairState.FAILED
    bench.ask(check.base, check.remote)
    (again,) = bench.advance()
    bench.answer(again)
    assert bench.pair().valid


# TCP. ---------------------------------------------------------------------------------------------


def tcp(local: TcpType, remote: TcpType) -> Bench:
    bench = Bench()
    bench.host(tcptype=local)
    bench.know_peer()
    bench.candidate(tcptype=remote)
    bench.advance()
    return bench


@pytest.mark.parametrize(("local", "remote"), [(ACTIVE, PASSIVE), (SO, SO)])
def test_a_connection_is_opened_before_the_check(local: TcpType, remote: TcpType) -> None:
    bench = tcp(local, remote)
    pair = bench.pair()
    assert bench.opened == [(pair.base, pair.remote_address)]
    assert bench.sent == []
    bench.advance(200 * MS)
    bench.checker.path_opened(pair.base, pair.remote_address, bench.now)
    (check,) = bench.sent
    # "retransmissions [...] are not needed, since TCP takes care" (RFC 6544 section 7.1).
    bench.advance(10 * SECOND)
    assert bench.sent == [check]
    bench.answer(check, mapped=Address("10.0.0.1", 51000), after=20 * MS)
    assert pair.valid
    assert pair.rtt == 10 * SECOND + 20 * MS


def test_a_connection_that_cannot_be_had_fails_the_pair() -> None:
    bench = tcp(ACTIVE, PASSIVE)
    pair = bench.pair()
    bench.checker.path_closed(pair.base, pair.remote_address, Cause.REFUSED, bench.now)
    assert pair.state is PairState.FAILED
    assert "refused" in pair.notes[-1].what
    assert bench.advance(SECOND) == []


def test_a_connection_that_nobody_answers_fails_the_pair_in_ti() -> None:
    bench = tcp(ACTIVE, PASSIVE)
    bench.advance(39_499 * MS)
    assert bench.pair().state is PairState.IN_PROGRESS
    bench.advance(MS)
    assert bench.pair().state is PairState.FAILED
    assert "no connection in time" in bench.pair().notes[-1].what


def test_the_connection_and_the_answer_share_ti() -> None:
    bench = tcp(ACTIVE, PASSIVE)
    pair = bench.pair()
    bench.advance(30 * SECOND)
    bench.checker.path_opened(pair.base, pair.remote_address, bench.now)
    bench.advance(9_500 * MS)
    assert pair.state is PairState.FAILED


def test_a_connection_that_ends_takes_the_valid_pair_with_it() -> None:
    bench = tcp(ACTIVE, PASSIVE)
    pair = bench.pair()
    bench.checker.path_opened(pair.base, pair.remote_address, bench.now)
    bench.answer(bench.sent[0])
    bench.answer(bench.sent[1])
    assert pair.nominated
    bench.checker.path_closed(pair.base, pair.remote_address, Cause.RESET, bench.now)
    assert (pair.valid, pair.nominated, pair.state) == (False, False, PairState.FAILED)
    assert bench.checker.selected(0, 1) is None


def test_checks_do_not_go_to_a_passive_side_that_dials() -> None:
    bench = tcp(PASSIVE, ACTIVE)
    assert list(bench.checker.pairs()) == []
    # An accepted connection with its first check makes the pair.
    base = next(iter(bench.checker._generation("test").bases))
    source = Address("10.0.0.2", 51111)
    bench.checker.path_opened(base, source, bench.now)
    bench.ask(base, source)
    (_, check) = (*bench.sent, *bench.advance(50 * MS))
    assert (check.base, check.remote) == (base, source)
    assert check.message.message_class is Class.REQUEST
    bench.answer(check)
    assert bench.pair().valid
    assert bench.pair().remote.tcptype is ACTIVE


def test_a_request_on_a_connection_that_is_being_opened_shows_that_it_is_open() -> None:
    bench = tcp(SO, SO)
    pair = bench.pair()
    bench.ask(pair.base, pair.remote_address)
    kinds = [sent.message.message_class for sent in bench.sent]
    assert kinds == [Class.SUCCESS, Class.REQUEST]
    bench.checker.path_opened(pair.base, pair.remote_address, bench.now)
    assert len(bench.sent) == 2


def test_a_closed_connection_of_a_passive_side_is_not_dialled() -> None:
    bench = tcp(PASSIVE, ACTIVE)
    base = next(iter(bench.checker._generation("test").bases))
    source = Address("10.0.0.2", 51111)
    bench.ask(base, source)
    bench.checker.path_closed(base, source, Cause.RESET, bench.now)
    bench.advance(SECOND)
    assert bench.pair().state is PairState.FAILED
    assert bench.opened == []


def test_a_check_of_a_pair_that_was_taken_off_is_forgotten() -> None:
    bench = Bench(Config(most_pairs=1))
    base = bench.host()
    bench.know_peer()
    bench.candidate()
    (check,) = bench.advance()
    # The peer proves itself elsewhere, and there is room for one.
    bench.ask(base, Address("203.0.113.1", 40000))
    bench.answer(check)
    assert bench.checker.drops == {DropReason.NO_ROOM: 1, DropReason.UNKNOWN_TRANSACTION: 1}
    sent = [s for s in bench.advance(5 * SECOND) if s.remote == check.remote]
    assert sent == []
    assert len(bench.checker._core.outstanding) == 1


# Nominations and probes on the way. ---------------------------------------------------------------


def test_a_nomination_does_not_wait_for_ta() -> None:
    bench, check = started()
    bench.answer(check, after=MS)
    nomination = bench.sent[-1]
    assert nomination.at == bench.now
    assert nomination.message.get(USE_CANDIDATE) is True


def test_a_nomination_that_fails_takes_the_pair_off_the_valid_list() -> None:
    bench, check = started()
    bench.answer(check)
    bench.advance(40 * SECOND)
    pair = bench.pair()
    assert (pair.valid, pair.state) == (False, PairState.FAILED)


def test_a_nomination_that_is_refused_fails_the_pair() -> None:
    bench, check = started()
    bench.answer(check)
    bench.refuse(bench.sent[-1], 400)
    assert (bench.pair().valid, bench.pair().state) == (False, PairState.FAILED)


def test_a_nomination_is_repeated_while_the_peer_proves_to_be_there() -> None:
    bench, check = started()
    bench.answer(check)
    first = bench.sent[-1]
    bench.advance(30 * SECOND)
    bench.ask(check.base, check.remote)
    bench.advance(10 * SECOND)
    again = bench.sent[-1]
    assert bench.pair().valid
    assert again.message.get(USE_CANDIDATE) is True
    assert again.message.transaction_id != first.message.transaction_id
    bench.answer(again)
    assert bench.pair().nominated


def test_a_nomination_gives_way_to_another_valid_pair_that_answers() -> None:
    bench = Bench(Config(monitor=True))
    bench.host()
    bench.know_peer()
    bench.candidate("10.0.0.2", preference=9)
    bench.candidate("10.0.0.3", preference=8)
    first, second = bench.advance(50 * MS)
    bench.answer(first, after=MS)
    nomination = bench.sent[-1]
    bench.answer(second, after=MS)
    bench.advance(60 * SECOND)
    sends = [s for s in bench.sent if s.data == nomination.data]
    assert len(sends) == GIVE_WAY - 1
    other = [s for s in bench.sent if s.remote == second.remote]
    assert other[1].message.get(USE_CANDIDATE) is True
    assert other[1].at < first.at + 5 * SECOND


def test_an_aggressive_agent_nominates_with_every_check() -> None:
    config = Config(nomination=Nomination.AGGRESSIVE)
    bench, check = started(config=config)
    assert check.message.get(USE_CANDIDATE) is True
    bench.answer(check)
    assert bench.pair().nominated
    assert len(bench.sent) == 1


def test_an_aggressive_agent_is_regular_over_tcp_and_when_it_is_controlled() -> None:
    config = Config(nomination=Nomination.AGGRESSIVE)
    bench, check = started(config=config, controlling=False)
    assert check.message.get(USE_CANDIDATE) is None
    bench = Bench(config)
    bench.host()
    bench.host(tcptype=ACTIVE)
    bench.know_peer()
    bench.candidate()
    bench.candidate(tcptype=PASSIVE)
    # RFC 6544 section 8: "a controlling agent MUST use the regular selection algorithm".
    assert all(s.message.get(USE_CANDIDATE) is None for s in bench.advance(50 * MS))


def test_a_probe_is_sent_once_and_its_answer_is_told() -> None:
    bench = Bench()
    _, pair = bench.connected()
    before = len(bench.sent)
    bench.checker.probe(pair, bench.now)
    (probe,) = bench.sent[before:]
    assert probe.message.get(USE_CANDIDATE) is None
    bench.advance(5 * SECOND)
    assert len(bench.sent) == before + 1
    bench.answer(probe, after=7 * MS)
    assert bench.told(ProbeAnswered) == [ProbeAnswered(pair, 5 * SECOND + 7 * MS)]
    bench.answer(probe)
    assert len(bench.told(ProbeAnswered)) == 1


def test_a_probe_without_an_answer_changes_nothing() -> None:
    bench = Bench()
    _, pair = bench.connected()
    bench.checker.probe(pair, bench.now)
    bench.advance(60 * SECOND)
    assert (pair.valid, pair.nominated, pair.state) == (True, True, PairState.SUCCEEDED)
    assert bench.checker.deadline() is None


def test_a_forged_answer_to_a_probe_is_dropped() -> None:
    bench = Bench()
    _, pair = bench.connected()
    bench.checker.probe(pair, bench.now)
    probe = bench.sent[-1]
    bench.answer(probe, key=b"guess")
    bench.answer(probe, source=Address("203.0.113.66", 1))
    assert bench.told(ProbeAnswered) == []
    assert bench.checker.drops == {
        DropReason.BAD_INTEGRITY: 1,
        DropReason.UNEXPECTED_SOURCE: 1,
    }


def test_a_probe_can_find_a_role_conflict() -> None:
    bench = Bench()
    _, pair = bench.connected()
    bench.checker.probe(pair, bench.now)
    bench.refuse(bench.sent[-1], 487)
    assert not bench.checker.controlling
    assert pair.valid


def test_consent_can_be_revoked() -> None:
    # RFC 7675 section 5.2.
    bench = Bench()
    _, pair = bench.connected()
    bench.checker.probe(pair, bench.now)
    probe = bench.sent[-1]
    bench.refuse(probe, 403, key=b"forged")
    assert bench.told(ConsentRevoked) == []
    bench.refuse(probe, 403)
    assert bench.told(ConsentRevoked) == [ConsentRevoked(pair)]
    assert pair.valid


def test_pairs_of_another_checker_are_refused() -> None:
    bench = Bench()
    _, pair = Bench().connected()
    stranger = type(pair).__mro__[1](pair.local, pair.base, pair.remote, 1)  # a plain Pair
    with pytest.raises(UsageError, match="none of this checker's"):
        bench.checker.probe(stranger, bench.now)


def test_a_probe_of_a_pair_that_is_gone_is_nothing() -> None:
    bench = Bench()
    base, pair = bench.connected()
    bench.checker.base_lost(base, bench.now)
    before = len(bench.sent)
    bench.checker.probe(pair, bench.now)
    assert len(bench.sent) == before
    assert bench.checker.state(0) is ChecklistState.RUNNING
