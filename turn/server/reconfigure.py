"""A running server gets another configuration: what changes, and what has to end for it."""

from __future__ import annotations

from dataclasses import fields

from stun.sansio import SECOND, Instant
from turn.server.config import Limits, RelayAddress, ServerConfig
from turn.server.core import Core
from turn.server.events import EndReason
from turn.server.lifetimes import Lifetimes
from turn.server.ports import PortRange


def reconfigure(core: Core, lifetimes: Lifetimes, config: ServerConfig, now: Instant) -> list[str]:
    """Go on by ``config``, save for listeners and users; return what changed, in words."""
    before = core.config
    core.apply(config)
    words = []
    if config.ports != before.ports:
        words.append(f"relay ports are {config.ports[0]} to {config.ports[1]}")
        core.ports = PortRange(*config.ports, core.entropy)
        for relay in core.relays.values():
            core.ports.take(relay.place.local, relay.local.port, now)
    if config.limits != before.limits:
        core.quotas.reconfigure(config.limits)
        words += _limits(before.limits, config.limits)
    if config.relays != before.relays:
        words.append(f"relaying from {', '.join(map(_relay, config.relays))}")
    words += _values(before, config)
    if config.policy != before.policy:
        words.append("the peer policy changed")
        words += _withdraw(core, lifetimes, now)
    if before.tcp_relay and not config.tcp_relay:
        words.append("TCP allocations are off")
        ended = [allocation for allocation in core.sessions.values() if allocation.tcp]
        for allocation in ended:
            lifetimes.end(allocation, EndReason.POLICY, now)
        if ended:
            words.append(f"{_count(len(ended), 'TCP allocation')} ended")
    return words


def _withdraw(core: Core, lifetimes: Lifetimes, now: Instant) -> list[str]:
    """Take back what the policy in force does not allow any more."""
    permissions = 0
    for allocation in core.sessions.values():
        for host in list(allocation.permissions):
            if not core.verdict_on_host(host).allowed:
                lifetimes.withdraw(allocation, host)
                permissions += 1
    closed = core.streams.recheck(now) if core.streams is not None else 0
    words = []
    if permissions:
        words.append(f"{_count(permissions, 'permission')} withdrawn that it does not allow")
    if closed:
        connections = _count(closed, "TCP connection")
        words.append(f"{connections} with peers closed that it does not allow")
    return words


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _limits(before: Limits, after: Limits) -> list[str]:
    return [
        f"limit {field.name} is {getattr(after, field.name)} (was {getattr(before, field.name)})"
        for field in fields(Limits)
        if getattr(before, field.name) != getattr(after, field.name)
    ]


def _values(before: ServerConfig, after: ServerConfig) -> list[str]:
    words = []
    if before.realm != after.realm:
        words.append(f"the realm is {after.realm!r}: clients authenticate anew")
    if before.alternates != after.alternates:
        names = ", ".join(map(str, after.alternates)) or "nowhere"
        words.append(f"new clients are sent to {names}")
    for name in ("default_lifetime", "max_lifetime", "idle"):
        value = getattr(after, name)
        if value != getattr(before, name):
            words.append(f"{name} is {value // SECOND} s")
    for name in ("software", "fingerprint", "mobility", "anonymous", "sha256", "offload"):
        value = getattr(after, name)
        if value != getattr(before, name):
            words.append(f"{name} is {value!r}")
    if not before.tcp_relay and after.tcp_relay:
        words.append("TCP allocations are on")
    return words


def _relay(relay: RelayAddress) -> str:
    same = relay.local == relay.advertised
    return relay.local if same else f"{relay.local} (advertised as {relay.advertised})"
