"""Where clients come to: listeners, and the grids of behaviour discovery (RFC 5780).

A listener on a wildcard stands for many local addresses.  Clients are told apart by the one they
used, so an endpoint is made for each, up to a bound.
"""

from __future__ import annotations

from typing import Final

from stun.discovery import Transport
from stun.responder import Endpoint
from stun.sansio import (
    Address,
    Closed,
    Instant,
    Listen,
    Opened,
    OpenUdp,
    Security,
    Shut,
)
from turn.server.allocation import Relay
from turn.server.config import ListenAt, ServerConfig
from turn.server.core import Core, Listener
from turn.server.events import CannotServe, EndReason, Serving, Started
from turn.server.lifetimes import Lifetimes

MOST_ENDPOINTS: Final = 4096
"""Local addresses behind one wildcard that are remembered; the others work, more slowly."""

_DATAGRAMS = (Transport.UDP, Transport.DTLS)
_ANY = {False: "0.0.0.0", True: "::"}  # noqa: S104  (looked up, not bound)


class Listening:
    """Opens and shuts listeners, and finds the one that a packet came to."""

    def __init__(self, core: Core, lifetimes: Lifetimes) -> None:
        self._core = core
        self._lifetimes = lifetimes
        self._undecided = 0
        self._started = False
        self._failed = 0

    def start(self) -> None:
        """Open everything that is configured."""
        for at in wanted(self._core.config):
            self._open(at)
        if not self._undecided:
            self._decided()

    def reconfigure(self, now: Instant) -> list[str]:
        """Open and shut what has changed; say so."""
        core = self._core
        wish = wanted(core.config)
        words = []
        for listener in list(core.listeners.values()):
            if listener.at not in wish:
                self._shut(listener, now)
                words.append(f"no longer listening at {_words(listener.at)}")
        present = {listener.at for listener in core.listeners.values()}
        for at in wish:
            if at not in present:
                self._open(at)
                words.append(f"listening at {_words(at)}")
        self._join()
        self._decided()
        return words

    def _open(self, at: ListenAt) -> None:
        core = self._core
        handle = core.next_handle()
        core.listeners[handle] = Listener(handle, at)
        self._undecided += 1
        security = Security.DETECT if at.detect else Security.NONE
        if at.transport.is_secure:
            security = Security.REQUIRED
        if at.transport in _DATAGRAMS:
            core.queue(OpenUdp(handle, at.local, security, serves=True))
        else:
            core.queue(Listen(handle, at.local, security=security, exclusive=True))

    def _shut(self, listener: Listener, now: Instant) -> None:
        core = self._core
        del core.listeners[listener.handle]
        core.queue(Shut(listener.handle))
        if listener.local is None:
            self._undecided -= 1  # and no event will say more of it
        if listener.at.transport not in _DATAGRAMS:
            return  # what it has accepted has sockets of its own
        for local in (listener.local, *listener.endpoints):
            if local is not None and core.places.get(local) is listener:
                del core.places[local]
        served = {local for local in (listener.local, *listener.endpoints) if local is not None}
        for allocation in list(core.sessions.values()):
            flow = allocation.flow
            if flow.server in served and flow.transport in _DATAGRAMS:
                self._lifetimes.end(allocation, EndReason.POLICY, now)

    def stop(self) -> None:
        """Shut every listener."""
        for handle in self._core.listeners:
            self._core.queue(Shut(handle))
        self._core.listeners.clear()
        self._core.places.clear()

    # What the driver says. ------------------------------------------------------------------------

    def opened(self, event: Opened) -> None:
        """Take note that a listener is open."""
        core, listener = self._core, self._core.listeners[event.handle]
        listener.local = event.local
        listener.endpoint = self._endpoint(listener, event.local)
        if listener.at.transport in _DATAGRAMS:
            core.places[event.local] = listener
        self._join()
        core.tell(Serving(listener.at.transport, event.local))
        self._decided(decided=1)

    def closed(self, event: Closed) -> None:
        """Take note that a listener could not be had, or is lost."""
        core = self._core
        listener = core.listeners.pop(event.handle)
        if listener.local is not None and core.places.get(listener.local) is listener:
            del core.places[listener.local]
        at = listener.at
        core.tell(CannotServe(at.transport, at.local, event.cause, event.detail))
        if listener.local is None:
            self._failed += 1
            self._decided(decided=1)

    def _decided(self, decided: int = 0) -> None:
        self._undecided -= decided
        if not self._undecided and not self._started:
            self._started = True
            serving = sum(one.local is not None for one in self._core.listeners.values())
            self._core.tell(Started(serving, self._failed))

    def _endpoint(self, listener: Listener, local: Address) -> Endpoint:
        advertised = listener.at.advertised
        if advertised is None:
            return Endpoint(local, local)
        return Endpoint(local, Address(advertised.host, advertised.port or local.port))

    def _join(self) -> None:
        """Let the four endpoints of a grid know each other, once all of them are open.

        RFC 5780 section 6: as long as one is missing, OTHER-ADDRESS must not be advertised.
        """
        core = self._core
        for transports in (_DATAGRAMS, (Transport.TCP,)):
            found: dict[Address, Listener] = {}
            for listener in core.listeners.values():
                if listener.local is None or listener.at.transport not in transports:
                    continue
                found[listener.local] = listener
                if listener.endpoint is not None and listener.endpoint.has_alternate:
                    listener.endpoint = self._endpoint(listener, listener.local)
            for primary, alternate in core.config.discovery:
                grid = [found.get(address) for address in _grid(primary, alternate)]
                ends = [
                    one.endpoint for one in grid if one is not None and one.endpoint is not None
                ]
                if len(ends) == len(grid):
                    for index, endpoint in enumerate(ends):
                        endpoint.join(ends[index ^ 1], ends[index ^ 2], ends[index ^ 3])

    # Finding. -------------------------------------------------------------------------------------

    def serves(self, local: Address) -> bool:
        """Whether clients' datagrams are taken at a local address."""
        return type(self._core.places.get(local) or self.behind_wildcard(local)) is Listener

    def behind_wildcard(self, local: Address) -> Listener | Relay | None:
        """Return what is behind a local address that a wildcard stands for."""
        core = self._core
        place = core.places.get(Address(_ANY[local.is_ipv6], local.port))
        if type(place) is Listener and len(place.endpoints) < MOST_ENDPOINTS:
            # A whole prefix may be local (127.0.0.0/8; an IPv6 /64 that is routed to this host).
            core.places[local] = place
            place.endpoints[local] = self._endpoint(place, local)
        return place

    def endpoint(self, listener: Listener, local: Address) -> Endpoint | None:
        """Return the endpoint of a listener that stands for a local address."""
        if listener.local == local:
            return listener.endpoint
        return listener.endpoints.get(local) or self._endpoint(listener, local)


def wanted(config: ServerConfig) -> list[ListenAt]:
    """Return the listeners of a configuration: those named, and the rest of the grids."""
    places = list(dict.fromkeys(config.listeners))
    for primary, alternate in config.discovery:
        for transports in (_DATAGRAMS, (Transport.TCP, Transport.TLS)):
            there = {at.local: at for at in places if at.transport in transports}
            if Transport.TCP in transports and primary not in there:
                continue  # behaviour discovery over UDP alone
            for address in _grid(primary, alternate):
                if address not in there:
                    places.append(ListenAt(transports[0], address))
    return places


def _grid(primary: Address, alternate: Address) -> tuple[Address, ...]:
    """Return four addresses; index xor 1 is at the other port, index xor 2 at the other host."""
    return (
        primary,
        Address(primary.host, alternate.port),
        Address(alternate.host, primary.port),
        alternate,
    )


def _words(at: ListenAt) -> str:
    return f"{at.transport.value} {at.local}"
