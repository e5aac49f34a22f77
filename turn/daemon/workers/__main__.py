"""``python -m turn.daemon.workers FD``: what a supervisor starts, and nobody else can use."""

from __future__ import annotations

import sys

from turn.daemon.workers.worker import run

if __name__ == "__main__":
    sys.exit(run(int(sys.argv[1])))
