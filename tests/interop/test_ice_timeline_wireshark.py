"""The timeline's pcapng file as Wireshark's own programs and libpcap read it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from ice.base import Base
from ice.timeline import Timeline, write_pcapng
from stun.attributes import ICE_CONTROLLING, PRIORITY, XOR_MAPPED_ADDRESS
from stun.codec import encode
from stun.message import Message
from stun.registry import Method
from stun.sansio import MILLISECOND, SECOND, Address

pytestmark = pytest.mark.interop

UDP = Base(1, 0, 1, "udp", Address("10.0.0.1", 51000))
UDP6 = Base(2, 0, 1, "udp", Address("2001:db8::1", 51000))
TCP = Base(3, 0, 1, "tcp", Address("10.0.0.1", 51001))
RELAYED = Base(4, 0, 1, "udp", Address("198.51.100.1", 50000), relay="turn:relay.example")
PEER, PEER6 = Address("192.0.2.1", 52000), Address("2001:db8::2", 52000)
EPOCH = 1_700_000_000 * SECOND

FIELDS = [
    "frame.time_epoch", "frame.comment", "_ws.col.Protocol", "_ws.col.Info", "ip.checksum.status",
    "udp.checksum.status", "tcp.checksum.status", "stun.type", "stun.att.crc32.status",
    "_ws.expert.message",
]  # fmt: skip


def check() -> tuple[bytes, bytes]:
    request = Message.request(Method.BINDING, b"0123456789ab")
    request.add(PRIORITY, 0x6E0001FF).add(ICE_CONTROLLING, 7)
    response = Message.success(request).add(XOR_MAPPED_ADDRESS, UDP.address)
    key = b"a password of the peer"
    return encode(request, key=key, fingerprint=True), encode(response, key=key, fingerprint=True)


@pytest.fixture
def capture(tmp_path: Path) -> Path:
    request, response = check()
    timeline = Timeline()
    timeline.event("gathering began", 0)
    now = 0
    for base, peer in ((UDP, PEER), (UDP6, PEER6), (TCP, PEER), (RELAYED, PEER)):
        now += 10 * MILLISECOND
        timeline.sent(base, peer, request, now)
        timeline.event(f"check from {base.address}", now)
        timeline.received(base, peer, response, now + 5 * MILLISECOND)
    timeline.event("consent was lost", 31 * SECOND)
    path = tmp_path / "timeline.pcapng"
    with path.open("wb") as file:
        write_pcapng(timeline, file, epoch=EPOCH)
    return path


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_wireshark_dissects_every_packet(capture: Path, require_peer: Callable[..., str]) -> None:
    tshark = require_peer("tshark", "tshark")
    options = [f"-o{name}.check_checksum:TRUE" for name in ("ip", "udp", "tcp")]
    fields = [word for name in FIELDS for word in ("-e", name)]
    shown = run(tshark, "-r", str(capture), *options, "-T", "fields", *fields)
    rows = [dict(zip(FIELDS, line.split("\t"), strict=True)) for line in shown.splitlines()]
    assert len(rows) == 10
    began, *packets, lost = rows
    assert began["_ws.col.Info"] == "gathering began"
    assert lost["_ws.col.Info"] == "consent was lost"
    assert float(lost["frame.time_epoch"]) == EPOCH / SECOND + 31
    for number, row in enumerate(packets):
        assert row["_ws.col.Protocol"] == "STUN", row
        # Wireshark: 1 is good, 0 bad; IPv6 has no checksum of its own.
        assert row["ip.checksum.status"] in {"1", ""}, row
        assert {row["udp.checksum.status"], row["tcp.checksum.status"]} == {"1", ""}, row
        assert row["stun.att.crc32.status"] == "1", row
        assert row["stun.type"] == ("0x0101" if number % 2 else "0x0001"), row
    assert packets[0]["frame.comment"] == "check from 10.0.0.1:51000"
    assert packets[6]["frame.comment"] == (
        "through the relay turn:relay.example,check from 198.51.100.1:50000"
    )


def test_capinfos_finds_nothing_wrong(capture: Path, require_peer: Callable[..., str]) -> None:
    capinfos = require_peer("capinfos", "tshark")
    shown = run(capinfos, "-M", str(capture))  # what programs read: no rounding
    lines = dict(line.split(":", 1) for line in shown.splitlines() if ":" in line)
    found = {name.strip(): value.strip() for name, value in lines.items()}
    assert found["File type"] == "pcapng"
    assert found["Number of packets"] == "8"
    assert found["File timestamp precision"] == "nanoseconds (9)"
    assert found["Strict time order"] == "True"
    assert found["Capture application"] == "natkit"


def test_libpcap_reads_the_packets(capture: Path, require_peer: Callable[..., str]) -> None:
    tcpdump = require_peer("tcpdump", "tcpdump")
    lines = run(tcpdump, "-tt", "-n", "-r", str(capture)).splitlines()
    assert len(lines) == 8
    assert lines[0].startswith("1700000000.010000 IP 10.0.0.1.51000 > 192.0.2.1.52000: UDP")
    assert "198.51.100.1.50000 > 192.0.2.1.52000" in lines[6]
