"""From what a person says to what the client machine takes: servers, credentials, peers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, Literal, TypedDict

from stun.attributes import host_octets, host_text
from stun.credentials import LongTerm, ThirdParty
from stun.discovery import Target, Transport
from stun.errors import StunError, UsageError
from stun.sansio import Address
from stun.uri import TurnUri, parse_server
from turn.client.config import ClientConfig, RelayedFamily
from turn.client.errors import NoRelay, server_text

Protocol = Literal["udp", "tcp"]
"""What is relayed."""

# RFC 5928 leaves the order to the client.  Datagrams suffer least on transports that are datagrams;
# what is encrypted comes last where a URI does not ask for it, as it takes the most round trips.
FOR_UDP: Final = (Transport.UDP, Transport.TCP, Transport.DTLS, Transport.TLS)
FOR_TCP: Final = (Transport.TCP, Transport.TLS)
"""RFC 6062 section 4.1: "TCP allocations cannot be obtained using a UDP association"."""


class Options(TypedDict, total=False):
    """What :class:`turn.client.config.ClientConfig` has beside the server and the credentials."""

    local: Address | None
    lifetime: int | None
    family: RelayedFamily
    even_port: bool
    reserve_next: bool
    reservation_token: bytes | None
    dont_fragment: bool
    mobility: bool
    keepalive: int | None
    permit_on_send: bool
    bind_after: int
    allocate_again: bool
    redirects: int
    accept_limit: int
    software: str | None


def as_uri(server: str | TurnUri) -> TurnUri:
    """Return the URI of a server: ``turn:HOST``, ``HOST``, ``HOST:PORT`` and so on.

    Raises :class:`stun.errors.UsageError`.
    """
    if isinstance(server, TurnUri):
        return server
    uri = parse_server(server)
    if isinstance(uri, TurnUri):
        return uri
    if not server.strip().lower().startswith(("stun:", "stuns:")):
        return TurnUri(uri.host, uri.port)
    raise UsageError(f"{server}: a STUN server does not relay; a TURN server is turn:{uri.host}")


def supported(protocol: Protocol) -> Sequence[Transport]:
    """Return the transports for reaching a server that is to relay ``protocol``, best first."""
    return FOR_TCP if protocol == "tcp" else FOR_UDP


def as_credentials(
    username: str | None,
    password: str | None,
    credentials: LongTerm | ThirdParty | None,
) -> LongTerm | ThirdParty | None:
    """Return the credentials that were given in one of the two ways."""
    if username is None and password is None:
        return credentials
    if username is None or password is None or credentials is not None:
        raise UsageError("give a username and a password, or credentials, or nothing")
    return LongTerm(username, password)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What :func:`turn.connect` was asked for.

    Raises :class:`stun.errors.UsageError` for what contradicts itself, ``TypeError`` for options
    that there are not.
    """

    server: str | TurnUri | Target
    credentials: LongTerm | ThirdParty | None
    protocol: Protocol
    address_family: Literal[4, 6] | None
    timeout: float
    options: Options

    def __post_init__(self) -> None:
        unknown = self.options.keys() - Options.__annotations__.keys()
        if unknown:
            raise TypeError(
                f"connect() has no argument {min(unknown)!r}; its options are "
                + ", ".join(sorted(Options.__annotations__))
            )
        _one_of("protocol", self.protocol, ("udp", "tcp"))
        _one_of("family", self.options.get("family"), (None, 4, 6, "dual"))
        _one_of("address_family", self.address_family, (None, 4, 6))
        local = self.options.get("local")
        if local is not None:
            self.options["local"] = as_peer(local)
        if self.protocol == "tcp" and self._datagrams_only():
            raise UsageError(
                f"{self}: connections are relayed over TCP or TLS only (RFC 6062 section 4.1); "
                'with protocol="tcp" leave ?transport=udp out'
            )

    def _datagrams_only(self) -> bool:
        if isinstance(self.server, Target):
            return self.server.transport.protocol == "udp"
        return as_uri(self.server).transport == "udp"

    def __str__(self) -> str:
        return server_text(self.server) if isinstance(self.server, Target) else str(self.server)

    def configs(self, targets: Sequence[Target]) -> list[ClientConfig]:
        """Return a configuration for each server that can be reached from the local address.

        Raises :class:`stun.errors.UsageError` when there is none.
        """
        local = self.options.get("local")
        fitting = [t for t in targets if local is None or t.address.is_ipv6 is local.is_ipv6]
        if not fitting:
            raise UsageError(f"{self} cannot be reached from {local}: another address family")
        tcp = self.protocol == "tcp"
        return [ClientConfig(t, self.credentials, tcp=tcp, **self.options) for t in fitting]

    def too_late(self, errors: Sequence[StunError]) -> StunError:
        """Return the error for no result in time; ``errors`` are those of servers so far."""
        late = StunError(f"{self} gave no relayed address within {self.timeout:g} s")
        return NoRelay([*errors, late]) if errors else late


def _one_of(name: str, value: object, allowed: Sequence[object]) -> None:
    if value not in allowed:
        raise UsageError(f"{name}={value!r}: it is one of {', '.join(map(repr, allowed))}")


def as_peer(peer: tuple[str, int]) -> Address:
    """Return a peer's address as machines compare it; raises :class:`stun.errors.UsageError`."""
    if type(peer) is Address:
        return _normal(peer)
    given: Any = peer
    # A text would come apart into its letters.
    parts: Any = [given] if isinstance(given, str) else given
    try:
        host, port, *_ = parts
        return _normal(Address(host, port))
    except (TypeError, ValueError):
        raise UsageError(f"{peer!r}: a peer is (numeric IP address, port)") from None


@lru_cache(4096)
def _normal(peer: Address) -> Address:
    try:
        host = host_text(host_octets(peer.host))
    except StunError:
        raise UsageError(f"{peer.host!r} is not an IP address; a relay looks up no names") from None
    if not 0 <= peer.port <= 0xFFFF:
        raise UsageError(f"{peer.port} is not a port")
    # A relay sees another network than this host: a zone means nothing there.
    return Address(host, peer.port)
