"""What a server answers to clients of RFC 8489, RFC 5780 and RFC 3489, and what it does not."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from ipaddress import ip_address
from itertools import product
from mmap import mmap
from typing import Any

import pytest

from stun.attributes import (
    CHANGE_REQUEST,
    CHANGED_ADDRESS,
    ERROR_CODE,
    FINGERPRINT,
    MAPPED_ADDRESS,
    OTHER_ADDRESS,
    PADDING,
    PRIORITY,
    RESPONSE_ADDRESS,
    RESPONSE_ORIGIN,
    RESPONSE_PORT,
    SOFTWARE,
    SOURCE_ADDRESS,
    UNKNOWN_ATTRIBUTES,
    USERNAME,
    XOR_MAPPED_ADDRESS,
    ChangeRequest,
    host_octets,
)
from stun.codec import Message, decode, encode
from stun.errors import DropReason
from stun.integrity import check_fingerprint
from stun.ratelimit import ByteBudget, prefix_of
from stun.registry import Class, ErrorCode, Method
from stun.responder import BARE_ANSWER, Endpoint, Limits, Responder, check
from stun.sansio import SECOND, Address, Transmit

A_P, A_Q, B_P, B_Q = (
    Address(host, port) for host, port in product(("192.0.2.1", "198.51.100.1"), (3478, 3479))
)
CLIENT = Address("203.0.113.5", 54321)
CLIENT6 = Address("2001:db8::5", 54321)
TID = bytes(range(12))
NO_COOKIE = 0x12345678


def grid(*locals_: Address) -> list[Endpoint]:
    endpoints = [Endpoint(local, local) for local in locals_]
    for at, endpoint in enumerate(endpoints):
        endpoint.join(endpoints[at ^ 1], endpoints[at ^ 2], endpoints[at ^ 3])
    return endpoints


@pytest.fixture
def responder(rng: random.Random) -> Responder:
    return Responder(Limits(), "natkit", entropy=rng.randbytes)


@pytest.fixture
def endpoint() -> Endpoint:
    """A:p of a server with two addresses."""
    return grid(A_P, A_Q, B_P, B_Q)[0]


def request(*attributes: Any, cookie: int | None = None, method: int = Method.BINDING) -> Message:
    message = Message.request(method, TID)
    if cookie is not None:
        message.cookie = cookie
    for attribute, value in attributes:
        message.add(attribute, value)
    return message


def ask(
    responder: Responder, endpoint: Endpoint, message: Message | bytes, source: Address = CLIENT
) -> Transmit | DropReason | None:
    octets = message if isinstance(message, bytes) else encode(message)
    return responder.datagram(octets, source, endpoint, 0)


def answer(
    responder: Responder, endpoint: Endpoint, message: Message | bytes, source: Address = CLIENT
) -> tuple[Message, Transmit]:
    sent = ask(responder, endpoint, message, source)
    assert isinstance(sent, Transmit), sent
    return decode(sent.data), sent


def refused(
    responder: Responder, endpoint: Endpoint, message: Message
) -> tuple[int, tuple[int, ...] | None]:
    response, sent = answer(responder, endpoint, message)
    assert response.message_class is Class.ERROR
    assert (response.transaction_id, response.cookie) == (TID, message.cookie)
    assert (sent.source, sent.destination) == (endpoint.local, CLIENT)
    error = response.get(ERROR_CODE)
    assert error is not None
    assert error.reason
    return error.code, response.get(UNKNOWN_ATTRIBUTES)


# Success. -----------------------------------------------------------------------------------------


def test_a_bare_request(responder: Responder, endpoint: Endpoint) -> None:
    response, sent = answer(responder, endpoint, request())
    assert (sent.source, sent.destination) == (A_P, CLIENT)
    assert (response.message_class, response.method) == (Class.SUCCESS, Method.BINDING)
    assert response.transaction_id == TID
    assert response.get(XOR_MAPPED_ADDRESS) == CLIENT
    assert response.get(MAPPED_ADDRESS) == CLIENT
    assert response.get(RESPONSE_ORIGIN) == A_P
    assert response.get(OTHER_ADDRESS) == B_Q
    assert len(response.attributes) == 4


@pytest.mark.parametrize("source", [CLIENT, CLIENT6], ids=["IPv4", "IPv6"])
def test_the_short_way_gives_the_octets_of_the_long_way(
    source: Address, rng: random.Random
) -> None:
    responder = Responder(Limits(), None, entropy=rng.randbytes)
    # An attribute that is known and not expected is ignored, so it only forces the long way.
    local = Address("2001:db8::1", 3478) if source.is_ipv6 else A_P
    for _ in range(50):
        transaction_id = rng.randbytes(12)
        port = rng.randrange(1, 65536)
        bare = Message.request(Method.BINDING, transaction_id)
        long = Message.request(Method.BINDING, transaction_id).add(PRIORITY, 1)
        client = Address(source.host, port)
        endpoint = Endpoint(local, local)
        short = ask(responder, endpoint, bare, client)
        assert short == ask(responder, endpoint, long, client)


@pytest.mark.parametrize(
    ("flags", "source"),
    [((False, False), A_P), ((False, True), A_Q), ((True, False), B_P), ((True, True), B_Q)],
)
def test_change_request_decides_where_the_answer_comes_from(
    responder: Responder, endpoint: Endpoint, flags: tuple[bool, bool], source: Address
) -> None:
    response, sent = answer(responder, endpoint, request((CHANGE_REQUEST, ChangeRequest(*flags))))
    assert sent.source == source
    assert sent.destination == CLIENT
    assert response.get(RESPONSE_ORIGIN) == source
    # "Ca and Cp, respectively, regardless of the value of the CHANGE-REQUEST flags"
    assert response.get(OTHER_ADDRESS) == B_Q


@pytest.mark.parametrize("at", range(4))
def test_other_address_is_seen_from_where_the_request_came_to(
    responder: Responder, at: int
) -> None:
    endpoints = grid(A_P, A_Q, B_P, B_Q)
    both = ChangeRequest(change_ip=True, change_port=True)
    response, sent = answer(responder, endpoints[at], request((CHANGE_REQUEST, both)))
    opposite = (B_Q, B_P, A_Q, A_P)[at]
    assert sent.source == opposite
    assert response.get(OTHER_ADDRESS) == response.get(RESPONSE_ORIGIN) == opposite


def test_an_advertised_address_is_told_and_the_local_one_sends(responder: Responder) -> None:
    outside = Address("192.31.196.10", 3478)
    response, sent = answer(responder, Endpoint(A_P, outside), request())
    assert response.get(RESPONSE_ORIGIN) == outside
    assert sent.source == A_P


def test_a_fingerprint_is_answered_with_one(responder: Responder, endpoint: Endpoint) -> None:
    response, _ = answer(responder, endpoint, encode(request(), fingerprint=True))
    assert check_fingerprint(response) is True
    response, _ = answer(responder, endpoint, encode(request()))
    assert check_fingerprint(response) is None


def test_credentials_that_nobody_asked_for_are_ignored(
    responder: Responder, endpoint: Endpoint
) -> None:
    # RFC 8489 section 6.3: "Known-but-unexpected attributes SHOULD be ignored".
    signed = encode(request((USERNAME, "a:b"), (PRIORITY, 1)), key=b"secret")
    response, _ = answer(responder, endpoint, signed)
    assert response.get(XOR_MAPPED_ADDRESS) == CLIENT


# RFC 3489 clients. --------------------------------------------------------------------------------


def test_a_client_without_cookie_is_answered_in_its_own_terms(
    responder: Responder, endpoint: Endpoint
) -> None:
    response, _ = answer(responder, endpoint, request(cookie=NO_COOKIE))
    assert response.cookie == NO_COOKIE
    assert response.get(MAPPED_ADDRESS) == CLIENT
    assert response.get(SOURCE_ADDRESS) == A_P
    assert response.get(CHANGED_ADDRESS) == B_Q
    assert len(response.attributes) == 3, "an old client may choke on what it does not know"


@pytest.mark.parametrize("flags", list(product((False, True), repeat=2)))
def test_change_request_of_a_client_without_cookie(
    responder: Responder, endpoint: Endpoint, flags: tuple[bool, bool]
) -> None:
    asked = request((CHANGE_REQUEST, ChangeRequest(*flags)), cookie=NO_COOKIE)
    response, sent = answer(responder, endpoint, asked)
    assert (
        sent.source == response.get(SOURCE_ADDRESS) == (A_P, A_Q, B_P, B_Q)[2 * flags[0] + flags[1]]
    )


def test_response_address_is_never_obeyed(responder: Responder, endpoint: Endpoint) -> None:
    asked = request((RESPONSE_ADDRESS, Address("203.0.113.99", 7)), cookie=NO_COOKIE)
    assert refused(responder, endpoint, asked) == (420, (RESPONSE_ADDRESS.code,) * 2)


def test_what_looks_like_a_fingerprint_says_nothing_without_the_cookie(
    responder: Responder, endpoint: Endpoint
) -> None:
    asked = request((FINGERPRINT, 0), cookie=NO_COOKIE)
    response, _ = answer(responder, endpoint, asked)
    assert check_fingerprint(response) is None


# With one address. --------------------------------------------------------------------------------


def test_with_one_address_none_other_is_told(responder: Responder) -> None:
    response, _ = answer(responder, Endpoint(A_P, A_P), request())
    assert response.get(RESPONSE_ORIGIN) == A_P
    assert not response.has(OTHER_ADDRESS)


@pytest.mark.parametrize("flags", list(product((False, True), repeat=2)))
def test_with_one_address_any_change_request_is_420(
    responder: Responder, flags: tuple[bool, bool]
) -> None:
    asked = request((CHANGE_REQUEST, ChangeRequest(*flags)))
    assert refused(responder, Endpoint(A_P, A_P), asked) == (420, (CHANGE_REQUEST.code,))


def test_with_one_address_an_rfc_3489_client_may_send_it_without_flags(
    responder: Responder,
) -> None:
    lone = Endpoint(A_P, A_P)
    idle = ChangeRequest(change_ip=False, change_port=False)
    response, _ = answer(responder, lone, request((CHANGE_REQUEST, idle), cookie=NO_COOKIE))
    assert response.get(MAPPED_ADDRESS) == CLIENT
    asked = request((CHANGE_REQUEST, ChangeRequest(True, True)), cookie=NO_COOKIE)
    assert refused(responder, lone, asked) == (420, (CHANGE_REQUEST.code,) * 2)


@pytest.mark.parametrize("unknown", [(0x7F01,), (0x7F01, 0x7F02), (0x7F01, 0x7F02, 0x7F03)])
def test_what_an_rfc_3489_client_is_told_needs_no_padding(
    responder: Responder, endpoint: Endpoint, unknown: tuple[int, ...]
) -> None:
    asked = request(cookie=NO_COOKIE)
    asked.attributes += [(code, b"") for code in unknown]
    response, _ = answer(responder, endpoint, asked)
    assert [code for code, value in response.attributes if len(value) % 4] == []
    listed = response.get(UNKNOWN_ATTRIBUTES)
    assert listed is not None
    assert dict.fromkeys(listed) == dict.fromkeys(unknown)
    error = response.get(ERROR_CODE)
    assert error is not None
    assert error.reason.rstrip() == "Unknown Attribute"


# RESPONSE-PORT and PADDING. -----------------------------------------------------------------------


def test_response_port(responder: Responder, endpoint: Endpoint) -> None:
    response, sent = answer(responder, endpoint, request((RESPONSE_PORT, 999)))
    assert sent.destination == Address(CLIENT.host, 999)
    assert response.get(XOR_MAPPED_ADDRESS) == CLIENT


def test_response_port_zero_is_no_port(responder: Responder, endpoint: Endpoint) -> None:
    assert refused(responder, endpoint, request((RESPONSE_PORT, 0)))[0] == ErrorCode.BAD_REQUEST


@pytest.mark.parametrize(
    ("asked", "given"), [(0, 0), (1, 1), (100, 100), (1500, 1500), (1600, 1500), (60_000, 1500)]
)
def test_padding_is_never_more_than_was_sent_nor_than_the_mtu(
    responder: Responder, endpoint: Endpoint, asked: int, given: int
) -> None:
    response, sent = answer(responder, endpoint, request((PADDING, bytes(asked))))
    padding = response.get(PADDING)
    assert padding is not None
    assert len(padding) == given
    assert len(sent.data) <= 20 + 4 * 12 + 4 + given + 3 + 16


def test_padding_and_response_port_together_are_400(
    responder: Responder, endpoint: Endpoint
) -> None:
    asked = request((PADDING, bytes(100)), (RESPONSE_PORT, 999))
    assert refused(responder, endpoint, asked)[0] == ErrorCode.BAD_REQUEST


def test_diverted_and_padded_answers_have_a_small_budget(
    rng: random.Random, endpoint: Endpoint
) -> None:
    responder = Responder(Limits(special=1, special_burst=3), None, entropy=rng.randbytes)
    asked = [encode(request(pair)) for pair in ((RESPONSE_PORT, 999), (PADDING, bytes(9)))]
    outcomes = [ask(responder, endpoint, asked[n % 2]) for n in range(5)]
    assert [isinstance(outcome, Transmit) for outcome in outcomes] == [True] * 3 + [False] * 2
    assert outcomes[3:] == [DropReason.RATE_LIMITED] * 2
    assert isinstance(ask(responder, endpoint, request()), Transmit), "others are not touched"


# Errors and discards. -----------------------------------------------------------------------------


def test_unknown_attributes_that_must_be_understood(
    responder: Responder, endpoint: Endpoint
) -> None:
    asked = request()
    asked.attributes += [(0x7F00, b""), (0x4002, b"abcd"), (0xFE00, b""), (0x7F00, b"x")]
    assert refused(responder, endpoint, asked) == (420, (0x7F00, 0x4002))


def test_unknown_attributes_that_need_not_be_understood(
    responder: Responder, endpoint: Endpoint
) -> None:
    asked = request()
    asked.attributes += [(0x8FFF, b"abc"), (0xFFFF, b"")]
    response, _ = answer(responder, endpoint, asked)
    assert response.message_class is Class.SUCCESS


@pytest.mark.parametrize(
    "attribute", [CHANGE_REQUEST, RESPONSE_PORT], ids=lambda attribute: attribute.name
)
def test_a_malformed_value_is_400(responder: Responder, endpoint: Endpoint, attribute: Any) -> None:
    asked = request()
    asked.attributes.append((attribute.code, b"x"))
    assert refused(responder, endpoint, asked)[0] == ErrorCode.BAD_REQUEST


def test_a_turn_request_learns_that_this_is_no_turn_server(
    responder: Responder, endpoint: Endpoint
) -> None:
    asked = request(method=Method.ALLOCATE)
    assert refused(responder, endpoint, asked)[0] == ErrorCode.BAD_REQUEST


@pytest.mark.parametrize(
    ("octets", "reason"),
    [
        (b"", DropReason.TOO_SHORT),
        (b"\x00" * 19, DropReason.TOO_SHORT),
        (b"\x80" + bytes(40), DropReason.NOT_STUN),
        (encode(Message.request(0x5A5, TID)), DropReason.UNKNOWN_METHOD),
        (encode(Message.success(Message.request(1, TID))), DropReason.UNEXPECTED_CLASS),
        (encode(Message.error(Message.request(1, TID), 400)), DropReason.UNEXPECTED_CLASS),
        (encode(Message.indication(Method.SEND, TID)), DropReason.UNKNOWN_METHOD),
        (encode(request((FINGERPRINT, 1))), DropReason.BAD_FINGERPRINT),
        (
            encode(Message(1, Class.INDICATION, TID, [(0x7F00, b"")])),
            DropReason.UNKNOWN_COMPREHENSION_REQUIRED,
        ),
    ],
)
def test_what_is_discarded_and_why(
    responder: Responder, endpoint: Endpoint, octets: bytes, reason: DropReason
) -> None:
    assert ask(responder, endpoint, octets) is reason


def test_an_indication_gets_no_answer_and_is_no_mistake(
    responder: Responder, endpoint: Endpoint
) -> None:
    indication = encode(Message.indication(Method.BINDING, TID))
    assert ask(responder, endpoint, indication) is None
    assert check(decode(indication)) is None


# What a forger can get out of it. -----------------------------------------------------------------


def _requests() -> list[bytes]:
    unknown = request()
    unknown.attributes.append((0x7F00, b""))
    short_change = request()
    short_change.attributes.append((CHANGE_REQUEST.code, b""))
    flags = ChangeRequest(change_ip=True, change_port=True)
    return [
        encode(request()),
        encode(request(), fingerprint=True),
        encode(request(cookie=NO_COOKIE)),
        encode(request((CHANGE_REQUEST, flags))),
        encode(request((CHANGE_REQUEST, flags), cookie=NO_COOKIE)),
        encode(request((RESPONSE_PORT, 5))),
        encode(request((RESPONSE_PORT, 0))),
        encode(request((PADDING, b""))),
        encode(request((PADDING, bytes(1500)))),
        encode(request((PADDING, b""), (RESPONSE_PORT, 5))),
        encode(request(method=Method.ALLOCATE)),
        encode(request((SOFTWARE, "x" * 60))),
        encode(unknown),
        encode(short_change),
    ]


@pytest.mark.parametrize(("source", "factor"), [(CLIENT, 3.4), (CLIENT6, 5.8)])
def test_no_answer_is_a_greater_multiple_than_stated(
    responder: Responder, source: Address, factor: float
) -> None:
    hosts = ("2001:db8:a::1", "2001:db8:b::1") if source.is_ipv6 else (A_P.host, B_P.host)
    endpoint = grid(*(Address(host, port) for host, port in product(hosts, (3478, 3479))))[0]
    factors = []
    for octets in _requests():
        _, sent = answer(responder, endpoint, octets, source)
        factors.append(len(sent.data) / len(octets))
    assert max(factors) == factor


def test_software_is_told_where_it_costs_nothing(responder: Responder, endpoint: Endpoint) -> None:
    bare, _ = answer(responder, endpoint, request())
    assert not bare.has(SOFTWARE)
    response, _ = answer(responder, endpoint, request((SOFTWARE, "a client with a name")))
    assert response.get(SOFTWARE) == "natkit"


def test_a_prefix_has_a_budget_and_others_have_theirs(
    rng: random.Random, endpoint: Endpoint
) -> None:
    responder = Responder(Limits(answers=10, answer_burst=20), None, entropy=rng.randbytes)
    octets = [encode(request()), encode(request(), fingerprint=True)]
    outcomes = [ask(responder, endpoint, octets[n % 2]) for n in range(25)]
    assert sum(isinstance(outcome, Transmit) for outcome in outcomes) == 20
    assert outcomes[20:] == [DropReason.RATE_LIMITED] * 5
    neighbour, stranger = Address("203.0.113.77", 1), Address("203.0.114.5", 1)
    assert ask(responder, endpoint, octets[0], neighbour) is DropReason.RATE_LIMITED
    assert isinstance(ask(responder, endpoint, octets[0], stranger), Transmit)
    assert isinstance(responder.datagram(octets[0], CLIENT, endpoint, SECOND), Transmit)


def test_an_honest_prefix_never_notices_the_default_budget(
    responder: Responder, endpoint: Endpoint
) -> None:
    # Three thousand requests a second for ten seconds, as from the NAT pool of a carrier.
    octets = encode(request())
    for n in range(30_000):
        sent = responder.datagram(octets, CLIENT, endpoint, n * SECOND // 3000)
        assert isinstance(sent, Transmit)


# Over a connection. -------------------------------------------------------------------------------


def over_stream(responder: Responder, endpoint: Endpoint, message: Message) -> Message:
    return decode(encode(responder.over_stream(decode(encode(message)), CLIENT, endpoint)))


def test_over_a_connection_there_is_room_for_everything(
    responder: Responder, endpoint: Endpoint
) -> None:
    response = over_stream(responder, endpoint, request())
    assert response.get(XOR_MAPPED_ADDRESS) == response.get(MAPPED_ADDRESS) == CLIENT
    assert response.get(RESPONSE_ORIGIN) == A_P
    assert response.get(OTHER_ADDRESS) == B_Q
    assert response.get(SOFTWARE) == "natkit"


@pytest.mark.parametrize(
    ("attribute", "value"),
    [(CHANGE_REQUEST, ChangeRequest(True, False)), (RESPONSE_PORT, 999)],
    ids=["CHANGE-REQUEST", "RESPONSE-PORT"],
)
def test_over_a_connection_nothing_can_come_from_or_go_elsewhere(
    responder: Responder, endpoint: Endpoint, attribute: Any, value: Any
) -> None:
    response = over_stream(responder, endpoint, request((attribute, value)))
    error = response.get(ERROR_CODE)
    assert error is not None
    assert error.code == 420
    assert response.get(UNKNOWN_ATTRIBUTES) == (attribute.code,)


def test_over_a_connection_a_malformed_value_is_400(
    responder: Responder, endpoint: Endpoint
) -> None:
    asked = request()
    asked.attributes.append((CHANGE_REQUEST.code, b"x"))
    error = over_stream(responder, endpoint, asked).get(ERROR_CODE)
    assert error is not None
    assert error.code == ErrorCode.BAD_REQUEST


def test_over_a_connection_padding_comes_back(responder: Responder, endpoint: Endpoint) -> None:
    response = over_stream(responder, endpoint, request((PADDING, bytes(2000))))
    padding = response.get(PADDING)
    assert padding is not None
    assert len(padding) == 1500


# Lean answers, and a budget of octets. ------------------------------------------------------------

LOCAL6 = Address("2001:db8::1", 3478)


def lean(
    rng: random.Random, *, budget: ByteBudget | None = None, limits: Limits | None = None
) -> Responder:
    return Responder(limits or Limits(), "natkit", entropy=rng.randbytes, lean=True, budget=budget)


def packed(source: Address) -> bytes:
    return source.port.to_bytes(2) + host_octets(source.host)


@pytest.mark.parametrize(
    ("source", "local", "size"), [(CLIENT, A_P, 32), (CLIENT6, LOCAL6, 44)], ids=["IPv4", "IPv6"]
)
def test_a_lean_answer_has_one_address(
    source: Address, local: Address, size: int, rng: random.Random
) -> None:
    responder, alone = lean(rng), Endpoint(local, local)
    bare = encode(request())
    response, sent = answer(responder, alone, bare, source)
    assert (sent.source, sent.destination) == (local, source)
    assert len(sent.data) == size
    assert len(response.attributes) == 1
    assert response.get(XOR_MAPPED_ADDRESS) == source
    assert (response.message_class, response.method) == (Class.SUCCESS, Method.BINDING)
    assert response.transaction_id == TID
    assert responder.bare(bare, packed(source), 0) == sent.data


@pytest.mark.parametrize("source", [CLIENT, CLIENT6], ids=["IPv4", "IPv6"])
def test_the_lean_short_way_gives_the_octets_of_the_long_way(
    source: Address, rng: random.Random
) -> None:
    local = LOCAL6 if source.is_ipv6 else A_P
    responder, alone = lean(rng), Endpoint(local, local)
    for _ in range(50):
        transaction_id = rng.randbytes(12)
        host = str(ip_address(rng.randbytes(len(host_octets(source.host)))))
        client = Address(host, rng.randrange(1, 65536))
        bare = encode(Message.request(Method.BINDING, transaction_id))
        long = Message.request(Method.BINDING, transaction_id).add(PRIORITY, 1)
        short = responder.bare(bare, packed(client), 0)
        sent = ask(responder, alone, long, client)
        assert isinstance(sent, Transmit)
        # The long request has room for SOFTWARE neither.
        assert short == sent.data
        assert decode(sent.data).get(XOR_MAPPED_ADDRESS) == client


def test_what_is_lean_for_whom(rng: random.Random, endpoint: Endpoint) -> None:
    responder, alone = lean(rng), Endpoint(A_P, A_P)
    with_two, _ = answer(responder, endpoint, request())
    assert with_two.get(OTHER_ADDRESS) == B_Q, "RFC 5780 section 6.1 has its way where it is served"
    old, sent = answer(responder, alone, request(cookie=NO_COOKIE))
    assert len(sent.data) == 32
    assert old.get(MAPPED_ADDRESS) == CLIENT
    marked, sent = answer(responder, alone, encode(request(), fingerprint=True))
    assert len(sent.data) == 40
    assert check_fingerprint(marked) is True
    named, sent = answer(responder, alone, request((SOFTWARE, "x" * 40)))
    assert named.get(SOFTWARE) == "natkit"
    assert len(sent.data) <= 20 + 4 + 40
    short, _ = answer(responder, alone, request((SOFTWARE, "x" * 9)))
    assert not short.has(SOFTWARE)


def test_a_lean_answer_is_small_for_every_request(rng: random.Random) -> None:
    responder, alone = lean(rng), Endpoint(A_P, A_P)
    bare = len(encode(request()))
    for octets in _requests():
        _, sent = answer(responder, alone, octets)
        error = decode(sent.data).message_class is Class.ERROR
        assert error or len(sent.data) <= max(32, len(octets) + 12)
        if len(octets) == bare:
            assert len(sent.data) <= 32 or error


@pytest.mark.parametrize(
    "octets",
    [
        b"", b"\x00", encode(request())[:19], encode(request()) + b"\x00",
        encode(request(cookie=NO_COOKIE)), encode(request(), fingerprint=True),
        encode(request(method=Method.ALLOCATE)), encode(Message.indication(Method.BINDING, TID)),
        encode(Message.success(request())), b"\x40\x00\x00\x10" + bytes(16),
    ],
)  # fmt: skip
def test_what_is_not_bare_is_left_to_others(octets: bytes, rng: random.Random) -> None:
    budget = ByteBudget(1, 0, entropy=rng.randbytes)
    assert lean(rng, budget=budget).bare(octets, packed(CLIENT), 0) is None
    assert budget.spend(b"\xcb\x00\x71", 1, 0), "and costs nothing"


def test_an_ipv4_client_of_a_socket_for_both_families_hears_of_ipv4(rng: random.Random) -> None:
    responder, octets = lean(rng), encode(request())
    mapped = Address(f"::ffff:{CLIENT.host}", CLIENT.port)
    assert responder.bare(octets, packed(mapped), 0) == responder.bare(octets, packed(CLIENT), 0)
    _, sent = answer(responder, Endpoint(LOCAL6, LOCAL6), octets, mapped)
    assert (len(sent.data), sent.destination) == (32, mapped)


@pytest.mark.parametrize("source", [CLIENT, CLIENT6], ids=["IPv4", "IPv6"])
def test_a_forger_gets_back_what_came_and_the_burst(source: Address, rng: random.Random) -> None:
    local = LOCAL6 if source.is_ipv6 else A_P
    budget = ByteBudget(1000, 0, entropy=rng.randbytes)
    responder, alone = lean(rng, budget=budget), Endpoint(local, local)
    came = went = refusals = 0
    for _ in range(5000):
        octets = rng.choice(_requests())
        came += len(octets)
        if len(octets) == 20 and rng.random() < 0.5:
            sent: Any = responder.bare(octets, packed(source), 0)
            refusals += sent == b""
            went += len(sent or b"")
        else:
            sent = ask(responder, alone, octets, source)
            refusals += sent is DropReason.RATE_LIMITED
            went += len(sent.data) if isinstance(sent, Transmit) else 0
    assert refusals
    assert went <= came + 1000
    neighbour = Address("2001:db8:0:9::7" if source.is_ipv6 else "203.0.113.77", 5)
    stranger = Address("2001:db8:7::7" if source.is_ipv6 else "203.0.114.5", 5)
    while budget.spend(prefix_of(host_octets(source.host)), 1, 0):
        pass
    assert ask(responder, alone, request(), neighbour) is DropReason.RATE_LIMITED
    again = [responder.bare(encode(request()), packed(source), 0) for _ in range(2)]
    assert any(again), "what came with requests that got no answer pays for one that does"
    assert isinstance(ask(responder, alone, request(), stranger), Transmit)


def test_with_a_budget_other_limits_are_not_asked(rng: random.Random) -> None:
    tight = Limits(answers=1, answer_burst=1, special=1, special_burst=1)
    responder = lean(rng, budget=ByteBudget(0, 0, entropy=rng.randbytes), limits=tight)
    alone = Endpoint(A_P, A_P)
    for octets in (encode(request()), encode(request((PADDING, bytes(9)))), encode(request())):
        for _ in range(5):
            assert isinstance(ask(responder, alone, octets), Transmit)
            assert responder.bare(encode(request()), packed(CLIENT), 0)


def test_without_a_budget_bare_requests_count_as_answers(rng: random.Random) -> None:
    responder = lean(rng, limits=Limits(answers=10, answer_burst=20))
    octets = encode(request())
    outcomes = [responder.bare(octets, packed(CLIENT), 0) for _ in range(25)]
    assert [len(outcome or b"") for outcome in outcomes] == [32] * 20 + [0] * 5
    assert outcomes[20:] == [b""] * 5
    assert ask(responder, Endpoint(A_P, A_P), octets) is DropReason.RATE_LIMITED


# Many at once, where they lie. --------------------------------------------------------------------


class Memory:
    """Requests in memory, each with its source before it, as a driver has them."""

    STRIDE = 128

    def __init__(self, requests: Sequence[tuple[bytes, Address]]) -> None:
        self.octets = mmap(-1, self.STRIDE * max(len(requests), 1))
        self.starts = [self.STRIDE * n + 40 for n in range(len(requests))]
        for start, (data, source) in zip(self.starts, requests, strict=True):
            host = host_octets(source.host)
            name = source.port.to_bytes(2) + (
                host + bytes(8) if len(host) == 4 else bytes(4) + host + bytes(4)
            )
            self.octets[start - len(name) : start] = name
            self.octets[start : start + len(data)] = data


@pytest.mark.parametrize("ipv6", [False, True], ids=["IPv4", "IPv6"])
def test_answers_in_place_are_those_of_the_short_way(ipv6: bool, rng: random.Random) -> None:
    responder = lean(rng, budget=ByteBudget(0, 0, entropy=rng.randbytes))
    requests = [
        (
            encode(Message.request(Method.BINDING, rng.randbytes(12))),
            Address(str(ip_address(rng.randbytes(16 if ipv6 else 4))), rng.randrange(65536)),
        )
        for _ in range(50)
    ]
    memory = Memory(requests)
    paid = responder.bare_in_place(memory.octets, memory.starts, 0, ipv6=ipv6)
    assert paid == memory.starts
    for start, (data, source) in zip(memory.starts, requests, strict=True):
        answer = memory.octets[start : start + BARE_ANSWER[ipv6]]
        assert answer == responder.bare(data, packed(source), 0)
        assert decode(answer).get(XOR_MAPPED_ADDRESS) == source
    assert responder.bare_in_place(memory.octets, [], 0, ipv6=ipv6) == []


@pytest.mark.parametrize("ipv6", [False, True], ids=["IPv4", "IPv6"])
def test_a_forger_of_many_gets_no_more(ipv6: bool, rng: random.Random) -> None:
    budget = ByteBudget(1000, 0, entropy=rng.randbytes)
    responder = lean(rng, budget=budget)
    sources = [CLIENT6, Address("2001:db8:7::7", 5)] if ipv6 else [CLIENT, Address("192.0.2.7", 5)]
    came, went = Counter[Address](), Counter[Address]()
    for _ in range(200):
        chosen = [rng.choice(sources) for _ in range(rng.randrange(1, 65))]
        memory = Memory([(encode(request()), source) for source in chosen])
        paid = responder.bare_in_place(memory.octets, memory.starts, 0, ipv6=ipv6)
        assert set(paid) <= set(memory.starts)
        assert len(set(paid)) == len(paid)
        came.update(chosen)
        went.update(chosen[memory.starts.index(start)] for start in paid)
    for source in sources:
        assert went[source] < came[source]
        octets = went[source] * BARE_ANSWER[ipv6]
        assert came[source] * 20 - 32 <= octets <= came[source] * 20 + 1000


def test_without_a_budget_many_count_as_answers(rng: random.Random) -> None:
    responder = lean(rng, limits=Limits(answers=10, answer_burst=20))
    memory = Memory([(encode(request()), CLIENT)] * 25)
    paid = responder.bare_in_place(memory.octets, memory.starts, 0, ipv6=False)
    assert paid == memory.starts[:20]
