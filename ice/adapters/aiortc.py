"""aiortc on natkit's agent.

    import ice.adapters.aiortc

    ice.adapters.aiortc.install()        # before the first RTCPeerConnection

From then on every ``RTCIceTransport`` has an agent of natkit below it: candidates over TCP, any
number of STUN and TURN servers over every transport, consent by time, a change to a better path.
"""

from __future__ import annotations

from typing import Any

from aioice import ConnectionClosed
from aiortc import rtcicetransport
from aiortc.rtcconfiguration import RTCIceServer

from ice.adapters import aioice as adapter
from ice.servers import IceServer

_theirs: dict[str, Any] = {}


class Connection(adapter.Connection):
    """What an ``RTCIceGatherer`` makes."""

    async def get_event(self) -> Any:
        """Wait for the end of the connection, which aiortc knows by aioice's class."""
        await super().get_event()
        return ConnectionClosed()


def connection_kwargs(servers: list[RTCIceServer]) -> dict[str, Any]:
    """Return what :class:`Connection` is to be given for these servers.

    All of them are used, where aioice takes the first STUN and the first TURN server.
    """
    found = []
    for server in servers:
        urls = server.urls if isinstance(server.urls, list) else [server.urls]
        for url in urls:
            if not url.startswith("turn"):
                found.append(IceServer(url))
            elif server.credentialType == "password":
                found.append(IceServer(url, server.username or "", server.credential or ""))
    return {"servers": found}


_OURS = {"Connection": Connection, "connection_kwargs": connection_kwargs}


def install() -> None:
    """Have aiortc make natkit's agents from now on.  Done twice it is done once."""
    if not _theirs:
        _theirs.update({name: getattr(rtcicetransport, name) for name in _OURS})
        _set(_OURS)


def uninstall() -> None:
    """Have aiortc make aioice's again.  Connections that there are stay what they are."""
    _set(_theirs)
    _theirs.clear()


def _set(values: dict[str, Any]) -> None:
    for name, value in values.items():
        setattr(rtcicetransport, name, value)


__all__ = ["install", "uninstall"]
