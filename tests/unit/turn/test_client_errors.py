"""Errors of the TURN client: each names the server and says what to do."""

from __future__ import annotations

import pickle

import pytest

from stun.auth_client import AuthenticationFailed
from stun.discovery import Target, Transport
from stun.errors import ErrorResponse, StunError
from stun.outcome import UnknownAttributeResponse
from stun.sansio import Address
from turn.client.errors import (
    AllocationLost,
    NoRelay,
    NotAuthenticated,
    NotSupported,
    ServerRefused,
    TurnError,
    refused,
    server_text,
)

SERVER = Target(Address("192.0.2.1", 3478), Transport.UDP)


@pytest.mark.parametrize("code", [401, 403, 405, 437, 438, 440, 441, 442, 443, 446, 447, 486, 508])
def test_every_code_of_turn_has_a_class_and_advice(code: int) -> None:
    error = refused(SERVER, "Allocate", ErrorResponse(code, "as the server put it"))
    assert type(error) is not ServerRefused
    assert isinstance(error, TurnError | ErrorResponse | StunError)
    assert (error.code, error.reason, error.request) == (code, "as the server put it", "Allocate")
    assert error.server is SERVER
    text = str(error)
    assert text.startswith("TURN server 192.0.2.1:3478 over UDP refused Allocate: ")
    assert f"{code} as the server put it: " in text
    assert error.advice
    assert text.endswith(error.advice)


def test_other_codes() -> None:
    error = refused(SERVER, "Refresh", ErrorResponse(599, ""))
    assert type(error) is ServerRefused
    assert str(error) == "TURN server 192.0.2.1:3478 over UDP refused Refresh: 599"


def test_what_the_client_knows_better() -> None:
    error = refused(SERVER, "Allocate", AuthenticationFailed(438, "Stale Nonce", "again and again"))
    assert isinstance(error, NotAuthenticated)
    assert "again and again; check the username" in str(error)
    unknown = refused(SERVER, "Allocate", UnknownAttributeResponse(420, "", (0x18, 0x7777)))
    assert isinstance(unknown, NotSupported)
    assert unknown.attributes == (0x18, 0x7777)
    assert "does not support EVEN-PORT, 0x7777" in str(unknown)


def test_names() -> None:
    named = Target(Address("2001:db8::1", 5349), Transport.TLS, "relay.example")
    assert server_text(named) == "TURN server [2001:db8::1]:5349 over TLS (relay.example)"
    by_address = Target(Address("192.0.2.1", 5349), Transport.TLS, "192.0.2.1")
    assert server_text(by_address) == "TURN server 192.0.2.1:5349 over TLS"


def test_several() -> None:
    first = TurnError(SERVER, "one thing")
    second = AllocationLost(SERVER, "another", first)
    both = NoRelay([first, second])
    assert both.errors == (first, second)
    assert second.cause is first
    assert str(both).splitlines() == [
        "none of 2 TURN servers could be used:",
        "  TURN server 192.0.2.1:3478 over UDP: one thing",
        "  TURN server 192.0.2.1:3478 over UDP: the allocation is lost: another",
    ]
    assert pickle.dumps(SERVER)
