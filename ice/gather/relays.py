"""Relayed candidates: allocations at TURN servers (RFC 8445 section 5.1.1.2, RFC 8656).

Theory of operation.  For each address of this host, stream, component and server there is a
:class:`~ice.gather.contest.Contest` between the server's transport addresses, in the order in which
they were looked up: each is tried when the one before has failed or :data:`STAGGER` has passed, the
first that allocates wins, and the others are given up.  So a network that lets no UDP pass costs
half a second.  Contests know nothing of each other: all servers are raced.

Over UDP an allocation goes through the host's own socket, as RFC 8445 wants it ("sends a Binding or
Allocate request to the server from the host candidate"): then what the server sees is what a peer
will see, a server-reflexive candidate.  To the client machine that socket is one that it opened;
where it wants another one (after 437 or 300) it gets its own.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final

from ice.base import Base, BaseId, BaseLost, PathClosed, PathUnreachable
from ice.config import Config, Server
from ice.gather.book import Book, Source
from ice.gather.contest import Contest, Relay
from ice.gather.hostsocket import HostSocket, Spot
from ice.gather.pacer import Pacer
from ice.gather.patience import FAR, Patience
from ice.gather.reach import can_reach, is_plausible
from ice.gather.reflexive import Reflexive
from stun.client import Config as StunConfig
from stun.discovery import Target, Transport
from stun.errors import DropReason, StunError
from stun.sansio import (
    MILLISECOND,
    SECOND,
    Address,
    Cause,
    Closed,
    Dial,
    Entropy,
    Handle,
    Instant,
    Opened,
    OpenUdp,
    Received,
    Shut,
    SocketEvent,
    Timers,
    Transmit,
    Undeliverable,
    Write,
)
from stun.transaction import RTO
from turn.client.config import ClientConfig, RelayedFamily
from turn.client.errors import ServerRefused
from turn.client.events import (
    Allocated,
    Data,
    Failed,
    PeerRefused,
    PeerUnreachable,
    Released,
)
from turn.client.machine import Client

STAGGER: Final = 500 * MILLISECOND
"""How long one transport address of a server may keep the next one waiting: an allocation takes two
round trips, TLS two more."""
BIND_AFTER: Final = 8
"""Datagrams to one peer before it gets a channel.  Checks are few, so most peers never get one."""
_SHIFT = {Transport.UDP: 0, Transport.DTLS: 8, Transport.TCP: 16, Transport.TLS: 24}
"""How much lower a relay ranks that is reached over this transport: what is sent there may wait
behind what was lost (RFC 8656 section 3.1)."""


class Relays:
    """The allocations of all components.

    ``reflexive`` gives what asks for server-reflexive candidates; ``freed`` is told that an
    allocation does not need a socket of the host any more.
    """

    def __init__(
        self,
        config: Config,
        queue: deque[Any],
        book: Book,
        pacer: Pacer,
        patience: Patience,
        *,
        entropy: Entropy,
        handles: Iterator[Handle],
        ids: Iterator[BaseId],
        deliver: Callable[[Base, Address, bytes, Instant], None],
        reflexive: Callable[[], Reflexive],
        freed: Callable[[HostSocket], None],
    ) -> None:
        self._config = config
        self._queue = queue
        self._book = book
        self._pacer = pacer
        self._patience = patience
        self._entropy = entropy
        self._handles = handles
        self._ids = ids
        self._deliver = deliver
        self._reflexive = reflexive
        self._freed = freed
        self._drops: Counter[DropReason] = Counter()
        self._contests: dict[tuple[str, int, int, str], Contest] = {}
        self._relays: set[Relay] = set()
        self._of_base: dict[BaseId, Relay] = {}
        self._owners: dict[Handle, Relay] = {}
        self._at: dict[Address, Relay] = {}
        self._enough: Timers[tuple[int, int]] = Timers()
        """By stream and component: when other relays are waited for no more, since there is one."""

    @property
    def is_busy(self) -> bool:
        """Whether a candidate may still come."""
        return any(contest.is_open for contest in self._contests.values())

    @property
    def bases(self) -> list[Base]:
        """The relayed addresses there are."""
        return [base for relay in self._relays for base in relay.bases.values()]

    @property
    def drops(self) -> Counter[DropReason]:
        """What came from servers and was not used."""
        return sum((relay.client.drops for relay in self._relays), Counter(self._drops))

    # Allocating. ----------------------------------------------------------------------------------

    def allocate(self, spot: Spot, socket: HostSocket | None, server: Server, rank: int) -> None:
        """Get an allocation at a server, unless there is one or one is on its way."""
        key = (*spot.key, server.name)
        host = spot.interface.host
        targets = deque(t for t in server.targets if can_reach(host, t.address))
        if key in self._contests or not targets:
            return
        contest = Contest(spot, socket, server, rank, targets)
        self._contests[key] = contest
        self._try_next(contest)

    def _try_next(self, contest: Contest) -> None:
        contest.next = None
        contest.is_waiting = True
        self._pacer.add(partial(self._start, contest, contest.targets.popleft()))

    def _start(self, contest: Contest, target: Target, now: Instant) -> bool:
        contest.is_waiting = False
        if contest.winner is not None or contest not in self._contests.values():
            return False
        relay = Relay(contest, target, self._client(contest, target))
        contest.attempts.append(relay)
        contest.next = now + STAGGER if contest.targets else None
        self._relays.add(relay)
        relay.client.allocate(now)
        self.drain(relay, now)
        return True

    def _client(self, contest: Contest, target: Target) -> Client:
        config = self._config
        local = Address(contest.spot.interface.host, 0)
        socket = contest.socket
        if target.transport is Transport.UDP and socket is not None and socket.base is not None:
            correspondent = socket.servers.get(target.address)
            # One five-tuple has one allocation (RFC 8656 section 7.2).
            if correspondent is None or correspondent.relay is None:
                local = socket.base.address
        family: RelayedFamily = "dual" if config.ipv4 and config.ipv6 else None
        if not config.ipv4:
            family = 6
        rto = max(RTO, config.ta * len(self._contests))
        return Client(
            ClientConfig(
                server=target,
                credentials=contest.server.credentials,
                local=local,
                family=family,
                keepalive=max(1, config.keepalive // SECOND),
                bind_after=BIND_AFTER,
                software=config.software,
                stun=StunConfig(software=None, rto=rto),
            ),
            entropy=self._entropy,
            handles=self._handles,
        )

    # What happens. --------------------------------------------------------------------------------

    def owns(self, handle: Handle | None) -> bool:
        """Whether a socket is one of an allocation's own."""
        return handle in self._owners

    def on_socket(self, event: SocketEvent, now: Instant) -> None:
        """Take what happened to a socket of an allocation's own."""
        handle: Handle = getattr(event, "handle", 0)
        relay = self._owners.get(handle)
        if relay is None:
            return
        if isinstance(event, Opened):
            relay.local = event.local
            self._at[event.local] = relay
        elif isinstance(event, Closed):
            self._disown(relay, handle)
        relay.client.on_socket(event, now)
        self.drain(relay, now)

    def _disown(self, relay: Relay, handle: Handle) -> None:
        self._owners.pop(handle, None)
        if relay.local is not None and self._at.get(relay.local) is relay:
            del self._at[relay.local]

    def undeliverable(self, event: Undeliverable, now: Instant) -> None:
        """Take an ICMP error for something that was sent to a server."""
        for relay in [*self._relays]:
            if relay.client.owns(event.local):
                relay.client.on_socket(event, now)
                self.drain(relay, now)
                if relay.contest.next is not None:
                    relay.contest.next = now  # it may still answer, but the next one need not wait

    def receive(self, packet: Received, now: Instant) -> bool:
        """Take a datagram that came to a socket of an allocation's own, if it did."""
        relay = self._at.get(packet.local)
        if relay is None:
            return False
        self._receive(relay, packet, now)
        return True

    def _receive(self, relay: Relay, packet: Received, now: Instant) -> None:
        relay.client.receive(packet, now)
        self.drain(relay, now)

    def on_deadline(self, now: Instant) -> None:
        """Do what is due."""
        for contest in [*self._contests.values()]:
            if contest.next is not None and contest.next <= now:
                self._try_next(contest)
        for relay in [*self._relays]:
            due = relay.client.deadline()
            if due is not None and due <= now:
                relay.client.on_deadline(now)
                self.drain(relay, now)
        for component in self._enough.expired(now):
            late = [c for c in self._contests.values() if c.spot[1:] == component]
            self._give_up(late, "no answer, long after another relay's", now)

    def deadline(self) -> Instant | None:
        """Say when :meth:`on_deadline` is to be called."""
        times = [contest.next for contest in self._contests.values()]
        times += [relay.client.deadline() for relay in self._relays]
        times.append(self._enough.next())
        return min((at for at in times if at is not None), default=None)

    # What clients want and tell. ------------------------------------------------------------------

    def drain(self, relay: Relay, now: Instant) -> None:
        """Take everything that an allocation's client wants and tells."""
        poll = relay.client.poll
        while (output := poll()) is not None:
            self._take(relay, output, now)

    def _take(self, relay: Relay, output: Any, now: Instant) -> None:
        kind = type(output)
        if kind is Data:
            base = relay.bases.get(":" in output.peer.host)
            if base is not None:
                self._deliver(base, output.peer, output.data, now)
            else:
                self._drops[DropReason.NO_ALLOCATION] += 1
        elif kind is Transmit or kind is Write:
            self._queue.append(output)
        else:
            self._take_order(relay, output, now)

    def _take_order(self, relay: Relay, output: Any, now: Instant) -> None:
        match output:
            case OpenUdp(handle, local):
                socket = relay.contest.socket
                if socket is not None and socket.base is not None and socket.base.address == local:
                    self._share(relay, socket, handle, now)
                else:
                    self._owners[handle] = relay
                    self._queue.append(output)
            case Dial(handle):
                self._owners[handle] = relay
                self._queue.append(output)
            case Shut(handle):
                if handle == relay.shared:
                    self._unshare(relay)
                else:
                    self._disown(relay, handle)
                    self._queue.append(output)
            case Allocated():
                self._allocated(relay, output, now)
            case Failed(error):
                self._failed(relay, error)
            case Released():
                self._remove(relay)
            case PeerRefused(peer, _, error):
                if isinstance(error, ServerRefused) and error.code < 500:
                    relay.refused.add(peer.host)
                    self._tell_refused(relay, peer, str(error))
            case PeerUnreachable(peer, icmp_type, icmp_code, mtu):
                base = relay.bases.get(peer.is_ipv6)
                if base is not None:
                    self._queue.append(PathUnreachable(base, peer, icmp_type, icmp_code, mtu))
            case _:
                pass  # Permitted, Bound, Refreshed and the like: as it should be

    def _share(self, relay: Relay, socket: HostSocket, handle: Handle, now: Instant) -> None:
        assert socket.base is not None
        relay.shared, relay.socket = handle, socket
        socket.relays += 1
        correspondent = socket.correspondent(relay.target.address)
        correspondent.relay = partial(self._receive, relay)
        relay.client.on_socket(Opened(handle, socket.base.address), now)

    def _unshare(self, relay: Relay) -> None:
        socket, relay.socket = relay.socket, None
        relay.shared = 0
        if socket is not None:
            socket.correspondent(relay.target.address).relay = None
            socket.part_from(relay.target.address)
            socket.relays -= 1
            self._freed(socket)

    def _allocated(self, relay: Relay, event: Allocated, now: Instant) -> None:
        contest = relay.contest
        contest.winner = relay
        contest.targets.clear()
        contest.next = None
        for other in [*contest.attempts]:
            if other is not relay:
                self._abandon(other, now)
        contest.attempts.clear()
        self._enough.set((contest.spot.stream, contest.spot.component), now + FAR)
        (interface, stream, component), server = contest.spot, contest.server
        told_by = event.server.address.host
        socket = relay.socket
        if socket is not None and socket.wanted and socket.base and is_plausible(event.mapped):
            source = Source(server.name, told_by, contest.rank)
            self._book.reflexive(socket.base, interface, event.mapped, source)
            self._reflexive().told(socket, now)
        source = Source(server.name, told_by, contest.rank + _SHIFT[relay.target.transport])
        for relayed in event.relayed:
            if not is_plausible(relayed) or relayed.is_ipv6 in relay.bases:
                # coturn puts 0.0.0.0:0 where it has no relayed address of the second family.
                continue
            base = Base(
                id=next(self._ids),
                stream=stream,
                component=component,
                transport="udp",
                address=relayed,
                relay=server.name,
                network=interface.name,
            )
            if self._book.relayed(base, interface, event.mapped, source) is not None:
                relay.bases[relayed.is_ipv6] = base
                self._of_base[base.id] = relay
        if not relay.bases:
            self._missing(contest, f"{event.relayed[0]} is of no use")
            relay.client.release(now)

    def _failed(self, relay: Relay, error: StunError) -> None:
        contest = relay.contest
        self._remove(relay)
        if contest.winner is relay:
            for base in relay.bases.values():
                self._forget_base(base)
                self._queue.append(BaseLost(base, str(error)))
            relay.bases.clear()
            self._end(contest)
            return
        if contest.winner is not None:
            return
        contest.errors.append(str(error))
        socket = contest.socket
        if (
            isinstance(error, ServerRefused)
            and relay.target.transport is Transport.UDP
            and socket is not None
            and socket.wanted
            and self._patience.until is not None
        ):
            # Section 5.1.1.2: "If the Allocate request is rejected because the server lacks
            # resources to fulfill it, the agent SHOULD instead send a Binding request to obtain a
            # server-reflexive candidate."
            self._reflexive().ask(socket, contest.server, contest.rank)
        if contest.targets and not contest.is_waiting:
            self._try_next(contest)
        elif not contest.is_open:
            self._missing(contest)

    def _missing(self, contest: Contest, why: str = "") -> None:
        self._end(contest)
        text = "; ".join([*contest.errors, why] if why else contest.errors)
        _, stream, component = contest.spot
        self._book.missing(stream, component, contest.what, text)

    def _end(self, contest: Contest) -> None:
        key = (*contest.spot.key, contest.server.name)
        if self._contests.get(key) is contest:
            del self._contests[key]

    def _tell_refused(self, relay: Relay, peer: Address, why: str) -> None:
        base = relay.bases.get(peer.is_ipv6)
        if base is not None:
            self._queue.append(PathClosed(base, peer, Cause.NOT_PERMITTED, why))

    # Ending. --------------------------------------------------------------------------------------

    def _forget_base(self, base: Base) -> None:
        self._of_base.pop(base.id, None)
        self._book.forget(base)

    def _remove(self, relay: Relay) -> None:
        """Take note that a client has ended and that its sockets are shut."""
        if relay in self._relays:
            self._relays.discard(relay)
            self._drops.update(relay.client.drops)
        if relay in relay.contest.attempts:
            relay.contest.attempts.remove(relay)

    def _abandon(self, relay: Relay, now: Instant) -> None:
        relay.client.abandon(now)
        self.drain(relay, now)
        self._remove(relay)

    def give_up(self, why: str, now: Instant) -> None:
        """Wait for no more candidates."""
        self._give_up([*self._contests.values()], why, now)
        self._enough = Timers()

    def _give_up(self, contests: list[Contest], why: str, now: Instant) -> None:
        for contest in contests:
            if contest.is_open:
                contest.targets.clear()
                for relay in [*contest.attempts]:
                    self._abandon(relay, now)
                self._missing(contest, why)

    def release(self, base: Base, now: Instant) -> None:
        """Give up one relayed address, and the allocation if it has no other."""
        relay = self._of_base.get(base.id)
        if relay is None:
            return
        self._forget_base(base)
        del relay.bases[base.address.is_ipv6]
        if not relay.bases:
            self._end(relay.contest)
            relay.client.release(now)
            self.drain(relay, now)

    def lose(self, hosts: set[str], why: str, now: Instant) -> None:
        """Give up what goes from these addresses, which are not this host's any more."""
        for contest in [*self._contests.values()]:
            if contest.spot.interface.host not in hosts:
                continue
            self._end(contest)
            contest.targets.clear()
            for relay in [*contest.attempts, *([contest.winner] if contest.winner else [])]:
                for base in relay.bases.values():
                    self._forget_base(base)
                    self._queue.append(BaseLost(base, why))
                relay.bases.clear()
                self._abandon(relay, now)

    def close(self, now: Instant) -> None:
        """Shut every socket; allocations are given back by one unanswered packet each."""
        self._contests.clear()
        self._enough = Timers()
        for relay in [*self._relays]:
            relay.bases.clear()
            self._abandon(relay, now)

    # Paths. ---------------------------------------------------------------------------------------

    def send(self, base: Base, remote: Address, data: bytes, now: Instant) -> Instant | None:
        """Send a datagram from a relayed address; when its client is due, if that may be sooner."""
        relay = self._of_base.get(base.id)
        if relay is None:
            self._drops[DropReason.NO_ALLOCATION] += 1
            return None
        if relay.refused and remote.host in relay.refused:
            self._drops[DropReason.REFUSED_BY_POLICY] += 1
            self._tell_refused(relay, remote, "the relay does not permit this peer")
            return None
        client = relay.client
        client.send(remote, data, now)
        output = client.poll()
        if type(output) is Transmit and output.data[0] >= 0x40:
            # It went in a channel, which changes nothing about the client.
            self._queue.append(output)
            return None
        relay.peers.add(remote)
        if output is not None:
            self._take(relay, output, now)
            self.drain(relay, now)
        return client.deadline()

    def permit(self, base: Base, remote: Address, now: Instant) -> None:
        """Have the relay let a peer send, before anything is sent to it."""
        relay = self._of_base.get(base.id)
        if relay is not None and remote.host not in relay.refused:
            relay.peers.add(remote)
            relay.client.permit(remote, now=now)
            self.drain(relay, now)

    def bind(self, base: Base, remote: Address, now: Instant) -> None:
        """Bind a channel to a peer, for much is to be sent to it."""
        relay = self._of_base.get(base.id)
        if relay is not None and remote.host not in relay.refused:
            relay.peers.discard(remote)
            relay.client.bind(remote, now)
            self.drain(relay, now)

    def forget(self, base: Base, remote: Address) -> None:
        """Keep a peer's permission and channel alive no longer."""
        relay = self._of_base.get(base.id)
        if relay is not None:
            relay.peers.discard(remote)
            relay.client.forget(remote)

    def conclude(self) -> None:
        """Keep alive only what :meth:`bind` was called for.

        What is sent to somebody else later installs the permission again.
        """
        for relay in self._relays:
            for peer in relay.peers:
                relay.client.forget(peer)
            relay.peers.clear()
