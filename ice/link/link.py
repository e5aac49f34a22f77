"""The link: what two sides tell each other, from the rendezvous to the end.

Theory of operation.  Two meet at a rendezvous and prove that they have the same code.  Each tells
the fingerprint of its certificate and what its ICE agents need; more follows as it is found.  Every
agent that connects gets a carrier, and every carrier is given to the session, which decides what
goes where.  From the first carrier on, signals go through the session, and the rendezvous is left.

When no carrier is left the two meet again, under a name that only they can know, and begin anew at
every way; the session has kept what was not acknowledged.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from ice.connection import Connection
from ice.errors import ConnectionClosed, ConnectionFailed, ConnectionLost
from ice.link.attempt import Attempt
from ice.link.carrier import Carrier, CarrierFailed
from ice.link.certificate import Identity
from ice.link.config import LinkConfig, Way
from ice.link.engine import Engine
from ice.link.events import Ended, Interrupted, LinkEvent, Met, PathChanged, PathLost, Waiting
from ice.link.planner import Planner
from ice.link.ways import Ways
from ice.rendezvous.client import Client
from ice.rendezvous.errors import RendezvousError, Tampered, WrongCode
from ice.rendezvous.meeting import Meeting
from ice.rendezvous.pairing import Keys
from ice.rendezvous.protocol import Welcome
from ice.servers import IceServer, ServerLike

VERSION: Final = 1
STAY: Final = 5.0
"""Seconds for which a rendezvous is kept when octets flow: the peer may not have a way yet."""
HASTE: Final = 1.0
"""Seconds for which everything else waits for the first way."""
RENEWAL: Final = 3.0
"""Seconds that asking for another credential for the relay may take."""
FRESH: Final = 10.0
"""Seconds for which a credential is not asked for again."""
PAUSE: Final = 1.0
"""Seconds between attempts to meet again."""


class Link:
    """One side of a link.  ``rendezvous`` is a URL, ``code`` what both sides know."""

    def __init__(
        self,
        config: LinkConfig,
        *,
        rendezvous: str,
        code: str | None,
        tls: ssl.SSLContext | None,
        on_event: Callable[[LinkEvent], None],
    ) -> None:
        self.config = config
        self.code = code
        self.path: PathChanged | None = None
        """The way that is used now."""
        self.counters: Counter[str] = Counter()
        """What was dropped, in words for a person."""
        self._url = rendezvous
        self._tls = tls
        self._on_event = on_event
        self._loop = loop = asyncio.get_running_loop()
        self._began = self._met_at = loop.time()
        self._identity = Identity.make()
        self._fingerprint = b""
        """The peer's."""
        self._meeting: Meeting | None = None
        self._first = False
        self._keys: Keys | None = None
        self._planner = Planner(config, tell=self._tell, on_plan=self._planned)
        self._ways: Ways | None = None
        self._engine: Engine | None = None
        self._renewing = asyncio.Lock()
        self._renewed_at = loop.time()
        self._in_band = False
        self._outbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._tasks: set[asyncio.Task[None]] = set()
        self._reunion: asyncio.Task[None] | None = None
        self._ready: asyncio.Future[None] = loop.create_future()
        """Set when there is a way, or with the reason why there is none."""
        self._over: asyncio.Future[None] = loop.create_future()

    # Opening. -------------------------------------------------------------------------------------

    async def open(self) -> Engine:
        """Meet, and wait for the first way.

        Raises :class:`ice.rendezvous.errors.RendezvousError` when the two do not meet, and
        :class:`ice.ConnectionFailed` when there is no way.
        """
        try:
            self._meeting = meeting = await Meeting.open(
                self._url, code=self.code, ssl=self._tls, on_welcome=self._gather
            )
            self.code = meeting.code
            self._on_event(Waiting(meeting.code, meeting.seconds))
            await meeting.peer()
            assert self._ways is not None
            engine = self._begin(meeting, self._ways)
            try:
                async with asyncio.timeout(self.config.patience):
                    await self._ready
            except TimeoutError:
                raise self._no_way(self._ways) from None
        except BaseException as failure:
            error = failure if isinstance(failure, Exception) else ConnectionClosed("cancelled")
            self._finish(error)
            await asyncio.shield(self._settled())
            raise
        return engine

    def _gather(self, welcome: Welcome) -> None:
        """Begin to look for candidates, and at the NAT, while the two have not met."""
        self._ways = self._make_ways(welcome)
        self._ways.gather()
        if self.config.diagnose and self.config.direct:
            self._spawn(self._find_out(welcome.stun))
        # Loaded while the servers' answers are on their way, and not when the first one is there.
        import ice.link.quic
        import ice.link.tls  # noqa: F401

    async def _find_out(self, servers: Sequence[str]) -> None:
        # The first octets go first.
        await asyncio.wait([self._ready], timeout=HASTE)
        await self._planner.find_out(servers)

    def _make_ways(self, welcome: Welcome) -> Ways:
        return Ways(
            self.config,
            self._servers(welcome),
            tell=self._tell,
            make_carrier=self._make_carrier,
            carry=self._carry,
            on_event=self._on_event,
            planner=self._planner,
            renew=self._renew,
            rtt=lambda: 0.0 if self._engine is None else self._engine.rtt,
        )

    def _planned(self) -> None:
        if self._ways is not None:
            self._ways.plan()

    def _servers(self, welcome: Welcome) -> dict[Way, Sequence[ServerLike]]:
        """Sort the servers that are known by the ways that they are for."""
        config, access = self.config, welcome.turn
        relays: list[ServerLike] = []
        plain: list[ServerLike] = list(welcome.stun)
        for server in config.servers:
            uri = _uri(server)
            if not uri.startswith("turn"):
                plain.append(server)
            elif isinstance(server, str) and config.username is not None:
                relays.append(IceServer(uri, config.username, config.password))
            else:
                relays.append(server)
        if access is not None:
            relays += [IceServer(uri, access.username, access.credential) for uri in access.urls]
        servers: dict[Way, Sequence[ServerLike]] = {Way.UDP: plain, Way.TCP: plain}
        relays = [server for server in relays if self._may_use(server)]
        if relays:
            servers[Way.RELAY] = relays
        return servers

    async def _renew(self) -> None:
        """Have the rendezvous tell its relay, and a credential for it, again.

        A credential expires, and a relay that was started anew may have another secret.
        """
        async with self._renewing:
            if self._loop.time() - self._renewed_at < FRESH:
                return
            with suppress(RendezvousError):  # what there is may still be good
                client = await Client.connect(self._url, ssl=self._tls, timeout=RENEWAL)
                self._renewed(client.welcome)
                await client.close()

    def _renewed(self, welcome: Welcome) -> None:
        self._renewed_at = self._loop.time()
        if self._ways is not None:
            self._ways.serve(self._servers(welcome))

    def _may_use(self, server: ServerLike) -> bool:
        """Whether a relay is reached by what may leave this host."""
        uri = _uri(server)
        by_tcp = "transport=tcp" in uri or uri.startswith("turns:")
        return self.config.tcp if by_tcp else self.config.udp

    def _begin(self, meeting: Meeting, ways: Ways) -> Engine:
        """Take note that the peer is there."""
        self._first = meeting.first
        self._keys = meeting.keys
        self._engine = Engine(
            self.config,
            first=self._first,
            told=self._told,
            on_moved=self._moved,
            on_stranded=self._stranded,
            on_signal=self._take_signal,
            on_end=self._finish,
        )
        self._tell(
            {
                "type": "hello",
                "v": VERSION,
                "fingerprint": self._identity.fingerprint.hex(),
                "attempts": ways.meet(first=self._first),
            }
        )
        self._planner.meet()
        self._attend(meeting)
        return self._engine

    def _attend(self, meeting: Meeting) -> None:
        self._spawn(self._listen(meeting))
        self._spawn(self._speak(meeting, self._outbox))

    def _no_way(self, ways: Ways) -> ConnectionFailed:
        if not self._fingerprint:
            return ConnectionFailed("the peer came, and said nothing after that")
        found = "; ".join(ways.verdicts())
        if ways.hopeless:
            return ConnectionFailed(f"the two have no way in common that both may use: {found}")
        waited = self.config.patience
        return ConnectionFailed(f"no way to the peer was found within {waited:g} s: {found}")

    # Signals. -------------------------------------------------------------------------------------

    def _tell(self, message: dict[str, Any]) -> None:
        """Tell the peer something, by the best channel there is."""
        if self._in_band and self._engine is not None:
            if not self._engine.signal(json.dumps(message).encode()):
                self.counters["not told to the peer: too much was to be told already"] += 1
        elif self._meeting is not None:
            self._outbox.put_nowait(message)
        else:
            # The two will meet again and tell each other everything anew.
            self.counters["not told to the peer: there was no channel"] += 1

    async def _speak(self, meeting: Meeting, outbox: asyncio.Queue[dict[str, Any]]) -> None:
        with suppress(RendezvousError):  # the listening task tells of it
            while outbox is self._outbox:
                await meeting.send(await outbox.get())

    async def _listen(self, meeting: Meeting) -> None:
        try:
            while True:
                self._on_message(await meeting.recv())
        except (WrongCode, Tampered) as error:
            self._fail(error)
        except RendezvousError as error:
            if self._meeting is meeting:
                self._meeting = None
            await meeting.close()
            if self._fingerprint:
                # The peer may have a way already, and have left the rendezvous for it.
                await asyncio.sleep(STAY)
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        if not self._ready.done():
            self._ready.set_exception(error)

    def _on_message(self, message: Mapping[str, Any]) -> None:
        assert self._ways is not None
        match message.get("type"):
            case "hello":
                self._take_hello(message)
            case "nat":
                self._planner.take(message)
            case _:
                self._ways.take(message)
                if self._ways.hopeless:
                    self._fail(self._no_way(self._ways))

    def _take_hello(self, message: Mapping[str, Any]) -> None:
        if message.get("v") != VERSION:
            self._fail(
                ConnectionFailed(
                    f"the peer speaks version {message.get('v')!r} and this side {VERSION}: "
                    "use the same release of natkit on both sides"
                )
            )
            return
        try:
            fingerprint = bytes.fromhex(str(message.get("fingerprint")))
        except ValueError:
            fingerprint = b""
        if len(fingerprint) != len(self._identity.fingerprint):
            self._fail(ConnectionFailed("the fingerprint that the peer has told is none"))
            return
        if not self._fingerprint:
            self._fingerprint = fingerprint
            self._met_at = self._loop.time()
            self._on_event(Met((self._met_at - self._began) * 1e3))
        assert self._ways is not None
        offers = message.get("attempts")
        for offer in offers[: len(Way)] if isinstance(offers, list) else ():
            if isinstance(offer, dict):
                self._ways.take(offer)

    def _take_signal(self, data: bytes) -> None:
        try:
            message = json.loads(data)
        except ValueError:
            message = None
        if isinstance(message, dict):
            self._on_message(message)
        else:
            self.counters["dropped: a signal that is no object"] += 1

    # Ways. ----------------------------------------------------------------------------------------

    def _make_carrier(self, attempt: Attempt, connection: Connection) -> Carrier:
        server = not self._first
        if attempt.way is Way.TCP:
            from ice.link.tls import TlsCarrier

            return TlsCarrier(connection, self._identity, self._fingerprint, server=server)
        from ice.link.quic import QuicCarrier

        return QuicCarrier(connection, self._identity, self._fingerprint, server=server)

    async def _carry(self, attempt: Attempt, carrier: Carrier) -> None:
        assert self._engine is not None
        why = "another attempt takes its place"  # where this is cancelled
        try:
            why = await self._engine.carry(attempt, carrier)
        finally:
            if attempt.carried and not self._over.done():
                self._on_event(PathLost(attempt.kind, attempt.transport, why))
        raise CarrierFailed(why)

    def _moved(self, attempt: Attempt, why: str, rtt: float | None) -> None:
        if not self._in_band:
            self._in_band = True
            self._loop.call_later(STAY, self._leave_rendezvous)
        if self._reunion is not None:
            self._reunion.cancel()
            self._reunion = None
        ms = (self._loop.time() - self._met_at) * 1e3
        local, remote, relay = attempt.endpoints()
        kind, transport = attempt.kind, attempt.transport
        self.path = PathChanged(kind, transport, ms, why, local, remote, rtt, relay)
        self._on_event(self.path)
        if not self._ready.done():
            self._ready.set_result(None)
        self._spawn(self._planner.learn(attempt.way, attempt.recipe))

    def _leave_rendezvous(self) -> None:
        meeting = self._meeting
        if meeting is not None and self._in_band:
            self._meeting = None
            self._spawn(meeting.close())

    # Interruptions. -------------------------------------------------------------------------------

    def _stranded(self) -> None:
        self._in_band = False
        if self._over.done() or not self._ready.done() or self._reunion is not None:
            return
        self._on_event(Interrupted("every way to the peer is gone; looking for another"))
        self._reunion = self._spawn(self._reunite())

    async def _reunite(self) -> None:
        """Meet again, and begin at every way, until there is one or patience is over."""
        patience = self.config.patience
        reason = "it did not come to the rendezvous again"
        with suppress(TimeoutError):
            async with asyncio.timeout(patience):
                while True:
                    try:
                        await self._meet_again()
                        await asyncio.sleep(patience)  # until a way is found, which ends this
                    except RendezvousError as error:
                        reason = str(error)
                        await asyncio.sleep(PAUSE)
        text = f"nothing was heard of the peer for {patience:g} s on any way: {reason}"
        self._end(ConnectionLost(text))

    async def _meet_again(self) -> None:
        if self._meeting is None and self._keys is not None:
            meeting = await Meeting.resume(
                self._url,
                self._keys,
                ssl=self._tls,
                timeout=self.config.patience,
                on_welcome=self._renewed,
            )
            self._meeting = meeting
            self._outbox = asyncio.Queue()  # what was for an earlier meeting is out of date
            self._attend(meeting)
        assert self._ways is not None
        self._ways.begin_again()

    # The end. -------------------------------------------------------------------------------------

    def _end(self, error: Exception) -> None:
        if self._engine is not None:
            self._engine.finish(error)
        self._finish(error)

    def _finish(self, error: Exception | None) -> None:
        if self._over.done():
            return
        self._over.set_result(None)
        if self._ways is not None:
            self._ways.stop()
        self._fail(error or ConnectionClosed("the link has ended"))
        if self._ready.exception() is not None and self._engine is not None:
            self._engine.finish(error)
        self._on_event(Ended(None if error is None else str(error)))
        self._spawn(self._close_all())

    async def ended(self) -> None:
        """Wait until both sides have ended.  Raises what went wrong, if something did."""
        await asyncio.shield(self._over)
        await self._settled()
        if self._engine is not None and self._engine.error is not None:
            raise self._engine.error

    async def _settled(self) -> None:
        while pending := self._tasks - {asyncio.current_task()}:
            await asyncio.wait(pending)

    async def _close_all(self) -> None:
        meeting, self._meeting = self._meeting, None
        if self._engine is not None:
            await self._engine.close_carriers()
        if self._ways is not None:
            await self._ways.close()
        if meeting is not None:
            await meeting.close()
        for task in self._tasks - {asyncio.current_task()}:
            task.cancel()

    def _told(self, name: str) -> Any:
        return {"path": self.path, "code": self.code, "link": self}.get(name)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _uri(server: ServerLike) -> str:
    return server.uri if isinstance(server, IceServer) else str(server)


__all__ = ["Link"]
