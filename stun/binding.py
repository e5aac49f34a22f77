"""One question and one answer: the transport address that a server sees.

A machine that asks a few transport addresses of one server, each :data:`STAGGER` after the one
before as RFC 8305 section 5 does for connections, and ends with the first answer.
:func:`stun.aio.binding` and :func:`stun.blocking.binding` run it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Final

from stun.client import Client, Failed, Reply, mapped_address
from stun.discovery import Target, Transport
from stun.errors import StunError, TransactionTimedOut, TransportFailed
from stun.sansio import (
    MILLISECOND,
    Address,
    Closed,
    Connected,
    Dial,
    Entropy,
    Handle,
    Instant,
    Opened,
    OpenUdp,
    Output,
    Received,
    Shut,
    SocketEvent,
)

STAGGER: Final = 250 * MILLISECOND


@dataclass(frozen=True, slots=True)
class Answered:
    """``server`` sees ``local`` as ``mapped``.  ``rtt`` in nanoseconds, if it could be measured."""

    mapped: Address
    local: Address
    server: Target
    rtt: int | None


@dataclass(frozen=True, slots=True)
class NotAnswered:
    """No server answered; ``error`` is what the last one that said anything died of."""

    error: StunError


@dataclass(slots=True)
class _Attempt:
    target: Target
    handle: Handle
    transaction: bytes | None = field(default=None)


class BindingQuery:
    """Asks ``targets`` for the mapped address, for ``patience`` nanoseconds in all.

    The event is one :class:`Answered` or :class:`NotAnswered`; everything is shut by then.
    """

    def __init__(self, targets: Sequence[Target], *, patience: int, entropy: Entropy) -> None:
        self._waiting = deque(targets)
        self._patience = patience
        self._client = Client(entropy=entropy)
        self._numbers = count(1)
        self._attempts: dict[Handle, _Attempt] = {}
        self._queue: deque[Output | Answered | NotAnswered] = deque()
        self._next: Instant | None = None
        self._end: Instant | None = None
        self._error: StunError | None = None

    def start(self, now: Instant) -> None:
        """Ask the first target."""
        self._end = now + self._patience
        self._ask_next(now)

    def _ask_next(self, now: Instant) -> None:
        self._next = None
        if not self._waiting:
            if not self._attempts:
                self._finish(NotAnswered(self._error or TransportFailed("there is no server")))
            return
        target = self._waiting.popleft()
        if self._waiting:
            self._next = now + STAGGER
        attempt = _Attempt(target, next(self._numbers))
        self._attempts[attempt.handle] = attempt
        any_host = Address("::" if target.address.is_ipv6 else "0.0.0.0", 0)  # noqa: S104
        if target.transport is Transport.UDP:
            self._queue.append(OpenUdp(attempt.handle, any_host))
        else:
            self._queue.append(Dial(attempt.handle, any_host, target.address, target.name))

    def receive(self, packet: Received, now: Instant) -> None:
        """Take a datagram."""
        self._client.receive(packet, now)
        self._drain(now)

    def on_socket(self, event: SocketEvent, now: Instant) -> None:
        """Take what happened to a socket."""
        self._client.on_socket(event, now)
        match event:
            case Opened(handle, local) if handle in self._attempts:
                attempt = self._attempts[handle]
                to = attempt.target.address
                attempt.transaction = self._client.request(
                    destination=to, source=local, now=now, accept_from=frozenset({to})
                )
            case Connected(handle) if handle in self._attempts:
                self._attempts[handle].transaction = self._client.request_over(handle, now=now)
            case Closed(handle, cause, detail) if handle in self._attempts:
                target = self._attempts[handle].target
                text = f"{target.transport} to {target.address}: {detail or cause.value}"
                self._fail(handle, TransportFailed(text), now)
        self._drain(now)

    def on_deadline(self, now: Instant) -> None:
        """Ask the next target, send again, or give up."""
        self._client.on_deadline(now)
        self._drain(now)
        if self._end is not None and now >= self._end:
            waited = self._patience / 1_000_000_000
            error = self._error or TransactionTimedOut(f"no answer within {waited:g} s")
            self._finish(NotAnswered(error))
        elif self._next is not None and now >= self._next:
            self._ask_next(now)

    def _drain(self, now: Instant) -> None:
        while (output := self._client.poll()) is not None:
            match output:
                case Reply():
                    self._answered(output, now)
                case Failed(transaction_id, _, error):
                    for attempt in list(self._attempts.values()):
                        if attempt.transaction == transaction_id:
                            self._shut(attempt)
                            self._fail(attempt.handle, error, now)
                case _ if isinstance(output, Output):
                    self._queue.append(output)
                case _:
                    pass  # strangers' datagrams and indications change nothing here

    def _answered(self, reply: Reply, now: Instant) -> None:
        (attempt,) = (a for a in self._attempts.values() if a.transaction == reply.transaction_id)
        mapped = mapped_address(reply.message)
        if mapped is None:
            self._shut(attempt)
            error = TransportFailed(f"the answer of {reply.source} has no mapped address")
            self._fail(attempt.handle, error, now)
        else:
            self._finish(Answered(mapped, reply.local, attempt.target, reply.rtt))

    def _fail(self, handle: Handle, error: StunError, now: Instant) -> None:
        del self._attempts[handle]
        self._error = error
        if self._end is not None and not self._attempts:
            self._ask_next(now)

    def _finish(self, event: Answered | NotAnswered) -> None:
        self._end = self._next = None
        self._waiting.clear()
        for attempt in self._attempts.values():
            self._shut(attempt)
        self._attempts.clear()
        self._queue.append(event)

    def _shut(self, attempt: _Attempt) -> None:
        if attempt.transaction is not None:
            self._client.cancel(attempt.transaction)
        self._client.forget(attempt.handle)
        self._queue.append(Shut(attempt.handle))

    def poll(self) -> Output | Answered | NotAnswered | None:
        """Give the next thing to do or to tell."""
        return self._queue.popleft() if self._queue else None

    def deadline(self) -> Instant | None:
        """Say when :meth:`on_deadline` is to be called."""
        times = (self._client.deadline(), self._next, self._end)
        return min((at for at in times if at is not None), default=None)
