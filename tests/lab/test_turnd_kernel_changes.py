"""What changes around turnd while it relays, and who is beside it: nobody is cut off."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from stun.sansio import Address
from stun.sockaddr import from_sockaddr
from tests.lab.turn_caller import PATIENCE
from tests.lab.turnd_calls import Call, Dial, Tap, channel_data, open_call, received
from tests.lab.turnd_world import Turnd, World


def eventually(turnd: Turnd, plane: str, call: Call) -> None:
    """The plane forwards again, as soon as turnd has heard of what has changed."""
    end = time.monotonic() + PATIENCE
    while True:
        with turnd.watched() as moved:
            call.both_ways(b"again")
        if moved.was(plane, 1, 1):
            return
        assert time.monotonic() < end, moved
        time.sleep(0.1)


# The process. -------------------------------------------------------------------------------------


def loaded(turnd: Turnd) -> set[str]:
    """Return the programs, maps and links that a turnd holds, by their numbers: see proc(5)."""
    found = set()
    for info in Path(f"/proc/{turnd.process.pid}/fdinfo").iterdir():
        fields = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line)
        for kind in ("link", "map", "prog"):
            if number := fields.get(f"{kind}_id"):
                found.add(f"{kind} {number.strip()}")
                break  # a link says of which program it is, too
    return found


def links(turnd: Turnd) -> int:
    """Return on how many interfaces its program is."""
    return len([one for one in loaded(turnd) if one.startswith("link")])


def there() -> set[str]:
    """Return all programs, maps and links that there are."""
    return {f"{kind} {one['id']}" for kind in ("link", "map", "prog") for one in listed(kind)}


def listed(kind: str) -> list[dict[str, Any]]:
    """Ask bpftool, again and again: it fails when something goes while it makes its list."""
    patience = time.monotonic() + PATIENCE
    while True:
        done = subprocess.run(["bpftool", "-j", kind, "list"], capture_output=True, check=False)
        if done.returncode == 0:
            return list(json.loads(done.stdout))
        assert time.monotonic() < patience, done


@pytest.mark.parametrize("end", ["SIGKILL", "SIGTERM", "SIGSEGV"])
def test_nothing_is_left(world: World, plane: str, tmp_path: Path, end: str) -> None:
    """However the process ends, the program goes with it, off the interfaces and altogether."""
    with ExitStack() as stack:
        with world.turnd(tmp_path, plane, port=3510) as turnd:
            open_call(world, stack, port=3510)
            held = loaded(turnd)
            assert held <= there()
            assert links(turnd) == (2 if plane == "kernel" else 0)
            turnd.process.send_signal(signal.Signals[end])
            turnd.process.wait(10)
        patience = time.monotonic() + PATIENCE
        while left := held & there():
            # The kernel frees what nobody holds a moment later.
            assert time.monotonic() < patience, left
            time.sleep(0.02)


def test_two_of_them_on_the_same_interfaces(world: World, plane: str, tmp_path: Path) -> None:
    """Each forwards its own, whichever came first; neither feels the end of the other."""
    with ExitStack() as stack:
        first_end, second_end = stack.enter_context(ExitStack()), ExitStack()
        stack.enter_context(second_end)
        first = first_end.enter_context(world.turnd(tmp_path / "1", plane, port=3511))
        second = second_end.enter_context(world.turnd(tmp_path / "2", plane, port=3512))
        one, two = (open_call(world, stack, port=port) for port in (3511, 3512))
        with first.watched() as by_first, second.watched() as by_second:
            for number in range(20):
                one.both_ways(b"one %d" % number)
                two.both_ways(b"two %d" % number)
        assert by_first.was(plane, 20, 20)
        assert by_second.was(plane, 20, 20)
        first.process.kill()
        first.process.wait()
        first_end.close()
        with second.watched() as moved:
            for number in range(20):
                two.both_ways(b"left alone %d" % number)
        assert moved.was(plane, 20, 20)
        # A third one takes the place of the first.
        third = stack.enter_context(world.turnd(tmp_path / "3", plane, port=3511))
        other = open_call(world, stack, port=3511)
        with third.watched() as moved:
            other.both_ways(b"in its place")
        assert moved.was(plane, 1, 1)
        two.both_ways(b"still there")
        two.caller.close()


@pytest.mark.parametrize("other", ["kernel", "sockets"])
def test_another_plane_by_reload(world: World, plane: str, tmp_path: Path, other: str) -> None:
    """Calls go on, whatever the configuration says next."""
    config = tmp_path / "turnd.toml"
    config.write_text(f'dataplane = "{plane}"\n')
    arguments = ("--config", str(config))
    with world.turnd(tmp_path, "", *arguments, port=3513) as turnd, ExitStack() as stack:
        call = open_call(world, stack, port=3513)
        for now in (other, plane, other):
            config.write_text(f'dataplane = "{now}"\n')
            turnd.ask("reload")
            assert turnd.ask("status")["dataplane"]["kernel"] is (now == "kernel")
            eventually(turnd, now, call)
            assert links(turnd) == (2 if now == "kernel" else 0)
        session = turnd.session()
        assert session["packets_from_client"] == session["packets_to_client"]
        call.caller.close()


def test_a_reload_of_other_things(world: World, plane: str, tmp_path: Path) -> None:
    config = tmp_path / "turnd.toml"
    config.write_text("[limits]\noctets_per_second_per_user = 1000\n")
    arguments = ("--config", str(config))
    with world.turnd(tmp_path, plane, *arguments, port=3514) as turnd, ExitStack() as stack:
        call = open_call(world, stack, port=3514)
        payload = bytes(1000)

        def passing(number: int) -> int:
            """Return how many packets of so many pass at once."""
            for _ in range(number):
                call.caller.write(channel_data(call.channel, payload))
            end = time.monotonic() + PATIENCE
            dropped = "turnd_rate_limited_packets_total"
            while True:
                session, lost = turnd.session(), turnd.metrics()[dropped]
                if session["packets_from_client"] + lost - sum(before) == number:
                    before[:] = [session["packets_from_client"], int(lost)]
                    break
                assert time.monotonic() < end
            call.sock.setblocking(False)
            came = 0
            while True:
                try:
                    call.sock.recv(2000)
                except BlockingIOError:
                    return came
                came += 1

        before = [turnd.session()["packets_from_client"], 0]
        assert passing(50) < 10
        config.write_text("[limits]\noctets_per_second_per_user = 200000\n")
        assert turnd.ask("reload")["changed"]
        time.sleep(1)
        assert passing(50) == 50
        config.write_text("[limits]\noctets_per_second_per_user = 1000\n")
        assert turnd.ask("reload")["changed"]
        assert passing(50) < 10
        call.caller.close()


def test_drain(world: World, plane: str, tmp_path: Path) -> None:
    """What there is goes on, in the same way; then turnd ends by itself."""
    with world.turnd(tmp_path, plane, port=3515) as turnd, ExitStack() as stack:
        call = open_call(world, stack, port=3515)
        assert turnd.ask("drain") == {"left": 1}
        with pytest.raises(AssertionError, match="Failed"):
            world.caller(port=3515)
        with turnd.watched() as moved:
            call.both_ways(b"to the end")
        assert moved.was(plane, 1, 1)
        call.caller.close()
        assert turnd.process.wait(15) == 0


# The network. -------------------------------------------------------------------------------------


@pytest.fixture
def anew(plane: str, tmp_path: Path) -> Iterator[tuple[World, Turnd, Call]]:
    """A world of its own, for what changes it, and a call in it."""
    with World() as world, world.turnd(tmp_path, plane) as turnd, ExitStack() as stack:
        yield world, turnd, open_call(world, stack)


@pytest.mark.parametrize("end", ["client", "peer"])
def test_an_interface_that_is_down_for_a_while(
    anew: tuple[World, Turnd, Call], plane: str, end: str
) -> None:
    world, turnd, call = anew
    world.server.ip(f"link set {end} down")
    time.sleep(0.3)
    world.server.ip(f"link set {end} up")
    turnd.settle()
    eventually(turnd, plane, call)


def test_an_interface_that_goes_and_comes(anew: tuple[World, Turnd, Call], plane: str) -> None:
    """The peer's cable is pulled out and another one is plugged in: another interface."""
    world, turnd, call = anew
    world.server.ip("link delete peer")
    call.caller.write(channel_data(call.channel, b"to nowhere"))
    turnd.settle()
    # With the same addresses; the peer's socket is bound to its own, which is there again.
    world.plug(world.peer, 1)
    turnd.settle()
    eventually(turnd, plane, call)


def test_a_route_that_leads_elsewhere(anew: tuple[World, Turnd, Call], plane: str) -> None:
    """To a peer behind a router, of which there is a second one."""
    world, turnd, call = anew
    world.plug(world.peer, 6, near="detour", far="detour")
    world.peer.ip("address add 198.18.77.7/32 dev lo")
    world.server.ip("route add 198.18.77.7/32 via 198.18.1.2")
    with world.peer.socket() as sock:
        sock.settimeout(PATIENCE)
        sock.bind(("198.18.77.7", 0))
        peer = from_sockaddr(sock.getsockname())
        far = Call(call.caller, call.caller.bind(peer), peer, sock)
        eventually(turnd, plane, far)
        taps = {name: Tap(world.peer, name) for name in ("wire", "detour")}
        for way, route in (
            ("wire", "via 198.18.1.2"), ("detour", "via 198.18.6.2"), ("wire", "via 198.18.1.2"),
        ):  # fmt: skip
            world.server.ip(f"route replace 198.18.77.7/32 {route}")
            turnd.settle()
            eventually(turnd, plane, far)
            payload = f"this way: {way}".encode()
            far.both_ways(payload)
            assert taps[way].next(payload).destination == peer
        for tap in taps.values():
            tap.close()


def test_a_machine_that_is_replaced(anew: tuple[World, Turnd, Call], plane: str) -> None:
    """Another link-layer address: the neighbour's entry is the kernel's business, not turnd's."""
    world, turnd, call = anew
    world.peer.ip("link set wire down", "link set wire address 02:00:00:00:0e:0e")
    world.peer.ip("link set wire up")
    world.server.ip("neigh flush dev peer")
    turnd.settle()
    eventually(turnd, plane, call)


def test_the_first_packet_to_a_neighbour(anew: tuple[World, Turnd, Call], plane: str) -> None:
    """It waits until the neighbour has said where it is."""
    world, turnd, call = anew
    for host in (world.server, world.client, world.peer):
        host.ip("neigh flush all")
    with turnd.watched() as moved:
        call.both_ways(b"who has it?")
    assert moved.was(plane, 1, 1)


def test_an_address_that_goes_and_comes(anew: tuple[World, Turnd, Call], plane: str) -> None:
    """Of the server: nothing leaves by an address that it has no longer."""
    world, turnd, call = anew
    tap = Tap(world.peer, "wire")
    world.server.ip("address delete 198.18.1.1/24 dev peer")
    turnd.settle()
    call.caller.write(channel_data(call.channel, b"from nowhere"))
    time.sleep(0.2)
    world.server.ip("address add 198.18.1.1/24 dev peer")
    turnd.settle()
    call.caller.write(channel_data(call.channel, b"from here"))
    assert tap.next().payload == b"from here"
    tap.close()
    assert received(call.sock) == (b"from here", call.caller.relayed)
    eventually(turnd, plane, call)


# Peers that are nearer than others. ---------------------------------------------------------------


def test_a_peer_on_the_same_machine(world: World, plane: str, tmp_path: Path) -> None:
    own = world.address(world.peer)
    allow = [argument for host in own for argument in ("--allow-peer", host)]
    with world.turnd(tmp_path, plane, *allow, port=3516) as turnd, ExitStack() as stack:
        for host, family in zip(own, (4, 6), strict=True):
            sock = stack.enter_context(
                world.server.socket(socket.AF_INET6 if family == 6 else socket.AF_INET)
            )
            sock.settimeout(PATIENCE)
            sock.bind((host, 0))
            peer = Address(host, sock.getsockname()[1])
            caller = world.caller(port=3516, family=family)
            call = Call(caller, caller.bind(peer), peer, sock)
            with turnd.watched() as moved:
                for number in range(50):
                    call.both_ways(b"%d" % number)
            assert moved.was("sockets", 50, 50)
            caller.close()


def test_a_peer_behind_another_allocation(turnd: Turnd, plane: str, dial: Dial) -> None:
    """Both relayed transport addresses are on this server, and both clients have channels."""
    one, two = dial(), dial()
    there, back = one.caller.bind(two.caller.relayed), two.caller.bind(one.caller.relayed)
    with turnd.watched() as moved:
        for number in range(50):
            payload = b"%d" % number
            one.caller.write(channel_data(there, payload))
            assert two.caller.read() == channel_data(back, payload)
            two.caller.write(channel_data(back, payload))
            assert one.caller.read() == channel_data(there, payload)
    forwarded = moved["forwarded to peers"] + moved["forwarded to peers in the kernel"]
    assert forwarded == 100
    # The calls' own peers are not disturbed.
    one.both_ways(b"one")
    two.both_ways(b"two")


def test_a_cable_in_a_bridge(anew: tuple[World, Turnd, Call], plane: str) -> None:
    """The address is the bridge's, as on many a machine with virtual ones."""
    world, turnd, call = anew
    world.server.ip(
        "link add bridge type bridge",
        "address flush dev peer",
        "link set peer master bridge",
        "address add 198.18.1.1/24 dev bridge",
        "link set bridge up",
    )
    turnd.settle()
    eventually(turnd, plane, call)
