"""The frames of a link: written, read whole and in any portions, refused where they are wrong."""

from __future__ import annotations

from random import Random

import pytest

from ice.link import frames
from ice.link.frames import Frame, Kind, Piece, Reader, State, Violation

STATE = State((1 << 40) + 7, (1 << 40) + 9, 12)


def data(offset: int, octets: bytes) -> bytes:
    return frames.data_header(offset, len(octets)) + octets


EVERYTHING = b"".join(
    (
        frames.hello(True, STATE),
        data(0, b"a"),
        frames.ping(),
        data(1 << 50, b"some more of it"),
        frames.ack(STATE, 1 << 33),
        frames.signal(3, b""),
        frames.signal(1 << 31, b"x" * frames.MOST_SIGNAL),
        frames.datagram(b""),
        frames.datagram(b"y" * frames.MOST_DATAGRAM),
        data(77, b"z" * frames.MOST_DATA),
        frames.fin(78),
        frames.close(),
        frames.close(),
        frames.abort(17, "no more"),
    )
)


def told(found: list[Piece | Frame]) -> list[tuple[object, ...]]:
    """Return what was found, pieces of one frame put together."""
    items: list[tuple[object, ...]] = []
    for item in found:
        if isinstance(item, Frame):
            items.append((item.kind, item.body))
        elif item.first:
            items.append((item.offset, bytes(item.data)))
        else:
            offset, octets = items.pop()
            assert isinstance(offset, int)
            assert isinstance(octets, bytes)
            assert item.offset == offset + len(octets)
            items.append((offset, octets + bytes(item.data)))
    return items


def feed_one_by_one(octets: bytes) -> Reader:
    reader = Reader()
    for octet in octets:
        reader.feed(bytes([octet]))
    return reader


def test_everything_whole() -> None:
    items = told(Reader().feed(EVERYTHING))
    assert [item[0] for item in items] == [
        *(Kind.HELLO, 0, Kind.PING, 1 << 50, Kind.ACK, Kind.SIGNAL, Kind.SIGNAL, Kind.DATAGRAM),
        *(Kind.DATAGRAM, 77, Kind.FIN, Kind.CLOSE, Kind.CLOSE, Kind.ABORT),
    ]
    bodies = [item[1] for item in items]
    assert all(isinstance(body, bytes) for body in bodies)
    hello, _, _, more, ack, empty, signal, _, _, last, fin, _, _, abort = map(bytes, bodies)  # type: ignore[arg-type]
    assert frames.read_hello(hello) == (True, STATE)
    assert more == b"some more of it"
    assert frames.read_ack(ack) == (STATE, 1 << 33)
    assert frames.read_signal(empty) == (3, b"")
    assert frames.read_signal(signal) == (1 << 31, b"x" * frames.MOST_SIGNAL)
    assert len(last) == frames.MOST_DATA
    assert frames.read_fin(fin) == 78
    assert frames.read_abort(abort) == (17, "no more")


def test_everything_octet_by_octet() -> None:
    reader = Reader()
    found = [item for octet in EVERYTHING for item in reader.feed(bytes([octet]))]
    assert told(found) == told(Reader().feed(EVERYTHING))
    assert reader.kept == 0


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_everything_in_random_portions(rng: Random, kind: type) -> None:
    whole = told(Reader().feed(EVERYTHING))
    for _ in range(200):
        reader, at, found = Reader(), 0, []
        while at < len(EVERYTHING):
            step = rng.choice((1, 3, 4, 11, 12, 13, 500, 16384, 70000))
            found += reader.feed(kind(EVERYTHING[at : at + step]))
            assert reader.kept < 17 * 1024
            at += step
        assert told(found) == whole


def test_a_whole_piece_is_handed_on_without_a_copy() -> None:
    octets = data(0, b"q" * 1000)
    (piece,) = Reader().feed(octets)
    assert isinstance(piece, Piece)
    assert isinstance(piece.data, memoryview)
    assert piece.data.obj is octets
    reader = Reader()
    reader.feed(octets[:20])
    rest = octets[20:900]
    (piece,) = reader.feed(rest)
    assert isinstance(piece, Piece)
    assert piece.data is rest
    assert reader.feed(b"") == []


def test_a_bytearray_may_be_changed_afterwards() -> None:
    octets = bytearray(data(0, b"before"))
    (piece,) = Reader().feed(octets)
    octets[:] = b"\0" * len(octets)
    assert isinstance(piece, Piece)
    assert bytes(piece.data) == b"before"


@pytest.mark.parametrize(
    ("octets", "complaint"),
    [
        (b"\0\0\0\0", "unknown kind 0"),
        (b"\x0a\0\0\0", "unknown kind 10"),
        (b"\xff\0\0\0", "unknown kind 255"),
        (frames.HEADER.pack(Kind.PING << 24 | 1), "PING with a body of 1 octets"),
        (frames.HEADER.pack(Kind.CLOSE << 24 | 9), "CLOSE with a body of 9 octets"),
        (frames.HEADER.pack(Kind.FIN << 24 | 7), "FIN with a body of 7 octets"),
        (frames.HEADER.pack(Kind.ACK << 24 | 29), "ACK with a body of 29 octets"),
        (frames.HEADER.pack(Kind.HELLO << 24 | 21), "HELLO with a body of 21 octets"),
        (frames.HEADER.pack(Kind.HELLO << 24 | 65), "HELLO with a body of 65 octets"),
        (frames.HEADER.pack(Kind.SIGNAL << 24 | 3), "SIGNAL with a body of 3 octets"),
        (frames.HEADER.pack(Kind.SIGNAL << 24 | 16389), "SIGNAL with a body of 16389 octets"),
        (frames.HEADER.pack(Kind.DATAGRAM << 24 | 16385), "DATAGRAM with a body of 16385 octets"),
        (frames.HEADER.pack(Kind.ABORT << 24 | 1), "ABORT with a body of 1 octets"),
        (frames.HEADER.pack(Kind.ABORT << 24 | 0xFFFFFF), "ABORT with a body of 16777215 octets"),
        (frames.data_header(0, 0), "DATA with 0 octets"),
        (frames.data_header(0, -1), "DATA with -1 octets"),
        (frames.data_header(0, frames.MOST_DATA + 1), f"DATA with {frames.MOST_DATA + 1} octets"),
        (frames.data_header(1 << 63, 1), "DATA at offset 9223372036854775808"),
    ],
)
def test_what_is_refused(octets: bytes, complaint: str) -> None:
    # However much follows, and however it is cut: no length is waited for that cannot be.
    for trailing in (b"", b"\0" * 100):
        with pytest.raises(Violation, match=complaint):
            Reader().feed(octets + trailing)
        with pytest.raises(Violation, match=complaint):
            feed_one_by_one(octets + trailing)


def test_another_version_and_an_unknown_role() -> None:
    body = bytearray(frames.hello(False, STATE)[4:])
    body[0] = 2
    with pytest.raises(Violation, match="speaks version 2") as told:
        frames.read_hello(bytes(body))
    assert told.value.code == frames.AbortCode.VERSION
    body[:2] = b"\x01\x02"
    with pytest.raises(Violation, match="unknown role 2"):
        frames.read_hello(bytes(body))


def test_a_later_version_may_say_more_in_its_hello() -> None:
    longer = frames.hello(False, STATE)[4:] + b"more"
    octets = frames.HEADER.pack(Kind.HELLO << 24 | len(longer)) + longer
    (frame,) = Reader().feed(octets)
    assert isinstance(frame, Frame)
    assert frames.read_hello(frame.body) == (False, STATE)


def test_a_reason_is_cut_and_fit_to_be_shown() -> None:
    (frame,) = Reader().feed(frames.abort(1, "x" * 5000))
    assert isinstance(frame, Frame)
    assert frames.read_abort(frame.body) == (1, "x" * frames.MOST_REASON)
    (frame,) = Reader().feed(frames.abort(1, "é" * 5000))
    assert isinstance(frame, Frame)
    assert frames.read_abort(frame.body)[1].startswith("éééé")
    assert frames.read_abort(b"\0\x07bad\x1b[31m\n\xff") == (
        7,
        "bad?[31m?\N{REPLACEMENT CHARACTER}",
    )


def test_a_frame_of_data_is_four_records() -> None:
    assert len(data(0, b"\0" * frames.MOST_DATA)) == frames.MOST_FRAME == 16 * 16384
