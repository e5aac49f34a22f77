"""The first words of real TLS and DTLS clients, and those of impostors."""

from __future__ import annotations

import ssl
from contextlib import suppress
from random import Random

import pytest
from OpenSSL import SSL

from stun.hello import (
    ALPN_LABELS,
    HELLO_LIMIT,
    RECORDS_LIMIT,
    ClientHello,
    Cookies,
    Overlong,
    read_datagram,
    read_stream,
    speaks_our_protocol,
    verify_request,
)
from stun.sansio import SECOND, Address

CLIENT = Address("192.0.2.1", 40000)
SERVER = Address("198.51.100.1", 5349)


def tls_hello(*protocols: str) -> bytes:
    """What Python's ssl module says first."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if protocols:
        context.set_alpn_protocols([*protocols])
    outgoing = ssl.MemoryBIO()
    tls = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="stun.example")
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


def dtls_client(*protocols: bytes) -> SSL.Connection:
    context = SSL.Context(SSL.DTLS_CLIENT_METHOD)
    if protocols:
        context.set_alpn_protos([*protocols])
    connection = SSL.Connection(context, None)
    connection.set_connect_state()
    connection.set_ciphertext_mtu(1200)
    return connection


def says(connection: SSL.Connection) -> bytes:
    with pytest.raises(SSL.WantReadError):
        connection.do_handshake()
    return connection.bio_read(65536)


@pytest.mark.parametrize("protocols", [(), ("stun.turn",), ("h2", "http/1.1")])
def test_a_tls_client_is_read_whole_and_octet_by_octet(protocols: tuple[str, ...]) -> None:
    data = tls_hello(*protocols)
    whole = read_stream(data)
    assert isinstance(whole, ClientHello)
    assert whole.protocols == tuple(name.encode() for name in protocols)
    assert whole.random == data[11:43]
    assert read_stream(data + b"and more") == whole
    needed = 0
    for size in range(1, len(data)):
        answer = read_stream(data[:size])
        assert isinstance(answer, int)
        assert size < answer <= len(data), "as much as is sure to be needed, never more"
        needed = max(needed, answer)
    assert needed == len(data)


def test_a_client_hello_in_several_records(rng: Random) -> None:
    data = tls_hello("stun.turn")
    message = data[5:]
    pieces = []
    while message:
        size = rng.randrange(4, 40)
        pieces.append(b"\x16\x03\x01" + len(message[:size]).to_bytes(2, "big") + message[:size])
        message = message[size:]
    assert read_stream(b"".join(pieces)) == read_stream(data)
    assert isinstance(read_stream(b"".join(pieces[:-1])), int)


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x02\x00\x00\x05hello",  # no version of TLS
        b"\x16\x03\x01\x00\x00",  # an empty record of a handshake
        b"\x16\x03\x01\x40\x01" + bytes(100),  # more than a record may hold
        b"\x16\x03\x01\x00\x04\x02\x00\x00\x00",  # a ServerHello
        b"\x16\x03\x01\x00\x04\x01\x00\x00\x00",  # an empty ClientHello
    ],
)
def test_what_is_no_client_hello(data: bytes) -> None:
    assert read_stream(data) is None


def test_nobody_keeps_us_busy_with_a_client_hello() -> None:
    with pytest.raises(Overlong):
        read_stream(b"\x16\x03\x01\x00\x04\x01" + HELLO_LIMIT.to_bytes(3, "big"))
    message = b"\x01" + (HELLO_LIMIT - 4).to_bytes(3, "big") + bytes(RECORDS_LIMIT)
    records = [b"\x16\x03\x01\x00\x01" + message[n : n + 1] for n in range(RECORDS_LIMIT)]
    assert isinstance(read_stream(b"".join(records[:-1])), int)
    with pytest.raises(Overlong):
        read_stream(b"".join(records))


def test_damaged_client_hellos_raise_nothing_else(rng: Random) -> None:
    stream, datagram = tls_hello("stun.turn"), says(dtls_client(b"stun.turn"))
    for _ in range(2000):
        for data, read in ((stream, read_stream), (datagram, read_datagram)):
            damaged = bytearray(data)
            for _ in range(rng.randrange(1, 4)):
                damaged[rng.randrange(len(damaged))] = rng.randrange(256)
            with suppress(Overlong):
                read(bytes(damaged[: rng.randrange(len(damaged) + 1)]))


def test_a_dtls_client_is_read() -> None:
    data = says(dtls_client(*ALPN_LABELS))
    hello = read_datagram(data)
    assert hello is not None
    assert hello.protocols == ALPN_LABELS
    assert hello.cookie == b""
    assert hello.random == data[27:59]
    for size in range(len(data)):
        assert read_datagram(data[:size]) is None


@pytest.mark.parametrize(
    ("at", "octet"),
    [
        (0, 23),  # not a handshake
        (1, 3),  # not DTLS
        (4, 1),  # another epoch
        (13, 2),  # not a ClientHello
        (21, 1),  # not the first fragment
        (24, 0),  # not the whole message
    ],
)
def test_other_datagrams_are_no_client_hello(at: int, octet: int) -> None:
    data = bytearray(says(dtls_client()))
    data[at] = octet
    assert read_datagram(bytes(data)) is None


def test_a_client_answers_a_verify_request_with_the_cookie(rng: Random) -> None:
    cookies = Cookies(rng.randbytes, 60 * SECOND)
    client = dtls_client()
    first = says(client)
    hello = read_datagram(first)
    assert hello is not None
    answer = verify_request(first, cookies.make(hello, CLIENT, SERVER, 0))
    assert len(answer) < len(first), "nobody gains by sending it in another's name"
    client.bio_write(answer)
    second = read_datagram(says(client))
    assert second is not None
    assert second.random == hello.random
    assert cookies.check(second, CLIENT, SERVER, 0)


def test_a_cookie_is_for_one_client_and_two_periods(rng: Random) -> None:
    cookies = Cookies(rng.randbytes, 60 * SECOND)
    hello = ClientHello(bytes(32), b"", (), b"parameters")
    cookie = cookies.make(hello, CLIENT, SERVER, 59 * SECOND)
    again = ClientHello(bytes(32), cookie, (), b"parameters")
    assert cookies.check(again, CLIENT, SERVER, 59 * SECOND)
    assert not cookies.check(again, Address("192.0.2.2", 40000), SERVER, 59 * SECOND)
    assert not cookies.check(again, CLIENT._replace(port=40001), SERVER, 59 * SECOND)
    assert not cookies.check(again, CLIENT, SERVER._replace(port=1), 59 * SECOND)
    others = ClientHello(bytes(32), cookie, (), b"other parameters")
    assert not cookies.check(others, CLIENT, SERVER, 59 * SECOND)
    assert cookies.check(again, CLIENT, SERVER, 119 * SECOND)
    assert not cookies.check(again, CLIENT, SERVER, 120 * SECOND)
    assert not Cookies(rng.randbytes, 60 * SECOND).check(again, CLIENT, SERVER, 59 * SECOND)


def test_secrets_of_long_ago_are_no_good(rng: Random) -> None:
    cookies = Cookies(rng.randbytes, SECOND)
    hello = ClientHello(bytes(32), b"", (), b"")
    cookie = cookies.make(hello, CLIENT, SERVER, 0)
    assert not cookies.check(ClientHello(bytes(32), cookie, (), b""), CLIENT, SERVER, 100 * SECOND)
    # Nobody can make a cookie with the empty secret of a period that there never was.
    forged = Cookies(lambda _: b"", SECOND).make(hello, CLIENT, SERVER, 0)
    assert not cookies.check(ClientHello(bytes(32), forged, (), b""), CLIENT, SERVER, 100 * SECOND)


@pytest.mark.parametrize(
    ("offered", "served"),
    [
        ((), True),
        ((b"stun.turn",), True),
        ((b"h2", b"stun.nat-discovery"), True),
        ((b"h2",), False),
    ],
)
def test_alpn(offered: tuple[bytes, ...], served: bool) -> None:
    assert speaks_our_protocol(ClientHello(bytes(32), b"", offered, b"")) is served
