"""What one side tells the other about the NATs in front of it: enough for a plan, and no more.

Theory of operation.  A :class:`nattype.Report` is a document for people, with evidence and local
addresses in it.  A :class:`NatSummary` is what a plan needs of it: for each address family and
transport the behaviour axes of RFC 4787 and 5382, how ports are given out, and the addresses that
servers saw.  Each side makes its own from a report and sends it to the other one as JSON.

The peer's JSON is a stranger's text.  :meth:`NatSummary.from_json` takes a parsed document of any
shape and either returns a summary or raises :class:`SummaryError`, which names the field; nothing
else.  It is strict where a value is present and wrong, and lenient where the format may grow:
fields that it does not know are passed over, and an unknown word for a behaviour is an unknown
behaviour.
"""

from __future__ import annotations

import ipaddress
import json
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, Literal, TypeAlias, TypeVar

from ice.predict.ports import POOL, keeps_parity, pool_of
from nattype.model import Allocation, Filtering, Mapping, NatType, Unsolicited, nat_type
from nattype.peers import PeerKind, kinds
from nattype.report import AllocationReport, Report, TcpReport, UdpReport
from stun.errors import StunError

Json: TypeAlias = Any
"""What ``json.loads`` gives."""
Family: TypeAlias = Literal["ipv4", "ipv6"]
Transport: TypeAlias = Literal["udp", "tcp"]
FAMILIES: Final[tuple[Family, ...]] = ("ipv6", "ipv4")
"""In the order of preference: no NAT to keep alive is the better one (RFC 8305)."""

VERSION: Final = 1
MOST_OCTETS: Final = 16_384
"""Of a summary's JSON text; a real one has about 700."""
MOST_HOSTS: Final = 8
MOST_DELTA: Final = 4096
MOST_LAYERS: Final = 16

E = TypeVar("E", bound=StrEnum)


class SummaryError(StunError):
    """A document that is no summary: which field, and what is wrong with it."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}" if field else problem)
        self.field = field
        self.problem = problem


@dataclass(frozen=True, slots=True)
class PathSummary:
    """One transport over one address family."""

    blocked: bool = False
    """Nothing of this transport passes."""
    mapping: Mapping = Mapping.UNKNOWN
    filtering: Filtering = Filtering.UNKNOWN
    allocation: Allocation = Allocation.UNKNOWN
    delta: int | None = None
    """Step between successive external ports when sequential."""
    confidence: float = 0.0
    """Ports predicted rightly before they were seen, 0 to 1."""
    pool: tuple[int, int] | None = None
    """First and last port of the block that ports come from, where it is narrower than all."""
    parity: bool = False
    """Even local ports get even external ones (RFC 4787 section 4.2.2)."""
    hosts: tuple[str, ...] = ()
    """External addresses seen, the usual one first."""
    unsolicited: Unsolicited = Unsolicited.UNKNOWN
    """What an uninvited SYN meets (TCP)."""
    simultaneous_open: bool | None = None
    """Whether a SYN is let in where one went out before (TCP, RFC 5382 REQ-2)."""
    remaps_after_inbound: bool | None = None
    """Whether a packet from outside that comes before the first one out costs the mapping (UDP)."""

    @property
    def kinds(self) -> frozenset[PeerKind]:
        """Every kind that this path may be; several where a measurement is missing."""
        if self.blocked:
            return kinds(UdpReport(nat_type=NatType.UDP_BLOCKED))
        mapping = Mapping.ENDPOINT_INDEPENDENT if self._keeps_ports else self.mapping
        found = kinds(
            UdpReport(
                nat_type=nat_type(mapping, self.filtering),
                mapping=mapping,
                filtering=self.filtering,
                allocation=AllocationReport(self.allocation, self.delta, self.confidence),
            )
        )
        if self.is_symmetric and self.allocation is Allocation.UNKNOWN:
            # Whoever takes ports meanwhile, this host's own attempts among them, can hide that a
            # NAT counts; that is no proof that it draws.
            found |= {PeerKind.SYMMETRIC_SEQUENTIAL}
        return found

    @property
    def ports(self) -> range:
        """The pool as a range."""
        return POOL if self.pool is None else range(self.pool[0], self.pool[1] + 1)

    @property
    def is_symmetric(self) -> bool:
        """Whether the mapping is known to depend on the destination."""
        return self.mapping in (Mapping.ADDRESS_DEPENDENT, Mapping.ADDRESS_AND_PORT_DEPENDENT)

    @property
    def is_steady(self) -> bool:
        """Whether the mapping is known not to depend on the destination, or all but known."""
        steady = (Mapping.NONE, Mapping.ENDPOINT_INDEPENDENT)
        return self.mapping in steady or self._keeps_ports

    @property
    def _keeps_ports(self) -> bool:
        # One server cannot tell the mapping behaviour.  But if every socket keeps its port through
        # the NAT, it does so for every destination: that is an endpoint-independent mapping.
        return self.mapping is Mapping.UNKNOWN and self.allocation is Allocation.PRESERVED

    @property
    def admits_anybody(self) -> bool:
        """Whether a mapping is known to let strangers in, whatever it depends on."""
        return self.filtering in (Filtering.NONE, Filtering.ENDPOINT_INDEPENDENT)

    @property
    def refuses(self) -> bool:
        """Whether an uninvited SYN may be answered (RST or ICMP) instead of dropped."""
        return self.unsolicited not in (Unsolicited.DROP, Unsolicited.OPEN)


NOTHING: Final = PathSummary()
"""A path of which nothing is known."""


@dataclass(frozen=True, slots=True)
class FamilySummary:
    """Both transports over one address family; ``None`` for what was not tested."""

    udp: PathSummary | None = None
    tcp: PathSummary | None = None


@dataclass(frozen=True, slots=True)
class NatSummary:
    """One side's NATs.  An empty one says that nothing is known."""

    ipv4: FamilySummary | None = None
    ipv6: FamilySummary | None = None
    layers: int | None = None
    """NATs one behind the other, as far as they can be told; a packet with a TTL one larger passes
    them all and goes no further than the next hop."""

    @property
    def families(self) -> tuple[Family, ...]:
        """The families that there is something about; none of them where nothing is known."""
        return tuple(f for f in FAMILIES if (self.ipv6 if f == "ipv6" else self.ipv4) is not None)

    def path(self, transport: Transport, family: Family) -> PathSummary | None:
        """Return one path; ``None`` where it was not tested or does not exist."""
        found = self.ipv4 if family == "ipv4" else self.ipv6
        if found is None:
            return None
        return found.udp if transport == "udp" else found.tcp

    # A report. ------------------------------------------------------------------------------------

    @classmethod
    def from_report(cls, report: Report) -> NatSummary:
        """Return what a plan needs of a diagnosis."""
        found = {report.family: _family(report.udp, report.tcp)}
        other = report.other_family
        if other is not None:
            found[other.family] = _family(other.udp, other.tcp)
        return cls(found.get("ipv4"), found.get("ipv6"), report.layers)

    # JSON. ----------------------------------------------------------------------------------------

    def to_json(self) -> dict[str, Json]:
        """Return the summary as a JSON document, its fields in a stable order."""
        return {
            "v": VERSION,
            "ipv4": _dump_family(self.ipv4),
            "ipv6": _dump_family(self.ipv6),
            "layers": self.layers,
        }

    @classmethod
    def from_json(cls, document: Json) -> NatSummary:
        """Return the summary in a parsed JSON document.  Raises :class:`SummaryError`."""
        if not isinstance(document, dict):
            raise SummaryError("", f"a summary is a JSON object, this is {_shown(document)}")
        version = _whole(document.get("v"), "v", 1, 1 << 31)
        if version != VERSION:
            raise SummaryError("v", f"this version reads {VERSION}, not {version}")
        return cls(
            _load_family(document.get("ipv4"), "ipv4"),
            _load_family(document.get("ipv6"), "ipv6"),
            _optional(document.get("layers"), "layers", 0, MOST_LAYERS),
        )

    def dumps(self) -> str:
        """Return the summary as JSON text on one line."""
        return json.dumps(self.to_json(), separators=(",", ":"), allow_nan=False)

    @classmethod
    def loads(cls, text: str | bytes) -> NatSummary:
        """Return the summary in this JSON text.  Raises :class:`SummaryError`."""
        if len(text) > MOST_OCTETS:
            raise SummaryError("", f"{len(text)} octets are more than the {MOST_OCTETS} allowed")
        try:
            document = json.loads(text)
        except (ValueError, RecursionError):
            raise SummaryError("", "this is not JSON") from None
        return cls.from_json(document)


# From a report. -----------------------------------------------------------------------------------

_BLOCKED = (NatType.UDP_BLOCKED, NatType.TCP_BLOCKED)


def _family(udp: UdpReport | None, tcp: TcpReport | None) -> FamilySummary:
    return FamilySummary(
        None if udp is None else _of_udp(udp), None if tcp is None else _of_tcp(tcp)
    )


def _of_udp(report: UdpReport) -> PathSummary:
    return _path(report, remaps=report.remaps_after_inbound)


def _of_tcp(report: TcpReport) -> PathSummary:
    return _path(report, unsolicited=report.unsolicited, simultaneous_open=report.simultaneous_open)


def _path(
    report: UdpReport | TcpReport,
    *,
    remaps: bool | None = None,
    unsolicited: Unsolicited = Unsolicited.UNKNOWN,
    simultaneous_open: bool | None = None,
) -> PathSummary:
    allocation = report.allocation
    pool = pool_of([external for _, external in allocation.samples])
    narrow = allocation.pattern is Allocation.RANDOM and pool != POOL
    delta = allocation.delta if allocation.pattern is Allocation.SEQUENTIAL else None
    mapped = report.mapped_address
    return PathSummary(
        blocked=report.nat_type in _BLOCKED,
        mapping=report.mapping,
        filtering=report.filtering,
        allocation=allocation.pattern,
        delta=None if delta is None or abs(delta) > MOST_DELTA else delta or None,
        # As it is told to the peer: both sides must compute with the same numbers.
        confidence=round(min(max(allocation.confidence, 0.0), 1.0), 4),
        pool=(pool[0], pool[-1]) if narrow else None,
        parity=keeps_parity(allocation.samples),
        hosts=() if mapped is None else (str(ipaddress.ip_address(mapped.host.partition("%")[0])),),
        unsolicited=unsolicited,
        simultaneous_open=simultaneous_open,
        remaps_after_inbound=remaps,
    )


# To and from JSON. --------------------------------------------------------------------------------


def _dump_family(family: FamilySummary | None) -> Json:
    if family is None:
        return None
    return {"udp": _dump_path(family.udp), "tcp": _dump_path(family.tcp)}


def _dump_path(path: PathSummary | None) -> Json:
    if path is None:
        return None
    return {
        "blocked": path.blocked,
        "mapping": path.mapping.value,
        "filtering": path.filtering.value,
        "allocation": path.allocation.value,
        "delta": path.delta,
        "confidence": round(path.confidence, 4),
        "pool": None if path.pool is None else list(path.pool),
        "parity": path.parity,
        "hosts": list(path.hosts),
        "unsolicited": path.unsolicited.value,
        "simultaneous_open": path.simultaneous_open,
        "remaps_after_inbound": path.remaps_after_inbound,
    }


def _load_family(raw: Json, at: Family) -> FamilySummary | None:
    if raw is None:
        return None
    if not isinstance(raw, dict):
        raise SummaryError(at, f"must be an object, is {_shown(raw)}")
    return FamilySummary(
        _load_path(raw.get("udp"), f"{at}.udp", at), _load_path(raw.get("tcp"), f"{at}.tcp", at)
    )


def _load_path(raw: Json, at: str, family: Family) -> PathSummary | None:
    if raw is None:
        return None
    if not isinstance(raw, dict):
        raise SummaryError(at, f"must be an object, is {_shown(raw)}")
    get = raw.get
    allocation = _word(get("allocation"), f"{at}.allocation", Allocation.UNKNOWN)
    delta = _optional(get("delta"), f"{at}.delta", -MOST_DELTA, MOST_DELTA)
    if allocation is Allocation.SEQUENTIAL and not delta:
        raise SummaryError(f"{at}.delta", "ports in sequence have a step other than 0")
    return PathSummary(
        blocked=bool(_flag(get("blocked"), f"{at}.blocked")),
        mapping=_word(get("mapping"), f"{at}.mapping", Mapping.UNKNOWN),
        filtering=_word(get("filtering"), f"{at}.filtering", Filtering.UNKNOWN),
        allocation=allocation,
        delta=delta if allocation is Allocation.SEQUENTIAL else None,
        confidence=_share(get("confidence"), f"{at}.confidence"),
        pool=_pool(get("pool"), f"{at}.pool"),
        parity=bool(_flag(get("parity"), f"{at}.parity")),
        hosts=_hosts(get("hosts"), f"{at}.hosts", 6 if family == "ipv6" else 4),
        unsolicited=_word(get("unsolicited"), f"{at}.unsolicited", Unsolicited.UNKNOWN),
        simultaneous_open=_flag(get("simultaneous_open"), f"{at}.simultaneous_open"),
        remaps_after_inbound=_flag(get("remaps_after_inbound"), f"{at}.remaps_after_inbound"),
    )


def _shown(raw: Json) -> str:
    """Show a few characters of what somebody else sent, fit for a terminal."""
    if isinstance(raw, dict | list):
        return f"a {'list' if isinstance(raw, list) else 'object'} of {len(raw)}"
    # A number may have more digits than Python likes to print.
    text = json.dumps(raw) if not isinstance(raw, int) or abs(raw) < 1 << 64 else "a huge number"
    return text if len(text) <= 40 else text[:37] + "..."


def _word(raw: Json, at: str, unknown: E) -> E:
    if raw is None:
        return unknown
    if not isinstance(raw, str):
        raise SummaryError(at, f"must be a string, is {_shown(raw)}")
    try:
        return type(unknown)(raw)
    except ValueError:
        return unknown


def _flag(raw: Json, at: str) -> bool | None:
    if raw is None or isinstance(raw, bool):
        return raw
    raise SummaryError(at, f"must be true, false or null, is {_shown(raw)}")


def _whole(raw: Json, at: str, least: int, most: int) -> int:
    if not isinstance(raw, int) or isinstance(raw, bool):
        raise SummaryError(at, f"must be a whole number, is {_shown(raw)}")
    if not least <= raw <= most:
        raise SummaryError(at, f"must be {least} to {most}, is {_shown(raw)}")
    return raw


def _optional(raw: Json, at: str, least: int, most: int) -> int | None:
    return None if raw is None else _whole(raw, at, least, most)


def _share(raw: Json, at: str) -> float:
    if raw is None:
        return 0.0
    if not isinstance(raw, int | float) or isinstance(raw, bool) or not 0 <= raw <= 1:
        raise SummaryError(at, f"must be a number from 0 to 1, is {_shown(raw)}")
    return round(float(raw), 4)


def _pool(raw: Json, at: str) -> tuple[int, int] | None:
    if raw is None:
        return None
    if not isinstance(raw, list) or len(raw) != 2:
        raise SummaryError(at, f"must be the first and the last port, is {_shown(raw)}")
    first = _whole(raw[0], f"{at}[0]", 1, 0xFFFF)
    return first, _whole(raw[1], f"{at}[1]", first, 0xFFFF)


def _hosts(raw: Json, at: str, version: int) -> tuple[str, ...]:
    if raw is None:
        return ()
    if not isinstance(raw, list) or len(raw) > MOST_HOSTS:
        raise SummaryError(at, f"must be a list of at most {MOST_HOSTS}, is {_shown(raw)}")
    hosts: dict[str, None] = {}
    for n, text in enumerate(raw):
        try:
            # An address with a zone is nobody's external one.
            address = ipaddress.ip_address(
                text if isinstance(text, str) and "%" not in text else ""
            )
        except ValueError:
            raise SummaryError(f"{at}[{n}]", f"must be an address, is {_shown(text)}") from None
        if address.version != version:
            raise SummaryError(f"{at}[{n}]", f"must be an IPv{version} address, is {_shown(text)}")
        hosts[str(address)] = None
    return tuple(hosts)
