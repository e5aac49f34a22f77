"""The laboratory as a Python object.

The program that uses it stays outside of all namespaces, whoever runs it.  It starts a supervisor
(:mod:`nattype.lab.kernel.control`) and asks it for programs on machines, or for *sockets* of
machines: a socket belongs to the network it was made in wherever it is used, so a test can hold
both ends of a connection through a NAT in one process and one event loop.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from nattype.lab.kernel import control
from nattype.lab.kernel import spec as specs
from nattype.lab.kernel.errors import LabError
from nattype.lab.kernel.process import Process, Redirection
from nattype.lab.kernel.spec import IPV6_NAT, AnyKind, LabSpec, Site
from nattype.lab.kernel.topology import (
    SERVER,
    SERVER_A,
    SERVER_A6,
    SERVER_B,
    SERVER_B6,
    STUN_PORT,
    plan,
)

_ROOT = Path(__file__).parents[3]


class Machine:
    """One machine of a laboratory: a host, a box, the internet's router or the server."""

    def __init__(self, lab: Lab, name: str, addresses: Mapping[str, str], kind: str = "") -> None:
        self._lab = lab
        self.name = name
        self.kind = kind
        """The kind of NAT that it is behind; empty when it is no host."""
        self.ipv4 = addresses.get("ipv4", "")
        """Its own address; of a box, the external one."""
        self.ipv6 = addresses.get("ipv6", "")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name} {self.ipv4}>"

    def popen(
        self,
        args: Sequence[str],
        *,
        stdin: Redirection = None,
        stdout: Redirection = None,
        stderr: Redirection = None,
        text: bool = False,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        new_session: bool = False,
    ) -> Process:
        """Start a program here.  Arguments and errors are those of :class:`subprocess.Popen`.

        The lab's own variables (``NATLAB_STUN`` and so on) are added to the environment.
        """
        environment = {
            **(os.environ if env is None else env),
            **self._lab.environment,
            "NATLAB_MACHINE": self.name,
        }
        if self.kind:
            environment["NATLAB_KIND"] = self.kind
        request = {
            "do": "spawn",
            "machine": self.name,
            "args": [os.fspath(arg) for arg in args],
            "env": environment,
            "cwd": os.fspath(cwd) if cwd is not None else str(Path.cwd()),
            "new_session": new_session,
        }

        def start(fds: tuple[int, int, int, int]) -> int:
            reply, _ = self._lab.ask(request, fds)
            return int(reply["pid"])

        def send_signal(pid: int, number: int) -> None:
            with contextlib.suppress(LabError):
                self._lab.ask({"do": "signal", "pid": pid, "number": number})

        return Process(
            request["args"],  # type: ignore[arg-type]
            start,
            send_signal,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            text=text,
        )

    def run(
        self,
        args: Sequence[str],
        *,
        given: str | bytes | None = None,
        capture_output: bool = False,
        text: bool = False,
        check: bool = False,
        timeout: float | None = None,
        **redirections: Any,
    ) -> subprocess.CompletedProcess[Any]:
        """Run a program here and wait for it, as :func:`subprocess.run` does.

        ``given`` is its standard input.  Raises ``subprocess.CalledProcessError`` with ``check``,
        ``subprocess.TimeoutExpired`` once ``timeout`` seconds have passed (the program is killed).
        """
        if given is not None:
            redirections["stdin"] = subprocess.PIPE
        if capture_output:
            redirections["stdout"] = redirections["stderr"] = subprocess.PIPE
        process = self.popen(args, text=text, **redirections)
        try:
            output, errors = process.communicate(given, timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
        done = subprocess.CompletedProcess(process.args, process.wait(), output, errors)
        if check:
            done.check_returncode()
        return done

    def socket(
        self,
        family: int = socket.AF_INET,
        kind: int = socket.SOCK_DGRAM,
        protocol: int = 0,
    ) -> socket.socket:
        """Return a new socket of this machine, to be used in this process."""
        _, fds = self._lab.ask(
            {
                "do": "socket",
                "machine": self.name,
                "family": int(family),
                "kind": int(kind),
                "protocol": protocol,
            }
        )
        return socket.socket(fileno=fds[0])


class Box(Machine):
    """A NAT or firewall."""

    def flush(self) -> None:
        """Forget every session and mapping, as a box does that is switched off and on."""
        self._lab.ask({"do": "reboot", "box": self.name})

    def ruleset(self) -> str:
        """Return its rules and all that they remember, in the words of ``nft list ruleset``."""
        done = self.run(["nft", "list", "ruleset"], capture_output=True, text=True, check=True)
        return str(done.stdout)


class AccessLink:
    """The cable between a site and the internet, which may fail."""

    def __init__(self, lab: Lab, site: dict[str, Any]) -> None:
        self._lab, self._site = lab, site

    @property
    def loss(self) -> float:
        """The share of packets lost, each way, 0 to 1; may be set at any time."""
        return float(self._site["loss"])

    @loss.setter
    def loss(self, loss: float) -> None:
        self._lose(loss)
        self._site["loss"] = loss

    def down(self) -> None:
        """Cut it: packets vanish, and nobody is told."""
        self._lose(1.0)

    def up(self) -> None:
        """Mend it."""
        self._lose(self.loss)

    def _lose(self, loss: float) -> None:
        if not 0 <= loss <= 1:
            raise ValueError(f"loss is a probability, 0 to 1, not {loss}")
        self._lab.ask({"do": "lose", "site": self._site["name"], "loss": loss})


class Lab:
    """Hosts behind NATs, a public server between them.

    >>> with Lab.nat("symmetric", loss=0.1) as lab:
    ...     lab.host.run(["natcheck"])

    A laboratory is a context manager; it is built on entry, unless it is up already, and gone on
    exit.  Several may exist at once.  Building raises ``NotPermitted`` where the machine does not
    allow it and ``Unsupported`` for a behaviour that the kernel cannot express.
    """

    def __init__(
        self,
        *sites: Site,
        ipv6: str = IPV6_NAT,
        server_command: Sequence[str] | None = None,
        server_wait: float = 10.0,
        seed: int | None = None,
    ) -> None:
        """Describe a laboratory of any number of sites; :class:`Site` says what each is.

        ``ipv6``: ``nat``, ``routed`` or ``off``.  ``server_command`` runs instead of natkit's STUN
        server (an empty one: none runs), ``{A}``, ``{B}``, ``{A6}``, ``{B6}`` and ``{port}`` are
        filled in; ``server_wait`` is how many seconds it may take to answer.  ``seed`` decides
        which ports the NATs give out.
        """
        self.spec = LabSpec(
            sites=sites,
            ipv6=ipv6,
            server_command=None if server_command is None else tuple(server_command),
            server_wait=server_wait,
            seed=int.from_bytes(os.urandom(4), "big") if seed is None else seed,
        )
        plan(self.spec)
        self.environment: dict[str, str] = {}
        """What every program of the laboratory finds in its environment."""
        self._machines: dict[str, Machine] = {}
        self._sites: dict[str, dict[str, Any]] = {}
        self._line: socket.socket | None = None
        self._supervisor: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    @classmethod
    def nat(
        cls,
        kind: AnyKind,
        *,
        hosts: Sequence[str] = ("host",),
        loss: float = 0.0,
        delay: float = 0.0,
        jitter: float = 0.0,
        mtu: int = 1500,
        hairpin: bool | None = None,
        tcp_unsolicited: str | None = None,
        udp_timeout: float | None = None,
        udp_stream_timeout: float | None = None,
        **options: Any,
    ) -> Lab:
        """Return a laboratory with one site.

        ``kind`` is a name, a point of the grid, a ``Kind``, or the model (or models, host side
        first) of the boxes.  ``loss`` is a probability, ``delay``, ``jitter`` and the timeouts are
        seconds.  Further ``options`` are those of the class.
        """
        site = specs.site(
            kind,
            hosts=hosts,
            loss=loss,
            delay=delay,
            jitter=jitter,
            mtu=mtu,
            hairpin=hairpin,
            tcp_unsolicited=tcp_unsolicited,
            udp_timeout=udp_timeout,
            udp_stream_timeout=udp_stream_timeout,
        )
        return cls(site, **options)

    @classmethod
    def pair(
        cls,
        a: AnyKind,
        b: AnyKind,
        *,
        ipv6: str = IPV6_NAT,
        server_command: Sequence[str] | None = None,
        server_wait: float = 10.0,
        seed: int | None = None,
        **options: Any,
    ) -> Lab:
        """Return a laboratory with two hosts, ``a`` and ``b``, each behind boxes of its own.

        Further ``options`` are those of :meth:`nat` and hold for both sides.
        """
        sites = (
            specs.site(kind, name=name, hosts=(name,), **options)
            for name, kind in (("a", a), ("b", b))
        )
        return cls(
            *sites, ipv6=ipv6, server_command=server_command, server_wait=server_wait, seed=seed
        )

    def start(self) -> Lab:
        """Build it.  Raises ``LabError``."""
        if self._line is not None:
            raise LabError("this laboratory is already up")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        control.widen(ours)
        environment = dict(os.environ)
        paths = (str(_ROOT), environment.get("PYTHONPATH", ""))
        environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
        fd = theirs.fileno()
        with theirs:
            self._supervisor = subprocess.Popen(
                [sys.executable, "-P", "-m", "nattype.lab.kernel.control", str(fd)],
                stdin=subprocess.DEVNULL,
                pass_fds=(fd,),
                env=environment,
                start_new_session=True,
            )
        self._line = ours
        try:
            control.send(ours, specs.to_json(self.spec))
            message, _ = control.receive(ours)
            hello = control.unwrap(message)
        except BaseException:
            self.close()
            raise
        self.environment = hello["environment"]
        self._sites = {site["name"]: site for site in hello["sites"]}
        kinds = {host: site["kind"] for site in hello["sites"] for host in site["hosts"]}
        boxes = {box for site in hello["sites"] for box in site["boxes"]}
        for name in hello["machines"]:
            make = Box if name in boxes else Machine
            addresses = hello["addresses"].get(name, {})
            self._machines[name] = make(self, name, addresses, kinds.get(name, ""))
        return self

    def close(self) -> None:
        """End it, with every program in it.  May be called twice."""
        line, self._line = self._line, None
        supervisor, self._supervisor = self._supervisor, None
        if line is not None:
            line.close()
        if supervisor is not None:
            try:
                supervisor.wait(5)
            except subprocess.TimeoutExpired:
                supervisor.kill()
                supervisor.wait()

    def __enter__(self) -> Lab:
        return self if self._line is not None else self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __getitem__(self, name: str) -> Machine:
        try:
            return self._machines[name]
        except KeyError:
            known = ", ".join(self._machines) or "none before it is started"
            raise LabError(f"there is no machine {name!r}; there are: {known}") from None

    @property
    def machines(self) -> Mapping[str, Machine]:
        """All machines by name."""
        return dict(self._machines)

    @property
    def host(self) -> Machine:
        """The first host of the first site."""
        return self[self.spec.sites[0].hosts[0]]

    @property
    def a(self) -> Machine:
        """Host ``a`` of a pair."""
        return self["a"]

    @property
    def b(self) -> Machine:
        """Host ``b`` of a pair."""
        return self["b"]

    @property
    def server(self) -> Machine:
        """The public server's machine."""
        return self[SERVER]

    @property
    def stun(self) -> tuple[str, int]:
        """The STUN server's primary address and port."""
        return SERVER_A, STUN_PORT

    def server_addresses(self, *, ipv6: bool = False) -> tuple[str, str]:
        """Return the two addresses of the server's machine."""
        return (SERVER_A6, SERVER_B6) if ipv6 else (SERVER_A, SERVER_B)

    def box(self, index: int = 0, site: str | None = None) -> Box:
        """Return a box of a site (the first site, when none is named); 0 is next to the host."""
        found = self._site(site)["boxes"]
        try:
            box = self[found[index]]
        except IndexError:
            raise LabError(f"there are {len(found)} boxes, so there is no box {index}") from None
        assert isinstance(box, Box)
        return box

    def link(self, site: str | None = None) -> AccessLink:
        """Return the access link of a site (the first site, when none is named)."""
        return AccessLink(self, self._site(site))

    def _site(self, name: str | None) -> dict[str, Any]:
        if not self._sites:
            raise LabError("this laboratory is not up")
        if name is None:
            return next(iter(self._sites.values()))
        try:
            return self._sites[name]
        except KeyError:
            raise LabError(f"there is no site {name!r}: {', '.join(self._sites)}") from None

    def ask(
        self, request: dict[str, Any], fds: tuple[int, ...] = ()
    ) -> tuple[dict[str, Any], list[int]]:
        """Send the supervisor a request and return its reply.  For the classes of this module."""
        with self._lock:
            if self._line is None:
                raise LabError("this laboratory is not up")
            try:
                control.send(self._line, request, fds)
            except ConnectionError:
                raise LabError("the laboratory is gone") from None
            message, received = control.receive(self._line)
        return control.unwrap(message), received
