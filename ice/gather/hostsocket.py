"""A UDP socket of this host: one for each address, stream and component."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeAlias

from ice.base import Base
from ice.config import Interface
from stun.sansio import Address, Handle, Instant, Received

Taker: TypeAlias = Callable[[Received, Instant], None]

SpotKey: TypeAlias = tuple[str, int, int]


class Spot(NamedTuple):
    """What candidates are sought for: a component of a stream, from one address of this host."""

    interface: Interface
    stream: int
    component: int

    @property
    def key(self) -> SpotKey:
        """What it is known by, whatever else changes about the interface."""
        return self.interface.host, self.stream, self.component


class Correspondent:
    """A server that a socket has something to do with.

    ``answers`` takes its answers to Binding requests, while ``asked`` of them are open; ``relay``
    everything else that it sends, where it is a relay of ours.
    """

    __slots__ = ("answers", "asked", "relay")

    def __init__(self) -> None:
        self.asked = 0
        self.answers: Taker | None = None
        self.relay: Taker | None = None


class HostSocket:
    """A socket, and which servers are spoken to over it.

    ``base`` is there once it is open.  ``zone`` is that of a link-local address: it holds for all
    that is sent from there, so addresses of peers carry none (RFC 4007 section 11.2).
    """

    __slots__ = (
        "base",
        "handle",
        "is_plain",
        "ports",
        "relays",
        "servers",
        "spot",
        "wanted",
        "zone",
    )

    def __init__(self, handle: Handle, spot: Spot) -> None:
        self.handle = handle
        self.spot = spot
        self.base: Base | None = None
        self.zone = spot.interface.host.partition("%")[2]
        self.wanted = False
        """Whether paths begin at its base; allocations may need the socket all the same."""
        self.is_plain = False
        """Whether what comes from anybody but a server is delivered as it is."""
        self.ports: Iterator[int] = iter(())
        self.servers: dict[Address, Correspondent] = {}
        """What comes from these may be theirs; everything else is a peer's."""
        self.relays = 0
        """Allocations that are spoken for over it."""

    def set_wanted(self, wanted: bool) -> None:
        """Have paths begin at its base from now on, or no more."""
        self.wanted = wanted
        self.is_plain = wanted and not self.zone

    def correspondent(self, address: Address) -> Correspondent:
        """Have something to do with a server."""
        found = self.servers.get(address)
        if found is None:
            found = self.servers[address] = Correspondent()
        return found

    def part_from(self, address: Address) -> None:
        """Leave a server to whoever is at its address, if there is no more to do with it."""
        found = self.servers.get(address)
        if found is not None and not found.asked and found.relay is None:
            del self.servers[address]
