"""STUN and TURN servers as a program names them, and looking them up.

A server with a numeric address is known at once.  A name is a question to the name service, which
may take its time or never answer: :func:`look_up` is for the background.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

from ice.config import Server
from stun.credentials import LongTerm, ThirdParty
from stun.discovery import run, stun_targets, turn_targets
from stun.errors import UsageError
from stun.uri import StunUri, TurnUri, parse_server
from turn.client.setup import FOR_UDP, as_credentials


@dataclass(frozen=True, slots=True)
class IceServer:
    """A server with credentials of its own.

    ``uri``: ``stun:``, ``stuns:``, ``turn:`` or ``turns:`` (RFC 7064, RFC 7065), or ``HOST:PORT``
    of a STUN server.  ``username`` and ``password``, or ``credentials``, are a TURN server's.
    """

    uri: str
    username: str | None = None
    password: str | None = None
    credentials: LongTerm | ThirdParty | None = None


ServerLike: TypeAlias = str | IceServer | StunUri | TurnUri | Server
"""What a program may call a server; a :class:`ice.config.Server` has been looked up already."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A server that is to be looked up."""

    uri: StunUri | TurnUri
    credentials: LongTerm | ThirdParty | None

    @property
    def is_numeric(self) -> bool:
        """Whether no name service has to be asked."""
        return self.uri.is_address

    def found(self, targets: Iterable[object] = ()) -> Server:
        """Return the server with what was found; by default what its numeric address says."""
        turn = isinstance(self.uri, TurnUri)
        if self.is_numeric:
            targets = run(
                turn_targets(self.uri, entropy=os.urandom, supported=FOR_UDP)
                if isinstance(self.uri, TurnUri)
                else stun_targets(self.uri, entropy=os.urandom),
                lambda _: (),
            )
        return Server(str(self.uri), tuple(targets), turn, self.credentials)  # type: ignore[arg-type]


def as_wanted(server: ServerLike, credentials: LongTerm | ThirdParty | None) -> Wanted | Server:
    """Understand what a program calls a server; ``credentials`` are for TURN servers without.

    Raises :class:`stun.errors.UsageError`.
    """
    if isinstance(server, Server):
        return server
    if isinstance(server, IceServer):
        own = as_credentials(server.username, server.password, server.credentials)
        credentials = own or credentials
        server = server.uri
    uri = parse_server(server) if isinstance(server, str) else server
    if not isinstance(uri, TurnUri):
        return Wanted(uri, None)
    if credentials is None:
        raise UsageError(
            f"{uri}: a TURN server wants a username and a password; give them to the agent, or to"
            f" this server alone: IceServer({str(uri)!r}, username=..., password=...)"
        )
    return Wanted(uri, credentials)


async def look_up(wanted: Wanted) -> Server:
    """Ask the name service.  Raises :class:`stun.errors.StunError` when it knows nothing."""
    from stun.resolver import resolve_async

    return wanted.found(await resolve_async(wanted.uri, supported=FOR_UDP))
