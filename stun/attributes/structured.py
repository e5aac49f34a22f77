"""Attributes whose values have parts: error codes, requests to a server, algorithms, tokens."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Any, NamedTuple

from stun.attributes.base import Attribute, Number, diagnostic_text
from stun.layout import (
    ADDRESS_ERROR_HEAD,
    ALGORITHM_HEAD,
    CONNECT_BACK,
    CONNECT_BACK_RESULT,
    ERROR_HEAD,
    ICMP,
    TOKEN_HEAD,
    TRANSMIT_COUNTER,
    U8,
    U8_RESERVED24,
    U16,
    U16_RESERVED16,
    U32,
)
from stun.registry import AttributeType, Family, default_reason

REASON_CHARACTERS = 127
"""RFC 8489 section 14.8: a reason phrase is "fewer than 128 characters"."""

CHANGE_IP = 0x04
CHANGE_PORT = 0x02
RESERVE_NEXT_PORT = 0x80


class ErrorValue(NamedTuple):
    """An error code (300 to 699) and its reason phrase."""

    code: int
    reason: str


class AddressError(NamedTuple):
    """Why the relayed address of one family was not given (RFC 8656 section 18.12)."""

    family: int
    code: int
    reason: str


class ChangeRequest(NamedTuple):
    """From where the answer shall come (RFC 5780 section 7.2)."""

    change_ip: bool
    change_port: bool


class Icmp(NamedTuple):
    """What became of a packet to a peer (RFC 8656 section 18.13)."""

    icmp_type: int
    icmp_code: int
    data: int = 0


class Algorithm(NamedTuple):
    """A password algorithm and its parameters; both known ones have none (RFC 8489 18.5.1)."""

    number: int
    parameters: bytes = b""


class AccessToken(NamedTuple):
    """A self-contained token; only its issuer and the server look inside (RFC 7635 section 6.2)."""

    nonce: bytes
    encrypted_block: bytes


class TransmitCounter(NamedTuple):
    """How often request and response were sent (RFC 7982 section 3.1)."""

    requests: int
    responses: int


class EcnCheck(NamedTuple):
    """The ECN field as it arrived, 0 to 3 (RFC 6679 section 7.2.2)."""

    valid: bool
    echo: int


class ConnectBack(NamedTuple):
    """natkit: ask a server to dial the source of this TCP connection.

    ``kind`` 1: from the same server address and a port never contacted; 2: from the server's other
    address and a port never contacted; 3: simultaneous open, from the silent port of the address
    that this connection goes to.  ``count`` connections are dialled, the first ``delay`` ms after
    the response; one that is not decided ``wait`` ms after its dial counts as timed out.  ``port``
    is 0 in a request; in a response of kind 3 it is the silent port.
    """

    kind: int
    count: int  # type: ignore[assignment]  # shadows tuple.count, as the field is called so
    delay: int
    wait: int
    port: int = 0


class ConnectBackResult(NamedTuple):
    """natkit: what became of the connections that a server dialled, counted by outcome."""

    kind: int
    established: int
    refused: int
    unreachable: int
    timed_out: int
    other: int


def _error_number(attribute: Attribute[Any], code: int) -> tuple[int, int]:
    if not 300 <= code <= 699:
        raise attribute.misused(f"error code {code} is not between 300 and 699")
    return divmod(code, 100)


def _error_code(attribute: Attribute[Any], error_class: int, number: int) -> int:
    # RFC 8489 14.8: "The Class represents the hundreds digit [...] between 3 and 6. The Number
    # represents [...] the error code modulo 100, and its value MUST be between 0 and 99."
    error_class &= 0x07  # the other five bits are reserved
    if not 3 <= error_class <= 6:
        raise attribute.malformed(2, f"error class {error_class}")
    if number > 99:
        raise attribute.malformed(3, f"error number {number}")
    return error_class * 100 + number


def _reason_octets(attribute: Attribute[Any], reason: str) -> bytes:
    if len(reason) > REASON_CHARACTERS:
        raise attribute.misused(f"a reason phrase of {len(reason)} characters")
    try:
        return reason.encode()
    except UnicodeEncodeError:
        raise attribute.misused("a lone surrogate has no UTF-8 form") from None


class ErrorCodeAttribute(Attribute[ErrorValue]):
    """ERROR-CODE."""

    __slots__ = ()

    def to_octets(self, value: ErrorValue) -> bytes:
        """Return class, number and reason phrase; an empty one stands for the registry's."""
        code, reason = value
        return ERROR_HEAD.struct.pack(*_error_number(self, code)) + _reason_octets(
            self, reason or default_reason(code)
        )

    def from_octets(self, value: bytes) -> ErrorValue:
        """Return the code and the phrase."""
        if len(value) < ERROR_HEAD.size:
            raise self.malformed(0, f"{len(value)} octets")
        code = _error_code(self, *ERROR_HEAD.struct.unpack_from(value))
        return ErrorValue(code, diagnostic_text(value[ERROR_HEAD.size :]))


class AddressErrorAttribute(Attribute[AddressError]):
    """ADDRESS-ERROR-CODE."""

    __slots__ = ()

    def to_octets(self, value: AddressError) -> bytes:
        """Return family, class, number and reason phrase."""
        family, code, reason = value
        return ADDRESS_ERROR_HEAD.struct.pack(
            check_family(self, family), *_error_number(self, code)
        ) + _reason_octets(self, reason or default_reason(code))

    def from_octets(self, value: bytes) -> AddressError:
        """Return the family, the code and the phrase."""
        if len(value) < ADDRESS_ERROR_HEAD.size:
            raise self.malformed(0, f"{len(value)} octets")
        family, error_class, number = ADDRESS_ERROR_HEAD.struct.unpack_from(value)
        if family not in _FAMILIES:
            raise self.malformed(0, f"address family {family:#04x}")
        code = _error_code(self, error_class, number)
        return AddressError(family, code, diagnostic_text(value[ADDRESS_ERROR_HEAD.size :]))


_FAMILIES = frozenset(int(family) for family in Family)


def check_family(attribute: Attribute[Any], family: int) -> int:
    """Return the family to send, or raise ``UsageError`` when it is none of the two."""
    if family not in _FAMILIES:
        raise attribute.misused(f"address family {family:#04x}")
    return family


class FamilyAttribute(Number):
    """REQUESTED-ADDRESS-FAMILY and ADDITIONAL-ADDRESS-FAMILY.

    A family that is none of the two is a value all the same: RFC 8656 section 7.2 wants it answered
    with 440, which only the server can do.
    """

    __slots__ = ()

    def __init__(self, entry: AttributeType) -> None:
        super().__init__(entry, U8_RESERVED24)

    def to_octets(self, value: int) -> bytes:
        """Return the family and three reserved octets."""
        return super().to_octets(check_family(self, value))


class UnknownAttributes(Attribute[tuple[int, ...]]):
    """UNKNOWN-ATTRIBUTES."""

    __slots__ = ()

    def to_octets(self, value: Iterable[int]) -> bytes:
        """Return the attribute types, 16 bits each."""
        try:
            return b"".join(map(U16.struct.pack, value))
        except struct.error:
            raise self.misused("an attribute type has 16 bits") from None

    def from_octets(self, value: bytes) -> tuple[int, ...]:
        """Return the types; one that an RFC 3489 peer repeated as padding appears twice."""
        if len(value) % U16.size:
            raise self.malformed(len(value) - 1, f"{len(value)} octets are no list of 16-bit types")
        return tuple(code for (code,) in U16.struct.iter_unpack(value))


class ChangeRequestAttribute(Attribute[ChangeRequest]):
    """CHANGE-REQUEST."""

    __slots__ = ()

    def to_octets(self, value: ChangeRequest) -> bytes:
        """Return the two flags."""
        change_ip, change_port = value
        return U32.struct.pack(CHANGE_IP * bool(change_ip) | CHANGE_PORT * bool(change_port))

    def from_octets(self, value: bytes) -> ChangeRequest:
        """Return the two flags; the other bits mean nothing."""
        if len(value) != U32.size:
            raise self.malformed(0, f"{len(value)} octets, not 4")
        flags = U32.struct.unpack(value)[0]
        return ChangeRequest(bool(flags & CHANGE_IP), bool(flags & CHANGE_PORT))


class ResponsePort(Number):
    """RESPONSE-PORT: "a 16-bit unsigned integer [...] followed by 2 bytes of padding".

    The norm does not say whether the length counts the padding.  It does in what natkit sends; both
    are taken.
    """

    __slots__ = ()

    def __init__(self, entry: AttributeType) -> None:
        super().__init__(entry, U16_RESERVED16)

    def from_octets(self, value: bytes) -> int:
        """Return the port."""
        if len(value) == U16.size:
            value += bytes(2)
        return super().from_octets(value)


class EvenPort(Attribute[bool]):
    """EVEN-PORT: ``True`` asks the server to reserve the next-higher port too."""

    __slots__ = ()

    def to_octets(self, value: bool) -> bytes:
        """Return the R bit."""
        return U8.struct.pack(RESERVE_NEXT_PORT * bool(value))

    def from_octets(self, value: bytes) -> bool:
        """Return the R bit."""
        if len(value) != U8.size:
            raise self.malformed(0, f"{len(value)} octets, not 1")
        return bool(value[0] & RESERVE_NEXT_PORT)


class IcmpAttribute(Attribute[Icmp]):
    """ICMP."""

    __slots__ = ()

    def to_octets(self, value: Icmp) -> bytes:
        """Return type, code and data."""
        try:
            return ICMP.struct.pack(*value)
        except struct.error:
            raise self.misused(f"{value} does not fit") from None

    def from_octets(self, value: bytes) -> Icmp:
        """Return type, code and data."""
        if len(value) != ICMP.size:
            raise self.malformed(0, f"{len(value)} octets, not {ICMP.size}")
        return Icmp(*ICMP.struct.unpack(value))


class TransmitCounterAttribute(Attribute[TransmitCounter]):
    """TRANSACTION_TRANSMIT_COUNTER."""

    __slots__ = ()

    def to_octets(self, value: TransmitCounter) -> bytes:
        """Return the two counters."""
        try:
            return TRANSMIT_COUNTER.struct.pack(*value)
        except struct.error:
            raise self.misused(f"{value} does not fit") from None

    def from_octets(self, value: bytes) -> TransmitCounter:
        """Return the two counters."""
        if len(value) != TRANSMIT_COUNTER.size:
            raise self.malformed(0, f"{len(value)} octets, not {TRANSMIT_COUNTER.size}")
        return TransmitCounter(*TRANSMIT_COUNTER.struct.unpack(value))


class EcnCheckAttribute(Attribute[EcnCheck]):
    """ECN-CHECK: the lowest bit is V, the two above it are ECF."""

    __slots__ = ()

    def to_octets(self, value: EcnCheck) -> bytes:
        """Return 29 reserved bits, ECF and V."""
        valid, echo = value
        if not 0 <= echo <= 3:
            raise self.misused(f"an ECN field of {echo}")
        return U32.struct.pack(echo << 1 | bool(valid))

    def from_octets(self, value: bytes) -> EcnCheck:
        """Return V and ECF."""
        if len(value) != U32.size:
            raise self.malformed(0, f"{len(value)} octets, not 4")
        bits = U32.struct.unpack(value)[0]
        return EcnCheck(bool(bits & 1), bits >> 1 & 3)


def _pack_algorithm(attribute: Attribute[Any], algorithm: Algorithm) -> bytes:
    number, parameters = algorithm
    try:
        head = ALGORITHM_HEAD.struct.pack(number, len(parameters))
    except struct.error:
        raise attribute.misused(f"{algorithm} does not fit") from None
    return head + parameters + bytes(-len(parameters) % 4)


def _unpack_algorithm(
    attribute: Attribute[Any], value: bytes, offset: int
) -> tuple[Algorithm, int]:
    start = offset + ALGORITHM_HEAD.size
    if start > len(value):
        raise attribute.malformed(offset, "cut short")
    number, length = ALGORITHM_HEAD.struct.unpack_from(value, offset)
    end = start + length
    if end > len(value):
        raise attribute.malformed(offset + 2, "parameters longer than the attribute")
    # "padded to a 32-bit boundary, in the same manner as an attribute": the padding of the last
    # parameters may have been counted as the attribute's own, and so be missing here.
    return Algorithm(number, value[start:end]), min(end + -length % 4, len(value))


class PasswordAlgorithmAttribute(Attribute[Algorithm]):
    """PASSWORD-ALGORITHM: the one that a client chose."""

    __slots__ = ()

    def to_octets(self, value: Algorithm) -> bytes:
        """Return number, length and padded parameters."""
        return _pack_algorithm(self, value)

    def from_octets(self, value: bytes) -> Algorithm:
        """Return the algorithm."""
        algorithm, end = _unpack_algorithm(self, value, 0)
        if end != len(value):
            raise self.malformed(end, "more than one algorithm")
        return algorithm


class PasswordAlgorithmsAttribute(Attribute[tuple[Algorithm, ...]]):
    """PASSWORD-ALGORITHMS: those that a server offers, in its order."""

    __slots__ = ()

    def to_octets(self, value: Iterable[Algorithm]) -> bytes:
        """Return each algorithm in order."""
        return b"".join(_pack_algorithm(self, algorithm) for algorithm in value)

    def from_octets(self, value: bytes) -> tuple[Algorithm, ...]:
        """Return the algorithms in order."""
        algorithms = []
        offset = 0
        while offset < len(value):
            algorithm, offset = _unpack_algorithm(self, value, offset)
            algorithms.append(algorithm)
        return tuple(algorithms)


class AccessTokenAttribute(Attribute[AccessToken]):
    """ACCESS-TOKEN."""

    __slots__ = ()

    def to_octets(self, value: AccessToken) -> bytes:
        """Return the nonce with its length, and the encrypted block."""
        nonce, block = value
        try:
            return TOKEN_HEAD.struct.pack(len(nonce)) + nonce + block
        except struct.error:
            raise self.misused(f"a nonce of {len(nonce)} octets") from None

    def from_octets(self, value: bytes) -> AccessToken:
        """Return the nonce and the encrypted block; neither is looked into."""
        if len(value) < TOKEN_HEAD.size:
            raise self.malformed(0, f"{len(value)} octets")
        end = TOKEN_HEAD.size + TOKEN_HEAD.struct.unpack_from(value)[0]
        if end > len(value):
            raise self.malformed(0, "a nonce longer than the token")
        return AccessToken(value[TOKEN_HEAD.size : end], value[end:])


class ConnectBackAttribute(Attribute[ConnectBack]):
    """CONNECT-BACK."""

    __slots__ = ()

    def to_octets(self, value: ConnectBack) -> bytes:
        """Return the five fields."""
        try:
            return CONNECT_BACK.struct.pack(*value)
        except struct.error:
            raise self.misused(f"{value} does not fit") from None

    def from_octets(self, value: bytes) -> ConnectBack:
        """Return the five fields."""
        if len(value) != CONNECT_BACK.size:
            raise self.malformed(0, f"{len(value)} octets, not {CONNECT_BACK.size}")
        return ConnectBack(*CONNECT_BACK.struct.unpack(value))


class ConnectBackResultAttribute(Attribute[ConnectBackResult]):
    """CONNECT-BACK-RESULT."""

    __slots__ = ()

    def to_octets(self, value: ConnectBackResult) -> bytes:
        """Return the kind and the counts."""
        try:
            return CONNECT_BACK_RESULT.struct.pack(*value)
        except struct.error:
            raise self.misused(f"{value} does not fit") from None

    def from_octets(self, value: bytes) -> ConnectBackResult:
        """Return the kind and the counts."""
        if len(value) != CONNECT_BACK_RESULT.size:
            raise self.malformed(0, f"{len(value)} octets, not {CONNECT_BACK_RESULT.size}")
        return ConnectBackResult(*CONNECT_BACK_RESULT.struct.unpack(value))
