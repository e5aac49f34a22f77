"""ICE over TCP (RFC 6544): candidates, connections and simultaneous open, as a part of the hub.

Simultaneous open is usable by itself as well: a TCP connection between two hosts behind NATs.

    async with await ice.tcp.map_ports(["stun:stun.example"]) as mapped:
        ...  # tell the peer mapped.addresses, learn its own
        hole = await mapped.punch(theirs, secret=secret, controlling=True)
        reader, writer = await hole.streams()

:func:`map_ports` and :func:`punch` are those of :mod:`ice.tcp.aio`; :mod:`ice.tcp.blocking` has the
same for programs without an event loop.  :class:`Puncher` is the machine under both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ice.tcp.aio import MappedPorts, Punched, map_ports, punch
    from ice.tcp.part import TcpPart
    from ice.tcp.puncher import Puncher
    from ice.tcp.terms import PunchConfig, credentials, start_at

_HOMES = {
    "MappedPorts": "ice.tcp.aio",
    "PunchConfig": "ice.tcp.terms",
    "Punched": "ice.tcp.aio",
    "Puncher": "ice.tcp.puncher",
    "TcpPart": "ice.tcp.part",
    "credentials": "ice.tcp.terms",
    "map_ports": "ice.tcp.aio",
    "punch": "ice.tcp.aio",
    "start_at": "ice.tcp.terms",
}

__all__ = [
    "MappedPorts",
    "PunchConfig",
    "Punched",
    "Puncher",
    "TcpPart",
    "credentials",
    "map_ports",
    "punch",
    "start_at",
]


def __getattr__(name: str) -> Any:
    # Imported when asked for: the hub needs no driver, and a puncher no hub.
    from importlib import import_module

    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(home), name)
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
