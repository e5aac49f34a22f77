"""Browsers open data channels to an aiortc program that runs on natkit's agent.

The page and the program find each other through letter boxes on the laboratory's server.  One test
of each browser has aiortc run on the agent that it comes with: what fails there is not natkit's
doing.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from nattype.lab import Lab
from tools.icelab import ROOT, TURN_PORT, coturn, turnd, wait_for
from tools.icepeers import Relay

pytestmark = pytest.mark.interop

HERE = Path(__file__).parent
WEB_PORT = 8000
PATIENCE = 30
ROLES = {"page-offers": True, "page-answers": False}

FIREFOX_PREFERENCES = {
    "media.peerconnection.ice.tcp": True,
    # RFC 6544's simultaneous-open candidates, which it gathers none of unless told how many.
    "media.peerconnection.ice.tcp_so_sock_count": 3,
    # There is nobody in the laboratory whom it could ask for anything.
    "network.proxy.type": 0,
    "network.captive-portal-service.enabled": False,
    "network.connectivity-service.enabled": False,
    "network.trr.mode": 5,
    "app.normandy.enabled": False,
    "app.update.enabled": False,
    "browser.safebrowsing.malware.enabled": False,
    "browser.safebrowsing.phishing.enabled": False,
    "browser.shell.checkDefaultBrowser": False,
    "browser.aboutwelcome.enabled": False,
    "browser.startup.homepage_override.mstone": "ignore",
    "browser.region.update.enabled": False,
    "browser.search.update": False,
    "browser.sessionstore.resume_from_crash": False,
    "datareporting.policy.dataSubmissionEnabled": False,
    "datareporting.healthreport.uploadEnabled": False,
    "dom.push.connection.enabled": False,
    "extensions.update.enabled": False,
    "media.gmp-manager.updateEnabled": False,
    "services.settings.server": "",
    "toolkit.telemetry.enabled": False,
}


@dataclass(frozen=True)
class Browser:
    """How a browser is run on a page."""

    name: str
    program: str

    def command(self, url: str, profile: Path, *, hides: bool) -> list[str]:
        """Return the command line, with the profile made.

        A page that has no camera is not told this host's addresses but names that stand for them;
        without ``hides`` it gets the addresses.
        """
        profile.mkdir()
        if self.name == "firefox":
            preferences = FIREFOX_PREFERENCES | {
                "media.peerconnection.ice.obfuscate_host_addresses": hides
            }
            (profile / "user.js").write_text(
                "".join(
                    f"user_pref({json.dumps(name)}, {json.dumps(value)});\n"
                    for name, value in preferences.items()
                )
            )
            return [self.program, "--headless", "--no-remote", "--profile", str(profile), url]
        return [
            self.program,
            "--headless=new",
            # Its sandbox does not start as root; the lab's namespace is one.
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-background-networking",
            "--no-first-run",
            f"--{'enable' if hides else 'disable'}-features=WebRtcHideLocalIpsWithMdns",
            f"--user-data-dir={profile}",
            url,
        ]


@pytest.fixture(scope="module", autouse=True)
def _aiortc(require_module: Callable[..., Any]) -> None:
    require_module("aiortc")


@pytest.fixture(scope="module")
def browsers(require_peer: Callable[..., str]) -> Callable[[str], Browser]:
    """Return a function that finds a browser by name."""
    programs = {"chromium": ("chromium", "chromium"), "firefox": ("firefox-esr", "firefox-esr")}
    return lambda name: Browser(name, require_peer(*programs[name]))


@dataclass(frozen=True)
class Result:
    """What the page said of the connection, and the candidates that each side told."""

    local: str
    remote: str
    protocol: str
    candidates: dict[str, list[str]]


class Scene:
    """A page on machine ``a``, a program on machine ``b``, letter boxes on the server."""

    def __init__(self, lab: Lab, relay: Relay, folder: Path) -> None:
        self.lab = lab
        self.relay = relay
        self._folder = folder
        self._web = f"http://{lab.server.ipv4}:{WEB_PORT}"
        self._number = 0

    def meet(
        self,
        browser: Browser,
        *,
        page_offers: bool,
        agent: str = "natkit",
        ice: dict[str, Any] | None = None,
        servers: list[dict[str, Any]] | None = None,
        config: dict[str, Any] | None = None,
        only: str = "",
        hides: bool = False,
    ) -> Result:
        """Open a data channel, see that all messages come, and return the page's pair.

        ``ice`` is an RTCConfiguration for both, ``servers`` are natkit's if it is to ask others,
        and ``config`` is what else its agent is told;
        candidates without ``only`` in them are not exchanged.
        """
        self._number += 1
        folder = self._folder / str(self._number)
        folder.mkdir()
        page, program = f"page-{self._number}", f"program-{self._number}"
        configuration = ice or {"iceServers": []}
        query = urllib.parse.urlencode(
            {
                "me": page,
                "peer": program,
                "offer": int(page_offers),
                "ice": json.dumps(configuration),
            }
        )
        told: dict[str, Any] = {"config": config or {}, "only": only}
        if servers is not None:
            told["iceServers"] = servers
        with ExitStack() as stack:
            log = stack.enter_context((folder / "browser.log").open("wb"))
            running = self.lab.a.popen(
                browser.command(f"{self._web}/page.html?{query}", folder / "profile", hides=hides),
                stdout=log,
                stderr=log,
                env=os.environ | {"HOME": str(folder), "MOZ_DISABLE_CONTENT_SANDBOX": "1"},
            )
            stack.callback(end, running)
            process = self.lab.b.popen(
                [
                    *(sys.executable, str(HERE / "peers" / "ice_aiortc.py"), agent, self._web),
                    *(program, page, str(int(not page_offers)), json.dumps(configuration | told)),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
            )
            stack.enter_context(process)
            found = None
            give_up = time.monotonic() + PATIENCE
            while found is None and process.poll() is None and time.monotonic() < give_up:
                found = self._take(f"result-{page}")
            said, errors = process.communicate(timeout=PATIENCE)
        browser_log = (folder / "browser.log").read_text(errors="replace")[-2000:]
        logs = f"{found}\n{said}\n{errors}\n{browser_log}"
        ours = {} if process.returncode else json.loads(said)
        if not (ours.get("right") and found and found.get("right")):
            raise AssertionError(logs)
        pair = found["pair"]
        return Result(pair["local"], pair["remote"], pair["protocol"], ours["candidates"])

    def _take(self, box: str) -> Any:
        """Return the next letter of a box, or nothing when none comes within two seconds."""
        with contextlib.closing(HTTPConnection(self.lab.server.ipv4)) as connection:
            connection.sock = self.lab.server.socket(socket.AF_INET, socket.SOCK_STREAM)
            connection.sock.settimeout(10)
            connection.sock.connect((self.lab.server.ipv4, WEB_PORT))
            connection.request("GET", f"/box/{box}")
            body = connection.getresponse().read()
        return json.loads(body) if body else None


def end(process: Any) -> None:
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def scene(lab: Lab, folder: Path) -> Iterator[Scene]:
    """Run turnd and the letter boxes on the laboratory's server."""
    host = lab.server.ipv4
    with turnd(lab, folder) as relay, (folder / "boxes.log").open("wb") as log:
        process = lab.server.popen(
            [sys.executable, str(HERE / "browser" / "mailboxes.py"), host, str(WEB_PORT)],
            stdout=log,
            stderr=log,
        )
        try:
            wait_for(lab, (host, WEB_PORT), folder / "boxes.log")
            yield Scene(lab, relay, folder)
        finally:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def cables(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """Both have public addresses."""
    with Lab.pair("open", "open", server_command=(), ipv6="off") as lab:
        yield from scene(lab, tmp_path_factory.mktemp("cables"))


@pytest.fixture(scope="module")
def lan(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """Both are in one house."""
    lab = Lab.nat("port-restricted-cone", hosts=("a", "b"), server_command=(), ipv6="off")
    with lab:
        yield from scene(lab, tmp_path_factory.mktemp("lan"))


@pytest.fixture(scope="module")
def nats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """Each is behind an ordinary home router."""
    kind = "port-restricted-cone"
    with Lab.pair(kind, kind, server_command=(), ipv6="off") as lab:
        yield from scene(lab, tmp_path_factory.mktemp("nats"))


@pytest.fixture(params=["chromium", "firefox"])
def browser(request: pytest.FixtureRequest, browsers: Callable[[str], Browser]) -> Browser:
    return browsers(request.param)


@pytest.fixture(params=ROLES)
def page_offers(request: pytest.FixtureRequest) -> bool:
    """Whether the page offers, which makes it the controlling side."""
    return ROLES[request.param]


# With the agent that aiortc comes with. -----------------------------------------------------------


def test_aiortc_as_it_comes(cables: Scene, browser: Browser) -> None:
    found = cables.meet(browser, page_offers=True, agent="aioice")
    assert (found.local, found.protocol) == ("host", "udp")


# With natkit's. -----------------------------------------------------------------------------------


def test_over_cables(cables: Scene, browser: Browser, page_offers: bool) -> None:
    found = cables.meet(browser, page_offers=page_offers)
    assert found.local == "host"
    assert found.remote in {"host", "prflx"}
    assert found.protocol == "udp"


def test_addresses_behind_names(lan: Scene, browser: Browser) -> None:
    """The page's addresses are names that only the LAN can resolve, by multicast DNS."""
    found = lan.meet(browser, page_offers=True, hides=True)
    assert found.candidates["page"]
    assert all(".local " in candidate for candidate in found.candidates["page"])
    assert found.protocol == "udp"


def test_both_hide_their_addresses(lan: Scene, browser: Browser) -> None:
    found = lan.meet(browser, page_offers=False, hides=True, config={"mdns": "publish"})
    for candidates in found.candidates.values():
        assert candidates
        assert all(".local " in candidate for candidate in candidates)
    assert found.protocol == "udp"


def test_through_two_nats(nats: Scene, browser: Browser, page_offers: bool) -> None:
    server = {"urls": [f"stun:{nats.lab.server.ipv4}:{TURN_PORT}"]}
    found = nats.meet(browser, page_offers=page_offers, ice={"iceServers": [server]})
    assert "relay" not in {found.local, found.remote}


@pytest.fixture(params=["turnd", "coturn"])
def relay(
    request: pytest.FixtureRequest,
    nats: Scene,
    require_peer: Callable[..., str],
    tmp_path: Path,
) -> Iterator[Relay]:
    if request.param == "turnd":
        yield nats.relay
    else:
        with coturn(nats.lab, tmp_path, require_peer("turnserver", "coturn")) as theirs:
            yield theirs


def test_by_a_relay_alone(nats: Scene, browser: Browser, page_offers: bool, relay: Relay) -> None:
    told = {"urls": [relay.url], "username": relay.username, "credential": relay.password}
    found = nats.meet(
        browser,
        page_offers=page_offers,
        ice={"iceServers": [told], "iceTransportPolicy": "relay"},
    )
    assert (found.local, found.remote) == ("relay", "relay")


def test_the_page_opens_a_tcp_connection(
    cables: Scene, browser: Browser, page_offers: bool
) -> None:
    """A browser only dials, so natkit's port is where they meet."""
    found = cables.meet(browser, page_offers=page_offers, config={"udp": False})
    assert found.protocol == "tcp"


def test_firefox_opens_a_tcp_connection_simultaneously(
    cables: Scene, browsers: Callable[[str], Browser], page_offers: bool
) -> None:
    found = cables.meet(
        browsers("firefox"), page_offers=page_offers, config={"udp": False}, only="tcptype so"
    )
    assert found.protocol == "tcp"


def test_firefox_opens_a_tcp_connection_simultaneously_through_two_nats(
    nats: Scene, browsers: Callable[[str], Browser]
) -> None:
    """Neither NAT lets a connection in.

    Firefox asks a TURN server for its mapping over TCP, but does not do so in time once it knows
    where to dial: the page has to offer.
    """
    server = f"{nats.lab.server.ipv4}:{TURN_PORT}"
    relay = {
        "urls": [f"turn:{server}?transport=tcp"],
        "username": nats.relay.username,
        "credential": nats.relay.password,
    }
    found = nats.meet(
        browsers("firefox"),
        page_offers=True,
        ice={"iceServers": [relay]},
        servers=[{"urls": [f"stun:{server}"]}],
        config={"udp": False},
        only="tcptype so",
    )
    assert found.protocol == "tcp"
    assert "relay" not in {found.local, found.remote}
