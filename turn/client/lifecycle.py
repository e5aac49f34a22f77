"""Where an allocation is on its way: from the first socket to the last (RFC 8656 sections 7 and 8).

The states are those of :mod:`turn.client.machine`.  Whatever ends a state comes in here: answers to
Allocate, sockets that open and close, times that run out.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto
from typing import Final

from stun.client import Reply
from stun.discovery import Target
from stun.errors import StunError, UsageError
from stun.message import Message
from stun.outcome import TryAlternate
from stun.registry import ErrorCode, Method
from stun.sansio import (
    SECOND,
    Address,
    Arrived,
    Cause,
    Closed,
    Congested,
    Connected,
    Handle,
    Instant,
    Opened,
    Relieved,
    Shut,
    SocketEvent,
)
from turn.client.allocate import Granted, Wrong, allocate_request, read_allocation
from turn.client.config import ClientConfig
from turn.client.errors import AllocationLost, ServerRefused, ServerUnreachable, TurnError
from turn.client.events import Allocated, Failed, Lost, Redirected, Released, ServerCongested
from turn.client.keep import Keeper, deletion
from turn.client.move import Mover
from turn.client.path import Path
from turn.client.peers import Peers
from turn.client.redirect import Redirects
from turn.client.requests import RELEASE, Ask, Done, Failure, NotDone, Queue, Requests
from turn.client.tcp import Connections

OPEN_PATIENCE: Final = 20 * SECOND
"""How long a TCP, TLS or DTLS connection to the server may take."""
PORTS: Final = 3
"""RFC 8656 section 7.4: after 437 a client "SHOULD try three different client transport
addresses"."""
PAUSES: Final = tuple(seconds * SECOND for seconds in (0, 1, 2, 4, 8, 16, 30))
"""Before each attempt to make a lost allocation again."""


class State(Enum):
    """Where an allocation is on its way."""

    IDLE = auto()
    OPENING = auto()
    ALLOCATING = auto()
    ALLOCATED = auto()
    PAUSING = auto()
    RELEASING = auto()
    ENDED = auto()


_NEXT: dict[State, frozenset[State]] = {
    State.IDLE: frozenset({State.OPENING, State.ENDED}),
    State.OPENING: frozenset({State.ALLOCATING, State.OPENING, State.PAUSING, State.ENDED}),
    State.ALLOCATING: frozenset(
        {State.ALLOCATED, State.OPENING, State.PAUSING, State.RELEASING, State.ENDED}
    ),
    State.ALLOCATED: frozenset({State.RELEASING, State.PAUSING, State.ENDED}),
    State.PAUSING: frozenset({State.OPENING, State.ENDED}),
    State.RELEASING: frozenset({State.ENDED}),
    State.ENDED: frozenset({State.OPENING}),
}


class Lifecycle:
    """The life of one client's allocation, and the parts that live as long.

    ``arrived`` takes octets of the stream to the server; ``send`` sends a datagram that has waited
    for its permission, ``write`` a message as it is.
    """

    def __init__(
        self,
        config: ClientConfig,
        queue: Queue,
        requests: Requests,
        *,
        new_handle: Callable[[], Handle],
        arrived: Callable[[Path, bytes, Instant], None],
        send: Callable[[Address, bytes, bool], None],
        write: Callable[[bytes], None],
    ) -> None:
        self.state = State.IDLE
        self.path = Path(0, config.server, Address("", 0))
        self.allocation: Granted | None = None
        """What the server gave, while there is an allocation."""
        self.is_made_anew = False
        """A lost allocation is being made again."""
        self.patience: Instant | None = None
        """When the present state has taken too long, or a pause is over."""
        self.peers = Peers(queue, self._ask, requests.message, lost=self.lose, send=send)
        self.connections = Connections(
            queue,
            requests,
            control=lambda: self.path,
            new_handle=new_handle,
            lost=self.lose,
            accept_limit=config.accept_limit,
        )
        self.keeper = Keeper(
            queue,
            requests,
            path=lambda: self.path,
            lost=self.lose,
            write=write,
            lifetime=config.lifetime,
            keepalive=config.keepalive,
        )
        self.mover = Mover(
            queue,
            requests,
            new_handle=new_handle,
            moved=self._moved,
            stayed=self._stayed,
            arrived=arrived,
        )
        self._config = config
        self._queue = queue
        self._requests = requests
        self._new_handle = new_handle
        self._arrived = arrived
        self._redirects = Redirects(config.redirects)
        self._server = config.server
        self._unwanted = False
        """A release was asked for while the answer to Allocate is still on its way."""
        self._ports = 0
        self._attempts = 0

    def _go(self, state: State) -> None:
        assert state in _NEXT[self.state], f"{self.state} -> {state}"
        self.state = state

    # Commands. ------------------------------------------------------------------------------------

    def allocate(self, now: Instant) -> None:
        """Open a socket and ask for a relayed address."""
        if self.state not in (State.IDLE, State.ENDED):
            raise UsageError(f"allocate: the client is {self.state.name.lower()}")
        self.is_made_anew = self._unwanted = False
        self._redirects.start_afresh()
        self._server = self._config.server
        self._ports = self._attempts = 0
        self._open(now)

    def move(self, local: Address | None, now: Instant) -> None:
        """Go on from another local address."""
        self.mover.start(self.path.server, local or self._any_local(), now)

    def release(self, now: Instant) -> None:
        """Give the allocation back and shut every socket: ends in ``Released``."""
        match self.state:
            case State.ALLOCATED:
                self._release(now)
            case State.ALLOCATING:
                # Whether there is an allocation only the answer tells, so it is waited for.
                self._unwanted = True
                self.patience = now + RELEASE.total
            case State.OPENING | State.PAUSING | State.IDLE:
                self._end(Released())
            case State.RELEASING | State.ENDED:
                pass

    def abandon(self, now: Instant) -> None:
        """Shut every socket at once; the server is told if one unanswered packet can do it."""
        if self.state in (State.ALLOCATING, State.ALLOCATED):
            # While it is allocating, the server may have granted already what is not heard of yet.
            self._requests.adopt_challenges()
            self._give_back(now)
        if self.state is not State.ENDED:
            self._end(None)

    # What happens. --------------------------------------------------------------------------------

    def on_path(self, event: SocketEvent, now: Instant) -> None:
        """Take what happened to the socket to the server."""
        match event:
            case Opened(_, local) | Connected(_, local):
                self.path.local = local
                self._requests.on_socket(event, now)
                self.patience = None
                self._allocate(now)
            case Arrived(_, data):
                self._arrived(self.path, data, now)
            case Congested() | Relieved():
                self.path.congested = isinstance(event, Congested)
                self._queue.append(ServerCongested(relieved=not self.path.congested))
            case Closed(_, cause, detail):
                self._requests.on_socket(event, now)
                self._requests.drain(now)
                if self.path.handle == event.handle:
                    self.path.handle = 0
                    self._path_closed(cause, detail, now)
            case _:
                pass  # a client listens nowhere

    def out_of_patience(self, now: Instant) -> None:
        """End a state that has taken too long."""
        self.patience = None
        match self.state:
            case State.OPENING:
                text = f"no connection within {OPEN_PATIENCE // SECOND} s"
                self._not_allocated(ServerUnreachable(self._server, text), now)
            case State.PAUSING:
                self._open(now)
            case State.ALLOCATING:
                self._end(Released())
            case _:
                pass

    # Allocating. ----------------------------------------------------------------------------------

    def _ask(self, message: Message, now: Instant, done: Done, failed: NotDone) -> Ask:
        return self._requests.ask(self.path, message, now, done, failed)

    def _any_local(self) -> Address:
        local, ipv6 = self._config.local, self._server.address.is_ipv6
        if local is not None and local.is_ipv6 is ipv6:
            return Address(local.host, 0)
        return Address("::" if ipv6 else "0.0.0.0", 0)  # noqa: S104  (any of this host's)

    def _open(self, now: Instant) -> None:
        self._go(State.OPENING)
        self._shut_path()
        first = self._config.local is not None and self._server is self._config.server
        local = self._config.local if first and not self._ports else None
        self.path = Path.control(self._new_handle(), self._server, local or self._any_local())
        self._queue.append(self.path.order)
        self.patience = now + OPEN_PATIENCE

    def _shut_path(self) -> None:
        self._requests.forget(self.path)
        if self.path.handle:
            self._queue.append(Shut(self.path.handle))
            self.path.handle = 0

    def _allocate(self, now: Instant) -> None:
        self._go(State.ALLOCATING)
        self._redirects.asked(self._server, now)
        message = allocate_request(self._config, self._requests.message(Method.ALLOCATE))
        self._ask(message, now, self._granted, self._refused)

    def _granted(self, reply: Reply, now: Instant) -> None:
        granted = read_allocation(self._config, reply)
        self.keeper.adopt(granted.lifetime, now)
        self.patience = None
        self._go(State.ALLOCATED)
        if self._unwanted:
            self._release(now)
            return
        if isinstance(granted, Wrong):
            self._give_back(now)
            self._not_allocated(TurnError(self._server, granted.why), now)
            return
        self.allocation = granted
        self.mover.ticket = granted.ticket
        self._ports = self._attempts = 0
        self._queue.append(
            Allocated(
                granted.relayed,
                granted.mapped,
                self.path.local,
                granted.lifetime,
                self._server,
                granted.reservation_token,
                granted.refused,
                granted.ticket is not None,
            )
        )
        if self.is_made_anew:
            self.is_made_anew = False
            self.peers.start_afresh(now)

    def _refused(self, failure: Failure, now: Instant) -> None:
        if self._unwanted:
            self._end(Released())
        elif isinstance(failure.said, TryAlternate):
            self._try_alternate(failure.said, failure, now)
        elif _code(failure.error) == ErrorCode.ALLOCATION_MISMATCH and self._ports < PORTS - 1:
            self._ports += 1
            self._open(now)
        else:
            self._not_allocated(failure.error, now)

    def _try_alternate(self, said: TryAlternate, failure: Failure, now: Instant) -> None:
        to = self._redirects.follow(self._server, said, now, challenged=failure.challenged)
        if isinstance(to, Target):
            self._queue.append(Redirected(self._server, to))
            self._server = to
            self._open(now)
        else:
            self._not_allocated(to, now)

    def _not_allocated(self, error: StunError, now: Instant) -> None:
        if self.is_made_anew and self._attempts < len(PAUSES):
            self._pause(now)
        else:
            self.is_made_anew = False
            self._end(Failed(error))

    def _path_closed(self, cause: Cause, detail: str, now: Instant) -> None:
        text = f"{cause.value}: {detail}" if detail and detail != cause.value else cause.value
        error = ServerUnreachable(self._server, text)
        match self.state:
            case State.OPENING | State.ALLOCATING if not self._unwanted:
                self._not_allocated(error, now)
            case State.ALLOCATED if self.mover.ticket is not None:
                # RFC 8016: the allocation outlives the connection.
                if not self.mover.is_moving:
                    self.mover.start(self._server, self._any_local(), now)
            case State.ALLOCATED:
                self.lose(error, now)
            case State.RELEASING | State.ALLOCATING:
                self._end(Released())
            case _:
                pass

    # Keeping. -------------------------------------------------------------------------------------

    def _moved(self, path: Path, lifetime: int, asked: Instant) -> None:
        old, self.path = self.path, path
        self.keeper.adopt(lifetime, asked)
        self._requests.carry_over(old, path, asked)
        self.mover.linger(old, path, asked)

    def _stayed(self, error: StunError, now: Instant) -> None:
        if not self.path.handle:  # the old connection was what made it move
            self.lose(error, now)

    def lose(self, error: StunError, now: Instant) -> None:
        """Take note that the allocation is gone."""
        if self.state is not State.ALLOCATED:
            return
        if not isinstance(error, AllocationLost):
            error = AllocationLost(self._server, str(error), error)
        again = self._config.allocate_again
        self._queue.append(Lost(error, again))
        if again:
            self.is_made_anew = True
            self._close_all(Cause.OTHER)
            self._server = self._config.server
            self._redirects.start_afresh()
            self.peers.suspend()
            self._pause(now)
        else:
            self._end(Failed(error))

    def _pause(self, now: Instant) -> None:
        self._go(State.PAUSING)
        self._shut_path()
        self._ports = 0
        self.patience = now + PAUSES[self._attempts]
        self._attempts += 1

    # Ending. --------------------------------------------------------------------------------------

    def _release(self, now: Instant) -> None:
        self._go(State.RELEASING)
        self._close_all(Cause.OTHER)

        def done(_: Reply, _later: Instant) -> None:
            self._end(Released())

        def failed(_: Failure, _later: Instant) -> None:
            # 437 says that it is gone already; without an answer it will be in some minutes.
            self._end(Released())

        message = deletion(self._requests)
        self._requests.ask(self.path, message, now, done, failed, schedule=RELEASE)

    def _give_back(self, now: Instant) -> None:
        message = deletion(self._requests)
        self._requests.ask(self.path, message, now, _ignore, _ignore_failure)
        self._requests.drain(now)

    def _close_all(self, cause: Cause | None) -> None:
        self.connections.clear(cause)
        self.mover.stop()
        self.keeper.stop()
        self.patience = None
        self.allocation = None

    def _end(self, event: Released | Failed | None) -> None:
        self._go(State.ENDED)
        self._close_all(None)
        self._shut_path()
        self.peers.clear()
        if event is not None:
            self._queue.append(event)


def _code(error: StunError) -> int | None:
    return error.code if isinstance(error, ServerRefused) else None


def _ignore(_: Reply, now: Instant) -> None:
    """Take an answer that nobody waits for."""


def _ignore_failure(_: Failure, now: Instant) -> None:
    """Take a failure that changes nothing."""
