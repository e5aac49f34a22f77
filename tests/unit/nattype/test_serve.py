"""``natcheck serve``: what it says, what it refuses and how it ends."""

from __future__ import annotations

import io
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

import pytest

from nattype import serve

ROOT = Path(__file__).resolve().parents[3]


def run(*addresses: str, **options: object) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    status = serve.run(addresses, out=out, err=err, **options)  # type: ignore[arg-type]
    return status, out.getvalue(), err.getvalue()


@pytest.mark.parametrize(
    ("addresses", "options", "complaint"),
    [
        (("localhost",), {}, "not a numeric"),
        (("127.0.0.1:3478",), {}, "ports go into --port"),
        (("127.0.0.1", "127.0.0.1"), {}, "twice"),
        (("127.0.0.1", "127.0.0.2", "127.0.0.3"), {}, "give one, or two"),
        (("0.0.0.0", "127.0.0.2"), {}, "means every address"),
        (("127.0.0.1",), {"port": 0}, "0 is not a port"),
        (("127.0.0.1",), {"port": 65535}, "65536 is not a port"),
        (("127.0.0.1",), {"port": 5000, "alternate_port": 5000}, "must differ"),
        (("127.0.0.1",), {"certificate": Path("/nonexistent.pem")}, "cannot use the certificate"),
        (("127.0.0.1",), {"advertise": {"127.0.0.1": "me"}}, "not a numeric"),
    ],
)
def test_wrong_usage(
    addresses: tuple[str, ...], options: dict[str, object], complaint: str
) -> None:
    status, out, err = run(*addresses, **options)
    assert (status, out) == (2, "")
    assert err.startswith("natcheck serve: ")
    assert complaint in err
    assert err.count("\n") == 1


def test_an_address_that_is_not_local_is_explained() -> None:
    status, _, err = run("192.0.2.1")
    assert status == 1
    assert "192.0.2.1 is not an address of this machine" in err
    assert "ip address" in err


def test_a_port_in_use_is_explained() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        status, _, err = run("127.0.0.1", port=port, alternate_port=1)
    assert status == 1
    assert f"UDP port {port} at 127.0.0.1 is in use" in err
    assert f"ss -lpn --udp sport = :{port}" in err


def test_addresses_are_put_into_the_form_that_sockets_use() -> None:
    config = serve._config(
        ["[2620:4F:8000:A::10]", "192.31.196.10", "2620:4f:8000:000b:0::10", "192.175.48.10"],
        3478,
        3479,
        advertise={},
        software=None,
        connect_back=True,
        tls_port=5349,
    )
    (four, six) = config.sites
    assert (str(four.primary), str(four.alternate)) == ("192.31.196.10:3478", "192.175.48.10:3479")
    assert (str(six.primary), str(six.alternate)) == (
        "[2620:4f:8000:a::10]:3478",
        "[2620:4f:8000:b::10]:3479",
    )
    assert config.tls_ports == (5349, 5350)


def test_without_addresses_every_local_one_is_served() -> None:
    config = serve._config(
        [], 3478, 3479, advertise={}, software=None, connect_back=True, tls_port=None
    )
    assert config.primary.host == "0.0.0.0"
    assert config.alternate is None


def read_until(stream: IO[str], text: str) -> str:
    """Read lines until one holds the text; pytest's time-out watches over it."""
    lines = ""
    while text not in lines:
        line = stream.readline()
        assert line, f"it ended after: {lines}"
        lines += line
    return lines


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_a_signal_and_then_tells_what_it_did(number: signal.Signals) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    code = (
        "import sys; from nattype.serve import run; "
        f"sys.exit(run(['127.0.0.1', '127.0.0.2'], port={port}, alternate_port={port - 1}))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert process.stdout is not None
        greeting = read_until(process.stdout, "over TCP")
        assert f"serving STUN over UDP at 127.0.0.1:{port}, 127.0.0.1:{port - 1}" in greeting
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(10)
            client.sendto(bytes.fromhex("000100002112a442") + bytes(12), ("127.0.0.1", port))
            assert client.recv(1000)[:2] == b"\x01\x01"
            client.sendto(b"no STUN at all, I fear", ("127.0.0.2", port))
            client.sendto(bytes.fromhex("000100002112a442") + bytes(12), ("127.0.0.2", port))
            assert client.recv(1000)[:2] == b"\x01\x01"
        process.send_signal(number)
        rest, _ = process.communicate(timeout=20)
        assert process.returncode == 0
        assert "2  answers over UDP" in rest
        assert "1  dropped: the first two bits are not zero" in rest
        assert "Traceback" not in rest
    finally:
        process.kill()
        process.wait()


def test_with_one_address_it_says_what_is_missing() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    pid, out, end = os.getpid(), io.StringIO(), time.monotonic() + 10

    class Stopping(io.StringIO):
        def flush(self) -> None:
            assert time.monotonic() < end
            out.write(self.getvalue())
            os.kill(pid, signal.SIGTERM)

    assert serve.run(["127.0.0.1"], port=port, out=Stopping()) == 0
    assert "a second --address gives that" in out.getvalue()
