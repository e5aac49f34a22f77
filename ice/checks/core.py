"""What the parts of the checker share: the role, the generations, the way out, the pace."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from typing import TypeAlias

from ice.base import Base
from ice.checks.checklist import Checklist, Generation
from ice.checks.events import CheckEvent
from ice.checks.pairs import CheckedPair
from ice.checks.transactions import Outstanding
from ice.config import Config
from ice.events import RoleChanged
from stun.errors import DropReason
from stun.sansio import Address, Entropy, Instant

Send: TypeAlias = Callable[[Base, Address, bytes, Instant], None]
OpenPath: TypeAlias = Callable[[Base, Address, Instant], None]


class Core:
    """The state of a checker.  Its parts change it; :class:`ice.checks.checker.Checker` owns it."""

    __slots__ = (
        "config", "connections", "controlling", "dirty", "drops", "entropy", "events", "generation",
        "last_check", "old", "open_path", "outstanding", "send", "tick_at", "tie_breaker",
    )  # fmt: skip

    def __init__(
        self,
        config: Config,
        *,
        controlling: bool,
        entropy: Entropy,
        send: Send,
        open_path: OpenPath,
    ) -> None:
        self.config = config
        self.controlling = controlling
        self.entropy = entropy
        self.send = send
        self.open_path = open_path
        self.drops: Counter[DropReason] = Counter()
        self.events: deque[CheckEvent] = deque()
        self.outstanding = Outstanding()
        self.connections: set[tuple[Base, Address]] = set()
        """The TCP connections that are open; they outlive a restart (RFC 6544 section 9.2)."""
        self.generation: Generation | None = None
        self.old: Generation | None = None
        """The one before the restart."""
        self.dirty: dict[Checklist, None] = {}
        """The checklists of which something has changed, so that they are to be looked at."""
        self.tie_breaker = 0
        self.tick_at: Instant | None = None
        """When the next check may be sent; ``None`` while there is nothing to check."""
        self.last_check: Instant | None = None
        self.new_tie_breaker()

    def new_tie_breaker(self) -> None:
        """Draw the 64 bits that decide a role conflict (RFC 8445 section 16.1)."""
        self.tie_breaker = int.from_bytes(self.entropy(8))

    def drop(self, reason: DropReason) -> None:
        """Count what is not used."""
        self.drops[reason] += 1

    def wake(self, now: Instant) -> None:
        """Take notice that there may be something to check.

        "Whenever timer Ta fires" (RFC 8445 section 6.1.4.2): the first check need not wait.
        """
        generation = self.generation
        if self.tick_at is not None or generation is None or self.config.lite:
            return
        if generation.keys.remote is not None:
            last = self.last_check
            self.tick_at = now if last is None else max(now, last + self.config.ta)

    def touch(self, pair: CheckedPair, now: Instant) -> None:
        """Take notice that a pair has changed, or its checklist is to be looked at."""
        if pair.generation is self.generation:
            self.dirty[pair.generation.checklists[pair.base.stream]] = None
            self.wake(now)

    def touch_all(self, now: Instant) -> None:
        """Take notice that any checklist may have changed."""
        if self.generation is not None:
            self.dirty.update(dict.fromkeys(self.generation.checklists))
            self.wake(now)

    def set_role(self, *, controlling: bool, now: Instant) -> None:
        """Switch the role; "an agent [is required] to recompute pair priorities" (7.3.1.1)."""
        if controlling == self.controlling:
            return
        self.controlling = controlling
        if self.generation is not None:
            self.generation.controlling = controlling
            for checklist in self.generation.checklists:
                self.generation.resort(checklist)
                # Whether there is anything to nominate is decided anew.
                checklist.nominating.clear()
                checklist.settle.clear()
                checklist.extended.clear()
        self.events.append(RoleChanged(controlling))
        self.touch_all(now)
