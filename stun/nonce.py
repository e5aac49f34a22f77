"""Nonces that need no memory, and the cookie at their front (RFC 8489 sections 9.2 and 18.1).

A nonce of natkit is::

    "obMatJos2" | 4 characters: security features | base64url( time: 4 octets | MAC )

The MAC is over the features, the time and the client's transport address.  So a server checks a
nonce without having stored it; one client's nonce is of no use to another ("The server MUST NOT
choose the same NONCE for two requests unless they have the same source IP address and port"); and
an attacker on the path who takes features off the nonce makes it invalid (section 9.2.1).  Servers
that share a secret accept each other's nonces, so a fleet behind one address needs no common store.

The order of the bits is contradictory in print: RFC 8489 sections 9.2 and 18.1 count from the most
significant, verified erratum 6290 and appendix B.1 from the least, and the example of RFC 8656
section 20 from the most.  natkit sends what the erratum says and reads both.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum

from stun.errors import UsageError
from stun.registry import SecurityFeature
from stun.sansio import Address

COOKIE_PREFIX = b"obMatJos2"
COOKIE_LENGTH = 13
"""Characters: the prefix and the base64 of 24 bits."""

_BITS = 24


def nonce_cookie(features: Iterable[SecurityFeature]) -> bytes:
    """Return the 13 characters that announce ``features``; with none of them "obMatJos2AAAA"."""
    bits = 0
    for feature in features:
        bits |= 1 << feature
    return COOKIE_PREFIX + base64.b64encode(bits.to_bytes(3, "big"))


def parse_cookie(nonce: bytes) -> frozenset[SecurityFeature] | None:
    """Return the features that a nonce announces, in either order of the bits.

    ``None`` when the nonce does not start with a cookie: a server of RFC 5389.  Bits that no
    feature has are passed over.
    """
    if not nonce.startswith(COOKIE_PREFIX) or len(nonce) < COOKIE_LENGTH:
        return None
    try:
        octets = base64.b64decode(nonce[len(COOKIE_PREFIX) : COOKIE_LENGTH], validate=True)
    except (binascii.Error, ValueError):
        return None
    if len(octets) * 8 != _BITS:
        return None
    bits = int.from_bytes(octets, "big")
    return frozenset(
        feature for feature in SecurityFeature if bits & (1 << feature | 1 << _BITS - 1 - feature)
    )


class NonceState(Enum):
    """What a server thinks of a nonce."""

    VALID = "valid"
    EXPIRED = "expired"
    """Ours and for this client, but too old."""
    FOREIGN = "foreign"
    """Not made by anybody who has a secret of ours, or not for this client."""


@dataclass(frozen=True, slots=True)
class NonceMaker:
    """Makes nonces and recognises them.

    ``secrets``: the first makes nonces, all are accepted, so a new secret is put in front and the
    old one is taken away a lifetime later.  Each has at least 16 octets.
    ``lifetime``: how long a nonce is valid, in seconds.
    ``mac_length``: octets of the MAC, 4 to 32.  A forged nonce alone opens nothing, since the
    request still needs a key: the MAC keeps a captured request from being replayed later or from
    elsewhere, and 8 octets give a nonce of 29 characters.
    ``skew``: how far ahead, in seconds, the clock of another server of the fleet may be.
    """

    secrets: Sequence[bytes] = field(repr=False)
    lifetime: int = 3600
    mac_length: int = 8
    skew: int = 60

    def __post_init__(self) -> None:
        if not self.secrets or any(len(secret) < 16 for secret in self.secrets):
            raise UsageError("nonces need a secret of at least 16 octets")
        if not 4 <= self.mac_length <= 32:
            raise UsageError("the MAC of a nonce has 4 to 32 octets")
        if self.lifetime < 1:
            raise UsageError("a nonce must live for at least a second")

    def make(
        self, client: Address, unix_time: int, features: Iterable[SecurityFeature] = ()
    ) -> bytes:
        """Return a nonce for ``client``; ``unix_time`` is in seconds since 1970."""
        cookie = nonce_cookie(features)
        stamp = (unix_time & 0xFFFFFFFF).to_bytes(4, "big")
        mac = self._mac(self.secrets[0], cookie, stamp, _pack(client))
        return cookie + base64.urlsafe_b64encode(stamp + mac).rstrip(b"=")

    def check(self, nonce: bytes, client: Address, unix_time: int) -> NonceState:
        """Say whether ``client`` may use this nonce at ``unix_time`` (seconds since 1970)."""
        body = nonce[COOKIE_LENGTH:]
        try:
            octets = base64.urlsafe_b64decode(body + b"=" * (-len(body) % 4))
        except (binascii.Error, ValueError):
            return NonceState.FOREIGN
        # base64 decoders pass over stray characters; what we made decodes and encodes to itself.
        if (
            len(octets) != 4 + self.mac_length
            or base64.urlsafe_b64encode(octets).rstrip(b"=") != body
        ):
            return NonceState.FOREIGN
        stamp, mac = octets[:4], octets[4:]
        packed = _pack(client)
        cookie = nonce[:COOKIE_LENGTH]
        if not any(
            hmac.compare_digest(mac, self._mac(secret, cookie, stamp, packed))
            for secret in self.secrets
        ):
            return NonceState.FOREIGN
        # Modulo 2**32, so that nothing happens in 2106.
        age = (unix_time - int.from_bytes(stamp, "big")) & 0xFFFFFFFF
        if age <= self.lifetime or age >= (1 << 32) - self.skew:
            return NonceState.VALID
        return NonceState.EXPIRED

    def _mac(self, secret: bytes, cookie: bytes, stamp: bytes, client: bytes) -> bytes:
        text = b"natkit nonce 1\0" + cookie + stamp + client
        return hmac.digest(secret, text, "sha256")[: self.mac_length]


def _pack(client: Address) -> bytes:
    host = ipaddress.ip_address(client.host.partition("%")[0])
    return host.packed + client.port.to_bytes(2, "big")
