"""What a machine sends from relays: together where it goes to one peer, and each on its own."""

from __future__ import annotations

import errno
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from stun.sansio import Address, Transmit
from turn.dataplane import successive as module
from turn.dataplane.flows import Relay
from turn.dataplane.mmsg import has_segmentation
from turn.dataplane.successive import Successive

LOOPBACK = {4: "127.0.0.1", 6: "::1"}


class Watched:
    """A socket that counts the system calls, or refuses them."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.calls: list[str] = []
        self.refuse: dict[str, list[int]] = {}

    def _count(self, call: str) -> None:
        self.calls.append(call)
        if self.refuse.get(call):
            raise OSError(self.refuse[call].pop(0), "refused")

    def sendto(self, data: bytes, to: Any) -> int:
        self._count("sendto")
        return self.sock.sendto(data, to)

    def sendmsg(self, parts: list[bytes], ancillary: Any, flags: int, to: Any) -> int:
        self._count("sendmsg")
        return self.sock.sendmsg(parts, ancillary, flags, to)

    def setsockopt(self, level: int, option: int, value: int) -> None:
        self._count("setsockopt")
        self.sock.setsockopt(level, option, value)

    def close(self) -> None:
        self.sock.close()


class Bench:
    """Relays, peers, and what is sent from the ones to the others."""

    def __init__(self, host: str) -> None:
        self.refused: Counter[int] = Counter()
        self.successive = Successive(self.refused)
        self.relays = [Relay(n, Address(host, 0)) for n in range(2)]
        self.watched = [Watched(relay.sock) for relay in self.relays]
        for relay, watched in zip(self.relays, self.watched, strict=True):
            relay.sock = watched  # type: ignore[assignment]
        family = self.watched[0].sock.family
        self.peers = [socket.socket(family, socket.SOCK_DGRAM) for _ in range(2)]
        for peer in self.peers:
            peer.bind((host, 0))
            peer.setblocking(False)
        self.to = [Address(*peer.getsockname()[:2]) for peer in self.peers]

    def send(self, data: bytes, relay: int = 0, peer: int = 0, **more: Any) -> None:
        place = self.relays[relay]
        self.successive.add(Transmit(data, self.to[peer], place.local, **more), place)

    def got(self, peer: int = 0) -> list[tuple[bytes, int]]:
        """Return what has come, and from which port."""
        found: list[tuple[bytes, int]] = []
        while True:
            try:
                data, source = self.peers[peer].recvfrom(65535)
            except BlockingIOError:
                return found
            found.append((data, source[1]))

    def close(self) -> None:
        for relay in self.relays:
            relay.close()
        for peer in self.peers:
            peer.close()


@pytest.fixture(params=LOOPBACK.values(), ids=["IPv4", "IPv6"])
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    made = Bench(request.param)
    yield made
    made.close()


def test_nothing_is_sent_before_it_is_due_and_nothing_twice(bench: Bench) -> None:
    bench.send(b"one")
    assert bench.got() == []
    bench.successive.flush()
    bench.successive.flush()
    assert bench.got() == [(b"one", bench.relays[0].local.port)]
    assert bench.successive.sent == 1


@pytest.mark.skipif(not has_segmentation(), reason="the system has no segmentation offload")
def test_what_goes_to_one_peer_leaves_together(bench: Bench) -> None:
    sent = [bytes([n]) * 100 for n in range(9)] + [b"last"]
    for data in sent:
        bench.send(data)
    bench.successive.flush()
    assert [data for data, _ in bench.got()] == sent
    assert bench.watched[0].calls == ["sendmsg"]
    assert bench.successive.sent == 10


@pytest.mark.parametrize("joins", [True, False])
def test_order_is_kept_among_all(
    bench: Bench, joins: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not joins:
        monkeypatch.setattr(module, "has_segmentation", lambda: False)
        bench.successive = Successive(bench.refused)
    expected: dict[tuple[int, int], list[bytes]] = {(r, p): [] for r in (0, 1) for p in (0, 1)}
    for n, (relay, peer, length) in enumerate(
        (n // 40 % 2, n // 20 % 2, (60, 60, 60, 0, 7)[n // 3 % 5]) for n in range(200)
    ):
        data = bytes([n]) * length
        bench.send(data, relay, peer)
        expected[relay, peer].append(data)
    bench.successive.flush()
    for peer in (0, 1):
        got = bench.got(peer)
        for relay in (0, 1):
            port = bench.relays[relay].local.port
            assert [data for data, source in got if source == port] == expected[relay, peer]
    assert bench.successive.sent == 200
    if not joins:
        assert {call for one in bench.watched for call in one.calls} == {"sendto"}


@pytest.mark.skipif(not has_segmentation(), reason="the system has no segmentation offload")
@pytest.mark.parametrize("code", [errno.EINVAL, errno.EIO])
def test_what_cannot_be_joined_is_sent_singly(bench: Bench, code: int) -> None:
    watched = bench.watched[0]
    watched.refuse["sendmsg"] = [code]
    for _ in range(2):
        for _ in range(5):
            bench.send(b"x" * 50)
        bench.successive.flush()
        assert len(bench.got()) == 5
    # What is too large is not tried again, nor anything where nothing can be joined.
    assert watched.calls == ["sendmsg"] + ["sendto"] * 10
    for _ in range(5):
        bench.send(b"x" * 49)
    bench.successive.flush()
    assert len(bench.got()) == 5
    assert (watched.calls[11] == "sendmsg") == (code == errno.EINVAL)
    assert (bench.successive.sent, bench.refused) == (15, Counter())


def test_a_pending_error_is_another_datagrams(bench: Bench) -> None:
    bench.watched[0].refuse["sendto"] = [errno.ECONNREFUSED]
    bench.send(b"one")
    bench.successive.flush()
    assert [data for data, _ in bench.got()] == [b"one"]
    bench.watched[0].refuse["sendto"] = [errno.ENETUNREACH] * 2
    bench.send(b"two")
    bench.successive.flush()
    assert bench.got() == []
    assert (bench.successive.sent, bench.refused) == (1, Counter({errno.ENETUNREACH: 1}))


@pytest.mark.parametrize("many", [1, 5])
@pytest.mark.parametrize(
    "spoil",
    [
        lambda host: Address("not a host", 9),
        lambda host: Address(host, 1 << 16),
        lambda host: Address("fe80::1%nowhere", 9),
        lambda host: Address(host, 0),
    ],
    ids=["no address", "no port", "no zone", "port 0"],
)
def test_what_has_no_destination_is_counted(
    bench: Bench, spoil: Callable[[str], Address], many: int
) -> None:
    bench.to[0] = spoil(bench.to[0].host)
    for _ in range(many):
        bench.send(b"lost")
    bench.send(b"not lost", peer=1)
    bench.successive.flush()
    assert [data for data, _ in bench.got(1)] == [b"not lost"]
    assert bench.successive.sent == 1
    assert sum(bench.refused.values()) + sum(bench.successive.faulty.values()) == many


def test_dont_fragment_is_for_one_datagram_and_keeps_the_order(bench: Bench) -> None:
    bench.send(b"before")
    bench.send(b"whole", dont_fragment=True)
    assert [data for data, _ in bench.got()] == [b"before", b"whole"], "at once"
    bench.send(b"after")
    bench.successive.flush()
    assert [data for data, _ in bench.got()] == [b"after"]
    calls = bench.watched[0].calls
    assert calls[0] == calls[-1] == "sendto"
    first, last = (calls.index("setsockopt"), len(calls) - 1 - calls[::-1].index("setsockopt"))
    assert calls[first : last + 1].count("sendto") == 1


def test_a_socket_that_cannot_say_so_sends_nothing_that_may_be_cut(bench: Bench) -> None:
    bench.watched[0].refuse["setsockopt"] = [errno.ENOPROTOOPT]
    bench.send(b"whole", dont_fragment=True)
    assert bench.got() == []
    assert bench.refused == Counter({errno.ENOPROTOOPT: 1})
    assert bench.successive.sent == 0
