"""The timeline, and its pcapng file read back by a reader that knows only the format's text."""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass, field
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ice.base import Base
from ice.timeline import LONGEST, Event, Packet, Timeline, write_pcapng
from stun.sansio import MILLISECOND, SECOND, Address

UDP = Base(1, 0, 1, "udp", Address("10.0.0.1", 5000))
UDP6 = Base(2, 0, 1, "udp", Address("fe80::1%eth0", 5000))
TCP = Base(3, 0, 1, "tcp", Address("10.0.0.1", 5001))
RELAYED = Base(4, 0, 1, "udp", Address("198.51.100.1", 50000), relay="turn:relay.example")
PEER = Address("192.0.2.1", 6000)
PEER6 = Address("fe80::2", 6000)


# A reader of pcapng, as draft-ietf-opsawg-pcapng describes it. ------------------------------------


@dataclass
class Read:
    time: int
    octets: bytes = b""
    size: int = 0
    comments: list[str] = field(default_factory=list)
    flags: int = 0
    text: str = ""


def options(data: bytes) -> list[tuple[int, bytes]]:
    found = []
    while data:
        code, size = struct.unpack_from("<HH", data)
        if code == 0:
            assert size == 0
            assert len(data) == 4, "octets after the end of options"
            return found
        assert 4 + size <= len(data)
        found.append((code, data[4 : 4 + size]))
        assert data[4 + size : 4 + (size + 3 & -4)].strip(b"\0") == b""
        data = data[4 + (size + 3 & -4) :]
    raise AssertionError("options without an end")


def read(data: bytes) -> list[Read]:
    found: list[Read] = []
    kinds = []
    offset = 0
    while offset < len(data):
        kind, size = struct.unpack_from("<II", data, offset)
        assert size % 4 == 0
        assert struct.unpack_from("<I", data, offset + size - 4) == (size,)
        body = data[offset + 8 : offset + size - 4]
        kinds.append(kind)
        if kind == 0x0A0D0D0A:
            order, major, minor, length = struct.unpack_from("<IHHq", body)
            assert (order, major, minor, length) == (0x1A2B3C4D, 1, 0, -1)
            assert dict(options(body[16:]))[4] == b"natkit"
        elif kind == 1:
            linktype, reserved, snap = struct.unpack_from("<HHI", body)
            assert (linktype, reserved, snap) == (101, 0, 0)
            assert dict(options(body[8:])) == {2: b"ice", 9: b"\x09"}
        elif kind == 6:
            interface, high, low, captured, original = struct.unpack_from("<IIIII", body)
            assert interface == 0
            rest = options(body[20 + (captured + 3 & -4) :])
            found.append(
                Read(
                    high << 32 | low,
                    body[20 : 20 + captured],
                    original,
                    [value.decode() for code, value in rest if code == 1],
                    struct.unpack("<I", dict(rest)[2])[0],
                )
            )
        elif kind == 9:
            lines = dict(line.split("=", 1) for line in body.rstrip(b"\0").decode().splitlines())
            found.append(Read(int(lines["__REALTIME_TIMESTAMP"]) * 1000, text=lines["MESSAGE"]))
        else:
            raise AssertionError(f"block of type {kind}")
        offset += size
    assert offset == len(data)
    assert kinds[:2] == [0x0A0D0D0A, 1]
    return found


def ones_sum(data: bytes) -> int:
    """Add up 16-bit words in one's complement, a word at a time; 0xffff is what has to come out."""
    total = 0
    for n in range(0, len(data), 2):
        total += int.from_bytes(data[n : n + 2].ljust(2, b"\0"))
        total = (total & 0xFFFF) + (total >> 16)
    return total


@dataclass
class Segment:
    protocol: int
    source: Address
    destination: Address
    payload: bytes
    sequence: int = 0
    acknowledged: int = 0


def dissect(octets: bytes, *, whole: bool = True) -> Segment:
    if octets[0] >> 4 == 4:
        assert octets[0] == 0x45
        assert ones_sum(octets[:20]) == 0xFFFF
        assert octets[6:8] == b"\x40\0", "RFC 6864: atomic, so the identification means nothing"
        length = int.from_bytes(octets[2:4])
        protocol, begin, end, inner = octets[9], octets[12:16], octets[16:20], octets[20:]
        assert not whole or length == len(octets)
    else:
        assert octets[0] >> 4 == 6
        length = int.from_bytes(octets[4:6])
        protocol, begin, end, inner = octets[6], octets[8:24], octets[24:40], octets[40:]
        assert not whole or length == len(inner)
    if whole:
        pseudo = begin + end + len(inner).to_bytes(4) + protocol.to_bytes(4)
        assert ones_sum(pseudo + inner) == 0xFFFF
    hosts = str(ip_address(begin)), str(ip_address(end))
    ports = struct.unpack_from(">HH", inner)
    ends = Address(hosts[0], ports[0]), Address(hosts[1], ports[1])
    if protocol == 17:
        assert not whole or int.from_bytes(inner[4:6]) == len(inner)
        # Zero says that there is no checksum (RFC 768): so for what was cut, and only for it.
        assert (inner[6:8] == b"\0\0") is not whole
        return Segment(17, *ends, inner[8:])
    assert protocol == 6
    assert inner[12:14] == b"\x50\x18"
    sequence, acknowledged = struct.unpack_from(">II", inner, 4)
    return Segment(6, *ends, inner[20:], sequence, acknowledged)


def written(timeline: Timeline, epoch: int = 0) -> list[Read]:
    file = io.BytesIO()
    write_pcapng(timeline, file, epoch=epoch)
    return read(file.getvalue())


# --------------------------------------------------------------------------------------------------


def test_packets_come_back_with_their_headers() -> None:
    timeline = Timeline()
    timeline.sent(UDP, PEER, b"question", 1 * MILLISECOND)
    timeline.received(UDP, PEER, b"answer!", 20 * MILLISECOND + 1)
    timeline.sent(UDP6, PEER6, b"", 30 * MILLISECOND)
    epoch = 1_700_000_000 * SECOND
    first, second, third = written(timeline, epoch)
    assert first.time == epoch + 1 * MILLISECOND
    assert second.time == epoch + 20 * MILLISECOND + 1, "to the nanosecond"
    assert (first.flags, second.flags) == (2, 1)  # outbound, inbound
    assert dissect(first.octets) == Segment(17, UDP.address, PEER, b"question")
    assert dissect(second.octets) == Segment(17, PEER, UDP.address, b"answer!")
    assert dissect(third.octets) == Segment(17, Address("fe80::1", 5000), PEER6, b"")
    assert first.size == len(first.octets)


def test_a_tap_records_and_lets_pass() -> None:
    timeline = Timeline()
    sent: list[tuple[Base, Address, bytes, int]] = []
    send = timeline.tap(lambda *arguments: sent.append(arguments))
    send(UDP, PEER, b"x", 7)
    assert sent == [(UDP, PEER, b"x", 7)]
    assert list(timeline) == [Packet(7, True, UDP, PEER, b"x", 1)]


def test_a_connection_has_running_sequence_numbers_and_frames() -> None:
    """RFC 4571: each packet after its length."""
    timeline = Timeline()
    timeline.sent(TCP, PEER, b"abc", 1)
    timeline.received(TCP, PEER, b"defg", 2)
    timeline.sent(TCP, PEER, b"h", 3)
    timeline.sent(TCP, Address("192.0.2.1", 6001), b"i", 4)
    segments = [dissect(each.octets) for each in written(timeline)]
    assert [s.payload for s in segments] == [b"\0\3abc", b"\0\4defg", b"\0\1h", b"\0\1i"]
    assert [(s.sequence, s.acknowledged) for s in segments] == [(1, 1), (1, 6), (6, 7), (1, 1)]
    assert {s.protocol for s in segments} == {6}


def test_a_relayed_packet_says_through_what() -> None:
    timeline = Timeline()
    timeline.sent(RELAYED, PEER, b"x", 1)
    (only,) = written(timeline)
    assert only.comments == ["through the relay turn:relay.example"]
    assert dissect(only.octets).source == RELAYED.address


def test_events_of_a_packets_moment_are_its_comments_and_others_stand_alone() -> None:
    timeline = Timeline()
    timeline.event("gathering began", 1 * MILLISECOND)
    timeline.event("check 1", 2 * MILLISECOND)
    timeline.sent(UDP, PEER, b"a", 2 * MILLISECOND)
    timeline.event("of the first", 2 * MILLISECOND)
    timeline.sent(UDP, PEER, b"b", 2 * MILLISECOND)
    timeline.event("of the second", 2 * MILLISECOND)
    timeline.event("consent was\nlost", 3 * MILLISECOND)
    began, first, second, lost = written(timeline)
    assert (began.text, began.time) == ("gathering began", MILLISECOND)
    assert first.comments == ["check 1", "of the first"]
    assert second.comments == ["of the second"]
    assert lost.text == "consent was lost"


def test_a_name_and_mixed_families_make_a_file_all_the_same() -> None:
    timeline = Timeline()
    timeline.sent(UDP, Address("1234.local", 6000), b"x", 1)
    timeline.sent(UDP, PEER6, b"x", 2)
    first, second = written(timeline)
    assert dissect(first.octets).destination == Address("0.0.0.0", 6000)
    assert dissect(second.octets).source.host in {"::ffff:10.0.0.1", "::ffff:a00:1"}


@pytest.mark.parametrize("base", [UDP, UDP6, TCP])
def test_a_long_packet_is_cut_and_says_so(base: Base) -> None:
    timeline = Timeline()
    timeline.sent(base, PEER6 if base is UDP6 else PEER, bytes(65535), 1)
    (only,) = written(timeline)
    assert len(only.octets) < only.size
    assert only.size > 65535
    assert len(dissect(only.octets, whole=False).payload) <= LONGEST + 2


def test_a_checksum_of_zero_is_written_as_its_complement() -> None:
    """RFC 768: "If the computed checksum is zero, it is transmitted as all ones"."""
    timeline = Timeline()
    timeline.sent(UDP, PEER, b"\0\0", 1)
    (only,) = written(timeline)
    timeline = Timeline()
    timeline.sent(UDP, PEER, only.octets[26:28], 1)  # what was missing to make the sum all ones
    (only,) = written(timeline)
    assert only.octets[26:28] == b"\xff\xff"


def test_the_first_and_the_latest_are_kept() -> None:
    timeline = Timeline(most=10)
    for n in range(100):
        timeline.event(str(n), n)
    assert len(timeline) == 10
    assert [e.what for e in timeline if isinstance(e, Event)] == [
        "0", "1", "2", "3", "4", "95", "96", "97", "98", "99",
    ]  # fmt: skip
    assert timeline.left_out == 90


def test_memory_is_bounded() -> None:
    timeline = Timeline(most=4)
    for n in range(50):
        timeline.event("x" * 1_000_000, n)
        timeline.received(UDP, PEER, bytes(65535), n)
    sizes = [len(e.data if isinstance(e, Packet) else e.what) for e in timeline]
    assert max(sizes) <= LONGEST
    assert len(sizes) == 4


entries = st.lists(
    st.one_of(
        st.tuples(st.just("event"), st.text(max_size=30), st.integers(0, 5)),
        st.tuples(
            st.sampled_from(["sent", "received"]), st.binary(max_size=60), st.integers(0, 5)
        ),
    ),
    max_size=20,
)  # fmt: skip


@given(entries, st.sampled_from([UDP, UDP6, TCP, RELAYED]))
def test_whatever_is_recorded_comes_back(
    todo: list[tuple[str, str | bytes, int]], base: Base
) -> None:
    peer = PEER6 if base is UDP6 else PEER
    timeline = Timeline(most=100)
    now = 0
    for kind, what, later in todo:
        now += later * MILLISECOND
        if isinstance(what, str):
            timeline.event(what, now)
        elif kind == "sent":
            timeline.sent(base, peer, what, now)
        else:
            timeline.received(base, peer, what, now)
    found = written(timeline)
    packets = [each for each in found if each.octets]
    skip = 2 if base is TCP else 0
    assert [dissect(each.octets).payload[skip:] for each in packets] == [
        what for _, what, _ in todo if isinstance(what, bytes)
    ]
    # Every event is there once, as a comment or by itself.
    relayed = [f"through the relay {base.relay}"] if base.relay else []
    told = [text for each in packets for text in each.comments[len(relayed) :]]
    alone = [each.text for each in found if not each.octets]
    events = [what for _, what, _ in todo if isinstance(what, str)]
    assert len(told) + len(alone) == len(events)
    assert sorted(" ".join(text.split()) for text in told + alone) == sorted(
        " ".join(text.split()) for text in events
    )
    assert [each.time for each in found] == sorted(each.time for each in found)
