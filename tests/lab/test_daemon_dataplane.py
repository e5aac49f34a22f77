"""Which data plane a turnd relays with: what it may, what it is told, and what it says of that."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.lab.turn_caller import USER
from tests.lab.turnd_calls import Dial
from tests.lab.turnd_world import METRICS_PORT, PORT, ROOT, Turnd, World, require

NEEDED = "+bpf,+net_admin"
MISSING = "the capabilities CAP_BPF and CAP_NET_ADMIN are missing: "
BOTH = "in the kernel, at client, peer"


@pytest.fixture(scope="module", autouse=True)
def _kernel() -> None:
    require("kernel")


class Operator:
    """Who writes the configuration, starts turnd with some capabilities, reads what it says."""

    def __init__(self, world: World, place: Path) -> None:
        self._world = world
        self._place = place
        self._config = place / "turnd.toml"

    def write(self, dataplane: str) -> None:
        """Have the configuration say this."""
        own = ", ".join(f'"{host}"' for host in self._world.address(self._world.peer))
        self._config.write_text(
            f'realm = "example.org"\ndataplane = "{dataplane}"\n'
            f'listen = [{{ url = "udp://{self._world.server.ipv4}:{PORT}" }}]\n'
            f"relay.addresses = [{own}]\n"
            'peers.allow = ["198.18.0.0/15", "2001:db8::/32"]\n'
            f'auth.users = {{ {USER.username} = "sesame" }}\n'
            f'admin.socket = "turnd.sock"\nmetrics.listen = "127.0.0.1:{METRICS_PORT}"\n'
            'log.format = "json"\n'
        )

    def line(self, *arguments: str, capabilities: str | None = None) -> list[str]:
        """Return the command; with ``capabilities`` it has these and no others."""
        # Root is given by execve(2) what its bounding set holds, and that is all it can ever have.
        few = () if capabilities is None else (f"--bounding-set=-all{capabilities}",)
        limit = ["setpriv", *few, "--inh-caps=-all", "--no-new-privs"] if few else []
        turnd = [sys.executable, "-P", "-m", "turn.daemon.cli", "--config", str(self._config)]
        return [*limit, *turnd, *arguments]

    @contextmanager
    def turnd(self, *, capabilities: str | None = None) -> Iterator[Turnd]:
        """Run it; it must end as it is told."""
        with (self._place / "log").open("wb") as log:
            process = self._world.server.popen(
                self.line(capabilities=capabilities),
                stdout=log,
                stderr=log,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
            )
        turnd = Turnd(self._world.server, process, self._place, METRICS_PORT)
        try:
            turnd.wait_for('"message": "serving"')
            yield turnd
        finally:
            process.terminate()
            status = process.wait(20)
        assert status == 0, turnd.said()
        assert "Traceback" not in turnd.said(), turnd.said()

    def run(self, *arguments: str, capabilities: str | None = None) -> tuple[int, str]:
        """Run a command until it ends; return its status and what it said."""
        done = self._world.server.popen(
            self.line(*arguments, capabilities=capabilities),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            text=True,
        )
        said, _ = done.communicate(timeout=30)
        return done.returncode, said


@pytest.fixture
def operator(world: World, tmp_path: Path) -> Operator:
    return Operator(world, tmp_path)


@pytest.mark.parametrize("dataplane", ["auto", "kernel"])
def test_two_capabilities_are_enough(operator: Operator, dial: Dial, dataplane: str) -> None:
    operator.write(dataplane)
    with operator.turnd(capabilities="," + NEEDED) as turnd:
        status = Path(f"/proc/{turnd.process.pid}/status").read_text()
        assert "CapEff:\t0000008000001000\n" in status
        assert turnd.ask("status")["dataplane"] == {
            "wanted": dataplane,
            "kernel": True,
            "why": "",
            "interfaces": ["client", "peer"],
            "refused": [],
            "left": {},
        }
        call = dial()
        with turnd.watched() as moved:
            call.both_ways(b"by the kernel")
        assert moved.was("kernel", 1, 1)
        assert operator.run("check", "--quick")[1].splitlines()[1] == (
            f"ok       data plane: it relays {BOTH}"
        )
        metrics = turnd.metrics()
        assert (metrics["turnd_kernel_data_plane"], metrics["turnd_kernel_routes"]) == (1, 1)
        turnd.ask("disconnect", user=USER.username)
        assert turnd.metrics()["turnd_kernel_routes"] == 0
    assert f'"dataplane": "{BOTH}"' in turnd.said()


@pytest.mark.parametrize(
    ("capabilities", "missing"),
    [
        ("", MISSING),
        (",+bpf", "the capability CAP_NET_ADMIN is missing: "),
        (",+net_admin", "the capability CAP_BPF is missing: "),
    ],
)
def test_without_them_auto_takes_sockets_and_says_why(
    operator: Operator, dial: Dial, capabilities: str, missing: str
) -> None:
    operator.write("auto")
    with operator.turnd(capabilities=capabilities) as turnd:
        assert f'"dataplane": "with sockets: {missing}' in turnd.said()
        call = dial()
        with turnd.watched() as moved:
            call.both_ways(b"by sockets")
        assert moved.was("sockets", 1, 1)
        status, said = operator.run("check", "--quick")
        assert status == 0, "it serves all the same"
        assert f"warning  data plane: it relays with sockets: {missing}" in said
        assert 'turnd reload; if it is meant: dataplane = "sockets"' in said
        assert turnd.metrics()["turnd_kernel_data_plane"] == 0
        # What is there now is no more than before, and nothing is said twice.
        assert turnd.ask("reload") == {"changed": []}


def test_without_them_kernel_does_not_start(operator: Operator) -> None:
    operator.write("kernel")
    status, said = operator.run(capabilities="")
    assert status == 1
    assert said.startswith(f"turnd: cannot relay in the kernel: {MISSING}")
    assert said.endswith("; or have turnd choose: --dataplane auto\n")
    assert said.count("\n") == 1, "in one line"


@pytest.mark.parametrize(
    ("dataplane", "capabilities", "told"),
    [
        ("auto", None, "relaying in the kernel"),
        ("auto", "", f"relaying with sockets: {MISSING}"),
        ("kernel", "", f"would not start: it cannot relay in the kernel: {MISSING}"),
        ("sockets", None, "relaying with sockets: as configured"),
    ],
)
def test_it_is_told_beforehand(
    operator: Operator, dataplane: str, capabilities: str | None, told: str
) -> None:
    operator.write(dataplane)
    status, said = operator.run("--check-config", capabilities=capabilities)
    assert status == 0
    assert f"# {told}" in said
    assert f'dataplane = "{dataplane}"' in said


def test_a_reload_goes_from_one_to_the_other(operator: Operator, dial: Dial) -> None:
    operator.write("kernel")
    with operator.turnd() as turnd:
        call = dial()
        for dataplane, plane, told in (
            ("sockets", "sockets", ["relays with sockets: as configured"]),
            ("auto", "kernel", [f"relays {BOTH}"]),
            ("kernel", "kernel", []),  # which it does already
        ):
            operator.write(dataplane)
            assert turnd.ask("reload") == {"changed": told}
            with turnd.watched() as moved:
                for number in range(3):
                    call.both_ways(b"%s %d" % (dataplane.encode(), number))
            assert moved.was(plane, 3, 3), dataplane
        session = turnd.session()
        assert (session["packets_from_client"], session["packets_to_client"]) == (10, 10)


def test_a_reload_that_fails_leaves_the_data_plane_alone(operator: Operator, dial: Dial) -> None:
    operator.write("sockets")
    with operator.turnd(capabilities="") as turnd:
        call = dial()
        operator.write("kernel")
        status, said = operator.run("reload")
        assert status == 1
        assert f"cannot relay in the kernel: {MISSING}" in said
        call.both_ways(b"as before")
        assert turnd.ask("status")["dataplane"]["wanted"] == "sockets"
