"""The QUIC carrier over a wire: data, datagrams, back-pressure, and hostile peers."""

from __future__ import annotations

import asyncio
import logging
from random import Random

import pytest
from aioquic.quic.events import StreamDataReceived
from aioquic.quic.packet import QuicProtocolVersion

from ice.link.carrier import CarrierFailed
from ice.link.certificate import Identity
from ice.link.handshake import Handshake
from ice.link.quic import LONG, MARK, MOST_DATAGRAMS, MOST_TRIES, SHORT, QuicCarrier
from tools.carrierdesk import Couple, End, Heard, Way, Wire, run

MEGABYTE = 1 << 20
OVERHEAD = 30
"""What a datagram has around it in its packet."""


@pytest.fixture
def wire(rng: Random) -> Wire:
    return Wire(rng)


def couple(wire: Wire) -> Couple:
    return Couple(QuicCarrier, wire)


def forger(end: End, identity: Identity, peer: Identity, *, server: bool) -> QuicCarrier:
    connection: object = end
    return QuicCarrier(connection, identity, peer.fingerprint, server=server)  # type: ignore[arg-type]


def test_octets_arrive_in_order_both_ways(wire, rng):
    there, back = rng.randbytes(MEGABYTE), rng.randbytes(300_001)

    async def go() -> None:
        pair = couple(wire)
        await pair.start()
        await asyncio.gather(pair.at_client.pour(there, 65444), pair.at_server.pour(back, 999))
        await pair.at_server.until(lambda: len(pair.at_server.data) == len(there))
        await pair.at_client.until(lambda: len(pair.at_client.data) == len(back))
        assert pair.at_server.data == there
        assert pair.at_client.data == back

    run(go())


def test_the_buffer_is_not_used_after_the_return(wire):
    async def go() -> None:
        pair = couple(wire)
        await pair.start()
        buffer = bytearray(b"as it was")
        pair.client.send(memoryview(buffer))
        buffer[:] = b"otherwise"
        await pair.at_server.until(lambda: pair.at_server.data)
        assert pair.at_server.data == b"as it was"

    run(go())


@pytest.mark.parametrize("loss", [0.02, 0.1])
def test_nothing_is_lost_where_packets_are(wire, rng, loss):
    data = rng.randbytes(MEGABYTE // 4)

    async def go() -> None:
        pair = couple(wire)
        wire.loss = loss
        await pair.start()
        await pair.at_client.pour(data, 10_000)
        await pair.at_server.until(lambda: len(pair.at_server.data) == len(data))
        assert pair.at_server.data == data
        assert wire.lost

    run(go())


def test_packets_that_are_spoilt_cut_repeated_or_made_up_do_no_harm(wire, rng):
    data = rng.randbytes(MEGABYTE // 8)

    def change(_: End, packet: bytes) -> list[bytes]:
        match rng.randrange(40):
            case 0:
                spoilt = bytearray(packet)
                spoilt[rng.randrange(len(packet))] ^= 1 << rng.randrange(8)
                return [bytes(spoilt)]
            case 1:
                return [packet[: rng.randrange(len(packet))]]
            case 2:
                return [packet, packet]
            case 3:
                first = rng.choice([0xC0, 0x40, 0xE0, 0xFF])
                return [bytes([first]) + rng.randbytes(rng.randrange(1400)), packet]
        return [packet]

    async def go() -> None:
        pair = couple(wire)
        await pair.start()
        wire.change = change
        await pair.at_client.pour(data, 10_000)
        await pair.at_server.until(lambda: len(pair.at_server.data) == len(data))
        assert pair.at_server.data == data
        assert not pair.at_client.lost

    run(go())


def test_the_handshake_takes_one_round_trip_of_the_client(wire):
    async def go() -> None:
        pair = couple(wire)
        loop = asyncio.get_running_loop()
        began = loop.time()
        server = asyncio.ensure_future(pair.server.start())
        await pair.client.start()
        assert loop.time() - began == pytest.approx(2 * wire.delay)
        pair.client.send(b"at once")
        await server
        assert loop.time() - began == pytest.approx(3 * wire.delay)
        await pair.at_server.until(lambda: pair.at_server.data)
        assert loop.time() - began == pytest.approx(3 * wire.delay, abs=1e-3)

    run(go())


# Lengths. -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mtu", "size"), [(LONG, LONG), (LONG - 1, SHORT), (SHORT, SHORT)])
def test_packets_are_as_long_as_the_way_allows(wire, rng, mtu, size):
    data = rng.randbytes(100_000)
    wire.mtu = mtu

    async def go() -> None:
        pair = couple(wire)
        await pair.start()
        await pair.at_client.pour(data, 10_000)
        await pair.at_server.pour(data, 10_000)
        await pair.at_server.until(lambda: len(pair.at_server.data) == len(data))
        await pair.at_client.until(lambda: len(pair.at_client.data) == len(data))
        for end in (wire.left, wire.right):
            after = end.sent[8:]
            assert max(map(len, after)) == size
        assert pair.client.most_datagram == pair.server.most_datagram == size - OVERHEAD

    run(go())


@pytest.mark.parametrize("narrow", ["there", "back"])
def test_a_way_that_is_narrow_in_one_direction(wire, rng, narrow):
    data = rng.randbytes(100_000)

    async def go() -> None:
        pair = couple(wire)
        end = wire.right if narrow == "there" else wire.left
        wire.change = lambda at, packet: [] if at is end and len(packet) > SHORT else [packet]
        await pair.start()
        await pair.at_client.pour(data, 10_000)
        await pair.at_server.until(lambda: len(pair.at_server.data) == len(data))
        assert pair.client.most_datagram == SHORT - OVERHEAD

    run(go())


# Datagrams. ---------------------------------------------------------------------------------------


def test_datagrams(wire, rng):
    async def go() -> None:
        pair = couple(wire)
        assert pair.client.most_datagram == 0
        assert not pair.client.send_datagram(b"too early")
        await pair.start()
        longest = rng.randbytes(pair.client.most_datagram)
        assert pair.client.send_datagram(b"")
        assert pair.client.send_datagram(b"short")
        assert pair.client.send_datagram(longest)
        assert not pair.client.send_datagram(longest + b"x")
        pair.client.send(b"stream")
        await pair.at_server.until(lambda: pair.at_server.data)
        await asyncio.sleep(1)
        assert pair.at_server.datagrams == [b"", b"short", longest]

    run(go())


def test_no_more_datagrams_are_kept_than_is_good(wire):
    async def go() -> None:
        pair = couple(wire)
        await pair.start()
        taken = 0
        while pair.client.send_datagram(bytes(1000)):
            taken += 1
        assert taken == MOST_DATAGRAMS // (1000 + OVERHEAD)
        await asyncio.sleep(1)
        assert len(pair.at_server.datagrams) == taken
        assert pair.client.send_datagram(b"again")
        await asyncio.sleep(1)
        assert len(pair.at_server.datagrams) == taken + 1

    run(go())


# Back-pressure. -----------------------------------------------------------------------------------


def test_back_pressure(wire, rng):
    data = rng.randbytes(MARK + 1)
    wire.rate = 1e6

    async def go() -> None:
        pair = couple(wire)
        await pair.start()
        pair.client.send(data[:-1])
        assert not pair.client.congested
        pair.client.send(data[-1:])
        assert pair.client.congested
        await pair.at_client.until(lambda: pair.at_client.reliefs)
        assert len(pair.at_server.data) < len(data)
        await pair.at_server.until(lambda: len(pair.at_server.data) == len(data))
        await asyncio.sleep(1)
        assert pair.at_client.reliefs == 1

    run(go())


def test_little_waits_behind_a_slow_way(wire, rng):
    wire.rate = 500_000
    wire.queue = 50_000

    async def go() -> None:
        pair = couple(wire)
        await pair.start()
        loop = asyncio.get_running_loop()
        pouring = asyncio.ensure_future(pair.at_client.pour(rng.randbytes(4 * MEGABYTE), 16_384))
        await asyncio.sleep(4)
        assert not pouring.done()
        # What was sent last is there after the mark, the congestion window, and what the queue has.
        await pair.at_client.until(lambda: not pair.client.congested)
        began, before = loop.time(), len(pair.at_server.data)
        pouring.cancel()
        await pair.at_server.until(lambda: len(pair.at_server.data) > before + 2 * MARK // 3)
        assert loop.time() - began < 1

    run(go())


# The end. -----------------------------------------------------------------------------------------


def test_closing_sends_what_waits_and_tells_the_peer(wire, rng):
    data = rng.randbytes(MEGABYTE // 2)
    wire.rate = 2e6

    async def go() -> None:
        pair = couple(wire)
        await pair.start()
        pair.client.send(data)
        await pair.client.close()
        await pair.at_server.until(lambda: pair.at_server.lost)
        assert pair.at_server.data == data
        assert pair.at_server.lost == ["the peer has closed the connection"]
        assert not pair.at_client.lost
        pair.client.send(b"nothing happens")
        assert not pair.client.send_datagram(b"neither")
        await pair.client.close()

    run(go())


def test_closing_takes_no_longer_than_a_moment(wire):
    async def go() -> None:
        pair = couple(wire)
        await pair.start()
        wire.cut = True
        pair.server.send(bytes(1000))
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
        assert not pair.at_server.lost
        await pair.at_server.until(lambda: pair.at_server.lost)
        assert pair.at_server.lost == ["the ICE connection ended: the peer's consent was lost"]

    run(go())


def test_a_way_that_is_gone_for_a_while_is_no_end(wire):
    async def go() -> None:
        pair = couple(wire)
        await pair.start()
        wire.cut = True
        wire.right.selected_pair = None
        pair.client.rerouted()
        pair.client.send(b"later")
        await asyncio.sleep(20)
        wire.cut = False
        wire.right.selected_pair = Way()
        began = asyncio.get_running_loop().time()
        pair.client.rerouted()
        await pair.at_server.until(lambda: pair.at_server.data)
        assert asyncio.get_running_loop().time() - began < 5 * wire.delay
        assert not pair.at_client.lost

    run(go())


def test_nothing_is_sent_while_the_connection_takes_no_more(wire, rng):
    data = rng.randbytes(MEGABYTE // 4)

    async def go() -> None:
        pair = couple(wire)
        await pair.start()
        wire.right.congest(congested=True)
        already = len(wire.right.sent)
        pair.client.send(data)
        await asyncio.sleep(5)
        assert len(wire.right.sent) == already
        wire.right.congest(congested=False)
        await pair.at_server.until(lambda: len(pair.at_server.data) == len(data))
        assert pair.at_server.data == data

    run(go())


def test_a_way_that_is_gone_for_good_is_noticed_in_the_end(wire):
    async def go() -> None:
        pair = couple(wire)
        await pair.start()
        wire.cut = True
        await pair.at_client.until(lambda: pair.at_client.lost)
        assert "Idle timeout" in pair.at_client.lost[0]

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
        assert [str(result) for result in results] == [
            "the peer did not complete the handshake within 10 s"
        ] * 2
        assert loop.time() - began == pytest.approx(10)
        assert wire.left.to is wire.right.to is None

    run(go())


def test_start_can_be_cancelled(wire):
    async def go() -> None:
        pair = couple(wire)
        starting = asyncio.ensure_future(pair.client.start())
        await asyncio.sleep(0.01)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        assert wire.right.to is None
        await asyncio.sleep(5)
        assert len(wire.right.sent) == 2

    run(go())


# Who the peer is. ---------------------------------------------------------------------------------


def test_a_server_with_another_certificate(wire):
    async def go() -> None:
        pair = couple(wire)
        server = forger(wire.left, Identity.make(), pair.theirs, server=True)
        forged, honest = await asyncio.gather(
            server.start(), pair.client.start(), return_exceptions=True
        )
        assert "its certificate is not the one that was agreed on" in str(honest)
        assert str(forged) == "the QUIC handshake failed: the peer does not want it (0xc)"

    run(go())


def test_a_client_with_another_certificate(wire, monkeypatch):
    async def go() -> None:
        pair = couple(wire)
        client = forger(wire.right, Identity.make(), pair.ours, server=False)
        make_thieves(monkeypatch, client, Identity.make())
        heard = Heard(client)
        starting = asyncio.ensure_future(pair.server.start())
        await client.start()  # who the client is shows after that
        client.send(b"taken for somebody else's")
        with pytest.raises(CarrierFailed, match="its certificate is not the one"):
            await starting
        assert not pair.at_server.data
        await heard.until(lambda: heard.lost)
        assert heard.lost == ["the QUIC connection ended: unexpected identity (0x1)"]

    run(go())


class Thief(Handshake):
    """Shows a certificate, signs with a key of its own, and does not care who the other one is."""

    shown: Identity

    def prove(self) -> None:
        own, self._identity = self._identity, self.shown
        super().prove()
        self._identity = own

    def verify(self, data: bytes) -> bytes | str:
        self._proof = None
        return data


def make_thieves(monkeypatch: pytest.MonkeyPatch, thief: QuicCarrier, shown: Identity) -> None:
    own = thief._identity.key
    monkeypatch.setattr(
        Thief,
        "shown",
        Identity(own, shown.certificate, shown.der, shown.fingerprint),
        raising=False,
    )
    make = QuicCarrier._new_try

    def new_try(carrier: QuicCarrier, size: int, destination: bytes | None) -> Handshake:
        made = make(carrier, size, destination)
        if carrier is thief:
            made.__class__ = Thief
        return made

    monkeypatch.setattr(QuicCarrier, "_new_try", new_try)


@pytest.mark.parametrize("server", [True, False], ids=["server", "client"])
def test_a_certificate_without_its_key_proves_nothing(wire, monkeypatch, server):
    async def go() -> None:
        pair = couple(wire)
        victim, end = (pair.client, wire.left) if server else (pair.server, wire.right)
        peer, stolen = (pair.theirs, pair.ours) if server else (pair.ours, pair.theirs)
        thief = forger(end, Identity.make(), peer, server=server)
        make_thieves(monkeypatch, thief, stolen)
        results = await asyncio.gather(victim.start(), thief.start(), return_exceptions=True)
        assert str(results[0]) == (
            "the peer is not who it has to be: it does not have the key of its certificate"
        )

    run(go())


def shake(client: Handshake, server: Handshake) -> None:
    """Have two handshakes take place."""
    now = 0.0
    client.quic.connect(("peer", 0), now)
    for _ in range(4):
        for one, other in ((client, server), (server, client)):
            one.prove()
            for data, _ in one.quic.datagrams_to_send(now):
                other.quic.receive_datagram(data, ("peer", 0), now)
            now += 0.01


def heard_by(side: Handshake) -> bytes:
    data = b""
    while (event := side.quic.next_event()) is not None:
        if isinstance(event, StreamDataReceived):
            data += event.data
    return data


def two(ours: Identity, theirs: Identity, seen_by_client: bytes, seen_by_server: bytes):
    """Return a client and a server."""
    client = Handshake(theirs, seen_by_client, size=1200, rtt=None, destination=None)
    destination = client.quic._original_destination_connection_id
    server = Handshake(ours, seen_by_server, size=1200, rtt=None, destination=destination)
    return client, server


def test_a_proof_of_one_handshake_is_worthless_in_another():
    ours, theirs, middle = Identity.make(), Identity.make(), Identity.make()
    # The client, taken in, shakes hands with the one in the middle, who does so with the server.
    client, left = two(middle, theirs, ours.fingerprint, theirs.fingerprint)
    right, server = two(ours, middle, ours.fingerprint, theirs.fingerprint)
    shake(client, left)
    shake(right, server)
    assert client._log.binding == left._log.binding != right._log.binding == server._log.binding
    of_server, of_client = heard_by(right), heard_by(left)
    assert right.verify(of_server) == "it does not have the key of its certificate"
    assert client.verify(of_server) == "it does not have the key of its certificate"
    assert server.verify(of_client) == "it does not have the key of its certificate"
    # Undisturbed the same octets do.
    client, server = two(ours, theirs, ours.fingerprint, theirs.fingerprint)
    shake(client, server)
    assert client.verify(heard_by(client) + b"early") == b"early"
    assert server.verify(heard_by(server)) == b""


def test_a_proof_is_not_good_for_the_other_side():
    one = Identity.make()
    client, server = two(one, one, one.fingerprint, one.fingerprint)
    shake(client, server)
    mirrored = heard_by(client)
    assert server.verify(mirrored) == "it does not have the key of its certificate"


def test_a_proof_cut_anywhere(rng):
    ours, theirs = Identity.make(), Identity.make()
    client, server = two(ours, theirs, ours.fingerprint, theirs.fingerprint)
    shake(client, server)
    proof = heard_by(client)
    for octet in proof[:-1]:
        assert client.verify(bytes((octet,))) == b""
        assert not client.proved
    assert client.verify(proof[-1:] + b"and more") == b"and more"
    assert client.proved
    assert client.verify(b"later") == b"later"


@pytest.mark.parametrize("proof", [b"\xff\xff", b"\x10\x01", b"\0\0\xff\xff"])
def test_a_proof_that_is_none(proof):
    one = Identity.make()
    client, _ = two(one, one, one.fingerprint, one.fingerprint)
    assert client.verify(proof) == "its proof of identity is malformed"


def test_the_key_log_keeps_no_secret():
    one = Identity.make()
    client, server = two(one, one, one.fingerprint, one.fingerprint)
    shake(client, server)
    assert vars(client._log) == {"binding": client._log.binding}
    assert len(client._log.binding) == 32


# Octets that are wrong. ---------------------------------------------------------------------------


def initial(to: bytes, size: int = SHORT) -> bytes:
    """Return what looks like the first packet of a client."""
    version = QuicProtocolVersion.VERSION_1.to_bytes(4)
    head = b"\xc3" + version + bytes([len(to)]) + to + b"\x08" + bytes(8) + b"\x00\x44\x90"
    return head + bytes(size - len(head))


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"\xc0",
        b"\xc3\x00\x00\x00\x01",
        bytes(1300),
        b"\xff" * 1300,
        initial(b"12345678")[:-1],
        initial(b""),
        initial(b"1" * 21),
        initial(b"12345678"),
        initial(b"12345678", 1500)[:1250],
        b"\x40" * 1300,
    ],
)
def test_garbage_before_the_handshake_does_no_harm(wire, garbage):
    async def go() -> None:
        pair = couple(wire)
        for _ in range(3):
            wire.left.deliver(garbage)
            wire.right.deliver(garbage)
        await pair.start()
        pair.client.send(b"all the same")
        await pair.at_server.until(lambda: pair.at_server.data)
        assert pair.client.most_datagram == LONG - OVERHEAD

    run(go())


def test_made_up_handshakes_give_way_to_the_real_one(wire, rng):
    async def go() -> None:
        pair = couple(wire)
        for _ in range(10 * MOST_TRIES):
            wire.left.deliver(initial(rng.randbytes(8)))
        await pair.start()
        assert len(pair.server._tries) <= MOST_TRIES

    run(go())


def test_a_peer_that_opens_other_streams_is_refused(wire):
    async def go() -> None:
        pair = couple(wire)
        await pair.start()
        chosen = pair.client._chosen
        assert chosen is not None
        chosen.quic.send_stream_data(0, b"another")
        pair.client._settle_soon()
        await pair.at_server.until(lambda: pair.at_server.lost)
        assert pair.at_server.lost == ["the peer uses its streams otherwise than agreed"]
        assert not pair.at_server.data

    run(go())


def test_a_peer_that_resets_its_stream_is_refused(wire):
    async def go() -> None:
        pair = couple(wire)
        await pair.start()
        chosen = pair.client._chosen
        assert chosen is not None
        chosen.quic.reset_stream(2, 7)
        pair.client._settle_soon()
        await pair.at_server.until(lambda: pair.at_server.lost)
        assert pair.at_server.lost == ["the peer has given up its stream"]

    run(go())


def test_what_aioquic_did_not_think_of_ends_the_carrier_and_not_the_agent(wire, monkeypatch):
    async def go() -> None:
        pair = couple(wire)
        await pair.start()
        chosen = pair.server._chosen
        assert chosen is not None

        def fail(*_: object) -> None:
            raise ZeroDivisionError

        monkeypatch.setattr(chosen.quic, "receive_datagram", fail)
        pair.client.send(b"x")
        await pair.at_server.until(lambda: pair.at_server.lost)
        assert "cannot be understood" in pair.at_server.lost[0]

    run(go())


def test_nothing_is_written_to_the_terminal(wire, capfd, monkeypatch):
    monkeypatch.setattr(logging.getLogger(), "handlers", [])

    async def go() -> None:
        pair = couple(wire)
        await pair.start()
        chosen = pair.client._chosen
        assert chosen is not None
        chosen.quic.close(error_code=3, reason_phrase="words")
        pair.client._settle_soon()
        await pair.at_server.until(lambda: pair.at_server.lost)
        logging.getLogger("quic").warning("said of a peer")

    run(go())
    assert capfd.readouterr().err == ""
