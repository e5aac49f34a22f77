"""Counts as servers of a fleet publish them; what passes through Redis is tested with one."""

import pytest

from turn.users.fleet import decode_counts, encode_counts


@pytest.mark.parametrize("counts", [{}, {"alice": 1}, {"\u2168": 2, "a:b": 3, 'x"y': 50_000}])
def test_there_and_back(counts):
    assert decode_counts(encode_counts(counts)) == counts


def test_the_first_octets_change_with_the_counts():
    tags = {encode_counts(c)[:16] for c in ({}, {"a": 1}, {"a": 2}, {"b": 1})}
    assert len(tags) == 4
    # The order in which they were counted does not matter.
    assert encode_counts({"a": 1, "b": 2}) == encode_counts({"b": 2, "a": 1})


def test_a_name_that_has_no_octets_is_published_nevertheless():
    assert list(decode_counts(encode_counts({"\ud800": 1})).values()) == [1]


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        (b"", {}),
        (b"not json", {}),
        (b"[1]", {}),
        (b"\xff", {}),
        (b'{"a": 1, "b": "2", "c": -1, "d": 1.5, "e": null, "f": true}', {"a": 1}),
    ],
)
def test_what_is_no_count_counts_nothing(text, counts):
    assert decode_counts(bytes(16) + text) == counts
