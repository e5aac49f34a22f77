"""Which names of a peer are taken as names of files here.

A path comes as its parts, so there is no separator to be misunderstood.  What cannot be a plain
name here is refused, not changed: two names can never become one, and nobody gets a file that is
called other than was told.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final

SUFFIX: Final = ".punch-part"
"""What the name of a file ends with until it is complete."""
MOST_OCTETS: Final = 255 - len(SUFFIX)

_WINDOWS: Final = os.name == "nt"
_RESERVED: Final = frozenset(
    ["con", "prn", "aux", "nul"]
    + [f"{port}{digit}" for port in ("com", "lpt") for digit in "123456789¹²³"]
)


def objection(
    parts: Sequence[str], *, hidden: bool = False, windows: bool = _WINDOWS
) -> str | None:
    """Say why a path of a peer is not taken, or None: it is harmless.

    ``hidden`` allows a first part that begins with a dot.
    """
    for part in parts:
        why = _objection(part, windows=windows)
        if why is not None:
            return why
    if parts[0].startswith(".") and not hidden:
        # What programs read without being asked, as .profile and .ssh do.
        return "its name begins with a dot (punch recv --hidden takes it)"
    return None


def _objection(part: str, *, windows: bool) -> str | None:
    if part in {"", ".", ".."}:
        return f"{part!r} is no name"
    if "/" in part or "\\" in part:
        return "a name with a separator"
    if any(ord(c) < 32 or 127 <= ord(c) < 160 for c in part):
        return "a name with control characters"
    if part.endswith(SUFFIX):
        return f"names that end with {SUFFIX} are for what is incomplete"
    try:
        octets = len(part.encode() if windows else os.fsencode(part))
    except UnicodeEncodeError:
        return "a name that this system cannot write"
    if octets > MOST_OCTETS:
        return f"a name of {octets} octets is too long, {MOST_OCTETS} are possible"
    if windows and (set(part) & set('<>:"|?*') or part[-1] in " ." or _device(part)):
        return "a name that Windows takes for something else"
    return None


def _device(part: str) -> bool:
    return part.partition(".")[0].rstrip(" ").lower() in _RESERVED
