"""Non-blocking TCP: listeners, silent listeners, dials from a chosen port, TLS on either side.

Every socket has SO_REUSEADDR and SO_REUSEPORT, so that connections can be dialled from the port
that also listens, which is what TCP hole punching rests on (RFC 5128 section 3.4).

A *silent* listener never answers a SYN: a classic BPF program that accepts nothing (``ret #0``) is
attached to it.  The kernel runs it on segments that find no connection of their own, so a
connection that is being dialled from the same port is not concerned, and simultaneous open
(RFC 9293 section 3.5) completes on it.

TLS runs over :class:`ssl.MemoryBIO`, because it then needs nothing of the runtime that drives it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import socket
import ssl
import struct
import sys
from collections.abc import Sequence
from enum import Enum, auto
from typing import Final

from stun.entrance import Entrance
from stun.icmp import keep_errors, read_errors
from stun.sansio import Address, Cause, Handle
from stun.sockaddr import (
    cause_of_stream,
    detail_of,
    family_of,
    from_sockaddr,
    to_sockaddr,
)

BACKLOG: Final = 1024
ACCEPTS: Final = 64
"""Connections taken from a listener in one wake-up."""
READ_SIZE: Final = 1 << 12
"""Octets read from one stream in one wake-up: 200 of the shortest requests, and what they ask for
must be done before others get their turn."""
READ_MOST: Final = 1 << 14
"""Octets read where the last read came back full, as from a stream that carries data in bulk."""
_GATHERS: Final = hasattr(socket.socket, "sendmsg")
"""Windows has no sendmsg()."""
PENDING_MARK: Final = 1 << 16
"""Octets that may wait for a peer that reads slowly before the stream counts as congested."""
PENDING_LIMIT: Final = 1 << 20
"""Octets kept for a peer that does not read; one more and the stream is closed."""
DISCARD_LIMIT: Final = 1 << 20
"""Octets read and thrown away of a peer that goes on sending when the stream is closed."""
KEEPALIVE: Final = (120, 30, 4)
"""Seconds until the peer of a silent accepted connection is asked for a sign of life, seconds
between questions, and how many go unanswered before it counts as gone."""

_LINUX = sys.platform == "linux"
_DISCARDED = bytearray(1 << 16)  # what nobody wants is read into; nothing reads it
_SO_ATTACH_FILTER = 26  # <asm-generic/socket.h>
_IP_BIND_ADDRESS_NO_PORT = 24  # <linux/in.h>


class StreamEnded(Exception):
    """A stream is over: why, in the terms of :class:`stun.sansio.Closed`."""

    def __init__(self, cause: Cause, detail: str = "") -> None:
        super().__init__(detail or cause.value)
        self.cause = cause
        self.detail = detail


class State(Enum):
    """Where a stream is on its way."""

    CONNECTING = auto()
    ENTERING = auto()
    """Accepted, and not known yet what it is: see :mod:`stun.entrance`."""
    HANDSHAKE = auto()
    OPEN = auto()
    LEAVING = auto()
    """Nobody wants what comes any more; what was written is still on its way to the peer."""
    CLOSED = auto()


def _socket(local: Address, *, shared: bool = True) -> socket.socket:
    sock = socket.socket(family_of(local), socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared and hasattr(socket, "SO_REUSEPORT"):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    except BaseException:
        sock.close()
        raise
    return sock


def _silence(sock: socket.socket) -> None:
    """Make a listener deaf: the one BPF instruction ``BPF_RET|BPF_K`` with 0, "take no octet"."""
    if not _LINUX:
        raise OSError(errno.EPERM, "a silent listener needs Linux (SO_ATTACH_FILTER)")
    program = ctypes.create_string_buffer(struct.pack("=HBBI", 0x06, 0, 0, 0))
    fprog = struct.pack("@HP", 1, ctypes.addressof(program))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, fprog)


def _limit_hops(sock: socket.socket, limit: int) -> int:
    """Have what is sent go so many hops; return how many it went before."""
    option = (socket.IPPROTO_IP, socket.IP_TTL)
    if sock.family == socket.AF_INET6:
        option = (socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS)
    before = sock.getsockopt(*option)
    sock.setsockopt(*option, limit)
    return before


def _keep_alive(sock: socket.socket) -> None:
    """Have the kernel notice a peer that is gone without a word, as a client whose NAT forgot it.

    RFC 6062 streams have no other end than that, and a server's own timers would need traffic.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in zip(("KEEPIDLE", "KEEPINTVL", "KEEPCNT"), KEEPALIVE, strict=True):
        option = getattr(socket, f"TCP_{name}", None)
        if option is not None:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)


class Listener:
    """A listening socket.  Raises ``OSError`` when it cannot be had.

    An ``exclusive`` one shares its port with nobody, so that another program on it, of the same
    user or not, is an error.  SO_REUSEADDR alone does not allow that on Linux; it lets a server
    start again while connections of the one before are in TIME-WAIT.  ``sock``, if given,
    is bound already.
    """

    __slots__ = ("handle", "local", "silent", "sock")

    def __init__(
        self,
        handle: Handle,
        local: Address,
        *,
        silent: bool = False,
        exclusive: bool = False,
        sock: socket.socket | None = None,
    ) -> None:
        self.handle = handle
        self.silent = silent
        bound = sock is not None
        self.sock = sock = _socket(local, shared=not exclusive) if sock is None else sock
        try:
            if silent:
                _silence(sock)  # before listen(2): there is no moment in which it answers
            if not bound:
                sock.bind(to_sockaddr(local))
            sock.listen(BACKLOG)
            self.local = from_sockaddr(sock.getsockname())
        except BaseException:
            sock.close()
            raise

    def accept(self) -> tuple[socket.socket, Address, Address] | None:
        """Return a connection with its local and remote address, or ``None``.

        Raises ``OSError`` when there is one but the system lacks what it takes.
        """
        while True:
            try:
                sock, remote = self.sock.accept()
            except (BlockingIOError, ConnectionError):
                # accept(2): an error already pending on the new connection is passed on here, and
                # is to be treated like EAGAIN.
                return None
            try:
                sock.setblocking(False)
                _keep_alive(sock)
                local = sock.getsockname()
            except OSError:
                sock.close()
                continue
            return sock, from_sockaddr(local), from_sockaddr(remote)

    def close(self) -> None:
        """Close the descriptor."""
        self.sock.close()


class Stream:
    """A TCP connection, dialled or accepted, with TLS or without.

    ``state`` says how far it is.  Every method that meets the end raises :class:`StreamEnded`.
    """

    __slots__ = (
        "_discarded",
        "_early",
        "_incoming",
        "_outgoing",
        "_pending",
        "_read_size",
        "_tls",
        "congested",
        "end",
        "entrance",
        "finished",
        "handle",
        "held",
        "interest",
        "listener",
        "local",
        "read_most",
        "remote",
        "sock",
        "state",
    )

    def __init__(
        self,
        handle: Handle,
        sock: socket.socket,
        local: Address,
        remote: Address,
        *,
        listener: Handle | None = None,
    ) -> None:
        self.handle = handle
        self.sock = sock
        self.local = local
        self.remote = remote
        self.listener = listener
        self.state = State.OPEN
        self.end: StreamEnded | None = None
        """Set when TLS has met the end behind bytes that :meth:`read` is still giving."""
        self.entrance: Entrance | None = None
        self.held: bool | None = None
        """What the machine said last: to read or not to; ``None`` if it has left it to the driver.
        """
        self.congested = False
        """Whether what waits has passed :data:`PENDING_MARK` and not been sent yet."""
        self.interest = (False, False)
        """What the reactor watches the descriptor for: reading, writing."""
        self.finished = False
        """Whether a leaving stream's peer has said all it had to say."""
        self.read_most = READ_MOST
        """Octets read in one wake-up at most."""
        self._discarded = 0
        self._early = b""
        self._read_size = READ_SIZE
        self._pending = bytearray()
        self._tls: ssl.SSLObject | None = None
        self._incoming = self._outgoing = None  # type: ssl.MemoryBIO | None
        with contextlib.suppress(OSError):  # the peer may be gone already
            # Requests and answers are single small writes: nothing to gain by waiting for more.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    @classmethod
    def dial(
        cls, handle: Handle, local: Address, remote: Address, *, ttl: int | None = None
    ) -> Stream:
        """Start to connect.  Raises ``OSError`` of bind(2), :class:`StreamEnded` of connect(2).

        ``ttl``: of the first SYN alone.  Were it kept, the SYN-ACK of a simultaneous open would not
        arrive either.
        """
        sock = _socket(local)
        try:
            if _LINUX and local.port == 0:
                # The port is chosen by connect(2), for this pair of endpoints: many more fit.
                sock.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
            sock.bind(to_sockaddr(local))
            keep_errors(sock)
            stream = cls(handle, sock, local, remote)
            stream.state = State.CONNECTING
            usual = None if ttl is None else _limit_hops(sock, ttl)
            try:
                sock.connect(to_sockaddr(remote))
            except BlockingIOError:
                if usual is not None:
                    _limit_hops(sock, usual)
                stream.local = from_sockaddr(sock.getsockname())
            except OSError as error:
                cause = cause_of_stream(error)
                if error.errno == errno.EACCES:  # at once, so of this machine and not by ICMPv6
                    cause = Cause.NOT_PERMITTED
                raise StreamEnded(cause, detail_of(error)) from None
        except BaseException:
            sock.close()
            raise
        return stream

    def use_tls(
        self, context: ssl.SSLContext, *, server_name: str | None = None, data: bytes = b""
    ) -> None:
        """Wrap the stream; the handshake follows once it is connected.

        ``data`` is what of it has been read already.
        """
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(
            self._incoming,
            self._outgoing,
            server_side=self.listener is not None,
            server_hostname=server_name,
        )
        self._incoming.write(data)
        if self.state is not State.CONNECTING:
            self.state = State.HANDSHAKE

    @property
    def is_secure(self) -> bool:
        """Whether it is TLS."""
        return self._tls is not None

    @property
    def wants_write(self) -> bool:
        """Whether the driver must wait until the socket takes more."""
        return self.state is State.CONNECTING or bool(self._pending)

    def connected(self) -> bool:
        """Take the result of connect(2), once the socket is writable; say if the stream is open."""
        code = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            error = OSError(code, "")
            cause = cause_of_stream(error)
            if cause is Cause.REFUSED and read_errors(self.sock):
                # RFC 5382 REQ-4: the NAT "SHOULD send an ICMP Port Unreachable error".
                cause = Cause.UNREACHABLE
            raise StreamEnded(cause, detail_of(error))
        try:
            # With IP_RECVERR an ICMP error ends an established connection too, which RFC 1122
            # 4.2.3.9 does not want of the "soft" ones, and which anybody could forge.
            keep_errors(self.sock, keep=False)
            self.local = from_sockaddr(self.sock.getsockname())
        except OSError as error:  # on BSD these fail if the peer has reset the connection already
            raise StreamEnded(cause_of_stream(error), detail_of(error)) from None
        if self._tls is None:
            self.state = State.OPEN
            return True
        self.state = State.HANDSHAKE
        return self.handshake()

    def handshake(self) -> bool:
        """Go on with the TLS handshake as far as the bytes at hand allow; say if it is done."""
        assert self._tls is not None
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self._send_records()
                if not self._take_records():
                    return False
            except ssl.SSLCertVerificationError as error:
                self._last_words()
                raise StreamEnded(Cause.TLS_FAILED, error.verify_message) from None
            except (ssl.SSLError, ValueError) as error:
                self._last_words()
                raise StreamEnded(Cause.TLS_FAILED, _reason(error)) from None
            else:
                self._send_records()
                self.state = State.OPEN
                return True

    def _last_words(self) -> None:
        # The alert that says why; whether it gets through changes nothing.
        with contextlib.suppress(StreamEnded):
            self._send_records()

    def _take_records(self) -> bool:
        """Move what the socket has to TLS; say whether there was anything."""
        assert self._incoming is not None
        data = self._recv()
        if data is None:
            return False
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()
        return True

    def _send_records(self) -> None:
        assert self._outgoing is not None
        if self._outgoing.pending:
            self._put(self._outgoing.read())

    def _recv(self) -> bytes | None:
        size = self._read_size
        try:
            data = self.sock.recv(size)
        except BlockingIOError:
            return None
        except OSError as error:
            raise StreamEnded(cause_of_stream(error), detail_of(error)) from None
        if len(data) == size:
            self._read_size = min(max(size << 2, READ_MOST), self.read_most)
        elif len(data) < READ_SIZE:
            self._read_size = READ_SIZE
        return data

    def read_first(self) -> bytes | None:
        """Return octets of a stream that is not known yet to be TLS, ``None`` for none for now."""
        data = self._recv()
        if data == b"":
            raise StreamEnded(Cause.END_OF_STREAM)
        return data

    def open_with(self, data: bytes) -> None:
        """Be a plain stream, of which ``data`` has been read already."""
        self._early = data
        self.state = State.OPEN

    @property
    def has_unread(self) -> bool:
        """Whether there is something to read of which the socket does not tell."""
        waits = self._incoming is not None and self._incoming.pending > 0
        return bool(self._early) or self.end is not None or waits

    def read(self) -> bytes | None:
        """Return bytes that came, or ``None`` when there are none for now."""
        if self._early:
            early, self._early = self._early, b""
            return early
        if self._tls is None:
            return self.read_first()
        assert self._incoming is not None
        while self.end is None:
            # All that TLS holds is taken out: what stays inside would not make the socket readable.
            if self._incoming.pending or self._incoming.eof:
                data, self.end = self._plaintext(self._tls, self._incoming)
                if data:
                    return data
            elif not self._take_records():
                return None
        # A new one, as what is raised refers to this frame: the stream, with all that OpenSSL keeps
        # for it, would refer to itself and stay until the garbage collector comes by.
        raise StreamEnded(self.end.cause, self.end.detail)

    def _plaintext(
        self, tls: ssl.SSLObject, incoming: ssl.MemoryBIO
    ) -> tuple[bytes, StreamEnded | None]:
        parts: list[bytes] = []
        end = None
        try:
            # To ask beforehand whether there is more costs less than the exception that says no.
            while incoming.pending or tls.pending() or incoming.eof:
                part = tls.read(READ_MOST)
                if not part:
                    end = StreamEnded(Cause.END_OF_STREAM)
                    break
                parts.append(part)
        except ssl.SSLWantReadError:
            pass
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            end = StreamEnded(Cause.END_OF_STREAM)
        except ssl.SSLError as error:
            self._last_words()
            end = StreamEnded(Cause.TLS_FAILED, _reason(error))
        if end is None:
            self._send_records()  # what TLS has to say by itself, such as a KeyUpdate
        return parts[0] if len(parts) == 1 else b"".join(parts), end

    def write(self, *parts: bytes | memoryview) -> None:
        """Send, and keep what the kernel does not take at once, up to :data:`PENDING_LIMIT`.

        Of some parts, the kernel gathers the octets: nobody copies them before.
        """
        if self._tls is None:
            if len(parts) == 1 or self._pending or not _GATHERS:
                self._put(parts[0] if len(parts) == 1 else b"".join(parts))
            else:
                self._put_all(parts)
            return
        try:
            self._tls.write(parts[0] if len(parts) == 1 else b"".join(parts))
        except ssl.SSLError as error:
            raise StreamEnded(Cause.TLS_FAILED, _reason(error)) from None
        self._send_records()

    def _put(self, data: bytes | memoryview) -> None:
        if not self._pending:
            sent = self._send(data)
            if sent == len(data):
                return
            data = memoryview(data)[sent:]
        self._keep(data)

    def _put_all(self, parts: Sequence[bytes | memoryview]) -> None:
        try:
            sent = self.sock.sendmsg(parts)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            raise StreamEnded(cause_of_stream(error), detail_of(error)) from None
        if sent < sum(map(len, parts)):
            for part in parts:
                if sent < len(part):
                    self._keep(memoryview(part)[sent:] if sent else part)
                sent = max(0, sent - len(part))

    def _keep(self, data: bytes | memoryview) -> None:
        if len(self._pending) + len(data) > PENDING_LIMIT:
            raise StreamEnded(Cause.OTHER, "peer does not read")
        self._pending += data

    def _send(self, data: bytes | bytearray | memoryview) -> int:
        try:
            return self.sock.send(data)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise StreamEnded(cause_of_stream(error), detail_of(error)) from None

    @property
    def waiting(self) -> int:
        """Octets that are kept because the kernel does not take them."""
        return len(self._pending)

    @property
    def unsent(self) -> bytes:
        """Those octets."""
        return bytes(self._pending)

    def say(self, last_words: bytes) -> None:
        """Send to a refused peer, in the clear; whether it gets through changes nothing."""
        with contextlib.suppress(StreamEnded):
            self._put(last_words)

    def flush(self) -> None:
        """Send what is kept, as far as the kernel takes it."""
        if self._pending:
            del self._pending[: self._send(self._pending)]

    def farewell(self) -> None:
        """Tell the peer that nothing follows: TLS close_notify (RFC 8446 section 6.1)."""
        if self._tls is not None and self.state is State.OPEN:
            with contextlib.suppress(ssl.SSLError, StreamEnded):
                try:
                    self._tls.unwrap()
                finally:
                    self._send_records()

    # Leaving: what was written gets through, what comes is thrown away. ---------------------------

    def leave(self) -> None:
        """Take no more part, but see what was written off.

        RFC 1122 4.2.2.13: a host that closes while there is, or comes, what it has not read sends
        RST, and that RST may destroy what the peer has not read yet; RFC 9112 section 9.6 tells of
        the same for HTTP.  So the stream is closed for writing first, and read until the peer has
        closed it, too: nobody is left then who could lose anything.
        """
        self.state = State.LEAVING
        self._end_writing()

    def see_off(self) -> bool:
        """Send what is kept, then FIN; say whether that is all there was to do."""
        self.flush()
        self._end_writing()
        return self.finished and not self._pending

    def _end_writing(self) -> None:
        if not self._pending:
            with contextlib.suppress(OSError):  # the peer may be gone
                self.sock.shutdown(socket.SHUT_WR)

    def discard(self) -> bool:
        """Read what came, and throw it away; say whether that is all there was to do."""
        try:
            size = self.sock.recv_into(_DISCARDED)
        except BlockingIOError:
            return False
        except OSError as error:
            raise StreamEnded(cause_of_stream(error), detail_of(error)) from None
        self._discarded += size
        if self._discarded > DISCARD_LIMIT:
            raise StreamEnded(Cause.OTHER, "the peer goes on sending")
        self.finished = not size
        return self.finished and not self._pending

    def close(self, *, reset: bool = False) -> None:
        """Close the descriptor, with FIN or with RST."""
        self.state = State.CLOSED
        if reset:
            with contextlib.suppress(OSError):
                # RFC 9293 section 3.10.5, ABORT: an RST, nothing lingers and nothing is delivered.
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("@ii", 1, 0))
        self.sock.close()


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", None)
    return reason.replace("_", " ").lower() if isinstance(reason, str) else str(error)
