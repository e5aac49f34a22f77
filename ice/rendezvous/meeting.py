"""One side of a meeting: from a code to a peer that has the same one, and sealed messages with it.

Theory of operation.  :meth:`Meeting.open` connects, makes its hello meanwhile, and joins the code's
name.  The server keeps the hello of whoever waits, so that each side has the other's the moment
there are two; each then makes the keys and sends a first, empty sealed message at once: the proof.
What is sent by :meth:`Meeting.send` follows right behind it, so nothing waits for a proof to come
back; that is safe because of what SPAKE2 is (:mod:`ice.rendezvous.pairing`).  And since both proofs
are on their way before either is looked at, a wrong code is the same clear error at both sides.

What each learns when the codes differ: the two peers, that they differ.  The server, that somebody
left.  Whoever guessed, in the server's place or the peer's, whether that one guess was right, and
this side knows that there was one: nothing here tries a code a second time by itself.

After a loss :meth:`Meeting.resume` meets the same peer again, at a name and with a secret that only
the two know.

What the server says of itself (:attr:`Meeting.welcome`) nobody proves: where this side was seen,
the time, and the TURN and STUN servers are as trustworthy as it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import ssl as tls
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import urlsplit

from ice.rendezvous import codes
from ice.rendezvous.channel import Channel, sealed_length
from ice.rendezvous.client import FAREWELL, Client
from ice.rendezvous.codes import Code
from ice.rendezvous.errors import (
    BadPeer,
    PeerGone,
    Refused,
    RendezvousError,
    RendezvousLost,
    RendezvousUnreachable,
)
from ice.rendezvous.pairing import Keys, Pairing
from ice.rendezvous.protocol import (
    ErrorCode,
    Gone,
    GoneReason,
    Join,
    Joined,
    Message,
    Peer,
    TurnAccess,
    Welcome,
    is_one_time,
)
from ice.rendezvous.unreachable import without_password
from stun.errors import UsageError
from stun.sansio import Address

MOST_WAITING: Final = 64
"""Messages of the peer that wait for :meth:`Meeting.recv`; beyond that nothing is read."""
PROOF: Final = b""
"""What the first sealed message holds: no JSON text is empty."""
PROOF_PATIENCE: Final = 4.0
"""Seconds in which whoever is met at a resumption must prove itself."""
RETRY: Final = 0.25
"""Seconds before a resumption that failed is tried again, twice as many each time."""
SLOWEST_RETRY: Final = 4.0
SHORTEST_ATTEMPT: Final = 0.5


@dataclass(frozen=True, slots=True)
class Greeting:
    """What the server says of itself and of this side; its claims, that is."""

    observed: Address
    """Where this side's connection came from."""
    clock_offset: float
    """Seconds by which the server's clock is ahead of ``time.time()``."""
    rtt: float
    """Seconds of the quickest round trip to the server; the offset is within half of it."""
    turn: TurnAccess | None
    """A credential for a relay."""
    stun: tuple[str, ...]
    """URIs of STUN servers."""
    software: str = ""


class Meeting:
    """One side of a meeting.  Made by :meth:`open` and :meth:`resume`.

    One task at a time may be in :meth:`recv`.  Errors: :class:`~ice.rendezvous.errors.WrongCode`,
    :class:`~ice.rendezvous.errors.Tampered`, :class:`~ice.rendezvous.errors.PeerGone`,
    :class:`~ice.rendezvous.errors.Refused`, :class:`~ice.rendezvous.errors.RendezvousLost`,
    :class:`~ice.rendezvous.errors.BadPeer`, :class:`~ice.rendezvous.errors.OtherVersion`: each ends
    the meeting, and is raised by every call from then on, but what the peer had sent before can
    still be received.
    """

    def __init__(
        self, client: Client, pairing: Pairing, code: Code, seconds: float, resumed: Keys | None
    ) -> None:
        self._client = client
        self._pairing = pairing
        self._code = code
        self._resumed = resumed
        self.seconds = seconds
        """For how long the code is good if nobody comes."""
        self._keys: Keys | None = None
        self._channel: Channel | None = None
        self._inbox: deque[dict[str, Any]] = deque()
        self._arrived, self._room = asyncio.Event(), asyncio.Event()
        self._error: RendezvousError | None = None
        self._sending: set[asyncio.Task[None]] = set()
        loop = asyncio.get_running_loop()
        self._met: asyncio.Future[None] = loop.create_future()
        self._proved: asyncio.Future[None] = loop.create_future()
        self._reading = loop.create_task(self._read(), name=f"rendezvous {code.name}")

    # Beginning. -----------------------------------------------------------------------------------

    @classmethod
    async def open(
        cls,
        url: str,
        code: str | Code | None = None,
        *,
        ssl: tls.SSLContext | None = None,
        timeout: float = 10.0,  # noqa: ASYNC109
        on_welcome: Callable[[Welcome], None] | None = None,
    ) -> Self:
        """Connect to the rendezvous at ``url`` and join; the peer may come later.

        ``on_welcome`` is told what the server offers as soon as it has, a round trip earlier.
        ``code``: ``None`` to be given a new one.  ``ssl``: whom to trust with ``wss``, instead of
        the system's authorities.  ``timeout``: seconds.  Raises
        :class:`~ice.rendezvous.errors.RendezvousUnreachable`,
        :class:`~ice.rendezvous.errors.Refused`, :class:`~ice.rendezvous.errors.RendezvousLost`, and
        :class:`stun.errors.UsageError` for a code or a URL that is none.
        """
        known = codes.parse(code) if isinstance(code, str) else code
        return await cls._join(url, known, None, ssl, timeout, on_welcome=on_welcome)

    @classmethod
    async def resume(
        cls,
        url: str,
        keys: Keys,
        *,
        ssl: tls.SSLContext | None = None,
        timeout: float = 60.0,  # noqa: ASYNC109
        on_welcome: Callable[[Welcome], None] | None = None,
    ) -> Self:
        """Meet the peer of ``keys`` again, which has to do the same within ``timeout`` seconds.

        Returns once the peer has proved itself: :meth:`peer` returns at once.  Tries again whatever
        fails meanwhile, since the network, the server or an earlier connection of either side may
        be about to come or to go.  Raises the last error.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout
        pause = RETRY
        error: RendezvousError | None = None
        # What is left at last may be too short for an attempt, and its error would hide the reason.
        while (left := end - loop.time()) > SHORTEST_ATTEMPT or error is None:
            meeting: Self | None = None
            try:
                meeting = await cls._join(url, keys.resume, keys, ssl, left, on_welcome=on_welcome)
                async with asyncio.timeout(end - loop.time()):
                    await meeting.peer()
                # An earlier connection of this side, or of the peer, which the server still takes
                # for alive: it answers nothing.
                async with asyncio.timeout(PROOF_PATIENCE):
                    await asyncio.shield(meeting._proved)
                made, meeting = meeting, None
                return made
            except RendezvousError as failed:
                error = failed
            except TimeoutError:
                error = PeerGone("the peer did not come back to the rendezvous")
            finally:
                if meeting is not None:
                    await meeting.close()
            await asyncio.sleep(min(pause, max(0.0, end - loop.time())))
            pause = min(2 * pause, SLOWEST_RETRY)
        raise error

    @classmethod
    async def _join(
        cls,
        url: str,
        code: Code | None,
        resumed: Keys | None,
        ssl: tls.SSLContext | None,
        timeout: float,  # noqa: ASYNC109
        *,
        on_welcome: Callable[[Welcome], None] | None = None,
    ) -> Self:
        secret = codes.make_secret(os.urandom) if code is None else code.secret
        # It takes as long as the way to the server, and the event loop has others to serve.
        preparing = asyncio.create_task(asyncio.to_thread(Pairing, secret, os.urandom))
        client: Client | None = None
        try:
            async with asyncio.timeout(timeout):
                client = await Client.connect(url, ssl=ssl, timeout=timeout)
                if on_welcome is not None:
                    on_welcome(client.welcome)
                await client.measure_clock()
                pairing = await preparing
                # Where that fails, receiving tells what the server has said before it closed.
                with contextlib.suppress(RendezvousLost):
                    await client.send(Join(None if code is None else code.name, pairing.hello))
                joined = await client.receive()
            if not isinstance(joined, Joined):
                raise RendezvousLost(
                    f"the rendezvous at {client.url} does not keep to its protocol: it did not say "
                    "by which name this side is known"
                )
            if code is not None and joined.name != code.name:
                raise RendezvousLost(
                    f"the rendezvous at {client.url} gave another name than was asked for"
                )
            if code is None and not is_one_time(joined.name):
                raise RendezvousLost(
                    f"the rendezvous at {client.url} gave a name that is not good for one use"
                )
            meeting = cls(client, pairing, Code(joined.name, secret), joined.seconds, resumed)
            client = None
        except TimeoutError:
            where = without_password(urlsplit(url))
            raise RendezvousUnreachable(
                f"the rendezvous at {where} does not answer within {timeout:g} s"
            ) from None
        except Refused as error:
            raise _explained(error, None if code is None else code.name) from None
        finally:
            preparing.cancel()
            if client is not None:
                await client.close()
        return meeting

    # What is known. -------------------------------------------------------------------------------

    @property
    def code(self) -> str:
        """The whole code, as the other side has to be told it."""
        return str(self._code)

    @property
    def welcome(self) -> Greeting:
        """What the server says; the clock is measured again when the peer comes."""
        said, clock = self._client.welcome, self._client.clock
        return Greeting(
            observed=said.observed,
            clock_offset=clock.ahead_of(time.monotonic()) - time.time(),
            rtt=clock.rtt,
            turn=said.turn,
            stun=said.stun,
            software=said.software,
        )

    @property
    def keys(self) -> Keys:
        """What the two have in common; a :class:`stun.errors.UsageError` before the peer comes."""
        if self._keys is None:
            raise UsageError("there are no keys before the peer is there: await peer() first")
        return self._keys

    @property
    def first(self) -> bool:
        """Whether this side is the first of the two: an arbitrary role, opposite at the peer."""
        return self.keys.first

    @property
    def proved(self) -> bool:
        """Whether the peer has shown that it has the code."""
        return self._channel is not None and self._channel.proved

    # The conversation. ----------------------------------------------------------------------------

    async def peer(self) -> None:
        """Wait until somebody is there and keys are made.

        That it is the peer is proved by the first message that :meth:`recv` returns.  May be
        cancelled, and called again.
        """
        await asyncio.shield(self._met)

    async def send(self, message: Mapping[str, Any]) -> None:
        """Send a JSON object to the peer, after those before.

        Raises :class:`stun.errors.UsageError` before the peer is there, and for what is no JSON
        object or a longer one than the server takes.
        """
        if self._error is not None:
            raise self._error
        if self._channel is None:
            raise UsageError("nothing can be sent before the peer is there: await peer() first")
        octets = encoded(message)
        most = self._client.welcome.limits.message
        if sealed_length(len(octets)) > most:
            raise UsageError(
                f"a message of {len(octets)} octets is too long: sealed it has "
                f"{sealed_length(len(octets))}, and the rendezvous takes {most}"
            )
        try:
            await self._send_sealed(self._channel, octets)
        except RendezvousLost:
            # What the server said before it closed the connection is the better reason.
            await asyncio.wait([self._reading], timeout=FAREWELL)
            if self._error is None:
                raise
            raise self._error from None

    async def recv(self) -> dict[str, Any]:
        """Return the peer's next message.  May be cancelled, and called again."""
        while not self._inbox:
            if self._error is not None:
                raise self._error
            self._arrived.clear()
            await self._arrived.wait()
        self._room.set()
        return self._inbox.popleft()

    async def close(self) -> None:
        """Leave the rendezvous.  Does nothing the second time, and never fails."""
        self._end(RendezvousLost("this side has left the rendezvous"))
        if not self._reading.done():
            self._reading.cancel()
            await asyncio.wait([self._reading])
        await self._client.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    # Inside. --------------------------------------------------------------------------------------

    async def _read(self) -> None:
        try:
            while True:
                await self._take(await self._client.receive())
        except Refused as error:
            self._end(_explained(error, self._code.name, self.seconds))
        except RendezvousLost as error:
            void = "" if self._channel else "; nobody can come to this code any more: start again"
            self._end(RendezvousLost(f"{error}{void}"))
        except RendezvousError as error:
            self._end(error)
        except Exception as error:
            # Who waits for the peer must not wait for ever for a fault of this program.
            ended = RendezvousLost(f"this side of the meeting has failed: {error!r}")
            ended.__cause__ = error
            self._end(ended)
        await self._client.close()

    async def _take(self, message: Joined | Peer | Message | Gone) -> None:
        match message:
            case Peer(hello) if self._channel is None:
                await self._pair(hello)
            case Message(sealed) if self._channel is not None:
                await self._open(self._channel, sealed)
            case Gone(reason):
                raise _gone(reason, proved=self.proved)
            case _:
                raise RendezvousLost(
                    f"the rendezvous at {self._client.url} does not keep to its protocol: "
                    f"{type(message).__name__.lower()} comes at the wrong time"
                )

    async def _pair(self, hello: bytes) -> None:
        self._keys = await asyncio.to_thread(
            self._pairing.finish, hello, self._code.name, self._resumed
        )
        self._channel = Channel(self._keys)
        with contextlib.suppress(RendezvousLost):
            await self._send_sealed(self._channel, PROOF)
        self._met.set_result(None)
        # The code may have waited for an hour.
        await self._client.measure_clock()

    async def _open(self, channel: Channel, sealed: bytes) -> None:
        octets = channel.open(sealed)
        if not self._proved.done():
            self._proved.set_result(None)
        if octets == PROOF:
            return
        message = decoded(octets)
        while len(self._inbox) >= MOST_WAITING:
            self._room.clear()
            await self._room.wait()
        self._inbox.append(message)
        self._arrived.set()

    async def _send_sealed(self, channel: Channel, octets: bytes) -> None:
        # What is sealed has to be sent, whoever is cancelled: the peer counts.
        sending = asyncio.create_task(self._client.send(Message(channel.seal(octets))))
        self._sending.add(sending)
        sending.add_done_callback(self._sent)
        await asyncio.shield(sending)

    def _sent(self, sending: asyncio.Task[None]) -> None:
        self._sending.discard(sending)
        if not sending.cancelled():
            sending.exception()

    def _end(self, error: RendezvousError) -> None:
        if self._error is None:
            self._error = error
        for waiter in (self._met, self._proved):
            if not waiter.done():
                waiter.set_exception(self._error)
                # Nobody may be waiting.
                waiter.exception()
        self._arrived.set()


def encoded(message: Mapping[str, Any]) -> bytes:
    """Return a message's octets; raises :class:`stun.errors.UsageError` for what is none."""
    if not isinstance(message, dict):
        raise UsageError(f"a message is a JSON object, not {type(message).__name__}")
    try:
        text = json.dumps(message, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        return text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"a message is a JSON object: {error}") from None


def decoded(octets: bytes) -> dict[str, Any]:
    """Return a peer's message; raises :class:`ice.rendezvous.errors.BadPeer` for what is none."""
    try:
        message = json.loads(octets)
        # What could not be sent is not taken: numbers such as NaN and 1e999, which JSON does not
        # have, and halves of surrogate pairs, which no terminal takes.
        encoded(message)
    except (ValueError, RecursionError, UsageError):
        raise BadPeer("the peer, which has the code, sent what is no JSON object") from None
    assert isinstance(message, dict)
    return message


def _gone(reason: str, *, proved: bool) -> PeerGone:
    how = {
        GoneReason.LEFT: "the peer has left the rendezvous",
        GoneReason.LOST: "the peer's connection to the rendezvous is lost",
        GoneReason.EXPELLED: "the rendezvous has ended the peer's connection",
    }.get(reason, f"the peer is gone from the rendezvous ({reason})")  # type: ignore[call-overload]
    return PeerGone(how if proved else f"{how}, before it proved that it has the code")


def _explained(error: Refused, name: str | None, seconds: float = 0.0) -> Refused:
    """Return what a refusal means to whoever has this code, if that is known."""
    text = {
        ErrorCode.BUSY: f'two have met under the name "{name}" already: choose another code, or, '
        "if one of them was you before the network went away, try again in a few seconds",
        ErrorCode.UNKNOWN_NAME: f"nobody waits under the number {name}: the code has been used or "
        "has expired, or the number was mistyped; ask for a new code",
        ErrorCode.EXPIRED: f"nobody came within {seconds:g} s: the code has expired; make a new "
        "one",
    }.get(error.code)  # type: ignore[call-overload]
    return error if text is None else Refused(error.code, text)
