"""A step as an agent takes it: its configuration, the ports to foretell, the spread to order.

    config = config_for(step, transport, base)
    agent = ice.Agent(config=config, ...)
    ...                                         # gathered; both sides begin
    agent.predict(ports=ports_for(step, transport, seen, path))
    ...                                         # tell that there are no more candidates
    order = spread_for(step, transport)
    if order is not None:
        await asyncio.sleep(step.mine.after)
        agent.spread(order)

Every attempt is a new agent, so that the ports it sees are the latest that its NAT gave out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from ipaddress import ip_address
from typing import Final

from ice.candidate import Candidate, CandidateType, TcpType
from ice.config import Config, Tell
from ice.predict.ports import POOL, advance, latest
from ice.predict.steps import Step, Strategy
from ice.predict.summary import PathSummary, Transport
from ice.spread.order import Role, Spread
from stun.sansio import MILLISECOND, SECOND, Address

QUICK: Final = 5 * MILLISECOND
"""Between checks where ports are predicted: RFC 8445 section 14.2 allows no less."""
_GUESSING: Final = (Strategy.PREDICT, Strategy.BIRTHDAY_SOCKETS, Strategy.BIRTHDAY_PROBES)


def config_for(step: Step, transport: Transport, base: Config) -> Config:
    """Return ``base`` as this side's agent needs it for a step over ``transport``, and no relay."""
    mine = step.mine
    config = replace(base, udp=transport == "udp", tcp=transport == "tcp")
    if mine.strategy in (Strategy.LOW_TTL, Strategy.OPEN_THEN_LISTEN):
        if transport == "tcp":
            # How far the first SYN goes is tried out by the attempt itself (ice.tcp.attempts).
            return replace(config, low_ttl_first=mine.ttl is not None)
        return replace(config, opening_ttl=mine.ttl)
    if mine.strategy not in _GUESSING:
        return config
    # Whatever else the peer checks costs a port of a NAT that counts, and so does every pause.
    tell = Tell.PREDICTED if mine.offsets else Tell.PUBLIC
    # The sockets of a spread have their own.
    opening = None if mine.sockets else mine.ttl
    return replace(config, tell=tell, ta=QUICK, opening_ttl=opening)


def ports_for(
    step: Step, transport: Transport, seen: Sequence[Candidate], path: PathSummary
) -> tuple[int, ...]:
    """Return the ports to foretell to the peer, in the order in which it is to try them.

    ``seen`` is what servers have just seen this agent as (:meth:`ice.machine.AgentMachine.mapped`),
    ``path`` how this side's NAT behaves.  Empty where the step foretells nothing, or no server has
    answered.
    """
    ports = [
        one.port
        for one in seen
        if one.transport == transport
        # The port of an active candidate says nothing (RFC 6544 section 4.5).
        and one.tcptype in (None, TcpType.SIMULTANEOUS_OPEN, TcpType.PASSIVE)
        and step.family in (None, "ipv6" if one.address.is_ipv6 else "ipv4")
    ]
    if not step.mine.offsets or not ports:
        return ()
    last = latest(ports, path.delta or 1)
    pool = path.ports if last in path.ports else POOL
    return tuple(advance(last, 1, offset, pool) for offset in step.mine.offsets)


def remotes_for(step: Step, transport: Transport, told: Sequence[Candidate]) -> tuple[Address, ...]:
    """Return where a spread is aimed at, of the candidates that the peer has told.

    That is where servers, or its own foresight, see the peer; a public address of its own where a
    firewall without a NAT leaves it that.
    """
    fit = [
        one
        for one in told
        if one.transport == transport
        and one.tcptype in (None, TcpType.SIMULTANEOUS_OPEN)
        and step.family in (None, "ipv6" if one.address.is_ipv6 else "ipv4")
    ]
    seen = [one.address for one in fit if one.type is CandidateType.SERVER_REFLEXIVE]
    own = [one.address for one in fit if one.type is CandidateType.HOST and _is_public(one.host)]
    return tuple(dict.fromkeys(seen or own))


def _is_public(host: str) -> bool:
    try:
        return ip_address(host).is_global
    except ValueError:
        return False  # a .local name


def spread_for(step: Step, transport: Transport, remotes: Sequence[Address] = ()) -> Spread | None:
    """Return the spread to order; ``None`` where ordinary checks are all there is to this move.

    ``remotes``: where to; without any it is where the peer says it is (:class:`Spread`).
    """
    mine = step.mine
    if mine.probes:
        role, sockets = Role.PROBES, max(1, step.theirs.sockets)
    elif mine.sockets:
        role, sockets = Role.SOCKETS, mine.sockets
    else:
        return None
    return Spread(
        role,
        transport,
        tuple(remotes),
        sockets=sockets,
        packets=max(1, mine.packets),
        rate=max(1, mine.rate),
        duration=round(max(0.1, step.seconds - mine.after) * SECOND),
        ports=mine.ports,
        ttl=mine.ttl,
    )
