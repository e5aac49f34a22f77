"""URIs come back as they were understood; streams are cut anywhere; SRV orders are fair."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from stun.discovery import Srv, order_srv
from stun.errors import DecodeError
from stun.framing import Rfc4571Stream, StunStream, channel_data, rfc4571_frame
from stun.uri import StunUri, TurnUri, UriError, parse, parse_server

LABEL = st.from_regex(r"[a-z]([a-z0-9-]{0,10}[a-z0-9])?", fullmatch=True)
HOST = (
    st.lists(LABEL, min_size=1, max_size=4).map(".".join)
    | st.ip_addresses(v=4).map(str)
    | st.ip_addresses(v=6).map(lambda a: StunUri(str(a)).host)
)
PORT = st.none() | st.integers(1, 0xFFFF)
TRANSPORT = st.none() | st.sampled_from(["udp", "tcp", "x-1"])


@given(HOST, PORT)
def test_stun(host, port):
    uri = StunUri(host, port)
    again = parse(str(uri))
    # IPv6 addresses of IPv4 hosts are written with dots whatever they came as.
    assert str(again) == str(parse(str(again)))
    assert (again.port, again.secure) == (port, False)
    assert parse_server(str(uri)[5:]) == again


@given(HOST, PORT, TRANSPORT, st.booleans())
def test_turn(host, port, transport, secure):
    uri = TurnUri(host, port, transport, secure)
    again = parse(str(uri))
    assert isinstance(again, TurnUri)
    assert (again.port, again.transport, again.secure) == (port, transport, secure)
    assert str(parse(str(again))) == str(again)


@given(st.text(max_size=30))
def test_any_text(text):
    for reader in (parse, parse_server):
        try:
            uri = reader(text)
        except UriError as error:
            position = error.position
        else:
            position = 0
            assert parse(str(uri)) == uri
        assert position >= 0


MESSAGE = st.builds(
    lambda body, kind: (
        kind.to_bytes(2) + (4 * len(body)).to_bytes(2) + b"\x21\x12\xa4\x42" + bytes(12) + body * 4
    ),
    st.binary(max_size=40),
    st.integers(0, 0x3FFF),
)
CHANNEL = st.builds(
    lambda number, data: channel_data(number, data, pad=False),
    st.integers(0x4000, 0x7FFF),
    st.binary(max_size=50),
)


def pieces(octets, cuts):
    edges = [0, *sorted(cut % (len(octets) + 1) for cut in cuts), len(octets)]
    return [octets[a:b] for a, b in itertools.pairwise(edges)]


CUTS = st.lists(st.integers(0, 5000), max_size=20)


@settings(max_examples=200)
@given(st.lists(MESSAGE | CHANNEL, max_size=8), CUTS)
def test_stun_stream(messages, cuts):
    octets = b"".join(message + bytes(-len(message) % 4) for message in messages)
    stream = StunStream(channel_data=True)
    found = [message for piece in pieces(octets, cuts) for message in stream.feed(piece)]
    assert found == messages
    assert (stream.pending, stream.error) == (0, None)


@settings(max_examples=200)
@given(st.lists(st.binary(max_size=300), max_size=8), CUTS)
def test_rfc4571_stream(packets, cuts):
    octets = b"".join(map(rfc4571_frame, packets))
    stream = Rfc4571Stream()
    found = [packet for piece in pieces(octets, cuts) for packet in stream.feed(piece)]
    assert found == packets
    assert stream.pending == 0


@settings(max_examples=300)
@given(st.binary(max_size=200), CUTS)
def test_any_octets_end_alike_wherever_they_are_cut(octets, cuts):
    def fate(parts):
        stream = StunStream(channel_data=True)
        found = [message for part in parts for message in stream.feed(part)]
        error = stream.error
        assert error is None or isinstance(error, DecodeError)
        return found, str(error), stream.pending

    assert fate([octets]) == fate(pieces(octets, cuts))


RECORDS = st.lists(
    st.builds(
        Srv, st.integers(0, 3), st.integers(0, 65535), st.integers(1, 9), st.text(max_size=3)
    ),
    max_size=12,
)


@given(RECORDS, st.randoms(use_true_random=False))
def test_srv_order_keeps_every_record_and_the_priorities(records, rng):
    ordered = order_srv(records, rng.randbytes)
    assert sorted(ordered) == sorted(records)
    assert [r.priority for r in ordered] == sorted(r.priority for r in records)
