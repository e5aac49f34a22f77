"""Which protocol a packet belongs to, told from its first octets (RFC 7983, RFC 9443).

One socket may carry STUN, DTLS, SRTP, TURN channels, ZRTP and QUIC.  RFC 9443 figure 3 divides the
values of the first octet between them::

    0..3 STUN   4..15 drop   16..19 ZRTP   20..63 DTLS   64..79 TURN channel, else QUIC
    80..127 QUIC   128..191 RTP/RTCP   192..255 QUIC

Octets 64 to 79 are ambiguous: they are a TURN channel "if the source IP address and port" are those
"of a responding TURN server", and QUIC otherwise, so whoever asks has to say which it is.
"""

from __future__ import annotations

from enum import StrEnum

MAGIC_COOKIE = b"\x21\x12\xa4\x42"
"""Octets 4 to 7 of every STUN message since RFC 5389 (RFC 8489 section 5)."""


class Protocol(StrEnum):
    """What a packet is, as far as its first octet says."""

    STUN = "STUN"
    ZRTP = "ZRTP"
    DTLS = "DTLS"
    TURN_CHANNEL = "TURN channel"
    RTP = "RTP or RTCP"
    QUIC = "QUIC"
    UNKNOWN = "unknown"


class StreamProtocol(StrEnum):
    """What a TCP stream turns out to be."""

    STUN = "STUN"
    TLS = "TLS"
    TURN_CHANNEL = "TURN channel"
    UNKNOWN = "unknown"


def _table(quic: bool, from_turn_server: bool) -> tuple[Protocol, ...]:
    beyond = Protocol.QUIC if quic else Protocol.UNKNOWN
    channel = Protocol.TURN_CHANNEL if from_turn_server or not quic else Protocol.QUIC
    return (
        (Protocol.STUN,) * 4
        + (Protocol.UNKNOWN,) * 12
        + (Protocol.ZRTP,) * 4
        + (Protocol.DTLS,) * 44
        + (channel,) * 16
        + (beyond,) * 48
        + (Protocol.RTP,) * 64
        + (beyond,) * 64
    )


_RFC7983 = _table(quic=False, from_turn_server=True)
_RFC9443 = _table(quic=True, from_turn_server=False)
_RFC9443_FROM_TURN = _table(quic=True, from_turn_server=True)


def classify(
    data: bytes | bytearray | memoryview,
    *,
    from_turn_server: bool = False,
    quic: bool = True,
) -> Protocol:
    """Say what a datagram is by its first octet.

    ``from_turn_server``: its source is a TURN server that has answered an allocation or a
    channel binding (RFC 9443 section 2).  With ``quic=False`` the older rule of RFC 7983 holds: 64
    to 79 are always TURN channels, and 80 to 127 and 192 to 255 are nobody's.  An empty datagram
    is :attr:`Protocol.UNKNOWN`.
    """
    if not data:
        return Protocol.UNKNOWN
    if not quic:
        return _RFC7983[data[0]]
    return (_RFC9443_FROM_TURN if from_turn_server else _RFC9443)[data[0]]


def is_stun(data: bytes | bytearray | memoryview) -> bool:
    """Whether a datagram has the marks of a STUN header (RFC 8489 section 5).

    They are two zero bits, a length that is a multiple of four, and the magic cookie: stricter
    than :func:`classify`, for sockets whose other traffic may start with any octet.  A message of
    RFC 3489, which has no cookie, is not recognised.
    """
    return (
        len(data) >= 20 and data[0] < 0x40 and data[3] & 3 == 0 and bytes(data[4:8]) == MAGIC_COOKIE
    )


def classify_stream(data: bytes | bytearray | memoryview) -> StreamProtocol | None:
    """Say what a client speaks on a TCP connection, from the first octet it sent.

    A server can "run STUN over TLS on the same port as STUN over TCP if the server software
    supports determining whether the initial message is a TLS or STUN message" (RFC 8489 section
    8.1).  A TLS client starts with a handshake record, type 22; the methods of STUN are kept below
    0x100 so that its first octet is at most 3 (RFC 7983 section 3).  ``None``: nothing to tell by.
    """
    if not data:
        return None
    if data[0] < 4:
        return StreamProtocol.STUN
    if data[0] == 22:
        return StreamProtocol.TLS
    if 0x40 <= data[0] <= 0x7F:
        return StreamProtocol.TURN_CHANNEL
    return StreamProtocol.UNKNOWN
