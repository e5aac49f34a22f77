"""URIs and what people type: what they mean, that they come back, and where they are wrong."""

import pytest

from stun.uri import StunUri, TurnUri, UriError, parse, parse_server

GOOD = [
    ("stun:example.org", StunUri("example.org")),
    ("stuns:example.org", StunUri("example.org", secure=True)),
    ("stun:example.org:3479", StunUri("example.org", 3479)),
    ("stun:192.0.2.1", StunUri("192.0.2.1")),
    ("stun:192.0.2.1:1", StunUri("192.0.2.1", 1)),
    ("stun:[2001:db8::1]", StunUri("2001:db8::1")),
    ("stun:[2001:db8::1]:65535", StunUri("2001:db8::1", 65535)),
    ("stun:[fe80::1%25eth0]:3478", StunUri("fe80::1%eth0", 3478)),
    ("stun:[::ffff:192.0.2.1]", StunUri("::ffff:192.0.2.1")),
    ("turn:example.org", TurnUri("example.org")),
    ("turn:example.org?transport=udp", TurnUri("example.org", transport="udp")),
    ("turns:example.org:443?transport=tcp", TurnUri("example.org", 443, "tcp", secure=True)),
    ("turn:example.org?transport=x-future~1", TurnUri("example.org", transport="x-future~1")),
    ("turns:[2001:db8::1]:5349", TurnUri("2001:db8::1", 5349, secure=True)),
    ("stun:b%C3%BCcher.example", StunUri("bücher.example")),
    # RFC 3986 3.2.2 allows all of these in a name.
    ("stun:a_b-c~d!$&'()*+,;=.example", StunUri("a_b-c~d!$&'()*+,;=.example")),
    ("stun:example.org.", StunUri("example.org.")),
    ("stun:1.2.3.4.example", StunUri("1.2.3.4.example")),
]

# Written otherwise, but meaning the same.
ALIASES = [
    ("STUN:example.org", "stun:example.org"),
    ("TuRnS:example.org?TRANSPORT=TCP", "turns:example.org?transport=tcp"),
    ("stun:example.org:", "stun:example.org"),
    ("turn:example.org:?transport=udp", "turn:example.org?transport=udp"),
    ("stun:example.org:003478", "stun:example.org:3478"),
    ("stun:[2001:0DB8:0:0:0:0:0:1]", "stun:[2001:db8::1]"),
    ("stun:ex%61mple.org", "stun:example.org"),
]

# (what, at which character counted from 0, a word of the complaint)
BAD = [
    ("", 0, "scheme"),
    ("example.org", 0, "scheme"),
    ("http:example.org", 0, "scheme"),
    ("stunx:example.org", 0, "scheme"),
    (" stun:example.org", 0, "scheme"),
    ("stun://example.org", 5, "slashes"),
    ("stun:", 5, "missing"),
    ("stun::3478", 5, "missing"),
    ("turn:?transport=udp", 5, "missing"),
    ("stun:exa mple", 8, "not allowed"),
    ("stun:user@host", 9, "not allowed"),
    ("stun:host/path", 9, "not allowed"),
    ("stun:bücher.example", 6, "not allowed"),
    ("stun:a%zz", 6, "not allowed"),
    ("stun:a%", 6, "not allowed"),
    ("stun:a%ff", 5, "UTF-8"),
    ("stun:a%3Ab", 5, "':'"),
    ("stun:a%00b", 5, "not allowed"),
    ("stun:a%2525", 5, "'%'"),
    ("stun:host:0", 10, "65535"),
    ("stun:host:65536", 10, "65535"),
    ("stun:host:" + "9" * 5000, 10, "65535"),
    ("stun:host:http", 10, "number"),
    ("stun:host:34x8", 12, "number"),
    ("stun:host:-1", 10, "number"),
    ("stun:host:٣", 10, "number"),
    ("stun:2001:db8::1", 5, "brackets"),
    ("stun:host:3478?transport=udp", 14, "belong"),
    ("stun:host#x", 9, "not allowed"),
    ("turn:host?transport=udp#x", 23, "belong"),
    ("turn:host?transport=udp&x=1", 23, "belong"),
    ("turn:host?", 10, "transport="),
    ("turn:host?transport=", 20, "missing"),
    ("turn:host?transport=é", 20, "missing"),
    ("turn:host?other=udp", 10, "transport="),
    ("stun:[2001:db8::1", 5, "closed"),
    ("stun:[]", 6, "IPv6"),
    ("stun:[192.0.2.1]", 6, "IPv6"),
    ("stun:[1::2::3]", 6, "IPv6"),
    ("stun:[v1.fe80]", 6, "future"),
    ("stun:[::1]x", 10, "belong"),
    ("stun:[::1%25]", 12, "zone"),
    ("stun:[::1%25a b]", 6, "zone"),
    ("stun:[::1%eth0]", 9, "%25"),
    ("stun:256.1.1.1", 5, "IPv4"),
    ("stun:1.2.3", 5, "IPv4"),
    ("stun:01.2.3.4", 5, "IPv4"),
    ("stun:2130706433", 5, "IPv4"),
    ("stun:%37", 5, "IPv4"),
    ("stuns:1%2e2.3.4", 6, "certificate"),
    ("stuns:192.0.2.1", 6, "certificate"),
    ("stuns:[::1]", 6, "certificate"),
]


@pytest.mark.parametrize(("text", "uri"), GOOD)
def test_means_and_comes_back(text, uri):
    assert parse(text) == uri
    assert str(uri) == text


@pytest.mark.parametrize(("alias", "text"), ALIASES)
def test_normal_form(alias, text):
    assert str(parse(alias)) == text
    assert parse(alias) == parse(text)


@pytest.mark.parametrize(("text", "position", "word"), BAD)
def test_says_what_is_wrong_and_where(text, position, word):
    with pytest.raises(UriError) as caught:
        parse(text)
    assert caught.value.position == position
    assert word in caught.value.problem
    assert caught.value.text == text
    assert f"(at character {position + 1})" in str(caught.value)


def test_defaults():
    assert parse("stun:h").default_port == parse("turn:h").default_port == 3478
    assert parse("stuns:h").default_port == parse("turns:h").default_port == 5349


def test_is_address():
    assert parse("stun:192.0.2.1").is_address
    assert parse("turn:[::1%25lo]").is_address
    assert not parse("stun:192.0.2.1.example").is_address


@pytest.mark.parametrize(
    ("text", "uri"),
    [
        ("example.org", StunUri("example.org")),
        ("  example.org\n", StunUri("example.org")),
        ("localhost:3478", StunUri("localhost", 3478)),
        ("192.0.2.1:19302", StunUri("192.0.2.1", 19302)),
        ("2001:DB8::1", StunUri("2001:db8::1")),
        ("::1", StunUri("::1")),
        ("fe80::1%eth0", StunUri("fe80::1%eth0")),
        ("[2001:db8::1]", StunUri("2001:db8::1")),
        ("[2001:db8::1]:3479", StunUri("2001:db8::1", 3479)),
        ("[fe80::1%eth0]:3479", StunUri("fe80::1%eth0", 3479)),
        ("bücher.example:3478", StunUri("xn--bcher-kva.example", 3478)),
        ("stun:example.org:1", StunUri("example.org", 1)),
        ("turns:example.org", TurnUri("example.org", secure=True)),
        ("stunning.example", StunUri("stunning.example")),
    ],
)
def test_parse_server(text, uri):
    assert parse_server(text) == uri


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "http://example.org",
        "a:b:c",
        "host:port",
        "host:0",
        "[::1",
        "a b",
        "300.1.1.1",
        "é" * 99,
    ],
)
def test_parse_server_refuses(text):
    with pytest.raises(UriError):
        parse_server(text)
