"""A report in plain words: the verdict, and what a person can do about it.

Everything here is pure.  ``complete`` fills in the parts of a :class:`~nattype.report.Report` that
follow from its measurements, so that whoever made the measurements need not know how they read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from nattype.model import Allocation, Hairpin, Mapping, NatType
from nattype.peers import reach
from nattype.report import FamilyReport, Outcome, Report, TcpReport, UdpReport

FAMILY_NAMES = {"ipv4": "IPv4", "ipv6": "IPv6"}

_YOU_ARE: dict[NatType, str] = {
    NatType.OPEN: "You have a public address and nothing filters: anybody can reach you directly",
    NatType.SYMMETRIC_FIREWALL: (
        "You have a public address and no NAT, but a firewall lets in only answers to what you sent"
    ),
    NatType.FULL_CONE: (
        "You are behind a full cone NAT: once you have sent anything, anybody can reach you at "
        "your external address and port"
    ),
    NatType.RESTRICTED_CONE: (
        "You are behind a restricted cone NAT: whoever you have sent something to can reach you, "
        "from any port"
    ),
    NatType.PORT_RESTRICTED_CONE: (
        "You are behind a port-restricted cone NAT, the ordinary home router: a peer can reach you "
        "directly once you have sent something to it"
    ),
}

_SHORT: dict[NatType, str] = {
    NatType.OPEN: "nothing stands in the way",
    NatType.SYMMETRIC_FIREWALL: "a firewall lets in only answers to what you sent",
    NatType.FULL_CONE: "it is a full cone NAT",
    NatType.RESTRICTED_CONE: "it is a restricted cone NAT",
    NatType.PORT_RESTRICTED_CONE: "it is a port-restricted cone NAT",
    NatType.SYMMETRIC: "it is a symmetric NAT",
    NatType.UDP_BLOCKED: "nothing gets through",
    NatType.TCP_BLOCKED: "nothing gets through",
}

# What is known without the filter; a mapping that depends on the peer is symmetric in any case.
_KNOWN_MAPPING: dict[Mapping, str] = {
    Mapping.NONE: "there is no NAT",
    Mapping.ENDPOINT_INDEPENDENT: (
        "there is a NAT that shows every peer the same address and port (a cone of some kind)"
    ),
}


def verdict(report: Report) -> str:
    """Return the answer in one or two sentences, from everything in ``report`` but its verdict."""
    udp, tcp = report.udp, report.tcp
    first, second = (udp, tcp) if udp is not None else (tcp, None)
    if first is None:
        return "Nothing was tested."
    if not _anything_known(udp) and not _anything_known(tcp):
        return _mute(report)
    if first.nat_type is NatType.UDP_BLOCKED:
        # The protocol that works says what stands in the way.
        blocked = "UDP does not get through from here"
        if second is None:
            return f"{blocked}."
        if second.nat_type is NatType.TCP_BLOCKED:
            return f"{blocked}, and neither does TCP."
        return f"{blocked}. Over TCP: {_headline(second, report)}."
    if first.nat_type is NatType.TCP_BLOCKED:
        return "TCP does not get through from here."
    sentences = [f"{_headline(first, report)}."]
    if second is not None and not _alike(first, second, report):
        sentences.append(_over_tcp(second, report))
    return " ".join(sentences)


def not_offered(report: Report, test: str) -> bool:
    """Whether a test was left out because it takes what the servers asked do not offer."""
    made = {item.outcome for item in report.evidence if item.test == test}
    return made == {Outcome.SKIPPED}


def _anything_known(path: UdpReport | TcpReport | None) -> bool:
    return path is not None and (
        path.nat_type is not NatType.INCONCLUSIVE
        or path.mapping is not Mapping.UNKNOWN
        or path.mapped_address is not None
    )


def _mute(report: Report) -> str:
    names = ", ".join(report.servers)
    asked = f" ({names})" if 0 < len(names) < 60 else ""
    return (
        f"Inconclusive: no STUN server answered{asked}, so nothing can be said about the way out."
    )


def _alike(udp: UdpReport | TcpReport, tcp: UdpReport | TcpReport, report: Report) -> bool:
    same_kind = udp.nat_type is tcp.nat_type
    if udp.nat_type is NatType.INCONCLUSIVE:
        said_of_both = udp.mapping in _KNOWN_MAPPING or report.behind_nat is True
        answered = None not in (udp.mapped_address, tcp.mapped_address)
        return same_kind and udp.mapping is tcp.mapping and answered and said_of_both
    patterns = {udp.allocation.pattern, tcp.allocation.pattern} - {Allocation.UNKNOWN}
    return same_kind and (udp.nat_type is not NatType.SYMMETRIC or len(patterns) < 2)


def _headline(path: UdpReport | TcpReport, report: Report) -> str:
    match path.nat_type:
        case NatType.SYMMETRIC:
            text = f"You are behind a symmetric NAT: {_symmetric(path)}"
        case NatType.INCONCLUSIVE:
            return _inconclusive(path, report)
        case other:
            text = _YOU_ARE[other]
    if report.layers is not None and report.layers > 1 and "behind a " in text:
        # Two boxes act as the stricter of both, which is what was measured.
        text = text.replace(
            "behind a ", f"behind {_count(report.layers)} layers of NAT, together a "
        )
        text = text.replace(", the ordinary home router", "")
    return text


def _count(layers: int) -> str:
    return {2: "two", 3: "three"}.get(layers, str(layers))


def _symmetric(path: UdpReport | TcpReport) -> str:
    whom = (
        "every address you contact"
        if path.mapping is Mapping.ADDRESS_DEPENDENT
        else "every peer you contact"
    )
    match path.allocation.pattern:
        case Allocation.SEQUENTIAL:
            return f"{whom} sees you at another port, the next in a sequence that can be predicted"
        case Allocation.RANDOM:
            return f"{whom} sees you at another port, chosen at random"
        case _:
            return f"{whom} sees you at another port"


def _unmeasured(path: UdpReport | TcpReport, report: Report) -> str:
    """Return the end of a sentence about a path of which the mapping alone is known."""
    tcp = isinstance(path, TcpReport)
    what = "whether a firewall filters" if path.mapping is Mapping.NONE else "whom it lets in"
    if not not_offered(report, "tcp.filtering" if tcp else "udp.filtering"):
        return f"but {what} could not be measured"
    takes = "dials back" if tcp else "has a second address"
    return f"but {what} is told only by a server that {takes}"


def _inconclusive(path: UdpReport | TcpReport, report: Report) -> str:
    over = "TCP" if isinstance(path, TcpReport) else "UDP"
    known = _KNOWN_MAPPING.get(path.mapping)
    if known is not None:
        what = "over TCP " if over == "TCP" else ""
        return f"Inconclusive: {what}{known}, {_unmeasured(path, report)}"
    if path.mapped_address is None:
        return f"Inconclusive: no server answered over {over}"
    if report.behind_nat:
        return "Inconclusive: there is a NAT, but too few addresses answered to tell of which kind"
    return (
        f"Inconclusive: a server answered over {over}, but not enough tests succeeded to tell what "
        "stands in the way"
    )


def _over_tcp(tcp: UdpReport | TcpReport, report: Report) -> str:
    if tcp.nat_type is NatType.INCONCLUSIVE:
        known = _KNOWN_MAPPING.get(tcp.mapping)
        if known is None and tcp.mapped_address is None:
            return "Over TCP no server answered, so nothing can be said of it."
        if known is None:
            return "Over TCP a server answered, but not enough tests succeeded to tell more."
        return f"Over TCP {known}, {_unmeasured(tcp, report)}."
    if tcp.nat_type is NatType.TCP_BLOCKED:
        return "TCP does not get through."
    if tcp.nat_type is NatType.SYMMETRIC:
        return f"Over TCP it is a symmetric NAT: {_symmetric(tcp)}."
    return f"Over TCP {_SHORT[tcp.nat_type]}."


def advice(report: Report) -> tuple[str, ...]:
    """Return what to do about it, the most useful first; empty when there is nothing to do."""
    return tuple(dict.fromkeys(_advice(report)))


def _advice(report: Report) -> Iterator[str]:
    udp, tcp = report.udp, report.tcp
    if not report.conclusive:
        yield from _advice_inconclusive(report)
    elif tcp is not None and tcp.nat_type is NatType.INCONCLUSIVE:
        yield _ASK_ONE_THAT_DIALS_BACK
    types = {path.nat_type for path in (udp, tcp) if path is not None}
    better = _better_family(report)
    if better is not None:
        yield f"Prefer {better}: there is no NAT on it."
    if NatType.UDP_BLOCKED in types:
        yield (
            "Ask for UDP to be let out; until then use a TURN relay over TCP, or over TLS on port "
            "443, which most networks let through."
        )
    if NatType.TCP_BLOCKED in types:
        yield "Ask for TCP to be let out; TCP that is blocked cannot be relayed (RFC 6062)."
    if NatType.SYMMETRIC in types:
        yield (
            "Keep a TURN relay at hand: two symmetric NATs with random ports cannot meet directly."
        )
        if report.layers is None or report.layers < 2:
            yield (
                "On the router: forward a port, allow port mapping (PCP, NAT-PMP or UPnP), or "
                'choose the "cone" or "open" NAT type if it has one.'
            )
    elif NatType.PORT_RESTRICTED_CONE in types:
        yield (
            "Peers behind a symmetric NAT cannot simply be reached; forward a port on the router, "
            "or keep a TURN relay at hand for them."
        )
    if types & _MAYBE_THE_HOSTS_FILTER:
        yield (
            "Look at this host's own firewall too: it may be what filters, which from outside "
            "looks like the NAT's doing."
        )
    if NatType.SYMMETRIC_FIREWALL in types:
        yield "To be reachable for everybody, let your port in on the firewall."
    if report.layers is not None and report.layers > 1:
        yield (
            "A port forwarded on your own router is not enough, the outer NAT is your carrier's: "
            "ask for a public address, or use IPv6."
        )
    if udp is not None:
        yield from _advice_udp(udp)
    if tcp is not None and tcp.simultaneous_open is False:
        yield (
            "TCP holes cannot be punched from this side (no simultaneous open, against RFC 5382 "
            "REQ-2): let the other side's NAT take the inbound SYN."
        )


def _advice_inconclusive(report: Report) -> Iterator[str]:
    if not any(map(_anything_known, (report.udp, report.tcp))):
        yield "Check that the network is up and that the names of the servers are right."
        yield "Ask another server: natcheck --server HOST[:PORT]."
    elif report.culprits:
        yield (
            "The servers named as untrustworthy are the reason; ask others: "
            "natcheck --server HOST[:PORT]."
        )
    elif report.udp is not None and not_offered(report, "udp.filtering"):
        if report.udp.mapping is Mapping.UNKNOWN:
            yield "Ask two servers, which tell the mapping: natcheck --server ONE --server OTHER."
        yield (
            "Ask a server with two addresses (RFC 5780), as natcheck serve runs on a machine that "
            "has two: natcheck --server HOST[:PORT]."
        )
    elif not_offered(report, "tcp.filtering"):
        yield _ASK_ONE_THAT_DIALS_BACK
    else:
        yield (
            "Run it again, or ask a server with two addresses (RFC 5780): "
            "natcheck --server HOST[:PORT]."
        )


_ASK_ONE_THAT_DIALS_BACK = (
    "How TCP connections from outside are met is told by a server that dials back, as one run with "
    "natcheck serve does: natcheck --server HOST[:PORT]."
)
# Behind these NATs a firewall of the host's own cannot be told from the NAT's filter.
_MAYBE_THE_HOSTS_FILTER = {NatType.RESTRICTED_CONE, NatType.PORT_RESTRICTED_CONE}


def _advice_udp(udp: UdpReport) -> Iterator[str]:
    if udp.remaps_after_inbound:
        yield (
            "A peer that sends first costs you the mapping: send first yourself, or have the peer "
            "send its first packet with a low TTL."
        )
    if udp.mapping_stable is False:
        yield "The mapping changed while it was in use: renew candidates often."
    if udp.address_pooling_paired is False:
        yield (
            "Your sockets show several external addresses (RFC 4787 REQ-2 asks for one): offer a "
            "candidate for each socket, never one port under another socket's address."
        )
    if udp.hairpinning is Hairpin.NONE and udp.mapping is not Mapping.NONE:
        yield (
            "Hosts behind this NAT cannot meet at external addresses (no hairpinning): offer local "
            "addresses too."
        )
    if udp.fragments is False:
        yield "Fragments are dropped: keep datagrams below the path's MTU, 1200 octets to be safe."
    if udp.keepalive is not None:
        yield f"Send a keepalive every {udp.keepalive:g} seconds."


def _better_family(report: Report) -> str | None:
    other = report.other_family
    if other is None or not _behind_translation(report.udp or report.tcp):
        return None
    return FAMILY_NAMES[other.family] if _untranslated(other) else None


def _behind_translation(path: UdpReport | TcpReport | None) -> bool:
    return path is not None and path.mapping not in (Mapping.NONE, Mapping.UNKNOWN)


def _untranslated(other: FamilyReport) -> bool:
    path = other.udp or other.tcp
    return path is not None and path.mapping is Mapping.NONE


def complete(report: Report) -> Report:
    """Return ``report`` with the peers and the verdict that follow from its measurements."""
    return replace(report, peers=reach(report.udp, report.tcp), verdict=verdict(report))
