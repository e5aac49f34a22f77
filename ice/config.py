"""What an agent is told: what to gather, how to check, and how to keep what was found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import ip_address, ip_network
from typing import Final, Literal

from stun.credentials import LongTerm, ThirdParty
from stun.discovery import Target
from stun.errors import UsageError
from stun.sansio import MILLISECOND, SECOND
from stun.transaction import TI

MOST_STREAMS: Final = 256
MOST_COMPONENTS: Final = 256
""""a component ID is an integer between 1 and 256" (RFC 8445 section 5.1.2.1 and 8839)."""


MOST_SIMULTANEOUS: Final = 8
MOST_ATTEMPTS: Final = 64


class Nomination(StrEnum):
    """How the controlling agent chooses."""

    REGULAR = "regular"
    """Check first, then nominate the pair that was chosen (RFC 8445 section 8.1.1)."""
    FIRST = "first"
    """The same, but without waiting for a better pair than the first one that works."""
    AGGRESSIVE = "aggressive"
    """USE-CANDIDATE in every check (RFC 5245 section 8.1.1.2), for peers that expect it."""


class Policy(StrEnum):
    """Which candidates are used at all."""

    ALL = "all"
    RELAY = "relay"
    """Nothing but relays: the peer never learns an address of this host."""


class Tell(StrEnum):
    """Which candidates the peer is told; checks may be sent from all of them.

    What the peer is not told it does not check.  That matters where each endpoint contacted costs a
    port of a NAT whose next ports are to be predicted.
    """

    ALL = "all"
    PUBLIC = "public"
    """None with a private or link-local address (RFC 1918, RFC 4193, RFC 6598)."""
    PREDICTED = "predicted"
    """Only those of :meth:`ice.Agent.predict`."""


class Mdns(StrEnum):
    """What is done with ``.local`` names (draft-ietf-mmusic-mdns-ice-candidates)."""

    OFF = "off"
    RESOLVE = "resolve"
    """Those of the peer are looked up."""
    PUBLISH = "publish"
    """They are, and this host's addresses are hidden behind such names, too."""


@dataclass(frozen=True, slots=True)
class Server:
    """A STUN or TURN server, looked up: where it is, as :mod:`stun.discovery` finds it, in order.

    ``name`` is what it is called in explanations.  With ``turn`` it is a relay.
    """

    name: str
    targets: tuple[Target, ...]
    turn: bool = False
    credentials: LongTerm | ThirdParty | None = None


@dataclass(frozen=True, slots=True)
class Interface:
    """An address of this host that candidates may be gathered on.

    ``preference``: 0 to 65535, no two alike; the greater one is preferred (RFC 8445 section
    5.1.2.2, RFC 8421).  ``name`` is the network interface.  ``advertised``: the public address of a
    one-to-one NAT in front of it, if there is one.  ``mdns``: the ``.local`` name that stands for
    it, where it is to be hidden.
    """

    host: str
    name: str
    preference: int
    advertised: str | None = None
    mdns: str | None = None


@dataclass(frozen=True, slots=True)
class Config:
    """How an agent behaves.  Durations are nanoseconds.  Raises :class:`stun.errors.UsageError`.

    What is gathered: ``udp`` and ``tcp`` candidates, ``ipv4`` and ``ipv6``; ``interfaces`` (names,
    with ``*`` and ``?`` as in a shell) and ``addresses`` (CIDRs) restrict them,
    ``exclude_interfaces`` and ``exclude_addresses`` take some out; ``loopback`` and ``link_local``
    say whether such addresses count; ``ports`` are the ports to bind, both included; ``nat_1to1``
    maps local addresses to the public ones that a NAT in front gives them; ``policy`` and ``mdns``
    hide addresses.
    """

    components: int = 1
    streams: int = 1
    lite: bool = False
    policy: Policy = Policy.ALL
    tell: Tell = Tell.ALL
    udp: bool = True
    tcp: bool = True
    ipv4: bool = True
    ipv6: bool = True
    interfaces: tuple[str, ...] = ()
    exclude_interfaces: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()
    exclude_addresses: tuple[str, ...] = ()
    loopback: bool = False
    link_local: bool = True
    ports: tuple[int, int] | None = None
    nat_1to1: Mapping[str, str] = field(default_factory=dict)
    mdns: Mdns = Mdns.RESOLVE
    simultaneous_open: int = 1
    """Ports for TCP simultaneous open (RFC 6544) on each address and component; 0 for none.  NATs
    that spoil a pair of ports by one failed attempt are got through sooner with 2 or 3."""
    low_ttl_first: bool = False
    """The first SYN of a simultaneous open dies on its way, so that none reaches the peer's NAT
    before the peer's own has gone out: for NATs that take offence.  It costs about a second."""
    relay_tcp: bool = False
    """Relayed TCP candidates as well (RFC 6062), from TURN servers that are reached by TCP."""
    assume_relayed: bool = False
    """Let data pass from relay to relay at once, a round trip before a check has proved the pair:
    no NAT is between two relays.  RFC 8445 section 12.1 wants a valid pair first, so that nobody
    is made to send to somebody who did not ask for it; who sets this sees to it that no more is
    sent than a handshake, before the peer has answered over the pair."""
    gather_timeout: int = 10 * SECOND
    """After which a server that has not answered is given up; nobody waits for it meanwhile."""

    nomination: Nomination = Nomination.REGULAR
    ta: int = 50 * MILLISECOND
    """Between two new checks.  RFC 8445 section 14.2: 50 ms unless another value was agreed on with
    the peer, and never so low that checks are sent "more often than once every 5 ms".  Where ports
    are predicted, 5 ms is the value to agree on: nobody else should take one meanwhile."""
    opening_ttl: int | None = None
    """How far a packet goes that precedes the first check to each server-reflexive candidate of the
    peer over UDP: it opens this side's NAT and does not reach the peer's, which may resent what
    comes before its own side has sent.  2 passes one NAT.  ``None``: there is none."""
    opening_wait: int = 300 * MILLISECOND
    """How long the check follows after that: so much may the peer be later."""
    tcp_attempts: int = 5
    """TCP connections that are dialled at a time at one IP address of the peer: an agent "SHOULD
    NOT have more than 5" (RFC 6544 section 12), but predicted ports are worth more."""
    rto: int = 500 * MILLISECOND
    """The least retransmission time of a check (RFC 8445 section 14.3)."""
    ti: int = TI
    """For how long a check over TCP may stay without an answer (RFC 8489 section 6.2.2)."""
    patience: int = 39_500 * MILLISECOND
    """How long at least a checklist without a valid pair is not failed (RFC 8863)."""
    most_pairs: int = 100
    """Of one checklist (RFC 8445 section 6.1.2.5)."""
    most_remote: int = 256
    """Remote candidates of one stream that are taken."""

    consent: bool = True
    """Ask for consent and stop sending without it (RFC 7675)."""
    consent_interval: int = 5 * SECOND
    consent_timeout: int = 30 * SECOND
    keepalive: int = 15 * SECOND
    """Tr (RFC 8445 section 11), where there is no consent."""
    monitor: bool = True
    """Go on measuring the other valid pairs, and change to a better one."""
    monitor_interval: int = 5 * SECOND

    watch_network: int = 3 * SECOND
    """How often at least to look whether this host has other addresses; 0: not at all."""
    timeline: int = 0
    """How many checks and events are kept for :meth:`ice.Agent.write_timeline`; 0: none."""
    receive_buffer: int = 1024
    """Packets kept for whoever reads; the newest are dropped, and counted, beyond."""
    software: str | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.components <= MOST_COMPONENTS:
            raise UsageError(f"{self.components} components: 1 to {MOST_COMPONENTS}")
        if not 1 <= self.streams <= MOST_STREAMS:
            raise UsageError(f"{self.streams} streams: 1 to {MOST_STREAMS}")
        if self.ports is not None and not 1 <= self.ports[0] <= self.ports[1] <= 0xFFFF:
            raise UsageError(f"{self.ports} is not a range of ports: 1-65535, the lower one first")
        for text in (*self.addresses, *self.exclude_addresses):
            try:
                ip_network(text, strict=False)
            except ValueError as wrong:
                raise UsageError(str(wrong)) from None
        for text in (*self.nat_1to1, *self.nat_1to1.values()):
            try:
                ip_address(text)
            except ValueError as wrong:
                raise UsageError(f"nat_1to1: {wrong}") from None
        if not 0 <= self.simultaneous_open <= MOST_SIMULTANEOUS:
            text = f"{self.simultaneous_open} ports for simultaneous open: at most"
            raise UsageError(f"{text} {MOST_SIMULTANEOUS}")
        if self.opening_ttl is not None and not 1 <= self.opening_ttl <= 255:
            raise UsageError(f"opening_ttl {self.opening_ttl}: 1 to 255 hops")
        if not 1 <= self.tcp_attempts <= MOST_ATTEMPTS:
            raise UsageError(f"tcp_attempts {self.tcp_attempts}: 1 to {MOST_ATTEMPTS}")
        for name in ("ta", "rto", "ti", "consent_interval", "consent_timeout", "keepalive"):
            if getattr(self, name) <= 0:
                raise UsageError(f"{name} must be positive")


Role = Literal["controlling", "controlled"]


@dataclass(frozen=True, slots=True)
class Credentials:
    """Username fragment and password of one side (RFC 8445 section 5.3)."""

    ufrag: str
    password: str

    def __post_init__(self) -> None:
        if not 4 <= len(self.ufrag) <= 256:
            raise UsageError(f"a username fragment has 4 to 256 characters, not {len(self.ufrag)}")
        if not 22 <= len(self.password) <= 256:
            raise UsageError(f"a password has 22 to 256 characters, not {len(self.password)}")
