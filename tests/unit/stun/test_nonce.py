"""Stateless nonces: who may use which, when, and how long they are."""

import base64

import pytest

from stun.errors import UsageError
from stun.nonce import COOKIE_LENGTH, NonceMaker, NonceState, nonce_cookie, parse_cookie
from stun.registry import SecurityFeature
from stun.sansio import Address

ALGORITHMS = SecurityFeature.PASSWORD_ALGORITHMS
ANONYMITY = SecurityFeature.USERNAME_ANONYMITY
CLIENT = Address("192.0.2.7", 40000)
NOW = 1_700_000_000
OLD, NEW = b"the old secret..", b"the new secret.."


def test_cookie_follows_the_erratum():
    # Erratum 6290: bit 0 is the rightmost.
    assert nonce_cookie([]) == b"obMatJos2AAAA"
    assert nonce_cookie([ALGORITHMS]) == b"obMatJos2AAAB"
    assert nonce_cookie([ANONYMITY]) == b"obMatJos2AAAC"
    assert len(nonce_cookie([ANONYMITY, ALGORITHMS])) == COOKIE_LENGTH


@pytest.mark.parametrize(
    ("nonce", "features"),
    [
        (b"obMatJos2AAAB", {ALGORITHMS}),
        (b"obMatJos2gAAAf//499k954d6OL34oL9FSTvy64sA", {ALGORITHMS}),  # RFC 8656 section 20
        (b"obMatJos2AAACf//499k954d6OL34oL9FSTvy64sA", {ANONYMITY}),  # RFC 8489 B.1
        (b"obMatJos2AAAE", set()),  # a feature of the future
        (b"obMatJos2////", {ALGORITHMS, ANONYMITY}),
        (b"obMatJos2AAA", None),
        (b"obMatJos2", None),
        (b"oobMatJos2gAAA", None),
        (b"obMatJos2AA=A", None),
        (b"obMatJos2AA==", None),
        (b"obMatJos2\xff\xff\xff\xff", None),
        (b"f//499k954d6OL34oL9FSTvy64sA", None),
        (b"", None),
    ],
)
def test_parse_cookie(nonce, features):
    assert parse_cookie(nonce) == features


def test_a_nonce_is_valid_for_its_client_and_its_time():
    maker = NonceMaker([NEW], lifetime=600)
    nonce = maker.make(CLIENT, NOW, [ALGORITHMS])
    assert parse_cookie(nonce) == {ALGORITHMS}
    assert maker.check(nonce, CLIENT, NOW) is NonceState.VALID
    assert maker.check(nonce, CLIENT, NOW + 600) is NonceState.VALID
    assert maker.check(nonce, CLIENT, NOW + 601) is NonceState.EXPIRED


@pytest.mark.parametrize(
    "other", [Address("192.0.2.8", 40000), Address("::ffff:192.0.2.7", 40000), Address("::", 0)]
)
def test_a_nonce_is_of_no_use_to_other_hosts(other):
    maker = NonceMaker([NEW])
    nonce = maker.make(CLIENT, NOW)
    assert maker.make(other, NOW) != nonce
    assert maker.check(nonce, other, NOW) is NonceState.FOREIGN


@pytest.mark.parametrize("port", [0, 1, 39999, 40001, 40000 ^ 0x8000, 65535])
def test_each_port_gets_a_nonce_of_its_own_and_may_use_any_of_its_host(port):
    # RFC 8489 9.2: "The server MUST NOT choose the same NONCE for two requests unless they have
    # the same source IP address and port."
    maker = NonceMaker([NEW], lifetime=600)
    nonce, other = maker.make(CLIENT, NOW), Address(CLIENT.host, port)
    assert maker.make(other, NOW) != nonce
    assert maker.check(nonce, other, NOW) is NonceState.VALID
    assert maker.check(nonce, other, NOW + 601) is NonceState.EXPIRED
    # It is the same nonce all the same: nobody can write another port into it.
    moved = maker.make(other, NOW)[:20] + nonce[20:]
    assert maker.check(moved, other, NOW) is NonceState.FOREIGN


def test_a_zone_is_not_part_of_the_address():
    maker = NonceMaker([NEW])
    nonce = maker.make(Address("fe80::1%eth0", 1), NOW)
    assert maker.check(nonce, Address("fe80::1", 1), NOW) is NonceState.VALID


def test_features_cannot_be_taken_off():
    maker = NonceMaker([NEW])
    nonce = maker.make(CLIENT, NOW, [ALGORITHMS])
    stripped = nonce_cookie([]) + nonce[COOKIE_LENGTH:]
    assert maker.check(stripped, CLIENT, NOW) is NonceState.FOREIGN
    assert maker.check(nonce[COOKIE_LENGTH:], CLIENT, NOW) is NonceState.FOREIGN


def test_every_changed_bit_is_noticed():
    maker = NonceMaker([NEW])
    nonce = maker.make(CLIENT, NOW)
    for index in range(len(nonce)):
        for bit in range(8):
            changed = bytearray(nonce)
            changed[index] ^= 1 << bit
            assert maker.check(bytes(changed), CLIENT, NOW) is NonceState.FOREIGN


@pytest.mark.parametrize(
    "junk",
    [b"", b"x", b"\xff" * 40, b"obMatJos2AAAA", b"obMatJos2AAAA====", b"a" * 763, b"\0" * 29],
)
def test_junk_is_foreign(junk):
    assert NonceMaker([NEW]).check(junk, CLIENT, NOW) is NonceState.FOREIGN


def test_there_is_one_way_to_write_a_nonce():
    maker = NonceMaker([NEW])
    nonce = maker.make(CLIENT, NOW)
    for twin in (nonce + b"=", nonce + b"\n", nonce[:20] + b" " + nonce[20:]):
        assert maker.check(twin, CLIENT, NOW) is NonceState.FOREIGN
    # 11 octets leave two spare bits in the last character.
    body = nonce[COOKIE_LENGTH:]
    alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    spare = alphabet[alphabet.index(body[-1]) | 1 : (alphabet.index(body[-1]) | 1) + 1]
    sloppy = body[:-1] + spare
    assert base64.urlsafe_b64decode(sloppy + b"=") == base64.urlsafe_b64decode(body + b"=")
    assert maker.check(nonce[:COOKIE_LENGTH] + sloppy, CLIENT, NOW) is NonceState.FOREIGN


def test_secrets_rotate():
    before, during, after = NonceMaker([OLD]), NonceMaker([NEW, OLD]), NonceMaker([NEW])
    old = before.make(CLIENT, NOW)
    assert during.check(old, CLIENT, NOW) is NonceState.VALID
    assert after.check(old, CLIENT, NOW) is NonceState.FOREIGN
    assert after.check(during.make(CLIENT, NOW), CLIENT, NOW) is NonceState.VALID


def test_secrets_rotate_in_place():
    maker = NonceMaker([OLD])
    nonce = maker.make(CLIENT, NOW)
    maker.rotate([NEW, OLD])
    assert maker.check(nonce, CLIENT, NOW) is NonceState.VALID
    assert maker.make(CLIENT, NOW) == NonceMaker([NEW]).make(CLIENT, NOW)
    maker.rotate([NEW])
    assert maker.check(nonce, CLIENT, NOW) is NonceState.FOREIGN
    for wrong in ([], [b"short"]):
        with pytest.raises(UsageError):
            maker.rotate(wrong)
    assert maker.secrets == (NEW,)


def test_a_cookie_that_is_there_need_not_be_made():
    maker = NonceMaker([NEW])
    made = maker.make_with(nonce_cookie([ALGORITHMS]), CLIENT, NOW)
    assert made == maker.make(CLIENT, NOW, [ALGORITHMS])


def test_a_fleet_shares_a_secret_and_clocks_that_nearly_agree():
    here, there = NonceMaker([NEW]), NonceMaker([NEW])
    nonce = here.make(CLIENT, NOW)
    assert there.check(nonce, CLIENT, NOW - 60) is NonceState.VALID
    assert there.check(nonce, CLIENT, NOW - 61) is NonceState.FOREIGN


@pytest.mark.parametrize("end", [0, 1 << 24, 1 << 32, 1 << 63, 1 << 64])
def test_time_goes_on_where_a_field_begins_again(end):
    maker = NonceMaker([NEW])
    nonce = maker.make(CLIENT, end - 10)
    for later in (0, 9, 10, 11, 3600):
        assert maker.check(nonce, CLIENT, end - 10 + later) is NonceState.VALID
    for later in (3601, 4000, (1 << 24) - 61):
        assert maker.check(nonce, CLIENT, end - 10 + later) is NonceState.EXPIRED


def test_a_nonce_does_not_come_back_to_life():
    # The three octets of time are the same again after 194 days.
    maker = NonceMaker([NEW])
    nonce = maker.make(CLIENT, NOW)
    for again in range(1, 4):
        for off in (-60, 0, 1, 3600):
            later = NOW + (again << 24) + off
            assert maker.check(nonce, CLIENT, later) is NonceState.FOREIGN
            assert maker.check(nonce, CLIENT, NOW - (again << 24) + off) is NonceState.FOREIGN


def test_length():
    # 13 characters of cookie, then time, port and the MAC in base64 without padding.
    assert len(NonceMaker([NEW]).make(CLIENT, NOW)) == 28  # no padding in its attribute
    assert len(NonceMaker([NEW], mac_length=8).make(CLIENT, NOW)) == 31
    assert len(NonceMaker([NEW], mac_length=4).make(CLIENT, NOW)) == 25
    nonce = NonceMaker([NEW], mac_length=32).make(CLIENT, NOW)
    assert len(nonce) == 63
    # RFC 8489 14.10 wants qdtext: no quotes, backslashes or controls.
    assert all(0x21 <= octet < 0x7F and octet not in b'"\\' for octet in nonce)


def test_secrets_are_not_shown():
    assert "secret" not in repr(NonceMaker([NEW]))


@pytest.mark.parametrize(
    "options",
    [
        {"secrets": []},
        {"secrets": [b"short"]},
        {"secrets": [NEW, b"short"]},
        {"secrets": [NEW], "mac_length": 3},
        {"secrets": [NEW], "mac_length": 33},
        {"secrets": [NEW], "lifetime": 0},
    ],
)
def test_usage(options):
    with pytest.raises(UsageError):
        NonceMaker(**options)
