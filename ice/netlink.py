"""What Linux knows of this host's addresses, and word of when it changes (rtnetlink(7)).

The portable way, getifaddrs(3), tells addresses without their state.  Whether one is temporary,
deprecated or not yet proved to be unique decides whether it may be used (RFC 8445 section 5.1.1.1,
RFC 4862).
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Final

from stun.attributes.address import host_text

_ROUTE = 0
_ERROR, _DONE = 2, 3
_NEW_LINK, _GET_LINK, _NEW_ADDRESS, _GET_ADDRESS = 16, 18, 20, 22
_REQUEST_DUMP = 0x301
_DUMP_INTERRUPTED = 0x10
_HEADER = struct.Struct("=IHHII")
_LINK = struct.Struct("=BBHiII")
_ADDRESS = struct.Struct("=BBBBI")
_ATTRIBUTE = struct.Struct("=HH")
_WORD = struct.Struct("=I")
_IFLA_IFNAME, _IFLA_EXT_MASK = 3, 29
_SKIP_STATISTICS = 1 << 3
_IFA_ADDRESS, _IFA_LOCAL, _IFA_FLAGS = 1, 2, 8
_GROUPS = 0x1 | 0x10 | 0x100  # links, IPv4 addresses, IPv6 addresses
_RECEIVE = 1 << 17
_ATTEMPTS = 5
_PATIENCE = 1.0

UP: Final = 0x1
LOOPBACK: Final = 0x8
RUNNING: Final = 0x40
"""Of a link: administratively up, the loopback interface, with a carrier."""

TEMPORARY: Final = 0x01
OPTIMISTIC: Final = 0x04
DUPLICATE: Final = 0x08
DEPRECATED: Final = 0x20
TENTATIVE: Final = 0x40
"""Of an IPv6 address (the kernel's IFA_F_*)."""


@dataclass(frozen=True, slots=True)
class KernelAddress:
    """An address as the kernel tells of it.  ``host`` has no zone."""

    host: str
    prefix: int
    flags: int
    index: int
    link: str
    link_flags: int


def addresses() -> list[KernelAddress]:
    """Return every address of every interface.  Raises ``OSError`` where netlink cannot be had."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _ROUTE) as kernel:
        kernel.settimeout(_PATIENCE)
        # Without statistics a link takes a quarter of the room.
        mask = _ATTRIBUTE.pack(8, _IFLA_EXT_MASK) + _WORD.pack(_SKIP_STATISTICS)
        links: dict[int, tuple[str, int]] = {}
        for body in _dump(kernel, _GET_LINK, _NEW_LINK, _LINK, mask):
            _, _, _, index, link_flags, _ = _LINK.unpack_from(body)
            told = dict(_attributes(body, _LINK.size)).get(_IFLA_IFNAME, b"")
            links[index] = told.rstrip(b"\0").decode(errors="replace"), link_flags
        found = []
        for body in _dump(kernel, _GET_ADDRESS, _NEW_ADDRESS, _ADDRESS):
            family, prefix, flags, _, index = _ADDRESS.unpack_from(body)
            values = dict(_attributes(body, _ADDRESS.size))
            # On a point-to-point link IFA_ADDRESS is the other end's.
            octets = values.get(_IFA_LOCAL) or values.get(_IFA_ADDRESS, b"")
            if len(octets) != {socket.AF_INET: 4, socket.AF_INET6: 16}.get(family):
                continue
            if len(wide := values.get(_IFA_FLAGS, b"")) == _WORD.size:
                (flags,) = _WORD.unpack(wide)
            name, link_flags = links.get(index, ("", 0))
            found.append(KernelAddress(host_text(octets), prefix, flags, index, name, link_flags))
        return found


def _dump(
    kernel: socket.socket, ask: int, answer: int, fixed: struct.Struct, more: bytes = b""
) -> list[bytes]:
    """Ask for a table; give the bodies of its messages, none shorter than their fixed part."""
    body = bytes(fixed.size) + more
    for sequence in range(ask << 8, (ask << 8) + _ATTEMPTS):
        kernel.send(_HEADER.pack(_HEADER.size + len(body), ask, _REQUEST_DUMP, sequence, 0) + body)
        bodies: list[bytes] = []
        if _collect(kernel, sequence, answer, bodies):
            break
    # A table that goes on changing is as good as any other: the next change is told.
    return [body for body in bodies if len(body) >= fixed.size]


def _collect(kernel: socket.socket, sequence: int, answer: int, bodies: list[bytes]) -> bool:
    """Take one dump; tell whether the table stayed the same meanwhile."""
    whole = True
    while True:
        octets = kernel.recv(_RECEIVE)
        if not octets:
            raise OSError("the kernel ended the netlink conversation")
        for kind, flags, number, body in _messages(octets):
            if number != sequence:
                continue
            if kind == _ERROR:
                raise OSError("the kernel refuses to tell the addresses")
            if kind == _DONE:
                return whole
            whole = whole and not flags & _DUMP_INTERRUPTED
            if kind == answer:
                bodies.append(body)


def _messages(octets: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Take a datagram apart: kind, flags, sequence number and body of each message."""
    at = 0
    while at + _HEADER.size <= len(octets):
        length, kind, flags, sequence, _ = _HEADER.unpack_from(octets, at)
        if length < _HEADER.size:
            return
        yield kind, flags, sequence, octets[at + _HEADER.size : at + length]
        at += length + 3 & ~3


def _attributes(body: bytes, at: int) -> Iterator[tuple[int, bytes]]:
    while at + _ATTRIBUTE.size <= len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, at)
        if length < _ATTRIBUTE.size:
            return
        yield kind, body[at + _ATTRIBUTE.size : at + length]
        at += length + 3 & ~3


class Changes:
    """Tells that links or addresses of this host have changed.

    An event loop waits until it is readable (:meth:`fileno`) and then calls :meth:`take`, which
    never blocks.  Raises ``OSError`` when there is no netlink.
    """

    def __init__(self) -> None:
        self._kernel = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _ROUTE)
        try:
            self._kernel.setblocking(False)
            self._kernel.bind((0, _GROUPS))
        except OSError:
            self._kernel.close()
            raise

    def fileno(self) -> int:
        """Return what to wait on."""
        return self._kernel.fileno()

    def take(self) -> bool:
        """Take all that was told; return whether there was anything."""
        told = False
        while True:
            try:
                self._kernel.recv(_RECEIVE)
            except BlockingIOError:
                return told
            except OSError:
                # ENOBUFS: more has happened than the kernel keeps.  What, is asked anyway.
                return True
            told = True

    def close(self) -> None:
        """Hear no more."""
        self._kernel.close()

    def __enter__(self) -> Changes:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
