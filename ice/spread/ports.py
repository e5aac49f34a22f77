"""Ports in an order that nobody can foresee, each once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from stun.sansio import Address, Entropy


def shuffled(first: int, last: int, entropy: Entropy) -> Iterator[int]:
    """Yield the ports from ``first`` to ``last``, each once, in random order.

    The shuffle of Fisher and Yates, with only what has moved kept, so that it costs as much memory
    as ports are taken.
    """
    count = last - first + 1
    moved: dict[int, int] = {}
    for left in range(count, 0, -1):
        # 32 bits for a choice among at most 2^16: the bias is below 2^-16.
        choice = int.from_bytes(entropy(4)) * left >> 32
        yield first + moved.get(choice, choice)
        moved[choice] = moved.pop(left - 1, left - 1)


def in_turn(hosts: Sequence[str], ports: tuple[int, int], entropy: Entropy) -> Iterator[Address]:
    """Yield ports of each host, one host after the other, each port once."""
    drawn = [(host, shuffled(*ports, entropy)) for host in hosts]
    for _ in range(ports[1] - ports[0] + 1):
        for host, of_host in drawn:
            yield Address(host, next(of_host))
