"""What an accepted connection says before it is a stream: a proxy's header, and TLS or not.

Theory of operation.  A listener that serves more than plain streams keeps each new connection to
itself until it knows what it has: first comes the header of the PROXY protocol, where one is
required, then the client's first octet, which tells TLS from STUN and TURN (RFC 7983 section 3,
RFC 8489 section 8.1), then, of TLS, the rest of the ClientHello, for its ALPN.  An
:class:`Entrance` is given the octets as they come, cut anywhere, and says what is to be done.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from stun import proxy
from stun.hello import (
    ALERT_NO_APPLICATION_PROTOCOL,
    HANDSHAKE,
    Overlong,
    read_stream,
    speaks_our_protocol,
)
from stun.sansio import Security


@dataclass(frozen=True, slots=True)
class Ready:
    """The connection may go on; ``data`` is what the client has said so far."""

    secure: bool
    data: bytes
    header: proxy.Header | None


@dataclass(frozen=True, slots=True)
class Refused:
    """The connection is to be closed, after ``last_words``."""

    reason: str
    last_words: bytes = b""


Decision: TypeAlias = Ready | Refused


class Entrance:
    """Decides what a new connection is."""

    __slots__ = ("_data", "_header", "_needed", "_proxied", "_security")

    def __init__(self, security: Security, *, proxied: bool) -> None:
        self._security = security
        self._proxied = proxied
        self._header: proxy.Header | None = None
        self._data = b""
        # A ClientHello that comes octet by octet is looked at again only when it may be whole.
        self._needed = 1

    def feed(self, data: bytes) -> Decision | None:
        """Take octets; return the decision once there is one."""
        self._data += data
        if self._proxied and self._header is None:
            match proxy.read(self._data):
                case proxy.Header() as header:
                    self._header = header
                    self._data = self._data[header.size :]
                case proxy.NotProxied(reason):
                    return Refused(reason)
                case None:
                    return None
        if self._security is Security.NONE:
            return self._ready(secure=False)
        if len(self._data) < self._needed:
            return None
        if self._data[0] != HANDSHAKE:
            if self._security is Security.REQUIRED:
                return Refused("not TLS, on a port for TLS only")
            return self._ready(secure=False)
        try:
            hello = read_stream(self._data)
        except Overlong:
            return Refused("TLS client whose ClientHello is too long, or in too many records")
        if isinstance(hello, int):
            self._needed = hello
            return None
        if hello is not None and not speaks_our_protocol(hello):
            return Refused(
                "TLS client that offers other protocols only (ALPN)", ALERT_NO_APPLICATION_PROTOCOL
            )
        return self._ready(secure=True)

    def _ready(self, *, secure: bool) -> Ready:
        return Ready(secure, self._data, self._header)
