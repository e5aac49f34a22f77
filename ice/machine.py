"""The ICE agent as one machine: gathers, checks, chooses, carries data, keeps the path (RFC 8445).

Theory of operation.  Four parts do the work, each a machine with a queue of its own, and this one
passes between them what they tell::

    Hub        sockets, STUN and TURN servers: candidates, paths, packets of paths
    Checker    candidate pairs and connectivity checks: valid pairs, nominations
    Consent    whether the peer still wants what is sent on the pairs in use (RFC 7675)
    Monitor    measures the other valid pairs: a better one

:class:`ice.selection.Selection` decides by that which pair each component uses.

After each call from outside the parts are drained until none has anything to tell, all in
:meth:`AgentMachine._settle`.  What is to be sent and what is to be told leaves by one queue.

Data takes a short way.  :meth:`AgentMachine.send` looks up the component and hands the packet to
the hub; a packet of a path is told to be STUN or data by its first octets, and data goes to
:attr:`AgentMachine.on_data` if the path is a pair's that has been proved.  Neither makes an object,
drains a part or computes a deadline, unless something below (a relay, a connection) has timers that
depend on what is sent.

Whoever knows neither the password of one side nor of the other can make an agent neither accept nor
send anything: a packet of a path without proof is counted in :attr:`AgentMachine.drops`.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence, Set
from typing import Any, Final, TypeAlias, assert_never

from ice.base import (
    Base,
    BaseLost,
    CandidateFound,
    CandidateNotFound,
    GatheringDone,
    HubEvent,
    PathClosed,
    PathCongested,
    PathFound,
    PathOpened,
    PathUnreachable,
    Standing,
)
from ice.candidate import Candidate
from ice.checks.checker import Checker
from ice.checks.events import (
    CheckEvent,
    ChecklistCompleted,
    ChecklistFailed,
    ConsentRevoked,
    Nominated,
    PairValid,
    ProbeAnswered,
    RequestReceived,
)
from ice.component import key_of
from ice.conclusion import Conclusion
from ice.config import Config, Credentials, Interface, Policy, Server
from ice.consent import Consent
from ice.events import (
    AgentEvent,
    CandidateNotGathered,
    Congested,
    GatheringComplete,
    LocalCandidate,
    Relieved,
    RemoteCandidate,
    Restarted,
    RoleChanged,
    Why,
)
from ice.hub import Hub
from ice.monitor import Monitor
from ice.permissions import Permissions
from ice.selection import Selection
from ice.session import Session, make_credentials, ufrag_of
from ice.sight import Sight
from ice.spread.openings import HeldRemote
from ice.spread.order import Progress, Spread
from ice.spreading import Spreading
from ice.timeline import Timeline
from stun.demux import MAGIC_COOKIE
from stun.errors import DropReason, UsageError
from stun.sansio import (
    Address,
    Entropy,
    Handle,
    Instant,
    Output,
    Received,
    SocketEvent,
    Transmit,
)

DataCallback: TypeAlias = Callable[[int, int, bytes], None]


def _ignore(stream: int, component: int, data: bytes) -> None:
    """Take data that nobody wants."""


class AgentMachine(Sight):
    """A :class:`stun.sansio.SocketMachine` for an ICE agent.  The module's text has the whole.

    ``local`` are credentials of one's own choice; by default they are drawn from ``entropy``.
    ``on_data`` is called as ``on_data(stream, component, packet)`` from within :meth:`receive` and
    :meth:`on_socket`.  Commands raise :class:`stun.errors.UsageError`.
    """

    def __init__(
        self,
        config: Config,
        *,
        controlling: bool,
        entropy: Entropy,
        local: Credentials | None = None,
        on_data: DataCallback = _ignore,
    ) -> None:
        self.config = config
        self.on_data = on_data
        self._own_drops: Counter[DropReason] = Counter()
        self.unsent = 0
        """Packets that were not sent because their component had no pair."""
        self._entropy = entropy
        self._queue: deque[Output | AgentEvent] = deque()
        self._session = Session(local or make_credentials(entropy))
        self._hub = hub = Hub(
            config,
            entropy=entropy,
            deliver=self._deliver,
            controlling=lambda: self._checker.controlling,
        )
        self.timeline = Timeline(config.timeline) if config.timeline else None
        """The latest checks, and the first; whoever drives this adds what happened."""
        send = hub.send if self.timeline is None else self.timeline.tap(hub.send)
        self._checker = checker = Checker(
            config, controlling=controlling, entropy=entropy, send=send, open_path=hub.open_path
        )
        self._monitor = Monitor(config, entropy=entropy, probe=checker.probe)
        self._consent = Consent(config, entropy=entropy, probe=checker.probe, send=send)
        self._selection = Selection(config, checker, self._consent, self._monitor, self._queue)
        self._conclusion = Conclusion(config.streams, hub, checker, self._selection)
        self._permissions = Permissions(hub.open_path, shared=config.policy is Policy.RELAY)
        self._spreading = Spreading(config, hub, checker, self._session, entropy=entropy)
        self._components = self._selection.table
        self._hub_send, self._pair_of = hub.send, checker.pair_of
        checker.set_local(self._session.local)
        self._interfaces: tuple[Interface, ...] = ()
        self._servers: tuple[Server, ...] = ()
        self._local: list[CandidateFound] = []
        self._sockets: dict[Address, Base] = {}
        """The bases of UDP sockets of this host, by their addresses."""
        self._gathered = False
        self._closed = False
        self._now: Instant = 0
        self._delivered = 0
        self._awake = False
        """Whether something came that may have given a part something to tell."""
        self._stale = True
        """Whether the deadline has to be computed anew."""
        self._due: Instant | None = None
        self._settling = False

    # Commands. ------------------------------------------------------------------------------------

    def gather(
        self, interfaces: Sequence[Interface], servers: Sequence[Server], now: Instant
    ) -> None:
        """Find candidates: each is told at once, then :class:`GatheringComplete`.

        Servers that become known later are added by another call with all of them.  A lite agent
        has host candidates only (RFC 8445 section 5.2).
        """
        self._open("gather")
        self._interfaces = tuple(interfaces)
        self._servers = tuple(servers)
        self._gathered = False
        self._hub.gather(self._interfaces, self._servers, now)
        self._settle(now)

    def server_not_found(self, server: str, why: str, now: Instant) -> None:
        """Take note that nobody knows where a server is; to be told in explanations."""
        self._candidate_not_found(CandidateNotFound(0, 0, server, why), now)

    def set_remote(
        self,
        credentials: Credentials,
        now: Instant,
        *,
        lite: bool = False,
        options: tuple[str, ...] = (),
    ) -> None:
        """Take the peer's username fragment and password.

        Others than before are a restart by the peer (RFC 8445 section 9), unless they answer one of
        this side's: this side then restarts as well and says so by :class:`Restarted`.
        """
        self._open("set_remote")
        session = self._session
        if credentials == session.remote and session.is_answered:
            return
        if session.is_restart(credentials):
            self._restart(now, by_peer=True)
        self._checker.set_remote(credentials, lite, now)
        for held in session.agree(credentials, lite=lite, options=options):
            self._add_remote(held.candidate, held.stream, now)
        self._settle(now)

    def add_remote(
        self, candidate: Candidate | None, now: Instant, stream: int = 0, ufrag: str = ""
    ) -> None:
        """Take a candidate of the peer; ``None``: there are no more (RFC 8838 section 13).

        ``ufrag`` says which generation it is of, where the candidate itself does not.  What is of
        one that is over is dropped, what is of one to come is kept for it, within bounds.
        """
        self._open("add_remote")
        if not 0 <= stream < self.config.streams:
            raise UsageError(f"stream {stream}: there are {self.config.streams}")
        ufrag = ufrag or (ufrag_of(candidate) if candidate is not None else "")
        match self._session.belongs(ufrag):
            case True:
                self._add_remote(candidate, stream, now)
                self._settle(now)
            case None:
                if not self._session.hold(candidate, stream, ufrag):
                    self._own_drops[DropReason.NO_ROOM] += 1
            case False:
                self._own_drops[DropReason.WRONG_GENERATION] += 1

    def _add_remote(self, candidate: Candidate | None, stream: int, now: Instant) -> None:
        if not self._spreading.remote(candidate, stream, now):
            self._take_remote(candidate, stream, now)

    def _take_remote(self, candidate: Candidate | None, stream: int, now: Instant) -> None:
        if candidate is None:
            self._checker.end_of_remote(now, stream)
        else:
            usable = self._checker.add_remote(candidate, stream, now)
            if usable is None:
                return
            if usable.transport == "tcp":
                self._hub.expect(usable.address, now)
            self._spreading.taken(usable, stream, now)
            self._permissions.remote(usable, stream, now)

    def send(self, data: bytes, now: Instant, component: int = 1, stream: int = 0) -> bool:
        """Send a packet to the peer; whether there was a pair to send it on.

        Nobody tells whether it arrives.  What looks like STUN (RFC 7983: a first octet of 0 to 3)
        may be taken for a check by the peer.
        """
        to = self._components.get(stream << 9 | component)
        if to is None or (pair := to.pair) is None:
            return self._not_sent(component, stream)
        pair.packets_sent += 1
        pair.octets_sent += len(data)
        to.sent = now
        self._hub_send(pair.base, to.remote, data, now)
        if to.is_shared:
            self._stale = True
        return True

    def bare(self, base: Base, remote: Address) -> Handle | None:
        """Return the socket that a path's data may be written to, past this machine, if there is.

        Only TCP has it, and only once nothing would have to be done again; each packet is framed
        (RFC 4571), and whoever writes sets the component's ``sent`` and counts in the pair.
        """
        return self._hub.bare(base, remote)

    def _not_sent(self, component: int, stream: int) -> bool:
        self.component(component, stream)
        self.unsent += 1
        return False

    def restart(self, now: Instant) -> None:
        """Begin a new generation (RFC 8445 section 9): :class:`Restarted` has its credentials.

        Candidates are told again, with new ones as they are found.  Data goes over the old pair
        until the new generation has a nominated one.
        """
        self._open("restart")
        self._restart(now, by_peer=False)
        self._settle(now)

    def _restart(self, now: Instant, *, by_peer: bool) -> None:
        local = make_credentials(self._entropy)
        session = self._session
        session.restart(local)
        self._conclusion.restart()
        self._permissions.restart()
        self._spreading.restart(now)
        self._selection.restart(session.generation)
        self._queue.append(Restarted(local, session.generation, by_peer))
        self._checker.restart(local, now)
        found, self._local = self._local, []
        for each in found:
            if each.standing is not Standing.PREDICTED:  # by now the NAT has given out others
                self._candidate_found(each, now)
        self._gathered = False
        self._hub.gather(self._interfaces, self._servers, now)

    def predict(
        self, offsets: Sequence[int], now: Instant, *, ports: Sequence[int] = ()
    ) -> list[Candidate]:
        """Tell candidates of ports that this side's NAT is expected to give out next.

        ``offsets`` are from each server-reflexive candidate's port, over UDP and for TCP
        simultaneous open; ``ports`` are ports as they are, on the same addresses.  They have a low
        priority, lower from one to the next, so that the peer checks them in this order.  At most
        :data:`ice.gather.book.MOST_PREDICTED` are made; returned are those that are new.
        """
        self._open("predict")
        made = self._spreading.predict(offsets, ports)
        self._settle(now)
        return made

    def spread(self, order: Spread, now: Instant) -> Progress:
        """Begin birthday probing, as soon as all is known that it needs.

        Ends in :class:`ice.events.SpreadEnded`.  The peer's credentials have to be known.
        """
        self._open("spread")
        self.component(order.component, order.stream)
        progress = self._spreading.spread(order, now)
        self._settle(now)
        return progress

    def stop_spreads(self, now: Instant) -> None:
        """End all birthday probing; what it has found stays."""
        self._spreading.stop(now)
        self._settle(now)

    def network_changed(self, interfaces: Sequence[Interface], now: Instant) -> None:
        """Take the addresses that this host has now, all of them.

        Candidates on new ones are found and told; what used those that are gone moves to another
        valid pair at once.
        """
        self._open("network_changed")
        self._interfaces = tuple(interfaces)
        self._gathered = False
        self._hub.gather(self._interfaces, self._servers, now)
        self._settle(now)

    def close(self, now: Instant) -> None:
        """Give everything back and shut every socket.  What is still queued is to be polled."""
        if self._closed:
            return
        self._closed = True
        self._hub.close(now)
        for component in self._components.values():
            component.leave(now)
        self._settle(now)

    def _open(self, command: str) -> None:
        if self._closed:
            raise UsageError(f"{command}: the agent is closed")

    def take_role(self, *, controlling: bool, now: Instant) -> None:
        """Take the role that was agreed on; for those who know it only when they have gathered."""
        self._checker.take_role(controlling=controlling, now=now)
        self._settle(now)

    # Packets of paths. ----------------------------------------------------------------------------

    def _deliver(self, base: Base, remote: Address, data: bytes, now: Instant) -> None:
        """Take a packet of a path, as the hub found it."""
        # RFC 7983: 0 to 3 is STUN; data of an application may begin so too, but has no cookie.
        if data and data[0] < 4 and data[4:8] == MAGIC_COOKIE:
            self._awake = True
            if self.timeline is not None:
                self.timeline.received(base, remote, data, now)
            self._checker.stun(base, remote, data, now)
            return
        pair = self._pair_of(base, remote)
        # "valid" is this side's proof.  A check of the peer that was answered is as good: it has
        # shown the password, and may already send (RFC 8445 section 12.2).
        if pair is None or not (pair.valid or pair.responses_sent or pair.assumed):
            self._own_drops[DropReason.NO_VALID_PAIR] += 1
            return
        pair.packets_received += 1
        pair.octets_received += len(data)
        self._delivered += 1
        self.on_data(base.stream, base.component, data)

    # The driver. ----------------------------------------------------------------------------------

    def receive(self, packet: Received, now: Instant) -> None:
        """Take a datagram."""
        self._now = now
        delivered = self._delivered
        self._hub.receive(packet, now)
        if self._delivered == delivered:
            self._settle(now)

    def on_socket(self, event: SocketEvent, now: Instant) -> None:
        """Take what happened to a socket."""
        self._now = now
        delivered = self._delivered
        self._awake = False
        self._hub.on_socket(event, now)
        if self._awake or self._delivered == delivered:
            self._settle(now)
        else:
            # Data concerns no timers but those of what lies below; those that have become later
            # are found out when the time has come.
            due = self._hub.deadline()
            self._stale = self._stale or (
                due is not None and (self._due is None or due < self._due)
            )

    def on_deadline(self, now: Instant) -> None:
        """Do what is due."""
        self._hub.on_deadline(now)
        for held in self._spreading.due(now):
            if isinstance(held, HeldRemote):
                self._take_remote(held.candidate, held.stream, now)
            else:
                self._checker.add_local(held.candidate, held.base, now)
        self._checker.on_deadline(now)
        self._selection.on_deadline(now)
        self._monitor.on_deadline(now)
        self._forget(self._conclusion.on_deadline(now))
        self._settle(now)

    def poll(self) -> Output | AgentEvent | None:
        """Give the next thing to do or to tell."""
        if self._queue:
            return self._queue.popleft()
        output = self._hub.poll()
        if output is None or type(output) is Transmit:
            return output
        if type(output) not in self._TAKE:
            return output  # type: ignore[return-value]  # what is no event of the hub is an Output
        self._hub_told(output, self._now)
        self._settle(self._now)
        return self.poll()

    def deadline(self) -> Instant | None:
        """Say when :meth:`on_deadline` is to be called."""
        if self._stale:
            self._stale = False
            times = (
                self._hub.deadline(),
                self._checker.deadline(),
                self._selection.deadline(),
                self._monitor.deadline(),
                self._conclusion.deadline(),
                self._spreading.deadline(),
            )
            self._due = None if self._closed and times[0] is None else _earliest(times)
        return self._due

    def _settle(self, now: Instant) -> None:
        """Drain the parts until none of them has anything to tell."""
        self._stale = True
        self._now = now
        if self._settling:
            return
        self._settling = True
        try:
            hub, checker, consent, monitor, selection = (
                self._hub, self._checker, self._consent, self._monitor, self._selection
            )  # fmt: skip
            busy = True
            while busy:
                busy = False
                while (told := hub.poll()) is not None:
                    self._hub_told(told, now)
                if self._closed:
                    break
                while (event := checker.poll()) is not None:
                    busy = True
                    self._checker_told(event, now)
                while (freshness := consent.poll()) is not None:
                    busy = True
                    selection.consent_told(freshness, now)
                while (better := monitor.poll()) is not None:
                    busy = True
                    selection.better(better, now)
                if self.config.assume_relayed:
                    selection.assume(now)
                busy |= selection.tend(now)
        finally:
            self._settling = False
        selection.update(checking=self._session.remote is not None, closed=self._closed)

    # What the hub tells. --------------------------------------------------------------------------

    def _hub_told(self, told: Output | HubEvent, now: Instant) -> None:
        take = self._TAKE.get(type(told))
        if take is None:
            self._queue.append(told)  # type: ignore[arg-type]  # no event of the hub: an Output
        elif not self._closed:
            take(self, told, now)

    def _candidate_found(self, found: CandidateFound, now: Instant) -> None:
        self._local.append(found)
        base = found.base
        if base.transport == "udp" and not base.is_relayed:
            self._sockets[base.address] = base
        if self._spreading.tells(found):
            self._queue.append(LocalCandidate(found.candidate, found.base.stream, found.server))
        self._permissions.local(base, now)
        if not self._spreading.local(found, now):
            self._checker.add_local(found.candidate, base, now)

    def _candidate_not_found(self, event: CandidateNotFound, _: Instant) -> None:
        self._queue.append(
            CandidateNotGathered(event.stream, event.component, event.what, event.why)
        )

    def _gathering_done(self, _: GatheringDone, now: Instant) -> None:
        if not self._gathered:
            self._gathered = True
            self._queue.append(GatheringComplete(self._session.generation))
            self._checker.end_of_local(now)

    def _path_opened(self, event: PathOpened, now: Instant) -> None:
        self._checker.path_opened(event.base, event.remote, now)

    def _path_found(self, event: PathFound, now: Instant) -> None:
        self._deliver(event.base, event.remote, event.data, now)

    def _path_closed(self, event: PathClosed, now: Instant) -> None:
        pair = self._pair_of(event.base, event.remote)
        self._checker.path_closed(event.base, event.remote, event.cause, now)
        if pair is not None:
            self._selection.gone(pair, Why.CLOSED, now)

    def _path_unreachable(self, event: PathUnreachable, now: Instant) -> None:
        self._checker.path_unreachable(event.base, event.remote, now)

    def _path_congested(self, event: PathCongested, now: Instant) -> None:  # noqa: ARG002
        component = self._components[key_of(event.base.stream, event.base.component)]
        if component.base is event.base and component.remote == event.remote:
            kind = Relieved if event.relieved else Congested
            self._queue.append(kind(component.stream, component.id))

    def _base_lost(self, event: BaseLost, now: Instant) -> None:
        self._forget({event.base})
        self._checker.base_lost(event.base, now)
        self._selection.base_lost(event.base, now)

    _TAKE: Final[dict[type, Callable[[AgentMachine, Any, Instant], None]]] = {
        CandidateFound: _candidate_found,
        CandidateNotFound: _candidate_not_found,
        GatheringDone: _gathering_done,
        PathOpened: _path_opened,
        PathFound: _path_found,
        PathClosed: _path_closed,
        PathUnreachable: _path_unreachable,
        PathCongested: _path_congested,
        BaseLost: _base_lost,
    }

    # What the checker tells. ----------------------------------------------------------------------

    def _checker_told(self, event: CheckEvent, now: Instant) -> None:
        selection = self._selection
        match event:
            case PairValid():
                selection.valid(event.pair, now)
                self._spreading.valid(event.pair)
            case Nominated():
                selection.nominated(event.pair, now)
                self._hub.prefer(event.pair.base, event.pair.remote_address, now)
                self._conclusion.changed(now)
            case ProbeAnswered():
                selection.answered(event.pair, event.rtt, now)
            case ChecklistFailed():
                selection.checklist_failed(event.stream, event.why)
            case ChecklistCompleted():
                self._conclusion.completed(event.stream, now)
            case RemoteCandidate() | RoleChanged():
                self._queue.append(event)
            case ConsentRevoked():
                self._consent.revoked(event.pair, now)
            case RequestReceived():
                pass
            case _:
                assert_never(event)

    def _forget(self, bases: Set[Base]) -> None:
        if not bases:
            return
        self._local = [found for found in self._local if found.base not in bases]
        for base in bases:
            self._sockets.pop(base.address, None)
            self._permissions.forget(base)
            self._spreading.forget(base)


def _earliest(times: Iterable[Instant | None]) -> Instant | None:
    return min((at for at in times if at is not None), default=None)
