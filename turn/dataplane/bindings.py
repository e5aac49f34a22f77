"""Who answers bare Binding requests in the machine's place: the data plane knows no more of it."""

from __future__ import annotations

from collections.abc import Sequence
from mmap import mmap
from typing import Protocol

from stun.sansio import Instant


class Bindings(Protocol):
    """Answers bare Binding requests in the machine's place; see :class:`stun.responder.Responder`.

    ``None`` instead of an answer, or of answers: that is for the machine.
    """

    def bare(self, data: bytes, packed: bytes, now: Instant) -> bytes | None:
        """Return the answer to one; no octets: none is due."""
        ...

    def bare_in_place(
        self, memory: mmap, starts: Sequence[int], now: Instant, *, ipv6: bool
    ) -> list[int] | None:
        """Turn many into their answers in memory; return where those are that are due."""
        ...
