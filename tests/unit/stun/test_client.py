"""The client machine, as a playbook: what is asked, what happens, what comes out."""

from __future__ import annotations

import itertools

import pytest

from stun.attributes import (
    MAPPED_ADDRESS,
    NONCE,
    PASSWORD_ALGORITHMS,
    REALM,
    SOFTWARE,
    UNKNOWN_ATTRIBUTES,
    USERNAME,
    XOR_MAPPED_ADDRESS,
    XOR_PEER_ADDRESS,
    Algorithm,
)
from stun.auth_client import AuthenticationFailed, IntegrityViolated
from stun.auth_server import Accepted as Authentic
from stun.auth_server import Authenticator, Rejected, StaticUsers
from stun.client import (
    Client,
    Config,
    Failed,
    FailureCause,
    Indication,
    NotUnderstood,
    Reply,
    TryAlternate,
    UnknownAttributeResponse,
    mapped_address,
)
from stun.codec import decode, encode
from stun.credentials import LongTerm, ShortTerm
from stun.errors import (
    Dropped,
    DropReason,
    ErrorResponse,
    TransactionTimedOut,
    TransportFailed,
    UsageError,
)
from stun.integrity import check_fingerprint
from stun.message import Message
from stun.nonce import NonceMaker
from stun.registry import Class, Method
from stun.sansio import (
    MILLISECOND,
    SECOND,
    Accepted,
    Address,
    Arrived,
    Cause,
    Closed,
    Connected,
    Opened,
    Received,
    Transmit,
    Undeliverable,
    Write,
)
from stun.transaction import Schedule

MS = MILLISECOND
SERVER = Address("192.0.2.1", 3478)
OTHER = Address("192.0.2.2", 3479)
LOCAL = Address("10.0.0.2", 40000)
MAPPED = Address("203.0.113.5", 4711)
SERVER6 = Address("2001:db8::1", 3478)
LOCAL6 = Address("2001:db8::2", 40000)
USER = LongTerm("user", "pass")


def counting():
    """Entropy that never repeats: 1, 2, 3, ..."""
    numbers = itertools.count(1)
    return lambda size: next(numbers).to_bytes(size, "big")


def make(**config):
    return Client(Config(**config), entropy=counting())


def drain(client):
    return list(iter(client.poll, None))


def sent(client):
    """The one message that the client sends now."""
    (output,) = drain(client)
    assert isinstance(output, Transmit | Write)
    return decode(output.data)


def ask(client, message=None, **options):
    options = {"destination": SERVER, "source": LOCAL, "now": 0, **options}
    return client.request(message, **options)


def answer(request, address=MAPPED):
    return Message.success(request).add(XOR_MAPPED_ADDRESS, address)


def arrive(client, message, now=30 * MS, *, source=SERVER, local=LOCAL, **proof):
    data = message if isinstance(message, bytes) else encode(message, **proof)
    client.receive(Received(data, source, local), now)
    return drain(client)


def dropped(outputs, reason):
    (output,) = outputs
    assert isinstance(output, Dropped)
    assert output.reason is reason
    return output


class TestRequest:
    def test_a_plain_binding_request(self):
        client = make()
        name = ask(client)
        (output,) = drain(client)
        assert isinstance(output, Transmit)
        assert (output.destination, output.source) == (SERVER, LOCAL)
        message = decode(output.data)
        assert (message.method, message.message_class) == (Method.BINDING, Class.REQUEST)
        assert message.transaction_id == name
        assert message.get(SOFTWARE) == "natkit"
        assert [code for code, _ in message.attributes] == [SOFTWARE.code]

    def test_software_is_configurable(self):
        client = make(software=None)
        ask(client)
        assert sent(client).attributes == []

    def test_a_message_of_ones_own_goes_out_as_it_is(self):
        client = make()
        message = Message.request(Method.ALLOCATE, bytes(range(12)))
        assert ask(client, message) == bytes(range(12))
        assert sent(client) == message

    def test_fingerprint_on_request(self):
        client = make(fingerprint=True)
        ask(client)
        assert check_fingerprint(sent(client))

    def test_usage(self):
        client = make()
        message = Message.request(Method.BINDING, bytes(12))
        ask(client, message)
        with pytest.raises(UsageError, match="in use"):
            ask(client, message)
        with pytest.raises(UsageError, match="not a request"):
            ask(client, Message.indication(Method.BINDING, bytes(12)))
        with pytest.raises(UsageError, match="12"):
            ask(client, Message.request(Method.BINDING, b"short"))
        assert client.open_requests == 1

    def test_cancel(self):
        client = make()
        name = ask(client)
        request = sent(client)
        client.cancel(name)
        assert client.open_requests == 0
        assert client.deadline() is None
        dropped(arrive(client, answer(request)), DropReason.UNKNOWN_TRANSACTION)
        client.cancel(name)
        client.cancel(b"never heard of")
        assert drain(client) == []


class TestRetransmission:
    def test_times_and_octets(self):
        client = make()
        name = ask(client, now=7)
        first = drain(client)
        times = []
        while client.open_requests:
            at = client.deadline()
            assert at is not None
            client.on_deadline(at - 1)
            assert drain(client) == []
            client.on_deadline(at)
            outputs = drain(client)
            times.append((at - 7) // MS)
            if client.open_requests:
                assert outputs == first  # octet for octet
        assert times == [500, 1500, 3500, 7500, 15500, 31500, 39500]
        (failed,) = outputs
        assert isinstance(failed, Failed)
        assert (failed.transaction_id, failed.cause) == (name, FailureCause.TIMED_OUT)
        assert isinstance(failed.error, TransactionTimedOut)
        assert (failed.message, failed.source, failed.attempts) == (None, None, 7)

    def test_a_schedule_of_ones_own(self):
        client = make()
        ask(client, schedule=Schedule.fixed([10 * MS], 20 * MS))
        drain(client)
        client.on_deadline(10 * MS)
        assert isinstance(drain(client)[0], Transmit)
        client.on_deadline(30 * MS)
        assert isinstance(drain(client)[0], Failed)

    def test_configured_rto_rc_rm(self):
        client = make(rto=100 * MS, rc=1, rm=3)
        ask(client)
        assert client.deadline() == 300 * MS

    def test_the_round_trip_time_of_an_answer_to_the_first_send(self):
        client = make()
        ask(client, now=5)
        (reply,) = arrive(client, answer(sent(client)), now=5 + 42 * MS)
        assert (reply.rtt, reply.attempts) == (42 * MS, 1)

    def test_karn(self):
        client = make()
        ask(client)
        request = sent(client)
        client.on_deadline(500 * MS)
        drain(client)
        (reply,) = arrive(client, answer(request), now=501 * MS)
        assert (reply.rtt, reply.attempts) == (None, 2)

    def test_a_slow_server_is_given_more_time_next_time(self):
        # RFC 8489 6.2.1: "The value for RTO SHOULD be cached by a client".
        client = make()
        ask(client)
        arrive(client, answer(sent(client)), now=400 * MS)
        ask(client, now=SECOND)
        assert client.deadline() == SECOND + 3 * 400 * MS
        ask(client, destination=OTHER, now=SECOND)
        assert client.deadline() == SECOND + 500 * MS

    def test_many_at_once(self):
        client = make()
        names = [ask(client, now=n * MS) for n in range(20)]
        requests = [decode(output.data) for output in drain(client)]
        assert client.deadline() == 500 * MS
        for name, request in reversed(list(zip(names, requests, strict=True))):
            (reply,) = arrive(client, answer(request))
            assert reply.transaction_id == name
        assert client.open_requests == 0
        assert client.deadline() is None


class TestReply:
    def test_what_it_says(self):
        client = make()
        name = ask(client)
        (reply,) = arrive(client, answer(sent(client)))
        assert isinstance(reply, Reply)
        assert reply.transaction_id == reply.message.transaction_id == name
        assert (reply.source, reply.local, reply.handle) == (SERVER, LOCAL, None)
        assert mapped_address(reply.message) == MAPPED
        assert not reply.authenticated

    def test_only_once(self):
        client = make()
        ask(client)
        request = sent(client)
        arrive(client, answer(request))
        dropped(arrive(client, answer(request)), DropReason.UNKNOWN_TRANSACTION)

    def test_a_server_of_rfc3489(self):
        # It knows neither the cookie nor XOR-MAPPED-ADDRESS, and returns all 16 octets.
        client = make()
        ask(client)
        request = sent(client)
        data = bytearray(encode(Message.success(request).add(MAPPED_ADDRESS, MAPPED)))
        assert data[4:20] == encode(request)[4:20]
        (reply,) = arrive(client, bytes(data))
        assert mapped_address(reply.message) == MAPPED

    def test_speaking_rfc3489(self):
        client = make()
        message = Message(Method.BINDING, Class.REQUEST, bytes(12), cookie=0x01020304)
        ask(client, message)
        request = sent(client)
        assert request.is_rfc3489
        stranger = Message(Method.BINDING, Class.SUCCESS, bytes(12))
        dropped(arrive(client, stranger), DropReason.UNKNOWN_TRANSACTION)
        (reply,) = arrive(client, Message.success(request).add(MAPPED_ADDRESS, MAPPED))
        assert isinstance(reply, Reply)

    def test_another_source_is_told_or_refused(self):
        client = make()
        ask(client)
        (reply,) = arrive(client, answer(sent(client)), source=OTHER)
        assert reply.source == OTHER
        ask(client, accept_from=frozenset({SERVER}))
        request = sent(client)
        drop = dropped(arrive(client, answer(request), source=OTHER), DropReason.UNEXPECTED_SOURCE)
        assert drop.source == OTHER
        (reply,) = arrive(client, answer(request), source=SERVER)
        assert isinstance(reply, Reply)

    def test_another_socket(self):
        client = make()
        ask(client)
        request = sent(client)
        for local in (Address("10.0.0.2", 40001), Address("10.0.0.3", 40000)):
            dropped(arrive(client, answer(request), local=local), DropReason.UNEXPECTED_SOURCE)
        assert client.open_requests == 1

    @pytest.mark.parametrize("host", ["0.0.0.0", "::"])
    def test_a_socket_bound_to_any_address(self, host):
        client = make()
        ask(client, source=Address(host, 40000))
        request = sent(client)
        elsewhere = Address("10.0.0.2", 40001)
        dropped(arrive(client, answer(request), local=elsewhere), DropReason.UNEXPECTED_SOURCE)
        (reply,) = arrive(client, answer(request), local=LOCAL)
        assert reply.local == LOCAL


class TestDrops:
    @pytest.mark.parametrize(
        ("data", "reason"),
        [
            (b"", DropReason.TOO_SHORT),
            (b"\x00" * 19, DropReason.TOO_SHORT),
            (b"\x80" + bytes(19), DropReason.NOT_STUN),
            (bytes.fromhex("0101000421 12a442") + bytes(12), DropReason.LENGTH_MISMATCH),
            (
                bytes.fromhex("0101000421 12a442") + bytes(12) + b"\0\x20\0\x08",
                DropReason.ATTRIBUTE_OVERRUN,
            ),
        ],
    )
    def test_what_is_no_message(self, data, reason):
        client = make()
        ask(client)
        drain(client)
        assert dropped(arrive(client, data), reason).source == SERVER
        assert client.open_requests == 1

    def test_a_flood_of_strangers_costs_no_memory(self, rng):
        client = make()
        ask(client)
        drain(client)
        for _ in range(1000):
            stranger = answer(Message.request(Method.BINDING, rng.randbytes(12)))
            dropped(arrive(client, stranger), DropReason.UNKNOWN_TRANSACTION)
        assert client.open_requests == 1
        assert len(client._pending) == len(client._names) == len(client._timers) == 1
        assert len(client._rtt) == len(client._sessions) == len(client._streams) == 0

    def test_requests_are_not_answered(self):
        client = make()
        message = Message.request(Method.BINDING, bytes(12))
        dropped(arrive(client, message), DropReason.UNEXPECTED_CLASS)

    def test_another_method(self):
        client = make()
        ask(client)
        request = sent(client)
        wrong = Message(Method.ALLOCATE, Class.SUCCESS, request.transaction_id)
        dropped(arrive(client, wrong), DropReason.UNKNOWN_METHOD)
        assert client.open_requests == 1

    def test_a_wrong_fingerprint(self):
        client = make()
        ask(client)
        request = sent(client)
        data = bytearray(encode(answer(request), fingerprint=True))
        data[-1] ^= 1
        dropped(arrive(client, bytes(data)), DropReason.BAD_FINGERPRINT)
        data[-1] ^= 1
        (reply,) = arrive(client, bytes(data))
        assert isinstance(reply, Reply)

    def test_a_missing_fingerprint_where_it_is_used(self):
        client = make(fingerprint=True)
        ask(client)
        request = sent(client)
        dropped(arrive(client, answer(request)), DropReason.BAD_FINGERPRINT)
        (reply,) = arrive(client, answer(request), fingerprint=True)
        assert isinstance(reply, Reply)

    def test_a_malformed_challenge_does_not_end_the_request(self):
        client = make()
        ask(client, credentials=USER)
        request = sent(client)
        wrong = Message.error(request, 401)
        wrong.attributes += [(REALM.code, b"\xff"), (NONCE.code, b"n")]
        dropped(arrive(client, wrong), DropReason.BAD_ATTRIBUTE_VALUE)
        assert client.open_requests == 1


class TestErrors:
    def failed(self, response, cause, **options):
        client = make()
        name = ask(client, **options)
        request = sent(client)
        (failed,) = arrive(client, response(request))
        assert isinstance(failed, Failed)
        assert (failed.transaction_id, failed.cause) == (name, cause)
        assert failed.source == SERVER
        assert failed.message is not None
        assert client.open_requests == 0
        assert client.deadline() is None
        return failed.error

    def test_an_ordinary_error(self):
        error = self.failed(
            lambda request: Message.error(request, 500), FailureCause.ERROR_RESPONSE
        )
        assert type(error) is ErrorResponse
        assert error.code == 500

    def test_420(self):
        error = self.failed(
            lambda request: Message.error(request, 420).add(UNKNOWN_ATTRIBUTES, (3,)),
            FailureCause.ERROR_RESPONSE,
        )
        assert isinstance(error, UnknownAttributeResponse)
        assert error.attributes == (3,)

    def test_300(self):
        error = self.failed(
            lambda request: Message.error(request, 300), FailureCause.ERROR_RESPONSE
        )
        assert isinstance(error, TryAlternate)

    def test_401_without_credentials(self):
        error = self.failed(
            lambda request: Message.error(request, 401), FailureCause.ERROR_RESPONSE
        )
        assert isinstance(error, ErrorResponse)

    @pytest.mark.parametrize("message_class", [Class.SUCCESS, Class.ERROR])
    def test_unknown_attributes_that_must_be_understood(self, message_class):
        # RFC 8489 6.3.3: "the response is discarded and the transaction is considered to have
        # failed"; 6.3.4: "the transaction is simply considered to have failed".
        def respond(request):
            unknown = [(0x8FFF, b""), (0x7FFF, b""), (0x7FFE, b"")]
            return Message(request.method, message_class, request.transaction_id, unknown)

        error = self.failed(respond, FailureCause.NOT_UNDERSTOOD)
        assert isinstance(error, NotUnderstood)
        assert error.attributes == (0x7FFF, 0x7FFE)

    def test_what_is_understood_is_configurable(self):
        client = make(understood=frozenset({0x7FFF}))
        ask(client)
        request = sent(client)
        message = Message.success(request)
        message.attributes.append((0x7FFF, b""))
        (reply,) = arrive(client, message)
        assert isinstance(reply, Reply)

    def test_no_error_code(self):
        error = self.failed(
            lambda request: Message(request.method, Class.ERROR, request.transaction_id),
            FailureCause.NOT_UNDERSTOOD,
        )
        assert isinstance(error, NotUnderstood)


class TestIcmp:
    @pytest.mark.parametrize(
        ("local", "server", "icmp", "hard"),
        [
            (LOCAL, SERVER, (3, 3), True),  # port unreachable
            (LOCAL, SERVER, (3, 2), True),
            (LOCAL, SERVER, (3, 13), True),  # administratively prohibited
            (LOCAL, SERVER, (3, 0), False),
            (LOCAL, SERVER, (3, 1), False),
            (LOCAL, SERVER, (3, 4), False),  # the next send may be fragmented
            (LOCAL, SERVER, (11, 0), False),
            (LOCAL6, SERVER6, (1, 4), True),
            (LOCAL6, SERVER6, (1, 1), True),
            (LOCAL6, SERVER6, (1, 0), False),
            (LOCAL6, SERVER6, (2, 0), False),
            (LOCAL6, SERVER6, (3, 3), False),
        ],
    )
    def test_only_hard_errors_end_a_request(self, local, server, icmp, hard):
        client = make()
        name = ask(client, source=local, destination=server)
        drain(client)
        client.on_socket(Undeliverable(local, server, *icmp), MS)
        outputs = drain(client)
        if not hard:
            assert outputs == []
            assert client.open_requests == 1
            return
        (failed,) = outputs
        assert isinstance(failed, Failed)
        assert (failed.transaction_id, failed.cause) == (name, FailureCause.TRANSPORT)
        assert isinstance(failed.error, TransportFailed)

    def test_only_what_went_that_way(self):
        client = make()
        ask(client)
        ask(client, destination=OTHER)
        ask(client, source=Address("10.0.0.2", 40001))
        drain(client)
        client.on_socket(Undeliverable(LOCAL, SERVER, 3, 3), MS)
        assert len(drain(client)) == 1
        assert client.open_requests == 2


class TestIndication:
    def test_datagram(self):
        client = make()
        message = Message.indication(Method.BINDING, bytes(12))
        (event,) = arrive(client, message)
        assert isinstance(event, Indication)
        assert (event.source, event.local, event.handle) == (SERVER, LOCAL, None)

    def test_unknown_attributes_that_must_be_understood(self):
        message = Message.indication(Method.BINDING, bytes(12))
        message.attributes.append((0x7FFF, b""))
        dropped(arrive(make(), message), DropReason.UNKNOWN_COMPREHENSION_REQUIRED)

    def test_a_wrong_fingerprint(self):
        message = encode(Message.indication(Method.BINDING, bytes(12)), fingerprint=True)
        dropped(arrive(make(), message[:-1] + b"\0"), DropReason.BAD_FINGERPRINT)


class TestStream:
    HANDLE = 5

    def connected(self, **config):
        client = make(**config)
        client.on_socket(Connected(self.HANDLE, LOCAL, SERVER), 0)
        return client

    def feed(self, client, data, now=MS):
        client.on_socket(Arrived(self.HANDLE, data), now)
        return drain(client)

    def test_a_request_and_its_answer_in_pieces(self):
        client = self.connected()
        name = client.request_over(self.HANDLE, now=0)
        (output,) = drain(client)
        assert isinstance(output, Write)
        assert output.handle == self.HANDLE
        data = encode(answer(decode(output.data)))
        for octet in data[:-1]:
            assert self.feed(client, bytes((octet,))) == []
        (reply,) = self.feed(client, data[-1:], now=3 * MS)
        assert isinstance(reply, Reply)
        assert (reply.transaction_id, reply.handle) == (name, self.HANDLE)
        assert (reply.source, reply.local, reply.rtt) == (SERVER, LOCAL, 3 * MS)

    def test_several_in_one_piece_and_in_another_order(self):
        client = self.connected()
        names = [client.request_over(self.HANDLE, now=0) for _ in range(3)]
        requests = [decode(output.data) for output in drain(client)]
        data = b"".join(encode(answer(request)) for request in reversed(requests))
        replies = self.feed(client, data)
        assert [reply.transaction_id for reply in replies] == names[::-1]

    def test_no_retransmission_and_39500_ms(self):
        client = self.connected()
        client.request_over(self.HANDLE, now=0)
        drain(client)
        assert client.deadline() == 39_500 * MS
        client.on_deadline(39_500 * MS)
        (failed,) = drain(client)
        assert (failed.cause, failed.attempts) == (FailureCause.TIMED_OUT, 1)

    def test_ti_is_configurable(self):
        client = self.connected(ti=2 * SECOND)
        client.request_over(self.HANDLE, now=0)
        assert client.deadline() == 2 * SECOND

    def test_an_accepted_stream_will_do(self):
        client = make()
        client.on_socket(Accepted(1, -1, LOCAL, SERVER), 0)
        client.request_over(-1, now=0)
        assert isinstance(drain(client)[0], Write)

    @pytest.mark.parametrize("detail", ["", "by a middlebox"])
    def test_the_end_of_the_stream_ends_its_requests(self, detail):
        client = self.connected()
        name = client.request_over(self.HANDLE, now=0)
        ask(client)
        drain(client)
        client.on_socket(Closed(self.HANDLE, Cause.RESET, detail), MS)
        (failed,) = drain(client)
        assert (failed.transaction_id, failed.cause) == (name, FailureCause.TRANSPORT)
        assert Cause.RESET.value in str(failed.error)
        assert detail in str(failed.error)
        assert client.open_requests == 1
        with pytest.raises(UsageError, match="not connected"):
            client.request_over(self.HANDLE, now=MS)

    def test_a_stream_that_its_owner_shut_is_forgotten_with_its_requests(self):
        client = make()
        client.on_socket(Connected(3, LOCAL, SERVER), 0)
        client.on_socket(Connected(4, LOCAL, OTHER), 0)
        gone, stays = client.request_over(3, now=0), client.request_over(4, now=0)
        drain(client)
        client.forget(3)
        client.forget(3)
        assert drain(client) == []
        assert client.open_requests == 1
        with pytest.raises(UsageError, match="not connected"):
            client.request_over(3, now=0)
        client.cancel(gone)
        client.cancel(stays)
        assert client.deadline() is None

    def test_a_stream_that_loses_its_framing(self):
        client = self.connected()
        name = client.request_over(self.HANDLE, now=0)
        request = sent(client)
        drop, failed = self.feed(client, b"HTTP/1.1 400 Bad Request\r\n\r\n")
        assert isinstance(drop, Dropped)
        assert drop.reason is DropReason.NOT_STUN
        assert (failed.transaction_id, failed.cause) == (name, FailureCause.TRANSPORT)
        # Nothing that comes later is believed, and nothing is kept of it.
        dropped(self.feed(client, encode(answer(request))), DropReason.NOT_STUN)
        late = client.request_over(self.HANDLE, now=2 * MS)
        _, failed = drain(client)
        assert (failed.transaction_id, failed.cause) == (late, FailureCause.TRANSPORT)
        assert client.open_requests == 0

    def test_an_answer_must_come_on_the_stream_that_asked(self):
        client = self.connected()
        client.on_socket(Connected(6, LOCAL, SERVER), 0)
        client.request_over(self.HANDLE, now=0)
        request = sent(client)
        client.on_socket(Arrived(6, encode(answer(request))), MS)
        dropped(drain(client), DropReason.UNEXPECTED_SOURCE)
        dropped(arrive(client, answer(request)), DropReason.UNEXPECTED_SOURCE)
        (reply,) = self.feed(client, encode(answer(request)))
        assert isinstance(reply, Reply)

    def test_an_answer_to_a_datagram_must_be_one(self):
        client = self.connected()
        ask(client)
        request = sent(client)
        dropped(self.feed(client, encode(answer(request))), DropReason.UNEXPECTED_SOURCE)

    def test_an_indication(self):
        client = self.connected()
        message = Message.indication(Method.BINDING, bytes(12))
        (event,) = self.feed(client, encode(message))
        assert event == Indication(decode(encode(message)), SERVER, LOCAL, self.HANDLE)

    def test_unknown_streams(self):
        client = make()
        client.on_socket(Arrived(9, b"x"), 0)
        dropped(drain(client), DropReason.UNKNOWN_STREAM)
        client.on_socket(Closed(9, Cause.RESET), 0)
        client.on_socket(Opened(9, LOCAL), 0)
        assert drain(client) == []
        with pytest.raises(UsageError, match="9"):
            client.request_over(9, now=0)

    def test_icmp_is_not_for_streams(self):
        client = self.connected()
        client.request_over(self.HANDLE, now=0)
        drain(client)
        client.on_socket(Undeliverable(LOCAL, SERVER, 3, 3), MS)
        assert drain(client) == []


class Server:
    """A server of the long-term mechanism, of natkit's own making."""

    def __init__(self, **options):
        self.options = {"users": StaticUsers({"user": "pass"}, "example.org"), **options}
        self.nonces = NonceMaker([b"0123456789abcdef"], lifetime=600)
        self.authenticator = Authenticator("example.org", nonces=self.nonces, **self.options)
        self.codes = []

    def __call__(self, data, source=LOCAL, now=0):
        request = decode(data)
        outcome = self.authenticator.validate(request, source, now)
        match outcome:
            case Rejected():
                self.codes.append(int(outcome.code))
                return encode(outcome.response(request))
            case Authentic():
                self.codes.append(0)
                return outcome.seal(answer(request, source))


def converse(client, server, *, handle=None, source=LOCAL, now=0):
    """Carry octets to the server and back until the client has an event."""
    for _ in range(20):
        events = []
        for output in drain(client):
            if isinstance(output, Transmit):
                client.receive(Received(server(output.data, source, now), SERVER, source), now)
            elif isinstance(output, Write):
                client.on_socket(Arrived(handle, server(output.data, source, now)), now)
            else:
                events.append(output)
        if events:
            return events
    pytest.fail("no end to it")


class TestLongTerm:
    @pytest.mark.parametrize("options", [{}, {"algorithms": ()}, {"anonymous": True}])
    def test_from_bare_request_to_authenticated_answer(self, options):
        client, server = make(), Server(**options)
        name = ask(client, credentials=USER)
        (reply,) = converse(client, server)
        assert isinstance(reply, Reply)
        assert reply.authenticated
        assert (reply.transaction_id, server.codes) == (name, [401, 0])
        assert reply.message.transaction_id != name
        # The second request knows the nonce already.
        ask(client, credentials=USER)
        (reply,) = converse(client, server)
        assert server.codes == [401, 0, 0]

    def test_over_a_stream(self):
        client, server = make(), Server()
        client.on_socket(Connected(3, LOCAL, SERVER), 0)
        client.request_over(3, credentials=USER, now=0)
        (reply,) = converse(client, server, handle=3)
        assert reply.authenticated
        assert (reply.handle, server.codes) == (3, [401, 0])

    def test_a_stale_nonce_is_replaced(self):
        client, server = make(), Server()
        ask(client, credentials=USER)
        converse(client, server)
        ask(client, credentials=USER, now=3600 * SECOND)
        (reply,) = converse(client, server, now=3600 * SECOND)
        assert reply.authenticated
        assert server.codes == [401, 0, 438, 0]

    def test_a_nonce_belongs_to_a_socket(self):
        client, server = make(), Server()
        second = Address("10.0.0.2", 40001)
        for source in (LOCAL, second, LOCAL, second):
            ask(client, source=source, credentials=USER)
            (reply,) = converse(client, server, source=source)
            assert reply.authenticated
        assert server.codes == [401, 0, 401, 0, 0, 0]

    def test_a_retry_is_a_transaction_of_its_own(self):
        client, server = make(), Server()
        name = ask(client, credentials=USER)
        (output,) = drain(client)
        client.receive(Received(server(output.data), SERVER, LOCAL), 100 * MS)
        (again,) = drain(client)
        assert decode(again.data).transaction_id != name
        assert client.deadline() == 600 * MS
        client.on_deadline(600 * MS)
        assert drain(client) == [again]
        # It keeps its name: cancelling by it works.
        client.cancel(name)
        assert client.open_requests == 0

    def test_the_message_of_the_caller_keeps_its_attributes(self):
        client, server = make(), Server()
        message = Message.request(Method.BINDING, bytes(range(12))).add(SOFTWARE, "x")
        ask(client, message, credentials=USER)
        (output,) = drain(client)
        client.receive(Received(server(output.data), SERVER, LOCAL), 0)
        again = sent(client)
        assert again.get(SOFTWARE) == "x"
        assert again.get(USERNAME) == "user"
        assert [code for code, _ in message.attributes] == [SOFTWARE.code]

    @pytest.mark.parametrize("host", ["192.0.2.99", "2001:db8::99"])
    def test_masked_addresses_follow_the_transaction_id(self, host):
        client, server = make(), Server()
        peer = Address(host, 5000)
        message = Message.request(Method.CREATE_PERMISSION, bytes(range(12)))
        ask(client, message.add(XOR_PEER_ADDRESS, peer), credentials=USER)
        (output,) = drain(client)
        client.receive(Received(server(output.data), SERVER, LOCAL), 0)
        again = sent(client)
        assert again.transaction_id != message.transaction_id
        assert again.get(XOR_PEER_ADDRESS) == peer

    def test_wrong_password(self):
        client, server = make(), Server()
        name = ask(client, credentials=LongTerm("user", "wrong"))
        (failed,) = converse(client, server)
        assert isinstance(failed, Failed)
        assert (failed.transaction_id, failed.cause) == (name, FailureCause.AUTHENTICATION)
        assert isinstance(failed.error, AuthenticationFailed)
        assert failed.error.code == 401
        assert server.codes == [401, 401]

    def test_a_forged_answer_is_passed_over_and_told_at_the_end(self):
        client, server = make(), Server()
        ask(client, credentials=USER, schedule=Schedule.fixed([SECOND], SECOND))
        (output,) = drain(client)
        client.receive(Received(server(output.data), SERVER, LOCAL), 0)
        request = sent(client)
        dropped(arrive(client, answer(request), 1), DropReason.MISSING_INTEGRITY)
        dropped(arrive(client, answer(request), 2, key=b"x"), DropReason.BID_DOWN)
        dropped(arrive(client, answer(request), 3, sha256_key=b"x"), DropReason.BAD_INTEGRITY)
        client.on_deadline(SECOND)
        assert isinstance(drain(client)[0], Transmit)
        client.on_deadline(2 * SECOND)
        (failed,) = drain(client)
        assert failed.cause is FailureCause.INTEGRITY
        assert isinstance(failed.error, IntegrityViolated)

    def test_the_true_answer_after_forged_ones(self):
        client, server = make(), Server()
        ask(client, credentials=USER)
        (output,) = drain(client)
        client.receive(Received(server(output.data), SERVER, LOCAL), 0)
        (output,) = drain(client)
        arrive(client, answer(decode(output.data)), sha256_key=b"x")
        client.receive(Received(server(output.data), SERVER, LOCAL), 0)
        (reply,) = drain(client)
        assert reply.authenticated

    def test_over_a_stream_a_forged_answer_is_the_end(self):
        client, server = make(), Server()
        client.on_socket(Connected(3, LOCAL, SERVER), 0)
        client.request_over(3, credentials=USER, now=0)
        (output,) = drain(client)
        client.on_socket(Arrived(3, server(output.data)), 0)
        request = sent(client)
        client.on_socket(Arrived(3, encode(answer(request), sha256_key=b"x")), 0)
        drop, failed = drain(client)
        assert isinstance(drop, Dropped)
        assert drop.reason is DropReason.BAD_INTEGRITY
        assert failed.cause is FailureCause.INTEGRITY

    def test_a_400_without_a_proof_never_reaches_the_caller(self):
        # RFC 8489 9.2.5; over a stream, too, it is "as if it were never received".
        client, server = make(), Server()
        client.on_socket(Connected(3, LOCAL, SERVER), 0)
        client.request_over(3, credentials=USER, now=0)
        (output,) = drain(client)
        client.on_socket(Arrived(3, server(output.data)), 0)
        request = sent(client)
        client.on_socket(Arrived(3, encode(Message.error(request, 400))), 0)
        dropped(drain(client), DropReason.MISSING_INTEGRITY)
        assert client.open_requests == 1

    def test_a_server_that_never_has_enough(self):
        client = make()
        ask(client, credentials=USER)
        for number in itertools.count():
            (output,) = drain(client)
            if isinstance(output, Failed):
                break
            stale = Message.error(decode(output.data), 438)
            stale.add(REALM, "example.org").add(NONCE, b"%d" % number)
            client.receive(Received(encode(stale), SERVER, LOCAL), 0)
        assert number == 5
        assert output.cause is FailureCause.AUTHENTICATION

    def test_a_challenge_too_long_to_be_answered(self):
        client = make()
        client.on_socket(Connected(3, LOCAL, SERVER), 0)
        message = Message.request(Method.BINDING, bytes(12)).add(SOFTWARE, "x" * 100)
        name = client.request_over(3, message, credentials=USER, now=0)
        (output,) = drain(client)
        huge = Message.error(decode(output.data), 401).add(NONCE, b"n")
        huge.attributes.append((REALM.code, b"r" * 65450))
        client.on_socket(Arrived(3, encode(huge)), 0)
        (failed,) = drain(client)
        assert (failed.transaction_id, failed.cause) == (name, FailureCause.AUTHENTICATION)
        assert client.open_requests == 0
        assert client.deadline() is None

    def test_bid_down(self):
        # The attacker takes PASSWORD-ALGORITHMS away and cannot take the cookie, which the nonce's
        # MAC covers.
        client, server = make(), Server()
        ask(client, credentials=USER)
        (output,) = drain(client)
        challenge = decode(server(output.data))
        challenge.attributes = [
            entry for entry in challenge.attributes if entry[0] != PASSWORD_ALGORITHMS.code
        ]
        (failed,) = arrive(client, challenge)
        assert failed.cause is FailureCause.AUTHENTICATION
        assert "bid-down" in str(failed.error)

    def test_bid_down_by_another_offer(self):
        # A weaker list is answered, and the server notices that it is not what it offered.
        client, server = make(), Server()
        ask(client, credentials=USER)
        (output,) = drain(client)
        challenge = decode(server(output.data))
        challenge.attributes = [
            entry for entry in challenge.attributes if entry[0] != PASSWORD_ALGORITHMS.code
        ]
        challenge.add(PASSWORD_ALGORITHMS, (Algorithm(1),))
        arrived = arrive(client, challenge)
        server(arrived[0].data)
        assert server.codes == [401, 400]


class TestShortTerm:
    def test_answer(self):
        client = make()
        ask(client, credentials=ShortTerm("user", "pass"))
        request = sent(client)
        dropped(arrive(client, answer(request)), DropReason.MISSING_INTEGRITY)
        (reply,) = arrive(client, answer(request), sha256_key=b"pass")
        assert reply.authenticated

    def test_an_error_over_a_stream_must_prove_itself(self):
        client = make()
        client.on_socket(Connected(3, LOCAL, SERVER), 0)
        client.request_over(3, credentials=ShortTerm("user", "pass"), now=0)
        request = sent(client)
        client.on_socket(Arrived(3, encode(Message.error(request, 401))), 0)
        _, failed = drain(client)
        assert failed.cause is FailureCause.INTEGRITY
        assert "401" in str(failed.error)
