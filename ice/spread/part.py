"""The spreads of one hub: begun when everything is known that they need, driven, ended.

A spread needs a socket or a port of this side's (of probes: one whose mapping a server has told, if
there is one), and whom to send to.  Until both are there it waits; nothing is sent, and its time
has not begun.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeAlias

from ice.config import Config
from ice.events import SpreadEnded
from ice.gather.book import Book
from ice.gather.hostsocket import HostSocket
from ice.gather.sockets import HostSockets
from ice.pair import Pair
from ice.spread.knocks import Knocks
from ice.spread.order import Ended, Progress, Role, Spread
from ice.spread.ports import in_turn
from ice.spread.tcp import ProbesOverTcp, SocketsOverTcp
from ice.spread.udp import ProbesOverUdp, SocketsOverUdp
from ice.tcp.part import TcpPart
from stun.errors import DropReason, UsageError
from stun.sansio import Address, Entropy, Handle, Instant, Received, SocketEvent

MOST_SPREADS: Final = 4
"""That may go on at once."""

Told: TypeAlias = dict[tuple[int, int, str], list[Address]]
"""Server-reflexive candidates of the peer, by stream, component and transport."""
Run: TypeAlias = SocketsOverUdp | ProbesOverUdp | SocketsOverTcp | ProbesOverTcp


class SpreadPart:
    """All spreads.  It belongs to a hub, whose queue, sockets and numbers it uses."""

    def __init__(
        self,
        config: Config,
        queue: deque[Any],
        book: Book,
        sockets: HostSockets,
        tcp: TcpPart | None,
        *,
        handles: Iterator[Handle],
        drops: Counter[DropReason],
        entropy: Entropy,
    ) -> None:
        self._config = config
        self._queue = queue
        self._book = book
        self._sockets = sockets
        self._tcp = tcp
        self._handles = handles
        self._drops = drops
        self._entropy = entropy
        self._waiting: list[tuple[Progress, Knocks, Told]] = []
        self._runs: list[Run] = []
        self._due: Instant | None = None

    # Orders. --------------------------------------------------------------------------------------

    def add(self, progress: Progress, knocks: Knocks, told: Told) -> None:
        """Take an order; it begins with :meth:`run` as soon as it can.

        ``told`` are the candidates of the peer, as they become known.
        """
        order = progress.order
        if len(self._waiting) + len(self._runs) >= MOST_SPREADS:
            raise UsageError(f"{MOST_SPREADS} spreads are going on already")
        if order.transport == "tcp" and self._tcp is None:
            raise UsageError("a spread over TCP needs an agent with TCP (Config.tcp)")
        if order.transport == "udp" and not self._config.udp:
            raise UsageError("a spread over UDP needs an agent with UDP (Config.udp)")
        self._waiting.append((progress, knocks, told))

    def found(self, pair: Pair) -> None:
        """Take note that a direct pair of a component works: nothing more is to be sought."""
        key = pair.stream, pair.component
        for run in self._runs:
            if isinstance(run, ProbesOverUdp):
                run.found(pair)
        self._end_all(Ended.FOUND, lambda order: (order.stream, order.component) == key)

    def lose(self, hosts: set[str]) -> None:
        """Take note that addresses are not this host's any more."""
        for run in [run for run in self._runs if run.hosts & hosts]:
            self._end(run, Ended.NO_BASE)

    def stop(self) -> None:
        """End everything."""
        self._end_all(Ended.STOPPED, lambda _: True)

    def _end_all(self, why: Ended, which: Callable[[Spread], bool]) -> None:
        for run in [run for run in self._runs if which(run.progress.order)]:
            self._end(run, why)
        for progress, _, _ in [each for each in self._waiting if which(each[0].order)]:
            self._tell(progress, why)
        self._waiting = [each for each in self._waiting if not which(each[0].order)]

    def _end(self, run: Run, why: Ended) -> None:
        self._runs.remove(run)
        run.stop()
        self._tell(run.progress, why)

    def _tell(self, progress: Progress, why: Ended) -> None:
        progress.ended = why
        order = progress.order
        what = f"{order.role} over {order.transport}"
        self._queue.append(
            SpreadEnded(
                order.stream,
                order.component,
                what,
                why.value,
                progress.sent,
                progress.opened,
                progress.hits,
            )
        )

    # Beginning. -----------------------------------------------------------------------------------

    def _begin(
        self, progress: Progress, knocks: Knocks, told: Told, now: Instant, *, patient: bool
    ) -> bool:
        """Begin a spread if what it needs is there, or tell that it never will be."""
        order = progress.order
        key = order.stream, order.component, order.transport
        remotes = order.remotes or tuple(told.get(key, ()))
        if not remotes:
            return False
        ipv6 = remotes[0].is_ipv6
        remotes = tuple(remote for remote in remotes if remote.is_ipv6 == ipv6)
        if order.transport == "udp":
            run = self._over_udp(progress, knocks, remotes, now, patient=patient)
        else:
            run = self._over_tcp(progress, knocks, remotes, now, patient=patient)
        if run is not None:
            self._runs.append(run)
        elif not patient:
            self._tell(progress, Ended.NO_BASE)
        return run is not None or not patient

    def _over_udp(
        self,
        progress: Progress,
        knocks: Knocks,
        remotes: tuple[Address, ...],
        now: Instant,
        *,
        patient: bool,
    ) -> Run | None:
        order = progress.order
        probes = order.role is Role.PROBES
        socket = self._socket(order, remotes[0], mapped=probes and patient)
        if socket is None or socket.base is None:
            return None
        if not probes:
            return SocketsOverUdp(
                progress,
                knocks,
                spot=socket.spot,
                remotes=remotes,
                sockets=self._sockets,
                handles=self._handles,
                queue=self._queue,
                drops=self._drops,
                now=now,
            )
        return ProbesOverUdp(
            progress,
            knocks,
            base=socket.base,
            preference=socket.spot.interface.preference,
            targets=self._targets(order, remotes),
            queue=self._queue,
            now=now,
        )

    def _socket(self, order: Spread, remote: Address, *, mapped: bool) -> HostSocket | None:
        """Return the socket that is the most preferred; ``mapped``: of those with a mapping."""
        best: HostSocket | None = None
        for socket in self._sockets:
            base = socket.base
            if base is None or not socket.wanted or base.address.is_ipv6 != remote.is_ipv6:
                continue
            if (base.stream, base.component) != (order.stream, order.component):
                continue
            if mapped and next(self._book.mapped(base), None) is None:
                continue
            if best is None or socket.spot.interface.preference > best.spot.interface.preference:
                best = socket
        return best

    def _over_tcp(
        self,
        progress: Progress,
        knocks: Knocks,
        remotes: tuple[Address, ...],
        now: Instant,
        *,
        patient: bool,
    ) -> Run | None:
        order = progress.order
        assert self._tcp is not None
        port = self._tcp.meeting_port(order.stream, order.component, ipv6=remotes[0].is_ipv6)
        if port is None or port.base is None:
            return None
        if order.role is Role.SOCKETS:
            return SocketsOverTcp(
                progress, knocks, tcp=self._tcp, place=port.place, remotes=remotes, now=now
            )
        if patient and next(self._book.mapped(port.base), None) is None:
            return None
        return ProbesOverTcp(
            progress,
            knocks,
            tcp=self._tcp,
            place=port.place,
            base=port.base,
            targets=self._targets(order, remotes),
            now=now,
        )

    def _targets(self, order: Spread, remotes: tuple[Address, ...]) -> Iterator[Address]:
        hosts = list(dict.fromkeys(remote.host for remote in remotes))
        return in_turn(hosts, order.ports, self._entropy)

    # What happens. --------------------------------------------------------------------------------

    def run(self, now: Instant, *, gathering: bool) -> None:
        """Begin what can begin, send what is due, end what is over.

        ``gathering``: whether candidates of this side may still come.
        """
        if self._waiting:
            waiting, self._waiting = self._waiting, []
            self._waiting = [
                each for each in waiting if not self._begin(*each, now, patient=gathering)
            ]
        for run in [*self._runs]:
            why = run.run(now)
            if why is not None:
                self._end(run, why)
        self._due = min((run.deadline(now) for run in self._runs), default=None)

    def deadline(self) -> Instant | None:
        """Say when :meth:`run` is to be called."""
        return self._due

    def on_socket(self, handle: Handle, event: SocketEvent, now: Instant) -> bool:
        """Take an event, if it is of a UDP socket of these; say whether it was."""
        for run in self._runs:
            if isinstance(run, SocketsOverUdp) and run.owns(handle):
                run.on_socket(event, now)
                return True
        return False

    def receive(self, packet: Received) -> bool:
        """Take a datagram, if it is for a socket of these; say whether it was."""
        return any(isinstance(run, SocketsOverUdp) and run.receive(packet) for run in self._runs)
