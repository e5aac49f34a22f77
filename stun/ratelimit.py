"""What a source may be answered: one budget a network prefix, in constant memory.

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
_LONGEST = 1 << 61  # nanoseconds, seventy years: half of what is left in a slot beside the time


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


class ByteBudget:
    """Gives each prefix back at most what came from it, and a little that is stated.

    The law, for a prefix and any time of T seconds: the octets spent are at most those credited in
    it, and ``burst``, and ``refill`` times T.  Credit that is not used does not pile up beyond
    ``burst``.  So whoever forges a source gets no more sent to it than they send.

    Nothing goes unless there are ``least`` octets, however short it is.  Otherwise a flood that
    asks for short answers would take each octet as it comes, and a neighbour's longer one would
    never go; so all have the same chance, and a client that repeats its request gets through.

    ``burst`` is in octets (0: no limit at all), ``refill`` in octets a second.  The memory is
    constant, eight octets a slot; see the module's text.
    """

    __slots__ = ("_interval", "_least", "_multiplier", "_shift", "_slots", "_tolerance")

    def __init__(
        self,
        burst: int,
        refill: float,
        *,
        entropy: Entropy,
        least: int = 0,
        slots_log2: int = 14,
    ) -> None:
        # As in PrefixLimiter: what a slot has spent is told by the instant at which it is whole
        # again, here ``_interval`` nanoseconds an octet.  That is rounded up, so never too much is
        # given; and it is bounded, so the sums fit into 64 bits.  At the bound, where there is no
        # refill to speak of, it takes decades until a slot is whole.
        slowest = _LONGEST // max(burst, 1)
        self._interval = min(-int(-SECOND // refill), slowest) if refill else slowest
        self._tolerance = self._interval * burst
        self._least = min(least, burst // 2)
        self._slots = array("q", bytes(8 << slots_log2)) if burst else array("q")
        self._multiplier = int.from_bytes(entropy(8)) | 1
        self._shift = 64 - slots_log2

    def exchange(self, prefix: bytes, came_in: int, goes_out: int, now: Instant) -> bool:
        """Credit what came from ``prefix`` and spend what goes there; say whether it may go.

        What came is credited in any case.
        """
        if not self._tolerance:
            return True
        slots = self._slots
        slot = (int.from_bytes(prefix) * self._multiplier & _WORD) >> self._shift
        whole = slots[slot]
        if whole < now:  # noqa: PLR1730  (max() costs a call, and this is on every packet's path)
            whole = now
        needed = goes_out if goes_out > self._least else self._least
        if whole + self._interval * (needed - came_in) - now > self._tolerance:
            self.credit(prefix, came_in, now)
            return False
        after = whole + self._interval * (goes_out - came_in)
        # An instant that is past says no more than "whole", so unused credit ends here.
        slots[slot] = after if after > now else now
        return True

    def credit(self, prefix: bytes, octets: int, now: Instant) -> None:
        """Take note of octets that came from ``prefix``."""
        if self._tolerance:
            slot = (int.from_bytes(prefix) * self._multiplier & _WORD) >> self._shift
            whole = self._slots[slot] - self._interval * octets
            self._slots[slot] = whole if whole > now else now

    def spend(self, prefix: bytes, octets: int, now: Instant) -> bool:
        """Take octets that are to go to ``prefix`` from its budget; say whether it has them."""
        return self.exchange(prefix, 0, octets, now)
