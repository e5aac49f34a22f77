"""The small parts of gathering: pace, patience, ports, reach, and the book of candidates."""

from __future__ import annotations

from collections import deque
from itertools import pairwise
from random import Random
from typing import Any

import pytest

from ice.base import Base, CandidateFound
from ice.candidate import CandidateType, TcpType
from ice.config import Config, Interface, Policy
from ice.gather.book import Book, Source
from ice.gather.pacer import LEAST, QUICK, Pacer
from ice.gather.patience import FAR, Patience
from ice.gather.ports import MOST_TRIES, ports_to_try
from ice.gather.reach import can_reach, is_link_local, is_plausible, without_zone
from stun.sansio import MILLISECOND, SECOND, Address

TA = 50 * MILLISECOND
ETH = Interface("10.0.0.1", "eth0", 65535)
WLAN = Interface("10.0.0.2", "wlan0", 65503)


# Pace. --------------------------------------------------------------------------------------------


class Begun(list[int]):
    """When transactions began; it is what begins."""

    def __call__(self, now: int) -> bool:
        self.append(now)
        return True


def test_the_first_transaction_begins_at_once() -> None:
    pacer = Pacer(TA)
    begun = Begun()
    pacer.add(begun)
    pacer.run(7)
    assert begun == [7]
    assert pacer.deadline() is None


def test_what_is_not_wanted_any_more_takes_no_turn() -> None:
    pacer = Pacer(TA)
    begun = Begun()
    for _ in range(5):
        pacer.add(lambda _: False)
    pacer.add(begun)
    pacer.run(0)
    assert begun == [0]


def test_each_generation_begins_quickly_and_none_faster_than_the_limit() -> None:
    pacer = Pacer(1)
    begun = Begun()
    for generation in range(2):
        pacer.start_afresh()
        for _ in range(QUICK + 3):
            pacer.add(begun)
        while (due := pacer.deadline()) is not None:
            pacer.run(due - 1)
            pacer.run(due)
        assert len(begun) == (generation + 1) * (QUICK + 3)
    assert all(b - a >= LEAST for a, b in pairwise(begun))


def test_nothing_of_what_was_cleared_begins() -> None:
    pacer = Pacer(TA)
    pacer.add(lambda _: pytest.fail("it began"))
    pacer.clear()
    pacer.run(0)
    assert pacer.deadline() is None


# Patience. ----------------------------------------------------------------------------------------


def test_the_first_answer_says_when_it_is_enough() -> None:
    patience = Patience()
    patience.answered(0)
    patience.start(0, 10 * SECOND)
    patience.answered(SECOND)
    patience.answered(2 * SECOND)
    assert (patience.until, patience.enough) == (10 * SECOND, SECOND + FAR)


def test_patience_that_has_ended_begins_afresh() -> None:
    patience = Patience()
    patience.start(0, 10 * SECOND)
    patience.answered(SECOND)
    patience.stop()
    assert (patience.until, patience.enough) == (None, None)
    patience.answered(2 * SECOND)
    patience.start(3 * SECOND, SECOND)
    assert (patience.until, patience.enough) == (4 * SECOND, None)


# Ports. -------------------------------------------------------------------------------------------


def test_without_a_range_the_system_chooses() -> None:
    assert [*ports_to_try(None, Random(1).randbytes)] == [0]


def test_a_small_range_is_tried_whole_from_anywhere(rng: Random) -> None:
    starts = set()
    for _ in range(40):
        tried = [*ports_to_try((5000, 5009), rng.randbytes)]
        assert sorted(tried) == [*range(5000, 5010)]
        starts.add(tried[0])
    assert len(starts) > 3


def test_a_large_range_is_tried_so_often_and_no_more(rng: Random) -> None:
    tried = [*ports_to_try((1024, 65535), rng.randbytes)]
    assert len(set(tried)) == MOST_TRIES
    assert all(1024 <= port <= 65535 for port in tried)


# Reach. -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "server", "reaches"),
    [
        ("10.0.0.1", "192.0.2.1", True),
        ("10.0.0.1", "127.0.0.1", True),
        ("10.0.0.1", "2001:db8::1", False),
        ("2001:db8::2", "2001:db8::1", True),
        ("127.0.0.1", "127.0.0.2", True),
        ("127.0.0.1", "192.0.2.1", False),
        ("::1", "2001:db8::1", False),
        ("169.254.1.1", "192.0.2.1", False),
        ("169.254.1.1", "169.254.1.2", True),
        ("fe80::1%eth0", "2001:db8::1", False),
        ("fe80::1%eth0", "fe80::2%eth0", True),
        ("fe80::1%eth0", "fe80::2%eth1", False),
        ("fe80::1%eth0", "fe80::2", True),
    ],
)
def test_who_can_be_asked_from_where(host: str, server: str, reaches: bool) -> None:
    assert can_reach(host, Address(server, 3478)) is reaches


def test_addresses_that_no_server_can_see_anybody_as() -> None:
    assert is_plausible(Address("192.0.2.1", 1))
    for host, port in (("192.0.2.1", 0), ("0.0.0.0", 1), ("::", 1), ("224.0.0.1", 1)):
        assert not is_plausible(Address(host, port))


def test_zones() -> None:
    assert without_zone(Address("fe80::1%eth0", 1)) == Address("fe80::1", 1)
    plain = Address("192.0.2.1", 1)
    assert without_zone(plain) is plain
    assert is_link_local(Address("fe80::1", 1))
    assert is_link_local(Address("febf::1", 1))
    assert not is_link_local(Address("fec0::1", 1))
    assert not is_link_local(Address("10.0.0.1", 1))


# The book. ----------------------------------------------------------------------------------------


def base(number: int, interface: Interface = ETH, **changes: Any) -> Base:
    given: dict[str, Any] = {
        "stream": 0,
        "component": 1,
        "transport": "udp",
        "address": Address(interface.host, 5000 + number),
        "network": interface.name,
    }
    return Base(id=number, **(given | changes))


def book(**options: Any) -> tuple[Book, deque[Any]]:
    queue: deque[Any] = deque()
    return Book(Config(**options), queue, secret=b"secret"), queue


def test_no_two_candidates_of_a_stream_have_the_same_priority(rng: Random) -> None:
    made, queue = book(components=2)
    numbers = iter(range(1, 10_000))
    for _ in range(300):
        interface = rng.choice((ETH, WLAN))
        where = base(
            next(numbers), interface, component=rng.choice((1, 2)), stream=rng.choice((0, 1))
        )
        made.host(where, interface)
        for _ in range(rng.randrange(4)):
            server = Source("s", rng.choice(("192.0.2.1", "192.0.2.2")), rng.randrange(3))
            mapped = Address("203.0.113.5", rng.randrange(1, 65536))
            made.reflexive(where, interface, mapped, server)
    told = [found for found in queue if isinstance(found, CandidateFound)]
    assert len(told) > 500
    assert len({(f.base.stream, f.candidate.priority) for f in told}) == len(told)
    assert all(1 <= f.candidate.priority < 2**31 for f in told)


def test_a_priority_is_free_again_when_its_base_is_forgotten() -> None:
    made, queue = book()
    made.host(base(1), ETH)
    made.forget(base(1))
    made.host(base(2), ETH)
    one, two = queue
    assert one.candidate.priority == two.candidate.priority


def test_foundations_are_those_of_the_rfc() -> None:
    made, queue = book()
    one, two, other = base(1), base(2), base(3, WLAN)
    a, b = Source("a", "192.0.2.1"), Source("b", "192.0.2.2")
    made.host(one, ETH)
    made.host(two, ETH)
    made.host(other, WLAN)
    made.reflexive(one, ETH, Address("203.0.113.5", 1), a)
    made.reflexive(two, ETH, Address("203.0.113.5", 2), a)
    made.reflexive(two, ETH, Address("203.0.113.5", 3), b)
    host, same, apart, first, second, third = (found.candidate.foundation for found in queue)
    assert host == same
    assert first == second
    assert len({host, apart, first, third}) == 4


def test_a_tcp_address_is_not_a_udp_address() -> None:
    made, queue = book()
    relayed = Address(ETH.host, 5001)
    tcp = base(2, transport="tcp", tcptype=TcpType.PASSIVE, address=relayed)
    made.host(base(1), ETH)
    assert made.relayed(tcp, ETH, Address("203.0.113.5", 1), Source("a")) is not None
    assert made.relayed(base(1), ETH, Address("203.0.113.5", 1), Source("a")) is None
    assert [found.candidate.transport for found in queue] == ["udp", "tcp"]


def test_a_mapped_address_that_is_a_hidden_one_is_not_told_with_a_relay() -> None:
    made, queue = book()
    hidden = Interface(ETH.host, "eth0", 65535, mdns="name.local")
    at = Address("192.0.2.1", 50_000)
    made.relayed(base(1, address=at), hidden, Address(ETH.host, 5001), Source("a"))
    made.relayed(
        base(2, address=at._replace(port=2)), hidden, Address("203.0.113.5", 1), Source("")
    )
    one, two = (found.candidate for found in queue)
    assert (one.related_address, one.related_port) == ("0.0.0.0", 9)
    assert two.related_address == "203.0.113.5"


def test_the_relay_policy_leaves_relays_only() -> None:
    made, queue = book(policy=Policy.RELAY)
    made.host(base(1), ETH)
    assert made.reflexive(base(1), ETH, Address("203.0.113.5", 1), Source("a")) is None
    at = Address("192.0.2.1", 50_000)
    assert made.relayed(base(2, address=at), ETH, Address("203.0.113.5", 1), Source("a"))
    assert [found.candidate.type for found in queue] == [CandidateType.RELAYED]
