"""Sealed messages between two paired peers: secret, whole, each once and in order.

Theory of operation.  Each direction has a key of its own (:class:`ice.rendezvous.pairing.Keys`) and
counts its messages from 0; the count is the nonce of ChaCha20-Poly1305 (RFC 8439) and is not sent.
What was changed, repeated, left out, moved or reflected is therefore opened with the wrong nonce or
key, and fails.  The path below is ordered and reliable, so one failure ends the channel: the peer's
very first message that fails means that the peer made its keys from another secret
(:class:`~ice.rendezvous.errors.WrongCode`), a later one that somebody interfered
(:class:`~ice.rendezvous.errors.Tampered`).  What cannot be told from a connection that breaks is
that the last messages were held back.

A message is padded to a power of two, 512 octets at least, by one octet 80 and zeros (the padding
of ISO/IEC 7816-4, which always can be taken off): how many candidates a side has is not to be seen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ice.rendezvous.errors import Tampered, WrongCode
from ice.rendezvous.protocol import MAX_DATA
from stun.errors import UsageError

if TYPE_CHECKING:
    from ice.rendezvous.pairing import Keys

_TAG: Final = 16
_MARK: Final = b"\x80"
SMALLEST: Final = 512
"""Octets of a padded message."""
LONGEST: Final = MAX_DATA - _TAG - len(_MARK)
"""Octets that :meth:`Channel.seal` takes."""


def sealed_length(length: int) -> int:
    """Return how many octets a message of ``length`` octets has when it is sealed."""
    padded = max(SMALLEST, 1 << length.bit_length())
    return min(padded, MAX_DATA - _TAG) + _TAG


class Channel:
    """Both directions, at one of the two peers."""

    __slots__ = ("_failed", "_open", "_opened", "_seal", "_sealed")

    def __init__(self, keys: Keys) -> None:
        from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

        self._seal = ChaCha20Poly1305(keys.seal)
        self._open = ChaCha20Poly1305(keys.open)
        self._sealed = self._opened = 0
        self._failed: type[WrongCode | Tampered] | None = None

    @property
    def proved(self) -> bool:
        """Whether the peer has shown that it has the same keys: one message could be opened."""
        return self._opened > 0

    def seal(self, message: bytes) -> bytes:
        """Return what to send.  Messages must be sent in the order in which they were sealed."""
        if len(message) > LONGEST:
            raise UsageError(f"a message has at most {LONGEST} octets, this one {len(message)}")
        nonce = self._sealed.to_bytes(12)
        self._sealed += 1
        size = sealed_length(len(message)) - _TAG
        return self._seal.encrypt(nonce, (message + _MARK).ljust(size, b"\0"), None)

    def open(self, sealed: bytes) -> bytes:
        """Return what was sealed.

        Raises :class:`WrongCode` or :class:`Tampered`, and from then on the same for everything.
        """
        from cryptography.exceptions import InvalidTag

        if self._failed is None:
            try:
                padded = self._open.decrypt(self._opened.to_bytes(12), sealed, None)
                end = len(padded.rstrip(b"\0")) - len(_MARK)
                if padded[max(end, 0) : end + 1] != _MARK:
                    raise InvalidTag
            except InvalidTag:
                self._failed = Tampered if self.proved else WrongCode
            else:
                self._opened += 1
                return padded[:end]
        if self._failed is WrongCode:
            raise WrongCode(
                "the other side does not have the same code: a word was mistyped, or somebody "
                "tried to guess it. It could read nothing; start again, with a new code if this "
                "one was made for one use"
            )
        raise Tampered(
            "a message of the peer was changed, repeated or left out on its way: the rendezvous, "
            "or somebody between, cannot be trusted"
        )
