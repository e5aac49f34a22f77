"""Who can connect to whom: the pair matrix as data, and two people's reports compared.

Theory of operation.  For traversal a path is one of six kinds.  A firewall without a NAT counts as
the cone whose filter it has, because a hole is punched through it in the same way.  A measurement
that is missing widens a report to *several* kinds; the answer is given where all of them agree, and
is "unknown" where they differ.  So a report that knows only the mapping (two ordinary STUN servers
give that) still says most of what a person asks.
"""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from itertools import product

from nattype.model import Allocation, Filtering, Hairpin, Mapping, NatType
from nattype.report import PeerReach, Reach, Report, TcpReport, UdpReport


class PeerKind(StrEnum):
    """What a peer can be behind, as far as connecting to it goes."""

    OPEN = "open"
    FULL_CONE = "full cone"
    RESTRICTED_CONE = "restricted cone"
    PORT_RESTRICTED_CONE = "port-restricted cone"
    SYMMETRIC_SEQUENTIAL = "symmetric sequential"
    SYMMETRIC = "symmetric"


_O, _FC, _AR, _PR, _SS, _SR = PeerKind
_D, _P, _B, _R = Reach.DIRECT, Reach.PREDICTION, Reach.BIRTHDAY, Reach.RELAY

_ROWS: dict[PeerKind, tuple[Reach, ...]] = {
    # against O   FC  AR  PR  SS  SR
    _O: (_D, _D, _D, _D, _D, _D),
    _FC: (_D, _D, _D, _D, _D, _D),
    _AR: (_D, _D, _D, _D, _D, _D),
    _PR: (_D, _D, _D, _D, _P, _B),
    _SS: (_D, _D, _D, _P, _P, _B),
    _SR: (_D, _D, _D, _B, _B, _R),
}
MATRIX: dict[tuple[PeerKind, PeerKind], Reach] = {
    (mine, theirs): how
    for mine, row in _ROWS.items()
    for theirs, how in zip(PeerKind, row, strict=True)
}
"""How a path of the first kind and one of the second meet; the same for UDP and TCP.

A cell of AR with SS or SR is direct although the symmetric side's next port is unknown: the
restricted side sends one packet (TCP: one SYN) to any port of the peer's address, which opens its
filter for that address, and the symmetric side makes the connection.
"""

_CONE_OF: dict[Filtering, PeerKind] = {
    Filtering.NONE: _FC,
    Filtering.ENDPOINT_INDEPENDENT: _FC,
    Filtering.ADDRESS_DEPENDENT: _AR,
    Filtering.ADDRESS_AND_PORT_DEPENDENT: _PR,
}
_BY_TYPE: dict[NatType, PeerKind] = {
    NatType.OPEN: _O,
    NatType.FULL_CONE: _FC,
    NatType.RESTRICTED_CONE: _AR,
    NatType.PORT_RESTRICTED_CONE: _PR,
}

# Cells in which both filters are shut for strangers, so that a TCP connection exists only if a SYN
# passes inwards where one went out before (RFC 5382 REQ-2).
_OPEN_TO_STRANGERS = frozenset({_O, _FC})

_RANK = (_D, _P, _B, _R, Reach.NONE, Reach.UNKNOWN)
"""From the best way to connect to the worst."""

EPHEMERAL_PORTS = 64512
"""Ports 1024 to 65535, from which a NAT that allocates at random draws (RFC 6056 section 3.2)."""
BIRTHDAY_SOCKETS = 256


def birthday_probability(
    probes: int, sockets: int = BIRTHDAY_SOCKETS, ports: int = EPHEMERAL_PORTS
) -> float:
    """Return the chance, 0 to 1, that one of ``probes`` distinct random ports hits a mapping.

    The symmetric side opens ``sockets`` mappings, the other side probes ports of its address.
    """
    if probes + sockets > ports:
        return 1.0
    # Drawing without replacement: C(ports - sockets, probes) / C(ports, probes) is the chance of
    # no hit.  In logarithms, for the binomials themselves are enormous.
    miss = (
        math.lgamma(ports - sockets + 1)
        - math.lgamma(ports - sockets - probes + 1)
        - math.lgamma(ports + 1)
        + math.lgamma(ports - probes + 1)
    )
    return -math.expm1(miss)


def birthday_probes(
    probability: float, sockets: int = BIRTHDAY_SOCKETS, ports: int = EPHEMERAL_PORTS
) -> int:
    """Return the smallest number of probes with at least this chance (0 to 1) of a hit."""
    low, high = 0, ports
    while low < high:
        middle = (low + high) // 2
        if birthday_probability(middle, sockets, ports) >= probability:
            high = middle
        else:
            low = middle + 1
    return low


def kinds(path: UdpReport | TcpReport) -> frozenset[PeerKind]:
    """Return every kind that this path may be, given what was measured; empty when nothing passes.

    One kind for a conclusive report; several when a measurement is missing.
    """
    match path.nat_type:
        case NatType.UDP_BLOCKED | NatType.TCP_BLOCKED:
            return frozenset()
        case NatType.SYMMETRIC:
            return frozenset({_symmetric(path)})
        case NatType.SYMMETRIC_FIREWALL:
            return frozenset({_AR if path.filtering is Filtering.ADDRESS_DEPENDENT else _PR})
        case NatType.INCONCLUSIVE:
            return frozenset(_possible(path))
        case conclusive:
            return frozenset({_BY_TYPE[conclusive]})


def _symmetric(path: UdpReport | TcpReport) -> PeerKind:
    # A pattern that was not established counts as random: birthday probing finds sequential ports
    # too, while a prediction finds no random one.
    return _SS if path.allocation.pattern is Allocation.SEQUENTIAL else _SR


def _possible(path: UdpReport | TcpReport) -> Iterable[PeerKind]:
    mappings = [m for m in Mapping if m is not Mapping.UNKNOWN]
    filters = [f for f in Filtering if f is not Filtering.UNKNOWN]
    if path.mapping is not Mapping.UNKNOWN:
        mappings = [path.mapping]
    if path.filtering is not Filtering.UNKNOWN:
        filters = [path.filtering]
    for mapping, filtering in product(mappings, filters):
        match mapping:
            case Mapping.NONE:
                cone = _CONE_OF[filtering]
                yield _O if cone is _FC else cone
            case Mapping.ENDPOINT_INDEPENDENT:
                yield _CONE_OF[filtering]
            case _:
                yield _symmetric(path)


def _passes(path: UdpReport | TcpReport | None) -> bool | None:
    """Whether packets of this protocol come and go at all; ``None`` when that is not known."""
    if path is None:
        return None
    if path.nat_type in (NatType.UDP_BLOCKED, NatType.TCP_BLOCKED):
        return False
    seen = path.nat_type is not NatType.INCONCLUSIVE or path.mapped_address is not None
    return True if seen or path.mapping is not Mapping.UNKNOWN else None


def _any_of(first: bool | None, second: bool | None) -> bool | None:
    if first or second:
        return True
    return None if first is None or second is None else False


def _all_of(first: bool | None, second: bool | None) -> bool | None:
    if first is False or second is False:
        return False
    return None if first is None or second is None else True


_RELAYED: dict[bool | None, Reach] = {True: _R, False: Reach.NONE, None: Reach.UNKNOWN}


def _meet(mine: frozenset[PeerKind], theirs: frozenset[PeerKind]) -> Reach:
    found = {MATRIX[pair] for pair in product(mine, theirs)}
    return found.pop() if len(found) == 1 else Reach.UNKNOWN


def reach(udp: UdpReport | None, tcp: TcpReport | None) -> dict[str, PeerReach]:
    """Return how peers of each kind can be reached, by the kind's name, in the order of difficulty.

    A peer is taken to pass both protocols and to allow TCP's simultaneous open (RFC 5382 REQ-2).
    UDP that is blocked can still be relayed by TURN over TCP (RFC 8656 section 3.1); TCP that is
    blocked cannot be replaced, since a relayed TCP connection needs one to the relay (RFC 6062).
    """
    relayed = _RELAYED[_any_of(_passes(udp), _passes(tcp))]
    result = {}
    for kind in PeerKind:
        ways = []
        for path, otherwise in ((udp, relayed), (tcp, Reach.NONE)):
            passes = _passes(path)
            if path is None or passes is None:
                ways.append(Reach.UNKNOWN)
            elif not passes:
                ways.append(otherwise)
            else:
                ways.append(_meet(kinds(path), frozenset({kind})))
        result[kind.value] = PeerReach(*ways)
    return result


# Two reports. ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Comparison:
    """Whether and how the makers of two reports can connect."""

    udp: Reach
    tcp: Reach
    best: Reach
    """The better one of the two."""
    udp_family: str | None
    """``ipv4`` or ``ipv6``: over which UDP is best; ``None`` when no family is common."""
    tcp_family: str | None
    same_nat: bool
    """Both show the same external address, so packets between them must be turned round."""
    sentence: str
    """The answer in plain words."""
    reasons: tuple[str, ...]
    """What the answer rests on and what each side has to do, one sentence each."""


@dataclass(frozen=True, slots=True)
class _Side:
    family: str
    udp: UdpReport | None
    tcp: TcpReport | None
    layers: int | None

    @property
    def external(self) -> str | None:
        for path in (self.udp, self.tcp):
            if path is not None and path.mapped_address is not None:
                return path.mapped_address.host
        return None

    @property
    def internal(self) -> str | None:
        for path in (self.udp, self.tcp):
            if path is not None and path.local_address is not None:
                return path.local_address.host
        return None

    @property
    def hairpins(self) -> bool | None:
        if self.udp is None or self.udp.hairpinning is Hairpin.UNKNOWN:
            return None
        return self.udp.hairpinning is not Hairpin.NONE

    @property
    def translated(self) -> bool:
        return self.external is not None and self.external != self.internal


@dataclass(frozen=True, slots=True)
class _Way:
    """What one family offers."""

    family: str
    udp: Reach
    tcp: Reach
    reasons: tuple[str, ...]
    same_nat: bool = False


def _sides(report: Report) -> dict[str, _Side]:
    found = {report.family: _Side(report.family, report.udp, report.tcp, report.layers)}
    other = report.other_family
    if other is not None:
        found[other.family] = _Side(other.family, other.udp, other.tcp, None)
    return {
        family: side
        for family, side in found.items()
        if _any_of(_passes(side.udp), _passes(side.tcp))
    }


def compare(first: Report, second: Report) -> Comparison:
    """Return whether and how the two who made these reports can connect, and why."""
    ours, theirs = _sides(first), _sides(second)
    common = [family for family in ("ipv6", "ipv4") if family in ours and family in theirs]
    if not common:
        return _nothing_common(ours, theirs)
    ways = [_way(ours[family], theirs[family]) for family in common]
    # min keeps the first of equals, and IPv6 stands first: no NAT to keep alive is the better one.
    by_udp = min(ways, key=lambda way: _RANK.index(way.udp))
    by_tcp = min(ways, key=lambda way: _RANK.index(way.tcp))
    best = min(by_udp.udp, by_tcp.tcp, key=_RANK.index)
    used = [by_udp] if by_udp is by_tcp else [by_udp, by_tcp]
    reasons: list[str] = []
    for way in used:
        reasons += way.reasons
    return Comparison(
        udp=by_udp.udp,
        tcp=by_tcp.tcp,
        best=best,
        udp_family=by_udp.family,
        tcp_family=by_tcp.family,
        same_nat=any(way.same_nat for way in used),
        sentence=_sentence(by_udp, by_tcp),
        reasons=tuple(reasons),
    )


def _nothing_common(ours: dict[str, _Side], theirs: dict[str, _Side]) -> Comparison:
    if ours and theirs:
        answer, sentence = _R, "Only through a relay: the two have no address family in common."
        reason = (
            f"The first report has {_names(ours)} only, the second {_names(theirs)} only; "
            "a TURN relay with both families can join them (RFC 8656, REQUESTED-ADDRESS-FAMILY)."
        )
    else:
        answer, sentence = (
            Reach.UNKNOWN,
            "Not known: a report without any answer from a server says nothing about the way out.",
        )
        mute = [name for name, sides in (("first", ours), ("second", theirs)) if not sides]
        reason = f"The {' and the '.join(mute)} report reached no STUN server."
    return Comparison(
        udp=answer,
        tcp=answer,
        best=answer,
        udp_family=None,
        tcp_family=None,
        same_nat=False,
        sentence=sentence,
        reasons=(reason,),
    )


def _names(sides: dict[str, _Side]) -> str:
    return " and ".join(_FAMILY[family] for family in sides)


_FAMILY = {"ipv4": "IPv4", "ipv6": "IPv6"}


def _way(ours: _Side, theirs: _Side) -> _Way:
    notes: tuple[str, ...] = ()
    if ours.external is not None and ours.external == theirs.external and ours.translated:
        # Two neighbours cannot have the same address inside as well.
        if ours.internal != theirs.internal or _layered(ours, theirs):
            return _behind_one_address(ours, theirs)
        notes = (
            f"Both reports show the external address {ours.external} and the local address "
            f"{ours.internal}, as if made on one machine; the answer is for two machines, each "
            "behind a NAT of its own.",
        )
    udp, tcp = _udp(ours, theirs), _tcp(ours, theirs)
    return _Way(ours.family, udp, tcp, (*notes, *_explain(ours, theirs, udp, tcp)))


def _layered(ours: _Side, theirs: _Side) -> bool:
    """Whether a carrier's NAT is on the way: then two homes may be numbered alike."""
    return (ours.layers or 1) > 1 or (theirs.layers or 1) > 1


def _udp(ours: _Side, theirs: _Side) -> Reach:
    both = _all_of(_passes(ours.udp), _passes(theirs.udp))
    if both is None or ours.udp is None or theirs.udp is None:
        return Reach.UNKNOWN
    if not both:
        relayed = [_any_of(_passes(side.udp), _passes(side.tcp)) for side in (ours, theirs)]
        return _RELAYED[_all_of(*relayed)]
    return _meet(kinds(ours.udp), kinds(theirs.udp))


def _tcp(ours: _Side, theirs: _Side) -> Reach:
    both = _all_of(_passes(ours.tcp), _passes(theirs.tcp))
    if both is None or ours.tcp is None or theirs.tcp is None:
        return Reach.UNKNOWN
    if not both:
        return Reach.NONE
    mine, other = kinds(ours.tcp), kinds(theirs.tcp)
    refused = ours.tcp.simultaneous_open is False and theirs.tcp.simultaneous_open is False
    if refused and not (mine | other) & _OPEN_TO_STRANGERS:
        # One side that lets a SYN in after its own went out is enough; here neither does.
        return _R
    return _meet(mine, other)


def _behind_one_address(ours: _Side, theirs: _Side) -> _Way:
    address = ours.external
    shared = f"Both reports show the external address {address}, so they are behind the same NAT."
    if _same_network(ours, theirs):
        return _Way(
            ours.family,
            _D,
            _D,
            (
                shared,
                f"Their local addresses {ours.internal} and {theirs.internal} are on one network: "
                "use these, no packet needs to cross the NAT.",
                "If these do not work, the two are in different homes that are numbered alike, "
                "behind one carrier's NAT: then a relay is left.",
            ),
            same_nat=True,
        )
    # It is one NAT, so a measurement by either of them will do.
    hairpins = theirs.hairpins if ours.hairpins is None else ours.hairpins or theirs.hairpins
    if hairpins:
        udp, tcp = _udp(ours, theirs), _tcp(ours, theirs)
        turned = "It turns packets round (hairpinning), so external addresses work between them."
        return _Way(
            ours.family,
            udp,
            tcp,
            (shared, turned, *_explain(ours, theirs, udp, tcp)),
            same_nat=True,
        )
    advice = (
        f"Try the local addresses {ours.internal} and {theirs.internal} first: they work if "
        "the two networks are routed to each other."
    )
    if hairpins is None:
        turned = "Whether it turns packets round (hairpinning) was not measured."
        return _Way(
            ours.family,
            Reach.UNKNOWN,
            Reach.UNKNOWN,
            (shared, turned, advice),
            same_nat=True,
        )
    turned = "It does not turn packets round (no hairpinning), so external addresses do not work."
    return _Way(ours.family, _R, _R, (shared, turned, advice), same_nat=True)


def _same_network(ours: _Side, theirs: _Side) -> bool:
    if ours.internal is None or theirs.internal is None:
        return False
    if _layered(ours, theirs):
        return False
    mine, other = (ipaddress.ip_address(a.split("%")[0]) for a in (ours.internal, theirs.internal))
    prefix = 24 if mine.version == 4 else 64
    return other in ipaddress.ip_network(f"{mine}/{prefix}", strict=False)


def _explain(ours: _Side, theirs: _Side, udp: Reach, tcp: Reach) -> Iterable[str]:
    """Sentences on what the two paths are and what each side has to do."""
    family = _FAMILY[ours.family]
    if (
        ours.udp is not None
        and theirs.udp is not None
        and ours.tcp is not None
        and theirs.tcp is not None
        and udp is tcp
        and (ours.udp.nat_type, theirs.udp.nat_type) == (ours.tcp.nat_type, theirs.tcp.nat_type)
    ):
        yield _pair_sentence(f"{family}, UDP and TCP", ours.udp, theirs.udp, udp)
    else:
        for name, mine, other, how in (
            ("UDP", ours.udp, theirs.udp, udp),
            ("TCP", ours.tcp, theirs.tcp, tcp),
        ):
            if mine is None or other is None:
                who = "neither report" if mine is other else "only one report"
                yield f"{family}, {name}: {who} has measured it."
            else:
                yield _pair_sentence(f"{family}, {name}", mine, other, how)
    yield from _methods(ours, theirs, udp, tcp)


def _pair_sentence(
    what: str, mine: UdpReport | TcpReport, other: UdpReport | TcpReport, how: Reach
) -> str:
    return f"{what}: {_type_name(mine)} with {_type_name(other)}: {_HOW[how]}."


def _type_name(path: UdpReport | TcpReport) -> str:
    if path.nat_type is NatType.SYMMETRIC:
        pattern = path.allocation.pattern
        return "symmetric" if pattern is Allocation.UNKNOWN else f"symmetric ({pattern} ports)"
    return str(path.nat_type)


_HOW: dict[Reach, str] = {
    Reach.DIRECT: "direct",
    Reach.PREDICTION: "by predicting the next port, 10 to 20 ports tried",
    Reach.BIRTHDAY: (
        f"by birthday probing, {BIRTHDAY_SOCKETS} sockets on the symmetric side and 1024 probes "
        f"on the other for a chance of {100 * birthday_probability(1024):.0f} %"
    ),
    Reach.RELAY: "only through a relay",
    Reach.NONE: "not at all",
    Reach.UNKNOWN: "not known, because a measurement is missing",
}


def _methods(ours: _Side, theirs: _Side, udp: Reach, tcp: Reach) -> Iterable[str]:
    for which, side in (("first", ours), ("second", theirs)):
        if side.udp is not None and side.udp.remaps_after_inbound and udp is _D:
            yield (
                f"The {which} one's NAT changes the mapping when a packet comes in before one went "
                "out: the other side must not knock first, or its first packet must have a low TTL."
            )
        if side.udp is not None and udp is _R and side.udp.nat_type is NatType.UDP_BLOCKED:
            yield f"The {which} one gets no UDP through; reach the relay over TCP or TLS."
        if side.tcp is not None and tcp is Reach.NONE and side.tcp.nat_type is NatType.TCP_BLOCKED:
            yield f"The {which} one gets no TCP through."
    if ours.tcp is None or theirs.tcp is None:
        return
    mine, other = kinds(ours.tcp), kinds(theirs.tcp)
    shut = not (mine | other) & _OPEN_TO_STRANGERS
    if tcp is _D and shut:
        if mine & {_SS, _SR} or other & {_SS, _SR}:
            dialler = "first" if mine & {_SS, _SR} else "second"
            yield (
                "TCP: the restricted side sends one SYN to any port of the peer's address and then "
                f"listens; the {dialler} one, behind the symmetric NAT, dials."
            )
        else:
            yield (
                "TCP: both dial each other from the mapped port at the same time "
                "(simultaneous open, RFC 9293 section 3.5), and go on dialling until one succeeds."
            )
    if tcp is _R and ours.tcp.simultaneous_open is theirs.tcp.simultaneous_open is False:
        yield "TCP: neither NAT lets a SYN in after one went out (RFC 5382 REQ-2 asks for it)."


_ANSWER: dict[Reach, str] = {
    Reach.DIRECT: "directly",
    Reach.PREDICTION: "by port prediction",
    Reach.BIRTHDAY: "by birthday probing",
    Reach.RELAY: "only through a relay",
}


def _sentence(by_udp: _Way, by_tcp: _Way) -> str:
    udp, tcp = by_udp.udp, by_tcp.tcp
    best = min(udp, tcp, key=_RANK.index)
    if best is Reach.UNKNOWN:
        return "Not known: the reports do not measure enough to tell whether these two can connect."
    if best is Reach.NONE:
        return "No: these two can connect neither directly nor through a relay."
    answer = "No, not directly" if best is _R else "Yes"
    if udp is tcp and by_udp.family == by_tcp.family:
        return f"{answer}: {_ANSWER[udp]}, over UDP and over TCP ({_FAMILY[by_udp.family]})."
    parts = []
    for name, how, family in sorted(
        (("UDP", udp, by_udp.family), ("TCP", tcp, by_tcp.family)),
        key=lambda part: _RANK.index(part[1]),
    ):
        if how in _ANSWER:
            parts.append(f"{_ANSWER[how]} over {name} ({_FAMILY[family]})")
        elif how is Reach.NONE:
            parts.append(f"not over {name}")
        else:
            parts.append(f"not known over {name}")
    return f"{answer}: {', '.join(parts)}."
