"""The laboratory's networks, simulated: the same places and addresses as its kernel networks.

::

    host -- box -- ... -- box == internet == server (two addresses of each family)

:func:`behind` puts one host behind a kind, :func:`pair` two hosts behind a kind each.  The
:class:`~nattype.model.Link` is the path between the outermost box (or the host, if nothing is in
between) and the public network; all else is perfect.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import IPv6Address
from typing import Final, NamedTuple

from nattype.lab.sim.host import Host
from nattype.lab.sim.nat import Box
from nattype.lab.sim.options import LIKE_LINUX, SimOptions
from nattype.lab.sim.wire import PERFECT, Network
from nattype.lab.sim.world import World
from nattype.model import Kind, Link, Mapping, kind

SERVER_A: Final = "192.31.196.10"
SERVER_B: Final = "192.175.48.10"
SERVER_A6: Final = "2620:4f:8000:a::10"
SERVER_B6: Final = "2620:4f:8000:b::10"


class Subnet(NamedTuple):
    """One family's addresses on one network: what they begin with, the gateway, the first guest."""

    net: str
    gateway: int
    first: int

    def address(self, number: int) -> str:
        """Return the address with this number, in the text form of RFC 5952."""
        if ":" in self.net:
            return str(IPv6Address(f"{self.net}{number:x}"))
        return f"{self.net}{number}"


@dataclass(frozen=True, slots=True)
class Site:
    """A host and the boxes between it and the public network, host side first."""

    kind: Kind
    host: Host
    boxes: tuple[Box, ...]
    lan: Network
    segments: tuple[Subnet, ...]
    """The addresses of ``lan``, one for each family."""


@dataclass(slots=True)
class Scenario:
    """A world with a public server and one or more sites."""

    world: World
    server: Host
    sites: list[Site] = field(default_factory=list)

    @property
    def host(self) -> Host:
        """The host of the first site."""
        return self.sites[0].host

    @property
    def boxes(self) -> tuple[Box, ...]:
        """The boxes of the first site, host side first."""
        return self.sites[0].boxes

    @property
    def peer(self) -> Host:
        """The host of the second site."""
        return self.sites[1].host

    def public_host(self, name: str = "stranger", *, link: Link = PERFECT) -> Host:
        """Add a host that is nowhere but on the public network."""
        number = 128 + len(self.world.internet.routes)
        host = self.world.host(name)
        self.world.plug(
            host,
            self.world.internet,
            f"192.52.193.{number}",
            str(IPv6Address(f"2620:4f:8000:1:ffff::{number:x}")),
            link=link,
        )
        return host

    def neighbour(self, name: str = "neighbour", *, site: int = 0) -> Host:
        """Add a host beside a site's host, behind the same boxes."""
        place = self.sites[site]
        host = self.world.host(name)
        number = 0
        while place.segments[0].address(place.segments[0].first + number) in place.lan.routes:
            number += 1
        self.world.plug(host, place.lan, *(s.address(s.first + number) for s in place.segments))
        return host


def _server(world: World) -> Host:
    server = world.host("server")
    world.plug(server, world.internet, SERVER_A, SERVER_A6, SERVER_B, SERVER_B6)
    return server


def _segments(index: int, which: Kind, *, ipv6: bool) -> list[Subnet]:
    """Return the networks from the host outwards; the last one is the access link."""
    segments = []
    count = len(which.boxes)
    for level in range(count):
        steps = count - level
        if all(box.mapping is Mapping.NONE for box in which.boxes[level:]):
            # Nothing out there translates, so these addresses are public.
            low = 32 * index + 8 * steps
            segments.append(
                Subnet(f"2620:4f:8000:1:{index}:{steps}::", 1, 2)
                if ipv6
                else Subnet("192.52.193.", low + 1, low + 2)
            )
        elif level == 0:
            segments.append(
                Subnet(f"fd00:192:168:{index + 1}::", 1, 16)
                if ipv6
                else Subnet(f"192.168.{index + 1}.", 1, 10)
            )
        else:
            carrier = index * 16 + level
            segments.append(
                Subnet(f"fd00:100:64:{carrier}::", 1, 2)
                if ipv6
                else Subnet(f"100.64.{carrier}.", 1, 2)
            )
    segments.append(
        Subnet(f"2620:4f:8000:1:{index}::", 1, 2)
        if ipv6
        else Subnet("192.52.193.", 32 * index + 1, 32 * index + 2)
    )
    return segments


def _site(
    world: World,
    which: Kind,
    *,
    index: int,
    name: str,
    prefix: str,
    link: Link,
    options: SimOptions | Sequence[SimOptions],
) -> Site:
    count = len(which.boxes)
    each = [options] * count if isinstance(options, SimOptions) else list(options)
    if len(each) != count:
        raise ValueError(f"{which.name} has {count} boxes, but there are options for {len(each)}")
    families = [_segments(index, which, ipv6=ipv6) for ipv6 in (False, True)]
    network = world.internet
    boxes: list[Box] = []
    for level in reversed(range(count)):
        inside = world.network(f"{prefix}net{level + 1}")
        outer = [segments[level + 1] for segments in families]
        boxes.append(
            world.box(
                f"{prefix}box{level + 1}",
                which.boxes[level],
                inside,
                network,
                inside_addresses=[s[level].address(s[level].gateway) for s in families],
                external=[
                    segment.address(segment.first + n)
                    for segment in outer
                    for n in range(each[level].external_addresses)
                ],
                link=link if network is world.internet else PERFECT,
                options=each[level],
            )
        )
        network = inside
    host = world.host(name)
    lan = tuple(segments[0] for segments in families)
    world.plug(host, network, *(s.address(s.first) for s in lan), link=PERFECT if boxes else link)
    return Site(which, host, tuple(reversed(boxes)), network, lan)


def behind(
    which: Kind | str,
    *,
    seed: int = 0,
    link: Link = PERFECT,
    options: SimOptions | Sequence[SimOptions] = LIKE_LINUX,
    trace: bool = False,
) -> Scenario:
    """Return a world with a host behind a kind's boxes, and the public server.

    ``options`` are for every box, or one for each, host side first.
    """
    world = World(seed, trace=trace)
    scenario = Scenario(world, _server(world))
    scenario.sites.append(
        _site(world, _kind(which), index=0, name="host", prefix="", link=link, options=options)
    )
    return scenario


def pair(
    a: Kind | str,
    b: Kind | str,
    *,
    seed: int = 0,
    link_a: Link = PERFECT,
    link_b: Link = PERFECT,
    options_a: SimOptions | Sequence[SimOptions] = LIKE_LINUX,
    options_b: SimOptions | Sequence[SimOptions] = LIKE_LINUX,
    trace: bool = False,
) -> Scenario:
    """Return a world with two hosts, ``a`` and ``b``, behind a kind each, and the server."""
    world = World(seed, trace=trace)
    scenario = Scenario(world, _server(world))
    scenario.sites.append(
        _site(world, _kind(a), index=0, name="a", prefix="a-", link=link_a, options=options_a)
    )
    scenario.sites.append(
        _site(world, _kind(b), index=1, name="b", prefix="b-", link=link_b, options=options_b)
    )
    return scenario


def _kind(which: Kind | str) -> Kind:
    return kind(which) if isinstance(which, str) else which
