"""The line between a :class:`nattype.lab.Lab` and its supervisor, and the supervisor's end of it.

One message a request, one a reply, JSON in a sequenced-packet socket; descriptors travel beside
them (SCM_RIGHTS).  When the line breaks, the program that owns the laboratory is gone, and so is
the laboratory.  Run as ``python -m nattype.lab.kernel.control FD`` by
:mod:`nattype.lab.kernel.lab`.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import struct
import sys
from typing import Any

from nattype.lab.kernel import spec as specs
from nattype.lab.kernel.enclosure import Outside, enclose
from nattype.lab.kernel.errors import LabError, NotPermitted, Unsupported
from nattype.lab.kernel.namespaces import inside
from nattype.lab.kernel.supervisor import Supervisor

MESSAGE = 1 << 20
"""Octets that a message may have."""
STATUS = struct.Struct("=i")
"""How a program's exit status is written into its status pipe."""

_ERRORS = {error.__name__: error for error in (LabError, NotPermitted, Unsupported)}


def send(sock: socket.socket, message: dict[str, Any], fds: tuple[int, ...] = ()) -> None:
    """Send a message with descriptors.  Raises ``OSError``."""
    socket.send_fds(sock, [json.dumps(message).encode()], list(fds))


def receive(sock: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    """Return the next message and its descriptors, ``None`` when the other end is gone."""
    try:
        data, fds, _, _ = socket.recv_fds(sock, MESSAGE, 8)
    except ConnectionError:
        return None, []
    return (json.loads(data) if data else None), fds


def widen(sock: socket.socket) -> None:
    """Let a whole environment fit into one message."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MESSAGE)


def failure(error: Exception) -> dict[str, Any]:
    """Return the message that :func:`unwrap` raises again."""
    if isinstance(error, LabError):
        return {"error": type(error).__name__, "message": str(error)}
    if isinstance(error, OSError) and error.errno is not None:
        return {"errno": error.errno, "message": error.strerror, "file": error.filename}
    return {"error": "LabError", "message": str(error)}


def unwrap(message: dict[str, Any] | None) -> dict[str, Any]:
    """Return the message, or raise the error that it carries."""
    if message is None:
        raise LabError("the laboratory is gone")
    if "errno" in message:
        raise OSError(message["errno"], message["message"], message["file"])
    if "error" in message:
        raise _ERRORS[message["error"]](message["message"])
    return message


class _Servant:
    """Does on the supervisor's side what the owner of the laboratory asks for."""

    def __init__(self, sock: socket.socket, supervisor: Supervisor) -> None:
        self._sock = sock
        self._supervisor = supervisor
        self._running: set[int] = set()

    def readable(self) -> None:
        message, fds = receive(self._sock)
        if message is None:
            self._supervisor.end()
            return
        reply: dict[str, Any]
        answered: tuple[int, ...] = ()
        try:
            reply, answered = getattr(self, f"_do_{message.pop('do')}")(fds, **message)
        except (LabError, OSError, ValueError, TypeError) as error:
            reply = failure(error)
        finally:
            for fd in fds:
                os.close(fd)
        with contextlib.suppress(ConnectionError):
            send(self._sock, reply, answered)
        for fd in answered:
            os.close(fd)

    def _do_spawn(
        self,
        fds: list[int],
        *,
        machine: str,
        args: list[str],
        env: dict[str, str],
        cwd: str | None,
        new_session: bool,
    ) -> tuple[dict[str, Any], tuple[int, ...]]:
        stdin, stdout, stderr, status = fds
        report = os.dup(status)
        pid = 0

        def ended(code: int) -> None:
            self._running.discard(pid)
            with contextlib.suppress(OSError):
                os.write(report, STATUS.pack(code))
            os.close(report)

        try:
            pid = self._supervisor.spawn(
                machine,
                args,
                ended,
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                env=env,
                cwd=cwd,
                new_session=new_session,
            )
        except BaseException:
            os.close(report)
            raise
        self._running.add(pid)
        return {"pid": pid}, ()

    def _do_signal(
        self, _: list[int], pid: int, number: int
    ) -> tuple[dict[str, Any], tuple[int, ...]]:
        # A number may be another process's by now; these have not been waited for yet.
        if pid in self._running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        return {}, ()

    def _do_socket(
        self, _: list[int], machine: str, family: int, kind: int, protocol: int
    ) -> tuple[dict[str, Any], tuple[int, ...]]:
        with inside(self._supervisor.network(machine)):
            return {}, (socket.socket(family, kind, protocol).detach(),)

    def _do_reboot(self, _: list[int], box: str) -> tuple[dict[str, Any], tuple[int, ...]]:
        self._supervisor.reboot(box)
        return {}, ()

    def _do_lose(
        self, _: list[int], site: str, loss: float
    ) -> tuple[dict[str, Any], tuple[int, ...]]:
        for candidate in self._supervisor.plan.sites:
            if candidate.name == site:
                self._supervisor.lose(candidate, loss)
                return {}, ()
        raise LabError(f"there is no site {site!r}")


def main() -> None:
    """Serve the laboratory that the first message describes."""
    sock = socket.socket(fileno=int(sys.argv[1]))
    sock.set_inheritable(False)
    widen(sock)
    message, _ = receive(sock)
    if message is None:
        return
    spec = specs.from_json(message)

    def body(outside: Outside) -> None:
        supervisor = Supervisor(spec)
        supervisor.up()
        supervisor.obey(outside)
        servant = _Servant(sock, supervisor)
        supervisor.watch(sock.fileno(), servant.readable)
        plan = supervisor.plan
        send(
            sock,
            {
                "environment": supervisor.environment,
                "machines": list(plan.namespaces),
                "addresses": plan.addresses,
                "sites": [
                    {
                        "name": s.name,
                        "kind": s.kind,
                        "hosts": s.hosts,
                        "boxes": s.boxes,
                        "loss": s.loss,
                    }
                    for s in plan.sites
                ],
            },
        )
        supervisor.run()
        outside.ended(0)

    # The owner's Ctrl-C is the owner's business; it ends the laboratory by closing the line.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        enclose(body, follow_parent=True)
    except LabError as error:
        with contextlib.suppress(OSError):
            send(sock, failure(error))
        sys.exit(1)


if __name__ == "__main__":
    main()
