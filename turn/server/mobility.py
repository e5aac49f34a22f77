"""Clients that come from another address (RFC 8016).

Theory of operation.  A ticket is twelve random octets and a MAC over them: it holds nothing that
could be read, the allocation is found by it in a table.  The MAC tells a ticket of this server, of
an allocation that is gone (437), from something that never was one (400).  It is written in base64,
for there are clients (coturn's) that keep it as a text that ends with the first zero.

A Refresh with a ticket, proved with the same username, makes the new five-tuple *moving*: both lead
to the allocation, data goes to the old one still.  The first data from the client on the new one
completes the move: "After receiving any of those messages, a TURN server discards the old ticket
and the old 5-tuple" (section 3.2.2).  So does, beyond the norm, a request on the new one that has
no ticket: whoever binds a channel there has the answer to its Refresh and waits for data there.  By
the norm's letter two such clients lose what each sends to the other first.
"""

from __future__ import annotations

import base64
import hmac
from typing import Final

from stun.attributes import MOBILITY_TICKET
from stun.mac import hmac_sha256
from stun.registry import ErrorCode
from stun.sansio import SECOND, Handle, Instant
from turn.server.allocation import Allocation, Flow, FlowKey, Mobility
from turn.server.core import Core
from turn.server.hosting import Request
from turn.server.lifetimes import Lifetimes
from turn.server.policy import tunnel_of

OLD_TICKET: Final = 30 * SECOND
"""How long a ticket that was used is still recognised."""

_NAME: Final = 12
_MAC: Final = 12


def worker_of_ticket(ticket: bytes) -> int:
    """Return the number that a ticket begins with (:meth:`turn.server.core.Core.name`).

    0 for what cannot be a ticket.
    """
    try:
        octets = base64.b64decode(ticket, altchars=b"-_", validate=True)
    except ValueError:
        return 0
    return octets[0] if len(octets) == _NAME + _MAC else 0


class Tickets:
    """Makes tickets and knows them again."""

    def __init__(self, core: Core, lifetimes: Lifetimes) -> None:
        self._core = core
        self._lifetimes = lifetimes
        self._key = core.entropy(32) if core.siblings is None else core.siblings.key

    def issue(self, allocation: Allocation) -> bytes:
        """Return a new ticket for an allocation."""
        name = self._core.name(_NAME)
        ticket = base64.urlsafe_b64encode(name + self._mac(name))
        self._core.tickets[ticket] = allocation
        if allocation.mobility is None:
            allocation.mobility = Mobility(ticket)
        else:
            allocation.mobility.ticket = ticket
        return ticket

    def _mac(self, name: bytes) -> bytes:
        return hmac_sha256(self._key, name)[:_MAC]

    def _is_ours(self, ticket: bytes) -> bool:
        try:
            octets = base64.b64decode(ticket, altchars=b"-_", validate=True)
        except ValueError:
            return False
        return hmac.compare_digest(octets[_NAME:], self._mac(octets[:_NAME]))

    def _drop_old(self, mobility: Mobility) -> None:
        if mobility.old_ticket is not None:
            self._core.tickets.pop(mobility.old_ticket, None)
            mobility.old_ticket = None

    def find(self, request: Request, now: Instant) -> Allocation | None:
        """Return the allocation that a Refresh with a ticket is for, its new five-tuple entered.

        Without one the request has been refused.
        """
        core, flow = self._core, request.flow
        code, detail = ErrorCode.BAD_REQUEST, ""
        ticket = request.message.get(MOBILITY_TICKET) or b""
        allocation = core.tickets.get(ticket)
        if not core.config.mobility:
            code, detail = ErrorCode.MOBILITY_FORBIDDEN, "mobility is off"
        elif not self._is_ours(ticket):
            detail = "not a ticket of this server"
        elif (
            allocation is None
            or allocation.mobility is None
            or not self._lifetimes.lives(allocation, now)
        ):
            code, detail = ErrorCode.ALLOCATION_MISMATCH, "the allocation of the ticket is gone"
        elif request.key == allocation.flow.key:
            # "[If it] is the same as the stored 5-tuple allocation, then the TURN server rejects
            # the request with a 400 (Bad Request) error."
            detail = "a ticket from the same five-tuple"
        elif tunnel := tunnel_of(flow.client.host):
            code, detail = ErrorCode.FORBIDDEN, f"from a {tunnel} address"
        elif not request.authentic.may_use(allocation.username, allocation.authentic):
            code, detail = ErrorCode.WRONG_CREDENTIALS, "another user's ticket"
        elif request.allocation is not None and request.allocation is not allocation:
            code, detail = ErrorCode.ALLOCATION_MISMATCH, "the five-tuple has another allocation"
        elif allocation.tcp and not flow.is_stream:
            detail = "a TCP allocation cannot move to datagrams"
        elif ticket == allocation.mobility.old_ticket and (
            now >= allocation.mobility.old_until or flow != allocation.mobility.moving
        ):
            # "The old ticket can only be used for the purposes of retransmission."
            detail = "an old ticket"
        else:
            return allocation
        core.refuse(request, code, detail, now)
        return None

    def enter(self, allocation: Allocation, flow: Flow, now: Instant) -> bytes:
        """Let an allocation be found by a client's new five-tuple; return the new ticket."""
        mobility = allocation.mobility
        assert mobility is not None
        if mobility.moving == flow:
            return mobility.ticket
        if mobility.moving is not None:
            self._core.allocations.pop(mobility.moving.key, None)
        self._drop_old(mobility)
        mobility.old_ticket, mobility.old_until = mobility.ticket, now + OLD_TICKET
        mobility.moving = flow
        self._core.allocations[flow.key] = allocation
        ticket = self.issue(allocation)
        old = allocation.flow
        if old.connection and old.connection not in self._core.connections:
            # The old connection is closed already, which is as good as data on the new one.
            self.complete(allocation, now)
        return ticket

    def left(self, allocation: Allocation, connection: Handle, now: Instant) -> bool:
        """Take note that a client's connection closed; say whether its allocation lives on."""
        mobility = allocation.mobility
        if mobility is None:
            return False
        moving = mobility.moving
        if moving is not None and moving.connection == connection:
            del self._core.allocations[moving.key]
            mobility.moving = None
        else:
            # Without a new five-tuple yet, the client may still come with its ticket ("Break Before
            # Make", section 2).
            self.complete(allocation, now)
        return True

    def heard(self, allocation: Allocation, key: FlowKey, now: Instant) -> None:
        """Take note that the client has used a five-tuple: the new one completes the move."""
        mobility = allocation.mobility
        if mobility is not None and mobility.moving is not None and mobility.moving.key == key:
            self.complete(allocation, now)

    def complete(self, allocation: Allocation, now: Instant) -> None:
        """Give up the old five-tuple for the new one."""
        mobility = allocation.mobility
        if mobility is None or mobility.moving is None:
            return
        flow, mobility.moving = mobility.moving, None
        self._drop_old(mobility)
        self._lifetimes.move(allocation, flow, now)
