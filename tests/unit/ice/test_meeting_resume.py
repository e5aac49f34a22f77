"""Meeting again after the rendezvous, or the way to it, was lost."""

from __future__ import annotations

import asyncio

import pytest

from ice.rendezvous import meeting as module
from ice.rendezvous.errors import PeerGone, RendezvousUnreachable
from ice.rendezvous.meeting import Meeting
from ice.rendezvous.pairing import Pairing
from ice.rendezvous.protocol import Join, Message
from tools.meetingdesk import Desk, until


async def met(desk: Desk) -> tuple[Meeting, Meeting]:
    one = await Meeting.open(desk.url)
    other = await Meeting.open(desk.url, one.code)
    await asyncio.gather(one.peer(), other.peer())
    return one, other


async def resumed(url: str, one, other) -> tuple[Meeting, Meeting]:
    return await asyncio.gather(Meeting.resume(url, one), Meeting.resume(url, other))


async def exchange(one: Meeting, other: Meeting) -> None:
    await one.send({"from": "one"})
    await other.send({"from": "other"})
    assert await one.recv() == {"from": "other"}
    assert await other.recv() == {"from": "one"}


async def test_again_and_again() -> None:
    async with Desk().open() as desk:
        one, other = await met(desk)
        roles, keys = (one.first, other.first), {one.keys.seal, other.keys.seal}
        for _ in range(3):
            desk.guests[-1].socket.transport.abort()
            desk.guests[-2].socket.transport.abort()
            again = await resumed(desk.url, one.keys, other.keys)
            await one.close()
            await other.close()
            one, other = again
            assert one.proved
            assert other.proved
            await one.peer()
            assert (one.first, other.first) == roles
            assert not keys & {one.keys.seal, other.keys.seal}
            keys |= {one.keys.seal, other.keys.seal}
            await exchange(one, other)
        names = [
            said.name for guest in desk.guests for said in guest.heard if isinstance(said, Join)
        ]
        assert names[:2] == [None, "7"]
        assert len(set(names[2:])) == 1
        assert names[2].startswith("r.")
        await one.close()
        await other.close()


async def test_keys_of_different_resumptions_lead_together() -> None:
    """One side may have been through a resumption of which the other has never heard."""
    async with Desk().open() as desk:
        one, other = await met(desk)
        early = one.keys
        await one.close()
        await other.close()
        one, other = await resumed(desk.url, early, other.keys)
        late = other.keys
        await one.close()
        await other.close()
        one, other = await resumed(desk.url, early, late)
        await exchange(one, other)
        await one.close()
        await other.close()


async def test_another_server_that_starts_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY", 0.01)
    async with Desk().open() as desk:
        one, other = await met(desk)
        url, port = desk.url, int(desk.url.rpartition(":")[2])
    again = asyncio.create_task(resumed(url, one.keys, other.keys))
    done, _ = await asyncio.wait([again], timeout=0.05)
    assert not done
    async with Desk().open(port):
        await one.close()
        await other.close()
        one, other = await again
        await exchange(one, other)
        await one.close()
        await other.close()


async def test_the_peer_does_not_come_back() -> None:
    async with Desk().open() as desk:
        one, other = await met(desk)
        await other.close()
        with pytest.raises(PeerGone, match="did not come back"):
            await Meeting.resume(desk.url, one.keys, timeout=0.2)
        await one.close()
    with pytest.raises(RendezvousUnreachable, match="nothing listens"):
        await Meeting.resume(desk.url, one.keys, timeout=0.2)


async def test_connections_of_before_that_still_seem_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    """One waits at the place already, of this side, and nobody reads what comes to it."""
    monkeypatch.setattr(module, "PROOF_PATIENCE", 0.1)
    monkeypatch.setattr(module, "RETRY", 0.01)
    async with Desk().open() as desk:
        one, other = await met(desk)
        ghost = Pairing(one.keys.resume.secret, lambda n: bytes(range(n)))

        class Ghost:
            number, name, hello, other, heard = 99, one.keys.resume.name, ghost.hello, None, ()

            class socket:  # noqa: N801
                @staticmethod
                async def close() -> None: ...

            async def tell(self, message) -> None: ...

        desk._waiting[one.keys.resume.name] = Ghost()
        one_again, other_again = await resumed(desk.url, one.keys, other.keys)
        await exchange(one_again, other_again)
        for meeting in (one, other, one_again, other_again):
            await meeting.close()


async def test_a_stranger_at_the_place_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server knows the name, and may send anybody there: it lacks the secret."""
    monkeypatch.setattr(module, "RETRY", 0.01)
    async with Desk().open() as desk:
        one, other = await met(desk)
        stranger = await Meeting.open(desk.url, f"{one.keys.resume.name}-whatever it is")
        one_again, other_again = await resumed(desk.url, one.keys, other.keys)
        await exchange(one_again, other_again)
        for meeting in (one, other, one_again, other_again, stranger):
            await meeting.close()


async def test_a_resumption_that_is_cancelled_leaves_nothing() -> None:
    async with Desk().open() as desk:
        one, other = await met(desk)
        await other.close()
        again = asyncio.create_task(Meeting.resume(desk.url, one.keys))
        await until(lambda: len(desk.guests) == 3 and bool(desk.guests[2].hello))
        again.cancel()
        await asyncio.wait([again])
        assert again.cancelled()
        await one.close()
        await until(desk.is_left)


async def test_nobody_is_taken_for_the_peer_before_the_proof(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "PROOF_PATIENCE", 0.05)

    async def swallow(_, message):
        return [] if isinstance(message, Message) else [message]

    async with Desk().open() as desk:
        one, other = await met(desk)
        desk.forge = swallow
        ends = await asyncio.gather(
            *(Meeting.resume(desk.url, side.keys, timeout=0.5) for side in (one, other)),
            return_exceptions=True,
        )
        assert [type(end) for end in ends] == [PeerGone, PeerGone]
        await one.close()
        await other.close()
