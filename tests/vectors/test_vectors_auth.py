"""Credentials that others hand out, against the vectors: access tokens and TURN REST."""

from __future__ import annotations

import pytest

from stun.attributes import ACCESS_TOKEN
from stun.credentials import mint, rest_expiry, rest_password, rest_username
from stun.oauth import Contents, TokenAlgorithm, TokenKey, TokenRefused, Tokens


@pytest.mark.vectors("turn/access-tokens.json")
def test_access_token_is_opened_and_made(case):
    algorithm = {32: TokenAlgorithm.AES_256_GCM, 16: TokenAlgorithm.AES_128_GCM}
    octets, token = bytes.fromhex(case["key"]), bytes.fromhex(case["token"])
    server = case["associated_data"]
    key = TokenKey("kid", octets, algorithm[len(octets)])
    contents = key.open(token, server)
    expected = (bytes.fromhex(case["mac_key"]), case["timestamp"], case["lifetime"])
    assert contents == Contents(*expected)
    assert contents.to_octets().hex() == case["plaintext"]
    nonce = bytes.fromhex(case["nonce"])
    assert key.seal(contents, server, nonce) == token
    assert ACCESS_TOKEN.from_octets(token).nonce == nonce
    # Within its lifetime, and five seconds more, it is good.
    made = case["timestamp"] >> 16
    tokens = Tokens(server, [key])
    grant = tokens.redeem("kid", token, made + case["lifetime"])
    assert (grant.mac_key, grant.expires) == (expected[0], made + case["lifetime"] + 5)
    for when in (made + case["lifetime"] + 5, made - case["lifetime"] - 5):
        with pytest.raises(TokenRefused):
            tokens.redeem("kid", token, when)


@pytest.mark.vectors("turn/access-tokens.json")
def test_a_longer_key_is_cut(case):
    # Appendix A has one key of 32 octets for both algorithms.
    octets = bytes.fromhex(case["key"])
    algorithm = TokenAlgorithm.AES_256_GCM if len(octets) == 32 else TokenAlgorithm.AES_128_GCM
    longer = TokenKey("kid", octets + b"more", algorithm)
    opened = longer.open(bytes.fromhex(case["token"]), case["associated_data"])
    assert opened.lifetime == case["lifetime"]


@pytest.mark.vectors("turn/rest-credentials.json")
def test_rest_credential(case):
    secret, username = case["secret"], case["username"]
    assert rest_password(secret, username) == case["password"]
    assert rest_username(case["expires"], case["user"]) == username
    assert rest_expiry(username) == case["expires"]
    assert mint(secret, case["user"], 600, case["expires"] - 600) == (username, case["password"])
