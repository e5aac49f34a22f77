"""What can go wrong with a laboratory, in words that tell a person what to do next."""

from __future__ import annotations


class LabError(Exception):
    """The laboratory could not be built or used; the message says what to do if that is known."""


class Unsupported(LabError):
    """The kernel cannot express this behaviour; the simulated network may."""


class NotPermitted(LabError):
    """The machine does not let this user build namespaces; the message says what to run."""
