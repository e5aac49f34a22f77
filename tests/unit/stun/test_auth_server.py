"""The server's decisions, in the order of RFC 8489 section 9.2.4."""

import pytest

from stun import auth_server
from stun.attributes import (
    ACCESS_TOKEN,
    ERROR_CODE,
    MESSAGE_INTEGRITY,
    MESSAGE_INTEGRITY_SHA256,
    NONCE,
    PASSWORD_ALGORITHM,
    PASSWORD_ALGORITHMS,
    REALM,
    THIRD_PARTY_AUTHORIZATION,
    UNKNOWN_ATTRIBUTES,
    USERHASH,
    USERNAME,
    Algorithm,
)
from stun.auth_server import (
    KEYS_KEPT,
    Accepted,
    Authenticator,
    Deferred,
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
from stun.integrity import check_integrity, check_integrity_sha256
from stun.message import Message
from stun.nonce import NonceMaker, parse_cookie
from stun.oauth import Contents, TokenKey, Tokens, timestamp_of
from stun.registry import ErrorCode, Method, PasswordAlgorithm, SecurityFeature
from stun.sansio import SECOND, Address
from stun.users import AnyOf, Gap

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
        assert len(encode(response)) == short.challenge_size == 80
        offering = Authenticator("turn.example.org", USERS, maker, reason="")
        response = offering.validate(received(request()), CLIENT, 0).response(request())
        assert len(encode(response)) == offering.challenge_size == 92
        longest = Authenticator("x" * 24, USERS, maker, reason="")
        assert longest.challenge_size == 100
        assert Authenticator("x" * 24, USERS, maker).challenge_size > 100


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

    def test_another_hosts(self):
        server = authenticator()
        message, key = modern(server)
        self.outcome(server, message, key, source=Address("192.0.2.8", CLIENT.port))

    def test_not_one_of_another_port_of_the_host(self):
        # As with each data connection of RFC 6062.
        server = authenticator()
        message, key = modern(server)
        source = Address(CLIENT.host, CLIENT.port + 1)
        assert isinstance(server.validate(received(message, sha256_key=key), source, 0), Accepted)

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


class TestTimeLimited:
    def test_while_it_lasts(self):
        server = authenticator(RestUsers(["new secret", "old secret"]))
        for secret in ("new secret", "old secret"):
            mine = rest_credentials(secret, EPOCH + 100, "alice")
            message, key = modern(server, username=mine.username, password=mine.password)
            proven = received(message, sha256_key=key)
            for now in (0, 100 * SECOND):
                outcome = server.validate(proven, CLIENT, now)
                assert isinstance(outcome, Accepted)
                assert outcome.username == f"{EPOCH + 100}:alice"
                assert outcome.account == "alice", "the next credential is no new allowance"
            # Its key is kept; that it has expired counts nevertheless.
            assert isinstance(server.validate(proven, CLIENT, 101 * SECOND), Rejected)
        other = rest_credentials("no secret", EPOCH + 100, "alice")
        message, key = modern(server, username=other.username, password=other.password)
        assert isinstance(server.validate(received(message, sha256_key=key), CLIENT, 0), Rejected)

    def test_without_a_name_the_time_is_the_account(self):
        server = authenticator(RestUsers(["secret"]))
        mine = rest_credentials("secret", EPOCH + 100)
        message, key = modern(server, username=mine.username, password=mine.password)
        outcome = server.validate(received(message, sha256_key=key), CLIENT, 0)
        assert isinstance(outcome, Accepted)
        assert outcome.account == str(EPOCH + 100)

    def test_a_name_on_the_list_that_looks_like_one_is_whole(self):
        server = authenticator(StaticUsers({"4102444800:alice": "password"}, REALM_NAME))
        message, key = modern(server, username="4102444800:alice", password="password")
        outcome = server.validate(received(message, sha256_key=key), CLIENT, 0)
        assert isinstance(outcome, Accepted)
        assert outcome.account == "4102444800:alice"


class Changing:
    """A store whose answers are set from outside, and that counts how often keys are made."""

    def __init__(self, **answers):
        self.answers = answers
        self.hashes = {}

    def secrets(self, username, unix_time):
        return self.answers.get(username, ())

    def by_userhash(self, value, unix_time):
        return self.hashes.get(value)


class Counting:
    """A secret that counts how often keys are made of it."""

    def __init__(self, password="pass"):
        self.password = Password(password)
        self.made = 0

    def keys(self, *args, **options):
        self.made += 1
        return self.password.keys(*args, **options)


class TestKeysKept:
    def test_a_users_key_is_made_once(self):
        secret = Counting()
        server = authenticator(Changing(user=[secret]))
        message, key = modern(server)
        for _ in range(3):
            outcome = server.validate(received(message, sha256_key=key), CLIENT, 0)
            assert isinstance(outcome, Accepted)
        assert secret.made == 1
        # Of another kind it is another key.
        assert isinstance(server.validate(legacy(server), CLIENT, 0), Accepted)
        assert secret.made == 2

    def test_a_wrong_proof_always_pays_for_making_keys(self):
        secret = Counting()
        server = authenticator(Changing(user=[secret]))
        message, key = modern(server)
        wrong = received(message, sha256_key=b"wrong")
        assert isinstance(server.validate(wrong, CLIENT, 0), Rejected)
        assert isinstance(server.validate(received(message, sha256_key=key), CLIENT, 0), Accepted)
        assert secret.made == 2
        assert isinstance(server.validate(wrong, CLIENT, 0), Rejected)
        assert secret.made == 3

    @pytest.mark.parametrize("known", [StoredKeys(md5=b"k" * 16), None])
    def test_who_has_no_password_takes_as_long_as_who_has(self, known, monkeypatch):
        made = []
        keys = Password.keys
        monkeypatch.setattr(
            Password, "keys", lambda self, *a, **o: made.append(a[0]) or keys(self, *a, **o)
        )
        server = authenticator(Changing(user=[known] if known else []))
        message, _ = modern(server)
        assert isinstance(server.validate(received(message, key=b"wrong"), CLIENT, 0), Rejected)
        assert made == ["user"]

    def test_a_refusal_takes_as_many_proofs_whoever_it_is(self, monkeypatch):
        checks = []
        real = auth_server.check_integrity
        monkeypatch.setattr(auth_server, "check_integrity", lambda *a: checks.append(a) or real(*a))
        keys = StoredKeys(md5=b"k" * 16)
        server = authenticator(
            Changing(
                known=[Password("pass")],
                unicode=[Password("p\u00aass")],  # gives two keys
                stored=[keys],
                both=[keys, StoredKeys(md5=b"l" * 16)],
                waits=[Gap.NOT_YET],
            )
        )
        good = legacy(server, username="known", key=long_term_key("known", REALM_NAME, "pass"))
        for _ in range(2):  # and then when its key is kept
            for name in ("known", "unicode", "stored", "both", "nobody", "waits"):
                checks.clear()
                wrong = legacy(server, username=name, key=b"wrong")
                assert not isinstance(server.validate(wrong, CLIENT, 0), Accepted)
                assert len(checks) == 2, name
            assert isinstance(server.validate(good, CLIENT, 0), Accepted)

    def test_a_strangers_name_is_not_prepared(self, monkeypatch):
        # U+FDFA is 18 characters in form KC: it takes milliseconds, and anybody may send it.
        server = authenticator(Changing(user=[Password("p\u00e4ss")]))
        wrong = legacy(server, username="\ufdfa" * 169, key=b"wrong")
        monkeypatch.setattr(Profile, "prepare", None)
        assert isinstance(server.validate(wrong, CLIENT, 0), Rejected)

    def test_a_changed_password_counts_at_once(self):
        users = Changing(user=[Password("pass")])
        server = authenticator(users)
        old, new = (modern(server, password=password) for password in ("pass", "changed"))
        assert isinstance(server.validate(received(old[0], sha256_key=old[1]), CLIENT, 0), Accepted)
        users.answers = {"user": [Password("changed")]}
        assert isinstance(server.validate(received(old[0], sha256_key=old[1]), CLIENT, 0), Rejected)
        assert isinstance(server.validate(received(new[0], sha256_key=new[1]), CLIENT, 0), Accepted)
        users.answers = {}
        assert isinstance(server.validate(received(new[0], sha256_key=new[1]), CLIENT, 0), Rejected)

    def test_only_so_many(self):
        secret = Counting()
        names = [f"user{number}" for number in range(KEYS_KEPT + 1)]
        server = authenticator(Changing(**dict.fromkeys(names, (secret,))))

        def ask(name):
            key = long_term_key(name, REALM_NAME, "pass")
            outcome = server.validate(legacy(server, username=name, key=key), CLIENT, 0)
            assert isinstance(outcome, Accepted)

        for name in names:
            ask(name)
        made = secret.made
        ask(names[-1])
        assert secret.made == made
        ask(names[0])
        assert secret.made == made + 1


class TestDeferred:
    def ask(self, users, *, source=CLIENT, **changes):
        server = authenticator(users, anonymous=True)
        message, key = modern(server, **changes)
        return server.validate(received(message, sha256_key=key), source, 0)

    def test_an_answer_that_must_be_fetched(self):
        users = Changing(user=[Gap.NOT_YET])
        assert self.ask(users) == Deferred("user")
        users.answers = {"user": [Password("pass")]}
        assert isinstance(self.ask(users), Accepted)

    def test_a_userhash_that_must_be_looked_up(self):
        users = Changing(user=[Password("pass")])
        hashed = userhash("user", REALM_NAME)
        users.hashes = {hashed: Gap.NOT_YET}
        assert self.ask(users, username=None, userhash=hashed) == Deferred("", hashed)
        users.hashes = {hashed: "user"}
        outcome = self.ask(users, username=None, userhash=hashed)
        assert isinstance(outcome, Accepted)
        users.answers = {"user": [Gap.NOT_YET]}
        assert self.ask(users, username=None, userhash=hashed) == Deferred("user")

    def test_not_when_another_store_has_the_answer(self):
        assert isinstance(self.ask(AnyOf(Changing(user=[Gap.NOT_YET]), USERS)), Accepted)
        waiting = self.ask(AnyOf(Changing(user=[Gap.NOT_YET]), USERS), password="other")
        assert waiting == Deferred("user")

    def test_nobody_is_asked_for_without_a_nonce_of_ours(self):
        outcome = self.ask(Changing(user=[Gap.NOT_YET]), source=Address("192.0.2.8", 1))
        assert isinstance(outcome, Rejected)
        assert outcome.code is ErrorCode.STALE_NONCE

    def test_a_database_out_of_reach(self):
        outcome = self.ask(Changing(user=[Gap.UNAVAILABLE]))
        assert isinstance(outcome, Rejected)
        assert outcome.code is ErrorCode.SERVER_ERROR
        assert "database" in outcome.detail
        # A secret from before still counts.
        known = Changing(user=[Password("pass"), Gap.UNAVAILABLE])
        assert isinstance(self.ask(known), Accepted)
        assert self.ask(known, password="other") == outcome
        # Whoever can still be asked, is.
        both = AnyOf(Changing(user=[Gap.UNAVAILABLE]), Changing(user=[Gap.NOT_YET]))
        assert self.ask(both) == Deferred("user")


class TestTokens:
    KEY = TokenKey("north", b"k" * 32)
    MAC_KEY = b"m" * 20

    def server(self, **options):
        return authenticator(tokens=Tokens("turn.example.org", [self.KEY]), **options)

    def token(self, *, server_name="turn.example.org", issued=EPOCH, lifetime=600):
        contents = Contents(self.MAC_KEY, timestamp_of(issued), lifetime)
        return self.KEY.seal(contents, server_name, bytes(12))

    def request(self, server, *, token=b"", kid="north", modern=False, now=0, **proof):
        asked = challenge(server, now=now)
        message = request().add(USERNAME, kid).add(REALM, REALM_NAME)
        message.add(NONCE, asked.get(NONCE))
        if token:
            message.attributes.append((ACCESS_TOKEN.code, token))
        if modern:
            message.add(PASSWORD_ALGORITHMS, asked.get(PASSWORD_ALGORITHMS))
            message.add(PASSWORD_ALGORITHM, Algorithm(2))
        return received(message, **(proof or {"key": self.MAC_KEY}))

    def test_the_challenge_names_the_server(self):
        server = self.server()
        assert challenge(server).get(THIRD_PARTY_AUTHORIZATION) == "turn.example.org"
        assert not challenge(authenticator()).has(THIRD_PARTY_AUTHORIZATION)
        assert server.challenge_size == authenticator().challenge_size + 4 + 16
        # Who gets a 438 has chosen already.
        stale = server.challenge(CLIENT, 0, ErrorCode.STALE_NONCE)
        assert not stale.response(request()).has(THIRD_PARTY_AUTHORIZATION)

    def test_accepted(self):
        server = self.server()
        proven = self.request(server, token=self.token())
        outcome = server.validate(proven, CLIENT, 100 * SECOND)
        assert isinstance(outcome, Accepted)
        assert (outcome.username, outcome.key) == ("north", self.MAC_KEY)
        # lifetime + Delta - abs(RDnew - TS)
        assert outcome.expires == 605 * SECOND
        assert check_integrity(decode(outcome.seal(Message.success(proven))), self.MAC_KEY)
        # Tokens share the name of their key; what is counted is not shared.
        other = server.validate(
            self.request(server, token=self.token(lifetime=601)), CLIENT, 100 * SECOND
        )
        assert other.username == outcome.username
        assert other.account != outcome.account

    def test_a_client_like_coturns(self):
        # It uses the first 16 octets of the session key only.
        server, key = self.server(), self.MAC_KEY[:16]
        outcome = server.validate(self.request(server, token=self.token(), key=key), CLIENT, 0)
        assert isinstance(outcome, Accepted)
        assert outcome.key == key
        for other in (self.MAC_KEY[:15], self.MAC_KEY + b"m", b""):
            wrong = self.request(server, token=self.token(), key=other)
            assert isinstance(server.validate(wrong, CLIENT, 0), Rejected)

    def test_with_sha256(self):
        server = self.server()
        proven = self.request(server, token=self.token(), modern=True, sha256_key=self.MAC_KEY)
        outcome = server.validate(proven, CLIENT, 0)
        assert isinstance(outcome, Accepted)
        assert outcome.integrity is Integrity.SHA256
        sealed = decode(outcome.seal(Message.success(proven)))
        assert check_integrity_sha256(sealed, self.MAC_KEY)

    def test_beside_passwords(self):
        server = self.server()
        message, key = modern(server)
        assert isinstance(server.validate(received(message, sha256_key=key), CLIENT, 0), Accepted)

    def test_refused(self):
        server = self.server()
        wrong = {
            "expired": self.request(server, token=self.token(issued=EPOCH - 605)),
            "of the future": self.request(server, token=self.token(issued=EPOCH + 605)),
            "for another server": self.request(server, token=self.token(server_name="other")),
            "of a key we do not have": self.request(server, token=self.token(), kid="south"),
            "changed": self.request(server, token=self.token()[:-1] + b"\0"),
            "malformed": self.request(server, token=b"\xff\xff"),
            "proved with another key": self.request(server, token=self.token(), key=b"x"),
        }
        details = set()
        for what, message in wrong.items():
            outcome = server.validate(message, CLIENT, 0)
            assert isinstance(outcome, Rejected), what
            assert outcome == server.challenge(CLIENT, 0), what
            details.add(outcome.detail)
        assert "" not in details
        assert len(details) >= 6

    def test_a_stale_nonce(self):
        server = self.server()
        proven = self.request(server, token=self.token())
        outcome = server.validate(proven, Address("192.0.2.8", 1), 0)
        assert outcome.code is ErrorCode.STALE_NONCE

    def test_without_a_username(self):
        server = self.server(anonymous=True)
        message = self.request(server, token=self.token())
        message.attributes[0] = (USERHASH.code, bytes(32))
        outcome = server.validate(received(message, key=self.MAC_KEY), CLIENT, 0)
        assert outcome.code is ErrorCode.BAD_REQUEST

    def test_unexpected(self):
        # RFC 7635 section 7: "it will respond with an error code of 420 (Unknown Attribute)".
        server = authenticator()
        proven = self.request(server, token=self.token())
        outcome = server.validate(proven, CLIENT, 0)
        assert isinstance(outcome, Rejected)
        assert outcome.code is ErrorCode.UNKNOWN_ATTRIBUTE
        assert outcome.response(proven).get(UNKNOWN_ATTRIBUTES) == (ACCESS_TOKEN.code,)

    def test_what_lies_between_allocate_and_refresh(self):
        server = self.server()
        session = server.validate(self.request(server, token=self.token()), CLIENT, 0)
        bare = self.request(server)
        assert isinstance(server.validate(bare, CLIENT, 0), Rejected)
        assert server.validate(bare, CLIENT, 0, session) == session
        wrong = self.request(server, key=b"wrong")
        assert isinstance(server.validate(wrong, CLIENT, 0, session), Rejected)
        # The session of one user proves nothing for another, nor for who had a password.
        named = self.request(server, kid="user")
        assert isinstance(server.validate(named, CLIENT, 0, session), Rejected)
        plain = Accepted("north", self.MAC_KEY, MD5, Integrity.SHA1)
        assert isinstance(server.validate(bare, CLIENT, 0, plain), Rejected)
        end = session.expires
        late = self.request(server, now=end)
        assert "expired" in server.validate(late, CLIENT, end, session).detail


def test_who_may_go_on_with_what_another_began():
    plain = Accepted("user", b"k", MD5, Integrity.SHA1)
    north = Accepted("north", b"k", MD5, Integrity.SHA1, "one", 9)
    south = Accepted("south", b"k", MD5, Integrity.SHA1, "two", 9)
    assert plain.may_use("user", None)
    assert not plain.may_use("other", None)
    # With tokens, a client comes back with another key's, but not with a password.
    assert south.may_use("north", north)
    assert not plain.may_use("north", north)
    assert not north.may_use("user", None)
    assert not north.may_use("user", plain)


def test_passwords_and_keys_are_not_shown():
    accepted = Accepted("user", b"hidden", MD5, Integrity.SHA1)
    assert "hidden" not in repr(accepted)
