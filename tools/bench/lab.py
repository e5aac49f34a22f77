"""Three machines in a row for the benchmarks: client, server, peer, and cables between them.

Theory of operation.  A machine is a network namespace that only a descriptor of this process holds,
so a laboratory is gone when the process is, however it ended.  A cable is a veth pair; link-layer
addresses are fixed and neighbours are told of one another, so that frames can be made beforehand
and no measurement waits for ARP.

The client's machine has all of 10.8.0.0/16, the peer's all of 10.9.0.0/16, so any number of
clients and peers are one socket each.  The server's machine forwards IP.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from nattype.lab.kernel.namespaces import CLONE_NEWNET, inside, setns, unshare

CLIENTS, PEERS = "10.8", "10.9"
"""The first half of the addresses that the client's and the peer's machines have."""
NEAR, FAR = "10.0.1.1", "10.0.2.1"
"""The server's addresses: towards the clients and towards the peers."""
CABLE = "eth0"
"""The only interface of the client's machine, and of the peer's."""


def _mac(cable: int, end: int) -> str:
    return f"02:00:00:00:{cable:02x}:{end:02x}"


def octets_of(mac: str) -> bytes:
    """Return a link-layer address as it is on the wire."""
    return bytes.fromhex(mac.replace(":", ""))


@dataclass(frozen=True)
class Side:
    """One end machine: its namespace, and how frames leave it."""

    space: int
    """A descriptor of its namespace."""
    mac: bytes
    gateway: bytes
    """The link-layer address of the server's interface."""


@dataclass(frozen=True)
class Lab:
    """The three machines."""

    client: Side
    peer: Side
    server: int
    """A descriptor of the server's namespace."""


def host(half: str, number: int) -> str:
    """Return the address of a client or peer, counted from 0: at most 65,279."""
    return f"{half}.{number // 255}.{number % 255 + 1}"


@contextmanager
def laboratory() -> Iterator[Lab]:
    """Build it.  Raises ``OSError`` without CAP_NET_ADMIN and CAP_SYS_ADMIN."""
    with ExitStack() as stack:
        client, server, peer = (stack.enter_context(_network()) for _ in range(3))
        for cable, (space, name, near, local) in enumerate(
            ((client, "clients", NEAR, CLIENTS), (peer, "peers", FAR, PEERS)), 1
        ):
            end = near.rpartition(".")[0] + ".2"
            ours, theirs = _mac(cable, 1), _mac(cable, 2)
            with inside(server):
                there = f"/proc/{os.getpid()}/fd/{space}"
                _ip(
                    "link set lo up",
                    f"link add {name} address {ours} type veth "
                    f"peer name {CABLE} address {theirs} netns {there}",
                    f"address add {near}/24 dev {name}",
                    f"link set {name} up",
                )
            with inside(space):
                _ip(
                    "link set lo up",
                    f"address add {end}/24 dev {CABLE}",
                    f"link set {CABLE} up",
                    f"neighbour replace {near} lladdr {ours} dev {CABLE} nud permanent",
                    f"route add default via {near}",
                    f"route add local {local}.0.0/16 dev lo",
                )
            with inside(server):
                _ip(
                    f"neighbour replace {end} lladdr {theirs} dev {name} nud permanent",
                    f"route add {local}.0.0/16 via {end}",
                )
        with inside(server):
            Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        yield Lab(
            Side(client, octets_of(_mac(1, 2)), octets_of(_mac(1, 1))),
            Side(peer, octets_of(_mac(2, 2)), octets_of(_mac(2, 1))),
            server,
        )


@contextmanager
def _network() -> Iterator[int]:
    """Make a namespace that lives as long as the descriptor yielded."""
    before = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        unshare(CLONE_NEWNET)
        made = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        setns(before)
        os.close(before)
    try:
        yield made
    finally:
        os.close(made)


def _ip(*commands: str) -> None:
    subprocess.run(["ip", "-batch", "-"], input="\n".join(commands), text=True, check=True)
