"""One question, one answer: who is asked when, what ends it, and that nothing stays open."""

from __future__ import annotations

import random
from typing import Any

import pytest

from stun.attributes import XOR_MAPPED_ADDRESS
from stun.binding import STAGGER, Answered, BindingQuery, NotAnswered
from stun.codec import Message, decode, encode
from stun.discovery import Target, Transport
from stun.errors import ErrorResponse, TransactionTimedOut, TransportFailed
from stun.sansio import (
    MILLISECOND,
    SECOND,
    Address,
    Arrived,
    Cause,
    Closed,
    Connected,
    Dial,
    Instant,
    Opened,
    OpenUdp,
    Received,
    Shut,
    Transmit,
    Undeliverable,
    Write,
)

ONE, TWO = Address("192.0.2.1", 3478), Address("2001:db8::2", 3478)
MAPPED = Address("203.0.113.5", 54321)
UDP_ONE, UDP_TWO = Target(ONE, Transport.UDP), Target(TWO, Transport.UDP)
TCP_ONE = Target(ONE, Transport.TCP)
TLS_ONE = Target(ONE, Transport.TLS, "stun.example")


class Asked:
    """A query with the driver's part played by hand; sockets open at once, or as told."""

    def __init__(self, rng: random.Random, *targets: Target, patience: Instant = 10 * SECOND):
        self.query = BindingQuery(targets, patience=patience, entropy=rng.randbytes)
        self.now: Instant = SECOND
        self.open: set[int] = set()
        self.sent: list[Transmit] = []
        self.written: list[Write] = []
        self.dialled: list[Dial] = []
        self.told: list[Any] = []
        self.query.start(self.now)
        self.drain()

    def drain(self) -> None:
        while (output := self.query.poll()) is not None:
            match output:
                case OpenUdp(handle, local):
                    self.open.add(handle)
                    self.query.on_socket(Opened(handle, Address(local.host, handle)), self.now)
                case Dial(handle):
                    self.open.add(handle)
                    self.dialled.append(output)
                case Shut(handle):
                    self.open.discard(handle)
                case Transmit():
                    self.sent.append(output)
                case Write():
                    self.written.append(output)
                case _:
                    self.told.append(output)

    def until(self, at: Instant) -> None:
        while (due := self.query.deadline()) is not None and due <= at:
            self.now = max(self.now, due)
            self.query.on_deadline(self.now)
            self.drain()
        self.now = max(self.now, at)

    def after(self, duration: Instant) -> None:
        self.until(self.now + duration)

    def event(self, event: Any) -> None:
        self.query.on_socket(event, self.now)
        self.drain()

    def answer(self, sent: Transmit, source: Address | None = None, *, code: int = 0) -> None:
        request = decode(sent.data)
        response = Message.error(request, code) if code else Message.success(request)
        if not code:
            response.add(XOR_MAPPED_ADDRESS, MAPPED)
        packet = Received(encode(response), source or sent.destination, sent.source)
        self.query.receive(packet, self.now)
        self.drain()


def finished(asked: Asked) -> Any:
    assert asked.query.deadline() is None
    assert asked.open == set()
    (event,) = asked.told
    return event


def test_the_first_answer_ends_it(rng: random.Random) -> None:
    asked = Asked(rng, UDP_ONE, UDP_TWO)
    asked.after(30 * MILLISECOND)
    (sent,) = asked.sent
    asked.answer(sent)
    assert finished(asked) == Answered(MAPPED, sent.source, UDP_ONE, 30 * MILLISECOND)
    asked.answer(sent)
    assert len(asked.told) == 1


def test_the_next_target_is_asked_beside_a_slow_one(rng: random.Random) -> None:
    asked = Asked(rng, UDP_ONE, UDP_TWO)
    asked.after(STAGGER)
    assert [sent.destination for sent in asked.sent] == [ONE, TWO]
    asked.answer(asked.sent[1])
    assert finished(asked).server == UDP_TWO


def test_a_failure_moves_on_at_once(rng: random.Random) -> None:
    asked = Asked(rng, UDP_ONE, UDP_TWO)
    asked.event(Undeliverable(asked.sent[0].source, ONE, 3, 3))
    assert [sent.destination for sent in asked.sent] == [ONE, TWO]
    asked.answer(asked.sent[1])
    assert finished(asked).mapped == MAPPED


def test_a_socket_that_cannot_be_had_moves_on(rng: random.Random) -> None:
    asked = Asked(rng, TCP_ONE, UDP_TWO)
    asked.event(Closed(1, Cause.UNREACHABLE, "no route"))
    asked.open.discard(1)
    asked.answer(asked.sent[0])
    assert finished(asked).server == UDP_TWO


@pytest.mark.parametrize("target", [TCP_ONE, TLS_ONE])
def test_over_a_stream(rng: random.Random, target: Target) -> None:
    asked = Asked(rng, target)
    (dial,) = asked.dialled
    assert (dial.remote, dial.server_name) == (ONE, target.name)
    local = Address("198.51.100.7", 1234)
    asked.event(Connected(dial.handle, local, ONE))
    response = Message.success(decode(asked.written[0].data)).add(XOR_MAPPED_ADDRESS, MAPPED)
    asked.event(Arrived(dial.handle, encode(response)))
    assert finished(asked).mapped == MAPPED
    assert finished(asked).local == local


def test_the_last_error_is_told(rng: random.Random) -> None:
    asked = Asked(rng, UDP_ONE)
    asked.answer(asked.sent[0], code=500)
    error = finished(asked).error
    assert isinstance(error, ErrorResponse)
    assert error.code == 500


def test_an_answer_without_an_address_is_a_failure(rng: random.Random) -> None:
    asked = Asked(rng, UDP_ONE)
    sent = asked.sent[0]
    empty = encode(Message.success(decode(sent.data)))
    asked.query.receive(Received(empty, ONE, sent.source), asked.now)
    asked.drain()
    assert "no mapped address" in str(finished(asked).error)


def test_silence_ends_with_the_patience(rng: random.Random) -> None:
    asked = Asked(rng, UDP_ONE, UDP_TWO, patience=2 * SECOND)
    asked.after(2 * SECOND - 1)
    assert asked.told == []
    assert len(asked.sent) > 2, "requests are sent again"
    asked.after(1)
    assert isinstance(finished(asked).error, TransactionTimedOut)


def test_a_stranger_is_not_believed(rng: random.Random) -> None:
    asked = Asked(rng, UDP_ONE)
    asked.answer(asked.sent[0], source=Address("192.0.2.66", 3478))
    assert asked.told == []


def test_without_targets_there_is_no_answer(rng: random.Random) -> None:
    asked = Asked(rng)
    assert isinstance(finished(asked), NotAnswered)
    assert isinstance(finished(asked).error, TransportFailed)
