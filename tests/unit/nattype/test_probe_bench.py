"""Sockets by handle, and what happens to those of others."""

from __future__ import annotations

import random
from collections import deque
from typing import Any

import pytest

from nattype.probe.bench import Bench, SocketUnavailable
from nattype.probe.strand import Strands
from stun.errors import Dropped, DropReason
from stun.sansio import (
    Accepted,
    Address,
    Arrived,
    Cause,
    Closed,
    Listen,
    Opened,
    OpenUdp,
    Received,
    Shut,
)

HOST = "192.168.1.2"
PEER = Address("192.175.48.10", 40000)


class Rig:
    def __init__(self) -> None:
        self.outputs: deque[Any] = deque()
        self.strands = Strands()
        self.bench = Bench(self.strands, self.outputs, HOST, 100, random.Random(0).randbytes)

    def begin(self, coroutine: Any) -> Any:
        strand = self.strands.spawn(coroutine, awaited=True)
        self.strands.run(0)
        return strand

    def happen(self, event: Any) -> None:
        self.bench.on_socket(event)
        self.strands.run(0)


def test_handles_count_from_the_first_and_sockets_are_bound_to_this_host() -> None:
    rig = Rig()
    rig.begin(rig.bench.udp())
    rig.begin(rig.bench.listen(5000))
    assert list(rig.outputs) == [
        OpenUdp(100, Address(HOST, 0)),
        Listen(101, Address(HOST, 5000)),
    ]
    assert rig.bench.owns(100)
    assert not rig.bench.owns(1)


def test_a_socket_that_cannot_be_had() -> None:
    rig = Rig()
    strand = rig.begin(rig.bench.udp())
    rig.happen(Closed(100, Cause.NOT_PERMITTED, "sandbox"))
    with pytest.raises(SocketUnavailable, match="not permitted: sandbox"):
        strand.__await__().send(None)
    assert not rig.bench.owns(100)


def test_who_connects_is_noted_and_let_go_once_it_has_spoken() -> None:
    rig = Rig()
    strand = rig.begin(rig.bench.listen(5000))
    rig.happen(Opened(100, Address(HOST, 5000)))
    listener = strand.ended.value
    rig.happen(Accepted(100, -1, listener.local, PEER))
    assert listener.accepted == [PEER]
    assert rig.bench.owns(-1)
    rig.happen(Arrived(-1, b"hello"))
    assert rig.outputs[-1] == Shut(-1)
    assert not rig.bench.owns(-1)


def test_a_peer_that_leaves_without_a_word_is_forgotten() -> None:
    rig = Rig()
    rig.begin(rig.bench.listen(5000))
    rig.happen(Opened(100, Address(HOST, 5000)))
    rig.happen(Accepted(100, -1, Address(HOST, 5000), PEER))
    rig.happen(Closed(-1, Cause.END_OF_STREAM))
    assert not rig.bench.owns(-1)


def test_all_is_closed_in_the_end() -> None:
    rig = Rig()
    rig.begin(rig.bench.udp())
    rig.begin(rig.bench.listen(5000))
    rig.happen(Opened(101, Address(HOST, 5000)))
    rig.happen(Accepted(101, -1, Address(HOST, 5000), PEER))
    rig.bench.start_dial(PEER)
    rig.bench.close_all()
    assert {o.handle for o in rig.outputs if isinstance(o, Shut)} == {100, 101, 102, -1}


def test_another_protocol_is_heard_from_one_address_only() -> None:
    rig = Rig()
    strand = rig.begin(rig.bench.udp())
    local = Address(HOST, 50000)
    rig.happen(Opened(100, local))
    router = Address("192.168.1.1", 5351)
    hearing = rig.bench.hear(strand.ended.value, router)
    rig.bench.receive(Received(b"\x00\x80", router, local), 0)
    rig.bench.receive(Received(b"\x00\x80", PEER, local), 0)
    assert hearing.take() == [b"\x00\x80"]
    assert hearing.take() == []
    assert [o.reason for o in rig.outputs if isinstance(o, Dropped)] == [DropReason.TOO_SHORT]


def test_strays_are_remembered_and_bounded() -> None:
    rig = Rig()
    for port in range(1, 500):
        source = Address(PEER.host, port)
        rig.bench.receive(Received(b"x", source, Address(HOST, 50000)), 0)
    assert Address(PEER.host, 1) in rig.bench.strays
    assert len(rig.bench.strays) < 100
