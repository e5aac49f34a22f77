"""Which port the next relayed transport address gets: unpredictable, none twice, in no time.

RFC 8656 section 7.2 recommends "a randomized port assignment algorithm from [RFC6056]".  Here each
free port is as likely as any other.  The free ports of a host are in an array, in no order; one
that is taken leaves its place to the last.  So taking a port and giving it back cost the same
however full the range is, and so does finding a pair for EVEN-PORT.

The arrays of a host (four octets a port, six with pairs) are made when they are first asked for.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from typing import Final

from stun.errors import UsageError
from stun.sansio import SECOND, Entropy, Instant

REST: Final = 30 * SECOND
"""How long a port is not offered that somebody else was found to have."""


class _Pool:
    """A set of ports, all odd or all even; each has an index, and finding one takes no search."""

    __slots__ = ("_low", "_ports", "_where")

    def __init__(self, ports: Iterable[int], low: int, high: int) -> None:
        self._low = low
        self._ports = array("H", ports)
        self._where = array("H", bytes(2 * ((high - low) // 2 + 1)))
        for index, port in enumerate(self._ports):
            self._where[(port - low) // 2] = index

    def __len__(self) -> int:
        return len(self._ports)

    def __iter__(self) -> Iterator[int]:
        return iter(self._ports)

    def __contains__(self, port: int) -> bool:
        # What is noted for a port that is not in the set is where it once was.
        index = self._where[(port - self._low) // 2]
        return index < len(self._ports) and self._ports[index] == port

    def __getitem__(self, index: int) -> int:
        return self._ports[index]

    def add(self, port: int) -> None:
        self._where[(port - self._low) // 2] = len(self._ports)
        self._ports.append(port)

    def remove(self, port: int) -> None:
        index, last = self._where[(port - self._low) // 2], self._ports.pop()
        if last != port:
            self._ports[index] = last
            self._where[(last - self._low) // 2] = index


class _Host:
    """The ports of one host: free, taken, or resting."""

    __slots__ = ("_high", "_low", "_pairs", "evens", "odds", "resting")

    def __init__(self, low: int, high: int) -> None:
        self._low, self._high = low, high
        # Apart, so that an even port is found as quickly as any.
        self.evens = _Pool(range(low + low % 2, high + 1, 2), low, high)
        self.odds = _Pool(range(low + 1 - low % 2, high + 1, 2), low, high)
        self._pairs: _Pool | None = None
        self.resting: dict[int, Instant] = {}
        """When the rest of a port ends, the earliest first."""

    @property
    def pairs(self) -> _Pool:
        """The even ports that are free and whose next one is."""
        if self._pairs is None:
            both = [port for port in self.evens if port < self._high and port + 1 in self.odds]
            self._pairs = _Pool(both, self._low, self._high)
        return self._pairs

    def is_free(self, port: int) -> bool:
        return self._low <= port <= self._high and port in (self.odds if port & 1 else self.evens)

    def take(self, port: int) -> None:
        (self.odds if port & 1 else self.evens).remove(port)
        even = port & ~1
        if self._pairs is not None and even >= self._low and even in self._pairs:
            self._pairs.remove(even)

    def free(self, port: int) -> None:
        (self.odds if port & 1 else self.evens).add(port)
        if self._pairs is not None and self.is_free(port & ~1) and self.is_free(port | 1):
            self._pairs.add(port & ~1)

    def wake(self, now: Instant) -> None:
        while self.resting:
            port = next(iter(self.resting))
            if self.resting[port] > now:
                return
            del self.resting[port]
            self.free(port)


class PortRange:
    """The ports ``low`` to ``high`` of each host that relayed transport addresses are opened on.

    Raises :class:`stun.errors.UsageError` for what is no range of ports.
    """

    __slots__ = ("_entropy", "_hosts", "high", "low")

    def __init__(self, low: int, high: int, entropy: Entropy) -> None:
        if not 1 <= low <= high <= 0xFFFF:
            raise UsageError(f"{low}-{high} is not a range of ports: 1-65535, the lower one first")
        self.low, self.high = low, high
        self._entropy = entropy
        self._hosts: dict[str, _Host] = {}

    def pick(self, host: str, now: Instant) -> int | None:
        """Take a port, ``None`` when no port is free."""
        ports = self._ports(host, now)
        index = self._below(len(ports.evens) + len(ports.odds))
        if index is None:
            return None
        evens = len(ports.evens)
        port = ports.evens[index] if index < evens else ports.odds[index - evens]
        ports.take(port)
        return port

    def pick_even(self, host: str, now: Instant) -> int | None:
        """Take an even port (RFC 8656 section 7.2, EVEN-PORT), ``None`` when none is free."""
        ports = self._ports(host, now)
        index = self._below(len(ports.evens))
        if index is None:
            return None
        port = ports.evens[index]
        ports.take(port)
        return port

    def pick_pair(self, host: str, now: Instant) -> tuple[int, int] | None:
        """Take an even port and the next (EVEN-PORT with the R bit), ``None`` without such."""
        ports = self._ports(host, now)
        index = self._below(len(ports.pairs))
        if index is None:
            return None
        port = ports.pairs[index]
        ports.take(port)
        ports.take(port + 1)
        return port, port + 1

    def take(self, host: str, port: int, now: Instant) -> bool:
        """Take one certain port; say whether it was there to take."""
        ports = self._ports(host, now)
        if not ports.is_free(port):
            return False
        ports.take(port)
        return True

    def give_back(self, host: str, port: int) -> None:
        """Offer a port again.  Nothing happens when it is not taken, or not of this range."""
        ports = self._hosts.get(host)
        if ports and self._is_taken(ports, port):
            ports.free(port)

    def refused(self, host: str, port: int, now: Instant) -> None:
        """Note that a port cannot be had, instead of giving it back; it is offered again later.

        It would be drawn again and again where many ports are somebody else's.
        """
        ports = self._hosts.get(host)
        if ports and self._is_taken(ports, port):
            ports.resting[port] = now + REST

    def available(self, host: str) -> int:
        """Return how many ports are free, without those that rest."""
        ports = self._hosts.get(host)
        return len(ports.evens) + len(ports.odds) if ports else self.high - self.low + 1

    def _is_taken(self, ports: _Host, port: int) -> bool:
        known = self.low <= port <= self.high
        return known and port not in ports.resting and not ports.is_free(port)

    def _ports(self, host: str, now: Instant) -> _Host:
        ports = self._hosts.get(host)
        if ports is None:
            ports = self._hosts[host] = _Host(self.low, self.high)
        if ports.resting:
            ports.wake(now)
        return ports

    def _below(self, count: int) -> int | None:
        # Four octets over at most 65,535 ports: no port is likelier than another by 1 in 65,536.
        return int.from_bytes(self._entropy(4)) % count if count else None
