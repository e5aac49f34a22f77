"""Octets that a TURN server must survive, and what is to become of each.

What a server discards it counts, by reason.  For what comes from somebody without an allocation the
reason follows from the octets alone, so :func:`fate` and :func:`stream_fates` know what the server
has to count, and the sums of a soak can be compared exactly.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Final

from stun import attributes as attrs
from stun.codec import decode, encode
from stun.errors import DecodeError, DropReason
from stun.framing import StunStream, channel_data
from stun.integrity import check_fingerprint
from stun.message import Message
from stun.registry import Class, Method
from stun.responder import check
from stun.sansio import Address
from turn.server.core import LONGEST_REQUEST

EXACT: Final = (
    DropReason.TOO_SHORT,
    DropReason.NOT_STUN,
    DropReason.BAD_LENGTH_ALIGNMENT,
    DropReason.LENGTH_MISMATCH,
    DropReason.TOO_LONG,
    DropReason.NOT_EXPECTED_PROTOCOL,
    DropReason.ATTRIBUTE_OVERRUN,
    DropReason.BAD_FINGERPRINT,
    DropReason.UNEXPECTED_CLASS,
    DropReason.UNKNOWN_METHOD,
    DropReason.NO_CHANNEL,
)
"""Reasons that nothing of an honest client is ever discarded for."""

_METHODS = (Method.BINDING, Method.ALLOCATE, Method.REFRESH, Method.CREATE_PERMISSION)
_SERVED = frozenset(
    int(method)
    for method in (*_METHODS, Method.CHANNEL_BIND, Method.CONNECT, Method.CONNECTION_BIND)
)


def fate(octets: bytes) -> DropReason | None:
    """Say why the server discards a datagram of a stranger; ``None``: another end than that."""
    if not octets:
        return DropReason.TOO_SHORT
    if 20 <= octets[0] < 64:
        return None  # DTLS, which has counters of its own
    if 0x40 <= octets[0] < 0x80:
        return DropReason.NO_ALLOCATION
    if len(octets) > LONGEST_REQUEST:
        return DropReason.TOO_LONG
    try:
        message = decode(octets)
    except DecodeError as error:
        return error.reason
    if octets[:2] == b"\x00\x01":
        return check(message)
    if message.is_rfc3489:
        return DropReason.NOT_EXPECTED_PROTOCOL
    if check_fingerprint(message) is False:
        return DropReason.BAD_FINGERPRINT
    if message.message_class is Class.REQUEST:
        # What has no proof is answered before anything else is looked at.
        return None if message.method in _SERVED else DropReason.UNKNOWN_METHOD
    if message.message_class is not Class.INDICATION:
        return DropReason.UNEXPECTED_CLASS
    if message.method == Method.SEND:
        return DropReason.NO_ALLOCATION
    return None if message.method == Method.BINDING else DropReason.UNKNOWN_METHOD


def stream_fates(octets: bytes) -> tuple[Counter[DropReason], bool]:
    """Say what is discarded of a stranger's TCP stream, and whether the server closes it.

    Not for a stream whose first octet says that it is TLS.
    """
    stream = StunStream(channel_data=True, limit=LONGEST_REQUEST)
    fates: Counter[DropReason] = Counter()
    for message in stream.feed(octets):
        reason = stream_fate(message)
        if reason is not None:
            fates[reason] += 1
    if stream.error is not None:
        fates[stream.error.reason] += 1
    return fates, stream.error is not None


def stream_fate(octets: bytes) -> DropReason | None:
    """Say why the server discards a message that a stranger sends over a connection."""
    if octets[:2] != b"\x00\x01":
        return fate(octets)
    try:
        message = decode(octets)
    except DecodeError as error:
        return error.reason
    return DropReason.BAD_FINGERPRINT if check_fingerprint(message) is False else None


class Shots:
    """Makes malformed and unwelcome messages, the same ones for the same ``rng``.

    ``corpus``: a folder with files of octets to start from, beside what is made here.
    """

    def __init__(self, rng: random.Random, corpus: Path | None = None) -> None:
        self._rng = rng
        self._seeds = [self.message() for _ in range(64)]
        if corpus is not None:
            files = sorted(path for path in corpus.rglob("*") if path.is_file())
            self._seeds += [path.read_bytes()[:1500] for path in files[:2000]]
        self._makers: tuple[Callable[[], bytes], ...] = (
            self._noise,
            self._mutated,
            self._mutated,
            self._mutated,
            self._truncated,
            self._prolonged,
            self._channel_data,
            self._indication,
            self._stranger,
            self._response,
            self._bad_fingerprint,
            self._overrun,
            self._classic,
            self.message,
        )

    def any(self) -> bytes:
        """Return one."""
        return self._rng.choice(self._makers)()

    def dropped(self) -> bytes:
        """Return one that draws no answer, whether its source has an allocation or not."""
        while True:
            octets = self.any()
            if fate(octets) not in (None, DropReason.NO_ALLOCATION):
                return octets

    def message(self) -> bytes:
        """Return a request as it should be, but for a proof."""
        rng = self._rng
        message = Message.request(rng.choice(_METHODS), rng.randbytes(12))
        if message.method == Method.ALLOCATE:
            message.add(attrs.REQUESTED_TRANSPORT, 17)
            if rng.random() < 0.3:
                message.add(attrs.LIFETIME, rng.randrange(1 << 32))
        elif message.method == Method.CREATE_PERMISSION:
            message.add(attrs.XOR_PEER_ADDRESS, Address("192.175.48.20", rng.randrange(65536)))
        if rng.random() < 0.3:
            message.add(attrs.USERNAME, "nobody").add(attrs.REALM, "soak")
            message.add(attrs.NONCE, rng.randbytes(20).hex().encode())
            return encode(message, key=rng.randbytes(16))
        return encode(message, fingerprint=rng.random() < 0.3)

    def allocate(self) -> bytes:
        """Return the first request of every session, which draws a 401."""
        message = Message.request(Method.ALLOCATE, self._rng.randbytes(12))
        return encode(message.add(attrs.REQUESTED_TRANSPORT, 17))

    def half(self) -> bytes:
        """Return the beginning of a message whose rest is never to come."""
        rng = self._rng
        whole = rng.choice((self.message(), channel_data(0x4000, rng.randbytes(400), pad=True)))
        return whole[: rng.randrange(1, len(whole))]

    def broken_stream(self) -> bytes:
        """Return what a TCP connection must be closed for, by framing alone."""
        rng = self._rng
        while True:
            before = b"".join(self.message() for _ in range(rng.randrange(3)))
            kind = rng.randrange(5)
            if kind == 0:
                octets = before + rng.randbytes(rng.randrange(1, 64))
            elif kind == 1:  # a length that nobody could want
                octets = before + bytes.fromhex("0003 fffc 2112a442") + rng.randbytes(12)
            elif kind == 2:
                octets = before + b"\x40\x00\xff\xff" + rng.randbytes(8)
            elif kind == 3:
                octets = before + b"GET / HTTP/1.1\r\nHost: relay.example\r\n\r\n"
            else:
                octets = before + bytes.fromhex("0003 0007 2112a442") + rng.randbytes(19)
            if octets[0] != 22 and stream_fates(octets)[1]:
                return octets

    # One kind each. -------------------------------------------------------------------------------

    def _noise(self) -> bytes:
        return self._rng.randbytes(self._rng.choice((0, 1, 3, 4, 19, 20, 21, 200, 1400, 5000)))

    def _mutated(self) -> bytes:
        rng = self._rng
        octets = bytearray(rng.choice(self._seeds))
        for _ in range(rng.randrange(1, 5)):
            if octets:
                octets[rng.randrange(len(octets))] = rng.randrange(256)
        return bytes(octets)

    def _truncated(self) -> bytes:
        octets = self._rng.choice(self._seeds)
        return octets[: self._rng.randrange(len(octets) + 1)]

    def _prolonged(self) -> bytes:
        return self._rng.choice(self._seeds) + self._rng.randbytes(self._rng.randrange(1, 40))

    def _channel_data(self) -> bytes:
        rng = self._rng
        data = channel_data(
            rng.randrange(0x4000, 0x8000), rng.randbytes(rng.randrange(200)), pad=False
        )
        return data if rng.random() < 0.5 else data[:2] + rng.randbytes(2) + data[4:]

    def _indication(self) -> bytes:
        rng = self._rng
        indication = Message.indication(rng.choice((Method.SEND, Method.DATA)), rng.randbytes(12))
        indication.add(attrs.XOR_PEER_ADDRESS, Address("127.0.0.1", rng.randrange(1, 65536)))
        return encode(indication.add(attrs.DATA, rng.randbytes(rng.randrange(100))))

    def _stranger(self) -> bytes:
        return encode(Message.request(self._rng.randrange(0x100, 0xFFF), self._rng.randbytes(12)))

    def _response(self) -> bytes:
        request = Message.request(self._rng.choice(_METHODS), self._rng.randbytes(12))
        return encode(Message.success(request))

    def _bad_fingerprint(self) -> bytes:
        request = Message.request(Method.REFRESH, self._rng.randbytes(12))
        octets = bytearray(encode(request, fingerprint=True))
        octets[-1] ^= 1 + self._rng.randrange(255)
        return bytes(octets)

    def _overrun(self) -> bytes:
        octets = bytearray(self.allocate())
        octets[22:24] = self._rng.randrange(9, 1 << 16).to_bytes(2)
        return bytes(octets)

    def _classic(self) -> bytes:
        """Return a request as in RFC 3489, whose transaction id has no magic cookie."""
        method = self._rng.choice((b"\x00\x01", b"\x00\x03"))
        return method + bytes(2) + b"\x00" + self._rng.randbytes(15)
