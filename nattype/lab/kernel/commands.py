"""What ``natlab`` does: one command behind a NAT, or one on each of two sides."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from nattype.lab.kernel.enclosure import Outside, enclose
from nattype.lab.kernel.errors import LabError
from nattype.lab.kernel.spec import LabSpec
from nattype.lab.kernel.supervisor import Supervisor
from nattype.lab.kernel.topology import SERVER

NOT_FOUND, NOT_EXECUTABLE = 127, 126
"""The exit codes of env(1) and of shells."""


def run(
    spec: LabSpec,
    command: Sequence[str],
    env: dict[str, str] | None = None,
    *,
    keep: Sequence[int] = (),
) -> int:
    """Run ``command`` on the (only) host; it has the terminal.  Return its status.

    The status is an exit code, or minus the number of the signal that ended the command.  Raises
    ``LabError``.
    """

    def body(outside: Outside) -> None:
        supervisor = Supervisor(spec)
        supervisor.up()
        supervisor.obey(outside)

        def ended(status: int) -> None:
            outside.ended(status)
            supervisor.end()

        site = spec.sites[0]
        environment = {
            **_surroundings(),
            **supervisor.environment,
            "NATLAB_KIND": site.kind.name,
            **(env or {}),
        }
        try:
            supervisor.spawn(site.hosts[0], command, ended, env=environment, keep=keep)
        except OSError as error:
            sys.stderr.write(f"natlab: {command[0]}: {error.strerror}\n")
            outside.ended(_start_failure(error))
            return
        supervisor.run()

    return enclose(body)


def pair(
    spec: LabSpec,
    commands: Sequence[tuple[str, Sequence[str]]],
    server: Sequence[str] | None = None,
) -> int:
    """Run a command on each named host, all at once, output prefixed with the host's name.

    ``server`` runs beside them on the public server's machine and is ended with them.  Return 0
    when all commands succeeded, else the first bad status.  Raises ``LabError``.
    """

    def body(outside: Outside) -> None:
        supervisor = Supervisor(spec)
        supervisor.up()
        supervisor.obey(outside)
        kinds = {host: site.kind.name for site in spec.sites for host in site.hosts}
        printer = _Printer(supervisor, [name for name, _ in commands] + [SERVER])
        statuses: list[int] = []

        def start(machine: str, command: Sequence[str], counts: bool) -> None:
            environment = {**_surroundings(), **supervisor.environment}
            if machine in kinds:
                environment["NATLAB_KIND"] = kinds[machine]
            for host in kinds:
                for family, address in supervisor.plan.addresses[host].items():
                    environment[f"NATLAB_{host.upper()}_{family.upper()}"] = address

            def ended(status: int) -> None:
                if not counts:
                    return
                statuses.append(status)
                if len(statuses) == len(commands):
                    printer.drain()
                    outside.ended(next((s for s in statuses if s), 0))
                    supervisor.end()

            out, err = printer.pipe(machine, sys.stdout), printer.pipe(machine, sys.stderr)
            try:
                supervisor.spawn(
                    machine,
                    command,
                    ended,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=err,
                    env=environment,
                )
            except OSError as error:
                raise LabError(f"{machine}: {command[0]}: {error.strerror}") from None
            finally:
                os.close(out)
                os.close(err)

        if server:
            start(SERVER, server, counts=False)
        for machine, command in commands:
            start(machine, command, counts=True)
        supervisor.run()

    return enclose(body)


def _surroundings() -> dict[str, str]:
    """Return this process's environment, in which natcheck is found wherever natlab was.

    The programs of a virtual environment that is not activated are on nobody's PATH.
    """
    path = os.environ.get("PATH", os.defpath).split(os.pathsep)
    beside = str(Path(sys.executable).parent)
    return {**os.environ, "PATH": os.pathsep.join(dict.fromkeys([*path, beside]))}


def _start_failure(error: OSError) -> int:
    return NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE


class _Printer:
    """Passes on what several programs print, line by line, each line with who said it."""

    def __init__(self, supervisor: Supervisor, names: Sequence[str]) -> None:
        self._supervisor = supervisor
        self._width = max(len(name) for name in names)
        self._open: dict[int, tuple[str, int, bytearray]] = {}

    def pipe(self, name: str, to: object) -> int:
        """Return a descriptor to write to."""
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        out = 1 if to is sys.stdout else 2
        self._open[reader] = f"{name:<{self._width}} | ", out, bytearray()
        self._supervisor.watch(reader, lambda: self._read(reader))
        return writer

    def drain(self) -> None:
        """Print what is there and then no more."""
        for reader in tuple(self._open):
            while reader in self._open and self._read(reader):
                pass
            # Something that the command left behind may still hold the other end.
            if reader in self._open and self._open[reader][2]:
                self._print(reader, [self._open[reader][2]])

    def _read(self, reader: int) -> bool:
        if reader not in self._open:
            # Drained and closed since the selector saw it.
            return False
        _, _, pending = self._open[reader]
        try:
            data = os.read(reader, 65536)
        except BlockingIOError:
            return False
        pending += data
        lines = pending.split(b"\n")
        pending[:] = lines.pop()
        if not data:
            if pending:
                lines.append(bytearray(pending))
            self._print(reader, lines)
            self._supervisor.unwatch(reader)
            os.close(reader)
            del self._open[reader]
        else:
            self._print(reader, lines)
        return True

    def _print(self, reader: int, lines: Sequence[bytes | bytearray]) -> None:
        prefix, out, _ = self._open[reader]
        text = b"".join(prefix.encode() + line + b"\n" for line in lines)
        with contextlib.suppress(OSError):
            while text:
                text = text[os.write(out, text) :]


def shell(spec: LabSpec) -> int:
    """Run the user's shell on the host, its prompt naming the kind.  Return its status."""
    kind = spec.sites[0].kind.name
    program = os.environ.get("SHELL") or "/bin/sh"
    env = {"PS1": f"({kind}) \\w \\$ "}
    if Path(program).name != "bash":
        return run(spec, [program, "-i"], env)
    # bash sets its own prompt from its files; this comes after them and leaves nothing behind.
    rc = os.memfd_create("natlab-bashrc", 0)
    text = f'[ -r ~/.bashrc ] && . ~/.bashrc\nPS1="({kind}) $PS1"\nPROMPT_COMMAND=\n'
    os.write(rc, text.encode())
    return run(spec, [program, "--rcfile", f"/proc/self/fd/{rc}", "-i"], env, keep=(rc,))
