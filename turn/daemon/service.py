"""turnd, running: the server machine with its driver, its users, its certificate and its operator.

Theory of operation.  Everything that turnd is told comes as
:class:`turn.daemon.settings.Settings`; with this machine's addresses they make a
:class:`turn.daemon.plan.Plan`.  :class:`Turnd` starts one plan, and :meth:`Turnd.reload` makes
another and goes over to it:

1. the settings are read and validated whole, the certificate is loaded, new listeners are bound
   for a moment, the database, the metrics port and the admin socket are opened: whatever can fail
   does so here, and nothing has changed;
2. then everything is put in force in one step of the event loop, and the machine says what changed.

The same second step is taken when an address of this machine comes or goes.  The certificate is
looked at every few seconds, since those who renew it often forget to tell.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from stun.credentials import mint
from stun.errors import DropReason, StunError, UsageError
from stun.nonce import NonceMaker
from stun.sansio import SECOND, Address, Instant
from stun.users import UserStore
from turn.aio import RelayDriver
from turn.daemon.addresses import Lister, changes, local_addresses, servable
from turn.daemon.beforehand import CannotStart, check_machine, check_new
from turn.daemon.certificate import Certificate
from turn.daemon.configured import Configured, make_up_user, nonce_secret
from turn.daemon.forwarding import Forwarding, open_forwarding
from turn.daemon.limits import descriptor_warning, raise_descriptor_limit, rarely_collect_garbage
from turn.daemon.listeners import Listeners
from turn.daemon.logs import Journal, logger
from turn.daemon.operations import Minted
from turn.daemon.parts import Parts
from turn.daemon.plan import Credential, Plan, make_plan, make_users
from turn.daemon.settings import Settings
from turn.daemon.systemd import notify, reloading, watchdog_interval
from turn.meter import Usage
from turn.server.events import (
    CannotServe,
    Drained,
    LookUp,
    ServerEvent,
    Serving,
    SessionInfo,
)
from turn.server.machine import Server
from turn.server.metrics import Metrics

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

WATCH: Final = 3.0
"""Seconds between two looks at this machine's addresses and at the certificate."""

FAREWELL: Final = 1.0
"""Seconds that connections get, when turnd stops, for what waits to be sent."""


class Turnd:
    """A relay server with everything around it.

    ``load`` reads the configuration, at the start and at each reload; it raises
    :class:`turn.daemon.config.ConfigError`, and so does making one of these.  ``config`` is the
    file that it reads, by which commands find this turnd.  ``on_ready`` is called once, when it
    serves, and says whether it has told the operator where; if not, the log does.  ``version`` is
    for the metrics, ``watch`` in seconds.
    """

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
        self.version = version
        self._load = load
        self._on_ready = on_ready
        self._lister = lister
        self._watch = watch
        self._configured = Configured.read(load, lister)
        self.forwarding = Forwarding("sockets", None, "it has not started")
        """The data plane that it relays with."""
        # For ``turnd check``, which must work whoever the users are; only the admin socket tells.
        self._probe = make_up_user("check")
        self._listeners = Listeners()
        self._open_log()
        self.nonces = NonceMaker(
            [nonce_secret(self.settings)], lifetime=self.settings.auth.nonce_lifetime
        )
        self._parts = Parts(self, config)
        self._users = self._make_users()
        self._server = self._make_server()
        self._driver = RelayDriver(
            self._server,
            server_tls=self.certificate.tls,
            on_event=self._on_event,
            proxies=self.plan.proxies,
        )
        self._unix_epoch = 0
        self._stopping = asyncio.Event()
        self._draining = False
        self._crash: BaseException | None = None
        self._reloads = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    def _make_server(self) -> Server:
        return Server(
            self.plan.config,
            self._users,
            self.nonces,
            entropy=os.urandom,
            tokens=self._configured.tokens,
        )

    # What is in force. ----------------------------------------------------------------------------

    @property
    def settings(self) -> Settings:
        """What it was told."""
        return self._configured.settings

    @property
    def plan(self) -> Plan:
        """What that means on this machine."""
        return self._configured.plan

    @property
    def certificate(self) -> Certificate:
        """What it serves TLS and DTLS with."""
        return self._configured.certificate

    @property
    def made_up(self) -> Credential | None:
        """The user of a configuration that has none."""
        return self._configured.made_up

    @property
    def serving(self) -> Mapping[tuple[str, Address], Serving]:
        """Listeners that are open, by protocol ("udp" or "tcp") and local address."""
        return self._listeners.serving

    def _open_log(self) -> None:
        form, level = self.settings.log.format, self.settings.log.level
        self._log = logger(form, level)
        self._journal = Journal(self._log, level)

    # The whole of its life. -----------------------------------------------------------------------

    async def run(self) -> None:
        """Serve until a signal, or until drained.  Raises ``StunError`` if it cannot."""
        limit = raise_descriptor_limit()
        check_machine(self.plan)
        try:
            self.forwarding = open_forwarding(self.settings.dataplane, self.plan.config)
            await self._parts.open(self.settings)
            self._parts.commit()
            async with self._driver:
                self._relay()
                self._users = self._make_users()
                self._server.reconfigure(self.plan.config, self._users, self.now())
                self._set_clock()
                self._server.start(self.now())
                self._driver.flush()
                for line in self._listeners.check_started(self.plan, partial=self.settings.partial):
                    self.warn(line)
                rarely_collect_garbage()
                self._add_signals()
                warning = descriptor_warning(self.plan.config, limit)
                if warning is not None:
                    self.warn(warning)
                if not self._on_ready(self):
                    for text in self.plan.warnings:
                        self.warn(text)
                    self._log.info("serving", **self._places())
                notify(f"READY=1\nSTATUS={self._status_line()}")
                self.spawn(self._driver.run())
                self.spawn(self._look_after())
                self.spawn(self._feed_watchdog())
                await self._stopping.wait()
                if self._crash is None:
                    await self._end()
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self._parts.close()
            self.forwarding.close()
        if self._crash is not None:
            raise self._crash

    def _make_users(self) -> UserStore:
        more = [self._probe] if self.made_up is None else [self._probe, self.made_up]
        return make_users(self.settings, more, self._parts.users, self._parts.made_up)

    def _add_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number, react in (
            (signal.SIGTERM, self._on_stop_signal),
            (signal.SIGINT, self._on_stop_signal),
            (signal.SIGHUP, self._on_reload_signal),
            (signal.SIGUSR1, self._on_drain_signal),
        ):
            # Only the main thread may; a turnd in another one is stopped with stop().
            with suppress(NotImplementedError, RuntimeError, ValueError):
                loop.add_signal_handler(number, react)

    def _on_stop_signal(self) -> None:
        # Whoever asks twice does not want to wait: the second one ends the process at once.
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)
        self.stop()

    def _on_reload_signal(self) -> None:
        self.spawn(self._reload_and_log())

    def _on_drain_signal(self) -> None:
        self.drain()

    async def _reload_and_log(self) -> None:
        with suppress(StunError):  # which reload() has logged
            await self.reload()

    def stop(self) -> None:
        """End every allocation and stop; :meth:`run` returns."""
        self._stopping.set()

    async def _end(self) -> None:
        notify("STOPPING=1")
        self._server.stop(self.now())
        self._driver.flush()
        await self._driver.see_off(FAREWELL)
        self._log.info("stopped")

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Have something done beside the server; its failure ends turnd."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._crash = self._crash or task.exception()
            self.stop()

    async def _feed_watchdog(self) -> None:
        interval = watchdog_interval()
        while interval is not None:
            notify("WATCHDOG=1")
            await asyncio.sleep(interval)

    # Events of the machine. -----------------------------------------------------------------------

    def _on_event(self, event: ServerEvent) -> None:
        match event:
            case LookUp():
                self._parts.take(event)
            case Serving():
                self._listeners.opened(event)
            case CannotServe():
                if self._listeners.lost(event):
                    return
            case Drained():
                self.stop()
            case _:
                pass
        self._journal.tell(event)

    def found(self, lookup: LookUp) -> None:
        """Go on with the requests that waited for the database."""
        self._server.found(lookup, self.now())
        self._driver.flush()

    def allocations_by_account(self) -> Mapping[str, int]:
        """Return what users have on this server."""
        return self._server.allocations_by_account()

    def elsewhere(self, allocations: Mapping[str, int]) -> None:
        """Take what users have on other servers of the fleet."""
        self._server.set_elsewhere(allocations)

    def database_state(self, problem: str | None) -> None:
        """Take that the database is out of reach, or (``None``) back."""
        if problem is None:
            self._log.info("the users' database answers again")
        else:
            self._log.error("the users' database cannot be reached", problem=problem)

    @property
    def log(self) -> FilteringBoundLogger:
        """The log, as it is configured now."""
        return self._log

    def warn(self, text: str) -> None:
        """Tell the operator."""
        self._log.warning(text)

    # Looking after it. ----------------------------------------------------------------------------

    async def _look_after(self) -> None:
        while True:
            await asyncio.sleep(self._watch)
            # Clocks are corrected while servers run.
            self._set_clock()
            async with self._reloads:
                self._look_at_addresses()
                self.certificate.look(self._log)

    def _set_clock(self) -> None:
        unix_time, now = int(time.time()), self.now()
        self._unix_epoch = unix_time - now // SECOND
        self._server.set_clock(unix_time, now)

    def unix_time(self) -> int:
        """Return the seconds since 1970, as the server machine has them."""
        return self._unix_epoch + self.now() // SECOND

    def _look_at_addresses(self) -> None:
        try:
            addresses = self._lister()
        except StunError:
            return  # nothing is known to have changed
        known = self._configured.addresses
        before, after = servable(known), servable(addresses)
        there_again = self._listeners.there_again(self.plan)
        if set(addresses) == set(known) and not there_again:
            return
        try:
            plan = make_plan(self.settings, addresses)
        except StunError as error:
            # All addresses gone: the cable is out.  What is served stays; it may come back.
            if set(before) != set(after):
                self._log.warning("this machine's addresses have changed", problem=str(error))
            self._configured = replace(self._configured, addresses=addresses)
            return
        words = list(changes(before, after))
        self._configured = replace(self._configured, addresses=addresses, plan=plan)
        self._listeners.forgive(there_again)
        changed = self._put_in_force()
        if words or changed:
            self._log.info("addresses have changed", what="; ".join([*words, *changed]))

    def _put_in_force(self) -> list[str]:
        """Have the server machine go over to the plan; return what changed, in words."""
        self._listeners.go_over(self.plan)
        changed = self._server.reconfigure(self.plan.config, self._users, self.now())
        self._driver.flush()
        return changed

    # What its operator may do: turn.daemon.operations.Operated. -----------------------------------

    def now(self) -> Instant:
        """Return the time by the server machine's clock."""
        return self._driver.now()

    def sessions(self) -> Iterator[SessionInfo]:
        """Yield every allocation."""
        return self._server.sessions()

    def disconnect(self, *, session: str | None, username: str | None) -> int:
        """End the allocations of a session or of a user; return how many there were."""
        ended = self._server.disconnect(self.now(), session=session, username=username)
        self._driver.flush()
        return ended

    def credentials(self, name: str, ttl: int) -> Minted:
        """Mint a time-limited credential with the first secret."""
        if not self.settings.auth.secrets:
            raise UsageError(
                "this turnd has no secret to make credentials with; give it one with "
                "--secret-file PATH, or secrets in [auth]"
            )
        made = mint(self.settings.auth.secrets[0].text, name, ttl, int(time.time()))
        return Minted(made.username, made.password, ttl, tuple(self.uris()))

    def uris(self, host: str | None = None) -> list[str]:
        """Return what clients are configured with, those that reach furthest first.

        ``host``: those alone that are at this local address, if there are any.
        """
        return self._listeners.uris(self.plan, self.certificate_names(), host)

    def certificate_names(self) -> tuple[str, ...]:
        """Return the names that the certificate is for."""
        return self.certificate.names

    def drain(self) -> int:
        """Take no new allocations, and stop after the last one; return how many are left."""
        left = sum(1 for _ in self._server.sessions())
        if not self._draining:
            self._draining = True
            self._log.info("draining: no new allocations", left=left)
            notify(f"STATUS=draining, {left} allocations left")
            self._server.drain(self.now())
            self._driver.flush()
        return left

    async def reload(self) -> list[str]:
        """Read the configuration and the certificate again; return what changed, in words.

        Raises ``StunError`` for what is wrong with it; nothing has changed then.
        """
        async with self._reloads:
            reloading()
            try:
                changed = await self._reload()
            except StunError as error:
                self._log.error("nothing reloaded", problem=str(error))
                raise
            finally:
                notify(f"READY=1\nSTATUS={self._status_line()}")
        self._log.info("reloaded", changed="; ".join(changed) or "nothing")
        return changed

    async def _reload(self) -> list[str]:
        wanted = Configured.read(self._load, self._lister, self.made_up)
        self._check_new(wanted.plan)
        forwarding = self.forwarding.follow(wanted.settings.dataplane, wanted.plan.config)
        try:
            await self._parts.open(wanted.settings)
            if self._stopping.is_set():
                await self._parts.abandon()
                raise CannotStart("turnd is stopping")
        except BaseException:
            if forwarding.kernel is not self.forwarding.kernel:
                forwarding.close()
            raise
        # Nothing below fails, and nothing of it waits.
        before, self._configured = self._configured, wanted
        settings, old = wanted.settings, before.settings
        replaced = self._parts.commit()
        changed = list(wanted.changes(before))
        self._driver.serve_with(wanted.certificate.tls, wanted.plan.proxies)
        self._server.set_tokens(wanted.tokens)
        if settings.log != old.log:
            self._open_log()
        if settings.auth.nonce_secret != old.auth.nonce_secret:
            # What was made with the old one is good for as long as it would have been.
            self.nonces.rotate([nonce_secret(settings), *self.nonces.secrets[:1]])
        self.nonces.lifetime = settings.auth.nonce_lifetime
        if settings.who != old.who:
            self._users = self._make_users()
        changed += self._go_over(forwarding)
        self._listeners.forgive()
        changed += self._put_in_force()
        for gone, new in replaced:
            changed.append(f"{new.name}: {new.words}")
            # Beside, for whoever asked for this may be waiting at the very socket that goes.
            self.spawn(gone.stack.aclose())
        return changed

    def _check_new(self, plan: Plan) -> None:
        check_new(plan, self.plan)

    def _go_over(self, forwarding: Forwarding) -> list[str]:
        """Relay with another data plane from now on; say so."""
        before, self.forwarding = self.forwarding, forwarding
        if (forwarding.kernel, forwarding.why) == (before.kernel, before.why):
            return []
        self._relay()
        return [f"relays {forwarding}"]

    def _relay(self) -> None:
        self._driver.use_kernel(self.forwarding.kernel)
        if self.forwarding.detail:
            self._log.debug("no relaying in the kernel", detail=self.forwarding.detail)

    def status(self) -> dict[str, Any]:
        """Return what ``turnd check`` needs to know, as JSON."""
        config = self.plan.config
        return {
            "version": self.version,
            "realm": config.realm,
            "serving": [
                {"transport": one.transport.value, "address": str(one.local)}
                for one in self.serving.values()
            ],
            "uris": self.uris(),
            "relays": [[relay.local, relay.advertised] for relay in config.relays],
            "ports": list(config.ports),
            "certificate": self.certificate.status(),
            "dataplane": self.forwarding.status(),
            "draining": self._draining,
            "warnings": list(self.plan.warnings),
            "rendezvous": self._parts.rendezvous_status(),
            "sessions": sum(1 for _ in self._server.sessions()),
            "probe": {"username": self._probe.username, "password": self._probe.password},
        }

    def _places(self) -> dict[str, str]:
        """Say where it serves and relays from, and how, as fields of a log line."""
        fields = self._listeners.places()
        relays = [f"{relay.local}={relay.advertised}" for relay in self.plan.config.relays]
        if self.settings.rendezvous is not None:
            fields["rendezvous"] = str(self.settings.rendezvous)
        low, high = self.plan.config.ports
        fields |= {"relays": " ".join(relays), "ports": f"{low}-{high}"}
        return fields | {"dataplane": str(self.forwarding)}

    def _status_line(self) -> str:
        serving = f"{len(self.serving)} listeners, realm {self.settings.realm}"
        return f"{serving}, relays {self.forwarding}"

    # What the metrics show: turn.daemon.metrics.Source. -------------------------------------------

    @property
    def metrics(self) -> Metrics:
        """The server machine's counts."""
        return self._server.metrics

    def usage(self) -> Usage:
        """Return what all allocations have relayed, those that live and those that ended."""
        return self._server.usage()

    @property
    def drops(self) -> Mapping[DropReason, int]:
        """What the server machine discarded, by reason."""
        return self._server.drops

    def transport_counters(self) -> Mapping[str, int]:
        """Return the driver's and the data plane's counts, in words."""
        return self._driver.counters

    def kernel_routes(self) -> int | None:
        """Return how many routes the kernel has; ``None`` where sockets relay alone."""
        return None if self.forwarding.kernel is None else len(self.forwarding.kernel)

    def lookups(self) -> Mapping[str, int] | None:
        """Return what became of questions to the users' database; ``None`` without one."""
        return self._parts.lookups()

    def certificate_expiry(self) -> float | None:
        """Return when the certificate expires (seconds since 1970); ``None`` without one."""
        return self.certificate.expiry
