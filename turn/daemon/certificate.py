"""The certificate that a turnd serves: loaded for the settings, and looked at again as it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stun.tls import CertificateProblem, ServerTls
from turn.daemon.settings import Settings
from turn.daemon.watch import FileWatch

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger


class Certificate:
    """What ``[tls]`` names, or nothing.  Raises :class:`stun.tls.CertificateProblem`."""

    def __init__(self, settings: Settings) -> None:
        tls = settings.tls
        paths = [] if tls is None else [path for path in (tls.certificate, tls.key) if path]
        # Before the files are read: what is written meanwhile is noticed by the first look.
        self._files = FileWatch(paths)
        self._problem: str | None = None
        self.tls: ServerTls | None = None
        """What listeners serve with."""
        if tls is not None:
            password = None if tls.password is None else tls.password.text
            self.tls = ServerTls(tls.certificate, tls.key, password=password, minimum=tls.minimum)

    def __str__(self) -> str:
        return "none" if self.tls is None else str(self.tls.describe())

    @property
    def fingerprint(self) -> str:
        """What tells it from any other."""
        return "none" if self.tls is None else self.tls.describe().fingerprint

    @property
    def names(self) -> tuple[str, ...]:
        """The names that it is for."""
        return () if self.tls is None else self.tls.describe().names

    @property
    def expiry(self) -> float | None:
        """When it expires (seconds since 1970); ``None`` without one."""
        return None if self.tls is None else self.tls.describe().not_after.timestamp()

    def status(self) -> dict[str, Any] | None:
        """Return what ``turnd check`` needs to know, as JSON; ``None`` without one."""
        if self.tls is None:
            return None
        shown = self.tls.describe()
        return {
            "path": str(shown.path),
            "names": list(shown.names),
            "not_after": shown.not_after.timestamp(),
        }

    def look(self, log: FilteringBoundLogger) -> None:
        """Take it anew if its files have changed, and say so."""
        if self.tls is None or not (self._files.changed() or self._problem is not None):
            return
        problem: str | None = None
        try:
            if self.tls.reload():
                log.info("certificate reloaded", certificate=str(self))
        except CertificateProblem as error:
            problem = str(error)
        # What cannot be used is tried again at each look, and told of once.
        if problem is not None and problem != self._problem:
            log.error("the certificate has changed and cannot be used", problem=problem)
        self._problem = problem
