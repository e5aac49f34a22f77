"""Keys and credential values where the vectors have nothing to say."""

import hashlib

import pytest

from stun.credentials import (
    Integrity,
    LongTerm,
    Profile,
    ShortTerm,
    ThirdParty,
    long_term_key,
    mint,
    rest_credentials,
    rest_expiry,
    rest_password,
    short_term_key,
    userhash,
)
from stun.errors import UsageError
from stun.registry import PasswordAlgorithm
from stun.strings import StringError


def test_keys_are_hashes_of_the_three_strings():
    assert long_term_key("u", "r", "p") == hashlib.md5(b"u:r:p").digest()
    sha256 = long_term_key("u", "r", "p", PasswordAlgorithm.SHA256)
    assert sha256 == hashlib.sha256(b"u:r:p").digest()
    assert userhash("u", "r") == hashlib.sha256(b"u:r").digest()


def test_quotes_and_trailing_nulls_are_removed():
    # RFC 8489 9.2.2: "with any quotes and trailing nulls removed".
    assert long_term_key('"u"\0', '"r"', "p\0\0") == long_term_key("u", "r", "p")
    assert userhash('"u"\0', '"r"\0') == userhash("u", "r")
    # A single quote is no pair, and a password keeps its own.
    assert long_term_key('"', "r", "p") == hashlib.md5(b'":r:p').digest()
    assert long_term_key("u", "r", '"p"') == hashlib.md5(b'u:r:"p"').digest()


def test_the_two_profiles_make_two_keys():
    password = "M\u00aatr\u2168"
    opaque = long_term_key("u", "r", password)
    assert opaque == hashlib.md5(f"u:r:{password}".encode()).digest()
    prepared = long_term_key("u", "r", password, profile=Profile.SASLPREP)
    assert prepared == hashlib.md5(b"u:r:MatrIX").digest()


def test_the_realm_may_be_empty_and_nothing_else():
    assert long_term_key("u", "", "p") == hashlib.md5(b"u::p").digest()
    assert userhash("u", "") == hashlib.sha256(b"u:").digest()
    for strings in (("", "r", "p"), ("u", "r", "")):
        with pytest.raises(StringError):
            long_term_key(*strings)


def test_an_unknown_algorithm():
    with pytest.raises(UsageError, match="7"):
        long_term_key("u", "r", "p", 7)


def test_short_term_key_is_the_password():
    assert short_term_key("VOkJxbRl1RmTxUk/WvJxBt") == b"VOkJxbRl1RmTxUk/WvJxBt"
    assert short_term_key("caf\u0065\u0301") == "café".encode()
    assert ShortTerm("u", "\u2168", profile=Profile.SASLPREP).key == b"IX"
    assert ShortTerm("u", "p", Integrity.SHA1).integrity is Integrity.SHA1


def test_passwords_are_not_shown():
    assert "secret" not in repr(LongTerm("user", "secret"))
    assert "secret" not in repr(ShortTerm("user", "secret"))


def test_what_no_profile_allows_is_refused_at_once():
    for credential in (LongTerm, ShortTerm):
        with pytest.raises(StringError):
            credential("user\x07", "password")
        with pytest.raises(StringError):
            credential("user", "pass\x07word")
    with pytest.raises(StringError):
        ShortTerm("user", "")


def test_what_one_of_the_profiles_allows_is_kept():
    # U+00AD is for SASLprep only, so this password works with servers of RFC 5389 only.
    credentials = LongTerm("user", "a\u00adb")
    assert credentials.key("r", profile=Profile.SASLPREP) == hashlib.md5(b"user:r:ab").digest()
    with pytest.raises(StringError):
        credentials.key("r")


def test_usernames_are_fewer_than_509_octets():
    LongTerm("u" * 508, "p")
    ShortTerm("u" * 508, "p")
    for credential in (LongTerm, ShortTerm):
        with pytest.raises(StringError, match="509"):
            credential("u" * 509, "p")
        with pytest.raises(StringError, match="510"):
            credential("é" * 255, "p")


@pytest.mark.parametrize(
    ("username", "secret", "password"),
    [
        # Third-party values for draft-uberti-behave-turn-rest-00 section 2.2.
        ("1266890800:mbzrxpgjys", "north", "nbRcrnq5h6xXhyNhlwk+lDLvVVo="),
        ("1599491771", "foobar", "Tpz/nKkyvX/vMSLKvL4sbtBt8Vs="),
    ],
)
def test_rest_password(username, secret, password):
    assert rest_password(secret, username) == rest_password(secret.encode(), username) == password


def test_rest_credentials():
    credentials = rest_credentials("logen", 1433895918, "user")
    assert credentials.username == "1433895918:user"
    assert credentials.password == "KFLl1sC4biIDkeiqymyJDFWZuhc="
    assert rest_credentials(b"logen", 1433895918, "user") == credentials
    bare = rest_credentials("foobar", 1599491771)
    assert (bare.username, bare.password) == ("1599491771", rest_password("foobar", "1599491771"))


@pytest.mark.parametrize(
    ("username", "expires"),
    [
        ("1433895918:user", 1433895918),
        ("1433895918", 1433895918),
        ("0:a:b", 0),
        ("user", None),
        ("user:1433895918", None),
        ("", None),
        (":user", None),
        ("-1:user", None),
        ("+1:user", None),
        ("1_0:user", None),
        ("١٢:user", None),
        ("²:user", None),
        ("9" * 5000, None),
    ],
)
def test_rest_expiry(username, expires):
    assert rest_expiry(username) == expires


class TestMint:
    NOW = 1_700_000_000

    def test_a_credential_for_a_while(self):
        username, password = mint("north", "alice", 3600, self.NOW)
        assert username == "1700003600:alice"
        assert password == rest_password("north", username)
        assert rest_expiry(username) == self.NOW + 3600
        assert mint("north", "", 1, self.NOW).username == "1700000001"
        assert mint("north", "a:b", 1, self.NOW).username == "1700000001:a:b"

    def test_usage(self):
        for wrong, words in (
            ({"secret": ""}, "secret"),
            ({"ttl": 0}, "expired already"),
            ({"user": "x" * 498}, "509 octets"),
            ({"user": "a\u00adb"}, "OpaqueString"),
            ({"user": "\u2168"}, "differently"),
        ):
            arguments = {"secret": "s", "user": "u", "ttl": 1, "unix_time": self.NOW, **wrong}
            with pytest.raises(UsageError, match=words):
                mint(**arguments)


class TestThirdParty:
    def test_what_it_needs(self):
        assert ThirdParty("kid", b"key", b"token") == ThirdParty("kid", b"key", b"token")
        shown = repr(ThirdParty("kid", b"secret", b"opaque"))
        assert "secret" not in shown
        assert "opaque" not in shown
        for wrong in (("", b"k", b"t"), ("kid", b"", b"t"), ("kid", b"k", b"")):
            with pytest.raises(UsageError):
                ThirdParty(*wrong)
