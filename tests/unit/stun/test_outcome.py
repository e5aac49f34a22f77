"""What error responses become, and the mapped address of any generation of server."""

import pytest

from stun.attributes import (
    ALTERNATE_DOMAIN,
    ALTERNATE_SERVER,
    ERROR_CODE,
    MAPPED_ADDRESS,
    UNKNOWN_ATTRIBUTES,
    XOR_MAPPED_ADDRESS,
    XOR_MAPPED_ADDRESS_DRAFT,
)
from stun.errors import ErrorResponse
from stun.message import Message
from stun.outcome import (
    NotUnderstood,
    TryAlternate,
    UnknownAttributeResponse,
    error_of,
    mapped_address,
)
from stun.registry import Class, Method
from stun.sansio import Address

REQUEST = Message.request(Method.BINDING, bytes(range(12)))
FIRST, SECOND, THIRD = (Address(f"192.0.2.{n}", n) for n in (1, 2, 3))


def test_an_ordinary_error():
    found = error_of(Message.error(REQUEST, 500, "Out of order"), authenticated=False)
    assert type(found) is ErrorResponse
    assert (found.code, found.reason) == (500, "Out of order")


def test_420_names_the_attributes():
    message = Message.error(REQUEST, 420).add(UNKNOWN_ATTRIBUTES, (0x0003, 0x7FFF))
    found = error_of(message, authenticated=False)
    assert isinstance(found, UnknownAttributeResponse)
    assert (found.code, found.attributes) == (420, (0x0003, 0x7FFF))


@pytest.mark.parametrize("value", [None, b"\x00"])
def test_420_that_does_not(value):
    message = Message.error(REQUEST, 420)
    if value is not None:
        message.attributes.append((UNKNOWN_ATTRIBUTES.code, value))
    found = error_of(message, authenticated=False)
    assert isinstance(found, UnknownAttributeResponse)
    assert found.attributes == ()


def test_300_names_the_servers():
    message = Message.error(REQUEST, 300).add(ALTERNATE_SERVER, FIRST)
    message.add(ALTERNATE_SERVER, Address("2001:db8::1", 3478)).add(ALTERNATE_DOMAIN, "b.example")
    found = error_of(message, authenticated=True)
    assert isinstance(found, TryAlternate)
    assert found.servers == (FIRST, Address("2001:db8::1", 3478))
    assert (found.domain, found.authenticated) == ("b.example", True)


def test_300_that_is_malformed():
    message = Message.error(REQUEST, 300)
    message.attributes.append((ALTERNATE_SERVER.code, b"\0\1"))
    found = error_of(message, authenticated=False)
    assert isinstance(found, TryAlternate)
    assert (found.servers, found.domain, found.authenticated) == ((), None, False)


@pytest.mark.parametrize("value", [None, b"", b"\0\0\0", b"\0\0\7\0", b"\0\0\4\x64"])
def test_an_error_without_a_valid_code(value):
    message = Message(Method.BINDING, Class.ERROR, bytes(12))
    if value is not None:
        message.attributes.append((ERROR_CODE.code, value))
    assert isinstance(error_of(message, authenticated=False), NotUnderstood)


def test_xor_mapped_address_is_preferred_wherever_it_stands():
    message = Message.success(REQUEST).add(MAPPED_ADDRESS, FIRST)
    assert mapped_address(message) == FIRST
    message.add(XOR_MAPPED_ADDRESS_DRAFT, SECOND)
    assert mapped_address(message) == SECOND
    message.add(XOR_MAPPED_ADDRESS, THIRD)
    assert mapped_address(message) == THIRD


@pytest.mark.parametrize("value", [b"", b"\0\1\0\0", b"\0\3\0\0\1\2\3\4", bytes(64)])
def test_a_malformed_address_is_passed_over(value):
    message = Message.success(REQUEST)
    message.attributes.append((XOR_MAPPED_ADDRESS.code, value))
    assert mapped_address(message) is None
    assert mapped_address(message.add(MAPPED_ADDRESS, FIRST)) == FIRST


def test_no_address_at_all():
    assert mapped_address(Message.success(REQUEST)) is None
