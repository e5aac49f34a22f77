"""Users in Redis, without one: how they are written, and what errors say."""

import builtins

import pytest

from stun.errors import UsageError
from stun.users import Password, StoredKeys
from turn.users import open_backend, open_table
from turn.users.base import BackendError, BadRecord, UserRecord
from turn.users.redis import RedisUsers, connect, explained, from_fields, key_prefix, to_fields

REALM = "example.org"
exceptions = pytest.importorskip("redis.exceptions")


def octets(fields):
    return {name.encode(): value.encode() for name, value in fields.items()}


@pytest.mark.parametrize("keys_only", [False, True])
@pytest.mark.parametrize("password", ["pass", "M\u00aatr\u2168"])
def test_there_and_back(keys_only, password):
    user = UserRecord.make("alice", password, REALM, keys_only=keys_only)
    assert from_fields("alice", octets(to_fields(user))).secrets() == user.secrets()
    assert (password in to_fields(user).values()) is not keys_only


def test_what_is_stored():
    assert to_fields(UserRecord.make("alice", "pass", REALM)) == {"password": "pass"}
    fields = to_fields(UserRecord.make("alice", "pass", REALM, keys_only=True))
    assert {name: len(value) for name, value in fields.items()} == {"md5": 32, "sha256": 64}
    assert from_fields("alice", {b"password": "p\u00e4ss".encode()}).secrets() == (
        Password("p\u00e4ss"),
    )
    key = b"\0\xff" * 16
    stored = {b"sha256": key.hex().encode()}
    assert from_fields("alice", stored).secrets() == (StoredKeys(None, key),)
    # Fields that another release may add do no harm.
    assert from_fields("alice", {b"password": b"x", b"since": b"1"}).secrets() == (Password("x"),)


@pytest.mark.parametrize(
    "fields", [{b"md5": b"xyz"}, {b"md5": b"0"}, {b"sha256": b"00ff"}, {b"password": b"\xff"}]
)
def test_what_is_no_user(fields):
    with pytest.raises(ValueError):  # noqa: PT011  (Python's own, and caught at once)
        from_fields("alice", fields).secrets()


def test_keys_of_a_realm_are_on_one_node():
    # Redis Cluster hashes what stands in the first braces.
    assert key_prefix(REALM) == "natkit:{example.org}:"


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        ("AuthenticationError", "user and password"),
        ("NoPermissionError", "allow its user"),
        ("ConnectionError", "check that Redis runs"),
        ("TimeoutError", "check that Redis runs"),
        ("ResponseError", "turnd's own"),
        ("RedisError", "Redis's own log"),
    ],
)
def test_errors_name_the_server_and_say_what_to_do(error, advice):
    with (
        pytest.raises(BackendError, match=advice) as caught,
        explained("redis://me:hidden@host:1/0"),
    ):
        raise getattr(exceptions, error)("it said so")
    assert str(caught.value).startswith("redis://me:***@host:1/0: it said so: ")


def test_other_errors_are_not_touched():
    with pytest.raises(UsageError, match="mine"), explained("redis://host"):
        raise UsageError("mine")


def test_urls():
    backend = open_backend("redis://:hidden@127.0.0.1:1/0", REALM)
    assert isinstance(backend, RedisUsers)
    for url in ("redis://:hidden@host:port/0", "redis://:hidden@host/0?socket_timeout=soon"):
        for use in (open_backend, open_table):
            with pytest.raises(UsageError, match="no URL of a Redis server") as caught:
                use(url, REALM)
            assert "hidden" not in str(caught.value)


def test_without_the_library(monkeypatch):
    load = builtins.__import__

    def without(name, *args, **options):
        if name.partition(".")[0] == "redis":
            raise ModuleNotFoundError(name)
        return load(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UsageError, match=r"pip install 'natkit\[redis\]'"):
        connect("redis://host")


@pytest.mark.parametrize(
    "error", [TypeError("no iterable"), RecursionError("deep"), ValueError("no number")]
)
def test_a_server_that_is_no_redis(error):
    with (
        pytest.raises(BackendError, match=r"//:\*\*\*@h/ does not answer as Redis does \(.*Error:"),
        explained("redis://:secret@h/"),
    ):
        raise error


def test_what_is_said_in_our_words_is_passed_on():
    with pytest.raises(UsageError, match="as it is"), explained("redis://h/"):
        raise UsageError("as it is")


def test_a_value_of_another_type_concerns_one_user():
    error = exceptions.ResponseError("WRONGTYPE Operation against a key")
    about = explained("redis://h/", "natkit:{r}:user:alice")
    with pytest.raises(BadRecord, match="user:alice is no user"), about:
        raise error
    with pytest.raises(BackendError, match="turnd's own"), explained("redis://h/"):
        raise error
