"""Lines between processes, shares of each worker, and figures that are added up."""

from __future__ import annotations

import asyncio
import os
import socket
from itertools import pairwise
from typing import Any

import pytest

from stun.discovery import Transport
from stun.errors import DropReason
from turn.daemon.config import ConfigError, Flags, load
from turn.daemon.plan import Credential
from turn.daemon.settings import Settings
from turn.daemon.workers.figures import add_up, nothing, of_the_gone
from turn.daemon.workers.line import LARGEST, PIECE, Line, pair
from turn.daemon.workers.orders import settings_of, share_of_ports
from turn.server.events import EndReason


class Taken:
    def __init__(self) -> None:
        self.values: list[Any] = []
        self.descriptors: list[int] = []
        self.ended = False

    def __call__(self, value: Any, descriptors: list[int]) -> None:
        self.values.append(value)
        self.descriptors += descriptors

    def end(self) -> None:
        self.ended = True


def line() -> tuple[Line, Line, Taken]:
    ours, theirs = pair()
    taken = Taken()
    return Line(ours, lambda *_: None), Line(theirs, taken, taken.end), taken


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  (what is waited for is no event of the loop's)
            await asyncio.sleep(0)


# Lines. -------------------------------------------------------------------------------------------


async def test_values_of_any_length_keep_their_order() -> None:
    near, far, taken = line()
    values = ["short", b"x" * PIECE, list(range(100_000)), b"x" * (PIECE - 1), None, "end"]
    near.start()
    far.start()
    for value in values:
        near.send(value)
    await until(lambda: len(taken.values) == len(values))
    assert taken.values == values
    near.close()
    await until(lambda: taken.ended)
    assert far.ended
    far.close()


async def test_what_the_other_end_does_not_take_is_kept() -> None:
    near, far, taken = line()
    near.start()
    many = 3_000
    for number in range(many):
        near.send((number, bytes(1_000)))
    assert near._queue, "the kernel does not take all of it"
    far.start()
    await until(lambda: len(taken.values) == many)
    assert [number for number, _ in taken.values] == list(range(many))
    near.close()
    far.close()


def test_posts_are_dropped_and_counted() -> None:
    near, far, taken = line()
    posted = sum(near.post(bytes(1_000)) for _ in range(5_000))
    assert 0 < posted < 5_000
    assert near.dropped == 5_000 - posted
    far.take()
    assert len(taken.values) == posted
    assert not near.post(bytes(LARGEST))
    near.close()
    assert not near.post(b"")
    far.close()


def test_a_datagram_of_the_largest_kind_is_posted() -> None:
    near, far, taken = line()
    assert near.post(("datagram", bytes(65_507)))
    far.take()
    assert taken.values == [("datagram", bytes(65_507))]
    near.close()
    far.close()


def test_descriptors_go_along() -> None:
    near, far, taken = line()
    with socket.socket() as one, socket.socket(type=socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))
        near.send("two", [one.fileno(), other.fileno()])
        name = other.getsockname()
    near.send("none")
    far.take()
    assert taken.values == ["two", "none"]
    first, second = taken.descriptors
    with socket.socket(fileno=second) as came:
        assert came.getsockname() == name
    assert not os.get_inheritable(first)
    os.close(first)
    near.close()
    far.close()


# Shares. ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ports", [(49_152, 65_535), (1, 65_535), (50_001, 50_010), (1_000, 1_007)])
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_shares_of_ports(ports: tuple[int, int], workers: int) -> None:
    shares = [share_of_ports(ports, number, workers) for number in range(1, workers + 1)]
    assert [shares[0][0], shares[-1][1]] == list(ports)
    for (_, last), (first, _) in pairwise(shares):
        assert first == last + 1
        assert first % 2 == 0, "a pair is not parted"
    assert all(high - low >= 1 for low, high in shares)


def test_too_few_ports() -> None:
    with pytest.raises(ConfigError, match="50000-50003 is too few for 3 workers"):
        share_of_ports((50_000, 50_003), 1, 3)


def settings(**tables: Any) -> Settings:
    flags = Flags()
    for path, value in tables.items():
        flags.set(tuple(path.split("__")), value, path)
    return load(None, flags)


def test_what_a_worker_is() -> None:
    whole = settings(
        workers=4,
        limits__unverified_burst=10_000,
        limits__unverified_refill=0,
        metrics__listen="127.0.0.1:9",
        rendezvous={},
        auth__users={"ann": "secret"},
    )
    made = settings_of(
        whole, 3, 4, users=[Credential("check", "word")], secret="made up", nonce=bytes(32)
    )
    assert made.relay.ports == (57_344, 61_439)
    limits = made.make_limits()
    assert (limits.unverified_burst, limits.unverified_refill) == (2_500, 0), "0 is no limit still"
    assert limits.allocations == whole.make_limits().allocations
    assert set(made.auth.users) == {"ann", "check"}
    assert [secret.text for secret in made.auth.secrets] == ["made up"]
    assert (made.metrics.listen, made.admin.socket, made.rendezvous) == (None, False, None)
    assert (made.workers, made.dataplane) == (1, "sockets")


def test_several_workers_and_the_kernel() -> None:
    with pytest.raises(ConfigError, match="several workers relay with sockets"):
        settings(workers=2, dataplane="kernel")


# Figures. -----------------------------------------------------------------------------------------


def test_figures_are_added_up() -> None:
    one, other = nothing(), nothing()
    for number, figures in ((1, one), (2, other)):
        metrics = figures.metrics
        metrics.requests[3] = number
        metrics.responses[3, 0] = number
        metrics.allocations_created[Transport.UDP] = number
        metrics.allocations_ended[EndReason.EXPIRED] = number
        metrics.allocate_latency.add(number * 1_000_000)
        metrics.allocations = metrics.repeated = number
        metrics.usage.octets_to_client = figures.usage.octets_to_client = number
        figures.drops = {DropReason.TOO_SHORT: number}
        figures.transport = {"datagrams sent": number, "nothing": 0}
        figures.accounts = {"ann": number}
    other.lookups = {"answered": 2}
    total = add_up([one, other])
    assert total.metrics.requests == {3: 3}
    assert total.metrics.responses == {(3, 0): 3}
    assert (total.metrics.allocations, total.metrics.repeated) == (3, 3)
    assert sum(total.metrics.allocate_latency.counts) == 2
    assert total.metrics.allocate_latency.total == 3_000_000
    assert total.usage.octets_to_client == total.metrics.usage.octets_to_client == 3
    assert total.drops == {DropReason.TOO_SHORT: 3}
    assert total.transport == {"datagrams sent": 3, "nothing": 0}
    assert (total.lookups, total.accounts) == ({"answered": 2}, {"ann": 3})
    assert one.metrics.requests == {3: 1}, "what is added is left alone"
    gone = of_the_gone(other)
    assert (gone.metrics.allocations, gone.accounts) == (0, {})
    assert gone.metrics.requests == {3: 2}
