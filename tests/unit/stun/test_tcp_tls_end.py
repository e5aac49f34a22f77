"""A TLS stream that has ended is gone at once, with what OpenSSL keeps for it."""

from __future__ import annotations

import gc
import socket
import ssl
import weakref
from contextlib import suppress
from pathlib import Path

import pytest

from stun.sansio import Address, Cause
from stun.tcp import Stream, StreamEnded
from tools.certificate import write_self_signed

HERE, THERE = Address("127.0.0.1", 1), Address("127.0.0.1", 2)


class _Client:
    """The other side, moved by hand."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        self.tls = context.wrap_bio(self._incoming, self._outgoing)

    def move(self) -> None:
        """Send what there is to send, take what there is to take."""
        self._sock.sendall(self._outgoing.read())
        with suppress(BlockingIOError):
            self._incoming.write(self._sock.recv(1 << 16))


def _begin(stream: Stream, client: _Client) -> None:
    for _ in range(10):
        with suppress(ssl.SSLWantReadError):
            client.tls.do_handshake()
        client.move()
        if stream.handshake():
            return
    raise AssertionError("the handshake does not end")


@pytest.mark.parametrize("notified", [True, False], ids=["close_notify", "end-of-stream"])
def test_the_end_leaves_nothing_for_the_garbage_collector(notified: bool, tmp_path: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(write_self_signed(tmp_path / "relay.pem", "relay.example"))
    ours, theirs = socket.socketpair()
    with theirs:
        ours.setblocking(False)
        theirs.setblocking(False)
        stream = Stream(1, ours, HERE, THERE, listener=2)
        stream.use_tls(context)
        client = _Client(theirs)
        _begin(stream, client)
        client.tls.write(b"bye")
        if notified:
            with pytest.raises(ssl.SSLWantReadError):
                client.tls.unwrap()
        client.move()
        theirs.shutdown(socket.SHUT_WR)
        remains = weakref.ref(stream._tls)
        gc.collect()
        gc.disable()
        try:
            assert stream.read() == b"bye"
            with pytest.raises(StreamEnded) as raised:
                stream.read()
            assert raised.value.cause is Cause.END_OF_STREAM
            del raised
            stream.close(reset=False)
            del stream
            assert remains() is None
        finally:
            gc.enable()
