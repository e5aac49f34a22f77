"""The layouts of the maps are those of relay.h, and values come back as they went in."""

from __future__ import annotations

import ipaddress
import random
import re
import struct
import sys
from pathlib import Path

import pytest

from stun.errors import UsageError
from stun.sansio import SECOND, Address
from turn.dataplane.kernel import layouts
from turn.dataplane.kernel.layouts import (
    LAYOUTS,
    PORT_WORDS,
    WORDS,
    Count,
    Layout,
    PathKey,
    Rate,
    changed,
    pack_draw,
    pack_host,
    pack_key,
    unpack_host,
    unpack_key,
    unpack_path,
    unpack_rate,
)
from turn.dataplane.kernel.layouts import Path as RelayPath
from turn.meter import Bucket, Meter

HEADER = Path(layouts.__file__).with_name("relay.h")
SIZES = {"__u8": 1, "__u16": 2, "__be16": 2, "__u32": 4, "__u64": 8, "struct bpf_spin_lock": 4}
FIELD = re.compile(r"^\s*((?:struct )?\w+) (\w+)(?:\[(\w+)\])?;", re.MULTILINE)


def header() -> str:
    """relay.h without its comments."""
    return re.sub(r"/\*.*?\*/", "", HEADER.read_text(), flags=re.DOTALL)


def fields_of(name: str) -> dict[str, tuple[int, int]]:
    """Where the fields of a structure are, and their sizes, as a compiler lays them out."""
    text = header()
    constants = {name: int(value) for name, value in re.findall(r"#define (\w+) (\d+)", text)}
    found = re.search(rf"^struct {name} {{\n(.*?)^}};", text, re.MULTILINE | re.DOTALL)
    assert found, name
    body = found[1]
    assert body.count(";") == len(FIELD.findall(body))
    at, places = 0, {}
    for kind, field, dimension in FIELD.findall(body):
        unit = SIZES[kind]
        at = -(-at // unit) * unit
        size = unit * (constants.get(dimension) or int(dimension or 1))
        places[field] = at, size
        at += size
    return places


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_fields_are_those_of_the_header(layout: Layout) -> None:
    expected = fields_of(layout.name)
    assert layout.offsets() == expected
    assert list(layout.offsets()) == list(expected)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_there_is_no_padding_that_nobody_wrote(layout: Layout) -> None:
    # Octets between fields would be part of a key, and of nobody's making.
    assert layout.size == sum(size for _, size in layout.offsets().values())
    # An array of them is aligned as its widest member is.
    assert layout.size % max(min(size, 8) for _, size in fields_of(layout.name).values()) == 0


def test_every_structure_of_the_header_has_a_layout() -> None:
    assert re.findall(r"^struct (\w+) {", header(), re.MULTILINE) == [one.name for one in LAYOUTS]


def test_counts_are_those_of_the_header() -> None:
    found = re.search(r"enum count {(.*?)}", header(), re.DOTALL)
    assert found
    names = re.findall(r"[A-Z_]+", found[1])
    assert names.pop() == "COUNTS"
    assert names == [count.name for count in Count]
    assert [count.value for count in Count] == list(range(len(names)))


def test_every_count_has_words_of_its_own() -> None:
    assert set(WORDS) == set(Count)
    assert len(set(WORDS.values())) == len(Count)


def test_ports_have_a_bit_each() -> None:
    assert PORT_WORDS * 64 == 65536


# Addresses. ---------------------------------------------------------------------------------------


def test_ipv4_is_mapped() -> None:
    assert pack_host("192.0.2.33") == bytes.fromhex("00000000000000000000ffffc0000221")
    assert unpack_host(pack_host("192.0.2.33")) == "192.0.2.33"


def test_a_mapped_address_is_the_address_of_ipv4() -> None:
    # A socket of both families speaks of its IPv4 peers in this way; on the wire they are IPv4.
    assert pack_host("::ffff:192.0.2.33") == pack_host("192.0.2.33")


def test_ipv6() -> None:
    assert pack_host("2001:db8::7") == bytes.fromhex("20010db8000000000000000000000007")
    assert unpack_host(pack_host("2001:db8::7")) == "2001:db8::7"


@pytest.mark.parametrize("host", ["fe80::1", "fe80::1%eth0", "febf::1", "2001:db8::1%3"])
def test_an_address_of_one_link_is_refused(host: str) -> None:
    with pytest.raises(ValueError, match="is of one link"):
        pack_host(host)


def test_neighbours_of_the_link_local_prefix_are_not() -> None:
    assert pack_host("fec0::1") != pack_host("fe7f::1")


def test_what_is_no_address_is_refused() -> None:
    with pytest.raises(UsageError):
        pack_host("relay.example")


# Keys and paths. ----------------------------------------------------------------------------------


def random_address(rng: random.Random) -> Address:
    if rng.random() < 0.5:
        host = str(ipaddress.IPv4Address(rng.getrandbits(32)))
    else:
        host = str(ipaddress.IPv6Address(0x2001 << 112 | rng.getrandbits(112)))
    return Address(host, rng.randrange(65536))


def test_keys_come_back(rng: random.Random) -> None:
    for _ in range(200):
        key = PathKey(random_address(rng), random_address(rng), rng.randrange(65536))
        assert unpack_key(key.pack()) == key


def test_paths_come_back(rng: random.Random) -> None:
    for _ in range(200):
        path = RelayPath(
            rng.getrandbits(63), random_address(rng), random_address(rng), rng.randrange(65536),
            rng.randrange(65536), rng.getrandbits(31), rng.getrandbits(32),
            (rng.getrandbits(32), rng.getrandbits(32)),
        )  # fmt: skip
        assert unpack_path(path.pack()) == path


def test_what_the_program_reads_in_a_key() -> None:
    octets = pack_key(Address("192.0.2.1", 3478), Address("2001:db8::2", 0x1234), 0x4001)
    at = fields_of("path_key")
    assert octets[slice(at["local_port"][0], at["local_port"][0] + 2)] == b"\x0d\x96"
    assert octets[slice(at["remote_port"][0], at["remote_port"][0] + 2)] == b"\x12\x34"
    assert octets[slice(at["channel"][0], at["channel"][0] + 2)] == b"\x40\x01"
    assert octets[at["zero"][0] :] == bytes(2)
    assert octets[:16] == pack_host("192.0.2.1")
    assert octets[16:32] == pack_host("2001:db8::2")


def test_what_the_program_reads_in_a_path() -> None:
    path = RelayPath(
        1 << 40,
        Address("192.0.2.1", 49152),
        Address("192.0.2.9", 5000),
        0,
        1500,
        3,
        7,
        (1, 2),
        "fe80::1",
    )
    octets = path.pack()
    at = fields_of("path")

    def number(name: str) -> int:
        start, size = at[name]
        return int.from_bytes(octets[start : start + size], sys.byteorder)

    assert (number("expires"), number("mtu"), number("ifindex")) == (1 << 40, 1500, 3)
    assert number("usage") == 7
    start = at["next_hop"][0]
    assert octets[start : start + 16] == bytes.fromhex("fe80" + "00" * 13 + "01")
    start = at["buckets"][0]
    assert struct.unpack_from("=2I", octets, start) == (1, 2)
    start = at["source_port"][0]
    assert octets[start : start + 6] == b"\xc0\x00\x13\x88\x00\x00"


@pytest.mark.parametrize("port", [-1, 65536])
def test_what_is_no_port_is_refused(port: int) -> None:
    with pytest.raises(struct.error):
        pack_key(Address("192.0.2.1", port), Address("192.0.2.2", 1), 0)


def test_what_is_to_be_drawn_is_longer_than_an_ethernet_header() -> None:
    octets = pack_draw(3, 1 << 33, 17)
    assert struct.unpack_from("=IIQ", octets, fields_of("draw")["bucket"][0]) == (3, 17, 1 << 33)
    assert len(octets) == 32


# Rates. -------------------------------------------------------------------------------------------

NEW = Rate(0, 0, 0, 0, 0)


def held(rate: Rate, now: int) -> tuple[float, float]:
    """The octets and packets that a bucket holds; below zero it owes."""
    octets = (rate.burst - max(rate.octets_at - now, 0)) * 65536 / rate.octet_cost
    packets = (rate.burst - max(rate.packets_at - now, 0)) / rate.packet_cost
    return octets, packets


def test_a_new_bucket_is_full() -> None:
    rate = changed(NEW, 1_000_000, 500, SECOND, 77)
    assert rate == Rate(1000 * 65536, 2_000_000, SECOND, 77, 77)
    assert unpack_rate(rate.pack()) == rate
    assert held(rate, 77) == (1_000_000, 500)


def test_no_limit_costs_nothing() -> None:
    rate = changed(changed(NEW, 1000, 1000, SECOND, 5), 0, 0, SECOND, 6)
    assert (rate.octet_cost, rate.packet_cost) == (0, 0)


def test_costs_are_rounded_so_that_no_more_than_the_rate_passes() -> None:
    for octets, packets in ((3, 3), (7_654_321, 333_333), (40 << 30, 7_000_000)):
        rate = changed(NEW, octets, packets, SECOND, 0)
        assert rate.octet_cost * octets >= SECOND << 16
        assert rate.packet_cost * packets >= SECOND
        assert (rate.octet_cost - 1) * octets < SECOND << 16
        assert (rate.packet_cost - 1) * packets < SECOND


def test_rates_change_as_those_of_the_server_do(rng: random.Random) -> None:
    """The bucket in the kernel holds what :class:`turn.meter.Bucket` does after any change."""
    for _ in range(300):
        now = rng.randrange(1 << 40)
        rates = [rng.choice([1000, 64_000, 10**6, 10**8]) for _ in range(2)]
        packets = [rng.choice([10, 500, 10**5]) for _ in range(2)]
        ours, meter = Bucket(rates[0], packets[0]), Meter()
        ours.offer(meter, 0.0, now)
        kernel = changed(NEW, rates[0], packets[0], SECOND, now)
        # Part of it is taken, or more than all of it.
        taken = rng.uniform(0, 1.5 * rates[0]), rng.uniform(0, 1.5 * packets[0])
        ours.take(meter, *taken)
        kernel = kernel._replace(
            octets_at=now + (int(taken[0] * kernel.octet_cost) >> 16),
            packets_at=now + int(taken[1] * kernel.packet_cost),
        )
        now += rng.randrange(SECOND)
        ours.offer(meter, 0.0, now)
        ours.change(rates[1], packets[1])
        kernel = changed(kernel, rates[1], packets[1], SECOND, now)
        octets, count = held(kernel, now)
        assert octets == pytest.approx(ours._octets, abs=1.0, rel=1e-3)
        assert count == pytest.approx(ours._packets, abs=0.01, rel=1e-3)
