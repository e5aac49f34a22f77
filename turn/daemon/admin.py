"""The admin socket: how ``turnd sessions``, ``turnd disconnect`` and the rest reach a turnd.

A Unix socket that only its owner may open.  A client sends one JSON object, ``{"command": NAME,
...}``, on a line, and gets one back, ``{"ok": true, "result": ...}`` or ``{"ok": false, "error":
TEXT}``; then the connection ends.  Whoever may open the socket may do everything that it offers,
so its file mode is its access control.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import socket
import stat
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final, TypeAlias

from stun.errors import StunError, UsageError
from turn.daemon.visits import Visits

LONGEST: Final = 1 << 16
"""Octets of a request."""
PATIENCE: Final = 10.0
"""Seconds that a client may take to say what it wants, and to read the answer."""
LONGEST_TTL: Final = 10 * 365 * 86400
"""Seconds that a credential may be good for at most."""

Command: TypeAlias = Callable[[Mapping[str, Any]], Awaitable[Any]]
"""Takes the request's object, returns what can be written as JSON; raises ``StunError``."""


class NotRunning(StunError):
    """No turnd answers at the admin socket; the text says what to do."""


class Refused(StunError):
    """turnd answered that it could not do it, and why."""


def default_path(environment: Mapping[str, str] = os.environ) -> Path:
    """Return where the socket is unless told otherwise.

    ``TURND_ADMIN_SOCKET``, else in systemd's ``RuntimeDirectory=``, else in ``/run/turnd`` for
    root, else in the user's own directory.
    """
    if path := environment.get("TURND_ADMIN_SOCKET"):
        return Path(path)
    return _runtime_directory(environment) / "turnd.sock"


def _runtime_directory(environment: Mapping[str, str]) -> Path:
    if directory := environment.get("RUNTIME_DIRECTORY"):
        return Path(directory.partition(":")[0])
    if os.geteuid() == 0:
        return Path("/run/turnd")
    if directory := environment.get("XDG_RUNTIME_DIR"):
        return Path(directory)
    return Path(f"/tmp/turnd-{os.geteuid()}")  # noqa: S108  (its owner is checked)


class AdminSocket:
    """Serves ``commands`` at ``path``.  An asynchronous context manager.

    Raises :class:`stun.errors.UsageError` when the place cannot be had: another turnd answers
    there, the directory belongs to somebody else, or it cannot be written.
    """

    def __init__(self, path: Path, commands: Mapping[str, Command]) -> None:
        self.path = path
        self._commands = dict(commands)
        self._visits = Visits(self._serve)
        self._server: asyncio.Server | None = None
        self._inode: int | None = None

    async def __aenter__(self) -> AdminSocket:
        try:
            _make_directory(self.path.parent)
            if self.path.exists() or self.path.is_symlink():
                _remove_stale(self.path)
            before = os.umask(0o177)
            try:
                self._server = await asyncio.start_unix_server(
                    self._visits, self.path, limit=LONGEST
                )
            finally:
                os.umask(before)
            self._inode = self.path.stat().st_ino
        except OSError as error:
            raise UsageError(
                f"the admin socket {self.path} cannot be had: {error.strerror}; "
                "name another place with --admin-socket"
            ) from None
        return self

    async def __aexit__(self, *_: object) -> None:
        # First of all, so that nobody new comes, and so that who closes this need not wait for
        # those who are being answered to have the place free.
        with contextlib.suppress(OSError):
            # A later turnd may have put its own socket here.
            if self.path.stat().st_ino == self._inode:
                self.path.unlink()
        if self._server is not None:
            await self._visits.close(self._server)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answer = await self._answer(reader)
        async with asyncio.timeout(PATIENCE):
            writer.write(json.dumps(answer).encode() + b"\n")
            await writer.drain()

    async def _answer(self, reader: asyncio.StreamReader) -> dict[str, Any]:
        try:
            async with asyncio.timeout(PATIENCE):
                line = await reader.readline()
            request = json.loads(line)
        except (TimeoutError, ValueError, RecursionError):  # the last of a thousand brackets
            return _error("a request is one JSON object on one line")
        if not isinstance(request, dict):
            return _error("a request is a JSON object")
        name = request.get("command")
        command = self._commands.get(name) if isinstance(name, str) else None
        if command is None:
            known = ", ".join(sorted(self._commands))
            return _error(f"there is no command {name!r}; there are {known}")
        try:
            return {"ok": True, "result": await command(request)}
        except StunError as error:
            return _error(str(error))


class Signpost:
    """A link by which the commands of ``turnd --config FILE`` find the turnd that runs by FILE.

    Without it no command could have turnd read a FILE that names another admin socket than before:
    it would look for turnd at that one already.  The link is kept where the default socket would
    be, one for each configuration; it stands in for a socket where nobody answers.
    """

    def __init__(self, config: Path, environment: Mapping[str, str] = os.environ) -> None:
        # As it is called: the file behind a symbolic link may be another one after an update.
        called = hashlib.blake2b(os.fsencode(config.absolute()), digest_size=8)
        self._link = _runtime_directory(environment) / f"{called.hexdigest()}.config"
        self._target: Path | None = None

    def point_to(self, socket: Path) -> None:
        """Lead to a turnd's socket from now on; where that cannot be had, turnd can do without."""
        self._target = socket.absolute()
        with contextlib.suppress(OSError, UsageError):
            _make_directory(self._link.parent)
            beside = self._link.with_suffix(f".{os.getpid()}")
            beside.unlink(missing_ok=True)
            beside.symlink_to(self._target)
            beside.replace(self._link)

    def remove(self) -> None:
        """Lead nowhere, unless another turnd of the same configuration has its socket here."""
        with contextlib.suppress(OSError):
            if self._link.readlink() == self._target:
                self._link.unlink()

    def follow(self, named: Path) -> Path:
        """Return where to ask: at the socket ``named``, or where the link leads if it is dead."""
        with contextlib.suppress(OSError):
            if not _answers(named):
                owner, user = self._link.lstat().st_uid, os.geteuid()
                found = self._link.readlink()
                # Not by somebody else's link: it could be in a place where anybody may write.
                if (owner in {0, user} or user == 0) and _answers(found):
                    return found
        return named


def _error(text: str) -> dict[str, Any]:
    return {"ok": False, "error": text}


def _make_directory(directory: Path) -> None:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = directory.stat()
    if status.st_uid not in {0, os.geteuid()}:
        raise UsageError(
            f"{directory} belongs to user {status.st_uid}, who could put another socket in the "
            "place of turnd's; name another place with --admin-socket"
        )


def _remove_stale(path: Path) -> None:
    """Remove the socket of a turnd that is no more; raise if one answers there."""
    if not stat.S_ISSOCK(path.lstat().st_mode):
        raise UsageError(f"{path} is there and is no socket; it is left alone")
    if _answers(path):
        raise UsageError(
            f"another turnd runs with the admin socket {path}; "
            "stop it, or give this one another with --admin-socket"
        )
    path.unlink(missing_ok=True)


def _answers(path: Path) -> bool:
    """Whether somebody listens at a socket; raises ``OSError`` if that cannot be told."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
    return True


def ask(path: Path, command: str, *, timeout: float = 60.0, **arguments: Any) -> Any:
    """Have a running turnd do something; return its result.

    ``timeout`` in seconds.  Raises :class:`NotRunning` or :class:`Refused`.
    """
    request = json.dumps({"command": command, **arguments}).encode() + b"\n"
    answer = b""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
            line.settimeout(timeout)
            line.connect(str(path))
            line.sendall(request)
            while piece := line.recv(LONGEST):
                answer += piece
    except (ConnectionRefusedError, FileNotFoundError):
        raise NotRunning(
            f"no turnd answers at {path}; start it, or name its socket with --admin-socket"
        ) from None
    except PermissionError:
        raise NotRunning(
            f"{path} may only be opened by the user that turnd runs as; try with sudo"
        ) from None
    except OSError as error:
        raise NotRunning(f"{path}: {error.strerror or error}") from None
    try:
        found = json.loads(answer)
    except ValueError:
        raise NotRunning(f"what answers at {path} is no turnd") from None
    if not found["ok"]:
        raise Refused(found["error"])
    return found["result"]
