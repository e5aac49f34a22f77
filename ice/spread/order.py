"""What is asked of a spread, and what has come of it so far.

The arithmetic.  A NAT that draws a random port for every endpoint contacted has one mapping for
each of ``sockets`` sockets that send to the same endpoint; the other side, whose mapping does not
depend on whom it sends to, probes ports of that NAT's address.  Of 64512 ports, 256 are mapped:
174 probes hit one with a probability of 50 %, 512 with 87 %, 1024 with 98.3 %, 2048 with 99.97 %
(:func:`nattype.peers.birthday_probability`).

Both sides may open sockets as well: two NATs that count give the same ports to the sockets of a run
whatever else takes ports meanwhile, if each run is aimed at one port that the other's will pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Literal

from stun.errors import UsageError
from stun.sansio import MILLISECOND, SECOND, Address, Instant

MOST_SOCKETS: Final = 1024
MOST_RATE: Final = 10_000
LOWEST_PORT: Final = 1024
HIGHEST_PORT: Final = 65535


class Role(StrEnum):
    """What a side of a spread does."""

    SOCKETS = "sockets"
    """Opens many sockets, each of which sends to where the peer is known to be."""
    PROBES = "probes"
    """Sends from one socket, which the peer knows the mapping of, to many ports of the peer's."""


class Ended(StrEnum):
    """Why a spread sends no more."""

    FOUND = "a direct pair works"
    SPENT = "its packets are used up"
    EXPIRED = "its time is up"
    STOPPED = "it was stopped"
    NO_BASE = "this side has no socket for it"


@dataclass(frozen=True, slots=True)
class Spread:
    """An order for one.  Durations in nanoseconds; raises :class:`stun.errors.UsageError`.

    ``remotes``: where to.  Of SOCKETS, the endpoints that each socket sends to; of PROBES, only
    their hosts count.  Without any they are the server-reflexive candidates of the peer, of this
    transport and component, as they become known.

    ``packets`` is the budget: datagrams, or dials (the kernel repeats the SYN of one that is not
    answered after 1, 3 and 7 s).  Each of ``sockets`` is sent from again every ``again``, which
    keeps this side's NAT open, until ``duration`` has passed.  ``rate`` is per second.  ``ports``,
    both included, are those that PROBES draws from, no port twice.  ``ttl``: what SOCKETS sends
    goes so many hops only, so that it opens this side's NAT and does not reach the peer's.
    """

    role: Role
    transport: Literal["udp", "tcp"] = "udp"
    remotes: tuple[Address, ...] = ()
    sockets: int = 256
    packets: int = 2048
    rate: int = 500
    duration: int = 20 * SECOND
    again: int = 2 * SECOND
    ports: tuple[int, int] = (LOWEST_PORT, HIGHEST_PORT)
    ttl: int | None = None
    component: int = 1
    stream: int = 0

    def __post_init__(self) -> None:
        if self.transport not in ("udp", "tcp"):
            raise UsageError(f"a spread goes over udp or tcp, not {self.transport!r}")
        if not 1 <= self.sockets <= MOST_SOCKETS:
            raise UsageError(f"{self.sockets} sockets: 1 to {MOST_SOCKETS}")
        if not 1 <= self.rate <= MOST_RATE:
            raise UsageError(f"{self.rate} packets a second: 1 to {MOST_RATE}")
        if self.packets < 1 or self.duration < 1:
            raise UsageError("a spread needs packets to send and time to send them in")
        if self.again < 100 * MILLISECOND:
            raise UsageError("a socket is sent from again after 100 ms at the earliest")
        first, last = self.ports
        if not 1 <= first <= last <= 0xFFFF:
            raise UsageError(f"{self.ports} is not a range of ports: 1-65535, the lower one first")
        if self.ttl is not None and not 1 <= self.ttl <= 255:
            raise UsageError(f"{self.ttl} hops: 1 to 255")
        if any(not 1 <= remote.port <= 0xFFFF for remote in self.remotes):
            raise UsageError("a spread sends to ports 1 to 65535")


class Progress:
    """What has come of a spread so far; it changes while the spread goes on."""

    __slots__ = ("began", "ended", "hits", "opened", "order", "refused", "sent")

    def __init__(self, order: Spread) -> None:
        self.order = order
        self.began: Instant | None = None
        """When it sent first; ``None`` as long as something is missing that it needs."""
        self.ended: Ended | None = None
        self.sent = 0
        """Datagrams sent, or connections dialled."""
        self.opened = 0
        """Sockets opened."""
        self.refused = 0
        """Sockets that could not be had, and dials that failed."""
        self.hits = 0
        """Paths found."""

    def __repr__(self) -> str:
        what = f"{self.order.role} over {self.order.transport}"
        state = f"ended: {self.ended}" if self.ended else "going on"
        return f"<{what}: {self.sent} sent, {self.opened} opened, {self.hits} hits, {state}>"
