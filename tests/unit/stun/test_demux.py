"""First octets: every value of the tables of RFC 7983 and RFC 9443."""

import pytest

from stun.demux import Protocol, StreamProtocol, classify, classify_stream, is_stun

HEADER = bytes.fromhex("000100002112a442") + bytes(12)


def ranges(*table):
    return [
        (value, protocol) for first, last, protocol in table for value in range(first, last + 1)
    ]


RFC9443 = ranges(
    (0, 3, Protocol.STUN),
    (4, 15, Protocol.UNKNOWN),
    (16, 19, Protocol.ZRTP),
    (20, 63, Protocol.DTLS),
    (64, 79, None),
    (80, 127, Protocol.QUIC),
    (128, 191, Protocol.RTP),
    (192, 255, Protocol.QUIC),
)
RFC7983 = ranges(
    (0, 3, Protocol.STUN),
    (4, 15, Protocol.UNKNOWN),
    (16, 19, Protocol.ZRTP),
    (20, 63, Protocol.DTLS),
    (64, 79, Protocol.TURN_CHANNEL),
    (80, 127, Protocol.UNKNOWN),
    (128, 191, Protocol.RTP),
    (192, 255, Protocol.UNKNOWN),
)


@pytest.mark.parametrize("length", [1, 2, 1200])
def test_rfc9443_figure_3(length):
    assert [value for value, _ in RFC9443] == list(range(256))
    for value, protocol in RFC9443:
        packet = bytes((value,)) + bytes(length - 1)
        assert classify(packet, from_turn_server=True) is (protocol or Protocol.TURN_CHANNEL)
        assert classify(packet) is (protocol or Protocol.QUIC)


def test_rfc7983_figure_3():
    assert [value for value, _ in RFC7983] == list(range(256))
    for value, protocol in RFC7983:
        assert classify(bytes((value,)), quic=False) is protocol
        assert classify(bytes((value,)), quic=False, from_turn_server=True) is protocol


def test_an_empty_datagram_is_nothing():
    assert classify(b"") is Protocol.UNKNOWN
    assert not is_stun(b"")
    assert classify_stream(b"") is None


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_kind_of_octets(kind):
    assert classify(kind(HEADER)) is Protocol.STUN
    assert is_stun(kind(HEADER))
    assert classify_stream(kind(HEADER)) is StreamProtocol.STUN


def test_is_stun():
    assert is_stun(HEADER)
    assert is_stun(HEADER + b"anything")
    assert not is_stun(HEADER[:19])
    assert not is_stun(b"\x40" + HEADER[1:])
    assert not is_stun(HEADER[:3] + b"\x02" + HEADER[4:])
    for index in range(4, 8):
        spoiled = bytearray(HEADER)
        spoiled[index] ^= 1
        assert not is_stun(spoiled)


@pytest.mark.parametrize(
    ("first", "protocol"),
    [
        (0, StreamProtocol.STUN),
        (3, StreamProtocol.STUN),
        (4, StreamProtocol.UNKNOWN),
        (0x15, StreamProtocol.UNKNOWN),
        (0x16, StreamProtocol.TLS),
        (0x17, StreamProtocol.UNKNOWN),
        (0x40, StreamProtocol.TURN_CHANNEL),
        (0x7F, StreamProtocol.TURN_CHANNEL),
        (0x80, StreamProtocol.UNKNOWN),
    ],
)
def test_classify_stream(first, protocol):
    assert classify_stream(bytes((first, 3, 1))) is protocol
