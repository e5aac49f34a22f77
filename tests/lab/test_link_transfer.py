"""A transfer over a link whose ways come and go, through the kernel's NATs: nothing is lost, and
nobody waits long.  ``python tools/linklab.py transfer --gib 1`` tells the story of a large one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from nattype.lab.pytest_plugin import LabFactory
from nattype.model import Lifetimes, NatModel
from tools.linklab import MIB, SHARE, STALL, measure, transfer
from tools.linknet import Net, Relay, connect, network

RATE = 3_000_000
"""Octets a second that the relay lets through: less than the direct way, as out there."""


@pytest.fixture
def net(request: pytest.FixtureRequest, natlab: LabFactory) -> Iterator[Net]:
    """A network of two sites; ``natlab`` says whether this machine can have one."""
    options: dict[str, Any] = dict(getattr(request, "param", {}))
    kind = options.pop("kind", "port-restricted-cone")
    with network(kind, kind, **options) as built:
        yield built


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("net", [{}, {"delay": 0.02}], ids=["short", "long"], indirect=True)
def test_a_transfer_goes_from_way_to_way(net: Net) -> None:
    net.limit(60)
    story = transfer(net, Relay(net, rate=RATE).url, 128 * MIB)
    told = "\n".join(story.lines())
    print(told)
    assert story.received == story.sent, told
    assert all(change.octets < story.octets for change in story.changes), told
    assert story.ways[0] == "relay", told
    assert story.ways[-3:] == ["direct", "relay", "direct"], told
    # What the network had done to it by then says how long the next octet was waited for.
    assert [change.what for change in story.changes if change.stall >= STALL] == [], told
    assert story.stall < STALL, told


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_the_direct_way_is_nearly_as_fast_as_tls_alone(natlab: LabFactory) -> None:
    """On a link as people have it.  One that has no limit measures two programs and a kernel that
    share two processors: ``python tools/linklab.py throughput`` tells.
    """
    with network("port-restricted-cone", "open") as net:
        net.limit(200)
        speeds = measure(net, Relay(net).url, 16 * MIB, 3)
        told = "\n".join(speeds.lines())
        print(told)
        assert speeds.ratio >= SHARE, told


SHORT_LIVED = NatModel(
    lifetimes=Lifetimes(udp_one_shot=20.0, udp_stream=25.0, tcp_established=30.0)
)
"""A NAT that forgets what is idle for less than RFC 4787 REQ-5 and RFC 5382 REQ-5 allow."""


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("net", [{"kind": SHORT_LIVED, "hosts": 3}], indirect=True)
def test_a_link_that_idles_keeps_its_ways(net: Net) -> None:
    relay = Relay(net)
    pairs = [
        connect(net, relay.url, 0, "one-secretword"),
        connect(net, relay.url, 1, "two-secretword", tcp=False),
        connect(net, relay.url, 2, "six-secretword", direct=False),
    ]
    wanted = ["direct tcp", "direct udp", "relay"]
    for pair, path in zip(pairs, wanted, strict=True):
        for end in (pair.a, pair.b):
            end.until(path, lambda pair=pair, end=end, path=path: pair.path(end) == path)
        pair.b.do("echo")
    ways = [[pair.a.all(event="PathChanged"), pair.b.all(event="PathChanged")] for pair in pairs]
    # The NATs forget what is silent for 30 s, and are given three times as long.
    pairs[0].a.idle(90)
    for pair in pairs:
        pair.a.do("ask", text="still there?")
    for pair, path, before in zip(pairs, wanted, ways, strict=True):
        assert pair.a.expect(told="answer")["text"] == "still there?"
        assert [pair.path(pair.a), pair.path(pair.b)] == [path, path]
        assert before == [pair.a.all(event="PathChanged"), pair.b.all(event="PathChanged")]
        assert not pair.a.all(event="PathLost")
        assert not pair.b.all(event="PathLost")
