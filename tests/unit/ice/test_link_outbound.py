"""What is kept for sending, against the simplest thing that could do the same."""

from __future__ import annotations

from random import Random

from ice.link.frames import MOST_DATA, Piece, Reader
from ice.link.outbound import GATHERED, Outbound


def payload(frame: bytes) -> tuple[int, bytes]:
    (piece,) = Reader().feed(frame)
    assert isinstance(piece, Piece)
    return piece.offset, bytes(piece.data)


def test_any_part_of_what_is_kept_can_be_framed(rng: Random) -> None:
    for _ in range(40):
        kept, written, acked = Outbound(), b"", 0
        for _ in range(300):
            match rng.randrange(4):
                case 0 | 1:
                    octets = rng.randbytes(rng.choice((1, 5, 1000, GATHERED - 1, GATHERED, 70000)))
                    kept.write(rng.choice((bytes, bytearray, memoryview))(octets))
                    written += octets
                case 2 if len(kept):
                    offset = rng.randrange(acked, len(written))
                    length = min(rng.choice((1, 100, MOST_DATA)), len(written) - offset)
                    frame = kept.frame(offset, length)
                    assert payload(frame) == (offset, written[offset : offset + length])
                case 3:
                    acked = rng.randint(acked, len(written))
                    kept.acknowledge(acked)
            assert (kept.base, kept.end, len(kept)) == (acked, len(written), len(written) - acked)


def test_a_cursor_that_goes_on_and_one_that_goes_back(rng: Random) -> None:
    kept = Outbound()
    written = rng.randbytes(500_000)
    for at in range(0, len(written), 50_000):
        kept.write(written[at : at + 50_000])
    for start in (0, 0, 123_456, 0, 499_999):
        offset, got = start, b""
        while offset < kept.end:
            length = min(MOST_DATA, kept.end - offset)
            got += payload(kept.frame(offset, length))[1]
            offset += length
        assert got == written[start:]


def test_a_large_write_is_not_copied_until_it_is_framed() -> None:
    kept = Outbound()
    octets = b"x" * 1_000_000
    kept.write(octets)
    assert kept._chunks[0] is octets


def test_what_the_caller_may_change_is_copied() -> None:
    kept = Outbound()
    octets = bytearray(b"a" * 20_000)
    kept.write(octets)
    octets[:] = b"b" * 20_000
    assert payload(kept.frame(0, 20_000))[1] == b"a" * 20_000


def test_a_view_of_wider_items_counts_in_octets() -> None:
    kept = Outbound()
    kept.write(memoryview(b"12345678").cast("I"))
    assert kept.end == 8
    assert payload(kept.frame(0, 8))[1] == b"12345678"


def test_single_octets_are_kept_together() -> None:
    kept = Outbound()
    for at in range(10_000):
        kept.write(b"x")
        kept.frame(at, 1)
    assert len(kept._chunks) == 1


def test_the_end_counts_as_one() -> None:
    kept = Outbound()
    kept.write(b"abc")
    assert Outbound().final is None
    kept.ended = True
    assert kept.final == 4
    kept.acknowledge(4)
    assert kept.base == kept.end == 3
