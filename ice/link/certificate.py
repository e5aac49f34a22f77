"""A key and a certificate that live as long as one link, known to the peer by a fingerprint.

The two sides of a link have met with a code word and told each other, sealed, the SHA-256 of their
certificates.  So nobody needs to vouch for them, names mean nothing, and neither do dates: the
certificate is valid from the beginning to the end of time, and a clock that is wrong, on either
side, stands in nobody's way.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

FINGERPRINT: Final = 32
"""Octets of a fingerprint: a SHA-256."""
MOST_CERTIFICATE: Final = 4096
"""Octets of the longest certificate that is looked at; ours have about 300."""

_NAME = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "natkit")])
_BEGINNING = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_END = datetime.datetime(9999, 12, 31, 23, 59, 59, tzinfo=datetime.UTC)
"""RFC 5280 section 4.1.2.5: for what has "no well-defined expiration date"."""


@dataclass(frozen=True, slots=True)
class Identity:
    """An ephemeral key (ECDSA, P-256) and the certificate that it signed itself."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate
    der: bytes
    """The certificate as it is sent."""
    fingerprint: bytes
    """The SHA-256 of that, which the peer has to know."""

    @classmethod
    def make(cls) -> Identity:
        """Make one; the entropy is OpenSSL's."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = (
            x509.CertificateBuilder()
            .subject_name(_NAME)
            .issuer_name(_NAME)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(_BEGINNING)
            .not_valid_after(_END)
            .sign(key, hashes.SHA256())
        )
        der = certificate.public_bytes(Encoding.DER)
        return cls(key, certificate, der, fingerprint_of(der))

    def sign(self, message: bytes) -> bytes:
        """Return a signature that :func:`is_signed` checks."""
        return self.key.sign(message, ec.ECDSA(hashes.SHA256()))


def fingerprint_of(der: bytes) -> bytes:
    """Return the SHA-256 of a certificate in DER."""
    digest = hashes.Hash(hashes.SHA256())
    digest.update(der)
    return digest.finalize()


def is_signed(der: bytes, message: bytes, signature: bytes) -> bool:
    """Whether the key of this certificate has signed ``message``.

    Whatever the octets are, this does not raise.  Whose certificate it is has to be known already.
    """
    try:
        key = x509.load_der_x509_certificate(der).public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey):
            return False
        key.verify(signature, message, ec.ECDSA(hashes.SHA256()))
    except (ValueError, InvalidSignature, UnsupportedAlgorithm, x509.InvalidVersion):
        return False
    return True
