"""``turnd check``: a running TURN server examined from outside, as its clients see it.

:func:`check_uri` needs nothing but a URI and a credential, so it works from any machine and for any
TURN server: it gets a relayed address, sends datagrams between two of them, tries to reach what no
relay should reach, and verifies the certificate chain as a browser would.  :func:`check_status`
reads what turnd says of itself at its admin socket.  Both give :class:`Finding` values, each with
what to do about it; rendering is elsewhere.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from stun.discovery import Target, Transport
from stun.errors import StunError
from stun.resolver import resolve_async
from stun.sansio import Address
from stun.tls import ClientTls
from stun.uri import TurnUri
from turn.client.aio import Relay, connect
from turn.client.errors import (
    Forbidden,
    InsufficientCapacity,
    NotAuthenticated,
    QuotaReached,
    ServerUnreachable,
)
from turn.client.setup import FOR_UDP, as_uri
from turn.server.policy import PeerPolicy

PATIENCE: Final = 10.0
"""Seconds that one step may take."""
ROUNDS: Final = 10
"""Datagrams that are sent through the relay and back."""
SOON: Final = 14 * 86400
"""Seconds before a certificate expires when it becomes a warning."""
FEW_PORTS: Final = 100
WITHOUT_DTLS: Final = tuple(one for one in FOR_UDP if one is not Transport.DTLS)
WANTED_BUFFER: Final = 4 << 20
"""Octets of receive buffer that a listener asks for."""
RMEM_MAX: Final = Path("/proc/sys/net/core/rmem_max")

CLOSED: Final[Mapping[str, str]] = {
    "127.0.0.1": "services of the server's own machine",
    "10.0.0.1": "the private network around the server",
    "192.168.0.1": "the private network around the server",
    "169.254.169.254": "the cloud provider's metadata, with its credentials",
}
"""What a public relay must not reach, and what stands behind it."""


class Level(StrEnum):
    """How bad a finding is."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Finding:
    """What was looked at, what was seen, and what to do about it."""

    level: Level
    subject: str
    text: str
    fix: str = ""


@dataclass(frozen=True, slots=True)
class Login:
    """A credential."""

    username: str
    password: str


# From outside. ------------------------------------------------------------------------------------


async def check_uri(uri: str, login: Login, *, verify: bool = True) -> AsyncIterator[Finding]:
    """Examine the server behind a ``turn:`` or ``turns:`` URI.

    Without ``verify`` a certificate that does not hold is one finding and no end of the check.
    """
    parsed = as_uri(uri)
    try:
        async with asyncio.timeout(PATIENCE):
            # DTLS where the URI asks for it: browsers do not speak it to TURN servers, so one that
            # has none is not at fault.
            supported = FOR_UDP if parsed.transport else WITHOUT_DTLS
            targets = await resolve_async(parsed, supported=supported)
    except TimeoutError:
        yield Finding(
            Level.FAILED, uri, "its name is not resolved in time", "check this machine's resolver"
        )
        return
    except StunError as error:
        yield Finding(Level.FAILED, uri, str(error), "check the name in the DNS")
        return
    for target in targets:
        async for finding in _check_target(target, parsed, login, verify=verify):
            yield finding


async def _check_target(
    target: Target, uri: TurnUri, login: Login, *, verify: bool
) -> AsyncIterator[Finding]:
    subject = f"{target.transport.value} {target.address}"
    if target.transport is Transport.TLS:
        yield await asyncio.to_thread(check_chain, target, uri.host)
    begin = time.monotonic()
    try:
        async with connect(
            target,
            username=login.username,
            password=login.password,
            timeout=PATIENCE,
            tls=None if verify else ClientTls(verify=False),
        ) as relay:
            spent = (time.monotonic() - begin) * 1000
            yield Finding(
                Level.OK,
                subject,
                f"an allocation in {spent:.0f} ms: {relay.relayed_address}; "
                f"this machine is seen as {relay.mapped_address}",
            )
            for finding in _relayed_address(relay, subject):
                yield finding
            yield await _relay_to_each_other(target, relay, login, subject, verify=verify)
            async for finding in _closed_to(relay, subject):
                yield finding
    except StunError as error:
        yield Finding(Level.FAILED, subject, str(error), remedy(error, target))


def remedy(error: StunError, target: Target) -> str:
    """Say what to do when there is no allocation."""
    protocol = target.transport.protocol.upper()
    match error:
        case ServerUnreachable():
            return (
                f"is turnd running, and does it listen there? If so, open {protocol} port "
                f"{target.address.port} in the firewall of the machine and of its provider"
            )
        case NotAuthenticated():
            return "check the user, the password and, for a time-limited credential, its time"
        case QuotaReached():
            return "the user has all the allocations that [limits] allows; end some or allow more"
        case InsufficientCapacity():
            return "no relay port is free, or the relay address is not local: see turnd's log"
        case _:
            return ""


def _relayed_address(relay: Relay, subject: str) -> Iterator[Finding]:
    for address in relay.relayed_addresses:
        verdict = PeerPolicy().check(address.host)
        if not verdict.allowed:
            yield Finding(
                Level.WARNING,
                subject,
                f"the relayed address {address} is not reachable from the internet: {verdict.rule}",
                "give the server's public address: --relay-address LOCAL=PUBLIC",
            )


async def _relay_to_each_other(
    target: Target, relay: Relay, login: Login, subject: str, *, verify: bool
) -> Finding:
    """Send datagrams from one allocation to another and back."""
    try:
        async with connect(
            target,
            username=login.username,
            password=login.password,
            timeout=PATIENCE,
            tls=None if verify else ClientTls(verify=False),
        ) as other:
            there, here = other.relayed_address, relay.relayed_address
            await asyncio.gather(relay.permit(there), other.permit(here))
            returned, spent = await _exchange(relay, there, other, here)
    except Forbidden:
        return Finding(
            Level.WARNING,
            subject,
            "the server does not relay between two of its own allocations",
            "two clients that both have nothing but the relay cannot reach each other",
        )
    except StunError as error:
        return Finding(Level.FAILED, subject, f"no second allocation: {error}")
    if returned == ROUNDS:
        return Finding(
            Level.OK,
            subject,
            f"all of {ROUNDS} datagrams came back through two allocations, {spent:.1f} ms each",
        )
    if returned:
        return Finding(
            Level.WARNING, subject, f"{ROUNDS - returned} of {ROUNDS} datagrams were lost"
        )
    return Finding(
        Level.FAILED,
        subject,
        f"nothing comes through the relay from {here} to {there}",
        "open the UDP relay ports (49152 to 65535 unless configured) in the firewall; behind a "
        "one-to-one NAT check --relay-address LOCAL=PUBLIC",
    )


async def _exchange(relay: Relay, there: Address, other: Relay, here: Address) -> tuple[int, float]:
    """Return how many datagrams came back, and the median time in milliseconds."""
    times: list[float] = []
    for number in range(ROUNDS):
        ping = b"turnd check %d" % number
        begin = time.monotonic()
        relay.send(ping, there)
        try:
            async with asyncio.timeout(1.0):
                while (await other.recv())[0] != ping:
                    pass
                other.send(ping, here)
                while (await relay.recv())[0] != ping:
                    pass
        except TimeoutError:
            continue
        times.append((time.monotonic() - begin) * 1000)
    times.sort()
    return len(times), times[len(times) // 2] if times else 0.0


async def _closed_to(relay: Relay, subject: str) -> AsyncIterator[Finding]:
    """Try permissions for what a relay must not reach."""
    opened: dict[str, str] = {}
    family = relay.relayed_address.is_ipv6
    for host, what in CLOSED.items():
        if host in {address.host for address in relay.relayed_addresses}:
            continue  # permitted for the sake of other clients' relayed addresses, and for no more
        peer = f"::ffff:{host}" if family else host
        try:
            await relay.permit(peer)
        except Forbidden:
            continue
        except StunError:
            continue  # the family does not fit, or the like: not open either
        opened[peer] = what
    if not opened:
        yield Finding(Level.OK, subject, "closed to loopback, private and metadata addresses")
    for peer, what in opened.items():
        yield Finding(
            Level.WARNING,
            subject,
            f"its users may send to {peer}: {what}",
            "unless this is meant, take the allow rule away (turnd explain-peer names it)",
        )


def check_chain(target: Target, host: str) -> Finding:
    """Verify the certificate chain of a TLS port as a browser does, with the system's authorities.

    Blocks; to be run in a thread.
    """
    subject = f"TLS {target.address}"
    try:
        with (
            socket.create_connection(target.address, PATIENCE) as plain,
            ssl.create_default_context().wrap_socket(plain, server_hostname=host) as tls,
        ):
            certificate = tls.getpeercert() or {}
            left = ssl.cert_time_to_seconds(str(certificate["notAfter"])) - time.time()
            if left < SOON:
                return Finding(
                    Level.WARNING,
                    subject,
                    f"the certificate expires in {left / 86400:.0f} days",
                    "renew it; turnd takes the new file by itself",
                )
            version = tls.version()
            return Finding(
                Level.OK,
                subject,
                f"{version}, the chain holds for {host}, {left / 86400:.0f} days left",
            )
    except ssl.SSLCertVerificationError as error:
        text, fix = _CHAIN.get(error.verify_code, (error.verify_message, ""))
        return Finding(Level.FAILED, subject, f"{text} ({host})", fix)
    except ssl.SSLError as error:
        return Finding(
            Level.FAILED, subject, f"the TLS handshake fails: {error.reason}", "does it speak TLS?"
        )
    except OSError as error:
        return Finding(
            Level.FAILED,
            subject,
            f"no connection: {error.strerror or error}",
            f"open TCP port {target.address.port} in the firewall",
        )


_CHAIN: Final[Mapping[int, tuple[str, str]]] = {
    # Numbers of X509_verify_cert_error_string(3).
    10: ("the certificate has expired", "renew it; turnd takes the new file by itself"),
    18: (
        "the certificate is self-signed: browsers refuse it without a word",
        "get one from an authority, for example with certbot",
    ),
    19: (
        "the chain ends in an authority that this machine does not trust",
        "get a certificate of a public authority, or give clients this one's",
    ),
    20: (
        "the chain is incomplete: browsers may refuse it without a word",
        "serve the whole chain (fullchain.pem, not cert.pem)",
    ),
    21: (
        "the chain is incomplete: browsers may refuse it without a word",
        "serve the whole chain (fullchain.pem, not cert.pem)",
    ),
    62: (
        "the certificate is for another name",
        "use a name of the certificate in the turns: URI, or get one for this name",
    ),
    64: (
        "the certificate is not for this address",
        "use the name of the certificate in the turns: URI instead of the address",
    ),
}


# From inside. -------------------------------------------------------------------------------------


def check_status(status: Mapping[str, Any], *, now: float) -> Iterator[Finding]:
    """Examine what turnd says of itself (``status`` at its admin socket); ``now`` since 1970."""
    serving = [f"{one['transport']} {one['address']}" for one in status["serving"]]
    if status["draining"]:
        yield Finding(
            Level.WARNING, "turnd", "it is draining: no new allocations", "restart it when it ends"
        )
    yield Finding(
        Level.OK if serving else Level.FAILED,
        "turnd",
        f"version {status['version']}, {status['sessions']} allocations, "
        f"listening at {', '.join(serving) or 'nothing'}",
    )
    for warning in status["warnings"]:
        yield Finding(Level.WARNING, "turnd", warning)
    yield from _check_dataplane(status.get("dataplane"))
    yield from _check_workers(status.get("workers") or (), status.get("replaced", 0))
    yield from _check_rendezvous(status.get("rendezvous"))
    yield from _check_certificate(status["certificate"], now)
    low, high = status["ports"]
    if high - low + 1 < FEW_PORTS:
        yield Finding(
            Level.WARNING,
            "relay ports",
            f"{high - low + 1} ports: so many allocations fit on one relay address at most",
            "widen --relay-ports",
        )
    yield from _kernel_limits()


def _check_workers(workers: Sequence[Mapping[str, Any]], replaced: int) -> Iterator[Finding]:
    missing = [str(one["worker"]) for one in workers if not one["serves"]]
    if missing:
        yield Finding(
            Level.WARNING,
            "workers",
            f"{len(missing)} of {len(workers)} do not serve at the moment: {', '.join(missing)}",
            "the log says why one ended; another takes its place by itself",
        )
    elif workers:
        again = f", {replaced} replaced since the start" if replaced else ""
        share = ", ".join(str(one["sessions"]) for one in workers)
        yield Finding(Level.OK, "workers", f"all {len(workers)} serve, allocations {share}{again}")


def _check_dataplane(dataplane: Mapping[str, Any] | None) -> Iterator[Finding]:
    if dataplane is None:  # of a turnd that does not know of any but one
        return
    interfaces = ", ".join(dataplane["interfaces"])
    if not dataplane["kernel"]:
        sought = dataplane["wanted"] != "sockets"
        yield Finding(
            Level.WARNING if sought else Level.OK,
            "data plane",
            f"it relays with sockets: {dataplane['why']}",
            'when that is mended: turnd reload; if it is meant: dataplane = "sockets"'
            if sought
            else "",
        )
    elif not interfaces:
        yield Finding(
            Level.WARNING,
            "data plane",
            "the kernel is to relay, and no interface is there that it could relay at",
            "it takes Ethernet-like interfaces that are up; see `ip -brief link`",
        )
    else:
        yield Finding(Level.OK, "data plane", f"it relays in the kernel, at {interfaces}")
    for refusal in dataplane["refused"]:
        yield Finding(
            Level.WARNING,
            "data plane",
            f"what comes in by {refusal.replace(': ', ' is relayed with sockets: ', 1)}",
            "`bpftool net` lists the programs that are on interfaces",
        )
    for why, count in dataplane["left"].items():
        yield Finding(
            Level.WARNING,
            "data plane",
            f"{count} channel{'s' * (count != 1)} so far left to the sockets: {why}",
        )


def _check_rendezvous(rendezvous: Mapping[str, Any] | None) -> Iterator[Finding]:
    if rendezvous is None:
        return
    yield Finding(
        Level.OK if rendezvous["serving"] else Level.FAILED,
        "rendezvous",
        f"{rendezvous['connected']} clients, {rendezvous['waiting']} of them wait, "
        f"{', '.join(rendezvous['places'])} "
        f"(listening at {', '.join(rendezvous['serving']) or 'nothing'})",
        "" if rendezvous["serving"] else "see turnd's log for why its listeners are gone",
    )


def _check_certificate(certificate: Mapping[str, Any] | None, now: float) -> Iterator[Finding]:
    if certificate is None:
        yield Finding(
            Level.WARNING,
            "certificate",
            "there is none, so no turns: (clients behind strict firewalls need it)",
            "give --cert and --key, and --listen tls://0.0.0.0:443 where nothing else has port 443",
        )
        return
    left = (certificate["not_after"] - now) / 86400
    level = Level.FAILED if left <= 0 else Level.WARNING if left * 86400 < SOON else Level.OK
    yield Finding(
        level,
        "certificate",
        f"{certificate['path']} for {', '.join(certificate['names']) or 'no name'}, "
        + (f"{left:.0f} days left" if left > 0 else "expired"),
        "" if level is Level.OK else "renew it; turnd takes the new file by itself",
    )


def _kernel_limits() -> Iterator[Finding]:
    try:
        most = int(RMEM_MAX.read_text())
    except (OSError, ValueError):
        return  # another system, or a container that hides it
    if most < WANTED_BUFFER // 8:
        yield Finding(
            Level.WARNING,
            "kernel",
            f"receive buffers are limited to {most >> 10} KiB: bursts are lost under load",
            f"sysctl -w net.core.rmem_max={WANTED_BUFFER}",
        )


def worst(findings: Sequence[Finding]) -> Level:
    """Return the level of the worst finding."""
    order = [Level.OK, Level.WARNING, Level.FAILED]
    return max((finding.level for finding in findings), key=order.index, default=Level.OK)
