"""URIs, resolution, framing, keys, nonce cookies and string preparation against the vectors."""

from __future__ import annotations

import pytest

from stun.credentials import long_term_key, userhash
from stun.discovery import Kind, Naptr, Query, Srv, Transport, run, turn_targets, turn_transport
from stun.framing import Rfc4571Stream, StunStream, channel_data, rfc4571_frame
from stun.nonce import nonce_cookie, parse_cookie
from stun.registry import PasswordAlgorithm, SecurityFeature
from stun.strings import StringError, opaque_string, saslprep
from stun.uri import StunUri, TurnUri, parse


@pytest.mark.vectors("stun/uris.json")
def test_uri(case):
    uri = parse(case["uri"])
    assert (uri.scheme, uri.host, uri.port, uri.secure) == (
        case["scheme"],
        case["host"],
        case["port"],
        case["secure"],
    )
    if case["scheme"].startswith("turn"):
        assert isinstance(uri, TurnUri)
        transport = turn_transport(uri)
        assert (None if transport is None else transport.value) == case["transport"]
    else:
        assert isinstance(uri, StunUri)
    assert str(uri) == case["uri"]


@pytest.mark.vectors("stun/uri-resolution.json")
def test_resolution(case):
    zone: dict[Query, list[object]] = {}
    for owner, text in case["records"].get("naptr", []):
        order, preference, flags, service, regexp, replacement = (
            field.strip('"') for field in text.split()
        )
        record = Naptr(int(order), int(preference), flags, service, regexp, replacement)
        zone.setdefault(Query(owner.rstrip("."), Kind.NAPTR), []).append(record)
    for owner, text in case["records"].get("srv", []):
        *numbers, target = text.split()
        zone.setdefault(Query(owner.rstrip("."), Kind.SRV), []).append(
            Srv(*map(int, numbers), target)
        )
    for owner, address in case["records"].get("a", []):
        zone.setdefault(Query(owner.rstrip("."), Kind.ADDRESS), []).append(address)
    uri = TurnUri(case["host"], case["port"], case["transport"], case["secure"])
    supported = [Transport(name) for name in case["supported"]]
    found = run(
        turn_targets(uri, entropy=bytes, supported=supported), lambda query: zone.get(query, ())
    )
    assert [[t.transport.value, t.address.host, t.address.port] for t in found] == case["expected"]


@pytest.mark.vectors("stun/framing.json", group="channel-data")
def test_channel_data(case):
    channel, data = int(case["channel"], 16), bytes.fromhex(case["data"])
    alone, padded = bytes.fromhex(case["udp"]), bytes.fromhex(case["stream"])
    assert channel_data(channel, data, pad=False) == alone
    assert channel_data(channel, data, pad=True) == padded
    stream = StunStream(channel_data=True)
    assert stream.feed(padded + padded) == [alone, alone]
    assert (stream.pending, stream.error) == (0, None)


@pytest.mark.vectors("stun/framing.json", group="rfc4571")
def test_rfc4571(case):
    payload, framed = bytes.fromhex(case["payload"]), bytes.fromhex(case["stream"])
    assert rfc4571_frame(payload) == framed
    assert Rfc4571Stream().feed(framed + framed) == [payload, payload]
    # The two framings must not be taken for each other.
    assert StunStream().feed(framed) == []
    assert StunStream().feed(payload) == [payload]


@pytest.mark.vectors("stun/long-term-keys.json")
def test_long_term_key(case):
    who = (case["username"], case["realm"], case["password"])
    assert long_term_key(*who).hex() == case["md5"]
    assert long_term_key(*who, PasswordAlgorithm.SHA256).hex() == case["sha256"]
    assert userhash(*who[:2]).hex() == case["userhash"]


@pytest.mark.vectors("stun/nonce-cookie.json")
def test_nonce_cookie(case):
    features = {SecurityFeature[name.upper().replace("-", "_")] for name in case["features"]}
    assert parse_cookie(case["cookie"].encode() + b"/more") == features
    if "LSB" in case["flags"]:
        assert nonce_cookie(features) == case["cookie"].encode()


@pytest.mark.vectors("stun/string-preparation.json", group="saslprep")
def test_saslprep(case):
    _prepared(saslprep, case)


@pytest.mark.vectors("stun/string-preparation.json", group="opaquestring")
def test_opaque_string(case):
    _prepared(opaque_string, case)


def _prepared(prepare, case):
    if case["output"] is None:
        with pytest.raises(StringError):
            prepare(case["input"])
    else:
        assert prepare(case["input"]) == case["output"]
        assert prepare(case["output"]) == case["output"]
