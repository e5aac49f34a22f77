"""NAT-PMP and PCP: what a router says of its outside, and what is not believed."""

from __future__ import annotations

import random
from collections import deque
from pathlib import Path
from typing import Any

import pytest

from nattype.discover import default_router
from nattype.observations import Gateway
from nattype.probe.bench import Bench
from nattype.probe.gateway import ask_gateway, external_of, is_pcp
from nattype.probe.session import Server, Session
from nattype.probe.strand import Strands
from stun.errors import Dropped
from stun.sansio import MILLISECOND, Address, Opened, OpenUdp, Received, Transmit

ROUTER = Address("192.168.1.1", 5351)
LOCAL = Address("192.168.1.2", 50000)
# RFC 6886 section 3.2: version, opcode, result code, seconds since start of epoch, address.
ANSWER = bytes((0, 128, 0, 0, 0, 0, 1, 44, 100, 64, 3, 9))


class Rig:
    def __init__(self) -> None:
        self.outputs: deque[Any] = deque()
        self.strands = Strands()
        bench = Bench(self.strands, self.outputs, LOCAL.host, 1, random.Random(0).randbytes)
        servers = (Server(Address("192.31.196.10", 3478), "a"),)
        self.session = Session(bench, "ipv4", servers, lambda _: None)
        self.strand = self.strands.spawn(ask_gateway(self.session, ROUTER.host))
        self.strands.run(0)
        order = self.outputs.popleft()
        assert isinstance(order, OpenUdp)
        bench.on_socket(Opened(order.handle, LOCAL))
        self.strands.run(0)

    def give(self, data: bytes, source: Address = ROUTER) -> None:
        self.session.bench.receive(Received(data, source, LOCAL), self.strands.now)
        self.strands.run(self.strands.now)


def test_what_is_asked_makes_no_mapping() -> None:
    rig = Rig()
    sent = [t for t in rig.outputs if isinstance(t, Transmit)]
    assert {t.destination for t in sent} == {ROUTER}
    nat_pmp, pcp = (t.data for t in sent)
    assert nat_pmp == b"\x00\x00"
    # PCP version 2, opcode ANNOUNCE (0), lifetime 0, our address mapped into IPv6.
    assert pcp[:8] == b"\x02\x00" + bytes(6)
    assert pcp[8:] == bytes(10) + b"\xff\xff" + bytes((192, 168, 1, 2))


def test_an_answer_ends_it() -> None:
    rig = Rig()
    rig.give(ANSWER)
    assert rig.strand.done
    assert rig.session.gateway == Gateway(ROUTER, "NAT-PMP", "100.64.3.9", at=0)


def test_pcp_alone_tells_no_address() -> None:
    rig = Rig()
    rig.give(bytes((2, 0x80)) + bytes(22))
    for now in (250, 750):
        rig.strands.run(now * MILLISECOND)
    assert rig.strand.done
    assert rig.session.gateway == Gateway(ROUTER, "PCP", None, at=0)


def test_silence_and_strangers_tell_nothing() -> None:
    rig = Rig()
    rig.give(ANSWER, Address("192.168.1.7", 5351))
    for now in (250, 750):
        rig.strands.run(now * MILLISECOND)
    assert rig.strand.done
    assert rig.session.gateway is None
    assert len([d for d in rig.outputs if isinstance(d, Dropped)]) == 1


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        ANSWER[:-1],
        ANSWER + b"\0",
        b"\x02" + ANSWER[1:],
        bytes((0, 0)) + ANSWER[2:],
        bytes((0, 128, 0, 3)) + ANSWER[4:],
        ANSWER[:8] + bytes(4),
    ],
)
def test_what_is_no_external_address(answer: bytes) -> None:
    assert external_of(answer) is None


def test_what_is_no_pcp() -> None:
    assert not is_pcp(bytes((2, 0)) + bytes(22))
    assert not is_pcp(bytes((0, 0x80)) + bytes(22))
    assert not is_pcp(bytes((2, 0x80)))


def test_the_default_router(tmp_path: Path) -> None:
    table = tmp_path / "route"
    table.write_text(
        "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"
        "eth0\t0001A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n"
        "eth0\t00000000\t0101A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n"
    )
    assert default_router("192.168.1.2", table) == "192.168.1.1"
    assert default_router("192.52.193.2", table) is None
    assert default_router("192.168.1.2", tmp_path / "absent") is None
