"""Names of this link that stand for addresses: those of peers looked up, one's own published.

After draft-ietf-mmusic-mdns-ice-candidates, with RFC 6762 below it.  The agents of an event loop
share the sockets; each is a :class:`Membership`, whose names go when it leaves.

Looking up: the question is sent from a port of its own.  Port 5353 is shared with whatever else
speaks Multicast DNS on this host, so that a unicast answer to it may reach another program (section
15.1); one to a port of our own comes back (section 6.7).  Responders that multicast their answers
nevertheless, as Chromium does, are heard on 5353.

Everything is of the link alone: what comes from an address that is not on it is ignored (section
11).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from collections import Counter
from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Any, Final
from uuid import UUID

from ice import mdnswire
from ice.interfaces import LocalAddress, local_addresses
from ice.mdnswire import Heard, as_name
from stun.sansio import Address
from stun.sockaddr import from_sockaddr

PORT: Final = 5353
GROUPS: Final = {4: "224.0.0.251", 6: "ff02::fb"}
ASK_AFTER: Final = (0.0, 1.0, 2.0)
"""Seconds before each question for the same name; the last answer may take as long again."""
ANNOUNCE_AGAIN: Final = 1.0
"""Section 8.3: "at least two unsolicited responses, one second apart"."""
MULTICAST_AGAIN: Final = 1.0
"""Section 6: a record is not multicast again within a second."""
BATCH: Final = 32
"""Messages read in one wake-up."""
MOST_NAMES: Final = 256
"""That are published by one event loop."""

_TTL = 255
_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}

_groups: dict[asyncio.AbstractEventLoop, Group] = {}


def join() -> Membership:
    """Join the link's name service in the running event loop.  Raises nothing, opens nothing yet.

    Where Multicast DNS cannot be had, names are made nevertheless, as the draft wants (section
    3.1.1), and nothing is ever found.
    """
    loop = asyncio.get_running_loop()
    group = _groups.get(loop)
    if group is None:
        group = _groups[loop] = Group(loop)
    return Membership(group)


class Membership:
    """One agent's part in it."""

    def __init__(self, group: Group) -> None:
        self._group = group
        self._names: dict[str, str] = {}
        group.members += 1
        self._left = False

    def publish(self, host: str) -> str:
        """Return the name that stands for an address of this host, a new one the first time."""
        name = self._names.get(host)
        if name is None:
            # Section 3.1.1: "a version 4 UUID as defined in RFC 4122, followed by .local".
            name = f"{UUID(bytes=os.urandom(16), version=4)}.local"
            self._names[host] = name
            self._group.publish(name, host)
        return name

    async def resolve(self, name: str) -> str | None:
        """Return the address that a peer's name stands for.

        ``None`` if nobody says so within some seconds, if there are several (section 3.2.2), or if
        it is no name that an agent makes.
        """
        wanted = as_name(name)
        return None if wanted is None else await self._group.resolve(wanted)

    def leave(self) -> None:
        """Take the names back."""
        if self._left:
            return
        self._left = True
        self._group.leave(self._names.values())


class Group:
    """What the agents of one event loop share."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.members = 0
        self.counters: Counter[str] = Counter()
        self._loop = loop
        self._links: list[LocalAddress] = []
        self._networks: list[IPv4Network | IPv6Network] = []
        self._listening: dict[int, socket.socket] = {}
        self._asking: dict[int, socket.socket] = {}
        self._published: dict[str, str] = {}
        self._told_at: dict[str, float] = {}
        self._timers: set[asyncio.TimerHandle] = set()
        self._wanted: dict[str, set[asyncio.Future[str | None]]] = {}

    # What members ask for. ------------------------------------------------------------------------

    def publish(self, name: str, host: str) -> None:
        """Answer for a name from now on."""
        if len(self._published) >= MOST_NAMES:
            self.counters["names not published: there are too many"] += 1
            return
        self._open()
        self._published[name] = host
        self._announce(name)
        self._later(ANNOUNCE_AGAIN, name)

    async def resolve(self, name: str) -> str | None:
        """Ask for a name until somebody answers."""
        if name in self._published:
            return self._published[name]
        self._open()
        future: asyncio.Future[str | None] = self._loop.create_future()
        waiting = self._wanted.setdefault(name, set())
        waiting.add(future)
        try:
            for pause in ASK_AFTER:
                await asyncio.wait((future,), timeout=pause)
                if future.done():
                    break
                self._ask(name)
            else:
                await asyncio.wait((future,), timeout=ASK_AFTER[-1])
            return future.result() if future.done() else None
        finally:
            waiting.discard(future)
            if not waiting:
                self._wanted.pop(name, None)

    def leave(self, names: Iterable[str]) -> None:
        """Take back the names of a member that leaves, and close what nobody needs."""
        for name in names:
            host = self._published.pop(name, None)
            self._told_at.pop(name, None)
            if host is not None:
                self._multicast(mdnswire.answer(name, host, ttl=0), host)
        self.members -= 1
        if not self.members:
            self._close()
            _groups.pop(self._loop, None)

    # Sockets. -------------------------------------------------------------------------------------

    def _open(self) -> None:
        if self._listening or self._asking:
            return
        self._links = [link for link in local_addresses() if not link.down]
        self._networks = [
            ip_network(f"{link.ip}/{link.prefix}", strict=False) for link in self._links
        ]
        for version in GROUPS:
            for port, sockets in ((PORT, self._listening), (0, self._asking)):
                try:
                    opened = self._bound(version, port)
                except OSError:  # another program has the port for itself, or there is no family
                    self.counters[f"no socket for IPv{version}, port {port}"] += 1
                    continue
                sockets[version] = opened
                self._loop.add_reader(opened.fileno(), self._readable, opened)

    def _bound(self, version: int, port: int) -> socket.socket:
        family = _FAMILIES[version]
        opened = socket.socket(family, socket.SOCK_DGRAM)
        try:
            opened.setblocking(False)
            if port:
                opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if hasattr(socket, "SO_REUSEPORT"):
                    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if version == 6:
                opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, _TTL)
            else:
                opened.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, _TTL)
            opened.bind(("", port))
            if port:
                for link in self._links_of(version):
                    with contextlib.suppress(OSError):  # joined already, or cannot multicast
                        _join(opened, version, link)
        except OSError:
            opened.close()
            raise
        return opened

    def _links_of(self, version: int) -> list[LocalAddress]:
        """Return one address of each interface."""
        found = {link.index: link for link in self._links if link.ip.version == version}
        # The loopback interface has no IPv6 multicast, and needs none: there is IPv4.
        return [link for link in found.values() if version == 4 or not link.ip.is_loopback]

    def _close(self) -> None:
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        for sockets in (self._listening, self._asking):
            for opened in sockets.values():
                self._loop.remove_reader(opened.fileno())
                opened.close()
            sockets.clear()

    def _later(self, seconds: float, name: str) -> None:
        def again() -> None:
            self._timers.discard(timer)
            if name in self._published:
                self._announce(name)

        timer = self._loop.call_later(seconds, again)
        self._timers.add(timer)

    # Sending. -------------------------------------------------------------------------------------

    def _ask(self, name: str) -> None:
        question = mdnswire.query(name, int.from_bytes(os.urandom(2)))
        for version, sender in self._asking.items():
            for link in self._links_of(version):
                self._send_on(sender, version, link, question)

    def _announce(self, name: str) -> None:
        host = self._published[name]
        self._told_at[name] = self._loop.time()
        self._multicast(mdnswire.answer(name, host), host)

    def _multicast(self, message: bytes, host: str) -> None:
        """Tell the link that an address is of, by both versions."""
        mine = {link.index for link in self._links if link.host == host}
        for version, sender in self._listening.items():
            for link in self._links_of(version):
                if link.index in mine:
                    self._send_on(sender, version, link, message)

    def _send_on(
        self, sender: socket.socket, version: int, link: LocalAddress, message: bytes
    ) -> None:
        try:
            if version == 6:
                sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, link.index)
            else:
                chosen = socket.inet_aton(str(link.ip))
                sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, chosen)
            sender.sendto(message, (GROUPS[version], PORT))
        except OSError as error:
            self.counters[f"not sent: {os.strerror(error.errno or 0)}"] += 1

    # Receiving. -----------------------------------------------------------------------------------

    def _readable(self, opened: socket.socket) -> None:
        for _ in range(BATCH):
            try:
                data, source = opened.recvfrom(mdnswire.LARGEST)
            except OSError:
                return
            if not self._is_on_link(source[0]):
                self.counters["dropped: from another network"] += 1
            elif (heard := mdnswire.read(data)) is None:
                self.counters["dropped: nothing about names of agents"] += 1
            elif heard.addresses:
                self._told(heard)
            else:
                self._asked(heard, source)
            if opened.fileno() < 0:
                return

    def _is_on_link(self, host: str) -> bool:
        address = ip_address(host.partition("%")[0])
        return address.is_link_local or any(address in network for network in self._networks)

    def _told(self, heard: Heard) -> None:
        for name, hosts in heard.addresses.items():
            for future in self._wanted.get(name, ()):
                if not future.done():
                    future.set_result(hosts[0] if len(hosts) == 1 else None)

    def _asked(self, heard: Heard, source: tuple[Any, ...]) -> None:
        wanted: dict[str, frozenset[int]] = {}
        unicast = True
        for question in heard.questions:
            if question.name in self._published:
                wanted[question.name] = wanted.get(question.name, frozenset()) | question.versions
                unicast = unicast and question.unicast
        for name, versions in wanted.items():
            self._answer(name, versions, heard.id, source, unicast=unicast)

    def _answer(
        self,
        name: str,
        versions: frozenset[int],
        number: int,
        source: tuple[Any, ...],
        *,
        unicast: bool,
    ) -> None:
        host, asker = self._published[name], from_sockaddr(source)
        if asker.port != PORT:
            # Section 6.7: whoever asks from another port wants the answer there.
            if (6 if ":" in host else 4) in versions:
                message = mdnswire.answer(
                    name, host, ttl=mdnswire.LEGACY_TTL, legacy=(number, versions)
                )
                self._reply(message, asker, source)
        elif unicast:
            self._reply(mdnswire.answer(name, host), asker, source)
        elif self._loop.time() - self._told_at.get(name, 0.0) >= MULTICAST_AGAIN:
            self._announce(name)

    def _reply(self, message: bytes, asker: Address, source: tuple[Any, ...]) -> None:
        sender = self._listening.get(6 if asker.is_ipv6 else 4)
        if sender is not None:
            try:
                sender.sendto(message, source)
            except OSError as error:
                self.counters[f"not sent: {os.strerror(error.errno or 0)}"] += 1


def _join(opened: socket.socket, version: int, link: LocalAddress) -> None:
    if version == 6:
        wanted = socket.inet_pton(socket.AF_INET6, GROUPS[6]) + link.index.to_bytes(
            4, sys.byteorder
        )
        opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, wanted)
    else:
        wanted = socket.inet_aton(GROUPS[4]) + socket.inet_aton(str(link.ip))
        opened.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, wanted)
