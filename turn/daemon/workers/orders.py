"""What the supervisor tells a worker to be, and what each worker's part of the whole is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stun.errors import DropReason
from turn.daemon.addresses import LocalAddress
from turn.daemon.config import ConfigError
from turn.daemon.plan import Credential
from turn.daemon.settings import Admin, MetricsTable, Settings
from turn.daemon.settings_values import Hidden
from turn.meter import Usage
from turn.server.metrics import Metrics

SHARED_OUT = (
    "requests_per_second_per_client",
    "unverified_burst",
    "unverified_refill",
)
"""Limits that nothing is shared for: each worker has an Nth."""


@dataclass(frozen=True, slots=True)
class Birth:
    """What does not change in a worker's life."""

    number: int
    workers: int
    slots: int
    key: bytes
    version: str
    watch: float


@dataclass(frozen=True, slots=True)
class Orders:
    """What may change."""

    settings: Settings
    addresses: tuple[LocalAddress, ...]
    places: Mapping[str, int]
    """Of hosts that are relayed from: :class:`turn.daemon.workers.openings.Openings`."""
    nonces: tuple[bytes, ...]
    elsewhere: Mapping[str, int]
    draining: bool
    fleet: bool
    """Whether anybody else is told what users have."""


@dataclass(slots=True)
class Figures:
    """What a worker counts, or all of them together: a part of :class:`.metrics.Source`."""

    metrics: Metrics
    usage: Usage
    drops: Mapping[DropReason, int]
    transport: Mapping[str, int]
    lookups: Mapping[str, int] | None
    accounts: Mapping[str, int]
    """Allocations by account."""


def has_fleet(settings: Settings) -> bool:
    """Whether there may be other servers, which are told what users have."""
    url = settings.auth.store
    if url is None:
        return False
    from turn.users.base import Where, where

    return where(url) is Where.REDIS


def share_of_ports(ports: tuple[int, int], number: int, workers: int) -> tuple[int, int]:
    """Return the ports that worker ``number`` relays from.

    Shares begin with an even port, so that no pair for EVEN-PORT is parted.  Raises
    :class:`turn.daemon.config.ConfigError` where there are too few.
    """
    low, high = ports
    pairs = (high + 1) // 2 - (low + 1) // 2
    if pairs < workers:
        raise ConfigError(
            [
                f"relay.ports: {low}-{high} is too few for {workers} workers, of which each needs "
                "a pair of an even port and the next"
            ]
        )
    even = low + low % 2
    first = even + 2 * (pairs * (number - 1) // workers)
    last = even + 2 * (pairs * number // workers) - 1
    return (low if number == 1 else first, high if number == workers else last)


def settings_of(
    settings: Settings,
    number: int,
    workers: int,
    *,
    users: Sequence[Credential],
    secret: str,
    nonce: bytes,
) -> Settings:
    """Return the settings of one worker.

    ``users`` are those made up, ``secret`` the one of a rendezvous, ``nonce`` that of nonces: what
    one process would make up for itself all of them must have alike.
    """
    limits = settings.limits.model_copy(  # type: ignore[attr-defined]  # a model made at run time
        update={
            name: max(getattr(settings.limits, name) // workers, 1)
            for name in SHARED_OUT
            if getattr(settings.limits, name)
        }
    )
    auth = settings.auth
    secrets = auth.secrets
    if settings.rendezvous is not None and not secrets:
        secrets = (Hidden(secret),)
    made_up = {one.username: Hidden(one.password) for one in users}
    return settings.model_copy(
        update={
            "workers": 1,
            "dataplane": "sockets",
            "limits": limits,
            "relay": settings.relay.model_copy(
                update={"ports": share_of_ports(settings.relay.ports, number, workers)}
            ),
            "auth": auth.model_copy(
                update={
                    "users": auth.users | made_up,
                    "secrets": secrets,
                    "nonce_secret": Hidden(nonce.hex()),
                }
            ),
            "metrics": MetricsTable(),
            "admin": Admin(socket=False),
            "rendezvous": None,
        }
    )
