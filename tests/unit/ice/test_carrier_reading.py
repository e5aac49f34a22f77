"""How much is read at once: a server divides its time, an agent has one connection to think of."""

from __future__ import annotations

import socket

import pytest

from ice.driver import BULK
from stun.sansio import Address
from stun.tcp import READ_MOST, READ_SIZE, Stream

NOWHERE = Address("127.0.0.1", 1)


def sizes_read(most: int | None) -> list[int]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        theirs.setblocking(False)
        stream = Stream(1, ours, NOWHERE, NOWHERE)
        if most is not None:
            stream.read_most = most
        for sock in (ours, theirs):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        sizes = []
        for _ in range(6):
            try:
                while theirs.send(bytes(1 << 14)):
                    pass
            except BlockingIOError:
                pass
            data = stream.read()
            assert data is not None
            sizes.append(len(data))
        return sizes


@pytest.mark.parametrize("most", [None, 1 << 16])
def test_bulk_is_read_in_larger_and_larger_pieces(most):
    sizes = sizes_read(most)
    limit = READ_MOST if most is None else most
    assert sizes[0] == READ_SIZE
    assert sizes[1] == READ_MOST
    assert sizes[-1] == limit
    assert sizes == sorted(sizes)


def test_an_agent_reads_more_than_a_server():
    assert BULK > READ_MOST


def test_after_the_bulk_little_is_read_again():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        stream = Stream(1, ours, NOWHERE, NOWHERE)
        theirs.send(bytes(READ_SIZE + READ_MOST))
        assert [len(stream.read() or b""), len(stream.read() or b"")] == [READ_SIZE, READ_MOST]
        theirs.send(b"little")
        assert stream.read() == b"little"
        theirs.send(bytes(2 * READ_SIZE))
        assert len(stream.read() or b"") == READ_SIZE
