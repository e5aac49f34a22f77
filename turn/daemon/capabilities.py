"""What a user other than root may do here: capabilities(7) that are permitted, taken into effect.

A file's capabilities without the effective bit let a program start whether or not its container has
them (with that bit the kernel refuses to start it if one is missing).  It is then the program that
takes into effect what it was permitted.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterable
from typing import Final

NET_BIND_SERVICE: Final = 10
NET_ADMIN: Final = 12
BPF: Final = 39

WANTED: Final = (NET_BIND_SERVICE, NET_ADMIN, BPF)
"""To listen below port 1024, and to relay inside the kernel."""

_VERSION_3: Final = 0x20080522
_WORD: Final = 32


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Data(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


def take_permitted(wanted: Iterable[int] = WANTED) -> set[int]:
    """Take into effect those of ``wanted`` that this thread is permitted; return which were not.

    To be called before there is another thread.  Where that cannot be (another system, a filter of
    system calls) nothing happens: what they are for then says that they are missing.
    """
    if sys.platform != "linux":
        return set()
    libc = ctypes.CDLL(None)
    header, data = _Header(_VERSION_3, 0), (_Data * 2)()
    if libc.capget(ctypes.byref(header), data) != 0:
        return set()
    taken = set()
    for number in wanted:
        word, bit = data[number // _WORD], 1 << number % _WORD
        if word.permitted & bit and not word.effective & bit:
            word.effective |= bit
            taken.add(number)
    if taken and libc.capset(ctypes.byref(header), data) != 0:
        return set()
    return taken
