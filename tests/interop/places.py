"""Where turnd and its clients are for each of its data planes.

With sockets all are on loopback.  What goes to the machine itself the kernel's data plane leaves to
the sockets; for it to forward anything, server, client and peer are machines of their own.
"""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from tests.lab.turnd_world import World


class Machine(Protocol):
    """Where programs run and sockets are."""

    @property
    def ipv4(self) -> str: ...

    @property
    def ipv6(self) -> str: ...

    def socket(self, family: int, kind: int, /) -> socket.socket: ...

    def popen(self, args: list[str], **options: Any) -> subprocess.Popen[Any]: ...


class Here:
    """This machine."""

    ipv4, ipv6 = "127.0.0.1", "::1"

    def socket(self, family: int, kind: int) -> socket.socket:
        """Return a new socket."""
        return socket.socket(family, kind)

    def popen(self, args: list[str], **options: Any) -> subprocess.Popen[Any]:
        """Start a program."""
        return subprocess.Popen(args, **options)


HERE: Machine = Here()


@dataclass(frozen=True)
class Place:
    """A server, a client and a peer: machines."""

    server: Machine
    client: Machine
    peer: Machine
    relayed_at: tuple[str, str]
    """The addresses, IPv4 and IPv6, that the server relays from."""

    def both(self, machine: Machine) -> tuple[str, str]:
        """Return a machine's addresses."""
        return machine.ipv4, machine.ipv6


@contextmanager
def placed(plane: str) -> Iterator[Place]:
    """Yield where a data plane has something to do."""
    if plane == "sockets":
        yield Place(HERE, HERE, HERE, (HERE.ipv4, HERE.ipv6))
    else:
        with World() as world:
            yield Place(world.server, world.client, world.peer, world.address(world.peer))
