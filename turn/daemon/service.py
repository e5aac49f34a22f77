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
import secrets
import signal
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from stun.credentials import mint
from stun.errors import DropReason, StunError, UsageError
from stun.nonce import NonceMaker
from stun.sansio import SECOND, Address, Cause, Instant
from stun.users import UserStore
from turn.aio import RelayDriver
from turn.daemon.addresses import Lister, changes, local_addresses, servable
from turn.daemon.announce import advise, alternate_advice, ports_advice, relay_advice
from turn.daemon.certificate import Certificate
from turn.daemon.limits import descriptor_warning, raise_descriptor_limit, rarely_collect_garbage
from turn.daemon.logs import Journal, logger
from turn.daemon.operations import Minted
from turn.daemon.parts import Parts
from turn.daemon.plan import Credential, Plan, make_plan, make_tokens, make_users, turn_uris
from turn.daemon.probe import no_free_port, problem_with_listener, problem_with_relay
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


class CannotStart(StunError):
    """turnd cannot serve: what is wrong and what to do, a line for each thing."""


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
        self.settings = load()
        self.made_up = None if self.settings.auth.anybody else make_up_user("user")
        """The user of a configuration that has none."""
        # For ``turnd check``, which must work whoever the users are; only the admin socket tells.
        self._probe = make_up_user("check")
        self._addresses = lister()
        self.plan: Plan = make_plan(self.settings, self._addresses)
        self.certificate = Certificate(self.settings)
        self.serving: dict[tuple[str, Address], Serving] = {}
        """Listeners that are open, by protocol ("udp" or "tcp") and local address."""
        self._failures: list[CannotServe] = []
        # Listeners that could not be had, to be tried again.
        self._missing: set[Address] = set()
        self._log = logger(self.settings.log.format, self.settings.log.level)
        self._journal = Journal(self._log, self.settings.log.level)
        self.nonces = NonceMaker(
            [_nonce_secret(self.settings)], lifetime=self.settings.auth.nonce_lifetime
        )
        self._parts = Parts(self, config)
        self._users = self._make_users()
        self._server = Server(
            self.plan.config,
            self._users,
            self.nonces,
            entropy=os.urandom,
            tokens=make_tokens(self.settings),
        )
        self._driver = RelayDriver(
            self._server,
            server_tls=self.certificate.tls,
            on_event=self._on_event,
            proxies=self.plan.proxies,
        )
        self._unix_epoch = 0
        self._starting = True
        self._stopping = asyncio.Event()
        self._draining = False
        self._crash: BaseException | None = None
        self._reloads = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    # The whole of its life. -----------------------------------------------------------------------

    async def run(self) -> None:
        """Serve until a signal, or until drained.  Raises ``StunError`` if it cannot."""
        limit = raise_descriptor_limit()
        _check_machine(self.plan)
        try:
            await self._parts.open(self.settings)
            self._parts.commit()
            async with self._driver:
                self._users = self._make_users()
                self._server.reconfigure(self.plan.config, self._users, self.now())
                self._set_clock()
                self._server.start(self.now())
                self._driver.flush()
                self._check_started()
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
        if self._crash is not None:
            raise self._crash

    def _make_users(self) -> UserStore:
        more = [self._probe] if self.made_up is None else [self._probe, self.made_up]
        return make_users(self.settings, more, self._parts.users, self._parts.made_up)

    def _check_started(self) -> None:
        """Raise if listeners are missing that must not be."""
        self._starting = False
        grave = [failure for failure in self._failures if not self._may_be_missing(failure)]
        words = advise(grave, self.plan.passing)
        if grave and not (self.settings.partial and self.serving):
            raise CannotStart("\n".join(words))
        for line in words:
            self.warn(line)
        self._missing.update(failure.local for failure in self._failures)
        if not self.serving:
            raise CannotStart("no listener could be opened: there is nothing to serve")

    def _may_be_missing(self, failure: CannotServe) -> bool:
        """Whether it is an address behind a wildcard that has gone, or is not ready yet."""
        return failure.local in self.plan.passing and failure.cause is Cause.ADDRESS_NOT_AVAILABLE

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
                self.serving[event.transport.protocol, event.local] = event
            case CannotServe():
                self.serving.pop((event.transport.protocol, event.local), None)
                if self._starting:
                    self._failures.append(event)
                    return
                self._missing.add(event.local)
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
        before, after = servable(self._addresses), servable(addresses)
        there_again = {
            at.local
            for at in self.plan.config.listeners
            if at.local in self._missing and problem_with_listener(at) is None
        }
        if set(addresses) == set(self._addresses) and not there_again:
            return
        try:
            plan = make_plan(self.settings, addresses)
        except StunError as error:
            # All addresses gone: the cable is out.  What is served stays; it may come back.
            if set(before) != set(after):
                self._log.warning("this machine's addresses have changed", problem=str(error))
            self._addresses = addresses
            return
        words = list(changes(before, after))
        self._addresses = addresses
        self._missing -= there_again
        changed = self._go_over(plan, self._users)
        if words or changed:
            self._log.info("addresses have changed", what="; ".join([*words, *changed]))

    def _go_over(self, plan: Plan, users: UserStore) -> list[str]:
        """Put a plan in force; return what changed, in words."""
        self.plan = plan
        wanted = {(at.transport.protocol, at.local) for at in plan.config.listeners}
        self.serving = {key: value for key, value in self.serving.items() if key in wanted}
        changed = self._server.reconfigure(plan.config, users, self.now())
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
        there = set(self.serving)
        listeners = [
            at for at in self.plan.config.listeners if (at.transport.protocol, at.local) in there
        ]
        listeners = [at for at in listeners if at.local.host == host] or listeners
        return turn_uris(listeners, self.certificate_names())

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
        settings = self._load()
        made_up = None if settings.auth.anybody else self.made_up or make_up_user("user")
        addresses = self._lister()
        plan = make_plan(settings, addresses)
        certificate = Certificate(settings)
        tokens = make_tokens(settings)
        self._check_new(plan)
        await self._parts.open(settings)
        if self._stopping.is_set():
            await self._parts.abandon()
            raise CannotStart("turnd is stopping")
        # Nothing below fails, and nothing of it waits.
        before, certificate_before = self.settings, self.certificate.fingerprint
        self.settings, self.made_up, self._addresses = settings, made_up, addresses
        self.certificate = certificate
        replaced = self._parts.commit()
        changed = []
        if certificate.fingerprint != certificate_before:
            changed.append(f"certificate: {certificate}")
        if settings.tls and before.tls and settings.tls.minimum != before.tls.minimum:
            changed.append(f"TLS {settings.tls.minimum} and later")
        if plan.proxies != self.plan.proxies:
            trusted = {host for networks in plan.proxies.values() for host in networks}
            changed.append(f"proxies: {', '.join(sorted(trusted)) or 'none'}")
        self._driver.serve_with(certificate.tls, plan.proxies)
        self._server.set_tokens(tokens)
        if settings.log != before.log:
            self._log = logger(settings.log.format, settings.log.level)
            self._journal = Journal(self._log, settings.log.level)
            changed.append(f"log: {settings.log.format}, {settings.log.level}")
        if settings.auth.nonce_secret != before.auth.nonce_secret:
            # What was made with the old one is good for as long as it would have been.
            self.nonces.rotate([_nonce_secret(settings), *self.nonces.secrets[:1]])
            changed.append("nonces: another secret")
        if settings.auth.nonce_lifetime != before.auth.nonce_lifetime:
            self.nonces.lifetime = settings.auth.nonce_lifetime
            changed.append(f"nonces live {self.nonces.lifetime} s")
        if settings.auth.oauth != before.auth.oauth:
            changed.append("access tokens: " + ("none" if tokens is None else "other keys"))
        if settings.who != before.who:
            self._users = self._make_users()
        self._missing.clear()
        changed += self._go_over(plan, self._users)
        for old, new in replaced:
            changed.append(f"{new.name}: {new.words}")
            # Beside, for whoever asked for this may be waiting at the very socket that goes.
            self.spawn(old.stack.aclose())
        return changed

    def _check_new(self, plan: Plan) -> None:
        """Raise if what is new in a plan cannot be had."""
        there = {(at.transport.protocol, at.local) for at in self.plan.config.listeners}
        problems = [
            problem
            for at in plan.config.listeners
            if (at.transport.protocol, at.local) not in there
            and (problem := problem_with_listener(at)) is not None
            and not (at.local in plan.passing and problem.cause is Cause.ADDRESS_NOT_AVAILABLE)
        ]
        if problems:
            raise CannotStart("\n".join(advise(problems, plan.passing)))
        if (plan.config.relays, plan.config.ports) != (
            self.plan.config.relays,
            self.plan.config.ports,
        ):
            _check_machine(plan)

    def status(self) -> dict[str, Any]:
        """Return what ``turnd check`` needs to know, as JSON."""
        config = self.plan.config
        tls = self.certificate.tls
        certificate = None if tls is None else tls.describe()
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
            "certificate": None
            if certificate is None
            else {
                "path": str(certificate.path),
                "names": list(certificate.names),
                "not_after": certificate.not_after.timestamp(),
            },
            "draining": self._draining,
            "warnings": list(self.plan.warnings),
            "rendezvous": self._parts.rendezvous_status(),
            "sessions": sum(1 for _ in self._server.sessions()),
            "probe": {"username": self._probe.username, "password": self._probe.password},
        }

    def _places(self) -> dict[str, str]:
        """Say where it serves and relays from, as fields of a log line."""
        places: dict[str, list[str]] = {}
        for one in self.serving.values():
            places.setdefault(one.transport.value.lower(), []).append(str(one.local))
        fields = {transport: " ".join(where) for transport, where in places.items()}
        relays = [f"{relay.local}={relay.advertised}" for relay in self.plan.config.relays]
        if self.settings.rendezvous is not None:
            fields["rendezvous"] = str(self.settings.rendezvous)
        low, high = self.plan.config.ports
        return {**fields, "relays": " ".join(relays), "ports": f"{low}-{high}"}

    def _status_line(self) -> str:
        return f"{len(self.serving)} listeners, realm {self.settings.realm}"

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

    def lookups(self) -> Mapping[str, int] | None:
        """Return what became of questions to the users' database; ``None`` without one."""
        return self._parts.lookups()

    def certificate_expiry(self) -> float | None:
        """Return when the certificate expires (seconds since 1970); ``None`` without one."""
        return self.certificate.expiry


def make_up_user(kind: str) -> Credential:
    """Return a user whose password nobody can guess."""
    return Credential(f"{kind}-{secrets.token_hex(3)}", secrets.token_urlsafe(15))


def _check_machine(plan: Plan) -> None:
    """Raise :class:`CannotStart` if nothing could be relayed, or nothing discovered."""
    wrong = []
    for relay in plan.config.relays:
        problem = problem_with_relay(relay.local)
        if problem is not None:
            wrong.append(relay_advice(relay, problem))
        elif no_free_port(relay.local, plan.config.ports, secrets.randbelow):
            wrong.append(ports_advice(relay.local, plan.config.ports))
    for _, alternate in plan.config.discovery:
        problem = problem_with_relay(alternate.host)
        if problem is not None:
            wrong.append(alternate_advice(alternate.host, problem))
    if wrong:
        raise CannotStart("\n".join(wrong))


def _nonce_secret(settings: Settings) -> bytes:
    secret = settings.auth.nonce_secret
    return secrets.token_bytes(32) if secret is None else secret.text.encode()
