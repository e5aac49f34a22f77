"""The sealed channel: whole, once, in order, and of a length that says little."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ice.rendezvous.channel import LONGEST, SMALLEST, Channel, sealed_length
from ice.rendezvous.codes import Code
from ice.rendezvous.errors import RendezvousError, Tampered, WrongCode
from ice.rendezvous.pairing import Keys
from ice.rendezvous.protocol import MAX_DATA
from stun.errors import UsageError


def keys_of(seed: int = 1) -> tuple[Keys, Keys]:
    draw = random.Random(seed).randbytes
    there, back, export = draw(32), draw(32), draw(32)
    resume = Code("r.", "x")
    return (
        Keys(first=True, seal=there, open=back, resume=resume, _exporter=export),
        Keys(first=False, seal=back, open=there, resume=resume, _exporter=export),
    )


def channels(seed: int = 1) -> tuple[Channel, Channel]:
    one, other = keys_of(seed)
    return Channel(one), Channel(other)


@given(st.lists(st.tuples(st.booleans(), st.binary(max_size=1200)), max_size=12))
def test_what_is_sealed_is_opened(said: list[tuple[bool, bytes]]) -> None:
    one, other = channels()
    for there, message in said:
        sender, receiver = (one, other) if there else (other, one)
        sealed = sender.seal(message)
        assert len(sealed) == sealed_length(len(message))
        assert receiver.open(sealed) == message
        assert receiver.proved


@given(st.integers(0, LONGEST))
def test_the_length_is_one_of_a_few(length: int) -> None:
    sealed = sealed_length(length)
    assert sealed <= MAX_DATA
    assert length + 17 <= sealed
    padded = sealed - 16
    assert padded == MAX_DATA - 16 or (padded >= SMALLEST and padded & (padded - 1) == 0)


def test_few_lengths_in_all() -> None:
    assert len({sealed_length(length) for length in range(LONGEST + 1)}) == 8


@pytest.mark.parametrize("length", [0, 1, 510, 511, 512, 513, 32767, 32768, LONGEST])
def test_the_edges_of_the_padding(length: int) -> None:
    for message in (bytes(length), b"\x80" * length, b"\x80".ljust(length, b"\0")[:length]):
        one, other = channels()
        assert other.open(one.seal(message)) == message


def test_too_long_costs_no_count() -> None:
    one, other = channels()
    with pytest.raises(UsageError, match=f"at most {LONGEST} octets"):
        one.seal(bytes(LONGEST + 1))
    assert other.open(one.seal(b"next")) == b"next"


def test_the_same_message_is_sealed_differently_each_time() -> None:
    one, other = channels()
    assert len({one.seal(b"x"), one.seal(b"x"), other.seal(b"x"), other.seal(b"x")}) == 4


Change = st.sampled_from(["drop", "repeat", "swap", "flip", "cut", "grow", "reflect", "forge"])


@given(
    st.lists(st.binary(max_size=40), min_size=2, max_size=6),
    Change,
    st.data(),
)
def test_any_interference_is_seen_and_ends_it(
    messages: list[bytes], change: str, data: st.DataObject
) -> None:
    one, other = channels()
    back = other.seal(b"back")
    del back
    honest = [one.seal(message) for message in messages]
    reflected = [other.seal(message) for message in messages]
    where = data.draw(st.integers(0, len(honest) - 2))
    sent = list(honest)
    match change:
        case "drop":
            del sent[where]
        case "repeat":
            sent.insert(where + 1, sent[where])
        case "swap":
            sent[where], sent[where + 1] = sent[where + 1], sent[where]
        case "flip":
            octets = bytearray(sent[where])
            octets[data.draw(st.integers(0, len(octets) - 1))] ^= 1 << data.draw(st.integers(0, 7))
            sent[where] = bytes(octets)
        case "cut":
            sent[where] = sent[where][: data.draw(st.integers(0, len(sent[where]) - 1))]
        case "grow":
            sent[where] += data.draw(st.binary(min_size=1, max_size=4))
        case "reflect":
            sent[where] = reflected[where]
        case "forge":
            sent[where] = data.draw(st.binary(max_size=600))
    received: list[bytes] = []
    errors: list[type[RendezvousError]] = []
    for sealed in sent:
        try:
            received.append(other.open(sealed))
        except (WrongCode, Tampered) as error:
            errors.append(type(error))
    assert received == messages[: len(received)]
    assert len(received) == (where + 1 if change == "repeat" else where)
    # The first to fail says which it is, and nothing is opened after it.
    assert set(errors) == {Tampered if received else WrongCode}
    assert len(errors) == len(sent) - len(received)


def test_what_the_peer_seals_without_padding_is_refused() -> None:
    ours, theirs = keys_of()
    sender = Channel(theirs)
    for plain in (b"", bytes(512), b"{}"):
        receiver = Channel(ours)
        assert receiver.open(sender.seal(b"proof")) == b"proof"
        raw = sender._seal.encrypt((1).to_bytes(12), plain, None)
        with pytest.raises(Tampered):
            receiver.open(raw)
        sender = Channel(theirs)


def test_other_keys_mean_another_code() -> None:
    one, _ = channels(1)
    _, stranger = channels(2)
    with pytest.raises(WrongCode, match="does not have the same code"):
        stranger.open(one.seal(b"x"))
    assert not stranger.proved
