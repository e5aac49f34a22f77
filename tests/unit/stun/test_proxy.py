"""The PROXY protocol: every form of a header, whole and cut anywhere, and what is none."""

from __future__ import annotations

import socket
from random import Random

import pytest

from stun.proxy import V1_LIMIT, V2_LIMIT, Header, NotProxied, crc32c, read
from stun.sansio import Address

SIGNATURE = bytes.fromhex("0d0a0d0a000d0a515549540a")
CLIENT, SERVER = Address("192.0.2.1", 40000), Address("198.51.100.1", 3478)
CLIENT6, SERVER6 = Address("2001:db8::1", 40000), Address("2001:db8::2", 443)


def v2(
    client: Address | None = CLIENT,
    server: Address = SERVER,
    *,
    command: int = 0x21,
    family: int | None = None,
    tlvs: bytes = b"",
    checksum: bool = False,
) -> bytes:
    body = b""
    if client is not None:
        af = socket.AF_INET6 if client.is_ipv6 else socket.AF_INET
        family = family or (0x21 if client.is_ipv6 else 0x11)
        body = socket.inet_pton(af, client.host) + socket.inet_pton(af, server.host)
        body += client.port.to_bytes(2, "big") + server.port.to_bytes(2, "big")
    body += tlvs
    if checksum:
        body += b"\x03\x00\x04" + bytes(4)
    header = SIGNATURE + bytes([command, family or 0]) + len(body).to_bytes(2, "big") + body
    return header[:-4] + crc32c(header).to_bytes(4, "big") if checksum else header


VALID = {
    "v1 TCP4": (b"PROXY TCP4 192.0.2.1 198.51.100.1 40000 3478\r\n", CLIENT, SERVER),
    "v1 TCP6": (b"PROXY TCP6 2001:DB8::1 2001:db8:0::2 40000 443\r\n", CLIENT6, SERVER6),
    "v1 UNKNOWN": (b"PROXY UNKNOWN\r\n", None, None),
    "v1 UNKNOWN with more": (b"PROXY UNKNOWN ffff::1 anything at all\r\n", None, None),
    "v2 TCP4": (v2(), CLIENT, SERVER),
    "v2 TCP6": (v2(CLIENT6, SERVER6), CLIENT6, SERVER6),
    "v2 mapped": (
        v2(Address("::ffff:192.0.2.1", 40000), Address("::ffff:198.51.100.1", 3478)),
        CLIENT,
        SERVER,
    ),
    "v2 half mapped": (
        v2(Address("::ffff:192.0.2.1", 40000), SERVER6),
        Address("::ffff:c000:201", 40000),
        SERVER6,
    ),
    "v2 LOCAL": (v2(None, command=0x20), None, None),
    "v2 LOCAL with addresses": (v2(command=0x20), None, None),
    "v2 LOCAL of a Unix socket": (v2(None, command=0x20, family=0x31), None, None),
    "v2 UNSPEC": (v2(None), None, None),
    "v2 TLVs": (v2(tlvs=b"\x01\x00\x02h2\x04\x00\x00\xe0\x00\x01x"), CLIENT, SERVER),
    "v2 checksum": (v2(tlvs=b"\x02\x00\x01a", checksum=True), CLIENT, SERVER),
}


@pytest.mark.parametrize("name", VALID)
def test_headers(name: str) -> None:
    data, client, server = VALID[name]
    header = read(data + b"\x00\x01\x00\x00")
    assert isinstance(header, Header)
    assert header.size == len(data)
    if "half" in name:  # how a mapped address is written differs between versions of Python
        assert header.client is not None
        assert socket.inet_pton(socket.AF_INET6, header.client.host)[-4:] == bytes([192, 0, 2, 1])
        assert header.server == server
    else:
        assert (header.client, header.server) == (client, server)
    for size in range(len(data)):
        assert read(data[:size]) is None, f"decided after {size} octets"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x00\x01\x00\x00", "no PROXY"),
        (b"\x16\x03\x01", "no PROXY"),
        (b"POST / HTTP/1.1", "no PROXY"),
        (b"\r\n\r\nGET", "no PROXY"),
        (b"PROXY TCP5 1.1.1.1 1.1.1.1 1 1\r\n", "neither"),
        (b"PROXY \r\n", "neither"),
        (b"PROXY TCP4 192.0.2.1 198.51.100.1 40000\r\n", "two ports"),
        (b"PROXY TCP4 192.0.2.1 198.51.100.1 40000 3478 \r\n", "two ports"),
        (b"PROXY TCP4  192.0.2.1 198.51.100.1 4000 3478\r\n", "two ports"),
        (b"PROXY TCP4 192.0.2.1 2001:db8::1 40000 3478\r\n", "not valid"),
        (b"PROXY TCP6 192.0.2.1 192.0.2.2 40000 3478\r\n", "not valid"),
        (b"PROXY TCP6 fe80::1%eth0 ::1 40000 3478\r\n", "not valid"),
        (b"PROXY TCP4 192.0.2.1 198.51.100.1 040 3478\r\n", "not valid"),
        (b"PROXY TCP4 192.0.2.1 198.51.100.1 65536 3478\r\n", "not valid"),
        (b"PROXY TCP4 192.0.2.1 198.51.100.1 -1 3478\r\n", "not valid"),
        (b"PROXY TCP4 192.0.2.1 198.51.100.1 \xb2 3478\r\n", "not valid"),
        (b"PROXY UNKNOWN " + b"x" * V1_LIMIT, "does not end"),
        (v2(command=0x11), "version 1"),
        (v2(command=0x22), "command 2"),
        (v2(family=0x12), "datagrams"),
        (v2(None, family=0x31), "Unix"),
        (v2(None, family=0x41), "0x41"),
        (v2(None, family=0x11), "too short for its addresses"),
        (v2(tlvs=b"\x01\x00"), "cut short"),
        (v2(tlvs=b"\x01\x00\x02a"), "longer than the header"),
        (v2(tlvs=b"\x03\x00\x01a"), "not four octets"),
        (v2(tlvs=b"\x03\x00\x04abcd"), "does not match"),
        (v2(tlvs=bytes(V2_LIMIT))[:16], "too long"),
    ],
)
def test_what_is_refused(data: bytes, reason: str) -> None:
    refusal = read(data)
    assert isinstance(refusal, NotProxied)
    assert reason in refusal.reason


def test_a_single_wrong_octet_breaks_the_checksum(rng: Random) -> None:
    data = bytearray(v2(tlvs=b"\x02\x00\x01a", checksum=True))
    at = rng.randrange(16, 28)
    data[at] ^= 1 << rng.randrange(8)
    assert read(bytes(data)) == NotProxied("PROXY v2: the checksum does not match")


def test_the_longest_line_of_version_1_is_taken() -> None:
    line = b"PROXY UNKNOWN " + b"f" * (V1_LIMIT - 16) + b"\r\n"
    assert len(line) == V1_LIMIT
    assert read(line) == Header(V1_LIMIT)


def test_noise_raises_nothing(rng: Random) -> None:
    for data, _, _ in VALID.values():
        for _ in range(300):
            damaged = bytearray(data)
            for _ in range(rng.randrange(1, 4)):
                damaged[rng.randrange(len(damaged))] = rng.randrange(256)
            read(bytes(damaged))


def test_crc32c() -> None:
    # RFC 3720 appendix B.4.
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E
