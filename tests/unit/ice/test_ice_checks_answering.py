"""The peer's checks: proved, answered, learned from; and what strangers send."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ice.candidate import CandidateType
from ice.checks import (
    ChecklistCompleted,
    Nominated,
    PairValid,
    RemoteCandidate,
    RequestReceived,
    RoleChanged,
)
from ice.checks.answering import NOMINATIONS_KEPT
from ice.config import Config, Credentials
from ice.messages import NOMINATION
from ice.pair import PairState
from stun.attributes import PRIORITY, SOFTWARE, UNKNOWN_ATTRIBUTES, XOR_MAPPED_ADDRESS
from stun.codec import decode, encode
from stun.errors import DropReason
from stun.integrity import check_integrity
from stun.message import Message
from stun.registry import Class, Method
from stun.sansio import MILLISECOND, SECOND, Address
from tools.icestub import LOCAL_KEY, REMOTE, Bench

MS = MILLISECOND
PEER = Address("10.0.0.2", 6000)
ELSEWHERE = Address("203.0.113.5", 40000)
BIG, SMALL = (1 << 64) - 1, 0


def ready(*, controlling: bool = False, config: Config | None = None) -> Bench:
    """Have a base and the peer's credentials, but no candidate."""
    bench = Bench(config, controlling=controlling)
    bench.base = bench.host()  # type: ignore[attr-defined]
    bench.know_peer()
    return bench


def code_of(message: Message | None) -> int:
    from ice.messages import error_code

    assert message is not None
    return error_code(message) if message.message_class is Class.ERROR else 0


# Answers. -----------------------------------------------------------------------------------------


def test_a_request_that_proves_itself_is_answered_at_once() -> None:
    bench = ready(config=Config(software="natkit"))
    answer = bench.ask(bench.base, ELSEWHERE)
    assert answer is not None
    assert answer.message_class is Class.SUCCESS
    assert answer.get(XOR_MAPPED_ADDRESS) == ELSEWHERE
    assert answer.get(SOFTWARE) == "natkit"
    # Section 7.2.2: "The responses utilize the same usernames and passwords as the requests".
    assert check_integrity(answer, LOCAL_KEY) is True
    assert bench.sent[0].remote == ELSEWHERE
    assert bench.checker.drops == {}


def test_a_request_that_is_sent_again_is_answered_again() -> None:
    bench = ready()
    data = bench.request()
    for _ in range(3):
        bench.deliver(bench.base, PEER, data)
    assert len(bench.sent) == 3
    assert len(list(bench.checker.pairs())) == 1
    assert len(bench.told(RemoteCandidate)) == 1
    assert len(bench.told(RequestReceived)) == 3


@pytest.mark.parametrize(
    ("values", "code", "reason"),
    [
        ({"key": b"wrong"}, 401, DropReason.BAD_INTEGRITY),
        ({"key": None}, 400, DropReason.MISSING_INTEGRITY),
        ({"username": "else:remo"}, 401, DropReason.UNKNOWN_USERNAME),
        ({"username": "locl"}, 401, DropReason.UNKNOWN_USERNAME),
        ({"username": ""}, 401, DropReason.UNKNOWN_USERNAME),
        ({"username": "LOCL:remo"}, 401, DropReason.UNKNOWN_USERNAME),
    ],
)
def test_strangers_are_refused_without_proof_and_change_nothing(
    values: dict[str, object], code: int, reason: DropReason
) -> None:
    bench = ready()
    answer = bench.ask(bench.base, ELSEWHERE, **values)
    assert code_of(answer) == code
    assert answer is not None
    assert check_integrity(answer, LOCAL_KEY) is None
    assert bench.checker.drops == {reason: 1}
    assert list(bench.checker.pairs()) == []
    assert bench.events == []
    assert bench.advance(SECOND) == []


def test_refusals_are_no_flood() -> None:
    bench = ready(config=Config(ta=50 * MS))
    for _ in range(100):
        bench.ask(bench.base, ELSEWHERE, key=b"wrong")
    assert len(bench.sent) == 1
    assert bench.checker.drops == {DropReason.BAD_INTEGRITY: 100}
    bench.advance(50 * MS)
    bench.ask(bench.base, ELSEWHERE, key=b"wrong")
    assert len(bench.sent) == 2


def test_a_request_without_fingerprint_is_dropped() -> None:
    bench = ready()
    assert bench.ask(bench.base, PEER, fingerprint=False) is None
    data = bench.request()
    bench.deliver(bench.base, PEER, data[:-1] + bytes([data[-1] ^ 1]))
    assert bench.checker.drops == {DropReason.BAD_FINGERPRINT: 2}


def test_what_must_be_understood_and_is_not_is_refused() -> None:
    bench = ready()
    answer = bench.ask(bench.base, PEER, extra=((0x7F01, b"?"), (0x7F02, b"")))
    assert code_of(answer) == 420
    assert answer is not None
    assert answer.get(UNKNOWN_ATTRIBUTES) == (0x7F01, 0x7F02)
    assert check_integrity(answer, LOCAL_KEY) is True
    assert bench.checker.drops == {DropReason.UNKNOWN_COMPREHENSION_REQUIRED: 1}
    assert list(bench.checker.pairs()) == []


def test_a_malformed_value_is_refused() -> None:
    bench = ready()
    answer = bench.ask(bench.base, PEER, priority=None, extra=((PRIORITY.code, b"\1"),))
    assert code_of(answer) == 400
    assert bench.checker.drops == {DropReason.BAD_ATTRIBUTE_VALUE: 1}


def test_a_request_without_priority_is_answered_but_teaches_no_candidate() -> None:
    bench = ready()
    assert code_of(bench.ask(bench.base, PEER, priority=None)) == 0
    assert list(bench.checker.pairs()) == []
    assert bench.checker.drops == {DropReason.BAD_ATTRIBUTE_VALUE: 1}
    bench.candidate()
    bench.ask(bench.base, PEER, priority=None)
    assert len(bench.told(RequestReceived)) == 1


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", DropReason.TOO_SHORT),
        (b"\0\1\0\0", DropReason.TOO_SHORT),
        (b"\x80" * 20, DropReason.NOT_STUN),
        (b"\0\1\0\4" + bytes(16), DropReason.LENGTH_MISMATCH),
        # A message of RFC 3489, before the cookie: section 7.3 forbids to speak it.
        (encode(replace(Message.request(1, bytes(12)), cookie=0)), DropReason.NOT_STUN),
        (encode(Message.request(Method.ALLOCATE, bytes(12))), DropReason.UNKNOWN_METHOD),
        (encode(Message.request(Method.BINDING, bytes(12))), DropReason.BAD_FINGERPRINT),
        (
            encode(Message(Method.BINDING, Class.SUCCESS, bytes(12)), fingerprint=True),
            DropReason.UNKNOWN_TRANSACTION,
        ),
    ],
)
def test_what_is_no_check_is_counted(data: bytes, reason: DropReason) -> None:
    bench = ready()
    bench.deliver(bench.base, PEER, data)
    assert bench.checker.drops == {reason: 1}
    assert bench.sent == []


def test_a_keepalive_is_just_that() -> None:
    bench = ready()
    bench.deliver(
        bench.base, PEER, encode(Message.indication(Method.BINDING, bytes(12)), fingerprint=True)
    )
    assert (bench.sent, bench.events, bench.checker.drops) == ([], [], {})


# Peer-reflexive candidates and triggered checks. --------------------------------------------------


def test_an_unknown_source_is_a_peer_reflexive_candidate_with_a_pair_of_its_own() -> None:
    bench = ready()
    bench.host("10.0.1.1", 5001)
    bench.ask(bench.base, ELSEWHERE, priority=0x6E001234)
    (told,) = bench.told(RemoteCandidate)
    candidate = told.candidate  # type: ignore[union-attr]
    assert candidate.type is CandidateType.PEER_REFLEXIVE
    assert candidate.address == ELSEWHERE
    assert candidate.priority == 0x6E001234
    pair = bench.pair()
    assert len(list(bench.checker.pairs())) == 1
    assert (pair.base, pair.remote) == (bench.base, candidate)
    assert (pair.requests_received, pair.responses_sent) == (1, 1)
    (check,) = bench.advance()
    assert (check.base, check.remote) == (bench.base, ELSEWHERE)


def test_a_base_that_is_not_told_yet_has_no_pairs() -> None:
    bench = ready()
    other = replace(bench.base, id=77)
    assert code_of(bench.ask(other, PEER)) == 0
    assert list(bench.checker.pairs()) == []
    assert bench.checker.drops == {DropReason.WRONG_GENERATION: 1}


def test_a_triggered_check_goes_before_the_others() -> None:
    bench = ready()
    for number in range(4):
        bench.candidate(f"10.0.0.{10 + number}", preference=900 - number)
    bench.advance()
    bench.ask(bench.base, Address("10.0.0.13", 6000))
    (check,) = [s for s in bench.advance(50 * MS) if s.message.message_class is Class.REQUEST]
    assert check.remote.host == "10.0.0.13"


def test_a_check_in_progress_is_cancelled_and_another_one_made_but_its_answer_counts() -> None:
    bench = ready()
    bench.candidate()
    (first,) = bench.advance()
    bench.ask(bench.base, PEER)
    assert bench.pair().state is PairState.WAITING
    (second,) = bench.advance(50 * MS)
    assert second.message.transaction_id != first.message.transaction_id
    # "will not retransmit [...] will not treat the lack of response to be a failure".
    later = bench.advance(2 * SECOND)
    assert {sent.data for sent in later} == {second.data}
    bench.answer(first)
    assert bench.pair().valid
    assert bench.advance(60 * SECOND) == []


def test_a_cancelled_check_fails_nothing() -> None:
    bench = ready()
    bench.candidate()
    bench.advance()
    bench.advance(30 * SECOND)
    bench.ask(bench.base, PEER)
    bench.advance(20 * SECOND)
    assert bench.pair().state is PairState.IN_PROGRESS
    bench.advance(20 * SECOND)
    assert bench.pair().state is PairState.FAILED


def test_a_request_on_a_succeeded_pair_triggers_nothing() -> None:
    bench = Bench(controlling=False)
    base, pair = bench.connected()
    before = len(bench.sent)
    for _ in range(5):
        bench.ask(base, pair.remote_address)
    assert len(bench.sent) == before + 5
    assert bench.advance(10 * SECOND) == []
    assert bench.checker.deadline() is None


def test_the_flood_of_a_peer_is_bounded() -> None:
    bench = ready(config=Config(most_pairs=20, most_remote=30))
    for number in range(2000):
        bench.ask(bench.base, Address(f"203.0.{number >> 8}.{number & 255}", 40000))
    assert len(list(bench.checker.pairs())) <= 20
    assert bench.checker.drops[DropReason.NO_ROOM] == 1980
    assert len(bench.checker._core.outstanding) <= 20
    sent = bench.advance(10 * SECOND)
    assert len([s for s in sent if s.message.message_class is Class.REQUEST]) < 300


# Before the peer's credentials are here. ----------------------------------------------------------


def test_early_checks_are_answered_at_once_and_checked_when_the_credentials_come() -> None:
    bench = Bench(controlling=False)
    base = bench.host()
    assert code_of(bench.ask(base, ELSEWHERE)) == 0
    assert code_of(bench.ask(base, PEER)) == 0
    assert bench.advance(SECOND) == []
    assert bench.checker.deadline() is None
    bench.know_peer()
    checks = bench.advance(50 * MS)
    assert [check.remote for check in checks] == [ELSEWHERE, PEER]


def test_a_nomination_that_comes_early_is_remembered() -> None:
    bench = Bench(controlling=False)
    base = bench.host()
    bench.ask(base, PEER, use_candidate=True)
    bench.know_peer()
    (check,) = bench.advance()
    assert bench.told(Nominated) == []
    bench.answer(check)
    assert bench.told(Nominated) == [Nominated(bench.pair())]


def test_early_checks_of_another_branch_are_forgotten() -> None:
    bench = Bench(controlling=False)
    base = bench.host()
    bench.ask(base, ELSEWHERE, username="locl:fork")
    bench.ask(base, PEER, username="locl:remo")
    bench.know_peer()
    assert [pair.remote_address for pair in bench.checker.pairs()] == [PEER]
    assert bench.checker.drops == {DropReason.UNKNOWN_USERNAME: 1}
    assert [check.remote for check in bench.advance(SECOND // 4)] == [PEER]


def test_another_session_of_the_peer_is_answered_but_teaches_nothing() -> None:
    bench = ready()
    assert code_of(bench.ask(bench.base, ELSEWHERE, username="locl:fork")) == 0
    assert list(bench.checker.pairs()) == []
    assert bench.checker.drops == {DropReason.UNKNOWN_USERNAME: 1}


# Roles. -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("controlling", [True, False])
@pytest.mark.parametrize("theirs", ["smaller", "equal", "larger"])
def test_a_role_conflict_is_settled_by_the_table_of_section_7_3_1_1(
    controlling: bool, theirs: str
) -> None:
    bench = ready(controlling=controlling)
    mine = bench.checker.tie_breaker
    value = {"smaller": SMALL, "equal": mine, "larger": BIG}[theirs]
    role = "controlling" if controlling else "controlled"
    answer = bench.ask(bench.base, PEER, **{role: value})
    keeps = (theirs != "larger") == controlling
    assert code_of(answer) == (487 if keeps else 0)
    assert bench.checker.controlling is (controlling if keeps else not controlling)
    assert bench.told(RoleChanged) == ([] if keeps else [RoleChanged(not controlling)])
    # After 487 nothing else is done; after a switch all that a request brings.
    assert len(list(bench.checker.pairs())) == (0 if keeps else 1)
    assert check_integrity(answer, LOCAL_KEY) is True  # type: ignore[arg-type]


def test_a_request_of_the_other_role_or_of_none_is_no_conflict() -> None:
    for role in (True, False):
        bench = ready(controlling=role)
        assert code_of(bench.ask(bench.base, PEER)) == 0
        assert bench.checker.controlling is role
    bench = ready(controlling=True)
    data = Message.request(Method.BINDING, bytes(12))
    data.attributes = [(6, b"locl:remo"), (PRIORITY.code, b"\1\1\1\1")]
    bench.deliver(bench.base, PEER, encode(data, key=LOCAL_KEY, fingerprint=True))
    assert bench.sent[-1].message.message_class is Class.SUCCESS


def test_a_switch_computes_the_priorities_anew() -> None:
    bench = ready(controlling=True)
    bench.candidate("10.0.0.3", preference=7)
    before = bench.pair().priority
    bench.ask(bench.base, PEER, controlling=BIG)
    after = next(p for p in bench.checker.pairs() if p.remote.host == "10.0.0.3").priority
    # G>D before, G<D after: the last bit of the formula of section 6.1.2.3.
    assert (before & 1, after) == (1, before - 1)


def test_the_request_that_switched_the_role_may_nominate() -> None:
    bench = ready(controlling=True)
    bench.ask(bench.base, PEER, controlling=BIG, use_candidate=True)
    (check,) = bench.advance()
    bench.answer(check)
    assert bench.told(Nominated) == [Nominated(bench.pair())]


# Nominations. -------------------------------------------------------------------------------------


def valid_pairs(*hosts: str) -> Bench:
    """Have valid pairs to these hosts, as the controlled agent of a peer that checked them."""
    bench = ready()
    for place, host in enumerate(hosts):
        bench.candidate(host, preference=9000 - place)
    checks = [
        s for s in bench.advance(50 * MS * len(hosts)) if s.message.message_class is Class.REQUEST
    ]
    for check in checks:
        bench.answer(check)
        bench.ask(check.base, check.remote)
    assert all(pair.valid for pair in bench.checker.pairs())
    return bench


def selected(bench: Bench) -> str | None:
    pair = bench.checker.selected(0, 1)
    return None if pair is None else pair.remote.host


def test_a_nomination_of_a_valid_pair_counts_at_once() -> None:
    bench = valid_pairs("10.0.0.2")
    assert selected(bench) is None
    bench.ask(bench.base, PEER, use_candidate=True)
    assert selected(bench) == "10.0.0.2"
    assert bench.pair().nominated
    assert bench.pair().peer_nominated
    assert len(bench.told(Nominated)) == 1


def test_use_candidate_on_the_selected_pair_again_is_harmless() -> None:
    bench = valid_pairs("10.0.0.2", "10.0.0.3")
    for _ in range(10):
        bench.ask(bench.base, PEER, use_candidate=True)
        bench.advance(2500 * MS)
    assert selected(bench) == "10.0.0.2"
    assert len(bench.told(Nominated)) == 1


def test_the_latest_nomination_of_a_peer_that_checks_first_counts() -> None:
    bench = valid_pairs("10.0.0.2", "10.0.0.3")
    hosts = ["10.0.0.2", "10.0.0.3", "10.0.0.2"]
    for host in hosts:
        bench.ask(bench.base, Address(host, 6000), use_candidate=True)
        assert selected(bench) == host
    assert [e.pair.remote.host for e in bench.told(Nominated)] == hosts  # type: ignore[union-attr]
    assert [pair.nominated for pair in bench.checker.pairs()] == [True, False]


def test_a_nomination_that_is_sent_again_or_replayed_is_not_a_new_one() -> None:
    bench = valid_pairs("10.0.0.2", "10.0.0.3")
    old = bench.request(use_candidate=True)
    bench.deliver(bench.base, PEER, old)
    bench.ask(bench.base, Address("10.0.0.3", 6000), use_candidate=True)
    bench.deliver(bench.base, PEER, old)
    assert selected(bench) == "10.0.0.3"
    # Also not from elsewhere, as far as anybody remembers.
    bench.deliver(bench.base, ELSEWHERE, old)
    (check,) = [s for s in bench.advance(50 * MS) if s.message.message_class is Class.REQUEST]
    bench.answer(check)
    assert selected(bench) == "10.0.0.3"


def test_the_memory_for_nominations_is_bounded() -> None:
    bench = valid_pairs("10.0.0.2")
    for _ in range(NOMINATIONS_KEPT * 3):
        bench.ask(bench.base, PEER, use_candidate=True)
    assert len(bench.checker._answerer._nominations) == NOMINATIONS_KEPT


def test_numbered_nominations_count_in_the_order_of_their_numbers() -> None:
    bench = valid_pairs("10.0.0.2", "10.0.0.3")

    def nominate(host: str, number: int) -> None:
        extra = ((NOMINATION, number.to_bytes(4)),)
        bench.ask(bench.base, Address(host, 6000), use_candidate=True, extra=extra)

    nominate("10.0.0.3", 2)
    assert selected(bench) == "10.0.0.3"
    # It was sent before, and overtaken.
    nominate("10.0.0.2", 1)
    assert selected(bench) == "10.0.0.3"
    nominate("10.0.0.2", 3)
    assert selected(bench) == "10.0.0.2"


def test_of_an_aggressive_peer_the_best_pair_is_used() -> None:
    bench = ready()
    for place, host in enumerate(("10.0.0.2", "10.0.0.3", "10.0.0.4")):
        bench.candidate(host, preference=9000 - place)
    # Each of its checks has USE-CANDIDATE; they arrive from the middle, the best, the worst.
    for host in ("10.0.0.3", "10.0.0.2", "10.0.0.4"):
        bench.ask(bench.base, Address(host, 6000), use_candidate=True)
    checks = [s for s in bench.advance(SECOND // 4) if s.message.message_class is Class.REQUEST]
    for check in checks:
        bench.answer(check)
    assert selected(bench) == "10.0.0.2"
    assert [e.pair.remote.host for e in bench.told(Nominated)] == [  # type: ignore[union-attr]
        "10.0.0.3",
        "10.0.0.2",
    ]


def test_an_aggressive_nomination_is_looked_at_again_when_the_candidate_is_told() -> None:
    bench = ready()
    bench.ask(bench.base, ELSEWHERE, use_candidate=True, priority=0x6EFFFFFF)
    bench.candidate("10.0.0.2", preference=1)
    bench.ask(bench.base, PEER, use_candidate=True)
    for check in [s for s in bench.advance(60 * MS) if s.message.message_class is Class.REQUEST]:
        bench.answer(check)
    best = selected(bench)
    assert best == "10.0.0.2"
    bench = ready()
    bench.candidate("10.0.0.2", kind=CandidateType.SERVER_REFLEXIVE)
    bench.ask(bench.base, ELSEWHERE, use_candidate=True, priority=0x6EFFFFFF)
    bench.ask(bench.base, PEER, use_candidate=True)
    for check in [s for s in bench.advance(60 * MS) if s.message.message_class is Class.REQUEST]:
        bench.answer(check)
    assert selected(bench) == ELSEWHERE.host
    # What seemed to be a good way to the peer turns out to be its relay.
    bench.candidate(*ELSEWHERE, kind=CandidateType.RELAYED)
    bench.drain()
    assert selected(bench) == "10.0.0.2"


def test_a_controlling_agent_takes_no_nominations() -> None:
    bench = ready(controlling=True)
    bench.candidate()
    (check,) = bench.advance()
    bench.ask(bench.base, PEER, use_candidate=True)
    bench.answer(check)
    assert bench.told(Nominated) == []
    assert not bench.pair().peer_nominated


def test_a_nominated_pair_whose_check_fails_is_taken_when_it_works_after_all() -> None:
    bench = ready()
    bench.ask(bench.base, PEER, use_candidate=True)
    bench.advance(60 * SECOND)
    assert bench.pair().state is PairState.FAILED
    assert selected(bench) is None
    # The peer asks for consent on it.
    bench.ask(bench.base, PEER)
    (check,) = bench.advance()
    bench.answer(check)
    assert selected(bench) == "10.0.0.2"


# Lite. --------------------------------------------------------------------------------------------


def test_a_lite_agent_answers_and_takes_nominations_but_sends_no_check() -> None:
    bench = ready(config=Config(lite=True))
    bench.candidate()
    bench.ask(bench.base, PEER)
    assert bench.told(PairValid) == []
    assert bench.checker.deadline() is not None  # the patience
    bench.ask(bench.base, PEER, use_candidate=True)
    pair = bench.pair()
    assert bench.told(PairValid) == [PairValid(pair)]
    assert bench.told(Nominated) == [Nominated(pair)]
    assert bench.told(ChecklistCompleted) == [ChecklistCompleted(0)]
    assert (pair.valid, pair.state) == (True, PairState.SUCCEEDED)
    bench.advance(60 * SECOND)
    assert {sent.message.message_class for sent in bench.sent} == {Class.SUCCESS}


def test_a_lite_agent_follows_a_later_nomination() -> None:
    bench = ready(config=Config(lite=True))
    bench.ask(bench.base, PEER)
    bench.ask(bench.base, ELSEWHERE)
    bench.ask(bench.base, PEER, use_candidate=True)
    bench.ask(bench.base, ELSEWHERE, use_candidate=True)
    assert selected(bench) == ELSEWHERE.host


def test_the_peer_of_a_lite_agent_takes_the_controlling_role() -> None:
    bench = Bench(controlling=False)
    bench.host()
    bench.know_peer(lite=True)
    assert bench.checker.controlling
    assert bench.told(RoleChanged) == [RoleChanged(True)]


def test_requests_of_before_a_restart_are_answered_and_count_for_their_pair() -> None:
    bench = Bench(controlling=False)
    base, pair = bench.connected()
    bench.checker.restart(Credentials("newl", "n" * 24), bench.now)
    bench.events.clear()
    answer = bench.ask(base, pair.remote_address)
    assert code_of(answer) == 0
    assert bench.told(RequestReceived) == [RequestReceived(pair)]
    assert list(bench.checker.pairs()) == [pair]
    assert bench.checker.remote is None
    assert REMOTE.ufrag == "remo"
    assert decode(bench.sent[-1].data).message_class is Class.SUCCESS
