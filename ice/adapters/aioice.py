"""An agent with the interface of aioice's ``Connection``.

    from ice.adapters.aioice import Connection         # in place of: from aioice import Connection

What aioice has one of (a STUN server, a TURN server) may be given here in any number, as
``servers``.  Candidates are told when all are gathered, as aioice does it; the peer's may trickle.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Iterable
from dataclasses import replace
from enum import Enum
from typing import TYPE_CHECKING, Any

from ice.aio import Agent
from ice.candidate import Candidate, CandidateType, TcpType
from ice.config import Config, Credentials, Policy
from ice.events import AgentEvent, Failed
from ice.servers import IceServer, ServerLike
from ice.session import make_credentials
from stun.errors import UsageError

if TYPE_CHECKING:
    from ice.connection import Connection as Line


class TransportPolicy(Enum):
    """Which candidates are used."""

    ALL = 0
    RELAY = 1


class ConnectionEvent:
    """What :meth:`Connection.get_event` gives."""


class ConnectionClosed(ConnectionEvent):
    """The connection is over: closed, or lost."""


class Connection:
    """One agent.  The parameters are those of aioice, and ``servers`` and ``config`` beside them.

    ``ice_controlling`` may be set until candidates are gathered; after that, agents that both think
    they control find out by themselves (RFC 8445 section 7.3.1.1).
    """

    def __init__(  # noqa: PLR0917  (aioice's interface)
        self,
        ice_controlling: bool,
        components: int = 1,
        stun_server: tuple[str, int] | None = None,
        turn_server: tuple[str, int] | None = None,
        turn_username: str | None = None,
        turn_password: str | None = None,
        turn_ssl: bool = False,
        turn_transport: str = "udp",
        use_ipv4: bool = True,
        use_ipv6: bool = True,
        transport_policy: Enum = TransportPolicy.ALL,
        local_username: str | None = None,
        local_password: str | None = None,
        *,
        servers: Iterable[ServerLike] = (),
        config: Config | None = None,
    ) -> None:
        drawn = make_credentials(os.urandom)
        self._local = Credentials(local_username or drawn.ufrag, local_password or drawn.password)
        self._controlling = ice_controlling
        self._servers = [*servers]
        if stun_server is not None:
            self._servers.append(f"stun:{_authority(stun_server)}")
        if turn_server is not None:
            scheme = "turns" if turn_ssl else "turn"
            uri = f"{scheme}:{_authority(turn_server)}?transport={turn_transport}"
            self._servers.append(IceServer(uri, turn_username or "", turn_password or ""))
        # By name: the policy may be aioice's own.
        relayed = transport_policy.name == TransportPolicy.RELAY.name
        base = config or Config()
        # What hides or leaves out holds, whichever of the two says it.
        self._config = replace(
            base,
            components=max(components, base.components),
            policy=Policy.RELAY if relayed else base.policy,
            ipv4=use_ipv4 and base.ipv4,
            ipv6=use_ipv6 and base.ipv6,
        )
        self._agent: Agent | None = None
        self._line: Line | None = None
        self._remote: list[Candidate] = []
        self._remote_ended = False
        self._gathered = self._connecting = self._closed = False
        self._spare: deque[tuple[bytes, int]] = deque()
        self._over = asyncio.Event()
        self.remote_is_lite = False
        self.remote_username: str | None = None
        self.remote_password: str | None = None

    @property
    def agent(self) -> Agent:
        """The agent below: for statistics, explanations and whatever aioice has no word for."""
        if self._agent is None:
            self._agent = Agent(
                controlling=self._controlling,
                servers=self._servers,
                config=self._config,
                local=self._local,
                on_event=self._take,
            )
        return self._agent

    @property
    def ice_controlling(self) -> bool:
        """Whether this side decides on the pair."""
        return self._controlling if self._agent is None else self._agent.controlling

    @ice_controlling.setter
    def ice_controlling(self, value: bool) -> None:
        self._controlling = value

    @property
    def local_username(self) -> str:
        """This side's username fragment."""
        return self._local.ufrag

    @property
    def local_password(self) -> str:
        """This side's password."""
        return self._local.password

    @property
    def local_candidates(self) -> list[Candidate]:
        """What :meth:`gather_candidates` has found, those over UDP first.

        Programs take the first one for the default destination of a peer without ICE, for which
        a name will not do.
        """
        found = [] if self._agent is None else self._agent.local_candidates
        return sorted(found, key=lambda one: (one.transport != "udp", one.is_name))

    @property
    def remote_candidates(self) -> list[Candidate]:
        """What was given to :meth:`add_remote_candidate`."""
        return [*self._remote]

    def get_default_candidate(self, component: int) -> Candidate | None:
        """Return the candidate for a peer without ICE: the least preferred one, as aioice does."""
        found = [each for each in self.local_candidates if each.component == component]
        return min(found, key=lambda each: each.priority, default=None)

    async def gather_candidates(self) -> None:
        """Find this side's candidates."""
        await self.agent.gather()
        self._gathered = True

    async def add_remote_candidate(self, remote_candidate: Any) -> None:
        """Take a candidate of the peer, natkit's or aioice's; ``None``: there are no more.

        One that is of no use is left out.  Raises ``ValueError`` after the end of candidates.
        """
        if self._remote_ended:
            raise ValueError("Cannot add remote candidate after end-of-candidates.")
        if self._closed:
            return
        if remote_candidate is None:
            self._remote_ended = True
        else:
            try:
                remote_candidate = as_candidate(remote_candidate)
            except ValueError:  # a type that nobody knows (RFC 8839 section 5.1: ignore it)
                return
            self._remote.append(remote_candidate)
        if self._connecting:
            await self._add(remote_candidate)

    async def _add(self, candidate: Candidate | None) -> None:
        try:
            await self.agent.add_remote_candidate(candidate)
        except UsageError:
            assert candidate is not None
            self._remote.remove(candidate)

    async def connect(self) -> None:
        """Perform the checks.  Raises ``ConnectionError``, whose text is the explanation."""
        if not self._gathered:
            raise ConnectionError("Local candidates gathering was not performed")
        if self.remote_username is None or self.remote_password is None:
            raise ConnectionError("Remote username or password is missing")
        self._connecting = True
        self.agent.set_remote_credentials(
            self.remote_username, self.remote_password, lite=self.remote_is_lite
        )
        for candidate in [*self._remote, *([None] if self._remote_ended else [])]:
            await self._add(candidate)
        self._line = await self.agent.connect(timeout=None)

    async def close(self) -> None:
        """End everything."""
        self._closed = True
        if self._agent is not None:
            await self._agent.close()
        self._over.set()

    async def get_event(self) -> ConnectionEvent | None:
        """Wait for the end of the connection."""
        await self._over.wait()
        return ConnectionClosed()

    def _take(self, event: AgentEvent) -> None:
        if isinstance(event, Failed) and self._line is not None:
            self._over.set()

    # Data. ----------------------------------------------------------------------------------------

    async def recv(self) -> bytes:
        """Return the next packet, of whichever component.  Raises ``ConnectionError``."""
        return (await self.recvfrom())[0]

    async def send(self, data: bytes) -> None:
        """Send on the first component.  Raises ``ConnectionError``."""
        await self._connected("send").send(data)

    async def sendto(self, data: bytes, component: int) -> None:
        """Send on a component.  Raises ``ConnectionError``."""
        self._connected("send")
        await self.agent.connection(component).send(data)

    async def recvfrom(self) -> tuple[bytes, int]:
        """Return the next packet and the component that it came on.  Raises ``ConnectionError``."""
        line = self._connected("receive")
        components = range(1, self._config.components + 1)
        if len(components) == 1:
            return await line.recv(), 1
        while not self._spare:
            tasks = [asyncio.create_task(self.agent.connection(n).recv()) for n in components]
            try:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                # Cancelled before it has a packet, a receiver leaves it in the queue.
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)
                self._spare += [
                    (task.result(), component)
                    for task, component in zip(tasks, components, strict=True)
                    if not task.cancelled() and task.exception() is None
                ]
            failed = [task for task in tasks if not task.cancelled() and task.exception()]
            if failed and not self._spare:
                failed[0].result()
        return self._spare.popleft()

    def _connected(self, what: str) -> Line:
        if self._line is None:
            raise ConnectionError(f"Cannot {what} data, not connected")
        return self._line


def as_candidate(candidate: Any) -> Candidate:
    """Return natkit's form of a candidate.  Raises ``ValueError`` for an unknown type."""
    if isinstance(candidate, Candidate):
        return candidate
    return Candidate(
        foundation=candidate.foundation,
        component=candidate.component,
        transport=candidate.transport.lower(),
        priority=candidate.priority,
        host=candidate.host,
        port=candidate.port,
        type=CandidateType(candidate.type),
        related_address=candidate.related_address,
        related_port=candidate.related_port,
        tcptype=None if candidate.tcptype is None else TcpType(candidate.tcptype),
    )


def _authority(server: tuple[str, int]) -> str:
    host, port = server[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
