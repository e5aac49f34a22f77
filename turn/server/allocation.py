"""What the server remembers of a client, once it has proved who it is: plain state, no behaviour.

An :class:`Allocation` is what RFC 8656 section 3.2 calls so: relayed transport addresses
(:class:`Relay`) that belong to one five-tuple (:class:`Flow`), with permissions and channels.
There may be a hundred thousand of them, so every class has slots, and what few clients use is made
when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from stun.discovery import Transport
from stun.sansio import Address, Handle, Instant
from turn.server.config import RelayAddress

if TYPE_CHECKING:
    from stun.auth_server import Accepted as Authentic
    from turn.dataplane.base import Route
    from turn.meter import Meter

DATAGRAMS: Final[Handle] = 0
"""The connection of a flow that has none; machines number sockets from 1, drivers from -1."""

FlowKey: TypeAlias = tuple[Address, Address] | Handle
"""How a flow is found: (client, server) for plain UDP, the connection's handle for all others."""


class Flow(NamedTuple):
    """A five-tuple: RFC 8656 section 2."""

    transport: Transport
    """Between the client and the server."""
    client: Address
    server: Address
    """Where the client's messages come to: a local address, not the advertised one."""
    connection: Handle = DATAGRAMS
    """The client's connection (TCP, TLS, DTLS)."""

    @property
    def key(self) -> FlowKey:
        """How the flow is found."""
        return self.connection or (self.client, self.server)

    @property
    def is_stream(self) -> bool:
        """Whether messages follow each other in a stream of octets (TCP, TLS)."""
        return self.transport is Transport.TCP or self.transport is Transport.TLS


class Relay:
    """A relayed transport address: RFC 8656 section 2.

    ``local`` is where its socket is bound, ``advertised`` what peers see.  ``tcp``: it takes
    connections (RFC 6062) instead of datagrams.
    """

    __slots__ = ("advertised", "expires", "handle", "local", "owner", "place", "tcp", "visitors")

    def __init__(
        self, handle: Handle, local: Address, place: RelayAddress, *, tcp: bool = False
    ) -> None:
        self.handle = handle
        self.local = local
        self.place = place
        self.tcp = tcp
        same = place.advertised == local.host
        self.advertised = local if same else Address(place.advertised, local.port)
        self.owner: Allocation | None = None
        """``None`` while the address is held by a reservation only."""
        self.expires: Instant = 0
        """Each of two relayed transport addresses has a time of its own (RFC 8656 section 8.1)."""
        self.visitors: set[Channel] | None = None
        """Channels, of whomever, that the data plane forwards to this address."""


class Reservation:
    """A relayed transport address that is held for whoever has the token (RESERVATION-TOKEN)."""

    __slots__ = ("account", "client_host", "relay", "token")

    def __init__(self, token: bytes, relay: Relay, account: str, client_host: str) -> None:
        self.token = token
        self.relay = relay
        self.account = account
        self.client_host = client_host
        """With the account, what quotas were charged to: an open port costs whoever holds it."""


class Channel:
    """A channel binding (RFC 8656 section 12)."""

    __slots__ = ("expires", "number", "peer", "relay", "route", "routed_until", "target")

    def __init__(self, number: int, peer: Address, relay: Relay, expires: Instant) -> None:
        self.number = number
        self.peer = peer
        self.relay = relay
        self.expires = expires
        self.route: Route | None = None
        """What was told to the data plane, and until when."""
        self.routed_until: Instant = 0
        self.target: Relay | None = None
        """The relayed transport address, of another client, that the route leads to."""


class Mobility:
    """What a client may move with (RFC 8016)."""

    __slots__ = ("moving", "old_ticket", "old_until", "ticket")

    def __init__(self, ticket: bytes) -> None:
        self.ticket = ticket
        self.old_ticket: bytes | None = None
        """The ticket that was used last.  "a server must retain the old STUN MOBILITY-TICKET
        attribute for a period of at least 30 seconds" (section 3.2.2)."""
        self.old_until: Instant = 0
        self.moving: Flow | None = None
        """The five-tuple that the client has shown itself on and sent no data from yet."""


class Allocation:
    """An allocation.  ``channels`` and ``peers`` are the same bindings, by number and by peer."""

    __slots__ = (
        "account",
        "authentic",
        "channels",
        "client_host",
        "created",
        "expires",
        "flow",
        "meter",
        "mobility",
        "peers",
        "permissions",
        "relays",
        "session",
        "tcp",
        "username",
    )

    def __init__(
        self,
        *,
        session: str,
        username: str,
        account: str,
        flow: Flow,
        relays: tuple[Relay, ...],
        tcp: bool,
        meter: Meter,
        created: Instant,
    ) -> None:
        self.session = session
        self.username = username
        self.account = account
        self.client_host = flow.client.host
        """With the account, what quotas were charged to.  A client moves on, its charge stays."""
        self.authentic: Authentic | None = None
        """Of a client with an access token (RFC 7635): what it proved itself with last."""
        self.flow = flow
        self.relays = relays
        """One, or an IPv4 and an IPv6 one (RFC 8656 section 7.2, ADDITIONAL-ADDRESS-FAMILY)."""
        self.tcp = tcp
        """Whether it relays TCP connections (RFC 6062) instead of datagrams."""
        self.meter = meter
        self.created = created
        self.expires = max([relay.expires for relay in relays])
        self.permissions: dict[str, Instant] = {}
        """When the permission for a peer's host ends."""
        self.channels: dict[int, Channel] = {}
        self.peers: dict[Address, Channel] = {}
        self.mobility: Mobility | None = None
        """Only where the client asked for it."""

    def permits(self, host: str, now: Instant) -> bool:
        """Whether there is a live permission for a peer's host (RFC 8656 section 9)."""
        expires = self.permissions.get(host)
        return expires is not None and now < expires

    def relay_for(self, *, ipv6: bool) -> Relay | None:
        """Return the relayed transport address of a family."""
        for relay in self.relays:
            if relay.place.is_ipv6 is ipv6:
                return relay
        return None
