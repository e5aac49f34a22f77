"""How many answers a source may have: one budget a network prefix, in constant memory.

An answer to an unproven UDP source may be an attack on whoever owns that address.  Budgets are kept
by prefix, because a victim's link is shared by its neighbours; and in a table of fixed size that a
secret multiplier spreads prefixes over, because a flood from forged sources must neither fill the
memory nor aim at somebody else's slot.  Two prefixes that share a slot share its budget.
"""

from __future__ import annotations

from array import array
from typing import Final

from stun.sansio import SECOND, Entropy, Instant

IPV4_PREFIX: Final = 3
"""Octets of an IPv4 address that share a budget: /24, the longest prefix that is routed."""
IPV6_PREFIX: Final = 6
"""Octets of an IPv6 address that share a budget: /48, what one site is given (RFC 6177)."""

_WORD = (1 << 64) - 1


def prefix_of(octets: bytes) -> bytes:
    """Return the part of a packed address (4 or 16 octets) that budgets are kept by."""
    return octets[:IPV4_PREFIX] if len(octets) == 4 else octets[:IPV6_PREFIX]


class PrefixLimiter:
    """Allows each prefix ``rate`` events a second, and ``burst`` at once after a rest.

    A rate of 0 allows everything.  This is the generic cell rate algorithm (ITU-T I.371): a slot
    holds the one instant at which its budget is whole again.
    """

    __slots__ = ("_interval", "_multiplier", "_shift", "_slots", "_tolerance")

    def __init__(self, rate: float, burst: int, *, entropy: Entropy, slots_log2: int = 14) -> None:
        self._interval = round(SECOND / rate) if rate else 0
        self._tolerance = self._interval * max(burst, 1)
        self._slots = array("q", bytes(8 << slots_log2)) if rate else array("q")
        # Multiply-shift hashing (Dietzfelbinger 1997): an odd secret factor, the top bits of the
        # product.
        self._multiplier = int.from_bytes(entropy(8)) | 1
        self._shift = 64 - slots_log2

    def allow(self, prefix: bytes, now: Instant, cost: int = 1) -> bool:
        """Take ``cost`` from the budget of ``prefix`` if it has that much; say whether it had."""
        if not self._interval:
            return True
        slot = (int.from_bytes(prefix) * self._multiplier & _WORD) >> self._shift
        whole = self._slots[slot]
        if whole < now:  # noqa: PLR1730  (max() costs a call, and this is on every packet's path)
            whole = now
        whole += self._interval * cost
        if whole - now > self._tolerance:
            return False
        self._slots[slot] = whole
        return True
