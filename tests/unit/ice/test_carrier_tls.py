"""The TLS carrier over a wire: data, back-pressure, and everything a peer may do wrong."""

from __future__ import annotations

import asyncio
import contextlib
from random import Random

import pytest
from OpenSSL import SSL

from ice.errors import ConnectionLost
from ice.link.carrier import CarrierFailed
from ice.link.certificate import Identity
from ice.link.tls import ENOUGH, MOST_PACKET, TlsCarrier, _packets
from stun.errors import UsageError
from tools.carrierdesk import Couple, End, Heard, Wire, run

RECORDS = range(20, 24)
"""First octets of what is sent: change_cipher_spec, alert, handshake, application_data."""


PIECE = 4 * 16384


@pytest.fixture
def wire(rng: Random) -> Wire:
    return Wire(rng)


def couple(wire: Wire) -> Couple:
    return Couple(TlsCarrier, wire)


def test_octets_arrive_in_order_both_ways(wire, rng):
    sizes = [1, 2, 16384, 16385, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE + 7, 0]
    rng.shuffle(sizes)
    there = [rng.randbytes(size) for size in sizes]
    back = [rng.randbytes(size) for size in sizes]

    async def go() -> None:
        pair = couple(wire)
        await pair.start()
        for one, other in zip(there, back, strict=True):
            buffer = bytearray(one)
            pair.client.send(memoryview(buffer))
            buffer[:] = bytes(len(buffer))  # "the buffer is not used after the return"
            pair.server.send(other)
        total = sum(sizes)
        before = len(wire.left.sent)
        pair.server.send(b"")
        assert len(wire.left.sent) == before
        await pair.at_server.until(lambda: len(pair.at_server.data) == total)
        await pair.at_client.until(lambda: len(pair.at_client.data) == total)
        assert pair.at_server.data == b"".join(there)
        assert pair.at_client.data == b"".join(back)
        for end in (wire.left, wire.right):
            assert end.sent[0][0] in RECORDS
            assert all(packet[0] >= 4 and len(packet) <= MOST_PACKET for packet in end.sent)
            assert max(map(len, end.sent)) > MOST_PACKET - 100

    run(go())


def test_what_is_sent_in_one_go_shares_packets(wire, rng):
    pieces = [rng.randbytes(100) for _ in range(30)] + [rng.randbytes(65536) for _ in range(4)]

    async def go() -> None:
        pair = couple(wire)
        await pair.start()
        await asyncio.sleep(1)
        before = len(wire.right.sent)
        for piece in pieces:
            pair.client.send(piece)
        await pair.at_server.until(lambda: len(pair.at_server.data) == 4 * 65536 + 3000)
        assert pair.at_server.data == b"".join(pieces)
        packets = wire.right.sent[before:]
        assert len(packets) == 5
        assert packets[0][0] == 23
        assert all(MOST_PACKET - 100 < len(packet) <= MOST_PACKET for packet in packets[:4])

    run(go())


def test_many_octets_do_not_wait_for_the_end_of_the_go(wire, rng):
    data = rng.randbytes(ENOUGH)

    async def go() -> None:
        pair = couple(wire)
        await pair.start()
        await asyncio.sleep(1)
        before = len(wire.right.sent)
        pair.client.send(data)
        assert sum(map(len, wire.right.sent[before:])) > ENOUGH
        await pair.at_server.until(lambda: pair.at_server.data == data)

    run(go())


def test_no_packet_begins_as_a_stun_message_may(rng):
    # RFC 7983 section 7: 0 to 3 is STUN, and what is behind it might happen to be its cookie.
    for begin in (b"\0", b"\1\1", b"\3" * 1000, b"\4", b"\x80"):
        records = bytearray(b"\x17" + rng.randbytes(3 * MOST_PACKET))
        records[MOST_PACKET : MOST_PACKET + len(begin)] = begin
        records[2 * MOST_PACKET - 5 : 2 * MOST_PACKET + 5] = bytes(10)
        packets = _packets(bytes(records))
        assert b"".join(packets) == records
        assert all(packet[0] >= 4 and len(packet) <= MOST_PACKET for packet in packets)
        assert len(packets) == 4


def test_the_handshake_takes_one_round_trip_of_the_client(wire):
    async def go() -> None:
        pair = couple(wire)
        loop = asyncio.get_running_loop()
        began = loop.time()
        server = asyncio.ensure_future(pair.server.start())
        await pair.client.start()
        assert loop.time() - began == pytest.approx(2 * wire.delay)
        await server
        assert loop.time() - began == pytest.approx(3 * wire.delay)

    run(go())


def test_the_client_waits_for_a_pair_that_is_agreed_on(wire):
    async def go() -> None:
        pair = couple(wire)
        wire.right.agreed = False
        starting = asyncio.gather(pair.server.start(), pair.client.start())
        await asyncio.sleep(0.5)
        assert not wire.right.sent
        pair.client.rerouted()
        assert not wire.right.sent
        wire.right.agreed = True
        pair.client.rerouted()
        assert wire.right.sent
        await starting

    run(go())


def test_but_not_for_ever(wire):
    async def go() -> None:
        pair = couple(wire)
        wire.right.agreed = False
        await pair.start()

    run(go())


def test_back_pressure(wire, rng):
    data = rng.randbytes(5 * PIECE)

    async def go() -> None:
        pair = couple(wire)
        await pair.start()
        assert not pair.server.congested
        wire.left.congest(congested=True)
        assert pair.server.congested
        already = len(wire.left.sent)
        for at in range(0, len(data), PIECE):
            pair.server.send(data[at : at + PIECE])
        await asyncio.sleep(1)
        assert len(wire.left.sent) == already
        assert not pair.at_server.reliefs
        wire.left.congest(congested=False)
        await pair.at_server.until(lambda: pair.at_server.reliefs)
        await pair.at_client.until(lambda: len(pair.at_client.data) == len(data))
        assert pair.at_client.data == data
        assert pair.at_server.reliefs == 1

    run(go())


def test_relief_is_told_only_to_whom_congestion_was(wire):
    async def go() -> None:
        pair = couple(wire)
        await pair.start()
        wire.left.congest(congested=True)
        wire.left.congest(congested=False)
        await asyncio.sleep(1)
        assert not pair.at_server.reliefs

    run(go())


def test_what_is_sent_from_within_on_data_leaves_at_once(wire):
    async def go() -> None:
        pair = couple(wire)
        await pair.start()
        seen = []

        def echo(data: bytes) -> None:
            pair.server.send(data + bytes(ENOUGH))
            seen.append(pair.server.congested)
            seen.append(len(wire.left.sent) > before)

        pair.server.on_data = echo
        before = len(wire.left.sent)
        question = bytes(PIECE)
        pair.client.send(question)
        await pair.at_client.until(lambda: pair.at_client.data == question + bytes(ENOUGH))
        assert seen == [False, True]

    run(go())


def test_records_that_packets_cut_are_read_all_the_same(wire, rng):
    data = rng.randbytes(40_000)

    async def go() -> None:
        pair = couple(wire)
        await pair.start()
        taken: list[bytes] = []
        whole, pair.server.packet = pair.server.packet, taken.append
        pair.client.send(data)
        await asyncio.sleep(1)
        octets, at = b"".join(taken), 0
        while at < len(octets):
            size = rng.choice([1, 3, 4, 5, 6, 1000, 16405, 16406, 16407])
            whole(octets[at : at + size])
            at += size
            await asyncio.sleep(rng.choice([0, 0.1]))
        await pair.at_server.until(lambda: pair.at_server.data == data)

    run(go())


def test_what_came_before_the_end_is_given_up_before_it(wire, rng):
    data = rng.randbytes(40_000)

    async def go() -> None:
        pair = couple(wire)
        await pair.start()
        told: list[object] = []
        pair.server.on_data, pair.server.on_lost = told.append, told.append
        taken: list[bytes] = []
        whole, pair.server.packet = pair.server.packet, taken.append
        pair.client.send(data)
        await asyncio.sleep(1)
        for packet in taken:
            whole(packet)
        pair.server.ended(ConnectionLost("the way is gone"))
        await asyncio.sleep(1)
        assert told[0] == data
        assert isinstance(told[1], CarrierFailed)
        assert len(told) == 2

    run(go())


def test_there_are_no_datagrams(wire):
    async def go() -> None:
        pair = couple(wire)
        await pair.start()
        assert pair.client.most_datagram == 0
        assert not pair.client.send_datagram(b"x")

    run(go())


# The end. -----------------------------------------------------------------------------------------


def test_closing_sends_what_waits_and_tells_the_peer(wire, rng):
    data = rng.randbytes(3 * PIECE)

    async def go() -> None:
        pair = couple(wire)
        await pair.start()
        wire.left.congest(congested=True)
        pair.server.send(data)
        asyncio.get_running_loop().call_later(0.5, lambda: wire.left.congest(congested=False))
        await pair.server.close()
        await pair.at_client.until(lambda: pair.at_client.lost)
        assert pair.at_client.data == data
        assert pair.at_client.lost == ["the peer has closed the connection"]
        assert not pair.at_server.lost
        pair.server.send(b"nothing happens")
        await pair.server.close()
        pair.server.abort()

    run(go())


def test_closing_takes_no_longer_than_a_moment(wire):
    async def go() -> None:
        pair = couple(wire)
        await pair.start()
        wire.left.congest(congested=True)
        pair.server.send(bytes(PIECE))
        loop = asyncio.get_running_loop()
        began = loop.time()
        await pair.server.close()
        assert loop.time() - began == pytest.approx(1)

    run(go())


def test_after_an_abort_nothing_is_told(wire):
    async def go() -> None:
        pair = couple(wire)
        await pair.start()
        pair.client.send(b"unheard")
        wire.left.end("cut")
        pair.server.abort()
        await asyncio.sleep(1)
        assert not pair.at_server.lost
        assert not pair.at_server.data
        assert wire.left.to is None

    run(go())


def test_the_end_of_the_connection_is_the_end_of_the_carrier(wire):
    async def go() -> None:
        pair = couple(wire)
        await pair.start()
        wire.left.end("the peer's consent was lost")
        wire.right.selected_pair = None
        pair.client.rerouted()
        assert not pair.at_server.lost  # not from within the call
        await pair.at_server.until(lambda: pair.at_server.lost)
        await pair.at_client.until(lambda: pair.at_client.lost)
        assert pair.at_server.lost == ["the ICE connection ended: the peer's consent was lost"]
        assert pair.at_client.lost == ["the TCP connection to the peer has ended"]

    run(go())


def test_the_connection_ends_in_the_handshake(wire):
    async def go() -> None:
        pair = couple(wire)
        asyncio.get_running_loop().call_later(0.01, wire.right.end, "cut")
        with pytest.raises(CarrierFailed, match="the ICE connection ended: cut"):
            await pair.client.start()
        assert not pair.at_client.lost

    run(go())


def test_a_peer_that_says_nothing_is_given_up(wire):
    wire.cut = True

    async def go() -> None:
        pair = couple(wire)
        loop = asyncio.get_running_loop()
        began = loop.time()
        results = await asyncio.gather(
            pair.server.start(), pair.client.start(), return_exceptions=True
        )
        assert [type(result) for result in results] == [CarrierFailed, CarrierFailed]
        assert str(results[0]) == "the peer did not complete the handshake within 10 s"
        assert loop.time() - began == pytest.approx(10)
        assert wire.left.to is wire.right.to is None

    run(go())


def test_start_can_be_cancelled_and_is_for_once(wire):
    async def go() -> None:
        pair = couple(wire)
        starting = asyncio.ensure_future(pair.client.start())
        await asyncio.sleep(0.01)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        assert wire.right.to is None
        with pytest.raises(UsageError):
            await pair.client.start()

    run(go())


def test_aborted_while_it_starts(wire):
    async def go() -> None:
        pair = couple(wire)
        asyncio.get_running_loop().call_later(0.01, pair.client.abort)
        with pytest.raises(CarrierFailed, match="this side"):
            await pair.client.start()

    run(go())


# Who the peer is. ---------------------------------------------------------------------------------


def test_a_server_with_another_certificate(wire):
    async def go() -> None:
        pair = couple(wire)
        left: object = wire.left
        forger = TlsCarrier(left, Identity.make(), pair.theirs.fingerprint, server=True)  # type: ignore[arg-type]
        heard = Heard(forger)
        forged, honest = await asyncio.gather(
            forger.start(), pair.client.start(), return_exceptions=True
        )
        assert str(honest) == "the peer's certificate is not the one that was agreed on"
        assert isinstance(forged, CarrierFailed)
        assert "does not take this side's certificate" in str(forged)
        assert not heard.data

    run(go())


def test_a_client_with_another_certificate(wire):
    async def go() -> None:
        pair = couple(wire)
        right: object = wire.right
        forger = TlsCarrier(right, Identity.make(), pair.ours.fingerprint, server=False)  # type: ignore[arg-type]
        heard = Heard(forger)
        # In TLS 1.3 the client is done before the server has seen its certificate.
        starting = asyncio.ensure_future(pair.server.start())
        await forger.start()
        forger.send(b"taken for somebody else's")
        with pytest.raises(CarrierFailed, match="not the one that was agreed on"):
            await starting
        assert not pair.at_server.data
        await heard.until(lambda: heard.lost)
        assert "does not take this side's certificate" in heard.lost[0]

    run(go())


class Stranger:
    """Speaks TLS as it likes."""

    def __init__(self, end: End, context: SSL.Context, *, server: bool) -> None:
        self.end = end
        self.tls = SSL.Connection(context, None)
        if server:
            self.tls.set_accept_state()
        else:
            self.tls.set_connect_state()
        end.divert(self)

    def packet(self, data: bytes) -> None:
        self.tls.bio_write(data)
        self.go_on()

    def go_on(self) -> None:
        with contextlib.suppress(SSL.Error):
            self.tls.do_handshake()
        with contextlib.suppress(SSL.Error):
            self.end.send_nowait(self.tls.bio_read(1 << 16))

    def relieved(self) -> None: ...

    def rerouted(self) -> None: ...

    def ended(self, why: Exception) -> None: ...


def with_identity(context: SSL.Context) -> SSL.Context:
    identity = Identity.make()
    context.use_certificate(identity.certificate)
    context.use_privatekey(identity.key)
    return context


def test_a_client_without_a_certificate(wire):
    async def go() -> None:
        pair = couple(wire)
        context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        context.set_alpn_protos([b"natkit"])
        Stranger(wire.right, context, server=False).go_on()
        with pytest.raises(CarrierFailed, match="peer did not return a certificate"):
            await pair.server.start()

    run(go())


@pytest.mark.parametrize("server", [True, False], ids=["server", "client"])
def test_an_older_version_is_refused(wire, server):
    async def go() -> None:
        pair = couple(wire)
        context = SSL.Context(SSL.TLS_SERVER_METHOD if server else SSL.TLS_CLIENT_METHOD)
        context.set_max_proto_version(SSL.TLS1_2_VERSION)
        if server:
            Stranger(wire.left, with_identity(context), server=True)
            with pytest.raises(CarrierFailed, match="protocol version"):
                await pair.client.start()
        else:
            Stranger(wire.right, context, server=False).go_on()
            with pytest.raises(CarrierFailed, match="unsupported protocol"):
                await pair.server.start()

    run(go())


def test_who_speaks_tls_for_something_else_is_refused(wire):
    async def go() -> None:
        pair = couple(wire)
        context = with_identity(SSL.Context(SSL.TLS_SERVER_METHOD))
        identity = pair.ours
        context.use_certificate(identity.certificate)
        context.use_privatekey(identity.key)
        Stranger(wire.left, context, server=True)
        with pytest.raises(CarrierFailed, match="speaks TLS for something else"):
            await pair.client.start()

    run(go())


# Octets that are wrong. ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "garbage", [b"", b"\0", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\xff\xff", bytes(70) + b"\xff"]
)
def test_garbage_instead_of_a_handshake(wire, garbage):
    async def go() -> None:
        pair = couple(wire)
        wire.left.deliver(garbage)
        wire.right.deliver(garbage)
        wire.cut = True
        for carrier in (pair.client, pair.server):
            with pytest.raises(CarrierFailed, match=r"the TLS handshake failed|did not complete"):
                await carrier.start()

    run(go())


@pytest.mark.parametrize("place", range(4))
def test_a_packet_spoilt_in_the_handshake(wire, rng, place):
    async def go() -> None:
        pair = couple(wire)
        count = 0

        def change(_: End, data: bytes) -> list[bytes]:
            nonlocal count
            count += 1
            if count - 1 != place:
                return [data]
            spoilt = bytearray(data)
            spoilt[rng.randrange(5, len(data))] ^= 0x80
            return [bytes(spoilt)]

        wire.change = change
        results = await asyncio.gather(
            pair.server.start(), pair.client.start(), return_exceptions=True
        )
        if place < 3:
            assert any(isinstance(result, CarrierFailed) for result in results)
        for result in results:
            assert result is None or str(result).startswith("the TLS handshake failed: ")

    run(go())


def spoil(data: bytes) -> list[bytes]:
    return [data[:-1] + bytes([data[-1] ^ 1])]


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("spoilt", spoil),
        ("cut", lambda data: [data[:-1]]),
        ("lost", lambda _: []),
        ("twice", lambda data: [data, data]),
        ("garbage", lambda data: [b"\xff" * 40, data]),
        ("plain", lambda data: [b"\x17\x03\x03\x00\x05hello", data]),
    ],
)
def test_what_does_not_fit_ends_it_and_is_not_given_up(wire, what, change):
    async def go() -> None:
        pair = couple(wire)
        await pair.start()
        pair.client.send(b"before")
        await pair.at_server.until(lambda: pair.at_server.data == b"before")
        wire.change = lambda end, data: change(data) if end is wire.right else [data]
        pair.client.send(b"spoilt")
        await asyncio.sleep(wire.delay / 2)
        wire.change = lambda _, data: [data]
        pair.client.send(b"after")
        await pair.at_server.until(lambda: pair.at_server.lost)
        assert pair.at_server.data == (b"beforespoilt" if what == "twice" else b"before")
        assert pair.at_server.lost[0].startswith("TLS failed: ")
        await pair.at_client.until(lambda: pair.at_client.lost)
        await asyncio.sleep(1)
        assert len(pair.at_server.lost) == len(pair.at_client.lost) == 1

    run(go())


def test_records_may_be_cut_anywhere(wire, rng):
    data = rng.randbytes(100_000)

    async def go() -> None:
        pair = couple(wire)

        def change(_: End, packet: bytes) -> list[bytes]:
            cuts = sorted(rng.randrange(len(packet)) for _ in range(3))
            return [packet[a:b] for a, b in zip([0, *cuts], [*cuts, len(packet)], strict=True)]

        wire.change = change
        await pair.start()
        await pair.at_client.pour(data, 9999)
        await pair.at_server.until(lambda: len(pair.at_server.data) == len(data))
        assert pair.at_server.data == data

    run(go())


def test_an_error_of_whoever_is_given_data_does_not_get_at_the_agent(wire):
    async def go() -> None:
        pair = couple(wire)
        await pair.start()
        reported: list[dict[str, object]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, told: reported.append(told))

        def fail(_: bytes) -> None:
            raise ZeroDivisionError

        pair.server.on_data = fail
        pair.client.send(b"x")
        await pair.at_server.until(lambda: pair.at_server.lost)
        assert pair.at_server.lost == ["an internal error: ZeroDivisionError()"]
        assert isinstance(reported[0]["exception"], ZeroDivisionError)

    run(go())


def test_a_fingerprint_has_32_octets(wire):
    left: object = wire.left
    with pytest.raises(UsageError, match="32 octets, not 20"):
        TlsCarrier(left, Identity.make(), bytes(20), server=True)  # type: ignore[arg-type]
