"""The TURN credentials that a rendezvous hands out, each for one client and for a while.

They are those of draft-uberti-behave-turn-rest-00: the rendezvous and the relay share a secret, and
the relay keeps no list.  The user's name in them is made of the client's address, so a relay that
limits each user limits each client, however many credentials it asks for.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from typing import Final

from ice.rendezvous.protocol import TurnAccess
from stun.credentials import mint
from stun.sansio import Address

TTL: Final = 86400
"""Seconds: a connection that lives for longer asks the rendezvous again."""

_NOWHERE: Final = bytes(4)


@dataclass(frozen=True, slots=True)
class Visitor:
    """Who has come: the client's transport address, and the one of this machine that it came to.

    ``client`` has port 0 where a proxy between does not say, and ``local`` is then the proxy's way.
    """

    client: Address
    local: Address


@dataclass(frozen=True, slots=True)
class Servers:
    """What a client is told to use."""

    turn: TurnAccess | None = None
    stun: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Minter:
    """Makes credentials of a secret that the relays at ``urls`` have too.

    Without a secret or without URLs there is no TURN.  ``ttl`` is in seconds.
    """

    secret: str = field(default="", repr=False)
    urls: tuple[str, ...] = ()
    stun: tuple[str, ...] = ()
    ttl: int = TTL

    def __call__(self, visitor: Visitor, unix_time: int) -> Servers:
        """Return what ``visitor`` is told."""
        if not (self.secret and self.urls):
            return Servers(None, self.stun)
        made = mint(self.secret, user_of(visitor.client.host), self.ttl, unix_time)
        return Servers(TurnAccess(self.urls, made.username, made.password, self.ttl), self.stun)


def client_key(host: str) -> bytes:
    """Return what a client is counted by: an IPv4 address, or the /64 of an IPv6 address.

    An IPv6 host has a whole /64 to take addresses from (RFC 4291 section 2.5.4).
    """
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return _NOWHERE
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).packed[:8]


def user_of(host: str) -> str:
    """Return a TURN user's name for a client: what :func:`client_key` counts it by, in words.

    Without colons, which in a time-limited username end the time.
    """
    key = client_key(host)
    if len(key) == 4:
        return str(ipaddress.IPv4Address(key))
    return ipaddress.IPv6Address(key + bytes(8)).exploded[:19].replace(":", "-")
