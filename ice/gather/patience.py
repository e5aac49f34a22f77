"""How long servers are waited for, so that a dead one keeps nobody waiting.

A candidate is told as soon as it is there, so what a silent server delays is only the end of
gathering.  It is given up after ``config.gather_timeout``, but sooner where others have shown what
an answer takes.  For server-reflexive candidates that is :data:`NEAR` after the first answer that
came to the same socket, for other servers can tell little that is new there, and :data:`FAR` after
the first one anywhere, which leaves time for a slower network.  For a relayed candidate, which may
be the only one that leads anywhere, it is :data:`FAR` after another relay was had for the same
component.
"""

from __future__ import annotations

from typing import Final

from stun.sansio import MILLISECOND, SECOND, Instant

NEAR: Final = 500 * MILLISECOND
FAR: Final = 3 * SECOND


class Patience:
    """Until when a generation's answers are waited for; both are ``None`` when it is over.

    ``until``: everything; ``enough``: what servers see sockets as, once one has told.
    """

    __slots__ = ("enough", "started", "until")

    def __init__(self) -> None:
        self.until: Instant | None = None
        self.enough: Instant | None = None
        self.started: Instant = 0

    def start(self, now: Instant, timeout: int) -> None:
        """Begin to wait for a generation."""
        self.started = now
        self.until = now + timeout
        self.enough = None

    def answered(self, now: Instant) -> None:
        """Take note that a server has told what it sees somebody as."""
        if self.until is not None and self.enough is None:
            self.enough = now + FAR

    def stop(self) -> None:
        """Wait no more: everything is there or given up."""
        self.until = self.enough = None
