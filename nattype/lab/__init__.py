"""The NAT laboratory: real kernel NATs in namespaces, and the same simulated in virtual time.

    from nattype.lab import Lab

    with Lab.pair("symmetric", "port-restricted-cone", delay=0.02) as lab:
        server = lab.server.popen(["./relay"])
        lab.a.run(["./peer", "--call"])

:class:`Lab` and what belongs to it need Linux; the simulated network (:mod:`nattype.lab.sim`) runs
anywhere.  Names are loaded when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nattype.lab.kernel.errors import LabError, NotPermitted, Unsupported
    from nattype.lab.kernel.lab import AccessLink, Box, Lab, Machine
    from nattype.lab.kernel.process import Process
    from nattype.lab.kernel.spec import LabSpec, Site

__all__ = [
    "AccessLink",
    "Box",
    "Lab",
    "LabError",
    "LabSpec",
    "Machine",
    "NotPermitted",
    "Process",
    "Site",
    "Unsupported",
]

_HOMES = {
    "errors": ("LabError", "NotPermitted", "Unsupported"),
    "lab": ("AccessLink", "Box", "Lab", "Machine"),
    "process": ("Process",),
    "spec": ("LabSpec", "Site"),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            value = getattr(import_module(f"nattype.lab.kernel.{module}"), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
