"""One component of one stream: over which pair its data goes, and what happens when that is gone.

RFC 8445 section 12.1: data may be sent on any valid pair until one is nominated, and from then on
goes over the nominated one.  Until then the pair of the highest priority is taken.  A restart
changes nothing until the new generation has a nominated pair, or the old pair is gone.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from ice.base import Base
from ice.pair import Pair
from stun.sansio import Address, Instant

NOWHERE: Final = Address("", 0)


class Component:
    """Where the data of a component goes.

    ``base`` and ``remote`` are those of ``pair``, kept beside it because each packet needs them.
    """

    __slots__ = (
        "base", "connected_in", "doubted", "failed", "generation", "hopeless", "id", "is_shared",
        "lost", "nominated", "pair", "remote", "sent", "shaky", "since", "stream",
    )  # fmt: skip

    def __init__(self, stream: int, component: int) -> None:
        self.stream = stream
        self.id = component
        self.pair: Pair | None = None
        self.base: Base | None = None
        self.remote = NOWHERE
        self.is_shared = False
        """Whether a connection or a relay lies below, with timers of its own for what is sent."""
        self.sent: Instant | None = None
        """When data was last sent."""
        self.shaky = False
        """Whether answers on the pair are overdue and others are asked."""
        self.nominated: Pair | None = None
        """What the agents agreed on last; data may have had to move elsewhere since."""
        self.generation = -1
        """That of ``pair``."""
        self.connected_in = -1
        """The last generation that had a valid pair."""
        self.since: Instant | None = None
        """Since when it has been without a pair after it had one."""
        self.hopeless = False
        """Whether it was told that a restart is needed."""
        self.failed = ""
        """Why it cannot be connected in this generation."""
        self.doubted: frozenset[Pair] = frozenset()
        """Pairs that were left because they did not answer."""
        self.lost: frozenset[Pair] = frozenset()
        """Pairs that consent was lost on.  RFC 7675 section 5.1: "the same ICE credentials MUST
        NOT be used on the affected 5-tuple again", so they are nothing to fall back on."""

    @property
    def key(self) -> int:
        """What it is found by: see :func:`key_of`."""
        return key_of(self.stream, self.id)

    def use(self, pair: Pair, generation: int) -> Pair | None:
        """Send over this pair from now on; return the one before."""
        before, self.pair = self.pair, pair
        self.base, self.remote = pair.base, pair.remote_address
        self.is_shared = pair.base.is_relayed or pair.base.is_reliable
        self.generation = generation
        self.since = None
        self.shaky = self.hopeless = False
        self.failed = ""
        return before

    def leave(self, now: Instant) -> Pair | None:
        """Send no more; return the pair that was used."""
        before, self.pair = self.pair, None
        self.base, self.remote = None, NOWHERE
        self.is_shared = False
        if before is not None:
            self.since = now
        return before

    def fallbacks(self, valid: Iterable[Pair], since: Instant) -> tuple[list[Pair], list[Pair]]:
        """Divide the valid pairs into those with the peer's consent and those to ask first.

        The best come first.  ``since``: an answer before that is consent no more (RFC 7675 section
        5.1: it "expires" 30 seconds after the last one).
        """
        left = [p for p in valid if p is not self.pair and p.valid and p not in self.lost]
        left.sort(key=preference, reverse=True)
        fresh = [p for p in left if p.answered is not None and p.answered >= since]
        return fresh, [p for p in left if p not in fresh]


def preference(pair: Pair) -> tuple[bool, int]:
    """Order pairs to send over: a nominated one first, then by priority."""
    return pair.nominated, pair.priority


def key_of(stream: int, component: int) -> int:
    """Return the number of a component among all; it is 1 to 256, so 9 bits hold it."""
    return stream << 9 | component
