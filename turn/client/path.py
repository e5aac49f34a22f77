"""One way from a TURN client to its server: a socket, and how octets are cut on it."""

from __future__ import annotations

from dataclasses import dataclass, field

from stun.discovery import Target, Transport
from stun.framing import StunStream
from stun.sansio import Address, Dial, Handle, OpenUdp


@dataclass(slots=True, eq=False)
class Path:
    """A socket from ``local``, which is final once it is open.  ``handle`` 0: there is none."""

    handle: Handle
    server: Target
    local: Address
    splitter: StunStream | None = None
    """For streams that have ChannelData; ``None`` over UDP and DTLS."""
    congested: bool = False
    remote: Address = field(init=False)
    """Where the server is."""
    is_udp: bool = field(init=False)
    """Whether it is a plain UDP socket, whose datagrams are a driver's ``Transmit``."""

    def __post_init__(self) -> None:
        self.remote = self.server.address
        self.is_udp = self.server.transport is Transport.UDP

    @classmethod
    def control(cls, handle: Handle, server: Target, local: Address) -> Path:
        """Make a path for an allocation."""
        reliable = server.transport in (Transport.TCP, Transport.TLS)
        return cls(handle, server, local, StunStream(channel_data=True) if reliable else None)

    @property
    def is_reliable(self) -> bool:
        """Whether nothing gets lost on it."""
        return self.server.transport in (Transport.TCP, Transport.TLS)

    @property
    def order(self) -> OpenUdp | Dial:
        """What opens it."""
        server = self.server
        if self.is_udp:
            return OpenUdp(self.handle, self.local)
        datagrams = server.transport is Transport.DTLS
        return Dial(self.handle, self.local, self.remote, server.name, datagrams)

    def is_at(self, local: Address) -> bool:
        """Whether a datagram for ``local`` came to this socket, which may have any host."""
        return self.handle != 0 and local.port == self.local.port
