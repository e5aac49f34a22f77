"""The batch socket by itself: how much one drain takes, and pending errors."""

from __future__ import annotations

import errno
import socket
import sys
from collections.abc import Iterator

import pytest

from stun.sansio import Address, Received, Undeliverable
from stun.udp import BATCH, UdpSocket

LOCALHOST = "127.0.0.1"
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="IP_RECVERR is Linux's")


@pytest.fixture
def sock() -> Iterator[UdpSocket]:
    made = UdpSocket(1, Address(LOCALHOST, 0))
    yield made
    made.close()


def fill(to: UdpSocket, number: int) -> Address:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.bind((LOCALHOST, 0))
        for n in range(number):
            sender.sendto(bytes([n % 256]), to.local)
        return Address(*sender.getsockname())


def test_nothing_to_drain(sock: UdpSocket) -> None:
    assert sock.drain() == ([], [])


def test_a_drain_takes_a_batch_and_leaves_the_rest(sock: UdpSocket) -> None:
    source = fill(sock, BATCH + 3)
    packets, errors = sock.drain()
    assert len(packets) == BATCH
    assert errors == []
    assert packets[0] == Received(b"\x00", source, sock.local)
    assert len(sock.drain()[0]) == 3
    assert sock.received == BATCH + 3


def test_the_limit_is_the_callers(sock: UdpSocket) -> None:
    fill(sock, 10)
    assert [len(sock.drain(4)[0]) for _ in range(4)] == [4, 4, 2, 0]


def test_one_family_a_socket() -> None:
    six = UdpSocket(1, Address("::", 0))
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as four:
            four.bind(("0.0.0.0", six.local.port))  # taken, were the socket for both
    finally:
        six.close()


@linux_only
def test_an_error_that_a_send_took_does_not_keep_the_socket_ready(sock: UdpSocket) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as gone:
        gone.bind((LOCALHOST, 0))
        nobody = Address(*gone.getsockname())
    sock.send(b"x", nobody, sock.local)
    sock.send(b"y", sock.local, sock.local)  # meets the error, and is sent all the same
    assert sock.sent == 2
    packets, errors = sock.drain()
    assert [packet.data for packet in packets] == [b"y"]
    packets, more = sock.drain()
    assert packets == []
    assert errors + more == [Undeliverable(sock.local, nobody, 3, 3)]
    assert sock.drain() == ([], [])


class Failing:
    """A socket whose sends fail as told."""

    def __init__(self, *errors: int) -> None:
        self.errors = list(errors)
        self.tried = 0

    def sendto(self, data: bytes, to: Address) -> None:
        self.tried += 1
        if self.errors:
            raise OSError(self.errors.pop(0), "")


@pytest.mark.parametrize(
    ("number", "tries", "reason"),
    [
        (errno.EAGAIN, 1, "the send buffer is full"),
        (errno.ENOBUFS, 1, "the interface queue is full"),
        (errno.EPERM, 1, "a local firewall rule"),
        (errno.EMSGSIZE, 1, "larger than the interface or the protocol allows"),
        (errno.ENETUNREACH, 2, "no route to the network"),
        (errno.EHOSTUNREACH, 2, "no route to the host"),
        (errno.ECONNREFUSED, 2, "ECONNREFUSED"),
    ],
)
def test_why_a_datagram_was_not_sent(sock: UdpSocket, number: int, tries: int, reason: str) -> None:
    real, failing = sock.sock, Failing(number, number)
    sock.sock = failing  # type: ignore[assignment]
    try:
        sock.send(b"x", Address(LOCALHOST, 9), sock.local)
    finally:
        sock.sock = real
    assert sock.refused == {reason: 1}
    assert failing.tried == tries
    assert sock.sent == 0
