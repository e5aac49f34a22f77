"""What the machine sends to one peer in succession: it leaves together.

A client over TCP or TLS has no route: the machine relays what it sends.  What is read from its
connection at once is often several packets for the same peer.  They are sent as one datagram that
is cut on the way (GSO), like those of a flow.
"""

from __future__ import annotations

import socket
from collections import Counter
from functools import partial

from stun.sansio import Address, Transmit
from stun.sockaddr import to_sockaddr
from turn.dataplane.flows import Relay, SockAddr, send_joined, set_dont_fragment
from turn.dataplane.mmsg import LARGEST, WORTHWHILE, has_segmentation

_NOWHERE = Address("", 0)


class Successive:
    """Sends from relays; keeps datagrams back as long as they go from the same one to one peer.

    ``refused`` counts what could not be sent, by ``errno``.
    """

    def __init__(self, refused: Counter[int]) -> None:
        self.sent = 0
        self.faulty: Counter[str] = Counter()
        """What could not be sent because its destination is none, by what is wrong with that."""
        self._refused = refused
        self._relay: Relay | None = None
        self._to = _NOWHERE
        self._waiting: list[bytes] = []
        self._largest = LARGEST if has_segmentation() else 0

    def add(self, transmit: Transmit, relay: Relay) -> None:
        """Send, now or at the next :meth:`flush`."""
        to = transmit.destination
        if transmit.dont_fragment:
            self.flush()
            self._send_unfragmented(transmit, relay)
            return
        if relay is not self._relay or to != self._to:
            self.flush()
            self._relay, self._to = relay, to
        self._waiting.append(transmit.data)

    def flush(self) -> None:
        """Send what waits."""
        relay, waiting = self._relay, self._waiting
        if relay is not None:
            self._send(waiting, relay, self._to)
            self._relay = None
            waiting.clear()

    def _send_unfragmented(self, transmit: Transmit, relay: Relay) -> None:
        to = transmit.destination
        try:
            set_dont_fragment(relay.sock, ipv6=to.is_ipv6, on=True)
            try:
                self._send([transmit.data], relay, to)
            finally:
                set_dont_fragment(relay.sock, ipv6=to.is_ipv6, on=False)
        except OSError as error:
            self._refused[error.errno or 0] += 1

    def _send(self, waiting: list[bytes], relay: Relay, to: Address) -> None:
        sock = relay.sock
        self.sent += len(waiting)
        try:
            sockaddr = to_sockaddr(to) if "%" in to.host else to
            if len(waiting) >= WORTHWHILE and self._largest:
                one = partial(self._send_one, sock, sockaddr)
                self._largest = send_joined(sock, waiting, sockaddr, self._largest, one)
            else:
                for data in waiting:
                    self._send_one(sock, sockaddr, data)
        except OSError as error:  # no such zone
            self.sent -= len(waiting)
            self._refused[error.errno or 0] += len(waiting)
        except (ValueError, OverflowError) as error:
            self.sent -= len(waiting)
            self.faulty[str(error)] += len(waiting)

    def _send_one(self, sock: socket.socket, to: SockAddr, data: bytes) -> None:
        for attempt in range(2):
            try:
                sock.sendto(data, to)
            except OSError as error:
                # It may be the pending ICMP error of an earlier datagram: this one was not tried.
                if attempt:
                    self.sent -= 1
                    self._refused[error.errno or 0] += 1
            else:
                return
