"""After the agents have agreed: what is given up, and when (RFC 8445 section 8.3).

"Once a checklist has reached the Completed state, the agent SHOULD wait an additional three
seconds", and then it can free what did not become a selected candidate.  Here what the monitor may
want later stays, and the checks of what it may want come first.
"""

from __future__ import annotations

from collections.abc import Set
from typing import TYPE_CHECKING, Final

from ice.pair import PairState
from stun.sansio import SECOND, Instant

if TYPE_CHECKING:
    from ice.base import Base
    from ice.checks.checker import Checker
    from ice.hub import Hub
    from ice.selection import Selection

LINGER: Final = 3 * SECOND
MOST_LINGERS: Final = 5
"""How often that time begins anew because pairs wait for their first check."""


class Conclusion:
    """Gives up sockets, connections and relays when each of ``streams`` checklists is completed."""

    __slots__ = ("_at", "_checker", "_completed", "_hub", "_lingers", "_selection", "_streams")

    def __init__(self, streams: int, hub: Hub, checker: Checker, selection: Selection) -> None:
        self._streams = streams
        self._hub = hub
        self._checker = checker
        self._selection = selection
        self._completed: frozenset[int] = frozenset()
        self._at: Instant | None = None
        self._lingers = 0

    def restart(self) -> None:
        """Begin a generation: whatever there is may be needed."""
        self._completed = frozenset()
        self._at = None

    def completed(self, stream: int, now: Instant) -> None:
        """Take note that each component of a stream has a nominated pair."""
        self._completed |= {stream}
        self.changed(now)

    def changed(self, now: Instant) -> None:
        """Take note that a pair was nominated: what is needed may be something else now."""
        if len(self._completed) == self._streams:
            self._at, self._lingers = now + LINGER, MOST_LINGERS

    def deadline(self) -> Instant | None:
        """Say when :meth:`on_deadline` is to be called."""
        return self._at

    def on_deadline(self, now: Instant) -> Set[Base]:
        """Give up what is not needed, if it is time; return the bases that are no more."""
        if self._at is None or now < self._at:
            return frozenset()
        self._at = None
        if self._lingers and any(p.state is PairState.WAITING for p in self._checker.pairs()):
            self._lingers -= 1
            self._at = now + LINGER
            return frozenset()
        bases = self._hub.bases
        kept = self._selection.wanted(bases)
        gone = [base for base in bases if base not in kept]
        for base in gone:
            self._checker.base_lost(base, now)
        self._hub.retain(list(kept), now)
        return frozenset(gone)
