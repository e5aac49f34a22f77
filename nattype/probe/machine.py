"""The probe: one machine that diagnoses all address families side by side.

Theory of operation.  A :class:`Probe` owns a scheduler and, for each family, a bench and a session.
Whatever the driver reports goes to the bench whose socket it concerns; then every test that can go
on goes on (:mod:`nattype.probe.strand`), and what they ask for is in the queue.  The order of a
family's tests is in :meth:`Probe._family`: first contact over UDP and TCP at once, then the
counting of ports, which wants quiet, then everything else side by side.

When the tests have ended, or the time allowed is up, every socket is closed and :class:`Finished`
brings the observations: also those of tests that were not brought to an end.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TypeAlias, cast

from nattype.observations import Asked, Observations
from nattype.probe import contact
from nattype.probe.bench import Bench, Progress, SocketUnavailable
from nattype.probe.contact import Reached, quad_of
from nattype.probe.gateway import ask_gateway
from nattype.probe.lifetime import LifetimeTests
from nattype.probe.session import Quad, Server, Session
from nattype.probe.strand import Strand, Strands, Wait
from nattype.probe.tcp import TcpTests
from nattype.probe.udp import UdpTests
from stun.errors import Dropped, DropReason, UsageError
from stun.sansio import (
    MILLISECOND,
    SECOND,
    Accepted,
    Address,
    Entropy,
    Instant,
    Output,
    Received,
    Shut,
    SocketEvent,
    Undeliverable,
)

_CONTROL_AFTER = 600 * MILLISECOND
"""When one protocol alone is asked for and stays silent so long, the other is asked whether the
server is alive at all."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do for one address family.

    ``host`` is this host's own numeric address towards the servers; sockets are bound to it.
    """

    family: str
    host: str
    servers: tuple[Server, ...]
    router: str | None = None
    """The default router, to be asked what its outside is; ``None``: not known, or not to be."""


@dataclass(frozen=True, slots=True)
class ProbeConfig:
    """What to diagnose.  ``budget``: nanoseconds after which it ends, finished or not."""

    plans: tuple[Plan, ...]
    udp: bool = True
    tcp: bool = True
    lifetime: bool = False
    budget: int = 20 * SECOND


@dataclass(frozen=True, slots=True)
class Finished:
    """The last event: what was seen, by family in the order of the plans."""

    observations: tuple[Observations, ...]


ProbeEvent: TypeAlias = Progress | Finished | Dropped

_HANDLES_PER_FAMILY = 1_000_000


class Probe:
    """A :class:`stun.sansio.SocketMachine` that diagnoses.  :meth:`start` it once."""

    def __init__(self, config: ProbeConfig, *, entropy: Entropy) -> None:
        if not config.plans or not (config.udp or config.tcp):
            raise UsageError("there is nothing to diagnose")
        if any(not plan.servers for plan in config.plans):
            raise UsageError("a diagnosis needs a server")
        self._config = config
        self._entropy = entropy
        self._strands = Strands()
        self._outputs: deque[object] = deque()
        self._sessions: list[Session] = []
        self._families: list[Strand[None]] = []
        self._conductor: Strand[None] | None = None
        self._done = 0
        self._total = 0
        self.finished = False

    # The machine's shape.

    def start(self, now: Instant) -> None:
        """Begin."""
        if self._conductor is not None:
            raise UsageError("a diagnosis starts once")
        self._strands.now = now
        config = self._config
        steps = 6 * config.udp + 4 * config.tcp + (config.lifetime and config.udp)
        self._total = steps * len(config.plans)
        for number, plan in enumerate(config.plans):
            bench = Bench(
                self._strands,
                self._outputs,
                plan.host,
                1 + number * _HANDLES_PER_FAMILY,
                self._entropy,
            )
            session = Session(bench, plan.family, plan.servers, self._step)
            session.router = plan.router
            self._sessions.append(session)
        self._conductor = self._strands.spawn(self._conduct())
        self._strands.run(now)

    def receive(self, packet: Received, now: Instant) -> None:
        """Take a datagram."""
        session = self._session_of(packet.local)
        if session is None or self.finished:
            self._outputs.append(Dropped(DropReason.UNKNOWN_TRANSACTION, packet.source))
            return
        session.bench.receive(packet, now)
        self._strands.run(now)

    def on_socket(self, event: SocketEvent, now: Instant) -> None:
        """Take what happened to a socket."""
        session = self._session_concerned(event)
        if session is not None and not self.finished:
            session.bench.on_socket(event)
            self._strands.run(now)
        elif isinstance(event, Accepted):
            self._outputs.append(Shut(event.handle, reset=True))
            self._outputs.append(Dropped(DropReason.UNKNOWN_STREAM, event.remote))

    def on_deadline(self, now: Instant) -> None:
        """Let time pass."""
        self._strands.run(now)

    def poll(self) -> Output | ProbeEvent | None:
        """Give the next thing to do or to tell."""
        return cast("Output | ProbeEvent", self._outputs.popleft()) if self._outputs else None

    def deadline(self) -> Instant | None:
        """Say when :meth:`on_deadline` is to be called."""
        return None if self.finished else self._strands.deadline()

    def _session_of(self, local: Address) -> Session | None:
        for session in self._sessions:
            if (":" in session.bench.host) == local.is_ipv6:
                return session
        return None

    def _session_concerned(self, event: SocketEvent) -> Session | None:
        match event:
            case Undeliverable(local, _):
                return self._session_of(local)
            case Accepted(listener, _, _, _):
                handle = listener
            case _:
                handle = event.handle
        for session in self._sessions:
            if session.bench.owns(handle):
                return session
        return None

    # The order of things.

    def _step(self, name: str) -> None:
        self._done = min(self._done + 1, self._total)
        self._outputs.append(Progress(name, self._done, self._total))

    async def _conduct(self) -> None:
        """Run all families, and end when they have or when the time is up."""
        time_is_up = self._strands.timer(self._config.budget)
        families = self._families = [
            self._strands.spawn(self._family(session)) for session in self._sessions
        ]
        for family in families:
            await self._strands.any_of(family.ended, time_is_up)
        time_is_up.set(None)
        for family in families:
            family.cancel()
        observations = tuple(
            session.freeze(udp=self._config.udp, tcp=self._config.tcp) for session in self._sessions
        )
        for session in self._sessions:
            session.bench.close_all()
        self.finished = True
        self._outputs.append(Progress("done", self._total, self._total))
        self._outputs.append(Finished(observations))

    async def _family(self, session: Session) -> None:
        config, strands = self._config, self._strands
        first_udp: Wait[Asked] = Wait()
        best_udp: Wait[Asked | None] = Wait()
        best_tcp: Wait[Reached | None] = Wait()

        async def contact_udp() -> None:
            if not config.udp:
                await strands.any_of(best_tcp, within=_CONTROL_AFTER)
                if best_tcp.value is not None:
                    return
            await contact.over_udp(session, first_udp, best_udp)

        async def contact_tcp() -> None:
            if not config.tcp:
                await strands.any_of(best_udp, within=_CONTROL_AFTER)
                if best_udp.value is not None:
                    return
            await contact.over_tcp(session, best_tcp)

        contacts = [strands.spawn(contact_udp()), strands.spawn(contact_tcp())]
        tests = []
        if config.udp:
            tests.append(self._udp(session, best_udp, contacts[1]))
        if config.tcp:
            tests.append(self._tcp(session, best_tcp, best_udp, contacts[0]))
        try:
            await strands.gather(tests)
        finally:
            for strand in contacts:
                strand.cancel()

    async def _udp(
        self, session: Session, best: Wait[Asked | None], tcp_contact: Strand[None]
    ) -> None:
        asked = await best
        session.step("UDP contact")
        if asked is None:
            # Only a server that is alive makes this a blocked protocol.
            await self._strands.any_of(tcp_contact.ended)
            session.udp.complete = True
            return
        session.server = asked.server
        session.quad = quad_of(asked)
        tests = UdpTests(session, asked.server)
        try:
            async with session.allocating:
                await tests.mapping_and_allocation()
            others = [tests.hairpinning(), tests.fragments(), tests.mapping()]
            if session.quad is not None:
                others.append(tests.filtering(session.quad))
            if session.router is not None:
                others.append(ask_gateway(session, session.router))
            await self._strands.gather(others)
            await tests.mapping_again()
            if self._config.lifetime:
                until = session.bench.started + self._config.budget
                await LifetimeTests(session, asked.server, until).run()
            session.udp.complete = True
        except SocketUnavailable:
            # Too few sockets: what was seen so far stands, and is not complete.
            return
        finally:
            tests.cancel()

    async def _tcp(
        self,
        session: Session,
        best: Wait[Reached | None],
        best_udp: Wait[Asked | None],
        udp_contact: Strand[None],
    ) -> None:
        second = self._strands.spawn(self._second_address(session, best, best_udp))
        try:
            reached = await best
            session.step("TCP contact")
            if reached is None:
                await self._strands.any_of(udp_contact.ended)
                await self._alive_over_udp(session, best_udp.value)
                await second
                session.tcp.complete = True
                return
        finally:
            second.cancel()
        server = reached.asked.server
        quad = quad_of(reached.asked)
        if quad is None and session.quad is not None and session.server == server:
            quad = session.quad
        if session.server is None:
            session.server = server
            session.quad = quad
        tests = TcpTests(session, server)
        async with session.allocating:
            await tests.allocation()
        others = [tests.mapping(self._tcp_endpoints(session, server, quad))]
        if quad is not None:
            others.append(tests.filtering(quad))
        await self._strands.gather(others)
        session.tcp.complete = True

    async def _second_address(
        self, session: Session, best: Wait[Reached | None], best_udp: Wait[Asked | None]
    ) -> None:
        """Dial the second address too when TCP is silent: one host alone may just not offer it."""
        if await self._strands.any_of(best, within=_CONTROL_AFTER):
            return
        await self._strands.any_of(best, best_udp)
        asked = best_udp.value
        quad = quad_of(asked) if asked is not None else None
        if quad is not None:
            stream = await contact.connect(session, quad.same_port)
            if stream is not None:
                stream.close()

    async def _alive_over_udp(self, session: Session, asked: Asked | None) -> None:
        """Find out which addresses of a server that is silent over TCP answer over UDP."""
        quad = quad_of(asked) if asked is not None else None
        if quad is not None and quad.same_port not in session.alive_over_udp:
            try:
                socket = await session.bench.udp()
            except SocketUnavailable:
                return
            other = await socket.ask(quad.same_port, session.pace.patient)
            if session.sound(other):
                session.alive_over_udp[quad.same_port] = None

    def _tcp_endpoints(self, session: Session, server: Address, quad: Quad | None) -> list[Address]:
        if quad is not None:
            return [quad.same_port, quad.alternate, quad.same_address]
        return [s.address for s in session.servers if s.address != server]
