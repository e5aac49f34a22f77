"""turnd with several workers: coturn's client, and other servers of a fleet, see one server."""

from __future__ import annotations

import random
import re
import subprocess
import time
from collections.abc import Callable
from typing import Any

import pytest

from stun import attributes as a
from stun.registry import Method
from tools.turndesk import code
from tools.turnlive import LiveCaller, LiveTurnd

REQUEST = (a.REQUESTED_TRANSPORT, 17)
LOAD = ["-n", "20", "-u", "alice", "-w", "secret"]


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(["-y", "-m", "8"], id="udp, each second port by reservation"),
        pytest.param(["-y", "-m", "8", "-t"], id="tcp, each second port by reservation"),
        pytest.param(["-y", "-c", "-m", "6", "-M"], id="mobility"),
        pytest.param(["-y", "-m", "6", "-s"], id="indications"),
        pytest.param(["-y", "-c", "-m", "4", "-T", "-t"], id="tcp allocations"),
    ],
)
def test_the_client_of_coturn(options: list[str], require_peer: Callable[..., str]) -> None:
    """It asks for pairs of ports unless told not to (-c), and redeems them by other sockets."""
    with LiveTurnd({"workers": 3, "limits.allocations_per_user": 0}) as turnd:
        where = ["-p", str(turnd.port), "127.0.0.1"]
        done = subprocess.run(
            [require_peer("turnutils_uclient", "coturn"), *options, *LOAD, *where],
            check=False,
            capture_output=True,
            text=True,
            timeout=90,
        )
        said = done.stdout + done.stderr
        assert done.returncode == 0, said
        sent, received = re.findall(r"tot_send_msgs=(\d+), tot_recv_msgs=(\d+)", said)[-1]
        assert int(sent) == int(received) > 0, said


def test_quotas_and_nonces_of_a_fleet(redis_server: Any, rng: random.Random) -> None:
    tables = {"auth.store": redis_server.url, "limits.allocations_per_user": 4}
    with LiveTurnd({"workers": 2, **tables}) as one, LiveTurnd(tables) as other:
        callers = [LiveCaller(one.server, rng) for _ in range(3)]
        for caller in callers:
            caller.allocate()
        there = LiveCaller(other.server, rng)
        there.allocate()
        strangers = [LiveCaller(turnd.server, rng) for turnd in (one, other) for _ in range(3)]
        end = time.monotonic() + 10
        # What one server has is known to another a second or two later.
        while time.monotonic() < end and not all(refused(caller) for caller in strangers):
            time.sleep(0.2)
        assert [refused(caller) for caller in strangers] == [True] * len(strangers)
        for caller in (there, callers[0]):
            assert code(caller.refresh(0)) == 0
        end = time.monotonic() + 10
        while time.monotonic() < end and any(refused(caller) for caller in strangers):
            time.sleep(0.2)
        assert not any(refused(caller) for caller in strangers)
        # A nonce of one server is good at the other, whichever of its workers is asked.
        for _ in range(4):
            newcomer = LiveCaller(one.server, rng)
            newcomer.sessions = there.sessions
            newcomer.server = there.server
            assert code(newcomer.ask(Method.ALLOCATE, REQUEST, follow=False)) in {0, 486}
            newcomer.refresh(0)
            newcomer.close()
        for caller in (*callers, there, *strangers):
            caller.close()


def refused(caller: LiveCaller) -> bool:
    """Whether a client is over its quota; what it gets otherwise it gives back."""
    answer = code(caller.ask(Method.ALLOCATE, REQUEST))
    if answer == 0:
        assert code(caller.refresh(0)) == 0
    return answer == 486
