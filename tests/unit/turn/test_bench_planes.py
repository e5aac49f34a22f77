"""The benchmark's frames are what receivers accept, its sums are right, its picture shows them."""

from __future__ import annotations

import socket
import struct
from random import Random
from typing import Any
from xml.etree import ElementTree

import pytest

from stun.sansio import Address
from tools.bench.frames import head, ones_sum
from tools.bench.lab import CLIENTS, Side, host
from tools.bench.measures import Seen
from tools.bench.planes import COTURN, DIRECT, FORWARD, KERNEL, SOCKETS, added, verdict
from tools.bench.planes_picture import WAYS, Axis, decades, draw
from tools.bench.ways import Flow

SIDE = Side(-1, bytes.fromhex("020000000102"), bytes.fromhex("020000000101"))


def sum_of(octets: bytes) -> int:
    """RFC 1071 the long way: 16 bits at a time, each carry added at once."""
    total = 0
    for n in range(0, len(octets), 2):
        total += int.from_bytes(octets[n : n + 2].ljust(2, b"\0"), "big")
        if total > 0xFFFF:
            total -= 0xFFFF
    return total


@pytest.mark.parametrize("size", [0, 1, 160, 1199, 1200])
@pytest.mark.parametrize("begin", [b"", b"\x40\0\0\xa0", b"odd"])
def test_frames_have_correct_lengths_and_checksums(begin: bytes, size: int, rng: Random) -> None:
    source = Address(host(CLIENTS, rng.randrange(65_000)), rng.randrange(1, 65_536))
    destination = Address("10.0.1.1", 3478)
    frame = head(SIDE, source, destination, begin, size) + bytes(size)
    assert frame[:14] == SIDE.gateway + SIDE.mac + b"\x08\x00"
    ip, udp = frame[14:34], frame[34:]
    assert sum_of(ip) == 0xFFFF
    assert struct.unpack_from("!H", ip, 2)[0] == len(ip) + len(udp) == 28 + len(begin) + size
    assert socket.inet_ntoa(ip[12:16]) == source.host
    pseudo = ip[12:20] + bytes((0, 17)) + len(udp).to_bytes(2, "big")
    assert sum_of(pseudo + udp) == 0xFFFF
    assert struct.unpack_from("!HHH", udp) == (source.port, destination.port, len(udp))
    assert udp[8:] == begin + bytes(size)


def test_a_checksum_of_zero_is_sent_as_all_ones() -> None:
    # RFC 768: zero means that there is none.
    source, destination = Address("10.8.0.1", 5000), Address("10.0.1.1", 3478)
    for filler in range(0x10000):
        frame = head(SIDE, source, destination, filler.to_bytes(2, "big"), 0)
        if frame[40:42] == b"\xff\xff":
            return
        assert frame[40:42] != b"\0\0"
    pytest.fail("one of 65,536 payloads has this sum")


def test_the_sum_of_rfc_1071_is_the_same_however_it_is_made(rng: Random) -> None:
    for _ in range(200):
        octets = rng.randbytes(rng.randrange(1, 200))
        assert ones_sum(octets) == sum_of(octets)


def test_addresses_of_hosts_are_all_different_and_none_is_a_network() -> None:
    hosts = [host(CLIENTS, n) for n in range(65_000)]
    assert len({*hosts}) == len(hosts)
    assert not [one for one in hosts if one.endswith((".0", ".256"))]


def test_a_flow_carries_channel_data_to_the_peer_and_none_to_the_client() -> None:
    flow = Flow(
        Address("10.8.0.1", 5000),
        Address("10.0.1.1", 3478),
        0x4002,
        Address("10.0.2.1", 50_000),
        Address("10.9.0.1", 5000),
    )
    there = flow.head(SIDE, to_peer=True, size=100, payload=b"1234")
    assert there[42:] == bytes.fromhex("40020068") + b"1234"
    back = flow.head(SIDE, to_peer=False, size=100, payload=b"1234")
    assert back[42:] == b"1234"
    assert back[30:38] == socket.inet_aton("10.0.2.1") + struct.pack("!HH", 5000, 50_000)


def test_losses_and_rates_are_shares_of_what_was_sent() -> None:
    seen = Seen(sent=1000, received=900, elapsed=0.5, busy=0.004, server=0.001, load=0.002)
    assert seen.loss == pytest.approx(0.1)
    assert seen.rate == 1800
    assert seen.microseconds == pytest.approx(4)
    assert seen.own_microseconds == pytest.approx(3)


def test_added_latency_is_above_that_without_a_relay() -> None:
    found = added({DIRECT: [2.0] * 200, COTURN: [32.0] * 190 + [502.0] * 10}, 200)
    assert found[COTURN]["added_p50_us"] == pytest.approx(30)
    assert found[COTURN]["added_p99_us"] == pytest.approx(500)
    assert found[DIRECT]["added_p99_us"] == 0


def test_too_few_probes_give_no_percentiles() -> None:
    found = added({DIRECT: [2.0] * 200, COTURN: [3.0] * 20}, 200)
    assert found[COTURN] == {"arrived": 20, "sent": 200}


def test_marks_of_an_axis_span_all_values(rng: Random) -> None:
    for _ in range(300):
        values = [10 ** rng.uniform(-1.3, 5) for _ in range(rng.randrange(1, 9))]
        marks = decades(values)
        assert marks == sorted({*marks})
        assert marks[0] <= min(values)
        assert max(values) <= marks[-1]
        assert 2 <= len(marks) <= 11


def test_an_axis_puts_its_ends_at_its_ends() -> None:
    for logarithmic in (True, False):
        axis = Axis(1, 10_000, 350, logarithmic)
        assert axis.at(1) == 0
        assert axis.at(10_000) == pytest.approx(350)
    assert Axis(1, 10_000, 400, logarithmic=True).at(100) == pytest.approx(200)


def report() -> dict[str, Any]:
    costs = {FORWARD: 0.75, KERNEL: 0.9, SOCKETS: 4.5, COTURN: 5.0}
    rows: list[dict[str, Any]] = []
    for section, by, values in (
        ("clients", "clients", (1, 100, 10_000)),
        ("channels", "channels", (1, 100, 10_000)),
        ("payload", "octets", (20, 1200)),
    ):
        for value in values:
            row = {"section": section, "direction": "client to peer", "octets": 160}
            cost = {
                name: {"cpu_us": us, "to_coturn": us / 5, "own_to_coturn": us / 4}
                for name, us in costs.items()
            }
            rows.append(row | {"cost": cost} | {by: value})
    for load in (0.1, 0.9):
        latency = {name: {"added_p50_us": us, "added_p99_us": 9 * us} for name, us in costs.items()}
        row = {"section": "latency", "direction": "client to peer", "load": load}
        rows.append(row | {"latency": latency})
    machine = {"kernel": "6.18", "cores": 2, "coturn": "4.6.1", "date": "2026-01-01"}
    return {"machine": machine, "rows": rows}


def test_the_picture_has_a_plot_of_each_growth_with_every_way() -> None:
    picture = ElementTree.fromstring(draw(report()))
    space = "{http://www.w3.org/2000/svg}"
    words = [text.text for text in picture.iter(f"{space}text")]
    for name in WAYS:
        assert words.count(name.removeprefix("IP ")) == 4
    # 3 + 3 + 2 + 2 points for each of four ways.
    dots = [*picture.iter(f"{space}circle")]
    assert len(dots) == 40
    titles = {title.text for title in picture.iter(f"{space}title")}
    assert "turnd, kernel: 10,000: 0.90 µs" in titles
    width, height = float(picture.get("width", 0)), float(picture.get("height", 0))
    for dot in dots:
        assert 0 < float(dot.get("cx", 0)) < width
        assert 0 < float(dot.get("cy", 0)) < height


def test_the_picture_of_less_has_fewer_plots() -> None:
    less = report()
    less["rows"] = [row for row in less["rows"] if row["section"] == "payload"]
    assert draw(less).count("octets of payload</text>") == 1
    assert "Latency" not in draw(less)


def test_the_verdict_names_worst_and_best() -> None:
    rows = report()["rows"]
    rows[0]["cost"][KERNEL]["to_coturn"] = 0.5
    lines = [*verdict(rows)]
    assert f"{KERNEL}: CPU of the machine for a packet, to coturn's: 0.18 to 0.50" in lines[0]
