"""The benchmark's laboratory: what is sent arrives where it should, once, and nothing is left."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nattype.lab.kernel.namespaces import inside, is_privileged
from tools.bench import measures
from tools.bench.lab import FAR, laboratory
from tools.bench.ways import PROBE_PORT, Next, Nowhere, Passage, Way, passing

FLOWS = 300
"""More than the generator sends with one call."""


@pytest.fixture(autouse=True)
def privileged() -> None:
    if not is_privileged():
        pytest.skip("needs CAP_NET_ADMIN and CAP_SYS_ADMIN")


@pytest.fixture(params=[Passage, Next])
def way(request: pytest.FixtureRequest) -> Iterator[Way]:
    with passing("", request.param) as way:
        yield way


@pytest.mark.parametrize("to_peer", [True, False])
@pytest.mark.parametrize("size", [20, 1400])
def test_each_flow_passes_once(way: Way, size: int, to_peer: bool) -> None:
    traffic = way.traffic(FLOWS, size, to_peer=to_peer)
    assert measures.passes(traffic) == FLOWS
    assert traffic.sink is not None
    assert traffic.sink.longest == size + 4 * to_peer
    assert traffic.sink.take() == 0


def test_what_goes_nowhere_reaches_nobody() -> None:
    with passing("", Nowhere) as way:
        traffic = way.traffic(FLOWS, 160, to_peer=True)
        assert traffic.sink is None
        before = received(way)
        assert traffic.generator.send(FLOWS) == FLOWS
        assert received(way) == before
        with inside(way.lab.server):
            assert "clients" in {name for _, name in socket.if_nameindex()}


def received(way: Way) -> int:
    """UDP datagrams that the machines have taken in."""
    total = 0
    for space in (way.lab.client.space, way.lab.peer.space, way.lab.server):
        with inside(space):
            names, values = (
                line.split()
                for line in Path("/proc/net/snmp").read_text().splitlines()
                if line.startswith("Udp:")
            )
            total += int(values[names.index("InDatagrams")])
    return total


def test_a_measurement_counts_what_was_sent_and_what_arrived(way: Way) -> None:
    traffic = way.traffic(FLOWS, 160, to_peer=True)
    seen = measures.cost(traffic, 20_000, 0.2)
    assert seen.received == seen.sent > 1000
    assert 0 < seen.load <= 2 * seen.elapsed + 0.1
    seen = measures.rate(traffic, 0.2)
    assert 0 < seen.received <= seen.sent + measures.AHEAD


def test_losses_are_seen(way: Way) -> None:
    # A sink that nobody reads overflows.
    traffic = way.traffic(FLOWS, 160, to_peer=True)
    assert traffic.sink is not None
    traffic.sink.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 0)
    traffic.generator.send(FLOWS)
    time.sleep(0.05)
    assert traffic.sink.take() < FLOWS


def test_probes_are_told_from_the_rest_and_their_times_are_plausible(way: Way, seed: int) -> None:
    traffic = way.traffic(FLOWS, 160, to_peer=True)
    arrivals = way.sink(to_peer=True, port=PROBE_PORT)
    assert arrivals is not None
    probes = way.probes(100, 160, to_peer=True)
    taken = measures.latency(traffic, probes, arrivals, 5000, seed)
    assert len(taken) == len(probes)
    assert all(0 < one < 1_000_000 for one in taken)
    # The sink is as it was before.
    assert measures.passes(traffic) == FLOWS


def test_a_measurement_that_fails_says_so() -> None:
    child = measures.Child(lambda: 1 / 0, measures.LOAD_CORE)
    with pytest.raises(RuntimeError, match="failed"):
        child.result()


def test_families_have_all_their_members() -> None:
    child = measures.Child(lambda: measures.family(os.getppid()), measures.LOAD_CORE)
    found = child.result()
    assert found[0] == os.getpid()
    assert child.pid in found


def open_files() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir()}


def test_nothing_is_left() -> None:
    before = open_files()
    names = {name for _, name in socket.if_nameindex()}
    with laboratory() as lab, inside(lab.server):
        assert {"clients", "peers"} <= {name for _, name in socket.if_nameindex()}
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind((FAR, 0))
    assert open_files() == before
    assert {name for _, name in socket.if_nameindex()} == names
