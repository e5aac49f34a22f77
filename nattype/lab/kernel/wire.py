"""A cable with delay and jitter, in user space: not every kernel has netem.

Theory of operation.  Both ends of the cable are cut and led into a namespace of their own; this
process copies every frame from one to the other after its delay.  A heap holds the frames that are
under way. Jitter adds a random part to each frame's own delay, so frames may overtake each other,
as packets of the internet do.
"""

from __future__ import annotations

import heapq
import random
import select
import socket
import time
from collections.abc import Callable
from typing import NamedTuple, NoReturn

from nattype.lab.kernel.namespaces import precise_timers
from nattype.model import Link

_ETH_P_ALL = 3
_SOL_PACKET = 263
_PACKET_QDISC_BYPASS, _PACKET_IGNORE_OUTGOING = 20, 23
_PACKET_OUTGOING = 4
_BURST = 64
_QUEUE = 20_000


class _Frame(NamedTuple):
    release: float
    number: int
    out: socket.socket
    data: bytes


def run(wires: list[tuple[str, str, Link]], seed: int, ready: Callable[[], None]) -> NoReturn:
    """Carry frames between the interfaces of each pair for ever, after a call of ``ready``."""
    precise_timers()
    generator = random.Random(seed)
    others: dict[socket.socket, tuple[socket.socket, Link]] = {}
    for left, right, link in wires:
        one, other = _open(left), _open(right)
        others[one] = other, link
        others[other] = one, link
    ready()
    under_way: list[_Frame] = []
    number = 0
    while True:
        # select, not epoll: its timeout has a resolution of microseconds.
        wait = max(0.0, under_way[0].release - time.monotonic()) if under_way else None
        readable, _, _ = select.select(list(others), [], [], wait)
        for sock in readable:
            out, link = others[sock]
            for _ in range(_BURST):
                try:
                    data, sender = sock.recvfrom(65536)
                except (BlockingIOError, OSError):
                    break
                if sender[2] == _PACKET_OUTGOING or len(under_way) >= _QUEUE:
                    continue
                release = time.monotonic() + link.delay + generator.random() * link.jitter
                number += 1
                heapq.heappush(under_way, _Frame(release, number, out, data))
        now = time.monotonic()
        while under_way and under_way[0].release <= now:
            frame = heapq.heappop(under_way)
            try:
                frame.out.send(frame.data)
            except OSError:
                # The other end is down or its queue is full: a cable loses such frames too.
                continue


def _open(interface: str) -> socket.socket:
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
    sock.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
    sock.setsockopt(_SOL_PACKET, _PACKET_QDISC_BYPASS, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    sock.bind((interface, 0))
    sock.setblocking(False)
    return sock
