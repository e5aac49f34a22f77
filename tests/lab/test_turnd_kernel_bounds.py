"""How long and how much turnd forwards: what ends a route, rates, counts, on each data plane.

In the kernel turnd itself has no part in it: it is held (SIGSTOP) where that is to be seen.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from stun.codec import encode
from stun.credentials import LongTerm
from stun.sansio import SECOND
from tests.lab.turnd_calls import Call, Dial, Wire, channel_data, open_call, received, waiting
from tests.lab.turnd_world import Turnd, World
from turn.client.data import send_indication
from turn.client.events import Data
from turn.dataplane.kernel.layouts import WORDS, Count

LIFETIME = 3
"""Seconds of an allocation, where it is to end within the test."""
LEFT_ALONE = WORDS[Count.UNFINISHED]
FEW = 2
"""One in 65,536 packets is left alone by chance; of hundreds hardly ever more than this."""
MARK = b"what comes after all others"


def test_what_is_forwarded_while_turnd_is_held(turnd: Turnd, plane: str, call: Call) -> None:
    """Nothing shows better who forwards."""
    numbers = [b"%d" % number for number in range(50)]
    with turnd.watched() as moved:
        with turnd.stopped():
            for number in numbers:
                call.caller.write(channel_data(call.channel, number))
                call.sock.sendto(number, call.caller.relayed)
            at_once = len(waiting(call.sock)), len(waiting(call.caller.sock))
        later = len(waiting(call.sock)), len(waiting(call.caller.sock))
    assert moved.was(plane, 50, 50)
    assert [sum(both) for both in zip(at_once, later, strict=True)] == [50, 50]
    assert sum(later) == (100 if plane == "sockets" else moved[LEFT_ALONE])


# What ends a route. -------------------------------------------------------------------------------


@pytest.fixture
def short_lived(world: World, plane: str, tmp_path: Path) -> Iterator[Turnd]:
    (tmp_path / "turnd.toml").write_text(f"[relay]\ndefault_lifetime = {LIFETIME}\n")
    with world.turnd(tmp_path, plane, "--config", str(tmp_path / "turnd.toml"), port=3500) as turnd:
        yield turnd


@pytest.mark.parametrize("ipv6", [False, True], ids=["IPv4", "IPv6"])
def test_nothing_passes_at_or_after_the_end(
    short_lived: Turnd, plane: str, dial: Dial, ipv6: bool
) -> None:
    """To the moment: what is sent before it passes, what is sent after it does not."""
    call = dial(client6=ipv6, peer6=ipv6, port=3500)
    earliest = time.monotonic_ns() + LIFETIME * SECOND
    call.caller.refresh()
    latest = time.monotonic_ns() + LIFETIME * SECOND
    sent: list[int] = []
    with ExitStack() as stack:
        if plane == "kernel":  # the machine that would clean up has no part in it
            stack.enter_context(short_lived.stopped())
        while (now := time.monotonic_ns()) < latest + SECOND // 3:
            sent.append(now)
            number = b"%d" % (len(sent) - 1)
            call.caller.write(channel_data(call.channel, number))
            call.sock.sendto(number, call.caller.relayed)
            time.sleep(0.01)
        if plane == "kernel":
            at_peer, at_client = waiting(call.sock), waiting(call.caller.sock)
    if plane == "sockets":
        at_peer, at_client = waiting(call.sock), waiting(call.caller.sock)
    came_in = [message[4:] for message in at_client if message[:1] == b"\x40"]
    # On a busy machine a packet may be under way for a while before turnd looks at it.
    must = {b"%d" % n for n, at in enumerate(sent) if at < earliest - SECOND // 5}
    must_not = {b"%d" % n for n, at in enumerate(sent) if at >= latest}
    assert len(must) > 100
    assert len(must_not) > 10
    for came in (at_peer, came_in):
        # Those that the kernel leaves alone have waited for turnd until it was too late for them.
        assert len(must - set(came)) <= FEW, sorted(must - set(came))
        assert not must_not & set(came), sorted(must_not & set(came))
    # What came up meanwhile is not relayed afterwards, either.
    assert waiting(call.sock) == []
    call.caller.abandon()


Ending = Callable[[Turnd, Call, Path], None]


def _refresh_to_zero(_: Turnd, call: Call, __: Path) -> None:
    call.caller.close()


def _disconnect(turnd: Turnd, call: Call, _: Path) -> None:
    session = turnd.session()["session"]
    assert turnd.ask("disconnect", session=session, user=None) == {"ended": 1}


def _disconnect_the_user(turnd: Turnd, call: Call, _: Path) -> None:
    assert turnd.ask("disconnect", session=None, user="alice") == {"ended": 1}


def _deny_the_peer(turnd: Turnd, call: Call, place: Path) -> None:
    peer = call.peer.host
    (place / "turnd.toml").write_text(f'[peers]\ndeny = ["{peer}"]\n')
    assert turnd.ask("reload")["changed"]


ENDINGS: dict[str, Ending] = {
    "Refresh with lifetime 0": _refresh_to_zero,
    "disconnect SESSION": _disconnect,
    "disconnect --user": _disconnect_the_user,
    "a denied peer": _deny_the_peer,
}


@pytest.mark.parametrize("ipv6", [False, True], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("ending", ENDINGS)
def test_nothing_passes_after(
    world: World, plane: str, tmp_path: Path, ending: str, ipv6: bool
) -> None:
    """After the answer not one packet passes either way; what comes next at both ends proves it."""
    (tmp_path / "turnd.toml").write_text("")
    config = ("--config", str(tmp_path / "turnd.toml"))
    with world.turnd(tmp_path, plane, *config, port=3501) as turnd, ExitStack() as stack:
        wire = Wire(world, stack)
        call = open_call(world, stack, client6=ipv6, peer6=ipv6, port=3501)
        late = call.datagram(b"late"), call.returned(b"late")
        ENDINGS[ending](turnd, call, tmp_path)
        for end, datagram in zip(("client", "peer"), late, strict=True):
            wire.send(end, datagram)
        # The mark goes the same way, by way of another peer where that one is not allowed now.
        other = open_call(world, stack, client6=ipv6, peer6=not ipv6, port=3501)
        other.both_ways(MARK)
        assert channel_data(call.channel, b"late") not in wire.until(
            "client", channel_data(other.channel, MARK)
        )
        assert b"late" not in wire.until("peer", MARK)
        other.caller.close()


def test_a_client_that_moves(turnd: Turnd, plane: str, dial: Dial, wire: Wire) -> None:
    """RFC 8016: the routes go with it, and its old port has none."""
    call = dial(mobility=True)
    before = call.datagram(b"from before")
    call.caller.move()
    # The server takes the new address for good when data comes from there.
    call.caller.send(call.peer, b"here I am")
    assert received(call.sock) == (b"here I am", call.caller.relayed)
    assert call.client != before.source
    with turnd.watched() as moved:
        wire.send("client", before)
        for number in range(10):
            call.both_ways(b"%d" % number)
    assert moved.was(plane, 10, 10)
    call.caller.close()


# Counts. ------------------------------------------------------------------------------------------


def test_every_octet_is_counted_once(
    world: World, plane: str, tmp_path: Path, rng: random.Random
) -> None:
    """By the kernel or by the sockets, while it goes on and when it is over."""
    with world.turnd(tmp_path, plane, port=3502) as turnd, ExitStack() as stack:
        call = open_call(world, stack, port=3502)
        other = stack.enter_context(world.peer.bind())
        stranger = call.peer._replace(port=other.getsockname()[1])
        out = back = len(b"first")
        packets = 1
        for number in range(200):
            payload = rng.randbytes(rng.randrange(1200))
            packets += 1
            out += len(payload)
            back += len(payload)
            if number % 5:
                call.both_ways(payload)
            else:  # without a channel
                call.caller.send(stranger, payload)
                assert received(other) == (payload, call.caller.relayed)
                other.sendto(payload, call.caller.relayed)
                assert call.caller.wait(Data).data == payload
            if number % 50 == 0:
                session = turnd.session()
                assert session["octets_from_client"] == out
                assert session["octets_to_client"] == back
        session = turnd.session()
        expected = {
            "packets_from_client": packets, "packets_to_client": packets,
            "octets_from_client": out, "octets_to_client": back,
        }  # fmt: skip
        assert {key: session[key] for key in expected} == expected
        for over in (False, True):
            if over:
                call.caller.close()
            metrics = turnd.metrics()
            for family, counted in (("packets", (packets, packets)), ("bytes", (out, back))):
                name = f"turnd_relayed_{family}_total"
                both = [metrics[f'{name}{{direction="{way}_client"}}'] for way in ("from", "to")]
                assert both == [*counted]
        ended = next(line for line in turnd.said().splitlines() if "allocation ended" in line)
        assert f'"octets_from_client": {out}' in ended or f"{out}" in ended


# Rates. -------------------------------------------------------------------------------------------


OCTETS, PACKETS = 200_000, 400
"""A second, of the user."""
BURST = 1.0
LEASES = 3
"""What is drawn out of the kernel's bucket before it is used: for each direction, and one more."""


@pytest.mark.parametrize("through", ["channels", "channels and indications"])
@pytest.mark.parametrize("limit", ["octets", "packets"])
def test_a_rate_holds_over_all_ways(
    world: World, plane: str, tmp_path: Path, limit: str, through: str
) -> None:
    """Both directions of two allocations of one user, in the kernel and not: one rate for all."""
    arguments = {
        "octets": ("--max-octets-per-second-per-user", str(OCTETS)),
        "packets": ("--max-packets-per-second-per-user", str(PACKETS)),
    }[limit]
    payload = bytes(500)
    with world.turnd(tmp_path, plane, *arguments, port=3503) as turnd, ExitStack() as stack:
        calls = [open_call(world, stack, port=3503) for _ in range(2)]
        time.sleep(BURST)
        began = time.monotonic()
        sent = passed = 0
        for turn in range(400):
            for call in calls:
                if through != "channels" and turn % 2:
                    call.caller.write(_indication(call, payload))
                else:
                    call.caller.write(channel_data(call.channel, payload))
                call.sock.sendto(payload, call.caller.relayed)
                sent += 2
            time.sleep(0.005)
        seconds = time.monotonic() - began
        for call in calls:
            passed += len(waiting(call.sock, 0.3)) + len(waiting(call.caller.sock, 0.3))
        unit, rate = (len(payload), OCTETS) if limit == "octets" else (1, PACKETS)
        lease = max(rate / 256, 4096 if limit == "octets" else 1)
        slack = len(calls) * LEASES * lease + 4 * unit
        assert passed * unit <= rate * (seconds + BURST) + slack
        # A limit, and not a wall: the burst, and of what follows the most (leases cost some of it).
        assert passed * unit >= rate * (0.5 * seconds + BURST)
        dropped = turnd.metrics()["turnd_rate_limited_packets_total"]
        assert passed + dropped == sent
        # After a rest there is room again.
        time.sleep(BURST)
        for call in calls:
            call.both_ways(b"again")


def _indication(call: Call, payload: bytes) -> bytes:
    return encode(send_indication(bytes(12), call.peer, payload, dont_fragment=False))


def test_a_rate_is_of_its_user_alone(world: World, plane: str, tmp_path: Path) -> None:
    """Who keeps within it is not held up by who does not."""
    users = ("--user", "bob:builder", "--max-packets-per-second-per-user", "50")
    with world.turnd(tmp_path, plane, *users, port=3504) as turnd, ExitStack() as stack:
        greedy = open_call(world, stack, port=3504)
        modest = open_call(world, stack, port=3504, credentials=LongTerm("bob", "builder"))
        time.sleep(BURST)
        for number in range(20):
            for _ in range(20):
                greedy.caller.write(channel_data(greedy.channel, b"more"))
            modest.both_ways(b"%d" % number)
        assert turnd.metrics()["turnd_rate_limited_packets_total"] > 300
