"""Tries what turnd is about to do, and undoes it: can this place be bound, is a port free there.

A reload that would fail half-way must be refused before it begins; trying is the only way to know.
"""

from __future__ import annotations

import socket
from collections.abc import Callable

from stun.sansio import Address
from stun.sockaddr import cause_of_bind, detail_of, to_sockaddr
from turn.server.config import ListenAt
from turn.server.events import CannotServe

PORTS_TRIED = 64
"""Ports of the relay's range that are tried before it is called full."""


def problem_with_listener(at: ListenAt) -> CannotServe | None:
    """Return why a listener that is not open yet could not be had."""
    kind = socket.SOCK_DGRAM if at.transport.protocol == "udp" else socket.SOCK_STREAM
    error = _bind(kind, at.local)
    if error is None:
        return None
    return CannotServe(at.transport, at.local, cause_of_bind(error), detail_of(error))


def problem_with_relay(host: str) -> OSError | None:
    """Return why nothing can be relayed from ``host``."""
    return _bind(socket.SOCK_DGRAM, Address(host, 0))


def no_free_port(host: str, ports: tuple[int, int], choose: Callable[[int], int]) -> bool:
    """Whether no port of a range seems to be free at ``host``.

    ``choose(n)`` gives a number from 0 up to ``n``, at random.  A wide range is only sampled.
    """
    low, high = ports
    size = high - low + 1
    tried = range(size) if size <= PORTS_TRIED else (choose(size) for _ in range(PORTS_TRIED))
    return all(
        _bind(socket.SOCK_DGRAM, Address(host, low + number)) is not None for number in tried
    )


def _bind(kind: socket.SocketKind, local: Address) -> OSError | None:
    family = socket.AF_INET6 if local.is_ipv6 else socket.AF_INET
    try:
        with socket.socket(family, kind) as probe:
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            if kind == socket.SOCK_STREAM:
                # What still waits in TIME_WAIT is no reason not to listen.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(to_sockaddr(local))
    except OSError as error:
        return error
    return None
