"""``natcheck serve``: a STUN server with everything that NAT behaviour tests need.

Two addresses of one family make a server for RFC 5780; one makes a server for Binding only.  IPv4
and IPv6 may be served at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import signal
import ssl
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TextIO

from stun.aio import Driver
from stun.discovery import Transport
from stun.errors import UsageError
from stun.sansio import Address, Cause
from stun.server import (
    CannotServe,
    Server,
    ServerConfig,
    ServerEvent,
    Serving,
    Site,
    Started,
)

EXIT_SERVED = 0
EXIT_NOT_AVAILABLE = 1
EXIT_USAGE = 2


def run(
    addresses: Sequence[str],
    port: int = 3478,
    alternate_port: int | None = None,
    *,
    advertise: Mapping[str, str] | None = None,
    software: str | None = None,
    connect_back: bool = True,
    certificate: Path | None = None,
    private_key: Path | None = None,
    tls_port: int = 5349,
    out: TextIO | None = None,
    err: TextIO | None = None,
) -> int:
    """Serve on ``addresses`` until SIGINT or SIGTERM; return the exit status.

    ``addresses``: numeric, one or two of a family, the primary one first; none means every local
    address.  ``alternate_port`` is ``port`` + 1 by default and matters with two addresses.
    ``advertise`` maps local addresses to those that clients see.  With ``certificate`` (PEM, the
    key in the same file or in ``private_key``) TLS is served on ``tls_port`` and the port after it.

    Prints to ``out`` where it listens and, at the end, what it counted; to ``err`` what is wrong
    and what to do about it.  Status 0: served; 1: an address or a port could not be had; 2: wrong
    usage.
    """
    out, err = out or sys.stdout, err or sys.stderr
    try:
        config = _config(
            addresses,
            port,
            port + 1 if alternate_port is None else alternate_port,
            advertise=advertise or {},
            software=software,
            connect_back=connect_back,
            tls_port=tls_port if certificate else None,
        )
        tls = _certificates(config, certificate, private_key)
        server = Server(config, entropy=os.urandom)
    except UsageError as error:
        print(f"natcheck serve: {error}", file=err)
        return EXIT_USAGE
    with contextlib.suppress(KeyboardInterrupt):
        return asyncio.run(_serve(server, config, tls, out, err))
    return EXIT_SERVED


def _config(
    addresses: Sequence[str],
    port: int,
    alternate_port: int,
    *,
    advertise: Mapping[str, str],
    software: str | None,
    connect_back: bool,
    tls_port: int | None,
) -> ServerConfig:
    hosts = [_host(text) for text in addresses]
    if len(set(hosts)) != len(hosts):
        raise UsageError("an address is given twice")
    for number in (port, alternate_port):
        if not 0 < number < 65536:
            raise UsageError(f"{number} is not a port: ports are 1 to 65535")
    if port == alternate_port:
        raise UsageError(f"the two ports must differ, both are {port}")
    if not hosts:
        hosts = ["0.0.0.0", *(["::"] if _has_ipv6() else [])]  # noqa: S104  (it was asked for)
    sites = [
        site
        for is_ipv6 in (False, True)
        for site in _site([h for h in hosts if (":" in h) == is_ipv6], port, alternate_port)
    ]
    return ServerConfig(
        sites[0].primary,
        sites[0].alternate,
        more=tuple(sites[1:]),
        advertised={_host(local): _host(seen) for local, seen in advertise.items()},
        software=software,
        connect_back=connect_back,
        tls_ports=None if tls_port is None else (tls_port, tls_port + 1),
    )


def _site(hosts: list[str], port: int, alternate_port: int) -> Iterable[Site]:
    match hosts:
        case []:
            return
        case [only]:
            yield Site(Address(only, port))
        case [first, second]:
            if {"0.0.0.0", "::"} & set(hosts):  # noqa: S104  (a comparison)
                raise UsageError(
                    "a second address is of no use beside one that means every address"
                )
            yield Site(Address(first, port), Address(second, alternate_port))
        case _:
            raise UsageError(
                f"{len(hosts)} addresses of one family ({', '.join(hosts)}): give one, or two for "
                "the tests of RFC 5780"
            )


def _host(text: str) -> str:
    bare = text.strip().removeprefix("[").removesuffix("]")
    host, _, zone = bare.partition("%")
    try:
        numeric = str(ipaddress.ip_address(host))
    except ValueError:
        raise UsageError(
            f"{text!r} is not a numeric IPv4 or IPv6 address; ports go into --port"
        ) from None
    return f"{numeric}%{zone}" if zone else numeric


def _has_ipv6() -> bool:
    return Path("/proc/net/if_inet6").exists() or sys.platform != "linux"


def _certificates(
    config: ServerConfig, certificate: Path | None, private_key: Path | None
) -> dict[int, ssl.SSLContext]:
    if config.tls_ports is None or certificate is None:
        return {}
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certificate, private_key)
    except (OSError, ssl.SSLError) as error:
        raise UsageError(
            f"cannot use the certificate {certificate}: {error}; it must be PEM, with its private "
            "key in the same file or in one of its own"
        ) from None
    return dict.fromkeys(config.tls_ports, context)


async def _serve(
    server: Server, config: ServerConfig, tls: dict[int, ssl.SSLContext], out: TextIO, err: TextIO
) -> int:
    failures: list[CannotServe] = []
    listening: list[Serving] = []

    def on_event(event: ServerEvent) -> None:
        match event:
            case Serving():
                listening.append(event)
            case CannotServe():
                failures.append(event)
            case Started() if failures:
                driver.close()
            case Started():
                _announce(config, listening, out)

    driver: Driver[ServerEvent] = Driver(server, on_event=on_event, tls_ports=tls)
    loop = asyncio.get_running_loop()
    for name in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
            # Not every platform has it, and only the main thread may; there, cancelling ends this.
            loop.add_signal_handler(name, driver.close)
    async with driver:
        server.start(driver.now())
        driver.flush()
        await driver.run()
        counters = {**server.counters, **driver.counters}
    if failures:
        for line in dict.fromkeys(_advice(failure) for failure in failures):
            print(f"natcheck serve: {line}", file=err)
        return EXIT_NOT_AVAILABLE
    for what, times in counters.items():
        if times:
            print(f"{times:>12,}  {what}", file=out)
    return EXIT_SERVED


def _announce(config: ServerConfig, listening: list[Serving], out: TextIO) -> None:
    for transport in Transport:
        places = [str(place.local) for place in listening if place.transport is transport]
        if places:
            print(f"serving STUN over {transport} at {', '.join(places)}", file=out)
    for site in config.sites:
        if site.alternate is None:
            family = "IPv6" if site.primary.is_ipv6 else "IPv4"
            print(
                f"{family} has one address: clients learn their mapped address, but not how their "
                "NAT maps and filters; a second --address gives that",
                file=out,
            )
    out.flush()


def _advice(failure: CannotServe) -> str:
    where, transport = failure.local, failure.transport
    match failure.cause:
        case Cause.ADDRESS_NOT_AVAILABLE:
            return (
                f"{where.host} is not an address of this machine; `ip address` lists those that "
                "are. Behind a one-to-one NAT, give the local address here and the public one as "
                "the address to advertise"
            )
        case Cause.ADDRESS_IN_USE:
            kind = "udp" if transport is Transport.UDP else "tcp"
            return (
                f"{transport} port {where.port} at {where.host} is in use; "
                f"`ss -lpn --{kind} sport = :{where.port}` names the program. Stop it, or choose "
                "another --port"
            )
        case Cause.NOT_PERMITTED:
            return (
                f"not permitted to bind {where}; ports below 1024 need root or "
                "CAP_NET_BIND_SERVICE, STUN's own port 3478 does not"
            )
        case _:
            return f"cannot listen at {where} over {transport}: {failure.detail or failure.cause}"
