"""A worker: a turnd that serves on sockets it is given, and does what its supervisor says.

It has one line to the supervisor and one to each other worker.  When the line to the supervisor
ends, the worker ends, too.
"""

from __future__ import annotations

import asyncio
import errno
import os
import select
import signal
import socket
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

from stun.discovery import Transport
from stun.errors import StunError, UsageError
from stun.sansio import Address, Cause, Received
from turn.daemon.listeners import Listeners
from turn.daemon.logs import Journal
from turn.daemon.operations import commands
from turn.daemon.service import Turnd
from turn.daemon.workers.handover import (
    PASSING,
    Claim,
    MemberServer,
    PassConnection,
    PassDatagram,
    Passed,
)
from turn.daemon.workers.line import Line
from turn.daemon.workers.memory import Memory
from turn.daemon.workers.orders import Birth, Figures, Orders
from turn.daemon.workers.shared import Shared
from turn.server.config import ListenAt
from turn.server.events import CannotServe, Drained, ServerEvent
from turn.server.machine import Server

BEAT: Final = 1.0
"""Seconds between two signs of life."""
SWEEP: Final = 10
"""Beats between two looks at what came by way of other workers."""


class Inheritance:
    """What a worker is given before it can begin."""

    def __init__(self) -> None:
        self.birth: Birth
        self.orders: Orders
        self.memory: Memory
        self.mesh: dict[int, socket.socket] = {}
        self.sockets: dict[tuple[str, Address], socket.socket] = {}
        self.complete = False
        self.later: list[tuple[Any, list[int]]] = []
        """What the supervisor has said since."""

    def take(self, value: Any, descriptors: list[int]) -> None:
        """Take a message of the supervisor's."""
        match value:
            case ("memory",):
                self.memory = Memory(descriptors[0])
            case ("mesh", numbers):
                for number, descriptor in zip(numbers, descriptors, strict=True):
                    self.mesh[number] = _socket(descriptor)
            case ("sockets", keys):
                for key, descriptor in zip(keys, descriptors, strict=True):
                    self.sockets[key] = _socket(descriptor)
            case ("begin", birth, orders):
                self.birth, self.orders = birth, orders
                self.complete = True
            case _:
                self.later.append((value, descriptors))


class Worker(Turnd):
    """One worker; ``line`` leads to the supervisor."""

    def __init__(self, given: Inheritance, line: Line) -> None:
        birth = given.birth
        self._birth = birth
        self._given = given
        self._orders = given.orders
        self._line = line
        self._sockets = given.sockets
        self._shared = Shared(
            given.memory,
            workers=birth.workers,
            slots=birth.slots,
            number=birth.number,
            key=birth.key,
            tell=self._tell_closed,
        )
        self._shared.openings.places = dict(given.orders.places)
        self._mesh = {number: Line(sock, self._hear(number)) for number, sock in given.mesh.items()}
        self._missed = 0
        self._gone: set[int] = set()
        """Workers that have died, and whose places nobody has taken yet."""
        self._member: MemberServer
        super().__init__(
            lambda: self._orders.settings,
            on_ready=self._begin,
            version=birth.version,
            lister=lambda: self._orders.addresses,
            watch=birth.watch,
        )
        self._parts.fleet = False
        self._listeners = Listeners(self._problem_with)
        self.nonces.rotate(given.orders.nonces)
        self._driver.serve_on(self._give)
        for kind in PASSING:
            self._driver.take(kind, self._pass)

    def _make_server(self) -> Server:
        self._member = MemberServer(
            self.plan.config,
            self._users,
            self.nonces,
            entropy=os.urandom,
            tokens=self._configured.tokens,
            siblings=self._shared,
            workers=self._birth.workers,
        )
        return self._member

    def _open_log(self) -> None:
        super()._open_log()
        self._log = self._log.bind(worker=self._birth.number)
        self._journal = Journal(self._log, self.settings.log.level)

    # Sockets that it is given. --------------------------------------------------------------------

    def _give(self, protocol: str, local: Address) -> socket.socket | None:
        given = self._sockets.pop((protocol, local), None)
        if given is None:
            # The supervisor could not have it, and tries again.
            raise OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
        return given

    def _problem_with(self, at: ListenAt) -> CannotServe | None:
        """Say whether a listener could be had now: if the supervisor has given it."""
        if (at.transport.protocol, at.local) in self._sockets:
            return None
        return CannotServe(at.transport, at.local, Cause.ADDRESS_NOT_AVAILABLE, "")

    def _check_new(self, plan: Any) -> None:
        """Nothing: the supervisor has tried what is new, and holds it."""

    def _add_signals(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._on_stop_signal)
        # These are for the supervisor, which may be of the same process group.
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)

    # The supervisor. ------------------------------------------------------------------------------

    def _begin(self, _: Turnd) -> bool:
        for value, descriptors in self._given.later:
            self.obey(value, descriptors)
        self._line.start()
        for line in self._mesh.values():
            line.start()
        self._line.send(("ready", list(self.serving)))
        self._obey_changes()
        self.spawn(self._beat())
        return True

    def obey(self, value: Any, descriptors: list[int]) -> None:
        """Do what the supervisor says."""
        match value:
            case ("sockets", keys):
                for key, descriptor in zip(keys, descriptors, strict=True):
                    self._sockets[key] = _socket(descriptor)
            case ("forget", keys):
                for key in keys:
                    if key in self._sockets:
                        self._sockets.pop(key).close()
            case ("reload", ident, orders):
                self.spawn(self._obey_reload(ident, orders))
            case ("orders", orders):
                self._take_orders(orders)
                self.spawn(self._look())
            case ("ask", ident, request):
                self.spawn(self._answer(ident, request))
            case ("lost", number):
                self._gone.add(number)
                self._mesh[number].forget()
                self._member.lost(number)
                self._driver.flush()
            case ("there", number):
                self._gone.discard(number)
                self._member.sweep()  # it does not know yet what it is to hand over
                self._driver.flush()
            case ("stop",):
                self.stop()

    def supervisor_gone(self) -> None:
        """Stop: nobody would replace this worker, and nobody could stop it."""
        self._log.error("the supervisor is gone; this worker stops")
        self.stop()

    def _take_orders(self, orders: Orders) -> None:
        self._orders = orders
        self._shared.openings.places = dict(orders.places)
        self._obey_changes()

    def _obey_changes(self) -> None:
        orders = self._orders
        if tuple(self.nonces.secrets) != orders.nonces:
            self.nonces.rotate(orders.nonces)
        self.elsewhere(orders.elsewhere)
        if orders.draining:
            self.drain()

    async def _look(self) -> None:
        async with self._reloads:
            self._look_at_addresses()

    async def _obey_reload(self, ident: int, orders: Orders) -> None:
        before = self._orders
        async with self._reloads:
            self._take_orders(orders)
            try:
                changed = await self._reload()
            except StunError as error:
                self._take_orders(before)
                self._line.send(("answer", ident, None, str(error)))
            else:
                self._line.send(("answer", ident, changed, ""))

    async def _answer(self, ident: int, request: Mapping[str, Any]) -> None:
        command = request["command"]
        if command == "figures":
            self._line.send(("answer", ident, self._figures(), ""))
            return
        try:
            result = await commands(self)[command](request)
        except StunError as error:
            self._line.send(("answer", ident, None, str(error)))
        else:
            self._line.send(("answer", ident, result, ""))

    def _figures(self) -> Figures:
        counts = dict(self.transport_counters())
        counts["handed over to other workers"] = self._member.passed
        counts["handed over by other workers"] = self._member.taken
        dropped = sum(line.dropped for line in self._mesh.values())
        counts["not handed over: the other worker is too busy"] = dropped
        counts["not handed over: the other worker is gone"] = self._missed
        counts["accounts that found no room"] = self._shared.accounts.unshared
        return Figures(
            self.metrics,
            self.usage(),
            dict(self.drops),
            counts,
            self.lookups(),
            # The supervisor tells other servers of them, where there are such.
            dict(self.allocations_by_account()) if self._orders.fleet else {},
        )

    async def _beat(self) -> None:
        beats = 0
        while True:
            self._line.send(("beat", self._figures()))
            await asyncio.sleep(BEAT)
            beats += 1
            if beats % SWEEP == 0:
                self._member.sweep()
                self._driver.flush()

    def _on_event(self, event: ServerEvent) -> None:
        if isinstance(event, Drained):
            # The others may still need what comes to this one's sockets.
            self._line.send(("drained",))
        else:
            super()._on_event(event)

    # The other workers. ---------------------------------------------------------------------------

    def _hear(self, number: int) -> Any:
        return lambda value, descriptors: self._heard(number, value, descriptors)

    def _heard(self, worker: int, value: Any, descriptors: list[int]) -> None:
        match value:
            case ("datagram", data, client, server):
                self._member.take(Received(data, client, server), worker, self.now())
            case ("claim", flows, mine):
                self._member.claimed(flows, worker, mine=mine)
            case ("closed", local):
                self._member.left(local)
            case Passed():
                self._adopt(value, _socket(descriptors[0]))
        self._driver.flush()

    def _adopt(self, passed: Passed, sock: socket.socket) -> None:
        taken = self._member.adopt(passed)
        if taken is None:
            sock.close()
            return
        handle, listener = taken
        self._driver.adopt(
            sock,
            passed.local,
            passed.remote,
            handle=handle,
            listener=listener,
            secure=passed.secure,
            data=passed.data,
            unsent=passed.unsent,
        )

    def _tell_closed(self, local: Address) -> None:
        for number, line in self._mesh.items():
            if number not in self._gone:  # whoever comes in its place forwards nothing there
                line.send(("closed", local))

    def _pass(self, order: PassDatagram | PassConnection | Claim) -> None:
        line = self._mesh[order.worker]
        if order.worker in self._gone:
            self._missed += 1
            if isinstance(order, PassConnection):
                self._refuse(order)
            return
        match order:
            case PassDatagram(_, data, client, server):
                line.post(("datagram", data, client, server))
            case Claim(_, flows, mine):
                line.send(("claim", flows, mine))
            case PassConnection():
                self._pass_connection(line, order)

    def _refuse(self, order: PassConnection) -> None:
        """Close a connection whose owner is gone."""
        near, far = socket.socketpair()
        far.close()
        if order.pipe:
            # The pipe ends at once, and the connection with it.
            self._driver.adopt(near, order.flow.server, order.flow.client, handle=order.pipe)
            return
        near.close()
        with suppress(UsageError):
            self._driver.detach(order.flow.connection)[0].close()

    def _pass_connection(self, line: Line, order: PassConnection) -> None:
        flow, unsent = order.flow, b""
        if order.pipe:
            near, sock = socket.socketpair()
            self._driver.adopt(near, flow.server, flow.client, handle=order.pipe)
        else:
            try:
                sock, unsent = self._driver.detach(flow.connection)
            except UsageError:
                return  # it closed in this very moment
        with sock:
            passed = Passed(
                listener=order.listener,
                secure=flow.transport.is_secure,
                datagrams=flow.transport is Transport.DTLS,
                local=flow.server,
                remote=flow.client,
                data=order.data,
                unsent=unsent,
            )
            line.post(passed, [sock.fileno()])


def _socket(descriptor: int) -> socket.socket:
    sock = socket.socket(fileno=descriptor)
    sock.setblocking(False)
    return sock


def run(descriptor: int) -> int:
    """Be the worker at the other end of the line ``descriptor``; return the exit code."""
    from turn.aio import new_event_loop

    given = Inheritance()
    worker: Worker | None = None

    def on_message(value: Any, descriptors: list[int]) -> None:
        if worker is None:
            given.take(value, descriptors)
        else:
            worker.obey(value, descriptors)

    def on_end() -> None:
        if worker is not None:
            worker.supervisor_gone()

    sock = _socket(descriptor)
    line = Line(sock, on_message, on_end)
    while not given.complete and not line.ended:
        select.select([sock], [], [])
        line.take()
    if line.ended:
        return 1

    async def serve() -> None:
        nonlocal worker
        worker = Worker(given, line)
        await worker.run()

    try:
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            runner.run(serve())
    except StunError as error:
        with suppress(OSError):
            line.send(("cannot", str(error)))
        return 1
    return 0
