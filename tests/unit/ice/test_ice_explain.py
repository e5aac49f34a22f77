"""explain(): for every pair why it won, lost or failed, and what could be done."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jsonschema
import pytest

from ice.base import Base
from ice.candidate import Candidate, CandidateType, TcpType
from ice.config import Config, Policy, Role, Server
from ice.explain import Explanation, Gathered, Missing, Told, View, explain
from ice.explanation import Fate, Outcome
from ice.pair import Note, Pair, PairState
from stun.errors import DropReason
from stun.sansio import MILLISECOND, SECOND, Address, Instant

START = 500 * SECOND
NOW = START + 10 * SECOND
DOCS = Path(__file__).parents[3] / "docs"
HOST, SRFLX, PRFLX, RELAY = CandidateType


@dataclass
class Seen:
    """An agent as it may be seen."""

    config: Config = field(default_factory=Config)
    role: Role = "controlling"
    generation: int = 0
    started: Instant = START
    servers: Sequence[Server] = ()
    is_gathered: bool = True
    has_credentials: bool = True
    has_all_remote: bool = True
    local: list[Gathered] = field(default_factory=list)
    remote: list[Told] = field(default_factory=list)
    missing: list[Missing] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list)
    selected: dict[tuple[int, int], Pair] = field(default_factory=dict)
    failure: str = ""
    events: list[Note] = field(default_factory=list)
    drops: Mapping[DropReason, int] = field(default_factory=dict)

    def found(self, candidate: Candidate, server: str = "") -> Candidate:
        self.local.append(Gathered(candidate, START + MILLISECOND, 0, server))
        return candidate

    def told(self, candidate: Candidate, *, learned: bool = False) -> Candidate:
        self.remote.append(Told(candidate, START + 2 * MILLISECOND, 0, learned))
        return candidate

    def pair(self, local: Candidate, remote: Candidate, *, priority: int = 0) -> Pair:
        relay = "turn:relay.example" if local.type is RELAY else ""
        base = Base(
            len(self.pairs) + 1, 0, local.component, "tcp" if local.tcptype else "udp",
            local.address, local.tcptype, relay,
        )  # fmt: skip
        pair = Pair(local, base, remote, priority or 1000 - len(self.pairs))
        self.pairs.append(pair)
        return pair

    def use(self, pair: Pair) -> Pair:
        works(pair)
        pair.nominated = True
        pair.note(pair.notes[-1].at, "in use: nominated")
        self.selected[pair.stream, pair.component] = pair
        return pair


def candidate(
    kind: CandidateType = HOST, host: str = "10.0.0.1", port: int = 5000, component: int = 1,
    *, tcptype: TcpType | None = None, related: tuple[str, int] | None = None,
) -> Candidate:  # fmt: skip
    return Candidate(
        "1", component, "tcp" if tcptype else "udp", 100, host, port, kind,
        related[0] if related else None, related[1] if related else None, tcptype,
    )  # fmt: skip


def works(pair: Pair, rtt: int = 23 * MILLISECOND) -> Pair:
    pair.state, pair.valid, pair.rtt = PairState.SUCCEEDED, True, rtt
    pair.checked, pair.answered = START + SECOND, START + SECOND + rtt
    pair.requests_sent = pair.responses_received = 1
    pair.note(pair.answered, "valid: the peer sees 203.0.113.5:40000")
    return pair


def fails(pair: Pair, why: str = "no answer to 7 requests", checks: int = 7) -> Pair:
    pair.state, pair.requests_sent = PairState.FAILED, checks
    pair.checked = START + SECOND if checks else None
    pair.note(START + SECOND + 7900 * MILLISECOND, f"failed: {why}")
    return pair


def only(seen: Seen, now: Instant = NOW) -> tuple[Fate, str]:
    (pair,) = explain(seen, now).pairs
    return pair.fate, pair.why


def simple(tcptype: TcpType | None = None) -> tuple[Seen, Pair]:
    seen = Seen()
    counterpart = tcptype.counterpart if tcptype else None
    local = seen.found(candidate(tcptype=tcptype))
    remote = seen.told(candidate(SRFLX, "192.0.2.2", 6000, tcptype=counterpart))
    return seen, seen.pair(local, remote)


# Pairs --------------------------------------------------------------------------------------------


def test_no_answer() -> None:
    seen, pair = simple()
    fails(pair)
    assert only(seen) == (
        Fate.FAILED,
        "no answer to 7 checks in 7.9 s: a NAT or firewall on the way drops what this side sends",
    )


def test_no_answer_though_the_peer_is_heard() -> None:
    seen, pair = simple()
    fails(pair)
    pair.requests_received = 3
    fate, why = only(seen)
    assert fate is Fate.FAILED
    assert why == (
        "no answer to 7 checks in 7.9 s, though the peer's checks arrive: "
        "what this side sends does not"
    )


def test_no_answer_over_a_connection() -> None:
    seen, pair = simple(TcpType.ACTIVE)
    fails(pair, checks=1)
    assert only(seen)[1] == "no answer to one check in 7.9 s over a connection that was made"


@pytest.mark.parametrize(
    ("cause", "why"),
    [
        ("refused: 487 Role Conflict", "the peer answered 487 Role Conflict"),
        ("unreachable (ICMP)", "unreachable (ICMP)"),
        ("no connection: connection refused (RST)", "no connection: connection refused (RST)"),
    ],
)
def test_a_cause_that_is_known(cause: str, why: str) -> None:
    seen, pair = simple()
    fails(pair, cause)
    assert only(seen) == (Fate.FAILED, why)


def test_answers_from_elsewhere() -> None:
    seen, pair = simple()
    pair.note(START + 2 * SECOND, "answered from 192.0.2.2:7000")
    fails(pair)
    assert only(seen)[1] == (
        "no answer to 7 checks in 7.9 s from where they were sent to: "
        "the answers came from 192.0.2.2:7000"
    )


def test_given_up_before_it_was_tried() -> None:
    seen, pair = simple()
    pair.state = PairState.FAILED
    assert only(seen) == (Fate.FAILED, "it was given up before anything was sent")


def test_under_way() -> None:
    seen, pair = simple()
    pair.state = PairState.IN_PROGRESS
    assert only(seen) == (Fate.CHECKING, "about to be checked")
    pair.requests_sent, pair.checked = 3, START + 8 * SECOND
    assert only(seen) == (Fate.CHECKING, "no answer yet to 3 checks in 2.0 s")
    seen, pair = simple(TcpType.ACTIVE)
    pair.state = PairState.IN_PROGRESS
    assert only(seen) == (Fate.CHECKING, "the connection is being opened")


def test_not_tried() -> None:
    seen, pair = simple()
    assert only(seen) == (Fate.UNTRIED, "not tried yet: one of the same foundation goes first")
    pair.state = PairState.WAITING
    assert only(seen) == (Fate.UNTRIED, "not tried yet: its turn has not come")
    seen.use(seen.pair(pair.local, pair.remote))
    assert explain(seen, NOW).pairs[0].why == "not tried: another pair was chosen first"


def test_why_the_pair_in_use_won() -> None:
    seen, pair = simple()
    seen.use(pair)
    assert only(seen) == (Fate.SELECTED, "nominated; it has the highest priority")
    works(seen.pair(pair.local, pair.remote, priority=1))
    assert explain(seen, NOW).pairs[0].why == (
        "nominated; it has the highest priority of 2 that work"
    )
    fails(seen.pair(pair.local, pair.remote, priority=2000))
    pair.peer_nominated = True
    assert explain(seen, NOW).pairs[1].why == (
        "nominated by the peer; the one of higher priority failed"
    )
    fails(seen.pair(pair.local, pair.remote, priority=2001))
    assert explain(seen, NOW).pairs[2].why == (
        "nominated by the peer; all 2 of higher priority failed"
    )
    works(seen.pair(pair.local, pair.remote, priority=2002))
    assert explain(seen, NOW).pairs[3].why == (
        "nominated by the peer; 3 of higher priority, 2 of them failed"
    )
    pair.note(NOW, "better than the pair in use: it answers in 40 ms")
    assert explain(seen, NOW).pairs[3].why == (
        "nominated by the peer; better than the pair in use: it answers in 40 ms"
    )
    pair.nominated = False
    assert explain(seen, NOW).pairs[3].why.startswith("the first that worked; not nominated yet; ")


def test_why_a_pair_that_worked_lost() -> None:
    seen, pair = simple()
    works(pair)
    assert only(seen) == (Fate.WORKED, "it works; none has been chosen")
    seen.use(seen.pair(candidate(), pair.remote, priority=2000))
    assert explain(seen, NOW).pairs[1].why == (
        "it worked, but the pair in use has the higher priority"
    )
    seen.selected[0, 1].priority = 1
    assert explain(seen, NOW).pairs[0].why == "it worked, but the other had been chosen before"
    pair.rtt = 100 * MILLISECOND
    assert explain(seen, NOW).pairs[0].why == (
        "it worked, but the pair in use is nearer: 23 ms against 100 ms"
    )


def test_why_a_relay_and_tcp_lost() -> None:
    seen, pair = simple()
    seen.use(pair)
    works(seen.pair(candidate(RELAY, "198.51.100.1", 50000), pair.remote))
    works(seen.pair(candidate(tcptype=TcpType.ACTIVE), pair.remote))
    _, relay, tcp = explain(seen, NOW).pairs
    assert relay.why == (
        "it worked, but the pair in use is direct and this one goes through a relay"
    )
    assert tcp.why == "it worked, but the pair in use is UDP and this one is TCP"


def test_a_pair_that_worked_and_does_no_more() -> None:
    seen, pair = simple()
    works(pair)
    pair.note(START + 40 * SECOND, "consent was lost: no valid answer in time")
    assert only(seen) == (
        Fate.LOST,
        "it worked, and then: consent was lost: no valid answer in time",
    )
    pair.answered = START + 50 * SECOND
    assert only(seen)[0] is Fate.WORKED
    seen, pair = simple(TcpType.ACTIVE)
    works(pair)
    pair.state, pair.valid = PairState.FAILED, False
    pair.note(START + 40 * SECOND, "failed: the connection ended: connection reset by the peer")
    assert only(seen) == (
        Fate.LOST,
        "it worked, and then: the connection ended: connection reset by the peer",
    )


# The whole ----------------------------------------------------------------------------------------


def test_connected_directly() -> None:
    seen, pair = simple()
    seen.use(pair)
    found = explain(seen, NOW)
    assert found.outcome is Outcome.CONNECTED
    assert found.verdict == (
        "Connected directly over UDP: host 10.0.0.1:5000 to srflx 192.0.2.2:6000, "
        "23.0 ms there and back."
    )
    assert found.advice == ()
    assert found.seconds == 10.0


@pytest.mark.parametrize(
    ("local", "remote", "way"),
    [
        (RELAY, HOST, "through the relay turn:relay.example"),
        (HOST, RELAY, "through the peer's relay"),
        (RELAY, RELAY, "through both sides' relays (turn:relay.example is this side's)"),
    ],
)
def test_connected_through_a_relay(local: CandidateType, remote: CandidateType, way: str) -> None:
    seen = Seen()
    ours = seen.found(candidate(local, "198.51.100.1", 50000))
    seen.use(seen.pair(ours, seen.told(candidate(remote, "192.0.2.2", 6000))))
    found = explain(seen, NOW)
    assert found.verdict.startswith(f"Connected over UDP {way}: ")
    assert found.advice == ("No pair could be direct: see which candidates each side has.",)
    fails(seen.pair(candidate(), candidate(HOST, "192.0.2.2")))
    assert "None of the direct pairs was answered" in explain(seen, NOW).advice[0]
    seen.config = Config(policy=Policy.RELAY)
    assert explain(seen, NOW).advice == ()


def test_several_components() -> None:
    seen, pair = simple()
    seen.config = Config(components=2)
    seen.use(pair)
    assert explain(seen, NOW).outcome is Outcome.CHECKING
    other = seen.pair(candidate(component=2), candidate(SRFLX, "192.0.2.2", component=2))
    seen.use(other)
    assert explain(seen, NOW).verdict == "Connected directly over UDP, all 2 components."
    other.remote = candidate(RELAY, "192.0.2.9", component=2)
    assert explain(seen, NOW).verdict == (
        "Connected, each component its own way: directly over UDP; "
        "over UDP through the peer's relay."
    )


def test_waiting_says_for_what() -> None:
    seen = Seen(has_credentials=False, has_all_remote=False, is_gathered=False)
    found = explain(seen, NOW)
    assert found.outcome is Outcome.WAITING
    assert found.verdict == (
        "Waiting: the peer's username fragment and password have not been given; there is no "
        "local candidate (none is found yet); the peer has told no candidate."
    )


def test_checking() -> None:
    seen, pair = simple()
    fails(pair)
    works(seen.pair(pair.local, pair.remote))
    found = explain(seen, NOW)
    assert found.outcome is Outcome.CHECKING
    assert found.verdict == "Checking, after 10.0 s: of 2 pairs 1 works, 1 failed."
    assert found.advice == ()


def test_disconnected() -> None:
    seen, pair = simple()
    works(pair)
    pair.packets_sent = 10
    pair.note(START + 40 * SECOND, "consent was lost: no valid answer in time")
    found = explain(seen, NOW)
    assert found.outcome is Outcome.DISCONNECTED
    assert found.verdict == "Disconnected: consent was lost: no valid answer in time."


def failed(seen: Seen, why: str = "no pair is valid") -> Explanation:
    seen.failure = why
    found = explain(seen, NOW)
    assert found.outcome is Outcome.FAILED
    return found


def test_failed_without_a_relay() -> None:
    seen, pair = simple()
    fails(pair)
    found = failed(seen)
    assert found.verdict == "Failed: none of 1 pair was answered, and there is no relay."
    assert found.advice[0] == (
        "Configure a TURN server on either side: a relay connects what NATs part."
    )
    assert any("No STUN server is configured" in advice for advice in found.advice)


def test_two_symmetric_nats_want_a_relay() -> None:
    seen = Seen(servers=(Server("stun:a.example", ()), Server("stun:b.example", ())))
    host = seen.found(candidate())
    for port, server in ((40000, "stun:a.example"), (40007, "stun:b.example")):
        seen.found(candidate(SRFLX, "203.0.113.5", port, related=("10.0.0.1", 5000)), server)
    seen.told(candidate(SRFLX, "192.0.2.2", 6000, related=("10.9.9.9", 6000)))
    learned = seen.told(candidate(PRFLX, "192.0.2.2", 6013), learned=True)
    fails(seen.pair(host, learned))
    found = failed(seen)
    assert found.verdict == (
        "Failed: both sides' NATs give each destination another port, so neither can know where "
        "to send, and there is no relay."
    )
    assert found.advice == (
        "Configure a TURN server on either side: only a relay connects two such NATs.",
    )
    relay = seen.found(candidate(RELAY, "198.51.100.1", 50000))
    seen.use(seen.pair(relay, learned))
    seen.failure = ""
    assert "port prediction" in explain(seen, NOW).advice[0]


def test_one_mapping_each_is_no_sign_of_a_symmetric_nat() -> None:
    seen = Seen(servers=(Server("stun:a.example", ()),))
    host = seen.found(candidate())
    seen.found(candidate(SRFLX, "203.0.113.5", 40000, related=("10.0.0.1", 5000)))
    told = seen.told(candidate(SRFLX, "192.0.2.2", 6000, related=("10.9.9.9", 6000)))
    pair = fails(seen.pair(host, told))
    wanted = "Failed: none of 1 pair was answered, and there is no relay."
    assert failed(seen).verdict == wanted
    # Only this side's is; then only the peer's.
    pair.mapped = candidate(PRFLX, "203.0.113.5", 40003, related=("10.0.0.1", 5000))
    assert failed(seen).verdict == wanted
    pair.mapped = None
    seen.told(candidate(PRFLX, "192.0.2.2", 6013), learned=True)
    assert failed(seen).verdict == wanted
    pair.mapped = candidate(PRFLX, "203.0.113.5", 40003, related=("10.0.0.1", 5000))
    assert "each destination another port" in failed(seen).verdict


def test_hidden_bases_are_no_sign_of_a_symmetric_nat() -> None:
    seen, pair = simple()
    for port in (40000, 40007):
        seen.found(candidate(SRFLX, "203.0.113.5", port, related=("0.0.0.0", 9)))
    seen.told(candidate(PRFLX, "192.0.2.2", 6013), learned=True)
    fails(pair)
    assert "no relay" in failed(seen).verdict
    assert "each destination" not in failed(seen).verdict


def test_different_passwords() -> None:
    seen, pair = simple()
    fails(pair)
    seen.drops = {DropReason.BAD_INTEGRITY: 12, DropReason.TOO_SHORT: 0}
    found = failed(seen)
    assert found.verdict == (
        "Failed: the peer is reached, but 12 messages did not prove the password: the two sides "
        "have different credentials of each other."
    )
    assert "do not prove the password" in found.advice[0]
    assert [(each.why, each.times) for each in found.drops] == [
        ("the message integrity does not match", 12)
    ]


def test_one_way() -> None:
    seen, pair = simple()
    fails(pair)
    pair.requests_received = 5
    assert failed(seen).verdict == (
        "Failed: the peer's checks arrive here, but none of this side's checks is answered."
    )


def test_a_relay_that_was_not_had() -> None:
    seen, pair = simple()
    fails(pair)
    seen.servers = (Server("turn:relay.example", (), turn=True), Server("stun:a.example", ()))
    sought = "relayed by turn:relay.example from 10.0.0.1"
    seen.missing.append(Missing(0, 1, sought, "401 Unauthorized", NOW))
    found = failed(seen)
    assert found.advice[0] == (
        "No relay was had from turn:relay.example: 401 Unauthorized. "
        "The pairs that need it are missing."
    )
    assert any("UDP seems to be blocked here" in advice for advice in found.advice)


def test_not_even_a_relay() -> None:
    seen = Seen()
    relay = seen.found(candidate(RELAY, "198.51.100.1", 50000))
    fails(seen.pair(relay, seen.told(candidate(HOST, "192.0.2.2"))))
    found = failed(seen)
    assert found.verdict == "Failed: none of 1 pair was answered, not even through a relay."
    assert "the relay's policy" in found.advice[0]


def test_nothing_to_pair() -> None:
    seen = Seen()
    seen.found(candidate())
    seen.told(candidate(HOST, "2001:db8::2", tcptype=TcpType.PASSIVE))
    seen.told(candidate(HOST, "abcd.local"))
    assert failed(seen).verdict == (
        "Failed: no candidates that go together: this side has UDP over IPv4, the peer TCP "
        "passive over IPv6, UDP over mDNS."
    )


def test_a_peer_with_private_addresses_only() -> None:
    seen = Seen()
    seen.found(candidate(SRFLX, "203.0.113.5", related=("10.0.0.1", 5000)))
    seen.told(candidate(HOST, "192.168.1.5"))
    fails(seen.pair(candidate(), candidate(HOST, "192.168.1.5")))
    assert any("addresses of its own network only" in advice for advice in failed(seen).advice)


def test_signalling_that_told_nothing() -> None:
    seen = Seen(has_all_remote=False)
    seen.found(candidate(HOST, "203.0.113.5"))
    found = failed(seen)
    assert found.verdict == "Failed: the peer has told no candidate."
    assert any("signalling has told of none" in advice for advice in found.advice)
    seen.has_all_remote = True
    assert failed(seen).verdict.endswith("and has said that it has none.")


def test_the_end_of_candidates_is_asked_for() -> None:
    seen, pair = simple()
    fails(pair)
    seen.has_all_remote = False
    assert any("the end of them" in advice for advice in failed(seen).advice)


def test_a_failure_with_a_pair_that_worked_is_told_in_the_agents_words() -> None:
    seen, pair = simple()
    works(pair)
    assert failed(seen, "component 2 has no pair").verdict == "Failed: component 2 has no pair."


# Text and JSON ------------------------------------------------------------------------------------


def rich() -> Seen:
    """An agent with something of everything."""
    seen, pair = simple()
    seen.generation = 1
    seen.use(pair)
    relay = seen.found(candidate(RELAY, "198.51.100.1", 50000), "turn:relay.example")
    seen.found(candidate(SRFLX, "203.0.113.5", 40000, related=("10.0.0.1", 5000)), "stun:a.example")
    seen.found(candidate(HOST, "2001:db8::1", 9, tcptype=TcpType.ACTIVE))
    seen.told(candidate(HOST, "1b2c.local", 6001))
    learned = seen.told(candidate(PRFLX, "192.0.2.2", 6013), learned=True)
    works(seen.pair(relay, learned))
    fails(seen.pair(candidate(), learned))
    seen.pair(candidate(), learned)
    seen.missing.append(Missing(0, 1, "srflx", "stun:dead.example did not answer", NOW))
    seen.events = [Note(START, "gathering began"), Note(START + SECOND, "connected")]
    seen.drops = {DropReason.BAD_FINGERPRINT: 3}
    return seen


def test_text() -> None:
    shown = explain(rich(), NOW).text()
    assert shown == str(explain(rich(), NOW))
    assert shown.splitlines() == [
        "Connected directly over UDP: host 10.0.0.1:5000 to srflx 192.0.2.2:6000, 23.0 ms there and"
        " back.",
        "",
        "Local candidates (controlling, restarted)",
        "  0/1  host   udp         10.0.0.1:5000       0.001 s",
        "  0/1  relay  udp         198.51.100.1:50000  0.001 s  from turn:relay.example",
        "  0/1  srflx  udp         203.0.113.5:40000   0.001 s  from stun:a.example",
        "  0/1  host   tcp active  [2001:db8::1]:9     0.001 s",
        "",
        "Not found",
        "  srflx  stun:dead.example did not answer  10.000 s",
        "",
        "Remote candidates",
        "  0/1  srflx  udp  192.0.2.2:6000   0.002 s",
        "  0/1  host   udp  1b2c.local:6001  0.002 s",
        "  0/1  prflx  udp  192.0.2.2:6013   0.002 s  learned from a check",
        "",
        "Pairs, the highest priority first",
        "                 from                      to                        rtt  sent  answered"
        "  why",
        "  0/1  selected  host 10.0.0.1:5000        srflx 192.0.2.2:6000  23.0 ms     1         1"
        "  nominated; it has the highest priority of 2 that work",
        "  0/1  worked    relay 198.51.100.1:50000  prflx 192.0.2.2:6013  23.0 ms     1         1"
        "  it worked, but the pair in use is direct and this one goes through a relay",
        "  0/1  failed    host 10.0.0.1:5000        prflx 192.0.2.2:6013              7         0"
        "  no answer to 7 checks in 7.9 s: a NAT or firewall on the way drops what this side sends",
        "  0/1  untried   host 10.0.0.1:5000        prflx 192.0.2.2:6013              0         0"
        "  not tried: another pair was chosen first",
        "",
        "What happened",
        "  0.000 s  gathering began",
        "  1.000 s  connected",
        "",
        "Dropped",
        "  3  FINGERPRINT does not match",
    ]


def test_text_with_the_history_of_each_pair() -> None:
    lines = explain(rich(), NOW).text(notes=True).splitlines()
    at = next(n for n, line in enumerate(lines) if "selected" in line)
    assert lines[at + 1 : at + 3] == [
        "            1.023 s  valid: the peer sees 203.0.113.5:40000",
        "            1.023 s  in use: nominated",
    ]


def test_an_empty_agent_has_a_text_as_well() -> None:
    assert "  none" in explain(Seen(), NOW).text()


def test_what_a_peer_said_does_not_steer_the_terminal() -> None:
    seen = Seen()
    seen.found(candidate())
    seen.told(candidate(HOST, "\x1b[2Jevil\n\u202e.local"))
    seen.events.append(Note(NOW, "a\x07b\nc"))
    shown = explain(seen, NOW).text(notes=True)
    assert all(c.isprintable() or c == "\n" for c in shown)
    assert "\\x1b[2Jevil" in shown
    assert "a\\x07b c" in shown


EVERYTHING = [Seen(), rich(), simple()[0]]


@pytest.mark.parametrize("seen", EVERYTHING)
def test_json_is_as_its_schema_says(seen: Seen) -> None:
    schema = json.loads((DOCS / "ice-explanation.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    document = json.loads(json.dumps(explain(seen, NOW).json(), allow_nan=False))
    jsonschema.validate(document, schema)
    assert document["schema"] == 1
    # Each member is documented, and nothing is that is not there.
    closed = json.loads(json.dumps(schema).replace('"type": "object"', '"type": "object", '
                                                   '"additionalProperties": false'))  # fmt: skip
    jsonschema.validate(document, closed)


def test_json_has_the_values() -> None:
    found = explain(rich(), NOW)
    document = found.json()
    assert document["outcome"] == "connected"
    assert document["verdict"] == found.verdict
    assert [pair["fate"] for pair in document["pairs"]] == [
        "selected",
        "worked",
        "failed",
        "untried",
    ]
    assert document["pairs"][0]["rtt"] == 0.023
    assert document["pairs"][3]["rtt"] is None
    assert document["local"][3]["tcptype"] == "active"
    assert document["events"][1] == {"at": 1.0, "what": "connected"}


def test_the_view_is_a_protocol_that_plain_objects_fit() -> None:
    view: View = Seen()
    assert explain(view, NOW).role == "controlling"


def test_looking_changes_nothing() -> None:
    seen = rich()
    before = repr(seen), [(repr(p), list(p.notes)) for p in seen.pairs]
    explain(seen, NOW).text()
    assert before == (repr(seen), [(repr(p), list(p.notes)) for p in seen.pairs])
    assert Address("10.0.0.1", 5000) in [p.base.address for p in seen.pairs]
