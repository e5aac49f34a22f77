"""Two sides of a meeting over an honest rendezvous."""

from __future__ import annotations

import asyncio
import json
import threading

import pytest

from ice.rendezvous import meeting as module
from ice.rendezvous.channel import LONGEST
from ice.rendezvous.codes import parse
from ice.rendezvous.errors import (
    BadPeer,
    PeerGone,
    Refused,
    RendezvousLost,
    RendezvousUnreachable,
    WrongCode,
)
from ice.rendezvous.meeting import MOST_WAITING, Meeting
from ice.rendezvous.pairing import Pairing
from ice.rendezvous.protocol import Error, Message
from stun.errors import UsageError
from tools.meetingdesk import TURN, Desk, until


async def met(desk: Desk, code: str | None = None) -> tuple[Meeting, Meeting]:
    one = await Meeting.open(desk.url, code)
    other = await Meeting.open(desk.url, one.code)
    await asyncio.gather(one.peer(), other.peer())
    return one, other


async def test_a_made_code_leads_two_together() -> None:
    async with Desk().open() as desk:
        one = await Meeting.open(desk.url)
        assert parse(one.code).name == "7"
        assert one.seconds == 3600
        # Typed as a person would.
        other = await Meeting.open(desk.url, f" {one.code.upper().replace('-', ' ')} ")
        assert other.code == one.code
        await asyncio.gather(one.peer(), other.peer())
        assert one.first is not other.first
        assert one.keys.exporter("x") == other.keys.exporter("x")

        await one.send({"n": 1, "text": "fl\u00fcte\U0001f3b6"})
        await other.send({"n": 2, "list": [None, True, 1.5, {"x": []}]})
        assert await other.recv() == {"n": 1, "text": "fl\u00fcte\U0001f3b6"}
        assert await one.recv() == {"n": 2, "list": [None, True, 1.5, {"x": []}]}
        assert one.proved
        assert other.proved
        await one.close()
        await other.close()


async def test_two_made_codes_differ() -> None:
    async with Desk().open() as desk:
        one, other = await Meeting.open(desk.url), await Meeting.open(desk.url)
        assert parse(one.code).secret != parse(other.code).secret
        await one.close()
        await other.close()


async def test_a_given_code_and_who_comes_first() -> None:
    async with Desk().open() as desk:
        waiting = await Meeting.open(desk.url, "printer.upstairs-correct horse")
        assert waiting.code == "printer.upstairs-correct-horse"
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(waiting.peer(), 0.01)
        # What was cancelled can be called again.
        again = asyncio.create_task(waiting.peer())
        other = await Meeting.open(desk.url, parse("printer.upstairs-correct horse"))
        await again
        await other.peer()
        await waiting.close()
        await other.close()


async def test_the_welcome_and_a_clock_that_is_an_hour_ahead() -> None:
    async with Desk(ahead=3600).open() as desk:
        one, other = await met(desk)
        for meeting in (one, other):
            await meeting.send({})
            said = meeting.welcome
            assert said.observed.host == "127.0.0.1"
            assert said.turn == TURN
            assert said.stun == ()
            assert said.software == "desk"
            assert abs(said.clock_offset - 3600) <= said.rtt / 2 + 0.001
            assert TURN.credential not in repr(said)
        await one.close()
        await other.close()


async def test_the_clock_is_measured_again_when_the_peer_comes() -> None:
    async with Desk().open() as desk:
        one = await Meeting.open(desk.url)
        desk.ahead = -1800
        other = await Meeting.open(desk.url, one.code)
        await asyncio.gather(one.peer(), other.peer())
        # Answered in the order asked: once this is there, so is the time.
        for n in range(8):
            await other.send({"n": n})
            await one.send({"n": n})
            await asyncio.gather(one.recv(), other.recv())
        assert abs(one.welcome.clock_offset + 1800) < 1
        await one.close()
        await other.close()


async def test_nothing_is_sent_before_the_peer_is_there() -> None:
    async with Desk().open() as desk, await Meeting.open(desk.url) as one:
        with pytest.raises(UsageError, match="before the peer is there"):
            await one.send({})
        with pytest.raises(UsageError, match="before the peer is there"):
            _ = one.keys
        with pytest.raises(UsageError):
            _ = one.first
        assert not one.proved


async def test_a_message_may_be_sent_before_anything_was_received() -> None:
    """No round trip is spent on a proof: what is sent at once arrives behind it."""
    async with Desk().open() as desk:
        one = await Meeting.open(desk.url)
        other = await Meeting.open(desk.url, one.code)
        await other.peer()
        await other.send({"early": True})
        assert await one.recv() == {"early": True}
        await one.close()
        await other.close()


async def test_many_messages_keep_their_order_and_wait_for_the_reader() -> None:
    count = 4 * MOST_WAITING
    async with Desk().open() as desk:
        one, other = await met(desk)

        async def say() -> None:
            await asyncio.gather(*(one.send({"n": n}) for n in range(count)))

        saying = asyncio.create_task(say())
        await one.send({"n": -1})
        got = [(await other.recv())["n"] for _ in range(count + 1)]
        await saying
        assert sorted(got) == list(range(-1, count))
        assert [n for n in got if n >= 0] == list(range(count))
        assert len(other._inbox) <= MOST_WAITING
        await one.close()
        await other.close()


async def test_who_is_cancelled_spoils_nothing() -> None:
    async with Desk().open() as desk:
        one, other = await met(desk)
        for n in range(20):
            sending = asyncio.create_task(one.send({"n": n}))
            receiving = asyncio.create_task(other.recv())
            for _ in range(n % 4):
                await asyncio.sleep(0)
            sending.cancel()
            receiving.cancel()
            await asyncio.wait([sending, receiving])
        await one.send({"last": True})
        while "last" not in await other.recv():
            pass
        await one.close()
        await other.close()


@pytest.mark.parametrize(
    "message", [None, [], "x", {"x": object()}, {"x": float("nan")}, {"x": b""}, {"x": "\ud800"}]
)
async def test_what_is_no_message(message: object) -> None:
    async with Desk().open() as desk:
        one, other = await met(desk)
        with pytest.raises(UsageError, match="JSON object"):
            await one.send(message)  # type: ignore[arg-type]
        await one.send({"after": 1})
        assert await other.recv() == {"after": 1}
        await one.close()
        await other.close()


async def test_messages_as_long_as_they_may_be() -> None:
    async with Desk().open() as desk:
        one, other = await met(desk)
        longest = {"x": "y" * (LONGEST - len('{"x":""}'))}
        with pytest.raises(UsageError, match=f"at most {LONGEST}"):
            await one.send({"x": longest["x"] + "y"})
        await one.send(longest)
        assert await other.recv() == longest
        await one.close()
        await other.close()


async def test_a_server_that_takes_less() -> None:
    async def less(_: object, message):
        text = message.encode()
        return [text.replace('"message":65536', '"message":1000')]

    async with Desk(forge=less).open() as desk:
        one, other = await met(desk)
        with pytest.raises(UsageError, match="sealed it has 1040, and the rendezvous takes 1000"):
            await one.send({"x": "y" * 600})
        await one.send({"x": "y" * 400})
        assert (await other.recv())["x"] == "y" * 400
        await one.close()
        await other.close()


async def test_the_arithmetic_is_not_done_on_the_event_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    where: list[int] = []

    class Watched(Pairing):
        def __init__(self, *arguments) -> None:
            where.append(threading.get_ident())
            super().__init__(*arguments)

        def finish(self, *arguments):
            where.append(threading.get_ident())
            return super().finish(*arguments)

    monkeypatch.setattr(module, "Pairing", Watched)
    async with Desk().open() as desk:
        one, other = await met(desk)
        assert len(where) == 4
        assert threading.get_ident() not in where
        await one.close()
        await other.close()


# Ends. --------------------------------------------------------------------------------------------


async def test_a_wrong_word_is_the_same_error_at_both_sides() -> None:
    async with Desk().open() as desk:
        one = await Meeting.open(desk.url)
        right = parse(one.code).secret.split("-")
        wrong = "zebra" if right[2] != "zebra" else "acorn"
        other = await Meeting.open(desk.url, f"7-{right[0]}-{right[1]}-{wrong}")
        await asyncio.gather(one.peer(), other.peer())
        for meeting in (one, other):
            with pytest.raises(WrongCode, match="does not have the same code"):
                await meeting.recv()
            with pytest.raises(WrongCode):
                await meeting.send({"secret": 1})
            with pytest.raises(WrongCode):
                await meeting.recv()
            assert not meeting.proved
            await meeting.close()
        # Nobody can try again under this number.
        with pytest.raises(Refused, match="nobody waits under the number 7"):
            await Meeting.open(desk.url, one.code)


async def test_a_wrong_word_is_told_even_to_who_only_listens_or_only_talks() -> None:
    async with Desk().open() as desk:
        one = await Meeting.open(desk.url, "alice-secret-1")
        other = await Meeting.open(desk.url, "alice-secret-2")
        with pytest.raises(WrongCode):
            await one.recv()
        await one.close()

        async def talk() -> None:
            await other.peer()
            while True:
                await other.send({})

        with pytest.raises(WrongCode):
            await talk()
        await other.close()


async def test_the_peer_leaves() -> None:
    async with Desk().open() as desk:
        one, other = await met(desk)
        await one.send({"n": 1})
        await one.send({"n": 2})
        await one.close()
        # What was sent before is there still.
        assert [(await other.recv())["n"] for _ in range(2)] == [1, 2]
        with pytest.raises(PeerGone, match=r"the peer has left the rendezvous$"):
            await other.recv()
        with pytest.raises(PeerGone):
            await other.send({})
        await other.close()
        # The first reason stays.
        with pytest.raises(PeerGone):
            await other.recv()


async def test_the_peer_is_lost() -> None:
    async with Desk().open() as desk:
        one, other = await met(desk)
        desk.guests[0].socket.transport.abort()
        with pytest.raises(PeerGone, match=r"the peer's connection to the rendezvous is lost$"):
            await other.recv()
        with pytest.raises(RendezvousLost):
            await one.recv()
        await one.close()
        await other.close()


async def test_the_peer_leaves_before_it_proved_anything() -> None:
    async def swallow(to, message):
        return [] if isinstance(message, Message) else [message]

    async with Desk(forge=swallow).open() as desk:
        one, other = await met(desk)
        await one.close()
        with pytest.raises(PeerGone, match="before it proved that it has the code"):
            await other.recv()
        await other.close()


async def test_the_server_dies_while_one_waits() -> None:
    async with Desk().open() as desk:
        one = await Meeting.open(desk.url)
        waiting = asyncio.create_task(one.peer())
        await asyncio.sleep(0)
        desk.guests[0].socket.transport.abort()
        with pytest.raises(RendezvousLost, match="the connection broke; nobody can come to this"):
            await waiting
        await one.close()


async def test_a_fault_of_this_side_keeps_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise MemoryError("no room")

    async with Desk().open() as desk:
        one = await Meeting.open(desk.url)
        monkeypatch.setattr(module, "Channel", broken)
        other = await Meeting.open(desk.url, one.code)
        for side in (one, other):
            with pytest.raises(RendezvousLost, match="has failed: MemoryError"):
                await side.peer()
            await side.close()


async def test_nobody_came() -> None:
    async with Desk().open() as desk:
        one = await Meeting.open(desk.url)
        await desk.guests[0].tell(Error("expired", "time is up"))
        with pytest.raises(
            Refused, match="nobody came within 3600 s: the code has expired"
        ) as caught:
            await one.peer()
        assert caught.value.code == "expired"
        await one.close()


async def test_a_third_party_on_the_name() -> None:
    async with Desk().open() as desk:
        one, other = await met(desk, "alice-secret-1")
        with pytest.raises(Refused, match='two have met under the name "alice" already') as caught:
            await Meeting.open(desk.url, "alice-secret-1")
        assert caught.value.code == "busy"
        await one.send({"still": "there"})
        assert await other.recv() == {"still": "there"}
        await one.close()
        await other.close()


async def test_used_expired_and_invented_numbers_are_told_the_same() -> None:
    async with Desk().open() as desk:
        one, other = await met(desk)
        texts = set()
        for code in (one.code, "7-acorn-violin-harbor", "8-acorn-violin-harbor"):
            with pytest.raises(Refused) as caught:
                await Meeting.open(desk.url, code)
            assert caught.value.code == "unknown-name"
            texts.add(str(caught.value).replace("8", "7"))
        assert len(texts) == 1
        await one.close()
        await other.close()


async def test_a_refusal_that_is_not_known_is_passed_on() -> None:
    async def refuse(_: object, message):
        return (
            [Error("too-many", "wait\x07 a little")]
            if message.encode()[9:15] == "joined"
            else [message]
        )

    async with Desk(forge=refuse).open() as desk:
        with pytest.raises(Refused, match=r"refuses: wait\? a little") as caught:
            await Meeting.open(desk.url)
        assert caught.value.code == "too-many"


async def test_closing() -> None:
    async with Desk().open() as desk:
        one, other = await met(desk)
        receiving = asyncio.create_task(one.recv())
        await asyncio.sleep(0)
        await one.close()
        with pytest.raises(RendezvousLost, match="this side has left"):
            await receiving
        for _ in range(2):
            await one.close()
            with pytest.raises(RendezvousLost, match="this side has left"):
                await one.send({})
            with pytest.raises(RendezvousLost, match="this side has left"):
                await one.recv()
        await other.close()


async def test_closing_while_the_reader_waits_for_room() -> None:
    async with Desk().open() as desk:
        one, other = await met(desk)
        for n in range(3 * MOST_WAITING):
            await one.send({"n": n})
        await until(lambda: len(other._inbox) == MOST_WAITING)
        await other.close()
        await one.close()


async def test_an_opening_that_is_cancelled_leaves_nothing() -> None:
    async with Desk().open() as desk:
        for steps in range(0, 60, 3):
            opening = asyncio.create_task(Meeting.open(desk.url))
            for _ in range(steps):
                await asyncio.sleep(0)
            opening.cancel()
            await asyncio.wait([opening])
            if not opening.cancelled():
                await opening.result().close()
        await until(desk.is_left)


async def test_an_opening_takes_no_longer_than_it_may() -> None:
    async def silent(_: object, message):
        return [message] if message.encode()[9:16] == "welcome" else []

    async with Desk(forge=silent).open() as desk:
        with pytest.raises(RendezvousUnreachable, match=r"within 0\.2 s"):
            await Meeting.open(desk.url, timeout=0.2)


# A peer that has the code and is bad. -------------------------------------------------------------


@pytest.mark.parametrize(
    "octets",
    [
        b"[]",
        b"null",
        b"{",
        b"\xff",
        b'{"x":NaN}',
        b'{"x":Infinity}',
        b"[" * 60_000,
        b'{"x":' + b"9" * 10_000 + b"}",
        json.dumps("x" * 100).encode(),
    ],
    ids=lambda octets: octets[:8].decode("latin-1"),
)
async def test_a_peer_that_has_the_code_and_talks_nonsense(octets: bytes) -> None:
    async with Desk().open() as desk:
        one, other = await met(desk)
        await one._send_sealed(one._channel, octets)
        with pytest.raises(BadPeer, match="the peer, which has the code"):
            await other.recv()
        await one.close()
        await other.close()
