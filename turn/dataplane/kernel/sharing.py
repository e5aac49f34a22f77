"""Rates that hold for the program in the kernel and for this process together.

Theory of operation.  Each :class:`turn.meter.Bucket` whose allocations have routes in the kernel
has an :class:`Account` here, and while it has a limit, a bucket of the program's.  The account is
kept in that one: the program takes each packet from it, and the bucket of this process a lease at a
time.  So the law of :mod:`turn.meter` holds over both, for each bucket with one draw more: a packet
passes, and a draw succeeds, as long as nothing is owed.

When the last route is gone, what the program's bucket holds goes back to the one of this process,
and its number to whoever is next.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol, TypeVar

from stun.sansio import SECOND, Instant
from turn.dataplane.kernel.layouts import Rate
from turn.meter import Bucket

_FRACTION = 1 << 16

User = TypeVar("User")


class Buckets(Protocol):
    """The buckets of the program: see :class:`turn.dataplane.kernel.program.RelayProgram`."""

    @property
    def bucket_limit(self) -> int:
        """Indices are below it; 0 is no bucket."""
        ...

    def set_bucket(
        self, index: int, octet_rate: int, packet_rate: int, burst_ns: int, *, now: Instant | None
    ) -> None:
        """Set rates and depth; what is owed stays."""
        ...

    def rate(self, index: int) -> Rate:
        """Return a bucket as it is."""
        ...

    def draw(self, index: int, octets: int, packets: int) -> bool:
        """Take so much, all of it or nothing; say whether it was had."""
        ...


class Indices:
    """Numbers from ``first`` to below ``limit``; what was given back longest ago is given first.

    So whoever gets one has it alone: a packet that was under way when it was given back is through.
    """

    def __init__(self, first: int, limit: int) -> None:
        self._next, self._limit = first, limit
        self._free: deque[int] = deque()

    def take(self) -> int | None:
        """Return a number; ``None`` when all are given out."""
        if self._next < self._limit:
            self._next += 1
            return self._next - 1
        return self._free.popleft() if self._free else None

    def give_back(self, number: int) -> None:
        """Let others have it."""
        self._free.append(number)


class Account:
    """One bucket, as the program and this process share it: its :class:`turn.meter.Source`.

    ``index`` is its number in the program, 0 as long as it has no limit; ``users`` are the routes.
    """

    __slots__ = ("_accounts", "bucket", "index", "users")

    def __init__(self, accounts: Accounts, bucket: Bucket) -> None:
        self._accounts = accounts
        self.bucket = bucket
        self.index = 0
        self.users: set[object] = set()

    @property
    def is_limited(self) -> bool:
        """Whether it needs a bucket of the program's."""
        return bool(self.bucket.octet_rate or self.bucket.packet_rate)

    def draw(self, octets: int, packets: int) -> bool:
        """Take a lease out of the program's bucket."""
        try:
            return self._accounts.program.draw(self.index, octets, packets)
        except OSError as error:  # no memory, say: it is asked again soon
            self._accounts.failed(error)
            return False

    def change(self) -> None:
        """Set the bucket's rates in the program."""
        self._accounts.change(self)


class Accounts:
    """The accounts of all buckets.

    ``moved`` is called with an account whose :attr:`Account.index` has changed while it has users;
    0 with a limit: there are no more buckets in the program, and this process alone must relay.
    ``failed`` is called when the kernel refuses what it should not.
    """

    def __init__(
        self,
        program: Buckets,
        clock: Callable[[], Instant],
        moved: Callable[[Account], None],
        failed: Callable[[OSError], None],
    ) -> None:
        self.program = program
        self.failed = failed
        self._clock = clock
        self._moved = moved
        self._indices = Indices(1, program.bucket_limit)
        self._accounts: dict[Bucket, Account] = {}

    def __len__(self) -> int:
        return len(self._accounts)

    def join(self, bucket: Bucket, user: object) -> Account | None:
        """Share a bucket for one route more; ``None``: there are no more of them.

        Raises ``OSError`` when the kernel refuses.
        """
        account = self._accounts.get(bucket)
        if account is None:
            account = Account(self, bucket)
            if account.is_limited and not self._open(account):
                return None
            if not account.index:
                bucket.share(account, self._clock())
            self._accounts[bucket] = account
        elif not account.index:
            if account.is_limited:
                return None
            if bucket.source is None:  # it had a limit meanwhile, and there was no room for it
                bucket.share(account, self._clock())
        account.users.add(user)
        return account

    def leave(self, account: Account, user: object) -> None:
        """Share it for one route less."""
        account.users.discard(user)
        if not account.users:
            del self._accounts[account.bucket]
            self._close(account)

    def change(self, account: Account) -> None:
        """Set the rates of its bucket, as they are now."""
        bucket = account.bucket
        if account.index:
            rates = bucket.octet_rate, bucket.packet_rate
            burst = int(bucket.burst * SECOND)
            try:
                self.program.set_bucket(account.index, *rates, burst, now=self._clock())
            except OSError as error:  # the routes go on with the sockets
                self.failed(error)
                self._close(account)
                self._moved(account)
        elif account.is_limited:
            # What had no limit begins full, whoever keeps it.
            full = bucket.octet_rate * bucket.burst, bucket.packet_rate * bucket.burst
            bucket.unshare(*full, self._clock())
            try:
                self._open(account)
            except OSError as error:
                self.failed(error)
            self._moved(account)

    def _open(self, account: Account) -> bool:
        """Move the account of a bucket to the program; say whether there was room.

        Raises ``OSError``; all is then as it was.
        """
        index = self._indices.take()
        if index is None:
            return False
        bucket, now = account.bucket, self._clock()
        try:
            burst = int(bucket.burst * SECOND)
            # It was at no limit since it was given back, so it begins full.
            self.program.set_bucket(index, bucket.octet_rate, bucket.packet_rate, burst, now=now)
        except OSError:
            self._indices.give_back(index)
            raise
        account.index = index
        octets, packets = bucket.share(account, now)
        if octets >= 1 or packets >= 1:
            account.draw(int(octets), int(packets))
        return True

    def _close(self, account: Account) -> None:
        """Move it back."""
        bucket, index = account.bucket, account.index
        if bucket.source is not account:  # it could not be had
            return
        now, octets, packets = self._clock(), 0.0, 0.0
        account.index = 0
        if index:
            try:
                rate = self.program.rate(index)
                octets = held(rate.octet_cost / _FRACTION, rate.octets_at, rate.burst, now)
                packets = held(rate.packet_cost, rate.packets_at, rate.burst, now)
                self.program.set_bucket(index, 0, 0, 0, now=now)
            except OSError as error:  # nobody gets a bucket that is not empty
                self.failed(error)
            else:
                self._indices.give_back(index)
        bucket.unshare(octets, packets, now)


def held(cost: float, at: Instant, burst: int, now: Instant) -> float:
    """Return what a bucket of the program holds; negative is a debt.

    ``cost``: nanoseconds that one takes, 0: no limit.  ``at`` and ``burst`` as in ``relay.h``.
    """
    return (burst - max(at - now, 0)) / cost if cost else 0.0
