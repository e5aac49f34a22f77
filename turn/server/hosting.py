"""Between the server machine and its parts: what a request is, and what the machine does for them.

The parts (the methods of TURN, the TCP relay) know the machine by the :class:`Hosting` protocol
alone.  How the machine and the TCP relay (RFC 6062) share the work:

* The *machine* does Allocate whole, for TCP too: it picks the port, queues
  ``Listen(handle, local, exclusive=False)``, waits for Opened or Closed and answers.  So
  ``allocation.relays[0]`` has the listener's handle and its bound local address, from which the
  TCP relay dials.  The machine shuts that listener when the allocation ends.
* The machine authenticates Connect and ConnectionBind, refuses those with unknown attributes, and
  calls ``connect(request, now)`` and ``connection_bind(request, now)``.  For Connect it has also
  checked that ``request.allocation`` is there (437) and has the same username (441).  For
  ConnectionBind the allocation is the TCP relay's to find, by CONNECTION-ID, and the username of
  the request is to be compared with the allocation's.
* A connection that a listener of an allocation took: ``accepted(allocation, event, now)``.  From
  then on, and for what it dialled, ``owns(handle)`` is true and the machine hands Connected,
  Arrived, Congested, Relieved and Closed to ``on_socket(event, now)``.
* ConnectionBind succeeds with :meth:`Hosting.take_over`, *before* it is answered: the client's
  connection then belongs to the TCP relay.  ``Hosting.answer`` still finds its way.
* ``ended(allocation, now)``: the allocation is gone, its connections are to be closed.
* ``recheck(now)``: the policy has changed; connections that it does not allow any more end.
* ``deadline()`` and ``on_deadline(now)`` as with any machine; ``connections(allocation)`` counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from stun.auth_server import Accepted as Authentic
from stun.errors import DropReason
from stun.message import Message
from stun.sansio import Accepted, Address, Entropy, Handle, Instant, Output, SocketEvent
from turn.server.allocation import Allocation, Flow, FlowKey
from turn.server.config import ServerConfig
from turn.server.policy import Verdict


class Request:
    """An authentic request: what it says, where it came from, whose it is.

    ``key`` is that of ``flow``; ``allocation`` is that of its five-tuple, if there is one.
    """

    __slots__ = ("allocation", "authentic", "flow", "key", "message", "present")

    def __init__(
        self,
        message: Message,
        flow: Flow,
        key: FlowKey,
        authentic: Authentic,
        allocation: Allocation | None,
    ) -> None:
        self.message = message
        self.present = dict(message.attributes)
        """The types of its attributes; the values may be those of a repetition."""
        self.flow = flow
        self.key = key
        self.authentic = authentic
        self.allocation = allocation

    @property
    def username(self) -> str:
        """Who sent it."""
        return self.authentic.username


class Accepting(Protocol):
    """A client's connection, as far as parts look at it."""

    @property
    def congested(self) -> bool:
        """Whether the client does not take what is written to it."""
        ...


class Hosting(Protocol):
    """What the machine does for its parts."""

    config: ServerConfig
    entropy: Entropy

    @property
    def connections(self) -> Mapping[Handle, Accepting]:
        """The connections of clients that are the machine's."""
        ...

    def queue(self, output: Output) -> None:
        """Have something done by the driver."""
        ...

    def next_handle(self) -> Handle:
        """Return a number for a socket."""
        ...

    def verdict(self, peer: Address) -> Verdict:
        """Say whether there may be connections with a peer, and by which rule.

        The server's own hosts are refused, save the relayed transport addresses of other clients'
        TCP allocations.
        """
        ...

    def located(self, peer: Address) -> Address:
        """Return where a peer is reached by TCP: relayed addresses of others are at home."""
        ...

    def announced(self, source: Address) -> Address:
        """Return the address that clients know a peer by that came by TCP."""
        ...

    def answer(self, request: Request, response: Message, now: Instant) -> None:
        """Send a success response, sealed; it is kept for a retransmission of the request.

        SOFTWARE and FINGERPRINT are added as configured.  Nothing happens when the client's
        connection is gone meanwhile.
        """
        ...

    def refuse(
        self,
        request: Request,
        code: int,
        detail: str,
        now: Instant,
        attributes: Iterable[tuple[int, bytes]] = (),
    ) -> None:
        """Send an error response, sealed.  ``detail`` is for the log, never for the client."""
        ...

    def indicate(self, allocation: Allocation, indication: Message) -> None:
        """Send an indication to the client over the flow of its allocation."""
        ...

    def take_over(self, handle: Handle) -> bytes | None:
        """Let go of a client's connection, which carries data from now on.

        Returns the octets that came behind the request at hand (they are data), ``None`` when the
        connection is not there.
        """
        ...

    def drop(self, reason: DropReason) -> None:
        """Count what was discarded."""
        ...


class Streams(Protocol):
    """The TCP relay as the machine sees it; the module's text has who does what."""

    def owns(self, handle: Handle) -> bool:
        """Whether a connection is one of the TCP relay's."""
        ...

    def accepted(self, allocation: Allocation, event: Accepted, now: Instant) -> None:
        """Take a peer's connection to a relayed transport address."""
        ...

    def on_socket(self, event: SocketEvent, now: Instant) -> None:
        """Take what happened to a connection that it owns."""
        ...

    def connect(self, request: Request, now: Instant) -> None:
        """Do a Connect request (RFC 6062 section 5.2)."""
        ...

    def connection_bind(self, request: Request, now: Instant) -> None:
        """Do a ConnectionBind request (RFC 6062 section 5.4)."""
        ...

    def ended(self, allocation: Allocation, now: Instant) -> None:
        """Close the connections of an allocation that is gone."""
        ...

    def recheck(self, now: Instant) -> int:
        """End the connections that the policy in force does not allow; return how many."""
        ...

    @property
    def counters(self) -> Mapping[str, int]:
        """What became of connections, in words for a person."""
        ...

    def connections(self, allocation: Allocation) -> int:
        """Return how many connections with peers an allocation has."""
        ...

    def deadline(self) -> Instant | None:
        """Say when :meth:`on_deadline` is to be called."""
        ...

    def on_deadline(self, now: Instant) -> None:
        """Take notice that time has passed."""
        ...
