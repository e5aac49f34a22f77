"""What may be asked of a running turnd at its admin socket: the commands, their JSON both ways."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from stun.errors import UsageError
from stun.sansio import SECOND, Instant
from turn.daemon.admin import LONGEST_TTL, Command
from turn.daemon.logs import usage_fields
from turn.server.events import SessionInfo


@dataclass(frozen=True, slots=True)
class Minted:
    """A time-limited credential (draft-uberti-behave-turn-rest-00), and where it is good."""

    username: str
    password: str
    ttl: int
    """Seconds."""
    uris: tuple[str, ...]


class Operated(Protocol):
    """A turnd, as far as its operator may reach into it."""

    def now(self) -> Instant:
        """Return the time by the server machine's clock."""
        ...

    def sessions(self) -> Iterator[SessionInfo]:
        """Yield every allocation."""
        ...

    def disconnect(self, *, session: str | None, username: str | None) -> int:
        """End the allocations of a session or of a user; return how many there were."""
        ...

    def credentials(self, name: str, ttl: int) -> Minted:
        """Mint a credential; raises ``UsageError`` where there is no secret to make it with."""
        ...

    def drain(self) -> int:
        """Take no new allocations from now on; return how many are left."""
        ...

    async def reload(self) -> list[str]:
        """Read the configuration and the certificates again; return what changed, in words.

        Raises ``StunError`` for what is wrong with it; nothing has changed then.
        """
        ...

    def status(self) -> dict[str, Any]:
        """Return what ``turnd check`` needs to know, as JSON."""
        ...


def commands(turnd: Operated) -> dict[str, Command]:
    """Return the commands of the admin socket."""

    async def sessions(_: Mapping[str, Any]) -> Any:
        now = turnd.now()
        return [describe(session, now) for session in turnd.sessions()]

    async def disconnect(request: Mapping[str, Any]) -> Any:
        session, username = _text(request, "session"), _text(request, "user")
        if (session is None) == (username is None):
            raise UsageError("disconnect takes a session or a user")
        return {"ended": turnd.disconnect(session=session, username=username)}

    async def credentials(request: Mapping[str, Any]) -> Any:
        ttl = request.get("ttl", 3600)
        if type(ttl) is not int or not 0 < ttl <= LONGEST_TTL:
            raise UsageError(f"ttl is a number of seconds from 1 to {LONGEST_TTL}, not {ttl!r}")
        minted = turnd.credentials(_text(request, "user") or "", ttl)
        return {
            "username": minted.username,
            "password": minted.password,
            "ttl": minted.ttl,
            "uris": list(minted.uris),
        }

    async def drain(_: Mapping[str, Any]) -> Any:
        return {"left": turnd.drain()}

    async def reload(_: Mapping[str, Any]) -> Any:
        return {"changed": await turnd.reload()}

    async def status(_: Mapping[str, Any]) -> Any:
        return turnd.status()

    return {
        "sessions": sessions,
        "disconnect": disconnect,
        "credentials": credentials,
        "drain": drain,
        "reload": reload,
        "status": status,
    }


def _text(request: Mapping[str, Any], key: str) -> str | None:
    value = request.get(key)
    if value is not None and not isinstance(value, str):
        raise UsageError(f"{key} is a text, not {value!r}")
    return value


def describe(session: SessionInfo, now: Instant) -> dict[str, Any]:
    """Return an allocation as JSON; times are seconds from ``now``."""
    return {
        "session": session.session,
        "user": session.username,
        "client": str(session.client),
        "server": str(session.server),
        "transport": session.transport.value,
        "relayed": [str(address) for address in session.relayed],
        "protocol": "tcp" if session.tcp else "udp",
        "age": round((now - session.created) / SECOND, 1),
        "expires_in": round((session.expires - now) / SECOND, 1),
        "permissions": list(session.permissions),
        "channels": {f"0x{number:04x}": str(peer) for number, peer in session.channels},
        "connections": session.connections,
        **usage_fields(session.usage),
    }
