"""Who has which name: the book of one process, and the words that any such book speaks.

Theory of operation.  A *member* claims a name.  The first one waits under it, the second one meets
the first, a third one is refused.  A name that two have met under is theirs until either releases
it.  A *one-time name*, digits alone, is made here and handed out; it is used up when two have met,
and then it stays unused for a while, so that who comes late with an old one meets no stranger.

:class:`Names` is the book of one process and answers at once.  :mod:`ice.rendezvous.redis` keeps
one for many processes; both answer a claim with an :data:`Outcome`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeAlias

from ice.rendezvous.protocol import ErrorCode, is_one_time
from stun.sansio import SECOND, Entropy, Instant

REST: Final = 600 * SECOND
"""How long a one-time name is not given out again after it was used."""
MOST_RESTING: Final = 100_000
"""One-time names that rest at most; beyond it those that have rested longest go first."""
_TRIES_A_LENGTH: Final = 3
_LONGEST: Final = 12


class Member(NamedTuple):
    """A client of a hall: ``hall`` names the process, ``client`` is that hall's number for it."""

    hall: str
    client: int

    def __str__(self) -> str:
        return f"{self.hall}/{self.client}"

    @classmethod
    def parse(cls, text: str) -> Member:
        """Read what ``str`` has made; raises ``ValueError``."""
        hall, slash, client = text.partition("/")
        if not (slash and hall and client.isascii() and client.isdecimal()) or len(text) > 64:
            raise ValueError("no member of a hall")
        return cls(hall, int(client))


@dataclass(frozen=True, slots=True)
class Waits:
    """The name is the member's, and nobody else is there yet."""

    name: str


@dataclass(frozen=True, slots=True)
class Meets:
    """``other`` waits under the name."""

    name: str
    other: Member


@dataclass(frozen=True, slots=True)
class Refusal:
    """The name cannot be had.  ``holders``: the two that have it, where they are known."""

    code: ErrorCode
    holders: tuple[Member, ...] = ()


Outcome: TypeAlias = Waits | Meets | Refusal


def one_time_names(entropy: Entropy) -> Iterator[str]:
    """Yield one-time names to try, none of them predictable, short ones first.

    A few of each length are tried: when most of the short ones are in use, longer ones follow, and
    so a free one is found soon whatever is in use.
    """
    for digits in range(2, _LONGEST + 1):
        for _ in range(_TRIES_A_LENGTH):
            yield str(1 + int.from_bytes(entropy(8)) % (10**digits - 1))


class _Entry:
    __slots__ = ("first", "second")

    def __init__(self, first: Member) -> None:
        self.first = first
        self.second: Member | None = None


class Names:
    """The names of one process."""

    def __init__(self, *, entropy: Entropy) -> None:
        self._entropy = entropy
        self._entries: dict[str, _Entry] = {}
        self._resting: OrderedDict[str, Instant] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def claim(self, name: str | None, member: Member, now: Instant) -> Outcome:
        """Claim ``name``, or a one-time name (``None``)."""
        if name is None:
            return self._make(member, now)
        entry = self._entries.get(name)
        if entry is None:
            if is_one_time(name):
                return Refusal(ErrorCode.UNKNOWN_NAME)
            self._entries[name] = _Entry(member)
            return Waits(name)
        if entry.second is not None:
            return Refusal(ErrorCode.BUSY, (entry.first, entry.second))
        if is_one_time(name):
            self._use_up(name, now)
        else:
            entry.second = member
        return Meets(name, entry.first)

    def release(self, name: str, member: Member, now: Instant) -> None:
        """Give up a name; nothing happens if it is not the member's."""
        entry = self._entries.get(name)
        if entry is None or member not in (entry.first, entry.second):
            return
        if is_one_time(name):
            self._use_up(name, now)
        else:
            # Either of two: what they had in common is over, and both may come again.
            del self._entries[name]

    def _make(self, member: Member, now: Instant) -> Outcome:
        self._wake(now)
        for name in one_time_names(self._entropy):
            if name not in self._entries and name not in self._resting:
                self._entries[name] = _Entry(member)
                return Waits(name)
        return Refusal(ErrorCode.UNAVAILABLE)

    def _use_up(self, name: str, now: Instant) -> None:
        del self._entries[name]
        self._resting[name] = now + REST
        self._wake(now)

    def _wake(self, now: Instant) -> None:
        # In the order in which they were used, which is the order in which they may be used again.
        while self._resting:
            name, until = next(iter(self._resting.items()))
            if until > now and len(self._resting) <= MOST_RESTING:
                break
            del self._resting[name]
