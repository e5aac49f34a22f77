"""Values: what may be sent, what is taken, what is refused."""

from __future__ import annotations

import random
import socket
from typing import Any

import pytest

from stun import attributes as attrs
from stun.attributes import Attribute, host_octets, host_text
from stun.errors import DecodeError, DropReason, UsageError
from stun.registry import AttributeType
from stun.sansio import Address

TID = bytes.fromhex("b7e7a701bc34d686fa87dfae")


def round_trip(attribute: Attribute[Any], value: Any) -> Any:
    return attribute.unpack(attribute.pack(value, TID), TID)


GOOD: list[tuple[Attribute[Any], Any]] = [
    (attrs.USERNAME, ""),
    (attrs.USERNAME, "ü" * 254),
    (attrs.REALM, "漢" * 127),
    (attrs.SOFTWARE, "natkit"),
    (attrs.NONCE, b"\xff\0"),
    (attrs.ALTERNATE_DOMAIN, "a" * 255),
    (attrs.PRIORITY, 0xFFFFFFFF),
    (attrs.ICE_CONTROLLING, 0xFFFFFFFFFFFFFFFF),
    (attrs.USE_CANDIDATE, True),
    (attrs.CHANNEL_NUMBER, 0x4FFF),
    (attrs.RESPONSE_PORT, 0),
    (attrs.REQUESTED_ADDRESS_FAMILY, 2),
    (attrs.REQUESTED_TRANSPORT, 17),
    (attrs.EVEN_PORT, False),
    (attrs.CHANGE_REQUEST, attrs.ChangeRequest(True, False)),
    (attrs.ERROR_CODE, attrs.ErrorValue(438, "Stale Nonce")),
    (attrs.ERROR_CODE, attrs.ErrorValue(300, "x" * 127)),
    (attrs.ADDRESS_ERROR_CODE, attrs.AddressError(2, 508, "full")),
    (attrs.UNKNOWN_ATTRIBUTES, (1, 0xFFFF)),
    (attrs.PASSWORD_ALGORITHMS, (attrs.Algorithm(1), attrs.Algorithm(9, b"abc"))),
    (attrs.PASSWORD_ALGORITHM, attrs.Algorithm(2, b"12345")),
    (attrs.ICMP, attrs.Icmp(255, 255, 0xFFFFFFFF)),
    (attrs.TRANSACTION_TRANSMIT_COUNTER, attrs.TransmitCounter(255, 0)),
    (attrs.ECN_CHECK, attrs.EcnCheck(False, 2)),
    (attrs.ACCESS_TOKEN, attrs.AccessToken(b"nonce", b"")),
    (attrs.CONNECT_BACK, attrs.ConnectBack(2, 8, 65535, 0, 1)),
    (attrs.CONNECT_BACK_RESULT, attrs.ConnectBackResult(1, 2, 3, 4, 5, 6)),
    (attrs.MESSAGE_INTEGRITY_SHA256, bytes(28)),
    (attrs.RESERVATION_TOKEN, bytes(8)),
    (attrs.MOBILITY_TICKET, b""),
]


@pytest.mark.parametrize(("attribute", "value"), GOOD, ids=repr)
def test_round_trip(attribute: Attribute[Any], value: Any) -> None:
    back = round_trip(attribute, value)
    assert back == value
    assert type(back) is type(value)


REFUSED: list[tuple[Attribute[Any], Any]] = [
    (attrs.USERNAME, "x" * 509),
    (attrs.USERNAME, "ü" * 255),
    (attrs.USERNAME, "\ud800"),
    (attrs.REALM, "x" * 128),
    (attrs.SOFTWARE, "x" * 128),
    (attrs.ALTERNATE_DOMAIN, "a" * 256),
    (attrs.NONCE, bytes(764)),
    (attrs.PRIORITY, -1),
    (attrs.PRIORITY, 1 << 32),
    (attrs.ICE_CONTROLLED, 1 << 64),
    (attrs.USE_CANDIDATE, False),
    (attrs.CHANNEL_NUMBER, 0x10000),
    (attrs.REQUESTED_ADDRESS_FAMILY, 3),
    (attrs.ADDITIONAL_ADDRESS_FAMILY, 0),
    (attrs.ERROR_CODE, attrs.ErrorValue(299, "")),
    (attrs.ERROR_CODE, attrs.ErrorValue(700, "")),
    (attrs.ERROR_CODE, attrs.ErrorValue(400, "x" * 128)),
    (attrs.ERROR_CODE, attrs.ErrorValue(400, "\udfff")),
    (attrs.ADDRESS_ERROR_CODE, attrs.AddressError(3, 440, "")),
    (attrs.UNKNOWN_ATTRIBUTES, (0x10000,)),
    (attrs.PASSWORD_ALGORITHM, attrs.Algorithm(0x10000)),
    (attrs.PASSWORD_ALGORITHM, attrs.Algorithm(1, bytes(0x10000))),
    (attrs.ICMP, attrs.Icmp(256, 0)),
    (attrs.TRANSACTION_TRANSMIT_COUNTER, attrs.TransmitCounter(256, 0)),
    (attrs.ECN_CHECK, attrs.EcnCheck(True, 4)),
    (attrs.ACCESS_TOKEN, attrs.AccessToken(bytes(0x10000), b"")),
    (attrs.CONNECT_BACK, attrs.ConnectBack(1, 256, 0, 0)),
    (attrs.CONNECT_BACK_RESULT, attrs.ConnectBackResult(1, -1, 0, 0, 0, 0)),
    (attrs.MESSAGE_INTEGRITY, bytes(19)),
    (attrs.MESSAGE_INTEGRITY_SHA256, bytes(18)),
    (attrs.RESERVATION_TOKEN, bytes(9)),
    (attrs.MAPPED_ADDRESS, Address("192.0.2.1", 65536)),
    (attrs.XOR_MAPPED_ADDRESS, Address("192.0.2.1", -1)),
    (attrs.MAPPED_ADDRESS, Address("example.org", 1)),
    (attrs.XOR_MAPPED_ADDRESS, Address("1.2.3", 1)),
    (attrs.XOR_MAPPED_ADDRESS, Address("1:2:3", 1)),
]


@pytest.mark.parametrize(("attribute", "value"), REFUSED, ids=repr)
def test_what_must_not_be_sent_is_the_caller_s_mistake(
    attribute: Attribute[Any], value: Any
) -> None:
    with pytest.raises(UsageError):
        attribute.pack(value, TID)


def test_a_receiver_is_lenient_where_a_sender_must_not_be() -> None:
    assert attrs.SOFTWARE.unpack(b"x" * 763, TID) == "x" * 763
    assert attrs.REALM.unpack(b"x" * 128, TID) == "x" * 128
    assert attrs.USERNAME.unpack(b"x" * 763, TID) == "x" * 763
    assert attrs.SOFTWARE.unpack(b"Vovida.org 0.96\0", TID) == "Vovida.org 0.96"
    assert attrs.SOFTWARE.unpack(b"caf\xe9", TID) == "caf�"
    assert attrs.ERROR_CODE.unpack(b"\0\0\4\1caf\xe9", TID) == (401, "caf�")
    # Reserved bits and flags that nobody defined mean nothing.
    assert attrs.ERROR_CODE.unpack(b"\xff\xff\xfc\1", TID) == (401, "")
    assert attrs.CHANGE_REQUEST.unpack(b"\xff\xff\xff\xf9", TID) == (False, False)
    assert attrs.EVEN_PORT.unpack(b"\x7f", TID) is False
    assert attrs.REQUESTED_TRANSPORT.unpack(b"\x11\1\2\3", TID) == 17
    assert attrs.RESPONSE_PORT.unpack(b"\x0d\x96", TID) == 3478
    assert attrs.RESPONSE_PORT.unpack(b"\x0d\x96\xff\xff", TID) == 3478
    # A family that a TURN server must answer with 440 has to reach it.
    assert attrs.REQUESTED_ADDRESS_FAMILY.unpack(b"\3\0\0\0", TID) == 3


def test_an_error_without_a_reason_is_sent_with_the_registry_s() -> None:
    assert round_trip(attrs.ERROR_CODE, attrs.ErrorValue(420, "")) == (420, "Unknown Attribute")
    assert round_trip(attrs.ERROR_CODE, attrs.ErrorValue(499, "")) == (499, "")
    error = attrs.AddressError(1, 508, "")
    assert round_trip(attrs.ADDRESS_ERROR_CODE, error) == (1, 508, "Insufficient Capacity")


@pytest.mark.parametrize("code", sorted(attrs.BY_CODE), ids=lambda code: f"{code:#06x}")
def test_nothing_but_decode_error_comes_of_any_octets(code: int, rng: random.Random) -> None:
    attribute = attrs.BY_CODE[code]
    for _ in range(200):
        octets = rng.randbytes(rng.choice((0, 1, 2, 3, 4, 5, 7, 8, 9, 20, 21, 32, 40)))
        refusal: DecodeError | None = None
        value: object = None
        try:
            value = attribute.unpack(octets, TID)
        except DecodeError as refused:
            refusal = refused
        if refusal is not None:
            assert refusal.reason is DropReason.BAD_ATTRIBUTE_VALUE
            assert refusal.detail.startswith(f"{attribute.name}: ")
            assert 0 <= refusal.offset <= len(octets)
        elif isinstance(value, Address):
            assert attribute.pack(value, TID)[1:] == octets[1:]


def test_lookup_of_an_unknown_attribute_is_opaque() -> None:
    unknown = attrs.lookup(0x7ABC)
    assert unknown.unpack(b"any", TID) == b"any"
    assert (unknown.code, unknown.name) == (0x7ABC, "0x7abc")
    assert attrs.lookup(0x0020) is attrs.XOR_MAPPED_ADDRESS
    assert repr(attrs.XOR_MAPPED_ADDRESS) == "<XOR-MAPPED-ADDRESS 0x0020>"


def test_constants_are_named_after_their_rows() -> None:
    for name, value in vars(attrs).items():
        if isinstance(value, Attribute):
            assert value.entry is AttributeType[name]


# Addresses ----------------------------------------------------------------------------------------

IPV6 = [
    "::",
    "::1",
    "1::",
    "2001:db8::1",
    "2001:db8::1:0:0:1",
    "2001:0:0:1::1",
    "2001:db8:0:1:1:1:1:1",
    "::ffff:192.0.2.1",
    "::192.0.2.1",
    "::ffff:0:c000:201",
    "64:ff9b::c000:201",
    "fe80::1",
    "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
    "0:0:1:0:0:1:0:1",
    "::2",
    "::1:2",
    "1:2:3:4:5:6:7::",
]


@pytest.mark.parametrize("host", IPV6)
def test_ipv6_text_is_that_of_the_operating_system(host: str) -> None:
    octets = socket.inet_pton(socket.AF_INET6, host)
    assert host_text(octets) == socket.inet_ntop(socket.AF_INET6, octets)
    assert host_octets(host) == octets


def test_random_addresses_have_the_operating_system_s_text(rng: random.Random) -> None:
    for _ in range(3_000):
        octets = b"".join(
            rng.choice((b"\0\0", b"\0\0", rng.randbytes(2), b"\xff\xff")) for _ in range(8)
        )
        text = host_text(octets)
        assert text == socket.inet_ntop(socket.AF_INET6, octets)
        assert host_octets(text) == octets
        four = octets[:4]
        assert host_text(four) == socket.inet_ntop(socket.AF_INET, four)
        assert host_octets(host_text(four)) == four


def test_a_zone_stays_at_home() -> None:
    assert host_octets("fe80::1%eth0") == host_octets("fe80::1")


def test_the_mask_hides_every_octet_of_the_address() -> None:
    for address in (Address("33.18.164.66", 8466), Address("192.0.2.1", 1), Address("2001::", 1)):
        plain = attrs.MAPPED_ADDRESS.pack(address, TID)
        masked = attrs.XOR_MAPPED_ADDRESS.pack(address, TID)
        mask = bytes.fromhex("21122112a442") + TID
        assert masked == plain[:2] + bytes(a ^ b for a, b in zip(plain[2:], mask, strict=False))
        assert attrs.XOR_MAPPED_ADDRESS.unpack(masked, TID) == address
    # IPv6 is masked by the transaction id too, so another one gives another address.
    masked = attrs.XOR_MAPPED_ADDRESS.pack(Address("2001:db8::1", 1), TID)
    assert attrs.XOR_MAPPED_ADDRESS.unpack(masked, bytes(12)) != Address("2001:db8::1", 1)
