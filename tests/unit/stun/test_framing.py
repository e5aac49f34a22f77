"""The splitters: whole, octet by octet, with trailing data, cut at random, and spoiled."""

import random

import pytest

from stun.errors import DropReason, UsageError
from stun.framing import (
    MAX_STUN,
    Rfc4571Stream,
    StunStream,
    channel_data,
    rfc4571_frame,
)


def stun(body=b"", kind=b"\x00\x01"):
    return kind + len(body).to_bytes(2, "big") + b"\x21\x12\xa4\x42" + bytes(range(12)) + body


MESSAGES = [stun(), stun(b"\x80\x22\x00\x04natk"), stun(bytes(400), b"\x01\x01")]
CHANNELS = [
    channel_data(0x4000, b"", pad=False),
    channel_data(0x4001, b"abc", pad=False),
    channel_data(0x7FFF, b"abcd", pad=False),
]


def on_the_wire(message):
    return message + bytes(-len(message) % 4)


MIXED = [MESSAGES[0], CHANNELS[1], MESSAGES[2], CHANNELS[0], CHANNELS[2], MESSAGES[1]]


@pytest.fixture(params=["stun", "mixed", "rfc4571"])
def scene(request):
    """(a new splitter, the messages, the octets that carry them)"""
    if request.param == "stun":
        return StunStream, MESSAGES, b"".join(MESSAGES)
    if request.param == "mixed":
        return lambda: StunStream(channel_data=True), MIXED, b"".join(map(on_the_wire, MIXED))
    packets = [*MESSAGES, b"", b"x" * 0xFFFF]
    return Rfc4571Stream, packets, b"".join(map(rfc4571_frame, packets))


def test_whole(scene):
    make, messages, octets = scene
    stream = make()
    assert stream.feed(octets) == messages
    assert (stream.pending, stream.error) == (0, None)


def test_octet_by_octet(scene):
    make, messages, octets = scene
    stream = make()
    found = []
    for index in range(len(octets)):
        found += stream.feed(octets[index : index + 1])
    assert found == messages
    assert stream.pending == 0


def test_with_trailing_data(scene):
    make, messages, octets = scene
    for extra in range(1, len(on_the_wire(messages[0]))):
        stream = make()
        assert stream.feed(octets + octets[:extra]) == messages
        assert stream.pending == extra
        assert stream.feed(octets[extra:]) == messages


def test_random_cuts(scene, rng: random.Random):
    make, messages, octets = scene
    for _ in range(50):
        cuts = sorted(rng.randrange(len(octets)) for _ in range(rng.randrange(40)))
        stream, found = make(), []
        for start, end in zip([0, *cuts], [*cuts, len(octets)], strict=True):
            found += stream.feed(octets[start:end])
        assert found == messages


def test_nothing_in_nothing_out(scene):
    make, _, _ = scene
    stream = make()
    assert stream.feed(b"") == []
    assert stream.pending == 0


def test_padding_comes_later():
    stream = StunStream(channel_data=True)
    assert stream.feed(CHANNELS[1]) == []
    assert stream.feed(b"\0") == [CHANNELS[1]]


@pytest.mark.parametrize(
    ("octets", "reason", "offset"),
    [
        (b"\x80", DropReason.NOT_STUN, 0),
        (b"\xff\xff", DropReason.NOT_STUN, 0),
        (b"\x40\x00\x00\x00", DropReason.NOT_STUN, 0),  # ChannelData is not expected
        (b"\x00\x01\x00\x03\x21\x12\xa4\x42", DropReason.BAD_LENGTH_ALIGNMENT, 2),
        (b"\x16\x03\x01\x02\x00", DropReason.NOT_EXPECTED_PROTOCOL, 4),  # TLS
        (b"\x00\x01\x00\x00\x21\x12\xa5", DropReason.NOT_EXPECTED_PROTOCOL, 4),
        (b"GET / HTTP/1.1\r\n\r\n", DropReason.NOT_STUN, 0),
    ],
)
def test_what_is_no_stun(octets, reason, offset):
    stream = StunStream()
    assert stream.feed(MESSAGES[0]) == MESSAGES[:1]
    assert stream.feed(MESSAGES[1] + octets) == MESSAGES[1:2]
    error = stream.error
    assert error is not None
    assert error.reason is reason
    # Offsets count from the start of the stream.
    assert error.offset == len(MESSAGES[0] + MESSAGES[1]) + offset
    # The same error wherever the stream is cut.
    slow = StunStream()
    for octet in MESSAGES[0] + MESSAGES[1] + octets:
        slow.feed(bytes((octet,)))
    assert str(slow.error) == str(error)
    # Dead from here on, and nothing is kept.
    assert stream.feed(MESSAGES[0]) == []
    assert stream.pending == 0
    assert stream.error is error


def test_a_stranger_is_told_off_at_the_first_wrong_octet():
    stream = StunStream()
    hello = b"\x16\x03\x01\x02\x00"
    for octet in hello[:4]:
        assert stream.feed(bytes((octet,))) == []
        assert stream.error is None
    stream.feed(hello[4:])
    assert stream.error is not None


def test_limit():
    stream = StunStream(limit=100)
    assert stream.feed(stun(bytes(80))) == [stun(bytes(80))]
    stream.feed(stun(bytes(84))[:8])
    assert stream.error is not None
    assert stream.error.reason is DropReason.TOO_LONG
    assert stream.pending == 0


def test_limit_of_channel_data():
    stream = StunStream(channel_data=True, limit=20)
    assert len(stream.feed(channel_data(0x4000, bytes(16), pad=True))) == 1
    stream.feed(channel_data(0x4000, bytes(17), pad=True))
    assert stream.error is not None
    assert stream.error.reason is DropReason.TOO_LONG


def test_the_longest_message_there_can_be():
    longest = stun(bytes(0xFFFC))
    assert len(longest) == MAX_STUN
    assert StunStream().feed(longest) == [longest]


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_one_at_a_time_is_the_same_as_all_at_once(size):
    wire = b"".join(map(on_the_wire, MESSAGES + CHANNELS)) + b"\x80"
    whole, single = StunStream(channel_data=True), StunStream(channel_data=True)
    expected = whole.feed(wire)
    found = []
    for at in range(0, len(wire), size):
        single.push(wire[at : at + size])
        while (message := single.pop()) is not None:
            found.append(message)
    assert found == expected == MESSAGES + CHANNELS
    assert single.error is not None
    assert whole.error is not None
    assert (single.error.reason, single.error.offset) == (whole.error.reason, whole.error.offset)
    single.push(stun())
    assert single.pop() is None


def test_what_follows_the_last_message_is_given_up_as_it_came():
    stream = StunStream(channel_data=True)
    behind = channel_data(0x4000, b"abc", pad=False) + b"\xff"
    stream.push(stun() + behind)
    assert stream.pop() == stun()
    assert stream.rest() == behind
    assert stream.rest() == b""
    assert stream.pending == 0
    assert stream.error is None


def test_limit_of_rfc4571():
    stream = Rfc4571Stream(limit=4)
    assert stream.feed(b"\x00\x04abcd\x00\x05") == [b"abcd"]
    assert stream.error is not None
    assert (stream.error.reason, stream.error.offset) == (DropReason.TOO_LONG, 6)
    assert stream.feed(b"abcde") == []


def test_limit_of_rfc4571_is_raised_for_a_peer_that_is_known():
    stream = Rfc4571Stream(limit=4)
    stream.allow(6)
    assert stream.feed(b"\x00\x06abcdef\x00\x07") == [b"abcdef"]
    assert stream.error is not None


def test_usage():
    with pytest.raises(UsageError):
        StunStream(limit=19)
    with pytest.raises(UsageError):
        rfc4571_frame(bytes(0x10000))
    with pytest.raises(UsageError):
        channel_data(0x3FFF, b"", pad=False)
    with pytest.raises(UsageError):
        channel_data(0x8000, b"", pad=False)
    with pytest.raises(UsageError):
        channel_data(0x4000, bytes(0x10000), pad=False)


def test_a_packet_that_is_too_long_is_refused_wherever_the_stream_is_cut():
    wire = b"\x00\x02ab\x00\x00\x00\x05"
    for one in range(len(wire)):
        for other in range(one, len(wire)):
            stream = Rfc4571Stream(limit=4)
            found = [
                packet
                for a, b in ((0, one), (one, other), (other, None))
                for packet in stream.feed(wire[a:b])
            ]
            assert found == [b"ab", b""]
            assert stream.error is not None
            assert (stream.error.reason, stream.error.offset) == (DropReason.TOO_LONG, 6)
            assert stream.pending == 0
            assert stream.feed(b"more") == []
