"""natkit's agent with agents that others wrote: aioice, libnice and pion, in both roles.

They meet over plain cables, through two NATs of the kernel, and by nothing but a relay; over UDP
and, with those that can, over TCP connections that either side opens.  The first tests have the
others meet one another: whatever fails there is not natkit's doing.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from nattype.lab import Lab
from tools.certificate import write_self_signed
from tools.icelab import NATKIT, TURN_PORT, coturn, turnd
from tools.icepeers import Connected, Relay, Setup, meeting

pytestmark = pytest.mark.interop

PEERS = Path(__file__).parent / "peers"
OTHERS = ("aioice", "libnice", "pion")
TCP_ABLE = ("libnice", "pion")
"""aioice has no TCP candidates."""
ROLES = {"controlling": True, "controlled": False}
TLS_PORT = 5349

Commands = Callable[[str], list[str]]


@pytest.fixture(scope="module")
def pion(
    tmp_path_factory: pytest.TempPathFactory,
    require_peer: Callable[..., str],
    missing: Callable[[str, str], Any],
) -> str:
    """The program of peers/ice_pion, built from Debian's packages of Go sources."""
    go = require_peer("go", "golang-go")
    sources = Path("/usr/share/gocode")
    if not (sources / "src/github.com/pion/ice/v2").is_dir():
        missing("pion", "sudo apt-get install golang-github-pion-ice.v2-dev")
    place = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        place = place.parent  # which all workers have in common
    program = place / "ice_pion"
    with (place / "ice_pion.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not program.exists():
            source = place / "ice_pion.source"
            shutil.copytree(PEERS / "ice_pion", source)
            environment = os.environ | {
                "GO111MODULE": "off",
                "GOPATH": str(sources),
                "GOCACHE": str(place / "ice_pion.cache"),
            }
            subprocess.run(
                [go, "build", "-o", str(program), "."], cwd=source, env=environment, check=True
            )
    return str(program)


@pytest.fixture(scope="module")
def libnice(missing: Callable[[str, str], Any]) -> str:
    """The Python that has libnice's bindings: the system's, not the one that runs the tests."""
    python = "/usr/bin/python3"
    probe = "import gi; gi.require_version('Nice', '0.1'); gi.require_version('GstApp', '1.0')"
    if subprocess.run([python, "-c", probe], capture_output=True, check=False).returncode:
        missing("libnice", "sudo apt-get install gstreamer1.0-nice gir1.2-nice-0.1")
    return python


@pytest.fixture(scope="module")
def command(
    request: pytest.FixtureRequest, require_module: Callable[..., Any]
) -> Callable[[str], list[str]]:
    """``command("pion")`` is how that peer is run."""

    def find(name: str) -> list[str]:
        match name:
            case "natkit":
                return NATKIT
            case "aioice":
                require_module("aioice")
                return [sys.executable, str(PEERS / "ice_aioice.py")]
            case "libnice":
                return [request.getfixturevalue("libnice"), str(PEERS / "ice_libnice.py")]
            case "pion":
                return [request.getfixturevalue("pion")]
        raise ValueError(name)

    return find


# Where they meet. ---------------------------------------------------------------------------------


class Scene(NamedTuple):
    """Two machines, and what a peer on one of them may use."""

    lab: Lab
    setup: Setup
    command: Commands
    folder: Path

    def relay(self, url: str) -> Relay:
        """Return the scene's relay, at another of its ports."""
        assert self.setup.relay is not None
        return self.setup.relay._replace(url=url)

    def meet(
        self,
        first: str,
        second: str,
        *,
        controlling: bool = True,
        hold_back: dict[str, str] | None = None,
        only: str = "",
        settled: Callable[[Connected], bool] = lambda _: True,
        restarts: int = 0,
        ours: dict[str, Any] | None = None,
        theirs: dict[str, Any] | None = None,
        **changes: Any,
    ) -> Connected:
        """Connect two kinds of peer, the first of them on machine ``a``.

        ``changes`` to the setup are for both, ``ours`` for the first and ``theirs`` for the other.
        """
        setup = replace(self.setup, **changes)
        with meeting(
            (self.lab.a, self.command(first)),
            (self.lab.b, self.command(second)),
            self.folder,
            hold_back=hold_back,
            only=only,
        ) as both:
            return both.connect(
                replace(setup, **{"controlling": controlling, **(ours or {})}),
                replace(setup, **{"controlling": not controlling, **(theirs or {})}),
                settled=settled,
                restarts=restarts,
            )


@pytest.fixture(scope="module")
def cables(command: Commands, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """Two hosts with public addresses of both families, and no server."""
    with Lab.pair("open", "open", server_command=(), ipv6="routed") as lab:
        yield Scene(lab, Setup(), command, tmp_path_factory.mktemp("cables"))


@pytest.fixture(scope="module")
def lan(command: Commands, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """Two hosts in one house."""
    lab = Lab.nat("port-restricted-cone", hosts=("a", "b"), server_command=(), ipv6="off")
    with lab:
        yield Scene(lab, Setup(), command, tmp_path_factory.mktemp("lan"))


@pytest.fixture(scope="module")
def nats(command: Commands, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """Two hosts behind the ordinary home router; turnd answers STUN."""
    folder = tmp_path_factory.mktemp("nats")
    kind = "port-restricted-cone"
    with Lab.pair(kind, kind, server_command=(), ipv6="off") as lab, turnd(lab, folder):
        yield Scene(lab, Setup(stun=(lab.server.ipv4, TURN_PORT)), command, folder)


@pytest.fixture(scope="module")
def relays(
    command: Commands, require_peer: Callable[..., str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Scene]]:
    """Two hosts behind symmetric NATs, and two relays: turnd and coturn."""
    program = require_peer("turnserver", "coturn")
    folder = tmp_path_factory.mktemp("relays")
    with ExitStack() as stack:
        lab = stack.enter_context(Lab.pair("symmetric", "symmetric", server_command=(), ipv6="off"))
        host = lab.server.ipv4
        certificate = str(write_self_signed(folder / "certificate.pem", host))
        ours = stack.enter_context(
            turnd(
                lab,
                folder,
                *("--listen", f"tls://{host}:{TLS_PORT}", "--listen", f"dtls://{host}:{TLS_PORT}"),
                *("--cert", certificate, "--key", certificate),
            )
        )
        theirs = stack.enter_context(coturn(lab, folder, program))
        ours = ours._replace(authorities=certificate)
        scene = Scene(lab, Setup(relay=ours, relay_only=True), command, folder)
        yield {
            "turnd": scene,
            "coturn": scene._replace(setup=replace(scene.setup, relay=theirs)),
        }


@pytest.fixture(params=ROLES)
def controlling(request: pytest.FixtureRequest) -> bool:
    """Whether natkit is the controlling side."""
    return ROLES[request.param]


# The others. --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second"), [("aioice", "libnice"), ("libnice", "pion"), ("pion", "aioice")]
)
def test_others_connect_through_nats(nats: Scene, first: str, second: str) -> None:
    assert not nats.meet(first, second).relayed


def test_others_connect_by_a_relay(relays: dict[str, Scene]) -> None:
    assert relays["turnd"].meet("aioice", "libnice").relayed


def test_others_connect_over_tcp(cables: Scene) -> None:
    assert cables.meet("libnice", "pion", transports=("tcp",)).transports == {"tcp"}


# UDP. ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("other", OTHERS)
def test_over_cables(cables: Scene, other: str, controlling: bool) -> None:
    found = cables.meet("natkit", other, controlling=controlling)
    # The other one may know natkit's address from its checks before it is told.
    assert found.a.local.type == "host"
    assert found.a.remote.type in {"host", "prflx"}
    assert found.transports == {"udp"}


@pytest.mark.parametrize("other", OTHERS)
def test_through_two_nats(nats: Scene, other: str, controlling: bool) -> None:
    found = nats.meet("natkit", other, controlling=controlling)
    assert not found.relayed
    assert found.a.remote.address == nats.lab.box(site="b").ipv4
    assert found.b.remote.address == nats.lab.box(site="a").ipv4


@pytest.mark.parametrize("server", ["turnd", "coturn"])
@pytest.mark.parametrize("other", OTHERS)
def test_by_a_relay_alone(
    relays: dict[str, Scene], other: str, server: str, controlling: bool
) -> None:
    found = relays[server].meet("natkit", other, controlling=controlling)
    assert found.a.types == found.b.types == ("relay", "relay")
    assert found.agree


@pytest.mark.parametrize("other", OTHERS)
def test_a_relay_that_is_reached_by_tcp(
    relays: dict[str, Scene], other: str, controlling: bool
) -> None:
    scene = relays["turnd"]
    relay = scene.relay(f"turn:{scene.lab.server.ipv4}:{TURN_PORT}?transport=tcp")
    found = scene.meet("natkit", other, controlling=controlling, relay=relay)
    assert found.a.types == found.b.types == ("relay", "relay")


@pytest.mark.parametrize("transport", ["tcp", "udp"], ids=["tls", "dtls"])
def test_a_relay_that_is_reached_in_secret(relays: dict[str, Scene], transport: str) -> None:
    """natkit's side of it; pion goes to the same turnd in clear."""
    scene = relays["turnd"]
    relay = scene.relay(f"turns:{scene.lab.server.ipv4}:{TLS_PORT}?transport={transport}")
    found = scene.meet("natkit", "pion", ours={"relay": relay}, controlling=False)
    assert found.a.types == found.b.types == ("relay", "relay")


@pytest.mark.parametrize("other", OTHERS)
def test_ipv6(cables: Scene, other: str, controlling: bool) -> None:
    found = cables.meet(
        "natkit", other, controlling=controlling, hold_back={"a": " 192.", "b": " 192."}
    )
    assert all(":" in end.address for pair in (found.a, found.b) for end in pair)


@pytest.mark.parametrize("other", ["natkit", "pion"])
def test_addresses_behind_names(lan: Scene, other: str, controlling: bool) -> None:
    """Each looks up the other's names by multicast DNS; no candidate has an address in it."""
    found = lan.meet("natkit", other, controlling=controlling, hide=True, only=".local ")
    assert found.transports == {"udp"}


# Roles, lite agents, restarts. --------------------------------------------------------------------


@pytest.mark.parametrize("both", ROLES)
@pytest.mark.parametrize("other", ["aioice", "libnice"])
def test_both_claim_one_role(nats: Scene, other: str, both: str) -> None:
    """RFC 8445 section 7.3.1.1: the tie-breakers decide.  pion's agent in Debian goes by none."""
    role = {"controlling": ROLES[both]}
    assert not nats.meet("natkit", other, ours=role, theirs=role).relayed


@pytest.mark.parametrize("other", OTHERS)
def test_natkit_is_lite(cables: Scene, other: str) -> None:
    found = cables.meet("natkit", other, controlling=False, ours={"lite": True})
    assert found.b.remote.type == "host"


@pytest.mark.parametrize("other", ["libnice", "pion"])
def test_the_other_one_is_lite(cables: Scene, other: str) -> None:
    found = cables.meet("natkit", other, theirs={"lite": True})
    assert found.a.types == ("host", "host")


@pytest.mark.parametrize("other", ["libnice", "pion"])
def test_restarts(nats: Scene, other: str, controlling: bool) -> None:
    assert not nats.meet("natkit", other, controlling=controlling, restarts=2).relayed


# TCP (RFC 6544). ----------------------------------------------------------------------------------


@pytest.mark.parametrize("other", TCP_ABLE)
def test_natkit_opens_the_connection(cables: Scene, other: str, controlling: bool) -> None:
    found = cables.meet(
        "natkit",
        other,
        controlling=controlling,
        transports=("tcp",),
        hold_back={"a": "tcptype passive"},
    )
    assert found.transports == {"tcp"}
    assert (found.a.local.tcptype, found.a.remote.tcptype) == ("active", "passive")


def test_the_other_one_opens_the_connection(cables: Scene, controlling: bool) -> None:
    """pion's agent in Debian accepts connections but opens none, so libnice's it is."""
    found = cables.meet(
        "natkit",
        "libnice",
        controlling=controlling,
        transports=("tcp",),
        hold_back={"b": "tcptype passive"},
    )
    assert found.transports == {"tcp"}
    assert (found.a.local.tcptype, found.a.remote.tcptype) == ("passive", "active")


@pytest.mark.parametrize("other", TCP_ABLE)
def test_udp_is_blocked(command: Commands, other: str, controlling: bool, tmp_path: Path) -> None:
    """Both are told everything; what gets through is natkit's connection to the other's port."""
    with Lab.pair("udp-blocked", "open", server_command=(), ipv6="off") as lab:
        scene = Scene(lab, Setup(transports=("udp", "tcp")), command, tmp_path)
        found = scene.meet("natkit", other, controlling=controlling)
    assert found.transports == {"tcp"}
    assert found.a.local.tcptype == "active"


@pytest.mark.parametrize("other", TCP_ABLE)
def test_udp_is_preferred(cables: Scene, other: str, controlling: bool) -> None:
    found = cables.meet(
        "natkit",
        other,
        controlling=controlling,
        transports=("udp", "tcp"),
        settled=lambda found: found.transports == {"udp"},
    )
    assert found.transports == {"udp"}


def test_with_itself_over_tcp_through_two_nats(nats: Scene) -> None:
    """Neither NAT lets the other's connection in unless both sides open one at once."""
    found = nats.meet("natkit", "natkit", transports=("tcp",))
    assert found.transports == {"tcp"}
    assert not found.relayed
    assert found.a.remote.address == nats.lab.box(site="b").ipv4
    assert found.b.remote.address == nats.lab.box(site="a").ipv4
