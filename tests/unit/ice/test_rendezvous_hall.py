"""The hall: who waits, who meets, what is handed over, and how each of them ends."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from ice.rendezvous.access import Minter, Servers, Visitor, client_key, user_of
from ice.rendezvous.hall import Hall
from ice.rendezvous.letters import Farewell, Knock, Nudge, Pass
from ice.rendezvous.names import Meets, Member, Names, Refusal, Waits
from ice.rendezvous.protocol import (
    MAX_DATA,
    Error,
    ErrorCode,
    Gone,
    GoneReason,
    Join,
    Joined,
    Leave,
    Message,
    Peer,
    Time,
    TimeAnswer,
    Welcome,
)
from ice.rendezvous.terms import Claim, End, Met, Ping, Post, Refused, Release, Send, Terms, Went
from stun.sansio import SECOND, Address

LOCAL = Address("198.51.100.1", 8080)
EASY = Terms(connects=0, joins=0, messages=0, octets=0)


class Stage:
    """A hall with a book of its own and a clock; halls of one ``post`` write to each other."""

    def __init__(
        self,
        rng: random.Random,
        terms: Terms = EASY,
        *,
        names: Names | None = None,
        post: dict[str, Stage] | None = None,
        **options: Any,
    ) -> None:
        self.now = SECOND
        self.hall = Hall(terms, entropy=rng.randbytes, **options)
        self.hall.set_clock(1_800_000_000.0, self.now)
        self.names = Names(entropy=rng.randbytes) if names is None else names
        self.post = {} if post is None else post
        self.post[self.hall.name] = self
        self.said: dict[int, list[Any]] = {}
        self.ended: dict[int, End] = {}
        self.pinged: list[int] = []
        self.told: list[Any] = []
        self.deaf = False

    def run(self) -> None:
        """Do what the hall asks for."""
        while (output := self.hall.poll()) is not None:
            match output:
                case Send():
                    assert output.client not in self.ended
                    self.said[output.client].append(output.message)
                case Ping():
                    self.pinged.append(output.client)
                case End():
                    self.ended[output.client] = output
                case Claim():
                    member = Member(self.hall.name, output.client)
                    outcome = self.names.claim(output.name, member, self.now)
                    self.hall.claimed(output.client, outcome, self.now)
                case Release():
                    member = Member(self.hall.name, output.client)
                    self.names.release(output.name, member, self.now)
                case Post():
                    other = self.post.get(output.letter.to.hall)
                    if other is None or other.deaf:
                        self.hall.undelivered(output.letter, self.now)
                    else:
                        other.hall.take(output.letter, self.now)
                        other.run()
                case _:
                    self.told.append(output)

    def client(self, host: str = "192.0.2.7") -> int:
        number = self.hall.opened(Visitor(Address(host, 40000), LOCAL), self.now)
        self.said[number] = []
        self.run()
        return number

    def say(self, client: int, message: Any) -> None:
        text = message if isinstance(message, str | bytes) else message.encode()
        self.hall.received(client, text, self.now)
        self.run()

    def hears(self, client: int) -> list[Any]:
        heard, self.said[client] = self.said[client], []
        return heard

    def sleep(self, seconds: float) -> None:
        """Let time pass, deadline by deadline."""
        until = self.now + int(seconds * SECOND)
        while (at := self.hall.deadline()) is not None and at <= until:
            self.now = max(at, self.now)
            self.hall.on_deadline(self.now)
            self.run()
        self.now = until

    def joined(self, name: str | None, hello: bytes = b"hello", **where: Any) -> int:
        client = self.client(**where)
        self.say(client, Join(name, hello))
        return client

    def pair(self, name: str = "a") -> tuple[int, int]:
        first, second = self.joined(name, b"first"), self.joined(name, b"second")
        self.hears(first), self.hears(second)
        return first, second


@pytest.fixture
def stage(rng: random.Random) -> Stage:
    return Stage(rng)


def errors(said: list[Any]) -> list[str]:
    return [one.code for one in said if isinstance(one, Error)]


# Meeting. -----------------------------------------------------------------------------------------


def test_two_meet_by_a_name(stage: Stage) -> None:
    first = stage.joined("a", b"first")
    welcome, joined = stage.hears(first)
    assert isinstance(welcome, Welcome)
    assert joined == Joined("a", 3600.0)
    second = stage.joined("a", b"second")
    assert stage.hears(first) == [Peer(b"second")]
    assert stage.hears(second)[1:] == [Joined("a", 3600.0), Peer(b"first")]
    for number in range(3):
        stage.say(first, Message(b"to second %d" % number))
        stage.say(second, Message(b"to first %d" % number))
    assert stage.hears(first) == [Message(b"to first %d" % number) for number in range(3)]
    assert stage.hears(second) == [Message(b"to second %d" % number) for number in range(3)]
    assert stage.hall.states() == {"connected": 2, "waiting": 0, "paired": 2}


def test_two_meet_by_a_one_time_name_and_a_third_hears_nothing_of_it(stage: Stage) -> None:
    first = stage.joined(None)
    name = stage.hears(first)[1].name
    second, third, stranger = stage.joined(name), stage.joined(name), stage.joined("31415926535")
    assert isinstance(stage.hears(second)[-1], Peer)
    refused, unknown = stage.hears(third)[1:], stage.hears(stranger)[1:]
    assert errors(refused) == ["unknown-name"]
    assert refused == unknown, "used and never made must not be told apart"
    assert stage.ended[third] == replace(stage.ended[stranger], client=third)


def test_a_third_is_refused(stage: Stage) -> None:
    first, second = stage.pair()
    third = stage.joined("a")
    assert errors(stage.hears(third)) == ["busy"]
    assert stage.ended[third].code == 1008
    assert not stage.hears(first)
    assert not stage.hears(second)
    assert sorted(stage.pinged) == [first, second], "they may be ghosts of the one who knocks"


def test_a_ghost_gives_way_in_seconds(stage: Stage) -> None:
    first, second = stage.pair()
    assert errors(stage.hears(stage.joined("a"))) == ["busy"]
    stage.sleep(5)
    stage.hall.heard(second, stage.now)  # the other one answers; the ghost does not
    stage.sleep(6)
    assert first in stage.ended
    assert stage.hears(second) == [Gone("lost")]
    again = stage.joined("a")
    assert stage.hears(again)[-1] == Joined("a", 3600.0)


def test_the_waiting_ones_hello_is_not_kept(stage: Stage) -> None:
    stage.pair()
    assert all(client.hello == b"" for client in stage.hall._clients.values())


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        (lambda stage, client: stage.say(client, Leave()), "left"),
        (lambda stage, client: stage.hall.closed(client, stage.now, cleanly=True), "left"),
        (lambda stage, client: stage.hall.closed(client, stage.now, cleanly=False), "lost"),
        (lambda stage, client: stage.say(client, "nonsense"), "expelled"),
    ],
)
@pytest.mark.parametrize("which", [0, 1])
def test_the_end_of_one_is_told_to_the_other(
    stage: Stage, end: Any, reason: str, which: int
) -> None:
    pair = stage.pair()
    leaver, other = pair[which], pair[1 - which]
    stage.say(leaver, Message(b"last words"))
    end(stage, leaver)
    stage.run()
    assert stage.hears(other) == [Message(b"last words"), Gone(reason)]
    assert stage.ended[other].code == 1000
    assert len(stage.hall) == 0
    assert isinstance(stage.hears(stage.joined("a"))[-1], Joined), "the name is free again"


def test_one_who_waits_and_leaves_is_not_met(stage: Stage) -> None:
    first = stage.joined("a")
    stage.say(first, Leave())
    second = stage.joined("a")
    assert stage.hears(second)[-1] == Joined("a", 3600.0)


# Rules. -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ("", "malformed"),
        ("{}", "malformed"),
        (Message(b"x"), "malformed"),
        ('{"type":"join","v":7}', "version"),
        (" " * 100_000, "too-large"),
    ],
)
def test_who_breaks_a_rule_is_told_and_ends(stage: Stage, said: Any, code: str) -> None:
    client = stage.client()
    stage.say(client, said)
    assert errors(stage.hears(client)) == [code]
    assert stage.ended[client].reason == code
    stage.say(client, Time(1.0))
    assert not stage.hears(client)
    assert stage.hall.counts.dropped["from a client that has been closed"] == 1
    assert stage.hall.counts.refused == {code: 1}


def test_a_client_joins_once(stage: Stage) -> None:
    client = stage.joined("a")
    stage.say(client, Join("b", b""))
    assert errors(stage.hears(client)) == ["malformed"]


def test_lower_limits_hold(rng: random.Random) -> None:
    stage = Stage(rng, replace(EASY, hello=8, message=8))
    assert errors(stage.hears(stage.joined("a", bytes(9)))) == ["too-large"]
    first, second = stage.joined("a", bytes(8)), stage.joined("a", bytes(8))
    stage.say(first, Message(bytes(8)))
    assert stage.hears(second)[-1] == Message(bytes(8))
    stage.say(first, Message(bytes(9)))
    assert errors(stage.hears(first)) == ["too-large"]
    assert stage.ended[first].code == 1009


def test_the_time_is_told_at_any_time(stage: Stage) -> None:
    client = stage.client()
    stage.sleep(2.5)
    stage.say(client, Time(41.5))
    assert stage.hears(client)[1:] == [TimeAnswer(41.5, 1_800_000_002.5)]


def test_rates(rng: random.Random) -> None:
    stage = Stage(rng, replace(EASY, joins=1, joins_burst=3))
    for _ in range(3):
        assert not errors(stage.hears(stage.joined(None)))
    assert errors(stage.hears(stage.joined(None))) == ["too-many"]
    assert not errors(stage.hears(stage.joined(None, host="192.0.2.8"))), "another's budget"
    stage.sleep(1)
    assert not errors(stage.hears(stage.joined(None)))


def test_guesses_are_dear(rng: random.Random) -> None:
    stage = Stage(rng, replace(EASY, joins=1, joins_burst=20, wrong_name_cost=5))
    answers = [errors(stage.hears(stage.joined(str(number)))) for number in range(10, 16)]
    assert answers == [["unknown-name"]] * 4 + [["too-many"]] * 2
    assert not errors(stage.hears(stage.joined(None, host="192.0.2.8")))


def test_connections_are_limited_in_rate_and_in_number(rng: random.Random) -> None:
    stage = Stage(rng, replace(EASY, connects=1, connects_burst=2))
    assert [errors(stage.hears(stage.client())) for _ in range(3)] == [[], [], ["too-many"]]
    stage = Stage(rng, replace(EASY, connections_per_client=2))
    clients = [stage.client("2001:db8::1"), stage.client("2001:db8::2")]
    refused = stage.client("2001:db8::3")
    assert errors(stage.hears(refused)) == ["too-many"]
    assert stage.ended[refused].code == 1013
    stage.say(clients[0], Leave())
    assert not errors(stage.hears(stage.client("2001:db8::4")))
    assert not errors(stage.hears(stage.client("2001:db8:0:1::1"))), "another /64"
    stage = Stage(rng, replace(EASY, connections=2))
    hosts = [f"192.0.2.{number}" for number in range(3)]
    assert [errors(stage.hears(stage.client(host))) for host in hosts] == [[], [], ["too-many"]]


def test_messages_are_limited_in_rate_and_size(rng: random.Random) -> None:
    stage = Stage(rng, replace(EASY, messages=1, messages_burst=5))
    first, second = stage.pair()  # two messages
    for _ in range(3):
        stage.say(first, Message(b"x"))
    stage.say(first, Message(b"one too many"))
    assert stage.hears(second) == [Message(b"x")] * 3 + [Gone("expelled")]
    stage = Stage(rng, replace(EASY, octets=1000, octets_burst=200_000))
    first, second = stage.pair()
    for _ in range(3):
        stage.say(first, Message(bytes(MAX_DATA)))
    assert errors(stage.hears(first)) == ["too-many"]
    assert len(stage.hears(second)) == 3


# Time. --------------------------------------------------------------------------------------------


def test_who_does_not_join_is_let_go(rng: random.Random) -> None:
    stage = Stage(rng, replace(EASY, quiet=10**18))
    client = stage.client()
    stage.sleep(59.9)
    assert client not in stage.ended
    stage.sleep(0.2)
    assert errors(stage.hears(client)) == ["idle"]


def test_waiting_ends(rng: random.Random) -> None:
    stage = Stage(rng, replace(EASY, wait=100 * SECOND, quiet=10**18))
    client = stage.joined(None)
    joined = stage.hears(client)[1]
    assert joined.seconds == 100
    stage.sleep(101)
    assert errors(stage.hears(client)) == ["expired"]
    assert errors(stage.hears(stage.joined(joined.name))) == ["unknown-name"]


def test_two_who_have_met_may_take_their_time(rng: random.Random) -> None:
    stage = Stage(rng, replace(EASY, wait=100 * SECOND, quiet_paired=10**18))
    first, second = stage.pair()
    stage.sleep(10_000)
    stage.say(first, Message(b"still here"))
    assert stage.hears(second) == [Message(b"still here")]


def test_who_does_not_answer_a_ping_is_dropped(stage: Stage) -> None:
    first, second = stage.pair()
    stage.sleep(9.9)
    assert not stage.pinged
    stage.sleep(0.2)
    assert sorted(stage.pinged) == [first, second]
    stage.hall.heard(second, stage.now)
    stage.sleep(10)
    assert first in stage.ended
    assert stage.hall.counts.went == {"no answer": 1, "peer gone": 1}
    assert stage.hears(second) == [Gone("lost")]


def test_who_answers_pings_stays(stage: Stage) -> None:
    client = stage.joined("a")
    for _ in range(100):
        stage.sleep(30)
        assert stage.pinged == [client]
        stage.pinged.clear()
        stage.hall.heard(client, stage.now)
    assert client not in stage.ended
    assert len(stage.hall._heap) <= 4


def test_who_speaks_is_not_pinged(stage: Stage) -> None:
    first, second = stage.pair()
    for _ in range(100):
        stage.sleep(5)
        stage.say(first, Message(b"x"))
        stage.say(second, Message(b"y"))
    assert not stage.pinged
    assert len(stage.hall._heap) <= 6, "a timer is not armed anew with each message"


# Ends of the hall. --------------------------------------------------------------------------------


def test_shutting_down(stage: Stage) -> None:
    first, second = stage.pair()
    third = stage.joined(None)
    stage.hears(third)
    stage.hall.shut_down(stage.now)
    stage.run()
    assert errors(stage.hears(first)) == ["shutting-down"]
    assert errors(stage.hears(second)) == ["shutting-down"]
    assert errors(stage.hears(third)) == ["shutting-down"]
    assert errors(stage.hears(stage.client())) == ["shutting-down"]
    assert len(stage.hall) == 0
    assert len(stage.names) == 0


# What is told. ------------------------------------------------------------------------------------


def test_nothing_told_has_a_name_a_hello_or_a_message(stage: Stage) -> None:
    first, second = stage.joined("my.name", b"my hello"), stage.joined("my.name", b"its hello")
    stage.say(first, Message(b"my words"))
    stage.joined("my.name")
    stage.say(second, '{"type":"my words"}')
    told = repr([one for one in stage.told if not isinstance(one, Refused)])
    assert {type(one) for one in stage.told} >= {Met, Went, Refused}
    for secret in ("my.name", "my hello", "my words", "its hello"):
        assert secret not in told
    assert stage.hall.counts.joins == {"waiting": 1, "met": 1, "busy": 1}
    assert (stage.hall.counts.messages, stage.hall.counts.octets) == (1, 8)


# Servers. -----------------------------------------------------------------------------------------


def test_credentials_are_of_the_clients_address(rng: random.Random) -> None:
    minter = Minter("north", ("turn:192.0.2.1",), ("stun:192.0.2.1",), 600)
    stage = Stage(rng, servers=minter, software="natkit/1")
    (welcome,) = stage.hears(stage.client())
    assert welcome.observed == Address("192.0.2.7", 40000)
    assert welcome.time == 1_800_000_000.0
    assert welcome.turn.username == "1800000600:192.0.2.7"
    assert welcome.turn.ttl == 600
    assert welcome.stun == ("stun:192.0.2.1",)
    (other,) = stage.hears(stage.client("2001:db8:0:7::9"))
    assert other.turn.username == "1800000600:2001-0db8-0000-0007"
    assert "north" not in repr(minter)


def test_without_a_secret_there_is_no_turn() -> None:
    visitor = Visitor(Address("192.0.2.7", 1), LOCAL)
    assert Minter(stun=("stun:a",))(visitor, 0) == Servers(None, ("stun:a",))
    assert Minter("s")(visitor, 0) == Servers()


@pytest.mark.parametrize(
    ("host", "key", "user"),
    [
        ("192.0.2.7", b"\xc0\x00\x02\x07", "192.0.2.7"),
        ("::ffff:192.0.2.7", b"\xc0\x00\x02\x07", "192.0.2.7"),
        ("fe80::1%eth0", b"\xfe\x80" + bytes(6), "fe80-0000-0000-0000"),
        ("unix", bytes(4), "0.0.0.0"),
    ],
)
def test_what_a_client_is_counted_by(host: str, key: bytes, user: str) -> None:
    assert client_key(host) == key
    assert user_of(host) == user


# Several halls. -----------------------------------------------------------------------------------


@pytest.fixture
def halls(rng: random.Random) -> tuple[Stage, Stage]:
    names, post = Names(entropy=rng.randbytes), dict[str, Stage]()
    return Stage(rng, names=names, post=post), Stage(rng, names=names, post=post)


def across(here: Stage, there: Stage) -> tuple[int, int]:
    first, second = here.joined("a", b"first"), there.joined("a", b"second")
    assert here.hears(first)[-1] == Peer(b"second")
    assert there.hears(second)[-1] == Peer(b"first")
    return first, second


def test_two_meet_across_halls(halls: tuple[Stage, Stage]) -> None:
    here, there = halls
    first, second = across(here, there)
    for number in range(3):
        here.say(first, Message(b"%d" % number))
        there.say(second, Message(b"%d" % number))
    assert here.hears(first) == there.hears(second) == [Message(b"%d" % n) for n in range(3)]
    assert here.hall.peer_halls() == {there.hall.name}
    assert here.hall.peer_of(first) is None
    here.say(first, Leave())
    assert there.hears(second) == [Gone("left")]
    assert len(here.names) == 0


def test_a_hall_that_is_gone_is_told_to_the_peers(halls: tuple[Stage, Stage]) -> None:
    here, there = halls
    first, _ = across(here, there)
    waits = here.joined("b")
    here.hears(waits)
    here.hall.hall_lost(there.hall.name, here.now)
    here.run()
    assert here.hears(first) == [Gone("lost")]
    assert not here.hears(waits)


def test_a_letter_that_is_not_delivered_ends_the_pair(halls: tuple[Stage, Stage]) -> None:
    here, there = halls
    first, second = across(here, there)
    there.deaf = True
    here.say(first, Message(b"lost"))
    assert here.hears(first) == [Gone("lost")]
    there.deaf = False
    there.say(second, Message(b"to nobody"))
    assert there.hears(second) == [Gone("lost")], "whoever writes to the gone is told"


def test_a_letter_that_is_lost_on_the_way_ends_the_pair(halls: tuple[Stage, Stage]) -> None:
    here, there = halls
    first, second = across(here, there)
    lost = Pass(Member(there.hall.name, second), Member(here.hall.name, first), 1, b"second one")
    there.hall.take(lost, there.now)
    there.run()
    assert there.hears(second) == [Gone("lost")]
    assert here.hears(first) == [Gone("lost")]
    assert there.hall.counts.dropped == {"a letter before it was lost": 1}


def test_a_knock_that_nobody_answers(halls: tuple[Stage, Stage]) -> None:
    here, there = halls
    here.joined("a")
    here.hall.take = lambda *_: None  # type: ignore[method-assign]  # it hangs
    second = there.joined("a")
    assert there.hears(second)[-1] == Joined("a", 3600.0)
    there.sleep(5.1)
    assert there.hears(second) == [Gone("lost")]


def test_a_knock_at_one_who_has_just_left(halls: tuple[Stage, Stage]) -> None:
    here, there = halls
    second = there.joined("b")
    there.hears(second)
    me = Member(there.hall.name, second)
    there.hall._clients[second].peer = Member(here.hall.name, 99)
    here.hall.take(Knock(Member(here.hall.name, 99), me, b""), here.now)
    here.run()
    assert there.hears(second) == [Gone("left")]


def asking(stage: Stage) -> int:
    """Return a client whose claim is on its way."""
    client = stage.client()
    stage.hears(client)
    stage.hall.received(client, Join("a", b"asking").encode(), stage.now)
    assert isinstance(stage.hall.poll(), Claim)
    return client


def test_a_knock_may_come_before_the_book_has_answered(halls: tuple[Stage, Stage]) -> None:
    here, there = halls
    first = asking(here)
    here.names.claim("a", Member(here.hall.name, first), here.now)
    second = there.joined("a", b"second")
    here.hall.claimed(first, Waits("a"), here.now)
    here.run()
    assert here.hears(first) == [Joined("a", 3600.0), Peer(b"second")]
    assert there.hears(second)[1:] == [Joined("a", 3600.0), Peer(b"asking")]


def test_a_knock_at_one_who_leaves_before_the_book_has_answered(
    halls: tuple[Stage, Stage],
) -> None:
    here, there = halls
    first = asking(here)
    here.names.claim("a", Member(here.hall.name, first), here.now)
    second = there.joined("a")
    here.hall.closed(first, here.now, cleanly=True)
    here.run()
    assert there.hears(second)[1:] == [Joined("a", 3600.0), Gone("left")]
    here.hall.claimed(first, Waits("a"), here.now)
    here.run()
    assert len(here.names) == 0


def test_a_knock_at_one_who_meets_somebody_else(halls: tuple[Stage, Stage]) -> None:
    here, there = halls
    first = asking(here)
    here.names.claim("a", Member(here.hall.name, first), here.now)
    second = there.joined("a")
    other = here.joined("b")
    here.hall.claimed(first, Meets("b", Member(here.hall.name, other)), here.now)
    here.run()
    assert there.hears(second)[1:] == [Joined("a", 3600.0), Gone("left")]
    assert here.hears(other)[-1] == Peer(b"asking")


def test_letters_of_strangers_change_nothing(halls: tuple[Stage, Stage]) -> None:
    here, there = halls
    first, _ = across(here, there)
    to, stranger = Member(here.hall.name, first), Member(there.hall.name, 77)
    here.hall.take(Pass(to, stranger, 0, b"forged"), here.now)
    here.hall.take(Farewell(to, stranger, GoneReason.LEFT), here.now)
    here.hall.take(Nudge(Member("elsewhere", first), stranger), here.now)
    here.run()
    assert not here.hears(first)
    assert not here.pinged
    assert here.hall.counts.dropped["a letter for somebody who is gone"] == 2


def test_a_busy_name_has_its_holders_pinged_in_both_halls(halls: tuple[Stage, Stage]) -> None:
    here, there = halls
    first, second = across(here, there)
    assert errors(here.hears(here.joined("a"))) == ["busy"]
    assert (here.pinged, there.pinged) == ([first], [second])


def test_a_claim_whose_client_has_gone_is_given_back(stage: Stage) -> None:
    client = stage.client()
    stage.hall.received(client, Join("a", b"").encode(), stage.now)
    stage.hall.closed(client, stage.now, cleanly=False)
    stage.run()
    assert len(stage.names) == 0


@pytest.mark.parametrize("code", [ErrorCode.BUSY, ErrorCode.UNKNOWN_NAME, ErrorCode.EXPIRED])
def test_one_who_waits_may_lose_the_name(stage: Stage, code: ErrorCode) -> None:
    client = stage.joined("a")
    stage.hears(client)
    stage.hall.claimed(client, Waits("a"), stage.now)
    stage.run()
    assert not stage.hears(client), "it has been told already"
    stage.hall.claimed(client, Refusal(code), stage.now)
    stage.run()
    assert errors(stage.hears(client)) == ["expired"]


def test_a_book_that_does_not_answer(rng: random.Random) -> None:
    stage = Stage(rng)
    client = stage.client()
    stage.hall.received(client, Join("a", b"").encode(), stage.now)
    while stage.hall.poll() is not None:
        pass  # the claim gets lost
    stage.sleep(30)
    stage.hall.heard(client, stage.now)
    stage.sleep(31)
    assert errors(stage.hears(client)) == ["unavailable"]


# Anything at all. ---------------------------------------------------------------------------------


def test_whatever_happens_everybody_hears_the_end(rng: random.Random) -> None:
    """A long random life: two halls, few names; no client is lost, no message out of order."""
    names, post = Names(entropy=rng.randbytes), dict[str, Stage]()
    stages = [Stage(rng, names=names, post=post) for _ in range(2)]
    alive: list[tuple[Stage, int]] = []
    for step in range(3000):
        stage = rng.choice(stages)
        match rng.randrange(8):
            case 0 | 1 | 2:
                alive.append((stage, stage.joined(rng.choice([None, "a", "b", "c", "12"]))))
            case 3 | 4 if alive:
                where, client = rng.choice(alive)
                where.say(client, Message(b"%d" % step))
            case 5 if alive:
                where, client = rng.choice(alive)
                where.hall.closed(client, where.now, cleanly=rng.random() < 0.5)
                where.run()
                where.ended.setdefault(client, End(client, 1006, ""))
            case 6 if alive:
                where, client = rng.choice(alive)
                where.say(client, rng.choice(["", Leave(), Time(1.0), Join("a", b"")]))
            case 7:
                for one in stages:
                    one.sleep(rng.choice([0.1, 3, 20]))
                    for client in one.pinged:
                        if rng.random() < 0.8:
                            one.hall.heard(client, one.now)
                    one.pinged.clear()
        alive = [(where, client) for where, client in alive if client not in where.ended]
        for one in stages:
            assert set(one.hall._clients) == {c for where, c in alive if where is one}
    for where, client in alive:
        where.hall.closed(client, where.now, cleanly=True)
        where.run()
        where.ended.setdefault(client, End(client, 1006, ""))
    for one in stages:
        assert len(one.hall) == 0
        assert not one.hall._per_key
        for said in one.said.values():
            numbers = [int(m.data) for m in said if isinstance(m, Message)]
            assert numbers == sorted(set(numbers))
            assert sum(isinstance(m, Gone | Error) for m in said) <= 1
            if any(isinstance(m, Gone | Error) for m in said):
                assert isinstance(said[-1], Gone | Error)
    assert len(names) == 0
