"""What every data plane is: a table of routes that the server machine fills.

Theory of operation.  The server machine can relay by itself; it does so on the simulated network,
and for everything that no route covers.  Where a data plane is attached, the machine queues an
:class:`InstallRoute` for each bound channel of a UDP client, and :class:`RemoveRoute` when the
binding ends.  The data plane forwards what matches a route, both ways, and passes everything else
up to the machine unchanged.  It builds no protocol objects on the way.

Bounds that every data plane keeps:

* nothing is forwarded on a route at or after ``expires``, however long ago the machine last ran;
* every forwarded packet is taken from the route's meter first, or from the rates behind it, and
  counted in its usage, as :attr:`turn.meter.Meter.collect` has it;
* after :meth:`DataPlane.remove` has returned not one packet more passes; in the kernel, one for
  each CPU at most, which was looked up before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeAlias

from stun.sansio import Address, Instant
from turn.meter import Meter


class RouteKey(NamedTuple):
    """A channel: the client's five-tuple (both ends of it, UDP) and the channel number."""

    client: Address
    server: Address
    channel: int


@dataclass(frozen=True, slots=True, eq=False)
class Route:
    """Both directions of a bound channel.

    ChannelData from ``key.client`` to ``key.server`` goes out from ``relay`` (the local transport
    address that :class:`stun.sansio.Opened` reported, not the advertised one) to ``peer``; what
    ``peer`` sends to ``relay`` goes back as ChannelData.
    """

    key: RouteKey
    relay: Address
    peer: Address
    meter: Meter


@dataclass(frozen=True, slots=True)
class InstallRoute:
    """Forward on ``route`` until ``expires``.  For a key that is installed: until then instead."""

    route: Route
    expires: Instant


@dataclass(frozen=True, slots=True)
class RemoveRoute:
    """Forward no longer.  Nothing happens when the route is gone already."""

    key: RouteKey


RouteOrder: TypeAlias = InstallRoute | RemoveRoute


class DataPlane(Protocol):
    """The flow table."""

    def install(self, route: Route, expires: Instant) -> None:
        """Forward on ``route`` until ``expires``; a known key gets the new bound."""
        ...

    def remove(self, key: RouteKey) -> None:
        """Forward no longer on ``key``."""
        ...

    def counters(self) -> Mapping[str, int]:
        """Return what was forwarded and dropped since the start, in words for a person."""
        ...


class FastPlane(DataPlane, Protocol):
    """A data plane beside the sockets that sees packets first; what it passes up comes to them."""

    def too_big(self, local: Address, remote: Address, mtu: int) -> None:
        """Take note of an MTU on the way from ``local`` to ``remote`` that ICMP has told of."""
        ...
