"""An agent's machine led by hand, as :mod:`tools.hubdesk` leads a hub.

Sockets, listeners included, are open at once; packets and dials wait in :attr:`AgentDesk.orders`.
"""

from __future__ import annotations

from itertools import count
from random import Random
from typing import Any

from ice.candidate import Candidate, CandidateType, TcpType
from ice.config import Config, Credentials, Server
from ice.events import LocalCandidate
from ice.machine import AgentMachine
from ice.messages import Keys, read_request, request, success, username_of
from stun.codec import decode
from stun.discovery import Target, Transport
from stun.registry import Class
from stun.sansio import (
    MILLISECOND,
    Address,
    Closed,
    Connected,
    Dial,
    Handle,
    Listen,
    Opened,
    Shut,
    Transmit,
    Write,
)
from tools.hubdesk import ETH, HOST, Desk

LOCAL = Credentials("near", "n" * 24)
REMOTE = Credentials("far0", "f" * 24)
STUN = Address("192.0.2.1", 3478)
SERVER = Server("stun:a", (Target(STUN, Transport.UDP),))
MAPPED = Address("203.0.113.5", 6000)
"""What the server sees this side as."""
OUTSIDE = Address("198.51.100.7", 7000)
"""Where the peer is said to be."""


class AgentDesk(Desk):
    """An agent, and a peer that is whatever the test makes of it."""

    def __init__(self, seed: int = 0, *, controlling: bool = True, **options: Any) -> None:
        super().__init__(seed)
        options.setdefault("tcp", False)
        options.setdefault("consent", False)
        self.data: list[bytes] = []
        self.agent = AgentMachine(
            Config(**options),
            controlling=controlling,
            entropy=Random(seed).randbytes,
            local=LOCAL,
            on_data=lambda _stream, _component, data: self.data.append(data),
        )
        self.hub = self.agent  # type: ignore[assignment]  # both are machines
        self.listening: dict[Handle, Address] = {}
        self._listeners = count(50_000)
        self._keys = Keys(REMOTE)
        self._keys.set_remote(LOCAL)
        self._ids = count(1)
        self._streams = count(1)

    def _take(self, output: Any) -> None:
        if isinstance(output, Listen):
            local = Address(output.local.host, output.local.port or next(self._listeners))
            self.listening[output.handle] = local
            self._answers.append(Opened(output.handle, local))
        elif isinstance(output, Shut):
            self.listening.pop(output.handle, None)
        super()._take(output)

    # Both sides. ----------------------------------------------------------------------------------

    def ready(self, *, mapped: bool = True) -> None:
        """Have it gather, with an answer of the server, and know the peer's credentials."""
        self.gather(SERVER)
        self.wait(200)
        if mapped:
            self.answer(MAPPED, at=STUN)
        self.meet()

    def meet(self) -> None:
        """Tell it the peer's credentials."""
        self.agent.set_remote(REMOTE, self.now)
        self.pump()

    def remote(
        self,
        address: Address = OUTSIDE,
        kind: CandidateType = CandidateType.SERVER_REFLEXIVE,
        tcptype: TcpType | None = None,
        priority: int = 1_694_498_815,
    ) -> None:
        """Tell it a candidate of the peer."""
        transport = "udp" if tcptype is None else "tcp"
        candidate = Candidate("1", 1, transport, priority, *address, kind, tcptype=tcptype)
        self.agent.add_remote(candidate, self.now)
        self.pump()

    # What it sends. -------------------------------------------------------------------------------

    def sent(self, to: Address | None = None) -> list[Transmit]:
        """Return the datagrams, all or those for an address."""
        return [
            order
            for order in self.orders
            if isinstance(order, Transmit) and to in (None, order.destination)
        ]

    def dials(self) -> list[Dial]:
        """Return the connections that were dialled."""
        return [order for order in self.orders if isinstance(order, Dial)]

    def shut(self) -> list[Handle]:
        """Return what was shut."""
        return [order.handle for order in self.orders if isinstance(order, Shut)]

    def signalled(self) -> list[Candidate]:
        """Return what the peer is to be told."""
        return [event.candidate for event in self.told(LocalCandidate)]

    # What the peer sends. -------------------------------------------------------------------------

    def check(self, *, keys: Keys | None = None, **options: Any) -> bytes:
        """Return a check of the peer's."""
        options = {"priority": 1, "controlling": False, "tie_breaker": 1} | options
        return request(next(self._ids).to_bytes(12), keys or self._keys, **options)

    def response(self, data: bytes, source: Address) -> bytes:
        """Return the peer's answer to a check of this side's."""
        message = decode(data)
        assert message.message_class is Class.REQUEST
        assert username_of(message) == b"far0:near"
        return success(message, source, REMOTE.password.encode(), None)

    def knows(self, data: bytes) -> bool:
        """Whether this is an authentic check of this side's, as the peer sees it."""
        message = decode(data)
        return (
            message.message_class is Class.REQUEST
            and username_of(message) == b"far0:near"
            and read_request(message, b"near").priority is not None
        )

    def established(self, dial: Dial, local: Address | None = None) -> None:
        """Have a connection come up."""
        at = local or Address(dial.local.host, dial.local.port or next(self._listeners))
        self.tell(Connected(dial.handle, at, dial.remote))

    def failed(self, dial: Dial, cause: Any) -> None:
        """Have one fail."""
        self.tell(Closed(dial.handle, cause))

    def writes(self, handle: Handle) -> list[bytes]:
        """Return what was written on a connection."""
        return [o.data for o in self.orders if isinstance(o, Write) and o.handle == handle]


__all__ = [
    "ETH", "HOST", "LOCAL", "MAPPED", "MILLISECOND", "OUTSIDE", "REMOTE", "SERVER", "STUN",
    "AgentDesk",
]  # fmt: skip
