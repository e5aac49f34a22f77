"""Two that have the same secret, however short, agree on keys that nobody else has.

Theory of operation.  It is SPAKE2 (RFC 9382) in its symmetric form (one blinding point for both
sides, so that it does not matter who came first) over the group of Ed25519, from the library
``spake2``.  Each side sends one *hello*::

    version (1 octet) | "S" | x*G + w*S (32 octets)

where ``w`` is made from the secret and ``x`` is random.  A hello is uniformly distributed whatever
the secret is: it tells nothing of it.  Whoever stands between, the server included, can put a hello
of its own in place of one, and has then decided on one secret: only for that one can it know the
keys.  So it may send and be sent things under these keys at once, before anything is proved:
nothing sealed can be used to try out further secrets afterwards, however many, because each would
need the Diffie-Hellman value of two points whose logarithms it does not know.  That also rules out
a sealed message that opens under many keys (a "partitioning oracle"): the one who would have to
make it knows one key at most.  One guess for each attempt of each side, made in the open, is what
is left.

The keys are made by HKDF (RFC 5869, SHA-256) from what SPAKE2 gives, which has the secret, both
hellos and the identity below in it; the name where the two met goes into each, and each says what
it is for.  There is one for each direction, so that nothing can be sent back to where it came from.

:attr:`Keys.resume` is a code with a secret of 256 bits.  Two that have lost the server meet again
by it: with a pairing of its own, hence with new keys.  It stays the same through any number of
resumptions, and so does who is first, since either of the two may not have noticed the last one.

The library's arithmetic takes time that depends on the numbers.  Each is used once, with an ``x``
of its own, and the peer sees one answer, after a scheduler and two networks.

All this costs milliseconds (3 to make, 5 to finish, 35 to load the library): drivers do it off
their event loop.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from ice.rendezvous.codes import Code
from ice.rendezvous.errors import OtherVersion, Tampered
from stun.sansio import Entropy

VERSION: Final = 1
"""Of all that the two peers say to each other."""
IDENTITY: Final = b"natkit rendezvous pairing 1"
"""SPAKE2's identity and HKDF's salt: the application and the version."""

_SYMMETRIC: Final = b"S"
HELLO_LENGTH: Final = 34
_KEY_LENGTH: Final = 32
_FIELD: Final = (1 << 255) - 19
"""The prime p of Ed25519 (RFC 8032 section 5.1)."""
_ALL_BUT_SIGN: Final = (1 << 255) - 1
LONGEST_EXPORT: Final = 255 * 32
"""Octets; RFC 5869 section 2.3: "L <= 255*HashLen"."""


@dataclass(frozen=True, slots=True, eq=False)
class Keys:
    """What two paired peers have in common, seen from one of them."""

    first: bool
    """Whether this side is the first of the two: an arbitrary role, opposite at the peer."""
    seal: bytes = field(repr=False)
    """The key of what this side sends, 32 octets."""
    open: bytes = field(repr=False)
    """The key of what the peer sends, 32 octets."""
    resume: Code = field(repr=False)
    """Where and with which secret the two meet again."""
    _exporter: bytes = field(repr=False)

    def exporter(self, label: str, length: int = 32) -> bytes:
        """Return ``length`` octets, the same at both sides and for this ``label`` alone."""
        return _derive(self._exporter, length, b"exported", label.encode())


class Pairing:
    """One side of one pairing.

    ``secret``: of the code.  ``entropy``: 64 octets or so are drawn, at once.
    """

    __slots__ = ("_finished", "_spake", "hello")

    def __init__(self, secret: str, entropy: Entropy) -> None:
        # Loading it computes the parameters of three groups.
        from spake2 import SPAKE2_Symmetric

        self._spake = SPAKE2_Symmetric(secret.encode(), idSymmetric=IDENTITY, entropy_f=entropy)
        self._finished = False
        self.hello: bytes = bytes([VERSION]) + self._spake.start()
        """What the peer is to be given."""

    def finish(self, peer_hello: bytes, name: str, resumed: Keys | None = None) -> Keys:
        """Return the keys that the peer has too if its secret and ``name`` are the same; once.

        ``resumed``: the keys whose :attr:`Keys.resume` this pairing's secret is.  Raises
        :class:`ice.rendezvous.errors.Tampered` for what no peer would send, and
        :class:`~ice.rendezvous.errors.OtherVersion`.
        """
        if self._finished:
            # A second answer would be a second guess for whoever chose both.
            raise RuntimeError("a pairing is finished once")
        self._finished = True
        shared = self._agree(peer_hello)
        place = name.encode()
        first = self.hello < peer_hello if resumed is None else resumed.first
        keys = [
            _derive(shared, _KEY_LENGTH, purpose, place)
            for purpose in (b"the first one seals", b"the second one seals")
        ]
        if resumed is None:
            where = _derive(shared, 16, b"name to resume at", place)
            secret = _derive(shared, _KEY_LENGTH, b"secret to resume with", place)
            resume = Code(f"r.{where.hex()}", secret.hex())
        else:
            resume = resumed.resume
        return Keys(
            first=first,
            seal=keys[0] if first else keys[1],
            open=keys[1] if first else keys[0],
            resume=resume,
            _exporter=_derive(shared, _KEY_LENGTH, b"exporter", place),
        )

    def _agree(self, hello: bytes) -> bytes:
        if hello[:1] != self.hello[:1] and hello:
            raise OtherVersion(
                f"the peer speaks version {hello[0]} of the pairing, this program version "
                f"{VERSION}: the older of the two has to be updated"
            )
        if len(hello) != HELLO_LENGTH or hello[1:2] != _SYMMETRIC:
            raise Tampered("what the server gave as the peer's greeting is none")
        # The library takes octets for the neutral element that are not its usual ones: y = p + 1,
        # or with a sign.  RFC 8032 section 5.1.3: "If the resulting value is >= p, decoding
        # fails."
        if not 1 < int.from_bytes(hello[2:], "little") & _ALL_BUT_SIGN < _FIELD:
            raise Tampered("what the server gave as the peer's greeting is no point of the group")
        try:
            shared: bytes = self._spake.finish(hello[1:])
        except Exception as error:
            # Not on the curve, not in the group, neutral, or this side's own: the library has an
            # exception for each, of no common kind.
            raise Tampered(
                "what the server gave as the peer's greeting was made by no peer "
                f"({type(error).__name__})"
            ) from None
        return shared


def _derive(key: bytes, length: int, *info: bytes) -> bytes:
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    # With their lengths, so that no two lists of texts are the same octets.
    joined = b"".join(len(one).to_bytes(2) + one for one in info)
    return HKDF(SHA256(), length, salt=IDENTITY, info=joined).derive(key)
