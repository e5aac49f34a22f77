"""What strangers get, and how requests wait for a user store that must ask."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Sequence

import pytest

from stun import attributes as a
from stun.codec import decode, encode
from stun.discovery import Transport
from stun.errors import DropReason
from stun.message import Message
from stun.registry import Method
from stun.sansio import SECOND, Address, Cause, Closed, Received, Transmit
from stun.users import Gap, Password, Secret, StaticUsers
from tools.turndesk import HOST, PEER, UDP, UNLIMITED, Desk, code
from turn.server.config import Limits
from turn.server.events import LookUp, RequestRefused
from turn.server.gate import MOST_OF_A_CLIENT, MOST_WAITING, PATIENCE

TRANSPORT = (a.REQUESTED_TRANSPORT, UDP)
SERVER = Address(HOST, 3478)
CLIENT = Address("192.52.193.5", 40_000)


def _allocate() -> bytes:
    return encode(Message.request(Method.ALLOCATE, bytes(12)).add(a.REQUESTED_TRANSPORT, UDP))


@pytest.mark.parametrize("realm", ["example.org", "relay.example.org", "r" * 24])
def test_a_challenge_is_at_most_100_octets(realm: str) -> None:
    desk = Desk(realm=realm, software="a name of some length")
    (sent,) = desk.receive(_allocate(), CLIENT, SERVER)
    assert len(sent.data) <= 100


def test_a_binding_answer_is_at_most_32_octets() -> None:
    desk = Desk(software="a name of some length")
    request = encode(Message.request(Method.BINDING, bytes(12)))
    (sent,) = desk.receive(request, CLIENT, SERVER)
    assert (len(request), len(sent.data)) == (20, 32)


@pytest.mark.parametrize("method", [Method.ALLOCATE, Method.BINDING])
def test_a_flood_from_a_forged_prefix_gets_back_what_it_brought_and_the_burst(
    method: Method,
) -> None:
    desk = Desk(limits=Limits(requests_per_second_per_client=0))
    message = Message.request(method, bytes(12))
    request = encode(message.add(a.REQUESTED_TRANSPORT, UDP) if method != 1 else message)
    came = went = 0
    for n in range(20_000):
        source = Address(f"192.52.193.{n % 250}", 1024 + n)
        came += len(request)
        went += sum(len(sent.data) for sent in desk.receive(request, source, SERVER))
        desk.sent.clear()
    limits = desk.config.limits
    assert went <= came + limits.unverified_burst
    assert desk.server.drops[DropReason.RATE_LIMITED] > 0
    other = desk.caller(address=Address("198.41.0.4", 1))
    other.relayed()


def test_wrong_passwords_are_unproven_too() -> None:
    desk = Desk(limits=Limits(requests_per_second_per_client=0, unverified_refill=0))
    caller = desk.caller(password="wrong")
    came = went = 0
    for _ in range(2000):
        caller.ask(Method.ALLOCATE, TRANSPORT)
        came += len(caller.requested)
        went += len(caller.answer)
        caller.answer = b""
    assert went <= came + desk.config.limits.unverified_burst


def test_who_proves_itself_is_not_held_back() -> None:
    desk = Desk(limits=Limits(unverified_burst=500, unverified_refill=0))
    caller = desk.caller()
    caller.relayed()
    for _ in range(500):
        assert code(caller.permit(PEER)) == 0


def test_strangers_have_so_many_requests_a_second() -> None:
    desk = Desk(limits=Limits(requests_per_second_per_client=10, unverified_burst=0))
    answered = sum(len(desk.receive(_allocate(), CLIENT, SERVER)) for _ in range(100))
    assert answered == 10
    assert desk.server.drops == {DropReason.RATE_LIMITED: 90}
    desk.wait(1)
    assert len(desk.receive(_allocate(), CLIENT, SERVER)) == 1


@pytest.mark.parametrize(
    ("transport", "answered", "dropped"),
    [(Transport.TCP, 500, 0), (Transport.TLS, 500, 0), (Transport.DTLS, None, 1)],
)
def test_over_the_limit_a_stream_is_told_since_it_does_not_ask_again(
    transport: Transport, answered: int | None, dropped: int
) -> None:
    desk = Desk(limits=Limits(requests_per_second_per_client=10))
    caller = desk.caller(transport=transport)
    first = [caller.ask(Method.ALLOCATE, TRANSPORT, follow=False) for _ in range(10)]
    assert [code(response) for response in first] == [401] * 10
    over = caller.ask(Method.ALLOCATE, TRANSPORT, follow=False)
    assert (None if over is None else code(over)) == answered
    assert desk.server.drops[DropReason.RATE_LIMITED] == dropped
    assert len(desk.told(RequestRefused)) == 1 - dropped
    desk.wait(1)
    caller.relayed()


@pytest.mark.parametrize("transport", [Transport.TCP, Transport.TLS, Transport.DTLS])
def test_a_connection_is_not_kept_out_by_datagrams_of_a_forged_source(transport: Transport) -> None:
    desk = Desk(limits=Limits(requests_per_second_per_client=10))
    caller = desk.caller(transport=transport)
    for _ in range(1000):
        desk.receive(_allocate(), caller.address, SERVER)
    caller.relayed()


def test_connections_are_not_budgeted_for_their_source_is_real() -> None:
    desk = Desk(limits=Limits(unverified_burst=1, unverified_refill=0))
    assert desk.receive(_allocate(), CLIENT, SERVER) == []
    desk.caller(transport=Transport.TCP).relayed()


def test_nothing_is_remembered_of_strangers() -> None:
    desk = Desk(limits=UNLIMITED)
    server = desk.server

    def flood(start: int, count: int) -> None:
        for n in range(start, start + count):
            source = Address(f"198.{n >> 16 & 255}.{n >> 8 & 255}.{n & 255}", 1024 + n % 60_000)
            server.receive(Received(_allocate(), source, SERVER), 0)
            while server.poll() is not None:
                pass

    tracemalloc.start()
    # By then the caches of text forms and octets are full, and their tables are made anew.
    flood(0, 15_000)
    gc.collect()
    before = tracemalloc.get_traced_memory()[0]
    flood(15_000, 20_000)
    gc.collect()
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 64 * 1024


def test_errors_before_authentication_are_short_and_told_without_reason() -> None:
    desk = Desk()
    caller = desk.caller()
    # MESSAGE-INTEGRITY without USERNAME, REALM and NONCE (RFC 8489 section 9.2.4): 400.
    message = Message.request(Method.ALLOCATE, bytes(12))
    response = caller.say(encode(message, key=b"k"))
    assert code(response) == 400
    assert response is not None
    assert not response.has(a.MESSAGE_INTEGRITY)
    (told,) = desk.told(RequestRefused)
    assert (told.code, told.username) == (400, None)


def test_a_nonce_that_is_too_old() -> None:
    desk = Desk()
    caller = desk.caller()
    caller.relayed()
    caller.refresh(3600)
    desk.now += 3601 * SECOND // 2
    caller.refresh(3600)
    desk.now += 3601 * SECOND // 2
    assert code(caller.ask(Method.REFRESH, follow=False)) == 438
    assert code(caller.refresh()) == 0
    assert desk.server.metrics.authentication["stale"] == 2


def test_refusals_are_told_some_tens_a_second_and_challenges_never() -> None:
    desk = Desk(limits=UNLIMITED)
    for _ in range(50):
        desk.receive(_allocate(), CLIENT, SERVER)
    assert desk.told(RequestRefused) == []
    caller = desk.caller()
    for _ in range(100):
        caller.refresh()
    assert len(desk.told(RequestRefused)) == 20
    assert desk.told(RequestRefused)[0].code == 437
    desk.wait(1)
    caller.refresh()
    assert len(desk.told(RequestRefused)) == 21


# A user store that must ask. ----------------------------------------------------------------------


class Database:
    """Knows nothing at first."""

    def __init__(self) -> None:
        self.known: dict[str, Sequence[Secret | Gap]] = {}
        self.names = StaticUsers({"alice": "secret"}, "example.org")

    def secrets(self, username: str, unix_time: int) -> Sequence[Secret | Gap]:
        return self.known.get(username, (Gap.NOT_YET,))

    def by_userhash(self, value: bytes, unix_time: int) -> str | Gap | None:
        return self.names.by_userhash(value, unix_time)


def _alice() -> LookUp:
    return LookUp("alice")


def test_a_request_waits_for_the_store_and_is_answered_then() -> None:
    database = Database()
    desk = Desk(users=database)
    caller = desk.caller()
    assert caller.ask(Method.ALLOCATE, TRANSPORT) is None
    assert desk.told(LookUp) == [_alice()]
    assert caller.say(caller.requested) is None
    assert desk.told(LookUp) == [_alice()], "one question is enough"
    database.known["alice"] = (Password("secret"),)
    desk.wait(0.2)
    desk.server.found(_alice(), desk.now)
    desk.pump()
    assert len(caller.fetch()) == 1, "the copy does nothing while the port is being opened"
    assert len(desk.created) == 1
    assert sum(desk.server.metrics.lookup_latency.counts) == 2


def test_one_that_the_store_does_not_know_is_refused() -> None:
    database = Database()
    desk = Desk(users=database)
    caller = desk.caller()
    caller.ask(Method.ALLOCATE, TRANSPORT)
    database.known["alice"] = ()
    desk.server.found(_alice(), desk.now)
    desk.pump()
    assert len(caller.fetch()) == 1
    assert not desk.created


def test_nobody_waits_for_longer_than_three_seconds() -> None:
    desk = Desk(users=Database())
    caller = desk.caller()
    caller.ask(Method.ALLOCATE, TRANSPORT)
    desk.wait(PATIENCE / SECOND)
    assert desk.server.drops == {DropReason.NOBODY_ANSWERED: 1}
    desk.server.found(_alice(), desk.now)
    desk.pump()
    assert caller.fetch() == []
    caller.say(caller.requested)
    assert len(desk.told(LookUp)) == 2, "the store is asked anew"


def test_no_more_wait_than_there_is_room_for() -> None:
    desk = Desk(users=Database(), limits=UNLIMITED)
    for number in range(MOST_WAITING + 10):
        host = f"192.52.193.{number // MOST_OF_A_CLIENT}"
        caller = desk.caller(address=Address(host, 1000))
        caller.ask(Method.ALLOCATE, TRANSPORT)
    assert desk.server.drops == {DropReason.RATE_LIMITED: 10}
    desk.wait(4)
    assert desk.server.drops[DropReason.NOBODY_ANSWERED] == MOST_WAITING


@pytest.mark.parametrize(
    ("transport", "answered"),
    [(Transport.TCP, [500, 0]), (Transport.TLS, [500, 0]), (Transport.DTLS, [])],
)
def test_where_there_is_no_room_to_wait_a_stream_gets_a_500(
    transport: Transport, answered: list[int]
) -> None:
    desk = Desk(users=Database(), limits=UNLIMITED)
    for port in range(MOST_OF_A_CLIENT):
        caller = desk.caller(transport=transport, address=Address(CLIENT.host, 1000 + port))
        assert caller.ask(Method.ALLOCATE, TRANSPORT) is None
    late = desk.caller(transport=transport)
    late.ask(Method.ALLOCATE, TRANSPORT)
    came = [late.answer] if late.answer else []
    if transport is not Transport.DTLS:
        came += late.send(encode(Message.request(Method.BINDING, bytes(12))))
    codes = [code(decode(octets)) for octets in came if code(decode(octets)) != 401]
    assert codes == answered
    assert late.handle not in desk.unread
    assert desk.server.drops == ({} if answered else {DropReason.RATE_LIMITED: 1})
    assert len(desk.server._gate._line) == MOST_OF_A_CLIENT
    assert desk.server.metrics.authentication["failed"] == bool(answered)


def test_a_wait_in_vain_is_over_at_its_own_time() -> None:
    desk = Desk(users=Database(), limits=UNLIMITED)
    callers = [
        desk.caller(transport=transport, address=Address(f"192.52.193.{n}", 1), username=name)
        for n, (transport, name) in enumerate(
            ((Transport.TCP, "alice"), (Transport.UDP, "alice"), (Transport.TCP, "bob"),
             (Transport.TLS, "alice"), (Transport.UDP, "alice"))
        )
    ]  # fmt: skip
    for caller in callers:
        caller.ask(Method.ALLOCATE, TRANSPORT)
        desk.wait(0.5)
    assert len(desk.told(LookUp)) == 2, "of one user is asked once"
    desk.wait(0.4)
    for number, caller in enumerate(callers):
        assert caller.fetch() == []
        desk.wait(0.2)
        over = [500] if caller.handle else []
        assert [code(decode(octets)) for octets in caller.fetch()] == over
        assert len(desk.server._gate._line) == len(callers) - number - 1
        desk.wait(0.3)
    assert desk.server.drops == {DropReason.NOBODY_ANSWERED: 2}
    assert not desk.server._gate._waiting
    assert not desk.server._gate._crowd


def test_an_answer_is_for_those_that_still_wait() -> None:
    database = Database()
    desk = Desk(users=database)
    first, second = (
        desk.caller(transport=Transport.TCP, address=Address(CLIENT.host, port)) for port in (1, 2)
    )
    first.ask(Method.ALLOCATE, TRANSPORT)
    desk.wait(1)
    second.ask(Method.ALLOCATE, TRANSPORT)
    desk.wait(2.5)
    database.known["alice"] = (Password("secret"),)
    desk.server.found(_alice(), desk.now)
    desk.pump()
    assert [code(decode(octets)) for octets in first.fetch()] == [500]
    assert [code(decode(octets)) for octets in second.fetch()] == [0]
    assert [created.client for created in desk.created] == [second.address]


def test_a_client_that_left_meanwhile() -> None:
    database = Database()
    desk = Desk(users=database)
    caller = desk.caller(transport=Transport.TCP)
    caller.ask(Method.ALLOCATE, TRANSPORT)
    desk.tell(Closed(caller.handle, Cause.END_OF_STREAM))
    database.known["alice"] = (Password("secret"),)
    desk.server.found(_alice(), desk.now)
    desk.pump()
    assert not desk.created


def test_a_binding_needs_no_store() -> None:
    desk = Desk(users=Database())
    request = encode(Message.request(Method.BINDING, bytes(12)))
    assert [type(sent) for sent in desk.receive(request, CLIENT, SERVER)] == [Transmit]


def test_clients_that_prove_themselves_never_run_out_of_challenges() -> None:
    """Many behind one address: each brings more than the challenge that it draws."""
    desk = Desk(limits=Limits())
    for number in range(1000):
        caller = desk.caller(address=Address(CLIENT.host, 10_000 + number))
        caller.allocate()
        caller.refresh(0)
    assert DropReason.RATE_LIMITED not in desk.server.drops
