"""The sockets of the data plane and how a flow decides to use them."""

from __future__ import annotations

import errno
import socket
import sys
from collections import Counter
from collections.abc import Iterator

import pytest

from stun.sansio import SECOND, Address, Security
from turn.dataplane import flows
from turn.dataplane.base import Route, RouteKey
from turn.dataplane.flows import (
    MOST_LONELY,
    Flow,
    Listener,
    Relay,
    as_received,
    descriptors,
    open_socket,
    set_dont_fragment,
    why,
)
from turn.meter import Bucket, Meter

linux = pytest.mark.skipif(sys.platform != "linux", reason="Linux's")
CLIENT = Address("127.0.0.1", 4000)


@pytest.fixture
def peer() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.setblocking(False)
        yield sock


@pytest.fixture
def flow(peer: socket.socket) -> Iterator[Flow]:
    listener = Listener(1, Address("127.0.0.1", 0), Security.NONE)
    relay = Relay(2, Address("127.0.0.1", 0))
    key = RouteKey(CLIENT, listener.local, 0x4000)
    route = Route(key, relay.local, Address(*peer.getsockname()), Meter(Bucket(0, 0)))
    made = Flow(route, listener, relay, SECOND)
    yield made
    if made.sock is not None:
        made.sock.close()
    relay.close()
    listener.close()


@pytest.mark.parametrize(
    ("address", "sockaddr"),
    [
        (Address("192.0.2.1", 9), ("192.0.2.1", 9)),
        (Address("2001:DB8:0:0::1", 9), ("2001:db8::1", 9, 0, 0)),
        (Address("fe80::1%1", 9), ("fe80::1", 9, 0, 1)),
    ],
)
def test_peers_are_looked_up_as_the_system_writes_them(
    address: Address, sockaddr: tuple[str, int]
) -> None:
    assert as_received(address) == sockaddr


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_sockets_do_not_block_and_take_one_family(host: str) -> None:
    with open_socket(Address(host, 0)) as sock:
        assert not sock.getblocking()
        if ":" in host:
            assert sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 1


def test_what_cannot_be_bound_leaves_no_descriptor() -> None:
    for kind in (
        lambda: Listener(1, Address("192.0.2.1", 0), Security.NONE),
        lambda: Relay(1, Address("192.0.2.1", 0)),
        lambda: Relay(1, Address("127.0.0.1", 1 << 16)),
    ):
        with pytest.raises((OSError, OverflowError)):
            kind()


@linux
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_dont_fragment_goes_on_and_off(host: str) -> None:
    level, option = (socket.IPPROTO_IPV6, 23) if ":" in host else (socket.IPPROTO_IP, 10)
    with open_socket(Address(host, 0)) as sock:
        seen = []
        for on in (False, True, False):
            set_dont_fragment(sock, ipv6=":" in host, on=on)
            seen.append(sock.getsockopt(level, option))
    assert seen[0] == seen[2] != seen[1] == 3  # PROBE of ip(7)


@linux
def test_a_socket_of_its_own_shares_the_port_but_not_with_others(
    flow: Flow, peer: socket.socket
) -> None:
    flow.connect()
    assert flow.sock is not None
    assert flow.sock.getsockname() == flow.relay.local
    assert flow.sock.getpeername() == peer.getsockname()
    for sock in (flow.sock, flow.relay.sock):
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR) == 0


@linux
def test_where_it_cannot_be_had_all_is_as_it_was(
    flow: Flow, monkeypatch: pytest.MonkeyPatch
) -> None:
    flow.peer = ("255.255.255.255", 9)  # broadcast: not permitted
    with pytest.raises(OSError, match=r".+"):
        flow.connect()
    assert flow.sock is None
    assert flow.relay.sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR) == 0


@pytest.mark.parametrize("own", [False, pytest.param(True, marks=linux)])
@pytest.mark.parametrize("sizes", [[5], [5, 5], [100] * 5, [100] * 5 + [7], [7, 100, 100, 100]])
def test_what_waits_for_the_peer_arrives(
    flow: Flow, peer: socket.socket, own: bool, sizes: list[int]
) -> None:
    if own:
        flow.connect()
    sent = [bytes([n]) * size for n, size in enumerate(sizes)]
    flow.outgoing += [memoryview(data) for data in sent]
    refused: Counter[int] = Counter()
    flow.send(refused)
    assert [peer.recv(2000) for _ in sent] == sent
    assert not refused
    assert flow.outgoing == []


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EIO])
def test_where_segmentation_fails_datagrams_leave_one_by_one(
    flow: Flow, peer: socket.socket, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not flow.largest:
        pytest.skip("the system has no segmentation")

    class Refusing(socket.socket):
        def sendmsg(self, *args: object) -> int:  # type: ignore[override]
            raise OSError(code, "no")

    plain = flow.relay.sock
    flow.relay.sock = Refusing(fileno=plain.detach())
    sent = [bytes([n]) * 100 for n in range(5)]
    flow.outgoing += [memoryview(data) for data in sent]
    refused: Counter[int] = Counter()
    flow.send(refused)
    assert [peer.recv(2000) for _ in sent] == sent
    assert not refused
    # Too large for this path, or nothing that this system can do at all.
    assert flow.largest == (99 if code == errno.EINVAL else 0)


def test_what_does_not_go_is_counted(flow: Flow) -> None:
    flow.peer = ("127.0.0.1", 0)
    flow.outgoing += [memoryview(b"x")] * 5
    refused: Counter[int] = Counter()
    flow.send(refused)
    assert refused == {errno.EINVAL: 5}


@linux
def test_how_to_read_follows_what_comes(flow: Flow) -> None:
    flow.connect()
    flow.pause = 0
    flow.look_for_bursts(8, emptied=True)
    assert (flow.pause, flow.joins) == (0, flows.JOINS)
    for _ in range(MOST_LONELY):
        flow.look_for_bursts(1, emptied=True)
        assert flow.joins == flows.JOINS
    flow.look_for_bursts(1, emptied=True)
    # Joined ones may still be there: they are read in the old way until none is left.
    assert (flow.pause, flow.joins) == (0, flows.WAS_JOINING)
    flow.look_for_bursts(1, emptied=False)
    assert (flow.pause, flow.joins) == (0, flows.WAS_JOINING)
    flow.look_for_bursts(0, emptied=True)
    assert flow.joins == 0
    assert flow.pause > 0


@linux
def test_the_next_look_is_ever_farther_away(flow: Flow) -> None:
    flow.connect()
    pauses = []
    for _ in range(6):
        flow.look_for_bursts(1, emptied=True)
        pauses.append(flow.pause)
    assert pauses == sorted(pauses)
    assert pauses[-1] == pauses[-2] == MOST_LONELY


def test_refusals_are_told_in_words() -> None:
    assert why(errno.EMSGSIZE) == "larger than the interface or the protocol allows"
    assert why(errno.EBADF) == "EBADF"
    assert why(99999) == "99999"


def test_a_process_may_have_descriptors() -> None:
    assert descriptors() > 3
