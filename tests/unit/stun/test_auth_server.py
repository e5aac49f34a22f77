"""The server's decisions, in the order of RFC 8489 section 9.2.4."""

import pytest

from stun.attributes import (
    ERROR_CODE,
    MESSAGE_INTEGRITY,
    MESSAGE_INTEGRITY_SHA256,
    NONCE,
    PASSWORD_ALGORITHM,
    PASSWORD_ALGORITHMS,
    REALM,
    USERHASH,
    USERNAME,
    Algorithm,
)
from stun.auth_server import (
    Accepted,
    AnyOf,
    Authenticator,
    Password,
    Rejected,
    RestUsers,
    StaticUsers,
    StoredKeys,
)
from stun.codec import decode, encode
from stun.credentials import (
    Integrity,
    Profile,
    long_term_key,
    rest_credentials,
    userhash,
)
from stun.errors import UsageError
from stun.integrity import check_integrity, check_integrity_sha256
from stun.message import Message
from stun.nonce import NonceMaker, parse_cookie
from stun.registry import ErrorCode, Method, PasswordAlgorithm, SecurityFeature
from stun.sansio import SECOND, Address

REALM_NAME = "example.org"
CLIENT = Address("192.0.2.7", 40000)
EPOCH = 1_700_000_000
MD5, SHA256 = PasswordAlgorithm.MD5, PasswordAlgorithm.SHA256
BOTH = (Algorithm(2), Algorithm(1))
NONCES = NonceMaker([b"0123456789abcdef"], lifetime=600)
USERS = StaticUsers({"user": "pass", "マトリックス": "TheMatrIX"}, REALM_NAME)


def authenticator(users=USERS, **options):
    return Authenticator(REALM_NAME, users, NONCES, unix_epoch=EPOCH, **options)


def request():
    return Message.request(Method.BINDING, bytes(range(12)))


def received(message, **proof):
    return decode(encode(message, **proof))


def challenge(server, source=CLIENT, now=0):
    """Ask without credentials; return the nonce."""
    rejected = server.validate(received(request()), source, now)
    assert isinstance(rejected, Rejected)
    assert rejected.code is ErrorCode.UNAUTHENTICATED
    return rejected.response(request())


def modern(server, *, username="user", password="pass", algorithm=SHA256, now=0, **changes):
    """A request as RFC 8489 clients make it, with some attributes changed or (None) left out."""
    response = challenge(server, now=now)
    values = {
        USERNAME: username,
        REALM: REALM_NAME,
        NONCE: response.get(NONCE),
        PASSWORD_ALGORITHMS: response.get(PASSWORD_ALGORITHMS),
        PASSWORD_ALGORITHM: Algorithm(algorithm),
    }
    names = {
        attribute.name.replace("-", "_").lower(): attribute for attribute in [*values, USERHASH]
    }
    values |= {names[name]: value for name, value in changes.items()}
    message = request()
    for attribute, value in values.items():
        if value is not None:
            message.add(attribute, value)
    return message, long_term_key(username or "user", REALM_NAME, password, algorithm)


def legacy(server, *, username="user", key=None, now=0):
    """A request as RFC 5389 clients make it."""
    message = request().add(USERNAME, username).add(REALM, REALM_NAME)
    message.add(NONCE, challenge(server, now=now).get(NONCE))
    return received(message, key=key or long_term_key("user", REALM_NAME, "pass"))


class TestChallenge:
    def test_without_a_proof_401(self):
        response = challenge(authenticator())
        assert response.get(ERROR_CODE).code == 401
        assert response.get(REALM) == REALM_NAME
        assert response.get(PASSWORD_ALGORITHMS) == BOTH
        assert parse_cookie(response.get(NONCE)) == {SecurityFeature.PASSWORD_ALGORITHMS}
        assert not response.has(MESSAGE_INTEGRITY)
        assert not response.has(MESSAGE_INTEGRITY_SHA256)
        assert not response.has(USERNAME)

    def test_anonymity_is_announced(self):
        response = challenge(authenticator(anonymous=True))
        assert parse_cookie(response.get(NONCE)) == set(SecurityFeature)

    def test_a_server_may_speak_like_rfc5389(self):
        response = challenge(authenticator(algorithms=()))
        assert not response.has(PASSWORD_ALGORITHMS)
        # The cookie says that the server follows RFC 8489, and that it uses no feature of it.
        assert parse_cookie(response.get(NONCE)) == set()

    def test_each_client_gets_its_own_nonce(self):
        server = authenticator()
        nonces = {challenge(server, Address("192.0.2.7", port)).get(NONCE) for port in range(1, 20)}
        assert len(nonces) == 19

    def test_401_fits_in_100_octets(self):
        # An answer of at most five times the 20 octets that a spoofed request costs.
        maker = NonceMaker([b"0123456789abcdef"])
        short = Authenticator("turn.example.org", USERS, maker, algorithms=(), reason="")
        response = short.validate(received(request()), CLIENT, 0).response(request())
        assert len(encode(response)) == 84
        offering = Authenticator("turn.example.org", USERS, maker, reason="")
        response = offering.validate(received(request()), CLIENT, 0).response(request())
        assert len(encode(response)) == 96


class TestBadRequest:
    @pytest.mark.parametrize("missing", ["username", "realm", "nonce"])
    @pytest.mark.parametrize("proof", ["key", "sha256_key"])
    def test_a_proof_without_what_it_needs(self, missing, proof):
        server = authenticator()
        message, key = modern(server, **{missing: None})
        outcome = server.validate(received(message, **{proof: key}), CLIENT, 0)
        assert isinstance(outcome, Rejected)
        assert outcome.code is ErrorCode.BAD_REQUEST
        # "This response SHOULD NOT include a USERNAME, USERHASH, NONCE, or REALM attribute."
        assert outcome.attributes == ()

    @pytest.mark.parametrize(
        "changes",
        [
            {"password_algorithms": None},
            {"password_algorithm": None},
            {"password_algorithms": (Algorithm(1),)},
            {"password_algorithms": (Algorithm(1), Algorithm(2))},
            {"password_algorithms": (*BOTH, Algorithm(3))},
            {"password_algorithm": Algorithm(3)},
            {"password_algorithm": Algorithm(2, b"parameters")},
        ],
    )
    def test_algorithms_that_were_not_offered(self, changes):
        server = authenticator()
        message, key = modern(server, **changes)
        outcome = server.validate(received(message, sha256_key=key), CLIENT, 0)
        assert isinstance(outcome, Rejected)
        assert outcome.code is ErrorCode.BAD_REQUEST

    def test_malformed_values(self):
        server = authenticator()
        message, key = modern(server)
        for code in (USERNAME.code, PASSWORD_ALGORITHM.code, PASSWORD_ALGORITHMS.code):
            spoiled = request()
            spoiled.attributes = [
                (c, b"\xff" if c == code else value) for c, value in message.attributes
            ]
            outcome = server.validate(received(spoiled, sha256_key=key), CLIENT, 0)
            assert isinstance(outcome, Rejected)
            assert outcome.code is ErrorCode.BAD_REQUEST
            assert outcome.detail


class TestAccepted:
    @pytest.mark.parametrize("algorithm", [MD5, SHA256])
    @pytest.mark.parametrize("proof", ["key", "sha256_key"])
    def test_modern(self, algorithm, proof):
        server = authenticator()
        message, key = modern(server, algorithm=algorithm)
        outcome = server.validate(received(message, **{proof: key}), CLIENT, 0)
        assert outcome == Accepted("user", key, algorithm, Integrity.SHA256)
        sealed = decode(outcome.seal(Message.success(message)))
        assert check_integrity_sha256(sealed, key)
        assert not sealed.has(MESSAGE_INTEGRITY)

    def test_legacy(self):
        server = authenticator()
        key = long_term_key("user", REALM_NAME, "pass")
        outcome = server.validate(legacy(server), CLIENT, 0)
        assert outcome == Accepted("user", key, MD5, Integrity.SHA1)
        sealed = decode(outcome.seal(Message.success(request()), fingerprint=True))
        assert check_integrity(sealed, key)
        assert not sealed.has(MESSAGE_INTEGRITY_SHA256)

    def test_userhash(self):
        server = authenticator(anonymous=True)
        message, key = modern(server, username=None, userhash=userhash("user", REALM_NAME))
        outcome = server.validate(received(message, sha256_key=key), CLIENT, 0)
        assert isinstance(outcome, Accepted)
        assert outcome.username == "user"

    def test_the_same_user_under_both_preparations(self):
        # A password that the two profiles turn into two keys; only a client that shows itself as
        # RFC 8489 is held to one of them.
        password = "M\u00aatr\u2168"
        server = authenticator(StaticUsers({"user": password}, REALM_NAME))
        for profile in Profile:
            key = long_term_key("user", REALM_NAME, password, profile=profile)
            assert isinstance(server.validate(legacy(server, key=key), CLIENT, 0), Accepted)
        message, _ = modern(server, algorithm=MD5)
        key = long_term_key("user", REALM_NAME, password, profile=Profile.SASLPREP)
        outcome = server.validate(received(message, sha256_key=key), CLIENT, 0)
        assert isinstance(outcome, Rejected)

    def test_stored_keys_instead_of_passwords(self):
        key = long_term_key("user", REALM_NAME, "pass")
        server = authenticator(StaticUsers({"user": StoredKeys(md5=key)}, REALM_NAME))
        assert isinstance(server.validate(legacy(server), CLIENT, 0), Accepted)
        message, key = modern(server, algorithm=SHA256)
        outcome = server.validate(received(message, sha256_key=key), CLIENT, 0)
        assert isinstance(outcome, Rejected)  # no SHA-256 key is stored
        assert "key" not in repr(StoredKeys(md5=b"key", sha256=b"key")).replace("Keys", "")


class TestUnauthenticated:
    def test_unknown_user(self):
        server = authenticator()
        message, key = modern(server, username="nobody")
        outcome = server.validate(received(message, sha256_key=key), CLIENT, 0)
        assert isinstance(outcome, Rejected)
        assert outcome.code is ErrorCode.UNAUTHENTICATED
        response = outcome.response(message)
        assert response.has(REALM)
        assert response.has(NONCE)
        assert response.has(PASSWORD_ALGORITHMS)

    def test_unknown_userhash(self):
        server = authenticator(anonymous=True)
        message, key = modern(server, username=None, userhash=bytes(32))
        outcome = server.validate(received(message, sha256_key=key), CLIENT, 0)
        assert outcome == server.challenge(CLIENT, 0)

    def test_wrong_password_looks_like_unknown_user(self):
        server = authenticator()
        unknown, key = modern(server, username="nobody")
        wrong, other = modern(server, password="wrong")
        assert server.validate(received(unknown, sha256_key=key), CLIENT, 0) == server.validate(
            received(wrong, sha256_key=other), CLIENT, 0
        )

    def test_the_sha256_proof_decides_when_both_are_there(self):
        server = authenticator()
        message, key = modern(server)
        outcome = server.validate(received(message, key=key, sha256_key=b"wrong"), CLIENT, 0)
        assert isinstance(outcome, Rejected)
        outcome = server.validate(received(message, key=b"wrong", sha256_key=key), CLIENT, 0)
        assert isinstance(outcome, Accepted)


class TestStaleNonce:
    def outcome(self, server, message, key, source=CLIENT, now=0):
        outcome = server.validate(received(message, sha256_key=key), source, now)
        assert isinstance(outcome, Rejected)
        assert outcome.code is ErrorCode.STALE_NONCE
        response = outcome.response(message)
        # "This response MUST include NONCE, REALM, and PASSWORD-ALGORITHMS attributes" and "The
        # NONCE attribute value MUST be valid."
        assert response.get(REALM) == REALM_NAME
        assert response.get(PASSWORD_ALGORITHMS) == BOTH
        return response.get(NONCE)

    def test_expired(self):
        server = authenticator()
        message, key = modern(server)
        now = 601 * SECOND
        fresh = self.outcome(server, message, key, now=now)
        message, key = modern(server, nonce=fresh)
        assert isinstance(server.validate(received(message, sha256_key=key), CLIENT, now), Accepted)

    def test_another_clients(self):
        server = authenticator()
        message, key = modern(server)
        self.outcome(server, message, key, source=Address("192.0.2.7", 40001))

    def test_invented(self):
        server = authenticator()
        message, key = modern(server, nonce=b"obMatJos2AAABinvented")
        self.outcome(server, message, key)

    def test_with_its_features_taken_off(self):
        # An attacker on the path makes a client of RFC 8489 believe in a server of RFC 5389.
        server = authenticator()
        nonce = challenge(server).get(NONCE).replace(b"AAAB", b"AAAA", 1)
        message, key = modern(
            server,
            algorithm=MD5,
            nonce=nonce,
            password_algorithm=None,
            password_algorithms=None,
        )
        self.outcome(server, message, key)

    def test_only_after_the_proof(self):
        # A wrong password is 401 whatever the nonce, or a guesser could tell them apart.
        server = authenticator()
        message, key = modern(server, nonce=b"invented", password="wrong", algorithm=MD5)
        outcome = server.validate(received(message, sha256_key=key), CLIENT, 0)
        assert outcome.code is ErrorCode.UNAUTHENTICATED

    def test_the_clock_can_be_set(self):
        server = authenticator()
        message, key = modern(server)
        server.set_clock(EPOCH + 601, now=0)
        self.outcome(server, message, key)
        server.set_clock(EPOCH + 601, now=601 * SECOND)
        outcome = server.validate(received(message, sha256_key=key), CLIENT, 10 * SECOND)
        assert isinstance(outcome, Accepted)


class TestUsers:
    def test_time_limited_credentials(self):
        users = RestUsers(["new secret", "old secret"])
        server = authenticator(users)
        for secret in ("new secret", "old secret"):
            mine = rest_credentials(secret, EPOCH + 100, "alice")
            message, key = modern(server, username=mine.username, password=mine.password)
            proven = received(message, sha256_key=key)
            outcome = server.validate(proven, CLIENT, 100 * SECOND)
            assert isinstance(outcome, Accepted)
            assert outcome.username == f"{EPOCH + 100}:alice"
            assert isinstance(server.validate(proven, CLIENT, 101 * SECOND), Rejected)
        other = rest_credentials("no secret", EPOCH + 100, "alice")
        message, key = modern(server, username=other.username, password=other.password)
        assert isinstance(server.validate(received(message, sha256_key=key), CLIENT, 0), Rejected)

    def test_any_of(self):
        both = AnyOf(RestUsers(["secret"]), USERS)
        mine = rest_credentials("secret", EPOCH, "alice")
        assert both.secrets("user", EPOCH) == [Password("pass")]
        assert both.secrets(mine.username, EPOCH) == [Password(mine.password)]
        assert both.secrets("nobody", EPOCH) == []
        assert both.by_userhash(userhash("user", REALM_NAME)) == "user"
        assert both.by_userhash(bytes(32)) is None

    def test_names_are_found_under_both_preparations(self):
        users = StaticUsers({"\u2168": "pass"}, REALM_NAME)
        assert users.secrets("\u2168", 0) == users.secrets("IX", 0) == (Password("pass"),)
        assert users.by_userhash(userhash("\u2168", REALM_NAME)) == "\u2168"

    def test_a_name_for_saslprep_only(self):
        users = StaticUsers({"a\u00adb": "pass"}, REALM_NAME)
        assert users.secrets("ab", 0) == (Password("pass"),)

    def test_usage(self):
        with pytest.raises(UsageError):
            RestUsers([])

    def test_passwords_are_not_shown(self):
        assert "hidden" not in repr(Password("hidden"))
        accepted = Accepted("user", b"hidden", MD5, Integrity.SHA1)
        assert "hidden" not in repr(accepted)
