"""The messages of Multicast DNS (RFC 6762), as far as names that stand for one address need them.

dnspython reads and writes them; what is particular to multicast is the top bit of the class: in a
question it asks for a unicast answer (section 5.4), in a record it has others forgotten (10.2).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.rdtypes.ANY.NSEC
import dns.rrset

from stun.attributes.address import host_octets, host_text

TTL: Final = 120
"""Seconds that a record with a host's address lasts: "SHOULD use a TTL value of 120 seconds"."""
LEGACY_TTL: Final = 10
"""In an answer to a simple resolver: "SHOULD NOT be greater than ten seconds" (section 6.7)."""
LARGEST: Final = 9000
"""Octets of a message (section 17)."""
MOST_QUESTIONS: Final = 64
"""Of one message that are looked at; records likewise."""

_TOP = 0x8000
_IN = dns.rdataclass.IN
_A, _AAAA, _NSEC = dns.rdatatype.A, dns.rdatatype.AAAA, dns.rdatatype.NSEC
_VERSIONS = {_A: frozenset((4,)), _AAAA: frozenset((6,)), dns.rdatatype.ANY: frozenset((4, 6))}
_TYPES = {4: _A, 6: _AAAA}
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\.local")


def as_name(text: str) -> str | None:
    """Return a name as it is compared, or ``None`` if it is none that an ICE agent makes.

    The draft, section 3.2.2: agents "SHOULD NOT resolve mDNS names if they are not in the format"
    of a UUID and ``.local``, so that nobody has them knock at a printer.
    """
    name = text.lower().removesuffix(".")
    return name if _UUID.fullmatch(name) else None


@dataclass(frozen=True, slots=True)
class Question:
    """Somebody looks for the addresses of a name; ``versions``: 4, 6 or both."""

    name: str
    versions: frozenset[int]
    unicast: bool


@dataclass(frozen=True, slots=True)
class Heard:
    """What a message says: either questions, or the addresses of names."""

    id: int
    questions: tuple[Question, ...] = ()
    addresses: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def read(data: bytes) -> Heard | None:
    """Read a message; ``None`` if it is none or says nothing about such names."""
    try:
        message = dns.message.from_wire(data, ignore_trailing=True, raise_on_truncation=False)
    except (dns.exception.DNSException, ValueError):
        return None
    # "messages received with non-zero response codes MUST be silently ignored" (section 18.11), and
    # so are other opcodes (18.3).
    if message.rcode() or message.opcode():
        return None
    if message.flags & dns.flags.QR:
        addresses = _addresses(message)
        return Heard(message.id, addresses=addresses) if addresses else None
    questions = tuple(_questions(message))
    return Heard(message.id, questions) if questions else None


def _questions(message: dns.message.Message) -> list[Question]:
    found = []
    for question in message.question[:MOST_QUESTIONS]:
        versions = _VERSIONS.get(question.rdtype)
        name = as_name(question.name.to_text(omit_final_dot=True))
        if versions and name and question.rdclass & ~_TOP in (_IN, dns.rdataclass.ANY):
            found.append(Question(name, versions, bool(question.rdclass & _TOP)))
    return found


def _addresses(message: dns.message.Message) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for records in (message.answer + message.additional)[:MOST_QUESTIONS]:
        name = as_name(records.name.to_text(omit_final_dot=True))
        if not name or records.rdtype not in (_A, _AAAA) or records.rdclass & ~_TOP != _IN:
            continue
        # "a Time To Live of zero": the name is not there any more (section 10.1).
        if records.ttl:
            hosts = (_host(record) for record in records)
            known = found.get(name, ())
            found[name] = tuple(dict.fromkeys((*known, *(host for host in hosts if host))))
    return found


def _host(record: dns.rdata.Rdata) -> str | None:
    # With the top bit the class is one that dnspython does not know, and the record is octets.
    octets = record.to_generic().data
    return host_text(octets) if len(octets) in (4, 16) else None


@lru_cache(256)
def _dns_name(name: str) -> dns.name.Name:
    return dns.name.from_text(name)


def query(name: str, number: int) -> bytes:
    """Ask for the address of a name, the answer to come to whoever asks."""
    message = dns.message.QueryMessage(id=number)
    message.flags = dns.flags.Flag(0)
    for kind in (_A, _AAAA):
        unicast = dns.rdataclass.RdataClass.make(_IN | _TOP)
        message.question.append(dns.rrset.RRset(_dns_name(name), unicast, kind))
    return message.to_wire()


def answer(
    name: str, host: str, *, ttl: int = TTL, legacy: tuple[int, frozenset[int]] | None = None
) -> bytes:
    """Say which address a name stands for.

    ``ttl`` 0 takes it back.  ``legacy``: the number of a simple resolver's question, and the
    versions it asked for; it gets both repeated and knows nothing of the top bit (section 6.7).
    """
    message = dns.message.QueryMessage(id=legacy[0] if legacy else 0)
    # "Response messages MUST have QR and AA set" (sections 18.2 and 18.4).
    message.flags = dns.flags.QR | dns.flags.AA
    owner = _dns_name(name)
    rdclass = _IN if legacy else dns.rdataclass.RdataClass.make(_IN | _TOP)
    octets = host_octets(host)
    kind = _A if len(octets) == 4 else _AAAA
    records = dns.rrset.RRset(owner, rdclass, kind)
    records.add(dns.rdata.GenericRdata(rdclass, kind, octets), ttl)
    message.answer.append(records)
    if legacy:
        for version in sorted(legacy[1]):
            message.question.append(dns.rrset.RRset(owner, _IN, _TYPES[version]))
    elif ttl:
        # Whoever asked for the other family learns at once that there is none (section 6.1).
        nothing_else = dns.rrset.RRset(owner, rdclass, _NSEC)
        bitmap = bytes(kind // 8) + bytes((0x80 >> kind % 8,))
        octets = owner.to_wire() + bytes((0, len(bitmap))) + bitmap  # type: ignore[operator]
        nothing_else.add(dns.rdata.GenericRdata(rdclass, _NSEC, octets), ttl)
        message.additional.append(nothing_else)
    return message.to_wire()
