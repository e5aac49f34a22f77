"""From settings to what is served on this machine: listeners, relay hosts, policy, users.

:func:`make_plan` is a function of the settings and of this machine's addresses, so it is called
again when either changes, and what differs between two plans is what a reload has to do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from stun.auth_server import AnyOf, RestUsers, StaticUsers
from stun.discovery import Transport
from stun.oauth import Tokens
from stun.sansio import SECOND, Address
from stun.users import StoredKeys, UserStore
from turn.daemon.addresses import (
    ANY_IPV4,
    ANY_IPV6,
    WILDCARDS,
    LocalAddress,
    RelayChoice,
    choose_relays,
    expand,
    route_host,
    servable,
)
from turn.daemon.config import ConfigError
from turn.daemon.settings import Settings
from turn.daemon.settings_values import EVERY_HOST, Hidden, ListenUrl
from turn.server.config import ListenAt, RelayAddress, ServerConfig
from turn.server.policy import PeerPolicy
from turn.users.cache import CachedUsers

DEFAULT_LISTENERS: Final = (
    ListenUrl(Transport.UDP, EVERY_HOST, Transport.UDP.default_port),
    ListenUrl(Transport.TCP, EVERY_HOST, Transport.TCP.default_port),
)
DEFAULT_SECURE_LISTENERS: Final = (
    ListenUrl(Transport.DTLS, EVERY_HOST, Transport.DTLS.default_port),
    ListenUrl(Transport.TLS, EVERY_HOST, Transport.TLS.default_port),
)
SPARES: Final = 4
"""Sockets kept open for the next clients: as many as are likely to come at once."""
LONGEST_FREE_REALM: Final = 24
"""Octets of a realm with which a 401 stays within 100 octets."""


class Credential(NamedTuple):
    """A user that turnd makes up."""

    username: str
    password: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be served."""

    config: ServerConfig
    proxies: Mapping[int, tuple[str, ...]]
    """Networks of proxies by the port of TCP listeners."""
    passing: frozenset[Address]
    """Addresses of listeners that a wildcard stands for: they may go at any time."""
    warnings: tuple[str, ...]


class _Socket(NamedTuple):
    """What a listener is bound to; ``protocol`` is "udp" or "tcp"."""

    protocol: str
    local: Address


def make_plan(
    settings: Settings,
    addresses: Iterable[LocalAddress],
    route: Callable[[int], str | None] = route_host,
) -> Plan:
    """Say what ``settings`` mean on a machine that has ``addresses``.

    Raises :class:`turn.daemon.config.ConfigError` where they contradict each other or the machine.
    """
    addresses = tuple(addresses)
    hosts = servable(addresses)
    relays, warnings = _relays(settings, addresses, route)
    places = [listen.place for listen in settings.listen]
    if not places:
        places = [*DEFAULT_LISTENERS, *(DEFAULT_SECURE_LISTENERS if settings.tls else ())]
    public = {relay.local: relay.advertised for relay in relays}
    listeners, passing = _listeners(settings, places, hosts, public)
    discovery = tuple(_discovery(settings, listeners))
    if len(settings.realm.encode()) > LONGEST_FREE_REALM:
        warnings.append(
            f"the realm has {len(settings.realm.encode())} octets: with more than "
            f"{LONGEST_FREE_REALM} a 401 is longer than 100, which helps those who forge sources"
        )
    config = ServerConfig(
        listeners=tuple(listeners.values()),
        relays=relays,
        realm=settings.realm,
        policy=PeerPolicy(
            settings.peers.allow,
            settings.peers.deny,
            own=_own(addresses, listeners.values(), relays),
            nat64=settings.peers.nat64,
        ),
        ports=settings.relay.ports,
        limits=settings.make_limits(),
        software=settings.software,
        fingerprint=settings.fingerprint,
        default_lifetime=settings.relay.default_lifetime * SECOND,
        max_lifetime=settings.relay.max_lifetime * SECOND,
        alternates=settings.alternate_servers,
        discovery=discovery,
        mobility=settings.relay.mobility,
        tcp_relay=settings.relay.tcp,
        anonymous=settings.auth.anonymous,
        sha256=settings.auth.sha256,
        idle=settings.idle * SECOND,
        spares=SPARES,
        offload=True,
    )
    return Plan(config, _proxies(places), frozenset(passing), tuple(warnings))


def _relays(
    settings: Settings, addresses: Iterable[LocalAddress], route: Callable[[int], str | None]
) -> tuple[tuple[RelayAddress, ...], list[str]]:
    choice = choose_relays(addresses, _is_global, route)
    given = settings.relay.addresses
    if given:
        made = tuple(RelayAddress(_local(relay.local, choice), relay.advertised) for relay in given)
        for public, times in Counter(relay.advertised for relay in made).items():
            if times > 1:
                # Two ports of one number would look the same to everybody else.
                raise ConfigError(
                    [f"--relay-address: {times} local addresses are said to be seen as {public}"]
                )
        private = [
            relay.local
            for relay in made
            if relay.local == relay.advertised and not _is_global(relay.local)
        ]
        # Who names a private address alone may well mean it: a network of his own.
        return made, [_unreachable(private)] if private and not settings.peers.allow else []
    if not choice.hosts:
        raise ConfigError(
            ["this machine has no address to relay from; give one with --relay-address A"]
        )
    made = tuple(RelayAddress(host, host) for host in choice.hosts)
    return made, [_unreachable(choice.private)] if choice.private else []


def _local(host: str, choice: RelayChoice) -> str:
    if host not in WILDCARDS:
        return host
    of_family = [one for one in choice.hosts if (":" in one) == (":" in host)]
    if not of_family:
        raise ConfigError(
            [f"--relay-address {host}=...: this machine has no address of that family"]
        )
    return of_family[0]


def _is_global(host: str) -> bool:
    return _GLOBAL.check(host).allowed


_GLOBAL = PeerPolicy()


def _unreachable(hosts: Iterable[str]) -> str:
    hosts = list(hosts)
    return (
        f"relays from {', '.join(hosts)}, which peers on the internet cannot reach; behind a "
        f"one-to-one NAT give its public address: --relay-address {hosts[0]}=PUBLIC"
    )


def _listeners(
    settings: Settings, places: Iterable[ListenUrl], hosts: list[str], public: Mapping[str, str]
) -> tuple[dict[_Socket, ListenAt], set[Address]]:
    """Return the listeners by their sockets.

    An address that is named goes before one that a wildcard stands for.  TLS and TCP at one place
    make a port that takes both, as do DTLS and UDP.
    """
    detect = settings.tls is not None and settings.tls.detect
    made: dict[_Socket, ListenAt] = {}
    passing: set[Address] = set()
    for place in sorted(places, key=lambda place: place.is_wildcard):
        for host in _hosts(place.host, hosts):
            local = Address(host, place.port)
            socket = _Socket(place.transport.protocol, local)
            seen = place.advertised or public.get(host)
            listener = ListenAt(
                place.transport,
                local,
                detect=detect and not place.transport.is_secure,
                proxied=bool(place.proxies),
                advertised=Address(seen, place.port) if seen and seen != host else None,
            )
            before = made.get(socket)
            if before is None:
                made[socket] = listener
                if place.is_wildcard:
                    passing.add(local)
            elif before.transport is not listener.transport:
                plain = before if listener.transport.is_secure else listener
                made[socket] = replace(plain, detect=True, proxied=before.proxied)
    if not made:
        raise ConfigError(["there is nothing to listen on: this machine has no address for it"])
    for alternate in settings.discovery.alternates:
        _add_corners(settings, made, alternate)
    return made, passing


def _hosts(host: str, hosts: list[str]) -> list[str]:
    if host == EVERY_HOST:
        return [*expand(ANY_IPV4, hosts), *expand(ANY_IPV6, hosts)]
    return expand(host, hosts)


def _primary(
    settings: Settings, listeners: Mapping[_Socket, ListenAt], alternate: str
) -> Address | None:
    """Return where clients of behaviour discovery begin, for one family: the first UDP listener."""
    ordinary = [
        at.local
        for socket, at in listeners.items()
        if socket.protocol == "udp"
        and at.transport is Transport.UDP
        and at.local.is_ipv6 == (":" in alternate)
        and at.local.host not in settings.discovery.alternates
        and at.local.port != settings.discovery.port
    ]
    # Behind a wildcard loopback is listed as well, and is the last that is meant.
    outside = [local for local in ordinary if not _is_loopback(local.host)]
    return next(iter(outside if not _is_loopback(alternate) and outside else ordinary), None)


def _add_corners(settings: Settings, listeners: dict[_Socket, ListenAt], alternate: str) -> None:
    """Add what RFC 5780 section 6 wants: both ports at both addresses, UDP and TCP."""
    primary = _primary(settings, listeners, alternate)
    if primary is None:
        family = "IPv6" if ":" in alternate else "IPv4"
        raise ConfigError(
            [
                f"--alternate-address {alternate} ([discovery] alternates): there is no UDP "
                f"listener of {family} at another address that it could be the alternate of"
            ]
        )
    for protocol in ("udp", "tcp"):
        first = listeners.get(_Socket(protocol, primary))
        if first is None:
            continue
        for host in (primary.host, alternate):
            for port in (primary.port, settings.discovery.port):
                local = Address(host, port)
                listeners.setdefault(
                    _Socket(protocol, local),
                    replace(first, local=local, advertised=_moved(first, host, local)),
                )


def _moved(first: ListenAt, host: str, local: Address) -> Address | None:
    seen = first.advertised
    return Address(seen.host, local.port) if seen and host == first.local.host else None


def _discovery(
    settings: Settings, listeners: Mapping[_Socket, ListenAt]
) -> Iterator[tuple[Address, Address]]:
    for alternate in settings.discovery.alternates:
        primary = _primary(settings, listeners, alternate)
        if primary is not None:
            yield primary, Address(alternate, settings.discovery.port)


def _is_loopback(host: str) -> bool:
    return host.startswith("127.") or host == "::1"


def _own(
    addresses: Iterable[LocalAddress],
    listeners: Iterable[ListenAt],
    relays: Iterable[RelayAddress],
) -> frozenset[str]:
    """Return the hosts of this server.

    Not loopback: its block is denied as it is, and ``--allow-peer 127.0.0.0/8`` is to open it.
    """
    own = {one.host.partition("%")[0] for one in addresses}
    for at in listeners:
        own.add(at.local.host.partition("%")[0])
        if at.advertised is not None:
            own.add(at.advertised.host)
    for relay in relays:
        own |= {relay.local, relay.advertised}
    return frozenset(host for host in own if not _is_loopback(host))


def _proxies(places: Iterable[ListenUrl]) -> dict[int, tuple[str, ...]]:
    made: dict[int, tuple[str, ...]] = {}
    for place in places:
        if place.transport.protocol != "tcp":
            continue
        if made.setdefault(place.port, place.proxies) != place.proxies:
            raise ConfigError(
                [
                    f"listen: {place} and another listener share the TCP port {place.port} but not "
                    "their proxies; a port is either for proxies or for clients"
                ]
            )
    return {port: networks for port, networks in made.items() if networks}


# Who may relay. -----------------------------------------------------------------------------------


def rest_secrets(settings: Settings, made_up: str) -> list[str]:
    """Return the secrets of time-limited credentials, the one that makes them first.

    A rendezvous needs one to make them with: ``made_up``, where none is configured.
    """
    given = [secret.text for secret in settings.auth.secrets]
    return given or ([made_up] if settings.rendezvous is not None else [])


def make_users(
    settings: Settings,
    more: Iterable[Credential],
    cached: CachedUsers | None = None,
    made_up: str = "",
) -> UserStore:
    """Return every user of ``settings``, and ``more``.

    ``cached``: those of the database, where there is one.  ``made_up``: see :func:`rest_secrets`.
    """
    stores: list[UserStore] = []
    table: dict[str, str | StoredKeys] = {
        name: value.text if isinstance(value, Hidden) else value
        for name, value in settings.auth.users.items()
    }
    table |= {one.username: one.password for one in more}
    if table:
        stores.append(StaticUsers(table, settings.realm))
    secrets = rest_secrets(settings, made_up)
    if secrets:
        stores.append(RestUsers(secrets))
    if cached is not None:
        stores.append(cached)
    return stores[0] if len(stores) == 1 else AnyOf(*stores)


def make_tokens(settings: Settings) -> Tokens | None:
    """Return the keys of access tokens, if there are any (RFC 7635)."""
    oauth = settings.auth.oauth
    if oauth is None:
        return None
    return Tokens(oauth.server_name, [key.token_key() for key in oauth.keys])


# What clients are given. --------------------------------------------------------------------------


def turn_uris(listeners: Iterable[ListenAt], names: tuple[str, ...] = ()) -> list[str]:
    """Return what WebRTC's ``iceServers`` take, those that reach furthest first.

    ``names``: the DNS names of the certificate; a ``turns:`` URI needs one to be proved.
    """
    name = next((one for one in names if not one.startswith("*") and not one[-1:].isdigit()), None)
    ranked: list[tuple[int, str]] = []
    for at in listeners:
        seen = at.advertised or at.local
        protocol, default = at.transport.protocol, at.transport.default_port
        rank = 0 if _is_global(seen.host) else 2 if _is_loopback(seen.host) else 1
        secure = at.transport.is_secure
        host = name if secure and name else f"[{seen.host}]" if seen.is_ipv6 else seen.host
        port = "" if seen.port == default else f":{seen.port}"
        scheme = "turns" if secure else "turn"
        ranked.append((rank, f"{scheme}:{host}{port}?transport={protocol}"))
    return list(dict.fromkeys(uri for _, uri in sorted(ranked, key=lambda one: one[0])))
