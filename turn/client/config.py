"""What a TURN client is told: whom to ask, with which credentials, for what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from stun.client import Config as StunConfig
from stun.credentials import LongTerm, ThirdParty
from stun.discovery import Target, Transport
from stun.errors import UsageError
from stun.sansio import Address

RelayedFamily: TypeAlias = Literal[4, 6, "dual"] | None
"""Which relayed addresses are wanted; ``None`` leaves it to the server, which then gives IPv4."""

MAX_REDIRECTS: Final = 3
"""How many 300 (Try Alternate) in a row are followed."""

_STUN: Final = StunConfig(software=None)


@dataclass(frozen=True, slots=True)
class ClientConfig:
    """One allocation at one server.  Raises :class:`stun.errors.UsageError` where norms say no.

    ``server``: where it is, as :mod:`stun.discovery` finds it; ``credentials``: a password, or an
    access token (RFC 7635), ``None`` only for servers that ask for neither.  ``local``: the address
    to send from; port 0 is any.

    What is asked for: ``tcp`` relays TCP connections (RFC 6062) instead of datagrams; ``family``
    the relayed addresses; ``lifetime`` in seconds, ``None`` for the server's default;
    ``even_port``, and ``reserve_next`` the one after it, whose token :class:`Allocated` tells;
    ``reservation_token`` takes what another allocation reserved; ``dont_fragment`` asks the server
    to be able to set DF, which :meth:`turn.Client.send` then may use; ``mobility`` asks for
    a ticket (RFC 8016), so that the allocation survives a change of the client's address.

    What the client does by itself: ``keepalive`` keeps the way through NATs open by a packet after
    so many seconds without one (UDP and DTLS; ``None``: never); ``permit_on_send`` installs the
    permission that a first datagram needs, the datagram waiting for it; ``bind_after`` binds a
    channel to a peer that has been sent so many datagrams (0: never); ``allocate_again`` makes a
    lost allocation anew, with its permissions and channels, under another relayed address;
    ``redirects`` is how many times a 300 is followed; ``accept_limit`` how many connections of
    peers (RFC 6062) may be open at once.

    ``stun``: retransmission times and the like; ``software``: the SOFTWARE attribute, if any.
    """

    server: Target
    credentials: LongTerm | ThirdParty | None = None
    local: Address | None = None
    tcp: bool = False
    family: RelayedFamily = None
    lifetime: int | None = None
    even_port: bool = False
    reserve_next: bool = False
    reservation_token: bytes | None = None
    dont_fragment: bool = False
    mobility: bool = False
    keepalive: int | None = 15
    permit_on_send: bool = True
    bind_after: int = 4
    allocate_again: bool = False
    redirects: int = MAX_REDIRECTS
    accept_limit: int = 128
    software: str | None = None
    stun: StunConfig = _STUN

    def __post_init__(self) -> None:
        if self.local is not None and self.local.is_ipv6 is not self.server.address.is_ipv6:
            raise UsageError(f"{self.server.address} cannot be reached from {self.local}")
        if self.lifetime is not None and not 0 < self.lifetime <= 0xFFFFFFFF:
            raise UsageError(f"a lifetime of {self.lifetime} s")
        if self.keepalive is not None and self.keepalive < 1:
            raise UsageError(f"a keepalive each {self.keepalive} s")
        if self.tcp:
            if self.server.transport not in (Transport.TCP, Transport.TLS):
                # RFC 6062 section 4.1: "TCP allocations cannot be obtained using a UDP
                # association between client and server."
                raise UsageError("relaying TCP needs a TCP or TLS connection to the server")
            if self.dont_fragment or self.even_port or self.reservation_token is not None:
                raise UsageError("even ports, reservations and DF are for UDP (RFC 6062 section 4)")
        if self.reserve_next and not self.even_port:
            raise UsageError("the next port can be reserved only after an even port")
        if self.reservation_token is not None:
            if len(self.reservation_token) != 8:
                raise UsageError("a reservation token has 8 octets")
            if self.even_port or self.family is not None:
                # RFC 8656 section 7.1 excludes EVEN-PORT and both family attributes.
                raise UsageError("what a reservation token stands for has been chosen already")
        if self.family == "dual" and self.reserve_next:
            raise UsageError("a dual allocation cannot reserve the next port (RFC 8656 7.1)")
