"""What a TLS or DTLS client says first, as far as a server must know it before it spends anything.

Two questions are answered before there is any TLS state: which protocols the client offers (ALPN,
RFC 7301), and, over UDP, whether it can be reached where it claims to be (the cookie of RFC 6347
section 4.2.1).  Everything else about a ClientHello is left to the TLS library.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from typing import Final

from stun.sansio import Address, Entropy, Instant

HANDSHAKE: Final = 22
"""The record type, and so the first octet of whatever a TLS or DTLS client says first."""
ALPN_LABELS: Final = (b"stun.turn", b"stun.nat-discovery")
"""What a STUN or TURN server speaks (RFC 7443 section 2)."""
HELLO_LIMIT: Final = 1 << 14
"""Octets of a ClientHello that are waited for; OpenSSL allows 131396, real ones have under 2000."""
RECORDS_LIMIT: Final = 128
"""Records that one may come in.  Each is looked at again when the next one comes, so one in records
of an octet would keep the server busy for a minute.  Whole is how nearly all come."""

_CLIENT_HELLO = 1
_HELLO_VERIFY_REQUEST = 3
_ALPN = 16
_RECORD = 5
_DTLS_RECORD = 13
_DTLS_HANDSHAKE = 12
_DTLS_1_0 = b"\xfe\xff"


class Overlong(Exception):
    """A ClientHello of more octets, or in more records, than anybody's is."""


@dataclass(frozen=True, slots=True)
class ClientHello:
    """The parts of a ClientHello that matter here."""

    random: bytes
    cookie: bytes
    """DTLS: empty in the first ClientHello of a client."""
    protocols: tuple[bytes, ...]
    """What the ALPN extension offers; empty without one."""
    parameters: bytes
    """Version, random, session id, cipher suites, compression methods: what the cookie is made of
    and what a second ClientHello "MUST" repeat (RFC 6347 section 4.2.1)."""


def _body(body: bytes, *, datagram: bool) -> ClientHello | None:
    """Read the body of the message (RFC 5246 section 7.4.1.2, RFC 6347 section 4.2.1)."""
    try:
        session = 35 + body[34]
        cookie = session
        if datagram:
            cookie += 1 + body[session]
        suites = cookie + 2 + (body[cookie] << 8 | body[cookie + 1])
        compression = suites + 1 + body[suites]
        if compression > len(body):
            return None
        at = end = compression
        if compression < len(body):
            at += 2
            end = at + (body[compression] << 8 | body[compression + 1])
        protocols: tuple[bytes, ...] = ()
        while at < end:
            kind = body[at] << 8 | body[at + 1]
            value = at + 4
            at = value + (body[at + 2] << 8 | body[at + 3])
            if kind == _ALPN:
                protocols = _names(body[value:at])
    except IndexError:
        return None
    if at > end or end > len(body):
        return None
    return ClientHello(
        body[2:34],
        body[session + 1 : cookie],
        protocols,
        body[:session] + body[cookie:compression],
    )


def _names(value: bytes) -> tuple[bytes, ...]:
    """Read the ProtocolNameList of ALPN (RFC 7301 section 3.1)."""
    names = []
    at = 2
    while at < len(value):
        end = at + 1 + value[at]
        names.append(value[at + 1 : end])
        at = end
    if at != len(value) or at != 2 + (value[0] << 8 | value[1]):
        raise IndexError
    return tuple(names)


def read_stream(data: bytes) -> ClientHello | int | None:
    """Read the ClientHello that a TLS stream begins with.

    Returns how many octets it takes at least to know more, when ``data`` is the beginning of one,
    and ``None`` for what is no ClientHello, which the TLS library shall refuse in its own words.
    Raises :class:`Overlong` for what that library might take, but which is not read for its ALPN.
    """
    message = bytearray()
    at = 0
    for _ in range(RECORDS_LIMIT):
        if len(data) < at + _RECORD:
            return at + _RECORD
        size = int.from_bytes(data[at + 3 : at + 5], "big")
        # RFC 8446 section 5.1: a fragment has at most 2^14 octets, and of a handshake at least one.
        if data[at] != HANDSHAKE or data[at + 1] != 3 or not 0 < size <= 1 << 14:
            return None
        message += data[at + _RECORD : at + _RECORD + size]
        if message and message[0] != _CLIENT_HELLO:
            return None
        if len(message) >= 4:
            length = 4 + int.from_bytes(message[1:4], "big")
            if length > HELLO_LIMIT:
                raise Overlong
            if len(message) >= length:
                return _body(bytes(message[4:length]), datagram=False)
        at += _RECORD + size
        if len(data) < at:
            return at
    raise Overlong


def read_datagram(data: bytes) -> ClientHello | None:
    """Read the ClientHello that a datagram begins with, if it begins with a whole one.

    A ClientHello in fragments is not taken: it could not be answered without keeping state for
    somebody who may not exist.
    """
    if (
        len(data) < _DTLS_RECORD + _DTLS_HANDSHAKE
        or data[0] != HANDSHAKE
        or data[1] != _DTLS_1_0[0]
        or data[3:5] != bytes(2)  # epoch 0: nothing is encrypted yet
    ):
        return None
    size = int.from_bytes(data[11:13], "big")
    fragment = data[_DTLS_RECORD : _DTLS_RECORD + size]
    if len(fragment) < size or size < _DTLS_HANDSHAKE or fragment[0] != _CLIENT_HELLO:
        return None
    length = fragment[1:4]
    if fragment[6:9] != bytes(3) or fragment[9:12] != length:
        return None
    body = fragment[_DTLS_HANDSHAKE:]
    return _body(body, datagram=True) if len(body) == int.from_bytes(length, "big") else None


def verify_request(hello: bytes, cookie: bytes) -> bytes:
    """Return the HelloVerifyRequest that answers the datagram ``hello`` (RFC 6347 section 4.2.1).

    It has the record sequence number of the ClientHello, as the norm wants it, and version 1.0
    "regardless of the version of TLS that is expected to be negotiated".
    """
    body = _DTLS_1_0 + bytes([len(cookie)]) + cookie
    length = len(body).to_bytes(3, "big")
    message = bytes([_HELLO_VERIFY_REQUEST]) + length + bytes(5) + length + body
    return bytes([HANDSHAKE]) + _DTLS_1_0 + hello[3:11] + len(message).to_bytes(2, "big") + message


class Cookies:
    """Cookies that prove a client can be reached at its address, without keeping anything of it.

    A cookie is a MAC over both addresses and the client's parameters, with a secret that changes
    each ``period``; the one before is still good.
    """

    def __init__(self, entropy: Entropy, period: Instant) -> None:
        self._entropy = entropy
        self._period = period
        self._epoch = -1
        self._secrets = (b"", b"")

    def make(self, hello: ClientHello, remote: Address, local: Address, now: Instant) -> bytes:
        """Return the cookie for a client."""
        self._turn(now)
        return _cookie(self._secrets[0], hello, remote, local)

    def check(self, hello: ClientHello, remote: Address, local: Address, now: Instant) -> bool:
        """Whether the client's cookie is one that was made for it."""
        self._turn(now)
        return any(
            secret and hmac.compare_digest(hello.cookie, _cookie(secret, hello, remote, local))
            for secret in self._secrets
        )

    def _turn(self, now: Instant) -> None:
        epoch = now // self._period
        if epoch != self._epoch:
            before = self._secrets[0] if epoch == self._epoch + 1 else b""
            self._secrets = (self._entropy(32), before)
            self._epoch = epoch


def _cookie(secret: bytes, hello: ClientHello, remote: Address, local: Address) -> bytes:
    ends = f"{remote} {local} ".encode()
    # 20 octets: DTLS 1.0 allows up to 32 (RFC 4347 section 4.2.1), and a short one is an answer
    # that is shorter than the question.
    return hmac.digest(secret, ends + hello.parameters, hashlib.sha256)[:20]


ALERT_NO_APPLICATION_PROTOCOL: Final = bytes.fromhex("15030300020278")
"""RFC 7301 section 3.2: "the server SHALL respond with a fatal "no_application_protocol" alert"."""


def speaks_our_protocol(hello: ClientHello) -> bool:
    """Whether ALPN allows us to serve this client: it offers one of our labels, or none at all."""
    return not hello.protocols or any(label in hello.protocols for label in ALPN_LABELS)
