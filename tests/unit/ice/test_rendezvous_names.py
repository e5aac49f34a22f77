"""The book of names of one process, and the letters between halls."""

from __future__ import annotations

import contextlib
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ice.rendezvous import names as module
from ice.rendezvous.letters import (
    MAX_LETTER,
    Answer,
    Farewell,
    Knock,
    Nudge,
    Pass,
    decode_letter,
    encode_letter,
)
from ice.rendezvous.names import REST, Meets, Member, Names, Refusal, Waits, one_time_names
from ice.rendezvous.protocol import MAX_DATA, ErrorCode, GoneReason, is_one_time

A, B, C = (Member("hall", number) for number in (1, 2, 3))


@pytest.fixture
def book(rng: random.Random) -> Names:
    return Names(entropy=rng.randbytes)


def test_two_meet_and_a_third_is_refused(book: Names) -> None:
    assert book.claim("a", A, 0) == Waits("a")
    assert book.claim("a", B, 0) == Meets("a", A)
    assert book.claim("a", C, 0) == Refusal(ErrorCode.BUSY, (A, B))


@pytest.mark.parametrize("leaver", [A, B])
def test_a_name_is_free_when_one_of_two_has_left(book: Names, leaver: Member) -> None:
    book.claim("a", A, 0)
    book.claim("a", B, 0)
    book.release("a", C, 0)
    assert isinstance(book.claim("a", C, 0), Refusal)
    book.release("a", leaver, 0)
    assert book.claim("a", C, 0) == Waits("a")


def test_a_one_time_name_is_used_up_by_two(book: Names) -> None:
    made = book.claim(None, A, 0)
    assert isinstance(made, Waits)
    assert is_one_time(made.name)
    assert len(book) == 1
    assert book.claim(made.name, B, 0) == Meets(made.name, A)
    assert book.claim(made.name, C, 0) == Refusal(ErrorCode.UNKNOWN_NAME)
    assert len(book) == 0


def test_used_expired_and_never_made_are_the_same(book: Names) -> None:
    used, left = book.claim(None, A, 0), book.claim(None, B, 0)
    assert isinstance(used, Waits)
    assert isinstance(left, Waits)
    book.claim(used.name, C, 0)
    book.release(left.name, B, 0)
    never = next(str(n) for n in range(99) if str(n) not in (used.name, left.name))
    answers = [book.claim(name, C, 0) for name in (used.name, left.name, never)]
    assert answers == [Refusal(ErrorCode.UNKNOWN_NAME)] * 3


def test_a_used_name_rests(rng: random.Random, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "one_time_names", lambda _: iter(["7", "8"]))
    book = Names(entropy=rng.randbytes)
    assert book.claim(None, A, 0) == Waits("7")
    book.release("7", A, 0)
    assert book.claim(None, A, REST - 1) == Waits("8")
    assert book.claim(None, B, REST - 1) == Refusal(ErrorCode.UNAVAILABLE)
    assert book.claim(None, B, REST) == Waits("7")


def test_what_rests_is_bounded(rng: random.Random, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_RESTING", 10)
    book = Names(entropy=rng.randbytes)
    for number in range(50):
        made = book.claim(None, Member("hall", number), 0)
        assert isinstance(made, Waits)
        book.release(made.name, Member("hall", number), 0)
    assert len(book._resting) == 10


def test_one_time_names_are_short_and_spread(rng: random.Random) -> None:
    book = Names(entropy=rng.randbytes)
    made = []
    for number in range(5000):
        found = book.claim(None, Member("hall", number), 0)
        assert isinstance(found, Waits)
        made.append(found.name)
    assert len(set(made)) == 5000
    assert max(map(len, made[:20])) <= 3
    assert max(map(len, made)) <= 6
    assert not any(name.startswith("0") for name in made)
    candidates = list(one_time_names(rng.randbytes))
    assert all(1 <= len(name) <= 12 for name in candidates)


@given(st.integers(0, 1 << 40), st.text("0123456789abcdef", min_size=1, max_size=16))
def test_members_are_read_back(client: int, hall: str) -> None:
    assert Member.parse(str(Member(hall, client))) == Member(hall, client)


@pytest.mark.parametrize("text", ["", "a", "a/", "/1", "a/-1", "a/b", "a/\u0661", "a/" + "1" * 99])
def test_what_is_no_member(text: str) -> None:
    with pytest.raises(ValueError, match="no member"):
        Member.parse(text)


LETTERS = [
    Knock(A, B, b"hello"),
    Answer(A, B, b""),
    Pass(A, B, 7, bytes(MAX_DATA)),
    Farewell(A, B, GoneReason.LOST),
    Nudge(A, B),
]


@pytest.mark.parametrize("letter", LETTERS)
def test_letters_are_read_back(letter: Any) -> None:
    octets = encode_letter(letter)
    assert len(octets) <= MAX_LETTER
    assert decode_letter(octets) == letter
    assert "hello" not in repr(letter)


@pytest.mark.parametrize(
    "octets",
    [
        b"",
        b"7",
        b"{}",
        b"[" * 80_000,
        b" " * (MAX_LETTER + 1),
        b'{"kind":"poem","to":"a/1","from":"b/2"}',
        b'{"kind":"nudge","to":7,"from":"b/2"}',
        b'{"kind":"nudge","to":"a/1"}',
        b'{"kind":"farewell","to":"a/1","from":"b/2","reason":"bored"}',
        b'{"kind":"pass","to":"a/1","from":"b/2","number":-1,"octets":""}',
        b'{"kind":"pass","to":"a/1","from":"b/2","number":true,"octets":""}',
        b'{"kind":"knock","to":"a/1","from":"b/2","octets":"?"}',
        b'{"kind":"knock","to":"a/1","from":"b/2","octets":7}',
        b'{"kind":"knock","to":"a/1","from":"b/2","octets":"' + b"A" * 4000 + b'"}',
        b"\xff\xfe\x00",
    ],
)
def test_what_is_no_letter(octets: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  (whatever is wrong with it)
        decode_letter(octets)


@given(st.binary(max_size=300))
def test_noise_is_no_letter(octets: bytes) -> None:
    with contextlib.suppress(ValueError):
        decode_letter(octets)
