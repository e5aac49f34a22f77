"""Streams and listeners by themselves: the bound on what is kept, TLS cut anywhere, the end."""

from __future__ import annotations

import errno
import select
import socket
from collections.abc import Iterator

import pytest

from stun import tcp
from stun.sansio import Address, Cause
from stun.tcp import PENDING_LIMIT, Listener, State, Stream, StreamEnded

ANY = Address("127.0.0.1", 0)


@pytest.fixture
def pair() -> Iterator[tuple[Stream, socket.socket]]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.settimeout(5)
    stream = Stream(1, ours, ANY, ANY)
    yield stream, theirs
    stream.close()
    theirs.close()


def test_what_the_kernel_does_not_take_is_kept_and_flushed(
    pair: tuple[Stream, socket.socket],
) -> None:
    stream, peer = pair
    payload = bytes(range(256)) * 2000
    stream.write(payload)
    assert stream.wants_write
    received = bytearray()
    while len(received) < len(payload):
        received += peer.recv(1 << 16)
        stream.flush()
    assert received == payload
    assert not stream.wants_write


def test_the_order_of_writes_is_kept_around_a_full_buffer(
    pair: tuple[Stream, socket.socket],
) -> None:
    stream, peer = pair
    pieces = [bytes([n]) * 30_000 for n in range(20)]
    for piece in pieces:
        stream.write(piece)
    received = bytearray()
    while len(received) < 600_000:
        received += peer.recv(1 << 16)
        stream.flush()
    assert received == b"".join(pieces)


def test_what_the_system_refuses_at_the_end_of_a_dial_ends_the_stream(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # On BSD even getsockname(2) fails once the peer has reset the connection.
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    with socket.create_server(ANY) as server:
        stream = Stream.dial(1, ANY, Address(*server.getsockname()))
        select.select([], [stream.sock], [], 5)
        monkeypatch.setattr(tcp, "keep_errors", refuse)
        with pytest.raises(StreamEnded, match="Invalid argument"):
            stream.connected()
        stream.close()


def test_the_bound_is_kept(pair: tuple[Stream, socket.socket]) -> None:
    stream, _ = pair
    while not stream.wants_write:
        stream.write(bytes(10_000))
    for _ in range(PENDING_LIMIT // 10_000 - 1):
        stream.write(bytes(10_000))
    with pytest.raises(StreamEnded, match="peer does not read") as end:
        stream.write(bytes(20_000))
    assert end.value.cause is Cause.OTHER


def test_the_end_of_a_stream(pair: tuple[Stream, socket.socket]) -> None:
    stream, peer = pair
    assert stream.read() is None
    peer.sendall(b"last words")
    peer.close()
    assert stream.read() == b"last words"
    with pytest.raises(StreamEnded) as end:
        stream.read()
    assert end.value.cause is Cause.END_OF_STREAM
    with pytest.raises(StreamEnded) as end:
        stream.write(b"too late")
    assert end.value.cause is Cause.RESET


def test_a_closed_stream_says_so(pair: tuple[Stream, socket.socket]) -> None:
    stream, _ = pair
    assert stream.state is State.OPEN
    stream.close()
    assert stream.state is State.CLOSED


def test_nothing_to_accept() -> None:
    listener = Listener(1, ANY)
    try:
        assert listener.accept() is None
    finally:
        listener.close()


def test_an_accepted_connection_knows_both_ends() -> None:
    listener = Listener(1, ANY)
    try:
        with socket.create_connection(listener.local) as caller:
            found = listener.accept()
            assert found is not None
            sock, local, remote = found
            assert not sock.getblocking()
            sock.close()
            assert (local, remote) == (listener.local, caller.getsockname())
    finally:
        listener.close()


def test_a_socket_that_cannot_be_configured_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[socket.socket] = []

    class Watched(socket.socket):
        def setsockopt(self, *arguments: object) -> None:
            made.append(self)
            raise OSError(1, "no")

    monkeypatch.setattr(tcp.socket, "socket", Watched)
    with pytest.raises(OSError, match="no"):
        Stream.dial(1, ANY, ANY)
    assert made[0].fileno() == -1


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_only_the_first_syn_goes_few_hops(host: str) -> None:
    level, option = socket.IPPROTO_IP, socket.IP_TTL
    if ":" in host:
        level, option = socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS
    limits: list[int] = []

    class Watched(socket.socket):
        def connect(self, address: object) -> None:
            limits.append(self.getsockopt(level, option))
            super().connect(address)  # type: ignore[arg-type]

    listener = Listener(1, Address(host, 0))
    usual = listener.sock.getsockopt(level, option)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tcp.socket, "socket", Watched)
        stream = Stream.dial(2, Address(host, 0), listener.local, ttl=2)
    assert limits == [2]
    assert stream.sock.getsockopt(level, option) == usual
    assert usual > 2
    select.select([], [stream.sock], [], 5)
    assert stream.connected()
    stream.close()
    listener.close()
