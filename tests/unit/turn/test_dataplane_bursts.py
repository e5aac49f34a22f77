"""Bursts of a peer against the rate of its allocation, and what no kernel should join."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

import pytest

from stun.sansio import SECOND
from turn.dataplane.bursts import take_burst
from turn.dataplane.mmsg import MAX_SEGMENTS, Inbox
from turn.meter import Bucket, Meter

NOW = 1000 * SECOND
CHANNEL = 0x4123


def make_flow(packet_rate: int = 0) -> Any:
    outbox = SimpleNamespace(destinations=[], joined=[], names=[], vector=[])
    return SimpleNamespace(
        name=b"the client", channel=CHANNEL, meter=Meter(Bucket(0, packet_rate)), waiting=[],
        outbox=outbox,
    )  # fmt: skip


def put(inbox: Inbox, slot: int, data: bytes) -> int:
    inbox.views[slot][: len(data)] = data
    return len(data)


def octets(vector: list[int]) -> list[bytes]:
    return [ctypes.string_at(at, n) for at, n in zip(vector[::2], vector[1::2], strict=True)]


def framed(data: bytes) -> bytes:
    return CHANNEL.to_bytes(2) + len(data).to_bytes(2) + data


@pytest.fixture
def inbox() -> Inbox:
    return Inbox(8, named=False)


def test_each_datagram_gets_its_header(inbox: Inbox) -> None:
    flow, sent = make_flow(), [b"one", b"", b"three" * 100]
    lengths = tuple(put(inbox, 2 + n, data) for n, data in enumerate(sent))
    assert take_burst(inbox, flow, 2, lengths, NOW) == 3
    assert octets(flow.waiting) == [framed(data) for data in sent]
    assert flow.outbox.destinations == [flow]
    assert flow.meter.usage.packets_to_client == 3
    assert flow.meter.usage.octets_to_client == sum(lengths)


@pytest.mark.parametrize("count", [2, 3, MAX_SEGMENTS])
@pytest.mark.parametrize("last", [1, 50, 100])
def test_parts_of_a_joined_datagram_get_theirs_in_place(
    inbox: Inbox, count: int, last: int
) -> None:
    flow = make_flow()
    parts = [bytes([n]) * 100 for n in range(count - 1)] + [b"\xff" * last]
    inbox.sizes = (100,)
    length = put(inbox, 0, b"".join(parts))
    assert take_burst(inbox, flow, 0, (length,), NOW) == count
    ((name, vector, segment, datagrams),) = flow.outbox.joined
    assert (name, segment, datagrams) == (b"the client", 104, count)
    assert octets(vector) == [b"".join(framed(part) for part in parts)]
    assert flow.meter.usage.octets_to_client == length


def test_more_parts_than_can_be_joined_again_leave_one_by_one(inbox: Inbox) -> None:
    flow, count = make_flow(), MAX_SEGMENTS + 1
    inbox.sizes = (10,)
    take_burst(inbox, flow, 0, (put(inbox, 0, bytes(10 * count)),), NOW)
    assert [datagrams for _, _, _, datagrams in flow.outbox.joined] == [1] * count
    assert [octets(vector) for _, vector, _, _ in flow.outbox.joined] == [
        [framed(bytes(10))]
    ] * count


def test_joined_and_single_ones_stay_in_order(inbox: Inbox) -> None:
    flow = make_flow()
    datagrams = [b"first", b"aabbc", b"", b"ddee", b"last"]
    inbox.sizes = (0, 2, 0, 2, 0)
    lengths = tuple(put(inbox, n, data) for n, data in enumerate(datagrams))
    assert take_burst(inbox, flow, 0, lengths, NOW) == 8
    sent = [b"".join(octets(vector)) for _, vector, _, _ in flow.outbox.joined]
    assert sent == [
        framed(b"first"),
        framed(b"aa") + framed(b"bb") + framed(b"c"),
        framed(b""),
        framed(b"dd") + framed(b"ee"),
        framed(b"last"),
    ]
    assert [count for _, _, _, count in flow.outbox.joined] == [1, 3, 1, 2, 1]
    assert flow.waiting == []


@pytest.mark.parametrize("joined", [False, True])
def test_over_the_rate_the_first_ones_pass(inbox: Inbox, joined: bool) -> None:
    flow = make_flow(packet_rate=3)
    if joined:
        inbox.sizes = (10,)
        lengths: tuple[int, ...] = (put(inbox, 0, b"".join(bytes([n]) * 10 for n in range(8))),)
    else:
        lengths = tuple(put(inbox, n, bytes([n]) * 10) for n in range(8))
    assert take_burst(inbox, flow, 0, lengths, NOW) == 8
    usage = flow.meter.usage
    assert usage.packets_to_client == 3
    assert usage.octets_to_client == 30
    assert usage.dropped == 5
    vector = flow.outbox.joined[0][1] if joined else flow.waiting
    assert b"".join(octets(vector)) == b"".join(framed(bytes([n]) * 10) for n in range(3))


def test_nothing_passes_where_there_is_no_credit(inbox: Inbox) -> None:
    flow = make_flow(packet_rate=1)
    assert flow.meter.take(1, NOW)
    inbox.sizes = (10,)
    assert take_burst(inbox, flow, 0, (put(inbox, 0, bytes(50)),), NOW) == 5
    assert flow.outbox.joined == []
    assert flow.meter.usage.dropped == 5
