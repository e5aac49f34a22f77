"""What can go wrong between a TURN client and its server, in words that say what to do.

Every error names the server it is about.  What the server itself said is a :class:`ServerRefused`
with the code and the reason phrase; codes that a program handles differently have a class each, and
so an ``except QuotaReached`` reads as what it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from stun.auth_client import AuthenticationFailed
from stun.discovery import Target
from stun.errors import ErrorResponse, StunError
from stun.outcome import UnknownAttributeResponse
from stun.registry import AttributeType, ErrorCode


def server_text(server: Target) -> str:
    """Name a server as errors do: the address, the transport, and the name that was asked for."""
    text = f"TURN server {server.address} over {server.transport.value}"
    named = server.name is not None and server.name != server.address.host
    return f"{text} ({server.name})" if named else text


class TurnError(StunError):
    """The root of what a TURN client tells; ``server`` is whom it is about."""

    def __init__(self, server: Target, text: str) -> None:
        super().__init__(f"{server_text(server)}: {text}")
        self.server = server


class ServerUnreachable(TurnError):
    """No answer, no connection, or a certificate that does not hold."""


class ServerNotTrusted(TurnError):
    """The server's answers do not prove that it knows the password (RFC 8489 section 9.2.5)."""


class AllocationLost(TurnError):
    """The allocation is gone: its relayed address leads nowhere any more.

    ``cause`` is what made it known: a refused or unanswered Refresh, or a closed connection.
    """

    def __init__(self, server: Target, why: str, cause: StunError | None = None) -> None:
        super().__init__(server, f"the allocation is lost: {why}")
        self.cause = cause


class RedirectRefused(TurnError):
    """A 300 (Try Alternate) that is not followed: a loop, one too many, or one without proof."""


class NoRelay(StunError):
    """None of the servers gave a relayed address; ``errors`` has one error for each, in order."""

    def __init__(self, errors: Sequence[StunError]) -> None:
        lines = "".join(f"\n  {error}" for error in errors)
        super().__init__(f"none of {len(errors)} TURN servers could be used:{lines}")
        self.errors = tuple(errors)


class ServerRefused(TurnError, ErrorResponse):
    """The server answered a request with an error.

    ``code`` and ``reason`` as it said them; ``request`` is the request in the field's words.
    """

    advice: ClassVar[str] = ""

    def __init__(self, server: Target, request: str, code: int, reason: str, why: str = "") -> None:
        said = f"{code} {reason}".rstrip()
        text = f"{server_text(server)} refused {request}: {said}"
        # Deliberately not the next in line: each base would make a text of its own.
        Exception.__init__(self, ": ".join(part for part in (text, why or self.advice) if part))
        self.server = server
        self.request = request
        self.code = code
        self.reason = reason

    def __str__(self) -> str:
        return str(self.args[0])


class NotAuthenticated(ServerRefused):
    """401 or 438 that no answer helps against."""

    advice = "check the username and the password; a time-limited credential may have expired"


class CredentialsNeeded(NotAuthenticated):
    """401, and there is nothing to answer it with."""

    advice = "the server relays for its users only; give a username and a password, or credentials"


class Forbidden(ServerRefused):
    """403: policy."""

    advice = "the server's policy does not allow it; most servers relay to public addresses only"


class MobilityForbidden(ServerRefused):
    """405 (RFC 8016): allocate without ``mobility``."""

    advice = "the server allows no mobility; allocate without it"


class NotSupported(ServerRefused):
    """420: the server does not know something that the request asked for; ``attributes`` says."""

    attributes: tuple[int, ...] = ()


class AllocationMismatch(ServerRefused):
    """437: the server has no allocation here, or has one already."""

    advice = (
        "client and server disagree about the allocation: it may have expired, the server may have"
        " restarted, or a NAT may have given this client another address; allocate again"
    )


class FamilyNotSupported(ServerRefused):
    """440: no relayed address of this family."""

    advice = "the server has no relayed address of that family; ask for another one"


class WrongCredentials(ServerRefused):
    """441: the allocation belongs to another user, or was made with another password."""

    advice = "the allocation was made with other credentials; use those, or allocate again"


class TransportNotSupported(ServerRefused):
    """442: the server does not relay this protocol."""

    advice = (
        "it does not relay this protocol; TCP (RFC 6062) needs a server that has it switched on,"
        " and a TCP or TLS connection to it"
    )


class PeerFamilyMismatch(ServerRefused):
    """443: the peer's family is not that of a relayed address."""

    advice = "the peer's address family is not that of the relayed address; allocate for both"


class ConnectionExists(ServerRefused):
    """446 (RFC 6062): there is a connection to this peer already."""

    advice = "there is a connection to this peer already; close that one first"


class PeerNotReached(ServerRefused):
    """447 (RFC 6062): the server could not connect to the peer."""

    advice = "the server could not connect to the peer; wait 10 seconds before trying again"


class QuotaReached(ServerRefused):
    """486: this user has as many allocations as allowed."""

    advice = (
        "this user holds as many allocations as the server allows: release one, or wait a minute"
        " before trying again"
    )


class InsufficientCapacity(ServerRefused):
    """508: no port, or none as was asked for."""

    advice = (
        "the server has no relay port left, or none with the properties asked for: wait a minute,"
        " or ask without an even port or a reservation"
    )


_BY_CODE: dict[int, type[ServerRefused]] = {
    ErrorCode.UNAUTHENTICATED: CredentialsNeeded,
    ErrorCode.FORBIDDEN: Forbidden,
    ErrorCode.MOBILITY_FORBIDDEN: MobilityForbidden,
    ErrorCode.UNKNOWN_ATTRIBUTE: NotSupported,
    ErrorCode.ALLOCATION_MISMATCH: AllocationMismatch,
    ErrorCode.STALE_NONCE: NotAuthenticated,
    ErrorCode.ADDRESS_FAMILY_NOT_SUPPORTED: FamilyNotSupported,
    ErrorCode.WRONG_CREDENTIALS: WrongCredentials,
    ErrorCode.UNSUPPORTED_TRANSPORT_PROTOCOL: TransportNotSupported,
    ErrorCode.PEER_ADDRESS_FAMILY_MISMATCH: PeerFamilyMismatch,
    ErrorCode.CONNECTION_ALREADY_EXISTS: ConnectionExists,
    ErrorCode.CONNECTION_TIMEOUT_OR_FAILURE: PeerNotReached,
    ErrorCode.ALLOCATION_QUOTA_REACHED: QuotaReached,
    ErrorCode.INSUFFICIENT_CAPACITY: InsufficientCapacity,
}


def refused(server: Target, request: str, error: ErrorResponse) -> ServerRefused:
    """Return the error that stands for what a server said."""
    kind = _BY_CODE.get(error.code, ServerRefused)
    why = ""
    if isinstance(error, AuthenticationFailed):
        kind, why = NotAuthenticated, f"{error.why}; {NotAuthenticated.advice}"
    elif isinstance(error, UnknownAttributeResponse):
        names = ", ".join(AttributeType.make(code).label for code in error.attributes)
        why = f"it does not support {names or 'something that was asked for'}; ask without it"
    made = kind(server, request, error.code, error.reason, why)
    if isinstance(made, NotSupported) and isinstance(error, UnknownAttributeResponse):
        made.attributes = error.attributes
    return made
