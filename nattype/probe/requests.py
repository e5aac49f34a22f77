"""Binding requests over UDP: sent, sent again, answered, or met with silence."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from nattype.observations import Asked, Challenge, Change
from nattype.probe.pace import Pace
from nattype.probe.strand import Wait
from stun import attributes, codec
from stun.attributes import Attribute, ChangeRequest
from stun.codec import Message
from stun.errors import DecodeError, DropReason
from stun.registry import Class, Method
from stun.sansio import Address, Closed, Handle, Instant, Received, Transmit
from stun.transaction import Schedule, Step, Transaction

if TYPE_CHECKING:
    from nattype.probe.bench import Bench

T = TypeVar("T")

SOFTWARE = "natkit natcheck"
_REFUSALS_THAT_DECIDE = 3
"""ICMP errors after which a plain request is given up: nothing listens there."""


def _value(message: Message, attribute: Attribute[T]) -> T | None:
    # An attribute that cannot be decoded is as good as absent: the answer as such still counts.
    try:
        return message.get(attribute)
    except DecodeError:
        return None


class Inquiry:
    """A Binding request over UDP: sent any number of times, and whatever came back for it."""

    __slots__ = (
        "_anywhere",
        "_data",
        "answer",
        "asked_at",
        "change",
        "expected",
        "icmp",
        "message",
        "packet",
        "rtt",
        "sends",
        "server",
        "socket",
        "strange",
    )

    def __init__(
        self,
        socket: UdpSocket,
        data: bytes,
        server: Address,
        *,
        change: Change,
        expected: Address | None,
        anywhere: bool,
    ) -> None:
        self.socket = socket
        self.server = server
        self.change = change
        self.expected = expected
        self.answer: Wait[None] = Wait()
        self.sends = 0
        self.icmp = 0
        self.asked_at: Instant = 0
        self.rtt: int | None = None
        self.message: Message | None = None
        self.packet: Received | None = None
        self.strange: Address | None = None
        self._data = data
        self._anywhere = anywhere

    def send(self, now: Instant) -> Transmit:
        """Return the request to send now; retransmissions are byte-identical."""
        if not self.sends:
            self.asked_at = now
        self.sends += 1
        return Transmit(self._data, self.server, self.socket.local)

    def take(self, message: Message, packet: Received, now: Instant) -> DropReason | None:
        """Take a response with this transaction id; say why if it does not count."""
        if self.message is not None:
            # A retransmission was answered too.
            return DropReason.UNKNOWN_TRANSACTION
        if not self._anywhere and packet.local.port != self.socket.local.port:
            return DropReason.UNKNOWN_TRANSACTION
        if packet.source not in (self.server, self.expected):
            self.strange = packet.source
            return DropReason.UNEXPECTED_SOURCE
        self.message = message
        self.packet = packet
        if self.sends == 1:
            self.rtt = now - self.asked_at
        self.answer.set(None)
        return None

    def result(self, started: Instant) -> Asked:
        """Return what came of it so far."""
        expected = self.expected or self.server
        if self.message is None or self.packet is None:
            return Asked(
                self.socket.local,
                self.server,
                self.change,
                expected,
                self.sends,
                strange=self.strange,
                icmp=self.icmp,
                at=self.asked_at - started,
            )
        arrived_at = self.packet.local
        return asked_of(
            self.message,
            Asked(
                self.socket.local,
                self.server,
                self.change,
                expected,
                self.sends,
                source=self.packet.source,
                strange=self.strange,
                icmp=self.icmp,
                arrived_at=None if arrived_at.port == self.socket.local.port else arrived_at,
                rtt=self.rtt,
                at=self.asked_at - started,
            ),
        )


def asked_of(message: Message, asked: Asked) -> Asked:
    """Return ``asked`` with what the response says filled in."""
    xored = _value(message, attributes.XOR_MAPPED_ADDRESS)
    plain = _value(message, attributes.MAPPED_ADDRESS)
    other = _value(message, attributes.OTHER_ADDRESS)
    if other is None:
        # RFC 3489 section 11.2.3; RFC 5780 section 9.1 gave it a new number and name.
        other = _value(message, attributes.CHANGED_ADDRESS)
    error = None
    if message.message_class == Class.ERROR:
        code = _value(message, attributes.ERROR_CODE)
        error = code.code if code is not None else 0
    return Asked(
        asked.local,
        asked.server,
        asked.change,
        asked.expected,
        asked.sends,
        source=asked.source,
        mapped=xored or plain,
        plain_mapped=plain if xored is not None else None,
        other=other,
        software=_value(message, attributes.SOFTWARE),
        padding=len(padding) if (padding := _value(message, attributes.PADDING)) else 0,
        error=error,
        strange=asked.strange,
        icmp=asked.icmp,
        arrived_at=asked.arrived_at,
        rtt=asked.rtt,
        at=asked.at,
    )


class UdpSocket:
    """A bound UDP socket."""

    __slots__ = ("_bench", "handle", "inquiries", "local", "opened")

    def __init__(self, bench: Bench, handle: Handle) -> None:
        self._bench = bench
        self.handle = handle
        self.local = Address(bench.host, 0)
        self.opened: Wait[Closed | None] = Wait()
        self.inquiries: list[Inquiry] = []

    def inquire(
        self,
        server: Address,
        *,
        change: Change = Change.NONE,
        expected: Address | None = None,
        response_port: int | None = None,
        padding: int = 0,
        anywhere: bool = False,
    ) -> Inquiry:
        """Make a Binding request; :meth:`walk` sends it.

        ``anywhere``: its answer may arrive at another socket of this host (RESPONSE-PORT).
        """
        message = Message.request(Method.BINDING, self._bench.entropy(12))
        if change is not Change.NONE:
            message.add(
                attributes.CHANGE_REQUEST,
                ChangeRequest(change_ip=change is Change.BOTH, change_port=True),
            )
        if response_port is not None:
            message.add(attributes.RESPONSE_PORT, response_port)
        if padding:
            message.add(attributes.PADDING, bytes(padding))
        else:
            message.add(attributes.SOFTWARE, SOFTWARE)
        inquiry = Inquiry(
            self,
            codec.encode(message),
            server,
            change=change,
            expected=expected,
            anywhere=anywhere,
        )
        self.inquiries.append(inquiry)
        self._bench.inquiries[message.transaction_id] = inquiry
        return inquiry

    async def walk(self, inquiry: Inquiry, schedule: Schedule, *, heed_icmp: bool = True) -> Asked:
        """Send ``inquiry`` along ``schedule`` until it is answered or given up."""
        bench, strands = self._bench, self._bench.strands
        bench.put(inquiry.send(strands.now))
        transaction = Transaction(schedule, strands.now)
        while not inquiry.answer.done:
            if heed_icmp and inquiry.icmp >= _REFUSALS_THAT_DECIDE:
                break
            if await strands.any_of(inquiry.answer, within=transaction.deadline - strands.now):
                break
            match transaction.on_deadline(strands.now):
                case Step.SEND_AGAIN:
                    bench.put(inquiry.send(strands.now))
                case Step.GIVE_UP:
                    break
                case Step.WAIT:
                    pass
        return inquiry.result(bench.started)

    async def ask(
        self,
        server: Address,
        schedule: Schedule,
        *,
        change: Change = Change.NONE,
        expected: Address | None = None,
        padding: int = 0,
    ) -> Asked:
        """Ask once (that is: with retransmissions) and return what came of it."""
        inquiry = self.inquire(server, change=change, expected=expected, padding=padding)
        return await self.walk(inquiry, schedule)

    async def challenge(
        self,
        server: Address,
        pace: Pace,
        *,
        change: Change = Change.NONE,
        expected: Address | None = None,
        response_port: int | None = None,
        padding: int = 0,
    ) -> Challenge:
        """Ask what may stay unanswered, and prove after a silence that it was meant.

        The control is a plain request to the same server from the same socket.  A server answers in
        the order in which it was asked, so once the control's answer is here every answer to the
        challenge has been sent; it gets a little longer to arrive by its other route.  A host or a
        server that was too busy to answer in time therefore makes no wrong verdict.
        """
        inquiry = self.inquire(
            server,
            change=change,
            expected=expected,
            response_port=response_port,
            padding=padding,
            anywhere=response_port is not None,
        )
        asked = await self.walk(inquiry, pace.question, heed_icmp=False)
        if asked.source is not None:
            return Challenge(asked)
        control = await self.ask(server, pace.patient)
        await self._bench.strands.any_of(inquiry.answer, within=pace.grace)
        return Challenge(inquiry.result(self._bench.started), control)
