"""Which external ports a NAT will give out next, and from which pool it draws them.

Theory of operation.  All functions are pure.  A *pool* is the range of ports from which a NAT gives
them out; a sequence that reaches its end goes on at its beginning.  Distances are in steps: one
step is what one new mapping consumes, so a *delta* of -2 makes the next port two lower.

Two symmetric NATs that count meet at a *rendezvous of counters*.  The first thought is to let both
sides send from one socket to the predicted ports of the other in the same order: the j-th packet of
each leaves from its own j-th mapping towards the other's j-th one.  That holds only as long as
nobody else behind either NAT takes a single port between the measurement and the last packet; one
port taken shifts the sequence, and every packet that follows aims one beside the mark, whatever the
order.  Instead each side opens ``window`` fresh sockets that all aim at *one* port of the other:
its ``window``-th from now.  Every socket consumes one port, so the run of ``window`` mappings
passes over the port that the other side aims at as long as fewer than ``window`` ports were taken
by others before it began; where it does so on both sides, the two mappings of that number are each
other's destination.  The cost is the same ``window`` packets a side.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from nattype.peers import EPHEMERAL_PORTS
from stun.errors import UsageError

POOL: Final = range(0x10000 - EPHEMERAL_PORTS, 0x10000)
"""Ports 1024 to 65535: what a NAT gives out of, as far as nothing else is known."""

CROWDED_SAMPLES: Final = 6
"""Samples from which a narrow pool can be told from a coincidence: of six random ports out of all,
the chance to lie within a sixteenth of them is below 1e-5."""
LARGEST_BLOCK: Final = 4096
"""Ports of the largest block that carriers set aside for a subscriber (RFC 7422, RFC 6431)."""
SMALLEST_BLOCK: Final = 64


def advance(port: int, steps: int, delta: int = 1, pool: range = POOL) -> int:
    """Return the port ``steps`` mappings after ``port``, around the end of the pool if need be.

    A port outside the pool (one below 1024, say) is counted on from without going around, as far
    as there are ports.
    """
    if port in pool:
        return pool[(pool.index(port) + steps * delta) % len(pool)]
    moved = port + steps * delta
    return moved if 0 < moved <= 0xFFFF else pool[moved % len(pool)]


def step_of(delta: int, *, keeps_parity: bool) -> int:
    """Return the step between ports of one parity.

    A NAT that preserves port parity (RFC 4787 section 4.2.2) counts even and odd ports apart, so
    each of its sequences takes every second port.
    """
    return 2 * delta if keeps_parity and delta % 2 else delta


def keeps_parity(samples: Sequence[tuple[int, int]]) -> bool:
    """Whether even local ports got even external ones and odd ones odd ones, beyond a coincidence.

    ``samples``: (local port, external port).  Eight that agree by chance are one in 256; ports that
    were simply kept say nothing.
    """
    moved = [(local, external) for local, external in samples if local != external]
    parities = {local & 1 for local, _ in moved}
    return (
        len(moved) >= 8
        and len(parities) == 2
        and all((local ^ external) & 1 == 0 for local, external in moved)
    )


def latest(ports: Sequence[int], delta: int, pool: range = POOL) -> int:
    """Return the one of several ports, given out within a moment, that was given out last.

    Answers of several servers come in any order.  On the circle of ports the last one is the one
    with the largest gap behind it.  Raises :class:`stun.errors.UsageError` without any port.
    """
    if not ports:
        raise UsageError("no port was seen, so there is none to count on from")
    upwards = sorted(set(ports))
    if len(upwards) == 1:
        return upwards[0]
    size = len(pool)
    gaps = {port: (upwards[(n + 1) % len(upwards)] - port) % size for n, port in enumerate(upwards)}
    if delta > 0:
        return max(upwards, key=lambda port: gaps[port])
    # Counting down, the last one is what follows the largest gap upwards.
    before = max(range(len(upwards)), key=lambda n: gaps[upwards[n]])
    return upwards[(before + 1) % len(upwards)]


def pool_of(ports: Sequence[int]) -> range:
    """Return the pool that these ports, allocated at random, seem to come from.

    Carriers give each subscriber a block of ports (RFC 7422): a thousand instead of 64 512, which
    changes what guessing costs.  Blocks are powers of two, and aligned; where the smallest one that
    holds all samples would be a coincidence in a larger one, the answer is the larger one.
    """
    seen = sorted(set(ports))
    if len(seen) < CROWDED_SAMPLES:
        return POOL
    # The spread of m random ports is (m-1)/(m+1) of the block's size on average; half as much again
    # leaves room for the ones that were not seen.
    wanted = 1.5 * (seen[-1] - seen[0] + 1) * (len(seen) + 1) / (len(seen) - 1)
    size = SMALLEST_BLOCK
    while size <= LARGEST_BLOCK:
        start = seen[0] // size * size
        if size >= wanted / 1.5 and seen[-1] < start + size:
            return range(max(start, 1), start + size)
        size *= 2
    # Not aligned, but no wider: then the samples themselves say where to look.
    if wanted <= LARGEST_BLOCK:
        slack = round(wanted - (seen[-1] - seen[0])) // 2
        return range(max(1, seen[0] - slack), min(0x10000, seen[-1] + slack + 1))
    return POOL
