"""A STUN message as a value."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar

from stun.attributes import ERROR_CODE, Attribute, ErrorValue
from stun.registry import MAGIC_COOKIE, Class, Method, default_reason

T = TypeVar("T")

_REQUEST = Class.REQUEST  # an attribute of an enum takes a while to look up


@dataclass(slots=True)
class Message:
    """A STUN message: RFC 8489 section 5, and RFC 3489 where ``cookie`` is another one.

    Attributes are an ordered list of (type, octets): order and repetition carry meaning.  Values
    are decoded when they are asked for, so an unused malformed attribute costs and harms nothing.
    """

    method: int
    """12 bits; compare with :class:`stun.registry.Method`."""
    message_class: Class
    transaction_id: bytes
    """12 octets."""
    attributes: list[tuple[int, bytes]] = field(default_factory=list)
    cookie: int = MAGIC_COOKIE
    """The 32 bits before the transaction id.  RFC 3489 peers have the start of a 128-bit
    transaction id here, and want it back."""
    wire: bytes = field(default=b"", repr=False, compare=False)
    """The message as received, for the proofs that are computed over it; empty if made here."""
    proof_at: int = field(default=0, repr=False, compare=False)
    """Where in ``wire`` the first proof is that covers the whole message before it; 0: nowhere."""

    def get(self, attribute: Attribute[T]) -> T | None:
        """Return the value of the first such attribute, ``None`` if there is none.

        RFC 8489 section 14: "only the first occurrence needs to be processed by a receiver".
        Raises :class:`stun.errors.DecodeError` when its octets are no value; the offset counts
        from the start of the value.
        """
        wanted = attribute.code
        for code, value in self.attributes:
            if code == wanted:
                return attribute.unpack(value, self.transaction_id)
        return None

    def has(self, attribute: Attribute[T]) -> bool:
        """Whether such an attribute is present, well-formed or not."""
        wanted = attribute.code
        return any(code == wanted for code, _ in self.attributes)

    def all(self, attribute: Attribute[T]) -> list[T]:
        """Return the values of all such attributes in order, for those that may repeat.

        Raises :class:`stun.errors.DecodeError` as :meth:`get` does.
        """
        wanted = attribute.code
        return [
            attribute.unpack(value, self.transaction_id)
            for code, value in self.attributes
            if code == wanted
        ]

    def add(self, attribute: Attribute[T], value: T) -> Message:
        """Append an attribute and return this message, so that calls can be chained.

        Raises :class:`stun.errors.UsageError` for a value that must not be sent.
        """
        self.attributes.append((attribute.code, attribute.pack(value, self.transaction_id)))
        return self

    @property
    def is_rfc3489(self) -> bool:
        """Whether the peer does not know the magic cookie."""
        return self.cookie != MAGIC_COOKIE

    @classmethod
    def request(cls, method: int, transaction_id: bytes) -> Message:
        """Make a request."""
        return cls(method, _REQUEST, transaction_id)

    @classmethod
    def indication(cls, method: int, transaction_id: bytes) -> Message:
        """Make an indication."""
        return cls(method, Class.INDICATION, transaction_id)

    @classmethod
    def success(cls, request: Message) -> Message:
        """Make the success response to a request: its method, its transaction id, its cookie."""
        return cls(request.method, Class.SUCCESS, request.transaction_id, cookie=request.cookie)

    @classmethod
    def error(cls, request: Message, code: int, reason: str | None = None) -> Message:
        """Make an error response with ERROR-CODE; the registry has the phrase if none is given."""
        response = cls(request.method, Class.ERROR, request.transaction_id, cookie=request.cookie)
        phrase = default_reason(code) if reason is None else reason
        return response.add(ERROR_CODE, ErrorValue(code, phrase))

    def __str__(self) -> str:
        return (
            f"{Method.make(self.method).label} {self.message_class.name.lower()} "
            f"{self.transaction_id.hex()}"
        )
