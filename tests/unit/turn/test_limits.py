"""Descriptors: as many as may be had, and a warning where they run out first."""

from __future__ import annotations

import resource

from stun.discovery import Transport
from stun.sansio import Address
from turn.daemon.limits import SPARE, descriptor_warning, raise_descriptor_limit, wanted_descriptors
from turn.server.config import Limits, ListenAt, RelayAddress, ServerConfig
from turn.server.policy import PeerPolicy


def config(low: int, high: int, limits: Limits) -> ServerConfig:
    return ServerConfig(
        (ListenAt(Transport.UDP, Address("127.0.0.1", 3478)),),
        (RelayAddress("127.0.0.1", "127.0.0.1"), RelayAddress("::1", "::1")),
        "realm",
        PeerPolicy(),
        ports=(low, high),
        limits=limits,
    )


def with_busy_flows(count: int) -> int:
    """Return how many descriptors there must be for ``count`` to be left for others."""
    return next(whole for whole in range(count, 2 * count) if whole - whole // 4 >= count)


def test_what_is_wanted_is_bounded_by_ports_and_by_limits() -> None:
    limits = Limits(allocations=1000, connections=100)
    assert wanted_descriptors(config(50000, 50099, limits)) == with_busy_flows(
        1 + 200 + 100 + SPARE
    )
    assert wanted_descriptors(config(49152, 65535, limits)) == with_busy_flows(
        1 + 1000 + 100 + SPARE
    )
    unlimited = Limits(allocations=0, connections=100)
    assert wanted_descriptors(config(50000, 50099, unlimited)) == with_busy_flows(
        1 + 200 + 100 + SPARE
    )


def test_a_limit_that_is_too_low_is_told() -> None:
    made = config(50000, 50099, Limits(connections=100))
    wanted = wanted_descriptors(made)
    assert descriptor_warning(made, wanted) is None
    warning = descriptor_warning(made, wanted - 1)
    assert warning is not None
    assert f"may open {wanted - 1} descriptors" in warning
    assert "LimitNOFILE=" in warning


def test_the_soft_limit_is_raised() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 256), hard))
        limit = raise_descriptor_limit()
        assert limit == resource.getrlimit(resource.RLIMIT_NOFILE)[0] == hard
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
