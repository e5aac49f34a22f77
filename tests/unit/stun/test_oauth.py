"""Access tokens: what opens them, for whom and for how long (RFC 7635)."""

import base64

import pytest

from stun.attributes import ACCESS_TOKEN, AccessToken
from stun.errors import DecodeError, UsageError
from stun.oauth import (
    DELTA,
    Contents,
    Grant,
    TokenAlgorithm,
    TokenKey,
    TokenRefused,
    Tokens,
    timestamp_of,
)

SERVER = "turn.example.org"
NOW = 1_700_000_000
KEY = TokenKey("north", b"k" * 32)
SHORT = TokenKey("south", b"s" * 32, TokenAlgorithm.AES_128_GCM)
NONCE = bytes(range(12))


def contents(*, issued=NOW, lifetime=600, mac_key=b"m" * 20):
    return Contents(mac_key, timestamp_of(issued), lifetime)


def token(key=KEY, server=SERVER, **options):
    return key.seal(contents(**options), server, NONCE)


@pytest.mark.parametrize("key", [KEY, SHORT], ids=lambda key: key.algorithm)
@pytest.mark.parametrize("length", [1, 20, 32, 64, 1000])
def test_there_and_back(key, length):
    inside = contents(mac_key=bytes(length))
    sealed = key.seal(inside, SERVER, NONCE)
    assert len(sealed) == 2 + 12 + 2 + length + 8 + 4 + 16
    assert key.open(sealed, SERVER) == inside


def test_every_changed_bit_is_noticed():
    sealed = token()
    for index in range(len(sealed)):
        for bit in range(8):
            changed = bytearray(sealed)
            changed[index] ^= 1 << bit
            with pytest.raises(TokenRefused):
                KEY.open(bytes(changed), SERVER)
    for end in range(len(sealed)):
        with pytest.raises(TokenRefused):
            KEY.open(sealed[:end], SERVER)
    with pytest.raises(TokenRefused):
        KEY.open(sealed + b"\0", SERVER)


def test_a_token_is_for_one_server_and_of_one_key():
    with pytest.raises(TokenRefused, match="'north' for the server 'other'"):
        KEY.open(token(), "other")
    with pytest.raises(TokenRefused):
        TokenKey("north", b"K" * 32).open(token(), SERVER)
    with pytest.raises(TokenRefused):
        TokenKey("north", b"k" * 32, TokenAlgorithm.AES_128_GCM).open(token(), SERVER)


@pytest.mark.parametrize(
    "block",
    [
        b"",
        b"\0",
        bytes(13),
        bytes(15),
        b"\0\x14" + bytes(20 + 11),
        b"\0\x14" + bytes(20 + 13),
        b"\xff\xff" + bytes(32),
    ],
)
def test_a_block_that_is_none(block):
    with pytest.raises(DecodeError):
        Contents.from_octets(block)
    sealed = ACCESS_TOKEN.to_octets(AccessToken(NONCE, KEY._cipher.encrypt(NONCE, block, b"s")))
    with pytest.raises(TokenRefused, match="ACCESS-TOKEN"):
        KEY.open(sealed, "s")


def test_times_have_fractions():
    # 16 bits of 1/64000 s.
    assert timestamp_of(NOW + 0.5) == NOW << 16 | 32000
    assert Contents(b"", NOW << 16 | 63999, 0).issued == pytest.approx(NOW + 1, abs=2e-5)
    assert contents(issued=NOW).issued == NOW


class TestRedeem:
    TOKENS = Tokens(SERVER, [KEY, SHORT])

    def test_several_keys_at_once(self):
        for key in (KEY, SHORT):
            grant = self.TOKENS.redeem(key.kid, token(key), NOW)
            assert (grant.mac_key, grant.expires) == (b"m" * 20, NOW + 600 + DELTA)
        with pytest.raises(TokenRefused, match="'south'"):
            self.TOKENS.redeem("south", token(KEY), NOW)
        with pytest.raises(TokenRefused, match="no key of access tokens has the name 'east'"):
            self.TOKENS.redeem("east", token(KEY), NOW)

    @pytest.mark.parametrize("age", [-604, -600, 0, 599, 600, 604])
    def test_while_it_lasts(self, age):
        # "lifetime + Delta > abs(RDnew - TS)", and that much is left of it.
        grant = self.TOKENS.redeem("north", token(), NOW + age)
        assert grant.expires == NOW + age + 605 - abs(age)

    @pytest.mark.parametrize("age", [-605, 605, 10_000])
    def test_not_longer(self, age):
        with pytest.raises(TokenRefused, match=f"for 600 s, and now it is {NOW + age}"):
            self.TOKENS.redeem("north", token(), NOW + age)

    def test_keys_have_lifetimes_too(self):
        key = TokenKey("north", b"k" * 32, valid_from=NOW, valid_until=NOW + 100)
        tokens = Tokens(SERVER, [key])
        assert tokens.redeem("north", token(), NOW).expires == NOW + 100
        for when in (NOW - 1, NOW + 100):
            with pytest.raises(TokenRefused, match="not valid now"):
                tokens.redeem("north", token(), when)

    def test_a_token_without_a_key(self):
        with pytest.raises(TokenRefused, match="no session key"):
            self.TOKENS.redeem("north", token(mac_key=b""), NOW)

    def test_tokens_have_names(self):
        names = {self.TOKENS.redeem("north", token(lifetime=n), NOW).name for n in (600, 601)}
        assert len(names) == 2
        assert all(len(name) == 12 for name in names)


class TestKeys:
    def test_of_a_configuration(self):
        encoded = base64.b64encode(b"k" * 32).decode()
        assert TokenKey.from_base64("north", encoded) == KEY
        key = TokenKey.from_base64("n", encoded, "A128GCM", timestamp=NOW, lifetime=60)
        assert (key.algorithm, key.valid_from, key.valid_until) == ("A128GCM", NOW, NOW + 60)
        with pytest.raises(UsageError, match="'n' is not base64"):
            TokenKey.from_base64("n", "not base64!")

    @pytest.mark.parametrize(
        ("name", "algorithm"),
        [
            ("A256GCM", TokenAlgorithm.AES_256_GCM),
            ("a128gcm", TokenAlgorithm.AES_128_GCM),
            ("AEAD_AES_256_GCM", TokenAlgorithm.AES_256_GCM),
            ("AEAD-AES-128-GCM", TokenAlgorithm.AES_128_GCM),
        ],
    )
    def test_algorithms_by_name(self, name, algorithm):
        assert TokenAlgorithm.named(name) is algorithm

    def test_usage(self):
        for wrong in ("A256CBC-HS512", ""):
            with pytest.raises(UsageError, match="A256GCM, A128GCM"):
                TokenAlgorithm.named(wrong)
        with pytest.raises(UsageError, match="31 octets: A256GCM needs 32"):
            TokenKey("north", bytes(31))
        with pytest.raises(UsageError, match="15 octets: A128GCM needs 16"):
            TokenKey("north", bytes(15), TokenAlgorithm.AES_128_GCM)
        with pytest.raises(UsageError, match="name"):
            TokenKey("", bytes(32))
        with pytest.raises(UsageError, match="before it begins"):
            TokenKey("north", bytes(32), valid_from=2, valid_until=2)
        with pytest.raises(UsageError, match="11 octets"):
            KEY.seal(contents(), SERVER, bytes(11))
        with pytest.raises(UsageError, match="64 bits"):
            Contents(b"", -1, 0).to_octets()
        with pytest.raises(UsageError, match="a name"):
            Tokens("", [KEY])
        with pytest.raises(UsageError, match="need a key"):
            Tokens(SERVER, [])
        with pytest.raises(UsageError, match=r"two keys .* 'north'"):
            Tokens(SERVER, [KEY, KEY])

    def test_keys_are_not_shown(self):
        assert "kkk" not in repr(KEY)
        assert "_cipher" not in repr(KEY)


def test_a_grant_is_a_plain_value():
    assert Grant(b"k", 1, "n") == (b"k", 1, "n")
