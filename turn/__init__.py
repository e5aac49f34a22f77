"""TURN (RFC 8656): the relay server ``turnd`` and its client.

    async with turn.connect("turn:relay.example", username="user", password="secret") as relay:
        ...

:func:`connect` is the client for asyncio, :mod:`turn.blocking` the one for plain threads, and
:class:`Client` the machine under both, without sockets or clocks (:mod:`stun.sansio`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from turn.client.aio import Relay, connect
    from turn.client.config import ClientConfig
    from turn.client.errors import (
        AllocationLost,
        Forbidden,
        NoRelay,
        NotAuthenticated,
        PeerNotReached,
        QuotaReached,
        ServerRefused,
        ServerUnreachable,
        TurnError,
    )
    from turn.client.machine import Client
    from turn.client.relay import RelayClosed

_HOMES = {
    "AllocationLost": "turn.client.errors",
    "Client": "turn.client.machine",
    "ClientConfig": "turn.client.config",
    "Forbidden": "turn.client.errors",
    "NoRelay": "turn.client.errors",
    "NotAuthenticated": "turn.client.errors",
    "PeerNotReached": "turn.client.errors",
    "QuotaReached": "turn.client.errors",
    "Relay": "turn.client.aio",
    "RelayClosed": "turn.client.relay",
    "ServerRefused": "turn.client.errors",
    "ServerUnreachable": "turn.client.errors",
    "TurnError": "turn.client.errors",
    "connect": "turn.client.aio",
}

__all__ = [
    "AllocationLost",
    "Client",
    "ClientConfig",
    "Forbidden",
    "NoRelay",
    "NotAuthenticated",
    "PeerNotReached",
    "QuotaReached",
    "Relay",
    "RelayClosed",
    "ServerRefused",
    "ServerUnreachable",
    "TurnError",
    "connect",
]


def __getattr__(name: str) -> Any:
    # Imported when asked for: the server, which is in this package too, needs no client.
    from importlib import import_module

    if name == "blocking":
        return import_module("turn.blocking")
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(home), name)
    return found
