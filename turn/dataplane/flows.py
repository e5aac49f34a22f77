"""What the socket data plane keeps: its sockets, and the flow of each route.

Every relayed transport address is one socket, and there may be thousands: these objects are small,
and what only busy ones need is made when they become busy.
"""

from __future__ import annotations

import errno
import socket
import struct
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Final, TypeAlias, TypeVar

from stun.icmp import keep_errors
from stun.sansio import Address, Handle, Instant, Security
from stun.sockaddr import family_of, from_sockaddr, to_sockaddr
from stun.udp import SEND_REASONS
from turn.dataplane.base import Route
from turn.dataplane.mmsg import (
    LARGEST,
    NOT_SEGMENTED,
    WORTHWHILE,
    Destination,
    Outbox,
    has_segmentation,
    join_received,
    runs,
    segment_size,
)
from turn.dataplane.names import pack_name

SockAddr: TypeAlias = tuple[str, int] | tuple[str, int, int, int]

LISTENER_BUFFER: Final = 4 << 20
"""Room for a burst of all clients together; the kernel gives what its limit allows."""
FLOW_BUFFER: Final = 1 << 20
BUSY_SHARE: Final = 4
"""Of the descriptors that this process may have, busy flows get one in so many at most."""
MOST_LONELY: Final = 64
JOINS, WAS_JOINING = 2, 1

_LINUX = sys.platform == "linux"
_NONBLOCK = getattr(socket, "SOCK_NONBLOCK", 0)
# Values of <linux/in.h> and <linux/in6.h>; Python 3.11's socket module lacks these names.
_IP_MTU_DISCOVER, _IPV6_MTU_DISCOVER, _IPV6_DONTFRAG = 10, 23, 62
_PMTUDISC_WANT, _PMTUDISC_PROBE, _PMTUDISC_OMIT = 1, 3, 5

CHANNEL: Final = struct.Struct("!HH")
"""The header of ChannelData (RFC 8656 section 12.4): channel number, length."""


def open_socket(local: Address) -> socket.socket:
    """Return a bound, non-blocking socket.  Raises ``OSError``, ``ValueError``, ``OverflowError``.

    Each call costs about as much as relaying a packet does, and a relay makes and closes thousands
    of sockets: what is not needed is not called.
    """
    family = family_of(local)  # asking the socket for it costs as much as a system call
    sock = socket.socket(family, socket.SOCK_DGRAM | _NONBLOCK)
    try:
        if not _NONBLOCK:
            sock.setblocking(False)
        if family == socket.AF_INET6:
            # One family a socket: a mapped address never reaches a machine.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        keep_errors(sock, family=family)
    except BaseException:
        sock.close()
        raise
    return sock


def set_dont_fragment(sock: socket.socket, *, ipv6: bool, on: bool) -> None:
    """Set DF in what is sent from now on, or let it be fragmented on the way.

    RFC 8656 section 15.1: DF is 0 unless DONT-FRAGMENT asks for it.  PROBE sets it without regard
    to what the kernel believes of the path: it is the client who looks for the path's MTU.  OMIT
    leaves it out; unlike with DONT, the kernel still passes on what ICMP says of a datagram that
    had it.
    """
    if not _LINUX:
        return
    if ipv6:
        sock.setsockopt(
            socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_PROBE if on else _PMTUDISC_WANT
        )
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_DONTFRAG, int(on))
    else:
        sock.setsockopt(
            socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_PROBE if on else _PMTUDISC_OMIT
        )


class Listener:
    """A socket that clients send to, bound to one address; ``sock`` if that is done already."""

    __slots__ = ("handle", "ipv6", "is_open", "local", "may_join", "outbox", "routes",
                 "security", "sock")  # fmt: skip

    def __init__(
        self,
        handle: Handle,
        local: Address,
        security: Security,
        *,
        may_join: bool = True,
        sock: socket.socket | None = None,
    ) -> None:
        bound = sock is not None
        self.handle = handle
        self.may_join = may_join
        """Whether the kernel may be asked to join datagrams, here and on flows."""
        self.ipv6 = local.is_ipv6
        self.security = security
        self.sock = sock = open_socket(local) if sock is None else sock
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, LISTENER_BUFFER)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LISTENER_BUFFER)
            if not bound:
                sock.bind(to_sockaddr(local))
            self.local = from_sockaddr(sock.getsockname())
        except BaseException:
            sock.close()
            raise
        self.outbox = Outbox(sock)
        if may_join:
            join_received(sock)
        self.routes: dict[bytes, Flow] = {}
        """By the client's name (:func:`turn.dataplane.mmsg.pack_name`) and the channel number."""
        self.is_open = True

    def let_join(self, may: bool) -> None:
        """Have the kernel join datagrams from now on, here and on flows, or no longer."""
        if may == self.may_join:
            return
        self.may_join = may
        join_received(self.sock, on=may)
        for flow in self.routes.values():
            if not may and flow.sock is not None and flow.joins == JOINS:
                join_received(flow.sock, on=False)
                flow.joins = WAS_JOINING

    def count(self, counts: Counter[str]) -> None:
        """Add what was sent here, and what could not be."""
        counts["datagrams sent"] += self.outbox.sent
        for code, count in self.outbox.refused.items():
            counts[f"not sent: {why(code)}"] += count

    def close(self) -> None:
        """Close the descriptor."""
        self.is_open = False
        self.sock.close()


class Relay:
    """The socket of a relayed transport address."""

    __slots__ = ("flows", "handle", "is_open", "local", "sock")

    def __init__(self, handle: Handle, local: Address) -> None:
        self.handle = handle
        self.sock = sock = open_socket(local)
        try:
            if not local.is_ipv6:
                set_dont_fragment(sock, ipv6=False, on=False)
            sock.bind(to_sockaddr(local))
            self.local = local if local.port else from_sockaddr(sock.getsockname())
        except BaseException:
            sock.close()
            raise
        self.flows: dict[SockAddr, Flow] | None = None
        """By peer, as the socket module writes addresses; made for the first route."""
        self.is_open = True

    def flow_of(self, source: SockAddr) -> Flow | None:
        """Return the flow of a peer."""
        return None if self.flows is None else self.flows.get(source)

    def close(self) -> None:
        """Close the descriptor."""
        self.is_open = False
        self.sock.close()


class Flow(Destination):
    """A route.  As a destination it is the client; ``outgoing`` waits for the peer.

    A flow that proves busy gets a socket of its own (``sock``), bound to the relayed transport
    address and connected to the peer.  The kernel then finds the way once instead of for every
    packet, and neither it nor Python writes or reads an address: that is a third of what relaying
    a packet costs.
    """

    __slots__ = (
        "backoff", "channel", "expires", "joins", "largest", "listener", "lonely", "meter",
        "outbox", "outgoing", "packets", "pause", "peer", "relay", "route", "sock", "table_key",
        "trusted_from",
    )  # fmt: skip

    def __init__(self, route: Route, listener: Listener, relay: Relay, expires: Instant) -> None:
        super().__init__(pack_name(route.key.client))
        self.route = route
        self.channel = route.key.channel
        self.table_key = self.name + self.channel.to_bytes(2, "big")
        self.meter = route.meter
        self.listener = listener
        self.outbox = listener.outbox
        self.relay = relay
        self.peer = as_received(route.peer)
        self.expires = expires
        self.outgoing: list[memoryview] = []
        self.packets = 0
        """Until it has a socket of its own."""
        self.sock: socket.socket | None = None
        self.trusted_from: Instant = 0
        self.largest = LARGEST if has_segmentation() else 0
        """Segments that are larger are known to fail."""
        self.pause = self.backoff = 8
        """Packets that are read one by one until the next look whether they come in bursts."""
        self.joins = self.lonely = 0

    def send(self, refused: Counter[int]) -> None:
        """Send ``outgoing`` to the peer; count in ``refused``, by ``errno``, what did not go."""
        outgoing = self.outgoing
        if len(outgoing) >= WORTHWHILE and self.largest:
            sock, to = (self.relay.sock, self.peer) if self.sock is None else (self.sock, None)
            one = partial(self._send_one, refused=refused)
            self.largest = send_joined(sock, outgoing, to, self.largest, one)
        else:
            for part in outgoing:
                self._send_one(part, refused)
        outgoing.clear()

    def _send_one(self, part: memoryview, refused: Counter[int]) -> None:
        for attempt in range(2):
            try:
                if self.sock is not None:
                    self.sock.send(part)
                else:
                    self.relay.sock.sendto(part, self.peer)
            except OSError as error:
                # It may be the pending ICMP error of an earlier datagram: this one was not tried.
                if attempt:
                    refused[error.errno or 0] += 1
            else:
                return

    def look_for_bursts(self, packets: int, *, emptied: bool) -> None:
        """Decide how to read next, after as many ``packets`` were read together.

        Reading several at once costs more than reading one.  Where there are several, the kernel is
        asked to join them; that is taken back before they are read one by one again, which could
        not tell a joined datagram from a single one.  ``emptied``: nothing is left that was joined.
        """
        assert self.sock is not None
        if packets >= WORTHWHILE:
            self.backoff, self.lonely = 4, 0
            if self.joins != JOINS and self.listener.may_join and join_received(self.sock):
                self.joins = JOINS
        elif self.joins == JOINS:
            self.lonely += 1
            if self.lonely > MOST_LONELY:
                join_received(self.sock, on=False)
                self.joins = WAS_JOINING
        elif emptied:
            self.joins = 0
            self.pause = self.backoff = min(2 * self.backoff, MOST_LONELY)

    def connect(self) -> None:
        """Get a socket of its own.  Raises ``OSError``; all is then as it was.

        SO_REUSEADDR is on only while it is needed: it would let any other program share the port.
        """
        main, local = self.relay.sock, to_sockaddr(self.relay.local)
        sock = open_socket(self.relay.local)
        try:
            if not self.relay.local.is_ipv6:
                set_dont_fragment(sock, ipv6=False, on=False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, FLOW_BUFFER)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            main.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                sock.bind(local)
                sock.connect(self.peer)
            finally:
                main.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        except BaseException:
            sock.close()
            raise
        self.sock = sock


Part = TypeVar("Part", bytes, memoryview)


def send_joined(
    sock: socket.socket,
    parts: list[Part],
    to: SockAddr | None,
    largest: int,
    one: Callable[[Part], None],
) -> int:
    """Send several datagrams as ones that are cut on the way, where that works, else by ``one``.

    ``to`` is ``None`` where ``sock`` is connected; segments above ``largest`` are known to fail.
    Returns what ``largest`` is afterwards.
    """
    sizes = [len(part) for part in parts]
    for first, count in runs(sizes):
        run, size = parts[first : first + count], sizes[first]
        if count > 1 and size <= largest:
            try:
                if to is None:
                    sock.sendmsg(run, segment_size(size))
                else:
                    sock.sendmsg(run, segment_size(size), 0, to)
                continue
            except OSError as error:
                if error.errno in NOT_SEGMENTED:
                    largest = 0 if error.errno == errno.EIO else size - 1
        for part in run:
            one(part)
    return largest


def as_received(address: Address) -> SockAddr:
    """Return a transport address as ``recvfrom`` will write it.  Raises ``OSError``."""
    if ":" not in address.host:
        return (address.host, address.port)
    sockaddr = to_sockaddr(address)
    host = socket.inet_ntop(socket.AF_INET6, socket.inet_pton(socket.AF_INET6, sockaddr[0]))
    return (host, address.port, 0, sockaddr[3] if len(sockaddr) == 4 else 0)


def descriptors() -> int:
    """Return how many descriptors this process may have."""
    if sys.platform == "win32":
        return 512
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft if soft >= 0 else 1 << 20


def why(code: int) -> str:
    """Say in words what an ``errno`` of a send means."""
    return SEND_REASONS.get(code) or errno.errorcode.get(code, str(code))
