"""Identities: what is in them, and what is made of a stranger's octets."""

from __future__ import annotations

import datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding

from ice.link.certificate import FINGERPRINT, Identity, fingerprint_of, is_signed


def test_an_identity_is_new_each_time_and_known_by_its_sha_256():
    one, other = Identity.make(), Identity.make()
    assert one.fingerprint != other.fingerprint
    assert len(one.fingerprint) == FINGERPRINT
    assert one.fingerprint == fingerprint_of(one.der)
    assert one.fingerprint == one.certificate.fingerprint(hashes.SHA256())
    assert x509.load_der_x509_certificate(one.der) == one.certificate
    assert isinstance(one.key.curve, ec.SECP256R1)
    assert len(one.der) < 400


def test_no_clock_is_wrong_enough():
    certificate = Identity.make().certificate
    assert certificate.not_valid_before_utc.year == 1970
    # RFC 5280 section 4.1.2.5 has this very moment for it.
    assert certificate.not_valid_after_utc == datetime.datetime(
        9999, 12, 31, 23, 59, 59, tzinfo=datetime.UTC
    )


def test_what_was_signed():
    identity = Identity.make()
    signature = identity.sign(b"message")
    assert is_signed(identity.der, b"message", signature)
    assert not is_signed(identity.der, b"another", signature)
    assert not is_signed(Identity.make().der, b"message", signature)


@pytest.mark.parametrize("der", [b"", b"\x30", b"\x30\x82\xff\xff", bytes(4096)])
def test_what_is_no_certificate_has_signed_nothing(der):
    assert not is_signed(der, b"message", b"signature")


def test_a_cut_or_spoilt_certificate_does_not_raise(rng):
    identity = Identity.make()
    signature = identity.sign(b"message")
    for _ in range(300):
        der = bytearray(identity.der[: rng.randrange(1, len(identity.der) + 1)])
        der[rng.randrange(len(der))] ^= 1 << rng.randrange(8)
        is_signed(bytes(der), b"message", signature)
        assert not is_signed(identity.der, b"message", bytes(der[:70]))


def test_a_key_of_another_kind_has_signed_nothing():
    key = ed25519.Ed25519PrivateKey.generate()
    like = Identity.make().certificate
    other = (
        x509.CertificateBuilder()
        .subject_name(like.subject)
        .issuer_name(like.issuer)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(like.not_valid_before_utc)
        .not_valid_after(like.not_valid_after_utc)
        .sign(key, None)
    )
    assert not is_signed(other.public_bytes(Encoding.DER), b"message", key.sign(b"message"))
