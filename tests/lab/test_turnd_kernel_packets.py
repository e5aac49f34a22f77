"""What turnd does to packets on each data plane: a client and a peer that are next to it.

Each test says what has to arrive, whoever forwards it, and then who has forwarded it: in the kernel
a packet that can be, in user space all others.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.lab import frames
from tests.lab.frames import Datagram
from tests.lab.turnd_calls import Call, Dial, Wire, channel_data, received
from tests.lab.turnd_world import Turnd, World

# What is forwarded. -------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0, 1, 2, 3, 160, 1199, 1200])
def test_payloads_pass_unchanged(turnd: Turnd, plane: str, call: Call, length: int) -> None:
    payload = bytes(range(256)) * 5
    payload = payload[:length]
    with turnd.watched() as moved:
        for _ in range(3):
            call.caller.send(call.peer, payload)
            assert received(call.sock) == (payload, call.caller.relayed)
            call.sock.sendto(payload, call.caller.relayed)
            assert call.heard(payload)
    assert moved.was(plane, 3, 3)


@pytest.mark.parametrize("padding", [1, 2, 3])
def test_padding_goes_no_further_than_turnd(
    turnd: Turnd, plane: str, call: Call, padding: int
) -> None:
    # RFC 8656 section 12.5: "Over UDP, the padding is not required but MAY be included."
    payload = bytes(21 - padding)
    with turnd.watched() as moved:
        call.caller.write(channel_data(call.channel, payload, padding))
        assert received(call.sock) == (payload, call.caller.relayed)
    assert moved.was(plane, 1, 0)


def test_every_payload_has_its_checksum(turnd: Turnd, plane: str, call: Call, wire: Wire) -> None:
    """Sums that come out as zero, odd lengths, octets that carry far: all are right on the wire."""
    with turnd.watched() as moved:
        for number in range(256):
            payload = bytes([number]) * (number % 7) + bytes([255, 255, number]) + bytes(number % 3)
            call.caller.write(channel_data(call.channel, payload))
            assert wire.next("peer", payload).source == call.caller.relayed
            assert received(call.sock) == (payload, call.caller.relayed)
            call.sock.sendto(payload, call.caller.relayed)
            message = channel_data(call.channel, payload)
            assert wire.next("client", message).source == call.caller.server
    assert moved.was(plane, 256, 256)


def test_a_checksum_that_sums_to_zero_is_sent_as_ones(
    turnd: Turnd, plane: str, call: Call, wire: Wire
) -> None:
    """RFC 768: "an all zero transmitted checksum value means that [...] no checksum"."""
    with turnd.watched() as moved:
        for last in (0, 0x1234, 0xFFFF):
            # What the peer gets without these two octets has some checksum; with them, ones.
            plain = Datagram(call.caller.relayed, call.peer, last.to_bytes(2) + bytes(2))
            missing = int.from_bytes(frames.udp(plain)[6:8])
            payload = last.to_bytes(2) + missing.to_bytes(2)
            call.caller.write(channel_data(call.channel, payload))
            assert wire.next("peer", payload).checksum == 0xFFFF
    assert moved.was(plane, 3, 0)


def test_without_a_checksum(call4: Call, wire: Wire) -> None:
    """IPv4 allows it, and what arrives is right either way."""
    wire.send("client", replace(call4.datagram(b"unchecked"), checksum=0))
    assert received(call4.sock) == (b"unchecked", call4.caller.relayed)


def test_without_a_checksum_to_a_family_that_needs_one(
    turnd: Turnd, dial: Dial, wire: Wire
) -> None:
    call = dial(peer6=True)
    with turnd.watched() as moved:
        wire.send("client", replace(call.datagram(b"unchecked"), checksum=0))
        assert received(call.sock) == (b"unchecked", call.caller.relayed)
    assert moved.was("sockets", 1, 0)


def test_what_is_damaged_is_not_mended(world: World, turnd: Turnd, call: Call, wire: Wire) -> None:
    """A wrong checksum is not replaced by a right one, so the datagram reaches no program."""
    (packet,) = frames.packets(call.datagram(b"damaged"))
    wire.send_packets("client", packet[:-1] + b"D")
    wire.send("client", call.datagram(b"sound"))
    assert received(call.sock) == (b"sound", call.caller.relayed)


# The headers of IP: RFC 8656 sections 13 and 14. --------------------------------------------------


@pytest.mark.parametrize("ttl", [2, 3, 64, 255])
def test_hop_limits_count_down_as_at_a_router(
    turnd: Turnd, plane: str, call: Call, wire: Wire, ttl: int
) -> None:
    """What the sockets send begins anew: section 13's alternate behaviour."""
    left = ttl - 1 if plane == "kernel" else 64
    with turnd.watched() as moved:
        out = replace(call.datagram(b"outgoing"), ttl=ttl)
        wire.send("client", out)
        assert wire.next("peer", b"outgoing").ttl == left
        back = replace(call.returned(b"returning"), ttl=ttl)
        wire.send("peer", back)
        assert wire.next("client", channel_data(call.channel, b"returning")).ttl == left
    assert moved.was(plane, 1, 1)


def test_the_last_hop_is_for_the_sockets(turnd: Turnd, call: Call, wire: Wire) -> None:
    """turnd is the packet's destination: it may take it, and sends one of its own."""
    with turnd.watched() as moved:
        out = replace(call.datagram(b"outgoing"), ttl=1)
        wire.send("client", out)
        assert wire.next("peer", b"outgoing").ttl == 64
        back = replace(call.returned(b"returning"), ttl=1)
        wire.send("peer", back)
        assert wire.next("client", channel_data(call.channel, b"returning")).ttl == 64
    assert moved.was("sockets", 1, 1)


@pytest.mark.parametrize("tos", [0, 0x01, 0x02, 0x03, 0xB8, 0xBB, 0xFF])
def test_dscp_and_ecn_go_on(turnd: Turnd, plane: str, call: Call, wire: Wire, tos: int) -> None:
    """The preferred behaviour in the kernel; the sockets' packets have neither."""
    kept = tos if plane == "kernel" else 0
    with turnd.watched() as moved:
        out = replace(call.datagram(b"outgoing"), tos=tos)
        wire.send("client", out)
        assert wire.next("peer", b"outgoing").tos == kept
        back = replace(call.returned(b"returning"), tos=tos)
        wire.send("peer", back)
        assert wire.next("client", channel_data(call.channel, b"returning")).tos == kept
    assert moved.was(plane, 1, 1)


@pytest.mark.parametrize("df", [False, True])
def test_df_goes_on(turnd: Turnd, plane: str, call4: Call, wire: Wire, df: bool) -> None:
    """Between IPv4 and IPv4.  "The server MUST set the DF bit to 0" (section 15) is for sockets."""
    kept = df and plane == "kernel"
    with turnd.watched() as moved:
        out = replace(call4.datagram(b"outgoing"), df=df)
        wire.send("client", out)
        assert wire.next("peer", b"outgoing").df is kept
        back = replace(call4.returned(b"returning"), df=df)
        wire.send("peer", back)
        returned = wire.next("client", channel_data(call4.channel, b"returning"))
        # What the sockets send to clients is turnd's own, whose path's MTU the system finds out.
        assert returned.df is (kept or plane == "sockets")
    assert moved.was(plane, 1, 1)


def test_flow_labels_end_here(turnd: Turnd, plane: str, dial: Dial, wire: Wire) -> None:
    """Section 13.2 and 13.3: the flow label of one side means nothing on the other."""
    call = dial(client6=True, peer6=True)
    with turnd.watched() as moved:
        out = replace(call.datagram(b"outgoing"), flow_label=0x12345)
        wire.send("client", out)
        assert wire.next("peer", b"outgoing").flow_label != 0x12345
        back = replace(call.returned(b"returning"), flow_label=0x54321)
        wire.send("peer", back)
        message = channel_data(call.channel, b"returning")
        assert wire.next("client", message).flow_label != 0x54321
    assert moved.was(plane, 1, 1)
