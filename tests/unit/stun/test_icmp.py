import socket
import sys

import pytest

from stun.icmp import keep_errors, read_errors
from stun.sansio import Address

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the error queue is Linux's")

LOOPBACK = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}
PORT_UNREACHABLE = {socket.AF_INET: (3, 3), socket.AF_INET6: (1, 4)}


def closed_port(family: socket.AddressFamily) -> int:
    with socket.socket(family, socket.SOCK_DGRAM) as free:
        free.bind((LOOPBACK[family], 0))
        port: int = free.getsockname()[1]
        return port


@pytest.mark.parametrize("family", LOOPBACK, ids=lambda family: family.name)
def test_an_error_is_kept_with_its_type_and_code(family: socket.AddressFamily) -> None:
    to = Address(LOOPBACK[family], closed_port(family))
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        keep_errors(sock)
        sock.bind((LOOPBACK[family], 0))
        sock.sendto(b"x", to)
        assert read_errors(sock) == [(to, *PORT_UNREACHABLE[family], 0)]
        assert read_errors(sock) == []


@pytest.mark.parametrize("family", LOOPBACK, ids=lambda family: family.name)
def test_a_rst_is_no_icmp_error(family: socket.AddressFamily) -> None:
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        keep_errors(sock)
        with pytest.raises(ConnectionRefusedError):
            sock.connect((LOOPBACK[family], closed_port(family)))
        assert read_errors(sock) == []


def test_errors_are_kept_no_longer() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        keep_errors(sock)
        keep_errors(sock, keep=False)
        sock.sendto(b"x", ("127.0.0.1", closed_port(socket.AF_INET)))
        assert read_errors(sock) == []
