"""What systemd is told of a service (sd_notify(3)), without a library of systemd's.

``Type=notify`` services say when they serve, when they reload and when they stop, and, where
``WatchdogSec=`` is set, that they are alive.  Everywhere else all of this does nothing.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping


def notify(state: str, environment: Mapping[str, str] = os.environ) -> bool:
    """Tell ``state``, lines such as ``READY=1``; say whether there was somebody to tell.

    Raises nothing: a service manager that does not listen is no reason to stop serving.
    """
    path = environment.get("NOTIFY_SOCKET", "")
    if path[:1] not in {"/", "@"}:
        return False
    if path.startswith("@"):  # Linux's abstract namespace
        path = "\0" + path[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
            line.connect(path)
            line.send(state.encode())
    except OSError:
        return False
    return True


def reloading(environment: Mapping[str, str] = os.environ) -> bool:
    """Tell that a reload begins; ``READY=1`` follows when it is done (``Type=notify-reload``)."""
    microseconds = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    return notify(f"RELOADING=1\nMONOTONIC_USEC={microseconds}", environment)


def watchdog_interval(environment: Mapping[str, str] = os.environ) -> float | None:
    """Return how often, in seconds, ``WATCHDOG=1`` is due: half of what systemd allows.

    ``None`` where no watchdog waits for this process.
    """
    if environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    microseconds = environment.get("WATCHDOG_USEC", "")
    if not microseconds.isdecimal() or int(microseconds) == 0:
        return None
    return int(microseconds) / 2e6
