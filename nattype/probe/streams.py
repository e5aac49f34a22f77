"""TCP as the tests use it: streams that speak STUN, attempts to connect, and listeners."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nattype.observations import Asked
from nattype.probe.requests import SOFTWARE, asked_of
from nattype.probe.strand import Wait
from stun import attributes, codec
from stun.attributes import ConnectBack
from stun.codec import Message
from stun.errors import DecodeError, DropReason
from stun.framing import StunStream
from stun.registry import Class, Method
from stun.sansio import Address, Cause, Closed, Handle, Instant, Write

if TYPE_CHECKING:
    from nattype.probe.bench import Bench


class Stream:
    """A connected TCP stream that speaks STUN."""

    __slots__ = (
        "_bench",
        "_splitter",
        "answers",
        "ended",
        "handle",
        "indications",
        "local",
        "news",
        "remote",
    )

    def __init__(self, bench: Bench, handle: Handle, local: Address, remote: Address) -> None:
        self._bench = bench
        self._splitter = StunStream()
        self.handle = handle
        self.local = local
        self.remote = remote
        self.answers: dict[bytes, Wait[Message]] = {}
        self.indications: list[Message] = []
        self.news: Wait[None] = Wait()
        self.ended: Wait[Cause] = Wait()

    def feed(self, data: bytes) -> None:
        """Take bytes as they arrived."""
        for packet in self._splitter.feed(data):
            try:
                message = codec.decode(packet)
            except DecodeError as wrong:
                self._bench.drop(wrong.reason, self.remote, wrong.detail)
                continue
            if message.message_class in (Class.SUCCESS, Class.ERROR):
                answer = self.answers.pop(message.transaction_id, None)
                if answer is None:
                    self._bench.drop(DropReason.UNKNOWN_TRANSACTION, self.remote)
                else:
                    answer.set(message)
            elif message.message_class == Class.INDICATION:
                self.indications.append(message)
                self.news.set(None)
            else:
                self._bench.drop(DropReason.UNEXPECTED_CLASS, self.remote)
        if self._splitter.error is not None and not self.ended.done:
            self._bench.drop(self._splitter.error.reason, self.remote)
            self._bench.shut(self.handle)
            self.ended.set(Cause.OTHER)

    async def ask(
        self, within: int, *, connect_back: ConnectBack | None = None
    ) -> tuple[Asked, Message | None]:
        """Ask over the stream; TCP does the retransmitting (RFC 8489 section 6.2.2)."""
        bench, strands = self._bench, self._bench.strands
        message = Message.request(Method.BINDING, bench.entropy(12))
        message.add(attributes.SOFTWARE, SOFTWARE)
        if connect_back is not None:
            message.add(attributes.CONNECT_BACK, connect_back)
        answer: Wait[Message] = Wait()
        self.answers[message.transaction_id] = answer
        asked_at = strands.now
        if not self.ended.done:
            bench.put(Write(self.handle, codec.encode(message)))
            await strands.any_of(answer, self.ended, within=within)
        response = answer.value
        asked = Asked(
            self.local, self.remote, expected=self.remote, sends=1, at=asked_at - bench.started
        )
        if response is None:
            self.answers.pop(message.transaction_id, None)
            return asked, None
        return asked_of(
            response,
            Asked(
                self.local,
                self.remote,
                expected=self.remote,
                sends=1,
                source=self.remote,
                rtt=strands.now - asked_at,
                at=asked.at,
            ),
        ), response

    def close(self) -> None:
        """Close the stream."""
        if not self.ended.done:
            self._bench.shut(self.handle)
            self.ended.set(Cause.END_OF_STREAM)


class Listener:
    """A listening TCP port, and who connected to it."""

    __slots__ = ("accepted", "handle", "local", "opened")

    def __init__(self, handle: Handle, local: Address) -> None:
        self.handle = handle
        self.local = local
        self.opened: Wait[Closed | None] = Wait()
        self.accepted: list[Address] = []


class Dialling:
    """An attempt to connect that is under way."""

    __slots__ = ("handle", "local", "outcome", "remote", "since")

    def __init__(self, handle: Handle, local: Address, remote: Address, since: Instant) -> None:
        self.handle = handle
        self.local = local
        self.remote = remote
        self.since = since
        self.outcome: Wait[Stream | Closed] = Wait()
