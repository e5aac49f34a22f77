"""The messages of a rendezvous: what goes in comes out, and nothing else is taken."""

from __future__ import annotations

import base64
import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ice.rendezvous.protocol import (
    MAX_DATA,
    MAX_HELLO,
    MAX_TEXT,
    BadMessage,
    Error,
    ErrorCode,
    Gone,
    Join,
    Joined,
    Leave,
    Message,
    Peer,
    ServerLimits,
    Time,
    TimeAnswer,
    TurnAccess,
    Unknown,
    Welcome,
    from_client,
    from_server,
    is_name,
    is_one_time,
)
from stun.sansio import Address

WELCOME = Welcome(
    Address("2001:db8::7", 40000),
    1_800_000_000.25,
    "natkit/1",
    TurnAccess(("turn:192.0.2.1",), "1800086400:192.0.2.7", "secret", 86400),
    ("stun:192.0.2.1",),
    ServerLimits(),
)


@pytest.mark.parametrize(
    "message",
    [
        Join(None, b"hello"),
        Join("a.b_9", bytes(range(256)) * 4),
        Message(b""),
        Message(bytes(MAX_DATA)),
        Leave(),
        Time(12.5),
        Time(-1),
    ],
)
def test_what_a_client_says_is_read(message: Any) -> None:
    text = message.encode()
    assert len(text) <= MAX_TEXT
    assert from_client(text) == message
    assert from_client(text.encode()) == message


@pytest.mark.parametrize(
    "message",
    [
        WELCOME,
        Welcome(Address("192.0.2.7", 0), 0.0),
        Joined("7", 3600.0),
        Peer(b"hello"),
        Message(b"\xff" * MAX_DATA),
        Gone("left"),
        TimeAnswer(1.5, 1_800_000_000.125),
        Error("busy", "two are there"),
    ],
)
def test_what_a_server_says_is_read(message: Any) -> None:
    assert from_server(message.encode()) == message


def test_no_secret_is_in_a_representation() -> None:
    assert "secret" not in repr(WELCOME)
    assert "hello" not in repr(Join("a", b"hello")).replace("hello=", "")
    assert repr(Message(b"data")) == "Message()"


def join(**changes: Any) -> str:
    return json.dumps({"type": "join", "v": 1, "name": None, "hello": "aGk="} | changes)


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("", "malformed", "not JSON"),
        ("{", "malformed", "not JSON"),
        ("[" * 60_000, "malformed", "not JSON"),
        ('{"type":"time","sent":NaN}', "malformed", "not JSON"),
        ('{"type":"time","sent":' + "9" * 5000 + "}", "malformed", "not JSON"),
        (b"\xff\xfe{", "malformed", "not JSON"),
        ("[]", "malformed", "not a JSON object"),
        ("{}", "malformed", "no message of a client has the type"),
        ('{"type":"welcome"}', "malformed", "there are join, leave, message, time"),
        ('{"type":["join"]}', "malformed", "no message of a client has the type"),
        (" " * (MAX_TEXT + 1), "too-large", "more than"),
        (join(v=2), "version", "version 1 of the protocol, not 2"),
        (join(v=True), "version", "version 1"),
        (join(v="\x1b[31m"), "version", 'not "?[31m"'),
        (join(name=""), "malformed", "a name has 1 to 64 characters"),
        (join(name="a-b"), "malformed", "a name has"),
        (join(name="A"), "malformed", "a name has"),
        (join(name="a\n"), "malformed", "a name has"),
        (join(name="\u0663"), "malformed", "a name has"),
        (join(name=7), "malformed", "a name has"),
        (join(name="a" * 65), "too-large", "a name has"),
        (join(hello=None), "malformed", "hello must be octets in base64"),
        (join(hello="a"), "malformed", "hello must be octets in base64"),
        (join(hello="aGk"), "malformed", "hello must be octets in base64"),
        (join(hello="aGk=\n"), "malformed", "hello must be octets in base64"),
        (join(hello="_-8="), "malformed", "hello must be octets in base64"),
        (join(hello="A" * 1368), "too-large", "hello has more than 1024 octets"),
        (join(hello="A" * 4000), "too-large", "hello has more than 1024 octets"),
        ('{"type":"message"}', "malformed", "data must be octets in base64"),
        ('{"type":"time"}', "malformed", "sent must be a number"),
        ('{"type":"time","sent":true}', "malformed", "sent must be a number"),
        ('{"type":"time","sent":1e999}', "malformed", "sent must be a number"),
        ('{"type":"time","sent":"1"}', "malformed", "sent must be a number"),
    ],
)
def test_what_no_client_may_say(text: str | bytes, code: str, words: str) -> None:
    with pytest.raises(BadMessage) as caught:
        from_client(text)
    assert caught.value.code == code
    assert words in caught.value.text


def test_the_longest_data_fits_and_one_octet_more_does_not() -> None:
    octets = base64.b64encode(bytes(MAX_DATA + 1)).decode()
    with pytest.raises(BadMessage) as caught:
        from_client(json.dumps({"type": "message", "data": octets}))
    assert caught.value.code is ErrorCode.TOO_LARGE
    assert len(Join("a" * 64, bytes(MAX_HELLO)).encode()) < MAX_TEXT


def welcome(**changes: Any) -> str:
    return json.dumps(json.loads(WELCOME.encode()) | changes)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"type":1}', "without a type"),
        (welcome(v=2), "version 2 of the protocol, this program version 1"),
        (welcome(observed=None), "observed must be an object"),
        (welcome(observed={"host": "a", "port": 65536}), "is no port"),
        (welcome(observed={"host": "a" * 65, "port": 1}), "host must be a text"),
        (welcome(observed={"host": "\x1b[2J", "port": 1}), "host must be a text"),
        (welcome(stun=["stun:a"] * 33), "at most 32 URIs"),
        (welcome(stun=["stun:" + "a" * 1024]), "at most 1024 characters"),
        (welcome(stun=["stun:a\r\n"]), "a URI is a text"),
        (welcome(turn={"urls": []}), "username must be a text"),
        (welcome(turn={"urls": [], "username": "", "credential": "", "ttl": -1}), "ttl must be"),
        (welcome(turn=7), "turn must be an object"),
        (welcome(limits={"message": 1.5}), "message must be a whole number"),
        (welcome(time="now"), "time must be a number"),
        ('{"type":"joined","name":"A","seconds":1}', "is no name"),
        ('{"type":"joined","name":"7","seconds":-1}', "expired before"),
        ('{"type":"gone"}', "reason must be a text"),
        ('{"type":"error","code":"busy"}', "text must be a text"),
    ],
)
def test_what_no_server_may_say(text: str, words: str) -> None:
    with pytest.raises(BadMessage, match=words):
        from_server(text)


def test_what_a_server_says_can_be_shown_on_a_terminal() -> None:
    found = from_server(json.dumps({"type": "error", "code": "x", "text": "\x1b]0;\x07\r" * 999}))
    assert isinstance(found, Error)
    assert found.text.isprintable()
    assert len(found.text) == 1024


def test_a_client_sends_no_more_than_this_version_can_read() -> None:
    found = from_server(welcome(limits={"message": 1 << 30, "hello": 7, "wait": 60}))
    assert isinstance(found, Welcome)
    assert found.limits == ServerLimits(MAX_DATA, 7, 60)


def test_later_versions_may_say_more() -> None:
    assert from_server('{"type":"news","text":"x"}') == Unknown("news")
    assert from_client('{"type":"leave","why":"tired"}') == Leave()
    assert from_server(welcome(more=[1])) == WELCOME


@pytest.mark.parametrize(
    ("name", "good", "one_time"),
    [
        ("7", True, True),
        ("0042", True, True),
        ("a.b_9", True, False),
        ("7a", True, False),
        ("", False, False),
        ("a b", False, False),
        ("\u00b2", False, False),
        ("a" * 64, True, False),
        ("a" * 65, False, False),
    ],
)
def test_names(name: str, good: bool, one_time: bool) -> None:
    assert is_name(name) is good
    assert is_one_time(name) is one_time


@given(st.one_of(st.text(max_size=200), st.binary(max_size=200)))
def test_nothing_but_bad_messages_comes_of_noise(text: str | bytes) -> None:
    for read in (from_client, from_server):
        with contextlib.suppress(BadMessage):
            read(text)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
_FIELDS = ("v", "name", "hello", "data", "sent", "observed", "time", "turn", "stun", "limits")


@given(
    st.sampled_from(["join", "message", "time", "welcome", "joined", "peer", "gone", "error"]),
    st.dictionaries(st.sampled_from([*_FIELDS, "seconds", "reason", "code", "text"]), _JSON),
)
def test_nothing_but_bad_messages_comes_of_wrong_fields(kind: str, fields: dict[str, Any]) -> None:
    text = json.dumps(fields | {"type": kind})
    for read in (from_client, from_server):
        with contextlib.suppress(BadMessage):
            found = read(text)
            assert isinstance(found, Unknown) or read(found.encode()) == found
