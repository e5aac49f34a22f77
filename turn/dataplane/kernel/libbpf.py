"""The part of libbpf that the kernel plane needs, and of bpf(2), through ctypes.

Theory of operation.  libbpf (1.0 or newer) reads the object file, makes the maps, has the kernel
verify the programs, and gives their descriptors; from then on each call here is one system call.
Everything is freed with the descriptors: nothing is pinned, so nothing outlives the process.

libbpf writes to standard error what it thinks worth telling.  Here that is caught, and becomes
the words of the error that it explains.  Its functions return a negated ``errno``; those that
return a pointer leave it in ``errno``.

Nothing here is called from two threads at once.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import socket
from collections import deque
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final

SONAME: Final = "libbpf.so.1"
"""The interface of libbpf 1.0 and all that came after."""

SCHED_CLS: Final = 3
"""BPF_PROG_TYPE_SCHED_CLS: a program for packets, on an interface."""
TCX_INGRESS: Final = 46
"""BPF_TCX_INGRESS (Linux 6.6): the list of programs that each packet goes through on arrival."""
TCX_NEXT: Final = -1
"""The packet is passed on, to the next program of the list."""
TC_REDIRECT: Final = 7
"""TC_ACT_REDIRECT: the packet goes where the program said."""
TC_DROP: Final = 2
"""TC_ACT_SHOT."""

LOCKED: Final = 4
"""BPF_F_LOCK: the element's spin lock is held meanwhile."""

LOG_ROOM: Final = 1 << 18
"""Octets of the verifier's log: of a longer one the kernel keeps the end (Linux 6.4)."""

_LOUDEST = 1  # LIBBPF_WARN is 0, LIBBPF_INFO 1, LIBBPF_DEBUG 2
_LINE = 1024
_EXIT = bytes.fromhex("b700000000000000 9500000000000000")  # r0 = 0; exit
_GROWTH = 256

_int, _u32, _u64, _ptr, _str = (
    ctypes.c_int, ctypes.c_uint32, ctypes.c_uint64, ctypes.c_void_p, ctypes.c_char_p,
)  # fmt: skip
# The functions, with what they return and take.
_PROTOTYPES: Final[dict[str, tuple[Any, ...]]] = {
    "libbpf_version_string": (_str,),
    "libbpf_set_print": (_ptr, _ptr),
    "libbpf_num_possible_cpus": (_int,),
    "bpf_object__open_file": (_ptr, _str, _ptr),
    "bpf_object__load": (_int, _ptr),
    "bpf_object__close": (None, _ptr),
    "bpf_object__find_map_by_name": (_ptr, _ptr, _str),
    "bpf_object__find_program_by_name": (_ptr, _ptr, _str),
    "bpf_object__next_program": (_ptr, _ptr, _ptr),
    "bpf_program__fd": (_int, _ptr),
    "bpf_program__set_log_buf": (_int, _ptr, _ptr, ctypes.c_size_t),
    "bpf_map__fd": (_int, _ptr),
    "bpf_map__key_size": (_u32, _ptr),
    "bpf_map__value_size": (_u32, _ptr),
    "bpf_map__max_entries": (_u32, _ptr),
    "bpf_map__set_max_entries": (_int, _ptr, _u32),
    "bpf_map_update_elem": (_int, _int, _str, _str, _u64),
    "bpf_map_lookup_elem_flags": (_int, _int, _str, _ptr, _u64),
    "bpf_map_delete_elem": (_int, _int, _str),
    "bpf_prog_load": (_int, _int, _str, _str, _str, ctypes.c_size_t, _ptr),
    "bpf_prog_test_run_opts": (_int, _int, _ptr),
    "bpf_link_create": (_int, _int, _int, _int, _ptr),
    "bpf_obj_get_info_by_fd": (_int, _int, _ptr, _ptr),
}


class _TestRun(ctypes.Structure):
    """``struct bpf_test_run_opts``."""

    _fields_ = [
        ("sz", ctypes.c_size_t),
        ("data_in", _str),
        ("data_out", _ptr),
        ("data_size_in", _u32),
        ("data_size_out", _u32),
        ("ctx_in", _ptr),
        ("ctx_out", _ptr),
        ("ctx_size_in", _u32),
        ("ctx_size_out", _u32),
        ("retval", _int),
        ("repeat", _int),
        ("duration", _u32),
        ("flags", _u32),
        ("cpu", _u32),
        ("batch_size", _u32),
    ]


class _Context(ctypes.Structure):
    """``struct __sk_buff`` as far as a test run may set it."""

    _fields_ = [
        ("_to_interface", ctypes.c_uint8 * 40),
        ("ifindex", _u32),
        ("_to_segments", ctypes.c_uint8 * 120),
        ("gso_segs", _u32),
        ("_sk", _u64),
        ("gso_size", _u32),
        ("_rest", ctypes.c_uint8 * 12),
    ]


class _LinkInfo(ctypes.Structure):
    """``struct bpf_link_info`` of a link on an interface."""

    _fields_ = [
        ("type", _u32),
        ("id", _u32),
        ("prog_id", _u32),
        ("_align", _u32),
        ("ifindex", _u32),
        ("attach_type", _u32),
        ("_rest", ctypes.c_uint8 * 40),
    ]


class BpfError(OSError):
    """A call that failed, in words; ``errno`` is the kernel's.

    ``detail`` is what libbpf and the verifier said, of any length.
    """

    def __init__(self, code: int, words: str, detail: str = "") -> None:
        super().__init__(code, words)
        self.detail = detail


class RefusedError(BpfError):
    """The verifier does not take a program; the words have its reason, ``detail`` its whole log."""


# What libbpf says. --------------------------------------------------------------------------------

_said: deque[str] = deque(maxlen=200)


def _hear(level: int, words: int, arguments: int) -> int:
    if level <= _LOUDEST:
        line = ctypes.create_string_buffer(_LINE)
        # A va_list is handed on as the pointer that it is, or is passed as, wherever BPF runs.
        ctypes.CDLL(None).vsnprintf(line, _LINE, ctypes.c_void_p(words), ctypes.c_void_p(arguments))
        _said.append(line.value.decode(errors="replace").rstrip())
    return 0


_listener = ctypes.CFUNCTYPE(_int, _int, _ptr, _ptr)(_hear)


@cache
def library() -> ctypes.CDLL:
    """Return libbpf.  Raises ``OSError`` when there is none that is new enough."""
    found = ctypes.CDLL(SONAME, use_errno=True)
    for name, (result, *arguments) in _PROTOTYPES.items():
        try:
            function = getattr(found, name)
        except AttributeError:
            raise OSError(errno.ENOSYS, f"{SONAME} has no {name}") from None
        function.restype, function.argtypes = result, arguments
    found.libbpf_set_print(ctypes.cast(_listener, _ptr))
    return found


def version() -> str:
    """Return libbpf's version, like ``v1.1``.  Raises ``OSError`` as :func:`library` does."""
    return str(library().libbpf_version_string().decode())


def possible_cpus() -> int:
    """Return how many values an element of a per-CPU map has."""
    return _checked(library().libbpf_num_possible_cpus(), "the number of CPUs cannot be read")


def _checked(result: int, words: str) -> int:
    if result < 0:
        raise BpfError(-result, f"{words}: {os.strerror(-result)}")
    return int(result)


# Maps. --------------------------------------------------------------------------------------------


class Map:
    """A map of a loaded object.  Keys and values are octets of exactly its sizes."""

    def __init__(self, pointer: int, name: str) -> None:
        lib = library()
        self.name = name
        self.fd: Final[int] = lib.bpf_map__fd(pointer)
        self.key_size: Final[int] = lib.bpf_map__key_size(pointer)
        self.value_size: Final[int] = lib.bpf_map__value_size(pointer)
        self.max_entries: Final[int] = lib.bpf_map__max_entries(pointer)
        self._update = lib.bpf_map_update_elem
        self._lookup = lib.bpf_map_lookup_elem_flags
        self._delete = lib.bpf_map_delete_elem

    def update(self, key: bytes, value: bytes, flags: int = 0) -> None:
        """Set an element.  Raises ``OSError``: E2BIG when the map is full, ENOMEM."""
        # The kernel reads as many octets as the map was made with.
        if len(key) != self.key_size or len(value) != self.value_size:
            raise ValueError(
                f'the map "{self.name}" has keys of {self.key_size} octets and values of '
                f"{self.value_size}, not {len(key)} and {len(value)}"
            )
        result = self._update(self.fd, key, value, flags)
        if result == -errno.E2BIG:
            words = f'the map "{self.name}" is full: it has room for {self.max_entries} elements'
            raise BpfError(errno.E2BIG, words)
        _checked(result, f'the map "{self.name}" is not changed')

    def lookup(self, key: bytes, flags: int = 0, *, copies: int = 1) -> bytes | None:
        """Return an element, ``None`` when there is none; of a per-CPU map all ``copies``."""
        if len(key) != self.key_size:
            raise ValueError(f'the map "{self.name}" has keys of {self.key_size} octets')
        value = ctypes.create_string_buffer(-(-self.value_size // 8) * 8 * copies)
        result = self._lookup(self.fd, key, value, flags)
        if result == -errno.ENOENT:
            return None
        _checked(result, f'the map "{self.name}" cannot be read')
        return value.raw if copies > 1 else value.raw[: self.value_size]

    def delete(self, key: bytes) -> bool:
        """Take an element out; say whether there was one."""
        if len(key) != self.key_size:
            raise ValueError(f'the map "{self.name}" has keys of {self.key_size} octets')
        result = self._delete(self.fd, key)
        if result == -errno.ENOENT:
            return False
        _checked(result, f'the map "{self.name}" is not changed')
        return True


# Objects. -----------------------------------------------------------------------------------------


class BpfObject:
    """An object file: opened, then sized, then loaded into the kernel."""

    def __init__(self, path: Path) -> None:
        """Open it.  Raises :class:`BpfError` when it is no object that libbpf understands."""
        self._lib = library()
        self._pointer: int | None = None
        self._log = ctypes.create_string_buffer(LOG_ROOM)
        self.path = path
        with _listening() as said:
            pointer = self._lib.bpf_object__open_file(os.fsencode(path), None)
            if not pointer:
                code = ctypes.get_errno()
                last = said[-1] if said else os.strerror(code)
                raise BpfError(code, f"{path} cannot be opened: {last}", "\n".join(said))
        self._pointer = pointer
        program = self._lib.bpf_object__next_program(pointer, None)
        while program:
            # A program at a time is verified, and the first that is refused is the last.
            self._lib.bpf_program__set_log_buf(program, self._log, LOG_ROOM)
            program = self._lib.bpf_object__next_program(pointer, program)

    def resize(self, name: str, entries: int) -> None:
        """Set how many elements a map has, before it is loaded."""
        _checked(
            self._lib.bpf_map__set_max_entries(self._map(name), entries),
            f'the map "{name}" cannot have {entries} elements',
        )

    def load(self) -> None:
        """Make the maps and have the programs verified.

        Raises :class:`BpfError`, and :class:`RefusedError` when the verifier does not take one.
        """
        with _listening() as said:
            result = self._lib.bpf_object__load(self._pointer)
            if result < 0:
                verdict = self._log.value.decode(errors="replace").strip()
                detail = "\n".join([*said, verdict])
                if reason := _last_words(verdict):
                    raise RefusedError(-result, f"the verifier says: {reason}", detail)
                raise BpfError(-result, os.strerror(-result), detail)

    def map(self, name: str) -> Map:
        """Return a map of the loaded object."""
        return Map(self._map(name), name)

    def program(self, name: str) -> int:
        """Return the descriptor of a program of the loaded object."""
        pointer = self._lib.bpf_object__find_program_by_name(self._pointer, name.encode())
        if not pointer:
            raise BpfError(errno.ENOENT, f'{self.path} has no program "{name}"')
        return _checked(self._lib.bpf_program__fd(pointer), f'"{name}" is not loaded')

    def close(self) -> None:
        """Close the descriptors of its maps and programs.  Nothing happens the second time."""
        if self._pointer is not None:
            self._lib.bpf_object__close(self._pointer)
            self._pointer = None

    def _map(self, name: str) -> int:
        pointer = self._lib.bpf_object__find_map_by_name(self._pointer, name.encode())
        if not pointer:
            raise BpfError(errno.ENOENT, f'{self.path} has no map "{name}"')
        return int(pointer)


@contextlib.contextmanager
def _listening() -> Iterator[deque[str]]:
    _said.clear()
    yield _said
    _said.clear()


def _last_words(log: str) -> str:
    """Return why the verifier refused a program: the last line that is not its statistics."""
    for line in reversed(log.splitlines()):
        if line and not line.startswith(("processed ", "verification time ", "stack depth ")):
            return line
    return ""


# Programs. ----------------------------------------------------------------------------------------


def load_nothing() -> int:
    """Load the shortest program that an interface takes, to see whether that may be done.

    Returns its descriptor, which is the caller's.  Raises :class:`BpfError`.
    """
    result = library().bpf_prog_load(SCHED_CLS, b"probe", b"Dual MIT/GPL", _EXIT, 2, None)
    return _checked(result, "the kernel takes no program")


def attach(program: int, ifindex: int) -> int:
    """Put a program at the end of the list on an interface; return the link's descriptor.

    It is taken off when the descriptor is closed.  Raises :class:`BpfError`: ENODEV when there is
    no such interface, EINVAL when the kernel has no TCX.
    """
    result = library().bpf_link_create(program, ifindex, TCX_INGRESS, None)
    return _checked(result, f"no program can be put on {_interface(ifindex)}")


def _interface(ifindex: int) -> str:
    try:
        return socket.if_indextoname(ifindex)
    except OSError:
        return f"interface {ifindex}"


def attached_to(link: int) -> int:
    """Return the index of the interface that a link is on; 0 when that has gone away."""
    info, size = _LinkInfo(), _u32(ctypes.sizeof(_LinkInfo))
    result = library().bpf_obj_get_info_by_fd(link, ctypes.byref(info), ctypes.byref(size))
    _checked(result, "the link cannot be read")
    return int(info.ifindex)


class TestRun:
    """A program that is run on a packet of ours (BPF_PROG_TEST_RUN); the packet goes nowhere."""

    __test__ = False

    def __init__(self, program: int) -> None:
        self._program = program
        self._run = library().bpf_prog_test_run_opts
        self._options = _TestRun(sz=ctypes.sizeof(_TestRun))
        self._at = ctypes.byref(self._options)

    def verdict(self, packet: bytes) -> int:
        """Run it; return what it returned.  Raises :class:`BpfError`."""
        options = self._options
        options.data_in, options.data_size_in = packet, len(packet)
        _checked(self._run(self._program, self._at), "the program could not be run")
        return int(options.retval)

    def packet(self, packet: bytes, *, ifindex: int = 0, segment: int = 0) -> tuple[int, bytes]:
        """Run it on an Ethernet frame; return what it returned, and the frame as it left it.

        The frame arrives on interface ``ifindex`` (0: the loopback interface); with ``segment`` it
        is several datagrams with that many octets of payload.  Raises :class:`BpfError`.
        """
        after = ctypes.create_string_buffer(len(packet) + _GROWTH)
        context = _Context(ifindex=ifindex, gso_size=segment)
        if segment:
            context.gso_segs = -(-len(packet) // segment)
        options = _TestRun(
            sz=ctypes.sizeof(_TestRun),
            data_in=packet,
            data_size_in=len(packet),
            data_out=ctypes.addressof(after),
            data_size_out=len(after),
            ctx_in=ctypes.addressof(context),
            ctx_size_in=ctypes.sizeof(context),
        )
        result = self._run(self._program, ctypes.byref(options))
        _checked(result, "the program could not be run")
        return int(options.retval), after.raw[: options.data_size_out]
