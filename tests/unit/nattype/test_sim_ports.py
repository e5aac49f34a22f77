"""The order in which external ports are given out."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest

from nattype.lab.sim.options import LIKE_LINUX, SimOptions
from nattype.lab.sim.ports import HIGHEST_PORT, LOWEST_PORT, PortPool
from nattype.model import Allocation, NatModel
from stun.sansio import Address

INSIDE = Address("192.168.1.2", 5000)
OUTSIDE = "192.52.193.1"


def pool(
    allocation: Allocation,
    seed: int,
    taken: set[Address],
    options: SimOptions = LIKE_LINUX,
    delta: int = 1,
) -> PortPool:
    model = NatModel(allocation=allocation, delta=delta)
    fresh = PortPool(model, options, Random(seed), lambda _, address: address not in taken)
    fresh.add(OUTSIDE)
    return fresh


def test_preserved(seed: int) -> None:
    taken: set[Address] = set()
    ports = pool(Allocation.PRESERVED, seed, taken)
    assert ports.allocate(17, INSIDE) == Address(OUTSIDE, 5000)
    taken.add(Address(OUTSIDE, 5000))
    other = ports.allocate(17, INSIDE)
    assert other is not None
    assert LOWEST_PORT <= other.port <= HIGHEST_PORT
    assert other.port != 5000
    forced = pool(Allocation.PRESERVED, seed, set()).allocate(17, INSIDE, preserve=False)
    assert forced != Address(OUTSIDE, 5000), "one chance in 64512 by luck"


@pytest.mark.parametrize("delta", [1, 3, -1])
def test_sequential_skips_what_is_taken_and_counts_protocols_apart(delta: int, seed: int) -> None:
    taken: set[Address] = set()
    ports = pool(Allocation.SEQUENTIAL, seed, taken, delta=delta)
    given = []
    for _ in range(3):
        external = ports.allocate(17, INSIDE)
        assert external is not None
        given.append(external.port)
    assert [b - a for a, b in pairwise(given)] == [delta, delta]
    other = ports.allocate(6, INSIDE)
    taken.add(Address(OUTSIDE, given[-1] + delta))
    following = ports.allocate(17, INSIDE)
    assert following == Address(OUTSIDE, given[-1] + 2 * delta)
    assert other is not None


def test_random_finds_the_last_free_port(seed: int) -> None:
    last = Address(OUTSIDE, 40_000)
    taken = {Address(OUTSIDE, port) for port in range(LOWEST_PORT, HIGHEST_PORT + 1)} - {last}
    ports = pool(Allocation.RANDOM, seed, taken)
    assert ports.allocate(17, INSIDE) == last
    taken.add(last)
    assert ports.allocate(17, INSIDE) is None


def test_no_address_of_the_family(seed: int) -> None:
    ports = pool(Allocation.RANDOM, seed, set())
    assert ports.allocate(17, Address("fd00::2", 5000)) is None


def test_blocks_of_subscribers_do_not_overlap(seed: int) -> None:
    size = 16_128  # four aligned blocks would begin at 0, which is reserved: three are left
    ports = pool(Allocation.RANDOM, seed, set(), SimOptions(port_block=size))
    blocks = []
    for number in range(3):
        external = ports.allocate(17, Address(f"192.168.1.{number}", 5000))
        assert external is not None
        blocks.append(external.port // size)
    assert sorted(blocks) == [1, 2, 3]
    assert ports.allocate(17, Address("192.168.1.9", 5000)) is None


def test_a_preserved_port_must_lie_in_the_block(seed: int) -> None:
    ports = pool(Allocation.PRESERVED, seed, set(), SimOptions(port_block=512))
    external = ports.allocate(17, INSIDE)
    assert external is not None
    same = ports.allocate(17, Address(INSIDE.host, external.port))
    assert same == external
