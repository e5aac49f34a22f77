"""Which local ports are tried, where only some may be used."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from stun.sansio import Entropy

MOST_TRIES: Final = 64
"""Ports of a range that are tried; a range that is so full is as good as exhausted."""


def ports_to_try(ports: tuple[int, int] | None, entropy: Entropy) -> Iterator[int]:
    """Yield the ports to bind, one after the other while they are in use; 0 is any.

    Without a range the system chooses.  In a range they follow each other from one that cannot be
    foreseen: RFC 6056 section 3.3.1, and agents on one host rarely collide.
    """
    if ports is None:
        yield 0
        return
    first, last = ports
    count = last - first + 1
    start = int.from_bytes(entropy(4)) % count
    for step in range(min(count, MOST_TRIES)):
        yield first + (start + step) % count
