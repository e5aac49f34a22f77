"""The rendezvous with sockets, time and a book of names, on asyncio.

server = RendezvousServer(terms=Terms(), servers=Minter(secret, urls))
server.serve_at([Place.parse("ws://*:8080")])
async with server:
    await server.run()
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Final, Protocol, Self

from ice.rendezvous.access import Servers, Visitor
from ice.rendezvous.hall import Hall
from ice.rendezvous.machine import CannotServe, Rendezvous, RendezvousEvent, Serving
from ice.rendezvous.names import Member, Names
from ice.rendezvous.places import EVERY_HOST, Place, by_address
from ice.rendezvous.terms import Claim, Post, Release, Terms
from ice.rendezvous.web import Hosts
from stun.aio import Driver
from stun.errors import StunError
from stun.sansio import Address, Cause, Instant
from stun.sockaddr import cause_of_bind, detail_of, family_of, to_sockaddr
from stun.tls import ServerTls

CLOCK: Final = 5.0
"""Seconds between two looks at the wall clock, which may be set while the server runs."""
FAREWELL: Final = 1.0
"""Seconds that connections get, when the server stops, for what waits to be sent."""


class CannotListen(StunError):
    """The rendezvous cannot be had at these places: what is wrong and what to do, line by line."""


class Keeper(Protocol):
    """What a book needs of the server whose names it keeps."""

    hall: Hall

    def now(self) -> Instant:
        """Return the time by the hall's clock."""
        ...

    def flush(self) -> None:
        """Carry out what the hall has queued: to be called after telling it something."""
        ...


class Book(Protocol):
    """Who has which name.  Answers by :meth:`Hall.claimed`, at once or later."""

    async def open(self, keeper: Keeper) -> None:
        """Begin.  Raises ``StunError`` if that cannot be."""
        ...

    async def run(self) -> None:
        """Do what has to be done beside, for as long as the server runs."""
        ...

    async def close(self) -> None:
        """Give up every name, and end."""
        ...

    def claim(self, order: Claim) -> None:
        """Find out about a name."""
        ...

    def release(self, order: Release) -> None:
        """Give up a name."""
        ...

    def post(self, order: Post) -> None:
        """Carry a letter to another hall."""
        ...


class LocalBook:
    """The book of one process, which shares its names with nobody."""

    def __init__(self) -> None:
        self._names = Names(entropy=os.urandom)
        self._keeper: Keeper | None = None

    async def open(self, keeper: Keeper) -> None:
        """Begin."""
        self._keeper = keeper

    async def run(self) -> None:
        """Do nothing: there is nothing to be done."""
        await asyncio.Event().wait()

    async def close(self) -> None:
        """End."""

    def claim(self, order: Claim) -> None:
        """Find out about a name."""
        assert self._keeper is not None
        hall, now = self._keeper.hall, self._keeper.now()
        outcome = self._names.claim(order.name, Member(hall.name, order.client), now)
        hall.claimed(order.client, outcome, now)

    def release(self, order: Release) -> None:
        """Give up a name."""
        assert self._keeper is not None
        member = Member(self._keeper.hall.name, order.client)
        self._names.release(order.name, member, self._keeper.now())

    def post(self, order: Post) -> None:
        """Take note that there is no other hall."""
        assert self._keeper is not None
        self._keeper.hall.undelivered(order.letter, self._keeper.now())


class RendezvousServer:
    """A rendezvous: an asynchronous context manager, inside which :meth:`run` serves.

    ``tls`` gives the certificate for ``wss://``, asked for anew with each connection.  ``proxies``:
    whose ``X-Forwarded-For`` is believed.  ``on_event`` is told everything of
    :data:`ice.rendezvous.terms.Told`, :class:`Serving` and :class:`CannotServe`.  ``flag`` is what
    an operator says its places with.
    """

    def __init__(
        self,
        *,
        terms: Terms | None = None,
        servers: Callable[[Visitor, int], Servers] = lambda _visitor, _time: Servers(),
        book: Book | None = None,
        tls: Callable[[], ServerTls | None] = lambda: None,
        proxies: Hosts = (),
        software: str = "natkit",
        on_event: Callable[[RendezvousEvent], None] = lambda _: None,
        health: Callable[[], dict[str, object]] = dict,
        flag: str = "--listen",
    ) -> None:
        self._flag = flag
        self.hall = Hall(terms or Terms(), entropy=os.urandom, servers=servers, software=software)
        self.machine = Rendezvous(self.hall, proxies=proxies, health=health)
        self.serving: set[Address] = set()
        self._book = LocalBook() if book is None else book
        self._tls = tls
        self._on_event = on_event
        self._driver: Driver[RendezvousEvent] = Driver(self.machine, on_event=self._take)
        self._driver.take(Claim, self._book.claim)
        self._driver.take(Release, self._book.release)
        self._driver.take(Post, self._book.post)
        self._wanted: dict[Address, Place] = {}
        self._entered = False

    # Where it listens. ----------------------------------------------------------------------------

    def check(self, places: Sequence[Place]) -> None:
        """Raise :class:`CannotListen` if one of ``places`` could not be had now."""
        wanted = by_address(places)
        problems: list[str] = []
        for place in places:
            if place.secure and self._tls() is None:
                problems.append(f"{place} needs a certificate: --cert PEM (and --key PEM)")
        for address, place in wanted.items():
            if address in self.serving:
                continue
            error = _bind_problem(address)
            if error is not None and not (_lacks_family(error) and place.host == EVERY_HOST):
                problems.append(_advice(place, cause_of_bind(error), detail_of(error), self._flag))
        if problems:
            raise CannotListen("\n".join(dict.fromkeys(problems)))

    def serve_at(self, places: Sequence[Place]) -> None:
        """Listen at ``places`` and nowhere else, at once or when the server is entered.

        Those that listen already are left as they are, with their clients.
        """
        self._wanted = by_address(places)
        if self._entered:
            self._go_over()

    def _go_over(self) -> None:
        gone = [one for one in self.machine.open_listeners if one not in self._wanted]
        self.serving -= set(gone)
        self.machine.stop_listening(gone)
        outer = _context_of_the_moment(self._tls)
        ports = {one.port: outer for one in self._wanted.values() if one.secure and outer}
        self._driver.serve_with(None, {}, ports)
        there = set(self.machine.open_listeners)
        self.machine.listen(address for address in self._wanted if address not in there)
        self._driver.flush()

    def _take(self, event: RendezvousEvent) -> None:
        match event:
            case Serving():
                self.serving.add(event.local)
            case CannotServe():
                self.serving.discard(event.local)
        self._on_event(event)

    # Its life. ------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        """Listen.  Raises :class:`CannotListen`, and ``StunError`` if the book cannot be opened."""
        self.check([*self._wanted.values()])
        await self._book.open(self)
        try:
            await self._driver.__aenter__()
            self._entered = True
            self._set_clock()
            self._go_over()
            if self._wanted and not self.serving:
                raise CannotListen("no listener could be opened: there is nothing to serve")
        except BaseException:
            self._driver.close()
            await self._book.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        try:
            self.machine.stop(self.now())
            self._driver.flush()
            await self._driver.see_off(FAREWELL)
        finally:
            await self._driver.__aexit__(None, None, None)
            await self._book.close()

    async def run(self) -> None:
        """Serve until cancelled.  Raises what has gone wrong in the server itself."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._driver.run())
            tasks.create_task(self._book.run())
            tasks.create_task(self._look_at_the_clock())

    async def _look_at_the_clock(self) -> None:
        while True:
            self._set_clock()
            await asyncio.sleep(CLOCK)

    def _set_clock(self) -> None:
        self.hall.set_clock(time.time(), self.now())

    def now(self) -> Instant:
        """Return the time by the machine's clock."""
        return self._driver.now()

    def flush(self) -> None:
        """Carry out what the machine has queued."""
        self._driver.flush()

    @property
    def counters(self) -> dict[str, int]:
        """What the sockets counted, in words."""
        return dict(self._driver.counters)


def _context_of_the_moment(tls: Callable[[], ServerTls | None]) -> ssl.SSLContext | None:
    """Return a context that hands each connection on to the one of that moment.

    Listeners keep their context for good; certificates are renewed.
    """
    now = tls()
    if now is None:
        return None

    def hand_on(connection: ssl.SSLObject, _name: str | None, _: ssl.SSLContext) -> None:
        latest = tls()
        if latest is not None:
            connection.context = latest.streams

    outer = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    outer.minimum_version = now.streams.minimum_version
    outer.options = now.streams.options
    outer.sni_callback = hand_on
    return outer


# What is wrong with listeners. --------------------------------------------------------------------


def _bind_problem(address: Address) -> OSError | None:
    """Bind for a moment; return what is wrong, if something is."""
    try:
        with closing(socket.socket(family_of(address), socket.SOCK_STREAM)) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if address.is_ipv6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind(to_sockaddr(address))
            sock.listen(1)
    except OSError as error:
        return error
    return None


def _lacks_family(error: OSError) -> bool:
    return error.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT)


def _advice(place: Place, cause: Cause, detail: str, flag: str) -> str:
    match cause:
        case Cause.ADDRESS_IN_USE:
            return (
                f"port {place.port} of TCP is in use; `ss -lpn --tcp sport = :{place.port}` names "
                "the program. Stop it, or choose another port: "
                f"{flag} {str(place).rpartition(':')[0]}:PORT"
            )
        case Cause.ADDRESS_NOT_AVAILABLE:
            return (
                f"{place.host} is not an address of this machine; `ip address` lists those that "
                "are, and * stands for all"
            )
        case Cause.NOT_PERMITTED:
            return (
                f"not permitted to listen at {place}; ports below 1024 need root or "
                "CAP_NET_BIND_SERVICE (`AmbientCapabilities=` of systemd, `setcap`)"
            )
        case _:
            return f"cannot listen at {place}: {detail or cause.value}"


__all__ = ["Book", "CannotListen", "Keeper", "LocalBook", "RendezvousServer"]
