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

There are NATs that take offence at a SYN which comes before theirs has gone out: they give the
session another port, or let nobody in for a while.  With ``low_ttl`` every attempt begins with such
a punch, so that nothing reaches the other NAT before :data:`OPENING` has passed and both sides have
begun.  A pair of ports that is spoilt nevertheless stays so.  So an attempt may have *spares*,
other pairs of ports to the same end: the first of them is tried as well after :data:`TURN` failures
or :data:`SILENCE`, and the one before goes on, so that two sides which are not in step cannot miss
each other at every turn.

These bounds are for all connections to one IP address together, since it is the peer that names it,
and it may be somebody else's.  Where more than :data:`MOST_OUTSTANDING` are wanted, those that have
failed :data:`TURN` times give their turn to those that wait, and wait themselves.

A SYN of the peer and a refusal of the peer's NAT may cross so that the one is taken and the other
ends the session of this side's NAT.  This host then is in SYN-RECEIVED, and its SYN-ACK passes no
NAT any more: Linux's conntrack lets none through for a session that a RST has closed, and the
kernel sends nothing else for minutes.  So a socket that has been silent for :data:`STALE` gives way
to another one, whose SYN does pass; sooner where refusals have told what an answer takes.

That a dial fails because its addresses are in use says that the connection is there already: the
peer's SYN has come to the listener, which reports it.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Sequence
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
OPENING: Final = SECOND
"""Between a punch that an attempt begins with and the first SYN that is to arrive: as long as the
kernel waits itself, and so much may the peer be late."""
TURN: Final = 10
"""Failures of one pair of ports after which another one is tried."""
STALE: Final = 5 * SECOND
"""For how long a socket may go without an answer: the time for two segments that were lost."""
ONE_LOST: Final = SECOND
ROUND_TRIPS: Final = 4
"""The same where a refusal has told what a round trip takes: so many, and the time for one segment
that was lost.  Each is doubled each time, up to eightfold: the peer may be far behind its NAT."""
MENDING: Final = 100 * MILLISECOND
"""Before another socket takes the place of one that was silent, at most: what the peer still had of
that one is over by then."""
SILENCE: Final = 3 * SECOND
"""For how long a pair of ports may be silent before another one is tried: three SYNs."""
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
        "_all", "again", "base", "began", "dialled_at", "failures", "handle", "hops", "is_slow",
        "punched_at", "punches", "remote", "round_trip", "since", "spare_at", "spares", "stale",
        "stale_at", "turn", "until",
    )  # fmt: skip

    def __init__(
        self, attempts: Attempts, base: Base, remote: Address, spares: Sequence[Key] = ()
    ) -> None:
        self._all = attempts
        self.base = base
        self.remote = remote
        self.spares = tuple(spares)
        """What is to be tried beside it when it does not get anywhere."""
        self.spare_at: Instant | None = None
        """When, though it has not failed: nothing at all came back."""
        self.began: Instant | None = None
        """When it began for the first time."""
        self.dialled_at: Instant = 0
        self.round_trip: int | None = None
        """How long the quickest refusal took."""
        self.stale = 0
        """How many of its sockets have been silent for too long, up to three."""
        self.stale_at: Instant | None = None
        """When its socket is given up for another one."""
        self.since: Instant | None = None
        """When its turn came last; ``None`` while it waits for it."""
        self.until: Instant = 0
        """When its turn is over."""
        self.turn = 0
        """Failures in this turn."""
        self.handle: Handle | None = None
        self.failures: Counter[Cause] = Counter()
        """What became of its sockets so far."""
        self.is_slow = False
        """Whether there are pauses between its dials."""
        self.hops: tuple[int, ...] = HOPS
        """How far its punches may go."""
        self.punches = 0
        self.again: Instant | None = None
        """When it is to be dialled next, if there is a pause."""
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

    def refused(self, now: Instant) -> None:
        """Take note of what a refusal tells of the way."""
        took = now - self.dialled_at
        self.round_trip = took if self.round_trip is None else min(took, self.round_trip)

    def patience(self) -> int:
        """Return how long a socket may go without an answer."""
        if self.round_trip is None:
            return STALE
        return min(STALE, ONE_LOST + ROUND_TRIPS * self.round_trip)

    def history(self) -> str:
        """Say what became of the sockets so far, in words."""
        return ", ".join(f"{count} x {cause.value}" for cause, count in self.failures.items())


class Attempts:
    """Every connection of this host's own addresses that is being opened.

    ``patience``: how long one is sought.  ``low_ttl``: simultaneous opens begin with a punch.
    ``most``: attempts to one IP address at a time.
    """

    __slots__ = (
        "_all", "_board", "_buckets", "_connections", "_entropy", "_low_ttl", "_most", "_patience",
        "_timers", "_waiting",
    )  # fmt: skip

    def __init__(
        self,
        board: Switchboard,
        connections: Connections,
        *,
        patience: int,
        entropy: Entropy,
        low_ttl: bool = False,
        most: int = MOST_OUTSTANDING,
    ) -> None:
        self._board = board
        self._connections = connections
        self._patience = patience
        self._low_ttl = low_ttl
        self._most = most
        self._entropy = entropy
        self._all: dict[Key, Attempt] = {}
        self._waiting: dict[str, deque[Attempt]] = {}
        """By the host that they are for, those whose turn has not come."""
        self._buckets: dict[str, Bucket] = {}
        self._timers: Timers[Key] = Timers()

    def __contains__(self, key: Key) -> bool:
        return key in self._all

    def start(self, base: Base, remote: Address, now: Instant, spares: Sequence[Key] = ()) -> None:
        """Open a connection: ends in ``PathOpened`` or ``PathClosed``.

        ``spares`` are opened as well, one after the other, when this does not get anywhere.
        """
        if (base, remote) in self._all:
            return
        attempt = Attempt(self, base, remote, spares)
        self._all[attempt.key] = attempt
        if self._outstanding(remote.host) >= self._most:
            self._waiting.setdefault(remote.host, deque()).append(attempt)
            self._crowd(remote.host, now)
        else:
            self._begin(attempt, now)

    def stories(self) -> Iterator[tuple[Key, str]]:
        """Say of each attempt, in words, what became of its sockets so far."""
        for key, attempt in self._all.items():
            yield key, attempt.history()

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
        if attempt.began is None:
            attempt.began = now
        attempt.since = now
        attempt.until = attempt.began + self._patience
        attempt.turn = 0
        if attempt.spares:
            attempt.spare_at = now + SILENCE
        if self._low_ttl and attempt.is_simultaneous:
            attempt.is_slow = True
            self._punch(attempt, now, OPENING)
        else:
            self._dial(attempt, now)
        if self._waiting.get(attempt.remote.host):
            self._crowd(attempt.remote.host, now)

    def _give_way(self, attempt: Attempt, now: Instant) -> bool:
        """Have an attempt wait for another turn, if others do and it may still get one."""
        waiting = self._waiting.get(attempt.remote.host)
        began = attempt.began or now
        if not waiting or not attempt.is_simultaneous or now >= began + self._patience:
            return False
        self._timers.cancel(attempt.key)
        self._hang_up(attempt)
        attempt.since = attempt.again = attempt.stale_at = None
        waiting.append(attempt)
        self._begin(waiting.popleft(), now)
        return True

    def _next_spare(self, attempt: Attempt, now: Instant) -> None:
        """Open the next spare pair of ports as well."""
        attempt.spare_at = None
        if attempt.spares:
            (base, remote), *rest = attempt.spares
            attempt.spares = ()
            self.start(base, remote, now, rest)

    def _remove(self, attempt: Attempt, now: Instant) -> None:
        host = attempt.remote.host
        del self._all[attempt.key]
        self._timers.cancel(attempt.key)
        self._connections.give_up(attempt.key)
        self._hang_up(attempt)
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
        return self._random(2 * dials * SECOND // RATE * self._outstanding(host))

    def _random(self, most: int) -> int:
        return most * int.from_bytes(self._entropy(2)) >> 16

    # One attempt. ---------------------------------------------------------------------------------

    def _dial(self, attempt: Attempt, now: Instant, ttl: int | None = None) -> None:
        local = attempt.base.address
        if not attempt.is_simultaneous:
            local = Address(local.host, 0)
        remote = _with_zone(attempt.remote, local)
        attempt.handle = self._board.dial(attempt, local, remote, ttl=ttl)
        attempt.punched_at = attempt.again = None
        attempt.dialled_at = now
        attempt.stale_at = None
        if attempt.is_simultaneous:
            patience = attempt.patience() << attempt.stale
            attempt.stale_at = now + patience + (0 if ttl is None else OPENING)
        self._plan(attempt)

    def _hang_up(self, attempt: Attempt) -> None:
        """Close its socket, if there is one.

        With a RST: it may be in SYN-RECEIVED, and would go on to FIN-WAIT and keep the addresses.
        """
        if attempt.handle is not None:
            self._board.shut(attempt.handle, reset=True)
            attempt.handle = None

    def _punch(self, attempt: Attempt, now: Instant, pause: int | None = None) -> None:
        """Open this side's NAT, and dial after a pause."""
        host = attempt.remote.host
        dials = 1
        if attempt.hops:
            dials = 2
            self._may_dial(host, now)
            self._dial(attempt, now, attempt.hops[attempt.punches % len(attempt.hops)])
            attempt.punches += 1
            attempt.punched_at = now
        attempt.again = now + (self._pause(host, dials) if pause is None else pause)
        self._plan(attempt)

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

    def _plan(self, attempt: Attempt) -> None:
        times = (attempt.until, attempt.again, attempt.spare_at, attempt.stale_at)
        self._timers.set(attempt.key, min(at for at in times if at is not None))

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
            if attempt.again is None:  # else it is planned
                self._may_dial(attempt.remote.host, now)
                self._dial(attempt, now)
            return
        attempt.failures[cause] += 1
        attempt.turn += 1
        if attempt.key in self._connections:
            self._remove(attempt, now)
        elif not attempt.is_simultaneous or now >= attempt.until:
            self._give_up(attempt, cause, detail, now)
        elif cause in _ONCE_MORE:
            attempt.refused(now)
            self._once_more(attempt, now)
        elif cause is Cause.ADDRESS_IN_USE:
            attempt.again = now + EXISTS_PAUSE
            self._plan(attempt)
        else:
            self._give_up(attempt, cause, detail, now)

    def _once_more(self, attempt: Attempt, now: Instant) -> None:
        """Dial again what was refused."""
        if attempt.turn >= TURN:
            if attempt.turn == TURN:
                self._next_spare(attempt, now)
            if self._give_way(attempt, now):
                return
        if not attempt.is_slow and self._may_dial(attempt.remote.host, now):
            self._dial(attempt, now)
        else:
            attempt.is_slow = True
            self._punch(attempt, now)

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
                if not self._give_way(attempt, now):
                    seconds = (now - (attempt.began or now)) / SECOND
                    detail = f"not established within {seconds:.1f} s"
                    self._give_up(attempt, Cause.TIMED_OUT, detail, now)
                continue
            if attempt.spare_at is not None and attempt.spare_at <= now:
                self._next_spare(attempt, now)
            if attempt.stale_at is not None and attempt.stale_at <= now:
                attempt.stale_at = None
                if attempt.handle is not None:
                    attempt.stale = min(3, attempt.stale + 1)
                    self._hang_up(attempt)
                    attempt.again = now + self._random(MENDING)
            if attempt.again is not None and attempt.again <= now:
                attempt.again = None
                # If no router has told of a punch, its socket is one in SYN-SENT like any other.
                if attempt.handle is None:
                    self._may_dial(attempt.remote.host, now)
                    self._dial(attempt, now)
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
