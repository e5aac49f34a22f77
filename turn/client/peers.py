"""Permissions and channels of one allocation, kept alive (RFC 8656 sections 9 to 12).

Theory of operation.  A permission is for an IP address and lives 300 s on the server, a channel is
for a transport address and lives 600 s.  Each entry here has two times, both counted from the
moment its last request was sent, so that they never end after the server's:

* ``due``: when it is to be refreshed, 60 s before the server would forget it;
* ``until``: when the server forgets it, should no refresh get through.

Permissions that are due at about the same time share a request.  A refused request for several
does not say which of them was meant, so each is then asked for alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final, Protocol

from stun.attributes import CHANNEL_NUMBER, XOR_PEER_ADDRESS
from stun.client import Reply
from stun.errors import StunError, UsageError
from stun.message import Message
from stun.registry import ErrorCode, Method
from stun.sansio import SECOND, Address, Instant
from turn.client.errors import ServerRefused
from turn.client.events import Bound, PeerRefused, Permitted
from turn.client.requests import Ask, Done, Failure, NotDone, Queue

PERMISSION_LIFE: Final = 300 * SECOND
CHANNEL_LIFE: Final = 600 * SECOND
EARLY: Final = 60 * SECOND
"""How long before the end something is refreshed."""
TOGETHER: Final = 30 * SECOND
"""Permissions due within this time of each other are refreshed by one request."""
BATCH: Final = 16
"""Addresses in one CreatePermission: with IPv6 it stays below the 1280 octets of any link."""
AGAIN: Final = 5 * SECOND
"""How long after an unanswered refresh the next one follows."""
WAITING: Final = 16
"""Datagrams that wait for one permission; for one more the oldest is dropped."""
REUSE: Final = 300 * SECOND
"""RFC 8656 section 12: a channel's number and its peer are bound to others only 5 minutes after
the binding has expired."""

FIRST_CHANNEL: Final = 0x4000
LAST_CHANNEL: Final = 0x4FFF


class Asker(Protocol):
    """How the client sends a request to the server it has an allocation at."""

    def __call__(self, message: Message, now: Instant, done: Done, failed: NotDone) -> Ask:
        """Send, and call one of the two back."""
        ...


@dataclass(slots=True, eq=False)
class Permission:
    """A peer's IP address; ``peer`` is what stands for it in requests."""

    peer: Address
    live: bool = False
    wanted: bool = True
    asked: Ask | None = None
    due: Instant = 0
    until: Instant = 0
    waiting: deque[tuple[Address, bytes, bool]] = field(
        default_factory=lambda: deque(maxlen=WAITING)
    )


@dataclass(slots=True, eq=False)
class Channel:
    """A channel number and the peer that it stands for."""

    number: int
    peer: Address
    live: bool = False
    wanted: bool = True
    asked: Ask | None = None
    due: Instant = 0
    until: Instant = 0


class Peers:
    """The permissions and channels of a client.

    ``ask`` sends requests, ``message`` makes them, ``lost`` is told when an answer shows that the
    allocation is gone, ``send`` takes a datagram that has waited for its permission.
    """

    def __init__(
        self,
        queue: Queue,
        ask: Asker,
        message: Callable[[Method], Message],
        *,
        lost: Callable[[StunError, Instant], None],
        send: Callable[[Address, bytes, bool], None],
    ) -> None:
        self._queue = queue
        self._ask = ask
        self._message = message
        self._lost = lost
        self._send = send
        self._permissions: dict[str, Permission] = {}
        self._channels: dict[Address, Channel] = {}
        self._numbers: dict[int, Channel] = {}
        self._next = FIRST_CHANNEL
        # What the packet path looks things up in.
        self.by_number: dict[int, Address] = {}
        self.prefixes: dict[Address, bytes] = {}
        self.sent: dict[Address, int] = {}
        """Datagrams sent without a channel."""
        self.not_permitted = 0
        """Datagrams dropped because too many waited for the permission, or it was refused."""

    # Permissions. ---------------------------------------------------------------------------------

    def permits(self, host: str) -> bool:
        """Whether a permission is in place, as far as the client knows."""
        entry = self._permissions.get(host)
        return entry is not None and entry.live

    def knows(self, host: str) -> bool:
        """Whether a permission is in place or has been asked for."""
        return host in self._permissions

    def permit(self, peers: Iterable[Address], now: Instant) -> None:
        """Install permissions; what is there already is told again."""
        missing: list[Permission] = []
        for peer in peers:
            entry = self._permissions.get(peer.host)
            if entry is None:
                entry = self._permissions[peer.host] = Permission(peer)
                missing.append(entry)
            else:
                entry.wanted = True
                if entry.live:
                    entry.due = min(entry.due, entry.until - EARLY)
                    self._queue.append(Permitted(peer.host))
        self._create(missing, now)

    def wait(self, peer: Address, data: bytes, dont_fragment: bool, now: Instant) -> None:
        """Keep a datagram until its permission is there."""
        if peer.host not in self._permissions:
            self.permit((peer,), now)
        waiting = self._permissions[peer.host].waiting
        self.not_permitted += len(waiting) == WAITING
        waiting.append((peer, data, dont_fragment))

    def _create(self, entries: list[Permission], now: Instant) -> None:
        for start in range(0, len(entries), BATCH):
            batch = entries[start : start + BATCH]
            message = self._message(Method.CREATE_PERMISSION)
            for entry in batch:
                message.add(XOR_PEER_ADDRESS, entry.peer)
            self._ask_for(batch, message, now)

    def _ask_for(self, batch: list[Permission], message: Message, now: Instant) -> None:
        def done(_: Reply, _later: Instant) -> None:
            for entry in batch:
                entry.asked = None
                if self._permissions.get(entry.peer.host) is entry:
                    self._permitted(entry, now)

        def failed(failure: Failure, later: Instant) -> None:
            for entry in batch:
                entry.asked = None
            self._not_created(batch, failure.error, later)

        ask = self._ask(message, now, done, failed)
        for entry in batch:
            entry.asked = ask

    def _permitted(self, entry: Permission, asked: Instant) -> None:
        entry.until = asked + PERMISSION_LIFE
        entry.due = entry.until - EARLY if entry.wanted else entry.until
        if entry.live:
            return
        entry.live = True
        self._queue.append(Permitted(entry.peer.host))
        while entry.waiting:
            self._send(*entry.waiting.popleft())

    def _not_created(self, batch: list[Permission], error: StunError, now: Instant) -> None:
        refused = isinstance(error, ServerRefused)
        if _is_mismatch(error):
            self._lost(error, now)
            return
        current = [e for e in batch if self._permissions.get(e.peer.host) is e]
        if refused and len(batch) > 1:
            for entry in current:
                self._create([entry], now)
            return
        for entry in current:
            if entry.live and now < entry.until and not (refused and _is_final(error)):
                entry.due = now + AGAIN
                continue
            del self._permissions[entry.peer.host]
            self.not_permitted += len(entry.waiting)
            self._queue.append(PeerRefused(entry.peer, Method.CREATE_PERMISSION, error))

    # Channels. ------------------------------------------------------------------------------------

    def bind(self, peer: Address, now: Instant) -> int:
        """Bind a channel, or tell of the one there is; its number."""
        channel = self._channels.get(peer)
        if channel is None:
            number = self._free_number()
            channel = self._channels[peer] = self._numbers[number] = Channel(number, peer)
            # What the server sends through the channel may overtake its answer.
            self.by_number[number] = peer
            self._bind(channel, now)
        else:
            # A peer keeps its number: another one is allowed only long after the first.
            channel.wanted = True
            if channel.live:
                channel.due = min(channel.due, channel.until - EARLY)
                self._queue.append(Bound(peer, channel.number))
            elif channel.asked is None:
                self.by_number[channel.number] = peer
                self._bind(channel, now)
        return channel.number

    def _free_number(self) -> int:
        for _ in range(LAST_CHANNEL - FIRST_CHANNEL + 1):
            number = self._next
            self._next = FIRST_CHANNEL if number == LAST_CHANNEL else number + 1
            if number not in self._numbers:
                return number
        raise UsageError("all 4096 channels are bound; forget peers that are not needed any more")

    def _bind(self, channel: Channel, now: Instant) -> None:
        def done(_: Reply, _later: Instant) -> None:
            channel.asked = None
            if self._channels.get(channel.peer) is channel:
                self._bound(channel, now)

        def failed(failure: Failure, later: Instant) -> None:
            channel.asked = None
            if self._channels.get(channel.peer) is channel:
                self._not_bound(channel, failure.error, later)

        message = self._message(Method.CHANNEL_BIND)
        message.add(CHANNEL_NUMBER, channel.number)
        message.add(XOR_PEER_ADDRESS, channel.peer)
        channel.asked = self._ask(message, now, done, failed)

    def _bound(self, channel: Channel, asked: Instant) -> None:
        peer = channel.peer
        channel.until = asked + CHANNEL_LIFE
        channel.due = channel.until - EARLY if channel.wanted else channel.until
        # Section 12.3: "the corresponding permission has been installed or refreshed."
        permission = self._permissions.get(peer.host)
        if permission is None:
            permission = self._permissions[peer.host] = Permission(peer, wanted=channel.wanted)
        self._permitted(permission, asked)
        if not channel.live:
            channel.live = True
            self.prefixes[peer] = channel.number.to_bytes(2)
            self.sent.pop(peer, None)
            self._queue.append(Bound(peer, channel.number))

    def _not_bound(self, channel: Channel, error: StunError, now: Instant) -> None:
        out_of_step = isinstance(error, ServerRefused) and error.code == ErrorCode.BAD_REQUEST
        if _is_mismatch(error) or (out_of_step and channel.live):
            # Section 12.3, of an unexpected 400: "it is RECOMMENDED that the client immediately
            # delete the allocation and start afresh".
            self._lost(error, now)
            return
        if channel.live and now < channel.until and not _is_final(error):
            channel.due = now + AGAIN
            return
        self._unbind(channel, now)
        self._queue.append(PeerRefused(channel.peer, Method.CHANNEL_BIND, error))

    def _unbind(self, channel: Channel, now: Instant) -> None:
        """Use a channel no longer; its number rests until nobody can mistake it."""
        self.by_number.pop(channel.number, None)
        self.prefixes.pop(channel.peer, None)
        # One that was never confirmed may be bound all the same: its answers may have been lost.
        end = channel.until if channel.live else now + CHANNEL_LIFE
        channel.live = channel.wanted = False
        channel.until = channel.due = max(now, end) + REUSE

    # Both. ----------------------------------------------------------------------------------------

    def forget(self, peer: Address) -> None:
        """Refresh neither the channel of a peer nor, if it was its host's last, the permission."""
        channel = self._channels.get(peer)
        if channel is not None and channel.wanted:
            channel.wanted = False
            channel.due = channel.until
        self.sent.pop(peer, None)
        others = any(c.wanted and c.peer.host == peer.host for c in self._channels.values())
        permission = self._permissions.get(peer.host)
        if permission is None or others:
            return
        permission.wanted = False
        if permission.live:
            permission.due = permission.until
        else:
            self.not_permitted += len(permission.waiting)
            permission.waiting.clear()

    def upkeep(self, now: Instant) -> None:
        """Refresh what is due, forget what has ended."""
        due: list[Permission] = []
        soon: list[Permission] = []
        for host, permission in [*self._permissions.items()]:
            if permission.asked is not None or not permission.live:
                continue
            if not permission.wanted:
                if permission.until <= now:
                    del self._permissions[host]
            elif permission.due <= now:
                due.append(permission)
            elif permission.due <= now + TOGETHER:
                soon.append(permission)
        if due:
            self._create(due + soon, now)
        for channel in [*self._channels.values()]:
            if channel.asked is not None or channel.due > now:
                continue
            if channel.wanted:
                self._bind(channel, now)
            elif channel.live:
                self._unbind(channel, now)
            else:
                del self._channels[channel.peer], self._numbers[channel.number]

    def deadline(self) -> Instant | None:
        """Say when :meth:`upkeep` is to be called."""
        permissions = (p.due for p in self._permissions.values() if p.live and p.asked is None)
        channels = (c.due for c in self._channels.values() if c.asked is None)
        first = min(permissions, default=None)
        second = min(channels, default=None)
        return min((at for at in (first, second) if at is not None), default=None)

    def start_afresh(self, now: Instant) -> None:
        """Ask a new allocation for all that the one before had."""
        permissions = [p for p in self._permissions.values() if p.wanted]
        channels = [c for c in self._channels.values() if c.wanted]
        self.clear()
        for permission in permissions:
            fresh = Permission(permission.peer, waiting=permission.waiting)
            self._permissions[permission.peer.host] = fresh
        self._create([*self._permissions.values()], now)
        for channel in channels:
            self.bind(channel.peer, now)

    def suspend(self) -> None:
        """Keep what is wanted for :meth:`start_afresh`; nothing is live meanwhile."""
        entries: list[Permission | Channel] = [*self._permissions.values()]
        for entry in [*entries, *self._channels.values()]:
            entry.live = False
            entry.asked = None
        self.by_number.clear()
        self.prefixes.clear()

    def clear(self) -> None:
        """Forget everything: the allocation is gone."""
        self._permissions.clear()
        self._channels.clear()
        self._numbers.clear()
        self.by_number.clear()
        self.prefixes.clear()
        self.sent.clear()


def _is_mismatch(error: StunError) -> bool:
    return isinstance(error, ServerRefused) and error.code == ErrorCode.ALLOCATION_MISMATCH


def _is_final(error: StunError) -> bool:
    """Whether trying again is in vain: 5xx "temporary", everything else is not (RFC 8489 6.3.4)."""
    return isinstance(error, ServerRefused) and not 500 <= error.code <= 599
