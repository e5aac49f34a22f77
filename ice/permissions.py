"""Relays let a peer in as soon as it is known where it may come from.

A check that arrives at a relayed address is dropped unless the relay has a permission for its
sender (RFC 8656 section 9), and without this the permission would come with this side's own check
of that pair, one of the last.  With it the first check of either side passes, which saves a relayed
connection some round trips.  Where nothing but relays is used the peer's is often the same one, so
that its address is let in before anything is known of the peer.

What a peer makes an agent ask for is bounded: beyond :data:`MOST` hosts permissions come with the
checks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from ice.base import Base
from ice.candidate import Candidate
from stun.sansio import Address, Instant

MOST: Final = 16
"""Hosts of one stream, in one generation."""


class Permissions:
    """Has relays let peers in.  ``permit`` asks one: :meth:`ice.hub.Hub.open_path`.

    ``shared``: whether the peer probably has the same relay.
    """

    __slots__ = ("_bases", "_permit", "_remotes", "_shared")

    def __init__(
        self, permit: Callable[[Base, Address, Instant], None], *, shared: bool = False
    ) -> None:
        self._permit = permit
        self._shared = shared
        self._bases: tuple[Base, ...] = ()
        self._remotes: dict[tuple[int, str], Address] = {}

    def local(self, base: Base, now: Instant) -> None:
        """Take note of a base; only relayed ones over UDP are of interest."""
        if not base.is_relayed or base.is_reliable or base in self._bases:
            return
        self._bases = (*self._bases, base)
        if self._shared:
            self._permit(base, base.address, now)
        for (stream, host), remote in self._remotes.items():
            if stream == base.stream and (":" in host) == base.address.is_ipv6:
                self._permit(base, remote, now)

    def remote(self, candidate: Candidate, stream: int, now: Instant) -> None:
        """Take note of where the peer may be."""
        key = stream, candidate.host
        known = sum(other == stream for other, _ in self._remotes)
        if candidate.transport != "udp" or key in self._remotes or known >= MOST:
            return
        self._remotes[key] = candidate.address
        for base in self._bases:
            if base.stream == stream and (":" in candidate.host) == base.address.is_ipv6:
                self._permit(base, candidate.address, now)

    def forget(self, base: Base) -> None:
        """Take note that a base is no more."""
        self._bases = tuple(each for each in self._bases if each is not base)

    def restart(self) -> None:
        """Begin a generation: the peer tells anew where it is."""
        self._remotes.clear()
        self._bases = ()
