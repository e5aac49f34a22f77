"""Client and server over a network that loses, repeats, reorders and forges, on virtual time."""

from __future__ import annotations

import heapq
import itertools
import random

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from stun.attributes import XOR_MAPPED_ADDRESS
from stun.auth_server import Authenticator, Rejected, StaticUsers
from stun.client import Client, Failed, FailureCause, Reply, mapped_address
from stun.codec import decode, encode
from stun.credentials import LongTerm, ShortTerm
from stun.errors import Dropped
from stun.message import Message
from stun.nonce import NonceMaker, NonceState
from stun.registry import PasswordAlgorithm, SecurityFeature
from stun.sansio import MILLISECOND, SECOND, Address, Received, Transmit
from stun.strings import StringError
from stun.transaction import Schedule, Step, Transaction

SERVER, LOCAL = Address("192.0.2.1", 3478), Address("192.0.2.2", 40000)
MAPPED = Address("203.0.113.9", 61000)
MAKER = NonceMaker([b"a secret of sixteen octets"], lifetime=5)


def authenticator(username, password, **options):
    users = StaticUsers({username: password}, "example.org")
    return Authenticator("example.org", users, MAKER, **options)


class Network:
    """Datagrams under way, a server at the end, and somebody between who spoils answers."""

    def __init__(self, rng: random.Random, client: Client, server, *, loss: float) -> None:
        self.rng, self.client, self.server, self.loss = rng, client, server, loss
        self.now = 0
        self.under_way: list[tuple[int, int, bytes, bool]] = []
        self.count = itertools.count()
        self.sends: dict[bytes, list[tuple[int, bytes]]] = {}
        self.events: list[Reply | Failed] = []
        self.drops = 0
        self.sealed = False

    def travel(self, data: bytes, *, to_server: bool) -> None:
        for _ in range(self.rng.choice((1, 1, 1, 2))):
            if self.rng.random() >= self.loss:
                at = self.now + self.rng.randrange(1, 400) * MILLISECOND
                heapq.heappush(self.under_way, (at, next(self.count), data, to_server))

    def drain(self) -> None:
        for output in iter(self.client.poll, None):
            match output:
                case Transmit():
                    self.sends.setdefault(output.data[8:20], []).append((self.now, output.data))
                    self.travel(output.data, to_server=True)
                case Reply() | Failed():
                    self.events.append(output)
                case Dropped():
                    self.drops += 1

    def answer(self, data: bytes) -> bytes:
        request = decode(data)
        response = Message.success(request).add(XOR_MAPPED_ADDRESS, MAPPED)
        self.sealed = False
        if self.server is None:
            return encode(response)
        outcome = self.server.validate(request, LOCAL, self.now)
        if isinstance(outcome, Rejected):
            return encode(outcome.response(request))
        self.sealed = True
        return outcome.seal(response)

    def run(self) -> None:
        self.drain()
        while self.client.open_requests:
            due = self.client.deadline()
            assert due is not None
            if self.under_way and self.under_way[0][0] <= due:
                self.now, _, data, to_server = heapq.heappop(self.under_way)
                if to_server:
                    reply = self.answer(data)
                    self.travel(reply, to_server=False)
                    if self.server is not None and self.sealed and self.rng.random() < 0.1:
                        # What nothing protects, anybody on the path can spoil; this is protected.
                        spoiled = bytearray(reply)
                        spoiled[self.rng.randrange(len(spoiled))] ^= 1 << self.rng.randrange(8)
                        self.travel(bytes(spoiled), to_server=False)
                else:
                    self.client.receive(Received(data, SERVER, LOCAL), self.now)
            else:
                self.now = due
                self.client.on_deadline(due)
            self.drain()


@pytest.mark.parametrize("loss", [0.0, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("kind", ["open", "long-term"])
def test_every_request_ends_once_and_keeps_its_schedule(rng, kind, loss):
    for _ in range(25):
        client = Client(entropy=rng.randbytes)
        server = authenticator("user", "pass") if kind == "long-term" else None
        network = Network(rng, client, server, loss=loss)
        credentials = LongTerm("user", "pass") if server else None
        names = []
        for _ in range(rng.randrange(1, 5)):
            names.append(
                client.request(
                    destination=SERVER, source=LOCAL, now=network.now, credentials=credentials
                )
            )
        network.run()
        assert sorted(event.transaction_id for event in network.events) == sorted(names)
        if loss == 0 and kind == "open":
            assert all(isinstance(event, Reply) for event in network.events)
        if loss == 1:
            assert {event.cause for event in network.events} == {FailureCause.TIMED_OUT}
            assert network.now == 39_500 * MILLISECOND
        for sends in network.sends.values():
            # Octet for octet the same, never more than Rc, and each silence twice the one before.
            assert len({data for _, data in sends}) == 1
            assert len(sends) <= 7
            times = [at for at, _ in sends]
            gaps = [after - before for before, after in itertools.pairwise(times)]
            assert all(after == 2 * before for before, after in itertools.pairwise(gaps))
        for event in network.events:
            if isinstance(event, Reply):
                assert event.authenticated == (kind == "long-term")
                assert event.rtt is None or event.attempts == 1
                if event.authenticated:
                    assert mapped_address(event.message) == MAPPED


# Printable in any script: what people have as names and passwords.
WORDS = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=12)
OFFERS = st.permutations([PasswordAlgorithm.MD5, PasswordAlgorithm.SHA256]).flatmap(
    lambda both: st.sampled_from([(), both[:1], both])
)


@settings(max_examples=300, deadline=None)
@given(WORDS, WORDS, OFFERS, st.booleans())
def test_client_and_server_derive_the_same_key(username, password, offer, anonymous):
    try:
        credentials = LongTerm(username, password)
        # The server sends the nonce cookie, so the strings have to be OpaqueStrings.
        credentials.key("example.org")
    except StringError:
        assume(False)
    client = Client(entropy=random.Random(0).randbytes)
    server = authenticator(username, password, algorithms=offer, anonymous=anonymous)
    network = Network(random.Random(1), client, server, loss=0)
    client.request(destination=SERVER, source=LOCAL, now=0, credentials=credentials)
    network.run()
    (event,) = network.events
    assert isinstance(event, Reply), event
    assert event.authenticated


@settings(max_examples=200, deadline=None)
@given(WORDS, WORDS, WORDS)
def test_no_other_password_will_do(username, password, other):
    try:
        credentials = LongTerm(username, other)
        if credentials.key("example.org") == LongTerm(username, password).key("example.org"):
            assume(False)
    except StringError:
        assume(False)
    client = Client(entropy=random.Random(0).randbytes)
    network = Network(random.Random(1), client, authenticator(username, password), loss=0)
    client.request(destination=SERVER, source=LOCAL, now=0, credentials=credentials)
    network.run()
    (event,) = network.events
    assert isinstance(event, Failed)
    assert event.cause is FailureCause.AUTHENTICATION


@settings(max_examples=200, deadline=None)
@given(st.binary(min_size=20, max_size=120), st.integers(0, 2))
def test_nothing_unproved_ends_a_short_term_request(data, how):
    client = Client(entropy=random.Random(0).randbytes)
    client.request(
        destination=SERVER, source=LOCAL, now=0, credentials=ShortTerm("user", "password")
    )
    sent = client.poll()
    assert isinstance(sent, Transmit)
    head = (b"\x01\x01", b"\x01\x11", b"\x01\x01")[how]
    length = (len(data) - 20) & 0xFFFC
    forged = head + length.to_bytes(2) + sent.data[4:20] + data[20 : 20 + length]
    client.receive(Received(forged, SERVER, LOCAL), 1)
    assert isinstance(client.poll(), Dropped)
    assert client.open_requests == 1


INTERVALS = st.lists(st.integers(1, 10 * SECOND), max_size=10)


@given(INTERVALS, st.integers(1, 10 * SECOND), st.lists(st.integers(0, 30 * SECOND), max_size=30))
def test_a_transaction_never_sends_early_nor_too_often(intervals, final, calls):
    schedule = Schedule.fixed(intervals, final)
    transaction = Transaction(schedule, 0)
    last, sends = 0, 1
    for now in sorted(calls):
        step = transaction.on_deadline(now)
        silence = [*intervals, final][sends - 1]
        if step is Step.SEND_AGAIN:
            assert now - last >= silence
            last, sends = now, sends + 1
        elif step is Step.GIVE_UP:
            assert sends == len(intervals) + 1
            assert now - last >= silence
            return
        else:
            assert now < last + silence == transaction.deadline
    assert transaction.sends == sends <= schedule.sends


ADDRESSES = st.builds(
    Address,
    st.ip_addresses(v=4).map(str) | st.ip_addresses(v=6).map(str),
    st.integers(0, 0xFFFF),
)


@given(ADDRESSES, ADDRESSES, st.integers(0, 1 << 33), st.integers(0, 20), st.booleans())
def test_a_nonce_is_for_its_client_and_its_time(client, other, made, later, anonymous):
    features = [SecurityFeature.USERNAME_ANONYMITY] if anonymous else []
    nonce = MAKER.make(client, made, features)
    expected = NonceState.VALID if later <= 5 else NonceState.EXPIRED
    assert MAKER.check(nonce, client, made + later) is expected
    if other != client:
        assert MAKER.make(other, made, features) != nonce
    expected = expected if other.host == client.host else NonceState.FOREIGN
    assert MAKER.check(nonce, other, made + later) is expected
