"""Conversations with the kernel over netlink(7): questions and their answers, and what it tells."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from typing import Final

REQUEST: Final = 0x1
DUMP: Final = 0x300
"""Ask for a whole table."""
WORD: Final = struct.Struct("=I")

_ERROR, _DONE = 2, 3
_DUMP_INTERRUPTED = 0x10
_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_NESTED = ~0xC000
_RECEIVE = 1 << 17
_ATTEMPTS = 5
_PATIENCE = 1.0


class Conversation:
    """Questions of one netlink protocol, in the network namespace that it was made in.

    ``groups`` is what to be told of beside.  Raises ``OSError`` where that cannot be had.
    """

    def __init__(self, protocol: int, groups: int) -> None:
        self._news = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)
        try:
            self._news.setblocking(False)
            # Before anything is asked, so that no change is missed in between.
            self._news.bind((0, groups))
            self._kernel = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)
        except BaseException:
            self._news.close()
            raise
        self._kernel.settimeout(_PATIENCE)
        self._sequence = 0

    def fileno(self) -> int:
        """Return what to wait on for news."""
        return self._news.fileno()

    def news(self) -> set[int] | None:
        """Take what was told, without blocking; return the kinds of messages that were in it.

        ``None``: there was more than the kernel keeps, so it may have been anything.
        """
        kinds: set[int] = set()
        lost = False
        while True:
            try:
                octets = self._news.recv(_RECEIVE)
            except BlockingIOError:
                return None if lost else kinds
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                lost = True
            else:
                kinds.update(kind for kind, *_ in _messages(octets))

    def ask(self, kind: int, body: bytes, answer: int) -> bytes:
        """Return the body of the answer.  Raises ``OSError``: what the kernel says."""
        return next(self._ask(kind, REQUEST, body, answer), b"")

    def table(self, kind: int, body: bytes, answer: int) -> list[bytes]:
        """Return the bodies of all entries of a table.  Raises ``OSError``."""
        for _ in range(_ATTEMPTS):
            try:
                return [*self._ask(kind, REQUEST | DUMP, body, answer)]
            except InterruptedError:
                continue
        raise OSError(errno.EAGAIN, "the tables of this machine change faster than they are read")

    def _ask(self, kind: int, flags: int, body: bytes, answer: int) -> Iterator[bytes]:
        """Yield the bodies of the answer's messages.

        Raises ``OSError``; ``InterruptedError`` when a table has changed while it was read.
        """
        self._sequence = sequence = self._sequence + 1 & 0xFFFFFFFF
        self._kernel.send(_HEADER.pack(_HEADER.size + len(body), kind, flags, sequence, 0) + body)
        interrupted = False
        while True:
            octets = self._kernel.recv(_RECEIVE)
            for told, marks, number, found in _messages(octets):
                if number != sequence:
                    continue
                if told == _ERROR:
                    code = -struct.unpack_from("=i", found)[0] if len(found) >= 4 else errno.EIO
                    raise OSError(code, os.strerror(code))
                interrupted = interrupted or bool(marks & _DUMP_INTERRUPTED)
                if told == _DONE:
                    if interrupted:
                        raise InterruptedError(errno.EINTR, os.strerror(errno.EINTR))
                    return
                if told == answer:
                    yield found
                    if not flags & DUMP:
                        return

    def close(self) -> None:
        """Ask and hear no more."""
        self._news.close()
        self._kernel.close()


def _messages(octets: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Take a datagram apart: kind, flags, sequence number and body of each message."""
    at = 0
    while at + _HEADER.size <= len(octets):
        length, kind, flags, sequence, _ = _HEADER.unpack_from(octets, at)
        if length < _HEADER.size:
            return
        yield kind, flags, sequence, octets[at + _HEADER.size : at + length]
        at += length + 3 & ~3


def attribute(kind: int, value: bytes) -> bytes:
    """Return an attribute, padded."""
    return _ATTRIBUTE.pack(4 + len(value), kind) + value + bytes(-len(value) % 4)


def attributes(body: bytes, at: int = 0) -> dict[int, bytes]:
    """Return the attributes that begin at ``at``; of one that is there twice, the last."""
    found = {}
    while at + _ATTRIBUTE.size <= len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, at)
        if length < _ATTRIBUTE.size:
            break
        found[kind & _NESTED] = body[at + _ATTRIBUTE.size : at + length]
        at += length + 3 & ~3
    return found
