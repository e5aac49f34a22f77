"""What a laboratory consists of: who has which address, what is plugged in where.  Pure values.

Every *site* is a host (or several, on one LAN) behind a chain of boxes::

    host -- box1 -- box2 -- internet -- server
     LAN     carrier   public      A and B

All public addresses are globally reachable ones by IANA's special-purpose registries that anybody
may originate (AS112, RFC 7534 and RFC 7535), so that programs which treat documentation or private
addresses specially behave as they do in the wild.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from nattype.lab.kernel import rules
from nattype.lab.kernel.errors import LabError, Unsupported
from nattype.lab.kernel.spec import IPV6_MODES, IPV6_OFF, IPV6_ROUTED, PLAIN, LabSpec, Site
from nattype.model import Lifetimes, Link, Mapping, NatModel

SERVER_A, SERVER_B = "192.31.196.10", "192.175.48.10"
SERVER_A6, SERVER_B6 = "2620:4f:8000:a::10", "2620:4f:8000:b::10"
STUN_PORT = 3478

MAX_SITES = 8
INTERNET, SERVER, WIRE = "internet", "server", "wire"


@dataclass(slots=True)
class Interface:
    """One end of a cable."""

    namespace: str
    name: str
    mac: str
    addresses: list[str] = field(default_factory=list)
    """With prefix length."""
    mtu: int = 1500


def needs_wire(link: Link) -> bool:
    """Whether the link delays packets, which takes a process; losing them the kernel does."""
    return link.delay > 0 or link.jitter > 0


@dataclass(slots=True)
class Cable:
    """A veth pair, or two with the user-space wire between them when ``link`` needs one."""

    left: Interface
    right: Interface
    link: Link = PLAIN

    @property
    def wired(self) -> bool:
        """Whether packets on this cable are held back in user space."""
        return needs_wire(self.link)


@dataclass(slots=True)
class Bridge:
    """A LAN with more than one host: the gateway's ports put together."""

    namespace: str
    interface: Interface
    ports: list[str]


@dataclass(slots=True)
class Namespace:
    """One machine."""

    name: str
    forwards: bool = False
    routes: list[tuple[str, str]] = field(default_factory=list)
    """(prefix, gateway)."""
    rules: list[str] = field(default_factory=list)
    forget: list[str] = field(default_factory=list)
    """nft scripts that empty what ``rules`` remember."""
    lifetimes: Lifetimes | None = None
    """Of a box that tracks sessions."""


@dataclass(slots=True)
class SitePlan:
    """Where a site's parts ended up."""

    name: str
    kind: str
    hosts: list[str]
    boxes: list[str]
    port: str
    """The internet's interface towards this site."""
    loss: float
    wired: bool


@dataclass(slots=True)
class Plan:
    """A laboratory, ready to be built."""

    namespaces: dict[str, Namespace] = field(default_factory=dict)
    cables: list[Cable] = field(default_factory=list)
    bridges: list[Bridge] = field(default_factory=list)
    sites: list[SitePlan] = field(default_factory=list)
    addresses: dict[str, dict[str, str]] = field(default_factory=dict)
    """Of each host and box: ``ipv4`` and ``ipv6``; of a box the external ones."""

    @property
    def interfaces(self) -> Iterator[Interface]:
        """Every interface that has addresses."""
        for cable in self.cables:
            yield cable.left
            yield cable.right
        for bridge in self.bridges:
            yield bridge.interface


def plan(spec: LabSpec) -> Plan:
    """Lay out the laboratory.  Raises ``LabError`` for what cannot be built, with the reason."""
    if not 1 <= len(spec.sites) <= MAX_SITES:
        raise LabError(f"{len(spec.sites)} sites: a laboratory has 1 to {MAX_SITES}")
    if spec.ipv6 not in IPV6_MODES:
        raise LabError(f"ipv6 {spec.ipv6!r} is none of {', '.join(IPV6_MODES)}")
    return _Planner(spec).plan()


@dataclass(slots=True)
class _Segment:
    """The network on the inner side of a box (or of the internet, for the access link)."""

    net: str
    """What all addresses begin with, dot or colons included."""
    length: int
    gateway_number: int = 1
    first_number: int = 2

    @property
    def prefix(self) -> str:
        return f"{self._address(self.gateway_number - 1)}/{self.length}"

    @property
    def gateway(self) -> str:
        return self._address(self.gateway_number)

    def inner(self, number: int) -> str:
        """Return the address of the ``number``-th machine on the inner side."""
        return self._address(self.first_number + number)

    def _address(self, number: int) -> str:
        if ":" not in self.net:
            return f"{self.net}{number}"
        # The text form of RFC 5952, in which programs will report it.
        return socket.inet_ntop(
            socket.AF_INET6, socket.inet_pton(socket.AF_INET6, f"{self.net}{number:x}")
        )


class _Planner:
    def __init__(self, spec: LabSpec) -> None:
        self._spec = spec
        self._plan = Plan()
        self._macs = 0

    def plan(self) -> Plan:
        spec = self._spec
        self._namespace(INTERNET, forwards=True)
        server = self._namespace(SERVER)
        with_ipv6 = spec.ipv6 != IPV6_OFF
        router = self._interface(INTERNET, "to-server", "192.31.196.1/24", "192.175.48.1/24")
        public = self._interface(SERVER, "eth0", f"{SERVER_A}/24", f"{SERVER_B}/24")
        server.routes.append(("0.0.0.0/0", "192.31.196.1"))
        self._plan.addresses[SERVER] = {"ipv4": SERVER_A}
        if with_ipv6:
            router.addresses += ["2620:4f:8000:a::1/64", "2620:4f:8000:b::1/64"]
            public.addresses += [f"{SERVER_A6}/64", f"{SERVER_B6}/64"]
            server.routes.append(("::/0", "2620:4f:8000:a::1"))
            self._plan.addresses[SERVER]["ipv6"] = SERVER_A6
        self._plan.cables.append(Cable(public, router))
        names = [host for site in spec.sites for host in site.hosts]
        for index, site in enumerate(spec.sites):
            if not site.hosts:
                raise LabError(f"site {site.name!r} has no host")
            self._site(index, site)
        taken = {INTERNET, SERVER, WIRE}
        for name in names:
            if name in taken or not name.replace("-", "").isalnum():
                raise LabError(f"{name!r} cannot name a host: it is taken or not a plain word")
            taken.add(name)
        losses = {s.port: s.loss for s in self._plan.sites}
        if any(losses.values()):
            self._plan.namespaces[INTERNET].rules.append(rules.loss_ruleset(losses))
        return self._plan

    def _namespace(self, name: str, *, forwards: bool = False) -> Namespace:
        return self._plan.namespaces.setdefault(name, Namespace(name, forwards))

    def _interface(self, namespace: str, name: str, *addresses: str, mtu: int = 1500) -> Interface:
        self._macs += 1
        mac = f"02:4e:4b:00:{self._macs >> 8:02x}:{self._macs & 255:02x}"
        return Interface(namespace, name, mac, list(addresses), mtu)

    def _site(self, index: int, site: Site) -> None:
        spec, boxes = self._spec, site.kind.boxes
        families: list[tuple[rules.Family, list[_Segment], list[NatModel]]] = []
        families.append((rules.IPV4, _ipv4_segments(index, boxes), list(boxes)))
        if spec.ipv6 != IPV6_OFF:
            models = [_without_nat(box) for box in boxes] if spec.ipv6 == IPV6_ROUTED else boxes
            families.append((rules.IPV6, _ipv6_segments(index, models), list(models)))
        prefix = f"{site.name}-" if site.name else ""
        names = [f"{prefix}box{number}" for number in range(1, len(boxes) + 1)]
        port = f"to-{site.name or site.hosts[0]}"[:15]
        plan = SitePlan(
            name=site.name or site.hosts[0],
            kind=site.kind.name,
            hosts=list(site.hosts),
            boxes=names,
            port=port,
            loss=site.link.loss,
            wired=needs_wire(site.link),
        )
        self._plan.sites.append(plan)
        for name, box in zip(names, boxes, strict=True):
            self._namespace(name, forwards=True).lifetimes = box.lifetimes
            self._plan.addresses[name] = {}
        # Segment k is on the inner side of gateway k: boxes first, the internet last.
        gateways = [*names, INTERNET]
        for level, gateway in enumerate(gateways):
            segments = [of_family[level] for _, of_family, _ in families]
            outermost = level == len(boxes)
            link = site.link if outermost else PLAIN
            members = list(site.hosts) if level == 0 else [gateways[level - 1]]
            inner_port = "eth0" if level == 0 else "wan"
            outer_port = port if outermost else "lan"
            self._segment(gateway, outer_port, members, inner_port, segments=segments, link=link)
        for family, segments, models in families:
            self._rules(family, names, segments, models, index)

    def _segment(
        self,
        gateway: str,
        port: str,
        members: Sequence[str],
        inner_port: str,
        *,
        segments: Sequence[_Segment],
        link: Link,
    ) -> None:
        """Plug ``members`` into the inner side of ``gateway``."""
        addresses = [f"{s.gateway}/{s.length}" for s in segments]
        bridged = len(members) > 1
        ports: list[str] = []
        for number, member in enumerate(members):
            self._namespace(member)
            inner = self._interface(
                member,
                inner_port,
                *(f"{s.inner(number)}/{s.length}" for s in segments),
                mtu=link.mtu,
            )
            outer_name = f"{port}.{number}"[-15:] if bridged else port
            outer = self._interface(
                gateway, outer_name, *(() if bridged else addresses), mtu=link.mtu
            )
            ports.append(outer_name)
            self._plan.cables.append(Cable(inner, outer, link))
            reached = self._plan.addresses.setdefault(member, {})
            for segment in segments:
                v6 = ":" in segment.gateway
                reached["ipv6" if v6 else "ipv4"] = segment.inner(number)
                self._namespace(member).routes.append(
                    ("::/0" if v6 else "0.0.0.0/0", segment.gateway)
                )
        if bridged:
            interface = self._interface(gateway, port, *addresses)
            self._plan.bridges.append(Bridge(gateway, interface, ports))

    def _rules(
        self,
        family: rules.Family,
        names: Sequence[str],
        segments: Sequence[_Segment],
        models: Sequence[NatModel],
        index: int,
    ) -> None:
        inside: list[str] = []
        for level, (name, model) in enumerate(zip(names, models, strict=True)):
            translates = model.mapping is not Mapping.NONE
            inside.append(segments[level].prefix)
            external = segments[level + 1].inner(0)
            seed = self._spec.seed * 64 + index * 8 + level
            namespace = self._namespace(name)
            for make, scripts in (
                (rules.ruleset, namespace.rules),
                (rules.forget, namespace.forget),
            ):
                scripts.append(make(model, family, external=external, inside=inside, seed=seed))
            if translates:
                inside = []
            else:
                # Nothing is translated here, so the next gateway must know the way in.
                outer = names[level + 1] if level + 1 < len(names) else INTERNET
                self._namespace(outer).routes += [(prefix, external) for prefix in inside]


def _without_nat(model: NatModel) -> NatModel:
    return NatModel(
        mapping=Mapping.NONE,
        filtering=model.filtering,
        unsolicited_tcp=model.unsolicited_tcp,
        udp_blocked=model.udp_blocked,
        tcp_blocked=model.tcp_blocked,
        lifetimes=model.lifetimes,
    )


def _translated_outside(models: Sequence[NatModel], level: int) -> bool:
    return any(m.mapping is not Mapping.NONE for m in models[level:])


def _ipv4_segments(index: int, models: Sequence[NatModel]) -> list[_Segment]:
    """Return the networks from the host outwards; the last one is the access link."""
    segments = []
    for level in range(len(models)):
        if not _translated_outside(models, level):
            # A site has a /27 in quarters: the access link, then up to three routed networks.
            steps = len(models) - level
            if steps > 3:
                raise Unsupported("more than three firewalls between a host and the internet")
            low = 32 * index + 8 * steps
            segments.append(_Segment("192.52.193.", 29, low + 1, low + 2))
        elif level == 0:
            segments.append(_Segment(f"192.168.{index + 1}.", 24, first_number=10))
        else:
            segments.append(_Segment(f"100.64.{index * 16 + level}.", 24))
    segments.append(_Segment("192.52.193.", 29, 32 * index + 1, 32 * index + 2))
    return segments


def _ipv6_segments(index: int, models: Sequence[NatModel]) -> list[_Segment]:
    segments = []
    for level in range(len(models)):
        if not _translated_outside(models, level):
            segments.append(_Segment(f"2620:4f:8000:1:{index}:{len(models) - level}::", 96))
        elif level == 0:
            segments.append(_Segment(f"fd00:192:168:{index + 1}::", 64, first_number=16))
        else:
            segments.append(_Segment(f"fd00:100:64:{index * 16 + level}::", 64))
    segments.append(_Segment(f"2620:4f:8000:1:{index}::", 96))
    return segments
