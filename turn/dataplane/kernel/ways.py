"""Where packets of this machine leave: routes, links, and word of their changes (rtnetlink(7)).

Theory of operation.  The program in the kernel sends on an interface that it is told, and no packet
that is longer than it is told.  Both are asked of the kernel, which answers as it would route a
packet of its own: with policy rules, and with what ICMP has taught it of a path's MTU.

Only what looks like Ethernet to the program is a way: an interface with Ethernet headers that is up
and is not this machine itself, and that packets leave by as they are.  The sockets reach all else:
tunnels without link-layer headers, the loopback interface, addresses of this machine, multicast and
broadcast, and what IPsec protects.
"""

from __future__ import annotations

import select
import socket
import struct
from collections.abc import Mapping
from typing import Final, NamedTuple

from turn.dataplane.kernel.netlink import WORD, Conversation, attribute, attributes
from turn.dataplane.kernel.policies import Policies

_ROUTE: Final = 0
_NEW_LINK, _DEL_LINK, _GET_LINK = 16, 17, 18
_NEW_ROUTE, _GET_ROUTE = 24, 26
_LINK = struct.Struct("=BBHiII")
_ROUTE_MESSAGE = struct.Struct("=BBBBBBBBI")
_IFLA_NAME, _IFLA_MTU, _IFLA_MASTER, _IFLA_LINKINFO, _IFLA_EXT_MASK = 3, 4, 10, 18, 29
_INFO_SLAVE_KIND = 4
_SKIP_STATISTICS = 1 << 3
_RTA_DST, _RTA_SRC, _RTA_OIF, _RTA_GATEWAY, _RTA_METRICS = 1, 2, 4, 5, 8
_RTA_VIA, _RTA_ENCAP, _RTA_PROTOCOL = 18, 22, 27
_FAMILY = struct.Struct("=H")
_RTAX_MTU = 2
_UNICAST = 1
_ETHERNET = 1
_UP, _LOOPBACK = 0x1, 0x8
# Links; addresses, routes and rules of IPv4 and IPv6.
_GROUPS = 0x1 | 0x10 | 0x40 | 0x80 | 0x100 | 0x400 | 1 << 18


class Way(NamedTuple):
    """How packets to a destination leave: the interface, and octets of the longest IP packet.

    ``next_hop`` is the router that they are given to; empty: the destination itself.
    """

    ifindex: int
    mtu: int
    next_hop: str = ""


class Interface(NamedTuple):
    """A network interface with Ethernet headers that is up.  ``mtu``: octets of an IP packet."""

    name: str
    mtu: int
    is_port: bool
    """Whether what comes in here is handed to another interface: to a bridge, a bond, a team."""


class Ways:
    """The kernel's answers.  It belongs to the network namespace that it was made in.

    Raises ``OSError`` where netlink cannot be had.
    """

    def __init__(self) -> None:
        self._kernel = Conversation(_ROUTE, _GROUPS)
        self._links: dict[int, Interface] = {}
        try:
            self._read_links()
            self._policies = Policies()
        except BaseException:
            self._kernel.close()
            raise
        # One descriptor for both, which is readable when either is.
        self._both = select.epoll()
        for fd in (self._kernel.fileno(), self._policies.fileno()):
            if fd >= 0:
                self._both.register(fd, select.EPOLLIN)

    # Asking. --------------------------------------------------------------------------------------

    def way_of(self, source: str, destination: str) -> Way | None:
        """Return how UDP from one numeric address of this machine to another host leaves.

        ``None``: the program must not or cannot send it, or nobody can.
        """
        family = socket.AF_INET6 if ":" in destination else socket.AF_INET
        try:
            octets = [socket.inet_pton(family, host) for host in (destination, source)]
        except OSError:  # one with a zone, which the program could not tell from its namesake
            return None
        if not self._policies.leave_plain(source, destination):
            return None
        bits = 8 * len(octets[0])
        body = (
            _ROUTE_MESSAGE.pack(family, bits, bits, 0, 0, 0, 0, 0, 0)
            + attribute(_RTA_DST, octets[0])
            + attribute(_RTA_SRC, octets[1])
            + attribute(_RTA_PROTOCOL, bytes([socket.IPPROTO_UDP]))
        )
        try:
            answer = self._kernel.ask(_GET_ROUTE, body, _NEW_ROUTE)
        except OSError:  # unreachable; or the source is not, or no longer, of this machine
            return None
        return self._read_route(answer) if len(answer) >= _ROUTE_MESSAGE.size else None

    def _read_route(self, answer: bytes) -> Way | None:
        kind = _ROUTE_MESSAGE.unpack_from(answer)[7]
        values = attributes(answer, _ROUTE_MESSAGE.size)
        if kind != _UNICAST or _RTA_ENCAP in values or len(values.get(_RTA_OIF, b"")) != WORD.size:
            return None
        (ifindex,) = WORD.unpack(values[_RTA_OIF])
        interface = self._links.get(ifindex)
        if interface is None:
            return None
        mtu = interface.mtu
        learned = attributes(values.get(_RTA_METRICS, b"")).get(_RTAX_MTU, b"")
        if len(learned) == WORD.size:
            mtu = min(mtu, *WORD.unpack(learned))
        return Way(ifindex, mtu, _next_hop(values))

    def interfaces(self) -> Mapping[int, Interface]:
        """Return by index the interfaces that packets for this machine come in by.

        What a port of a bridge or a bond takes in comes by that as well; there it is looked at.
        """
        return {index: link for index, link in self._links.items() if not link.is_port}

    # Changes. -------------------------------------------------------------------------------------

    def fileno(self) -> int:
        """Return what to wait on: readable when anything has changed.  -1 after the end."""
        return -1 if self._both.closed else self._both.fileno()

    def changed(self) -> bool:
        """Take all that was told of changes, without blocking; return whether there was anything.

        Raises ``OSError`` when what has changed cannot be read.
        """
        kinds = self._kernel.news()
        if kinds is None or not kinds.isdisjoint({_NEW_LINK, _DEL_LINK}):
            self._read_links()
        return self._policies.changed() or kinds is None or bool(kinds)

    def close(self) -> None:
        """Ask and hear no more."""
        self._both.close()
        self._kernel.close()
        self._policies.close()

    def _read_links(self) -> None:
        # Without statistics a link takes a quarter of the room.
        mask = attribute(_IFLA_EXT_MASK, WORD.pack(_SKIP_STATISTICS))
        links = {}
        for body in self._kernel.table(_GET_LINK, bytes(_LINK.size) + mask, _NEW_LINK):
            if len(body) < _LINK.size:
                continue
            _, _, kind, index, flags, _ = _LINK.unpack_from(body)
            if kind == _ETHERNET and flags & _UP and not flags & _LOOPBACK:
                links[index] = _interface(attributes(body, _LINK.size))
        self._links = links


def _next_hop(values: Mapping[int, bytes]) -> str:
    """Return the router of a route; an IPv4 route may have one of IPv6 (RFC 8950)."""
    octets = values.get(_RTA_GATEWAY) or values.get(_RTA_VIA, b"")[_FAMILY.size :]
    families = {4: socket.AF_INET, 16: socket.AF_INET6}
    return socket.inet_ntop(families[len(octets)], octets) if len(octets) in families else ""


def _interface(values: Mapping[int, bytes]) -> Interface:
    name = values.get(_IFLA_NAME, b"").rstrip(b"\0").decode(errors="replace")
    mtu = values.get(_IFLA_MTU, b"")
    about = attributes(values.get(_IFLA_LINKINFO, b""))
    # An interface of a VRF has a master, too, but packets come in by itself.
    is_vrf = about.get(_INFO_SLAVE_KIND, b"").rstrip(b"\0") == b"vrf"
    return Interface(
        name,
        WORD.unpack(mtu)[0] if len(mtu) == WORD.size else 0,
        _IFLA_MASTER in values and not is_vrf,
    )
