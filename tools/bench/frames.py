"""Datagrams at the rate of the kernel: a generator and a sink, many with one system call.

Theory of operation.  The generator writes whole Ethernet frames to a packet socket (packet(7)) by
sendmmsg(2).  They are made beforehand, one head for each flow and one body for all, checksums
included; so a flow costs the same whether there is one of them or are ten thousand, no route is
looked up on the sending machine, and no segmentation joins datagrams.  Frames are sent in turn.

The sink reads with recvmmsg(2) from one socket that has every address of its machine.  It is never
waited for: whoever reads it does so at times of its own, so what it costs to read a datagram is
the same however datagrams come in, and can be subtracted.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
from collections.abc import Sequence

from stun.sansio import Address
from tools.bench.lab import CABLE, Side

BATCH = 64
_ROOM = 2048
_RING = 1024
_RECEIVE_BUFFER = 64 << 20
_SO_RCVBUFFORCE = 33
_SOL_PACKET, _PACKET_QDISC_BYPASS = 263, 20
_ETHERTYPE_IPV4 = 0x0800
_TTL = 64
_IPV4 = struct.Struct("!BBHHHBBH4s4s")
_UDP = struct.Struct("!HHHH")
_PSEUDO = struct.Struct("!4s4sBBH")


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class _Msghdr(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint),
        ("vector", ctypes.c_void_p),
        ("vector_length", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class _Mmsghdr(ctypes.Structure):
    _fields_ = (("header", _Msghdr), ("octets", ctypes.c_uint))


_libc = ctypes.CDLL(None, use_errno=True)
_sendmmsg, _recvmmsg = _libc.sendmmsg, _libc.recvmmsg
_sendmmsg.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int)
_recvmmsg.argtypes = (*_sendmmsg.argtypes, ctypes.c_void_p)
_DONTWAIT = int(socket.MSG_DONTWAIT)


def ones_sum(data: bytes, start: int = 0) -> int:
    """Return the one's complement sum of RFC 1071, not inverted."""
    if len(data) % 2:
        data += b"\0"
    total = start + sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return int(total)


def head(side: Side, source: Address, destination: Address, begin: bytes, size: int) -> bytes:
    """Return a frame up to and including ``begin``, the first octets of its datagram.

    After it come ``size`` octets that are zero.
    """
    from_, to = socket.inet_aton(source.host), socket.inet_aton(destination.host)
    length = _UDP.size + len(begin) + size
    ip = _IPV4.pack(0x45, 0, _IPV4.size + length, 0, 0x4000, _TTL, socket.IPPROTO_UDP, 0, from_, to)
    ip = ip[:10] + (~ones_sum(ip) & 0xFFFF).to_bytes(2) + ip[12:]
    udp = _UDP.pack(source.port, destination.port, length, 0)
    pseudo = _PSEUDO.pack(from_, to, 0, socket.IPPROTO_UDP, length)
    # RFC 768: "If the computed checksum is zero, it is transmitted as all ones".
    checksum = ~ones_sum(pseudo + udp + begin) & 0xFFFF or 0xFFFF
    ethernet = side.gateway + side.mac + _ETHERTYPE_IPV4.to_bytes(2)
    return ethernet + ip + udp[:6] + checksum.to_bytes(2) + begin


class Generator:
    """Sends the frames of some flows in turn, on the cable of an end machine.

    To be made inside of its namespace.
    """

    def __init__(self, heads: Sequence[bytes], size: int) -> None:
        self.sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self.sock.bind((CABLE, 0))
        self.sock.setsockopt(_SOL_PACKET, _PACKET_QDISC_BYPASS, 1)
        self._fd = self.sock.fileno()
        repeated = max(1, _RING // len(heads))
        self._count = count = len(heads) * repeated
        self._body = ctypes.create_string_buffer(max(size, 1))
        self._heads = ctypes.create_string_buffer(b"".join(heads))
        self._vectors = (_Iovec * (2 * count))()
        self._messages = (_Mmsghdr * count)()
        body, at = ctypes.addressof(self._body), ctypes.addressof(self._heads)
        starts = []
        for one in heads:
            starts.append((at, len(one)))
            at += len(one)
        for n in range(count):
            self._vectors[2 * n] = _Iovec(*starts[n % len(heads)])
            self._vectors[2 * n + 1] = _Iovec(body, size)
            header = self._messages[n].header
            header.vector = ctypes.addressof(self._vectors) + 2 * n * ctypes.sizeof(_Iovec)
            header.vector_length = 2
        self._first, self._next = ctypes.addressof(self._messages), 0
        self._step = ctypes.sizeof(_Mmsghdr)

    def send(self, count: int) -> int:
        """Send the next ``count`` frames; return how many the kernel took."""
        sent = 0
        while sent < count:
            many = min(count - sent, BATCH, self._count - self._next)
            done = _sendmmsg(self._fd, self._first + self._next * self._step, many, 0)
            if done <= 0:
                code = ctypes.get_errno()
                if code in {errno.ENOBUFS, errno.EAGAIN, errno.EINTR}:
                    break
                raise OSError(code, f"sendmmsg: {os.strerror(code)}")
            self._next = (self._next + done) % self._count
            sent += done
        return sent

    def close(self) -> None:
        """Close the socket."""
        self.sock.close()


class Sink:
    """Counts datagrams to a port of any address of a machine; to be made inside its namespace."""

    def __init__(self, port: int) -> None:
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        # Clients' sockets have the same port of single addresses, while their channels are bound.
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.widen()
        self.sock.bind(("0.0.0.0", port))
        self._fd = self.sock.fileno()
        self._room = ctypes.create_string_buffer(BATCH * _ROOM)
        self._vectors = (_Iovec * BATCH)()
        self._messages = (_Mmsghdr * BATCH)()
        for n in range(BATCH):
            self._vectors[n] = _Iovec(ctypes.addressof(self._room) + n * _ROOM, _ROOM)
            header = self._messages[n].header
            header.vector = ctypes.addressof(self._vectors) + n * ctypes.sizeof(_Iovec)
            header.vector_length = 1
        self._first = ctypes.addressof(self._messages)
        self.longest = 0
        """Octets of the last datagram read."""

    def widen(self) -> None:
        """Have room for all that may come while nobody reads."""
        self.sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER)

    def take(self, limit: int = 1 << 30) -> int:
        """Read what is there, about ``limit`` datagrams at most; return how many that was."""
        got = 0
        while got < limit:
            many = _recvmmsg(self._fd, self._first, BATCH, _DONTWAIT, None)
            if many > 0:
                got += many
                self.longest = self._messages[many - 1].octets
            if many < BATCH:
                break
        return got

    def close(self) -> None:
        """Close the socket."""
        self.sock.close()
