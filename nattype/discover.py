"""Diagnose the NAT that this host is behind, on real sockets.

    report = discover(["stun.example.org"])
    report = await discover_async(["192.0.2.1:3478"], tcp=False)

Names are resolved once and addresses pinned; both address families are diagnosed side by side.  The
probe itself (:mod:`nattype.probe`) has no I/O; what is here resolves, finds this host's own
addresses, gives the probe a driver, and puts the report together.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from nattype.assembly import assemble
from nattype.classify import classify
from nattype.honesty import is_public
from nattype.probe.bench import Progress
from nattype.probe.machine import Finished, Plan, Probe, ProbeConfig, ProbeEvent
from nattype.probe.session import Server
from nattype.report import Evidence, Outcome, Report, TcpReport, UdpReport
from nattype.trace import Tap, Traced
from nattype.verdict import FAMILY_NAMES, complete
from stun import aio, blocking
from stun.discovery import Target, Transport
from stun.errors import StunError, UsageError
from stun.resolver import resolve, resolve_async
from stun.sansio import SECOND, Address, Entropy, SocketMachine
from stun.uri import StunUri, parse_server

DEFAULT_SERVERS = (
    "stunserver2025.stunprotocol.org:3478",
    "stun.nextcloud.com:3478",
    "stun.cloudflare.com:3478",
    "stun.l.google.com:19302",
)
"""Public servers that are asked when none is given and ``NATLAB_STUN`` is not set.  The first
offers RFC 5780; the others tell the mapping behaviour when it cannot be reached."""

SERVERS_VARIABLES = ("NATLAB_STUN", "NATLAB_STUN6")
"""Environment variables that name servers, separated by commas or spaces; the laboratory sets one
for each address family."""

TIMEOUT = 30.0
"""Seconds after which a diagnosis ends, finished or not; usually it takes two."""
LIFETIME_TIMEOUT = 900.0
"""The same when mapping lifetimes are measured: enough for a lifetime of five minutes."""

FAMILIES = ("ipv4", "ipv6")


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What the caller asked for, checked."""

    servers: tuple[StunUri, ...]
    families: tuple[str, ...]
    udp: bool
    tcp: bool
    lifetime: bool
    timeout: float


def _wanted(
    servers: Sequence[str | StunUri] | str | None,
    family: str | int | None,
    *,
    udp: bool,
    tcp: bool,
    lifetime: bool,
    timeout: float | None,
) -> _Wanted:
    if isinstance(servers, str):
        servers = [servers]
    if not servers:
        named = [
            name
            for variable in SERVERS_VARIABLES
            for name in os.environ.get(variable, "").replace(",", " ").split()
        ]
        servers = named or DEFAULT_SERVERS
    names = [part for s in servers for part in (s.split(",") if isinstance(s, str) else [s])]
    uris = []
    for name in names:
        uri = parse_server(name) if isinstance(name, str) else name
        if not isinstance(uri, StunUri) or uri.secure:
            raise UsageError(
                f"{name}: behaviour is tested with plain STUN (a stun: server), since TLS hides "
                "nothing that a NAT looks at"
            )
        uris.append(uri)
    families: dict[str | int | None, tuple[str, ...]] = {
        None: FAMILIES,
        "ipv4": ("ipv4",),
        4: ("ipv4",),
        "ipv6": ("ipv6",),
        6: ("ipv6",),
    }
    if family not in families:
        raise UsageError(f"{family!r} is no address family: ipv4, ipv6 or None for both")
    if not (udp or tcp):
        raise UsageError("neither UDP nor TCP is to be tested")
    if timeout is not None and timeout <= 0:
        raise UsageError("the timeout must be more than 0 seconds")
    default = LIFETIME_TIMEOUT if lifetime else TIMEOUT
    return _Wanted(
        tuple(dict.fromkeys(uris)),
        families[family],
        udp,
        tcp,
        lifetime and udp,
        default if timeout is None else timeout,
    )


def discover(
    servers: Sequence[str | StunUri] | str | None = None,
    *,
    family: str | int | None = None,
    udp: bool = True,
    tcp: bool = True,
    lifetime: bool = False,
    timeout: float | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    on_packet: Callable[[Traced], None] | None = None,
    entropy: Entropy = os.urandom,
) -> Report:
    """Diagnose, and return the report.

    ``servers``: STUN servers as ``host``, ``host:port``, ``[ipv6]:port`` or ``stun:`` URIs.  All
    are asked at once; the first that offers RFC 5780 is used, the others count when none does.
    Without any, those of the environment variable ``NATLAB_STUN`` or else :data:`DEFAULT_SERVERS`.

    ``family``: ``"ipv4"`` (or 4), ``"ipv6"`` (or 6), or ``None`` for both.  ``lifetime``: measure
    how long idle mappings live, which takes minutes.  ``timeout``: seconds after which the report
    is made of what is known by then.  ``on_progress`` is told each step; ``str()`` of it is for
    people.

    A server that cannot be resolved or reached makes the report inconclusive and does not raise.
    Raises :class:`stun.errors.UsageError` for arguments that make no sense.
    """
    wanted = _wanted(servers, family, udp=udp, tcp=tcp, lifetime=lifetime, timeout=timeout)
    with ThreadPoolExecutor(max_workers=min(8, len(wanted.servers))) as pool:
        found = list(pool.map(_resolve, wanted.servers))
    plans = _plans(wanted, found)
    if not plans:
        return _unreachable(wanted, found)
    probe = Probe(_config(wanted, plans), entropy=entropy)
    collected = _Collector(on_progress)
    driver: blocking.Driver[ProbeEvent] = blocking.Driver(
        _tapped(probe, on_packet), on_event=collected
    )
    with driver:
        probe.start(driver.now())
        driver.run_until(lambda: collected.finished is not None)
    return _report(plans, collected, found)


async def discover_async(
    servers: Sequence[str | StunUri] | str | None = None,
    *,
    family: str | int | None = None,
    udp: bool = True,
    tcp: bool = True,
    lifetime: bool = False,
    timeout: float | None = None,  # noqa: ASYNC109  (it ends with a report, not with an exception)
    on_progress: Callable[[Progress], None] | None = None,
    on_packet: Callable[[Traced], None] | None = None,
    entropy: Entropy = os.urandom,
) -> Report:
    """Do what :func:`discover` does, on the running event loop.  May be cancelled at any time."""
    wanted = _wanted(servers, family, udp=udp, tcp=tcp, lifetime=lifetime, timeout=timeout)
    found = await asyncio.gather(*[_resolve_async(uri) for uri in wanted.servers])
    plans = _plans(wanted, found)
    if not plans:
        return _unreachable(wanted, found)
    probe = Probe(_config(wanted, plans), entropy=entropy)
    collected = _Collector(on_progress)
    driver: aio.Driver[ProbeEvent] = aio.Driver(_tapped(probe, on_packet))
    async with driver:
        probe.start(driver.now())
        driver.flush()
        async for event in driver.events():
            collected(event)
            if collected.finished is not None:
                break
    return _report(plans, collected, found)


def _tapped(probe: Probe, on_packet: Callable[[Traced], None] | None) -> SocketMachine[ProbeEvent]:
    return probe if on_packet is None else Tap(probe, on_packet)


class _Collector:
    """Takes the probe's events."""

    def __init__(self, on_progress: Callable[[Progress], None] | None) -> None:
        self._on_progress = on_progress
        self.finished: Finished | None = None

    def __call__(self, event: ProbeEvent) -> None:
        match event:
            case Progress():
                if self._on_progress is not None:
                    self._on_progress(event)
            case Finished():
                self.finished = event
            case _:
                pass


# Before: names and addresses.


@dataclass(frozen=True, slots=True)
class _Found:
    """A server as it was given, and its addresses or why there are none."""

    uri: StunUri
    targets: tuple[Target, ...] = ()
    problem: str = ""

    @property
    def name(self) -> str:
        """What the user calls it."""
        return str(self.uri).partition(":")[2]


def _resolve(uri: StunUri) -> _Found:
    try:
        return _Found(uri, tuple(resolve(uri, transport=Transport.UDP, behavior=True)))
    except StunError as error:
        return _Found(uri, problem=str(error))


async def _resolve_async(uri: StunUri) -> _Found:
    try:
        targets = await resolve_async(uri, transport=Transport.UDP, behavior=True)
    except StunError as error:
        return _Found(uri, problem=str(error))
    return _Found(uri, tuple(targets))


def _plans(wanted: _Wanted, found: Iterable[_Found]) -> tuple[Plan, ...]:
    plans = []
    for family in wanted.families:
        servers: dict[Address, Server] = {}
        for one in found:
            # One address a server: the tests compare what it sees from the same place.
            for target in one.targets:
                if target.address.is_ipv6 == (family == "ipv6"):
                    servers.setdefault(target.address, Server(target.address, one.name))
                    break
        by_host: dict[str, list[Server]] = {}
        for server in servers.values():
            host = own_address(server.address)
            if host is not None:
                by_host.setdefault(host, []).append(server)
        if by_host:
            # Servers that another interface leads to would show another NAT.
            host, first = next(iter(by_host.items()))
            router = default_router(host) if family == "ipv4" else None
            plans.append(Plan(family, host, tuple(first), router))
    return tuple(plans)


def own_address(remote: Address) -> str | None:
    """Return the address that this host sends from to ``remote``; ``None``: there is no route.

    Connecting a UDP socket sends nothing; it makes the operating system choose.
    """
    kind = socket.AF_INET6 if remote.is_ipv6 else socket.AF_INET
    try:
        with socket.socket(kind, socket.SOCK_DGRAM) as probe:
            host, _, zone = remote.host.partition("%")
            if remote.is_ipv6:
                scope = _scope(zone)
                probe.connect((host, remote.port, 0, scope))
            else:
                probe.connect((host, remote.port))
            own = str(probe.getsockname()[0])
    except OSError:
        return None
    return f"{own}%{zone}" if zone and "%" not in own else own


def default_router(host: str, routes: Path = Path("/proc/net/route")) -> str | None:
    """Return the IPv4 address of the default router, where the system tells it (Linux).

    A host with a public address has no router to ask: what is asked there is a stranger's.
    """
    if is_public(host):
        return None
    try:
        lines = routes.read_text().splitlines()[1:]
    except OSError:
        return None
    for line in lines:
        fields = line.split()
        # Destination and mask 0, and the flag RTF_GATEWAY; addresses are in host byte order.
        if len(fields) > 7 and fields[1] == fields[7] == "00000000" and int(fields[3], 16) & 2:
            octets = int(fields[2], 16).to_bytes(4, sys.byteorder)
            return socket.inet_ntoa(octets)
    return None


def _scope(zone: str) -> int:
    if not zone:
        return 0
    return int(zone) if zone.isdigit() else socket.if_nametoindex(zone)


def _config(wanted: _Wanted, plans: tuple[Plan, ...]) -> ProbeConfig:
    return ProbeConfig(plans, wanted.udp, wanted.tcp, wanted.lifetime, int(wanted.timeout * SECOND))


# After: the report.


def _report(plans: tuple[Plan, ...], collected: _Collector, found: Sequence[_Found]) -> Report:
    assert collected.finished is not None
    seen = collected.finished.observations
    servers = tuple(dict.fromkeys(str(server.address) for plan in plans for server in plan.servers))
    report = assemble([classify(one) for one in seen], servers)
    return replace(
        report,
        seconds=max(one.took for one in seen) / SECOND,
        evidence=(*_unresolved(found), *report.evidence),
    )


def _unresolved(found: Iterable[_Found]) -> list[Evidence]:
    return [
        Evidence("server.resolution", Outcome.NEGATIVE, f"{one.problem}.", server=one.name)
        for one in found
        if one.problem
    ]


def _unreachable(wanted: _Wanted, found: Sequence[_Found]) -> Report:
    """Return the report when no server has an address that there is a route to."""
    evidence = _unresolved(found)
    asked = " or ".join(FAMILY_NAMES[family] for family in wanted.families)
    for one in found:
        if not one.problem:
            shown = ", ".join(str(target.address) for target in one.targets)
            evidence.append(
                Evidence(
                    "server.resolution",
                    Outcome.NEGATIVE,
                    f"There is no way to {one.name} ({shown}) over {asked}: it has no such "
                    "address, or this host has none.",
                    server=one.name,
                )
            )
    return complete(
        Report(
            verdict="",
            family=wanted.families[0],
            udp=UdpReport() if wanted.udp else None,
            tcp=TcpReport() if wanted.tcp else None,
            evidence=tuple(evidence),
            servers=tuple(one.name for one in found),
        )
    )
