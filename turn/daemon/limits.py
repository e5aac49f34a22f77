"""What the process may have: descriptors, and how many the configuration may come to need; time."""

from __future__ import annotations

import gc
import resource

from turn.dataplane.flows import BUSY_SHARE
from turn.server.config import ServerConfig

SPARE = 64
"""Descriptors for the log, the admin socket, metrics, databases and the event loop."""


def rarely_collect_garbage() -> None:
    """Have the collector look at what is made from now on, and not for every 700 new objects.

    Allocations live for minutes: with the usual threshold tens of thousands of them are gone over
    again and again, for a tenth of the time that making one takes.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def raise_descriptor_limit() -> int:
    """Raise the soft limit of open descriptors to the hard one; return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError):
            # A hard limit of "unlimited" is more than some kernels let a process ask for.
            return soft
    return hard


def wanted_descriptors(config: ServerConfig) -> int:
    """Return how many descriptors the server has open when everything it allows is in use.

    Busy flows have sockets of their own, as many as their share of all allows.
    """
    low, high = config.ports
    ports = (high - low + 1) * len(config.relays)
    allocations = min(config.limits.allocations or ports, ports)
    connections = config.limits.connections
    wanted = len(config.listeners) + allocations + connections + SPARE
    return wanted + (wanted - 1) // (BUSY_SHARE - 1)


def descriptor_warning(config: ServerConfig, limit: int) -> str | None:
    """Say that descriptors run out before allocations do, if they do."""
    wanted = wanted_descriptors(config)
    if wanted <= limit:
        return None
    return (
        f"this process may open {limit} descriptors, and with every allocation and connection in "
        f"use it needs {wanted}; raise it (LimitNOFILE= of systemd, `ulimit -Hn`) or lower "
        "[limits] allocations and connections"
    )
