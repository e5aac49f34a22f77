"""Just enough of a TURN client to set a relay up: blocking, one request at a time.

Used beside the load, not under it: what is measured is the server.
"""

from __future__ import annotations

import os
import socket
import ssl
import struct
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from stun import attributes as attrs
from stun.codec import Message, decode, encode
from stun.credentials import long_term_key
from stun.registry import Class, Method
from stun.sansio import Address

USER, PASSWORD, REALM = "bench", "mark", "natkit.test"
UDP_PROTOCOL = 17
_HEADER = struct.Struct("!HH")


class Refused(Exception):
    """The server answered with an error, or not at all."""


class RawTurn:
    """A connection to a TURN server over UDP, TCP or TLS."""

    def __init__(
        self,
        server: Address,
        transport: str = "udp",
        *,
        patience: float = 2.0,
        source: str | None = None,
        port: int = 0,
    ) -> None:
        kind = socket.SOCK_DGRAM if transport == "udp" else socket.SOCK_STREAM
        family = socket.AF_INET6 if server.is_ipv6 else socket.AF_INET
        sock = socket.socket(family, kind)
        sock.settimeout(patience)
        if source is not None:
            if port:  # which may be that of a socket with all addresses
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((source, port))
        sock.connect(server)
        if kind == socket.SOCK_STREAM:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if transport == "tls":
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            sock = context.wrap_socket(sock)
        self.sock = sock
        self.transport = transport
        self._buffer = b""
        self._realm: str | None = None
        self._nonce = b""
        self._key = b""

    def close(self) -> None:
        """Close the socket."""
        self.sock.close()

    def request(self, message: Message, *, bare: bool = False) -> Message:
        """Send a request, authenticated once the server has asked for it; return the answer."""
        for _ in range(3):
            attributes = [*message.attributes]
            proven = Message.request(message.method, os.urandom(12))
            proven.attributes = attributes
            if self._realm is not None and not bare:
                proven.add(attrs.USERNAME, USER).add(attrs.REALM, self._realm)
                proven.add(attrs.NONCE, self._nonce)
                answer = self._exchange(encode(proven, key=self._key), proven.transaction_id)
            else:
                answer = self._exchange(encode(proven), proven.transaction_id)
            if answer.message_class is Class.SUCCESS or bare:
                return answer
            error = answer.get(attrs.ERROR_CODE)
            code = error.code if error is not None else 0
            realm, nonce = answer.get(attrs.REALM), answer.get(attrs.NONCE)
            if code not in {401, 438} or nonce is None:
                raise Refused(f"{message}: {error}")
            if realm is not None:
                self._realm = realm
                self._key = long_term_key(USER, realm, PASSWORD)
            self._nonce = nonce
        raise Refused(f"{message}: the server goes on asking for credentials")

    def _exchange(self, octets: bytes, transaction_id: bytes) -> Message:
        for _ in range(3):
            self.sock.sendall(octets)
            try:
                while True:
                    answer = decode(self._read())
                    if answer.transaction_id == transaction_id:
                        return answer
            except TimeoutError:
                if self.transport != "udp":
                    break
        raise Refused("no answer")

    def _read(self) -> bytes:
        if self.transport == "udp":
            return self.sock.recv(65535)
        while True:
            if len(self._buffer) >= 4:
                kind, length = _HEADER.unpack_from(self._buffer)
                size = 20 + length if kind < 0x4000 else 4 + (length + 3 & ~3)
                if len(self._buffer) >= size:
                    frame, self._buffer = self._buffer[:size], self._buffer[size:]
                    if kind < 0x4000:
                        return frame
                    continue
            data = self.sock.recv(65535)
            if not data:
                raise Refused("the server closed the connection")
            self._buffer += data

    def allocate(self, lifetime: int = 600) -> Address:
        """Allocate; return the relayed transport address."""
        request = Message.request(Method.ALLOCATE, bytes(12))
        request.add(attrs.REQUESTED_TRANSPORT, UDP_PROTOCOL).add(attrs.LIFETIME, lifetime)
        relayed = self.request(request).get(attrs.XOR_RELAYED_ADDRESS)
        if relayed is None:
            raise Refused("no XOR-RELAYED-ADDRESS")
        return relayed

    def bind(self, channel: int, peer: Address) -> None:
        """Bind a channel."""
        request = Message.request(Method.CHANNEL_BIND, bytes(12))
        request.add(attrs.CHANNEL_NUMBER, channel).add(attrs.XOR_PEER_ADDRESS, peer)
        self.request(request)

    def delete(self) -> None:
        """Delete the allocation."""
        self.request(Message.request(Method.REFRESH, bytes(12)).add(attrs.LIFETIME, 0))
