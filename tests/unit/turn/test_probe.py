"""What turnd is about to bind is tried first, and let go of again."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from stun.discovery import Transport
from stun.sansio import Address, Cause
from turn.daemon.probe import PORTS_TRIED, no_free_port, problem_with_listener, problem_with_relay
from turn.server.config import ListenAt


@pytest.fixture
def held() -> Iterator[int]:
    """A port of 127.0.0.1 that somebody has, UDP and TCP."""
    with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
        tcp.bind(("127.0.0.1", 0))
        tcp.listen()
        port = tcp.getsockname()[1]
        udp.bind(("127.0.0.1", port))
        yield port


@pytest.mark.parametrize("transport", Transport)
def test_a_place_that_can_be_had_is_free_afterwards(transport: Transport, held: int) -> None:
    place = Address("127.0.0.2", held)
    assert problem_with_listener(ListenAt(transport, place)) is None
    assert problem_with_listener(ListenAt(transport, place)) is None


@pytest.mark.parametrize("transport", Transport)
def test_a_place_in_use(transport: Transport, held: int) -> None:
    problem = problem_with_listener(ListenAt(transport, Address("127.0.0.1", held)))
    assert problem is not None
    assert problem.cause is Cause.ADDRESS_IN_USE
    assert problem.transport is transport


@pytest.mark.parametrize("host", ["192.0.2.77", "2001:db8::77"])
def test_addresses_of_others(host: str) -> None:
    problem = problem_with_listener(ListenAt(Transport.UDP, Address(host, 3478)))
    assert problem is not None
    assert problem.cause is Cause.ADDRESS_NOT_AVAILABLE
    assert problem_with_relay(host) is not None


def test_relays_of_this_machine() -> None:
    assert problem_with_relay("127.0.0.1") is None


def test_ranges_without_a_free_port(held: int) -> None:
    assert no_free_port("127.0.0.1", (held, held), lambda n: 0)
    assert not no_free_port("127.0.0.2", (held, held), lambda n: 0)


def test_wide_ranges_are_sampled(held: int) -> None:
    asked: list[int] = []

    def choose(size: int) -> int:
        asked.append(size)
        return held - 1024

    assert no_free_port("127.0.0.1", (1024, 65535), choose)
    assert asked == [65535 - 1024 + 1] * PORTS_TRIED
