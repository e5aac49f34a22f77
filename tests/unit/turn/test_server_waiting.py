"""Requests that wait for the user store: on a stream, what is behind them waits with them."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from typing import Any

import pytest

from stun import attributes as a
from stun.auth_client import Challenge, LongTermGuard
from stun.codec import decode, encode
from stun.discovery import Transport
from stun.errors import DropReason
from stun.framing import StunStream, channel_data
from stun.message import Message
from stun.registry import ErrorCode, Method
from stun.sansio import (
    SECOND,
    Accepted,
    Address,
    Arrived,
    Cause,
    Closed,
    Congested,
    Handle,
    Relieved,
)
from stun.users import Gap, Password, StaticUsers
from tools.turndesk import PEER, REALM, TCP, UDP, UNLIMITED, Attribute, Caller, Desk, code
from turn.server.config import Limits
from turn.server.events import Drained, EndReason, LookUp, RequestRefused
from turn.server.gate import PATIENCE

STREAMS = [Transport.TCP, Transport.TLS]
EVERY = [*STREAMS, Transport.DTLS]
TRANSPORT = (a.REQUESTED_TRANSPORT, UDP)


def _attempt(desk: Desk) -> int:
    """Return what names a connection of a peer, -50, that waits for its ConnectionBind."""
    control = desk.caller(transport=Transport.TCP)
    relayed = control.allocate(transport=TCP).get(a.XOR_RELAYED_ADDRESS)
    assert relayed is not None
    control.permit(PEER)
    listener = next(handle for handle, local in desk.open.items() if local == relayed)
    desk.tell(Accepted(listener, -50, relayed, PEER))
    control.fetch()
    (attempt,) = control.indications
    assert attempt.method == Method.CONNECTION_ATTEMPT
    identifier = attempt.get(a.CONNECTION_ID)
    assert identifier
    return identifier


class Asking:
    """A user store that must ask each time: an answer is good for one request."""

    def __init__(self) -> None:
        self.known = {"alice": (Password("secret"),)}
        self.at_once = True
        self._ready: set[str] = set()

    def secrets(self, username: str, unix_time: int) -> Sequence[Password | Gap]:
        del unix_time
        if not self.at_once and username not in self._ready:
            return (Gap.NOT_YET,)
        self._ready.discard(username)
        return self.known.get(username, ())

    def by_userhash(self, value: bytes, unix_time: int) -> None:
        del value, unix_time

    def answer(self, desk: Desk) -> None:
        """Answer the first question."""
        lookup = desk.told(LookUp)[0]
        desk.events.remove(lookup)
        self._ready.add(lookup.username)
        desk.server.found(lookup, desk.now)
        desk.pump()


def _asking(transport: Transport = Transport.TCP, **options: Any) -> tuple[Desk, Asking, Caller]:
    """Return a client with an allocation, a permission and a channel, whom the store forgot."""
    store = Asking()
    desk = Desk(users=store, limits=UNLIMITED, **options)
    caller = desk.caller(transport=transport)
    caller.relayed()
    caller.bind(0x4000, PEER)
    store.at_once = False
    return desk, store, caller


def _request(caller: Caller, method: Method, *attributes: Attribute, name: str = "alice") -> bytes:
    """Return a request with a proof; whoever is called otherwise has alice's password."""
    challenge = caller.sessions.recall(caller.server, caller.credentials)
    assert isinstance(challenge, Challenge)
    challenge = dataclasses.replace(challenge, username=name)
    guard = LongTermGuard(caller.sessions, caller.server, caller.credentials, challenge)
    message = Message.request(method, caller.desk.rng.randbytes(12))
    for attribute, value in attributes:
        message.add(attribute, value)
    return guard.dress(message, fingerprint=False)


def _binding() -> bytes:
    return encode(Message.request(Method.BINDING, bytes(12)))


def _is_read(desk: Desk, handle: Handle) -> bool:
    return handle not in desk.unread


def _methods(came: list[bytes]) -> list[int]:
    return [decode(octets).method for octets in came]


@pytest.mark.parametrize("transport", STREAMS)
def test_what_follows_a_request_that_waits_is_looked_at_after_it(transport: Transport) -> None:
    desk, store, caller = _asking(transport)
    refresh = _request(caller, Method.REFRESH, (a.LIFETIME, 600))
    behind = channel_data(0x4000, b"data", pad=True) + _binding() + refresh + _binding()
    assert _is_read(desk, caller.handle)
    assert caller.send(refresh + behind[:30]) == []
    assert not _is_read(desk, caller.handle)
    assert caller.send(behind[30:]) == [], "the driver had read this already"
    assert (desk.sent, len(desk.told(LookUp))) == ([], 1)
    store.answer(desk)
    assert _methods(caller.fetch()) == [Method.REFRESH, Method.BINDING]
    assert [sent.data for sent in desk.sent] == [b"data"]
    assert not _is_read(desk, caller.handle), "the next one waits"
    store.answer(desk)
    assert _methods(caller.fetch()) == [Method.REFRESH, Method.BINDING]
    assert _is_read(desk, caller.handle)
    assert desk.holds == 2, "nothing was read between the two"
    assert not desk.server.drops


def _script(caller: Caller, rng: random.Random) -> bytes:
    """Return what a client may send, here and there not what it meant to."""
    message = Message.indication(Method.SEND, rng.randbytes(12))
    message.add(a.XOR_PEER_ADDRESS, PEER).add(a.DATA, rng.randbytes(rng.randrange(50)))
    octets = bytearray()
    for _ in range(rng.randrange(3, 14)):
        octets += rng.choice(
            (
                _binding(),
                encode(message),
                channel_data(0x4000, rng.randbytes(rng.randrange(9)), pad=True),
                encode(Message.request(Method.REFRESH, rng.randbytes(12))),
                _request(caller, Method.REFRESH, (a.LIFETIME, rng.choice((600, 900)))),
                _request(caller, Method.CREATE_PERMISSION, (a.XOR_PEER_ADDRESS, PEER)),
                _request(caller, Method.CHANNEL_BIND),
                _request(caller, Method.REFRESH, name="nobody"),
            )
        )
    if rng.random() < 0.4:
        octets[rng.randrange(len(octets))] ^= 1 << rng.randrange(8)
    return bytes(octets)


def _answers(desk: Desk, handle: Handle) -> list[tuple[int, int, bytes]]:
    """Return what was written to a client: methods, codes and transactions."""
    stream = StunStream(channel_data=True)
    answers = [decode(octets) for octets in stream.feed(desk.written.get(handle, b""))]
    assert not stream.pending
    # Where the nonce and the proof are broken both, an unknown password means 438.
    codes = [401 if code(answer) == 438 else code(answer) for answer in answers]
    return [(m.method, c, m.transaction_id) for m, c in zip(answers, codes, strict=True)]


@pytest.mark.parametrize("run", range(150))
def test_slow_answers_and_cuts_change_nothing(rng: random.Random, run: int) -> None:
    quick, store, caller = _asking(seed=run)
    store.at_once = True
    script = _script(caller, rng)
    desk, store, caller = _asking(seed=run)
    quick.rng.setstate(desk.rng.getstate())
    quick.tell(Arrived(caller.handle, script))
    at, read_ahead = 0, True
    while at < len(script) and caller.handle not in desk.shut:
        if _is_read(desk, caller.handle) or (read_ahead and rng.random() < 0.2):
            read_ahead = _is_read(desk, caller.handle)
            cut = at + rng.choice((1, 3, 19, 20, 21, 100, 1000))
            desk.tell(Arrived(caller.handle, script[at:cut]))
            at = cut
        else:
            desk.now += 1
            store.answer(desk)
    while desk.told(LookUp):
        store.answer(desk)
    assert _answers(desk, caller.handle) == _answers(quick, caller.handle)
    assert desk.sent == quick.sent
    assert desk.shut == quick.shut
    assert len(desk.ended) == len(quick.ended)
    assert desk.server.metrics.requests == quick.server.metrics.requests
    assert desk.server.drops == quick.server.drops
    assert _is_read(desk, caller.handle) or caller.handle in desk.shut
    assert not desk.server._gate._line
    assert quick.holds == 0


def _binds(desk: Desk, store: Asking, *, name: str = "alice") -> tuple[Caller, bytes]:
    """Return a connection and a ConnectionBind to send on it."""
    identifier = _attempt(desk)
    caller = desk.caller(transport=Transport.TCP, address=Address("192.52.193.5", 40_002))
    caller.ask(Method.REFRESH)
    store.at_once = False
    return caller, _request(
        caller, Method.CONNECTION_BIND, (a.CONNECTION_ID, identifier), name=name
    )


@pytest.mark.parametrize("run", range(40))
def test_data_behind_a_connection_bind_that_waits(rng: random.Random, run: int) -> None:
    store = Asking()
    desk = Desk(seed=run, users=store)
    caller, bind = _binds(desk, store)
    data = rng.choice((b"", _binding(), b"\xff", b"\x40\0\0\x05hello")) + rng.randbytes(200)
    before = _request(caller, Method.REFRESH) * rng.randrange(2)
    octets = before + bind + data
    cuts = sorted(rng.sample(range(1, len(octets)), 3))
    pieces = [octets[i:j] for i, j in zip([0, *cuts], [*cuts, None], strict=True)]
    while pieces or desk.told(LookUp):
        if pieces and (_is_read(desk, caller.handle) or rng.random() < 0.2):
            desk.tell(Arrived(caller.handle, pieces.pop(0)))
        else:
            assert -50 not in desk.written
            store.answer(desk)
    assert desk.written[-50] == data
    assert _is_read(desk, caller.handle)
    assert desk.server._core.quotas.connections == 1
    assert _methods(caller.fetch())[-1] == Method.CONNECTION_BIND
    desk.tell(Arrived(-50, b"world"))
    assert desk.written[caller.handle] == b"world"
    assert not desk.server.drops


def test_a_connection_that_was_bound_is_held_by_the_relay_alone() -> None:
    store = Asking()
    desk = Desk(users=store, limits=Limits(octets_per_second_per_user=1000))
    caller, bind = _binds(desk, store)
    caller.send(bind + bytes(100_000))
    store.answer(desk)
    assert len(desk.written[-50]) == 100_000
    assert not _is_read(desk, caller.handle), "its allocation is in debt"


def test_what_follows_a_connection_bind_that_waited_in_vain_is_read_as_messages() -> None:
    store = Asking()
    desk = Desk(users=store)
    caller, bind = _binds(desk, store, name="nobody")
    caller.send(bind + _binding())
    store.answer(desk)
    assert _methods(caller.fetch()) == [Method.CONNECTION_BIND, Method.BINDING]
    caller.send(bind + _binding())
    desk.wait(PATIENCE / SECOND)
    assert _methods(caller.fetch()) == [Method.CONNECTION_BIND, Method.BINDING]
    assert _is_read(desk, caller.handle)
    assert -50 not in desk.written


@pytest.mark.parametrize("transport", STREAMS)
def test_a_stream_gets_a_500_when_the_store_does_not_answer(transport: Transport) -> None:
    desk, store, caller = _asking(transport)
    refresh = _request(caller, Method.REFRESH)
    caller.send(refresh + _binding() + refresh)
    desk.wait(PATIENCE / SECOND)
    answers = [decode(octets) for octets in caller.fetch()]
    assert [(answer.method, code(answer)) for answer in answers] == [
        (Method.REFRESH, 500),
        (Method.BINDING, 0),
    ]
    assert answers[0].transaction_id == decode(refresh).transaction_id
    (told,) = desk.told(RequestRefused)
    assert (told.code, told.detail) == (500, "the user store did not answer in time")
    metrics = desk.server.metrics
    assert metrics.responses[Method.REFRESH, 500] == 1
    assert metrics.authentication["failed"] == 1
    # The second one waits as long as the first one did, and has better luck.
    assert not _is_read(desk, caller.handle)
    desk.events.remove(desk.told(LookUp)[0])
    desk.wait(PATIENCE / SECOND - 0.1)
    store.answer(desk)
    (answer,) = caller.fetch()
    assert code(decode(answer)) == 0
    assert _is_read(desk, caller.handle)
    assert not desk.server.drops
    assert caller.handle not in desk.shut


def test_a_datagram_that_waits_holds_nothing_back_and_gets_no_late_answer() -> None:
    """Requests over DTLS are retransmitted as those over UDP are."""
    desk, store, caller = _asking(Transport.DTLS)
    refresh = _request(caller, Method.REFRESH)
    assert caller.send(refresh) == []
    assert _methods(caller.send(_binding())) == [Method.BINDING]
    caller.push(0x4000, b"data")
    assert [sent.data for sent in desk.sent] == [b"data"]
    desk.wait(PATIENCE / SECOND)
    assert caller.fetch() == []
    assert desk.server.drops == {DropReason.NOBODY_ANSWERED: 1}
    desk.events.clear()
    assert caller.send(refresh) == []
    store.answer(desk)
    (answer,) = caller.fetch()
    assert code(decode(answer)) == 0
    assert desk.holds == 0


def test_a_datagram_that_waited_in_vain_keeps_no_connection_open() -> None:
    store = Asking()
    desk = Desk(users=store)
    caller = desk.caller(transport=Transport.DTLS)
    caller.ask(Method.REFRESH)
    store.at_once = False
    caller.send(_request(caller, Method.REFRESH))
    desk.wait(61)
    assert caller.handle in desk.shut


@pytest.mark.parametrize("transport", EVERY)
def test_a_connection_ends_while_its_request_waits(transport: Transport) -> None:
    desk, store, caller = _asking(transport)
    other = desk.caller(transport=transport, address=Address("192.52.193.6", 1))
    store.at_once = True
    other.ask(Method.REFRESH)
    store.at_once = False
    for one in (caller, other):
        desk.tell(Arrived(one.handle, _request(one, Method.REFRESH)))
    before = dict(desk.server.metrics.responses)
    desk.tell(Closed(caller.handle, Cause.RESET))
    assert [end.reason for end in desk.ended] == [EndReason.CONNECTION_CLOSED]
    store.answer(desk)
    assert caller.fetch() == []
    assert len(other.fetch()) == 1, "who asked for the same user goes on"
    desk.tell(Arrived(other.handle, _request(other, Method.REFRESH)))
    desk.tell(Closed(other.handle, Cause.RESET))
    desk.wait(PATIENCE / SECOND)
    assert desk.server.drops[DropReason.NOBODY_ANSWERED] == 1
    assert sum(desk.server.metrics.responses.values()) == sum(before.values()) + 1
    assert desk.server._core.quotas.connections == 0
    assert desk.server.deadline() is None


def test_one_that_waits_does_not_idle() -> None:
    store = Asking()
    desk = Desk(users=store, idle=2 * SECOND)
    caller = desk.caller(transport=Transport.TCP)
    caller.ask(Method.REFRESH)
    store.at_once = False
    caller.send(_request(caller, Method.REFRESH))
    desk.wait(PATIENCE / SECOND - 0.1)
    assert caller.handle not in desk.shut
    desk.wait(0.2)
    assert [code(decode(octets)) for octets in caller.fetch()] == [500]
    desk.wait(1.8)
    assert caller.handle not in desk.shut, "it has only just been answered"
    desk.wait(2)
    assert caller.handle in desk.shut


def test_a_broken_stream_is_closed_behind_the_answer_to_what_came_before() -> None:
    desk, store, caller = _asking()
    caller.send(_request(caller, Method.REFRESH) + b"\xff\xff\xff\xff")
    assert caller.handle not in desk.shut
    store.answer(desk)
    (answer,) = caller.fetch()
    assert code(decode(answer)) == 0
    assert caller.handle in desk.shut
    assert desk.server.drops == {DropReason.NOT_STUN: 1}


def test_long_messages_behind_the_request_that_allows_them() -> None:
    store = Asking()
    desk = Desk(users=store, limits=UNLIMITED)
    caller = desk.caller(transport=Transport.TCP)
    caller.ask(Method.REFRESH)
    fresh = desk.caller(transport=Transport.TCP)
    store.at_once = False
    fresh.send(_request(caller, Method.REFRESH) + channel_data(0x4000, bytes(8000), pad=True))
    store.answer(desk)
    assert fresh.handle not in desk.shut
    assert desk.server.drops == {DropReason.NO_ALLOCATION: 1}


def test_who_takes_no_answers_is_not_read_from_after_a_wait_either() -> None:
    """Once it was told when to read, a driver leaves it to the server (stun.sansio.Hold)."""
    desk, store, caller = _asking()
    desk.tell(Congested(caller.handle))
    desk.tell(Relieved(caller.handle))
    assert desk.holds == 0, "so far the driver decides"
    refresh = _request(caller, Method.REFRESH)
    caller.send(refresh)
    desk.tell(Congested(caller.handle))
    store.answer(desk)
    assert not _is_read(desk, caller.handle)
    desk.tell(Relieved(caller.handle))
    assert _is_read(desk, caller.handle)
    desk.tell(Congested(caller.handle))
    assert not _is_read(desk, caller.handle)
    caller.send(refresh)
    desk.tell(Relieved(caller.handle))
    assert not _is_read(desk, caller.handle)
    store.answer(desk)
    assert _is_read(desk, caller.handle)
    assert desk.holds == 4


# What happens meanwhile. --------------------------------------------------------------------------


def _waiting(**options: Any) -> tuple[Desk, Caller, LookUp]:
    """Return a client on a stream whose Refresh waits, with data and a Binding behind it."""
    desk, store, caller = _asking(**options)
    caller.refresh()
    assert caller.send(channel_data(0x4000, b"data", pad=True) + _binding()) == []
    store.at_once = True
    (lookup,) = desk.told(LookUp)
    assert caller.handle in desk.unread
    return desk, caller, lookup


def _found(desk: Desk, caller: Caller, lookup: LookUp) -> list[tuple[int, int]]:
    """Answer the question; return the methods and codes of what the client gets."""
    desk.server.found(lookup, desk.now)
    desk.pump()
    answers = [decode(octets) for octets in caller.fetch()]
    return [(answer.method, code(answer)) for answer in answers]


def test_stopped_while_a_stream_waits() -> None:
    desk, caller, lookup = _waiting()
    desk.server.stop(desk.now)
    desk.pump()
    assert caller.handle in desk.shut
    assert _found(desk, caller, lookup) == []
    desk.wait(10)
    assert caller.fetch() == []
    assert desk.server.deadline() is None
    assert desk.server._core.quotas.connections == 0


def test_drained_while_a_stream_waits() -> None:
    desk, caller, lookup = _waiting()
    desk.server.drain(desk.now)
    assert _found(desk, caller, lookup) == [(Method.REFRESH, 0), (Method.BINDING, 0)]
    assert [sent.data for sent in desk.sent] == [b"data"]
    caller.refresh(0)
    assert len(desk.told(Drained)) == 1
    assert code(caller.ask(Method.ALLOCATE, TRANSPORT)) == ErrorCode.INSUFFICIENT_CAPACITY


def test_disconnected_while_a_stream_waits() -> None:
    desk, caller, lookup = _waiting()
    assert desk.server.disconnect(desk.now, username="alice") == 1
    mismatch = (Method.REFRESH, ErrorCode.ALLOCATION_MISMATCH)
    assert _found(desk, caller, lookup) == [mismatch, (Method.BINDING, 0)]
    assert desk.sent == []
    assert desk.server.drops == {DropReason.NO_ALLOCATION: 1}
    assert caller.handle not in desk.unread


def test_an_allocation_expires_while_its_stream_waits() -> None:
    desk, caller, lookup = _waiting(default_lifetime=SECOND, max_lifetime=SECOND)
    desk.wait(2)
    assert len(desk.ended) == 1
    mismatch = (Method.REFRESH, ErrorCode.ALLOCATION_MISMATCH)
    assert _found(desk, caller, lookup) == [mismatch, (Method.BINDING, 0)]
    desk.wait(61)
    assert caller.handle in desk.shut


def test_other_users_while_a_stream_waits() -> None:
    desk, caller, lookup = _waiting()
    desk.server.reconfigure(desk.config, StaticUsers({}, REALM), desk.now)
    unknown = (Method.REFRESH, ErrorCode.UNAUTHENTICATED)
    assert _found(desk, caller, lookup) == [unknown, (Method.BINDING, 0)]
    assert [sent.data for sent in desk.sent] == [b"data"]
