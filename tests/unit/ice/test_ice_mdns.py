"""Names looked up and published, on the loopback interface."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator

import dns.message
import dns.name
import dns.rdataclass
import pytest

from ice import mdns, mdnswire
from ice.interfaces import LocalAddress

HOST = "127.0.0.1"
LOOPBACK = LocalAddress(HOST, "lo", socket.if_nametoindex("lo"), 8, loopback=True)
STRANGE = "3f1c2f9e-6f0a-4a8d-9a1e-1b2c3d4e5f60.local"


@pytest.fixture(autouse=True)
def loopback_only(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(mdns, "local_addresses", lambda: [LOOPBACK])
    monkeypatch.setattr(mdns, "ASK_AFTER", (0.0, 0.2, 0.4))
    yield
    assert not mdns._groups


def another_group() -> mdns.Membership:
    """Return a member of a group of its own, as another process would have it."""
    return mdns.Membership(mdns.Group(asyncio.get_running_loop()))


async def test_a_name_is_found_by_another_process() -> None:
    here, there = mdns.join(), another_group()
    name = there.publish(HOST)
    assert mdnswire.as_name(name) == name
    assert there.publish(HOST) == name
    assert await here.resolve(name) == HOST
    assert await here.resolve(name.upper()) == HOST
    here.leave()
    there.leave()
    there.leave()


async def test_a_name_of_the_same_process() -> None:
    here, there = mdns.join(), mdns.join()
    assert await here.resolve(there.publish(HOST)) == HOST
    here.leave()
    there.leave()


async def test_nobody_has_that_name() -> None:
    here = mdns.join()
    assert await here.resolve(STRANGE) is None
    assert await here.resolve("printer.local") is None
    here.leave()


async def test_a_name_is_gone_with_its_member() -> None:
    here, there = mdns.join(), another_group()
    name = there.publish(HOST)
    there.leave()
    assert await here.resolve(name) is None
    here.leave()


async def test_cancelling_leaves_nothing() -> None:
    here = mdns.join()
    asking = asyncio.create_task(here.resolve(STRANGE))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert not here._group._wanted
    here.leave()


class Listener:
    """A program on port 5353 that hears what is multicast."""

    def __enter__(self) -> Listener:
        self.socket = socket.socket(type=socket.SOCK_DGRAM)
        self.socket.setblocking(False)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self.socket.bind((mdns.GROUPS[4], mdns.PORT))
        group = socket.inet_aton(mdns.GROUPS[4]) + socket.inet_aton(HOST)
        self.socket.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
        self.socket.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(HOST))
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendto(data, (mdns.GROUPS[4], mdns.PORT))

    async def next(self, *, response: bool) -> dns.message.Message:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(5):
            while True:
                message = dns.message.from_wire(await loop.sock_recv(self.socket, 9000))
                if bool(message.flags & dns.flags.QR) is response:
                    return message


async def test_it_is_announced_and_taken_back() -> None:
    with Listener() as listener:
        there = mdns.join()
        name = there.publish(HOST)
        announced = await listener.next(response=True)
        assert announced.answer[0].name.to_text() == f"{name}."
        assert announced.answer[0].ttl == mdnswire.TTL
        there.leave()
        assert (await listener.next(response=True)).answer[0].ttl == 0


async def test_an_answer_that_is_multicast_is_heard() -> None:
    """As Chromium answers, whatever is asked for."""
    with Listener() as listener:
        here = mdns.join()
        asking = asyncio.create_task(here.resolve(STRANGE))
        question = await listener.next(response=False)
        assert question.question[0].name.to_text() == f"{STRANGE}."
        assert question.question[0].rdclass == 0x8001  # section 5.4, as the draft asks for
        listener.send(mdnswire.answer(STRANGE, "127.9.9.9"))
        assert await asking == "127.9.9.9"
        here.leave()


async def test_several_addresses_are_none() -> None:
    """The draft, section 3.2.2: ignore candidates that resolve to more than one address."""
    with Listener() as listener:
        here = mdns.join()
        asking = asyncio.create_task(here.resolve(STRANGE))
        await listener.next(response=False)
        several = dns.message.from_wire(mdnswire.answer(STRANGE, HOST))
        several.answer += dns.message.from_wire(mdnswire.answer(STRANGE, "127.9.9.9")).answer
        listener.send(several.to_wire())
        assert await asking is None
        here.leave()


async def test_a_question_to_all_is_answered_to_all_once_a_second() -> None:
    with Listener() as listener:
        there = mdns.join()
        name = there.publish(HOST)
        await listener.next(response=True)
        told = there._group._told_at
        question = mdnswire.Question(name, frozenset((4,)), unicast=False)
        heard = mdnswire.Heard(0, (question,))
        asker = (HOST, mdns.PORT)
        before = told[name]
        there._group._asked(heard, asker)
        assert told[name] == before  # it has just been announced
        told[name] -= mdns.MULTICAST_AGAIN
        there._group._asked(heard, asker)
        assert told[name] >= before
        assert (await listener.next(response=True)).answer
        there.leave()


async def test_what_is_no_message_is_counted() -> None:
    with Listener() as listener:
        there = mdns.join()
        there.publish(HOST)
        listener.send(b"no message")
        async with asyncio.timeout(5):
            while not there._group.counters["dropped: nothing about names of agents"]:  # noqa: ASYNC110
                await asyncio.sleep(0)
        there.leave()


async def test_nobody_from_elsewhere_is_heard() -> None:
    group = mdns.Group(asyncio.get_running_loop())
    member = mdns.Membership(group)
    member.publish(HOST)
    assert group._is_on_link("127.1.2.3")
    assert group._is_on_link("fe80::1%lo")
    assert not group._is_on_link("192.0.2.1")
    member.leave()


async def test_without_multicast_there_are_names_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The draft, section 3.1.1, so that nobody can find out."""

    def refused(*_: object) -> socket.socket:
        raise OSError

    monkeypatch.setattr(mdns.Group, "_bound", refused)
    member = mdns.join()
    assert mdnswire.as_name(member.publish(HOST))
    assert await member.resolve(STRANGE) is None
    member.leave()


async def test_names_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mdns, "MOST_NAMES", 1)
    member = mdns.join()
    member.publish(HOST)
    member.publish("127.0.0.2")
    assert member._group.counters["names not published: there are too many"] == 1
    member.leave()
