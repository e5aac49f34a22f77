"""A message taken apart, field by field, for people: the cold path.

:func:`explain` shows any octets, also those that the codec refuses: as far as they can be read, and
why they were refused.  The result is plain values; rendering is somebody else's business.  It reads
with the construct specification (:mod:`stun.spec`), which takes a while to import, so import this
module only where it is needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from stun import spec
from stun.attributes import lookup
from stun.codec import decode
from stun.errors import DecodeError, DropReason
from stun.integrity import check_fingerprint, check_integrity, check_integrity_sha256
from stun.layout import HEADER, TLV
from stun.message import Message
from stun.registry import (
    HEADER_SIZE,
    MAGIC_COOKIE,
    AttributeType,
    Class,
    Method,
    Status,
    comprehension_required,
)
from stun.sansio import Address


@dataclass(frozen=True, slots=True)
class Part:
    """Some consecutive octets, what they are and what they mean."""

    offset: int
    """Where they start, counted from the first octet of the message."""
    octets: bytes
    name: str
    value: str = ""
    """What they mean; empty when the parts say it."""
    section: str = ""
    """Where the norm defines them."""
    note: str = ""
    """What is remarkable: malformed, ignored, unknown, a proof that holds or does not."""
    parts: tuple[Part, ...] = ()


@dataclass(frozen=True, slots=True)
class Problem:
    """Why the octets are refused as a whole."""

    reason: DropReason
    offset: int
    detail: str


@dataclass(frozen=True, slots=True)
class Dissection:
    """What :func:`explain` found."""

    summary: str
    parts: tuple[Part, ...]
    problem: Problem | None

    def lines(self) -> list[str]:
        """Return the whole as text, a line for each part, indented by its depth."""
        shown = [self.summary]
        if self.problem is not None:
            shown.append(
                f"refused: {self.problem.reason.value} (at octet {self.problem.offset}): "
                f"{self.problem.detail}"
            )
        for part in self.parts:
            shown += _lines(part, 1)
        return shown


def _lines(part: Part, depth: int) -> list[str]:
    text = f"{part.offset:5}  {'  ' * depth}{part.name}"
    if part.value:
        text += f": {part.value}"
    if part.note:
        text += f"  ({part.note})"
    if part.section:
        text += f"  [{part.section}]"
    return [text] + [line for inner in part.parts for line in _lines(inner, depth + 1)]


# Reading these as a header would only make things up.
_NOTHING_TO_READ = frozenset({DropReason.TOO_SHORT, DropReason.NOT_STUN})


def explain(
    data: bytes, *, key: bytes | None = None, sha256_key: bytes | None = None
) -> Dissection:
    """Take octets apart.  Never raises, whatever they are.

    The keys, if given, are tried on MESSAGE-INTEGRITY and MESSAGE-INTEGRITY-SHA256.
    """
    message: Message | None = None
    problem: Problem | None = None
    try:
        message = decode(data)
    except DecodeError as refused:
        problem = Problem(refused.reason, refused.offset, refused.detail)
    if problem is not None and problem.reason in _NOTHING_TO_READ:
        parts = (Part(0, data, "octets", data.hex()),) if data else ()
        return Dissection(f"{len(data)} octets, no STUN message", parts, problem)
    header = spec.ANY_HEADER.parse(data)
    proofs = {} if message is None else _proofs(message, key, sha256_key)
    body = _attributes(data, header.transaction_id, proofs)
    if message is None:
        summary = f"{len(data)} octets, not a valid STUN message"
    else:
        summary = f"{message}, {len(data)} octets"
        if message.is_rfc3489:
            summary += ", from an RFC 3489 peer"
    return Dissection(summary, (_header(data, header), *body), problem)


def _header(data: bytes, header: Any) -> Part:
    split = spec.MESSAGE_TYPE.parse(data[:2])
    method, message_class = Method.make(split.method), Class(split.message_class)
    name = f"{method.label} {message_class.name.lower()}"
    note = "" if method.is_known else "unknown method"
    left = len(data) - HEADER_SIZE
    length_note = "" if header.message_length == left else f"{left} octets follow"
    if header.message_length % 4:
        length_note = ", ".join(filter(None, (length_note, "not a multiple of four")))
    rfc3489 = "" if header.magic_cookie == MAGIC_COOKIE else "not the magic cookie: RFC 3489"
    section = HEADER.section
    return Part(
        0,
        data[:HEADER_SIZE],
        "header",
        section=section,
        parts=(
            Part(0, data[:2], "message type", name, section, note),
            Part(2, data[2:4], "message length", str(header.message_length), section, length_note),
            Part(4, data[4:8], "magic cookie", f"{header.magic_cookie:#010x}", section, rfc3489),
            Part(8, data[8:20], "transaction id", header.transaction_id.hex(), section),
        ),
    )


class _Found(NamedTuple):
    offset: int
    code: int
    value: bytes
    padding: bytes


def _attributes(data: bytes, transaction_id: bytes, proofs: dict[int, str]) -> list[Part]:
    found: list[_Found] = []
    offset, rest = HEADER_SIZE, None
    while offset < len(data):
        if len(data) - offset < TLV.size:
            rest = Part(offset, data[offset:], "octets", data[offset:].hex(), note="no attribute")
            break
        code, length = spec.attribute_header(data[offset : offset + TLV.size])
        start = offset + TLV.size
        if start + length > len(data):
            rest = Part(
                offset,
                data[offset:],
                AttributeType.make(code).label,
                section=TLV.section,
                note=f"claims {length} octets, {len(data) - start} are left",
            )
            break
        end = start + length
        padded = min(end + -length % 4, len(data))
        found.append(_Found(offset, code, data[start:end], data[end:padded]))
        offset = padded
    counted = spec.counted([attribute.code for attribute in found])
    parts = [
        _attribute(attribute, transaction_id, proofs, counts)
        for attribute, counts in zip(found, counted, strict=True)
    ]
    return parts if rest is None else [*parts, rest]


def _attribute(found: _Found, transaction_id: bytes, proofs: dict[int, str], counts: bool) -> Part:
    offset, code, value, padding = found
    kind = AttributeType.make(code)
    notes = [] if counts else ["ignored: behind the proof of integrity"]
    match kind.status:
        case Status.UNKNOWN if comprehension_required(code):
            notes.append("unknown, and must be understood")
        case Status.UNKNOWN:
            notes.append("unknown")
        case Status.ASSIGNED:
            pass
        case status:
            notes.append(status.value)
    try:
        meaning = _shown(lookup(code).unpack(value, transaction_id))
    except DecodeError as malformed:
        meaning = value.hex()
        notes.append(f"malformed at octet {malformed.offset} of the value: {malformed.detail}")
    if counts and code in proofs:
        notes.append(proofs[code])
    start = offset + TLV.size
    parts = [
        Part(offset, code.to_bytes(2), "type", f"{code:#06x}", TLV.section),
        Part(offset + 2, len(value).to_bytes(2), "length", str(len(value)), TLV.section),
    ]
    for field in spec.locate(code, value, transaction_id):
        octets = value[field.start : field.end]
        parts.append(
            Part(start + field.start, octets, field.name, _shown(field.value), kind.section)
        )
    if padding:
        note = "not zero" if any(padding) else ""
        parts.append(Part(start + len(value), padding, "padding", padding.hex(), TLV.section, note))
    whole = code.to_bytes(2) + len(value).to_bytes(2) + value + padding
    return Part(offset, whole, kind.label, meaning, kind.section, "; ".join(notes), tuple(parts))


def _shown(value: Any) -> str:
    match value:
        case bytes():
            return value.hex()
        case str():
            # A peer's text goes to a terminal: its control characters must not.
            return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in value)
        case dict():
            return ", ".join(f"{name} {_shown(part)}" for name, part in value.items())
        case list():
            return "; ".join(map(_shown, value))
        case Address():
            return str(value)
        case tuple() if hasattr(value, "_asdict"):
            return _shown(value._asdict())
        case tuple():
            return "; ".join(map(_shown, value))
        case _:
            return str(value)


def _proofs(message: Message, key: bytes | None, sha256_key: bytes | None) -> dict[int, str]:
    """Say of each proof whether it holds, as far as it can be tried."""
    words = {True: "holds", False: "does not hold"}
    outcomes: dict[int, bool | None] = {AttributeType.FINGERPRINT: check_fingerprint(message)}
    if key is not None:
        outcomes[AttributeType.MESSAGE_INTEGRITY] = check_integrity(message, key)
    if sha256_key is not None:
        outcomes[AttributeType.MESSAGE_INTEGRITY_SHA256] = check_integrity_sha256(
            message, sha256_key
        )
    return {code: words[held] for code, held in outcomes.items() if held is not None}
