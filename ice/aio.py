"""ICE with asyncio.

    async with ice.Agent(controlling=True, servers=["stun:stun.example"]) as agent:
        tell_the_peer(agent.local_ufrag, agent.local_pwd)
        async for candidate in agent.gather():           # as they are found; does not wait
            tell_the_peer(candidate.to_sdp())
        ...
        agent.set_remote_credentials(ufrag, pwd)         # what the peer has told, in any order
        await agent.add_remote_candidate(ice.Candidate.from_sdp(text))
        await agent.add_remote_candidate(None)           # there are no more
        connection = await agent.connect(timeout=30)
        await connection.send(b"hello")
        data = await connection.recv()

Everything goes on by itself from the first call on: gathering, checks, consent, a change to a
better path, changes of this host's addresses.  Cancelling any of these calls leaves nothing
running; :meth:`Agent.close`, or leaving the context, ends everything.

Back-pressure.  What is received waits in a queue of ``Config.receive_buffer`` packets for each
component; what comes beyond that is dropped and counted, as a socket does.  :meth:`Connection.send`
hands a packet to the kernel before it returns.  Over TCP, and through a TURN server that is reached
by TCP or TLS, it waits while the connection takes no more.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections import Counter
from collections.abc import (
    Callable,
    Coroutine,
    Iterable,
    Sequence,
)
from contextlib import suppress
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from ice.candidate import Candidate
from ice.config import Config, Credentials, Interface, Mdns, Policy, Server
from ice.connection import Connection
from ice.driver import AgentDriver
from ice.errors import ConnectionClosed, ConnectionFailed, ConnectionLost
from ice.events import (
    AgentEvent,
    AgentState,
    CandidateNotGathered,
    Congested,
    Connected,
    Disconnected,
    Failed,
    GatheringComplete,
    LocalCandidate,
    Relieved,
    Restarted,
    Selected,
)
from ice.gathering import Gathering
from ice.interfaces import LocalAddress, filter_and_rank, local_addresses
from ice.machine import AgentMachine
from ice.pair import Pair
from ice.reports import Reports
from ice.servers import IceServer, ServerLike, Wanted, as_wanted, look_up
from ice.view import AgentView
from stun.errors import StunError
from stun.sansio import Address
from stun.udp import UdpSocket
from turn.client.setup import as_credentials

if TYPE_CHECKING:
    from ice.mdns import Membership
    from ice.spread.order import Progress, Spread
    from ice.watch import Watching
    from stun.credentials import LongTerm, ThirdParty
    from stun.tls import ClientTls

FAREWELL: Final = 0.5
"""Seconds that connections may take to send what they keep when an agent is closed."""
MOST_LOOKUPS: Final = 64
"""``.local`` names of the peer that are looked up at once."""


class Agent(Reports):
    """One side of an ICE session.

    ``controlling``: whether this side decides on the pair, which the one that makes the offer
    usually does; if both think so, the agents settle it.  ``servers``: STUN and TURN servers, as
    URIs or :class:`ice.IceServer`; all are asked at once and none is waited for.  ``username`` and
    ``password``, or ``credentials``, are for TURN servers that have none of their own.
    ``config``: everything else (:class:`ice.Config`).  ``tls`` verifies TURN servers that are
    reached by TLS or DTLS, the system's trust store by default.  ``on_event`` is told everything
    that happens (:mod:`ice.events`).

    Raises :class:`stun.errors.UsageError` for servers that are none.
    """

    def __init__(
        self,
        *,
        controlling: bool,
        servers: Iterable[ServerLike] = (),
        username: str | None = None,
        password: str | None = None,
        credentials: LongTerm | ThirdParty | None = None,
        config: Config | None = None,
        local: Credentials | None = None,
        tls: ssl.SSLContext | ClientTls | None = None,
        on_event: Callable[[AgentEvent], None] | None = None,
    ) -> None:
        if isinstance(servers, str | IceServer):
            servers = [servers]
        shared = as_credentials(username, password, credentials)
        self._servers = [as_wanted(server, shared) for server in servers]
        self.config = config or Config()
        self._machine = AgentMachine(
            self.config,
            controlling=controlling,
            entropy=os.urandom,
            local=local,
            on_data=self._on_data,
        )
        self._view = AgentView(self._machine)
        self._tls = tls
        self._on_event = on_event
        self._driver: AgentDriver | None = None
        self._known: dict[int, Server] = {}
        """Servers that have been looked up, by their place in ``servers``."""
        self._looked_up = 0
        self._local: list[LocalCandidate] = []
        self._generation = 0
        self._gathering = self._gathered = False
        self._connections: dict[tuple[int, int], Connection] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._waiting: set[asyncio.Future[None]] = set()
        self._resolving: Counter[int] = Counter()
        """Names being looked up, by stream, and the ends of candidates that wait for them."""
        self._ended: set[int] = set()
        self._failure: ConnectionFailed | None = None
        self._closed: StunError | None = None
        self._mdns: Membership | None = None
        self._watching: Watching | None = None
        self._last: list[Interface] = []

    # What there is to know. -----------------------------------------------------------------------

    @property
    def local_ufrag(self) -> str:
        """This side's username fragment, to be told to the peer."""
        return self._machine.local.ufrag

    @property
    def local_pwd(self) -> str:
        """This side's password, to be told to the peer."""
        return self._machine.local.password

    @property
    def local_candidates(self) -> list[Candidate]:
        """The candidates of this generation that have been found so far."""
        return [event.candidate for event in self._local]

    @property
    def gathered(self) -> bool:
        """Whether all candidates of this generation have been found."""
        return self._gathered

    @property
    def controlling(self) -> bool:
        """Whether this side decides; a role conflict may have changed it."""
        return self._machine.controlling

    def take_role(self, *, controlling: bool) -> None:
        """Take the role that was agreed on with the peer, where gathering began before that."""
        self._machine.take_role(controlling=controlling, now=self._now())
        self._flush()

    @property
    def state(self) -> AgentState:
        """How far it is: checking, connected, completed, failed and so on."""
        return self._machine.state

    @property
    def machine(self) -> AgentMachine:
        """The agent without sockets, for whoever wants to look closely."""
        return self._machine

    # Gathering. -----------------------------------------------------------------------------------

    def gather(self, stream: int | None = None) -> Gathering:
        """Find candidates: iterate over it to have each as it is found, or await it for all.

        ``stream``: only those of one data stream.  Looking goes on whether or not anybody iterates;
        called again, it gives what has been found and what is still to come.  Servers with names
        are looked up meanwhile.
        """
        self._begin()
        return Gathering(self, stream)

    def _begin(self) -> None:
        self._must_be_open()
        if self._gathering:
            return
        self._gathering = True
        driver = self._driver = self._make_driver()
        self._view.start(driver.now())
        for place, server in enumerate(self._servers):
            if isinstance(server, Server):
                self._known[place] = server
            elif server.is_numeric:
                self._known[place] = server.found()
            else:
                self._looked_up += 1
                self._spawn(self._look_up(place, server))
        self._watch_network()
        self._gather()
        driver.flush()

    def _make_driver(self) -> AgentDriver:
        tls = self._tls
        if tls is None and any(not _is_plain(server) for server in self._servers):
            from stun.tls import ClientTls

            tls = ClientTls()
        return AgentDriver(
            self._machine,
            on_event=self._take,
            feed_of=self._feed_of,
            on_close=self._driver_closed,
            tls=tls,
        )

    def _gather(self) -> None:
        """Have the machine look at this host's addresses as they are, and at all known servers."""
        self._gathered = False
        self._view.servers = known = [self._known[place] for place in sorted(self._known)]
        self._machine.gather(self._interfaces(), known, self._now())

    def _interfaces(self, addresses: Sequence[LocalAddress] | None = None) -> list[Interface]:
        if addresses is None:
            watching = self._watching
            addresses = local_addresses() if watching is None else watching.addresses()
        found = filter_and_rank(addresses, self.config)
        if self.config.mdns is Mdns.PUBLISH:
            names = self._membership()
            found = [replace(each, mdns=names.publish(each.host)) for each in found]
        self._last = found
        return found

    async def _look_up(self, place: int, wanted: Wanted) -> None:
        try:
            self._known[place] = await look_up(wanted)
        except StunError as error:
            self._machine.server_not_found(str(wanted.uri), str(error), self._now())
        finally:
            self._looked_up -= 1
        self._gather()
        self._flush()

    # The peer. ------------------------------------------------------------------------------------

    def set_remote_credentials(
        self, ufrag: str, pwd: str, *, lite: bool = False, options: Iterable[str] = ()
    ) -> None:
        """Take the peer's username fragment and password; ``lite`` and ``options`` from its SDP.

        Others than before mean that the peer has restarted: this side then does so, too, and has
        new ones to tell (:class:`ice.events.Restarted`).
        """
        self._must_be_open()
        self._machine.set_remote(
            Credentials(ufrag, pwd), self._now(), lite=lite, options=tuple(options)
        )
        self._view.has_credentials = True
        self._flush()

    async def add_remote_candidate(
        self, candidate: Candidate | str | None, *, stream: int = 0
    ) -> None:
        """Take a candidate of the peer, or its text; ``None``: there are no more.

        Returns at once: a ``.local`` name is looked up meanwhile.
        """
        self._must_be_open()
        if isinstance(candidate, str):
            candidate = Candidate.from_sdp(candidate)
        if candidate is None:
            self._ended.add(stream)
            self._end_of_remote(stream)
        elif candidate.is_mdns:
            self._add_name(candidate, stream)
        else:
            self._add_remote(candidate, stream)
        self._flush()

    def _add_remote(self, candidate: Candidate | None, stream: int) -> None:
        now = self._now()
        self._view.told(candidate, stream, now)
        self._machine.add_remote(candidate, now, stream)

    def _end_of_remote(self, stream: int) -> None:
        if stream in self._ended and not self._resolving[stream]:
            self._ended.discard(stream)
            self._add_remote(None, stream)

    def _add_name(self, candidate: Candidate, stream: int) -> None:
        # Section 3.2.1 of the mDNS draft: with the policy "relay", ignore it.
        if self.config.mdns is Mdns.OFF or self.config.policy is Policy.RELAY:
            return
        if self._resolving.total() < MOST_LOOKUPS:
            self._resolving[stream] += 1
            self._spawn(self._resolve(candidate, stream, self._generation))

    async def _resolve(self, candidate: Candidate, stream: int, generation: int) -> None:
        try:
            host = await self._membership().resolve(candidate.host)
            if host is not None and generation == self._generation:
                found = replace(candidate, host=host, local_name=candidate.host)
                self._add_remote(found, stream)
        finally:
            self._resolving[stream] -= 1
        self._end_of_remote(stream)
        self._flush()

    def _membership(self) -> Membership:
        if self._mdns is None:
            from ice.mdns import join

            self._mdns = join()
        return self._mdns

    # Beyond plain ICE. ----------------------------------------------------------------------------

    def predict(self, offsets: Sequence[int] = (), *, ports: Sequence[int] = ()) -> list[Candidate]:
        """Tell candidates of ports that this side's NAT is expected to give out next.

        ``offsets`` are from the port of each server-reflexive candidate that has been found, over
        UDP and for TCP simultaneous open; ``ports`` are ports as they are, on the same addresses.
        The peer checks them in this order, after all others but relays; what it costs to check
        others first is saved by ``Config(tell=...)``, and by a lower ``Config.ta`` on both sides.

        To be called before the peer is told that there are no more candidates.  Returns those that
        are new; they are :class:`ice.events.LocalCandidate` events, too.
        """
        self._must_be_open()
        made = self._machine.predict(offsets, self._now(), ports=ports)
        self._flush()
        return made

    def spread(self, order: Spread) -> Progress:
        """Begin birthday probing (:class:`ice.spread.order.Spread`), once the peer is known.

        It sends many packets, as many as ``order`` says and as fast, so it is for whoever asks for
        it.  It waits for a candidate of both sides; ends, with
        :class:`ice.events.SpreadEnded`, when a direct pair works, its packets or its time are used
        up, or the agent is restarted or closed.  What is returned shows how far it is.
        """
        self._must_be_open()
        progress = self._machine.spread(order, self._now())
        self._flush()
        return progress

    def stop_spreads(self) -> None:
        """End birthday probing; what it has found stays."""
        self._must_be_open()
        self._machine.stop_spreads(self._now())
        self._flush()

    # Connecting. ----------------------------------------------------------------------------------

    async def connect(self, timeout: float | None = 30.0) -> Connection:  # noqa: ASYNC109
        """Wait until data may pass on every component; the connection of the first one.

        It begins to gather, if nobody has asked for that.  Raises :class:`ice.ConnectionFailed`
        with the explanation when no pair works, or none has after ``timeout`` seconds.
        """
        self._begin()
        try:
            async with asyncio.timeout(timeout):
                while not self._is_connected():
                    self._must_be_open()
                    if self._failure is not None:
                        raise self._failure
                    await self._news()
        except TimeoutError:
            raise self._failed(f"no connection within {timeout:g} s") from None
        return self.connection()

    def _is_connected(self) -> bool:
        machine = self._machine
        return all(
            component.pair is not None and component.generation == machine.generation
            for component in machine.components
        )

    def _failed(self, why: str) -> ConnectionFailed:
        if self._machine.remote is None:
            why += ": the peer's credentials are not known; call set_remote_credentials()"
        return ConnectionFailed(why, self.explain())

    def connection(self, component: int = 1, stream: int = 0) -> Connection:
        """Return the connection of a component; each has a queue of its own."""
        key = stream, component
        found = self._connections.get(key)
        if found is None:
            where = self._machine.component(component, stream)
            found = self._connections[key] = Connection(self, where, self.config.receive_buffer)
        return found

    async def restart(self) -> None:
        """Begin anew with other credentials (RFC 8445 section 9), to be told to the peer.

        Candidates are found again: iterate over :meth:`gather`.  Data goes on over the old pair
        until the new one is agreed on; :meth:`connect` waits for that.
        """
        self._must_be_open()
        self._machine.restart(self._now())
        self._flush()

    # Ending. --------------------------------------------------------------------------------------

    async def close(self) -> None:
        """End everything: allocations are given back, sockets closed, waiting calls told."""
        first = self._closed is None
        self._end(ConnectionClosed("the agent is closed"))
        driver = self._driver
        if first and driver is not None:
            try:
                self._machine.close(driver.now())
                driver.flush()
                await driver.see_off(FAREWELL)
            finally:
                driver.close()
        tasks = [task for task in self._tasks if task is not asyncio.current_task()]
        if tasks:
            await asyncio.wait(tasks)

    def _end(self, why: StunError) -> None:
        """Let nothing begin any more, and tell whoever waits."""
        if self._closed is not None:
            return
        self._closed = why
        for task in self._tasks:
            task.cancel()
        if self._watching is not None:
            self._watching.end()
        if self._mdns is not None:
            self._mdns.leave()
        for connection in self._connections.values():
            connection.end(why)
        self._wake()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        role = "controlling" if self.controlling else "controlled"
        return f"<ice.Agent {self.local_ufrag} {role} {self.state}>"

    # What happens. --------------------------------------------------------------------------------

    def _take(self, event: AgentEvent) -> None:
        if not (self._looked_up and isinstance(event, GatheringComplete)):
            self._view.take(event, self._now())
        match event:
            case LocalCandidate():
                self._local.append(event)
            case GatheringComplete():
                if self._looked_up:  # it is complete but for what these servers will tell
                    return
                self._gathered = True
            case Connected() | Selected():
                self._reroute(event.pair)
            case Disconnected():
                self.connection(event.component, event.stream).leave()
            case CandidateNotGathered():
                pass
            case Failed():
                self._component_failed(event)
            case Restarted():
                self._local = []
                self._generation = event.generation
                self._gathered = False
                self._failure = None
                self._ended.clear()
            case Congested() | Relieved():
                self.connection(event.component, event.stream).congest(
                    congested=isinstance(event, Congested)
                )
        if self._waiting:
            self._wake()
        if self._on_event is not None:
            self._on_event(event)

    def _reroute(self, pair: Pair) -> None:
        driver = self._driver
        assert driver is not None
        driver.udp.forget()
        found = self._connections.get((pair.stream, pair.component))
        if found is not None:
            found.revive()

    def _component_failed(self, event: Failed) -> None:
        self._failure = self._failed(event.why)
        for (stream, component), connection in self._connections.items():
            if stream == event.stream and event.component in (0, component):
                connection.end(ConnectionLost(event.why, self._failure.explanation))

    def _on_data(self, stream: int, component: int, data: bytes) -> None:
        found = self._connections.get((stream, component))
        if found is None:
            found = self.connection(component, stream)
        found.feed(data)

    def _feed_of(self, stream: int, component: int) -> Callable[[bytes], None]:
        return self.connection(component, stream).feed

    def _socket_of(self, local: Address) -> UdpSocket | None:
        return None if self._driver is None else self._driver.udp.socket_of(local)

    def _writer_of(self, pair: Pair) -> Callable[..., bool] | None:
        """Return what writes framed packets of a TCP pair to its socket, or ``None`` for now."""
        driver, handle = self._driver, self._machine.bare(pair.base, pair.remote_address)
        return None if driver is None or handle is None else partial(driver.send, handle)

    def _driver_closed(self, failure: BaseException | None) -> None:
        if failure is not None:
            broken = StunError(f"the agent's driver failed: {failure!r}")
            broken.__cause__ = failure
            self._end(broken)

    # Small things. --------------------------------------------------------------------------------

    def _must_be_open(self) -> None:
        if self._closed is not None:
            raise self._closed

    def _now(self) -> int:
        if self._driver is not None:
            return self._driver.now()
        # The driver's clock, also for what is told before there is one: patience counts from it.
        with suppress(RuntimeError):
            return int(asyncio.get_running_loop().time() * 1e9)
        return 0

    def _flush(self) -> None:
        if self._driver is not None:
            self._driver.flush()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _news(self) -> None:
        """Wait until something has happened."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(future)
        try:
            await future
        finally:
            self._waiting.discard(future)

    def _wake(self) -> None:
        for future in self._waiting:
            if not future.done():
                future.set_result(None)

    def _watch_network(self) -> None:
        if self.config.watch_network:
            from ice.watch import watch

            self._watching = watch(self._network_changed, self.config.watch_network)

    def _network_changed(self, addresses: Sequence[LocalAddress]) -> None:
        before = self._last
        if self._closed is None and self._interfaces(addresses) != before:
            self._gathered = False
            self._machine.network_changed(self._last, self._now())
            self._flush()


def _is_plain(server: Wanted | Server) -> bool:
    """Whether a server is certainly reached without TLS."""
    if isinstance(server, Server):
        return not any(target.transport.is_secure for target in server.targets)
    return not server.uri.secure and getattr(server.uri, "transport", "udp") is not None


__all__ = ["Agent", "Connection", "ConnectionClosed", "ConnectionFailed", "ConnectionLost"]
