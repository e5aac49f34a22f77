"""Several servers tried for one allocation; the first that gives one is used (RFC 5928, RFC 8305).

Theory of operation.  The servers are tried in the order that discovery gave, each when the one
before has failed or :data:`STAGGER` has passed, as RFC 8305 section 5 does for connections.  A
server that answers after another has won gets its allocation back at once.  From then on the race
stands aside: its methods *are* the winner's, so a packet costs what it costs without a race.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import Final

from stun.errors import DropReason, StunError, UsageError
from stun.sansio import (
    MILLISECOND,
    Dial,
    Entropy,
    Handle,
    Instant,
    OpenUdp,
    Output,
    Received,
    SocketEvent,
)
from turn.client.config import ClientConfig
from turn.client.errors import NoRelay, ServerRefused
from turn.client.events import Allocated, ClientEvent, Failed, Redirected, Released
from turn.client.machine import Client

STAGGER: Final = 1000 * MILLISECOND
"""How long a server may keep others waiting: an allocation takes two round trips, TLS two more."""


class Race:
    """A :class:`stun.sansio.SocketMachine`: :meth:`start`, then :attr:`client` once it is decided.

    Tells what the winner tells, from its ``Allocated`` on, or one ``Failed``.  ``handles`` numbers
    the sockets, for a driver whose machine contains several races.
    """

    receive: Callable[[Received, Instant], None]
    on_socket: Callable[[SocketEvent, Instant], None]
    on_deadline: Callable[[Instant], None]
    poll: Callable[[], Output | ClientEvent | None]
    deadline: Callable[[], Instant | None]

    def __init__(
        self,
        configs: Sequence[ClientConfig],
        *,
        entropy: Entropy,
        stagger: int = STAGGER,
        handles: Iterator[Handle] | None = None,
    ) -> None:
        if not configs:
            raise UsageError("there is no server to ask")
        self.client: Client | None = None
        self._entropy = entropy
        self._stagger = stagger
        self._configs = deque(configs)
        self._handles = count(1) if handles is None else handles
        self._clients: list[Client] = []
        self._owners: dict[Handle, Client] = {}
        self.errors: list[StunError] = []
        """What servers that were asked in vain died of."""
        self.relays_tcp = configs[0].tcp
        self._queue: deque[Output | ClientEvent] = deque()
        self._next: Instant | None = None
        self.receive = self._receive
        self.on_socket = self._on_socket
        self.on_deadline = self._on_deadline
        self.poll = self._poll
        self.deadline = self._deadline

    @property
    def drops(self) -> Counter[DropReason]:
        """What came and was not used."""
        return sum((client.drops for client in self._clients), Counter())

    def start(self, now: Instant) -> None:
        """Ask the first server."""
        self._ask_next(now)

    def abandon(self, now: Instant) -> None:
        """Shut every socket; allocations that are known are given back unanswered."""
        self._configs.clear()
        self._next = None
        for client in self._clients:
            client.abandon(now)
        self._drain(now)

    def _ask_next(self, now: Instant) -> None:
        client = Client(self._configs.popleft(), entropy=self._entropy, handles=self._handles)
        self._clients.append(client)
        self._next = now + self._stagger if self._configs else None
        client.allocate(now)
        self._drain(now)

    def _receive(self, packet: Received, now: Instant) -> None:
        for client in self._clients:
            if client.owns(packet.local):
                client.receive(packet, now)
                break
        self._drain(now)

    def _on_socket(self, event: SocketEvent, now: Instant) -> None:
        handle = getattr(event, "handle", None)
        if handle is None:  # Undeliverable: whoever sent it knows
            for client in self._clients:
                client.on_socket(event, now)
        elif handle in self._owners:
            self._owners[handle].on_socket(event, now)
        self._drain(now)

    def _on_deadline(self, now: Instant) -> None:
        for client in self._clients:
            client.on_deadline(now)
        if self._next is not None and self._next <= now:
            self._ask_next(now)
        self._drain(now)

    def _deadline(self) -> Instant | None:
        times = [client.deadline() for client in self._clients]
        return min((at for at in (*times, self._next) if at is not None), default=None)

    def _poll(self) -> Output | ClientEvent | None:
        if self._queue:
            return self._queue.popleft()
        if self.client is not None and self._clients == [self.client]:
            # The caller may hold on to this method until it has nothing to give any more.
            self._stand_aside(self.client)
            return self.client.poll()
        return None

    def _drain(self, now: Instant) -> None:
        # What one client tells may give another something to do.
        while True:
            told = [(client, output) for client in self._clients if (output := client.poll())]
            if not told:
                return
            for client, output in told:
                self._take(client, output, now)

    def _take(self, client: Client, output: Output | ClientEvent, now: Instant) -> None:
        match output:
            case OpenUdp(handle) | Dial(handle):
                self._owners[handle] = client
                self._queue.append(output)
            case Allocated() if self.client is None:
                self.client = client
                self._configs.clear()
                self._next = None
                self._queue.append(output)
                for other in self._clients:
                    if other is not client:
                        other.release(now)
            case Failed(error) if self.client is None:
                self.errors.append(error)
                self._configs = deque(c for c in self._configs if not _in_vain(c, error))
                if self._configs:
                    self._ask_next(now)
                elif len(self.errors) == len(self._clients):
                    self._queue.append(Failed(_together(self.errors)))
            case Failed() | Released() if client is not self.client:
                # Its sockets are shut; what it has queued before is on its way.
                if client in self._clients and self.client is not None:
                    self._clients.remove(client)
            case Redirected():
                self._queue.append(output)
            case _ if isinstance(output, Output) or client is self.client:
                self._queue.append(output)
            case _:
                pass  # what the others tell is of no interest

    def _stand_aside(self, winner: Client) -> None:
        self._owners.clear()
        self.receive = winner.receive
        self.on_socket = winner.on_socket
        self.on_deadline = winner.on_deadline
        self.poll = winner.poll
        self.deadline = winner.deadline


# RFC 8656 section 7.4: after these a client "SHOULD NOT send any further requests to this server",
# or "SHOULD wait at least 1 minute"; over TCP and TLS it is the same server.
_FINAL = frozenset({401, 403, 438, 440, 441, 486, 508})


def _in_vain(config: ClientConfig, error: StunError) -> bool:
    return (
        isinstance(error, ServerRefused)
        and error.code in _FINAL
        and error.server.address.host == config.server.address.host
    )


def _together(errors: Sequence[StunError]) -> StunError:
    return errors[0] if len(errors) == 1 else NoRelay(errors)
