"""Which NAT this host is behind, and whom it can connect to.

    import nattype

    report = nattype.discover(["stun.example.org"])
    print(report.verdict)
    if report.udp is not None:
        print(report.udp.nat_type, report.udp.mapping, report.udp.filtering)

``discover`` blocks, ``discover_async`` is to be awaited; both return a :class:`Report` of plain,
frozen values.  ``compare`` says whether and how two reports' makers can connect; ``to_json`` and
``from_json`` give and take the versioned JSON form.  Names are loaded when they are first used, so
that ``import nattype`` costs next to nothing.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nattype.discover import discover, discover_async
    from nattype.jsonform import ReportFormatError, from_json, json_schema, to_json
    from nattype.model import (
        NAMED_KINDS,
        Allocation,
        Filtering,
        Hairpin,
        Kind,
        Lifetimes,
        Link,
        Mapping,
        NatModel,
        NatType,
        Unsolicited,
        nat_type,
    )
    from nattype.peers import Comparison, PeerKind, compare, reach
    from nattype.report import (
        AllocationReport,
        Evidence,
        FamilyReport,
        LifetimeReport,
        Outcome,
        PeerReach,
        Reach,
        Report,
        TcpReport,
        UdpReport,
    )
    from nattype.verdict import advice

__all__ = [
    "NAMED_KINDS",
    "Allocation",
    "AllocationReport",
    "Comparison",
    "Evidence",
    "FamilyReport",
    "Filtering",
    "Hairpin",
    "Kind",
    "LifetimeReport",
    "Lifetimes",
    "Link",
    "Mapping",
    "NatModel",
    "NatType",
    "Outcome",
    "PeerKind",
    "PeerReach",
    "Reach",
    "Report",
    "ReportFormatError",
    "TcpReport",
    "UdpReport",
    "Unsolicited",
    "advice",
    "compare",
    "discover",
    "discover_async",
    "from_json",
    "json_schema",
    "nat_type",
    "reach",
    "to_json",
]

_HOME = {
    "nattype.discover": ("discover", "discover_async"),
    "nattype.jsonform": ("ReportFormatError", "from_json", "json_schema", "to_json"),
    "nattype.model": (
        "NAMED_KINDS",
        "Allocation",
        "Filtering",
        "Hairpin",
        "Kind",
        "Lifetimes",
        "Link",
        "Mapping",
        "NatModel",
        "NatType",
        "Unsolicited",
        "nat_type",
    ),
    "nattype.peers": ("Comparison", "PeerKind", "compare", "reach"),
    "nattype.report": (
        "AllocationReport",
        "Evidence",
        "FamilyReport",
        "LifetimeReport",
        "Outcome",
        "PeerReach",
        "Reach",
        "Report",
        "TcpReport",
        "UdpReport",
    ),
    "nattype.verdict": ("advice",),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}


def __getattr__(name: str) -> Any:
    try:
        module = _MODULE_OF[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    value = getattr(import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))


class _Package(ModuleType):
    """Keeps ``nattype.discover`` the function, also once the module of that name is imported."""

    def __setattr__(self, name: str, value: object) -> None:
        # The import system sets each submodule as an attribute of its package.
        if name == "discover" and isinstance(value, ModuleType):
            value = value.discover
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
