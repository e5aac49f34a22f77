"""The data plane in the kernel: puts routes into the maps of the program, and keeps them right.

Theory of operation.  A route is two paths, one for each direction, and each is there for itself: as
long as :class:`turn.dataplane.kernel.ways.Ways` knows how its packets leave.  What has no path here
passes up to the sockets, which know the same routes; so nothing that goes wrong in here stops a
packet, it only costs more.

Paths with the same two hosts leave the same way, which is asked for once.  It is asked for again
when the kernel tells of changes, when ICMP tells of a smaller MTU, and now and then, for an MTU
that was learned is forgotten in time.  What ICMP tells is remembered here as well: to the sockets
of relayed IPv4 addresses it means nothing, as they send without DF, so Linux does not note it.

Bounds, beside those of :mod:`turn.dataplane.base`: ``expires`` is compared with the clock for each
packet; after :meth:`KernelRoutes.remove`, at most one packet for each CPU still passes, which had
found its path before.
"""

from __future__ import annotations

import struct
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from itertools import count
from typing import Final, Protocol

from stun.sansio import SECOND, Address, Instant
from stun.sockaddr import is_wildcard
from turn.dataplane.base import Route, RouteKey
from turn.dataplane.kernel.layouts import WORDS, Count, Path, PathUsage, pack_key, pack_next_hop
from turn.dataplane.kernel.sharing import Account, Accounts, Buckets, Indices
from turn.dataplane.kernel.ways import Interface, Way
from turn.meter import Meter, nothing_to_collect

MOST_BUCKETS: Final = 2
"""How many rates the program asks for a packet."""
REMEMBERED: Final = 60 * SECOND
"""How long a way is believed without asking again when a route is renewed."""
LEARNED: Final = 600 * SECOND
"""How long an MTU is believed that ICMP told of: ten minutes (RFC 1191 section 6.3)."""
SWEEP: Final = 128
"""Ways asked for at once when something has changed; it takes about two milliseconds."""
LARGEST_MTU: Final = 65535
"""What the map has room for; longer packets are passed up."""

# What of a path's value may change: its first field, and those behind the channel.
_EXPIRES = struct.Struct("=Q")
_REST = struct.Struct("=HIIII16sQ")
_FORWARDED = frozenset({Count.TO_PEERS, Count.TO_CLIENTS})


class Program(Buckets, Protocol):
    """The program: see :class:`turn.dataplane.kernel.program.RelayProgram`."""

    @property
    def usage_limit(self) -> int:
        """Indices of usage are below it."""
        ...

    @property
    def attached(self) -> frozenset[int]:
        """The interfaces that it is on."""
        ...

    def attach(self, ifindex: int) -> None:
        """Put it on an interface."""
        ...

    def detach(self, ifindex: int) -> None:
        """Take it off."""
        ...

    def set_path(self, key: bytes, value: bytes) -> None:
        """Forward on this path, or by this value from now on."""
        ...

    def drop_path(self, key: bytes) -> bool:
        """Forward no longer on this path."""
        ...

    def usage(self, index: int) -> PathUsage:
        """Return what has been counted at an index."""
        ...

    def serve_port(self, port: int) -> None:
        """Look at what arrives at this port."""
        ...

    def unserve_port(self, port: int) -> None:
        """Undo one call of :meth:`serve_port`."""
        ...

    def counts(self) -> dict[Count, int]:
        """Return what was forwarded, dropped and passed up."""
        ...

    def close(self) -> None:
        """Free everything."""
        ...


class Network(Protocol):
    """What is known of this machine's network: see :class:`turn.dataplane.kernel.ways.Ways`."""

    def way_of(self, source: str, destination: str) -> Way | None:
        """Return how packets from one host to another leave."""
        ...

    def interfaces(self) -> Mapping[int, Interface]:
        """Return by index the interfaces that packets come in by."""
        ...

    def fileno(self) -> int:
        """Return what to wait on for changes."""
        ...

    def changed(self) -> bool:
        """Take what was told of changes; say whether there was anything."""
        ...

    def close(self) -> None:
        """Ask and hear no more."""
        ...


class _Pair:
    """Two hosts, how packets from one to the other leave, and the paths that they are on."""

    __slots__ = ("asked", "hosts", "learned", "learned_at", "paths", "way")

    def __init__(self, hosts: tuple[str, str]) -> None:
        self.hosts = hosts
        self.way: Way | None = None
        self.asked: Instant = 0
        self.learned = LARGEST_MTU
        """The MTU that ICMP told of, and when."""
        self.learned_at: Instant = 0
        self.paths: set[_Path] = set()

    def learn(self, mtu: int, now: Instant) -> None:
        """Take note of an MTU that ICMP told of."""
        if mtu <= self.learned:
            self.learned, self.learned_at = mtu, now

    def use(self, way: Way | None, now: Instant) -> bool:
        """Take note of the way that there is; say whether it is another one."""
        if now - self.learned_at >= LEARNED:
            self.learned = LARGEST_MTU
        if way is not None:
            way = way._replace(mtu=min(way.mtu, self.learned))
        before, self.way, self.asked = self.way, way, now
        return way != before


class _Path:
    """One direction of a route.  ``is_set``: the program knows it; ``seen``: counted so far.

    ``ends``: what never changes of its value, the addresses and the channel.
    """

    __slots__ = ("ends", "entry", "is_set", "key", "pair", "seen", "to_peer", "usage")

    def __init__(
        self,
        entry: _Entry,
        key: bytes,
        ends: bytes,
        pair: _Pair,
        *,
        usage: int,
        seen: PathUsage,
        to_peer: bool,
    ) -> None:
        self.ends = ends
        self.entry = entry
        self.key = key
        self.pair = pair
        self.usage = usage
        self.seen = seen
        self.to_peer = to_peer
        self.is_set = False

    @property
    def port(self) -> int:
        """The local port that its packets come to."""
        route = self.entry.route
        return route.key.server.port if self.to_peer else route.relay.port

    def value(self, way: Way, serial: int) -> bytes:
        """Return what the program is to know of it; ``serial``: see ``relay.h``."""
        entry = self.entry
        hop = pack_next_hop(way.next_hop or self.pair.hosts[1])
        rest = _REST.pack(way.mtu, way.ifindex, self.usage, *entry.buckets, hop, serial)
        return _EXPIRES.pack(entry.expires) + self.ends + rest


def _ends(source: Address, destination: Address, channel: int) -> bytes:
    """Return the middle of a path's value.  Errors: see :func:`layouts.pack_host`."""
    return Path(0, source, destination, channel, 0, 0, 0).pack()[_EXPIRES.size : -_REST.size]


class _Entry:
    """A route that the kernel is to know."""

    __slots__ = ("accounts", "expires", "paths", "route")

    def __init__(self, route: Route, expires: Instant) -> None:
        self.route = route
        self.expires = expires
        self.accounts: list[Account] = []
        self.paths: list[_Path] = []

    @property
    def buckets(self) -> list[int]:
        """The numbers of its buckets in the program."""
        return [*(account.index for account in self.accounts), 0, 0][:MOST_BUCKETS]


class _Metered:
    """The routes of one allocation: what the program has counted on them goes into its usage."""

    __slots__ = ("_read", "entries", "meter")

    def __init__(self, meter: Meter, read: Callable[[int], PathUsage]) -> None:
        self.meter = meter
        self.entries: set[_Entry] = set()
        self._read = read

    def collect(self) -> None:
        """Add what was counted since the last time: :attr:`turn.meter.Meter.collect`."""
        for entry in self.entries:
            for path in entry.paths:
                self.take(path)

    def take(self, path: _Path) -> None:
        """Add what was counted on one path."""
        now, seen = self._read(path.usage), path.seen
        if now == seen:
            return
        path.seen = now
        for usage in (self.meter.usage, self.meter.late):
            if usage is None:
                continue
            if path.to_peer:
                usage.packets_from_client += now.packets - seen.packets
                usage.octets_from_client += now.octets - seen.octets
            else:
                usage.packets_to_client += now.packets - seen.packets
                usage.octets_to_client += now.octets - seen.octets
            usage.dropped += now.dropped - seen.dropped


class KernelRoutes:
    """A :class:`turn.dataplane.base.DataPlane` in the kernel, beside one that has the sockets.

    It takes over ``program`` and ``network``, and puts the program on every interface that packets
    come in by.  Whoever drives it waits until :meth:`fileno` is readable, calls :meth:`changed`
    and, while that or :meth:`refresh` says so, :meth:`refresh`.  Nothing here blocks, and nothing
    but the constructor raises.

    ``clock`` is CLOCK_MONOTONIC, for it is what the program compares with.
    """

    def __init__(
        self,
        program: Program,
        network: Network,
        *,
        clock: Callable[[], Instant] = time.monotonic_ns,
    ) -> None:
        self._program, self._network, self._clock = program, network, clock
        self._entries: dict[RouteKey, _Entry] = {}
        self._paths: dict[bytes, _Path] = {}
        """What is in the map, by its key there."""
        self._pairs: dict[tuple[str, str], _Pair] = {}
        self._sources: Counter[str] = Counter()
        """The hosts of this machine in them."""
        self._stale: deque[_Pair] = deque()
        self._metered: dict[Meter, _Metered] = {}
        self._accounts = Accounts(program, clock, self._moved, self._count_refused)
        # Index 0 is as good as any other: every path has one.
        self._indices = Indices(0, program.usage_limit)
        self._serials = count(1)
        self._counts: Counter[str] = Counter()
        self._on: set[int] = set()
        """Interfaces that the program was put on."""
        self._refused: dict[int, str] = {}
        self._is_open = True
        self._sync_interfaces()

    # Routes. --------------------------------------------------------------------------------------

    def install(self, route: Route, expires: Instant) -> None:
        """Forward on ``route`` until ``expires``; a known key gets the new bound."""
        if not self._is_open:
            return
        entry = self._entries.get(route.key)
        if entry is not None:
            if entry.route is route:
                entry.expires = expires
                for path in entry.paths:
                    self._renew(path.pair)
                    self._put(path)
                return
            self.remove(route.key)
        entry = _Entry(route, expires)
        try:
            if not self._share(entry):
                self._count_left("no room in the kernel for more rates")
                return
            if not self._add_paths(entry):
                self._count_left("no room in the kernel for more of them")
                self._unshare(entry)
                return
        except (ValueError, OverflowError, struct.error):
            self._count_left("addresses that hold on one link alone")
            self._forget(entry)
            return
        except OSError as error:
            self._count_left(f"the kernel says: {error.strerror or error}")
            self._forget(entry)
            return
        self._entries[route.key] = entry
        metered = self._metered.get(route.meter)
        if metered is None:
            metered = self._metered[route.meter] = _Metered(route.meter, self._program.usage)
            route.meter.collect = metered.collect
        metered.entries.add(entry)
        for path in entry.paths:
            self._put(path)

    def remove(self, key: RouteKey) -> None:
        """Forward no longer on ``key``."""
        entry = self._entries.pop(key, None)
        if entry is None:
            return
        for path in entry.paths:
            self._drop(path)
        meter = entry.route.meter
        metered = self._metered[meter]
        for path in entry.paths:
            metered.take(path)
        metered.entries.discard(entry)
        if not metered.entries:
            del self._metered[meter]
            meter.collect = nothing_to_collect
        self._forget(entry)

    def too_big(self, local: Address, remote: Address, mtu: int) -> None:
        """Send no longer packets on this way than ICMP has told of.

        A wildcard socket is told of what it sent from any address.
        """
        sources = +self._sources if is_wildcard(local.host) else [local.host]
        for source in sources:
            pair = self._pairs.get((source, remote.host))
            if pair is not None:
                pair.learn(mtu, self._clock())
                self._ask(pair)

    def __len__(self) -> int:
        return len(self._entries)

    # Putting a route together. --------------------------------------------------------------------

    def _share(self, entry: _Entry) -> bool:
        """Have its rates held by the program too; say whether there was room for them."""
        for bucket in dict.fromkeys(entry.route.meter.buckets):
            account = self._accounts.join(bucket, entry)
            if account is not None:
                entry.accounts.append(account)
            if account is None or len(entry.accounts) > MOST_BUCKETS:
                self._unshare(entry)
                return False
        return True

    def _unshare(self, entry: _Entry) -> None:
        while entry.accounts:
            self._accounts.leave(entry.accounts.pop(), entry)

    def _add_paths(self, entry: _Entry) -> bool:
        """Make its paths, without setting them; say whether there was room."""
        route, key = entry.route, entry.route.key
        ways = (
            (pack_key(key.server, key.client, key.channel), route.relay, route.peer, 0),
            (pack_key(route.relay, route.peer, 0), key.server, key.client, key.channel),
        )
        for packed, source, destination, channel in ways:
            ends, hosts = _ends(source, destination, channel), (source.host, destination.host)
            usage = self._indices.take()
            if usage is None:
                self._forget_paths(entry)
                return False
            pair = self._pairs.get(hosts)
            if pair is None:
                pair = self._pairs[hosts] = _Pair(hosts)
                self._sources[source.host] += 1
                pair.use(self._network.way_of(*hosts), self._clock())
            seen = self._program.usage(usage)
            path = _Path(entry, packed, ends, pair, usage=usage, seen=seen, to_peer=not channel)
            pair.paths.add(path)
            entry.paths.append(path)
        return True

    def _forget(self, entry: _Entry) -> None:
        self._forget_paths(entry)
        self._unshare(entry)

    def _forget_paths(self, entry: _Entry) -> None:
        """Free what the paths have, which are not set."""
        while entry.paths:
            path = entry.paths.pop()
            pair = path.pair
            pair.paths.discard(path)
            if not pair.paths:
                del self._pairs[pair.hosts]
                self._sources[pair.hosts[0]] -= 1
            self._indices.give_back(path.usage)

    # Paths. ---------------------------------------------------------------------------------------

    def _put(self, path: _Path) -> None:
        """Have the program know a path as it is to be now, or not at all."""
        way, entry = path.pair.way, path.entry
        limited = any(account.is_limited and not account.index for account in entry.accounts)
        if way is None or limited:
            self._drop(path)
            return
        other = self._paths.get(path.key)
        if other is not None and other is not path:  # another route's; the last word counts
            self._drop(other)
        try:
            self._program.set_path(path.key, path.value(way, next(self._serials)))
            if not path.is_set:
                self._program.serve_port(path.port)
        except OSError as error:
            # What it knew of the path is not right any more, either.
            self._counts[f"paths not set: {error.strerror or error}"] += 1
            self._drop(path, even_so=True)
            return
        path.is_set = True
        self._paths[path.key] = path

    def _drop(self, path: _Path, *, even_so: bool = False) -> None:
        """Have the program know a path no longer."""
        if not path.is_set:
            if even_so:
                self._try(self._program.drop_path, path.key)
            return
        path.is_set = False
        del self._paths[path.key]
        self._try(self._program.drop_path, path.key)
        self._try(self._program.unserve_port, path.port)

    def _try(self, call: Callable[..., object], argument: bytes | int) -> None:
        try:
            call(argument)
        except OSError as error:
            self._count_refused(error)

    def _moved(self, account: Account) -> None:
        """Take note that a bucket has another number in the program."""
        for entry in account.users:
            if isinstance(entry, _Entry):
                for path in entry.paths:
                    self._put(path)

    def _count_refused(self, error: OSError) -> None:
        self._counts[f"refused by the kernel: {error.strerror or error}"] += 1

    def _count_left(self, why: str) -> None:
        self._counts[f"routes left to the sockets: {why}"] += 1

    # Ways. ----------------------------------------------------------------------------------------

    def _ask(self, pair: _Pair) -> None:
        """Ask for a way anew, and tell the program if it is another one."""
        if pair.use(self._network.way_of(*pair.hosts), self._clock()):
            for path in pair.paths:
                self._put(path)

    def _renew(self, pair: _Pair) -> None:
        if self._clock() - pair.asked >= REMEMBERED:
            self._ask(pair)

    def fileno(self) -> int:
        """Return what to wait on: readable when routes, links or addresses have changed."""
        return self._network.fileno()

    def changed(self) -> bool:
        """Take note of what has changed; say whether :meth:`refresh` is to be called."""
        try:
            if not self._network.changed():
                return bool(self._stale)
        except OSError as error:
            self._counts[f"changes of the network not read: {error.strerror or error}"] += 1
        self._sync_interfaces()
        self._stale = deque(self._pairs.values())
        return bool(self._stale)

    def refresh(self, most: int = SWEEP) -> bool:
        """Ask for some of the ways anew; say whether there are more to ask for."""
        stale = self._stale
        for _ in range(min(most, len(stale))):
            pair = stale.popleft()
            if pair.paths:
                self._ask(pair)
        return bool(stale)

    def _sync_interfaces(self) -> None:
        """Have the program on every interface that packets come in by, and on no other."""
        wanted, refused = self._network.interfaces(), {}
        for ifindex in self._on - wanted.keys():
            # It may be gone; what was there for it is not, without this.
            self._on.discard(ifindex)
            self._try(self._program.detach, ifindex)
        for ifindex, interface in wanted.items():
            try:
                self._program.attach(ifindex)
            except OSError as error:
                # Its packets come to the sockets.
                refused[ifindex] = f"{interface.name}: {error.strerror or error}"
            else:
                self._on.add(ifindex)
        self._refused = refused

    @property
    def interfaces(self) -> tuple[str, ...]:
        """The names of the interfaces that the program is on."""
        attached, known = self._program.attached, self._network.interfaces()
        return tuple(known[ifindex].name for ifindex in sorted(attached) if ifindex in known)

    @property
    def refused(self) -> tuple[str, ...]:
        """The interfaces that it could not be put on, and why, in words for a person."""
        return tuple(self._refused.values())

    # Counting, and the end. -----------------------------------------------------------------------

    def counters(self) -> Mapping[str, int]:
        """Return what was forwarded, dropped and passed up since the start, as the kernel's."""
        counts = Counter(self._counts)
        if self._is_open:
            told = self._program.counts()
            for count, words in WORDS.items():
                own = f"{words} in the kernel" if count in _FORWARDED else words
                counts[own] += told[count]
        return counts

    def close(self) -> None:
        """Forget every route, and close the program and the network."""
        if not self._is_open:
            return
        for key in [*self._entries]:
            self.remove(key)
        self._counts = Counter(self.counters())
        self._is_open = False
        self._program.close()
        self._network.close()
