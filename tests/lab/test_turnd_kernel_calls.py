"""Several calls at once, and servers whose addresses are not what they seem, on each data plane."""

from __future__ import annotations

import random
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest

from stun.sansio import Address
from stun.sockaddr import from_sockaddr
from tests.lab.turn_caller import PATIENCE
from tests.lab.turnd_calls import Call, Dial, channel_data, open_call, received
from tests.lab.turnd_world import Turnd, World


def test_calls_do_not_mix(turnd: Turnd, plane: str, dial: Dial, rng: random.Random) -> None:
    """All pairs of families at once: each octet comes to whom it was for, from whom it was."""
    calls = [dial(client6=bool(n & 1), peer6=bool(n & 2)) for n in range(12)]
    with turnd.watched() as moved:
        for _ in range(20):
            rng.shuffle(calls)
            for call in calls:
                payload = repr(call.caller.relayed).encode()
                call.caller.write(channel_data(call.channel, b"to" + payload))
                call.sock.sendto(b"from" + payload, call.caller.relayed)
            for call in calls:
                payload = repr(call.caller.relayed).encode()
                assert received(call.sock) == (b"to" + payload, call.caller.relayed)
                assert call.heard(b"from" + payload)
    assert moved.was(plane, 20 * len(calls), 20 * len(calls))


def test_channels_of_one_client(world: World, turnd: Turnd, plane: str, dial: Dial) -> None:
    """As many as one may have, each to a port of its own of the same host."""
    call = dial()
    with ExitStack() as stack:
        more = [call]
        for _ in range(63):
            sock = stack.enter_context(world.peer.bind())
            peer = from_sockaddr(sock.getsockname())
            more.append(Call(call.caller, call.caller.bind(peer), peer, sock))
        assert len({one.channel for one in more}) == 64
        with turnd.watched() as moved:
            for one in more:
                one.both_ways(b"in channel %d" % one.channel)
        assert moved.was(plane, 64, 64)


def test_both_families_in_one_allocation(world: World, turnd: Turnd, plane: str) -> None:
    """ADDITIONAL-ADDRESS-FAMILY (RFC 8656 section 7.2): each peer is relayed to from its own."""
    with ExitStack() as stack:
        caller = world.caller(family="dual")
        stack.callback(caller.close)
        with turnd.watched() as moved:
            for relayed in caller.allocated.relayed:
                sock = stack.enter_context(world.peer.bind(ipv6=relayed.is_ipv6))
                peer = from_sockaddr(sock.getsockname())
                channel = caller.bind(peer)
                for number in range(10):
                    caller.write(channel_data(channel, b"%d" % number))
                    assert received(sock) == (b"%d" % number, relayed)
                    sock.sendto(b"%d" % number, relayed)
                    assert caller.read() == channel_data(channel, b"%d" % number)
        assert moved.was(plane, 20, 20)


def test_a_burst_is_neither_lost_nor_reordered(turnd: Turnd, plane: str, call: Call) -> None:
    numbers = [b"%04d" % number + bytes(160) for number in range(1000)]
    with turnd.watched() as moved:
        for first in range(0, 1000, 100):
            for number in numbers[first : first + 100]:
                call.caller.write(channel_data(call.channel, number))
                call.sock.sendto(number, call.caller.relayed)
            for number in numbers[first : first + 100]:
                assert received(call.sock) == (number, call.caller.relayed)
                assert call.heard(number)
    assert moved.was(plane, 1000, 1000)


def test_a_channel_that_is_bound_again(turnd: Turnd, plane: str, dial: Dial) -> None:
    """A client that comes back from the same port has the same channel number: for another peer."""
    first, second = dial(), dial()
    client = first.client
    first.caller.close()
    again = dial(local=client)
    assert again.client == client
    assert again.channel == first.channel
    with turnd.watched() as moved:
        again.both_ways(b"again")
        second.both_ways(b"still")
    assert moved.was(plane, 2, 2)


# Addresses. ---------------------------------------------------------------------------------------


def test_one_cable_for_all(world: World, plane: str, tmp_path: Path) -> None:
    """Client and peer are behind the same interface, as behind the only one of most servers."""
    relays = [a for host in world.address(world.client) for a in ("--relay-address", host)]
    with world.turnd(tmp_path, plane, *relays, port=3520) as turnd, ExitStack() as stack:
        for ipv6 in (False, True):
            caller = world.caller(port=3520, family=6 if ipv6 else 4)
            stack.callback(caller.abandon)
            sock = stack.enter_context(world.client.bind(ipv6=ipv6))
            peer = from_sockaddr(sock.getsockname())
            call = Call(caller, caller.bind(peer), peer, sock)
            assert caller.relayed.host in world.address(world.client)
            with turnd.watched() as moved:
                for number in range(10):
                    call.both_ways(b"%d" % number)
            assert moved.was(plane, 10, 10)


def test_behind_a_one_to_one_nat(world: World, plane: str, tmp_path: Path) -> None:
    """What clients are told is another address than packets have here."""
    relay = ("--relay-address", "198.18.1.1=203.0.113.9")
    with world.turnd(tmp_path, plane, *relay, port=3521) as turnd, ExitStack() as stack:
        caller = world.caller(port=3521)
        stack.callback(caller.abandon)
        assert caller.relayed.host == "203.0.113.9"
        sock = stack.enter_context(world.peer.bind())
        peer = from_sockaddr(sock.getsockname())
        channel, local = caller.bind(peer), Address("198.18.1.1", caller.relayed.port)
        with turnd.watched() as moved:
            for number in range(10):
                caller.write(channel_data(channel, b"%d" % number))
                assert received(sock) == (b"%d" % number, local)
                sock.sendto(b"%d" % number, local)
                assert caller.read() == channel_data(channel, b"%d" % number)
        assert moved.was(plane, 10, 10)


@pytest.mark.parametrize("wildcard", ["0.0.0.0", "[::]"])
def test_a_listener_at_every_address(
    world: World, plane: str, tmp_path: Path, wildcard: str
) -> None:
    """Whichever of the server's addresses a client comes to, it is answered from there."""
    with world.turnd(tmp_path, plane, port=3522, host=wildcard) as turnd, ExitStack() as stack:
        for ipv6 in (False, True):
            if ipv6 is (wildcard == "0.0.0.0"):
                continue
            for host in (world.address(world.client)[ipv6], world.address(world.peer)[ipv6]):
                call = open_call(world, stack, client6=ipv6, port=3522, host=host)
                with turnd.watched() as moved:
                    for number in range(10):
                        call.both_ways(b"%d" % number)
                assert moved.was(plane, 10, 10)


def test_a_client_that_is_a_peer_of_itself(turnd: Turnd, plane: str, dial: Dial) -> None:
    """Bound to its own relayed transport address: what it sends comes back to it, once."""
    call = dial()
    channel = call.caller.bind(call.caller.relayed)
    for number in range(10):
        call.caller.write(channel_data(channel, b"%d" % number))
        assert call.caller.read() == channel_data(channel, b"%d" % number)
    call.both_ways(b"all well")


def test_other_programs_of_the_machine(world: World, turnd: Turnd, call: Call) -> None:
    """What is for other ports is theirs, whatever it looks like."""
    family = socket.AF_INET6 if call.caller.server.is_ipv6 else socket.AF_INET
    with (
        world.server.socket(family) as other,
        world.client.bind(ipv6=call.caller.server.is_ipv6) as client,
    ):
        other.settimeout(PATIENCE)
        other.bind((call.caller.server.host, 0))
        message = channel_data(call.channel, b"not for turnd")
        with turnd.watched() as moved:
            for _ in range(10):
                client.sendto(message, from_sockaddr(other.getsockname()))
                assert received(other)[0] == message
        assert moved.was("sockets", 0, 0)
        assert moved["passed up: no path"] == 0
