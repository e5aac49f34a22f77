"""Guards: what a client adds to its requests, and what it makes of the answers (RFC 8489 9)."""

import pytest

from stun.attributes import (
    ACCESS_TOKEN,
    MESSAGE_INTEGRITY,
    MESSAGE_INTEGRITY_SHA256,
    NONCE,
    PASSWORD_ALGORITHM,
    PASSWORD_ALGORITHMS,
    REALM,
    SOFTWARE,
    THIRD_PARTY_AUTHORIZATION,
    USERHASH,
    USERNAME,
    XOR_MAPPED_ADDRESS,
    XOR_PEER_ADDRESS,
    Algorithm,
)
from stun.auth_client import (
    MAX_CHALLENGES,
    Accept,
    AuthenticationFailed,
    Discard,
    Refuse,
    Retry,
    Sessions,
    with_transaction_id,
)
from stun.codec import decode, encode
from stun.credentials import (
    Integrity,
    LongTerm,
    Profile,
    ShortTerm,
    ThirdParty,
    long_term_key,
    userhash,
)
from stun.errors import DropReason
from stun.integrity import check_fingerprint, check_integrity, check_integrity_sha256
from stun.message import Message
from stun.registry import Method, PasswordAlgorithm
from stun.sansio import Address
from stun.strings import StringError

SERVER = Address("192.0.2.1", 3478)
MAPPED = Address("203.0.113.5", 4711)
USER = LongTerm("user", "pass")
MD5_KEY = long_term_key("user", "example.org", "pass")
SHA256_KEY = long_term_key("user", "example.org", "pass", PasswordAlgorithm.SHA256)
OFFER = (Algorithm(2), Algorithm(1))
COOKIE = b"obMatJos2AAAB"
ANONYMOUS = b"obMatJos2AAAD"


def request():
    return Message.request(Method.BINDING, bytes(range(12)))


def dressed(guard, **options):
    return decode(guard.dress(request(), **{"fingerprint": False, **options}))


def success(**proof):
    message = Message.success(request()).add(XOR_MAPPED_ADDRESS, MAPPED)
    return decode(encode(message, **proof))


def error(code, *extra, **proof):
    message = Message.error(request(), code)
    for attribute, value in extra:
        message.add(attribute, value)
    return decode(encode(message, **proof))


def old_challenge(code=401, realm="example.org", nonce=b"f//499k954d6OL34oL9FSTvy64sA"):
    return error(code, (REALM, realm), (NONCE, nonce))


def new_challenge(code=401, realm="example.org", nonce=COOKIE + b"fresh", offer=OFFER):
    return error(code, (REALM, realm), (NONCE, nonce), (PASSWORD_ALGORITHMS, offer))


def names(message):
    return [code for code, _ in message.attributes]


class TestLongTerm:
    def guard(self, credentials=USER):
        return Sessions().guard(SERVER, credentials)

    def test_the_first_request_is_bare(self):
        # 9.2.3.1: "as if there were no authentication or message integrity applied".
        assert names(dressed(self.guard())) == []
        assert check_fingerprint(dressed(self.guard(), fingerprint=True))

    def test_a_server_of_rfc5389(self):
        guard = self.guard()
        assert guard.judge(old_challenge()) == Retry()
        message = dressed(guard)
        codes = [USERNAME.code, REALM.code, NONCE.code, MESSAGE_INTEGRITY.code]
        assert names(message) == codes
        assert message.get(USERNAME) == "user"
        assert message.get(REALM) == "example.org"
        assert message.get(NONCE) == b"f//499k954d6OL34oL9FSTvy64sA"
        assert check_integrity(message, MD5_KEY)
        assert guard.judge(success(key=MD5_KEY)) == Accept(authenticated=True)

    @pytest.mark.parametrize(
        ("offer", "chosen", "key"),
        [
            (OFFER, 2, SHA256_KEY),
            (OFFER[::-1], 1, MD5_KEY),  # "the first algorithm supported on the list"
            ((Algorithm(77, b"salt"), Algorithm(2)), 2, SHA256_KEY),
            ((Algorithm(2, b"strange"), Algorithm(1)), 1, MD5_KEY),
        ],
    )
    def test_a_server_of_rfc8489(self, offer, chosen, key):
        guard = self.guard()
        assert guard.judge(new_challenge(offer=offer)) == Retry()
        message = dressed(guard)
        assert message.get(PASSWORD_ALGORITHMS) == offer
        assert message.get(PASSWORD_ALGORITHM) == Algorithm(chosen)
        # 9.2.5: "all the subsequent requests MUST be authenticated using MESSAGE-INTEGRITY-SHA256
        # only".
        assert not message.has(MESSAGE_INTEGRITY)
        assert check_integrity_sha256(message, key)
        assert guard.judge(success(sha256_key=key)) == Accept(authenticated=True)

    def test_anonymity(self):
        guard = self.guard()
        assert guard.judge(new_challenge(nonce=ANONYMOUS + b"x")) == Retry()
        message = dressed(guard)
        assert message.get(USERHASH) == userhash("user", "example.org")
        assert not message.has(USERNAME)

    def test_either_order_of_the_bits(self):
        guard = self.guard()
        assert guard.judge(new_challenge(nonce=b"obMatJos2QAAAx")) == Retry()  # bit 1 from the left
        assert dressed(guard).has(USERHASH)

    def test_attributes_go_back_as_they_came(self):
        guard = self.guard()
        realm = 'q"\\uoted'
        guard.judge(old_challenge(realm=realm))
        assert dressed(guard).get(REALM) == realm

    def test_the_request_itself_is_not_touched(self):
        guard = self.guard()
        guard.judge(old_challenge())
        message = request().add(SOFTWARE, "x")
        guard.dress(message, fingerprint=False)
        assert names(message) == [SOFTWARE.code]

    def test_which_preparation(self):
        credentials = LongTerm("\u2168", "M\u00aatr\u2168")
        old, new = self.guard(credentials), self.guard(credentials)
        old.judge(old_challenge())
        new.judge(new_challenge(offer=(Algorithm(1),)))
        assert dressed(old).get(USERNAME) == "IX"
        assert check_integrity(
            dressed(old), credentials.key("example.org", profile=Profile.SASLPREP)
        )
        assert dressed(new).get(USERNAME) == "\u2168"
        assert check_integrity_sha256(dressed(new), credentials.key("example.org"))

    def test_a_string_that_this_server_cannot_have(self):
        guard = self.guard(LongTerm("user", "a\u00adb"))
        assert "RFC 8265" in refused(guard.judge(new_challenge()))
        guard = self.guard(LongTerm("user", "a\u00adb"))
        assert guard.judge(old_challenge()) == Retry()

    def test_a_username_that_grows_too_long(self):
        # 168 characters of 3 octets that SASLprep makes 18 characters each.
        guard = self.guard(LongTerm("\ufdfa" * 168, "pass"))
        assert "too long" in refused(guard.judge(old_challenge()))

    def test_wrong_password(self):
        # "The client MUST NOT perform this retry if it is not changing the USERNAME, USERHASH,
        # REALM, or its associated password from the previous attempt."
        guard = self.guard()
        guard.judge(old_challenge())
        assert "does not accept" in refused(guard.judge(old_challenge(nonce=b"another")))

    def test_another_realm_is_answered(self):
        guard = self.guard()
        guard.judge(old_challenge())
        assert guard.judge(old_challenge(realm="example.net")) == Retry()
        assert check_integrity(dressed(guard), long_term_key("user", "example.net", "pass"))

    def test_a_change_to_anonymity_is_answered(self):
        guard = self.guard()
        guard.judge(new_challenge())
        assert guard.judge(new_challenge(nonce=ANONYMOUS)) == Retry()

    def test_credentials_for_one_realm_only(self):
        guard = self.guard(LongTerm("user", "pass", realm="example.net"))
        assert "realm" in refused(guard.judge(old_challenge()))
        assert guard.judge(old_challenge(realm="example.net")) == Retry()

    def test_stale_nonces_are_replaced_but_not_for_ever(self):
        guard = self.guard()
        guard.judge(old_challenge())
        for number in range(MAX_CHALLENGES - 1):
            nonce = b"nonce %d" % number
            assert guard.judge(old_challenge(438, nonce=nonce)) == Retry()
            assert dressed(guard).get(NONCE) == nonce
        assert "challenges" in refused(guard.judge(old_challenge(438, nonce=b"one more")))

    def test_a_438_without_realm(self):
        guard = self.guard()
        guard.judge(old_challenge())
        assert guard.judge(error(438, (NONCE, b"fresh"))) == Retry()
        assert dressed(guard).get(REALM) == "example.org"

    @pytest.mark.parametrize(
        ("response", "word"),
        [
            (error(401), "REALM"),
            (error(401, (NONCE, b"n")), "REALM"),
            (error(401, (REALM, "r")), "NONCE"),
            (error(438, (REALM, "r")), "NONCE"),
            # 9.2.5: "[...] but no PASSWORD-ALGORITHMS attribute is present, then the client MUST
            # NOT retry the request with a new transaction."
            (error(401, (REALM, "r"), (NONCE, COOKIE + b"x")), "bid-down"),
            (error(401, (REALM, "r"), (NONCE, b"obMatJos2gAAAx")), "bid-down"),
            (new_challenge(offer=(Algorithm(9),)), "password algorithm"),
            (new_challenge(offer=()), "password algorithm"),
        ],
    )
    def test_challenges_that_get_no_answer(self, response, word):
        assert word in refused(self.guard().judge(response))

    def test_no_way_back_to_md5(self):
        guard = self.guard()
        guard.judge(new_challenge())
        for code in (401, 438):
            verdict = guard.judge(old_challenge(code))
            assert isinstance(verdict, Discard)
            assert (verdict.reason, verdict.violation) == (DropReason.BID_DOWN, True)
        # The request goes on as it was.
        assert check_integrity_sha256(dressed(guard), SHA256_KEY)

    @pytest.mark.parametrize(
        "response", [success(), error(500), error(300), error(400), error(420)]
    )
    def test_before_a_challenge_nothing_can_be_proved(self, response):
        assert self.guard().judge(response) == Accept(authenticated=False)

    def challenged(self):
        guard = self.guard()
        guard.judge(new_challenge())
        return guard

    @pytest.mark.parametrize(
        ("response", "reason", "violation"),
        [
            (success(), DropReason.MISSING_INTEGRITY, True),
            (error(500), DropReason.MISSING_INTEGRITY, True),
            (error(420), DropReason.MISSING_INTEGRITY, True),
            (success(sha256_key=b"wrong"), DropReason.BAD_INTEGRITY, True),
            (success(key=SHA256_KEY), DropReason.BID_DOWN, True),
            # "the 400 response will never reach the application, resulting in a timeout"
            (error(400), DropReason.MISSING_INTEGRITY, False),
            (error(400, sha256_key=b"wrong"), DropReason.BAD_INTEGRITY, True),
        ],
    )
    def test_responses_that_are_discarded(self, response, reason, violation):
        verdict = self.challenged().judge(response)
        assert isinstance(verdict, Discard)
        assert (verdict.reason, verdict.violation) == (reason, violation)

    @pytest.mark.parametrize(
        ("response", "authenticated"),
        [
            (error(500, sha256_key=SHA256_KEY), True),
            (error(400, sha256_key=SHA256_KEY), True),
            (error(300, sha256_key=SHA256_KEY), True),
            (error(300), False),
        ],
    )
    def test_errors_that_count(self, response, authenticated):
        assert self.challenged().judge(response) == Accept(authenticated)

    def test_a_forged_redirection(self):
        verdict = self.challenged().judge(error(300, sha256_key=b"wrong"))
        assert isinstance(verdict, Discard)

    def test_a_truncated_proof_is_none(self):
        message = Message.success(request()).add(XOR_MAPPED_ADDRESS, MAPPED)
        proof = dict(decode(encode(message, sha256_key=SHA256_KEY)).attributes)
        short = proof[MESSAGE_INTEGRITY_SHA256.code][:16]
        message.attributes.append((MESSAGE_INTEGRITY_SHA256.code, short))
        verdict = self.challenged().judge(decode(encode(message)))
        assert isinstance(verdict, Discard)
        assert verdict.reason is DropReason.BAD_INTEGRITY

    def test_a_nonce_that_promises_what_the_response_lacks(self):
        # 9.2.5: "For all other responses [...] the response MUST be ignored."
        message = Message.success(request()).add(NONCE, COOKIE)
        response = decode(encode(message, sha256_key=SHA256_KEY))
        for guard in (self.guard(), self.challenged()):
            verdict = guard.judge(response)
            assert isinstance(verdict, Discard)
            assert (verdict.reason, verdict.violation) == (DropReason.BID_DOWN, False)


class TestThirdParty:
    """RFC 7635 sections 5, 8 and 9."""

    BEARER = ThirdParty("north", b"m" * 20, b"opaque token")

    def guard(self):
        return Sessions().guard(SERVER, self.BEARER)

    def test_the_token_and_the_session_key(self):
        guard = self.guard()
        assert names(dressed(guard)) == []
        assert guard.judge(old_challenge()) == Retry()
        message = dressed(guard)
        codes = [USERNAME, REALM, NONCE, ACCESS_TOKEN, MESSAGE_INTEGRITY]
        assert names(message) == [attribute.code for attribute in codes]
        assert message.get(USERNAME) == "north"
        assert dict(message.attributes)[ACCESS_TOKEN.code] == b"opaque token"
        # "do not perform MD5 hash on the credentials"
        assert check_integrity(message, b"m" * 20)
        assert guard.judge(success(key=b"m" * 20)) == Accept(authenticated=True)
        assert isinstance(guard.judge(success(key=b"x" * 20)), Discard)
        assert isinstance(guard.judge(success()), Discard)

    @pytest.mark.parametrize(
        ("method", "has_token"),
        [
            (Method.BINDING, True),
            (Method.ALLOCATE, True),
            (Method.REFRESH, True),
            (Method.CREATE_PERMISSION, False),
            (Method.CHANNEL_BIND, False),
            (Method.CONNECT, False),
            (Method.CONNECTION_BIND, False),
        ],
    )
    def test_only_where_it_belongs(self, method, has_token):
        guard = self.guard()
        guard.judge(old_challenge())
        message = decode(guard.dress(Message.request(method, bytes(12)), fingerprint=False))
        assert (ACCESS_TOKEN.code in names(message)) is has_token
        assert check_integrity(message, b"m" * 20)

    def test_a_server_of_rfc8489(self):
        guard = self.guard()
        assert guard.judge(new_challenge(nonce=ANONYMOUS + b"fresh")) == Retry()
        message = dressed(guard)
        # USERNAME names a key: there is nobody to hide.
        assert message.get(USERNAME) == "north"
        assert not message.has(USERHASH)
        assert check_integrity_sha256(message, b"m" * 20)
        assert not message.has(MESSAGE_INTEGRITY)

    def test_a_server_like_coturn(self):
        # It uses the first 16 octets of the session key only; that is tried second, and kept to.
        sessions = Sessions()
        guard = sessions.guard(SERVER, self.BEARER)
        for _ in range(2):
            assert guard.judge(old_challenge()) == Retry()
        assert check_integrity(dressed(guard), b"m" * 16)
        assert guard.judge(success(key=b"m" * 16)) == Accept(authenticated=True)
        again = sessions.guard(SERVER, self.BEARER)
        assert check_integrity(dressed(again), b"m" * 16)
        assert again.judge(old_challenge(438, nonce=b"fresh")) == Retry()
        assert check_integrity(dressed(again), b"m" * 16)

    def test_a_token_that_is_not_accepted(self):
        guard = self.guard()
        offer = (THIRD_PARTY_AUTHORIZATION, "turn.example.org")
        challenge = error(401, (REALM, "r"), (NONCE, b"n"), offer)
        for key in (b"m" * 20, b"m" * 16):
            assert guard.judge(challenge) == Retry()
            assert check_integrity(dressed(guard), key)
        assert "takes those made for 'turn.example.org'" in refused(guard.judge(challenge))
        guard = self.guard()
        for _ in range(2):
            assert guard.judge(old_challenge()) == Retry()
        assert "takes no access tokens" in refused(guard.judge(old_challenge()))


class TestSessions:
    def test_the_next_request_needs_no_challenge(self):
        sessions = Sessions()
        first = sessions.guard(SERVER, USER)
        first.judge(new_challenge())
        # Not before the answer proves that the challenge came from somebody who knows the key.
        assert len(sessions) == 0
        first.judge(success(sha256_key=SHA256_KEY))
        assert check_integrity_sha256(dressed(sessions.guard(SERVER, USER)), SHA256_KEY)
        for server, credentials in (
            (Address("192.0.2.1", 3479), USER),
            (SERVER, LongTerm("user", "other")),
        ):
            assert names(dressed(sessions.guard(server, credentials))) == []

    def test_a_password_that_no_longer_works_is_forgotten(self):
        sessions = Sessions()
        first = sessions.guard(SERVER, USER)
        first.judge(old_challenge())
        first.judge(success(key=MD5_KEY))
        second = sessions.guard(SERVER, USER)
        refused(second.judge(old_challenge()))
        assert len(sessions) == 0

    def test_memory_is_bounded(self):
        sessions = Sessions(capacity=3)
        for port in range(10):
            guard = sessions.guard(Address("192.0.2.1", port), USER)
            guard.judge(old_challenge())
            guard.judge(success(key=MD5_KEY))
        assert len(sessions) == 3
        assert sessions.recall(Address("192.0.2.1", 9), USER) is not None
        assert sessions.recall(Address("192.0.2.1", 6), USER) is None


class TestShortTerm:
    KEY = b"pass"

    def guard(self, sessions=None, **options):
        sessions = Sessions() if sessions is None else sessions
        return sessions.guard(SERVER, ShortTerm("user", "pass", **options))

    def test_the_first_request_has_both_proofs(self):
        message = dressed(self.guard())
        assert names(message) == [
            USERNAME.code,
            MESSAGE_INTEGRITY.code,
            MESSAGE_INTEGRITY_SHA256.code,
        ]
        assert check_integrity(message, self.KEY)
        assert check_integrity_sha256(message, self.KEY)

    @pytest.mark.parametrize("integrity", list(Integrity))
    def test_one_proof_when_it_is_known(self, integrity):
        message = dressed(self.guard(integrity=integrity))
        assert message.has(MESSAGE_INTEGRITY) is (integrity is Integrity.SHA1)
        assert message.has(MESSAGE_INTEGRITY_SHA256) is (integrity is Integrity.SHA256)

    @pytest.mark.parametrize("proof", ["key", "sha256_key"])
    def test_later_requests_keep_to_the_answers_proof(self, proof):
        sessions = Sessions()
        verdict = self.guard(sessions).judge(success(**{proof: self.KEY}))
        assert verdict == Accept(authenticated=True)
        message = dressed(self.guard(sessions))
        assert message.has(MESSAGE_INTEGRITY) is (proof == "key")
        assert message.has(MESSAGE_INTEGRITY_SHA256) is (proof == "sha256_key")
        other = {"key": "sha256_key", "sha256_key": "key"}[proof]
        verdict = self.guard(sessions).judge(success(**{other: self.KEY}))
        assert isinstance(verdict, Discard)
        assert verdict.reason is DropReason.BID_DOWN

    @pytest.mark.parametrize(
        ("response", "reason"),
        [
            (success(), DropReason.MISSING_INTEGRITY),
            (error(401), DropReason.MISSING_INTEGRITY),
            (error(400), DropReason.MISSING_INTEGRITY),
            (success(key=b"wrong"), DropReason.BAD_INTEGRITY),
            (success(sha256_key=b"wrong"), DropReason.BAD_INTEGRITY),
        ],
    )
    def test_what_is_not_proved_is_discarded(self, response, reason):
        verdict = self.guard().judge(response)
        assert isinstance(verdict, Discard)
        assert (verdict.reason, verdict.violation) == (reason, True)

    def test_errors_prove_themselves_too(self):
        assert self.guard().judge(error(487, key=self.KEY)) == Accept(authenticated=True)

    def test_saslprep_on_request(self):
        credentials = ShortTerm("\u2168", "\u2168", profile=Profile.SASLPREP)
        message = dressed(Sessions().guard(SERVER, credentials))
        assert message.get(USERNAME) == "IX"
        assert check_integrity(message, b"IX")


def refused(verdict):
    assert isinstance(verdict, Refuse)
    assert isinstance(verdict.error, AuthenticationFailed)
    assert str(verdict.error).startswith(str(verdict.error.code))
    return verdict.error.why


def test_another_transaction_id():
    peer = Address("2001:db8::99", 5000)
    old = request().add(SOFTWARE, "x").add(XOR_PEER_ADDRESS, peer)
    old.attributes.append((XOR_MAPPED_ADDRESS.code, b"no address"))
    new = with_transaction_id(old, bytes(12))
    assert new.transaction_id == bytes(12)
    assert new.get(XOR_PEER_ADDRESS) == old.get(XOR_PEER_ADDRESS) == peer
    assert names(new) == names(old)
    assert new.attributes[0] == old.attributes[0]
    assert new.attributes[1] != old.attributes[1]
    assert new.attributes[2] == old.attributes[2]


def test_strings_are_checked_before_anything_is_sent():
    with pytest.raises(StringError):
        LongTerm("a\x00b", "pass")
