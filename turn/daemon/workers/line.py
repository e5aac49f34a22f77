"""Lines between the processes of one turnd: messages, each a Python value and descriptors with it.

Theory of operation.  A line is a pair of Unix sockets of type SOCK_SEQPACKET, which the supervisor
makes: messages keep their bounds and their order, none is lost, and descriptors go with them
(SCM_RIGHTS).  A value longer than :data:`PIECE` goes in pieces.  Both ends keep what the socket
does not take; *posts*, which stand for datagrams, are not kept but dropped and counted, as a
network does.

Values are pickled.  Whoever can write to a line is a process that turnd started itself and gave
that very descriptor to; nobody else can reach it, for it has no name.
"""

from __future__ import annotations

import array
import asyncio
import errno
import os
import pickle
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

PIECE: Final = 1 << 16
"""Octets of a value in one message, save for a post."""
LARGEST: Final = 1 << 17
"""Octets of a post: a datagram, or what was read from a stream, and what goes with it."""
BUFFER: Final = 1 << 20
"""What the kernel is asked to keep; it gives what ``net.core.wmem_max`` allows."""
MOST_DESCRIPTORS: Final = 250
"""With one message (SCM_MAX_FD is 253)."""
ROUND: Final = 64
"""Messages that are taken in one wake-up."""

_LAST, _MORE = b"\0", b"\1"
# Too many descriptors on their way (unix(7)) pass, as a full socket does.
_FULL = {errno.EAGAIN, errno.ENOBUFS, errno.ETOOMANYREFS}
_RIGHTS_SPACE = socket.CMSG_SPACE(MOST_DESCRIPTORS * array.array("i").itemsize)


def pair() -> tuple[socket.socket, socket.socket]:
    """Return the two ends of a line."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in ends:
        end.setblocking(False)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
    return ends


class Line:
    """One end.

    ``on_message`` is given each value and the descriptors that came with it, which are its to
    close; ``on_end`` is called when the other end is gone.
    Nothing is read before :meth:`start`; :meth:`take` reads what is there already.
    """

    def __init__(
        self,
        sock: socket.socket,
        on_message: Callable[[Any, list[int]], None],
        on_end: Callable[[], None] = lambda: None,
    ) -> None:
        self._sock = sock
        self._on_message = on_message
        self._on_end = on_end
        self._loop: asyncio.AbstractEventLoop | None = None
        self._queue: deque[tuple[bytes, Sequence[int]]] = deque()
        self._partial: list[bytes] = []
        self._buffer = bytearray(LARGEST)
        self._ended = False
        self.dropped = 0
        """Posts that the other end had no room for."""

    @property
    def ended(self) -> bool:
        """Whether the other end is gone, or this one closed."""
        return self._ended

    def start(self) -> None:
        """Read from now on, on the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._sock.fileno(), self._readable)
        if self._queue:
            self._loop.add_writer(self._sock.fileno(), self._writable)

    def close(self) -> None:
        """Close this end; what waits to be sent is lost."""
        if self._sock.fileno() < 0:
            return
        self._ended = True
        self._stop()
        self.forget()
        self._sock.close()

    def forget(self) -> None:
        """Drop what waits to be sent: whoever it was for is gone."""
        for _, descriptors in self._queue:
            _close(descriptors)
        self._queue.clear()

    def _stop(self) -> None:
        if self._loop is not None:
            self._loop.remove_reader(self._sock.fileno())
            self._loop.remove_writer(self._sock.fileno())

    # Sending. -------------------------------------------------------------------------------------

    def send(self, value: Any, descriptors: Sequence[int] = ()) -> None:
        """Send a value.  The descriptors stay the caller's; the other end gets its own."""
        octets = pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
        pieces = [octets[at : at + PIECE] for at in range(0, len(octets), PIECE)] or [b""]
        for piece in pieces[:-1]:
            self._send(_MORE + piece, ())
        self._send(_LAST + pieces[-1], descriptors)

    def _send(self, message: bytes, descriptors: Sequence[int]) -> None:
        if self._ended:
            return
        if self._queue or not self._try(message, descriptors):
            if self.ended:
                return
            if not self._queue and self._loop is not None:
                self._loop.add_writer(self._sock.fileno(), self._writable)
            # Kept as copies: the caller may close his.
            self._queue.append((message, [os.dup(fd) for fd in descriptors]))

    def post(self, value: Any, descriptors: Sequence[int] = ()) -> bool:
        """Send a short value now or not at all; say which."""
        message = _LAST + pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
        fits = len(message) <= LARGEST
        if fits and not self._queue and not self._ended and self._try(message, descriptors):
            return True
        self.dropped += 1
        return False

    def _try(self, message: bytes, descriptors: Sequence[int]) -> bool:
        rights = (
            [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors).tobytes())]
            if descriptors
            else []
        )
        try:
            self._sock.sendmsg([message], rights)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno in _FULL:
                return False
            self._end()
            return False
        return True

    def _writable(self) -> None:
        while self._queue:
            message, descriptors = self._queue[0]
            if not self._try(message, descriptors):
                return
            self._queue.popleft()
            _close(descriptors)
        assert self._loop is not None
        self._loop.remove_writer(self._sock.fileno())

    # Receiving. -----------------------------------------------------------------------------------

    def take(self) -> None:
        """Take what is there, without waiting."""
        while not self._ended and self._read():
            pass

    def _readable(self) -> None:
        for _ in range(ROUND):
            if self._ended or not self._read():
                return

    def _read(self) -> bool:
        """Take one message; say whether there may be another."""
        try:
            length, ancillary, _, _ = self._sock.recvmsg_into(
                [self._buffer], _RIGHTS_SPACE, socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return False
        except OSError:
            length, ancillary = 0, []
        if not length:
            self._end()
            return False
        descriptors: list[int] = []
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                numbers = array.array("i")
                numbers.frombytes(data[: len(data) - len(data) % numbers.itemsize])
                descriptors += numbers
        self._partial.append(bytes(self._buffer[1:length]))
        if self._buffer[:1] == _LAST:
            octets, self._partial = b"".join(self._partial), []
            # Written by a process of this very turnd: see the module's text.
            self._on_message(pickle.loads(octets), descriptors)  # noqa: S301
        return True

    def _end(self) -> None:
        if not self._ended:
            self._ended = True
            self._stop()
            self._on_end()


def _close(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
