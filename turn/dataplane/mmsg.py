"""Many datagrams with one system call: recvmmsg(2), sendmmsg(2) and segmentation offload (GSO).

Theory of operation.  The system calls want arrays of C structures.  They are laid out once in
anonymous memory, and what changes from call to call is written with as few operations as there can
be: a Python operation costs about as much as the kernel needs to copy a kilobyte.

* An :class:`Inbox` reads into slots.  A slot holds the source as the kernel writes it (a
  ``sockaddr`` without its first field) and right behind it the datagram: one slice across the two
  gives the five-tuple's remote half and the channel number, and that is the key of a route.
* An :class:`Outbox` gathers datagrams, by destination, and sends them together.  Several of equal
  length for one destination become one datagram for most of the kernel's path (UDP_SEGMENT,
  udp(7)), which is where most of the time of relaying goes.

Where the system has no such calls, the same classes do it one datagram at a time.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import socket
import struct
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Final, TypeAlias

from stun.sockaddr import from_sockaddr, to_sockaddr
from turn.dataplane.names import NAME_SIZE, pack_name, unpack_name

BATCH: Final = 64
"""Datagrams that are read with one call."""
LARGEST: Final = 65535
"""No UDP datagram is longer."""
MAX_SEGMENTS: Final = 64
"""UDP_MAX_SEGMENTS of <linux/udp.h> in the kernels that have the fewest."""
MAX_SEGMENTED: Final = 65000
"""Octets of one segmented datagram: the length field of IP, with room for headers."""
WORTHWHILE: Final = 3
"""Datagrams of one flow that are worth the work of joining them."""
HEADROOM: Final = 4
"""Octets before each datagram of an :class:`Inbox` that may be overwritten."""

SOL_UDP: Final = 17
UDP_SEGMENT: Final = 103
UDP_GRO: Final = 104
"""Values of <linux/udp.h>; Python 3.11's socket module lacks the names."""

# What says that a run cannot be segmented here, as opposed to: not sent at all.  EINVAL: a segment
# is larger than the path's MTU; EIO: no checksum offload; the others: an old kernel.
NOT_SEGMENTED: Final = frozenset(
    {errno.EINVAL, errno.EIO, errno.EMSGSIZE, errno.ENOPROTOOPT, errno.EOPNOTSUPP}
)

_LINUX = sys.platform == "linux"
_DONTWAIT = getattr(socket, "MSG_DONTWAIT", 0)
_POINTER = struct.calcsize("P")
# struct mmsghdr of recvmmsg(2): struct msghdr (name, its length, vector, its length, control, its
# length, flags), then the octets received or sent.  "0P" aligns as the compiler does.
_HEADER = struct.Struct("@PIPNPNi0PI0P")
_CONTROL_LENGTH_AT = struct.calcsize("@PIPNP")
_LENGTH_AT = struct.calcsize("@PIPNPNi0P")
_IOVEC = struct.Struct("@PN")
_CONTROL = struct.Struct("@Nii H0N")
_CONTROL_LENGTH = struct.calcsize("@Nii H")
_CONTROL_DATA_AT = struct.calcsize("@Nii")
_INT = struct.Struct("=i")
_CHANNEL = struct.Struct("!HH")
_FAMILY = struct.Struct("=H")
_NAME_ROOM = 32
_MOST_JOINED = 512  # UDP_MAX_SEGMENTS of the newest kernels is 128


def _library() -> tuple[ctypes._NamedFuncPointer, ctypes._NamedFuncPointer] | None:
    if not _LINUX or _HEADER.size not in {64, 32}:
        return None
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        receive, send = libc.recvmmsg, libc.sendmmsg
    except (OSError, AttributeError):
        return None
    receive.argtypes = (
        ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int, ctypes.c_void_p,
    )  # fmt: skip
    send.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int)
    return receive, send


_CALLS = _library()
HAS_MMSG: Final = _CALLS is not None
"""Whether the system has recvmmsg and sendmmsg."""


@cache
def has_segmentation() -> bool:
    """Whether the kernel knows UDP_SEGMENT (Linux 4.18)."""
    if not _LINUX:
        return False
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.getsockopt(SOL_UDP, UDP_SEGMENT)
        except OSError:
            return False
    return True


@cache
def segment_size(octets: int) -> list[tuple[int, int, bytes]]:
    """Return the ancillary data of a sendmsg whose payload is cut into pieces of this length."""
    return [(SOL_UDP, UDP_SEGMENT, octets.to_bytes(2, sys.byteorder))]


def runs(lengths: list[int]) -> list[tuple[int, int]]:
    """Cut a list of datagrams into runs (first, how many) that can be sent segmented.

    All segments have the same length but the last, which may be shorter (udp(7)).
    """
    size, count = lengths[0], len(lengths)
    if count <= MAX_SEGMENTS and 0 < size * count <= MAX_SEGMENTED and lengths.count(size) == count:
        return [(0, count)]
    found = []
    first, total, size = 0, 0, -1
    for n, length in enumerate(lengths):
        if n > first and (
            length > size
            or lengths[n - 1] < size
            or length == 0
            or size == 0
            or n - first == MAX_SEGMENTS
            or total + length > MAX_SEGMENTED
        ):
            found.append((first, n - first))
            first, total = n, 0
        if n == first:
            size = length
        total += length
    found.append((first, len(lengths) - first))
    return found


def split(vector: list[int], segment: int) -> list[int]:
    """Return where the datagrams are, and how long, of octets that end one every ``segment``."""
    parts: list[int] = []
    for address, length in zip(vector[::2], vector[1::2], strict=True):
        for at in range(0, length, segment):
            parts += (address + at, min(segment, length - at))
    return parts


# Receiving. ---------------------------------------------------------------------------------------


@cache
def _lengths(count: int) -> struct.Struct:
    """Return what reads the length of the control data and that of the datagram, of each header."""
    number = "Q" if _POINTER == 8 else "I"
    between = _LENGTH_AT - _CONTROL_LENGTH_AT - _POINTER
    after = _HEADER.size - _LENGTH_AT - 4
    return struct.Struct("=" + f"{_CONTROL_LENGTH_AT}x{number}{between}xI{after}x" * count)


class _Memory:
    """Anonymous memory and the address of its first octet."""

    __slots__ = ("_keep", "address", "octets", "view")

    def __init__(self, size: int) -> None:
        self.octets = mmap.mmap(-1, size)
        self._keep = (ctypes.c_char * size).from_buffer(self.octets)
        self.address = ctypes.addressof(self._keep)
        self.view = memoryview(self.octets)


def join_received(sock: socket.socket, *, on: bool = True) -> bool:
    """Have the kernel join datagrams of one flow that come in a burst (UDP_GRO, Linux 5.0).

    What is read is then to be cut as :attr:`Inbox.sizes` says.  Returns whether it does.
    """
    if _CALLS is None:
        return False
    try:
        sock.setsockopt(SOL_UDP, UDP_GRO, int(on))
    except OSError:
        return False
    return True


class Inbox:
    """Slots for datagrams.  ``named``: with the source of each; ``ipv6`` says what that looks like.

    Slot ``n`` begins with the name (:mod:`turn.dataplane.names`) at ``memory[keys[n]]``, which goes
    on two octets into the datagram: the key of a route.  The datagram is at ``starts[n]``,
    ``views[n]`` is all of its room, ``addresses[n]`` where that is for the kernel.  In an inbox
    without names there are :data:`HEADROOM` octets before it, and behind it as many for each that
    it can be joined of.
    """

    __slots__ = ("_controls_at", "_named", "_template", "address", "addresses", "ipv6", "keys",
                 "memory", "names", "sizes", "slots", "starts", "view", "views")  # fmt: skip

    def __init__(self, slots: int = BATCH, *, ipv6: bool = False, named: bool = True) -> None:
        self.ipv6, self.slots, self._named = ipv6, slots, named
        self.sizes: tuple[int, ...] | None = None
        """Of what was read last: how long the parts of a slot are that holds several datagrams (the
        last one may be shorter), 0 for a slot that does not.  ``None``: no slot does.
        """
        name = NAME_SIZE[ipv6] if named else HEADROOM
        stride = (_NAME_ROOM + LARGEST + _MOST_JOINED * HEADROOM + 31) & ~31
        vectors = slots * _HEADER.size
        self._controls_at = vectors + slots * _IOVEC.size
        first = (self._controls_at + slots * _CONTROL.size + 4095) & ~4095
        memory = _Memory(first + slots * stride)
        self.memory, self.view = memory.octets, memory.view
        self.starts = tuple(first + n * stride + _NAME_ROOM for n in range(slots))
        self.addresses = tuple(memory.address + start for start in self.starts)
        self.keys = tuple(slice(start - name + 2, start + 2) for start in self.starts)
        self.names = tuple(slice(start - name + 2, start) for start in self.starts)
        self.views = tuple(memory.view[start : start + LARGEST] for start in self.starts)
        self.address = memory.address
        """Of the first octet of ``memory``, for the kernel."""
        for n, address in enumerate(self.addresses):
            _IOVEC.pack_into(self.memory, vectors + n * _IOVEC.size, address, LARGEST)
        self._template = b"".join(
            _HEADER.pack(
                address - name if named else 0,
                name if named else 0,
                memory.address + vectors + n * _IOVEC.size,
                1,
                memory.address + self._controls_at + n * _CONTROL.size,
                _CONTROL.size,
                0, 0,
            )
            for n, address in enumerate(self.addresses)
        )  # fmt: skip
        self.memory[: len(self._template)] = self._template

    def receive(self, sock: socket.socket, first: int = 0, count: int = BATCH) -> tuple[int, ...]:
        """Read up to ``count`` datagrams into the slots from ``first`` on; return their lengths.

        None are there: an empty tuple.  Raises ``OSError``, as any read does, for a pending error.
        """
        self.sizes = None
        count = min(count, self.slots - first)
        if _CALLS is None:
            return self._receive_singly(sock, first, count)
        header = first * _HEADER.size
        got: int = _CALLS[0](sock.fileno(), self.address + header, count, _DONTWAIT, None)
        if got > 0:
            numbers = _lengths(got).unpack_from(self.memory, header)
            # The kernel has written lengths where it reads how much room there is.
            end = header + got * _HEADER.size
            self.memory[header:end] = self._template[header:end]
            controls = numbers[::2]
            if any(controls):
                self.sizes = self._sizes(first, controls)
            return numbers[1::2]
        code = ctypes.get_errno()
        if code in {errno.EAGAIN, errno.EWOULDBLOCK, errno.EINTR} or got == 0:
            return ()
        raise OSError(code, os.strerror(code))

    def _sizes(self, first: int, controls: tuple[int, ...]) -> tuple[int, ...]:
        sizes = []
        for n, length in enumerate(controls, first):
            size = 0
            if length:
                at = self._controls_at + n * _CONTROL.size
                _, level, kind, _ = _CONTROL.unpack_from(self.memory, at)
                if (level, kind) == (SOL_UDP, UDP_GRO):
                    (size,) = _INT.unpack_from(self.memory, at + _CONTROL_DATA_AT)
            sizes.append(size)
        return tuple(sizes)

    def parts(self, lengths: tuple[int, ...]) -> Iterator[tuple[int, int, bytes]]:
        """Return length, start and key of each datagram that was read from slot 0 on."""
        if self.sizes is None:
            return zip(lengths, self.starts, map(self.memory.__getitem__, self.keys), strict=False)
        return self._cut(lengths, self.sizes)

    def _cut(
        self, lengths: tuple[int, ...], sizes: tuple[int, ...]
    ) -> Iterator[tuple[int, int, bytes]]:
        memory = self.memory
        for n, (length, size) in enumerate(zip(lengths, sizes, strict=True)):
            start, name = self.starts[n], memory[self.names[n]]
            for at in range(start, start + max(length, 1), size or LARGEST):
                part = min(size or LARGEST, start + length - at)
                yield part, at, name + memory[at : at + 2]

    def datagrams(self, first: int, lengths: tuple[int, ...]) -> Iterator[bytes]:
        """Yield each datagram that was read from slot ``first`` on."""
        sizes = self.sizes or (0,) * len(lengths)
        for n, (length, size) in enumerate(zip(lengths, sizes, strict=True), first):
            start = self.starts[n]
            for at in range(start, start + max(length, 1), size or LARGEST):
                yield self.memory[at : min(at + (size or LARGEST), start + length)]

    def insert_headers(self, slot: int, length: int, size: int, channel: int) -> list[int]:
        """Put a header of ChannelData before each part of a slot that holds several datagrams.

        ``length`` is that of them all, ``size`` that of a part.  Returns where the result is, and
        its length.
        """
        memory, start, step = self.memory, self.starts[slot], size + HEADROOM
        move, write = memory.move, _CHANNEL.pack_into
        # From the last to the first: each makes room for the headers before it.
        last = max(length - 1, 0) // size
        part = length - last * size
        for n in range(last, 0, -1):
            at = start + n * step
            move(at, start + n * size, part)
            write(memory, at - HEADROOM, channel, part)
            part = size
        write(memory, start - HEADROOM, channel, part)
        return [self.addresses[slot] - HEADROOM, length + (last + 1) * HEADROOM]

    def _receive_singly(self, sock: socket.socket, first: int, count: int) -> tuple[int, ...]:
        lengths: list[int] = []
        for n in range(first, first + count):
            try:
                length, source = sock.recvfrom_into(self.views[n])
            except BlockingIOError:
                break
            except OSError:
                if not lengths:
                    raise
                break
            if self._named:
                self.memory[self.names[n]] = pack_name(from_sockaddr(source))
            lengths.append(length)
        return tuple(lengths)


# Sending. -----------------------------------------------------------------------------------------


class Destination:
    """Where datagrams of an :class:`Outbox` go, and those that wait: address, length, and so on.

    Of each waiting datagram ``waiting`` has two numbers: where its octets are, and how many.
    """

    __slots__ = ("name", "waiting")

    def __init__(self, name: bytes) -> None:
        self.name = name
        self.waiting: list[int] = []


@cache
def _vector(numbers: int) -> struct.Struct:
    return struct.Struct("@" + "PN" * (numbers // 2))


Message: TypeAlias = tuple[bytes, list[int], int, int]
"""One datagram, or several that leave as one.

To which name; where its octets are and how many, and so on; after how many a datagram ends; how
many datagrams it is.
"""


class Outbox:
    """Gathers datagrams that go out of one socket, and sends them with few calls.

    There are four ways to add: :meth:`add` copies; ``names`` and ``vector`` take datagrams one by
    one, ``destinations`` those that may be joined, and ``joined`` those that are.  What the latter
    three point to must stay in place until :meth:`flush`.
    """

    SLOTS: Final = 128
    _ROOM: Final = 2048

    def __init__(self, sock: socket.socket, *, segment: bool = True) -> None:
        self.sock = sock
        self.ipv6 = sock.family == socket.AF_INET6
        self.segment = segment and HAS_MMSG and has_segmentation()
        self.names: list[bytes] = []
        self.vector: list[int] = []
        """For each of ``names`` where its octets are, and how many."""
        self.destinations: list[Destination] = []
        self.joined: list[Message] = []
        self.sent = 0
        self.refused: Counter[int] = Counter()
        """Datagrams that could not be sent, by ``errno``."""
        slots, room = self.SLOTS, _NAME_ROOM
        # Headers, names, control data; then as many vectors as datagrams can wait at once, and
        # room for copies.
        names = slots * _HEADER.size
        controls = names + slots * room
        self._vectors_at = controls + slots * _CONTROL.size
        self._copies_at = self._vectors_at + slots * MAX_SEGMENTS * _IOVEC.size
        memory = _Memory(self._copies_at + slots * self._ROOM)
        self._memory, self._octets = memory, memory.octets
        self._size = NAME_SIZE[self.ipv6]
        self._family = _FAMILY.pack(sock.family)
        # A name in the middle of the joined names is put at a distance of its size.
        self._name_at, self._control_at = names, controls
        self._template = b"".join(
            _HEADER.pack(
                memory.address + names + n * self._size,
                self._size,
                memory.address + self._vectors_at + n * _IOVEC.size,
                1, 0, 0, 0, 0,
            )
            for n in range(slots)
        )  # fmt: skip
        self._octets[: len(self._template)] = self._template

    def add(self, data: bytes, name: bytes) -> None:
        """Send ``data`` to ``name`` (see :func:`pack_name`) at the next :meth:`flush`."""
        at = len(self.names)
        if at == self.SLOTS:
            self.flush()
            at = 0
        length = len(data)
        if length > self._ROOM:
            self.flush()
            self._send_plainly(data, name)
            return
        start = self._copies_at + at * self._ROOM
        self._octets[start : start + length] = data
        self.names.append(name)
        self.vector += (self._memory.address + start, length)

    def reply(self, inbox: Inbox, starts: Sequence[int], length: int) -> None:
        """Send back at once what lies in an inbox, ``length`` octets from each of ``starts`` on.

        Each goes to where what lay there came from.
        """
        memory, base, name = inbox.memory, inbox.address, NAME_SIZE[inbox.ipv6] - 2
        vector: list[int] = []
        for start in starts:
            vector += (base + start, length)
        self._send_single([memory[start - name : start] for start in starts], vector)

    def flush(self) -> None:
        """Send everything that waits."""
        names, vector = self.names, self.vector
        destinations = self.destinations
        groups: list[Destination] = []
        for destination in destinations:
            waiting = destination.waiting
            if not waiting:
                continue
            if len(waiting) < 2 * WORTHWHILE or not self.segment:
                vector += waiting
                names += [destination.name] * (len(waiting) // 2)
                waiting.clear()
            else:
                groups.append(destination)
        destinations.clear()
        if names:
            if len(names) <= self.SLOTS:
                self._send_single(names, vector)
            else:
                for first in range(0, len(names), self.SLOTS):
                    part = names[first : first + self.SLOTS]
                    self._send_single(part, vector[2 * first : 2 * (first + len(part))])
            names.clear()
            vector.clear()
        if groups or self.joined:
            messages = self.joined
            for destination in groups:
                waiting, name = destination.waiting, destination.name
                lengths = waiting[1::2]
                for first, count in runs(lengths):
                    part_of = waiting[2 * first : 2 * (first + count)]
                    messages.append((name, part_of, lengths[first], count))
                waiting.clear()
            for first in range(0, len(messages), self.SLOTS):
                self._send_messages(messages[first : first + self.SLOTS])
            messages.clear()

    def forget(self, destination: Destination) -> None:
        """Do not send what waits for ``destination``."""
        destination.waiting.clear()
        if destination in self.destinations:
            self.destinations.remove(destination)
        if self.joined:
            self.joined = [one for one in self.joined if one[0] is not destination.name]

    def _send_single(self, names: list[bytes], vector: list[int]) -> None:
        if _CALLS is None:
            for n, name in enumerate(names):
                self._send_plainly(ctypes.string_at(vector[2 * n], vector[2 * n + 1]), name)
            return
        if len(names) == 1 and not self.ipv6:
            try:  # for one alone the plain call is the quicker one
                self.sock.sendto(ctypes.string_at(*vector), unpack_name(names[0]))
            except OSError:
                pass  # below it is tried again, and counted
            else:
                self.sent += 1
                return
        self._write_names(names)
        _vector(len(vector)).pack_into(self._octets, self._vectors_at, *vector)
        self._send(len(names))

    def _write_names(self, names: list[bytes]) -> None:
        family = self._family
        joined = family + family.join(names)
        self._octets[self._name_at : self._name_at + len(joined)] = joined

    def _send_messages(self, messages: list[Message]) -> None:
        if not self.segment:
            for message in messages:
                self._send_parts(message)
            return
        octets, base = self._octets, self._memory.address
        self._write_names([message[0] for message in messages])
        vectors = self._vectors_at
        for n, (_, vector, segment, datagrams) in enumerate(messages):
            _vector(len(vector)).pack_into(octets, vectors, *vector)
            control = 0
            if datagrams > 1:
                control = self._control_at + n * _CONTROL.size
                _CONTROL.pack_into(octets, control, _CONTROL_LENGTH, SOL_UDP, UDP_SEGMENT, segment)
            _HEADER.pack_into(
                octets,
                n * _HEADER.size,
                base + self._name_at + n * self._size,
                self._size,
                base + vectors,
                len(vector) // 2,
                base + control if control else 0,
                _CONTROL.size if control else 0,
                0, 0,
            )  # fmt: skip
            vectors += len(vector) // 2 * _IOVEC.size
        failed = self._send(len(messages), [message[3] for message in messages])
        used = len(messages) * _HEADER.size
        octets[:used] = self._template[:used]
        for n in failed:
            self._send_parts(messages[n])

    def _send_parts(self, message: Message) -> None:
        """Send the datagrams of a message that cannot leave as one."""
        name, vector, segment, datagrams = message
        self._send_single([name] * datagrams, split(vector, segment))

    def _send(self, count: int, sizes: Sequence[int] | None = None) -> list[int]:
        """Send the first ``count`` headers; return the indices of those to be sent singly."""
        assert _CALLS is not None
        send, fd, base = _CALLS[1], self.sock.fileno(), self._memory.address
        done, failed, again = 0, [], True
        while done < count:
            sent: int = send(fd, base + done * _HEADER.size, count - done, _DONTWAIT)
            if sent > 0:
                self.sent += sent if sizes is None else sum(sizes[done : done + sent])
                done += sent
                again = True
                continue
            code = ctypes.get_errno()
            if code in {errno.EAGAIN, errno.EWOULDBLOCK, errno.ENOBUFS}:
                # What comes behind has no better prospects.
                rest = count - done if sizes is None else sum(sizes[done:])
                self.refused[code] += rest
                break
            if sizes is not None and sizes[done] > 1 and code in NOT_SEGMENTED:
                failed.append(done)
                if code == errno.EIO:
                    self.segment = False
            elif again:
                # It may be the pending ICMP error of an earlier datagram: this one was not tried.
                again = False
                continue
            else:
                self.refused[code] += 1 if sizes is None else sizes[done]
            done += 1
            again = True
        return failed

    def _send_plainly(self, data: bytes, name: bytes) -> None:
        try:
            self.sock.sendto(data, to_sockaddr(unpack_name(name)))
        except OSError as error:
            self.refused[error.errno or 0] += 1
        else:
            self.sent += 1
