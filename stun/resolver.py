"""Asking the name service: SRV and NAPTR with dnspython, addresses as the operating system does.

Addresses come from ``getaddrinfo``, so that hosts files, mDNS and the order of RFC 6724 hold as
they do for every other program; SRV and NAPTR records it cannot ask for.  A name service that
refuses, times out or is not configured has no records, and discovery goes on without them: a
missing SRV record must not keep anybody from a server whose address is known.

dnspython is imported when the first SRV or NAPTR question comes up: most servers are given with a
port and never need it.
"""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from stun.discovery import (
    Answer,
    Kind,
    Naptr,
    Query,
    Record,
    Srv,
    Steps,
    Target,
    Transport,
    run,
    stun_targets,
    turn_targets,
)
from stun.errors import StunError
from stun.sockaddr import from_sockaddr, to_sockaddr
from stun.uri import TurnUri, Uri, parse_server

if TYPE_CHECKING:
    from dns.rdata import Rdata

SERVICE_TIMEOUT = 2.0
"""Seconds for one SRV or NAPTR question.  Some home routers drop types they do not know, and what
follows without an answer is the ordinary address lookup."""

Family = Literal[4, 6] | None
"""Which addresses are wanted; ``None`` for both."""


class ResolutionError(StunError):
    """No address could be found for a server."""


def _steps(
    uri: Uri, *, transport: Transport | None, behavior: bool, supported: Sequence[Transport]
) -> Steps:
    if isinstance(uri, TurnUri):
        return turn_targets(uri, entropy=os.urandom, supported=supported)
    return stun_targets(uri, entropy=os.urandom, transport=transport, behavior=behavior)


_ALL = (Transport.UDP, Transport.TCP, Transport.TLS)


def resolve(
    server: str | Uri,
    *,
    transport: Transport | None = None,
    behavior: bool = False,
    supported: Sequence[Transport] = _ALL,
    family: Family = None,
) -> list[Target]:
    """Return the targets of a server in the order in which they are to be tried.

    ``server``: a URI, or text for :func:`stun.uri.parse_server`.  ``transport`` and ``behavior``
    are for STUN (:func:`stun.discovery.stun_targets`), ``supported`` for TURN
    (:func:`stun.discovery.turn_targets`).  Raises :class:`ResolutionError` when nothing is found,
    :class:`stun.errors.UsageError` when there is nothing to look for.
    """
    uri = parse_server(server) if isinstance(server, str) else server
    steps = _steps(uri, transport=transport, behavior=behavior, supported=supported)
    return _result(uri, run(steps, lambda query: _ask(query, family)), family)


async def resolve_async(
    server: str | Uri,
    *,
    transport: Transport | None = None,
    behavior: bool = False,
    supported: Sequence[Transport] = _ALL,
    family: Family = None,
) -> list[Target]:
    """Do what :func:`resolve` does, without blocking the event loop."""
    uri = parse_server(server) if isinstance(server, str) else server
    steps = _steps(uri, transport=transport, behavior=behavior, supported=supported)
    try:
        query = next(steps)
        while True:
            query = steps.send(await _ask_async(query, family))
    except StopIteration as done:
        return _result(uri, done.value, family)


def _result(uri: Uri, targets: list[Target], family: Family) -> list[Target]:
    wanted = [
        target for target in targets if family is None or target.address.is_ipv6 is (family == 6)
    ]
    if not wanted:
        if targets:
            raise ResolutionError(f"{uri} has no IPv{family} address")
        raise ResolutionError(
            f"{uri} has no address; the name may be misspelt, or DNS may not work here"
        )
    return [_with_zone_as_reported(target) for target in wanted]


def _with_zone_as_reported(target: Target) -> Target:
    """Write the zone as sockets report it, or the source of an answer would be another address.

    RFC 4007 section 11.2 lets people write an interface's number for its name.
    """
    if "%" not in target.address.host:
        return target
    try:
        return replace(target, address=from_sockaddr(to_sockaddr(target.address)))
    except OSError:
        zone = target.address.host.partition("%")[2]
        raise ResolutionError(f"{target.address}: there is no interface {zone!r} here") from None


def _ask(query: Query, family: Family) -> Answer:
    if query.kind is Kind.ADDRESS:
        try:
            found = socket.getaddrinfo(query.name, None, _af(family), socket.SOCK_DGRAM)
        except (OSError, UnicodeError):
            return ()
        return _hosts(found)
    from dns.exception import DNSException
    from dns.resolver import Resolver

    try:
        answer = Resolver().resolve(
            query.name, query.kind.value, lifetime=SERVICE_TIMEOUT, search=False
        )
    except (DNSException, OSError, UnicodeError):
        return ()
    return _records(answer)


async def _ask_async(query: Query, family: Family) -> Answer:
    if query.kind is Kind.ADDRESS:
        return await _ask_in_thread(query, family)
    from dns.asyncresolver import Resolver
    from dns.exception import DNSException

    try:
        answer = await Resolver().resolve(
            query.name, query.kind.value, lifetime=SERVICE_TIMEOUT, search=False
        )
    except (DNSException, OSError, UnicodeError):
        return ()
    return _records(answer)


async def _ask_in_thread(query: Query, family: Family) -> Answer:
    """Ask in a thread that nobody waits for, neither who cancels this nor the end of the program.

    ``getaddrinfo`` cannot be cancelled and may take half a minute to find that no name service
    answers; the threads of ``loop.getaddrinfo`` are joined when the event loop is closed.
    """
    loop = asyncio.get_running_loop()
    answered: asyncio.Future[Answer] = loop.create_future()

    def settle(answer: Answer) -> None:
        if not answered.done():
            answered.set_result(answer)

    def ask() -> None:
        answer = _ask(query, family)
        with suppress(RuntimeError):  # the loop has been closed meanwhile
            loop.call_soon_threadsafe(settle, answer)

    threading.Thread(target=ask, name=f"address of {query.name}", daemon=True).start()
    return await answered


def _af(family: Family) -> socket.AddressFamily:
    return {None: socket.AF_UNSPEC, 4: socket.AF_INET, 6: socket.AF_INET6}[family]


def _hosts(found: Iterable[tuple[Any, ...]]) -> list[str]:
    """Return the hosts of what getaddrinfo found, each once, with their zones."""
    return list(dict.fromkeys(from_sockaddr(entry[4]).host for entry in found))


def _records(answer: Iterable[Rdata]) -> list[Record]:
    """Return dnspython's records as ours."""
    from dns.rdtypes.IN.NAPTR import NAPTR
    from dns.rdtypes.IN.SRV import SRV

    records: list[Record] = []
    for rdata in answer:
        if isinstance(rdata, SRV):
            target = rdata.target.to_text()
            records.append(Srv(rdata.priority, rdata.weight, rdata.port, target))
        elif isinstance(rdata, NAPTR):
            records.append(
                Naptr(
                    rdata.order,
                    rdata.preference,
                    rdata.flags.decode("ascii", "replace"),
                    rdata.service.decode("ascii", "replace"),
                    rdata.regexp.decode("ascii", "replace"),
                    rdata.replacement.to_text(),
                )
            )
    return records
