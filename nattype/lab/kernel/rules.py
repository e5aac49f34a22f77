"""One box's behaviour as an nftables ruleset.

Theory of operation.  Linux conntrack keeps one entry a session.  That alone is a NAT with
endpoint-independent mapping, preserved ports and address-and-port-dependent filtering.  Every other
behaviour of RFC 4787 needs memory across sessions, which here are sets and maps that the packet
path itself fills:

* ``@ports`` numbers the external ports in the order in which they are given out.  Sequential: an
  arithmetic progression.  Random: a random permutation, so that no two live mappings ever share a
  port by accident, which ``masquerade random`` does not promise (conntrack only keeps *sessions*
  apart, and two sessions to different destinations may share an external port).
* ``@mappings`` remembers the external port of an internal endpoint (endpoint-independent mapping)
  or of an internal endpoint and a remote address (address-dependent mapping).
* ``@hosts`` and ``@hostports`` are the way back, external port to internal address and port: whom a
  packet is for that belongs to no session yet.
* ``@permissions`` holds which remote addresses a mapping has sent to (address-dependent filtering).

They are filled after source NAT, where conntrack knows both sides of the translation, and each
element lives as long as the session that put it there would.  Everything is recorded for both
directions, so a mapping stays while packets pass either way, as conntrack entries do.

nft 1.0.6 (Debian 12) aborts on ``update @map`` when key or data exceed 16 octets, which an IPv6
endpoint does.  Hence two maps for the way back, and a 32-bit hash, in the packet mark, as the key
of ``@mappings``.

Where the kernel departs from the model:

* A session that a stranger began (endpoint-independent filtering) answers through the mapping it
  came in by, also when the mapping is address-dependent.  RFC 4787 section 4.1 leaves that open.
* If the host of an address-dependent mapping had already sent to the stranger, conntrack shows the
  stranger to the host under another source port, because two sessions cannot be one.
* Outside of the model, and not to be had from nftables: port parity, refresh by inbound packets
  only or not at all, the six seconds that RFC 5382 REQ-4 holds a SYN back, ports in chunks as
  carriers give them out, rewriting of payloads.  The simulated network is the place for these.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from nattype.lab.kernel.errors import Unsupported
from nattype.model import Allocation, Filtering, Mapping, NatModel, Unsolicited

PORTS = 2048
"""External ports given out before the first one is used again.

An ordinary user's netlink message, and so the whole script of one family, must fit into
net.core.wmem_max, by default 208 KiB.
"""

TCP_TRANSITORY = 240
"""RFC 5382 REQ-5: the "transitory connection idle-timeout" is no less than four minutes."""

_ASSURED, _NOT_ASSURED = "ct status assured", "ct status & assured == 0"

_MEMORY = (
    "lasting",
    "mappings",
    "hosts",
    "hostports",
    "permissions",
    "crossings",
    "knocks",
    "endpoints",
)


@dataclass(frozen=True, slots=True)
class Family:
    """The words that nft uses for one address family."""

    name: str
    address: str
    any_error: str
    icmp: str

    def original(self, side: str) -> str:
        """Name the source or destination of a session's first packet."""
        return f"ct original {self.name} {side}"

    def reply(self, side: str) -> str:
        """Name the source or destination of a session's answers."""
        return f"ct reply {self.name} {side}"


# nft knows these protocols by keyword; other names (ipv6-icmp) it looks up in /etc/protocols, which
# minimal systems lack.
IPV4 = Family("ip", "ipv4_addr", "icmp type port-unreachable", "icmp")
IPV6 = Family("ip6", "ipv6_addr", "icmpv6 type port-unreachable", "icmpv6")


def check(model: NatModel) -> None:
    """Raise ``Unsupported``, with the reason, for a behaviour that nftables cannot express."""
    unknown = [
        f"{axis}={value}"
        for axis, value in (
            ("mapping", model.mapping),
            ("filtering", model.filtering),
            ("allocation", model.allocation),
            ("unsolicited_tcp", model.unsolicited_tcp),
        )
        if value == "unknown"
    ]
    if unknown:
        raise Unsupported(f"a NAT cannot be built from {', '.join(unknown)}")
    dependent = (Mapping.ADDRESS_DEPENDENT, Mapping.ADDRESS_AND_PORT_DEPENDENT)
    if model.mapping in dependent and model.allocation is Allocation.PRESERVED:
        raise Unsupported(
            f"{model.mapping} mapping with preserved ports contradicts itself: the port preserved "
            "for every destination is an endpoint-independent mapping"
        )
    if model.mapping is Mapping.NONE and model.remaps_after_inbound:
        raise Unsupported("a firewall without NAT has no mapping that an inbound packet could cost")
    if model.allocation is Allocation.SEQUENTIAL and not 1 <= abs(model.delta) <= 15:
        raise Unsupported(
            f"a step of {model.delta} between ports: the lab offers 1 to 15 and -1 to -15"
        )


def ruleset(
    model: NatModel, family: Family, *, external: str, inside: Sequence[str], seed: int
) -> str:
    """Return the nft script of one box for one address family.

    The box's interfaces are called ``lan`` and ``wan``.  ``external`` is the address that hosts
    get, ``inside`` are the prefixes behind the box, ``seed`` decides which ports a NAT gives out.
    Raises ``Unsupported``.
    """
    check(model)
    writer = _Firewall if model.mapping is Mapping.NONE else _Nat
    lines = writer(model, family, external, f"{{ {', '.join(inside)} }}", seed).lines()
    return "\n".join((f"table {family.name} natlab {{", *lines, "}", ""))


def forget(
    model: NatModel, family: Family, *, external: str, inside: Sequence[str], seed: int
) -> str:
    """Return the nft script that empties a box's memory, as its reboot would."""
    script = ruleset(model, family, external=external, inside=inside, seed=seed)
    return "".join(
        f"flush {kind} {family.name} natlab {name}\n"
        for name in _MEMORY
        for kind in ("map", "set")
        if f"  {kind} {name} {{" in script
    )


def filtering_of(model: NatModel, protocol: str) -> Filtering:
    """Return the filtering that ``tcp`` or ``udp`` meets; ``NONE`` for a NAT means ``EIF``.

    ``Unsolicited.OPEN`` speaks of TCP alone and opens the mappings of TCP to anybody.
    """
    if protocol == "tcp" and model.unsolicited_tcp is Unsolicited.OPEN:
        return Filtering.ENDPOINT_INDEPENDENT
    if model.filtering is Filtering.NONE and model.mapping is not Mapping.NONE:
        return Filtering.ENDPOINT_INDEPENDENT
    return model.filtering


@dataclass(frozen=True, slots=True)
class _Writer:
    model: NatModel
    family: Family
    external: str
    inside: str
    seed: int

    def filtering(self, protocol: str) -> Filtering:
        return filtering_of(self.model, protocol)

    def filters(self, *which: Filtering) -> bool:
        return any(self.filtering(protocol) in which for protocol in ("udp", "tcp"))

    def dynamic(self, kind: str, name: str, of: str) -> Iterator[str]:
        yield f"  {kind} {name} {{ type {of}; flags dynamic, timeout; size 65535; }}"

    def lifetimes(self) -> Iterator[tuple[str, bool, str]]:
        """Yield (protocol, assured, timeout): conntrack's own distinction, by its assured bit."""
        lifetimes = self.model.lifetimes
        for protocol, short, long in (
            ("udp", lifetimes.udp_one_shot, lifetimes.udp_stream),
            ("tcp", float(TCP_TRANSITORY), lifetimes.tcp_established),
        ):
            yield protocol, False, _timeout(min(short, long))
            yield protocol, True, _timeout(long)

    def blocked(self) -> Iterator[str]:
        if self.model.udp_blocked:
            yield "    meta l4proto udp drop"
        if self.model.tcp_blocked:
            yield "    meta l4proto tcp drop"

    def unsolicited(self) -> Iterator[str]:
        """Yield what a packet from outside meets that nobody asked for."""
        match self.model.unsolicited_tcp:
            case Unsolicited.RST:
                yield '    iifname "wan" meta l4proto tcp reject with tcp reset'
            case Unsolicited.ICMP:
                # RFC 5382 REQ-4: "the NAT SHOULD send an ICMP Port Unreachable error (Type 3,
                # Code 3) for the original SYN".
                yield f'    iifname "wan" meta l4proto tcp reject with {self.family.any_error}'
            case _:
                pass
        yield '    iifname "wan" drop'


class _Nat(_Writer):
    def lines(self) -> Iterator[str]:
        yield from self._memory()
        yield from self._inbound()
        yield from self._outbound()
        yield from self._record()
        yield from self._input()
        yield from self._forward()

    @property
    def _allocates(self) -> bool:
        return self.model.allocation is not Allocation.PRESERVED

    @property
    def _remembers(self) -> bool:
        """Whether new sessions look up the port of earlier ones.

        Preserved ports need no memory, and a mapping dependent on address and port has none: there,
        a session is a mapping.
        """
        return self._allocates and self.model.mapping is not Mapping.ADDRESS_AND_PORT_DEPENDENT

    @property
    def _binds(self) -> bool:
        return self.model.hairpin or self.filters(
            Filtering.ENDPOINT_INDEPENDENT, Filtering.ADDRESS_DEPENDENT
        )

    def _mark(self, source: str, port: str) -> str:
        """Set the packet mark to what decides about the mapping, hashed."""
        key = f"{source} . {port}"
        if self.model.mapping is Mapping.ADDRESS_DEPENDENT:
            key += f" . {self.family.original('daddr')}"
        return f"meta mark set jhash {key} mod 4294967295 seed 1"

    def _memory(self) -> Iterator[str]:
        address = self.family.address
        if self._allocates:
            ports = ", ".join(
                f"{i} : {port}" for i, port in enumerate(_ports(self.model, self.seed))
            )
            kind = f"typeof numgen inc mod {PORTS} : th dport"
            yield f"  map ports {{ {kind}; elements = {{ {ports} }}; }}"
        if self._remembers:
            yield from self.dynamic("map", "mappings", "inet_proto . mark : inet_service")
        if self._binds:
            yield from self.dynamic("map", "hosts", f"inet_proto . inet_service : {address}")
            yield from self.dynamic("map", "hostports", "inet_proto . inet_service : inet_service")
        if self._remembers or self._binds:
            yield from self.dynamic("set", "lasting", "inet_proto . inet_service")
        if self.filters(Filtering.ADDRESS_DEPENDENT):
            yield from self.dynamic("set", "permissions", f"inet_proto . {address} . inet_service")
        if self.model.hairpin and self.filters(Filtering.ADDRESS_AND_PORT_DEPENDENT):
            yield from self.dynamic("set", "crossings", "inet_proto . inet_service . inet_service")
        if self.model.remaps_after_inbound and self._remembers:
            yield from self.dynamic("set", "knocks", f"inet_proto . {address} . inet_service")

    def _inbound(self) -> Iterator[str]:
        """Destination NAT: packets that belong to no session but to a mapping."""
        if not self._binds:
            return
        name = self.family.name
        to_binding = (
            "dnat to meta l4proto . th dport map @hosts : meta l4proto . th dport map @hostports"
        )
        yield "  chain inbound {"
        yield "    type nat hook prerouting priority dstnat; policy accept;"
        for protocol in ("udp", "tcp"):
            arrives = f'    iifname "wan" {name} daddr {self.external} meta l4proto {protocol}'
            match self.filtering(protocol):
                case Filtering.ENDPOINT_INDEPENDENT:
                    yield f"{arrives} {to_binding}"
                case Filtering.ADDRESS_DEPENDENT:
                    permitted = f"meta l4proto . {name} saddr . th dport @permissions"
                    yield f"{arrives} {permitted} {to_binding}"
                case _:
                    pass
        if self.model.hairpin:
            yield (
                f'    iifname "lan" {name} daddr {self.external} meta l4proto {{ udp, tcp }} '
                f"{to_binding}"
            )
        yield "  }"

    def _outbound(self) -> Iterator[str]:
        """Source NAT: which external port a new session gets."""
        name = self.family.name
        yield "  chain outbound {"
        yield "    type nat hook postrouting priority srcnat; policy accept;"
        yield f'    oifname "wan" {name} saddr {self.inside} jump translate'
        if self.model.hairpin:
            # RFC 4787 REQ-9: a hairpinned packet carries its "External source IP address and port".
            yield (
                f'    oifname "lan" {name} saddr {self.inside} '
                f"{self.family.original('daddr')} {self.external} jump translate"
            )
        yield "  }"
        yield "  chain translate {"
        if self._remembers:
            if self.model.remaps_after_inbound:
                yield (
                    "    meta l4proto { udp, tcp } "
                    f"meta l4proto . {name} daddr . th dport @knocks goto fresh"
                )
            yield f"    meta l4proto {{ udp, tcp }} {self._mark(f'{name} saddr', 'th sport')}"
            yield (
                f"    meta l4proto {{ udp, tcp }} snat to {self.external} : "
                "meta l4proto . meta mark map @mappings"
            )
        yield "    goto fresh"
        yield "  }"
        yield "  chain fresh {"
        if self._allocates:
            # Two rules, because every numgen counts for itself: TCP must not use up UDP's numbers.
            for protocol in ("udp", "tcp"):
                yield (
                    f"    meta l4proto {protocol} snat to {self.external} : "
                    f"numgen inc mod {PORTS} map @ports"
                )
        yield f"    snat to {self.external}"
        yield "  }"

    def _record(self) -> Iterator[str]:
        """Fill the memory, where both sides of the translation are known."""
        if not (self._remembers or self._binds):
            return
        family = self.family
        yield "  chain record {"
        yield "    type filter hook postrouting priority srcnat + 10; policy accept;"
        yield f"    {family.original('saddr')} {self.inside} jump from-inside"
        if self._binds:
            yield "    ct status dnat ct direction reply jump from-outside"
        if self.model.hairpin:
            yield (
                f'    oifname "lan" {family.original("saddr")} {self.inside} '
                f"{family.original('daddr')} {self.external} ct direction original jump turn"
            )
        yield "  }"
        yield "  chain from-inside {"
        yield from self._remember(
            source=family.original("saddr"),
            source_port="ct original proto-src",
            port="ct reply proto-dst",
            remote=family.original("daddr"),
            remote_port="ct original proto-dst",
        )
        yield "  }"
        if self._binds:
            yield "  chain from-outside {"
            yield from self._remember(
                source=family.reply("saddr"),
                source_port="ct reply proto-src",
                port="ct original proto-dst",
                remote=family.original("saddr"),
                remote_port="ct original proto-src",
                mappings=self.model.mapping is Mapping.ENDPOINT_INDEPENDENT,
            )
            yield "  }"
        if self.model.hairpin:
            yield from self._turn()

    def _remember(
        self,
        *,
        source: str,
        source_port: str,
        port: str,
        remote: str,
        remote_port: str,
        mappings: bool = True,
    ) -> Iterator[str]:
        mappings = mappings and self._remembers
        if mappings:
            for protocol in ("udp", "tcp"):
                yield f"    meta l4proto {protocol} {self._mark(source, source_port)}"
        for protocol, assured, timeout in self.lifetimes():
            rule = f"    meta l4proto {protocol} {_ASSURED if assured else _NOT_ASSURED}"
            way = f"meta l4proto . {port} timeout {timeout}"
            if assured:
                yield f"{rule} update @lasting {{ {way} }}"
                update = f"{rule} update"
            else:
                # A short-lived session must not cut short what a lasting one of the mapping holds.
                update = f"{rule} meta l4proto . {port} != @lasting update"
            if mappings:
                key = f"meta l4proto . meta mark timeout {timeout}"
                yield f"{update} @mappings {{ {key} : {port} }}"
            if self._binds:
                yield f"{update} @hosts {{ {way} : {source} }}"
                yield f"{update} @hostports {{ {way} : {source_port} }}"
            match self.filtering(protocol):
                case Filtering.ADDRESS_DEPENDENT:
                    yield (
                        f"{rule} update @permissions "
                        f"{{ meta l4proto . {remote} . {port} timeout {timeout} }}"
                    )
                case Filtering.ADDRESS_AND_PORT_DEPENDENT if self.model.hairpin:
                    yield (
                        f"{rule} update @crossings "
                        f"{{ meta l4proto . {remote_port} . {port} timeout {timeout} }}"
                    )
                case _:
                    pass

    def _turn(self) -> Iterator[str]:
        """Filter what goes from inside to inside, as if its external source had sent it.

        Only after source NAT is that source known.  A packet dropped here leaves no session (it is
        not confirmed yet), but what it permits in the other direction has been recorded.
        """
        sender, receiver = "ct reply proto-dst", "ct original proto-dst"
        yield "  chain turn {"
        for protocol in ("udp", "tcp"):
            match self.filtering(protocol):
                case Filtering.ADDRESS_DEPENDENT:
                    remote = self.family.original("daddr")
                    yield (
                        f"    meta l4proto {protocol} "
                        f"meta l4proto . {remote} . {receiver} != @permissions drop"
                    )
                case Filtering.ADDRESS_AND_PORT_DEPENDENT:
                    yield (
                        f"    meta l4proto {protocol} "
                        f"meta l4proto . {sender} . {receiver} != @crossings drop"
                    )
                case _:
                    pass
        yield "  }"

    def _input(self) -> Iterator[str]:
        """Yield rules for what is addressed to the box itself: all from outside without mapping."""
        yield "  chain input {"
        yield "    type filter hook input priority filter; policy accept;"
        yield f'    iifname "lo" accept; meta l4proto {self.family.icmp} accept'
        yield "    ct state established,related accept"
        if self.model.remaps_after_inbound:
            # Accepted, the packet's session is confirmed and occupies its endpoints.
            protocols = "{ udp, tcp }" if self._poisons_tcp else "udp"
            if self._remembers:
                knock = f"meta l4proto . {self.family.name} saddr . th sport"
                timeout = _timeout(self.model.lifetimes.udp_one_shot)
                yield (
                    f'    iifname "wan" meta l4proto {protocols} '
                    f"update @knocks {{ {knock} timeout {timeout} }}"
                )
            yield f'    iifname "wan" meta l4proto {protocols} accept'
        yield from self.unsolicited()
        # Without this a packet to the WAN address from inside would meet the box's own stack.
        yield (
            f'    iifname "lan" {self.family.name} daddr {self.external} '
            "meta l4proto { udp, tcp } drop"
        )
        yield "  }"

    @property
    def _poisons_tcp(self) -> bool:
        """A SYN that the router accepts meets a closed port: poison and RST go together."""
        return self.model.unsolicited_tcp is Unsolicited.RST

    def _forward(self) -> Iterator[str]:
        yield "  chain forward {"
        yield "    type filter hook forward priority filter; policy drop;"
        yield from self.blocked()
        yield "    ct state invalid drop"
        yield "    ct state established,related accept"
        yield '    iifname "lan" oifname "wan" accept'
        yield "    ct status dnat accept"
        yield "  }"


class _Firewall(_Writer):
    """A box that routes and filters and translates nothing."""

    def lines(self) -> Iterator[str]:
        family, name = self.family, self.family.name
        if self.filters(Filtering.ENDPOINT_INDEPENDENT):
            yield from self.dynamic(
                "set", "endpoints", f"inet_proto . {family.address} . inet_service"
            )
        if self.filters(Filtering.ADDRESS_DEPENDENT):
            yield from self.dynamic(
                "set",
                "permissions",
                f"inet_proto . {family.address} . {family.address} . inet_service",
            )
        yield "  chain record {"
        yield "    type filter hook postrouting priority srcnat + 10; policy accept;"
        yield f"    {family.original('saddr')} {self.inside} jump from-inside"
        yield "  }"
        yield "  chain from-inside {"
        endpoint = f"{family.original('saddr')} . ct original proto-src"
        for protocol, assured, timeout in self.lifetimes():
            rule = f"    meta l4proto {protocol} {_ASSURED if assured else _NOT_ASSURED} update"
            match self.filtering(protocol):
                case Filtering.ENDPOINT_INDEPENDENT:
                    yield f"{rule} @endpoints {{ meta l4proto . {endpoint} timeout {timeout} }}"
                case Filtering.ADDRESS_DEPENDENT:
                    remote = family.original("daddr")
                    yield (
                        f"{rule} @permissions "
                        f"{{ meta l4proto . {remote} . {endpoint} timeout {timeout} }}"
                    )
                case _:
                    pass
        yield "  }"
        yield "  chain forward {"
        yield "    type filter hook forward priority filter; policy drop;"
        yield from self.blocked()
        yield "    ct state invalid drop"
        yield "    ct state established,related accept"
        yield '    iifname "lan" oifname "wan" accept'
        for protocol in ("udp", "tcp"):
            arrives = f'    iifname "wan" meta l4proto {protocol}'
            match self.filtering(protocol):
                case Filtering.NONE:
                    yield f"{arrives} accept"
                case Filtering.ENDPOINT_INDEPENDENT:
                    yield f"{arrives} meta l4proto . {name} daddr . th dport @endpoints accept"
                case Filtering.ADDRESS_DEPENDENT:
                    yield (
                        f"{arrives} meta l4proto . {name} saddr . {name} daddr . th dport "
                        "@permissions accept"
                    )
                case _:
                    pass
        yield f'    iifname "wan" meta l4proto {family.icmp} accept'
        yield from self.unsolicited()
        yield "  }"


def _timeout(seconds: float) -> str:
    return f"{max(1, round(seconds * 1000))}ms"


def _ports(model: NatModel, seed: int) -> list[int]:
    """Return the external ports in the order in which they are given out."""
    generator = random.Random(f"natlab {seed}")
    if model.allocation is Allocation.RANDOM:
        return generator.sample(range(1024, 65536), PORTS)
    span = PORTS * abs(model.delta)
    first = generator.randrange(1024, 65536 - span)
    if model.delta < 0:
        first += span
    return [first + i * model.delta for i in range(PORTS)]


def loss_ruleset(losses: dict[str, float]) -> str:
    """Return the nft script that loses packets of the named interfaces, each direction by itself.

    A loss of 1 is a cut cable that nobody is told of.  The script replaces what was there.
    """
    lines = ["table inet natlab-links", "delete table inet natlab-links"]
    if not any(losses.values()):
        return "\n".join((*lines, ""))
    lines.append("table inet natlab-links {")
    for chain, hook, word in (
        ("arrive", "prerouting", "iifname"),
        ("leave", "postrouting", "oifname"),
    ):
        lines += [
            f"  chain {chain} {{",
            f"    type filter hook {hook} priority raw; policy accept;",
        ]
        for name, loss in losses.items():
            chance = round(loss * 1_000_000)
            if chance >= 1_000_000:
                lines.append(f'    {word} "{name}" drop')
            elif chance > 0:
                lines.append(f'    {word} "{name}" numgen random mod 1000000 < {chance} drop')
        lines.append("  }")
    return "\n".join((*lines, "}", ""))
