"""What an attribute is to a program, and the kinds that need no structure of their own."""

from __future__ import annotations

import struct
from typing import Generic, TypeVar

from stun.errors import DecodeError, DropReason, UsageError
from stun.layout import Layout
from stun.registry import AttributeType

T = TypeVar("T")

MAX_VALUE = 0xFFFF
"""Octets of the longest value: the length field has 16 bits (RFC 8489 section 14)."""


class Attribute(Generic[T]):
    """One attribute: its number, its name, and how a value of type ``T`` becomes octets and back.

    Receiving is lenient where the norm lets a receiver be, sending is strict: a value that a norm
    forbids to send raises :class:`stun.errors.UsageError`; octets that are no value raise
    :class:`stun.errors.DecodeError` with the offset *within the value*.
    """

    __slots__ = ("code", "entry", "name")

    def __init__(self, entry: AttributeType) -> None:
        self.entry = entry
        self.code = int(entry)
        self.name = entry.label

    def pack(self, value: T, transaction_id: bytes) -> bytes:  # noqa: ARG002
        """Return the octets of ``value``, without padding."""
        return self.to_octets(value)

    def unpack(self, value: bytes, transaction_id: bytes) -> T:  # noqa: ARG002
        """Return what the octets of a received attribute mean."""
        return self.from_octets(value)

    # Only the XOR-ed addresses depend on the transaction; all others define these two.

    def to_octets(self, value: T) -> bytes:
        """Return the octets of ``value``."""
        raise NotImplementedError

    def from_octets(self, value: bytes) -> T:
        """Return what the octets mean."""
        raise NotImplementedError

    def malformed(self, offset: int, detail: str) -> DecodeError:
        """Build the error for octets that are no value of this attribute."""
        return DecodeError(DropReason.BAD_ATTRIBUTE_VALUE, offset, f"{self.name}: {detail}")

    def misused(self, detail: str) -> UsageError:
        """Build the error for a value that must not be sent."""
        return UsageError(f"{self.name}: {detail}")

    def __repr__(self) -> str:
        return f"<{self.name} {self.code:#06x}>"


class Octets(Attribute[bytes]):
    """An opaque value; its length may be bounded, and be a multiple of something."""

    __slots__ = ("longest", "multiple", "shortest")

    def __init__(
        self,
        entry: AttributeType,
        shortest: int = 0,
        longest: int = MAX_VALUE,
        multiple: int = 1,
    ) -> None:
        super().__init__(entry)
        self.shortest, self.longest, self.multiple = shortest, longest, multiple

    def _fits(self, value: bytes) -> bool:
        size = len(value)
        return self.shortest <= size <= self.longest and size % self.multiple == 0

    def to_octets(self, value: bytes) -> bytes:
        """Return the value itself."""
        if not self._fits(value):
            raise self.misused(f"{len(value)} octets")
        return bytes(value)

    def from_octets(self, value: bytes) -> bytes:
        """Return the value itself."""
        if not self._fits(value):
            raise self.malformed(0, f"{len(value)} octets")
        return value


class Flag(Attribute[bool]):
    """An attribute without a value: its presence says it all."""

    __slots__ = ()

    def to_octets(self, value: bool) -> bytes:
        """Return no octets; ``False`` cannot be sent, leave the attribute out instead."""
        if not value:
            raise self.misused("False is said by leaving the attribute out")
        return b""

    def from_octets(self, value: bytes) -> bool:
        """Return ``True``."""
        if value:
            raise self.malformed(0, f"{len(value)} octets where none belong")
        return True


class Number(Attribute[int]):
    """An unsigned number, perhaps among reserved octets."""

    __slots__ = ("_pack", "_unpack", "layout")

    def __init__(self, entry: AttributeType, layout: Layout) -> None:
        super().__init__(entry)
        self.layout = layout
        self._pack, self._unpack = layout.struct.pack, layout.struct.unpack

    def to_octets(self, value: int) -> bytes:
        """Return the number in network byte order."""
        try:
            return self._pack(value)
        except struct.error:
            raise self.misused(f"{value!r} does not fit") from None

    def from_octets(self, value: bytes) -> int:
        """Return the number."""
        try:
            number: int = self._unpack(value)[0]
        except struct.error:
            raise self.malformed(0, f"{len(value)} octets, not {self.layout.size}") from None
        return number


class Text(Attribute[str]):
    """Text in UTF-8.

    ``characters`` and ``octets`` bound what may be sent.  A received text may be of any length: RFC
    8489 lets 127 characters be up to 763 octets for a receiver, and longer ones do no harm here.
    """

    __slots__ = ("characters", "octets")

    def __init__(
        self, entry: AttributeType, *, characters: int = MAX_VALUE, octets: int = MAX_VALUE
    ) -> None:
        super().__init__(entry)
        self.characters, self.octets = characters, octets

    def to_octets(self, value: str) -> bytes:
        """Return the text in UTF-8."""
        try:
            encoded = value.encode()
        except UnicodeEncodeError:
            raise self.misused("a lone surrogate has no UTF-8 form") from None
        if len(value) > self.characters or len(encoded) > self.octets:
            raise self.misused(f"{len(value)} characters in {len(encoded)} octets are too many")
        return encoded

    def from_octets(self, value: bytes) -> str:
        """Return the text; it identifies something, so it must be UTF-8."""
        try:
            return value.decode()
        except UnicodeDecodeError as wrong:
            raise self.malformed(wrong.start, "not UTF-8") from None


class Diagnostic(Text):
    """Text for people, such as SOFTWARE: "serves only as a tool for diagnostic" purposes (14.14).

    What is not UTF-8 is shown as U+FFFD, and the NULs that some old servers end it with are cut.
    """

    __slots__ = ()

    def from_octets(self, value: bytes) -> str:
        """Return the text, whatever the octets."""
        return diagnostic_text(value)


def diagnostic_text(octets: bytes) -> str:
    """Return received text that only people read."""
    return octets.decode(errors="replace").rstrip("\0")
