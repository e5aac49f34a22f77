"""A server's certificate, and the TLS and DTLS contexts made of it, exchanged while it runs.

Theory of operation.  :class:`ServerTls` reads a certificate chain and a key, checks them in words
that name the file, and makes contexts that every new connection takes afresh, so that
:meth:`ServerTls.reload` concerns new connections only.  Either everything new is in force after it
or nothing is.

Versions and cipher suites follow BCP 195 (RFC 9325), as RFC 8489 section 6.2.3 says they "MUST":
TLS 1.2 and 1.3, ephemeral elliptic curve Diffie-Hellman with AEAD.  One suite that the same section
wants "for compatibility" is left out, TLS_DHE_RSA_WITH_AES_128_GCM_SHA256, because RFC 9325 section
4.1 says of its key agreement: "implementations SHOULD NOT negotiate" it.
"""

from __future__ import annotations

import datetime
import ssl
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from stun.errors import StunError
from stun.hello import ALPN_LABELS

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.types import (
        CertificatePublicKeyTypes,
        PrivateKeyTypes,
    )
    from OpenSSL import SSL

CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""Suites of TLS 1.2 and DTLS 1.2 in OpenSSL's terms; those of TLS 1.3 are all fit for use."""
DTLS_MTU: Final = 1200
"""Octets of a datagram that a handshake message is cut for.  RFC 8656 wants nothing above what
passes everywhere; this fits the least MTU of IPv6, 1280, with room for a tunnel's header."""
_DTLS_1_2 = 0xFEFD
_ATTEMPTS = 3
_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}

Clock = Callable[[], datetime.datetime]


class CertificateProblem(StunError):
    """A certificate or a key cannot be used: which file, and why, in words for an operator."""

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.path = path
        self.problem = problem


@dataclass(frozen=True, slots=True)
class Certificate:
    """What a server's certificate says."""

    path: Path
    subject: str
    issuer: str
    names: tuple[str, ...]
    """The DNS names and IP addresses that it is valid for (subjectAltName)."""
    not_before: datetime.datetime
    not_after: datetime.datetime
    fingerprint: str
    """SHA-256 of the certificate, in hexadecimal."""
    chain: int
    """How many certificates the file holds, this one included."""

    def __str__(self) -> str:
        names = ", ".join(self.names) or self.subject
        return f"{names} (until {self.not_after:%Y-%m-%d %H:%M} UTC, from {self.issuer})"


class _Material:
    """A chain and a key that belong together, and the contexts made of them."""

    def __init__(
        self,
        octets: bytes,
        certificates: list[x509.Certificate],
        key: PrivateKeyTypes,
        streams: ssl.SSLContext,
    ) -> None:
        self.octets = octets
        self.certificates = certificates
        self.key = key
        self.streams = streams
        self.datagrams: SSL.Context | None = None


class ServerTls:
    """The certificate of a server.

    ``certificate`` is a PEM file with the server's certificate, then those of the intermediate
    authorities; ``key`` a PEM file with its private key, by default the same file; ``password``
    decrypts the key; ``minimum`` is the least version of TLS on streams, "1.2" or "1.3" (DTLS is
    always 1.2, the only one that OpenSSL has).  Raises :class:`CertificateProblem`.
    """

    def __init__(
        self,
        certificate: Path | str,
        key: Path | str | None = None,
        *,
        password: str | None = None,
        minimum: str = "1.2",
        clock: Clock | None = None,
    ) -> None:
        self.certificate = Path(certificate)
        self.key = Path(key) if key is not None else self.certificate
        if minimum not in _VERSIONS:
            raise CertificateProblem(
                self.certificate, f"TLS {minimum} is no version to begin with; there are 1.2, 1.3"
            )
        self._password = password
        self._minimum = _VERSIONS[minimum]
        self._clock = clock or (lambda: datetime.datetime.now(datetime.UTC))
        self._material = self._load()

    def reload(self) -> bool:
        """Take what the files hold now for connections from here on; say whether it is new.

        Raises :class:`CertificateProblem`, and then everything stays as it was.
        """
        material = self._load()
        changed = material.octets != self._material.octets
        if changed:
            if self._material.datagrams is not None:
                material.datagrams = self._for_datagrams(material)
            self._material = material
        return changed

    def describe(self) -> Certificate:
        """Say what the certificate in use is."""
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes

        certificates = self._material.certificates
        leaf = certificates[0]
        try:
            names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            listed = (
                *names.get_values_for_type(x509.DNSName),
                *(str(host) for host in names.get_values_for_type(x509.IPAddress)),
            )
        except (x509.ExtensionNotFound, ValueError):
            listed = ()
        return Certificate(
            self.certificate,
            leaf.subject.rfc4514_string(),
            leaf.issuer.rfc4514_string(),
            listed,
            leaf.not_valid_before_utc,
            leaf.not_valid_after_utc,
            leaf.fingerprint(hashes.SHA256()).hex(),
            len(certificates),
        )

    @property
    def streams(self) -> ssl.SSLContext:
        """The context for TLS connections that begin now.

        It has :data:`stun.hello.ALPN_LABELS` for ALPN; a client that offers only others has to be
        refused by whoever reads its ClientHello, for the ssl module goes on without ALPN then.
        """
        return self._material.streams

    @property
    def datagrams(self) -> SSL.Context:
        """The context for DTLS sessions that begin now; may raise :class:`CertificateProblem`.

        Made when it is first asked for: two libraries have an OpenSSL of their own each.
        """
        material = self._material
        if material.datagrams is None:
            material.datagrams = self._for_datagrams(material)
        return material.datagrams

    def _for_datagrams(self, material: _Material) -> SSL.Context:
        from OpenSSL import SSL

        try:
            return _dtls_context(material)
        except (SSL.Error, TypeError, ValueError) as error:
            raise CertificateProblem(
                self.certificate, f"OpenSSL does not take it for DTLS: {error}"
            ) from None

    # Loading. -------------------------------------------------------------------------------------

    def _load(self) -> _Material:
        for _ in range(_ATTEMPTS):
            material = self._load_once()
            # The ssl module reads the files by itself.  What was checked is what it has read if
            # the files are still the same.
            if self._octets() == material.octets:
                return material
        raise CertificateProblem(self.certificate, "it changes while it is read")

    def _octets(self) -> bytes:
        chain = _read(self.certificate)
        return chain if self.key == self.certificate else chain + _read(self.key)

    def _load_once(self) -> _Material:
        octets = self._octets()
        certificates = _certificates(self.certificate, _read(self.certificate))
        key = self._private_key()
        leaf = certificates[0]
        if _spki(leaf.public_key()) != _spki(key.public_key()):
            problem = f"the private key does not belong to the certificate in {self.certificate}"
            if any(_spki(c.public_key()) == _spki(key.public_key()) for c in certificates[1:]):
                problem = "the server's certificate has to come first in the chain"
                raise CertificateProblem(self.certificate, problem)
            raise CertificateProblem(self.key, problem)
        self._check_dates(leaf)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = self._minimum
        context.set_ciphers(CIPHERS)
        # RFC 8489 section 6.2.3: "MUST disable TLS-level compression".
        context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
        context.set_alpn_protocols([label.decode() for label in ALPN_LABELS])
        context.num_tickets = 1
        try:
            context.load_cert_chain(self.certificate, self.key, self._password or "")
        except OSError as error:  # ssl.SSLError is one
            reason = getattr(error, "reason", None) or str(error)
            raise CertificateProblem(
                self.certificate, f"OpenSSL does not take it: {reason.replace('_', ' ').lower()}"
            ) from None
        return _Material(octets, certificates, key, context)

    def _private_key(self) -> PrivateKeyTypes:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        data = _read(self.key)
        if b"PRIVATE KEY-----" not in data:
            what = "there is no private key in it"
            if self.key == self.certificate:
                what += "; name the file that has it"
            raise CertificateProblem(self.key, what)
        password = self._password.encode() if self._password else None
        try:
            return load_pem_private_key(_private_part(data), password)
        except TypeError:
            if password is None:
                raise CertificateProblem(
                    self.key, "the private key is encrypted: give the password"
                ) from None
            # A password for a key that needs none: as with OpenSSL, it is not asked for.
            return load_pem_private_key(_private_part(data), None)
        except (ValueError, UnsupportedAlgorithm):
            problem = "the private key cannot be read"
            if b"ENCRYPTED" in data:
                problem += ": is the password right?"
            raise CertificateProblem(self.key, problem) from None

    def _check_dates(self, leaf: x509.Certificate) -> None:
        now = self._clock()
        if leaf.not_valid_after_utc <= now:
            raise CertificateProblem(
                self.certificate, f"expired on {leaf.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
            )
        if leaf.not_valid_before_utc > now:
            raise CertificateProblem(
                self.certificate,
                f"not valid before {leaf.not_valid_before_utc:%Y-%m-%d %H:%M} UTC"
                " (is this machine's clock right?)",
            )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise CertificateProblem(path, "no such file") from None
    except IsADirectoryError:
        raise CertificateProblem(path, "is a directory, not a file") from None
    except PermissionError:
        raise CertificateProblem(path, "permission denied for this user") from None
    except OSError as error:
        raise CertificateProblem(path, error.strerror or str(error)) from None


def _certificates(path: Path, data: bytes) -> list[x509.Certificate]:
    from cryptography import x509

    if b"-----BEGIN CERTIFICATE-----" not in data:
        problem = "there is no certificate in it"
        if b"-----BEGIN" not in data:
            problem += (
                "; it seems to be DER, and PEM is needed" if data[:1] == b"\x30" else ": not PEM"
            )
        raise CertificateProblem(path, problem)
    try:
        return x509.load_pem_x509_certificates(data)
    except ValueError:
        raise CertificateProblem(path, "a certificate in it cannot be read") from None


def _private_part(data: bytes) -> bytes:
    """Return the private key of a file that may hold certificates or EC parameters as well."""
    end = data.index(b"PRIVATE KEY-----")
    start = data.rindex(b"-----BEGIN ", 0, end)
    return data[start:]


def _spki(key: CertificatePublicKeyTypes | Any) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    encoded: bytes = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return encoded


# DTLS. --------------------------------------------------------------------------------------------


class NoCommonProtocol(Exception):
    """ALPN: the client offers nothing that we speak."""


def _select_protocol(_: SSL.Connection, offered: list[bytes]) -> bytes:
    for label in ALPN_LABELS:
        if label in offered:
            return label
    # An exception is how pyOpenSSL is told to send the alert of RFC 7301 section 3.2.
    raise NoCommonProtocol("the client offers no ALPN protocol of STUN or TURN")


def _base_context(method: int) -> SSL.Context:
    from OpenSSL import SSL

    context = SSL.Context(method)
    context.set_min_proto_version(_DTLS_1_2)
    context.set_cipher_list(CIPHERS.encode())
    context.set_options(
        SSL.OP_NO_COMPRESSION | SSL.OP_NO_QUERY_MTU | (SSL.OP_NO_RENEGOTIATION or 0)
    )
    context.set_mode(SSL.MODE_RELEASE_BUFFERS)
    return context


def _dtls_context(material: _Material) -> SSL.Context:
    from OpenSSL import SSL

    context = _base_context(SSL.DTLS_SERVER_METHOD)
    leaf, *others = material.certificates
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.use_certificate(leaf)
        for certificate in others:
            context.add_extra_chain_cert(certificate)
        context.use_privatekey(material.key)  # type: ignore[arg-type]
    context.set_alpn_select_callback(_select_protocol)
    # Each session starts from a cookie that was checked before there was a session.
    context.set_options(SSL.OP_COOKIE_EXCHANGE or 0)
    context.set_cookie_generate_callback(lambda _: b"checked")
    context.set_cookie_verify_callback(lambda _, __: True)
    # A session to resume would be kept for every client that ever came; tickets are with them.
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    return context


class ClientTls:
    """What a client verifies servers by, on TLS and DTLS.

    ``authorities`` is a PEM file with the certificates to trust, authorities' or servers' own, in
    place of the system's store.  Without ``verify`` nothing is checked, which is for tests.
    ``protocols`` are offered for ALPN (RFC 7443).  Raises :class:`CertificateProblem`.
    """

    def __init__(
        self,
        authorities: Path | str | None = None,
        *,
        verify: bool = True,
        protocols: Sequence[str] = (ALPN_LABELS[0].decode(),),
    ) -> None:
        self._trusted: list[x509.Certificate] | None = None
        if authorities is not None:
            path = Path(authorities)
            self._trusted = _certificates(path, _read(path))
        self.streams = ssl.create_default_context(cafile=authorities)
        self.streams.minimum_version = ssl.TLSVersion.TLSv1_2
        if protocols:
            self.streams.set_alpn_protocols([*protocols])
        if not verify:
            self.streams.check_hostname = False
            self.streams.verify_mode = ssl.CERT_NONE
        self._protocols = [name.encode() for name in protocols]
        self._datagrams: SSL.Context | None = None

    @classmethod
    def of(cls, streams: ssl.SSLContext) -> ClientTls:
        """Return one that has ``streams`` for TLS, and for DTLS what can be learned from it.

        The ssl module shows the certificates of authorities, not those of servers that are trusted
        by themselves.
        """
        from cryptography import x509

        made = cls.__new__(cls)
        made.streams = streams
        made._protocols = []
        made._trusted = [
            x509.load_der_x509_certificate(der) for der in streams.get_ca_certs(binary_form=True)
        ]
        made._datagrams = None
        return made

    @property
    def datagrams(self) -> SSL.Context:
        """The context for DTLS."""
        if self._datagrams is None:
            self._datagrams = self._make_datagrams()
        return self._datagrams

    def _make_datagrams(self) -> SSL.Context:
        from OpenSSL import SSL, crypto

        context = _base_context(SSL.DTLS_CLIENT_METHOD)
        if self._protocols:
            context.set_alpn_protos(self._protocols)
        if self._trusted is None:
            context.set_default_verify_paths()
        else:
            store = context.get_cert_store()
            assert store is not None
            for certificate in self._trusted:
                store.add_cert(crypto.X509.from_cryptography(certificate))
        if self.streams.verify_mode is not ssl.CERT_NONE:
            context.set_verify(SSL.VERIFY_PEER)
        return context


def ascii_name(name: str) -> str:
    """Return a server's name as SNI and certificates have it (RFC 6066 section 3, RFC 5890).

    Raises ``ValueError`` for what cannot be one.
    """
    try:
        plain = name.removesuffix(".").encode("idna").decode()
    except UnicodeError:
        plain = ""
    if not plain or "\0" in plain or plain.startswith("."):
        raise ValueError(f"{name!r} is not the name of a server")
    return plain


def name_matches(certificate: x509.Certificate, name: str) -> bool:
    """Whether a certificate is for a host, by its subjectAltName (RFC 9525 section 6).

    ``name`` is a DNS name in ASCII or a numeric address.  A wildcard is one whole leftmost label.
    """
    import ipaddress

    from cryptography import x509

    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (
        x509.ExtensionNotFound,
        x509.DuplicateExtension,
        x509.UnsupportedGeneralNameType,
        ValueError,
    ):
        return False
    try:
        host = ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        pass
    else:
        return host in names.get_values_for_type(x509.IPAddress)
    wanted = name.rstrip(".").lower().split(".")
    for pattern in names.get_values_for_type(x509.DNSName):
        labels = pattern.rstrip(".").lower().split(".")
        if labels == wanted:
            return True
        if labels[0] == "*" and len(labels) > 2 and labels[1:] == wanted[1:] and wanted[0]:
            return True
    return False
