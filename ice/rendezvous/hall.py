"""The hall: clients wait here, meet, and have what they say handed over.

Theory of operation.  A machine in the manner of :mod:`stun.sansio`, for connections whose framing
others do: it is given texts and gives :class:`Send`, :class:`Ping` and :class:`End`
(:mod:`ice.rendezvous.terms`).  It does not keep the names; a *book* does
(:mod:`ice.rendezvous.names`), asked with :class:`Claim`, whose outcome comes back by
:meth:`Hall.claimed` whenever the book has it, and told with :class:`Release`.  What is for a client
of another hall leaves as :class:`Post` and arrives by :meth:`Hall.take`
(:mod:`ice.rendezvous.letters`); two clients of this hall exchange the same letters on the spot.

A client's life, as a table (any state may end at any time)::

    GREETED  --join-->    ASKING   --the name is its own-->   WAITING  --a knock-->    PAIRED
                          ASKING   --somebody has it-->       KNOCKING --an answer-->  PAIRED

Every client's end is told to its peer, exactly once.  Nothing that a client sends raises; what
breaks a rule is answered with an error that says which, and ends that client alone.

Liveness: a client that was not heard of for a while is pinged, one that does not answer is dropped.
One whose name somebody else claims is pinged at once, since it may be the same person who comes
back after the network went away, and would otherwise be kept out by a dead connection of theirs.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Final, assert_never

from ice.rendezvous.access import Servers, Visitor, client_key
from ice.rendezvous.letters import Answer, Farewell, Knock, Letter, Nudge, Pass
from ice.rendezvous.names import Meets, Member, Outcome, Refusal, Waits
from ice.rendezvous.protocol import (
    BadMessage,
    Error,
    ErrorCode,
    Gone,
    GoneReason,
    Join,
    Joined,
    Leave,
    Message,
    Peer,
    ServerLimits,
    ServerMessage,
    Time,
    TimeAnswer,
    Welcome,
    from_client,
)
from ice.rendezvous.terms import (
    TEXTS,
    Came,
    Claim,
    Counts,
    End,
    Met,
    Output,
    Ping,
    Post,
    Refused,
    Release,
    Send,
    Terms,
    Told,
    Went,
)
from stun.ratelimit import PrefixLimiter
from stun.sansio import SECOND, Entropy, Instant

# RFC 6455 section 7.4.1, and 1013 "Try Again Later" of the registry that it makes.
NORMAL, GOING_AWAY, POLICY, TOO_BIG, TRY_LATER = 1000, 1001, 1008, 1009, 1013
_CLOSE_CODES: Final = {
    ErrorCode.TOO_LARGE: TOO_BIG,
    ErrorCode.SHUTTING_DOWN: GOING_AWAY,
    ErrorCode.UNAVAILABLE: TRY_LATER,
    ErrorCode.TOO_MANY: TRY_LATER,
}


class _State(Enum):
    GREETED = "it has not joined"
    ASKING = "it asks for a name"
    WAITING = "it waits"
    KNOCKING = "it has found who waits"
    PAIRED = "it has a peer"


class _Client:
    __slots__ = (
        "address",
        "armed",
        "came",
        "heard",
        "hello",
        "joined",
        "key",
        "knock",
        "messages",
        "name",
        "number",
        "octets",
        "peer",
        "pong_by",
        "posted",
        "received",
        "state",
        "until",
    )

    def __init__(self, number: int, visitor: Visitor, key: bytes, now: Instant) -> None:
        self.number = number
        self.address = str(visitor.client)
        self.key = key
        self.state = _State.GREETED
        self.name: str | None = None
        self.hello = b""
        self.peer: Member | None = None
        # Whoever has found it before it knew that it waits.
        self.knock: Knock | None = None
        self.came = self.heard = self.joined = now
        self.until: Instant | None = None
        self.pong_by: Instant | None = None
        self.armed: Instant | None = None
        self.posted = self.received = 0  # letters of a pair, each way
        self.messages = self.octets = 0


class Hall:
    """One process's clients.  ``name`` tells it from other halls that share a book.

    ``servers`` says what a visitor is told to use.  See the module's text.
    """

    def __init__(
        self,
        terms: Terms,
        *,
        entropy: Entropy,
        servers: Callable[[Visitor, int], Servers] = lambda _visitor, _time: Servers(),
        software: str = "",
        name: str | None = None,
    ) -> None:
        self.terms = terms
        self.name = entropy(8).hex() if name is None else name
        self.counts = Counts()
        self._servers = servers
        self._software = software
        self._limits = ServerLimits(terms.message, terms.hello, terms.wait // SECOND)
        self._clients: dict[int, _Client] = {}
        self._per_key: Counter[bytes] = Counter()
        self._last = 0
        self._queue: deque[Output] = deque()
        self._heap: list[tuple[Instant, int]] = []
        self._epoch = 0.0
        self._closing = False
        self._connects = PrefixLimiter(terms.connects, terms.connects_burst, entropy=entropy)
        self._joins = PrefixLimiter(terms.joins, terms.joins_burst, entropy=entropy)
        self._messages = PrefixLimiter(terms.messages, terms.messages_burst, entropy=entropy)
        self._octets = PrefixLimiter(terms.octets, terms.octets_burst, entropy=entropy)

    # What the driver tells. -----------------------------------------------------------------------

    def set_clock(self, unix_time: float, now: Instant) -> None:
        """Say that it is ``unix_time``, in seconds since 1970."""
        self._epoch = unix_time - now / SECOND

    def unix_time(self, now: Instant) -> float:
        """Return the seconds since 1970."""
        return self._epoch + now / SECOND

    def opened(self, visitor: Visitor, now: Instant) -> int:
        """Take a new client; return its number, by which it is named from here on."""
        self._last += 1
        key = client_key(visitor.client.host)
        client = _Client(self._last, visitor, key, now)
        self._clients[client.number] = client
        self._per_key[key] += 1
        self.counts.came += 1
        self._tell(Came(client.number, client.address))
        terms = self.terms
        if self._closing:
            self._refuse(client, ErrorCode.SHUTTING_DOWN, now)
        elif terms.connections and len(self._clients) > terms.connections:
            self._refuse(client, ErrorCode.TOO_MANY, now, "this rendezvous is full; try again soon")
        elif terms.connections_per_client and self._per_key[key] > terms.connections_per_client:
            text = (
                f"more than {terms.connections_per_client} connections at a time from your address"
            )
            self._refuse(client, ErrorCode.TOO_MANY, now, text)
        elif not self._connects.allow(key, now):
            text = "too many connections from your address in a short time; wait a little"
            self._refuse(client, ErrorCode.TOO_MANY, now, text)
        else:
            time = self.unix_time(now)
            servers = self._servers(visitor, int(time))
            self._send(
                client,
                Welcome(
                    visitor.client,
                    time,
                    self._software,
                    servers.turn,
                    servers.stun,
                    self._limits,
                ),
            )
            client.until = now + terms.idle
            self._arm(client)
        return client.number

    def received(self, number: int, text: str | bytes, now: Instant) -> None:
        """Take a message of a client."""
        client = self._clients.get(number)
        if client is None:
            self.counts.dropped["from a client that has been closed"] += 1
            return
        self._is_alive(client, now)
        if not self._octets.allow(client.key, now, len(text)) or not self._messages.allow(
            client.key, now
        ):
            words = "too many messages from your address in a short time; wait a little"
            self._refuse(client, ErrorCode.TOO_MANY, now, words)
            return
        try:
            message = from_client(text)
        except BadMessage as error:
            self._refuse(client, error.code, now, error.text)
            return
        match message:
            case Message():
                self._on_message(client, message, now)
            case Time():
                self._send(client, TimeAnswer(message.sent, self.unix_time(now)))
            case Join():
                self._on_join(client, message, now)
            case Leave():
                self._end(client, GoneReason.LEFT, "left", now)
                self._put(End(number, NORMAL, "left"))
            case _:
                assert_never(message)

    def heard(self, number: int, now: Instant) -> None:
        """Take note of a sign of life."""
        client = self._clients.get(number)
        if client is not None:
            self._is_alive(client, now)

    def closed(self, number: int, now: Instant, *, cleanly: bool) -> None:
        """Take note that a client's connection has ended, ``cleanly`` if it had said so."""
        client = self._clients.get(number)
        if client is not None:
            reason = GoneReason.LEFT if cleanly else GoneReason.LOST
            self._end(client, reason, "closed" if cleanly else "broken", now)

    def refuse(self, number: int, code: ErrorCode, now: Instant, text: str = "") -> None:
        """End a client for what the driver has noticed."""
        client = self._clients.get(number)
        if client is not None:
            self._refuse(client, code, now, text)

    def shut_down(self, now: Instant) -> None:
        """Tell every client that the rendezvous is being stopped, and take no more."""
        self._closing = True
        clients = [*self._clients.values()]
        for client in clients:
            if client.peer is not None and client.peer.hall == self.name:
                client.peer = None  # both are told what is the matter, neither that the other went
        for client in clients:
            self._refuse(client, ErrorCode.SHUTTING_DOWN, now)

    # What the book answers. -----------------------------------------------------------------------

    def claimed(self, number: int, outcome: Outcome, now: Instant) -> None:
        """Take the outcome of a claim.

        It may come a second time, for a client that waits, when a book had to be written anew.
        """
        client = self._clients.get(number)
        if client is None or client.state not in (_State.ASKING, _State.WAITING):
            if not isinstance(outcome, Refusal):
                self._put(Release(number, outcome.name))
            return
        match outcome:
            case Waits():
                if client.state is _State.ASKING:
                    client.state, client.name = _State.WAITING, outcome.name
                    client.until = now + self.terms.wait
                    self._arm(client)
                    self._send(client, Joined(outcome.name, self.terms.wait / SECOND))
                    self.counts.joins["waiting"] += 1
                    if client.knock is not None:
                        knock, client.knock = client.knock, None
                        self._on_knock(client, knock, now)
            case Meets():
                if client.state is _State.ASKING:
                    self._send(client, Joined(outcome.name, self.terms.wait / SECOND))
                    self.counts.joins["met"] += 1
                if client.knock is not None:
                    knock, client.knock = client.knock, None
                    self._deliver(Farewell(knock.sender, knock.to, GoneReason.LEFT), now)
                client.state, client.name = _State.KNOCKING, outcome.name
                client.peer = outcome.other
                client.until = now + self.terms.knock
                self._arm(client)
                self._deliver(Knock(outcome.other, self._member(client), client.hello), now)
            case Refusal():
                code = outcome.code
                if client.state is _State.WAITING:
                    client.name = None  # somebody else's by now
                    code = ErrorCode.EXPIRED
                self.counts.joins[code.value] += 1
                for holder in outcome.holders:
                    self._deliver(Nudge(holder, self._member(client)), now)
                if code is ErrorCode.UNKNOWN_NAME:
                    for _ in range(self.terms.wrong_name_cost - 1):
                        self._joins.allow(client.key, now)  # as far as there is anything left
                self._refuse(client, code, now)
            case _:
                assert_never(outcome)

    def holding(self) -> Iterator[tuple[int, str, Member | None]]:
        """Yield the names that clients of this hall have: number, name, and whom they met."""
        for client in self._clients.values():
            if client.name is not None:
                yield client.number, client.name, client.peer

    # What other halls write. ----------------------------------------------------------------------

    def take(self, letter: Letter, now: Instant) -> None:
        """Take a letter of another hall."""
        client = self._clients.get(letter.to.client) if letter.to.hall == self.name else None
        match letter:
            case Knock():
                self._on_knock(client, letter, now)
            case Nudge():
                if client is not None:
                    self._ping(client, now)
            case Answer() | Pass() | Farewell():
                if client is None or client.peer != letter.sender:
                    self.counts.dropped["a letter for somebody who is gone"] += 1
                    if not isinstance(letter, Farewell):
                        # It has not heard of that, or would not write.
                        self._deliver(Farewell(letter.sender, letter.to, GoneReason.LOST), now)
                elif isinstance(letter, Answer):
                    self._on_answer(client, letter, now)
                elif isinstance(letter, Pass):
                    self._on_pass(client, letter, now)
                else:
                    self._lose(client, letter.reason, now)
            case _:
                assert_never(letter)

    def undelivered(self, letter: Letter, now: Instant) -> None:
        """Take note that a letter did not reach its hall: whoever wrote it has no peer any more."""
        client = self._clients.get(letter.sender.client)
        if client is not None and client.peer == letter.to and not isinstance(letter, Nudge):
            self._farewell(client, GoneReason.LOST, now)  # should it get there all the same
            self._lose(client, GoneReason.LOST, now)

    def peer_halls(self) -> set[str]:
        """Return the other halls that clients of this one have peers in."""
        found = {one.peer.hall for one in self._clients.values() if one.peer is not None}
        return found - {self.name}

    def hall_lost(self, hall: str, now: Instant) -> None:
        """Take note that another hall is gone with everybody in it."""
        for client in list(self._clients.values()):
            if client.peer is not None and client.peer.hall == hall:
                self._lose(client, GoneReason.LOST, now)

    # Time. ----------------------------------------------------------------------------------------

    def deadline(self) -> Instant | None:
        """Say when :meth:`on_deadline` is to be called, or ``None``."""
        heap = self._heap
        while heap:
            at, number = heap[0]
            client = self._clients.get(number)
            if client is not None and client.armed == at:
                return at
            heapq.heappop(heap)
        return None

    def on_deadline(self, now: Instant) -> None:
        """Take notice that time has passed."""
        while (at := self.deadline()) is not None and at <= now:
            _, number = heapq.heappop(self._heap)
            client = self._clients[number]
            client.armed = None
            self._on_time(client, now)

    def _on_time(self, client: _Client, now: Instant) -> None:
        if client.until is not None and client.until <= now:
            match client.state:
                case _State.KNOCKING:
                    self._farewell(client, GoneReason.LOST, now)
                    self._lose(client, GoneReason.LOST, now)
                case _State.WAITING:
                    self._refuse(client, ErrorCode.EXPIRED, now)
                case _State.ASKING:
                    self._refuse(client, ErrorCode.UNAVAILABLE, now)
                case _State.GREETED | _State.PAIRED:
                    self._refuse(client, ErrorCode.IDLE, now)
            return
        if client.pong_by is not None and client.pong_by <= now:
            self._end(client, GoneReason.LOST, "no answer", now)
            self._put(End(client.number, GOING_AWAY, "no answer to a ping"))
            return
        if client.pong_by is None and client.heard + self._quiet(client) <= now:
            self._ping(client, now)
        self._arm(client)

    def _quiet(self, client: _Client) -> Instant:
        paired = client.state is _State.PAIRED
        return self.terms.quiet_paired if paired else self.terms.quiet

    def _ping(self, client: _Client, now: Instant) -> None:
        if client.pong_by is None:
            client.pong_by = now + self.terms.patience
            self.counts.pings += 1
            self._put(Ping(client.number))
            self._arm(client)

    def _is_alive(self, client: _Client, now: Instant) -> None:
        client.heard = now
        client.pong_by = None

    def _arm(self, client: _Client) -> None:
        """Have :meth:`_on_time` called in time.

        What became later meanwhile is left: being called early costs less than to be armed anew
        with each message.
        """
        quiet = client.heard + self._quiet(client)
        at = quiet if client.pong_by is None else client.pong_by
        if client.until is not None and client.until < at:
            at = client.until
        if client.armed is None or at < client.armed:
            client.armed = at
            heapq.heappush(self._heap, (at, client.number))

    # Clients. -------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._clients)

    def states(self) -> dict[str, int]:
        """Return how many clients are connected, wait and have a peer."""
        found = Counter(client.state for client in self._clients.values())
        return {
            "connected": len(self._clients),
            "waiting": found[_State.WAITING],
            "paired": found[_State.PAIRED],
        }

    def peer_of(self, number: int) -> int | None:
        """Return the number of a client's peer, if it has one in this hall."""
        client = self._clients.get(number)
        peer = None if client is None else client.peer
        return None if peer is None or peer.hall != self.name else peer.client

    def _member(self, client: _Client) -> Member:
        return Member(self.name, client.number)

    def _on_join(self, client: _Client, join: Join, now: Instant) -> None:
        if client.state is not _State.GREETED:
            self._refuse(client, ErrorCode.MALFORMED, now, "a client joins once")
        elif len(join.hello) > self.terms.hello:
            text = f"hello has more than {self.terms.hello} octets"
            self._refuse(client, ErrorCode.TOO_LARGE, now, text)
        elif not self._joins.allow(client.key, now):
            text = "too many joins from your address in a short time; wait a little"
            self._refuse(client, ErrorCode.TOO_MANY, now, text)
        else:
            client.state, client.hello, client.joined = _State.ASKING, join.hello, now
            client.until = now + self.terms.idle
            self._put(Claim(client.number, join.name))

    def _on_message(self, client: _Client, message: Message, now: Instant) -> None:
        if client.state is not _State.PAIRED or client.peer is None:
            text = "a message to nobody: there is no peer yet"
            self._refuse(client, ErrorCode.MALFORMED, now, text)
        elif len(message.data) > self.terms.message:
            text = f"data has more than {self.terms.message} octets"
            self._refuse(client, ErrorCode.TOO_LARGE, now, text)
        else:
            client.messages += 1
            client.octets += len(message.data)
            number, client.posted = client.posted, client.posted + 1
            self._deliver(Pass(client.peer, self._member(client), number, message.data), now)

    def _on_knock(self, client: _Client | None, letter: Knock, now: Instant) -> None:
        me = letter.to
        if client is not None and client.state is _State.ASKING and client.knock is None:
            # The book and the letters have ways of their own: this one was faster.
            client.knock = letter
            return
        if client is None or client.state is not _State.WAITING:
            self._deliver(Farewell(letter.sender, me, GoneReason.LEFT), now)
            return
        client.peer = letter.sender
        self._deliver(Answer(letter.sender, me, client.hello), now)
        self._pair(client, letter.hello, now)

    def _on_answer(self, client: _Client, letter: Answer, now: Instant) -> None:
        if client.state is not _State.KNOCKING:
            self.counts.dropped["an answer that nobody waits for"] += 1
            return
        self._pair(client, letter.hello, now)

    def _pair(self, client: _Client, hello: bytes, now: Instant) -> None:
        client.state, client.hello, client.until = _State.PAIRED, b"", None
        self._arm(client)
        self._send(client, Peer(hello))
        self.counts.met += 1
        self._tell(Met(client.number, client.address, str(client.peer), now - client.joined))

    def _on_pass(self, client: _Client, letter: Pass, now: Instant) -> None:
        if client.state is not _State.PAIRED or letter.number != client.received:
            self.counts.dropped["a letter before it was lost"] += 1
            self._farewell(client, GoneReason.LOST, now)
            self._lose(client, GoneReason.LOST, now)
            return
        client.received += 1
        self.counts.messages += 1
        self.counts.octets += len(letter.data)
        self._send(client, Message(letter.data))

    def _deliver(self, letter: Letter, now: Instant) -> None:
        if letter.to.hall == self.name:
            self.take(letter, now)
        else:
            self._put(Post(letter))

    # Ends. ----------------------------------------------------------------------------------------

    def _refuse(self, client: _Client, code: ErrorCode, now: Instant, text: str = "") -> None:
        """End a client with an error."""
        text = text or TEXTS[code]
        self._send(client, Error(code.value, text))
        self.counts.refused[code.value] += 1
        self._tell(Refused(client.number, client.address, code.value, text))
        leaving = code in (ErrorCode.SHUTTING_DOWN, ErrorCode.EXPIRED, ErrorCode.IDLE)
        self._end(client, GoneReason.LOST if leaving else GoneReason.EXPELLED, code.value, now)
        self._put(End(client.number, _CLOSE_CODES.get(code, POLICY), code.value))

    def _lose(self, client: _Client, reason: GoneReason, now: Instant) -> None:
        """End a client because it has lost its peer."""
        client.peer = None
        self._send(client, Gone(reason.value))
        self._end(client, reason, "peer gone", now)
        self._put(End(client.number, NORMAL, "the peer is gone"))

    def _end(self, client: _Client, reason: GoneReason, why: str, now: Instant) -> None:
        """Forget a client, and let its peer know."""
        del self._clients[client.number]
        self._per_key[client.key] -= 1
        if not self._per_key[client.key]:
            del self._per_key[client.key]
        self.counts.went[why] += 1
        self._tell(
            Went(
                client.number,
                client.address,
                why,
                now - client.came,
                client.messages,
                client.octets,
            )
        )
        if client.name is not None:
            self._put(Release(client.number, client.name))
        if client.knock is not None:
            farewell = Farewell(client.knock.sender, self._member(client), GoneReason.LEFT)
            self._deliver(farewell, now)
        self._farewell(client, reason, now)

    def _farewell(self, client: _Client, reason: GoneReason, now: Instant) -> None:
        peer, client.peer = client.peer, None
        if peer is not None:
            self._deliver(Farewell(peer, self._member(client), reason), now)

    # What goes out. -------------------------------------------------------------------------------

    def poll(self) -> Output | None:
        """Give the next thing to do or to tell, or ``None`` when there is none."""
        return self._queue.popleft() if self._queue else None

    def _put(self, output: Output) -> None:
        self._queue.append(output)

    def _send(self, client: _Client, message: ServerMessage) -> None:
        self._queue.append(Send(client.number, message))

    def _tell(self, event: Told) -> None:
        self._queue.append(event)
