"""Codes: as they are made, typed, pasted and mistyped."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ice.rendezvous.codes import Code, make_secret, parse
from ice.rendezvous.words import WORDS
from stun.errors import UsageError


def distance(one: str, other: str) -> int:
    row = list(range(len(other) + 1))
    for n, letter in enumerate(one, 1):
        last, row[0] = row[0], n
        for m, against in enumerate(other, 1):
            last, row[m] = row[m], min(row[m] + 1, row[m - 1] + 1, last + (letter != against))
    return row[-1]


def test_the_words_can_be_told_apart() -> None:
    assert len(WORDS) == len(set(WORDS)) == 256
    assert list(WORDS) == sorted(WORDS)
    assert all(word.isascii() and word.isalpha() and word.islower() for word in WORDS)
    assert all(4 <= len(word) <= 8 for word in WORDS)
    assert len({word[:4] for word in WORDS}) == 256
    assert min(distance(*pair) for pair in itertools.combinations(WORDS, 2)) >= 3


def test_a_made_secret_takes_one_octet_a_word() -> None:
    drawn: list[int] = []

    def entropy(count: int) -> bytes:
        drawn.append(count)
        return bytes(range(count))

    assert make_secret(entropy) == "-".join(WORDS[:3])
    assert make_secret(entropy, 5) == "-".join(WORDS[:5])
    assert drawn == [3, 5]
    with pytest.raises(UsageError, match="3 to 8 words"):
        make_secret(entropy, 2)


@given(st.binary(min_size=3, max_size=8), st.integers(0, 10**9))
def test_a_made_code_is_read_as_it_was_made(octets: bytes, number: int) -> None:
    code = Code(str(number), make_secret(lambda _: octets, len(octets)))
    assert parse(str(code)) == code


@pytest.mark.parametrize(
    "typed",
    [
        "7-acorn-violin-harbor",
        "  7-acorn-violin-harbor\n",
        "7 acorn violin harbor",
        "7 - Acorn - Violin - Harbor",
        "7--acorn--violin--harbor",
        "7\u2013acorn\u2014violin\u2011harbor",
        "7\u2212acorn\u00a0violin\tharbor",
        "\uff17-ACORN-violin-harbor",
    ],
)
def test_the_ways_to_write_it(typed: str) -> None:
    assert parse(typed) == Code("7", "acorn-violin-harbor")


def test_a_given_code() -> None:
    assert parse("Printer.Upstairs-correct horse") == Code("printer.upstairs", "correct-horse")
    assert parse("a1_b-stra\u00dfe1") == Code("a1_b", "strasse1")
    # One letter, or a letter and a combining mark: both are typed.
    assert parse("x-caf\u00e9-noir") == parse("x-cafe\u0301-noir")


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("", "a code is a name, a dash and a secret"),
        ("acorn", "a code is a name, a dash and a secret"),
        ("--", "a code is a name"),
        ("acorn-violin-harbor", "the number before the words of the code is missing"),
        ("7", "a code is a name"),
        ("7-", "a code is a name"),
        ("al+ice-secret1", "the name of a code"),
        ("x" * 65 + "-secret1", "the name of a code"),
        ("alice-12345", "needs 6 or more characters, this one has 5"),
        ("alice-" + "x" * 257, "at most 256"),
        ("7-acorn-violin-habror", 'the word "habror" in it: did you mean "harbor"?'),
        ("7-acorn-violin-zzzzz", 'the word "zzzzz" in it [(]a name of digits'),
        ("7-acorn-violin", "3 words after its number, .*, not 2 words"),
        ("7-acorn", "not one word"),
        ("7-" + "-".join(["acorn"] * 9), "not 9 words"),
        ("alice-sec\x07ret", "control characters"),
        ("alice-sec\u202eret", "control characters"),
    ],
)
def test_what_is_no_code(typed: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parse(typed)


def test_an_error_does_not_repeat_a_given_secret() -> None:
    for typed in ("alice-12345", "al+ice-hush-hush", "alice-hush\x07hush"):
        with pytest.raises(UsageError) as caught:
            parse(typed)
        assert "hush" not in str(caught.value)
        assert "12345" not in str(caught.value)


def test_the_secret_is_not_in_the_repr() -> None:
    code = parse("alice-hush-hush")
    assert "hush" not in repr(code)
    assert str(code) == "alice-hush-hush"


@given(st.text(max_size=40) | st.from_regex(r"[0-9a-z.]{1,8}[- ][a-z0-9 \-]{0,20}", fullmatch=True))
def test_whatever_is_typed_is_a_code_or_an_error_and_stays_itself(typed: str) -> None:
    code, said = None, ""
    try:
        code = parse(typed)
    except UsageError as error:
        said = str(error)
    assert said.isprintable()
    if code is not None:
        assert parse(str(code)) == code
