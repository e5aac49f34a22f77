"""A STUN server with one of the faults that servers in the wild have.

python tools/rivals/dishonest.py --fault ignore-change 192.31.196.10 192.175.48.10

It serves RFC 8489 and RFC 3489 clients over UDP at two addresses of two ports each.  It is a tool
for tests: no rate limits, no credentials.
"""

from __future__ import annotations

import argparse
import selectors
import socket
import sys
from enum import StrEnum
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from stun.attributes import (
    CHANGE_REQUEST,
    CHANGED_ADDRESS,
    MAPPED_ADDRESS,
    OTHER_ADDRESS,
    RESPONSE_ORIGIN,
    SOURCE_ADDRESS,
    UNKNOWN_ATTRIBUTES,
    XOR_MAPPED_ADDRESS,
    ChangeRequest,
)
from stun.codec import Message, decode, encode
from stun.errors import DecodeError
from stun.registry import Class, Method
from stun.sansio import Address

PRIVATE = Address("10.11.12.13", 3479)
"""What a server behind its own NAT advertises as its second address."""
UNKNOWN_ATTRIBUTE = 420
PORT, ALTERNATE_PORT = 3478, 3479


class Fault(StrEnum):
    """What the server does wrong."""

    NONE = "none"
    IGNORE_CHANGE = "ignore-change"
    """Answers every request from where it was asked."""
    REFUSE_CHANGE = "refuse-change"
    """Answers 420 to CHANGE-REQUEST."""
    PRIVATE_OTHER = "private-other"
    """Advertises a private second address."""
    NO_OTHER = "no-other"
    """Advertises no second address and ignores CHANGE-REQUEST, like an ordinary STUN server."""
    DEAD_SECOND = "dead-second"
    """Advertises a second address that neither answers nor sends."""


class Server:
    """Four sockets and one fault."""

    def __init__(self, fault: Fault, first: str, second: str, *, bind: bool = True) -> None:
        self.fault = fault
        self._other = {
            Address(host, port): Address(
                second if host == first else first,
                ALTERNATE_PORT if port == PORT else PORT,
            )
            for host in (first, second)
            for port in (PORT, ALTERNATE_PORT)
        }
        hosts = (first,) if fault in (Fault.DEAD_SECOND, Fault.NO_OTHER) else (first, second)
        self.alive = [address for address in self._other if address.host in hosts]
        self.sockets = {address: _bound(address) for address in self.alive} if bind else {}

    def serve(self) -> None:
        """Answer until interrupted."""
        with selectors.DefaultSelector() as selector:
            for address, opened in self.sockets.items():
                selector.register(opened, selectors.EVENT_READ, address)
            while True:
                for key, _ in selector.select():
                    assert isinstance(key.fileobj, socket.socket)
                    data, source = key.fileobj.recvfrom(2048)
                    answer = self.answer(data, Address(*source[:2]), key.data)
                    if answer is not None:
                        sender, octets = answer
                        self.sockets[sender].sendto(octets, source)

    def answer(self, data: bytes, source: Address, asked: Address) -> tuple[Address, bytes] | None:
        """Return from where to answer, and with what; ``None`` for silence."""
        try:
            request = decode(data)
            change = request.get(CHANGE_REQUEST) or ChangeRequest(False, False)
        except DecodeError:
            return None
        if request.message_class is not Class.REQUEST or request.method != Method.BINDING:
            return None
        if any(change) and self.fault is Fault.REFUSE_CHANGE:
            refusal = Message.error(request, UNKNOWN_ATTRIBUTE)
            return asked, encode(refusal.add(UNKNOWN_ATTRIBUTES, (CHANGE_REQUEST.code,)))
        sender = self._sender(asked, change)
        if sender not in self.alive:
            return None
        response = Message.success(request)
        other = PRIVATE if self.fault is Fault.PRIVATE_OTHER else self._other[asked]
        advertises = self.fault is not Fault.NO_OTHER
        if request.is_rfc3489:
            response.add(MAPPED_ADDRESS, source).add(SOURCE_ADDRESS, sender)
            if advertises:
                response.add(CHANGED_ADDRESS, other)
        else:
            response.add(XOR_MAPPED_ADDRESS, source).add(MAPPED_ADDRESS, source)
            response.add(RESPONSE_ORIGIN, sender)
            if advertises:
                response.add(OTHER_ADDRESS, other)
        return sender, encode(response)

    def _sender(self, asked: Address, change: ChangeRequest) -> Address:
        if self.fault in (Fault.IGNORE_CHANGE, Fault.NO_OTHER):
            return asked
        other = self._other[asked]
        return Address(
            other.host if change.change_ip else asked.host,
            other.port if change.change_port else asked.port,
        )


def _bound(address: Address) -> socket.socket:
    family = socket.AF_INET6 if address.is_ipv6 else socket.AF_INET
    opened = socket.socket(family, socket.SOCK_DGRAM)
    opened.bind(address)
    opened.setblocking(False)
    return opened


def main() -> None:
    """Serve as the command line says."""
    parser = argparse.ArgumentParser(description="A STUN server with a fault.")
    parser.add_argument("--fault", type=Fault, choices=list(Fault), default=Fault.NONE)
    parser.add_argument("first", help="the first address of this machine to serve at")
    parser.add_argument("second", help="the second one")
    words = parser.parse_args()
    try:
        Server(words.fault, words.first, words.second).serve()
    except KeyboardInterrupt:
        return


if __name__ == "__main__":
    main()
