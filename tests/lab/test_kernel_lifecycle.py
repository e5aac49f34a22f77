"""Laboratories come, pass through what passes through them, and leave nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pty
import select
import shlex
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import pytest

from nattype.lab import Lab, LabError

pytestmark = pytest.mark.lab

# ruff: noqa: SIM117 (a laboratory, and within it its sockets: two things)

ROOT = Path(__file__).parents[2]
NATLAB = [sys.executable, "-P", "-m", "nattype.lab.cli"]
MARK = f"natlab-lifecycle-test-{os.getpid()}."
"""In the environment of what a test starts; another's for each process that runs tests."""
NOBODY = 65534

os.environ["PYTHONPATH"] = os.pathsep.join(
    path for path in (str(ROOT), os.environ.get("PYTHONPATH", "")) if path
)


def natlab(*args: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*NATLAB, *args], capture_output=True, text=True, timeout=60, check=False, **options
    )


def run(*args: str, nat: str = "port-restricted-cone", **options: object) -> object:
    return natlab("run", "--nat", nat, "--no-server", *args, **options)


def processes() -> dict[int, str]:
    """Every process that has our mark in its environment, with its command line."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if MARK.encode() in (entry / "environ").read_bytes():
                    line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                    found[int(entry.name)] = line
            except OSError:
                continue
    found.pop(os.getpid(), None)
    return found


def machine_state() -> tuple[list[str], ...]:
    """What a laboratory could leave behind on this machine beside processes."""
    links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True)
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    named = Path("/run/netns")
    return (
        sorted(line.split(":")[1] for line in links.stdout.splitlines()),
        sorted(line.split()[4] for line in mounts),
        sorted(entry.name for entry in named.iterdir()) if named.exists() else [],
    )


@pytest.fixture
def nothing_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = machine_state()
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    with monkeypatch.context() as patch:
        patch.setenv("NATLAB_TEST_MARK", MARK)
        patch.setenv("TMPDIR", str(temporary))
        yield
    deadline = time.monotonic() + 5
    while processes() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert processes() == {}
    assert machine_state() == before
    assert list(temporary.iterdir()) == []


@pytest.fixture(scope="session")
def readable() -> Iterator[Path]:
    """A copy of what natlab needs that everybody may read: a checkout may be root's alone."""
    with tempfile.TemporaryDirectory(prefix="natkit-readable-") as name:
        copy = Path(name)
        copy.chmod(0o755)
        for package in ("stun", "nattype"):
            shutil.copytree(ROOT / package, copy / package)
        shutil.copytree(Path(click.__file__).parent, copy / "click")
        yield copy


@pytest.fixture
def as_nobody(readable: Path) -> tuple[list[str], dict[str, str]]:
    """How an ordinary user runs natlab, with a Python that such a user may read."""
    python = next(
        (
            candidate
            for candidate in (sys.executable, shutil.which("python3", path="/usr/bin:/bin"))
            if candidate and usable_by_nobody(candidate)
        ),
        None,
    )
    if python is None:
        pytest.fail("no Python of 3.11 or newer that an ordinary user may run")
    return (
        [
            "setpriv",
            f"--reuid={NOBODY}",
            f"--regid={NOBODY}",
            "--clear-groups",
            "env",
            python,
            "-P",
        ],
        {
            **os.environ,
            "HOME": "/nonexistent",
            "PYTHONPATH": str(readable),
            "PATH": "/usr/bin:/bin",
        },
    )


def usable_by_nobody(python: str) -> bool:
    # setpriv itself still has root's capabilities when it looks for the program; env has not.
    user = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "env"]
    done = subprocess.run(
        [*user, python, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"],
        check=False,
        capture_output=True,
    )
    return done.returncode == 0


# Signals, exit codes, standard streams ------------------------------------------------------------


@pytest.mark.usefixtures("nothing_left")
def test_exit_code_and_streams_pass_through() -> None:
    done = run("--", "sh", "-c", "cat; echo problem >&2; exit 7", input="given")
    assert (done.returncode, done.stdout, done.stderr) == (7, "given", "problem\n")


@pytest.mark.usefixtures("nothing_left")
def test_a_command_that_dies_of_a_signal_takes_natlab_with_it() -> None:
    assert run("--", "sh", "-c", "kill -USR1 $$").returncode == -signal.SIGUSR1


def test_a_command_that_does_not_exist_is_named() -> None:
    done = run("--", "no-such-command")
    assert done.returncode == 127
    assert done.stderr == "natlab: no-such-command: No such file or directory\n"
    assert run("--", "/etc/passwd").returncode == 126


@contextmanager
def running(*args: str, **options: object) -> Iterator[subprocess.Popen[str]]:
    """A command that says when it is ready and then what signals it gets."""
    script = (
        "trap 'echo TERM; exit 3' TERM; trap 'echo INT; exit 4' INT; trap 'echo USR2' USR2; "
        "echo ready; while :; do sleep 0.01; done"
    )
    command = [*NATLAB, "run", "--nat", "full-cone", "--no-server", *args, "--", "sh", "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize(
    ("number", "word", "code"), [(signal.SIGTERM, "TERM", 3), (signal.SIGINT, "INT", 4)]
)
def test_signals_reach_the_command(number: int, word: str, code: int) -> None:
    with running() as process:
        process.send_signal(signal.SIGUSR2)
        assert process.stdout.readline() == "USR2\n"
        process.send_signal(number)
        assert process.stdout.readline() == f"{word}\n"
        assert process.wait(10) == code


# A Binding request from the standard library, which takes no time to load.
ASK = """
import os, socket
host, port = os.environ["NATLAB_STUN"].split(":")
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    sock.settimeout(5)
    sock.sendto(bytes.fromhex("000100002112a442") + bytes(12), (host, int(port)))
    assert sock.recv(2000)[:2] == b"\\x01\\x01"
"""


@pytest.mark.usefixtures("nothing_left")
def test_a_terminal_belongs_to_the_command_and_ctrl_c_reaches_it_once() -> None:
    ask = f"{shlex.join([sys.executable, '-c', ASK])} && echo answered"
    wait = f"until read line; do :; done; {ask}; echo got $line"
    script = f"trap 'echo INT' INT; test -t 0 && echo ready; {wait}"
    command = [*NATLAB, "run", "--nat", "full-cone", "--delay", "5", "--", "sh", "-c", script]
    child, terminal = pty.fork()
    if child == 0:
        os.execv(command[0], command)

    def until(word: bytes) -> bytes:
        said = b""
        while word not in said:
            assert select.select([terminal], [], [], 20)[0], said
            said += os.read(terminal, 1000)
        return said

    until(b"ready")
    os.write(terminal, b"\x03")
    until(b"INT")
    os.write(terminal, b"line\n")
    said = until(b"got line")
    assert b"INT" not in said
    # The STUN server and the wire live on, and nobody speaks of their end.
    assert b"natlab:" not in said
    assert b"answered" in said
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    os.close(terminal)


@pytest.mark.usefixtures("nothing_left")
def test_the_shell_says_where_it_is() -> None:
    done = natlab(
        "shell",
        "--nat",
        "symmetric",
        "--no-server",
        input="echo $PS1; exit 5\n",
        env={**os.environ, "SHELL": "/bin/sh"},
    )
    assert done.returncode == 5
    assert "(symmetric)" in done.stdout + done.stderr
    done = natlab(
        "shell",
        "--nat",
        "symmetric",
        "--no-server",
        input="echo $PS1\n",
        env={**os.environ, "SHELL": "/bin/bash"},
    )
    assert "(symmetric)" in done.stdout


# Nothing is left ----------------------------------------------------------------------------------


def tree(pid: int) -> list[int]:
    """The process and all below it, from the top."""
    found = [pid]
    for each in found:
        for task in Path(f"/proc/{each}/task").iterdir():
            found += [int(child) for child in (task / "children").read_text().split()]
    return found


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("victim", [0, 1, 2])
def test_killed_without_warning_it_leaves_nothing(victim: int) -> None:
    """natlab itself, the supervisor, or another of its processes: SIGKILL."""
    # With delay there is a wire process, too.
    with running("--delay", "5") as process:
        everyone = tree(process.pid)
        assert len(everyone) >= 4
        os.kill(everyone[victim], signal.SIGKILL)
        if victim == 2:
            process.send_signal(signal.SIGTERM)
        process.wait(10)


@pytest.mark.usefixtures("nothing_left")
def test_grandchildren_that_daemonised_end_with_the_lab() -> None:
    done = run("--", "sh", "-c", "setsid sleep 1000 & exit 0", stdin=subprocess.DEVNULL)
    assert done.returncode == 0


@pytest.mark.usefixtures("nothing_left")
def test_a_lab_ends_with_the_program_that_holds_it() -> None:
    program = (
        "import os, sys, time\n"
        "from nattype.lab import Lab\n"
        "lab = Lab.nat('full-cone', server_command=()).start()\n"
        "lab.host.popen(['sleep', '1000'])\n"
        # A child that holds a copy of every descriptor must not keep the laboratory alive.
        "child = os.fork()\n"
        "if child: print(child, flush=True)\n"
        "time.sleep(1000)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True
    ) as process:
        child = int(process.stdout.readline())
        assert len(processes()) >= 5
        process.kill()
        process.wait()
        deadline = time.monotonic() + 5
        while set(processes()) != {child} and time.monotonic() < deadline:
            time.sleep(0.02)
        assert set(processes()) == {child}
        os.kill(child, signal.SIGKILL)


@pytest.mark.usefixtures("nothing_left")
def test_the_library_cleans_up_and_says_so_when_used_afterwards() -> None:
    with Lab.nat("symmetric", server_command=()) as lab:
        sleeper = lab.host.popen(["sleep", "1000"])
        host = lab.host
        assert sleeper.poll() is None
    assert sleeper.wait(5) == -signal.SIGKILL
    with pytest.raises(LabError, match="not up"):
        host.run(["true"])


@pytest.mark.usefixtures("nothing_left")
def test_the_supervisor_killed_is_noticed() -> None:
    lab = Lab.nat("full-cone", server_command=()).start()
    assert lab._supervisor is not None
    os.kill(tree(lab._supervisor.pid)[1], signal.SIGKILL)
    lab._supervisor.wait(10)
    with pytest.raises(LabError, match="gone"):
        lab.host.run(["true"])
    lab.close()


# As an ordinary user ------------------------------------------------------------------------------


@pytest.mark.skipif(os.geteuid() != 0, reason="these tests are run by an ordinary user already")
@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("kind", ["open", "full-cone-random", "symmetric", "cgnat", "firewall"])
def test_an_ordinary_user_can_do_it_all(
    kind: str, as_nobody: tuple[list[str], dict[str, str]]
) -> None:
    prefix, env = as_nobody
    script = (
        "import os, socket\n"
        "host, port = os.environ['NATLAB_STUN'].split(':')\n"
        "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(10)\n"
        "request = bytes.fromhex('000100002112a442') + bytes(12)\n"
        "s.sendto(request, (host, int(port)))\n"
        "print(s.recv(1000)[:8].hex()[:4], os.getuid())\n"
    )
    command = ["-m", "nattype.lab.cli", "run", "--nat", kind, "--delay", "2", "--udp-timeout", "9"]
    done = subprocess.run(
        [*prefix, *command, "--", prefix[-2], "-c", script],
        env=env, cwd="/", capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "0101 0\n", "")


@pytest.mark.skipif(os.geteuid() != 0, reason="these tests are run by an ordinary user already")
@pytest.mark.usefixtures("nothing_left")
def test_an_ordinary_user_killed_leaves_nothing_either(
    as_nobody: tuple[list[str], dict[str, str]],
) -> None:
    prefix, env = as_nobody
    command = ["-m", "nattype.lab.cli", "run", "--nat", "cgnat", "--", "sh", "-c",
               "echo ready; exec sleep 1000"]  # fmt: skip
    with subprocess.Popen(
        [*prefix, *command], env=env, cwd="/", stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "ready\n"
        process.kill()


# The network --------------------------------------------------------------------------------------


def test_labs_at_the_same_time_do_not_meet() -> None:
    async def one(number: int) -> tuple[bytes, tuple[str, int]]:
        with Lab.pair("full-cone", "symmetric", server_command=()) as lab:
            loop = asyncio.get_running_loop()
            with lab.server.socket() as server, lab.a.socket() as client:
                server.bind((lab.stun[0], 4000))
                for sock in (server, client):
                    sock.setblocking(False)
                await asyncio.sleep(0.05)
                await loop.sock_sendto(client, b"%d" % number, (lab.stun[0], 4000))
                return await asyncio.wait_for(loop.sock_recvfrom(server, 100), 10)

    async def many() -> list[tuple[bytes, tuple[str, int]]]:
        return await asyncio.gather(*(one(number) for number in range(4)))

    assert [data for data, _ in asyncio.run(many())] == [b"0", b"1", b"2", b"3"]


def test_the_delay_is_what_was_asked_for() -> None:
    for delay in (0.003, 0.02):
        with Lab.nat("port-restricted-cone", delay=delay, server_command=()) as lab:
            with lab.server.socket() as server, lab.host.socket() as client:
                server.bind((lab.stun[0], 4000))
                times = []
                for _ in range(60):
                    start = time.perf_counter()
                    client.sendto(b"x", (lab.stun[0], 4000))
                    data, source = server.recvfrom(100)
                    server.sendto(data, source)
                    client.recv(100)
                    times.append(time.perf_counter() - start)
        # Lower bound exact; the upper one leaves room for a busy machine.
        assert min(times) >= 2 * delay
        assert statistics.median(times) < 2 * delay + 0.010


def test_jitter_lets_packets_overtake_one_another_and_loses_none() -> None:
    with Lab.nat("open", jitter=0.02, server_command=()) as lab:
        with lab.server.socket() as server, lab.host.socket() as client:
            server.bind((lab.stun[0], 4000))
            server.settimeout(10)
            for number in range(100):
                client.sendto(b"%d" % number, (lab.stun[0], 4000))
            order = [int(server.recv(100)) for _ in range(100)]
    assert order != sorted(order)
    assert sorted(order) == list(range(100))


def test_tcp_and_large_datagrams_cross_the_wire_whole() -> None:
    blob = os.urandom(1 << 20)
    with Lab.nat("full-cone", delay=0.001, server_command=()) as lab:
        with (
            lab.server.socket(socket.AF_INET, socket.SOCK_STREAM) as listener,
            lab.host.socket(socket.AF_INET, socket.SOCK_STREAM) as client,
        ):
            listener.bind((lab.stun[0], 4000))
            listener.listen()
            client.connect((lab.stun[0], 4000))
            accepted, _ = listener.accept()
            client.setblocking(False)
            got, sent = bytearray(), 0
            with accepted:
                while len(got) < len(blob):
                    if sent < len(blob):
                        with contextlib.suppress(BlockingIOError):
                            sent += client.send(blob[sent:])
                    if select.select([accepted], [], [], 0.001)[0]:
                        got += accepted.recv(1 << 16)
            assert got == blob
        with lab.server.socket() as server, lab.host.socket() as client:
            server.bind((lab.stun[0], 4000))
            server.settimeout(10)
            client.sendto(blob[:20000], (lab.stun[0], 4000))
            assert server.recv(1 << 16) == blob[:20000]


def test_loss_hits_about_as_many_packets_as_was_asked_for() -> None:
    sent = 4000
    with Lab.nat("open", loss=0.1, server_command=()) as lab:
        with lab.server.socket() as server, lab.host.socket() as client:
            server.bind((lab.stun[0], 4000))
            got = 0
            for _ in range(sent):
                client.sendto(b"x", (lab.stun[0], 4000))
                got += bool(select.select([server], [], [], 0.0005)[0]) and len(server.recv(10))
    # Six standard deviations of a binomial distribution: one run in five hundred million fails.
    assert abs(sent - got - 0.1 * sent) < 6 * (sent * 0.09) ** 0.5


def test_a_link_can_be_cut_and_mended() -> None:
    with Lab.nat("port-restricted-cone", server_command=()) as lab:
        with lab.server.socket() as server, lab.host.socket() as client:
            server.bind((lab.stun[0], 4000))
            server.settimeout(0.2)
            for cut, word in ((True, b"lost"), (False, b"passes")):
                (lab.link().down if cut else lab.link().up)()
                client.sendto(word, (lab.stun[0], 4000))
                if cut:
                    with pytest.raises(TimeoutError):
                        server.recv(100)
                else:
                    server.settimeout(10)
                    assert server.recv(100) == b"passes"


def test_the_mtu_is_that_of_the_access_link() -> None:
    with Lab.nat("port-restricted-cone", mtu=1300, server_command=()) as lab:
        link = lab.box().run(["cat", "/sys/class/net/wan/mtu"], capture_output=True, text=True)
        assert link.stdout == "1300\n"
        link = lab.host.run(["cat", "/sys/class/net/eth0/mtu"], capture_output=True, text=True)
        assert link.stdout == "1500\n"


# Programs and servers -----------------------------------------------------------------------------


def test_programs_are_used_like_those_of_subprocess(tmp_path: Path) -> None:
    with Lab.nat("full-cone", server_command=()) as lab:
        done = lab.host.run(["sh", "-c", "cat; pwd; echo e >&2"], given="in\n", text=True,
                            capture_output=True, cwd=tmp_path, check=True)  # fmt: skip
        assert (done.stdout, done.stderr) == (f"in\n{tmp_path}\n", "e\n")
        big = os.urandom(300_000)
        assert lab.host.run(["cat"], given=big, capture_output=True).stdout == big
        with pytest.raises(subprocess.CalledProcessError):
            lab.host.run(["false"], check=True)
        with pytest.raises(subprocess.TimeoutExpired):
            lab.host.run(["sleep", "100"], timeout=0.1)
        with pytest.raises(FileNotFoundError, match="no-such-program"):
            lab.host.popen(["no-such-program"])
        with lab.host.popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as cat:
            cat.stdin.write(b"line\n")
            assert cat.stdout.readline() == b"line\n"
            cat.terminate()
            assert cat.wait(10) == -signal.SIGTERM
        merged = lab.host.run(["sh", "-c", "echo o; echo e >&2"], stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True)  # fmt: skip
        assert merged.stdout == "o\ne\n"
        with pytest.raises(LabError, match="no machine"):
            lab["nowhere"]


def test_a_server_of_ones_own_and_what_is_said_when_it_fails() -> None:
    answer = (
        "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); "
        "s.bind(('{A}', {port}))\n"
        "while True:\n"
        " d, a = s.recvfrom(1000); s.sendto(b'\\x01\\x01' + d[2:], a)\n"
    )
    with Lab.nat("full-cone", server_command=[sys.executable, "-c", answer]) as lab:
        assert lab.environment["NATLAB_STUN"] == "192.31.196.10:3478"
    with pytest.raises(LabError, match=r"exit code 4; it said:\noh dear"):
        Lab.nat("open", server_command=["sh", "-c", "echo oh dear; exit 4"]).start()
    with pytest.raises(LabError, match=r"did not answer within 0.2 s"):
        Lab.nat("open", server_command=["sleep", "100"], server_wait=0.2).start()
    with pytest.raises(LabError, match="cannot be started"):
        Lab.nat("open", server_command=["no-such-server"]).start()
    done = natlab("run", "--nat", "open", "--server-command", "sh -c 'exit 4'", "--", "true")
    assert done.returncode == 125
    assert done.stderr == "natlab: the STUN server ended with exit code 4 and said nothing\n"


def test_natkit_serves_both_families() -> None:
    request = bytes.fromhex("000100002112a442") + bytes(12)
    with Lab.nat("port-restricted-cone") as lab:
        for family, name in ((socket.AF_INET, "NATLAB_STUN"), (socket.AF_INET6, "NATLAB_STUN6")):
            host, _, port = lab.environment[name].rpartition(":")
            with lab.host.socket(family) as sock:
                sock.settimeout(10)
                sock.sendto(request, (host.strip("[]"), int(port)))
                assert sock.recv(2000)[:2] == b"\x01\x01"


@pytest.mark.usefixtures("nothing_left")
def test_a_pair_talks_and_every_line_says_who_said_it() -> None:
    receive = (
        "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(0.1)\n"
        "for _ in range(100):\n"
        " s.sendto(b'hole', ('192.31.196.10', 7000))\n"
        " try: s.recv(9); print('got it', flush=True); break\n"
        " except TimeoutError: pass\n"
    )
    relay = (
        "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); "
        "s.bind(('192.31.196.10', 7000)); d, a = s.recvfrom(9); s.sendto(b'x', a)"
    )
    done = natlab(
        "pair", "--a", "symmetric", "--b", "port-restricted-cone", "--no-server",
        "--server", f'{sys.executable} -c "{relay}"',
        "--run-a", f'{sys.executable} -c "{receive}"', "--run-b", "echo $NATLAB_KIND; exit 9",
    )  # fmt: skip
    assert done.returncode == 9
    assert sorted(done.stdout.splitlines()) == [
        "a      | got it",
        "b      | port-restricted-cone",
    ]
    lingering = "(sleep 1000 & printf unfinished)"
    done = natlab("pair", "--a", "open", "--b", "open", "--no-server",
                  "--run-a", lingering, "--run-b", "true")  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "a      | unfinished\n", "")
    done = natlab("pair", "--a", "open", "--b", "open", "--no-server", "--", "true", ":::", "true")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_fixture_serves_other_projects(tmp_path: Path) -> None:
    (tmp_path / "test_theirs.py").write_text(
        "def test_behind_a_nat(natlab):\n"
        "    lab = natlab('symmetric', server_command=())\n"
        "    assert lab.host.run(['true']).returncode == 0\n"
        "def test_a_pair(natlab):\n"
        "    lab = natlab.pair('full-cone', 'open', server_command=())\n"
        "    assert lab.b.ipv4.startswith('192.52.193.')\n"
        "def test_one_that_ends_before_the_test(natlab):\n"
        "    with natlab('open', server_command=()) as lab:\n"
        "        assert lab.host.run(['true']).returncode == 0\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:natlab", "-p", "nattype.lab.pytest_plugin",
         "-p", "no:cacheprovider", str(tmp_path)],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "3 passed" in done.stdout


def test_the_doctor_finds_this_machine_able() -> None:
    done = natlab("doctor")
    assert done.returncode == 0, done.stdout
    assert "no " not in [line[:3] for line in done.stdout.splitlines()]


def test_kinds_as_json_can_be_run() -> None:
    kinds = json.loads(natlab("kinds", "--json").stdout)
    assert {"open", "symmetric", "cgnat"} <= {kind["name"] for kind in kinds}
    assert all(kind["expected"]["udp"] for kind in kinds)
