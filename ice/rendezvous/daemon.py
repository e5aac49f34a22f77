"""``rendezvousd``, running: the server with its certificate, log, metrics and signals."""

from __future__ import annotations

import asyncio
import signal
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from prometheus_client import GC_COLLECTOR, PLATFORM_COLLECTOR, PROCESS_COLLECTOR, CollectorRegistry

from ice.rendezvous.access import Minter
from ice.rendezvous.figures import HallCollector, Journal
from ice.rendezvous.places import Place
from ice.rendezvous.server import Book, LocalBook, RendezvousServer
from ice.rendezvous.terms import Terms
from stun.sansio import Address
from stun.streams import Networks
from stun.tls import CertificateProblem, ServerTls
from turn.daemon.limits import raise_descriptor_limit
from turn.daemon.logs import Format, Level, logger
from turn.daemon.metrics import MetricsServer
from turn.daemon.systemd import notify, reloading, watchdog_interval
from turn.daemon.watch import FileWatch

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

WATCH: Final = 3.0
"""Seconds between two looks at the certificate's files."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What ``rendezvousd`` was told."""

    listen: tuple[Place, ...]
    certificate: Path | None = None
    key: Path | None = None
    minter: Minter = field(default_factory=Minter)
    redis: str | None = field(default=None, repr=False)
    proxies: tuple[str, ...] = ()
    metrics: Address | None = None
    terms: Terms = field(default_factory=Terms)
    log_format: Format = "text"
    log_level: Level = "info"


class Rendezvousd:
    """A rendezvous with everything around it.  Making one reads the certificate.

    Raises :class:`stun.tls.CertificateProblem`.
    """

    def __init__(self, settings: Settings, *, version: str = "") -> None:
        self.settings = settings
        self._log: FilteringBoundLogger = logger(settings.log_format, settings.log_level)
        files = [path for path in (settings.certificate, settings.key) if path is not None]
        # Before the files are read: what is written meanwhile is noticed by the first look.
        self._files = FileWatch(files)
        self._problem: str | None = None
        self.tls = None if not files else ServerTls(files[0], settings.key)
        self._stopping = asyncio.Event()
        journal = Journal(self._log)
        self.server = RendezvousServer(
            terms=settings.terms,
            servers=settings.minter,
            book=self._make_book(),
            tls=lambda: self.tls,
            proxies=Networks(settings.proxies),
            software=f"natkit/{version}" if version else "natkit",
            on_event=journal.tell,
        )

    def _make_book(self) -> Book:
        if self.settings.redis is None:
            return LocalBook()
        from ice.rendezvous.redis import RedisBook

        return RedisBook(self.settings.redis, report=self._book_state)

    def _book_state(self, problem: str | None) -> None:
        if problem is None:
            self._log.info("Redis answers again")
        else:
            self._log.error("Redis cannot be used: nobody can be paired anew", problem=problem)

    async def run(self) -> None:
        """Serve until a signal.  Raises ``StunError`` if it cannot."""
        raise_descriptor_limit()
        self.server.serve_at(self.settings.listen)
        async with AsyncExitStack() as stack:
            if self.settings.metrics is not None:
                metrics = MetricsServer(self.settings.metrics, self._registry())
                await stack.enter_async_context(metrics)
            await stack.enter_async_context(self.server)
            self._add_signals()
            self._log.info("serving", at=" ".join(map(str, self.settings.listen)))
            notify("READY=1\nSTATUS=serving")
            await self._until_stopped()
            notify("STOPPING=1")
        self._log.info("stopped")

    def _registry(self) -> CollectorRegistry:
        made = CollectorRegistry(auto_describe=False)
        made.register(HallCollector(self.server.hall))
        for collector in (PROCESS_COLLECTOR, PLATFORM_COLLECTOR, GC_COLLECTOR):
            made.register(collector)
        return made

    async def _until_stopped(self) -> None:
        tasks = [
            asyncio.create_task(work)
            for work in (
                self._stopping.wait(),
                self.server.run(),
                self._watch_certificate(),
                self._feed_watchdog(),
            )
        ]
        try:
            done, _ = await asyncio.wait(tasks[:3], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()  # raises what has gone wrong
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _add_signals(self) -> None:
        loop = asyncio.get_running_loop()
        # Only the main thread may.
        with suppress(NotImplementedError, RuntimeError, ValueError):
            loop.add_signal_handler(signal.SIGTERM, self._on_stop_signal)
            loop.add_signal_handler(signal.SIGINT, self._on_stop_signal)
            loop.add_signal_handler(signal.SIGHUP, self._on_reload_signal)

    def _on_stop_signal(self) -> None:
        # Whoever asks twice does not want to wait: the second one ends the process at once.
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)
        self.stop()

    def _on_reload_signal(self) -> None:
        reloading()
        self._load_certificate()
        notify("READY=1")

    def stop(self) -> None:
        """Tell every client, and stop; :meth:`run` returns."""
        self._stopping.set()

    async def _watch_certificate(self) -> None:
        while True:
            await asyncio.sleep(WATCH)
            if self._files.changed() or self._problem is not None:
                self._load_certificate()

    def _load_certificate(self) -> None:
        if self.tls is None:
            return
        problem: str | None = None
        try:
            if self.tls.reload():
                self._log.info("certificate reloaded", certificate=str(self.tls.describe()))
        except CertificateProblem as error:
            problem = str(error)
        # What cannot be used is tried again at each look, and told of once.
        if problem is not None and problem != self._problem:
            self._log.error("the certificate has changed and cannot be used", problem=problem)
        self._problem = problem

    async def _feed_watchdog(self) -> None:
        interval = watchdog_interval()
        while interval is not None:
            notify("WATCHDOG=1")
            await asyncio.sleep(interval)
