"""The JSON form of a report: ``schema`` 1, declared once.

Theory of operation.  Each :class:`_Form` knows three things about one kind of value: how it becomes
JSON, how it is read back with an error that names the field, and what JSON Schema (draft 2020-12)
says of it.  :data:`REPORT` puts the forms together, field by field, with the sentence that
documents it; the document, its reader and its schema follow from that one declaration.

Reading is lenient where the format may grow: fields that it does not know are passed over, and a
field that may be null may be missing.  Whatever is present must be right.
"""

from __future__ import annotations

import ipaddress
import json
import math
import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping as Dictionary
from enum import StrEnum
from typing import Any, Generic, TypeAlias, TypeVar

from nattype.model import Allocation, Filtering, Hairpin, Mapping, NatType, Unsolicited
from nattype.peers import PeerKind
from nattype.report import (
    SCHEMA,
    AllocationReport,
    Evidence,
    FamilyReport,
    LifetimeReport,
    Outcome,
    PeerReach,
    Reach,
    Report,
    TcpReport,
    UdpReport,
)
from stun.errors import StunError
from stun.sansio import Address

Json: TypeAlias = Any
"""What ``json.loads`` gives: dict, list, str, int, float, bool or None."""

T = TypeVar("T")
E = TypeVar("E", bound=StrEnum)


class ReportFormatError(StunError):
    """A document that is no report: which field, and what is wrong with it."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}" if field else problem)
        self.field = field
        self.problem = problem


class _Form(ABC, Generic[T]):
    """One kind of value in three shapes."""

    nullable = False

    @abstractmethod
    def dump(self, value: T) -> Json:
        """Return the value as JSON."""

    @abstractmethod
    def load(self, raw: Json, at: str) -> T:
        """Return the value read from JSON; ``at`` is the field's path, for the error.

        Raises :class:`ReportFormatError`.
        """

    @abstractmethod
    def schema(self) -> dict[str, Json]:
        """Return what JSON Schema says of it."""


def _shown(raw: Json) -> str:
    text = json.dumps(raw, ensure_ascii=False)
    return text if len(text) <= 40 else text[:37] + "..."


class _Text(_Form[str]):
    """A string."""

    def __init__(self, *, of: tuple[str, ...] = ()) -> None:
        self._of = of

    def dump(self, value: str) -> Json:
        return value

    def load(self, raw: Json, at: str) -> str:
        if not isinstance(raw, str):
            raise ReportFormatError(at, f"must be a string, is {_shown(raw)}")
        if self._of and raw not in self._of:
            raise ReportFormatError(at, f"{_shown(raw)} is none of {', '.join(self._of)}")
        return raw

    def schema(self) -> dict[str, Json]:
        return {"type": "string"} | ({"enum": list(self._of)} if self._of else {})


class _Choice(_Form[E]):
    """A member of an enumeration, by its value."""

    def __init__(self, members: type[E], *, without: tuple[E, ...] = ()) -> None:
        self._members = members
        self._names = _Text(of=tuple(m.value for m in members if m not in without))

    def dump(self, value: E) -> Json:
        return value.value

    def load(self, raw: Json, at: str) -> E:
        return self._members(self._names.load(raw, at))

    def schema(self) -> dict[str, Json]:
        return self._names.schema()


class _Flag(_Form[bool]):
    """True or false."""

    def dump(self, value: bool) -> Json:
        return value

    def load(self, raw: Json, at: str) -> bool:
        if not isinstance(raw, bool):
            raise ReportFormatError(at, f"must be true or false, is {_shown(raw)}")
        return raw

    def schema(self) -> dict[str, Json]:
        return {"type": "boolean"}


class _Integer(_Form[int]):
    """A whole number within bounds, both included."""

    def __init__(self, minimum: int, maximum: int) -> None:
        self._minimum = minimum
        self._maximum = maximum

    def dump(self, value: int) -> Json:
        return value

    def load(self, raw: Json, at: str) -> int:
        if not isinstance(raw, int) or isinstance(raw, bool):
            raise ReportFormatError(at, f"must be a whole number, is {_shown(raw)}")
        if not self._minimum <= raw <= self._maximum:
            raise ReportFormatError(
                at, f"must be {self._minimum} to {self._maximum}, is {_shown(raw)}"
            )
        return raw

    def schema(self) -> dict[str, Json]:
        return {"type": "integer", "minimum": self._minimum, "maximum": self._maximum}


class _Number(_Form[float]):
    """A number that is not negative; six decimals are kept (microseconds, parts per million)."""

    def __init__(self, maximum: float = math.inf) -> None:
        self._maximum = maximum

    def dump(self, value: float) -> Json:
        return round(float(value), 6)

    def load(self, raw: Json, at: str) -> float:
        if not isinstance(raw, int | float) or isinstance(raw, bool):
            raise ReportFormatError(at, f"must be a number, is {_shown(raw)}")
        # Python's JSON has integers of any size, and Infinity and NaN.
        if not (0 <= raw <= min(self._maximum, sys.float_info.max)):
            top = f"from 0 to {self._maximum:g}" if self._maximum < math.inf else "0 or more"
            raise ReportFormatError(at, f"must be {top}, is {_shown(raw)}")
        return float(raw)

    def schema(self) -> dict[str, Json]:
        bound = {"maximum": self._maximum} if self._maximum < math.inf else {}
        return {"type": "number", "minimum": 0} | bound


# A zone may hold only what RFC 6874 allows unescaped, so that a report from elsewhere cannot carry
# control characters to a terminal.
_ENDPOINT = re.compile(
    r"(?:\[(?P<v6>[0-9A-Fa-f:.]+(?:%[0-9A-Za-z._~-]+)?)\]|(?P<v4>[0-9.]+)):(?P<port>[0-9]{1,5})"
)


class _Endpoint(_Form[Address]):
    """A transport address as ``host:port``, an IPv6 host in brackets."""

    def dump(self, value: Address) -> Json:
        return str(value)

    def load(self, raw: Json, at: str) -> Address:
        text = _Text().load(raw, at)
        found = _ENDPOINT.fullmatch(text)
        try:
            if found is None:
                raise ValueError
            host = found["v6"] or found["v4"]
            version = ipaddress.ip_address(host).version
            if version != (6 if found["v6"] else 4) or int(found["port"]) > 0xFFFF:
                raise ValueError
        except ValueError:
            raise ReportFormatError(
                at, f'must be "ADDRESS:PORT" or "[IPV6-ADDRESS]:PORT", is {_shown(raw)}'
            ) from None
        return Address(host, int(found["port"]))

    def schema(self) -> dict[str, Json]:
        # JSON Schema speaks ECMA-262's regular expressions, which name no group like Python's.
        return {
            "type": "string",
            "pattern": f"^{re.sub('[?]P<[a-z0-9]+>', '', _ENDPOINT.pattern)}$",
        }


class _Nullable(_Form[T | None]):
    """A value, or null for what was not tested or could not be told."""

    nullable = True

    def __init__(self, inner: _Form[T]) -> None:
        self._inner = inner

    def dump(self, value: T | None) -> Json:
        return None if value is None else self._inner.dump(value)

    def load(self, raw: Json, at: str) -> T | None:
        return None if raw is None else self._inner.load(raw, at)

    def schema(self) -> dict[str, Json]:
        return {"anyOf": [self._inner.schema(), {"type": "null"}]}


class _Array(_Form[tuple[T, ...]]):
    """A list of values of one form."""

    def __init__(self, item: _Form[T]) -> None:
        self._item = item

    def dump(self, value: tuple[T, ...]) -> Json:
        return [self._item.dump(item) for item in value]

    def load(self, raw: Json, at: str) -> tuple[T, ...]:
        if not isinstance(raw, list):
            raise ReportFormatError(at, f"must be a list, is {_shown(raw)}")
        return tuple(self._item.load(item, f"{at}[{n}]") for n, item in enumerate(raw))

    def schema(self) -> dict[str, Json]:
        return {"type": "array", "items": self._item.schema()}


class _PortPair(_Form[tuple[int, int]]):
    """A local and an external port."""

    _port = _Integer(0, 0xFFFF)

    def dump(self, value: tuple[int, int]) -> Json:
        return list(value)

    def load(self, raw: Json, at: str) -> tuple[int, int]:
        if not isinstance(raw, list) or len(raw) != 2:
            raise ReportFormatError(
                at, f"must be a local port and an external port, is {_shown(raw)}"
            )
        local, external = (self._port.load(port, f"{at}[{n}]") for n, port in enumerate(raw))
        return local, external

    def schema(self) -> dict[str, Json]:
        return {
            "type": "array",
            "prefixItems": [self._port.schema()] * 2,
            "minItems": 2,
            "items": False,
        }


class _Record(_Form[T]):
    """A dataclass as an object: its fields in the order given, each with what it means."""

    def __init__(self, cls: type[T], fields: Dictionary[str, tuple[_Form[Any], str]]) -> None:
        self._cls = cls
        self.fields = fields

    def dump(self, value: T) -> dict[str, Json]:
        return {name: form.dump(getattr(value, name)) for name, (form, _) in self.fields.items()}

    def load(self, raw: Json, at: str) -> T:
        if not isinstance(raw, dict):
            raise ReportFormatError(at, f"must be an object, is {_shown(raw)}")
        values = {}
        for name, (form, _) in self.fields.items():
            path = f"{at}.{name}" if at else name
            if name in raw:
                values[name] = form.load(raw[name], path)
            elif form.nullable:
                values[name] = None
            else:
                raise ReportFormatError(path, "is missing")
        return self._cls(**values)

    def schema(self) -> dict[str, Json]:
        properties = {
            name: {"description": text} | form.schema()
            for name, (form, text) in self.fields.items()
        }
        return {"type": "object", "properties": properties, "required": list(properties)}


class _Table(_Form[dict[str, T]]):
    """An object with these keys, all values of one form; empty when there is nothing to say."""

    def __init__(self, keys: tuple[str, ...], item: _Form[T]) -> None:
        self._keys = keys
        self._item = item

    def dump(self, value: dict[str, T]) -> Json:
        return {key: self._item.dump(value[key]) for key in self._keys if key in value}

    def load(self, raw: Json, at: str) -> dict[str, T]:
        if not isinstance(raw, dict):
            raise ReportFormatError(at, f"must be an object, is {_shown(raw)}")
        return {key: self._item.load(raw[key], f"{at}.{key}") for key in self._keys if key in raw}

    def schema(self) -> dict[str, Json]:
        return {
            "type": "object",
            "properties": dict.fromkeys(self._keys, self._item.schema()),
        }


_SECONDS = _Number()
_FAMILY = _Text(of=("ipv4", "ipv6"))

ALLOCATION = _Record(
    AllocationReport,
    {
        "pattern": (_Choice(Allocation), "Which external port a new mapping gets."),
        "delta": (
            _Nullable(_Integer(-0xFFFF, 0xFFFF)),
            "Step between successive external ports when sequential, 0 when preserved.",
        ),
        "confidence": (_Number(1), "Ports predicted rightly before they were seen, 0 to 1."),
        "samples": (_Array(_PortPair()), "Local and external port, in the order observed."),
    },
)
LIFETIME = _Record(
    LifetimeReport,
    {
        "alive": (_Nullable(_SECONDS), "Longest idle time in seconds that the mapping survived."),
        "dead": (_Nullable(_SECONDS), "Shortest idle time in seconds after which it was gone."),
    },
)
UDP = _Record(
    UdpReport,
    {
        "nat_type": (
            _Choice(NatType, without=(NatType.TCP_BLOCKED,)),
            "The classic name (RFC 3489 section 5).",
        ),
        "mapping": (_Choice(Mapping), "How an external address and port is reused (RFC 4787 4.1)."),
        "filtering": (
            _Choice(Filtering),
            "From whom inbound packets are let through (RFC 4787 5).",
        ),
        "allocation": (ALLOCATION, "How external ports are chosen (RFC 4787 4.2)."),
        "hairpinning": (
            _Choice(Hairpin),
            "Whether packets from inside to an external address are turned round (RFC 4787 6).",
        ),
        "mapped_address": (_Nullable(_Endpoint()), "What the server saw."),
        "local_address": (_Nullable(_Endpoint()), "What the socket was bound to."),
        "mapping_stable": (
            _Nullable(_Flag()),
            "Whether the first mapping was the same at the end.",
        ),
        "mapping_depends_on_port_only": (
            _Flag(),
            "Whether the mapping follows the peer's port but not its address.",
        ),
        "address_pooling_paired": (
            _Nullable(_Flag()),
            "Whether all mappings show one external address (RFC 4787 REQ-2).",
        ),
        "remaps_after_inbound": (
            _Nullable(_Flag()),
            "Whether a peer that sends first costs the mapping.",
        ),
        "fragments": (
            _Nullable(_Flag()),
            "Whether datagrams larger than the path's MTU arrive, both ways.",
        ),
        "lifetime_one_shot": (
            _Nullable(LIFETIME),
            "Idle lifetime of a mapping used for one exchange; with --lifetime.",
        ),
        "lifetime_stream": (
            _Nullable(LIFETIME),
            "Idle lifetime of a mapping used both ways for a while; with --lifetime.",
        ),
        "keepalive": (_Nullable(_SECONDS), "Recommended seconds between keepalives."),
        "rtt": (_Nullable(_SECONDS), "Smallest round trip to a server in seconds."),
    },
)
TCP = _Record(
    TcpReport,
    {
        "nat_type": (
            _Choice(NatType, without=(NatType.UDP_BLOCKED,)),
            "The classic name, for TCP.",
        ),
        "mapping": (_Choice(Mapping), "How an external address and port is reused (RFC 5382 4.1)."),
        "filtering": (_Choice(Filtering), "From whom connections are let in (RFC 5382 4.3)."),
        "unsolicited": (_Choice(Unsolicited), "What an uninvited SYN meets (RFC 5382 4.3)."),
        "allocation": (ALLOCATION, "How external ports are chosen."),
        "simultaneous_open": (
            _Nullable(_Flag()),
            "Whether a SYN is let in where one went out before (RFC 5382 REQ-2).",
        ),
        "mapped_address": (_Nullable(_Endpoint()), "What the server saw."),
        "local_address": (_Nullable(_Endpoint()), "What the socket was bound to."),
        "rtt": (_Nullable(_SECONDS), "Smallest round trip to a server in seconds."),
    },
)
FAMILY = _Record(
    FamilyReport,
    {
        "family": (_FAMILY, "The other address family."),
        "udp": (_Nullable(UDP), "UDP over it; null when not tested."),
        "tcp": (_Nullable(TCP), "TCP over it; null when not tested."),
    },
)
PEER = _Record(
    PeerReach,
    {
        "udp": (_Choice(Reach), "How a UDP path to such a peer is made."),
        "tcp": (_Choice(Reach), "How a TCP connection to such a peer is made."),
    },
)
EVIDENCE = _Record(
    Evidence,
    {
        "test": (_Text(), "A stable name such as udp.mapping."),
        "outcome": (_Choice(Outcome), "How it ended."),
        "detail": (_Text(), "One sentence with the addresses and counts that it rests on."),
        "at": (_SECONDS, "Seconds since the diagnosis began."),
        "server": (_Nullable(_Text()), "The server concerned or at fault, as host:port."),
    },
)
REPORT = _Record(
    Report,
    {
        "verdict": (_Text(), "The answer in plain words."),
        "family": (_FAMILY, "The address family that udp and tcp speak of."),
        "udp": (_Nullable(UDP), "UDP; null when not tested."),
        "tcp": (_Nullable(TCP), "TCP; null when not tested."),
        "other_family": (_Nullable(FAMILY), "The other address family; null when not tested."),
        "peers": (
            _Table(tuple(kind.value for kind in PeerKind), PEER),
            "By what a peer is behind: how it can be reached.",
        ),
        "culprits": (
            _Array(_Text()),
            "Servers that could not be trusted and why, a sentence each.",
        ),
        "evidence": (_Array(EVIDENCE), "What was tried and what came of it, in order."),
        "servers": (_Array(_Text()), "The servers asked, as host:port."),
        "seconds": (_SECONDS, "How long the diagnosis took."),
        "behind_nat": (_Nullable(_Flag()), "Whether any NAT was seen, over UDP or TCP."),
        "layers": (_Nullable(_Integer(0, 16)), "Layers of NAT as far as they can be told."),
    },
)


def to_json(report: Report) -> dict[str, Json]:
    """Return the report as a JSON document, its fields in a stable order."""
    return {"schema": SCHEMA} | REPORT.dump(report)


def from_json(document: Json) -> Report:
    """Return the report in a parsed JSON document.

    Raises :class:`ReportFormatError`, which names the field that is missing or wrong.
    """
    if not isinstance(document, dict):
        raise ReportFormatError("", f"a report is a JSON object, this is {_shown(document)}")
    if "schema" not in document:
        raise ReportFormatError("schema", "is missing, so this is no report of natcheck")
    if document["schema"] != SCHEMA or isinstance(document["schema"], bool):
        raise ReportFormatError(
            "schema", f"this version reads schema {SCHEMA}, not {_shown(document['schema'])}"
        )
    return REPORT.load(document, "")


def dumps(report: Report) -> str:
    """Return the report as JSON text of several lines, without a final newline."""
    return json.dumps(to_json(report), indent=2, allow_nan=False)


def loads(text: str | bytes) -> Report:
    """Return the report in this JSON text.  Raises :class:`ReportFormatError`."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ReportFormatError("", f"this is not JSON: {error}") from None
    return from_json(document)


def json_schema() -> dict[str, Json]:
    """Return the JSON Schema (draft 2020-12) of the documents that :func:`to_json` makes."""
    body = REPORT.schema()
    version = {"description": "Version of this format.", "const": SCHEMA}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "natcheck report",
        "description": "What natcheck found out about the path between a host and the Internet.",
        "type": "object",
        "properties": {"schema": version} | body["properties"],
        "required": ["schema", *body["required"]],
    }
