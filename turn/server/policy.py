"""Which peers the server relays to: closed by default, and able to say why.

**The rule, in one paragraph.**  The most specific rule that holds an address decides.  Of two that
are equally specific the operator's deny wins over the operator's allow, and that over what is built
in: a denial of every block that the IANA special-purpose registries do not call globally reachable
(:mod:`turn.server.special`), and of each of the server's own addresses.  What no rule holds is
allowed.  So ``allow 10.0.0.0/8`` opens a private network, ``allow 0.0.0.0/0`` opens none of them,
and ``deny 0.0.0.0/0`` with ``allow 198.41.0.0/24`` leaves that one network.

**Addresses within addresses.**  An IPv6 address that carries an IPv4 address (NAT64, 6to4, Teredo,
ISATAP, IPv4-translated) is allowed only where that rule allows both.  IPv4-mapped and
IPv4-compatible addresses are denied whatever they carry: an IPv4 peer has an IPv4 address.  So is
every address with a zone, which has a meaning on one link only.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from ipaddress import (
    AddressValueError,
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_network,
    summarize_address_range,
)
from itertools import islice
from typing import Final, NamedTuple, TypeAlias

from stun.errors import UsageError
from turn.server import special

REMEMBERED: Final = 4096
"""Hosts whose verdict is kept."""
NOT_AN_ADDRESS: Final = "not an IP address"
WITH_ZONE: Final = "RFC 4007 section 11: a zone has a meaning on one link only"

_Address: TypeAlias = IPv4Address | IPv6Address
_Network: TypeAlias = IPv4Network | IPv6Network

_LONGEST_HOST = 64  # characters; what is longer is not an address, and its verdict not kept
_LOW_32 = 0xFFFFFFFF
_LOCAL_NAT64 = IPv6Network("64:ff9b:1::/48")
# The upper bits of what carries an IPv4 address, the lower 32, 96 or 112 of it cut off.
_NAT64 = int(IPv6Address("64:ff9b::")) >> 32
_TRANSLATED = int(IPv6Address("::ffff:0:0:0")) >> 32
_TEREDO = int(IPv6Address("2001::")) >> 96
_6TO4 = 0x2002
# RFC 5214 section 6.1: the interface identifier is 00-00-5E-FE and the address; the two bits of a
# modified EUI-64 that tell universal and group apart may be either.
_ISATAP, _ISATAP_MASK = 0x5EFE, 0xFCFFFFFF
_TRANSLATOR_LENGTHS = (32, 40, 48, 56, 64, 96)  # RFC 6052 section 2.2


class Verdict(NamedTuple):
    """Whether a peer may be relayed to, and which rule says so, in words.

    ``subject`` is the address that the rule holds, where that is not the peer's but one that the
    peer's carries.  ``own`` says that all that denies the peer is that this server has its
    address.  Such a peer can be the relayed transport address of another client (each of two
    clients that have this relay only is the other's peer); the ports tell, which are not known
    here.
    """

    allowed: bool
    rule: str
    subject: str = ""
    own: bool = False

    def __str__(self) -> str:
        inside = f" (of {self.subject}, which it carries)" if self.subject else ""
        return f"{'allowed' if self.allowed else 'denied'}: {self.rule}{inside}"


class _Rule(NamedTuple):
    """What decides over a block of addresses; ``length`` is that of its prefix, in bits."""

    length: int
    allows: bool
    words: str
    network: str
    ours: bool = False
    """Whether the operator made it."""
    own: bool = False
    """Whether it is for an address of this server."""


_NO_RULE = _Rule(-1, True, "no rule: globally reachable", "")


class _Table:
    """Rules of one address family, found by longest prefix: a dict a prefix length."""

    __slots__ = ("_bits", "_lengths")

    def __init__(self, bits: int) -> None:
        self._bits = bits
        self._lengths: list[tuple[int, dict[int, _Rule]]] = []

    def add(self, network: _Network, rule: _Rule) -> None:
        """Add a rule, in place of one for the same block."""
        shift = self._bits - network.prefixlen
        rules = dict(self._lengths).get(shift)
        if rules is None:
            rules = {}
            self._lengths = sorted([*self._lengths, (shift, rules)], key=lambda entry: entry[0])
        rules[int(network.network_address) >> shift] = rule

    def find(self, value: int) -> _Rule | None:
        """Return the rule of the most specific block that holds an address."""
        for shift, rules in self._lengths:
            rule = rules.get(value >> shift)
            if rule is not None:
                return rule
        return None

    def every(self, value: int) -> Iterator[_Rule]:
        """Give the rules of all blocks that hold an address, the most specific first."""
        for shift, rules in self._lengths:
            rule = rules.get(value >> shift)
            if rule is not None:
                yield rule


def _table(bits: int, blocks: Iterable[special.Block]) -> _Table:
    table = _Table(bits)
    for block in blocks:
        network = ip_network(block.network)
        words = f"{block.rfc} {block.name} {block.network}"
        if block.reachable:
            words += ": globally reachable"
        table.add(network, _Rule(network.prefixlen, block.reachable, words, block.network))
    return table


_BUILT_IN = {4: _table(32, special.IPV4), 6: _table(128, special.IPV6)}
_FORMS = _table(128, special.IPV4_IN_IPV6)


class PeerPolicy:
    """Says of each peer whether the server may relay to it; the module's text has the rule.

    ``allow`` and ``deny`` are networks (``203.0.113.0/24``, ``2001:db8::/32``) or single addresses;
    ``own`` the hosts that this server is reached by, local and advertised; ``nat64`` the prefixes
    of translators near the server (RFC 6052) beside the well-known one: they open nothing, but say
    where in an address the IPv4 address is.  Raises :class:`stun.errors.UsageError` for what is
    none of these.  Policies that were given the same are equal.
    """

    __slots__ = ("_cache", "_operator", "_own", "_translators", "allow", "deny", "nat64", "own")

    def __init__(
        self,
        allow: Sequence[str] = (),
        deny: Sequence[str] = (),
        own: Collection[str] = (),
        *,
        nat64: Sequence[str] = (),
    ) -> None:
        self.allow = tuple(allow)
        self.deny = tuple(deny)
        self.own = frozenset(own)
        self.nat64 = tuple(nat64)
        self._operator = {4: _Table(32), 6: _Table(128)}
        # The denials come last: of two rules for one block the later is kept.
        for texts, allows, verb in ((self.allow, True, "allow"), (self.deny, False, "deny")):
            for text in texts:
                network = parse_network(text)
                words = f"your {verb} rule {network}"
                rule = _Rule(network.prefixlen, allows, words, str(network), ours=True)
                self._operator[network.version].add(network, rule)
        self._own: dict[int, set[int]] = {4: set(), 6: set()}
        for host in self.own:
            address = _parse_address(host.partition("%")[0])
            if address is None:
                raise UsageError(f"{host!r} is not an IP address that a server can have")
            self._own[address.version].add(int(address))
        self._translators = tuple(map(_parse_translator, self.nat64))
        self._cache: dict[str, Verdict] = {}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PeerPolicy) and self._values == other._values

    def __hash__(self) -> int:
        return hash(self._values)

    def __repr__(self) -> str:
        allow, deny, own, nat64 = self._values
        return f"PeerPolicy({allow}, {deny}, {sorted(own)}, nat64={nat64})"

    @property
    def _values(self) -> tuple[tuple[str, ...], tuple[str, ...], frozenset[str], tuple[str, ...]]:
        return self.allow, self.deny, self.own, self.nat64

    def with_own(self, hosts: Iterable[str]) -> PeerPolicy:
        """Return this policy for a server that has these addresses too."""
        return PeerPolicy(self.allow, self.deny, self.own.union(hosts), nat64=self.nat64)

    def check(self, host: str) -> Verdict:
        """Say whether the server may relay to ``host``.  Any text is taken; none raises."""
        verdict = self._cache.get(host)
        if verdict is None:
            verdict = self._decide(host)
            if len(host) <= _LONGEST_HOST:
                # A client that fills this with addresses of its choice costs others a look-up.
                if len(self._cache) >= REMEMBERED:
                    self._cache.clear()
                self._cache[host] = verdict
        return verdict

    def explain(self, host: str) -> list[str]:
        """Return lines for a person: the verdict, every rule that holds, what would change it."""
        verdict = self.check(host)
        lines = [f"{host} is {verdict}"]
        address = _parse_address(host)
        if address is None:
            return [*lines, "to change it: nothing does; a peer is an address without a zone"]
        form = _form(address)
        embedded = (
            list(self._embedded(address)) if form is None else [(_low_32(address), form.words)]
        )
        for inner, how in embedded:
            lines.append(f"it carries {inner}: {how}")
        for subject in dict.fromkeys((address, *(inner for inner, _ in embedded))):
            decides = self._weigh(subject)
            rules = self._every(subject)
            for rule in rules:
                does = "allows" if rule.allows else "denies"
                mark = "; decides" if rule == decides and (form is None) else ""
                lines.append(f"{subject} is in: {rule.words} ({does}{mark})")
            if not rules:
                lines.append(f"{subject} is in no block of any rule")
        return [*lines, f"to change it: {self._remedy(address, form, verdict)}"]

    def _remedy(self, address: _Address, form: _Rule | None, verdict: Verdict) -> str:
        if verdict.allowed:
            rule = self._weigh(address)
            first = f"remove {rule.words}, or " if rule.ours else ""
            return f"{first}deny {address} (--deny-peer {address}) or a network that it is in"
        if form is not None:
            return f"nothing opens this form of an address; the peer itself is {verdict.subject}"
        if address in _LOCAL_NAT64 and not self._translators_of(address):
            return (
                "if there is a translator, name its prefix (nat64): until then an IPv4 address is "
                "looked for in every place where one may be"
            )
        # What carries a denied address may be denied itself as well.
        steps = []
        for subject in dict.fromkeys((*(inner for inner, _ in self._embedded(address)), address)):
            rule = self._weigh(subject)
            allow = f"allow {subject} (--allow-peer {subject})"
            if rule.allows:
                continue
            if rule.ours and rule.length == subject.max_prefixlen:
                steps.append(f"remove {rule.words}, then look again")
            elif rule.ours:
                steps.append(f"remove {rule.words}, or {allow}")
            elif rule.own:
                steps.append(f"{allow}: then every service of this server is open to its clients")
            elif rule.length == subject.max_prefixlen:
                steps.append(allow)
            else:
                steps.append(f"{allow} or more of {rule.network}")
        return "; and ".join(steps)

    # How it is decided. ---------------------------------------------------------------------------

    def _decide(self, host: str) -> Verdict:
        address = _parse_address(host)
        if address is None:
            return Verdict(False, WITH_ZONE if "%" in host else NOT_AN_ADDRESS)
        form = _form(address)
        if form is not None:
            return Verdict(False, form.words, str(_low_32(address)))
        for inner, _ in self._embedded(address):
            rule = self._weigh(inner)
            if not rule.allows:
                return Verdict(False, rule.words, str(inner))
        rule = self._weigh(address)
        own = rule.own and self._weigh(address, but_own=True).allows
        return Verdict(rule.allows, rule.words, own=own)

    def _weigh(self, address: _Address, *, but_own: bool = False) -> _Rule:
        """Return the rule that decides over one address, whatever it carries."""
        value, version = int(address), address.version
        built_in = None if but_own else self._own_rule(address)
        if built_in is None:
            built_in = _BUILT_IN[version].find(value)
        operator = self._operator[version].find(value)
        if operator is None:
            return built_in or _NO_RULE
        # A block that is globally reachable is no rule but the end of one.
        if built_in is None or built_in.allows or operator.length >= built_in.length:
            return operator
        return built_in

    def _own_rule(self, address: _Address) -> _Rule | None:
        if int(address) not in self._own[address.version]:
            return None
        words = f"this server's own address {address}"
        return _Rule(address.max_prefixlen, False, words, str(address), own=True)

    def _every(self, address: _Address) -> list[_Rule]:
        """Return all rules that hold one address, in the order in which they decide."""
        value, version = int(address), address.version
        rules = [*self._operator[version].every(value)]
        own = self._own_rule(address)
        if own is not None:
            rules.append(own)
        rules += _BUILT_IN[version].every(value)
        return sorted(rules, key=lambda rule: -rule.length)

    # Addresses within addresses. ------------------------------------------------------------------

    def _embedded(self, address: _Address) -> Iterator[tuple[IPv4Address, str]]:
        """Give each IPv4 address that packets to an address may end up at, and by what."""
        if address.version == 4:
            return
        value, octets = int(address), address.packed
        prefix = value >> 96
        if value >> 32 == _NAT64:
            yield _low_32(address), "NAT64, RFC 6052"
        elif value >> 32 == _TRANSLATED:
            yield _low_32(address), "IPv4-translated, RFC 2765"
        elif prefix >> 16 == _6TO4:
            yield IPv4Address(octets[2:6]), "6to4, RFC 3056"
        elif prefix == _TEREDO:
            yield IPv4Address(octets[4:8]), "Teredo server, RFC 4380"
            # RFC 4380 section 4: "each bit in the address [...] is reversed".
            yield IPv4Address(value & _LOW_32 ^ _LOW_32), "Teredo client, RFC 4380"
        if value >> 32 & _ISATAP_MASK == _ISATAP:
            yield _low_32(address), "ISATAP, RFC 5214"
        translators = self._translators_of(address)
        if not translators and address in _LOCAL_NAT64:
            # RFC 8215: any of the lengths that fit.  Which, only the operator knows.
            translators = [length for length in _TRANSLATOR_LENGTHS if length >= 48]
        for length in translators:
            yield _translated(octets, length), f"NAT64 with a prefix of {length} bits, RFC 6052"

    def _translators_of(self, address: _Address) -> list[int]:
        return [network.prefixlen for network in self._translators if address in network]


def tunnel_of(host: str) -> str:
    """Return ``"6to4"`` or ``"Teredo"`` for an address of such a tunnel, else nothing.

    RFC 8656 section 21.4: "a TURN server MUST NOT accept Teredo or 6to4 addresses", which would let
    a datagram go round between the server and the tunnel.
    """
    # Nearly all addresses are told by their text; RFC 5952 leaves one way to write these.
    if not host.startswith(("2001:", "2002:")):
        return ""
    address = _parse_address(host)
    if not isinstance(address, IPv6Address):
        return ""
    return "6to4" if address.sixtofour else "Teredo" if address.teredo else ""


def _form(address: _Address) -> _Rule | None:
    """Return the form that makes an IPv6 address an IPv4 one, if it has one."""
    # "::" and "::1" look IPv4-compatible, but RFC 4291 sections 2.5.2 and 2.5.3 made them others.
    return _FORMS.find(int(address)) if address.version == 6 and int(address) > 1 else None


def _low_32(address: _Address) -> IPv4Address:
    return IPv4Address(int(address) & _LOW_32)


def _translated(octets: bytes, length: int) -> IPv4Address:
    """Return the IPv4 address behind a prefix of RFC 6052 section 2.2.

    The octet of bits 64 to 71, "reserved for compatibility", is stepped over.
    """
    if length == 96:
        return IPv4Address(octets[12:])
    first = length // 8
    return IPv4Address((octets[first:8] + octets[9:])[:4])


def _parse_address(host: str) -> _Address | None:
    if len(host) > _LONGEST_HOST or "%" in host:
        return None
    try:
        return IPv6Address(host) if ":" in host else IPv4Address(host)
    except AddressValueError:
        return None


def parse_network(text: str) -> _Network:
    """Read a network (``10.0.0.0/8``) or a single address of an operator's rule.

    Raises :class:`stun.errors.UsageError` that names the text and, where it can be told, what was
    meant.
    """
    first, slash, length = text.strip().partition("/")
    address = _parse_address(first)
    if address is None:
        raise UsageError(f"{text!r} is not a network: {_hint(text)}")
    longest = address.max_prefixlen
    if not slash:
        length = str(longest)
    if not (length.isascii() and length.isdigit() and len(length) < 4 and int(length) <= longest):
        raise UsageError(
            f"{text!r} is not a network: behind / comes the length of its prefix, 0 to {longest}"
        )
    network = ip_network((address.packed, int(length)), strict=False)
    if network.network_address != address:
        raise UsageError(
            f"{text!r} has bits set behind its prefix: the network is {network}, "
            f"the single address {address}"
        )
    form = _form(address)
    if form is not None and network.prefixlen >= 96:
        inner = ip_network((_low_32(address).packed, network.prefixlen - 96))
        raise UsageError(f"{text!r} is an IPv4 network in IPv6 form: write {inner}")
    return network


def _hint(text: str) -> str:
    first, dash, last = text.partition("-")
    ends = _parse_address(first.strip()), _parse_address(last.strip())
    match ends if dash else ():
        case IPv4Address() as low, IPv4Address() as high if low <= high:
            return f"write {_networks(low, high)}"
        case IPv6Address() as low, IPv6Address() as high if low <= high:
            return f"write {_networks(low, high)}"
        case _:
            return "write an address, or an address and the length of its prefix, as in 10.0.0.0/8"


def _networks(low: _Address, high: _Address) -> str:
    networks = [str(network) for network in islice(summarize_address_range(low, high), 5)]
    return ", ".join(networks[:4]) + (" and so on" if len(networks) > 4 else "")


def _parse_translator(text: str) -> IPv6Network:
    network = parse_network(text)
    if not isinstance(network, IPv6Network) or network.prefixlen not in _TRANSLATOR_LENGTHS:
        lengths = ", ".join(map(str, _TRANSLATOR_LENGTHS))
        raise UsageError(
            f"{text!r} is no prefix of a NAT64 translator: an IPv6 network of {lengths} bits "
            "(RFC 6052 section 2.2)"
        )
    return network
