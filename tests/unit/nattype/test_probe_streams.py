"""STUN over a stream: cut anywhere, garbage, and the end."""

from __future__ import annotations

import random
from collections import deque
from typing import Any

import pytest

from nattype.probe.bench import Bench
from nattype.probe.strand import Strand, Strands
from nattype.probe.streams import Stream
from stun import attributes
from stun.attributes import ConnectBack
from stun.codec import Message, decode, encode
from stun.errors import Dropped, DropReason
from stun.registry import Method
from stun.sansio import (
    MILLISECOND,
    Address,
    Arrived,
    Cause,
    Closed,
    Connected,
    Dial,
    Shut,
    Write,
)

A = Address("192.31.196.10", 3478)
LOCAL = Address("192.168.1.2", 50000)
MAPPED = Address("192.52.193.2", 40000)


class Rig:
    def __init__(self) -> None:
        self.outputs: deque[Any] = deque()
        self.strands = Strands()
        self.bench = Bench(self.strands, self.outputs, LOCAL.host, 1, random.Random(0).randbytes)
        dialling = self.bench.start_dial(A)
        order = self.outputs.popleft()
        assert order == Dial(1, Address(LOCAL.host, 0), A)
        self.bench.on_socket(Connected(1, LOCAL, A))
        stream = dialling.outcome.value
        assert isinstance(stream, Stream)
        self.stream = stream

    def ask(self, **rest: Any) -> Strand[Any]:
        strand = self.strands.spawn(self.stream.ask(100 * MILLISECOND, **rest))
        self.strands.run(0)
        write = self.outputs.popleft()
        assert isinstance(write, Write)
        self.request = decode(write.data)
        return strand

    def feed(self, data: bytes, now: int = 0) -> None:
        self.bench.on_socket(Arrived(1, data))
        self.strands.run(now)

    def answer(self) -> bytes:
        message = Message.success(self.request)
        return encode(message.add(attributes.XOR_MAPPED_ADDRESS, MAPPED))

    def of(self, kind: type) -> list[Any]:
        return [output for output in self.outputs if isinstance(output, kind)]


def test_an_answer_cut_into_single_octets() -> None:
    rig = Rig()
    strand = rig.ask()
    for octet in rig.answer():
        assert not strand.done
        rig.feed(bytes([octet]))
    asked, message = strand.ended.value
    assert asked.answered
    assert (asked.mapped, asked.local) == (MAPPED, LOCAL)
    assert message is not None


def test_an_answer_and_a_report_at_once() -> None:
    rig = Rig()
    strand = rig.ask(connect_back=ConnectBack(1, 8, 0, 500))
    assert rig.request.get(attributes.CONNECT_BACK) == ConnectBack(1, 8, 0, 500)
    report = encode(Message.indication(Method.BINDING, bytes(12)))
    rig.feed(rig.answer() + report)
    assert strand.done
    assert len(rig.stream.indications) == 1
    assert rig.stream.news.done


def test_silence_ends_with_the_time_given() -> None:
    rig = Rig()
    strand = rig.ask()
    rig.strands.run(100 * MILLISECOND)
    asked, message = strand.ended.value
    assert not asked.answered
    assert message is None
    # What comes later is nobody's.
    rig.feed(rig.answer(), 200 * MILLISECOND)
    assert [d.reason for d in rig.of(Dropped)] == [DropReason.UNKNOWN_TRANSACTION]


def test_the_end_of_the_stream_ends_the_waiting() -> None:
    rig = Rig()
    strand = rig.ask()
    rig.bench.on_socket(Closed(1, Cause.RESET))
    rig.strands.run(0)
    assert strand.done
    assert rig.stream.ended.value is Cause.RESET
    # Asking again sends nothing.
    again = rig.strands.spawn(rig.stream.ask(MILLISECOND))
    rig.strands.run(0)
    assert again.done
    assert rig.of(Write) == []


@pytest.mark.parametrize("garbage", [b"HTTP/1.1 400 Bad Request\r\n\r\n", bytes(64), b"\xff" * 9])
def test_what_is_not_stun_closes_the_stream_with_a_reason(garbage: bytes) -> None:
    rig = Rig()
    rig.ask()
    rig.feed(garbage)
    assert len(rig.of(Dropped)) == 1
    assert rig.of(Shut) == [Shut(1)]
    assert rig.stream.ended.done


def test_a_request_from_the_server_is_dropped() -> None:
    rig = Rig()
    rig.feed(encode(Message.request(Method.BINDING, bytes(12))))
    assert [d.reason for d in rig.of(Dropped)] == [DropReason.UNEXPECTED_CLASS]


def test_closing_twice_shuts_once() -> None:
    rig = Rig()
    rig.stream.close()
    rig.stream.close()
    assert rig.of(Shut) == [Shut(1)]


def test_an_attempt_that_is_given_up_is_shut() -> None:
    rig = Rig()
    strand = rig.strands.spawn(rig.bench.dial(A, 10 * MILLISECOND))
    rig.strands.run(0)
    rig.strands.run(10 * MILLISECOND)
    stream, dialled = strand.ended.value
    assert stream is None
    assert (dialled.connected, dialled.cause) == (False, Cause.TIMED_OUT)
    assert rig.of(Shut) == [Shut(2)]
    cancelled = rig.strands.spawn(rig.bench.dial(A, 10 * MILLISECOND))
    rig.strands.run(11 * MILLISECOND)
    cancelled.cancel()
    assert rig.of(Shut)[-1] == Shut(3)
