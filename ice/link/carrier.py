"""What a link needs of whatever carries its octets: ordered, reliable, secret, and mortal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class CarrierFailed(ConnectionError):
    """A carrier could not be had, or has ended: why, in words for a person."""


class Carrier(Protocol):
    """An encrypted channel over one ICE connection.

    Octets arrive in order and once, or the carrier ends: ``on_lost`` is then called, once, and
    nothing after it.  Callbacks are called from within the event loop, never from within
    :meth:`send`.
    """

    on_data: Callable[[bytes], None]
    on_relief: Callable[[], None]
    """Called when :attr:`congested` has become false."""
    on_lost: Callable[[CarrierFailed], None]
    on_datagram: Callable[[bytes], None]

    @property
    def congested(self) -> bool:
        """Whether enough waits to be sent; what is sent all the same is kept."""

    @property
    def most_datagram(self) -> int:
        """Octets of the longest datagram that :meth:`send_datagram` takes; 0: none at all."""

    async def start(self) -> None:
        """Shake hands.  Raises :class:`CarrierFailed`."""

    def send(self, data: bytes | bytearray | memoryview) -> None:
        """Send octets after those before.  The buffer is not used after the return."""

    def send_datagram(self, data: bytes) -> bool:
        """Send a datagram, which may get lost; false if it is too long or cannot go now."""

    async def close(self) -> None:
        """Send what waits, as far as that takes no longer than a moment, and end."""

    def abort(self) -> None:
        """End at once."""
