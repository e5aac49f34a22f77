"""The vocabulary between protocol machines and the drivers that give them sockets and time.

Theory of operation.  A *machine* holds protocol state and nothing else.  It reads no clock, owns
no socket and draws no random number.  A *driver* owns the sockets and the clock and moves values
between the two:

* a datagram that arrived is given to :meth:`Machine.receive`;
* whatever happened to a stream or to a socket is given to :meth:`SocketMachine.on_socket`;
* when the time that :meth:`Machine.deadline` names has come, :meth:`Machine.on_deadline` is called;
* after *each* of these calls :meth:`Machine.poll` is called until it returns ``None``.  One queue
  holds what is to be sent and what is to be told, so their order is kept.

Rules that every machine keeps: ``receive`` and ``on_socket`` never raise, whatever a peer sent:
they queue a :class:`stun.errors.Dropped` with the reason.  Commands (ordinary methods that take
``now``) raise :class:`stun.errors.UsageError`.  ``now`` never decreases; an early ``on_deadline``
does nothing.  A machine that contains machines drains them within the same call.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Generic, NamedTuple, Protocol, TypeAlias, TypeVar

Instant: TypeAlias = int
"""Monotonic nanoseconds; the origin is the driver's."""

MILLISECOND = 1_000_000
SECOND = 1_000_000_000

Entropy: TypeAlias = Callable[[int], bytes]
"""``entropy(n)`` gives ``n`` unpredictable bytes: ``os.urandom`` in a program, seeded in a test."""

Handle: TypeAlias = int
"""Names a socket.  A machine numbers the sockets that it asks for from 1 upwards; a driver numbers
accepted connections from -1 downwards, so the two never collide."""


class Address(NamedTuple):
    """A transport address.

    ``host`` is a numeric IPv4 or IPv6 address in the text form of RFC 5952 (an IPv6 zone as
    ``%eth0``), never a name, never in brackets.
    """

    host: str
    port: int

    @property
    def is_ipv6(self) -> bool:
        """Whether the host is an IPv6 address."""
        return ":" in self.host

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(slots=True)
class Received:
    """A datagram that arrived: its payload, who sent it, and the local address it was sent to."""

    data: bytes
    source: Address
    local: Address


@dataclass(slots=True)
class Transmit:
    """A datagram to send from the local address ``source`` (one that :class:`Opened` reported)."""

    data: bytes
    destination: Address
    source: Address
    dont_fragment: bool = False
    """Ask for DF in the IP header of this datagram (RFC 8656 section 15)."""
    ttl: int | None = None
    """The TTL or hop limit of this datagram alone; ``None``: the usual one."""


# What a machine asks of its driver beside Transmit. -----------------------------------------------


class Security(StrEnum):
    """What a server's port accepts."""

    NONE = "plain"
    DETECT = "plain or encrypted, as each client's first octet says"
    REQUIRED = "encrypted"


@dataclass(frozen=True, slots=True)
class OpenUdp:
    """Bind a UDP socket (port 0: any).  Answered by :class:`Opened` or :class:`Closed`.

    With ``security`` other than NONE the driver serves DTLS on it: a client whose handshake is done
    is reported by :class:`Accepted`, each of its datagrams by one :class:`Arrived`.  ``serves``
    says that it is a server's port, where many come at once: worth buffers and batches.
    """

    handle: Handle
    local: Address
    security: Security = Security.NONE
    serves: bool = field(default=False, compare=False)


@dataclass(frozen=True, slots=True)
class Listen:
    """Listen for TCP connections.  Answered by :class:`Opened` or :class:`Closed`.

    The port may be shared with connections that are dialled from it (SO_REUSEADDR, SO_REUSEPORT).
    With ``silent`` the port answers a SYN with nothing at all: neither SYN-ACK nor RST.  With
    ``security`` other than NONE the driver serves TLS on it.  ``exclusive`` shares the port with
    nobody, so that a port in use is an error.
    """

    handle: Handle
    local: Address
    silent: bool = False
    security: Security = Security.NONE
    exclusive: bool = False


@dataclass(frozen=True, slots=True)
class Dial:
    """Open a TCP connection from ``local`` (port 0: any) to ``remote``.

    Answered by :class:`Connected` or :class:`Closed`.  ``server_name`` asks for TLS, verified for
    that name, before :class:`Connected` is reported.  The port may be shared as in :class:`Listen`.
    With ``datagrams`` it is DTLS over UDP instead: each :class:`Write` is one datagram and so is
    each :class:`Arrived`.  ``ttl`` is the TTL or hop limit of the first SYN alone, which then opens
    this side's NAT and goes no further; everything after it has the usual one.
    """

    handle: Handle
    local: Address
    remote: Address
    server_name: str | None = None
    datagrams: bool = False
    ttl: int | None = None


@dataclass(frozen=True, slots=True)
class Write:
    """Send bytes on a connected stream; the driver keeps what the kernel does not take at once."""

    handle: Handle
    data: bytes


@dataclass(frozen=True, slots=True)
class Shut:
    """Close a socket of any kind; no event follows.  ``reset`` sends RST instead of FIN."""

    handle: Handle
    reset: bool = False


@dataclass(frozen=True, slots=True)
class Hold:
    """Read nothing from a stream for now, or go on reading (``held`` false).

    A driver does not read from a client that takes no answers.  Once a machine has given this order
    for a stream, either way, it alone decides: what goes in and what comes out of a relay have
    nothing to do with each other.
    """

    handle: Handle
    held: bool = True


Output: TypeAlias = Transmit | OpenUdp | Listen | Dial | Write | Shut | Hold


# What a driver reports beside Received. -----------------------------------------------------------


class Cause(StrEnum):
    """Why a socket ended or could not be had, as far as the operating system tells."""

    END_OF_STREAM = "the peer closed the connection"
    REFUSED = "connection refused (RST)"
    RESET = "connection reset by the peer"
    UNREACHABLE = "unreachable (ICMP)"
    TIMED_OUT = "timed out"
    ADDRESS_IN_USE = "address already in use"
    ADDRESS_NOT_AVAILABLE = "the address is not one of this machine"
    NOT_PERMITTED = "not permitted"
    TLS_FAILED = "TLS failed"
    OTHER = "system error"


@dataclass(frozen=True, slots=True)
class Opened:
    """A UDP socket is bound, or a TCP port listens, at ``local`` (its port now known)."""

    handle: Handle
    local: Address


@dataclass(frozen=True, slots=True)
class Connected:
    """A dialled stream is established."""

    handle: Handle
    local: Address
    remote: Address


@dataclass(frozen=True, slots=True)
class Accepted:
    """A listener took a connection; ``handle`` is the driver's, a negative number.

    ``listener`` may be that of a UDP socket: the connection is then DTLS.  ``secure`` says whether
    it is encrypted.  Behind a proxy that says so (the PROXY protocol) ``local`` and ``remote`` are
    what the proxy says.
    """

    listener: Handle
    handle: Handle
    local: Address
    remote: Address
    secure: bool = False


@dataclass(frozen=True, slots=True)
class Arrived:
    """Bytes came on a stream, cut anywhere."""

    handle: Handle
    data: bytes


@dataclass(frozen=True, slots=True)
class Congested:
    """A stream's peer reads more slowly than is written: what waits has passed the driver's mark.

    What is written from here on is kept up to the driver's limit, and beyond it ends the stream.
    """

    handle: Handle


@dataclass(frozen=True, slots=True)
class Relieved:
    """What waited on a congested stream is gone."""

    handle: Handle


@dataclass(frozen=True, slots=True)
class Closed:
    """A socket could not be had, or a stream ended.  The handle is free afterwards."""

    handle: Handle
    cause: Cause
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Undeliverable:
    """An ICMP error came back for a datagram that was sent from ``local`` to ``destination``.

    ``info`` is the second word of the ICMP message where it has a meaning: the MTU of the next hop
    (RFC 1191) or of the link (RFC 4443 section 3.2), else 0.
    """

    local: Address
    destination: Address
    icmp_type: int
    icmp_code: int
    info: int = 0


SocketEvent: TypeAlias = (
    Opened | Connected | Accepted | Arrived | Congested | Relieved | Closed | Undeliverable
)


Event_co = TypeVar("Event_co", covariant=True)


class Machine(Protocol[Event_co]):
    """The one shape of a protocol machine; the module's text has the rules."""

    def receive(self, packet: Received, now: Instant) -> None:
        """Take a datagram.  Never raises on what it holds."""
        ...

    def on_deadline(self, now: Instant) -> None:
        """Take notice that time has passed.  Does nothing when called early."""
        ...

    def poll(self) -> Output | Event_co | None:
        """Give the next thing to do or to tell, or ``None`` when there is none."""
        ...

    def deadline(self) -> Instant | None:
        """Say when :meth:`on_deadline` is to be called, or ``None``."""
        ...


class SocketMachine(Machine[Event_co], Protocol):
    """A machine that also opens sockets and speaks over streams."""

    def on_socket(self, event: SocketEvent, now: Instant) -> None:
        """Take what happened to a socket.  Never raises on what a peer sent."""
        ...


Key = TypeVar("Key", bound=Hashable)


class Timers(Generic[Key]):
    """A table of named deadlines: one :data:`Instant` a key.

    Kept as a dict because a machine has few timers at once and sets them far more often than it
    looks for the earliest; a machine with thousands (a relay) keeps a heap of its own.
    """

    __slots__ = ("_at",)

    def __init__(self) -> None:
        self._at: dict[Key, Instant] = {}

    def set(self, key: Key, at: Instant) -> None:
        """Arm ``key`` for ``at``, in place of what it was armed for."""
        self._at[key] = at

    def cancel(self, key: Key) -> None:
        """Disarm ``key``; nothing happens when it is not armed."""
        self._at.pop(key, None)

    def next(self) -> Instant | None:
        """Return the earliest deadline, or ``None``."""
        return min(self._at.values(), default=None)

    def expired(self, now: Instant) -> Iterator[Key]:
        """Disarm and yield, earliest first, each key whose time has come.

        Timers set while iterating are taken by the next call, so an iteration always ends.
        """
        due = sorted((at, n, key) for n, (key, at) in enumerate(self._at.items()) if at <= now)
        for at, _, key in due:
            if self._at.get(key) == at:
                del self._at[key]
                yield key

    def __contains__(self, key: object) -> bool:
        return key in self._at

    def __len__(self) -> int:
        return len(self._at)
