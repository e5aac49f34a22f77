"""The stateless half of a STUN server: a request's octets in, an answer's octets out.

Serves RFC 8489 and RFC 5389 clients, RFC 5780 behaviour discovery, and RFC 3489 clients, who have
no magic cookie and are answered in the attributes of their time.  Nothing is remembered but
budgets, so the same request gets the same answer, as RFC 8489 section 6.3.1 wants it for
retransmissions.

What an unproven UDP source can make the server send is bounded:

* a bare request of 20 octets gets 68 (IPv4, 3.4 times) or 116 (IPv6, 5.8 times), all of it demanded
  by RFC 5780 section 6.1; with the IP and UDP headers that is 2.0 and 2.5 times.  No answer is a
  greater multiple of its request.  SOFTWARE is left out wherever it would make an answer longer
  than three times its request;
* PADDING in an answer is never longer than it was in the request.  RFC 5780 section 6.1 says that
  it SHOULD have the MTU's length, but then 24 octets would draw 1,500;
* every prefix has a budget of answers, and a much smaller one of those answers that RESPONSE-PORT
  or PADDING ask for;
* RFC 3489's RESPONSE-ADDRESS, an answer to a third party, is refused as an unknown attribute.

A *lean* responder is for a server whose clients want nothing but their address.  At an endpoint
without an alternate its answer to a bare request is 32 octets (IPv4, 1.6 times; 1.2 times with the
headers) or 44 (IPv6): XOR-MAPPED-ADDRESS alone, all that RFC 8489 section 6.3.1 asks for, or
MAPPED-ADDRESS for those who have no magic cookie.  With a budget of octets
(:class:`stun.ratelimit.ByteBudget`) in place of the budgets of answers, a prefix gets back what
came from it and a burst that is stated, and no more.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from mmap import mmap
from typing import Final

from stun.attributes import (
    CHANGE_REQUEST,
    CHANGED_ADDRESS,
    FINGERPRINT,
    MAPPED_ADDRESS,
    OTHER_ADDRESS,
    PADDING,
    RESPONSE_ORIGIN,
    RESPONSE_PORT,
    SOFTWARE,
    SOURCE_ADDRESS,
    UNKNOWN_ATTRIBUTES,
    XOR_MAPPED_ADDRESS,
    host_octets,
)
from stun.codec import Message, decode, encode, unknown_required
from stun.errors import DecodeError, DropReason
from stun.integrity import check_fingerprint
from stun.layout import TLV
from stun.ratelimit import IPV4_PREFIX, IPV6_PREFIX, ByteBudget, PrefixLimiter, prefix_of
from stun.registry import (
    HEADER_SIZE,
    MAGIC_COOKIE,
    AttributeType,
    Class,
    ErrorCode,
    Method,
    default_reason,
)
from stun.sansio import Address, Entropy, Instant, Transmit

CHANGE_IP, CHANGE_PORT = 2, 1
"""Indices into what an endpoint can send from: the flags of CHANGE-REQUEST."""

SOFTWARE_FACTOR: Final = 3
"""How many times as long as its request an answer may get by SOFTWARE."""
LEAN_FACTOR: Final = 1
"""The same of a lean responder."""
_REASON = 64  # characters of a reason phrase; RFC 8489 section 14.8 allows 127

UNDERSTOOD: Final = frozenset(int(entry) for entry in AttributeType if entry.is_known) - {
    int(AttributeType.RESPONSE_ADDRESS)
}
"""What gets no 420.  RFC 8489 section 6.3: "Known-but-unexpected attributes SHOULD be ignored"."""

_OVER = DropReason.RATE_LIMITED
_BINDING = int(Method.BINDING)
_COOKIE_AT = 4  # the type and the length come before it
_BARE_REQUEST = encode(Message.request(_BINDING, bytes(12)))[: _COOKIE_AT + 4]

# XOR-MAPPED-ADDRESS as one operation on the octets of MAPPED-ADDRESS (RFC 8489 section 14.2):
# family, port xor the upper half of the cookie, address xor the cookie and, for IPv6, the
# transaction id.
_SIZE_V4, _SIZE_V6 = 8, 20
_MASK_V4 = (MAGIC_COOKIE >> 16) << 32 | MAGIC_COOKIE
_PORT_MASK = (MAGIC_COOKIE >> 16) << 128
_HEADS = {
    size: (
        TLV.struct.pack(XOR_MAPPED_ADDRESS.code, size),
        TLV.struct.pack(MAPPED_ADDRESS.code, size),
    )
    for size in (_SIZE_V4, _SIZE_V6)
}

# The parts of a lean answer (see below): in front of the cookie and the transaction id, and between
# these and the port.
_LEAN = Message(_BINDING, Class.SUCCESS, bytes(12)).add(XOR_MAPPED_ADDRESS, Address("0.0.0.0", 0))  # noqa: S104
_LEAN6 = Message(_BINDING, Class.SUCCESS, bytes(12)).add(XOR_MAPPED_ADDRESS, Address("::", 0))
_PACKED_V4, _PACKED_V6 = 6, 18  # octets of a port and an address
_HEAD_V4, _HEAD_V6 = encode(_LEAN)[:_COOKIE_AT], encode(_LEAN6)[:_COOKIE_AT]
_BODY_V4 = encode(_LEAN)[HEADER_SIZE:-_PACKED_V4]
_BODY_V6 = encode(_LEAN6)[HEADER_SIZE:-_PACKED_V6]
_IPV4_MAPPED = bytes(10) + b"\xff\xff"

# Where a source lies before a request in memory: the end of a sockaddr_in or a sockaddr_in6.
_NAME_V4, _NAME_V6 = 14, 26
_SOURCE_V4 = struct.Struct("!HI")
_MAPPED_V4 = struct.Struct(f"!{len(_BODY_V4)}sHI")
BARE_ANSWER: Final = {False: HEADER_SIZE + 4 + _SIZE_V4, True: HEADER_SIZE + 4 + _SIZE_V6}
"""Octets of the lean answer to a bare request, by whether the client's address is IPv6."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What unproven sources may have, a second and a prefix (/24, /48); a rate of 0 is no limit.

    The defaults are far above what an honest prefix sends (a carrier's whole NAT pool gathering
    candidates is some hundred requests a second) and hold a victim's share of reflected traffic
    under 4 Mbit/s.
    """

    answers: float = 4000
    answer_burst: int = 16000
    special: float = 30
    """Answers with PADDING or to another port (RESPONSE-PORT)."""
    special_burst: int = 300
    mtu: int = 1500
    """The greatest length of PADDING in an answer, in octets: it makes the datagram a fragment."""


class Endpoint:
    """A transport address that requests come to, and what answers to them say.

    ``advertised`` is this address as clients see it.  :meth:`join` names the endpoints of the same
    server with the other port, the other address, and both; without them CHANGE-REQUEST is refused.
    """

    __slots__ = ("advertised", "classic", "head", "local", "modern", "senders", "tail")

    def __init__(self, local: Address, advertised: Address) -> None:
        self.local = local
        self.advertised = advertised
        self._describe((self,))

    def join(self, port: Endpoint, address: Endpoint, both: Endpoint) -> None:
        """Take note of where answers can come from when the port, the address or both change."""
        self._describe((self, port, address, both))

    @property
    def has_alternate(self) -> bool:
        """Whether CHANGE-REQUEST can be served."""
        return len(self.senders) > 1

    def _describe(self, senders: tuple[Endpoint, ...]) -> None:
        self.senders = tuple(sender.local for sender in senders)
        """By CHANGE-REQUEST flags (:data:`CHANGE_IP`, :data:`CHANGE_PORT`): where from."""
        self.modern: list[list[tuple[int, bytes]]] = []
        """By flags: what RFC 5780 section 6.1 puts into an answer beside the mapped address."""
        self.classic: list[list[tuple[int, bytes]]] = []
        """By flags: the same of RFC 3489 section 8.1."""
        # "OTHER-ADDRESS [...] Ca and Cp, respectively, regardless of the value of the
        # CHANGE-REQUEST flags" (RFC 5780 section 6.1).
        other = senders[-1].advertised if len(senders) > 1 else None
        for sender in senders:
            modern, classic = (Message.request(_BINDING, bytes(12)) for _ in range(2))
            modern.add(RESPONSE_ORIGIN, sender.advertised)
            classic.add(SOURCE_ADDRESS, sender.advertised)
            if other is not None:
                modern.add(OTHER_ADDRESS, other)
                classic.add(CHANGED_ADDRESS, other)
            self.modern.append(modern.attributes)
            self.classic.append(classic.attributes)
        # The parts of the answer to a bare request that are the same for every client.
        answer = Message(_BINDING, Class.SUCCESS, bytes(12))
        sample = Address("::" if self.local.is_ipv6 else "0.0.0.0", 0)  # noqa: S104
        answer.add(XOR_MAPPED_ADDRESS, sample).add(MAPPED_ADDRESS, sample)
        own_part = len(encode(answer))
        answer.attributes += self.modern[0]
        octets = encode(answer)
        self.head, self.tail = octets[:_COOKIE_AT], octets[own_part:]


class Responder:
    """Answers Binding requests.  ``software`` is what SOFTWARE says, if anything.

    ``lean``: at endpoints without an alternate, answers have the one address that a client asks
    for, and SOFTWARE only where they get no longer by it than the request was.  ``budget`` is asked
    instead of the budgets of ``limits``; the responder credits to it what it is given to answer, so
    nobody else may credit the same datagram.
    """

    def __init__(
        self,
        limits: Limits,
        software: str | None,
        *,
        entropy: Entropy,
        lean: bool = False,
        budget: ByteBudget | None = None,
    ) -> None:
        self._lean = lean
        self._budget = budget
        self._factor = LEAN_FACTOR if lean else SOFTWARE_FACTOR
        self._answers = PrefixLimiter(limits.answers, limits.answer_burst, entropy=entropy)
        self._special = PrefixLimiter(
            limits.special, limits.special_burst, entropy=entropy, slots_log2=10
        )
        self._longest_padding = limits.mtu + 3 & ~3
        self._software = SOFTWARE.to_octets(software) if software else b""

    def datagram(
        self, data: bytes, source: Address, endpoint: Endpoint, now: Instant
    ) -> Transmit | DropReason | None:
        """Answer a datagram; a reason says why there is no answer, ``None`` that none is due."""
        octets = host_octets(source.host)
        if len(data) == HEADER_SIZE and data.startswith(_BARE_REQUEST):
            # What most clients send: the same octets as by the long way, at a fraction of the time.
            if self._lean and not endpoint.has_alternate:
                answer = self.bare(data, source.port.to_bytes(2) + octets, now)
                return Transmit(answer, source, endpoint.local) if answer else _OVER
            answer = self._full(data, source, endpoint)
            if not self._may(prefix_of(octets), data, answer, now):
                return _OVER
            return Transmit(answer, source, endpoint.local)
        try:
            request = decode(data)
        except DecodeError as error:
            return error.reason
        refusal = check(request)
        if refusal is not None or request.message_class is not Class.REQUEST:
            return refusal
        prefix = prefix_of(octets)
        if self._budget is None and not self._answers.allow(prefix, now):
            return _OVER
        try:
            sent = self._datagram(request, source, endpoint, prefix, now)
        except DecodeError as error:
            malformed = self._encode(_malformed(request, error), request)
            sent = Transmit(malformed, source, endpoint.local)
        if self._budget is None or not isinstance(sent, Transmit):
            return sent
        # RESPONSE-PORT may have changed the destination, but not its host.
        paid = self._budget.exchange(prefix, len(data), len(sent.data), now)
        return sent if paid else _OVER

    def bare(self, data: bytes, packed: bytes, now: Instant) -> bytes | None:
        """Answer a bare Binding request leanly, for who has the source as octets and no objects.

        ``packed`` is the source's port (2 octets) and address (4, or 16), in network order.
        Returns ``None`` for anything but a bare request of 20 octets with the magic cookie: that is
        for :meth:`datagram`, as is every datagram to an endpoint with an alternate.  Returns no
        octets where the source is over its budget: nothing is to be sent.
        """
        if len(data) != HEADER_SIZE or not data.startswith(_BARE_REQUEST):
            return None
        if len(packed) == _PACKED_V4:
            prefix, length = packed[2 : 2 + IPV4_PREFIX], HEADER_SIZE + _SIZE_V4 + 4
        elif packed.startswith(_IPV4_MAPPED, 2):
            # How a socket for both families reports an IPv4 client, who must hear of IPv4.
            return self.bare(data, packed[:2] + packed[14:], now)
        else:
            prefix, length = packed[2 : 2 + IPV6_PREFIX], HEADER_SIZE + _SIZE_V6 + 4
        if self._budget is not None:
            if not self._budget.exchange(prefix, HEADER_SIZE, length, now):
                return b""
        elif not self._answers.allow(prefix, now):
            return b""
        if len(packed) == _PACKED_V4:
            mapped = (int.from_bytes(packed) ^ _MASK_V4).to_bytes(_PACKED_V4)
            return _HEAD_V4 + data[_COOKIE_AT:] + _BODY_V4 + mapped
        mask = _PORT_MASK | int.from_bytes(data[_COOKIE_AT:])
        return (
            _HEAD_V6
            + data[_COOKIE_AT:]
            + _BODY_V6
            + (int.from_bytes(packed) ^ mask).to_bytes(_PACKED_V6)
        )

    def bare_in_place(
        self, memory: mmap, starts: Sequence[int], now: Instant, *, ipv6: bool
    ) -> list[int]:
        """Turn many requests that :meth:`bare` would answer into their answers, where they lie.

        ``memory`` has the 20 octets of a bare request at each of ``starts``; right before them the
        source as a ``sockaddr_in`` or ``sockaddr_in6`` without its family, right behind them room
        for the rest of an answer (:data:`BARE_ANSWER`).  Returns at which of ``starts`` there is an
        answer that may be sent; a mapped IPv4 address must not come here.
        """
        before, octets = (_NAME_V6 - 6, IPV6_PREFIX) if ipv6 else (_NAME_V4 - 2, IPV4_PREFIX)
        budget, allow, length = self._budget, self._answers.allow, BARE_ANSWER[ipv6]
        paid: list[int] = []
        for start in starts:
            at = start - before
            prefix = memory[at : at + octets]
            if (
                allow(prefix, now)
                if budget is None
                else budget.exchange(prefix, HEADER_SIZE, length, now)
            ):
                paid.append(start)
        if ipv6:
            _answer_v6(memory, paid)
        else:
            _answer_v4(memory, paid)
        return paid

    def _full(self, data: bytes, source: Address, endpoint: Endpoint) -> bytes:
        """Return the answer to a bare request with all that RFC 5780 section 6.1 demands."""
        plain = MAPPED_ADDRESS.to_octets(source)
        size = len(plain)
        mask = _MASK_V4 if size == _SIZE_V4 else _PORT_MASK | int.from_bytes(data[_COOKIE_AT:])
        mapped = (int.from_bytes(plain) ^ mask).to_bytes(size)
        mapped_head, plain_head = _HEADS[size]
        return b"".join(
            (
                endpoint.head,
                data[_COOKIE_AT:],
                mapped_head,
                mapped,
                plain_head,
                plain,
                endpoint.tail,
            )
        )

    def _may(self, prefix: bytes, data: bytes, answer: bytes, now: Instant) -> bool:
        if self._budget is None:
            return self._answers.allow(prefix, now)
        return self._budget.exchange(prefix, len(data), len(answer), now)

    def _datagram(
        self, request: Message, source: Address, endpoint: Endpoint, prefix: bytes, now: Instant
    ) -> Transmit | DropReason:
        error = self._error(request)
        if error is not None:
            return Transmit(self._encode(error, request), source, endpoint.local)
        change = request.get(CHANGE_REQUEST)
        flags = 0
        if change is not None:
            flags = change.change_ip * CHANGE_IP + change.change_port * CHANGE_PORT
            # RFC 5780 section 6: without a second address, 420 "to any Request with a
            # CHANGE-REQUEST attribute".  RFC 3489 clients send it in every request, without flags.
            if not endpoint.has_alternate and (flags or not request.is_rfc3489):
                error = _unknown(request, (CHANGE_REQUEST.code,))
                return Transmit(self._encode(error, request), source, endpoint.local)
        padding, port = request.get(PADDING), request.get(RESPONSE_PORT)
        destination = source
        if padding is not None or port is not None:
            if padding is not None and port is not None:
                # RFC 5780 section 7.5: "MUST NOT process"; 6.1: "an error response of type 400".
                error = _failure(request, ErrorCode.BAD_REQUEST, "PADDING and RESPONSE-PORT")
                return Transmit(self._encode(error, request), source, endpoint.local)
            if self._budget is None and not self._special.allow(prefix, now):
                return _OVER
            if port == 0:
                error = _failure(request, ErrorCode.BAD_REQUEST, "RESPONSE-PORT is 0")
                return Transmit(self._encode(error, request), source, endpoint.local)
            if port is not None:
                destination = Address(source.host, port)
        answer = self._success(request, source, endpoint, flags)
        if padding is not None:
            answer.add(PADDING, bytes(min(len(padding), self._longest_padding)))
        return Transmit(self._encode(answer, request), destination, endpoint.senders[flags])

    def over_stream(self, request: Message, source: Address, endpoint: Endpoint) -> Message:
        """Return the answer to a request that came over a connection.

        The message must have passed :func:`check`.  The source is proven, so no budget is taken.
        """
        try:
            error = self._error(request)
            if error is not None:
                return error
            change = request.get(CHANGE_REQUEST)
            if change is not None and (any(change) or not endpoint.has_alternate):
                # RFC 5780 section 3: "STUN forbids a server from creating a new TCP or TCP/TLS
                # connection to the client", so there is nowhere else an answer could come from.
                return _unknown(request, (CHANGE_REQUEST.code,))
            if request.has(RESPONSE_PORT):
                return _unknown(request, (RESPONSE_PORT.code,))
            padding = request.get(PADDING)
        except DecodeError as malformed:
            return _malformed(request, malformed)
        answer = self._success(request, source, endpoint, 0)
        if padding is not None:
            answer.add(PADDING, bytes(min(len(padding), self._longest_padding)))
        if self._software:
            answer.attributes.append((SOFTWARE.code, self._software))
        return answer

    def _error(self, request: Message) -> Message | None:
        if request.method != _BINDING:
            # A client that takes this for a TURN server learns so at once instead of by silence.
            return _failure(request, ErrorCode.BAD_REQUEST, "only Binding is served here")
        unknown = unknown_required(request, UNDERSTOOD)
        return _unknown(request, unknown) if unknown else None

    def _success(
        self, request: Message, source: Address, endpoint: Endpoint, flags: int
    ) -> Message:
        answer = Message.success(request)
        if self._lean and not endpoint.has_alternate:
            return answer.add(MAPPED_ADDRESS if request.is_rfc3489 else XOR_MAPPED_ADDRESS, source)
        if request.is_rfc3489:
            answer.add(MAPPED_ADDRESS, source)
            answer.attributes += endpoint.classic[flags]
        else:
            # RFC 5780 section 6.1: "The server MUST include both".
            answer.add(XOR_MAPPED_ADDRESS, source).add(MAPPED_ADDRESS, source)
            answer.attributes += endpoint.modern[flags]
        return answer

    def _encode(self, answer: Message, request: Message) -> bytes:
        # RFC 8489 section 7: FINGERPRINT "is not backwards compatible with RFC 3489".
        fingerprint = not request.is_rfc3489 and request.has(FINGERPRINT)
        octets = encode(answer, fingerprint=fingerprint)
        room = self._factor * len(request.wire) - len(octets)
        if self._software and not request.is_rfc3489 and len(self._software) + 7 <= room:
            answer.attributes.append((SOFTWARE.code, self._software))
            octets = encode(answer, fingerprint=fingerprint)
        return octets


def check(message: Message) -> DropReason | None:
    """Say why a server must discard this message silently, if it must (RFC 8489 section 6.3)."""
    if not message.is_rfc3489 and check_fingerprint(message) is False:
        return DropReason.BAD_FINGERPRINT
    match message.message_class:
        case Class.SUCCESS | Class.ERROR:
            return DropReason.UNEXPECTED_CLASS
        case Class.REQUEST:
            return None if Method.make(message.method).is_known else DropReason.UNKNOWN_METHOD
        case Class.INDICATION:
            if message.method != _BINDING:
                return DropReason.UNKNOWN_METHOD
            if unknown_required(message, UNDERSTOOD):
                return DropReason.UNKNOWN_COMPREHENSION_REQUIRED
            return None


def _failure(request: Message, code: int, reason: str | None = None) -> Message:
    phrase = default_reason(code) if reason is None else reason
    if request.is_rfc3489:
        # Its attributes are not padded, so their lengths are: "The lengths of the reason phrases
        # MUST be a multiple of 4 [...] by added spaces to the end" (RFC 3489 section 11.2.9).
        phrase += " " * (-len(phrase) % 4)
    return Message.error(request, code, phrase)


def _malformed(request: Message, error: DecodeError) -> Message:
    return _failure(request, ErrorCode.BAD_REQUEST, error.detail[:_REASON])


def _unknown(request: Message, codes: tuple[int, ...]) -> Message:
    if request.is_rfc3489 and len(codes) % 2:
        # RFC 3489 section 11.2.10: of an odd number "one [...] MUST be repeated".
        codes += codes[-1:]
    return _failure(request, ErrorCode.UNKNOWN_ATTRIBUTE).add(UNKNOWN_ATTRIBUTES, codes)


def _answer_v4(memory: mmap, starts: Sequence[int]) -> None:
    read, write = _SOURCE_V4.unpack_from, _MAPPED_V4.pack_into
    port_mask, mask = MAGIC_COOKIE >> 16, MAGIC_COOKIE
    for start in starts:
        port, address = read(memory, start - _NAME_V4)
        memory[start : start + _COOKIE_AT] = _HEAD_V4
        write(memory, start + HEADER_SIZE, _BODY_V4, port ^ port_mask, address ^ mask)


def _answer_v6(memory: mmap, starts: Sequence[int]) -> None:
    for start in starts:
        port = memory[start - _NAME_V6 : start - _NAME_V6 + 2]
        address = memory[start - _NAME_V6 + 6 : start - _NAME_V6 + 22]
        mask = _PORT_MASK | int.from_bytes(memory[start + _COOKIE_AT : start + HEADER_SIZE])
        mapped = (int.from_bytes(port + address) ^ mask).to_bytes(_PACKED_V6)
        rest = _BODY_V6 + mapped
        memory[start : start + _COOKIE_AT] = _HEAD_V6
        memory[start + HEADER_SIZE : start + HEADER_SIZE + len(rest)] = rest
