"""What the program in the kernel makes of each packet, beside a model of what it should make of it.

The program is run by the kernel on frames of ours, which go nowhere: see
:mod:`tests.lab.kernel_rig`.
"""

from __future__ import annotations

import random
import struct
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from stun.sansio import Address
from tests.lab import frames
from tests.lab.kernel_rig import (
    CHANNEL,
    FAMILIES,
    FAR,
    LOOPBACK,
    OTHER,
    Relay,
    arriving,
    assert_right,
    changed,
    channel_data,
    datagram,
    foreseen,
    relays,
)
from turn.dataplane.kernel.layouts import Count, pack_key
from turn.dataplane.kernel.libbpf import TC_REDIRECT, TCX_NEXT

pytestmark = pytest.mark.lab

SIZES = (0, 1, 2, 3, 4, 5, 7, 160, 1199, 1200)


@pytest.fixture
def relay() -> Iterator[Relay]:
    with relays() as relay:
        yield relay


# What is forwarded. -------------------------------------------------------------------------------


@pytest.mark.parametrize("leaves", FAMILIES)
@pytest.mark.parametrize("arrives", FAMILIES)
@pytest.mark.parametrize("direction", ["to peers", "to clients"])
def test_it_is_forwarded_as_the_model_says(
    relay: Relay, rng: random.Random, direction: str, arrives: str, leaves: str
) -> None:
    leg = relay.leg(direction, arrives, leaves)
    octets = packets = 0
    for size in SIZES:
        for padding in range(4) if leg.channel else (0,):
            payload = rng.randbytes(size)
            what = datagram(
                leg, payload, rng.randbytes(padding), tos=rng.randrange(256),
                ttl=rng.randrange(2, 256), df=rng.random() < 0.5,
                flow_label=rng.getrandbits(20) if leg.local.is_ipv6 else 0,
            )  # fmt: skip
            assert_right(relay.forwards(arriving(what)), foreseen(leg, what, payload))
            octets, packets = octets + size, packets + 1
    # RFC 8656 does not count headers or padding as data, and neither does natkit.
    assert relay.program.usage(leg.usage) == (packets, octets, 0)
    wanted = Count.TO_PEERS if leg.channel else Count.TO_CLIENTS
    assert relay.program.counts()[wanted] == packets


@pytest.mark.parametrize("direction", ["to peers", "to clients"])
def test_what_was_ipv6_may_be_cut_only_when_it_is_short(relay: Relay, direction: str) -> None:
    leg = relay.leg(direction, "IPv6", "IPv4")
    for length, df in ((1259, False), (1260, False), (1261, True), (1400, True)):
        payload = bytes(length - 28 - (4 if leg.write else 0))
        what = datagram(leg, payload)
        seen = relay.forwards(arriving(what))
        assert seen.packet.df is df
        assert_right(seen, foreseen(leg, what, payload))


def test_every_dscp_and_ecn_is_copied(relay: Relay) -> None:
    # RFC 8656 section 14, both: "Set the outgoing value to the incoming value".
    for (_, arrives, _), leg in relay.legs.items():
        for tos in range(0, 256, 1 if arrives == "IPv6" else 5):
            seen = relay.forwards(arriving(datagram(leg, tos=tos)))
            assert seen.packet.tos == tos


def test_ipv4_packets_are_numbered_anew(relay: Relay) -> None:
    leg = relay.leg("to peers")
    what = arriving(datagram(leg, identification=7))
    numbers = {relay.forwards(what).packet.identification for _ in range(16)}
    # RFC 6864 section 4.1 wants them unique where packets may be cut; 16 draws are not all alike.
    assert len(numbers) > 8


@pytest.mark.parametrize("trailer", [1, 6, 18, 46])
def test_padding_of_the_ethernet_frame_is_no_payload(relay: Relay, trailer: int) -> None:
    for leg in relay.legs.values():
        what = datagram(leg, b"x")
        frame = arriving(what, b"\xa5" * trailer)
        assert_right(relay.forwards(frame), foreseen(leg, what, b"x"))


def test_what_a_peer_sends_may_look_like_channel_data(relay: Relay) -> None:
    for (direction, _, _), leg in relay.legs.items():
        if direction == "to clients":
            payload = channel_data(b"not for you")
            what = datagram(leg, payload)
            assert_right(relay.forwards(arriving(what)), foreseen(leg, what, payload))


@pytest.mark.parametrize("channel", [0x4000, 0x4FFF])
def test_the_first_and_the_last_channel(relay: Relay, channel: int) -> None:
    # RFC 8656 section 12: 0x4000 through 0x4FFF "are the allowed channel numbers".
    leg = relay.leg("to peers")._replace(channel=channel, usage=40)
    relay.set(leg)
    assert_right(relay.forwards(arriving(datagram(leg))), foreseen(leg, datagram(leg), b"payload"))
    assert relay.program.usage(40).packets == 1


@pytest.mark.parametrize(
    "host", ["2001:db8::ffff:c000:221", "64:ff9b:1::ffff:c000:221", "::1:0:ffff:c000:221"]
)
def test_addresses_of_ipv6_that_end_like_those_of_ipv4(relay: Relay, host: str) -> None:
    for arrives in FAMILIES:
        leg = relay.leg("to peers", arrives, "IPv6")._replace(destination=Address(host, 5))
        relay.set(leg)
        what = datagram(leg)
        assert_right(relay.forwards(arriving(what)), foreseen(leg, what, b"payload"))


def test_channels_of_one_client_lead_to_peers_of_their_own(relay: Relay) -> None:
    first = relay.leg("to peers")
    second = first._replace(
        channel=CHANNEL + 1, destination=Address("203.0.113.77", 7777), usage=41
    )
    relay.set(second)
    for leg in (first, second, first):
        seen = relay.forwards(arriving(datagram(leg)))
        assert seen.packet.destination == leg.destination


# Checksums. ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("leaves", FAMILIES)
@pytest.mark.parametrize("arrives", FAMILIES)
@pytest.mark.parametrize("direction", ["to peers", "to clients"])
def test_what_was_damaged_on_the_way_still_is(
    relay: Relay, rng: random.Random, direction: str, arrives: str, leaves: str
) -> None:
    """The checksum is carried on: a payload that it does not fit is found out by the receiver."""
    leg = relay.leg(direction, arrives, leaves)
    for _ in range(50):
        payload = rng.randbytes(rng.randrange(2, 90))
        good = datagram(leg, payload)
        (sent,) = frames.packets(good)
        given = int.from_bytes(sent[len(sent) - len(good.payload) - 2 :][:2])
        damage = rng.randrange(1, 0xFFFF)
        wrong = (given + damage) % 0xFFFF or 0xFFFF
        seen = relay.forwards(arriving(replace(good, checksum=wrong)))
        assert not seen.checksum_right
        # It is off by as much as it was.
        right = frames.read(
            frames.frame(FAR, OTHER, *frames.packets(replace(seen.packet, checksum=None)))
        )
        assert right is not None
        assert (seen.packet.checksum - right.packet.checksum) % 0xFFFF == (wrong - given) % 0xFFFF


def test_a_checksum_of_zero_is_written_as_all_ones(relay: Relay) -> None:
    for leg in relay.legs.values():
        # The last word of the payload is chosen so that what leaves sums up to nothing.
        payload = b"\x12\x34\0\0"
        out = foreseen(leg, datagram(leg, payload), payload)
        (packet,) = frames.packets(out)
        (word,) = struct.unpack_from("!H", packet, len(packet) - len(out.payload) - 2)
        payload = b"\x12\x34" + struct.pack("!H", word)
        what = datagram(leg, payload)
        seen = relay.forwards(arriving(what))
        assert seen.packet.checksum == 0xFFFF
        assert_right(seen, foreseen(leg, what, payload))


def test_without_a_checksum_it_stays_without_in_ipv4(relay: Relay) -> None:
    # RFC 768: "An all zero transmitted checksum value means that the transmitter generated no
    # checksum".
    for direction in ("to peers", "to clients"):
        leg = relay.leg(direction)
        what = datagram(leg, checksum=0)
        seen = relay.forwards(arriving(what))
        assert seen.packet.checksum == 0
        assert_right(seen, foreseen(leg, what, b"payload"))


def test_without_a_checksum_none_leaves_over_ipv6(relay: Relay) -> None:
    for direction in ("to peers", "to clients"):
        frame = arriving(datagram(relay.leg(direction, "IPv4", "IPv6"), checksum=0))
        relay.passes_up(frame, Count.UNCHECKED)


@pytest.mark.parametrize("leaves", FAMILIES)
def test_without_a_checksum_none_comes_over_ipv6(relay: Relay, leaves: str) -> None:
    # RFC 8200 section 8.1: "IPv6 receivers must discard UDP packets containing a zero checksum".
    for direction in ("to peers", "to clients"):
        frame = arriving(datagram(relay.leg(direction, "IPv6", leaves), checksum=0))
        relay.passes_up(frame, Count.MALFORMED)


# What is passed up. -------------------------------------------------------------------------------


def test_the_last_hop_is_not_taken(relay: Relay) -> None:
    for leg in relay.legs.values():
        for ttl in (0, 1):
            relay.passes_up(arriving(datagram(leg, ttl=ttl)), Count.LAST_HOP)
        assert relay.forwards(arriving(datagram(leg, ttl=2))).packet.ttl == 1


@pytest.mark.parametrize("mtu", [576, 1280, 1400, 1500])
def test_the_mtu_is_kept_to_the_octet(relay: Relay, mtu: int) -> None:
    for leg in relay.legs.values():
        if leg.destination.is_ipv6 and mtu < 1280:
            continue  # no link of IPv6 is as narrow (RFC 8200 section 5)
        relay.set(leg, mtu=mtu)
        most = mtu - (40 if leg.destination.is_ipv6 else 20) - 8 - (4 if leg.write else 0)
        # With DF, so that nothing but the link's own MTU counts.
        what = datagram(leg, bytes(most), df=True)
        assert len(relay.forwards(arriving(what)).packet.payload) == most + (4 if leg.write else 0)
        relay.passes_up(arriving(datagram(leg, bytes(most + 1), df=True)), Count.TOO_BIG)


def test_what_ipv4_may_cut_is_not_made_too_long_for_ipv6(relay: Relay) -> None:
    # RFC 7915 section 4.1: without DF, what does not fit into 1280 octets of IPv6 is cut.
    for direction in ("to peers", "to clients"):
        leg = relay.leg(direction, "IPv4", "IPv6")
        most = 1280 - 48 - (4 if leg.write else 0)
        relay.forwards(arriving(datagram(leg, bytes(most))))
        relay.passes_up(arriving(datagram(leg, bytes(most + 1))), Count.TOO_BIG)


def test_what_has_no_path(relay: Relay) -> None:
    for leg in relay.legs.values():
        stranger = replace(datagram(leg), source=Address(leg.remote.host, 1))
        relay.passes_up(arriving(stranger), Count.NO_PATH)
        if leg.channel:
            unbound = replace(datagram(leg), payload=channel_data(b"x", channel=CHANNEL + 1))
            relay.passes_up(arriving(unbound), Count.NO_PATH)


def test_stun_from_a_client_is_the_servers(relay: Relay) -> None:
    leg = relay.leg("to peers")
    for message in (
        b"",
        b"\0",
        b"\x00\x16\x00\x00\x21\x12\xa4\x42" + bytes(12),
        b"\x40",
        b"\x4a\xbc\0",
    ):
        relay.passes_up(arriving(replace(datagram(leg), payload=message)), Count.NO_PATH)


def test_what_fills_up_the_frame_is_no_channel_data(relay: Relay) -> None:
    filling = channel_data(b"behind the end")
    for (direction, _, _), leg in relay.legs.items():
        if direction == "to peers":
            for payload in (b"", b"\x4a", b"\x4a\xbc", b"\x4a\xbc\0"):
                what = replace(datagram(leg), payload=payload)
                relay.passes_up(arriving(what, filling[len(payload) :]), Count.NO_PATH)


def test_ports_that_no_path_begins_at_are_not_looked_at(relay: Relay) -> None:
    for leg in relay.legs.values():
        elsewhere = replace(datagram(leg), destination=Address(leg.local.host, 3479))
        relay.passes_up(arriving(elsewhere), None)


def test_a_port_is_looked_at_as_long_as_anybody_asks_for_it(relay: Relay) -> None:
    leg = relay.leg("to clients")
    frame = arriving(datagram(leg))
    relay.program.serve_port(leg.local.port)
    relay.program.unserve_port(leg.local.port)
    relay.forwards(frame)
    relay.program.unserve_port(leg.local.port)
    relay.passes_up(frame, None)
    relay.program.serve_port(leg.local.port)
    relay.forwards(frame)
    with pytest.raises(ValueError, match="port 9 is not served"):
        relay.program.unserve_port(9)


def test_a_path_that_is_taken_out(relay: Relay) -> None:
    for leg in relay.legs.values():
        key = pack_key(*leg[:3])
        assert relay.program.drop_path(key)
        assert not relay.program.drop_path(key)
        assert relay.program.path(key) is None
        relay.passes_up(arriving(datagram(leg)), Count.NO_PATH)


def test_a_path_that_is_over(relay: Relay) -> None:
    for leg in relay.legs.values():
        relay.set(leg, expires=time.monotonic_ns())
        relay.passes_up(arriving(datagram(leg)), Count.EXPIRED)
        relay.set(leg)
        relay.forwards(arriving(datagram(leg)))


def test_fragments(relay: Relay) -> None:
    for (_, arrives, _), leg in relay.legs.items():
        first, second = frames.packets(datagram(leg, bytes(64)), cuts=(32,))
        # Of IPv6 what is behind the header of the fragment is not looked at; the second fragment
        # has no ports in either.
        counted = Count.FRAGMENT if arrives == "IPv4" else None
        relay.passes_up(frames.frame(LOOPBACK, OTHER, first), counted)
        relay.passes_up(frames.frame(LOOPBACK, OTHER, second), None)


def test_options_and_extension_headers(relay: Relay) -> None:
    for (_, arrives, _), leg in relay.legs.items():
        options = b"\x94\x04\0\0" if arrives == "IPv4" else bytes([0, 0, 5, 2, 0, 0, 1, 0])
        what = datagram(leg, options=options)
        relay.passes_up(arriving(what), Count.OPTIONS if arrives == "IPv4" else None)
        relay.passes_up(arriving(what.to(Address(leg.local.host, 9))), None)


def test_packets_of_another_version_than_the_frame_says(relay: Relay) -> None:
    for (_, arrives, _), leg in relay.legs.items():
        frame = arriving(datagram(leg))
        firsts = (0x55, 0x65, 0x05, 0x44, 0x40) if arrives == "IPv4" else (0x40, 0x50, 0x70, 0x00)
        for first in firsts:
            relay.passes_up(changed(frame, 0, bytes([first])), None)


def test_several_datagrams_in_one(relay: Relay) -> None:
    for leg in relay.legs.values():
        relay.passes_up(arriving(datagram(leg, bytes(600))), Count.SEGMENTED, segment=200)


def test_a_tag_in_the_frame_is_not_looked_behind(relay: Relay) -> None:
    for leg in relay.legs.values():
        (packet,) = frames.packets(datagram(leg))
        relay.passes_up(frames.frame(LOOPBACK, OTHER, packet, vlan=7), None)


def test_frames_for_others(relay: Relay) -> None:
    # An interface that listens to everything sees them, too.
    for leg in relay.legs.values():
        (packet,) = frames.packets(datagram(leg))
        relay.passes_up(frames.frame(FAR, OTHER, packet), None)
        relay.passes_up(frames.frame("ff:ff:ff:ff:ff:ff", OTHER, packet), None)


def test_other_protocols(relay: Relay) -> None:
    for (_, arrives, _), leg in relay.legs.items():
        frame = arriving(datagram(leg))
        for protocol in (1, 6, 33, 58, 132, 136):
            relay.passes_up(changed(frame, 9 if arrives == "IPv4" else 6, bytes([protocol])), None)
    relay.passes_up(frames.frame(LOOPBACK, OTHER, bytes(46)), None)


def test_lengths_that_contradict_each_other(relay: Relay) -> None:
    for (_, arrives, _), leg in relay.legs.items():
        what = datagram(leg, bytes(40))
        frame = arriving(what)
        size = 20 if arrives == "IPv4" else 40
        for wrong in (0, 7, len(what.payload) + 7, len(what.payload) + 9, 65535):
            relay.passes_up(changed(frame, size + 4, struct.pack("!H", wrong)), Count.MALFORMED)
        # The packet is said to be longer than the frame has room for.
        relay.passes_up(frame[:-1], Count.MALFORMED)


def test_channel_data_that_says_more_than_there_is(relay: Relay) -> None:
    for (direction, _, _), leg in relay.legs.items():
        if direction == "to peers":
            for length in (9, 10, 1000, 65535):
                body = struct.pack("!HH", CHANNEL, length) + bytes(8)
                relay.passes_up(arriving(replace(datagram(leg), payload=body)), Count.MALFORMED)


def test_channel_data_with_more_behind_it_than_padding(relay: Relay) -> None:
    leg = relay.leg("to peers")
    for extra in (4, 5, 8):
        relay.passes_up(arriving(datagram(leg, b"data", bytes(extra))), Count.MALFORMED)


@pytest.mark.parametrize("direction", ["to peers", "to clients"])
def test_an_ip_header_whose_checksum_is_wrong(relay: Relay, direction: str) -> None:
    frame = arriving(datagram(relay.leg(direction)))
    wrong = bytes([frame[24] ^ 1])
    relay.passes_up(changed(frame, 10, wrong), Count.MALFORMED)


def test_what_is_cut_short_anywhere(relay: Relay) -> None:
    for (_, arrives, _), leg in relay.legs.items():
        frame = arriving(datagram(leg))
        # The kernel takes no frame for a trial run that is shorter than its IP header.
        for end in range(34 if arrives == "IPv4" else 54, len(frame)):
            verdict, after, _ = relay.counted(frame[:end])
            assert (verdict, after) == (TCX_NEXT, frame[:end])


# Everything at once. ------------------------------------------------------------------------------


def test_damaged_frames_are_passed_up_as_they_are_or_forwarded_whole(
    relay: Relay, rng: random.Random
) -> None:
    """Whatever a frame says, what comes out is the same frame or a datagram that was in it."""
    legs = list(relay.legs.values())
    forwarded = 0
    for _ in range(4000):
        leg = rng.choice(legs)
        payload = rng.randbytes(rng.randrange(64))
        what = datagram(leg, payload, bytes(rng.randrange(4) if leg.channel else 0))
        frame = bytearray(arriving(what))
        for _ in range(rng.choice([1, 1, 2, 3])):
            frame[rng.randrange(14, len(frame))] = rng.randrange(256)
        verdict, after, counts = relay.counted(bytes(frame))
        if verdict == TCX_NEXT:
            assert after == frame
            continue
        assert verdict == TC_REDIRECT, counts
        forwarded += 1
        came = frames.read(bytes(frame))
        left = frames.read(frames.frame(FAR, OTHER, after[14:]))
        assert came is not None
        assert left is not None
        assert came.header_right
        assert left.header_right
        # A checksum that does not fit never becomes one that does, nor the other way round.
        if came.packet.checksum:
            assert left.checksum_right == came.checksum_right
        body = left.packet.payload
        if left.packet.source.port == 3478:
            assert body == channel_data(came.packet.payload)
        else:
            length = int.from_bytes(came.packet.payload[2:4])
            assert body == came.packet.payload[4 : 4 + length]
        assert left.packet.ttl == came.packet.ttl - 1
        assert left.packet.tos == came.packet.tos
        assert left.packet.destination in {one.destination for one in legs}
    assert forwarded > 200
