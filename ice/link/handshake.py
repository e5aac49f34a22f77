"""A QUIC handshake in which both sides prove their identity, and the connection that comes of it.

Theory of operation.  aioquic's server never asks for a client's certificate, and its client tells
nobody which one the server had.  So both sides prove their identity within the connection, in the
way of RFC 9261.  Each side writes one unidirectional stream, and the first thing on it is the
side's certificate and a signature, made with the certificate's key, over which side it is, both
fingerprints, and a value that is peculiar to this handshake.

That value is derived from ``server_application_traffic_secret_0`` (RFC 8446 section 7.1), as the
exporter's would be: both secrets come from the master secret and the hash of the same transcript,
from ClientHello to the server's Finished.  Whoever sits in the middle has two handshakes, with two
key exchanges and two transcripts, hence two values; a signature over one is worthless in the other,
and none can be had without the key.  This is what CertificateVerify does within the handshake, so
it is as strong, in both directions; and it costs no round trip, for the server's proof is in its
first flight and the client's in its second.  Nothing else is given up or sent before the peer's is
verified.  aioquic tells the secret to the key log that its configuration has; the rest of that log
is thrown away.
"""

from __future__ import annotations

import io
import ssl
from typing import Final, cast

from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.packet import QuicProtocolVersion
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from ice.link.carrying import ALPN
from ice.link.certificate import MOST_CERTIFICATE, Identity, fingerprint_of, is_signed

WINDOW: Final = 1 << 24
"""Octets that the peer may send ahead of what was given up."""
IDLE: Final = 120.0
"""Seconds after which a connection that nothing is heard of ends; the link asks much more often."""
VERSION: Final = QuicProtocolVersion.VERSION_1
CID: Final = 8
"""Octets of a connection ID."""
_LABEL: Final = b"natkit carrier binding"


class _KeyLog(io.TextIOBase):
    """Takes what would be written to a key log, and keeps what identifies the handshake."""

    def __init__(self) -> None:
        self.binding = b""

    def write(self, line: str) -> int:
        label, _, secret = line.split()
        if label == "SERVER_TRAFFIC_SECRET_0":
            expand = HKDFExpand(hashes.SHA256(), 32, _LABEL)
            self.binding = expand.derive(bytes.fromhex(secret))
        return len(line)


class Handshake:
    """One handshake, and the connection that comes of it."""

    def __init__(
        self,
        identity: Identity,
        peer: bytes,
        *,
        size: int,
        rtt: float | None,
        destination: bytes | None,
    ) -> None:
        self._identity = identity
        self._peer = peer
        self.server = destination is not None
        self.size = size
        self.destination = destination
        self._log = _KeyLog()
        self._proof: bytearray | None = bytearray()
        """What has come of the peer's proof; ``None`` when it has been verified."""
        self._stream: int | None = None
        self._given = 0
        self.greeted = False
        """Whether the peer's hello has been understood."""
        self.shaken = False
        """Whether the handshake is done."""
        self.theirs = 2 if self.server else 3
        """The peer's stream, its first unidirectional one (RFC 9000 section 2.1)."""
        self.quic = QuicConnection(
            configuration=self._configuration(rtt),
            original_destination_connection_id=destination,
        )

    def _configuration(self, rtt: float | None) -> QuicConfiguration:
        configuration = QuicConfiguration(
            alpn_protocols=[ALPN],
            congestion_control_algorithm="cubic",
            connection_id_length=CID,
            idle_timeout=IDLE,
            is_client=not self.server,
            max_data=WINDOW,
            max_stream_data=WINDOW,
            max_datagram_size=self.size,
            max_datagram_frame_size=0xFFFF,
            secrets_log_file=cast("io.TextIOWrapper", self._log),
            supported_versions=[VERSION],
            # Who the server is does not show by who has signed its certificate.
            verify_mode=ssl.CERT_NONE,
        )
        configuration.certificate = self._identity.certificate
        configuration.private_key = self._identity.key
        if rtt is not None:
            configuration.initial_rtt = rtt
        return configuration

    @property
    def names(self) -> tuple[bytes | None, bytes]:
        """The connection IDs that packets with a long header have when they are for this one."""
        return self.destination, self.quic.host_cid

    # Proofs. --------------------------------------------------------------------------------------

    @property
    def proved(self) -> bool:
        """Whether the peer is who it is to be."""
        return self._proof is None

    def prove(self) -> None:
        """Write this side's proof, once there is a handshake that it can be about."""
        if self._stream is None and self._log.binding:
            ours, own = self._identity, self._identity.fingerprint
            signature = ours.sign(_statement(self._log.binding, own, self._peer, self.server))
            self._stream = self.quic.get_next_available_stream_id(is_unidirectional=True)
            self.write(
                len(ours.der).to_bytes(2) + ours.der + len(signature).to_bytes(2) + signature
            )

    def verify(self, data: bytes) -> bytes | str:
        """Take the first octets of the peer's stream.

        Return what came behind the proof, or in words what is wrong with it.
        """
        proof = self._proof
        if proof is None:
            return data
        proof += data
        fields: list[bytes] = []
        at = 0
        for _ in range(2):
            end = at + 2 + int.from_bytes(proof[at : at + 2])
            if end - at > MOST_CERTIFICATE:
                return "its proof of identity is malformed"
            if len(proof) < at + 2 or len(proof) < end:
                return b""
            fields.append(bytes(proof[at + 2 : end]))
            at = end
        der, signature = fields
        if fingerprint_of(der) != self._peer:
            return "its certificate is not the one that was agreed on"
        own = self._identity.fingerprint
        statement = _statement(self._log.binding, self._peer, own, not self.server)
        if not is_signed(der, statement, signature):
            return "it does not have the key of its certificate"
        self._proof = None
        return bytes(proof[at:])

    # The stream. ----------------------------------------------------------------------------------

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Write to this side's stream."""
        assert self._stream is not None
        self._given += len(data)
        self.quic.send_stream_data(self._stream, cast("bytes", data))

    @property
    def unsent(self) -> int:
        """Octets that were written and have not been sent once."""
        # aioquic tells nobody how much of a stream has left; without knowing that, either the way
        # is not filled or all that is written waits where it cannot be called back.
        stream = self.quic._streams.get(cast("int", self._stream))
        return 0 if stream is None else self._given - stream.sender.highest_offset


def _statement(binding: bytes, signer: bytes, other: bytes, is_server: bool) -> bytes:
    """Return what is signed: the names of fixed length make it unambiguous."""
    role = b"server" if is_server else b"client"
    return b"natkit carrier, " + role + b"\0" + binding + signer + other
