"""Other processes of the same server, as a server machine sees them.

A server may be several processes that share its listeners (:mod:`turn.daemon.workers`).  Each has a
machine of its own, whose clients and relayed transport addresses the others do not know.  What has
to hold for all of them together goes through :class:`Siblings`.  A machine that is alone has none.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Final, NamedTuple, Protocol

from stun.sansio import Address
from turn.meter import Bucket

MOST: Final = 64
"""Processes of one server: their numbers go into one octet, and 0 is nobody's."""


class Held(NamedTuple):
    """What the other processes hold."""

    total: int
    user: int
    client: int


class Siblings(Protocol):
    """The other processes of this server.  Every method is a matter of microseconds."""

    @property
    def number(self) -> int:
        """Which of the processes this one is, from 1 on."""
        ...

    @property
    def key(self) -> bytes:
        """A secret that all of them know, and nobody else."""
        ...

    # Quotas. --------------------------------------------------------------------------------------

    def counting(self) -> AbstractContextManager[object]:
        """Let nobody else count meanwhile.  It may be entered again within."""
        ...

    def allocations(self, user: str, client: str | bytes) -> Held:
        """Return how many allocations there are elsewhere: in all, of a user, of a client."""
        ...

    def connections(self, client: str | bytes) -> Held:
        """Return how many connections there are elsewhere: in all, and of a client."""
        ...

    def note(
        self,
        user: str | None,
        client: str | bytes,
        *,
        of_user: int,
        of_client: tuple[int, int],
        in_all: tuple[int, int],
    ) -> None:
        """Say what a user (allocations) and a client (allocations, connections) have here now.

        ``in_all``: the allocations and the connections of all of them.
        """
        ...

    def bucket(self, whose: str, key: str | bytes, rates: tuple[int, int]) -> Bucket:
        """Return the bucket that a user or a client has in all processes together.

        ``whose`` is "user" or "client"; ``rates`` are octets and packets a second.
        """
        ...

    # Relayed transport addresses, by where their sockets are bound. -------------------------------

    def opened(self, local: Address, *, tcp: bool) -> None:
        """Say that one is open here."""
        ...

    def closed(self, local: Address, *, tcp: bool) -> None:
        """Say that one is closed, before its socket is."""
        ...

    def has(self, local: Address, *, tcp: bool) -> bool:
        """Whether one is open in another process."""
        ...

    def visit(self, local: Address) -> None:
        """Ask to be told (:meth:`turn.server.machine.Server.left`) when one closes."""
        ...
