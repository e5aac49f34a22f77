"""The behaviour of a NAT as axes (RFC 4787, RFC 5382), and the kinds that have a name.

One model serves everything: ``natcheck`` reports in these terms, the laboratory builds kernel NATs
and simulated NATs from them, and a test compares what was built with what was found.  Values are
plain and frozen; nothing here does I/O.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Mapping(StrEnum):
    """How an external address and port is chosen and reused (RFC 4787 section 4.1)."""

    NONE = "none"
    ENDPOINT_INDEPENDENT = "endpoint-independent"
    ADDRESS_DEPENDENT = "address-dependent"
    ADDRESS_AND_PORT_DEPENDENT = "address-and-port-dependent"
    UNKNOWN = "unknown"


class Filtering(StrEnum):
    """From whom an inbound packet to a mapping is let through (RFC 4787 section 5)."""

    NONE = "none"
    ENDPOINT_INDEPENDENT = "endpoint-independent"
    ADDRESS_DEPENDENT = "address-dependent"
    ADDRESS_AND_PORT_DEPENDENT = "address-and-port-dependent"
    UNKNOWN = "unknown"


class Allocation(StrEnum):
    """Which external port a new mapping gets (RFC 4787 section 4.2)."""

    PRESERVED = "preserved"
    SEQUENTIAL = "sequential"
    RANDOM = "random"
    UNKNOWN = "unknown"


class Hairpin(StrEnum):
    """What becomes of a packet from inside to a mapping's external address (RFC 4787 section 6)."""

    EXTERNAL = "external"
    """It arrives, with the sender's external address as its source, as REQ-9 demands."""
    INTERNAL = "internal"
    """It arrives, but shows the sender's internal address."""
    NONE = "none"
    UNKNOWN = "unknown"


class Unsolicited(StrEnum):
    """What an uninvited TCP SYN from outside meets (RFC 5382 section 4.3)."""

    OPEN = "open"
    DROP = "drop"
    RST = "rst"
    ICMP = "icmp"
    UNKNOWN = "unknown"


class NatType(StrEnum):
    """The classic names (RFC 3489 section 5) for the combinations of the axes."""

    OPEN = "open"
    SYMMETRIC_FIREWALL = "symmetric firewall"
    FULL_CONE = "full cone"
    RESTRICTED_CONE = "restricted cone"
    PORT_RESTRICTED_CONE = "port-restricted cone"
    SYMMETRIC = "symmetric"
    UDP_BLOCKED = "udp blocked"
    TCP_BLOCKED = "tcp blocked"
    INCONCLUSIVE = "inconclusive"


def nat_type(mapping: Mapping, filtering: Filtering) -> NatType:
    """Return the classic name for a mapping and a filtering behaviour.

    RFC 3489's four cones differ in filtering only; every mapping that depends on the destination is
    "symmetric" whatever the filter.  A missing measurement gives ``INCONCLUSIVE`` unless the other
    one alone decides.
    """
    match mapping:
        case Mapping.ADDRESS_DEPENDENT | Mapping.ADDRESS_AND_PORT_DEPENDENT:
            return NatType.SYMMETRIC
        case Mapping.UNKNOWN:
            return NatType.INCONCLUSIVE
        case Mapping.NONE:
            match filtering:
                case Filtering.NONE | Filtering.ENDPOINT_INDEPENDENT:
                    return NatType.OPEN
                case Filtering.UNKNOWN:
                    return NatType.INCONCLUSIVE
                case _:
                    return NatType.SYMMETRIC_FIREWALL
        case Mapping.ENDPOINT_INDEPENDENT:
            match filtering:
                case Filtering.NONE | Filtering.ENDPOINT_INDEPENDENT:
                    return NatType.FULL_CONE
                case Filtering.ADDRESS_DEPENDENT:
                    return NatType.RESTRICTED_CONE
                case Filtering.ADDRESS_AND_PORT_DEPENDENT:
                    return NatType.PORT_RESTRICTED_CONE
                case Filtering.UNKNOWN:
                    return NatType.INCONCLUSIVE


@dataclass(frozen=True, slots=True)
class Lifetimes:
    """Seconds after which an idle mapping is gone (RFC 4787 section 4.3, RFC 5382 section 5).

    Linux, like many home routers, has two for UDP: one until a reply was seen for over two seconds,
    a longer one afterwards.
    """

    udp_one_shot: float = 30.0
    udp_stream: float = 120.0
    tcp_established: float = 7440.0


@dataclass(frozen=True, slots=True)
class NatModel:
    """One box on the path: a NAT, or with ``Mapping.NONE`` a stateful firewall without NAT."""

    mapping: Mapping = Mapping.ENDPOINT_INDEPENDENT
    filtering: Filtering = Filtering.ADDRESS_AND_PORT_DEPENDENT
    allocation: Allocation = Allocation.PRESERVED
    delta: int = 1
    """Step between successive external ports when the allocation is sequential."""
    hairpin: bool = False
    unsolicited_tcp: Unsolicited = Unsolicited.DROP
    udp_blocked: bool = False
    tcp_blocked: bool = False
    remaps_after_inbound: bool = False
    """The inbound-first poison: an uninvited packet leaves state that costs a later outbound flow
    its mapping (plain masquerade whose router accepts input)."""
    lifetimes: Lifetimes = Lifetimes()


@dataclass(frozen=True, slots=True)
class Link:
    """What a path does to packets, in each direction."""

    loss: float = 0.0
    """Probability that a packet is lost, 0 to 1."""
    delay: float = 0.0
    """Seconds one way."""
    jitter: float = 0.0
    """Seconds: up to this much is added to ``delay``, so packets may overtake each other."""
    mtu: int = 1500


@dataclass(frozen=True, slots=True)
class Kind:
    """A named situation: the boxes between a host and the public network, host side first."""

    name: str
    summary: str
    boxes: tuple[NatModel, ...] = ()

    @property
    def expected(self) -> Expected:
        """What a correct diagnosis of this kind says."""
        return _expected(self.boxes)


@dataclass(frozen=True, slots=True)
class Expected:
    """The verdict that a kind must get."""

    udp: NatType
    tcp: NatType
    mapping: Mapping
    filtering: Filtering
    allocation: Allocation


_MAPPING_ORDER = (
    Mapping.NONE,
    Mapping.ENDPOINT_INDEPENDENT,
    Mapping.ADDRESS_DEPENDENT,
    Mapping.ADDRESS_AND_PORT_DEPENDENT,
)
_FILTERING_ORDER = (
    Filtering.NONE,
    Filtering.ENDPOINT_INDEPENDENT,
    Filtering.ADDRESS_DEPENDENT,
    Filtering.ADDRESS_AND_PORT_DEPENDENT,
)
_ALLOCATION_ORDER = (Allocation.PRESERVED, Allocation.SEQUENTIAL, Allocation.RANDOM)


def _expected(boxes: tuple[NatModel, ...]) -> Expected:
    # A chain of boxes behaves like its most restrictive member on each axis: a packet passes only
    # if all let it pass, and the outermost mapping is stable only if every inner one is.
    mapping = max((b.mapping for b in boxes), key=_MAPPING_ORDER.index, default=Mapping.NONE)
    filtering = max(
        (b.filtering for b in boxes), key=_FILTERING_ORDER.index, default=Filtering.NONE
    )
    allocation = max(
        (b.allocation for b in boxes), key=_ALLOCATION_ORDER.index, default=Allocation.PRESERVED
    )
    both = nat_type(mapping, filtering)
    return Expected(
        udp=NatType.UDP_BLOCKED if any(b.udp_blocked for b in boxes) else both,
        tcp=NatType.TCP_BLOCKED if any(b.tcp_blocked for b in boxes) else both,
        mapping=mapping,
        filtering=filtering,
        allocation=allocation,
    )


_EIM, _ADM, _APDM = (
    Mapping.ENDPOINT_INDEPENDENT,
    Mapping.ADDRESS_DEPENDENT,
    Mapping.ADDRESS_AND_PORT_DEPENDENT,
)
_EIF, _ADF, _APDF = (
    Filtering.ENDPOINT_INDEPENDENT,
    Filtering.ADDRESS_DEPENDENT,
    Filtering.ADDRESS_AND_PORT_DEPENDENT,
)
_SEQ, _RND = Allocation.SEQUENTIAL, Allocation.RANDOM


NAMED_KINDS: tuple[Kind, ...] = (
    Kind("open", "a public address and nothing in between"),
    Kind(
        "firewall",
        "a public address behind a stateful firewall, no NAT",
        (NatModel(mapping=Mapping.NONE, filtering=_APDF),),
    ),
    Kind("full-cone", "one mapping, anybody may use it", (NatModel(filtering=_EIF),)),
    Kind(
        "full-cone-hairpin",
        "full cone that also turns packets round for its own hosts",
        (NatModel(filtering=_EIF, hairpin=True),),
    ),
    Kind(
        "full-cone-random",
        "full cone that does not preserve ports",
        (NatModel(filtering=_EIF, allocation=_RND),),
    ),
    Kind(
        "restricted-cone", "one mapping, only for addresses contacted", (NatModel(filtering=_ADF),)
    ),
    Kind(
        "port-restricted-cone",
        "one mapping, only for endpoints contacted: the ordinary home router",
        (NatModel(),),
    ),
    Kind(
        "port-restricted-rst",
        "port-restricted cone that answers unsolicited SYNs with RST",
        (NatModel(unsolicited_tcp=Unsolicited.RST),),
    ),
    Kind(
        "port-restricted-icmp",
        "port-restricted cone that answers unsolicited SYNs with ICMP",
        (NatModel(unsolicited_tcp=Unsolicited.ICMP),),
    ),
    Kind(
        "port-restricted-poisoned",
        "plain masquerade whose router accepts input: a peer that knocks first costs the mapping",
        (NatModel(remaps_after_inbound=True, unsolicited_tcp=Unsolicited.RST),),
    ),
    Kind(
        "symmetric-address",
        "another random port for every address contacted",
        (NatModel(mapping=_ADM, allocation=_RND),),
    ),
    Kind(
        "symmetric-sequential",
        "the next port for every endpoint contacted",
        (NatModel(mapping=_APDM, allocation=_SEQ),),
    ),
    Kind(
        "symmetric",
        "another random port for every endpoint contacted",
        (NatModel(mapping=_APDM, allocation=_RND),),
    ),
    Kind(
        "udp-blocked",
        "a port-restricted NAT that lets no UDP through",
        (NatModel(udp_blocked=True),),
    ),
    Kind(
        "tcp-blocked",
        "a port-restricted NAT that lets no TCP through",
        (NatModel(tcp_blocked=True),),
    ),
    Kind(
        "cgnat",
        "a home router behind a carrier's NAT, 100.64.0.0/10 in between",
        (NatModel(), NatModel(filtering=_EIF, allocation=_RND)),
    ),
)

_MAPPINGS = {"eim": _EIM, "adm": _ADM, "apdm": _APDM}
_FILTERINGS = {"eif": _EIF, "adf": _ADF, "apdf": _APDF}
_ALLOCATIONS = {"preserved": Allocation.PRESERVED, "sequential": _SEQ, "random": _RND}


def kind(name: str) -> Kind:
    """Return the kind of this name: a named one, or a point of the grid such as ``adm+eif+random``.

    Raises ``ValueError`` with a sentence for a person when there is none.
    """
    for known in NAMED_KINDS:
        if known.name == name:
            return known
    match name.lower().split("+"):
        case [mapping, filtering, allocation] if (
            mapping in _MAPPINGS and filtering in _FILTERINGS and allocation in _ALLOCATIONS
        ):
            model = NatModel(
                mapping=_MAPPINGS[mapping],
                filtering=_FILTERINGS[filtering],
                allocation=_ALLOCATIONS[allocation],
            )
        case _:
            raise ValueError(
                f"unknown kind {name!r}: one of {', '.join(k.name for k in NAMED_KINDS)}, or "
                f"MAPPING+FILTERING+ALLOCATION of {'|'.join(_MAPPINGS)}, {'|'.join(_FILTERINGS)} "
                f"and {'|'.join(_ALLOCATIONS)}, such as adm+eif+random"
            )
    if model.mapping is not _EIM and model.allocation is Allocation.PRESERVED:
        raise ValueError(
            f"{name!r} contradicts itself: a NAT that preserves the port for every destination "
            "has an endpoint-independent mapping"
        )
    summary = f"{model.mapping} mapping, {model.filtering} filtering, {model.allocation} ports"
    return Kind(name.lower(), summary, (model,))


def grid() -> tuple[Kind, ...]:
    """Return every combination of the axes that does not contradict itself, as kinds."""
    return tuple(
        kind(f"{m}+{f}+{a}")
        for m in _MAPPINGS
        for f in _FILTERINGS
        for a in _ALLOCATIONS
        if m == "eim" or a != "preserved"
    )
