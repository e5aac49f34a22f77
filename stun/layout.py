"""The fixed parts of every format, declared once as plain data.

A :class:`Layout` names its fields and their widths, and says where the norm defines it.  Two codecs
are built from it: the ``struct`` formats here, which the hot path uses, and the construct
declarations of :mod:`stun.spec`, which are the normative, strict form.  No format string is written
by hand anywhere.  This module does not import construct, so neither does ``import stun``: that
import alone takes longer than a command line may take to start.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

_CODES = {1: "B", 2: "H", 4: "I", 8: "Q"}


class Field(NamedTuple):
    """One field of a layout, in network byte order.

    ``kind`` is ``uint`` (an unsigned number of 1, 2, 4 or 8 octets), ``bytes`` (an opaque string of
    a fixed length) or ``reserved`` (zero when sent, ignored when received).
    """

    name: str
    octets: int
    kind: str = "uint"

    @property
    def format(self) -> str:
        """The ``struct`` format of this field."""
        match self.kind:
            case "uint":
                return _CODES[self.octets]
            case "bytes":
                return f"{self.octets}s"
            case "reserved":
                return f"{self.octets}x"
        raise ValueError(f"no such kind of field: {self.kind}")


class Layout:
    """A sequence of fields of fixed width, and the section that defines it."""

    __slots__ = ("fields", "name", "section", "size", "struct")

    def __init__(self, name: str, section: str, *fields: Field) -> None:
        self.name = name
        self.section = section
        self.fields = fields
        self.struct = struct.Struct(">" + "".join(field.format for field in fields))
        self.size = self.struct.size
        """Octets of the whole."""

    def __repr__(self) -> str:
        return f"<Layout {self.name}: {self.struct.format}>"


def _reserved(octets: int) -> Field:
    return Field("reserved", octets, "reserved")


HEADER = Layout(
    "header",
    "RFC 8489 section 5",
    Field("message_type", 2),
    Field("message_length", 2),
    Field("magic_cookie", 4),
    Field("transaction_id", 12, "bytes"),
)
TLV = Layout("attribute header", "RFC 8489 section 14", Field("type", 2), Field("length", 2))

U8_RESERVED24 = Layout(
    "8-bit value", "RFC 8656 sections 18.6 and 18.8", Field("value", 1), _reserved(3)
)
U8 = Layout("octet", "RFC 8656 section 18.7", Field("value", 1))
U16 = Layout("16-bit value", "RFC 8489 section 14.13", Field("value", 2))
U16_RESERVED16 = Layout(
    "16-bit value", "RFC 8656 section 18.1, RFC 5780 section 7.5", Field("value", 2), _reserved(2)
)
U32 = Layout("32-bit value", "RFC 8656 section 18.2", Field("value", 4))
U64 = Layout("64-bit value", "RFC 8445 section 16.1", Field("value", 8))

ADDRESS_HEAD = Layout(
    "address, family and port",
    "RFC 8489 section 14.1",
    _reserved(1),
    Field("family", 1),
    Field("port", 2),
)
ADDRESS_V4 = Layout(
    "IPv4 address",
    "RFC 8489 section 14.1",
    *ADDRESS_HEAD.fields,
    Field("address", 4, "bytes"),
)
ADDRESS_V6 = Layout(
    "IPv6 address",
    "RFC 8489 section 14.1",
    *ADDRESS_HEAD.fields,
    Field("address", 16, "bytes"),
)
ERROR_HEAD = Layout(
    "error code",
    "RFC 8489 section 14.8",
    _reserved(2),
    # "Class" is the low three bits; the five above them belong to the 21 reserved ones.
    Field("class", 1),
    Field("number", 1),
)
ADDRESS_ERROR_HEAD = Layout(
    "address error code",
    "RFC 8656 section 18.12",
    Field("family", 1),
    _reserved(1),
    Field("class", 1),
    Field("number", 1),
)
ICMP = Layout(
    "ICMP",
    "RFC 8656 section 18.13, erratum 8901",
    _reserved(2),
    Field("icmp_type", 1),
    Field("icmp_code", 1),
    Field("error_data", 4),
)
TRANSMIT_COUNTER = Layout(
    "transmit counter",
    "RFC 7982 section 3.1",
    _reserved(2),
    Field("requests", 1),
    Field("responses", 1),
)
ALGORITHM_HEAD = Layout(
    "password algorithm",
    "RFC 8489 section 14.11",
    Field("algorithm", 2),
    Field("parameters_length", 2),
)
TOKEN_HEAD = Layout("access token", "RFC 7635 section 6.2", Field("nonce_length", 2))
CONNECT_BACK = Layout(
    "CONNECT-BACK",
    "natkit",
    Field("kind", 1),
    Field("count", 1),
    Field("delay", 2),
    Field("wait", 2),
    Field("port", 2),
)
CONNECT_BACK_RESULT = Layout(
    "CONNECT-BACK-RESULT",
    "natkit",
    Field("kind", 1),
    Field("established", 1),
    Field("refused", 1),
    Field("unreachable", 1),
    Field("timed_out", 1),
    Field("other", 1),
    _reserved(2),
)
