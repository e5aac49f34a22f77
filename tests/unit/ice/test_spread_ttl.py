"""A TTL of one datagram's own: on real sockets, on loopback."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from contextlib import closing

import pytest

from stun.sansio import Address, Transmit
from stun.udp import UdpSocket

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="IP_RECVTTL as Linux numbers it")

_IP_RECVTTL = 12
HOSTS = ["127.0.0.1", "::1"]


@pytest.fixture(params=HOSTS)
def sender(request: pytest.FixtureRequest) -> Iterator[UdpSocket]:
    with closing(UdpSocket(1, Address(request.param, 0))) as made:
        yield made


@pytest.fixture
def receiver(sender: UdpSocket) -> Iterator[socket.socket]:
    ipv6 = sender.local.is_ipv6
    with socket.socket(socket.AF_INET6 if ipv6 else socket.AF_INET, socket.SOCK_DGRAM) as made:
        made.bind((sender.local.host, 0))
        if ipv6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVHOPLIMIT, 1)
        else:
            made.setsockopt(socket.IPPROTO_IP, _IP_RECVTTL, 1)
        made.settimeout(5)
        yield made


def arrived(receiver: socket.socket) -> tuple[bytes, int]:
    data, ((_, _, hops),), _, _ = receiver.recvmsg(100, 100)
    return data, int.from_bytes(hops, sys.byteorder)


def test_it_is_of_this_datagram_alone(sender: UdpSocket, receiver: socket.socket) -> None:
    to = Address(*receiver.getsockname()[:2])
    sender.send_short(b"short", to, 3)
    sender.send(b"usual", to, sender.local)
    assert arrived(receiver) == (b"short", 3)
    data, hops = arrived(receiver)
    assert data == b"usual"
    assert hops > 3
    assert (sender.sent, sender.refused) == (2, {})


def test_elsewhere_the_socket_option_does_it(
    sender: UdpSocket, receiver: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stun.udp._LINUX", False)
    to = Address(*receiver.getsockname()[:2])
    sender.send_short(b"short", to, 3)
    sender.send(b"usual", to, sender.local)
    assert arrived(receiver) == (b"short", 3)
    assert arrived(receiver)[1] > 3


def test_what_cannot_be_sent_is_counted(sender: UdpSocket) -> None:
    sender.send_short(bytes(70_000), Address(sender.local.host, 9), 3)
    sender.send_short(b"", Address(sender.local.host, 99_999), 3)
    assert sender.sent == 0
    assert sum(sender.refused.values()) == 2


def test_a_pending_error_does_not_swallow_it(sender: UdpSocket) -> None:
    """An ICMP error of the packet before fails the next call, which has not been tried then."""
    with socket.socket(sender.sock.family, socket.SOCK_DGRAM) as closed:
        closed.bind((sender.local.host, 0))
        nobody = Address(*closed.getsockname()[:2])
    for _ in range(3):
        sender.send_short(b"x", nobody, 64)
    assert (sender.sent, sender.refused) == (3, {})


def test_a_transmit_without_one_goes_as_far_as_it_can() -> None:
    at = Address("192.0.2.1", 1)
    assert Transmit(b"", at, at).ttl is None
