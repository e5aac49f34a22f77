"""Batches of datagrams, on loopback sockets: with the system calls for many, and without them."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stun.sansio import Address
from turn.dataplane import mmsg
from turn.dataplane.mmsg import (
    LARGEST,
    MAX_SEGMENTED,
    MAX_SEGMENTS,
    Destination,
    Inbox,
    Outbox,
    join_received,
    runs,
    segment_size,
)
from turn.dataplane.names import pack_name, unpack_name

LOOPBACK = {4: "127.0.0.1", 6: "::1"}

Pair = tuple[socket.socket, socket.socket]


def bound(family: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if family == 6 else socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    sock.bind((LOOPBACK[family], 0))
    sock.setblocking(False)
    return sock


def address(sock: socket.socket) -> Address:
    return Address(*sock.getsockname()[:2])


@pytest.fixture(params=[4, 6], ids=["IPv4", "IPv6"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    with bound(request.param) as one, bound(request.param) as other:
        yield one, other


@pytest.fixture(params=["calls for many", "none"])
def either(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the system calls, and as on a system that lacks them."""
    if request.param == "none":
        monkeypatch.setattr(mmsg, "_CALLS", None)
        monkeypatch.setattr(mmsg, "HAS_MMSG", False)


def is_ipv6(sock: socket.socket) -> bool:
    return sock.family == socket.AF_INET6


def everything(sock: socket.socket) -> list[bytes]:
    got = []
    while True:
        try:
            got.append(sock.recv(LARGEST))
        except BlockingIOError:
            return got


class Waiting:
    """A destination, and octets that stay where they are."""

    def __init__(self, to: socket.socket) -> None:
        self.destination = Destination(pack_name(address(to)))
        self.memory = Inbox(1, named=False)
        self.used = 0

    def add(self, outbox: Outbox, data: bytes) -> None:
        if not self.destination.waiting:
            outbox.destinations.append(self.destination)
        self.destination.waiting += self.place(data)

    def place(self, data: bytes) -> tuple[int, int]:
        start = self.memory.addresses[0] + self.used
        self.memory.views[0][self.used : self.used + len(data)] = data
        self.used += len(data)
        return start, len(data)


# Runs. --------------------------------------------------------------------------------------------


@given(st.lists(st.sampled_from([0, 1, 100, 1200, 9000, 65000]), min_size=1, max_size=200))
def test_runs_are_what_the_kernel_takes(lengths: list[int]) -> None:
    found = runs(lengths)
    assert [n for first, count in found for n in range(first, first + count)] == [
        *range(len(lengths))
    ]
    for first, count in found:
        run = lengths[first : first + count]
        assert count <= MAX_SEGMENTS
        if count > 1:
            assert sum(run) <= MAX_SEGMENTED
            assert set(run[:-1]) == {run[0]}
            assert 0 < run[-1] <= run[0]


@pytest.mark.parametrize(
    ("lengths", "found"),
    [
        ([5], [(0, 1)]),
        ([5] * 64, [(0, 64)]),
        ([5] * 65, [(0, 64), (64, 1)]),
        ([5, 5, 3, 5], [(0, 3), (3, 1)]),
        ([3, 5, 5], [(0, 1), (1, 2)]),
        ([0, 0], [(0, 1), (1, 1)]),
        ([33000, 33000], [(0, 1), (1, 1)]),
    ],
)
def test_runs_are_as_long_as_can_be(lengths: list[int], found: list[tuple[int, int]]) -> None:
    assert runs(lengths) == found


# Receiving. ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("either")
def test_what_came_lies_behind_where_it_came_from(pair: Pair) -> None:
    one, other = pair
    inbox = Inbox(8, ipv6=is_ipv6(one))
    sent = [b"", b"a", b"\x40\x00\x00\x04abcd", bytes(1200), bytes(range(256)) * 250]
    for data in sent:
        other.sendto(data, address(one))
    lengths = inbox.receive(one)
    assert lengths == tuple(len(data) for data in sent)
    assert inbox.sizes is None
    for n, data in enumerate(sent):
        assert inbox.views[n][: len(data)] == data
        assert unpack_name(inbox.memory[inbox.names[n]]) == address(other)
    parts = [*inbox.parts(lengths)]
    assert [length for length, _, _ in parts] == [len(data) for data in sent]
    assert parts[2][2] == pack_name(address(other)) + b"\x40\x00"


@pytest.mark.usefixtures("either")
def test_no_more_is_read_than_asked_for(pair: Pair) -> None:
    one, other = pair
    inbox = Inbox(8, ipv6=is_ipv6(one))
    for n in range(10):
        other.sendto(b"%d" % n, address(one))
    assert inbox.receive(one, 5, 64) == (1, 1, 1)
    assert [bytes(inbox.views[n][:1]) for n in (5, 6, 7)] == [b"0", b"1", b"2"]
    assert inbox.receive(one, 0, 2) == (1, 1)
    assert inbox.receive(one) == (1,) * 5
    assert inbox.receive(one) == ()


@pytest.mark.usefixtures("either")
def test_slots_may_be_used_again_and_again(pair: Pair) -> None:
    one, other = pair
    inbox = Inbox(4, ipv6=is_ipv6(one))
    for round_ in range(20):
        for n in range(4):
            other.sendto(b"%d" % n * (round_ + 1), address(one))
        assert inbox.receive(one) == (round_ + 1,) * 4
        assert unpack_name(inbox.memory[inbox.names[3]]) == address(other)


@pytest.mark.usefixtures("either")
def test_a_pending_error_is_raised_once(pair: Pair) -> None:
    one, other = pair
    gone = address(other)
    other.close()
    one.connect(gone)
    one.send(b"anybody there?")
    inbox = Inbox(4, named=False)
    with pytest.raises(ConnectionRefusedError):
        inbox.receive(one)
    assert inbox.receive(one) == ()


@pytest.mark.skipif(not mmsg.HAS_MMSG, reason="the system does not join datagrams")
def test_joined_datagrams_are_cut(pair: Pair) -> None:
    one, other = pair
    assert join_received(one)
    inbox = Inbox(8, ipv6=is_ipv6(one))
    other.sendto(b"single", address(one))
    frames = [b"\x40" + bytes([n]) * 9 for n in range(5)] + [b"\x40\xff"]
    other.sendmsg([b"".join(frames)], segment_size(10), 0, address(one))
    other.sendto(b"", address(one))
    lengths = inbox.receive(one)
    assert lengths == (6, 52, 0)
    assert inbox.sizes == (0, 10, 0)
    parts = [
        (inbox.memory[start : start + length], key) for length, start, key in inbox.parts(lengths)
    ]
    assert [data for data, _ in parts] == [b"single", *frames, b""]
    assert [key[-2:] for _, key in parts[1:-1]] == [frame[:2] for frame in frames]
    assert {key[:-2] for _, key in parts} == {pack_name(address(other))}


def test_without_the_calls_nothing_is_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mmsg, "_CALLS", None)
    with bound(4) as sock:
        assert not join_received(sock)


# Sending. -----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("size", [0, 1, 1200, 2048, 2049, 60000])
def test_what_is_added_is_sent_with_the_next_flush(pair: Pair, size: int) -> None:
    one, other = pair
    outbox = Outbox(one)
    outbox.add(bytes(size), pack_name(address(other)))
    outbox.add(b"second", pack_name(address(other)))
    outbox.flush()
    assert everything(other) == [bytes(size), b"second"]
    assert outbox.sent == 2
    outbox.flush()
    assert everything(other) == []


@pytest.mark.usefixtures("either")
def test_more_than_there_are_slots_leaves_in_order(pair: Pair) -> None:
    one, other = pair
    outbox = Outbox(one)
    sent = [b"%d" % n for n in range(300)]
    for data in sent:
        outbox.add(data, pack_name(address(other)))
    outbox.flush()
    assert everything(other) == sent


@pytest.mark.usefixtures("either")
def test_several_destinations_each_get_their_own(pair: Pair) -> None:
    one, other = pair
    outbox = Outbox(one)
    first, second = Waiting(other), Waiting(one)
    ours, theirs = [b"%d" % n * 50 for n in range(70)], [b"x"] * 3 + [b""] + [b"last"]
    for data in ours:
        first.add(outbox, data)
    for data in theirs:
        second.add(outbox, data)
    outbox.names.append(pack_name(address(other)))
    outbox.vector += first.place(b"one by itself")
    outbox.flush()
    assert everything(other) in ([*ours, b"one by itself"], [b"one by itself", *ours])
    assert everything(one) == theirs
    assert outbox.sent == 76
    assert first.destination.waiting == []


@pytest.mark.usefixtures("either")
def test_joined_messages_are_sent_as_the_datagrams_that_they_are(pair: Pair) -> None:
    one, other = pair
    outbox = Outbox(one)
    waiting = Waiting(other)
    block = waiting.place(b"aaaabbbbcccc" + b"dd")
    outbox.joined.append((pack_name(address(other)), [*block], 4, 4))
    outbox.flush()
    assert everything(other) == [b"aaaa", b"bbbb", b"cccc", b"dd"]
    assert outbox.sent == 4
    assert outbox.joined == []


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EIO])
@pytest.mark.skipif(not mmsg.HAS_MMSG, reason="the system does not segment")
def test_what_cannot_be_segmented_is_sent_singly(
    pair: Pair, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = pair
    outbox = Outbox(one)
    waiting = Waiting(other)
    real = mmsg._CALLS
    assert real is not None
    refused = []

    def send(fd: int, headers: int, count: int, flags: int) -> int:
        if not refused:
            refused.append(count)
            mmsg.ctypes.set_errno(code)
            return -1
        return int(real[1](fd, headers, count, flags))

    monkeypatch.setattr(mmsg, "_CALLS", (real[0], send))
    for n in range(5):
        waiting.add(outbox, b"%d" % n)
    outbox.flush()
    assert refused
    assert everything(other) == [b"0", b"1", b"2", b"3", b"4"]
    assert outbox.sent == 5
    assert not outbox.refused
    # EIO says that it will never work here.
    assert outbox.segment is (code == errno.EINVAL)


@pytest.mark.usefixtures("either")
def test_what_the_system_refuses_is_counted_and_the_rest_is_sent(pair: Pair) -> None:
    one, other = pair
    outbox = Outbox(one)
    outbox.add(b"first", pack_name(address(other)))
    port_0 = address(other)._replace(port=0)
    outbox.add(b"to port 0", pack_name(port_0))
    outbox.add(b"last", pack_name(address(other)))
    outbox.flush()
    assert everything(other) == [b"first", b"last"]
    assert outbox.sent == 2
    assert outbox.refused == {errno.EINVAL: 1}


@pytest.mark.skipif(not mmsg.HAS_MMSG, reason="needs the calls")
def test_a_full_buffer_ends_the_batch(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = pair
    outbox = Outbox(one)
    real = mmsg._CALLS
    assert real is not None

    def send(fd: int, headers: int, count: int, flags: int) -> int:
        mmsg.ctypes.set_errno(errno.EAGAIN)
        return -1

    monkeypatch.setattr(mmsg, "_CALLS", (real[0], send))
    for _ in range(7):
        outbox.add(b"too much", pack_name(address(other)))
    outbox.flush()
    assert outbox.refused == {errno.EAGAIN: 7}
    assert outbox.sent == 0


@pytest.mark.usefixtures("either")
def test_an_earlier_error_does_not_cost_a_datagram(pair: Pair) -> None:
    one, other = pair
    with bound(6 if is_ipv6(one) else 4) as free:
        gone = address(free)
    one.connect(gone)
    outbox = Outbox(one)
    one.send(b"anybody there?")  # the ICMP error for it is pending when the next one is sent
    if mmsg.HAS_MMSG:
        outbox.add(b"to the other", pack_name(address(other)))
        outbox.flush()
        assert everything(other) == [b"to the other"]
        assert not outbox.refused


def test_what_is_forgotten_is_not_sent(pair: Pair) -> None:
    one, other = pair
    outbox = Outbox(one)
    kept, forgotten = Waiting(other), Waiting(other)
    for n in range(4):
        kept.add(outbox, b"kept %d" % n)
        forgotten.add(outbox, b"forgotten %d" % n)
    outbox.joined.append((forgotten.destination.name, [*forgotten.place(b"gone")], 2, 2))
    outbox.forget(forgotten.destination)
    outbox.flush()
    assert everything(other) == [b"kept %d" % n for n in range(4)]


def test_old_kernels_have_no_segmentation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mmsg, "UDP_SEGMENT", 12345)
    mmsg.has_segmentation.cache_clear()
    try:
        assert not mmsg.has_segmentation()
        monkeypatch.setattr(mmsg, "_LINUX", False)
        mmsg.has_segmentation.cache_clear()
        assert not mmsg.has_segmentation()
    finally:
        mmsg.has_segmentation.cache_clear()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_reply_goes_to_where_each_came_from(host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with ExitStack() as stack:
        own, *others = (
            stack.enter_context(socket.socket(family, socket.SOCK_DGRAM)) for _ in "123"
        )
        for sock in (own, *others):
            sock.bind((host, 0))
            sock.setblocking(False)
        for n, other in enumerate(others):
            other.sendto(b"question %d" % n, own.getsockname())
        inbox, outbox = Inbox(8, ipv6=is_ipv6(own)), Outbox(own)
        lengths = inbox.receive(own)
        starts = [start for _, start, _ in inbox.parts(lengths)]
        for start in starts:
            inbox.memory[start : start + 8] = b"answer  "
        outbox.reply(inbox, starts, 10)
        assert [everything(other) for other in others] == [[b"answer   0"], [b"answer   1"]]
        assert outbox.sent == 2
