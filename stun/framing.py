"""Cutting a byte stream into messages: STUN and ChannelData over TCP, and RFC 4571 frames.

Theory of operation.  TCP delivers octets cut anywhere.  A splitter is fed what arrived and gives
back the messages that are complete, each exactly as it was sent; it keeps the rest.  It never
raises: the first octet that cannot belong to a message ends it, :attr:`error` says why and where,
and everything after is ignored, because a stream that has lost its framing cannot find it again.

Plain STUN and TURN over TCP need no framing of their own, "no framing protocols are used in
connections to those servers" (RFC 8489 section 6.2.2): the header's length says where a message
ends.  ICE-TCP multiplexes STUN with media and puts the two-octet length of RFC 4571 before every
packet (RFC 6544 section 3).  The two look alike to the eye and must not be confused.
"""

from __future__ import annotations

from typing import NamedTuple

from stun.demux import MAGIC_COOKIE
from stun.errors import DecodeError, DropReason, UsageError

MAX_STUN = 20 + 0xFFFC
"""The longest STUN message there can be: a header and the greatest length that four divides."""

MAX_FRAME = 0xFFFF
"""The longest packet that RFC 4571 can carry."""

_HEADER = 20
_CHANNEL_HEADER = 4


class _Cut(NamedTuple):
    """A complete message in the buffer: where it starts and ends, and where the next one starts."""

    start: int
    end: int
    following: int


class _Splitter:
    """What the two splitters share: the buffer, the octet count and the end."""

    __slots__ = ("_buffer", "_consumed", "error")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._consumed = 0
        self.error: DecodeError | None = None

    @property
    def pending(self) -> int:
        """Octets that are kept because their message is not complete."""
        return len(self._buffer)

    def _next(self, at: int) -> _Cut | DecodeError | None:
        """Cut the message that starts at ``at``; ``None``: more octets are needed."""
        raise NotImplementedError

    def push(self, data: bytes) -> None:
        """Take octets as they arrived; :meth:`pop` gives the messages."""
        if self.error is None:
            self._buffer += data

    def pop(self) -> bytes | None:
        """Return the next message that is complete, ``None`` when there is none.

        For a stream of which a message may say that something else follows: see :meth:`rest`.
        """
        buffer = self._buffer
        cut = self._next(0) if buffer else None
        if cut is None:
            return None
        if isinstance(cut, DecodeError):
            self.error = DecodeError(cut.reason, self._consumed + cut.offset, cut.detail)
            self._buffer = bytearray()
            return None
        message = bytes(buffer[cut.start : cut.end])
        del buffer[: cut.following]
        self._consumed += cut.following
        return message

    def rest(self) -> bytes:
        """Give up everything behind the last message: no more messages are expected."""
        rest = bytes(self._buffer)
        self._buffer = bytearray()
        return rest

    def feed(self, data: bytes) -> list[bytes]:
        """Take octets as they arrived; return the messages that are now complete, in order.

        After a framing error (:attr:`error` is set) the messages before it are still returned,
        and later calls return nothing.
        """
        if self.error is not None:
            return []
        buffer = self._buffer
        buffer += data
        found: list[bytes] = []
        at = 0
        while at < len(buffer):
            cut = self._next(at)
            if cut is None:
                break
            if isinstance(cut, DecodeError):
                # The offset that a person wants counts from the start of the stream.
                self.error = DecodeError(cut.reason, self._consumed + cut.offset, cut.detail)
                self._buffer = bytearray()
                return found
            found.append(bytes(buffer[cut.start : cut.end]))
            at = cut.following
        # One deletion for all messages of a call: deleting after each is quadratic in their number.
        del buffer[:at]
        self._consumed += at
        return found


class StunStream(_Splitter):
    """Splits a TCP or TLS stream into STUN messages, and ChannelData where a TURN usage has them.

    ``channel_data``: octets 0x40 to 0x7F start a ChannelData message, which "MUST be padded to a
    multiple of four" over TCP (RFC 8656 section 12.5); the padding is taken off.  The whole range
    of RFC 5766 (0x4000 to 0x7FFF) is accepted, since its clients may use it.  ``limit``: the
    longest message accepted, in octets, and so the most that is ever kept between two calls.

    A STUN message must have the magic cookie: RFC 3489 ran Binding over UDP only, and the cookie
    tells STUN from TLS or HTTP on the wrong port at the fifth octet instead of never.
    """

    __slots__ = ("_channel_data", "_limit")

    def __init__(self, *, channel_data: bool = False, limit: int = MAX_STUN) -> None:
        if limit < _HEADER:
            raise UsageError(f"a limit of {limit} octets leaves no room for a STUN header")
        super().__init__()
        self._channel_data = channel_data
        self._limit = limit

    def allow(self, limit: int) -> None:
        """Take messages of up to ``limit`` octets from now on: a server trusts a client more."""
        self._limit = limit

    def _next(self, at: int) -> _Cut | DecodeError | None:
        buffer = self._buffer
        if buffer[at] >= 0x40:
            return self._next_channel_data(at)
        # The cookie is compared as far as it has come, so that a stranger is told off at once, and
        # before the length, so that the reason does not depend on where the stream was cut.
        cookie = buffer[at + 4 : at + 8]
        if cookie != MAGIC_COOKIE[: len(cookie)]:
            return DecodeError(DropReason.NOT_EXPECTED_PROTOCOL, at + 4, "no magic cookie")
        if len(cookie) < 4:
            return None
        length = buffer[at + 2] << 8 | buffer[at + 3]
        if length & 3:
            return DecodeError(DropReason.BAD_LENGTH_ALIGNMENT, at + 2, f"length {length}")
        end = at + _HEADER + length
        if end - at > self._limit:
            return self._too_long(at + 2, end - at)
        return _Cut(at, end, end) if end <= len(buffer) else None

    def _next_channel_data(self, at: int) -> _Cut | DecodeError | None:
        buffer = self._buffer
        if buffer[at] >= 0x80:
            return DecodeError(DropReason.NOT_STUN, at, f"first octet 0x{buffer[at]:02x}")
        if not self._channel_data:
            return DecodeError(DropReason.NOT_STUN, at, "ChannelData is not expected here")
        if len(buffer) - at < _CHANNEL_HEADER:
            return None
        end = at + _CHANNEL_HEADER + (buffer[at + 2] << 8 | buffer[at + 3])
        if end - at > self._limit:
            return self._too_long(at + 2, end - at)
        following = end + (at - end & 3)
        return _Cut(at, end, following) if following <= len(buffer) else None

    def _too_long(self, at: int, octets: int) -> DecodeError:
        return DecodeError(DropReason.TOO_LONG, at, f"{octets} octets, {self._limit} allowed")


class Rfc4571Stream(_Splitter):
    """Splits a stream of RFC 4571 frames (a two-octet length, then that many octets).

    A frame of length zero is legal and is given as ``b""``.  ``limit``: the longest packet
    accepted, in octets.
    """

    __slots__ = ("_limit",)

    def __init__(self, *, limit: int = MAX_FRAME) -> None:
        super().__init__()
        self._limit = limit

    def allow(self, limit: int) -> None:
        """Take packets of up to ``limit`` octets from now on: a peer has proved itself."""
        self._limit = limit

    def feed(self, data: bytes) -> list[bytes]:
        """Take octets as they arrived; return the packets that are now complete, in order.

        A connection may carry a file in packets of 64 KiB, so a packet that is whole in ``data`` is
        cut out of it, and only one that is not passes through the buffer.
        """
        if self.error is not None:
            return []
        buffer = self._buffer
        found: list[bytes] = []
        at = 0
        if buffer:
            at = self._complete(data, found)
            if buffer or self.error is not None:
                return found
        start, size, limit = at, len(data), self._limit
        while size - at >= 2:
            length = data[at] << 8 | data[at + 1]
            if length > limit:
                self._consumed += at - start
                self._refuse(length)
                return found
            end = at + 2 + length
            if end > size:
                break
            found.append(data[at + 2 : end])
            at = end
        self._consumed += at - start
        if at < size:
            buffer += data[at:]
        return found

    def _complete(self, data: bytes, found: list[bytes]) -> int:
        """Complete the packet in the buffer, which is empty then; return how much that took."""
        buffer = self._buffer
        at = 0
        if len(buffer) < 2:
            at = 1
            buffer += data[:1]
            if len(buffer) < 2:
                return at
        length = buffer[0] << 8 | buffer[1]
        if length > self._limit:
            self._refuse(length)
            return at
        missing = 2 + length - len(buffer)
        buffer += memoryview(data)[at : at + missing]
        if len(buffer) == 2 + length:
            del buffer[:2]
            found.append(bytes(buffer))
            buffer.clear()
            self._consumed += 2 + length
        return at + missing

    def _refuse(self, length: int) -> None:
        self.error = DecodeError(
            DropReason.TOO_LONG, self._consumed, f"{length} octets, {self._limit} allowed"
        )
        self._buffer = bytearray()

    def _next(self, at: int) -> _Cut | DecodeError | None:
        buffer = self._buffer
        if len(buffer) - at < 2:
            return None
        length = buffer[at] << 8 | buffer[at + 1]
        if length > self._limit:
            return DecodeError(DropReason.TOO_LONG, at, f"{length} octets, {self._limit} allowed")
        end = at + 2 + length
        return _Cut(at + 2, end, end) if end <= len(buffer) else None


def rfc4571_frame(packet: bytes) -> bytes:
    """Put the two-octet length of RFC 4571 section 2 before a packet of at most 65535 octets."""
    if len(packet) > MAX_FRAME:
        raise UsageError(f"a packet of {len(packet)} octets does not fit an RFC 4571 frame")
    return len(packet).to_bytes(2, "big") + packet


def channel_data(channel: int, data: bytes, *, pad: bool) -> bytes:
    """Make a ChannelData message (RFC 8656 section 12.4); ``pad`` it for a stream."""
    if not 0x4000 <= channel <= 0x7FFF:
        raise UsageError(f"0x{channel:04x} is not a channel number")
    if len(data) > 0xFFFF:
        raise UsageError(f"{len(data)} octets do not fit a ChannelData message")
    message = channel.to_bytes(2, "big") + len(data).to_bytes(2, "big") + data
    return message + bytes(-len(message) & 3) if pad else message
