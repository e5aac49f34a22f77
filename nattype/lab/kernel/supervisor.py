"""PID 1 of a laboratory: builds it, starts programs on its machines, buries them.

Everything that runs in a laboratory is a child of this process, in its PID namespace.
"""

from __future__ import annotations

import contextlib
import os
import random
import selectors
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, TypeAlias

from nattype.lab.kernel import rules, wire
from nattype.lab.kernel.build import Builder, flush_conntrack
from nattype.lab.kernel.enclosure import Outside
from nattype.lab.kernel.errors import LabError
from nattype.lab.kernel.namespaces import inside, private_sysfs, setns
from nattype.lab.kernel.spec import IPV6_OFF, LabSpec
from nattype.lab.kernel.topology import (
    INTERNET,
    SERVER,
    SERVER_A,
    SERVER_A6,
    SERVER_B,
    SERVER_B6,
    STUN_PORT,
    WIRE,
    SitePlan,
    plan,
)

Stream: TypeAlias = int | IO[bytes] | None
_ROOT = Path(__file__).parents[3]


class Supervisor:
    """A laboratory, seen from inside."""

    def __init__(self, spec: LabSpec) -> None:
        self._spec = spec
        self.plan = plan(spec)
        self._builder = Builder(self.plan)
        self._selector = selectors.DefaultSelector()
        self._exits: dict[int, Callable[[int], None]] = {}
        self._commands: set[int] = set()
        self._server_output = -1
        self._wire_ready = -1
        self._server_status: int | None = None
        self._up = False
        self._ended = False
        self._watch_children()

    def up(self) -> None:
        """Build everything and wait until the STUN server answers.  Raises ``LabError``."""
        self._builder.cables()
        # The server's machine first: its start takes longer than all the rest.
        self._builder.machines(SERVER)
        self._start_server()
        self._builder.machines(*(name for name in self.plan.namespaces if name != SERVER))
        self._start_wire()
        self._builder.await_ready()
        self._await_server()
        self._await_wire()
        self._up = True

    @property
    def environment(self) -> dict[str, str]:
        """What every command finds in its environment."""
        if self._spec.server_command == ():
            return {}
        found = {"NATLAB_STUN": f"{SERVER_A}:{STUN_PORT}"}
        if self._spec.ipv6 != IPV6_OFF:
            found["NATLAB_STUN6"] = f"[{SERVER_A6}]:{STUN_PORT}"
        return found

    def network(self, machine: str) -> int:
        """Return the descriptor of a machine's network namespace.  Raises ``LabError``."""
        try:
            return self._builder.networks[machine]
        except KeyError:
            names = ", ".join(name for name in self.plan.namespaces)
            raise LabError(f"there is no machine {machine!r}: {names}") from None

    def spawn(
        self,
        machine: str,
        args: Sequence[str],
        ended: Callable[[int], None],
        *,
        stdin: Stream = None,
        stdout: Stream = None,
        stderr: Stream = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        signalled: bool = True,
        keep: Sequence[int] = (),
        new_session: bool = False,
    ) -> int:
        """Start a program on a machine and return its PID; ``ended`` gets its status.

        The status is the exit code, or minus the number of the signal.  ``signalled``: it gets the
        signals that are sent to the laboratory; ``keep``: descriptors that it inherits.  Raises
        ``OSError`` when it cannot be started.
        """
        network = self.network(machine)
        environment = {**os.environ, **self.environment} if env is None else dict(env)
        environment.setdefault("NATLAB_MACHINE", machine)

        def enter() -> None:
            setns(network)
            private_sysfs()

        process = subprocess.Popen(
            list(args),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            env=environment,
            cwd=cwd,
            preexec_fn=enter,  # noqa: PLW1509 (this process has no threads)
            pass_fds=keep,
            start_new_session=new_session,
        )
        # The loop below waits for every child; this keeps Popen from doing so, too.
        process.returncode = 0
        self._exits[process.pid] = ended
        if signalled:
            self._commands.add(process.pid)
        return process.pid

    def watch(self, readable: int, then: Callable[[], object]) -> None:
        """Call ``then`` whenever the descriptor is readable."""
        self._selector.register(readable, selectors.EVENT_READ, then)

    def unwatch(self, readable: int) -> None:
        """Stop watching the descriptor."""
        self._selector.unregister(readable)

    def obey(self, outside: Outside) -> None:
        """Pass the signals that the outer process gets on to the commands."""

        def pass_on() -> None:
            numbers = outside.signals()
            if numbers is None:
                self.end()
            for number in numbers or ():
                for pid in tuple(self._commands):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, number)

        self.watch(outside.fileno(), pass_on)

    def run(self) -> None:
        """Serve until :meth:`end` is called."""
        while True:
            for key, _ in self._selector.select():
                key.data()
            if self._ended:
                return

    def end(self) -> None:
        """Leave :meth:`run`."""
        self._ended = True

    def reboot(self, box: str) -> None:
        """Let a box forget every session and mapping.  Raises ``LabError``."""
        script = "".join(self.plan.namespaces[box].forget)
        if script:
            self._builder.nft(box, script)
        with inside(self.network(box)):
            flush_conntrack()

    def lose(self, site: SitePlan, loss: float) -> None:
        """Let a site's access link lose this share of its packets, each way; 1 cuts it."""
        site.loss = loss
        losses = {s.port: s.loss for s in self.plan.sites}
        self._builder.nft(INTERNET, rules.loss_ruleset(losses))

    # The parts of ``up``
    # ---------------------------------------------------------------------------

    def _watch_children(self) -> None:
        wake, waker = socket.socketpair()
        for end in (wake, waker):
            end.setblocking(False)
        signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._wakers = wake, waker

        def woken() -> None:
            with contextlib.suppress(BlockingIOError):
                wake.recv(4096)
            self._bury()

        self.watch(wake.fileno(), woken)

    def _bury(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self._commands.discard(pid)
            ended = self._exits.pop(pid, None)
            if ended is not None:
                ended(os.waitstatus_to_exitcode(status))

    def _start_server(self) -> None:
        command = self._server_args()
        if not command:
            return
        self._server_output = os.memfd_create("stun-server")
        environment = dict(os.environ)
        # The server is natkit's own also where the project is not installed but run from its tree.
        paths = [str(_ROOT), environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)

        def ended(status: int) -> None:
            self._server_status = status
            # While it is waited for, its end is an error, and told as one.
            if self._up and not self._ended:
                sys.stderr.write(f"natlab: {self._server_failure()}\n")

        try:
            self.spawn(
                SERVER,
                command,
                ended,
                stdin=subprocess.DEVNULL,
                stdout=self._server_output,
                stderr=self._server_output,
                env=environment,
                signalled=False,
                # A Ctrl-C goes to the terminal's process group: it is the command's business.
                new_session=True,
            )
        except OSError as error:
            raise LabError(f"the STUN server cannot be started: {command[0]}: {error}") from None

    def _server_args(self) -> list[str]:
        with_ipv6 = self._spec.ipv6 != IPV6_OFF
        if self._spec.server_command is not None:
            values = {
                "{A}": SERVER_A,
                "{B}": SERVER_B,
                "{A6}": SERVER_A6,
                "{B6}": SERVER_B6,
                "{port}": str(STUN_PORT),
            }
            args = []
            for arg in self._spec.server_command:
                for name, value in values.items():
                    arg = arg.replace(name, value)  # noqa: PLW2901
                args.append(arg)
            return args
        args = [sys.executable, "-P", "-m", "nattype.cli", "serve", "--port", str(STUN_PORT)]
        for address in (SERVER_A, SERVER_B, *((SERVER_A6, SERVER_B6) if with_ipv6 else ())):
            args += ["--address", address]
        return args

    def _server_failure(self) -> str:
        status = self._server_status or 0
        how = f"by signal {-status}" if status < 0 else f"with exit code {status}"
        return f"the STUN server ended {how}{self._server_said()}"

    def _server_said(self) -> str:
        text = os.pread(self._server_output, 4000, 0).decode(errors="replace").strip()
        return f"; it said:\n{text}" if text else " and said nothing"

    def _await_server(self) -> None:
        """Ask with Binding requests until one is answered (RFC 8489 section 5)."""
        if self._server_output < 0 or self._spec.server_wait <= 0:
            return
        deadline = time.monotonic() + self._spec.server_wait
        with inside(self.network(SERVER)):
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        request = struct.pack("!HHI12s", 1, 0, 0x2112A442, os.urandom(12))
        with sock:
            while time.monotonic() < deadline:
                self._bury()
                if self._server_status is not None:
                    raise LabError(self._server_failure())
                sock.settimeout(0.005)
                with contextlib.suppress(OSError):
                    sock.sendto(request, (SERVER_A, STUN_PORT))
                    data = sock.recv(2048)
                    if len(data) >= 20 and data[8:20] == request[8:20]:
                        return
        raise LabError(
            f"the STUN server did not answer within {self._spec.server_wait:g} s"
            f"{self._server_said()}"
        )

    def _start_wire(self) -> None:
        if WIRE not in self._builder.networks:
            return
        wires = self._builder.lay_wire()
        seed = random.Random(f"wire {self._spec.seed}").getrandbits(32)
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                # As the STUN server: no business of the terminal's.
                os.setsid()
                setns(self._builder.networks[WIRE])
                wire.run(wires, seed, lambda: os.close(writer))
            finally:
                sys.excepthook(*sys.exc_info())
                os._exit(1)
        os.close(writer)
        self._exits[pid] = self._wire_ended
        self._wire_ready = reader

    def _await_wire(self) -> None:
        if self._wire_ready >= 0:
            # Readable, at its end, once the wire (or its process) has let go of the other end.
            os.read(self._wire_ready, 1)
            os.close(self._wire_ready)

    def _wire_ended(self, status: int) -> None:
        if not self._ended:
            sys.stderr.write(f"natlab: the wire that delays packets ended ({status})\n")
