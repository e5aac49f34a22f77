"""A non-blocking UDP socket read in batches, that knows its local address and reads ICMP errors.

Theory of operation.  One wake-up of a driver drains up to :data:`BATCH` datagrams in a plain loop;
a callback per datagram would cost four times as much.  A socket bound to one address uses
``recvfrom``; one bound to a wildcard needs ``recvmsg`` and IP_PKTINFO (for IPv6: RFC 3542 section
6.1) to learn which address a datagram was sent to, and to answer from that address.

With IP_RECVERR the kernel queues what ICMP says about datagrams that an unconnected socket sent
(RFC 1122 section 4.1.3.3 wants it passed up).  The same error also fails the next call on the
socket, be it a send that is perfectly fine: such a send is tried again.
"""

from __future__ import annotations

import errno
import socket
import struct
import sys
from collections import Counter

from stun.icmp import ANCILLARY, keep_errors, read_errors
from stun.sansio import Address, Handle, Received, Undeliverable
from stun.sockaddr import family_of, from_sockaddr, is_wildcard, to_sockaddr

BATCH = 64
"""Datagrams read in one wake-up before others get their turn."""

_LARGEST = 65535
_RECEIVE_BUFFER = 4 << 20

_LINUX = sys.platform == "linux"
# Values of <linux/in.h> and <linux/in6.h>; Python 3.11's socket module lacks these names.
_IP_PKTINFO = 8
_IN_PKTINFO = struct.Struct("=i4s4s")
_IN6_PKTINFO = struct.Struct("=16si")
_INT = struct.Struct("=i")

SEND_REASONS = {
    errno.EWOULDBLOCK: "the send buffer is full",
    errno.ENOBUFS: "the interface queue is full",
    errno.EPERM: "a local firewall rule",
    errno.EACCES: "not permitted (broadcast, or a route that prohibits)",
    errno.EMSGSIZE: "larger than the interface or the protocol allows",
    errno.ENETUNREACH: "no route to the network",
    errno.EHOSTUNREACH: "no route to the host",
    errno.EADDRNOTAVAIL: "the source address is not local any more",
    errno.EINVAL: "the destination cannot be reached from this source address",
    errno.EAFNOSUPPORT: "another address family than the socket's",
}


class UdpSocket:
    """One bound UDP socket.  Raises ``OSError`` when it cannot be had."""

    __slots__ = ("_wildcard", "handle", "local", "received", "refused", "sent", "sock")

    def __init__(self, handle: Handle, local: Address) -> None:
        self.handle = handle
        family = family_of(local)
        self.sock = sock = socket.socket(family, socket.SOCK_DGRAM)
        try:
            sock.setblocking(False)
            if family == socket.AF_INET6:
                # One family a socket: a mapped address never reaches a machine.
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            # Room for a burst between two wake-ups; the kernel gives what its limit allows.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
            self._wildcard = is_wildcard(local.host)
            keep_errors(sock)
            if _LINUX and self._wildcard:
                self._ask_for_local_address(family)
            sock.bind(to_sockaddr(local))
            self.local = from_sockaddr(sock.getsockname())
        except BaseException:
            sock.close()
            raise
        self.sent = self.received = 0
        self.refused: Counter[str] = Counter()

    def _ask_for_local_address(self, family: int) -> None:
        if family == socket.AF_INET6:
            self.sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        else:
            self.sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)

    def drain(self, limit: int = BATCH) -> tuple[list[Received], list[Undeliverable]]:
        """Return what is waiting: up to ``limit`` datagrams, and ICMP errors."""
        packets: list[Received] = []
        errors: list[Undeliverable] = []
        append, local = packets.append, self.local
        receive = self._receive_with_local if self._wildcard else None
        recvfrom = self.sock.recvfrom
        for _ in range(limit):
            try:
                if receive is None:
                    data, source = recvfrom(_LARGEST)
                    append(Received(data, from_sockaddr(source), local))
                else:
                    append(receive())
            except BlockingIOError:
                break
            except OSError:
                # The pending error of an earlier datagram; its details wait in the error queue.
                errors += self._read_errors()
        if not packets:
            # A failed send may have taken the pending error while the queue still holds its entry,
            # which keeps the socket ready for reading.
            errors += self._read_errors()
        self.received += len(packets)
        return packets, errors

    def _receive_with_local(self) -> Received:
        data, ancillary, _, source = self.sock.recvmsg(_LARGEST, ANCILLARY)
        local = self.local
        for level, kind, value in ancillary:
            if level == socket.IPPROTO_IP and kind == _IP_PKTINFO:
                _, to, _ = _IN_PKTINFO.unpack_from(value)
                local = Address(socket.inet_ntop(socket.AF_INET, to), local.port)
            elif level == socket.IPPROTO_IPV6 and kind == socket.IPV6_PKTINFO:
                to, interface = _IN6_PKTINFO.unpack_from(value)
                host = socket.inet_ntop(socket.AF_INET6, to)
                scope = interface if to[:2] == b"\xfe\x80" else 0
                local = from_sockaddr((host, local.port, 0, scope))
        return Received(data, from_sockaddr(source), local)

    def _read_errors(self) -> list[Undeliverable]:
        return [Undeliverable(self.local, *error) for error in read_errors(self.sock)]

    def send(self, data: bytes, destination: Address, source: Address) -> None:
        """Send, or count in ``refused`` why it could not be sent.  Never raises."""
        try:
            self._send(data, destination, source)
        except OSError as error:
            if error.errno not in SEND_REASONS or error.errno in {
                errno.EHOSTUNREACH,
                errno.ENETUNREACH,
                errno.EACCES,
            }:
                # This may be the pending ICMP error of an earlier datagram: this one was not tried.
                try:
                    self._send(data, destination, source)
                except OSError as again:
                    error = again
                else:
                    self.sent += 1
                    return
            code = error.errno or 0
            self.refused[SEND_REASONS.get(code) or errno.errorcode.get(code, str(error))] += 1
        except (ValueError, OverflowError) as error:  # a port or a host that is no such thing
            self.refused[str(error)] += 1
        else:
            self.sent += 1

    def _send(self, data: bytes, destination: Address, source: Address) -> None:
        to = to_sockaddr(destination) if "%" in destination.host else destination
        if not self._wildcard or source.host == self.local.host or not _LINUX:
            self.sock.sendto(data, to)
            return
        if self.sock.family == socket.AF_INET6:
            host, _, zone = source.host.partition("%")
            interface = socket.if_nametoindex(zone) if zone else 0
            packed = _IN6_PKTINFO.pack(socket.inet_pton(socket.AF_INET6, host), interface)
            control = (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, packed)
        else:
            packed = _IN_PKTINFO.pack(0, socket.inet_aton(source.host), bytes(4))
            control = (socket.IPPROTO_IP, _IP_PKTINFO, packed)
        self.sock.sendmsg([data], [control], 0, to)

    def send_short(self, data: bytes, destination: Address, ttl: int) -> None:
        """Send a datagram that goes ``ttl`` hops (1 to 255) and no further.  Never raises.

        A router on the way drops it and mostly says so, which comes back as an ICMP error; the
        mapping that a NAT before that router has made for it stays.
        """
        to = to_sockaddr(destination) if "%" in destination.host else destination
        for attempt in (1, 2):
            try:
                self._send_short(data, to, ttl)
            except OSError as error:
                # The first failure may be the pending ICMP error of an earlier datagram.
                if attempt == 2 or error.errno in {errno.EWOULDBLOCK, errno.EMSGSIZE}:
                    code = error.errno or 0
                    self.refused[
                        SEND_REASONS.get(code) or errno.errorcode.get(code, str(error))
                    ] += 1
                    return
            except (ValueError, OverflowError) as error:
                self.refused[str(error)] += 1
                return
            else:
                self.sent += 1
                return

    def _send_short(
        self, data: bytes, to: tuple[str, int] | tuple[str, int, int, int], ttl: int
    ) -> None:
        # ip(7), ipv6(7): for one packet as ancillary data, for all as a socket option.
        ipv6 = self.sock.family == socket.AF_INET6
        level = socket.IPPROTO_IPV6 if ipv6 else socket.IPPROTO_IP
        if _LINUX:
            kind = socket.IPV6_HOPLIMIT if ipv6 else socket.IP_TTL
            self.sock.sendmsg([data], [(level, kind, _INT.pack(ttl))], 0, to)
            return
        option = socket.IPV6_UNICAST_HOPS if ipv6 else socket.IP_TTL
        usual = self.sock.getsockopt(level, option)
        self.sock.setsockopt(level, option, ttl)
        try:
            self.sock.sendto(data, to)
        finally:
            self.sock.setsockopt(level, option, usual)

    def close(self) -> None:
        """Close the descriptor."""
        self.sock.close()
