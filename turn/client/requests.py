"""Requests of a TURN client: made, sent along a path, and each ended by one of two callbacks.

:class:`Requests` wraps :class:`stun.client.Client`, which retransmits, authenticates and checks,
and adds what all TURN requests share: at most ten are open at once, and what becomes of one is told
in the words of :mod:`turn.client.errors`.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

from stun.attributes import SOFTWARE
from stun.auth_client import IntegrityViolated, with_transaction_id
from stun.client import Client as StunClient
from stun.client import Failed as StunFailed
from stun.client import Indication, Reply
from stun.discovery import Target, Transport
from stun.errors import (
    Dropped,
    DropReason,
    ErrorResponse,
    StunError,
    TransactionTimedOut,
    TransportFailed,
)
from stun.message import Message
from stun.registry import Method
from stun.sansio import (
    MILLISECOND,
    Address,
    Closed,
    Entropy,
    Instant,
    Output,
    Received,
    SocketEvent,
    Transmit,
    Write,
)
from stun.transaction import Schedule
from turn.client.config import ClientConfig
from turn.client.errors import ServerNotTrusted, ServerUnreachable, TurnError, refused
from turn.client.events import ClientEvent
from turn.client.path import Path

MAX_OPEN: Final = 10
"""RFC 8489 section 6.2: "a client SHOULD limit the number of outstanding transactions to the same
server" to ten."""

RELEASE: Final = Schedule.fixed((300 * MILLISECOND, 600 * MILLISECOND), 1100 * MILLISECOND)
"""For a Refresh that deletes: nobody waits half a minute to be told that something is gone."""

Queue: TypeAlias = "deque[Output | ClientEvent]"
Done: TypeAlias = Callable[[Reply, Instant], None]


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a request failed: ``error`` in words for a person, ``said`` as the STUN client has it.

    ``challenged``: the request had answered a challenge, so the server could have proved itself.
    """

    error: StunError
    said: StunError
    challenged: bool = False


NotDone: TypeAlias = Callable[[Failure, Instant], None]


@dataclass(slots=True, eq=False)
class Ask:
    """A request that somebody waits for."""

    path: Path
    message: Message
    done: Done
    failed: NotDone
    schedule: Schedule | None
    session: Path | None


class Requests:
    """The requests of one client.  :meth:`drain` must follow whatever is called here."""

    def __init__(
        self,
        config: ClientConfig,
        queue: Queue,
        drops: Counter[DropReason],
        on_indication: Callable[[Indication, Instant], None],
        *,
        entropy: Entropy,
    ) -> None:
        self._config = config
        self._queue = queue
        self._drops = drops
        self._on_indication = on_indication
        self._entropy = entropy
        self._stun = StunClient(config.stun, entropy=entropy)
        self._open: dict[bytes, Ask] = {}
        self._waiting: deque[Ask] = deque()

    def message(self, method: Method) -> Message:
        """Make a request with what all of them have."""
        message = Message.request(method, self._entropy(12))
        if self._config.software is not None:
            message.add(SOFTWARE, self._config.software)
        return message

    def ask(
        self,
        path: Path,
        message: Message,
        now: Instant,
        done: Done,
        failed: NotDone,
        *,
        schedule: Schedule | None = None,
        session: Path | None = None,
    ) -> Ask:
        """Send a request, or keep it until fewer are open, or until there is a path again.

        ``session``: another stream to the server, whose challenge is answered without a new one.
        """
        ask = Ask(path, message, done, failed, schedule, session)
        if len(self._open) < MAX_OPEN and path.handle:
            self._send(ask, now)
        else:
            self._waiting.append(ask)
        return ask

    def _next(self) -> Ask | None:
        """Take the next request that waits and has a way to go.

        While a client whose connection has closed moves to another one, its requests have none:
        :meth:`carry_over` sends them.
        """
        if len(self._open) >= MAX_OPEN:
            return None
        ask = next((ask for ask in self._waiting if ask.path.handle), None)
        if ask is not None:
            self._waiting.remove(ask)
        return ask

    def _send(self, ask: Ask, now: Instant) -> None:
        path, config = ask.path, self._config
        if path.is_udp:
            name = self._stun.request(
                ask.message,
                destination=path.server.address,
                source=path.local,
                now=now,
                schedule=ask.schedule,
                credentials=config.credentials,
                accept_from=frozenset((path.server.address,)),
            )
        else:
            schedule = ask.schedule
            if schedule is None and not path.is_reliable:
                # RFC 7350 section 3: over DTLS requests are retransmitted as over UDP.
                schedule = Schedule.rfc8489(config.stun.rto, config.stun.rc, config.stun.rm)
            elif path.is_reliable and schedule is not None:
                schedule = Schedule.reliable(schedule.total)
            name = self._stun.request_over(
                path.handle,
                ask.message,
                now=now,
                schedule=schedule,
                credentials=config.credentials,
                session=None if ask.session is None else ask.session.handle,
            )
        self._open[name] = ask

    def adopt_challenges(self) -> None:
        """Have later requests answer what the open ones were challenged with."""
        for transaction_id in self._open:
            self._stun.adopt_challenge(transaction_id)

    def cancel(self, ask: Ask) -> None:
        """Forget a request: neither callback is called any more."""
        self._open.pop(ask.message.transaction_id, None)
        self._stun.cancel(ask.message.transaction_id)
        if ask in self._waiting:
            self._waiting.remove(ask)

    def carry_over(self, old: Path, new: Path, now: Instant) -> None:
        """Ask along another path what was asked along ``old`` and has no answer yet."""
        for ask in [ask for ask in (*self._open.values(), *self._waiting) if ask.path is old]:
            self.cancel(ask)
            ask.path = new
            ask.message = with_transaction_id(ask.message, self._entropy(12))
            self._send(ask, now)

    def forget(self, path: Path) -> None:
        """Forget every request along a path whose socket is shut."""
        for ask in [ask for ask in (*self._open.values(), *self._waiting) if ask.path is path]:
            self.cancel(ask)
        self._stun.forget(path.handle)

    # What happens. --------------------------------------------------------------------------------

    def receive(self, packet: Received, now: Instant) -> None:
        """Take a datagram that is no ChannelData."""
        self._stun.receive(packet, now)

    def on_socket(self, event: SocketEvent, now: Instant) -> None:
        """Take what happened to a path's socket; of streams, whole STUN messages only."""
        self._stun.on_socket(event, now)
        if isinstance(event, Closed):
            # A request that waits for its turn was never told to the stream that is gone.
            for ask in [ask for ask in self._waiting if ask.path.handle == event.handle]:
                self._waiting.remove(ask)
                self._fail(ask, TransportFailed(event.detail or event.cause.value), now)

    def on_deadline(self, now: Instant) -> None:
        """Send again what is due; give up what has waited long enough."""
        self._stun.on_deadline(now)

    def deadline(self) -> Instant | None:
        """Say when :meth:`on_deadline` is to be called."""
        return self._stun.deadline()

    def drain(self, now: Instant) -> None:
        """Send what is to be sent, and tell what became of requests."""
        queue, poll = self._queue, self._stun.poll
        while True:
            output = poll()
            if output is None:
                ask = self._next() if self._waiting else None
                if ask is None:
                    return
                self._send(ask, now)
            elif isinstance(output, Transmit | Write):
                queue.append(output)
            elif isinstance(output, Reply):
                self._open.pop(output.transaction_id).done(output, now)
            elif isinstance(output, StunFailed):
                answer = output.message
                # A request that is sent anew with credentials has another id than it began with.
                challenged = answer is not None and answer.transaction_id != output.transaction_id
                self._fail(self._open.pop(output.transaction_id), output.error, now, challenged)
            elif isinstance(output, Indication):
                self._on_indication(output, now)
            else:
                self._drops[output.reason] += 1
                queue.append(output)

    def _fail(self, ask: Ask, error: StunError, now: Instant, challenged: bool = False) -> None:
        what = Method.make(ask.message.method).label
        ask.failed(Failure(_in_words(ask.path.server, what, error), error, challenged), now)

    def drop(self, reason: DropReason, source: Address | None, detail: str = "") -> None:
        """Count and tell what is not used."""
        self._drops[reason] += 1
        self._queue.append(Dropped(reason, source, detail))


def _in_words(server: Target, what: str, error: StunError) -> StunError:
    if isinstance(error, ErrorResponse):
        return refused(server, what, error)
    if isinstance(error, TransactionTimedOut):
        return ServerUnreachable(server, f"no answer to {what}; {_hint(server)}")
    if isinstance(error, TransportFailed):
        return ServerUnreachable(server, f"{what} failed: {error}; {_hint(server)}")
    if isinstance(error, IntegrityViolated):
        return ServerNotTrusted(
            server, f"its answers to {what} do not prove that it knows the password: {error}"
        )
    return TurnError(server, f"{what} failed: {error}")


def _hint(server: Target) -> str:
    if server.transport is Transport.UDP:
        return (
            "is it running there, and is UDP allowed here? TCP or TLS may pass where UDP does not"
        )
    return "is it running there, and does a firewall let it through?"
