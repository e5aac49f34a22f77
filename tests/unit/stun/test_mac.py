"""HMAC with kept states is HMAC."""

from __future__ import annotations

import hmac
import random

import pytest

from stun import mac


@pytest.mark.parametrize("size", [0, 1, 20, 63, 64, 65, 127, 128, 200])
def test_equal_to_the_standard_library(size: int, rng: random.Random) -> None:
    for _ in range(20):
        key, data = rng.randbytes(size), rng.randbytes(rng.randrange(300))
        assert mac.hmac_sha1(key, data) == hmac.digest(key, data, "sha1")
        assert mac.hmac_sha256(key, data) == hmac.digest(key, data, "sha256")


def test_a_key_used_again_is_not_spoilt_by_its_use() -> None:
    first = mac.hmac_sha1(b"key", b"one")
    mac.hmac_sha1(b"key", b"two")
    assert mac.hmac_sha1(b"key", b"one") == first


def test_only_so_many_keys_are_kept() -> None:
    for number in range(mac.KEYS_KEPT + 10):
        mac.hmac_sha256(number.to_bytes(4), b"")
    assert mac._sha256_states.cache_info().currsize == mac.KEYS_KEPT
    assert mac.hmac_sha256(bytes(4), b"") == hmac.digest(bytes(4), b"", "sha256")
