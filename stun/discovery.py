"""From a URI to transport addresses: RFC 8489 section 8, RFC 5780 section 6.1, RFC 5928, RFC 2782.

Theory of operation.  Finding a server is a conversation with DNS, and which question comes next
depends on the answers before.  So the procedures are generators: they yield a :class:`Query`, are
sent the records that were found (none when the name does not exist or nobody answered), and return
the :class:`Target` list in the order in which it is to be tried.  They open no socket;
:mod:`stun.resolver` asks real name servers, and :func:`run` any :class:`Lookup`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import NamedTuple, Protocol, TypeAlias

from stun.errors import UsageError
from stun.sansio import Address, Entropy
from stun.uri import DEFAULT_PORT, DEFAULT_TLS_PORT, StunUri, TurnUri

MAX_QUERIES = 64
"""Questions that one URI may cost.  Records come from whoever runs the domain and may go in circles
or fan out; honest ones need a handful."""


class Transport(StrEnum):
    """What STUN runs over."""

    UDP = "UDP"
    TCP = "TCP"
    TLS = "TLS"
    DTLS = "DTLS"

    @property
    def is_secure(self) -> bool:
        """Whether the server proves itself with a certificate."""
        return self in (Transport.TLS, Transport.DTLS)

    @property
    def protocol(self) -> str:
        """The protocol label of SRV names."""
        return "udp" if self in (Transport.UDP, Transport.DTLS) else "tcp"

    @property
    def default_port(self) -> int:
        """The port where no SRV record names another one."""
        return DEFAULT_TLS_PORT if self.is_secure else DEFAULT_PORT


class Kind(Enum):
    """What a query asks for."""

    ADDRESS = "A and AAAA"
    SRV = "SRV"
    NAPTR = "NAPTR"


@dataclass(frozen=True, slots=True)
class Query:
    """A question to the name service: records of ``kind`` at ``name``."""

    name: str
    kind: Kind


class Srv(NamedTuple):
    """An SRV record (RFC 2782)."""

    priority: int
    weight: int
    port: int
    target: str


class Naptr(NamedTuple):
    """A NAPTR record (RFC 3403 section 4.1)."""

    order: int
    preference: int
    flags: str
    service: str
    regexp: str
    replacement: str


Record: TypeAlias = Srv | Naptr | str
"""An answer; to an address query it is a numeric address."""

Answer: TypeAlias = Sequence[Record]


@dataclass(frozen=True, slots=True)
class Target:
    """A server to try.

    ``name``: what its certificate has to prove, the host of the URI and not what DNS made of it
    (RFC 5928 section 5); ``None`` where there is no certificate.
    """

    address: Address
    transport: Transport
    name: str | None = None


class DiscoveryError(UsageError):
    """There is nothing to look for: the URI and the transports that are supported do not agree."""


Steps: TypeAlias = Generator[Query, Answer, list[Target]]


class Lookup(Protocol):
    """A name service that answers at once."""

    def __call__(self, query: Query) -> Answer:
        """Return the records, none when there are none."""
        ...


def _bounded(steps: Steps) -> Steps:
    """Answer no more than :data:`MAX_QUERIES` queries, repeated ones from memory.

    All others have no answer, so that circles end.  Targets are given once.
    """
    known: dict[Query, Answer] = {}
    left = MAX_QUERIES
    try:
        query = next(steps)
        while True:
            left -= 1
            if left >= 0 and query not in known:
                known[query] = yield query
            query = steps.send(known[query] if left >= 0 else ())
    except StopIteration as done:
        return list(dict.fromkeys(done.value))


def run(steps: Steps, lookup: Lookup | Callable[[Query], Answer]) -> list[Target]:
    """Carry out a procedure with a name service that answers at once."""
    try:
        query = next(steps)
        while True:
            query = steps.send(lookup(query))
    except StopIteration as done:
        found: list[Target] = done.value
        return found


# RFC 2782 -----------------------------------------------------------------------------------------


def order_srv(records: Iterable[Srv], entropy: Entropy) -> list[Srv]:
    """Return the records in the order in which RFC 2782 tries them.

    The lowest priority first; among equals at random, in proportion to their weights, those of
    weight 0 with "a very small chance of being selected" before others.
    """
    records = list(records)
    ordered: list[Srv] = []
    for priority in sorted({record.priority for record in records}):
        # "arrange all SRV RRs (that have not been ordered yet) in any order, except that all those
        # with weight 0 are placed at the beginning of the list."
        waiting = [record for record in records if record.priority == priority]
        waiting.sort(key=lambda record: record.weight != 0)
        while waiting:
            total = sum(record.weight for record in waiting)
            # "a uniform random number between 0 and the sum computed (inclusive)"
            chosen = int.from_bytes(entropy(8)) % (total + 1)
            running = 0
            for index, record in enumerate(waiting):
                running += record.weight
                if running >= chosen:
                    ordered.append(waiting.pop(index))
                    break
    return ordered


# STUN ---------------------------------------------------------------------------------------------


def stun_targets(
    uri: StunUri,
    *,
    entropy: Entropy,
    transport: Transport | None = None,
    behavior: bool = False,
) -> Steps:
    """Find STUN servers (RFC 8489 section 8.1).

    ``transport``: ``None`` for what the scheme implies, UDP for ``stun`` and TLS for ``stuns`` (RFC
    7064 section 3.2).  ``behavior``: a server for NAT behaviour discovery is wanted, so the records
    of RFC 5780 section 6.1 (``_stun-behavior``) are asked for before the ordinary ones.  Raises
    :class:`DiscoveryError` when the transport is not one of the scheme's.
    """
    if transport is None:
        transport = Transport.TLS if uri.secure else Transport.UDP
    if transport.is_secure is not uri.secure:
        raise DiscoveryError(f"{uri} does not go with {transport.value}")
    return _bounded(_stun_steps(uri, transport, entropy, behavior=behavior))


def _stun_steps(uri: StunUri, transport: Transport, entropy: Entropy, *, behavior: bool) -> Steps:
    name = _to_prove(uri.host, transport)
    if uri.is_address:
        return [_target(uri.host, uri.port, transport, name)]
    if uri.port is not None:
        return (yield from _addresses(uri.host, uri.port, transport, name))
    for service in ("stun-behavior", "stun") if behavior else ("stun",):
        secured = f"{service}s" if uri.secure else service
        found = yield from _srv(uri.host, secured, transport, name, entropy)
        if found is not None:
            return found
    # "If no SRV records are found, the client performs both an A and AAAA record lookup".
    return (yield from _addresses(uri.host, transport.default_port, transport, name))


def _to_prove(host: str, transport: Transport) -> str | None:
    """Return the name for the certificate, "without a trailing dot" (RFC 6066 section 3)."""
    return host.removesuffix(".") if transport.is_secure else None


def _target(host: str, port: int | None, transport: Transport, name: str | None) -> Target:
    return Target(Address(host, port or transport.default_port), transport, name)


def _addresses(host: str, port: int, transport: Transport, name: str | None) -> Steps:
    answer = yield Query(host, Kind.ADDRESS)
    return [
        Target(Address(address, port), transport, name)
        for address in answer
        if isinstance(address, str)
    ]


def _srv(
    host: str, service: str, transport: Transport, name: str | None, entropy: Entropy
) -> Generator[Query, Answer, list[Target] | None]:
    """Follow ``_service._protocol.host``; ``None`` when there are no such records."""
    return (
        yield from _srv_at(f"_{service}._{transport.protocol}.{host}", transport, name, entropy)
    )


def _srv_at(
    owner: str, transport: Transport, name: str | None, entropy: Entropy
) -> Generator[Query, Answer, list[Target] | None]:
    answer = yield Query(owner, Kind.SRV)
    records = [record for record in answer if isinstance(record, Srv)]
    if not records:
        return None
    found: list[Target] = []
    for record in order_srv(records, entropy):
        # "A Target of "." means that the service is decidedly not available at this domain."
        if record.target not in ("", ".") and record.port:
            found += yield from _addresses(record.target.rstrip("."), record.port, transport, name)
    return found


# TURN ---------------------------------------------------------------------------------------------

# RFC 5928 table 1; it stops with an error at the last line, which RFC 7350 section 4.6.2 added.
_TURN_TRANSPORTS = {
    ("udp", False): Transport.UDP,
    ("tcp", False): Transport.TCP,
    ("tcp", True): Transport.TLS,
    ("udp", True): Transport.DTLS,
}

_TAGS = {
    Transport.UDP: "turn.udp",
    Transport.TCP: "turn.tcp",
    Transport.TLS: "turn.tls",
    Transport.DTLS: "turn.dtls",  # RFC 7350 section 4.6.2
}


def turn_targets(
    uri: TurnUri,
    *,
    entropy: Entropy,
    supported: Sequence[Transport] = (Transport.UDP, Transport.TCP, Transport.TLS),
) -> Steps:
    """Find TURN servers (RFC 5928 section 3); ``supported`` is what the client can, best first.

    Raises :class:`DiscoveryError` where the resolution "MUST stop with an error" before any query.
    """
    return _bounded(_turn_steps(uri, _turn_transports(uri, supported), entropy))


def _turn_steps(uri: TurnUri, transports: Sequence[Transport], entropy: Entropy) -> Steps:
    if uri.is_address:  # step 1
        return [_target(uri.host, uri.port, one, _to_prove(uri.host, one)) for one in transports]
    if uri.port is not None:  # step 2
        answer = yield Query(uri.host, Kind.ADDRESS)
        return [
            Target(Address(address, uri.port), one, _to_prove(uri.host, one))
            for one in transports
            for address in answer
            if isinstance(address, str)
        ]
    if uri.transport is None:  # step 4
        found = yield from _follow_naptr(uri.host, transports, entropy)
        if found is not None:
            return found
    # Steps 3 and 5 differ in the number of transports only.
    targets: list[Target] = []
    for transport in transports:
        service = "turns" if transport.is_secure else "turn"
        name = _to_prove(uri.host, transport)
        by_srv = yield from _srv(uri.host, service, transport, name, entropy)
        if by_srv is None:
            by_srv = yield from _addresses(uri.host, transport.default_port, transport, name)
        targets += by_srv
    return targets


def turn_transport(uri: TurnUri) -> Transport | None:
    """Return the TURN transport that a URI asks for (RFC 5928 table 1, RFC 7350 section 4.6.2).

    ``None`` when it leaves the choice open; :class:`DiscoveryError` when it is not known.
    """
    if uri.transport is None:
        return None
    transport = _TURN_TRANSPORTS.get((uri.transport, uri.secure))
    if transport is None:
        raise DiscoveryError(f"{uri}: the transport {uri.transport!r} is unknown")
    return transport


def _turn_transports(uri: TurnUri, supported: Sequence[Transport]) -> list[Transport]:
    transport = turn_transport(uri)
    if transport is None:
        # "filters the list [...] by removing the UDP and TCP TURN transport if <secure> is true"
        allowed = [one for one in supported if one.is_secure or not uri.secure]
        if not allowed:
            raise DiscoveryError(f"{uri} needs a transport that is not supported")
        return allowed
    if transport not in supported:
        raise DiscoveryError(f"{uri} needs {transport.value}, which is not supported")
    return [transport]


def _matching(answer: Answer, transport: Transport) -> list[Naptr]:
    """Return the records for RELAY over ``transport``, the most preferred first."""
    records = []
    for record in answer:
        if isinstance(record, Naptr):
            service, *tags = record.service.lower().split(":")
            # S-NAPTR has no regular expressions: "the REGEXP field is not used" (RFC 3958 2.2.2).
            if service == "relay" and _TAGS[transport] in tags and not record.regexp:
                records.append(record)
    return sorted(records, key=lambda record: (record.order, record.preference))


def _follow_naptr(
    host: str, transports: Sequence[Transport], entropy: Entropy
) -> Generator[Query, Answer, list[Target] | None]:
    """Step 4, the S-NAPTR algorithm of RFC 3958; ``None`` when the first query finds nothing.

    "The order to try the application protocol tags is provided by the ranking of the first set of
    NAPTR records.  If multiple application protocol tags have the same ranking, the preferred order
    set by the application is used."
    """
    first = yield Query(host, Kind.NAPTR)
    ranked = [
        ((record.order, record.preference), rank, transport, record)
        for rank, transport in enumerate(transports)
        for record in _matching(first, transport)
    ]
    if not ranked:
        return None
    ranked.sort(key=lambda entry: entry[:2])
    found: list[Target] = []
    for _, _, transport, record in ranked:
        name = _to_prove(host, transport)
        found += yield from _follow(record, transport, name, entropy)
    return found


def _follow(record: Naptr, transport: Transport, name: str | None, entropy: Entropy) -> Steps:
    replacement = record.replacement.rstrip(".")
    match record.flags.lower():
        case "s":
            return (yield from _srv_at(replacement, transport, name, entropy)) or []
        case "a":
            return (yield from _addresses(replacement, transport.default_port, transport, name))
        case "":
            answer = yield Query(replacement, Kind.NAPTR)
            found: list[Target] = []
            for following in _matching(answer, transport):
                found += yield from _follow(following, transport, name, entropy)
            return found
        case _:
            return []  # RFC 3958 section 2.2.3 knows no other flags


def interleave(targets: Iterable[Target]) -> list[Target]:
    """Alternate the address families, IPv6 first, as RFC 8305 section 4 tries them.

    The order within each family stays.
    """
    ipv6: list[Target] = []
    ipv4: list[Target] = []
    for target in targets:
        (ipv6 if target.address.is_ipv6 else ipv4).append(target)
    mixed = [one for pair in zip(ipv6, ipv4, strict=False) for one in pair]
    both = min(len(ipv6), len(ipv4))
    return mixed + ipv6[both:] + ipv4[both:]
