"""Relays let peers in early, each host once, and no more hosts than are bearable."""

from __future__ import annotations

import pytest

from ice.base import Base
from ice.candidate import Candidate, CandidateType
from ice.permissions import MOST, Permissions
from stun.sansio import Address, Instant


class Asked(list[tuple[int, Address]]):
    def permit(self, base: Base, remote: Address, now: Instant) -> None:
        self.append((base.id, remote))


def base(number: int, *, relay: str = "turn:a", host: str = "192.0.2.9", stream: int = 0) -> Base:
    return Base(number, stream, 1, "udp", Address(host, 1), relay=relay)


def candidate(host: str, port: int = 1, transport: str = "udp") -> Candidate:
    return Candidate("1", 1, transport, 1, host, port, CandidateType.HOST)


@pytest.mark.parametrize("base_first", [True, False])
def test_a_relay_lets_each_host_in_once(base_first: bool) -> None:
    asked = Asked()
    permissions = Permissions(asked.permit)
    if base_first:
        permissions.local(base(1), 0)
        permissions.local(base(2, relay=""), 0)
    for port in (5, 6, 7):
        permissions.remote(candidate("192.0.2.1", port), 0, 0)
    permissions.remote(candidate("192.0.2.2", 8, "tcp"), 0, 0)
    if not base_first:
        permissions.local(base(1), 0)
        permissions.local(base(2, relay=""), 0)
    assert asked == [(1, Address("192.0.2.1", 5))]


def test_a_relay_that_the_peer_probably_has_too_lets_itself_in() -> None:
    asked = Asked()
    permissions = Permissions(asked.permit, shared=True)
    permissions.local(base(1), 0)
    permissions.local(base(2, relay=""), 0)
    assert asked == [(1, Address("192.0.2.9", 1))]


def test_families_and_streams_are_kept_apart() -> None:
    asked = Asked()
    permissions = Permissions(asked.permit)
    permissions.local(base(1), 0)
    permissions.local(base(2, host="2001:db8::9"), 0)
    permissions.local(base(3, stream=1), 0)
    permissions.remote(candidate("192.0.2.1"), 0, 0)
    permissions.remote(candidate("2001:db8::1"), 0, 0)
    permissions.remote(candidate("192.0.2.1"), 1, 0)
    assert asked == [
        (1, Address("192.0.2.1", 1)),
        (2, Address("2001:db8::1", 1)),
        (3, Address("192.0.2.1", 1)),
    ]


def test_what_a_peer_makes_a_relay_do_is_bounded() -> None:
    asked = Asked()
    permissions = Permissions(asked.permit)
    permissions.local(base(1), 0)
    for number in range(1000):
        permissions.remote(candidate(f"198.51.{number >> 8}.{number & 255}"), 0, 0)
    assert len(asked) == MOST


def test_a_base_that_is_gone_and_another_generation() -> None:
    asked = Asked()
    permissions = Permissions(asked.permit)
    gone, kept = base(1), base(2)
    permissions.local(gone, 0)
    permissions.local(kept, 0)
    permissions.forget(gone)
    permissions.remote(candidate("192.0.2.1"), 0, 0)
    assert asked == [(2, Address("192.0.2.1", 1))]
    permissions.restart()
    permissions.local(kept, 0)
    permissions.remote(candidate("192.0.2.1"), 0, 0)
    assert len(asked) == 2
