"""What the data plane in the kernel leaves to turnd's sockets: it is relayed as ever.

Run on both planes: what is sent here is turnd's own to understand, with the program in the kernel
beside it or without.
"""

from __future__ import annotations

import socket
from dataclasses import replace
from typing import Any

import pytest

from stun.sansio import Address
from stun.sockaddr import from_sockaddr
from tests.lab import frames
from tests.lab.turnd_calls import Call, Dial, Wire, channel_data, received
from tests.lab.turnd_world import Turnd, World
from turn.client.events import Data

UDP_SEGMENT = 103
IP_MTU_DISCOVER, IP_PMTUDISC_DONT = 10, 0

# What passes up, and is relayed there. ------------------------------------------------------------


def test_send_indications_and_strangers(world: World, turnd: Turnd, call: Call) -> None:
    """Another port of a permitted host has no channel: its datagrams come in Data indications."""
    with world.peer.bind(ipv6=call.peer.is_ipv6) as other, turnd.watched() as moved:
        address = from_sockaddr(other.getsockname())
        call.caller.send(address, b"to a stranger")
        assert received(other) == (b"to a stranger", call.caller.relayed)
        other.sendto(b"from a stranger", call.caller.relayed)
        assert call.caller.wait(Data) == Data(address, b"from a stranger")
        assert call.caller.messages[-1][:2] == bytes.fromhex("0017")
    assert moved.was("sockets", 0, 0)


def test_who_has_no_permission_is_not_heard(turnd: Turnd, plane: str, call4: Call) -> None:
    with turnd.host.bind() as stranger, turnd.watched() as moved:
        stranger.sendto(b"let me in", call4.caller.relayed)
        call4.sock.sendto(b"in order", call4.caller.relayed)
        assert call4.heard(b"in order")
    assert moved.was(plane, 0, 1)


def test_who_has_no_channel_is_not_heard(turnd: Turnd, plane: str, call: Call, wire: Wire) -> None:
    """From another port of the client, and to a channel that is not bound: not one arrives."""
    right = call.datagram(b"right")
    other = replace(right, source=Address(right.source.host, right.source.port ^ 1))
    unbound = replace(right, payload=channel_data(call.channel + 1, b"unbound"))
    with turnd.watched() as moved:
        for datagram in (other, unbound, right):
            wire.send("client", datagram)
        assert received(call.sock) == (b"right", call.caller.relayed)
    assert moved.was(plane, 1, 0)


def test_a_message_that_is_shorter_than_it_says(turnd: Turnd, plane: str, call: Call) -> None:
    message = channel_data(call.channel, bytes(100))[:-1]
    with turnd.watched() as moved:
        call.caller.write(message)
        call.caller.send(call.peer, b"right")
        assert received(call.sock) == (b"right", call.caller.relayed)
    assert moved.was(plane, 1, 0)


@pytest.mark.parametrize("tail", [4, 100])
def test_a_message_with_more_behind_it_than_padding(turnd: Turnd, call: Call, tail: int) -> None:
    """The server machine takes it as padding all the same; what is relayed is what it says."""
    with turnd.watched() as moved:
        call.caller.write(channel_data(call.channel, b"short", tail))
        assert received(call.sock) == (b"short", call.caller.relayed)
    assert moved.was("sockets", 0, 0)


@pytest.mark.parametrize("length", [0, 1, 2, 3])
def test_fewer_octets_than_a_header(turnd: Turnd, plane: str, call: Call, length: int) -> None:
    with turnd.watched() as moved:
        call.caller.write(channel_data(call.channel, b"")[:length])
        call.caller.send(call.peer, b"right")
        assert received(call.sock) == (b"right", call.caller.relayed)
    assert moved.was(plane, 1, 0)


# Packets that only the sockets can relay. ---------------------------------------------------------


@pytest.mark.parametrize("order", ["in order", "reversed"])
def test_fragments(turnd: Turnd, call: Call, wire: Wire, order: str) -> None:
    payload = bytes(range(250)) * 4
    out = frames.packets(call.datagram(payload), cuts=(400, 800))
    back = frames.packets(call.returned(payload), cuts=(16, 400, 800))
    if order == "reversed":
        out, back = out[::-1], back[::-1]
    with turnd.watched() as moved:
        wire.send_packets("client", *out)
        assert received(call.sock) == (payload, call.caller.relayed)
        wire.send_packets("peer", *back)
        assert call.heard(payload)
    assert moved.was("sockets", 1, 1)


IPV4_OPTIONS = {"no operation": "01010101", "router alert": "94040000", "timestamp": "44040500"}
IPV6_OPTIONS = {"destination options": 60, "hop-by-hop options": 0}
PADDED = bytes.fromhex("0000 0104 0000 0000")


@pytest.mark.parametrize("options", IPV4_OPTIONS)
def test_options_of_ipv4(turnd: Turnd, call4: Call, wire: Wire, options: str) -> None:
    octets = bytes.fromhex(IPV4_OPTIONS[options])
    _pass_up(turnd, call4, wire, options=octets)


@pytest.mark.parametrize("options", IPV6_OPTIONS)
def test_extension_headers_of_ipv6(turnd: Turnd, dial: Dial, wire: Wire, options: str) -> None:
    call = dial(client6=True, peer6=True)
    extension = IPV6_OPTIONS[options]
    _pass_up(turnd, call, wire, options=PADDED, extension=extension)


def _pass_up(turnd: Turnd, call: Call, wire: Wire, **changes: Any) -> None:
    with turnd.watched() as moved:
        out = replace(call.datagram(b"outgoing"), **changes)
        wire.send("client", out)
        assert received(call.sock) == (b"outgoing", call.caller.relayed)
        back = replace(call.returned(b"returning"), **changes)
        wire.send("peer", back)
        assert call.heard(b"returning")
    assert moved.was("sockets", 1, 1)


def test_another_network_on_the_same_cable(
    turnd: Turnd, plane: str, call: Call, wire: Wire
) -> None:
    """A frame of a VLAN that this machine is not in is nobody's here, whatever it says."""
    (packet,) = frames.packets(call.datagram(b"tagged"))
    with turnd.watched() as moved:
        wire.send_packets("client", packet, vlan=7)
        wire.send("client", call.datagram(b"untagged"))
        assert received(call.sock) == (b"untagged", call.caller.relayed)
    assert moved.was(plane, 1, 0)


def test_frames_for_other_machines(turnd: Turnd, plane: str, call: Call, wire: Wire) -> None:
    (packet,) = frames.packets(call.datagram(b"elsewhere"))
    with turnd.watched() as moved:
        wire.send_packets("client", packet, to="02:00:00:00:ee:ee")
        wire.send("client", call.datagram(b"here"))
        assert received(call.sock) == (b"here", call.caller.relayed)
    assert moved.was(plane, 1, 0)


def test_a_frame_that_is_longer_than_its_packet(
    turnd: Turnd, plane: str, call: Call, wire: Wire
) -> None:
    """Ethernet frames have 60 octets at least; what fills them goes no further."""
    with turnd.watched() as moved:
        (packet,) = frames.packets(call.datagram(b"x"))
        wire.send_packets("client", packet + b"filled" * 3)
        assert wire.next("peer").payload == b"x"
        (packet,) = frames.packets(call.returned(b"y"))
        wire.send_packets("peer", packet + b"filled" * 3)
        assert wire.next("client").payload == channel_data(call.channel, b"y")
    assert moved.was(plane, 1, 1)


@pytest.mark.parametrize("extra", [1, 200])
def test_what_is_longer_than_the_next_link_takes(
    world: World, turnd: Turnd, plane: str, call: Call, extra: int
) -> None:
    """The sockets fragment it, and not one octet is lost."""
    header = 48 if call.peer.is_ipv6 else 28
    fitting = bytes(range(200)) * 8
    # RFC 7915 section 4: what came by IPv4 and may be fragmented gets 1280 octets of IPv6 at most.
    most = 1280 if call.peer.is_ipv6 and not call.caller.server.is_ipv6 else 1400
    world.server.ip("link set peer mtu 1400")
    world.peer.ip("link set wire mtu 1400")
    try:
        call.caller.sock.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DONT)
        turnd.settle()
        with turnd.watched() as moved:
            call.caller.send(call.peer, fitting[: most - header])
            assert received(call.sock) == (fitting[: most - header], call.caller.relayed)
        assert moved.was(plane, 1, 0)
        with turnd.watched() as moved:
            call.caller.send(call.peer, fitting[: most - header + extra])
            assert received(call.sock) == (fitting[: most - header + extra], call.caller.relayed)
        assert moved.was("sockets", 1, 0)
    finally:
        world.server.ip("link set peer mtu 1500")
        world.peer.ip("link set wire mtu 1500")


def test_datagrams_that_are_joined_for_the_way(world: World, turnd: Turnd, call4: Call) -> None:
    """GSO: several datagrams in one packet, their checksums left to a network card."""
    world.client.run("ethtool", "-K", "wire", "tx", "on", "gso", "on", "tx-udp-segmentation", "on")
    try:
        messages = [channel_data(call4.channel, bytes([number]) * 96) for number in range(10)]
        call4.caller.sock.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 100)
        with turnd.watched() as moved:
            call4.caller.write(b"".join(messages))
            for number in range(10):
                assert received(call4.sock) == (bytes([number]) * 96, call4.caller.relayed)
        assert moved.was("sockets", 10, 0)
    finally:
        call4.caller.sock.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 0)
        world.client.run("ethtool", "-K", "wire", "tx", "off", "gso", "off")


def test_a_checksum_that_was_left_to_the_card(world: World, turnd: Turnd, call: Call) -> None:
    """As it is of whoever is on the same machine, in a container for example."""
    world.client.run("ethtool", "-K", "wire", "tx", "on")
    world.peer.run("ethtool", "-K", "wire", "tx", "on")
    try:
        with turnd.watched() as moved:
            call.caller.send(call.peer, b"outgoing")
            assert received(call.sock) == (b"outgoing", call.caller.relayed)
            call.sock.sendto(b"returning", call.caller.relayed)
            assert call.heard(b"returning")
        assert moved.was("sockets", 1, 1)
    finally:
        world.client.run("ethtool", "-K", "wire", "tx", "off")
        world.peer.run("ethtool", "-K", "wire", "tx", "off")
