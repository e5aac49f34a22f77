"""How much one user and one client address may have, and what they have: accounts in constant time.

A *client* is who pays for an address: an IPv4 host, or the /64 of an IPv6 one, for that is the
least that a subscriber is given (RFC 6177).  An account is made with the first allocation or
connection of a user or client and gone with the last; a stranger who was not admitted is not
remembered.  All allocations of a user share one :class:`turn.meter.Bucket`, those of a client
another.  The buckets of the last accounts to go are kept for a while: else a user who has spent a
burst would get another by giving up the allocation and asking for a new one.

Where other processes serve the same listeners (:class:`turn.server.siblings.Siblings`), what they
hold counts as well, and their buckets are the same ones.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Final, Generic, NamedTuple, TypeVar

from stun.attributes import host_octets
from stun.errors import UsageError
from stun.registry import ErrorCode
from turn.meter import Bucket, Meter
from turn.server.config import Limits
from turn.server.siblings import Held, Siblings

KEPT: Final = 1024
"""Buckets of users who have no allocation, and as many of clients."""

_NONE: Final = Held(0, 0, 0)
_MAPPED: Final = bytes(10) + b"\xff\xff"

Key = TypeVar("Key", str, str | bytes)


class Refusal(NamedTuple):
    """Why there is to be no more: the error code of RFC 8656 section 19, and words for a log."""

    code: int
    detail: str

    def __str__(self) -> str:
        return self.detail


class _Account:
    """What one user or one client has."""

    __slots__ = ("allocations", "bucket", "connections")

    def __init__(self) -> None:
        self.allocations = 0
        self.connections = 0
        self.bucket: Bucket | None = None
        """Made for the first allocation."""


class _Accounts(Generic[Key]):
    """The accounts of users, or those of clients, by ``rates`` (octets, packets) for each."""

    __slots__ = ("_kept", "_make", "_open", "rates")

    def __init__(
        self, rates: tuple[int, int], make: Callable[[Key, tuple[int, int]], Bucket]
    ) -> None:
        self.rates = rates
        self._make: Callable[[Key, tuple[int, int]], Bucket] = make
        self._open: dict[Key, _Account] = {}
        self._kept: OrderedDict[Key, Bucket] = OrderedDict()

    def __len__(self) -> int:
        return len(self._open)

    def allocations(self, key: Key) -> int:
        account = self._open.get(key)
        return account.allocations if account else 0

    def connections(self, key: Key) -> int:
        account = self._open.get(key)
        return account.connections if account else 0

    def held(self) -> dict[Key, int]:
        """Return the allocations of each account that has any."""
        return {key: each.allocations for key, each in self._open.items() if each.allocations}

    def add(self, key: Key, *, allocations: int = 0, connections: int = 0) -> None:
        """Count more, or less; without anything left the account is closed."""
        account = self._open.get(key)
        if account is None:
            account = self._open[key] = _Account()
        account.allocations += allocations
        account.connections += connections
        if not account.allocations and account.bucket is not None:
            self._kept[key] = account.bucket
            account.bucket = None
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        if not account.allocations and not account.connections:
            del self._open[key]

    def bucket(self, key: Key) -> Bucket:
        """Return the bucket of an account that has an allocation; ``KeyError`` if it has none."""
        account = self._open[key]
        if not account.allocations:
            raise KeyError(key)
        if account.bucket is None:
            account.bucket = self._kept.pop(key, None) or self._make(key, self.rates)
        return account.bucket

    def change(self, rates: tuple[int, int]) -> None:
        """Set other rates for all."""
        self.rates = rates
        for bucket in self._kept.values():
            bucket.change(*rates)
        for account in self._open.values():
            if account.bucket is not None:
                account.bucket.change(*rates)


class Quotas:
    """Counts what users and clients have, against ``limits``; a limit of 0 is none.

    What is admitted must be released, with the same user and the same host.
    """

    __slots__ = (
        "_clients", "_elsewhere", "_limits", "_siblings", "_users", "allocations", "connections",
    )  # fmt: skip

    def __init__(self, limits: Limits, siblings: Siblings | None = None) -> None:
        self._limits = limits
        self._siblings = siblings
        self._users: _Accounts[str] = _Accounts(_user_rates(limits), self._maker("user"))
        self._clients: _Accounts[str | bytes] = _Accounts(
            _client_rates(limits), self._maker("client")
        )
        self._elsewhere: Mapping[str, int] = {}
        self.allocations = 0
        """All that there are on this server."""
        self.connections = 0

    def _maker(self, whose: str) -> Callable[[str | bytes, tuple[int, int]], Bucket]:
        siblings = self._siblings
        if siblings is None:
            return lambda _, rates: Bucket(*rates)
        return lambda key, rates: siblings.bucket(whose, key, rates)

    def _counting(self) -> AbstractContextManager[object]:
        return nullcontext() if self._siblings is None else self._siblings.counting()

    def _note(self, user: str | None, client: str | bytes) -> None:
        if self._siblings is not None:
            clients = self._clients
            self._siblings.note(
                user,
                client,
                of_user=0 if user is None else self._users.allocations(user),
                of_client=(clients.allocations(client), clients.connections(client)),
                in_all=(self.allocations, self.connections),
            )

    def admit(self, user: str, host: str) -> Refusal | None:
        """Count an allocation of a user who comes from ``host``, or say why there is to be none.

        RFC 8656 section 7.2: 486 (Allocation Quota Reached) where the user or the client address
        has too many, 508 (Insufficient Capacity) where the server has.
        """
        with self._counting():
            return self._admit(user, client_of(host))

    def _admit(self, user: str, client: str | bytes) -> Refusal | None:
        limits, siblings = self._limits, self._siblings
        others = _NONE if siblings is None else siblings.allocations(user, client)
        if 0 < limits.allocations <= self.allocations + others.total:
            words = f"this server has all of its {limits.allocations} allocations"
            return Refusal(ErrorCode.INSUFFICIENT_CAPACITY, words)
        most, there = limits.allocations_per_user, self._elsewhere.get(user, 0)
        if 0 < most <= self._users.allocations(user) + others.user + there:
            words = f"the user has all of its {most} allocations"
            if there:
                words += f", {there} of them on other servers"
            return Refusal(ErrorCode.ALLOCATION_QUOTA_REACHED, words)
        most = limits.allocations_per_client
        if 0 < most <= self._clients.allocations(client) + others.client:
            words = f"the client address has all of its {most} allocations"
            return Refusal(ErrorCode.ALLOCATION_QUOTA_REACHED, words)
        self._count(user, client, 1)
        return None

    def release(self, user: str, host: str) -> None:
        """Count an allocation less.  Raises ``UsageError`` where none is counted."""
        self._count(user, self._admitted(user, host), -1)

    def transfer(self, user: str, host: str, to_user: str, to_host: str) -> Refusal | None:
        """Count an allocation of one user for another, or say why that one is to have no more.

        Then all is as it was.  Raises ``UsageError`` where none is counted.
        """
        with self._counting():
            self.release(user, host)
            refusal = self.admit(to_user, to_host)
            if refusal is not None:
                self._count(user, client_of(host), 1)
            return refusal

    def _count(self, user: str, client: str | bytes, allocations: int) -> None:
        self.allocations += allocations
        self._users.add(user, allocations=allocations)
        self._clients.add(client, allocations=allocations)
        self._note(user, client)

    def meter(self, user: str, host: str) -> Meter:
        """Return a meter for an allocation that was admitted; ``UsageError`` where none was."""
        try:
            return Meter(self._users.bucket(user), self._clients.bucket(client_of(host)))
        except KeyError:
            raise UsageError(f"{user!r} has no allocation from {host}") from None

    def _admitted(self, user: str, host: str) -> str | bytes:
        client = client_of(host)
        if not (self._users.allocations(user) and self._clients.allocations(client)):
            raise UsageError(f"{user!r} has no allocation from {host}")
        return client

    def of_users(self) -> dict[str, int]:
        """Return how many allocations each user has on this server: what a fleet shares."""
        return self._users.held()

    def elsewhere(self, allocations: Mapping[str, int]) -> None:
        """Take note of how many allocations users have on other servers; instead of before."""
        self._elsewhere = dict(allocations)

    def connect(self, host: str) -> Refusal | None:
        """Count a connection from ``host``, or say why it is to be closed."""
        with self._counting():
            return self._connect(client_of(host))

    def _connect(self, client: str | bytes) -> Refusal | None:
        limits, siblings = self._limits, self._siblings
        others = _NONE if siblings is None else siblings.connections(client)
        if 0 < limits.connections <= self.connections + others.total:
            words = f"this server has all of its {limits.connections} connections"
            return Refusal(ErrorCode.INSUFFICIENT_CAPACITY, words)
        most = limits.connections_per_client
        if 0 < most <= self._clients.connections(client) + others.client:
            words = f"the client address has all of its {most} connections"
            return Refusal(ErrorCode.ALLOCATION_QUOTA_REACHED, words)
        self.connections += 1
        self._clients.add(client, connections=1)
        self._note(None, client)
        return None

    def disconnect(self, host: str) -> None:
        """Count a connection less.  Raises ``UsageError`` where none is counted."""
        client = client_of(host)
        if not self._clients.connections(client):
            raise UsageError(f"there is no connection from {host}")
        self.connections -= 1
        self._clients.add(client, connections=-1)
        self._note(None, client)

    def reconfigure(self, limits: Limits) -> None:
        """Count against other limits from now on.  What is over them stays.

        New rates hold for the allocations that there are, too, when their leases are used up.
        """
        self._limits = limits
        self._users.change(_user_rates(limits))
        self._clients.change(_client_rates(limits))

    @property
    def accounts(self) -> int:
        """How many users and clients have something."""
        return len(self._users) + len(self._clients)


def client_of(host: str) -> str | bytes:
    """Return what an address is accounted by: an IPv4 host, or the /64 of an IPv6 one."""
    if ":" not in host:
        return host
    octets = host_octets(host)
    # An IPv4 client, as a socket that takes both families reports it.
    return ".".join(map(str, octets[12:])) if octets.startswith(_MAPPED) else octets[:8]


def _user_rates(limits: Limits) -> tuple[int, int]:
    return limits.octets_per_second_per_user, limits.packets_per_second_per_user


def _client_rates(limits: Limits) -> tuple[int, int]:
    return limits.octets_per_second_per_client, limits.packets_per_second_per_client
