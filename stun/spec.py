"""The wire formats of STUN, declared with construct: the normative, strict form.

Theory of operation.  Fixed parts come from :mod:`stun.layout`, which the hot codec's ``struct``
formats come from too, so no width is written twice; what a fixed layout cannot say is declared
here: the bits of the message type, lengths that other fields govern, masks, the rules of section
14.  Every format must account for every octet (``Terminated``), and a list of attributes ends where
the length field says (``FixedSized``): a bare ``GreedyRange`` would take the first octets that it
cannot read for its end, and swallow the error.

This is the cold path: the dissection that ``natcheck --explain`` shows (:mod:`stun.dissect`), and
the yardstick.  tests/property/test_codec_equivalence.py demands that :mod:`stun.codec` and
:mod:`stun.attributes` accept the same octets and find the same values.  Parsing here takes some
fifty times as long as there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import construct as c
from construct import this

from stun.layout import (
    ADDRESS_ERROR_HEAD,
    ADDRESS_V4,
    ADDRESS_V6,
    ALGORITHM_HEAD,
    CONNECT_BACK,
    CONNECT_BACK_RESULT,
    ERROR_HEAD,
    HEADER,
    ICMP,
    TLV,
    TOKEN_HEAD,
    TRANSMIT_COUNTER,
    U8,
    U8_RESERVED24,
    U16,
    U16_RESERVED16,
    U32,
    U64,
    Layout,
)
from stun.registry import MAGIC_COOKIE, AttributeType, Family

_UINTS = {1: c.Int8ub, 2: c.Int16ub, 4: c.Int32ub, 8: c.Int64ub}


def declare(layout: Layout, **refined: Any) -> list[Any]:
    """Return a layout's fields as construct declarations.

    ``refined`` replaces what a field is read with by something that says more and is as wide.
    """
    declared = []
    for field in layout.fields:
        match field.kind:
            case "reserved":
                # "MUST be set to zero by the sender and MUST be ignored by the receiver."
                form = c.Default(c.Bytes(field.octets), bytes(field.octets))
            case "bytes":
                form = c.Bytes(field.octets)
            case _:
                form = _UINTS[field.octets]
        form = refined.pop(field.name, form)
        if form.sizeof() != field.octets:
            raise ValueError(f"{layout.name}: {field.name} is {field.octets} octets wide")
        declared.append(field.name / form)
    if refined:
        raise ValueError(f"{layout.name} has no {', '.join(refined)}")
    return declared


def _whole(*fields: Any) -> Any:
    """Make a struct that must account for every octet of its value."""
    return c.Struct(*fields, c.Terminated)


# The message: RFC 8489 section 5 ------------------------------------------------------------------

# Figure 3: M11 to M7, C1, M6 to M4, C0, M3 to M0.
_TYPE_BITS = c.BitStruct(
    "zeros" / c.Const(0, c.BitsInteger(2)),  # "The most significant 2 bits [...] MUST be zeroes."
    "m11_7" / c.BitsInteger(5),
    "c1" / c.Bit,
    "m6_4" / c.BitsInteger(3),
    "c0" / c.Bit,
    "m3_0" / c.BitsInteger(4),
)


def _join_type(bits: Any, _: Any) -> Any:
    return c.Container(
        method=bits.m11_7 << 7 | bits.m6_4 << 4 | bits.m3_0,
        message_class=bits.c1 << 1 | bits.c0,
    )


def _split_type(kind: Any, _: Any) -> Any:
    return {
        "m11_7": kind["method"] >> 7,
        "c1": kind["message_class"] >> 1,
        "m6_4": kind["method"] >> 4 & 7,
        "c0": kind["message_class"] & 1,
        "m3_0": kind["method"] & 15,
    }


MESSAGE_TYPE = c.ExprAdapter(_TYPE_BITS, _join_type, _split_type)

# The header of whatever came: what its fields hold, right or wrong.
ANY_HEADER = c.Struct(*declare(HEADER))

MESSAGE_HEADER = c.Struct(
    *declare(HEADER, message_type=MESSAGE_TYPE),
    # "Since all STUN attributes are padded to a multiple of 4 bytes, the last 2 bits of this field
    # are always zero."
    c.Check(this.message_length % 4 == 0),
)

# Section 14: "The value in the Length field MUST contain the length of the Value part of the
# attribute, prior to padding [...].  The padding bits MUST be set to zero on sending and MUST be
# ignored by the receiver."
ATTRIBUTE = c.Struct(
    *declare(TLV),
    "value" / c.Bytes(this.length),
    "padding" / c.Default(c.Bytes(-this.length % 4), lambda ctx: bytes(-ctx.length % 4)),
)

MESSAGE = c.Struct(
    "header" / MESSAGE_HEADER,
    "attributes"
    / c.FixedSized(
        this.header.message_length,
        c.FocusedSeq("attributes", "attributes" / c.GreedyRange(ATTRIBUTE), c.Terminated),
    ),
    c.Terminated,
)


def counted(types: list[int]) -> list[bool]:
    """Say which attributes of a message count (RFC 8489 sections 9, 14.5 and 14.6).

    Behind the first proof only FINGERPRINT counts, and one MESSAGE-INTEGRITY-SHA256 if the first
    proof is MESSAGE-INTEGRITY.
    """
    proofs = (AttributeType.MESSAGE_INTEGRITY, AttributeType.MESSAGE_INTEGRITY_SHA256)
    first = next((i for i, code in enumerate(types) if code in proofs), len(types))
    second = next(
        (
            i
            for i, code in enumerate(types)
            if i > first
            and code == AttributeType.MESSAGE_INTEGRITY_SHA256
            and types[first] == AttributeType.MESSAGE_INTEGRITY
        ),
        None,
    )
    return [
        i <= first or i == second or code == AttributeType.FINGERPRINT
        for i, code in enumerate(types)
    ]


# The values of attributes -------------------------------------------------------------------------


class _Masked(c.Adapter):  # type: ignore[misc]
    """Section 14.2: an address XOR'ed with the cookie and, for IPv6, the transaction id.

    The transaction id is given to ``parse`` and ``build`` by its name.
    """

    def _decode(self, obj: bytes, context: Any, _path: Any) -> bytes:
        mask = MAGIC_COOKIE.to_bytes(4) + context._params.transaction_id
        return bytes(a ^ b for a, b in zip(obj, mask, strict=False))

    _encode = _decode


def _flip_port(port: int, _: Any) -> int:
    """Section 14.2: "the most significant 16 bits of the magic cookie"; the inverse of itself."""
    return port ^ MAGIC_COOKIE >> 16


def _address(port: Any, mask: Any) -> Any:
    """Section 14.1: "If the address family is IPv4, the address MUST be 32 bits"; IPv6, 128."""
    return c.Select(
        *(
            _whole(
                *declare(
                    layout,
                    family=c.Const(int(family), c.Int8ub),
                    port=port,
                    address=mask(c.Bytes(octets)),
                )
            )
            for layout, family, octets in (
                (ADDRESS_V4, Family.IPV4, 4),
                (ADDRESS_V6, Family.IPV6, 16),
            )
        )
    )


PLAIN_ADDRESS = _address(c.Int16ub, lambda octets: octets)
XOR_ADDRESS = _address(c.ExprAdapter(c.Int16ub, _flip_port, _flip_port), _Masked)


def _sized(shortest: int, longest: int, multiple: int = 1) -> Any:
    return _whole(
        "octets" / c.GreedyBytes,
        c.Check(lambda ctx: shortest <= len(ctx.octets) <= longest),
        c.Check(lambda ctx: len(ctx.octets) % multiple == 0),
    )


_OPAQUE = _whole("octets" / c.GreedyBytes)
_TEXT = _whole("text" / c.GreedyString("utf8"))
# Text that serves people only may be anything.
_DIAGNOSTIC = _OPAQUE
_FLAG = _whole()
_FAMILY = c.OneOf(c.Int8ub, [int(Family.IPV4), int(Family.IPV6)])

# Section 14.8: 21 reserved bits, the class (3 to 6) in three bits, the number (0 to 99) in eight.
_CLASS = c.BitStruct(
    "reserved" / c.Default(c.BitsInteger(5), 0),
    "digit" / c.OneOf(c.BitsInteger(3), [3, 4, 5, 6]),
)
_NUMBER = c.OneOf(c.Int8ub, range(100))
_ERROR = _whole(
    *declare(ERROR_HEAD, **{"class": _CLASS, "number": _NUMBER}), "reason" / c.GreedyBytes
)
_ADDRESS_ERROR = _whole(
    *declare(ADDRESS_ERROR_HEAD, **{"family": _FAMILY, "class": _CLASS, "number": _NUMBER}),
    "reason" / c.GreedyBytes,
)

_TYPE_LIST = _whole("types" / c.GreedyRange(c.Struct(*declare(U16))))

_CHANGE_FLAGS = c.BitStruct(
    "reserved1" / c.Default(c.BitsInteger(29), 0),
    "change_ip" / c.Flag,
    "change_port" / c.Flag,
    "reserved2" / c.Default(c.Bit, 0),
)
_EVEN_PORT_BITS = c.BitStruct("reserve_next" / c.Flag, "rffu" / c.Default(c.BitsInteger(7), 0))
_ECN_BITS = c.BitStruct(
    "reserved" / c.Default(c.BitsInteger(29), 0), "echo" / c.BitsInteger(2), "valid" / c.Flag
)


def _algorithm_padding(ctx: Any) -> int:
    """Octets of padding behind the parameters of an algorithm.

    Built in full; the last ones of a received value may be missing, because the norm lets them be
    counted as the padding of the attribute itself: see stun/attributes/structured.py.
    """
    size: int = -ctx.parameters_length % 4
    if not ctx._parsing:
        return size
    here: int = ctx._io.tell()
    end: int = ctx._io.seek(0, 2)
    ctx._io.seek(here)
    return min(size, end - here)


# Section 14.11.
_ALGORITHM = c.Struct(
    *declare(ALGORITHM_HEAD),
    "parameters" / c.Bytes(this.parameters_length),
    "padding" / c.Default(c.Bytes(_algorithm_padding), lambda ctx: bytes(_algorithm_padding(ctx))),
)
_TOKEN = _whole(
    *declare(TOKEN_HEAD), "nonce" / c.Bytes(this.nonce_length), "encrypted_block" / c.GreedyBytes
)


def _number(layout: Layout) -> Any:
    return _whole(*declare(layout))


_A = AttributeType

VALUES: dict[AttributeType, Any] = {
    _A.MAPPED_ADDRESS: PLAIN_ADDRESS,  # RFC 8489 section 14.1
    _A.XOR_MAPPED_ADDRESS: XOR_ADDRESS,  # 14.2
    _A.USERNAME: _TEXT,  # 14.3
    _A.USERHASH: _sized(32, 32),  # 14.4
    _A.MESSAGE_INTEGRITY: _sized(20, 20),  # 14.5
    _A.MESSAGE_INTEGRITY_SHA256: _sized(16, 32, 4),  # 14.6
    _A.FINGERPRINT: _number(U32),  # 14.7
    _A.ERROR_CODE: _ERROR,  # 14.8
    _A.REALM: _TEXT,  # 14.9
    _A.NONCE: _sized(0, 763),  # 14.10
    _A.PASSWORD_ALGORITHMS: _whole("algorithms" / c.GreedyRange(_ALGORITHM)),  # 14.11
    _A.PASSWORD_ALGORITHM: _whole("algorithm" / _ALGORITHM),  # 14.12
    _A.UNKNOWN_ATTRIBUTES: _TYPE_LIST,  # 14.13
    _A.SOFTWARE: _DIAGNOSTIC,  # 14.14
    _A.ALTERNATE_SERVER: PLAIN_ADDRESS,  # 14.15
    _A.ALTERNATE_DOMAIN: _TEXT,  # 14.16
    _A.RESPONSE_ADDRESS: PLAIN_ADDRESS,  # RFC 3489 section 11.2.2
    _A.CHANGED_ADDRESS: PLAIN_ADDRESS,  # 11.2.3
    _A.SOURCE_ADDRESS: PLAIN_ADDRESS,  # 11.2.5
    _A.PASSWORD: _OPAQUE,  # 11.2.7
    _A.REFLECTED_FROM: PLAIN_ADDRESS,  # 11.2.11
    _A.XOR_MAPPED_ADDRESS_DRAFT: XOR_ADDRESS,
    _A.CHANGE_REQUEST: _whole("flags" / _CHANGE_FLAGS),  # RFC 5780 section 7.2
    _A.RESPONSE_ORIGIN: PLAIN_ADDRESS,  # 7.3
    _A.OTHER_ADDRESS: PLAIN_ADDRESS,  # 7.4
    _A.RESPONSE_PORT: c.Select(_number(U16_RESERVED16), _number(U16)),  # 7.5
    _A.PADDING: _OPAQUE,  # 7.6
    _A.CACHE_TIMEOUT: _OPAQUE,  # 9.1
    _A.CHANNEL_NUMBER: _number(U16_RESERVED16),  # RFC 8656 section 18.1
    _A.LIFETIME: _number(U32),  # 18.2
    _A.XOR_PEER_ADDRESS: XOR_ADDRESS,  # 18.3
    _A.DATA: _OPAQUE,  # 18.4
    _A.XOR_RELAYED_ADDRESS: XOR_ADDRESS,  # 18.5
    _A.REQUESTED_ADDRESS_FAMILY: _number(U8_RESERVED24),  # 18.6
    _A.EVEN_PORT: _whole(*declare(U8, value=_EVEN_PORT_BITS)),  # 18.7
    _A.REQUESTED_TRANSPORT: _number(U8_RESERVED24),  # 18.8
    _A.DONT_FRAGMENT: _FLAG,  # 18.9
    _A.RESERVATION_TOKEN: _sized(8, 8),  # 18.10
    _A.ADDITIONAL_ADDRESS_FAMILY: _number(U8_RESERVED24),  # 18.11
    _A.ADDRESS_ERROR_CODE: _ADDRESS_ERROR,  # 18.12
    _A.ICMP: _number(ICMP),  # 18.13
    _A.BANDWIDTH: _number(U32),
    _A.TIMER_VAL: _number(U32),
    _A.CONNECTION_ID: _number(U32),  # RFC 6062 section 6.2.1
    _A.THIRD_PARTY_AUTHORIZATION: _TEXT,  # RFC 7635 section 6.1
    _A.ACCESS_TOKEN: _TOKEN,  # 6.2
    _A.MOBILITY_TICKET: _OPAQUE,  # RFC 8016 section 3.3
    _A.PRIORITY: _number(U32),  # RFC 8445 section 16.1
    _A.USE_CANDIDATE: _FLAG,
    _A.ICE_CONTROLLED: _number(U64),
    _A.ICE_CONTROLLING: _number(U64),
    _A.TRANSACTION_TRANSMIT_COUNTER: _number(TRANSMIT_COUNTER),  # RFC 7982 section 3.1
    _A.ECN_CHECK: _whole(*declare(U32, value=_ECN_BITS)),  # RFC 6679 section 7.2.2
    _A.ORIGIN: _DIAGNOSTIC,
    _A.CONNECT_BACK: _number(CONNECT_BACK),  # natkit
    _A.CONNECT_BACK_RESULT: _number(CONNECT_BACK_RESULT),
}
"""What the value of each attribute must be; the section stands beside it."""


def value_format(code: int) -> Any:
    """Return the format of an attribute's value; one that nobody defines is opaque."""
    return VALUES.get(AttributeType.make(code), _OPAQUE)


# Where the fields are: for the dissection ---------------------------------------------------------


class Located(NamedTuple):
    """A field of a value: its name, where it is (octets from ``start`` to before ``end``), itself.

    ``value`` is a number, octets, text, a list, or a mapping of the parts that the field has.
    """

    name: str
    start: int
    end: int
    value: Any


def locate(code: int, octets: bytes, transaction_id: bytes) -> list[Located]:
    """Return the fields of an attribute's value; none when it is not what its format demands."""
    form = value_format(code)
    for choice in form.subcons if isinstance(form, c.Select) else (form,):
        try:
            found = _with_places(choice).parse(octets, transaction_id=transaction_id)
        except c.ConstructError:
            continue
        return list(_fields(choice, found, len(octets)))
    return []


def _with_places(form: Any) -> Any:
    return c.Struct(
        *(
            part
            for field in form.subcons
            for part in ((f"{field.name}@" / c.Tell, field) if field.name else (field,))
        )
    )


def _fields(form: Any, found: Any, size: int) -> Iterator[Located]:
    names = [field.name for field in form.subcons if field.name]
    starts = [found[f"{name}@"] for name in names] + [size]
    for name, start, end in zip(names, starts, starts[1:], strict=False):
        yield Located(name, start, end, _plain(found[name]))


def _plain(value: Any) -> Any:
    """Return a parsed value without what construct keeps for itself."""
    if isinstance(value, c.ListContainer):
        return [_plain(item) for item in value]
    if isinstance(value, c.Container):
        return {name: _plain(part) for name, part in value.items() if not name.startswith("_")}
    return value


def attribute_header(octets: bytes) -> tuple[int, int]:
    """Return the type and the length that four octets claim."""
    claimed = c.Struct(*declare(TLV)).parse(octets)
    return claimed.type, claimed.length
