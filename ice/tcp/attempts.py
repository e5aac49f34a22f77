"""Opening connections: active candidates, and simultaneous open.

Theory of operation.  An active candidate dials once, from any port.  A simultaneous-open candidate
dials from the port that also listens, at the same time as its peer does, and each SYN opens the NAT
of its side for the other's.  What comes of one SYN depends on the NAT that it reaches first:

* one that drops it lets the kernel's retransmission do the rest: one socket is enough;
* one that answers with RST or ICMP ends the attempt, and the RST closes the NAT of this side, too.

In the second case another attempt follows *at once*, so that there is a socket in SYN-SENT at all
times: a SYN that passed both NATs and found no socket would make this host answer RST, and two
sides that pause equally long may miss each other forever.  :data:`BURST` bounds that.

When that is used up, dials are fewer, and between them the NAT of this side is kept open by a
*punch*: a SYN that dies on its way, behind this side's NAT and before the peer's.  Then the peer's
next SYN comes through whenever it comes, and the port listens.  How many hops that takes nobody
tells, so :data:`HOPS` are tried in turn; what the peer's NAT answers has gone too far.

These bounds are for all connections to one IP address together, since it is the peer that names it,
and it may be somebody else's.

That a dial fails because its addresses are in use says that the connection is there already: the
peer's SYN has come to the listener, which reports it.
"""

from __future__ import annotations

from collections import Counter, deque
from typing import Final

from ice.base import Base, PathClosed
from ice.candidate import TcpType
from ice.tcp.connections import Connections, Direct, Key
from ice.tcp.switchboard import Switchboard
from stun.sansio import (
    MILLISECOND,
    SECOND,
    Address,
    Cause,
    Closed,
    Connected,
    Entropy,
    Handle,
    Instant,
    SocketEvent,
    Timers,
)

MOST_OUTSTANDING: Final = 5
"""RFC 6544 section 12: an agent "SHOULD NOT have more than 5 outstanding TCP connection attempts
with the same peer to the same IP address"."""
CROWDED: Final = 5 * SECOND
"""How long an attempt may hold up others to the same IP address: three SYNs have gone out."""
BURST: Final = 100
"""Dials to one IP address that may follow each other without a pause.  At a round trip of 80 ms
these are eight seconds in which the peer may start."""
RATE: Final = 20
"""Dials to one IP address a second in the long run, punches included."""
HOPS: Final = (2, 3, 4, 6)
"""How far punches go: behind a router at home, behind that and its carrier's NAT, and so on."""
PUNCHED: Final = 900 * MILLISECOND
"""For how long a punch is one: after a second the kernel sends its SYN again, and all the way."""
MOST_BUCKETS: Final = 64
"""IP addresses whose dials are remembered after the last attempt, until they have aged."""
EXISTS_PAUSE: Final = 100 * MILLISECOND
"""Before it is dialled again, when the addresses were in use."""

_ONCE_MORE: Final = frozenset({Cause.REFUSED, Cause.RESET, Cause.UNREACHABLE})


class Bucket:
    """What may be dialled at one IP address (a token bucket)."""

    __slots__ = ("_at", "_tokens")

    def __init__(self, now: Instant) -> None:
        self._tokens = BURST * SECOND
        self._at = now

    def take(self, now: Instant) -> bool:
        """Whether one more dial may follow at once."""
        enough = self._count(now) >= SECOND
        self._tokens = max(0, self._tokens - SECOND)
        return enough

    def is_full(self, now: Instant) -> bool:
        """Whether there is nothing to remember."""
        return self._count(now) >= BURST * SECOND

    def _count(self, now: Instant) -> int:
        self._tokens = min(BURST * SECOND, self._tokens + RATE * (now - self._at))
        self._at = now
        return self._tokens


class Attempt:
    """What is done to open one connection."""

    __slots__ = (
        "_all", "again", "base", "failures", "handle", "hops", "is_slow", "punched_at", "punches",
        "remote", "since", "until",
    )  # fmt: skip

    def __init__(self, attempts: Attempts, base: Base, remote: Address) -> None:
        self._all = attempts
        self.base = base
        self.remote = remote
        self.since: Instant | None = None
        """When it began, after its turn came."""
        self.until: Instant = 0
        self.handle: Handle | None = None
        self.failures: Counter[Cause] = Counter()
        """What became of its sockets so far."""
        self.is_slow = False
        """Whether there are pauses between its dials."""
        self.hops: tuple[int, ...] = HOPS
        """How far its punches may go."""
        self.punches = 0
        self.again: Instant = 0
        """When it is to be dialled after that."""
        self.punched_at: Instant | None = None
        """When the socket's SYN was sent, if it was a punch."""

    @property
    def key(self) -> Key:
        """The path that it is to open."""
        return self.base, self.remote

    @property
    def is_simultaneous(self) -> bool:
        """Whether the peer dials, too."""
        return self.base.tcptype is TcpType.SIMULTANEOUS_OPEN

    def on_socket(self, event: SocketEvent, now: Instant) -> None:
        """Take what happened to its socket."""
        match event:
            case Connected(handle):
                self._all.connected(self, handle, now)
            case Closed(handle, cause, detail):
                self._all.closed(self, handle, cause, detail, now)
            case _:
                pass  # the other events are not of dials

    def history(self) -> str:
        """Say what became of the sockets so far, in words."""
        return ", ".join(f"{count} x {cause.value}" for cause, count in self.failures.items())


class Attempts:
    """Every connection of this host's own addresses that is being opened."""

    __slots__ = (
        "_all", "_board", "_buckets", "_connections", "_entropy", "_patience", "_timers",
        "_waiting",
    )  # fmt: skip

    def __init__(
        self,
        board: Switchboard,
        connections: Connections,
        *,
        patience: int,
        entropy: Entropy,
    ) -> None:
        self._board = board
        self._connections = connections
        self._patience = patience
        self._entropy = entropy
        self._all: dict[Key, Attempt] = {}
        self._waiting: dict[str, deque[Attempt]] = {}
        """By the host that they are for, those whose turn has not come."""
        self._buckets: dict[str, Bucket] = {}
        self._timers: Timers[Key] = Timers()

    def __contains__(self, key: Key) -> bool:
        return key in self._all

    def start(self, base: Base, remote: Address, now: Instant) -> None:
        """Open a connection: ends in ``PathOpened`` or ``PathClosed``."""
        if (base, remote) in self._all:
            return
        attempt = Attempt(self, base, remote)
        self._all[attempt.key] = attempt
        if self._outstanding(remote.host) >= MOST_OUTSTANDING:
            self._waiting.setdefault(remote.host, deque()).append(attempt)
            self._crowd(remote.host, now)
        else:
            self._begin(attempt, now)

    def cancel(self, key: Key, now: Instant) -> None:
        """Take no more trouble, without an event: it is not wanted, or not needed any more."""
        attempt = self._all.get(key)
        if attempt is not None:
            self._remove(attempt, now)

    def cancel_all(self, base: Base, now: Instant) -> None:
        """Cancel every attempt from a base."""
        for key in [key for key in self._all if key[0] is base]:
            self.cancel(key, now)

    # The limit for one address. -------------------------------------------------------------------

    def _outstanding(self, host: str) -> int:
        return sum(a.since is not None and a.remote.host == host for a in self._all.values())

    def _crowd(self, host: str, now: Instant) -> None:
        """Have those that are under way give others their turn soon."""
        for attempt in self._all.values():
            if attempt.since is not None and attempt.remote.host == host:
                attempt.until = min(attempt.until, max(now, attempt.since + CROWDED))
                self._plan(attempt)

    def _begin(self, attempt: Attempt, now: Instant) -> None:
        attempt.since = now
        attempt.until = now + self._patience
        self._dial(attempt)
        if self._waiting.get(attempt.remote.host):
            self._crowd(attempt.remote.host, now)

    def _remove(self, attempt: Attempt, now: Instant) -> None:
        host = attempt.remote.host
        del self._all[attempt.key]
        self._timers.cancel(attempt.key)
        self._connections.give_up(attempt.key)
        if attempt.handle is not None:
            self._board.shut(attempt.handle)
            attempt.handle = None
        waiting = self._waiting.get(host)
        if waiting is None:
            return
        if attempt.since is None:
            waiting.remove(attempt)
        elif waiting:
            self._begin(waiting.popleft(), now)
        if not waiting:
            self._waiting.pop(host, None)

    def _may_dial(self, host: str, now: Instant) -> bool:
        """Whether one more dial to a host may follow at once."""
        bucket = self._buckets.get(host)
        if bucket is None:
            if len(self._buckets) >= MOST_BUCKETS:
                full = [key for key, each in self._buckets.items() if each.is_full(now)]
                for key in full or [next(iter(self._buckets))]:
                    del self._buckets[key]
            bucket = self._buckets[host] = Bucket(now)
        return bucket.take(now)

    def _pause(self, host: str, dials: int) -> int:
        """Choose how long to wait after so many dials to a host, to keep to its rate on average."""
        longest = 2 * dials * SECOND // RATE * self._outstanding(host)
        return longest * int.from_bytes(self._entropy(2)) >> 16

    # One attempt. ---------------------------------------------------------------------------------

    def _dial(self, attempt: Attempt, ttl: int | None = None) -> None:
        local = attempt.base.address
        if not attempt.is_simultaneous:
            local = Address(local.host, 0)
        remote = _with_zone(attempt.remote, local)
        attempt.handle = self._board.dial(attempt, local, remote, ttl=ttl)
        attempt.punched_at = None
        self._plan(attempt)

    def _punch(self, attempt: Attempt, now: Instant) -> None:
        """Open this side's NAT, and dial after a pause."""
        host = attempt.remote.host
        dials = 1
        if attempt.hops:
            dials = 2
            self._may_dial(host, now)
            self._dial(attempt, attempt.hops[attempt.punches % len(attempt.hops)])
            attempt.punches += 1
            attempt.punched_at = now
        attempt.again = now + self._pause(host, dials)
        self._plan(attempt, attempt.again)

    def _punched(self, attempt: Attempt, cause: Cause, now: Instant) -> bool:
        """Take note that the socket of a punch is closed; whether that is what it was."""
        at, attempt.punched_at = attempt.punched_at, None
        if at is None or now >= at + PUNCHED:
            return False
        if cause is Cause.REFUSED:
            # No router on the way sends RST.
            reached = attempt.hops[(attempt.punches - 1) % len(attempt.hops)]
            attempt.hops = tuple(hops for hops in attempt.hops if hops < reached)
        return cause in _ONCE_MORE

    def _plan(self, attempt: Attempt, again: Instant | None = None) -> None:
        at = attempt.until if again is None else min(again, attempt.until)
        self._timers.set(attempt.key, at)

    def connected(self, attempt: Attempt, handle: Handle, now: Instant) -> None:
        """Take note that a connection is established."""
        attempt.handle = None
        base, remote = attempt.key
        connection = Direct(
            self._connections, self._board, handle, base, remote, accepted=False, now=now
        )
        self._connections.add(connection)
        self._remove(attempt, now)

    def closed(
        self, attempt: Attempt, handle: Handle, cause: Cause, detail: str, now: Instant
    ) -> None:
        """Take note that a dial failed."""
        self._board.owners.pop(handle, None)
        attempt.handle = None
        if self._punched(attempt, cause, now):
            if now >= attempt.again:  # else it is planned
                self._may_dial(attempt.remote.host, now)
                self._dial(attempt)
            return
        attempt.failures[cause] += 1
        if attempt.key in self._connections:
            self._remove(attempt, now)
        elif not attempt.is_simultaneous or now >= attempt.until:
            self._give_up(attempt, cause, detail, now)
        elif cause in _ONCE_MORE:
            if not attempt.is_slow and self._may_dial(attempt.remote.host, now):
                self._dial(attempt)
            else:
                attempt.is_slow = True
                self._punch(attempt, now)
        elif cause is Cause.ADDRESS_IN_USE:
            self._plan(attempt, now + EXISTS_PAUSE)
        else:
            self._give_up(attempt, cause, detail, now)

    def _give_up(self, attempt: Attempt, cause: Cause, detail: str, now: Instant) -> None:
        if attempt.is_simultaneous and attempt.failures:
            detail = attempt.history()
        self._board.queue.append(PathClosed(attempt.base, attempt.remote, cause, detail))
        self._remove(attempt, now)

    # Time. ----------------------------------------------------------------------------------------

    def on_deadline(self, now: Instant) -> None:
        """Dial again, or give up."""
        for key in self._timers.expired(now):
            attempt = self._all[key]
            if attempt.until <= now:
                detail = f"not established within {(now - (attempt.since or now)) / SECOND:.1f} s"
                self._give_up(attempt, Cause.TIMED_OUT, detail, now)
            elif attempt.handle is None:
                self._may_dial(attempt.remote.host, now)
                self._dial(attempt)
            else:
                # No router has told of the punch, so its socket is one in SYN-SENT like any other.
                self._plan(attempt)

    def deadline(self) -> Instant | None:
        """Say when :meth:`on_deadline` is to be called."""
        return self._timers.next() if self._all else None


def _with_zone(remote: Address, local: Address) -> Address:
    """Name the interface of a link-local address, which no candidate can (RFC 8839 section 5.1)."""
    _, percent, zone = local.host.partition("%")
    if percent and remote.is_ipv6 and "%" not in remote.host:
        return Address(f"{remote.host}%{zone}", remote.port)
    return remote
