"""What worked before: kept small, private and without being needed."""

from __future__ import annotations

import json
import stat
import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest

from ice.predict.memory import (
    EXPIRES,
    MOST_NETWORKS,
    MOST_PEERS,
    SUMMARY_EXPIRES,
    Memory,
    Network,
    default_path,
    this_network,
)
from ice.predict.steps import Strategy
from ice.predict.summary import FamilySummary, NatSummary, PathSummary
from nattype.model import Allocation, Filtering, Mapping

HOME = Network("192.168.1.1", "02:00:5e:10:00:01", "eth0")
CAFE = Network("10.0.0.1", "02:00:5e:10:00:02", "wlan0")
CONE = NatSummary(
    FamilySummary(
        PathSummary(
            mapping=Mapping.ENDPOINT_INDEPENDENT,
            filtering=Filtering.ADDRESS_AND_PORT_DEPENDENT,
            allocation=Allocation.PRESERVED,
            hosts=("192.0.2.77",),
        )
    )
)
DRAWS = NatSummary(
    FamilySummary(
        PathSummary(
            mapping=Mapping.ADDRESS_AND_PORT_DEPENDENT,
            allocation=Allocation.RANDOM,
            hosts=("198.51.100.9",),
        )
    )
)


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "natkit" / "paths.json"


def memory(path: Path | None, clock: Clock, network: Network = HOME) -> Memory:
    return Memory(path, network=network, clock=clock, entropy=Random(1).randbytes)


def test_what_worked_is_known_again_after_a_restart(path: Path, clock: Clock) -> None:
    first = memory(path, clock)
    assert first.worked(CONE, "udp") == ()
    first.learn(CONE, "udp", Strategy.PREDICT)
    clock.now += 10
    first.learn(CONE, "udp", Strategy.BIRTHDAY_SOCKETS)
    again = memory(path, clock)
    assert again.worked(CONE, "udp") == (Strategy.BIRTHDAY_SOCKETS, Strategy.PREDICT)
    assert not again.notes


def test_it_holds_for_this_network_this_sort_of_peer_and_this_transport(
    path: Path, clock: Clock
) -> None:
    memory(path, clock).learn(CONE, "udp", Strategy.PREDICT)
    assert memory(path, clock).worked(CONE, "tcp") == ()
    assert memory(path, clock).worked(DRAWS, "udp") == ()
    assert memory(path, clock, CAFE).worked(CONE, "udp") == ()
    elsewhere = NatSummary(
        FamilySummary(PathSummary(**{**_fields(CONE), "hosts": ("203.0.113.5",)}))
    )
    assert memory(path, clock).worked(elsewhere, "udp") == (Strategy.PREDICT,)


def _fields(summary: NatSummary) -> dict[str, Any]:
    found = summary.path("udp", "ipv4")
    assert found is not None
    return {name: getattr(found, name) for name in PathSummary.__slots__}


def test_what_fails_is_forgotten(path: Path, clock: Clock) -> None:
    kept = memory(path, clock)
    kept.learn(CONE, "udp", Strategy.PREDICT)
    kept.unlearn(CONE, "udp", Strategy.PREDICT)
    kept.unlearn(CONE, "udp", Strategy.PLAIN)
    assert memory(path, clock).worked(CONE, "udp") == ()


def test_it_expires(path: Path, clock: Clock) -> None:
    memory(path, clock).learn(CONE, "udp", Strategy.PREDICT)
    memory(path, clock).measured(DRAWS)
    clock.now += SUMMARY_EXPIRES - 1
    assert memory(path, clock).summary() is not None
    clock.now += 2
    assert memory(path, clock).summary() is None
    assert memory(path, clock).worked(CONE, "udp") == (Strategy.PREDICT,)
    clock.now += EXPIRES
    assert memory(path, clock).worked(CONE, "udp") == ()


def test_a_clock_that_was_far_ahead_leaves_nothing_forever(path: Path, clock: Clock) -> None:
    clock.now += 10 * EXPIRES
    memory(path, clock).learn(CONE, "udp", Strategy.PREDICT)
    clock.now -= 10 * EXPIRES
    assert memory(path, clock).worked(CONE, "udp") == ()


def test_how_this_network_behaves_is_kept_without_addresses(path: Path, clock: Clock) -> None:
    memory(path, clock).measured(CONE)
    found = memory(path, clock).summary()
    assert found is not None
    udp = found.path("udp", "ipv4")
    assert udp is not None
    assert udp.hosts == ()
    assert udp.mapping is Mapping.ENDPOINT_INDEPENDENT


def test_no_address_is_in_the_file_and_nobody_else_may_read_it(path: Path, clock: Clock) -> None:
    kept = memory(path, clock)
    kept.measured(CONE)
    kept.learn(DRAWS, "udp", Strategy.BIRTHDAY_PROBES)
    text = path.read_text()
    for secret in (HOME.gateway, HOME.hardware, "192.0.2.77", "198.51.100.9"):
        assert secret not in text
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_two_files_name_one_network_differently(tmp_path: Path, clock: Clock) -> None:
    names = []
    for number in range(2):
        kept = Memory(
            tmp_path / f"{number}.json",
            network=HOME,
            clock=clock,
            entropy=Random(number).randbytes,
        )
        kept.measured(CONE)
        names += json.loads((tmp_path / f"{number}.json").read_text())["networks"]
    assert len(set(names)) == 2


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[]",
        b"[" * 100_000,
        b"\xff\xfe",
        b'{"v": 2}',
        b'{"v": 1, "salt": "zz", "networks": {}}',
        b'{"v": 1, "salt": "00", "networks": {}}',
        b'{"v": 1, "salt": "%s", "networks": []}' % (b"00" * 16),
        b'{"v": 1, "salt": "%s", "networks": {"a": 7}}' % (b"00" * 16),
        b'{"v": 1, "salt": "%s", "networks": {"a": {"seen": 1, "measured": 1, "nat": null, '
        b'"worked": {}}}}' % (b"00" * 16),
        b'{"v": 1, "salt": "%s", "networks": {"a": {"seen": NaN, "measured": 0, "nat": null, '
        b'"worked": {}}}}' % (b"00" * 16),
        b'{"v": 1, "salt": "%s", "networks": {"a": {"seen": 1, "measured": 0, "nat": null, '
        b'"worked": {"udp": {"magic": 1}}}}}' % (b"00" * 16),
        b" " * (1 << 20) + b" {}",
    ],
)
def test_a_broken_file_is_an_empty_one_with_a_note(path: Path, clock: Clock, text: bytes) -> None:
    path.parent.mkdir(parents=True)
    path.write_bytes(text)
    kept = memory(path, clock)
    assert kept.worked(CONE, "udp") == ()
    assert kept.summary() is None
    ((note, count),) = kept.notes.items()
    assert count == 1
    assert "passed over" in note
    # The next thing learnt makes it whole again.
    kept.learn(CONE, "udp", Strategy.PLAIN)
    assert memory(path, clock).worked(CONE, "udp") == (Strategy.PLAIN,)


def test_a_place_that_cannot_be_written_costs_a_note(tmp_path: Path, clock: Clock) -> None:
    (tmp_path / "file").write_text("not a folder")
    kept = memory(tmp_path / "file" / "paths.json", clock)
    kept.learn(CONE, "udp", Strategy.PLAIN)
    assert kept.worked(CONE, "udp") == (Strategy.PLAIN,)
    assert any("cannot write" in note for note in kept.notes)


def test_writing_leaves_nothing_else_behind(path: Path, clock: Clock) -> None:
    kept = memory(path, clock)
    for strategy in Strategy:
        kept.learn(CONE, "udp", strategy)
    assert [entry.name for entry in path.parent.iterdir()] == ["paths.json"]


def test_it_stays_small(path: Path, clock: Clock) -> None:
    for number in range(MOST_NETWORKS + 5):
        clock.now += 1
        memory(path, clock, Network(f"10.0.{number}.1")).learn(CONE, "udp", Strategy.PLAIN)
    document = json.loads(path.read_text())
    assert len(document["networks"]) == MOST_NETWORKS
    assert memory(path, clock, Network("10.0.0.1")).worked(CONE, "udp") == ()
    last = Network(f"10.0.{MOST_NETWORKS + 4}.1")
    assert memory(path, clock, last).worked(CONE, "udp") == (Strategy.PLAIN,)


def test_sorts_of_peers_are_bounded_too(path: Path, clock: Clock) -> None:
    kept = memory(path, clock)
    sorts = [
        NatSummary(FamilySummary(PathSummary(mapping=m, filtering=f, allocation=a)))
        for m in Mapping
        for f in Filtering
        for a in Allocation
    ]
    for peer in sorts:
        kept.learn(peer, "udp", Strategy.PLAIN)
    assert kept.worked(sorts[0], "udp") == ()
    assert kept.worked(sorts[-1], "udp") == (Strategy.PLAIN,)
    (entry,) = json.loads(path.read_text())["networks"].values()
    assert len(entry["worked"]) == MOST_PEERS


def test_it_can_be_off(clock: Clock) -> None:
    kept = memory(None, clock)
    kept.learn(CONE, "udp", Strategy.PLAIN)
    kept.measured(CONE)
    kept.forget()
    assert kept.worked(CONE, "udp") == ()
    assert kept.summary() is None
    assert not kept.notes


def test_an_unknown_network_is_not_mixed_up_with_another(path: Path, clock: Clock) -> None:
    kept = memory(path, clock, Network())
    kept.learn(CONE, "udp", Strategy.PLAIN)
    assert kept.worked(CONE, "udp") == ()
    assert not path.exists()


def test_it_can_be_made_to_forget(path: Path, clock: Clock) -> None:
    kept = memory(path, clock)
    kept.learn(CONE, "udp", Strategy.PLAIN)
    kept.forget()
    assert not path.exists()
    assert kept.worked(CONE, "udp") == ()


def test_the_file_is_where_caches_are() -> None:
    assert default_path({"XDG_CACHE_HOME": "/tmp/c"}) == Path("/tmp/c/natkit/paths.json")
    # The XDG specification wants relative paths ignored.
    for environment in ({}, {"XDG_CACHE_HOME": "c"}, {"XDG_CACHE_HOME": ""}):
        assert default_path(environment) == Path.home() / ".cache/natkit/paths.json"


# The network, as Linux tells it. ------------------------------------------------------------------

ROUTE = """Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
eth1\t0000A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0
eth0\t00000000\t{gateway}\t0003\t0\t0\t100\t00000000\t0\t0\t0
"""
ARP = """IP address       HW type     Flags       HW address            Mask     Device
192.168.1.1      0x1         0x2         02:00:5e:10:00:09     *        eth1
192.168.1.1      0x1         0x2         02:00:5e:10:00:01     *        eth0
"""


def test_the_network_is_the_default_gateway(tmp_path: Path) -> None:
    octets = bytes((192, 168, 1, 1))
    gateway = f"{int.from_bytes(octets, sys.byteorder):08X}"
    (tmp_path / "route").write_text(ROUTE.format(gateway=gateway))
    assert this_network(tmp_path) == Network("192.168.1.1", "", "eth0")
    (tmp_path / "arp").write_text(ARP)
    assert this_network(tmp_path) == HOME


@pytest.mark.parametrize("text", ["", "x", "x\ny\n", "a\n" + "\t".join("zz" * 9), "a\n\xff"])
def test_whatever_the_system_says_is_no_trouble(tmp_path: Path, text: str) -> None:
    (tmp_path / "route").write_bytes(text.encode("latin-1"))
    assert this_network(tmp_path) == Network()
    assert not Network().is_known


def test_a_system_that_says_nothing_has_no_network(tmp_path: Path) -> None:
    assert this_network(tmp_path / "nowhere") == Network()
