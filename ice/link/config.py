"""What a link is told: which ways it may take, and how long it waits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from ice.config import Config
from ice.predict.steps import Budget
from ice.servers import ServerLike
from stun.errors import UsageError


class Way(StrEnum):
    """The ways to the peer, each an ICE agent of its own, so that one never waits for another."""

    RELAY = "relay"
    """Through TURN servers."""
    UDP = "udp"
    """Directly, over UDP."""
    TCP = "tcp"
    """Directly, over TCP; with two NATs by simultaneous open."""


RANK: Final = {Way.RELAY: 0, Way.UDP: 1, Way.TCP: 2}
"""Which way is used when there are several: the greatest.  A stream goes over TCP, where the
kernel does the work, an order of magnitude faster than over QUIC."""


@dataclass(frozen=True, slots=True)
class LinkConfig:
    """How a link behaves.  Durations are seconds.  Raises :class:`stun.errors.UsageError`.

    ``relay`` and ``direct`` say which ways may be used at all, ``udp`` and ``tcp`` what may leave
    this host.  ``servers`` (with ``username`` and ``password``) are asked beside those that the
    rendezvous offers.  ``ice`` is what every agent is told; its policy, its transports and its
    servers are the link's business.
    """

    relay: bool = True
    direct: bool = True
    udp: bool = True
    tcp: bool = True
    servers: Sequence[ServerLike] = ()
    username: str | None = None
    password: str | None = None
    ice: Config = field(default_factory=Config)
    window: int = 8 << 20
    """Octets that may be on their way, or wait for a reader."""
    buffer: int = 1 << 20
    """Octets that wait in the reader before the peer is slowed down."""
    diagnose: bool = True
    """Find out about the NAT meanwhile, so that port prediction can be tried where it helps."""
    birthday: bool = False
    """Allow birthday probing: hundreds of sockets, some thousand packets.  Both sides have to."""
    budget: Budget | None = None
    """What guessing may cost; ``None`` for the usual (:mod:`ice.predict.moves`)."""
    remember: bool = True
    """Remember which way worked in which network."""
    patience: float = 30.0
    """For how long a link without any way waits for one before it ends."""
    again: tuple[float, ...] = (5.0, 15.0, 30.0, 60.0, 120.0, 300.0)
    """Pauses between attempts at a direct way; the last one is repeated."""

    def __post_init__(self) -> None:
        if not (self.relay or self.direct):
            raise UsageError("neither the relay nor a direct way is allowed: nothing is left")
        if not (self.udp or self.tcp):
            raise UsageError("neither UDP nor TCP is allowed: nothing is left")
        if self.window < 1 << 16:
            raise UsageError(f"a window of {self.window} octets is too small: 65536 at least")
        if self.patience <= 0 or not self.again or min(self.again) <= 0:
            raise UsageError("patience and the pauses between attempts must be positive")

    @property
    def ways(self) -> tuple[Way, ...]:
        """The ways that may be used, the one that is had first in front."""
        ways = [Way.RELAY] if self.relay else []
        if self.direct:
            ways += [way for way, on in ((Way.TCP, self.tcp), (Way.UDP, self.udp)) if on]
        return tuple(ways)
