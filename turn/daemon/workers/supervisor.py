"""The supervisor: a turnd whose relaying is done by workers.

It reads the configuration, binds the listeners, and has everything that there is one of: the admin
socket, the metrics, the rendezvous, the exchange with other servers, systemd.  What clients have is
with the workers (:mod:`turn.daemon.workers.crew`); the server machine here serves nobody.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from stun.errors import DropReason, StunError
from stun.sansio import Instant
from turn.daemon.addresses import Lister, local_addresses
from turn.daemon.beforehand import CannotStart, check_machine
from turn.daemon.configured import Configured
from turn.daemon.forwarding import Forwarding
from turn.daemon.limits import raise_descriptor_limit
from turn.daemon.plan import Plan
from turn.daemon.service import WATCH, Turnd
from turn.daemon.settings import Settings
from turn.daemon.systemd import notify
from turn.daemon.workers.accounts import slots_for
from turn.daemon.workers.bound import Bound
from turn.daemon.workers.crew import Crew
from turn.daemon.workers.openings import HOSTS
from turn.daemon.workers.orders import Birth, Orders, has_fleet, settings_of, share_of_ports
from turn.daemon.workers.overall import OverallParts
from turn.daemon.workers.shared import Shared, make_memory
from turn.meter import Usage
from turn.server.events import CannotServe, SessionInfo
from turn.server.listening import wanted as listeners_of
from turn.server.metrics import Metrics

PULSE: Final = 1.0
"""Seconds between two looks at whether workers are to be told of something."""


class Supervisor(Turnd):
    """Runs ``settings.workers`` workers; used as :class:`turn.daemon.service.Turnd` is."""

    def __init__(
        self,
        load: Callable[[], Settings],
        *,
        config: Path | None = None,
        on_ready: Callable[[Turnd], bool] = lambda _: False,
        version: str = "",
        lister: Lister = local_addresses,
        watch: float = WATCH,
    ) -> None:
        super().__init__(
            load, config=config, on_ready=on_ready, version=version, lister=lister, watch=watch
        )
        self.workers = workers = self.settings.workers
        share_of_ports(self.settings.relay.ports, 1, workers)
        self.forwarding = Forwarding(
            "sockets", None, f"{workers} workers, which the kernel's data plane has no use for"
        )
        self._parts = OverallParts(self, config)
        self._parts_of_hosts: dict[str, int] = {}
        self._elsewhere: Mapping[str, int] = {}
        self._told = self._news()
        key, slots = os.urandom(32), slots_for(self.plan.config.limits)
        self._key = key
        self._memory = make_memory(workers, slots)
        shared = Shared(self._memory, workers=workers, slots=slots, number=0, key=key)
        self._openings = shared.openings
        self._bound = Bound(workers)
        self.crew = Crew(
            [Birth(n, workers, slots, key, version, watch) for n in range(1, workers + 1)],
            shared,
            self._bound,
            orders=self._orders,
            log=lambda: self._log,
            on_drained=self.stop,
        )

    def _orders(self, number: int, configured: Configured | None = None) -> Orders:
        """Return what a worker is to be."""
        configured = configured or self._configured
        users = [self._probe] if configured.made_up is None else [self._probe, configured.made_up]
        return Orders(
            settings_of(
                configured.settings,
                number,
                self.workers,
                users=users,
                secret=self._parts.made_up,
                nonce=self._key,
            ),
            configured.addresses,
            dict(self._parts_of_hosts),
            tuple(self.nonces.secrets),
            dict(self._elsewhere),
            self._draining,
            has_fleet(configured.settings),
        )

    # The whole of its life. -----------------------------------------------------------------------

    async def run(self) -> None:
        """Serve until a signal, or until drained.  Raises ``StunError`` if it cannot."""
        if sys.platform != "linux":
            raise CannotStart("several workers need Linux: run one (--workers 1)")
        raise_descriptor_limit()
        check_machine(self.plan)
        try:
            await self._parts.open(self.settings)
            self._parts.commit()
            self._set_clock()
            self._place_hosts(self.plan)
            self._bind(self.plan)
            for line in self._listeners.check_started(self.plan, partial=self.settings.partial):
                self.warn(line)
            await self.crew.start()
            self._add_signals()
            if not self._on_ready(self):
                for text in self.plan.warnings:
                    self.warn(text)
                self._log.info("serving", **self._places(), workers=self.workers)
            notify(f"READY=1\nSTATUS={self._status_line()}")
            self.spawn(self.crew.watch())
            self.spawn(self._look_after())
            self.spawn(self._pulse())
            self.spawn(self._feed_watchdog())
            await self._stopping.wait()
            if self._crash is None:
                await self._end()
        finally:
            await self.crew.stop()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self._parts.close()
            self._bound.close_all()
            self._driver.close()
            self._memory.close()
        if self._crash is not None:
            raise self._crash

    async def _end(self) -> None:
        notify("STOPPING=1")
        await self.crew.stop()
        self._log.info("stopped")

    def now(self) -> Instant:
        """Return the time by the workers' clocks."""
        return time.monotonic_ns()

    async def _pulse(self) -> None:
        """Tell the workers what has changed without anybody saying so."""
        while True:
            await asyncio.sleep(PULSE)
            if (news := self._news()) != self._told:
                self._told = news
                self.crew.order_all()

    def _news(self) -> tuple[Any, ...]:
        return tuple(self.nonces.secrets), self._elsewhere, self._draining

    # Listeners. -----------------------------------------------------------------------------------

    def _place_hosts(self, plan: Plan) -> None:
        for relay in plan.config.relays:
            if relay.local not in self._parts_of_hosts and len(self._parts_of_hosts) < HOSTS:
                self._parts_of_hosts[relay.local] = len(self._parts_of_hosts)
        self._openings.places = self._parts_of_hosts

    def _bind(self, plan: Plan) -> list[tuple[str, Any]]:
        """Bind what a plan has and is not bound; return what is new."""
        new = []
        for at in listeners_of(plan.config):
            key = (at.transport.protocol, at.local)
            if key in self._bound:
                continue
            outcome = self._bound.open(at)
            if isinstance(outcome, CannotServe):
                self._listeners.lost(outcome)
            else:
                self._listeners.opened(outcome)
                new.append(key)
        return new

    def _put_in_force(self) -> list[str]:
        """Bind and close what the plan says, and have the workers go over to it."""
        wanted = {(at.transport.protocol, at.local) for at in listeners_of(self.plan.config)}
        gone = self._bound.keys - wanted
        self._place_hosts(self.plan)
        new = self._bind(self.plan)
        self.crew.give_all(new)
        self.crew.order_all()
        self._bound.close(gone)
        self._listeners.go_over(self.plan)
        return [f"listening at {protocol} {local}" for protocol, local in new] + [
            f"no longer listening at {protocol} {local}" for protocol, local in gone
        ]

    # What its operator may do. --------------------------------------------------------------------

    def sessions(self) -> Iterator[SessionInfo]:
        """Yield nothing: the workers have them, and the admin socket asks these."""
        return iter(())

    def drain(self) -> int:
        """Take no new allocations, and stop after the last one; return how many are left."""
        left = self.metrics.allocations
        if not self._draining:
            self._draining = True
            self._log.info("draining: no new allocations", left=left)
            notify(f"STATUS=draining, {left} allocations left")
            self.crew.order_all()
        return left

    async def _reload(self) -> list[str]:
        wanted = Configured.read(self._load, self._lister, self.made_up)
        share_of_ports(wanted.settings.relay.ports, 1, self.workers)
        self._check_new(wanted.plan)
        await self._parts.open(wanted.settings)
        there = self._bound.keys
        try:
            if self._stopping.is_set():
                raise CannotStart("turnd is stopping")
            self._place_hosts(wanted.plan)
            new = self._bind(wanted.plan)
            self.crew.give_all(new)
            # One goes first: what it cannot, none is asked for.
            serving = [member for member in self.crew.members if member.serves]
            changed: list[str] = []
            for member in serving[:1]:
                changed += await self.crew.ask(
                    member, "reload", self._orders(member.number, wanted)
                )
        except BaseException:
            await self._parts.abandon()
            self.crew.take_back(self._bound.keys - there)
            self._bound.close(self._bound.keys - there)
            self._listeners.go_over(self.plan)
            raise
        before, self._configured = self._configured, wanted
        settings, old = wanted.settings, before.settings
        replaced = self._parts.commit()
        changed = [*wanted.changes(before), *changed]
        if settings.log != old.log:
            self._open_log()
        if settings.auth.nonce_secret != old.auth.nonce_secret:
            self._rotate_nonces()
        self.nonces.lifetime = settings.auth.nonce_lifetime
        for member in serving[1:]:
            try:
                changed += await self.crew.ask(member, "reload", self._orders(member.number))
            except StunError as error:
                self._log.error(
                    "a worker has not reloaded", worker=member.number, problem=str(error)
                )
                changed.append(f"worker {member.number} goes on as before: {error}")
        self._listeners.forgive()
        changed += self._put_in_force()
        for gone, part in replaced:
            changed.append(f"{part.name}: {part.words}")
            self.spawn(gone.stack.aclose())
        return list(dict.fromkeys(changed))

    def _rotate_nonces(self) -> None:
        from turn.daemon.configured import nonce_secret

        self.nonces.rotate([nonce_secret(self.settings), *self.nonces.secrets[:1]])

    def status(self) -> dict[str, Any]:
        """Return what ``turnd check`` needs to know, as JSON."""
        workers = [
            {
                "worker": member.number,
                "pid": member.pid,
                "serves": member.serves,
                "sessions": member.figures.metrics.allocations,
            }
            for member in self.crew.members
        ]
        return super().status() | {
            "sessions": self.metrics.allocations,
            "workers": workers,
            "replaced": self.crew.replaced,
        }

    # What the metrics show, and what other servers are told. --------------------------------------

    def allocations_by_account(self) -> Mapping[str, int]:
        """Return what users have on this server."""
        return self.crew.figures().accounts

    def elsewhere(self, allocations: Mapping[str, int]) -> None:
        """Take what users have on other servers of the fleet."""
        self._elsewhere = dict(allocations)

    @property
    def metrics(self) -> Metrics:
        """What the workers' machines have counted."""
        return self.crew.figures().metrics

    def usage(self) -> Usage:
        """Return what all allocations have relayed."""
        return self.crew.figures().usage

    @property
    def drops(self) -> Mapping[DropReason, int]:
        """What the workers' machines have discarded, by reason."""
        return self.crew.figures().drops

    def transport_counters(self) -> Mapping[str, int]:
        """Return the counts of the workers' drivers and data planes, in words."""
        return self.crew.figures().transport

    def lookups(self) -> Mapping[str, int] | None:
        """Return what became of questions to the users' database; ``None`` without one."""
        return self.crew.figures().lookups
