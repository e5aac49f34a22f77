"""ICE (RFC 8445) over UDP and TCP: connects two machines, whatever NATs stand between them.

    async with ice.Agent(controlling=True, servers=["stun:stun.example"]) as agent:
        ...

:class:`Agent` is the agent for asyncio (:mod:`ice.aio` has the whole example), and
:class:`AgentMachine` the machine under it, without sockets or clocks (:mod:`stun.sansio`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ice.aio import Agent
    from ice.candidate import Candidate, CandidateError, CandidateType, TcpType
    from ice.config import Config, Credentials, Mdns, Nomination, Policy
    from ice.connection import Connection
    from ice.errors import ConnectionClosed, ConnectionFailed, ConnectionLost, IceError
    from ice.events import AgentState
    from ice.explain import Explanation
    from ice.link.config import LinkConfig
    from ice.link.connect import Stream, connect
    from ice.machine import AgentMachine
    from ice.pair import Pair
    from ice.servers import IceServer

_HOMES = {
    "Agent": "ice.aio",
    "AgentMachine": "ice.machine",
    "AgentState": "ice.events",
    "Candidate": "ice.candidate",
    "CandidateError": "ice.candidate",
    "CandidateType": "ice.candidate",
    "Config": "ice.config",
    "Connection": "ice.connection",
    "ConnectionClosed": "ice.errors",
    "ConnectionFailed": "ice.errors",
    "ConnectionLost": "ice.errors",
    "Credentials": "ice.config",
    "Explanation": "ice.explain",
    "IceError": "ice.errors",
    "IceServer": "ice.servers",
    "LinkConfig": "ice.link.config",
    "Mdns": "ice.config",
    "Nomination": "ice.config",
    "Pair": "ice.pair",
    "Policy": "ice.config",
    "Stream": "ice.link.connect",
    "TcpType": "ice.candidate",
    "connect": "ice.link.connect",
}

__all__ = [
    "Agent",
    "AgentMachine",
    "AgentState",
    "Candidate",
    "CandidateError",
    "CandidateType",
    "Config",
    "Connection",
    "ConnectionClosed",
    "ConnectionFailed",
    "ConnectionLost",
    "Credentials",
    "Explanation",
    "IceError",
    "IceServer",
    "LinkConfig",
    "Mdns",
    "Nomination",
    "Pair",
    "Policy",
    "Stream",
    "TcpType",
    "connect",
]


def __getattr__(name: str) -> Any:
    # Imported when asked for: who parses candidates needs no event loop.
    from importlib import import_module

    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(home), name)
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
