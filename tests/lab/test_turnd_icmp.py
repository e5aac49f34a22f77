"""turnd tells its clients what ICMP says of their datagrams: real routers, real links, real errors.

Two peers are behind the internet's router; the link to one of them is narrow.  A client of ours is
led by hand over sockets of the laboratory, so that each octet that turnd sends it can be looked at.

That a datagram was dropped is not concluded from silence: it is the router that says so, and what
the client sends after that is the next thing to reach the peer.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from nattype.lab import Lab, Machine
from nattype.lab.kernel.spec import site
from stun.attributes import XOR_PEER_ADDRESS
from stun.codec import decode
from stun.discovery import Target, Transport
from stun.registry import Method
from stun.sansio import Address
from stun.sockaddr import from_sockaddr
from tests.lab.turn_caller import PATIENCE, USER, Caller
from turn.client.events import PeerUnreachable

ROOT = Path(__file__).parents[2]
PORT, PEER_PORT, NOBODY = 3478, 5000, 5001
METRICS_PORT = 9641
NARROW = 1280
"""As narrow as a link for IPv6 may be (RFC 8200 section 5)."""
LARGE = bytes(range(200)) * 7
"""1400 octets, which an ordinary link takes and the narrow one does not."""
BUSY = 40
"""Datagrams after which a flow has a socket of its own (:data:`turn.dataplane.sockets.BUSY`)."""
_ICMP = 0x8004
_INDICATION = 0x0010


class Words(NamedTuple):
    """What the two families say to the same: values of ICMP (RFC 8656 section 18.13)."""

    ipv6: bool
    too_big: bytes
    no_port: bytes
    no_route: bytes


# Reserved: 16 bits, type: 8, code: 8 (erratum 8901), error data: 32, the MTU or zero.
IPV4 = Words(
    ipv6=False,
    too_big=bytes.fromhex("0000 03 04 00000500"),
    no_port=bytes.fromhex("0000 03 03 00000000"),
    no_route=bytes.fromhex("0000 03 00 00000000"),
)
IPV6 = Words(
    ipv6=True,
    too_big=bytes.fromhex("0000 02 00 00000500"),
    no_port=bytes.fromhex("0000 01 04 00000000"),
    no_route=bytes.fromhex("0000 01 00 00000000"),
)


class Sender(Caller):
    """A caller that wants DONT-FRAGMENT, and to be told of ICMP errors."""

    def __init__(self, machine: Machine, server: Target, *, ipv6: bool) -> None:
        super().__init__(machine, server, family=6 if ipv6 else 4, dont_fragment=True)

    def error(self) -> tuple[Address, bytes]:
        """Return the peer and the ICMP attribute of the indication that turnd sends next."""
        self.messages.clear()
        told = self.wait(PeerUnreachable)
        (message,) = self.messages
        # RFC 8656 section 12.5: "The server uses a Data indication [...] even if a channel has been
        # bound to the peer."
        assert message[:2] == (Method.DATA | _INDICATION).to_bytes(2)
        indication = decode(message)
        # Section 11.5: it has "both an XOR-PEER-ADDRESS and an ICMP attribute", and nothing else.
        assert [code for code, _ in indication.attributes] == [XOR_PEER_ADDRESS.code, _ICMP]
        peer, octets = indication.get(XOR_PEER_ADDRESS), indication.attributes[1][1]
        assert peer is not None
        # What the client makes of it.
        meaning = (octets[2], octets[3], int.from_bytes(octets[4:]))
        assert (told.peer, (told.icmp_type, told.icmp_code, told.mtu)) == (peer, meaning)
        return peer, octets


class Scene:
    """A laboratory with turnd on its server, for one test."""

    def __init__(self, lab: Lab, words: Words, transport: Transport, stack: ExitStack) -> None:
        self.lab, self.words = lab, words
        self._stack = stack
        for family in ("-4", "-6"):  # what an earlier test taught the kernel about the paths
            lab.server.run(["ip", family, "route", "flush", "cache"], check=True)
        self.caller = Sender(
            lab["client"], Target(Address(lab.server.ipv4, PORT), transport), ipv6=words.ipv6
        )
        stack.callback(self.caller.close)

    def address(self, machine: str, port: int = PEER_PORT) -> Address:
        """Return where a peer is, in the family of this test; the client may send to it."""
        found = self.lab[machine]
        address = Address(found.ipv6 if self.words.ipv6 else found.ipv4, port)
        self.caller.permit(address)
        return address

    def peer(self, machine: str) -> tuple[Address, socket.socket]:
        """Have a peer listen; the client may send to it."""
        address = self.address(machine)
        family = socket.AF_INET6 if self.words.ipv6 else socket.AF_INET
        sock = self._stack.enter_context(self.lab[machine].socket(family))
        sock.settimeout(PATIENCE)
        sock.bind(address)
        return address, sock

    def has_own_socket(self, peer: Address) -> bool:
        """Whether turnd has a socket for this peer alone, as it has for busy flows."""
        command = ["ss", "--numeric", "--udp", "--no-header", "state", "connected"]
        done = self.lab.server.run([*command, "dst", str(peer)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return str(self.caller.relayed) in done.stdout


@pytest.fixture(scope="module")
def laboratory(plane: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """turnd, two peers and a client, all at public addresses; the one at ``narrow`` hardly."""
    log = tmp_path_factory.mktemp("turnd") / "log"
    sites = (
        site("open", name="caller", hosts=["client"]),
        site("open", name="wide", hosts=["wide"]),
        site("open", name="narrow", hosts=["narrow"], mtu=NARROW),
    )
    with Lab(*sites, server_command=(), ipv6="routed", seed=1) as lab, log.open("wb") as out:
        server = lab.server
        if plane == "kernel":
            # A checksum that is left to a network card is never computed in a laboratory, and the
            # kernel's data plane leaves such packets to the sockets.
            for host in ("client", "wide", "narrow"):
                done = lab[host].run(["ip", "-json", "link"], capture_output=True, text=True)
                for link in json.loads(done.stdout):
                    if link["ifname"] != "lo":
                        command = ["ethtool", "-K", link["ifname"], "tx", "off"]
                        lab[host].run(command, stdout=subprocess.DEVNULL, check=True)
        turnd = server.popen(
            [
                *(sys.executable, "-P", "-m", "turn.daemon.cli", "--realm", "example.org"),
                *("--dataplane", plane, "--metrics", f"127.0.0.1:{METRICS_PORT}"),
                *("--listen", f"udp://{server.ipv4}:{PORT}"),
                *("--listen", f"tcp://{server.ipv4}:{PORT}"),
                *("--relay-address", server.ipv4, "--relay-address", server.ipv6),
                *(
                    "--user",
                    f"{USER.username}:sesame",
                    "--admin-socket",
                    "",
                    "--log-format",
                    "json",
                ),
            ],
            stdout=out,
            stderr=out,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        with turnd:
            _await_turnd(lab, log)
            yield lab
            turnd.terminate()
            assert turnd.wait(20) == 0, log.read_text()
    assert "Traceback" not in log.read_text()


def _await_turnd(lab: Lab, log: Path) -> None:
    end = time.monotonic() + 20
    while True:
        with lab["client"].socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.settimeout(1)
            try:
                probe.connect((lab.server.ipv4, PORT))
            except OSError:
                assert time.monotonic() < end, log.read_text()
                time.sleep(0.05)
            else:
                return


@pytest.fixture(params=[Transport.UDP, Transport.TCP], ids=["over-udp", "over-tcp"])
def transport(request: pytest.FixtureRequest) -> Transport:
    found: Transport = request.param
    return found


@pytest.fixture(params=[IPV4, IPV6], ids=["ipv4", "ipv6"])
def words(request: pytest.FixtureRequest) -> Words:
    found: Words = request.param
    return found


@pytest.fixture
def scene(laboratory: Lab, words: Words, transport: Transport) -> Iterator[Scene]:
    with ExitStack() as stack:
        yield Scene(laboratory, words, transport, stack)


def test_what_the_next_link_does_not_take_is_reported_with_its_mtu(scene: Scene) -> None:
    caller = scene.caller
    peer, sock = scene.peer("narrow")
    for _ in range(2):  # what the kernel has learned of the path changes nothing
        caller.send(peer, LARGE, dont_fragment=True)
        assert caller.error() == (peer, scene.words.too_big)
    # As much as the client now knows to fit: both headers are in the MTU.
    fitting = LARGE[: NARROW - (48 if scene.words.ipv6 else 28)]
    caller.send(peer, fitting, dont_fragment=True)
    assert sock.recv(2000) == fitting
    caller.send(peer, LARGE[: len(fitting) + 1], dont_fragment=True)
    assert caller.error() == (peer, scene.words.too_big)
    # Without DONT-FRAGMENT the router fragments it, or turnd's kernel, and nobody complains.
    caller.send(peer, LARGE)
    assert sock.recv(2000) == LARGE
    # That was the next that came, so nothing of the others did; and the wide link takes them.
    wide, other = scene.peer("wide")
    caller.send(wide, LARGE, dont_fragment=True)
    assert other.recv(2000) == LARGE


def test_what_turnds_own_link_does_not_take_is_not_fragmented_there(scene: Scene) -> None:
    peer, sock = scene.peer("wide")
    longer = LARGE + bytes(80)  # with its headers more than the 1500 octets of every other link
    scene.caller.send(peer, longer)
    assert sock.recv(2000) == longer
    scene.caller.send(peer, longer, dont_fragment=True)
    scene.caller.send(peer, b"after it")
    assert sock.recv(2000) == b"after it"


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
def test_a_peer_with_a_channel(scene: Scene, plane: str, busy: bool) -> None:
    caller = scene.caller
    peer, sock = scene.peer("narrow")
    caller.bind(peer)
    for number in range(BUSY if busy else 1):
        caller.send(peer, b"%d" % number)
        assert sock.recv(100) == b"%d" % number
    over_udp = caller.client.config.server.transport is Transport.UDP
    if over_udp:
        # What the kernel forwards leaves the sockets idle.
        assert scene.has_own_socket(peer) is (busy and plane == "sockets")
    if scene.words.ipv6 or (plane == "kernel" and over_udp):
        # "IPv6 routers do not fragment", nor do others what has DF, which the kernel copies from
        # the client's packet: the first datagram tells where the limit is.
        caller.send(peer, LARGE)
        assert caller.error() == (peer, scene.words.too_big)
    # ChannelData has no DONT-FRAGMENT, so DF is 0 in what the sockets send.
    caller.send(peer, LARGE)
    assert sock.recv(2000) == LARGE
    # "The client is not obligated to use the channel when it exists" (section 12.5).
    caller.send(peer, LARGE, dont_fragment=True)
    assert caller.error() == (peer, scene.words.too_big)
    caller.send(peer, b"after it")
    assert sock.recv(100) == b"after it"
    # The peer ends.
    sock.close()
    caller.send(peer, b"anybody there?")
    assert caller.error() == (peer, scene.words.no_port)
    caller.send(peer, LARGE[:1000], dont_fragment=True)
    assert caller.error() == (peer, scene.words.no_port)


def test_a_port_where_nobody_listens(scene: Scene) -> None:
    peer = scene.address("wide", NOBODY)
    for data in (b"", b"anybody there?", LARGE):
        scene.caller.send(peer, data)
        assert scene.caller.error() == (peer, scene.words.no_port)
    # The relayed address works on: the next datagram is not the one that pays for the last.
    listening, sock = scene.peer("wide")
    scene.caller.send(listening, b"hello")
    data, source = sock.recvfrom(100)
    assert (data, from_sockaddr(source)) == (b"hello", scene.caller.relayed)


def test_a_network_to_which_there_is_no_route(scene: Scene) -> None:
    address = "2620:4f:8000:ffff::1" if scene.words.ipv6 else "192.52.193.250"
    peer = Address(address, PEER_PORT)
    scene.caller.permit(peer)
    scene.caller.send(peer, b"hello")
    assert scene.caller.error() == (peer, scene.words.no_route)


def test_each_client_hears_of_its_own_datagrams_alone(
    laboratory: Lab, words: Words, transport: Transport
) -> None:
    with ExitStack() as stack:
        first, second = (Scene(laboratory, words, transport, stack) for _ in range(2))
        peer = second.address("narrow", NOBODY)
        assert first.address("narrow", NOBODY) == peer
        first.caller.send(peer, LARGE, dont_fragment=True)
        assert first.caller.error() == (peer, words.too_big)
        # An error of its own is the first thing that the other one is told.
        second.caller.send(peer, b"hello")
        assert second.caller.error() == (peer, words.no_port)
