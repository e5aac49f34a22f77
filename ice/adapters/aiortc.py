"""aiortc on natkit's agent.

    import ice.adapters.aiortc

    ice.adapters.aiortc.install()        # before the first RTCPeerConnection

From then on every ``RTCIceTransport`` has an agent of natkit below it: candidates over TCP, any
number of STUN and TURN servers over every transport, consent by time, a change to a better path.
"""

from __future__ import annotations

from functools import partial
from types import ModuleType
from typing import Any

from aioice import ConnectionClosed
from aiortc import rtcicetransport, sdp
from aiortc.rtcconfiguration import RTCIceServer

from ice.adapters import aioice as adapter
from ice.candidate import is_name
from ice.config import Config
from ice.servers import IceServer

_theirs: dict[tuple[ModuleType, str], Any] = {}


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


_write_address = sdp.ipaddress_to_sdp


def ipaddress_to_sdp(address: str) -> str:
    """Return what aiortc writes into a ``c=`` line.

    It takes its first candidate for that, where a name "MUST NOT be used"
    (draft-ietf-mmusic-mdns-ice-candidates section 3.1.2.4): then it is the unspecified address.
    """
    return str(_write_address("0.0.0.0" if is_name(address) else address))  # noqa: S104


def install(config: Config | None = None) -> None:
    """Have aiortc make natkit's agents from now on, with this configuration.

    Done again it is the latest configuration that counts.
    """
    make = Connection if config is None else partial(Connection, config=config)
    ours = {
        (rtcicetransport, "Connection"): make,
        (rtcicetransport, "connection_kwargs"): connection_kwargs,
        (sdp, "ipaddress_to_sdp"): ipaddress_to_sdp,
    }
    for (module, name), value in ours.items():
        _theirs.setdefault((module, name), getattr(module, name))
        setattr(module, name, value)


def uninstall() -> None:
    """Have aiortc make aioice's again.  Connections that there are stay what they are."""
    for (module, name), value in _theirs.items():
        setattr(module, name, value)
    _theirs.clear()


__all__ = ["install", "uninstall"]
