"""What counts as an answer to a request over UDP."""

from __future__ import annotations

import random
from collections import deque

import pytest

from nattype.observations import Change
from nattype.probe.bench import Bench
from nattype.probe.requests import Inquiry
from nattype.probe.strand import Strands
from stun import attributes
from stun.codec import Message, decode, encode
from stun.errors import Dropped, DropReason
from stun.sansio import MILLISECOND, Address, Opened, OpenUdp, Received, Transmit

A, B = Address("192.31.196.10", 3478), Address("192.175.48.10", 3479)
MAPPED = Address("192.52.193.2", 40000)


class Rig:
    def __init__(self, change: Change = Change.NONE, *, anywhere: bool = False) -> None:
        self.outputs: deque[object] = deque()
        self.strands = Strands()
        self.bench = Bench(self.strands, self.outputs, "192.168.1.2", 1, random.Random(0).randbytes)
        self.local = Address("192.168.1.2", 50000)
        self.inquiry: Inquiry

        async def ask() -> None:
            socket = await self.bench.udp()
            expected = B if change is Change.BOTH else A
            self.inquiry = socket.inquire(A, change=change, expected=expected, anywhere=anywhere)
            self.bench.put(self.inquiry.send(self.strands.now))

        self.strands.spawn(ask())
        self.strands.run(0)
        order = self.outputs.popleft()
        assert isinstance(order, OpenUdp)
        self.bench.on_socket(Opened(order.handle, self.local))
        self.strands.run(0)
        sent = self.outputs.popleft()
        assert isinstance(sent, Transmit)
        self.request = decode(sent.data)

    def answer(self, source: Address = A, *, local: Address | None = None, at: int = 0) -> None:
        message = Message.success(self.request)
        message.add(attributes.XOR_MAPPED_ADDRESS, MAPPED)
        self.give(message, source, local=local, at=at)

    def give(
        self, message: Message, source: Address = A, *, local: Address | None = None, at: int = 0
    ) -> None:
        self.bench.receive(Received(encode(message), source, local or self.local), at)

    def dropped(self) -> list[DropReason]:
        return [output.reason for output in self.outputs if isinstance(output, Dropped)]


def test_an_answer() -> None:
    rig = Rig()
    rig.answer(at=20 * MILLISECOND)
    asked = rig.inquiry.result(0)
    assert asked.answered
    assert (asked.source, asked.mapped, asked.rtt) == (A, MAPPED, 20 * MILLISECOND)
    assert asked.sends == 1
    assert rig.dropped() == []


def test_no_round_trip_is_told_after_a_retransmission() -> None:
    rig = Rig()
    again = rig.inquiry.send(MILLISECOND)
    assert again.data == encode(rig.request)
    rig.answer(at=20 * MILLISECOND)
    assert rig.inquiry.result(0).rtt is None


def test_a_second_answer_is_dropped() -> None:
    rig = Rig()
    rig.answer()
    rig.answer()
    assert rig.dropped() == [DropReason.UNKNOWN_TRANSACTION]


def test_an_answer_from_elsewhere_is_remembered_and_does_not_count() -> None:
    rig = Rig()
    stranger = Address("198.51.100.1", 3478)
    rig.answer(stranger)
    asked = rig.inquiry.result(0)
    assert not asked.answered
    assert asked.strange == stranger
    assert rig.dropped() == [DropReason.UNEXPECTED_SOURCE]
    rig.answer()
    assert rig.inquiry.result(0).answered


def test_an_answer_from_the_primary_to_a_request_for_a_change_is_seen_as_what_it_is() -> None:
    rig = Rig(Change.BOTH)
    wanted = rig.request.get(attributes.CHANGE_REQUEST)
    assert wanted == (True, True)
    rig.answer(A)
    asked = rig.inquiry.result(0)
    assert asked.source == A
    assert not asked.answered


def test_an_answer_from_where_it_was_asked_for() -> None:
    rig = Rig(Change.BOTH)
    rig.answer(B)
    assert rig.inquiry.result(0).answered


@pytest.mark.parametrize("anywhere", [False, True])
def test_an_answer_at_another_socket(anywhere: bool) -> None:
    rig = Rig(anywhere=anywhere)
    elsewhere = Address("192.168.1.2", 50001)
    rig.answer(local=elsewhere)
    asked = rig.inquiry.result(0)
    assert asked.answered is anywhere
    assert asked.arrived_at == (elsewhere if anywhere else None)


def test_an_error_response() -> None:
    rig = Rig()
    rig.give(Message.error(rig.request, 420))
    asked = rig.inquiry.result(0)
    assert asked.error == 420
    assert not asked.answered


def test_a_malformed_attribute_is_as_good_as_absent() -> None:
    rig = Rig()
    message = Message.success(rig.request)
    message.attributes.append((attributes.XOR_MAPPED_ADDRESS.code, b"\x00\x09"))
    rig.give(message)
    asked = rig.inquiry.result(0)
    assert asked.answered
    assert asked.mapped is None


def test_what_old_servers_say() -> None:
    rig = Rig()
    message = Message.success(rig.request)
    message.add(attributes.MAPPED_ADDRESS, MAPPED).add(attributes.CHANGED_ADDRESS, B)
    rig.give(message)
    asked = rig.inquiry.result(0)
    assert (asked.mapped, asked.plain_mapped, asked.other) == (MAPPED, None, B)
