"""TURN (RFC 8656): the relay server ``turnd`` and its client.

    async with turn.connect("turn:relay.example", username="user", password="secret") as relay:
        ...

:func:`connect` is the client for asyncio, :mod:`turn.blocking` the one for plain threads, and
:class:`Client` the machine under both, without sockets or clocks (:mod:`stun.sansio`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from turn.client import Client
    from turn.client_config import ClientConfig
    from turn.client_errors import (
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
    from turn.client_relay import RelayClosed
    from turn.client_aio import Relay, connect

_HOMES = {
    "AllocationLost": "turn.client_errors",
    "Client": "turn.client",
    "ClientConfig": "turn.client_config",
    "Forbidden": "turn.client_errors",
    "NoRelay": "turn.client_errors",
    "NotAuthenticated": "turn.client_errors",
    "PeerNotReached": "turn.client_errors",
    "QuotaReached": "turn.client_errors",
    "Relay": "turn.client_aio",
    "RelayClosed": "turn.client_relay",
    "ServerRefused": "turn.client_errors",
    "ServerUnreachable": "turn.client_errors",
    "TurnError": "turn.client_errors",
    "connect": "turn.client_aio",
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
