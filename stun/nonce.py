"""Nonces that need no memory, and the cookie at their front (RFC 8489 sections 9.2 and 18.1).

A nonce of natkit is::

    "obMatJos2" | 4 characters: security features | base64url( time: 3 | port: 2 | MAC: 6 octets )

The MAC is over the features, the time, and the host and port that it was made for.  So a server
checks a nonce without having stored it; one host's nonce is of no use to another; and an attacker
on the path who takes features off the nonce makes it invalid (section 9.2.1).  Servers that share a
secret accept each other's nonces, so a fleet behind one address needs no common store.

"The server MUST NOT choose the same NONCE for two requests unless they have the same source IP
address and port" (section 9.2): so the port is in it.  Which ports it may be used from is another
matter: from every one of that host.  A client's data connections (RFC 6062) each have a port of
their own, and so does a client behind a NAT that forgot it; a nonce for each of them would cost a
438 and a round trip each.

The order of the bits is contradictory in print: RFC 8489 sections 9.2 and 18.1 count from the most
significant, verified erratum 6290 and appendix B.1 from the least, and the example of RFC 8656
section 20 from the most.  natkit sends what the erratum says and reads both.
"""

from __future__ import annotations

import base64
import binascii
from binascii import a2b_base64, b2a_base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from hmac import compare_digest

from stun.errors import UsageError
from stun.mac import hmac_sha256
from stun.registry import SecurityFeature
from stun.sansio import Address

COOKIE_PREFIX = b"obMatJos2"
COOKIE_LENGTH = 13
"""Characters: the prefix and the base64 of 24 bits."""

_BITS = 24
_PERIOD = 1 << 24
"""Seconds after which the three octets of time begin again: 194 days."""


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
    """Ours and for this host, but too old."""
    FOREIGN = "foreign"
    """Not made by anybody who has a secret of ours, or not for this host; or half a year ago, or by
    somebody whose clock is further ahead than is allowed."""


@dataclass(slots=True)
class NonceMaker:
    """Makes nonces and recognises them.

    ``secrets``: the first makes nonces, all are accepted, so a new secret is put in front and the
    old one is taken away a lifetime later (:meth:`rotate`).  Each has at least 16 octets.
    ``lifetime``: how long a nonce is valid, in seconds.
    ``mac_length``: octets of the MAC, 4 to 32.
    ``skew``: how far ahead, in seconds, the clock of another server of the fleet may be.

    Why 6 octets are enough of a MAC.  It protects no secret, and the nonce of a captured request
    cannot be changed, since the request's own proof covers it.  What remains is to find, without
    the secret, a nonce for another host, another time or with other features; whatever is tried,
    it holds with a chance of 2**-48, and to try it takes a request to the server, so a million of
    them a second take nine years.  Who finds one may have his requests looked at as if he had been
    challenged; to be let in he still needs the password.  In return a nonce is 28 characters, so
    its attribute has no padding and a challenge that offers SHA-256 is 92 octets in a realm of 16,
    100 in one of 24.

    Why 3 octets are enough of a time.  They say which second of the last 194 days it was, and the
    MAC is over the whole number: a nonce does not come back to life when they begin again, and none
    is recognised that is older.
    """

    secrets: Sequence[bytes] = field(repr=False)
    lifetime: int = 3600
    mac_length: int = 6
    skew: int = 60

    def __post_init__(self) -> None:
        self.rotate(self.secrets)
        if not 4 <= self.mac_length <= 32:
            raise UsageError("the MAC of a nonce has 4 to 32 octets")
        if self.lifetime < 1:
            raise UsageError("a nonce must live for at least a second")

    def rotate(self, secrets: Sequence[bytes]) -> None:
        """Take these secrets from now on; the first makes nonces, all are accepted."""
        if not secrets or any(len(secret) < 16 for secret in secrets):
            raise UsageError("nonces need a secret of at least 16 octets")
        self.secrets = tuple(secrets)

    def make(
        self, client: Address, unix_time: int, features: Iterable[SecurityFeature] = ()
    ) -> bytes:
        """Return a nonce for ``client``; ``unix_time`` is in seconds since 1970."""
        return self.make_with(nonce_cookie(features), client, unix_time)

    def make_with(self, cookie: bytes, client: Address, unix_time: int) -> bytes:
        """Return a nonce as :meth:`make` does, behind a :func:`nonce_cookie` that is there."""
        head = (unix_time & _PERIOD - 1).to_bytes(3, "big") + client.port.to_bytes(2, "big")
        return self._sealed(self.secrets[0], cookie + head, _unsaid(unix_time, client))

    def check(self, nonce: bytes, client: Address, unix_time: int) -> NonceState:
        """Say whether ``client`` may use this nonce at ``unix_time`` (seconds since 1970)."""
        try:
            # Eight characters are six octets, of which the first five are the time and the port.
            head = a2b_base64(nonce[COOKIE_LENGTH : COOKIE_LENGTH + 8].translate(_STANDARD))[:5]
        except binascii.Error:
            return NonceState.FOREIGN
        age = unix_time - int.from_bytes(head[:3], "big") & _PERIOD - 1
        if age >= _PERIOD - self.skew:
            age -= _PERIOD  # from the future
        said, unsaid = nonce[:COOKIE_LENGTH] + head, _unsaid(unix_time - age, client)
        # The whole nonce is made again and compared.  Decoders of base64 pass over stray
        # characters and spare bits: so there is but one way to write a nonce.
        for secret in self.secrets:
            if compare_digest(nonce, self._sealed(secret, said, unsaid)):
                return NonceState.VALID if age <= self.lifetime else NonceState.EXPIRED
        return NonceState.FOREIGN

    def _sealed(self, secret: bytes, said: bytes, unsaid: bytes) -> bytes:
        mac = hmac_sha256(secret, b"natkit nonce 3\0" + said + unsaid)
        body = b2a_base64(said[COOKIE_LENGTH:] + mac[: self.mac_length], newline=False)
        return said[:COOKIE_LENGTH] + body.translate(_URL_SAFE, b"=")


# RFC 4648 section 5: "-" and "_" in the place of "+" and "/".
_URL_SAFE = bytes.maketrans(b"+/", b"-_")
_STANDARD = bytes.maketrans(b"-_", b"+/")


def _unsaid(made: int, client: Address) -> bytes:
    """Return what the MAC covers beside the nonce: how often the time has begun again, the host."""
    # A host has one text form (RFC 5952).  It stands last, so nothing is ambiguous.
    host = client.host.partition("%")[0].encode()
    return (made // _PERIOD & 0xFFFFFFFFFF).to_bytes(5, "big") + host
