"""Programs with an ICE agent each, introduced to one another: what an interop test is made of.

A *peer* is a program that reads commands and writes events, one JSON object a line.

=============================== ================================================================
command                         meaning
=============================== ================================================================
``start``                       make an agent and gather; the other fields are those of
                                :class:`Setup`
``remote``                      ``ufrag`` and ``pwd`` of the other side, ``lite``
``candidate``                   ``candidate``: one of the other side, as in SDP, or null: no more
``send``                        send ``count`` messages, as :func:`message` writes them
``pair``                        tell which pair is in use
``restart``                     begin anew: other credentials and all candidates are told, and
                                when it is connected again; only some peers can
``explain``                     write to standard error why it is as it is, if it can
``close``                       close the agent and end
=============================== ================================================================

=============================== ================================================================
event                           fields
=============================== ================================================================
``credentials``                 ``ufrag``, ``pwd``
``candidate``                   ``candidate``: another one of this side, or null: no more
``connected``                   none; data may be sent
``data``                        ``text``: a message that came
``pair``                        ``local`` and ``remote``: ``type``, ``transport``, ``address``,
                                ``port``, ``tcptype``
``failed``                      ``why``
=============================== ================================================================
"""

from __future__ import annotations

import contextlib
import json
import queue
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

from nattype.lab.kernel.lab import Machine

MESSAGES = 20
PATIENCE = 30.0
"""Seconds for two peers to connect, and again to exchange messages; only a failing test waits."""
SETTLING = 8.0
"""Seconds for connected agents to go over to the pair that is expected of them."""


class Relay(NamedTuple):
    """A TURN server and who may use it."""

    url: str
    username: str
    password: str
    authorities: str = ""
    """A PEM file with what to trust, for a relay that is reached by TLS or DTLS."""


@dataclass(frozen=True)
class Setup:
    """What a peer's agent is told."""

    controlling: bool = True
    stun: tuple[str, int] | None = None
    relay: Relay | None = None
    relay_only: bool = False
    """Nothing but relayed candidates."""
    transports: tuple[str, ...] = ("udp",)
    """Of the host and server-reflexive candidates: ``udp``, ``tcp``."""
    lite: bool = False
    """RFC 8445 section 2.5: it only answers."""
    hide: bool = False
    """Names for multicast DNS in place of the host's addresses."""
    name: str = ""


class End(NamedTuple):
    """One side of a pair."""

    type: str
    transport: str
    address: str
    port: int
    tcptype: str | None


class Pair(NamedTuple):
    """The pair that a peer uses, as that peer sees it."""

    local: End
    remote: End

    @property
    def types(self) -> tuple[str, str]:
        return self.local.type, self.remote.type

    @property
    def transport(self) -> str:
        return self.local.transport


class Connected(NamedTuple):
    """What came of two peers that were introduced."""

    a: Pair
    b: Pair
    seconds: float
    """From both agents' first candidates until both sides could send."""

    @property
    def relayed(self) -> bool:
        """Whether a relay is on the path: either side may know, the other sees an address."""
        return "relay" in (*self.a.types, *self.b.types)

    @property
    def agree(self) -> bool:
        """Whether both sides are on one path, as far as their own addresses are known to both.

        A host behind a NAT does not know the address that the other side sees; a relay's address
        is the same for everybody.
        """
        return all(
            there.remote[2:4] == here.local[2:4]
            for here, there in ((self.a, self.b), (self.b, self.a))
            if here.local.type == "relay"
        ) and all(
            there.local.type == "relay"
            for here, there in ((self.a, self.b), (self.b, self.a))
            if here.remote.type == "relay"
        )

    @property
    def transports(self) -> set[str]:
        return {end.transport for pair in (self.a, self.b) for end in pair}


class PeersFailed(AssertionError):
    """Two peers did not connect, or did not understand each other."""


class Program(Protocol):
    """A running program: what :mod:`subprocess` and the laboratory have in common."""

    stdin: IO[Any] | None
    stdout: IO[Any] | None

    def wait(self, timeout: float | None = None) -> int: ...
    def kill(self) -> None: ...


def message(name: str, number: int) -> str:
    """Return a message that every peer program writes in the same way."""
    return f"{name} {number} " + "x" * (number * 50)


Told = tuple["Peer", dict[str, Any]]


class Peer:
    """A peer program that runs."""

    def __init__(self, name: str, program: Program, log: Path, told: queue.Queue[Told]) -> None:
        self.name = name
        self.connected = False
        self.received: list[str] = []
        self.candidates: list[str] = []
        """Of this side, as it told them."""
        self._program = program
        self._log = log
        self._told = told
        self._reader = threading.Thread(target=self._read, name=f"peer {name}", daemon=True)
        self._reader.start()

    def tell(self, do: str, **fields: Any) -> None:
        """Give a command."""
        assert self._program.stdin is not None
        try:
            self._program.stdin.write(json.dumps({"do": do, **fields}) + "\n")
            self._program.stdin.flush()
        except BrokenPipeError:
            raise PeersFailed(f"{self.name} has ended: {self.log}") from None

    @property
    def log(self) -> str:
        """What it wrote to its standard error."""
        return self._log.read_text(errors="replace")

    def close(self) -> None:
        """Ask it to end and see that it does so in order."""
        self.tell("close")
        try:
            status = self._program.wait(10)
        except subprocess.TimeoutExpired:
            raise PeersFailed(f"{self.name} does not end: {self.log}") from None
        if status:
            raise PeersFailed(f"{self.name} ended with {status}: {self.log}")

    def end(self) -> None:
        """End it, however it is."""
        with contextlib.suppress(BrokenPipeError):
            assert self._program.stdin is not None
            self._program.stdin.close()
        self._program.kill()
        self._program.wait()
        self._reader.join(10)
        assert self._program.stdout is not None
        self._program.stdout.close()

    def _read(self) -> None:
        assert self._program.stdout is not None
        for line in self._program.stdout:
            try:
                event = json.loads(line)
            except ValueError:
                event = {"event": "failed", "why": f"not JSON: {line!r}"}
            self._told.put((self, event))
        self._told.put((self, {"event": "ended"}))


@dataclass
class Meeting:
    """Two peers and all that they tell."""

    a: Peer
    b: Peer
    told: queue.Queue[Told]
    hold_back: Mapping[str, str] = field(default_factory=dict)
    """Of the peer of that name, candidates with that text in them are not passed on."""
    only: str = ""
    """Every candidate has to have this text in it."""
    _credentials: dict[str, dict[str, str]] = field(default_factory=dict)
    _ready: set[str] = field(default_factory=set)
    _pairs: dict[str, Pair] = field(default_factory=dict)
    _lite: dict[str, bool] = field(default_factory=dict)

    def connect(
        self,
        a: Setup,
        b: Setup,
        patience: float = PATIENCE,
        settled: Callable[[Connected], bool] = lambda _: True,
        restarts: int = 0,
    ) -> Connected:
        """Connect them, let them talk, and end both.  Raises :class:`PeersFailed`.

        Agents may go over to a better pair once they are connected: the answer is the first that
        is ``settled``, or what there is after a while.
        """
        for peer, setup in ((self.a, a), (self.b, b)):
            self._lite[peer.name] = setup.lite
            # "relay" is a tuple with names, which the programs would see as a list without them.
            fields = asdict(setup) | {"name": peer.name}
            fields["relay"] = setup.relay._asdict() if setup.relay else None
            peer.tell("start", **fields)
        self._until(lambda: len(self._ready) == 2, patience, "start")
        begin = time.monotonic()
        self._until(lambda: self.a.connected and self.b.connected, patience, "connect")
        seconds = time.monotonic() - begin
        self.talk(patience)
        for _ in range(restarts):
            self._restart(patience)
        end = time.monotonic() + SETTLING
        while (
            not settled(found := Connected(**self._ask(), seconds=seconds))
            and time.monotonic() < end
        ):
            time.sleep(0.05)
        for peer in (self.a, self.b):
            peer.close()
        return found

    def _restart(self, patience: float) -> None:
        for peer in (self.a, self.b):
            peer.connected = False
            peer.candidates.clear()
            peer.tell("restart")
        self._until(lambda: self.a.connected and self.b.connected, patience, "restart")
        self.talk(patience)

    def _ask(self) -> dict[str, Pair]:
        self._pairs.clear()
        for peer in (self.a, self.b):
            peer.tell("pair")
        self._until(lambda: len(self._pairs) == 2, 10, "tell")
        return self._pairs

    def talk(self, patience: float = PATIENCE) -> None:
        """Let each send the other some messages of many sizes."""
        for peer in (self.a, self.b):
            peer.received.clear()
            peer.tell("send", count=MESSAGES)
        self._until(
            lambda: min(len(self.a.received), len(self.b.received)) >= MESSAGES, patience, "talk"
        )
        for peer, other in ((self.a, self.b), (self.b, self.a)):
            # Datagrams: none is lost on these wires, but nobody promises their order.
            if sorted(peer.received) != sorted(message(other.name, n) for n in range(MESSAGES)):
                raise PeersFailed(f"{peer.name} received {peer.received}")

    def _until(self, done: Any, patience: float, what: str) -> None:
        end = time.monotonic() + patience
        while not done():
            try:
                peer, event = self.told.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                raise PeersFailed(f"they did not {what} in {patience} s: {self.story()}") from None
            self._handle(peer, event, what)

    def _handle(self, peer: Peer, event: dict[str, Any], what: str) -> None:
        other = self.b if peer is self.a else self.a
        match event.pop("event"):
            case "credentials":
                if event == self._credentials.get(peer.name):
                    raise PeersFailed(f"{peer.name} restarts with the credentials that it had")
                self._credentials[peer.name] = dict(event)
                other.tell("remote", lite=self._lite[peer.name], **event)
                self._ready.add(peer.name)
            case "candidate":
                text = event["candidate"]
                if text is not None:
                    peer.candidates.append(text)
                    if self.only not in text:
                        raise PeersFailed(f"{peer.name} tells of {text}: {self.only!r} is missing")
                held_back = self.hold_back.get(peer.name)
                if text is None or held_back is None or held_back not in text:
                    other.tell("candidate", candidate=text)
            case "connected":
                peer.connected = True
            case "data":
                peer.received.append(event["text"])
            case "pair":
                self._pairs[peer.name] = Pair(End(**event["local"]), End(**event["remote"]))
            case "failed":
                raise PeersFailed(f"{what}: {peer.name}: {event['why']}: {self.story()}")
            case "ended":
                raise PeersFailed(f"{what}: {peer.name} has ended: {self.story()}")
            case unknown:
                raise PeersFailed(f"{peer.name} says {unknown!r}, which no peer may say")

    def story(self) -> str:
        """Return what is known, for a person who wants to know why it failed."""
        for peer in (self.a, self.b):
            with contextlib.suppress(PeersFailed):
                peer.tell("explain")
        time.sleep(0.5)
        return "\n".join(
            f"{peer.name}: connected: {peer.connected}, {len(peer.received)} messages, candidates: "
            f"{peer.candidates}, log:\n{peer.log[-8000:]}"
            for peer in (self.a, self.b)
        )


@contextmanager
def meeting(
    first: tuple[Machine, list[str]],
    second: tuple[Machine, list[str]],
    folder: Path,
    *,
    hold_back: Mapping[str, str] | None = None,
    only: str = "",
) -> Iterator[Meeting]:
    """Run two peer programs, each on a machine of a laboratory, until the block ends."""
    told: queue.Queue[Told] = queue.Queue()
    with ExitStack() as stack:
        peers = []
        for name, (machine, command) in (("a", first), ("b", second)):
            log = folder / f"{name}.log"
            program = machine.popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stack.enter_context(log.open("wb")),
                text=True,
            )
            peers.append(Peer(name, program, log, told))
            stack.callback(peers[-1].end)
        yield Meeting(peers[0], peers[1], told, hold_back or {}, only)
