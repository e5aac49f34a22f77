"""Connectivity checks (RFC 8445 sections 6 to 9): :mod:`ice.checks.checker` has the whole."""

from __future__ import annotations

from ice.checks.checker import Checker
from ice.checks.checklist import ChecklistState
from ice.checks.events import (
    CheckEvent,
    ChecklistCompleted,
    ChecklistFailed,
    ConsentRevoked,
    Nominated,
    PairValid,
    ProbeAnswered,
    RequestReceived,
)
from ice.events import RemoteCandidate, RoleChanged

__all__ = [
    "CheckEvent",
    "Checker",
    "ChecklistCompleted",
    "ChecklistFailed",
    "ChecklistState",
    "ConsentRevoked",
    "Nominated",
    "PairValid",
    "ProbeAnswered",
    "RemoteCandidate",
    "RequestReceived",
    "RoleChanged",
]
