"""A server's certificate: what is taken, what is refused in which words, how it is exchanged."""

from __future__ import annotations

import contextlib
import datetime
import os
import ssl
import warnings
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from OpenSSL import SSL

from stun.tls import CertificateProblem, ClientTls, ServerTls, name_matches
from tools.certificate import DAY, Issued, issue, write_self_signed

NAME = "turn.example"


@pytest.fixture
def authority() -> Issued:
    return issue(["natkit test authority"], authority=True)


@pytest.fixture
def issued(authority: Issued) -> Issued:
    return issue([NAME, "192.0.2.7", "2001:db8::7"], issuer=authority)


@pytest.fixture
def files(tmp_path: Path, authority: Issued, issued: Issued) -> tuple[Path, Path]:
    """A chain and, apart from it, the key."""
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    chain.write_bytes(issued.certificate_pem() + authority.certificate_pem())
    key.write_bytes(issued.key_pem())
    return chain, key


def handshake(server: ssl.SSLContext, client: ssl.SSLContext, name: str = NAME) -> ssl.SSLObject:
    """Let the two talk until the client is satisfied; return its side."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(down, up, server_hostname=name),
        server.wrap_bio(up, down, server_side=True),
    ]
    for _ in range(6):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    return ends[0]


def dtls_handshake(server: SSL.Context, client: SSL.Context) -> SSL.Connection:
    ends = [SSL.Connection(client, None), SSL.Connection(server, None)]
    ends[0].set_connect_state()
    ends[1].set_accept_state()
    for end in ends:
        end.set_ciphertext_mtu(1200)
    done = set()
    for _ in range(8):
        for this, other in ((0, 1), (1, 0)):
            try:
                ends[this].do_handshake()
                done.add(this)
            except SSL.WantReadError:
                pass
            with contextlib.suppress(SSL.WantReadError):
                ends[other].bio_write(ends[this].bio_read(65536))
    assert done == {0, 1}
    return ends[0]


def test_a_chain_and_a_key(files: tuple[Path, Path], authority: Issued, tmp_path: Path) -> None:
    tls = ServerTls(*files)
    described = tls.describe()
    assert described.path == files[0]
    assert described.subject == f"CN={NAME}"
    assert described.issuer == "CN=natkit test authority"
    assert described.names == (NAME, "192.0.2.7", "2001:db8::7")
    assert described.chain == 2
    assert len(described.fingerprint) == 64
    assert described.not_after - described.not_before == 2 * DAY
    assert NAME in str(described)
    trusted = tmp_path / "authority.pem"
    trusted.write_bytes(authority.certificate_pem())
    client = handshake(tls.streams, ClientTls(trusted).streams)
    assert client.version() == "TLSv1.3"
    assert client.selected_alpn_protocol() == "stun.turn"
    assert handshake(tls.streams, ClientTls(trusted).streams, "192.0.2.7").version()
    datagrams = dtls_handshake(tls.datagrams, ClientTls(trusted).datagrams)
    assert datagrams.get_protocol_version_name() == "DTLSv1.2"
    assert datagrams.get_alpn_proto_negotiated() == b"stun.turn"
    chain = datagrams.get_peer_cert_chain(as_cryptography=True)
    assert chain is not None
    assert len(chain) == 2


def test_one_file_for_both_and_a_server_trusted_by_itself(tmp_path: Path) -> None:
    path = write_self_signed(tmp_path / "both.pem", NAME)
    tls = ServerTls(str(path))
    assert handshake(tls.streams, ClientTls(path).streams).version()
    assert dtls_handshake(tls.datagrams, ClientTls(path).datagrams)


@pytest.mark.parametrize(
    ("version", "minimum", "works"),
    [
        (ssl.TLSVersion.TLSv1_1, "1.2", False),
        (ssl.TLSVersion.TLSv1_2, "1.2", True),
        (ssl.TLSVersion.TLSv1_2, "1.3", False),
        (ssl.TLSVersion.TLSv1_3, "1.3", True),
    ],
)
def test_versions(tmp_path: Path, version: ssl.TLSVersion, minimum: str, works: bool) -> None:
    path = write_self_signed(tmp_path / "both.pem", NAME)
    client = ssl.create_default_context(cafile=path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        client.minimum_version = ssl.TLSVersion.TLSv1
        client.maximum_version = version
    client.set_ciphers("ALL:@SECLEVEL=0")
    server = ServerTls(path, minimum=minimum).streams
    if works:
        assert handshake(server, client).version() == version.name.replace("v1_", "v1.")
    else:
        with pytest.raises(ssl.SSLError):
            handshake(server, client)


@pytest.mark.parametrize("suite", ["AES128-GCM-SHA256", "ECDHE-ECDSA-AES128-SHA"])
def test_suites_without_forward_secrecy_or_aead_are_refused(tmp_path: Path, suite: str) -> None:
    path = write_self_signed(tmp_path / "both.pem", NAME)
    client = ssl.create_default_context(cafile=path)
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    client.set_ciphers(suite)
    with pytest.raises(ssl.SSLError):
        handshake(ServerTls(path).streams, client)


def test_an_encrypted_key(tmp_path: Path, issued: Issued) -> None:
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    chain.write_bytes(issued.certificate_pem())
    key.write_bytes(issued.key_pem("correct horse"))
    tls = ServerTls(chain, key, password="correct horse")
    assert tls.streams
    assert tls.datagrams
    with pytest.raises(CertificateProblem, match=r"key\.pem: .*encrypted: give the password"):
        ServerTls(chain, key)
    with pytest.raises(CertificateProblem, match=r"key\.pem: .*is the password right"):
        ServerTls(chain, key, password="battery staple")
    key.write_bytes(issued.key_pem())
    assert ServerTls(chain, key, password="for nothing").streams


def test_what_cannot_be_used_is_said_in_words(tmp_path: Path, issued: Issued) -> None:
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"

    def problem(certificate: bytes | None, private: bytes | None) -> str:
        for path, content in ((chain, certificate), (key, private)):
            path.unlink(missing_ok=True)
            if content is not None:
                path.write_bytes(content)
        with pytest.raises(CertificateProblem) as caught:
            ServerTls(chain, key)
        assert str(caught.value) == f"{caught.value.path}: {caught.value.problem}"
        return f"{caught.value.path.name}: {caught.value.problem}"

    good, private = issued.certificate_pem(), issued.key_pem()
    other = issue([NAME])
    assert problem(None, private) == "chain.pem: no such file"
    assert problem(good, None) == "key.pem: no such file"
    assert problem(b"certificate", private) == "chain.pem: there is no certificate in it: not PEM"
    der = issued.certificate.public_bytes(serialization.Encoding.DER)
    assert "seems to be DER" in problem(der, private)
    assert problem(private, private) == "chain.pem: there is no certificate in it"
    assert problem(good, good) == "key.pem: there is no private key in it"
    broken = good.replace(b"\n", b"\nAAAA", 2)
    assert problem(broken, private) == "chain.pem: a certificate in it cannot be read"
    assert "the private key cannot be read" in problem(good, private.replace(b"M", b"A", 3))
    assert "does not belong to the certificate" in problem(good, other.key_pem())
    swapped = other.certificate_pem() + good
    assert "has to come first in the chain" in problem(swapped, private)
    old = issue([NAME], begins=-3 * DAY, ends=-DAY)
    assert problem(old.certificate_pem(), old.key_pem()).startswith("chain.pem: expired on 20")
    early = issue([NAME], begins=DAY, ends=2 * DAY)
    assert "is this machine's clock right" in problem(early.certificate_pem(), early.key_pem())


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    with pytest.raises(CertificateProblem, match="is a directory"):
        ServerTls(tmp_path)
    both = write_self_signed(tmp_path / "both.pem", NAME)
    with pytest.raises(CertificateProblem, match=r"1\.1 is no version"):
        ServerTls(both, minimum="1.1")
    if os.geteuid():  # root may read everything
        both.chmod(0)
        with pytest.raises(CertificateProblem, match="permission denied"):
            ServerTls(both)


def test_permission_denied_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_self_signed(tmp_path / "both.pem", NAME)

    def denied(_: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", denied)
    with pytest.raises(CertificateProblem, match="permission denied for this user"):
        ServerTls(path)


def test_reload_takes_both_files_or_neither(files: tuple[Path, Path]) -> None:
    chain, key = files
    tls = ServerTls(chain, key)
    streams, datagrams, before = tls.streams, tls.datagrams, tls.describe()
    assert tls.reload() is False
    assert tls.streams is streams
    new = issue([NAME, "new.example"])
    chain.write_bytes(new.certificate_pem())
    with pytest.raises(CertificateProblem, match="does not belong"):
        tls.reload()
    assert tls.streams is streams
    assert tls.datagrams is datagrams
    assert tls.describe() == before
    key.write_bytes(new.key_pem())
    assert tls.reload() is True
    assert tls.streams is not streams
    assert tls.datagrams is not datagrams
    assert tls.describe().names == (NAME, "new.example")
    client = ssl.create_default_context(cafile=chain)
    assert handshake(tls.streams, client, "new.example").version()


def test_files_that_change_while_they_are_read(
    files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    chain, key = files
    real, reads = Path.read_bytes, 0

    def changing(path: Path) -> bytes:
        nonlocal reads
        reads += 1
        return real(path) + b"\n" * reads

    monkeypatch.setattr(Path, "read_bytes", changing)
    with pytest.raises(CertificateProblem, match="changes while it is read"):
        ServerTls(chain, key)


def test_the_clock_decides_what_has_expired(files: tuple[Path, Path]) -> None:
    now = datetime.datetime.now(datetime.UTC)
    with pytest.raises(CertificateProblem, match="expired"):
        ServerTls(*files, clock=lambda: now + 2 * DAY)


def test_a_dtls_client_for_another_protocol_is_refused(tmp_path: Path) -> None:
    path = write_self_signed(tmp_path / "both.pem", NAME)
    with pytest.raises(Exception, match="no ALPN protocol of STUN or TURN"):
        dtls_handshake(ServerTls(path).datagrams, ClientTls(path, protocols=("h2",)).datagrams)
    assert dtls_handshake(ServerTls(path).datagrams, ClientTls(path, protocols=()).datagrams)


def test_a_client_that_trusts_what_an_ssl_context_does(
    files: tuple[Path, Path], authority: Issued, tmp_path: Path
) -> None:
    trusted = tmp_path / "authority.pem"
    trusted.write_bytes(authority.certificate_pem())
    tls = ServerTls(*files)
    context = ssl.create_default_context(cafile=trusted)
    assert ClientTls.of(context).streams is context
    assert dtls_handshake(tls.datagrams, ClientTls.of(context).datagrams)
    empty = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    with pytest.raises(SSL.Error):
        dtls_handshake(tls.datagrams, ClientTls.of(empty).datagrams)
    careless = ClientTls(verify=False)
    assert dtls_handshake(tls.datagrams, careless.datagrams)
    assert handshake(tls.streams, careless.streams).version()


@pytest.mark.parametrize(
    ("name", "matches"),
    [
        ("turn.example", True),
        ("TURN.Example.", True),
        ("a.relay.example", True),
        ("a.b.relay.example", False),
        ("relay.example", False),
        ("example", False),
        ("x.example", False),
        ("192.0.2.7", True),
        ("192.0.2.8", False),
        ("2001:db8:0::7", True),
        ("fe80::1%eth0", False),
    ],
)
def test_names(name: str, matches: bool) -> None:
    issued = issue(["turn.example", "*.relay.example", "*.example", "192.0.2.7", "2001:db8::7"])
    certificate = issued.certificate
    if name == "x.example":  # a wildcard for a whole top-level domain counts for nothing
        assert not name_matches(issue(["*.example"]).certificate, name)
    else:
        assert name_matches(certificate, name) is matches


def test_a_certificate_without_names_matches_nothing() -> None:
    assert not name_matches(issue(["turn.example"], authority=True).certificate, "turn.example")
