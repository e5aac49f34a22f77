"""One agent's checks on a bench: what it sends is caught, what its peer would send is made by hand.

bench = Bench()
base = bench.host("10.0.0.1", 5000)
bench.know_peer()
bench.candidate("10.0.0.2", 6000)
bench.advance()
bench.answer(bench.sent.pop())
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import count
from typing import Literal

from ice.base import Base
from ice.candidate import Candidate, CandidateType, TcpType
from ice.checks import Checker, CheckEvent
from ice.config import Config, Credentials
from ice.pair import Pair
from ice.priority import candidate_priority, foundation
from stun.attributes import (
    ICE_CONTROLLED,
    ICE_CONTROLLING,
    PRIORITY,
    USE_CANDIDATE,
    USERNAME,
    XOR_MAPPED_ADDRESS,
)
from stun.codec import decode, encode
from stun.message import Message
from stun.registry import Method
from stun.sansio import MILLISECOND, SECOND, Address, Instant

LOCAL = Credentials("locl", "local-password-0123456789")
REMOTE = Credentials("remo", "remote-password-012345678")
LOCAL_KEY, REMOTE_KEY = LOCAL.password.encode(), REMOTE.password.encode()


@dataclass(slots=True)
class Sent:
    """A packet that the checker sent."""

    base: Base
    remote: Address
    data: bytes
    at: Instant

    @property
    def message(self) -> Message:
        """What it says."""
        return decode(self.data)


class Bench:
    """A checker, the time, and the peer's part of the conversation."""

    def __init__(
        self, config: Config | None = None, *, controlling: bool = True, seed: int = 8445
    ) -> None:
        self.now: Instant = 1 * SECOND
        self.rng = random.Random(seed)
        self.sent: list[Sent] = []
        self.opened: list[tuple[Base, Address]] = []
        self.events: list[CheckEvent] = []
        self.checker = Checker(
            config or Config(),
            controlling=controlling,
            entropy=self.rng.randbytes,
            send=self._send,
            open_path=lambda base, remote, _: self.opened.append((base, remote)),
        )
        self.checker.set_local(LOCAL)
        self._ids = count(1)

    def _send(self, base: Base, remote: Address, data: bytes, now: Instant) -> None:
        assert now == self.now
        self.sent.append(Sent(base, remote, data, now))

    # What is known. -------------------------------------------------------------------------------

    def host(
        self,
        host: str = "10.0.0.1",
        port: int = 5000,
        *,
        component: int = 1,
        stream: int = 0,
        tcptype: TcpType | None = None,
        relay: str = "",
        preference: int = 65535,
    ) -> Base:
        """Add a base and its candidate."""
        transport: Literal["udp", "tcp"] = "udp" if tcptype is None else "tcp"
        base = Base(
            next(self._ids),
            stream,
            component,
            transport,
            Address(host, port),
            tcptype,
            relay,
        )
        kind = CandidateType.RELAYED if relay else CandidateType.HOST
        told = 9 if tcptype is TcpType.ACTIVE else port
        self.checker.add_local(
            make_candidate(
                host,
                told,
                kind,
                component=component,
                tcptype=tcptype,
                preference=preference,
            ),
            base,
            self.now,
        )
        return base

    def know_peer(self, credentials: Credentials = REMOTE, *, lite: bool = False) -> None:
        """Tell the peer's credentials."""
        self.checker.set_remote(credentials, lite, self.now)

    def candidate(
        self,
        host: str = "10.0.0.2",
        port: int = 6000,
        kind: CandidateType = CandidateType.HOST,
        *,
        component: int = 1,
        stream: int = 0,
        tcptype: TcpType | None = None,
        preference: int = 65535,
    ) -> Candidate:
        """Tell a candidate of the peer."""
        candidate = make_candidate(
            host, port, kind, component=component, tcptype=tcptype, preference=preference
        )
        self.checker.add_remote(candidate, stream, self.now)
        return candidate

    # Time. ----------------------------------------------------------------------------------------

    def advance(self, duration: Instant = 0) -> list[Sent]:
        """Let time pass, deadline by deadline; what was sent meanwhile."""
        before = len(self.sent)
        end = self.now + duration
        while (due := self.checker.deadline()) is not None and due <= end:
            self.now = max(self.now, due)
            self.checker.on_deadline(self.now)
        self.now = end
        self.drain()
        return self.sent[before:]

    def drain(self) -> None:
        """Keep the events."""
        while (event := self.checker.poll()) is not None:
            self.events.append(event)

    def told(self, kind: type[CheckEvent]) -> list[CheckEvent]:
        """Return the events of a kind."""
        self.drain()
        return [event for event in self.events if isinstance(event, kind)]

    # The peer's part. -----------------------------------------------------------------------------

    def answer(
        self,
        sent: Sent,
        *,
        mapped: Address | None = None,
        source: Address | None = None,
        base: Base | None = None,
        key: bytes | None = REMOTE_KEY,
        after: Instant = 10 * MILLISECOND,
    ) -> None:
        """Answer a check with success."""
        self.advance(after)
        response = Message.success(sent.message).add(
            XOR_MAPPED_ADDRESS, mapped or sent.base.address
        )
        self.deliver(
            base or sent.base,
            source or sent.remote,
            encode(response, key=key, fingerprint=True),
        )

    def refuse(self, sent: Sent, code: int, *, key: bytes | None = REMOTE_KEY) -> None:
        """Answer a check with an error."""
        self.deliver(
            sent.base,
            sent.remote,
            encode(Message.error(sent.message, code), key=key, fingerprint=True),
        )

    def request(
        self,
        *,
        username: str = "locl:remo",
        priority: int | None = 0x6E00_FFFF,
        controlling: int | None = None,
        controlled: int | None = None,
        use_candidate: bool = False,
        extra: tuple[tuple[int, bytes], ...] = (),
        transaction_id: bytes | None = None,
        key: bytes | None = LOCAL_KEY,
        fingerprint: bool = True,
    ) -> bytes:
        """Make a check of the peer's.  Its role is the other one of the checker's, if not given."""
        if controlling is None and controlled is None:
            if self.checker.controlling:
                controlled = 1
            else:
                controlling = 1
        message = Message.request(Method.BINDING, transaction_id or self.rng.randbytes(12)).add(
            USERNAME, username
        )
        if priority is not None:
            message.add(PRIORITY, priority)
        if controlling is not None:
            message.add(ICE_CONTROLLING, controlling)
        if controlled is not None:
            message.add(ICE_CONTROLLED, controlled)
        if use_candidate:
            message.add(USE_CANDIDATE, True)
        message.attributes.extend(extra)
        return encode(message, key=key, fingerprint=fingerprint)

    def ask(self, base: Base, source: Address, **values: object) -> Message | None:
        """Send a check to the checker; its answer, if it answers at once."""
        before = len(self.sent)
        self.deliver(base, source, self.request(**values))  # type: ignore[arg-type]
        answers = self.sent[before:]
        return answers[0].message if answers else None

    def deliver(self, base: Base, source: Address, data: bytes) -> None:
        """Have a packet arrive."""
        self.checker.stun(base, source, data, self.now)
        self.drain()

    # Shorthand. -----------------------------------------------------------------------------------

    def pair(self, place: int = 0) -> Pair:
        """Return a pair, in order of priority."""
        return list(self.checker.pairs())[place]

    def connected(self) -> tuple[Base, Pair]:
        """Go as far as one valid pair that is nominated."""
        base = self.host()
        self.know_peer()
        self.candidate()
        (check,) = self.advance()
        self.answer(check)
        if self.checker.controlling:
            self.answer(self.sent[-1])
        else:
            self.ask(base, check.remote, use_candidate=True)
        return base, self.pair()


def make_candidate(
    host: str,
    port: int,
    kind: CandidateType = CandidateType.HOST,
    *,
    component: int = 1,
    tcptype: TcpType | None = None,
    preference: int = 65535,
) -> Candidate:
    """Make a candidate as an agent would."""
    transport = "udp" if tcptype is None else "tcp"
    server = "192.0.2.250" if kind is CandidateType.SERVER_REFLEXIVE else ""
    return Candidate(
        foundation(kind, host, server, transport),
        component,
        transport,
        candidate_priority(kind, component, preference, tcptype),
        host,
        port,
        kind,
        tcptype=tcptype,
    )


__all__ = ["LOCAL", "REMOTE", "Bench", "Sent", "make_candidate"]
