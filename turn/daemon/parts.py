"""What stands beside the server machine and may be exchanged while it runs.

That is the database of users, the metrics port, the admin socket and the rendezvous.  Each has a
*key*, the part of the settings that it was opened for.  :meth:`Parts.open` opens those whose key is
another in the new settings, beside those that run; :meth:`Parts.commit` lets the new ones take
their place, and :meth:`Parts.abandon` closes them again if something else was wrong.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Coroutine, Hashable, Iterator, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from stun.credentials import mint
from stun.errors import UsageError
from stun.nonce import NonceMaker
from stun.sansio import Address
from turn.daemon.admin import AdminSocket, Command, Signpost, default_path
from turn.daemon.certificate import Certificate
from turn.daemon.companion import RENDEZVOUS, Companion, Surroundings, load_companion
from turn.daemon.metrics import MetricsServer, Source, registry
from turn.daemon.operations import Operated, commands
from turn.daemon.plan import rest_secrets
from turn.daemon.settings import Settings
from turn.server.events import LookUp
from turn.users.base import redacted
from turn.users.cache import CachedUsers

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.core import Metric
    from structlog.typing import FilteringBoundLogger

    from turn.users.base import Loader


class Host(Operated, Source, Protocol):
    """What the parts need of the turnd that they belong to."""

    nonces: NonceMaker

    @property
    def settings(self) -> Settings:
        """What it was told."""
        ...

    @property
    def certificate(self) -> Certificate:
        """What it serves TLS and DTLS with."""
        ...

    @property
    def log(self) -> FilteringBoundLogger:
        """The log, as it is configured now."""
        ...

    def uris(self, host: str | None = None) -> list[str]:
        """Return what clients are configured with, at one local host or at all."""
        ...

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Have something done beside the server; its failure ends turnd."""
        ...

    def unix_time(self) -> int:
        """Return the seconds since 1970, as the server machine has them."""
        ...

    def found(self, lookup: LookUp) -> None:
        """Go on with the requests that waited for the database."""
        ...

    def allocations_by_account(self) -> Mapping[str, int]:
        """Return what users have on this server."""
        ...

    def elsewhere(self, allocations: Mapping[str, int]) -> None:
        """Take what users have on other servers."""
        ...

    def database_state(self, problem: str | None) -> None:
        """Take that the database is out of reach, or (``None``) back."""
        ...

    def warn(self, text: str) -> None:
        """Tell the operator."""
        ...


class Health:
    """Whether a database answers, of several who ask it: out of reach for one is out of reach.

    ``report`` is told the reason when the first of them fails, and ``None`` when all are back.
    """

    def __init__(self, report: Callable[[str | None], None]) -> None:
        self._report = report
        self._failing: set[str] = set()

    def of(self, asker: str) -> Callable[[str | None], None]:
        """Return what one of them reports to."""
        return lambda problem: self._take(asker, problem)

    def _take(self, asker: str, problem: str | None) -> None:
        before = bool(self._failing)
        if problem is None:
            self._failing.discard(asker)
        else:
            self._failing.add(asker)
        if bool(self._failing) != before:
            self._report(problem)


class Part:
    """One that is open."""

    def __init__(self, name: str, key: Hashable) -> None:
        self.name = name
        self.key = key
        self.stack = AsyncExitStack()
        self.loader: Loader | None = None
        self.users: CachedUsers | None = None
        self.url = ""
        self.socket: AdminSocket | None = None
        self.companion: Companion | None = None

    @property
    def words(self) -> str:
        """What it is now, for a person."""
        if self.key is None:
            return "none"
        return str(self.key) if self.users is None else redacted(self.url)


class Parts:
    """The parts of one turnd, which runs by the file ``config``, if by any."""

    fleet = True
    """Whether it speaks with the other servers of its realm itself."""

    def __init__(self, host: Host, config: Path | None = None) -> None:
        self._host = host
        self._signpost = None if config is None else Signpost(config)
        self._open: dict[str, Part] = {}
        self._next: dict[str, Part] = {}
        self._openers = {
            "database": (_database_key, self._database),
            "metrics": (_metrics_key, self._metrics),
            "admin": (_admin_key, self._admin),
            "rendezvous": (_rendezvous_key, self._rendezvous),
        }
        self.made_up = secrets.token_urlsafe(24)
        """The secret that a rendezvous makes credentials with where none is configured."""

    @property
    def users(self) -> CachedUsers | None:
        """The users of the database, if there is one."""
        part = self._open.get("database")
        return None if part is None else part.users

    def take(self, lookup: LookUp) -> None:
        """Ask the database."""
        loader = self._loader
        if loader is not None:
            loader.take(lookup)

    def lookups(self) -> dict[str, int] | None:
        """Return what became of questions to the database; ``None`` without one."""
        loader = self._loader
        if loader is None:
            return None
        amiss = loader.failures + loader.bad_records
        return {
            "answered": loader.lookups - amiss,
            "failed": loader.failures,
            "bad_record": loader.bad_records,
        }

    @property
    def _loader(self) -> Loader | None:
        part = self._open.get("database")
        return None if part is None else part.loader

    async def open(self, settings: Settings) -> None:
        """Open what ``settings`` want and is not open.  Raises ``StunError``, with nothing open."""
        try:
            for name, (key_of, opener) in self._openers.items():
                key = key_of(settings)
                before = self._open.get(name)
                if before is not None and before.key == key:
                    continue
                part = self._next[name] = Part(name, key)
                if key is not None:
                    await opener(part, settings)
        except BaseException:
            await self.abandon()
            raise

    async def abandon(self) -> None:
        """Close what was opened and not taken."""
        parts, self._next = self._next, {}
        for part in parts.values():
            await part.stack.aclose()

    def commit(self) -> list[tuple[Part, Part]]:
        """Go over to what was opened; return what it replaces, to be closed, and by what."""
        replaced = [
            (self._open[name], new) for name, new in self._next.items() if name in self._open
        ]
        for old, new in replaced:
            if old.companion is not None and old.companion is new.companion:
                # It goes on elsewhere: what would end it belongs to the new one.
                old.stack, new.stack = new.stack, old.stack
        taken, self._next = self._next, {}
        self._open |= taken
        for part in taken.values():
            if part.companion is not None:
                part.companion.commit()
        self._show_the_way()
        return replaced

    def _show_the_way(self) -> None:
        if self._signpost is None:
            return
        admin = self._open.get("admin")
        if admin is not None and admin.socket is not None:
            self._signpost.point_to(admin.socket.path)
        else:
            self._signpost.remove()

    async def close(self) -> None:
        """Close everything."""
        if self._signpost is not None:
            self._signpost.remove()
        await self.abandon()
        parts, self._open = self._open, {}
        for part in reversed(parts.values()):
            await part.stack.aclose()

    # Opening. -------------------------------------------------------------------------------------

    async def _database(self, part: Part, settings: Settings) -> None:
        from turn.users import open_backend
        from turn.users.base import Loader, Where, where

        url, host = settings.auth.store, self._host
        assert url is not None
        backend = open_backend(url, settings.realm)
        users = CachedUsers()
        health = Health(host.database_state)
        loader = Loader(
            users,
            backend,
            host.found,
            report=health.of("users"),
            complain=host.warn,
            clock=host.unix_time,
        )
        part.stack.push_async_callback(loader.close)
        # A database that is named wrongly must not be found out by the first client.
        await backend.changed()
        part.users, part.loader, part.url = users, loader, url
        self._beside(part, loader.run())
        if self.fleet and where(url) is Where.REDIS:
            await self._join_fleet(part, settings, health)

    async def _join_fleet(self, part: Part, settings: Settings, health: Health) -> None:
        from turn.users.fleet import FleetState

        url, host = settings.auth.store, self._host
        assert url is not None
        fleet = FleetState(
            url,
            settings.realm,
            host.nonces,
            counts=host.allocations_by_account,
            elsewhere=host.elsewhere,
            report=health.of("fleet"),
        )
        part.stack.push_async_callback(fleet.close)
        await fleet.exchange()
        self._beside(part, fleet.run())

    async def _metrics(self, part: Part, settings: Settings) -> None:
        assert settings.metrics.listen is not None
        figures = registry(self._host)
        figures.register(self)
        server = self._metrics_server(settings.metrics.listen, figures)
        await part.stack.enter_async_context(server)

    def _metrics_server(self, listen: Address, figures: CollectorRegistry) -> MetricsServer:
        return MetricsServer(listen, figures)

    async def _admin(self, part: Part, settings: Settings) -> None:
        path = _admin_key(settings)
        assert path is not None
        socket = AdminSocket(path, self._commands())
        try:
            part.socket = await part.stack.enter_async_context(socket)
        except UsageError as error:
            # Nobody asked for it by name: turnd can do without.
            if settings.admin.socket is not None:
                raise
            self._host.warn(f"{error}; there is no admin socket")

    def _commands(self) -> dict[str, Command]:
        return commands(self._host)

    async def _rendezvous(self, part: Part, settings: Settings) -> None:
        wanted, before = settings.rendezvous, self._open.get("rendezvous")
        assert wanted is not None
        companion = None if before is None else before.companion
        if companion is None:
            companion = load_companion(RENDEZVOUS, self._surroundings())
            part.stack.push_async_callback(companion.close)
        await companion.prepare([str(place) for place in wanted.listen], wanted.proxies)
        part.companion = companion

    def _surroundings(self) -> Surroundings:
        host = self._host
        return Surroundings(
            version=host.version,
            log=lambda: host.log,
            tls=lambda: host.certificate.tls,
            mint=lambda user, ttl, now: mint(
                rest_secrets(host.settings, self.made_up)[0], user, ttl, now
            ),
            uris=host.uris,
            spawn=host.spawn,
        )

    def rendezvous_status(self) -> dict[str, Any] | None:
        """Return how the rendezvous is, as JSON; ``None`` without one."""
        companion = self._companion
        return None if companion is None else companion.status()

    def collect(self) -> Iterator[Metric]:
        """Yield the figures of the rendezvous, if there is one."""
        companion = self._companion
        if companion is not None:
            yield from companion.collect()

    @property
    def _companion(self) -> Companion | None:
        part = self._open.get("rendezvous")
        return None if part is None else part.companion

    def _beside(self, part: Part, work: Coroutine[Any, Any, None]) -> None:
        task = self._host.spawn(work)

        async def end() -> None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        part.stack.push_async_callback(end)


def _database_key(settings: Settings) -> Hashable:
    store = settings.auth.store
    return None if store is None else (store, settings.realm)


def _metrics_key(settings: Settings) -> Hashable:
    return settings.metrics.listen


def _rendezvous_key(settings: Settings) -> Hashable:
    return settings.rendezvous


def _admin_key(settings: Settings) -> Path | None:
    match settings.admin.socket:
        case False:
            return None
        case None:
            return default_path()
        case path:
            return path
