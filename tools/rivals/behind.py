"""Runs a command behind a NAT, with an honest or a dishonest STUN server on the public network.

python -m tools.rivals.behind --nat symmetric --fault ignore-change -- COMMAND...
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from nattype.lab.kernel.commands import run
from nattype.lab.kernel.enclosure import exit_like
from nattype.lab.kernel.errors import LabError
from nattype.lab.kernel.spec import IPV6_OFF, LabSpec, Site
from nattype.model import kind
from tools.rivals.dishonest import Fault

DISHONEST = Path(__file__).with_name("dishonest.py")


def main() -> None:
    """Run it, and end as the command ended."""
    parser = argparse.ArgumentParser(description="Run a command behind a NAT.")
    parser.add_argument("--nat", type=kind, required=True)
    parser.add_argument("--fault", type=Fault, choices=list(Fault), default=Fault.NONE)
    parser.add_argument("command", nargs="+")
    words = parser.parse_args()
    server = None
    if words.fault is not Fault.NONE:
        server = (sys.executable, str(DISHONEST), "--fault", words.fault.value, "{A}", "{B}")
    spec = LabSpec((Site(words.nat),), ipv6=IPV6_OFF, server_command=server)
    try:
        exit_like(run(spec, words.command))
    except LabError as error:
        sys.exit(f"the NAT could not be built: {error}")


if __name__ == "__main__":
    main()
