"""What a new connection is taken for, however its first octets are cut."""

from __future__ import annotations

import ssl

import pytest

from stun.entrance import Entrance, Ready, Refused
from stun.proxy import Header
from stun.sansio import Address, Security

PROXY = b"PROXY TCP4 192.0.2.1 198.51.100.1 40000 3478\r\n"
HEADER = Header(len(PROXY), Address("192.0.2.1", 40000), Address("198.51.100.1", 3478))
STUN = bytes.fromhex("000100002112a442") + bytes(12)


def hello(*protocols: str) -> bytes:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if protocols:
        context.set_alpn_protocols([*protocols])
    outgoing = ssl.MemoryBIO()
    tls = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="stun.example")
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


def first(entrance: Entrance, data: bytes) -> tuple[Ready | Refused | None, int]:
    """Feed octet by octet; return the decision and after how many octets it came."""
    for at in range(len(data)):
        decision = entrance.feed(data[at : at + 1])
        if decision is not None:
            return decision, at + 1
    return None, len(data)


def test_plain_on_a_port_that_detects() -> None:
    assert Entrance(Security.DETECT, proxied=False).feed(STUN) == Ready(False, STUN, None)
    assert first(Entrance(Security.DETECT, proxied=False), STUN) == (
        Ready(False, STUN[:1], None),
        1,
    )


@pytest.mark.parametrize("security", [Security.DETECT, Security.REQUIRED])
@pytest.mark.parametrize("protocols", [(), ("stun.turn",), ("x", "stun.nat-discovery")])
def test_tls(security: Security, protocols: tuple[str, ...]) -> None:
    data = hello(*protocols)
    assert Entrance(security, proxied=False).feed(data) == Ready(True, data, None)
    assert first(Entrance(security, proxied=False), data) == (Ready(True, data, None), len(data))


def test_plain_where_tls_is_required() -> None:
    decision = Entrance(Security.REQUIRED, proxied=False).feed(STUN)
    assert isinstance(decision, Refused)
    assert not decision.last_words


def test_tls_for_another_protocol_gets_the_alert() -> None:
    decision = Entrance(Security.DETECT, proxied=False).feed(hello("h2"))
    assert isinstance(decision, Refused)
    # RFC 8446 section 6: a fatal alert (2), no_application_protocol (120), in a record of TLS 1.2.
    assert decision.last_words == bytes([21, 3, 3, 0, 2, 2, 120])


def test_bad_tls_is_left_to_the_library() -> None:
    data = b"\x16\x03\x01\x00\x04\x02\x00\x00\x00"
    assert Entrance(Security.DETECT, proxied=False).feed(data) == Ready(True, data, None)


def test_a_client_hello_in_too_many_records_is_refused() -> None:
    # It is not left to the library, which goes on without ALPN: records are not protected, so
    # whoever leads a browser's connection here could cut its ClientHello until we look away.
    data = hello("h2")
    record = data[:3] + b"\x00\x01"
    cut = b"".join(record + data[n : n + 1] for n in range(5, len(data)))
    for decision in (
        Entrance(Security.DETECT, proxied=False).feed(cut),
        first(Entrance(Security.DETECT, proxied=False), cut)[0],
    ):
        assert isinstance(decision, Refused)
        assert "records" in decision.reason


def test_a_proxied_plain_connection_is_ready_after_the_header() -> None:
    decision, octets = first(Entrance(Security.NONE, proxied=True), PROXY + STUN)
    assert decision == Ready(False, b"", HEADER)
    assert octets == len(PROXY)
    assert Entrance(Security.NONE, proxied=True).feed(PROXY + STUN) == Ready(False, STUN, HEADER)


def test_tls_is_looked_for_after_the_header() -> None:
    data = hello("stun.turn")
    assert first(Entrance(Security.DETECT, proxied=True), PROXY + data) == (
        Ready(True, data, HEADER),
        len(PROXY) + len(data),
    )
    assert first(Entrance(Security.DETECT, proxied=True), PROXY + STUN) == (
        Ready(False, STUN[:1], HEADER),
        len(PROXY) + 1,
    )


@pytest.mark.parametrize("data", [STUN, hello()])
def test_a_proxy_has_to_say_for_whom(data: bytes) -> None:
    assert Entrance(Security.DETECT, proxied=True).feed(data) == Refused("no PROXY protocol header")


def test_a_header_that_nobody_asked_for_is_not_one() -> None:
    # Else any client might pass for any other.
    assert Entrance(Security.NONE, proxied=False).feed(PROXY) == Ready(False, PROXY, None)
    assert Entrance(Security.DETECT, proxied=False).feed(PROXY) == Ready(False, PROXY, None)
