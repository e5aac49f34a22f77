"""A rendezvous that is not honest: it can end a meeting, and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random

import pytest

from ice.rendezvous.channel import Channel
from ice.rendezvous.codes import parse
from ice.rendezvous.errors import (
    OtherVersion,
    PeerGone,
    RendezvousError,
    RendezvousLost,
    Tampered,
    WrongCode,
)
from ice.rendezvous.meeting import Meeting
from ice.rendezvous.pairing import Pairing
from ice.rendezvous.protocol import Error, Gone, Joined, Message, Peer, TimeAnswer, Welcome
from tools.meetingdesk import Desk, until

CODE = "alice-the secret"
IMPATIENCE = 0.05
"""Seconds, where the server may have left one side waiting for what never comes."""


async def converse(url: str, code: str, words: int = 3) -> list[object]:
    """Open, meet, say some words and hear as many; return what was heard, and the error."""
    heard: list[object] = []
    try:
        async with await Meeting.open(url, code, timeout=5) as meeting:
            await meeting.peer()
            # What ends it while this side talks is heard below, after what came before.
            with contextlib.suppress(RendezvousError):
                for n in range(words):
                    await meeting.send({"n": n})
            for _ in range(words):
                heard.append(await meeting.recv())
    except RendezvousError as error:
        heard.append(error)
    return heard


async def both(desk: Desk, patience: float = 10) -> tuple[list, list]:
    """Two conversations, the second of which is given up ``patience`` seconds after the first."""
    tasks = [asyncio.create_task(converse(desk.url, CODE)) for _ in range(2)]
    await asyncio.wait(tasks, timeout=10, return_when=asyncio.FIRST_COMPLETED)
    assert any(task.done() for task in tasks)
    _, waiting = await asyncio.wait(tasks, timeout=patience)
    for task in waiting:
        task.cancel()
        await asyncio.wait([task])
    one, other = ([] if task.cancelled() else task.result() for task in tasks)
    return one, other


def check(heard: list[object]) -> None:
    """Whatever was heard is what the peer said, from the first word on; then an error at most."""
    words = [one for one in heard if not isinstance(one, RendezvousError)]
    assert words == [{"n": n} for n in range(len(words))]
    errors = [one for one in heard if isinstance(one, RendezvousError)]
    assert len(errors) <= 1
    for error in errors:
        assert str(error).isprintable()
        assert "secret" not in str(error)


# Nothing is shown to it. --------------------------------------------------------------------------


async def test_it_sees_neither_words_nor_how_many_letters_they_have() -> None:
    async with Desk().open() as desk:
        one = await Meeting.open(desk.url, CODE)
        other = await Meeting.open(desk.url, CODE)
        await asyncio.gather(one.peer(), other.peer())
        await one.send({})
        await one.send({"candidate": "192.0.2.77", "more": "x" * 300})
        await other.send({"candidate": "192.0.2.78"})
        await other.recv(), await other.recv(), await one.recv()
        await one.close()
        await other.close()
        seen = [said for guest in desk.guests for said in guest.heard]
        sealed = [said.data for said in seen if isinstance(said, Message)]
        assert len(sealed) == 5
        assert {len(data) for data in sealed} == {528}
        assert len(set(sealed)) == 5
        for said in seen:
            octets = getattr(said, "data", getattr(said, "hello", b""))
            assert b"192.0.2" not in octets
            assert b"candidate" not in octets
            assert b"secret" not in octets


# Each thing that it says, in every wrong way. -----------------------------------------------------

KINDS = (Welcome, Joined, Peer, Message, TimeAnswer)
GARBAGE = (
    "",
    "{}",
    "[]",
    "nonsense",
    '{"type":null}',
    '{"type":"peer"}',
    '{"type":"peer","hello":""}',
    '{"type":"peer","hello":"AVM="}',
    '{"type":"message","data":""}',
    '{"type":"message","data":"AAAA"}',
    '{"type":"joined","name":"../x","seconds":1}',
    '{"type":"joined","name":"bob","seconds":1}',
    '{"type":"joined","name":"7","seconds":1e999}',
    '{"type":"gone","reason":"\\u001b[2J"}',
    '{"type":"error","code":"x","text":"\\u001b[2J"}',
    '{"type":"error","code":"busy","text":""}',
    '{"type":"time","sent":1,"time":-1e18}',
    '{"type":"time","sent":1,"time":1e999}',
    "[" * 50_000,
    b"\x00\xff",
    "x" * 200_000,
)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("garbage", GARBAGE, ids=lambda one: repr(one[:24]))
async def test_garbage_in_place_of(kind: type, garbage: str | bytes) -> None:
    async def forge(to, message):
        return [garbage] if to.number == 1 and isinstance(message, kind) else [message]

    async with Desk(forge=forge).open() as desk:
        for heard in await both(desk, IMPATIENCE):
            check(heard)


@pytest.mark.parametrize("kind", [*KINDS, Gone], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("way", ["close", "abort", "twice", "error", "gone", "unknown", "welcome"])
async def test_ends_and_repetitions_at(kind: type, way: str) -> None:
    async def forge(to, message):
        if not (to.number == 1 and isinstance(message, kind)):
            return [message]
        match way:
            case "close":
                return None
            case "abort":
                to.socket.transport.abort()
                return []
            case "twice":
                return [message, message]
            case "error":
                return [Error("made-up", "no\nreason"), message]
            case "gone":
                return [Gone("made up"), message]
            case "unknown":
                return ['{"type":"weather"}', message]
            case _:
                return [message, Welcome(message_address(), 0.0)]

    def message_address():
        from stun.sansio import Address

        return Address("192.0.2.9", 9)

    async with Desk(forge=forge).open() as desk:
        harmless = (way == "unknown" and kind is not Welcome) or (
            kind is TimeAnswer and way == "twice"
        )
        ends = await both(desk, 10 if harmless else IMPATIENCE)
        for heard in ends:
            check(heard)
        if harmless:
            assert ends == ([{"n": 0}, {"n": 1}, {"n": 2}],) * 2


async def test_any_octets_at_any_time(rng: random.Random) -> None:
    for _ in range(30):
        at = rng.randrange(12)
        count = 0
        noise = rng.choice(GARBAGE[:-1]) if rng.random() < 0.5 else rng.randbytes(rng.randrange(60))

        async def forge(_to, message, at=at, noise=noise):
            nonlocal count
            count += 1
            return [noise, message] if count == at else [message]

        async with Desk(forge=forge).open() as desk:
            for heard in await both(desk, IMPATIENCE):
                check(heard)


# What it does to what the two say. ----------------------------------------------------------------


class Sealed:
    """Counts the sealed messages to guest 1 (the first is the proof) and does ``act`` to them."""

    def __init__(self, act) -> None:
        self.act = act
        self.seen: list[Message] = []

    async def __call__(self, to, message):
        if to.number != 1 or not isinstance(message, Message):
            return [message]
        self.seen.append(message)
        return self.act(self.seen)


def flipped(message: Message, bit: int = 0) -> Message:
    octets = bytearray(message.data)
    octets[bit // 8] ^= 1 << bit % 8
    return Message(bytes(octets))


@pytest.mark.parametrize(
    ("act", "words", "error"),
    [
        (lambda seen: [] if len(seen) == 1 else [seen[-1]], 0, WrongCode),
        (lambda seen: [] if len(seen) == 2 else [seen[-1]], 0, Tampered),
        (lambda seen: [] if len(seen) == 3 else [seen[-1]], 1, Tampered),
        (lambda seen: [seen[-1], seen[0]], 0, Tampered),
        (lambda seen: [seen[-1], *seen[2:]], 2, Tampered),
        (lambda seen: ([seen[-1]], [], seen[:0:-1])[min(len(seen), 3) - 1], 0, Tampered),
        (lambda seen: [flipped(seen[-1], 9)], 0, WrongCode),
        (lambda seen: [flipped(seen[-1], 4000) if len(seen) == 4 else seen[-1]], 2, Tampered),
        (lambda seen: [Message(seen[-1].data[:-1]) if len(seen) == 4 else seen[-1]], 2, Tampered),
        (lambda seen: [Message(b"") if len(seen) == 3 else seen[-1]], 1, Tampered),
        (lambda seen: [seen[-1]] * 2 if len(seen) == 4 else [seen[-1]], 3, None),
    ],
    ids=(
        "drop-proof drop-first drop-second replay-proof replay-all swap flip-proof flip-third cut"
        " empty repeat-last"
    ).split(),
)
async def test_interference_is_seen(act, words: int, error: type | None) -> None:
    async with Desk(forge=Sealed(act)).open() as desk:
        for code in (CODE, CODE):
            assert parse(code).name == "alice"
        # Who comes first is guest 1.
        one = asyncio.create_task(converse(desk.url, CODE))
        await until(lambda: bool(desk.guests))
        other = await converse(desk.url, CODE)
        heard = await one
        check(other)
        check(heard)
        said = [word for word in heard if isinstance(word, dict)]
        assert len(said) == words
        assert (type(heard[-1]) if len(heard) > words else None) is error


async def test_ones_own_messages_sent_back() -> None:
    async with Desk().open() as desk:
        one = await Meeting.open(desk.url, CODE)
        other = await Meeting.open(desk.url, CODE)
        await asyncio.gather(one.peer(), other.peer())
        await one.send({"n": 0})
        await other.send({"n": 0})
        assert await one.recv() == {"n": 0}
        mine = [said for said in desk.guests[0].heard if isinstance(said, Message)]
        await desk.guests[0].tell(mine[1])
        with pytest.raises(Tampered):
            await one.recv()
        await one.close()
        await other.close()


async def test_ones_own_hello_sent_back() -> None:
    async def forge(to, message):
        return [Peer(to.hello)] if isinstance(message, Peer) else [message]

    async with Desk(forge=forge).open() as desk:
        ends = await both(desk, 1)
        assert any(ends)
        for heard in filter(None, ends):
            assert isinstance(heard[-1], Tampered | PeerGone)
        assert any(isinstance(heard[-1], Tampered) for heard in ends if heard)


async def test_a_hello_of_another_version() -> None:
    async def forge(to, message):
        if isinstance(message, Peer) and to.number == 1:
            return [Peer(b"\x02" + message.hello[1:])]
        return [message]

    async with Desk(forge=forge).open() as desk:
        one, other = await both(desk)
        errors = {type(heard[-1]) for heard in (one, other)}
        assert OtherVersion in errors
        assert errors <= {OtherVersion, PeerGone, RendezvousLost}


async def test_hellos_of_two_meetings_swapped() -> None:
    """Four that have two codes, paired across: all of them see it."""
    async with Desk().open() as desk:
        there = []

        async def forge(to, message):
            if not isinstance(message, Peer):
                return [message]
            there.append(to)
            if len(there) == 4:
                for guest, other in zip(desk.guests, reversed(desk.guests), strict=True):
                    guest.other = other
                    await guest.tell(Peer(other.hello))
            return []

        desk.forge = forge
        names = ("alice", "bob", "alice", "bob")
        meetings = [await Meeting.open(desk.url, f"{name}-the secret of {name}") for name in names]
        for meeting in meetings:
            with pytest.raises(WrongCode):
                await meeting.recv()
        for meeting in meetings:
            await meeting.close()


# In the middle, with a guess. ---------------------------------------------------------------------


class Middle:
    """A server that pairs each side with itself, by a guess, and reads what it can."""

    def __init__(self, guess: str) -> None:
        self.guess = guess
        self.channels: dict[int, Channel] = {}
        self.read: list[bytes] = []
        self.failed = 0

    async def __call__(self, to, message):
        if isinstance(message, Peer):
            pairing = Pairing(self.guess, os.urandom)
            self.channels[to.number] = Channel(pairing.finish(to.hello, to.name))
            return [Peer(pairing.hello)]
        if isinstance(message, Message):
            source = self.channels[to.other.number]
            try:
                plain = source.open(message.data)
            except RendezvousError:
                self.failed += 1
                return [message]
            self.read.append(plain)
            return [Message(self.channels[to.number].seal(plain))]
        return [message]


async def test_in_the_middle_with_a_wrong_guess() -> None:
    middle = Middle("the-secrets")
    async with Desk(forge=middle).open() as desk:
        one, other = await both(desk)
        assert [type(end) for end in (one[-1], other[-1])] == [WrongCode, WrongCode]
        assert len(one) == len(other) == 1
        assert not middle.read
        assert middle.failed


async def test_in_the_middle_with_the_code() -> None:
    """Who has the code is the peer; else the test above would prove little."""
    middle = Middle(parse(CODE).secret)
    async with Desk(forge=middle).open() as desk:
        ends = await both(desk)
        assert ends == ([{"n": 0}, {"n": 1}, {"n": 2}],) * 2
        assert [json.loads(said) for said in middle.read if said][:1] == [{"n": 0}]


async def test_a_transcript_does_not_tell_a_right_guess_from_a_wrong_one(seed: int) -> None:
    """Who has only listened can pair with neither hello, even if it has the code."""
    draw = random.Random(seed)
    async with Desk().open() as desk:
        one = await Meeting.open(desk.url, CODE)
        other = await Meeting.open(desk.url, CODE)
        await asyncio.gather(one.peer(), other.peer())
        await one.close()
        await other.close()
        hellos = [guest.hello for guest in desk.guests]
        proof = next(said for said in desk.guests[0].heard if isinstance(said, Message))
    secret = parse(CODE).secret
    for hello in hellos:
        for guess in (secret, "another"):
            late = Channel(Pairing(guess, draw.randbytes).finish(hello, "alice"))
            with pytest.raises(WrongCode):
                late.open(proof.data)


# Names that it gives. -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "given", "said"),
    [
        (None, "alice", "not good for one use"),
        (None, "7.evil", "not good for one use"),
        ("alice-the secret", "bob", "another name than was asked for"),
        ("7-acorn-violin-harbor", "8", "another name than was asked for"),
    ],
)
async def test_a_name_that_was_not_asked_for(asked: str | None, given: str, said: str) -> None:
    async def forge(_, message):
        return [message] if isinstance(message, Welcome) else [Joined(given, 60)]

    async with Desk(forge=forge).open() as desk:
        with pytest.raises(RendezvousLost, match=said):
            await Meeting.open(desk.url, asked)


async def test_a_flood_is_not_kept() -> None:
    """Messages that nobody takes stay in the network."""
    async with Desk().open() as desk:
        one = await Meeting.open(desk.url, CODE)
        other = await Meeting.open(desk.url, CODE)
        await asyncio.gather(one.peer(), other.peer())
        big = {"x": "y" * 60_000}

        async def flood() -> None:
            while True:
                await one.send(big)

        flooding = asyncio.create_task(flood())
        done, _ = await asyncio.wait([flooding], timeout=0.5)
        assert not done
        held = len(other._inbox)
        flooding.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await flooding
        assert held <= 64
        await other.close()
        await one.close()
