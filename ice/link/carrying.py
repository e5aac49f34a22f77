"""What the carriers share: their callbacks, the time that a handshake may take, the end.

Theory of operation.  A carrier takes the packets of its ICE connection from within the event loop
(:meth:`ice.Connection.divert`), so it has no task.  Nothing that a peer sends raises: what goes
wrong ends the carrier, once, in words for a person; :meth:`Carrying.start` raises them, or
``on_lost`` is called with them.  That comes from a callback of its own, so that it is never called
from within a call of whoever is told.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Callable
from enum import Enum, auto
from typing import Final

from ice.connection import Connection
from ice.link.carrier import CarrierFailed
from ice.link.certificate import FINGERPRINT, Identity
from stun.errors import StunError, UsageError

PATIENCE: Final = 10.0
"""Seconds that a handshake may take."""
FAREWELL: Final = 1.0
"""Seconds that :meth:`Carrying.close` may take to send what waits."""
ALPN: Final = "natkit"
"""The protocol that both sides have to name (RFC 7301), so that nothing else is taken for it."""


class State(Enum):
    """How far a carrier is."""

    NEW = auto()
    SHAKING = auto()
    OPEN = auto()
    ENDED = auto()


class Carrying:
    """The common half of the carriers; see :class:`ice.link.carrier.Carrier`.

    ``peer_fingerprint``: the SHA-256 of the one certificate that the peer may have.  ``server``:
    which of the two roles of TLS this side has; the peer has the other one.
    """

    def __init__(
        self,
        connection: Connection,
        identity: Identity,
        peer_fingerprint: bytes,
        *,
        server: bool,
    ) -> None:
        if len(peer_fingerprint) != FINGERPRINT:
            raise UsageError(f"a fingerprint has {FINGERPRINT} octets, not {len(peer_fingerprint)}")
        self.on_data: Callable[[bytes], None] = _ignore
        self.on_relief: Callable[[], None] = _ignore_relief
        self.on_lost: Callable[[CarrierFailed], None] = _ignore_loss
        self.on_datagram: Callable[[bytes], None] = _ignore
        self._connection = connection
        self._identity = identity
        self._peer = peer_fingerprint
        self._server = server
        self._state = State.NEW
        self._loop: asyncio.AbstractEventLoop
        self._ready: asyncio.Future[None]
        self._lost: asyncio.Handle | None = None

    # What a kind of carrier does. -----------------------------------------------------------------

    @abstractmethod
    def _begin(self) -> None:
        """Begin the handshake; :meth:`_opened` or :meth:`_fail` says how it ended."""

    @abstractmethod
    def _take(self, data: bytes) -> None:
        """Take a packet."""

    @abstractmethod
    def _say_farewell(self) -> None:
        """Tell the peer that this is the end, if that can be told."""

    def _release(self) -> None:
        """Let go of what is of no use after the end."""

    async def _drain(self) -> None:
        """Wait until what waits has been sent."""

    # The beginning. -------------------------------------------------------------------------------

    async def start(self) -> None:
        """Shake hands.  Raises :class:`CarrierFailed`; cancelling it ends the carrier."""
        if self._state is not State.NEW:
            raise UsageError("start: a carrier is started once")
        self._loop = asyncio.get_running_loop()
        self._ready = self._loop.create_future()
        self._state = State.SHAKING
        try:
            async with asyncio.timeout(PATIENCE):
                self._guard(self._begin)
                if self._state is State.SHAKING:
                    self._connection.divert(self)
                await self._ready
        except TimeoutError:
            self._end()
            raise CarrierFailed(
                f"the peer did not complete the handshake within {PATIENCE:g} s"
            ) from None
        except asyncio.CancelledError:
            self.abort()
            raise

    def _opened(self) -> None:
        """Take note that both sides have proved who they are."""
        self._state = State.OPEN
        if not self._ready.done():
            self._ready.set_result(None)

    # What the connection tells. -------------------------------------------------------------------

    def packet(self, data: bytes) -> None:
        """Take a packet of the connection."""
        if self._state is not State.ENDED:
            self._guard(self._take, data)

    def relieved(self) -> None:
        """Take note that the connection takes more."""

    def rerouted(self) -> None:
        """Take note that the connection's pair is another one, or none, or agreed on."""

    def ended(self, why: StunError) -> None:
        """Take note that the connection is over."""
        self._fail(f"the ICE connection ended: {why}")

    def _guard(self, work: Callable[..., object], *arguments: object) -> None:
        """Do what a peer has a hand in: an exception ends the carrier, and nothing else."""
        try:
            work(*arguments)
        except Exception as error:
            # Raised on it would end the agent.
            told = {"message": "a carrier failed", "exception": error}
            self._loop.call_exception_handler(told)
            self._fail(f"an internal error: {error!r}")

    # The end. -------------------------------------------------------------------------------------

    def _fail(self, why: str) -> None:
        """End, and tell it; what was given before is not lost, as ``on_data`` comes first."""
        if self._state is State.ENDED:
            return
        shaking = self._state is State.SHAKING
        self._end()
        failure = CarrierFailed(why)
        if not shaking:
            self._lost = self._loop.call_soon(self._tell_lost, failure)
        elif not self._ready.done():
            self._ready.set_exception(failure)

    def _tell_lost(self, failure: CarrierFailed) -> None:
        self._lost = None
        self.on_lost(failure)

    def _end(self) -> None:
        self._state = State.ENDED
        self._connection.divert(None)
        self._release()

    async def close(self) -> None:
        """Send what waits, as far as that takes no longer than a moment, and end."""
        if self._state is State.OPEN:
            try:
                async with asyncio.timeout(FAREWELL):
                    await self._drain()
            except TimeoutError:
                pass
        if self._state is State.OPEN:
            self._say_farewell()
        self.abort()

    def abort(self) -> None:
        """End at once; ``on_lost`` is not called."""
        if self._lost is not None:
            self._lost.cancel()
            self._lost = None
        if self._state is State.NEW:
            self._state = State.ENDED
        elif self._state is not State.ENDED:
            shaking = self._state is State.SHAKING
            self._end()
            if shaking and not self._ready.done():
                self._ready.set_exception(CarrierFailed("the carrier was ended by this side"))


def _ignore(_: bytes) -> None:
    pass


def _ignore_relief() -> None:
    pass


def _ignore_loss(_: CarrierFailed) -> None:
    pass
