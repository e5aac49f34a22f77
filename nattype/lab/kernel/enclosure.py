"""Namespaces that live and die with one process.

Theory of operation.  The process that was started (the *outer* one) stays where it is.  It moves
its children-to-be into new namespaces and forks; the child is PID 1 there, "and if the init process
of a PID namespace terminates, the kernel terminates all of the processes in the namespace via a
SIGKILL" (pid_namespaces(7)).  The child asks to be killed when the outer process dies.  So
whichever of the two ends, however it ends, nothing is left: the processes are gone, and with the
last one its network namespaces, interfaces and mounts.

The outer process is transparent.  Signals that somebody sends to it go to the command; a signal
that the terminal sent has gone to the command already, which is in the same process group; the
command's exit status, or the signal that ended it, becomes its own.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import select
import signal
import socket
import sys
from collections.abc import Callable
from typing import NoReturn

from nattype.lab.kernel.errors import LabError, NotPermitted, Unsupported
from nattype.lab.kernel.namespaces import die_with_parent, is_privileged, isolate, private_mounts
from nattype.lab.kernel.remedies import why_not_permitted

_SI_KERNEL = 0x80
_FORWARDED = {
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
}
_ERRORS = {error.__name__: error for error in (LabError, NotPermitted, Unsupported)}
ORPHANED = signal.SIGRTMAX
"""Tells the outer process that its parent, or the thread of it that started it, is gone."""


class Outside:
    """The inner process's line to the outer one."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def fileno(self) -> int:
        """Return the descriptor to wait on."""
        return self._sock.fileno()

    def signals(self) -> list[int] | None:
        """Return the signals sent since the last call, ``None`` when the outer process is gone."""
        try:
            data = self._sock.recv(64, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return []
        return list(data) or None

    def failed(self, error: LabError) -> None:
        """Have ``error`` raised in the outer process."""
        self._tell({"error": type(error).__name__, "message": str(error)})

    def ended(self, status: int) -> None:
        """Tell how it all ended: an exit code, or minus the number of a signal."""
        self._tell({"status": status})

    def _tell(self, message: dict[str, object]) -> None:
        with contextlib.suppress(OSError):
            self._sock.send(json.dumps(message).encode())


def enclose(body: Callable[[Outside], None], *, follow_parent: bool = False) -> int:
    """Run ``body`` as PID 1 of new namespaces and return what it told with :meth:`Outside.ended`.

    The calling process must have one thread only.  With ``follow_parent`` everything ends with the
    process that started this one, too.  Raises ``NotPermitted`` when the machine does not allow
    namespaces, and whatever ``LabError`` the body reports.
    """
    parent = os.getppid()
    with_user_namespace = not is_privileged()
    if follow_parent:
        die_with_parent(ORPHANED)
    try:
        isolate(user_namespace=with_user_namespace)
    except OSError as error:
        raise _refused(error) from None
    # Signals that were ignored (nohup, a shell's background job) stay so.
    forwarded = {s for s in _FORWARDED if signal.getsignal(s) != signal.SIG_IGN}
    waited_for = forwarded | {signal.SIGCHLD, ORPHANED}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, waited_for)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        ours.close()
        _inner(body, Outside(theirs), mask)
    theirs.close()
    try:
        while True:
            arrived = signal.sigwaitinfo(waited_for)
            number = signal.Signals(arrived.si_signo)
            if number == signal.SIGCHLD:
                pid, status = os.waitpid(child, os.WNOHANG)
                if pid:
                    return _verdict(ours, status)
            elif number == ORPHANED:
                if os.getppid() != parent:
                    os.kill(child, signal.SIGKILL)
            elif arrived.si_code != _SI_KERNEL:
                with contextlib.suppress(OSError):
                    ours.send(bytes((number,)), socket.MSG_DONTWAIT)
    finally:
        ours.close()
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def exit_like(status: int) -> NoReturn:
    """End this process as the command ended: with its exit code, or by the signal that ended it."""
    if status < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with contextlib.suppress(OSError, ValueError):
            signal.signal(-status, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {-status})
        os.kill(os.getpid(), -status)
        status = 128 - status
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _inner(
    body: Callable[[Outside], None], outside: Outside, mask: set[int | signal.Signals]
) -> NoReturn:
    try:
        die_with_parent(signal.SIGKILL)
        # Did the outer process die before that?  Then its end of the line is closed.
        poll = select.poll()
        poll.register(outside.fileno(), 0)
        if poll.poll(0):
            os._exit(1)
        # PID 1 is deaf to signals it has no handler for: a Ctrl-C is the command's business.
        if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        private_mounts()
        body(outside)
    except LabError as error:
        outside.failed(error)
    except OSError as error:
        if error.errno in (errno.EPERM, errno.EACCES, errno.ENOSPC):
            outside.failed(_refused(error))
        else:
            outside.failed(LabError(f"the laboratory could not be built: {error}"))
    except BaseException:
        sys.excepthook(*sys.exc_info())
    os._exit(1)


def _refused(error: OSError) -> NotPermitted:
    return NotPermitted(why_not_permitted(error))


def _verdict(line: socket.socket, status: int) -> int:
    """Return the status that the inner process told, or raise the error that it told."""
    try:
        message = json.loads(line.recv(65536, socket.MSG_DONTWAIT) or b"{}")
    except (OSError, ValueError):
        message = {}
    if "error" in message:
        raise _ERRORS[message["error"]](message["message"])
    if "status" in message:
        return int(message["status"])
    if os.WIFSIGNALED(status):
        raise LabError(f"the laboratory's supervisor was ended by signal {os.WTERMSIG(status)}")
    raise LabError("the laboratory's supervisor ended before the command did")
