"""The TURN client machine: one allocation, kept alive, and what is relayed through it (RFC 8656).

Theory of operation.  :meth:`Client.allocate` opens a socket to the server, and the rest follows
from what comes back::

    IDLE -> OPENING -> ALLOCATING -> ALLOCATED -> RELEASING -> ENDED

A redirection (300) and a port that the server still knows (437) lead from ALLOCATING back to
OPENING, another socket; a lost allocation leads to PAUSING and from there to OPENING if it is to be
made again, otherwise to ENDED.  While ALLOCATED the client refreshes the allocation, permissions
and channels by itself; commands and packets pass at any time.

The packet path makes no :class:`stun.message.Message`: a bound peer's datagram is four octets and
the payload, found by two dict lookups.  What has no channel goes in Send and Data indications.

What begins and ends an allocation is in :mod:`turn.client.lifecycle`.
Data connections of TCP allocations are in :mod:`turn.client.tcp`, permissions and channels in
:mod:`turn.client.peers`, a change of the client's address in :mod:`turn.client.move`.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from itertools import count

from stun.client import Indication
from stun.codec import encode
from stun.errors import DropReason, UsageError
from stun.framing import channel_data
from stun.registry import Method
from stun.sansio import (
    Address,
    Arrived,
    Cause,
    Closed,
    Entropy,
    Handle,
    Instant,
    Output,
    Received,
    Shut,
    SocketEvent,
    Transmit,
    Undeliverable,
    Write,
)
from turn.client.allocate import Granted
from turn.client.config import ClientConfig
from turn.client.data import Unusable, read_channel_data, read_data, send_indication
from turn.client.events import (
    ClientEvent,
    Connection,
    Data,
)
from turn.client.lifecycle import Lifecycle, State
from turn.client.path import Path
from turn.client.requests import Requests


class Client:
    """A :class:`stun.sansio.SocketMachine` for one allocation.  The module's text has the whole.

    ``handles`` numbers the sockets, for a driver whose machine contains several clients.  Commands
    raise :class:`stun.errors.UsageError` where the state does not allow them.
    """

    def __init__(
        self, config: ClientConfig, *, entropy: Entropy, handles: Iterator[Handle] | None = None
    ) -> None:
        self.config = config
        self.drops: Counter[DropReason] = Counter()
        """What came and was not used."""
        self.congestion_drops = 0
        """Datagrams not sent because the connection to the server took no more."""
        self._entropy = entropy
        self._queue: deque[Output | ClientEvent] = deque()
        self._requests = Requests(
            config, self._queue, self.drops, self._indication, entropy=entropy
        )
        numbers = count(1) if handles is None else handles
        self._life = life = Lifecycle(
            config,
            self._queue,
            self._requests,
            new_handle=lambda: next(numbers),
            arrived=self._path_data,
            send=self._indicate,
            write=self._write,
        )
        self._peers, self._connections = life.peers, life.connections
        self._keeper, self._mover = life.keeper, life.mover
        # What the packet path looks things up in.
        self._peer_of = life.peers.by_number
        self._prefix_of = life.peers.prefixes
        self._due: Instant | None = None

    @property
    def state(self) -> State:
        """Where the allocation is on its way."""
        return self._life.state

    @property
    def allocation(self) -> Granted | None:
        """What the server gave, while there is an allocation."""
        return self._life.allocation

    @property
    def not_permitted(self) -> int:
        """Datagrams dropped because their permission came too late or not at all."""
        return self._peers.not_permitted

    # Commands. ------------------------------------------------------------------------------------

    def allocate(self, now: Instant) -> None:
        """Open a socket and ask for a relayed address: ends in :class:`Allocated` or ``Failed``."""
        self._life.allocate(now)
        self._plan()

    def permit(self, *peers: Address, now: Instant) -> None:
        """Let peers at these IP addresses send (their ports do not matter).

        Ends, for each host, in ``Permitted`` or ``PeerRefused``.
        """
        self._need_allocation("permit")
        self._peers.permit(peers, now)
        self._after(now)

    def bind(self, peer: Address, now: Instant) -> int:
        """Bind a channel to a peer; its number.  Ends in ``Bound`` or ``PeerRefused``."""
        self._need_allocation("bind")
        self._need_datagrams("bind")
        number = self._peers.bind(peer, now)
        self._after(now)
        return number

    def forget(self, peer: Address) -> None:
        """Keep the peer's channel, and the permission of a host without peers, no longer alive."""
        self._peers.forget(peer)
        self._plan()

    def send(
        self, peer: Address, data: bytes, now: Instant, *, dont_fragment: bool = False
    ) -> None:
        """Send a datagram to a peer; nobody tells whether it arrives.

        It goes through the peer's channel if there is one, in a Send indication otherwise.  Without
        a permission it waits for one if ``permit_on_send`` is set, or raises
        :class:`stun.errors.UsageError`.  With ``dont_fragment`` the server sets DF.
        """
        prefix = self._prefix_of.get(peer)
        self._keeper.sent = now
        if prefix is None or dont_fragment:
            self._send_slowly(peer, data, now, dont_fragment)
        elif self._life.path.is_udp:
            try:
                message = prefix + len(data).to_bytes(2) + data
            except OverflowError:
                raise UsageError(f"send: {len(data)} octets are no datagram") from None
            self._queue.append(Transmit(message, self._life.path.remote, self._life.path.local))
        else:
            self._write(channel_data(int.from_bytes(prefix), data, pad=self._life.path.is_reliable))

    def connect(self, peer: Address, now: Instant) -> Connection:
        """Open a TCP connection to a peer (RFC 6062): ``PeerConnected`` or ``PeerRefused``.

        Returns its number, which events have and the commands below take.
        """
        self._need_allocation("connect")
        if not self.config.tcp:
            raise UsageError("connect: this allocation relays datagrams; allocate with tcp")
        connection = self._connections.connect(peer, now)
        self._after(now)
        return connection

    def write(self, connection: Connection, data: bytes) -> None:
        """Send octets on a relayed connection."""
        self._connections.write(connection, data)

    def hold(self, connection: Connection, held: bool) -> None:
        """Read nothing from a relayed connection for now, or go on reading."""
        self._connections.hold(connection, held)

    def close(self, connection: Connection, *, reset: bool = False) -> None:
        """End a relayed connection, at any stage; no event follows."""
        self._connections.close(connection, reset=reset)
        self._plan()

    def refresh(self, now: Instant, *, lifetime: int | None = None) -> None:
        """Refresh the allocation now, for ``lifetime`` seconds if the server agrees."""
        self._need_allocation("refresh")
        self._keeper.refresh(now, lifetime)
        self._after(now)

    def move(self, now: Instant, *, local: Address | None = None) -> None:
        """Go on from another local address (RFC 8016): ends in ``Moved`` or ``NotMoved``.

        ``local``: ``None`` for whatever address and port the system picks.  Until then, and if it
        fails, everything goes on from the old address.
        """
        self._need_allocation("move")
        self._life.move(local, now)
        self._plan()

    def release(self, now: Instant) -> None:
        """Give the allocation back and shut every socket: ends in ``Released``."""
        self._life.release(now)
        self._after(now)

    def abandon(self, now: Instant) -> None:
        """Shut every socket at once; the server is told if one unanswered packet can do it."""
        self._life.abandon(now)
        self._plan()

    def _need_allocation(self, command: str) -> None:
        if self.state is not State.ALLOCATED:
            raise UsageError(f"{command}: there is no allocation ({self.state.name.lower()})")

    def _need_datagrams(self, command: str) -> None:
        if self.config.tcp:
            raise UsageError(f"{command}: this allocation relays TCP; use connect")

    # What happens. --------------------------------------------------------------------------------

    def receive(self, packet: Received, now: Instant) -> None:
        """Take a datagram."""
        data = packet.data
        if packet.source != self._life.path.remote:
            self._requests.drop(DropReason.UNEXPECTED_SOURCE, packet.source, "not the server")
        elif data and data[0] >= 0x40:
            self._channel_data(data)
            if self._mover.old is not None:
                self._mover.heard(packet.local)
        else:
            self._requests.receive(packet, now)
            self._after(now)

    def _channel_data(self, message: bytes) -> None:
        told = read_channel_data(message, self._peer_of)
        if type(told) is Data:
            self._queue.append(told)
        elif isinstance(told, Unusable):
            self._requests.drop(told.reason, self._life.path.remote, told.detail)

    def on_socket(self, event: SocketEvent, now: Instant) -> None:
        """Take what happened to a socket."""
        handle = getattr(event, "handle", None)
        if handle is not None and handle in self._connections:
            self._connections.on_socket(event, now)
        elif handle is not None and handle in self._mover:
            self._mover.on_socket(event, now)
        elif isinstance(event, Undeliverable):
            self._requests.on_socket(event, now)
            self._keeper.suspect(event.destination, now)
        elif handle == self._life.path.handle:
            self._life.on_path(event, now)
        self._after(now)

    def _path_data(self, path: Path, data: bytes, now: Instant) -> None:
        splitter = path.splitter
        if splitter is None:  # DTLS: one datagram
            messages = [data]
        else:
            messages = splitter.feed(data)
        for message in messages:
            if message and message[0] >= 0x40:
                self._channel_data(message)
            elif len(message) >= 20 and int.from_bytes(message[2:4]) + 20 == len(message):
                self._requests.on_socket(Arrived(path.handle, message), now)
                self._requests.drain(now)
            else:
                self._requests.drop(DropReason.LENGTH_MISMATCH, self._life.path.remote)
        if splitter is not None and splitter.error is not None and path.handle:
            error = splitter.error
            self._requests.drop(error.reason, self._life.path.remote, str(error))
            closed = Closed(path.handle, Cause.OTHER, f"it does not speak STUN: {error}")
            self._queue.append(Shut(path.handle))
            self.on_socket(closed, now)

    def on_deadline(self, now: Instant) -> None:
        """Do what is due."""
        self._requests.on_deadline(now)
        self._requests.drain(now)
        if self._due is not None and self._due <= now:
            self._upkeep(now)
        self._after(now)

    def _upkeep(self, now: Instant) -> None:
        if self._life.patience is not None and self._life.patience <= now:
            self._life.out_of_patience(now)
        for part in (self._keeper, self._peers, self._connections, self._mover):
            if self.state is State.ALLOCATED:
                part.upkeep(now)

    def poll(self) -> Output | ClientEvent | None:
        """Give the next thing to do or to tell."""
        return self._queue.popleft() if self._queue else None

    def deadline(self) -> Instant | None:
        """Say when :meth:`on_deadline` is to be called."""
        first, second = self._requests.deadline(), self._due
        if first is None or second is None:
            return second if first is None else first
        return first if first < second else second

    def owns(self, local: Address) -> bool:
        """Whether a datagram for this local address is this client's."""
        return self._life.path.is_at(local) or self._mover.is_at(local)

    def _after(self, now: Instant) -> None:
        self._requests.drain(now)
        self._plan()

    def _plan(self) -> None:
        """Find the next moment at which there is something to do."""
        times = [self._life.patience]
        if self.state is State.ALLOCATED:
            parts = (self._keeper, self._peers, self._connections, self._mover)
            times += [part.deadline() for part in parts]
        self._due = min((at for at in times if at is not None), default=None)

    # Sending. -------------------------------------------------------------------------------------

    def _send_slowly(self, peer: Address, data: bytes, now: Instant, dont_fragment: bool) -> None:
        """Send without a channel; find out what is missing for one."""
        self._need_datagrams("send")
        if not isinstance(data, bytes | bytearray | memoryview):
            raise TypeError(f"send: {type(data).__name__} is not octets")
        if len(data) > 0xFFFF:
            raise UsageError(f"send: {len(data)} octets are no datagram")
        if not self._peers.permits(peer.host):
            if self.state is not State.ALLOCATED and not self._life.is_made_anew:
                self._need_allocation("send")
            if not self.config.permit_on_send and not self._peers.knows(peer.host):
                raise UsageError(f"send: there is no permission for {peer.host}")
            self._peers.wait(peer, data, dont_fragment, now)
            self._after(now)
            return
        self._indicate(peer, data, dont_fragment)
        if self.config.bind_after:
            sent = self._peers.sent
            sent[peer] = number = sent.get(peer, 0) + 1
            if number == self.config.bind_after and peer not in self._prefix_of:
                self._peers.bind(peer, now)
                self._after(now)

    def _indicate(self, peer: Address, data: bytes, dont_fragment: bool) -> None:
        message = send_indication(self._entropy(12), peer, data, dont_fragment=dont_fragment)
        self._write(encode(message, fingerprint=self.config.stun.fingerprint))

    def _write(self, message: bytes) -> None:
        path = self._life.path
        if path.is_udp:
            self._queue.append(Transmit(message, self._life.path.remote, path.local))
        elif path.congested or not path.handle:
            self.congestion_drops += 1
        else:
            self._queue.append(Write(path.handle, message))

    # Indications. ---------------------------------------------------------------------------------

    def _indication(self, indication: Indication, now: Instant) -> None:
        message = indication.message
        if message.method == Method.CONNECTION_ATTEMPT and self.config.tcp:
            if self.state is State.ALLOCATED:
                self._connections.attempted(indication, now)
            return
        told = read_data(message)
        if isinstance(told, Unusable):
            self._requests.drop(told.reason, indication.source, told.detail)
        elif not self._peers.knows(told.peer.host):
            # Section 11.4 wants a Data indication discarded without a permission for its peer.
            reason = DropReason.REFUSED_BY_POLICY
            self._requests.drop(reason, told.peer, "there is no permission for this peer")
        else:
            self._queue.append(told)
