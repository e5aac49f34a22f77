"""Established connections: one is one path, and what passes is framed (RFC 4571).

Theory of operation.  A connection that this agent opened is to somebody whom the peer named.  One
that was accepted may be anybody's: it is *unproven* until the agent has answered a check that came
over it with a success response, which it gives only to what the peer's credentials authenticate
(RFC 8445 section 7.3).  Unproven connections are bounded in number, in time and in what is kept of
them, and speak STUN or nothing.

A simultaneous open may fail on one side when it has succeeded on the other: what an earlier SYN met
comes back late.  So a connection that was opened so, and ended before anything came over it, is
opened again without a word, and what was sent on it, or since, is sent again.

Whoever hands a connection over once it is proven, octets and all, trusts nobody: what this agent
opened is unproven then, too, and no octet behind the last packet is taken for another one.

No two connections have the same addresses at both ends as far as one host's TCP goes, but a relay's
may, and so may those of systems that tell the two sides of a simultaneous open apart.  Then the one
that the controlling agent opened stays, which both agents can tell.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final, TypeAlias

from ice.base import Base, PathClosed, PathCongested, PathOpened
from ice.candidate import TcpType
from stun.demux import is_stun
from stun.errors import DropReason
from stun.framing import MAX_FRAME, Rfc4571Stream
from stun.sansio import (
    SECOND,
    Address,
    Arrived,
    Cause,
    Closed,
    Congested,
    Handle,
    Instant,
    Relieved,
    SocketEvent,
    Write,
)

if TYPE_CHECKING:
    from ice.tcp.switchboard import Switchboard

Deliver: TypeAlias = Callable[[Base, Address, bytes, Instant], None]
Key: TypeAlias = tuple[Base, Address]

PROOF: Final = 10 * SECOND
"""How long an accepted connection may go without an authentic check.  The peer sends one at once,
so this is some round trips, and the retransmissions of one lost segment."""
MOST_STRANGERS: Final = 16
"""Unproven connections of one base; for one more, the oldest of the host that has most gives way.
"""
MOST_ACCEPTED: Final = 64
"""Accepted connections of one base, proven ones included; one more is refused."""
UNPROVEN_FRAME: Final = 2048
"""The longest packet that an unproven connection may send: checks are shorter than an MTU."""
WAITING: Final = 1 << 18
"""Octets that are taken for a congested connection; drivers keep four times that, then give up."""

MOST_INTERRUPTIONS: Final = 3
"""How often a path is opened again that ended before anything came over it."""
MOST_UNANSWERED: Final = 8
"""Packets that are sent again then; agents send one check, and wait."""

_SUCCESS: Final = b"\x01\x01"
"""The type of a Binding success response (RFC 8489 section 5)."""


class Connection:
    """One established connection.

    ``accepted``: the other side opened it.  ``proven``: see the module's text.
    """

    __slots__ = (
        "accepted", "base", "congested", "heard", "interruptions", "proven", "remote", "since",
        "splitter", "unanswered", "waiting",
    )  # fmt: skip

    def __init__(
        self, base: Base, remote: Address, *, accepted: bool, now: Instant, trusting: bool = True
    ) -> None:
        self.base = base
        self.remote = remote
        self.accepted = accepted
        self.proven = trusting and not accepted
        self.heard = False
        """Whether the other side's first packet has come, and was STUN."""
        self.since = now
        self.splitter = Rfc4571Stream(limit=MAX_FRAME if self.proven else UNPROVEN_FRAME)
        self.congested = False
        self.waiting = 0
        """Octets written since it is congested."""
        self.unanswered: list[bytes] | None = None
        """What was sent, while it would have to be sent again on another connection."""
        self.interruptions = 0
        """How often the path had to be opened again."""

    @property
    def key(self) -> Key:
        """The path that it is."""
        return self.base, self.remote

    def write(self, data: bytes, now: Instant) -> None:
        """Send octets."""
        raise NotImplementedError

    def shut(self, *, reset: bool = False) -> None:
        """Close it; nothing more is heard of it."""
        raise NotImplementedError


class Direct(Connection):
    """A connection of this host."""

    __slots__ = ("_all", "_board", "handle")

    def __init__(
        self,
        connections: Connections,
        board: Switchboard,
        handle: Handle,
        base: Base,
        remote: Address,
        *,
        accepted: bool,
        now: Instant,
    ) -> None:
        trusting = connections.trusting
        super().__init__(base, remote, accepted=accepted, now=now, trusting=trusting)
        self._all = connections
        self._board = board
        self.handle = handle
        board.owners[handle] = self

    def write(self, data: bytes, now: Instant) -> None:  # noqa: ARG002 - a relay's needs it
        """Send octets."""
        self._board.queue.append(Write(self.handle, data))

    def shut(self, *, reset: bool = False) -> None:
        """Close it."""
        self._board.shut(self.handle, reset=reset)

    def on_socket(self, event: SocketEvent, now: Instant) -> None:
        """Take what happened to it."""
        match event:
            case Arrived(_, data):
                self._all.arrived(self, data, now)
            case Congested():
                self._all.congested(self)
            case Relieved():
                self._all.congested(self, relieved=True)
            case Closed(handle, cause, detail):
                self._board.owners.pop(handle, None)
                self._all.closed(self, cause, detail, now)
            case _:
                pass  # the other events are not of connections


class Connections:
    """Every established connection, by its path.

    ``reopen`` is asked to open a path again.  ``trusting``: see the module's text.
    """

    __slots__ = (
        "_all", "_board", "_controlling", "_deliver", "_drops", "_interrupted", "_unproven",
        "expected", "reopen", "trusting",
    )  # fmt: skip

    def __init__(
        self,
        board: Switchboard,
        *,
        deliver: Deliver,
        drops: Counter[DropReason],
        controlling: Callable[[], bool],
        trusting: bool = True,
    ) -> None:
        self._board = board
        self._deliver = deliver
        self._drops = drops
        self._controlling = controlling
        self._all: dict[Key, Connection] = {}
        self._unproven: dict[Connection, None] = {}
        """In the order in which they came."""
        self.trusting = trusting
        self._interrupted: dict[Key, Connection] = {}
        """Paths that are being opened again, with the connection that ended."""
        self.reopen: Callable[[Base, Address, Instant], None] | None = None
        self.expected: set[str] = set()
        """Hosts that the peer has named: strangers give way to them."""

    def __contains__(self, key: Key) -> bool:
        return key in self._all

    def __len__(self) -> int:
        return len(self._all)

    def of(self, base: Base) -> Iterator[Connection]:
        """Return those of a base; they may be closed meanwhile."""
        return iter([c for c in self._all.values() if c.base is base])

    # A connection begins. -------------------------------------------------------------------------

    def accepted(
        self, handle: Handle, base: Base, remote: Address, now: Instant, *, wanted: bool
    ) -> bool:
        """Take a connection that a listener accepted; whether it was taken.

        ``wanted``: it is one that was being dialled.
        """
        if not self.admit(base, remote):
            self._board.shut(handle, reset=True)
            return False
        connection = Direct(self, self._board, handle, base, remote, accepted=True, now=now)
        self.add(connection, wanted=wanted)
        return True

    def admit(self, base: Base, remote: Address) -> bool:
        """Whether one more accepted connection may be had; a stranger may have to go for it."""
        if sum(c.accepted for c in self.of(base)) >= MOST_ACCEPTED:
            self._drops[DropReason.RATE_LIMITED] += 1
            return False
        strangers = [c for c in self._unproven if c.base is base]
        if len(strangers) < MOST_STRANGERS:
            return True
        hosts = Counter(c.remote.host for c in strangers)
        unexpected = [c for c in strangers if c.remote.host not in self.expected]
        if not unexpected and remote.host not in self.expected:
            self._drops[DropReason.RATE_LIMITED] += 1
            return False
        # The host that has most of them first, so that one host alone cannot crowd out the others.
        out = max(unexpected or strangers, key=lambda c: hosts[c.remote.host])
        self._drops[DropReason.RATE_LIMITED] += 1
        self.end(out, Cause.OTHER, "gave way to a newer connection", reset=True)
        return True

    def add(self, connection: Connection, *, wanted: bool = True) -> None:
        """Take a connection that is established; tells ``PathOpened``.

        ``wanted``: this agent has asked for it.
        """
        key = connection.key
        before = self._all.get(key)
        if before is not None and not self._gives_way(before, connection):
            connection.shut(reset=True)
            return
        self._all[key] = connection
        if not connection.proven:
            self._unproven[connection] = None
        if wanted and connection.base.tcptype is TcpType.SIMULTANEOUS_OPEN:
            connection.unanswered = []
        interrupted = self._interrupted.pop(key, None)
        if interrupted is not None:
            self._go_on(interrupted, connection)
        elif before is None:
            self._board.queue.append(PathOpened(connection.base, connection.remote))
        else:
            # The path is the same, so nobody needs to know.
            self._unproven.pop(before, None)
            before.shut(reset=True)
            if before.congested:
                self._board.queue.append(PathCongested(*key, relieved=True))

    def _gives_way(self, before: Connection, after: Connection) -> bool:
        """Whether, of two connections of one path, the later one stays."""
        if before.accepted is after.accepted:
            return True  # what was there before must have ended without a word
        return after.accepted is not self._controlling()

    def _go_on(self, before: Connection, after: Connection) -> None:
        """Take the place of a connection that ended before anything came over it."""
        after.interruptions = before.interruptions
        after.unanswered = before.unanswered
        for frame in before.unanswered or ():
            after.write(frame, after.since)

    # It goes on. ----------------------------------------------------------------------------------

    def bare(self, base: Base, remote: Address) -> Handle | None:
        """Return the socket of a path on which packets of data need nothing but their length.

        They may be written to it by whoever has it, whole, and as long as it is not congested.
        """
        connection = self._all.get((base, remote))
        if not isinstance(connection, Direct) or not connection.proven:
            return None
        return connection.handle if connection.unanswered is None else None

    def send(self, base: Base, remote: Address, data: bytes, now: Instant) -> bool:
        """Send a packet; whether it was taken."""
        connection = self._all.get((base, remote))
        if connection is None:
            return self._send_later(base, remote, data)
        if connection.congested:
            connection.waiting += len(data)
            if connection.waiting > WAITING:
                self._drops[DropReason.CONGESTED] += 1
                return False
        if not connection.proven and data[:2] == _SUCCESS:
            self._prove(connection)
        try:
            frame = len(data).to_bytes(2) + data
        except OverflowError:
            self._drops[DropReason.TOO_LONG] += 1
            return False
        if connection.unanswered is not None and len(connection.unanswered) < MOST_UNANSWERED:
            connection.unanswered.append(frame)
        connection.write(frame, now)
        return True

    def _send_later(self, base: Base, remote: Address, data: bytes) -> bool:
        """Keep a packet for a path that is being opened again, if it is; whether it was kept."""
        kept = None
        if self._interrupted:
            interrupted = self._interrupted.get((base, remote))
            kept = None if interrupted is None else interrupted.unanswered
        if kept is None or len(kept) >= MOST_UNANSWERED or len(data) > MAX_FRAME:
            self._drops[DropReason.UNKNOWN_STREAM] += 1
            return False
        kept.append(len(data).to_bytes(2) + data)
        return True

    def _prove(self, connection: Connection) -> None:
        connection.proven = True
        connection.splitter.allow(MAX_FRAME)
        self._unproven.pop(connection, None)

    def arrived(self, connection: Connection, data: bytes, now: Instant) -> None:
        """Take octets."""
        splitter = connection.splitter
        base, remote = connection.base, connection.remote
        if connection.heard and connection.proven and self.trusting:
            deliver = self._deliver
            for packet in splitter.feed(data):
                deliver(base, remote, packet, now)
        else:
            self._arrived_first(connection, data, now)
        if splitter.error is not None and self._all.get((base, remote)) is connection:
            self._drops[splitter.error.reason] += 1
            self.end(connection, Cause.OTHER, f"no RFC 4571 framing: {splitter.error}", reset=True)

    def _arrived_first(self, connection: Connection, data: bytes, now: Instant) -> None:
        """Take octets where each packet may change what becomes of those behind it."""
        splitter = connection.splitter
        splitter.push(data)
        while (packet := splitter.pop()) is not None:
            if not packet and not connection.proven:
                continue  # RFC 4571 section 2: a length of zero "codes the null packet"
            if is_stun(packet):
                connection.heard = True
                connection.unanswered = None
            elif not (connection.heard and connection.proven):
                # RFC 6544 section 7.1: "the remote candidate address apparently was not one of the
                # peer's addresses, and the agent SHOULD close the connection".
                self._drops[DropReason.NOT_EXPECTED_PROTOCOL] += 1
                detail = "what came first was not STUN"
                self.end(connection, Cause.OTHER, detail, reset=True)
                return
            self._deliver(connection.base, connection.remote, packet, now)
            # What was delivered may have ended it, or proved it.
            if self._all.get(connection.key) is not connection:
                return

    def congested(self, connection: Connection, *, relieved: bool = False) -> None:
        """Take note that its peer reads slowly, or has caught up."""
        connection.congested = not relieved
        connection.waiting = 0
        self._board.queue.append(PathCongested(connection.base, connection.remote, relieved))

    # It ends. -------------------------------------------------------------------------------------

    def closed(self, connection: Connection, cause: Cause, detail: str, now: Instant) -> None:
        """Take note that it ended by itself; opens the path again, or tells ``PathClosed``."""
        is_current = self._all.get(connection.key) is connection
        again = connection.unanswered is not None and self.reopen is not None
        if not is_current or not again or connection.interruptions >= MOST_INTERRUPTIONS:
            self.ended(connection, cause, detail)
            return
        assert self.reopen is not None
        self._unproven.pop(connection, None)
        del self._all[connection.key]
        connection.interruptions += 1
        self._interrupted[connection.key] = connection
        self.reopen(connection.base, connection.remote, now)

    def ended(self, connection: Connection, cause: Cause, detail: str) -> None:
        """Take note that it is closed; tells ``PathClosed``."""
        self._unproven.pop(connection, None)
        if self._all.get(connection.key) is connection:
            del self._all[connection.key]
            closed = PathClosed(connection.base, connection.remote, cause, detail)
            self._board.queue.append(closed)

    def end(self, connection: Connection, cause: Cause, detail: str, *, reset: bool) -> None:
        """Close it; tells ``PathClosed``."""
        connection.shut(reset=reset)
        self.ended(connection, cause, detail)

    def give_up(self, key: Key) -> None:
        """Take note that a path is not opened again after all."""
        self._interrupted.pop(key, None)

    def drop(self, key: Key, *, reset: bool = True) -> None:
        """Close one without a word, if there is one.

        After a FIN the addresses could not be used again for a minute (TIME-WAIT), and those of a
        simultaneous open are what the next one has to be between, so it is a RST unless what was
        written last is to arrive.
        """
        connection = self._all.pop(key, None)
        if connection is not None:
            self._unproven.pop(connection, None)
            connection.shut(reset=reset)

    def release(self, key: Key) -> tuple[Handle, bytes] | None:
        """Give up a connection of this host, if there is one, as it is.

        Returns its socket, and the octets that came behind the last packet that was delivered.
        """
        connection = self._all.get(key)
        if not isinstance(connection, Direct):
            return None
        del self._all[key]
        self._unproven.pop(connection, None)
        self._board.owners.pop(connection.handle, None)
        return connection.handle, connection.splitter.rest()

    # Time. ----------------------------------------------------------------------------------------

    def on_deadline(self, now: Instant) -> None:
        """Close what has not proved itself in time."""
        for connection in [*self._unproven]:
            if connection.since + PROOF > now:
                break
            self._drops[DropReason.MISSING_INTEGRITY] += 1
            self.end(connection, Cause.TIMED_OUT, "no authentic check came", reset=True)

    def deadline(self) -> Instant | None:
        """Say when :meth:`on_deadline` is to be called."""
        first = next(iter(self._unproven), None)
        return None if first is None else first.since + PROOF
